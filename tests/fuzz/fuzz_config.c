/*
 * Descriptions of any bytes: a model's config.json and a machine's profile. What is taken passes
 * its own check, and is taken again when it is written down.
 */
#include "core/base.h"
#include "core/json.h"
#include "model/config.h"
#include "offload/profile.h"
#include "offload/profile_file.h"
#include "tests/fuzz/files.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

static void try_config(const struct json_value *root)
{
    struct err err;
    struct config config, again;
    if (config_from_json(&config, root, "fuzz", &err) != 0)
        return;
    ASSERT(config_check(&config, &err) == 0);
    ASSERT(config_parameter_count(&config) > 0);
    struct json_value *written = config_to_json(&config);
    if (config_from_json(&again, written, "written", &err) != 0)
        fatal("what was written is refused: %s", err.message);
    ASSERT(again.kind == config.kind && again.layers == config.layers &&
           again.vocab == config.vocab);
    ASSERT(config_parameter_count(&again) == config_parameter_count(&config));
    json_free(written);
}

static void try_profile(const char *path)
{
    struct err err;
    struct profile profile, again;
    if (profile_load(&profile, path, &err) != 0)
        return;
    ASSERT(profile_check(&profile, "fuzz", &err) == 0);
    ASSERT(profile_save(&profile, fuzz_path("saved.json"), &err) == 0);
    if (profile_load(&again, fuzz_path("saved.json"), &err) != 0)
        fatal("what was saved does not load: %s", err.message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct err err;
    struct json_value *root = json_parse((const char *)data, bytes, "fuzz", &err);
    if (root != NULL)
        try_config(root);
    json_free(root);
    try_profile(fuzz_write("profile.json", data, bytes));
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *to)
{
    static const char *const seeds[] = {
        "{\"model_type\": \"gpt2\", \"n_layer\": 2, \"n_embd\": 64, \"n_head\": 2, "
        "\"n_positions\": 64, "
        "\"vocab_size\": 512, \"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": "
        "1e-05}",
        "{\"model_type\": \"llama\", \"num_hidden_layers\": 2, \"hidden_size\": 64, "
        "\"vocab_size\": 500, "
        "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 96, "
        "\"max_position_embeddings\": 128, \"hidden_act\": \"silu\", \"tie_word_embeddings\": "
        "true, "
        "\"rms_norm_eps\": 1e-5, \"attention_bias\": true}",
        "{\"model_type\": \"qwen3\", \"num_hidden_layers\": 2, \"hidden_size\": 64, "
        "\"vocab_size\": 500, "
        "\"num_attention_heads\": 4, \"intermediate_size\": 96, \"max_position_embeddings\": 128, "
        "\"head_dim\": 32}",
    };
    struct err err;
    struct profile profile;
    if (index > ARRAY_COUNT(seeds))
        return SIZE_MAX;
    if (index < ARRAY_COUNT(seeds)) {
        memcpy(to, seeds[index], strlen(seeds[index]));
        return strlen(seeds[index]);
    }
    profile_init(&profile, 4);
    ASSERT(profile_save(&profile, fuzz_path("seed.json"), &err) == 0);
    return fuzz_read("seed.json", to, FUZZ_INPUT_MAX);
}
