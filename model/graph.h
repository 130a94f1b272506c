/*
 * graph: what the ops of a step cost, in FLOPs and in bytes of working memory.
 *
 * Owns no state and allocates nothing: everything follows from the config and the shape of a
 * micro-batch. Who calls it: the planner (offload/place, offload/plan), to whom it is the one place
 * that knows how kinds of model differ in cost.
 *
 * What counts as a FLOP: multiplications and additions of matrix products and of attention. Norms,
 * activations, rotations, biases and the softmax are left out: they are passes over data that the
 * products' time hides. Backward costs twice forward, of products (the input's gradient and the
 * weight's) as of attention, and is not given apart: what attention computes again in backward is
 * counted no more than other recomputation.
 *
 * R = B T rows per micro-batch; C, Q, K, V as in model/config.h, F = ffn, H = heads. The config has
 * passed config_check and R is at most KERNELS_ROWS_MAX: then no cost of one op, doubled for
 * backward or not, overflows 64 bits.
 */
#ifndef SPILLWAY_MODEL_GRAPH_H
#define SPILLWAY_MODEL_GRAPH_H

#include "model/config.h"
#include <stdint.h>

/* A micro-batch, and how the head is cut. */
struct graph_shape {
    enum precision precision;
    uint32_t batch;         /* B */
    uint32_t seq;           /* T */
    uint32_t tile_rows_max; /* most rows of wte (or lm_head) in one head tile */
};

/* Products of one block's forward over so many rows: 2 R (C (2Q + 2K) + 3 C F), GPT-2 24 R C^2. */
uint64_t graph_block_flops(const struct config *config, uint64_t rows);
/* Attention of one block's forward, causal and so half of the square, in sequences of seq rows:
 * 2 R Q T, GPT-2 2 R C T. Keys shared between heads save bytes, not FLOPs. */
uint64_t graph_attention_flops(const struct config *config, uint64_t rows, uint32_t seq);
/* The part of graph_block_flops that recomputation leaves out, as it wants inner alone: the MLP's
 * last product, 2 R F C, GPT-2 8 R C^2. */
uint64_t graph_last_product_flops(const struct config *config, uint64_t rows);
/* One product of the head with so many rows of the vocabulary: 2 R C vocab_rows. Forward has one
 * of them, backward three: the logits again, dy and the weight's gradient. Where both are one op,
 * it has three. */
uint64_t graph_head_flops(const struct config *config, uint64_t rows, uint32_t vocab_rows);

/* What block_forward keeps for block_backward of one block and micro-batch (kernels.h: inner).
 * GPT-2: what kernels_sizes gives. Other kinds, per row, with E = 4 bytes in fp32 and 2 in bf16:
 *   E (Q + 2K)  q, k, v (before their norm and rotation where config_has_qk_norm, after the
 *               rotation elsewhere: it is linear, so its backward needs no more)
 *   E Q         the attention's output
 *   E 2F        gate and up before the activation
 *   4 C         the residual stream between attention and MLP
 *   4 H         log-sum-exp of each head
 *   8           reciprocal root mean squares of the two norms
 *   4 (H + H')  those of every head of q and k (H' = kv_heads), where config_has_qk_norm
 * The norms' outputs and silu(gate) up are made again in backward, as in GPT-2. Arrays start at
 * multiples of 64 bytes; the sum is rounded up to IO_ALIGN. */
uint64_t graph_inner_bytes(const struct config *config, const struct graph_shape *shape);
/* Working memory for any one kernel (kernels.h: scratch). GPT-2: what kernels_sizes gives. Other
 * kinds: the larger of the head's and of a block's, per row:
 *   E C         a norm's output
 *   E C         bf16: dx as a factor
 *   4 C         the gradient of a norm's output
 *   C / 16      partial sums of a norm's gradient: a float per channel for each 64 rows
 *   4 H         attention's delta
 *   E max(3F, 2Q + 2K)  the MLP's silu(gate) up, dgate and dup; or the gradients of the attention's
 *               output, of q, k and v. They are never alive together.
 * Rounded up to IO_ALIGN. The head is the same in all kinds, on the same tiles. */
uint64_t graph_scratch_bytes(const struct config *config, const struct graph_shape *shape);
/* Working memory of the head at once (kernels.h: head_once_bytes), in all kinds what kernels_sizes
 * gives. */
uint64_t graph_head_once_bytes(const struct config *config, const struct graph_shape *shape);

#endif
