/*
 * json: what is written is read back the same, in order; what is no JSON is refused with file and
 * line; getters give their fallback for everything that is not there or of another kind.
 */
#include "tests/shared/check.h"
#include "core/json.h"
#include "core/mem.h"
#include "tests/shared/scratch.h"
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct json_value *parse(const char *text)
{
    struct err err;
    struct json_value *root = json_parse(text, strlen(text), "test", &err);
    assert_non_null(root);
    return root;
}

static void test_getters(void **state)
{
    (void)state;
    struct json_value *root =
        parse("{\"s\":\"x\",\"i\":-7,\"d\":1.5,\"t\":true,\"f\":false,\"n\":null,\"a\":[1,2,3]}");
    assert_string_equal(json_get_string(root, "s", "no"), "x");
    assert_int_equal(json_get_int(root, "i", 0), -7);
    assert_true(json_get_number(root, "i", 0) == -7.0);
    assert_true(json_get_number(root, "d", 0) == 1.5);
    assert_true(json_get_bool(root, "t", false));
    assert_false(json_get_bool(root, "f", true));
    assert_int_equal(json_length(json_get(root, "a")), 3);
    assert_int_equal(json_int(json_at(json_get(root, "a"), 2), 0), 3);
    assert_int_equal(json_length(root), 7);

    assert_string_equal(json_get_string(root, "i", "no"), "no");
    assert_string_equal(json_get_string(root, "absent", "no"), "no");
    assert_int_equal(json_get_int(root, "d", 9), 9);
    assert_int_equal(json_get_int(root, "s", 9), 9);
    assert_true(json_get_number(root, "s", 2.5) == 2.5);
    assert_true(json_get_bool(root, "n", true));
    assert_null(json_get(root, "absent"));
    assert_true(json_has(root, "f"));
    assert_true(json_has(root, "a"));
    assert_false(json_has(root, "n"));
    assert_false(json_has(root, "absent"));
    assert_false(json_has(NULL, "x"));
    assert_null(json_get(NULL, "x"));
    assert_null(json_at(json_get(root, "a"), 3));
    assert_null(json_at(NULL, 0));
    assert_null(json_string(NULL));
    static const struct {
        const char *key;
        enum json_kind kind;
    } kinds[] = {{"s", JSON_KIND_STRING}, {"i", JSON_KIND_NUMBER},   {"d", JSON_KIND_NUMBER},
                 {"t", JSON_KIND_BOOL},   {"f", JSON_KIND_BOOL},     {"n", JSON_KIND_NULL},
                 {"a", JSON_KIND_ARRAY},  {"absent", JSON_KIND_NONE}};
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        assert_int_equal(json_kind(json_get(root, kinds[i].key)), kinds[i].kind);
    assert_int_equal(json_kind(root), JSON_KIND_OBJECT);
    assert_int_equal(json_length(NULL), 0);
    json_free(root);
    json_free(NULL);
}

static void test_errors_say_where(void **state)
{
    (void)state;
    struct err err;
    const char *bad = "{\n  \"a\": 1,\n  \"b\": }\n";
    assert_null(json_parse(bad, strlen(bad), "model.json", &err));
    assert_int_equal(err.code, ERR_INPUT);
    assert_non_null(strstr(err.message, "model.json, line 3"));

    static const char *const refused[] = {"",           "{",         "[1,]",
                                          "{\"a\":1}x", "{\"a\" 1}", "nul",
                                          "\"\x80\"",   "[1e999]",   "[99999999999999999999]"};
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        err.code = 0;
        assert_null(json_parse(refused[i], strlen(refused[i]), "x", &err));
        assert_int_equal(err.code, ERR_INPUT);
    }
    /* Every beginning of a valid text is refused, by a length and not by a terminator. */
    const char *whole = "{\"k\":[1,2.5,\"t\\u00e9xt\",null,true]}";
    for (size_t bytes = 0; bytes < strlen(whole); bytes++)
        assert_null(json_parse(whole, bytes, "x", &err));
    /* Nesting deep enough to end the stack of a parser that recurses without a bound. */
    char *deep = mem_alloc(1000001, 1);
    memset(deep, '[', 1000000);
    assert_null(json_parse(deep, 1000000, "x", &err));
    mem_free(deep);
}

static void test_load_errors(void **state)
{
    (void)state;
    struct err err;
    assert_null(json_load(scratch_path("absent.json"), &err));
    assert_int_equal(err.code, ERR_SYSTEM);
    assert_non_null(strstr(err.message, "absent.json"));
    assert_null(json_load(scratch_dir(), &err));
    const char *path = scratch_write("bad.json", "{\"a\":\n\n?}");
    assert_null(json_load(path, &err));
    assert_non_null(strstr(err.message, "bad.json, line 3"));
}

static void test_strings_with_nul(void **state)
{
    (void)state;
    struct json_value *root = parse("{\"token\":\"a\\u0000b\"}");
    const struct json_value *token = json_get(root, "token");
    assert_int_equal(json_string_bytes(token), 3);
    assert_memory_equal(json_string(token), "a\0b", 4);
    json_free(root);
}

static void check_repaired(const char *text, const char *expected)
{
    struct json_value *string = json_new_string(text, strlen(text));
    assert_string_equal(json_string(string), expected);
    json_free(string);
}

static void test_invalid_utf8_is_replaced(void **state)
{
    (void)state;
    check_repaired("caf\xc3\xa9", "caf\xc3\xa9");
    check_repaired("caf\xe9", "caf\xef\xbf\xbd");
    check_repaired("\xff/\xf0\x9f\x98\x80/\xc3", "\xef\xbf\xbd/\xf0\x9f\x98\x80/\xef\xbf\xbd");
}

static int collect(void *context, const char *key, const struct json_value *value)
{
    char *keys = context;
    strcat(keys, key);
    return (int)json_int(value, 0);
}

static void test_each_in_order_until_nonzero(void **state)
{
    (void)state;
    struct json_value *root = parse("{\"z\":0,\"a\":0,\"m\":5,\"b\":0}");
    char keys[16] = "";
    assert_int_equal(json_each(root, collect, keys), 5);
    assert_string_equal(keys, "zam");
    assert_int_equal(json_each(NULL, collect, keys), 0);
    json_free(root);
}

static struct json_value *make(void)
{
    struct json_value *root = json_new_object();
    json_set_string(root, "name", "gpt");
    json_set_int(root, "big", INT64_MAX);
    json_set_number(root, "third", 1.0 / 3);
    json_set_bool(root, "yes", true);
    struct json_value *list = json_new_array();
    json_append(list, json_new_int(1));
    json_append(list, json_new_string("two", 3));
    json_set(root, "list", list);
    return root;
}

static void check_made(const struct json_value *root)
{
    assert_string_equal(json_get_string(root, "name", ""), "gpt");
    assert_true(json_get_int(root, "big", 0) == INT64_MAX);
    assert_true(json_get_number(root, "third", 0) == 1.0 / 3);
    assert_true(json_get_bool(root, "yes", false));
    assert_string_equal(json_string(json_at(json_get(root, "list"), 1)), "two");
}

static void test_text_round_trip(void **state)
{
    (void)state;
    struct json_value *root = make();
    for (int indent = 0; indent < 2; indent++) {
        char *text = json_text(root, indent);
        struct json_value *again = parse(text);
        check_made(again);
        json_free(again);
        mem_free(text);
    }
    json_free(root);
}

static void test_save(void **state)
{
    (void)state;
    struct err err;
    struct json_value *root = make();
    const char *path = scratch_path("saved.json");
    /* Over a file that is there, and with nothing left beside it. */
    for (int i = 0; i < 2; i++)
        assert_int_equal(json_save(root, path, &err), 0);
    struct json_value *again = json_load(path, &err);
    assert_non_null(again);
    check_made(again);
    assert_int_not_equal(access(scratch_path("saved.json.tmp"), F_OK), 0);
    json_free(again);

    assert_int_equal(json_save(root, scratch_path("no/such/folder.json"), &err), ERR_SYSTEM);
    assert_non_null(strstr(err.message, "folder.json"));
    json_free(root);
}

/* A folder in the way of the rename: the error is told and the temporary file goes. */
static void test_save_onto_a_folder(void **state)
{
    (void)state;
    struct err err;
    struct json_value *root = make();
    scratch_write("taken/inside", "x");
    assert_int_equal(json_save(root, scratch_path("taken"), &err), ERR_SYSTEM);
    assert_int_not_equal(access(scratch_path("taken.tmp"), F_OK), 0);
    json_free(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_getters),
        cmocka_unit_test(test_errors_say_where),
        cmocka_unit_test(test_load_errors),
        cmocka_unit_test(test_strings_with_nul),
        cmocka_unit_test(test_invalid_utf8_is_replaced),
        cmocka_unit_test(test_each_in_order_until_nonzero),
        cmocka_unit_test(test_text_round_trip),
        cmocka_unit_test(test_save),
        cmocka_unit_test(test_save_onto_a_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
