/*
 * LayerNorm and RMSNorm on the GPU, forward and backward, against float64 written from the papers:
 * one row, odd numbers of rows, the narrowest and the models' widths, with and without the residual
 * sum, accumulated gradients; and rows whose first element is beyond index 2^31.
 */
#include "core/base.h"
#include "model/cuda/gpu_norm.h"
#include "tests/cuda/gpu.h"
#include "tests/shared/pieces.h"
#include <math.h>
#include <string.h>

#define EPSILON 1e-5

struct size {
    uint32_t rows, columns;
};
static const struct size sizes[] = {{1, 32}, {3, 32}, {67, 96}, {5, 768}, {130, 160}, {2, 1600}};

struct inputs {
    bool bf16, layer;
    struct size size;
    struct gpu_array x, add, add_bias, weight, bias, dy;
};

static struct inputs inputs_of(bool bf16, bool layer, struct size size)
{
    uint64_t count = (uint64_t)size.rows * size.columns;
    struct inputs in = {.bf16 = bf16, .layer = layer, .size = size};
    in.x = gpu_random(&(struct gpu_random){GPU_FLOAT, count, 1, 0.5, 2.0});
    in.add = gpu_normal(false, count, 2, 1.0);
    in.add_bias = gpu_normal(bf16, size.columns, 3, 0.3);
    in.weight = gpu_random(&(struct gpu_random){gpu_element(bf16), size.columns, 4, 1.0, 0.2});
    in.bias = gpu_normal(bf16, size.columns, 5, 0.3);
    in.dy = gpu_normal(false, count, 6, 1.0);
    return in;
}

static struct gpu_norm_forward forward_args(const struct inputs *in)
{
    return (struct gpu_norm_forward){
        .kind = in->layer ? GPU_NORM_LAYER : GPU_NORM_RMS,
        .bf16 = in->bf16,
        .rows = in->size.rows,
        .columns = in->size.columns,
        .epsilon = (float)EPSILON,
        .x = in->x.device,
        .weight = in->weight.device,
        .bias = in->layer ? in->bias.device : NULL,
    };
}

static struct pieces_norm reference_of(const struct inputs *in, const double *x)
{
    return (struct pieces_norm){.layer = in->layer,
                                .rows = in->size.rows,
                                .columns = in->size.columns,
                                .epsilon = EPSILON,
                                .x = x,
                                .weight = in->weight.host,
                                .bias = in->bias.host};
}

static void check_forward(bool bf16, bool layer, struct size size, bool with_sum)
{
    struct inputs in = inputs_of(bf16, layer, size);
    uint64_t count = in.x.count;
    struct gpu_array sum = gpu_unwritten(GPU_FLOAT, count);
    struct gpu_array y = gpu_unwritten(gpu_element(bf16), count);
    struct gpu_array again = gpu_unwritten(gpu_element(bf16), count);
    struct gpu_array mean = gpu_unwritten(GPU_FLOAT, size.rows);
    struct gpu_array deviation = gpu_unwritten(GPU_FLOAT, size.rows);
    double *x = gpu_doubles(count), *expected = gpu_doubles(count);
    for (uint64_t i = 0; i < count; i++)
        x[i] =
            in.x.host[i] + (with_sum ? in.add.host[i] + in.add_bias.host[i % size.columns] : 0.0);
    struct gpu_norm_forward args = forward_args(&in);
    args.mean = layer ? mean.device : NULL;
    args.deviation = deviation.device;
    args.y = y.device;
    if (with_sum) {
        args.add = in.add.device;
        args.add_bias = in.add_bias.device;
        args.sum = sum.device;
    }
    assert_int_equal(gpu_norm_forward(&args, gpu_stream), cudaSuccess);
    struct pieces_norm reference = reference_of(&in, x);
    pieces_norm(&reference, expected);
    gpu_check("y", &y, expected, gpu_tolerance(bf16));
    if (with_sum)
        gpu_check("sum", &sum, x, FP32_TOLERANCE);
    /* Recomputation: the same bits from the statistics alone. */
    args.x = with_sum ? sum.device : in.x.device;
    args.add = NULL;
    args.again = true;
    args.y = again.device;
    assert_int_equal(gpu_norm_forward(&args, gpu_stream), cudaSuccess);
    gpu_check("y again", &again, y.host, 0.0);
    gpu_free_all();
}

static void test_forward(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        for (unsigned c = 0; c < 8; c++)
            check_forward(c & 1, c & 2, sizes[i], c & 4);
}

static void check_backward(bool bf16, bool layer, struct size size, bool accumulate)
{
    struct inputs in = inputs_of(bf16, layer, size);
    uint64_t count = in.x.count, columns = size.columns;
    struct gpu_array y = gpu_unwritten(gpu_element(bf16), count);
    struct gpu_array mean = gpu_unwritten(GPU_FLOAT, size.rows);
    struct gpu_array deviation = gpu_unwritten(GPU_FLOAT, size.rows);
    struct gpu_array dx =
        accumulate ? gpu_normal(false, count, 7, 1.0) : gpu_unwritten(GPU_FLOAT, count);
    struct gpu_array dweight =
        accumulate ? gpu_normal(false, columns, 8, 1.0) : gpu_unwritten(GPU_FLOAT, columns);
    struct gpu_array dbias =
        accumulate ? gpu_normal(false, columns, 9, 1.0) : gpu_unwritten(GPU_FLOAT, columns);
    uint64_t partial_bytes = gpu_norm_partial_bytes(size.rows, size.columns);
    struct gpu_array partial = gpu_unwritten(GPU_FLOAT, partial_bytes / sizeof(float));
    double *expected_dx = gpu_doubles(count), *expected_dweight = gpu_doubles(columns);
    double *expected_dbias = gpu_doubles(columns);
    if (accumulate) {
        memcpy(expected_dx, dx.host, count * sizeof(double));
        memcpy(expected_dweight, dweight.host, columns * sizeof(double));
        memcpy(expected_dbias, dbias.host, columns * sizeof(double));
    }
    struct gpu_norm_forward forward = forward_args(&in);
    forward.mean = layer ? mean.device : NULL;
    forward.deviation = deviation.device;
    forward.y = y.device;
    assert_int_equal(gpu_norm_forward(&forward, gpu_stream), cudaSuccess);
    struct gpu_norm_backward args = {.kind = forward.kind,
                                     .bf16 = bf16,
                                     .rows = size.rows,
                                     .columns = size.columns,
                                     .x = in.x.device,
                                     .dy = in.dy.device,
                                     .weight = in.weight.device,
                                     .mean = forward.mean,
                                     .deviation = deviation.device,
                                     .dx = accumulate ? dx.device : in.dy.device,
                                     .accumulate_dx = accumulate,
                                     .dweight = dweight.device,
                                     .dbias = layer ? dbias.device : NULL,
                                     .accumulate = accumulate,
                                     .partial = partial.device};
    assert_int_equal(gpu_norm_backward(&args, gpu_stream), cudaSuccess);
    struct pieces_norm reference = reference_of(&in, in.x.host);
    pieces_norm_backward(&reference, in.dy.host, expected_dx, expected_dweight, expected_dbias);
    gpu_check("dx", accumulate ? &dx : &in.dy, expected_dx, FP32_TOLERANCE);
    gpu_check("dweight", &dweight, expected_dweight, FP32_TOLERANCE);
    if (layer)
        gpu_check("dbias", &dbias, expected_dbias, FP32_TOLERANCE);
    gpu_free_all();
}

static void test_backward(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        for (unsigned c = 0; c < 8; c++)
            check_backward(c & 1, c & 2, sizes[i], c & 4);
}

/* A NaN in one row is in that row's output, and in no other. */
static void test_nan_stays_in_its_row(void **state)
{
    (void)state;
    struct inputs in = inputs_of(true, true, (struct size){5, 64});
    struct gpu_array y = gpu_unwritten(GPU_BF16, in.x.count);
    struct gpu_array mean = gpu_unwritten(GPU_FLOAT, 5), deviation = gpu_unwritten(GPU_FLOAT, 5);
    in.x.host[2 * 64 + 33] = NAN;
    gpu_write(&in.x);
    struct gpu_norm_forward args = forward_args(&in);
    args.mean = mean.device;
    args.deviation = deviation.device;
    args.y = y.device;
    assert_int_equal(gpu_norm_forward(&args, gpu_stream), cudaSuccess);
    gpu_read(&y);
    for (uint32_t i = 0; i < 5 * 64; i++)
        assert_int_equal(isnan(y.host[i]) != 0, i / 64 == 2);
}

/* The last rows of 2^31 elements and more: only the last block runs, on memory that is otherwise
 * never touched. What it writes has to be where 64 bits say. */
static void test_index_beyond_31_bits(void **state)
{
    (void)state;
    const uint32_t columns = 1024, rows = (1u << 21) + 4, last = rows - 4;
    const uint64_t at = (uint64_t)last * columns;
    float *x = gpu_big((at + 4 * columns) * sizeof(*x));
    uint16_t *y = gpu_big((at + 4 * columns) * sizeof(*y));
    struct gpu_array tail = gpu_normal(false, 4 * columns, 1, 1.0);
    struct gpu_array weight = gpu_normal(true, columns, 2, 1.0);
    struct gpu_array bias = gpu_normal(true, columns, 3, 1.0);
    struct gpu_array mean = gpu_unwritten(GPU_FLOAT, rows), deviation = mean;
    double *expected = gpu_doubles(4 * columns);
    deviation = gpu_unwritten(GPU_FLOAT, rows);
    assert_int_equal(cudaMemcpyAsync(x + at, tail.device, 4 * columns * sizeof(float),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    emulation_only_last_blocks(1);
    assert_int_equal(gpu_norm_forward(&(struct gpu_norm_forward){.bf16 = true,
                                                                 .rows = rows,
                                                                 .columns = columns,
                                                                 .epsilon = (float)EPSILON,
                                                                 .x = x,
                                                                 .weight = weight.device,
                                                                 .bias = bias.device,
                                                                 .mean = mean.device,
                                                                 .deviation = deviation.device,
                                                                 .y = y},
                                      gpu_stream),
                     cudaSuccess);
    struct gpu_array written = gpu_unwritten(GPU_BF16, 4 * columns);
    assert_int_equal(cudaMemcpyAsync(written.device, y + at, 4 * columns * sizeof(uint16_t),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    struct pieces_norm reference = {true, 4, columns, EPSILON, tail.host, weight.host, bias.host};
    pieces_norm(&reference, expected);
    gpu_check("y", &written, expected, BF16_TOLERANCE);
    emulation_only_last_blocks(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_forward),
        gpu_unit_test(test_backward),
        gpu_unit_test(test_nan_stays_in_its_row),
        gpu_unit_test(test_index_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
