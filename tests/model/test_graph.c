/*
 * What ops cost: for GPT-2 the closed forms of the paper's shape and the bytes of kernels_sizes, to
 * the last one; for other kinds the products counted from the list of tensors, and inner and
 * scratch counted row by row as the header documents them.
 */
#include "core/base.h"
#include "model/graph.h"
#include "model/kernels.h"
#include "model/tensors.h"
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static const char *const gpt2_names[] = {"gpt-tiny", "gpt2-124m", "gpt2-355m", "gpt2-1558m"};
static const char *const other_names[] = {"llama-8b", "llama-70b", "mistral-7b", "qwen-14b",
                                          "qwen-32b"};

static void named(struct config *config, const char *name)
{
    struct err err;
    assert_int_equal(config_from_name(config, name, &err), 0);
    if (config->vocab == 0)
        config->vocab = 517;
}

static void test_gpt2_flops(void **state)
{
    (void)state;
    static const uint64_t row_counts[] = {0, 1, 37, 4096, KERNELS_ROWS_MAX};
    for (size_t n = 0; n < ARRAY_COUNT(gpt2_names); n++) {
        struct config config;
        named(&config, gpt2_names[n]);
        uint64_t c = config.channels;
        for (size_t i = 0; i < ARRAY_COUNT(row_counts); i++) {
            uint64_t rows = row_counts[i];
            assert_int_equal(graph_block_flops(&config, rows), rows * 24 * c * c);
            assert_int_equal(graph_attention_flops(&config, rows, 37), rows * 2 * c * 37);
            assert_int_equal(graph_last_product_flops(&config, rows), rows * 8 * c * c);
            assert_int_equal(graph_head_flops(&config, rows, 513), rows * 2 * c * 513);
        }
    }
}

/* Every matrix of a block is in one product, so a row costs two FLOPs for each of its elements. */
static void test_products_are_the_matrices(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_COUNT(other_names); n++) {
        struct config config;
        struct tensors tensors;
        named(&config, other_names[n]);
        tensors_init(&tensors, &config);
        const struct tensor_group *block = &tensors.groups[1];
        uint64_t elements = 0, down = 0;
        for (uint32_t t = 0; t < block->tensor_count; t++) {
            const struct tensor *tensor = &tensors.list[block->first_tensor + t];
            elements += tensor->dim_count == 2 ? tensor->count : 0;
            down += strstr(tensor->name, "down_proj") ? tensor->count : 0;
        }
        assert_int_equal(graph_block_flops(&config, 7), 2 * 7 * elements);
        assert_int_equal(graph_last_product_flops(&config, 7), 2 * 7 * down);
        assert_int_equal(graph_head_flops(&config, 7, config.vocab), 2 * 7 * tensors.list[0].count);
        tensors_deinit(&tensors);
    }
}

/* Sharing keys between heads saves no FLOPs; heads wider than the model cost what they are wide. */
static void test_attention_flops(void **state)
{
    (void)state;
    struct config config;
    named(&config, "qwen-32b");
    assert_int_equal(graph_attention_flops(&config, 1000, 250), 2ull * 1000 * 64 * 128 * 250);
    config.kv_heads = 64;
    assert_int_equal(graph_attention_flops(&config, 1000, 250), 2ull * 1000 * 64 * 128 * 250);
}

/* The largest that config_check lets pass: one op's cost stays in 64 bits, doubled for backward. */
static void test_largest_stays_in_range(void **state)
{
    (void)state;
    struct err err;
    struct config config = {.name = "largest",
                            .kind = CONFIG_LLAMA,
                            .layers = 1,
                            .channels = 65536,
                            .heads = 4096,
                            .kv_heads = 64,
                            .head_dim = 64,
                            .ffn = 1u << 19,
                            .positions = 1u << 20,
                            .vocab = 1u << 16,
                            .norm_epsilon = 1e-5f};
    struct graph_shape shape = {PRECISION_FP32, 4, 1u << 20, 4096};
    uint64_t rows = KERNELS_ROWS_MAX;
    assert_int_equal(config_check(&config, &err), ERR_INPUT); /* one step above */
    config.ffn /= 2;
    assert_int_equal(config_check(&config, &err), 0);
    assert_true(graph_attention_flops(&config, rows, 1u << 20) <= (uint64_t)1 << 63);
    assert_true(graph_block_flops(&config, rows) < (uint64_t)1 << 62);
    assert_true(graph_head_flops(&config, rows, config.vocab) < (uint64_t)1 << 62);
    assert_true(graph_inner_bytes(&config, &shape) < (uint64_t)1 << 50);
    assert_true(graph_scratch_bytes(&config, &shape) < (uint64_t)1 << 50);
    assert_true(graph_head_once_bytes(&config, &shape) < (uint64_t)1 << 50);
}

static void check_kernels_sizes(const struct config *config, const struct graph_shape *shape)
{
    struct kernels_shape kernels = {.precision = shape->precision,
                                    .batch = shape->batch,
                                    .seq = shape->seq,
                                    .channels = config->channels,
                                    .heads = config->heads,
                                    .vocab = config->vocab,
                                    .tile_rows_max = shape->tile_rows_max,
                                    .norm_epsilon = config->norm_epsilon};
    struct kernels_sizes sizes;
    kernels_sizes(&kernels, &sizes);
    assert_int_equal(graph_inner_bytes(config, shape), sizes.inner_bytes);
    assert_int_equal(graph_scratch_bytes(config, shape), sizes.scratch_bytes);
    assert_int_equal(graph_head_once_bytes(config, shape), sizes.head_once_bytes);
}

/* The last shape is one where the head needs more scratch than a block. */
static const struct graph_shape shapes[] = {
    {PRECISION_FP32, 1, 1, 32},     {PRECISION_BF16, 1, 1, 32},   {PRECISION_FP32, 3, 37, 511},
    {PRECISION_BF16, 3, 37, 511},   {PRECISION_FP32, 2, 512, 64}, {PRECISION_BF16, 4, 1024, 5000},
    {PRECISION_FP32, 1, 16, 16000},
};

static void test_gpt2_bytes(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_COUNT(gpt2_names); n++)
        for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
            struct config config;
            named(&config, gpt2_names[n]);
            check_kernels_sizes(&config, &shapes[i]);
        }
}

/* 4,096 rows: no array needs padding, so the documented bytes per row come out to the byte. */
static void test_other_bytes_per_row(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t inner_row[2], scratch_row[2]; /* by precision */
    } expected[] = {
        {"llama-8b",
         {4 * (6144 + 4096 + 2 * 14336) + 4 * 4096 + 4 * 32 + 8,
          2 * (6144 + 4096 + 2 * 14336) + 4 * 4096 + 4 * 32 + 8},
         {4 * 4096 + 4 * 4096 + 4096 / 16 + 4 * 32 + 4 * 3 * 14336,
          2 * 4096 + 2 * 4096 + 4 * 4096 + 4096 / 16 + 4 * 32 + 2 * 3 * 14336}},
        {"qwen-32b",
         {4 * (8192 + 2048 + 8192 + 2 * 25600) + 4 * 5120 + 4 * 64 + 8 + 4 * 72,
          2 * (8192 + 2048 + 8192 + 2 * 25600) + 4 * 5120 + 4 * 64 + 8 + 4 * 72},
         {4 * 5120 + 4 * 5120 + 5120 / 16 + 4 * 64 + 4 * 3 * 25600,
          2 * 5120 + 2 * 5120 + 4 * 5120 + 5120 / 16 + 4 * 64 + 2 * 3 * 25600}},
    };
    for (size_t i = 0; i < ARRAY_COUNT(expected); i++)
        for (enum precision p = PRECISION_FP32; p <= PRECISION_BF16; p++) {
            struct config config;
            struct graph_shape shape = {p, 2, 2048, 1024};
            named(&config, expected[i].name);
            assert_int_equal(graph_inner_bytes(&config, &shape), 4096 * expected[i].inner_row[p]);
            assert_int_equal(graph_scratch_bytes(&config, &shape),
                             4096 * expected[i].scratch_row[p]);
        }
}

/* A narrow MLP leaves attention's gradients as the widest arrays. */
static void test_attention_scratch(void **state)
{
    (void)state;
    struct config config;
    struct graph_shape shape = {PRECISION_FP32, 2, 2048, 32};
    named(&config, "llama-8b");
    config.ffn = 1024;
    assert_int_equal(graph_scratch_bytes(&config, &shape),
                     4096ull * (4 * 4096 + 4 * 4096 + 4096 / 16 + 4 * 32 + 4 * (8192 + 2048)));
}

static void test_other_bytes(void **state)
{
    (void)state;
    for (size_t n = 0; n < ARRAY_COUNT(other_names); n++)
        for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
            struct config config;
            named(&config, other_names[n]);
            struct graph_shape shape = shapes[i];
            uint64_t inner = graph_inner_bytes(&config, &shape);
            assert_true(inner > 0 && inner % IO_ALIGN == 0);
            assert_int_equal(graph_scratch_bytes(&config, &shape) % IO_ALIGN, 0);
        }
}

/* The head's blocks of logits are as large in all kinds: 512 rows of a tile. */
static void test_head_scratch(void **state)
{
    (void)state;
    struct config config;
    struct graph_shape shape = {PRECISION_FP32, 1, 512, 1u << 17};
    named(&config, "qwen-32b");
    assert_int_equal(graph_scratch_bytes(&config, &shape), 512ull * 4 * (1u << 17));
    /* At once: those of all tiles, beside the gradient of one, and two sums of each group of
     * columns: 43 of 96 in a tile of 4,096, as rows of wte are 20 KiB. */
    shape.tile_rows_max = 4096;
    config.vocab = 1u << 17;
    assert_int_equal(graph_head_once_bytes(&config, &shape),
                     512ull * 4 * ((1u << 17) + 4096 + 2 * 32 * 43));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt2_flops),        cmocka_unit_test(test_products_are_the_matrices),
        cmocka_unit_test(test_attention_flops),   cmocka_unit_test(test_largest_stays_in_range),
        cmocka_unit_test(test_gpt2_bytes),        cmocka_unit_test(test_other_bytes_per_row),
        cmocka_unit_test(test_attention_scratch), cmocka_unit_test(test_other_bytes),
        cmocka_unit_test(test_head_scratch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
