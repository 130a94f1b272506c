/*
 * The emulation finds what it is there to find: kernels with one fault each (faulty.cu), and a
 * pipeline of three streams with one wait left out, under many seeds; and finds nothing where there
 * is no fault. In the plain flavour, which watches no accesses, only what it promises is demanded.
 * Needs no GPU and would make no sense on one.
 */
#include "core/base.h"
#include "core/mem.h"
#include "tests/cuda/faulty.h"
#include "tests/cuda/gpu.h"
#include <math.h>
#include <string.h>

#define SEEDS 20

/* What the first fault begins with, by flavour: "" may be missed, "?" is any fault. */
static const struct expected {
    const char *plain, *checked;
} expected[FAULTY_KIND_COUNT] = {
    [FAULTY_NO_BARRIER] = {"", "?"},
    [FAULTY_NO_SECOND_BARRIER] = {"", "race"},
    [FAULTY_NO_WARP_BARRIER] = {"", "?"},
    [FAULTY_EARLY_EXIT] = {"barrier-divergence", "barrier-divergence"},
    [FAULTY_TWO_BARRIERS] = {"barrier-divergence", "barrier-divergence"},
    [FAULTY_SHUFFLE_IN_BRANCH] = {"deadlock", "deadlock"},
    [FAULTY_SHUFFLE_MASK] = {"mask", "mask"},
    [FAULTY_SHUFFLE_OF_ENDED] = {"shuffle", "shuffle"},
    [FAULTY_SHARED_PAST_END] = {"illegal-address", "out-of-bounds"},
    [FAULTY_DEVICE_PAST_END] = {"illegal-address", "out-of-bounds"},
    [FAULTY_DEVICE_BEFORE_START] = {"", "out-of-bounds"},
    [FAULTY_FAR_AWAY] = {"illegal-address", ""},
    [FAULTY_MISALIGNED] = {"", "misaligned"},
    [FAULTY_UNWRITTEN] = {"", "uninitialised"},
    [FAULTY_SHARED_UNWRITTEN] = {"", "uninitialised"},
    [FAULTY_HOST_POINTER] = {"", "illegal-address"},
    [FAULTY_TWO_BLOCKS] = {"", "race"},
    [FAULTY_COPY_NOT_AWAITED] = {"", "cp.async"},
    [FAULTY_COPY_TO_DEVICE] = {"cp.async", "cp.async"},
};

static void check_fault(enum faulty_kind kind, uint64_t seed)
{
    emulation_reset(seed);
    float *on_host = mem_alloc(64, sizeof(float));
    struct gpu_array x = gpu_normal(false, 64, 1, 1.0), y = gpu_normal(false, 64, 2, 1.0);
    struct gpu_array unwritten = gpu_unwritten(GPU_FLOAT, 64);
    struct faulty args = {kind, x.device, y.device};
    if (kind == FAULTY_UNWRITTEN)
        args.y = unwritten.device;
    if (kind == FAULTY_HOST_POINTER)
        args.y = on_host;
    assert_int_equal(faulty_run(&args, gpu_stream), cudaSuccess);
    cudaError_t error = cudaStreamSynchronize(gpu_stream);
    const char *want = emulation_is_checked ? expected[kind].checked : expected[kind].plain;
    if (kind <= FAULTY_NOTHING_IN_HALVES)
        assert_int_equal(emulation_fault_count(), 0);
    else if (want && want[0] == '?')
        assert_true(emulation_fault_count() > 0);
    else if (!want || strncmp(emulation_first_fault(), want, strlen(want)) != 0)
        fail_msg("kind %d, seed %llu: found '%s'", (int)kind, (unsigned long long)seed,
                 emulation_first_fault());
    assert_int_equal(error == cudaErrorIllegalAddress, emulation_fault_count() > 0);
    emulation_reset(seed);
    gpu_free_all();
    mem_free(on_host);
}

static void test_faulty_kernels(void **state)
{
    (void)state;
    emulation_set_quiet(true);
    for (unsigned kind = 0; kind < FAULTY_KIND_COUNT; kind++)
        for (uint64_t seed = 0; seed < SEEDS; seed++)
            check_fault((enum faulty_kind)kind, seed);
}

/* What the schedule may hide is found by some seeds: here a plain run has wrong values at times. */
static void test_seeds_differ(void **state)
{
    (void)state;
    uint32_t wrong = 0;
    for (uint64_t seed = 0; seed < SEEDS && !emulation_is_checked; seed++) {
        emulation_reset(seed);
        struct gpu_array x = gpu_normal(false, 64, 1, 1.0), y = gpu_normal(false, 64, 2, 1.0);
        struct faulty args = {FAULTY_NO_BARRIER, x.device, y.device};
        assert_int_equal(faulty_run(&args, gpu_stream), cudaSuccess);
        gpu_read(&x);
        bool right = true;
        for (uint32_t i = 0; i < 64; i++)
            right &= x.host[i] == (i + 32) % 64;
        wrong += !right;
        gpu_free_all();
    }
    assert_true(emulation_is_checked || wrong == SEEDS);
}

/* -- Streams -- */

enum omission {
    NOTHING_OMITTED,
    COMPUTE_WAITS_FOR_UP,
    UP_WAITS_FOR_DOWN, /* before a slot is used again */
    DOWN_WAITS_FOR_COMPUTE,
    HOST_WAITS_BEFORE_READ,
    HOST_WAITS_BEFORE_WRITE,
    OMISSION_COUNT
};

#define LAYERS 5u
#define SLOTS  2u
#define FLOATS 300u

struct pipeline {
    enum omission omission;
    cudaStream_t up, compute, down;
    cudaEvent_t arrived[SLOTS], computed[SLOTS], left[SLOTS];
    float *host[LAYERS], *slot[SLOTS], *addend;
};

static void pipeline_open(struct pipeline *p, enum omission omission)
{
    cudaStream_t *streams[] = {&p->up, &p->compute, &p->down};
    *p = (struct pipeline){.omission = omission};
    for (size_t i = 0; i < ARRAY_COUNT(streams); i++)
        assert_int_equal(cudaStreamCreateWithFlags(streams[i], cudaStreamNonBlocking), 0);
    for (uint32_t s = 0; s < SLOTS; s++) {
        assert_int_equal(cudaMalloc((void **)&p->slot[s], FLOATS * sizeof(float)), 0);
        assert_int_equal(cudaEventCreateWithFlags(&p->arrived[s], cudaEventDisableTiming), 0);
        assert_int_equal(cudaEventCreateWithFlags(&p->computed[s], cudaEventDisableTiming), 0);
        assert_int_equal(cudaEventCreateWithFlags(&p->left[s], cudaEventDisableTiming), 0);
    }
    for (uint32_t l = 0; l < LAYERS; l++) {
        assert_int_equal(cudaMallocHost((void **)&p->host[l], FLOATS * sizeof(float)), 0);
        for (uint32_t i = 0; i < FLOATS; i++)
            p->host[l][i] = (float)l;
    }
    assert_int_equal(cudaMalloc((void **)&p->addend, FLOATS * sizeof(float)), 0);
    assert_int_equal(cudaMemsetAsync(p->addend, 0, FLOATS * sizeof(float), p->compute), 0);
}

static void wait_unless(const struct pipeline *p, enum omission omission, cudaStream_t stream,
                        cudaEvent_t event)
{
    if (p->omission != omission)
        cudaStreamWaitEvent(stream, event, 0);
}

/* Codes are not looked at: once a fault is found, all calls fail. */
static void pipeline_layer(struct pipeline *p, uint32_t layer)
{
    uint32_t s = layer % SLOTS;
    size_t bytes = FLOATS * sizeof(float);
    struct faulty_add add = {p->slot[s], p->addend, 1.0f, FLOATS};
    if (layer >= SLOTS)
        wait_unless(p, UP_WAITS_FOR_DOWN, p->up, p->left[s]);
    cudaMemcpyAsync(p->slot[s], p->host[layer], bytes, cudaMemcpyHostToDevice, p->up);
    cudaEventRecord(p->arrived[s], p->up);
    wait_unless(p, COMPUTE_WAITS_FOR_UP, p->compute, p->arrived[s]);
    faulty_add_run(&add, p->compute);
    cudaEventRecord(p->computed[s], p->compute);
    wait_unless(p, DOWN_WAITS_FOR_COMPUTE, p->down, p->computed[s]);
    cudaMemcpyAsync(p->host[layer], p->slot[s], bytes, cudaMemcpyDeviceToHost, p->down);
    cudaEventRecord(p->left[s], p->down);
}

static float pipeline_end(struct pipeline *p)
{
    float sum = 0.0f;
    if (p->omission == HOST_WAITS_BEFORE_WRITE)
        p->host[LAYERS - 1][7] = 1.0f;
    if (p->omission != HOST_WAITS_BEFORE_READ)
        cudaStreamSynchronize(p->down);
    for (uint32_t l = 0; l < LAYERS; l++)
        sum += p->host[l][FLOATS - 1];
    return sum;
}

static void pipeline_close(struct pipeline *p, uint64_t seed)
{
    emulation_reset(seed);
    for (uint32_t s = 0; s < SLOTS; s++) {
        cudaFree(p->slot[s]);
        cudaEventDestroy(p->arrived[s]);
        cudaEventDestroy(p->computed[s]);
        cudaEventDestroy(p->left[s]);
    }
    for (uint32_t l = 0; l < LAYERS; l++)
        cudaFreeHost(p->host[l]);
    cudaFree(p->addend);
    cudaStreamDestroy(p->up);
    cudaStreamDestroy(p->compute);
    cudaStreamDestroy(p->down);
}

/* True if a fault was found or the sum is wrong. */
static bool pipeline_fails(enum omission omission, uint64_t seed)
{
    struct pipeline p;
    emulation_reset(seed);
    pipeline_open(&p, omission);
    for (uint32_t l = 0; l < LAYERS; l++)
        pipeline_layer(&p, l);
    bool failed = pipeline_end(&p) != LAYERS * (LAYERS - 1) / 2.0f;
    failed |= emulation_fault_count() > 0;
    pipeline_close(&p, seed);
    return failed;
}

/* The checked flavour tells from the clocks, so under every seed; the plain one by wrong values. */
static void test_missing_waits(void **state)
{
    (void)state;
    emulation_set_quiet(true);
    for (unsigned omission = 0; omission < OMISSION_COUNT; omission++) {
        uint32_t failed = 0;
        for (uint64_t seed = 0; seed < SEEDS; seed++)
            failed += pipeline_fails((enum omission)omission, seed);
        if (omission == NOTHING_OMITTED)
            assert_int_equal(failed, 0);
        else if (emulation_is_checked)
            assert_int_equal(failed, SEEDS);
    }
}

/* 500 seeds, three streams, no fault: no report. */
static void test_no_report_without_a_fault(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 500; seed++)
        assert_false(pipeline_fails(NOTHING_OMITTED, 1000 + seed));
}

/* -- What the runtime refuses -- */

static void check_first(const char *fault)
{
    if (strncmp(emulation_first_fault(), fault, strlen(fault)) != 0)
        fail_msg("found '%s', not '%s'", emulation_first_fault(), fault);
    emulation_reset(1);
}

static void test_misuse(void **state)
{
    (void)state;
    float pageable[64] = {0};
    emulation_set_quiet(true);
    struct gpu_array x = gpu_normal(false, 64, 1, 1.0);
    cudaMemcpyAsync(x.device, pageable, 256, cudaMemcpyHostToDevice, gpu_stream);
    check_first("pageable");
    cudaMemcpy(x.device, pageable, 260, cudaMemcpyHostToDevice);
    check_first("out-of-bounds");
    cudaMemcpy(pageable, x.device, 256, cudaMemcpyHostToDevice);
    check_first("copy");
    cudaMemsetAsync(x.device, 0, 256, NULL);
    check_first("default-stream");
    cudaFree((char *)x.device + 4);
    check_first("bad-free");
    void *freed;
    assert_int_equal(cudaMalloc(&freed, 256), cudaSuccess);
    assert_int_equal(cudaFree(freed), cudaSuccess);
    cudaMemsetAsync(freed, 0, 256, gpu_stream);
    check_first("use-after-free");
    struct faulty_add add = {x.device, freed, 1.0f, 64};
    assert_int_equal(faulty_add_run(&add, gpu_stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(gpu_stream), cudaErrorIllegalAddress);
    check_first(emulation_is_checked ? "use-after-free" : "illegal-address");
}

static void test_failing_calls(void **state)
{
    (void)state;
    void *memory;
    emulation_fail_call(2);
    assert_int_equal(cudaMalloc(&memory, 64), cudaSuccess);
    assert_int_equal(cudaFree(memory), cudaErrorUnknown);
    emulation_fail_call(1);
    assert_int_equal(cudaMalloc(&memory, 64), cudaErrorMemoryAllocation);
    assert_null(memory);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_faulty_kernels), gpu_unit_test(test_seeds_differ),
        gpu_unit_test(test_missing_waits),  gpu_unit_test(test_no_report_without_a_fault),
        gpu_unit_test(test_misuse),         gpu_unit_test(test_failing_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
