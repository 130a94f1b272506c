/*
 * reference: GPT-2 in float64, written plainly from the papers: forward, loss, every gradient,
 * global-norm clipping and AdamW. What the trainer's kernels are measured against.
 *
 * Shares nothing with model/cpu but the list of tensors. Slow, allocates freely, one thread.
 * Sources: Radford et al. 2019 (GPT-2), Ba et al. 2016 (LayerNorm), Vaswani et al. 2017
 * (attention), Hendrycks and Gimpel 2016 (gelu, tanh form), Loshchilov and Hutter 2019 (AdamW),
 * Pascanu et al. 2013 (clipping).
 */
#ifndef SPILLWAY_TESTS_SHARED_REFERENCE_H
#define SPILLWAY_TESTS_SHARED_REFERENCE_H

#include "model/config.h"
#include "model/tensors.h"
#include <stdint.h>

struct reference {
    struct config config;
    const struct tensors *tensors; /* borrowed */
    double **weights;              /* owned; [tensors->count][count] */
    double **gradients;            /* owned; the same */
};

/* Weights and gradients are zero. */
void reference_init(struct reference *reference, const struct config *config,
                    const struct tensors *tensors);
void reference_deinit(struct reference *reference);

/* Values that exercise everything: weights around 1 for LayerNorm, biases that are not zero,
 * matrices N(0, 1 / sqrt(inputs)); each rounded to float, or to bf16 where precision says so. */
void reference_fill(struct reference *reference, uint64_t seed, enum precision precision);

/* Cross-entropy of each row into losses [batch * seq], NULL when not wanted; returns their sum. */
double reference_loss(const struct reference *reference, const uint32_t *tokens,
                      const uint32_t *targets, uint32_t batch, uint32_t seq, double *losses);

/* The same, adding scale times the sum's gradient to gradients. */
double reference_backward(struct reference *reference, const uint32_t *tokens,
                          const uint32_t *targets, uint32_t batch, uint32_t seq, double scale);

/* Logits of one row's position: [vocab], of the last token of tokens[0..seq). */
void reference_logits(const struct reference *reference, const uint32_t *tokens, uint32_t seq,
                      double *logits);

struct reference_adamw {
    double lr, beta1, beta2, eps, weight_decay;
    uint64_t t; /* from 1 */
};
void reference_adamw(const struct reference_adamw *settings, double *weight, double *m, double *v,
                     const double *gradient, uint64_t count);

/* Scales gradient to the norm clip when it is longer; returns the norm before. */
double reference_clip(double *gradient, uint64_t count, double clip);

#endif
