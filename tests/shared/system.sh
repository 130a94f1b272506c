# system.sh: what the system tests share; sourced by tests/system/*.sh.
#
# A system test runs the built program (SPILLWAY, default build/release/spillway) as a user does, in
# a folder of its own below TMPDIR, which must be on a real drive. Each property is one line, `ok
# NAME`, `not ok NAME` or `skipped NAME`, and the last lines are counts in cmocka's form, which
# tests/run.sh adds up. Nothing here sleeps: waiting is for a line of a file or the end of a process.
# Only bash, coreutils, awk, sed, grep and (for the seccomp filter) perl-base are needed.
set -uo pipefail
export LC_ALL=C
spillway=$(realpath "${SPILLWAY:-build/release/spillway}" 2>/dev/null)
[ -x "$spillway" ] || { echo "${SPILLWAY:-build/release/spillway} is not built: run make first" >&2 && exit 1; }
work=$(mktemp -d "${TMPDIR:-/var/tmp}/spillway-system-XXXXXX")
passed=0 failed=0 skipped=0
last_name= # of the last refusal, for what is checked after it
at_exit=()

# Runs the commands of at_exit (unmounting, removing cgroups), last one first, then removes the folder.
clean_up() {
    local i
    jobs -p | xargs -r kill -KILL 2>/dev/null
    wait 2>/dev/null
    for ((i = ${#at_exit[@]} - 1; i >= 0; i--)); do eval "${at_exit[i]}"; done
    rm -rf "$work"
}
trap clean_up EXIT

ok() {
    echo "ok $1"
    passed=$((passed + 1))
}
# not_ok NAME REASON...; what the program said last is shown with it.
not_ok() {
    echo "not ok $1: ${*:2}"
    [ ! -s "$work/out" ] || tail -n 20 "$work/out" | sed 's/^/    out: /'
    [ ! -s "$work/err" ] || tail -n 20 "$work/err" | sed 's/^/    err: /'
    failed=$((failed + 1))
}
skip() {
    echo "skipped $1: ${*:2}"
    skipped=$((skipped + 1))
}
# check NAME COMMAND...: the property holds when the command succeeds.
check() {
    if "${@:2}"; then ok "$1"; else not_ok "$1" "failed: ${*:2}"; fi
}
# same NAME A B
same() {
    if [ -n "$2" ] && [ "$2" = "$3" ]; then ok "$1"; else not_ok "$1" "'$2' is not '$3'"; fi
}
finish() {
    [ $passed -eq 0 ] || echo "[  PASSED  ] $passed test(s)."
    [ $failed -eq 0 ] || echo "[  FAILED  ] $failed test(s)."
    [ $skipped -eq 0 ] || echo "[  SKIPPED ] $skipped test(s)."
    [ $failed -eq 0 ]
    exit
}

# Processor time of all children that have ended, in clock ticks (1/100 s).
children_ticks() { awk '{ print $16 + $17 }' /proc/$$/stat; }

# run ARGUMENT...: the program; its output in $work/out and $work/err, its status in $status, the
# processor time it took in $ticks.
run() {
    local before
    before=$(children_ticks)
    status=0
    timeout -k 5 "${LIMIT_S:-300}" "$spillway" "$@" >"$work/out" 2>"$work/err" </dev/null || status=$?
    ticks=$(($(children_ticks) - before))
}
# must ARGUMENT...: a run that later checks stand on; when it fails there is nothing more to test.
must() {
    run "$@"
    [ $status -eq 0 ] && return
    not_ok "spillway $*" "exit status $status"
    finish
}
# refused NAME STATUS PATTERN: the last run ended with this status and one sentence on stderr that
# matches the extended regular expression. Warnings before it are lines of their own.
refused() {
    local sentences
    last_name=$1
    sentences=$(grep -c '^spillway: ' "$work/err")
    if [ $status -ne "$2" ]; then
        not_ok "$1" "exit status $status instead of $2"
    elif [ "$sentences" -ne 1 ] || ! tail -n 1 "$work/err" | grep -q '^spillway: '; then
        not_ok "$1" "stderr does not end with the one sentence"
    elif ! tail -n 1 "$work/err" | grep -qE -- "$3"; then
        not_ok "$1" "the sentence does not say /$3/"
    else
        ok "$1"
    fi
}

# The value of a budget's flag that ends the last refusal: the smallest that works.
least_flag() { tail -n 1 "$work/err" | sed -n "s/.*$1 \([0-9.]*[KMGT]\{0,1\}\)\$/\1/p"; }

# A text of about $2 KiB from a small vocabulary, the same on every machine: words drawn by a linear
# congruential generator, so that a model has something to learn and merges exist.
make_text() {
    awk -v bytes=$(($2 * 1024)) 'BEGIN {
        n = split("voda teče do moře a řeka se vine krajinou mlýn mele obilí chleba voní na stole " \
                  "děti si hrají u plotu pes spí pod lípou vítr čechrá listí večer přichází tiše", w, " ")
        seed = 12345
        while (out < bytes) {
            seed = (seed * 1103515245 + 12345) % 2147483648
            word = w[1 + int(seed / 65536) % n]
            end = int(seed / 1024) % 11 == 0 ? (int(seed / 512) % 5 == 0 ? ".\n\n" : ". ") : " "
            printf "%s%s", word, end
            out += length(word) + length(end)
        }
    }' >"$1"
}
# Data in $work/data, of so many KiB of text and 512 tokens.
make_data() {
    make_text "$work/text" "${1:-200}"
    must prep "$work/text" --out "$work/data" --vocab-size 512 --val-fraction 0.05
}

# The values of a key in metrics.jsonl, one a line: values FILE KEY.
values() {
    sed -n "s/.*\"$2\": *\"\{0,1\}\([^,\"}]*\).*/\1/p" "$1"
}
last_value() {
    values "$1" "$2" | tail -n 1
}
# Lines of steps without what measures time: what must be equal in two runs.
mathematics() {
    paste <(values "$1" step) <(values "$1" loss) <(values "$1" grad_norm)
}
# wait_for_steps FILE N PID: until the file has N lines of steps; fails when the process ends before.
# (grep's output is taken, since with /dev/null for output GNU grep 3.8 reads on to the end.)
wait_for_steps() {
    local seen
    seen=$(timeout "${LIMIT_S:-300}" tail -s 0.1 -n +1 -F --pid="$3" "$1" 2>/dev/null |
        grep -m "$2" '"loss"' | wc -l)
    [ "$seen" -ge "$2" ]
}

# kill_after MILLISECONDS PID: leaves its exit status in $status once it is wholly gone (timeout -s KILL
# would end before its child does, which then still holds the lock). The caller sends away what the
# shell has to say about a child that was killed.
kill_after() {
    timeout "$(awk -v ms="$1" 'BEGIN { print ms / 1000 }')" tail -s 0.01 --pid="$2" -f /dev/null
    kill -KILL "$2"
    status=0
    wait "$2" || status=$?
}

# quartile FILE SHARE: of the numbers in it, a line each; median: of those on standard input.
quartile() { sort -n "$1" | awk -v q="$2" '{ x[NR] = $1 } END { i = 1 + (NR - 1) * q; l = int(i); h = l < NR ? l + 1 : l; print x[l] + (i - l) * (x[h] - x[l]) }'; }
median() { quartile - 0.5; }
bytes_of() { echo "$1" | awk '{ u = index("KMGT", substr($1, length($1))); printf "%.0f\n", $1 * 1024 ^ u }'; }

# Sanitizers bring memory of their own, so budgets mean nothing there.
is_sanitized() { grep -aq -e __asan_init -e __tsan_init "$spillway"; }
is_root() { [ "$(id -u)" -eq 0 ]; }

# make_drive FOLDER MIB: an ext4 of its own mounted there; fails where that is not allowed.
make_drive() {
    mkdir -p "$1"
    is_root && truncate -s "$2M" "$1.img" && mkfs.ext4 -q -F -m 0 "$1.img" &&
        mount -o loop "$1.img" "$1" 2>/dev/null || return 1
    at_exit+=("umount -l '$1'")
}

# A memory cgroup without swap, of version 2 or 1: make_group BYTES sets $group to its folder, or
# fails where that is not allowed. Page cache counts in it as well, but gives way.
make_group() {
    local name=spillway-test-$$
    if [ -w /sys/fs/cgroup/cgroup.procs ] && grep -qw memory /sys/fs/cgroup/cgroup.subtree_control; then
        group=/sys/fs/cgroup/$name
        mkdir "$group" && echo "$1" >"$group/memory.max" && echo 0 >"$group/memory.swap.max"
    elif [ -w /sys/fs/cgroup/memory/cgroup.procs ]; then
        group=/sys/fs/cgroup/memory/$name
        mkdir "$group" && echo "$1" >"$group/memory.limit_in_bytes" && echo 0 >"$group/memory.swappiness"
    else
        return 1
    fi
}
# run_in_group ARGUMENT...: as run, all of it inside $group from the first page on.
run_in_group() {
    status=0
    (
        echo $BASHPID >"$group/cgroup.procs"
        exec timeout -k 5 "${LIMIT_S:-300}" "$spillway" "$@"
    ) >"$work/out" 2>"$work/err" </dev/null || status=$?
}
group_oom_kills() {
    cat "$group/memory.events" "$group/memory.oom_control" 2>/dev/null |
        awk '$1 == "oom_kill" { print $2 }'
}
group_swap_bytes() {
    if [ -e "$group/memory.swap.current" ]; then cat "$group/memory.swap.current"; else
        awk '$1 == "swap" { n = $2 } END { print n + 0 }' "$group/memory.stat"
    fi
}
group_peak_bytes() {
    cat "$group/memory.peak" "$group/memory.max_usage_in_bytes" 2>/dev/null | head -n 1
}
