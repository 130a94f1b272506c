/*
 * A thread has a column: neighbours read neighbouring addresses. Of the runs' sums a block has a
 * warp's width of columns and RUN_LANES threads for each, as there are few columns and many runs.
 */
#include "model/cuda/gpu_sums.h"
#include "model/cuda/element.cuh"

#define COLUMN_THREADS 128u
#define RUN_LANES      16u

template <class E> __global__ void sums_kernel(struct gpu_sums p)
{
    uint32_t c = blockIdx.y * COLUMN_THREADS + threadIdx.x;
    if (c >= p.columns)
        return;
    uint32_t first = blockIdx.x * GPU_SUMS_RUN, end = min(first + GPU_SUMS_RUN, p.rows);
    const E *x = static_cast<const E *>(p.x);
    float sum = 0.0f;
#pragma unroll 8
    for (uint32_t r = first; r < end; r++)
        sum += to_float(x[(uint64_t)r * p.columns + c]);
    p.partial[(uint64_t)blockIdx.x * p.columns + c] = sum;
}

__global__ void sums_runs_kernel(struct gpu_sums_runs p)
{
    SHARED(shared);
    float *parts = reinterpret_cast<float *>(shared);
    uint32_t c = blockIdx.x * WARP + threadIdx.x;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.y; i < p.runs && c < p.columns; i += RUN_LANES)
        sum += p.partial[(uint64_t)i * p.stride + c];
    parts[threadIdx.y * WARP + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || c >= p.columns)
        return;
    sum = p.accumulate ? p.sums[c] : 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < RUN_LANES; i++)
        sum += parts[i * WARP + threadIdx.x];
    p.sums[c] = sum;
}

uint64_t gpu_sums_partial_bytes(uint32_t rows, uint32_t columns)
{
    return blocks_for(rows, GPU_SUMS_RUN) * columns * sizeof(float);
}

cudaError_t gpu_sums_runs(const struct gpu_sums_runs *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(args->columns, WARP));
    shape.block = dim3(WARP, RUN_LANES);
    shape.shared_bytes = WARP * RUN_LANES * sizeof(float);
    return launch(sums_runs_kernel, shape, stream, *args);
}

cudaError_t gpu_sums(const struct gpu_sums *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(args->rows, GPU_SUMS_RUN),
                      (unsigned)blocks_for(args->columns, COLUMN_THREADS));
    shape.block = dim3(COLUMN_THREADS);
    cudaError_t error = args->bf16 ? launch(sums_kernel<bf16>, shape, stream, *args)
                                   : launch(sums_kernel<float>, shape, stream, *args);
    if (error)
        return error;
    struct gpu_sums_runs runs = {};
    runs.partial = args->partial;
    runs.runs = (uint32_t)blocks_for(args->rows, GPU_SUMS_RUN);
    runs.stride = runs.columns = args->columns;
    runs.sums = args->sums;
    runs.accumulate = args->accumulate;
    return gpu_sums_runs(&runs, stream);
}
