#!/usr/bin/env bash
# Property: what was trained comes out whole. prep, train, export, and train from what was exported:
# the exported weights are the committed ones bit for bit (their hash says so, and a second export
# of a run that starts from the first is the same file); sample and eval give the same from the run
# and from the folder.
. tests/shared/system.sh
make_data
common=(--data "$work/data" --seq 32 --batch 2)
must train --model gpt-tiny "${common[@]}" --out "$work/run" --nvme "$work/nvme" --steps 8
hash=$(last_value "$work/run/metrics.jsonl" weights_hash)
must export --run "$work/run" --out "$work/hf"
for file in model.safetensors config.json tokenizer.json vocab.json merges.txt; do
    check "export writes $file" test -s "$work/hf/$file"
done
for name in wte.weight wpe.weight h.0.ln_1.weight h.0.attn.c_attn.weight h.3.mlp.c_proj.bias ln_f.bias; do
    check "GPT-2's name $name is there" grep -aq "\"[a-z.]*$name\"" "$work/hf/model.safetensors"
done
check "the configuration says gpt2" grep -q '"model_type": *"gpt2"' "$work/hf/config.json"

must train --model "$work/hf" "${common[@]}" --out "$work/run2" --nvme "$work/nvme2" --steps 0
same "a run from the folder starts at the same weights" \
    "$(last_value "$work/run2/metrics.jsonl" weights_hash)" "$hash"
must export --run "$work/run2" --out "$work/hf2"
check "exported again it is the same file" cmp "$work/hf/model.safetensors" "$work/hf2/model.safetensors"
must train --model "$work/hf" "${common[@]}" --out "$work/run3" --nvme "$work/nvme3" --steps 3 \
    --resident none --vram-budget 64M
check "training goes on from it" test "$(values "$work/run3/metrics.jsonl" loss | wc -l)" -eq 3
first=$(values "$work/run/metrics.jsonl" loss | head -n 1)
again=$(values "$work/run3/metrics.jsonl" loss | head -n 1)
check "and does not begin at the beginning ($first, then $again)" \
    awk -v a="$first" -v b="$again" 'BEGIN { exit !(b < a) }'

sampled() {
    must sample "$@" --prompt "voda teče" --tokens 20 --temperature 0.8 --seed 3
    cat "$work/out"
}
same "sample is the same from the run and from the folder" \
    "$(sampled --run "$work/run")" "$(sampled --model "$work/hf")"
evaluated() {
    must eval "$@" --data "$work/data"
    grep -oE '[0-9]+\.[0-9]+' "$work/out" | head -n 1
}
same "eval is the same from the run and from the folder" \
    "$(evaluated --run "$work/run")" "$(evaluated --model "$work/hf")"
run check "$work/run"
check "every checksum of the run holds" test $status -eq 0
finish
