/* A block has a row of the piece; single rows for sampling have a warp each. */
#include "model/cuda/gpu_head.h"
#include "model/cuda/element.cuh"

#define THREADS 256u

__global__ void head_forward_kernel(struct gpu_head_forward p)
{
    SHARED(shared);
    float *scratch = reinterpret_cast<float *>(shared);
    uint32_t r = blockIdx.x;
    const float *row = p.logits.logits + (uint64_t)r * p.logits.stride;
    float most = -INFINITY, sum = 0.0f;
    for (uint32_t c = threadIdx.x; c < p.logits.columns; c += THREADS)
        most = fmaxf(most, row[c]);
    float before = p.first ? -INFINITY : p.maximum[r];
    most = fmaxf(block_max(most, scratch), before);
    for (uint32_t c = threadIdx.x; c < p.logits.columns; c += THREADS)
        sum += expf(row[c] - most);
    sum = block_sum(sum, scratch);
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
    uint32_t r = blockIdx.x;
    uint64_t row = (uint64_t)r * p.logits.stride;
    const float *logits = p.logits.logits + row;
    E *dlogits = static_cast<E *>(p.dlogits) + row;
    float log_sum = p.log_sum[r];
    uint32_t target = p.logits.targets[r] - p.logits.column_first;
    for (uint32_t c = threadIdx.x; c < p.logits.columns; c += THREADS) {
        float probability = expf(logits[c] - log_sum);
        put(dlogits + c, (probability - (c == target ? 1.0f : 0.0f)) * p.loss_scale);
    }
}

template <class E> __global__ void head_single_kernel(struct gpu_head_single p)
{
    uint32_t lane = threadIdx.x % WARP, r = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP;
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
    shape.grid = dim3(rows);
    shape.block = dim3(THREADS);
    shape.shared_bytes = WARP * sizeof(float);
    return shape;
}

cudaError_t gpu_head_forward(const struct gpu_head_forward *args, cudaStream_t stream)
{
    return launch(head_forward_kernel, row_blocks(args->logits.rows), stream, *args);
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
    launch_shape shape = row_blocks((uint32_t)blocks_for(args->rows, THREADS / WARP));
    return args->bf16 ? launch(head_single_kernel<bf16>, shape, stream, *args)
                      : launch(head_single_kernel<float>, shape, stream, *args);
}
