/*
 * gpu_sums: sums over rows on a GPU, for the gradients of biases and of norms' weights. Runs of
 * GPU_SUMS_RUN rows are summed first and then added in order, so that the bits depend on the shape
 * alone. Pointers are to device memory; functions enqueue on stream and return what the launch
 * returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_SUMS_H
#define SPILLWAY_MODEL_CUDA_GPU_SUMS_H

#include <stdbool.h>
#include <stdint.h>
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GPU_SUMS_RUN 64u

/* sums[c] (+)= sum over rows r of x[r, c]. */
struct gpu_sums {
    bool bf16;     /* of x */
    const void *x; /* E [rows, columns] */
    uint32_t rows, columns;
    float *sums;     /* [columns] */
    bool accumulate; /* false: overwritten */
    float *partial;  /* working memory: [rows / GPU_SUMS_RUN, columns] */
};
uint64_t gpu_sums_partial_bytes(uint32_t rows, uint32_t columns);
cudaError_t gpu_sums(const struct gpu_sums *args, cudaStream_t stream);

/* The second half alone: sums[c] (+)= sum over runs i of partial[i * stride + c]. */
struct gpu_sums_runs {
    const float *partial;
    uint32_t runs, stride, columns;
    float *sums;
    bool accumulate;
};
cudaError_t gpu_sums_runs(const struct gpu_sums_runs *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
