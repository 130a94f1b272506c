#include "model/cpu/device.h"
#include "core/mem.h"

/* Two products at a time are all that a block ever has to offer. */
#define JOBS_MAX 4

void product_init(struct product *product, struct matmul *matmul,
                  const struct matmul_product *whole, bool ended)
{
    *product = (struct product){.whole = *whole, .ended = ended};
    product->row_tile = tile_size(whole->m, PRODUCT_ROWS);
    product->column_tile = tile_size(whole->n, PRODUCT_COLUMNS);
    uint32_t row_last = (uint32_t)div_up(whole->m, product->row_tile) - 1;
    uint32_t column_last = (uint32_t)div_up(whole->n, product->column_tile) - 1;
    for (unsigned kind = 0; kind < 8; kind++) {
        bool accumulate = kind & 4, last_row = kind & 2, last_column = kind & 1;
        /* An ended product is whole in the worker's buffer: it never adds to what was there. */
        struct matmul_product tile = *whole;
        tile.accumulate = accumulate && !ended;
        tile.m = tile_extent(whole->m, product->row_tile, last_row ? row_last : 0);
        tile.n = tile_extent(whole->n, product->column_tile, last_column ? column_last : 0);
        if (ended)
            tile.c_stride = product->column_tile;
        product->kinds[accumulate][last_row][last_column] = matmul_declare(matmul, &tile);
    }
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

static void run_tile(const struct kernels *k, const struct product_job *job, uint32_t tile,
                     uint32_t worker)
{
    const struct product *product = job->product;
    const struct matmul_product *whole = &product->whole;
    uint32_t columns = column_tiles(product);
    uint32_t tile_row = tile / columns, tile_column = tile % columns;
    bool last_row = tile_row + 1 == row_tiles(product), last_column = tile_column + 1 == columns;
    uint32_t row = tile_row * product->row_tile, column = tile_column * product->column_tile;
    size_t a_at = (size_t)row * (whole->a_transposed ? 1 : whole->a_stride);
    size_t b_at = (size_t)column * (whole->b_transposed ? whole->b_stride : 1);
    const void *a = element_at(job->a, a_at, whole->precision);
    const void *b = element_at(job->b, b_at, whole->precision);
    if (!product->ended) {
        matmul_run(k->matmul, product->kinds[job->accumulate][last_row][last_column], worker, a, b,
                   job->c + (size_t)row * whole->c_stride + column);
        return;
    }
    struct rows_tile result = {
        .values = worker_memory(k, worker),
        .stride = product->column_tile,
        .rows = tile_extent(whole->m, product->row_tile, tile_row),
        .columns = tile_extent(whole->n, product->column_tile, tile_column),
        .bf16 = k->bf16,
    };
    matmul_run(k->matmul, product->kinds[0][last_row][last_column], worker, a, b, result.values);
    end_tile(k, job, &result, row, column);
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
    run_tile(run->k, &run->jobs[job], task - run->first_task[job], worker);
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
