/*
 * config: the shape of a model and the run settings that fix its mathematics.
 *
 * Owns the names (gpt-tiny ... gpt2-1558m), reading and writing Hugging Face GPT-2 config.json, and
 * the sanity of it all: it refuses what no kernel can compute, with the range that works.
 */
#ifndef SPILLWAY_MODEL_CONFIG_H
#define SPILLWAY_MODEL_CONFIG_H

#include "core/err.h"
#include <stdint.h>

#define CONFIG_NAME_MAX 64

struct json_value;

struct config {
    char name[CONFIG_NAME_MAX];
    uint32_t layers;
    uint32_t channels;  /* C, a multiple of heads, and of 32 */
    uint32_t heads;     /* H */
    uint32_t positions; /* the longest sequence: rows of wpe */
    uint32_t vocab;     /* V; 0 in a named model that takes the data's vocabulary */
    float norm_epsilon; /* LayerNorm, 1e-5 in GPT-2 */
};

enum precision { PRECISION_FP32, PRECISION_BF16 };

/* Bytes of a compute element (weight, activation inside a block): 4 or 2. */
static inline uint32_t precision_bytes(enum precision precision)
{
    return precision == PRECISION_BF16 ? 2 : 4;
}

/* A known name. An unknown one is refused with the list of the known. */
int config_from_name(struct config *config, const char *name, struct err *err);
/* A parsed config.json of model_type gpt2 (n_layer, n_embd, n_head, n_positions, vocab_size,
 * layer_norm_epsilon; refuses other activations than gelu_new, n_inner other than 4C, untied
 * heads, scale_attn_by_inverse_layer_idx). */
int config_from_json(struct config *config, const struct json_value *root, const char *what,
                     struct err *err);
/* A name, a .json file, or a folder with a config.json. */
int config_load(struct config *config, const char *model, struct err *err);
/* Hugging Face's form; the caller frees it. */
struct json_value *config_to_json(const struct config *config);
/* Called by the three above and again once vocab is known. */
int config_check(const struct config *config, struct err *err);

uint64_t config_parameter_count(const struct config *config);

#endif
