# fio.sh: the drive's rate by fio, at its best; sourced after tests/shared/system.sh, with nvme, block
# and seconds set. The file is $nvme/fio.dat; the first call makes it.

# fio_rate read|write|mixed DEPTH [OPTION...]: bytes a second, of both directions together.
fio_rate() {
    local way=$1 depth=$2
    [ "$way" != mixed ] || { way=rw && depth=$((2 * depth)); }
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 fio --name=drive --filename="$nvme/fio.dat" --size=1G --rw=$way \
        --rwmixread=50 --bs="$block" --iodepth=$depth --ioengine=io_uring --direct=1 --fixedbufs=1 \
        --registerfiles=1 --iodepth_batch_complete_max=$depth --mem=malloc --iomem_align=2M --thread=1 --runtime="$seconds" --time_based \
        --output-format=json "${@:3}" >"$work/fio.json" 2>"$work/fio.err"
    sed -n 's/.*"bw_bytes" : \([0-9]*\).*/\1/p' "$work/fio.json" | head -n 2 | awk '{ n += $1 } END { print n }'
}
