#!/usr/bin/env python3
"""GPT-2 training in PyTorch on the first CUDA device: what benchmarks/cuda/gpu_check.sh holds ours against.

The same shape as ours: pre-LN blocks, tanh GELU, learned positions, tied head, no dropout. As fast as
PyTorch makes it by usual means: bf16 autocast over fp32 weights, fused attention, fused AdamW, a
vocabulary padded to a multiple of 64, each layer and the head compiled (all layers share one
compilation; compiling the whole takes minutes for 48 of them). Random weights and tokens.

    gpu_peer.py --layers 12 --channels 768 --heads 12 --batch 8 --seq 1024 --steps 20 --seconds 30

Prints the median step's tokens per second and its seconds, without the first three steps. Exits 3 with
one line where the card's memory is too small.
"""

import argparse
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

WARM_UP = 3


class Block(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.ln_2 = nn.LayerNorm(channels)
        self.fc = nn.Linear(channels, 4 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x):
        batch, seq, channels = x.shape
        parts = self.qkv(self.ln_1(x)).view(batch, seq, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, seq, channels))
        return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))


class Head(nn.Module):
    def __init__(self, channels, wte):
        super().__init__()
        self.ln_f = nn.LayerNorm(channels)
        self.weight = wte.weight

    def forward(self, x, targets):
        logits = F.linear(self.ln_f(x), self.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.wte = nn.Embedding((args.vocab + 63) // 64 * 64, args.channels)
        self.wpe = nn.Embedding(args.seq, args.channels)
        self.blocks = nn.ModuleList(Block(args.channels, args.heads) for _ in range(args.layers))
        self.head = Head(args.channels, self.wte)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.register_buffer("positions", torch.arange(args.seq), persistent=False)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe(self.positions)
        for block in self.blocks:
            x = block(x)
        return self.head(x, targets)


def optimizer_of(model, fused):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8, fused=fused)


def step(model, optimizer, tokens, targets, device):
    with torch.autocast(device, dtype=torch.bfloat16):
        loss = model(tokens, targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def measure(args):
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    with torch.device(args.device):
        model = Model(args)
    if not args.eager:
        for block in model.blocks:
            block.compile()
        model.head.compile()
    optimizer = optimizer_of(model, args.device == "cuda")
    shape = (args.batch, args.seq + 1)
    begin = time.monotonic()
    seconds = []
    for number in range(args.steps + WARM_UP):
        drawn = torch.randint(args.vocab, shape, device=args.device)
        wait(args.device)
        start = time.monotonic()
        loss = step(model, optimizer, drawn[:, :-1], drawn[:, 1:], args.device)
        wait(args.device)
        if number >= WARM_UP:
            seconds.append(time.monotonic() - start)
        if seconds and time.monotonic() - begin > args.seconds:
            break
    if not torch.isfinite(loss):
        sys.exit("the loss is not finite")
    return statistics.median(seconds)


def parse_arguments():
    parser = argparse.ArgumentParser()
    for name in ("layers", "channels", "heads", "batch", "seq", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--vocab", type=int, default=50257)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")
    return parser.parse_args()


def main():
    args = parse_arguments()
    try:
        seconds = measure(args)
    except torch.cuda.OutOfMemoryError:
        print("the card's memory is too small for PyTorch's step", file=sys.stderr)
        sys.exit(3)
    print(f"{args.batch * args.seq / seconds:.1f} {seconds:.6f}")


if __name__ == "__main__":
    main()
