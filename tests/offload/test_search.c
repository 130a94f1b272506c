/*
 * The sanity laws of the search, over machines, models, batches and budgets from too little to
 * plenty:
 * 1. A machine that is better in one thing is never slower: a faster drive, a faster device, more
 *    of its memory (to half a percent). Of RAM, test_search_ram.c does the same.
 * 2. Everything twice as fast takes half the time.
 * 3. What is found is at least as good as each of a thousand random placements that fit (to a tenth
 *    of a percent). They are drawn over the knobs themselves, from the poorest to the richest.
 * 4. What is predicted is what the placement does: its time at layer level is predicted_s, its
 *    bytes are those of the plan at chunk level.
 * 5. The same spec gives the same placement, within PLACE_SEARCH_EVALUATIONS_MAX simulations.
 * 6. State in RAM is streamed through the device where the CPU's arithmetic binds and the link has
 *    room, beside what the CPU updates; not where the link is too slow. Where RAM binds it brings
 *    little: an update passes it either way. Who says that all of it shall be has no faster step.
 * 7. The head is computed at once where memory is plenty and that is faster, and not where keeping
 *    logits takes longer than computing them again.
 * 8. Without a budget that somebody gave, where RAM is the device's memory and holds everything, no
 *    more is taken for copies than makes a step faster by two percent: from what is found, none of
 *    them can be given up.
 */
#include "core/mem.h"
#include "offload/coarse.h"
#include "offload/place_search.h"
#include "tests/shared/check.h"
#include "tests/shared/choices.h"

#include <math.h>

#define STEPS          2
#define STEP           1.5
#define WORSE          0.001 /* that what is found may be than any random choice */
#define RANDOM_CHOICES 1000

static void each_scene(void (*check)(struct choices_example *e))
{
    for (size_t i = 0; i < CHOICES_SCENES; i++) {
        struct choices_example e;
        choices_open(&e, &choices_scenes[i]);
        check(&e);
        choices_close(&e);
    }
}

static void climb_drive(struct choices_example *e)
{
    struct choices_ladder ladder = {"a faster drive", INFINITY};
    struct profile_ssd *ssd = &e->profile.ssd;
    choices_set_ram(e, 0.4);
    for (uint32_t i = 0; i < STEPS; i++) {
        choices_climb(&ladder, e);
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

static void climb_device(struct choices_example *e)
{
    struct choices_ladder ladder = {"a faster device", INFINITY};
    struct profile_device *device = &e->profile.device;
    choices_set_ram(e, 0.6);
    for (uint32_t i = 0; i < STEPS; i++) {
        choices_climb(&ladder, e);
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

static void climb_vram(struct choices_example *e)
{
    struct choices_ladder ladder = {"more VRAM", INFINITY};
    choices_set_ram(e, 0.5);
    for (uint32_t i = 0; i < STEPS && e->spec.vram_budget; i++) {
        choices_climb(&ladder, e);
        e->spec.vram_budget = (uint64_t)((double)e->spec.vram_budget * STEP);
    }
}

static void test_more_vram(void **state)
{
    (void)state;
    each_scene(climb_vram);
}

/* ---- The same and twice as fast ---------------------------------------------------------------
 */

static void check_scale(struct choices_example *e)
{
    struct place_choice first, second;
    choices_set_ram(e, 0.3);
    double seconds = choices_search(&e->spec, &first);
    assert_true(choices_search(&e->spec, &second) == seconds);
    assert_memory_equal(&first, &second, sizeof(first));
    profile_scale(&e->profile, 2);
    double half_s = choices_search(&e->spec, NULL);
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
        /* Sums of squares, and the words of updates on the device, are some for each chunk. */
        uint64_t each = PLAN_SQUARES_PER_CHUNK * sizeof(double) + sizeof(uint32_t);
        uint64_t some = l == LANE_D2H ? spec->layout->chunk_count * each : 0;
        assert_in_range(predicted->bytes[l], bytes - MIN(some, bytes), bytes);
    }
    plan_deinit(&plan);
    plan_memory_deinit(&memory);
    place_deinit(&place);
}

static void check_best(struct choices_example *e)
{
    struct coarse coarse;
    struct place init;
    struct place_choice found;
    struct sched_result result;
    choices_set_ram(e, (e->scene - choices_scenes) % 3 * 0.3 + 0.1);
    double found_s = choices_search(&e->spec, &found);
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

/* ---- Copies -----------------------------------------------------------------------------------
 */

static const enum place_knob copies[] = {KNOB_BLOCK_SLOTS, KNOB_TILES, KNOB_GRADIENT_SLOTS,
                                         KNOB_PREFETCH};

static void check_copies(enum precision precision, double ram_factor)
{
    struct choices_scene scene = {"gpt2-124m", "cpu", 256, 4, 1, {16, 16}, 0, precision, true};
    struct choices_example e;
    struct place init;
    struct coarse coarse;
    struct place_choice found, all;
    choices_open(&e, &scene);
    choices_set_ram(&e, 0);
    e.spec.nvme = false;
    e.spec.thrifty = true;
    e.profile.ram.bytes_per_s *= ram_factor;
    e.profile.cpu.join_parameters_per_s *= ram_factor;
    double found_s = choices_search(&e.spec, &found);
    coarse_init(&coarse, &e.model.layout);
    place_init(&init, &e.spec);
    all = found;
    for (size_t k = 0; k < ARRAY_COUNT(copies); k++)
        all.knob[copies[k]] = place_knob_max(&init, copies[k]);
    place_measure(&init, &all);
    uint64_t all_bytes = init.ram_bytes;
    double all_s = step_s(&coarse, &init, &all, NULL);
    place_measure(&init, &found);
    uint64_t found_bytes = init.ram_bytes;
    assert_true(found_bytes < all_bytes && found_s <= all_s * 1.021);
    for (size_t k = 0; k < ARRAY_COUNT(copies); k++) {
        struct place_choice less = found;
        less.knob[copies[k]] = 0;
        place_measure(&init, &less);
        bool gains = init.ram_bytes < found_bytes;
        if (gains && step_s(&coarse, &init, &less, NULL) < all_s * 1.015)
            fail_msg("%s is not worth its memory", place_knob_name[copies[k]]);
    }
    coarse_deinit(&coarse);
    choices_close(&e);
}

static void test_copies(void **state)
{
    (void)state;
    check_copies(PRECISION_FP32, 1);
    check_copies(PRECISION_BF16, 1);
    check_copies(PRECISION_FP32, 1.0 / 16); /* joins are dear: copies are kept */
}

/* ---- Who updates what is in RAM ---------------------------------------------------------------
 */

/* The share of the state that is streamed; *seconds: what a step takes. */
static double streamed_share(const struct choices_example *e, enum place_update update,
                             double *seconds)
{
    struct choices_example copy = *e;
    struct place place;
    struct err err;
    copy.spec.update = update;
    copy.spec.profile = &copy.profile;
    if (place_choose(&place, &copy.spec, &err) != 0)
        fail_msg("%s", err.message);
    double streamed =
        (double)place_streamed_taken(&place, &place.choice, copy.spec.layout->chunk_count);
    *seconds = place.predicted_s;
    place_deinit(&place);
    return streamed / copy.spec.layout->chunk_count;
}

static void test_streamed(void **state)
{
    (void)state;
    static const struct choices_scene scene = {
        "gpt2-1558m", "rtx3060-7950x3d-128", 512, 1, 1, {60, 60}, 0, PRECISION_BF16, true};
    struct choices_example e;
    double auto_s, cpu_s, device_s;
    choices_open(&e, &scene);
    choices_set_ram(&e, 0);
    double ram_bytes_per_s = e.profile.ram.bytes_per_s;
    e.profile.cpu.optimizer_parameters_per_s = 1e9; /* of few or old cores */
    e.profile.ram.bytes_per_s *= 4;
    double share = streamed_share(&e, UPDATE_AUTO, &auto_s);
    assert_true(share > 0.1 && share < 0.9);
    assert_true(streamed_share(&e, UPDATE_CPU, &cpu_s) == 0);
    streamed_share(&e, UPDATE_DEVICE, &device_s);
    if (!(auto_s < 0.9 * cpu_s && auto_s < device_s))
        fail_msg("%.4f s, by the CPU alone %.4f, streamed alone %.4f", auto_s, cpu_s, device_s);
    e.profile.device.h2d_bytes_per_s /= 64;
    e.profile.device.d2h_bytes_per_s /= 64;
    e.profile.device.h2d_both_bytes_per_s /= 64;
    e.profile.device.d2h_both_bytes_per_s /= 64;
    assert_true(streamed_share(&e, UPDATE_AUTO, &auto_s) == 0);
    choices_close(&e);
    choices_open(&e, &scene);
    choices_set_ram(&e, 0);
    assert_true(e.profile.ram.bytes_per_s == ram_bytes_per_s);
    e.profile.cpu.optimizer_parameters_per_s = 1e11;
    e.profile.ram.bytes_per_s /= 2;
    streamed_share(&e, UPDATE_AUTO, &auto_s);
    streamed_share(&e, UPDATE_CPU, &cpu_s);
    if (auto_s < 0.9 * cpu_s)
        fail_msg("RAM binds: %.4f s, by the CPU alone %.4f", auto_s, cpu_s);
    choices_close(&e);
}

/* Moments of 8 bits, most state on the device: what is best with streaming is far from what is best
 * without. */
static void test_streamed_beside_device(void **state)
{
    (void)state;
    static const struct choices_scene scene = {
        "gpt2-1558m", "rtx3060-7950x3d-128", 512, 1, 1, {124, 124}, 0, PRECISION_BF16, true};
    struct choices_example e;
    double auto_s, device_s;
    choices_open(&e, &scene);
    choices_set_ram(&e, 0);
    tiny_model_set_moments(&e.model, MOMENTS_8BIT);
    streamed_share(&e, UPDATE_AUTO, &auto_s);
    streamed_share(&e, UPDATE_DEVICE, &device_s);
    if (auto_s > 1.02 * device_s)
        fail_msg("%.4f s, streamed alone %.4f", auto_s, device_s);
    choices_close(&e);
}

/* On a CPU; a device that computes much faster than it moves bytes is not gained by it. */
static void test_head_once(void **state)
{
    (void)state;
    struct choices_example e;
    struct place_choice choice;
    double seconds[2];
    choices_open(&e, &choices_scenes[0]);
    choices_set_ram(&e, 1);
    for (int i = 0; i < 2; i++) {
        e.spec.device_head_once_bytes = i ? 0 : (uint64_t)1 << 50;
        seconds[i] = choices_search(&e.spec, &choice);
        assert_true(i ? choice.knob[KNOB_TILES] == TILES_ONCE
                      : choice.knob[KNOB_TILES] < TILES_ONCE);
    }
    /* The second computation of its logits is a twelfth of the FLOPs of a step, done faster than
     * most. */
    if (!(seconds[1] < 0.97 * seconds[0] && seconds[1] > 0.88 * seconds[0]))
        fail_msg("%.4f s at once, %.4f in passes", seconds[1], seconds[0]);
    e.profile.device.stream_bytes_per_s /= 1e3;
    choices_search(&e.spec, &choice);
    assert_true(choice.knob[KNOB_TILES] < TILES_ONCE);
    choices_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streamed),     cmocka_unit_test(test_streamed_beside_device),
        cmocka_unit_test(test_faster_drive), cmocka_unit_test(test_faster_device),
        cmocka_unit_test(test_more_vram),    cmocka_unit_test(test_same_and_scaled),
        cmocka_unit_test(test_best),         cmocka_unit_test(test_head_once),
        cmocka_unit_test(test_copies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
