/*
 * Forward: a block has ROWS queries of a head, and goes through the keys and values before them in
 * tiles, the next tile on its way while one is computed with. The softmax is the online one: sums
 * so far are scaled down when a larger score turns up. Exponentials are of base 2, which is what
 * the hardware has. The blocks with most keys come first, so that the short ones fill the end.
 */
#include "model/cuda/attention_tile.cuh"

#define LOG2_E 1.4426950408889634f
#define LN_2   0.6931471805599453f

template <class C> struct forward_memory {
    typedef typename C::E E;
    static constexpr int TILE = C::ROWS * C::STRIDE;
    E *queries, *keys, *values, *exchange;

    __device__ explicit forward_memory(unsigned char *shared)
        : queries(reinterpret_cast<E *>(shared)), keys(queries + TILE),
          values(keys + C::STAGES * TILE), exchange(values + C::STAGES * TILE)
    {
    }
    static constexpr size_t bytes()
    {
        return ((1 + 2 * C::STAGES) * TILE + (C::OWN == 1 ? C::ROWS * (C::ROWS + 1) : 0)) *
               sizeof(E);
    }
};

template <class C> struct softmax_rows {
    float most[C::OWN], sum[C::OWN], factor[C::OWN];

    /* Scores become exponentials; what was accumulated is to be multiplied by factor. */
    template <int N>
    __device__ __forceinline__ void take(float (&s)[C::OWN][N / 4], uint32_t first_row,
                                         uint32_t first_column, float scale)
    {
#pragma unroll
        for (int h = 0; h < C::OWN; h++) {
            uint32_t row = first_row + (uint32_t)C::row(h);
            float before = most[h];
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                bool seen = first_column + (uint32_t)C::column(i) <= row;
                s[h][i] = seen ? s[h][i] * scale : -INFINITY;
                most[h] = fmaxf(most[h], s[h][i]);
            }
            most[h] = row_max(most[h]);
            factor[h] = exp2f(before - most[h]);
            sum[h] *= factor[h];
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                s[h][i] = exp2f(s[h][i] - most[h]);
                sum[h] += s[h][i];
            }
        }
    }
};

template <class C>
static __device__ __forceinline__ void load_keys(const struct gpu_attention_forward &p,
                                                 const forward_memory<C> &memory, uint32_t head,
                                                 uint32_t batch, uint32_t tile)
{
    typedef typename C::E E;
    int at = (int)(tile % C::STAGES) * memory.TILE;
    uint32_t first = tile * C::ROWS;
    C::template load<C::ROWS>(memory.keys + at, rows_of<E>(p.k, p.shape, batch, head, first));
    C::template load<C::ROWS>(memory.values + at, rows_of<E>(p.v, p.shape, batch, head, first));
}

template <class C>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_forward_kernel(struct gpu_attention_forward p)
{
    typedef typename C::E E;
    constexpr int N = C::ROWS;
    SHARED(shared);
    forward_memory<C> memory(shared);
    uint32_t head = blockIdx.y, batch = blockIdx.z;
    uint32_t kv_head = head / (p.shape.heads / p.shape.kv_heads);
    uint32_t first = (gridDim.x - 1 - blockIdx.x) * C::ROWS, tiles = first / N + 1;
    float scale = LOG2_E / sqrtf((float)p.shape.depth);
    float accumulated[C::OWN][C::D / 4] = {};
    softmax_rows<C> softmax;
#pragma unroll
    for (int h = 0; h < C::OWN; h++) {
        softmax.most[h] = -INFINITY;
        softmax.sum[h] = 0.0f;
    }
    C::template load<N>(memory.queries, rows_of<E>(p.q, p.shape, batch, head, first));
    if (C::STAGES == 2) {
        load_keys(p, memory, kv_head, batch, 0);
        ptx_copy_commit();
    }
    for (uint32_t tile = 0; tile < tiles; tile++) {
        if (tile + C::STAGES - 1 < tiles)
            load_keys(p, memory, kv_head, batch, tile + C::STAGES - 1);
        C::arrive();
        int at = (int)(tile % C::STAGES) * memory.TILE;
        float s[C::OWN][N / 4] = {};
        C::template across<N>(s, memory.queries, memory.keys + at);
        softmax.template take<N>(s, first, tile * N, scale);
#pragma unroll
        for (int h = 0; h < C::OWN; h++)
#pragma unroll
            for (int i = 0; i < C::D / 4; i++)
                accumulated[h][i] *= softmax.factor[h];
        C::template along<N>(accumulated, s, memory.values + at, memory.exchange);
        /* The next turn loads into the stage that was computed with. */
        __syncthreads();
    }
    float inverse[C::OWN];
#pragma unroll
    for (int h = 0; h < C::OWN; h++) {
        float sum = row_sum(softmax.sum[h]);
        uint32_t row = first + (uint32_t)C::row(h);
        inverse[h] = 1.0f / sum;
        if (row < p.shape.seq && threadIdx.x % 4 == 0)
            p.log_sum[((uint64_t)batch * p.shape.heads + head) * p.shape.seq + row] =
                softmax.most[h] * LN_2 + logf(sum);
    }
    store_rows<C>(rows_of<E>(p.out, p.shape, batch, head, first), accumulated, inverse);
}

struct forward_launcher {
    const struct gpu_attention_forward *args;
    cudaStream_t stream;

    const gpu_attention_shape &shape() const { return args->shape; }

    template <class C> cudaError_t run() const
    {
        launch_shape launch_with = {};
        launch_with.grid =
            dim3((unsigned)blocks_for(shape().seq, C::ROWS), shape().heads, shape().batch);
        launch_with.block = dim3(ATTENTION_THREADS);
        launch_with.shared_bytes = forward_memory<C>::bytes();
        return launch(attention_forward_kernel<C>, launch_with, stream, *args);
    }
};

cudaError_t gpu_attention_forward(const struct gpu_attention_forward *args, cudaStream_t stream)
{
    const gpu_attention_array arrays[] = {args->q, args->k, args->v};
    forward_launcher launcher = {args, stream};
    return attention_launch(launcher, attention_is_wide(args->shape, arrays, 3));
}
