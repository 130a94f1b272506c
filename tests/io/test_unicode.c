/*
 * Property: a character has the class that Unicode 16 gives it, and exactly the sequences of RFC
 * 3629 are characters. Method: how many characters of each class there are (from Unicode's own
 * data), some that other versions and engines have differently, and every sequence of two bytes,
 * every character, and what is next to them.
 */
#include "core/base.h"
#include "io/unicode.h"
#include "tests/shared/check.h"

static uint32_t count_class(uint32_t classes)
{
    uint32_t count = 0;
    for (uint32_t c = 0; c <= UNICODE_MAX; c++)
        count += (unicode_classes[c] & classes) != 0;
    return count;
}

static void test_classes(void **state)
{
    (void)state;
    unicode_init();
    assert_int_equal(count_class(UNICODE_LETTER), 141028);
    assert_int_equal(count_class(UNICODE_UPPER), 1858 + 31);
    assert_int_equal(count_class(UNICODE_LOWER), 2258);
    assert_int_equal(count_class(UNICODE_UNCASED), 404 + 136477);
    assert_int_equal(count_class(UNICODE_MARK), 2501);
    assert_int_equal(count_class(UNICODE_NUMBER), 1911);
    assert_int_equal(count_class(UNICODE_SPACE), 25);
    assert_int_equal(count_class(UNICODE_LINE), 2);
    static const struct {
        uint32_t character;
        uint8_t class;
    } cases[] = {
        {'a', UNICODE_LOWER},
        {'Z', UNICODE_UPPER},
        {'0', UNICODE_NUMBER},
        {'_', 0},
        {' ', UNICODE_SPACE},
        {'\n', UNICODE_SPACE | UNICODE_LINE},
        {0x0b, UNICODE_SPACE},
        {0x1c, 0}, /* white space to some */
        {0x85, UNICODE_SPACE},
        {0x10c, UNICODE_UPPER},
        {0x10d, UNICODE_LOWER},
        {0x1c5, UNICODE_UPPER},
        {0x2b0, UNICODE_UNCASED},
        {0x301, UNICODE_MARK},
        {0x180e, 0}, /* white space once */
        {0x200b, 0},
        {0x3000, UNICODE_SPACE},
        {0x4e2d, UNICODE_UNCASED},
        {0x1c8a, UNICODE_LOWER},    /* since Unicode 16 */
        {0x2ebf0, UNICODE_UNCASED}, /* since 15.1 */
        {0x11de0, 0},               /* a digit since 17 */
        {UNICODE_MAX, 0},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        assert_int_equal(unicode_classes[cases[i].character], cases[i].class);
}

static size_t encode(uint32_t c, uint8_t text[4])
{
    size_t bytes = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = bytes - 1; i > 0; i--, c >>= 6)
        text[i] = (uint8_t)(0x80 | (c & 0x3f));
    text[0] = (uint8_t)(bytes == 1 ? c : (0xf00u >> bytes & 0xf0) | c);
    return bytes;
}

static void test_utf8(void **state)
{
    (void)state;
    for (uint32_t c = 0; c <= UNICODE_MAX; c++) {
        uint8_t text[4];
        size_t bytes = encode(c, text), decoded;
        bool surrogate = c >= 0xd800 && c < 0xe000;
        assert_int_equal(unicode_character_bytes(text, bytes), surrogate ? 0 : bytes);
        assert_int_equal(unicode_character_bytes(text, bytes - 1), 0);
        assert_int_equal(unicode_decode(text, &decoded), c);
        assert_int_equal(decoded, bytes);
    }
    /* Overlong forms, lone continuations, and what is beyond the last character. */
    static const uint8_t refused[][4] = {
        {0x80},
        {0xbf},
        {0xc0, 0x80},
        {0xc1, 0xbf},
        {0xe0, 0x9f, 0xbf},
        {0xf0, 0x8f, 0xbf, 0xbf},
        {0xf4, 0x90, 0x80, 0x80},
        {0xf5, 0x80, 0x80, 0x80},
        {0xff},
        {0xc3, 0x28},
        {0xe2, 0x82, 0x28},
    };
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++)
        assert_int_equal(unicode_character_bytes(refused[i], 4), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_classes),
        cmocka_unit_test(test_utf8),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
