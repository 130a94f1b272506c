/*
 * rng: Philox's known answers (kat_vectors of Random123), and the moments of what is made of it,
 * with bounds of six standard errors so that a right generator fails never and a wrong one always.
 */
#include "tests/shared/check.h"
#include "core/rng.h"
#include <math.h>

#define DRAWS 200000

static uint64_t words(uint32_t low, uint32_t high)
{
    return (uint64_t)low | (uint64_t)high << 32;
}

static void test_known_answers(void **state)
{
    (void)state;
    assert_true(rng_u64(0, 0, 0) == words(0x6627e8d5, 0xe169c58d));
    assert_true(rng_u64(UINT64_MAX, UINT64_MAX, UINT64_MAX) == words(0x408f276d, 0x41c83b0e));
    assert_true(rng_u64(words(0xa4093822, 0x299f31d0), words(0x13198a2e, 0x03707344),
                        words(0x243f6a88, 0x85a308d3)) == words(0xd16cfe09, 0x94fdcceb));
}

/* Many at once are the same numbers in every way of making them, across the carry into the index's
 * upper half too. */
static void test_many(void **state)
{
    (void)state;
    static const uint64_t firsts[] = {0, 64, UINT32_MAX - 10, UINT64_MAX - 20};
    uint32_t many[4 * RNG_MANY];
    for (size_t f = 0; f < sizeof(firsts) / sizeof(firsts[0]); f++)
        for (uint64_t round = 0; round < 3; round++) {
            uint64_t seed = words(0xa4093822, 0x299f31d0) * (round + f);
            uint64_t stream = round * words(5, 3);
            for (int way = 0; way < RNG_WAYS; way++) {
                if (!rng_many_by((enum rng_way)way, seed, stream, firsts[f], many))
                    continue; /* this CPU has no such vectors */
                for (uint64_t i = 0; i < RNG_MANY; i++)
                    assert_true(rng_u64(seed, stream, firsts[f] + i) ==
                                words(many[i], many[RNG_MANY + i]));
            }
        }
    rng_many(0, 0, 0, many);
    assert_int_equal(many[2 * RNG_MANY], 0xbc57ac4c);
    assert_int_equal(many[3 * RNG_MANY], 0x9b00dbd8);
}

/* The normal uses the other half of the block too: the known answers' words 2 and 3. */
static void test_normal_uses_both_halves(void **state)
{
    (void)state;
    double radius = (double)((words(0x6627e8d5, 0xe169c58d) >> 11) + 1) * 0x1p-53;
    double angle = (double)(words(0xbc57ac4c, 0x9b00dbd8) >> 11) * 0x1p-53;
    double expected = sqrt(-2 * log(radius)) * cos(2 * M_PI * angle);
    assert_true(rng_normal(0, 0, 0) == expected);
}

static void test_uniform(void **state)
{
    (void)state;
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        double x = rng_uniform(1, RNG_STREAM_SAMPLE, i);
        assert_true(x >= 0 && x < 1);
        sum += x;
        squares += x * x;
    }
    double error = 6 / sqrt(12.0 * DRAWS);
    assert_true(fabs(sum / DRAWS - 0.5) < error);
    assert_true(fabs(squares / DRAWS - 1.0 / 3) < error);
}

static void test_normal(void **state)
{
    (void)state;
    double sum = 0, squares = 0, fourths = 0, products = 0, previous = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        double x = rng_normal(2, RNG_STREAM_INIT + 5, i);
        assert_true(isfinite(x));
        sum += x;
        squares += x * x;
        fourths += x * x * x * x;
        products += x * previous;
        previous = x;
    }
    assert_true(fabs(sum / DRAWS) < 6 / sqrt(DRAWS));
    assert_true(fabs(squares / DRAWS - 1) < 6 * sqrt(2.0 / DRAWS));
    assert_true(fabs(fourths / DRAWS - 3) < 6 * sqrt(96.0 / DRAWS));
    assert_true(fabs(products / DRAWS) < 6 / sqrt(DRAWS));
}

static void test_below(void **state)
{
    (void)state;
    enum { BOUND = 7 };
    uint64_t counts[BOUND] = {0};
    for (uint64_t i = 0; i < DRAWS; i++) {
        uint64_t x = rng_below(3, RNG_STREAM_BATCH, i, BOUND);
        assert_true(x < BOUND);
        counts[x]++;
    }
    for (int k = 0; k < BOUND; k++)
        assert_true(fabs((double)counts[k] - (double)DRAWS / BOUND) < 6 * sqrt(DRAWS / 7.0));
    for (uint64_t i = 0; i < 100; i++)
        assert_true(rng_below(3, RNG_STREAM_BATCH, i, 1) == 0);
}

static void test_streams_and_seeds_differ(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 1000; i++) {
        assert_true(rng_u64(1, 1, i) != rng_u64(1, 2, i));
        assert_true(rng_u64(1, 1, i) != rng_u64(2, 1, i));
        assert_true(rng_u64(1, 1, i) != rng_u64(1, 1, i + 1));
        assert_true(rng_u64(1, 1, i) == rng_u64(1, 1, i));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_answers),
        cmocka_unit_test(test_many),
        cmocka_unit_test(test_normal_uses_both_halves),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_normal),
        cmocka_unit_test(test_below),
        cmocka_unit_test(test_streams_and_seeds_differ),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
