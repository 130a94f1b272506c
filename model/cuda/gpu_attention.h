/*
 * gpu_attention: causal attention on a GPU, forward and backward, without a T x T matrix in memory:
 * FlashAttention-2 (Dao 2023), algorithms 1 and 2, backward in two kernels (one for the gradients
 * of keys and values, one for that of queries) so that nothing is added by atomics.
 *
 * bf16 runs on tensor cores (mma, ldmatrix, cp.async; sm_80 and later); probabilities and their
 * gradients are rounded to bf16 as factors of the second products, as on the CPU; sums are float.
 * fp32 runs on the ordinary units, for reference.
 *
 * Rows r = b * seq + t. Head h of a query attends to head h / (heads / kv_heads) of keys and values
 * (grouped queries, Ainslie et al. 2023). Scores are scaled by 1 / sqrt(depth). Strides are in
 * elements from row to row, so q, k and v may lie in one array. depth is 1 to GPU_ATTENTION_DEPTH;
 * where it and all strides are multiples of 8 and pointers of 16 bytes, bf16 is loaded 16 bytes at
 * a time. Pointers are to device memory; functions enqueue on stream and return what the launch
 * returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_ATTENTION_H
#define SPILLWAY_MODEL_CUDA_GPU_ATTENTION_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GPU_ATTENTION_DEPTH 128u
/* batch and heads at most: blocks of a grid in one direction. Above, cudaErrorInvalidValue. */
#define GPU_ATTENTION_GRID 65535u

struct gpu_attention_shape {
    bool bf16; /* E is bf16, else float */
    uint32_t batch, seq, heads, kv_heads, depth;
};

/* One of q, k, v, the output and their gradients: E [batch * seq, stride], heads from the pointer
 * on. */
struct gpu_attention_array {
    void *at;
    uint32_t stride;
};

struct gpu_attention_forward {
    struct gpu_attention_shape shape;
    struct gpu_attention_array q, k, v;
    struct gpu_attention_array out; /* written */
    float *log_sum;                 /* [batch, heads, seq]: log sum exp of the scaled scores */
};
cudaError_t gpu_attention_forward(const struct gpu_attention_forward *args, cudaStream_t stream);

struct gpu_attention_backward {
    struct gpu_attention_shape shape;
    struct gpu_attention_array q, k, v, out, dout;
    const float *log_sum;
    float *delta;                          /* [batch, heads, seq]; working memory */
    struct gpu_attention_array dq, dk, dv; /* written */
};
cudaError_t gpu_attention_backward(const struct gpu_attention_backward *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
