/*
 * Products by gemm or the library against float64, at every combination of transposed factors and
 * accumulation, at shapes from 1 up, with strides that leave gaps: gaps are not touched. The test
 * runs a second time in a process where oneDNN is told that the CPU has no AVX-512, where bf16
 * products are widened.
 */
#include "core/base.h"
#include "core/mem.h"
#include "model/cpu/matmul.h"
#include "tests/shared/limited.h"
#include "tests/shared/matrix.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define GAP       5
#define UNTOUCHED 12345.0f

static const struct {
    uint32_t m, n, k;
} sizes[] = {{1, 1, 1}, {7, 5, 3}, {33, 64, 1}, {1, 70, 64}, {128, 96, 130}, {130, 31, 257}};

/* Row r, column c of op(matrix). */
static float at(const void *matrix, const struct matmul_product *p, bool is_a, uint32_t r,
                uint32_t c)
{
    bool transposed = is_a ? p->a_transposed : p->b_transposed;
    size_t stride = is_a ? p->a_stride : p->b_stride;
    return matrix_element(matrix, transposed ? c * stride + r : r * stride + c, p->precision);
}

/* A panel is used twice, and gives what a whole run gave. */
static void check_panel(struct matmul *matmul, uint32_t product, const struct matmul_product *p,
                        uint32_t worker, const void *a, const void *b, const float *c)
{
    void *memory = mem_alloc_aligned(64, matmul_panel_bytes(matmul, product) + 1);
    float *again = mem_alloc((size_t)p->m * p->c_stride, sizeof(float));
    struct matmul_panel panel = matmul_prepare(matmul, product, b, memory);
    for (unsigned i = 0; i < 2; i++) {
        memcpy(again, c, (size_t)p->m * p->c_stride * sizeof(float));
        for (uint32_t r = 0; r < p->m; r++)
            memset(again + (size_t)r * p->c_stride, 0, p->n * sizeof(float));
        matmul_apply(matmul, product, worker, a, &panel, again);
        assert_memory_equal(again, c, (size_t)p->m * p->c_stride * sizeof(float));
    }
    mem_free(memory);
    mem_free(again);
}

static void check_product(const struct matmul_product *p, uint32_t worker, bool library)
{
    struct err err;
    struct matmul *matmul;
    assert_int_equal(matmul_open(&matmul, 2, &err), 0);
    if (library)
        matmul_use_library(matmul);
    uint32_t product = matmul_declare(matmul, p);
    assert_int_equal(matmul_declare(matmul, p), product);
    matmul_ready(matmul);
    void *a = matrix_draw(2, (size_t)(p->a_transposed ? p->k : p->m) * p->a_stride, p->precision);
    void *b = matrix_draw(3, (size_t)(p->b_transposed ? p->n : p->k) * p->b_stride, p->precision);
    float *c = mem_alloc((size_t)p->m * p->c_stride, sizeof(float));
    for (size_t i = 0; i < (size_t)p->m * p->c_stride; i++)
        c[i] = UNTOUCHED;
    for (uint32_t i = 0; i < p->m && p->accumulate; i++)
        for (uint32_t j = 0; j < p->n; j++)
            c[(size_t)i * p->c_stride + j] = 0.5f;
    matmul_run(matmul, product, worker, a, b, c);
    if (!p->accumulate)
        check_panel(matmul, product, p, worker, a, b, c);
    double difference = 0.0, size = 0.0;
    for (uint32_t i = 0; i < p->m; i++) {
        for (uint32_t j = 0; j < p->n; j++) {
            double sum = p->accumulate ? 0.5 : 0.0;
            for (uint32_t l = 0; l < p->k; l++)
                sum += (double)at(a, p, true, i, l) * (double)at(b, p, false, l, j);
            double error = (double)c[(size_t)i * p->c_stride + j] - sum;
            difference += error * error;
            size += sum * sum;
        }
        for (uint32_t j = p->n; j < p->c_stride; j++)
            assert_true(c[(size_t)i * p->c_stride + j] == UNTOUCHED);
    }
    assert_true(sqrt(difference) < 1e-6 * sqrt(size));
    mem_free(a);
    mem_free(b);
    mem_free(c);
    matmul_close(matmul);
}

static void test_products(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        for (unsigned kind = 0; kind < 32; kind++) {
            bool a_transposed = kind & 1, b_transposed = kind & 2;
            uint32_t gap = kind & 16 ? GAP : 0;
            struct matmul_product product = {
                .m = sizes[i].m,
                .n = sizes[i].n,
                .k = sizes[i].k,
                .a_stride = (a_transposed ? sizes[i].m : sizes[i].k) + gap,
                .b_stride = (b_transposed ? sizes[i].k : sizes[i].n) + gap,
                .c_stride = sizes[i].n + gap,
                .a_transposed = a_transposed,
                .b_transposed = b_transposed,
                .accumulate = kind & 4,
                .precision = kind & 8 ? PRECISION_BF16 : PRECISION_FP32};
            check_product(&product, kind & 1, false);
            check_product(&product, kind & 1, true);
        }
    }
}

static void test_has_bf16_follows_the_limit(void **state)
{
    (void)state;
    if (limited_is()) {
        assert_false(matmul_has_bf16());
        assert_false(matmul_is_packed(PRECISION_FP32) || matmul_is_packed(PRECISION_BF16));
    } else
        assert_int_equal(matmul_has_bf16(), __builtin_cpu_supports("avx512bf16") != 0);
    assert_non_null(strstr(matmul_library(), "oneDNN "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limited_test),
        cmocka_unit_test(test_products),
        cmocka_unit_test(test_has_bf16_follows_the_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
