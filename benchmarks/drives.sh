#!/usr/bin/env bash
# Several drives: what a second, slower one adds. Two file systems on loop devices, throttled by the
# block-I/O cgroup to FAST and SLOW megabytes a second in each direction; `spillway bench ssd --nvme A,B`
# measures them, and gpt2-124m is trained with all its state on the fast one alone, on both with equal
# shares (no profile), and on both with shares by what was measured. Prints the median step of each, the
# speed-up over the fast one alone, and what the rates would allow at most: (FAST + SLOW) / FAST.
#   FAST (400)  SLOW (200)  STEPS (6)  Needs root, loop devices, 9 GB of space.
. tests/shared/system.sh
fast=${FAST:-400} slow=${SLOW:-200} steps=${STEPS:-6}
LIMIT_S=1800
export XDG_CONFIG_HOME=$work/config # no profile but those made here
make_data
if ! make_drive "$work/a" 4200 || ! make_drive "$work/b" 4200; then
    skip "two drives" "needs root and loop devices"
    finish
fi

# limit FOLDER MB: the drive of the folder is no faster, for what runs in $group.
limit() {
    local device bytes=$(($2 * 1000000)) kind
    device=$(findmnt -no MAJ:MIN "$1")
    if [ -e "$group/io.max" ]; then
        echo "$device rbps=$bytes wbps=$bytes" >"$group/io.max"
        return
    fi
    for kind in read write; do echo "$device $bytes" >"$group/blkio.throttle.${kind}_bps_device"; done
}
group=/sys/fs/cgroup/spillway-drives-$$
[ -w /sys/fs/cgroup/cgroup.procs ] || group=/sys/fs/cgroup/blkio/spillway-drives-$$
if ! mkdir "$group" || ! limit "$work/a" "$fast" || ! limit "$work/b" "$slow"; then
    skip "two drives" "no block-I/O cgroup here"
    finish
fi
at_exit+=("rmdir '$group'")
must_in_group() {
    run_in_group "$@"
    [ $status -eq 0 ] && return
    not_ok "spillway $*" "exit status $status"
    cat "$work/err"
    finish
}

both=$work/a/tier,$work/b/tier
mkdir "$work/a/tier" "$work/b/tier"
must_in_group bench ssd --nvme "$both" --out "$work/machine.json" --seconds 20
grep -A 20 '"drives"' "$work/machine.json" | grep -E '"(mount|mixed)' | sed "s|$work||"
common=(--model gpt2-124m --data "$work/data" --seq 64 --batch 1 --vram-budget 500M --resident none
    --ram-budget 70M --steps "$steps" --checkpoint-every 0)

# step_of ARGUMENT...: the median step of a run, and what was predicted for the last, in $step and $predicted.
step_of() {
    rm -rf "$work/run"
    must_in_group train "${common[@]}" --out "$work/run" "$@"
    rm -f "$work"/[ab]/tier/*.state
    grep '"step_s"' "$work/run/metrics.jsonl" | tail -n +3 >"$work/lines"
    step=$(values "$work/lines" step_s | median) predicted=$(last_value "$work/lines" predicted_s)
}
say() { awk -v n="$1" -v s="$step" -v p="$predicted" -v o="$one" 'BEGIN {
    printf "%-34s %.2f s a step (predicted %.2f), %.2f times the speed of the fast one\n", n, s, p, o / s }'; }
step_of --nvme "$work/a/tier" --machine "$work/machine.json"
one=$step
say "the fast one alone"
step_of --nvme "$both"
say "both, equal shares"
step_of --nvme "$both" --machine "$work/machine.json"
say "both, shares by their rates"
echo "at most $(awk -v f="$fast" -v s="$slow" 'BEGIN { printf "%.2f", (f + s) / f }') by the rates"
finish
