/*
 * The CPU kernels against the float64 reference: a whole small model is put together from them,
 * with the head in several tiles, and its losses and every tensor's gradient are compared. The
 * reference itself is checked by finite differences. Then what the trainer relies on beyond being
 * right: the same bits whatever the number of threads, the addresses and what was in the memory
 * before; recomputation; accumulation over micro-batches; NaN that is not lost. Relative error is
 * |ours - reference| / |reference| by Euclidean norm over a tensor.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/rng.h"
#include "model/kernels.h"
#include "tests/shared/limited.h"
#include "tests/shared/reference.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define FP32_TOLERANCE 1e-5
#define BF16_TOLERANCE 2e-2
#define PIECES_MAX     256

/* -- A model put together from kernels -- */

struct setup {
    uint32_t layers, channels, heads, vocab, batch, seq, tile_rows;
    enum precision precision;
    uint32_t threads;
    uint32_t shift; /* buffers start this many cache lines behind a page */
};

struct rig {
    struct setup setup;
    bool at_once; /* the head in one call instead of two passes */
    struct config config;
    struct tensors tensors;
    struct kernels_shape shape;
    struct kernels_sizes sizes;
    struct pool *pool;
    struct kernels *kernels;
    uint32_t rows;
    void *pieces[PIECES_MAX]; /* owned */
    uint32_t piece_count;
    void **weights;    /* E, by group */
    float **gradients; /* by group */
    float **x;         /* [layers + 1] of [R, C] */
    void **inner;      /* [layers] */
    void *y, *scratch, *once_scratch;
    float *dx, *dy, *statistics, *running, *losses;
    uint32_t *tokens, *targets;
};

/* Memory full of NaN, so that a result that depends on what was there before is found out. */
static void *place(struct rig *rig, uint64_t bytes)
{
    assert_true(rig->piece_count < PIECES_MAX);
    uint8_t *piece = mem_alloc_aligned(4096, bytes + 4096);
    memset(piece, 0xff, bytes + 4096);
    rig->pieces[rig->piece_count++] = piece;
    return piece + (size_t)rig->setup.shift * 64;
}

static void rig_open(struct rig *rig, const struct setup *setup)
{
    struct err err;
    *rig = (struct rig){.setup = *setup};
    rig->config = (struct config){.name = "test",
                                  .layers = setup->layers,
                                  .channels = setup->channels,
                                  .heads = setup->heads,
                                  .positions = setup->seq + 3,
                                  .vocab = setup->vocab,
                                  .norm_epsilon = 1e-5f};
    config_derive(&rig->config);
    assert_int_equal(config_check(&rig->config, &err), 0);
    tensors_init(&rig->tensors, &rig->config);
    rig->shape = (struct kernels_shape){.precision = setup->precision,
                                        .batch = setup->batch,
                                        .seq = setup->seq,
                                        .channels = setup->channels,
                                        .heads = setup->heads,
                                        .vocab = setup->vocab,
                                        .tile_rows_max = setup->tile_rows,
                                        .norm_epsilon = 1e-5f};
    assert_int_equal(pool_open(&rig->pool, "test", setup->threads, false, &err), 0);
    assert_int_equal(kernels_cpu_open(&rig->kernels, &rig->shape, &rig->tensors, rig->pool, &err),
                     0);
    kernels_sizes(&rig->shape, &rig->sizes);
    uint64_t rows = rig->rows = setup->batch * setup->seq, c = setup->channels;
    uint32_t element = precision_bytes(setup->precision);
    rig->weights = mem_alloc(rig->tensors.group_count, sizeof(void *));
    rig->gradients = mem_alloc(rig->tensors.group_count, sizeof(void *));
    for (uint32_t g = 0; g < rig->tensors.group_count; g++) {
        uint64_t count = rig->tensors.groups[g].parameter_count;
        rig->weights[g] = place(rig, count * element);
        rig->gradients[g] = place(rig, count * sizeof(float));
    }
    rig->x = mem_alloc(setup->layers + 1, sizeof(void *));
    rig->inner = mem_alloc(setup->layers, sizeof(void *));
    for (uint32_t l = 0; l <= setup->layers; l++)
        rig->x[l] = place(rig, rows * c * sizeof(float));
    for (uint32_t l = 0; l < setup->layers; l++)
        rig->inner[l] = place(rig, rig->sizes.inner_bytes);
    rig->y = place(rig, rows * c * element);
    rig->scratch = place(rig, rig->sizes.scratch_bytes);
    rig->once_scratch = place(rig, rig->sizes.head_once_bytes);
    rig->dx = place(rig, rows * c * sizeof(float));
    rig->dy = place(rig, rows * c * sizeof(float));
    rig->statistics = place(rig, 2 * rows * sizeof(float));
    rig->running = place(rig, 3 * rows * sizeof(float));
    rig->losses = place(rig, rows * sizeof(float));
    rig->tokens = place(rig, rows * sizeof(uint32_t));
    rig->targets = place(rig, rows * sizeof(uint32_t));
}

static void rig_close(struct rig *rig)
{
    kernels_close(rig->kernels);
    pool_close(rig->pool);
    tensors_deinit(&rig->tensors);
    for (uint32_t i = 0; i < rig->piece_count; i++)
        mem_free(rig->pieces[i]);
    mem_free(rig->weights);
    mem_free(rig->gradients);
    mem_free(rig->x);
    mem_free(rig->inner);
}

static void rig_load(struct rig *rig, const struct reference *reference)
{
    for (uint32_t i = 0; i < rig->tensors.count; i++) {
        const struct tensor *tensor = &rig->tensors.list[i];
        for (uint64_t n = 0; n < tensor->count; n++) {
            float value = (float)reference->weights[i][n];
            void *group = rig->weights[tensor->group];
            if (rig->setup.precision == PRECISION_BF16)
                ((uint16_t *)group)[tensor->offset + n] = float_to_bf16(value);
            else
                ((float *)group)[tensor->offset + n] = value;
        }
    }
}

/* Few different tokens, so that the embedding's rows meet several times. */
static void rig_draw(struct rig *rig, uint64_t seed)
{
    for (uint32_t r = 0; r < rig->rows; r++) {
        rig->tokens[r] = (uint32_t)rng_below(seed, 1, r, MIN(rig->setup.vocab, 40));
        rig->targets[r] = (uint32_t)rng_below(seed, 2, r, rig->setup.vocab);
    }
    rig->targets[rig->rows - 1] = rig->setup.vocab - 1;
}

static const char *tile_of(const struct rig *rig, uint32_t first, uint32_t *count)
{
    *count = MIN(rig->setup.tile_rows, rig->setup.vocab - first);
    return (const char *)rig->weights[0] +
           (size_t)first * rig->setup.channels * precision_bytes(rig->setup.precision);
}

static void rig_head_forward(struct rig *rig)
{
    uint32_t count, tiles = (uint32_t)div_up(rig->setup.vocab, rig->setup.tile_rows);
    for (uint32_t tile = tiles; tile-- > 0;) {
        uint32_t first = tile * rig->setup.tile_rows;
        const void *rows = tile_of(rig, first, &count);
        kernels_head_forward(rig->kernels,
                             &(struct kernels_head_forward){.tile = rows,
                                                            .row_first = first,
                                                            .row_count = count,
                                                            .y = rig->y,
                                                            .targets = rig->targets,
                                                            .running = rig->running,
                                                            .first = tile + 1 == tiles,
                                                            .scratch = rig->scratch});
    }
    kernels_head_loss(rig->kernels,
                      &(struct kernels_head_loss){.running = rig->running, .losses = rig->losses});
}

static void rig_forward(struct rig *rig)
{
    struct kernels *k = rig->kernels;
    uint32_t count, layers = rig->setup.layers;
    for (uint32_t first = 0; first < rig->setup.vocab; first += count) {
        const void *tile = tile_of(rig, first, &count);
        kernels_embed_forward(k, &(struct kernels_embed_forward){.tile = tile,
                                                                 .row_first = first,
                                                                 .row_count = count,
                                                                 .tokens = rig->tokens,
                                                                 .x = rig->x[0]});
    }
    const char *wpe = (const char *)rig->weights[0] +
                      rig->tensors.list[1].offset * precision_bytes(rig->setup.precision);
    kernels_position_forward(k, &(struct kernels_position_forward){.wpe = wpe, .x = rig->x[0]});
    for (uint32_t l = 0; l < layers; l++)
        kernels_block_forward(k, &(struct kernels_block_forward){.weights = rig->weights[l + 1],
                                                                 .x_in = rig->x[l],
                                                                 .x_out = rig->x[l + 1],
                                                                 .inner = rig->inner[l],
                                                                 .scratch = rig->scratch});
    kernels_norm_forward(k, &(struct kernels_norm_forward){.weights = rig->weights[layers + 1],
                                                           .x = rig->x[layers],
                                                           .y = rig->y,
                                                           .statistics = rig->statistics});
    rig_head_forward(rig);
}

static void rig_head_once(struct rig *rig, float loss_scale, bool accumulate)
{
    kernels_head_once(rig->kernels,
                      &(struct kernels_head_once){.tiles = rig->weights[0],
                                                  .tile_stride = (uint64_t)rig->setup.tile_rows *
                                                                 rig->setup.channels,
                                                  .y = rig->y,
                                                  .targets = rig->targets,
                                                  .running = rig->running,
                                                  .losses = rig->losses,
                                                  .loss_scale = loss_scale,
                                                  .dy = rig->dy,
                                                  .gradients = rig->gradients[0],
                                                  .accumulate = accumulate,
                                                  .scratch = rig->once_scratch});
}

static void rig_backward_head(struct rig *rig, float loss_scale, bool accumulate)
{
    uint32_t count, layers = rig->setup.layers;
    if (rig->at_once)
        rig_head_once(rig, loss_scale, accumulate);
    for (uint32_t first = 0; first < rig->setup.vocab && !rig->at_once; first += count) {
        const void *tile = tile_of(rig, first, &count);
        float *gradient = rig->gradients[0] + (size_t)first * rig->setup.channels;
        kernels_head_backward(rig->kernels,
                              &(struct kernels_head_backward){.tile = tile,
                                                              .row_first = first,
                                                              .row_count = count,
                                                              .y = rig->y,
                                                              .targets = rig->targets,
                                                              .running = rig->running,
                                                              .loss_scale = loss_scale,
                                                              .dy = rig->dy,
                                                              .first = first == 0,
                                                              .gradient = gradient,
                                                              .accumulate = accumulate,
                                                              .scratch = rig->scratch});
    }
    kernels_norm_backward(rig->kernels,
                          &(struct kernels_norm_backward){.weights = rig->weights[layers + 1],
                                                          .x = rig->x[layers],
                                                          .statistics = rig->statistics,
                                                          .dy = rig->dy,
                                                          .dx = rig->dx,
                                                          .gradient = rig->gradients[layers + 1],
                                                          .accumulate = accumulate,
                                                          .scratch = rig->scratch});
}

static void rig_backward(struct rig *rig, float loss_scale, bool accumulate)
{
    struct kernels *k = rig->kernels;
    rig_backward_head(rig, loss_scale, accumulate);
    for (uint32_t l = rig->setup.layers; l-- > 0;)
        kernels_block_backward(k,
                               &(struct kernels_block_backward){.weights = rig->weights[l + 1],
                                                                .x_in = rig->x[l],
                                                                .inner = rig->inner[l],
                                                                .dx = rig->dx,
                                                                .gradient = rig->gradients[l + 1],
                                                                .accumulate = accumulate,
                                                                .scratch = rig->scratch});
    kernels_position_backward(k, &(struct kernels_position_backward){
                                     .dx = rig->dx,
                                     .gradient = rig->gradients[0] + rig->tensors.list[1].offset,
                                     .positions = rig->config.positions,
                                     .accumulate = accumulate});
    uint32_t count;
    for (uint32_t first = 0; first < rig->setup.vocab; first += count) {
        tile_of(rig, first, &count);
        float *gradient = rig->gradients[0] + (size_t)first * rig->setup.channels;
        kernels_embed_backward(k, &(struct kernels_embed_backward){.row_first = first,
                                                                   .row_count = count,
                                                                   .tokens = rig->tokens,
                                                                   .dx = rig->dx,
                                                                   .gradient = gradient});
    }
}

/* -- Against the reference -- */

static double relative_error(const float *ours, const double *reference, uint64_t count)
{
    double difference = 0.0, size = 0.0;
    for (uint64_t i = 0; i < count; i++) {
        difference += (ours[i] - reference[i]) * (ours[i] - reference[i]);
        size += reference[i] * reference[i];
    }
    return sqrt(difference) / sqrt(size);
}

static void check_error(const char *what, double error, double tolerance)
{
    /* Written so that a NaN fails. */
    if (!(error < tolerance))
        print_error("%s: relative error %g, allowed %g\n", what, error, tolerance);
    assert_true(error < tolerance);
}

static void check_losses(const struct rig *rig, const struct reference *reference, double tolerance)
{
    double *expected = mem_alloc(rig->rows, sizeof(double));
    reference_loss(reference, rig->tokens, rig->targets, rig->setup.batch, rig->setup.seq,
                   expected);
    check_error("losses", relative_error(rig->losses, expected, rig->rows), tolerance);
    mem_free(expected);
}

static void check_gradients(const struct rig *rig, const struct reference *reference,
                            double tolerance)
{
    for (uint32_t i = 0; i < rig->tensors.count; i++) {
        const struct tensor *tensor = &rig->tensors.list[i];
        const float *ours = rig->gradients[tensor->group] + tensor->offset;
        check_error(tensor->name, relative_error(ours, reference->gradients[i], tensor->count),
                    tolerance);
    }
}

static void check_padding(const struct rig *rig)
{
    for (uint32_t g = 1; g < rig->tensors.group_count; g++) {
        const struct tensor_group *group = &rig->tensors.groups[g];
        uint64_t at = 0;
        for (uint32_t i = 0; i < group->tensor_count; i++) {
            const struct tensor *tensor = &rig->tensors.list[group->first_tensor + i];
            for (; at < tensor->offset; at++)
                assert_true(rig->gradients[g][at] == 0.0f);
            at += tensor->count;
        }
    }
}

/* Two micro-batches of different tokens, the second accumulated, and their sum expected. */
static void check_model(const struct setup *setup)
{
    double tolerance = setup->precision == PRECISION_BF16 ? BF16_TOLERANCE : FP32_TOLERANCE;
    struct rig rig;
    rig_open(&rig, setup);
    struct reference reference;
    reference_init(&reference, &rig.config, &rig.tensors);
    reference_fill(&reference, 11, setup->precision);
    rig_load(&rig, &reference);
    float scale = 1.0f / (float)(2 * rig.rows);
    for (uint32_t micro = 0; micro < 2; micro++) {
        rig_draw(&rig, 5 + micro);
        rig_forward(&rig);
        check_losses(&rig, &reference, tolerance);
        rig_backward(&rig, scale, micro > 0);
        reference_backward(&reference, rig.tokens, rig.targets, setup->batch, setup->seq, scale);
        check_gradients(&rig, &reference, tolerance);
        check_padding(&rig);
    }
    reference_deinit(&reference);
    rig_close(&rig);
}

static const struct setup setups[] = {
    /* The smallest there is; then odd lengths; then heads whose depth is no multiple of 16. */
    {1, 32, 1, 5, 1, 1, 5, PRECISION_FP32, 1, 0},
    {2, 64, 2, 131, 3, 7, 50, PRECISION_FP32, 2, 0},
    {2, 64, 2, 131, 2, 33, 50, PRECISION_FP32, 2, 0},
    {1, 96, 12, 131, 2, 33, 131, PRECISION_FP32, 2, 0},
    /* Two tiles of attention with a rest, several blocks of rows in the head, tiles of the
     * vocabulary that are cut into whole pieces and rests. */
    {1, 64, 2, 1100, 5, 130, 600, PRECISION_FP32, 2, 0},
    {1, 64, 1, 1024, 1, 257, 512, PRECISION_FP32, 2, 0},
    /* Weights' gradients over 1,105 rows and dy over 1,105 columns: in bf16 too more than a block
     * of k, and the last one odd. */
    {1, 32, 1, 1105, 5, 221, 1105, PRECISION_FP32, 2, 0},
};

static void test_model_fp32(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(setups); i++)
        check_model(&setups[i]);
}

static void test_model_bf16(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(setups); i++) {
        struct setup setup = setups[i];
        setup.precision = PRECISION_BF16;
        check_model(&setup);
    }
}

/* Central differences of the reference's loss, in double: h^2 and rounding both leave 1e-7. */
static void test_reference_finite_differences(void **state)
{
    (void)state;
    struct config config = {.layers = 2,
                            .channels = 32,
                            .heads = 2,
                            .positions = 9,
                            .vocab = 23,
                            .norm_epsilon = 1e-5f};
    struct tensors tensors;
    struct reference reference;
    tensors_init(&tensors, &config);
    reference_init(&reference, &config, &tensors);
    reference_fill(&reference, 3, PRECISION_FP32);
    uint32_t tokens[14], targets[14];
    for (uint32_t i = 0; i < 14; i++) {
        tokens[i] = (uint32_t)rng_below(1, 1, i, config.vocab);
        targets[i] = (uint32_t)rng_below(1, 2, i, config.vocab);
    }
    reference_backward(&reference, tokens, targets, 2, 7, 1.0);
    for (uint32_t i = 0; i < tensors.count; i++) {
        for (uint32_t probe = 0; probe < 6; probe++) {
            uint64_t at = rng_below(9, i, probe, tensors.list[i].count);
            double *weight = &reference.weights[i][at], before = *weight, h = 1e-5;
            *weight = before + h;
            double above = reference_loss(&reference, tokens, targets, 2, 7, NULL);
            *weight = before - h;
            double below = reference_loss(&reference, tokens, targets, 2, 7, NULL);
            *weight = before;
            double slope = (above - below) / (2.0 * h), gradient = reference.gradients[i][at];
            check_error(tensors.list[i].name, fabs(slope - gradient) / (fabs(gradient) + 1e-2),
                        1e-5);
        }
    }
    reference_deinit(&reference);
    tensors_deinit(&tensors);
}

/* -- The same bits -- */

static uint64_t run_and_hash(const struct setup *setup, bool at_once)
{
    struct rig rig;
    rig_open(&rig, setup);
    rig.at_once = at_once;
    struct reference reference;
    reference_init(&reference, &rig.config, &rig.tensors);
    reference_fill(&reference, 7, setup->precision);
    rig_load(&rig, &reference);
    rig_draw(&rig, 1);
    rig_forward(&rig);
    rig_backward(&rig, 0.01f, false);
    rig_forward(&rig);
    rig_backward(&rig, 0.01f, true);
    uint64_t hash = hash_bytes(rig.losses, rig.rows * sizeof(float), 0);
    for (uint32_t i = 0; i < rig.tensors.count; i++) {
        const struct tensor *tensor = &rig.tensors.list[i];
        hash = hash_bytes(rig.gradients[tensor->group] + tensor->offset,
                          tensor->count * sizeof(float), hash);
    }
    hash = hash_bytes(rig.dx, (size_t)rig.rows * setup->channels * sizeof(float), hash);
    reference_deinit(&reference);
    rig_close(&rig);
    return hash;
}

static void test_same_bits(void **state)
{
    (void)state;
    for (unsigned precision = 0; precision < 2; precision++) {
        struct setup setup = {2, 128, 4, 1100, 3, 150, 600, (enum precision)precision, 1, 0};
        uint64_t expected = run_and_hash(&setup, false);
        for (setup.threads = 1; setup.threads <= 3; setup.threads++)
            for (setup.shift = 0; setup.shift < 4; setup.shift += setup.shift ? 2 : 1)
                assert_int_equal(run_and_hash(&setup, setup.shift == 1), expected);
    }
}

/* What evaluation computed before is overwritten, so that losses are those of the head at once. */
static void spoil_losses(struct rig *rig)
{
    memset(rig->losses, 0xff, rig->rows * sizeof(float));
    memset(rig->running, 0xff, 3 * (size_t)rig->rows * sizeof(float));
    memset(rig->once_scratch, 0xff, rig->sizes.head_once_bytes);
}

/* dy, losses and the tiles' gradients after two micro-batches, to the bit, by both ways. */
static void check_head_once(const struct setup *setup)
{
    struct rig rig;
    struct reference reference;
    rig_open(&rig, setup);
    reference_init(&reference, &rig.config, &rig.tensors);
    reference_fill(&reference, 7, setup->precision);
    rig_load(&rig, &reference);
    uint64_t stream = (uint64_t)rig.rows * setup->channels;
    uint64_t words = rig.rows + stream + (uint64_t)setup->vocab * setup->channels;
    float *found[2];
    for (int way = 0; way < 2; way++) {
        rig.at_once = way;
        for (uint32_t micro = 0; micro < 2; micro++) {
            rig_draw(&rig, 1 + micro);
            rig_forward(&rig);
            if (way)
                spoil_losses(&rig);
            rig_backward_head(&rig, 0.01f, micro > 0);
        }
        found[way] = mem_alloc(words, sizeof(float));
        memcpy(found[way], rig.losses, rig.rows * sizeof(float));
        memcpy(found[way] + rig.rows, rig.dy, stream * sizeof(float));
        memcpy(found[way] + rig.rows + stream, rig.gradients[0],
               (words - rig.rows - stream) * sizeof(float));
    }
    assert_memory_equal(found[0], found[1], words * sizeof(float));
    mem_free(found[0]);
    mem_free(found[1]);
    reference_deinit(&reference);
    rig_close(&rig);
}

static void test_head_once_is_both_passes(void **state)
{
    (void)state;
    static const struct setup more[] = {
        /* Several blocks of rows, the last with a rest; pieces and tiles with rests. */
        {1, 64, 2, 3000, 4, 300, 1344, PRECISION_FP32, 2, 0},
        {1, 64, 2, 1026, 2, 512, 513, PRECISION_FP32, 3, 1},
    };
    for (unsigned precision = 0; precision < 2; precision++)
        for (size_t i = 0; i < ARRAY_COUNT(setups) + ARRAY_COUNT(more); i++) {
            struct setup setup =
                i < ARRAY_COUNT(setups) ? setups[i] : more[i - ARRAY_COUNT(setups)];
            setup.precision = (enum precision)precision;
            check_head_once(&setup);
        }
}

static void test_recomputed_inner_is_the_same(void **state)
{
    (void)state;
    for (unsigned precision = 0; precision < 2; precision++) {
        struct setup setup = {1, 64, 2, 131, 2, 33, 131, (enum precision)precision, 2, 0};
        struct rig rig;
        struct reference reference;
        rig_open(&rig, &setup);
        reference_init(&reference, &rig.config, &rig.tensors);
        reference_fill(&reference, 7, setup.precision);
        rig_load(&rig, &reference);
        rig_draw(&rig, 1);
        memset(rig.inner[0], 0, rig.sizes.inner_bytes);
        rig_forward(&rig);
        void *again = place(&rig, rig.sizes.inner_bytes);
        memset(again, 0, rig.sizes.inner_bytes);
        kernels_block_forward(rig.kernels,
                              &(struct kernels_block_forward){.weights = rig.weights[1],
                                                              .x_in = rig.x[0],
                                                              .inner = again,
                                                              .scratch = rig.scratch});
        assert_memory_equal(again, rig.inner[0], rig.sizes.inner_bytes);
        reference_deinit(&reference);
        rig_close(&rig);
    }
}

/* -- What is not a model -- */

static void test_nan_reaches_loss_and_gradients(void **state)
{
    (void)state;
    for (unsigned precision = 0; precision < 2; precision++) {
        for (unsigned infinite = 0; infinite < 2; infinite++) {
            struct setup setup = {2, 64, 2, 131, 2, 33, 50, (enum precision)precision, 2, 0};
            struct rig rig;
            struct reference reference;
            rig_open(&rig, &setup);
            reference_init(&reference, &rig.config, &rig.tensors);
            reference_fill(&reference, 7, setup.precision);
            uint32_t fc = rig.tensors.groups[1].first_tensor + BLOCK_FC_WEIGHT;
            reference.weights[fc][17] = infinite ? INFINITY : NAN;
            rig_load(&rig, &reference);
            rig_draw(&rig, 1);
            rig_forward(&rig);
            rig_backward(&rig, 0.01f, false);
            bool broken = false;
            for (uint32_t r = 0; r < rig.rows; r++)
                broken |= !isfinite(rig.losses[r]);
            assert_true(broken);
            assert_false(isfinite(rig.gradients[1][rig.tensors.list[fc].offset]));
            reference_deinit(&reference);
            rig_close(&rig);
        }
    }
}

static void test_logits(void **state)
{
    (void)state;
    for (unsigned precision = 0; precision < 2; precision++) {
        struct setup setup = {2, 64, 2, 700, 1, 33, 300, (enum precision)precision, 2, 0};
        struct rig rig;
        struct reference reference;
        rig_open(&rig, &setup);
        reference_init(&reference, &rig.config, &rig.tensors);
        reference_fill(&reference, 7, setup.precision);
        rig_load(&rig, &reference);
        rig_draw(&rig, 1);
        rig_forward(&rig);
        double expected[700];
        float logits[700];
        reference_logits(&reference, rig.tokens, setup.seq, expected);
        const char *row = (const char *)rig.y + (size_t)(setup.seq - 1) * setup.channels *
                                                    precision_bytes(setup.precision);
        uint32_t count;
        for (uint32_t first = 0; first < setup.vocab; first += count) {
            const void *tile = tile_of(&rig, first, &count);
            kernels_logits(rig.kernels, &(struct kernels_logits){.tile = tile,
                                                                 .row_count = count,
                                                                 .y_row = row,
                                                                 .logits = logits + first});
        }
        check_error("logits", relative_error(logits, expected, setup.vocab),
                    precision ? BF16_TOLERANCE : FP32_TOLERANCE);
        reference_deinit(&reference);
        rig_close(&rig);
    }
}

static const uint64_t flat_counts[] = {1,     15,     2048,   65535,  65536,
                                       65537, 131072, 200001, 262144, 327680 + 64};

static void test_gradient_store(void **state)
{
    (void)state;
    for (unsigned precision = 0; precision < 2; precision++) {
        struct setup setup = {1, 32, 1, 5, 1, 1, 5, (enum precision)precision, 2, 0};
        struct rig rig;
        rig_open(&rig, &setup);
        for (size_t i = 0; i < ARRAY_COUNT(flat_counts); i++) {
            uint64_t count = flat_counts[i];
            float *gradient = mem_alloc(count, sizeof(float));
            void *stored = mem_alloc(count, sizeof(float));
            double sums[8], in_place_sums[8];
            for (uint64_t n = 0; n < count; n++)
                gradient[n] = (float)rng_normal(1, 3, n);
            kernels_gradient_store(rig.kernels, gradient, stored, count, sums);
            for (uint64_t block = 0; block < div_up(count, KERNELS_NORM_BLOCK); block++) {
                uint64_t end = MIN(count, (block + 1) * KERNELS_NORM_BLOCK);
                double expected = 0.0;
                for (uint64_t n = block * KERNELS_NORM_BLOCK; n < end; n++) {
                    float value = gradient[n];
                    if (precision)
                        value = float_from_bf16(float_to_bf16(value));
                    float kept =
                        precision ? float_from_bf16(((uint16_t *)stored)[n]) : ((float *)stored)[n];
                    assert_true(kept == value);
                    expected += (double)value * (double)value;
                }
                check_error("sum of squares", fabs(sums[block] - expected) / expected, 1e-12);
            }
            kernels_gradient_store(rig.kernels, gradient, gradient, count, in_place_sums);
            assert_memory_equal(gradient, stored, count * precision_bytes(setup.precision));
            assert_memory_equal(sums, in_place_sums,
                                div_up(count, KERNELS_NORM_BLOCK) * sizeof(double));
            mem_free(gradient);
            mem_free(stored);
        }
        rig_close(&rig);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(limited_test),
        cmocka_unit_test(test_reference_finite_differences),
        cmocka_unit_test(test_model_fp32),
        cmocka_unit_test(test_model_bf16),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_head_once_is_both_passes),
        cmocka_unit_test(test_recomputed_inner_is_the_same),
        cmocka_unit_test(test_nan_reaches_loss_and_gradients),
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_gradient_store),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
