/*
 * GELU, SwiGLU, rotary positions, sums over rows and the flat passes on the GPU, against float64:
 * one element, odd counts, a model's widths, in place where that is allowed, and counts beyond
 * 2^31, of which only the last block of threads runs.
 */
#include "core/base.h"
#include "model/cuda/gpu_activation.h"
#include "model/cuda/gpu_sums.h"
#include "tests/cuda/gpu.h"
#include <math.h>
#include <string.h>

static const uint64_t counts[] = {1, 255, 257, 3 * 3072};

static double gelu(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

/* By central differences: nothing in common with the kernel's formula. */
static double gelu_slope(double x)
{
    const double h = 1e-5;
    return (gelu(x + h) - gelu(x - h)) / (2.0 * h);
}

static double silu(double x)
{
    return x / (1.0 + exp(-x));
}

static double silu_slope(double x)
{
    const double h = 1e-5;
    return (silu(x + h) - silu(x - h)) / (2.0 * h);
}

static void check_gelu(bool bf16, uint64_t count)
{
    struct gpu_array pre = gpu_normal(bf16, count, 1, 2.0), dact = gpu_normal(bf16, count, 2, 1.0);
    struct gpu_array act = gpu_unwritten(gpu_element(bf16), count);
    struct gpu_array again = gpu_unwritten(gpu_element(bf16), count);
    double *expected = gpu_doubles(count), *expected_dpre = gpu_doubles(count);
    /* Where the exponential would overflow, and where nothing is left of it. */
    static const double far[] = {-11, -30, 30, -1000, 1000};
    for (size_t i = 0; i < ARRAY_COUNT(far) && count > 255; i++)
        pre.host[17 * i] = far[i];
    gpu_write(&pre);
    for (uint64_t i = 0; i < count; i++) {
        expected[i] = gelu(pre.host[i]);
        expected_dpre[i] = dact.host[i] * gelu_slope(pre.host[i]);
    }
    assert_int_equal(
        gpu_gelu_forward(&(struct gpu_gelu_forward){bf16, count, pre.device, act.device},
                         gpu_stream),
        cudaSuccess);
    assert_int_equal(
        gpu_gelu_backward(&(struct gpu_gelu_backward){bf16, count, pre.device, dact.device,
                                                      dact.device, again.device},
                          gpu_stream),
        cudaSuccess);
    gpu_check("act", &act, expected, gpu_tolerance(bf16));
    gpu_check("act again", &again, act.host, 0.0);
    gpu_check("dpre", &dact, expected_dpre, gpu_tolerance(bf16));
    gpu_free_all();
}

static void check_swiglu(bool bf16, uint64_t count)
{
    struct gpu_array gate = gpu_normal(bf16, count, 1, 2.0), up = gpu_normal(bf16, count, 2, 1.0);
    struct gpu_array dact = gpu_normal(bf16, count, 3, 1.0);
    struct gpu_array act = gpu_unwritten(gpu_element(bf16), count);
    struct gpu_array again = gpu_unwritten(gpu_element(bf16), count);
    struct gpu_array dgate = gpu_unwritten(gpu_element(bf16), count);
    double *expected = gpu_doubles(count), *expected_dgate = gpu_doubles(count);
    double *expected_dup = gpu_doubles(count);
    for (uint64_t i = 0; i < count; i++) {
        expected[i] = silu(gate.host[i]) * up.host[i];
        expected_dgate[i] = dact.host[i] * up.host[i] * silu_slope(gate.host[i]);
        expected_dup[i] = dact.host[i] * silu(gate.host[i]);
    }
    assert_int_equal(gpu_swiglu_forward(&(struct gpu_swiglu_forward){bf16, count, gate.device,
                                                                     up.device, act.device},
                                        gpu_stream),
                     cudaSuccess);
    assert_int_equal(
        gpu_swiglu_backward(&(struct gpu_swiglu_backward){bf16, count, gate.device, up.device,
                                                          dact.device, dgate.device, dact.device,
                                                          again.device},
                            gpu_stream),
        cudaSuccess);
    gpu_check("act", &act, expected, gpu_tolerance(bf16));
    gpu_check("act again", &again, act.host, 0.0);
    gpu_check("dgate", &dgate, expected_dgate, gpu_tolerance(bf16));
    gpu_check("dup", &dact, expected_dup, gpu_tolerance(bf16));
    gpu_free_all();
}

static void test_activations(void **state)
{
    (void)state;
    for (unsigned bf16 = 0; bf16 < 2; bf16++)
        for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
            check_gelu(bf16, counts[i]);
            check_swiglu(bf16, counts[i]);
        }
}

/* -- Rotary positions -- */

struct turn {
    uint32_t rows, seq, heads, depth, stride;
};

static void check_rope(bool bf16, const struct turn *t)
{
    uint64_t count = (uint64_t)t->rows * t->stride, half = t->depth / 2;
    struct gpu_array x = gpu_normal(bf16, count, 1, 1.0);
    struct gpu_array cosines = gpu_unwritten(GPU_FLOAT, t->seq * half), sines = cosines;
    double *expected = gpu_doubles(count), *original = gpu_doubles(count);
    sines = gpu_unwritten(GPU_FLOAT, t->seq * half);
    for (uint64_t i = 0; i < t->seq * half; i++) {
        double angle = (double)(i / half) * pow(10000.0, -2.0 * (double)(i % half) / t->depth);
        cosines.host[i] = cos(angle);
        sines.host[i] = sin(angle);
    }
    gpu_write(&cosines);
    gpu_write(&sines);
    memcpy(expected, x.host, count * sizeof(double));
    memcpy(original, x.host, count * sizeof(double));
    for (uint32_t r = 0; r < t->rows; r++)
        for (uint64_t i = 0; i < t->heads * half; i++) {
            double *low = expected + (uint64_t)r * t->stride + i / half * t->depth + i % half;
            double angle = r % t->seq * pow(10000.0, -2.0 * (double)(i % half) / t->depth);
            double a = low[0], b = low[half];
            low[0] = a * cos(angle) - b * sin(angle);
            low[half] = b * cos(angle) + a * sin(angle);
        }
    struct gpu_rope args = {.bf16 = bf16,
                            .rows = t->rows,
                            .seq = t->seq,
                            .heads = t->heads,
                            .depth = t->depth,
                            .stride = t->stride,
                            .cos = cosines.device,
                            .sin = sines.device,
                            .x = x.device};
    assert_int_equal(gpu_rope(&args, gpu_stream), cudaSuccess);
    gpu_check("rotated", &x, expected, gpu_tolerance(bf16));
    /* It is orthogonal: backward is the way back. */
    args.backward = true;
    assert_int_equal(gpu_rope(&args, gpu_stream), cudaSuccess);
    gpu_check("turned back", &x, original, gpu_tolerance(bf16));
    gpu_free_all();
}

static void test_rope(void **state)
{
    (void)state;
    const struct turn turns[] = {
        {1, 1, 1, 2, 2}, {14, 7, 3, 10, 37}, {66, 33, 2, 128, 512}, {5, 5, 32, 64, 2048}};
    for (unsigned bf16 = 0; bf16 < 2; bf16++)
        for (size_t i = 0; i < ARRAY_COUNT(turns); i++)
            check_rope(bf16, &turns[i]);
}

/* -- Sums, additions, conversions -- */

static void check_sums(bool bf16, uint32_t rows, uint32_t columns, bool accumulate)
{
    struct gpu_array x = gpu_normal(bf16, (uint64_t)rows * columns, 1, 1.0);
    struct gpu_array sums =
        accumulate ? gpu_normal(false, columns, 2, 1.0) : gpu_unwritten(GPU_FLOAT, columns);
    struct gpu_array partial =
        gpu_unwritten(GPU_FLOAT, gpu_sums_partial_bytes(rows, columns) / sizeof(float));
    double *expected = gpu_doubles(columns);
    for (uint32_t c = 0; c < columns; c++)
        expected[c] = accumulate ? sums.host[c] : 0.0;
    for (uint64_t i = 0; i < x.count; i++)
        expected[i % columns] += x.host[i];
    assert_int_equal(gpu_sums(&(struct gpu_sums){bf16, x.device, rows, columns, sums.device,
                                                 accumulate, partial.device},
                              gpu_stream),
                     cudaSuccess);
    gpu_check("sums", &sums, expected, FP32_TOLERANCE);
    gpu_free_all();
}

static void test_sums(void **state)
{
    (void)state;
    const uint32_t sizes[][2] = {{1, 1}, {63, 33}, {65, 129}, {200, 7}, {5, 3072}};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        for (unsigned c = 0; c < 4; c++)
            check_sums(c & 1, sizes[i][0], sizes[i][1], c & 2);
}

static void check_add(bool bf16, uint32_t rows, uint32_t columns)
{
    uint64_t count = (uint64_t)rows * columns;
    struct gpu_array x = gpu_normal(false, count, 1, 1.0), y = gpu_normal(false, count, 2, 1.0);
    struct gpu_array bias = gpu_normal(bf16, columns, 3, 1.0);
    struct gpu_array narrow = gpu_unwritten(GPU_BF16, count);
    double *expected = gpu_doubles(count);
    for (uint64_t i = 0; i < count; i++)
        expected[i] = x.host[i] + y.host[i] + bias.host[i % columns];
    assert_int_equal(
        gpu_add(&(struct gpu_add){bf16, count, columns, x.device, y.device, bias.device},
                gpu_stream),
        cudaSuccess);
    assert_int_equal(gpu_narrow(&(struct gpu_narrow){count, x.device, narrow.device}, gpu_stream),
                     cudaSuccess);
    gpu_check("sum", &x, expected, FP32_TOLERANCE);
    /* To nearest: what the host makes of the same floats. */
    struct gpu_array rounded = gpu_unwritten(GPU_BF16, count);
    memcpy(rounded.host, x.host, count * sizeof(double));
    gpu_write(&rounded);
    gpu_check("narrow", &narrow, rounded.host, 0.0);
    gpu_free_all();
}

static void test_add_and_narrow(void **state)
{
    (void)state;
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        check_add(bf16, 1, 4);
        check_add(bf16, 5, 100);
        check_add(bf16, 3, 768);
    }
}

/* The last element is beyond 2^31, and a pass that counts in 32 bits would stop before it. */
static void test_count_beyond_31_bits(void **state)
{
    (void)state;
    const uint64_t count = ((uint64_t)1 << 31) + 77;
    float *from = gpu_big(count * sizeof(*from));
    uint16_t *to = gpu_big(count * sizeof(*to));
    struct gpu_array value = gpu_normal(false, 1, 1, 1.0), written = gpu_unwritten(GPU_BF16, 1);
    assert_int_equal(cudaMemcpyAsync(from + count - 1, value.device, sizeof(float),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    /* The first block of the grid has the last element: 77 are left for a last stride of it. */
    emulation_only_first_block(true);
    assert_int_equal(gpu_narrow(&(struct gpu_narrow){count, from, to}, gpu_stream), cudaSuccess);
    emulation_only_first_block(false);
    assert_int_equal(cudaMemcpyAsync(written.device, to + count - 1, sizeof(uint16_t),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    gpu_check("last", &written, value.host, BF16_TOLERANCE);
}

/* The last run of rows of 2^31 elements and more, and the last columns: only that block runs, and
 * all other sums are of zeros. */
static void test_sums_beyond_31_bits(void **state)
{
    (void)state;
    const uint32_t columns = 1u << 15, rows = (1u << 16) + 3, last = 32;
    const uint64_t end = (uint64_t)rows * columns;
    uint16_t *x = gpu_big(end * sizeof(*x));
    float *partial = gpu_big((uint64_t)2 << 30);
    struct gpu_array value = gpu_normal(true, 1, 1, 1.0), sums = gpu_unwritten(GPU_FLOAT, columns);
    assert_int_equal(cudaMemcpyAsync(x + end - 2, value.device, sizeof(uint16_t),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    emulation_only_last_blocks(1);
    assert_int_equal(
        gpu_sums(&(struct gpu_sums){true, x, rows, columns, sums.device, false, partial},
                 gpu_stream),
        cudaSuccess);
    emulation_only_last_blocks(0);
    struct gpu_array part = {GPU_FLOAT, last, gpu_doubles(last), NULL};
    double *expected = gpu_doubles(last);
    part.device = (float *)sums.device + columns - last;
    expected[last - 2] = value.host[0];
    gpu_check("sums", &part, expected, FP32_TOLERANCE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_activations),
        gpu_unit_test(test_rope),
        gpu_unit_test(test_sums),
        gpu_unit_test(test_add_and_narrow),
        gpu_unit_test(test_count_beyond_31_bits),
        gpu_unit_test(test_sums_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
