#!/usr/bin/env python3
"""goldens.py > tests/io/pretoken_goldens.h: how the published patterns cut some awkward strings.

The patterns are tiktoken's own and Llama 3's, run by Python's `regex` package, which shares no code with
what is tested.
"""
import random
import sys

import regex
from compare_tokenizers import PARTS
from tiktoken_ext import openai_public

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
STRINGS = [
    "Hello world, it's they'RE I'LL x'D 'S don'\u017f",
    "a  b   c\n\n  d \r\n\t e  ",
    "line\n \n  \nnext!\n\n/path//\n/x",
    "1234567 12 3.14159 \u0663\u0664 \u00bd\u2167",
    "HTTPServer aBcDE \u01c5x P\u0159\u00edli\u0161 \u017dLU\u0164OU\u010cK\u00dd k\u016f\u0148",
    "e\u0301A\u0301bc \u0301x !\u0308y \u0e01\u0e33 \u0915\u094d\u0937",
    "\u65e5\u672c\u3002!? \u00aaABC \u02b0DEf",
    "a\u180eb \u00a0c\u3000d\u0085e",
    "tail of spaces and lines \n  ",
]


def literal(data):
    """A C string of octal escapes, which nothing that follows can lengthen."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in data) + '"'


def main():
    openai_public.load_tiktoken_bpe = lambda *_, **__: {}  # the vocabularies are not needed
    patterns = {
        "GPT2": openai_public.r50k_pat_str,
        "CL100K": openai_public.cl100k_base()["pat_str"],
        "LLAMA3": LLAMA3,
        "O200K": openai_public.o200k_base()["pat_str"],
    }
    rng = random.Random(6)
    strings = STRINGS + ["".join(rng.choice(PARTS) for _ in range(14)) for _ in range(50)]
    print("/* Made by tests/reference/goldens.py (`make reference`): kind, text, bytes of each piece. */")
    print("/* clang-format off */")
    for kind, pattern in patterns.items():
        for string in strings:
            pieces = regex.findall(f"(?:{pattern})", string)
            assert "".join(pieces) == string
            print(f"{{PRETOKEN_{kind},\n {literal(string.encode())},\n {literal(bytes(len(p.encode()) for p in pieces))}}},")
    print("/* clang-format on */")


sys.exit(main())
