/*
 * Properties of --nvme-slots 1 (one slot of state instead of two):
 * 1. It trains the same bits, in half the space of the state.
 * 2. A run that ended well goes on bit for bit, with one slot or with two from then on; two slots
 *    are not made one.
 * 3. From the first write over a commit to the next commit, the manifest says so: every reader and
 *    every resume is refused with a sentence, and names the newest copy that was kept. Where RAM
 *    holds all state nothing is overwritten but by a commit, and a run that died is as it was.
 * 4. What was kept is a run of its own and goes on.
 * Method: tiny runs in process; one that dies is one whose loss is made infinite on the way.
 */
#include "core/mem.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct kind {
    const char *name;
    bool nvme;
    int resident;
    double clip;
};

static const struct kind kinds[] = {
    {"none", true, 0, 1.0},    {"hi", true, 1, 1.0},
    {"all", true, 4, 1.0},     {"ram", false, PLACE_RESIDENT_AUTO, 1.0},
    {"unclipped", true, 0, 0}, {"device", true, PLACE_RESIDENT_DEVICE, 1.0},
};

static void init(struct tiny_run *run, const struct kind *kind, bool one_slot)
{
    char name[64];
    snprintf(name, sizeof(name), "%s-%d", kind->name, one_slot ? 1 : 2);
    tiny_run_init(run, name);
    struct train_settings *s = &run->settings;
    s->nvme = train_nvme(kind->nvme ? run->nvme_dir : NULL);
    s->resident_planes = kind->resident;
    s->vram_budget = kind->resident == PLACE_RESIDENT_DEVICE ? 64 * MIB : 0;
    s->optim.clip = kind->clip;
    s->one_slot = one_slot;
    s->checkpoint_every = 3;
    s->steps = 10;
}

static void state_of(const struct tiny_run *run, struct checkpoint_manifest *manifest)
{
    struct err err;
    if (checkpoint_load(manifest, run->run_dir, NULL, &err) != 0)
        fail_msg("%s: %s", run->run_dir, err.message);
}

static uint64_t state_bytes(const struct tiny_run *run)
{
    struct checkpoint_manifest manifest;
    struct stat file;
    state_of(run, &manifest);
    assert_int_equal(stat(manifest.files.path[0], &file), 0);
    checkpoint_unload(&manifest);
    return (uint64_t)file.st_size;
}

static void check_same(const struct tiny_run *a, const struct tiny_run *b)
{
    char *one = tiny_log(a), *two = tiny_log(b);
    assert_string_equal(one, two);
    free(one);
    free(two);
}

static void test_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        struct tiny_run two, one;
        init(&two, &kinds[i], false);
        init(&one, &kinds[i], true);
        tiny_train(&two);
        tiny_train(&one);
        check_same(&two, &one);
        assert_int_equal(2 * state_bytes(&one), state_bytes(&two));
        /* Stopped after 10 steps, and gone on with. */
        two.settings.resume = one.settings.resume = true;
        two.settings.steps = one.settings.steps = 16;
        tiny_train(&two);
        tiny_train(&one);
        check_same(&two, &one);
        /* From one slot to two, never back. */
        two.settings.steps = one.settings.steps = 20;
        one.settings.one_slot = false;
        tiny_train(&two);
        tiny_train(&one);
        check_same(&two, &one);
        assert_int_equal(state_bytes(&one), state_bytes(&two));
        struct err err;
        one.settings.one_slot = true;
        one.settings.steps = 22;
        assert_int_equal(train_run(&one.settings, &err), ERR_INPUT);
        assert_non_null(strstr(err.message, "--nvme-slots 2"));
    }
}

static void test_half_the_budget(void **state)
{
    (void)state;
    struct tiny_model model;
    struct place_spec spec;
    struct place place;
    struct err err;
    uint64_t bytes[2];
    tiny_model_init(&model, 3, 64, 300, 0, 0);
    tiny_spec(&spec, &model);
    spec.resident_planes = 0;
    for (int one = 0; one < 2; one++) {
        spec.one_slot = one;
        spec.nvme_budget = UINT64_MAX;
        assert_int_equal(place_choose(&place, &spec, &err), 0);
        bytes[one] = place.nvme_bytes;
        place_deinit(&place);
        spec.nvme_budget = bytes[one];
        assert_int_equal(place_choose(&place, &spec, &err), 0);
        place_deinit(&place);
        spec.nvme_budget--;
        assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
        assert_int_equal(strstr(err.message, "--nvme-slots 1") != NULL, !one);
        place_deinit(&place);
    }
    assert_int_equal(bytes[0] - bytes[1], model.layout.slot_bytes);
    tiny_model_deinit(&model);
}

/* ---- Runs that die ----------------------------------------------------------------------------
 */

static void die(void *context)
{
    struct tiny_run *run = context;
    struct err err;
    int result = train_run(&run->settings, &err);
    fprintf(stderr, "%s\n", result ? err.message : "it lives");
    exit(1);
}

/* Goes on with a rate that makes the loss infinite in a step or two, after `steps` steps. */
static void kill_after(struct tiny_run *run, uint64_t steps, bool intact)
{
    char *said;
    run->settings.steps = steps;
    tiny_train(run);
    struct tiny_run dying = *run;
    dying.settings.resume = true;
    dying.settings.steps = 1000;
    dying.settings.optim.lr = dying.settings.optim.min_lr = 1e36;
    dying.settings.checkpoint_every = 0;
    tiny_fork(die, &dying, &said);
    if (!strstr(said, "not finite") && !strstr(said, "no longer finite"))
        fail_msg("%s", said);
    if (!strstr(said, intact ? "intact" : "has been overwritten (--nvme-slots 1)"))
        fail_msg("%s", said);
    free(said);
    run->settings.resume = true;
}

static void check_refused(struct tiny_run *run, const char *says)
{
    struct err err;
    struct checkpoint_reader reader;
    char *before = tiny_log(run);
    run->settings.steps = 20;
    assert_int_equal(train_run(&run->settings, &err), ERR_INPUT);
    if (!strstr(err.message, "overwritten in part") || !strstr(err.message, says))
        fail_msg("%s", err.message);
    assert_int_equal(checkpoint_reader_open(&reader, run->run_dir, NULL, &err), ERR_INPUT);
    checkpoint_reader_close(&reader);
    if (!strstr(err.message, says))
        fail_msg("%s", err.message);
    char *after = tiny_log(run);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void test_died(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        struct tiny_run run, calm;
        init(&run, &kinds[i], true);
        init(&calm, &kinds[i], false);
        snprintf(run.run_dir, sizeof(run.run_dir), "%s", scratch_path("run-died"));
        scratch_remove(run.run_dir);
        bool in_ram = kinds[i].resident == 4 || kinds[i].resident == PLACE_RESIDENT_DEVICE ||
                      !kinds[i].nvme; /* or on the device: not on the drive */
        kill_after(&run, 10, in_ram);
        if (!in_ram) {
            check_refused(&run, "another --out");
            continue;
        }
        run.settings.steps = 16;
        tiny_train(&run);
        uint64_t step, calm_step;
        snprintf(calm.run_dir, sizeof(calm.run_dir), "%s", scratch_path("run-calm"));
        scratch_remove(calm.run_dir);
        calm.settings.steps = 16;
        tiny_train(&calm);
        assert_int_equal(tiny_hash(&run, &step), tiny_hash(&calm, &calm_step));
        assert_int_equal(step, calm_step);
    }
}

static void test_kept(void **state)
{
    (void)state;
    struct tiny_run run, calm;
    struct stat file;
    uint64_t step;
    tiny_run_init(&run, "kept-one");
    tiny_run_init(&calm, "kept-calm");
    run.settings.nvme = train_nvme(run.nvme_dir);
    run.settings.resident_planes = 0;
    run.settings.one_slot = true;
    run.settings.keep_every = 4;
    tiny_train(&calm);
    kill_after(&run, 9, false);
    uint64_t bytes = state_bytes(&run);
    check_refused(&run, "/kept/step-00000008");
    /* The copy, as the sentence says. */
    struct tiny_run kept = run;
    snprintf(kept.run_dir, sizeof(kept.run_dir), "%s",
             scratch_path("run-kept-one/kept/step-00000008"));
    kept.settings.run_dir = kept.run_dir;
    assert_int_equal(stat(scratch_path("run-kept-one/kept/step-00000008/state.bin"), &file), 0);
    assert_int_equal(file.st_size, bytes);
    tiny_train(&kept);
    assert_int_equal(tiny_hash(&kept, &step), tiny_hash(&calm, &step));
    assert_int_equal(step, 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_half_the_budget),
        cmocka_unit_test(test_died),
        cmocka_unit_test(test_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
