/*
 * launch: the one way in which kernels are started, the same source for nvcc and for the emulation
 * under tests/cuda. A kernel takes one struct, by value.
 *
 * Rules for kernels here. Shared memory is dynamic, by SHARED. Warps meet in _sync functions with
 * all lanes and constant masks; a thread leaves only with its whole warp, and none before a
 * barrier. What one lane writes to shared memory and another of its warp reads is parted by
 * __syncwarp: shuffles order nothing. No block waits for another, no atomics whose order would
 * change bits. Indices into arrays are 64 bits wide before they are multiplied.
 */
#ifndef SPILLWAY_MODEL_CUDA_LAUNCH_CUH
#define SPILLWAY_MODEL_CUDA_LAUNCH_CUH

#include <cuda_runtime.h>
#include <stddef.h>
#include <stdint.h>

#define WARP      32u
#define ALL_LANES 0xffffffffu

#ifdef SPILLWAY_EMULATION
#define SHARED(name) unsigned char *name = emulation_shared()
#else
#define SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

struct launch_shape {
    dim3 grid, block;
    size_t shared_bytes;
};

/* Above 48 KiB shared memory has to be asked for, kernel by kernel. */
template <class P>
static inline cudaError_t launch(void (*kernel)(P), const launch_shape &shape, cudaStream_t stream,
                                 const P &parameters)
{
    if (shape.shared_bytes > (48u << 10)) {
        cudaError_t error = cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shape.shared_bytes);
        if (error)
            return error;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    return cudaLaunchKernelEx(&config, kernel, parameters);
}

static inline uint64_t larger_of(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static inline uint64_t blocks_for(uint64_t count, uint64_t per_block)
{
    return (count + per_block - 1) / per_block;
}

/* Blocks of passes over flat arrays: enough to fill any GPU, each going on in strides. */
#define FLAT_THREADS    256u
#define FLAT_BLOCKS_MAX 4096u
static inline launch_shape flat_shape(uint64_t count)
{
    uint64_t blocks = blocks_for(count, FLAT_THREADS);
    launch_shape shape = {};
    shape.grid = dim3((unsigned)(blocks < FLAT_BLOCKS_MAX ? blocks : FLAT_BLOCKS_MAX));
    shape.block = dim3(FLAT_THREADS);
    return shape;
}

static __device__ __forceinline__ uint64_t flat_first()
{
    return (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

static __device__ __forceinline__ uint64_t flat_step()
{
    return (uint64_t)gridDim.x * blockDim.x;
}

#endif
