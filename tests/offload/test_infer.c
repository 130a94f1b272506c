/*
 * Property: a model that is read computes what its weights say (against the float64 reference, at
 * every kind of context length), gives the trainer's own validation loss to the last bit, draws
 * tokens by the rules and reproducibly, and finds the newest commit of a run that goes on.
 * Method: Hugging Face folders with the reference's weights; small runs trained by train_main in
 * child processes.
 */
#include "offload/infer.h"

#include "core/base.h"
#include "core/float.h"
#include "core/json.h"
#include "io/dataset.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/reference.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define POSITIONS 40
/* At 32 channels two tiles of the head: the order of tiles shows in the bits of a loss. */
#define VOCAB_TWO_TILES 40000

static int setup(void **state)
{
    (void)state;
    struct config ignored;
    command_data("data", 1);
    command_model(&ignored, "tiles", 2, 32, POSITIONS, VOCAB_TWO_TILES);
    command_model(&ignored, "small", 1, 32, POSITIONS, COMMAND_VOCAB);
    return 0;
}

static void must_open(struct infer *infer, const char *run, const char *model,
                      const char *precision)
{
    struct err err;
    if (infer_open(infer, run, model, precision, &err) != 0)
        fail_msg("%s", err.message);
}

/* ---- Against the reference ------------------------------------------------------------------- */

static float reference_value(const void *context, const struct tensors *tensors, uint32_t tensor,
                             uint64_t index)
{
    (void)tensors;
    const struct reference *reference = context;
    return (float)reference->weights[tensor][index];
}

static void check_logits(struct infer *infer, const struct reference *reference,
                         const uint32_t *tokens, uint32_t count, double tolerance)
{
    uint32_t vocab = reference->config.vocab, used = MIN(count, POSITIONS);
    float *logits = mem_alloc(vocab, sizeof(*logits));
    double *expected = mem_alloc(vocab, sizeof(*expected)), worst = 0, scale = 0;
    struct err err;
    assert_int_equal(infer_logits(infer, tokens, count, logits, &err), 0);
    reference_logits(reference, tokens + count - used, used, expected);
    for (uint32_t v = 0; v < vocab; v++) {
        worst = fmax(worst, fabs(logits[v] - expected[v]));
        scale = fmax(scale, fabs(expected[v]));
    }
    if (!(worst <= tolerance * scale))
        fail_msg("%u tokens: off by %g of %g", count, worst, scale);
    mem_free(expected);
    mem_free(logits);
}

static void check_against_reference(enum precision precision, double tolerance)
{
    struct config config;
    struct tensors tensors;
    struct reference reference;
    struct infer infer;
    command_model(&config, "reference", 3, 64, POSITIONS, 333);
    tensors_init(&tensors, &config);
    reference_init(&reference, &config, &tensors);
    reference_fill(&reference, 5, precision);
    command_folder("reference", &config, "data", reference_value, &reference);
    must_open(&infer, NULL, scratch_path("reference"),
              precision == PRECISION_BF16 ? "bf16" : "fp32");
    uint32_t tokens[2 * POSITIONS];
    for (uint32_t i = 0; i < ARRAY_COUNT(tokens); i++)
        tokens[i] = (i * 97 + 5) % config.vocab;
    /* One token; both kinds of length met exactly and exceeded by one; all positions; a text that
     * is longer, whose beginning is forgotten; and a short one again. */
    static const uint32_t counts[] = {1, 16, 17, 24, 25, 33, POSITIONS, POSITIONS + 1, 79, 2};
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++)
        check_logits(&infer, &reference, tokens, counts[i], tolerance);
    infer_close(&infer);
    reference_deinit(&reference);
    tensors_deinit(&tensors);
}

static void test_logits_fp32(void **state)
{
    (void)state;
    check_against_reference(PRECISION_FP32, 1e-5);
}

static void test_logits_bf16(void **state)
{
    (void)state;
    check_against_reference(PRECISION_BF16, 3e-2);
}

/* ---- The trainer's loss ---------------------------------------------------------------------- */

/* The last val_loss in a run's metrics, as it stands there. */
static void read_val_loss(const char *run, char text[64])
{
    char name[128];
    snprintf(name, sizeof(name), "%s/metrics.jsonl", run);
    char *metrics = scratch_read(scratch_path(name)), *found = NULL;
    for (char *at = metrics; (at = strstr(at, "\"val_loss\": ")); at++)
        found = at;
    assert_non_null(found);
    assert_int_equal(sscanf(found, "\"val_loss\": %63[^,}]", text), 1);
    free(metrics);
}

static void check_val_loss(const char *precision, uint32_t accum)
{
    char line[512], trained[64], evaluated[64], run[64];
    struct infer infer;
    struct dataset dataset;
    struct err err;
    snprintf(run, sizeof(run), "run-%s-%u", precision, accum);
    snprintf(line, sizeof(line),
             "train --model @/tiles.json --data @/data --out @/%s --nvme @/nvme --seq 16 --batch 3 "
             "--accum %u --steps 2 --lr 1e-2 --warmup 0 --eval-every 2 --precision %s",
             run, accum, precision);
    command_must(train_main, line);
    read_val_loss(run, trained);
    must_open(&infer, scratch_path(run), NULL, NULL);
    assert_int_equal(infer.step, 2);
    assert_true(infer.model.layout.tile_count >= 2);
    assert_int_equal(infer.model.accum, accum);
    assert_int_equal(dataset_open(&dataset, scratch_path("data"), &err), 0);
    struct infer_evaluation evaluation = {
        .shard = &dataset.val,
        .seq = infer.model.seq,
        .batch = infer.model.batch,
        .accum = infer.model.accum,
        .steps = 4,
    };
    if (accum == 1)
        evaluation.steps = 8;
    assert_int_equal(infer_evaluate(&infer, &evaluation, &err), 0);
    assert_int_equal(evaluation.token_count, evaluation.steps * accum * 3 * 16);
    snprintf(evaluated, sizeof(evaluated), "%.9g", evaluation.loss);
    assert_string_equal(evaluated, trained);
    dataset_close(&dataset);
    infer_close(&infer);
}

static void test_val_loss_is_trainers(void **state)
{
    (void)state;
    check_val_loss("fp32", 1);
    check_val_loss("bf16", 1);
}

/* 700 tokens are 43 windows of 16: with 12 to a step the trainer makes 4 steps of them, the last of
 * which begins again; asked for none, so does infer_evaluate. */
static void test_val_loss_accumulated(void **state)
{
    (void)state;
    check_val_loss("fp32", 4);
    struct infer infer;
    struct dataset dataset;
    struct err err;
    must_open(&infer, scratch_path("run-fp32-4"), NULL, NULL);
    assert_int_equal(dataset_open(&dataset, scratch_path("data"), &err), 0);
    struct infer_evaluation all = {.shard = &dataset.val, .seq = 16, .batch = 3, .accum = 4};
    assert_int_equal(infer_evaluate(&infer, &all, &err), 0);
    assert_int_equal(all.steps, 4);
    struct infer_evaluation bad = {
        .shard = &dataset.val, .seq = POSITIONS + 1, .batch = 1, .accum = 1};
    assert_int_equal(infer_evaluate(&infer, &bad, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "--seq"));
    bad.seq = 16;
    bad.batch = 1u << 30;
    assert_int_equal(infer_evaluate(&infer, &bad, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "--batch"));
    dataset_close(&dataset);
    infer_close(&infer);
}

/* ---- Drawing --------------------------------------------------------------------------------- */

static void test_draw_greedy(void **state)
{
    (void)state;
    const float logits[] = {1, 3, -2, 3, 0};
    struct infer_candidate room[5];
    struct infer_sampling sampling = {.temperature = 0, .seed = 1};
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(infer_draw(&sampling, logits, 5, i, room), 1);
    /* So cold that every other share vanishes, and with the greatest floats: no overflow. */
    const float far[] = {-3e38f, 3e38f, 0};
    sampling.temperature = 1e-30;
    for (uint64_t i = 0; i < 20; i++)
        assert_int_equal(infer_draw(&sampling, far, 3, i, room), 1);
}

static void test_draw_shares(void **state)
{
    (void)state;
    enum { DRAWS = 20000 };
    const float logits[] = {0, 1, 2, -1};
    struct infer_candidate room[4];
    uint32_t counts[4] = {0};
    struct infer_sampling sampling = {.temperature = 0.5, .seed = 9};
    for (uint64_t i = 0; i < DRAWS; i++)
        counts[infer_draw(&sampling, logits, 4, i, room)]++;
    double sum = 0;
    for (uint32_t v = 0; v < 4; v++)
        sum += exp(logits[v] / 0.5);
    /* Five standard deviations of a binomial count; the draws are fixed by the seed. */
    for (uint32_t v = 0; v < 4; v++) {
        double share = exp(logits[v] / 0.5) / sum;
        assert_true(fabs(counts[v] - DRAWS * share) < 5 * sqrt(DRAWS * share * (1 - share)));
    }
}

static void test_draw_top_k(void **state)
{
    (void)state;
    const float logits[] = {5, 6, 6, 6, 4, 5.5f};
    struct infer_candidate room[6];
    struct infer_sampling sampling = {.temperature = 100, .top_k = 2, .seed = 3};
    bool seen[6] = {false};
    for (uint64_t i = 0; i < 200; i++)
        seen[infer_draw(&sampling, logits, 6, i, room)] = true;
    /* Of three that are alike the two lower ones. */
    assert_true(seen[1] && seen[2]);
    assert_false(seen[0] || seen[3] || seen[4] || seen[5]);
    sampling.top_k = 6;
    for (uint64_t i = 0; i < 200; i++)
        seen[infer_draw(&sampling, logits, 6, i, room)] = true;
    assert_true(seen[0] && seen[3] && seen[4] && seen[5]);
}

/* ---- A run that goes on ---------------------------------------------------------------------- */

#define TRAIN_ON                                                                                   \
    "train --model @/small.json --data @/data --out @/going --nvme @/nvme --seq 16 --batch 1 "     \
    "--checkpoint-every 1 --lr-steps 9 --precision fp32 "

struct going {
    uint32_t calls, chunk_count;
    uint64_t steps[2];
};

/* The first time, the trainer overwrites what the reader has just begun to read. */
static int read_while_training(void *context, struct checkpoint_reader *reader, struct err *err)
{
    struct going *going = context;
    assert_in_range(going->calls, 0, 1);
    going->steps[going->calls++] = reader->manifest.step;
    if (going->calls == 1)
        command_must(train_main, TRAIN_ON "--resume --steps 5");
    void *plane = mem_alloc(reader->layout->chunk_count_max, 2);
    int result = 0;
    for (uint32_t c = 0; c < reader->layout->chunk_count && result == 0; c++)
        result = checkpoint_read(reader, c, PLANE_HI, 1, plane, err);
    mem_free(plane);
    return result;
}

static void test_newer_commit(void **state)
{
    (void)state;
    struct infer_model model;
    struct going going = {0};
    struct err err;
    command_must(train_main, TRAIN_ON "--steps 2");
    assert_int_equal(infer_model_open(&model, scratch_path("going"), NULL, &err), 0);
    assert_int_equal(infer_read_commit(&model, read_while_training, &going, &err), 0);
    assert_int_equal(going.calls, 2);
    assert_int_equal(going.steps[0], 2);
    assert_int_equal(going.steps[1], 5);
    infer_model_close(&model);
}

static int always_replaced(void *context, struct checkpoint_reader *reader, struct err *err)
{
    (void)reader;
    (void)err;
    ++*(uint32_t *)context;
    return 1;
}

static void test_tries_are_bounded(void **state)
{
    (void)state;
    struct infer_model model;
    struct err err;
    uint32_t calls = 0;
    assert_int_equal(infer_model_open(&model, scratch_path("going"), NULL, &err), 0);
    assert_int_equal(infer_read_commit(&model, always_replaced, &calls, &err), ERR_INPUT);
    assert_int_equal(calls, INFER_TRIES_MAX);
    assert_non_null(strstr(err.message, scratch_path("going")));
    infer_model_close(&model);
}

/* ---- What is no model ------------------------------------------------------------------------ */

static void refuse(const char *run, const char *model, const char *what)
{
    struct infer infer;
    struct err err = {0};
    int result = infer_open(&infer, run, model, NULL, &err);
    if (result >= 0 || !strstr(err.message, what))
        fail_msg("result %d, and '%s' does not say '%s'", result, err.message, what);
    infer_close(&infer); /* closed already: legal */
}

static float broken_value(const void *context, const struct tensors *tensors, uint32_t tensor,
                          uint64_t index)
{
    (void)tensors;
    return *(const uint32_t *)context == tensor && index == 7 ? NAN : 0.1f;
}

static void test_refusals(void **state)
{
    (void)state;
    struct config config;
    uint32_t nan_at = 5;
    refuse(scratch_path("none"), NULL, "none");
    refuse(NULL, scratch_path("none"), "none");
    scratch_write("garbage/config.json", "\xff\xfe not json");
    refuse(scratch_path("garbage"), NULL, "garbage/config.json");
    refuse(NULL, scratch_path("garbage"), "garbage/config.json");
    scratch_write("list/config.json", "[1, 2, {\"model\": 3}]");
    refuse(scratch_path("list"), NULL, "list/config.json");
    refuse(NULL, scratch_path("list"), "list/config.json");
    refuse(scratch_path("small.json"), NULL, "no run");
    refuse(NULL, scratch_path("going"), "--run");

    command_model(&config, "nan", 1, 32, POSITIONS, COMMAND_VOCAB);
    command_folder("nan", &config, "data", broken_value, &nan_at);
    refuse(NULL, scratch_path("nan"), "attn.c_attn.bias");
    refuse(scratch_path("nan"), NULL, "--model");
    unlink(scratch_path("nan/model.safetensors"));
    refuse(NULL, scratch_path("nan"), "nan");
    unlink(scratch_path("nan/tokenizer.json"));
    refuse(NULL, scratch_path("nan"), "tokenizer");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_val_loss_is_trainers), cmocka_unit_test(test_val_loss_accumulated),
        cmocka_unit_test(test_newer_commit),         cmocka_unit_test(test_tries_are_bounded),
        cmocka_unit_test(test_logits_fp32),          cmocka_unit_test(test_logits_bf16),
        cmocka_unit_test(test_draw_greedy),          cmocka_unit_test(test_draw_shares),
        cmocka_unit_test(test_draw_top_k),           cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
