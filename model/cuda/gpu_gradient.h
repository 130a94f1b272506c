/*
 * gpu_gradient: a finished gradient to its stored form, with the sums of squares of what is stored,
 * for the exact norm (model/kernels.h: kernels_gradient_store).
 *
 * Pointers are to device memory; functions enqueue on stream and return what the launch returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_GRADIENT_H
#define SPILLWAY_MODEL_CUDA_GPU_GRADIENT_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Parameters of one sum of squares; KERNELS_NORM_BLOCK. */
#define GPU_GRADIENT_BLOCK 65536u

struct gpu_gradient_store {
    bool bf16;             /* E is bf16, else float */
    uint64_t count;        /* parameters */
    const float *gradient; /* [count] */
    void *stored;          /* E [count]; the same memory as gradient, or none of it */
    double *square_sums;   /* one per GPU_GRADIENT_BLOCK parameters, in order */
};
cudaError_t gpu_gradient_store(const struct gpu_gradient_store *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
