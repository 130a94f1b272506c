#!/usr/bin/env bash
# The drive's limit: what `spillway bench ssd` reaches in reading and in writing against fio with
# io_uring, O_DIRECT and the same transfers (3 MiB, 8 deep), the two taking turns. Prints each
# round, then the medians of the ratios; at least 0.95 is asked.
#   ROUNDS (5)  NVME (a folder on the drive)
. tests/shared/system.sh
command -v fio >/dev/null || { skip "fio" "it is not installed (apt-get install fio)" && finish; }
rounds=${ROUNDS:-5} nvme=${NVME:-$work}/nvme
export XDG_CONFIG_HOME=$work/config
mkdir -p "$nvme"
at_exit+=("rm -f '$nvme/fio.dat'")
# fio_rate read|write: bytes a second.
fio_rate() {
    fio --name=drive --filename="$nvme/fio.dat" --size=1G --rw="$1" --bs=3M --iodepth=8 --ioengine=io_uring \
        --fixedbufs=1 --mem=mmap --iomem_align=2M --direct=1 --runtime=3 --time_based --output-format=json 2>/dev/null >"$work/fio.json"
    sed -n 's/.*"bw_bytes" : \([0-9]*\).*/\1/p' "$work/fio.json" | sort -n | tail -n 1
}
fio_rate write >/dev/null # the file's blocks are there
for _ in $(seq "$rounds"); do
    must bench ssd --nvme "$nvme" --out "$work/machine.json"
    for way in read write; do
        ours=$(values "$work/machine.json" ${way}_bytes_per_s | head -n 1) theirs=$(fio_rate $way)
        awk -v w=$way -v a="$ours" -v b="$theirs" 'BEGIN { printf "%-5s ours %.2f GB/s, fio %.2f GB/s: %.3f\n", w, a / 1e9, b / 1e9, a / b }' |
            tee -a "$work/$way"
    done
done
for way in read write; do
    echo "$way: median ratio $(awk '{ print $NF }' "$work/$way" | median) (0.95 asked)"
done
finish
