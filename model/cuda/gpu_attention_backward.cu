/*
 * Backward, in three kernels. With P the probabilities, dP = dO V^T and delta = the sum of dO O of
 * a row: dS = P (dP - delta), dV = P^T dO, dK = dS^T Q / sqrt(depth), dQ = dS K / sqrt(depth). P is
 * computed again from the scores and the kept log sum exp. In the second kernel a block has ROWS
 * keys and goes through the queries after them, all products transposed, so that what it adds up
 * stays in registers; in the third it has ROWS queries and goes through the keys before them.
 */
#include "model/cuda/attention_tile.cuh"

#define LOG2_E     1.4426950408889634f
#define DELTA_ROWS 8u

/* Rows of the tiles that pass by: with 64 of them, one block would fill an SM of 100 KiB. */
template <class C> struct passing {
    static constexpr int N = 32;
    static constexpr int TILE = N * C::STRIDE;
};

template <class C> struct backward_memory {
    typedef typename C::E E;
    static constexpr int N = passing<C>::N, OWN_TILE = C::ROWS * C::STRIDE;
    E *first, *second; /* own */
    E *passing_first, *passing_second;
    E *exchange;
    float *log_sum, *delta; /* [STAGES, N]: of passing queries */

    __device__ explicit backward_memory(unsigned char *shared)
        : first(reinterpret_cast<E *>(shared)), second(first + OWN_TILE),
          passing_first(second + OWN_TILE),
          passing_second(passing_first + C::STAGES * passing<C>::TILE),
          exchange(passing_second + C::STAGES * passing<C>::TILE),
          log_sum(reinterpret_cast<float *>(exchange + EXCHANGE)), delta(log_sum + C::STAGES * N)
    {
    }
    static constexpr int EXCHANGE = C::OWN == 1 ? C::ROWS * (N + 1) : 0;
    static constexpr size_t bytes()
    {
        return (2 * OWN_TILE + 2 * C::STAGES * passing<C>::TILE + EXCHANGE) * sizeof(E) +
               2 * C::STAGES * N * sizeof(float);
    }
};

/* -- delta: a warp has a row of a head -- */

template <class E> __global__ void attention_delta_kernel(struct gpu_attention_backward p)
{
    uint32_t lane = threadIdx.x % WARP, t = blockIdx.x * DELTA_ROWS + threadIdx.x / WARP;
    if (t >= p.shape.seq)
        return;
    head_rows<const E> out = rows_of<const E>(p.out, p.shape, blockIdx.z, blockIdx.y, 0);
    head_rows<const E> dout = rows_of<const E>(p.dout, p.shape, blockIdx.z, blockIdx.y, 0);
    float sum = 0.0f;
    for (uint32_t c = lane; c < p.shape.depth; c += WARP)
        sum += to_float(out.at[(uint64_t)t * out.stride + c]) *
               to_float(dout.at[(uint64_t)t * dout.stride + c]);
    sum = warp_sum(sum);
    if (lane == 0)
        p.delta[((uint64_t)blockIdx.z * p.shape.heads + blockIdx.y) * p.shape.seq + t] = sum;
}

/* -- The gradients of keys and values -- */

/* Step `step` of a block: a tile of queries of one of the heads that share its keys. */
struct query_step {
    uint32_t head, first;
};

template <class C>
static __device__ __forceinline__ void load_queries(const struct gpu_attention_backward &p,
                                                    const backward_memory<C> &memory,
                                                    const query_step &step, uint32_t stage)
{
    typedef typename C::E E;
    constexpr int N = passing<C>::N;
    int at = (int)stage * passing<C>::TILE;
    C::template load<N>(memory.passing_first + at,
                        rows_of<E>(p.q, p.shape, blockIdx.z, step.head, step.first));
    C::template load<N>(memory.passing_second + at,
                        rows_of<E>(p.dout, p.shape, blockIdx.z, step.head, step.first));
    uint32_t query = step.first + threadIdx.x;
    if (threadIdx.x >= (uint32_t)N)
        return;
    uint64_t row = ((uint64_t)blockIdx.z * p.shape.heads + step.head) * p.shape.seq + query;
    bool there = query < p.shape.seq;
    memory.log_sum[stage * N + threadIdx.x] = there ? p.log_sum[row] * LOG2_E : 0.0f;
    memory.delta[stage * N + threadIdx.x] = there ? p.delta[row] : 0.0f;
}

template <class C>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_keys_kernel(struct gpu_attention_backward p)
{
    typedef typename C::E E;
    constexpr int N = passing<C>::N;
    SHARED(shared);
    backward_memory<C> memory(shared);
    uint32_t kv_head = blockIdx.y, batch = blockIdx.z, first = blockIdx.x * C::ROWS;
    uint32_t group = p.shape.heads / p.shape.kv_heads, first_tile = first / N;
    uint32_t tiles = (p.shape.seq + N - 1) / N - first_tile, steps = group * tiles;
    float root = 1.0f / sqrtf((float)p.shape.depth), scale = LOG2_E * root;
    float dk[C::OWN][C::D / 4] = {}, dv[C::OWN][C::D / 4] = {};
    auto step_of = [&](uint32_t step) {
        return query_step{kv_head * group + step / tiles, (first_tile + step % tiles) * N};
    };
    C::template load<C::ROWS>(memory.first, rows_of<E>(p.k, p.shape, batch, kv_head, first));
    C::template load<C::ROWS>(memory.second, rows_of<E>(p.v, p.shape, batch, kv_head, first));
    if (C::STAGES == 2) {
        load_queries(p, memory, step_of(0), 0);
        ptx_copy_commit();
    }
    for (uint32_t step = 0; step < steps; step++) {
        uint32_t coming = step + C::STAGES - 1, stage = step % C::STAGES;
        if (coming < steps)
            load_queries(p, memory, step_of(coming), coming % C::STAGES);
        C::arrive();
        const E *queries = memory.passing_first + stage * passing<C>::TILE;
        const E *dout = memory.passing_second + stage * passing<C>::TILE;
        const float *log_sum = memory.log_sum + stage * N, *delta = memory.delta + stage * N;
        float s[C::OWN][N / 4] = {}, dp[C::OWN][N / 4] = {};
        C::template across<N>(s, memory.first, queries);
#pragma unroll
        for (int h = 0; h < C::OWN; h++)
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                uint32_t query = step_of(step).first + (uint32_t)C::column(i);
                bool seen = first + (uint32_t)C::row(h) <= query && query < p.shape.seq;
                s[h][i] = seen ? exp2f(s[h][i] * scale - log_sum[C::column(i)]) : 0.0f;
            }
        C::template along<N>(dv, s, dout, memory.exchange);
        C::template across<N>(dp, memory.second, dout);
#pragma unroll
        for (int h = 0; h < C::OWN; h++)
#pragma unroll
            for (int i = 0; i < N / 4; i++)
                s[h][i] *= dp[h][i] - delta[C::column(i)];
        C::template along<N>(dk, s, queries, memory.exchange);
        /* The next turn loads into the stage that was computed with. */
        __syncthreads();
    }
    float one[C::OWN], roots[C::OWN];
#pragma unroll
    for (int h = 0; h < C::OWN; h++) {
        one[h] = 1.0f;
        roots[h] = root;
    }
    store_rows<C>(rows_of<E>(p.dk, p.shape, batch, kv_head, first), dk, roots);
    store_rows<C>(rows_of<E>(p.dv, p.shape, batch, kv_head, first), dv, one);
}

/* -- The gradient of queries -- */

template <class C>
static __device__ __forceinline__ void load_keys(const struct gpu_attention_backward &p,
                                                 const backward_memory<C> &memory, uint32_t head,
                                                 uint32_t tile)
{
    typedef typename C::E E;
    constexpr int N = passing<C>::N;
    int at = (int)(tile % C::STAGES) * passing<C>::TILE;
    C::template load<N>(memory.passing_first + at,
                        rows_of<E>(p.k, p.shape, blockIdx.z, head, tile * N));
    C::template load<N>(memory.passing_second + at,
                        rows_of<E>(p.v, p.shape, blockIdx.z, head, tile * N));
}

template <class C>
__global__ void __launch_bounds__(ATTENTION_THREADS)
    attention_queries_kernel(struct gpu_attention_backward p)
{
    typedef typename C::E E;
    constexpr int N = passing<C>::N;
    SHARED(shared);
    backward_memory<C> memory(shared);
    uint32_t head = blockIdx.y, batch = blockIdx.z;
    uint32_t kv_head = head / (p.shape.heads / p.shape.kv_heads);
    uint32_t first = (gridDim.x - 1 - blockIdx.x) * C::ROWS;
    uint32_t end = min(first + C::ROWS, p.shape.seq), tiles = (end + N - 1) / N;
    float root = 1.0f / sqrtf((float)p.shape.depth), scale = LOG2_E * root;
    float dq[C::OWN][C::D / 4] = {}, log_sum[C::OWN], delta[C::OWN], roots[C::OWN];
#pragma unroll
    for (int h = 0; h < C::OWN; h++) {
        uint32_t row = min(first + (uint32_t)C::row(h), p.shape.seq - 1);
        uint64_t at = ((uint64_t)batch * p.shape.heads + head) * p.shape.seq + row;
        log_sum[h] = p.log_sum[at] * LOG2_E;
        delta[h] = p.delta[at];
        roots[h] = root;
    }
    C::template load<C::ROWS>(memory.first, rows_of<E>(p.q, p.shape, batch, head, first));
    C::template load<C::ROWS>(memory.second, rows_of<E>(p.dout, p.shape, batch, head, first));
    if (C::STAGES == 2) {
        load_keys(p, memory, kv_head, 0);
        ptx_copy_commit();
    }
    for (uint32_t tile = 0; tile < tiles; tile++) {
        if (tile + C::STAGES - 1 < tiles)
            load_keys(p, memory, kv_head, tile + C::STAGES - 1);
        C::arrive();
        const E *keys = memory.passing_first + (tile % C::STAGES) * passing<C>::TILE;
        const E *values = memory.passing_second + (tile % C::STAGES) * passing<C>::TILE;
        float s[C::OWN][N / 4] = {}, dp[C::OWN][N / 4] = {};
        C::template across<N>(s, memory.first, keys);
        C::template across<N>(dp, memory.second, values);
#pragma unroll
        for (int h = 0; h < C::OWN; h++)
#pragma unroll
            for (int i = 0; i < N / 4; i++) {
                uint32_t key = tile * N + (uint32_t)C::column(i);
                bool seen = key <= first + (uint32_t)C::row(h);
                float probability = seen ? exp2f(s[h][i] * scale - log_sum[h]) : 0.0f;
                s[h][i] = probability * (dp[h][i] - delta[h]);
            }
        C::template along<N>(dq, s, keys, memory.exchange);
        /* The next turn loads into the stage that was computed with. */
        __syncthreads();
    }
    store_rows<C>(rows_of<E>(p.dq, p.shape, batch, head, first), dq, roots);
}

/* -- Launching -- */

struct backward_launcher {
    const struct gpu_attention_backward *args;
    cudaStream_t stream;

    const gpu_attention_shape &shape() const { return args->shape; }

    template <class C> cudaError_t run() const
    {
        launch_shape delta = {}, keys = {}, queries = {};
        delta.grid =
            dim3((unsigned)blocks_for(shape().seq, DELTA_ROWS), shape().heads, shape().batch);
        delta.block = dim3(DELTA_ROWS * WARP);
        keys.grid =
            dim3((unsigned)blocks_for(shape().seq, C::ROWS), shape().kv_heads, shape().batch);
        keys.block = dim3(ATTENTION_THREADS);
        keys.shared_bytes = backward_memory<C>::bytes();
        queries = keys;
        queries.grid.y = shape().heads;
        cudaError_t error = launch(attention_delta_kernel<typename C::E>, delta, stream, *args);
        if (!error)
            error = launch(attention_keys_kernel<C>, keys, stream, *args);
        if (!error)
            error = launch(attention_queries_kernel<C>, queries, stream, *args);
        return error;
    }
};

cudaError_t gpu_attention_backward(const struct gpu_attention_backward *args, cudaStream_t stream)
{
    const gpu_attention_array arrays[] = {args->q, args->k, args->v, args->dout};
    backward_launcher launcher = {args, stream};
    return attention_launch(launcher, attention_is_wide(args->shape, arrays, 4));
}
