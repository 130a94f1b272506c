/*
 * RMSNorm over heads on the GPU, forward and backward, against float64 (tests/shared/pieces.h, a
 * head being a row there): one row, odd sizes, Qwen3's heads, rows that other columns lie between,
 * in place, accumulated gradients, and rows beyond index 2^31.
 */
#include "core/base.h"
#include "model/cuda/gpu_head_norm.h"
#include "tests/cuda/gpu.h"
#include "tests/shared/pieces.h"
#include <string.h>

#define EPSILON 1e-6

struct size {
    uint32_t rows, heads, depth, stride;
};
static const struct size sizes[] = {
    {1, 1, 2, 2}, {7, 3, 10, 37}, {130, 2, 33, 66}, {5, 32, 128, 6144}};

/* The heads of all rows, one after the other. */
static void gather(const struct size *s, const double *x, double *heads)
{
    uint64_t width = (uint64_t)s->heads * s->depth;
    for (uint64_t i = 0; i < s->rows * width; i++)
        heads[i] = x[i / width * s->stride + i % width];
}

static void check_heads(const char *what, const struct size *s, struct gpu_array *ours,
                        const double *expected, double tolerance)
{
    gpu_read(ours);
    uint64_t count = (uint64_t)s->rows * s->heads * s->depth;
    struct gpu_array heads = gpu_unwritten(ours->type, count);
    gather(s, ours->host, heads.host);
    gpu_write(&heads);
    gpu_check(what, &heads, expected, tolerance);
}

static void check_size(bool bf16, const struct size *s, bool accumulate)
{
    uint64_t count = (uint64_t)s->rows * s->stride;
    uint64_t heads = (uint64_t)s->rows * s->heads, width = heads * s->depth;
    struct gpu_array x = gpu_normal(bf16, count, 1, 2.0), y = gpu_normal(bf16, count, 5, 1.0);
    struct gpu_array dy = gpu_normal(bf16, count, 2, 1.0);
    struct gpu_array weight =
        gpu_random(&(struct gpu_random){gpu_element(bf16), s->depth, 3, 1.0, 0.2});
    struct gpu_array deviation = gpu_unwritten(GPU_FLOAT, heads);
    struct gpu_array dweight =
        accumulate ? gpu_normal(false, s->depth, 4, 1.0) : gpu_unwritten(GPU_FLOAT, s->depth);
    struct gpu_array partial =
        gpu_unwritten(GPU_FLOAT, gpu_head_norm_partial_bytes(s->rows, s->depth) / sizeof(float));
    struct gpu_head_norm_shape shape = {bf16,     s->rows,   s->heads,
                                        s->depth, s->stride, (float)EPSILON};
    double *near_x = gpu_doubles(width), *near_dy = gpu_doubles(width);
    double *expected = gpu_doubles(width), *expected_dx = gpu_doubles(width);
    double *expected_dweight = gpu_doubles(s->depth), *no_bias = gpu_doubles(s->depth);
    struct pieces_norm reference = {.rows = (uint32_t)heads,
                                    .columns = s->depth,
                                    .epsilon = EPSILON,
                                    .x = near_x,
                                    .weight = weight.host};
    gather(s, x.host, near_x);
    gather(s, dy.host, near_dy);
    if (accumulate)
        memcpy(expected_dweight, dweight.host, s->depth * sizeof(double));
    pieces_norm(&reference, expected);
    pieces_norm_backward(&reference, near_dy, expected_dx, expected_dweight, no_bias);
    assert_int_equal(
        gpu_head_norm_forward(&(struct gpu_head_norm_forward){shape, x.device, weight.device,
                                                              deviation.device, y.device},
                              gpu_stream),
        cudaSuccess);
    assert_int_equal(gpu_head_norm_backward(
                         &(struct gpu_head_norm_backward){
                             shape, x.device, dy.device, weight.device, deviation.device, dy.device,
                             dweight.device, accumulate, partial.device},
                         gpu_stream),
                     cudaSuccess);
    check_heads("y", s, &y, expected, gpu_tolerance(bf16));
    check_heads("dx", s, &dy, expected_dx, gpu_tolerance(bf16));
    gpu_check("dweight", &dweight, expected_dweight, FP32_TOLERANCE);
    /* In place gives the same bits. */
    gpu_head_norm_forward(
        &(struct gpu_head_norm_forward){shape, x.device, weight.device, deviation.device, x.device},
        gpu_stream);
    double *in_place = gpu_doubles(width);
    gather(s, y.host, in_place);
    check_heads("y in place", s, &x, in_place, 0.0);
    gpu_free_all();
}

static void test_head_norm(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        for (unsigned c = 0; c < 4; c++)
            check_size(c & 1, &sizes[i], c & 2);
}

/* Three rows 2^30 elements apart. */
static void test_index_beyond_31_bits(void **state)
{
    (void)state;
    const uint32_t stride = 1u << 30, depth = 64, rows = 3;
    float *spread = gpu_big(((uint64_t)stride * (rows - 1) + depth) * sizeof(*spread));
    struct gpu_array x = gpu_normal(false, depth, 1, 1.0), y = gpu_unwritten(GPU_FLOAT, depth);
    struct gpu_array weight = gpu_normal(false, depth, 2, 1.0);
    struct gpu_array deviation = gpu_unwritten(GPU_FLOAT, rows);
    double *expected = gpu_doubles(depth);
    struct pieces_norm reference = {false, 1, depth, EPSILON, x.host, weight.host, NULL};
    float *last = spread + (uint64_t)stride * (rows - 1);
    assert_int_equal(cudaMemcpyAsync(last, x.device, depth * sizeof(float),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    struct gpu_head_norm_shape shape = {false, rows, 1, depth, stride, (float)EPSILON};
    assert_int_equal(
        gpu_head_norm_forward(
            &(struct gpu_head_norm_forward){shape, spread, weight.device, deviation.device, spread},
            gpu_stream),
        cudaSuccess);
    assert_int_equal(cudaMemcpyAsync(y.device, last, depth * sizeof(float),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    pieces_norm(&reference, expected);
    gpu_check("y", &y, expected, FP32_TOLERANCE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_head_norm),
        gpu_unit_test(test_index_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
