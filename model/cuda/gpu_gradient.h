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

/* Of these the squares are summed first, in order, at the beginning of the working memory. */
#define GPU_GRADIENT_PART 2048u

/* Pointers are aligned to 16 bytes. */
struct gpu_gradient_store {
    bool bf16;             /* E is bf16, else float */
    uint64_t count;        /* parameters */
    uint64_t padded_count; /* what is stored: behind the parameters zeros */
    const float *gradient; /* [count] */
    void *stored;          /* E [padded_count]; the same memory as gradient, or none of it */
    double *square_sums;   /* [square_count]: one per GPU_GRADIENT_BLOCK, in order; then zeros */
    uint64_t square_count;
    void *workspace; /* gpu_gradient_workspace_bytes, aligned to 256 */
};
uint64_t gpu_gradient_workspace_bytes(uint64_t padded_count);

/* Up to GPU_GRADIENT_LIST at once, all of one E, with working memory each. */
#define GPU_GRADIENT_LIST 16u
cudaError_t gpu_gradient_store(const struct gpu_gradient_store *list, uint32_t count,
                               cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
