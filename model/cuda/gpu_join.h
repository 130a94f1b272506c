/*
 * gpu_join: master weights in FP32 out of their halves hi and lo (core/float.h: float_join), on a
 * GPU.
 *
 * Pointers are to device memory; functions enqueue on stream and return what the launch returned.
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
    const int16_t *lo;  /* [count] */
    float *masters;     /* [count], none of their memory */
};
cudaError_t gpu_join(const struct gpu_join *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
