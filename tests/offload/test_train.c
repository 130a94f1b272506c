/*
 * Properties of whole runs (DESIGN section 2), each on a model so small that a run takes a fraction
 * of a second:
 * 1. Placement never changes the mathematics: losses, gradient norms and the weights of every
 *    commit are the same bits whatever sits where, whatever is prefetched or recomputed, on any
 *    number of threads, with evaluations, commits and copies or without.
 * 2. Stopping and resuming anywhere, under other budgets or on another drive, changes nothing.
 * 3. After the first steps nothing is allocated, and a run that does it all the same is stopped.
 * Method: runs in process through train_run; their logs are compared as text, with all digits.
 * Runs that die do so in a child. What becomes of failing drives is tests/offload/test_faults.c's.
 */
#include "core/mem.h"
#include "io/ring.h"
#include "model/kernels.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Placements -------------------------------------------------------------------------------
 */

/* The placement's, the smallest that work (tiny_train_least), or such that a part of the state is
 * on the device (tiny_train_part). */
enum budgets { GIVEN, LEAST, PART };

struct placement {
    const char *name;
    bool nvme;
    uint64_t vram_budget;
    int resident;
    uint64_t prefetch;
    enum place_recompute recompute;
    uint64_t threads;
    enum budgets budgets;
    uint64_t commit_every;
    enum place_update update;
};

static const struct placement placements[] = {
    {"all", false, 0, PLACE_RESIDENT_AUTO, 0, RECOMPUTE_AUTO, 1, GIVEN, 1, UPDATE_AUTO},
    {"recompute", false, 0, PLACE_RESIDENT_AUTO, 0, RECOMPUTE_ALL, 1, GIVEN, 9, UPDATE_AUTO},
    {"keep", false, 0, PLACE_RESIDENT_AUTO, 0, RECOMPUTE_NONE, 2, GIVEN, 9, UPDATE_AUTO},
    {"device", false, 64 * MIB, PLACE_RESIDENT_DEVICE, 0, RECOMPUTE_AUTO, 1, GIVEN, 9, UPDATE_AUTO},
    {"device-least", false, 64 * MIB, PLACE_RESIDENT_AUTO, 1, RECOMPUTE_NONE, 1, LEAST, 9,
     UPDATE_AUTO},
    {"drive", true, 0, PLACE_RESIDENT_AUTO, 0, RECOMPUTE_AUTO, 1, GIVEN, 9, UPDATE_AUTO},
    {"drive-none", true, 0, 0, 1, RECOMPUTE_ALL, 1, LEAST, 9, UPDATE_AUTO},
    {"drive-hi", true, 0, 1, 3, RECOMPUTE_NONE, 2, LEAST, 9, UPDATE_AUTO},
    {"drive-lo", true, 0, 2, 2, RECOMPUTE_AUTO, 3, LEAST, 9, UPDATE_AUTO},
    {"drive-m", true, 0, 3, 1, RECOMPUTE_NONE, 1, GIVEN, 9, UPDATE_AUTO},
    {"both", true, 64 * MIB, PLACE_RESIDENT_AUTO, 0, RECOMPUTE_AUTO, 2, GIVEN, 9, UPDATE_AUTO},
    {"both-least", true, 64 * MIB, 0, 1, RECOMPUTE_NONE, 1, LEAST, 1, UPDATE_AUTO},
    {"both-hi", true, 64 * MIB, 1, 3, RECOMPUTE_ALL, 3, LEAST, 9, UPDATE_AUTO},
    {"both-all", true, 64 * MIB, 4, 3, RECOMPUTE_NONE, 1, LEAST, 9, UPDATE_AUTO},
    {"device-ram", false, 64 * MIB, 4, 0, RECOMPUTE_AUTO, 1, GIVEN, 9, UPDATE_AUTO},
    {"device-part", false, 64 * MIB, PLACE_RESIDENT_DEVICE, 0, RECOMPUTE_AUTO, 2, PART, 4,
     UPDATE_AUTO},
    {"streamed", false, 64 * MIB, 4, 0, RECOMPUTE_AUTO, 1, GIVEN, 4, UPDATE_DEVICE},
    {"streamed-nvme", true, 64 * MIB, 4, 1, RECOMPUTE_ALL, 2, GIVEN, 1, UPDATE_DEVICE},
};

static void train(struct tiny_run *run, const struct placement *p)
{
    if (p->budgets == LEAST)
        tiny_train_least(run);
    else if (p->budgets == PART)
        tiny_train_part(run);
    else
        tiny_train(run);
}

static void apply(struct tiny_run *run, const struct placement *p)
{
    struct train_settings *s = &run->settings;
    s->nvme = train_nvme(p->nvme ? run->nvme_dir : NULL);
    s->vram_budget = p->vram_budget;
    s->resident_planes = p->resident;
    s->update = p->update;
    s->prefetch = p->prefetch;
    s->recompute = p->recompute;
    s->threads = p->threads;
}

/* Every line of a log is a line of the reference, which commits each step; all steps are there,
 * in order, and the last line is the last commit. */
static void check_log(const char *name, const char *log, const char *reference)
{
    const char *at = reference;
    uint32_t steps = 0, reference_steps = 0;
    for (const char *line = log, *end; (end = strchr(line, '\n')); line = end + 1) {
        size_t bytes = (size_t)(end + 1 - line);
        while (*at && strncmp(at, line, bytes) != 0)
            at = strchr(at, '\n') + 1;
        if (!*at)
            fail_msg("%s: '%.*s' is not in the reference\n%s\n%s", name, (int)bytes - 1, line, log,
                     reference);
        steps += strncmp(line, "step", 4) == 0;
    }
    assert_string_equal(strchr(at, '\n'), "\n");
    for (const char *line = reference; *line; line = strchr(line, '\n') + 1)
        reference_steps += strncmp(line, "step", 4) == 0;
    assert_int_equal(steps, reference_steps);
    assert_true(steps > 0);
}

static void check_placements(enum precision precision, uint64_t accum)
{
    char *expected = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(placements); i++) {
        const struct placement *p = &placements[i];
        struct tiny_run run;
        char name[64];
        snprintf(name, sizeof(name), "%s-%d-%u", p->name, precision, (unsigned)accum);
        tiny_run_init(&run, name);
        run.settings.precision = precision;
        run.settings.accum = accum;
        run.settings.checkpoint_every = p->commit_every;
        apply(&run, p);
        train(&run, p);
        char *log = tiny_log(&run);
        if (i == 0) {
            expected = log;
            continue;
        }
        check_log(name, log, expected);
        free(log);
        /* It was a placement of its own indeed. */
        if (p->resident < PLANE_COUNT)
            assert_int_equal(tiny_number(&run, 20, "ssd_read_bytes") > 0, p->resident >= 0);
        assert_int_equal(tiny_number(&run, 20, "h2d_bytes") > 0, p->vram_budget > 0);
        int share = tiny_device_share(&run);
        if (p->budgets == PART)
            assert_in_range(share, 1, 99);
        else if (p->resident == PLACE_RESIDENT_DEVICE)
            assert_int_equal(share, 100);
        else if (!p->vram_budget || p->resident >= 0)
            assert_int_equal(share, 0);
        /* Then nothing crosses but tokens, losses, sums of squares and flags. */
        if (share == 100)
            assert_true(tiny_number(&run, 20, "d2h_bytes") < 20000);
    }
    free(expected);
}

static void test_placements_fp32(void **state)
{
    (void)state;
    check_placements(PRECISION_FP32, 1);
    check_placements(PRECISION_FP32, 4);
}

static void test_placements_bf16(void **state)
{
    (void)state;
    check_placements(PRECISION_BF16, 1);
    check_placements(PRECISION_BF16, 4);
}

/* Clipping does what its name says: the first update is the first thing that differs. */
static void test_clipping_matters(void **state)
{
    (void)state;
    double loss[2][3];
    for (int i = 0; i < 2; i++) {
        struct tiny_run run;
        tiny_run_init(&run, i ? "clipped" : "unclipped");
        run.settings.optim.clip = i ? 0.25 : 1e30;
        run.settings.steps = 3;
        tiny_train(&run);
        for (uint64_t step = 1; step <= 3; step++) {
            double norm = tiny_number(&run, step, "grad_norm");
            double clip = tiny_number(&run, step, "clip");
            loss[i][step - 1] = tiny_number(&run, step, "loss");
            assert_true(norm > 0.25);
            assert_true(i ? fabs(clip * norm / 0.25 - 1) < 1e-6 : clip == 1);
        }
    }
    assert_true(loss[0][0] == loss[1][0]);
    /* Adam's first step has the same length whatever the gradient's; the second has not. */
    assert_true(loss[0][2] != loss[1][2]);
}

/* Without clipping the updates happen in backward: the same numbers as with a bound that no
 * norm reaches, where they wait for the next step. */
static void test_without_clipping(void **state)
{
    (void)state;
    static const uint32_t tried[] = {0, 3, 6, 7, 10, 11, 12, 15};
    char *expected = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(tried) + 1; i++) {
        const struct placement *p = &placements[tried[MAX(i, 1) - 1]];
        struct tiny_run run;
        char name[64];
        snprintf(name, sizeof(name), "clip-%zu", i);
        tiny_run_init(&run, name);
        apply(&run, p);
        run.settings.accum = 2;
        run.settings.optim.clip = i ? 0 : 1e30;
        run.settings.checkpoint_every = i ? 6 : 1;
        for (uint64_t steps = 10; steps <= 20; steps += 10) {
            run.settings.steps = steps;
            run.settings.resume = steps > 10;
            train(&run, p);
        }
        char *log = tiny_log(&run);
        if (i == 0) {
            expected = log;
            continue;
        }
        check_log(name, log, expected);
        free(log);
    }
    free(expected);
}

/* ---- Tiles of the vocabulary ------------------------------------------------------------------
 */

/* A vocabulary of two tiles: the head's gradient waits for the embedding's, in RAM or on NVMe. */
static void test_tiles(void **state)
{
    (void)state;
    static const uint32_t tried[] = {0, 3, 4, 6, 11, 13, 15};
    char *expected = NULL;
    uint32_t ways[2] = {0}; /* of the head: in passes, at once */
    for (size_t i = 0; i < ARRAY_COUNT(tried); i++) {
        const struct placement *p = &placements[tried[i]];
        struct tiny_run run;
        char name[64];
        snprintf(name, sizeof(name), "tiles-%s", p->name);
        tiny_run_init(&run, name);
        run.settings.data_dir = tiny_data(20011);
        run.settings.config.layers = 1;
        run.settings.accum = 2;
        run.settings.steps = 3;
        apply(&run, p);
        train(&run, p);
        char *log = tiny_log(&run);
        ways[tiny_head_once(&run)]++;
        if (expected) {
            assert_string_equal(log, expected);
            free(log);
        } else {
            expected = log;
        }
        scratch_remove(run.run_dir);
        scratch_remove(run.nvme_dir);
    }
    assert_true(ways[0] > 1 && ways[1] > 1);
    free(expected);
}

/* ---- Stopping and resuming --------------------------------------------------------------------
 */

/* The log of an undisturbed run that commits every step; freed by the caller. */
static char *reference_log(const struct tiny_run *like, const char *name)
{
    struct tiny_run run;
    tiny_run_init(&run, name);
    const char *run_dir = run.settings.run_dir;
    run.settings = like->settings;
    run.settings.run_dir = run_dir;
    run.settings.nvme = train_nvme(NULL);
    run.settings.resident_planes = PLACE_RESIDENT_AUTO;
    run.settings.checkpoint_every = 1;
    tiny_train(&run);
    return tiny_log(&run);
}

static uint32_t files_in(const char *dir)
{
    DIR *folder = opendir(dir);
    uint32_t count = 0;
    if (!folder)
        return 0;
    for (struct dirent *entry; (entry = readdir(folder));)
        count += entry->d_name[0] != '.';
    closedir(folder);
    return count;
}

static void test_resumed_after_every_step(void **state)
{
    (void)state;
    struct tiny_run run;
    tiny_run_init(&run, "every");
    apply(&run, &placements[7]);
    char *reference = reference_log(&run, "every-reference");
    for (uint64_t k = 1; k <= 20; k++) {
        uint64_t step;
        run.settings.steps = k;
        run.settings.resume = k > 1;
        tiny_train(&run);
        tiny_hash(&run, &step);
        assert_int_equal(step, k);
    }
    char *log = tiny_log(&run);
    assert_string_equal(log, reference);
    /* A finished run has nothing to do and says so by success; its log stays as it is. */
    tiny_train(&run);
    char *again = tiny_log(&run);
    assert_string_equal(again, log);
    free(again);
    free(log);
    free(reference);
}

/* Another placement after each stop, now here, now there, and on two drives in turn. */
static void check_wandering(enum precision precision, uint64_t accum, const char *name)
{
    struct tiny_run run;
    char text[64], drives[2][FILE_PATH_MAX];
    tiny_run_init(&run, name);
    run.settings.precision = precision;
    run.settings.accum = accum;
    snprintf(text, sizeof(text), "%s-reference", name);
    char *reference = reference_log(&run, text);
    for (int i = 0; i < 2; i++) {
        snprintf(text, sizeof(text), "%s-drive-%d", name, i);
        strcpy(drives[i], scratch_path(text));
    }
    for (uint64_t k = 0; k * 2 < 20; k++) {
        const struct placement *p = &placements[(k * 7 + 3) % ARRAY_COUNT(placements)];
        apply(&run, p);
        run.settings.ram_budget = GIB;
        run.settings.nvme = train_nvme(p->nvme ? drives[k % 2] : NULL);
        run.settings.steps = k * 2 + 2;
        run.settings.resume = k > 0;
        train(&run, p);
        /* The state has moved and left nothing behind. */
        assert_int_equal(files_in(drives[k % 2]), p->nvme);
        assert_int_equal(files_in(drives[1 - k % 2]), 0);
    }
    char *log = tiny_log(&run);
    check_log(name, log, reference);
    free(log);
    free(reference);
}

static void test_resumed_elsewhere(void **state)
{
    (void)state;
    check_wandering(PRECISION_FP32, 1, "wander");
    check_wandering(PRECISION_BF16, 2, "wander-bf16");
}

static void test_existing_run_is_refused(void **state)
{
    (void)state;
    struct tiny_run run;
    struct err err;
    tiny_run_init(&run, "twice");
    run.settings.steps = 2;
    tiny_train(&run);
    char *before = tiny_log(&run);
    assert_int_equal(train_run(&run.settings, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "--resume"));
    char *after = tiny_log(&run);
    assert_string_equal(before, after);
    free(before);
    free(after);
}

static void test_steps_zero_commits_initial_weights(void **state)
{
    (void)state;
    struct tiny_run run;
    uint64_t step;
    tiny_run_init(&run, "zero");
    run.settings.steps = 0;
    tiny_train(&run);
    tiny_hash(&run, &step);
    assert_int_equal(step, 0);
    char *reference = reference_log(&run, "zero-reference");
    assert_int_equal(strncmp(reference, "commit 0 ", 9), 0);
    free(reference);
}

static void test_max_time(void **state)
{
    (void)state;
    struct tiny_run run;
    uint64_t step;
    tiny_run_init(&run, "time");
    apply(&run, &placements[9]);
    char *reference = reference_log(&run, "time-reference");
    run.settings.max_time_s = 1e-9;
    tiny_train(&run);
    tiny_hash(&run, &step);
    assert_int_equal(step, 1); /* the step in which the time is over is finished and committed */
    run.settings.max_time_s = 0;
    run.settings.resume = true;
    tiny_train(&run);
    char *log = tiny_log(&run);
    check_log("time", log, reference);
    free(log);
    free(reference);
}

/* ---- Evaluations and copies -------------------------------------------------------------------
 */

static void check_kept(const struct tiny_run *run, uint64_t step, const char *reference)
{
    struct checkpoint_manifest manifest;
    struct err err;
    char dir[FILE_PATH_MAX], line[128];
    snprintf(dir, sizeof(dir), "%.4000s/kept/step-%08llu", run->run_dir, (unsigned long long)step);
    if (checkpoint_load(&manifest, dir, NULL, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(manifest.step, step);
    snprintf(line, sizeof(line), "commit %llu %016llx\n", (unsigned long long)step,
             (unsigned long long)manifest.weights_hash);
    assert_non_null(strstr(reference, line));
    checkpoint_unload(&manifest);
    /* It is a run like any other: resumed, it ends where the first one did. */
    struct tiny_run copy = *run;
    strcpy(copy.run_dir, dir);
    copy.settings.run_dir = copy.run_dir;
    copy.settings.nvme = train_nvme(NULL);
    copy.settings.resident_planes = PLACE_RESIDENT_AUTO;
    copy.settings.resume = true;
    copy.settings.keep_every = copy.settings.eval_every = 0;
    tiny_train(&copy);
    uint64_t end_step, hash = tiny_hash(&copy, &end_step);
    assert_int_equal(end_step, 20);
    assert_int_equal(hash, tiny_hash(run, &end_step));
}

static void test_evaluations_and_copies(void **state)
{
    (void)state;
    static const uint32_t tried[] = {0, 7, 11, 15};
    double val_loss = 0;
    for (size_t i = 0; i < ARRAY_COUNT(tried); i++) {
        struct tiny_run run;
        char name[64];
        snprintf(name, sizeof(name), "eval-%u", tried[i]);
        tiny_run_init(&run, name);
        const struct placement *p = &placements[tried[i]];
        apply(&run, p);
        snprintf(name, sizeof(name), "eval-reference-%u", tried[i]);
        char *reference = reference_log(&run, name);
        run.settings.eval_every = 5;
        run.settings.keep_every = 10;
        train(&run, p);
        char *log = tiny_log(&run);
        check_log("eval", log, reference);
        assert_non_null(strstr(log, "commit 10 "));
        check_kept(&run, 10, reference);
        check_kept(&run, 20, reference);
        double val = tiny_number(&run, 20, "val_loss");
        assert_true(val > 1 && val < 5.7); /* below log(300), so something was learned */
        assert_true(tiny_number(&run, 5, "val_loss") > val);
        assert_true(tiny_number(&run, 6, "val_loss") < 0); /* not asked for */
        if (i == 0)
            val_loss = val;
        assert_true(val == val_loss);
        free(log);
        free(reference);
    }
}

/* ---- Numbers that are not finite --------------------------------------------------------------
 */

/* In a child: exits with the program's status. */
static void train_alone(void *context)
{
    struct tiny_run *run = context;
    struct err err;
    if (train_run(&run->settings, &err) == 0)
        _exit(0);
    fprintf(stderr, "spillway: %s\n", err.message);
    fflush(stderr);
    _exit(1);
}

static void check_not_finite(const char *name, uint64_t vram_budget)
{
    struct tiny_run run;
    uint64_t step, before;
    tiny_run_init(&run, name);
    run.settings.vram_budget = vram_budget;
    run.settings.resident_planes = vram_budget ? PLACE_RESIDENT_DEVICE : PLACE_RESIDENT_AUTO;
    run.settings.steps = 4;
    run.settings.checkpoint_every = 1;
    tiny_train(&run);
    before = tiny_hash(&run, &step);
    run.settings.steps = 20;
    run.settings.resume = true;
    run.settings.optim.lr = run.settings.optim.min_lr = 1e37;
    char *output;
    int status = tiny_fork(train_alone, &run, &output);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    if (!strstr(output, "finite") || !strstr(output, "--lr"))
        fail_msg("%s", output);
    free(output);
    assert_true(tiny_hash(&run, &step) == before || step > 4);
}

static void test_not_finite(void **state)
{
    (void)state;
    check_not_finite("infinite", 0);
    check_not_finite("infinite-device", 64 * MIB);
}

/* ---- Memory -----------------------------------------------------------------------------------
 */

static int32_t allocate(void *context, const struct ring_transfer *part, int32_t result)
{
    (void)part;
    *(void *volatile *)context = mem_alloc(1, 8);
    return result;
}

static void train_and_allocate(void *context)
{
    void *kept;
    struct err err;
    struct tiny_run *run = context;
    ring_set_fault(allocate, &kept);
    _exit(train_run(&run->settings, &err) == 0 ? 0 : 2);
}

/* All runs above end well with the check in force; here it is met. */
static void test_memory_is_sealed(void **state)
{
    (void)state;
    if (!mem_heap_has_stats())
        skip(); /* a sanitizer's heap: nothing is counted there */
    struct tiny_run run;
    char *output;
    tiny_run_init(&run, "sealed");
    apply(&run, &placements[6]);
    run.settings.ram_budget = GIB;
    int status = tiny_fork(train_and_allocate, &run, &output);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 1 || !strstr(output, "after memory was sealed"))
        fail_msg("status %d: %s", WEXITSTATUS(status), output);
    free(output);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placements_fp32),
        cmocka_unit_test(test_placements_bf16),
        cmocka_unit_test(test_clipping_matters),
        cmocka_unit_test(test_without_clipping),
        cmocka_unit_test(test_tiles),
        cmocka_unit_test(test_resumed_after_every_step),
        cmocka_unit_test(test_resumed_elsewhere),
        cmocka_unit_test(test_existing_run_is_refused),
        cmocka_unit_test(test_steps_zero_commits_initial_weights),
        cmocka_unit_test(test_max_time),
        cmocka_unit_test(test_evaluations_and_copies),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_memory_is_sealed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
