/*
 * Matrix products at GPT-2's shapes, and how much of their rate a whole training step keeps.
 *
 * First table: GFLOP/s of whole products as the kernels run them, but without what follows them,
 * beside oneDNN in the tiles that they use on other CPUs, and OpenBLAS where it is installed
 * (opened at run time: nothing of the program needs it), on one thread and on all that were asked
 * for. Second: one forward and backward of gpt2-124m's block and of its head at 4 x 256 tokens, in
 * GFLOP/s of products, and as a share of the first table's mean. Usage: bench_matmul [threads]
 */
#include "core/base.h"
#include "core/clock.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/pool.h"
#include "model/cpu/device.h"
#include "model/cpu/matmul.h"
#include "model/cpu/trial.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_COUNT 1024u /* 4 sequences of 256 tokens */
#define CHANNELS   768u
#define HEAD_TILE  4096u
#define REPEATS    7

struct shape {
    const char *name;
    uint32_t m, n, k;
    bool a_transposed, b_transposed;
};

static const struct shape shapes[] = {
    {"qkv", ROWS_COUNT, 3 * CHANNELS, CHANNELS, false, false},
    {"fc", ROWS_COUNT, 4 * CHANNELS, CHANNELS, false, false},
    {"out", ROWS_COUNT, CHANNELS, 4 * CHANNELS, false, false},
    {"fc, dx", ROWS_COUNT, CHANNELS, 4 * CHANNELS, false, true},
    {"out, dx", ROWS_COUNT, 4 * CHANNELS, CHANNELS, false, true},
    {"fc, dW", CHANNELS, 4 * CHANNELS, ROWS_COUNT, true, false},
    {"out, dW", 4 * CHANNELS, CHANNELS, ROWS_COUNT, true, false},
    {"logits", ROWS_COUNT, HEAD_TILE, CHANNELS, false, true},
};

static double gflops(const struct shape *s, uint64_t best_ns)
{
    return 2.0 * s->m * s->n * s->k / (double)best_ns;
}

static void *fill(uint64_t bytes, enum precision precision)
{
    void *memory = mem_alloc_aligned(4096, bytes);
    uint64_t count = bytes / precision_bytes(precision);
    for (uint64_t i = 0; i < count; i++) {
        float value = (float)((i * 2654435761u >> 20) & 255) / 256.0f - 0.5f;
        if (precision == PRECISION_BF16)
            ((uint16_t *)memory)[i] = float_to_bf16(value);
        else
            ((float *)memory)[i] = value;
    }
    return memory;
}

/* -- Products as the kernels run them: by gemm where it is, else by oneDNN -- */

static struct matmul_product whole_product(const struct shape *s, enum precision precision)
{
    return (struct matmul_product){.m = s->m,
                                   .n = s->n,
                                   .k = s->k,
                                   .a_stride = s->a_transposed ? s->m : s->k,
                                   .b_stride = s->b_transposed ? s->k : s->n,
                                   .c_stride = s->n,
                                   .a_transposed = s->a_transposed,
                                   .b_transposed = s->b_transposed,
                                   .precision = precision};
}

struct operands {
    void *a, *b;
    float *c;
};

static struct operands operands_fill(const struct shape *s, enum precision precision)
{
    uint32_t element = precision_bytes(precision);
    return (struct operands){
        .a = fill((uint64_t)s->m * s->k * element, precision),
        .b = fill((uint64_t)s->k * s->n * element, precision),
        .c = fill((uint64_t)s->m * s->n * sizeof(float), PRECISION_FP32),
    };
}

static void operands_free(struct operands *o)
{
    mem_free(o->a);
    mem_free(o->b);
    mem_free(o->c);
}

static double run_ours(const struct shape *s, enum precision precision, uint32_t threads)
{
    struct err err;
    struct pool *pool;
    struct trial *trial;
    struct matmul_product whole = whole_product(s, precision);
    if (pool_open(&pool, "bench", threads, true, &err) || trial_open(&trial, &whole, pool, &err))
        fatal("%s", err.message);
    struct operands o = operands_fill(s, precision);
    uint64_t best_ns = UINT64_MAX;
    for (int i = 0; i < REPEATS; i++) {
        uint64_t start_ns = clock_ns();
        trial_run(trial, o.a, o.b, o.c);
        best_ns = MIN(best_ns, clock_ns() - start_ns);
    }
    operands_free(&o);
    trial_close(trial);
    pool_close(pool);
    return gflops(s, best_ns);
}

/* -- oneDNN, in the tiles that the kernels use where it is all there is -- */

struct tiled {
    struct matmul *matmul;
    const struct shape *shape;
    uint32_t product, element;
    struct operands operands;
};

static void tiled_task(void *context, uint32_t task, uint32_t worker)
{
    const struct tiled *t = context;
    const struct shape *s = t->shape;
    size_t row = task / (s->n / PRODUCT_COLUMNS) * PRODUCT_ROWS;
    size_t column = task % (s->n / PRODUCT_COLUMNS) * PRODUCT_COLUMNS;
    size_t a = s->a_transposed ? row : row * s->k, b = s->b_transposed ? column * s->k : column;
    matmul_run(t->matmul, t->product, worker, (char *)t->operands.a + a * t->element,
               (char *)t->operands.b + b * t->element, t->operands.c + row * s->n + column);
}

static double run_onednn(const struct shape *s, enum precision precision, uint32_t threads)
{
    struct err err;
    struct pool *pool;
    struct tiled t = {.shape = s, .element = precision_bytes(precision)};
    if (pool_open(&pool, "bench", threads, true, &err) || matmul_open(&t.matmul, threads, &err))
        fatal("%s", err.message);
    matmul_use_library(t.matmul);
    struct matmul_product product = whole_product(s, precision);
    product.m = PRODUCT_ROWS;
    product.n = PRODUCT_COLUMNS;
    t.product = matmul_declare(t.matmul, &product);
    matmul_ready(t.matmul);
    t.operands = operands_fill(s, precision);
    uint64_t best_ns = UINT64_MAX;
    /* The last columns that make no whole tile (logits: 4096 of 384) are left out of both sides. */
    uint32_t tiles = s->m / PRODUCT_ROWS * (s->n / PRODUCT_COLUMNS);
    for (int i = 0; i < REPEATS; i++) {
        uint64_t start_ns = clock_ns();
        pool_run(pool, tiled_task, &t, tiles);
        best_ns = MIN(best_ns, clock_ns() - start_ns);
    }
    struct shape done = *s;
    done.n = s->n / PRODUCT_COLUMNS * PRODUCT_COLUMNS;
    operands_free(&t.operands);
    matmul_close(t.matmul);
    pool_close(pool);
    return gflops(&done, best_ns);
}

/* -- OpenBLAS -- */

enum { CBLAS_ROW_MAJOR = 101, CBLAS_PLAIN = 111, CBLAS_TRANSPOSED = 112 };

struct openblas {
    void *library;
    void (*sgemm)(int order, int a_form, int b_form, int m, int n, int k, float alpha,
                  const float *a, int a_stride, const float *b, int b_stride, float beta, float *c,
                  int c_stride);
    void (*set_threads)(int);
    char *(*core_name)(void);
};

static bool openblas_open(struct openblas *blas)
{
    blas->library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!blas->library)
        return false;
    *(void **)&blas->sgemm = dlsym(blas->library, "cblas_sgemm");
    *(void **)&blas->set_threads = dlsym(blas->library, "openblas_set_num_threads");
    *(void **)&blas->core_name = dlsym(blas->library, "openblas_get_corename");
    return blas->sgemm && blas->set_threads && blas->core_name;
}

static double run_openblas(const struct openblas *blas, const struct shape *s, uint32_t threads)
{
    struct operands o = operands_fill(s, PRECISION_FP32);
    uint64_t best_ns = UINT64_MAX;
    blas->set_threads((int)threads);
    for (int i = 0; i < REPEATS; i++) {
        uint64_t start_ns = clock_ns();
        blas->sgemm(CBLAS_ROW_MAJOR, s->a_transposed ? CBLAS_TRANSPOSED : CBLAS_PLAIN,
                    s->b_transposed ? CBLAS_TRANSPOSED : CBLAS_PLAIN, (int)s->m, (int)s->n,
                    (int)s->k, 1.0f, o.a, (int)(s->a_transposed ? s->m : s->k), o.b,
                    (int)(s->b_transposed ? s->k : s->n), 0.0f, o.c, (int)s->n);
        best_ns = MIN(best_ns, clock_ns() - start_ns);
    }
    operands_free(&o);
    return gflops(s, best_ns);
}

/* -- A whole step -- */

struct step {
    struct kernels *k;
    struct kernels_shape shape;
    void *weights, *inner, *scratch, *tile, *y;
    float *x_in, *x_out, *dx, *gradient, *tile_gradient, *running;
    uint32_t *tokens;
};

static void step_block(struct step *s)
{
    kernels_block_forward(s->k, &(struct kernels_block_forward){.weights = s->weights,
                                                                .x_in = s->x_in,
                                                                .x_out = s->x_out,
                                                                .inner = s->inner,
                                                                .scratch = s->scratch});
    kernels_block_backward(s->k, &(struct kernels_block_backward){.weights = s->weights,
                                                                  .x_in = s->x_in,
                                                                  .inner = s->inner,
                                                                  .dx = s->dx,
                                                                  .gradient = s->gradient,
                                                                  .scratch = s->scratch});
}

static void step_head(struct step *s)
{
    kernels_head_forward(s->k, &(struct kernels_head_forward){.tile = s->tile,
                                                              .row_count = HEAD_TILE,
                                                              .y = s->y,
                                                              .targets = s->tokens,
                                                              .running = s->running,
                                                              .first = true,
                                                              .scratch = s->scratch});
    kernels_head_backward(s->k, &(struct kernels_head_backward){.tile = s->tile,
                                                                .row_count = HEAD_TILE,
                                                                .y = s->y,
                                                                .targets = s->tokens,
                                                                .running = s->running,
                                                                .loss_scale = 1e-3f,
                                                                .dy = s->dx,
                                                                .first = true,
                                                                .gradient = s->tile_gradient,
                                                                .scratch = s->scratch});
}

static uint64_t best_of(struct step *s, void (*run)(struct step *))
{
    uint64_t best_ns = UINT64_MAX;
    for (int i = 0; i < REPEATS; i++) {
        /* A gradient that grows over the repeats would end in infinities. */
        memset(s->dx, 0, sizeof(float) * ROWS_COUNT * CHANNELS);
        uint64_t start_ns = clock_ns();
        run(s);
        best_ns = MIN(best_ns, clock_ns() - start_ns);
    }
    return best_ns;
}

static void bench_step(enum precision precision, uint32_t threads, double ceiling)
{
    struct err err;
    struct pool *pool;
    struct config config;
    struct tensors tensors;
    struct kernels_sizes sizes;
    if (config_from_name(&config, "gpt2-124m", &err) ||
        pool_open(&pool, "bench", threads, true, &err))
        fatal("%s", err.message);
    tensors_init(&tensors, &config);
    struct step s = {.shape = {.precision = precision,
                               .batch = 4,
                               .seq = ROWS_COUNT / 4,
                               .channels = CHANNELS,
                               .heads = config.heads,
                               .vocab = config.vocab,
                               .tile_rows_max = HEAD_TILE,
                               .norm_epsilon = config.norm_epsilon}};
    if (kernels_cpu_open(&s.k, &s.shape, &tensors, pool, &err))
        fatal("%s", err.message);
    kernels_sizes(&s.shape, &sizes);
    uint64_t count = tensors.groups[1].parameter_count, rows = ROWS_COUNT;
    uint64_t element = precision_bytes(precision), flow = rows * CHANNELS * sizeof(float);
    s.weights = mem_alloc(count, element);
    for (uint64_t i = 0; i < count; i++) {
        float value = tensors_initial_value(&tensors, 2 + BLOCK_FC_WEIGHT, i % (CHANNELS * 4), 1);
        memcpy((char *)s.weights + i * element, (char *)&value + sizeof(value) - element, element);
    }
    s.inner = mem_alloc_aligned(4096, sizes.inner_bytes);
    s.scratch = mem_alloc_aligned(4096, sizes.scratch_bytes);
    s.tile = fill(HEAD_TILE * CHANNELS * element, precision);
    s.y = fill(rows * CHANNELS * element, precision);
    s.x_in = fill(flow, PRECISION_FP32);
    s.x_out = fill(flow, PRECISION_FP32);
    s.dx = fill(flow, PRECISION_FP32);
    s.gradient = mem_alloc_aligned(4096, count * sizeof(float));
    s.tile_gradient = mem_alloc_aligned(4096, (uint64_t)HEAD_TILE * CHANNELS * sizeof(float));
    s.running = mem_alloc(3 * rows, sizeof(float));
    s.tokens = mem_alloc(rows, sizeof(uint32_t));
    /* Attention's products count by what causality needs of them: half. */
    double block_flop = 6.0 * 12 * CHANNELS * CHANNELS * ROWS_COUNT +
                        0.5 * 12.0 * ROWS_COUNT * (ROWS_COUNT / 4) * CHANNELS;
    double head_flop = 8.0 * HEAD_TILE * CHANNELS * ROWS_COUNT;
    double block = block_flop / (double)best_of(&s, step_block);
    double head = head_flop / (double)best_of(&s, step_head);
    printf("%s, %u thread(s): block %.0f GFLOP/s (%.0f %%), head %.0f (%.0f %%)\n",
           precision == PRECISION_BF16 ? "bf16" : "fp32", threads, block, 100.0 * block / ceiling,
           head, 100.0 * head / ceiling);
    printf("  inner %.1f MiB, scratch %.1f MiB\n", (double)sizes.inner_bytes / MIB,
           (double)sizes.scratch_bytes / MIB);
    kernels_close(s.k);
    pool_close(pool);
    tensors_deinit(&tensors);
    void *owned[] = {s.weights, s.inner, s.scratch,  s.tile,    s.y,      s.x_in,
                     s.x_out,   s.dx,    s.gradient, s.running, s.tokens, s.tile_gradient};
    for (size_t i = 0; i < ARRAY_COUNT(owned); i++)
        mem_free(owned[i]);
}

int main(int argc, char **argv)
{
    uint32_t threads_max = argc > 1 ? (uint32_t)atoi(argv[1]) : 2;
    if (threads_max < 1 || threads_max > POOL_THREADS_MAX)
        fatal("usage: bench_matmul [threads, 1 to %d]", POOL_THREADS_MAX);
    struct openblas blas = {0};
    bool has_openblas = openblas_open(&blas);
    double mean[2][2] = {{0}};
    printf("GFLOP/s at gpt2-124m, 4 x 256; %s; OpenBLAS %s\n", matmul_library(),
           has_openblas ? blas.core_name() : "is not installed");
    printf("%-8s %7s %9s %9s %12s %12s %9s\n", "product", "threads", "fp32", "bf16", "oneDNN fp32",
           "oneDNN bf16", "OpenBLAS");
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        for (uint32_t n = 0; n < (threads_max > 1 ? 2 : 1); n++) {
            uint32_t threads = n ? threads_max : 1;
            double fp32 = run_ours(&shapes[i], PRECISION_FP32, threads);
            double bf16 = run_ours(&shapes[i], PRECISION_BF16, threads);
            mean[n][0] += fp32 / ARRAY_COUNT(shapes);
            mean[n][1] += bf16 / ARRAY_COUNT(shapes);
            printf("%-8s %7u %9.0f %9.0f %12.0f %12.0f", shapes[i].name, threads, fp32, bf16,
                   run_onednn(&shapes[i], PRECISION_FP32, threads),
                   run_onednn(&shapes[i], PRECISION_BF16, threads));
            if (has_openblas)
                printf(" %9.0f", run_openblas(&blas, &shapes[i], threads));
            printf("\n");
        }
    }
    for (uint32_t n = 0; n < (threads_max > 1 ? 2 : 1); n++)
        for (unsigned precision = 0; precision < 2; precision++)
            bench_step((enum precision)precision, n ? threads_max : 1, mean[n][precision]);
    return 0;
}
