/*
 * gpu_adamw: AdamW on a GPU, with weights in hi and lo and moments in FP32, bf16 or 8 bits: the
 * same bits as model/optim.h and model/moments.h give on the CPU, so that an update may run on
 * either. It is compiled without contraction of products and sums, and uses only operations that
 * IEEE 754 rounds correctly.
 *
 * Pointers are to device memory; functions enqueue on stream and return what the launch returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_ADAMW_H
#define SPILLWAY_MODEL_CUDA_GPU_ADAMW_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The kinds of model/moments.h, in its order. */
enum gpu_adamw_moments { GPU_ADAMW_FP32, GPU_ADAMW_BF16, GPU_ADAMW_8BIT };

#define GPU_ADAMW_BLOCK 256u /* MOMENTS_BLOCK */

/* The scalars of a step: struct optim_step's. */
struct gpu_adamw_step {
    float lr, beta1, beta2, eps, weight_decay, clip_factor, correction1, correction2;
    uint32_t step;
    uint64_t seed;
};

/* Maps of 8-bit moments, as moments_init makes them, here in device memory. NULL where the moments
 * are not of 8 bits. */
struct gpu_adamw_map {
    const float *value;    /* [256] */
    const float *middle;   /* [256] */
    const uint32_t *start; /* [MOMENTS_KEYS] */
};

/* Parameters of one decay kind; what no segment has is padding, and stays as it is. */
struct gpu_adamw_segment {
    uint32_t first, count; /* in parameters of the run */
    uint32_t decay;        /* 0 or 1 */
};

/* A run of parameters that begins with a block of moments: a chunk. */
struct gpu_adamw_run {
    uint64_t first; /* canonical number of the first parameter, a multiple of GPU_ADAMW_BLOCK */
    uint32_t count; /* parameters */
    uint32_t segment_first, segment_count; /* of struct gpu_adamw's */
    uint16_t *hi;
    int16_t *lo;
    void *m, *v; /* blocks as moments_store leaves them; the last one whole in memory */
    const void *gradient;
    uint32_t *broken; /* set to 1 when a new weight or moment is not finite; never to 0 */
};

/* Runs that are updated at once. */
#define GPU_ADAMW_RUNS     16u
#define GPU_ADAMW_SEGMENTS 64u
struct gpu_adamw {
    enum gpu_adamw_moments moments;
    bool bf16; /* the gradients' element, else float */
    struct gpu_adamw_step step;
    struct gpu_adamw_map map_m, map_v;
    uint32_t run_count, segment_count;
    struct gpu_adamw_run runs[GPU_ADAMW_RUNS];
    struct gpu_adamw_segment segments[GPU_ADAMW_SEGMENTS];
};
cudaError_t gpu_adamw(const struct gpu_adamw *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
