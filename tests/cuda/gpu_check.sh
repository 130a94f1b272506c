#!/usr/bin/env bash
# Property: benchmarks/cuda/gpu_check.sh says in one sentence that there is no GPU and ends with 1; with
# a card it goes through all its stages and writes the table; what fails makes it end with 1; what does
# not end, or finds no time left, is a row that says so; and the real flavour of the tests says that
# there is no device. Method: this machine has no card, so the card is the emulated one, and PyTorch and
# compute-sanitizer are scripts that say what those say.
cd "$(dirname "$0")/../.." || exit 1
. tests/shared/system.sh
plain=$(dirname "$spillway")/cuda/plain real=$(dirname "$spillway")/cuda/real
script=benchmarks/cuda/gpu_check.sh

# checked ENVIRONMENT...: the script with OUT in $work/table.
checked() {
    rm -rf "$work/table"
    status=0
    env TMPDIR="$work" "$@" $script "$work/table" >"$work/out" 2>"$work/err" </dev/null || status=$?
}
# in_table NAME PATTERN
in_table() { check "$1" grep -qE -- "$2" "$work/table/gpu-check.md"; }

# ---- Without a card ----

if "$spillway" devices | grep -q '^cuda:0'; then
    skip "no GPU" "there is one"
else
    checked
    same "without a GPU it ends with 1" $status 1
    same "and one line" "$(cat "$work/out" "$work/err" | wc -l)" 1
    check "which says so" grep -q '^gpu-check: .*no CUDA device here\|^gpu-check: .*no CUDA part' "$work/err"
    check "and leaves no folder" test ! -e "$work/table"
    if [ -x "$real/test_gpu_norm" ]; then
        for each in test_gpu_norm bench_gpu; do
            status=0
            "$real/$each" >"$work/out" 2>"$work/err" || status=$?
            same "$each with CUDA's own libraries ends with 1" $status 1
            check "and says that there is no device" grep -q 'no CUDA device here' "$work/err"
        done
    else
        skip "the real flavour" "nvcc is not installed"
    fi
fi
$script >"$work/out" 2>"$work/err"
same "without a folder for its output it ends with 2" $? 2

# ---- With the emulated one ----

cat >"$work/tiny.json" <<'END'
{"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 512,
 "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "tie_word_embeddings": true}
END
mkdir "$work/bin" "$work/fake"
cat >"$work/bin/python3" <<'END'
#!/bin/sh
case $1 in -c) echo 2.0 ;; *gpu_peer.py) echo "5.0 6.4" ;; *gpu_attention_peer.py) printf 'attention, forward, bf16, cuDNN\t2.0\nattention, backward, bf16, cuDNN\tno kernel\n' ;; *) exit 1 ;; esac
END
cat >"$work/bin/compute-sanitizer" <<'END'
#!/bin/sh
echo "========= ERROR SUMMARY: 0 errors"
END
chmod +x "$work"/bin/*
small=(FLAVOUR=plain SHAPE=tiny TESTS=tests/cuda/test_gpu_adamw.c TIER_MODEL="$work/tiny.json:2:16" TIER_STEPS=6
    STEP_MODELS="$work/tiny.json:2:16" UPDATE_MODEL="$work/tiny.json:2:16" STEP_COUNT=4 BUDGET=1G DATA_KIB=200 PATH="$work/bin:$PATH")
checked "${small[@]}"
same "with a card it ends with 0" $status 0
in_table "the table has its date" '^# gpu-check of 20[0-9][0-9]-[0-9][0-9]-[0-9][0-9]$'
in_table "the device" '^- device: emulated card: '
in_table "and the processor" '^- processor: .*cores'
in_table "tests" '^\| test_gpu_adamw \| 2 passed, 0 failed, 0 skipped \|.*\| ok \|$'
in_table "losses against the CPU's" '^\| losses of 6 steps, card against CPU.*\| ok \|$'
same "placements and a kill: the bits of the run on the card" \
    "$(grep -c '^| .* | 6 steps | the bits of card | - | ok |$' "$work/table/gpu-check.md")" 4
in_table "a kernel beside its limit" '^\| attention, backward, bf16 \| .* TFLOP/s \| .* TFLOP/s, a large product \| [0-9.]+ \| ok \|$'
in_table "attention beside PyTorch's" "^\\| attention, forward, bf16, beside PyTorch's \\| .* TFLOP/s \\| 2.0 TFLOP/s, cuDNN \\| [0-9.]+ \\| ok \\|\$"
in_table "or why not" '^\| attention, backward, bf16, cuDNN \| - \| - \| - \| SKIPPED: no kernel \|$'
in_table "PCIe" '^\| PCIe, RAM to card \| [0-9.e+-]+ GB/s \|'
in_table "this machine's profile" '^\| spillway bench pcie --device cuda \|.*\| ok \|$'
check "which has the card" grep -q '"card"' "$work/table/machine.json"
in_table "steps beside PyTorch's" '^\| tiny, resident: 2 x 16 tokens, bf16 \| [0-9]+ tokens/s \| 5.0 tokens/s, PyTorch \| [0-9.]+ \| ok \|$'
in_table "and beside the plan's bound" "^\| tiny, 1G of VRAM: .* s, the plan's bound \([a-z0-9_]+\) \| [0-9.]+ \| (ok|MISSED: at most 1.15 is asked for) \|$"
in_table "with the resident run's bits" '^\| tiny: losses with 1G of VRAM \| [0-9]+ steps \| the bits of the resident run \| - \| ok \|$'
in_table "updates on the card of state in RAM" "^\\| tiny, state in RAM streamed to be updated: .* s, by the CPU \\| [0-9.]+ \\| ok \\|\$"
in_table "with the CPU's bits" "^\\| tiny: losses with streamed updates \\| [0-9]+ steps \\| the bits of the CPU's \\| - \\| ok \\|\$"
in_table "the sanitizer" '^\| compute-sanitizer memcheck: test_kernels_cuda \| ERROR SUMMARY: 0 errors \|.*\| ok \|$'
check "the table is on the screen too" grep -q '^| test_gpu_adamw' "$work/out"
check "nothing is left out but by name" test -z "$(grep SKIPPED "$work/table/gpu-check.md" | grep -v 'SKIPPED: .')"

# ---- What goes wrong ----

ln -s "$(realpath "$plain/spillway")" "$work/fake/spillway"
printf '#!/bin/sh\necho "[  ERROR   ] --- wrong"\necho "[  FAILED  ] test_one"\necho "[  PASSED  ] 1 test(s)."\necho "[  FAILED  ] 1 test(s)."\nexit 1\n' >"$work/fake/test_gpu_bad"
printf '#!/bin/sh\necho no case\n' >"$work/fake/test_gpu_none"
printf '#!/bin/sh\nexec tail -f /dev/null\n' >"$work/fake/test_gpu_hangs"
chmod +x "$work"/fake/test_*
fake=$(realpath -m --relative-to=build/release/cuda "$work/fake")
checked "${small[@]}" FLAVOUR="$fake" ONLY=2 TESTS="test_gpu_bad.c test_gpu_none.c"
same "a test that fails ends it with 1" $status 1
in_table "and is a row" '^\| test_gpu_bad \| 1 passed, 1 failed, 0 skipped \|.*\| FAILED: test_one: \[  ERROR   \] --- wrong .*\|$'
in_table "so is one in which no case ran" '^\| test_gpu_none \|.*\| FAILED: no case ran \|$'
checked "${small[@]}" FLAVOUR=plain ONLY=6 BUDGET=1M
in_table "a budget that is too small leaves a row out" '^\| tiny, 1M of VRAM: .*\| SKIPPED: .*--vram-budget'
same "which is no failure" $status 0
checked "${small[@]}" FLAVOUR=plain ONLY=6 STEP_MODELS="$work/none.json:2:16"
in_table "a run that ends for another reason fails" '^\| none, resident: .*\| FAILED: exit status 1: .*none.json'
same "and ends it with 1" $status 1
checked "${small[@]}" FLAVOUR="$fake" ONLY="2 4 5 6" SECONDS_ALL=8 TESTS="test_gpu_hangs.c test_gpu_bad.c"
in_table "what does not end is ended" '^\| test_gpu_hangs \|.*\| SKIPPED: no time is left of 8 s \|$'
in_table "and what comes after it is left out by name" '^\| tiny, 1G of VRAM: .*\| SKIPPED: no time is left of 8 s \|$'
same "which is no failure" $status 0
finish
