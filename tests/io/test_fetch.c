/*
 * Property: every file of a tree comes once, in order, with its bytes; large ones, missing ones and
 * those that the user named are told as such; from any file on. Method: a folder of more files than
 * two batches hold, compared with what was written.
 */
#include "core/base.h"
#include "core/mem.h"
#include "io/fetch.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILES 700

static void expect_from(struct fetch *fetch, const struct tree *tree, uint64_t first)
{
    fetch_seek(fetch, first);
    for (uint64_t i = first; i < tree->file_count; i++) {
        const char *text;
        int32_t bytes = fetch_take(fetch, i, &text);
        if (i == 5) {
            assert_int_equal(bytes, -EFBIG);
        } else if (i == 300) {
            assert_int_equal(bytes, -ENOENT);
        } else if (!tree->files[i].found) {
            assert_int_equal(bytes, -EFBIG);
        } else {
            char expected[64];
            snprintf(expected, sizeof(expected), "%.*s", (int)(i % 40),
                     "0123456789012345678901234567890123456789");
            assert_int_equal(bytes, strlen(expected));
            assert_memory_equal(text, expected, strlen(expected));
        }
    }
}

static void test_all(void **state)
{
    (void)state;
    struct err err;
    struct tree tree;
    struct fetch *fetch;
    for (int i = 0; i < FILES; i++) {
        char name[64], text[64];
        snprintf(name, sizeof(name), "many/%03d", i);
        snprintf(text, sizeof(text), "%.*s", i % 40, "0123456789012345678901234567890123456789");
        scratch_write(name, text);
    }
    char *large = mem_alloc(FETCH_BYTES + 1, 1);
    memset(large, 'x', FETCH_BYTES);
    scratch_write("many/005", large);
    mem_free(large);
    const char *inputs[] = {scratch_path("many"), scratch_path("many/001")};
    assert_int_equal(tree_open(&tree, inputs, 2, NULL, &err), 0);
    assert_int_equal(tree.file_count, FILES + 1);
    assert_int_equal(unlink(scratch_path("many/300")), 0);
    if (fetch_open(&fetch, &tree, &err) != 0) {
        tree_close(&tree);
        skip(); /* the kernel has no io_uring for this */
    }
    expect_from(fetch, &tree, 0);
    expect_from(fetch, &tree, 299);
    expect_from(fetch, &tree, FILES);
    fetch_seek(fetch, 0); /* closed with batches on their way */
    const char *text;
    assert_int_equal(fetch_take(fetch, 0, &text), 0);
    fetch_close(fetch);
    tree_close(&tree);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
