#!/usr/bin/env bash
# cuda_report.sh FOLDER CUDA_HOME: what nvcc said of every kernel (FOLDER/**/*.ptxas), and how many
# tensor-core instructions its machine code has, as a page of Markdown. cuobjdump and nvdisasm are
# taken from PATH or CUDA_HOME/bin; without them that part says so.
set -euo pipefail
folder=$1 cuda=$2
PATH=$PATH:$cuda/bin:$(echo build/cuda-tools/nvidia/*/bin) # tools/cuda_disassembler.sh

# "ARCH KERNEL REGISTERS STACK SPILL_STORES SPILL_LOADS" a line, names as a person writes them.
kernels() {
    cat "$folder"/model/cuda/*.ptxas | c++filt | awk '
        /Compiling entry function/ {
            match($0, /function .\047?/); name = $0
            sub(/.*entry function \047/, "", name); arch = name
            sub(/.* for \047/, "", arch); sub(/\047.*/, "", arch)
            sub(/\047 for.*/, "", name); sub(/^void /, "", name); sub(/\([^()]*\)$/, "", name)
            gsub(/ /, "", name)
        }
        /bytes stack frame/ { stack = $1; stores = $5; loads = $9 }
        /Used [0-9]+ registers/ {
            match($0, /Used [0-9]+/)
            print arch, name, substr($0, RSTART + 5, RLENGTH - 5), stack, stores, loads
        }'
}

# Counts of an instruction by kernel in one architecture: "KERNEL COUNT".
instructions() {
    for object in "$folder"/model/cuda/gpu_attention*.cu.o; do
        cuobjdump -sass -arch "$1" "$object"
    done | c++filt | awk -v wanted="$2" '
        /Function : / { name = $0; sub(/.*Function : (void )?/, "", name); sub(/\([^()]*\)$/, "", name)
                        gsub(/ /, "", name); count[name] += 0 }
        $0 ~ wanted { count[name]++ }
        END { for (name in count) print name, count[name] }'
}

version=$("$cuda/bin/nvcc" --version | sed -n 's/.*release \([^,]*\),.*/\1/p')
architectures=$(kernels | cut -d' ' -f1 | sort -V | uniq)
cat <<END
# The CUDA kernels in figures

Written by \`make cuda-report\` from what nvcc $version says (docs/cuda.md: what they do; docs/gpu-results.md:
how fast). Registers are per thread, for $(echo $architectures); spilled bytes are stores and loads, summed over
all of these. Shared memory is dynamic: a table below has attention's, the others take 9 KiB at most.

| kernel |$(for a in $architectures; do printf ' %s |' "$a"; done) stack | spilled |
|---|$(for a in $architectures; do printf -- '---|'; done)---|---|
END
kernels | awk -v list="$(echo $architectures)" '
    { registers[$2, $1] = $3; names[$2]; if ($4 > stack[$2]) stack[$2] = $4; spilled[$2] += $5 + $6 }
    END {
        count = split(list, arch, " ")
        for (name in names) {
            printf "| `%s` |", name
            for (i = 1; i <= count; i++) printf " %s |", registers[name, arch[i]]
            printf " %d | %d |\n", stack[name], spilled[name]
        }
    }' | sort

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Bytes of dynamic shared memory, from the same source: compiled for the host, as in the tests.
shared_bytes() {
    cat >"$work/shared.cc" <<END
#include "model/cuda/$1.cu"
#include <stdio.h>
template <class C> static void tell(const char *cores)
{
    printf("$2_kernel<%s> %zu\n", cores, $3<C>::bytes());
}
int main()
{
    tell<tensor_cores<32, true>>("tensor_cores<32,true>");
    tell<tensor_cores<64, true>>("tensor_cores<64,true>");
    tell<tensor_cores<128, true>>("tensor_cores<128,true>");
    tell<plain_cores<64>>("plain_cores<64>");
    tell<plain_cores<128>>("plain_cores<128>");
}
END
    g++ -std=gnu++17 -w -O1 -ffunction-sections -fdata-sections -fno-exceptions -no-pie -I. \
        -Itests/cuda/emulation/include "$work/shared.cc" -o "$work/shared" \
        -Wl,--gc-sections,--unresolved-symbols=ignore-all
    "$work/shared"
}

cat <<'END'

## Attention: shared memory and occupancy

Blocks of 128 threads that an SM of sm_86 has room for at once (65,536 registers, 100 KiB of shared memory of
which each block costs 1 KiB more than it asks for), and what limits them.

| kernel | shared memory | blocks | limited by |
|---|---|---|---|
END
{
    shared_bytes gpu_attention attention_forward forward_memory
    shared_bytes gpu_attention_backward attention_keys backward_memory
    shared_bytes gpu_attention_backward attention_queries backward_memory
} | sort >"$work/shared.list"
kernels | awk '$1 == "sm_86" { print $2, $3 }' | sort | join "$work/shared.list" - | awk '
    {
        registers = int(($3 * 32 + 255) / 256) * 256 * 4
        by_registers = int(65536 / registers); by_shared = int(102400 / ($2 + 1024))
        blocks = by_registers < by_shared ? by_registers : by_shared
        if (blocks > 12) blocks = 12
        printf "| `%s` | %d | %d | %s |\n", $1, $2, blocks, blocks == 12 ? "threads" : \
            by_registers < by_shared ? "registers" : "shared memory"
    }'

printf '\n## Tensor cores in attention\n\n'
if ! command -v cuobjdump >/dev/null || ! command -v nvdisasm >/dev/null; then
    echo "cuobjdump and nvdisasm were not at hand, so the machine code was not looked at."
    exit
fi
cat <<'END'
Instructions in the machine code: HMMA multiplies on tensor cores, LDSM is ldmatrix, LDGSTS is cp.async.

| kernel | HMMA sm_86 | LDSM sm_86 | LDGSTS sm_86 | HMMA sm_90 | LDSM sm_90 | LDGSTS sm_90 |
|---|---|---|---|---|---|---|
END
for arch in sm_86 sm_90; do
    for instruction in HMMA LDSM LDGSTS; do
        instructions "$arch" "$instruction" | sort >"$work/$arch.$instruction"
    done
done
cd "$work"
join sm_86.HMMA sm_86.LDSM | join - sm_86.LDGSTS | join - sm_90.HMMA | join - sm_90.LDSM | join - sm_90.LDGSTS |
    grep tensor_cores | awk '{ printf "| `%s` | %s | %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5, $6, $7 }'
