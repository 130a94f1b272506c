#!/usr/bin/env bash
# Property: budgets are hard (DESIGN section 2.2). A budget that cannot work is refused before
# anything is written, in under a second of processor time, with a sentence that ends in the
# smallest flag that works; that one works, and 95 % of it does not. A run stays inside a memory
# cgroup of exactly its RAM and VRAM budget: no OOM kill, no swap, and the NVMe tier in use.
# Method: the flag is read out of the refusal and given back. SOAK=1 makes longer runs of gpt2-124m.
. tests/shared/system.sh
if is_sanitized; then
    skip "budgets" "a sanitizer's build has memory of its own"
    finish
fi
make_data
tiny=(train --model gpt-tiny --data "$work/data" --nvme "$work/nvme" --seq 32 --batch 2 --steps 3)
mini=(train --model gpt-mini --data "$work/data" --nvme "$work/nvme" --seq 64 --batch 1 --steps 3)

# refusal_of FLAG NAME ARGUMENT...: the run is refused quickly; $least is the value of the flag that
# ends the sentence.
refusal_of() {
    local flag=$1 name="$2 refuses a small $1"
    rm -rf "$work/refused"
    run "${@:3}" --out "$work/refused"
    refused "$name" 1 "$flag [0-9.]+[KMGT]?\$"
    least=$(least_flag "$flag")
    check "$name in under a second ($ticks ticks)" test "$ticks" -lt 100
    check "$name and writes nothing" test ! -e "$work/refused/metrics.jsonl"
}
percent95() {
    echo $(($(bytes_of "$1") * 95 / 100))
}

# budget_case NAME FLAG ARGUMENT...: refusal, the least that works, 95 % of it.
budget_case() {
    local name=$1 flag=$2
    shift 2
    refusal_of "$flag" "$name" "$@" "$flag" 1M
    [ -n "$least" ] || return
    run "$@" "$flag" "$least" --out "$work/least"
    check "$name works with $flag $least" test $status -eq 0
    rm -rf "$work/least"
    run "$@" "$flag" "$(percent95 "$least")" --out "$work/refused"
    refused "$name refuses 95 % of $flag $least" 1 "$flag [0-9.]+[KMGT]?\$"
}
budget_case "gpt-mini" --ram-budget "${mini[@]}"
mini_least=$least
budget_case "gpt-mini's arena" --vram-budget "${mini[@]}" --ram-budget 512M
mini_arena=$least
budget_case "gpt-mini's drive" --nvme-budget "${mini[@]}" --ram-budget "${mini_least:-512M}"
# Micro-batches so large that the device alone would take minutes to open.
big=(train --model gpt2-124m --data "$work/data" --nvme "$work/nvme" --seq 1024)
refusal_of --ram-budget "a large micro-batch" "${big[@]}" --batch 512 --ram-budget 2G
run "${big[@]}" --batch 65536 --out "$work/refused"
refused "a micro-batch of more tokens than any" 1 '--batch 4096 or less'
# What a tiny model needs is mostly the program itself, which differs by some 100 KiB from one start
# to the next, and 95 % of that is too close to tell: refused and works, no more.
refusal_of --ram-budget "gpt-tiny with an arena" "${tiny[@]}" --vram-budget 10M --ram-budget 1M
tiny_least=$least

# in_group NAME RAM VRAM ARGUMENT...: runs to the end inside a cgroup of RAM + VRAM.
in_group() {
    local name=$1 ram=$2 vram=$3 limit run_dir=$work/grouped
    shift 3
    limit=$(($(bytes_of "$ram") + $(bytes_of "$vram")))
    if ! make_group $limit; then
        skip "$name" "no memory cgroup may be made here (not root, or no controller)"
        return
    fi
    run_in_group "$@" --ram-budget "$ram" --vram-budget "$vram" --out "$run_dir"
    check "$name ends well" test $status -eq 0
    same "$name: no OOM kill" "$(group_oom_kills)" 0
    same "$name: no swap" "$(group_swap_bytes)" 0
    echo "    peak $(group_peak_bytes) of $limit bytes, the page cache included"
    check "$name: the drive was used" test "$(last_value "$run_dir/metrics.jsonl" ssd_read_bytes)" -gt 0
    check "$name: RAM peak within the budget" \
        test "$(last_value "$run_dir/metrics.jsonl" ram_peak_bytes)" -le "$(bytes_of "$ram")"
    check "$name: arena peak within the budget" \
        test "$(last_value "$run_dir/metrics.jsonl" vram_peak_bytes)" -le "$(bytes_of "$vram")"
    rmdir "$group"
    rm -rf "$run_dir"
}
[ -z "$tiny_least" ] ||
    in_group "gpt-tiny at its least RAM in a cgroup" "$tiny_least" 10M "${tiny[@]}"
[ -z "$mini_arena" ] || [ -z "$mini_least" ] ||
    in_group "gpt-mini at its least arena in a cgroup" "$mini_least" "$mini_arena" "${mini[@]}"

# Without a drive RAM holds all state: just above the least that it takes, where giving state up for speed
# would tempt the placement most.
mini_alone=(plan --model gpt-mini --seq 256 --batch 4)
run "${mini_alone[@]}" --ram-budget 100M
refused "gpt-mini without a drive refuses a small --ram-budget" 1 '--ram-budget [0-9.]+[KMGT]?$'
least=$(least_flag --ram-budget)
for percent in 100 103 108 115 125; do
    run "${mini_alone[@]}" --ram-budget $(($(bytes_of "$least") * percent / 100))
    same "gpt-mini without a drive is placed in $percent % of the least RAM" $status 0
done

# The model whose state (1.4 GiB) fits into neither budget: a few short steps, and long ones in a soak.
full=(train --data "$work/data" --nvme "$work/nvme" --model gpt2-124m)
in_group "gpt2-124m in 900M + 500M" 900M 500M "${full[@]}" --seq 64 --batch 1 --steps 3
if [ -n "${SOAK:-}" ]; then
    in_group "gpt2-124m in 900M + 500M, long" 900M 500M "${full[@]}" --seq 512 --batch 2 --steps 20
    budget_case "gpt2-124m" --ram-budget "${full[@]}" --seq 64 --batch 1 --steps 2 --vram-budget 500M
fi
finish
