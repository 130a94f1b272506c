/*
 * The list of tensors of every kind: canonical order, alignment, no overlap, all parameters there
 * once, names and shapes as Hugging Face's; initial values are a pure function with the spread that
 * GPT-2 asks for.
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

/* Shapes that are not those of the published models, so that no dimension passes for another. */
static const struct config odd_rotary = {.name = "odd",
                                         .kind = CONFIG_QWEN3,
                                         .layers = 2,
                                         .channels = 96,
                                         .heads = 6,
                                         .kv_heads = 2,
                                         .head_dim = 24,
                                         .ffn = 200,
                                         .positions = 17,
                                         .vocab = 131,
                                         .norm_epsilon = 1e-5f};

static void check_layout(const struct config *config)
{
    struct tensors tensors;
    tensors_init(&tensors, config);
    assert_int_equal(tensors.group_count, config->layers + 2 + config_has_head(config));
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
    if (config_has_positions(config))
        assert_int_equal(tensors.list[1].offset % 2048, 0);
    for (uint32_t g = 2; g <= config->layers; g++)
        assert_int_equal(tensors.groups[g].parameter_count, tensors.groups[1].parameter_count);
    tensors_deinit(&tensors);
}

static void test_layout(void **state)
{
    (void)state;
    struct config config;
    struct err err;
    check_layout(&odd);
    static const char *const names[] = {"gpt2-1558m", "llama-8b", "llama-70b",
                                        "mistral-7b", "qwen-14b", "qwen-32b"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        assert_int_equal(config_from_name(&config, names[i], &err), 0);
        check_layout(&config);
    }
    config.tied = true;
    check_layout(&config);
}

struct expected {
    uint32_t index;
    const char *name;
    uint32_t rows, columns;
};

static void check_named_shapes(const struct tensors *tensors, const struct expected *expected,
                               size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct tensor *tensor = &tensors->list[expected[i].index];
        assert_string_equal(tensor->name, expected[i].name);
        assert_int_equal(tensor->shape[0], expected[i].rows);
        assert_int_equal(tensor->shape[1], expected[i].columns);
        assert_int_equal(tensor->dim_count, expected[i].columns ? 2 : 1);
    }
}

static void test_names_and_shapes(void **state)
{
    (void)state;
    struct tensors tensors;
    tensors_init(&tensors, &odd);
    static const struct expected expected[] = {
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
    check_named_shapes(&tensors, expected, ARRAY_COUNT(expected));
    tensors_deinit(&tensors);
}

/* Qwen3's block with attention_bias has every tensor that any of these kinds has. */
static void test_rotary_names_and_shapes(void **state)
{
    (void)state;
    struct config config = odd_rotary;
    config.attention_bias = true;
    struct tensors tensors;
    tensors_init(&tensors, &config);
    static const struct expected expected[] = {
        {0, "model.embed_tokens.weight", 131, 96},
        {1, "model.layers.0.input_layernorm.weight", 96, 0},
        {2, "model.layers.0.self_attn.q_proj.weight", 144, 96},
        {3, "model.layers.0.self_attn.q_proj.bias", 144, 0},
        {4, "model.layers.0.self_attn.k_proj.weight", 48, 96},
        {5, "model.layers.0.self_attn.k_proj.bias", 48, 0},
        {6, "model.layers.0.self_attn.v_proj.weight", 48, 96},
        {7, "model.layers.0.self_attn.v_proj.bias", 48, 0},
        {8, "model.layers.0.self_attn.q_norm.weight", 24, 0},
        {9, "model.layers.0.self_attn.k_norm.weight", 24, 0},
        {10, "model.layers.0.self_attn.o_proj.weight", 96, 144},
        {11, "model.layers.0.self_attn.o_proj.bias", 96, 0},
        {12, "model.layers.0.post_attention_layernorm.weight", 96, 0},
        {13, "model.layers.0.mlp.gate_proj.weight", 200, 96},
        {14, "model.layers.0.mlp.up_proj.weight", 200, 96},
        {15, "model.layers.0.mlp.down_proj.weight", 96, 200},
        {16, "model.layers.1.input_layernorm.weight", 96, 0},
        {31, "model.norm.weight", 96, 0},
        {32, "lm_head.weight", 131, 96},
    };
    assert_int_equal(tensors.count, 33);
    check_named_shapes(&tensors, expected, ARRAY_COUNT(expected));
    tensors_deinit(&tensors);
}

/* The head is a group of its own, and only where it is not wte. */
static void test_tied_and_untied(void **state)
{
    (void)state;
    struct config config = odd_rotary;
    struct tensors tensors;
    tensors_init(&tensors, &config);
    const struct tensor_group *head = &tensors.groups[config.layers + 2];
    assert_int_equal(tensors.group_count, config.layers + 3);
    assert_int_equal(tensors.groups[0].tensor_count, 1);
    assert_int_equal(tensors.groups[config.layers + 1].parameter_count, 96);
    assert_int_equal(head->tensor_count, 1);
    assert_int_equal(head->parameter_count, 131 * 96);
    assert_int_equal(tensors.list[head->first_tensor].offset, 0);
    tensors_deinit(&tensors);
    config.tied = true;
    tensors_init(&tensors, &config);
    assert_int_equal(tensors.group_count, config.layers + 2);
    assert_string_equal(tensors.list[tensors.count - 1].name, "model.norm.weight");
    tensors_deinit(&tensors);
}

/* Llama has neither biases nor norms of q and k; Qwen2 has the biases of q, k and v alone. */
static void test_optional_tensors(void **state)
{
    (void)state;
    static const struct {
        enum config_kind kind;
        uint32_t block_tensors;
    } kinds[] = {{CONFIG_LLAMA, 9}, {CONFIG_QWEN2, 12}, {CONFIG_QWEN3, 11}};
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        struct config config = odd_rotary;
        struct tensors tensors;
        config.kind = kinds[i].kind;
        tensors_init(&tensors, &config);
        assert_int_equal(tensors.groups[1].tensor_count, kinds[i].block_tensors);
        tensors_deinit(&tensors);
        check_layout(&config);
    }
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

static void test_rotary_initial_values(void **state)
{
    (void)state;
    struct tensors tensors;
    struct config config = odd_rotary;
    config.attention_bias = true;
    tensors_init(&tensors, &config);
    for (uint32_t t = 0; t < tensors.count; t++) {
        const struct tensor *tensor = &tensors.list[t];
        if (tensor->dim_count == 2)
            check_spread(&tensors, t, 0.02);
        else
            assert_true(tensors_initial_value(&tensors, t, 3, 42) ==
                        (strstr(tensor->name, "bias") ? 0.0f : 1.0f));
    }
    tensors_deinit(&tensors);
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
        cmocka_unit_test(test_rotary_names_and_shapes),
        cmocka_unit_test(test_tied_and_untied),
        cmocka_unit_test(test_optional_tensors),
        cmocka_unit_test(test_rotary_initial_values),
        cmocka_unit_test(test_initial_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
