/*
 * tensors: every parameter of a model in canonical order, with name, shape and role, gathered in
 * groups that travel together.
 *
 * Groups: 0 = embedding (wte [V, C]; GPT-2 also has wpe [positions, C]); 1..layers = the blocks;
 * layers + 1 = the final norm; and, only where config_has_head, layers + 2 = the head [V, C]. A
 * group is one flat vector of FP32 parameters: its tensors back to back in canonical order, each
 * starting at a multiple of the group's tensor alignment (padding holds zeros and is never
 * trained).
 *
 * GPT-2: matrices are stored [in, out], as its Conv1D does: y = x W + b. A block's tensors in
 * order: ln_1 weight, bias; attn.c_attn weight [C, 3C], bias; attn.c_proj weight [C, C], bias; ln_2
 * weight, bias; mlp.c_fc weight [C, 4C], bias; mlp.c_proj weight [4C, C], bias. Names are Hugging
 * Face's GPT2LMHeadModel's ("transformer.h.0.attn.c_attn.weight").
 *
 * Llama, Qwen2, Qwen3: matrices are stored [out, in], as torch's Linear does: y = x W^T. With Q and
 * K of config.h, D = head_dim and F = ffn, a block's tensors in order: input_layernorm [C];
 * self_attn.q_proj [Q, C], k_proj [K, C], v_proj [K, C], each followed by its bias where
 * config_has_qkv_bias; q_norm [D], k_norm [D] where config_has_qk_norm; o_proj [C, Q], followed by
 * its bias where config_has_output_bias; post_attention_layernorm [C]; mlp.gate_proj [F, C],
 * up_proj [F, C], down_proj [C, F]. Names are LlamaForCausalLM's
 * ("model.layers.0.self_attn.q_proj.weight").
 */
#ifndef SPILLWAY_MODEL_TENSORS_H
#define SPILLWAY_MODEL_TENSORS_H

#include "model/config.h"
#include <stdbool.h>
#include <stdint.h>

#define TENSORS_NAME_MAX 128
#define TENSORS_ALIGN    64 /* parameters: where a tensor may start in its group's vector */

/* Offsets into a block's tensor list, for kernels; of GPT-2 alone. */
enum block_tensor {
    BLOCK_LN1_WEIGHT,
    BLOCK_LN1_BIAS,
    BLOCK_QKV_WEIGHT,
    BLOCK_QKV_BIAS,
    BLOCK_PROJ_WEIGHT,
    BLOCK_PROJ_BIAS,
    BLOCK_LN2_WEIGHT,
    BLOCK_LN2_BIAS,
    BLOCK_FC_WEIGHT,
    BLOCK_FC_BIAS,
    BLOCK_OUT_WEIGHT,
    BLOCK_OUT_BIAS,
    BLOCK_TENSOR_COUNT
};

struct tensor {
    char name[TENSORS_NAME_MAX];
    uint32_t group;
    uint32_t dim_count; /* 1 or 2 */
    uint32_t shape[2];  /* [rows, columns], or [count] */
    uint64_t offset;    /* of its first parameter in the group's vector */
    uint64_t count;     /* parameters */
    bool decay;         /* weight decay applies: matrices (embeddings included), not vectors */
    float init_std;     /* N(0, init_std); 0: constant init_value */
    float init_value;   /* norms' weights 1, biases 0 */
};

struct tensor_group {
    uint32_t first_tensor, tensor_count;
    uint64_t parameter_count; /* of the flat vector, padding between tensors included */
};

struct tensors {
    struct tensor *list; /* owned; canonical order */
    uint32_t count;
    struct tensor_group *groups; /* owned; layers + 2 of them, + 3 with a head */
    uint32_t group_count;
    uint64_t parameter_count; /* real parameters, no padding */
};

/* GPT-2: wte gets N(0, 0.02), wpe N(0, 0.01 as in GPT-2's code), matrices N(0, 0.02), the two
 * projections into the residual stream N(0, 0.02 / sqrt(2 layers)) (Radford et al. 2019, section
 * 2.3). wpe starts at a multiple of 2048 parameters so that it is cut into chunks of its own.
 * Other kinds: all matrices N(0, 0.02), Hugging Face's initializer_range. */
void tensors_init(struct tensors *tensors, const struct config *config);
void tensors_deinit(struct tensors *tensors);

/* The tensor's value at initialisation for parameter index i of it, from (seed, tensor index, i).
 */
float tensors_initial_value(const struct tensors *tensors, uint32_t tensor, uint64_t index,
                            uint64_t seed);

#endif
