/*
 * Property: a run on the CUDA device has the CPU's losses within 1e-4 over 20 steps; placements,
 * from all on the card to nothing that could be elsewhere, give the same bits, and so do the orders
 * in which its streams run; a call of CUDA that fails ends the run with the call's name and the
 * last commit intact. Method: whole tiny runs with offload/gpu.c over the emulated card; 100 seeds
 * of its scheduler over the placements, of a still smaller model.
 */
#include "offload/gpu.h"
#include "tests/cuda/emulation/emulation.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* The watched flavour takes its time; losses are compared in the other one. */
#define STEPS       (emulation_is_checked ? 3u : 20u)
#define SHORT_STEPS 3u
/* Of the scheduler of streams; on a card, which has but one, runs that repeat. */
#define SEEDS (emulation_is_here ? 100u : 8u)

extern const struct gpu_plugin spillway_gpu_plugin;

enum budgets { GIVEN, LEAST, PART }; /* PART: tiny_train_part */

struct place_case {
    const char *name;
    bool nvme;
    int resident;
    enum place_recompute recompute;
    enum budgets budgets;
    enum moments_kind moments;
    bool unclipped;
    enum place_update update;
};
static const struct place_case cases[] = {
    {"all", false, PLACE_RESIDENT_AUTO, RECOMPUTE_AUTO, GIVEN, 0, false, UPDATE_AUTO},
    {"recompute", false, PLACE_RESIDENT_AUTO, RECOMPUTE_ALL, GIVEN, 0, false, UPDATE_AUTO},
    {"drive", true, 0, RECOMPUTE_NONE, LEAST, 0, false, UPDATE_AUTO},
    {"ram", false, PLANE_COUNT, RECOMPUTE_AUTO, GIVEN, 0, false, UPDATE_AUTO},
    {"part", false, PLACE_RESIDENT_DEVICE, RECOMPUTE_AUTO, PART, 0, false, UPDATE_AUTO},
    {"drive-hi", true, 1, RECOMPUTE_ALL, GIVEN, 0, false, UPDATE_AUTO},
    {"streamed", false, PLANE_COUNT, RECOMPUTE_AUTO, GIVEN, 0, false, UPDATE_DEVICE},
    {"drive-streamed", true, PLANE_COUNT, RECOMPUTE_ALL, LEAST, 0, false, UPDATE_DEVICE},
};

static void init_run(struct tiny_run *run, const char *name, enum precision precision)
{
    tiny_run_init(run, name);
    run->settings.optim.lr = 1e-3;
    run->settings.optim.min_lr = 1e-4;
    run->settings.precision = precision;
    run->settings.accum = 2;
    run->settings.steps = STEPS;
    run->settings.checkpoint_every = SHORT_STEPS;
}

static void init_gpu_run(struct tiny_run *run, const char *name, enum precision precision)
{
    init_run(run, name, precision);
    run->settings.cuda = true;
    run->settings.vram_budget = GIB;
    /* With what a driver takes of the process. */
    run->settings.ram_budget = 4 * GIB;
}

static void check_losses(const struct tiny_run *gpu, const struct tiny_run *cpu, double tolerance)
{
    for (uint64_t step = 1; step <= STEPS; step++) {
        double a = tiny_number(gpu, step, "loss"), b = tiny_number(cpu, step, "loss");
        if (!(fabs(a - b) <= tolerance))
            fail_msg("step %u: loss %.7f on the card, %.7f on the CPU", (unsigned)step, a, b);
    }
}

static void train(struct tiny_run *run, enum budgets budgets)
{
    if (budgets == LEAST)
        tiny_train_least(run);
    else if (budgets == PART)
        tiny_train_part(run);
    else
        tiny_train(run);
    assert_string_equal(emulation_first_fault(), "");
}

static void check_against_cpu(enum precision precision, double tolerance)
{
    struct tiny_run cpu, gpu;
    char name[64];
    snprintf(name, sizeof(name), "cpu-%d", precision);
    init_run(&cpu, name, precision);
    tiny_train(&cpu);
    snprintf(name, sizeof(name), "gpu-%d", precision);
    emulation_reset(1);
    init_gpu_run(&gpu, name, precision);
    gpu.settings.replay = true; /* of times by the card's clock */
    train(&gpu, GIVEN);
    check_losses(&gpu, &cpu, tolerance);
    assert_true(tiny_number(&gpu, STEPS, "replayed_s") > 0);
}

static void test_losses_are_those_of_the_cpu(void **state)
{
    (void)state;
    check_against_cpu(PRECISION_FP32, 1e-4);
    check_against_cpu(PRECISION_BF16, 1e-2);
}

static char *placed_log(struct tiny_run *run, const struct place_case *c, uint64_t seed)
{
    emulation_reset(seed);
    run->settings.nvme = train_nvme(c->nvme ? run->nvme_dir : NULL);
    run->settings.resident_planes = c->resident;
    run->settings.recompute = c->recompute;
    run->settings.moments = c->moments;
    run->settings.update = c->update;
    if (c->unclipped)
        run->settings.optim.clip = 0;
    train(run, c->budgets);
    char *log = tiny_log(run);
    int share = tiny_device_share(run);
    if (c->budgets == PART)
        assert_true(share > 0); /* of the smallest model all fits */
    else
        assert_int_equal(share, c->resident < 0 ? 100 : 0);
    scratch_remove(run->run_dir);
    scratch_remove(run->nvme_dir);
    return log;
}

static void init_placed(struct tiny_run *run, const struct place_case *c, enum precision precision)
{
    char name[64];
    snprintf(name, sizeof(name), "%s-%d", c->name, precision);
    init_gpu_run(run, name, precision);
    run->settings.steps = SHORT_STEPS;
}

/* The smallest that has a block to fetch while another one computes. */
static void init_smallest(struct tiny_run *run, const struct place_case *c,
                          enum precision precision)
{
    init_placed(run, c, precision);
    struct train_settings *s = &run->settings;
    s->data_dir = tiny_data(48);
    s->seq = 8;
    s->batch = 1;
    s->steps = 2;
    s->checkpoint_every = 2;
    s->config.layers = 2;
    s->config.channels = 32;
    s->config.heads = 2;
    config_derive(&s->config);
}

static void test_placements_have_the_same_bits(void **state)
{
    (void)state;
    if (emulation_is_checked)
        skip();
    for (enum precision p = PRECISION_FP32; p <= PRECISION_BF16; p++) {
        char *expected = NULL;
        for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
            struct tiny_run run;
            init_placed(&run, &cases[i], p);
            char *log = placed_log(&run, &cases[i], i + 1);
            if (!expected)
                expected = strdup(log);
            assert_string_equal(log, expected);
            free(log);
        }
        free(expected);
    }
}

static void test_seeds_have_the_same_bits(void **state)
{
    (void)state;
    char *expected[2] = {NULL, NULL};
    if (emulation_is_checked)
        skip();
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        const struct place_case *c = &cases[seed / 2 % ARRAY_COUNT(cases)];
        enum precision p = seed % 2 ? PRECISION_BF16 : PRECISION_FP32;
        struct tiny_run run;
        init_smallest(&run, c, p);
        char *log = placed_log(&run, c, seed);
        if (!expected[p])
            expected[p] = strdup(log);
        assert_string_equal(log, expected[p]);
        free(log);
    }
    free(expected[0]);
    free(expected[1]);
}

/* State of every kind on the card, and in RAM, where the CPU updates it with the same bits, and the
 * card does as it passes through. */
static void test_updates_have_the_bits_of_the_cpu(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < MOMENTS_KIND_COUNT; kind++)
        for (int unclipped = 0; unclipped < (emulation_is_checked ? 1 : 2); unclipped++) {
            struct place_case c = {
                .name = "moments", .moments = (enum moments_kind)kind, .unclipped = unclipped};
            enum precision precision = kind == MOMENTS_BF16 ? PRECISION_FP32 : PRECISION_BF16;
            char *expected = NULL;
            for (uint64_t i = 0; i < (unclipped ? 2u : 3u); i++) {
                struct tiny_run run;
                c.resident = i == 0 ? PLACE_RESIDENT_DEVICE : PLANE_COUNT;
                c.update = i == 2 ? UPDATE_DEVICE : UPDATE_CPU;
                init_placed(&run, &c, precision);
                char *log = placed_log(&run, &c, i + 1);
                if (!expected)
                    expected = strdup(log);
                assert_string_equal(log, expected);
                free(log);
            }
            free(expected);
        }
}

/* ---- Failing calls ----------------------------------------------------------------------------
 */

struct failing {
    struct tiny_run run;
    uint32_t call;
};

static void train_and_fail(void *context)
{
    struct failing *failing = context;
    struct err err;
    emulation_reset(failing->call);
    emulation_set_quiet(true);
    emulation_fail_call(failing->call);
    if (train_run(&failing->run.settings, &err) != 0)
        fatal("%s", err.message);
    _exit(0);
}

/* Every call of the opening and of some steps, in strides; each ends with status 1 and a sentence
 * that names CUDA's call, or was one whose failing is no news. */
static void test_failing_calls(void **state)
{
    (void)state;
    if (emulation_is_checked || !emulation_is_here)
        skip();
    struct failing failing;
    uint32_t failed = 0;
    init_gpu_run(&failing.run, "failing", PRECISION_FP32);
    failing.run.settings.steps = 2;
    failing.run.settings.checkpoint_every = 1;
    for (uint32_t call = 1;; call += call < 60 ? 1 : 37) {
        char *output;
        failing.call = call;
        int status = tiny_fork(train_and_fail, &failing, &output);
        assert_true(WIFEXITED(status));
        bool over = WEXITSTATUS(status) == 0,
             named = strstr(output, "the GPU failed in") || strcasestr(output, "cublasLt") ||
                     strstr(output, "--vram-budget") || strstr(output, "no CUDA device");
        if (!over && (WEXITSTATUS(status) != 1 || !named))
            fail_msg("call %u: status %d: %s", call, WEXITSTATUS(status), output);
        free(output);
        scratch_remove(failing.run.run_dir);
        if (over)
            break;
        failed++;
    }
    assert_true(failed > 60);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_losses_are_those_of_the_cpu),
        cmocka_unit_test(test_placements_have_the_same_bits),
        cmocka_unit_test(test_seeds_have_the_same_bits),
        cmocka_unit_test(test_updates_have_the_bits_of_the_cpu),
        cmocka_unit_test(test_failing_calls),
    };
    gpu_set_plugin(&spillway_gpu_plugin);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
