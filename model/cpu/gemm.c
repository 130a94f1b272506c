/*
 * A word is what one step along k takes of a row: one float, or two bf16. Packed b is a strip of up
 * to 48 columns after the other, each [words][columns]: 16, 32 or 48 of them, with zeros beyond the
 * last. Of a transposed a, 32 rows at a time are packed, 8 after 8, each [words][8].
 *
 * Why 8 x 48: 24 sums hide a multiply-add's latency, and 8 rows of any stride fit the first cache's
 * 8 ways. Measured on Zen 4 with b in the second cache: 231 to 234 of 236 GFLOP/s in bf16 (12 x 32
 * the same, but 217 where rows are 4,096 bytes apart).
 */
#include "model/cpu/gemm.h"
#include "core/base.h"

#define STRIP_ROWS  8u
#define STRIP_LANES (GEMM_STRIP_COLUMNS / LANES)
#define LANES       16u
#define PACK_ROWS   32u /* of a transposed a at a time: a cache line of bf16 */
#define AHEAD_WORDS 8u  /* of the rows that are being packed */
#define AHEAD_ALONG 64u /* 256 bytes of each row */
#define AHEAD_A     32u /* of a transposed a, whose rows are far apart */
#define CACHE_LINE  64u

static uint32_t words_of(uint32_t k, enum precision precision)
{
    return precision == PRECISION_BF16 ? (uint32_t)div_up(k, 2) : k;
}

/* Lanes of the next strip, of those left: no strip is narrower than 32 columns, if it can be. */
static uint32_t strip_lanes(uint32_t left)
{
    return left == 4 ? 2 : MIN(left, STRIP_LANES);
}

/* Words from one strip of packed a to the next: not in the same set of the first cache. */
static size_t a_strip_words(uint32_t words)
{
    return (size_t)STRIP_ROWS * words + LANES;
}

/* Whether the last word along k is half a one. */
static bool is_odd(uint32_t k, enum precision precision)
{
    return precision == PRECISION_BF16 && k % 2 == 1;
}

uint64_t gemm_scratch_bytes(const struct matmul_product *p, uint32_t k)
{
    uint64_t words = round_up(words_of(k, p->precision), LANES) + LANES;
    bool odd = is_odd(k, p->precision) || is_odd(p->k, p->precision);
    uint32_t rows = p->a_transposed ? PACK_ROWS : odd ? STRIP_ROWS : 0;
    return mul_checked(rows * sizeof(uint32_t), words);
}

uint64_t gemm_panel_bytes(uint32_t n, uint32_t k, enum precision precision)
{
    return mul_checked(round_up(n, LANES) * sizeof(uint32_t), words_of(k, precision));
}

#if defined(__x86_64__)
bool gemm_has(enum precision precision)
{
    if (precision == PRECISION_BF16 && !__builtin_cpu_supports("avx512bf16"))
        return false;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

/* The vectors' headers go first: only what is below needs the instructions. */
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,prefer-vector-width=512")

#define INLINE static inline __attribute__((always_inline))

/* -- Packing -- */

/* A factor as it lies in memory. */
struct factor {
    const void *base;
    uint32_t stride, k;
    bool bf16;
};

static struct factor factor_b(const struct matmul_product *p, const void *b)
{
    return (struct factor){b, p->b_stride, p->k, p->precision == PRECISION_BF16};
}

static struct factor factor_a(const struct matmul_product *p, const void *a)
{
    return (struct factor){a, p->a_stride, p->k, p->precision == PRECISION_BF16};
}

static __mmask16 lanes_mask(uint32_t count)
{
    return (__mmask16)(count >= LANES ? 0xffff : (1u << count) - 1);
}

/* 16 neighbours across k at one word, from `at` on, of which the mask's exist. */
INLINE __m512i load_across(const struct factor *f, uint32_t word, uint32_t at, __mmask16 mask)
{
    if (!f->bf16)
        return _mm512_maskz_loadu_epi32(mask,
                                        (const float *)f->base + (size_t)word * f->stride + at);
    const uint16_t *from = (const uint16_t *)f->base + (size_t)word * 2 * f->stride + at;
    __m512i even = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
    if (2 * word + 1 == f->k)
        return even;
    __m512i odd = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from + f->stride));
    return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

INLINE void prefetch_across(const struct factor *f, uint32_t word, uint32_t at)
{
    if (!f->bf16) {
        __builtin_prefetch((const float *)f->base + (size_t)word * f->stride + at);
        return;
    }
    const uint16_t *from = (const uint16_t *)f->base + (size_t)word * 2 * f->stride + at;
    __builtin_prefetch(from);
    __builtin_prefetch(from + f->stride);
}

/* Up to 16 words of a row along k, zeros beyond its end. */
INLINE __m512i load_along(const struct factor *f, uint32_t row, uint32_t word)
{
    size_t at = (size_t)row * f->stride;
    if (!f->bf16)
        return _mm512_maskz_loadu_epi32(lanes_mask(f->k - word),
                                        (const float *)f->base + at + word);
    uint32_t left = f->k - 2 * word;
    __mmask32 mask = left >= 32 ? 0xffffffff : (1u << left) - 1;
    return _mm512_maskz_loadu_epi16(mask, (const uint16_t *)f->base + at + 2 * (size_t)word);
}

INLINE void prefetch_along(const struct factor *f, uint32_t row, uint32_t word)
{
    size_t at = (size_t)row * f->stride;
    if (f->bf16)
        __builtin_prefetch((const uint16_t *)f->base + at + 2 * (size_t)word);
    else
        __builtin_prefetch((const float *)f->base + at + word);
}

/* `count` strips of a b whose rows lie across k, a row of all of them after the other. */
INLINE void pack_across(const struct factor *f, uint32_t words, uint32_t first, uint32_t count,
                        uint32_t lanes, uint32_t end, uint32_t *to)
{
    const uint32_t columns = lanes * LANES;
    for (uint32_t w = 0; w < words; w++)
        for (uint32_t i = 0; i < count; i++)
            for (uint32_t v = 0; v < lanes; v++) {
                uint32_t at = first + i * columns + v * LANES;
                prefetch_across(f, w + AHEAD_WORDS, at);
                _mm512_store_si512(to + ((size_t)i * words + w) * columns + v * LANES,
                                   load_across(f, w, at, lanes_mask(end - at)));
            }
}

/* x[i] as rows to x[i] as columns. */
INLINE void transpose(__m512i x[LANES])
{
    __m512i y[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
        x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
        x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
        x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
    }
}

/* One lane of a strip of a transposed b, in which k is contiguous: 16 x 16 words at a time. */
static void pack_along(const struct factor *f, uint32_t words, uint32_t first, uint32_t columns,
                       uint32_t to_stride, uint32_t *to)
{
    for (uint32_t w = 0; w < words; w += LANES) {
        __m512i x[LANES];
        for (uint32_t i = 0; i < columns; i++)
            prefetch_along(f, first + i, w + AHEAD_ALONG);
#pragma GCC unroll 16
        for (uint32_t i = 0; i < LANES; i++)
            x[i] = i < columns ? load_along(f, first + i, w) : _mm512_setzero_si512();
        transpose(x);
        uint32_t count = MIN(LANES, words - w);
#pragma GCC unroll 16
        for (uint32_t i = 0; i < LANES; i++)
            if (i < count)
                _mm512_store_si512(to + (size_t)(w + i) * to_stride, x[i]);
    }
}

/* Strips of as many lanes, as far as they go. */
static uint32_t strip_run(uint32_t left)
{
    uint32_t lanes = strip_lanes(left), count = 1;
    while (left > count * lanes && strip_lanes(left - count * lanes) == lanes)
        count++;
    return count;
}

void gemm_pack(const struct matmul_product *p, const void *b, void *panel)
{
    ASSERT(p->n > 0 && p->k > 0 && (uintptr_t)panel % CACHE_LINE == 0);
    struct factor f = factor_b(p, b);
    uint32_t words = words_of(p->k, p->precision);
    uint32_t *to = panel;
    for (uint32_t left = (uint32_t)div_up(p->n, LANES), first = 0; left > 0;) {
        uint32_t lanes = strip_lanes(left), count = p->b_transposed ? 1 : strip_run(left);
        if (p->b_transposed)
            for (uint32_t v = 0; v < lanes; v++)
                pack_along(&f, words, first + v * LANES, MIN(LANES, p->n - first - v * LANES),
                           lanes * LANES, to + v * LANES);
        else if (lanes == STRIP_LANES)
            pack_across(&f, words, first, count, STRIP_LANES, p->n, to);
        else
            pack_across(&f, words, first, count, lanes, p->n, to);
        to += (size_t)words * count * lanes * LANES;
        first += count * lanes * LANES;
        left -= count * lanes;
    }
}

/* 16 rows of a word, in the two strips that they belong to. */
INLINE void put_across(uint32_t *strips, uint32_t words, __m512i rows, uint32_t strip,
                       uint32_t word)
{
    uint32_t *to = strips + strip * a_strip_words(words) + (size_t)word * STRIP_ROWS;
    _mm256_store_si256((__m256i *)to, _mm512_castsi512_si256(rows));
    _mm256_store_si256((__m256i *)(to + a_strip_words(words)), _mm512_extracti64x4_epi64(rows, 1));
}

INLINE void pack_a_rows(const struct factor *f, uint32_t words, uint32_t first, __mmask16 low,
                        __mmask16 high, uint32_t *strips)
{
    for (uint32_t w = 0; w < words; w++) {
        prefetch_across(f, w + AHEAD_A, first);
        if (!f->bf16)
            prefetch_across(f, w + AHEAD_A, first + LANES);
        put_across(strips, words, load_across(f, w, first, low), 0, w);
        put_across(strips, words, load_across(f, w, first + LANES, high), 2, w);
    }
}

/* Rows [first, first + rows) of a transposed a, up to PACK_ROWS of them. */
static void pack_a(const struct gemm *gemm, const void *a, uint32_t first, uint32_t rows)
{
    struct factor f = factor_a(gemm->product, a);
    uint32_t words = words_of(f.k, gemm->product->precision);
    if (rows == PACK_ROWS)
        pack_a_rows(&f, words, first, 0xffff, 0xffff, gemm->scratch);
    else
        pack_a_rows(&f, words, first, lanes_mask(rows), lanes_mask(rows > LANES ? rows - LANES : 0),
                    gemm->scratch);
}

/* Up to 8 rows along k with zeros behind an odd end; returns the words between rows. */
static size_t copy_a(const struct gemm *gemm, const void *a, uint32_t first, uint32_t rows)
{
    struct factor f = factor_a(gemm->product, a);
    uint32_t words = words_of(f.k, gemm->product->precision);
    size_t stride = round_up(words, LANES);
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t w = 0; w < words; w += LANES)
            _mm512_store_si512(gemm->scratch + r * stride + w, load_along(&f, first + r, w));
    return stride;
}

/* -- The kernel -- */

/* Rows of a: where they are, and bytes from row to row where they are not packed. */
struct strip {
    const char *a;
    size_t row_bytes;
    const uint32_t *b;
    uint32_t words;
    float *c;
    size_t c_stride;
    bool accumulate;
    __mmask16 last; /* of the last lane's columns: those that there are */
    /* Lines that are fetched meanwhile, one with each word: a transposed a's next rows. */
    const char *ahead;
    size_t ahead_bytes; /* from one to the next */
    uint32_t ahead_count;
};

INLINE __m512 multiply_add(__m512 sum, __m512i a, __m512i b, bool bf16)
{
    if (bf16)
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    return _mm512_fmadd_ps((__m512)a, (__m512)b, sum);
}

INLINE __m512i broadcast(const char *from)
{
    int word;
    __builtin_memcpy(&word, from, sizeof(word));
    return _mm512_set1_epi32(word);
}

INLINE void put(float *at, __m512 value, bool accumulate, __mmask16 mask)
{
    if (accumulate)
        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, at));
    _mm512_mask_storeu_ps(at, mask, value);
}

/* What is not in `s` is known when this is compiled. across: a is packed by pack_a. */
INLINE void kernel(const struct strip *s, uint32_t rows, uint32_t lanes, bool bf16, bool across)
{
    const size_t row_bytes = across ? sizeof(uint32_t) : s->row_bytes;
    const size_t word_bytes = across ? STRIP_ROWS * sizeof(uint32_t) : sizeof(uint32_t);
    const char *a = s->a;
    const uint32_t *b = s->b;
    __m512 sum[STRIP_ROWS][STRIP_LANES];
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (uint32_t v = 0; v < lanes; v++) {
            sum[r][v] = _mm512_setzero_ps();
            __builtin_prefetch(s->c + r * s->c_stride + v * LANES, 1, 3);
        }
    const char *ahead = s->ahead;
    for (uint32_t w = 0; w < s->words; w++) {
        if (across && w < s->ahead_count) {
            __builtin_prefetch(ahead, 0, 2);
            if (!bf16)
                __builtin_prefetch(ahead + CACHE_LINE, 0, 2);
            ahead += s->ahead_bytes;
        }
        __m512i column[STRIP_LANES];
#pragma GCC unroll 3
        for (uint32_t v = 0; v < lanes; v++) {
            column[v] = _mm512_load_si512(b + v * LANES);
            __builtin_prefetch(b + v * LANES + AHEAD_WORDS * lanes * LANES, 0, 3);
        }
#pragma GCC unroll 8
        for (uint32_t r = 0; r < rows; r++) {
            __m512i row = broadcast(a + r * row_bytes);
#pragma GCC unroll 3
            for (uint32_t v = 0; v < lanes; v++)
                sum[r][v] = multiply_add(sum[r][v], row, column[v], bf16);
        }
        a += word_bytes;
        b += lanes * LANES;
    }
#pragma GCC unroll 8
    for (uint32_t r = 0; r < rows; r++)
#pragma GCC unroll 3
        for (uint32_t v = 0; v < lanes; v++)
            put(s->c + r * s->c_stride + v * LANES, sum[r][v], s->accumulate,
                v + 1 == lanes ? s->last : (__mmask16)0xffff);
}

typedef void (*kernel_function)(const struct strip *);

#define KERNEL(kind, bf16, across, rows, lanes)                                                    \
    static void kernel_##kind##_##rows##_##lanes(const struct strip *s)                            \
    {                                                                                              \
        kernel(s, rows, lanes, bf16, across);                                                      \
    }
#define KERNELS(kind, bf16, across)                                                                \
    KERNEL(kind, bf16, across, 1, 1)                                                               \
    KERNEL(kind, bf16, across, 1, 2)                                                               \
    KERNEL(kind, bf16, across, 1, 3)                                                               \
    KERNEL(kind, bf16, across, 2, 1)                                                               \
    KERNEL(kind, bf16, across, 2, 2)                                                               \
    KERNEL(kind, bf16, across, 2, 3)                                                               \
    KERNEL(kind, bf16, across, 4, 1)                                                               \
    KERNEL(kind, bf16, across, 4, 2)                                                               \
    KERNEL(kind, bf16, across, 4, 3)                                                               \
    KERNEL(kind, bf16, across, 8, 1)                                                               \
    KERNEL(kind, bf16, across, 8, 2)                                                               \
    KERNEL(kind, bf16, across, 8, 3)
#define LANES_LIST(kind, rows)                                                                     \
    {                                                                                              \
        kernel_##kind##_##rows##_1, kernel_##kind##_##rows##_2, kernel_##kind##_##rows##_3         \
    }
#define KERNEL_LIST(kind)                                                                          \
    {                                                                                              \
        LANES_LIST(kind, 1), LANES_LIST(kind, 2), LANES_LIST(kind, 4), LANES_LIST(kind, 8)         \
    }

KERNELS(fp32_along, false, false)
KERNELS(fp32_across, false, true)
KERNELS(bf16_along, true, false)
KERNELS(bf16_across, true, true)

/* [bf16][across][log2 of rows][lanes - 1] */
static const kernel_function kernels[2][2][4][STRIP_LANES] = {
    {KERNEL_LIST(fp32_along), KERNEL_LIST(fp32_across)},
    {KERNEL_LIST(bf16_along), KERNEL_LIST(bf16_across)},
};

/* -- A product -- */

/* While PACK_ROWS rows of a transposed a are used, the next are fetched: an equal part of k by each
 * of their strips with each of b. */
static void look_ahead(const struct matmul_product *p, const void *a, uint32_t row,
                       struct strip *strip)
{
    size_t element = precision_bytes(p->precision);
    uint32_t b_strips = (uint32_t)div_up(p->n, GEMM_STRIP_COLUMNS);
    uint32_t part = (uint32_t)div_up(p->k, b_strips * (PACK_ROWS / STRIP_ROWS));
    uint32_t next = (uint32_t)round_up(row + 1, PACK_ROWS);
    size_t done = (size_t)(row % PACK_ROWS / STRIP_ROWS) * b_strips * part;
    strip->ahead_bytes = p->a_stride * element;
    strip->ahead = (const char *)a + next * element + done * strip->ahead_bytes;
    strip->ahead_count = part;
}

/* What of the panel some rows need. */
struct reach {
    uint32_t columns;          /* of c, from the first on */
    uint32_t word, word_count; /* of k */
};

static struct reach reach_of(const struct matmul_product *p, uint32_t row, uint32_t rows)
{
    uint32_t words = words_of(p->k, p->precision);
    uint32_t end = MIN(words_of(row + rows, p->precision), words);
    switch (p->part) {
    case MATMUL_C_LOWER:
        return (struct reach){MIN(p->n, row + rows), 0, words};
    case MATMUL_A_LOWER:
        return (struct reach){p->n, 0, end};
    case MATMUL_A_UPPER: {
        uint32_t first = p->precision == PRECISION_BF16 ? row / 2 : row;
        return (struct reach){p->n, first, words - first};
    }
    case MATMUL_WHOLE:
        break;
    }
    return (struct reach){p->n, 0, words};
}

/* 1, 2, 4 or 8 rows against the panel. */
static void run_strip(const struct gemm *gemm, struct strip strip, uint32_t row, unsigned rows_log2)
{
    const struct matmul_product *p = gemm->product;
    const kernel_function *by_lanes =
        kernels[p->precision == PRECISION_BF16][p->a_transposed][rows_log2];
    const struct reach reach = reach_of(p, row, 1u << rows_log2);
    const uint32_t words = words_of(p->k, p->precision);
    const uint32_t *b = gemm->b;
    strip.words = reach.word_count;
    strip.a += (size_t)reach.word * (p->a_transposed ? STRIP_ROWS : 1) * sizeof(uint32_t);
    uint32_t left = (uint32_t)div_up(p->n, LANES);
    for (uint32_t first = 0; first < reach.columns;) {
        uint32_t lanes = strip_lanes(left), end = first + lanes * LANES;
        strip.last = lanes_mask(p->n - (end - LANES));
        strip.b = b + (size_t)reach.word * lanes * LANES;
        by_lanes[lanes - 1](&strip);
        strip.ahead += strip.ahead_count * strip.ahead_bytes;
        b += (size_t)words * lanes * LANES;
        strip.c += lanes * LANES;
        first = end;
        left -= lanes;
    }
}

static unsigned rows_log2(uint32_t left)
{
    return left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
}

void gemm_rows(const struct gemm *gemm, const void *a, uint32_t rows, float *c, uint32_t c_stride,
               bool accumulate)
{
    const struct matmul_product *p = gemm->product;
    size_t row_bytes = (size_t)p->a_stride * precision_bytes(p->precision);
    size_t strip_words = a_strip_words(words_of(p->k, p->precision));
    bool odd = is_odd(p->k, p->precision);
    ASSERT(gemm->scratch || (!p->a_transposed && !odd));
    ASSERT(p->part == MATMUL_WHOLE || rows == (p->part == MATMUL_C_LOWER ? p->n : p->k));
    struct strip strip = {.row_bytes = row_bytes, .c_stride = c_stride, .accumulate = accumulate};
    for (uint32_t r = 0; r < rows;) {
        unsigned log2 = rows_log2(rows - r);
        uint32_t in_pack = r % PACK_ROWS;
        strip.a = (const char *)a + r * row_bytes;
        if (p->a_transposed) {
            if (in_pack == 0)
                pack_a(gemm, a, r, MIN(PACK_ROWS, rows - r));
            strip.a = (const char *)(gemm->scratch + in_pack / STRIP_ROWS * strip_words +
                                     in_pack % STRIP_ROWS);
            look_ahead(p, a, r, &strip);
        } else if (odd) {
            strip.row_bytes = copy_a(gemm, a, r, 1u << log2) * sizeof(uint32_t);
            strip.a = (const char *)gemm->scratch;
        }
        strip.c = c + (size_t)r * c_stride;
        run_strip(gemm, strip, r, log2);
        r += 1u << log2;
    }
}

#else
bool gemm_has(enum precision precision)
{
    (void)precision;
    return false;
}

void gemm_pack(const struct matmul_product *p, const void *b, void *panel)
{
    (void)p, (void)b, (void)panel;
    ASSERT(false);
}

void gemm_rows(const struct gemm *gemm, const void *a, uint32_t rows, float *c, uint32_t c_stride,
               bool accumulate)
{
    (void)gemm, (void)a, (void)rows, (void)c, (void)c_stride, (void)accumulate;
    ASSERT(false);
}
#endif
