#!/usr/bin/env bash
# Property: sweep --measure really trains each combination under its budgets, tells what it measured
# beside what was predicted, refuses rows that train refuses, and leaves nothing but the report.
# plan takes a machine's profile, and train records which one a run was placed with.
. tests/shared/system.sh
export XDG_CONFIG_HOME=$work/config
make_data
must sweep --model gpt-tiny --measure --data "$work/data" --nvme "$work/nvme" --out "$work/report" \
    --ram-budget 200M,1G --vram-budget 64M --batch 1,2 --seq 64 --steps 5
same "each row was measured" "$(grep -c '"measured_s"' "$work/report/results.json")" 4
same "each tells its peak" "$(grep -c '"ram_peak_bytes"' "$work/report/results.json")" 4
check "the page is there" test -s "$work/report/index.html"
same "nothing else is left" "$(ls "$work/report" | sort | tr '\n' ' ')" "index.html results.csv results.json "
same "nothing is left on the drive" "$(find "$work/nvme" -type f 2>/dev/null | wc -l)" 0
run sweep --model gpt-tiny --measure --data "$work/data" --nvme "$work/nvme" --out "$work/report" --steps 2 \
    --ram-budget 1G --batch 1 --seq 64
refused "too few steps to measure" 2 "--steps"
mkdir -p "$work/full/results.json"
run sweep --model gpt-tiny --out "$work/full" --ram-budget 200M,1G
refused "a page that cannot be written" 1 "results.json"

must plan --model gpt-tiny --ram-budget 4G --machine rtx3060-7950x3d-128 --json
same "a known machine is planned for" "$(values "$work/out" gpu | head -n 1)" "RTX 3060 12GB"
must train --model gpt-tiny --data "$work/data" --out "$work/run" --ram-budget 1G --seq 64 --batch 1 --steps 4 --replay
check "each step was replayed" test "$(grep -c '"replayed_s"' "$work/run/metrics.jsonl")" -eq 4
check "a replay is the step again" awk -v r="$(last_value "$work/run/metrics.jsonl" replayed_s)" \
    -v p="$(last_value "$work/run/metrics.jsonl" plan_s)" 'BEGIN { exit !(r > 0.5 * p && r < 1.2 * p) }'
mkdir -p "$work/config/spillway"
echo '{"spillway_profile": 1, "name": "x"' >"$work/config/spillway/machine.json"
run plan --model gpt-tiny --ram-budget 200M
refused "a broken profile of this machine" 1 "machine.json"
finish
