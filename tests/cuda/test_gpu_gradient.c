/*
 * The gradient's store on the GPU: what is kept is rounded once, to nearest even; the sums of
 * squares are of what is kept, one per block of parameters; in place gives the same. At counts
 * around one and several blocks, and beyond index 2^31.
 */
#include "core/base.h"
#include "model/cuda/gpu_gradient.h"
#include "tests/cuda/gpu.h"
#include <math.h>
#include <string.h>

static const uint64_t counts[] = {1, 15, 513, 65535, 65536, 65537, 200001, 5 * 65536 + 64};

static void store(bool bf16, uint64_t count, const struct gpu_array *gradient, void *to,
                  const struct gpu_array *sums)
{
    assert_int_equal(gpu_gradient_store(&(struct gpu_gradient_store){bf16, count, gradient->device,
                                                                     to, sums->device},
                                        gpu_stream),
                     cudaSuccess);
}

static void check_store(bool bf16, uint64_t count)
{
    uint64_t blocks = div_up(count, GPU_GRADIENT_BLOCK);
    struct gpu_array gradient = gpu_normal(false, count, 3, 1.0);
    struct gpu_array stored = gpu_unwritten(gpu_element(bf16), count);
    struct gpu_array sums = gpu_unwritten(GPU_DOUBLE, blocks), sums_in_place = sums;
    /* Rounding on the host: core/float.h's. */
    struct gpu_array rounded = gpu_unwritten(gpu_element(bf16), count);
    double *squares = gpu_doubles(blocks);
    sums_in_place = gpu_unwritten(GPU_DOUBLE, blocks);
    memcpy(rounded.host, gradient.host, count * sizeof(double));
    gpu_write(&rounded);
    for (uint64_t i = 0; i < count; i++)
        squares[i / GPU_GRADIENT_BLOCK] += rounded.host[i] * rounded.host[i];
    store(bf16, count, &gradient, stored.device, &sums);
    gpu_check("stored", &stored, rounded.host, 0.0);
    gpu_check("squares", &sums, squares, 1e-12);
    store(bf16, count, &gradient, gradient.device, &sums_in_place);
    struct gpu_array in_place = {gpu_element(bf16), count, gpu_doubles(count), gradient.device};
    gpu_check("in place", &in_place, rounded.host, 0.0);
    gpu_check("squares in place", &sums_in_place, sums.host, 0.0);
    gpu_free_all();
}

static void test_store(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        check_store(false, counts[i]);
        check_store(true, counts[i]);
    }
}

static void test_nan_is_not_lost(void **state)
{
    (void)state;
    struct gpu_array gradient = gpu_normal(false, 70000, 3, 1.0);
    struct gpu_array stored = gpu_unwritten(GPU_BF16, 70000), sums = gpu_unwritten(GPU_DOUBLE, 2);
    gradient.host[65999] = NAN;
    gpu_write(&gradient);
    store(true, 70000, &gradient, stored.device, &sums);
    gpu_read(&stored);
    gpu_read(&sums);
    assert_true(isnan(stored.host[65999]) && isnan(sums.host[1]) && isfinite(sums.host[0]));
}

static void test_index_beyond_31_bits(void **state)
{
    (void)state;
    const uint64_t at = (uint64_t)1 << 31, count = at + 100;
    struct gpu_array tail = gpu_normal(false, 100, 1, 1.0);
    struct gpu_array sums = gpu_unwritten(GPU_DOUBLE, div_up(count, GPU_GRADIENT_BLOCK));
    struct gpu_array big = {.type = GPU_FLOAT}, kept = gpu_unwritten(GPU_BF16, 100), last = sums;
    uint16_t *stored = gpu_big(count * sizeof(*stored));
    double expected = 0.0;
    big.device = gpu_big(count * sizeof(float));
    assert_int_equal(cudaMemcpyAsync((float *)big.device + at, tail.device, 100 * sizeof(float),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    emulation_only_last_blocks(1);
    store(true, count, &big, stored, &sums);
    emulation_only_last_blocks(0);
    assert_int_equal(cudaMemcpyAsync(kept.device, stored + at, 100 * sizeof(uint16_t),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    gpu_check("stored", &kept, tail.host, BF16_TOLERANCE);
    for (uint32_t i = 0; i < 100; i++)
        expected += kept.host[i] * kept.host[i];
    last.device = (double *)sums.device + sums.count - 1;
    last.count = 1;
    gpu_check("squares", &last, &expected, 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_store),
        gpu_unit_test(test_nan_is_not_lost),
        gpu_unit_test(test_index_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
