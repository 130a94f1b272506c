#!/usr/bin/env bash
# Small memory: prep under --ram-budget inside a memory cgroup of just that size, without swap, whatever the
# input: Wikipedia dumps (.xml.bz2, multistream) of more and more articles, and folders of more and more
# files of 2 to 8 KB; from each a tokenizer is learned ("articles", "files"), and it is cut by one that is
# given ("given"). The text is made up (benchmarks/bench_wiki.c).
#
# A line for each: megabytes of input, seconds, MB/s, then three peaks in MiB: the process' own (VmHWM),
# what the cgroup held that was no page cache (sampled), and the cgroup's, which the page cache fills to
# its limit: it gives way. The verdict: all ended well, none was killed for want of memory, the first two
# peaks are within the budget, and with a given tokenizer hardly grow with the count: from the second to the
# last size by at most TOLERANCE percent, the list of files (16 bytes and the path of
# each) not counted. Learning counts each
# different word once, so it grows with those, up to its share of the budget, beyond which it takes a sample.
#   ARTICLES ("60000 120000 480000")  FILES ("62500 125000 1000000")  RAM (2G)  TOLERANCE (10)
. tests/shared/system.sh
ram=${RAM:-2G} tolerance=${TOLERANCE:-10}
limit=$(bytes_of "$ram")
maker=$(dirname "$spillway")/benchmarks/bench_wiki
LIMIT_S=7200
LIST_BYTES=$((16 + ${#work} + 20))
make_group "$limit" || { skip "small memory" "no memory cgroup may be made here (not root, or no controller)" && finish; }
rmdir "$group"
printf '%-22s %9s %8s %8s %10s %10s %12s\n' input MB seconds MB/s "own MiB" "anon MiB" "cgroup MiB"

field() { awk -v name="$1" '$1 == name { print $2 }' "$2" 2>/dev/null; }
# peaks PID: the most that was seen of the cgroup's anonymous memory, and of the process' own peak.
peaks() {
    local anon=0 own=0 now pid
    while kill -0 "$1" 2>/dev/null; do
        now=$(awk '$1 == "anon" || $1 == "total_rss" { print $2 }' "$group/memory.stat" 2>/dev/null)
        [ "${now:-0}" -le "$anon" ] || anon=$now
        for pid in $(cat "$group/cgroup.procs" 2>/dev/null); do
            [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = spillway ] || continue
            now=$(field VmHWM: "/proc/$pid/status")
            [ "${now:-0}" -le "$own" ] || own=$now
        done
        sleep 0.1
    done
    echo "$((own * 1024)) $anon" >"$work/peaks"
}
# prep_one LABEL COUNT LIST_BYTES INPUT [OPTION...]
prep_one() {
    local name="$2 $1" bytes start_ns seconds own anon pid
    bytes=$(du -sb --apparent-size "$4" | cut -f 1)
    make_group "$limit" || return
    rm -rf "$work/data"
    start_ns=$(date +%s%N)
    run_in_group prep "$4" --out "$work/data" --ram-budget "$ram" "${@:5}" &
    pid=$!
    peaks $pid
    status=0
    wait $pid || status=$?
    seconds=$((($(date +%s%N) - start_ns) / 1000000))
    read -r own anon <"$work/peaks"
    awk -v name="$name" -v b="$bytes" -v ms=$seconds -v own="$own" -v anon="$anon" -v all="$(group_peak_bytes)" 'BEGIN {
        printf "%-22s %9.0f %8.1f %8.1f %10.0f %10.0f %12.0f\n",
            name, b / 1e6, ms / 1e3, b / 1e3 / ms, own / 2^20, anon / 2^20, all / 2^20 }'
    check "$name end well" test -s "$work/data/dataset.json"
    same "$name: no kill for want of memory" "$(group_oom_kills)" 0
    check "$name: both peaks are within the budget" test "$own" -le "$limit" -a "$anon" -le "$limit"
    echo "$((own - $3)) $((anon - $3))" >>"$work/$1.peaks"
    rmdir "$group"
}
# The growth from the second size to the last.
verdict() {
    local grown
    grown=$(awk 'NR == 2 { own = $1; anon = $2 }
        END { printf "%.1f %.1f", 100 * ($1 / own - 1), 100 * ($2 / anon - 1) }' "$work/$1.peaks")
    echo "$1: from the second size to the last the peaks grow by ${grown/ / % (own) and } % (anon)"
    [ "${1%-given}" = "$1" ] || check "$1: the peaks do not depend on the count" \
        awk -v g="$grown" -v t="$tolerance" 'BEGIN { split(g, x, " "); exit !(x[1] <= t && x[2] <= t) }'
}

# Streams of 32 MB of XML, packed by all cores.
make_dump() {
    mkdir -p "$work/parts"
    "$maker" --write $(($1 * 6 / 5)) | split -b 32M -a 3 -d - "$work/parts/part"
    printf '%s\0' "$work"/parts/part* | xargs -0 -n 1 -P "$(nproc)" bzip2
    cat "$work"/parts/part*.bz2 >"$2"
    rm -rf "$work/parts"
}
# Files of 2 to 8 KB, a thousand in a folder.
make_files() {
    "$maker" --write 2000 | sed 's/<[^>]*>//g' | awk -v RS='\001' -v count="$1" -v to="$2" '
        { text = $0 }
        END {
            bytes = length(text)
            for (i = 0; i < count; i++) {
                if (i % 1000 == 0) { folder = sprintf("%s/%04d", to, i / 1000); system("mkdir -p " folder) }
                size = 2048 + i * 2654435761 % 6144
                file = folder "/" i % 1000 ".txt"
                printf "%d %s", i, substr(text, 1 + i * 40503 % (bytes - size), size) >file
                close(file)
            }
        }'
}
for count in ${ARTICLES:-60000 120000 480000}; do
    make_dump "$count" "$work/dump.xml.bz2"
    prep_one articles "$count" 0 "$work/dump.xml.bz2"
    [ -e "$work/tokenizer.json" ] || cp "$work/data/tokenizer.json" "$work/tokenizer.json"
    prep_one articles-given "$count" 0 "$work/dump.xml.bz2" --tokenizer "$work/tokenizer.json"
done
rm -f "$work/dump.xml.bz2"
for count in ${FILES:-62500 125000 1000000}; do
    rm -rf "$work/files"
    make_files "$count" "$work/files"
    prep_one files "$count" $((count * LIST_BYTES)) "$work/files"
    prep_one files-given "$count" $((count * LIST_BYTES)) "$work/files" --tokenizer "$work/tokenizer.json"
done
for kind in articles articles-given files files-given; do verdict $kind; done
finish
