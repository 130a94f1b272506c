#!/usr/bin/env bash
# Property: bad input is one clear sentence on stderr and exit status 1 (2 for the command line), no
# crash, and nothing half-written that a later run would trust.
# Method: each kind of bad input that a user meets, made for real: files cut short, folders on tmpfs
# and on full and read-only drives, a lock that a live run holds, a kernel that forbids io_uring (a
# seccomp filter). What needs root is skipped without it, saying so.
. tests/shared/system.sh
make_data
tiny=(train --model gpt-tiny --data "$work/data" --seq 32 --batch 2 --steps 2)
# No commit in the folder: a later --resume would have nothing to trust.
no_commit() { [ ! -e "$1/commit.json" ] && [ -z "$(find "$1" -name '*.tmp' 2>/dev/null)" ]; }
# No finished data in the folder.
no_data() { [ ! -e "$1/train.tok" ] && [ ! -e "$1/dataset.json" ]; }

# ---- The command line ----
for line in "" "trian" "train" "train --model gpt-tiny" "train --stepz 3" "train --steps" \
    "train --steps x" "train --steps -3" "prep" "sample" "eval" "export" "check" "data" \
    "train --model gpt-tiny --data d --out o --ram-budget 12Q" \
    "train --model gpt-tiny --data d --out o --optimizer-state 4bit" \
    "train --model gpt-tiny --data d --out o --precision fp8"; do
    run $line
    if [ $status -eq 2 ] && [ -s "$work/err" ]; then ok "status 2: spillway $line"; else
        not_ok "status 2: spillway $line" "exit status $status"
    fi
done
for command in prep train plan sample eval export check; do
    run $command --help
    check "$command --help shows an example" grep -q "spillway $command" "$work/out"
done

# ---- prep ----
run prep "$work/none" --out "$work/d1"
refused "text that is missing" 1 "$work/none"
check "$last_name: nothing is written" no_data "$work/d1"
: >"$work/empty"
run prep "$work/empty" --out "$work/d2"
refused "text that is empty" 1 "empty|no text"
check "$last_name: nothing is written" no_data "$work/d2"
{ head -c 40000 "$work/text"; printf '\377\376\200\0\301\277'; tail -c 40000 "$work/text"; } >"$work/bytes"
run prep "$work/bytes" --out "$work/d3" --vocab-size 400
check "invalid UTF-8 is kept as bytes" test $status -eq 0
run check "$work/d3"
check "invalid UTF-8: the shards verify" test $status -eq 0
gzip -c "$work/text" | head -c 10000 >"$work/cut.gz"
run prep "$work/cut.gz" --out "$work/d4" --vocab-size 400
refused "a compressed text that is cut off" 1 "cut.gz is damaged at byte 10000"
check "$last_name: nothing is written" no_data "$work/d4"
mkdir -p "$work/tree/deep"
cp "$work/text" "$work/cut.gz" "$work/tree/"
ln -s .. "$work/tree/deep/loop"
ln -s nowhere "$work/tree/deep/dangling"
printf 'a\0b' >"$work/tree/binary"
mkfifo "$work/tree/pipe"
run prep "$work/tree" --out "$work/d5" --vocab-size 400
check "a folder with links in a loop, a pipe, a binary and a damaged file" test $status -eq 0
check "$last_name: what is left out is told" grep -q "cut.gz is damaged at byte 10000" "$work/err"
printf '{"text": "%s"}\nno json\n{"a": 1}\n' "$(head -c 2000 "$work/text" | tr -d '"\\\n')" >"$work/lines.jsonl"
run prep "$work/lines.jsonl" --out "$work/d6" --vocab-size 300
check "lines that are no JSON are counted" grep -q "malformed *1 " "$work/out"
run prep "$work/lines.jsonl" --out "$work/d7" --text-field body
refused "lines without the field" 1 "--text-field"
run prep - --out "$work/d8"
refused "standard input that is empty" 1 "no text"
# A line of a gigabyte (nothing of it is on the drive) costs no more memory than others, and no other line.
printf '{"text": "voda a strom"}\n{"text": "' >"$work/long.jsonl"
truncate -s 1G "$work/long.jsonl"
printf '"}\n{"text": "les a reka"}\n' >>"$work/long.jsonl"
if ! is_sanitized && make_group $((192 << 20)); then
    run_in_group prep "$work/long.jsonl" --out "$work/d9" --vocab-size 260 --ram-budget 160M --threads 2
    last_name="a line of a gigabyte in 192 MiB"
    check "$last_name" test $status -eq 0
    check "$last_name: it is counted" grep -q "too long *1 " "$work/out"
    check "$last_name: the others are there" grep -q "documents *2\$" "$work/out"
    same "$last_name: no kill for want of memory" "$(group_oom_kills)" 0
    rmdir "$group"
else
    skip "a line of a gigabyte" "no memory cgroup may be made here, or a sanitizer's build"
fi
rm -f "$work/long.jsonl"
# Files and folders that may not be read; root may read all, so somebody else runs it.
mkdir -p "$work/closed/folder" "$work/theirs"
cp "$work/text" "$work/closed/open"
cp "$work/text" "$work/closed/folder/inside"
cp "$work/text" "$work/closed/file"
chmod 000 "$work/closed/file" "$work/closed/folder"
as_other=()
! is_root || as_other=(setpriv --reuid 65534 --regid 65534 --clear-groups)
chmod 755 "$work"
chmod 777 "$work/theirs"
if "${as_other[@]}" "$spillway" --version >"$work/out" 2>&1 && "${as_other[@]}" test -r "$work/closed/open"; then
    status=0
    "${as_other[@]}" "$spillway" prep "$work/closed" --out "$work/theirs/d" --vocab-size 400 \
        >"$work/out" 2>"$work/err" </dev/null || status=$?
    check "files that may not be read are left out" test $status -eq 0
    check "and told" grep -q "1 file cannot be read and was left out.*closed/file" "$work/err"
    check "as are folders" grep -q "1 folder cannot be read.*closed/folder" "$work/err"
    status=0
    "${as_other[@]}" "$spillway" prep "$work/closed/file" --out "$work/theirs/e" >"$work/out" 2>"$work/err" \
        </dev/null || status=$?
    refused "a named file that may not be read" 1 "closed/file.*ermission"
else
    skip "files that may not be read" "another user cannot come to the program or to TMPDIR"
fi
chmod -R u+rwX "$work/closed"
# Token files are mapped into memory: what is cut off while they are read is no crash.
head -c 256M /dev/zero | tr '\0' '\1' >"$work/long.bin"
"$spillway" prep "$work/long.bin" --format nanogpt --tokenizer "$work/data" --out "$work/d10" --save-every 0s \
    >"$work/out" 2>"$work/err" </dev/null &
pid=$!
size=0
until [ "${size:-0}" -gt 1000000 ] || ! kill -0 $pid 2>/dev/null; do
    size=$(stat -c %s "$work/d10/train.tok.tmp" 2>/dev/null)
done
: >"$work/long.bin"
status=0
wait $pid || status=$?
refused "a token file that shrinks while it is read" 1 "made shorter while it was being read"
check "$last_name: nothing is taken for data" no_data "$work/d10"
if is_root && mkdir -p "$work/readonly" && mount --bind "$work/readonly" "$work/readonly" 2>/dev/null; then
    at_exit+=("umount -l '$work/readonly'")
    mount -o remount,bind,ro "$work/readonly"
    run prep "$work/text" --out "$work/readonly/data" --vocab-size 400
    refused "prep to a read-only folder" 1 "readonly"
    run "${tiny[@]}" --out "$work/readonly/run"
    refused "a run in a read-only folder" 1 "readonly"
    run "${tiny[@]}" --out "$work/r1" --nvme "$work/readonly" --resident none
    refused "an NVMe folder that is read-only" 1 "readonly"
    check "$last_name: no commit is left" no_commit "$work/r1"
else
    skip "read-only folders" "needs root"
fi

# ---- train: data and model ----
run "${tiny[@]}" --data "$work/none" --out "$work/r2"
refused "data that is missing" 1 "$work/none"
cp -r "$work/data" "$work/cut"
truncate -s -100 "$work/cut/train.tok"
run "${tiny[@]}" --data "$work/cut" --out "$work/r3"
refused "a shard that was cut short" 1 "train.tok"
check "$last_name: no commit is left" no_commit "$work/r3"
run check "$work/cut"
refused "check finds it too" 1 "train.tok"
cp -r "$work/data" "$work/flipped"
printf '\1' | dd of="$work/flipped/train.tok" bs=1 seek=6001 conv=notrunc status=none
printf '\2' | dd of="$work/flipped/train.tok" bs=1 seek=6003 conv=notrunc status=none
run check "$work/flipped"
refused "check finds changed tokens" 1 "train.tok"
run "${tiny[@]}" --model gpt-tinny --out "$work/r4"
refused "an unknown model" 1 "gpt-tiny"
echo '{"model_type": "gpt2", "n_layer": ' >"$work/bad.json"
run "${tiny[@]}" --model "$work/bad.json" --out "$work/r5"
refused "a model file that is no JSON" 1 "bad.json"
echo '{"model_type": "gpt2", "n_layer": 0, "n_embd": 7, "n_head": 2, "n_positions": 64, "vocab_size": 512}' \
    >"$work/bad.json"
run "${tiny[@]}" --model "$work/bad.json" --out "$work/r6"
refused "a model that makes no sense" 1 "bad.json|n_embd|n_layer"
mkdir -p "$work/hf-empty"
run "${tiny[@]}" --model "$work/hf-empty" --out "$work/r7"
refused "a Hugging Face folder with nothing in it" 1 "hf-empty"
run "${tiny[@]}" --seq 2000 --out "$work/r8"
refused "sequences longer than the model knows" 1 "seq"

# ---- train: the drive ----
mkdir -p "$work/tmpfs"
if is_root && mount -t tmpfs -o size=64m tmpfs "$work/tmpfs" 2>/dev/null; then
    at_exit+=("umount -l '$work/tmpfs'")
    run "${tiny[@]}" --out "$work/r9" --nvme "$work/tmpfs" --resident none
    refused "an NVMe folder on tmpfs" 1 "tmpfs.*O_DIRECT.*/var/tmp"
    check "$last_name: no commit is left" no_commit "$work/r9"
else
    skip "an NVMe folder on tmpfs" "needs root"
fi
if make_drive "$work/small" 8; then
    run "${tiny[@]}" --out "$work/r10" --nvme "$work/small" --resident none
    refused "an NVMe drive that is too small" 1 "small"
    check "$last_name: no commit is left" no_commit "$work/r10"
    check "$last_name: the drive is as empty as before" test "$(find "$work/small" -type f -size +1M | wc -l)" -eq 0
else
    skip "an NVMe drive that is too small" "needs root and a loop device"
fi
# The filter answers io_uring_setup (425 on every architecture) with EPERM.
cat >"$work/forbid.pl" <<'P'
my @code = ([0x20, 0, 0, 0], [0x15, 0, 1, 425], [0x06, 0, 0, 0x00050001], [0x06, 0, 0, 0x7fff0000]);
my $code = join '', map { pack 'SCCL', @$_ } @code;
my $program = pack 'S x6 P', scalar @code, $code;
my $prctl = `uname -m` =~ /aarch64/ ? 167 : 157;
syscall($prctl, 38, 1, 0, 0, 0) == 0 && syscall($prctl, 22, 2, $program) == 0 or exit 99;
exec @ARGV;
P
status=0
perl "$work/forbid.pl" "$spillway" "${tiny[@]}" --out "$work/r11" --nvme "$work/nvme" --resident none \
    >"$work/out" 2>"$work/err" </dev/null || status=$?
if [ $status -eq 99 ]; then skip "io_uring that is forbidden" "no seccomp filters here"; else
    refused "io_uring that is forbidden" 1 "forbids io_uring"
    check "$last_name: no commit is left" no_commit "$work/r11"
fi

# ---- Runs ----
must "${tiny[@]}" --out "$work/good" --nvme "$work/nvme-good" --resident none
hash=$(last_value "$work/good/metrics.jsonl" weights_hash)
run "${tiny[@]}" --out "$work/good" --nvme "$work/nvme-good"
refused "a folder that holds a run, without --resume" 1 "resume"
echo '{"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 64, "vocab_size": 512}' \
    >"$work/other.json"
run "${tiny[@]}" --model "$work/other.json" --out "$work/good" --nvme "$work/nvme-good" --resume
refused "a checkpoint of another model" 1 "model"
run "${tiny[@]}" --seed 99 --out "$work/good" --nvme "$work/nvme-good" --resume
refused "a resume with another seed" 1 "seed"
run "${tiny[@]}" --optimizer-state 8bit --out "$work/good" --nvme "$work/nvme-good" --resume
refused "a resume with moments of another kind" 1 "optimizer-state"
run "${tiny[@]}" --pack within --out "$work/good" --nvme "$work/nvme-good" --resume
refused "a resume with sequences packed otherwise" 1 "pack"
run check "$work/good"
check "the refused resumes left the run whole" test $status -eq 0
same "and its weights" "$(last_value "$work/good/metrics.jsonl" weights_hash)" "$hash"
run sample --run "$work/none" --prompt x
refused "sample of a run that is missing" 1 "$work/none"
run eval --run "$work/good" --data "$work/none"
refused "eval on data that is missing" 1 "$work/none"
run export --run "$work/none" --out "$work/hf"
refused "export of a run that is missing" 1 "$work/none"
check "$last_name: nothing is written" test ! -e "$work/hf/model.safetensors"
run check "$work/none"
refused "check of a folder that is missing" 1 "$work/none"

# A flipped bit in the state file: told with file and offset, by check and by --resume.
state=$(find "$work/good" "$work/nvme-good" -type f -size +1M | head -n 1)
if [ -n "$state" ]; then
    for at in 1 3 5 7 9 11 13 15; do # one of them lies in the committed slot, wherever that is
        offset=$(($(stat -c %s "$state") * at / 16))
        byte=$(dd if="$state" bs=1 skip=$offset count=1 status=none | od -An -tu1 | tr -d ' ')
        printf "\\$(printf %o $((byte ^ 4)))" |
            dd of="$state" bs=1 seek=$offset conv=notrunc status=none
    done
    run check "$work/good"
    refused "flipped bits are found by check" 1 "$(basename "$state")"
    run "${tiny[@]}" --out "$work/good" --nvme "$work/nvme-good" --resume --steps 4
    refused "flipped bits are found by --resume" 1 "$(basename "$state")"
    run export --run "$work/good" --out "$work/hf-flipped"
    refused "flipped bits are found by export" 1 "$(basename "$state")"
    check "and nothing is exported" test ! -e "$work/hf-flipped/model.safetensors"
else
    not_ok "flipped bits" "no state file was found"
fi
finish
