/*
 * Our own products, at panels of 1 to 200 columns, 1 to 70 rows and k from 1 to 333, all ways
 * transposed, with strides that leave gaps. In fp32 every element must be the chain of
 * multiply-adds over k in order, to the bit, whatever is around it: so products that are cut up
 * have the same bits. In bf16, whose instruction rounds in its own way, it is close to float64, and
 * a product in pieces has the same bits as the whole. A part of a square product is what it
 * promises, and reads nothing that must not matter. Skipped on a CPU without AVX-512 (or
 * AVX512_BF16).
 */
#include "core/base.h"
#include "core/mem.h"
#include "model/cpu/gemm.h"
#include "tests/shared/matrix.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define GAP       3
#define UNTOUCHED 12345.0f

static const struct {
    uint32_t m, n, k;
} sizes[] = {{1, 1, 1},    {8, 16, 2},   {7, 48, 3},    {3, 64, 33},   {33, 17, 64},
             {70, 31, 65}, {32, 97, 16}, {64, 112, 40}, {15, 200, 333}};

/* Row r, column c of op(matrix). */
static float at(const struct matmul_product *p, const void *matrix, bool is_a, uint32_t r,
                uint32_t c)
{
    bool transposed = is_a ? p->a_transposed : p->b_transposed;
    size_t stride = is_a ? p->a_stride : p->b_stride;
    size_t index = transposed ? c * stride + r : r * stride + c;
    return matrix_element(matrix, index, p->precision);
}

static const void *moved(const struct matmul_product *p, const void *matrix, size_t elements)
{
    return (const char *)matrix + elements * precision_bytes(p->precision);
}

/* A product with what it needs. */
struct fixture {
    struct matmul_product product;
    void *a, *b, *panel, *scratch;
    float *c;
    size_t c_count;
};

static void setup(struct fixture *f, uint32_t m, uint32_t n, uint32_t k, unsigned kind)
{
    bool a_transposed = kind & 1, b_transposed = kind & 2;
    struct matmul_product *p = &f->product;
    *p = (struct matmul_product){.m = m,
                                 .n = n,
                                 .k = k,
                                 .a_stride = (a_transposed ? m : k) + GAP,
                                 .b_stride = (b_transposed ? k : n) + GAP,
                                 .c_stride = n + GAP,
                                 .a_transposed = a_transposed,
                                 .b_transposed = b_transposed,
                                 .accumulate = kind & 4,
                                 .precision = kind & 8 ? PRECISION_BF16 : PRECISION_FP32};
    f->a = matrix_draw(2, (size_t)(a_transposed ? k : m) * p->a_stride, p->precision);
    f->b = matrix_draw(3, (size_t)(b_transposed ? n : k) * p->b_stride, p->precision);
    f->c_count = (size_t)m * p->c_stride;
    f->c = mem_alloc(f->c_count, sizeof(float));
    f->panel = mem_alloc_aligned(64, gemm_panel_bytes(n, k, p->precision));
    f->scratch = mem_alloc_aligned(64, gemm_scratch_bytes(p, k));
}

static void teardown(struct fixture *f)
{
    mem_free(f->a);
    mem_free(f->b);
    mem_free(f->c);
    mem_free(f->panel);
    mem_free(f->scratch);
}

static void fill(struct fixture *f, float *c)
{
    for (size_t i = 0; i < f->c_count; i++)
        c[i] = UNTOUCHED;
    for (uint32_t r = 0; r < f->product.m && f->product.accumulate; r++)
        for (uint32_t i = 0; i < f->product.n; i++)
            c[(size_t)r * f->product.c_stride + i] = 0.5f;
}

/* Rows and columns from (row, column) on, by a panel of their own. */
static void run_piece(struct fixture *f, float *c, uint32_t row, uint32_t rows, uint32_t column,
                      uint32_t columns)
{
    const struct matmul_product *p = &f->product;
    struct matmul_product piece = *p;
    piece.n = columns;
    const void *b = moved(p, f->b, (size_t)column * (p->b_transposed ? p->b_stride : 1));
    const void *a = moved(p, f->a, (size_t)row * (p->a_transposed ? 1 : p->a_stride));
    gemm_pack(&piece, b, f->panel);
    struct gemm gemm = {&piece, f->panel, f->scratch};
    gemm_rows(&gemm, a, rows, c + (size_t)row * p->c_stride + column, p->c_stride, p->accumulate);
}

static void check_sums(const struct fixture *f)
{
    const struct matmul_product *p = &f->product;
    double difference = 0.0, size = 0.0;
    for (uint32_t i = 0; i < p->m; i++) {
        for (uint32_t j = 0; j < p->n; j++) {
            float chain = 0.0f, c = f->c[(size_t)i * p->c_stride + j];
            double sum = p->accumulate ? 0.5 : 0.0;
            for (uint32_t l = 0; l < p->k; l++) {
                float x = at(p, f->a, true, i, l), y = at(p, f->b, false, l, j);
                chain = fmaf(x, y, chain);
                sum += (double)x * (double)y;
            }
            if (p->accumulate)
                chain += 0.5f;
            if (p->precision == PRECISION_FP32)
                assert_memory_equal(&c, &chain, sizeof(c));
            difference += ((double)c - sum) * ((double)c - sum);
            size += sum * sum;
        }
        for (uint32_t j = p->n; j < p->c_stride; j++)
            assert_true(f->c[(size_t)i * p->c_stride + j] == UNTOUCHED);
    }
    assert_true(sqrt(difference) < 1e-6 * sqrt(size));
}

/* In four pieces, none of which is as wide or high as a strip. */
static void check_pieces(struct fixture *f)
{
    const struct matmul_product *p = &f->product;
    float *pieces = mem_alloc(f->c_count, sizeof(float));
    fill(f, pieces);
    uint32_t rows = p->m / 3, columns = p->n * 2 / 5;
    for (unsigned part = 0; part < 4; part++) {
        bool low = part & 1, right = part & 2;
        uint32_t height = low ? p->m - rows : rows, width = right ? p->n - columns : columns;
        if (height > 0 && width > 0)
            run_piece(f, pieces, low ? rows : 0, height, right ? columns : 0, width);
    }
    assert_memory_equal(pieces, f->c, f->c_count * sizeof(float));
    mem_free(pieces);
}

static bool runs(unsigned kind)
{
    return gemm_has(kind & 8 ? PRECISION_BF16 : PRECISION_FP32);
}

static void test_products(void **state)
{
    (void)state;
    if (!gemm_has(PRECISION_FP32))
        skip();
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        for (unsigned kind = 0; kind < 16; kind++) {
            struct fixture f;
            if (!runs(kind))
                continue;
            setup(&f, sizes[i].m, sizes[i].n, sizes[i].k, kind);
            fill(&f, f.c);
            run_piece(&f, f.c, 0, f.product.m, 0, f.product.n);
            check_sums(&f);
            check_pieces(&f);
            teardown(&f);
        }
    }
}

/* op(a)'s elements that a part says are zero. */
static void clear_part(struct fixture *f)
{
    const struct matmul_product *p = &f->product;
    for (uint32_t r = 0; r < p->m; r++) {
        for (uint32_t l = 0; l < p->k; l++) {
            bool cleared = p->part == MATMUL_A_LOWER ? l > r : l < r;
            size_t index =
                p->a_transposed ? (size_t)l * p->a_stride + r : (size_t)r * p->a_stride + l;
            if (cleared && p->part != MATMUL_C_LOWER)
                memset((char *)f->a + index * precision_bytes(p->precision), 0,
                       precision_bytes(p->precision));
        }
    }
}

/* The part against the whole product, where it matters: the same bits, but that zero may have been
 * added to zero. */
static void check_part(struct fixture *f, enum matmul_part part)
{
    struct matmul_product *p = &f->product;
    float *whole = mem_alloc(f->c_count, sizeof(float));
    p->part = part;
    clear_part(f);
    fill(f, f->c);
    run_piece(f, f->c, 0, p->m, 0, p->n);
    p->part = MATMUL_WHOLE;
    fill(f, whole);
    run_piece(f, whole, 0, p->m, 0, p->n);
    for (uint32_t r = 0; r < p->m; r++)
        for (uint32_t i = 0; i < p->c_stride; i++) {
            size_t index = (size_t)r * p->c_stride + i;
            if (part != MATMUL_C_LOWER || i <= r || i >= p->n)
                assert_true(f->c[index] == whole[index]);
        }
    mem_free(whole);
}

static void test_parts(void **state)
{
    (void)state;
    if (!gemm_has(PRECISION_FP32))
        skip();
    for (uint32_t side = 1; side <= 131; side = side * 3 + 7) {
        for (unsigned kind = 0; kind < 16; kind++) {
            for (unsigned part = MATMUL_C_LOWER; part <= MATMUL_A_UPPER; part++) {
                struct fixture f;
                if (!runs(kind))
                    continue;
                setup(&f, side, part == MATMUL_C_LOWER ? side : 21,
                      part == MATMUL_C_LOWER ? 21 : side, kind);
                check_part(&f, (enum matmul_part)part);
                teardown(&f);
            }
        }
    }
}

/* What is beyond the factors and k's odd end must not be read as a number. */
static void test_nothing_beyond_is_used(void **state)
{
    (void)state;
    for (unsigned kind = 8; kind < 12; kind++) {
        struct fixture f;
        if (!runs(kind))
            skip();
        setup(&f, 9, 18, 7, kind);
        struct matmul_product *p = &f.product;
        uint32_t a_rows = p->a_transposed ? p->k : p->m, b_rows = p->b_transposed ? p->n : p->k;
        for (uint32_t r = 0; r < MAX(a_rows, b_rows); r++)
            for (uint32_t i = 0; i < GAP; i++) {
                if (r < a_rows)
                    ((uint16_t *)f.a)[(size_t)(r + 1) * p->a_stride - GAP + i] = 0x7fc0;
                if (r < b_rows)
                    ((uint16_t *)f.b)[(size_t)(r + 1) * p->b_stride - GAP + i] = 0x7fc0;
            }
        fill(&f, f.c);
        run_piece(&f, f.c, 0, p->m, 0, p->n);
        check_sums(&f);
        teardown(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_nothing_beyond_is_used),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
