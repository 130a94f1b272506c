/*
 * The sanity laws of the search, over machines, models, batches and budgets from too little to
 * plenty:
 * 1. A machine that is better in one thing is never slower: more RAM, a faster drive, a faster
 *    device, more of its memory (to half a percent).
 * 2. Everything twice as fast takes half the time.
 * 3. What is found is at least as good as each of a thousand random placements that fit (to a tenth
 *    of a percent). They are drawn over the knobs themselves, from the poorest to the richest.
 * 4. What is predicted is what the placement does: its time at layer level is predicted_s, its
 *    bytes are those of the plan at chunk level.
 * 5. The same spec gives the same placement, within PLACE_SEARCH_EVALUATIONS_MAX simulations.
 */
#include "core/mem.h"
#include "offload/coarse.h"
#include "offload/place_search.h"
#include "tests/shared/check.h"
#include "tests/shared/choices.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define LADDER         12 /* RAM budgets */
#define STEPS          3  /* of a ladder of anything else */
#define STEP           1.3
#define SLOWER         0.005 /* that a better machine may be */
#define WORSE          0.001 /* that what is found may be than any random choice */
#define RANDOM_CHOICES 1000

static const struct scene {
    const char *model, *machine;
    uint32_t seq, batch, accum;
    double ram_gib[2]; /* the ladder's ends */
    double vram_gib;   /* 0: the machine's */
    enum precision precision;
    bool clip;
} scenes[] = {
    {"gpt2-124m", "cpu", 1024, 4, 2, {1.9, 6}, 0, PRECISION_BF16, true},
    {"gpt2-124m", "cpu", 1024, 1, 8, {1.9, 6}, 1.5, PRECISION_FP32, true},
    {"gpt2-1558m", "cpu", 1024, 4, 1, {4, 40}, 0, PRECISION_BF16, true},
    {"gpt2-1558m", "rtx3060-7950x3d-128", 1024, 8, 1, {6, 40}, 0, PRECISION_BF16, true},
    {"gpt2-1558m", "rtx4090-13900k-128", 512, 2, 1, {6, 40}, 8, PRECISION_FP32, false},
    {"llama-8b", "cpu", 1024, 1, 1, {8, 128}, 0, PRECISION_BF16, true},
    {"llama-8b", "rtx4090-13900k-128", 2048, 8, 1, {12, 128}, 0, PRECISION_BF16, true},
    {"llama-8b", "rtx3060-7950x3d-128", 512, 1, 8, {12, 128}, 0, PRECISION_BF16, true},
    {"qwen-32b", "rtx3060-7950x3d-192", 512, 1, 1, {30, 192}, 0, PRECISION_BF16, true},
    {"llama-70b", "rtx3090-7950x3d-128", 2048, 1, 1, {40, 256}, 0, PRECISION_BF16, true},
};

struct example {
    const struct scene *scene;
    struct tiny_model model;
    struct profile profile;
    struct place_spec spec;
};

static uint64_t gib(double count)
{
    return (uint64_t)(count * (double)GIB);
}

static void example_open(struct example *e, const struct scene *scene)
{
    e->scene = scene;
    choices_model(&e->model, scene->model, 0, 0);
    choices_machine(&e->profile, scene->machine);
    choices_spec(&e->spec, &e->model, &e->profile, scene->seq, scene->batch, scene->accum);
    e->spec.precision = scene->precision;
    e->spec.clip = scene->clip;
    if (scene->vram_gib > 0)
        e->spec.vram_budget = gib(scene->vram_gib);
}

static void example_close(struct example *e)
{
    tiny_model_deinit(&e->model);
}

/* part: of the way between the ends of the RAM ladder, in the logarithm. */
static void set_ram(struct example *e, double part)
{
    const double *ends = e->scene->ram_gib;
    e->spec.ram_budget = gib(ends[0] * pow(ends[1] / ends[0], part));
}

static double searched_s(const struct place_spec *spec, struct place_choice *choice)
{
    struct place place;
    struct err err;
    if (place_choose(&place, spec, &err) != 0)
        fail_msg("%s: %s", spec->config->name, err.message);
    double seconds = place.predicted_s;
    assert_true(seconds > 0 && isfinite(seconds));
    assert_in_range(place.evaluations, 1, PLACE_SEARCH_EVALUATIONS_MAX);
    if (choice)
        *choice = place.choice;
    place_deinit(&place);
    return seconds;
}

/* ---- Better is not slower ---------------------------------------------------------------------
 */

struct ladder {
    const char *what;
    double best_s; /* of what is no better a machine */
};

static void climb(struct ladder *ladder, const struct example *e)
{
    double seconds = searched_s(&e->spec, NULL);
    if (seconds > ladder->best_s * (1 + SLOWER))
        fail_msg("%s on %s, T %u, B %u, M %u, RAM %.2f GiB: %s makes a step of %.4f s one of %.4f",
                 e->scene->model, e->scene->machine, e->scene->seq, e->scene->batch,
                 e->scene->accum, (double)e->spec.ram_budget / (double)GIB, ladder->what,
                 ladder->best_s, seconds);
    ladder->best_s = fmin(ladder->best_s, seconds);
}

static void each_scene(void (*check)(struct example *e))
{
    for (size_t i = 0; i < ARRAY_COUNT(scenes); i++) {
        struct example e;
        example_open(&e, &scenes[i]);
        check(&e);
        example_close(&e);
    }
}

static void climb_ram(struct example *e)
{
    struct ladder ladder = {"more RAM", INFINITY};
    for (uint32_t i = 0; i < LADDER; i++) {
        set_ram(e, (double)i / (LADDER - 1));
        climb(&ladder, e);
    }
}

static void test_more_ram(void **state)
{
    (void)state;
    each_scene(climb_ram);
}

static void climb_drive(struct example *e)
{
    struct ladder ladder = {"a faster drive", INFINITY};
    struct profile_ssd *ssd = &e->profile.ssd;
    set_ram(e, 0.4);
    for (uint32_t i = 0; i < STEPS; i++) {
        climb(&ladder, e);
        ssd->read_bytes_per_s *= STEP;
        ssd->write_bytes_per_s *= STEP;
        ssd->mixed_read_bytes_per_s *= STEP;
        ssd->mixed_write_bytes_per_s *= STEP;
        ssd->sustained_write_bytes_per_s *= STEP;
    }
}

static void test_faster_drive(void **state)
{
    (void)state;
    each_scene(climb_drive);
}

static void climb_device(struct example *e)
{
    struct ladder ladder = {"a faster device", INFINITY};
    struct profile_device *device = &e->profile.device;
    set_ram(e, 0.6);
    for (uint32_t i = 0; i < STEPS; i++) {
        climb(&ladder, e);
        device->stream_bytes_per_s *= STEP;
        for (uint32_t p = 0; p < device->point_count; p++)
            for (uint32_t k = 0; k < PROFILE_KERNEL_COUNT; k++)
                device->points[p].flops_per_s[k] *= STEP;
    }
}

static void test_faster_device(void **state)
{
    (void)state;
    each_scene(climb_device);
}

static void climb_vram(struct example *e)
{
    struct ladder ladder = {"more VRAM", INFINITY};
    set_ram(e, 0.5);
    for (uint32_t i = 0; i < STEPS && e->spec.vram_budget; i++) {
        climb(&ladder, e);
        e->spec.vram_budget = gib((double)e->spec.vram_budget / (double)GIB * STEP);
    }
}

static void test_more_vram(void **state)
{
    (void)state;
    each_scene(climb_vram);
}

/* ---- The same and twice as fast ---------------------------------------------------------------
 */

static void check_scale(struct example *e)
{
    struct place_choice first, second;
    set_ram(e, 0.3);
    double seconds = searched_s(&e->spec, &first);
    assert_true(searched_s(&e->spec, &second) == seconds);
    assert_memory_equal(&first, &second, sizeof(first));
    profile_scale(&e->profile, 2);
    double half_s = searched_s(&e->spec, NULL);
    if (fabs(2 * half_s / seconds - 1) > 0.001)
        fail_msg("%s on %s: %.6f s, and %.6f twice as fast", e->scene->model, e->scene->machine,
                 seconds, half_s);
}

static void test_same_and_scaled(void **state)
{
    (void)state;
    each_scene(check_scale);
}

/* ---- Better than chance -----------------------------------------------------------------------
 */

static double step_s(const struct coarse *coarse, const struct place *init,
                     const struct place_choice *choice, struct sched_result *result)
{
    struct place place;
    coarse_place(coarse, init, choice, &place);
    double seconds = coarse_step(&place, result, NULL);
    place_deinit(&place);
    return seconds;
}

static void check_bytes(const struct place_spec *spec, const struct place_choice *choice,
                        const struct sched_result *predicted)
{
    struct place place;
    struct plan_memory memory;
    struct plan plan;
    struct plan_totals totals;
    struct plan_request request = {.update = spec->clip, .forward = true, .backward = true};
    place_init(&place, spec);
    place_apply(&place, choice);
    plan_memory_init(&memory, &place);
    plan_build(&plan, &place, &memory, &request);
    plan_total(&plan, &totals);
    for (uint32_t l = LANE_H2D; l <= LANE_SSD_WRITE; l++) {
        uint64_t bytes = totals.bytes[PHASE_FORWARD][l] + totals.bytes[PHASE_BACKWARD][l];
        uint64_t squares =
            l == LANE_D2H ? spec->layout->chunk_count * PLAN_SQUARES_PER_CHUNK * 8 : 0;
        assert_in_range(predicted->bytes[l], bytes - MIN(squares, bytes), bytes);
    }
    plan_deinit(&plan);
    plan_memory_deinit(&memory);
    place_deinit(&place);
}

static void check_best(struct example *e)
{
    struct coarse coarse;
    struct place init;
    struct place_choice found;
    struct sched_result result;
    set_ram(e, (e->scene - scenes) % 3 * 0.3 + 0.1);
    double found_s = searched_s(&e->spec, &found);
    coarse_init(&coarse, &e->model.layout);
    place_init(&init, &e->spec);
    assert_true(step_s(&coarse, &init, &found, &result) == found_s);
    check_bytes(&e->spec, &found, &result);
    for (uint64_t seed = 0; seed < RANDOM_CHOICES; seed++) {
        struct place_choice choice;
        char text[2][CHOICES_TEXT_MAX];
        choices_random(&init, seed, &choice);
        double seconds = step_s(&coarse, &init, &choice, NULL);
        if (found_s > seconds * (1 + WORSE))
            fail_msg("%s on %s: found %.4f s (%s), but %.4f is possible (%s)", e->scene->model,
                     e->scene->machine, found_s, choices_text(&found, text[0]), seconds,
                     choices_text(&choice, text[1]));
    }
    coarse_deinit(&coarse);
}

static void test_best(void **state)
{
    (void)state;
    each_scene(check_best);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_more_ram),        cmocka_unit_test(test_faster_drive),
        cmocka_unit_test(test_faster_device),   cmocka_unit_test(test_more_vram),
        cmocka_unit_test(test_same_and_scaled), cmocka_unit_test(test_best),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
