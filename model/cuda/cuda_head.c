/*
 * The tied head, HEAD_ROWS rows and one tile of the vocabulary at a time: their logits are in
 * scratch as float, and in backward their gradient beside them as E.
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

/* -- A piece -- */

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

static struct gpu_head_logits compute_logits(struct kernels_cuda *k, const struct piece *p)
{
    cuda_device_product(
        k,
        &(struct gpu_product_run){.product = k->head.logits[p->last_piece][p->last_tile],
                                  .a = element_at(k, p->y, (uint64_t)p->first * k->shape.channels),
                                  .b = p->tile,
                                  .c = p->logits},
        "the product of logits");
    return (struct gpu_head_logits){.logits = p->logits,
                                    .rows = p->rows,
                                    .columns = p->columns,
                                    .stride = logits_stride(&k->shape),
                                    .targets = p->targets + p->first,
                                    .column_first = p->row_first};
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
        struct gpu_head_logits logits = compute_logits(k, &piece);
        CUDA_DEVICE_RUN(k, gpu_head_forward,
                        {.logits = logits,
                         .maximum = args->running + first,
                         .sum = args->running + k->row_count + first,
                         .target = args->running + 2 * (uint64_t)k->row_count + first,
                         .first = args->first});
    }
    return cuda_device_end(k, err);
}

int kernels_cuda_head_loss(struct kernels_cuda *k, const struct kernels_head_loss *args,
                           struct err *err)
{
    CUDA_DEVICE_RUN(k, gpu_head_loss,
                    {.rows = k->row_count,
                     .maximum = args->running,
                     .sum = args->running + k->row_count,
                     .target = args->running + 2 * (uint64_t)k->row_count,
                     .losses = args->losses});
    return cuda_device_end(k, err);
}

/* From a piece's gradient of the logits to dy and the tile's gradient. */
static void backward_products(struct kernels_cuda *k, const struct kernels_head_backward *args,
                              const struct piece *p, const void *dlogits)
{
    uint64_t at = (uint64_t)p->first * k->shape.channels;
    cuda_device_product(
        k,
        &(struct gpu_product_run){.product = k->head.dy[p->last_piece][p->last_tile],
                                  .a = dlogits,
                                  .b = p->tile,
                                  .c = args->dy + at,
                                  .accumulate = !args->first},
        "the gradient of the head's input");
    cuda_device_product(
        k,
        &(struct gpu_product_run){.product = k->head.gradient[p->last_piece][p->last_tile],
                                  .a = dlogits,
                                  .b = element_at(k, p->y, at),
                                  .c = args->gradient,
                                  .accumulate = args->accumulate || p->first > 0},
        "the gradient of the head's weight");
}

int kernels_cuda_head_backward(struct kernels_cuda *k, const struct kernels_head_backward *args,
                               struct err *err)
{
    uint64_t used = 0;
    cuda_layout_take(&used, logits_count(&k->shape) * sizeof(float));
    void *dlogits = (char *)args->scratch + used;
    for (uint32_t first = 0; first < k->row_count; first += HEAD_ROWS) {
        struct piece piece = piece_of(k, first, args->row_first, args->row_count);
        piece.tile = args->tile;
        piece.y = args->y;
        piece.targets = args->targets;
        piece.logits = args->scratch;
        struct gpu_head_logits logits = compute_logits(k, &piece);
        CUDA_DEVICE_RUN(k, gpu_head_backward,
                        {.logits = logits,
                         .log_sum = args->running + first,
                         .loss_scale = args->loss_scale,
                         .bf16 = k->bf16,
                         .dlogits = dlogits});
        backward_products(k, args, &piece, dlogits);
    }
    return cuda_device_end(k, err);
}

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
