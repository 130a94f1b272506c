/*
 * Model shapes: the published parameter counts come out of the named models and of config.json as
 * published; Hugging Face's JSON is read back as it was written; everything that would compute
 * something else is refused, naming the file and the member at fault by its name there.
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
    /* Of the published checkpoints, GPT-2's head tied. */
    static const struct {
        const char *name;
        uint64_t parameters;
    } published[] = {
        {"gpt2-124m", 124439808},   {"gpt2-355m", 354823168},  {"gpt2-774m", 774030080},
        {"gpt2-1558m", 1557611200}, {"llama-8b", 8030261248},  {"llama-70b", 70553706496},
        {"mistral-7b", 7241732096}, {"qwen-14b", 14770033664}, {"qwen-32b", 32762123264}};
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
    assert_non_null(strstr(err.message, "llama-70b"));
    assert_non_null(strstr(err.message, "qwen-14b, "));
}

static int parse(struct config *config, const char *text, struct err *err)
{
    struct json_value *root = json_parse(text, strlen(text), "test", err);
    assert_non_null(root);
    int rc = config_from_json(config, root, "here.json", err);
    json_free(root);
    return rc;
}

static void check_equal(const struct config *a, const struct config *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->kind, b->kind);
    assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->channels, b->channels);
    assert_int_equal(a->heads, b->heads);
    assert_int_equal(a->kv_heads, b->kv_heads);
    assert_int_equal(a->head_dim, b->head_dim);
    assert_int_equal(a->ffn, b->ffn);
    assert_int_equal(a->positions, b->positions);
    assert_int_equal(a->vocab, b->vocab);
    assert_true(a->norm_epsilon == b->norm_epsilon);
    assert_int_equal(a->tied, b->tied);
    assert_int_equal(a->attention_bias, b->attention_bias);
}

static void check_round_trip(const struct config *before)
{
    struct config after;
    struct err err;
    struct json_value *root = config_to_json(before);
    char *text = json_text(root, true);
    assert_int_equal(parse(&after, text, &err), 0);
    check_equal(before, &after);
    mem_free(text);
    json_free(root);
}

static void test_json_round_trip(void **state)
{
    (void)state;
    static const char *const names[] = {"gpt2-355m", "llama-8b", "mistral-7b", "qwen-14b",
                                        "qwen-32b"};
    struct config config;
    struct err err;
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        assert_int_equal(config_from_name(&config, names[i], &err), 0);
        config.norm_epsilon = 3e-6f;
        check_round_trip(&config);
        if (config.kind == CONFIG_GPT2)
            continue;
        config.tied = true;
        config.attention_bias = config.kind != CONFIG_QWEN2;
        check_round_trip(&config);
    }
}

/* What the published config.json say that costs follow from, and a little of what they do not. */
static void test_published_json(void **state)
{
    (void)state;
    static const struct {
        uint64_t parameters;
        const char *text;
    } published[] = {
        {8030261248, /* Llama-3.1-8B */
         "{\"architectures\":[\"LlamaForCausalLM\"],\"attention_bias\":false,\"head_dim\":null,"
         "\"hidden_act\":\"silu\",\"hidden_size\":4096,\"intermediate_size\":14336,"
         "\"max_position_embeddings\":131072,\"mlp_bias\":false,\"model_type\":\"llama\","
         "\"num_attention_heads\":32,\"num_hidden_layers\":32,\"num_key_value_heads\":8,"
         "\"rms_norm_eps\":1e-05,\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"llama3\"},"
         "\"rope_theta\":500000.0,\"tie_word_embeddings\":false,\"vocab_size\":128256}"},
        {70553706496, /* Llama-3.1-70B */
         "{\"model_type\":\"llama\",\"hidden_size\":8192,\"intermediate_size\":28672,"
         "\"max_position_embeddings\":131072,\"num_attention_heads\":64,"
         "\"num_hidden_layers\":80,\"num_key_value_heads\":8,\"vocab_size\":128256}"},
        {7241732096, /* Mistral-7B-v0.1 */
         "{\"model_type\":\"mistral\",\"hidden_size\":4096,\"intermediate_size\":14336,"
         "\"max_position_embeddings\":32768,\"num_attention_heads\":32,"
         "\"num_hidden_layers\":32,\"num_key_value_heads\":8,\"rms_norm_eps\":1e-05,"
         "\"sliding_window\":4096,\"tie_word_embeddings\":false,\"vocab_size\":32000}"},
        {14770033664, /* Qwen2.5-14B */
         "{\"model_type\":\"qwen2\",\"hidden_size\":5120,\"intermediate_size\":13824,"
         "\"max_position_embeddings\":131072,\"num_attention_heads\":40,"
         "\"num_hidden_layers\":48,\"num_key_value_heads\":8,\"use_sliding_window\":false,"
         "\"vocab_size\":152064}"},
        {494032768, /* Qwen2.5-0.5B */
         "{\"model_type\":\"qwen2\",\"hidden_size\":896,\"intermediate_size\":4864,"
         "\"max_position_embeddings\":32768,\"num_attention_heads\":14,"
         "\"num_hidden_layers\":24,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-06,"
         "\"tie_word_embeddings\":true,\"vocab_size\":151936}"},
        {32762123264, /* Qwen3-32B */
         "{\"model_type\":\"qwen3\",\"attention_bias\":false,\"head_dim\":128,"
         "\"hidden_size\":5120,\"intermediate_size\":25600,\"max_position_embeddings\":40960,"
         "\"num_attention_heads\":64,\"num_hidden_layers\":64,\"num_key_value_heads\":8,"
         "\"rms_norm_eps\":1e-06,\"tie_word_embeddings\":false,\"vocab_size\":151936}"},
        {596049920, /* Qwen3-0.6B */
         "{\"model_type\":\"qwen3\",\"head_dim\":128,\"hidden_size\":1024,"
         "\"intermediate_size\":3072,\"max_position_embeddings\":40960,"
         "\"num_attention_heads\":16,\"num_hidden_layers\":28,\"num_key_value_heads\":8,"
         "\"tie_word_embeddings\":true,\"vocab_size\":151936}"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(published); i++) {
        struct config config;
        struct err err;
        assert_int_equal(parse(&config, published[i].text, &err), 0);
        assert_int_equal(config_parameter_count(&config), published[i].parameters);
        check_round_trip(&config);
    }
}

#define GOOD                                                                                       \
    "\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":64,\"n_head\":2,\"n_positions\":32,"         \
    "\"vocab_size\":100"

#define SHAPE                                                                                      \
    "\"num_hidden_layers\":2,\"hidden_size\":64,\"num_attention_heads\":4,"                        \
    "\"intermediate_size\":160,\"max_position_embeddings\":32,\"vocab_size\":100"
#define LLAMA "\"model_type\":\"llama\"," SHAPE

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

static void test_rotary_defaults(void **state)
{
    (void)state;
    struct config config;
    struct err err;
    assert_int_equal(parse(&config, "{" LLAMA "}", &err), 0);
    assert_int_equal(config.kind, CONFIG_LLAMA);
    assert_string_equal(config.name, "llama");
    assert_int_equal(config.kv_heads, 4);
    assert_int_equal(config.head_dim, 16);
    assert_true(config.norm_epsilon == 1e-6f);
    assert_false(config.tied || config.attention_bias);
    /* A head's width of its own, so that the heads together are wider than the model. */
    assert_int_equal(parse(&config, "{" LLAMA ",\"head_dim\":32,\"rms_norm_eps\":null}", &err), 0);
    assert_int_equal(config_query_width(&config), 128);
    assert_int_equal(parse(&config, "{\"model_type\":\"qwen3\"," SHAPE "}", &err), 0);
    assert_int_equal(config.head_dim, 128);
    assert_int_equal(parse(&config, "{" LLAMA ",\"max_position_embeddings\":1048576}", &err), 0);
    assert_int_equal(parse(&config, "{" LLAMA ",\"num_experts\":0}", &err), 0);
}

/* What a kind has and a member may switch: counted in parameters. */
static void test_biases_and_norms(void **state)
{
    (void)state;
    struct config plain, config;
    struct err err;
    assert_int_equal(parse(&plain, "{" LLAMA ",\"num_key_value_heads\":2}", &err), 0);
    uint64_t count = config_parameter_count(&plain);
    static const struct {
        const char *text;
        uint64_t more;
    } cases[] = {
        /* q, k, v and o in two layers; q, k and v; norms of q and k. */
        {"\"model_type\":\"llama\",\"attention_bias\":true", 2 * (64 + 32 + 32 + 64)},
        {"\"model_type\":\"qwen2\"", 2 * (64 + 32 + 32)},
        {"\"model_type\":\"qwen3\",\"head_dim\":16", 2 * (16 + 16)},
        {"\"model_type\":\"qwen3\",\"head_dim\":16,\"attention_bias\":true",
         2 * (16 + 16 + 64 + 32 + 32 + 64)},
        /* Hugging Face's code reads no attention_bias in these. */
        {"\"model_type\":\"mistral\",\"attention_bias\":true", 0},
        {"\"model_type\":\"qwen2\",\"attention_bias\":true", 2 * (64 + 32 + 32)},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        char text[512];
        snprintf(text, sizeof(text), "{" SHAPE ",\"num_key_value_heads\":2,%s}", cases[i].text);
        assert_int_equal(parse(&config, text, &err), 0);
        assert_int_equal(config_parameter_count(&config), count + cases[i].more);
    }
    assert_int_equal(parse(&config,
                           "{" LLAMA ",\"num_key_value_heads\":2"
                           ",\"tie_word_embeddings\":true}",
                           &err),
                     0);
    assert_int_equal(config_parameter_count(&config), count - 100 * 64);
}

static void test_only_gpt2_trains(void **state)
{
    (void)state;
    struct config config;
    struct err err;
    assert_int_equal(config_from_name(&config, "gpt2-124m", &err), 0);
    assert_int_equal(config_check_trains(&config, &err), 0);
    static const struct {
        const char *name, *kind;
    } others[] = {{"llama-8b", "Llama"}, {"qwen-14b", "Qwen2"}, {"qwen-32b", "Qwen3"}};
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        assert_int_equal(config_from_name(&config, others[i].name, &err), 0);
        assert_int_equal(config_check_trains(&config, &err), ERR_INPUT);
        assert_non_null(strstr(err.message, others[i].name));
        assert_non_null(strstr(err.message, others[i].kind));
    }
}

static void test_derived(void **state)
{
    (void)state;
    struct config config = {.layers = 2, .channels = 96, .heads = 3, .kv_heads = 7};
    config_derive(&config);
    assert_int_equal(config.kv_heads, 3);
    assert_int_equal(config.head_dim, 32);
    assert_int_equal(config.ffn, 384);
    assert_true(config.tied && config_has_positions(&config) && !config_has_head(&config));
    config = (struct config){.kind = CONFIG_LLAMA, .channels = 96, .heads = 3, .kv_heads = 1};
    config_derive(&config);
    assert_int_equal(config.kv_heads, 1);
    assert_true(config_has_head(&config) && !config_has_positions(&config));
}

static void test_refusals(void **state)
{
    (void)state;
    /* A later member replaces an earlier one of its name. */
    static const struct {
        const char *text, *names;
    } refused[] = {
        {"{\"model_type\":\"bloom\"}", "model_type"},
        {"{\"model_type\":\"mixtral\"," SHAPE "}", "model_type"},
        {"{\"model_type\":\"qwen3_moe\"," SHAPE "}", "model_type"},
        {"{\"model_type\":5," SHAPE "}", "model_type"},
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
        {"{" GOOD ",\"layer_norm_epsilon\":\"small\"}", "layer_norm_epsilon"},
        {"{" GOOD ",\"activation_function\":3}", "activation_function"},
        {"{" GOOD ",\"n_inner\":\"wide\"}", "n_inner"},
        {"{" GOOD ",\"tie_word_embeddings\":1}", "tie_word_embeddings"},
        {"{" GOOD ",\"n_positions\":65537}", "n_positions"},
        {"{\"model_type\":\"llama\"}", "num_hidden_layers"},
        {"{" LLAMA ",\"num_hidden_layers\":2.5}", "num_hidden_layers"},
        {"{" LLAMA ",\"num_hidden_layers\":1025}", "num_hidden_layers"},
        {"{" LLAMA ",\"num_hidden_layers\":null}", "num_hidden_layers"},
        {"{" LLAMA ",\"hidden_size\":-64}", "hidden_size"},
        {"{" LLAMA ",\"hidden_size\":48}", "hidden_size"},
        {"{" LLAMA ",\"hidden_size\":131072}", "hidden_size"},
        {"{" LLAMA ",\"hidden_size\":8224}", "hidden_size"},
        {"{" LLAMA ",\"num_attention_heads\":0}", "num_attention_heads"},
        {"{" LLAMA ",\"num_attention_heads\":3}", "num_attention_heads"},
        {"{" LLAMA ",\"num_attention_heads\":65,\"head_dim\":2}", "num_attention_heads"},
        {"{" LLAMA ",\"num_key_value_heads\":3}", "num_key_value_heads"},
        {"{" LLAMA ",\"num_key_value_heads\":8}", "num_key_value_heads"},
        {"{" LLAMA ",\"num_key_value_heads\":\"2\"}", "num_key_value_heads"},
        {"{" LLAMA ",\"head_dim\":0}", "head_dim"},
        {"{" LLAMA ",\"head_dim\":15}", "head_dim"},
        {"{" LLAMA ",\"head_dim\":1026}", "head_dim"},
        {"{" LLAMA ",\"head_dim\":false}", "head_dim"},
        {"{" LLAMA ",\"hidden_size\":2048,\"num_attention_heads\":1024,\"head_dim\":1024}",
         "head_dim"},
        {"{" LLAMA ",\"intermediate_size\":null}", "intermediate_size"},
        {"{" LLAMA ",\"intermediate_size\":1048577}", "intermediate_size"},
        {"{" LLAMA ",\"max_position_embeddings\":1048577}", "max_position_embeddings"},
        {"{" LLAMA ",\"max_position_embeddings\":[]}", "max_position_embeddings"},
        {"{" LLAMA ",\"vocab_size\":0}", "vocab_size"},
        {"{" LLAMA ",\"vocab_size\":16777217}", "vocab_size"},
        {"{" LLAMA ",\"vocab_size\":16777216,\"hidden_size\":512}", "vocab_size"},
        {"{" LLAMA ",\"rms_norm_eps\":\"1e-5\"}", "rms_norm_eps"},
        {"{" LLAMA ",\"rms_norm_eps\":1}", "rms_norm_eps"},
        {"{" LLAMA ",\"tie_word_embeddings\":\"no\"}", "tie_word_embeddings"},
        {"{" LLAMA ",\"attention_bias\":0}", "attention_bias"},
        {"{" LLAMA ",\"mlp_bias\":true}", "mlp_bias"},
        {"{" LLAMA ",\"hidden_act\":\"gelu\"}", "hidden_act"},
        {"{" LLAMA ",\"hidden_act\":{}}", "hidden_act"},
        {"{" LLAMA ",\"num_experts\":8}", "num_experts"},
        {"{" LLAMA ",\"num_local_experts\":8}", "num_local_experts"},
        {"{" LLAMA ",\"hidden_size\":32768,\"num_hidden_layers\":1024,\"head_dim\":64,"
         "\"intermediate_size\":65536}",
         "parameters"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        struct config config;
        struct err err;
        assert_int_equal(parse(&config, refused[i].text, &err), ERR_INPUT);
        assert_non_null(strstr(err.message, refused[i].names));
        assert_non_null(strstr(err.message, "here.json"));
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
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_unknown_name_lists_the_known),
        cmocka_unit_test(test_json_round_trip),
        cmocka_unit_test(test_published_json),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_rotary_defaults),
        cmocka_unit_test(test_biases_and_norms),
        cmocka_unit_test(test_only_gpt2_trains),
        cmocka_unit_test(test_derived),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_files_and_folders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
