/*
 * Rows of logits are read in packs: their stride is a multiple of one. In forward a block has a row
 * and reads it once, each thread with a maximum and a sum of its own; in backward and for sampling
 * a warp has one.
 */
#include "model/cuda/gpu_head.h"
#include "model/cuda/element.cuh"

#define THREADS 256u
#define WARPS   (THREADS / WARP)
#define EACH    pack<float>::COUNT

#define ROW_THREADS 128u

struct running {
    float most, sum; /* of exp(x - most) */
};

/* A thread's share of a row. */
static __device__ __forceinline__ running run_over(const float *row, uint32_t columns)
{
    running so_far = {-INFINITY, 0.0f};
    for (uint32_t c = threadIdx.x * EACH; c < columns; c += ROW_THREADS * EACH) {
        pack<float> x = load_pack(row + c, columns - c);
        float most = so_far.most, sum = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            most = c + i < columns ? fmaxf(most, x.value[i]) : most;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++)
            sum += c + i < columns ? expf(x.value[i] - most) : 0.0f;
        so_far = {most, so_far.sum * expf(so_far.most - most) + sum};
    }
    return so_far;
}

__global__ void head_forward_kernel(struct gpu_head_forward p)
{
    SHARED(shared);
    float *scratch = reinterpret_cast<float *>(shared);
    uint32_t r = blockIdx.x;
    const float *row = p.logits.logits + (uint64_t)r * p.logits.stride;
    uint32_t columns = p.logits.columns;
    running mine = run_over(row, columns);
    float before = p.first ? -INFINITY : p.maximum[r];
    float most = fmaxf(block_max(mine.most, scratch), before);
    float sum = block_sum(mine.sum * expf(mine.most - most), scratch + WARP);
    if (threadIdx.x > 0)
        return;
    p.sum[r] = p.first ? sum : p.sum[r] * expf(before - most) + sum;
    p.maximum[r] = most;
    uint32_t target = p.logits.targets[r] - p.logits.column_first;
    if (p.logits.targets[r] >= p.logits.column_first && target < p.logits.columns)
        p.target[r] = row[target];
    else if (p.first)
        p.target[r] = 0.0f;
}

__global__ void head_loss_kernel(struct gpu_head_loss p)
{
    for (uint64_t r = flat_first(); r < p.rows; r += flat_step()) {
        float log_sum = p.maximum[r] + logf(p.sum[r]);
        p.maximum[r] = log_sum;
        p.losses[r] = log_sum - p.target[r];
    }
}

template <class E> __global__ void head_backward_kernel(struct gpu_head_backward p)
{
    uint32_t lane = threadIdx.x % WARP, r = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (r >= p.logits.rows)
        return;
    uint64_t row = (uint64_t)r * p.logits.stride;
    const float *logits = p.logits.logits + row;
    E *dlogits = static_cast<E *>(p.dlogits) + row;
    uint32_t columns = p.logits.columns;
    float log_sum = p.log_sum[r];
    uint32_t target = p.logits.targets[r] - p.logits.column_first;
    for (uint32_t c = lane * EACH; c < columns; c += WARP * EACH) {
        pack<float> x = load_pack(logits + c, columns - c);
        quad<E> d;
#pragma unroll
        for (uint32_t i = 0; i < EACH; i++) {
            float probability = expf(x.value[i] - log_sum);
            put(&d.value[i], (probability - (c + i == target ? 1.0f : 0.0f)) * p.loss_scale);
        }
        store_group(dlogits + c, d, columns - c);
    }
}

template <class E> __global__ void head_single_kernel(struct gpu_head_single p)
{
    uint32_t lane = threadIdx.x % WARP, r = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (r >= p.rows)
        return;
    const E *row = static_cast<const E *>(p.tile) + (uint64_t)r * p.channels;
    const E *y = static_cast<const E *>(p.y);
    float sum = 0.0f;
    for (uint32_t c = lane; c < p.channels; c += WARP)
        sum += to_float(row[c]) * to_float(y[c]);
    sum = warp_sum(sum);
    if (lane == 0)
        p.logits[r] = sum;
}

static launch_shape row_blocks(uint32_t rows)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(rows, WARPS));
    shape.block = dim3(THREADS);
    return shape;
}

cudaError_t gpu_head_forward(const struct gpu_head_forward *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3(args->logits.rows);
    shape.block = dim3(ROW_THREADS);
    shape.shared_bytes = 2 * WARP * sizeof(float);
    return launch(head_forward_kernel, shape, stream, *args);
}

cudaError_t gpu_head_loss(const struct gpu_head_loss *args, cudaStream_t stream)
{
    return launch(head_loss_kernel, flat_shape(args->rows), stream, *args);
}

cudaError_t gpu_head_backward(const struct gpu_head_backward *args, cudaStream_t stream)
{
    launch_shape shape = row_blocks(args->logits.rows);
    return args->bf16 ? launch(head_backward_kernel<bf16>, shape, stream, *args)
                      : launch(head_backward_kernel<float>, shape, stream, *args);
}

cudaError_t gpu_head_single(const struct gpu_head_single *args, cudaStream_t stream)
{
    launch_shape shape = row_blocks(args->rows);
    return args->bf16 ? launch(head_single_kernel<bf16>, shape, stream, *args)
                      : launch(head_single_kernel<float>, shape, stream, *args);
}
