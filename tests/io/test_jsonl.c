/*
 * Property: of each line that is a JSON object with the field, the text is what JSON says, and of
 * any other line it is told what is wrong; no line costs another one; lines are found however the
 * bytes are cut into buffers; a line longer than the buffer is left out and counted. Method: lines
 * written down; texts of random bytes written as JSON by the library and read back; every cut and
 * flipped byte of a line.
 */
#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/records.h"
#include "tests/shared/check.h"
#include <stdlib.h>
#include <string.h>

static enum record_result convert(const char *line, size_t bytes, char *text, size_t *text_bytes)
{
    const struct records_rules rules = {.text_field = "text"};
    char *copy = mem_alloc(bytes + 1, 1);
    uint32_t broken;
    memcpy(copy, line, bytes);
    enum record_result result =
        jsonl_records.convert(&rules, copy, bytes, text, text_bytes, &broken);
    assert_true(*text_bytes <= bytes);
    mem_free(copy);
    return result;
}

static void test_lines(void **state)
{
    (void)state;
    static const struct {
        const char *line, *text; /* NULL: none */
        enum record_result result;
    } cases[] = {
        {"{\"text\": \"a\"}", "a", RECORD_TEXT},
        {" { \"id\" : 1 , \"text\" : \"a\" , \"b\" : [ ] } \r", "a", RECORD_TEXT},
        {"\xef\xbb\xbf{\"text\":\"a\"}", "a", RECORD_TEXT},
        {"{\"text\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}", "\"\\/\b\f\n\r\t", RECORD_TEXT},
        {"{\"text\":\"\\u00e9\\u4e2d\\ud83d\\ude00x\"}", "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80x",
         RECORD_TEXT},
        {"{\"text\":\"\\ud83d \\ude00\"}", "\xef\xbf\xbd \xef\xbf\xbd", RECORD_TEXT},
        {"{\"te\\u0078t\":\"a\"}", "a", RECORD_TEXT},
        {"{\"text\":\"a\",\"text\":\"b\"}", "b", RECORD_TEXT},
        {"{\"a\":{\"text\":\"x\",\"b\":[1,{\"c\":null}]},\"text\":\"a\"}", "a", RECORD_TEXT},
        {"{\"n\":[-1.5e+3,0,NaN,true,false],\"text\":\"a\"}", "a", RECORD_TEXT},
        {"{\"text\":\"\"}", "", RECORD_TEXT},
        {"{}", NULL, RECORD_FIELDLESS},
        {"{\"a\":\"text\"}", NULL, RECORD_FIELDLESS},
        {"{\"text\":5}", NULL, RECORD_FIELDLESS},
        {"{\"text\":[\"a\"]}", NULL, RECORD_FIELDLESS},
        {"{\"a\":{\"text\":\"x\"}}", NULL, RECORD_FIELDLESS},
        {"[\"text\",\"a\"]", NULL, RECORD_MALFORMED},
        {"\"a\"", NULL, RECORD_MALFORMED},
        {"{\"text\":\"a\"", NULL, RECORD_MALFORMED},
        {"{\"text\":\"a\"}}", NULL, RECORD_MALFORMED},
        {"{\"text\":\"a\"} {\"text\":\"b\"}", NULL, RECORD_MALFORMED},
        {"{\"text\":\"a}", NULL, RECORD_MALFORMED},
        {"{\"text\":\"\\x\"}", NULL, RECORD_MALFORMED},
        {"{\"text\":\"\\u12g4\"}", NULL, RECORD_MALFORMED},
        {"{\"text\":\"a\",}", NULL, RECORD_MALFORMED},
        {"{\"text\" \"a\"}", NULL, RECORD_MALFORMED},
        {"{text:\"a\"}", NULL, RECORD_MALFORMED},
        {"{\"a\":[1,2}", NULL, RECORD_MALFORMED},
        {"{\"a\":1.,\"text\":\"a\"}", NULL, RECORD_MALFORMED},
        {"{\"a\":tru,\"text\":\"a\"}", NULL, RECORD_MALFORMED},
        {"{", NULL, RECORD_MALFORMED},
        {"plain text", NULL, RECORD_MALFORMED},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char text[256];
        size_t bytes;
        enum record_result result = convert(cases[i].line, strlen(cases[i].line), text, &bytes);
        if (result != cases[i].result)
            fail_msg("%s: %d instead of %d", cases[i].line, (int)result, (int)cases[i].result);
        if (cases[i].text != NULL) {
            assert_int_equal(bytes, strlen(cases[i].text));
            assert_memory_equal(text, cases[i].text, bytes);
        }
    }
}

/* Depth is bounded, and takes no stack. */
static void test_nesting(void **state)
{
    (void)state;
    const size_t depths[] = {1000, 1024, 1025, 1000000};
    for (size_t i = 0; i < ARRAY_COUNT(depths); i++) {
        char *line = mem_alloc(2 * depths[i] + 100, 1), *text = mem_alloc(2 * depths[i] + 100, 1);
        size_t bytes;
        char *end = stpcpy(line, "{\"text\":\"a\",\"b\":");
        memset(end, '[', depths[i]);
        memset(end + depths[i], ']', depths[i]);
        strcpy(end + 2 * depths[i], "}");
        assert_int_equal(convert(line, strlen(line), text, &bytes),
                         depths[i] <= 1024 ? RECORD_TEXT : RECORD_MALFORMED);
        mem_free(line);
        mem_free(text);
    }
}

/* What the library writes is read as what was given to it. */
static void test_round_trip(void **state)
{
    (void)state;
    static const char *const parts[] = {
        "a", "\"", "\\", "\n", "\x01", "\xc3\xa9", "\xe4\xb8\xad", "\xf0\x9f\x98\x80",
        "/", "{",  "}",  ","};
    for (uint64_t n = 0; n < 2000; n++) {
        char text[512] = "", back[4096];
        size_t bytes;
        for (uint64_t i = 0, count = rng_below(3, 0, n, 100); i < count; i++)
            strcat(text, parts[rng_below(3, n + 1, i, ARRAY_COUNT(parts))]);
        struct json_value *object = json_new_object();
        json_set_int(object, "number", (int64_t)n);
        json_set(object, "text", json_new_string(text, strlen(text)));
        json_set_string(object, text, text);
        char *line = json_text(object, false);
        assert_int_equal(convert(line, strlen(line), back, &bytes), RECORD_TEXT);
        assert_int_equal(bytes, strlen(text));
        assert_memory_equal(back, text, bytes);
        mem_free(line);
        json_free(object);
    }
}

/* A line that is cut off is malformed; one with a wrong byte is anything but trouble. */
static void test_damage(void **state)
{
    (void)state;
    static const char line[] =
        "{\"id\": [1, {\"a\": null}], \"text\": \"x \\u00e9 \\ud83d\\ude00 y\", "
        "\"b\": -1.5e3}";
    char copy[sizeof(line)], text[sizeof(line)];
    size_t bytes;
    for (size_t cut = 0; cut < strlen(line); cut++)
        assert_int_equal(convert(line, cut, text, &bytes), RECORD_MALFORMED);
    for (size_t at = 0; at < strlen(line); at++)
        for (int value = 0; value < 256; value++) {
            memcpy(copy, line, sizeof(line));
            copy[at] = (char)value;
            assert_true(convert(copy, strlen(line), text, &bytes) <= RECORD_MALFORMED);
        }
}

/* All texts of the lines, each with a \1 behind it. */
static void read_lines(const char *lines, size_t bytes, uint64_t buffer_bytes, char *all,
                       struct records_count *counted)
{
    struct err err;
    const struct unpack_settings settings = {0};
    const struct unpack_file file = {"lines", -1, lines, bytes, false};
    struct unpack *unpack = unpack_new(&settings);
    struct records *records = records_new(&settings, buffer_bytes);
    const char *text;
    size_t text_bytes;
    int code;
    assert_int_equal(unpack_begin(unpack, &file, &err), 0);
    records_begin(records, &jsonl_records, unpack, "text", "", 0);
    while ((code = records_next(records, &text, &text_bytes, &err)) == 1) {
        memcpy(all, text, text_bytes);
        all += text_bytes;
        *all++ = '\1';
    }
    assert_int_equal(code, 0);
    *all = '\0';
    *counted = *records_counted(records);
    records_free(records);
    unpack_free(unpack);
}

static void test_buffers(void **state)
{
    (void)state;
    static const char lines[] =
        "{\"text\":\"one\"}\n\n  \n{\"text\":\"two\"}\r\nnonsense\n{\"a\":1}\n"
        "{\"text\":\"\"}\n{\"text\":\"three\"}";
    for (uint64_t buffer_bytes = 17; buffer_bytes < 120; buffer_bytes++) {
        char all[256];
        struct records_count counted;
        read_lines(lines, strlen(lines), buffer_bytes, all, &counted);
        assert_string_equal(all, "one\1two\1three\1");
        assert_int_equal(counted.results[RECORD_MALFORMED], 1);
        assert_int_equal(counted.results[RECORD_FIELDLESS], 1);
        assert_int_equal(counted.results[RECORD_TOO_LONG], 0);
    }
}

/* A line of many times the buffer; more lines than a batch holds. */
static void test_many_and_long(void **state)
{
    (void)state;
    const size_t count = 40000;
    char *lines = mem_alloc(count * 20 + 70000, 1), *all = mem_alloc(count * 20 + 70000, 1);
    char *end = lines;
    struct records_count counted;
    for (size_t i = 0; i < count; i++) {
        end = stpcpy(end, "{\"text\":\"x\"}\n");
        if (i == count / 2) {
            memset(end, 'y', 65536);
            end = stpcpy(end + 65536, "\n");
        }
    }
    read_lines(lines, (size_t)(end - lines), 4096, all, &counted);
    assert_int_equal(strlen(all), 2 * count);
    assert_int_equal(counted.results[RECORD_TEXT], count);
    assert_int_equal(counted.results[RECORD_TOO_LONG], 1);
    read_lines(lines, (size_t)(end - lines), 4 * MIB, all, &counted);
    assert_int_equal(strlen(all), 2 * count);
    assert_int_equal(counted.results[RECORD_MALFORMED], 1);
    mem_free(lines);
    mem_free(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),      cmocka_unit_test(test_nesting),
        cmocka_unit_test(test_round_trip), cmocka_unit_test(test_damage),
        cmocka_unit_test(test_buffers),    cmocka_unit_test(test_many_and_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
