#!/usr/bin/env bash
# run.sh SECONDS: builds every fuzz entry and runs each for so long. By libFuzzer where clang has it;
# what it finds that is new stays in build/fuzz/NAME, and the next run goes on from there.
set -euo pipefail
seconds=$1
names=$(cd tests/fuzz && ls fuzz_*.c | sed 's/\.c$//')
if echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return d == 0 && n > 0; }' |
    clang -fsanitize=fuzzer,address -x c -o /dev/null - 2>/dev/null; then
    config=fuzz by=libFuzzer
else
    config=asan by="the plain driver (clang has a better one: libFuzzer)"
fi
echo "By $by, $seconds s for each entry."
make --no-print-directory config=$config fuzzers
for name in $names; do
    echo "== $name"
    if [ $config = fuzz ]; then
        mkdir -p build/fuzz/$name
        build/fuzz/tests/fuzz/$name -max_total_time="$seconds" -max_len=65536 -timeout=20 \
            -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
            -artifact_prefix=build/fuzz/$name- build/fuzz/$name
    else
        build/asan/tests/fuzz/$name "$seconds"
    fi
done
