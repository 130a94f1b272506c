#!/usr/bin/env bash
# mutants.sh: takes one thing away from, or changes one thing in, a copy of a real CUDA source, builds the
# test of that source with the copy, in the checked flavour, and demands that it fails; a mutant that
# passes is a fault that nobody would find. Counts as cmocka does. Run by make test, which builds the
# checked tests first and says in LDLIBS what they are linked with.
#   LDLIBS=... mutants.sh NAME    one mutant, with the test's output
set -uo pipefail
cd "$(dirname "$0")/../.."
build=$(dirname "${SPILLWAY:-build/release/spillway}")
work=${TMPDIR:-/var/tmp}/mutants.$$
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT

# NAME @ SOURCE, or HEADER:SOURCE, of model/cuda unless it has a folder @ TEST @ SUBSTITUTION in perl
mutants=$(cat <<'END'
sum-barrier-before-read@element.cuh:gpu_gradient.cu@test_gpu_gradient@s/scratch\[threadIdx.x \/ WARP\] = value;\n    __syncthreads\(\);/scratch[threadIdx.x \/ WARP] = value;/
sum-shuffle-mask@launch.cuh:gpu_norm.cu@test_gpu_norm@s/ALL_LANES 0xffffffffu/ALL_LANES 0x0000ffffu/
sum-lost-lanes@element.cuh:gpu_norm.cu@test_gpu_norm@s/flip = 16; flip > 0/flip = 16; flip > 1/
norm-row-bound@gpu_norm.cu@test_gpu_norm@s/if \(r >= p.rows\)\n        return;\n    bool layer = p.kind == GPU_NORM_LAYER;\n    uint64_t row = \(uint64_t\)r \* p.columns;\n    statistics/bool layer = p.kind == GPU_NORM_LAYER;\n    uint64_t row = (uint64_t)r * p.columns;\n    statistics/
norm-column-bound@gpu_norm.cu@test_gpu_norm@s/if \(c >= p.columns\)\n        return;//
norm-run-bound@gpu_norm.cu@test_gpu_norm@s/end = min\(first \+ GPU_NORM_RUN, p.rows\)/end = first + GPU_NORM_RUN/
norm-narrow-index@gpu_norm.cu@test_gpu_norm@s/uint64_t row = \(uint64_t\)r \* p.columns;\n    statistics/int64_t row = (int)(r * p.columns);\n    statistics/
norm-order-of-kernels@gpu_norm.cu@test_gpu_norm@s/(launch\(norm_partial_kernel, columns, stream, \*args\);)(.*?)(\n    if \(!error\)\n        error = add_runs\(args, 0)/cudaSuccess;$2\n    if (!error) error = $1$3/s
sums-run-bound@gpu_sums.cu@test_gpu_activation@s/end = min\(first \+ GPU_SUMS_RUN, p.rows\)/end = first + GPU_SUMS_RUN/
sums-runs-barrier@gpu_sums.cu@test_gpu_activation@s/__syncthreads\(\);//
sums-column-bound@gpu_sums.cu@test_gpu_activation@s/if \(c >= p.columns\)\n        return;//
flat-bound@gpu_activation.cu@test_gpu_activation@s/i < p.count; i \+= flat_step\(\)\) \{\n        float g = to_float\(gate\[i\]\);\n        put/i <= p.count; i += flat_step()) {\n        float g = to_float(gate[i]);\n        put/
pack-bound@element.cuh:gpu_activation.cu@test_gpu_activation@s/if \(left >= N\) \{/if (left) {/
pack-tail@element.cuh:gpu_activation.cu@test_gpu_activation@s/if \(i < left\)\n            to/if (i + 1 < left)\n            to/
flat-narrow-counter@element.cuh:gpu_activation.cu@test_gpu_activation@s/for \(uint64_t i = flat_first\(\) \* pack<E>::COUNT; i < count; i \+= flat_step\(\) \* pack<E>::COUNT\)/for (int i = (int)flat_first() * (int)pack<E>::COUNT; i >= 0 \&\& i < (int64_t)count; i += (int)(flat_step() * pack<E>::COUNT))/
embed-barrier-counts@gpu_embed.cu@test_gpu_embed@s/    __syncthreads\(\);\n    uint32_t mine/    uint32_t mine/
embed-barrier-list@gpu_embed.cu@test_gpu_embed@s/    __syncthreads\(\);\n    return total;/    return total;/
embed-token-bound@gpu_embed.cu@test_gpu_embed@s/(bool mine =.*?)rows\[k\] < p.row_count/$1true/s
embed-channel-bound@gpu_embed.cu@test_gpu_embed@s/i < count && c < p.channels/i < count/
embed-ballot-mask@gpu_embed.cu@test_gpu_embed@s/__ballot_sync\(ALL_LANES/__ballot_sync(0x7fffffffu/
head-columns@gpu_head.cu@test_gpu_head@s/sum \+= c \+ i < columns \?/sum += c + i <= columns ?/
head-sum-so-far@gpu_head.cu@test_gpu_head@s/so_far.sum \* expf\(so_far.most - most\)/so_far.sum/
head-sum-scratch@gpu_head.cu@test_gpu_head@s/scratch \+ WARP\)/scratch)/
head-own-maximum@gpu_head.cu@test_gpu_head@s/mine.sum \* expf\(mine.most - most\)/mine.sum/
head-target-bound@gpu_head.cu@test_gpu_head@s/ && target < p.logits.columns\)/)/
head-rescale@gpu_head.cu@test_gpu_head@s/p.sum\[r\] \* expf\(before - most\)/p.sum[r]/
gelu-overflow@gpu_activation.cu@test_gpu_activation@s/fminf\(power, 80.0f\)/power/
gradient-bound@gpu_gradient.cu@test_gpu_gradient@s/at < p.args.count \? p.args.count - at : 0/p.args.padded_count - at/
gradient-room@element.cuh:gpu_gradient.cu@test_gpu_gradient@s/if \(left >= N\) \{/if (left) {/
gradient-last-part@gpu_gradient.cu@test_gpu_gradient@s/part < parts \? p.sums\[part\] : 0.0/p.sums[part]/
gradient-in-place@gpu_gradient.cu@test_gpu_gradient@s/p.moves = args->bf16 && .*?;/p.moves = false;/
adamw-barrier-largest@gpu_adamw.cu@test_gpu_adamw@s/(scratch\[threadIdx.x \/ WARP\] = value;\n)    __syncthreads\(\);/$1/
adamw-run-end@gpu_adamw.cu@test_gpu_adamw@s/if \(block \* GPU_ADAMW_BLOCK >= run.count\)\n        return;//
adamw-run-segments@gpu_adamw.cu@test_gpu_adamw@s/p.segments\[run.segment_first \+ s\]/p.segments[s]/
adamw-segment-end@gpu_adamw.cu@test_gpu_adamw@s/at - segment.first < segment.count/at - segment.first <= segment.count/
join-bound@gpu_join.cu@test_gpu_join@s/load_pack\(p.hi \+ at, left\)/load_pack(p.hi + at, left + 1)/
join-list@gpu_join.cu@test_gpu_join@s/list.of\[blockIdx.y\]/list.of[0]/
gradient-list@gpu_gradient.cu@test_gpu_gradient@s/list.of\[blockIdx.y\]/list.of[0]/
join-sign@gpu_join.cu@test_gpu_join@s/\(uint32_t\)\(int32_t\)lo.value\[i\]/(uint16_t)lo.value[i]/
attention-copy-wait@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/ptx_copy_wait<STAGES - 1>\(\);//
attention-copy-commit@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/ptx_copy_commit\(\);\n        ptx_copy_wait/ptx_copy_wait/
attention-barrier-arrive@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/(ptx_copy_wait<STAGES - 1>\(\);\n)        __syncthreads\(\);/$1/
attention-stage-barrier@gpu_attention.cu@test_gpu_attention@s/(was computed with. \*\/\n)        __syncthreads\(\);/$1/
attention-stage@gpu_attention.cu@test_gpu_attention@s/\(int\)\(tile % C::STAGES\)/0/
attention-row-bound@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/if \(r >= rows.end\)\n            continue;//
attention-load-bound@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/rows.first \+ r < rows.end && \(uint32_t\)c < rows.depth;\n            E \*to/(uint32_t)c < rows.depth;\n            E *to/
attention-mask@gpu_attention.cu@test_gpu_attention@s/C::column\(i\) <= row;/C::column(i) <= row + 1;/
attention-shuffle@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/value \+ __shfl_xor_sync\(ALL_LANES, value, 2\)/value/
attention-exchange@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/(mine\[column\(i\)\] = values\[0\]\[i\];\n)        __syncwarp\(\);/$1/
attention-narrow-index@attention_tile.cuh:gpu_attention.cu@test_gpu_attention@s/rows.at \+ \(uint64_t\)\(rows.first \+ r\) \* rows.stride \+ c;/rows.at + (int)((rows.first + r) * rows.stride) + c;/
backward-stage-barrier@gpu_attention_backward.cu@test_gpu_attention@s/(was computed with. \*\/\n)        __syncthreads\(\);/$1/
backward-query-bound@gpu_attention_backward.cu@test_gpu_attention@s/there \? p.log_sum\[row\] \* LOG2_E : 0.0f/p.log_sum[row] * LOG2_E/
backward-delta-bound@gpu_attention_backward.cu@test_gpu_attention@s/if \(t >= p.shape.seq\)\n        return;//
backward-mask@gpu_attention_backward.cu@test_gpu_attention@s/C::row\(h\) <= query && query/C::row(h) <= query + 1 && query/
head-norm-bound@gpu_head_norm.cu@test_gpu_head_norm@s/if \(!at.there\)\n        return;//
head-norm-narrow-index@gpu_head_norm.cu@test_gpu_head_norm@s/uint64_t first = index \/ s.heads \* s.stride \+ index % s.heads \* s.depth;/int first = (int)(index \/ s.heads * s.stride + index % s.heads * s.depth);/; s/\{index, first, index/{index, (uint64_t)first, index/
head-norm-channel-bound@gpu_head_norm.cu@test_gpu_head_norm@s/if \(c >= depth\)\n        return;//
block-stale-dx@cuda_block.c@test_kernels_cuda@s/const void \*dx = dx_factor\(k, b\), \*qkv/const void *dx = k->bf16 ? b->scratch.narrow : (const void *)b->args->dx, *qkv/
block-scratch-shared@cuda_block.c@test_kernels_cuda@s/\.dqkv = at \+ dpre/.dqkv = at + act/
head-first-piece@cuda_head.c@test_kernels_cuda@s/g->accumulate \|\| p->first > 0/g->accumulate/
head-once-kept@cuda_head.c@test_kernels_cuda@s/\(float \*\)args->scratch \+ tile \* logits_count\(&k->shape\)/args->scratch/
stream-no-wait@offload/gpu.c@test_gpu_streams@s/must_at\(cudaStreamWaitEvent\(.*?mark\);//s
stream-waits-for-begin@offload/gpu.c@test_gpu_streams@s/(cudaStreamWaitEvent\(gpu->streams\[lane\], reached_of\(gpu, mark\)->events->)end/$1begin/
stream-wrong-one-waits@offload/gpu.c@test_gpu_streams@s/(cudaStreamWaitEvent\(gpu->streams\[)lane/$1mark->lane/
stream-end-on-wrong-stream@offload/gpu.c@test_gpu_streams@s/->end, gpu->streams\[mark->lane\]/->end, gpu->streams[LANE_COMPUTE]/
stream-end-before-op@offload/engine_real.c@test_gpu_streams@s/(exec_ops\(real->exec, ops, count\);)\s*(device->ops->end\(device, &last->mark\);)/$2 $1/
stream-copy-on-wrong-stream@offload/gpu.c@test_gpu_streams@s/gpu_of\(device\)->streams\[args->lane\]/gpu_of(device)->streams[LANE_H2D]/
stream-update-on-wrong-stream@offload/gpu.c@test_gpu_streams@s/gpu->streams\[list->lane\], &adamw/gpu->streams[LANE_COMPUTE], \&adamw/
stream-join-on-wrong-stream@offload/gpu.c@test_gpu_streams@s/gpu->streams\[list->lane\], joins/gpu->streams[LANE_COMPUTE], joins/
stream-told-unreached@offload/engine_real.c@test_gpu_streams@s/lane->device->ops->reach\(lane->device, &mark, &time\);/time = (struct device_time){clock_ns(), clock_ns()};/
stream-reached-at-begin@offload/gpu.c@test_gpu_streams@s/must_at\(cudaEventSynchronize\(events->end\)/must_at(cudaEventSynchronize(events->begin)/
stream-shares-nothing@offload/engine_real.c@test_gpu_streams@s/device->ops->share\(device, mark, &last->mark\);/;/
stream-done-as-one-with-waits@offload/engine_real.c@test_gpu_streams@s/if \(next->after_count \|\| /if (/
stream-told-before-given@offload/engine_real.c@test_gpu_streams@s/    device->ops->begin\(device, &last->mark\);/    for (uint32_t i = 0; i < count; i++)\n        sem_post(\&real->lanes[lane].work);\n$&/; s/(&last->mark\);)\n    for \(uint32_t i = 0; i < count; i\+\+\)\n        sem_post\(&real->lanes\[lane\].work\);/$1/
stream-first-wait-alone@offload/engine.h:offload/engine_real.c@test_gpu_streams@s/behind\[lane\] < on/behind[lane] > on/
stream-one-lane-alone@offload/engine_real.c@test_gpu_streams@s/feed->after\[feed->after_count\+\+\]/feed->after_count = 1, feed->after[0]/
stream-marks-too-few@offload/engine_real.c@test_gpu_streams@s/(struct device_mark\)\{lane->which, )number/$1number % 2/
sched-host-is-chained@offload/sched.c@test_gpu_streams@s/engine->chained\[from\] && engine->chained\[to\]/engine->chained[from]/
sched-waits-of-device-for-host@offload/sched.c@test_gpu_streams@s/engine->chained\[from\] && engine->chained\[to\]/engine->chained[to]/
sched-last-wait-ignored@offload/sched.c@test_gpu_streams@s/lane->waited < op->wait_count/lane->waited + 1 < op->wait_count/
plan-slot-reused-unread@offload/plan_emit.c@test_gpu_streams@s/add_wait\(emit, number, emit->readers\[r\].op\);/;/
plan-read-unwritten@offload/plan_emit.c@test_gpu_streams@s/add_wait\(emit, number, emit->last_writer\[cell\]\);/;/
END
)

objects() {
    find "$build/cuda/checked" -name '*.o' ! -name 'test_*' ! -name 'bench_*' ! -path '*/plugin/*'
}

# Builds and runs one; 0 when its test failed, 1 when it passed, 2 when there is no such mutant any more.
run_mutant() {
    local name=$1 sources=$2 test=$3 change=$4 folder=$work/$1 changed unit compile
    changed=${sources%%:*} unit=${sources##*:}
    case $changed in */*) ;; *) changed=model/cuda/$changed unit=model/cuda/$unit ;; esac
    mkdir -p "$folder/$(dirname "$changed")"
    perl -0777 -pe "$change" "$changed" >"$folder/$changed" || return 2
    ! cmp -s "$changed" "$folder/$changed" || { echo "changes nothing in $changed"; return 2; }
    cp -n "$unit" "$folder/$unit" 2>/dev/null
    compile="-I$folder -I. -Itests/cuda/emulation/include -ffp-contract=off -O1 -g -w"
    # Watched is what the checked tests watch.
    [ ! -e "$build/cuda/checked/$unit.o" ] || compile="$compile -fsanitize=thread"
    case $unit in
    *.cu) g++ -x c++ -std=gnu++17 -fno-exceptions $compile -c "$folder/$unit" -o "$folder/unit.o" ;;
    *.c) gcc -std=gnu17 -D_GNU_SOURCE $compile -c "$folder/$unit" -o "$folder/unit.o" ;;
    esac || { echo "does not compile"; return 2; }
    gcc -rdynamic -o "$folder/test" "$folder/unit.o" "$build/cuda/checked/tests/cuda/$test.c.o" \
        $(objects | grep -v "/$unit.o\$") "$build"/tests/shared/*.o "$build/libspillway.a" \
        -lcmocka $LDLIBS -pthread ||
        { echo "does not link"; return 2; }
    # The first failure is enough.
    (ulimit -c 0 && CMOCKA_TEST_ABORT=1 timeout 120 "$folder/test") >"$folder/log" 2>&1 && return 1
    return 0
}
export -f run_mutant objects
export work build

one() {
    local name sources test change code=0 said
    IFS='@' read -r name sources test change <<<"$1"
    said=$(run_mutant "$name" "$sources" "$test" "$change" 2>&1) || code=$?
    case $code in
    0) echo "[       OK ] $name: $(grep -m 1 -o 'emulation: [a-z.-]*\|relative error [0-9.e+-]*' "$work/$name/log")" ;;
    1) echo "[  FAILED  ] $name: the test passes" ;;
    *) echo "[  FAILED  ] $name: $said" ;;
    esac
    rm -rf "${work:?}/$name"
}
export -f one

if [ $# -gt 0 ]; then
    IFS='@' read -r name sources test change < <(grep "^$1@" <<<"$mutants")
    run_mutant "$name" "$sources" "$test" "$change"
    echo "code $? (0: found)"
    cat "$work/$name/log"
    exit
fi
[ -d "$build/cuda/checked" ] || { echo "[  FAILED  ] 1 test(s): no checked tests in $build"; exit 1; }
tr '\n' '\0' <<<"$mutants" | sed 's/\x0$//' | xargs -0 -n 1 -P "${MUTANTS_JOBS:-1}" bash -c 'one "$1"' one |
    tee "$work/results"
failed=$(grep -c '^\[  FAILED  \]' "$work/results")
echo "[  PASSED  ] $(grep -c '^\[       OK \]' "$work/results") test(s)."
[ "$failed" -eq 0 ] || { echo "[  FAILED  ] $failed test(s)."; exit 1; }
