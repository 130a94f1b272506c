/*
 * Property: the stamp of an input changes when a file in it is added, removed, renamed, resized or
 * written to, and with nothing else; inputs have stamps of their own; threads change nothing.
 * Method: a folder of more files than a task takes, changed in each way and back.
 */
#include "core/base.h"
#include "core/pool.h"
#include "io/stamp.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 300

static void take(struct stamp stamps[2], struct pool *pool)
{
    struct err err;
    struct tree tree;
    const char *const inputs[2] = {scratch_path("folder"), scratch_path("file")};
    assert_int_equal(tree_open(&tree, inputs, 2, NULL, &err), 0);
    stamp_take(stamps, 2, &tree, pool);
    tree_close(&tree);
}

static bool same(const struct stamp *a, const struct stamp *b)
{
    return a->files == b->files && a->bytes == b->bytes && a->hash == b->hash;
}

static void set_time(const char *path, long nanoseconds)
{
    const struct timespec times[2] = {{1000, 0}, {1000, nanoseconds}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void test_changes(void **state)
{
    (void)state;
    struct err err;
    struct pool *pool;
    struct stamp first[2], now[2];
    char name[64];
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof(name), "folder/%03d", i);
        set_time(scratch_write(name, "text"), 0);
    }
    set_time(scratch_write("file", "more text"), 0);
    take(first, NULL);
    assert_int_equal(first[0].files, FILES);
    assert_int_equal(first[0].bytes, FILES * 4);
    assert_int_equal(first[1].bytes, 9);
    assert_int_equal(pool_open(&pool, "stamp", 3, false, &err), 0);
    take(now, pool);
    assert_true(same(&first[0], &now[0]) && same(&first[1], &now[1]));
    pool_close(pool);

    set_time(scratch_path("folder/270"), 1); /* written to */
    take(now, NULL);
    assert_true(!same(&first[0], &now[0]) && same(&first[1], &now[1]));
    assert_int_equal(now[0].bytes, first[0].bytes);
    scratch_write("folder/270", "longer");
    set_time(scratch_path("folder/270"), 0);
    take(now, NULL);
    assert_int_equal(now[0].bytes, first[0].bytes + 2);
    assert_int_not_equal(now[0].hash, first[0].hash);
    assert_int_equal(rename(scratch_path("folder/270"), scratch_path("folder/270b")), 0);
    scratch_write("folder/270b", "text");
    set_time(scratch_path("folder/270b"), 0);
    take(now, NULL);
    assert_true(now[0].bytes == first[0].bytes && now[0].hash != first[0].hash);
    assert_int_equal(unlink(scratch_path("folder/270b")), 0);
    take(now, NULL);
    assert_int_equal(now[0].files, FILES - 1);
    set_time(scratch_write("folder/270", "text"), 0); /* as it was */
    take(now, NULL);
    assert_true(same(&first[0], &now[0]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_changes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
