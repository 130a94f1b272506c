#!/usr/bin/env bash
# Tokenizers side by side: Hugging Face tokenizers and tiktoken from PyPI, one thread each, and ours with one
# and with two, taking turns on the same text; medians of MB/s and of the ratios in each round.
#   asked: learning a vocabulary of 32768 at 6 times Hugging Face; encoding at 10 times Hugging Face and at
#   2.5 times tiktoken for each thread, 1.7 times that with two; a million equal letters, letters at random
#   and Chinese characters each in under a second
# The text is the Czech prose of the package fortunes-cs, 1.7 MB, unless TEXTS names others; too little of it
# favours whoever starts faster. TOKENIZERS adds tokenizers that bpe_load reads to the one that is learned.
#   ROUNDS (3)  TEXTS (files)  TOKENIZERS (paths)  PYTHON (one that has both packages, else a venv is made)
. tests/shared/system.sh
rounds=${ROUNDS:-3}
build=$(dirname "$spillway")
timer=$build/tests/reference/time_tokens
fortunes=/usr/share/games/fortunes/cs
[ -x "$timer" ] || { skip "tokenizers" "$timer is not built: make bench builds it" && finish; }
python=${PYTHON:-$build/reference/venv/bin/python}
if ! "$python" -c 'import tiktoken, tokenizers' 2>/dev/null; then
    python=$build/reference/venv/bin/python
    mkdir -p "$build/reference"
    python3 -m venv "$build/reference/venv" >"$work/out" 2>"$work/err" &&
        "$build/reference/venv/bin/pip" install -q tiktoken==0.14.0 tokenizers==0.23.3 >"$work/out" 2>"$work/err" ||
        { skip "tokenizers" "tiktoken and tokenizers cannot be installed from PyPI" && finish; }
fi
if [ -n "${TEXTS:-}" ]; then
    cat $TEXTS >"$work/text"
elif [ -d "$fortunes" ]; then
    cat $(find "$fortunes" -type f ! -name '*.*' | sort) >"$work/text"
else
    skip "tokenizers" "the package fortunes-cs is not installed and TEXTS names no files" && finish
fi
bytes=$(wc -c <"$work/text")
echo "text: ${TEXTS:-$fortunes}, $bytes bytes"

theirs() { "$python" benchmarks/tokenizers.py "$@" | cut -d ' ' -f 1; }
ours() { "$timer" "$@" | cut -d ' ' -f 1; }
# note WHAT WHO SECONDS BASE_SECONDS: a line into the table of WHAT and WHO: rate, ratio to the base.
note() {
    awk -v b="$bytes" -v s="$3" -v o="$4" 'BEGIN { print b / 1e6 / s, o / s }' >>"$work/rates.$1.$2"
}
# show WHAT: the medians of each who.
show() {
    local file
    for file in "$work/rates.$1."*; do
        printf '%-28s %-14s %8.2f MB/s  %6.2f times %s\n' "$1" "${file##*.}" \
            "$(cut -d ' ' -f 1 "$file" | median)" "$(cut -d ' ' -f 2 "$file" | median)" "$2"
    done
}

for _ in $(seq "$rounds"); do
    base=$(theirs train "$work/text" 32768)
    note learn-32768 hugging-face "$base" "$base"
    for threads in 1 2; do
        note learn-32768 "ours-$threads" "$(ours train "$work/text" gpt2 32768 $threads)" "$base"
    done
done
show learn-32768 "Hugging Face"

must prep "$work/text" --format text --out "$work/data" --vocab-size 32768
for tokenizer in "$work/data" ${TOKENIZERS:-}; do
    name=encode-$(basename "$tokenizer" .tiktoken)
    head -c 100000 "$work/text" >"$work/some"
    must prep "$work/some" --format text --out "$work/json" --force --tokenizer "$tokenizer"
    for _ in $(seq "$rounds"); do
        base=$(theirs hugging-face "$work/text" "$work/json/tokenizer.json")
        note "$name" hugging-face "$base" "$base"
        note "$name" tiktoken "$(theirs tiktoken "$work/text" "$work/json/tokenizer.json")" "$base"
        for threads in 1 2; do
            note "$name" "ours-$threads" "$(ours encode "$work/text" "$tokenizer" $threads)" "$base"
        done
    done
    show "$name" "Hugging Face"
done

"$python" - "$work" <<'P'
import random, sys
random.seed(1)
for name, text in (("equal", "a" * 10**6), ("random", "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=10**6))),
                   ("chinese", "".join(map(chr, random.choices(range(0x4E00, 0x9FA5), k=10**6))))):
    open(f"{sys.argv[1]}/hard-{name}", "w", encoding="utf-8").write(text)
P
for tokenizer in "$work/data" ${TOKENIZERS:-}; do
    for kind in equal random chinese; do
        echo "a million letters, $kind, $(basename "$tokenizer"): $(ours encode "$work/hard-$kind" "$tokenizer" 1) s (1 s allowed)"
    done
done
finish
