/*
 * device: the inside of struct kernels on the CPU, shared by the files that implement it: product
 * (tiled matrix products), attention, block, head, and kernels (opening and what is left).
 *
 * Invariants:
 * 1. All tile shapes are computed from struct kernels_shape in one place each (tile_size and the
 *    constants below), but for the rows of a packed task, which also follow the number of workers
 *    and cut no sum: so results do not depend on it.
 * 2. What a task needs as working memory is its worker's buffer or a part of args->scratch that is
 *    its own; both are without meaning when the task has ended.
 */
#ifndef SPILLWAY_MODEL_CPU_DEVICE_H
#define SPILLWAY_MODEL_CPU_DEVICE_H

#include "core/base.h"
#include "core/pool.h"
#include "model/cpu/gemm.h"
#include "model/cpu/matmul.h"
#include "model/cpu/rows.h"
#include "model/kernels.h"

#define DEVICE_ALIGN 64

/* Of a product's result, by the library. Measured on Zen 5: products without a transposed factor,
 * and all in bf16, are within 3 % from 128 x 192 to 1024 x 384; fp32 with a transposed factor is 10
 * % faster with 256 rows than with 128, as it is packed half as often. A tile fits the second
 * cache.
 */
#define PRODUCT_ROWS    256u
#define PRODUCT_COLUMNS 384u

/* Tasks of products are as large as leaves this many for each worker. */
#define TASKS_PER_WORKER 4u

/* Queries and keys of one tile of attention. */
#define ATTENTION_TILE 128u

/* Packed: a panel of b stays in the second cache, 1 MiB on Zen 4. */
#define PANEL_BYTES (640u * 1024)

/* A group of columns of the logits is a panel, if that is neither too narrow nor too wide. A piece
 * of it stays in a worker's second cache, or its first one when packed; a block of rows of them (of
 * one tile in E, or of all tiles in float) in scratch. */
#define HEAD_COLUMNS_MIN 96u
#define HEAD_COLUMNS_MAX 384u
#define HEAD_ROWS        128u
#define HEAD_ROWS_PACKED 16u
#define HEAD_BLOCK_ROWS  512u

/* Rows of one task in passes over rows; columns of one task in sums over rows. */
#define PASS_ROWS    16u
#define SUM_ROWS     64u /* rows whose sums for a LayerNorm's gradient are taken together */
#define PASS_COLUMNS 64u

/* `size` cut into the fewest pieces of at most `most`, all alike but for the last: a small rest
 * would cost as much as a whole piece. Pieces are multiples of 32, or everything. */
static inline uint32_t tile_size(uint32_t size, uint32_t most)
{
    uint32_t count = (uint32_t)div_up(size, most);
    return (uint32_t)MIN(size, round_up(div_up(size, count), 32));
}

/* The size of tile `index` of `size` in tiles of `tile`. */
static inline uint32_t tile_extent(uint32_t size, uint32_t tile, uint32_t index)
{
    ASSERT((uint64_t)index * tile < size);
    return MIN(tile, size - index * tile);
}

static inline const void *element_at(const void *base, size_t index, enum precision precision)
{
    return (const char *)base + index * precision_bytes(precision);
}

static inline void *element_at_mutable(void *base, size_t index, enum precision precision)
{
    return (char *)base + index * precision_bytes(precision);
}

/* -- product.c: C[m, n] (+)= op(A) op(B), cut into tiles, with what follows it. -- */

struct product {
    struct matmul_product whole; /* m, n, k and strides of the whole; accumulate is of no meaning */
    uint32_t row_tile, column_tile;
    bool ended;       /* tiles go through a worker's buffer to an ending */
    bool packed;      /* by gemm, else by matmul */
    uint32_t block_k; /* packed: of k, at a time */
    /* Not packed: [accumulate][last row of tiles][last column], of matmul. */
    uint32_t kinds[2][2][2];
};

enum product_ending {
    ENDING_NONE, /* the product itself, in c */
    ENDING_STORE,
    ENDING_BIAS_STORE,
    ENDING_BIAS_GELU,
    ENDING_BIAS_RESIDUAL,
    ENDING_GELU_BACKWARD,
};

/* One product to run. What an ending does not use is NULL. */
struct product_job {
    const struct product *product;
    const void *a, *b;
    float *c;        /* ENDING_NONE */
    bool accumulate; /* ENDING_NONE */
    enum product_ending ending;
    const void *bias; /* E [n] */
    const void *pre;  /* E [m, n]: read by ENDING_GELU_BACKWARD */
    const float *residual;
    void *out; /* E [m, n]; float for ENDING_BIAS_RESIDUAL; pre for ENDING_BIAS_GELU */
    void *act; /* E [m, n] */
};

/* Adds to what a worker's memory must be. */
void product_init(struct product *product, struct kernels *k, const struct matmul_product *whole,
                  bool ended);
/* Jobs that do not depend on each other, their tiles taken by all workers together. */
void product_run(struct kernels *k, const struct product_job *jobs, uint32_t job_count);

/* -- attention.c -- */

/* A pair of tiles, of queries and of keys: keys are never after all queries. */
enum attention_pair {
    PAIR_WHOLE,
    PAIR_LAST, /* the last queries, of which there may be fewer */
    PAIR_DIAGONAL,
    PAIR_DIAGONAL_LAST,
    PAIR_KINDS
};

struct attention {
    uint32_t tile, tile_count, depth; /* depth: channels of a head */
    float scale;
    uint32_t scores[PAIR_KINDS], dp[PAIR_KINDS]; /* of matmul */
    /* [accumulate] first */
    uint32_t output[2][PAIR_KINDS], dv[2][PAIR_KINDS], dk[2][PAIR_KINDS], dq[2][PAIR_KINDS];
};

void attention_init(struct attention *attention, const struct kernels_shape *shape,
                    struct matmul *matmul);
uint64_t attention_worker_bytes(const struct kernels *k);

struct attention_forward {
    const void *qkv; /* E [R, 3C] */
    void *out;       /* E [R, C] */
    float *log_sum;  /* [B, H, T] */
};
void attention_forward(struct kernels *k, const struct attention_forward *args);

struct attention_backward {
    const void *qkv, *out, *dout; /* E [R, 3C], [R, C], [R, C] */
    const float *log_sum;         /* [B, H, T] */
    float *delta;                 /* [B, H, T]; working memory */
    float *dq;                    /* [R, C]; working memory */
    void *dqkv;                   /* E [R, 3C], written */
};
void attention_backward(struct kernels *k, const struct attention_backward *args);

/* -- block.c -- */

enum block_product {
    PRODUCT_QKV,
    PRODUCT_PROJ,
    PRODUCT_FC,
    PRODUCT_OUT,
    PRODUCT_DQKV, /* the gradient of the qkv product's input; and so on */
    PRODUCT_DPROJ,
    PRODUCT_DFC,
    PRODUCT_DOUT,
    PRODUCT_QKV_GRADIENT, /* of its weight */
    PRODUCT_PROJ_GRADIENT,
    PRODUCT_FC_GRADIENT,
    PRODUCT_OUT_GRADIENT,
    PRODUCT_COUNT
};

void block_init(struct kernels *k);
void block_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes);

/* -- head.c -- */

struct head {
    bool packed;               /* logits by gemm, else by matmul */
    uint32_t rows, block_rows; /* of a piece, and HEAD_BLOCK_ROWS; or R when that is less */
    uint32_t columns;          /* of a group */
    /* Of matmul: [last rows][which columns]: 0 a whole group, 1 the rest of a full tile, 2 the rest
     * of the vocabulary's last tile. */
    uint32_t logits[2][3];
    /* [last block of rows][last tile of the vocabulary] */
    struct product dy[2][2], gradient[2][2];
};

void head_init(struct kernels *k);
uint64_t head_scratch_bytes(const struct kernels_shape *shape);
uint64_t head_once_bytes(const struct kernels_shape *shape);
uint64_t head_worker_bytes(const struct kernels *k);

/* -- kernels.c -- */

/* Where a tensor lies in its group's vector. */
struct tensor_span {
    uint64_t offset, count;
};

struct kernels {
    struct kernels_shape shape;
    uint32_t row_count; /* R */
    bool bf16;
    struct pool *pool;       /* borrowed */
    const struct rows *rows; /* borrowed */
    struct matmul *matmul;   /* owned */
    uint64_t worker_bytes;
    uint8_t *worker_memory; /* owned; [workers, worker_bytes] */
    struct tensor_span block[BLOCK_TENSOR_COUNT], final[2];
    uint64_t block_count, final_count; /* parameters in the groups' vectors */
    struct product products[PRODUCT_COUNT];
    struct attention attention;
    struct head head;
};

/* Of worker_bytes each, when that has its final value. */
void kernels_take_worker_memory(struct kernels *k);

static inline void *worker_memory(const struct kernels *k, uint32_t worker)
{
    ASSERT(worker < pool_thread_count(k->pool));
    return k->worker_memory + worker * k->worker_bytes;
}

/* Columns of a panel of b, which are so many bytes each: as many as stay in the second cache. */
static inline uint32_t panel_columns(uint32_t column_bytes, uint32_t least, uint32_t most)
{
    uint32_t fitting = PANEL_BYTES / column_bytes / GEMM_STRIP_COLUMNS * GEMM_STRIP_COLUMNS;
    return MIN(MAX(fitting, least), most);
}

/* Rows of a packed task, of row_count: `most`, or less (not below `least`) so that with so many
 * panels all workers have some tasks. */
static inline uint32_t packed_rows(const struct kernels *k, uint64_t panels, uint32_t row_count,
                                   uint32_t least, uint32_t most)
{
    uint64_t enough = TASKS_PER_WORKER * (uint64_t)pool_thread_count(k->pool);
    uint32_t rows = most;
    while (rows > least && panels * div_up(row_count, rows) < enough)
        rows /= 2;
    return rows;
}

/* LayerNorm of all rows; statistics [2, R] are written, or read when again is set. */
struct device_norm {
    const float *x;
    const void *weight, *bias;
    float *statistics;
    void *y;
    bool again;
};
void device_norm(struct kernels *k, const struct device_norm *args);

/* LayerNorm's backward over all rows. partial: device_norm_partial_bytes of working memory. */
struct device_norm_backward {
    const float *x, *dy;
    const void *weight;
    const float *statistics;
    float *dx;
    bool accumulate_dx;
    float *dweight, *dbias;
    bool accumulate_gradient;
    float *partial;
};
uint64_t device_norm_partial_bytes(const struct kernels_shape *shape);
void device_norm_backward(struct kernels *k, const struct device_norm_backward *args);

/* sums[c] (+)= sum over rows of x[r, c]; x is E when bf16 is set, else float. */
struct device_sums {
    const void *x;
    bool bf16;
    uint32_t rows, columns;
    float *sums;
    bool accumulate;
};
void device_column_sums(struct kernels *k, const struct device_sums *args);

/* to = from in bf16, count a multiple of 32. */
void device_narrow(struct kernels *k, const float *from, uint16_t *to, uint64_t count);

/* Zeroes what lies between and behind the tensors of a group's vector. */
void device_zero_gaps(float *vector, const struct tensor_span *spans, uint32_t span_count,
                      uint64_t count);

static inline uint32_t shape_row_count(const struct kernels_shape *shape)
{
    uint64_t rows = mul_checked(shape->batch, shape->seq);
    ASSERT(rows > 0 && rows <= UINT32_MAX);
    return (uint32_t)rows;
}

/* Takes bytes, rounded up to whole cache lines, from a piece of memory that is being laid out. */
static inline uint64_t layout_take(uint64_t *used, uint64_t bytes)
{
    uint64_t offset = *used;
    *used = add_checked(offset, round_up(bytes, DEVICE_ALIGN));
    return offset;
}

#endif
