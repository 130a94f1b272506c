/*
 * kernels: the mathematics of GPT-2 on one device, as a table of functions over memory that the
 * caller owns. model/cpu implements it; model/cuda/kernels_cuda.h has the same operations on a GPU.
 * Who calls it: offload/exec.c and the evaluation in offload/infer.c.
 *
 * E below is the compute element: float in fp32, bf16 in bf16. The residual stream, statistics,
 * losses and gradient accumulators are float in both. R = B * T rows (tokens) per micro-batch; row
 * r = b * T + t. All arrays are row-major and dense and at least 64-byte aligned. Products
 * accumulate in float. Shapes of tiles, and so the bits of every result, follow from struct
 * kernels_shape alone: never from the thread count, the addresses or what ran before.
 *
 * GPT-2 (Radford et al. 2019): x = wte[token] + wpe[t]; for each block: x += proj(attention(
 * ln_1(x))); x += out(gelu(fc(ln_2(x)))); logits = ln_f(x) wte^T. gelu is the tanh form (Hendrycks
 * and Gimpel 2016). Attention is causal, scaled by 1/sqrt(C/H); qkv rows hold q[C], k[C], v[C],
 * heads contiguous inside each. Loss: cross-entropy, summed over rows; loss_scale multiplies the
 * gradient (1 / tokens of the step).
 */
#ifndef SPILLWAY_MODEL_KERNELS_H
#define SPILLWAY_MODEL_KERNELS_H

#include "core/err.h"
#include "core/pool.h"
#include "model/config.h"
#include "model/tensors.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* R at most: far above what pays, far below what overflows. */
#define KERNELS_ROWS_MAX ((uint64_t)1 << 22)

struct kernels_shape {
    enum precision precision;
    uint32_t batch;         /* B */
    uint32_t seq;           /* T, <= positions */
    uint32_t channels;      /* C */
    uint32_t heads;         /* H */
    uint32_t vocab;         /* V */
    uint32_t tile_rows_max; /* most rows of wte in one head tile */
    float norm_epsilon;
};

/* inner: everything a block computes for one micro-batch that its backward pass needs; written by
 * block_forward, read and used up by block_backward. One piece of memory of inner_bytes.
 * scratch: working memory without meaning between calls: scratch_bytes, for any one call but
 * kernels_head_once. */

struct kernels; /* one device's instance: shape, primitives, thread team; opaque */

struct kernels_block_forward {
    const void *weights; /* E, the group's vector: tensor t at weights + offset(t) */
    const float *x_in;   /* [R, C] */
    float *x_out;        /* [R, C]; NULL when only inner is wanted (recomputation): the last product
                          * is then skipped. May not alias x_in. */
    void *inner;         /* inner_bytes, written */
    void *scratch;
};

struct kernels_block_backward {
    const void *weights;
    const float *x_in; /* [R, C] */
    void *inner;       /* used up: what it holds afterwards has no meaning */
    float *dx;         /* [R, C]; in: gradient of x_out; out: gradient of x_in */
    float *gradient;   /* the group's vector, float; */
    bool accumulate;   /* false: overwritten (first micro-batch); padding is written as zero */
    void *scratch;
};

/* Embedding rows [row_first, row_first + row_count) of wte: x[r] = wte[token[r]] for the tokens in
 * that range; other rows of x are left alone. */
struct kernels_embed_forward {
    const void *tile; /* E [row_count, C] */
    uint32_t row_first, row_count;
    const uint32_t *tokens; /* [R] */
    float *x;               /* [R, C] */
};

/* x[b, t] += wpe[t]. */
struct kernels_position_forward {
    const void *wpe; /* E [positions, C] */
    float *x;
};

/* gradient[row] += sum of dx[r] over rows r whose token is row, in order of r. */
struct kernels_embed_backward {
    uint32_t row_first, row_count;
    const uint32_t *tokens;
    const float *dx;
    float *gradient; /* float [row_count, C], accumulated into */
};

/* gradient[t] (+)= sum over b of dx[b, t]; rows >= T are zeroed when accumulate is false. */
struct kernels_position_backward {
    const float *dx;
    float *gradient; /* float [positions, C] */
    uint32_t positions;
    bool accumulate;
};

/* ln_f: y = LayerNorm(x) as E; statistics kept for backward. */
struct kernels_norm_forward {
    const void *weights; /* E, the final group's vector: weight [C], bias [C] */
    const float *x;      /* [R, C] */
    void *y;             /* E [R, C] */
    float *statistics;   /* [2, R]: mean, reciprocal standard deviation */
};
struct kernels_norm_backward {
    const void *weights;
    const float *x;
    const float *statistics;
    const float *dy; /* [R, C] */
    float *dx;       /* [R, C], written; may alias dy */
    float *gradient; /* the final group's vector */
    bool accumulate;
    void *scratch;
};

/* The head's tiles: [i * tile_rows_max, ...) of tile_rows_max rows, the last one what is left of V.
 * Other cuts are a bug: the products of these two sizes are made at opening. */

/* One vocabulary tile of the head, first pass: the running maximum and sum of exponentials of every
 * row (online softmax, Milakov and Gimelshein 2018) and the logit of its target. */
struct kernels_head_forward {
    const void *tile; /* E [row_count, C] rows of wte */
    uint32_t row_first, row_count;
    const void *y;           /* E [R, C] */
    const uint32_t *targets; /* [R] */
    float *running;          /* [3, R]: maximum, sum, target's logit */
    bool first;              /* row_first is the first tile: running is initialised */
    void *scratch;
};

/* After the last tile: losses[r] = log sum exp - target's logit; running[0] becomes log sum exp. */
struct kernels_head_loss {
    float *running;
    float *losses; /* [R] */
};

/* Second pass over the same tiles: logits again (the same bits), their gradient, dy and the tile's
 * gradient. */
struct kernels_head_backward {
    const void *tile;
    uint32_t row_first, row_count;
    const void *y;
    const uint32_t *targets;
    const float *running;
    float loss_scale;
    float *dy;       /* [R, C]; accumulated over tiles; zeroed first when first is set */
    bool first;      /* the first tile of this micro-batch */
    float *gradient; /* [row_count, C] */
    bool accumulate; /* false for the first micro-batch */
    void *scratch;
};

/* Both passes and the loss, of a micro-batch and all tiles: the bits of kernels_head_forward over
 * the tiles downwards, kernels_head_loss, and kernels_head_backward over them upwards, but every
 * product of logits is computed once. The logits of some rows at a time are kept in between: so
 * scratch is head_once_bytes here. */
struct kernels_head_once {
    const void *tiles;    /* E: tile i is at i * tile_stride elements */
    uint64_t tile_stride; /* at least tile_rows_max * C */
    const void *y;
    const uint32_t *targets;
    float *running; /* [3, R]: working memory */
    float *losses;  /* [R] */
    float loss_scale;
    float *dy;        /* [R, C], written */
    float *gradients; /* the gradient of tile i is at i * tile_stride */
    bool accumulate;  /* false for the first micro-batch */
    void *scratch;
};

/* Logits of single rows, for sampling: logits[i, v] = y[rows[i]] . wte[v]. */
struct kernels_logits {
    const void *tile;
    uint32_t row_count;
    const void *y_row; /* E [C] */
    float *logits;     /* [row_count] */
};

struct kernels_sizes {
    uint64_t inner_bytes;     /* of one block and micro-batch; a multiple of IO_ALIGN */
    uint64_t scratch_bytes;   /* of any one kernel but kernels_head_once; multiples of IO_ALIGN: */
    uint64_t head_bytes;      /* of it, what the head's kernels need */
    uint64_t head_once_bytes; /* the scratch of kernels_head_once */
};

/* Pure: no instance needed, so that a plan can be made in no time. */
void kernels_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes);

/* CPU device. pool is borrowed; threads of it run the kernels. Creates all primitives up front:
 * afterwards calls allocate nothing of ours (the library of matrix products does, inside
 * mem_library_enter and mem_library_leave). Beside what the caller gives as scratch, it costs about
 * what kernels_cpu_bytes says; all of that is touched here, also by a first run of every product of
 * the library's, which takes as long as a layer does. tensors is read here only. */
int kernels_cpu_open(struct kernels **kernels, const struct kernels_shape *shape,
                     const struct tensors *tensors, struct pool *pool, struct err *err);
void kernels_close(struct kernels *kernels); /* NULL is legal */
/* An estimate on the safe side, for heads of up to 256 channels: 8 MiB for all (the library's code,
 * data and primitives: 4 to 8, measured at gpt2-124m), and per worker 2.3 MiB (1.5 to 2.2), a panel
 * of the longest product, and where bf16 is computed in float, a tile's factors. */
uint64_t kernels_cpu_bytes(const struct kernels_shape *shape, uint32_t worker_count);

void kernels_block_forward(struct kernels *k, const struct kernels_block_forward *args);
void kernels_block_backward(struct kernels *k, const struct kernels_block_backward *args);
void kernels_embed_forward(struct kernels *k, const struct kernels_embed_forward *args);
void kernels_position_forward(struct kernels *k, const struct kernels_position_forward *args);
void kernels_embed_backward(struct kernels *k, const struct kernels_embed_backward *args);
void kernels_position_backward(struct kernels *k, const struct kernels_position_backward *args);
void kernels_norm_forward(struct kernels *k, const struct kernels_norm_forward *args);
void kernels_norm_backward(struct kernels *k, const struct kernels_norm_backward *args);
void kernels_head_forward(struct kernels *k, const struct kernels_head_forward *args);
void kernels_head_loss(struct kernels *k, const struct kernels_head_loss *args);
void kernels_head_backward(struct kernels *k, const struct kernels_head_backward *args);
void kernels_head_once(struct kernels *k, const struct kernels_head_once *args);
void kernels_logits(struct kernels *k, const struct kernels_logits *args);

/* A finished gradient to its stored form (E: bf16 to nearest even, or float), and the partial sums
 * of squares of the *stored* values: one double per block of KERNELS_NORM_BLOCK parameters
 * counted from gradient, in order. stored may be the same memory as gradient. */
#define KERNELS_NORM_BLOCK 65536
void kernels_gradient_store(struct kernels *k, const float *gradient, void *stored, uint64_t count,
                            double *square_sums);

/* What the machine can do: true when bf16 products run on matrix instructions. */
bool kernels_cpu_has_bf16(void);

#endif
