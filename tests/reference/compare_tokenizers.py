#!/usr/bin/env python3
"""compare_tokenizers.py DUMP_TOKENS VOCAB_DIR WORK_DIR TEXT...: our token ids beside tiktoken's and Hugging Face's.

VOCAB_DIR holds GPT-2's encoder.json and vocab.bpe, and cl100k_base.tiktoken and o200k_base.tiktoken (or
.gz). Every TEXT and FUZZ (100000) strings of awkward characters are encoded with each of the three; one id
that differs is a failure. Hugging Face reads the tokenizer.json that we write.
"""
import gzip
import json
import os
import random
import struct
import subprocess
import sys

import numpy
import tiktoken
import tiktoken_ext.openai_public as public
import tokenizers
from tiktoken.load import load_tiktoken_bpe

PART = 1 << 21  # characters that are encoded at once: Hugging Face takes 100 bytes for a token
FUZZ = int(os.environ.get("FUZZ", "100000"))
PARTS = (
    list("aZsStTrRmMdDlLvVeE07/'.,-_!?\"")
    + [" ", " ", "  ", "\n", "\n", "\r\n", "\r", "\t", "\x0b", "\x0c", "\x85", "\xa0", "\u3000", "\u2003", "\u180e"]
    + ["'s", "'S", "'ll", "'LL", "'Re", "'VE", "'d", "'\u017f", "\u017f", "\u0130", "\u212a", "\u00df"]
    + ["\u0301", "\u0308", "\u20dd", "\u010d", "\u010c", "\u01c5", "\u02b0", "\u00aa", "\u4e2d", "\u3042", "\u0663"]
    + ["\u00bd", "\u2167", "\U0001f642", "\U0001f468\u200d\U0001f469", "\u0e01\u0e33", "\u0915\u094d", "\ufeff"]
    + ["Hello", " world", "Praha", " kůň", "<|end", "http://", "1234567", "      ", "\n\n\n", "aaaaaaaa"]
)


def fuzzed(rng):
    """A string of awkward parts, of characters from anywhere, or of both."""
    out = []
    kind = rng.random()
    for _ in range(rng.randrange(1, 40)):
        if rng.random() < kind:
            out.append(rng.choice(PARTS) * (rng.randrange(1, 9) if rng.random() < 0.1 else 1))
        else:
            top = rng.choice((0x80, 0x250, 0x3000, 0x10000, 0x110000))
            character = rng.randrange(top)
            out.append("\ufffd" if 0xD800 <= character < 0xE000 else chr(character))
    return "".join(out)


def write_records(path, strings):
    with open(path, "wb") as to:
        for string in strings:
            data = string.encode()
            to.write(struct.pack("<I", len(data)) + data)


def read_records(data):
    ids = numpy.frombuffer(data, dtype="<u4")
    at = 0
    while at < len(ids):
        yield ids[at + 1 : at + 1 + ids[at]]
        at += 1 + int(ids[at])


def first_difference(ours, theirs):
    theirs = numpy.asarray(theirs, dtype="<u4")
    if len(ours) == len(theirs) and (ours == theirs).all():
        return None
    least = min(len(ours), len(theirs))
    differ = numpy.nonzero(ours[:least] != theirs[:least])[0]
    return int(differ[0]) if len(differ) else least


def gpt2_ranks(vocab_dir):
    """GPT-2's ranks are its ids in encoder.json, by bytes."""
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in shown]
    byte_of = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(others)}
    with open(os.path.join(vocab_dir, "encoder.json"), encoding="utf-8") as source:
        names = json.load(source)
    return {bytes(byte_of[c] for c in name): rank for name, rank in names.items() if name != "<|endoftext|>"}


def prepare(vocab_dir, work):
    """(name, our tokenizer, tiktoken's, the folder with our tokenizer.json)"""
    constructors = {"cl100k": public.cl100k_base, "o200k": public.o200k_base}
    yield "gpt2", vocab_dir, tiktoken.Encoding(
        "gpt2", pat_str=public.r50k_pat_str, mergeable_ranks=gpt2_ranks(vocab_dir), special_tokens={}
    )
    for name, constructor in constructors.items():
        path = os.path.join(work, name + ".tiktoken")
        source = os.path.join(vocab_dir, name + "_base.tiktoken")
        opened = open(source, "rb") if os.path.exists(source) else gzip.open(source + ".gz")
        with opened as data, open(path, "wb") as to:
            to.write(data.read())
        public.load_tiktoken_bpe = lambda *_, **__: load_tiktoken_bpe(path)  # from the file, not from its address
        made = constructor()
        yield name, path, tiktoken.Encoding(
            name, pat_str=made["pat_str"], mergeable_ranks=made["mergeable_ranks"], special_tokens={}
        )


def main():
    dump, vocab_dir, work, *texts = sys.argv[1:]
    strings = []
    for path in texts:
        whole = open(path, encoding="utf-8", errors="replace", newline="").read()
        strings += [whole[at : at + PART] for at in range(0, len(whole), PART)]
    rng = random.Random(1)
    fuzz = [fuzzed(rng) for _ in range(FUZZ)]
    records = os.path.join(work, "strings")
    write_records(records, strings + fuzz)
    text_bytes = sum(len(s.encode()) for s in strings)
    bad = 0
    for name, ours, theirs in prepare(vocab_dir, work):
        folder = os.path.join(work, name)
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(work, "note.txt"), "w", encoding="utf-8") as to:
            to.write("A note, so that there is something to prepare.\n" * 20)
        subprocess.run([os.environ["SPILLWAY"], "prep", to.name, "--tokenizer", ours, "--out", folder, "--force"],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        hugging = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        mine = list(read_records(subprocess.run([dump, ours, records], check=True, stdout=subprocess.PIPE).stdout))
        again = subprocess.run([dump, os.path.join(folder, "tokenizer.json"), records], check=True,
                               stdout=subprocess.PIPE).stdout
        assert all((a == b).all() for a, b in zip(mine, read_records(again)))
        counts = {"text": 0, "fuzz": 0, "tiktoken": 0, "hugging face": 0}
        for i, string in enumerate(strings + fuzz):
            counts["text" if i < len(strings) else "fuzz"] += len(mine[i])
            for other, ids in (("tiktoken", theirs.encode_ordinary(string)),
                               ("hugging face", hugging.encode(string, add_special_tokens=False).ids
                                if "<|endof" not in string else None)):
                at = first_difference(mine[i], ids) if ids is not None else None
                if at is not None:
                    counts[other] += 1
                    bad += 1
                    if counts[other] <= 3:
                        print(f"{name}: other ids than {other} for string {i}, from token {at}: "
                              f"{mine[i][at:at + 6]} here, {ids[at:at + 6]} there; {string[:80]!r}")
        print(f"{name}: {text_bytes / 1e6:.1f} MB of text are {counts['text']:,} tokens, {len(fuzz):,} fuzzed strings "
              f"{counts['fuzz']:,}; strings that differ: {counts['tiktoken']} from tiktoken {tiktoken.__version__}, "
              f"{counts['hugging face']} from Hugging Face tokenizers {tokenizers.__version__}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
