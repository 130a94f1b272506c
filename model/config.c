#include "model/config.h"
#include "core/base.h"
#include "core/json.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Ranges far above any model that this program can train in a lifetime, and far below what would
 * overflow a product of shapes in 64 bits. */
#define CONFIG_LAYERS_MAX    1024u
#define CONFIG_CHANNELS_MAX  65536u
#define CONFIG_CHANNELS_STEP 32u
#define CONFIG_POSITIONS_MAX 65536u
#define CONFIG_VOCAB_MAX     (1u << 24)

#define CONFIG_ODD_CHANNELS_MAX   8192u
#define CONFIG_WIDE_CHANNELS_STEP 256u
#define CONFIG_EMBEDDING_MAX      ((uint64_t)1 << 32)
#define CONFIG_PATH_MAX           4096
/* 137 G parameters, 1.6 TB of state. A plan has ops for each chunk: for models far above it would
 * itself take all memory before it could say that the budget is too small. */
#define CONFIG_PARAMETERS_MAX ((uint64_t)1 << 37)

#define GPT2_VOCAB     50257u
#define GPT2_POSITIONS 1024u
#define GPT2_EPSILON   1e-5f

/* Radford et al. 2019, table 2; the two small ones are ours and take the data's vocabulary. */
static const struct config known[] = {
    {"gpt-tiny", 4, 128, 4, GPT2_POSITIONS, 0, GPT2_EPSILON},
    {"gpt-mini", 8, 512, 8, GPT2_POSITIONS, 0, GPT2_EPSILON},
    {"gpt2-124m", 12, 768, 12, GPT2_POSITIONS, GPT2_VOCAB, GPT2_EPSILON},
    {"gpt2-355m", 24, 1024, 16, GPT2_POSITIONS, GPT2_VOCAB, GPT2_EPSILON},
    {"gpt2-774m", 36, 1280, 20, GPT2_POSITIONS, GPT2_VOCAB, GPT2_EPSILON},
    {"gpt2-1558m", 48, 1600, 25, GPT2_POSITIONS, GPT2_VOCAB, GPT2_EPSILON},
};

static const struct config *known_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (strcmp(known[i].name, name) == 0)
            return &known[i];
    return NULL;
}

int config_from_name(struct config *config, const char *name, struct err *err)
{
    const struct config *found = known_find(name);
    if (!found)
        return err_set(err, ERR_INPUT,
                       "unknown model '%s': give gpt-tiny, gpt-mini, gpt2-124m, gpt2-355m, "
                       "gpt2-774m, gpt2-1558m, a config.json, or a Hugging Face folder",
                       name);
    *config = *found;
    return config_check(config, err);
}

static int check_range(const char *name, uint32_t value, uint32_t least, uint32_t most,
                       struct err *err)
{
    if (value >= least && value <= most)
        return 0;
    return err_set(err, ERR_INPUT, "the model has %s %u, but it must be from %u to %u", name, value,
                   least, most);
}

int config_check(const struct config *config, struct err *err)
{
    int rc;
    if ((rc = check_range("n_layer", config->layers, 1, CONFIG_LAYERS_MAX, err)) ||
        (rc = check_range("n_embd", config->channels, CONFIG_CHANNELS_STEP, CONFIG_CHANNELS_MAX,
                          err)) ||
        (rc = check_range("n_head", config->heads, 1, config->channels, err)) ||
        (rc = check_range("n_positions", config->positions, 1, CONFIG_POSITIONS_MAX, err)) ||
        (rc = check_range("vocab_size", config->vocab, 0, CONFIG_VOCAB_MAX, err)))
        return rc;
    if (config->channels % CONFIG_CHANNELS_STEP != 0)
        return err_set(err, ERR_INPUT, "the model has n_embd %u, but it must be a multiple of %u",
                       config->channels, CONFIG_CHANNELS_STEP);
    /* Rows of the embedding are cut into chunks of whole pages: wide and odd rows make them too
     * large. */
    if (config->channels > CONFIG_ODD_CHANNELS_MAX &&
        config->channels % CONFIG_WIDE_CHANNELS_STEP != 0)
        return err_set(err, ERR_INPUT,
                       "the model has n_embd %u, but above %u it must be a multiple of %u",
                       config->channels, CONFIG_ODD_CHANNELS_MAX, CONFIG_WIDE_CHANNELS_STEP);
    if ((uint64_t)config->vocab * config->channels > CONFIG_EMBEDDING_MAX)
        return err_set(err, ERR_INPUT,
                       "the model has vocab_size %u and n_embd %u: their product may be %llu at "
                       "most",
                       config->vocab, config->channels, (unsigned long long)CONFIG_EMBEDDING_MAX);
    if (config->channels % config->heads != 0)
        return err_set(err, ERR_INPUT,
                       "the model has n_embd %u, which its n_head %u does not divide",
                       config->channels, config->heads);
    if (config_parameter_count(config) > CONFIG_PARAMETERS_MAX)
        return err_set(err, ERR_INPUT, "the model has %llu parameters: %llu are the most",
                       (unsigned long long)config_parameter_count(config),
                       (unsigned long long)CONFIG_PARAMETERS_MAX);
    /* Also refuses a NaN. */
    if (!(config->norm_epsilon > 0.0f && config->norm_epsilon < 1.0f))
        return err_set(err, ERR_INPUT,
                       "the model has layer_norm_epsilon %g, but it must lie between 0 and 1",
                       (double)config->norm_epsilon);
    return 0;
}

static int read_count(const struct json_value *root, const char *key, const char *what,
                      uint32_t *count, struct err *err)
{
    int64_t value = json_get_int(root, key, -1);
    if (value < 1 || value > UINT32_MAX)
        return err_set(err, ERR_INPUT, "%s: %s must be there and be a positive whole number", what,
                       key);
    *count = (uint32_t)value;
    return 0;
}

/* What would make the same weights compute something else than our kernels do. */
static int refuse_variants(const struct json_value *root, uint32_t channels, const char *what,
                           struct err *err)
{
    const char *activation = json_get_string(root, "activation_function", "gelu_new");
    if (strcmp(activation, "gelu_new") != 0)
        return err_set(err, ERR_INPUT, "%s: activation_function is '%s', but only gelu_new works",
                       what, activation);
    int64_t inner = json_get_int(root, "n_inner", (int64_t)channels * 4);
    if (inner != (int64_t)channels * 4)
        return err_set(err, ERR_INPUT, "%s: n_inner is %lld, but only 4 x n_embd = %lld works",
                       what, (long long)inner, (long long)channels * 4);
    if (!json_get_bool(root, "tie_word_embeddings", true))
        return err_set(err, ERR_INPUT,
                       "%s: tie_word_embeddings is false, but only a tied head works", what);
    if (json_get_bool(root, "scale_attn_by_inverse_layer_idx", false))
        return err_set(err, ERR_INPUT,
                       "%s: scale_attn_by_inverse_layer_idx is true, but only false works", what);
    if (!json_get_bool(root, "scale_attn_weights", true))
        return err_set(err, ERR_INPUT, "%s: scale_attn_weights is false, but only true works",
                       what);
    return 0;
}

int config_from_json(struct config *config, const struct json_value *root, const char *what,
                     struct err *err)
{
    int rc;
    *config = (struct config){0};
    const char *type = json_get_string(root, "model_type", "");
    if (strcmp(type, "gpt2") != 0)
        return err_set(err, ERR_INPUT, "%s: model_type is '%s', but only gpt2 works", what, type);
    if ((rc = read_count(root, "n_layer", what, &config->layers, err)) ||
        (rc = read_count(root, "n_embd", what, &config->channels, err)) ||
        (rc = read_count(root, "n_head", what, &config->heads, err)) ||
        (rc = read_count(root, "n_positions", what, &config->positions, err)) ||
        (rc = read_count(root, "vocab_size", what, &config->vocab, err)) ||
        (rc = refuse_variants(root, config->channels, what, err)))
        return rc;
    config->norm_epsilon = (float)json_get_number(root, "layer_norm_epsilon", GPT2_EPSILON);
    snprintf(config->name, sizeof(config->name), "%s",
             json_get_string(root, "_name_or_path", "gpt2"));
    return config_check(config, err);
}

static int load_file(struct config *config, const char *path, struct err *err)
{
    struct json_value *root = json_load(path, err);
    if (!root)
        return err->code;
    int rc = config_from_json(config, root, path, err);
    json_free(root);
    return rc;
}

int config_load(struct config *config, const char *model, struct err *err)
{
    struct stat status;
    if (known_find(model) || stat(model, &status) != 0)
        return config_from_name(config, model, err);
    if (!S_ISDIR(status.st_mode))
        return load_file(config, model, err);
    char path[CONFIG_PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/config.json", model);
    if (length < 0 || (size_t)length >= sizeof(path))
        return err_set(err, ERR_INPUT, "the path %.100s... is too long", model);
    return load_file(config, path, err);
}

struct json_value *config_to_json(const struct config *config)
{
    struct json_value *root = json_new_object();
    struct json_value *architectures = json_new_array();
    static const char architecture[] = "GPT2LMHeadModel";
    json_append(architectures, json_new_string(architecture, sizeof(architecture) - 1));
    json_set(root, "architectures", architectures);
    json_set_string(root, "model_type", "gpt2");
    json_set_string(root, "_name_or_path", config->name);
    json_set_int(root, "n_layer", config->layers);
    json_set_int(root, "n_embd", config->channels);
    json_set_int(root, "n_head", config->heads);
    json_set_int(root, "n_positions", config->positions);
    json_set_int(root, "n_ctx", config->positions);
    json_set_int(root, "vocab_size", config->vocab);
    /* The float's shortest decimal form would need a search; 1e-5f as a double is close enough to
     * give the same float back. */
    json_set_number(root, "layer_norm_epsilon", config->norm_epsilon);
    json_set_string(root, "activation_function", "gelu_new");
    json_set_number(root, "attn_pdrop", 0.0);
    json_set_number(root, "embd_pdrop", 0.0);
    json_set_number(root, "resid_pdrop", 0.0);
    json_set_number(root, "initializer_range", 0.02);
    json_set_bool(root, "scale_attn_weights", true);
    json_set_bool(root, "tie_word_embeddings", true);
    json_set_string(root, "torch_dtype", "float32");
    return root;
}

uint64_t config_parameter_count(const struct config *config)
{
    uint64_t c = config->channels;
    /* Matrices 3 + 1 + 4 + 4 = 12 C^2; vectors: two norms 4 C, biases 3 + 1 + 4 + 1 = 9 C. */
    uint64_t block = 12 * c * c + 13 * c;
    return mul_checked(config->layers, block) + (config->vocab + (uint64_t)config->positions) * c +
           2 * c;
}
