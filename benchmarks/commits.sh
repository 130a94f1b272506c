#!/usr/bin/env bash
# Free commits: with all state on the drive, a commit after every step against none, the runs taking
# turns. Prints the median step of each run, the ratio of each pair, and the median ratio; at most 1.03
# is asked where a step takes 2 s or more.
#   PAIRS (3)  STEPS (6)  NVME (a folder on the drive)  MODEL (gpt2-355m)
. tests/shared/system.sh
pairs=${PAIRS:-3} steps=${STEPS:-6} nvme=${NVME:-$work}/nvme model=${MODEL:-gpt2-355m}
LIMIT_S=1800
make_data
mkdir -p "$nvme"
common=(--model "$model" --data "$work/data" --nvme "$nvme" --seq 128 --batch 1 --vram-budget 1600M)
run plan "${common[@]}" --ram-budget 1M
ram=$(least_flag --ram-budget)
# step_of EVERY: the median step of a run that commits so often.
step_of() {
    rm -rf "$work/run"
    must train "${common[@]}" --ram-budget "$ram" --out "$work/run" --steps "$steps" --checkpoint-every "$1"
    rm -f "$nvme"/*.state
    grep '"step_s"' "$work/run/metrics.jsonl" | tail -n +3 >"$work/lines"
    values "$work/lines" step_s | median
}
echo "$model with --ram-budget $ram: state on the drive"
for _ in $(seq "$pairs"); do
    none=$(step_of 0)
    each=$(step_of 1)
    awk -v a="$none" -v b="$each" 'BEGIN { printf "no commits %.3f s, one a step %.3f s: %.3f\n", a, b, b / a }' |
        tee -a "$work/pairs"
done
awk '{ print $NF }' "$work/pairs" | median | sed 's/^/median ratio /'
finish
