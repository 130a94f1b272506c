#!/usr/bin/env bash
# Bigger than RAM: models whose state is larger than this machine's memory train for some steps in a
# memory cgroup of exactly their RAM and VRAM budgets, without swap.
#   1.8 B parameters (26 layers, 2304 channels): 21 GB of state with FP32 moments, 42 GB in two slots
#   3 B parameters (32 layers, 2784 channels): 37 GB in one slot
# The bound is that of the machine as bench has measured it just before.
#
# A line per model: steps, measured step (median without the first two), predicted, bound, how far the
# step is above it, the lane that binds, bytes read and written in a step, the cgroup's peak and limit.
#   STEPS (5)  NVME (a folder on the drive)  MODELS ("1.8B 3B")  RAM (4G)  VRAM (2G)
. tests/shared/system.sh
steps=${STEPS:-5} nvme=${NVME:-$work}/nvme ram=${RAM:-4G} vram=${VRAM:-2G}
LIMIT_S=3600
export XDG_CONFIG_HOME=$work/config # no profile but the one made here
make_data
mkdir -p "$nvme"
echo "measuring this machine"
must bench all --nvme "$nvme"
limit=$(($(bytes_of "$ram") + $(bytes_of "$vram")))

# model NAME LAYERS CHANNELS HEADS
model() {
    cat >"$work/$1.json" <<END
{"model_type": "gpt2", "n_layer": $2, "n_embd": $3, "n_head": $4, "n_positions": 1024, "vocab_size": 50257,
 "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "tie_word_embeddings": true}
END
}
# train_one NAME GB ARGUMENT...: GB is what its slots take of the drive.
train_one() {
    local name=$1 need=$2 free metrics=$work/run-$1/metrics.jsonl
    shift 2
    free=$(df --output=avail -B 1000000000 "$nvme" | tail -n 1)
    if [ "$free" -lt "$((need + 2))" ]; then
        skip "$name" "its state takes $need GB of the drive, which has $free GB free"
        return
    fi
    make_group "$limit" || { skip "$name" "no memory cgroup may be made here" && return; }
    run_in_group train --model "$work/$name.json" --data "$work/data" --out "$work/run-$name" --nvme "$nvme" \
        --ram-budget "$ram" --vram-budget "$vram" --seq 128 --batch 1 --steps "$steps" --checkpoint-every 0 "$@"
    check "$name trains for $steps steps ($(tail -n 1 "$work/err"))" test "$status" -eq 0
    if [ "$status" -eq 0 ]; then
        same "$name: no kill for want of memory" "$(group_oom_kills)" 0
        check "$name: the cgroup's peak is within the budgets" test "$(group_peak_bytes)" -le "$limit"
        tail -n +3 "$metrics" | grep '"step_s"' >"$work/lines"
        for field in step_s predicted_s bound_s; do
            declare "$field=$(values "$work/lines" $field | median)"
        done
        awk -v n="$name" -v s="$step_s" -v p="$predicted_s" -v b="$bound_s" -v l="$(last_value "$work/lines" bound_lane)" \
            -v r="$(last_value "$work/lines" ssd_read_bytes)" -v w="$(last_value "$work/lines" ssd_write_bytes)" \
            -v peak="$(group_peak_bytes)" -v limit="$limit" 'BEGIN {
            printf "%s: %.2f s a step, predicted %.2f, bound %.2f (%.2f times it), %s binds; %.1f GB read, %.1f GB written a step; cgroup peak %.2f of %.2f GiB\n",
                n, s, p, b, s / b, l, r / 1e9, w / 1e9, peak / 2^30, limit / 2^30 }'
        check "$name: within 1.3 times the bound" awk -v s="$step_s" -v b="$bound_s" 'BEGIN { exit !(s <= 1.3 * b) }'
    fi
    rm -f "$nvme"/*.state
    rmdir "$group"
}
for name in ${MODELS:-1.8B 3B}; do
    case $name in
    1.8B)
        model 1.8B 26 2304 24
        train_one 1.8B 43
        ;;
    3B)
        model 3B 32 2784 29
        train_one 3B 38 --nvme-slots 1
        ;;
    esac
done
finish
