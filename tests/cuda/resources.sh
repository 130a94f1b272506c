#!/usr/bin/env bash
# resources.sh: what nvcc said when it compiled the kernels: no kernel spills registers or has a
# stack, in any architecture; and, where cuobjdump is, attention's machine code for sm_86 and sm_90
# multiplies on tensor cores. Skipped, and says so, where there was no nvcc.
set -uo pipefail
cd "$(dirname "$0")/../.."
build=$(dirname "${SPILLWAY:-build/release/spillway}")
objects=$build/cuda/nvcc/model/cuda
PATH=$PATH:/usr/local/cuda/bin:$(echo build/cuda-tools/nvidia/*/bin) # tools/cuda_disassembler.sh
passed=0 failed=0 skipped=0

result() {
    if [ "$1" -eq 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
    [ "$1" -eq 0 ] && echo "[       OK ] $2" || echo "[  FAILED  ] $2"
}

skip() {
    skipped=$((skipped + 1))
    echo "[  SKIPPED ] $1"
}

spills() {
    # "N bytes stack frame, N bytes spill stores, N bytes spill loads"
    grep -h 'bytes stack frame' "$objects"/*.ptxas | grep -vc ' 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads'
}

# Kernels of attention on tensor cores without a single HMMA.
without_tensor_cores() {
    cuobjdump -sass -arch "$1" "$2" | awk '
        /Function : / { if (name ~ /tensor_cores/ && !found) print name; name = $3; found = 0 }
        /HMMA/ { found = 1 }
        END { if (name ~ /tensor_cores/ && !found) print name }'
}

if ! ls "$objects"/*.ptxas >/dev/null 2>&1; then
    skip "nvcc is not installed: the compiler's report is missing"
    skip "nvcc is not installed: there is no machine code"
else
    [ "$(grep -h -c 'bytes stack frame' "$objects"/gpu_attention.cu.o.ptxas)" -ge 7 ] && [ "$(spills)" -eq 0 ]
    result $? "no kernel spills or has a stack"
    if ! command -v cuobjdump >/dev/null || ! command -v nvdisasm >/dev/null; then
        skip "cuobjdump or nvdisasm is not installed (tools/cuda_disassembler.sh): the machine code was not looked at"
    else
        missing=
        for arch in sm_86 sm_90; do
            for part in gpu_attention gpu_attention_backward; do
                missing+=$(without_tensor_cores "$arch" "$objects/$part.cu.o")
            done
        done
        echo "$missing"
        [ -z "$missing" ]
        result $? "attention multiplies on tensor cores in sm_86 and sm_90"
    fi
fi
echo "[  PASSED  ] $passed test(s)."
[ "$skipped" -eq 0 ] || echo "[  SKIPPED ] $skipped test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)."; exit 1; }
