/*
 * gpu_embed: the embedding of tokens and positions on a GPU, as model/kernels.h defines it: one
 * tile of wte at a time, and gradients that add up in order of the rows, without atomics.
 *
 * R = batch * seq rows of channels; row r = b * seq + t. E is the compute element. Pointers are to
 * device memory; functions enqueue on stream and return what the launch returned.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_EMBED_H
#define SPILLWAY_MODEL_CUDA_GPU_EMBED_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* x[r] = tile[token[r] - row_first] where that is a row of the tile; other rows are left alone. */
struct gpu_embed_forward {
    bool bf16; /* E is bf16, else float */
    uint32_t rows, channels;
    uint32_t row_first, row_count; /* of wte */
    const void *tile;              /* E [row_count, channels] */
    const uint32_t *tokens;        /* [rows] */
    float *x;                      /* [rows, channels] */
};
cudaError_t gpu_embed_forward(const struct gpu_embed_forward *args, cudaStream_t stream);

/* gradient[token - row_first] += dx[r] over rows in order of r. */
struct gpu_embed_backward {
    uint32_t rows, channels;
    uint32_t row_first, row_count;
    const uint32_t *tokens;
    const float *dx; /* [rows, channels] */
    float *gradient; /* [row_count, channels] */
};
cudaError_t gpu_embed_backward(const struct gpu_embed_backward *args, cudaStream_t stream);

/* x[b, t] += wpe[t]. */
struct gpu_position_forward {
    bool bf16; /* E is bf16, else float */
    uint32_t batch, seq, channels;
    const void *wpe; /* E [positions, channels] */
    float *x;
};
cudaError_t gpu_position_forward(const struct gpu_position_forward *args, cudaStream_t stream);

/* gradient[t] (+)= sum over b of dx[b, t]; rows from seq on are zeroed when accumulate is false. */
struct gpu_position_backward {
    uint32_t batch, seq, channels, positions;
    const float *dx;
    float *gradient; /* [positions, channels] */
    bool accumulate;
};
cudaError_t gpu_position_backward(const struct gpu_position_backward *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
