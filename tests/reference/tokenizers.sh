#!/usr/bin/env bash
# tokenizers.sh SPILLWAY DUMP_TOKENS DIR: makes the tokenizer tests' goldens and the table of characters
# anew, by packages from PyPI in a virtual environment under DIR, and says whether they have changed. With
#   VOCABS  a folder with GPT-2's encoder.json and vocab.bpe, cl100k_base.tiktoken and o200k_base.tiktoken
#   TEXTS   files of text
#   FUZZ    fuzzed strings (100000)
# also holds our token ids and the merges that we learn against tiktoken's and Hugging Face's, and fails where one differs.
set -euo pipefail
export SPILLWAY=$(realpath "$1") PYTHONDONTWRITEBYTECODE=1
dump=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$3"
python=$3/venv/bin/python
if [ ! -x "$python" ] || ! "$python" -c 'import numpy, regex, tiktoken, tokenizers' 2>/dev/null; then
    python3 -m venv "$3/venv"
    "$3/venv/bin/pip" install -q tiktoken==0.14.0 tokenizers==0.23.3 regex numpy
fi
# renew SCRIPT FILE: FILE is what SCRIPT prints.
renew() {
    "$python" "$here/$1" >"$3.new"
    cmp -s "$3.new" "$root/$2" && echo "$2 is as it was" && rm "$3.new" && return
    mv "$3.new" "$root/$2"
    echo "$2 has CHANGED"
}
renew unicode_ranges.py io/unicode_ranges.h "$3/golden"
renew goldens.py tests/io/pretoken_goldens.h "$3/golden"
if [ -n "${VOCABS:-}" ] && [ -n "${TEXTS:-}" ]; then
    mkdir -p "$3/ids"
    "$python" "$here/compare_tokenizers.py" "$dump" "$VOCABS" "$3/ids" $TEXTS
    "$python" "$here/compare_training.py" "$3/ids" $TEXTS
else
    echo "Ids are not compared: VOCABS and TEXTS say with which vocabularies and on which texts"
fi
