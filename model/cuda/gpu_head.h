/*
 * gpu_head: softmax, cross-entropy and their gradient over one tile of the vocabulary at a time, on
 * a GPU: in forward the running maximum and sum of exponentials of every row (online softmax,
 * Milakov and Gimelshein 2018), in backward the gradient, in one pass with the probabilities. The
 * logits of a tile are kept in between, or computed twice by the same product.
 *
 * Pointers are to device memory; functions enqueue on stream and return what the launch returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_HEAD_H
#define SPILLWAY_MODEL_CUDA_GPU_HEAD_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A piece of logits: row i of it is row i of the pointers beside it. */
struct gpu_head_logits {
    const float *logits; /* [rows, stride], of which columns are there; aligned to 16 bytes */
    uint32_t rows, columns, stride; /* stride: a multiple of 4 */
    const uint32_t *targets;        /* [rows] */
    uint32_t column_first;          /* the vocabulary's number of column 0 */
};

struct gpu_head_forward {
    struct gpu_head_logits logits;
    float *maximum, *sum, *target; /* [rows], running */
    bool first;                    /* they are initialised: this is the first tile */
};
cudaError_t gpu_head_forward(const struct gpu_head_forward *args, cudaStream_t stream);

/* maximum becomes log sum exp; losses = that less the target's logit. */
struct gpu_head_loss {
    uint32_t rows;
    float *maximum;
    const float *sum, *target;
    float *losses;
};
cudaError_t gpu_head_loss(const struct gpu_head_loss *args, cudaStream_t stream);

/* dlogits = (exp(logit - log_sum) - [column is the target]) loss_scale. */
struct gpu_head_backward {
    struct gpu_head_logits logits;
    const float *log_sum; /* [rows] */
    float loss_scale;
    bool bf16;     /* E is bf16, else float */
    void *dlogits; /* E [rows, stride]; in fp32 it may be logits */
};
cudaError_t gpu_head_backward(const struct gpu_head_backward *args, cudaStream_t stream);

/* logits[i] = y . tile[i], for sampling. */
struct gpu_head_single {
    bool bf16; /* E is bf16, else float */
    uint32_t rows, channels;
    const void *tile; /* E [rows, channels] */
    const void *y;    /* E [channels] */
    float *logits;    /* [rows] */
};
cudaError_t gpu_head_single(const struct gpu_head_single *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
