/*
 * config: the shape of a model and the run settings that fix its mathematics.
 *
 * Owns the known names (gpt-tiny ... llama-70b), reading and writing Hugging Face config.json, and
 * the sanity of it all: it refuses what no kernel can compute, with the range that works. GPT-2
 * trains; the other kinds can only be planned so far (config_check_trains). Their config keeps what
 * costs follow from. What no cost depends on (rope_theta, rope_scaling, dropout) is not read, and
 * neither are sliding windows: attention is planned in full, which is too much for sequences longer
 * than the window.
 */
#ifndef SPILLWAY_MODEL_CONFIG_H
#define SPILLWAY_MODEL_CONFIG_H

#include "core/err.h"
#include <stdbool.h>
#include <stdint.h>

#define CONFIG_NAME_MAX 64

struct json_value;

enum config_kind {
    CONFIG_GPT2,
    CONFIG_LLAMA, /* and Mistral: RMSNorm, rotary positions, grouped queries, SwiGLU, no biases */
    CONFIG_QWEN2, /* Llama with biases on q, k and v */
    CONFIG_QWEN3, /* Llama with an RMSNorm over every head of q and k */
    CONFIG_KIND_COUNT
};

struct config {
    char name[CONFIG_NAME_MAX];
    enum config_kind kind;
    uint32_t layers;
    uint32_t channels;   /* C, a multiple of 32; in GPT-2 of heads too */
    uint32_t heads;      /* H, of queries */
    uint32_t kv_heads;   /* of keys and values: divides heads; GPT-2: heads */
    uint32_t head_dim;   /* of one head; heads x head_dim need not be C; GPT-2: C / heads */
    uint32_t ffn;        /* inner width of the MLP; GPT-2: 4C */
    uint32_t positions;  /* the longest sequence; GPT-2: rows of wpe */
    uint32_t vocab;      /* V; 0 in a named model that takes the data's vocabulary */
    float norm_epsilon;  /* LayerNorm, 1e-5 in GPT-2; RMSNorm elsewhere */
    bool tied;           /* the head is wte; always so in GPT-2 */
    bool attention_bias; /* Llama, Qwen3: biases on q, k, v and o; false in the other kinds */
};

enum precision { PRECISION_FP32, PRECISION_BF16 };

/* Bytes of a compute element (weight, activation inside a block): 4 or 2. */
static inline uint32_t precision_bytes(enum precision precision)
{
    return precision == PRECISION_BF16 ? 2 : 4;
}

/* -- What follows from the kind -- */

/* wpe is there: positions are learned rows and not rotations. */
static inline bool config_has_positions(const struct config *config)
{
    return config->kind == CONFIG_GPT2;
}

/* lm_head is there: a matrix [V, C] beside wte. */
static inline bool config_has_head(const struct config *config)
{
    return config->kind != CONFIG_GPT2 && !config->tied;
}

static inline bool config_has_qkv_bias(const struct config *config)
{
    return config->kind == CONFIG_GPT2 || config->kind == CONFIG_QWEN2 || config->attention_bias;
}

/* On the attention's projection into the residual stream. */
static inline bool config_has_output_bias(const struct config *config)
{
    return config->kind == CONFIG_GPT2 || config->attention_bias;
}

static inline bool config_has_qk_norm(const struct config *config)
{
    return config->kind == CONFIG_QWEN3;
}

/* Q, the width of the queries and of the attention's output: C in GPT-2. */
static inline uint32_t config_query_width(const struct config *config)
{
    return config->heads * config->head_dim;
}

/* K, the width of the keys, and that of the values: C in GPT-2. */
static inline uint32_t config_key_width(const struct config *config)
{
    return config->kv_heads * config->head_dim;
}

/* -- Making one -- */

/* GPT-2: fills kv_heads, head_dim, ffn and tied, which follow from channels and heads. For a config
 * written by hand, as in tests; what comes from the functions below is complete. Other kinds are
 * left alone. */
void config_derive(struct config *config);

/* A known name. An unknown one is refused with the list of the known. */
int config_from_name(struct config *config, const char *name, struct err *err);
/* A parsed config.json; what is the file's name for messages, which tell a member by its name in
 * that file. A member that is null counts as absent.
 * model_type gpt2: n_layer, n_embd, n_head, n_positions, vocab_size, layer_norm_epsilon; refuses
 * other activations than gelu_new, n_inner other than 4C, untied heads,
 * scale_attn_by_inverse_layer_idx.
 * model_type llama, mistral, qwen2, qwen3: num_hidden_layers, hidden_size, num_attention_heads,
 * intermediate_size, max_position_embeddings, vocab_size; optional are num_key_value_heads
 * (num_attention_heads), head_dim (hidden_size / num_attention_heads, in qwen3 128 as there),
 * rms_norm_eps (1e-6), tie_word_embeddings (false), attention_bias (false; llama and qwen3 only,
 * as Hugging Face's code ignores it in the others); refuses other activations than silu, mlp_bias
 * and mixtures of experts. */
int config_from_json(struct config *config, const struct json_value *root, const char *what,
                     struct err *err);
/* A name, a .json file, or a folder with a config.json. */
int config_load(struct config *config, const char *model, struct err *err);
/* Hugging Face's form, from which config_from_json makes the same config; the caller frees it.
 * Mistral is written as the llama that it equals. */
struct json_value *config_to_json(const struct config *config);
/* Called by the three above and again once vocab is known. An incomplete GPT-2 config
 * (config_derive) is a bug. A config that passes keeps every cost of model/graph.h in 64 bits. */
int config_check(const struct config *config, struct err *err);
/* 0 for GPT-2; any other kind is refused: plan and sweep take it, train does not yet. Called by
 * everything that would compute with the model. */
int config_check_trains(const struct config *config, struct err *err);

uint64_t config_parameter_count(const struct config *config);
/* Elements of a block's matrices, biases and norms left out; GPT-2: 12 C^2. */
uint64_t config_block_matrix_count(const struct config *config);

#endif
