#include "model/config.h"
#include "core/base.h"
#include "core/json.h"
#include <math.h>
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

/* Without wpe a position costs nothing: Llama 3.1 has 131,072 of them, Qwen2.5-1M a million. */
#define CONFIG_ROTARY_POSITIONS_MAX (1u << 20)
#define CONFIG_HEAD_DIM_MAX         1024u
#define CONFIG_QUERY_WIDTH_MAX      (1u << 18)
#define CONFIG_FFN_MAX              (1u << 20)

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

/* Hugging Face's defaults. */
#define RMS_EPSILON    1e-6f
#define QWEN3_HEAD_DIM 128u

#define INITIALIZER_RANGE 0.02

/* Members of struct config in their order. Radford et al. 2019, table 2; gpt-tiny and gpt-mini are
 * ours and take the data's vocabulary. The others are the config.json of Llama-3.1-8B,
 * Llama-3.1-70B, Mistral-7B-v0.1, Qwen2.5-14B and Qwen3-32B. */
static const struct config known[] = {
    {"gpt-tiny", CONFIG_GPT2, 4, 128, 4, 4, 32, 512, GPT2_POSITIONS, 0, GPT2_EPSILON, true, false},
    {"gpt-mini", CONFIG_GPT2, 8, 512, 8, 8, 64, 2048, GPT2_POSITIONS, 0, GPT2_EPSILON, true, false},
    {"gpt2-124m", CONFIG_GPT2, 12, 768, 12, 12, 64, 3072, GPT2_POSITIONS, GPT2_VOCAB, GPT2_EPSILON,
     true, false},
    {"gpt2-355m", CONFIG_GPT2, 24, 1024, 16, 16, 64, 4096, GPT2_POSITIONS, GPT2_VOCAB, GPT2_EPSILON,
     true, false},
    {"gpt2-774m", CONFIG_GPT2, 36, 1280, 20, 20, 64, 5120, GPT2_POSITIONS, GPT2_VOCAB, GPT2_EPSILON,
     true, false},
    {"gpt2-1558m", CONFIG_GPT2, 48, 1600, 25, 25, 64, 6400, GPT2_POSITIONS, GPT2_VOCAB,
     GPT2_EPSILON, true, false},
    {"llama-8b", CONFIG_LLAMA, 32, 4096, 32, 8, 128, 14336, 131072, 128256, 1e-5f, false, false},
    {"llama-70b", CONFIG_LLAMA, 80, 8192, 64, 8, 128, 28672, 131072, 128256, 1e-5f, false, false},
    {"mistral-7b", CONFIG_LLAMA, 32, 4096, 32, 8, 128, 14336, 32768, 32000, 1e-5f, false, false},
    {"qwen-14b", CONFIG_QWEN2, 48, 5120, 40, 8, 128, 13824, 131072, 152064, 1e-5f, false, false},
    {"qwen-32b", CONFIG_QWEN3, 64, 5120, 64, 8, 128, 25600, 40960, 151936, 1e-6f, false, false},
};

/* What model_type stands for. The first of a kind is the one that is written. */
static const struct family {
    const char *type, *architecture;
    enum config_kind kind;
    bool has_attention_bias; /* Hugging Face's code reads the member */
} families[] = {
    {"gpt2", "GPT2LMHeadModel", CONFIG_GPT2, false},
    {"llama", "LlamaForCausalLM", CONFIG_LLAMA, true},
    {"mistral", "MistralForCausalLM", CONFIG_LLAMA, false},
    {"qwen2", "Qwen2ForCausalLM", CONFIG_QWEN2, false},
    {"qwen3", "Qwen3ForCausalLM", CONFIG_QWEN3, true},
};

static const char *const kind_name[CONFIG_KIND_COUNT] = {
    [CONFIG_GPT2] = "GPT-2",
    [CONFIG_LLAMA] = "Llama",
    [CONFIG_QWEN2] = "Qwen2",
    [CONFIG_QWEN3] = "Qwen3",
};

/* The members of config.json that have one name in GPT-2's and another in all others'. */
struct members {
    const char *layers, *channels, *heads, *positions, *epsilon;
};

static const struct members *members_of(enum config_kind kind)
{
    static const struct members gpt2 = {"n_layer", "n_embd", "n_head", "n_positions",
                                        "layer_norm_epsilon"};
    static const struct members others = {"num_hidden_layers", "hidden_size", "num_attention_heads",
                                          "max_position_embeddings", "rms_norm_eps"};
    return kind == CONFIG_GPT2 ? &gpt2 : &others;
}

/* -- Names -- */

static const struct config *known_find(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        if (strcmp(known[i].name, name) == 0)
            return &known[i];
    return NULL;
}

static int refuse_name(const char *name, struct err *err)
{
    char list[ARRAY_COUNT(known) * CONFIG_NAME_MAX] = "";
    size_t used = 0;
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        used += (size_t)snprintf(list + used, sizeof(list) - used, "%s, ", known[i].name);
    ASSERT(used < sizeof(list));
    return err_set(err, ERR_INPUT,
                   "unknown model '%s': give %sa config.json, or a Hugging Face folder", name,
                   list);
}

int config_from_name(struct config *config, const char *name, struct err *err)
{
    const struct config *found = known_find(name);
    if (!found)
        return refuse_name(name, err);
    *config = *found;
    return config_check(config, err);
}

void config_derive(struct config *config)
{
    if (config->kind != CONFIG_GPT2)
        return;
    config->kv_heads = config->heads;
    config->head_dim = config->heads > 0 ? config->channels / config->heads : 0;
    config->ffn = 4 * config->channels;
    config->tied = true;
}

/* -- Checks -- */

static int check_range(const char *name, uint32_t value, uint32_t least, uint32_t most,
                       struct err *err)
{
    if (value >= least && value <= most)
        return 0;
    return err_set(err, ERR_INPUT, "the model has %s %u, but it must be from %u to %u", name, value,
                   least, most);
}

static int check_multiple(const char *name, uint32_t value, uint32_t step, struct err *err)
{
    if (value % step == 0)
        return 0;
    return err_set(err, ERR_INPUT, "the model has %s %u, but it must be a multiple of %u", name,
                   value, step);
}

static int check_divides(const char *whole, uint32_t value, const char *part, uint32_t divisor,
                         struct err *err)
{
    if (value % divisor == 0)
        return 0;
    return err_set(err, ERR_INPUT, "the model has %s %u, which its %s %u does not divide", whole,
                   value, part, divisor);
}

/* Rows of the embedding are cut into chunks of whole pages: wide and odd rows make them too large.
 */
static int check_embedding(const struct config *config, const char *channels, struct err *err)
{
    if (config->channels > CONFIG_ODD_CHANNELS_MAX &&
        config->channels % CONFIG_WIDE_CHANNELS_STEP != 0)
        return err_set(err, ERR_INPUT,
                       "the model has %s %u, but above %u it must be a multiple of %u", channels,
                       config->channels, CONFIG_ODD_CHANNELS_MAX, CONFIG_WIDE_CHANNELS_STEP);
    if ((uint64_t)config->vocab * config->channels > CONFIG_EMBEDDING_MAX)
        return err_set(err, ERR_INPUT,
                       "the model has vocab_size %u and %s %u: their product may be %llu at most",
                       config->vocab, channels, config->channels,
                       (unsigned long long)CONFIG_EMBEDDING_MAX);
    return 0;
}

static int check_gpt2(const struct config *config, struct err *err)
{
    int rc = check_divides("n_embd", config->channels, "n_head", config->heads, err);
    if (rc)
        return rc;
    ASSERT(config->kv_heads == config->heads && config->ffn == 4 * config->channels);
    ASSERT(config_query_width(config) == config->channels && config->tied);
    return 0;
}

/* Llama, Qwen2 and Qwen3. The rotation takes a head's channels in pairs. */
static int check_rotary(const struct config *config, struct err *err)
{
    int rc;
    if ((rc = check_range("num_key_value_heads", config->kv_heads, 1, config->heads, err)) ||
        (rc = check_divides("num_attention_heads", config->heads, "num_key_value_heads",
                            config->kv_heads, err)) ||
        (rc = check_range("head_dim", config->head_dim, 2, CONFIG_HEAD_DIM_MAX, err)) ||
        (rc = check_multiple("head_dim", config->head_dim, 2, err)) ||
        (rc = check_range("intermediate_size", config->ffn, 1, CONFIG_FFN_MAX, err)))
        return rc;
    if (config_query_width(config) > CONFIG_QUERY_WIDTH_MAX)
        return err_set(err, ERR_INPUT,
                       "the model has num_attention_heads %u and head_dim %u: their product may be "
                       "%u at most",
                       config->heads, config->head_dim, CONFIG_QUERY_WIDTH_MAX);
    return 0;
}

static int check_parameters(const struct config *config, struct err *err)
{
    if (config_parameter_count(config) > CONFIG_PARAMETERS_MAX)
        return err_set(err, ERR_INPUT, "the model has %llu parameters: %llu are the most",
                       (unsigned long long)config_parameter_count(config),
                       (unsigned long long)CONFIG_PARAMETERS_MAX);
    return 0;
}

int config_check(const struct config *config, struct err *err)
{
    ASSERT(config->kind < CONFIG_KIND_COUNT);
    const struct members *members = members_of(config->kind);
    uint32_t positions_max =
        config_has_positions(config) ? CONFIG_POSITIONS_MAX : CONFIG_ROTARY_POSITIONS_MAX;
    int rc;
    if ((rc = check_range(members->layers, config->layers, 1, CONFIG_LAYERS_MAX, err)) ||
        (rc = check_range(members->channels, config->channels, CONFIG_CHANNELS_STEP,
                          CONFIG_CHANNELS_MAX, err)) ||
        (rc = check_range(members->heads, config->heads, 1, config->channels, err)) ||
        (rc = check_range(members->positions, config->positions, 1, positions_max, err)) ||
        (rc = check_range("vocab_size", config->vocab, 0, CONFIG_VOCAB_MAX, err)) ||
        (rc = check_multiple(members->channels, config->channels, CONFIG_CHANNELS_STEP, err)) ||
        (rc = check_embedding(config, members->channels, err)) ||
        (rc = (config->kind == CONFIG_GPT2 ? check_gpt2 : check_rotary)(config, err)) ||
        (rc = check_parameters(config, err)))
        return rc;
    /* Also refuses a NaN. */
    if (!(config->norm_epsilon > 0.0f && config->norm_epsilon < 1.0f))
        return err_set(err, ERR_INPUT, "the model has %s %g, but it must lie between 0 and 1",
                       members->epsilon, (double)config->norm_epsilon);
    return 0;
}

int config_check_trains(const struct config *config, struct err *err)
{
    if (config->kind == CONFIG_GPT2)
        return 0;
    return err_set(err, ERR_INPUT,
                   "%s is of %s kind, which plan and sweep take but train does not yet: give a "
                   "gpt2 name or a config.json of model_type gpt2",
                   config->name, kind_name[config->kind]);
}

/* -- Reading -- */

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

static int read_optional_count(const struct json_value *root, const char *key, uint32_t fallback,
                               const char *what, uint32_t *count, struct err *err)
{
    *count = fallback;
    return json_has(root, key) ? read_count(root, key, what, count, err) : 0;
}

/* A getter that gives back both fallbacks found no boolean. */
static int read_flag(const struct json_value *root, const char *key, bool fallback,
                     const char *what, bool *flag, struct err *err)
{
    *flag = json_get_bool(root, key, fallback);
    if (json_has(root, key) && json_get_bool(root, key, true) != json_get_bool(root, key, false))
        return err_set(err, ERR_INPUT, "%s: %s must be true or false", what, key);
    return 0;
}

static int read_epsilon(const struct json_value *root, const char *key, float fallback,
                        const char *what, float *epsilon, struct err *err)
{
    double value = json_get_number(root, key, json_has(root, key) ? NAN : (double)fallback);
    if (isnan(value))
        return err_set(err, ERR_INPUT, "%s: %s must be a number", what, key);
    *epsilon = (float)value;
    return 0;
}

/* What only one value works of; absent means that one. */
static int require_flag(const struct json_value *root, const char *key, bool works,
                        const char *what, struct err *err)
{
    bool flag;
    int rc = read_flag(root, key, works, what, &flag, err);
    if (rc == 0 && flag != works)
        return err_set(err, ERR_INPUT, "%s: %s is %s, but only %s works", what, key,
                       flag ? "true" : "false", works ? "true" : "false");
    return rc;
}

static int require_text(const struct json_value *root, const char *key, const char *works,
                        const char *what, struct err *err)
{
    const char *text = json_get_string(root, key, json_has(root, key) ? NULL : works);
    if (!text)
        return err_set(err, ERR_INPUT, "%s: %s must be a text, and only %s works", what, key,
                       works);
    if (strcmp(text, works) != 0)
        return err_set(err, ERR_INPUT, "%s: %s is '%s', but only %s works", what, key, text, works);
    return 0;
}

/* What would make the same weights compute something else than our kernels do. */
static int refuse_gpt2_variants(const struct json_value *root, uint32_t channels, const char *what,
                                struct err *err)
{
    int rc;
    if ((rc = require_text(root, "activation_function", "gelu_new", what, err)) ||
        (rc = require_flag(root, "tie_word_embeddings", true, what, err)) ||
        (rc = require_flag(root, "scale_attn_by_inverse_layer_idx", false, what, err)) ||
        (rc = require_flag(root, "scale_attn_weights", true, what, err)))
        return rc;
    uint32_t inner, works = channels * 4;
    rc = read_optional_count(root, "n_inner", works, what, &inner, err);
    if (rc == 0 && inner != works)
        return err_set(err, ERR_INPUT, "%s: n_inner is %u, but only 4 x n_embd = %u works", what,
                       inner, works);
    return rc;
}

/* The counts that every kind has. */
static int read_shape(struct config *config, const struct json_value *root, const char *what,
                      struct err *err)
{
    const struct members *members = members_of(config->kind);
    int rc;
    if ((rc = read_count(root, members->layers, what, &config->layers, err)) ||
        (rc = read_count(root, members->channels, what, &config->channels, err)) ||
        (rc = read_count(root, members->heads, what, &config->heads, err)) ||
        (rc = read_count(root, members->positions, what, &config->positions, err)) ||
        (rc = read_count(root, "vocab_size", what, &config->vocab, err)))
        return rc;
    return read_epsilon(root, members->epsilon,
                        config->kind == CONFIG_GPT2 ? GPT2_EPSILON : RMS_EPSILON, what,
                        &config->norm_epsilon, err);
}

static int read_gpt2(struct config *config, const struct json_value *root, const char *what,
                     struct err *err)
{
    int rc = refuse_gpt2_variants(root, config->channels, what, err);
    config_derive(config);
    return rc;
}

static int read_head_dim(struct config *config, const struct json_value *root, const char *what,
                         struct err *err)
{
    if (json_has(root, "head_dim"))
        return read_count(root, "head_dim", what, &config->head_dim, err);
    config->head_dim = QWEN3_HEAD_DIM;
    if (config->kind == CONFIG_QWEN3)
        return 0;
    config->head_dim = config->channels / config->heads;
    if (config->channels % config->heads != 0)
        return err_set(err, ERR_INPUT,
                       "%s: head_dim must be there, as num_attention_heads %u does not divide "
                       "hidden_size %u",
                       what, config->heads, config->channels);
    return 0;
}

static int refuse_experts(const struct json_value *root, const char *what, struct err *err)
{
    static const char *const keys[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
        if (json_has(root, keys[i]) && json_get_int(root, keys[i], -1) != 0)
            return err_set(err, ERR_INPUT,
                           "%s: %s is there, but mixtures of experts do not work: give a dense "
                           "model",
                           what, keys[i]);
    return 0;
}

static int read_rotary(struct config *config, const struct json_value *root,
                       const struct family *family, const char *what, struct err *err)
{
    int rc;
    if ((rc = refuse_experts(root, what, err)) ||
        (rc = require_text(root, "hidden_act", "silu", what, err)) ||
        (rc = require_flag(root, "mlp_bias", false, what, err)) ||
        (rc = read_optional_count(root, "num_key_value_heads", config->heads, what,
                                  &config->kv_heads, err)) ||
        (rc = read_head_dim(config, root, what, err)) ||
        (rc = read_count(root, "intermediate_size", what, &config->ffn, err)) ||
        (rc = read_flag(root, "tie_word_embeddings", false, what, &config->tied, err)))
        return rc;
    if (family->has_attention_bias)
        rc = read_flag(root, "attention_bias", false, what, &config->attention_bias, err);
    return rc;
}

static const struct family *family_find(const char *type)
{
    for (size_t i = 0; i < ARRAY_COUNT(families); i++)
        if (strcmp(families[i].type, type) == 0)
            return &families[i];
    return NULL;
}

int config_from_json(struct config *config, const struct json_value *root, const char *what,
                     struct err *err)
{
    *config = (struct config){0};
    const char *type = json_get_string(root, "model_type", "");
    const struct family *family = family_find(type);
    if (!family)
        return err_set(
            err, ERR_INPUT,
            "%s: model_type is '%s', but only gpt2, llama, mistral, qwen2 and qwen3 work", what,
            type);
    config->kind = family->kind;
    snprintf(config->name, sizeof(config->name), "%s",
             json_get_string(root, "_name_or_path", type));
    int rc = read_shape(config, root, what, err);
    if (rc)
        return rc;
    rc = family->kind == CONFIG_GPT2 ? read_gpt2(config, root, what, err)
                                     : read_rotary(config, root, family, what, err);
    if (rc)
        return rc;
    struct err found;
    rc = config_check(config, &found);
    return rc ? err_set(err, rc, "%s: %s", what, found.message) : 0;
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

/* -- Writing -- */

static const struct family *family_of(enum config_kind kind)
{
    size_t i = 0;
    while (families[i].kind != kind)
        i++;
    return &families[i];
}

static void write_gpt2(struct json_value *root, const struct config *config)
{
    json_set_int(root, "n_ctx", config->positions);
    json_set_int(root, "vocab_size", config->vocab);
    /* The float's shortest decimal form would need a search; 1e-5f as a double is close enough to
     * give the same float back. */
    json_set_number(root, "layer_norm_epsilon", config->norm_epsilon);
    json_set_string(root, "activation_function", "gelu_new");
    json_set_number(root, "attn_pdrop", 0.0);
    json_set_number(root, "embd_pdrop", 0.0);
    json_set_number(root, "resid_pdrop", 0.0);
    json_set_number(root, "initializer_range", INITIALIZER_RANGE);
    json_set_bool(root, "scale_attn_weights", true);
}

static void write_rotary(struct json_value *root, const struct config *config,
                         const struct family *family)
{
    json_set_int(root, "num_key_value_heads", config->kv_heads);
    json_set_int(root, "head_dim", config->head_dim);
    json_set_int(root, "intermediate_size", config->ffn);
    json_set_int(root, "vocab_size", config->vocab);
    json_set_number(root, "rms_norm_eps", config->norm_epsilon);
    json_set_string(root, "hidden_act", "silu");
    json_set_number(root, "initializer_range", INITIALIZER_RANGE);
    if (family->has_attention_bias)
        json_set_bool(root, "attention_bias", config->attention_bias);
}

struct json_value *config_to_json(const struct config *config)
{
    const struct family *family = family_of(config->kind);
    const struct members *members = members_of(config->kind);
    struct json_value *root = json_new_object();
    struct json_value *architectures = json_new_array();
    json_append(architectures, json_new_string(family->architecture, strlen(family->architecture)));
    json_set(root, "architectures", architectures);
    json_set_string(root, "model_type", family->type);
    json_set_string(root, "_name_or_path", config->name);
    json_set_int(root, members->layers, config->layers);
    json_set_int(root, members->channels, config->channels);
    json_set_int(root, members->heads, config->heads);
    json_set_int(root, members->positions, config->positions);
    if (config->kind == CONFIG_GPT2)
        write_gpt2(root, config);
    else
        write_rotary(root, config, family);
    json_set_bool(root, "tie_word_embeddings", !config_has_head(config));
    json_set_string(root, "torch_dtype", "float32");
    return root;
}

/* -- Counts -- */

uint64_t config_block_matrix_count(const struct config *config)
{
    uint64_t c = config->channels;
    if (config->kind == CONFIG_GPT2)
        return 12 * c * c; /* 3 + 1 + 4 + 4 */
    /* q and o, k and v; gate, up and down. */
    uint64_t attention = 2 * (uint64_t)config_query_width(config) + 2 * config_key_width(config);
    return c * (attention + 3 * (uint64_t)config->ffn);
}

static uint64_t block_vector_count(const struct config *config)
{
    uint64_t c = config->channels;
    if (config->kind == CONFIG_GPT2)
        return 13 * c; /* two norms 4, biases 3 + 1 + 4 + 1 */
    uint64_t count = 2 * c;
    if (config_has_qkv_bias(config))
        count += config_query_width(config) + 2 * config_key_width(config);
    if (config_has_output_bias(config))
        count += c;
    if (config_has_qk_norm(config))
        count += 2 * config->head_dim;
    return count;
}

uint64_t config_parameter_count(const struct config *config)
{
    uint64_t c = config->channels;
    uint64_t block = config_block_matrix_count(config) + block_vector_count(config);
    uint64_t embedding =
        config->vocab * c + (config_has_positions(config) ? config->positions * c : 0);
    uint64_t final = config->kind == CONFIG_GPT2 ? 2 * c : c; /* LayerNorm's bias */
    uint64_t head = config_has_head(config) ? config->vocab * c : 0;
    return mul_checked(config->layers, block) + embedding + final + head;
}
