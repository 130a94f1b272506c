/*
 * trial: one matrix product by all workers of a pool, cut up as the kernels cut theirs, without
 * what follows it there: what products can reach on these cores. For benchmarks, and for the choice
 * of cores. Borrows the pool; one thread at a time.
 */
#ifndef SPILLWAY_MODEL_CPU_TRIAL_H
#define SPILLWAY_MODEL_CPU_TRIAL_H

#include "core/pool.h"
#include "model/cpu/matmul.h"

struct trial;

/* product: the whole one. */
int trial_open(struct trial **trial, const struct matmul_product *product, struct pool *pool,
               struct err *err);
void trial_close(struct trial *trial); /* NULL is legal */

/* c = op(a) op(b). */
void trial_run(struct trial *trial, const void *a, const void *b, float *c);

#endif
