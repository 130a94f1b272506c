/*
 * The vector loops: plain, AVX2 and AVX-512 code give the same bits; exp and gelu keep the accuracy
 * that rows.h states; softmax in tiles equals softmax at once, with masked and extreme scores.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/cpu/rows.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define LEVELS  3
#define ROWS    5
#define COLUMNS 96
#define COUNT   ((size_t)ROWS * COLUMNS)

static void draw(float *values, size_t count, uint64_t stream, double size)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(size * rng_normal(1, stream, i));
}

/* What one level makes of the same inputs, in one piece so that it is compared by one memcmp. */
struct outputs {
    float norm[COUNT], again[COUNT], mean[ROWS], deviation[ROWS];
    float dx[COUNT], dweight[COLUMNS], dbias[COLUMNS];
    float stored[COUNT], biased[COUNT], pre[COUNT], act[COUNT], residual[COUNT];
    float dpre[COUNT], act_again[COUNT];
    float sums[COLUMNS], widened[COUNT], scaled[COUNT];
    uint16_t narrowed[COUNT], narrowed_again[COUNT];
    double squares, narrow_squares;
    float dot;
    float maximum[ROWS], sum[ROWS], p[COUNT], rescale[ROWS], p_again[COUNT], ds[COUNT];
    float logits_maximum[ROWS], logits_sum[ROWS], target[ROWS], dlogits[COUNT];
};

struct inputs {
    float x[COUNT], dy[COUNT], wide_weight[COUNT], wide_bias[COUNT];
    uint16_t narrow_weight[COUNT], narrow_bias[COUNT], narrow_x[COUNT];
    uint32_t targets[ROWS];
};

static void inputs_draw(struct inputs *in)
{
    draw(in->x, COUNT, 1, 2.0);
    draw(in->dy, COUNT, 2, 1.0);
    draw(in->wide_weight, COUNT, 3, 1.0);
    draw(in->wide_bias, COUNT, 4, 1.0);
    for (size_t i = 0; i < COUNT; i++) {
        in->narrow_weight[i] = float_to_bf16(in->wide_weight[i]);
        in->narrow_bias[i] = float_to_bf16(in->wide_bias[i]);
        in->narrow_x[i] = float_to_bf16(in->x[i]);
    }
    for (uint32_t r = 0; r < ROWS; r++)
        in->targets[r] = 7 + r * 20;
}

static void run_norm(const struct rows *rows, const struct inputs *in, struct outputs *out,
                     const void *weight, const void *bias, bool bf16)
{
    struct rows_norm norm = {.x = in->x,
                             .weight = weight,
                             .bias = bias,
                             .mean = out->mean,
                             .deviation = out->deviation,
                             .rows = ROWS,
                             .columns = COLUMNS,
                             .epsilon = 1e-5f,
                             .bf16 = bf16};
    rows->norm(&norm, out->norm);
    rows->norm_again(&norm, out->again);
    struct rows_norm_backward backward = {.x = in->x,
                                          .dy = in->dy,
                                          .weight = weight,
                                          .mean = out->mean,
                                          .deviation = out->deviation,
                                          .dx = out->dx,
                                          .accumulate = true,
                                          .dweight = out->dweight,
                                          .dbias = out->dbias,
                                          .rows = ROWS,
                                          .columns = COLUMNS,
                                          .bf16 = bf16};
    rows->norm_backward(&backward);
}

static void run_endings(const struct rows *rows, const struct inputs *in, struct outputs *out,
                        const void *bias, const void *pre, bool bf16)
{
    struct rows_tile tile = {.values = (float *)in->x,
                             .stride = COLUMNS,
                             .rows = ROWS,
                             .columns = COLUMNS,
                             .bf16 = bf16};
    rows->store(&tile, out->stored, COLUMNS);
    rows->bias_store(&tile, bias, out->biased, COLUMNS);
    rows->bias_gelu(&tile, bias, out->pre, out->act, COLUMNS);
    rows->bias_residual(&tile, bias, in->dy, out->residual, COLUMNS);
    rows->gelu_backward(&tile, pre, out->dpre, out->act_again, COLUMNS);
}

static void run_flat(const struct rows *rows, const struct inputs *in, struct outputs *out,
                     const void *x, bool bf16)
{
    size_t odd = COUNT - 3; /* a rest that is no whole vector */
    rows->column_sums(x, COLUMNS, ROWS, COLUMNS, out->sums, false, bf16);
    rows->narrow(in->x, out->narrowed, odd);
    out->narrow_squares = rows->narrow_square_sum(in->x, out->narrowed_again, odd);
    assert_memory_equal(out->narrowed_again, out->narrowed, odd * sizeof(uint16_t));
    assert_true(out->narrow_squares == rows->square_sum(out->narrowed, odd, true));
    rows->widen(x, out->widened, odd, true, bf16);
    rows->add(in->dy, out->widened, odd);
    rows->scale_store(in->x, COLUMNS, ROWS, COLUMNS - 3, in->dy, out->scaled, COLUMNS, bf16);
    out->squares = rows->square_sum(x, odd, bf16);
    out->dot = rows->dot(x, x, COLUMNS - 3, bf16);
}

static void run_softmax(const struct rows *rows, const struct inputs *in, struct outputs *out,
                        bool bf16)
{
    static float dp[COUNT];
    struct rows_scores scores = {.scores = (float *)in->x,
                                 .stride = COLUMNS,
                                 .rows = ROWS,
                                 .columns = 83,
                                 .query_first = 80,
                                 .scale = 0.7f,
                                 .bf16 = bf16};
    for (uint32_t r = 0; r < ROWS; r++)
        out->maximum[r] = 0.1f;
    memcpy(dp, in->dy, sizeof(dp));
    rows->softmax(&scores, out->maximum, out->sum, out->p, out->rescale);
    rows->softmax_backward(&scores, out->maximum, out->sum, dp, out->p_again, out->ds);
    struct rows_logits logits = {.logits = in->x,
                                 .stride = COLUMNS,
                                 .rows = ROWS,
                                 .columns = 83,
                                 .targets = in->targets,
                                 .column_first = 5,
                                 .bf16 = bf16};
    rows->logits_forward(&logits, out->logits_maximum, out->logits_sum, out->target);
    rows->logits_backward(&logits, out->logits_maximum, 0.3f, out->dlogits, COLUMNS);
}

static void test_levels_give_the_same_bits(void **state)
{
    (void)state;
    static struct inputs in;
    static struct outputs out[LEVELS];
    inputs_draw(&in);
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        const void *weight = bf16 ? (void *)in.narrow_weight : (void *)in.wide_weight;
        const void *bias = bf16 ? (void *)in.narrow_bias : (void *)in.wide_bias;
        const void *x = bf16 ? (void *)in.narrow_x : (void *)in.x;
        for (unsigned level = 0; level < LEVELS; level++) {
            const struct rows *rows = rows_at(level);
            if (!rows)
                continue;
            memset(&out[level], 0, sizeof(out[level]));
            run_norm(rows, &in, &out[level], weight, bias, bf16);
            run_endings(rows, &in, &out[level], bias, x, bf16);
            run_flat(rows, &in, &out[level], x, bf16);
            run_softmax(rows, &in, &out[level], bf16);
            assert_memory_equal(&out[level], &out[0], sizeof(out[0]));
        }
    }
}

/* exp through logits_backward: out = exp(logit - 0) with no target among the columns. */
static void exp_of(const struct rows *rows, const float *x, float *y, uint32_t count)
{
    static const float zero[1];
    static const uint32_t elsewhere[1] = {UINT32_MAX};
    struct rows_logits logits = {.logits = x,
                                 .stride = (uint32_t)round_up(count, ROWS_LANES),
                                 .rows = 1,
                                 .columns = count,
                                 .targets = elsewhere};
    rows->logits_backward(&logits, zero, 1.0f, y, logits.stride);
}

static void test_exp_accuracy(void **state)
{
    (void)state;
    enum { COUNT_EXP = 1 << 20 };
    float *x = mem_alloc(COUNT_EXP, sizeof(float)), *y = mem_alloc(COUNT_EXP, sizeof(float));
    for (uint32_t i = 0; i < COUNT_EXP; i++)
        x[i] = (float)(-87.3 + 176.0 * i / COUNT_EXP);
    exp_of(rows_best(), x, y, COUNT_EXP);
    for (uint32_t i = 0; i < COUNT_EXP; i++) {
        double exact = exp((double)x[i]);
        if (exact <= 3.4028234e38)
            assert_true(fabs(y[i] - exact) < 2e-7 * exact);
    }
    static const float edges[] = {-INFINITY, -1e30f, -200.0f, -88.0f, 0.0f,
                                  -0.0f,     1e-30f, 89.0f,   1e30f,  INFINITY};
    static const float expected[] = {0, 0, 0, 0, 1, 1, 1, INFINITY, INFINITY, INFINITY};
    exp_of(rows_best(), edges, y, ARRAY_COUNT(edges));
    for (size_t i = 0; i < ARRAY_COUNT(edges); i++)
        assert_true(y[i] == expected[i]);
    x[0] = NAN;
    exp_of(rows_best(), x, y, 1);
    assert_true(isnan(y[0]));
    mem_free(x);
    mem_free(y);
}

static double gelu_exact(double x)
{
    return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

static void test_gelu_accuracy(void **state)
{
    (void)state;
    enum { COUNT_GELU = 1 << 16 };
    float *x = mem_alloc(COUNT_GELU, sizeof(float)), *ones = mem_alloc(COUNT_GELU, sizeof(float));
    float *slope = mem_alloc(COUNT_GELU, sizeof(float));
    float *y = mem_alloc(COUNT_GELU, sizeof(float));
    for (uint32_t i = 0; i < COUNT_GELU; i++) {
        x[i] = (float)(-12.0 + 24.0 * i / COUNT_GELU);
        ones[i] = 1.0f;
    }
    struct rows_tile tile = {
        .values = ones, .stride = COUNT_GELU, .rows = 1, .columns = COUNT_GELU};
    rows_best()->gelu_backward(&tile, x, slope, y, COUNT_GELU);
    for (uint32_t i = 0; i < COUNT_GELU; i++) {
        double exact = gelu_exact(x[i]), h = 1e-5;
        double exact_slope = (gelu_exact(x[i] + h) - gelu_exact(x[i] - h)) / (2.0 * h);
        assert_true(fabs(y[i] - exact) < 1e-6 * fmax(fabs(x[i]), 1e-3));
        assert_true(fabs(slope[i] - exact_slope) < 2e-6);
    }
    mem_free(x);
    mem_free(ones);
    mem_free(slope);
    mem_free(y);
}

/* One row of 200 scores in tiles of 64 against float64 at once: keys up to the query count. */
static void check_online_softmax(double size, uint32_t query)
{
    enum { KEYS = 200, TILE = 64 };
    float scores[KEYS + TILE], p[KEYS + TILE], maximum = -INFINITY, sum = 0.0f;
    draw(scores, KEYS, 9, size);
    double exact_sum = 0.0, most = -INFINITY;
    for (uint32_t i = 0; i <= query; i++)
        most = fmax(most, scores[i]);
    for (uint32_t i = 0; i <= query; i++)
        exact_sum += exp(scores[i] - most);
    double kept = 0.0;
    for (uint32_t first = 0; first < KEYS; first += TILE) {
        float rescale;
        struct rows_scores tile = {.scores = scores + first,
                                   .stride = TILE,
                                   .rows = 1,
                                   .columns = MIN(TILE, KEYS - first),
                                   .query_first = query,
                                   .key_first = first,
                                   .scale = 1.0f};
        rows_best()->softmax(&tile, &maximum, &sum, p, &rescale);
        kept *= rescale;
        for (uint32_t i = 0; i < TILE; i++) {
            assert_true(first + i <= query || p[i] == 0.0f);
            kept += p[i];
        }
    }
    assert_true(maximum == (float)most);
    assert_true(fabs(sum - exact_sum) < 1e-5 * exact_sum);
    assert_true(fabs(kept - exact_sum) < 1e-5 * exact_sum);
}

static void test_online_softmax(void **state)
{
    (void)state;
    static const double scales[] = {1e-6, 1.0, 30.0, 1e4};
    static const uint32_t queries[] = {0, 1, 15, 16, 63, 64, 100, 199};
    for (size_t s = 0; s < ARRAY_COUNT(scales); s++)
        for (size_t q = 0; q < ARRAY_COUNT(queries); q++)
            check_online_softmax(scales[s], queries[q]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels_give_the_same_bits),
        cmocka_unit_test(test_exp_accuracy),
        cmocka_unit_test(test_gelu_accuracy),
        cmocka_unit_test(test_online_softmax),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
