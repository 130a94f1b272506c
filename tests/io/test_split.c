/*
 * Property: each side gets a document wherever two differ, about the fraction asked for goes to
 * val, the order of documents does not matter, and what cannot be parted by documents is cut at its
 * end.
 */
#include "core/rng.h"
#include "io/split.h"
#include "tests/shared/check.h"

#include <stdbool.h>

#define DOCUMENTS 1000

static struct split noticed(uint64_t seed, uint64_t count, bool backwards)
{
    struct split split = {.text_bytes = 1000};
    for (uint64_t i = 0; i < count; i++)
        split_notice(&split, rng_u64(seed, 0, backwards ? count - 1 - i : i));
    return split;
}

static void test_both_sides(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++)
        for (uint64_t count = 2; count < 6; count++) {
            struct split split = noticed(seed, count, false);
            uint64_t val = 0;
            split_decide(&split, 0.01);
            assert_int_equal(split.tail_start, UINT64_MAX);
            for (uint64_t i = 0; i < count; i++)
                val += split_side_of(&split, rng_u64(seed, 0, i)) == SPLIT_VAL;
            assert_in_range(val, 1, count - 1);
        }
}

static void test_fraction_and_order(void **state)
{
    (void)state;
    struct split split = noticed(7, DOCUMENTS, false), back = noticed(7, DOCUMENTS, true);
    uint64_t val = 0;
    split_decide(&split, 0.2);
    split_decide(&back, 0.2);
    assert_memory_equal(&split, &back, sizeof(split));
    for (uint64_t i = 0; i < DOCUMENTS; i++)
        val += split_side_of(&split, rng_u64(7, 0, i)) == SPLIT_VAL;
    assert_in_range(val, 150, 250);
    split_decide(&split, 0);
    for (uint64_t i = 0; i < DOCUMENTS; i++)
        assert_int_equal(split_side_of(&split, rng_u64(7, 0, i)), SPLIT_TRAIN);
    assert_int_equal(split.tail_start, UINT64_MAX);
}

static void test_alike(void **state)
{
    (void)state;
    struct split split = {.text_bytes = 1000};
    split_notice(&split, 5);
    split_notice(&split, 5);
    split_decide(&split, 0.1);
    assert_int_equal(split.tail_start, 900);
    assert_int_equal(split.documents, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_both_sides),
        cmocka_unit_test(test_fraction_and_order),
        cmocka_unit_test(test_alike),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
