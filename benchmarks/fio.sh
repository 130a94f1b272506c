#!/usr/bin/env bash
# The drive's limit: what `spillway bench ssd` reaches in reading, in writing and in both at once
# against fio, with transfers of the same size, as many of them in flight, the two taking turns, who is
# first as well. At least 0.95 of fio's rate is asked in each, by the median of the rounds.
#
# fio at its best: io_uring, O_DIRECT, registered buffers and a registered file, one thread. Its buffers
# are on huge pages, without which a virtual drive reads half as fast: fio asks for none itself, so
# malloc does it for it (glibc.malloc.hugetlb). Both move random bytes to and from a file of 1 GiB whose
# blocks were written before, and count what was moved until the last transfer had ended, slow moments
# included. Where both directions run, in equal amounts, fio has one depth for them: twice ours. To be
# run when nothing else does: on a busy machine the ratios mean nothing.
#   ROUNDS (9)  SECONDS_EACH (2)  NVME (a folder on the drive)  BLOCK (3M)  DEPTHS ("3 8")
. tests/shared/system.sh
tools/packages.sh fio || { skip "fio" "it cannot be installed" && finish; }
rounds=${ROUNDS:-9} seconds=${SECONDS_EACH:-2} nvme=${NVME:-$work}/nvme block=${BLOCK:-3M} depths=${DEPTHS:-3 8}
. benchmarks/shared/fio.sh
mkdir -p "$nvme"
at_exit+=("rm -f '$nvme/fio.dat'")

our_rate() { # our_rate WAY DEPTH: bytes a second
    must bench ssd --nvme "$nvme" --block "$block" --depth "$2" --way "$1" --seconds "$seconds" --json
    values "$work/out" mean_bytes_per_s
}
fio_rate write 8 >/dev/null # the file's blocks are there
for round in $(seq "$rounds"); do
    for depth in $depths; do
        for way in read write mixed; do
            if [ $((round % 2)) -eq 0 ]; then
                ours=$(our_rate $way "$depth") theirs=$(fio_rate $way "$depth")
            else
                theirs=$(fio_rate $way "$depth") ours=$(our_rate $way "$depth")
            fi
            echo "$ours $theirs" | awk '{ print $1 / 1e9, $2 / 1e9, $1 / $2 }' >>"$work/$way-$depth"
        done
    done
done
# of COLUMN FILE: median (quartiles).
of() {
    awk -v c="$1" '{ print $c }' "$2" >"$work/column"
    printf '%.2f (%.2f to %.2f)' "$(quartile "$work/column" 0.5)" "$(quartile "$work/column" 0.25)" "$(quartile "$work/column" 0.75)"
}
for depth in $depths; do
    for way in read write mixed; do
        file=$work/$way-$depth
        ratio=$(awk '{ print $3 }' "$file" | median)
        check "$way, $block, $depth deep: ours $(of 1 "$file") GB/s, fio $(of 2 "$file"), ratio $(of 3 "$file"); 0.95 asked" \
            awk -v r="$ratio" 'BEGIN { exit !(r >= 0.95) }'
    done
done
finish
