#!/usr/bin/python3
"""GPT-2 in plain PyTorch, to compare the trainer with.

Loads the weights of a Hugging Face folder (config.json, model.safetensors), trains on batches from
a raw file and writes one JSON line per step: step, loss, grad_norm, lr. The batches are uint32
tokens laid out as [step][M][B][2][T]: inputs, then targets. Same mathematics as the trainer: AdamW
with weight decay on matrices only, global-norm clipping, linear warm-up and cosine schedule, mean
loss over the step's M * B * T tokens. Needs numpy and torch (Debian's python3-torch is enough).

    tests/reference/train_gpt2.py --model HF_DIR --batches FILE --batch 4 --seq 256 --steps 50 \
        --out losses.jsonl
"""

import argparse
import json
import math
import struct
import sys

import numpy
import torch
import torch.nn.functional as F


def read_safetensors(path):
    """{name: float32 array}. Format: https://github.com/huggingface/safetensors."""
    tensors = {}
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
        start = 8 + header_bytes
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            file.seek(start + begin)
            data = file.read(end - begin)
            if entry["dtype"] == "F32":
                values = numpy.frombuffer(data, "<f4")
            elif entry["dtype"] == "F16":
                values = numpy.frombuffer(data, "<f2").astype(numpy.float32)
            elif entry["dtype"] == "BF16":
                values = (numpy.frombuffer(data, "<u2").astype(numpy.uint32) << 16).view("<f4")
            else:
                sys.exit(f"{path}: {name} is {entry['dtype']}, not F32, F16 or BF16")
            tensors[name] = values.reshape(entry["shape"]).astype(numpy.float32)
    return tensors


def load_parameters(folder):
    """{name without "transformer.": trainable tensor}; buffers and the tied head are left out."""
    parameters = {}
    for name, values in read_safetensors(f"{folder}/model.safetensors").items():
        name = name.removeprefix("transformer.")
        if name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        parameters[name] = torch.from_numpy(values.copy()).requires_grad_()
    return parameters


def block(p, prefix, x, heads, epsilon):
    batch, seq, channels = x.shape

    def norm(name, value):
        return F.layer_norm(value, (channels,), p[f"{prefix}.{name}.weight"],
                            p[f"{prefix}.{name}.bias"], epsilon)

    def linear(name, value):
        return F.linear(value, p[f"{prefix}.{name}.weight"].t(), p[f"{prefix}.{name}.bias"])

    q, k, v = (part.view(batch, seq, heads, channels // heads).transpose(1, 2)
               for part in linear("attn.c_attn", norm("ln_1", x)).split(channels, dim=2))
    scores = q @ k.transpose(2, 3) / math.sqrt(channels // heads)
    future = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = torch.softmax(scores.float().masked_fill(future, -math.inf), dim=3)
    attended = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, seq, channels)
    x = x + linear("attn.c_proj", attended)
    # gelu_new, the tanh form, in float as the trainer does it.
    u = linear("mlp.c_fc", norm("ln_2", x)).float()
    act = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
    return x + linear("mlp.c_proj", act)


def loss_sum(p, config, tokens, targets):
    """Cross-entropy summed over the micro-batch's tokens."""
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    x = p["wte.weight"][tokens] + p["wpe.weight"][: tokens.shape[1]]
    for layer in range(config["n_layer"]):
        x = block(p, f"h.{layer}", x, config["n_head"], epsilon)
    x = F.layer_norm(x, (x.shape[2],), p["ln_f.weight"], p["ln_f.bias"], epsilon)
    logits = F.linear(x, p["wte.weight"]).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def learning_rate(args, step):
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    if step >= args.total_steps:
        return args.min_lr
    done = (step - args.warmup) / (args.total_steps - args.warmup)
    return args.min_lr + 0.5 * (args.lr - args.min_lr) * (1 + math.cos(math.pi * done))


def clip(parameters, most):
    """Scales all gradients to a common norm of at most `most` (0: not at all); the norm before."""
    norm = math.sqrt(sum(float(q.grad.double().square().sum()) for q in parameters))
    if most > 0 and norm > most:
        for q in parameters:
            q.grad.mul_(most / norm)
    return norm


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="Hugging Face folder")
    parser.add_argument("--batches", required=True, help="uint32 tokens, [step][M][B][2][T]")
    parser.add_argument("--out", required=True, help="JSON lines, one per step")
    parser.add_argument("--batch", type=int, required=True, help="B: sequences per micro-batch")
    parser.add_argument("--seq", type=int, required=True, help="T: tokens per sequence")
    parser.add_argument("--accum", type=int, default=1, help="M: micro-batches per step")
    parser.add_argument("--steps", type=int, required=True, help="steps to run")
    parser.add_argument("--total-steps", type=int, help="length of the schedule (default: steps)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--min-lr", type=float, default=6e-5)
    parser.add_argument("--warmup", type=int, default=0, help="steps")
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--beta1", type=float, default=0.9)
    parser.add_argument("--beta2", type=float, default=0.95)
    parser.add_argument("--eps", type=float, default=1e-8)
    parser.add_argument("--clip", type=float, default=1.0, help="global norm; 0: no clipping")
    parser.add_argument("--threads", type=int, help="default: torch's")
    args = parser.parse_args()
    if args.total_steps is None:
        args.total_steps = args.steps
    return args


def main():
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    with open(f"{args.model}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    p = load_parameters(args.model)
    matrices = [q for q in p.values() if q.dim() == 2]
    vectors = [q for q in p.values() if q.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay},
         {"params": vectors, "weight_decay": 0.0}],
        lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps)
    batches = numpy.memmap(args.batches, "<u4", "r").reshape(
        -1, args.accum, args.batch, 2, args.seq)
    if len(batches) < args.steps:
        sys.exit(f"{args.batches} holds {len(batches)} steps, not {args.steps}")
    token_count = args.accum * args.batch * args.seq
    with open(args.out, "w", encoding="utf-8") as out:
        for step in range(args.steps):
            rate = learning_rate(args, step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad()
            total = 0.0
            for micro in batches[step]:
                tokens = torch.from_numpy(micro[:, 0].astype(numpy.int64))
                targets = torch.from_numpy(micro[:, 1].astype(numpy.int64))
                with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
                    loss = loss_sum(p, config, tokens, targets)
                (loss / token_count).backward()
                total += loss.item()
            norm = clip(list(p.values()), args.clip)
            optimizer.step()
            line = {"step": step, "loss": total / token_count, "grad_norm": norm, "lr": rate}
            print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
