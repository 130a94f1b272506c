#!/usr/bin/env bash
# Property: a run says what its drive and the kernel offered; a drive that fills up in the middle of a
# run, or stops to answer, ends it with a sentence, with the last commit intact, and what follows
# --resume is the run that was never disturbed, bit for bit.
# Method: the run's folder is on a small drive of its own (an ext4 on a loop device), which is filled
# to the last byte while the run goes on; with SOAK=1, since it takes over a minute, it is also frozen
# (fsfreeze), so that writes never come back until it is thawed.
. tests/shared/system.sh
make_data
tiny=(train --model gpt-tiny --data "$work/data" --seq 128 --batch 4 --checkpoint-every 1 --steps 150)
must "${tiny[@]}" --out "$work/calm" --nvme "$work/nvme" --resident none
calm=$(mathematics "$work/calm/metrics.jsonl")
hash=$(last_value "$work/calm/metrics.jsonl" weights_hash)
check "what the kernel offered is said" grep -q '^io_uring: .*registered buffer.*registered file.*memlock limit' "$work/err"
check "and what the drive offered" grep -qE '^.*nvme/spillway-.*\.state: .*(aligned|alignment|page cache).*poll' "$work/err"

# goes_on NAME RUN_DIR: resumed, it ends as the undisturbed run did.
goes_on() {
    run check "$2"
    same "$1: every checksum of the last commit holds" $status 0
    must train --resume --out "$2"
    same "$1: resumed, it ends at the same weights" "$(last_value "$2/metrics.jsonl" weights_hash)" "$hash"
    same "$1: with the same losses and norms" "$(mathematics "$2/metrics.jsonl")" "$calm"
}

if ! make_drive "$work/small" 96; then
    skip "a drive that fills up" "needs root and a loop device"
    finish
fi
"$spillway" "${tiny[@]}" --out "$work/small/run" --nvme "$work/small/nvme" --resident none \
    >"$work/out" 2>"$work/err" </dev/null &
filled=$!
wait_for_steps "$work/small/run/metrics.jsonl" 3 $filled
# It stands still meanwhile, or it might be done before the drive is full.
kill -STOP $filled
cat /dev/zero >"$work/small/fill" 2>"$work/cat.err"
kill -CONT $filled
status=0
wait $filled || status=$?
refused "a drive that fills up" 1 "$work/small/run.*(free|space)"
rm "$work/small/fill"
goes_on "$last_name" "$work/small/run"

if [ -n "${SOAK:-}" ]; then
    rm -r "$work/small/run" "$work/small/nvme"
    "$spillway" "${tiny[@]}" --out "$work/frozen" --nvme "$work/small/nvme" --resident none \
        >"$work/out" 2>"$work/err" </dev/null &
    frozen=$!
    wait_for_steps "$work/frozen/metrics.jsonl" 3 $frozen
    fsfreeze -f "$work/small"
    at_exit+=("fsfreeze -u '$work/small' 2>/dev/null")
    timeout 120 tail -s 0.1 -n +1 -F "$work/err" 2>/dev/null | grep -m 1 '^spillway: ' >"$work/said"
    fsfreeze -u "$work/small"
    status=0
    wait $frozen || status=$?
    refused "a drive that stops to answer" 1 'cannot write .*at offset [0-9]+: the drive has not answered for 60 s'
    goes_on "$last_name" "$work/frozen"
fi
finish
