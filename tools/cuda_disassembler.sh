#!/usr/bin/env bash
# cuda_disassembler.sh: CUDA's cuobjdump and nvdisasm, for tests/cuda/resources.sh and tools/cuda_report.sh,
# where nvcc came without them: from PyPI into build/cuda-tools. Does nothing where they are there already or
# there is no nvcc.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PATH:/usr/local/cuda/bin:$(echo build/cuda-tools/nvidia/*/bin)
command -v nvcc >/dev/null || exit 0
command -v cuobjdump >/dev/null && command -v nvdisasm >/dev/null && exit 0
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target build/cuda-tools \
    nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm || {
    echo "cuda_disassembler.sh: PyPI does not answer, so the machine code will not be looked at" >&2
    exit 0
}
