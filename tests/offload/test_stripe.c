/*
 * Properties of a run over several drives: every drive holds its share of any stretch of chunks,
 * back to back and none twice; where the state lies changes nothing of what is trained; a run moves
 * between sets of drives that overlap, and leaves nothing behind; a manifest gives back files and
 * shares; what is kept, and what a reader reads, is the same state; what a drive refuses is
 * reported with its own file. Method: the dealing by itself over layouts of many chunks; whole tiny
 * runs against one without a drive; the seam between kernel and ring for the drive that fails.
 */
#include "offload/stripe.h"

#include "core/mem.h"
#include "io/ring.h"
#include "offload/home.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Dealing ----------------------------------------------------------------------------------
 */

struct shares {
    uint32_t count, share[STRIPE_DRIVES_MAX];
};
static const struct shares shares[] = {
    {1, {1}},          {2, {1, 1}},          {2, {3, 1}},
    {2, {1, 10000}},   {3, {500, 300, 200}}, {8, {1, 2, 3, 4, 5, 6, 7, 8}},
    {4, {7, 7, 7, 7}},
};

static void set_files(struct stripe_files *files, const struct shares *s)
{
    files->count = s->count;
    memcpy(files->share, s->share, sizeof(files->share));
    for (uint32_t d = 0; d < s->count; d++)
        snprintf(files->path[d], FILE_PATH_MAX, "/drive%u/state", d);
}

/* Bytes of the chunks [first, end) on each drive, against the shares: no drive is further off than
 * two of the largest chunks. */
static void check_stretch(const struct layout *layout, const struct stripe *stripe,
                          const struct shares *s, uint32_t first, uint32_t end)
{
    double bytes[STRIPE_DRIVES_MAX] = {0}, whole = 0, shares_sum = 0;
    for (uint32_t c = first; c < end; c++) {
        uint64_t chunk = layout_state_bytes(layout, layout->chunks[c].count);
        bytes[stripe->drive[c]] += (double)chunk;
        whole += (double)chunk;
    }
    for (uint32_t d = 0; d < s->count; d++)
        shares_sum += s->share[d];
    double most = (double)layout_state_bytes(layout, layout->chunk_count_max);
    for (uint32_t d = 0; d < s->count; d++) {
        double off = bytes[d] - whole * s->share[d] / shares_sum;
        if (off > 2 * most || off < -2 * most)
            fail_msg("drive %u of %u holds %.0f of chunks %u to %u, which is %.0f off its share", d,
                     s->count, bytes[d], first, end, off);
    }
}

static void test_any_stretch_uses_all_drives(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 4, 64, 300, 2048, 4096);
    const struct layout *layout = &model.layout;
    assert_true(layout->chunk_count > 100);
    for (size_t i = 0; i < ARRAY_COUNT(shares); i++) {
        struct stripe_files files;
        struct stripe stripe;
        uint64_t used[STRIPE_DRIVES_MAX] = {0};
        set_files(&files, &shares[i]);
        stripe_init(&stripe, layout, &files);
        for (uint32_t c = 0; c < layout->chunk_count; c++) {
            uint32_t d = stripe.drive[c];
            assert_true(d < files.count);
            assert_int_equal(stripe.offset[c], used[d]); /* back to back */
            assert_int_equal(stripe.offset[c] % IO_ALIGN, 0);
            used[d] += layout_state_bytes(layout, layout->chunks[c].count);
            for (uint32_t end = c + 1; end <= layout->chunk_count; end += 7)
                check_stretch(layout, &stripe, &shares[i], c, end);
        }
        for (uint32_t d = 0; d < files.count; d++)
            assert_int_equal(stripe.slot_bytes[d], used[d]);
        if (files.count == 1)
            for (uint32_t c = 0; c < layout->chunk_count; c++)
                assert_int_equal(stripe.offset[c], layout->chunks[c].offset);
        stripe_deinit(&stripe);
        stripe_deinit(&stripe); /* a zeroed one is legal */
    }
    tiny_model_deinit(&model);
}

static void test_sets_of_files(void **state)
{
    (void)state;
    struct stripe_files a, b;
    char text[128];
    set_files(&a, &shares[4]);
    set_files(&b, &shares[4]);
    assert_true(stripe_files_same(&a, &b));
    strcpy(b.path[0], a.path[2]);
    strcpy(b.path[2], a.path[0]);
    assert_true(stripe_files_same(&a, &b));
    strcpy(b.path[1], "/elsewhere/state");
    assert_false(stripe_files_same(&a, &b));
    set_files(&b, &shares[1]);
    assert_false(stripe_files_same(&a, &b));
    assert_false(stripe_files_same(&b, &a));
    assert_string_equal(stripe_files_text(&a, text, sizeof(text)),
                        "/drive0/state, /drive1/state and /drive2/state");
    assert_string_equal(stripe_files_text(&b, text, sizeof(text)),
                        "/drive0/state and /drive1/state");
}

/* ---- Runs -------------------------------------------------------------------------------------
 */

#define DRIVES 3

struct drives {
    char dir[DRIVES][FILE_PATH_MAX];
};

static void name_drives(struct drives *drives, const char *name)
{
    for (int d = 0; d < DRIVES; d++) {
        char folder[64];
        snprintf(folder, sizeof(folder), "%s-drive-%d", name, d);
        strcpy(drives->dir[d], scratch_path(folder));
    }
}

/* A set of drives in the order that --nvme names them: "20" are the third and the first. */
static struct train_nvme take(const struct drives *drives, const char *which, uint32_t first_share)
{
    struct train_nvme nvme = {0};
    for (; *which; which++) {
        nvme.dir[nvme.count] = drives->dir[*which - '0'];
        nvme.share[nvme.count] = nvme.count ? 1 : first_share;
        nvme.count++;
    }
    return nvme;
}

static uint32_t files_in(const char *dir, uint64_t *bytes)
{
    DIR *folder = opendir(dir);
    uint32_t count = 0;
    struct stat status;
    *bytes = 0;
    if (!folder)
        return 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (entry->d_name[0] == '.')
            continue;
        count++;
        if (fstatat(dirfd(folder), entry->d_name, &status, 0) == 0)
            *bytes += (uint64_t)status.st_size;
    }
    closedir(folder);
    return count;
}

static char *plain_log(uint64_t steps, const char *name)
{
    struct tiny_run run;
    tiny_run_init(&run, name);
    run.settings.steps = steps;
    run.settings.checkpoint_every = 2;
    tiny_train(&run);
    return tiny_log(&run);
}

/* Each drive has one file, and together they have two slots of the state. */
static void check_files(const struct tiny_run *run, const struct train_nvme *nvme)
{
    struct tiny_model model;
    struct checkpoint_manifest manifest;
    struct err err;
    uint64_t sum = 0;
    tiny_model_init(&model, 3, 64, 300, 0, 0);
    assert_int_equal(checkpoint_load(&manifest, run->run_dir, &model.layout, &err), 0);
    assert_int_equal(manifest.files.count, nvme->count);
    for (uint32_t d = 0; d < nvme->count; d++) {
        uint64_t bytes;
        assert_int_equal(files_in(nvme->dir[d], &bytes), 1);
        sum += bytes;
    }
    assert_int_equal(sum, 2 * model.layout.slot_bytes);
    checkpoint_unload(&manifest);
    tiny_model_deinit(&model);
}

static void check_same_on(const char *name, const char *which, uint32_t first_share,
                          uint64_t vram_budget, const char *expected)
{
    struct tiny_run run;
    struct drives drives;
    tiny_run_init(&run, name);
    name_drives(&drives, name);
    run.settings.nvme = take(&drives, which, first_share);
    run.settings.steps = 6;
    run.settings.checkpoint_every = 2;
    run.settings.resident_planes = 0;
    run.settings.vram_budget = vram_budget;
    run.settings.recompute = RECOMPUTE_NONE;
    tiny_train_least(&run);
    char *log = tiny_log(&run);
    assert_string_equal(log, expected);
    check_files(&run, &run.settings.nvme);
    free(log);
}

static void test_drives_change_nothing(void **state)
{
    (void)state;
    char *expected = plain_log(6, "plain");
    check_same_on("two", "01", 1, 0, expected);
    check_same_on("two-device", "10", 3, 64 * MIB, expected);
    check_same_on("three", "012", 2, 64 * MIB, expected);
    check_same_on("hardly", "01", 10000, 0, expected);
    free(expected);
}

/* Sets that overlap, in another order, and none; every stop is a commit. */
static void test_wanders_between_sets(void **state)
{
    (void)state;
    static const char *const sets[] = {"0", "01", "10", "12", "012", "", "2", "021", "01", "02"};
    struct tiny_run run;
    struct drives drives;
    char *expected = plain_log(2 * ARRAY_COUNT(sets), "wander-plain");
    tiny_run_init(&run, "wander");
    name_drives(&drives, "wander");
    run.settings.checkpoint_every = 2;
    for (size_t i = 0; i < ARRAY_COUNT(sets); i++) {
        run.settings.nvme = take(&drives, sets[i], 1 + (uint32_t)i % 3);
        run.settings.resident_planes = *sets[i] ? (int)i % 5 : PLACE_RESIDENT_AUTO;
        run.settings.steps = 2 * i + 2;
        run.settings.resume = i > 0;
        tiny_train(&run);
        for (int d = 0; d < DRIVES; d++) {
            uint64_t bytes;
            assert_int_equal(files_in(drives.dir[d], &bytes), strchr(sets[i], '0' + d) != NULL);
        }
        if (*sets[i])
            check_files(&run, &run.settings.nvme);
    }
    char *log = tiny_log(&run);
    assert_string_equal(log, expected);
    free(log);
    free(expected);
}

static void test_folder_named_twice(void **state)
{
    (void)state;
    struct tiny_run run;
    struct drives drives;
    struct err err;
    tiny_run_init(&run, "double");
    name_drives(&drives, "double");
    run.settings.nvme = take(&drives, "010", 1);
    assert_int_equal(train_run(&run.settings, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "twice"));
    assert_non_null(strstr(err.message, drives.dir[0]));
}

/* ---- Readers, copies, losses ------------------------------------------------------------------
 */

static void make_striped(struct tiny_run *run, struct drives *drives, const char *name)
{
    tiny_run_init(run, name);
    name_drives(drives, name);
    run->settings.nvme = take(drives, "012", 2);
    run->settings.steps = 4;
    run->settings.checkpoint_every = 2;
    run->settings.keep_every = 2;
    tiny_train(run);
}

/* All planes of the commit in this folder, in the order of the layout; freed with mem_free. */
static uint8_t *read_all(const struct tiny_model *model, const char *dir)
{
    struct checkpoint_reader reader;
    struct err err;
    uint8_t *all = mem_alloc(model->layout.slot_bytes, 1);
    assert_int_equal(checkpoint_reader_open(&reader, dir, &model->layout, &err), 0);
    for (uint32_t c = 0; c < model->layout.chunk_count; c++)
        if (checkpoint_read(&reader, c, 0, PLANE_COUNT, all + model->layout.chunks[c].offset, &err))
            fail_msg("%s", err.message);
    checkpoint_reader_close(&reader);
    return all;
}

static void test_kept_copy_is_whole(void **state)
{
    (void)state;
    struct tiny_run run;
    struct tiny_model model;
    struct drives drives;
    char dir[FILE_PATH_MAX];
    struct err err;
    make_striped(&run, &drives, "kept");
    tiny_model_init(&model, 3, 64, 300, 0, 0);
    assert_int_equal(file_join(dir, run.run_dir, "kept/step-00000004", &err), 0);
    uint8_t *striped = read_all(&model, run.run_dir), *copy = read_all(&model, dir);
    assert_memory_equal(striped, copy, model.layout.slot_bytes);
    mem_free(striped);
    mem_free(copy);
    tiny_model_deinit(&model);
}

static void test_lost_drive_is_named(void **state)
{
    (void)state;
    struct tiny_run run;
    struct drives drives;
    struct checkpoint_manifest manifest;
    struct err err;
    char away[FILE_PATH_MAX];
    make_striped(&run, &drives, "lost");
    assert_int_equal(checkpoint_load(&manifest, run.run_dir, NULL, &err), 0);
    run.settings.resume = true;
    run.settings.steps = 6;
    strcpy(away, scratch_path("away"));
    for (uint32_t d = 0; d < manifest.files.count; d++) {
        const char *path = manifest.files.path[d];
        assert_int_equal(rename(path, away), 0);
        assert_true(train_run(&run.settings, &err) < 0);
        if (!strstr(err.message, path))
            fail_msg("not named: %s in: %s", path, err.message);
        assert_int_equal(rename(away, path), 0);
    }
    /* Nothing was harmed by it. */
    tiny_train(&run);
    checkpoint_unload(&manifest);
}

/* Two files of the same size that have changed places are not taken for each other. */
static void test_swapped_drives_are_found(void **state)
{
    (void)state;
    struct tiny_model model;
    struct checkpoint_reader reader;
    struct err err;
    struct tiny_run run;
    struct drives drives;
    make_striped(&run, &drives, "swapped");
    tiny_model_init(&model, 3, 64, 300, 0, 0);
    assert_int_equal(checkpoint_reader_open(&reader, run.run_dir, &model.layout, &err), 0);
    int fd = reader.fds[0], result = 0;
    reader.fds[0] = reader.fds[1];
    reader.fds[1] = fd;
    uint8_t *chunk = mem_alloc(model.layout.slot_bytes, 1);
    for (uint32_t c = 0; c < model.layout.chunk_count && result == 0; c++)
        result = checkpoint_read(&reader, c, 0, PLANE_COUNT, chunk, &err);
    assert_int_equal(result, ERR_CORRUPT);
    checkpoint_reader_close(&reader);
    mem_free(chunk);
    tiny_model_deinit(&model);
}

/* ---- A drive that fails ------------------------------------------------------------------------
 */

/* Which of the open files is on this drive, by its folder. */
static bool is_on(int fd, const char *dir)
{
    char link[64], path[FILE_PATH_MAX];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof(path) - 1);
    path[MAX(bytes, 0)] = 0;
    return strncmp(path, dir, strlen(dir)) == 0;
}

static int32_t fail_on_drive(void *context, const struct ring_transfer *part, int32_t result)
{
    return is_on(part->fd, context) ? -EIO : result;
}

static void go_on_with_failing_drive(void *context)
{
    struct tiny_run *run = context;
    struct err err;
    ring_set_fault(fail_on_drive, (void *)(uintptr_t)run->settings.nvme.dir[1]);
    run->settings.resume = true;
    run->settings.steps = 8;
    if (train_run(&run->settings, &err) != 0)
        fatal("%s", err.message);
}

static void test_failing_drive_is_named(void **state)
{
    (void)state;
    struct tiny_run run;
    struct drives drives;
    char real[FILE_PATH_MAX], *output;
    make_striped(&run, &drives, "failing");
    run.settings.resident_planes = 0;
    char *before = tiny_log(&run);
    assert_non_null(realpath(drives.dir[1], real));
    int status = tiny_fork(go_on_with_failing_drive, &run, &output);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    if (!strstr(output, real) || !strstr(output, "at offset"))
        fail_msg("the drive is not named: %s", output);
    free(output);
    /* And the commit is intact. */
    run.settings.resume = true;
    run.settings.steps = 6;
    tiny_train(&run);
    char *after = tiny_log(&run);
    assert_memory_equal(after, before, strlen(before));
    free(before);
    free(after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_stretch_uses_all_drives),
        cmocka_unit_test(test_sets_of_files),
        cmocka_unit_test(test_drives_change_nothing),
        cmocka_unit_test(test_wanders_between_sets),
        cmocka_unit_test(test_folder_named_twice),
        cmocka_unit_test(test_kept_copy_is_whole),
        cmocka_unit_test(test_lost_drive_is_named),
        cmocka_unit_test(test_swapped_drives_are_found),
        cmocka_unit_test(test_failing_drive_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
