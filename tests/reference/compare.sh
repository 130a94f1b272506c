#!/usr/bin/env bash
# compare.sh SPILLWAY DUMP_BATCHES DIR: trains gpt2-124m for 50 steps here and in PyTorch from the same
# initial weights on the same batches, in fp32 and bf16, and prints the largest relative difference of
# the loss. Fails beyond 0.5 % (fp32) or 2 % (bf16). Ours runs with all three tiers in use.
# STEPS, BATCH, SEQ and PRECISIONS change what is compared.
set -euo pipefail
spillway=$(realpath "$1") dump=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
steps=${STEPS:-50} batch=${BATCH:-4} seq=${SEQ:-64}
mkdir -p "$3"
cd "$3"
fortunes=/usr/share/games/fortunes/cs
if [ ! -e data/dataset.json ]; then
    cat $(find "$fortunes" -type f ! -name '*.*' | LC_ALL=C sort) | sed 's/^%$//' >text.txt
    "$spillway" prep text.txt --out data --vocab-size 8192
fi
failed=0
for precision in ${PRECISIONS:-fp32 bf16}; do
    rm -rf run nvme hf
    common=(--model gpt2-124m --data data --precision "$precision" --seq "$seq" --batch "$batch"
        --lr-steps "$steps" --lr 3e-4 --min-lr 3e-5 --warmup 5 --ram-budget 900M --vram-budget 500M)
    "$spillway" train "${common[@]}" --out run --nvme nvme --steps 0 >/dev/null
    "$spillway" export --run run --out hf
    "$spillway" train --resume --out run --steps "$steps"
    "$dump" data 1 "$seq" "$batch" 1 "$steps" >batches.u32
    /usr/bin/python3 "$here/train_gpt2.py" --model hf --batches batches.u32 --batch "$batch" \
        --seq "$seq" --steps "$steps" --precision "$precision" --lr 3e-4 --min-lr 3e-5 --warmup 5 \
        --out torch.jsonl >/dev/null
    /usr/bin/python3 - "$precision" run/metrics.jsonl torch.jsonl <<'P' || failed=1
import json, sys
precision, ours_path, theirs_path = sys.argv[1:]
ours = [json.loads(l) for l in open(ours_path) if '"step"' in l]
theirs = [json.loads(l) for l in open(theirs_path)]
assert len(ours) == len(theirs) > 0, (len(ours), len(theirs))
worst = max(abs(a["loss"] - b["loss"]) / b["loss"] for a, b in zip(ours, theirs))
limit = {"fp32": 0.005, "bf16": 0.02}[precision]
print(f"{precision}: {len(ours)} steps, loss {ours[0]['loss']:.4f} -> {ours[-1]['loss']:.4f} here, "
      f"{theirs[0]['loss']:.4f} -> {theirs[-1]['loss']:.4f} in PyTorch; "
      f"largest difference {100 * worst:.4f} % (allowed {100 * limit} %)")
sys.exit(worst > limit)
P
done
rm -rf run nvme hf batches.u32
exit $failed
