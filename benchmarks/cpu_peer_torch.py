#!/usr/bin/env python3
"""GPT-2's training step in PyTorch on the CPU, as fast as PyTorch has it, for benchmarks/cpu_peers.sh.

Random weights and tokens: only time is of interest. Linear layers, F.scaled_dot_product_attention, GELU's
tanh form, a tied head, global-norm clipping and fused AdamW. Modes: fp32; autocast (bf16 products, float
weights); pure (bf16 weights, gradients and moments, so less is computed and kept than by the others); each
also with torch.compile. Prints one JSON object: seconds and CPU seconds of each step, peak memory, PyTorch's version.

    benchmarks/cpu_peer_torch.py --mode autocast --compile --layers 12 --channels 768 --heads 12 \
        --vocab 50257 --batch 4 --seq 256 --steps 5

With --adamw N it times the fused, foreach and plain AdamW instead, over N million float parameters, and
DeepSpeed's CPU Adam where that is installed (it is compiled when it is first used).
"""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.fc = nn.Linear(channels, 4 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x):
        batch, seq, channels = x.shape
        q, k, v = (part.view(batch, seq, self.heads, -1).transpose(1, 2)
                   for part in self.qkv(self.norm1(x)).split(channels, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, seq, channels))
        return x + self.out(F.gelu(self.fc(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.words = nn.Embedding(args.vocab, args.channels)
        self.places = nn.Embedding(args.seq, args.channels)
        self.blocks = nn.ModuleList(Block(args.channels, args.heads) for _ in range(args.layers))
        self.norm = nn.LayerNorm(args.channels)
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.places.weight, std=0.02)

    def forward(self, tokens, targets):
        x = self.words(tokens) + self.places.weight
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.words.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def train(args):
    torch.manual_seed(1)
    model = Model(args)
    if args.mode == "pure":
        model = model.bfloat16()
    run = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    seconds, cpu_seconds = [], []
    for _ in range(args.steps):
        tokens = torch.randint(args.vocab, (args.batch, args.seq + 1))
        start, cpu_start = time.perf_counter(), time.process_time()
        cast = (torch.autocast("cpu", torch.bfloat16) if args.mode == "autocast"
                else contextlib.nullcontext())
        with cast:
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def adamw(millions, repeats):
    """Parameters per second of each AdamW, the median of several runs, all in turns."""
    optimizers = {}
    for name, options in {"fused": {"fused": True}, "foreach": {"foreach": True}, "plain": {}}.items():
        parameters = [nn.Parameter(torch.randn(1024, 1024) * 0.02) for _ in range(millions)]
        for p in parameters:
            p.grad = torch.randn(1024, 1024) * 1e-3
        optimizers[name] = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, **options)
    with contextlib.suppress(ImportError), contextlib.redirect_stdout(sys.stderr):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        whole = nn.Parameter(torch.randn(millions * 2**20) * 0.02)
        whole.grad = torch.randn(millions * 2**20) * 1e-3
        optimizers["deepspeed"] = DeepSpeedCPUAdam([whole], lr=1e-5, weight_decay=0.1, adamw_mode=True)
    rates = {name: [] for name in optimizers}
    for i in range(repeats):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            rate = millions * 2**20 / (time.perf_counter() - start)
            if i > 0:
                rates[name].append(rate)
    return {"parameters_per_s": {name: statistics.median(all) for name, all in rates.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--mode", choices=["fp32", "autocast", "pure"], default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--adamw", type=int, default=0, metavar="N")
    for name, value in {"layers": 12, "channels": 768, "heads": 12, "vocab": 50257, "batch": 4, "seq": 256,
                        "steps": 5, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = adamw(args.adamw, args.steps) if args.adamw else train(args)
    result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result["version"] = torch.__version__
    print(json.dumps(result))


if __name__ == "__main__":
    main()
