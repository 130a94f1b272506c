#!/usr/bin/env bash
# Training on the CPU beside PyTorch, and llm.c where it is at hand: the same step of the same model, all taking
# turns; medians of tokens/s and their spread, ratios, peak memory, and how much of what the matrix products alone
# would allow is kept (their rate is measured in every round by bench_matmul).
#   asked: 1.25 times the best peer, 0.80 of the products' ceiling at 4 x 256 and 2 x 1024, 0.60 of PyTorch's memory
# PyTorch runs in float, under bf16 autocast (as most train), and with everything in bf16, moments too; the last
# keeps and moves half of what the others do, and is held against bf16 all the same. AdamW over 32 M parameters is
# timed as well, DeepSpeed's too where it is installed. Two rounds take 12 minutes on an idle machine of 2 cores;
# figures of a busy one are of no use.
#   ROUNDS (2)  STEPS (4)  CELLS ("124m:4:64 124m:4:256 124m:2:1024 small:8:256")  MODES ("fp32 autocast pure")
#   COMPILE=1 (torch.compile too; half a minute more each)  PYTHON (one that has torch, else a venv is made)
#   LLMC (a checkout of llm.c: built with OpenMP and run once in fp32 at 4 x 64 and 4 x 256)  THREADS (all)
. tests/shared/system.sh
. benchmarks/shared/gpt2.sh
rounds=${ROUNDS:-2} steps=${STEPS:-4} threads=${THREADS:-$(nproc)}
cells=${CELLS:-124m:4:64 124m:4:256 124m:2:1024 small:8:256}
build=$(dirname "$spillway")
python=${PYTHON:-$build/reference/torch/bin/python}
if ! "$python" -c 'import torch' 2>/dev/null; then
    python=$build/reference/torch/bin/python
    mkdir -p "$build/reference"
    python3 -m venv "$build/reference/torch" >"$work/out" 2>"$work/err" &&
        "$build/reference/torch/bin/pip" install -q torch numpy >"$work/out" 2>"$work/err" ||
        { skip "CPU peers" "torch cannot be installed from PyPI" && finish; }
fi

seq 1 90000 >"$work/text"
must prep "$work/text" --out "$work/data" --vocab-size 512
gpt2_small "$work/small.json" 1024

# note CELL WHO RATE...: tokens/s of some steps.
note() { printf '%s\n' "${@:3}" >>"$work/rates.$1.$2"; }
# peak CELL WHO BYTES
peak() { echo "$3" >>"$work/peak.$1.$2"; }
field() { grep -ao "\"$1\": *[0-9.e+]*" | sed 's/.*: *//'; }

ours() { # CELL MODEL B T PRECISION
    local model=gpt2-124m
    [ "$2" = small ] && model=$work/small.json
    rm -rf "$work/run"
    must train --model "$model" --data "$work/data" --out "$work/run" --batch "$3" --seq "$4" --precision "$5" \
        --steps $((steps + 1)) --threads "$threads"
    note "$1" "ours-$5" $(field tokens_per_s <"$work/run/metrics.jsonl" | tail -n "$steps")
    peak "$1" "ours-$5" "$(field ram_peak_bytes <"$work/run/metrics.jsonl" | sort -n | tail -n 1)"
}

torch() { # CELL MODEL B T MODE [compile]
    local shape=() name=torch-$5${6:+-$6}
    [ "$2" = small ] && shape=(--layers 6 --channels 384 --heads 6)
    "$python" benchmarks/cpu_peer_torch.py "${shape[@]}" --batch "$3" --seq "$4" --mode "$5" ${6:+--$6} \
        --steps $((steps + 1)) --threads "$threads" >"$work/torch" 2>"$work/err" ||
        { skip "$1 $name" "$(tail -n 1 "$work/err")" && return; }
    note "$1" "$name" $(sed 's/.*"seconds": \[\([^]]*\)\].*/\1/' "$work/torch" | tr ',' '\n' | tail -n "$steps" |
        awk -v tokens=$(($3 * $4)) '{ print tokens / $1 }')
    peak "$1" "$name" "$(field peak_bytes <"$work/torch")"
}

adamw() {
    "$python" benchmarks/cpu_peer_torch.py --adamw 32 --steps 12 --threads "$threads" >"$work/torch" 2>"$work/err" &&
        field fused <"$work/torch" >>"$work/adamw.torch-fused" && field foreach <"$work/torch" >>"$work/adamw.torch-foreach" &&
        { ! grep -q deepspeed "$work/torch" || field deepspeed <"$work/torch" >>"$work/adamw.deepspeed"; }
    must bench optimizer --seconds 8 --threads "$threads" --out "$work/machine.json"
    field optimizer_parameters_per_s <"$work/machine.json" | head -n 1 >>"$work/adamw.ours"
}

products() {
    "$build/benchmarks/bench_matmul" "$threads" >"$work/products" 2>"$work/err" || return
    # The first column is a name of 8 characters, which may hold a space.
    awk -v t="$threads" '
        { n = split(substr($0, 9), f, " ") }
        n >= 3 && f[1] == t { fp32 += f[2]; bf16 += f[3]; count++ }
        END { if (count) print fp32 / count, bf16 / count }' "$work/products" >>"$work/products.mean"
}

# A copy of llm.c with this batch and weights of noise: prints milliseconds of its steps.
llmc() { # B T
    local folder=$work/llmc
    mkdir -p "$folder/dev/data/tinyshakespeare"
    sed "s/int B = 4;/int B = $1;/; s/int T = 64;/int T = $2;/; s/val_num_batches = 5/val_num_batches = 1/
        s/step <= 40/step <= 2/" "$LLMC/train_gpt2.c" >"$folder/train.c"
    gcc -O3 -march=native -fopenmp -Ofast -fno-finite-math-only -Wno-unused-result -I"$LLMC" -DOMP "$folder/train.c" \
        -o "$folder/train" -lm 2>"$work/err" || return
    "$python" - "$folder" <<'END'
import sys, numpy
folder = sys.argv[1]
rng = numpy.random.default_rng(1)
count, padded = 12, 50304
c = 768
parameters = padded * c + 1024 * c + count * (12 * c * c + 13 * c) + 2 * c
header = numpy.zeros(256, "<i4")
header[:8] = [20240326, 3, 1024, 50257, count, 12, c, padded]
with open(f"{folder}/gpt2_124M.bin", "wb") as file:
    header.tofile(file)
    (rng.standard_normal(parameters, dtype=numpy.float32) * 0.02).tofile(file)
tokens = rng.integers(0, 50257, 100000).astype("<u2")
header[:] = 0
header[:3] = [20240520, 1, len(tokens)]
for part in "train", "val":
    with open(f"{folder}/dev/data/tinyshakespeare/tiny_shakespeare_{part}.bin", "wb") as file:
        header.tofile(file)
        tokens.tofile(file)
END
    (cd "$folder" && OMP_NUM_THREADS=$threads ./train 2>&1) >"$work/llmc.out"
    note "124m:$1:$2" llm.c-fp32 $(sed -n 's/^step [12].*took \([0-9.]*\) ms.*/\1/p' "$work/llmc.out" |
        awk -v tokens=$(($1 * $2)) '{ print 1000 * tokens / $1 }')
}

for round in $(seq "$rounds"); do
    products
    adamw
    for cell in $cells; do
        IFS=: read -r model b t <<<"$cell"
        ours "$cell" "$model" "$b" "$t" fp32
        ours "$cell" "$model" "$b" "$t" bf16
        for mode in ${MODES:-fp32 autocast pure}; do
            torch "$cell" "$model" "$b" "$t" "$mode"
            [ -z "${COMPILE:-}" ] || torch "$cell" "$model" "$b" "$t" "$mode" compile
        done
    done
done
[ -z "${LLMC:-}" ] || { llmc 4 64 && llmc 4 256; }

# quartiles FILE: median, first and third quartile.
quartiles() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)], v[int((NR + 3) / 4)], v[int((3 * NR + 1) / 4)] }'; }
echo "products: $(awk '{ printf "%s%.0f GFLOP/s fp32, %.0f bf16", (NR == 1 ? "" : "; "), $1, $2 }' "$work/products.mean")"
printf '%-14s %-5s %26s %34s %6s %8s %18s\n' "cell" "" "ours, tokens/s" "best peer, tokens/s" "ratio" "ceiling" "memory, MiB"
for cell in $cells; do
    IFS=: read -r model b t <<<"$cell"
    for precision in fp32 bf16; do
        read -r rate low high <<<"$(quartiles "$work/rates.$cell.ours-$precision")"
        best=0 name=none
        for file in "$work/rates.$cell".*; do
            who=${file#"$work/rates.$cell."}
            case $precision:$who in
            *:ours-*) continue ;;
            fp32:*fp32*) ;;
            bf16:*fp32*) continue ;;
            fp32:*) continue ;;
            esac
            this=$(quartiles "$file" | cut -d ' ' -f 1)
            if awk -v a="$this" -v b="$best" 'BEGIN { exit !(a > b) }'; then best=$this name=$who; fi
        done
        awk -v cell="$cell" -v p="$precision" -v rate="$rate" -v low="$low" -v high="$high" -v best="$best" \
            -v name="$name" -v flops="$(gpt2_flops "$model" "$t")" \
            -v speed="$(awk -v p="$precision" '{ s += p == "fp32" ? $1 : $2 } END { print s / NR }' "$work/products.mean")" \
            -v mine="$(sort -n "$work/peak.$cell.ours-$precision" | tail -n 1)" \
            -v theirs="$(sort -n "$work/peak.$cell.$name" 2>/dev/null | tail -n 1)" \
            'BEGIN { printf "%-14s %-5s %8.1f (%.1f to %.1f) %34s %6.2f %7.0f%% %8.0f of %.0f\n", cell, p, rate, low, high,
                sprintf("%s %.1f", name, best), (best + 0 == 0 ? 0 : rate / best), 100 * rate * flops / (speed * 1e9),
                mine / 1048576, theirs / 1048576 }'
    done
done
for file in "$work/rates."*; do
    printf '  %-40s median and quartiles %s\n' "${file#"$work/rates."}" "$(quartiles "$file")"
done
for file in "$work/adamw."*; do
    printf 'AdamW, %-14s %8.0f M parameters/s\n' "${file#"$work/adamw."}" "$(quartiles "$file" | awk '{ print $1 / 1e6 }')"
done
