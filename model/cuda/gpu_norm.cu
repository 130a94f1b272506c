/*
 * A warp has a row, in pieces of 4 columns a lane. The row is read from memory once and from the
 * cache after that: keeping it in registers would need a kernel for every width. In backward the
 * weight's gradient is a sum over rows, and so another pass, a thread for a column of a run of
 * rows; the runs' sums are added in order.
 */
#include "model/cuda/gpu_norm.h"
#include "model/cuda/element.cuh"
#include "model/cuda/gpu_sums.h"

#define ROWS_PER_BLOCK 4u
#define COLUMN_THREADS 128u

struct four {
    float value[4];
};

template <class E> static __device__ __forceinline__ four load_four(const E *from)
{
    quad<E> read = *reinterpret_cast<const quad<E> *>(from);
    four result;
#pragma unroll
    for (int i = 0; i < 4; i++)
        result.value[i] = to_float(read.value[i]);
    return result;
}

template <class E> static __device__ __forceinline__ void store_four(E *to, const four &v)
{
    quad<E> written;
#pragma unroll
    for (int i = 0; i < 4; i++)
        put(&written.value[i], v.value[i]);
    *reinterpret_cast<quad<E> *>(to) = written;
}

/* x, or x + add + add_bias, which is then kept. */
template <class E>
static __device__ __forceinline__ four load_input(const struct gpu_norm_forward &p, uint64_t at,
                                                  uint32_t column)
{
    four x = load_four(p.x + at);
    if (!p.add)
        return x;
    four add = load_four(p.add + at);
    four bias = load_four(static_cast<const E *>(p.add_bias) + column);
#pragma unroll
    for (int i = 0; i < 4; i++)
        x.value[i] += add.value[i] + bias.value[i];
    store_four(p.sum + at, x);
    return x;
}

struct statistics {
    float mean, deviation;
};

/* Mean first and then the squares of differences: no cancellation. */
template <class E>
static __device__ statistics measure(const struct gpu_norm_forward &p, uint64_t row, uint32_t lane)
{
    float sum = 0.0f, squares = 0.0f;
    for (uint32_t c = lane * 4; c < p.columns; c += WARP * 4) {
        four x = load_input<E>(p, row + c, c);
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum += x.value[i];
    }
    float mean = p.kind == GPU_NORM_LAYER ? warp_sum(sum) / (float)p.columns : 0.0f;
    const float *input = p.add ? p.sum : p.x;
    for (uint32_t c = lane * 4; c < p.columns; c += WARP * 4) {
        four x = load_four(input + row + c);
#pragma unroll
        for (int i = 0; i < 4; i++)
            squares += (x.value[i] - mean) * (x.value[i] - mean);
    }
    float variance = warp_sum(squares) / (float)p.columns;
    return {mean, 1.0f / sqrtf(variance + p.epsilon)};
}

template <class E> __global__ void norm_forward_kernel(struct gpu_norm_forward p)
{
    uint32_t lane = threadIdx.x % WARP;
    uint32_t r = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (r >= p.rows)
        return;
    bool layer = p.kind == GPU_NORM_LAYER;
    uint64_t row = (uint64_t)r * p.columns;
    statistics s;
    if (p.again)
        s = {layer ? p.mean[r] : 0.0f, p.deviation[r]};
    else
        s = measure<E>(p, row, lane);
    const float *input = p.add ? p.sum : p.x;
    const E *weight = static_cast<const E *>(p.weight), *bias = static_cast<const E *>(p.bias);
    E *y = static_cast<E *>(p.y) + row;
    for (uint32_t c = lane * 4; c < p.columns; c += WARP * 4) {
        four x = load_four(input + row + c), w = load_four(weight + c), b = {};
        if (layer)
            b = load_four(bias + c);
#pragma unroll
        for (int i = 0; i < 4; i++)
            x.value[i] = (x.value[i] - s.mean) * s.deviation * w.value[i] + b.value[i];
        store_four(y + c, x);
    }
    if (lane > 0 || p.again)
        return;
    if (layer)
        p.mean[r] = s.mean;
    p.deviation[r] = s.deviation;
}

cudaError_t gpu_norm_forward(const struct gpu_norm_forward *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(args->rows, ROWS_PER_BLOCK));
    shape.block = dim3(ROWS_PER_BLOCK * WARP);
    return args->bf16 ? launch(norm_forward_kernel<bf16>, shape, stream, *args)
                      : launch(norm_forward_kernel<float>, shape, stream, *args);
}

/* -- Backward -- */

/* dx = deviation (g - mean(g) - n mean(g n)) with g = dy weight; RMSNorm without mean(g). */
template <class E> __global__ void norm_backward_kernel(struct gpu_norm_backward p)
{
    uint32_t lane = threadIdx.x % WARP;
    uint32_t r = blockIdx.x * ROWS_PER_BLOCK + threadIdx.x / WARP;
    if (r >= p.rows)
        return;
    bool layer = p.kind == GPU_NORM_LAYER;
    uint64_t row = (uint64_t)r * p.columns;
    float mean = layer ? p.mean[r] : 0.0f, deviation = p.deviation[r], plain = 0.0f, along = 0.0f;
    const E *weight = static_cast<const E *>(p.weight);
    for (uint32_t c = lane * 4; c < p.columns; c += WARP * 4) {
        four x = load_four(p.x + row + c), dy = load_four(p.dy + row + c);
        four w = load_four(weight + c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float g = dy.value[i] * w.value[i];
            plain += g;
            along += g * (x.value[i] - mean) * deviation;
        }
    }
    plain = layer ? warp_sum(plain) / (float)p.columns : 0.0f;
    along = warp_sum(along) / (float)p.columns;
    for (uint32_t c = lane * 4; c < p.columns; c += WARP * 4) {
        four x = load_four(p.x + row + c), dy = load_four(p.dy + row + c);
        four w = load_four(weight + c), dx = {};
        if (p.accumulate_dx)
            dx = load_four(p.dx + row + c);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float n = (x.value[i] - mean) * deviation;
            dx.value[i] += deviation * (dy.value[i] * w.value[i] - plain - n * along);
        }
        store_four(p.dx + row + c, dx);
    }
}

/* One run's part of dweight and dbias. */
__global__ void norm_partial_kernel(struct gpu_norm_backward p)
{
    uint32_t c = blockIdx.y * COLUMN_THREADS + threadIdx.x;
    if (c >= p.columns)
        return;
    uint32_t first = blockIdx.x * GPU_NORM_RUN, end = min(first + GPU_NORM_RUN, p.rows);
    float dweight = 0.0f, dbias = 0.0f;
#pragma unroll 8
    for (uint32_t r = first; r < end; r++) {
        uint64_t at = (uint64_t)r * p.columns + c;
        float mean = p.kind == GPU_NORM_LAYER ? p.mean[r] : 0.0f;
        dweight += p.dy[at] * (p.x[at] - mean) * p.deviation[r];
        dbias += p.dy[at];
    }
    float *partial = p.partial + (uint64_t)blockIdx.x * 2 * p.columns + c;
    partial[0] = dweight;
    partial[p.columns] = dbias;
}

uint64_t gpu_norm_partial_bytes(uint32_t rows, uint32_t columns)
{
    return blocks_for(rows, GPU_NORM_RUN) * 2 * columns * sizeof(float);
}

static cudaError_t add_runs(const struct gpu_norm_backward *args, uint32_t which, float *sums,
                            cudaStream_t stream)
{
    struct gpu_sums_runs runs = {};
    runs.partial = args->partial + (uint64_t)which * args->columns;
    runs.runs = (uint32_t)blocks_for(args->rows, GPU_NORM_RUN);
    runs.stride = 2 * args->columns;
    runs.columns = args->columns;
    runs.sums = sums;
    runs.accumulate = args->accumulate;
    return gpu_sums_runs(&runs, stream);
}

cudaError_t gpu_norm_backward(const struct gpu_norm_backward *args, cudaStream_t stream)
{
    launch_shape rows = {}, columns = {};
    rows.grid = dim3((unsigned)blocks_for(args->rows, ROWS_PER_BLOCK));
    rows.block = dim3(ROWS_PER_BLOCK * WARP);
    columns.grid = dim3((unsigned)blocks_for(args->rows, GPU_NORM_RUN),
                        (unsigned)blocks_for(args->columns, COLUMN_THREADS));
    columns.block = dim3(COLUMN_THREADS);
    /* Before dx: it may take dy's place. */
    cudaError_t error = launch(norm_partial_kernel, columns, stream, *args);
    if (!error)
        error = args->bf16 ? launch(norm_backward_kernel<bf16>, rows, stream, *args)
                           : launch(norm_backward_kernel<float>, rows, stream, *args);
    if (!error)
        error = add_runs(args, 0, args->dweight, stream);
    if (!error && args->kind == GPU_NORM_LAYER)
        error = add_runs(args, 1, args->dbias, stream);
    return error;
}
