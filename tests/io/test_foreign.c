/*
 * Property: a shard written in another trainer's format has that format's bytes, and read again
 * gives the same documents; a file that contradicts itself is refused with its name, and no damage
 * makes the reader leave its file. Method: the bytes of small files written out by hand, round
 * trips with documents of 1 to 200,000 tokens, every truncation, and every byte of an index
 * changed.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/file.h"
#include "io/foreign.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <stdio.h>
#include <string.h>

#define END 7 /* the end-of-text token */

/* Documents of these lengths, their END included. */
static void make_shard(struct shard *shard, const char *name, uint32_t vocab,
                       const uint32_t *lengths, size_t count)
{
    struct err err;
    struct shard_writer *writer;
    uint64_t drawn = 0;
    assert_int_equal(shard_writer_open(&writer, scratch_path(name), vocab, 1, &err), 0);
    for (size_t d = 0; d < count; d++) {
        for (uint32_t i = 0; i < lengths[d]; i++) {
            uint32_t token = (uint32_t)rng_below(3, 1, drawn++, vocab);
            if (i + 1 == lengths[d])
                token = END;
            else if (token == END)
                token = END + 1;
            assert_int_equal(shard_writer_append(writer, &token, 1, &err), 0);
        }
        shard_writer_end_document(writer);
    }
    assert_int_equal(shard_writer_close(writer, &err), 0);
    assert_int_equal(shard_open(shard, scratch_path(name), &err), 0);
}

/* The file's documents against the shard's from *document on. */
static void compare_documents(struct foreign_file *file, const struct shard *shard,
                              uint64_t *document)
{
    struct err err;
    struct foreign_piece *piece = mem_alloc(1, sizeof(*piece));
    uint64_t at = shard->documents[*document];
    int code;
    while ((code = foreign_next(file, piece, &err)) == 1) {
        uint32_t tokens[FOREIGN_PIECE_MAX];
        assert_true(at + piece->count <= shard->token_count);
        shard_read(shard, at, tokens, piece->count);
        assert_memory_equal(piece->tokens, tokens, piece->count * sizeof(*tokens));
        at += piece->count;
        if (!piece->ends_document)
            continue;
        at++; /* END */
        *document += 1;
        assert_int_equal(at, *document < shard->document_count ? shard->documents[*document]
                                                               : shard->token_count);
    }
    assert_int_equal(code, 0);
    mem_free(piece);
}

static void check_round_trip(enum foreign_format format, uint32_t vocab, const uint32_t *lengths,
                             size_t count)
{
    struct err err;
    struct shard shard;
    struct foreign_file file;
    uint64_t document = 0;
    make_shard(&shard, "shard.tok", vocab, lengths, count);
    assert_int_equal(foreign_write(&shard, format, END, scratch_dir(), "train", &err), 0);
    const char *name = format == FOREIGN_LLMC ? "train_000001.bin" : "train.bin";
    assert_int_equal(foreign_open(&file, format, scratch_path(name), vocab, END, &err), 0);
    compare_documents(&file, &shard, &document);
    assert_int_equal(document, count);
    foreign_close(&file);
    shard_close(&shard);
}

static void test_round_trips(void **state)
{
    (void)state;
    static const uint32_t few[] = {3, 2, 5, 2}, one[] = {2};
    static const uint32_t long_ones[] = {65536, 65537, 2, 65538, 200000, 65535, 4};
    for (enum foreign_format format = 0; format < FOREIGN_FORMATS; format++) {
        for (uint32_t vocab = 300; vocab <= 70000; vocab += 69700) {
            if (format == FOREIGN_NANOGPT && vocab > 65536)
                continue;
            check_round_trip(format, vocab, few, ARRAY_COUNT(few));
            check_round_trip(format, vocab, one, 1);
            check_round_trip(format, vocab, long_ones, ARRAY_COUNT(long_ones));
        }
    }
}

static void assert_bytes(const char *name, size_t skip, const char *expected, size_t bytes)
{
    struct err err;
    char *data;
    size_t data_bytes;
    assert_int_equal(file_read_all(scratch_path(name), 1 << 20, &data, &data_bytes, &err), 0);
    assert_int_equal(data_bytes, skip + bytes);
    assert_memory_equal(data + skip, expected, bytes);
    mem_free(data);
}

/* Two documents, "1 2 END" and "3 END". */
static void make_two(struct shard *shard, uint32_t vocab)
{
    struct err err;
    struct shard_writer *writer;
    assert_int_equal(shard_writer_open(&writer, scratch_path("two.tok"), vocab, 1, &err), 0);
    assert_int_equal(shard_writer_add(writer, (uint32_t[]){1, 2, END}, 3, &err), 0);
    assert_int_equal(shard_writer_add(writer, (uint32_t[]){3, END}, 2, &err), 0);
    assert_int_equal(shard_writer_close(writer, &err), 0);
    assert_int_equal(shard_open(shard, scratch_path("two.tok"), &err), 0);
}

static void test_bytes(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    static const char narrow[] = "\1\0\2\0\7\0\3\0\7";
    make_two(&shard, 300);
    for (enum foreign_format format = 0; format < FOREIGN_FORMATS; format++)
        assert_int_equal(
            foreign_write(&shard, format, END, scratch_dir(), foreign_names[format], &err), 0);
    assert_bytes("nanogpt.bin", 0, narrow, sizeof(narrow));
    assert_bytes("llmc_000001.bin", 1024, "\7\0\1\0\2\0\7\0\3", 10);
    char *header;
    size_t bytes;
    assert_int_equal(file_read_all(scratch_path("llmc_000001.bin"), 4096, &header, &bytes, &err),
                     0);
    assert_memory_equal(header, ((int32_t[]){20240520, 1, 5, 0}), 16);
    mem_free(header);
    assert_bytes("megatron.bin", 0, narrow, sizeof(narrow));
    static const char index[] = "MMIDIDX\0\0"
                                "\1\0\0\0\0\0\0\0"
                                "\x8"
                                "\2\0\0\0\0\0\0\0"
                                "\3\0\0\0\0\0\0\0"
                                "\3\0\0\0\2\0\0\0"
                                "\0\0\0\0\0\0\0\0\6\0\0\0\0\0\0\0"
                                "\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0";
    assert_bytes("megatron.idx", 0, index, sizeof(index));
    shard_close(&shard);

    make_two(&shard, 70000);
    assert_int_equal(foreign_write(&shard, FOREIGN_NANOGPT, END, scratch_dir(), "wide", &err),
                     ERR_INPUT);
    assert_non_null(strstr(err.message, "uint16"));
    assert_false(file_exists(scratch_path("wide.bin")));
    assert_int_equal(foreign_write(&shard, FOREIGN_LLMC, END, scratch_dir(), "wide", &err), 0);
    assert_int_equal(file_read_all(scratch_path("wide_000001.bin"), 4096, &header, &bytes, &err),
                     0);
    assert_int_equal(bytes, 1024 + 20);
    assert_memory_equal(header, ((int32_t[]){20240801, 7, 5, 0}), 16);
    mem_free(header);
    shard_close(&shard);
}

static int open_file(enum foreign_format format, const char *name, struct err *err)
{
    struct foreign_file file;
    int code = foreign_open(&file, format, scratch_path(name), 300, END, err);
    struct foreign_piece *piece = mem_alloc(1, sizeof(*piece));
    int next = 1;
    /* Nothing has more pieces than tokens and documents together. */
    for (uint64_t i = 0; code == 0 && next == 1; i++) {
        assert_true(i < 10000);
        next = foreign_next(&file, piece, err);
    }
    mem_free(piece);
    foreign_close(&file);
    return code != 0 ? code : next;
}

static void refuse(enum foreign_format format, const char *name, const char *why)
{
    struct err err;
    assert_true(open_file(format, name, &err) < 0);
    if (strstr(err.message, why) == NULL || strstr(err.message, name) == NULL)
        fail_msg("'%s' does not say '%s' of %s", err.message, why, name);
}

static void write_bytes(const char *name, const char *data, size_t bytes)
{
    FILE *file = fopen(scratch_path(name), "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
}

static void test_refused(void **state)
{
    (void)state;
    refuse(FOREIGN_NANOGPT, "missing.bin", "cannot open");
    write_bytes("empty.bin", "", 0);
    refuse(FOREIGN_NANOGPT, "empty.bin", "empty");
    write_bytes("odd.bin", "abc", 3);
    refuse(FOREIGN_NANOGPT, "odd.bin", "3 bytes");
    write_bytes("big.bin", "\1\0\xff\xff", 4);
    refuse(FOREIGN_NANOGPT, "big.bin", "token 65535 at position 1");
    refuse(FOREIGN_LLMC, "big.bin", "no whole header");
    struct err err;
    assert_true(open_file(FOREIGN_MEGATRON, "big.bin", &err) < 0);
    assert_non_null(strstr(err.message, "big.idx"));
    char header[1030] = {0};
    write_bytes("zero.bin", header, sizeof(header));
    refuse(FOREIGN_LLMC, "zero.bin", "begins with 0 and 0");
    memcpy(header, ((int32_t[]){20240520, 1, 4}), 12);
    write_bytes("cut.bin", header, sizeof(header));
    refuse(FOREIGN_LLMC, "cut.bin", "says 4 tokens, and it has 3");
}

/* Whatever is wrong with an index: refused, or read without leaving the file. */
static void test_damaged_index(void **state)
{
    (void)state;
    struct err err;
    struct shard shard;
    char *index;
    size_t bytes;
    uint32_t refused = 0;
    make_two(&shard, 300);
    assert_int_equal(foreign_write(&shard, FOREIGN_MEGATRON, END, scratch_dir(), "bad", &err), 0);
    shard_close(&shard);
    assert_int_equal(file_read_all(scratch_path("bad.idx"), 4096, &index, &bytes, &err), 0);
    assert_int_equal(open_file(FOREIGN_MEGATRON, "bad.bin", &err), 0);
    for (size_t length = 1; length < bytes; length++) {
        write_bytes("bad.idx", index, length);
        assert_true(open_file(FOREIGN_MEGATRON, "bad.bin", &err) < 0);
    }
    for (size_t at = 0; at < bytes; at++) {
        for (int bit = 0; bit < 8; bit++) {
            index[at] = (char)(index[at] ^ 1 << bit);
            write_bytes("bad.idx", index, bytes);
            refused += open_file(FOREIGN_MEGATRON, "bad.bin", &err) < 0;
            index[at] = (char)(index[at] ^ 1 << bit);
        }
    }
    assert_true(refused > bytes * 6);
    mem_free(index);
}

/* Tokens of others end documents as they like: no end at all, several together, one at the start.
 */
static void test_ends(void **state)
{
    (void)state;
    struct err err;
    struct foreign_file file;
    struct foreign_piece *piece = mem_alloc(1, sizeof(*piece));
    static const char tokens[] = "\7\0\1\0\7\0\7\0\2"; /* END 1 END END 2 */
    write_bytes("ends.bin", tokens, sizeof(tokens));
    assert_int_equal(foreign_open(&file, FOREIGN_NANOGPT, scratch_path("ends.bin"), 300, END, &err),
                     0);
    static const size_t counts[] = {0, 1, 0, 1};
    for (size_t i = 0; i < ARRAY_COUNT(counts); i++) {
        assert_int_equal(foreign_next(&file, piece, &err), 1);
        assert_int_equal(piece->count, counts[i]);
        assert_true(piece->ends_document);
    }
    assert_int_equal(piece->tokens[0], 2);
    assert_int_equal(foreign_next(&file, piece, &err), 0);
    foreign_close(&file);
    mem_free(piece);
}

static void test_names(void **state)
{
    (void)state;
    for (enum foreign_format format = 0; format < FOREIGN_FORMATS; format++)
        assert_int_equal(foreign_by_name(foreign_names[format]), format);
    assert_int_equal(foreign_by_name("text"), FOREIGN_FORMATS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips), cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_refused),     cmocka_unit_test(test_damaged_index),
        cmocka_unit_test(test_ends),        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
