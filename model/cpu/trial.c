#include "model/cpu/trial.h"
#include "core/mem.h"
#include "model/cpu/device.h"

struct trial {
    struct kernels k; /* only what a product uses */
    struct product product;
};

int trial_open(struct trial **out, const struct matmul_product *product, struct pool *pool,
               struct err *err)
{
    struct trial *t = mem_alloc(1, sizeof(*t));
    t->k.shape.precision = product->precision;
    t->k.pool = pool;
    int result = matmul_open(&t->k.matmul, pool_thread_count(pool), err);
    if (result) {
        mem_free(t);
        return result;
    }
    product_init(&t->product, &t->k, product, false);
    matmul_ready(t->k.matmul);
    kernels_take_worker_memory(&t->k);
    *out = t;
    return 0;
}

void trial_close(struct trial *t)
{
    if (!t)
        return;
    matmul_close(t->k.matmul);
    mem_free(t->k.worker_memory);
    mem_free(t);
}

void trial_run(struct trial *t, const void *a, const void *b, float *c)
{
    product_run(&t->k, &(struct product_job){.product = &t->product, .a = a, .b = b, .c = c}, 1);
}
