/*
 * gpu_activation: GELU, SwiGLU, rotary positions, and other passes over flat arrays on a GPU.
 *
 * GELU is the tanh form (Hendrycks and Gimpel 2016): x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
 * SwiGLU: silu(gate) up, silu(x) = x / (1 + exp(-x)) (Shazeer 2020). E is the compute element;
 * counts are of elements and need no multiple of anything. Pointers are to device memory; functions
 * enqueue on stream and return what the launch returned. Arrays are aligned to 16 bytes.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_ACTIVATION_H
#define SPILLWAY_MODEL_CUDA_GPU_ACTIVATION_H

#include <stdbool.h>
#include <stdint.h>
#include <cuda_runtime_api.h>

#ifdef __cplusplus
extern "C" {
#endif

/* act = gelu(pre). */
struct gpu_gelu_forward {
    bool bf16; /* E is bf16, else float */
    uint64_t count;
    const void *pre; /* E */
    void *act;       /* E */
};
cudaError_t gpu_gelu_forward(const struct gpu_gelu_forward *args, cudaStream_t stream);

/* dpre = dact gelu'(pre), and act again, which the weight's gradient wants. */
struct gpu_gelu_backward {
    bool bf16; /* E is bf16, else float */
    uint64_t count;
    const void *pre;  /* E */
    const void *dact; /* E */
    void *dpre;       /* E; may be dact */
    void *act;        /* E */
};
cudaError_t gpu_gelu_backward(const struct gpu_gelu_backward *args, cudaStream_t stream);

/* act = silu(gate) up. */
struct gpu_swiglu_forward {
    bool bf16; /* E is bf16, else float */
    uint64_t count;
    const void *gate, *up; /* E */
    void *act;             /* E */
};
cudaError_t gpu_swiglu_forward(const struct gpu_swiglu_forward *args, cudaStream_t stream);

struct gpu_swiglu_backward {
    bool bf16; /* E is bf16, else float */
    uint64_t count;
    const void *gate, *up, *dact; /* E */
    void *dgate, *dup;            /* E; one of them may be dact */
    void *act;                    /* E */
};
cudaError_t gpu_swiglu_backward(const struct gpu_swiglu_backward *args, cudaStream_t stream);

/* Rotary positions (Su et al. 2021), pairs (i, i + depth / 2) as in Hugging Face's Llama: x becomes
 * x cos - x' sin and x' cos + x sin. Its backward turns the other way. */
struct gpu_rope {
    bool bf16;          /* E is bf16, else float */
    uint32_t rows, seq; /* row r is at position r % seq */
    uint32_t heads, depth;
    uint32_t stride;        /* elements from row to row */
    const float *cos, *sin; /* [seq, depth / 2] */
    bool backward;
    void *x; /* E [rows, stride]: heads x depth of each row, in place */
};
cudaError_t gpu_rope(const struct gpu_rope *args, cudaStream_t stream);

/* x += bias[column] + residual. */
struct gpu_add {
    bool bf16; /* of bias */
    uint64_t count;
    uint32_t columns; /* a multiple of 4 */
    float *x;
    const float *residual;
    const void *bias; /* E [columns] */
};
cudaError_t gpu_add(const struct gpu_add *args, cudaStream_t stream);

/* to = from, to nearest even in bf16. */
struct gpu_narrow {
    uint64_t count;
    const float *from;
    uint16_t *to;
};
cudaError_t gpu_narrow(const struct gpu_narrow *args, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
