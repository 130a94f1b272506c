#!/usr/bin/env bash
# Property: a run over two drives is bit for bit the run on one; each drive holds its part; what they
# have no room for is refused before anything is written, naming the flag; a run whose second drive is
# gone is refused with a sentence that names its file, and goes on when the drive is back. The state can
# move from two drives to one and back.
# Method: two small drives of their own (ext4 on loop devices), one of which is unmounted.
. tests/shared/system.sh
make_data
tiny=(train --model gpt-tiny --data "$work/data" --seq 32 --batch 2 --checkpoint-every 1 --steps 60)
must "${tiny[@]}" --out "$work/calm" --nvme "$work/nvme" --resident none
calm=$(mathematics "$work/calm/metrics.jsonl")
hash=$(last_value "$work/calm/metrics.jsonl" weights_hash)

# ends_alike NAME RUN_DIR: it has ended as the undisturbed run did.
ends_alike() {
    run check "$2"
    same "$1: every checksum of the last commit holds" $status 0
    same "$1: the weights are the same" "$(last_value "$2/metrics.jsonl" weights_hash)" "$hash"
    same "$1: so are losses and norms" "$(mathematics "$2/metrics.jsonl")" "$calm"
}

if ! make_drive "$work/a" 96 || ! make_drive "$work/b" 64; then
    skip "two drives" "needs root and loop devices"
    finish
fi
both=$work/a/tier,$work/b/tier
must "${tiny[@]}" --out "$work/run" --nvme "$both" --resident none
ends_alike "two drives" "$work/run"
check "each drive holds a file" test "$(ls "$work/a/tier" | wc -l)" -eq 1 -a "$(ls "$work/b/tier" | wc -l)" -eq 1
run check "$work/run"
check "check tells of both" test "$(grep -c '\.state$' "$work/out")" -eq 2

run plan --model gpt2-124m --nvme "$both" --ram-budget 2G --vram-budget 500M --seq 64
refused "more than both drives hold" 1 'NVMe.*budget|--nvme-budget|free'

must train --resume --out "$work/run" --nvme "$work/a/tier" --steps 61
check "moved to one drive, nothing is left on the other" test "$(ls "$work/b/tier" | wc -l)" -eq 0
must train --resume --out "$work/run" --nvme "$work/b/tier,$work/a/tier" --steps 62
run check "$work/run"
same "moved back: every checksum holds" $status 0
rm -r "$work/run" "$work/a/tier" "$work/b/tier"

"$spillway" "${tiny[@]}" --out "$work/gone" --nvme "$both" --resident none \
    >"$work/out" 2>"$work/err" </dev/null &
stopped=$!
wait_for_steps "$work/gone/metrics.jsonl" 3 $stopped
status=0
kill -INT $stopped && wait $stopped || status=$?
umount "$work/b"
run train --resume --out "$work/gone" --steps 60
refused "a drive that is gone" 1 "$work/b/tier/spillway-.*\.state"
mount -o loop "$work/b.img" "$work/b"
must train --resume --out "$work/gone" --steps 60
ends_alike "a drive that was gone" "$work/gone"
finish
