/*
 * pieces: single operations in float64, written plainly from the papers, with their gradients: what
 * a kernel is measured against where tests/shared/reference.h, which has whole models, is too
 * large. All arrays are dense and row-major; gradients are added to what is there.
 *
 * Sources: Ba et al. 2016 (LayerNorm), Zhang and Sennrich 2019 (RMSNorm), Vaswani et al. 2017
 * (attention), Ainslie et al. 2023 (grouped queries).
 */
#ifndef SPILLWAY_TESTS_SHARED_PIECES_H
#define SPILLWAY_TESTS_SHARED_PIECES_H

#include <stdbool.h>
#include <stdint.h>

/* LayerNorm, or RMSNorm when layer is false; that has no bias. */
struct pieces_norm {
    bool layer;
    uint32_t rows, columns;
    double epsilon;
    const double *x;      /* [rows, columns] */
    const double *weight; /* [columns] */
    const double *bias;   /* [columns] */
};
void pieces_norm(const struct pieces_norm *args, double *y);
void pieces_norm_backward(const struct pieces_norm *args, const double *dy, double *dx,
                          double *dweight, double *dbias);

/* Causal attention of one sequence; head h attends to head h / (heads / kv_heads). Strides are from
 * row to row. */
struct pieces_attention {
    uint32_t seq, heads, kv_heads, depth;
    uint32_t q_stride, kv_stride, out_stride;
    const double *q, *k, *v;
};
/* log_sum [heads, seq] is the log of the sum of exponentials of scaled scores. */
void pieces_attention(const struct pieces_attention *args, double *out, double *log_sum);
void pieces_attention_backward(const struct pieces_attention *args, const double *dout, double *dq,
                               double *dk, double *dv);

#endif
