#include "offload/cores.h"

#include "core/base.h"
#include "core/clock.h"
#include "core/float.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "model/cpu/matmul.h"

/* The product: that of gpt2-124m's MLP at 4 x 256 tokens, in tiles. Its 18 to 24 MiB are more than
 * second-level caches hold. They are given back to the system at once: what the process takes is
 * counted when the device has been opened. */
#define ROWS         1024u
#define COLUMNS      3072u
#define DEPTH        768u
#define TILE_ROWS    256u
#define TILE_COLUMNS 192u
#define CACHES_MAX   16u
#define SECONDS      0.1
#define REPEATS_MIN  3u

struct trial {
    struct matmul *matmul;
    uint32_t product, element;
    const char *a, *b;
    float *c;
};

static void trial_task(void *context, uint32_t task, uint32_t worker)
{
    const struct trial *t = context;
    size_t row = task / (COLUMNS / TILE_COLUMNS) * TILE_ROWS;
    size_t column = task % (COLUMNS / TILE_COLUMNS) * TILE_COLUMNS;
    matmul_run(t->matmul, t->product, worker, t->a + row * DEPTH * t->element,
               t->b + column * t->element, t->c + row * COLUMNS + column);
}

/* Of a factor, any numbers that are not zero; returns what is behind it. */
static uint8_t *fill(uint8_t *memory, size_t count, enum precision precision)
{
    for (size_t i = 0; i < count; i++) {
        float value = 0.01f * (float)(1 + i % 7);
        if (precision == PRECISION_BF16)
            ((uint16_t *)memory)[i] = float_to_bf16(value);
        else
            ((float *)memory)[i] = value;
    }
    return memory + count * precision_bytes(precision);
}

/* Products a second, the best of all repeats: what disturbs only slows. */
static double best_rate(struct trial *t, struct pool *pool)
{
    uint64_t best_ns = UINT64_MAX, start_ns = clock_ns();
    for (uint32_t i = 0; i < REPEATS_MIN || (double)(clock_ns() - start_ns) < SECONDS * 1e9; i++) {
        uint64_t before_ns = clock_ns();
        pool_run(pool, trial_task, t, ROWS / TILE_ROWS * (COLUMNS / TILE_COLUMNS));
        best_ns = MIN(best_ns, clock_ns() - before_ns);
    }
    return 1e9 / (double)best_ns;
}

static void run_trial(struct trial *t, struct pool *pool, uint8_t *memory, enum precision precision,
                      double *rate)
{
    t->product = matmul_declare(t->matmul, &(struct matmul_product){.m = TILE_ROWS,
                                                                    .n = TILE_COLUMNS,
                                                                    .k = DEPTH,
                                                                    .a_stride = DEPTH,
                                                                    .b_stride = COLUMNS,
                                                                    .c_stride = COLUMNS,
                                                                    .precision = precision});
    matmul_ready(t->matmul);
    uint8_t *b = fill(memory, (size_t)ROWS * DEPTH, precision);
    t->a = (const char *)memory;
    t->b = (const char *)b;
    t->c = (float *)fill(b, (size_t)DEPTH * COLUMNS, precision);
    *rate = best_rate(t, pool);
}

static int measure(uint32_t thread_count, enum precision precision, double *rate, struct err *err)
{
    struct trial t = {.element = precision_bytes(precision)};
    uint64_t factors = ((uint64_t)ROWS * DEPTH + (uint64_t)DEPTH * COLUMNS) * t.element;
    struct mem_arena arena = {0};
    struct pool *pool = NULL;
    int result = mem_arena_open(&arena, factors + (uint64_t)ROWS * COLUMNS * sizeof(float), err);
    if (result == 0)
        result = pool_open(&pool, "cores", thread_count, true, err);
    if (result == 0)
        result = matmul_open(&t.matmul, thread_count, err);
    if (result == 0)
        run_trial(&t, pool, arena.base, precision, rate);
    matmul_close(t.matmul);
    pool_close(pool);
    mem_arena_close(&arena);
    topo_unbind_thread();
    return result;
}

uint32_t cores_fastest(const double *rates, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (rates[i] > rates[best] * (best == 0 ? CORES_MARGIN : 1.0))
            best = i;
    return best;
}

static void say(const double *rates, uint32_t best, uint32_t thread_count)
{
    const struct topo *topo = topo_open();
    char bytes[LOG_BYTES_MAX];
    const double flop = 2.0 * ROWS * COLUMNS * DEPTH;
    for (uint32_t i = 0; i < topo->l3_count; i++)
        log_line("%u threads on cores of L3 %u (%u cores, %s): %.0f GFLOP/s%s",
                 MIN(thread_count, topo->l3[i].core_count), i, topo->l3[i].core_count,
                 log_bytes(bytes, topo->l3[i].bytes), rates[i] * flop * 1e-9,
                 i == best ? ", taken first" : "");
}

int cores_choose(uint32_t thread_count, enum precision precision, struct err *err)
{
    const struct topo *topo = topo_open();
    double rates[CACHES_MAX];
    if (thread_count >= topo->core_count || topo->l3_count < 2 || topo->l3_count > CACHES_MAX)
        return 0;
    for (uint32_t i = 0; i < topo->l3_count; i++) {
        topo_prefer(i);
        int result = measure(MIN(thread_count, topo->l3[i].core_count), precision, &rates[i], err);
        if (result)
            return result;
    }
    uint32_t best = cores_fastest(rates, topo->l3_count);
    topo_prefer(best);
    say(rates, best, thread_count);
    return 0;
}
