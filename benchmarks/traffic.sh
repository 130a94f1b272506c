#!/usr/bin/env bash
# At the drive's limit: the chunk traffic of real training steps against what fio reaches in mixed
# traffic just before and just after, with transfers of the same size (a chunk's state), as many in
# flight in each direction, and as many reads among them as a step has (a little more than half). At
# least 0.90 is asked. A step needs the cores too, so this is to be run when nothing else does.
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
fio_rate write 8 >/dev/null # the file's blocks are there
# train_steps N: leaves what update_phases tells of steps 3 to N in $work/phases. The first line is the
# second step's, since the first step has no update yet; the last is what is pending at the end.
train_steps() {
    rm -rf "$work/run"
    must train "${common[@]}" --ram-budget "$ram" --out "$work/run" --steps "$1" --checkpoint-every 0 \
        --trace "$work/trace.json"
    rm -f "$nvme"/*.state
    update_phases "$work/trace.json" | head -n $(($1 - 1)) | tail -n +2 >"$work/phases"
}
train_steps 3
reads=$(awk '{ r += $2; w += $3 } END { printf "%.0f", 100 * r / (r + w) }' "$work/phases")
mixed_rate() { fio_rate mixed "$depth" --rwmixread="$reads"; }
echo "$model, 128 tokens a step, RAM $ram, state on the drive, $reads % of its traffic are reads; fio: $block, $depth deep each way"
for round in $(seq "$rounds"); do
    before=$(mixed_rate)
    train_steps "$steps"
    after=$(mixed_rate)
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
