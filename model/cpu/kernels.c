/*
 * Opening of the CPU device, and the kernels that are one pass over rows or columns.
 */
#include "model/kernels.h"
#include "core/float.h"
#include "core/mem.h"
#include "model/cpu/device.h"
#include <string.h>

/* Parameters of one task in passes over flat vectors. */
#define PASS_PARAMETERS 65536u

/* kernels_cpu_bytes. */
#define OWN_BYTES    (8 * MIB)
#define WORKER_BYTES (2304 * KIB)

/* -- Sizes, opening, closing -- */

static uint64_t norm_backward_scratch_bytes(const struct kernels_shape *shape)
{
    return round_up(device_norm_partial_bytes(shape), IO_ALIGN);
}

void kernels_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes)
{
    block_sizes(shape, sizes);
    sizes->head_bytes = head_scratch_bytes(shape);
    sizes->scratch_bytes = MAX(sizes->scratch_bytes, sizes->head_bytes);
    sizes->scratch_bytes = MAX(sizes->scratch_bytes, norm_backward_scratch_bytes(shape));
    sizes->head_once_bytes = head_once_bytes(shape);
}

static void read_spans(struct kernels *k, const struct tensors *tensors)
{
    ASSERT(tensors->group_count >= 3);
    const struct tensor_group *block = &tensors->groups[1];
    const struct tensor_group *final = &tensors->groups[tensors->group_count - 1];
    ASSERT(block->tensor_count == BLOCK_TENSOR_COUNT && final->tensor_count == 2);
    for (uint32_t i = 0; i < BLOCK_TENSOR_COUNT; i++) {
        const struct tensor *tensor = &tensors->list[block->first_tensor + i];
        k->block[i] = (struct tensor_span){tensor->offset, tensor->count};
    }
    for (uint32_t i = 0; i < 2; i++) {
        const struct tensor *tensor = &tensors->list[final->first_tensor + i];
        k->final[i] = (struct tensor_span){tensor->offset, tensor->count};
    }
    k->block_count = block->parameter_count;
    k->final_count = final->parameter_count;
    ASSERT(k->block[BLOCK_LN1_WEIGHT].count == k->shape.channels);
}

static void warm_task(void *context, uint32_t task, uint32_t worker)
{
    (void)task;
    matmul_warm(((struct kernels *)context)->matmul, worker);
}

void kernels_take_worker_memory(struct kernels *k)
{
    k->worker_bytes = round_up(k->worker_bytes, DEVICE_ALIGN);
    k->worker_memory =
        mem_alloc_aligned(DEVICE_ALIGN, mul_checked(k->worker_bytes, pool_thread_count(k->pool)));
}

int kernels_cpu_open(struct kernels **out, const struct kernels_shape *shape,
                     const struct tensors *tensors, struct pool *pool, struct err *err)
{
    ASSERT(shape->channels % (2 * ROWS_LANES) == 0 && shape->heads > 0);
    struct kernels *k = mem_alloc(1, sizeof(*k));
    k->shape = *shape;
    k->row_count = shape_row_count(shape);
    k->bf16 = shape->precision == PRECISION_BF16;
    k->pool = pool;
    k->rows = rows_best();
    read_spans(k, tensors);
    int rc = matmul_open(&k->matmul, pool_thread_count(pool), err);
    if (rc) {
        kernels_close(k);
        return rc;
    }
    block_init(k);
    attention_init(&k->attention, shape, k->matmul);
    head_init(k);
    matmul_ready(k->matmul);
    k->worker_bytes = MAX(k->worker_bytes, attention_worker_bytes(k));
    k->worker_bytes = MAX(k->worker_bytes, head_worker_bytes(k));
    kernels_take_worker_memory(k);
    /* Twice as many tasks as workers: enough that all of them meet in the library once. */
    pool_run(pool, warm_task, k, 2 * pool_thread_count(pool));
    *out = k;
    return 0;
}

uint64_t kernels_cpu_bytes(const struct kernels_shape *shape, uint32_t worker_count)
{
    uint64_t panel = gemm_panel_bytes(GEMM_STRIP_COLUMNS, 4 * shape->channels, shape->precision);
    uint64_t longest = MAX(4ull * shape->channels, shape_row_count(shape)), wide = 0;
    if (shape->precision == PRECISION_BF16 && !matmul_has_bf16())
        wide = mul_checked((PRODUCT_ROWS + PRODUCT_COLUMNS) * sizeof(float), longest);
    return add_checked(OWN_BYTES, mul_checked(worker_count, WORKER_BYTES + panel + wide));
}

void kernels_close(struct kernels *k)
{
    if (!k)
        return;
    matmul_close(k->matmul);
    mem_free(k->worker_memory);
    mem_free(k);
}

bool kernels_cpu_has_bf16(void)
{
    return matmul_has_bf16();
}

/* -- LayerNorm -- */

struct norm_pass {
    struct kernels *k;
    const struct device_norm *args;
};

static void norm_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct norm_pass *pass = context;
    const struct kernels *k = pass->k;
    const struct device_norm *args = pass->args;
    uint32_t first = task * PASS_ROWS;
    size_t at = (size_t)first * k->shape.channels;
    struct rows_norm rows = {
        .x = args->x + at,
        .weight = args->weight,
        .bias = args->bias,
        .mean = args->statistics + first,
        .deviation = args->statistics + k->row_count + first,
        .rows = MIN(PASS_ROWS, k->row_count - first),
        .columns = k->shape.channels,
        .epsilon = k->shape.norm_epsilon,
        .bf16 = k->bf16,
    };
    void *y = element_at_mutable(args->y, at, k->shape.precision);
    if (args->again)
        k->rows->norm_again(&rows, y);
    else
        k->rows->norm(&rows, y);
}

void device_norm(struct kernels *k, const struct device_norm *args)
{
    struct norm_pass pass = {k, args};
    pool_run(k->pool, norm_task, &pass, (uint32_t)div_up(k->row_count, PASS_ROWS));
}

/* [R / SUM_ROWS, 2, C]: each run of rows' part of the weight's and the bias's gradient. */
uint64_t device_norm_partial_bytes(const struct kernels_shape *shape)
{
    uint64_t runs = div_up(shape_row_count(shape), SUM_ROWS);
    return mul_checked(runs * 2, shape->channels * sizeof(float));
}

struct norm_backward_pass {
    struct kernels *k;
    const struct device_norm_backward *args;
};

static void norm_backward_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct norm_backward_pass *pass = context;
    const struct kernels *k = pass->k;
    const struct device_norm_backward *args = pass->args;
    uint32_t first = task * SUM_ROWS, channels = k->shape.channels;
    size_t at = (size_t)first * channels;
    float *partial = args->partial + (size_t)task * 2 * channels;
    struct rows_norm_backward rows = {
        .x = args->x + at,
        .dy = args->dy + at,
        .weight = args->weight,
        .mean = args->statistics + first,
        .deviation = args->statistics + k->row_count + first,
        .dx = args->dx + at,
        .accumulate = args->accumulate_dx,
        .dweight = partial,
        .dbias = partial + channels,
        .rows = MIN(SUM_ROWS, k->row_count - first),
        .columns = channels,
        .bf16 = k->bf16,
    };
    k->rows->norm_backward(&rows);
}

void device_norm_backward(struct kernels *k, const struct device_norm_backward *args)
{
    struct norm_backward_pass pass = {k, args};
    uint32_t runs = (uint32_t)div_up(k->row_count, SUM_ROWS), channels = k->shape.channels;
    pool_run(k->pool, norm_backward_task, &pass, runs);
    k->rows->column_sums(args->partial, 2 * channels, runs, channels, args->dweight,
                         args->accumulate_gradient, false);
    k->rows->column_sums(args->partial + channels, 2 * channels, runs, channels, args->dbias,
                         args->accumulate_gradient, false);
}

void kernels_norm_forward(struct kernels *k, const struct kernels_norm_forward *args)
{
    enum precision precision = k->shape.precision;
    device_norm(
        k, &(struct device_norm){.x = args->x,
                                 .weight = element_at(args->weights, k->final[0].offset, precision),
                                 .bias = element_at(args->weights, k->final[1].offset, precision),
                                 .statistics = args->statistics,
                                 .y = args->y});
}

void kernels_norm_backward(struct kernels *k, const struct kernels_norm_backward *args)
{
    if (!args->accumulate)
        device_zero_gaps(args->gradient, k->final, 2, k->final_count);
    device_norm_backward(
        k, &(struct device_norm_backward){
               .x = args->x,
               .dy = args->dy,
               .weight = element_at(args->weights, k->final[0].offset, k->shape.precision),
               .statistics = args->statistics,
               .dx = args->dx,
               .dweight = args->gradient + k->final[0].offset,
               .dbias = args->gradient + k->final[1].offset,
               .accumulate_gradient = args->accumulate,
               .partial = args->scratch});
}

/* -- Sums over rows, conversions -- */

struct sums_pass {
    struct kernels *k;
    const struct device_sums *args;
};

static void sums_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct sums_pass *pass = context;
    const struct device_sums *args = pass->args;
    uint32_t first = task * PASS_COLUMNS;
    enum precision precision = args->bf16 ? PRECISION_BF16 : PRECISION_FP32;
    pass->k->rows->column_sums(element_at(args->x, first, precision), args->columns, args->rows,
                               MIN(PASS_COLUMNS, args->columns - first), args->sums + first,
                               args->accumulate, args->bf16);
}

void device_column_sums(struct kernels *k, const struct device_sums *args)
{
    struct sums_pass pass = {k, args};
    pool_run(k->pool, sums_task, &pass, (uint32_t)div_up(args->columns, PASS_COLUMNS));
}

struct flat_pass {
    struct kernels *k;
    uint64_t count;
    const void *from;
    void *to;
    double *square_sums;
};

static void narrow_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct flat_pass *pass = context;
    uint64_t first = (uint64_t)task * PASS_PARAMETERS;
    pass->k->rows->narrow((const float *)pass->from + first, (uint16_t *)pass->to + first,
                          MIN(PASS_PARAMETERS, pass->count - first));
}

static void flat_run(struct flat_pass *pass, void (*task)(void *, uint32_t, uint32_t))
{
    pool_run(pass->k->pool, task, pass, (uint32_t)div_up(pass->count, PASS_PARAMETERS));
}

void device_narrow(struct kernels *k, const float *from, uint16_t *to, uint64_t count)
{
    struct flat_pass pass = {.k = k, .count = count, .from = from, .to = to};
    flat_run(&pass, narrow_task);
}

void device_zero_gaps(float *vector, const struct tensor_span *spans, uint32_t span_count,
                      uint64_t count)
{
    for (uint32_t i = 0; i < span_count; i++) {
        uint64_t end = spans[i].offset + spans[i].count;
        uint64_t next = i + 1 < span_count ? spans[i + 1].offset : count;
        ASSERT(end <= next);
        memset(vector + end, 0, (next - end) * sizeof(float));
    }
}

_Static_assert(PASS_PARAMETERS == KERNELS_NORM_BLOCK, "a task writes one sum of squares");

static void store_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct flat_pass *pass = context;
    const struct rows *rows = pass->k->rows;
    uint64_t first = (uint64_t)task * PASS_PARAMETERS;
    uint64_t count = MIN(PASS_PARAMETERS, pass->count - first);
    const float *from = (const float *)pass->from + first;
    if (!pass->k->bf16) {
        if (pass->to != pass->from)
            memcpy((float *)pass->to + first, from, count * sizeof(float));
        pass->square_sums[task] = rows->square_sum(from, count, false);
        return;
    }
    /* In place, each task first stays inside its own floats: what it would overwrite beyond is
     * another task's to read. kernels_gradient_store then moves the halves together. */
    bool in_place = pass->to == pass->from;
    uint16_t *to = (uint16_t *)pass->to + (in_place ? 2 * first : first);
    pass->square_sums[task] = rows->narrow_square_sum(from, to, count);
}

void kernels_gradient_store(struct kernels *k, const float *gradient, void *stored, uint64_t count,
                            double *square_sums)
{
    struct flat_pass pass = {
        .k = k, .count = count, .from = gradient, .to = stored, .square_sums = square_sums};
    flat_run(&pass, store_task);
    if (!k->bf16 || stored != (const void *)gradient)
        return;
    uint16_t *halves = stored;
    for (uint64_t first = PASS_PARAMETERS; first < count; first += PASS_PARAMETERS)
        memmove(halves + first, halves + 2 * first,
                MIN(PASS_PARAMETERS, count - first) * sizeof(uint16_t));
}

/* -- Embedding -- */

struct embed_pass {
    struct kernels *k;
    const struct kernels_embed_forward *forward;
    const struct kernels_embed_backward *backward;
};

static void embed_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct embed_pass *pass = context;
    const struct kernels *k = pass->k;
    const struct kernels_embed_forward *args = pass->forward;
    uint32_t channels = k->shape.channels;
    uint32_t end = MIN(k->row_count, (task + 1) * PASS_ROWS);
    for (uint32_t r = task * PASS_ROWS; r < end; r++) {
        ASSERT(args->tokens[r] < k->shape.vocab);
        uint32_t row = args->tokens[r] - args->row_first;
        if (args->tokens[r] < args->row_first || row >= args->row_count)
            continue;
        k->rows->widen(element_at(args->tile, (size_t)row * channels, k->shape.precision),
                       args->x + (size_t)r * channels, channels, false, k->bf16);
    }
}

void kernels_embed_forward(struct kernels *k, const struct kernels_embed_forward *args)
{
    struct embed_pass pass = {.k = k, .forward = args};
    pool_run(k->pool, embed_task, &pass, (uint32_t)div_up(k->row_count, PASS_ROWS));
}

/* One run of columns for all rows: rows with the same token add up in order of r. */
static void embed_backward_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct embed_pass *pass = context;
    const struct kernels *k = pass->k;
    const struct kernels_embed_backward *args = pass->backward;
    uint32_t channels = k->shape.channels, first = task * PASS_COLUMNS;
    uint32_t columns = MIN(PASS_COLUMNS, channels - first);
    for (uint32_t r = 0; r < k->row_count; r++) {
        uint32_t row = args->tokens[r] - args->row_first;
        if (args->tokens[r] < args->row_first || row >= args->row_count)
            continue;
        k->rows->add(args->dx + (size_t)r * channels + first,
                     args->gradient + (size_t)row * channels + first, columns);
    }
}

void kernels_embed_backward(struct kernels *k, const struct kernels_embed_backward *args)
{
    struct embed_pass pass = {.k = k, .backward = args};
    pool_run(k->pool, embed_backward_task, &pass,
             (uint32_t)div_up(k->shape.channels, PASS_COLUMNS));
}

struct position_pass {
    struct kernels *k;
    const struct kernels_position_forward *forward;
    const struct kernels_position_backward *backward;
};

static void position_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct position_pass *pass = context;
    const struct kernels *k = pass->k;
    const struct kernels_position_forward *args = pass->forward;
    uint32_t channels = k->shape.channels;
    uint32_t end = MIN(k->row_count, (task + 1) * PASS_ROWS);
    for (uint32_t r = task * PASS_ROWS; r < end; r++) {
        size_t position = r % k->shape.seq;
        k->rows->widen(element_at(args->wpe, position * channels, k->shape.precision),
                       args->x + (size_t)r * channels, channels, true, k->bf16);
    }
}

void kernels_position_forward(struct kernels *k, const struct kernels_position_forward *args)
{
    struct position_pass pass = {.k = k, .forward = args};
    pool_run(k->pool, position_task, &pass, (uint32_t)div_up(k->row_count, PASS_ROWS));
}

static void position_backward_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct position_pass *pass = context;
    const struct kernels *k = pass->k;
    const struct kernels_position_backward *args = pass->backward;
    uint32_t channels = k->shape.channels;
    uint32_t end = MIN(args->positions, (task + 1) * PASS_ROWS);
    for (uint32_t t = task * PASS_ROWS; t < end; t++) {
        float *gradient = args->gradient + (size_t)t * channels;
        if (!args->accumulate)
            memset(gradient, 0, channels * sizeof(float));
        for (uint32_t b = 0; b < k->shape.batch && t < k->shape.seq; b++)
            k->rows->add(args->dx + ((size_t)b * k->shape.seq + t) * channels, gradient, channels);
    }
}

void kernels_position_backward(struct kernels *k, const struct kernels_position_backward *args)
{
    struct position_pass pass = {.k = k, .backward = args};
    pool_run(k->pool, position_backward_task, &pass, (uint32_t)div_up(args->positions, PASS_ROWS));
}
