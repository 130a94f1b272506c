/*
 * Property: what was written is read back; a file that is truncated, foreign, damaged in any byte
 * or of a half-done write is refused or reported, with its name. Method: small shards of both
 * widths and one that crosses a write block, every truncation and every flipped byte of a small
 * one, a disk that fills up at each write (a limit on file size). A writer that was left at any
 * mark and reopened gives the file of an undisturbed one, whatever was written behind the mark.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/file.h"
#include "io/shard.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t token_at(uint64_t index, uint32_t vocab)
{
    return (uint32_t)rng_below(7, 0, index, vocab);
}

/* Documents of 1, 2, 3, ... tokens until token_count are there; in one add or token by token. */
static void write_shard(const char *path, uint32_t vocab, uint64_t token_count, bool by_token)
{
    struct err err;
    struct shard_writer *writer;
    assert_int_equal(shard_writer_open(&writer, path, vocab, 0x1234567890abcdef, &err), 0);
    uint32_t *document = mem_alloc(token_count + 1, sizeof(*document));
    for (uint64_t start = 0, length = 1; start < token_count; start += length, length++) {
        length = MIN(length, token_count - start);
        for (uint64_t i = 0; i < length; i++)
            document[i] = token_at(start + i, vocab);
        for (uint64_t i = 0; by_token && i < length; i++)
            assert_int_equal(shard_writer_append(writer, document + i, 1, &err), 0);
        if (by_token)
            shard_writer_end_document(writer);
        else
            assert_int_equal(shard_writer_add(writer, document, length, &err), 0);
    }
    assert_int_equal(shard_writer_token_count(writer), token_count);
    assert_int_equal(shard_writer_close(writer, &err), 0);
    mem_free(document);
}

static void check_shard(const char *path, uint32_t vocab, uint64_t token_count)
{
    struct err err;
    struct shard shard;
    assert_int_equal(shard_open(&shard, path, &err), 0);
    assert_int_equal(shard_verify(&shard, path, &err), 0);
    assert_int_equal(shard.token_count, token_count);
    assert_int_equal(shard.vocab_size, vocab);
    assert_int_equal(shard.token_bytes, vocab <= 65536 ? 2 : 4);
    assert_int_equal(shard.tokenizer_hash, 0x1234567890abcdef);
    uint32_t *tokens = mem_alloc(token_count + 1, sizeof(*tokens));
    shard_read(&shard, 0, tokens, token_count);
    for (uint64_t i = 0; i < token_count; i++)
        assert_int_equal(tokens[i], token_at(i, vocab));
    uint64_t start = 0;
    for (uint64_t i = 0; i < shard.document_count; i++) {
        assert_int_equal(shard.documents[i], start);
        start += i + 1;
    }
    assert_true(start >= token_count);
    if (token_count > 3) {
        shard_read(&shard, token_count - 3, tokens, 3);
        assert_int_equal(tokens[0], token_at(token_count - 3, vocab));
        assert_int_equal(tokens[2], token_at(token_count - 1, vocab));
    }
    mem_free(tokens);
    shard_close(&shard);
    shard_close(&shard);
}

static void test_round_trip(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {1, 257, 65535, 65536, 65537, 1u << 24};
    static const uint64_t counts[] = {0, 1, 2, 3, 5, 1000};
    for (size_t v = 0; v < ARRAY_COUNT(vocabs); v++)
        for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
            const char *path = scratch_path("round.tok");
            write_shard(path, vocabs[v], counts[c], c % 2 == 0);
            check_shard(path, vocabs[v], counts[c]);
        }
}

/* Tokens and document index both cross the writer's blocks, at every remainder of 8 bytes. */
static void test_blocks(void **state)
{
    (void)state;
    for (uint64_t extra = 0; extra < 5; extra++) {
        const char *path = scratch_path("blocks.tok");
        write_shard(path, 50000, SHARD_BLOCK_BYTES / 2 - 2 + extra, false);
        check_shard(path, 50000, SHARD_BLOCK_BYTES / 2 - 2 + extra);
    }
    struct err err;
    struct shard_writer *writer;
    struct shard shard;
    const char *path = scratch_path("many.tok");
    const uint64_t documents = SHARD_BLOCK_BYTES / 8 + 77;
    assert_int_equal(shard_writer_open(&writer, path, 70000, 1, &err), 0);
    for (uint64_t i = 0; i < documents; i++)
        assert_int_equal(shard_writer_add(writer, &(uint32_t){69999}, 1, &err), 0);
    assert_int_equal(shard_writer_document_count(writer), documents);
    assert_int_equal(shard_writer_close(writer, &err), 0);
    assert_int_equal(shard_open(&shard, path, &err), 0);
    assert_int_equal(shard_verify(&shard, path, &err), 0);
    assert_int_equal(shard.document_count, documents);
    assert_int_equal(shard.documents[documents - 1], documents - 1);
    shard_close(&shard);
}

/* The file does not exist under its name before it is whole, and an aborted one leaves nothing. */
static void test_half_done(void **state)
{
    (void)state;
    struct err err;
    struct shard_writer *writer;
    const char *path = scratch_path("half.tok");
    assert_int_equal(shard_writer_open(&writer, path, 300, 0, &err), 0);
    assert_int_equal(shard_writer_add(writer, (uint32_t[]){1, 2, 3}, 3, &err), 0);
    assert_false(file_exists(path));
    assert_true(file_exists(scratch_path("half.tok.tmp")));
    shard_writer_abort(writer);
    shard_writer_abort(NULL);
    assert_false(file_exists(path));
    assert_false(file_exists(scratch_path("half.tok.tmp")));
    assert_false(file_exists(scratch_path("half.tok.tmp.index")));
    assert_int_not_equal(shard_writer_open(&writer, scratch_path("no/dir/x.tok"), 300, 0, &err), 0);
    assert_non_null(strstr(err.message, "no/dir/x.tok"));
}

static void add_documents(struct shard_writer *writer, uint64_t first, uint64_t end, uint64_t vocab)
{
    struct err err;
    uint32_t document[3000];
    for (uint64_t i = first; i < end; i++) {
        size_t count = 1 + i * 977 % ARRAY_COUNT(document);
        for (size_t j = 0; j < count; j++)
            document[j] = token_at(i * ARRAY_COUNT(document) + j, (uint32_t)vocab);
        assert_int_equal(shard_writer_append(writer, document, count / 2, &err), 0);
        assert_int_equal(shard_writer_append(writer, document + count / 2, count - count / 2, &err),
                         0);
        shard_writer_end_document(writer);
    }
}

static void assert_same_file(const char *a, const char *b)
{
    struct err err;
    char *data[2];
    size_t bytes[2];
    assert_int_equal(file_read_all(a, GIB, &data[0], &bytes[0], &err), 0);
    assert_int_equal(file_read_all(b, GIB, &data[1], &bytes[1], &err), 0);
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(data[0], data[1], bytes[0]);
    mem_free(data[0]);
    mem_free(data[1]);
}

/* Marks before the first token, in a block, behind full ones, and in the middle of a document. */
static void test_reopen(void **state)
{
    (void)state;
    struct err err;
    struct shard_writer *writer;
    struct shard_mark mark;
    const uint32_t vocabs[] = {50000, 100000}, marks[] = {0, 1, 333, 700, 1000};
    const char *calm = scratch_path("calm.tok"), *left = scratch_path("left.tok");
    for (size_t v = 0; v < ARRAY_COUNT(vocabs); v++) {
        uint32_t vocab = vocabs[v];
        assert_int_equal(shard_writer_open(&writer, calm, vocab, 5, &err), 0);
        add_documents(writer, 0, 1000, vocab);
        assert_int_equal(shard_writer_add(writer, (uint32_t[]){7, 8, 9}, 3, &err), 0);
        assert_int_equal(shard_writer_close(writer, &err), 0);
        for (size_t i = 0; i < ARRAY_COUNT(marks); i++) {
            assert_int_equal(shard_writer_open(&writer, left, vocab, 5, &err), 0);
            add_documents(writer, 0, marks[i], vocab);
            bool inside = marks[i] == 1000;
            if (inside)
                assert_int_equal(shard_writer_append(writer, (uint32_t[]){7, 8}, 2, &err), 0);
            assert_int_equal(shard_writer_mark(writer, &mark, &err), 0);
            if (inside)
                shard_writer_end_document(writer);
            add_documents(writer, 5, 5 + i * 300, vocab);
            if (i % 2 == 0) /* killed when it was whole, but for its name */
                assert_int_equal(shard_writer_finish(writer, &err), 0);
            else
                shard_writer_leave(writer);
            assert_int_equal(shard_writer_reopen(&writer, left, vocab, 5, &mark, &err), 0);
            assert_int_equal(shard_writer_token_count(writer), mark.token_count);
            add_documents(writer, marks[i], 1000, vocab);
            const uint32_t rest[] = {7, 8, 9};
            assert_int_equal(shard_writer_append(writer, rest + 2 * inside, 3 - 2 * inside, &err),
                             0);
            shard_writer_end_document(writer);
            assert_int_equal(shard_writer_finish(writer, &err), 0);
            assert_false(file_exists(left));
            assert_int_equal(shard_publish(left, &err), 0);
            assert_int_equal(shard_publish(left, &err), 0); /* killed in between: once more */
            assert_same_file(calm, left);
            assert_int_equal(unlink(left), 0);
        }
    }
    assert_false(file_exists(scratch_path("left.tok.tmp.index")));
    assert_int_not_equal(shard_publish(left, &err), 0);
    /* What is gone, or shorter than the mark says. */
    assert_int_not_equal(shard_writer_reopen(&writer, left, 50000, 5, &mark, &err), 0);
    assert_non_null(strstr(err.message, "left.tok.tmp"));
    scratch_write("left.tok.tmp", "short");
    assert_int_equal(shard_writer_reopen(&writer, left, 50000, 5, &mark, &err), ERR_CORRUPT);
    assert_non_null(strstr(err.message, "shorter"));
    shard_writer_leave(NULL);
}

static char *small_shard(size_t *bytes)
{
    struct err err;
    char *data;
    write_shard(scratch_path("small.tok"), 300, 21, false);
    assert_int_equal(file_read_all(scratch_path("small.tok"), MIB, &data, bytes, &err), 0);
    return data;
}

/* 0 when open and verify both accept these bytes as a shard. */
static int judge(const char *data, size_t bytes, struct err *err)
{
    struct shard shard;
    const char *path = scratch_path("judged.tok");
    assert_int_equal(file_replace(path, data, bytes, err), 0);
    int code = shard_open(&shard, path, err);
    if (code == 0)
        code = shard_verify(&shard, path, err);
    shard_close(&shard);
    if (code != 0) {
        assert_non_null(strstr(err->message, "judged.tok"));
        assert_null(strchr(err->message, '\n'));
    }
    return code;
}

static void test_truncated(void **state)
{
    (void)state;
    struct err err;
    size_t bytes;
    char *data = small_shard(&bytes);
    assert_int_equal(judge(data, bytes, &err), 0);
    for (size_t length = 0; length < bytes; length += length < 4090 ? 89 : 1)
        assert_int_not_equal(judge(data, length, &err), 0);
    assert_int_not_equal(judge(data, bytes - 1, &err), 0);
    assert_non_null(strstr(err.message, "truncated"));
    mem_free(data);
}

static void test_damaged(void **state)
{
    (void)state;
    struct err err;
    size_t bytes;
    char *data = small_shard(&bytes);
    for (size_t i = 0; i < bytes; i += i >= 64 && i < 4090 ? 61 : 1) {
        data[i] ^= 0x10;
        int code = judge(data, bytes, &err);
        data[i] ^= 0x10;
        assert_int_not_equal(code, 0);
    }
    memcpy(data, "not a shard at all", 18);
    assert_int_equal(judge(data, bytes, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "no token shard"));
    mem_free(data);
}

/* A damaged token stops the reader with the file's name, before it indexes anything. */
static void test_token_out_of_vocabulary(void **state)
{
    (void)state;
    struct err err;
    size_t bytes;
    char *data = small_shard(&bytes);
    memset(data + SHARD_HEADER_BYTES + 4, 0xff, 2);
    assert_int_equal(file_replace(scratch_path("wild.tok"), data, bytes, &err), 0);
    mem_free(data);
    struct shard shard;
    uint32_t tokens[4];
    assert_int_equal(shard_open(&shard, scratch_path("wild.tok"), &err), 0);
    shard_read(&shard, 0, tokens, 2);
    pid_t child = fork();
    if (child == 0) {
        if (freopen(scratch_path("wild.err"), "w", stderr) == NULL)
            _exit(7);
        shard_read(&shard, 0, tokens, 3);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    char *said = scratch_read(scratch_path("wild.err"));
    assert_non_null(strstr(said, "wild.tok"));
    assert_non_null(strstr(said, "65535"));
    free(said);
    shard_close(&shard);
}

/* A drive that is full after n bytes: an error that names the file, and no file. */
static void test_full_drive(void **state)
{
    (void)state;
    struct rlimit old, limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, SIG_IGN);
    const size_t limits[] = {0, 1, 4095, 4096, 4100, 6000};
    for (size_t i = 0; i < ARRAY_COUNT(limits); i++) {
        struct err err;
        struct shard_writer *writer = NULL;
        const char *path = scratch_path("full.tok");
        limit = (struct rlimit){limits[i], old.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        int code = shard_writer_open(&writer, path, 300, 0, &err);
        for (uint32_t n = 0; code == 0 && n < 1000; n++)
            code = shard_writer_add(writer, (uint32_t[]){1, 2, 3, 4}, 4, &err);
        if (code == 0)
            code = shard_writer_close(writer, &err);
        else
            shard_writer_abort(writer);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_int_not_equal(code, 0);
        assert_non_null(strstr(err.message, "full.tok"));
        assert_false(file_exists(path));
        assert_false(file_exists(scratch_path("full.tok.tmp")));
    }
}

/* Pages of the shard's map that are in the page cache. */
static uint64_t resident_pages(const struct shard *shard)
{
    uint64_t pages = div_up(shard->map_bytes, 4096), count = 0;
    unsigned char *resident = mem_alloc(pages, 1);
    assert_int_equal(mincore((void *)(uintptr_t)shard->map, shard->map_bytes, resident), 0);
    for (uint64_t i = 0; i < pages; i++)
        count += resident[i] & 1;
    mem_free(resident);
    return count;
}

/* What was read and is let go of is in the page cache no longer; what is asked for comes back. */
static void test_page_cache(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    uint32_t token;
    const char *path = scratch_path("cached.tok");
    write_shard(path, 70000, 1000000, false);
    assert_int_equal(shard_open(&shard, path, &err), 0);
    assert_int_equal(shard_verify(&shard, path, &err), 0);
    assert_int_equal(resident_pages(&shard), div_up(shard.map_bytes, 4096));
    shard_forget(&shard, 0, 500000);
    uint64_t left = resident_pages(&shard);
    /* The kernel drops whole folios, which may be bigger than pages. */
    assert_true(left >= 480 && left < div_up(shard.map_bytes, 4096) - 200);
    shard_fetch(&shard, 999999, 1);
    shard_fetch(&shard, 0, 1000000);
    shard_fetch(&shard, 1000000, 0);
    shard_read(&shard, 250000, &token, 1);
    assert_int_equal(token, token_at(250000, 70000));
    assert_true(resident_pages(&shard) > left);
    shard_close(&shard);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page_cache), cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_blocks),     cmocka_unit_test(test_half_done),
        cmocka_unit_test(test_reopen),     cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_damaged),    cmocka_unit_test(test_token_out_of_vocabulary),
        cmocka_unit_test(test_full_drive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
