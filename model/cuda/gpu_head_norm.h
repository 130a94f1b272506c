/*
 * gpu_head_norm: RMSNorm (Zhang and Sennrich 2019) over every head of queries or keys, as Qwen3 has
 * it before the rotation: n = x deviation, deviation = 1 / sqrt(mean of squares + epsilon) over the
 * head's channels, y = n weight, one weight [depth] for all heads.
 *
 * Row r of x has its heads one after the other from r * stride on. E is the compute element; depth
 * and stride need be multiples of nothing. Pointers are to device memory; functions enqueue on
 * stream and return what the launch returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_HEAD_NORM_H
#define SPILLWAY_MODEL_CUDA_GPU_HEAD_NORM_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct gpu_head_norm_shape {
    bool bf16; /* E is bf16, else float */
    uint32_t rows, heads, depth;
    uint32_t stride; /* of x and y, and of their gradients; elements */
    float epsilon;
};

struct gpu_head_norm_forward {
    struct gpu_head_norm_shape shape;
    const void *x;      /* E [rows, stride] */
    const void *weight; /* E [depth] */
    float *deviation;   /* [rows, heads], written */
    void *y;            /* E [rows, stride]; may be x */
};
cudaError_t gpu_head_norm_forward(const struct gpu_head_norm_forward *args, cudaStream_t stream);

/* Rows whose part of the weight's gradient is summed first. */
#define GPU_HEAD_NORM_RUN 64u

struct gpu_head_norm_backward {
    struct gpu_head_norm_shape shape;
    const void *x;  /* E [rows, stride]: before the norm */
    const void *dy; /* E [rows, stride] */
    const void *weight;
    const float *deviation;
    void *dx;        /* E [rows, stride]; may be dy */
    float *dweight;  /* [depth] */
    bool accumulate; /* of dweight */
    float *partial;  /* working memory: gpu_head_norm_partial_bytes */
};
uint64_t gpu_head_norm_partial_bytes(uint32_t rows, uint32_t depth);
cudaError_t gpu_head_norm_backward(const struct gpu_head_norm_backward *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
