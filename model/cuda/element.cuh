/*
 * element: E, the compute element (float or bf16), read and written as float; sums and maxima over
 * the lanes of a warp and over a block, in an order that never changes.
 */
#ifndef SPILLWAY_MODEL_CUDA_ELEMENT_CUH
#define SPILLWAY_MODEL_CUDA_ELEMENT_CUH

#include "model/cuda/launch.cuh"
#include <cuda_bf16.h>

typedef __nv_bfloat16 bf16;

static __device__ __forceinline__ float to_float(float value)
{
    return value;
}

static __device__ __forceinline__ float to_float(bf16 value)
{
    return __bfloat162float(value);
}

static __device__ __forceinline__ void put(float *to, float value)
{
    *to = value;
}

/* To nearest, ties to even (core/float.h: float_to_bf16). */
static __device__ __forceinline__ void put(bf16 *to, float value)
{
    *to = __float2bfloat16_rn(value);
}

/* N elements, read and written at once. */
template <class E, uint32_t N> struct alignas(N * sizeof(E)) group {
    static constexpr uint32_t COUNT = N;
    E value[N];
};
template <class E> using pack = group<E, 16 / sizeof(E)>;
template <class E> using quad = group<E, 4>;

/* `left` elements are there, or a whole pack and more; `from` and `to` are aligned to a pack. */
template <class E> static __device__ __forceinline__ pack<E> load_pack(const E *from, uint64_t left)
{
    if (left >= pack<E>::COUNT)
        return *reinterpret_cast<const pack<E> *>(from);
    pack<E> result = {};
#pragma unroll
    for (uint32_t i = 0; i < pack<E>::COUNT; i++)
        if (i < left)
            result.value[i] = from[i];
    return result;
}

template <class E, uint32_t N>
static __device__ __forceinline__ void store_group(E *to, const group<E, N> &from, uint64_t left)
{
    if (left >= N) {
        *reinterpret_cast<group<E, N> *>(to) = from;
        return;
    }
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        if (i < left)
            to[i] = from.value[i];
}

/* body(first, left) for each pack of a flat array. Launch: flat_pack_shape. */
template <class E, class Body>
static __device__ __forceinline__ void for_packs(uint64_t count, const Body &body)
{
    for (uint64_t i = flat_first() * pack<E>::COUNT; i < count; i += flat_step() * pack<E>::COUNT)
        body(i, count - i);
}

template <class E> static inline launch_shape flat_pack_shape(uint64_t count)
{
    return flat_shape(blocks_for(count, pack<E>::COUNT));
}

/* By halving: every lane gets the same bits. */
static __device__ __forceinline__ float warp_sum(float value)
{
#pragma unroll
    for (int flip = 16; flip > 0; flip /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, flip);
    return value;
}

static __device__ __forceinline__ double warp_sum(double value)
{
#pragma unroll
    for (int flip = 16; flip > 0; flip /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, flip);
    return value;
}

/* A NaN is ignored; sums of exponentials find it again. */
static __device__ __forceinline__ float warp_max(float value)
{
#pragma unroll
    for (int flip = 16; flip > 0; flip /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, flip));
    return value;
}

/* Of all threads of a block of whole warps, given to all of them. scratch: WARP elements of shared
 * memory, which may be used again when all have met once more. */
template <class T> static __device__ __forceinline__ T block_sum(T value, T *scratch)
{
    uint32_t lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    value = warp_sum(value);
    if (lane == 0)
        scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    return warp_sum(lane < warps ? scratch[lane] : (T)0);
}

static __device__ __forceinline__ float block_max(float value, float *scratch)
{
    uint32_t lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    value = warp_max(value);
    if (lane == 0)
        scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    return warp_max(lane < warps ? scratch[lane] : -INFINITY);
}

#endif
