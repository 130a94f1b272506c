#include "offload/cores.h"

#include "core/base.h"
#include "core/clock.h"
#include "core/float.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "model/cpu/trial.h"

/* The product: that of gpt2-124m's MLP at 4 x 256 tokens. Its 18 to 24 MiB are more than
 * second-level caches hold. They are given back to the system at once: what the process takes is
 * counted when the device has been opened. */
#define ROWS        1024u
#define COLUMNS     3072u
#define DEPTH       768u
#define CACHES_MAX  16u
#define SECONDS     0.1
#define REPEATS_MIN 3u

/* The factors one after the other, of any numbers that are not zero, and the product. */
struct operands {
    uint8_t *a, *b;
    float *c;
};

static int operands_open(struct operands *o, struct mem_arena *arena, enum precision precision,
                         struct err *err)
{
    uint64_t a_count = (uint64_t)ROWS * DEPTH, count = a_count + (uint64_t)DEPTH * COLUMNS;
    uint64_t element = precision_bytes(precision);
    int result =
        mem_arena_open(arena, count * element + (uint64_t)ROWS * COLUMNS * sizeof(float), err);
    if (result)
        return result;
    o->a = arena->base;
    o->b = o->a + a_count * element;
    o->c = (float *)(o->a + count * element);
    for (uint64_t i = 0; i < count; i++) {
        float value = 0.01f * (float)(1 + i % 7);
        if (precision == PRECISION_BF16)
            ((uint16_t *)arena->base)[i] = float_to_bf16(value);
        else
            ((float *)arena->base)[i] = value;
    }
    return 0;
}

/* Products a second, the best of all repeats: what disturbs only slows. */
static double best_rate(struct trial *trial, const struct operands *o)
{
    uint64_t best_ns = UINT64_MAX, start_ns = clock_ns();
    for (uint32_t i = 0; i < REPEATS_MIN || (double)(clock_ns() - start_ns) < SECONDS * 1e9; i++) {
        uint64_t before_ns = clock_ns();
        trial_run(trial, o->a, o->b, o->c);
        best_ns = MIN(best_ns, clock_ns() - before_ns);
    }
    return 1e9 / (double)best_ns;
}

static int measure(uint32_t thread_count, enum precision precision, double *rate, struct err *err)
{
    const struct matmul_product product = {.m = ROWS,
                                           .n = COLUMNS,
                                           .k = DEPTH,
                                           .a_stride = DEPTH,
                                           .b_stride = COLUMNS,
                                           .c_stride = COLUMNS,
                                           .precision = precision};
    struct operands operands;
    struct mem_arena arena = {0};
    struct pool *pool = NULL;
    struct trial *trial = NULL;
    int result = operands_open(&operands, &arena, precision, err);
    if (result == 0)
        result = pool_open(&pool, "cores", thread_count, true, err);
    if (result == 0)
        result = trial_open(&trial, &product, pool, err);
    if (result == 0)
        *rate = best_rate(trial, &operands);
    trial_close(trial);
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
