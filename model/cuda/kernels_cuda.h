/*
 * kernels_cuda: the mathematics of GPT-2 on one CUDA device: the operations of model/kernels.h with
 * the same arguments and the same meaning, but every pointer is to device memory, and what runs is
 * enqueued on one stream. This is the CUDA part's only face towards offload.
 *
 * What is kept and stored is as on the CPU: the residual stream, statistics, losses and gradient
 * accumulators are float, inner has the same arrays, a gradient is rounded once. The bits are not
 * the CPU's, as sums go in another order; they depend on struct kernels_shape, the GPU's model and
 * the version of cuBLASLt alone. In bf16 the gradient of gelu's output is rounded once more than on
 * the CPU, between two kernels.
 *
 * Refuses heads of more than 128 channels and more than 65,535 sequences. Every function that
 * enqueues returns 0, or a negative code with the call that failed and CUDA's name for it; after
 * that all others return the same until closing. No function waits for the device.
 *
 * Rows of logits (HEAD_ROWS of them at a time) and products need working memory of their own, so
 * scratch is larger than on the CPU: kernels_cuda_sizes.
 */
#ifndef SPILLWAY_MODEL_CUDA_KERNELS_CUDA_H
#define SPILLWAY_MODEL_CUDA_KERNELS_CUDA_H

#include "model/cuda/gpu_adamw.h"
#include "model/cuda/gpu_join.h"
#include "model/kernels.h"
#include <cuda_runtime_api.h>

struct kernels_cuda;

/* Pure. As kernels_sizes. */
void kernels_cuda_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes);
/* Device memory that an instance needs beside scratch, from opening to closing. */
uint64_t kernels_cuda_workspace_bytes(void);

/* workspace: kernels_cuda_workspace_bytes of device memory, aligned to 256; borrowed, as stream is.
 * tensors is read here only. */
struct kernels_cuda_open {
    struct kernels_shape shape;
    const struct tensors *tensors;
    cudaStream_t stream;
    void *workspace;
};
int kernels_cuda_open(struct kernels_cuda **kernels, const struct kernels_cuda_open *args,
                      struct err *err);
void kernels_cuda_close(struct kernels_cuda *kernels); /* NULL is legal */

int kernels_cuda_block_forward(struct kernels_cuda *k, const struct kernels_block_forward *args,
                               struct err *err);
int kernels_cuda_block_backward(struct kernels_cuda *k, const struct kernels_block_backward *args,
                                struct err *err);
int kernels_cuda_embed_forward(struct kernels_cuda *k, const struct kernels_embed_forward *args,
                               struct err *err);
int kernels_cuda_position_forward(struct kernels_cuda *k,
                                  const struct kernels_position_forward *args, struct err *err);
int kernels_cuda_embed_backward(struct kernels_cuda *k, const struct kernels_embed_backward *args,
                                struct err *err);
int kernels_cuda_position_backward(struct kernels_cuda *k,
                                   const struct kernels_position_backward *args, struct err *err);
int kernels_cuda_norm_forward(struct kernels_cuda *k, const struct kernels_norm_forward *args,
                              struct err *err);
int kernels_cuda_norm_backward(struct kernels_cuda *k, const struct kernels_norm_backward *args,
                               struct err *err);
int kernels_cuda_head_forward(struct kernels_cuda *k, const struct kernels_head_forward *args,
                              struct err *err);
int kernels_cuda_head_loss(struct kernels_cuda *k, const struct kernels_head_loss *args,
                           struct err *err);
int kernels_cuda_head_backward(struct kernels_cuda *k, const struct kernels_head_backward *args,
                               struct err *err);
int kernels_cuda_head_once(struct kernels_cuda *k, const struct kernels_head_once *args,
                           struct err *err);
int kernels_cuda_logits(struct kernels_cuda *k, const struct kernels_logits *args, struct err *err);

/* kernels_gradient_store; stored may be the same memory as gradient. Behind the `count` parameters
 * zeros are stored, and zeros are the sums of squares behind those of parameters. */
struct kernels_cuda_store {
    const float *gradient;
    void *stored;
    uint64_t count, padded_count;
    double *square_sums;
    uint64_t square_count;
};
/* What the two that take lists take at once. */
#define KERNELS_CUDA_LIST 16u
int kernels_cuda_gradient_store(struct kernels_cuda *k, const struct kernels_cuda_store *list,
                                uint32_t count, struct err *err);

/* AdamW on state in device memory, on a stream that may be another than the instance's; bits as on
 * the CPU. */
int kernels_cuda_adamw(struct kernels_cuda *k, cudaStream_t stream, const struct gpu_adamw *args,
                       struct err *err);
int kernels_cuda_join(struct kernels_cuda *k, cudaStream_t stream, const struct gpu_join *list,
                      uint32_t count, struct err *err);

#endif
