/*
 * Whole runs with moments in bf16 and in 8 bits: what test_train.c says of runs holds of these too.
 * Placement, threads, stops and resumes never change a bit, whatever kind; the drive moves fewer
 * bytes; and a run is not resumed with moments of another kind. Method: as there, logs compared as
 * text.
 */
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define STEPS 12

struct placement {
    bool nvme;
    uint64_t vram_budget;
    int resident;
    enum place_recompute recompute;
    uint64_t threads;
};

static const struct placement placements[] = {
    {false, 0, PLACE_RESIDENT_AUTO, RECOMPUTE_AUTO, 1},
    {false, 64 * MIB, PLACE_RESIDENT_DEVICE, RECOMPUTE_AUTO, 3},
    {true, 0, 0, RECOMPUTE_ALL, 2},
    {true, 0, 1, RECOMPUTE_NONE, 1},
    {true, 0, 3, RECOMPUTE_AUTO, 3},
    {true, 64 * MIB, 2, RECOMPUTE_NONE, 2},
    {false, 64 * MIB, 4, RECOMPUTE_AUTO, 1},
};

static void run_init(struct tiny_run *run, const char *name, enum moments_kind kind,
                     enum precision precision)
{
    char text[64];
    snprintf(text, sizeof(text), "%s-%s-%d", name, moments_name[kind], precision);
    tiny_run_init(run, text);
    run->settings.moments = kind;
    run->settings.precision = precision;
    run->settings.accum = 2;
    run->settings.steps = STEPS;
    run->settings.checkpoint_every = 3;
}

static void apply(struct tiny_run *run, const struct placement *p)
{
    struct train_settings *s = &run->settings;
    s->nvme = train_nvme(p->nvme ? run->nvme_dir : NULL);
    s->vram_budget = p->vram_budget;
    s->resident_planes = p->resident;
    s->recompute = p->recompute;
    s->threads = p->threads;
}

static char *log_of(const struct placement *p, const char *name, enum moments_kind kind,
                    enum precision precision)
{
    struct tiny_run run;
    run_init(&run, name, kind, precision);
    apply(&run, p);
    tiny_train(&run);
    return tiny_log(&run);
}

static void test_placements(void **state)
{
    (void)state;
    for (uint32_t kind = MOMENTS_BF16; kind < MOMENTS_KIND_COUNT; kind++)
        for (int precision = PRECISION_FP32; precision <= PRECISION_BF16; precision++) {
            char *expected = log_of(&placements[0], "place-0", kind, precision);
            for (size_t i = 1; i < ARRAY_COUNT(placements); i++) {
                char name[32];
                snprintf(name, sizeof(name), "place-%zu", i);
                char *log = log_of(&placements[i], name, kind, precision);
                assert_string_equal(log, expected);
                free(log);
            }
            free(expected);
        }
}

/* Two tiles and several chunks to a tensor, without clipping: updates within backward. */
static void test_without_clipping(void **state)
{
    (void)state;
    for (uint32_t kind = MOMENTS_BF16; kind < MOMENTS_KIND_COUNT; kind++) {
        char *expected = NULL;
        for (size_t i = 0; i < 5; i++) {
            struct tiny_run run;
            char name[32];
            snprintf(name, sizeof(name), "clip-%zu", i);
            run_init(&run, name, kind, PRECISION_FP32);
            apply(&run, &placements[i]);
            run.settings.data_dir = tiny_data(20011);
            run.settings.config.layers = 1;
            run.settings.steps = 4;
            run.settings.optim.clip = i ? 0 : 1e30;
            tiny_train(&run);
            char *log = tiny_log(&run);
            if (expected)
                assert_string_equal(log, expected);
            free(expected);
            expected = log;
            scratch_remove(run.run_dir);
            scratch_remove(run.nvme_dir);
        }
        free(expected);
    }
}

/* Stopped at every commit and resumed in another placement, on the drive and off it. */
static void test_resumed_elsewhere(void **state)
{
    (void)state;
    for (uint32_t kind = MOMENTS_BF16; kind < MOMENTS_KIND_COUNT; kind++) {
        char *expected = log_of(&placements[0], "whole", kind, PRECISION_FP32);
        struct tiny_run run;
        run_init(&run, "parts", kind, PRECISION_FP32);
        for (uint64_t k = 0; k < STEPS / 3; k++) {
            apply(&run, &placements[(k * 2 + 1) % ARRAY_COUNT(placements)]);
            run.settings.steps = 3 * k + 3;
            run.settings.resume = k > 0;
            tiny_train(&run);
        }
        char *log = tiny_log(&run);
        assert_string_equal(log, expected);
        free(log);
        free(expected);
    }
}

/* Each kind trains, none as the others do, and about as well. */
static void test_kinds_differ(void **state)
{
    (void)state;
    double loss[MOMENTS_KIND_COUNT], first = 0;
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        struct tiny_run run;
        run_init(&run, "kind", kind, PRECISION_FP32);
        tiny_train(&run);
        first = tiny_number(&run, 1, "loss");
        loss[kind] = tiny_number(&run, STEPS, "loss");
    }
    for (uint32_t kind = 1; kind < MOMENTS_KIND_COUNT; kind++) {
        assert_true(loss[kind] != loss[kind - 1] && loss[kind] != loss[0]);
        assert_true(fabs(loss[kind] - loss[0]) < 0.1 * (first - loss[0]));
    }
}

/* Of the state file, and of what a step moves. */
static void test_drive_moves_less(void **state)
{
    (void)state;
    double file[MOMENTS_KIND_COUNT], written[MOMENTS_KIND_COUNT];
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        struct tiny_run run;
        struct checkpoint_manifest manifest;
        struct err err;
        struct stat status;
        run_init(&run, "space", kind, PRECISION_FP32);
        apply(&run, &placements[2]);
        tiny_train(&run);
        assert_int_equal(checkpoint_load(&manifest, run.run_dir, NULL, &err), 0);
        assert_int_equal(manifest.moments, kind);
        assert_int_equal(stat(manifest.files.path[0], &status), 0);
        file[kind] = (double)status.st_size;
        written[kind] = tiny_number(&run, STEPS - 1, "ssd_write_bytes");
        checkpoint_unload(&manifest);
    }
    assert_true(file[MOMENTS_BF16] * 12 == file[MOMENTS_FP32] * 8);
    assert_true(file[MOMENTS_8BIT] < file[MOMENTS_BF16] * 0.9);
    double saved = written[MOMENTS_FP32] - written[MOMENTS_BF16];
    assert_true(saved == (file[MOMENTS_FP32] - file[MOMENTS_BF16]) / 2);
    assert_true(written[MOMENTS_BF16] - written[MOMENTS_8BIT] ==
                (file[MOMENTS_BF16] - file[MOMENTS_8BIT]) / 2);
}

/* With the option of the commit in the sentence, and the run as it was. */
static void test_another_kind_is_refused(void **state)
{
    (void)state;
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        struct tiny_run run;
        struct err err;
        char option[64];
        run_init(&run, "refused", kind, PRECISION_FP32);
        apply(&run, &placements[3]);
        run.settings.steps = 3;
        tiny_train(&run);
        run.settings.resume = true;
        run.settings.steps = 6;
        run.settings.moments = (kind + 1) % MOMENTS_KIND_COUNT;
        assert_int_equal(train_run(&run.settings, &err), ERR_INPUT);
        snprintf(option, sizeof(option), "--optimizer-state %s", moments_name[kind]);
        if (!strstr(err.message, option))
            fail_msg("%s", err.message);
        run.settings.moments = kind;
        tiny_train(&run);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placements),        cmocka_unit_test(test_without_clipping),
        cmocka_unit_test(test_resumed_elsewhere), cmocka_unit_test(test_kinds_differ),
        cmocka_unit_test(test_drive_moves_less),  cmocka_unit_test(test_another_kind_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
