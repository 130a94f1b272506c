#!/usr/bin/env python3
"""compare_training.py WORK_DIR TEXT...: merges that we learn beside those of Hugging Face's trainer, in order.

For each pattern, VOCAB (32768) tokens are learned from the texts together, each a document, with 1, 2 and 5
threads (SPILLWAY prep) and by tokenizers' BpeTrainer with the same split. One merge that differs is a failure.
"""
import json
import os
import subprocess
import sys

import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

VOCAB = int(os.environ.get("VOCAB", "32768"))


def ours(work, texts, pattern, threads):
    folder = os.path.join(work, f"trained-{pattern}-{threads}")
    subprocess.run(
        [os.environ["SPILLWAY"], "prep", *texts, "--format", "text", "--out", folder, "--force", "--pattern", pattern,
         "--vocab-size", str(VOCAB), "--threads", str(threads), "--ram-budget", "4G"],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as source:
        return json.load(source)


def theirs(strings, pre):
    """Merges learned with the pre-tokenizer that our file names."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, min_frequency=2, special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    tokenizer.train_from_iterator(strings, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def pre_tokenizer(step):
    if step["type"] == "Sequence":
        return pre_tokenizers.Sequence([pre_tokenizer(s) for s in step["pretokenizers"]])
    if step["type"] == "Split":
        return pre_tokenizers.Split(Regex(step["pattern"]["Regex"]), "isolated")
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step["use_regex"])


def main():
    work, *texts = sys.argv[1:]
    strings = [open(path, encoding="utf-8", newline="").read() for path in texts]
    text_bytes = sum(len(s.encode()) for s in strings)
    bad = 0
    for pattern in ("gpt2", "cl100k", "llama3", "o200k"):
        files = {threads: ours(work, texts, pattern, threads) for threads in (1, 2, 5)}
        expected = theirs(strings, pre_tokenizer(files[1]["pre_tokenizer"]))
        for threads, file in files.items():
            merges = [tuple(merge.split(" ")) for merge in file["model"]["merges"]]
            same = next((i for i, pair in enumerate(zip(merges, expected)) if pair[0] != pair[1]), None)
            if same is None and len(merges) != len(expected):
                same = min(len(merges), len(expected))
            bad += same is not None
            verdict = "equal" if same is None else f"DIFFERENT from merge {same}"
            print(f"{pattern}: {len(merges)} merges from {text_bytes / 1e6:.1f} MB with {threads} thread(s): {verdict} "
                  f"(Hugging Face tokenizers {tokenizers.__version__}: {len(expected)})", flush=True)
    return 1 if bad else 0


sys.exit(main())
