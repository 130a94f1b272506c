#!/usr/bin/env bash
# Property: every byte is counted (DESIGN section 2.3). Per step, what the drive and the two copy
# lanes move is within 1 % of the least that the budgets allow; and the kernel's own count of the
# process's block I/O agrees with the sums in metrics.jsonl within 5 %.
# Method: the kernel counts what a shell's ended child moved (/proc/PID/io of the shell), so a run of
# 3 steps and one of 15 are compared: the difference is 12 steps, without setting up and the commits.
. tests/shared/system.sh
make_data
common=(train --model gpt-tiny --data "$work/data" --seq 64 --batch 4 --checkpoint-every 1000)

# counted DIR STEPS ARGUMENT...: runs, and leaves the kernel's counts in $work/io.
counted() {
    local dir=$1 steps=$2
    shift 2
    (
        "$spillway" "${common[@]}" "$@" --nvme "$work/nvme" --out "$dir" --steps "$steps" \
            >"$work/out" 2>"$work/err" </dev/null || exit 1
        while read -r key value; do
            case $key in read_bytes: | write_bytes:) echo "$key $value" ;; esac
        done <"/proc/$BASHPID/io" >"$work/io"
    ) || { not_ok "a run of $steps steps" "failed" && finish; }
    rm -rf "$work/nvme"
}
kernel() { sed -n "s/^$1: //p" "$work/io"; }
sum() { values "$1/metrics.jsonl" "$2" | awk '{ n += $1 } END { printf "%.0f\n", n }'; }
# near NAME PERCENT A B: A and B differ by at most PERCENT of B.
near() {
    if awk -v p="$2" -v a="$3" -v b="$4" 'BEGIN { d = a - b; exit !(d <= b * p / 100 && d >= -b * p / 100) }'
    then ok "$1 ($3, $4)"; else not_ok "$1" "$3 is not within $2 % of $4"; fi
}
within=1 # percent
# least DIR NAME LANE: the steady steps' bytes and their least, from the third step on.
least() {
    local moved least
    moved=$(values "$1/metrics.jsonl" "$3_bytes" | awk 'NR > 2 { n += $1 } END { printf "%.0f\n", n }')
    least=$(values "$1/metrics.jsonl" "$3_least_bytes" | awk 'NR > 2 { n += $1 } END { printf "%.0f\n", n }')
    near "$2: $3 is the least" "$within" "$moved" "$least"
}

# traffic_case NAME ARGUMENT...
traffic_case() {
    local name=$1 short=$work/short long=$work/long read_3 write_3 read_15 write_15
    shift
    rm -rf "$short" "$long"
    counted "$short" 3 "$@"
    read_3=$(kernel read_bytes) write_3=$(kernel write_bytes)
    counted "$long" 15 "$@"
    read_15=$(kernel read_bytes) write_15=$(kernel write_bytes)
    least "$long" "$name" ssd_read
    least "$long" "$name" ssd_write
    least "$long" "$name" h2d
    least "$long" "$name" d2h
    near "$name: the kernel agrees on reads" 5 $((read_15 - read_3)) \
        $(($(sum "$long" ssd_read_bytes) - $(sum "$short" ssd_read_bytes)))
    near "$name: the kernel agrees on writes" 5 $((write_15 - write_3)) \
        $(($(sum "$long" ssd_write_bytes) - $(sum "$short" ssd_write_bytes)))
}
traffic_case "all on the drive, arena" --resident none --vram-budget 64M
traffic_case "all on the drive, arena, four micro-batches" --resident none --vram-budget 64M --accum 4
traffic_case "all on the drive, no arena" --resident none
traffic_case "no clipping" --resident none --vram-budget 64M --clip 0
traffic_case "moments in bf16" --resident none --vram-budget 64M --optimizer-state bf16
within=1.2 # planes of chunks this small end in more padding than others
traffic_case "moments in 8 bits" --resident none --vram-budget 64M --optimizer-state 8bit
within=1
traffic_case "fp32" --resident none --vram-budget 64M --precision fp32
traffic_case "everything recomputed" --resident none --vram-budget 64M --recompute all
# The smallest budgets spill gradients and activations too, and a little more keeps some of the state.
for arguments in "--vram-budget 10M" "--vram-budget 8M --accum 3" "--precision fp32" "--recompute none"; do
    run "${common[@]}" --nvme "$work/nvme" --out "$work/refused" $arguments --ram-budget 1M
    least=$(least_flag --ram-budget)
    traffic_case "least RAM, $arguments" $arguments --ram-budget "$least"
    traffic_case "4 MiB more, $arguments" $arguments --ram-budget "$((${least%M} + 4))M"
done
finish
