#!/usr/bin/env bash
# run.sh BUILD_DIR TEST...: runs cmocka binaries, and scripts that count as cmocka does, two at a time.
# Prints a line for each, the whole output of those that fail, and last the line "N passed, N failed"
# (and how many were skipped), counted in cases. A test that crashes, hangs or reports nothing counts
# as a failure.
#   SECONDS_MAX  after which a test counts as hung (default 600)
set -euo pipefail
build=$1
shift
jobs=2
seconds_max=${SECONDS_MAX:-600}
work=$build/test-runs

# The sum of the numbers in the lines "[  WORD  ] n test(s)".
cases() {
    sed -n "s/^\[  $1 *\] \([0-9]*\) test(s).*/\1/p" "$2" | awk '{ n += $1 } END { print n + 0 }'
}

# Runs one test; leaves NAME.log and NAME.counts ("passed failed skipped").
run_one() {
    local test=$1 name=${1#"$build"/} log code=0 passed failed skipped start end
    name=${name#tests/}
    local shown=$name
    name=${name//\//.}
    log=$work/$name.log
    mkdir -p "$work/$name.tmp"
    start=$(date +%s%N)
    TMPDIR=$(realpath "$work")/$name.tmp SPILLWAY=$build/spillway CMOCKA_MESSAGE_OUTPUT=stdout \
        UBSAN_OPTIONS=print_stacktrace=1 \
        timeout --kill-after=10 "$seconds_max" "$test" >"$log" 2>&1 </dev/null || code=$?
    end=$(date +%s%N)
    rm -rf "$work/$name.tmp"
    passed=$(cases PASSED "$log")
    failed=$(cases FAILED "$log")
    skipped=$(cases SKIPPED "$log")
    local note=
    case $code in
    124 | 137) note="no end after $seconds_max s" ;;
    *) [ "$code" -le 128 ] || note="ended by signal $((code - 128))" ;;
    esac
    if [ "$failed" -eq 0 ] && { [ "$code" -ne 0 ] || [ $((passed + skipped)) -eq 0 ]; }; then
        failed=1
        note=${note:-exit status $code, no failed case reported}
    fi
    echo "$passed $failed $skipped" >"$work/$name.counts"
    local verdict=ok
    [ "$failed" -eq 0 ] || verdict=FAIL
    printf '%-4s %-32s %4d passed%s%s %6d ms%s\n' "$verdict" "$shown" "$passed" \
        "$([ "$failed" -eq 0 ] || printf ', %d failed' "$failed")" \
        "$([ "$skipped" -eq 0 ] || printf ', %d skipped' "$skipped")" \
        $(((end - start) / 1000000)) "${note:+  ($note)}"
    [ "$failed" -eq 0 ] || sed 's/^/     | /' "$log"
}

rm -rf "$work"
mkdir -p "$work"
export -f run_one cases
export build work seconds_max
[ $# -eq 0 ] || printf '%s\0' "$@" | xargs -0 -n 1 -P "$jobs" bash -c 'set -euo pipefail; run_one "$1"' run_one

shopt -s nullglob
counts=("$work"/*.counts)
[ ${#counts[@]} -eq $# ] || echo "only ${#counts[@]} of $# tests were run"
cat /dev/null "${counts[@]}" | awk -v missing=$(($# - ${#counts[@]})) '
    { passed += $1; failed += $2; skipped += $3 }
    END {
        failed += missing
        printf "%d passed, %d failed", passed, failed
        if (skipped > 0) printf ", %d skipped", skipped
        printf "\n"
        exit failed > 0
    }'
