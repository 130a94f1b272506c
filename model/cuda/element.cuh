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
 * memory, which may be used again at once. */
template <class T> static __device__ __forceinline__ T block_sum(T value, T *scratch)
{
    uint32_t lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    value = warp_sum(value);
    if (lane == 0)
        scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    value = warp_sum(lane < warps ? scratch[lane] : (T)0);
    __syncthreads();
    return value;
}

static __device__ __forceinline__ float block_max(float value, float *scratch)
{
    uint32_t lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    value = warp_max(value);
    if (lane == 0)
        scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    value = warp_max(lane < warps ? scratch[lane] : -INFINITY);
    __syncthreads();
    return value;
}

#endif
