/*
 * The tied head, HEAD_ROWS rows and one tile of the vocabulary at a time: their logits are in
 * scratch as float, and in backward their gradient beside them as E. At once (kernels_head_once)
 * the logits of these rows and all tiles are there, from the same products, and all sums go in the
 * same order as in two passes.
 */
#include "model/cuda/cuda_device.h"
#include "model/cuda/gpu_head.h"

static uint32_t tile_rows(const struct kernels_shape *shape)
{
    ASSERT(shape->tile_rows_max > 0 && shape->vocab > 0);
    return MIN(shape->tile_rows_max, shape->vocab);
}

static uint32_t last_tile_rows(const struct kernels_shape *shape)
{
    return (shape->vocab - 1) % tile_rows(shape) + 1;
}

static uint32_t tile_count(const struct kernels_shape *shape)
{
    return (uint32_t)div_up(shape->vocab, tile_rows(shape));
}

static uint32_t last_rows(const struct kernels_cuda *k)
{
    return (k->row_count - 1) % HEAD_ROWS + 1;
}

static uint32_t logits_stride(const struct kernels_shape *shape)
{
    return (uint32_t)round_up(tile_rows(shape), HEAD_STRIDE);
}

static uint64_t logits_count(const struct kernels_shape *shape)
{
    return mul_checked(MIN(cuda_shape_rows(shape), HEAD_ROWS), logits_stride(shape));
}

uint64_t cuda_head_scratch_bytes(const struct kernels_shape *shape)
{
    uint64_t count = logits_count(shape), used = 0;
    cuda_layout_take(&used, mul_checked(count, sizeof(float)));
    cuda_layout_take(&used, mul_checked(count, precision_bytes(shape->precision)));
    return round_up(used, IO_ALIGN);
}

/* Of kernels_head_once: a piece's logits of all tiles, as float, and of one their gradient. */
static uint64_t once_kept_count(const struct kernels_shape *shape)
{
    return mul_checked(tile_count(shape), logits_count(shape));
}

uint64_t cuda_head_once_bytes(const struct kernels_shape *shape)
{
    uint64_t used = 0;
    cuda_layout_take(&used, mul_checked(once_kept_count(shape), sizeof(float)));
    cuda_layout_take(&used, mul_checked(logits_count(shape), precision_bytes(shape->precision)));
    return round_up(used, IO_ALIGN);
}

/* -- Products -- */

static int open_piece(struct kernels_cuda *k, bool last_piece, bool last_tile, struct err *err)
{
    uint32_t rows = last_piece ? last_rows(k) : HEAD_ROWS, c = k->shape.channels;
    uint32_t columns = last_tile ? last_tile_rows(&k->shape) : tile_rows(&k->shape);
    uint32_t stride = logits_stride(&k->shape);
    struct gpu_product_shape logits = {.m = rows,
                                       .n = columns,
                                       .k = c,
                                       .a_stride = c,
                                       .b_stride = c,
                                       .c_stride = stride,
                                       .b_transposed = true,
                                       .bf16 = k->bf16,
                                       .widens = true};
    struct gpu_product_shape dy = {.m = rows,
                                   .n = c,
                                   .k = columns,
                                   .a_stride = stride,
                                   .b_stride = c,
                                   .c_stride = c,
                                   .bf16 = k->bf16,
                                   .widens = true};
    struct gpu_product_shape gradient = {.m = columns,
                                         .n = c,
                                         .k = rows,
                                         .a_stride = stride,
                                         .b_stride = c,
                                         .c_stride = c,
                                         .a_transposed = true,
                                         .bf16 = k->bf16,
                                         .widens = true};
    struct head_products *h = &k->head;
    int rc = gpu_product_prepare(k->products, &h->logits[last_piece][last_tile], &logits, err);
    if (!rc)
        rc = gpu_product_prepare(k->products, &h->dy[last_piece][last_tile], &dy, err);
    if (!rc)
        rc = gpu_product_prepare(k->products, &h->gradient[last_piece][last_tile], &gradient, err);
    return rc;
}

int cuda_head_open(struct kernels_cuda *k, struct err *err)
{
    int rc = 0;
    for (unsigned piece = 0; piece < 2; piece++)
        for (unsigned tile = 0; tile < 2; tile++)
            if (!rc && (piece == 1 || k->row_count > HEAD_ROWS) &&
                (tile == 1 || k->shape.vocab > tile_rows(&k->shape)))
                rc = open_piece(k, piece, tile, err);
    return rc;
}

/* -- A piece, and forward -- */

struct piece {
    const void *tile, *y;
    const uint32_t *targets;
    uint32_t row_first; /* of wte */
    uint32_t columns;
    uint32_t first, rows; /* of y */
    bool last_piece, last_tile;
    float *logits;
};

static struct piece piece_of(const struct kernels_cuda *k, uint32_t first, uint32_t row_first,
                             uint32_t row_count)
{
    uint32_t tile = tile_rows(&k->shape);
    ASSERT(row_first < k->shape.vocab && row_first % tile == 0);
    ASSERT(row_count == MIN(tile, k->shape.vocab - row_first));
    uint32_t rows = MIN(HEAD_ROWS, k->row_count - first);
    return (struct piece){.row_first = row_first,
                          .columns = row_count,
                          .first = first,
                          .rows = rows,
                          .last_piece = first + rows == k->row_count,
                          .last_tile = row_first + row_count == k->shape.vocab};
}

static struct gpu_head_logits describe(const struct kernels_cuda *k, const struct piece *p)
{
    return (struct gpu_head_logits){.logits = p->logits,
                                    .rows = p->rows,
                                    .columns = p->columns,
                                    .stride = logits_stride(&k->shape),
                                    .targets = p->targets + p->first,
                                    .column_first = p->row_first};
}

static struct gpu_head_logits compute_logits(struct kernels_cuda *k, const struct piece *p)
{
    cuda_device_product(
        k,
        &(struct gpu_product_run){.product = k->head.logits[p->last_piece][p->last_tile],
                                  .a = element_at(k, p->y, (uint64_t)p->first * k->shape.channels),
                                  .b = p->tile,
                                  .c = p->logits},
        "the product of logits");
    return describe(k, p);
}

static void run_forward(struct kernels_cuda *k, const struct piece *p, float *running, bool first)
{
    struct gpu_head_logits logits = compute_logits(k, p);
    CUDA_DEVICE_RUN(k, gpu_head_forward,
                    {.logits = logits,
                     .maximum = running + p->first,
                     .sum = running + k->row_count + p->first,
                     .target = running + 2 * (uint64_t)k->row_count + p->first,
                     .first = first});
}

int kernels_cuda_head_forward(struct kernels_cuda *k, const struct kernels_head_forward *args,
                              struct err *err)
{
    for (uint32_t first = 0; first < k->row_count; first += HEAD_ROWS) {
        struct piece piece = piece_of(k, first, args->row_first, args->row_count);
        piece.tile = args->tile;
        piece.y = args->y;
        piece.targets = args->targets;
        piece.logits = args->scratch;
        run_forward(k, &piece, args->running, args->first);
    }
    return cuda_device_end(k, err);
}

/* Of rows [first, first + count). */
static void run_loss(struct kernels_cuda *k, float *running, float *losses, uint32_t first,
                     uint32_t count)
{
    CUDA_DEVICE_RUN(k, gpu_head_loss,
                    {.rows = count,
                     .maximum = running + first,
                     .sum = running + k->row_count + first,
                     .target = running + 2 * (uint64_t)k->row_count + first,
                     .losses = losses + first});
}

int kernels_cuda_head_loss(struct kernels_cuda *k, const struct kernels_head_loss *args,
                           struct err *err)
{
    run_loss(k, args->running, args->losses, 0, k->row_count);
    return cuda_device_end(k, err);
}

/* -- Backward -- */

/* Where the backward pass of a piece leads to. */
struct gradients {
    const float *log_sum; /* [R] */
    float loss_scale;
    void *dlogits;
    float *dy, *tile;
    bool first;      /* of the tiles: dy is overwritten */
    bool accumulate; /* the tile's gradient is not, by the first piece */
};

/* From a piece's logits to their gradient, to dy and to the tile's gradient. */
static void run_backward(struct kernels_cuda *k, const struct piece *p,
                         const struct gpu_head_logits *logits, const struct gradients *g)
{
    uint64_t at = (uint64_t)p->first * k->shape.channels;
    CUDA_DEVICE_RUN(k, gpu_head_backward,
                    {.logits = *logits,
                     .log_sum = g->log_sum + p->first,
                     .loss_scale = g->loss_scale,
                     .bf16 = k->bf16,
                     .dlogits = g->dlogits});
    cuda_device_product(
        k,
        &(struct gpu_product_run){.product = k->head.dy[p->last_piece][p->last_tile],
                                  .a = g->dlogits,
                                  .b = p->tile,
                                  .c = g->dy + at,
                                  .accumulate = !g->first},
        "the gradient of the head's input");
    cuda_device_product(
        k,
        &(struct gpu_product_run){.product = k->head.gradient[p->last_piece][p->last_tile],
                                  .a = g->dlogits,
                                  .b = element_at(k, p->y, at),
                                  .c = g->tile,
                                  .accumulate = g->accumulate || p->first > 0},
        "the gradient of the head's weight");
}

int kernels_cuda_head_backward(struct kernels_cuda *k, const struct kernels_head_backward *args,
                               struct err *err)
{
    uint64_t used = 0;
    cuda_layout_take(&used, logits_count(&k->shape) * sizeof(float));
    struct gradients gradients = {.log_sum = args->running,
                                  .loss_scale = args->loss_scale,
                                  .dlogits = (char *)args->scratch + used,
                                  .dy = args->dy,
                                  .tile = args->gradient,
                                  .first = args->first,
                                  .accumulate = args->accumulate};
    for (uint32_t first = 0; first < k->row_count; first += HEAD_ROWS) {
        struct piece piece = piece_of(k, first, args->row_first, args->row_count);
        piece.tile = args->tile;
        piece.y = args->y;
        piece.targets = args->targets;
        piece.logits = args->scratch;
        struct gpu_head_logits logits = compute_logits(k, &piece);
        run_backward(k, &piece, &logits, &gradients);
    }
    return cuda_device_end(k, err);
}

/* -- Both in one, a piece of rows after the other -- */

static struct piece once_piece(const struct kernels_cuda *k, const struct kernels_head_once *args,
                               uint32_t first, uint32_t tile)
{
    uint32_t row_first = tile * tile_rows(&k->shape);
    struct piece piece =
        piece_of(k, first, row_first, MIN(tile_rows(&k->shape), k->shape.vocab - row_first));
    piece.tile = element_at(k, args->tiles, tile * args->tile_stride);
    piece.y = args->y;
    piece.targets = args->targets;
    piece.logits = (float *)args->scratch + tile * logits_count(&k->shape);
    return piece;
}

int kernels_cuda_head_once(struct kernels_cuda *k, const struct kernels_head_once *args,
                           struct err *err)
{
    uint32_t tiles = tile_count(&k->shape);
    uint64_t used = 0;
    cuda_layout_take(&used, once_kept_count(&k->shape) * sizeof(float));
    struct gradients gradients = {.log_sum = args->running,
                                  .loss_scale = args->loss_scale,
                                  .dlogits = (char *)args->scratch + used,
                                  .dy = args->dy,
                                  .accumulate = args->accumulate};
    for (uint32_t first = 0; first < k->row_count; first += HEAD_ROWS) {
        for (uint32_t tile = tiles; tile-- > 0;) {
            struct piece piece = once_piece(k, args, first, tile);
            run_forward(k, &piece, args->running, tile + 1 == tiles);
        }
        run_loss(k, args->running, args->losses, first, MIN(HEAD_ROWS, k->row_count - first));
        for (uint32_t tile = 0; tile < tiles; tile++) {
            struct piece piece = once_piece(k, args, first, tile);
            struct gpu_head_logits logits = describe(k, &piece);
            gradients.first = tile == 0;
            gradients.tile = args->gradients + tile * args->tile_stride;
            run_backward(k, &piece, &logits, &gradients);
        }
    }
    return cuda_device_end(k, err);
}

/* -- Single rows, for sampling -- */

int kernels_cuda_logits(struct kernels_cuda *k, const struct kernels_logits *args, struct err *err)
{
    CUDA_DEVICE_RUN(k, gpu_head_single,
                    {.bf16 = k->bf16,
                     .rows = args->row_count,
                     .channels = k->shape.channels,
                     .tile = args->tile,
                     .y = args->y_row,
                     .logits = args->logits});
    return cuda_device_end(k, err);
}
