#include "model/cuda/gpu_activation.h"
#include "model/cuda/element.cuh"

#define GELU_SCALE 0.7978845608028654f /* sqrt(2 / pi) */
#define GELU_CUBE  0.044715f

#define ADD_BLOCKS  65535u
#define ADD_THREADS 128u

/* gelu(x) = x half, slope = half + x half rest 2 u' with u = scale (x + cube x^3) and
 * half = (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)), rest = 1 - half: nothing cancels in either. */
struct gelu_parts {
    float half, rest;
};

static __device__ __forceinline__ gelu_parts gelu_parts_of(float x)
{
    float power = -2.0f * GELU_SCALE * (x + GELU_CUBE * x * x * x);
    float other = __expf(fminf(power, 80.0f)); /* finite, so that rest is; a NaN stays one by x */
    float half = __fdividef(1.0f, 1.0f + other);
    return {half, other * half};
}

static __device__ __forceinline__ float gelu_slope(float x, const gelu_parts &parts)
{
    float inner = GELU_SCALE * (1.0f + 3.0f * GELU_CUBE * x * x);
    return parts.half + 2.0f * x * inner * parts.half * parts.rest;
}

template <class E> __global__ void gelu_forward_kernel(struct gpu_gelu_forward p)
{
    const E *pre = static_cast<const E *>(p.pre);
    E *act = static_cast<E *>(p.act);
    for_packs<E>(p.count, [&](uint64_t at, uint64_t left) {
        pack<E> x = load_pack(pre + at, left);
#pragma unroll
        for (uint32_t i = 0; i < pack<E>::COUNT; i++) {
            float value = to_float(x.value[i]);
            put(&x.value[i], value * gelu_parts_of(value).half);
        }
        store_group(act + at, x, left);
    });
}

template <class E> __global__ void gelu_backward_kernel(struct gpu_gelu_backward p)
{
    const E *pre = static_cast<const E *>(p.pre), *dact = static_cast<const E *>(p.dact);
    E *dpre = static_cast<E *>(p.dpre), *act = static_cast<E *>(p.act);
    for_packs<E>(p.count, [&](uint64_t at, uint64_t left) {
        pack<E> x = load_pack(pre + at, left), d = load_pack(dact + at, left);
#pragma unroll
        for (uint32_t i = 0; i < pack<E>::COUNT; i++) {
            float value = to_float(x.value[i]);
            gelu_parts parts = gelu_parts_of(value);
            put(&d.value[i], to_float(d.value[i]) * gelu_slope(value, parts));
            put(&x.value[i], value * parts.half);
        }
        store_group(dpre + at, d, left);
        store_group(act + at, x, left);
    });
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

/* A block has one row after the other. */
template <class E> __global__ void add_kernel(struct gpu_add p)
{
    const E *bias = static_cast<const E *>(p.bias);
    for (uint64_t row = (uint64_t)blockIdx.x * p.columns; row < p.count;
         row += (uint64_t)gridDim.x * p.columns)
        for (uint32_t c = threadIdx.x * pack<float>::COUNT; c < p.columns;
             c += blockDim.x * pack<float>::COUNT) {
            uint32_t left = p.columns - c;
            pack<float> x = load_pack(p.x + row + c, left);
            pack<float> residual = load_pack(p.residual + row + c, left);
#pragma unroll
            for (uint32_t i = 0; i < pack<float>::COUNT; i++)
                x.value[i] += (i < left ? to_float(bias[c + i]) : 0.0f) + residual.value[i];
            store_group(p.x + row + c, x, left);
        }
}

__global__ void narrow_kernel(struct gpu_narrow p)
{
    bf16 *to = reinterpret_cast<bf16 *>(p.to);
    for_packs<bf16>(p.count, [&](uint64_t at, uint64_t left) {
        pack<float> low = load_pack(p.from + at, left), high = {};
        if (left > pack<float>::COUNT)
            high = load_pack(p.from + at + pack<float>::COUNT, left - pack<float>::COUNT);
        pack<bf16> narrow;
#pragma unroll
        for (uint32_t i = 0; i < pack<float>::COUNT; i++) {
            put(&narrow.value[i], low.value[i]);
            put(&narrow.value[pack<float>::COUNT + i], high.value[i]);
        }
        store_group(to + at, narrow, left);
    });
}

#define LAUNCH_FLAT(kernel, count)                                                                 \
    (args->bf16 ? launch(kernel<bf16>, flat_shape(count), stream, *args)                           \
                : launch(kernel<float>, flat_shape(count), stream, *args))

#define LAUNCH_PACKS(kernel, count)                                                                \
    (args->bf16 ? launch(kernel<bf16>, flat_pack_shape<bf16>(count), stream, *args)                \
                : launch(kernel<float>, flat_pack_shape<float>(count), stream, *args))

cudaError_t gpu_gelu_forward(const struct gpu_gelu_forward *args, cudaStream_t stream)
{
    return LAUNCH_PACKS(gelu_forward_kernel, args->count);
}

cudaError_t gpu_gelu_backward(const struct gpu_gelu_backward *args, cudaStream_t stream)
{
    return LAUNCH_PACKS(gelu_backward_kernel, args->count);
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
    launch_shape shape = {};
    uint64_t rows = args->count / args->columns;
    shape.grid = dim3((unsigned)(rows < ADD_BLOCKS ? rows : ADD_BLOCKS));
    shape.block = dim3(ADD_THREADS);
    return args->bf16 ? launch(add_kernel<bf16>, shape, stream, *args)
                      : launch(add_kernel<float>, shape, stream, *args);
}

cudaError_t gpu_narrow(const struct gpu_narrow *args, cudaStream_t stream)
{
    return launch(narrow_kernel, flat_pack_shape<bf16>(args->count), stream, *args);
}
