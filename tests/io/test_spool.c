/*
 * Property: pieces come back as they were written, in order, as often as they are read and from any
 * piece on; a full disk is an error that names the folder; nothing is left in the folder. Method:
 * pieces of all sizes up to the largest; a limit on the size of files instead of a full disk.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/file.h"
#include "io/spool.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define PIECES 400

static char *text;

static struct spool_piece piece_of(uint64_t index)
{
    uint64_t most = index % 50 == 0 ? SPOOL_PIECE_MAX : index % 7 == 0 ? 200000 : 100;
    uint32_t bytes = index == 100 ? SPOOL_PIECE_MAX : (uint32_t)rng_below(1, 0, index, most + 1);
    return (struct spool_piece){text + index, bytes, (uint32_t)index % 3, index % 2 == 0,
                                index % 5 == 0};
}

static void assert_same(const struct spool_piece *a, const struct spool_piece *b)
{
    assert_int_equal(a->bytes, b->bytes);
    assert_int_equal(a->input, b->input);
    assert_int_equal(a->first, b->first);
    assert_int_equal(a->last, b->last);
    assert_memory_equal(a->text, b->text, a->bytes);
}

static void expect_from(struct spool *spool, uint64_t first)
{
    struct err err;
    struct spool_piece piece;
    for (uint64_t i = first; i < PIECES; i++) {
        const struct spool_piece expected = piece_of(i);
        assert_int_equal(spool_read(spool, &piece, &err), 1);
        assert_same(&piece, &expected);
    }
    assert_int_equal(spool_read(spool, &piece, &err), 0);
    assert_int_equal(spool_read(spool, &piece, &err), 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct err err;
    struct spool *spool;
    uint64_t middle = 0;
    assert_int_equal(spool_open(&spool, scratch_dir(), NULL, &err), 0);
    for (int round = 0; round < 2; round++) {
        spool_clear(spool);
        for (uint64_t i = 0; i < PIECES; i++) {
            const struct spool_piece piece = piece_of(i);
            middle = i == PIECES / 2 ? spool_bytes(spool) : middle;
            assert_int_equal(spool_write(spool, &piece, &err), 0);
        }
        for (int pass = 0; pass < 2; pass++) {
            assert_int_equal(spool_rewind(spool, &err), 0);
            assert_int_equal(spool_position(spool), 0);
            expect_from(spool, 0);
            assert_int_equal(spool_position(spool), spool_bytes(spool));
        }
        spool_seek(spool, middle);
        expect_from(spool, PIECES / 2);
    }
    spool_close(spool);
    DIR *dir = opendir(scratch_dir());
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        assert_int_equal(entry->d_name[0], '.');
    closedir(dir);
}

static void test_full(void **state)
{
    (void)state;
    struct err err;
    struct spool *spool;
    struct rlimit before, small;
    const struct spool_piece piece = {text, SPOOL_PIECE_MAX, 0, true, true};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = (struct rlimit){3 * MIB, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(spool_open(&spool, scratch_dir(), NULL, &err), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int code = 0;
    for (int i = 0; code == 0 && i < 10; i++)
        code = spool_write(spool, &piece, &err);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_true(code < 0);
    assert_non_null(strstr(err.message, scratch_dir()));
    spool_close(spool);
    assert_true(spool_open(&spool, scratch_path("nowhere"), NULL, &err) < 0);
    assert_non_null(strstr(err.message, "nowhere"));
}

/* Another process goes on with the first pieces, whatever was written behind them. */
static void test_reopen(void **state)
{
    (void)state;
    struct err err;
    struct spool *spool;
    uint64_t kept = 0;
    assert_int_equal(spool_open(&spool, scratch_dir(), "named", &err), 0);
    for (uint64_t i = 0; i < PIECES; i++) {
        const struct spool_piece piece = piece_of(i);
        if (i == PIECES / 3) {
            assert_int_equal(spool_sync(spool, &err), 0);
            kept = spool_bytes(spool);
        }
        assert_int_equal(spool_write(spool, &piece, &err), 0);
    }
    spool_close(spool);
    assert_int_equal(spool_reopen(&spool, scratch_dir(), "named", kept, &err), 0);
    for (uint64_t i = PIECES / 3; i < PIECES; i++) {
        const struct spool_piece piece = piece_of(i);
        assert_int_equal(spool_write(spool, &piece, &err), 0);
    }
    uint64_t all = spool_bytes(spool);
    assert_int_equal(spool_sync(spool, &err), 0);
    assert_int_equal(spool_rewind(spool, &err), 0);
    expect_from(spool, 0);
    spool_close(spool);
    /* All of it, to be read only; and more than there is. */
    assert_int_equal(spool_reopen(&spool, scratch_dir(), "named", all, &err), 0);
    assert_int_equal(spool_rewind(spool, &err), 0);
    expect_from(spool, 0);
    spool_close(spool);
    assert_int_equal(spool_reopen(&spool, scratch_dir(), "named", all + 1, &err), ERR_CORRUPT);
    assert_true(spool_reopen(&spool, scratch_dir(), "nothing", 0, &err) < 0);
    scratch_remove(scratch_path("named"));
}

static int setup(void **state)
{
    (void)state;
    text = mem_alloc(SPOOL_PIECE_MAX + PIECES, 1);
    for (size_t i = 0; i < SPOOL_PIECE_MAX + PIECES; i++)
        text[i] = (char)rng_u64(2, 0, i);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mem_free(text);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_reopen),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
