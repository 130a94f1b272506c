/*
 * Property: check finds each damaged byte of what has a checksum, names file and offset of the
 * first and counts all; finds nothing where nothing is; and tells what it was given when that is
 * neither run nor data.
 * Method: one byte flipped at a time, in every plane of several chunks, and flipped back.
 */
#include "core/base.h"
#include "core/mem.h"
#include "offload/infer.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct infer_model model;
static struct checkpoint_manifest manifest;

static int setup(void **state)
{
    (void)state;
    struct config ignored;
    struct err err;
    command_data("data", 1);
    command_data("other", 77);
    command_model(&ignored, "small", 2, 32, 32, COMMAND_VOCAB);
    command_must(train_main, "train --model @/small.json --data @/data --out @/run --nvme @/nvme "
                             "--seq 16 --batch 2 --steps 4 --checkpoint-every 2 --keep-every 2");
    ASSERT(infer_model_open(&model, scratch_path("run"), NULL, &err) == 0);
    ASSERT(checkpoint_load(&manifest, scratch_path("run"), &model.layout, &err) == 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    checkpoint_unload(&manifest);
    infer_model_close(&model);
    return 0;
}

static void flip_byte(const char *path, uint64_t offset)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 0x10;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

static uint64_t plane_offset(uint32_t slot, uint32_t chunk, uint32_t plane)
{
    const struct layout_chunk *c = &model.layout.chunks[chunk];
    return slot * model.layout.slot_bytes + c->offset +
           layout_plane_offset(&model.layout, c->count, plane);
}

static void whole(const char *line)
{
    command_must(check_main, line);
    assert_non_null(strstr(command_out(), "no damage"));
    assert_null(strstr(command_out(), "damaged "));
}

/* ---- Runs ------------------------------------------------------------------------------------ */

static void test_whole_run(void **state)
{
    (void)state;
    whole("check @/run");
    assert_non_null(strstr(command_out(), manifest.files.path[0]));
    assert_non_null(strstr(command_out(), "run/commit.json"));
    assert_non_null(strstr(command_out(), "run/tokenizer.json"));
    assert_non_null(strstr(command_out(), "run/kept/step-00000002/state.bin"));
    assert_non_null(strstr(command_out(), "run/kept/step-00000004/state.bin"));
    assert_non_null(strstr(command_out(), "12 files"));
    whole("check @/run/kept/step-00000002");
    assert_non_null(strstr(command_out(), "4 files"));
}

static void test_every_plane(void **state)
{
    (void)state;
    const uint32_t chunks[] = {0, 1, model.layout.chunk_count / 2, model.layout.chunk_count - 1};
    for (size_t i = 0; i < ARRAY_COUNT(chunks); i++)
        for (uint32_t p = 0; p < PLANE_COUNT; p++) {
            char said[FILE_PATH_MAX + 64];
            uint64_t offset = plane_offset(manifest.slot, chunks[i], p);
            uint64_t bytes =
                layout_plane_bytes(&model.layout, model.layout.chunks[chunks[i]].count, p);
            uint64_t at = offset + (i % 2 ? bytes - 1 : 0); /* the first byte, or the last */
            snprintf(said, sizeof(said), "%s is damaged: at offset %" PRIu64 " ",
                     manifest.files.path[0], offset);
            flip_byte(manifest.files.path[0], at);
            command_refused(check_main, "check @/run", 1, said);
            assert_non_null(strstr(command_out(), ": 1 damaged"));
            flip_byte(manifest.files.path[0], at);
        }
    whole("check @/run");
}

static void test_counts_all_names_first(void **state)
{
    (void)state;
    uint32_t last = model.layout.chunk_count - 1;
    char said[64];
    snprintf(said, sizeof(said), "at offset %" PRIu64 " ", plane_offset(manifest.slot, 2, PLANE_M));
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, 2, PLANE_M));
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, 2, PLANE_M) + 1);
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, 2, PLANE_V));
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, last, PLANE_LO));
    command_refused(check_main, "check @/run", 1, said);
    assert_non_null(strstr(command_out(), "(3 places)"));
    assert_non_null(strstr(command_out(), ": 3 damaged"));
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, 2, PLANE_M));
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, 2, PLANE_M) + 1);
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, 2, PLANE_V));
    flip_byte(manifest.files.path[0], plane_offset(manifest.slot, last, PLANE_LO));
    whole("check @/run");
}

/* The other slot is not committed: whatever is in it is nobody's. */
static void test_other_slot(void **state)
{
    (void)state;
    flip_byte(manifest.files.path[0], plane_offset(1 - manifest.slot, 0, PLANE_HI));
    whole("check @/run");
    flip_byte(manifest.files.path[0], plane_offset(1 - manifest.slot, 0, PLANE_HI));
}

static void test_kept_commit(void **state)
{
    (void)state;
    char path[FILE_PATH_MAX];
    struct checkpoint_manifest kept;
    struct err err;
    assert_int_equal(
        checkpoint_load(&kept, scratch_path("run/kept/step-00000002"), &model.layout, &err), 0);
    strcpy(path, kept.files.path[0]);
    uint64_t at = plane_offset(kept.slot, 1, PLANE_HI);
    checkpoint_unload(&kept);
    flip_byte(path, at);
    command_refused(check_main, "check @/run", 1, "step-00000002/state.bin");
    command_refused(check_main, "check @/run/kept/step-00000002", 1, "step-00000002/state.bin");
    whole("check @/run/kept/step-00000004");
    flip_byte(path, at);
    /* Cut short: everything behind the cut is counted, the file named. */
    assert_int_equal(truncate(path, (off_t)at), 0);
    command_refused(check_main, "check @/run", 1, "step-00000002/state.bin ends at offset");
    assert_null(strstr(command_out(), ": 1 damaged"));
    assert_int_equal(unlink(path), 0);
    command_refused(check_main, "check @/run", 1, "step-00000002/state.bin");
    assert_non_null(strstr(command_out(), ": 1 damaged"));
}

/* Writes commit.json with this text changed into that, both of one length. */
static void check_manifest_with(const char *from, const char *to, const char *said)
{
    char *text = scratch_read(scratch_path("run/commit.json"));
    char *changed = strdup(text), *at = strstr(changed, from);
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    memcpy(at, to, strlen(to));
    scratch_write("run/commit.json", changed);
    command_refused(check_main, "check @/run", 1, said);
    scratch_write("run/commit.json", text);
    free(changed);
    free(text);
}

static void test_manifest(void **state)
{
    (void)state;
    char sum[32], other[32];
    snprintf(sum, sizeof(sum), "\"%016" PRIx64 "\"]}",
             manifest.plane_sums[manifest.chunk_count * PLANE_COUNT - 1]);
    snprintf(other, sizeof(other), "%s", sum);
    other[5] = other[5] == '0' ? '1' : '0';
    check_manifest_with(sum, other, "run/commit.json");
    snprintf(sum, sizeof(sum), "%016" PRIx64, manifest.weights_hash);
    snprintf(other, sizeof(other), "%s", sum);
    other[5] = other[5] == '0' ? '1' : '0';
    check_manifest_with(sum, other, "run/commit.json");
    check_manifest_with("\"slot\"", "\"slit\"", "run/commit.json");
    check_manifest_with("{\"version\": 2", "{\"version\" 11", "run/commit.json");
}

static void test_tokenizer_of_run(void **state)
{
    (void)state;
    char *text = scratch_read(scratch_path("run/tokenizer.json"));
    scratch_write("run/tokenizer.json", "{\"model\": ");
    command_refused(check_main, "check @/run", 1, "run/tokenizer.json");
    scratch_write("run/tokenizer.json", text);
    free(text);
}

/* ---- Data ------------------------------------------------------------------------------------ */

static void test_data(void **state)
{
    (void)state;
    whole("check @/data");
    assert_non_null(strstr(command_out(), "4 files"));
    whole("check @/data/val.tok");
    flip_byte(scratch_path("data/train.tok"), SHARD_HEADER_BYTES + 1000);
    command_refused(check_main, "check @/data", 1, "data/train.tok");
    command_refused(check_main, "check @/data/train.tok", 1, "data/train.tok");
    flip_byte(scratch_path("data/val.tok"), 40); /* in the header */
    command_refused(check_main, "check @/data", 1, "data/train.tok");
    assert_non_null(strstr(command_out(), ": 2 damaged"));
    flip_byte(scratch_path("data/val.tok"), 40);
    flip_byte(scratch_path("data/train.tok"), SHARD_HEADER_BYTES + 1000);
    whole("check @/data");
}

static void test_data_that_does_not_belong(void **state)
{
    (void)state;
    char *mine = scratch_read(scratch_path("data/tokenizer.json"));
    char *other = scratch_read(scratch_path("other/tokenizer.json"));
    char *seal = scratch_read(scratch_path("data/dataset.json"));
    scratch_write("data/tokenizer.json", other);
    command_refused(check_main, "check @/data", 1, "tokenizer.json");
    scratch_write("data/tokenizer.json", mine);
    unlink(scratch_path("data/dataset.json"));
    command_refused(check_main, "check @/data", 1, "dataset.json");
    scratch_write("data/dataset.json", seal);
    whole("check @/data");
    free(seal);
    free(other);
    free(mine);
}

/* ---- Anything else --------------------------------------------------------------------------- */

static void test_neither(void **state)
{
    (void)state;
    command_must(check_main, "check --help");
    assert_non_null(strstr(command_out(), "spillway check run"));
    command_refused(check_main, "check", 2, "what to check");
    command_refused(check_main, "check @/run @/data", 2, "@/data");
    command_refused(check_main, "check @/none", 1, "@/none");
    command_refused(check_main, "check @/small.json", 1, "@/small.json");
    mkdir(scratch_path("empty"), 0755);
    command_refused(check_main, "check @/empty", 1, "@/empty");
    scratch_write("half/commit.json", "{}");
    command_refused(check_main, "check @/half", 1, "@/half");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole_run),
        cmocka_unit_test(test_every_plane),
        cmocka_unit_test(test_counts_all_names_first),
        cmocka_unit_test(test_other_slot),
        cmocka_unit_test(test_manifest),
        cmocka_unit_test(test_tokenizer_of_run),
        cmocka_unit_test(test_kept_commit),
        cmocka_unit_test(test_data),
        cmocka_unit_test(test_data_that_does_not_belong),
        cmocka_unit_test(test_neither),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
