/*
 * What is measured of a card: every figure is there and positive, in fp32 and bf16, and all memory
 * is given back; a call that fails is told with its name, whichever it is. The emulation's time
 * means nothing, so no figure is held against another.
 */
#include "core/base.h"
#include "model/cuda/gpu_rates.h"
#include "tests/cuda/gpu.h"
#include <math.h>
#include <string.h>

static const struct gpu_rates_table *const table = &gpu_rates_table;

static void check_positive(const double *figures, size_t count)
{
    for (size_t i = 0; i < count; i++)
        assert_true(isfinite(figures[i]) && figures[i] > 0);
}

static void test_link(void **state)
{
    (void)state;
    struct err err;
    struct gpu_rates_link link;
    assert_int_equal(table->use(0, &err), 0);
    assert_int_equal(table->link(&link, &err), 0);
    check_positive((const double *)&link, sizeof(link) / sizeof(double));
    /* More than a second for a copy of 4 KiB would be another unit. */
    assert_true(link.latency_s < 1);
}

static void test_memory(void **state)
{
    (void)state;
    struct err err;
    struct gpu_rates_memory memory;
    assert_int_equal(table->memory(&memory, &err), 0);
    check_positive((const double *)&memory, sizeof(memory) / sizeof(double));
    assert_true(memory.launch_s < 1);
}

static void test_product(void **state)
{
    (void)state;
    struct err err;
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        double flops = 0;
        assert_int_equal(table->product(bf16, &flops, &err), 0);
        check_positive(&flops, 1);
    }
}

static void test_kernels(void **state)
{
    (void)state;
    struct err err;
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        const struct gpu_rates_class class = {bf16, 1, 16, 32, 2, 40};
        struct gpu_rates_kernels kernels = {0};
        assert_int_equal(table->kernels(&class, &kernels, &err), 0);
        check_positive((const double *)&kernels, sizeof(kernels) / sizeof(double));
    }
}

static void test_no_such_card(void **state)
{
    (void)state;
    struct err err = {0};
    assert_int_equal(table->use(63, &err), ERR_SYSTEM);
    assert_non_null(strstr(err.message, "cudaSetDevice"));
    cudaGetLastError();
}

/* Opening, filling and timing: calls in strides, until there are no more or enough have failed. How
 * many calls there are depends on the time they take. */
#define FAILURES 40u
static void test_failing_calls(void **state)
{
    (void)state;
    if (!emulation_is_here || emulation_is_checked)
        skip();
    const struct gpu_rates_class class = {true, 1, 8, 32, 1, 24};
    uint32_t failed = 0;
    for (uint32_t call = 1; failed < FAILURES; call += call < 30 ? 1 : 61) {
        struct gpu_rates_kernels kernels;
        struct err err = {0};
        emulation_fail_call(call);
        int result = table->kernels(&class, &kernels, &err);
        emulation_fail_call(0);
        if (result == 0)
            break;
        /* The emulation has an allocation fail for want of memory. */
        if (result == ERR_INPUT)
            assert_non_null(strstr(err.message, "MiB free"));
        else
            assert_int_equal(result, ERR_SYSTEM);
        assert_true(strlen(err.message) > 0);
        failed++;
    }
    assert_true(failed > 30);
    cudaGetLastError();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_link),         gpu_unit_test(test_memory),
        gpu_unit_test(test_product),      gpu_unit_test(test_kernels),
        gpu_unit_test(test_no_such_card), gpu_unit_test(test_failing_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
