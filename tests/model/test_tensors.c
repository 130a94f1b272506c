/*
 * The list of tensors: canonical order, alignment, no overlap, all parameters there once; initial
 * values are a pure function with the spread that GPT-2 asks for.
 */
#include "core/base.h"
#include "model/tensors.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static const struct config odd = {.name = "odd",
                                  .layers = 3,
                                  .channels = 96,
                                  .heads = 3,
                                  .positions = 17,
                                  .vocab = 131,
                                  .norm_epsilon = 1e-5f};

static void check_layout(const struct config *config)
{
    struct tensors tensors;
    tensors_init(&tensors, config);
    assert_int_equal(tensors.group_count, config->layers + 2);
    assert_int_equal(tensors.parameter_count, config_parameter_count(config));
    uint64_t total = 0;
    uint32_t next = 0;
    for (uint32_t g = 0; g < tensors.group_count; g++) {
        const struct tensor_group *group = &tensors.groups[g];
        assert_int_equal(group->first_tensor, next);
        next += group->tensor_count;
        uint64_t end = 0;
        for (uint32_t i = group->first_tensor; i < next; i++) {
            const struct tensor *tensor = &tensors.list[i];
            assert_int_equal(tensor->group, g);
            assert_int_equal(tensor->offset % TENSORS_ALIGN, 0);
            assert_true(tensor->offset >= end);
            end = tensor->offset + tensor->count;
            total += tensor->count;
            assert_int_equal(tensor->decay, tensor->dim_count == 2);
        }
        assert_int_equal(group->parameter_count, end);
    }
    assert_int_equal(next, tensors.count);
    assert_int_equal(total, tensors.parameter_count);
    assert_int_equal(tensors.list[1].offset % 2048, 0);
    tensors_deinit(&tensors);
}

static void test_layout(void **state)
{
    (void)state;
    struct config config;
    struct err err;
    check_layout(&odd);
    assert_int_equal(config_from_name(&config, "gpt2-1558m", &err), 0);
    check_layout(&config);
}

static void test_names_and_shapes(void **state)
{
    (void)state;
    struct tensors tensors;
    tensors_init(&tensors, &odd);
    static const struct {
        uint32_t index;
        const char *name;
        uint32_t rows, columns;
    } expected[] = {
        {0, "transformer.wte.weight", 131, 96},
        {1, "transformer.wpe.weight", 17, 96},
        {2 + BLOCK_LN1_WEIGHT, "transformer.h.0.ln_1.weight", 96, 0},
        {2 + BLOCK_QKV_WEIGHT, "transformer.h.0.attn.c_attn.weight", 96, 288},
        {2 + BLOCK_QKV_BIAS, "transformer.h.0.attn.c_attn.bias", 288, 0},
        {2 + BLOCK_PROJ_WEIGHT, "transformer.h.0.attn.c_proj.weight", 96, 96},
        {2 + BLOCK_FC_WEIGHT, "transformer.h.0.mlp.c_fc.weight", 96, 384},
        {2 + BLOCK_OUT_WEIGHT, "transformer.h.0.mlp.c_proj.weight", 384, 96},
        {2 + 2 * BLOCK_TENSOR_COUNT + BLOCK_OUT_BIAS, "transformer.h.2.mlp.c_proj.bias", 96, 0},
        {2 + 3 * BLOCK_TENSOR_COUNT, "transformer.ln_f.weight", 96, 0},
        {2 + 3 * BLOCK_TENSOR_COUNT + 1, "transformer.ln_f.bias", 96, 0},
    };
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++) {
        const struct tensor *tensor = &tensors.list[expected[i].index];
        assert_string_equal(tensor->name, expected[i].name);
        assert_int_equal(tensor->shape[0], expected[i].rows);
        assert_int_equal(tensor->dim_count, expected[i].columns ? 2 : 1);
        if (expected[i].columns)
            assert_int_equal(tensor->shape[1], expected[i].columns);
    }
    tensors_deinit(&tensors);
}

/* Mean and spread of a tensor's initial values, within five standard errors. */
static void check_spread(const struct tensors *tensors, uint32_t index, double std)
{
    uint64_t count = tensors->list[index].count;
    double sum = 0.0, squares = 0.0;
    for (uint64_t i = 0; i < count; i++) {
        double value = tensors_initial_value(tensors, index, i, 42);
        sum += value;
        squares += value * value;
    }
    double n = (double)count;
    assert_true(fabs(sum / n) < 5.0 * std / sqrt(n));
    assert_true(fabs(sqrt(squares / n) / std - 1.0) < 5.0 / sqrt(2.0 * n));
}

static void test_initial_values(void **state)
{
    (void)state;
    struct tensors tensors;
    tensors_init(&tensors, &odd);
    check_spread(&tensors, 0, 0.02);
    check_spread(&tensors, 1, 0.01);
    check_spread(&tensors, 2 + BLOCK_FC_WEIGHT, 0.02);
    check_spread(&tensors, 2 + BLOCK_PROJ_WEIGHT, 0.02 / sqrt(6.0));
    check_spread(&tensors, 2 + BLOCK_TENSOR_COUNT + BLOCK_OUT_WEIGHT, 0.02 / sqrt(6.0));
    assert_true(tensors_initial_value(&tensors, 2 + BLOCK_LN1_WEIGHT, 5, 42) == 1.0f);
    assert_true(tensors_initial_value(&tensors, 2 + BLOCK_LN1_BIAS, 5, 42) == 0.0f);
    assert_true(tensors_initial_value(&tensors, 2 + BLOCK_QKV_BIAS, 5, 42) == 0.0f);
    /* Pure, and different for another seed, tensor and index. */
    float value = tensors_initial_value(&tensors, 0, 7, 42);
    assert_true(tensors_initial_value(&tensors, 0, 7, 42) == value);
    assert_true(tensors_initial_value(&tensors, 0, 7, 43) != value);
    assert_true(tensors_initial_value(&tensors, 0, 8, 42) != value);
    assert_true(tensors_initial_value(&tensors, 1, 7, 42) != value / 2.0f);
    tensors_deinit(&tensors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_names_and_shapes),
        cmocka_unit_test(test_initial_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
