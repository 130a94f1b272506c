/*
 * A block of threads has GPU_GRADIENT_BLOCK parameters and adds their squares in double, always in
 * the same order.
 *
 * In place in bf16, a block first stays inside its own floats: halves of the first floats are
 * written when these have been read by all. Then the halves of block i move from float offset
 * i * BLOCK to half of that. Where block i moves to, block i / 2 came from: so the blocks of
 * [2^n, 2^(n+1)) can move together, after those before them.
 */
#include "model/cuda/gpu_gradient.h"
#include "model/cuda/element.cuh"

#define THREADS 512u
#define BLOCK   GPU_GRADIENT_BLOCK

template <class E> __global__ void gradient_store_kernel(struct gpu_gradient_store p)
{
    SHARED(shared);
    uint64_t first = (uint64_t)blockIdx.x * BLOCK, left = p.count - first;
    uint32_t count = left < BLOCK ? (uint32_t)left : BLOCK;
    const float *from = p.gradient + first;
    bool in_place = p.stored == static_cast<const void *>(p.gradient);
    E *to = static_cast<E *>(p.stored) + (in_place ? first * sizeof(float) / sizeof(E) : first);
    double sum = 0.0;
    for (uint32_t i = 0; i < count; i += THREADS) {
        uint32_t at = i + threadIdx.x;
        float value = at < count ? from[at] : 0.0f;
        E stored;
        put(&stored, value);
        sum += (double)to_float(stored) * (double)to_float(stored);
        /* What is written here has been read by others a turn before, or in this one. */
        __syncthreads();
        if (at < count)
            to[at] = stored;
    }
    sum = block_sum(sum, reinterpret_cast<double *>(shared));
    if (threadIdx.x == 0)
        p.square_sums[blockIdx.x] = sum;
}

struct move {
    bf16 *halves;
    uint64_t count;
    uint32_t first_block;
};

__global__ void move_kernel(move p)
{
    uint64_t first = (uint64_t)(p.first_block + blockIdx.x) * BLOCK, left = p.count - first;
    uint32_t count = left < BLOCK ? (uint32_t)left : BLOCK;
    const bf16 *from = p.halves + 2 * first;
    for (uint32_t i = threadIdx.x; i < count; i += THREADS)
        p.halves[first + i] = from[i];
}

static cudaError_t move_together(const struct gpu_gradient_store *args, cudaStream_t stream)
{
    uint64_t blocks = blocks_for(args->count, BLOCK);
    for (uint64_t first = 1; first < blocks; first *= 2) {
        uint64_t end = 2 * first < blocks ? 2 * first : blocks;
        launch_shape shape = {};
        shape.grid = dim3((unsigned)(end - first));
        shape.block = dim3(THREADS);
        move p = {static_cast<bf16 *>(args->stored), args->count, (uint32_t)first};
        cudaError_t error = launch(move_kernel, shape, stream, p);
        if (error)
            return error;
    }
    return cudaSuccess;
}

cudaError_t gpu_gradient_store(const struct gpu_gradient_store *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(args->count, BLOCK));
    shape.block = dim3(THREADS);
    shape.shared_bytes = WARP * sizeof(double);
    if (!args->bf16)
        return launch(gradient_store_kernel<float>, shape, stream, *args);
    cudaError_t error = launch(gradient_store_kernel<bf16>, shape, stream, *args);
    if (error || args->stored != static_cast<const void *>(args->gradient))
        return error;
    return move_together(args, stream);
}
