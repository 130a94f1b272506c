/*
 * rows: the loops of GPT-2 that are not matrix products, over runs of rows and tiles, on one
 * thread: LayerNorm, gelu, softmax, conversions, sums.
 *
 * Pure functions on disjoint ranges, any thread; nothing is allocated. Written once
 * (rows_template.h) in vectors of 16 floats and compiled for SSE2, AVX2 and AVX-512; every sum has
 * a fixed order, and no operation is contracted, so all three give the same bits. Columns are a
 * multiple of 16 where nothing else is said; strides are in elements; `bf16` says what E is.
 *
 * exp: relative error below 2e-7 over the floats' range (Cephes' expf: Cody and Waite reduction,
 * polynomial of degree 6), 0 below -87.3, infinite above 88.7, NaN for NaN.
 * gelu(x) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form, written so that
 * it does not cancel for negative x.
 */
#ifndef SPILLWAY_MODEL_CPU_ROWS_H
#define SPILLWAY_MODEL_CPU_ROWS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ROWS_LANES 16

/* A float tile of a product and where its columns belong. */
struct rows_tile {
    float *values; /* [rows, columns] */
    uint32_t stride;
    uint32_t rows, columns;
    bool bf16;
};

struct rows_norm {
    const float *x;            /* [rows, columns] */
    const void *weight, *bias; /* E [columns] */
    float *mean, *deviation;   /* [rows]; deviation: 1 / sqrt(variance + epsilon) */
    uint32_t rows, columns;
    float epsilon;
    bool bf16;
};

struct rows_norm_backward {
    const float *x, *dy; /* [rows, columns] */
    const void *weight;  /* E */
    const float *mean, *deviation;
    float *dx;              /* [rows, columns]; may be dy */
    bool accumulate;        /* dx += */
    float *dweight, *dbias; /* [columns], written: sums over these rows */
    uint32_t rows, columns;
    bool bf16;
};

/* One tile of attention scores: row r is query query_first + r, column c is key key_first + c.
 * Keys after the query are masked. Columns are any number; stride is a multiple of 16, and what a
 * row holds beyond columns is ignored and may be overwritten. */
struct rows_scores {
    float *scores; /* [rows, stride]: q . k */
    uint32_t stride, rows, columns;
    uint32_t query_first, key_first;
    float scale;
    bool bf16;
};

/* Cross-entropy of a tile of logits; target_first is the vocabulary index of column 0. */
struct rows_logits {
    const float *logits;            /* [rows, stride] */
    uint32_t stride, rows, columns; /* columns: any number */
    const uint32_t *targets;        /* [rows] */
    uint32_t column_first;          /* the token that column 0 is */
    bool bf16;
};

struct rows {
    /* y = LayerNorm(x); writes mean and deviation. */
    void (*norm)(const struct rows_norm *args, void *y);
    /* The same y from kept statistics. */
    void (*norm_again)(const struct rows_norm *args, void *y);
    void (*norm_backward)(const struct rows_norm_backward *args);

    /* Each ends a product: reads the tile once and writes what is kept. bias is E [columns]. */
    void (*store)(const struct rows_tile *tile, void *out, uint32_t out_stride);
    void (*bias_store)(const struct rows_tile *tile, const void *bias, void *out,
                       uint32_t out_stride);
    /* pre = tile + bias; act = gelu(pre as stored). */
    void (*bias_gelu)(const struct rows_tile *tile, const void *bias, void *pre, void *act,
                      uint32_t out_stride);
    /* out = residual + tile + bias. */
    void (*bias_residual)(const struct rows_tile *tile, const void *bias, const float *residual,
                          float *out, uint32_t out_stride);
    /* dpre = tile * gelu'(pre); act = gelu(pre). dpre may be pre. */
    void (*gelu_backward)(const struct rows_tile *tile, const void *pre, void *dpre, void *act,
                          uint32_t out_stride);

    /* sums[c] (+)= sum over rows of x[r, c], in order of r. x is E. */
    void (*column_sums)(const void *x, uint32_t stride, uint32_t rows, uint32_t columns,
                        float *sums, bool accumulate, bool bf16);
    /* to[i] = from[i] as bf16 (nearest even); any count. */
    void (*narrow)(const float *from, uint16_t *to, uint64_t count);
    /* narrow, and square_sum of what was written. */
    double (*narrow_square_sum)(const float *from, uint16_t *to, uint64_t count);
    /* to[i] = from[i] as float, or += ; from is E; any count. */
    void (*widen)(const void *from, float *to, uint64_t count, bool accumulate, bool bf16);
    /* to[i] += from[i]; any count. */
    void (*add)(const float *from, float *to, uint64_t count);
    /* Sum of squares in double; x is E; any count. */
    double (*square_sum)(const void *x, uint64_t count, bool bf16);
    /* a . b; both E; any count. */
    float (*dot)(const void *a, const void *b, uint32_t count, bool bf16);

    /* Scores to probabilities relative to a running maximum (FlashAttention-2, Dao 2023, algorithm
     * 1, lines 9 and 10): maximum and sum [rows] are updated, probabilities (E, may be scores when
     * E is float) written with zeros beyond columns and where masked, rescale[rows] is what earlier
     * output must be multiplied by. */
    void (*softmax)(const struct rows_scores *args, float *maximum, float *sum, void *probabilities,
                    float *rescale);
    /* Algorithm 2, lines 11 to 15: p = exp(scale s - log_sum), ds = p (dp - delta) scale. dp is
     * float with the scores' stride; p and ds are E and may be scores and dp when E is float. */
    void (*softmax_backward)(const struct rows_scores *args, const float *log_sum,
                             const float *delta, float *dp, void *p, void *ds);
    /* out[r, 0..columns) *= factor[r]; any columns. */
    void (*scale_rows)(float *out, uint32_t stride, uint32_t rows, uint32_t columns,
                       const float *factor);
    /* out (E) = in * factor[r] (factor NULL: 1); any columns. */
    void (*scale_store)(const float *in, uint32_t in_stride, uint32_t rows, uint32_t columns,
                        const float *factor, void *out, uint32_t out_stride, bool bf16);

    /* Maximum and sum of exp(logit - maximum) of each row; target[r] is written where the row's
     * target is among the columns. */
    void (*logits_forward)(const struct rows_logits *args, float *maximum, float *sum,
                           float *target);
    /* out (E) = (exp(logit - log_sum) - [column is the target]) * scale. */
    void (*logits_backward)(const struct rows_logits *args, const float *log_sum, float scale,
                            void *out, uint32_t out_stride);
};

/* The widest that this CPU runs. */
const struct rows *rows_best(void);
/* For tests: 0 plain, 1 AVX2, 2 AVX-512; NULL where this CPU has none. */
const struct rows *rows_at(unsigned level);

#endif
