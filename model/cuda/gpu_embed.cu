/*
 * Backward: rows of wte are dealt out to CLASSES groups by their number, and a block has a group
 * and a run of channels. It goes through all tokens in order, keeps those of its group, and adds
 * their rows; so a row of the gradient is touched by one block alone, each channel by one thread,
 * in order of r. A sort would do with fewer reads of tokens, but these are few beside dx.
 */
#include "model/cuda/gpu_embed.h"
#include "model/cuda/element.cuh"

#define CLASSES 64u
#define THREADS 256u
#define WARPS   (THREADS / WARP)

/* A warp has a row, which most tiles have not. */
template <class E> __global__ void embed_forward_kernel(struct gpu_embed_forward p)
{
    uint32_t lane = threadIdx.x % WARP, r = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (r >= p.rows)
        return;
    uint32_t token = p.tokens[r], row = token - p.row_first;
    if (token < p.row_first || row >= p.row_count)
        return;
    const E *from = static_cast<const E *>(p.tile) + (uint64_t)row * p.channels;
    float *to = p.x + (uint64_t)r * p.channels;
    for (uint32_t c = lane; c < p.channels; c += WARP)
        to[c] = to_float(from[c]);
}

struct match {
    uint32_t row; /* of the tile */
    uint32_t r;
};

/* Tokens that a thread looks at in a turn, THREADS apart; there are as many counts as lanes. */
#define LOOKS 4u

static_assert(LOOKS * WARPS == WARP, "a lane has a count");

/* The block's tokens among the next LOOKS * THREADS, in order, into list; returns how many. The
 * list of the turn before has been read when all have met over counts. */
static __device__ __forceinline__ uint32_t gather(const struct gpu_embed_backward &p,
                                                  uint32_t first, match *list, uint32_t *counts)
{
    uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, rows[LOOKS], found[LOOKS];
#pragma unroll
    for (uint32_t k = 0; k < LOOKS; k++) {
        uint32_t r = first + k * THREADS + threadIdx.x, token = r < p.rows ? p.tokens[r] : 0;
        rows[k] = token - p.row_first;
        bool mine = r < p.rows && token >= p.row_first && rows[k] < p.row_count &&
                    rows[k] % CLASSES == blockIdx.y;
        found[k] = __ballot_sync(ALL_LANES, mine);
        if (lane == 0)
            counts[k * WARPS + warp] = (uint32_t)__popc(found[k]);
    }
    __syncthreads();
    uint32_t mine = counts[lane], end = mine;
    for (uint32_t step = 1; step < WARP; step *= 2) {
        uint32_t other = __shfl_sync(ALL_LANES, end, (int)((lane - step) % WARP));
        end += lane >= step ? other : 0;
    }
    uint32_t total = __shfl_sync(ALL_LANES, end, WARP - 1);
#pragma unroll
    for (uint32_t k = 0; k < LOOKS; k++) {
        uint32_t before = __shfl_sync(ALL_LANES, end - mine, (int)(k * WARPS + warp));
        if (found[k] >> lane & 1)
            list[before + (uint32_t)__popc(found[k] & ((1u << lane) - 1))] = {
                rows[k], first + k * THREADS + threadIdx.x};
    }
    __syncthreads();
    return total;
}

__global__ void embed_backward_kernel(struct gpu_embed_backward p)
{
    SHARED(shared);
    match *list = reinterpret_cast<match *>(shared);
    uint32_t *counts = reinterpret_cast<uint32_t *>(list + LOOKS * THREADS);
    uint32_t c = blockIdx.x * THREADS + threadIdx.x;
    for (uint32_t first = 0; first < p.rows; first += LOOKS * THREADS) {
        uint32_t count = gather(p, first, list, counts);
        for (uint32_t i = 0; i < count && c < p.channels; i++)
            p.gradient[(uint64_t)list[i].row * p.channels + c] +=
                p.dx[(uint64_t)list[i].r * p.channels + c];
    }
}

template <class E> __global__ void position_forward_kernel(struct gpu_position_forward p)
{
    uint64_t sequence = (uint64_t)p.seq * p.channels, count = p.batch * sequence;
    const E *wpe = static_cast<const E *>(p.wpe);
    for (uint64_t i = flat_first(); i < count; i += flat_step())
        p.x[i] += to_float(wpe[i % sequence]);
}

__global__ void position_backward_kernel(struct gpu_position_backward p)
{
    uint64_t sequence = (uint64_t)p.seq * p.channels, count = (uint64_t)p.positions * p.channels;
    for (uint64_t i = flat_first(); i < count; i += flat_step()) {
        float sum = p.accumulate ? p.gradient[i] : 0.0f;
        for (uint32_t b = 0; b < p.batch && i < sequence; b++)
            sum += p.dx[b * sequence + i];
        p.gradient[i] = sum;
    }
}

cudaError_t gpu_embed_forward(const struct gpu_embed_forward *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(args->rows, WARPS));
    shape.block = dim3(THREADS);
    return args->bf16 ? launch(embed_forward_kernel<bf16>, shape, stream, *args)
                      : launch(embed_forward_kernel<float>, shape, stream, *args);
}

cudaError_t gpu_embed_backward(const struct gpu_embed_backward *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(args->channels, THREADS), CLASSES);
    shape.block = dim3(THREADS);
    shape.shared_bytes = LOOKS * THREADS * sizeof(match) + WARP * sizeof(uint32_t);
    return launch(embed_backward_kernel, shape, stream, *args);
}

cudaError_t gpu_position_forward(const struct gpu_position_forward *args, cudaStream_t stream)
{
    launch_shape shape = flat_shape((uint64_t)args->batch * args->seq * args->channels);
    return args->bf16 ? launch(position_forward_kernel<bf16>, shape, stream, *args)
                      : launch(position_forward_kernel<float>, shape, stream, *args);
}

cudaError_t gpu_position_backward(const struct gpu_position_backward *args, cudaStream_t stream)
{
    launch_shape shape = flat_shape((uint64_t)args->positions * args->channels);
    return launch(position_backward_kernel, shape, stream, *args);
}
