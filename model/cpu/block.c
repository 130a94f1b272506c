/*
 * One transformer block, forward and backward.
 *
 * What forward keeps for backward (inner), per row: qkv, the attention's output and fc before gelu
 * (E, 3C + C + 4C), the residual stream between attention and MLP (float, C), each head's log-sum-
 * exp, and the two LayerNorms' statistics: 20C + 4H + 16 bytes in bf16, 36C + 4H + 16 in fp32.
 * The outputs of the LayerNorms and of gelu are computed again in backward: one pass each over data
 * that backward reads anyway, against 6C elements per row kept.
 */
#include "model/cpu/device.h"

/* -- Layouts -- */

struct inner {
    void *qkv;         /* E [R, 3C] */
    void *attended;    /* E [R, C] */
    void *pre;         /* E [R, 4C]: fc before gelu */
    float *middle;     /* [R, C] */
    float *log_sum;    /* [B, H, T] */
    float *statistics; /* [2, 2, R]: of ln_1, of ln_2 */
};

static uint64_t inner_lay_out(const struct kernels_shape *shape, void *base, struct inner *inner)
{
    uint64_t rows = shape_row_count(shape), channels = shape->channels;
    uint64_t element = mul_checked(rows, channels) * precision_bytes(shape->precision);
    uint64_t used = 0;
    uint64_t qkv = layout_take(&used, 3 * element);
    uint64_t attended = layout_take(&used, element);
    uint64_t pre = layout_take(&used, 4 * element);
    uint64_t middle = layout_take(&used, rows * channels * sizeof(float));
    uint64_t log_sum = layout_take(&used, rows * shape->heads * sizeof(float));
    uint64_t statistics = layout_take(&used, 4 * rows * sizeof(float));
    if (inner) {
        char *at = base;
        *inner = (struct inner){
            .qkv = at + qkv,
            .attended = at + attended,
            .pre = at + pre,
            .middle = (float *)(at + middle),
            .log_sum = (float *)(at + log_sum),
            .statistics = (float *)(at + statistics),
        };
    }
    return round_up(used, IO_ALIGN);
}

/* Scratch. What the MLP and what the attention want are never alive together. The gradient of pre
 * takes pre's place in inner. */
struct scratch {
    void *normal;    /* E [R, C]: a LayerNorm's output */
    void *narrow;    /* E [R, C]: dx as a factor; dx itself in fp32 */
    float *flow;     /* [R, C]: the gradient of a LayerNorm's output; dq */
    float *partial;  /* device_norm_partial_bytes */
    float *delta;    /* [B, H, T] */
    void *act;       /* E [R, 4C]: gelu's output */
    void *dattended; /* E [R, C], where act is, */
    void *dqkv;      /* E [R, 3C], and behind it */
};

static uint64_t scratch_lay_out(const struct kernels_shape *shape, void *base,
                                struct scratch *scratch)
{
    uint64_t rows = shape_row_count(shape), channels = shape->channels;
    uint64_t element = mul_checked(rows, channels) * precision_bytes(shape->precision);
    uint64_t used = 0;
    uint64_t normal = layout_take(&used, element);
    uint64_t narrow = layout_take(&used, shape->precision == PRECISION_BF16 ? element : 0);
    uint64_t flow = layout_take(&used, rows * channels * sizeof(float));
    uint64_t partial = layout_take(&used, device_norm_partial_bytes(shape));
    uint64_t delta = layout_take(&used, rows * shape->heads * sizeof(float));
    uint64_t act = layout_take(&used, 4 * element);
    if (scratch) {
        char *at = base;
        *scratch = (struct scratch){
            .normal = at + normal,
            .narrow = at + narrow,
            .flow = (float *)(at + flow),
            .partial = (float *)(at + partial),
            .delta = (float *)(at + delta),
            .act = at + act,
            .dattended = at + act,
            .dqkv = at + act + element,
        };
    }
    return round_up(used, IO_ALIGN);
}

void block_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes)
{
    sizes->inner_bytes = inner_lay_out(shape, NULL, NULL);
    sizes->scratch_bytes = scratch_lay_out(shape, NULL, NULL);
}

/* -- Products -- */

/* The three products of y = x W with W [in, out]: forward, the input's gradient dx = dy W^T, and
 * the weight's dW = x^T dy. backward_ended: whether an ending follows dx's tiles. */
static void init_linear(struct kernels *k, enum block_product forward, uint32_t in, uint32_t out,
                        bool backward_ended)
{
    enum precision precision = k->shape.precision;
    struct matmul_product y = {.m = k->row_count,
                               .n = out,
                               .k = in,
                               .a_stride = in,
                               .b_stride = out,
                               .c_stride = out,
                               .precision = precision};
    struct matmul_product dx = {.m = k->row_count,
                                .n = in,
                                .k = out,
                                .a_stride = out,
                                .b_stride = out,
                                .c_stride = in,
                                .b_transposed = true,
                                .precision = precision};
    struct matmul_product gradient = {.m = in,
                                      .n = out,
                                      .k = k->row_count,
                                      .a_stride = in,
                                      .b_stride = out,
                                      .c_stride = out,
                                      .a_transposed = true,
                                      .precision = precision};
    enum block_product backward = forward - PRODUCT_QKV + PRODUCT_DQKV;
    enum block_product weight = forward - PRODUCT_QKV + PRODUCT_QKV_GRADIENT;
    product_init(&k->products[forward], k, &y, true);
    product_init(&k->products[backward], k, &dx, backward_ended);
    product_init(&k->products[weight], k, &gradient, false);
}

void block_init(struct kernels *k)
{
    uint32_t channels = k->shape.channels;
    init_linear(k, PRODUCT_QKV, channels, 3 * channels, false);
    init_linear(k, PRODUCT_PROJ, channels, channels, true);
    init_linear(k, PRODUCT_FC, channels, 4 * channels, false);
    init_linear(k, PRODUCT_OUT, 4 * channels, channels, true);
}

static const void *weight_of(const struct kernels *k, const void *weights, enum block_tensor tensor)
{
    return element_at(weights, k->block[tensor].offset, k->shape.precision);
}

/* -- Forward -- */

static void forward_attention(struct kernels *k, const struct kernels_block_forward *args,
                              const struct inner *inner, const struct scratch *scratch)
{
    const void *w = args->weights;
    device_norm(k, &(struct device_norm){.x = args->x_in,
                                         .weight = weight_of(k, w, BLOCK_LN1_WEIGHT),
                                         .bias = weight_of(k, w, BLOCK_LN1_BIAS),
                                         .statistics = inner->statistics,
                                         .y = scratch->normal});
    product_run(k,
                &(struct product_job){.product = &k->products[PRODUCT_QKV],
                                      .a = scratch->normal,
                                      .b = weight_of(k, w, BLOCK_QKV_WEIGHT),
                                      .ending = ENDING_BIAS_STORE,
                                      .bias = weight_of(k, w, BLOCK_QKV_BIAS),
                                      .out = inner->qkv},
                1);
    attention_forward(k, &(struct attention_forward){
                             .qkv = inner->qkv, .out = inner->attended, .log_sum = inner->log_sum});
    product_run(k,
                &(struct product_job){.product = &k->products[PRODUCT_PROJ],
                                      .a = inner->attended,
                                      .b = weight_of(k, w, BLOCK_PROJ_WEIGHT),
                                      .ending = ENDING_BIAS_RESIDUAL,
                                      .bias = weight_of(k, w, BLOCK_PROJ_BIAS),
                                      .residual = args->x_in,
                                      .out = inner->middle},
                1);
}

static void forward_mlp(struct kernels *k, const struct kernels_block_forward *args,
                        const struct inner *inner, const struct scratch *scratch)
{
    const void *w = args->weights;
    device_norm(k, &(struct device_norm){.x = inner->middle,
                                         .weight = weight_of(k, w, BLOCK_LN2_WEIGHT),
                                         .bias = weight_of(k, w, BLOCK_LN2_BIAS),
                                         .statistics = inner->statistics + 2 * k->row_count,
                                         .y = scratch->normal});
    product_run(k,
                &(struct product_job){.product = &k->products[PRODUCT_FC],
                                      .a = scratch->normal,
                                      .b = weight_of(k, w, BLOCK_FC_WEIGHT),
                                      .ending = ENDING_BIAS_GELU,
                                      .bias = weight_of(k, w, BLOCK_FC_BIAS),
                                      .out = inner->pre,
                                      .act = scratch->act},
                1);
    if (!args->x_out)
        return;
    product_run(k,
                &(struct product_job){.product = &k->products[PRODUCT_OUT],
                                      .a = scratch->act,
                                      .b = weight_of(k, w, BLOCK_OUT_WEIGHT),
                                      .ending = ENDING_BIAS_RESIDUAL,
                                      .bias = weight_of(k, w, BLOCK_OUT_BIAS),
                                      .residual = inner->middle,
                                      .out = args->x_out},
                1);
}

void kernels_block_forward(struct kernels *k, const struct kernels_block_forward *args)
{
    ASSERT(args->x_in != args->x_out);
    struct inner inner;
    struct scratch scratch;
    inner_lay_out(&k->shape, args->inner, &inner);
    scratch_lay_out(&k->shape, args->scratch, &scratch);
    forward_attention(k, args, &inner, &scratch);
    forward_mlp(k, args, &inner, &scratch);
}

/* -- Backward -- */

struct backward {
    const struct kernels_block_backward *args;
    struct inner inner;
    struct scratch scratch;
};

static float *gradient_of(const struct kernels *k, const struct backward *b,
                          enum block_tensor tensor)
{
    return b->args->gradient + k->block[tensor].offset;
}

/* dx as a factor of products: a bf16 copy, or itself. */
static const void *dx_factor(struct kernels *k, const struct backward *b)
{
    if (!k->bf16)
        return b->args->dx;
    device_narrow(k, b->args->dx, b->scratch.narrow, (uint64_t)k->row_count * k->shape.channels);
    return b->scratch.narrow;
}

static void bias_gradient(struct kernels *k, const struct backward *b, const void *x, bool bf16,
                          enum block_tensor tensor)
{
    device_column_sums(k, &(struct device_sums){.x = x,
                                                .bf16 = bf16,
                                                .rows = k->row_count,
                                                .columns = (uint32_t)k->block[tensor].count,
                                                .sums = gradient_of(k, b, tensor),
                                                .accumulate = b->args->accumulate});
}

/* dW = x^T dy of one product, as a job. */
static struct product_job weight_gradient(const struct kernels *k, const struct backward *b,
                                          enum block_product product, const void *x, const void *dy,
                                          enum block_tensor tensor)
{
    return (struct product_job){.product = &k->products[product],
                                .a = x,
                                .b = dy,
                                .c = gradient_of(k, b, tensor),
                                .accumulate = b->args->accumulate};
}

static void norm_again(struct kernels *k, const struct backward *b, const float *x,
                       enum block_tensor weight, float *statistics)
{
    const void *w = b->args->weights;
    device_norm(k, &(struct device_norm){.x = x,
                                         .weight = weight_of(k, w, weight),
                                         .bias = weight_of(k, w, weight + 1),
                                         .statistics = statistics,
                                         .y = b->scratch.normal,
                                         .again = true});
}

/* dx += LayerNorm's backward of flow. */
static void norm_backward(struct kernels *k, const struct backward *b, const float *x,
                          enum block_tensor weight, const float *statistics)
{
    device_norm_backward(
        k, &(struct device_norm_backward){.x = x,
                                          .dy = b->scratch.flow,
                                          .weight = weight_of(k, b->args->weights, weight),
                                          .statistics = statistics,
                                          .dx = b->args->dx,
                                          .accumulate_dx = true,
                                          .dweight = gradient_of(k, b, weight),
                                          .dbias = gradient_of(k, b, weight + 1),
                                          .accumulate_gradient = b->args->accumulate,
                                          .partial = b->scratch.partial});
}

/* A product's dx into flow beside its weight's gradient: they share dy and need nothing of each
 * other. */
static void backward_pair(struct kernels *k, const struct backward *b, enum block_product forward,
                          const void *x, const void *dy, enum block_tensor weight)
{
    struct product_job jobs[] = {
        {.product = &k->products[forward - PRODUCT_QKV + PRODUCT_DQKV],
         .a = dy,
         .b = weight_of(k, b->args->weights, weight),
         .c = b->scratch.flow},
        weight_gradient(k, b, forward - PRODUCT_QKV + PRODUCT_QKV_GRADIENT, x, dy, weight),
    };
    product_run(k, jobs, ARRAY_COUNT(jobs));
}

static void backward_mlp(struct kernels *k, const struct backward *b)
{
    const struct scratch *scratch = &b->scratch;
    float *statistics = b->inner.statistics + 2 * k->row_count;
    const void *dx = dx_factor(k, b);
    bias_gradient(k, b, b->args->dx, false, BLOCK_OUT_BIAS);
    product_run(k,
                &(struct product_job){.product = &k->products[PRODUCT_DOUT],
                                      .a = dx,
                                      .b = weight_of(k, b->args->weights, BLOCK_OUT_WEIGHT),
                                      .ending = ENDING_GELU_BACKWARD,
                                      .pre = b->inner.pre,
                                      .out = b->inner.pre,
                                      .act = scratch->act},
                1);
    struct product_job out =
        weight_gradient(k, b, PRODUCT_OUT_GRADIENT, scratch->act, dx, BLOCK_OUT_WEIGHT);
    product_run(k, &out, 1);
    norm_again(k, b, b->inner.middle, BLOCK_LN2_WEIGHT, statistics);
    bias_gradient(k, b, b->inner.pre, k->bf16, BLOCK_FC_BIAS);
    backward_pair(k, b, PRODUCT_FC, scratch->normal, b->inner.pre, BLOCK_FC_WEIGHT);
    norm_backward(k, b, b->inner.middle, BLOCK_LN2_WEIGHT, statistics);
}

static void backward_attention(struct kernels *k, const struct backward *b)
{
    const struct scratch *scratch = &b->scratch;
    const void *dx = dx_factor(k, b);
    bias_gradient(k, b, b->args->dx, false, BLOCK_PROJ_BIAS);
    struct product_job jobs[] = {
        {.product = &k->products[PRODUCT_DPROJ],
         .a = dx,
         .b = weight_of(k, b->args->weights, BLOCK_PROJ_WEIGHT),
         .ending = ENDING_STORE,
         .out = scratch->dattended},
        weight_gradient(k, b, PRODUCT_PROJ_GRADIENT, b->inner.attended, dx, BLOCK_PROJ_WEIGHT),
    };
    product_run(k, jobs, ARRAY_COUNT(jobs));
    attention_backward(k, &(struct attention_backward){.qkv = b->inner.qkv,
                                                       .out = b->inner.attended,
                                                       .dout = scratch->dattended,
                                                       .log_sum = b->inner.log_sum,
                                                       .delta = scratch->delta,
                                                       .dq = scratch->flow,
                                                       .dqkv = scratch->dqkv});
    norm_again(k, b, b->args->x_in, BLOCK_LN1_WEIGHT, b->inner.statistics);
    bias_gradient(k, b, scratch->dqkv, k->bf16, BLOCK_QKV_BIAS);
    backward_pair(k, b, PRODUCT_QKV, scratch->normal, scratch->dqkv, BLOCK_QKV_WEIGHT);
    norm_backward(k, b, b->args->x_in, BLOCK_LN1_WEIGHT, b->inner.statistics);
}

void kernels_block_backward(struct kernels *k, const struct kernels_block_backward *args)
{
    struct backward b = {.args = args};
    inner_lay_out(&k->shape, args->inner, &b.inner);
    scratch_lay_out(&k->shape, args->scratch, &b.scratch);
    if (!args->accumulate)
        device_zero_gaps(args->gradient, k->block, BLOCK_TENSOR_COUNT, k->block_count);
    backward_mlp(k, &b);
    backward_attention(k, &b);
}
