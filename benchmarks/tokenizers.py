#!/usr/bin/env python3
"""tokenizers.py train|hugging-face|tiktoken TEXT ...: seconds that the others take, for benchmarks/tokenizers.sh.

train TEXT VOCAB_SIZE; hugging-face TEXT TOKENIZER.json; tiktoken TEXT TOKENIZER.json. One thread; reading the
text and the tokenizer is not counted. Prints seconds and the number of tokens.
"""
import json
import os
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.pop(0)  # this file's own name is that of a package
PART = 1 << 18  # characters that are encoded at once


def parts(text):
    return [text[at : at + PART] for at in range(0, len(text), PART)]


def train(text, vocab_size):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=int(vocab_size), min_frequency=2, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    start = time.perf_counter()
    tokenizer.train_from_iterator(parts(text), trainer)
    return time.perf_counter() - start, tokenizer.get_vocab_size()


def hugging_face(text, path):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    texts = parts(text)
    start = time.perf_counter()
    count = sum(len(tokenizer.encode(part, add_special_tokens=False).ids) for part in texts)
    return time.perf_counter() - start, count


def tiktoken(text, path):
    import tiktoken as library
    from tiktoken_ext import openai_public

    with open(path, encoding="utf-8") as source:
        file = json.load(source)
    shown = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    byte_of = {chr(b): b for b in shown}
    byte_of |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in shown)}
    special = {token["content"] for token in file["added_tokens"]}
    ranks = {bytes(byte_of[c] for c in name): id for name, id in file["model"]["vocab"].items() if name not in special}
    openai_public.load_tiktoken_bpe = lambda *_, **__: {}
    step = file["pre_tokenizer"]
    pattern = openai_public.r50k_pat_str
    if step["type"] == "Sequence":
        made = openai_public.o200k_base if "Lu" in step["pretokenizers"][0]["pattern"]["Regex"] else openai_public.cl100k_base
        pattern = made()["pat_str"]
    encoding = library.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    texts = parts(text)
    start = time.perf_counter()
    count = sum(len(encoding.encode_ordinary(part)) for part in texts)
    return time.perf_counter() - start, count


with open(sys.argv[2], encoding="utf-8", newline="") as opened:
    seconds, tokens = {"train": train, "hugging-face": hugging_face, "tiktoken": tiktoken}[sys.argv[1]](
        opened.read(), sys.argv[3]
    )
print(f"{seconds:.6f} {tokens}")
