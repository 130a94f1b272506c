/*
 * Moments in fewer bytes: what is stored is what plain code makes of the definition, bit for bit,
 * so that vectors are right whatever the processor has; errors are within the format's bounds;
 * rounding by chance is unbiased and depends on (seed, step, parameter, moment) alone; what is not
 * finite is refused. Method: blocks of random values of all sizes, and the corners by hand.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/rng.h"
#include "model/moments.h"
#include "tests/shared/check.h"

#include <math.h>
#include <string.h>

#define SEED   77
#define BLOCKS 200

struct stored {
    _Alignas(64) uint8_t m[MOMENTS_BLOCK * 4], v[MOMENTS_BLOCK * 4];
};

static struct moments moments;

/* Sizes over 16 decades, both signs in m. */
static void fill(struct moments_values *values, uint64_t block)
{
    for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
        double size = pow(10, -8 * rng_uniform(SEED, 1, block * MOMENTS_BLOCK + i) - 2);
        values->m[i] = (float)(size * rng_normal(SEED, 2, block * MOMENTS_BLOCK + i));
        values->v[i] = (float)(size * size * rng_uniform(SEED, 3, block * MOMENTS_BLOCK + i));
    }
}

static bool store(const struct moments_values *values, struct stored *stored, uint64_t step,
                  uint64_t first)
{
    struct moments_place place = {step, first};
    memset(stored, 0xee, sizeof(*stored));
    return moments_store(&moments, values, stored->m, stored->v, &place);
}

static void load(struct moments_values *values, const struct stored *stored)
{
    moments_load(&moments, values, stored->m, stored->v);
}

/* ---- bf16 ------------------------------------------------------------------------------------ */

/* The 16 random bits of a parameter's moment, by the numbers one at a time. */
static uint32_t bits_of(uint64_t step, uint64_t parameter, bool is_v)
{
    uint64_t inside = parameter % MOMENTS_BLOCK;
    uint64_t index = parameter / MOMENTS_BLOCK * RNG_MANY + inside % RNG_MANY;
    uint32_t words[4 * RNG_MANY];
    rng_many(SEED, RNG_STREAM_ROUNDING | step << 32, index, words);
    uint32_t word = words[inside / RNG_MANY * RNG_MANY];
    return is_v ? word >> 16 : word & 0xffff;
}

static void test_bf16_is_as_defined(void **state)
{
    (void)state;
    moments_init(&moments, MOMENTS_BF16, SEED);
    for (uint64_t block = 0; block < BLOCKS; block++) {
        struct moments_values in, out;
        struct stored stored;
        uint64_t step = block * 77, first = (block << 40) + block * MOMENTS_BLOCK;
        fill(&in, block);
        assert_true(store(&in, &stored, step, first));
        load(&out, &stored);
        for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
            uint32_t m = float_bits(in.m[i]) + bits_of(step, first + i, false);
            uint32_t v = float_bits(in.v[i]) + bits_of(step, first + i, true);
            assert_int_equal(float_bits(out.m[i]), m & 0xffff0000u);
            assert_int_equal(float_bits(out.v[i]), v & 0xffff0000u);
            assert_true(fabsf(out.m[i] - in.m[i]) < fabsf(in.m[i]) / 128);
        }
        /* What is a bf16 already stays as it is: a moment that is not touched does not wander. */
        struct moments_values again;
        assert_true(store(&out, &stored, step + 1, first));
        load(&again, &stored);
        assert_memory_equal(&again, &out, sizeof(out));
    }
}

/* The mean of many roundings is the value, within six standard errors. */
static void test_bf16_is_unbiased(void **state)
{
    (void)state;
    static const float values[] = {1.00123f, -3.3333f, 1e-30f, 0.7f, 1.2345e-42f};
    moments_init(&moments, MOMENTS_BF16, SEED);
    for (size_t k = 0; k < ARRAY_COUNT(values); k++) {
        double sum[2] = {0}, square[2] = {0};
        const double count = 400.0 * (double)MOMENTS_BLOCK;
        struct moments_values in, out;
        for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
            in.m[i] = values[k];
            in.v[i] = fabsf(values[k]);
        }
        for (uint64_t step = 0; step < 400; step++) {
            struct stored stored;
            assert_true(store(&in, &stored, step, 512));
            load(&out, &stored);
            for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
                double error[2] = {out.m[i] - (double)in.m[i], out.v[i] - (double)in.v[i]};
                for (int w = 0; w < 2; w++) {
                    sum[w] += error[w];
                    square[w] += error[w] * error[w];
                }
            }
        }
        for (int w = 0; w < 2; w++) {
            assert_true(square[w] > 0);
            assert_true(fabs(sum[w] / count) < 6 * sqrt(square[w]) / count);
        }
    }
}

/* The same place draws the same; any other seed, step, parameter or moment draws otherwise. */
static void test_bf16_draws(void **state)
{
    (void)state;
    struct moments_values in, out[5];
    struct stored stored;
    for (uint64_t i = 0; i < MOMENTS_BLOCK; i++)
        in.m[i] = in.v[i] = 1.0f + 0x1p-8f; /* half way */
    for (uint64_t k = 0; k < 5; k++) {
        moments_init(&moments, MOMENTS_BF16, k == 2 ? SEED + 1 : SEED);
        assert_true(store(&in, &stored, k == 3, k == 4 ? 512 : 256));
        load(&out[k], &stored);
    }
    assert_memory_equal(&out[0], &out[1], sizeof(out[0]));
    for (uint64_t k = 2; k < 5; k++) {
        uint32_t same[2] = {0};
        for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
            same[0] += out[0].m[i] == out[k].m[i];
            same[1] += out[0].v[i] == out[k].v[i];
        }
        for (int w = 0; w < 2; w++)
            assert_true(same[w] > 80 && same[w] < 176); /* six standard errors about 128 */
    }
    uint32_t same = 0;
    for (uint64_t i = 0; i < MOMENTS_BLOCK; i++)
        same += out[0].m[i] == out[0].v[i];
    assert_true(same > 80 && same < 176);
}

/* ---- 8 bits ---------------------------------------------------------------------------------- */

/* The map's entry that is nearest, the larger magnitude of two; by trying all. */
static uint8_t nearest(const struct moments_map *map, float scaled, bool is_signed)
{
    uint32_t best = 0;
    for (uint32_t code = 1; code < 256; code++) {
        if (is_signed && (map->value[code] < 0) != (scaled < 0))
            continue;
        /* As the float code has it: by the rounded middle between neighbours. */
        float inner = fminf(fabsf(map->value[code]), fabsf(map->value[best]));
        float outer = fmaxf(fabsf(map->value[code]), fabsf(map->value[best]));
        bool above = fabsf(scaled) >= (inner + outer) / 2;
        if (above == (fabsf(map->value[code]) == outer))
            best = code;
    }
    return (uint8_t)best;
}

static void test_8bit_maps(void **state)
{
    (void)state;
    moments_init(&moments, MOMENTS_8BIT, SEED);
    assert_true(moments.m.value[0] == 0 && moments.v.value[0] == 0);
    /* The ends and two inner values of the paper's maps. */
    assert_true(moments.m.value[128] == 1 && moments.v.value[255] == 1);
    assert_true(fabs(moments.m.value[1] / 0.55e-6 - 1) < 1e-6);
    assert_true(fabs(moments.m.value[127] - (1 - 0.9 / 128)) < 1e-6);
    assert_true(fabs(moments.m.value[129] + (1 - 0.9 / 128)) < 1e-6);
    assert_true(fabs(moments.v.value[1] / 0.325e-6 - 1) < 1e-6);
    assert_true(fabs(moments.v.value[254] - (1 - 0.9 / 256)) < 1e-6);
    for (uint32_t code = 1; code < 256; code++) {
        assert_true(moments.v.value[code] > moments.v.value[code - 1]);
        if (code <= 128)
            assert_true(moments.m.value[code] > moments.m.value[code - 1]);
        if (code >= 129)
            assert_true(moments.m.value[code] == -moments.m.value[256 - code]);
    }
}

static void test_8bit_is_as_defined(void **state)
{
    (void)state;
    moments_init(&moments, MOMENTS_8BIT, SEED);
    for (uint64_t block = 0; block < BLOCKS; block++) {
        struct moments_values in, out;
        struct stored stored;
        fill(&in, block);
        in.v[block % MOMENTS_BLOCK] = 0;
        assert_true(store(&in, &stored, 0, 0));
        load(&out, &stored);
        const struct moments_8bit *m = (const void *)stored.m, *v = (const void *)stored.v;
        float largest_m = 0, largest_v = 0;
        for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
            largest_m = fmaxf(largest_m, fabsf(in.m[i]));
            largest_v = fmaxf(largest_v, in.v[i]);
        }
        assert_true(m->scale == largest_m && v->scale == largest_v);
        for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
            uint8_t code_m = nearest(&moments.m, in.m[i] / largest_m, true);
            uint8_t code_v = nearest(&moments.v, in.v[i] / largest_v, false);
            assert_int_equal(m->code[i], code_m);
            assert_int_equal(v->code[i], in.v[i] > 0 ? MAX(code_v, 1) : 0);
            assert_true(out.m[i] == moments.m.value[code_m] * largest_m);
            /* Half a step of the top decade; m has no -1. */
            assert_true(fabsf(out.m[i] - in.m[i]) <= largest_m * 0.00704f);
            assert_true(fabsf(out.v[i] - in.v[i]) <= largest_v * 0.00352f);
        }
        for (size_t i = sizeof(*m); i < sizeof(stored.m); i++)
            assert_true(stored.m[i] == 0xee && stored.v[i] == 0xee); /* nothing beyond */
    }
}

/* Values that are in the map come back as they were, so that what is not touched does not wander.
 */
static void test_8bit_is_stable(void **state)
{
    (void)state;
    moments_init(&moments, MOMENTS_8BIT, SEED);
    struct moments_values in, out;
    struct stored stored;
    for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
        in.m[i] = moments.m.value[i] * 0x1p-20f;
        in.v[i] = moments.v.value[i] * 0x1p-40f;
    }
    assert_true(store(&in, &stored, 0, 0));
    load(&out, &stored);
    assert_memory_equal(&out, &in, sizeof(in));
}

/* ---- Corners --------------------------------------------------------------------------------- */

static void test_zeros(void **state)
{
    (void)state;
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        struct moments_values values = {0}, out;
        struct stored stored, zeros = {0};
        moments_init(&moments, kind, SEED);
        assert_true(store(&values, &stored, 3, 0));
        assert_memory_equal(stored.m, zeros.m, moments_block_bytes(kind));
        assert_memory_equal(stored.v, zeros.v, moments_block_bytes(kind));
        load(&out, &zeros);
        assert_memory_equal(&out, &values, sizeof(out));
    }
}

static void test_denormals(void **state)
{
    (void)state;
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        struct moments_values in, out;
        struct stored stored;
        moments_init(&moments, kind, SEED);
        for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
            in.m[i] = (i % 2 ? 1 : -1) * 0x1p-149f * (float)(i << 12);
            in.v[i] = 0x1p-149f * (float)(i << 12);
        }
        assert_true(store(&in, &stored, 0, 0));
        load(&out, &stored);
        for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
            float most = 0x1p-149f * (float)(1 << 16);
            assert_true(fabsf(out.m[i] - in.m[i]) <= most && fabsf(out.v[i] - in.v[i]) <= most);
            assert_true(out.v[i] >= 0);
        }
    }
}

static void test_not_finite_is_refused(void **state)
{
    (void)state;
    const float bad[] = {INFINITY, -INFINITY, NAN};
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        moments_init(&moments, kind, SEED);
        for (size_t b = 0; b < ARRAY_COUNT(bad); b++)
            for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
                struct moments_values values;
                struct stored stored;
                fill(&values, 1);
                assert_true(store(&values, &stored, 0, 0));
                (i % 2 ? values.m : values.v)[i] = bad[b];
                assert_false(store(&values, &stored, 0, 0));
            }
    }
    /* What rounding makes infinite is refused too; half of these are rounded up. */
    moments_init(&moments, MOMENTS_BF16, SEED);
    uint32_t refused = 0;
    for (uint64_t step = 0; step < 64; step++) {
        struct moments_values values = {0}, out;
        struct stored stored;
        values.m[step] = float_from_bits(0x7f7f8000u);
        bool stays = store(&values, &stored, step, 0);
        load(&out, &stored);
        assert_int_equal(stays, isfinite(out.m[step]) != 0);
        refused += !stays;
    }
    assert_true(refused > 8 && refused < 56);
}

static void test_bytes(void **state)
{
    (void)state;
    assert_int_equal(moments_bytes(MOMENTS_FP32, 1000), 4000);
    assert_int_equal(moments_bytes(MOMENTS_BF16, 1000), 2000);
    assert_int_equal(moments_bytes(MOMENTS_8BIT, 1024), 1024 + 4 * 4);
    assert_int_equal(moments_bytes(MOMENTS_8BIT, 1025), 1025 + 5 * 4);
    assert_int_equal(moments_bytes(MOMENTS_8BIT, 0), 0);
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        assert_int_equal(moments_bytes(kind, MOMENTS_BLOCK), moments_block_bytes(kind));
        assert_int_equal(moments_find(moments_name[kind]), kind);
    }
    assert_int_equal(moments_find("4bit"), MOMENTS_KIND_COUNT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bf16_is_as_defined),
        cmocka_unit_test(test_bf16_is_unbiased),
        cmocka_unit_test(test_bf16_draws),
        cmocka_unit_test(test_8bit_maps),
        cmocka_unit_test(test_8bit_is_as_defined),
        cmocka_unit_test(test_8bit_is_stable),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_denormals),
        cmocka_unit_test(test_not_finite_is_refused),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
