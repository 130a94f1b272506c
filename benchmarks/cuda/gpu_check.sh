#!/usr/bin/env bash
# gpu_check.sh OUT: everything that only a GPU can show, in one table, in under 8 minutes (make gpu-check).
# Needs a CUDA device, nvcc and what the build needs; no network (NO_INSTALL=1 leaves packages alone).
#   1 build for this card    2 the CUDA tests with CUDA's own libraries, against float64 and the CPU device
#   3 whole runs: losses against the CPU's, bits of placements, a kill and its resume
#   4 kernels beside their limits, PCIe    5 this machine's profile by spillway bench
#   6 steps: resident, and with VRAM for less than the model, beside the plan's bound and PyTorch
#   7 compute-sanitizer over the small tests, beside 2, for neither measures time
# Each stage has a limit of its own and ends with what is left of all; what is cut off or left out is a row
# that says so. OUT/gpu-check.md has the table, OUT/gpu-check.log what everything printed.
#
# Exits 1 where there is no CUDA device or a row says FAILED. A target of speed that is missed is a row.
#   SECONDS_ALL (470)  STEP_MODELS ("gpt2-124m:8:1024 gpt2-1558m:4:1024", model:batch:seq)  BUDGET (12G)
#   UPDATE_MODEL (gpt2-124m:1:512)  TIER_MODEL (gpt-mini:2:128)  SHAPE (1558m, of bench_gpu)  FLAVOUR (real: CUDA's libraries; plain: the
#   emulated card of the tests, where no figure means anything)  ONLY (numbers of stages; all)
set -uo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."
[ $# -eq 1 ] && [ -n "$1" ] || { echo "usage: benchmarks/cuda/gpu_check.sh OUT" >&2 && exit 2; }
begin=$(date +%s)
mkdir -p "$1" && out=$(realpath "$1") || exit 1
log=$out/gpu-check.log rows=$out/.rows
seconds_all=${SECONDS_ALL:-470} flavour=${FLAVOUR:-real} budget=${BUDGET:-12G} only=${ONLY:-1 2 3 4 5 6 7}
build=build/release part=build/release/cuda/$flavour
SPILLWAY=$build/spillway
[ "$flavour" = real ] || SPILLWAY=$part/spillway
: >"$log"
: >"$rows"
device= cpu=unknown status=0 cut=

# ---- Rows and time ---------------------------------------------------------------------------------

# row CHECK FIGURE LIMIT RATIO VERDICT
row() {
    printf '%s\t%s\t%s\t%s\t%s\n' "$1" "${2:--}" "${3:--}" "${4:--}" "$5" >>"$rows"
    printf '%-52s %-28s %s\n' "$1" "${2:--}" "$5"
}
left() { echo $((begin + seconds_all - $(date +%s))); }
wanted() { case " $only " in *" $1 "*) true ;; *) false ;; esac; }

# limited SECONDS COMMAND...: sets status, and cut: empty, own (its own limit ended it) or all (the
# limit of everything did, or left no time to begin).
limited() {
    local most=$1 rest limit
    shift
    rest=$(left)
    cut=all status=124
    [ "$rest" -ge 3 ] || return 0
    limit=$((most < rest ? most : rest))
    echo "== $*" >>"$log"
    status=0
    timeout -k 5 "$limit" "$@" || status=$?
    case $status in
    124 | 137) if [ "$limit" -eq "$most" ]; then cut=own; else cut=all; fi ;;
    *) cut= ;;
    esac
}
# What became of a command that had to succeed: said SENTENCE
verdict() {
    if [ "$cut" = all ]; then
        echo "SKIPPED: no time is left of $seconds_all s"
    elif [ "$cut" = own ]; then
        echo "FAILED: it did not end"
    elif [ "$status" -eq 0 ]; then
        echo ok
    else
        echo "FAILED: ${1:-exit status $status}"
    fi
}
sentence() { grep -v '^$' "$1" 2>/dev/null | tail -n 1 | tr '\t' ' ' | sed 's/^spillway: //' | cut -c 1-220; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "-" }'; }
# at_least RATIO TARGET, at_most RATIO TARGET: ok or MISSED
at_least() { awk -v r="$1" -v t="$2" 'BEGIN { if (r >= t) print "ok"; else print "MISSED: at least " t " is asked for" }'; }
at_most() { awk -v r="$1" -v t="$2" 'BEGIN { if (r <= t) print "ok"; else print "MISSED: at most " t " is asked for" }'; }

write_table() {
    {
        echo "# gpu-check of $(date -u +%Y-%m-%d)"
        echo
        echo "- device: ${device:-none}"
        echo "- driver: $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | grep . || echo unknown)"
        echo "- processor: $cpu"
        echo "- commit: $(git rev-parse --short HEAD 2>/dev/null || echo unknown); $(($(date +%s) - begin)) s in all"
        [ "$flavour" = real ] || echo "- an emulated card: no figure of speed means anything"
        echo
        echo "| check | figure | limit or peer | ratio | verdict |"
        echo "|---|---|---|---|---|"
        tr '|' '/' <"$rows" | sed 's/\t/ | /g; s/^/| /; s/$/ |/'
    } >"$out/gpu-check.md"
}
# The table is written whatever ends the script.
close_table() {
    write_table
    rm -f "$rows"
    echo
    cat "$out/gpu-check.md"
    echo
    echo "written: $out/gpu-check.md; what was printed: $log"
}
no_device() {
    echo "gpu-check: $1" >&2
    rm -f "$rows" "$log"
    rmdir "$out" 2>/dev/null
    exit 1
}

# ---- 1 The device and the build --------------------------------------------------------------------

# The sentence of `spillway devices` where it says that there is none.
absence() { "$SPILLWAY" devices 2>&1 | sed -n 's/^cuda *none: //p'; }
has_driver() {
    [ -e /dev/nvidiactl ] || [ -e /dev/dxg ] || command -v nvidia-smi >/dev/null ||
        ldconfig -p 2>/dev/null | grep -q 'libcuda\.so'
}
build_all() {
    local arch wanted=() nvcc
    nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
    arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -dc 0-9)
    if [ -n "$arch" ] && "$nvcc" --list-gpu-code 2>/dev/null | grep -qx "sm_$arch"; then
        wanted=("CUDA_WANTED=$arch")
    fi
    # Without what a make that runs this script hands down: it would build one file at a time.
    limited 240 env -u MAKELEVEL -u MAKEFLAGS -u MFLAGS NO_INSTALL="${NO_INSTALL-1}" make all cuda-real ${wanted[@]+"${wanted[@]}"} >>"$log" 2>&1
    row "build with nvcc${arch:+ for sm_$arch}" "$(($(date +%s) - begin)) s" "" "" "$(verdict "see gpu-check.log")"
    [ "$status" -eq 0 ] || { tail -n 20 "$log" >&2 && close_table && exit 1; }
}
if [ "$flavour" = real ]; then
    none=
    [ ! -x "$SPILLWAY" ] || none=$(absence)
    case $none in *"no CUDA device"*) no_device "$none" ;; esac
    has_driver || no_device "there is no CUDA device here: no driver is installed"
    wanted 1 && build_all
fi
none=$(absence)
[ -z "$none" ] || no_device "$none"
device=$("$SPILLWAY" devices | sed -n 's/^cuda:0 *//p')
cpu=$("$SPILLWAY" devices | sed -n 's/^cpu *//p')
# A card of 12 GB has less than that free.
fit_budget() {
    local free
    free=$(sed -n 's/.*, \([0-9.]*\) GiB free.*/\1/p' <<<"$device")
    [ -n "$free" ] || return 0
    budget=$(awk -v asked="$(numfmt --from=iec "$budget")" -v free="$free" 'BEGIN {
        most = (free - 0.6) * 2 ^ 30
        printf "%.0fM", (asked < most ? asked : most) / 2 ^ 20 }')
    case $budget in *M) [ $((${budget%M} % 1024)) -ne 0 ] || budget=$((${budget%M} / 1024))G ;; esac
}
fit_budget
export SPILLWAY
. tests/shared/system.sh
at_exit+=(close_table)
export XDG_CONFIG_HOME=$work/config # no profile but the one made here
trap 'echo "gpu-check: stopped" >&2; exit 1' INT TERM

# ---- 2 The tests -----------------------------------------------------------------------------------

cases() { sed -n "s/^\[  $1 *\] \([0-9]*\) test(s).*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'; }

# The cases that failed and the first error; or the last line.
what_failed() {
    local names first
    names=$(sed -n 's/^\[  FAILED  \] \(test_[a-z0-9_]*\)$/\1/p' "$1" | sort -u | paste -sd ' ')
    first=$(grep -m 1 -A 1 'ERROR' "$1" | tr '\t\n' '  ' | cut -c 1-160)
    if [ -n "$names$first" ]; then echo "${names:+$names: }$first"; else sentence "$1"; fi
}
# test_binary NAME SECONDS COMMAND...: a row from cmocka's counts.
test_binary() {
    local name=$1 seconds=$2 said
    shift 2
    limited "$seconds" env TMPDIR="$work" SPILLWAY="$spillway" CMOCKA_MESSAGE_OUTPUT=stdout "$@" >"$work/test" 2>&1 </dev/null
    cat "$work/test" >>"$log"
    said=$(verdict "$(what_failed "$work/test")")
    [ "$said" != ok ] || [ "$(cases PASSED "$work/test")" -gt 0 ] || said="FAILED: no case ran"
    row "$name" "$(cases PASSED "$work/test") passed, $(cases FAILED "$work/test") failed, $(cases SKIPPED "$work/test") skipped" \
        "float64, CPU device" "" "$said"
}
stage_tests() {
    local source name
    for source in ${TESTS:-tests/cuda/test_*.c}; do
        name=$(basename "$source" .c)
        [ "$name" != test_emulation ] || continue
        test_binary "$name" 100 "$part/$name"
    done
}

# ---- 3 Whole runs ----------------------------------------------------------------------------------

# trained NAME ARGUMENT...: a run of the tier model in $work/NAME, its end as a row if it is not good.
trained() {
    local name=$1
    shift
    rm -rf "$work/$name"
    limited 60 "$spillway" train "${tier[@]}" --out "$work/$name" "$@" >"$work/out" 2>"$work/err" </dev/null
    cat "$work/err" >>"$log"
    [ "$status" -eq 0 ] || row "training: $name" "" "" "" "$(verdict "$(sentence "$work/err")")"
    [ "$status" -eq 0 ]
}
# same_bits NAME A B: losses, norms and the last weights of two runs.
same_bits() {
    local a=$work/$2/metrics.jsonl b=$work/$3/metrics.jsonl said="FAILED: the bits differ"
    [ -n "$(mathematics "$a")" ] && [ "$(mathematics "$a")" = "$(mathematics "$b")" ] &&
        [ "$(last_value "$a" weights_hash)" = "$(last_value "$b" weights_hash)" ] && said=ok
    row "$1" "$(values "$b" loss | wc -l) steps" "the bits of $2" "" "$said"
}
# The smallest budgets that work: $1 (more arguments follow) is the run's name.
trained_least() {
    local name=$1 ram=1M vram=1M try value
    shift
    for try in 1 2 3 4 5 6 7 8; do
        limited 60 "$spillway" train "${tier[@]}" --out "$work/$name" --ram-budget $ram --vram-budget $vram "$@" \
            >"$work/out" 2>"$work/err" </dev/null
        [ "$status" -eq 1 ] || break
        value=$(least_flag --vram-budget)
        if [ -n "$value" ]; then vram=$value; else
            value=$(least_flag --ram-budget)
            [ -n "$value" ] || break
            # What drivers take of the process is not the same from one start to the next.
            ram=$(($(bytes_of "$value") / 1048576 + 64))M
        fi
        rm -rf "$work/$name"
    done
    cat "$work/err" >>"$log"
    least="$ram of RAM, $vram of VRAM"
    [ "$status" -eq 0 ] || row "training: $name" "$least" "" "" "$(verdict "$(sentence "$work/err")")"
    [ "$status" -eq 0 ]
}
killed_and_resumed() {
    local pid
    rm -rf "$work/killed"
    "$spillway" train "${tier[@]}" --device cuda --vram-budget "$budget" --checkpoint-every 2 --out "$work/killed" \
        >"$work/out" 2>"$work/err" </dev/null &
    pid=$!
    LIMIT_S=60 wait_for_steps "$work/killed/metrics.jsonl" $((tier_steps / 2)) $pid
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    limited 60 "$spillway" train --resume --out "$work/killed" >"$work/out" 2>"$work/err" </dev/null
    cat "$work/err" >>"$log"
    if [ "$status" -eq 0 ]; then same_bits "killed with -9 and resumed" card killed; else
        row "killed with -9 and resumed" "" "" "" "$(verdict "$(sentence "$work/err")")"
    fi
}
# The largest difference of two runs' losses.
furthest() {
    paste <(values "$work/$1/metrics.jsonl" loss) <(values "$work/$2/metrics.jsonl" loss) |
        awk '{ d = $1 - $2; if (d < 0) d = -d; if (d > m) m = d } END { printf "%.2g", m }'
}
stage_runs() {
    local model batch seq difference said
    IFS=: read -r model batch seq <<<"${TIER_MODEL:-gpt-mini:2:128}"
    tier_steps=${TIER_STEPS:-20}
    tier=(--model "$model" --data "$work/data" --precision fp32 --seq "$seq" --batch "$batch" --accum 2
        --steps "$tier_steps" --checkpoint-every 0)
    trained cpu --device cpu || return
    trained card --device cuda --vram-budget "$budget" || return
    difference=$(furthest card cpu)
    said=$(awk -v d="$difference" 'BEGIN { if (d <= 1e-4) print "ok"; else print "FAILED: at most 1e-4 is asked for" }')
    row "losses of $tier_steps steps, card against CPU (fp32)" "$difference" "1e-4" "" "$said"
    trained again --device cuda --vram-budget "$budget" && same_bits "the same run again" card again
    trained_least least --device cuda && same_bits "placement: $least" card least
    trained_least drive --device cuda --nvme "$work/nvme" --resident none &&
        same_bits "placement: state on the drive, $least" card drive
    rm -rf "$work/nvme"
    killed_and_resumed
}

# ---- 4 and 5 Kernels, and this machine's profile ---------------------------------------------------

# benched PART SECONDS ARGUMENT...: that part's figures into OUT/machine.json.
benched() {
    local name=$1 seconds=$2 said
    shift 2
    limited $((3 * seconds + 20)) "$spillway" bench "$name" "$@" --seconds "$seconds" --out "$out/machine.json" \
        >"$work/out" 2>"$work/err" </dev/null
    cat "$work/out" "$work/err" >>"$log"
    said=$(verdict "$(sentence "$work/err")")
    row "spillway bench $name${*:+ $*}" "" "" "" "$said"
}
stage_profile() {
    rm -f "$out/machine.json"
    benched ram 4
    benched optimizer 4
    benched pcie 4 --device cuda
    [ "$flavour" != real ] || benched compute 20 --device cuda
    [ ! -s "$out/machine.json" ] || profile=(--machine "$out/machine.json")
}

stage_kernels() {
    local name value unit limit of said
    limited 80 "$part/bench_gpu" "${SHAPE:-1558m}" >"$work/kernels" 2>"$work/err"
    said=$(verdict "$(sentence "$work/err")")
    while IFS=$'\t' read -r name value unit limit of; do
        if [ "$limit" = - ]; then row "$name" "$value $unit" "" "" ok; else
            row "$name" "$value $unit" "$limit $unit, $of" "$(ratio "$value" "$limit")" ok
        fi
    done <"$work/kernels"
    [ "$said" = ok ] || row "kernels" "" "" "" "$said"
    attention_rows
}
# Ours beside PyTorch's at the same shape (bench_gpu's): which of them to call is not known before this.
attention_rows() {
    local batch=8 heads=25 ours name theirs
    [ "${SHAPE:-1558m}" != 124m ] || { batch=16 heads=12; }
    limited 40 python3 benchmarks/cuda/gpu_attention_peer.py --batch $batch --heads $heads --seq 1024 --depth 64 \
        >"$work/peer" 2>"$work/err" </dev/null
    cat "$work/peer" "$work/err" >>"$log"
    [ "$status" -eq 0 ] || { row "attention beside PyTorch's" "" "" "" "SKIPPED: PyTorch: $(sentence "$work/err")" && return; }
    while IFS=$'\t' read -r name theirs; do
        ours=$(awk -F'\t' -v name="${name%, *}" '$1 == name { print $2 }' "$work/kernels")
        case $theirs in
        *[!0-9.]*) row "$name" "" "" "" "SKIPPED: $theirs" ;;
        *) row "${name%, *}, beside PyTorch's" "$ours TFLOP/s" "$theirs TFLOP/s, ${name##*, }" "$(ratio "$ours" "$theirs")" ok ;;
        esac
    done <"$work/peer"
}

# ---- 6 Steps ---------------------------------------------------------------------------------------

# steps_of NAME MODEL BATCH SEQ SECONDS ARGUMENT...: trains until STEPS steps are logged, then ends it
# (a last commit of 19 GB is no step). Leaves tokens_s, step_s, bound_s, lane; fails with a row.
steps_of() {
    local name=$1 model=$2 batch=$3 seq=$4 seconds=$5 pid rest metrics seen said
    shift 5
    metrics=$work/run/metrics.jsonl rest=$(left)
    [ "$rest" -gt 10 ] || { row "$name" "" "" "" "SKIPPED: no time is left of $seconds_all s" && return 1; }
    rm -rf "$work/run"
    "$spillway" train --model "$model" --data "$work/data" --out "$work/run" --device cuda --precision bf16 \
        --batch "$batch" --seq "$seq" --steps 1000 --lr-steps 1000 --checkpoint-every 0 \
        ${profile[@]+"${profile[@]}"} "$@" >"$work/out" 2>"$work/err" </dev/null &
    pid=$!
    LIMIT_S=$((seconds < rest ? seconds : rest)) wait_for_steps "$metrics" "$step_count" $pid
    kill -KILL $pid 2>/dev/null
    status=0
    wait $pid 2>/dev/null || status=$?
    cat "$work/out" "$work/err" >>"$log"
    seen=$(grep -c '"loss"' "$metrics" 2>/dev/null)
    if [ "${seen:-0}" -lt 4 ]; then
        said=$(sentence "$work/err")
        case "$status $said" in
        137*) row "$name" "${seen:-0} steps" "" "" "SKIPPED: too few steps in $seconds s" ;;
        # What is refused for want of memory or space, and nothing else.
        1\ *-budget* | 1\ *" free"*) row "$name" "" "" "" "SKIPPED: $said" ;;
        *) row "$name" "" "" "" "FAILED: exit status $status: $said" ;;
        esac
        return 1
    fi
    grep '"loss"' "$metrics" | tail -n +4 >"$work/lines"
    [ -s "$work/lines" ] || grep '"loss"' "$metrics" | tail -n 1 >"$work/lines"
    step_s=$(values "$work/lines" step_s | median) bound_s=$(values "$work/lines" bound_s | median)
    tokens_s=$(awk -v s="$step_s" -v n=$((batch * seq)) 'BEGIN { printf "%.0f", n / s }')
    lane=$(last_value "$work/lines" bound_lane)
}
# peer MODEL BATCH SEQ: PyTorch's tokens/s in peer_s, or why not in peer_why.
peer() {
    local shape
    peer_s= peer_why=
    [ -n "$torch" ] || { peer_why="SKIPPED: no PyTorch" && return; }
    case $1 in
    gpt2-124m) shape="--layers 12 --channels 768 --heads 12" ;;
    gpt2-355m) shape="--layers 24 --channels 1024 --heads 16" ;;
    gpt2-774m) shape="--layers 36 --channels 1280 --heads 20" ;;
    gpt2-1558m) shape="--layers 48 --channels 1600 --heads 25" ;;
    *.json) shape="--layers $(values "$1" n_layer) --channels $(values "$1" n_embd) --heads $(values "$1" n_head)" ;;
    *) peer_why="SKIPPED: PyTorch does not have the shape of $1" && return ;;
    esac
    limited 90 python3 benchmarks/cuda/gpu_peer.py $shape --batch "$2" --seq "$3" --steps 20 --seconds 20 \
        >"$work/peer" 2>"$work/err" </dev/null
    cat "$work/peer" "$work/err" >>"$log"
    if [ "$status" -eq 0 ]; then read -r peer_s _ <"$work/peer"; else
        case "$cut $status" in
        all*) peer_why="SKIPPED: no time is left for PyTorch" ;;
        own*) peer_why="SKIPPED: PyTorch did not end in 90 s" ;;
        *) peer_why="SKIPPED: PyTorch: $(sentence "$work/err")" ;;
        esac
    fi
}
resident_row() {
    local name="$(basename "$1" .json), resident: $2 x $3 tokens, bf16"
    steps_of "$name" "$1" "$2" "$3" 90 || return
    cp "$work/run/metrics.jsonl" "$work/resident"
    peer "$1" "$2" "$3"
    if [ -n "$peer_s" ]; then
        row "$name" "$tokens_s tokens/s" "$peer_s tokens/s, PyTorch" "$(ratio "$tokens_s" "$peer_s")" \
            "$(at_least "$(ratio "$tokens_s" "$peer_s")" 1.0)"
    else
        row "$name" "$tokens_s tokens/s" "PyTorch" "" "$peer_why"
    fi
}
budget_row() {
    local name="$(basename "$1" .json), $budget of VRAM: $2 x $3 tokens, bf16"
    steps_of "$name" "$1" "$2" "$3" 90 --vram-budget "$budget" || return
    row "$name" "$tokens_s tokens/s, $step_s s" "$bound_s s, the plan's bound ($lane)" "$(ratio "$step_s" "$bound_s")" \
        "$(at_most "$(ratio "$step_s" "$bound_s")" 1.15)"
    [ ! -s "$work/resident" ] || steps_bits "$(basename "$1" .json): losses with $budget of VRAM" "the bits of the resident run"
}
# steps_bits NAME WHOSE: the run's losses beside those in the file `resident`; one may have gone further.
steps_bits() {
    local shared said
    shared=$(paste <(mathematics "$work/resident") <(mathematics "$work/run/metrics.jsonl") | awk -F'\t' 'NF == 6' | tee "$work/shared" | wc -l)
    said=$(awk -F'\t' '$1 != $4 || $2 != $5 || $3 != $6 { bad = 1 } END { if (bad || !NR) print "FAILED: the bits differ"; else print "ok" }' "$work/shared")
    row "$1" "$shared steps" "$2" "" "$said"
}
# State in RAM, updated by the CPU and streamed through the card to be: the same bits, and which is faster.
update_row() {
    local name="$(basename "$1" .json), state in RAM streamed to be updated: $2 x $3 tokens" cpu_s auto_s
    steps_of "$name" "$1" "$2" "$3" 30 --resident all --update cpu || return
    cp "$work/run/metrics.jsonl" "$work/resident"
    cpu_s=$step_s
    steps_of "$name" "$1" "$2" "$3" 30 --resident all --update auto || return
    auto_s=$step_s
    steps_of "$name" "$1" "$2" "$3" 30 --resident all --update device || return
    row "$name" "$step_s s" "$cpu_s s, by the CPU" "$(ratio "$cpu_s" "$step_s")" ok
    row "$(basename "$1" .json): the planner's split of updates" "$auto_s s" "$cpu_s s, by the CPU" "$(ratio "$cpu_s" "$auto_s")" ok
    steps_bits "$(basename "$1" .json): losses with streamed updates" "the bits of the CPU's"
}
stage_steps() {
    local each model batch seq
    torch=$(limited 60 python3 -c 'import torch; print(torch.__version__)' 2>/dev/null | tail -n 1)
    step_count=${STEP_COUNT:-12}
    for each in ${STEP_MODELS:-gpt2-124m:8:1024 gpt2-1558m:4:1024}; do
        IFS=: read -r model batch seq <<<"$each"
        rm -f "$work/resident"
        resident_row "$model" "$batch" "$seq"
        budget_row "$model" "$batch" "$seq"
        rm -rf "$work/run"
    done
    IFS=: read -r model batch seq <<<"${UPDATE_MODEL:-gpt2-124m:1:512}"
    update_row "$model" "$batch" "$seq"
}

# ---- 7 compute-sanitizer ---------------------------------------------------------------------------

# sanitized TOOL NAME COMMAND...
sanitized() {
    local tool=$1 name=$2 summary said
    shift 2
    limited 40 env TMPDIR="$work" GPU_TESTS_SMALL=1 "$sanitizer" --tool "$tool" --error-exitcode 9 "$@" \
        >"$work/sanitized" 2>&1 </dev/null
    cat "$work/sanitized" >>"$log"
    summary=$(grep -m 1 'SUMMARY' "$work/sanitized" | sed 's/^=* *//')
    if [ "$cut" = own ]; then said="SKIPPED: it did not end in 40 s"; elif [ -z "$cut" ] && [ -z "$summary" ]; then
        said="SKIPPED: $tool does not work here: $(sentence "$work/sanitized")"
    else said=$(verdict "$summary"); fi
    row "compute-sanitizer $tool: $name" "$summary" "" "" "$said"
}
stage_sanitizer() {
    local tool name
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    [ -n "$sanitizer" ] || { row "compute-sanitizer" "" "" "" "SKIPPED: it is not installed" && return; }
    for name in attention norm head gradient adamw activation embed head_norm; do
        for tool in memcheck racecheck; do sanitized $tool test_gpu_$name "$part/test_gpu_$name"; done
    done
    sanitized memcheck test_kernels_cuda "$part/test_kernels_cuda"
}

# ---- All -------------------------------------------------------------------------------------------

make_data "${DATA_KIB:-4000}" 2>>"$log"
profile=()
if wanted 7; then
    (
        rows=$work/rows-7 seconds_all=$((seconds_all < $(date +%s) - begin + 120 ? seconds_all : $(date +%s) - begin + 120))
        stage_sanitizer
    ) &
    sanitizer_pid=$!
fi
! wanted 2 || stage_tests
! wanted 7 || { wait $sanitizer_pid && cat "$work/rows-7" >>"$rows"; }
! wanted 3 || stage_runs
! wanted 4 || stage_kernels
! wanted 5 || stage_profile
! wanted 6 || stage_steps
awk -F'\t' '$5 ~ /^FAILED/ { bad = 1 } END { exit bad }' "$rows"
exit
