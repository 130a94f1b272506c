/*
 * Properties of commits: what is committed is read back, whole, also from a run whose path has
 * awkward characters; a manifest of which any byte is damaged, or the end is missing, is refused; a
 * plane that has changed on the drive is found, with the file and its offset; a reader that was
 * overtaken by later commits is told to begin again; a kept commit is a run of its own. Method: a
 * tiny model in many chunks; every byte of a manifest is flipped in turn, every length tried;
 * planes are damaged one by one in the file.
 */
#include "core/mem.h"
#include "core/rng.h"
#include "offload/state.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct tiny_model model;

static int open_model(void **state)
{
    (void)state;
    tiny_model_init(&model, 2, 64, 300, 8192, 8192);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    tiny_model_deinit(&model);
    return 0;
}

/* hi and lo resident, m and v not: a commit is of both kinds. */
static void open_box(struct tiny_box *box, const char *name)
{
    struct place_spec spec;
    struct err err;
    tiny_spec(&spec, &model);
    spec.resident_planes = 2;
    tiny_box_open(box, &model, &spec, name, true);
    if (state_create(&box->exec, box->ring, &model.tensors, 1, NULL, &err) != 0)
        fail_msg("%s", err.message);
}

static void commit(struct tiny_box *box, uint64_t step)
{
    struct err err;
    uint64_t written;
    box->checkpoint.step = step;
    box->checkpoint.tokens = step * 1000;
    if (state_commit(&box->exec, box->ring, &written, &err) != 0)
        fail_msg("%s", err.message);
}

static void read_all(const char *run_dir, const uint8_t *expected)
{
    struct checkpoint_reader reader;
    struct err err;
    if (checkpoint_reader_open(&reader, run_dir, &model.layout, &err) != 0)
        fail_msg("%s", err.message);
    uint8_t *data = mem_alloc(model.layout.chunk_count_max, LAYOUT_STATE_BYTES);
    for (uint32_t c = 0; c < model.layout.chunk_count; c++) {
        const struct layout_chunk *chunk = &model.layout.chunks[c];
        if (checkpoint_read(&reader, c, 0, PLANE_COUNT, data, &err) != 0)
            fail_msg("%s", err.message);
        assert_memory_equal(data, expected + chunk->offset, chunk->count * LAYOUT_STATE_BYTES);
        /* And any run of planes. */
        if (checkpoint_read(&reader, c, PLANE_LO, 2, data, &err) != 0)
            fail_msg("%s", err.message);
        assert_memory_equal(data, expected + chunk->offset + chunk->count * 2, chunk->count * 6);
    }
    mem_free(data);
    checkpoint_reader_close(&reader);
}

static const char *manifest_path(const struct tiny_box *box)
{
    static char path[FILE_PATH_MAX + 16];
    snprintf(path, sizeof(path), "%s/commit.json", box->run_dir);
    return path;
}

static void write_bytes(const char *path, const void *data, size_t bytes)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    fclose(file);
}

/* ---- Round trips ------------------------------------------------------------------------------
 */

static void round_trip(const char *name)
{
    struct tiny_box box;
    struct checkpoint_manifest manifest;
    struct err err;
    open_box(&box, name);
    assert_int_equal(checkpoint_load(&manifest, box.run_dir, &model.layout, &err), 1);
    assert_null(manifest.plane_sums);
    struct checkpoint_reader reader;
    assert_int_equal(checkpoint_reader_open(&reader, box.run_dir, &model.layout, &err), ERR_INPUT);
    checkpoint_reader_close(&reader);
    uint8_t *state = tiny_box_state(&box);
    for (uint64_t step = 0; step < 3; step++) {
        commit(&box, step);
        if (checkpoint_load(&manifest, box.run_dir, &model.layout, &err) != 0)
            fail_msg("%s", err.message);
        assert_int_equal(manifest.step, step);
        assert_int_equal(manifest.tokens, step * 1000);
        assert_int_equal(manifest.slot, box.tier.committed_slot);
        assert_int_equal(manifest.parameters, model.layout.real_parameters);
        assert_int_equal(manifest.weights_hash, tier_weights_hash(&box.tier));
        assert_int_equal(manifest.weights_hash, box.checkpoint.weights_hash);
        assert_int_equal(manifest.chunk_count, model.layout.chunk_count);
        assert_string_equal(manifest.files.path[0], box.state_path);
        assert_memory_equal(manifest.plane_sums, box.tier.plane_sums,
                            model.layout.chunk_count * PLANE_COUNT * sizeof(uint64_t));
        checkpoint_unload(&manifest);
        assert_null(manifest.plane_sums);
        /* Nothing was updated since, so only the first slot holds m and v. */
        if (step == 0)
            read_all(box.run_dir, state);
    }
    mem_free(state);
    tiny_box_close(&box);
}

static void test_round_trips(void **state)
{
    (void)state;
    round_trip("plain");
    round_trip("with \"quotes\", back\\slashes,\ttabs\nand lines");
    round_trip(
        "p\xc5\x99\xc3\xadli\xc5\xa1 \xc5\xbelu\xc5\xa5ou\xc4\x8dk\xc3\xbd k\xc5\xaf\xc5\x88");
    round_trip("latin-1: \xe9\xff\x80"); /* a path is bytes, and no law makes them UTF-8 */
}

static void test_another_model_is_refused(void **state)
{
    (void)state;
    struct tiny_box box;
    struct tiny_model other;
    struct checkpoint_manifest manifest;
    struct err err;
    open_box(&box, "other");
    commit(&box, 3);
    tiny_model_init(&other, 2, 64, 299, 8192, 8192);
    assert_int_equal(checkpoint_load(&manifest, box.run_dir, &other.layout, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "another model"));
    assert_null(manifest.plane_sums);
    assert_int_equal(checkpoint_load(&manifest, box.run_dir, NULL, &err), 0);
    checkpoint_unload(&manifest);
    tiny_model_deinit(&other);
    tiny_box_close(&box);
}

/* A commit that cannot be written leaves the one before it as it was. */
static void test_failed_commit(void **state)
{
    (void)state;
    struct tiny_box box;
    struct checkpoint_manifest manifest;
    struct err err;
    uint64_t written;
    open_box(&box, "no-commit");
    commit(&box, 1);
    char tmp[FILE_PATH_MAX + 32];
    snprintf(tmp, sizeof(tmp), "%s.tmp", manifest_path(&box));
    assert_int_equal(mkdir(tmp, 0777), 0); /* where the new manifest would be written */
    box.checkpoint.step = 2;
    assert_true(state_commit(&box.exec, box.ring, &written, &err) < 0);
    assert_non_null(strstr(err.message, "commit.json"));
    assert_int_equal(box.tier.committed_slot, 0);
    assert_int_equal(tier_open_slot(&box.tier), 1);
    assert_int_equal(checkpoint_load(&manifest, box.run_dir, &model.layout, &err), 0);
    assert_int_equal(manifest.step, 1);
    checkpoint_unload(&manifest);
    assert_int_equal(rmdir(tmp), 0);
    commit(&box, 2);
    assert_int_equal(box.tier.committed_slot, 1);
    tiny_box_close(&box);
}

/* ---- Damage -----------------------------------------------------------------------------------
 */

static void expect_refused(const struct tiny_box *box, const char *what, size_t at)
{
    struct checkpoint_manifest manifest;
    struct err err;
    int result = checkpoint_load(&manifest, box->run_dir, &model.layout, &err);
    if (result >= 0)
        fail_msg("a manifest with byte %zu %s is accepted (%d)", at, what, result);
    assert_non_null(strstr(err.message, "commit.json"));
    assert_null(manifest.plane_sums);
}

static void test_damaged_manifest(void **state)
{
    (void)state;
    struct tiny_box box;
    struct checkpoint_manifest manifest;
    struct err err;
    open_box(&box, "damage");
    commit(&box, 1234567);
    char *text = scratch_read(manifest_path(&box));
    size_t bytes = strlen(text);
    for (size_t at = 0; at < bytes; at++) {
        char kept = text[at];
        text[at] ^= (char)(1u << rng_below(1, RNG_STREAM_SAMPLE, at, 8));
        write_bytes(manifest_path(&box), text, bytes);
        expect_refused(&box, "flipped", at);
        text[at] = kept;
        write_bytes(manifest_path(&box), text, at);
        expect_refused(&box, "and all after it missing", at);
    }
    /* Two sums that have changed places are no damage to any sum of the sums. */
    char *first = strstr(text, "\"sums\": [\"") + 10, *second = first + 19, swap[16];
    memcpy(swap, first, 16);
    memcpy(first, second, 16);
    memcpy(second, swap, 16);
    write_bytes(manifest_path(&box), text, bytes);
    expect_refused(&box, "swapped", 0);
    memcpy(second, first, 16);
    memcpy(first, swap, 16);
    write_bytes(manifest_path(&box), text, bytes);
    assert_int_equal(checkpoint_load(&manifest, box.run_dir, &model.layout, &err), 0);
    checkpoint_unload(&manifest);
    free(text);
    tiny_box_close(&box);
}

static void test_other_version_is_named(void **state)
{
    (void)state;
    struct tiny_box box;
    struct checkpoint_manifest manifest;
    struct err err;
    open_box(&box, "version");
    write_bytes(manifest_path(&box), "{\"version\": 1}\n", 15);
    assert_int_equal(checkpoint_load(&manifest, box.run_dir, &model.layout, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "version"));
    tiny_box_close(&box);
}

static void flip_in_file(const char *path, uint64_t offset)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

static void test_damaged_planes(void **state)
{
    (void)state;
    struct tiny_box box;
    struct checkpoint_reader reader;
    struct err err;
    open_box(&box, "planes");
    commit(&box, 1);
    uint8_t *data = mem_alloc(model.layout.chunk_count_max, LAYOUT_STATE_BYTES);
    assert_int_equal(checkpoint_reader_open(&reader, box.run_dir, &model.layout, &err), 0);
    for (uint32_t i = 0; i < model.layout.chunk_count * PLANE_COUNT; i++) {
        uint32_t c = i / PLANE_COUNT, p = i % PLANE_COUNT;
        const struct layout_chunk *chunk = &model.layout.chunks[c];
        uint64_t at = chunk->offset + layout_plane_offset(&model.layout, chunk->count, p);
        uint64_t inside =
            rng_below(2, RNG_STREAM_SAMPLE, i, layout_plane_bytes(&model.layout, chunk->count, p));
        char expected[64];
        flip_in_file(box.state_path, at + inside);
        snprintf(expected, sizeof(expected), "at offset %llu the", (unsigned long long)at);
        assert_int_equal(checkpoint_read(&reader, c, 0, PLANE_COUNT, data, &err), ERR_CORRUPT);
        if (!strstr(err.message, expected) || !strstr(err.message, box.state_path))
            fail_msg("not '%s': %s", expected, err.message);
        /* The other planes of the chunk are as good as before. */
        assert_int_equal(checkpoint_read(&reader, c, (p + 1) % PLANE_COUNT, 1, data, &err), 0);
        flip_in_file(box.state_path, at + inside);
        assert_int_equal(checkpoint_read(&reader, c, 0, PLANE_COUNT, data, &err), 0);
    }
    const struct layout_chunk *last = &model.layout.chunks[model.layout.chunk_count - 1];
    assert_int_equal(truncate(box.state_path, (off_t)last->offset + 4096), 0);
    assert_int_equal(
        checkpoint_read(&reader, model.layout.chunk_count - 1, 0, PLANE_COUNT, data, &err),
        ERR_CORRUPT);
    assert_non_null(strstr(err.message, "too early"));
    mem_free(data);
    checkpoint_reader_close(&reader);
    tiny_box_close(&box);
}

static void test_missing_state(void **state)
{
    (void)state;
    struct tiny_box box;
    struct checkpoint_reader reader;
    struct err err;
    open_box(&box, "missing");
    commit(&box, 1);
    assert_int_equal(unlink(box.state_path), 0);
    assert_int_equal(checkpoint_reader_open(&reader, box.run_dir, &model.layout, &err), ERR_SYSTEM);
    assert_non_null(strstr(err.message, box.state_path));
    checkpoint_reader_close(&reader);
    tiny_box_close(&box);
}

/* ---- Readers beside a writer ------------------------------------------------------------------
 */

static void test_overtaken_reader(void **state)
{
    (void)state;
    struct tiny_box box;
    struct checkpoint_reader reader;
    struct err err;
    open_box(&box, "overtaken");
    commit(&box, 1);
    uint8_t *data = mem_alloc(model.layout.chunk_count_max, LAYOUT_STATE_BYTES);
    assert_int_equal(checkpoint_reader_open(&reader, box.run_dir, &model.layout, &err), 0);
    commit(&box, 2);
    /* The next commit writes the other slot: what the reader has open is still there. */
    assert_int_equal(checkpoint_read(&reader, 0, 0, 2, data, &err), 0);
    uint16_t *hi = exec_cell(&box.exec, box.memory.plane_ram.first);
    hi[0] ^= 1;
    commit(&box, 3);
    assert_int_equal(checkpoint_read(&reader, 0, 0, 2, data, &err), 1);
    checkpoint_reader_close(&reader);
    assert_int_equal(checkpoint_reader_open(&reader, box.run_dir, &model.layout, &err), 0);
    assert_int_equal(reader.manifest.step, 3);
    assert_int_equal(checkpoint_read(&reader, 0, 0, 2, data, &err), 0);
    assert_memory_equal(data, hi, 2);
    mem_free(data);
    checkpoint_reader_close(&reader);
    tiny_box_close(&box);
}

/* ---- Kept commits -----------------------------------------------------------------------------
 */

static void test_kept_commit(void **state)
{
    (void)state;
    struct tiny_box box;
    struct checkpoint_manifest manifest;
    struct err err;
    char kept[FILE_PATH_MAX + 32], path[FILE_PATH_MAX + 64];
    open_box(&box, "kept");
    uint8_t *initial = tiny_box_state(&box);
    commit(&box, 42);
    snprintf(kept, sizeof(kept), "%s/kept/step-00000042", box.run_dir);
    /* Without the files that make a run of it, nothing is half kept. */
    assert_true(checkpoint_keep(&box.checkpoint, &box.tier, &err) < 0);
    assert_int_equal(checkpoint_load(&manifest, kept, &model.layout, &err), 1);
    static const char *const files[] = {"config.json", "tokenizer.json"};
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", box.run_dir, files[i]);
        write_bytes(path, files[i], strlen(files[i]));
    }
    /* Twice: after a resume the same step may be kept again. */
    for (int i = 0; i < 2; i++)
        if (checkpoint_keep(&box.checkpoint, &box.tier, &err) != 0)
            fail_msg("%s", err.message);
    read_all(kept, initial);
    assert_int_equal(checkpoint_load(&manifest, kept, &model.layout, &err), 0);
    assert_int_equal(manifest.step, 42);
    assert_int_equal(manifest.weights_hash, box.checkpoint.weights_hash);
    checkpoint_unload(&manifest);
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        snprintf(path, sizeof(path), "%s/%s", kept, files[i]);
        char *text = scratch_read(path);
        assert_string_equal(text, files[i]);
        free(text);
    }
    /* It stays as it is when the run goes on, and may be moved as a whole. */
    uint16_t *hi = exec_cell(&box.exec, box.memory.plane_ram.first);
    hi[0] ^= 1;
    commit(&box, 43);
    commit(&box, 44);
    const char *moved = scratch_path("moved");
    assert_int_equal(rename(kept, moved), 0);
    read_all(moved, initial);
    mem_free(initial);
    tiny_box_close(&box);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),
        cmocka_unit_test(test_another_model_is_refused),
        cmocka_unit_test(test_failed_commit),
        cmocka_unit_test(test_damaged_manifest),
        cmocka_unit_test(test_other_version_is_named),
        cmocka_unit_test(test_damaged_planes),
        cmocka_unit_test(test_missing_state),
        cmocka_unit_test(test_overtaken_reader),
        cmocka_unit_test(test_kept_commit),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
