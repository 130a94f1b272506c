#!/usr/bin/env bash
# Property: what surrounds a run may be strange, and nothing is lost or silent for it: standard streams
# that are closed or full, a limit on the size of files, options that no float holds, a commit that
# vanished, the rest of a kept copy or of a move that a kill cut short.
# Method: each is arranged once; the program's status, its sentence and the files are looked at.
. tests/shared/system.sh
make_data
tiny=(train --model gpt-tiny --data "$work/data" --seq 32 --batch 2 --steps 2)

# ---- Options ----
# expect_usage NAME PATTERN ARGUMENT...
expect_usage() {
    run "${tiny[@]}" --out "$work/none" "${@:3}"
    refused "$1" 2 "$2"
}
expect_usage "an --eps that is 0 as a float" '--eps' --eps 1e-300
expect_usage "an --eps that is infinite as a float" '--eps' --eps 1e300
expect_usage "a --clip that is 0 as a float" '--clip' --clip 1e-300
expect_usage "an --lr that is infinite as a float" '--lr' --lr 1e300
expect_usage "more --steps than can be recorded" '--steps' --steps 9223372036854775808
expect_usage "a --warmup that means nothing given" '--warmup' --warmup 18446744073709551615
run "${tiny[@]}" --out "$work/none" --ram-budget 0
refused "a RAM budget of nothing" 1 '--ram-budget [0-9]+M$'

# ---- Standard streams and limits ----
"$spillway" "${tiny[@]}" --steps 1000000 --out "$work/closed" <&- >&- 2>&- &
closed=$!
wait_for_steps "$work/closed/metrics.jsonl" 1 $closed
for fd in 0 1 2; do
    same "no file of the run is taken for the closed stream $fd" \
        "$(readlink /proc/$closed/fd/$fd)" /dev/null
done
kill -TERM $closed
status=0
wait $closed || status=$?
same "without standard streams: trained" $status 0
run check "$work/closed"
same "and the run is whole" $status 0
status=0
"$spillway" check "$work/closed" >/dev/full 2>"$work/err" || status=$?
refused "results that cannot be written" 1 'standard output.*No space'
status=0
(ulimit -f 64 && exec "$spillway" "${tiny[@]}" --out "$work/limited") >"$work/out" 2>"$work/err" || status=$?
refused "a limit on the size of files" 1 'state.bin'

# ---- A run's folder ----
must "${tiny[@]}" --out "$work/run" --nvme "$work/nvme" --checkpoint-every 1 --keep-every 1 --trace "$work/trace"
mkdir "$work/run/kept/step-00000009"
: >"$work/run/kept/step-00000009/state.bin"
run check "$work/run"
same "the rest of a kept copy is no damage" $status 0
check "but is told" grep -q 'step-00000009' "$work/out"
: >"$work/run/state.bin"
rm "$work/trace"
mv "$work/data" "$work/moved"
must train --resume --out "$work/run" --data "$work/moved" --steps 3
ok "data that was moved is found again with --data"
check "what a move of the state left is removed" test ! -e "$work/run/state.bin"
check "a trace is of the call that asks for it" test ! -e "$work/trace"
mv "$work/run/commit.json" "$work/commit.json"
run train --resume --out "$work/run" --steps 4
refused "a commit that is told of and gone" 1 'commit.json'
run "${tiny[@]}" --data "$work/moved" --out "$work/run"
refused "its folder for another run" 1 'commit.json'
mv "$work/commit.json" "$work/run/commit.json"
must train --resume --out "$work/run" --steps 4
ok "and the commit put back goes on"
mkdir "$work/hf" && : >"$work/hf/config.json.new.tmp"
run export --run "$work/run" --out "$work/hf"
same "an export that was killed at once is made again" $status 0
check "and leaves nothing of it" test ! -e "$work/hf/config.json.new.tmp"

# The device is part of a run's mathematics: auto, given again, is what it was; another one is refused.
device=(train --model gpt-tiny --data "$work/moved" --out "$work/device" --seq 32 --batch 2)
must "${device[@]}" --device auto --steps 2
must "${device[@]}" --device auto --steps 3 --resume
check "auto is recorded as what it was" grep -qE '"device": "(cpu|cuda:0)"' "$work/device/config.json"
run "${device[@]}" --device cuda:7 --steps 4 --resume
refused "another device than the run had" 1 "--device"
finish
