/*
 * Cross-entropy and its gradient on the GPU, against float64, over tiles of the vocabulary: one
 * row, one column, odd sizes, GPT-2's vocabulary, logits so large that exponentials without their
 * maximum would overflow, NaN, and rows beyond index 2^31.
 */
#include "core/base.h"
#include "model/cuda/gpu_head.h"
#include "tests/cuda/gpu.h"
#include <math.h>

#define SCALE 0.125f

struct size {
    uint32_t rows, vocab, tile;
    double deviation;
};
static const struct size sizes[] = {
    {1, 1, 1, 1.0}, {5, 131, 50, 3.0}, {3, 700, 257, 200.0}, {2, 50257, 20000, 2.0}};

struct problem {
    struct size size;
    struct gpu_array logits, targets, running, losses;
};

static struct problem problem_of(const struct size *size)
{
    struct problem p = {.size = *size};
    p.logits = gpu_normal(false, (uint64_t)size->rows * size->vocab, 1, size->deviation);
    p.targets = gpu_below(size->rows, 2, size->vocab);
    p.running = gpu_unwritten(GPU_FLOAT, 3 * size->rows);
    p.losses = gpu_unwritten(GPU_FLOAT, size->rows);
    return p;
}

/* Rows of `bytes` from one stride, in bytes, to another. */
static void copy_rows(void *to, uint64_t to_stride, const void *from, uint64_t from_stride,
                      uint64_t bytes, uint32_t rows)
{
    for (uint32_t r = 0; r < rows; r++)
        assert_int_equal(cudaMemcpyAsync((char *)to + r * to_stride,
                                         (const char *)from + r * from_stride, bytes,
                                         cudaMemcpyDeviceToDevice, gpu_stream),
                         cudaSuccess);
}

/* Rows lie `stride` apart, and the memory ends with the last one. */
static uint64_t spread_count(const struct gpu_head_logits *logits)
{
    return (uint64_t)(logits->rows - 1) * logits->stride + logits->columns;
}

/* A tile's logits have memory of their own, as on the device: what lies between and behind them is
 * not theirs. */
static struct gpu_head_logits tile_of(const struct problem *p, uint32_t first)
{
    const struct size *s = &p->size;
    struct gpu_head_logits logits = {.rows = s->rows,
                                     .columns = MIN(s->tile, s->vocab - first),
                                     .targets = p->targets.device,
                                     .column_first = first};
    logits.stride = (uint32_t)round_up(logits.columns, 4) + 4;
    struct gpu_array tile = gpu_unwritten(GPU_FLOAT, spread_count(&logits));
    copy_rows(tile.device, logits.stride * sizeof(float), (float *)p->logits.device + first,
              s->vocab * sizeof(float), logits.columns * sizeof(float), s->rows);
    logits.logits = tile.device;
    return logits;
}

static void run_forward(const struct problem *p)
{
    float *running = p->running.device;
    uint32_t rows = p->size.rows;
    for (uint32_t first = 0; first < p->size.vocab; first += p->size.tile)
        assert_int_equal(
            gpu_head_forward(&(struct gpu_head_forward){tile_of(p, first), running, running + rows,
                                                        running + 2 * rows, first == 0},
                             gpu_stream),
            cudaSuccess);
    assert_int_equal(gpu_head_loss(&(struct gpu_head_loss){rows, running, running + rows,
                                                           running + 2 * rows, p->losses.device},
                                   gpu_stream),
                     cudaSuccess);
}

/* Returns log sum exp of a row of logits. */
static double log_sum(const double *row, uint32_t count)
{
    double most = -INFINITY, sum = 0.0;
    for (uint32_t i = 0; i < count; i++)
        most = fmax(most, row[i]);
    for (uint32_t i = 0; i < count; i++)
        sum += exp(row[i] - most);
    return most + log(sum);
}

/* expected: [rows, vocab]. */
static void check_tile(const struct problem *p, uint32_t first, bool bf16, const double *expected)
{
    struct gpu_head_logits logits = tile_of(p, first);
    uint64_t each = bf16 ? 2 : 4, bytes = logits.columns * each;
    struct gpu_array spread = gpu_unwritten(gpu_element(bf16), spread_count(&logits));
    struct gpu_array dlogits =
        gpu_unwritten(gpu_element(bf16), (uint64_t)logits.rows * logits.columns);
    double *part = gpu_doubles(dlogits.count);
    for (uint64_t i = 0; i < dlogits.count; i++)
        part[i] = expected[i / logits.columns * p->size.vocab + first + i % logits.columns];
    assert_int_equal(gpu_head_backward(&(struct gpu_head_backward){logits, p->running.device, SCALE,
                                                                   bf16, spread.device},
                                       gpu_stream),
                     cudaSuccess);
    copy_rows(dlogits.device, bytes, spread.device, logits.stride * each, bytes, logits.rows);
    gpu_check("dlogits", &dlogits, part, gpu_tolerance(bf16));
}

static void check_size(bool bf16, const struct size *s)
{
    struct problem p = problem_of(s);
    double *losses = gpu_doubles(s->rows), *expected = gpu_doubles(p.logits.count);
    for (uint32_t r = 0; r < s->rows; r++) {
        const double *row = p.logits.host + (uint64_t)r * s->vocab;
        double all = log_sum(row, s->vocab);
        uint32_t target = (uint32_t)p.targets.host[r];
        losses[r] = all - row[target];
        for (uint32_t v = 0; v < s->vocab; v++)
            expected[(uint64_t)r * s->vocab + v] =
                (exp(row[v] - all) - (v == target ? 1.0 : 0.0)) * SCALE;
    }
    run_forward(&p);
    for (uint32_t first = 0; first < s->vocab; first += s->tile)
        check_tile(&p, first, bf16, expected);
    gpu_check("losses", &p.losses, losses, FP32_TOLERANCE);
    gpu_free_all();
}

static void test_cross_entropy(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        check_size(false, &sizes[i]);
        check_size(true, &sizes[i]);
    }
}

/* One NaN, and the row's loss is NaN: nothing goes on with it unseen. */
static void test_nan_is_not_lost(void **state)
{
    (void)state;
    struct problem p = problem_of(&(struct size){3, 300, 64, 1.0});
    p.logits.host[300 + 170] = NAN;
    p.targets.host[1] = 3;
    gpu_write(&p.logits);
    gpu_write(&p.targets);
    run_forward(&p);
    gpu_read(&p.losses);
    assert_true(isfinite(p.losses.host[0]) && isnan(p.losses.host[1]));
    assert_true(isfinite(p.losses.host[2]));
}

static void check_single(bool bf16, uint32_t rows, uint32_t channels)
{
    struct gpu_array tile = gpu_normal(bf16, (uint64_t)rows * channels, 1, 1.0);
    struct gpu_array y = gpu_normal(bf16, channels, 2, 1.0);
    struct gpu_array logits = gpu_unwritten(GPU_FLOAT, rows);
    double *expected = gpu_doubles(rows);
    for (uint64_t i = 0; i < tile.count; i++)
        expected[i / channels] += tile.host[i] * y.host[i % channels];
    assert_int_equal(gpu_head_single(&(struct gpu_head_single){bf16, rows, channels, tile.device,
                                                               y.device, logits.device},
                                     gpu_stream),
                     cudaSuccess);
    gpu_check("logits", &logits, expected, FP32_TOLERANCE);
    gpu_free_all();
}

static void test_single_rows(void **state)
{
    (void)state;
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        check_single(bf16, 1, 32);
        check_single(bf16, 131, 96);
        check_single(bf16, 17, 768);
    }
}

/* Three rows 2^30 elements apart. */
static void test_index_beyond_31_bits(void **state)
{
    (void)state;
    const uint32_t stride = 1u << 30, columns = 200, rows = 3;
    struct problem p = problem_of(&(struct size){rows, columns, columns, 1.0});
    float *spread = gpu_big(((uint64_t)stride * (rows - 1) + columns) * sizeof(*spread));
    float *running = p.running.device;
    double *losses = gpu_doubles(rows);
    for (uint32_t r = 0; r < rows; r++) {
        const double *row = p.logits.host + (uint64_t)r * columns;
        losses[r] = log_sum(row, columns) - row[(uint32_t)p.targets.host[r]];
    }
    copy_rows(spread, stride * sizeof(float), p.logits.device, columns * sizeof(float),
              columns * sizeof(float), rows);
    struct gpu_head_logits logits = {spread, rows, columns, stride, p.targets.device, 0};
    assert_int_equal(gpu_head_forward(&(struct gpu_head_forward){logits, running, running + rows,
                                                                 running + 2 * rows, true},
                                      gpu_stream),
                     cudaSuccess);
    assert_int_equal(gpu_head_loss(&(struct gpu_head_loss){rows, running, running + rows,
                                                           running + 2 * rows, p.losses.device},
                                   gpu_stream),
                     cudaSuccess);
    gpu_check("losses", &p.losses, losses, FP32_TOLERANCE);
    /* The gradient of the last row, in place in fp32. */
    assert_int_equal(gpu_head_backward(&(struct gpu_head_backward){logits, p.running.device, SCALE,
                                                                   false, spread},
                                       gpu_stream),
                     cudaSuccess);
    struct gpu_array last = gpu_unwritten(GPU_FLOAT, columns);
    double *gradient = gpu_doubles(columns);
    const double *row = p.logits.host + (uint64_t)(rows - 1) * columns;
    for (uint32_t c = 0; c < columns; c++)
        gradient[c] = (exp(row[c] - log_sum(row, columns)) -
                       (c == (uint32_t)p.targets.host[rows - 1] ? 1.0 : 0.0)) *
                      SCALE;
    assert_int_equal(cudaMemcpyAsync(last.device, spread + (uint64_t)stride * (rows - 1),
                                     columns * sizeof(float), cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    gpu_check("dlogits", &last, gradient, FP32_TOLERANCE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_cross_entropy),
        gpu_unit_test(test_nan_is_not_lost),
        gpu_unit_test(test_single_rows),
        gpu_unit_test(test_index_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
