/*
 * Model shapes: the published parameter counts of GPT-2 come out of the named models; Hugging
 * Face's JSON is read back as it was written; everything that would compute something else is
 * refused, naming the member at fault.
 */
#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "model/config.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static void test_names(void **state)
{
    (void)state;
    /* Of the checkpoints that OpenAI published, the head tied. */
    static const struct {
        const char *name;
        uint64_t parameters;
    } published[] = {{"gpt2-124m", 124439808},
                     {"gpt2-355m", 354823168},
                     {"gpt2-774m", 774030080},
                     {"gpt2-1558m", 1557611200}};
    struct config config;
    struct err err;
    for (size_t i = 0; i < ARRAY_COUNT(published); i++) {
        assert_int_equal(config_from_name(&config, published[i].name, &err), 0);
        assert_int_equal(config_parameter_count(&config), published[i].parameters);
        assert_string_equal(config.name, published[i].name);
        assert_int_equal(config_load(&config, published[i].name, &err), 0);
    }
    assert_int_equal(config_from_name(&config, "gpt-tiny", &err), 0);
    assert_int_equal(config.vocab, 0);
    assert_int_equal(config_from_name(&config, "gpt-mini", &err), 0);
    assert_int_equal(config.channels, 512);
}

static void test_unknown_name_lists_the_known(void **state)
{
    (void)state;
    struct config config;
    struct err err;
    assert_int_equal(config_load(&config, "gpt2-125m", &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "gpt2-125m"));
    assert_non_null(strstr(err.message, "gpt2-1558m"));
    assert_non_null(strstr(err.message, "gpt-tiny"));
}

static int parse(struct config *config, const char *text, struct err *err)
{
    struct json_value *root = json_parse(text, strlen(text), "test", err);
    assert_non_null(root);
    int rc = config_from_json(config, root, "here.json", err);
    json_free(root);
    return rc;
}

static void test_json_round_trip(void **state)
{
    (void)state;
    struct config before, after;
    struct err err;
    assert_int_equal(config_from_name(&before, "gpt2-355m", &err), 0);
    before.norm_epsilon = 3e-6f;
    struct json_value *root = config_to_json(&before);
    char *text = json_text(root, true);
    assert_int_equal(parse(&after, text, &err), 0);
    assert_memory_equal(&before, &after, sizeof(before));
    mem_free(text);
    json_free(root);
}

#define GOOD                                                                                       \
    "\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":64,\"n_head\":2,\"n_positions\":32,"         \
    "\"vocab_size\":100"

static void test_defaults(void **state)
{
    (void)state;
    struct config config;
    struct err err;
    assert_int_equal(parse(&config, "{" GOOD "}", &err), 0);
    assert_true(config.norm_epsilon == 1e-5f);
    assert_int_equal(parse(&config, "{" GOOD ",\"n_inner\":null}", &err), 0);
    assert_int_equal(parse(&config, "{" GOOD ",\"n_inner\":256}", &err), 0);
}

static void test_refusals(void **state)
{
    (void)state;
    /* A later member replaces an earlier one of its name. */
    static const struct {
        const char *text, *names;
    } refused[] = {
        {"{\"model_type\":\"llama\"}", "model_type"},
        {"{}", "model_type"},
        {"[]", "model_type"},
        {"{" GOOD ",\"activation_function\":\"relu\"}", "activation_function"},
        {"{" GOOD ",\"n_inner\":100}", "n_inner"},
        {"{" GOOD ",\"tie_word_embeddings\":false}", "tie_word_embeddings"},
        {"{" GOOD ",\"scale_attn_by_inverse_layer_idx\":true}", "scale_attn_by_inverse_layer_idx"},
        {"{" GOOD ",\"scale_attn_weights\":false}", "scale_attn_weights"},
        {"{" GOOD ",\"n_layer\":0}", "n_layer"},
        {"{" GOOD ",\"n_layer\":-3}", "n_layer"},
        {"{" GOOD ",\"n_layer\":\"two\"}", "n_layer"},
        {"{" GOOD ",\"n_layer\":100000}", "n_layer"},
        {"{" GOOD ",\"n_layer\":1024,\"n_embd\":65536}", "parameters"},
        {"{" GOOD ",\"n_embd\":100000000000}", "n_embd"},
        {"{" GOOD ",\"n_embd\":48}", "n_embd"},
        {"{" GOOD ",\"n_head\":3}", "n_head"},
        {"{" GOOD ",\"n_positions\":0}", "n_positions"},
        {"{" GOOD ",\"vocab_size\":0}", "vocab_size"},
        {"{" GOOD ",\"vocab_size\":4294967295}", "vocab_size"},
        {"{" GOOD ",\"layer_norm_epsilon\":0}", "layer_norm_epsilon"},
        {"{" GOOD ",\"layer_norm_epsilon\":-1e-5}", "layer_norm_epsilon"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        struct config config;
        struct err err;
        assert_int_equal(parse(&config, refused[i].text, &err), ERR_INPUT);
        assert_non_null(strstr(err.message, refused[i].names));
    }
}

static void write_text(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void test_files_and_folders(void **state)
{
    (void)state;
    char folder[] = "/tmp/spillway_test_config_XXXXXX", path[128];
    struct config config;
    struct err err;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/config.json", folder);
    assert_true(config_load(&config, folder, &err) < 0);
    write_text(path, "{" GOOD "}");
    assert_int_equal(config_load(&config, folder, &err), 0);
    assert_int_equal(config.vocab, 100);
    assert_int_equal(config_load(&config, path, &err), 0);
    write_text(path, "{ not json");
    assert_true(config_load(&config, folder, &err) < 0);
    assert_non_null(strstr(err.message, "config.json"));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),           cmocka_unit_test(test_unknown_name_lists_the_known),
        cmocka_unit_test(test_json_round_trip), cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_refusals),        cmocka_unit_test(test_files_and_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
