/*
 * Kernels of a training step on a card, each beside the limit that binds it, measured in the same
 * run: a large matrix product for what multiplies, a copy within the card's memory for what passes
 * over it (bytes read and written added up; each array counts once).
 *
 * Usage: bench_gpu [1558m | 124m | tiny]   the shape; tiny is for the emulation, where time means
 * nothing. One line a figure, parted by tabs: name, value, unit, limit, what the limit is; "-"
 * where there is no limit. A limit is printed before what stands beside it.
 */
#include "core/base.h"
#include "core/err.h"
#include "model/cuda/gpu_activation.h"
#include "model/cuda/gpu_adamw.h"
#include "model/cuda/gpu_embed.h"
#include "model/cuda/gpu_gradient.h"
#include "model/cuda/gpu_head.h"
#include "model/cuda/gpu_norm.h"
#include "model/cuda/gpu_rates.h"
#include <cuda_runtime_api.h>
#include <stdio.h>
#include <string.h>

#define PIECES_MAX 32u
#define VOCAB      50257u

static const struct shape {
    const char *name;
    uint32_t batch, seq, channels, heads, tile_rows, head_rows;
    uint64_t parameters; /* of AdamW's run and a gradient's store */
} shapes[] = {
    {"1558m", 8, 1024, 1600, 25, 8192, 4096, 32 << 20},
    {"124m", 16, 1024, 768, 12, 8192, 4096, 32 << 20},
    {"tiny", 1, 16, 32, 2, 40, 8, 2048},
};

static const struct shape *shape;
static double memory_limit, product_limit[2]; /* by bf16 */
static cudaStream_t stream;
static void *pieces[PIECES_MAX];
static uint32_t piece_count;

/* ---- Telling --------------------------------------------------------------------------------- */

static void must(cudaError_t error, const char *call)
{
    if (error)
        fatal("%s failed: %s (%s)", call, cudaGetErrorString(error), cudaGetErrorName(error));
}

static void must_do(int result, const struct err *err)
{
    if (result)
        fatal("%s", err->message);
}

static const char *precision(bool bf16)
{
    return bf16 ? "bf16" : "fp32";
}

static void tell(const char *name, const char *kind, double value, const char *unit, double limit,
                 const char *of)
{
    double scale = strcmp(unit, "TFLOP/s") == 0 ? 1e12 : strcmp(unit, "us") == 0 ? 1e-6 : 1e9;
    printf("%s%s%s\t%.4g\t%s\t", name, *kind ? ", " : "", kind, value / scale, unit);
    if (limit > 0)
        printf("%.4g\t%s\n", limit / scale, of);
    else
        printf("-\t-\n");
    fflush(stdout);
}

/* ---- Passes over memory ---------------------------------------------------------------------- */

/* Zeroed memory of the card. */
static void *take(uint64_t bytes)
{
    ASSERT(piece_count < PIECES_MAX);
    must(cudaMalloc(&pieces[piece_count], bytes), "cudaMalloc");
    must(cudaMemsetAsync(pieces[piece_count], 0, bytes, stream), "cudaMemsetAsync");
    return pieces[piece_count++];
}

static void give_back(void)
{
    must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    while (piece_count > 0)
        cudaFree(pieces[--piece_count]);
}

static int wait_stream(void *waiting, struct err *err)
{
    (void)waiting;
    (void)err;
    must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    return 0;
}

/* A kernel with its arguments, and the bytes that it has to move. */
static void time_pass(const char *name, bool bf16, int (*run)(void *, struct err *), void *args,
                      double bytes)
{
    struct err err;
    double seconds;
    must_do(gpu_rates_time(&(struct gpu_rates_work){run, args, wait_stream, NULL}, &seconds, &err),
            &err);
    tell(name, precision(bf16), bytes / seconds, "GB/s", memory_limit, "a copy within the card");
    give_back();
}

#define RUN(function)                                                                              \
    static int run_##function(void *args, struct err *err)                                         \
    {                                                                                              \
        (void)err;                                                                                 \
        must(function((const struct function *)args, stream), #function);                          \
        return 0;                                                                                  \
    }
RUN(gpu_norm_forward)
RUN(gpu_norm_backward)
RUN(gpu_gelu_forward)
RUN(gpu_gelu_backward)
RUN(gpu_embed_forward)
RUN(gpu_head_forward)
RUN(gpu_head_backward)
RUN(gpu_adamw)

static int run_gpu_gradient_store(void *args, struct err *err)
{
    (void)err;
    must(gpu_gradient_store(args, 1, stream), "gpu_gradient_store");
    return 0;
}

static void time_norms(bool bf16)
{
    uint32_t rows = shape->batch * shape->seq, columns = shape->channels, each = bf16 ? 2 : 4;
    uint64_t count = (uint64_t)rows * columns;
    struct gpu_norm_forward forward = {.bf16 = bf16,
                                       .rows = rows,
                                       .columns = columns,
                                       .epsilon = 1e-5f,
                                       .x = take(count * 4),
                                       .add = take(count * 4),
                                       .add_bias = take(columns * each),
                                       .sum = take(count * 4),
                                       .weight = take(columns * each),
                                       .bias = take(columns * each),
                                       .mean = take(rows * 4),
                                       .deviation = take(rows * 4),
                                       .y = take(count * each)};
    time_pass("LayerNorm with residual, forward", bf16, run_gpu_norm_forward, &forward,
              (double)count * (12 + each));
    struct gpu_norm_backward backward = {.bf16 = bf16,
                                         .rows = rows,
                                         .columns = columns,
                                         .x = take(count * 4),
                                         .dy = take(count * 4),
                                         .weight = take(columns * each),
                                         .mean = take(rows * 4),
                                         .deviation = take(rows * 4),
                                         .dx = take(count * 4),
                                         .dweight = take(columns * 4),
                                         .dbias = take(columns * 4),
                                         .partial = take(gpu_norm_partial_bytes(rows, columns))};
    time_pass("LayerNorm, backward", bf16, run_gpu_norm_backward, &backward, (double)count * 12);
}

static void time_gelu(bool bf16)
{
    uint32_t each = bf16 ? 2 : 4;
    uint64_t count = (uint64_t)shape->batch * shape->seq * shape->channels * 4;
    struct gpu_gelu_forward forward = {
        .bf16 = bf16, .count = count, .pre = take(count * each), .act = take(count * each)};
    time_pass("GELU, forward", bf16, run_gpu_gelu_forward, &forward, 2.0 * (double)count * each);
    struct gpu_gelu_backward backward = {.bf16 = bf16,
                                         .count = count,
                                         .pre = take(count * each),
                                         .dact = take(count * each),
                                         .dpre = take(count * each),
                                         .act = take(count * each)};
    time_pass("GELU, backward", bf16, run_gpu_gelu_backward, &backward, 4.0 * (double)count * each);
}

static void time_embedding(bool bf16)
{
    uint32_t rows = shape->batch * shape->seq, each = bf16 ? 2 : 4;
    uint64_t count = (uint64_t)rows * shape->channels;
    struct gpu_embed_forward forward = {
        .bf16 = bf16,
        .rows = rows,
        .channels = shape->channels,
        .row_count = shape->tile_rows,
        .tile = take((uint64_t)shape->tile_rows * shape->channels * each),
        .tokens = take(rows * 4),
        .x = take(count * 4)};
    /* All tokens are the same, so what is read stays in the caches. */
    time_pass("embedding, forward", bf16, run_gpu_embed_forward, &forward, (double)count * 4);
}

/* What follows and precedes the head's products: one pass over the logits each. */
static void time_cross_entropy(bool bf16)
{
    uint32_t rows = shape->head_rows, columns = shape->tile_rows, each = bf16 ? 2 : 4;
    uint64_t count = (uint64_t)rows * columns;
    struct gpu_head_logits logits = {.logits = take(count * 4),
                                     .rows = rows,
                                     .columns = columns,
                                     .stride = columns,
                                     .targets = take(rows * 4)};
    struct gpu_head_forward forward = {.logits = logits,
                                       .maximum = take(rows * 4),
                                       .sum = take(rows * 4),
                                       .target = take(rows * 4),
                                       .first = true};
    time_pass("cross-entropy, forward", bf16, run_gpu_head_forward, &forward, 4.0 * (double)count);
    logits.logits = take(count * 4);
    logits.targets = take(rows * 4);
    struct gpu_head_backward backward = {.logits = logits,
                                         .log_sum = take(rows * 4),
                                         .loss_scale = 1e-3f,
                                         .bf16 = bf16,
                                         .dlogits = take(count * each)};
    time_pass("cross-entropy, backward", bf16, run_gpu_head_backward, &backward,
              (double)count * (4 + each));
}

static void time_updates(bool bf16)
{
    uint32_t each = bf16 ? 2 : 4;
    uint64_t count = shape->parameters;
    struct gpu_gradient_store store = {.bf16 = bf16,
                                       .count = count,
                                       .padded_count = count,
                                       .gradient = take(count * 4),
                                       .stored = take(count * each),
                                       .square_count = div_up(count, GPU_GRADIENT_BLOCK),
                                       .workspace = take(gpu_gradient_workspace_bytes(count))};
    store.square_sums = take(store.square_count * 8);
    time_pass("gradient's store with its norm", bf16, run_gpu_gradient_store, &store,
              (double)count * (4 + each));
    struct gpu_adamw adamw = {.moments = GPU_ADAMW_FP32,
                              .bf16 = bf16,
                              .step = {.lr = 1e-4f,
                                       .beta1 = 0.9f,
                                       .beta2 = 0.95f,
                                       .eps = 1e-8f,
                                       .weight_decay = 0.1f,
                                       .clip_factor = 1,
                                       .correction1 = 1,
                                       .correction2 = 1},
                              .run_count = 1,
                              .segment_count = 1,
                              .segments = {{0, (uint32_t)count, 1}}};
    adamw.runs[0] = (struct gpu_adamw_run){.count = (uint32_t)count,
                                           .segment_count = 1,
                                           .hi = take(count * 2),
                                           .lo = take(count * 2),
                                           .m = take(count * 4),
                                           .v = take(count * 4),
                                           .gradient = take(count * each),
                                           .broken = take(4)};
    time_pass("AdamW, moments in fp32", bf16, run_gpu_adamw, &adamw, (double)count * (24 + each));
}

/* ---- What multiplies ------------------------------------------------------------------------- */

static void time_kernels(bool bf16)
{
    struct err err;
    struct gpu_rates_kernels k;
    const struct gpu_rates_class class = {
        bf16, shape->batch, shape->seq, shape->channels, shape->heads, shape->tile_rows};
    must_do(gpu_rates_table.kernels(&class, &k, &err), &err);
    const struct {
        const char *name;
        double flops_per_s;
    } rows[] = {
        {"attention, forward", k.attention_forward},
        {"attention, backward", k.attention_backward},
        {"block without attention, forward", k.block_forward},
        {"block without attention, backward", k.block_backward},
        {"head, forward", k.head_forward},
        {"head, backward", k.head_backward},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++)
        tell(rows[i].name, precision(bf16), rows[i].flops_per_s, "TFLOP/s", product_limit[bf16],
             "a large product");
}

/* ---- The whole ------------------------------------------------------------------------------- */

static void time_limits(void)
{
    struct err err;
    struct gpu_rates_link link;
    struct gpu_rates_memory memory;
    must_do(gpu_rates_table.memory(&memory, &err), &err);
    memory_limit = memory.copy_bytes_per_s;
    tell("copy within the card", "", memory_limit, "GB/s", 0, NULL);
    tell("a launch", "", memory.launch_s, "us", 0, NULL);
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        must_do(gpu_rates_table.product(bf16, &product_limit[bf16], &err), &err);
        tell("large product", precision(bf16), product_limit[bf16], "TFLOP/s", 0, NULL);
    }
    must_do(gpu_rates_table.link(&link, &err), &err);
    tell("PCIe, RAM to card", "", link.h2d_bytes_per_s, "GB/s", 0, NULL);
    tell("PCIe, card to RAM", "", link.d2h_bytes_per_s, "GB/s", 0, NULL);
    tell("PCIe, RAM to card, both busy", "", link.h2d_both_bytes_per_s, "GB/s",
         link.h2d_bytes_per_s, "alone");
    tell("PCIe, card to RAM, both busy", "", link.d2h_both_bytes_per_s, "GB/s",
         link.d2h_bytes_per_s, "alone");
    tell("PCIe, a small copy", "", link.latency_s, "us", 0, NULL);
}

int main(int argc, char **argv)
{
    struct err err;
    const char *name = argc > 1 ? argv[1] : shapes[0].name;
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++)
        if (strcmp(shapes[i].name, name) == 0)
            shape = &shapes[i];
    int cards = 0;
    if (!shape)
        fatal("usage: bench_gpu [1558m | 124m | tiny]");
    cudaError_t error = cudaGetDeviceCount(&cards);
    if (error || !cards)
        fatal("there is no CUDA device here: %s", cudaGetErrorString(error));
    must_do(gpu_rates_table.use(0, &err), &err);
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    time_limits();
    for (unsigned bf16 = 2; bf16-- > 0;) {
        time_kernels(bf16);
        time_norms(bf16);
        time_gelu(bf16);
        time_embedding(bf16);
        time_cross_entropy(bf16);
        time_updates(bf16);
    }
    cudaStreamDestroy(stream);
    return 0;
}
