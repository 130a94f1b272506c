/*
 * Products by cuBLASLt: that factors, strides, transpositions, bias and accumulation are described
 * as meant, against float64, at one row, odd sizes and a model's; what cannot be is refused.
 */
#include "core/base.h"
#include "model/cuda/gpu_product.h"
#include "tests/cuda/gpu.h"
#include <string.h>

struct size {
    uint32_t m, n, k;
};
static const struct size sizes[] = {{1, 32, 32}, {7, 96, 64}, {33, 50, 131}};
static const struct size real = {5, 2304, 768};

static double element(const struct gpu_array *x, bool transposed, uint32_t stride, uint32_t row,
                      uint32_t column)
{
    return transposed ? x->host[(uint64_t)column * stride + row]
                      : x->host[(uint64_t)row * stride + column];
}

/* Rows are padded to 16 bytes and some more, so that a stride taken for a width shows. */
static uint32_t stride_of(uint32_t width)
{
    return (uint32_t)round_up(width, 8) + 8;
}

static struct gpu_product_shape shape_of(const struct size *s, bool bf16, unsigned options)
{
    struct gpu_product_shape shape = {.m = s->m,
                                      .n = s->n,
                                      .k = s->k,
                                      .a_transposed = options & 1,
                                      .b_transposed = options & 2,
                                      .bf16 = bf16,
                                      .biased = options & 4};
    shape.widens = bf16 && !shape.biased;
    shape.a_stride = stride_of(shape.a_transposed ? s->m : s->k);
    shape.b_stride = stride_of(shape.b_transposed ? s->k : s->n);
    shape.c_stride = stride_of(s->n);
    return shape;
}

static void check_product(struct gpu_products *products, const struct gpu_product_shape *s,
                          bool accumulate)
{
    struct err err;
    struct gpu_product *product;
    uint64_t a_count = (uint64_t)s->a_stride * (s->a_transposed ? s->k : s->m);
    uint64_t b_count = (uint64_t)s->b_stride * (s->b_transposed ? s->n : s->k);
    uint64_t c_count = (uint64_t)s->c_stride * s->m;
    bool narrow = s->bf16 && !s->widens;
    struct gpu_array a = gpu_normal(s->bf16, a_count, 1, 1.0);
    struct gpu_array b = gpu_normal(s->bf16, b_count, 2, 1.0);
    struct gpu_array c = gpu_normal(narrow, c_count, 3, 1.0);
    struct gpu_array bias = gpu_normal(narrow, s->n, 4, 1.0);
    double *expected = gpu_doubles(c_count);
    memcpy(expected, c.host, c_count * sizeof(double));
    for (uint32_t i = 0; i < s->m; i++)
        for (uint32_t j = 0; j < s->n; j++) {
            double sum = s->biased ? bias.host[j] : 0.0;
            for (uint32_t k = 0; k < s->k; k++)
                sum += element(&a, s->a_transposed, s->a_stride, i, k) *
                       element(&b, s->b_transposed, s->b_stride, k, j);
            double *to = &expected[(uint64_t)i * s->c_stride + j];
            *to = accumulate ? *to + sum : sum;
        }
    assert_int_equal(gpu_product_prepare(products, &product, s, &err), 0);
    assert_int_equal(gpu_product_run(products,
                                     &(struct gpu_product_run){product, a.device, b.device,
                                                               s->biased ? bias.device : NULL,
                                                               c.device, accumulate},
                                     gpu_stream),
                     0);
    gpu_check("product", &c, expected, gpu_tolerance(narrow));
}

static struct gpu_products *open_products(void)
{
    struct err err;
    struct gpu_products *products;
    struct gpu_array workspace = gpu_unwritten(GPU_FLOAT, GPU_PRODUCT_WORKSPACE / 4);
    assert_int_equal(gpu_products_open(&products, workspace.device, &err), 0);
    return products;
}

static void check_size(const struct size *size, unsigned options)
{
    struct gpu_products *products = open_products();
    struct gpu_product_shape shape = shape_of(size, options & 8, options & 7);
    check_product(products, &shape, !shape.biased && options & 1);
    gpu_products_close(products);
    gpu_free_all();
}

static void test_products(void **state)
{
    (void)state;
    for (unsigned options = 0; options < 16; options++)
        for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
            check_size(&sizes[i], options);
    check_size(&real, 12);
    check_size(&real, 3);
}

/* As far as the library cannot: the emulation's does not, a card's may. */
static void test_refuses_odd_strides(void **state)
{
    (void)state;
    if (!emulation_is_here)
        skip();
    struct err err = {0};
    struct gpu_product *product;
    struct gpu_products *products = open_products();
    struct gpu_product_shape shape = shape_of(&sizes[1], true, 0);
    shape.a_stride = 65;
    assert_int_equal(gpu_product_prepare(products, &product, &shape, &err), ERR_SYSTEM);
    assert_non_null(strstr(err.message, "7 x 96 x 64"));
    gpu_products_close(products);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_products),
        gpu_unit_test(test_refuses_odd_strides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
