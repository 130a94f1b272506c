/*
 * float: split and join are inverse bit for bit, hi is the nearest bf16 with ties away from zero,
 * and float_to_bf16 is to nearest with ties to even. All 65,536 high halves are tried with the low
 * halves where something happens (0, the tie and its neighbours, the ends) and with a few random
 * ones; the references are written in double, by the distance to both neighbours.
 */
#include "tests/shared/check.h"
#include "core/float.h"
#include "core/rng.h"
#include <math.h>
#include <stdbool.h>

#define LOW_COUNT 16

static uint32_t low_half(uint32_t high, int pattern)
{
    static const uint16_t edges[] = {0x0000, 0x0001, 0x7ffe, 0x7fff, 0x8000,
                                     0x8001, 0x8002, 0xfffe, 0xffff};
    int edge_count = (int)(sizeof(edges) / sizeof(edges[0]));
    if (pattern < edge_count)
        return edges[pattern];
    return (uint32_t)rng_below(1, 1, (uint64_t)high * LOW_COUNT + (uint64_t)pattern, 65536);
}

/* The bf16 values around bits: below (towards zero) and above (away from zero), as doubles. Past
 * the largest finite one stands the value that would come next. */
static void neighbours(uint32_t bits, double *below, double *above)
{
    uint32_t magnitude = bits & 0x7fff0000u;
    *below = float_from_bits(magnitude);
    *above = magnitude == 0x7f7f0000u ? ldexp(1.0, 128) : float_from_bits(magnitude + 0x10000u);
}

static uint16_t nearest(uint32_t bits, bool ties_to_even)
{
    double below, above, value = fabs((double)float_from_bits(bits));
    neighbours(bits, &below, &above);
    bool up = above - value < value - below;
    if (above - value == value - below)
        up = ties_to_even ? bits >> 16 & 1 : true;
    return (uint16_t)((bits >> 16) + up);
}

static void test_split_and_join(void **state)
{
    (void)state;
    for (uint32_t high = 0; high < 65536; high++) {
        if ((high & 0x7f80u) == 0x7f80u)
            continue; /* not finite: the caller refuses those */
        for (int pattern = 0; pattern < LOW_COUNT; pattern++) {
            uint32_t bits = high << 16 | low_half(high, pattern);
            uint16_t hi;
            int16_t lo;
            float_split(float_from_bits(bits), &hi, &lo);
            assert_int_equal(float_bits(float_join(hi, lo)), bits);
            assert_int_equal(hi, nearest(bits, false));
        }
    }
}

static void test_to_bf16_nearest_even(void **state)
{
    (void)state;
    for (uint32_t high = 0; high < 65536; high++) {
        if ((high & 0x7f80u) == 0x7f80u)
            continue;
        for (int pattern = 0; pattern < LOW_COUNT; pattern++) {
            uint32_t bits = high << 16 | low_half(high, pattern);
            assert_int_equal(float_to_bf16(float_from_bits(bits)), nearest(bits, true));
        }
    }
}

static void test_bf16_round_trip(void **state)
{
    (void)state;
    for (uint32_t value = 0; value < 65536; value++) {
        float wide = float_from_bf16((uint16_t)value);
        if (isnan(wide))
            assert_true(isnan(float_from_bf16(float_to_bf16(wide))));
        else
            assert_int_equal(float_to_bf16(wide), value);
    }
}

/* A NaN whose payload lies in the low half only would become infinity if it were cut. */
static void test_nan_and_infinity(void **state)
{
    (void)state;
    assert_true(isnan(float_from_bf16(float_to_bf16(float_from_bits(0x7f800001u)))));
    assert_true(isnan(float_from_bf16(float_to_bf16(float_from_bits(0xffffffffu)))));
    assert_int_equal(float_to_bf16(INFINITY), 0x7f80);
    assert_int_equal(float_to_bf16(-INFINITY), 0xff80);
    assert_int_equal(float_to_bf16(float_from_bits(0x7f7fffffu)), 0x7f80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_split_and_join),
        cmocka_unit_test(test_to_bf16_nearest_even),
        cmocka_unit_test(test_bf16_round_trip),
        cmocka_unit_test(test_nan_and_infinity),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
