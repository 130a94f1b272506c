/*
 * The tied head: logits and cross-entropy in groups of columns, a piece of some rows at a time. By
 * gemm, a task packs its group's part of wte once and takes many pieces.
 *
 * In two passes, over one tile of the vocabulary at a time: never more of the logits in memory than
 * HEAD_BLOCK_ROWS rows of one tile (in E), and in forward only one piece per worker. At once
 * (kernels_head_once), the pieces of HEAD_BLOCK_ROWS rows and all tiles are kept from forward to
 * backward. Products, and the order of all sums, are the same, and so are the bits: a row's maximum
 * and sum over groups of columns, tiles downwards; dy over tiles upwards; a tile's gradient over
 * blocks of rows.
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
_Static_assert(HEAD_BLOCK_ROWS % HEAD_ROWS == 0 && HEAD_BLOCK_ROWS % HEAD_ROWS_PACKED == 0,
               "a block of rows is whole pieces");

static uint32_t head_columns(const struct kernels_shape *shape)
{
    uint32_t row_bytes = shape->channels * precision_bytes(shape->precision);
    return panel_columns(row_bytes, HEAD_COLUMNS_MIN, HEAD_COLUMNS_MAX);
}

static uint32_t group_count(const struct kernels_shape *shape, uint32_t row_count)
{
    return (uint32_t)div_up(row_count, head_columns(shape));
}

static uint32_t tile_count(const struct kernels_shape *shape)
{
    return (uint32_t)div_up(shape->vocab, tile_rows(shape));
}

/* Of all tiles. */
static uint32_t vocab_group_count(const struct kernels_shape *shape)
{
    return (tile_count(shape) - 1) * group_count(shape, tile_rows(shape)) +
           group_count(shape, last_tile_rows(shape));
}

/* A piece's rows of logits are so far apart. Of a tile's pieces only the last one has padding. */
static uint32_t padded(uint32_t columns)
{
    return (uint32_t)round_up(columns, ROWS_LANES);
}

/* Forward: maximum and sum of each group of columns, [groups, 2, R]. Backward: a block's gradient
 * of the logits, E [block, tile]. */
uint64_t head_scratch_bytes(const struct kernels_shape *shape)
{
    uint64_t rows = shape_row_count(shape);
    uint64_t forward = mul_checked(group_count(shape, tile_rows(shape)), 2 * rows * sizeof(float));
    uint64_t block = MIN(rows, HEAD_BLOCK_ROWS);
    uint64_t backward = mul_checked(block, tile_rows(shape)) * precision_bytes(shape->precision);
    return round_up(MAX(forward, backward), IO_ALIGN);
}

/* Of kernels_head_once, for a block of rows: all its logits, the sums of their groups, [groups, 2,
 * block], and the gradient of a tile's logits. */
struct once_layout {
    uint64_t kept, partial, dlogits, bytes;
};

static struct once_layout once_layout(const struct kernels_shape *shape)
{
    uint64_t block = MIN(shape_row_count(shape), HEAD_BLOCK_ROWS);
    uint64_t columns = mul_checked(tile_count(shape) - 1, padded(tile_rows(shape))) +
                       padded(last_tile_rows(shape));
    struct once_layout layout = {0};
    layout.kept = layout_take(&layout.bytes, mul_checked(block, columns * sizeof(float)));
    layout.partial = layout_take(&layout.bytes,
                                 mul_checked(vocab_group_count(shape), 2 * block * sizeof(float)));
    layout.dlogits =
        layout_take(&layout.bytes, mul_checked(block, (uint64_t)tile_rows(shape) *
                                                          precision_bytes(shape->precision)));
    return layout;
}

uint64_t head_once_bytes(const struct kernels_shape *shape)
{
    return round_up(once_layout(shape).bytes, IO_ALIGN);
}

/* A worker's: packed wte of a group, and a piece of logits. */
static uint64_t worker_lay_out(const struct kernels *k, uint8_t *base, struct gemm *gemm,
                               float **logits)
{
    const struct kernels_shape *shape = &k->shape;
    uint64_t used = 0, panel = 0;
    if (k->head.packed)
        panel = gemm_panel_bytes(k->head.columns, shape->channels, shape->precision);
    uint64_t b = layout_take(&used, panel);
    uint64_t piece = layout_take(&used, (uint64_t)k->head.rows * k->head.columns * sizeof(float));
    if (gemm) {
        *gemm = (struct gemm){.b = (uint32_t *)(base + b)};
        *logits = (float *)(base + piece);
    }
    return used;
}

uint64_t head_worker_bytes(const struct kernels *k)
{
    return worker_lay_out(k, NULL, NULL, NULL);
}

static uint32_t columns_of_kind(const struct kernels *k, unsigned kind)
{
    switch (kind) {
    case COLUMNS_WHOLE:
        return k->head.columns;
    case COLUMNS_TILE_REST:
        return tile_rows(&k->shape) % k->head.columns;
    default:
        return last_tile_rows(&k->shape) % k->head.columns;
    }
}

static void init_logits(struct kernels *k, bool last_rows, unsigned kind)
{
    struct head *head = &k->head;
    uint32_t columns = columns_of_kind(k, kind);
    if (columns == 0)
        return;
    uint32_t rows = last_rows ? (k->row_count - 1) % head->rows + 1 : head->rows;
    struct matmul_product logits = {.m = rows,
                                    .n = columns,
                                    .k = k->shape.channels,
                                    .a_stride = k->shape.channels,
                                    .b_stride = k->shape.channels,
                                    .c_stride = padded(columns),
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
    product_init(&head->dy[last_block][last_tile], k, &dy, false);
    product_init(&head->gradient[last_block][last_tile], k, &gradient, false);
}

void head_init(struct kernels *k)
{
    k->head.packed = matmul_is_packed(k->shape.precision);
    k->head.columns = head_columns(&k->shape);
    k->head.block_rows = MIN(k->row_count, HEAD_BLOCK_ROWS);
    k->head.rows = MIN(k->row_count, k->head.packed ? HEAD_ROWS_PACKED : HEAD_ROWS);
    for (unsigned last = 0; last < 2; last++) {
        for (unsigned kind = 0; kind < COLUMNS_KINDS && !k->head.packed; kind++)
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
    float *kept;                      /* the block's logits of all tiles, or NULL */
    /* Forward. */
    float *partial, *target;
    /* Backward. */
    const float *log_sum;
    float loss_scale;
    void *dlogits;
};

/* Some rows of a group of columns. */
struct piece {
    uint32_t row, rows;       /* of y */
    uint32_t column, columns; /* of the tile */
};

static void check_tile(const struct kernels *k, uint32_t row_first, uint32_t row_count)
{
    uint32_t tile = tile_rows(&k->shape);
    ASSERT(row_first < k->shape.vocab && row_first % tile == 0);
    ASSERT(row_count == MIN(tile, k->shape.vocab - row_first));
}

/* Rows of a task: packed, a block's, as long as all workers have some tasks; else one product. */
static uint32_t task_rows(const struct pass *pass, uint32_t groups)
{
    const struct kernels *k = pass->k;
    if (!k->head.packed)
        return k->head.rows;
    return packed_rows(k, groups, pass->block_rows, HEAD_ROWS, HEAD_BLOCK_ROWS);
}

static uint32_t row_tasks(const struct pass *pass, uint32_t groups)
{
    return (uint32_t)div_up(pass->block_rows, task_rows(pass, groups));
}

/* Part `task` of row_tasks of a group of the pass's tile. */
static struct piece part_of(const struct pass *pass, uint32_t rows, uint32_t task, uint32_t group)
{
    uint32_t columns = pass->k->head.columns;
    struct piece part = {.row = pass->block_first + task * rows, .column = group * columns};
    part.rows = MIN(rows, pass->block_first + pass->block_rows - part.row);
    part.columns = MIN(columns, pass->row_count - part.column);
    return part;
}

/* Where a piece of the block's logits is kept: a group of columns after the other. */
static float *kept_piece(const struct pass *pass, const struct piece *piece)
{
    const struct kernels *k = pass->k;
    size_t tile = pass->row_first / tile_rows(&k->shape);
    size_t columns = tile * padded(tile_rows(&k->shape)) + piece->column;
    return pass->kept + k->head.block_rows * columns +
           (size_t)(piece->row - pass->block_first) * padded(piece->columns);
}

static struct rows_logits describe(const struct pass *pass, const struct piece *piece,
                                   const float *logits)
{
    return (struct rows_logits){
        .logits = logits,
        .stride = padded(piece->columns),
        .rows = piece->rows,
        .columns = piece->columns,
        .targets = pass->targets + piece->row,
        .column_first = pass->row_first + piece->column,
        .bf16 = pass->k->bf16,
    };
}

/* By the library. */
static void multiply(const struct pass *pass, const struct piece *piece, uint32_t worker,
                     const void *y, const void *columns, float *logits)
{
    const struct kernels *k = pass->k;
    unsigned kind = piece->columns == k->head.columns         ? COLUMNS_WHOLE
                    : pass->row_count == tile_rows(&k->shape) ? COLUMNS_TILE_REST
                                                              : COLUMNS_VOCAB_REST;
    bool last = piece->row + piece->rows == k->row_count;
    matmul_run(k->matmul, k->head.logits[last][kind], worker, y, columns, logits);
}

typedef void (*use_piece)(const struct pass *pass, const struct piece *piece,
                          const struct rows_logits *logits);

/* Computes the part's logits, a piece at a time, each of which is used at once. */
static void compute_logits(const struct pass *pass, const struct piece *part, uint32_t worker,
                           use_piece use)
{
    const struct kernels *k = pass->k;
    enum precision precision = k->shape.precision;
    uint32_t channels = k->shape.channels;
    const void *columns = element_at(pass->tile, (size_t)part->column * channels, precision);
    struct matmul_product product = {.n = part->columns,
                                     .k = channels,
                                     .a_stride = channels,
                                     .b_stride = channels,
                                     .b_transposed = true,
                                     .precision = precision};
    struct gemm gemm;
    float *own;
    worker_lay_out(k, worker_memory(k, worker), &gemm, &own);
    gemm.product = &product;
    if (k->head.packed)
        gemm_pack(&product, columns, gemm.b);
    for (uint32_t row = 0; row < part->rows; row += k->head.rows) {
        struct piece piece = *part;
        piece.row += row;
        piece.rows = MIN(k->head.rows, part->rows - row);
        const void *y = element_at(pass->y, (size_t)piece.row * channels, precision);
        float *to = pass->kept ? kept_piece(pass, &piece) : own;
        if (k->head.packed)
            gemm_rows(&gemm, y, piece.rows, to, padded(piece.columns), false);
        else
            multiply(pass, &piece, worker, y, columns, to);
        struct rows_logits logits = describe(pass, &piece, to);
        use(pass, &piece, &logits);
    }
}

/* -- Forward -- */

/* What a piece adds to the sums of its group: partial is [groups, 2, rows]. */
static void sum_piece(const struct pass *pass, const struct piece *piece,
                      const struct rows_logits *logits)
{
    uint32_t rows = pass->block_rows, row = piece->row - pass->block_first;
    float *maximum = pass->partial + (size_t)(piece->column / pass->k->head.columns) * 2 * rows;
    pass->k->rows->logits_forward(logits, maximum + row, maximum + rows + row,
                                  pass->target + piece->row);
}

static void forward_task(void *context, uint32_t task, uint32_t worker)
{
    const struct pass *pass = context;
    uint32_t groups = group_count(&pass->k->shape, pass->row_count);
    uint32_t rows = task_rows(pass, groups), tasks = row_tasks(pass, groups);
    struct piece part = part_of(pass, rows, task % tasks, task / tasks);
    compute_logits(pass, &part, worker, sum_piece);
}

static void start_running(const struct kernels *k, float *running)
{
    for (uint32_t r = 0; r < k->row_count; r++)
        running[r] = -INFINITY;
    memset(running + k->row_count, 0, 2 * (size_t)k->row_count * sizeof(float));
}

/* A tile's groups, [groups, 2, rows], of which this is a row of `count`. */
struct partial {
    const float *first;
    uint32_t groups, rows, count;
};

/* The groups' sums into the running ones, in order (Milakov and Gimelshein 2018, section 3). */
static void merge(const struct partial *partial, float *maximum, float *sum)
{
    for (uint32_t g = 0; g < partial->groups; g++) {
        const float *tile_maximum = partial->first + (size_t)g * 2 * partial->rows;
        const float *tile_sum = tile_maximum + partial->rows;
        for (uint32_t r = 0; r < partial->count; r++) {
            float most = tile_maximum[r] > maximum[r] ? tile_maximum[r] : maximum[r];
            sum[r] = sum[r] * expf(maximum[r] - most) + tile_sum[r] * expf(tile_maximum[r] - most);
            maximum[r] = most;
        }
    }
}

void kernels_head_forward(struct kernels *k, const struct kernels_head_forward *args)
{
    check_tile(k, args->row_first, args->row_count);
    if (args->first)
        start_running(k, args->running);
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
    uint32_t groups = group_count(&k->shape, args->row_count);
    pool_run(k->pool, forward_task, &pass, groups * row_tasks(&pass, groups));
    struct partial partial = {pass.partial, groups, k->row_count, k->row_count};
    merge(&partial, args->running, args->running + k->row_count);
}

/* Of rows [first, first + count). */
static void finish_loss(const struct kernels *k, float *running, float *losses, uint32_t first,
                        uint32_t count)
{
    const float *sum = running + k->row_count, *target = sum + k->row_count;
    for (uint32_t r = first; r < first + count; r++) {
        running[r] += logf(sum[r]);
        losses[r] = running[r] - target[r];
    }
}

void kernels_head_loss(struct kernels *k, const struct kernels_head_loss *args)
{
    finish_loss(k, args->running, args->losses, 0, k->row_count);
}

/* -- Backward -- */

static void differentiate_piece(const struct pass *pass, const struct piece *piece,
                                const struct rows_logits *logits)
{
    const struct kernels *k = pass->k;
    uint32_t stride = tile_rows(&k->shape);
    size_t at = (size_t)(piece->row - pass->block_first) * stride + piece->column;
    k->rows->logits_backward(logits, pass->log_sum + piece->row, pass->loss_scale,
                             element_at_mutable(pass->dlogits, at, k->shape.precision), stride);
}

static void backward_task(void *context, uint32_t task, uint32_t worker)
{
    const struct pass *pass = context;
    uint32_t groups = group_count(&pass->k->shape, pass->row_count);
    uint32_t rows = task_rows(pass, groups), tasks = row_tasks(pass, groups);
    struct piece part = part_of(pass, rows, task % tasks, task / tasks);
    if (!pass->kept) {
        compute_logits(pass, &part, worker, differentiate_piece);
        return;
    }
    struct rows_logits logits = describe(pass, &part, kept_piece(pass, &part));
    differentiate_piece(pass, &part, &logits);
}

/* Where a tile's backward pass leads to. */
struct gradients {
    float *dy, *tile;
    bool first;      /* of the tiles: dy is overwritten */
    bool accumulate; /* the tile's gradient is not, by the first block of rows */
};

/* A block of rows and a tile: the logits' gradient, and from it dy and the tile's. */
static void run_backward(struct kernels *k, struct pass *pass, const struct gradients *gradients)
{
    bool last_tile = pass->row_count != tile_rows(&k->shape);
    bool last_block = pass->block_first + pass->block_rows == k->row_count;
    uint32_t groups = group_count(&k->shape, pass->row_count);
    pool_run(k->pool, backward_task, pass, groups * row_tasks(pass, groups));
    size_t at = (size_t)pass->block_first * k->shape.channels;
    struct product_job jobs[] = {
        {.product = &k->head.dy[last_block][last_tile],
         .a = pass->dlogits,
         .b = pass->tile,
         .c = gradients->dy + at,
         .accumulate = !gradients->first},
        {.product = &k->head.gradient[last_block][last_tile],
         .a = pass->dlogits,
         .b = element_at(pass->y, at, k->shape.precision),
         .c = gradients->tile,
         .accumulate = gradients->accumulate || pass->block_first > 0},
    };
    product_run(k, jobs, ARRAY_COUNT(jobs));
}

void kernels_head_backward(struct kernels *k, const struct kernels_head_backward *args)
{
    check_tile(k, args->row_first, args->row_count);
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
    struct gradients gradients = {args->dy, args->gradient, args->first, args->accumulate};
    for (uint32_t first = 0; first < k->row_count; first += k->head.block_rows) {
        pass.block_first = first;
        pass.block_rows = MIN(k->head.block_rows, k->row_count - first);
        run_backward(k, &pass, &gradients);
    }
}

/* -- Both in one, a block of rows after the other -- */

struct once {
    const struct kernels_head_once *args;
    struct pass pass; /* of the block; the tile is a task's own */
};

static struct pass once_tile(const struct once *once, uint32_t tile)
{
    struct pass pass = once->pass;
    const struct kernels *k = pass.k;
    size_t at = tile * once->args->tile_stride;
    pass.tile = element_at(once->args->tiles, at, k->shape.precision);
    pass.row_first = tile * tile_rows(&k->shape);
    pass.row_count = MIN(tile_rows(&k->shape), k->shape.vocab - pass.row_first);
    return pass;
}

/* Sums of a tile's groups in `partial`: all tiles but the last have as many groups. */
static float *once_partial(const struct once *once, uint32_t tile)
{
    const struct kernels *k = once->pass.k;
    size_t group = tile * group_count(&k->shape, tile_rows(&k->shape));
    return once->pass.partial + group * 2 * once->pass.block_rows;
}

static void once_forward_task(void *context, uint32_t task, uint32_t worker)
{
    const struct once *once = context;
    const struct kernels_shape *shape = &once->pass.k->shape;
    uint32_t all = vocab_group_count(shape), groups = group_count(shape, tile_rows(shape));
    uint32_t rows = task_rows(&once->pass, all), tasks = row_tasks(&once->pass, all);
    uint32_t group = task / tasks, tile = group / groups;
    struct pass pass = once_tile(once, tile);
    pass.partial = once_partial(once, tile);
    struct piece part = part_of(&pass, rows, task % tasks, group % groups);
    compute_logits(&pass, &part, worker, sum_piece);
}

/* The tiles downwards, as the two passes take them. */
static void once_merge_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct once *once = context;
    const struct kernels *k = once->pass.k;
    uint32_t first = task * PASS_ROWS, row = once->pass.block_first + first;
    uint32_t count = MIN(PASS_ROWS, once->pass.block_rows - first);
    float *running = once->args->running;
    for (uint32_t tile = tile_count(&k->shape); tile-- > 0;) {
        struct pass pass = once_tile(once, tile);
        struct partial partial = {once_partial(once, tile) + first,
                                  group_count(&k->shape, pass.row_count), pass.block_rows, count};
        merge(&partial, running + row, running + k->row_count + row);
    }
    finish_loss(k, running, once->args->losses, row, count);
}

static void once_block(struct kernels *k, struct once *once)
{
    const struct kernels_head_once *args = once->args;
    uint32_t groups = vocab_group_count(&k->shape);
    pool_run(k->pool, once_forward_task, once, groups * row_tasks(&once->pass, groups));
    pool_run(k->pool, once_merge_task, once, (uint32_t)div_up(once->pass.block_rows, PASS_ROWS));
    for (uint32_t tile = 0; tile < tile_count(&k->shape); tile++) {
        struct pass pass = once_tile(once, tile);
        struct gradients gradients = {args->dy, args->gradients + tile * args->tile_stride,
                                      tile == 0, args->accumulate};
        run_backward(k, &pass, &gradients);
    }
}

void kernels_head_once(struct kernels *k, const struct kernels_head_once *args)
{
    struct once_layout layout = once_layout(&k->shape);
    uint8_t *scratch = args->scratch;
    struct once once = {
        .args = args,
        .pass = {.k = k,
                 .y = args->y,
                 .targets = args->targets,
                 .kept = (float *)(scratch + layout.kept),
                 .partial = (float *)(scratch + layout.partial),
                 .target = args->running + 2 * (size_t)k->row_count,
                 .log_sum = args->running,
                 .loss_scale = args->loss_scale,
                 .dlogits = scratch + layout.dlogits},
    };
    ASSERT(args->tile_stride >= (uint64_t)tile_rows(&k->shape) * k->shape.channels);
    start_running(k, args->running);
    for (uint32_t first = 0; first < k->row_count; first += k->head.block_rows) {
        once.pass.block_first = first;
        once.pass.block_rows = MIN(k->head.block_rows, k->row_count - first);
        once_block(k, &once);
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
    uint32_t columns = k->head.columns, end = MIN(args->row_count, (task + 1) * columns);
    for (uint32_t row = task * columns; row < end; row++)
        args->logits[row] = k->rows->dot(
            args->y_row,
            element_at(args->tile, (size_t)row * k->shape.channels, k->shape.precision),
            k->shape.channels, k->bf16);
}

void kernels_logits(struct kernels *k, const struct kernels_logits *args)
{
    struct single single = {k, args};
    pool_run(k->pool, single_task, &single, group_count(&k->shape, args->row_count));
}
