/*
 * gpu_join: compute weights out of the masters' halves, on a GPU: in FP32 hi and lo joined
 * (core/float.h: float_join), in bf16 hi alone.
 *
 * Pointers are to device memory, aligned to 16 bytes; functions enqueue on stream and return what
 * the launch returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_JOIN_H
#define SPILLWAY_MODEL_CUDA_GPU_JOIN_H

#include <cuda_runtime_api.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct gpu_join {
    uint64_t count;     /* parameters */
    const uint16_t *hi; /* [count] */
    const int16_t *lo;  /* [count]; NULL: weights are bf16 */
    void *weights;      /* float or bf16 [count], none of their memory */
};

/* Up to GPU_JOIN_LIST at once. */
#define GPU_JOIN_LIST 16u
cudaError_t gpu_join(const struct gpu_join *list, uint32_t count, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
