/*
 * Property: what was compressed comes back byte for byte, of one stream or many, read in pieces of
 * any size, by any number of threads, from a file or from memory; what was cut off or damaged is an
 * error that names the file and the place, and never gives a byte that was not there; blocks that
 * hold bzip2's magic by themselves are found whole. Method: texts compressed by the libraries,
 * every cut of a small file, a flipped bit at every byte of it.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/rng.h"
#include "io/file.h"
#include "io/unpack.h"
#include "tests/shared/check.h"
#include "tests/shared/pack.h"
#include "tests/shared/scratch.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TEXT_BYTES 700000 /* seven bzip2 blocks at level 1 */

static char *text;
static struct pool *pool;

static int setup(void **state)
{
    (void)state;
    struct err err;
    text = mem_alloc(TEXT_BYTES, 1);
    for (size_t i = 0; i < TEXT_BYTES; i++)
        text[i] = (char)('a' + rng_below(1, i / 1000, i, 1 + i / 1000 % 20));
    return pool_open(&pool, "unpack", 3, false, &err);
}

static int teardown(void **state)
{
    (void)state;
    pool_close(pool);
    mem_free(text);
    return 0;
}

/* All that comes out of the packed bytes, and the last code; to has room for `room`. */
static int unpack_all(struct unpack *unpack, const char *packed, size_t packed_bytes, size_t step,
                      char *to, size_t room, size_t *bytes, struct err *err)
{
    const struct unpack_file file = {"packed", -1, packed, packed_bytes, false};
    *bytes = 0;
    int code = unpack_begin(unpack, &file, err);
    ssize_t got = code;
    while (code == 0 &&
           (got = unpack_read(unpack, to + *bytes, MIN(step, room - *bytes), err)) > 0) {
        *bytes += (size_t)got;
        assert_true(*bytes < room);
    }
    return (int)got;
}

static void expect(struct unpack *unpack, const char *packed, size_t packed_bytes, size_t step,
                   const char *expected, size_t expected_bytes)
{
    struct err err = {0};
    char *to = mem_alloc(expected_bytes + 1, 1);
    size_t bytes;
    int code = unpack_all(unpack, packed, packed_bytes, step, to, expected_bytes + 1, &bytes, &err);
    if (code != 0)
        fail_msg("%s", err.message);
    assert_int_equal(bytes, expected_bytes);
    assert_memory_equal(to, expected, expected_bytes);
    mem_free(to);
}

static void test_same(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 1000, 100000, TEXT_BYTES}, steps[] = {1 << 20, 777};
    for (int threads = 0; threads < 2; threads++) {
        struct unpack *unpack =
            unpack_new(&(struct unpack_settings){.pool = threads > 0 ? pool : NULL});
        for (int kind = 0; kind < PACK_KIND_COUNT; kind++)
            for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
                size_t bytes;
                char *packed = pack(kind, text, sizes[i], &bytes);
                for (size_t j = 0; j < ARRAY_COUNT(steps); j++)
                    expect(unpack, packed, bytes, steps[j], text, sizes[i]);
                mem_free(packed);
            }
        unpack_free(unpack);
    }
}

/* From a file, which is read in parts. */
static void test_file(void **state)
{
    (void)state;
    struct err err;
    struct unpack *unpack = unpack_new(&(struct unpack_settings){.pool = pool});
    char *to = mem_alloc(TEXT_BYTES + 1, 1);
    for (int kind = 0; kind < PACK_KIND_COUNT; kind++) {
        size_t bytes, got = 0;
        ssize_t part;
        char *packed = pack(kind, text, TEXT_BYTES, &bytes);
        scratch_write("packed", "");
        assert_int_equal(file_replace(scratch_path("packed"), packed, bytes, &err), 0);
        int fd = open(scratch_path("packed"), O_RDONLY | O_CLOEXEC);
        assert_true(fd >= 0);
        const struct unpack_file file = {.name = "packed", .fd = fd};
        assert_int_equal(unpack_begin(unpack, &file, &err), 0);
        assert_int_equal(unpack_kind(unpack) != NULL, kind != PACK_PLAIN);
        while ((part = unpack_read(unpack, to + got, TEXT_BYTES + 1 - got, &err)) > 0)
            got += (size_t)part;
        assert_int_equal(part, 0);
        assert_int_equal(got, TEXT_BYTES);
        assert_memory_equal(to, text, TEXT_BYTES);
        assert_int_equal(unpack_used_bytes(unpack), bytes);
        close(fd);
        mem_free(packed);
    }
    mem_free(to);
    unpack_free(unpack);
}

/* Streams one behind the other, empty ones among them, and a line of text behind all. */
static void test_many_streams(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 5000, 0, 230000, 1, 400000, 0};
    struct unpack *unpack = unpack_new(&(struct unpack_settings){.pool = pool});
    for (int kind = PACK_GZIP; kind < PACK_KIND_COUNT; kind++) {
        char *joined = mem_alloc(2 * TEXT_BYTES, 1);
        size_t used = 0, start = 0;
        for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
            size_t bytes;
            char *packed = pack(kind, text + start, sizes[i], &bytes);
            memcpy(joined + used, packed, bytes);
            used += bytes;
            start += sizes[i];
            mem_free(packed);
        }
        expect(unpack, joined, used, 1 << 20, text, start);
        strcpy(joined + used, "not compressed");
        expect(unpack, joined, used + strlen("not compressed"), 1 << 20, text, start);
        mem_free(joined);
    }
    unpack_free(unpack);
}

/* A file cut anywhere or with one wrong bit: what comes out is a beginning of the text, and it is
 * an error unless it is all of it. */
static void test_damage(void **state)
{
    (void)state;
    const size_t small = 3000;
    struct unpack *unpack = unpack_new(&(struct unpack_settings){0});
    char to[8192];
    for (int kind = PACK_GZIP; kind < PACK_KIND_COUNT; kind++) {
        size_t bytes, got, errors = 0;
        struct err err;
        char *packed = pack(kind, text + 300000, small, &bytes);
        for (size_t cut = 20; cut < bytes; cut++) {
            assert_true(unpack_all(unpack, packed, cut, 512, to, sizeof(to), &got, &err) < 0);
            assert_non_null(strstr(err.message, "packed is damaged at byte"));
            assert_true(got <= small);
            assert_memory_equal(to, text + 300000, got);
        }
        for (size_t at = 20; at < bytes; at++) {
            packed[at] ^= 4;
            int code = unpack_all(unpack, packed, bytes, 512, to, sizeof(to), &got, &err);
            packed[at] ^= 4;
            errors += code < 0;
            assert_true(code < 0 || got == small);
            /* bzip2 checks a block before it gives any of it, the others as they go. */
            if (code == 0 || kind == PACK_BZIP2 || kind == PACK_BZIP2_LARGE)
                assert_memory_equal(to, text + 300000, got);
        }
        assert_true(errors > (bytes - 20) / 2);
        mem_free(packed);
    }
    unpack_free(unpack);
}

static const uint16_t magic_maps[] = {0x3141, 0x5926, 0x5359};

/* Text that unpacks to itself, by one thread and by many. */
static void expect_packed(const char *odd, size_t bytes)
{
    for (int threads = 0; threads < 2; threads++) {
        struct unpack *unpack =
            unpack_new(&(struct unpack_settings){.pool = threads > 0 ? pool : NULL});
        size_t packed_bytes;
        char *packed = pack(PACK_BZIP2, odd, bytes, &packed_bytes);
        expect(unpack, packed, packed_bytes, 1 << 20, odd, bytes);
        mem_free(packed);
        unpack_free(unpack);
    }
}

/* The symbols that a block uses are written as maps of 16 bits: these maps are the magic. With
 * runs, whose lengths are symbols as well, such a block gives more than is kept of one at a time.
 */
static void test_magic_within(void **state)
{
    (void)state;
    const size_t whole = 8 * MIB;
    uint8_t symbols[48];
    size_t symbol_count = 0;
    for (size_t i = 0; i < ARRAY_COUNT(magic_maps); i++)
        for (int bit = 0; bit < 16; bit++)
            if (magic_maps[i] >> (15 - bit) & 1)
                symbols[symbol_count++] = (uint8_t)(64 + i * 16 + (size_t)bit);
    char *odd = mem_alloc(whole, 1);
    for (size_t i = 0; i < TEXT_BYTES; i++)
        odd[i] = (char)symbols[rng_below(2, 0, i, symbol_count)];
    expect_packed(odd, TEXT_BYTES);
    for (size_t i = 0, run = 0, last = 0; i < whole; i += run) {
        /* Another one than the last: longer runs would have lengths that are no symbols. */
        last = (last + 1 + rng_below(2, 1, i, symbol_count - 1)) % symbol_count;
        run = MIN(4u + symbols[rng_below(2, 2, i, symbol_count)], whole - i);
        memset(odd + i, symbols[last], run);
    }
    expect_packed(odd, whole);
    mem_free(odd);
}

/* Megabytes out of some bytes: the memory that is held does not grow with them. */
static void test_bomb(void **state)
{
    (void)state;
    const size_t whole = 64 * MIB;
    char *zeros = mem_alloc(whole, 1), *to = mem_alloc(MIB, 1);
    for (int kind = PACK_GZIP; kind < PACK_KIND_COUNT; kind++) {
        struct err err;
        size_t bytes, got = 0;
        ssize_t part;
        char *packed = pack(kind, zeros, whole, &bytes);
        uint64_t before = mem_heap_bytes();
        struct unpack *unpack = unpack_new(&(struct unpack_settings){.window_bytes_max = 8 * MIB});
        const struct unpack_file file = {"bomb", -1, packed, bytes, false};
        assert_int_equal(unpack_begin(unpack, &file, &err), 0);
        while ((part = unpack_read(unpack, to, MIB, &err)) > 0) {
            got += (size_t)part;
            assert_memory_equal(to, zeros, (size_t)part);
            if (mem_heap_has_stats())
                assert_true(mem_heap_bytes() - before < 40 * MIB);
        }
        assert_int_equal(part, 0);
        assert_int_equal(got, whole);
        unpack_free(unpack);
        mem_free(packed);
    }
    mem_free(zeros);
    mem_free(to);
}

static void test_raw(void **state)
{
    (void)state;
    struct err err;
    char to[32];
    struct unpack *unpack = unpack_new(&(struct unpack_settings){0});
    const struct unpack_file file = {"raw", -1, "\x1f\x8b\x08\0abcdefgh", 12, true};
    assert_int_equal(unpack_begin(unpack, &file, &err), 0);
    assert_int_equal(unpack_read(unpack, to, sizeof(to), &err), 12);
    assert_memory_equal(to, file.head, 12);
    assert_int_equal(unpack_read(unpack, to, sizeof(to), &err), 0);
    unpack_free(unpack);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),         cmocka_unit_test(test_file),
        cmocka_unit_test(test_many_streams), cmocka_unit_test(test_damage),
        cmocka_unit_test(test_magic_within), cmocka_unit_test(test_bomb),
        cmocka_unit_test(test_raw),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
