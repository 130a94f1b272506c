/*
 * Masters joined on the GPU are, bit by bit, those that core/float.h split: of every size from zero
 * and denormals to the largest, ties in both signs, at counts around one and several blocks, and
 * where a pass goes on in strides. What lies behind the last one stays as it is.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/cuda/gpu_join.h"
#include "tests/cuda/gpu.h"

#include <string.h>

#define MARK 0x7f00ff77u

static const uint64_t counts[] = {1, 255, 256, 257, 2048, 100001, 4096 * 256 + 3};

/* Any bits of a finite number; each eighth a tie. */
static uint32_t master_bits(uint64_t i)
{
    uint32_t bits = (uint32_t)rng_u64(1, RNG_STREAM_SAMPLE, i);
    if (i % 8 == 0)
        bits = (bits & 0xffff0000u) | 0x8000u;
    return (bits & 0x7f800000u) >= 0x7f000000u ? bits & 0x80ffffffu : bits;
}

static void *upload(const void *host, size_t bytes)
{
    struct gpu_array array = gpu_unwritten(GPU_FLOAT, div_up(bytes, 4));
    assert_int_equal(cudaMemcpy(array.device, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return array.device;
}

static void check_join(uint64_t count)
{
    uint16_t *hi = mem_alloc(count, sizeof(*hi));
    int16_t *lo = mem_alloc(count, sizeof(*lo));
    uint32_t *expected = mem_alloc(count + 1, sizeof(*expected));
    uint32_t *found = mem_alloc(count + 1, sizeof(*found));
    for (uint64_t i = 0; i < count; i++) {
        expected[i] = master_bits(i);
        float_split(float_from_bits(expected[i]), &hi[i], &lo[i]);
        found[i] = MARK;
    }
    expected[count] = found[count] = MARK;
    struct gpu_join args = {
        .count = count,
        .hi = upload(hi, count * sizeof(*hi)),
        .lo = upload(lo, count * sizeof(*lo)),
        .weights = upload(found, (count + 1) * sizeof(*found)),
    };
    /* In a list behind a longer and before a shorter one; hi alone is copied. */
    uint16_t none = 0;
    uint64_t longer = count + 1000;
    uint16_t *halves = mem_alloc(longer, sizeof(*halves));
    for (uint64_t i = 0; i < longer; i++)
        halves[i] = (uint16_t)(i * 31);
    const struct gpu_join list[] = {
        {longer, upload(halves, longer * sizeof(*halves)), NULL,
         gpu_unwritten(GPU_BF16, longer).device},
        args,
        {1, upload(&none, sizeof(none)), NULL, gpu_unwritten(GPU_BF16, 1).device},
    };
    assert_int_equal(gpu_join(list, ARRAY_COUNT(list), gpu_stream), cudaSuccess);
    uint16_t *copied = mem_alloc(longer, sizeof(*copied));
    assert_int_equal(cudaStreamSynchronize(gpu_stream), cudaSuccess);
    assert_int_equal(
        cudaMemcpy(copied, list[0].weights, longer * sizeof(*copied), cudaMemcpyDeviceToHost),
        cudaSuccess);
    assert_memory_equal(copied, halves, longer * sizeof(*copied));
    mem_free(halves);
    mem_free(copied);
    assert_int_equal(cudaStreamSynchronize(gpu_stream), cudaSuccess);
    assert_int_equal(
        cudaMemcpy(found, args.weights, (count + 1) * sizeof(*found), cudaMemcpyDeviceToHost),
        cudaSuccess);
    assert_memory_equal(found, expected, (count + 1) * sizeof(*found));
    mem_free(hi);
    mem_free(lo);
    mem_free(expected);
    mem_free(found);
    gpu_free_all();
}

static void test_join(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++)
        check_join(counts[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {gpu_unit_test(test_join)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
