/*
 * optim: AdamW (Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2)
 * on chunks of state, and the learning-rate schedule.
 *
 * Pure functions on disjoint ranges, any thread. The clip factor scales the stored gradient.
 */
#ifndef SPILLWAY_MODEL_OPTIM_H
#define SPILLWAY_MODEL_OPTIM_H

#include "model/config.h"
#include <stdbool.h>
#include <stdint.h>

struct optim_settings {
    double lr, min_lr;
    uint64_t warmup_steps, total_steps;
    double beta1, beta2, eps, weight_decay;
    double clip; /* 0: no clipping */
};

/* Linear warm-up from lr / warmup, then cosine to min_lr at total_steps (Loshchilov and Hutter
 * 2017, SGDR, without restarts). step counts from 0. */
double optim_learning_rate(const struct optim_settings *settings, uint64_t step);

/* The factor for gradients: min(1, clip / norm); 1 when clip is 0 (Pascanu et al. 2013). */
double optim_clip_factor(const struct optim_settings *settings, double norm);

/* The scalars of one step, computed once in double and rounded once. */
struct optim_step {
    float lr, beta1, beta2, eps, weight_decay, clip_factor;
    float correction1, correction2; /* 1 / (1 - beta^t), t = step + 1 */
    uint64_t step;                  /* from 0: for what is rounded by chance (model/moments.h) */
};
void optim_step_init(struct optim_step *scalars, const struct optim_settings *settings,
                     uint64_t step, double clip_factor);

/* A run of parameters of one decay kind within a chunk. */
struct optim_range {
    uint16_t *hi;
    int16_t *lo;
    float *m, *v;
    const void *gradient; /* float, or bf16 bits */
    uint64_t count;
    bool decay;
};
/* p -= lr * (m^ / (sqrt(v^) + eps) + weight_decay * p); writes hi, lo, m, v in place. Returns false
 * when a new weight is not finite (the range is then partly written). */
bool optim_update(const struct optim_range *range, const struct optim_step *scalars,
                  enum precision gradient_precision);

#endif
