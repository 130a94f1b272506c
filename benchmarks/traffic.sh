#!/usr/bin/env bash
# At the drive's limit: the chunk traffic of real training steps against what fio reaches in mixed
# traffic just before and just after, with transfers of the same size (a chunk's state) and as many in
# flight in each direction. At least 0.90 is asked.
#
# The steps are those of MODEL at 128 tokens with all state on the drive: the RAM budget is the smallest
# that works. With so few tokens the drive binds while states are updated, which goes on during the
# forward pass, and compute in backward, where little is moved. Counted is the first: in the trace
# (train --trace) from the beginning of the first read of a state in a step to the end of the last
# write of one, all bytes that the lanes ssd_read and ssd_write moved in that time, over that time, with
# all waiting for updates and for kernels in it. A step's rate is that of both directions together; a
# round's is the median of its steps but the first two, over the mean of fio's two rates.
#   ROUNDS (5)  STEPS (8)  SECONDS_EACH (2)  NVME (a folder on the drive)  MODEL (gpt2-124m)  DEPTH (3)
. tests/shared/system.sh
tools/packages.sh fio || { skip "traffic" "fio cannot be installed" && finish; }
rounds=${ROUNDS:-5} steps=${STEPS:-8} seconds=${SECONDS_EACH:-2} nvme=${NVME:-$work}/nvme
model=${MODEL:-gpt2-124m} depth=${DEPTH:-3} block=3M
LIMIT_S=1800
. benchmarks/shared/fio.sh
make_data
mkdir -p "$nvme"
at_exit+=("rm -f '$nvme/fio.dat' '$nvme'/*.state")
common=(--model "$model" --data "$work/data" --nvme "$nvme" --seq 128 --batch 1 --vram-budget "${VRAM:-500M}")
run plan "${common[@]}" --ram-budget 1M
ram=$(least_flag --ram-budget)

# Lines of the trace are in the order of their events' ends. Per step: seconds, bytes read, bytes written.
update_phases() {
    awk '
        function member(name,   rest) {
            rest = substr($0, index($0, "\"" name "\":") + length(name) + 3)
            return rest + 0
        }
        function tell() { if (end > begin) print (end - begin) / 1e6, read, written }
        /"name":"block_backward/ { after_backward = 1 }
        !/"ph":"X"/ { next }
        {
            lane = int(member("tid") / 32)
            if (lane != 3 && lane != 4) next # ssd_read, ssd_write
            bytes = member("bytes"); from = member("ts"); state = bytes > 1048576
            if (lane == 3 && state && (after_backward || !begin)) {
                tell()
                begin = from; end = read = written = r = w = after_backward = 0
            }
            if (!begin) next
            if (lane == 3) r += bytes; else w += bytes
            # What is moved after the last write of a state belongs to what follows.
            if (lane == 4 && state) { end = from + member("dur"); read = r; written = w }
        }' "$1"
}
echo "$model, 128 tokens a step, RAM $ram, state on the drive; fio: $block, $depth deep each way"
fio_rate write 8 >/dev/null # the file's blocks are there
for round in $(seq "$rounds"); do
    before=$(fio_rate mixed "$depth")
    rm -rf "$work/run"
    must train "${common[@]}" --ram-budget "$ram" --out "$work/run" --steps "$steps" --checkpoint-every 0 \
        --trace "$work/trace.json"
    rm -f "$nvme"/*.state
    after=$(fio_rate mixed "$depth")
    # The first group is the second step's, since the first step has no update yet; the last one may be
    # what is pending at the end.
    update_phases "$work/trace.json" | head -n $((steps - 1)) | tail -n +2 >"$work/phases"
    awk '{ print ($2 + $3) / $1 }' "$work/phases" | median >"$work/rate"
    awk -v rate="$(cat "$work/rate")" -v before="$before" -v after="$after" '
        { s += $1; r += $2; w += $3 }
        END { printf "%.2f GB/s (read %.2f, written %.2f) over %.2f s of a step; fio %.2f before, %.2f after; ratio %.3f\n",
            rate / 1e9, r / s / 1e9, w / s / 1e9, s / NR, before / 1e9, after / 1e9, 2 * rate / (before + after) }' \
        "$work/phases" | tee -a "$work/rounds"
done
awk '{ print $NF }' "$work/rounds" >"$work/ratios"
ratio=$(quartile "$work/ratios" 0.5)
check "a step's traffic reaches $ratio ($(quartile "$work/ratios" 0.25) to $(quartile "$work/ratios" 0.75)) of fio's mixed rate; 0.90 asked" \
    awk -v r="$ratio" 'BEGIN { exit !(r >= 0.9) }'
finish
