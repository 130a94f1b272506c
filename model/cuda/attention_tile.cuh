/*
 * attention_tile: products of tiles in shared memory and registers, which is all that the attention
 * kernels differ in between bf16 and fp32. A block has THREADS threads. A tile is N rows of D
 * channels, of which the head has depth and the rest are zero.
 *
 * Two kinds of "cores" have the same members, so that the kernels are written once:
 *   ROWS        rows of a block's own tile: 16 a warp on tensor cores, 8 a warp on ordinary ones
 *   OWN         rows of it that a thread has a part of; four neighbouring lanes share each
 *   row(h)      the number in the own tile of the thread's row h
 *   column(i)   the column of the thread's i-th value of a row; N / 4 values of N columns
 *   across      own[ROWS, D] other[N, D]^T into values: scores
 *   along       accumulated += values[ROWS, N] other[N, D]
 *   load        rows of an array in memory into a tile; there after arrive
 */
#ifndef SPILLWAY_MODEL_CUDA_ATTENTION_TILE_CUH
#define SPILLWAY_MODEL_CUDA_ATTENTION_TILE_CUH

#include "model/cuda/element.cuh"
#include "model/cuda/gpu_attention.h"
#include "model/cuda/ptx.cuh"

#define ATTENTION_THREADS 128u

/* Rows [first, end) of one head, as many as there are. */
template <class E> struct head_rows {
    E *at; /* of the sequence's first row */
    uint32_t stride, depth;
    uint32_t first, end;
};

template <class E>
static __device__ __forceinline__ head_rows<E>
rows_of(const gpu_attention_array &array, const gpu_attention_shape &shape, uint32_t batch,
        uint32_t head, uint32_t first)
{
    E *at = static_cast<E *>(array.at) + (uint64_t)batch * shape.seq * array.stride +
            (uint64_t)head * shape.depth;
    return {at, array.stride, shape.depth, first, shape.seq};
}

/* -- Tensor cores: bf16 -- */

/* WIDE: rows can be loaded 16 bytes at a time. */
template <int D_, bool WIDE> struct tensor_cores {
    typedef bf16 E;
    static constexpr int D = D_;
    static constexpr int ROWS = 64, OWN = 2, STAGES = 2;
    static constexpr int STRIDE = D + 8; /* so that 8 rows of 16 bytes fall into different banks */

    static __device__ __forceinline__ int row(int h)
    {
        return (int)(threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4) + h * 8;
    }

    static __device__ __forceinline__ int column(int i)
    {
        return i / 2 * 8 + (int)(threadIdx.x % 4) * 2 + i % 2;
    }

    /* Where the thread keeps accumulated channel i of a row. */
    static __device__ __forceinline__ int channel(int i) { return column(i); }

    template <int N> static __device__ __forceinline__ void load(E *tile, const head_rows<E> &rows)
    {
        for (int i = (int)threadIdx.x; i < N * D / 8; i += (int)ATTENTION_THREADS) {
            int r = i / (D / 8), c = i % (D / 8) * 8;
            bool there = rows.first + r < rows.end && (uint32_t)c < rows.depth;
            E *to = tile + r * STRIDE + c;
            const E *from = rows.at + (uint64_t)(rows.first + r) * rows.stride + c;
            if (WIDE)
                ptx_copy_async(to, there ? from : rows.at, there);
            else
                for (int j = 0; j < 8; j++)
                    put(to + j, there && (uint32_t)(c + j) < rows.depth ? to_float(from[j]) : 0.0f);
        }
    }

    template <int N>
    static __device__ __forceinline__ void across(float (&values)[OWN][N / 4], const E *own,
                                                  const E *other)
    {
        uint32_t lane = threadIdx.x % WARP;
        const E *a_row = own + (threadIdx.x / WARP * 16 + lane % 16) * STRIDE + lane / 16 * 8;
        const E *b_row = other + (lane % 8 + lane / 16 * 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int k = 0; k < D; k += 16) {
            uint32_t a[4], b[4];
            ptx_load_matrices(a, a_row + k);
#pragma unroll
            for (int n = 0; n < N; n += 16) {
                float *low = &values[0][n / 4], *high = &values[1][n / 4];
                ptx_load_matrices(b, b_row + n * STRIDE + k);
                ptx_mma(low[0], low[1], high[0], high[1], a, b[0], b[1]);
                ptx_mma(low[2], low[3], high[2], high[3], a, b[2], b[3]);
            }
        }
    }

    static __device__ __forceinline__ uint32_t pair(const float *values)
    {
        bf16 low = __float2bfloat16_rn(values[0]), high = __float2bfloat16_rn(values[1]);
        return (uint32_t)__bfloat16_as_ushort(low) | (uint32_t)__bfloat16_as_ushort(high) << 16;
    }

    /* A D fragment of values is an A fragment of the next product as it stands. */
    template <int N>
    static __device__ __forceinline__ void
    along(float (&accumulated)[OWN][D / 4], const float (&values)[OWN][N / 4], const E *other, E *)
    {
        uint32_t lane = threadIdx.x % WARP;
        const E *b_row = other + lane % 16 * STRIDE + lane / 16 * 8;
#pragma unroll
        for (int k = 0; k < N; k += 16) {
            uint32_t a[4] = {pair(&values[0][k / 4]), pair(&values[1][k / 4]),
                             pair(&values[0][k / 4 + 2]), pair(&values[1][k / 4 + 2])};
#pragma unroll
            for (int d = 0; d < D; d += 16) {
                float *low = &accumulated[0][d / 4], *high = &accumulated[1][d / 4];
                uint32_t b[4];
                ptx_load_transposed(b, b_row + k * STRIDE + d);
                ptx_mma(low[0], low[1], high[0], high[1], a, b[0], b[1]);
                ptx_mma(low[2], low[3], high[2], high[3], a, b[2], b[3]);
            }
        }
    }

    /* The tile loaded STAGES - 1 loads ago is there, for all threads. */
    static __device__ __forceinline__ void arrive()
    {
        ptx_copy_commit();
        ptx_copy_wait<STAGES - 1>();
        __syncthreads();
    }
};

/* -- Ordinary units: fp32 -- */

template <int D_> struct plain_cores {
    typedef float E;
    static constexpr int D = D_;
    static constexpr int ROWS = 32, OWN = 1, STAGES = 1;
    static constexpr int STRIDE = D + 1;

    static __device__ __forceinline__ int row(int) { return (int)(threadIdx.x / 4); }

    static __device__ __forceinline__ int column(int i) { return (int)(threadIdx.x % 4) + 4 * i; }

    static __device__ __forceinline__ int channel(int i) { return column(i); }

    template <int N> static __device__ __forceinline__ void load(E *tile, const head_rows<E> &rows)
    {
        for (int i = (int)threadIdx.x; i < N * D; i += (int)ATTENTION_THREADS) {
            int r = i / D, c = i % D;
            bool there = rows.first + r < rows.end && (uint32_t)c < rows.depth;
            const E *from = rows.at + (uint64_t)(rows.first + r) * rows.stride + c;
            tile[r * STRIDE + c] = there ? *from : 0.0f;
        }
    }

    template <int N>
    static __device__ __forceinline__ void across(float (&values)[OWN][N / 4], const E *own,
                                                  const E *other)
    {
        const E *a = own + row(0) * STRIDE;
        for (int d = 0; d < D; d++)
#pragma unroll
            for (int i = 0; i < N / 4; i++)
                values[0][i] = fmaf(a[d], other[column(i) * STRIDE + d], values[0][i]);
    }

    /* Four lanes need each other's values: by way of exchange, [ROWS, N + 1] of shared memory. */
    template <int N>
    static __device__ __forceinline__ void along(float (&accumulated)[OWN][D / 4],
                                                 const float (&values)[OWN][N / 4], const E *other,
                                                 E *exchange)
    {
        E *mine = exchange + row(0) * (N + 1);
        __syncwarp();
#pragma unroll
        for (int i = 0; i < N / 4; i++)
            mine[column(i)] = values[0][i];
        __syncwarp();
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < D / 4; i++)
                accumulated[0][i] =
                    fmaf(mine[n], other[n * STRIDE + channel(i)], accumulated[0][i]);
    }

    static __device__ __forceinline__ void arrive()
    {
        __syncthreads();
    }
};

/* -- What both have in common -- */

/* Over the four lanes that share a row. */
static __device__ __forceinline__ float row_sum(float value)
{
    value += __shfl_xor_sync(ALL_LANES, value, 1);
    return value + __shfl_xor_sync(ALL_LANES, value, 2);
}

static __device__ __forceinline__ float row_max(float value)
{
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL_LANES, value, 2));
}

/* The thread's rows of accumulated, times factor[h], to memory. */
template <class C>
static __device__ __forceinline__ void store_rows(const head_rows<typename C::E> &rows,
                                                  const float (&accumulated)[C::OWN][C::D / 4],
                                                  const float (&factor)[C::OWN])
{
#pragma unroll
    for (int h = 0; h < C::OWN; h++) {
        uint32_t r = rows.first + (uint32_t)C::row(h);
        if (r >= rows.end)
            continue;
        typename C::E *to = rows.at + (uint64_t)r * rows.stride;
#pragma unroll
        for (int i = 0; i < C::D / 4; i++)
            if ((uint32_t)C::channel(i) < rows.depth)
                put(to + C::channel(i), accumulated[h][i] * factor[h]);
    }
}

/* Calls launcher.run<cores>() with the cores for this shape. */
static inline bool attention_is_wide(const gpu_attention_shape &shape,
                                     const gpu_attention_array *arrays, int count)
{
    bool wide = shape.depth % 8 == 0;
    for (int i = 0; i < count; i++)
        wide = wide && arrays[i].stride % 8 == 0 && (uintptr_t)arrays[i].at % 16 == 0;
    return wide;
}

template <class L> static inline cudaError_t attention_launch(const L &launcher, bool wide)
{
    const gpu_attention_shape &shape = launcher.shape();
    if (shape.depth == 0 || shape.depth > GPU_ATTENTION_DEPTH || shape.batch > GPU_ATTENTION_GRID ||
        shape.heads > GPU_ATTENTION_GRID)
        return cudaErrorInvalidValue;
    if (!shape.bf16)
        return shape.depth <= 64 ? launcher.template run<plain_cores<64>>()
                                 : launcher.template run<plain_cores<128>>();
    if (!wide)
        return shape.depth <= 64 ? launcher.template run<tensor_cores<64, false>>()
                                 : launcher.template run<tensor_cores<128, false>>();
    if (shape.depth <= 32)
        return launcher.template run<tensor_cores<32, true>>();
    return shape.depth <= 64 ? launcher.template run<tensor_cores<64, true>>()
                             : launcher.template run<tensor_cores<128, true>>();
}

#endif
