#!/usr/bin/env python3
"""Causal attention in PyTorch on the first CUDA device, in bf16, by each fused implementation that it has
(cuDNN's operation, FlashAttention): what benchmarks/cuda/gpu_check.sh holds our kernels against, so that
it is known whether cuDNN's is worth calling.

    gpu_attention_peer.py --batch 8 --heads 25 --seq 1024 --depth 64

Prints a line for each and each direction: name, TAB, TFLOP/s (the median of RUNS; FLOPs as
model/graph.h counts them: half of T x T forward, twice that backward). One that does not run here has a
line with its reason instead of a number.
"""

import argparse
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

RUNS, WARM_UP = 20, 3
BACKENDS = (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention", SDPBackend.FLASH_ATTENTION))


def seconds_of(run):
    taken = []
    for number in range(RUNS + WARM_UP):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if number >= WARM_UP:
            taken.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(taken)


def measure(args, backend):
    shape = (args.batch, args.heads, args.seq, args.depth)
    q, k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with sdpa_kernel(backend):
        forward = seconds_of(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        d_out = torch.randn_like(out)
        backward = seconds_of(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True))
    return forward, backward


def main():
    parser = argparse.ArgumentParser()
    for name in ("batch", "heads", "seq", "depth"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    flops = 2 * args.batch * args.seq * args.heads * args.depth * args.seq
    for name, backend in BACKENDS:
        try:
            forward, backward = measure(args, backend)
        except RuntimeError as error:
            for direction in ("forward", "backward"):
                print(f"attention, {direction}, bf16, {name}\t{str(error).splitlines()[0]}")
            continue
        print(f"attention, forward, bf16, {name}\t{flops / forward / 1e12:.1f}")
        print(f"attention, backward, bf16, {name}\t{2 * flops / backward / 1e12:.1f}")


if __name__ == "__main__":
    main()
