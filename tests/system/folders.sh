#!/usr/bin/env bash
# Property: a run's folder may be copied and renamed, and no other run loses its state by that. Each
# copy is resumed; afterwards every checksum of the original still holds, and the copy has done what
# the original would have done (its weights_hash says so).
. tests/shared/system.sh
make_data
common=(--model gpt-tiny --data "$work/data" --seq 32 --batch 2 --checkpoint-every 2)
hash_of() { last_value "$1/metrics.jsonl" weights_hash; }
whole() {
    run check "$1"
    check "$2" test $status -eq 0
}

# The state in the run's own folder.
must train "${common[@]}" --out "$work/run" --steps 4 --lr-steps 6 --warmup 0 --keep-every 2
must train "${common[@]}" --out "$work/same" --steps 6 --lr-steps 6 --warmup 0
expected=$(hash_of "$work/same")
cp -r "$work/run" "$work/copy"
must train --resume --out "$work/copy" --steps 6
same "a copy of a run goes on as the run would" "$(hash_of "$work/copy")" "$expected"
whole "$work/run" "the run that was copied is whole"
cp -r "$work/run/kept/step-00000002" "$work/branch"
must train --resume --out "$work/branch" --steps 6
same "a copy of a kept commit goes on as the run would" "$(hash_of "$work/branch")" "$expected"
whole "$work/run" "the run whose kept commit was copied is whole"
mv "$work/run" "$work/renamed"
whole "$work/renamed" "a renamed run is whole"
must train --resume --out "$work/renamed" --steps 6
same "and goes on" "$(hash_of "$work/renamed")" "$expected"

# The state on a drive that several runs share.
drive=(--nvme "$work/nvme" --resident none)
must train "${common[@]}" --out "$work/far" --steps 4 --lr-steps 6 --warmup 0 "${drive[@]}"
cp -r "$work/far" "$work/far-copy"
must train --resume --out "$work/far-copy" --steps 6
same "a copy of a run on a drive goes on as the run would" "$(hash_of "$work/far-copy")" "$expected"
whole "$work/far" "the run on a drive that was copied is whole"
mv "$work/far" "$work/far-old"
must train "${common[@]}" --out "$work/far" --steps 2 "${drive[@]}" --seed 5
whole "$work/far-old" "a renamed run is whole though another has its name now"
must train --resume --out "$work/far-old" --steps 6
same "and goes on" "$(hash_of "$work/far-old")" "$expected"
whole "$work/far" "the run that has its name is whole"
must train --resume --out "$work/far" --steps 3 --nvme "$work/nvme2"
check "a run that moves takes its file along" test "$(ls "$work/nvme" | wc -l)" -eq 3

# Another text and tokenizer: refused before anything of the run is touched.
make_text "$work/text2" 150
must prep "$work/text2" --out "$work/data2" --vocab-size 400
sums() { (cd "$work/renamed" && find . -type f ! -name .lock -exec sha256sum {} + | sort); }
before=$(sums)
run train --model gpt-tiny --data "$work/data2" --out "$work/renamed" --seq 32 --batch 2 --steps 8
refused "a run is not begun anew by accident" 1 'already holds a run'
mv "$work/data" "$work/data1"
mv "$work/data2" "$work/data"
run train --resume --out "$work/renamed" --steps 8
refused "a run does not go on with another tokenizer" 1 'another tokenizer'
same "and nothing of it has changed" "$(sums)" "$before"
mv "$work/data" "$work/data2"
mv "$work/data1" "$work/data"

# A model that --model describes by a file, which is then written anew with other heads: the run has
# what it needs in its own folder.
model() {
    echo "{\"model_type\": \"gpt2\", \"n_layer\": 2, \"n_embd\": 64, \"n_head\": $1," \
        "\"n_positions\": 64, \"vocab_size\": 512}" >"$work/model.json"
}
described=(--model "$work/model.json" --data "$work/data" --seq 32 --batch 2 --warmup 0 --lr-steps 6)
model 2
must train "${described[@]}" --out "$work/straight" --steps 6
must train "${described[@]}" --out "$work/stopped" --steps 3
model 4
must train --resume --out "$work/stopped" --steps 6
same "a run goes on with the model that it began with" \
    "$(hash_of "$work/stopped")" "$(hash_of "$work/straight")"
must train --resume --out "$work/stopped" --epochs 1 --max-time 1s
check "--epochs counts when a run goes on" grep -q 'from step 6 to [1-9][0-9]' "$work/err"
run train "${described[@]}" --out "$work/seeded" --steps 1 --seed 18446744073709551615
refused "a seed that cannot be recorded" 2 'seed'

# What a run computes with is under a hash of its own, and is not made up when it is gone.
must train "${common[@]}" --out "$work/sealed" --steps 2 --lr-steps 6
cp "$work/sealed/config.json" "$work/original"
sed -i 's/"seed": 1/"seed": 3/' "$work/sealed/config.json"
run train --resume --out "$work/sealed" --steps 4
refused "a run whose config.json was edited" 1 'config.json is damaged or was edited'
run check "$work/sealed"
check "and check tells" test $status -eq 1
rm "$work/sealed/config.json"
run train --resume "${common[@]}" --seed 3 --out "$work/sealed" --steps 4
refused "a run that has a commit and no config.json" 1 'has a commit but no config.json'
cp "$work/original" "$work/sealed/config.json"
must train --resume --out "$work/sealed" --steps 4

# Folders given relative to another place.
spillway_path=$(realpath "$spillway")
(cd "$work" && "$spillway_path" train "${common[@]:0:2}" --data data --nvme near --out relative \
    --seq 32 --batch 2 --steps 2 --lr-steps 6 >/dev/null 2>&1)
mkdir -p "$work/elsewhere"
(cd "$work/elsewhere" && "$spillway_path" train --resume --out ../relative --steps 4 >out 2>err)
check "a run is resumed from another folder" test $? -eq 0
check "and its state stays where it is" test ! -e "$work/elsewhere/near"

# The run's folder and the drive on file systems of different kinds: one has what the other lacks to
# copy a commit within the kernel.
if [ "$(stat -f -c %T /dev/shm 2>/dev/null)" = tmpfs ] && [ -w /dev/shm ]; then
    shm=$(mktemp -d /dev/shm/spillway-system-XXXXXX)
    at_exit+=("rm -rf '$shm'")
    must train "${common[@]}" --out "$shm/run" --steps 4 --keep-every 2 "${drive[@]}"
    whole "$shm/run/kept/step-00000002" "a commit is kept on a file system of another kind"
else
    skip "a commit is kept on a file system of another kind" "there is no tmpfs at /dev/shm"
fi
finish
