#!/usr/bin/env bash
# What checksums cost: a run that moves all its state through the drive at every step, as it is against
# the same run without them, taking turns. Without: a library in front of xxHash returns 0 for blocks of
# the size of a part of a chunk (offload/layout.h), so that every sum agrees and nothing is computed.
# Prints the median step of each run, the ratio of each pair, and the median ratio with its spread; at
# most 1.01 is asked. Needs cc.
#   PAIRS (5)  STEPS (8)  NVME (a folder on the drive)  MODEL (gpt2-124m)
. tests/shared/system.sh
pairs=${PAIRS:-5} steps=${STEPS:-8} nvme=${NVME:-$work}/nvme model=${MODEL:-gpt2-124m}
LIMIT_S=1800
mkdir -p "$nvme"
cat >"$work/free.c" <<'C'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stddef.h>
uint64_t XXH3_64bits_withSeed_dispatch(const void *data, size_t bytes, uint64_t seed)
{
    static uint64_t (*real)(const void *, size_t, uint64_t);
    if (seed == 0 && bytes >= 16384)
        return 0;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "XXH3_64bits_withSeed_dispatch");
    return real(data, bytes, seed);
}
C
"${CC:-cc}" -O2 -shared -fPIC -o "$work/free.so" "$work/free.c" || { not_ok "the library in front" "cc failed" && finish; }
# Data whose own sums are made the same way, for each kind of run.
make_data && mv "$work/data" "$work/data-summed"
LD_PRELOAD=$work/free.so make_data && mv "$work/data" "$work/data-free"
common=(--model "$model" --nvme "$nvme" --seq 128 --batch 1 --vram-budget 700M)
run plan "${common[@]}" --data "$work/data-summed" --ram-budget 1M
ram=$(least_flag --ram-budget)
# step_of KIND: the median step of a run, summed or free.
step_of() {
    local preload=
    [ "$1" = summed ] || preload=$work/free.so
    rm -rf "$work/run"
    LD_PRELOAD=$preload must train "${common[@]}" --data "$work/data-$1" --ram-budget "$ram" --out "$work/run" \
        --steps "$steps" --checkpoint-every 0
    rm -f "$nvme"/*.state
    grep '"step_s"' "$work/run/metrics.jsonl" | tail -n +3 >"$work/lines"
    values "$work/lines" step_s | median
}
echo "$model with --ram-budget $ram: state on the drive"
for i in $(seq "$pairs"); do
    # Who goes first changes, so that what warms up or slows down favours neither.
    if [ $((i % 2)) -eq 0 ]; then free=$(step_of free) && summed=$(step_of summed)
    else summed=$(step_of summed) && free=$(step_of free); fi
    awk -v a="$free" -v b="$summed" 'BEGIN { printf "without %.3f s, with %.3f s: %.3f\n", a, b, b / a }' |
        tee -a "$work/pairs"
done
awk '{ print $NF }' "$work/pairs" >"$work/ratios"
echo "median ratio $(median <"$work/ratios") ($(quartile "$work/ratios" 0.25) to $(quartile "$work/ratios" 0.75))"
finish
