/*
 * Properties of what is said of a drive's wear, and of --write-budget:
 * 1. Bytes a day are those of a step and of its share of a commit over the step's time; without a
 *    known endurance nothing is claimed.
 * 2. With a write budget the placement that is chosen keeps it at chunk level, whatever the model
 *    and machine, and the same spec gives the same placement; a budget that is no limit changes
 *    nothing.
 * 3. A budget that no placement keeps is refused, with a flag that works.
 * 4. ssd_written_total_bytes of a run is the sum of what it has written, and goes on after a
 * resume. Method: the scenes of tests/shared/choices.h under shares of what they write freely; a
 * tiny run on a drive, stopped and resumed.
 */
#include "core/mem.h"
#include "offload/coarse.h"
#include "offload/wear.h"
#include "tests/shared/check.h"
#include "tests/shared/choices.h"
#include "tests/shared/scratch.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

#define SCENES_TRIED 3

static void test_arithmetic(void **state)
{
    (void)state;
    struct tiny_model model;
    struct place_spec spec;
    struct place place;
    struct profile profile;
    struct err err;
    struct wear wear;
    tiny_model_init(&model, 2, 64, 300, 8192, 8192);
    tiny_spec(&spec, &model);
    spec.resident_planes = 1;
    spec.checkpoint_every = 10;
    assert_int_equal(place_choose(&place, &spec, &err), 0);
    profile_init(&profile, 2);
    place.spec.profile = &profile;
    uint64_t hi_bytes = model.layout.padded_parameters * 2;
    wear_of(&wear, &place, 1000000, 0.5);
    assert_int_equal(wear.commit_bytes, hi_bytes);
    assert_true(fabs(wear.bytes_per_day / ((1e6 + (double)hi_bytes / 10) * 2 * 86400) - 1) < 1e-12);
    assert_true(isinf(wear.days_left));
    profile.ssd.count = 2;
    profile.ssd.endurance_bytes = 600000000000000;
    wear_of(&wear, &place, 1000000, 0.5);
    assert_true(fabs(wear.days_left * wear.bytes_per_day / 1.2e15 - 1) < 1e-12);
    place.spec.checkpoint_every = 0;
    wear_of(&wear, &place, 0, 0.5);
    assert_true(wear.bytes_per_day == 0 && isinf(wear.days_left));
    place_deinit(&place);
    tiny_model_deinit(&model);
}

/* ---- The planner ------------------------------------------------------------------------------
 */

/* The result of place_choose; what the choice writes a day, its time and itself where it is 0. */
struct outcome {
    int result;
    double per_day, seconds;
    struct place_choice choice;
    struct err err;
};

static void choose(struct outcome *outcome, struct choices_example *e, uint64_t write_budget)
{
    struct place place;
    struct sched_result result;
    struct wear wear;
    *outcome = (struct outcome){0};
    e->spec.checkpoint_every = 100;
    e->spec.write_budget = write_budget;
    outcome->result = place_choose(&place, &e->spec, &outcome->err);
    if (outcome->result == 0) {
        outcome->choice = place.choice;
        outcome->seconds = coarse_step(&place, &result, NULL);
        wear_of(&wear, &place, result.bytes[LANE_SSD_WRITE], outcome->seconds);
        outcome->per_day = wear.bytes_per_day;
    }
    place_deinit(&place);
}

static void check_kept(struct choices_example *e, uint64_t budget)
{
    struct outcome first, second;
    choose(&first, e, budget);
    if (first.result != 0)
        fail_msg("%s on %s: %s", e->scene->model, e->scene->machine, first.err.message);
    if (first.per_day > (double)budget)
        fail_msg("%s on %s: %.0f a day instead of %.0f", e->scene->model, e->scene->machine,
                 first.per_day, (double)budget);
    choose(&second, e, budget);
    assert_memory_equal(&first.choice, &second.choice, sizeof(first.choice));
}

static void check_scene(struct choices_example *e)
{
    struct outcome wild, limited, refused;
    choices_set_ram(e, 0.4);
    choose(&wild, e, 0);
    assert_int_equal(wild.result, 0);
    assert_true(wild.per_day > 0);
    choose(&limited, e, (uint64_t)(wild.per_day * 100));
    assert_memory_equal(&wild.choice, &limited.choice, sizeof(wild.choice));
    choose(&refused, e, 1000);
    assert_int_equal(refused.result, ERR_INPUT);
    uint64_t least = tiny_flag(refused.err.message, "--write-budget");
    assert_true((double)least < wild.per_day * 1.1);
    check_kept(e, least);
    /* Between the two: something is given up for the drive, and not more than is needed. */
    uint64_t between = (uint64_t)sqrt((double)least * wild.per_day);
    if (between <= least)
        return;
    check_kept(e, between);
    choose(&limited, e, between);
    assert_true(limited.seconds >= wild.seconds * 0.98);
}

static void test_budgets(void **state)
{
    (void)state;
    for (size_t i = 0; i < SCENES_TRIED; i++) {
        struct choices_example e;
        choices_open(&e, &choices_scenes[i]);
        check_scene(&e);
        choices_close(&e);
    }
}

/* ---- A run ------------------------------------------------------------------------------------
 */

static double total_at(const struct tiny_run *run, uint64_t step)
{
    double total = tiny_number(run, step, "ssd_written_total_bytes");
    assert_true(total > 0);
    return total;
}

static void test_total_of_a_run(void **state)
{
    (void)state;
    struct tiny_run run;
    struct tiny_model model;
    tiny_run_init(&run, "wear");
    run.settings.nvme = train_nvme(run.nvme_dir);
    run.settings.resident_planes = 0;
    run.settings.steps = 6;
    tiny_train(&run);
    tiny_model_init(&model, 3, 64, 300, 0, 0);
    /* The first state, and in the first step gradients and activations. */
    double first = (double)model.layout.slot_bytes;
    tiny_model_deinit(&model);
    assert_true(total_at(&run, 1) == first + tiny_number(&run, 1, "ssd_write_bytes"));
    for (uint64_t step = 2; step <= 6; step++)
        assert_true(total_at(&run, step) ==
                    total_at(&run, step - 1) + tiny_number(&run, step, "ssd_write_bytes"));
    run.settings.steps = 8;
    run.settings.resume = true;
    double before = total_at(&run, 6);
    tiny_train(&run);
    /* The last updates of the first call came after its last step's line. */
    double updates = total_at(&run, 7) - tiny_number(&run, 7, "ssd_write_bytes") - before;
    assert_true(updates >= first && updates < 1.1 * first);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arithmetic),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_total_of_a_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
