/*
 * The CUDA device against the float64 reference: a whole small model is put together from its
 * operations, with the head in several tiles and pieces, and its losses and every tensor's gradient
 * are compared, over two accumulated micro-batches. Then what a trainer relies on: the same bits
 * under every order that the emulation draws, recomputation, a failure of any call that is told and
 * sticks, and shapes that are refused.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/cuda/kernels_cuda.h"
#include "tests/cuda/gpu.h"
#include "tests/shared/reference.h"
#include <math.h>
#include <string.h>

/* As tests/model/test_kernels.c: some sums over a whole small model are of few terms. */
#define MODEL_BF16_TOLERANCE 2e-2

struct setup {
    uint32_t layers, channels, heads, vocab, batch, seq, tile_rows;
    bool bf16;
};

#define LAYERS_MAX 2

struct rig {
    struct setup setup;
    struct config config;
    struct tensors tensors;
    struct kernels_shape shape;
    struct kernels_sizes sizes;
    struct kernels_cuda *kernels;
    struct reference reference;
    uint32_t rows;
    struct gpu_array weights[LAYERS_MAX + 2], gradients[LAYERS_MAX + 2];
    struct gpu_array x[LAYERS_MAX + 1], inner[LAYERS_MAX];
    bool at_once; /* the head's passes in one call */
    struct gpu_array once_scratch;
    struct gpu_array y, scratch, dx, dy, statistics, running, losses, tokens, targets, workspace;
};

/* Memory of so many bytes, which nobody has written. */
static struct gpu_array memory_of(uint64_t bytes)
{
    return gpu_unwritten(GPU_FLOAT, div_up(bytes, sizeof(float)));
}

static void rig_take(struct rig *rig)
{
    const struct setup *s = &rig->setup;
    uint64_t rows = rig->rows, count = rows * s->channels;
    for (uint32_t g = 0; g < s->layers + 2; g++) {
        uint64_t parameters = rig->tensors.groups[g].parameter_count;
        rig->weights[g] = gpu_unwritten(gpu_element(s->bf16), parameters);
        rig->gradients[g] = gpu_unwritten(GPU_FLOAT, parameters);
    }
    for (uint32_t l = 0; l <= s->layers; l++)
        rig->x[l] = gpu_unwritten(GPU_FLOAT, count);
    for (uint32_t l = 0; l < s->layers; l++)
        rig->inner[l] = memory_of(rig->sizes.inner_bytes);
    rig->y = gpu_unwritten(gpu_element(s->bf16), count);
    rig->scratch = memory_of(rig->sizes.scratch_bytes);
    rig->once_scratch = memory_of(rig->sizes.head_once_bytes);
    rig->dx = gpu_unwritten(GPU_FLOAT, count);
    rig->dy = gpu_unwritten(GPU_FLOAT, count);
    rig->statistics = gpu_unwritten(GPU_FLOAT, 2 * rows);
    rig->running = gpu_unwritten(GPU_FLOAT, 3 * rows);
    rig->losses = gpu_unwritten(GPU_FLOAT, rows);
    rig->tokens = gpu_unwritten(GPU_U32, rows);
    rig->targets = gpu_unwritten(GPU_U32, rows);
}

static int rig_open_kernels(struct rig *rig, struct err *err)
{
    return kernels_cuda_open(&rig->kernels,
                             &(struct kernels_cuda_open){.shape = rig->shape,
                                                         .tensors = &rig->tensors,
                                                         .stream = gpu_stream,
                                                         .workspace = rig->workspace.device},
                             err);
}

static void rig_describe(struct rig *rig, const struct setup *setup)
{
    struct err err;
    *rig = (struct rig){.setup = *setup, .rows = setup->batch * setup->seq};
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
    rig->shape = (struct kernels_shape){.precision = setup->bf16 ? PRECISION_BF16 : PRECISION_FP32,
                                        .batch = setup->batch,
                                        .seq = setup->seq,
                                        .channels = setup->channels,
                                        .heads = setup->heads,
                                        .vocab = setup->vocab,
                                        .tile_rows_max = setup->tile_rows,
                                        .norm_epsilon = 1e-5f};
    kernels_cuda_sizes(&rig->shape, &rig->sizes);
}

static void rig_load(struct rig *rig)
{
    for (uint32_t i = 0; i < rig->tensors.count; i++) {
        const struct tensor *tensor = &rig->tensors.list[i];
        double *to = rig->weights[tensor->group].host + tensor->offset;
        memcpy(to, rig->reference.weights[i], tensor->count * sizeof(double));
    }
    for (uint32_t g = 0; g < rig->tensors.group_count; g++)
        gpu_write(&rig->weights[g]);
}

static void rig_open(struct rig *rig, const struct setup *setup)
{
    struct err err;
    rig_describe(rig, setup);
    reference_init(&rig->reference, &rig->config, &rig->tensors);
    reference_fill(&rig->reference, 11, rig->shape.precision);
    rig_take(rig);
    rig->workspace = memory_of(kernels_cuda_workspace_bytes());
    rig_load(rig);
    assert_int_equal(rig_open_kernels(rig, &err), 0);
}

static void rig_close(struct rig *rig)
{
    kernels_cuda_close(rig->kernels);
    reference_deinit(&rig->reference);
    tensors_deinit(&rig->tensors);
    gpu_free_all();
}

/* Few different tokens, so that the embedding's rows meet several times. */
static void rig_draw(struct rig *rig, uint64_t seed)
{
    for (uint32_t r = 0; r < rig->rows; r++) {
        rig->tokens.host[r] = (double)rng_below(seed, 1, r, MIN(rig->setup.vocab, 40));
        rig->targets.host[r] = (double)rng_below(seed, 2, r, rig->setup.vocab);
    }
    rig->targets.host[rig->rows - 1] = rig->setup.vocab - 1;
    gpu_write(&rig->tokens);
    gpu_write(&rig->targets);
}

/* -- Running: 0, or the first code that an operation returned -- */

static const void *tile_of(const struct rig *rig, uint32_t first, uint32_t *count)
{
    *count = MIN(rig->setup.tile_rows, rig->setup.vocab - first);
    return (const char *)rig->weights[0].device +
           (size_t)first * rig->setup.channels * precision_bytes(rig->shape.precision);
}

static int forward_embedding(struct rig *rig, struct err *err)
{
    uint32_t count;
    int rc = 0;
    for (uint32_t first = 0; first < rig->setup.vocab && !rc; first += count) {
        const void *tile = tile_of(rig, first, &count);
        rc = kernels_cuda_embed_forward(rig->kernels,
                                        &(struct kernels_embed_forward){tile, first, count,
                                                                        rig->tokens.device,
                                                                        rig->x[0].device},
                                        err);
    }
    const char *wpe = (const char *)rig->weights[0].device +
                      rig->tensors.list[1].offset * precision_bytes(rig->shape.precision);
    if (!rc)
        rc = kernels_cuda_position_forward(
            rig->kernels, &(struct kernels_position_forward){wpe, rig->x[0].device}, err);
    return rc;
}

static int forward_head(struct rig *rig, struct err *err)
{
    uint32_t count, layers = rig->setup.layers;
    int rc = kernels_cuda_norm_forward(
        rig->kernels,
        &(struct kernels_norm_forward){rig->weights[layers + 1].device, rig->x[layers].device,
                                       rig->y.device, rig->statistics.device},
        err);
    uint32_t tiles = (uint32_t)div_up(rig->setup.vocab, rig->setup.tile_rows);
    for (uint32_t t = tiles; t-- > 0 && !rc;) {
        uint32_t first = t * rig->setup.tile_rows;
        const void *tile = tile_of(rig, first, &count);
        rc =
            kernels_cuda_head_forward(rig->kernels,
                                      &(struct kernels_head_forward){
                                          tile, first, count, rig->y.device, rig->targets.device,
                                          rig->running.device, t + 1 == tiles, rig->scratch.device},
                                      err);
    }
    if (!rc)
        rc = kernels_cuda_head_loss(
            rig->kernels, &(struct kernels_head_loss){rig->running.device, rig->losses.device},
            err);
    return rc;
}

static int block_forward(struct rig *rig, uint32_t layer, bool recompute, struct err *err)
{
    return kernels_cuda_block_forward(
        rig->kernels,
        &(struct kernels_block_forward){.weights = rig->weights[layer + 1].device,
                                        .x_in = rig->x[layer].device,
                                        .x_out = recompute ? NULL : rig->x[layer + 1].device,
                                        .inner = rig->inner[layer].device,
                                        .scratch = rig->scratch.device},
        err);
}

static int rig_forward(struct rig *rig, struct err *err)
{
    int rc = forward_embedding(rig, err);
    for (uint32_t l = 0; l < rig->setup.layers && !rc; l++)
        rc = block_forward(rig, l, false, err);
    return rc ? rc : forward_head(rig, err);
}

static int head_once(struct rig *rig, float loss_scale, bool accumulate, struct err *err)
{
    return kernels_cuda_head_once(
        rig->kernels,
        &(struct kernels_head_once){.tiles = rig->weights[0].device,
                                    .tile_stride =
                                        (uint64_t)rig->setup.tile_rows * rig->setup.channels,
                                    .y = rig->y.device,
                                    .targets = rig->targets.device,
                                    .running = rig->running.device,
                                    .losses = rig->losses.device,
                                    .loss_scale = loss_scale,
                                    .dy = rig->dy.device,
                                    .gradients = rig->gradients[0].device,
                                    .accumulate = accumulate,
                                    .scratch = rig->once_scratch.device},
        err);
}

static int backward_head(struct rig *rig, float loss_scale, bool accumulate, struct err *err)
{
    uint32_t count, layers = rig->setup.layers;
    int rc = rig->at_once ? head_once(rig, loss_scale, accumulate, err) : 0;
    for (uint32_t first = 0; first < rig->setup.vocab && !rc && !rig->at_once; first += count) {
        const void *tile = tile_of(rig, first, &count);
        float *gradient = (float *)rig->gradients[0].device + (size_t)first * rig->setup.channels;
        rc = kernels_cuda_head_backward(
            rig->kernels,
            &(struct kernels_head_backward){tile, first, count, rig->y.device, rig->targets.device,
                                            rig->running.device, loss_scale, rig->dy.device,
                                            first == 0, gradient, accumulate, rig->scratch.device},
            err);
    }
    if (!rc)
        rc = kernels_cuda_norm_backward(
            rig->kernels,
            &(struct kernels_norm_backward){rig->weights[layers + 1].device, rig->x[layers].device,
                                            rig->statistics.device, rig->dy.device, rig->dx.device,
                                            rig->gradients[layers + 1].device, accumulate,
                                            rig->scratch.device},
            err);
    return rc;
}

static int backward_embedding(struct rig *rig, bool accumulate, struct err *err)
{
    uint32_t count;
    int rc = kernels_cuda_position_backward(
        rig->kernels,
        &(struct kernels_position_backward){
            rig->dx.device, (float *)rig->gradients[0].device + rig->tensors.list[1].offset,
            rig->config.positions, accumulate},
        err);
    for (uint32_t first = 0; first < rig->setup.vocab && !rc; first += count) {
        tile_of(rig, first, &count);
        float *gradient = (float *)rig->gradients[0].device + (size_t)first * rig->setup.channels;
        rc = kernels_cuda_embed_backward(rig->kernels,
                                         &(struct kernels_embed_backward){first, count,
                                                                          rig->tokens.device,
                                                                          rig->dx.device, gradient},
                                         err);
    }
    return rc;
}

static int rig_backward(struct rig *rig, float loss_scale, bool accumulate, struct err *err)
{
    int rc = backward_head(rig, loss_scale, accumulate, err);
    for (uint32_t l = rig->setup.layers; l-- > 0 && !rc;)
        rc = kernels_cuda_block_backward(
            rig->kernels,
            &(struct kernels_block_backward){
                rig->weights[l + 1].device, rig->x[l].device, rig->inner[l].device, rig->dx.device,
                rig->gradients[l + 1].device, accumulate, rig->scratch.device},
            err);
    return rc ? rc : backward_embedding(rig, accumulate, err);
}

/* -- Against the reference -- */

static void check_gradients(struct rig *rig, double tolerance)
{
    for (uint32_t i = 0; i < rig->tensors.count; i++) {
        const struct tensor *tensor = &rig->tensors.list[i];
        const struct gpu_array *group = &rig->gradients[tensor->group];
        struct gpu_array part = {.type = GPU_FLOAT,
                                 .count = tensor->count,
                                 .host = gpu_doubles(tensor->count),
                                 .device = (float *)group->device + tensor->offset};
        gpu_check(tensor->name, &part, rig->reference.gradients[i], tolerance);
    }
}

static void check_padding(struct rig *rig)
{
    for (uint32_t g = 1; g < rig->tensors.group_count; g++) {
        const struct tensor_group *group = &rig->tensors.groups[g];
        uint64_t at = 0;
        gpu_read(&rig->gradients[g]);
        for (uint32_t i = 0; i < group->tensor_count; i++) {
            const struct tensor *tensor = &rig->tensors.list[group->first_tensor + i];
            for (; at < tensor->offset; at++)
                assert_true(rig->gradients[g].host[at] == 0.0);
            at += tensor->count;
        }
    }
}

static void check_model(const struct setup *setup)
{
    double tolerance = setup->bf16 ? MODEL_BF16_TOLERANCE : FP32_TOLERANCE;
    struct rig rig;
    struct err err = {0};
    rig_open(&rig, setup);
    float scale = 1.0f / (float)(2 * rig.rows);
    double *losses = gpu_doubles(rig.rows);
    for (uint32_t micro = 0; micro < 2; micro++) {
        rig_draw(&rig, 5 + micro);
        uint32_t tokens[4096], targets[4096];
        for (uint32_t r = 0; r < rig.rows; r++) {
            tokens[r] = (uint32_t)rig.tokens.host[r];
            targets[r] = (uint32_t)rig.targets.host[r];
        }
        assert_int_equal(rig_forward(&rig, &err), 0);
        reference_loss(&rig.reference, tokens, targets, setup->batch, setup->seq, losses);
        gpu_check("losses", &rig.losses, losses, gpu_tolerance(setup->bf16));
        assert_int_equal(rig_backward(&rig, scale, micro > 0, &err), 0);
        reference_backward(&rig.reference, tokens, targets, setup->batch, setup->seq, scale);
        check_gradients(&rig, tolerance);
        check_padding(&rig);
    }
    rig_close(&rig);
}

static const struct setup setups[] = {
    /* The smallest there is; odd lengths and tiles with a rest; heads of 8 channels; several pieces
     * of rows in the head. */
    {1, 32, 1, 5, 1, 1, 5, false},       {2, 64, 2, 131, 3, 7, 50, false},
    {1, 96, 12, 131, 2, 33, 131, false}, {1, 32, 2, 70, 1, 130, 32, false},
    {1, 32, 1, 67, 86, 24, 32, false},
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
        setup.bf16 = true;
        check_model(&setup);
    }
}

/* -- What a trainer relies on -- */

static const struct setup small = {2, 64, 2, 131, 2, 9, 50, true};

static void test_same_bits(void **state)
{
    (void)state;
    struct rig rig;
    struct err err = {0};
    double *first[LAYERS_MAX + 2] = {NULL};
    rig_open(&rig, &small);
    for (uint64_t seed = 0; seed < 5; seed++) {
        emulation_reset(300 + seed);
        rig_draw(&rig, 5);
        assert_int_equal(rig_forward(&rig, &err), 0);
        assert_int_equal(rig_backward(&rig, 0.01f, false, &err), 0);
        for (uint32_t g = 0; g < rig.tensors.group_count; g++) {
            struct gpu_array gradient = rig.gradients[g];
            /* What lies between the embedding's tensors is nobody's. */
            if (g == 0)
                gradient.count = rig.tensors.list[0].count;
            gpu_read(&gradient);
            if (!first[g]) {
                first[g] = gpu_doubles(gradient.count);
                memcpy(first[g], gradient.host, gradient.count * sizeof(double));
            }
            assert_memory_equal(first[g], gradient.host, gradient.count * sizeof(double));
        }
    }
    rig_close(&rig);
}

static void test_recomputed_inner_is_the_same(void **state)
{
    (void)state;
    struct rig rig;
    struct err err = {0};
    rig_open(&rig, &small);
    rig_draw(&rig, 5);
    assert_int_equal(rig_forward(&rig, &err), 0);
    assert_int_equal(cudaStreamSynchronize(gpu_stream), cudaSuccess);
    uint8_t *before = mem_alloc(1, rig.sizes.inner_bytes);
    uint8_t *after = mem_alloc(1, rig.sizes.inner_bytes);
    /* Padding between the arrays is never written: read it around. */
    uint64_t qkv = (uint64_t)rig.rows * 3 * small.channels * sizeof(uint16_t);
    assert_int_equal(cudaMemcpy(before, rig.inner[1].device, qkv, cudaMemcpyDeviceToHost), 0);
    assert_int_equal(block_forward(&rig, 1, true, &err), 0);
    assert_int_equal(cudaStreamSynchronize(gpu_stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(after, rig.inner[1].device, qkv, cudaMemcpyDeviceToHost), 0);
    assert_memory_equal(before, after, qkv);
    mem_free(before);
    mem_free(after);
    rig_close(&rig);
}

/* What came out of a head's two passes or of both in one: losses, dy and the tiles' gradients. */
static void keep_head(struct rig *rig, double *to)
{
    uint64_t tiles = (uint64_t)rig->setup.vocab * rig->setup.channels;
    struct gpu_array gradient = rig->gradients[0];
    gradient.count = tiles;
    struct gpu_array *arrays[] = {&rig->losses, &rig->dy, &gradient};
    for (size_t i = 0; i < ARRAY_COUNT(arrays); i++) {
        gpu_read(arrays[i]);
        memcpy(to, arrays[i]->host, arrays[i]->count * sizeof(double));
        to += arrays[i]->count;
    }
}

static void check_head_once(const struct setup *setup)
{
    struct rig rig;
    struct err err = {0};
    double *found[2];
    uint64_t rows = setup->batch * setup->seq;
    uint64_t words = rows + (rows + setup->vocab) * setup->channels;
    for (unsigned way = 0; way < 2; way++) {
        found[way] = mem_alloc(words, sizeof(double));
        rig_open(&rig, setup);
        rig.at_once = way;
        for (uint32_t micro = 0; micro < 2; micro++) {
            rig_draw(&rig, 5 + micro);
            assert_int_equal(rig_forward(&rig, &err), 0);
            if (way) /* the losses are those of the head at once, too */
                rig.losses = gpu_unwritten(GPU_FLOAT, rows);
            assert_int_equal(backward_head(&rig, 0.01f, micro > 0, &err), 0);
        }
        keep_head(&rig, found[way]);
        rig_close(&rig);
    }
    assert_memory_equal(found[0], found[1], words * sizeof(double));
    mem_free(found[0]);
    mem_free(found[1]);
}

static void test_head_once_is_both_passes(void **state)
{
    (void)state;
    for (unsigned bf16 = 0; bf16 < 2; bf16++)
        for (size_t i = 0; i < ARRAY_COUNT(setups); i++) {
            struct setup setup = setups[i];
            setup.bf16 = bf16;
            check_head_once(&setup);
        }
}

/* Logits of one row, in tiles, against the reference's. */
static void test_logits(void **state)
{
    (void)state;
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        struct setup setup = small;
        struct rig rig;
        struct err err = {0};
        setup.bf16 = bf16;
        setup.batch = 1;
        rig_open(&rig, &setup);
        rig_draw(&rig, 1);
        assert_int_equal(rig_forward(&rig, &err), 0);
        uint32_t tokens[64], count;
        for (uint32_t r = 0; r < rig.rows; r++)
            tokens[r] = (uint32_t)rig.tokens.host[r];
        struct gpu_array logits = gpu_unwritten(GPU_FLOAT, setup.vocab);
        double *expected = gpu_doubles(setup.vocab);
        const char *row = (const char *)rig.y.device + (size_t)(setup.seq - 1) * setup.channels *
                                                           precision_bytes(rig.shape.precision);
        for (uint32_t first = 0; first < setup.vocab; first += count) {
            const void *tile = tile_of(&rig, first, &count);
            assert_int_equal(
                kernels_cuda_logits(
                    rig.kernels,
                    &(struct kernels_logits){tile, count, row, (float *)logits.device + first},
                    &err),
                0);
        }
        reference_logits(&rig.reference, tokens, setup.seq, expected);
        gpu_check("logits", &logits, expected, gpu_tolerance(bf16));
        rig_close(&rig);
    }
}

/* Every call of opening and of a step fails in turn: it is told, and the rest of the step is not
 * tried. */
static void test_every_call_fails_once(void **state)
{
    (void)state;
    if (!emulation_is_here)
        skip();
    struct setup setup = {1, 32, 1, 5, 1, 3, 4, true};
    struct rig rig;
    rig_open(&rig, &setup);
    rig_draw(&rig, 5);
    kernels_cuda_close(rig.kernels);
    rig.kernels = NULL;
    uint32_t failed = 0;
    for (uint32_t n = 1;; n++) {
        struct err err = {0}, again = {0};
        emulation_fail_call(n);
        int rc = rig_open_kernels(&rig, &err);
        bool opened = rc == 0;
        if (!rc)
            rc = rig_forward(&rig, &err);
        if (!rc)
            rc = head_once(&rig, 0.1f, false, &err);
        if (!rc)
            rc = rig_backward(&rig, 0.1f, false, &err);
        emulation_fail_call(0);
        if (opened && rc) {
            assert_int_equal(rig_forward(&rig, &again), rc);
            assert_string_equal(again.message, err.message);
        }
        if (opened)
            kernels_cuda_close(rig.kernels);
        rig.kernels = NULL;
        if (!rc)
            break;
        failed++;
        assert_int_equal(rc, ERR_SYSTEM);
        assert_non_null(strstr(err.message, "cuBLASLt") ? "" : strstr(err.message, "cudaError"));
    }
    /* Opening has some 20 products with some 15 calls each, the step some 60 launches. */
    assert_true(failed > 200);
    cudaGetLastError();
    rig_close(&rig);
}

static void test_refuses_what_no_grid_has(void **state)
{
    (void)state;
    struct rig rig;
    struct err err = {0};
    rig_describe(&rig, &(struct setup){1, 160, 1, 5, 1, 1, 5, true});
    assert_int_equal(rig_open_kernels(&rig, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "heads of 160 channels"));
    tensors_deinit(&rig.tensors);
    rig_describe(&rig, &(struct setup){1, 32, 1, 5, 65536, 1, 5, true});
    assert_int_equal(rig_open_kernels(&rig, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "--batch 65536"));
    tensors_deinit(&rig.tensors);
}

/* The plan's sizes and the device's agree on what is kept; scratch is the device's own. */
static void test_inner_is_as_large_as_on_the_cpu(void **state)
{
    (void)state;
    struct rig rig;
    struct kernels_sizes cpu;
    rig_describe(&rig, &(struct setup){1, 768, 12, 50257, 4, 1024, 8192, true});
    kernels_sizes(&rig.shape, &cpu);
    assert_int_equal(rig.sizes.inner_bytes, cpu.inner_bytes);
    tensors_deinit(&rig.tensors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_model_fp32),
        gpu_unit_test(test_model_bf16),
        gpu_unit_test(test_same_bits),
        gpu_unit_test(test_recomputed_inner_is_the_same),
        gpu_unit_test(test_head_once_is_both_passes),
        gpu_unit_test(test_logits),
        gpu_unit_test(test_every_call_fails_once),
        gpu_unit_test(test_refuses_what_no_grid_has),
        gpu_unit_test(test_inner_is_as_large_as_on_the_cpu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
