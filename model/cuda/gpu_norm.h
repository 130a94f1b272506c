/*
 * gpu_norm: LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019) on a GPU, forward with
 * the residual sum before it, and backward.
 *
 *   LayerNorm  n = (x - mean) deviation, mean and 1 / sqrt(variance + epsilon) of a row
 *   RMSNorm    n = x deviation, deviation = 1 / sqrt(mean of squares + epsilon)
 *   y = n weight + bias (RMSNorm has no bias)
 *
 * All pointers are to device memory, arrays dense and row-major, E the compute element. columns is
 * a multiple of 8, arrays are aligned to 16 bytes. Functions enqueue on stream and return at once,
 * with what the launch returned. Nothing depends on the GPU's size or on what ran before.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_NORM_H
#define SPILLWAY_MODEL_CUDA_GPU_NORM_H

#include <stdbool.h>
#include <stdint.h>
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

enum gpu_norm_kind { GPU_NORM_LAYER, GPU_NORM_RMS };

struct gpu_norm_forward {
    enum gpu_norm_kind kind;
    bool bf16; /* E is bf16, else float */
    uint32_t rows, columns;
    float epsilon;
    const float *x;       /* [rows, columns] */
    const float *add;     /* [rows, columns], or NULL: then x is normalised as it is */
    const void *add_bias; /* E [columns]; read where add is */
    float *sum;         /* [rows, columns]: x + add + add_bias, written where add is; may be add */
    const void *weight; /* E [columns] */
    const void *bias;   /* E [columns]; RMSNorm: NULL */
    float *mean;        /* [rows]; RMSNorm: NULL */
    float *deviation;   /* [rows] */
    bool again;         /* mean and deviation are read, not written: y has the same bits */
    void *y;            /* E [rows, columns] */
};
cudaError_t gpu_norm_forward(const struct gpu_norm_forward *args, cudaStream_t stream);

/* Rows whose part of the weight's gradient is summed first: [rows / GPU_NORM_RUN, 2, columns]. */
#define GPU_NORM_RUN 64u

struct gpu_norm_backward {
    enum gpu_norm_kind kind;
    bool bf16; /* E is bf16, else float */
    uint32_t rows, columns;
    const float *x;  /* what was normalised: sum, where there was one */
    const float *dy; /* [rows, columns] */
    const void *weight;
    const float *mean, *deviation;
    float *dx; /* [rows, columns]; may be dy unless accumulate_dx */
    bool accumulate_dx;
    float *dweight, *dbias; /* [columns]; RMSNorm: dbias NULL */
    bool accumulate;        /* of dweight and dbias */
    float *partial;         /* working memory, gpu_norm_partial_bytes */
};
uint64_t gpu_norm_partial_bytes(uint32_t rows, uint32_t columns);
cudaError_t gpu_norm_backward(const struct gpu_norm_backward *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
