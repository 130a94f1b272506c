/* hash: the published XXH3 values, and that every single bit and the seed matter. */
#include "tests/shared/check.h"
#include "core/hash.h"
#include <string.h>

static void test_known_values(void **state)
{
    (void)state;
    /* XXH3_64bits of nothing, from the sanity vectors of the xxHash repository. */
    assert_true(hash_bytes(NULL, 0, 0) == 0x2D06800538D394C2u);
    assert_true(hash_bytes("", 0, 0) == hash_bytes(NULL, 0, 0));
}

static void test_every_bit_counts(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 3, 4, 16, 17, 128, 129, 240, 241, 1024};
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        uint8_t data[1024];
        memset(data, 0x5a, sizeof(data));
        uint64_t before = hash_bytes(data, sizes[s], 7);
        assert_true(before != hash_bytes(data, sizes[s], 8));
        assert_true(before != hash_bytes(data, sizes[s] - 1, 7));
        for (size_t bit = 0; bit < sizes[s] * 8; bit++) {
            data[bit / 8] ^= (uint8_t)(1 << bit % 8);
            assert_true(before != hash_bytes(data, sizes[s], 7));
            data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        }
        assert_true(before == hash_bytes(data, sizes[s], 7));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_values),
        cmocka_unit_test(test_every_bit_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
