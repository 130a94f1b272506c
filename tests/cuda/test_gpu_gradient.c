/*
 * The gradient's store on the GPU: what is kept is rounded once, to nearest even, and zeros behind
 * it; the sums of squares are of what is kept, one per block of parameters, and zeros behind them;
 * in place gives the same. At counts around one and several blocks, and beyond index 2^31.
 */
#include "core/base.h"
#include "model/cuda/gpu_gradient.h"
#include "tests/cuda/gpu.h"
#include <math.h>
#include <string.h>

static const uint64_t counts[] = {1, 15, 513, 65535, 65536, 65537, 200001, 5 * 65536 + 64};

static void store(bool bf16, uint64_t count, uint64_t padded, const struct gpu_array *gradient,
                  void *to, const struct gpu_array *sums, void *workspace)
{
    const struct gpu_gradient_store args = {
        .bf16 = bf16,
        .count = count,
        .padded_count = padded,
        .gradient = gradient->device,
        .stored = to,
        .square_sums = sums->device,
        .square_count = sums->count,
        .workspace = workspace,
    };
    assert_int_equal(gpu_gradient_store(&args, 1, gpu_stream), cudaSuccess);
}

/* The gradient's memory is as long as what is stored, as a chunk's is; what lies behind its end is
 * not to be read. */
static void check_store(bool bf16, uint64_t count, uint64_t padding)
{
    uint64_t padded = count + padding, blocks = div_up(padded, GPU_GRADIENT_BLOCK) + 2;
    struct gpu_array gradient = gpu_normal(false, padded, 3, 1.0);
    struct gpu_array stored = gpu_unwritten(gpu_element(bf16), padded);
    struct gpu_array sums = gpu_unwritten(GPU_DOUBLE, blocks), sums_in_place = sums;
    /* Rounding on the host: core/float.h's. */
    struct gpu_array rounded = gpu_unwritten(gpu_element(bf16), padded);
    double *squares = gpu_doubles(blocks);
    void *workspace = gpu_unwritten(GPU_BF16, gpu_gradient_workspace_bytes(padded) / 2).device;
    sums_in_place = gpu_unwritten(GPU_DOUBLE, blocks);
    memcpy(rounded.host, gradient.host, count * sizeof(double));
    memset(rounded.host + count, 0, padding * sizeof(double));
    gpu_write(&rounded);
    for (uint64_t i = 0; i < count; i++)
        squares[i / GPU_GRADIENT_BLOCK] += rounded.host[i] * rounded.host[i];
    store(bf16, count, padded, &gradient, stored.device, &sums, workspace);
    gpu_check("stored", &stored, rounded.host, 0.0);
    gpu_check("squares", &sums, squares, 1e-12);
    store(bf16, count, padded, &gradient, gradient.device, &sums_in_place, workspace);
    struct gpu_array in_place = {gpu_element(bf16), padded, gpu_doubles(padded), gradient.device};
    gpu_check("in place", &in_place, rounded.host, 0.0);
    gpu_check("squares in place", &sums_in_place, sums.host, 0.0);
    gpu_free_all();
}

static void test_store(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        check_store(false, counts[i], 0);
        check_store(true, counts[i], 0);
        check_store(false, counts[i], 4099);
        check_store(true, counts[i], 4099);
    }
}

/* Two at once, of different lengths, each with working memory of its own: as one alone. */
static void check_list(bool bf16, bool in_place)
{
    const uint64_t padded[] = {70000, 200064}, counts_of[] = {69001, 200064};
    struct gpu_gradient_store list[2];
    struct gpu_array gradients[2], alone[2], sums[2], sums_alone[2];
    for (uint32_t i = 0; i < 2; i++) {
        gradients[i] = gpu_normal(false, padded[i], 5 + i, 1.0);
        alone[i] = gpu_unwritten(gpu_element(bf16), padded[i]);
        sums[i] = gpu_unwritten(GPU_DOUBLE, 8);
        sums_alone[i] = gpu_unwritten(GPU_DOUBLE, 8);
        list[i] = (struct gpu_gradient_store){
            .bf16 = bf16,
            .count = counts_of[i],
            .padded_count = padded[i],
            .gradient = gradients[i].device,
            .stored =
                in_place ? gradients[i].device : gpu_unwritten(gpu_element(bf16), padded[i]).device,
            .square_sums = sums[i].device,
            .square_count = 8,
            .workspace =
                gpu_unwritten(GPU_BF16, gpu_gradient_workspace_bytes(padded[i]) / 2).device,
        };
        store(bf16, counts_of[i], padded[i], &gradients[i], alone[i].device, &sums_alone[i],
              list[i].workspace);
    }
    assert_int_equal(gpu_gradient_store(list, 2, gpu_stream), cudaSuccess);
    for (uint32_t i = 0; i < 2; i++) {
        struct gpu_array stored = {gpu_element(bf16), padded[i], gpu_doubles(padded[i]),
                                   list[i].stored};
        gpu_read(&alone[i]);
        gpu_read(&sums_alone[i]);
        gpu_check("stored in a list", &stored, alone[i].host, 0.0);
        gpu_check("squares in a list", &sums[i], sums_alone[i].host, 0.0);
    }
    gpu_free_all();
}

static void test_lists(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < 4; kind++)
        check_list(kind & 1, kind & 2);
}

static void test_nan_is_not_lost(void **state)
{
    (void)state;
    struct gpu_array gradient = gpu_normal(false, 70000, 3, 1.0);
    struct gpu_array stored = gpu_unwritten(GPU_BF16, 70000), sums = gpu_unwritten(GPU_DOUBLE, 2);
    void *workspace = gpu_unwritten(GPU_BF16, gpu_gradient_workspace_bytes(70000) / 2).device;
    gradient.host[65999] = NAN;
    gpu_write(&gradient);
    store(true, 70000, 70000, &gradient, stored.device, &sums, workspace);
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
    struct gpu_array big = {.type = GPU_FLOAT}, kept = gpu_unwritten(GPU_BF16, 100);
    struct gpu_array last = {.type = GPU_DOUBLE, .count = 1, .host = gpu_doubles(1)};
    uint16_t *stored = gpu_big(count * sizeof(*stored));
    double *workspace = gpu_big(gpu_gradient_workspace_bytes(count));
    double expected = 0.0;
    big.device = gpu_big(count * sizeof(float));
    assert_int_equal(cudaMemcpyAsync((float *)big.device + at, tail.device, 100 * sizeof(float),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    emulation_only_last_blocks(1); /* not those that add the sums of parts, which fit in 31 bits */
    store(true, count, count, &big, stored, &sums, workspace);
    emulation_only_last_blocks(0);
    assert_int_equal(cudaMemcpyAsync(kept.device, stored + at, 100 * sizeof(uint16_t),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    gpu_check("stored", &kept, tail.host, BF16_TOLERANCE);
    for (uint32_t i = 0; i < 100; i++)
        expected += kept.host[i] * kept.host[i];
    last.device = workspace + at / GPU_GRADIENT_PART;
    gpu_check("squares of the last part", &last, &expected, 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_store),
        gpu_unit_test(test_lists),
        gpu_unit_test(test_nan_is_not_lost),
        gpu_unit_test(test_index_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
