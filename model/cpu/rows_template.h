/*
 * The loops behind rows.h, included once by each of rows_plain.c, rows_avx2.c and rows_avx512.c
 * after a target pragma. Vectors of 16 floats are GCC's; the compiler cuts them to what the target
 * has. Everything is static: only the table at the end leaves the file.
 */
#include "core/base.h"
#include "core/float.h"
#include "model/cpu/rows.h"
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(64), aligned(16)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(16)));
typedef uint32_t uvec __attribute__((vector_size(64), aligned(16)));
typedef uint16_t hvec __attribute__((vector_size(32), aligned(16)));
typedef int16_t shvec __attribute__((vector_size(32), aligned(16)));
typedef double dvec __attribute__((vector_size(64), aligned(16)));
typedef float halfvec __attribute__((vector_size(32), aligned(16)));

INLINE vec splat(float value)
{
    return value - (vec){0};
}

INLINE vec choose(ivec mask, vec yes, vec no)
{
    return (vec)((mask & (ivec)yes) | (~mask & (ivec)no));
}

/* Not symmetric in NaN: a NaN in b is ignored, and found again in the sum of exponentials. */
INLINE vec maximum(vec a, vec b)
{
    return choose(b > a, b, a);
}

INLINE vec load_float(const float *from)
{
    vec value;
    memcpy(&value, from, sizeof(value));
    return value;
}

INLINE void store_float(float *to, vec value)
{
    memcpy(to, &value, sizeof(value));
}

/* GCC 12 converts vectors by halves and quarters, where AVX-512 has one instruction. */
#if defined(__AVX512F__)
INLINE uvec widen_halves(hvec value)
{
    return (uvec)_mm512_cvtepu16_epi32((__m256i)value);
}

INLINE hvec narrow_words(uvec value)
{
    return (hvec)_mm512_cvtepi32_epi16((__m512i)value);
}

INLINE dvec to_double(halfvec value)
{
    return (dvec)_mm512_cvtps_pd((__m256)value);
}
#else
INLINE uvec widen_halves(hvec value)
{
    return __builtin_convertvector(value, uvec);
}

INLINE hvec narrow_words(uvec value)
{
    return __builtin_convertvector(value, hvec);
}

INLINE dvec to_double(halfvec value)
{
    return __builtin_convertvector(value, dvec);
}
#endif

INLINE vec load_bf16(const uint16_t *from)
{
    hvec value;
    memcpy(&value, from, sizeof(value));
    return (vec)(widen_halves(value) << 16);
}

/* float_to_bf16, sixteen at a time. */
INLINE hvec to_bf16(vec value)
{
    uvec bits = (uvec)value;
    uvec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uvec quiet = (bits >> 16) | 0x40u;
    uvec is_nan = (uvec)(value != value);
    return narrow_words((is_nan & quiet) | (~is_nan & rounded));
}

INLINE vec load(const void *from, size_t index, bool bf16)
{
    return bf16 ? load_bf16((const uint16_t *)from + index)
                : load_float((const float *)from + index);
}

INLINE void store(void *to, size_t index, vec value, bool bf16)
{
    if (bf16) {
        hvec narrow = to_bf16(value);
        memcpy((uint16_t *)to + index, &narrow, sizeof(narrow));
    } else {
        store_float((float *)to + index, value);
    }
}

INLINE float load_one(const void *from, size_t index, bool bf16)
{
    return bf16 ? float_from_bf16(((const uint16_t *)from)[index]) : ((const float *)from)[index];
}

INLINE void store_one(void *to, size_t index, float value, bool bf16)
{
    if (bf16)
        ((uint16_t *)to)[index] = float_to_bf16(value);
    else
        ((float *)to)[index] = value;
}

/* Pairwise, in an order that is the same on every target. */
INLINE float sum_lanes(vec value)
{
    float lanes[ROWS_LANES];
    store_float(lanes, value);
    for (int width = ROWS_LANES / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++)
            lanes[i] += lanes[i + width];
    return lanes[0];
}

INLINE float max_lanes(vec value)
{
    float lanes[ROWS_LANES];
    store_float(lanes, value);
    float most = lanes[0];
    for (int i = 1; i < ROWS_LANES; i++)
        most = lanes[i] > most ? lanes[i] : most;
    return most;
}

/* The lanes' numbers, to mask the end of a row. */
INLINE ivec lane_index(void)
{
    return (ivec){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
}

/* value * 2^n for a whole n, where the result is a normal number. */
INLINE vec scale_by_power(vec value, vec n)
{
#if defined(__AVX512F__)
    return (vec)_mm512_scalef_ps((__m512)value, (__m512)n);
#else
    /* n is at most 128 where the result is used; two steps keep 2^128 from wrapping. */
    ivec exponent = __builtin_convertvector(choose(n * n < 40000.0f, n, splat(0.0f)), ivec);
    ivec half = exponent >> 1;
    return value * (vec)((half + 127) << 23) * (vec)((exponent - half + 127) << 23);
#endif
}

INLINE vec exp_vec(vec x)
{
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vec n = (x * 1.44269504088896341f + shift) - shift;
    vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    p = scale_by_power(p, n);
    p = choose(x < -87.33654f, splat(0.0f), p);
    return choose(x > 88.72283f, splat(INFINITY), p);
}

/* 1 / (1 + exp(-2u)) of gelu's argument. */
INLINE vec gelu_gate(vec x)
{
    const float root = 0.7978845608028654f; /* sqrt(2/pi) */
    vec u = (x + x * x * x * 0.044715f) * root;
    return 1.0f / (1.0f + exp_vec(u * -2.0f));
}

INLINE vec gelu_slope(vec x, vec gate)
{
    const float root = 0.7978845608028654f;
    vec twice_du = (x * x * (3.0f * 0.044715f) + 1.0f) * (2.0f * root);
    return gate + x * gate * (1.0f - gate) * twice_du;
}

/* -- LayerNorm (Ba et al. 2016) -- */

INLINE void norm_row(const struct rows_norm *a, uint32_t row, void *y, bool again, bool bf16)
{
    const float *x = a->x + (size_t)row * a->columns;
    if (!again) {
        vec sum = splat(0.0f);
        for (uint32_t i = 0; i < a->columns; i += ROWS_LANES)
            sum += load_float(x + i);
        float mean = sum_lanes(sum) / (float)a->columns;
        vec squares = splat(0.0f);
        for (uint32_t i = 0; i < a->columns; i += ROWS_LANES) {
            vec centred = load_float(x + i) - mean;
            squares += centred * centred;
        }
        a->mean[row] = mean;
        a->deviation[row] = 1.0f / sqrtf(sum_lanes(squares) / (float)a->columns + a->epsilon);
    }
    float mean = a->mean[row], deviation = a->deviation[row];
    for (uint32_t i = 0; i < a->columns; i += ROWS_LANES) {
        vec normal = (load_float(x + i) - mean) * deviation;
        store(y, (size_t)row * a->columns + i,
              normal * load(a->weight, i, bf16) + load(a->bias, i, bf16), bf16);
    }
}

INLINE void norm_rows(const struct rows_norm *a, void *y, bool again)
{
    for (uint32_t row = 0; row < a->rows; row++) {
        if (a->bf16)
            norm_row(a, row, y, again, true);
        else
            norm_row(a, row, y, again, false);
    }
}

static void norm(const struct rows_norm *args, void *y)
{
    norm_rows(args, y, false);
}

static void norm_again(const struct rows_norm *args, void *y)
{
    norm_rows(args, y, true);
}

/* With n = (x - mean) deviation and g = dy weight:
 * dx = deviation (g - mean(g) - n mean(g n)). */
INLINE void norm_backward_row(const struct rows_norm_backward *a, uint32_t row, bool bf16)
{
    const float *x = a->x + (size_t)row * a->columns, *dy = a->dy + (size_t)row * a->columns;
    float *dx = a->dx + (size_t)row * a->columns;
    float mean = a->mean[row], deviation = a->deviation[row];
    vec sum_g = splat(0.0f), sum_gn = splat(0.0f);
    for (uint32_t i = 0; i < a->columns; i += ROWS_LANES) {
        vec d = load_float(dy + i);
        vec n = (load_float(x + i) - mean) * deviation;
        vec g = d * load(a->weight, i, bf16);
        sum_g += g;
        sum_gn += g * n;
        store_float(a->dweight + i, load_float(a->dweight + i) + d * n);
        store_float(a->dbias + i, load_float(a->dbias + i) + d);
    }
    float mean_g = sum_lanes(sum_g) / (float)a->columns;
    float mean_gn = sum_lanes(sum_gn) / (float)a->columns;
    for (uint32_t i = 0; i < a->columns; i += ROWS_LANES) {
        vec n = (load_float(x + i) - mean) * deviation;
        vec g = load_float(dy + i) * load(a->weight, i, bf16);
        vec result = (g - mean_g - n * mean_gn) * deviation;
        store_float(dx + i, a->accumulate ? load_float(dx + i) + result : result);
    }
}

static void norm_backward(const struct rows_norm_backward *args)
{
    memset(args->dweight, 0, args->columns * sizeof(float));
    memset(args->dbias, 0, args->columns * sizeof(float));
    for (uint32_t row = 0; row < args->rows; row++) {
        if (args->bf16)
            norm_backward_row(args, row, true);
        else
            norm_backward_row(args, row, false);
    }
}

/* -- Ends of products -- */

enum ending { STORE, BIAS_STORE, BIAS_GELU, BIAS_RESIDUAL, GELU_BACKWARD };

struct ending_args {
    const void *bias, *pre;
    const float *residual;
    void *out, *act;
    uint32_t out_stride;
};

INLINE void end_vector(const struct rows_tile *tile, const struct ending_args *a, uint32_t row,
                       uint32_t i, enum ending ending, bool bf16)
{
    vec value = load_float(tile->values + (size_t)row * tile->stride + i);
    size_t at = (size_t)row * a->out_stride + i;
    if (ending == BIAS_STORE || ending == BIAS_GELU || ending == BIAS_RESIDUAL)
        value += load(a->bias, i, bf16);
    if (ending == BIAS_RESIDUAL) {
        store_float((float *)a->out + at, load_float(a->residual + at) + value);
        return;
    }
    if (ending == GELU_BACKWARD) {
        vec pre = load(a->pre, at, bf16);
        vec gate = gelu_gate(pre);
        store(a->out, at, value * gelu_slope(pre, gate), bf16);
        store(a->act, at, pre * gate, bf16);
        return;
    }
    store(a->out, at, value, bf16);
    if (ending == BIAS_GELU) {
        vec pre = load(a->out, at, bf16);
        store(a->act, at, pre * gelu_gate(pre), bf16);
    }
}

INLINE void end_tile(const struct rows_tile *tile, const struct ending_args *args,
                     enum ending ending)
{
    for (uint32_t row = 0; row < tile->rows; row++) {
        if (tile->bf16)
            for (uint32_t i = 0; i < tile->columns; i += ROWS_LANES)
                end_vector(tile, args, row, i, ending, true);
        else
            for (uint32_t i = 0; i < tile->columns; i += ROWS_LANES)
                end_vector(tile, args, row, i, ending, false);
    }
}

static void end_store(const struct rows_tile *tile, void *out, uint32_t out_stride)
{
    struct ending_args args = {.out = out, .out_stride = out_stride};
    end_tile(tile, &args, STORE);
}

static void end_bias_store(const struct rows_tile *tile, const void *bias, void *out,
                           uint32_t out_stride)
{
    struct ending_args args = {.bias = bias, .out = out, .out_stride = out_stride};
    end_tile(tile, &args, BIAS_STORE);
}

static void end_bias_gelu(const struct rows_tile *tile, const void *bias, void *pre, void *act,
                          uint32_t out_stride)
{
    struct ending_args args = {.bias = bias, .out = pre, .act = act, .out_stride = out_stride};
    end_tile(tile, &args, BIAS_GELU);
}

static void end_bias_residual(const struct rows_tile *tile, const void *bias, const float *residual,
                              float *out, uint32_t out_stride)
{
    struct ending_args args = {
        .bias = bias, .residual = residual, .out = out, .out_stride = out_stride};
    end_tile(tile, &args, BIAS_RESIDUAL);
}

static void end_gelu_backward(const struct rows_tile *tile, const void *pre, void *dpre, void *act,
                              uint32_t out_stride)
{
    struct ending_args args = {.pre = pre, .out = dpre, .act = act, .out_stride = out_stride};
    end_tile(tile, &args, GELU_BACKWARD);
}

/* -- Sums, conversions -- */

/* Rows are far apart, so that nothing but this fetches them ahead. */
#define SUM_AHEAD_ROWS 16u
#define SUM_VECTORS    4u

/* `count` vectors of sums, row by row: the order over r that rows.h promises. */
INLINE void sum_vectors(const void *x, uint32_t stride, uint32_t rows, uint32_t count, float *sums,
                        bool bf16)
{
    vec sum[SUM_VECTORS];
    for (uint32_t v = 0; v < count; v++)
        sum[v] = load_float(sums + v * ROWS_LANES);
    for (uint32_t row = 0; row < rows; row++) {
        const size_t bytes = bf16 ? sizeof(uint16_t) : sizeof(float);
        const char *ahead = (const char *)x + (size_t)(row + SUM_AHEAD_ROWS) * stride * bytes;
        for (uint32_t at = 0; at < count * ROWS_LANES * bytes; at += 64)
            __builtin_prefetch(ahead + at);
        for (uint32_t v = 0; v < count; v++)
            sum[v] += load(x, (size_t)row * stride + v * ROWS_LANES, bf16);
    }
    for (uint32_t v = 0; v < count; v++)
        store_float(sums + v * ROWS_LANES, sum[v]);
}

INLINE void sum_columns(const void *x, uint32_t stride, uint32_t rows, uint32_t columns,
                        float *sums, bool accumulate, bool bf16)
{
    const size_t bytes = bf16 ? sizeof(uint16_t) : sizeof(float);
    if (!accumulate)
        memset(sums, 0, columns * sizeof(float));
    uint32_t i = 0;
    for (; i + SUM_VECTORS * ROWS_LANES <= columns; i += SUM_VECTORS * ROWS_LANES)
        sum_vectors((const char *)x + i * bytes, stride, rows, SUM_VECTORS, sums + i, bf16);
    for (; i < columns; i += ROWS_LANES)
        sum_vectors((const char *)x + i * bytes, stride, rows, 1, sums + i, bf16);
}

static void column_sums(const void *x, uint32_t stride, uint32_t rows, uint32_t columns,
                        float *sums, bool accumulate, bool bf16)
{
    if (bf16)
        sum_columns(x, stride, rows, columns, sums, accumulate, true);
    else
        sum_columns(x, stride, rows, columns, sums, accumulate, false);
}

static void narrow(const float *from, uint16_t *to, uint64_t count)
{
    uint64_t i = 0;
    for (; i + ROWS_LANES <= count; i += ROWS_LANES)
        store(to, i, load_float(from + i), true);
    for (; i < count; i++)
        to[i] = float_to_bf16(from[i]);
}

INLINE void widen_all(const void *from, float *to, uint64_t count, bool accumulate, bool bf16)
{
    uint64_t i = 0;
    for (; i + ROWS_LANES <= count; i += ROWS_LANES) {
        vec value = load(from, i, bf16);
        store_float(to + i, accumulate ? load_float(to + i) + value : value);
    }
    for (; i < count; i++)
        to[i] = (accumulate ? to[i] : 0.0f) + load_one(from, i, bf16);
}

static void widen(const void *from, float *to, uint64_t count, bool accumulate, bool bf16)
{
    if (bf16)
        widen_all(from, to, count, accumulate, true);
    else
        widen_all(from, to, count, accumulate, false);
}

static void add(const float *from, float *to, uint64_t count)
{
    widen_all(from, to, count, true, false);
}

/* The two halves of a vector as doubles, squared and added. */
INLINE dvec add_squares(dvec sum, vec value)
{
    halfvec parts[2];
    memcpy(parts, &value, sizeof(parts));
    dvec low = to_double(parts[0]), high = to_double(parts[1]);
    return sum + (low * low + high * high);
}

/* The sum of the lanes and of the elements from `first` on. */
INLINE double end_squares(dvec sum, const void *x, uint64_t first, uint64_t count, bool bf16)
{
    double total = 0.0;
    for (unsigned lane = 0; lane < sizeof(sum) / sizeof(double); lane++)
        total += sum[lane];
    for (uint64_t i = first; i < count; i++) {
        double value = load_one(x, i, bf16);
        total += value * value;
    }
    return total;
}

INLINE double sum_squares(const void *x, uint64_t count, bool bf16)
{
    dvec sum = {0};
    uint64_t i = 0;
    for (; i + ROWS_LANES <= count; i += ROWS_LANES)
        sum = add_squares(sum, load(x, i, bf16));
    return end_squares(sum, x, i, count, bf16);
}

/* narrow, and square_sum of what it wrote, reading once. */
static double narrow_square_sum(const float *from, uint16_t *to, uint64_t count)
{
    dvec sum = {0};
    uint64_t i = 0;
    for (; i + ROWS_LANES <= count; i += ROWS_LANES) {
        hvec halves = to_bf16(load_float(from + i));
        memcpy(to + i, &halves, sizeof(halves));
        sum = add_squares(sum, (vec)(widen_halves(halves) << 16));
    }
    for (uint64_t rest = i; rest < count; rest++)
        to[rest] = float_to_bf16(from[rest]);
    return end_squares(sum, to, i, count, true);
}

static double square_sum(const void *x, uint64_t count, bool bf16)
{
    return bf16 ? sum_squares(x, count, true) : sum_squares(x, count, false);
}

INLINE float dot_product(const void *a, const void *b, uint32_t count, bool bf16)
{
    vec sum = splat(0.0f);
    uint32_t i = 0;
    for (; i + ROWS_LANES <= count; i += ROWS_LANES)
        sum += load(a, i, bf16) * load(b, i, bf16);
    float total = sum_lanes(sum);
    for (; i < count; i++)
        total += load_one(a, i, bf16) * load_one(b, i, bf16);
    return total;
}

static float dot(const void *a, const void *b, uint32_t count, bool bf16)
{
    return bf16 ? dot_product(a, b, count, true) : dot_product(a, b, count, false);
}

/* -- Attention -- */

/* How many columns of this row are not masked. */
INLINE uint32_t visible_columns(const struct rows_scores *a, uint32_t row)
{
    uint32_t query = a->query_first + row;
    if (query < a->key_first)
        return 0;
    return MIN(a->columns, query - a->key_first + 1);
}

/* values where the column is below visible, elsewhere otherwise. */
INLINE vec mask_columns(vec value, uint32_t first, uint32_t visible, float otherwise)
{
    ivec inside = lane_index() + (int32_t)first < (int32_t)visible;
    return choose(inside, value, splat(otherwise));
}

INLINE void softmax_row(const struct rows_scores *a, uint32_t row, float *row_maximum,
                        float *row_sum, void *probabilities, float *rescale, bool bf16)
{
    const float *scores = a->scores + (size_t)row * a->stride;
    uint32_t visible = visible_columns(a, row);
    uint32_t end = (uint32_t)round_up(visible, ROWS_LANES);
    uint32_t whole = visible / ROWS_LANES * ROWS_LANES;
    /* The scale is positive: the largest stays the largest when it is rounded. */
    vec most = splat(-INFINITY);
    for (uint32_t i = 0; i < whole; i += ROWS_LANES)
        most = maximum(most, load_float(scores + i));
    if (whole < end)
        most = maximum(most, mask_columns(load_float(scores + whole), whole, visible, -INFINITY));
    most = most * a->scale;
    float before = *row_maximum, tile_most = max_lanes(most);
    float now = tile_most > before ? tile_most : before;
    /* Nothing seen yet: any finite reference does, and infinity minus infinity would be NaN. */
    float reference = now == -INFINITY ? 0.0f : now;
    vec sum = splat(0.0f);
    for (uint32_t i = 0; i < end; i += ROWS_LANES) {
        vec p = exp_vec(load_float(scores + i) * a->scale - reference);
        if (i >= whole)
            p = mask_columns(p, i, visible, 0.0f);
        sum += p;
        store(probabilities, (size_t)row * a->stride + i, p, bf16);
    }
    for (uint32_t i = end; i < a->stride; i += ROWS_LANES)
        store(probabilities, (size_t)row * a->stride + i, splat(0.0f), bf16);
    *rescale = exp_vec(splat(before - reference))[0];
    *row_sum = *row_sum * *rescale + sum_lanes(sum);
    *row_maximum = now;
}

static void softmax(const struct rows_scores *args, float *row_maximum, float *sum,
                    void *probabilities, float *rescale)
{
    for (uint32_t r = 0; r < args->rows; r++) {
        if (args->bf16)
            softmax_row(args, r, row_maximum + r, sum + r, probabilities, rescale + r, true);
        else
            softmax_row(args, r, row_maximum + r, sum + r, probabilities, rescale + r, false);
    }
}

INLINE void softmax_backward_row(const struct rows_scores *a, uint32_t row, float log_sum,
                                 float delta, const float *dp, void *p, void *ds, bool bf16)
{
    const float *scores = a->scores + (size_t)row * a->stride;
    uint32_t visible = visible_columns(a, row);
    uint32_t end = (uint32_t)round_up(visible, ROWS_LANES);
    uint32_t whole = visible / ROWS_LANES * ROWS_LANES;
    size_t at = (size_t)row * a->stride;
    for (uint32_t i = 0; i < end; i += ROWS_LANES) {
        vec probability = exp_vec(load_float(scores + i) * a->scale - log_sum);
        vec gradient = probability * (load_float(dp + at + i) - delta) * a->scale;
        if (i >= whole) {
            probability = mask_columns(probability, i, visible, 0.0f);
            gradient = mask_columns(gradient, i, visible, 0.0f);
        }
        store(p, at + i, probability, bf16);
        store(ds, at + i, gradient, bf16);
    }
    for (uint32_t i = end; i < a->stride; i += ROWS_LANES) {
        store(p, at + i, splat(0.0f), bf16);
        store(ds, at + i, splat(0.0f), bf16);
    }
}

static void softmax_backward(const struct rows_scores *args, const float *log_sum,
                             const float *delta, float *dp, void *p, void *ds)
{
    for (uint32_t r = 0; r < args->rows; r++) {
        if (args->bf16)
            softmax_backward_row(args, r, log_sum[r], delta[r], dp, p, ds, true);
        else
            softmax_backward_row(args, r, log_sum[r], delta[r], dp, p, ds, false);
    }
}

static void scale_rows(float *out, uint32_t stride, uint32_t rows, uint32_t columns,
                       const float *factor)
{
    for (uint32_t r = 0; r < rows; r++) {
        float *row = out + (size_t)r * stride;
        uint32_t i = 0;
        for (; i + ROWS_LANES <= columns; i += ROWS_LANES)
            store_float(row + i, load_float(row + i) * factor[r]);
        for (; i < columns; i++)
            row[i] *= factor[r];
    }
}

INLINE void scale_store_rows(const float *in, uint32_t in_stride, uint32_t rows, uint32_t columns,
                             const float *factor, void *out, uint32_t out_stride, bool bf16)
{
    for (uint32_t r = 0; r < rows; r++) {
        const float *row = in + (size_t)r * in_stride;
        float scale = factor ? factor[r] : 1.0f;
        size_t at = (size_t)r * out_stride;
        uint32_t i = 0;
        for (; i + ROWS_LANES <= columns; i += ROWS_LANES)
            store(out, at + i, load_float(row + i) * scale, bf16);
        for (; i < columns; i++)
            store_one(out, at + i, row[i] * scale, bf16);
    }
}

static void scale_store(const float *in, uint32_t in_stride, uint32_t rows, uint32_t columns,
                        const float *factor, void *out, uint32_t out_stride, bool bf16)
{
    if (bf16)
        scale_store_rows(in, in_stride, rows, columns, factor, out, out_stride, true);
    else
        scale_store_rows(in, in_stride, rows, columns, factor, out, out_stride, false);
}

/* -- Cross-entropy -- */

/* Up to 16 logits from column i on; what lies beyond the last column becomes otherwise. */
INLINE vec load_logits(const struct rows_logits *a, uint32_t row, uint32_t i, float otherwise)
{
    const float *logits = a->logits + (size_t)row * a->stride + i;
    if (i + ROWS_LANES <= a->columns)
        return load_float(logits);
    vec value = splat(otherwise);
    memcpy(&value, logits, (a->columns - i) * sizeof(float));
    return value;
}

static void logits_forward(const struct rows_logits *args, float *row_maximum, float *sum,
                           float *target)
{
    for (uint32_t r = 0; r < args->rows; r++) {
        vec most = splat(-INFINITY);
        for (uint32_t i = 0; i < args->columns; i += ROWS_LANES)
            most = maximum(most, load_logits(args, r, i, -INFINITY));
        float reference = max_lanes(most);
        vec total = splat(0.0f);
        for (uint32_t i = 0; i < args->columns; i += ROWS_LANES)
            total += exp_vec(load_logits(args, r, i, -INFINITY) - reference);
        row_maximum[r] = reference;
        sum[r] = sum_lanes(total);
        uint32_t column = args->targets[r] - args->column_first;
        if (args->targets[r] >= args->column_first && column < args->columns)
            target[r] = args->logits[(size_t)r * args->stride + column];
    }
}

INLINE void logits_backward_row(const struct rows_logits *a, uint32_t r, float log_sum, float scale,
                                void *out, uint32_t out_stride, bool bf16)
{
    size_t at = (size_t)r * out_stride;
    uint32_t i = 0;
    for (; i + ROWS_LANES <= a->columns; i += ROWS_LANES)
        store(out, at + i, exp_vec(load_logits(a, r, i, 0.0f) - log_sum) * scale, bf16);
    if (i < a->columns) {
        vec rest = exp_vec(load_logits(a, r, i, 0.0f) - log_sum) * scale;
        for (uint32_t lane = 0; i + lane < a->columns; lane++)
            store_one(out, at + i + lane, rest[lane], bf16);
    }
    /* The target once more from its logit: p - 1 taken before rounding to E. */
    uint32_t column = a->targets[r] - a->column_first;
    if (a->targets[r] >= a->column_first && column < a->columns) {
        float p = exp_vec(splat(a->logits[(size_t)r * a->stride + column] - log_sum))[0];
        store_one(out, at + column, (p - 1.0f) * scale, bf16);
    }
}

static void logits_backward(const struct rows_logits *args, const float *log_sum, float scale,
                            void *out, uint32_t out_stride)
{
    for (uint32_t r = 0; r < args->rows; r++) {
        if (args->bf16)
            logits_backward_row(args, r, log_sum[r], scale, out, out_stride, true);
        else
            logits_backward_row(args, r, log_sum[r], scale, out, out_stride, false);
    }
}

const struct rows ROWS_TABLE = {
    .norm = norm,
    .norm_again = norm_again,
    .norm_backward = norm_backward,
    .store = end_store,
    .bias_store = end_bias_store,
    .bias_gelu = end_bias_gelu,
    .bias_residual = end_bias_residual,
    .gelu_backward = end_gelu_backward,
    .column_sums = column_sums,
    .narrow = narrow,
    .narrow_square_sum = narrow_square_sum,
    .widen = widen,
    .add = add,
    .square_sum = square_sum,
    .dot = dot,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .scale_rows = scale_rows,
    .scale_store = scale_store,
    .logits_forward = logits_forward,
    .logits_backward = logits_backward,
};
