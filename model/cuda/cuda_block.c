/*
 * One transformer block, forward and backward: the order of kernels. What forward keeps (inner) has
 * the arrays of model/cpu/block.c.
 */
#include "model/cuda/cuda_device.h"
#include "model/cuda/gpu_activation.h"
#include "model/cuda/gpu_attention.h"
#include "model/cuda/gpu_norm.h"
#include "model/cuda/gpu_sums.h"

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
    uint64_t rows = cuda_shape_rows(shape), channels = shape->channels, used = 0;
    uint64_t element = mul_checked(rows, channels) * precision_bytes(shape->precision);
    uint64_t qkv = cuda_layout_take(&used, 3 * element);
    uint64_t attended = cuda_layout_take(&used, element);
    uint64_t pre = cuda_layout_take(&used, 4 * element);
    uint64_t middle = cuda_layout_take(&used, rows * channels * sizeof(float));
    uint64_t log_sum = cuda_layout_take(&used, rows * shape->heads * sizeof(float));
    uint64_t statistics = cuda_layout_take(&used, 4 * rows * sizeof(float));
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

/* The MLP's wide arrays and the attention's are never alive together. */
struct scratch {
    void *normal;    /* E [R, C]: a LayerNorm's output */
    void *narrow;    /* E [R, C]: dx as a factor; not there in fp32 */
    float *flow;     /* [R, C]: the gradient of a LayerNorm's output */
    float *partial;  /* of sums over rows */
    float *delta;    /* [B, H, T] */
    void *act;       /* E [R, 4C]: gelu's output */
    void *dpre;      /* E [R, 4C]: the gradient of act, then of pre */
    void *dattended; /* E [R, C], where act is */
    void *dqkv;      /* E [R, 3C], where dpre is */
};

static uint64_t partial_bytes(const struct kernels_shape *shape)
{
    uint32_t rows = cuda_shape_rows(shape);
    return MAX(gpu_norm_partial_bytes(rows, shape->channels),
               gpu_sums_partial_bytes(rows, 4 * shape->channels));
}

static uint64_t scratch_lay_out(const struct kernels_shape *shape, void *base,
                                struct scratch *scratch)
{
    uint64_t rows = cuda_shape_rows(shape), channels = shape->channels, used = 0;
    uint64_t element = mul_checked(rows, channels) * precision_bytes(shape->precision);
    uint64_t normal = cuda_layout_take(&used, element);
    uint64_t narrow = cuda_layout_take(&used, shape->precision == PRECISION_BF16 ? element : 0);
    uint64_t flow = cuda_layout_take(&used, rows * channels * sizeof(float));
    uint64_t partial = cuda_layout_take(&used, partial_bytes(shape));
    uint64_t delta = cuda_layout_take(&used, rows * shape->heads * sizeof(float));
    uint64_t act = cuda_layout_take(&used, 4 * element);
    uint64_t dpre = cuda_layout_take(&used, 4 * element);
    if (scratch) {
        char *at = base;
        *scratch = (struct scratch){
            .normal = at + normal,
            .narrow = at + narrow,
            .flow = (float *)(at + flow),
            .partial = (float *)(at + partial),
            .delta = (float *)(at + delta),
            .act = at + act,
            .dpre = at + dpre,
            .dattended = at + act,
            .dqkv = at + dpre,
        };
    }
    return round_up(used, IO_ALIGN);
}

void cuda_block_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes)
{
    sizes->inner_bytes = inner_lay_out(shape, NULL, NULL);
    sizes->scratch_bytes = scratch_lay_out(shape, NULL, NULL);
}

/* -- Products -- */

/* widens: y is float, for the residual sum. wide_input: dx is E, for gelu's backward. */
struct linear_kind {
    uint32_t in, out;
    bool widens, narrow_input;
};

static int open_linear(struct kernels_cuda *k, struct linear *linear,
                       const struct linear_kind *kind, struct err *err)
{
    uint32_t rows = k->row_count, in = kind->in, out = kind->out;
    struct gpu_product_shape forward = {.m = rows,
                                        .n = out,
                                        .k = in,
                                        .a_stride = in,
                                        .b_stride = out,
                                        .c_stride = out,
                                        .bf16 = k->bf16,
                                        .widens = kind->widens,
                                        .biased = !kind->widens};
    struct gpu_product_shape input = {.m = rows,
                                      .n = in,
                                      .k = out,
                                      .a_stride = out,
                                      .b_stride = out,
                                      .c_stride = in,
                                      .b_transposed = true,
                                      .bf16 = k->bf16,
                                      .widens = !kind->narrow_input};
    struct gpu_product_shape weight = {.m = in,
                                       .n = out,
                                       .k = rows,
                                       .a_stride = in,
                                       .b_stride = out,
                                       .c_stride = out,
                                       .a_transposed = true,
                                       .bf16 = k->bf16,
                                       .widens = true};
    int rc = gpu_product_prepare(k->products, &linear->forward, &forward, err);
    if (!rc)
        rc = gpu_product_prepare(k->products, &linear->input, &input, err);
    if (!rc)
        rc = gpu_product_prepare(k->products, &linear->weight, &weight, err);
    return rc;
}

int cuda_block_open(struct kernels_cuda *k, struct err *err)
{
    uint32_t c = k->shape.channels;
    const struct linear_kind kinds[LINEAR_COUNT] = {
        [LINEAR_QKV] = {c, 3 * c, false, false},
        [LINEAR_PROJ] = {c, c, true, true},
        [LINEAR_FC] = {c, 4 * c, false, false},
        [LINEAR_OUT] = {4 * c, c, true, true},
    };
    int rc = 0;
    for (unsigned i = 0; i < LINEAR_COUNT && !rc; i++)
        rc = open_linear(k, &k->linears[i], &kinds[i], err);
    return rc;
}

static const void *weight_of(const struct kernels_cuda *k, const void *weights,
                             enum block_tensor tensor)
{
    return element_at(k, weights, k->block[tensor].offset);
}

/* The tensors of a linear: its weight, and after that its bias. */
static enum block_tensor tensor_of(enum block_linear linear)
{
    static const enum block_tensor weight[LINEAR_COUNT] = {BLOCK_QKV_WEIGHT, BLOCK_PROJ_WEIGHT,
                                                           BLOCK_FC_WEIGHT, BLOCK_OUT_WEIGHT};
    return weight[linear];
}

/* -- Forward -- */

struct forward {
    const struct kernels_block_forward *args;
    struct inner inner;
    struct scratch scratch;
};

static void run_forward(struct kernels_cuda *k, const struct forward *f, enum block_linear linear,
                        const void *x, void *y)
{
    enum block_tensor weight = tensor_of(linear);
    bool biased = linear == LINEAR_QKV || linear == LINEAR_FC;
    cuda_device_product(k,
                        &(struct gpu_product_run){
                            .product = k->linears[linear].forward,
                            .a = x,
                            .b = weight_of(k, f->args->weights, weight),
                            .bias = biased ? weight_of(k, f->args->weights, weight + 1) : NULL,
                            .c = y},
                        "a block's product");
}

static struct gpu_attention_array part_of(const struct kernels_cuda *k, const void *qkv,
                                          unsigned part)
{
    uint32_t channels = k->shape.channels;
    return (struct gpu_attention_array){.at = (void *)element_at(k, qkv, (uint64_t)part * channels),
                                        .stride = 3 * channels};
}

static struct gpu_attention_shape attention_shape(const struct kernels_cuda *k)
{
    return (struct gpu_attention_shape){.bf16 = k->bf16,
                                        .batch = k->shape.batch,
                                        .seq = k->shape.seq,
                                        .heads = k->shape.heads,
                                        .kv_heads = k->shape.heads,
                                        .depth = k->shape.channels / k->shape.heads};
}

static void forward_attention(struct kernels_cuda *k, const struct forward *f)
{
    const struct inner *inner = &f->inner;
    const void *w = f->args->weights;
    uint32_t c = k->shape.channels;
    CUDA_DEVICE_RUN(k, gpu_norm_forward,
                    {.bf16 = k->bf16,
                     .rows = k->row_count,
                     .columns = c,
                     .epsilon = k->shape.norm_epsilon,
                     .x = f->args->x_in,
                     .weight = weight_of(k, w, BLOCK_LN1_WEIGHT),
                     .bias = weight_of(k, w, BLOCK_LN1_BIAS),
                     .mean = inner->statistics,
                     .deviation = inner->statistics + k->row_count,
                     .y = f->scratch.normal});
    run_forward(k, f, LINEAR_QKV, f->scratch.normal, inner->qkv);
    CUDA_DEVICE_RUN(k, gpu_attention_forward,
                    {.shape = attention_shape(k),
                     .q = part_of(k, inner->qkv, 0),
                     .k = part_of(k, inner->qkv, 1),
                     .v = part_of(k, inner->qkv, 2),
                     .out = {inner->attended, c},
                     .log_sum = inner->log_sum});
    run_forward(k, f, LINEAR_PROJ, inner->attended, inner->middle);
}

static void forward_mlp(struct kernels_cuda *k, const struct forward *f)
{
    const struct inner *inner = &f->inner;
    const void *w = f->args->weights;
    uint32_t c = k->shape.channels;
    uint64_t wide = (uint64_t)k->row_count * 4 * c;
    float *statistics = inner->statistics + 2 * (uint64_t)k->row_count;
    CUDA_DEVICE_RUN(k, gpu_norm_forward,
                    {.bf16 = k->bf16,
                     .rows = k->row_count,
                     .columns = c,
                     .epsilon = k->shape.norm_epsilon,
                     .x = f->args->x_in,
                     .add = inner->middle,
                     .add_bias = weight_of(k, w, BLOCK_PROJ_BIAS),
                     .sum = inner->middle,
                     .weight = weight_of(k, w, BLOCK_LN2_WEIGHT),
                     .bias = weight_of(k, w, BLOCK_LN2_BIAS),
                     .mean = statistics,
                     .deviation = statistics + k->row_count,
                     .y = f->scratch.normal});
    run_forward(k, f, LINEAR_FC, f->scratch.normal, inner->pre);
    if (!f->args->x_out)
        return;
    CUDA_DEVICE_RUN(k, gpu_gelu_forward,
                    {.bf16 = k->bf16, .count = wide, .pre = inner->pre, .act = f->scratch.act});
    run_forward(k, f, LINEAR_OUT, f->scratch.act, f->args->x_out);
    CUDA_DEVICE_RUN(k, gpu_add,
                    {.bf16 = k->bf16,
                     .count = (uint64_t)k->row_count * c,
                     .columns = c,
                     .x = f->args->x_out,
                     .residual = inner->middle,
                     .bias = weight_of(k, w, BLOCK_OUT_BIAS)});
}

int kernels_cuda_block_forward(struct kernels_cuda *k, const struct kernels_block_forward *args,
                               struct err *err)
{
    ASSERT(args->x_in != args->x_out);
    struct forward f = {.args = args};
    inner_lay_out(&k->shape, args->inner, &f.inner);
    scratch_lay_out(&k->shape, args->scratch, &f.scratch);
    forward_attention(k, &f);
    forward_mlp(k, &f);
    return cuda_device_end(k, err);
}

/* -- Backward -- */

struct backward {
    const struct kernels_block_backward *args;
    struct inner inner;
    struct scratch scratch;
};

static float *gradient_of(const struct kernels_cuda *k, const struct backward *b,
                          enum block_tensor tensor)
{
    return b->args->gradient + k->block[tensor].offset;
}

/* dx as a factor of products: a bf16 copy, or itself. */
static const void *dx_factor(struct kernels_cuda *k, const struct backward *b)
{
    if (!k->bf16)
        return b->args->dx;
    CUDA_DEVICE_RUN(k, gpu_narrow,
                    {.count = (uint64_t)k->row_count * k->shape.channels,
                     .from = b->args->dx,
                     .to = b->scratch.narrow});
    return b->scratch.narrow;
}

static void bias_gradient(struct kernels_cuda *k, const struct backward *b, const void *dy,
                          bool bf16, enum block_tensor tensor)
{
    CUDA_DEVICE_RUN(k, gpu_sums,
                    {.bf16 = bf16,
                     .x = dy,
                     .rows = k->row_count,
                     .columns = (uint32_t)k->block[tensor].count,
                     .sums = gradient_of(k, b, tensor),
                     .accumulate = b->args->accumulate,
                     .partial = b->scratch.partial});
}

static void input_gradient(struct kernels_cuda *k, const struct backward *b,
                           enum block_linear linear, const void *dy, void *dx)
{
    cuda_device_product(
        k,
        &(struct gpu_product_run){.product = k->linears[linear].input,
                                  .a = dy,
                                  .b = weight_of(k, b->args->weights, tensor_of(linear)),
                                  .c = dx},
        "the gradient of a product's input");
}

static void weight_gradient(struct kernels_cuda *k, const struct backward *b,
                            enum block_linear linear, const void *x, const void *dy)
{
    cuda_device_product(k,
                        &(struct gpu_product_run){.product = k->linears[linear].weight,
                                                  .a = x,
                                                  .b = dy,
                                                  .c = gradient_of(k, b, tensor_of(linear)),
                                                  .accumulate = b->args->accumulate},
                        "the gradient of a weight");
}

/* A LayerNorm that is computed again, or whose backward is. */
struct norm_place {
    const float *x;
    float *statistics;
    enum block_tensor weight;
};

static void norm_again(struct kernels_cuda *k, const struct backward *b,
                       const struct norm_place *norm)
{
    const void *w = b->args->weights;
    CUDA_DEVICE_RUN(k, gpu_norm_forward,
                    {.bf16 = k->bf16,
                     .rows = k->row_count,
                     .columns = k->shape.channels,
                     .epsilon = k->shape.norm_epsilon,
                     .x = norm->x,
                     .weight = weight_of(k, w, norm->weight),
                     .bias = weight_of(k, w, norm->weight + 1),
                     .mean = norm->statistics,
                     .deviation = norm->statistics + k->row_count,
                     .again = true,
                     .y = b->scratch.normal});
}

/* dx += LayerNorm's backward of flow. */
static void norm_backward(struct kernels_cuda *k, const struct backward *b,
                          const struct norm_place *norm)
{
    CUDA_DEVICE_RUN(k, gpu_norm_backward,
                    {.bf16 = k->bf16,
                     .rows = k->row_count,
                     .columns = k->shape.channels,
                     .x = norm->x,
                     .dy = b->scratch.flow,
                     .weight = weight_of(k, b->args->weights, norm->weight),
                     .mean = norm->statistics,
                     .deviation = norm->statistics + k->row_count,
                     .dx = b->args->dx,
                     .accumulate_dx = true,
                     .dweight = gradient_of(k, b, norm->weight),
                     .dbias = gradient_of(k, b, norm->weight + 1),
                     .accumulate = b->args->accumulate,
                     .partial = b->scratch.partial});
}

/* From the gradient of a linear that a LayerNorm feeds, through both. */
static void norm_and_linear(struct kernels_cuda *k, const struct backward *b,
                            enum block_linear linear, const void *dy, const struct norm_place *norm)
{
    norm_again(k, b, norm);
    bias_gradient(k, b, dy, k->bf16, tensor_of(linear) + 1);
    input_gradient(k, b, linear, dy, b->scratch.flow);
    weight_gradient(k, b, linear, b->scratch.normal, dy);
    norm_backward(k, b, norm);
}

static void backward_mlp(struct kernels_cuda *k, const struct backward *b)
{
    const struct scratch *scratch = &b->scratch;
    const void *dx = dx_factor(k, b);
    struct norm_place norm = {b->inner.middle, b->inner.statistics + 2 * (uint64_t)k->row_count,
                              BLOCK_LN2_WEIGHT};
    bias_gradient(k, b, b->args->dx, false, BLOCK_OUT_BIAS);
    input_gradient(k, b, LINEAR_OUT, dx, scratch->dpre);
    CUDA_DEVICE_RUN(k, gpu_gelu_backward,
                    {.bf16 = k->bf16,
                     .count = (uint64_t)k->row_count * 4 * k->shape.channels,
                     .pre = b->inner.pre,
                     .dact = scratch->dpre,
                     .dpre = scratch->dpre,
                     .act = scratch->act});
    weight_gradient(k, b, LINEAR_OUT, scratch->act, dx);
    norm_and_linear(k, b, LINEAR_FC, scratch->dpre, &norm);
}

static void backward_attention(struct kernels_cuda *k, const struct backward *b)
{
    const struct scratch *scratch = &b->scratch;
    const void *dx = dx_factor(k, b), *qkv = b->inner.qkv;
    uint32_t c = k->shape.channels;
    struct norm_place norm = {b->args->x_in, b->inner.statistics, BLOCK_LN1_WEIGHT};
    bias_gradient(k, b, b->args->dx, false, BLOCK_PROJ_BIAS);
    input_gradient(k, b, LINEAR_PROJ, dx, scratch->dattended);
    weight_gradient(k, b, LINEAR_PROJ, b->inner.attended, dx);
    CUDA_DEVICE_RUN(k, gpu_attention_backward,
                    {.shape = attention_shape(k),
                     .q = part_of(k, qkv, 0),
                     .k = part_of(k, qkv, 1),
                     .v = part_of(k, qkv, 2),
                     .out = {b->inner.attended, c},
                     .dout = {scratch->dattended, c},
                     .log_sum = b->inner.log_sum,
                     .delta = scratch->delta,
                     .dq = part_of(k, scratch->dqkv, 0),
                     .dk = part_of(k, scratch->dqkv, 1),
                     .dv = part_of(k, scratch->dqkv, 2)});
    norm_and_linear(k, b, LINEAR_QKV, scratch->dqkv, &norm);
}

int kernels_cuda_block_backward(struct kernels_cuda *k, const struct kernels_block_backward *args,
                                struct err *err)
{
    struct backward b = {.args = args};
    inner_lay_out(&k->shape, (void *)args->inner, &b.inner);
    scratch_lay_out(&k->shape, args->scratch, &b.scratch);
    if (!args->accumulate)
        cuda_device_zero_gaps(k, args->gradient, k->block, BLOCK_TENSOR_COUNT, k->block_count);
    backward_mlp(k, &b);
    backward_attention(k, &b);
    return cuda_device_end(k, err);
}
