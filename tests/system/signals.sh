#!/usr/bin/env bash
# Property: a long run is looked after (DESIGN section 6). SIGINT and SIGTERM finish the step,
# commit and print the command that resumes, and that command goes on bit for bit; a second signal
# quits at once and loses nothing committed; --max-time ends by itself; --eval-every and --keep-every
# do what they say; a loss that is not finite stops the run with its last commit intact; sample, eval and export work on a running RUN; two trainers never share one.
# Method: signals are sent when metrics.jsonl shows that a step was done, never after a time.
. tests/shared/system.sh
make_data
steps=14
common=(train --model gpt-tiny --data "$work/data" --seq 32 --batch 2 --steps $steps)
must "${common[@]}" --out "$work/calm" --nvme "$work/nvme-calm"
calm_hash=$(last_value "$work/calm/metrics.jsonl" weights_hash)

# start ARGUMENT...: a run that lasts until it is ended, in the background as $pid; waits for its
# second step. Not to be compared with the calm run: the schedule depends on --steps.
# Its output is kept apart from that of what runs beside it.
start() {
    rm -rf "$work/run" "$work/nvme"
    "$spillway" "${common[@]}" --out "$work/run" --nvme "$work/nvme" --steps 1000000 "$@" \
        >"$work/first.out" 2>"$work/first.err" </dev/null &
    pid=$!
    wait_for_steps "$work/run/metrics.jsonl" 2 $pid
}
ended() {
    status=0
    wait $pid || status=$?
}

for signal in INT TERM; do
    start
    kill -$signal $pid
    ended
    check "SIG$signal ends well" test $status -eq 0
    done_steps=$(values "$work/run/metrics.jsonl" loss | wc -l)
    same "SIG$signal commits the last step" \
        "$(last_value "$work/run/metrics.jsonl" commit)" \
        "$(values "$work/run/metrics.jsonl" step | tail -n 1)"
    resume=$(grep -ho 'spillway train .*--resume.*' "$work/first.out" "$work/first.err" | tail -n 1)
    check "SIG$signal prints the command that resumes" test -n "$resume"
    run check "$work/run"
    check "SIG$signal after $done_steps steps leaves every checksum right" test $status -eq 0
done

# The printed command is bit for bit the run that was not stopped. Its steps are long, so that the
# signal comes in time.
long=("${common[@]}" --seq 64 --batch 8 --accum 8)
must "${long[@]}" --out "$work/long" --nvme "$work/nvme-long"
long_hash=$(last_value "$work/long/metrics.jsonl" weights_hash)
for arguments in "--resident none" "--vram-budget 64M"; do
    rm -rf "$work/run" "$work/nvme"
    "$spillway" "${long[@]}" $arguments --out "$work/run" --nvme "$work/nvme" \
        >"$work/out" 2>"$work/err" </dev/null &
    pid=$!
    wait_for_steps "$work/run/metrics.jsonl" 2 $pid
    kill -TERM $pid 2>/dev/null
    ended
    stopped_at=$(last_value "$work/run/metrics.jsonl" step)
    check "$arguments: stopped before its end (at $stopped_at)" test "$stopped_at" -lt $steps
    resume=$(grep -ho 'spillway train .*--resume.*' "$work/out" "$work/err" | tail -n 1)
    ${resume/#spillway/"$spillway"} >"$work/out" 2>"$work/err" </dev/null
    check "$arguments: the printed command runs" test $? -eq 0
    same "$arguments: stopped and resumed is the undisturbed run" \
        "$(last_value "$work/run/metrics.jsonl" weights_hash)" "$long_hash"
    same "$arguments: so are its losses and norms" \
        "$(mathematics "$work/run/metrics.jsonl")" "$(mathematics "$work/long/metrics.jsonl")"
done
run train --out "$work/run" --resume
check "a finished run resumes with status 0" test $status -eq 0
same "and changes nothing" "$(last_value "$work/run/metrics.jsonl" weights_hash)" "$long_hash"

# Two signals in a row: quit, whatever is in flight.
# Often, but not faster than a reader can follow.
start --checkpoint-every 10
wait_for_steps "$work/run/metrics.jsonl" 12 $pid
kill -INT $pid
kill -INT $pid 2>/dev/null
ended
check "a second signal ends the run" test $status -ne 137
run check "$work/run"
check "a second signal leaves whole commits" test $status -eq 0

run "${common[@]}" --out "$work/timed" --nvme "$work/nvme-timed" --steps 1000000 --max-time 2s
check "--max-time ends well" test $status -eq 0
same "--max-time commits the last step" "$(last_value "$work/timed/metrics.jsonl" commit)" \
    "$(values "$work/timed/metrics.jsonl" step | tail -n 1)"

run "${common[@]}" --out "$work/evals" --nvme "$work/nvme-evals" --eval-every 5
same "--eval-every 5 evaluates at steps 5 and 10 and at no other before the end" \
    "$(grep val_loss "$work/evals/metrics.jsonl" | sed -n 's/.*"step": *\([0-9]*\).*/\1/p' | head -n 2 | tr '\n' ' ')" "5 10 "
same "evaluations leave the training alone" \
    "$(last_value "$work/evals/metrics.jsonl" weights_hash)" "$calm_hash"

run "${common[@]}" --out "$work/kept" --nvme "$work/nvme-kept" --checkpoint-every 2 --keep-every 4
check "--keep-every ends well" test $status -eq 0
same "--keep-every leaves the training alone" \
    "$(last_value "$work/kept/metrics.jsonl" weights_hash)" "$calm_hash"

# Without clipping the update is part of backward, so the sentence is another there.
for clip in 1.0 0; do
    run "${common[@]}" --out "$work/wild-$clip" --nvme "$work/nvme-wild" --lr 1e30 --clip $clip \
        --warmup 0 --steps 100 --checkpoint-every 1
    refused "--clip $clip: what is not finite ends the run, naming the step" 1 \
        "of step [0-9]+ is not finite.*commit.* is intact"
    run check "$work/wild-$clip"
    check "and the last commit is whole" test $status -eq 0
done

same "--keep-every 4 keeps steps 4, 8 and 12" "$(ls "$work/kept/kept" | tr '\n' ' ')" \
    "step-00000004 step-00000008 step-00000012 "
hash_of_step() { sed -n "s/.*\"commit\": $1, .*\"weights_hash\": \"\([0-9a-f]*\)\".*/\1/p" "$2"; }
for step in 4 8; do
    folder=$work/kept/kept/step-0000000$step
    run check "$folder"
    check "the kept commit of step $step is whole" test $status -eq 0
    run sample --run "$folder" --prompt "voda" --tokens 4
    check "and can be sampled" test $status -eq 0
    run export --run "$folder" --out "$work/hf-kept"
    run train --model "$work/hf-kept" --data "$work/data" --out "$work/from-kept" --steps 0
    same "and holds the weights of step $step" \
        "$(hash_of_step 0 "$work/from-kept/metrics.jsonl")" \
        "$(hash_of_step $step "$work/kept/metrics.jsonl")"
    rm -rf "$work/hf-kept" "$work/from-kept"
done

# Often, but not faster than a reader can follow.
start --checkpoint-every 10
wait_for_steps "$work/run/metrics.jsonl" 12 $pid
run sample --run "$work/run" --prompt "voda" --tokens 8
check "sample works on a running RUN" test $status -eq 0
run eval --run "$work/run" --data "$work/data"
check "eval works on a running RUN" test $status -eq 0
run export --run "$work/run" --out "$work/hf-running"
check "export works on a running RUN" test $status -eq 0
run "${common[@]}" --out "$work/run" --nvme "$work/nvme" --resume
refused "a second trainer of a running RUN is refused" 1 "process $pid"
check "and the first goes on" kill -0 $pid
kill -TERM $pid
ended
check "it ends well" test $status -eq 0
finish
