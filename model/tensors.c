#include "model/tensors.h"
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define INIT_STD          0.02f
#define INIT_STD_POSITION 0.01f

/* Where wpe starts in its group: chunks of state hold a multiple of this many parameters. */
#define POSITION_ALIGN 2048

#define EMBED_TENSOR_COUNT 2
#define FINAL_TENSOR_COUNT 2

/* A block's tensors as multiples of C: columns 0 makes a vector of `rows` x C. */
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

static void add_embedding(struct tensors *tensors, const struct config *config)
{
    struct tensor *wte = add(tensors, 0, TENSORS_ALIGN, config->vocab, config->channels);
    snprintf(wte->name, sizeof(wte->name), "transformer.wte.weight");
    struct tensor *wpe = add(tensors, 0, POSITION_ALIGN, config->positions, config->channels);
    snprintf(wpe->name, sizeof(wpe->name), "transformer.wpe.weight");
    wpe->init_std = INIT_STD_POSITION;
}

static void add_block(struct tensors *tensors, const struct config *config, uint32_t layer)
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

static void add_final(struct tensors *tensors, const struct config *config)
{
    uint32_t group = config->layers + 1;
    struct tensor *weight = add(tensors, group, TENSORS_ALIGN, config->channels, 0);
    snprintf(weight->name, sizeof(weight->name), "transformer.ln_f.weight");
    weight->init_value = 1.0f;
    struct tensor *bias = add(tensors, group, TENSORS_ALIGN, config->channels, 0);
    snprintf(bias->name, sizeof(bias->name), "transformer.ln_f.bias");
}

void tensors_init(struct tensors *tensors, const struct config *config)
{
    ASSERT(config->vocab > 0 && config->channels > 0);
    uint32_t tensor_count =
        EMBED_TENSOR_COUNT + config->layers * BLOCK_TENSOR_COUNT + FINAL_TENSOR_COUNT;
    *tensors = (struct tensors){.group_count = config->layers + 2};
    tensors->list = mem_alloc(tensor_count, sizeof(*tensors->list));
    tensors->groups = mem_alloc(tensors->group_count, sizeof(*tensors->groups));
    add_embedding(tensors, config);
    for (uint32_t layer = 0; layer < config->layers; layer++)
        add_block(tensors, config, layer);
    add_final(tensors, config);
    ASSERT(tensors->count == tensor_count);
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
