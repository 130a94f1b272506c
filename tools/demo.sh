#!/usr/bin/env bash
# demo.sh SPILLWAY DIR: what `make run` shows. Takes the Czech prose of the package fortunes-cs, makes
# tokens of it, trains a GPT of about 6 M parameters under budgets so small that VRAM arena, RAM tier
# and NVMe tier are all in use, and lets it write a paragraph. DIR is emptied first; what is left in
# it is a run like any other (resume, sample, eval, export, check).
set -euo pipefail
spillway=$1
dir=$2
fortunes=/usr/share/games/fortunes/cs

step() { printf '\n\033[1m%s\033[0m\n' "$*" | if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9;]*m//g'; fi; }
run() {
    echo "\$ $*"
    "$@"
}

# One text per fortune, with a blank line between. The package wraps prose at some 75 columns and
# indents paragraphs by a tab: paragraphs come back as one line; lines that are short (verse, lists)
# stay as they are. The files beside these are indexes (.dat) and links to the same text (.u8).
prose() {
    cat $(find "$fortunes" -type f ! -name '*.*' | LC_ALL=C sort) | tr -d '\b' | LC_ALL=C awk '
        function end_fortune() {
            if (text != "") printf "%s\n\n", text
            text = ""
            wrapped = 0
        }
        /^%/ { end_fortune(); next }
        {
            line = $0
            starts = line ~ /^[ \t]/ || line ~ /^[-*]/
            gsub(/[ \t]+/, " ", line)
            sub(/^ /, "", line)
            sub(/ $/, "", line)
            if (line == "") { wrapped = 0; next }
            text = text (text == "" ? "" : wrapped && !starts ? " " : "\n") line
            wrapped = length(line) > 55
        }
        END { end_fortune() }'
}

[ -d "$fortunes" ] || { echo "demo.sh: $fortunes is missing; install the package fortunes-cs" >&2; exit 1; }
rm -rf "$dir"
mkdir -p "$dir"

step "1. Text: the Czech prose of the package fortunes-cs"
prose >"$dir/fortunes.txt"
echo "$(grep -c '^$' "$dir/fortunes.txt") texts, $(wc -c <"$dir/fortunes.txt") bytes in $dir/fortunes.txt"

step "2. Tokens: a byte-level BPE of 4,096 entries, and token shards"
run "$spillway" prep "$dir/fortunes.txt" --out "$dir/data" --vocab-size 4096

step "3. Training: about 6 M parameters (70 MB of state) under budgets that force all three tiers"
cat >"$dir/model.json" <<'J'
{
  "model_type": "gpt2",
  "n_layer": 6,
  "n_embd": 256,
  "n_head": 4,
  "n_positions": 256,
  "vocab_size": 4096
}
J
run "$spillway" train --model "$dir/model.json" --data "$dir/data" --out "$dir/run" \
    --ram-budget 104M --vram-budget 48M --nvme "$dir/nvme" \
    --seq 128 --batch 8 --steps 900 --lr 2e-3 --min-lr 2e-4 --warmup 40 \
    --checkpoint-every 300 --max-time 200s

step "4. A paragraph by the model"
run "$spillway" sample --run "$dir/run" --prompt "Člověk" --tokens 120 --temperature 0.5 --seed 1

cat <<TXT

The run is in $dir/run. Some things to try with it:
  $spillway sample --run $dir/run --prompt "Láska"
  $spillway eval --run $dir/run --data $dir/data
  $spillway export --run $dir/run --out $dir/huggingface
  $spillway check $dir/run
TXT
