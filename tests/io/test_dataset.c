/*
 * Property: a folder is a dataset when, and only when, it was sealed and its files are the ones
 * that were sealed. Method: a sealed folder with each of its files taken away or swapped for
 * another.
 */
#include "core/base.h"
#include "core/json.h"
#include "io/dataset.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <string.h>
#include <unistd.h>

static void write_shard(const char *path, uint32_t vocab, uint32_t token_count)
{
    struct err err;
    struct shard_writer *writer;
    assert_int_equal(shard_writer_open(&writer, path, vocab, 99, &err), 0);
    for (uint32_t i = 0; i < token_count; i++)
        assert_int_equal(shard_writer_append(writer, &i, 1, &err), 0);
    shard_writer_end_document(writer);
    assert_int_equal(shard_writer_close(writer, &err), 0);
}

static void make_dataset(const char *dir)
{
    struct err err;
    char path[FILE_PATH_MAX];
    assert_int_equal(file_make_dirs(dir, &err), 0);
    assert_int_equal(file_join(path, dir, DATASET_TRAIN_FILE, &err), 0);
    write_shard(path, 300, 100);
    assert_int_equal(file_join(path, dir, DATASET_VAL_FILE, &err), 0);
    write_shard(path, 300, 20);
    assert_int_equal(file_join(path, dir, DATASET_TOKENIZER_FILE, &err), 0);
    assert_int_equal(file_replace(path, "{}", 2, &err), 0);
}

static void refuse_dataset(const char *dir, const char *why)
{
    struct err err;
    struct dataset dataset;
    assert_int_not_equal(dataset_open(&dataset, dir, &err), 0);
    if (strstr(err.message, why) == NULL)
        fail_msg("'%s' does not say '%s'", err.message, why);
    dataset_close(&dataset);
}

static void test_dataset(void **state)
{
    (void)state;
    struct err err;
    struct dataset dataset;
    const char *dir = scratch_path("data");
    refuse_dataset(dir, "spillway prep");
    make_dataset(dir);
    refuse_dataset(dir, "dataset.json is missing");
    assert_int_equal(dataset_seal(dir, true, json_new_object(), &err), 0);
    assert_int_equal(dataset_open(&dataset, dir, &err), 0);
    assert_true(dataset.has_val);
    assert_int_equal(dataset.vocab, 300);
    assert_int_equal(dataset.train.token_count, 100);
    assert_int_equal(dataset.val.token_count, 20);
    dataset_close(&dataset);
    dataset_close(&dataset);

    write_shard(scratch_path("data/val.tok"), 300, 21);
    refuse_dataset(dir, "val.tok does not belong");
    write_shard(scratch_path("data/val.tok"), 301, 20);
    refuse_dataset(dir, "val.tok does not belong");
    write_shard(scratch_path("data/val.tok"), 300, 20);
    assert_int_equal(file_replace(scratch_path("data/tokenizer.json"), "{ }", 3, &err), 0);
    refuse_dataset(dir, "tokenizer.json is not the tokenizer");
    assert_int_equal(unlink(scratch_path("data/tokenizer.json")), 0);
    refuse_dataset(dir, "tokenizer.json");

    assert_int_equal(file_replace(scratch_path("data/dataset.json"), "{\"a\": 1}", 8, &err), 0);
    refuse_dataset(dir, "not written by");
    assert_int_equal(dataset_unseal(dir, &err), 0);
    assert_int_equal(dataset_unseal(dir, &err), 0);
    refuse_dataset(dir, "dataset.json is missing");
}

static void test_dataset_without_val(void **state)
{
    (void)state;
    struct err err;
    struct dataset dataset;
    const char *dir = scratch_path("noval");
    make_dataset(dir);
    assert_int_equal(unlink(scratch_path("noval/val.tok")), 0);
    assert_int_equal(dataset_seal(dir, false, json_new_object(), &err), 0);
    assert_int_equal(dataset_open(&dataset, dir, &err), 0);
    assert_false(dataset.has_val);
    assert_null(dataset.val.map);
    dataset_close(&dataset);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_dataset),
        cmocka_unit_test(test_dataset_without_val),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
