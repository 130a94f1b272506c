/*
 * A block of threads stores PART parameters and adds their squares in double, always in the same
 * order; then a warp adds the parts of each GPU_GRADIENT_BLOCK. In place in bf16 the halves go to
 * working memory first, as where one block writes another still has to read.
 */
#include "model/cuda/gpu_gradient.h"
#include "model/cuda/element.cuh"

#define THREADS 256u
#define PACKS   2u
#define PART    GPU_GRADIENT_PART

static_assert(PART == THREADS * PACKS * pack<float>::COUNT, "a block of threads has a part");
static_assert(GPU_GRADIENT_BLOCK == WARP * PART, "a lane has a part's sum");

static __host__ __device__ uint64_t part_count(uint64_t count)
{
    return (count + PART - 1) / PART;
}

/* Working memory: the parts' sums, and behind them the halves. */
struct store {
    struct gpu_gradient_store args;
    double *sums;
    void *to;   /* args.stored, or the halves in working memory */
    bool moves; /* the latter */
};

/* The squares of what is stored of a pack; what is behind the gradient's end is stored as zeros. */
template <class E>
static __device__ __forceinline__ double store_squares(const store &p, uint64_t at, E *to)
{
    uint64_t left = at < p.args.count ? p.args.count - at : 0;
    static_assert(pack<float>::COUNT == 4, "a quad is stored of a pack");
    pack<float> from = load_pack(p.args.gradient + at, left);
    quad<E> stored;
    double sum = 0.0;
#pragma unroll
    for (uint32_t i = 0; i < pack<float>::COUNT; i++) {
        put(&stored.value[i], from.value[i]);
        sum += (double)to_float(stored.value[i]) * (double)to_float(stored.value[i]);
    }
    store_group(to + at, stored, p.args.padded_count - at);
    return sum;
}

/* What one launch does, a row of the grid for each. */
struct stores {
    store of[GPU_GRADIENT_LIST];
};

template <class E> __global__ void gradient_store_kernel(const __grid_constant__ stores list)
{
    SHARED(shared);
    const store &p = list.of[blockIdx.y];
    uint64_t first = (uint64_t)blockIdx.x * PART;
    if (first >= p.args.padded_count)
        return;
    double sum = 0.0;
#pragma unroll
    for (uint32_t i = 0; i < PACKS; i++) {
        uint64_t at = first + ((uint64_t)i * THREADS + threadIdx.x) * pack<float>::COUNT;
        if (at < p.args.padded_count)
            sum += store_squares(p, at, static_cast<E *>(p.to));
    }
    sum = block_sum(sum, reinterpret_cast<double *>(shared));
    if (threadIdx.x == 0)
        p.sums[blockIdx.x] = sum;
}

/* A warp for each sum of squares, and all threads for the halves' move. */
__global__ void gradient_finish_kernel(const __grid_constant__ stores list)
{
    const store &p = list.of[blockIdx.y];
    uint64_t parts = part_count(p.args.padded_count), lane = threadIdx.x % WARP;
    for (uint64_t i = flat_first() / WARP; i < p.args.square_count; i += flat_step() / WARP) {
        uint64_t part = i * WARP + lane;
        double sum = warp_sum(part < parts ? p.sums[part] : 0.0);
        if (lane == 0)
            p.args.square_sums[i] = sum;
    }
    if (!p.moves)
        return;
    const bf16 *from = static_cast<const bf16 *>(p.to);
    bf16 *to = static_cast<bf16 *>(p.args.stored);
    for_packs<bf16>(p.args.padded_count, [&](uint64_t at, uint64_t left) {
        store_group(to + at, load_pack(from + at, left), left);
    });
}

static uint64_t sums_bytes(uint64_t padded_count)
{
    return blocks_for(part_count(padded_count) * sizeof(double), 256) * 256;
}

uint64_t gpu_gradient_workspace_bytes(uint64_t padded_count)
{
    return sums_bytes(padded_count) + blocks_for(padded_count * sizeof(bf16), 256) * 256;
}

static store store_of(const struct gpu_gradient_store *args)
{
    store p = {*args, static_cast<double *>(args->workspace), args->stored, false};
    p.moves = args->bf16 && args->stored == static_cast<const void *>(args->gradient);
    if (p.moves)
        p.to = static_cast<char *>(args->workspace) + sums_bytes(args->padded_count);
    return p;
}

cudaError_t gpu_gradient_store(const struct gpu_gradient_store *list, uint32_t count,
                               cudaStream_t stream)
{
    if (count == 0 || count > GPU_GRADIENT_LIST)
        return cudaErrorInvalidValue;
    stores all = {};
    uint64_t parts = 0, finishing = 0;
    for (uint32_t i = 0; i < count; i++) {
        const store &p = all.of[i] = store_of(&list[i]);
        uint64_t squares = p.args.square_count * WARP,
                 moved = p.moves ? p.args.padded_count / 8 : 0;
        parts = larger_of(parts, part_count(p.args.padded_count));
        finishing = larger_of(finishing, larger_of(squares, moved));
    }
    launch_shape shape = {}, finish = flat_shape(finishing);
    shape.grid = dim3((unsigned)parts, count);
    shape.block = dim3(THREADS);
    shape.shared_bytes = WARP * sizeof(double);
    finish.grid.y = count;
    cudaError_t error = list->bf16 ? launch(gradient_store_kernel<bf16>, shape, stream, all)
                                   : launch(gradient_store_kernel<float>, shape, stream, all);
    return error ? error : launch(gradient_finish_kernel, finish, stream, all);
}
