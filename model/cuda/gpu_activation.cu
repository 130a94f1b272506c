#include "model/cuda/gpu_activation.h"
#include "model/cuda/element.cuh"

#define GELU_SCALE 0.7978845608028654f /* sqrt(2 / pi) */
#define GELU_CUBE  0.044715f

static __device__ __forceinline__ float gelu(float x)
{
    return 0.5f * x * (1.0f + tanhf(GELU_SCALE * (x + GELU_CUBE * x * x * x)));
}

static __device__ __forceinline__ float gelu_slope(float x)
{
    float t = tanhf(GELU_SCALE * (x + GELU_CUBE * x * x * x));
    float inner = GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}

template <class E> __global__ void gelu_forward_kernel(struct gpu_gelu_forward p)
{
    const E *pre = static_cast<const E *>(p.pre);
    E *act = static_cast<E *>(p.act);
    for (uint64_t i = flat_first(); i < p.count; i += flat_step())
        put(act + i, gelu(to_float(pre[i])));
}

template <class E> __global__ void gelu_backward_kernel(struct gpu_gelu_backward p)
{
    const E *pre = static_cast<const E *>(p.pre), *dact = static_cast<const E *>(p.dact);
    E *dpre = static_cast<E *>(p.dpre), *act = static_cast<E *>(p.act);
    for (uint64_t i = flat_first(); i < p.count; i += flat_step()) {
        float x = to_float(pre[i]);
        put(dpre + i, to_float(dact[i]) * gelu_slope(x));
        put(act + i, gelu(x));
    }
}

static __device__ __forceinline__ float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

template <class E> __global__ void swiglu_forward_kernel(struct gpu_swiglu_forward p)
{
    const E *gate = static_cast<const E *>(p.gate), *up = static_cast<const E *>(p.up);
    E *act = static_cast<E *>(p.act);
    for (uint64_t i = flat_first(); i < p.count; i += flat_step()) {
        float g = to_float(gate[i]);
        put(act + i, g * sigmoid(g) * to_float(up[i]));
    }
}

template <class E> __global__ void swiglu_backward_kernel(struct gpu_swiglu_backward p)
{
    const E *gate = static_cast<const E *>(p.gate), *up = static_cast<const E *>(p.up);
    const E *dact = static_cast<const E *>(p.dact);
    E *dgate = static_cast<E *>(p.dgate), *dup = static_cast<E *>(p.dup);
    E *act = static_cast<E *>(p.act);
    for (uint64_t i = flat_first(); i < p.count; i += flat_step()) {
        float g = to_float(gate[i]), u = to_float(up[i]), d = to_float(dact[i]);
        float part = sigmoid(g), silu = g * part;
        put(dgate + i, d * u * (part + silu * (1.0f - part)));
        put(dup + i, d * silu);
        put(act + i, silu * u);
    }
}

/* A thread turns one pair. */
template <class E> __global__ void rope_kernel(struct gpu_rope p)
{
    uint32_t half = p.depth / 2;
    uint64_t count = (uint64_t)p.rows * p.heads * half;
    for (uint64_t i = flat_first(); i < count; i += flat_step()) {
        uint32_t pair = (uint32_t)(i % half), head = (uint32_t)(i / half % p.heads);
        uint64_t row = i / half / p.heads;
        uint64_t angle = row % p.seq * half + pair;
        E *x = static_cast<E *>(p.x) + row * p.stride + (uint64_t)head * p.depth + pair;
        float c = p.cos[angle], s = p.backward ? -p.sin[angle] : p.sin[angle];
        float low = to_float(x[0]), high = to_float(x[half]);
        put(x, low * c - high * s);
        put(x + half, high * c + low * s);
    }
}

template <class E> __global__ void add_kernel(struct gpu_add p)
{
    const E *bias = static_cast<const E *>(p.bias);
    for (uint64_t i = flat_first(); i < p.count; i += flat_step())
        p.x[i] += to_float(bias[i % p.columns]) + p.residual[i];
}

__global__ void narrow_kernel(struct gpu_narrow p)
{
    bf16 *to = reinterpret_cast<bf16 *>(p.to);
    for (uint64_t i = flat_first(); i < p.count; i += flat_step())
        put(to + i, p.from[i]);
}

#define LAUNCH_FLAT(kernel, count)                                                                 \
    (args->bf16 ? launch(kernel<bf16>, flat_shape(count), stream, *args)                           \
                : launch(kernel<float>, flat_shape(count), stream, *args))

cudaError_t gpu_gelu_forward(const struct gpu_gelu_forward *args, cudaStream_t stream)
{
    return LAUNCH_FLAT(gelu_forward_kernel, args->count);
}

cudaError_t gpu_gelu_backward(const struct gpu_gelu_backward *args, cudaStream_t stream)
{
    return LAUNCH_FLAT(gelu_backward_kernel, args->count);
}

cudaError_t gpu_swiglu_forward(const struct gpu_swiglu_forward *args, cudaStream_t stream)
{
    return LAUNCH_FLAT(swiglu_forward_kernel, args->count);
}

cudaError_t gpu_swiglu_backward(const struct gpu_swiglu_backward *args, cudaStream_t stream)
{
    return LAUNCH_FLAT(swiglu_backward_kernel, args->count);
}

cudaError_t gpu_rope(const struct gpu_rope *args, cudaStream_t stream)
{
    return LAUNCH_FLAT(rope_kernel, (uint64_t)args->rows * args->heads * (args->depth / 2));
}

cudaError_t gpu_add(const struct gpu_add *args, cudaStream_t stream)
{
    return LAUNCH_FLAT(add_kernel, args->count);
}

cudaError_t gpu_narrow(const struct gpu_narrow *args, cudaStream_t stream)
{
    return launch(narrow_kernel, flat_shape(args->count), stream, *args);
}
