/*
 * Properties of the NVMe tier: a chunk is written into the slot that is not committed and read
 * where it was written last; commits turn the two slots around; during a run, whatever its
 * placement, no write ever touches the slot that the manifest on the drive names. Checksums tell
 * blocks apart by where they belong. What the drive refuses is an error with file and offset; a
 * block that is not what was written ends the program with both. Method: the slots' arithmetic on a
 * tiny model; a whole run with an observer at the seam between kernel and ring; children for what
 * is fatal.
 */
#include "core/mem.h"
#include "io/ring.h"
#include "offload/state.h"
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

/* A model of many chunks in the least RAM, and initial weights in it. */
static void open_box(struct tiny_box *box, struct tiny_model *model, const char *name)
{
    struct place_spec spec;
    struct err err;
    tiny_model_init(model, 2, 64, 300, 8192, 8192);
    tiny_spec(&spec, model);
    spec.resident_planes = 0;
    spec.recompute = RECOMPUTE_NONE;
    tiny_spec_shrink(&spec);
    tiny_box_open(box, model, &spec, name, true);
    if (state_create(&box->exec, box->ring, &model->tensors, 1, NULL, &err) != 0)
        fail_msg("%s", err.message);
}

static void close_box(struct tiny_box *box, struct tiny_model *model)
{
    tiny_box_close(box);
    tiny_model_deinit(model);
}

/* ---- Slots ------------------------------------------------------------------------------------
 */

static void test_slots_alternate(void **state)
{
    (void)state;
    struct tiny_model model;
    struct tiny_box box;
    struct err err;
    open_box(&box, &model, "slots");
    struct tier *tier = &box.tier;
    uint64_t slot_bytes = model.layout.slot_bytes;
    assert_int_equal(tier->committed_slot, -1);
    assert_int_equal(tier_open_slot(tier), 0);
    for (uint32_t commit = 0; commit < 5; commit++) {
        uint64_t written;
        uint32_t open = commit % 2;
        assert_int_equal(tier_open_slot(tier), open);
        box.checkpoint.step = commit;
        assert_int_equal(state_commit(&box.exec, box.ring, &written, &err), 0);
        assert_int_equal(tier->committed_slot, open);
        assert_int_equal(tier_open_slot(tier), 1 - open);
        for (uint32_t c = 0; c < model.layout.chunk_count; c++)
            for (uint32_t p = 0; p < PLANE_COUNT; p++) {
                const struct layout_chunk *chunk = &model.layout.chunks[c];
                uint32_t cell = box.memory.plane_nvme.first + c * PLANE_COUNT + p;
                uint64_t at = chunk->offset + layout_plane_offset(&model.layout, chunk->count, p);
                /* Not updated yet: read where the commit is. */
                if (p == 0)
                    assert_int_equal(tier_read_at(tier, cell).offset, open * slot_bytes + at);
                struct tier_location where = tier_write_at(tier, cell);
                assert_int_equal(where.fd, tier->drives[0].state_fd);
                assert_int_equal(where.offset, (1 - open) * slot_bytes + at);
                assert_int_equal(tier_read_at(tier, cell).offset, where.offset);
            }
    }
    close_box(&box, &model);
}

static void test_scratch_cells(void **state)
{
    (void)state;
    struct tiny_model model;
    struct tiny_box box;
    open_box(&box, &model, "scratch");
    uint32_t found = 0;
    for (uint32_t c = 0; c < box.memory.cell_count; c++) {
        const struct plan_cell *cell = &box.memory.cells[c];
        if (cell->tier != TIER_NVME || cell->state_file || !cell->bytes)
            continue;
        struct tier_location in = tier_read_at(&box.tier, c), out = tier_write_at(&box.tier, c);
        assert_true(in.fd == box.tier.drives[0].scratch_fd && out.fd == in.fd);
        assert_true(in.offset == cell->offset && out.offset == in.offset);
        found++;
    }
    /* The file has no name: a killed run leaves none behind. */
    struct stat status;
    assert_int_equal(fstat(box.tier.drives[0].scratch_fd, &status), 0);
    assert_int_equal(status.st_nlink, 0);
    assert_int_equal(status.st_size, box.memory.tier_bytes[TIER_NVME]);
    assert_true(found > 0);
    close_box(&box, &model);
}

/* ---- The committed slot in a run --------------------------------------------------------------
 */

struct observer {
    char manifest[FILE_PATH_MAX];
    uint64_t slot_bytes;
    uint32_t writes[2], breaches;
};

/* The slot of the manifest that is on the drive now, or -1. Allocates nothing: memory is sealed. */
static int slot_on_drive(const char *path)
{
    char text[512] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t bytes = read(fd, text, sizeof(text) - 1);
    close(fd);
    const char *found = bytes > 0 ? strstr(text, "\"slot\": ") : NULL;
    return found ? atoi(found + 8) : -1;
}

static int32_t observe(void *context, const struct ring_transfer *part, int32_t result)
{
    struct observer *observer = context;
    struct stat status;
    if (!part->write || fstat(part->fd, &status) != 0 || status.st_nlink == 0)
        return result; /* the scratch file has no name */
    uint32_t slot = part->offset >= observer->slot_bytes;
    uint32_t last = part->offset + part->bytes > observer->slot_bytes;
    observer->writes[slot]++;
    observer->breaches += slot != last || (int)slot == slot_on_drive(observer->manifest);
    return result;
}

static void test_committed_slot_is_never_written(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 3, 64, 300, 0, 0);
    for (int resident = PLACE_RESIDENT_AUTO; resident <= PLANE_COUNT; resident++)
        for (uint64_t every = 1; every <= 3; every++) {
            struct tiny_run run;
            struct observer observer = {.slot_bytes = model.layout.slot_bytes};
            char name[64];
            snprintf(name, sizeof(name), "slot-%d-%d", resident, (int)every);
            tiny_run_init(&run, name);
            snprintf(observer.manifest, sizeof(observer.manifest), "%.4000s/commit.json",
                     run.run_dir);
            run.settings.nvme = train_nvme(run.nvme_dir);
            run.settings.resident_planes = resident;
            run.settings.checkpoint_every = every;
            run.settings.eval_every = every == 2 ? 3 : 0;
            run.settings.optim.clip = every == 3 ? 0 : 1;
            run.settings.steps = 5;
            ring_set_fault(observe, &observer);
            tiny_train(&run);
            run.settings.resume = true;
            run.settings.steps = 8;
            tiny_train(&run);
            ring_set_fault(NULL, NULL);
            assert_int_equal(observer.breaches, 0);
            assert_true(observer.writes[0] > 0 && observer.writes[1] > 0);
            scratch_remove(run.run_dir);
            scratch_remove(run.nvme_dir);
        }
    tiny_model_deinit(&model);
}

/* ---- Opening ----------------------------------------------------------------------------------
 */

static void test_files_that_are_refused(void **state)
{
    (void)state;
    struct tiny_model model;
    struct tiny_box box;
    struct tier tier;
    struct err err;
    open_box(&box, &model, "refused");
    struct stripe_files files;
    assert_int_equal(stripe_files_one(&files, scratch_path("nowhere/state.bin"), &err), 0);
    assert_true(tier_open(&tier, &model.layout, &box.memory, &files, false, &err) < 0);
    tier_close(&tier);
    assert_true(tier_open(&tier, &model.layout, &box.memory, &files, true, &err) < 0);
    tier_close(&tier);
    char longer[FILE_PATH_MAX + 1];
    memset(longer, 'x', FILE_PATH_MAX);
    longer[FILE_PATH_MAX] = 0;
    assert_int_equal(stripe_files_one(&files, longer, &err), ERR_INPUT);
    assert_int_equal(stripe_files_one(&files, box.state_path, &err), 0);
    /* One block short, one block long. */
    for (int blocks = -1; blocks <= 1; blocks += 2) {
        off_t bytes = (off_t)(2 * model.layout.slot_bytes) + blocks * (off_t)IO_ALIGN;
        assert_int_equal(truncate(box.state_path, bytes), 0);
        assert_int_equal(tier_open(&tier, &model.layout, &box.memory, &files, false, &err),
                         ERR_CORRUPT);
        assert_non_null(strstr(err.message, box.state_path));
        tier_close(&tier);
    }
    tier_close(&tier); /* closing what is closed is legal */
    close_box(&box, &model);
}

/* ---- Checksums --------------------------------------------------------------------------------
 */

static void test_sums_know_their_place(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 1, 32, 300, 2048, 0);
    const struct layout *layout = &model.layout;
    uint8_t data[4096] = {1, 2, 3};
    assert_int_equal(layout_plane_bytes(layout, layout->chunks[2].count, PLANE_LO), sizeof(data));
    assert_int_equal(layout_plane_bytes(layout, layout->chunks[3].count, PLANE_LO), sizeof(data));
    uint64_t sum = tier_plane_sum(layout, 2, 1, data);
    assert_int_equal(sum, tier_plane_sum(layout, 2, 1, data));
    assert_true(sum != tier_plane_sum(layout, 3, 1, data));
    assert_true(sum != tier_plane_sum(layout, 2, 0, data));
    assert_true(sum != tier_cell_sum(2, data, sizeof(data)));
    assert_true(tier_cell_sum(5, data, sizeof(data)) != tier_cell_sum(6, data, sizeof(data)));
    for (size_t bit = 0; bit < 8 * sizeof(data); bit += 37) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_true(sum != tier_plane_sum(layout, 2, 1, data));
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    tiny_model_deinit(&model);
}

static void test_weights_hash(void **state)
{
    (void)state;
    struct tiny_model model;
    struct tiny_box box;
    open_box(&box, &model, "hash");
    uint64_t hash = tier_weights_hash(&box.tier), *sums = box.tier.plane_sums;
    for (uint32_t i = 0; i < model.layout.chunk_count * PLANE_COUNT; i++) {
        bool weights = i % PLANE_COUNT <= PLANE_LO;
        sums[i] ^= 1;
        assert_int_equal(tier_weights_hash(&box.tier) != hash, weights);
        sums[i] ^= 1;
    }
    uint64_t first = sums[0];
    sums[0] = sums[PLANE_COUNT];
    sums[PLANE_COUNT] = first;
    assert_true(tier_weights_hash(&box.tier) != hash);
    close_box(&box, &model);
}

/* ---- Failures ---------------------------------------------------------------------------------
 */

static int32_t fail_always(void *context, const struct ring_transfer *part, int32_t result)
{
    (void)context, (void)part, (void)result;
    return -EIO;
}

static void test_failed_transfer(void **state)
{
    (void)state;
    struct tiny_model model;
    struct tiny_box box;
    struct err err;
    char expected[64];
    open_box(&box, &model, "failed");
    struct tier_location at =
        tier_read_at(&box.tier, box.memory.plane_nvme.first + 3 * PLANE_COUNT);
    void *buffer = exec_cell(&box.exec, box.memory.state_stage.first);
    snprintf(expected, sizeof(expected), "offset %llu: ", (unsigned long long)at.offset);
    for (int write = 0; write < 2; write++) {
        ring_set_fault(fail_always, NULL);
        assert_int_equal(tier_transfer(&box.tier, box.ring, write, at, buffer, IO_ALIGN, &err),
                         ERR_SYSTEM);
        ring_set_fault(NULL, NULL);
        assert_non_null(strstr(err.message, box.state_path));
        assert_non_null(strstr(err.message, expected));
        assert_non_null(strstr(err.message, write ? "cannot write" : "cannot read"));
        assert_int_equal(tier_transfer(&box.tier, box.ring, write, at, buffer, IO_ALIGN, &err), 0);
    }
    close_box(&box, &model);
}

static void fail_plane(void *context)
{
    const struct tiny_box *box = context;
    tier_fail_plane(&box->tier, 2, PLANE_V);
}

static void fail_cell(void *context)
{
    const struct tiny_box *box = context;
    tier_fail_cell(&box->tier, box->memory.x_nvme.first);
}

static void test_fatal_messages(void **state)
{
    (void)state;
    struct tiny_model model;
    struct tiny_box box;
    char *output, expected[64];
    open_box(&box, &model, "fatal");
    const struct layout_chunk *chunk = &model.layout.chunks[2];
    int status = tiny_fork(fail_plane, &box, &output);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    snprintf(expected, sizeof(expected), "offset %llu ",
             (unsigned long long)(chunk->offset +
                                  layout_plane_offset(&model.layout, chunk->count, PLANE_V)));
    assert_non_null(strstr(output, expected));
    assert_non_null(strstr(output, box.state_path));
    assert_non_null(strstr(output, "chunk 2 (v)"));
    free(output);
    status = tiny_fork(fail_cell, &box, &output);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_non_null(strstr(output, "is damaged: at offset "));
    assert_non_null(strstr(output, "--resume"));
    free(output);
    close_box(&box, &model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slots_alternate),
        cmocka_unit_test(test_scratch_cells),
        cmocka_unit_test(test_committed_slot_is_never_written),
        cmocka_unit_test(test_files_that_are_refused),
        cmocka_unit_test(test_sums_know_their_place),
        cmocka_unit_test(test_weights_hash),
        cmocka_unit_test(test_failed_transfer),
        cmocka_unit_test(test_fatal_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
