#!/usr/bin/env bash
# Overlap: how much longer a step takes with all state on the drive (--resident none) than with all
# of it in RAM, at 2,048 tokens a step. At most 1.25 times is asked for, where compute binds.
# Both kinds of run alternate, so that a machine that changes its speed meanwhile changes both; the
# medians are over all steps but each run's first two (pages are touched, caches fill). Beside each
# median stands the spread (half of the steps lie in it).
#   MODEL (gpt-mini)  ROUNDS (3)  STEPS (6)  BATCH (8)  SEQ (256)  NVME (a folder on the drive)
. tests/shared/system.sh
model=${MODEL:-gpt-mini} rounds=${ROUNDS:-3} steps=${STEPS:-6} batch=${BATCH:-8} seq=${SEQ:-256}
nvme=${NVME:-$work}/nvme
make_data 400

one() { # one NAME ARGUMENT...
    must train --model "$model" --data "$work/data" --nvme "$nvme" --out "$work/$1" --seq "$seq" \
        --batch "$batch" --steps "$steps" --checkpoint-every 1000000 "${@:2}"
    values "$work/$1/metrics.jsonl" step_s | tail -n +3 | head -n $((steps - 2)) >>"$work/$1.step_s"
    cp "$work/$1/metrics.jsonl" "$work/$1.jsonl"
    rm -rf "${work:?}/$1" "$nvme"
}
for ((round = 0; round < rounds; round++)); do
    one ram
    one drive --resident none
done
for kind in ram drive; do
    printf '%-6s %.3f s a step (%.3f to %.3f), %d steps, bound %s by %s, %s\n' $kind \
        "$(quartile "$work/$kind.step_s" 0.5)" "$(quartile "$work/$kind.step_s" 0.25)" \
        "$(quartile "$work/$kind.step_s" 0.75)" "$(wc -l <"$work/$kind.step_s")" \
        "$(last_value "$work/$kind.jsonl" bound_s)" "$(last_value "$work/$kind.jsonl" bound_lane)" \
        "ssd $(last_value "$work/$kind.jsonl" ssd_read_bytes) + $(last_value "$work/$kind.jsonl" ssd_write_bytes) bytes a step"
done
ratio=$(awk -v a="$(quartile "$work/drive.step_s" 0.5)" -v b="$(quartile "$work/ram.step_s" 0.5)" \
    'BEGIN { printf "%.3f", a / b }')
check "overlap: $model, $((batch * seq)) tokens: all state on the drive takes $ratio of the time in RAM (at most 1.25)" \
    awk -v r="$ratio" 'BEGIN { exit !(r <= 1.25) }'
finish
