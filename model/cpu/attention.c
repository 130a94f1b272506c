/*
 * Causal attention without a T x T matrix: FlashAttention-2 (Dao 2023, "FlashAttention-2: faster
 * attention with better parallelism and work partitioning"), algorithms 1 and 2. Tiles of
 * ATTENTION_TILE queries and keys; the products of tiles are matmul's, which on the diagonal need
 * only compute what is not masked. Forward's task is one tile of queries of one head, backward's is
 * a whole head: a key's gradient is the sum over queries and a query's over keys, and one task
 * keeps both in a fixed order without a second computation of the scores.
 */
#include "core/mem.h"
#include "model/cpu/device.h"
#include <math.h>

/* A worker's buffer. In fp32 the probabilities replace the scores where they stand. */
struct tile_memory {
    float *scores, *dp;             /* [tile, tile] */
    void *p, *ds;                   /* E [tile, tile] */
    float *output, *dk;             /* [tile, depth]; output also holds dv */
    float *maximum, *sum, *rescale; /* [tile] */
    void *keys, *values, *keys_dq;  /* panels of a tile of keys, for scores, dp and dq */
};

static uint64_t lay_out(const struct kernels *k, uint8_t *base, struct tile_memory *memory)
{
    const struct kernels_shape *shape = &k->shape;
    const struct attention *attention = &k->attention;
    uint64_t square = (uint64_t)ATTENTION_TILE * ATTENTION_TILE;
    uint64_t slab = mul_checked(ATTENTION_TILE, attention->depth) * sizeof(float);
    bool narrow = shape->precision == PRECISION_BF16;
    uint64_t used = 0;
    uint64_t scores = layout_take(&used, square * sizeof(float));
    uint64_t dp = layout_take(&used, square * sizeof(float));
    uint64_t p = narrow ? layout_take(&used, square * sizeof(uint16_t)) : scores;
    uint64_t ds = narrow ? layout_take(&used, square * sizeof(uint16_t)) : dp;
    uint64_t output = layout_take(&used, slab);
    uint64_t dk = layout_take(&used, slab);
    uint64_t statistics = layout_take(&used, 3 * ATTENTION_TILE * sizeof(float));
    /* No pair's panel is larger than a whole one's. */
    uint64_t along = matmul_panel_bytes(k->matmul, attention->scores[PAIR_WHOLE]);
    uint64_t keys = layout_take(&used, along), values = layout_take(&used, along);
    uint64_t keys_dq =
        layout_take(&used, matmul_panel_bytes(k->matmul, attention->dq[0][PAIR_WHOLE]));
    if (memory) {
        *memory = (struct tile_memory){
            .scores = (float *)(base + scores),
            .dp = (float *)(base + dp),
            .p = base + p,
            .ds = base + ds,
            .output = (float *)(base + output),
            .dk = (float *)(base + dk),
            .maximum = (float *)(base + statistics),
            .keys = base + keys,
            .values = base + values,
            .keys_dq = base + keys_dq,
        };
        memory->sum = memory->maximum + ATTENTION_TILE;
        memory->rescale = memory->sum + ATTENTION_TILE;
    }
    return used;
}

uint64_t attention_worker_bytes(const struct kernels *k)
{
    return lay_out(k, NULL, NULL);
}

/* Products of one kind of pair; q and n are the tiles' sizes. */
static void declare(struct attention *attention, const struct kernels_shape *shape,
                    struct matmul *matmul, enum attention_pair pair)
{
    uint32_t channels = shape->channels, depth = attention->depth;
    bool diagonal = pair >= PAIR_DIAGONAL;
    bool last = pair == PAIR_LAST || pair == PAIR_DIAGONAL_LAST;
    uint32_t q = tile_extent(shape->seq, attention->tile, last ? attention->tile_count - 1 : 0);
    uint32_t n = diagonal ? q : attention->tile;
    enum precision precision = shape->precision;
    struct matmul_product scores = {.m = q,
                                    .n = n,
                                    .k = depth,
                                    .a_stride = 3 * channels,
                                    .b_stride = 3 * channels,
                                    .c_stride = ATTENTION_TILE,
                                    .b_transposed = true,
                                    .precision = precision,
                                    .part = diagonal ? MATMUL_C_LOWER : MATMUL_WHOLE};
    attention->scores[pair] = matmul_declare(matmul, &scores);
    struct matmul_product dp = scores;
    dp.a_stride = channels;
    attention->dp[pair] = matmul_declare(matmul, &dp);
    for (unsigned accumulate = 0; accumulate < 2; accumulate++) {
        struct matmul_product output = {.m = q,
                                        .n = depth,
                                        .k = n,
                                        .a_stride = ATTENTION_TILE,
                                        .b_stride = 3 * channels,
                                        .c_stride = depth,
                                        .accumulate = accumulate,
                                        .precision = precision,
                                        .part = diagonal ? MATMUL_A_LOWER : MATMUL_WHOLE};
        attention->output[accumulate][pair] = matmul_declare(matmul, &output);
        struct matmul_product dq = output;
        dq.c_stride = channels;
        attention->dq[accumulate][pair] = matmul_declare(matmul, &dq);
        struct matmul_product dk = output;
        dk.m = n;
        dk.k = q;
        dk.a_transposed = true;
        dk.part = diagonal ? MATMUL_A_UPPER : MATMUL_WHOLE;
        attention->dk[accumulate][pair] = matmul_declare(matmul, &dk);
        struct matmul_product dv = dk;
        dv.b_stride = channels;
        attention->dv[accumulate][pair] = matmul_declare(matmul, &dv);
    }
}

void attention_init(struct attention *attention, const struct kernels_shape *shape,
                    struct matmul *matmul)
{
    ASSERT(shape->channels % shape->heads == 0);
    *attention = (struct attention){
        .tile = tile_size(shape->seq, ATTENTION_TILE),
        .depth = shape->channels / shape->heads,
    };
    attention->tile_count = (uint32_t)div_up(shape->seq, attention->tile);
    attention->scale = 1.0f / sqrtf((float)attention->depth);
    for (unsigned pair = 0; pair < PAIR_KINDS; pair++)
        declare(attention, shape, matmul, (enum attention_pair)pair);
}

static enum attention_pair pair_of(const struct attention *attention, uint32_t query_tile,
                                   uint32_t key_tile)
{
    ASSERT(key_tile <= query_tile && query_tile < attention->tile_count);
    bool last = query_tile + 1 == attention->tile_count;
    if (query_tile == key_tile)
        return last ? PAIR_DIAGONAL_LAST : PAIR_DIAGONAL;
    return last ? PAIR_LAST : PAIR_WHOLE;
}

/* Where the first row of a tile is in an array of rows; and a head's statistics. */
static size_t row_of(const struct kernels *k, uint32_t batch, uint32_t tile)
{
    return (size_t)batch * k->shape.seq + (size_t)tile * k->attention.tile;
}

static struct rows_scores tile_scores(const struct kernels *k, const struct tile_memory *memory,
                                      uint32_t query_tile, uint32_t key_tile)
{
    const struct attention *attention = &k->attention;
    return (struct rows_scores){
        .scores = memory->scores,
        .stride = ATTENTION_TILE,
        .rows = tile_extent(k->shape.seq, attention->tile, query_tile),
        .columns = tile_extent(k->shape.seq, attention->tile, key_tile),
        .query_first = query_tile * attention->tile,
        .key_first = key_tile * attention->tile,
        .scale = attention->scale,
        .bf16 = k->bf16,
    };
}

/* A head's rows of qkv from a tile on: which is 0 for q, 1 for k, 2 for v. */
static const void *qkv_at(const struct kernels *k, const void *qkv, uint32_t batch, uint32_t head,
                          uint32_t tile, uint32_t which)
{
    size_t at = row_of(k, batch, tile) * 3 * k->shape.channels + (size_t)which * k->shape.channels +
                (size_t)head * k->attention.depth;
    return element_at(qkv, at, k->shape.precision);
}

/* The same for an array [R, C]. */
static size_t head_at(const struct kernels *k, uint32_t batch, uint32_t head, uint32_t tile)
{
    return row_of(k, batch, tile) * k->shape.channels + (size_t)head * k->attention.depth;
}

/* -- Forward -- */

struct forward {
    struct kernels *k;
    const struct attention_forward *args;
};

/* Output = probabilities times values, and the logarithm of the sum that makes them so. */
static void forward_end(const struct kernels *k, const struct attention_forward *args,
                        const struct tile_memory *memory, uint32_t batch, uint32_t head,
                        uint32_t tile)
{
    uint32_t rows = tile_extent(k->shape.seq, k->attention.tile, tile);
    float *log_sum = args->log_sum + ((size_t)batch * k->shape.heads + head) * k->shape.seq +
                     (size_t)tile * k->attention.tile;
    for (uint32_t r = 0; r < rows; r++) {
        log_sum[r] = memory->maximum[r] + logf(memory->sum[r]);
        memory->rescale[r] = 1.0f / memory->sum[r];
    }
    void *out = element_at_mutable(args->out, head_at(k, batch, head, tile), k->shape.precision);
    k->rows->scale_store(memory->output, k->attention.depth, rows, k->attention.depth,
                         memory->rescale, out, k->shape.channels, k->bf16);
}

static void forward_task(void *context, uint32_t task, uint32_t worker)
{
    const struct forward *forward = context;
    const struct kernels *k = forward->k;
    const struct attention *attention = &k->attention;
    const void *qkv = forward->args->qkv;
    /* The longest rows first, so that no worker is left with one at the end. */
    uint32_t tile = attention->tile_count - 1 - task / (k->shape.batch * k->shape.heads);
    uint32_t batch = task % (k->shape.batch * k->shape.heads) / k->shape.heads;
    uint32_t head = task % k->shape.heads;
    struct tile_memory memory;
    lay_out(k, worker_memory(k, worker), &memory);
    for (uint32_t r = 0; r < attention->tile; r++) {
        memory.maximum[r] = -INFINITY;
        memory.sum[r] = 0.0f;
    }
    mem_library_enter();
    const void *query = qkv_at(k, qkv, batch, head, tile, 0);
    for (uint32_t key = 0; key <= tile; key++) {
        enum attention_pair pair = pair_of(attention, tile, key);
        struct rows_scores scores = tile_scores(k, &memory, tile, key);
        matmul_run(k->matmul, attention->scores[pair], worker, query,
                   qkv_at(k, qkv, batch, head, key, 1), memory.scores);
        k->rows->softmax(&scores, memory.maximum, memory.sum, memory.p, memory.rescale);
        if (key > 0)
            k->rows->scale_rows(memory.output, attention->depth, scores.rows, attention->depth,
                                memory.rescale);
        matmul_run(k->matmul, attention->output[key > 0][pair], worker, memory.p,
                   qkv_at(k, qkv, batch, head, key, 2), memory.output);
    }
    mem_library_leave();
    forward_end(k, forward->args, &memory, batch, head, tile);
}

void attention_forward(struct kernels *k, const struct attention_forward *args)
{
    struct forward forward = {k, args};
    pool_run(k->pool, forward_task, &forward,
             k->shape.batch * k->shape.heads * k->attention.tile_count);
}

/* -- Backward -- */

struct backward {
    struct kernels *k;
    const struct attention_backward *args;
};

/* delta[t] = dout . out of a head's rows (Dao 2023, algorithm 2, line 4). */
static void compute_delta(const struct kernels *k, const struct attention_backward *args,
                          uint32_t batch, uint32_t head, float *delta)
{
    enum precision precision = k->shape.precision;
    for (uint32_t t = 0; t < k->shape.seq; t++) {
        size_t at = head_at(k, batch, head, 0) + (size_t)t * k->shape.channels;
        delta[t] = k->rows->dot(element_at(args->dout, at, precision),
                                element_at(args->out, at, precision), k->attention.depth, k->bf16);
    }
}

/* All queries against one tile of keys: adds to dq, and finishes dk and dv. */
static void backward_keys(const struct kernels *k, const struct attention_backward *args,
                          const struct tile_memory *memory, uint32_t batch, uint32_t head,
                          uint32_t key, uint32_t worker)
{
    const struct attention *attention = &k->attention;
    enum precision precision = k->shape.precision;
    size_t statistics = ((size_t)batch * k->shape.heads + head) * k->shape.seq;
    enum attention_pair diagonal = pair_of(attention, key, key);
    const void *first = qkv_at(k, args->qkv, batch, head, key, 1);
    struct matmul_panel keys =
        matmul_prepare(k->matmul, attention->scores[diagonal], first, memory->keys);
    struct matmul_panel keys_dq =
        matmul_prepare(k->matmul, attention->dq[0][diagonal], first, memory->keys_dq);
    struct matmul_panel values =
        matmul_prepare(k->matmul, attention->dp[diagonal],
                       qkv_at(k, args->qkv, batch, head, key, 2), memory->values);
    for (uint32_t tile = key; tile < attention->tile_count; tile++) {
        enum attention_pair pair = pair_of(attention, tile, key);
        const void *query = qkv_at(k, args->qkv, batch, head, tile, 0);
        const void *dout = element_at(args->dout, head_at(k, batch, head, tile), precision);
        size_t row = statistics + (size_t)tile * attention->tile;
        struct rows_scores scores = tile_scores(k, memory, tile, key);
        matmul_apply(k->matmul, attention->scores[pair], worker, query, &keys, memory->scores);
        matmul_apply(k->matmul, attention->dp[pair], worker, dout, &values, memory->dp);
        k->rows->softmax_backward(&scores, args->log_sum + row, args->delta + row, memory->dp,
                                  memory->p, memory->ds);
        matmul_run(k->matmul, attention->dv[tile > key][pair], worker, memory->p, dout,
                   memory->output);
        matmul_run(k->matmul, attention->dk[tile > key][pair], worker, memory->ds, query,
                   memory->dk);
        matmul_apply(k->matmul, attention->dq[key > 0][pair], worker, memory->ds, &keys_dq,
                     args->dq + head_at(k, batch, head, tile));
    }
}

static void backward_task(void *context, uint32_t task, uint32_t worker)
{
    const struct backward *backward = context;
    const struct kernels *k = backward->k;
    const struct attention_backward *args = backward->args;
    const struct attention *attention = &k->attention;
    uint32_t batch = task / k->shape.heads, head = task % k->shape.heads;
    uint32_t depth = attention->depth, wide = 3 * k->shape.channels;
    struct tile_memory memory;
    lay_out(k, worker_memory(k, worker), &memory);
    compute_delta(k, args, batch, head, args->delta + (size_t)task * k->shape.seq);
    mem_library_enter();
    for (uint32_t key = 0; key < attention->tile_count; key++) {
        uint32_t rows = tile_extent(k->shape.seq, attention->tile, key);
        backward_keys(k, args, &memory, batch, head, key, worker);
        k->rows->scale_store(memory.dk, depth, rows, depth, NULL,
                             (void *)qkv_at(k, args->dqkv, batch, head, key, 1), wide, k->bf16);
        k->rows->scale_store(memory.output, depth, rows, depth, NULL,
                             (void *)qkv_at(k, args->dqkv, batch, head, key, 2), wide, k->bf16);
    }
    mem_library_leave();
    k->rows->scale_store(args->dq + head_at(k, batch, head, 0), k->shape.channels, k->shape.seq,
                         depth, NULL, (void *)qkv_at(k, args->dqkv, batch, head, 0, 0), wide,
                         k->bf16);
}

void attention_backward(struct kernels *k, const struct attention_backward *args)
{
    struct backward backward = {k, args};
    pool_run(k->pool, backward_task, &backward, k->shape.batch * k->shape.heads);
}
