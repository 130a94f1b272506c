#!/usr/bin/env bash
# Prediction: what `spillway plan` says of a step, from a profile that `spillway bench` measured just
# before, against the median of the steps that are then trained, over two models, RAM budgets from
# everything resident to the smallest that works, 1 and 4 micro-batches, and the drive throttled to two
# lower speeds where the block-I/O cgroup allows it.
#
# What the drive and memory give changes from minute to minute on a shared machine, so where a step
# uses the drive its figures and the optimizer's are measured again just before, and steps of a
# small model are counted over several seconds. Only the larger model is throttled: the block
# layer lets a group catch up on what it did not use in its last slices of a tenth of a second,
# which a step of two or three slices lives on, while bench measures what is sustained.
#
# A line per configuration: measured step (its quartiles), predicted and how far off, the lower bound
# and how far the measured step is above it, the lane that binds, the replay of the measured durations
# through the scheduler, and how far off the predicted peaks of RAM and VRAM are. At the end the
# medians and worst cases against what is asked for: predicted within 10 % at the median and 20 % at
# worst, peaks within 2 %, replay within 2 %, bound at most 1.25 where a lane other than compute binds.
#   STEPS (12; three times as many of gpt-mini)  NVME (a folder on the drive)  MODELS ("gpt-mini gpt2-124m")  SLOW ("600 250", MB/s)
. tests/shared/system.sh
steps=${STEPS:-12} nvme=${NVME:-$work}/nvme models=${MODELS:-gpt-mini gpt2-124m} slow=${SLOW:-600 250}
export XDG_CONFIG_HOME=$work/config # no profile but those made here
make_data 400
mkdir -p "$nvme"
throttle= # MB/s of the runs that follow; empty: as fast as the drive is

# limit_group MB: a block-I/O cgroup, version 2 or 1, in which the drive of $nvme is no faster.
limit_group() {
    local device bytes=$(($1 * 1000000)) name=spillway-predict-$$
    device=$(lsblk -nro MAJ:MIN "$(df --output=source "$nvme" | tail -n 1)" 2>/dev/null | head -n 1)
    [ -n "$device" ] && is_root || return 1
    if [ -w /sys/fs/cgroup/cgroup.procs ] && grep -qw io /sys/fs/cgroup/cgroup.subtree_control; then
        group=/sys/fs/cgroup/$name
        mkdir -p "$group" && echo "$device rbps=$bytes wbps=$bytes" >"$group/io.max"
    elif [ -w /sys/fs/cgroup/blkio/cgroup.procs ]; then
        group=/sys/fs/cgroup/blkio/$name
        mkdir -p "$group" && echo "$device $bytes" >"$group/blkio.throttle.read_bps_device" &&
            echo "$device $bytes" >"$group/blkio.throttle.write_bps_device"
    else
        return 1
    fi
}
# here ARGUMENT...: as run, inside the group when the drive is throttled.
here() { if [ -n "$throttle" ]; then run_in_group "$@"; else run "$@"; fi; }
here_must() {
    here "$@"
    [ $status -eq 0 ] && return
    not_ok "spillway $*" "exit status $status"
    finish
}

percent() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f", 100 * (a / b - 1) }'; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }'; }

# measure MODEL RAM VRAM BATCH ACCUM: plans, trains, prints the line.
measure() {
    local model=$1 ram=$2 vram=$3 batch=$4 accum=$5 profile=$work/machine${throttle}.json
    local model_steps=$steps
    [ "$model" != gpt-mini ] || model_steps=$((3 * steps))
    local common=(--model "$model" --data "$work/data" --ram-budget "$ram" --nvme "$nvme" --seq 128
        --batch "$batch" --accum "$accum" --machine "$profile")
    [ "$vram" = 0 ] || common+=(--vram-budget "$vram")
    [ "$ram" = "$resident" ] || refresh
    here_must plan "${common[@]}" --json
    cp "$work/out" "$work/plan.json"
    rm -rf "$work/run"
    here_must train "${common[@]}" --out "$work/run" --steps "$model_steps" --replay --checkpoint-every 0
    rm -f "$nvme"/*.state
    values "$work/run/metrics.jsonl" step_s | tail -n +3 >"$work/step_s"
    paste <(values "$work/run/metrics.jsonl" replayed_s) <(values "$work/run/metrics.jsonl" plan_s) |
        tail -n +3 | awk '{ print $1 / $2 }' >"$work/replay"
    local measured predicted bound lane replay peak
    measured=$(quartile "$work/step_s" 0.5) predicted=$(values "$work/plan.json" predicted_s | head -n 1)
    bound=$(last_value "$work/plan.json" bound_s) lane=$(last_value "$work/plan.json" bound_lane)
    replay=$(quartile "$work/replay" 0.5)
    peak=$(last_value "$work/run/metrics.jsonl" ram_peak_bytes)
    printf '%-10s %5s %5s %2d x 128 x %d %5s | %7.4f (%.4f to %.4f) %8.4f %6s%% | %7.4f %5s %-9s | %6s%% | %5s%% %5s%%\n' \
        "$model" "$ram" "$vram" "$batch" "$accum" "${throttle:--}" "$measured" \
        "$(quartile "$work/step_s" 0.25)" "$(quartile "$work/step_s" 0.75)" "$predicted" \
        "$(percent "$predicted" "$measured")" "$bound" "$(ratio "$measured" "$bound")" "$lane" \
        "$(percent "$replay" 1)" "$(percent "$(last_value "$work/plan.json" ram_peak_bytes)" "$peak")" \
        "$(percent "$(last_value "$work/plan.json" vram_bytes)" "$(last_value "$work/run/metrics.jsonl" vram_peak_bytes | sed 's/^0$/1/')" | sed "s/^-100.0$/0.0/")" |
        tee -a "$work/table"
}

# smallest MODEL VRAM BATCH ACCUM: the least RAM budget that works, and 2 MiB for what the program itself
# takes, which differs from one start to the next with what of its libraries is in the page cache.
smallest() {
    local common=(--model "$1" --data "$work/data" --nvme "$nvme" --seq 128 --batch "$3" --accum "$4")
    [ "$2" = 0 ] || common+=(--vram-budget "$2")
    run plan "${common[@]}" --ram-budget 1M
    echo $(($(bytes_of "$(least_flag --ram-budget)") / 1048576 + 2))M
}

profile() {
    here_must bench all --nvme "$nvme" --out "$work/machine${throttle}.json" ${throttle:+--size 256M}
    [ -n "$throttle" ] || sed -n '1,200p' "$work/out"
}

refresh() {
    local part
    for part in optimizer ssd; do
        here_must bench $part --nvme "$nvme" --out "$work/machine${throttle}.json" ${throttle:+--size 256M}
    done
}

echo "profile of this machine, as measured now"
profile
printf '\n%-10s %5s %5s %-11s %5s | %-25s %9s %7s | %-23s | %-6s | %s\n' model RAM VRAM "batch" "MB/s" \
    "measured s (quartiles)" predicted off "bound s, over it, lane" replay "RAM, VRAM off"
for model in $models; do
    case $model in
    gpt-mini) resident=2G middle=200M vram=100M batch=2 ;;
    *) resident=6G middle=900M vram=500M batch=2 ;;
    esac
    for accum in 1 4; do
        measure "$model" $resident 0 $batch $accum
        measure "$model" $resident $vram $batch $accum
        measure "$model" $middle $vram $batch $accum
        measure "$model" "$(smallest "$model" $vram $batch $accum)" $vram $batch $accum
    done
    measure "$model" $middle $vram 1 1
done
for speed in $slow; do
    limit_group "$speed" || { skip "the drive at $speed MB/s" "no block-I/O cgroup" && continue; }
    throttle=$speed
    at_exit+=("rmdir '$group' 2>/dev/null")
    profile
    for model in ${models//gpt-mini/}; do
        measure "$model" 900M 500M 2 1
        measure "$model" 900M 500M 2 4
        measure "$model" 900M 500M 1 1
    done
done

echo
awk -F'|' '
    function absolute(x) { return x < 0 ? -x : x }
    function sorted(values, n,   i, j, t) {
        for (i = 2; i <= n; i++) for (j = i; j > 1 && values[j - 1] > values[j]; j--) {
            t = values[j]; values[j] = values[j - 1]; values[j - 1] = t }
    }
    {
        n++
        split($2, a, " "); off[n] = absolute(a[length(a)] + 0)
        split($3, b, " ")
        if (b[3] != "compute" && b[2] > over) over = b[2]
        if (b[3] != "compute") bound_count++
        r = absolute($4 + 0); if (r > replay) replay = r
        split($5, p, " ")
        if (absolute(p[1] + 0) > peak) peak = absolute(p[1] + 0)
        if (absolute(p[2] + 0) > peak) peak = absolute(p[2] + 0)
    }
    END {
        sorted(off, n)
        printf "%d configurations: predicted within %.1f %% at the median (10 asked), %.1f %% at worst (20 asked)\n",
            n, off[int((n + 1) / 2)], off[n]
        printf "peaks within %.1f %% (2 asked); replay within %.1f %% (2 asked)\n", peak, replay
        printf "measured over bound at most %.3f in the %d where a lane other than compute binds (1.25 asked)\n",
            over, bound_count
    }' "$work/table"
finish
