#!/usr/bin/env bash
# Property: kill -9 at any moment loses nothing that was committed, and what follows --resume is
# bit for bit the run that was never disturbed: the same losses, gradient norms and weights_hash.
# With --nvme-slots 1 there is no such promise, but nothing is silent: what was killed in a step is
# refused, and a copy that was kept goes on bit for bit.
# Method: a run of 12 steps with a commit at each is killed after a random time, from before its
# first commit to its last steps, and resumed, again and again, until KILLS kills have hit a living
# process (10; 50 with SOAK=1). All state is on the drive, and again with some of it in RAM.
. tests/shared/system.sh
make_data
kills=${KILLS:-$([ -n "${SOAK:-}" ] && echo 50 || echo 10)}
steps=12
RANDOM=${SEED:-7}
common=(train --model gpt-tiny --data "$work/data" --seq 64 --batch 4 --accum 2 --steps $steps
    --checkpoint-every 1)

# kill_case NAME ARGUMENT...
kill_case() {
    local name=$1 calm=$work/calm run_dir=$work/run hit=0 attempt=0 start_ns run_ms bad=0
    shift
    rm -rf "$calm" "$run_dir"
    start_ns=$(date +%s%N)
    must "${common[@]}" --nvme "$work/nvme-calm${second:+,$work/calm-$second}" "$@" --out "$calm"
    run_ms=$((($(date +%s%N) - start_ns) / 1000000))
    while [ $hit -lt "$kills" ] && [ $attempt -lt $((kills * 20)) ]; do
        attempt=$((attempt + 1))
        # Each round begins anew or goes on from what the last kill left, as a die says.
        [ $((RANDOM % 3)) -ne 0 ] || rm -rf "$run_dir" "$work"/nvme-run "$work"/run-*
        "$spillway" "${common[@]}" --nvme "$work/nvme-run${second:+,$work/run-$second}" "$@" --out "$run_dir" --resume \
            >"$work/out" 2>"$work/err" </dev/null &
        kill_after $((RANDOM * run_ms / 32768 + 1)) $! 2>/dev/null
        case $status in
        137) hit=$((hit + 1)) ;;
        0) rm -rf "$run_dir" "$work"/nvme-run "$work"/run-* ;;
        *) bad=$((bad + 1)) && not_ok "$name: resume number $attempt" "exit status $status" ;;
        esac
    done
    check "$name: $hit kills in $attempt runs" test $hit -ge "$kills" -a $bad -eq 0
    must "${common[@]}" --nvme "$work/nvme-run${second:+,$work/run-$second}" "$@" --out "$run_dir" --resume
    same "$name: the weights are those of the undisturbed run" \
        "$(last_value "$run_dir/metrics.jsonl" weights_hash)" \
        "$(last_value "$calm/metrics.jsonl" weights_hash)"
    same "$name: so are the losses and norms, each step once" \
        "$(mathematics "$run_dir/metrics.jsonl")" "$(mathematics "$calm/metrics.jsonl")"
    same "$name: $steps steps" "$(values "$run_dir/metrics.jsonl" loss | wc -l)" $steps
    run check "$run_dir"
    check "$name: every checksum holds" test $status -eq 0
    rm -rf "$work"/nvme-* "$work"/run-* "$work"/calm-*
}
second= # the name of another folder, as on another drive
kill_case "all on the drive" --resident none
second=drive kill_case "on two drives" --resident none
# Evaluations lie between a step's end and its commit, and here take most of the time.
kill_case "all in RAM, evaluating each step" --eval-every 1

one=("${common[@]}" --resident none --lr-steps $steps --out "$work/one" --nvme "$work/nvme-one" --nvme-slots 1
    --checkpoint-every 0 --keep-every 2)
must "${one[@]}" --steps 4
check "one slot: train says what it means" grep -q "no crash safety" "$work/err"
same "one slot: half the space of two" "$(($(stat -c %s "$work"/nvme-one/*.state) * 2))" \
    "$(must "${common[@]}" --resident none --steps 0 --out "$work/two" --nvme "$work/nvme-two" &&
        stat -c %s "$work"/nvme-two/*.state)"
"$spillway" "${one[@]}" --resume --steps 1000000 --keep-every 0 >"$work/out" 2>"$work/err" </dev/null &
pid=$!
wait_for_steps "$work/one/metrics.jsonl" 7 $pid
kill -KILL $pid
wait $pid 2>/dev/null
run "${one[@]}" --resume
refused "one slot: killed in a step, it is refused" 1 "commit of step 4 .* overwritten in part.*/kept/step-00000004$"
run check "$work/one"
refused "one slot: check says the same" 1 "overwritten in part"
run train --resume --out "$work/one/kept/step-00000004" --steps $steps
same "one slot: the copy goes on bit for bit" \
    "$(last_value "$work/one/kept/step-00000004/metrics.jsonl" weights_hash)" \
    "$(last_value "$work/calm/metrics.jsonl" weights_hash)"
run "${one[@]}" --nvme-slots 3
refused "--nvme-slots is 1 or 2" 2 "--nvme-slots is 3; it may be 1 to 2"
finish
