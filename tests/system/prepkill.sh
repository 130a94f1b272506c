#!/usr/bin/env bash
# Property: a prep that is killed at any moment goes on where it was when it is run again, and ends with
# the files of an undisturbed one, byte for byte: tokens, tokenizer, dataset.json, other trainers' files.
# What is not finished is never taken for data. Other arguments and changed inputs are refused by name;
# --restart begins anew. A signal ends it with the command that goes on; a full drive loses nothing.
# Method: kill -9 after random times, again and again, with a mark after each batch, after some, or none,
# and with one to three threads, until KILLS of them (6 for each kind of input; 50 with SOAK=1) have hit a
# living process.
. tests/shared/system.sh
kills=${KILLS:-$([ -n "${SOAK:-}" ] && echo 50 || echo 6)}
RANDOM=${SEED:-11}

# The same files in both folders, and nothing else, but for the lock.
same_data() { diff -r --exclude=.lock "$1" "$2" >"$work/out"; }
every=(0s 0.02s 0s 10s)

# kill_case NAME ARGUMENT...
kill_case() {
    local name=$1 hit=0 attempt=0 started bad=0 trusted=0 start_ns run_ms
    shift
    rm -rf "$work/calm" "$work/data"
    start_ns=$(date +%s%N)
    must prep "$@" --out "$work/calm" --threads 1 --save-every 0s
    run_ms=$((($(date +%s%N) - start_ns) / 1000000))
    while [ $hit -lt "$kills" ] && [ $attempt -lt $((kills * 20)) ]; do
        attempt=$((attempt + 1))
        "$spillway" prep "$@" --out "$work/data" --threads $((RANDOM % 3 + 1)) \
            --save-every "${every[RANDOM % 4]}" >"$work/out" 2>"$work/err" </dev/null &
        kill_after $((RANDOM * run_ms / 32768 + 1)) $! 2>/dev/null
        grep -h "^Going on" "$work/err" >>"$work/going"
        case $status in
        137) hit=$((hit + 1)) ;;
        0) ;;
        *) bad=$((bad + 1)) && not_ok "$name: run number $attempt" "exit status $status" ;;
        esac
        if [ $status -eq 0 ] || [ -e "$work/data/dataset.json" ]; then
            # It may have died after its last step but one.
            run check "$work/data"
            [ $status -eq 0 ] || trusted=$((trusted + 1))
            rm -rf "$work/data"
        elif [ -d "$work/data" ]; then
            run train --model gpt-tiny --data "$work/data" --seq 32 --batch 2 --steps 1 --out "$work/run"
            [ $status -eq 1 ] && grep -q "is not finished\|holds no prepared data" "$work/err" ||
                trusted=$((trusted + 1))
        fi
    done
    check "$name: $hit kills in $attempt runs" test $hit -ge "$kills" -a $bad -eq 0
    same "$name: nothing unfinished is taken for data" "$trusted" 0
    run prep "$@" --out "$work/data"
    check "$name: it ends well" test $status -eq 0
    check "$name: as if nothing had been" same_data "$work/calm" "$work/data"
}

make_text "$work/some" 3000
cat "$work/some" "$work/some" "$work/some" >"$work/text"
awk '{ if ($0 != "") printf "{\"n\": %d, \"text\": \"%s\"}\n", NR, $0 }' "$work/text" >"$work/lines.jsonl"
gzip -1 -k "$work/lines.jsonl"
mkdir -p "$work/many/deep" "$work/few"
split -a 4 -d -l 10 "$work/some" "$work/few/part"
cp "$work"/few/part000* "$work/many/deep"
mv "$work"/few/part00[1-4]* "$work/many"
gzip "$work/many"/part001*
head -c 200 "$work/many/part0020" >"$work/many/empty"
: >"$work/many/empty"
printf 'a\0b' >"$work/many/binary"
common=(--vocab-size 600 --val-fraction 0.1)

kill_case "paragraphs of a file" "$work/text" --split blank "${common[@]}"
kill_case "one document" "$work/text" "${common[@]}" --shard-format nanogpt
cp -r "$work/calm" "$work/tokens"
kill_case "a compressed file and a folder with weights" "$work/lines.jsonl.gz:0.7" "$work/many:0.3" "${common[@]}"
kill_case "a folder, with a tokenizer and another trainer's files" "$work/many" "$work/few" \
    --tokenizer "$work/tokens" --shard-format megatron --val-fraction 0.2
kill_case "nothing to validate with" "$work/lines.jsonl" --vocab-size 600 --val-fraction 0
kill_case "tokens of another trainer" "$work/tokens/train.bin" "$work/tokens/val.bin" --format nanogpt \
    --tokenizer "$work/tokens"

sort "$work/going" | uniq -c
check "preps went on in the middle of their tokens" grep -q "were being written" "$work/going"

# ---- Other arguments, other inputs ----
# begin ARGUMENT...: a prep that is ended by a signal once it has set a mark.
begin() {
    rm -rf "$work/data"
    "$spillway" prep "$@" --out "$work/data" --save-every 0s --threads 1 >"$work/out" 2>"$work/err" </dev/null &
    local pid=$! seen
    until [ -e "$work/data/unfinished/state.json" ] || ! kill -0 $pid 2>/dev/null; do :; done
    kill -"${signal:-INT}" $pid 2>/dev/null
    status=0
    wait $pid || status=$?
}
lines=("$work/lines.jsonl" "${common[@]}")
begin "${lines[@]}"
refused "a signal ends it" 1 "stopped by signal 2.*the same command goes on"
command=$(sed -n 's/^.*To go on: spillway //p' "$work/err")
check "$last_name: with the command that goes on" test -n "$command"
check "$last_name: the folder is unfinished" test -e "$work/data/unfinished/state.json" -a ! -e "$work/data/dataset.json"
run train --model gpt-tiny --data "$work/data" --seq 32 --batch 2 --steps 1 --out "$work/run"
refused "train refuses what is not finished" 1 "is not finished.*goes on where it was"
run prep "${lines[@]}" --out "$work/data" --seed 3
refused "another seed" 1 "--seed was 0 there and is 3.*--restart"
run prep "$work/text" "${common[@]}" --out "$work/data"
refused "another input" 1 "input 1 was .*lines.jsonl there and is .*text.*--restart"
touch "$work/lines.jsonl"
run prep "${lines[@]}" --out "$work/data"
refused "an input that was written to" 1 "lines.jsonl has changed.*written to.*--restart"
echo '{"text": "voda"}' >>"$work/lines.jsonl"
run prep "${lines[@]}" --out "$work/data"
refused "an input that has grown" 1 "lines.jsonl has changed.*it had [0-9]+ bytes then and has [0-9]+ now"
check "$last_name: and what was done is still there" test -e "$work/data/unfinished/state.json"
must prep "${lines[@]}" --out "$work/calm2"
run prep "${lines[@]}" --out "$work/data" --restart
check "--restart begins anew" test $status -eq 0
check "--restart: and is as if nothing had been" same_data "$work/calm2" "$work/data"

signal=TERM begin "${lines[@]}"
command=$(sed -n 's/^.*To go on: spillway //p' "$work/err")
run $command
check "the command that was printed ends well" test $status -eq 0
check "and goes on where it was" grep -q "^Going on where a prep was ended" "$work/err"
check "$last_name: as if nothing had been" same_data "$work/calm2" "$work/data"

# Weights that are left out, a name with an apostrophe, and a folder of the same name as prep's own.
weighted=("$work/lines.jsonl.gz" "$work/many")
begin "${weighted[0]}:0.7" "${weighted[1]}:0.3" "${common[@]}"
run prep "${weighted[@]}" "${common[@]}" --out "$work/data"
refused "weights that are left out" 1 "weight 1 was 0.[0-9]* there and is none.*--restart"
cp "$work/lines.jsonl" "$work/it's.jsonl"
begin "$work/it's.jsonl" "${common[@]}"
eval "run $(sed -n 's/^.*To go on: spillway //p' "$work/err")"
check "a command with an apostrophe goes on" test $status -eq 0
rm -rf "$work/data"
mkdir -p "$work/data/unfinished"
echo mine >"$work/data/unfinished/mine"
must prep "${lines[@]}" --out "$work/data"
check "what somebody else keeps in a folder named unfinished stays" grep -q mine "$work/data/unfinished/mine"
# The folder that is written to may lie in the one that is read, and holds no text.
mkdir "$work/whole" && cp "$work/lines.jsonl" "$work/whole"
must prep "$work/whole" "${common[@]}" --out "$work/calm3"
for again in first second; do
    run prep "$work/whole" "${common[@]}" --out "$work/whole/data" --force
    check "its own folder is no text of a prep, $again time" same_data "$work/calm3/train.tok" "$work/whole/data/train.tok"
done
run prep "$work/whole" "${common[@]}" --out "$work/whole"
refused "the folder that is read is not written to" 1 "give another one to --out"

# Replacing: what was there stays whole until there is something else.
begin "$work/many" --force "${common[@]}"
cp -r "$work/calm2/." "$work/data"
run prep "$work/many" "${common[@]}" --out "$work/data"
refused "data that is there is not replaced without --force" 1 "--force"
printf '{"text": ' >"$work/data/unfinished/state.json"
run prep "$work/many" "${common[@]}" --out "$work/data" --force
refused "a state that is damaged" 1 "state.json.*"

# Standard input comes once.
mkfifo "$work/pipe"
rm -rf "$work/data"
"$spillway" prep - "${common[@]}" --out "$work/data" --save-every 0s >"$work/out" 2>"$work/err" <"$work/pipe" &
pid=$!
exec 9>"$work/pipe"
cat "$work/text" >&9
kill -INT $pid
exec 9>&-
status=0
wait $pid || status=$?
refused "standard input cannot be gone on with" 1 "standard input cannot be read again, so begin anew"
check "$last_name: and nothing is left" test ! -e "$work/data/unfinished"

# ---- A full drive ----
if make_drive "$work/small" 32; then
    need=$(($(stat -c %s "$work/lines.jsonl") + $(stat -c %s "$work/calm2/train.tok")))
    head -c $(($(df --output=avail -B 1 "$work/small" | tail -n 1) - need * 3 / 4)) /dev/zero \
        >"$work/small/ballast"
    run prep "${lines[@]}" --out "$work/small/data" --save-every 0s
    check "a full drive is one sentence" test $status -eq 1 -a "$(grep -c '^spillway: ' "$work/err")" -eq 1
    check "$last_name: about space" grep -qi "space\|room" "$work/err"
    rm "$work/small/ballast"
    run prep "${lines[@]}" --out "$work/small/data" --save-every 0s
    check "with room it goes on" test $status -eq 0
    check "and it did go on" grep -q "Going on where" "$work/err"
    check "as if nothing had been" same_data "$work/calm2" "$work/small/data"
else
    skip "a full drive" "needs root and a loop device"
fi
finish
