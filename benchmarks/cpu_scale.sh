#!/usr/bin/env bash
# What a step of the CPU device costs beside what its FLOPs say: models of more and more parameters on the same
# tokens, one model on the same tokens in longer and longer sequences, and the same model with all state on the
# drive beside all in RAM. All take turns; medians of the steps' seconds but each run's first.
#   asked: tokens/s times parameters within 15 percent over the models; a step's seconds within 20 percent of its
#   FLOPs from T 256 to 4,096; with state on the drive and 2,048 tokens at most 1.10 times the step in RAM
# FLOPs: 6 a parameter of the products and token, and of attention half of T x T, three passes. RATE columns are
# beside the first line of each table. On a machine that others use CPU=1 takes processor seconds instead.
#   ROUNDS (2)  STEPS (3)  MODELS ("gpt-mini gpt2-124m gpt2-355m")  LENGTHS ("256 512 1024 2048 4096")
#   TOKENS (4096, of the lengths)  PRECISION (bf16)  NVME (a folder on the drive; the work folder)
. tests/shared/system.sh
. benchmarks/shared/gpt2.sh
rounds=${ROUNDS:-2} steps=${STEPS:-3} tokens=${TOKENS:-4096} precision=${PRECISION:-bf16}
models=${MODELS:-gpt-mini gpt2-124m gpt2-355m} lengths=${LENGTHS:-256 512 1024 2048 4096}
LIMIT_S=3600
seq 1 200000 >"$work/text"
must prep "$work/text" --out "$work/data" --vocab-size 512
gpt2_small "$work/long.json" 4096

# step NAME ARGUMENT...: notes the seconds of its steps but the first.
step() {
    local before after
    rm -rf "$work/run"
    before=$(children_ticks)
    must train --data "$work/data" --out "$work/run" --precision "$precision" --steps $((steps + 1)) "${@:2}"
    after=$(children_ticks)
    if [ -n "${CPU:-}" ]; then
        awk -v t=$((after - before)) -v n=$((steps + 1)) 'BEGIN { print t / 100 / n }' >>"$work/seconds.$1"
    else
        sed -n 's/.*"step_s": *\([0-9.e+-]*\).*/\1/p' "$work/run/metrics.jsonl" | tail -n "$steps" >>"$work/seconds.$1"
    fi
}
for _ in $(seq "$rounds"); do
    for model in $models; do step "model.$model" --model "$model" --batch 4 --seq 256; done
    for t in $lengths; do step "length.$t" --model "$work/long.json" --batch $((tokens / t)) --seq "$t"; done
    step state.ram --model gpt2-124m --batch 2 --seq 1024
    step state.drive --model gpt2-124m --batch 2 --seq 1024 --resident none --nvme "${NVME:-$work/nvme}"
done

seconds() { median <"$work/seconds.$1"; }
printf '%-14s %10s %14s %8s\n' "4 x 256" seconds GFLOP/s rate
for model in $models; do
    awk -v m="$model" -v s="$(seconds "model.$model")" -v f="$(gpt2_flops "$model" 256)" 'BEGIN { print m, s, 1024 * f / s / 1e9 }'
done | awk 'NR == 1 { first = $3 } { printf "%-14s %10.3f %14.1f %8.2f\n", $1, $2, $3, $3 / first }'
printf '%-14s %10s %14s %8s\n' "$tokens tokens" seconds GFLOP/s rate
for t in $lengths; do
    awk -v m="T $t" -v s="$(seconds "length.$t")" -v f="$(gpt2_flops long "$t")" -v n="$tokens" 'BEGIN { printf "%s\t%s\t%s\n", m, s, n * f / s / 1e9 }'
done | awk -F'\t' 'NR == 1 { first = $3 } { printf "%-14s %10.3f %14.1f %8.2f\n", $1, $2, $3, $3 / first }'
awk -v ram="$(seconds state.ram)" -v drive="$(seconds state.drive)" 'BEGIN {
    printf "2 x 1024, gpt2-124m: %.3f s with all in RAM, %.3f s with all state on the drive: %.2f times\n", ram, drive, drive / ram }'
finish
