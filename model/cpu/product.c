#include "model/cpu/device.h"

/* Two products at a time are all that a block ever has to offer. */
#define JOBS_MAX 4

/* Packed: every row of tiles packs b again, so tiles are high, as long as all workers have some. Of
 * a long k, that of a weight's gradient in a long step, a block at a time is added to c, so that
 * a's packed rows stay in the second cache too. */
#define PANEL_COLUMNS  192u
#define PANEL_ROWS     1024u
#define PANEL_ROWS_MIN 64u
#define PANEL_WORDS    512u
#define ENDING_ROWS    16u /* of a panel, in the first cache */

static void declare_kinds(struct product *product, struct matmul *matmul)
{
    const struct matmul_product *whole = &product->whole;
    uint32_t row_last = (uint32_t)div_up(whole->m, product->row_tile) - 1;
    uint32_t column_last = (uint32_t)div_up(whole->n, product->column_tile) - 1;
    for (unsigned kind = 0; kind < 8; kind++) {
        bool accumulate = kind & 4, last_row = kind & 2, last_column = kind & 1;
        /* An ended product is whole in the worker's buffer: it never adds to what was there. */
        struct matmul_product tile = *whole;
        tile.accumulate = accumulate && !product->ended;
        tile.m = tile_extent(whole->m, product->row_tile, last_row ? row_last : 0);
        tile.n = tile_extent(whole->n, product->column_tile, last_column ? column_last : 0);
        if (product->ended)
            tile.c_stride = product->column_tile;
        product->kinds[accumulate][last_row][last_column] = matmul_declare(matmul, &tile);
    }
}

/* Elements of k in one block: as many blocks as needed, all alike but for the last. */
static uint32_t block_k(const struct matmul_product *whole)
{
    uint32_t most = PANEL_WORDS * (uint32_t)sizeof(float) / precision_bytes(whole->precision);
    return tile_size(whole->k, most);
}

static void cut_into_panels(struct product *product, const struct kernels *k)
{
    const struct matmul_product *whole = &product->whole;
    product->block_k = product->ended ? whole->k : block_k(whole);
    uint32_t column_bytes = product->block_k * precision_bytes(whole->precision);
    uint32_t columns = panel_columns(column_bytes, GEMM_STRIP_COLUMNS, PANEL_COLUMNS);
    product->column_tile = MIN(whole->n, columns);
    uint64_t panels = div_up(whole->n, product->column_tile);
    product->row_tile =
        tile_size(whole->m, packed_rows(k, panels, whole->m, PANEL_ROWS_MIN, PANEL_ROWS));
}

/* A panel's memory: gemm's scratch, packed b, and rows of the result that await their ending. */
static uint64_t panel_memory(const struct product *product, uint8_t *base, struct gemm *gemm,
                             float **result)
{
    enum precision precision = product->whole.precision;
    uint64_t used = 0;
    uint64_t scratch = layout_take(&used, gemm_scratch_bytes(&product->whole, product->block_k));
    uint64_t b =
        layout_take(&used, gemm_panel_bytes(product->column_tile, product->block_k, precision));
    uint64_t rows = layout_take(
        &used, product->ended ? (uint64_t)ENDING_ROWS * product->column_tile * sizeof(float) : 0);
    if (gemm) {
        *gemm = (struct gemm){.b = (uint32_t *)(base + b), .scratch = (uint32_t *)(base + scratch)};
        if (result)
            *result = (float *)(base + rows);
    }
    return used;
}

void product_init(struct product *product, struct kernels *k, const struct matmul_product *whole,
                  bool ended)
{
    *product = (struct product){
        .whole = *whole, .ended = ended, .packed = matmul_is_packed(whole->precision)};
    uint64_t bytes;
    if (product->packed) {
        cut_into_panels(product, k);
        bytes = panel_memory(product, NULL, NULL, NULL);
    } else {
        product->row_tile = tile_size(whole->m, PRODUCT_ROWS);
        product->column_tile = tile_size(whole->n, PRODUCT_COLUMNS);
        declare_kinds(product, k->matmul);
        bytes = (uint64_t)product->row_tile * product->column_tile * sizeof(float);
    }
    k->worker_bytes = MAX(k->worker_bytes, bytes);
}

static uint32_t row_tiles(const struct product *product)
{
    return (uint32_t)div_up(product->whole.m, product->row_tile);
}

static uint32_t column_tiles(const struct product *product)
{
    return (uint32_t)div_up(product->whole.n, product->column_tile);
}

/* What follows a tile of the product that starts at row, column of the whole. */
static void end_tile(const struct kernels *k, const struct product_job *job,
                     const struct rows_tile *tile, uint32_t row, uint32_t column)
{
    enum precision precision = k->shape.precision;
    uint32_t stride = job->product->whole.n;
    size_t at = (size_t)row * stride + column;
    void *out = element_at_mutable(job->out, at, precision);
    const void *bias = job->bias ? element_at(job->bias, column, precision) : NULL;
    switch (job->ending) {
    case ENDING_STORE:
        k->rows->store(tile, out, stride);
        return;
    case ENDING_BIAS_STORE:
        k->rows->bias_store(tile, bias, out, stride);
        return;
    case ENDING_BIAS_GELU:
        k->rows->bias_gelu(tile, bias, out, element_at_mutable(job->act, at, precision), stride);
        return;
    case ENDING_BIAS_RESIDUAL:
        k->rows->bias_residual(tile, bias, job->residual + at, (float *)job->out + at, stride);
        return;
    case ENDING_GELU_BACKWARD:
        k->rows->gelu_backward(tile, element_at(job->pre, at, precision), out,
                               element_at_mutable(job->act, at, precision), stride);
        return;
    case ENDING_NONE:
        break;
    }
    ASSERT(false);
}

/* A tile of a product, and where its factors begin. */
struct tile {
    uint32_t row, column, rows, columns; /* of the whole */
    bool last_row, last_column;
    const void *a, *b;
};

static struct tile tile_of(const struct product_job *job, uint32_t index)
{
    const struct product *product = job->product;
    const struct matmul_product *whole = &product->whole;
    uint32_t columns = column_tiles(product);
    uint32_t tile_row = index / columns, tile_column = index % columns;
    struct tile tile = {
        .row = tile_row * product->row_tile,
        .column = tile_column * product->column_tile,
        .rows = tile_extent(whole->m, product->row_tile, tile_row),
        .columns = tile_extent(whole->n, product->column_tile, tile_column),
        .last_row = tile_row + 1 == row_tiles(product),
        .last_column = tile_column + 1 == columns,
    };
    size_t a_at = (size_t)tile.row * (whole->a_transposed ? 1 : whole->a_stride);
    size_t b_at = (size_t)tile.column * (whole->b_transposed ? whole->b_stride : 1);
    tile.a = element_at(job->a, a_at, whole->precision);
    tile.b = element_at(job->b, b_at, whole->precision);
    return tile;
}

static void run_tile(const struct kernels *k, const struct product_job *job,
                     const struct tile *tile, uint32_t worker)
{
    const struct product *product = job->product;
    const struct matmul_product *whole = &product->whole;
    if (!product->ended) {
        matmul_run(k->matmul, product->kinds[job->accumulate][tile->last_row][tile->last_column],
                   worker, tile->a, tile->b,
                   job->c + (size_t)tile->row * whole->c_stride + tile->column);
        return;
    }
    struct rows_tile result = {
        .values = worker_memory(k, worker),
        .stride = product->column_tile,
        .rows = tile->rows,
        .columns = tile->columns,
        .bf16 = k->bf16,
    };
    matmul_run(k->matmul, product->kinds[0][tile->last_row][tile->last_column], worker, tile->a,
               tile->b, result.values);
    end_tile(k, job, &result, tile->row, tile->column);
}

/* A tile of a matrix, of elements of that many bytes; nothing where there is no matrix. */
static void fetch(const void *matrix, size_t first, uint32_t stride, const struct rows_tile *tile,
                  uint32_t element)
{
    const char *from = (const char *)matrix + first * element;
    for (uint32_t r = 0; matrix && r < tile->rows; r++)
        for (uint32_t at = 0; at < tile->columns * element; at += DEVICE_ALIGN)
            __builtin_prefetch(from + (size_t)r * stride * element + at, 0, 2);
}

/* What end_tile will read and write is on its way while the product is computed. */
static void fetch_ending(const struct kernels *k, const struct product_job *job,
                         const struct rows_tile *tile, uint32_t row, uint32_t column)
{
    uint32_t stride = job->product->whole.n, element = precision_bytes(k->shape.precision);
    uint32_t out = job->ending == ENDING_BIAS_RESIDUAL ? sizeof(float) : element;
    size_t at = (size_t)row * stride + column;
    fetch(job->out, at, stride, tile, out);
    fetch(job->act, at, stride, tile, element);
    fetch(job->pre == job->out ? NULL : job->pre, at, stride, tile, element);
    fetch(job->residual, at, stride, tile, sizeof(float));
}

/* The panel's b is packed once, and some rows at a time are computed and ended. */
static void run_ended_panel(const struct kernels *k, const struct product_job *job,
                            const struct tile *tile, uint8_t *memory)
{
    const struct matmul_product *whole = &job->product->whole;
    struct matmul_product panel = *whole;
    panel.n = tile->columns;
    struct gemm gemm;
    float *values;
    panel_memory(job->product, memory, &gemm, &values);
    gemm.product = &panel;
    gemm_pack(&panel, tile->b, gemm.b);
    ASSERT(!whole->a_transposed);
    struct rows_tile result = {
        .values = values,
        .stride = job->product->column_tile,
        .columns = tile->columns,
        .bf16 = k->bf16,
    };
    for (uint32_t row = 0; row < tile->rows; row += ENDING_ROWS) {
        result.rows = MIN(ENDING_ROWS, tile->rows - row);
        fetch_ending(k, job, &result, tile->row + row, tile->column);
        gemm_rows(&gemm, element_at(tile->a, (size_t)row * whole->a_stride, whole->precision),
                  result.rows, result.values, result.stride, false);
        end_tile(k, job, &result, tile->row + row, tile->column);
    }
}

/* Block after block of k, added up in c. */
static void run_panel(const struct product_job *job, const struct tile *tile, uint8_t *memory)
{
    const struct product *product = job->product;
    struct matmul_product panel = product->whole;
    panel.n = tile->columns;
    float *c = job->c + (size_t)tile->row * panel.c_stride + tile->column;
    struct gemm gemm;
    panel_memory(product, memory, &gemm, NULL);
    gemm.product = &panel;
    for (uint32_t first = 0; first < product->whole.k; first += product->block_k) {
        panel.k = MIN(product->block_k, product->whole.k - first);
        size_t a_at = (size_t)first * (panel.a_transposed ? panel.a_stride : 1);
        size_t b_at = (size_t)first * (panel.b_transposed ? 1 : panel.b_stride);
        gemm_pack(&panel, element_at(tile->b, b_at, panel.precision), gemm.b);
        gemm_rows(&gemm, element_at(tile->a, a_at, panel.precision), tile->rows, c, panel.c_stride,
                  job->accumulate || first > 0);
    }
}

struct run {
    const struct kernels *k;
    const struct product_job *jobs;
    uint32_t job_count;
    uint32_t first_task[JOBS_MAX + 1];
};

static void run_task(void *context, uint32_t task, uint32_t worker)
{
    const struct run *run = context;
    uint32_t job = 0;
    while (task >= run->first_task[job + 1])
        job++;
    ASSERT(job < run->job_count);
    const struct product_job *of = &run->jobs[job];
    struct tile tile = tile_of(of, task - run->first_task[job]);
    if (!of->product->packed)
        run_tile(run->k, of, &tile, worker);
    else if (of->product->ended)
        run_ended_panel(run->k, of, &tile, worker_memory(run->k, worker));
    else
        run_panel(of, &tile, worker_memory(run->k, worker));
}

void product_run(struct kernels *k, const struct product_job *jobs, uint32_t job_count)
{
    ASSERT(job_count > 0 && job_count <= JOBS_MAX);
    struct run run = {.k = k, .jobs = jobs, .job_count = job_count};
    for (uint32_t i = 0; i < job_count; i++) {
        ASSERT(jobs[i].product->ended == (jobs[i].ending != ENDING_NONE));
        run.first_task[i + 1] =
            run.first_task[i] + row_tiles(jobs[i].product) * column_tiles(jobs[i].product);
    }
    pool_run(k->pool, run_task, &run, run.first_task[job_count]);
}
