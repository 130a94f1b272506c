#include "model/tensors.h"
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define INIT_STD          0.02f
#define INIT_STD_POSITION 0.01f

/* Tensors before the blocks, and after them, at most. */
#define EDGE_TENSOR_MAX 2u

/* Where wpe starts in its group: chunks of state hold a multiple of this many parameters. */
#define POSITION_ALIGN 2048

/* GPT-2: a block's tensors as multiples of C: columns 0 makes a vector of `rows` x C. */
static const struct {
    const char *name;
    uint32_t rows, columns;
} block_tensors[BLOCK_TENSOR_COUNT] = {
    [BLOCK_LN1_WEIGHT] = {"ln_1.weight", 1, 0},
    [BLOCK_LN1_BIAS] = {"ln_1.bias", 1, 0},
    [BLOCK_QKV_WEIGHT] = {"attn.c_attn.weight", 1, 3},
    [BLOCK_QKV_BIAS] = {"attn.c_attn.bias", 3, 0},
    [BLOCK_PROJ_WEIGHT] = {"attn.c_proj.weight", 1, 1},
    [BLOCK_PROJ_BIAS] = {"attn.c_proj.bias", 1, 0},
    [BLOCK_LN2_WEIGHT] = {"ln_2.weight", 1, 0},
    [BLOCK_LN2_BIAS] = {"ln_2.bias", 1, 0},
    [BLOCK_FC_WEIGHT] = {"mlp.c_fc.weight", 1, 4},
    [BLOCK_FC_BIAS] = {"mlp.c_fc.bias", 4, 0},
    [BLOCK_OUT_WEIGHT] = {"mlp.c_proj.weight", 4, 1},
    [BLOCK_OUT_BIAS] = {"mlp.c_proj.bias", 1, 0},
};

/* Other kinds: a block's tensors by the names of their dimensions. */
enum dimension { NONE, C, Q, K, D, F, DIMENSION_COUNT };
enum presence { ALWAYS, QKV_BIAS, QK_NORM, OUTPUT_BIAS, PRESENCE_COUNT };

static const struct rotary_tensor {
    const char *name;
    enum dimension rows, columns;
    enum presence presence;
} rotary_tensors[] = {
    {"input_layernorm.weight", C, NONE, ALWAYS},
    {"self_attn.q_proj.weight", Q, C, ALWAYS},
    {"self_attn.q_proj.bias", Q, NONE, QKV_BIAS},
    {"self_attn.k_proj.weight", K, C, ALWAYS},
    {"self_attn.k_proj.bias", K, NONE, QKV_BIAS},
    {"self_attn.v_proj.weight", K, C, ALWAYS},
    {"self_attn.v_proj.bias", K, NONE, QKV_BIAS},
    {"self_attn.q_norm.weight", D, NONE, QK_NORM},
    {"self_attn.k_norm.weight", D, NONE, QK_NORM},
    {"self_attn.o_proj.weight", C, Q, ALWAYS},
    {"self_attn.o_proj.bias", C, NONE, OUTPUT_BIAS},
    {"post_attention_layernorm.weight", C, NONE, ALWAYS},
    {"mlp.gate_proj.weight", F, C, ALWAYS},
    {"mlp.up_proj.weight", F, C, ALWAYS},
    {"mlp.down_proj.weight", C, F, ALWAYS},
};

/* Appends a tensor to the group that is being filled, at the next multiple of align. */
static struct tensor *add(struct tensors *tensors, uint32_t group, uint64_t align, uint32_t rows,
                          uint32_t columns)
{
    struct tensor_group *owner = &tensors->groups[group];
    if (owner->tensor_count == 0)
        owner->first_tensor = tensors->count;
    struct tensor *tensor = &tensors->list[tensors->count++];
    owner->tensor_count++;
    tensor->group = group;
    tensor->dim_count = columns > 0 ? 2 : 1;
    tensor->shape[0] = rows;
    tensor->shape[1] = columns;
    tensor->count = columns > 0 ? mul_checked(rows, columns) : rows;
    tensor->decay = columns > 0;
    tensor->init_std = columns > 0 ? INIT_STD : 0.0f;
    tensor->offset = round_up(owner->parameter_count, align);
    owner->parameter_count = add_checked(tensor->offset, tensor->count);
    tensors->parameter_count += tensor->count;
    return tensor;
}

/* The weight of a norm over the channels. */
static struct tensor *add_norm(struct tensors *tensors, uint32_t group, uint32_t channels)
{
    struct tensor *weight = add(tensors, group, TENSORS_ALIGN, channels, 0);
    weight->init_value = 1.0f;
    return weight;
}

/* -- GPT-2 -- */

static void add_gpt2_embedding(struct tensors *tensors, const struct config *config)
{
    struct tensor *wte = add(tensors, 0, TENSORS_ALIGN, config->vocab, config->channels);
    snprintf(wte->name, sizeof(wte->name), "transformer.wte.weight");
    struct tensor *wpe = add(tensors, 0, POSITION_ALIGN, config->positions, config->channels);
    snprintf(wpe->name, sizeof(wpe->name), "transformer.wpe.weight");
    wpe->init_std = INIT_STD_POSITION;
}

static void add_gpt2_block(struct tensors *tensors, const struct config *config, uint32_t layer)
{
    for (uint32_t i = 0; i < BLOCK_TENSOR_COUNT; i++) {
        struct tensor *tensor =
            add(tensors, layer + 1, TENSORS_ALIGN, block_tensors[i].rows * config->channels,
                block_tensors[i].columns * config->channels);
        snprintf(tensor->name, sizeof(tensor->name), "transformer.h.%u.%s", layer,
                 block_tensors[i].name);
        if (i == BLOCK_LN1_WEIGHT || i == BLOCK_LN2_WEIGHT)
            tensor->init_value = 1.0f;
        if (i == BLOCK_PROJ_WEIGHT || i == BLOCK_OUT_WEIGHT)
            tensor->init_std = INIT_STD / sqrtf(2.0f * (float)config->layers);
    }
}

static void add_gpt2_final(struct tensors *tensors, const struct config *config)
{
    uint32_t group = config->layers + 1;
    struct tensor *weight = add_norm(tensors, group, config->channels);
    snprintf(weight->name, sizeof(weight->name), "transformer.ln_f.weight");
    struct tensor *bias = add(tensors, group, TENSORS_ALIGN, config->channels, 0);
    snprintf(bias->name, sizeof(bias->name), "transformer.ln_f.bias");
}

/* -- Llama, Qwen2, Qwen3 -- */

static void add_rotary_embedding(struct tensors *tensors, const struct config *config)
{
    struct tensor *wte = add(tensors, 0, TENSORS_ALIGN, config->vocab, config->channels);
    snprintf(wte->name, sizeof(wte->name), "model.embed_tokens.weight");
}

static void add_rotary_block(struct tensors *tensors, const struct config *config, uint32_t layer)
{
    const uint32_t size[DIMENSION_COUNT] = {
        [C] = config->channels,
        [Q] = config_query_width(config),
        [K] = config_key_width(config),
        [D] = config->head_dim,
        [F] = config->ffn,
    };
    const bool present[PRESENCE_COUNT] = {
        [ALWAYS] = true,
        [QKV_BIAS] = config_has_qkv_bias(config),
        [QK_NORM] = config_has_qk_norm(config),
        [OUTPUT_BIAS] = config_has_output_bias(config),
    };
    for (size_t i = 0; i < ARRAY_COUNT(rotary_tensors); i++) {
        const struct rotary_tensor *from = &rotary_tensors[i];
        if (!present[from->presence])
            continue;
        struct tensor *tensor =
            add(tensors, layer + 1, TENSORS_ALIGN, size[from->rows], size[from->columns]);
        snprintf(tensor->name, sizeof(tensor->name), "model.layers.%u.%s", layer, from->name);
        /* All other vectors are biases. */
        if (strstr(from->name, "norm"))
            tensor->init_value = 1.0f;
    }
}

static void add_rotary_final(struct tensors *tensors, const struct config *config)
{
    struct tensor *weight = add_norm(tensors, config->layers + 1, config->channels);
    snprintf(weight->name, sizeof(weight->name), "model.norm.weight");
    if (!config_has_head(config))
        return;
    struct tensor *head =
        add(tensors, config->layers + 2, TENSORS_ALIGN, config->vocab, config->channels);
    snprintf(head->name, sizeof(head->name), "lm_head.weight");
}

/* -- All kinds -- */

/* How a kind's tensors are added; tensor_max bounds how many a block has. */
struct builder {
    void (*embedding)(struct tensors *tensors, const struct config *config);
    void (*block)(struct tensors *tensors, const struct config *config, uint32_t layer);
    void (*final)(struct tensors *tensors, const struct config *config);
    uint32_t tensor_max;
};

static const struct builder *builder_of(const struct config *config)
{
    static const struct builder gpt2 = {add_gpt2_embedding, add_gpt2_block, add_gpt2_final,
                                        BLOCK_TENSOR_COUNT};
    static const struct builder rotary = {add_rotary_embedding, add_rotary_block, add_rotary_final,
                                          ARRAY_COUNT(rotary_tensors)};
    return config->kind == CONFIG_GPT2 ? &gpt2 : &rotary;
}

void tensors_init(struct tensors *tensors, const struct config *config)
{
    ASSERT(config->vocab > 0 && config->channels > 0);
    const struct builder *builder = builder_of(config);
    uint32_t tensor_max = 2 * EDGE_TENSOR_MAX + config->layers * builder->tensor_max;
    *tensors = (struct tensors){.group_count = config->layers + 2 + config_has_head(config)};
    tensors->list = mem_alloc(tensor_max, sizeof(*tensors->list));
    tensors->groups = mem_alloc(tensors->group_count, sizeof(*tensors->groups));
    builder->embedding(tensors, config);
    for (uint32_t layer = 0; layer < config->layers; layer++)
        builder->block(tensors, config, layer);
    builder->final(tensors, config);
    ASSERT(tensors->count <= tensor_max);
    ASSERT(tensors->parameter_count == config_parameter_count(config));
}

void tensors_deinit(struct tensors *tensors)
{
    mem_free(tensors->list);
    mem_free(tensors->groups);
    *tensors = (struct tensors){0};
}

float tensors_initial_value(const struct tensors *tensors, uint32_t tensor, uint64_t index,
                            uint64_t seed)
{
    ASSERT(tensor < tensors->count);
    const struct tensor *t = &tensors->list[tensor];
    ASSERT(index < t->count);
    if (t->init_std == 0.0f)
        return t->init_value;
    return (float)(rng_normal(seed, RNG_STREAM_INIT + (uint64_t)tensor, index) *
                   (double)t->init_std);
}
