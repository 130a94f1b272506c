/*
 * Property: pieces are those of the published patterns, put together they are the text whatever its
 * bytes are, and a text torn at pretoken_cut gives the same pieces. Method: goldens from Hugging
 * Face tokenizers (ByteLevel, 0.23) and from the patterns run by another engine
 * (pretoken_goldens.h), the scanners against PCRE2 on every character in many company and on random
 * mixtures of awkward characters, every one- to three-byte text, and mixtures torn at every length.
 */
#include "core/base.h"
#include "core/rng.h"
#include "io/pretoken.h"
#include "io/unicode.h"
#include "tests/shared/check.h"
#include <stdio.h>
#include <string.h>

/* The pieces of text with '|' after each, into joined. */
static void join_pieces(struct pretoken *pretoken, const char *text, size_t bytes, char *joined)
{
    size_t start, piece_bytes, at = 0;
    pretoken_begin(pretoken, text, bytes);
    while (pretoken_next(pretoken, &start, &piece_bytes)) {
        assert_true(piece_bytes > 0);
        memcpy(joined, text + start, piece_bytes);
        joined += piece_bytes;
        *joined++ = '|';
        assert_int_equal(start, at);
        at += piece_bytes;
    }
    assert_int_equal(at, bytes);
    *joined = '\0';
}

static void test_goldens(void **state)
{
    (void)state;
    static const char *const goldens[][2] = {
        {"Hello world", "Hello| world|"},
        {"it's they're I'll x'D 'S", "it|'s| they|'re| I|'ll| x|'|D| '|S|"},
        {"a  b   c", "a| | b|  | c|"},
        {"tab\tand\n\nnewline \n", "tab|\t|and|\n|\n|newline| \n|"},
        {"trailing   ", "trailing|   |"},
        {"abc123 45.6", "abc|123| 45|.|6|"},
        {"P\xc5\x99\xc3\xadli\xc5\xa1 \xc5\xbelu\xc5\xa5ou\xc4\x8dk\xc3\xbd k\xc5\xaf\xc5\x88",
         "P\xc5\x99\xc3\xadli\xc5\xa1| \xc5\xbelu\xc5\xa5ou\xc4\x8dk\xc3\xbd| k\xc5\xaf\xc5\x88|"},
        {"\xe6\x97\xa5\xe6\x9c\xac\xe3\x80\x82!?", "\xe6\x97\xa5\xe6\x9c\xac|\xe3\x80\x82!?|"},
        /* U+180E was white space once, and still is to PCRE2's \s; U+00A0 and U+3000 are. */
        {"a\xe1\xa0\x8e"
         "b",
         "a|\xe1\xa0\x8e|b|"},
        {"a \xc2\xa0"
         "b\xe3\x80\x80"
         "c",
         "a| |\xc2\xa0|b|\xe3\x80\x80|c|"},
        {"\xc2\xbd \xd9\xa3", "\xc2\xbd| \xd9\xa3|"},
        {"", ""},
    };
    struct pretoken *pretoken = pretoken_new(PRETOKEN_GPT2, false);
    for (size_t i = 0; i < ARRAY_COUNT(goldens); i++) {
        char joined[256];
        join_pieces(pretoken, goldens[i][0], strlen(goldens[i][0]), joined);
        assert_string_equal(joined, goldens[i][1]);
    }
    pretoken_free(pretoken);
    pretoken_free(NULL);
}

static const struct golden {
    enum pretoken_kind kind;
    const char *text;
    const char *lengths; /* bytes of each piece, one char each */
} published[] = {
#include "tests/io/pretoken_goldens.h"
};

static void test_published(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(published); i++) {
        const struct golden *golden = &published[i];
        for (int check = 0; check < 2; check++) {
            struct pretoken *pretoken = pretoken_new(golden->kind, check == 1);
            size_t start, bytes, count = 0;
            pretoken_begin(pretoken, golden->text, strlen(golden->text));
            for (; pretoken_next(pretoken, &start, &bytes); count++)
                if (bytes != (size_t)golden->lengths[count])
                    fail_msg("%s: piece %zu of \"%s\" has %zu bytes, not %d",
                             pretoken_names[golden->kind], count, golden->text, bytes,
                             golden->lengths[count]);
            assert_int_equal(count, strlen(golden->lengths));
            pretoken_free(pretoken);
        }
    }
}

static void test_names(void **state)
{
    (void)state;
    for (enum pretoken_kind kind = 0; kind < PRETOKEN_KINDS; kind++) {
        assert_int_equal(pretoken_by_name(pretoken_names[kind]), kind);
        assert_int_equal(pretoken_by_spelling(pretoken_spellings[kind]), kind);
    }
    assert_int_equal(pretoken_by_name("gpt5"), PRETOKEN_KINDS);
    assert_int_equal(pretoken_by_spelling("\\w+"), PRETOKEN_KINDS);
}

/* Runs of bytes that are no UTF-8 stand alone, and the text around them begins and ends there. */
static void test_invalid(void **state)
{
    (void)state;
    static const char *const goldens[][2] = {
        {"ab\xff\xfe"
         "cd",
         "ab|\xff\xfe|cd|"},
        {" \x80 a", " |\x80| a|"},
        {"a  \xc3", "a|  |\xc3|"},            /* a character cut short */
        {"\xed\xa0\x80x", "\xed\xa0\x80|x|"}, /* a surrogate */
        {"\xc0\xaf/", "\xc0\xaf|/|"},         /* an overlong form */
        {"\xf4\x90\x80\x80\xf4\x8f\xbf\xbf", "\xf4\x90\x80\x80|\xf4\x8f\xbf\xbf|"},
        {"\xe2\x82\xc3\xa9", "\xe2\x82|\xc3\xa9|"},
    };
    struct pretoken *pretoken = pretoken_new(PRETOKEN_GPT2, false);
    for (size_t i = 0; i < ARRAY_COUNT(goldens); i++) {
        char joined[64];
        join_pieces(pretoken, goldens[i][0], strlen(goldens[i][0]), joined);
        assert_string_equal(joined, goldens[i][1]);
    }
    pretoken_free(pretoken);
}

static void test_short_texts(void **state)
{
    (void)state;
    char joined[16];
    for (enum pretoken_kind kind = 0; kind < PRETOKEN_KINDS; kind++) {
        struct pretoken *pretoken = pretoken_new(kind, false);
        for (uint32_t value = 0; value < 1u << 16; value++) {
            char text[3] = {(char)value, (char)(value >> 8), 'a'};
            join_pieces(pretoken, text, 1, joined);
            join_pieces(pretoken, text, 2, joined);
            join_pieces(pretoken, text, 3, joined);
        }
        pretoken_free(pretoken);
    }
}

#define TEXT_BYTES 240

static size_t awkward_text(uint64_t seed, char *text)
{
    static const char *const parts[] = {
        "a",
        "Z",
        "\xc4\x8d",
        "7",
        " ",
        " ",
        "\n",
        "\t",
        "'",
        "s",
        "ll",
        ".",
        "\xc2\xa0",
        "\xc2\x85",
        "\xe2\x80\x83",
        "\xe3\x80\x80",
        "\xe1\xa0\x8e",
        "\xf0\x9f\x99\x82",
        "\xff",
        "\xe2",
        "\r\n",
        "-",
        "/",
        "T",
        "RE",
        "\xc5\xbf",         /* the long s, which is an s to (?i:'s) */
        "\xc7\x85",         /* a title-case letter */
        "\xca\xb0",         /* a modifier letter */
        "\xcc\x81",         /* a mark */
        "\xe4\xb8\xad",     /* an ideograph */
        "\xd9\xa3",         /* an Arabic digit */
        "\xf0\x91\xb7\xa0", /* a digit since Unicode 17 only */
    };
    size_t bytes = 0;
    for (uint64_t i = 0; bytes + 4 < TEXT_BYTES; i++) {
        const char *part = parts[rng_below(seed, 0, i, ARRAY_COUNT(parts))];
        memcpy(text + bytes, part, strlen(part));
        bytes += strlen(part);
    }
    return bytes;
}

/* What the scanners make of it is what PCRE2 makes of it. */
static void check_both(struct pretoken *scanning, struct pretoken *checking, const char *text,
                       size_t bytes)
{
    char scanned[2 * TEXT_BYTES + 1], checked[2 * TEXT_BYTES + 1];
    join_pieces(scanning, text, bytes, scanned);
    join_pieces(checking, text, bytes, checked);
    assert_string_equal(scanned, checked);
}

static void test_against_pcre2(void **state)
{
    (void)state;
    for (enum pretoken_kind kind = 0; kind < PRETOKEN_KINDS; kind++) {
        struct pretoken *scanning = pretoken_new(kind, false);
        struct pretoken *checking = pretoken_new(kind, true);
        for (uint64_t seed = 0; seed < 1500; seed++) {
            char text[TEXT_BYTES];
            size_t bytes = awkward_text(seed, text);
            check_both(scanning, checking, text, bytes);
        }
        pretoken_free(scanning);
        pretoken_free(checking);
    }
}

static size_t encode_character(uint32_t c, char *text)
{
    if (c < 0x80) {
        text[0] = (char)c;
        return 1;
    }
    size_t bytes = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = bytes - 1; i > 0; i--, c >>= 6)
        text[i] = (char)(0x80 | (c & 0x3f));
    text[0] = (char)((0xf00u >> bytes & 0xf0) | c);
    return bytes;
}

/* Every character (of those far apart only some) behind, before and between others. */
static void test_every_character(void **state)
{
    (void)state;
    for (enum pretoken_kind kind = 0; kind < PRETOKEN_KINDS; kind++) {
        struct pretoken *scanning = pretoken_new(kind, false);
        struct pretoken *checking = pretoken_new(kind, true);
        for (uint32_t c = 1; c <= UNICODE_MAX; c += c < 0x2800 ? 1 : 97) {
            char text[64], one[5];
            if (c >= 0xd800 && c < 0xe000)
                continue;
            one[encode_character(c, one)] = '\0';
            int bytes = snprintf(text, sizeof(text), "%s a%sB %s7%s!%s\n%s 's%s  %s", one, one, one,
                                 one, one, one, one, one);
            check_both(scanning, checking, text, (size_t)bytes);
        }
        pretoken_free(scanning);
        pretoken_free(checking);
    }
}

static void check_cuts(struct pretoken *pretoken, uint64_t seed, uint64_t *cuts)
{
    char text[TEXT_BYTES], whole[2 * TEXT_BYTES + 1], torn[2 * TEXT_BYTES + 1];
    size_t bytes = awkward_text(seed, text);
    join_pieces(pretoken, text, bytes, whole);
    for (size_t length = 0; length <= bytes; length++) {
        size_t cut = pretoken_cut(text, length);
        assert_true(cut == 0 || cut < length);
        join_pieces(pretoken, text, cut, torn);
        join_pieces(pretoken, text + cut, bytes - cut, torn + strlen(torn));
        assert_string_equal(torn, whole);
        *cuts += cut > 0;
    }
}

static void test_cut(void **state)
{
    (void)state;
    for (enum pretoken_kind kind = 0; kind < PRETOKEN_KINDS; kind++) {
        struct pretoken *pretoken = pretoken_new(kind, false);
        uint64_t cuts = 0;
        for (uint64_t seed = 0; seed < 300; seed++)
            check_cuts(pretoken, seed, &cuts);
        assert_true(cuts > 30000);
        pretoken_free(pretoken);
    }
    assert_int_equal(pretoken_cut("abc def", 7), 3);
    assert_int_equal(pretoken_cut("abcdef", 6), 0);
    assert_int_equal(pretoken_cut("", 0), 0);
    /* A line end belongs to the sign before it, but not to a letter, and single ones end a piece.
     */
    assert_int_equal(pretoken_cut("ab!\n", 4), 0);
    assert_int_equal(pretoken_cut("ab!\nc", 5), 4);
    assert_int_equal(pretoken_cut("ab!\n/", 5), 0);
    assert_int_equal(pretoken_cut("ab\n\n", 4), 2);
    assert_int_equal(pretoken_cut("\xe3\x80\x82\n\xe4\xb8", 6), 4);
    assert_int_equal(pretoken_cut("\xe3\x80\x82\n\xe3\x80", 6), 0); /* perhaps U+3000 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),         cmocka_unit_test(test_published),
        cmocka_unit_test(test_names),           cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_short_texts),     cmocka_unit_test(test_against_pcre2),
        cmocka_unit_test(test_every_character), cmocka_unit_test(test_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
