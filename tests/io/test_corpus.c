/*
 * Property: the pieces of a document put together are the document; documents are what the header
 * says for every layout of blank lines; pieces are bounded and torn where it does no harm; a folder
 * gives its text files once, in order, also thousands of them; what is no text is refused or left
 * out. Method: documents written down beside the files that hold them, a plain splitter over whole
 * texts for random ones, texts longer than the buffer.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/corpus.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include "tests/shared/pack.h"
#include "tests/shared/scratch.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define JOINED_MAX (4u << 20)

/* All documents with a U+0001 after each, read twice. */
static char *join_documents(struct corpus *corpus, size_t *joined_bytes, uint64_t *documents)
{
    struct err err;
    struct corpus_piece piece;
    char *joined = mem_alloc(JOINED_MAX, 1);
    size_t bytes = 0;
    bool in_document = false;
    *documents = 0;
    int code;
    while ((code = corpus_next(corpus, &piece, &err)) == 1) {
        assert_int_equal(piece.first, !in_document);
        assert_true(piece.bytes <= CORPUS_PIECE_MAX);
        assert_true(piece.bytes > 0 || (piece.last && !piece.first));
        assert_true(bytes + piece.bytes + 1 < JOINED_MAX);
        memcpy(joined + bytes, piece.text, piece.bytes);
        bytes += piece.bytes;
        in_document = !piece.last;
        if (piece.last) {
            joined[bytes++] = '\1';
            (*documents)++;
        }
    }
    assert_int_equal(code, 0);
    assert_false(in_document);
    assert_true(!corpus->total_known || corpus_done(corpus) == 1 || corpus->total_bytes == 0);
    *joined_bytes = bytes;
    return joined;
}

static int open_inputs(struct corpus *corpus, const char *const *inputs, size_t count,
                       enum corpus_format format, enum corpus_split split, struct err *err)
{
    const struct corpus_settings settings = {
        .inputs = inputs, .input_count = count, .format = format, .split = split};
    return corpus_open(corpus, &settings, err);
}

static void write_bytes(const char *name, const char *text, size_t bytes)
{
    struct err err;
    scratch_write(name, "");
    assert_int_equal(file_replace(scratch_path(name), text, bytes, &err), 0);
}

static void expect(const char *name, enum corpus_split split, const char *expected, size_t bytes)
{
    struct err err;
    struct corpus corpus;
    const char *input = scratch_path(name);
    size_t joined_bytes;
    uint64_t documents;
    assert_int_equal(open_inputs(&corpus, &input, 1, CORPUS_FORMAT_TEXT, split, &err), 0);
    for (int i = 0; i < 2; i++) {
        char *joined = join_documents(&corpus, &joined_bytes, &documents);
        assert_int_equal(joined_bytes, bytes);
        assert_memory_equal(joined, expected, bytes);
        mem_free(joined);
        assert_int_equal(corpus_rewind(&corpus, &err), 0);
    }
    corpus_close(&corpus);
}

static void test_layouts(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"one", "one\1"},
        {"one\n", "one\1"},
        {"one\ntwo\n", "one\ntwo\1"},
        {"one\n\ntwo\n", "one\1two\1"},
        {"one\r\n\r\ntwo\r\nmore\r\n", "one\1two\r\nmore\1"},
        {"\n\n \n one\n \t \n\n\ntwo \n\n", " one\1two \1"},
        {"one\n   ", "one\1"},
        {"one\n\n", "one\1"},
        {"   \n\t\n\r\n", ""},
        {"   ", ""},
        {"one\n \xc2\xa0\ntwo", "one\n \xc2\xa0\ntwo\1"},
        {"a\xff\n\n\xfe\nb", "a\xff\1\xfe\nb\1"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        scratch_write("layout.txt", cases[i][0]);
        expect("layout.txt", CORPUS_SPLIT_BLANK, cases[i][1], strlen(cases[i][1]));
        char whole[64];
        snprintf(whole, sizeof(whole), "%s\1", cases[i][0]);
        expect("layout.txt", CORPUS_SPLIT_FILE, whole, strlen(whole));
    }
}

/* The same rule over a whole text: each line is kept or is blank. */
static size_t plain_split(const char *text, size_t bytes, char *joined)
{
    size_t used = 0;
    bool open = false;
    for (size_t start = 0, end; start < bytes; start = end + 1) {
        const char *newline = memchr(text + start, '\n', bytes - start);
        end = newline != NULL ? (size_t)(newline - text) : bytes;
        size_t trimmed = end;
        while (trimmed > start && memchr(" \t\r\f\v", text[trimmed - 1], 5) != NULL)
            trimmed--;
        if (trimmed == start) {
            if (open)
                joined[used++] = '\1';
            open = false;
            continue;
        }
        if (open) {
            /* The newline of the line before, with its carriage return. */
            if (text[start - 2] == '\r')
                joined[used++] = '\r';
            joined[used++] = '\n';
        }
        memcpy(joined + used, text + start, end - start);
        used += end - start;
        if (newline != NULL && joined[used - 1] == '\r')
            used--;
        open = true;
    }
    if (open)
        joined[used++] = '\1';
    return used;
}

/* Documents of all sizes around the piece and the buffer, with blank lines of many kinds. */
static void test_random_layouts(void **state)
{
    (void)state;
    static const char *const gaps[] = {"\n\n", "\n \t\n", "\r\n\r\n", "\n\n\n\n", "\n", " ", "\n"};
    static const size_t lengths[] = {1,
                                     3,
                                     80,
                                     4000,
                                     CORPUS_PIECE_MAX - 1,
                                     CORPUS_PIECE_MAX,
                                     CORPUS_PIECE_MAX + 1,
                                     3 * CORPUS_PIECE_MAX};
    char *text = mem_alloc(JOINED_MAX, 1), *expected = mem_alloc(JOINED_MAX, 1);
    for (uint64_t seed = 0; seed < 12; seed++) {
        size_t bytes = 0;
        for (uint64_t i = 0; i < 60 && bytes < JOINED_MAX / 2; i++) {
            uint64_t kind = rng_below(seed, 1, i, i % 6 == 0 ? ARRAY_COUNT(lengths) : 4);
            for (size_t j = 0; j < lengths[kind]; j++)
                text[bytes++] = j % 9 == 8 && j + 1 < lengths[kind] ? ' ' : 'a' + (char)(i % 26);
            const char *gap = gaps[rng_below(seed, 2, i, ARRAY_COUNT(gaps))];
            memcpy(text + bytes, gap, strlen(gap));
            bytes += strlen(gap);
        }
        write_bytes("random.txt", text, bytes);
        expect("random.txt", CORPUS_SPLIT_BLANK, expected, plain_split(text, bytes, expected));
        memcpy(expected, text, bytes);
        expected[bytes] = '\1';
        expect("random.txt", CORPUS_SPLIT_FILE, expected, bytes + 1);
    }
    mem_free(text);
    mem_free(expected);
}

/* Text without any white space is torn between characters, not inside one. */
static void test_no_white_space(void **state)
{
    (void)state;
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    const size_t characters = CORPUS_PIECE_MAX;
    char *text = mem_alloc(characters, 3);
    for (size_t i = 0; i < characters; i++)
        memcpy(text + 3 * i, "\xe6\x97\xa5", 3);
    write_bytes("dense.txt", text, 3 * characters);
    const char *input = scratch_path("dense.txt");
    assert_int_equal(open_inputs(&corpus, &input, 1, CORPUS_FORMAT_AUTO, CORPUS_SPLIT_FILE, &err),
                     0);
    size_t bytes = 0;
    while (corpus_next(&corpus, &piece, &err) == 1) {
        assert_int_equal(piece.bytes % 3, 0);
        assert_true(piece.last || piece.bytes > CORPUS_PIECE_MAX - 3);
        bytes += piece.bytes;
    }
    assert_int_equal(bytes, 3 * characters);
    corpus_close(&corpus);
    mem_free(text);
}

static void test_folder(void **state)
{
    (void)state;
    struct err err;
    struct corpus corpus;
    size_t bytes;
    uint64_t documents;
    scratch_write("tree/b.txt", "second");
    scratch_write("tree/a/z.txt", "first");
    scratch_write("tree/c/d/e.txt", "third");
    scratch_write("tree/.hidden/x.txt", "hidden");
    scratch_write("tree/.x", "hidden");
    scratch_write("tree/data.jsonl", "{}");
    scratch_write("tree/nothing", "");
    write_bytes("tree/index.dat", "a\0b", 3);
    assert_int_equal(symlink("b.txt", scratch_path("tree/link.txt")), 0);
    assert_int_equal(symlink("..", scratch_path("tree/loop")), 0);
    const char *inputs[] = {scratch_path("tree"), scratch_path("tree/b.txt")};
    assert_int_equal(open_inputs(&corpus, inputs, 2, CORPUS_FORMAT_AUTO, CORPUS_SPLIT_FILE, &err),
                     0);
    char *joined = join_documents(&corpus, &bytes, &documents);
    joined[bytes] = '\0';
    assert_string_equal(joined, "first\1second\1third\1second\1");
    assert_int_equal(documents, 4);
    assert_int_equal(corpus.left[CORPUS_EMPTY].count, 1);
    assert_int_equal(corpus.left[CORPUS_SKIPPED].count, 1);
    assert_non_null(corpus.left[CORPUS_SKIPPED].example);
    assert_int_equal(corpus_records(&corpus)->results[RECORD_FIELDLESS], 1);
    mem_free(joined);
    corpus_close(&corpus);

    assert_int_equal(open_inputs(&corpus, inputs, 1, CORPUS_FORMAT_TEXT, CORPUS_SPLIT_FILE, &err),
                     0);
    assert_int_equal(corpus.tree.file_count, 4);
    assert_int_equal(corpus.left[CORPUS_SKIPPED].count, 1);
    corpus_close(&corpus);
}

static void refuse(const char *input, const char *why)
{
    struct err err;
    struct corpus corpus;
    assert_true(open_inputs(&corpus, &input, 1, CORPUS_FORMAT_AUTO, CORPUS_SPLIT_FILE, &err) < 0);
    if (strstr(err.message, why) == NULL || strstr(err.message, input) == NULL)
        fail_msg("'%s' does not say '%s' of %s", err.message, why, input);
    assert_null(strchr(err.message, '\n'));
    corpus_close(&corpus);
}

/* A file that is made shorter while it is read, between passes or in one: its text ends there. */
static void test_shrinks(void **state)
{
    (void)state;
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    const uint64_t whole = 3 * MIB, cut = 2 * MIB, shorter = MIB;
    char *text = mem_alloc(whole, 1);
    memset(text, 'a', whole);
    for (uint64_t i = 0; i < whole; i += 80)
        text[i] = ' ';
    write_bytes("shrinks.txt", text, whole);
    mem_free(text);
    const char *input = scratch_path("shrinks.txt");
    assert_int_equal(open_inputs(&corpus, &input, 1, CORPUS_FORMAT_AUTO, CORPUS_SPLIT_FILE, &err),
                     0);
    for (int pass = 0; pass < 2; pass++) {
        uint64_t bytes = 0, documents = 0;
        int code;
        while ((code = corpus_next(&corpus, &piece, &err)) == 1) {
            if (bytes == 0)
                assert_int_equal(
                    truncate(scratch_path("shrinks.txt"), (off_t)(pass == 0 ? cut : shorter)), 0);
            bytes += piece.bytes;
            documents += piece.last;
        }
        assert_int_equal(code, 0);
        assert_int_equal(bytes, pass == 0 ? cut : shorter);
        assert_int_equal(documents, 1);
        assert_int_equal(corpus_rewind(&corpus, &err), 0);
    }
    corpus_close(&corpus);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        size_t bytes;
        const char *why;
    } cases[] = {
        {"x.json", "{\n}", 3, "JSON"},
        {"x.xml", "<a/>", 4, "XML"},
        {"x.any", "<?xml version='1.0'?><a/>", 25, "XML"},
        {"x.xz",
         "\xfd"
         "7zXZ",
         5, "xz"},
        {"x.zip", "PK\x03\x04", 4, "zip"},
        {"x.pdf", "%PDF-1.4", 8, "PDF"},
        {"x.txt", "a\0b", 3, "UTF-16"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err err;
        struct corpus corpus;
        write_bytes(cases[i].name, cases[i].text, cases[i].bytes);
        refuse(scratch_path(cases[i].name), cases[i].why);
        const char *input = scratch_path(cases[i].name);
        assert_int_equal(
            open_inputs(&corpus, &input, 1, CORPUS_FORMAT_TEXT, CORPUS_SPLIT_FILE, &err), 0);
        assert_int_equal(corpus.total_bytes, cases[i].bytes);
        corpus_close(&corpus);
    }
    refuse(scratch_path("nowhere"), "there is no text");
    refuse("/dev/null", "neither a file nor a folder");
}

static void test_empty(void **state)
{
    (void)state;
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    scratch_write("empty.txt", "");
    const char *input = scratch_path("empty.txt");
    assert_int_equal(open_inputs(&corpus, &input, 1, CORPUS_FORMAT_AUTO, CORPUS_SPLIT_FILE, &err),
                     0);
    assert_int_equal(corpus.tree.file_count, 0);
    assert_int_equal(corpus.left[CORPUS_EMPTY].count, 1);
    assert_int_equal(corpus_next(&corpus, &piece, &err), 0);
    corpus_close(&corpus);
}

/* A file that is gone when its turn comes: an error with its name. */
static void test_vanished(void **state)
{
    (void)state;
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    scratch_write("gone.txt", "text");
    const char *input = scratch_path("gone.txt");
    assert_int_equal(open_inputs(&corpus, &input, 1, CORPUS_FORMAT_AUTO, CORPUS_SPLIT_FILE, &err),
                     0);
    assert_int_equal(unlink(input), 0);
    assert_true(corpus_next(&corpus, &piece, &err) < 0);
    assert_non_null(strstr(err.message, "gone.txt"));
    corpus_close(&corpus);
}

/* More files than are looked into before their turn: kinds are told, and counted, when it comes. */
static void test_many_files(void **state)
{
    (void)state;
    enum { FILES = 4200 };
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    size_t packed_bytes;
    char name[64], text[64];
    for (int i = 0; i < FILES; i++) {
        snprintf(name, sizeof(name), "many/%d/%04d", i / 1000, i);
        snprintf(text, sizeof(text), "text %d", i);
        scratch_write(name, i % 1000 == 7 ? "" : text);
    }
    write_bytes("many/0/0003", "a\0b", 3);
    char *packed = pack(PACK_BZIP2, "packed text", 11, &packed_bytes);
    write_bytes("many/1/1500", packed, packed_bytes);
    write_bytes("many/2/2500", packed, packed_bytes - 5);
    mem_free(packed);
    write_bytes("many/3/3500", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{}\n", 29);
    const char *input = scratch_path("many");
    const struct corpus_settings settings = {
        .inputs = &input, .input_count = 1, .spool_dir = scratch_dir()};
    assert_int_equal(corpus_open(&corpus, &settings, &err), 0);
    assert_true(corpus_is_spooled(&corpus));
    assert_false(corpus.total_known);
    for (int pass = 0; pass < 3; pass++) {
        int documents = 0;
        assert_int_equal(corpus_rewind(&corpus, &err), 0);
        for (int i = 0; i < FILES; i++) {
            if (i % 1000 == 7 || i == 3 || i == 2500)
                continue;
            int lines = i == 3500 ? 2 : 1;
            for (int line = 0; line < lines; line++) {
                assert_int_equal(corpus_next(&corpus, &piece, &err), 1);
                snprintf(text, sizeof(text), "text %d", i);
                if (i == 1500 || i == 3500)
                    strcpy(text, i == 1500 ? "packed text" : line == 0 ? "a" : "b");
                assert_int_equal(piece.bytes, strlen(text));
                assert_memory_equal(piece.text, text, piece.bytes);
                documents += piece.first && piece.last;
            }
        }
        assert_int_equal(corpus_next(&corpus, &piece, &err), 0);
        assert_int_equal(documents, FILES - 5 - 2 + 1);
        assert_true(corpus_done(&corpus) == 1);
    }
    assert_int_equal(corpus.left[CORPUS_EMPTY].count, 5);
    assert_int_equal(corpus.left[CORPUS_SKIPPED].count, 1);
    assert_int_equal(corpus.left[CORPUS_DAMAGED].count, 1);
    assert_non_null(strstr(corpus.left[CORPUS_DAMAGED].example, "many/2/2500 is damaged at byte"));
    assert_int_equal(corpus.packed_files, 1);
    assert_int_equal(corpus.jsonl_files, 1);
    assert_int_equal(corpus_records(&corpus)->results[RECORD_FIELDLESS], 1);
    corpus_close(&corpus);
}

static void collect(struct corpus *corpus, uint64_t most, char *text)
{
    struct err err;
    struct corpus_piece piece;
    int code = 1;
    for (uint64_t i = 0; i < most && (code = corpus_next(corpus, &piece, &err)) == 1; i++) {
        strncat(text, piece.text, piece.bytes);
        strcat(text, piece.last ? "|" : "+");
    }
    assert_true(code >= 0);
}

/* Left between any two pieces of its first pass or of a later one, another process goes on there:
 * the same pieces, the same counts. */
static void test_resume(void **state)
{
    (void)state;
    struct err err;
    struct corpus corpus;
    struct corpus_position at, end;
    static char expected[JOINED_MAX], got[JOINED_MAX];
    scratch_write("r/a.txt", "one\n\ntwo\n\n\nthree");
    scratch_write("r/b", "");
    write_bytes("r/c", "a\0b", 3);
    scratch_write("r/d.jsonl",
                  "{\"text\": \"four\"}\nno\n{\"text\": \"five\"}\n{}\n{\"text\": \"six\"}\n");
    scratch_write("r/e.txt", "seven\n\neight");
    scratch_write("cheap/a.txt", "one\n\ntwo\n\n\nthree");
    scratch_write("cheap/b.txt", "four\n\n");
    const char *examples[CORPUS_LEFTS] = {"an empty one", "a skipped one", NULL, NULL};
    for (int kind = 0; kind < 2; kind++) {
        const char *input = scratch_path(kind == 0 ? "r" : "cheap");
        const struct corpus_settings settings = {.inputs = &input,
                                                 .input_count = 1,
                                                 .split = CORPUS_SPLIT_BLANK,
                                                 .spool_dir = scratch_dir(),
                                                 .spool_name = "spool"};
        expected[0] = '\0';
        assert_int_equal(corpus_open(&corpus, &settings, &err), 0);
        assert_int_equal(corpus_is_spooled(&corpus), kind == 0);
        collect(&corpus, UINT64_MAX, expected);
        corpus_tell(&corpus, &end);
        corpus_close(&corpus);
        uint64_t pieces = kind == 0 ? 8 : 4;
        for (uint64_t i = 0; i <= pieces; i++) {
            got[0] = '\0';
            assert_int_equal(corpus_open(&corpus, &settings, &err), 0);
            collect(&corpus, i, got);
            corpus_tell(&corpus, &at);
            assert_int_equal(corpus_sync(&corpus, &err), 0);
            if (kind == 0) {
                collect(&corpus, i % 3, (char[JOINED_MAX / 64]){0}); /* behind the mark */
                corpus_close(&corpus);
                assert_int_equal(corpus_open(&corpus, &settings, &err), 0);
                assert_int_equal(corpus_resume(&corpus, &at, examples, false, &err), 0);
                collect(&corpus, UINT64_MAX, got);
                assert_string_equal(got, expected);
                corpus_tell(&corpus, &at);
                assert_memory_equal(&at.counts.left, &end.counts.left, sizeof(at.counts.left));
                assert_memory_equal(at.counts.records.results, end.counts.records.results,
                                    sizeof(at.counts.records.results));
                assert_int_equal(at.counts.file_count, end.counts.file_count);
                assert_int_equal(at.spool_bytes, end.spool_bytes);
                assert_int_equal(corpus_sync(&corpus, &err), 0);
            }
            corpus_close(&corpus);
            /* A later pass. */
            got[0] = '\0';
            assert_int_equal(corpus_open(&corpus, &settings, &err), 0);
            assert_int_equal(corpus_resume(&corpus, &end, examples, true, &err), 0);
            assert_int_equal(corpus_rewind(&corpus, &err), 0);
            collect(&corpus, i, got);
            corpus_tell(&corpus, &at);
            collect(&corpus, 1, (char[1024]){0});
            assert_int_equal(corpus_seek(&corpus, &at, &err), 0);
            collect(&corpus, UINT64_MAX, got);
            assert_string_equal(got, expected);
            assert_int_equal(corpus.file_count, kind == 0 ? 3 : 2);
            corpus_close(&corpus);
        }
    }
}

/* What a file is, by its first bytes and its name. */
static void test_kinds(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        uint64_t documents;
        bool jsonl, wiki;
    } cases[] = {
        {"k.txt", "{ braces } in prose\nand more", 1, false, false},
        {"k.c", "{\n  int x;\n}\n", 1, false, false},
        {"k.data", "{\"text\": \"a\"}\r\n{\"text\": \"b\"}", 2, true, false},
        {"k.jsonl", "nonsense\n{\"text\": \"b\"}", 1, true, false},
        {"k.json", "{\"text\": \"b\"}\n", 1, true, false},
        {"k.dump",
         "<?xml version=\"1.0\"?>\n<mediawiki>\n<page><title>A</title><revision><text>a"
         "</text></revision></page></mediawiki>",
         1, false, true},
        {"k.html", "<html><body>a</body></html>", 1, false, false},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct err err;
        struct corpus corpus;
        uint64_t documents;
        size_t bytes;
        const char *input = scratch_write(cases[i].name, cases[i].text);
        assert_int_equal(
            open_inputs(&corpus, &input, 1, CORPUS_FORMAT_AUTO, CORPUS_SPLIT_FILE, &err), 0);
        mem_free(join_documents(&corpus, &bytes, &documents));
        assert_int_equal(documents, cases[i].documents);
        assert_int_equal(corpus.jsonl_files, cases[i].jsonl);
        assert_int_equal(corpus.wiki_files, cases[i].wiki);
        corpus_close(&corpus);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),        cmocka_unit_test(test_random_layouts),
        cmocka_unit_test(test_no_white_space), cmocka_unit_test(test_folder),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_vanished),       cmocka_unit_test(test_many_files),
        cmocka_unit_test(test_kinds),          cmocka_unit_test(test_resume),
        cmocka_unit_test(test_shrinks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
