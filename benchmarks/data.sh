#!/usr/bin/env bash
# Waiting for data: trains a small model on a dataset four times its RAM budget, none of it in the page
# cache, and prints the share of the steps' time until their batch was there; under 1 % is asked. The first
# step, which nothing could read ahead for, is told apart.
#   RAM (400M)  STEPS (60)  DATA_DIR (a folder on the drive, for 8 times RAM)
. tests/shared/system.sh
ram=${RAM:-400M} steps=${STEPS:-60} data=${DATA_DIR:-$work}/data
bytes=$((4 * $(bytes_of "$ram")))
mkdir -p "$data"
at_exit+=("rm -rf '$data'")
# Two letters are a uint16 below 32000, so that any text in base64 is a file of nanoGPT's.
head -c 3000000 /dev/urandom | base64 -w 60 >"$work/text"
must prep "$work/text" --out "$work/tokenizer" --vocab-size 32000 --format text
same "the tokenizer has tokens for all that follows" "$(values "$work/tokenizer/dataset.json" vocab_size)" 32000
head -c $((bytes / 4 * 3)) /dev/urandom | base64 -w 0 | head -c "$bytes" >"$data/train.bin"
must prep "$data/train.bin" --format nanogpt --tokenizer "$work/tokenizer" --out "$data" --val-fraction 0
rm "$data/train.bin"
dd if="$data/train.tok" iflag=nocache count=0 2>/dev/null
must train --model gpt-tiny --data "$data" --out "$work/run" --ram-budget "$ram" --seq 256 --batch 4 --steps "$steps"
paste -d ' ' <(values "$work/run/metrics.jsonl" data_s) <(values "$work/run/metrics.jsonl" step_s) |
    awk -v mb="$((bytes / 1000000))" 'NR == 1 { first = $1; next } { data += $1; step += $2; if ($1 > most) most = $1 }
        END { printf "%d MB of tokens, cold: waiting for data %.3f %% of %d steps of %.3f s (at most %.2f ms in one; the first step %.1f ms)\n",
            mb, 100 * data / step, NR - 1, step / (NR - 1), 1e3 * most, 1e3 * first }'
finish
