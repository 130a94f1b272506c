/*
 * The tied head: logits and cross-entropy over one tile of the vocabulary at a time, never more of
 * the logits in memory than HEAD_BLOCK_ROWS rows of one tile (in E), and in forward only one
 * HEAD_ROWS x HEAD_COLUMNS piece per worker.
 */
#include "model/cpu/device.h"
#include <math.h>
#include <string.h>

enum { COLUMNS_WHOLE, COLUMNS_TILE_REST, COLUMNS_VOCAB_REST, COLUMNS_KINDS };

static uint32_t tile_rows(const struct kernels_shape *shape)
{
    ASSERT(shape->tile_rows_max > 0 && shape->vocab > 0);
    return MIN(shape->tile_rows_max, shape->vocab);
}

/* Rows of wte in the vocabulary's last tile. */
static uint32_t last_tile_rows(const struct kernels_shape *shape)
{
    uint32_t tile = tile_rows(shape);
    return shape->vocab - (uint32_t)(div_up(shape->vocab, tile) - 1) * tile;
}

/* A piece of logits is the same product in forward, which takes all rows at once, and in backward:
 * only the very last piece is shorter. */
_Static_assert(HEAD_BLOCK_ROWS % HEAD_ROWS == 0, "a block of rows is whole pieces");

static uint32_t group_count(uint32_t row_count)
{
    return (uint32_t)div_up(row_count, HEAD_COLUMNS);
}

/* Forward: maximum and sum of each group of columns, [groups, 2, R]. Backward: a block's gradient
 * of the logits, E [block, tile]. */
uint64_t head_scratch_bytes(const struct kernels_shape *shape)
{
    uint64_t rows = shape_row_count(shape);
    uint64_t forward = mul_checked(group_count(tile_rows(shape)), 2 * rows * sizeof(float));
    uint64_t block = MIN(rows, HEAD_BLOCK_ROWS);
    uint64_t backward = mul_checked(block, tile_rows(shape)) * precision_bytes(shape->precision);
    return round_up(MAX(forward, backward), IO_ALIGN);
}

uint64_t head_worker_bytes(const struct kernels_shape *shape)
{
    (void)shape;
    return (uint64_t)HEAD_ROWS * HEAD_COLUMNS * sizeof(float);
}

static uint32_t columns_of_kind(const struct kernels_shape *shape, unsigned kind)
{
    switch (kind) {
    case COLUMNS_WHOLE:
        return HEAD_COLUMNS;
    case COLUMNS_TILE_REST:
        return tile_rows(shape) % HEAD_COLUMNS;
    default:
        return last_tile_rows(shape) % HEAD_COLUMNS;
    }
}

static void init_logits(struct kernels *k, bool last_rows, unsigned kind)
{
    struct head *head = &k->head;
    uint32_t columns = columns_of_kind(&k->shape, kind);
    if (columns == 0)
        return;
    uint32_t rows = last_rows ? (k->row_count - 1) % head->rows + 1 : head->rows;
    struct matmul_product logits = {.m = rows,
                                    .n = columns,
                                    .k = k->shape.channels,
                                    .a_stride = k->shape.channels,
                                    .b_stride = k->shape.channels,
                                    .c_stride = HEAD_COLUMNS,
                                    .b_transposed = true,
                                    .precision = k->shape.precision};
    head->logits[last_rows][kind] = matmul_declare(k->matmul, &logits);
}

/* The two products that follow a block of rows of the logits' gradient. */
static void init_gradients(struct kernels *k, bool last_block, bool last_tile)
{
    struct head *head = &k->head;
    const struct kernels_shape *shape = &k->shape;
    uint32_t block_count = (uint32_t)div_up(k->row_count, head->block_rows);
    uint32_t rows = tile_extent(k->row_count, head->block_rows, last_block ? block_count - 1 : 0);
    uint32_t columns = last_tile ? last_tile_rows(shape) : tile_rows(shape);
    struct matmul_product dy = {.m = rows,
                                .n = shape->channels,
                                .k = columns,
                                .a_stride = tile_rows(shape),
                                .b_stride = shape->channels,
                                .c_stride = shape->channels,
                                .precision = shape->precision};
    struct matmul_product gradient = {.m = columns,
                                      .n = shape->channels,
                                      .k = rows,
                                      .a_stride = tile_rows(shape),
                                      .b_stride = shape->channels,
                                      .c_stride = shape->channels,
                                      .a_transposed = true,
                                      .precision = shape->precision};
    product_init(&head->dy[last_block][last_tile], k->matmul, &dy, false);
    product_init(&head->gradient[last_block][last_tile], k->matmul, &gradient, false);
}

void head_init(struct kernels *k)
{
    k->head.block_rows = MIN(k->row_count, HEAD_BLOCK_ROWS);
    k->head.rows = MIN(k->row_count, HEAD_ROWS);
    for (unsigned last = 0; last < 2; last++) {
        for (unsigned kind = 0; kind < COLUMNS_KINDS; kind++)
            init_logits(k, last, kind);
        for (unsigned last_tile = 0; last_tile < 2; last_tile++)
            init_gradients(k, last, last_tile);
    }
}

/* -- One piece of logits -- */

/* A tile of the vocabulary and the rows that meet it. */
struct pass {
    struct kernels *k;
    const void *tile, *y;
    const uint32_t *targets;
    uint32_t row_first, row_count;    /* of wte */
    uint32_t block_first, block_rows; /* of y: all of it in forward */
    /* Forward. */
    float *partial, *target;
    /* Backward. */
    const float *log_sum;
    float loss_scale;
    void *dlogits;
};

static void check_tile(const struct kernels *k, uint32_t row_first, uint32_t row_count)
{
    uint32_t tile = tile_rows(&k->shape);
    ASSERT(row_first < k->shape.vocab && row_first % tile == 0);
    ASSERT(row_count == MIN(tile, k->shape.vocab - row_first));
}

/* Computes the logits of task's piece into the worker's buffer and describes them; *row is the
 * piece's first row of y, *column its first column in the tile. */
static struct rows_logits compute_logits(const struct pass *pass, uint32_t task, uint32_t worker,
                                         uint32_t *row, uint32_t *column)
{
    const struct kernels *k = pass->k;
    const struct head *head = &k->head;
    uint32_t groups = group_count(pass->row_count);
    *row = pass->block_first + task / groups * head->rows;
    *column = task % groups * HEAD_COLUMNS;
    uint32_t rows = MIN(head->rows, pass->block_first + pass->block_rows - *row);
    uint32_t columns = MIN(HEAD_COLUMNS, pass->row_count - *column);
    unsigned kind = columns == HEAD_COLUMNS                   ? COLUMNS_WHOLE
                    : pass->row_count == tile_rows(&k->shape) ? COLUMNS_TILE_REST
                                                              : COLUMNS_VOCAB_REST;
    bool last = *row + rows == k->row_count;
    enum precision precision = k->shape.precision;
    float *logits = worker_memory(k, worker);
    matmul_run(k->matmul, head->logits[last][kind], worker,
               element_at(pass->y, (size_t)*row * k->shape.channels, precision),
               element_at(pass->tile, (size_t)*column * k->shape.channels, precision), logits);
    return (struct rows_logits){
        .logits = logits,
        .stride = HEAD_COLUMNS,
        .rows = rows,
        .columns = columns,
        .targets = pass->targets + *row,
        .column_first = pass->row_first + *column,
        .bf16 = k->bf16,
    };
}

static uint32_t piece_count(const struct pass *pass)
{
    return (uint32_t)div_up(pass->block_rows, pass->k->head.rows) * group_count(pass->row_count);
}

/* -- Forward -- */

static void forward_task(void *context, uint32_t task, uint32_t worker)
{
    const struct pass *pass = context;
    const struct kernels *k = pass->k;
    uint32_t row, column;
    struct rows_logits logits = compute_logits(pass, task, worker, &row, &column);
    float *maximum = pass->partial + (size_t)(column / HEAD_COLUMNS) * 2 * k->row_count;
    k->rows->logits_forward(&logits, maximum + row, maximum + k->row_count + row,
                            pass->target + row);
}

/* The groups' sums into the running ones, in order (Milakov and Gimelshein 2018, section 3). */
static void merge(const struct kernels *k, const float *partial, uint32_t groups, float *running)
{
    float *maximum = running, *sum = running + k->row_count;
    for (uint32_t g = 0; g < groups; g++) {
        const float *tile_maximum = partial + (size_t)g * 2 * k->row_count;
        const float *tile_sum = tile_maximum + k->row_count;
        for (uint32_t r = 0; r < k->row_count; r++) {
            float most = tile_maximum[r] > maximum[r] ? tile_maximum[r] : maximum[r];
            sum[r] = sum[r] * expf(maximum[r] - most) + tile_sum[r] * expf(tile_maximum[r] - most);
            maximum[r] = most;
        }
    }
}

void kernels_head_forward(struct kernels *k, const struct kernels_head_forward *args)
{
    check_tile(k, args->row_first, args->row_count);
    if (args->first) {
        for (uint32_t r = 0; r < k->row_count; r++)
            args->running[r] = -INFINITY;
        memset(args->running + k->row_count, 0, 2 * (size_t)k->row_count * sizeof(float));
    }
    struct pass pass = {
        .k = k,
        .tile = args->tile,
        .y = args->y,
        .targets = args->targets,
        .row_first = args->row_first,
        .row_count = args->row_count,
        .block_rows = k->row_count,
        .partial = args->scratch,
        .target = args->running + 2 * (size_t)k->row_count,
    };
    pool_run(k->pool, forward_task, &pass, piece_count(&pass));
    merge(k, pass.partial, group_count(args->row_count), args->running);
}

void kernels_head_loss(struct kernels *k, const struct kernels_head_loss *args)
{
    const float *sum = args->running + k->row_count, *target = sum + k->row_count;
    for (uint32_t r = 0; r < k->row_count; r++) {
        args->running[r] += logf(sum[r]);
        args->losses[r] = args->running[r] - target[r];
    }
}

/* -- Backward -- */

static void backward_task(void *context, uint32_t task, uint32_t worker)
{
    const struct pass *pass = context;
    const struct kernels *k = pass->k;
    uint32_t row, column, stride = tile_rows(&k->shape);
    struct rows_logits logits = compute_logits(pass, task, worker, &row, &column);
    size_t at = (size_t)(row - pass->block_first) * stride + column;
    k->rows->logits_backward(&logits, pass->log_sum + row, pass->loss_scale,
                             element_at_mutable(pass->dlogits, at, k->shape.precision), stride);
}

void kernels_head_backward(struct kernels *k, const struct kernels_head_backward *args)
{
    check_tile(k, args->row_first, args->row_count);
    enum precision precision = k->shape.precision;
    bool last_tile = args->row_count != tile_rows(&k->shape);
    struct pass pass = {
        .k = k,
        .tile = args->tile,
        .y = args->y,
        .targets = args->targets,
        .row_first = args->row_first,
        .row_count = args->row_count,
        .log_sum = args->running,
        .loss_scale = args->loss_scale,
        .dlogits = args->scratch,
    };
    for (uint32_t first = 0; first < k->row_count; first += k->head.block_rows) {
        pass.block_first = first;
        pass.block_rows = MIN(k->head.block_rows, k->row_count - first);
        bool last_block = first + pass.block_rows == k->row_count;
        pool_run(k->pool, backward_task, &pass, piece_count(&pass));
        size_t at = (size_t)first * k->shape.channels;
        struct product_job jobs[] = {
            {.product = &k->head.dy[last_block][last_tile],
             .a = pass.dlogits,
             .b = args->tile,
             .c = args->dy + at,
             .accumulate = !args->first},
            {.product = &k->head.gradient[last_block][last_tile],
             .a = pass.dlogits,
             .b = element_at(args->y, at, precision),
             .c = args->gradient,
             .accumulate = args->accumulate || first > 0},
        };
        product_run(k, jobs, ARRAY_COUNT(jobs));
    }
}

/* -- Single rows, for sampling -- */

struct single {
    struct kernels *k;
    const struct kernels_logits *args;
};

static void single_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct single *single = context;
    const struct kernels *k = single->k;
    const struct kernels_logits *args = single->args;
    uint32_t end = MIN(args->row_count, (task + 1) * HEAD_COLUMNS);
    for (uint32_t row = task * HEAD_COLUMNS; row < end; row++)
        args->logits[row] = k->rows->dot(
            args->y_row,
            element_at(args->tile, (size_t)row * k->shape.channels, k->shape.precision),
            k->shape.channels, k->bf16);
}

void kernels_logits(struct kernels *k, const struct kernels_logits *args)
{
    struct single single = {k, args};
    pool_run(k->pool, single_task, &single, group_count(args->row_count));
}
