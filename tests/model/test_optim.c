/*
 * AdamW on (hi, lo) state against a plain float64 loop over 100 steps, clipping included; the
 * vector code against scalar float code bit for bit; the learning-rate schedule at its corners.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/optim.h"
#include "tests/shared/reference.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define COUNT_MAX 1003 /* odd: the vector code has a rest */
#define STEPS     100

static const struct optim_settings settings = {.lr = 3e-3,
                                               .min_lr = 3e-4,
                                               .warmup_steps = 10,
                                               .total_steps = STEPS,
                                               .beta1 = 0.9,
                                               .beta2 = 0.95,
                                               .eps = 1e-8,
                                               .weight_decay = 0.1,
                                               .clip = 1.0};

struct weights {
    uint16_t hi[COUNT_MAX];
    int16_t lo[COUNT_MAX];
    float m[COUNT_MAX], v[COUNT_MAX];
};

static struct optim_range range_of(struct weights *w, const void *gradient, uint64_t count,
                                   bool decay)
{
    return (struct optim_range){.hi = w->hi,
                                .lo = w->lo,
                                .m = w->m,
                                .v = w->v,
                                .gradient = gradient,
                                .count = count,
                                .decay = decay};
}

static void weights_init(struct weights *w, double *expected, uint64_t count)
{
    memset(w, 0, sizeof(*w));
    for (uint64_t i = 0; i < count; i++) {
        float value = (float)(0.5 * rng_normal(1, 1, i));
        float_split(value, &w->hi[i], &w->lo[i]);
        expected[i] = value;
    }
}

/* Gradients whose norm is sometimes above the clip and sometimes below. */
static void draw_gradient(uint64_t step, uint64_t count, float *gradient)
{
    double size = step % 3 == 0 ? 0.2 : 0.01;
    for (uint64_t i = 0; i < count; i++)
        gradient[i] = (float)(size * rng_normal(2, step, i));
}

static double norm_of(const float *gradient, uint64_t count)
{
    double squares = 0.0;
    for (uint64_t i = 0; i < count; i++)
        squares += (double)gradient[i] * (double)gradient[i];
    return sqrt(squares);
}

/* gradient becomes what bf16 storage makes of it, so that both sides see the same. */
static const void *stored_gradient(float *gradient, uint16_t *narrow, uint64_t count,
                                   enum precision precision)
{
    if (precision == PRECISION_FP32)
        return gradient;
    for (uint64_t i = 0; i < count; i++) {
        narrow[i] = float_to_bf16(gradient[i]);
        gradient[i] = float_from_bf16(narrow[i]);
    }
    return narrow;
}

static void check_against_reference(enum precision precision, bool decay, uint64_t count)
{
    static struct weights w;
    static float gradient[COUNT_MAX];
    static uint16_t narrow[COUNT_MAX];
    static double expected[COUNT_MAX], m[COUNT_MAX], v[COUNT_MAX], exact[COUNT_MAX];
    weights_init(&w, expected, count);
    memset(m, 0, sizeof(m));
    memset(v, 0, sizeof(v));
    for (uint64_t step = 0; step < STEPS; step++) {
        draw_gradient(step, count, gradient);
        const void *stored = stored_gradient(gradient, narrow, count, precision);
        for (uint64_t i = 0; i < count; i++)
            exact[i] = gradient[i];
        double norm = norm_of(gradient, count);
        assert_true(fabs(reference_clip(exact, count, settings.clip) - norm) <= 1e-12 * norm);
        struct reference_adamw plain = {.lr = optim_learning_rate(&settings, step),
                                        .beta1 = settings.beta1,
                                        .beta2 = settings.beta2,
                                        .eps = settings.eps,
                                        .weight_decay = decay ? settings.weight_decay : 0.0,
                                        .t = step + 1};
        reference_adamw(&plain, expected, m, v, exact, count);
        struct optim_step scalars;
        optim_step_init(&scalars, &settings, step, optim_clip_factor(&settings, norm));
        struct optim_range range = range_of(&w, stored, count, decay);
        assert_true(optim_update(&range, &scalars, precision));
    }
    double difference = 0.0, size = 0.0;
    for (uint64_t i = 0; i < count; i++) {
        double ours = float_join(w.hi[i], w.lo[i]);
        difference += (ours - expected[i]) * (ours - expected[i]);
        size += expected[i] * expected[i];
    }
    /* 100 roundings of 2^-24 each, and those of the moments. */
    assert_true(sqrt(difference / size) < 3e-6);
}

static void test_adamw_follows_float64(void **state)
{
    (void)state;
    static const uint64_t counts[] = {1, 15, 64, COUNT_MAX};
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++)
        for (unsigned kind = 0; kind < 4; kind++)
            check_against_reference((enum precision)(kind & 1), kind & 2, counts[i]);
}

/* Each operation in float, rounded by itself: what the vector code must give on any CPU. volatile
 * keeps the compiler from vectorising or contracting this side. */
static void scalar_update(const struct optim_range *range, const struct optim_step *s)
{
    const float *gradients = range->gradient;
    for (uint64_t i = 0; i < range->count; i++) {
        volatile float gradient = gradients[i] * s->clip_factor;
        volatile float rest1 = 1.0f - s->beta1, rest2 = 1.0f - s->beta2;
        volatile float weight = float_join(range->hi[i], range->lo[i]);
        volatile float a = s->beta1 * range->m[i], b = rest1 * gradient;
        volatile float m = a + b;
        volatile float square = gradient * gradient;
        volatile float c = s->beta2 * range->v[i], d = rest2 * square;
        volatile float v = c + d;
        volatile float m_hat = m * s->correction1, v_hat = v * s->correction2;
        volatile float root = sqrtf(v_hat);
        volatile float below = root + s->eps;
        volatile float direction = m_hat / below;
        volatile float pull = (range->decay ? s->weight_decay : 0.0f) * weight;
        volatile float whole = direction + pull;
        volatile float move = s->lr * whole;
        volatile float moved = weight - move;
        float_split(moved, &range->hi[i], &range->lo[i]);
        range->m[i] = m;
        range->v[i] = v;
    }
}

static void test_vector_code_gives_scalar_bits(void **state)
{
    (void)state;
    static struct weights ours, scalar;
    static float gradient[COUNT_MAX];
    static double ignored[COUNT_MAX];
    weights_init(&ours, ignored, COUNT_MAX);
    scalar = ours;
    for (uint64_t step = 0; step < 30; step++) {
        draw_gradient(step, COUNT_MAX, gradient);
        struct optim_step scalars;
        optim_step_init(&scalars, &settings, step, 0.37);
        struct optim_range a = range_of(&ours, gradient, COUNT_MAX, step % 2);
        struct optim_range b = range_of(&scalar, gradient, COUNT_MAX, step % 2);
        assert_true(optim_update(&a, &scalars, PRECISION_FP32));
        scalar_update(&b, &scalars);
        assert_memory_equal(&ours, &scalar, sizeof(ours));
    }
}

/* A chunk may be cut anywhere: the bits do not depend on where. */
static void test_ranges_may_be_cut(void **state)
{
    (void)state;
    static struct weights whole, cut;
    static float gradient[COUNT_MAX];
    static double ignored[COUNT_MAX];
    weights_init(&whole, ignored, COUNT_MAX);
    cut = whole;
    draw_gradient(0, COUNT_MAX, gradient);
    struct optim_step scalars;
    optim_step_init(&scalars, &settings, 3, 1.0);
    struct optim_range range = range_of(&whole, gradient, COUNT_MAX, true);
    assert_true(optim_update(&range, &scalars, PRECISION_FP32));
    for (uint64_t at = 0, length = 1; at < COUNT_MAX; at += length, length = length * 2 + 1) {
        struct optim_range part = {.hi = cut.hi + at,
                                   .lo = cut.lo + at,
                                   .m = cut.m + at,
                                   .v = cut.v + at,
                                   .gradient = gradient + at,
                                   .count = MIN(length, COUNT_MAX - at),
                                   .decay = true};
        assert_true(optim_update(&part, &scalars, PRECISION_FP32));
    }
    assert_memory_equal(&whole, &cut, sizeof(whole));
}

static void test_non_finite_weight_is_told(void **state)
{
    (void)state;
    static const float broken[] = {NAN, INFINITY, -INFINITY};
    static struct weights w;
    static float gradient[COUNT_MAX];
    static double ignored[COUNT_MAX];
    static const uint64_t places[] = {0, 17, COUNT_MAX - 1};
    for (size_t i = 0; i < ARRAY_COUNT(broken); i++) {
        for (size_t place = 0; place < ARRAY_COUNT(places); place++) {
            weights_init(&w, ignored, COUNT_MAX);
            draw_gradient(0, COUNT_MAX, gradient);
            struct optim_step scalars;
            optim_step_init(&scalars, &settings, 3, 1.0);
            struct optim_range range = range_of(&w, gradient, COUNT_MAX, true);
            assert_true(optim_update(&range, &scalars, PRECISION_FP32));
            gradient[places[place]] = broken[i];
            assert_false(optim_update(&range, &scalars, PRECISION_FP32));
        }
    }
}

/* The master's bits through hi and lo: every upper half with lower halves around the ties, which
 * has denormals, zeros of both signs and the largest floats among them. */
static void test_hi_lo_reproduce_the_master(void **state)
{
    (void)state;
    static const uint32_t lower[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1234};
    for (uint32_t upper = 0; upper < 0x10000; upper++) {
        for (size_t i = 0; i < ARRAY_COUNT(lower); i++) {
            uint32_t bits = upper << 16 | lower[i];
            if ((bits & 0x7f800000u) == 0x7f800000u)
                continue;
            uint16_t hi;
            int16_t lo;
            float_split(float_from_bits(bits), &hi, &lo);
            assert_int_equal(float_bits(float_join(hi, lo)), bits);
        }
    }
}

static void test_schedule(void **state)
{
    (void)state;
    assert_true(optim_learning_rate(&settings, 0) == settings.lr / 10.0);
    assert_true(optim_learning_rate(&settings, 9) == settings.lr);
    assert_true(optim_learning_rate(&settings, 10) == settings.lr);
    assert_true(fabs(optim_learning_rate(&settings, 55) - (settings.lr + settings.min_lr) / 2) <
                1e-15);
    assert_true(optim_learning_rate(&settings, STEPS) == settings.min_lr);
    assert_true(optim_learning_rate(&settings, STEPS * 10) == settings.min_lr);
    for (uint64_t step = 10; step < STEPS; step++)
        assert_true(optim_learning_rate(&settings, step + 1) <
                    optim_learning_rate(&settings, step));
    struct optim_settings no_warmup = settings;
    no_warmup.warmup_steps = 0;
    assert_true(optim_learning_rate(&no_warmup, 0) == settings.lr);
    struct optim_settings all_warmup = settings;
    all_warmup.warmup_steps = STEPS;
    assert_true(optim_learning_rate(&all_warmup, STEPS - 1) == settings.lr);
}

static void test_clip_factor(void **state)
{
    (void)state;
    struct optim_settings s = settings;
    s.clip = 0.5;
    assert_true(optim_clip_factor(&s, 2.0) == 0.25);
    assert_true(optim_clip_factor(&s, 0.5) == 1.0);
    assert_true(optim_clip_factor(&s, 0.0) == 1.0);
    s.clip = 0.0;
    assert_true(optim_clip_factor(&s, 1e30) == 1.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adamw_follows_float64),
        cmocka_unit_test(test_vector_code_gives_scalar_bits),
        cmocka_unit_test(test_ranges_may_be_cut),
        cmocka_unit_test(test_non_finite_weight_is_told),
        cmocka_unit_test(test_hi_lo_reproduce_the_master),
        cmocka_unit_test(test_schedule),
        cmocka_unit_test(test_clip_factor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
