#include "model/graph.h"
#include "core/base.h"
#include "model/kernels.h"

#define ARRAY_ALIGN 64 /* of every array in inner and scratch, as kernels.h asks */
#define SUM_ROWS    64 /* rows whose sums for a norm's gradient are taken together */

/* -- FLOPs -- */

static void check(const struct config *config, uint64_t rows)
{
    ASSERT(config->ffn > 0 && config->kv_heads > 0 && config->head_dim > 0);
    ASSERT(rows <= KERNELS_ROWS_MAX);
}

uint64_t graph_block_flops(const struct config *config, uint64_t rows)
{
    check(config, rows);
    return mul_checked(2 * rows, config_block_matrix_count(config));
}

uint64_t graph_attention_flops(const struct config *config, uint64_t rows, uint32_t seq)
{
    check(config, rows);
    return mul_checked(mul_checked(2 * rows, config_query_width(config)), seq);
}

uint64_t graph_last_product_flops(const struct config *config, uint64_t rows)
{
    check(config, rows);
    return mul_checked(2 * rows, (uint64_t)config->ffn * config->channels);
}

uint64_t graph_head_flops(const struct config *config, uint64_t rows, uint32_t vocab_rows)
{
    check(config, rows);
    return mul_checked(2 * rows, (uint64_t)config->channels * vocab_rows);
}

/* -- Bytes -- */

static uint64_t shape_rows(const struct graph_shape *shape)
{
    return (uint64_t)shape->batch * shape->seq;
}

/* kernels_sizes of GPT-2 of this width. */
static struct kernels_sizes gpt2_sizes(const struct config *config, const struct graph_shape *shape)
{
    struct kernels_shape kernels = {
        .precision = shape->precision,
        .batch = shape->batch,
        .seq = shape->seq,
        .channels = config->channels,
        .heads = config->heads,
        .vocab = config->vocab,
        .tile_rows_max = shape->tile_rows_max,
        .norm_epsilon = config->norm_epsilon,
    };
    struct kernels_sizes sizes;
    kernels_sizes(&kernels, &sizes);
    return sizes;
}

/* [R, width] elements of that many bytes. */
static uint64_t array_bytes(uint64_t rows, uint64_t width, uint64_t element)
{
    return round_up(mul_checked(rows, width * element), ARRAY_ALIGN);
}

static uint64_t rotary_inner_bytes(const struct config *config, const struct graph_shape *shape)
{
    uint64_t rows = shape_rows(shape), element = precision_bytes(shape->precision);
    uint64_t q = config_query_width(config), k = config_key_width(config);
    uint64_t bytes = array_bytes(rows, q, element) + 2 * array_bytes(rows, k, element);
    bytes += array_bytes(rows, q, element);
    bytes += 2 * array_bytes(rows, config->ffn, element);
    bytes += array_bytes(rows, config->channels, sizeof(float));
    bytes += array_bytes(rows, config->heads, sizeof(float));
    bytes += 2 * array_bytes(rows, 1, sizeof(float));
    if (config_has_qk_norm(config))
        bytes += array_bytes(rows, config->heads, sizeof(float)) +
                 array_bytes(rows, config->kv_heads, sizeof(float));
    return round_up(bytes, IO_ALIGN);
}

uint64_t graph_inner_bytes(const struct config *config, const struct graph_shape *shape)
{
    check(config, shape_rows(shape));
    if (config->kind == CONFIG_GPT2)
        return gpt2_sizes(config, shape).inner_bytes;
    return rotary_inner_bytes(config, shape);
}

static uint64_t rotary_block_scratch_bytes(const struct config *config,
                                           const struct graph_shape *shape)
{
    uint64_t rows = shape_rows(shape), element = precision_bytes(shape->precision);
    uint64_t c = config->channels;
    uint64_t attention = 2 * (uint64_t)config_query_width(config) + 2 * config_key_width(config);
    uint64_t wide = MAX(3 * (uint64_t)config->ffn, attention);
    uint64_t bytes = array_bytes(rows, c, element);
    if (shape->precision == PRECISION_BF16)
        bytes += array_bytes(rows, c, element);
    bytes += array_bytes(rows, c, sizeof(float));
    bytes += array_bytes(div_up(rows, SUM_ROWS), c, sizeof(float));
    bytes += array_bytes(rows, config->heads, sizeof(float));
    bytes += array_bytes(rows, wide, element);
    return round_up(bytes, IO_ALIGN);
}

uint64_t graph_scratch_bytes(const struct config *config, const struct graph_shape *shape)
{
    check(config, shape_rows(shape));
    if (config->kind == CONFIG_GPT2)
        return gpt2_sizes(config, shape).scratch_bytes;
    uint64_t head = gpt2_sizes(config, shape).head_bytes;
    return MAX(head, rotary_block_scratch_bytes(config, shape));
}

uint64_t graph_head_once_bytes(const struct config *config, const struct graph_shape *shape)
{
    check(config, shape_rows(shape));
    return gpt2_sizes(config, shape).head_once_bytes;
}
