#include "model/cuda/gpu_rates.h"

#include "core/base.h"
#include "core/clock.h"
#include "core/float.h"
#include "model/cuda/gpu_activation.h"
#include "model/cuda/gpu_attention.h"
#include "model/cuda/gpu_gradient.h"
#include "model/cuda/gpu_product.h"
#include "model/cuda/kernels_cuda.h"
#include "model/tensors.h"

#include <cuda_runtime_api.h>
#include <math.h>

#define PIECES_MAX    24u
#define PATTERN_BYTES (1 * MIB)
#define SMALL_BYTES   4096u
#define BYTES_MIN     (1 * MIB)
#define BYTES_MAX     (512 * MIB)
#define EDGE_MIN      128u
#define EDGE_MAX      8192u
#define QUEUE_MAX     (1u << 16)
/* What is left of a block without attention, at least: noise must not make it nothing. */
#define REST_LEAST  0.1
#define VOCAB_EXTRA 64u /* words beyond the tile that is measured */

/* ---- Memory of the card, and two streams ----------------------------------------------------- */

struct box {
    cudaStream_t stream, other;
    void *pattern; /* pinned, PATTERN_BYTES */
    void *pieces[PIECES_MAX], *pinned[2];
    uint32_t piece_count;
};

static int failed(cudaError_t error, const char *call, struct err *err)
{
    return err_set(err, ERR_SYSTEM, "measuring the card: %s failed: %s (%s)", call,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

static int box_open(struct box *box, struct err *err)
{
    *box = (struct box){0};
    cudaError_t error = cudaStreamCreateWithFlags(&box->stream, cudaStreamNonBlocking);
    if (!error)
        error = cudaStreamCreateWithFlags(&box->other, cudaStreamNonBlocking);
    if (!error)
        error = cudaMallocHost(&box->pattern, PATTERN_BYTES);
    return error ? failed(error, "opening streams", err) : 0;
}

static void box_close(struct box *box)
{
    for (uint32_t i = 0; i < box->piece_count; i++)
        cudaFree(box->pieces[i]);
    for (uint32_t i = 0; i < 2; i++)
        cudaFreeHost(box->pinned[i]);
    cudaFreeHost(box->pattern);
    if (box->stream)
        cudaStreamDestroy(box->stream);
    if (box->other)
        cudaStreamDestroy(box->other);
    *box = (struct box){0};
}

static void box_empty(struct box *box)
{
    for (uint32_t i = 0; i < box->piece_count; i++)
        cudaFree(box->pieces[i]);
    box->piece_count = 0;
    for (uint32_t i = 0; i < 2; i++) {
        cudaFreeHost(box->pinned[i]);
        box->pinned[i] = NULL;
    }
}

static int wait_box(void *waiting, struct err *err)
{
    struct box *box = waiting;
    cudaError_t error = cudaStreamSynchronize(box->stream);
    if (!error)
        error = cudaStreamSynchronize(box->other);
    return error ? failed(error, "cudaStreamSynchronize", err) : 0;
}

enum values { VALUES_NONE, VALUES_FLOAT, VALUES_BF16 };

/* Products of these neither vanish nor overflow, and they are not the same everywhere. */
static void draw_pattern(void *pattern, enum values values)
{
    uint32_t count = PATTERN_BYTES / (values == VALUES_BF16 ? 2 : 4);
    for (uint32_t i = 0; i < count; i++) {
        float value = ((float)(i * 2654435761u >> 20 & 255) - 127.5f) / 4096;
        if (values == VALUES_BF16)
            ((uint16_t *)pattern)[i] = float_to_bf16(value);
        else
            ((float *)pattern)[i] = value;
    }
}

static cudaError_t fill(struct box *box, void *to, uint64_t bytes, enum values values)
{
    cudaError_t error = cudaStreamSynchronize(box->stream);
    draw_pattern(box->pattern, values);
    for (uint64_t at = 0; at < bytes && !error; at += PATTERN_BYTES)
        error = cudaMemcpyAsync((char *)to + at, box->pattern, MIN(PATTERN_BYTES, bytes - at),
                                cudaMemcpyHostToDevice, box->stream);
    return error ? error : cudaStreamSynchronize(box->stream);
}

/* Memory of the card; VALUES_NONE: zeroed. NULL with err filled. */
static void *take(struct box *box, uint64_t bytes, enum values values, struct err *err)
{
    void *piece = NULL;
    ASSERT(box->piece_count < PIECES_MAX);
    cudaError_t error = cudaMalloc(&piece, bytes);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();
        err_set(err, ERR_INPUT, "the card has no %llu MiB free to measure with",
                (unsigned long long)(bytes / MIB));
        return NULL;
    }
    if (error) {
        failed(error, "cudaMalloc", err);
        return NULL;
    }
    box->pieces[box->piece_count++] = piece;
    error =
        values ? fill(box, piece, bytes, values) : cudaMemsetAsync(piece, 0, bytes, box->stream);
    if (error) {
        failed(error, "filling memory", err);
        return NULL;
    }
    return piece;
}

/* ---- Time ------------------------------------------------------------------------------------ */

static double seconds_since(uint64_t start_ns)
{
    return (double)(clock_ns() - start_ns) / 1e9;
}

static int time_queue(const struct gpu_rates_work *work, uint32_t calls, double *seconds,
                      struct err *err)
{
    uint64_t start_ns = clock_ns();
    int result = 0;
    for (uint32_t i = 0; i < calls && result == 0; i++)
        result = work->run(work->context, err);
    if (result == 0)
        result = work->wait(work->waiting, err);
    *seconds = seconds_since(start_ns);
    return result;
}

int gpu_rates_time(const struct gpu_rates_work *work, double *seconds, struct err *err)
{
    double span = 0;
    int result = time_queue(work, 1, &span, err);
    uint32_t calls = 1;
    if (result == 0)
        result = time_queue(work, calls, &span, err);
    while (result == 0 && span < GPU_RATES_SPAN_S && calls < QUEUE_MAX) {
        calls *= 2;
        result = time_queue(work, calls, &span, err);
    }
    double best = span;
    for (uint32_t i = 1; i < GPU_RATES_SAMPLES && result == 0; i++) {
        result = time_queue(work, calls, &span, err);
        best = fmin(best, span);
    }
    *seconds = best / calls;
    return result;
}

static struct gpu_rates_work work_of(struct box *box, int (*run)(void *, struct err *),
                                     void *context)
{
    return (struct gpu_rates_work){run, context, wait_box, box};
}

static int time_work(struct box *box, int (*run)(void *, struct err *), void *context,
                     double *seconds, struct err *err)
{
    const struct gpu_rates_work work = work_of(box, run, context);
    return gpu_rates_time(&work, seconds, err);
}

/* Takes twice as much memory for the work, and again, until it takes long enough. */
static int size_up(struct box *box, int (*take_all)(void *, uint64_t, struct err *),
                   const struct gpu_rates_work *work, struct err *err)
{
    int result = 0;
    for (uint64_t bytes = BYTES_MIN; result == 0; bytes *= 2) {
        double seconds = 0;
        box_empty(box);
        result = take_all(work->context, bytes, err);
        if (result == 0)
            result = time_queue(work, 1, &seconds, err);
        if (seconds >= GPU_RATES_CALL_S || bytes >= BYTES_MAX)
            break;
    }
    return result;
}

/* ---- The link -------------------------------------------------------------------------------- */

struct copies {
    struct box *box;
    uint64_t bytes;
    void *device[2];
    bool h2d, d2h;
};

static int run_copies(void *context, struct err *err)
{
    struct copies *c = context;
    cudaError_t error = cudaSuccess;
    if (c->h2d)
        error = cudaMemcpyAsync(c->device[0], c->box->pinned[0], c->bytes, cudaMemcpyHostToDevice,
                                c->box->stream);
    if (c->d2h && !error)
        error = cudaMemcpyAsync(c->box->pinned[1], c->device[1], c->bytes, cudaMemcpyDeviceToHost,
                                c->box->other);
    return error ? failed(error, "cudaMemcpyAsync", err) : 0;
}

/* One call and its end, as a small copy between two ops. */
static int run_one_copy(void *context, struct err *err)
{
    struct copies *c = context;
    int result = run_copies(c, err);
    return result ? result : wait_box(c->box, err);
}

static int take_copies(void *context, uint64_t bytes, struct err *err)
{
    struct copies *c = context;
    c->bytes = bytes;
    for (uint32_t i = 0; i < 2; i++) {
        c->device[i] = take(c->box, bytes, VALUES_FLOAT, err);
        if (!c->device[i])
            return err->code;
        cudaError_t error = cudaMallocHost(&c->box->pinned[i], bytes);
        if (error)
            return failed(error, "cudaMallocHost", err);
        draw_pattern(c->box->pattern, VALUES_FLOAT);
        for (uint64_t at = 0; at < bytes; at += PATTERN_BYTES)
            __builtin_memcpy((char *)c->box->pinned[i] + at, c->box->pattern,
                             MIN(PATTERN_BYTES, bytes - at));
    }
    return 0;
}

static int time_copies(struct copies *c, bool h2d, bool d2h, double *bytes_per_s, struct err *err)
{
    double seconds;
    c->h2d = h2d;
    c->d2h = d2h;
    int result = time_work(c->box, run_copies, c, &seconds, err);
    *bytes_per_s = (double)c->bytes / seconds;
    return result;
}

static int measure_link(struct gpu_rates_link *link, struct err *err)
{
    struct box box;
    struct copies copies = {.box = &box, .h2d = true};
    const struct gpu_rates_work up = work_of(&box, run_copies, &copies);
    int result = box_open(&box, err);
    *link = (struct gpu_rates_link){0};
    if (result == 0)
        result = size_up(&box, take_copies, &up, err);
    if (result == 0)
        result = time_copies(&copies, true, false, &link->h2d_bytes_per_s, err);
    if (result == 0)
        result = time_copies(&copies, false, true, &link->d2h_bytes_per_s, err);
    /* Both take as long as the slower of them, and have the same bytes. */
    if (result == 0)
        result = time_copies(&copies, true, true, &link->h2d_both_bytes_per_s, err);
    link->d2h_both_bytes_per_s = link->h2d_both_bytes_per_s;
    copies.bytes = SMALL_BYTES;
    copies.h2d = true;
    copies.d2h = false;
    if (result == 0)
        result = time_work(&box, run_one_copy, &copies, &link->latency_s, err);
    box_close(&box);
    return result;
}

/* ---- The card's memory ----------------------------------------------------------------------- */

struct stream {
    struct box *box;
    void *from, *to, *workspace;
    double *sums;
    uint64_t bytes;
};

static uint64_t square_count(const struct stream *s)
{
    return div_up(s->bytes / sizeof(float), GPU_GRADIENT_BLOCK);
}

static int run_inner_copy(void *context, struct err *err)
{
    struct stream *s = context;
    cudaError_t error =
        cudaMemcpyAsync(s->to, s->from, s->bytes, cudaMemcpyDeviceToDevice, s->box->stream);
    return error ? failed(error, "cudaMemcpyAsync", err) : 0;
}

static int run_store(void *context, struct err *err)
{
    struct stream *s = context;
    const struct gpu_gradient_store store = {.bf16 = true,
                                             .count = s->bytes / sizeof(float),
                                             .padded_count = s->bytes / sizeof(float),
                                             .gradient = s->from,
                                             .stored = s->to,
                                             .square_sums = s->sums,
                                             .square_count = square_count(s),
                                             .workspace = s->workspace};
    cudaError_t error = gpu_gradient_store(&store, 1, s->box->stream);
    return error ? failed(error, "gpu_gradient_store", err) : 0;
}

static int run_launch(void *context, struct err *err)
{
    struct stream *s = context;
    cudaError_t error = gpu_narrow(&(struct gpu_narrow){1, s->from, s->to}, s->box->stream);
    return error ? failed(error, "gpu_narrow", err) : 0;
}

static int take_stream(void *context, uint64_t bytes, struct err *err)
{
    struct stream *s = context;
    s->bytes = bytes;
    s->from = take(s->box, bytes, VALUES_FLOAT, err);
    s->to = s->from ? take(s->box, bytes, VALUES_NONE, err) : NULL;
    uint64_t workspace = gpu_gradient_workspace_bytes(bytes / sizeof(float));
    s->workspace = s->to ? take(s->box, workspace, VALUES_NONE, err) : NULL;
    s->sums =
        s->workspace ? take(s->box, square_count(s) * sizeof(double), VALUES_NONE, err) : NULL;
    return s->sums ? 0 : err->code;
}

static int measure_memory(struct gpu_rates_memory *memory, struct err *err)
{
    struct box box;
    struct stream stream = {.box = &box};
    const struct gpu_rates_work inner = work_of(&box, run_inner_copy, &stream);
    double copy_s = 1, store_s = 1;
    int result = box_open(&box, err);
    *memory = (struct gpu_rates_memory){0};
    if (result == 0)
        result = size_up(&box, take_stream, &inner, err);
    if (result == 0)
        result = gpu_rates_time(&inner, &copy_s, err);
    if (result == 0)
        result = time_work(&box, run_store, &stream, &store_s, err);
    if (result == 0)
        result = time_work(&box, run_launch, &stream, &memory->launch_s, err);
    memory->copy_bytes_per_s = 2 * (double)stream.bytes / copy_s;
    memory->stream_bytes_per_s = 1.5 * (double)stream.bytes / store_s;
    box_close(&box);
    return result;
}

/* ---- One large product ----------------------------------------------------------------------- */

struct square {
    struct box *box;
    struct gpu_products *products;
    struct gpu_product *product;
    void *a, *b, *c;
};

static int run_square(void *context, struct err *err)
{
    struct square *s = context;
    int status = gpu_product_run(
        s->products,
        &(struct gpu_product_run){.product = s->product, .a = s->a, .b = s->b, .c = s->c},
        s->box->stream);
    if (status)
        return err_set(err, ERR_SYSTEM, "measuring the card: a product failed: %s",
                       gpu_product_status_name(status));
    return 0;
}

static int take_square(struct square *s, uint32_t edge, bool bf16, struct err *err)
{
    uint64_t bytes = (uint64_t)edge * edge * (bf16 ? 2 : 4);
    enum values values = bf16 ? VALUES_BF16 : VALUES_FLOAT;
    const struct gpu_product_shape shape = {.m = edge,
                                            .n = edge,
                                            .k = edge,
                                            .a_stride = edge,
                                            .b_stride = edge,
                                            .c_stride = edge,
                                            .bf16 = bf16};
    void *workspace = take(s->box, GPU_PRODUCT_WORKSPACE, VALUES_NONE, err);
    s->a = workspace ? take(s->box, bytes, values, err) : NULL;
    s->b = s->a ? take(s->box, bytes, values, err) : NULL;
    s->c = s->b ? take(s->box, bytes, VALUES_NONE, err) : NULL;
    if (!s->c)
        return err->code;
    int result = gpu_products_open(&s->products, workspace, err);
    return result ? result : gpu_product_prepare(s->products, &s->product, &shape, err);
}

/* Of one size: its rate, and whether it takes long enough to be the last. */
static int time_square(uint32_t edge, bool bf16, double *flops_per_s, bool *last, struct err *err)
{
    struct box box;
    struct square square = {.box = &box};
    double once = 0, each = 1;
    const struct gpu_rates_work work = work_of(&box, run_square, &square);
    int result = box_open(&box, err);
    if (result == 0)
        result = take_square(&square, edge, bf16, err);
    if (result == 0)
        result = time_queue(&work, 1, &once, err);
    if (result == 0)
        result = time_queue(&work, 1, &once, err);
    *last = result || once >= GPU_RATES_CALL_S || edge >= EDGE_MAX;
    if (result == 0 && *last)
        result = gpu_rates_time(&work, &each, err);
    *flops_per_s = 2.0 * edge * edge * edge / each;
    gpu_products_close(square.products);
    box_close(&box);
    return result;
}

static int measure_product(bool bf16, double *flops_per_s, struct err *err)
{
    bool last = false;
    int result = 0;
    for (uint32_t edge = EDGE_MIN; !last; edge *= 2)
        result = time_square(edge, bf16, flops_per_s, &last, err);
    return result;
}

/* ---- The kernels of a step ------------------------------------------------------------------- */

struct rig {
    const struct gpu_rates_class *class;
    struct box *box;
    struct kernels_cuda *kernels;
    struct tensors tensors;
    struct kernels_shape shape;
    struct kernels_sizes sizes;
    uint32_t rows;
    void *weights, *tile, *inner, *scratch, *y, *qkv, *out, *dqkv, *workspace;
    float *x_in, *x_out, *dx, *dy, *gradient, *tile_gradient, *running, *log_sum, *delta;
    uint32_t *targets;
};

static int run_block_forward(void *context, struct err *err)
{
    struct rig *r = context;
    return kernels_cuda_block_forward(r->kernels,
                                      &(struct kernels_block_forward){.weights = r->weights,
                                                                      .x_in = r->x_in,
                                                                      .x_out = r->x_out,
                                                                      .inner = r->inner,
                                                                      .scratch = r->scratch},
                                      err);
}

static int run_block_backward(void *context, struct err *err)
{
    struct rig *r = context;
    return kernels_cuda_block_backward(r->kernels,
                                       &(struct kernels_block_backward){.weights = r->weights,
                                                                        .x_in = r->x_in,
                                                                        .inner = r->inner,
                                                                        .dx = r->dx,
                                                                        .gradient = r->gradient,
                                                                        .scratch = r->scratch},
                                       err);
}

static struct gpu_attention_shape attention_shape(const struct gpu_rates_class *class)
{
    return (struct gpu_attention_shape){class->bf16,  class->batch, class->seq,
                                        class->heads, class->heads, class->channels / class->heads};
}

/* q, k or v of an array of all three. */
static struct gpu_attention_array third(const struct rig *r, void *all, uint32_t which)
{
    uint32_t each = r->class->bf16 ? 2 : 4, channels = r->class->channels;
    return (struct gpu_attention_array){(char *)all + (uint64_t)which * channels * each,
                                        3 * channels};
}

static int run_attention_forward(void *context, struct err *err)
{
    struct rig *r = context;
    cudaError_t error =
        gpu_attention_forward(&(struct gpu_attention_forward){.shape = attention_shape(r->class),
                                                              .q = third(r, r->qkv, 0),
                                                              .k = third(r, r->qkv, 1),
                                                              .v = third(r, r->qkv, 2),
                                                              .out = {r->out, r->class->channels},
                                                              .log_sum = r->log_sum},
                              r->box->stream);
    return error ? failed(error, "gpu_attention_forward", err) : 0;
}

static int run_attention_backward(void *context, struct err *err)
{
    struct rig *r = context;
    cudaError_t error =
        gpu_attention_backward(&(struct gpu_attention_backward){.shape = attention_shape(r->class),
                                                                .q = third(r, r->qkv, 0),
                                                                .k = third(r, r->qkv, 1),
                                                                .v = third(r, r->qkv, 2),
                                                                .out = {r->out, r->class->channels},
                                                                .dout = {r->y, r->class->channels},
                                                                .log_sum = r->log_sum,
                                                                .delta = r->delta,
                                                                .dq = third(r, r->dqkv, 0),
                                                                .dk = third(r, r->dqkv, 1),
                                                                .dv = third(r, r->dqkv, 2)},
                               r->box->stream);
    return error ? failed(error, "gpu_attention_backward", err) : 0;
}

static int run_head_forward(void *context, struct err *err)
{
    struct rig *r = context;
    return kernels_cuda_head_forward(
        r->kernels,
        &(struct kernels_head_forward){.tile = r->tile,
                                       .row_count = r->class->tile_rows,
                                       .y = r->y,
                                       .targets = r->targets,
                                       .running = r->running,
                                       .first = true,
                                       .scratch = r->scratch},
        err);
}

static int run_head_backward(void *context, struct err *err)
{
    struct rig *r = context;
    return kernels_cuda_head_backward(
        r->kernels,
        &(struct kernels_head_backward){.tile = r->tile,
                                        .row_count = r->class->tile_rows,
                                        .y = r->y,
                                        .targets = r->targets,
                                        .running = r->running,
                                        .loss_scale = 1.0f / (float)r->rows,
                                        .dy = r->dy,
                                        .first = true,
                                        .gradient = r->tile_gradient,
                                        .scratch = r->scratch},
        err);
}

static void describe_rig(struct rig *r)
{
    const struct gpu_rates_class *c = r->class;
    struct config config = {.name = "rates",
                            .layers = 1,
                            .channels = c->channels,
                            .heads = c->heads,
                            .positions = c->seq,
                            .vocab = c->tile_rows + VOCAB_EXTRA,
                            .norm_epsilon = 1e-5f};
    config_derive(&config);
    tensors_init(&r->tensors, &config);
    r->rows = c->batch * c->seq;
    r->shape = (struct kernels_shape){.precision = c->bf16 ? PRECISION_BF16 : PRECISION_FP32,
                                      .batch = c->batch,
                                      .seq = c->seq,
                                      .channels = c->channels,
                                      .heads = c->heads,
                                      .vocab = config.vocab,
                                      .tile_rows_max = c->tile_rows,
                                      .norm_epsilon = config.norm_epsilon};
    kernels_cuda_sizes(&r->shape, &r->sizes);
}

static int take_rig(struct rig *r, struct err *err)
{
    enum values e = r->class->bf16 ? VALUES_BF16 : VALUES_FLOAT;
    uint64_t each = r->class->bf16 ? 2 : 4, rows = r->rows, flow = rows * r->class->channels;
    uint64_t block = r->tensors.groups[1].parameter_count;
    uint64_t tile = (uint64_t)r->class->tile_rows * r->class->channels;
    const struct {
        void *to; /* a pointer to a pointer */
        uint64_t bytes;
        enum values values;
    } pieces[] = {
        {&r->weights, block * each, e},
        {&r->tile, tile * each, e},
        {&r->y, flow * each, e},
        {&r->qkv, 3 * flow * each, e},
        {&r->out, flow * each, e},
        {&r->dqkv, 3 * flow * each, VALUES_NONE},
        {&r->inner, r->sizes.inner_bytes, VALUES_NONE},
        {&r->scratch, r->sizes.scratch_bytes, VALUES_NONE},
        {&r->workspace, kernels_cuda_workspace_bytes(), VALUES_NONE},
        {&r->x_in, flow * 4, VALUES_FLOAT},
        {&r->x_out, flow * 4, VALUES_NONE},
        {&r->dx, flow * 4, VALUES_FLOAT},
        {&r->dy, flow * 4, VALUES_NONE},
        {&r->gradient, block * 4, VALUES_NONE},
        {&r->tile_gradient, tile * 4, VALUES_NONE},
        {&r->running, 3 * rows * 4, VALUES_FLOAT},
        {&r->log_sum, rows * r->class->heads * 4, VALUES_NONE},
        {&r->delta, rows * r->class->heads * 4, VALUES_NONE},
        {&r->targets, rows * 4, VALUES_NONE},
    };
    _Static_assert(ARRAY_COUNT(pieces) <= PIECES_MAX, "the box has room");
    for (size_t i = 0; i < ARRAY_COUNT(pieces); i++) {
        void *piece = take(r->box, pieces[i].bytes, pieces[i].values, err);
        if (!piece)
            return err->code;
        *(void **)pieces[i].to = piece;
    }
    return kernels_cuda_open(&r->kernels,
                             &(struct kernels_cuda_open){.shape = r->shape,
                                                         .tensors = &r->tensors,
                                                         .stream = r->box->stream,
                                                         .workspace = r->workspace},
                             err);
}

static int time_rig(struct rig *r, struct gpu_rates_kernels *kernels, struct err *err)
{
    static int (*const runs[])(void *, struct err *) = {
        run_block_forward,      run_block_backward, run_attention_forward,
        run_attention_backward, run_head_forward,   run_head_backward};
    double seconds[ARRAY_COUNT(runs)];
    double rows = r->rows, width = r->class->channels;
    for (size_t i = 0; i < ARRAY_COUNT(runs); i++) {
        int result = time_work(r->box, runs[i], r, &seconds[i], err);
        if (result)
            return result;
    }
    double forward_s = fmax(seconds[0] - seconds[2], REST_LEAST * seconds[0]);
    double backward_s = fmax(seconds[1] - seconds[3], REST_LEAST * seconds[1]);
    *kernels = (struct gpu_rates_kernels){
        .block_forward = 24 * width * width * rows / forward_s,
        .block_backward = 48 * width * width * rows / backward_s,
        .attention_forward = 2 * width * r->class->seq * rows / seconds[2],
        .attention_backward = 4 * width * r->class->seq * rows / seconds[3],
        .head_forward = 2 * width * r->class->tile_rows * rows / seconds[4],
        .head_backward = 6 * width * r->class->tile_rows * rows / seconds[5],
    };
    return 0;
}

static int measure_kernels(const struct gpu_rates_class *class, struct gpu_rates_kernels *kernels,
                           struct err *err)
{
    struct box box;
    struct rig rig = {.class = class, .box = &box};
    ASSERT(class->batch && class->seq && class->heads && class->channels % class->heads == 0);
    describe_rig(&rig);
    int result = box_open(&box, err);
    if (result == 0)
        result = take_rig(&rig, err);
    if (result == 0)
        result = time_rig(&rig, kernels, err);
    kernels_cuda_close(rig.kernels);
    tensors_deinit(&rig.tensors);
    box_close(&box);
    return result;
}

static int use(uint32_t number, struct err *err)
{
    cudaError_t error = cudaSetDevice((int)number);
    return error ? failed(error, "cudaSetDevice", err) : 0;
}

const struct gpu_rates_table gpu_rates_table = {
    .use = use,
    .link = measure_link,
    .memory = measure_memory,
    .product = measure_product,
    .kernels = measure_kernels,
};
