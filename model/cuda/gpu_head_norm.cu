/* A warp has one head of one row; the weight's gradient is another pass, a thread for a channel. */
#include "model/cuda/gpu_head_norm.h"
#include "model/cuda/element.cuh"
#include "model/cuda/gpu_sums.h"

#define WARPS_PER_BLOCK 4u

struct place {
    uint64_t index; /* of deviation */
    uint64_t first; /* element of x */
    bool there;
};

static __device__ __forceinline__ place place_of(const gpu_head_norm_shape &s)
{
    uint64_t index = (uint64_t)blockIdx.x * WARPS_PER_BLOCK + threadIdx.x / WARP;
    uint64_t first = index / s.heads * s.stride + index % s.heads * s.depth;
    return {index, first, index < (uint64_t)s.rows * s.heads};
}

template <class E> __global__ void head_norm_forward_kernel(struct gpu_head_norm_forward p)
{
    place at = place_of(p.shape);
    if (!at.there)
        return;
    uint32_t lane = threadIdx.x % WARP, depth = p.shape.depth;
    const E *x = static_cast<const E *>(p.x) + at.first, *weight = static_cast<const E *>(p.weight);
    E *y = static_cast<E *>(p.y) + at.first;
    float squares = 0.0f;
    for (uint32_t c = lane; c < depth; c += WARP)
        squares += to_float(x[c]) * to_float(x[c]);
    float deviation = 1.0f / sqrtf(warp_sum(squares) / (float)depth + p.shape.epsilon);
    for (uint32_t c = lane; c < depth; c += WARP)
        put(y + c, to_float(x[c]) * deviation * to_float(weight[c]));
    if (lane == 0)
        p.deviation[at.index] = deviation;
}

/* dx = deviation (g - n mean(g n)) with g = dy weight. */
template <class E> __global__ void head_norm_backward_kernel(struct gpu_head_norm_backward p)
{
    place at = place_of(p.shape);
    if (!at.there)
        return;
    uint32_t lane = threadIdx.x % WARP, depth = p.shape.depth;
    const E *x = static_cast<const E *>(p.x) + at.first, *weight = static_cast<const E *>(p.weight);
    const E *dy = static_cast<const E *>(p.dy) + at.first;
    E *dx = static_cast<E *>(p.dx) + at.first;
    float deviation = p.deviation[at.index], along = 0.0f;
    for (uint32_t c = lane; c < depth; c += WARP)
        along += to_float(dy[c]) * to_float(weight[c]) * to_float(x[c]) * deviation;
    along = warp_sum(along) / (float)depth;
    for (uint32_t c = lane; c < depth; c += WARP) {
        float n = to_float(x[c]) * deviation;
        put(dx + c, deviation * (to_float(dy[c]) * to_float(weight[c]) - n * along));
    }
}

/* One run's part of dweight: all heads of its rows, in order. */
template <class E> __global__ void head_norm_partial_kernel(struct gpu_head_norm_backward p)
{
    uint32_t c = threadIdx.x + blockIdx.y * blockDim.x, depth = p.shape.depth;
    if (c >= depth)
        return;
    uint32_t first = blockIdx.x * GPU_HEAD_NORM_RUN;
    uint32_t end = min(first + GPU_HEAD_NORM_RUN, p.shape.rows);
    const E *x = static_cast<const E *>(p.x), *dy = static_cast<const E *>(p.dy);
    float sum = 0.0f;
    for (uint32_t r = first; r < end; r++)
        for (uint32_t h = 0; h < p.shape.heads; h++) {
            uint64_t at = (uint64_t)r * p.shape.stride + (uint64_t)h * depth + c;
            sum +=
                to_float(dy[at]) * to_float(x[at]) * p.deviation[(uint64_t)r * p.shape.heads + h];
        }
    p.partial[(uint64_t)blockIdx.x * depth + c] = sum;
}

static launch_shape warp_shape(const gpu_head_norm_shape &s)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for((uint64_t)s.rows * s.heads, WARPS_PER_BLOCK));
    shape.block = dim3(WARPS_PER_BLOCK * WARP);
    return shape;
}

cudaError_t gpu_head_norm_forward(const struct gpu_head_norm_forward *args, cudaStream_t stream)
{
    launch_shape shape = warp_shape(args->shape);
    return args->shape.bf16 ? launch(head_norm_forward_kernel<bf16>, shape, stream, *args)
                            : launch(head_norm_forward_kernel<float>, shape, stream, *args);
}

uint64_t gpu_head_norm_partial_bytes(uint32_t rows, uint32_t depth)
{
    return blocks_for(rows, GPU_HEAD_NORM_RUN) * depth * sizeof(float);
}

cudaError_t gpu_head_norm_backward(const struct gpu_head_norm_backward *args, cudaStream_t stream)
{
    const gpu_head_norm_shape &s = args->shape;
    launch_shape warps = warp_shape(s), columns = {};
    columns.grid = dim3((unsigned)blocks_for(s.rows, GPU_HEAD_NORM_RUN),
                        (unsigned)blocks_for(s.depth, WARPS_PER_BLOCK * WARP));
    columns.block = dim3(WARPS_PER_BLOCK * WARP);
    /* Before dx: it may take dy's place. */
    cudaError_t error = s.bf16 ? launch(head_norm_partial_kernel<bf16>, columns, stream, *args)
                               : launch(head_norm_partial_kernel<float>, columns, stream, *args);
    if (!error)
        error = s.bf16 ? launch(head_norm_backward_kernel<bf16>, warps, stream, *args)
                       : launch(head_norm_backward_kernel<float>, warps, stream, *args);
    if (error)
        return error;
    struct gpu_sums_runs runs = {};
    runs.partial = args->partial;
    runs.runs = (uint32_t)blocks_for(s.rows, GPU_HEAD_NORM_RUN);
    runs.stride = runs.columns = s.depth;
    runs.sums = args->dweight;
    runs.accumulate = args->accumulate;
    return gpu_sums_runs(&runs, stream);
}
