#!/usr/bin/env python3
"""unicode_ranges.py > io/unicode_ranges.h: the classes of characters that pre-tokenisation patterns ask for.

They come from asking Hugging Face tokenizers' own pattern engine about every character, which is what
encoding has to agree with (Unicode 16 in tokenizers 0.23 and tiktoken 0.14).
"""
import sys

from tokenizers import Regex, pre_tokenizers

CLASSES = [  # letter in the table, pattern
    ("S", r"\s"),
    ("N", r"\p{N}"),
    ("M", r"\p{M}"),
    ("U", r"[\p{Lu}\p{Lt}]"),
    ("L", r"\p{Ll}"),
    ("B", r"[\p{Lm}\p{Lo}]"),
]
CHARACTERS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


def members(pattern):
    """The characters that match: those that are gone when matches are removed."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    found = set()
    for at in range(0, len(CHARACTERS), 4096):
        block = CHARACTERS[at : at + 4096]
        left = set()
        for piece, _ in split.pre_tokenize_str("".join(map(chr, block))):
            left.update(map(ord, piece))
        found.update(c for c in block if c not in left)
    return found


def ranges(of):
    """(first, last, class, second class): a range, or capitals and small letters taking turns."""
    at = 0
    while at < 0x110000:
        name = of.get(at)
        last = at
        while name and of.get(last + 1) == name:
            last += 1
        if name in ("U", "L") and last == at:
            other = "L" if name == "U" else "U"
            while of.get(last + 1) == (other if (last + 1 - at) % 2 else name):
                last += 1
            if last > at and (last + 1 - at) % 2:
                last -= 1
        if name:
            yield at, last, name, of[last] if last > at else name
        at = last + 1


def main():
    of = {}
    for name, pattern in CLASSES:
        for character in members(pattern):
            assert character not in of
            of[character] = name
    print("/* Made by tests/reference/unicode_ranges.py (`make reference`) for io/unicode.c. */")
    print("/* clang-format off */")
    line = ""
    for first, last, name, second in ranges(of):
        item = f"{{0x{first:x},0x{last:x},{name},{second}}},"
        if len(line) + len(item) > 118:
            print(line)
            line = ""
        line += item
    print(line)
    print("/* clang-format on */")


sys.exit(main())
