/*
 * bench compute: the CPU device's kernels, whole and as the trainer calls them, at classes of width
 * and rows, in both precisions where the processor has bf16 instructions.
 *
 * A class is measured on a model of some layers, forward upwards and backward downwards, the head's
 * tiles down and up: as many as it takes for each to find its weights, gradients and activations as
 * cold as in training (invariant: what lies between two uses of a byte is COLD_FACTOR times the
 * third-level caches, or one whole layer where that is more).
 *
 * The products of a block and its attention are told apart by two lengths of sequences with the
 * same rows: the products take the same time in both. Where attention is too small a part of a
 * block to be told from noise, its rate is that of the next narrower class: heads are alike at
 * every width, there are only more of them.
 *
 * FLOPs are counted as offload/cost.c and plan_build.c do: block forward 24 C C a row and attention
 * 2 C T, backward twice that; head forward 2 C a row and word, backward 6.
 */
#include "tools/bench.h"

#include "core/float.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "model/cpu/trial.h"
#include "model/kernels.h"
#include "offload/cores.h"
#include "offload/layout.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLD_FACTOR   3
#define HEAD_CHANNELS 64 /* of an attention head, in every GPT-2 */
#define POSITIONS     1024
#define VOCAB         50257
#define LAYERS_MAX    256
/* A tile's weights serve all rows for 1,000 words: how cold they are matters little. */
#define TILES_MAX   8u
#define ROUNDS_MAX  9u
#define CLASS_COUNT 12
/* Between the lengths, attention has to make this much of a block's time to be measured by it. Its
 * FLOPs are taken to be as slow against products' as they usually are. */
#define APART_MIN      0.12
#define ATTENTION_SLOW 2.5
/* No attention is faster than products, and none was seen that is slower than this share. */
#define ATTENTION_LEAST 0.05
/* What the time to win is told of. */
#define GAIN_CHANNELS  768u
#define GAIN_LAYERS    12
#define GAIN_SEQ       256u
#define LIMIT_ROWS     1536u
#define LIMIT_DEPTH    2048u
#define LIMIT_RUNS     9
#define LIMIT_BYTES    (64 * MIB) /* its factors and their product, and some */
#define PATTERN        65536u
#define STREAM_SAMPLES 101u
/* Of the part's seconds. */
#define SHARE_CLASSES 0.9
#define SHARE_LIMIT   0.02 /* of each precision */

enum op { OP_FORWARD, OP_BACKWARD, OP_HEAD_FORWARD, OP_HEAD_BACKWARD, OP_COUNT };

struct class
{
    enum precision precision;
    uint32_t channels, rows;
    uint32_t seq[2]; /* the second 0: attention is another class's */
    uint32_t layers, tiles;
    uint64_t bytes;                            /* of memory */
    double flops;                              /* of one pass */
    double visit_s;                            /* that the last visit took; 0: there was none */
    struct bench_samples seconds[2][OP_COUNT]; /* by length; the head's in the first */
};

struct compute {
    struct bench *bench;
    struct pool *pool;
    struct mem_arena arena;
    struct class classes[2 * CLASS_COUNT];
    uint32_t class_count;
    double limit[2]; /* by precision */
    double rate;     /* FLOPs per second, of the last class of both precisions */
    void *pattern[2];
};

/* ---- A class's model and memory -------------------------------------------------------------- */

struct model {
    const struct class *class;
    struct tensors tensors;
    struct layout layout;
    struct kernels_sizes sizes;
    uint64_t block_count, tile_count; /* parameters */
    uint32_t tile_rows;
    /* In the arena. */
    uint8_t *weights, *tile_weights, *inner, *scratch, *y;
    float *gradient, *tile_gradient, *x, *dx, *dy, *running, *losses;
    uint32_t *targets;
};

static struct kernels_shape shape_of(const struct model *model, uint32_t seq)
{
    return (struct kernels_shape){
        .precision = model->class->precision,
        .batch = model->class->rows / seq,
        .seq = seq,
        .channels = model->class->channels,
        .heads = model->class->channels / HEAD_CHANNELS,
        .vocab = VOCAB,
        .tile_rows_max = model->layout.tile_rows_max,
        .norm_epsilon = 1e-5f,
    };
}

static void model_init(struct model *model, const struct class *class)
{
    struct config config = {
        .name = "bench",
        .layers = 1,
        .channels = class->channels,
        .heads = class->channels / HEAD_CHANNELS,
        .positions = POSITIONS,
        .vocab = VOCAB,
        .norm_epsilon = 1e-5f,
    };
    *model = (struct model){.class = class};
    tensors_init(&model->tensors, &config);
    layout_init(&model->layout, &model->tensors, MOMENTS_FP32);
    struct kernels_shape shape = shape_of(model, class->seq[0]);
    kernels_sizes(&shape, &model->sizes);
    model->block_count = model->layout.block_count;
    model->tile_count = model->layout.tiles[0].count;
    model->tile_rows = model->layout.tiles[0].row_count;
}

static void model_deinit(struct model *model)
{
    layout_deinit(&model->layout);
    tensors_deinit(&model->tensors);
}

/* The next bytes of the arena, from base; NULL when only counted. */
static void *take(uint8_t *base, uint64_t *used, uint64_t bytes)
{
    uint64_t at = *used;
    *used += round_up(bytes, IO_ALIGN);
    return base ? base + at : NULL;
}

/* Returns the bytes that it takes. */
static uint64_t lay_out(struct model *m, uint8_t *base)
{
    const struct class *class = m->class;
    uint64_t each = precision_bytes(class->precision), used = 0;
    uint64_t flow = (uint64_t) class->rows * class->channels;
    m->weights = take(base, &used, class->layers * m->block_count * each);
    m->tile_weights = take(base, &used, class->tiles * m->tile_count * each);
    m->y = take(base, &used, flow * each);
    m->x = take(base, &used, (class->layers + 1) * flow * sizeof(float));
    m->gradient = take(base, &used, class->layers * m->block_count * sizeof(float));
    m->tile_gradient = take(base, &used, class->tiles * m->tile_count * sizeof(float));
    m->inner = take(base, &used, class->layers * m->sizes.inner_bytes);
    m->scratch = take(base, &used, m->sizes.scratch_bytes);
    m->dx = take(base, &used, flow * sizeof(float));
    m->dy = take(base, &used, flow * sizeof(float));
    m->running = take(base, &used, 3ull * class->rows * sizeof(float));
    m->losses = take(base, &used, class->rows * sizeof(float));
    m->targets = take(base, &used, class->rows * sizeof(uint32_t));
    return used;
}

static uint32_t count_for(uint64_t bytes_each)
{
    uint64_t count = div_up(COLD_FACTOR * topo_l3_bytes(), bytes_each);
    return (uint32_t)MIN(MAX(count, 1), LAYERS_MAX);
}

/* How many layers and tiles it takes, and what a pass over them costs. */
static void size_class(struct class *class)
{
    struct model model;
    model_init(&model, class);
    uint64_t each = precision_bytes(class->precision) + sizeof(float);
    double width = class->channels, rows = class->rows;
    class->layers = count_for(model.block_count * each + model.sizes.inner_bytes);
    class->tiles =
        MIN(count_for(model.tile_count * each), MIN(model.layout.tile_count - 1, TILES_MAX));
    class->bytes = lay_out(&model, NULL);
    double tile_words = (double)model.tile_rows * class->tiles;
    class->flops = class->layers * 3 * rows * (24 * width * width + 2 * width * class->seq[0]);
    class->flops *= class->seq[1] ? 2 : 1;
    class->flops += 8 * rows * width * tile_words;
    model_deinit(&model);
}

/* Values whose products neither vanish nor overflow, and are not the same everywhere. */
static void *make_pattern(enum precision precision)
{
    uint8_t *pattern = mem_alloc(PATTERN, precision_bytes(precision));
    for (uint32_t i = 0; i < PATTERN; i++) {
        float value = ((float)(i * 2654435761u >> 20 & 255) - 127.5f) / 4096;
        if (precision == PRECISION_BF16)
            ((uint16_t *)pattern)[i] = float_to_bf16(value);
        else
            ((float *)pattern)[i] = value;
    }
    return pattern;
}

static void fill(const struct compute *compute, void *to, uint64_t count, enum precision precision)
{
    uint64_t each = precision_bytes(precision);
    for (uint64_t i = 0; i < count; i += PATTERN)
        memcpy((uint8_t *)to + i * each, compute->pattern[precision],
               MIN(PATTERN, count - i) * each);
}

static void fill_model(const struct compute *compute, struct model *m)
{
    const struct class *class = m->class;
    uint64_t flow = (uint64_t) class->rows * class->channels;
    fill(compute, m->weights, class->layers * m->block_count, class->precision);
    fill(compute, m->tile_weights, class->tiles * m->tile_count, class->precision);
    fill(compute, m->y, flow, class->precision);
    fill(compute, m->x, flow, PRECISION_FP32);
    for (uint32_t r = 0; r < class->rows; r++)
        m->targets[r] = r * 7919u % VOCAB;
}

/* ---- Passes ---------------------------------------------------------------------------------- */

static void run_block(struct model *m, struct kernels *k, uint32_t layer, bool backward)
{
    uint64_t flow = (uint64_t)m->class->rows * m->class->channels;
    uint64_t each = precision_bytes(m->class->precision);
    const void *weights = m->weights + layer * m->block_count * each;
    void *inner = m->inner + layer * m->sizes.inner_bytes;
    if (backward)
        kernels_block_backward(
            k, &(struct kernels_block_backward){.weights = weights,
                                                .x_in = m->x + layer * flow,
                                                .inner = inner,
                                                .dx = m->dx,
                                                .gradient = m->gradient + layer * m->block_count,
                                                .scratch = m->scratch});
    else
        kernels_block_forward(k, &(struct kernels_block_forward){.weights = weights,
                                                                 .x_in = m->x + layer * flow,
                                                                 .x_out = m->x + (layer + 1) * flow,
                                                                 .inner = inner,
                                                                 .scratch = m->scratch});
}

static void run_head(struct model *m, struct kernels *k, uint32_t tile, bool backward, bool first)
{
    const void *weights =
        m->tile_weights + tile * m->tile_count * precision_bytes(m->class->precision);
    uint32_t row_first = tile * m->tile_rows;
    if (backward)
        kernels_head_backward(
            k, &(struct kernels_head_backward){.tile = weights,
                                               .row_first = row_first,
                                               .row_count = m->tile_rows,
                                               .y = m->y,
                                               .targets = m->targets,
                                               .running = m->running,
                                               .loss_scale = 1.0f / (float)m->class->rows,
                                               .dy = m->dy,
                                               .first = first,
                                               .gradient = m->tile_gradient + tile * m->tile_count,
                                               .scratch = m->scratch});
    else
        kernels_head_forward(k, &(struct kernels_head_forward){.tile = weights,
                                                               .row_first = row_first,
                                                               .row_count = m->tile_rows,
                                                               .y = m->y,
                                                               .targets = m->targets,
                                                               .running = m->running,
                                                               .first = first,
                                                               .scratch = m->scratch});
}

static void run_head_pass(struct model *m, struct kernels *k, struct bench_samples *seconds)
{
    const uint32_t tiles = m->class->tiles;
    for (uint32_t i = 0; i < tiles; i++) {
        uint64_t start_ns = clock_ns();
        run_head(m, k, tiles - 1 - i, false, i == 0);
        bench_add(&seconds[OP_HEAD_FORWARD], bench_seconds_since(start_ns));
    }
    kernels_head_loss(k, &(struct kernels_head_loss){m->running, m->losses});
    for (uint32_t i = 0; i < tiles; i++) {
        uint64_t start_ns = clock_ns();
        run_head(m, k, i, true, i == 0);
        bench_add(&seconds[OP_HEAD_BACKWARD], bench_seconds_since(start_ns));
    }
}

/* The head knows nothing of sequences: with one length is enough. A gradient grows or shrinks from
 * layer to layer, so each pass begins with a new one. */
static void run_pass(const struct compute *compute, struct model *m, struct kernels *k,
                     struct bench_samples *seconds, bool head)
{
    const struct class *class = m->class;
    for (uint32_t i = 0; i < class->layers; i++) {
        uint64_t start_ns = clock_ns();
        run_block(m, k, i, false);
        bench_add(&seconds[OP_FORWARD], bench_seconds_since(start_ns));
    }
    if (head)
        run_head_pass(m, k, seconds);
    fill(compute, m->dx, (uint64_t) class->rows * class->channels, PRECISION_FP32);
    for (uint32_t i = class->layers; i-- > 0;) {
        uint64_t start_ns = clock_ns();
        run_block(m, k, i, true);
        bench_add(&seconds[OP_BACKWARD], bench_seconds_since(start_ns));
    }
}

/* One pass with each length; the device is opened for it, as for a run. */
static int visit_class(struct compute *compute, struct class *class, struct err *err)
{
    struct model model;
    uint64_t start_ns = clock_ns();
    int result = 0;
    model_init(&model, class);
    lay_out(&model, compute->arena.base);
    fill_model(compute, &model);
    for (uint32_t i = 0; i < 2 && class->seq[i] && result == 0; i++) {
        struct kernels *k;
        struct kernels_shape shape = shape_of(&model, class->seq[i]);
        result = kernels_cpu_open(&k, &shape, &model.tensors, compute->pool, err);
        if (result == 0)
            run_pass(compute, &model, k, class->seconds[i], i == 0);
        kernels_close(k);
    }
    model_deinit(&model);
    class->visit_s = bench_seconds_since(start_ns);
    compute->rate = class->flops / class->visit_s;
    return result;
}

/* ---- From seconds to rates ------------------------------------------------------------------- */

static const struct profile_point *narrower(const struct profile_device *device,
                                            const struct class *class)
{
    const struct profile_point *best = NULL;
    for (uint32_t i = 0; i < device->point_count; i++) {
        const struct profile_point *point = &device->points[i];
        if (point->precision == class->precision && point->rows == class->rows &&
            (!best || point->channels > best->channels))
            best = point;
    }
    return best;
}

/* t = products / p + attention / a at each length. Where noise makes nonsense of it, attention has
 * the rate next to that nonsense, and products have what is left. */
static void solve(const struct class *class, bool backward, const struct profile_point *borrow,
                  struct profile_point *point)
{
    enum op op = backward ? OP_BACKWARD : OP_FORWARD;
    uint32_t products_at = backward ? PROFILE_BLOCK_BACKWARD : PROFILE_BLOCK_FORWARD;
    uint32_t attention_at = backward ? PROFILE_ATTENTION_BACKWARD : PROFILE_ATTENTION_FORWARD;
    double rows = class->rows, width = class->channels, times = backward ? 2 : 1;
    double products = times * rows * 24 * width * width;
    double attention[2], seconds[2];
    uint32_t lengths = class->seq[1] ? 2 : 1;
    for (uint32_t i = 0; i < lengths; i++) {
        attention[i] = times * rows * 2 * width * class->seq[i];
        seconds[i] = bench_median(&class->seconds[i][op]);
    }
    double fastest = (products + attention[0]) / seconds[0];
    double rate = borrow ? borrow->flops_per_s[attention_at] : fastest / ATTENTION_SLOW;
    if (lengths == 2) {
        double more_s = seconds[1] - seconds[0];
        rate = more_s > 0 ? (attention[1] - attention[0]) / more_s : fastest;
    }
    rate = fmin(fmax(rate, ATTENTION_LEAST * fastest), fastest);
    double rest = 0, done = 0;
    for (uint32_t i = 0; i < lengths; i++) {
        done += products;
        rest += seconds[i] - attention[i] / rate;
    }
    point->flops_per_s[attention_at] = rate;
    point->flops_per_s[products_at] = done / fmax(rest, 1e-9);
}

static void add_point(struct profile_device *device, const struct class *class)
{
    struct profile_point *point = &device->points[device->point_count];
    const struct profile_point *borrow = narrower(device, class);
    struct model model;
    model_init(&model, class);
    double words = (double)class->rows * class->channels * model.tile_rows;
    model_deinit(&model);
    *point = (struct profile_point){
        .precision = class->precision, .channels = class->channels, .rows = class->rows};
    solve(class, false, borrow, point);
    solve(class, true, borrow, point);
    point->flops_per_s[PROFILE_HEAD_FORWARD] =
        2 * words / bench_median(&class->seconds[0][OP_HEAD_FORWARD]);
    point->flops_per_s[PROFILE_HEAD_BACKWARD] =
        6 * words / bench_median(&class->seconds[0][OP_HEAD_BACKWARD]);
    device->point_count++;
}

/* ---- The limit: one large product ------------------------------------------------------------ */

static int measure_limit(struct compute *compute, enum precision precision, struct err *err)
{
    const struct matmul_product product = {.m = LIMIT_ROWS,
                                           .n = LIMIT_ROWS,
                                           .k = LIMIT_DEPTH,
                                           .a_stride = LIMIT_DEPTH,
                                           .b_stride = LIMIT_ROWS,
                                           .c_stride = LIMIT_ROWS,
                                           .precision = precision};
    struct trial *trial;
    uint64_t factor = (uint64_t)LIMIT_ROWS * LIMIT_DEPTH, used = 0;
    int result = trial_open(&trial, &product, compute->pool, err);
    if (result)
        return result;
    void *a = take(compute->arena.base, &used, factor * sizeof(float));
    void *b = take(compute->arena.base, &used, factor * sizeof(float));
    float *c = take(compute->arena.base, &used, (uint64_t)LIMIT_ROWS * LIMIT_ROWS * sizeof(float));
    ASSERT(used <= compute->arena.bytes);
    fill(compute, a, factor, precision);
    fill(compute, b, factor, precision);
    uint64_t begin_ns = clock_ns();
    for (uint32_t i = 0; i < LIMIT_RUNS; i++) {
        uint64_t start_ns = clock_ns();
        if (i > 0 && bench_seconds_since(begin_ns) > SHARE_LIMIT * compute->bench->seconds)
            break;
        trial_run(trial, a, b, c);
        double rate = 2.0 * (double)factor * LIMIT_ROWS / bench_seconds_since(start_ns);
        compute->limit[precision] = fmax(compute->limit[precision], rate);
    }
    trial_close(trial);
    return 0;
}

/* ---- What is bound by memory ----------------------------------------------------------------- */

/* Gradients of chunks, each in its turn from its accumulator to where it is kept. */
static int measure_stream(struct compute *compute, struct bench_samples *rates, struct err *err)
{
    struct model model;
    struct kernels *k;
    const struct class *class = &compute->classes[0];
    uint64_t each = 4 + precision_bytes(class->precision), bytes = LAYOUT_CHUNK_PARAMETERS * each;
    uint64_t chunks = MIN(compute->arena.bytes, bench_cold_bytes()) / bytes;
    double squares[LAYOUT_CHUNK_PARAMETERS / KERNELS_NORM_BLOCK];
    model_init(&model, class);
    struct kernels_shape shape = shape_of(&model, class->seq[0]);
    int result = kernels_cpu_open(&k, &shape, &model.tensors, compute->pool, err);
    if (result == 0)
        fill(compute, compute->arena.base, chunks * bytes / 4, PRECISION_FP32);
    for (uint64_t i = 0; i < STREAM_SAMPLES * 4 && result == 0; i += 4) {
        uint64_t start_ns = clock_ns();
        for (uint64_t j = i; j < i + 4; j++) {
            uint8_t *at = compute->arena.base + j % chunks * bytes;
            kernels_gradient_store(k, (float *)at, at + LAYOUT_CHUNK_PARAMETERS * 4,
                                   LAYOUT_CHUNK_PARAMETERS, squares);
        }
        bench_add(rates, 4 * (double)bytes / bench_seconds_since(start_ns));
    }
    kernels_close(k);
    model_deinit(&model);
    return result;
}

/* ---- The part -------------------------------------------------------------------------------- */

static void set_lengths(struct class *class)
{
    double shorter = fmax(class->rows / 4.0, 32), longer = fmin(class->rows, POSITIONS);
    shorter = fmin(shorter, longer / 4);
    double more = ATTENTION_SLOW * (longer - shorter) / (12 * class->channels);
    bool narrowest = class->channels == 128;
    class->seq[0] = (uint32_t)shorter;
    class->seq[1] = narrowest || more >= APART_MIN ? (uint32_t)longer : 0;
}

static int compare_classes(const void *left, const void *right)
{
    const struct class *a = left, *b = right;
    if (a->flops != b->flops)
        return a->flops < b->flops ? -1 : 1;
    return (a->precision < b->precision) - (a->precision > b->precision);
}

static void choose_classes(struct compute *compute)
{
    static const uint32_t widths[] = {128, 512, 768, 1600}, rows[] = {128, 512, 2048};
    enum precision last = kernels_cpu_has_bf16() ? PRECISION_BF16 : PRECISION_FP32;
    for (enum precision precision = PRECISION_FP32; precision <= last; precision++)
        for (size_t w = 0; w < ARRAY_COUNT(widths); w++)
            for (size_t r = 0; r < ARRAY_COUNT(rows); r++) {
                struct class *class = &compute->classes[compute->class_count++];
                class->precision = precision;
                class->channels = widths[w];
                class->rows = rows[r];
                set_lengths(class);
                size_class(class);
            }
    qsort(compute->classes, compute->class_count, sizeof(*compute->classes), compare_classes);
}

/* Grown as classes ask for more: a short run gets to the small ones only. */
static int reserve(struct compute *compute, uint64_t bytes, struct err *err)
{
    if (bytes <= compute->arena.bytes)
        return 0;
    mem_arena_close(&compute->arena);
    return mem_arena_open(&compute->arena, bytes, err);
}

static const char *precision_name(enum precision precision)
{
    return precision == PRECISION_BF16 ? "bf16" : "fp32";
}

/* Round after round over all classes, so that what else the machine does for some seconds is in a
 * part of each class's samples only. Cheap classes come first; those for which no time is left are
 * left out: the profile is then that of the next narrower or shorter ones. */
static int measure_classes(struct compute *compute, struct err *err)
{
    double budget_s = compute->bench->seconds * SHARE_CLASSES;
    uint64_t start_ns = clock_ns(), most_bytes = mem_available_bytes() / 2;
    int result = 0;
    for (uint32_t i = 0; i < ROUNDS_MAX * compute->class_count && result == 0; i++) {
        struct class *class = &compute->classes[i % compute->class_count];
        char what[64];
        double left_s = budget_s - bench_seconds_since(start_ns);
        double needed_s = class->visit_s > 0 ? class->visit_s : class->flops / compute->rate;
        if (class->bytes > most_bytes || (i > 1 && needed_s > left_s))
            continue;
        snprintf(what, sizeof(what), "%s, %u channels, %u rows", precision_name(class->precision),
                 class->channels, class->rows);
        bench_at(compute->bench, bench_seconds_since(start_ns), what);
        result = reserve(compute, class->bytes, err);
        if (result == 0)
            result = visit_class(compute, class, err);
    }
    for (uint32_t i = 0; i < compute->class_count && result == 0; i++)
        if (compute->classes[i].visit_s > 0)
            add_point(&compute->bench->profile.device, &compute->classes[i]);
    return result;
}

static void print_points(const struct compute *compute)
{
    const struct profile_device *device = &compute->bench->profile.device;
    printf("\nGFLOP/s of whole kernels (the best large product: fp32 %.0f, bf16 %.0f)\n",
           compute->limit[PRECISION_FP32] / 1e9, compute->limit[PRECISION_BF16] / 1e9);
    printf("%-20s %15s %15s %15s %15s\n", "channels x rows", "block f, b", "attention f, b",
           "head f, b", "block's share");
    for (uint32_t i = 0; i < device->point_count; i++) {
        const struct profile_point *p = &device->points[i];
        const double *r = p->flops_per_s;
        double limit = compute->limit[p->precision];
        printf("%s %6u x %-6u", precision_name(p->precision), p->channels, p->rows);
        for (uint32_t kernel = 0; kernel < PROFILE_KERNEL_COUNT; kernel += 2)
            printf("  %6.0f, %6.0f", r[kernel] / 1e9, r[kernel + 1] / 1e9);
        printf("  %4.0f %%, %3.0f %%\n", 100 * r[PROFILE_BLOCK_FORWARD] / limit,
               100 * r[PROFILE_BLOCK_BACKWARD] / limit);
    }
    if (device->point_count < compute->class_count)
        printf("There was no time or memory for the %u largest classes: give --seconds more\n",
               compute->class_count - device->point_count);
}

/* A step of gpt2-124m, in the last class of its width that was measured; sequences of GAIN_SEQ. */
static void print_gains(const struct compute *compute)
{
    const struct profile_device *device = &compute->bench->profile.device;
    const struct profile_point *point = NULL;
    for (uint32_t i = 0; i < device->point_count; i++)
        if (device->points[i].channels == GAIN_CHANNELS)
            point = &device->points[i];
    if (!point)
        return;
    const double width = GAIN_CHANNELS, rows = point->rows;
    const double block = 24 * width * width * rows * GAIN_LAYERS;
    const double attention = 2 * width * GAIN_SEQ * rows * GAIN_LAYERS;
    const double head = 2 * width * VOCAB * rows;
    const double flops[PROFILE_KERNEL_COUNT] = {
        [PROFILE_BLOCK_FORWARD] = block,         [PROFILE_BLOCK_BACKWARD] = 2 * block,
        [PROFILE_ATTENTION_FORWARD] = attention, [PROFILE_ATTENTION_BACKWARD] = 2 * attention,
        [PROFILE_HEAD_FORWARD] = head,           [PROFILE_HEAD_BACKWARD] = 3 * head};
    struct bench_gain gains[PROFILE_KERNEL_COUNT];
    char of[80];
    for (uint32_t kernel = 0; kernel < PROFILE_KERNEL_COUNT; kernel++) {
        struct bench_gain *gain = &gains[kernel];
        snprintf(gain->name, sizeof(gain->name), "%s", profile_kernel_name[kernel]);
        *strchr(gain->name, '_') = ' ';
        gain->seconds = flops[kernel] / point->flops_per_s[kernel];
        gain->least_s = flops[kernel] / compute->limit[point->precision];
    }
    snprintf(of, sizeof(of), "a step's kernels of gpt2-124m, %s, %u tokens",
             precision_name(point->precision), point->rows);
    bench_gains(of, gains, ARRAY_COUNT(gains));
}

/* The widest class that was measured of each precision stands for the others in the table. */
static void report(struct compute *compute, const struct bench_samples *stream,
                   const struct bench_samples *launch)
{
    struct bench *bench = compute->bench;
    struct profile_device *device = &bench->profile.device;
    print_points(compute);
    print_gains(compute);
    for (enum precision precision = PRECISION_FP32; precision <= PRECISION_BF16; precision++) {
        const struct profile_point *point = NULL;
        for (uint32_t i = 0; i < device->point_count; i++)
            if (device->points[i].precision == precision)
                point = &device->points[i];
        for (uint32_t kernel = 0; point && kernel < PROFILE_KERNEL_COUNT; kernel++) {
            char name[32];
            snprintf(name, sizeof(name), "%s", profile_kernel_name[kernel]);
            *strchr(name, '_') = ' ';
            struct bench_row *row = bench_report(
                bench, BENCH_GFLOP_S, point->flops_per_s[kernel], NULL, "%s, %s, %u x %u", name,
                precision_name(precision), point->channels, point->rows);
            bench_limit(row, compute->limit[precision], "the best large product");
        }
    }
    device->stream_bytes_per_s = bench_median(stream);
    struct bench_row *row = bench_report(bench, BENCH_GB_S, device->stream_bytes_per_s, stream,
                                         "kernels bound by memory");
    bench_limit(row, bench->ram_known ? bench->profile.ram.bytes_per_s : 0,
                "the memory of all cores");
    device->launch_s = bench_median(launch);
    bench_report(bench, BENCH_US, device->launch_s, launch, "handing an op to the device");
}

static int compare_points(const void *left, const void *right)
{
    const struct profile_point *a = left, *b = right;
    if (a->precision != b->precision)
        return a->precision < b->precision ? -1 : 1;
    if (a->channels != b->channels)
        return a->channels < b->channels ? -1 : 1;
    return (a->rows > b->rows) - (a->rows < b->rows);
}

static int measure_all(struct compute *compute, struct err *err)
{
    struct bench_samples stream = {0}, launch = {0};
    int result = bench_launch(&launch, err);
    if (result == 0)
        result = cores_choose(compute->bench->threads, PRECISION_FP32, err);
    if (result == 0)
        result = pool_open(&compute->pool, "bench", compute->bench->threads, true, err);
    if (result == 0)
        result = reserve(compute, MAX(LIMIT_BYTES, bench_cold_bytes()), err);
    for (enum precision p = PRECISION_FP32; p <= PRECISION_BF16 && result == 0; p++)
        if (p == PRECISION_FP32 || kernels_cpu_has_bf16())
            result = measure_limit(compute, p, err);
    if (result == 0)
        result = measure_stream(compute, &stream, err);
    if (result == 0)
        result = measure_classes(compute, err);
    bench_end(compute->bench);
    struct profile_device *device = &compute->bench->profile.device;
    qsort(device->points, device->point_count, sizeof(*device->points), compare_points);
    if (result == 0)
        report(compute, &stream, &launch);
    return result;
}

int bench_compute(struct bench *bench, struct err *err)
{
    struct compute *compute = mem_alloc(1, sizeof(*compute));
    struct profile_device *device = &bench->profile.device;
    compute->bench = bench;
    *device = (struct profile_device){.is_cpu = true, .count = 1};
    snprintf(device->name, sizeof(device->name), "%.*s", PROFILE_NAME_MAX - 1,
             topo_open()->cpu_model);
    choose_classes(compute);
    for (enum precision p = PRECISION_FP32; p <= PRECISION_BF16; p++)
        compute->pattern[p] = make_pattern(p);
    bench_begin(bench, "kernels", "s", bench->seconds * SHARE_CLASSES);
    int result = measure_all(compute, err);
    pool_close(compute->pool);
    mem_arena_close(&compute->arena);
    for (enum precision p = PRECISION_FP32; p <= PRECISION_BF16; p++)
        mem_free(compute->pattern[p]);
    mem_free(compute);
    return result;
}
