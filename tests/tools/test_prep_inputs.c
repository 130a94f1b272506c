/*
 * Property: the same documents give the same files, whatever they come in (a folder, JSON lines, a
 * dump; compressed or not; standard input) and for any number of threads; weights give the shares
 * that they ask for, and no document is on both sides; what cannot be taken is one sentence, or
 * left out and told, as tools/prep.c promises; memory stays within --ram-budget. Method: prep in a
 * child process on documents written down in every form.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/bpe.h"
#include "io/dataset.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/pack.h"
#include "tests/shared/scratch.h"
#include "tests/shared/wiki_dump.h"
#include "tools/commands.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define DOCUMENTS 300
#define TEXT_MAX  4096

static const char *const endings[PACK_KIND_COUNT] = {"", ".gz", ".bz2", ".l.bz2", ".zst"};

/* Document number index of the set `seed`. */
static void document(char text[TEXT_MAX], uint64_t seed, uint64_t index)
{
    static const char *const words[] = {"hora", "les", "voda", "v\xc3\xadtr",
                                        "dub",  "kos", "cesta"};
    size_t used = (size_t)sprintf(text, "%c%u", (int)('A' + seed), (unsigned)index);
    for (uint64_t i = 0, count = rng_below(seed, 1, index, 300); i < count; i++)
        used += (size_t)sprintf(text + used, " %s", words[rng_below(seed, index + 2, i, 7)]);
}

static void write_packed(const char *name, const char *text, size_t bytes)
{
    struct err err;
    for (int kind = 0; kind < PACK_KIND_COUNT; kind++) {
        char path[256];
        size_t packed_bytes;
        char *packed = pack(kind, text, bytes, &packed_bytes);
        snprintf(path, sizeof(path), "%s%s", name, endings[kind]);
        scratch_write(path, "");
        assert_int_equal(file_replace(scratch_path(path), packed, packed_bytes, &err), 0);
        mem_free(packed);
    }
}

/* name.jsonl in all forms, and the folder name. */
static void write_documents(const char *name, uint64_t seed, uint64_t count)
{
    char *lines = mem_alloc(count, TEXT_MAX + 64), text[TEXT_MAX], path[128];
    size_t used = 0;
    for (uint64_t i = 0; i < count; i++) {
        document(text, seed, i);
        used +=
            (size_t)sprintf(lines + used, "{\"id\": %u, \"body\": \"%s\"}\n", (unsigned)i, text);
        snprintf(path, sizeof(path), "%s/%u/%04u.txt", name, (unsigned)(i / 100), (unsigned)i);
        scratch_write(path, text);
    }
    snprintf(path, sizeof(path), "%s.jsonl", name);
    write_packed(path, lines, used);
    mem_free(lines);
}

static void prep(const char *arguments)
{
    char line[1024];
    snprintf(line, sizeof(line), "prep %s", arguments);
    command_must(prep_main, line);
}

static void refused(const char *arguments, int status, const char *what)
{
    char line[1024];
    snprintf(line, sizeof(line), "prep %s", arguments);
    command_refused(prep_main, line, status, what);
}

static void assert_same_data(const char *a, const char *b)
{
    static const char *const names[] = {"train.tok", "val.tok", "tokenizer.json"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct err err;
        char path[2][256], *data[2];
        size_t bytes[2];
        snprintf(path[0], sizeof(path[0]), "%s/%s", a, names[i]);
        snprintf(path[1], sizeof(path[1]), "%s/%s", b, names[i]);
        for (int j = 0; j < 2; j++)
            if (file_read_all(scratch_path(path[j]), 64 * MIB, &data[j], &bytes[j], &err) != 0)
                fail_msg("%s", err.message);
        assert_int_equal(bytes[0], bytes[1]);
        assert_memory_equal(data[0], data[1], bytes[0]);
        mem_free(data[0]);
        mem_free(data[1]);
    }
}

static void test_forms(void **state)
{
    (void)state;
    char line[512], name[64];
    write_documents("docs", 1, DOCUMENTS);
    prep("@/docs --out @/d0 --vocab-size 400 --val-fraction 0.1 --threads 1");
    for (int kind = 0; kind < PACK_KIND_COUNT; kind++) {
        snprintf(name, sizeof(name), "dl%d", kind);
        snprintf(line, sizeof(line),
                 "@/docs.jsonl%s --text-field body --out @/%s --vocab-size 400 --val-fraction 0.1 "
                 "--threads %d",
                 endings[kind], name, 1 + 2 * (kind % 2));
        prep(line);
        assert_same_data("d0", name);
    }
    /* Standard input, by content and when told. */
    assert_non_null(freopen(scratch_path("docs.jsonl.bz2"), "r", stdin));
    prep("- --text-field body --out @/ds --vocab-size 400 --val-fraction 0.1 --format jsonl");
    assert_same_data("d0", "ds");
    assert_non_null(freopen("/dev/null", "r", stdin));
}

static void test_wiki(void **state)
{
    (void)state;
    static struct wiki_dump_page page;
    char *dump = mem_alloc(8 * MIB, 1), line[256], name[32];
    char *end = stpcpy(dump, wiki_dump_head);
    for (uint64_t i = 0; i < 300; i++) {
        wiki_dump_page(&page, 3, i);
        end = stpcpy(end, page.xml);
    }
    write_packed("wiki.xml", dump, (size_t)(stpcpy(end, wiki_dump_tail) - dump));
    mem_free(dump);
    for (int kind = 0; kind < PACK_KIND_COUNT; kind++) {
        snprintf(name, sizeof(name), "w%d", kind);
        snprintf(line, sizeof(line), "@/wiki.xml%s --out @/%s --vocab-size 500 --threads %d%s",
                 endings[kind], name, 1 + kind % 3, kind % 2 ? " --format wiki" : "");
        prep(line);
        assert_same_data("w0", name);
        assert_non_null(strstr(command_out(), "no articles                   50"));
    }
}

/* How often the document number index of the set is in the shard. */
static uint64_t count_document(const struct shard *shard, const struct bpe *bpe, uint64_t seed,
                               uint64_t index)
{
    uint64_t found = 0;
    char begins[32];
    uint32_t tokens[32];
    snprintf(begins, sizeof(begins), "%c%u", (int)('A' + seed), (unsigned)index);
    for (uint64_t i = 0; i < shard->document_count; i++) {
        uint64_t start = shard->documents[i];
        uint64_t end = i + 1 < shard->document_count ? shard->documents[i + 1] : shard->token_count;
        size_t count = (size_t)MIN(end - start - 1, (uint64_t)ARRAY_COUNT(tokens));
        char text[2048];
        size_t used = 0;
        shard_read(shard, start, tokens, count);
        for (size_t j = 0; j < count && used < 64; j++) {
            size_t bytes;
            const char *piece = bpe_token_bytes(bpe, tokens[j], &bytes);
            memcpy(text + used, piece, bytes);
            used += bytes;
        }
        size_t bytes = strlen(begins);
        found += used >= bytes && memcmp(text, begins, bytes) == 0 &&
                 (used == bytes || text[bytes] == ' ');
    }
    return found;
}

static void test_weights(void **state)
{
    (void)state;
    struct err err;
    struct dataset data;
    struct bpe *bpe;
    write_documents("small", 2, 40);
    prep("@/docs:1 @/small.jsonl.gz:3 --text-field body --out @/weights --vocab-size 400 "
         "--val-fraction 0.1");
    assert_int_equal(dataset_open(&data, scratch_path("weights"), &err), 0);
    assert_int_equal(bpe_load(&bpe, scratch_path("weights"), &err), 0);
    /* The small set is about an eighth of the text and is to be three quarters: about six times. */
    uint64_t least = UINT64_MAX, most = 0, val = 0, left_out = 0;
    for (uint64_t i = 0; i < 40; i++) {
        uint64_t train = count_document(&data.train, bpe, 2, i);
        uint64_t kept = count_document(&data.val, bpe, 2, i);
        assert_true(kept <= 1 && (kept == 0 || train == 0) && kept + train > 0);
        val += kept;
        least = kept ? least : MIN(least, train);
        most = MAX(most, train);
    }
    assert_true(val > 0 && val < 20);
    assert_true(least >= 4 && most <= least + 1 && most <= 9);
    for (uint64_t i = 0; i < DOCUMENTS; i++)
        left_out +=
            count_document(&data.train, bpe, 1, i) + count_document(&data.val, bpe, 1, i) == 0;
    assert_true(left_out > DOCUMENTS / 2 && left_out < DOCUMENTS * 9 / 10);
    bpe_free(bpe);
    dataset_close(&data);
    /* Threads and form change nothing. */
    prep("@/docs.jsonl.zst:2 @/small:6 --text-field body --out @/weights3 --vocab-size 400 "
         "--val-fraction 0.1 --threads 3");
    assert_same_data("weights", "weights3");
    refused("@/docs:1 @/small --out @/x", 2, "all of them");
    refused("@/docs:0 @/small:1 --out @/x", 2, "above 0");
    refused("@/docs:1 @/docs/0/0000.txt:1 --out @/x --vocab-size 300", 1, "repeated");
    refused("@/docs/0/0000.txt:1 --out @/x", 1, "--split blank");
}

static void test_refused(void **state)
{
    (void)state;
    struct err err;
    char *data;
    size_t bytes;
    refused("@/docs.jsonl --out @/y", 1, "no line of @/docs.jsonl has a string \"text\"");
    refused("@/docs/0/0001.txt --format wiki --out @/x", 1, "there is no text");
    refused("- - --out @/x", 1, "twice");
    refused("@/docs.jsonl --format word --out @/x", 2, "jsonl or wiki");
    /* A named file that is damaged, with the place. */
    assert_int_equal(file_read_all(scratch_path("docs.jsonl.bz2"), 64 * MIB, &data, &bytes, &err),
                     0);
    scratch_write("cut/a.jsonl.bz2", "");
    assert_int_equal(file_replace(scratch_path("cut/a.jsonl.bz2"), data, bytes - 100, &err), 0);
    char expected[128];
    snprintf(expected, sizeof(expected), "@/cut/a.jsonl.bz2 is damaged at byte %zu", bytes - 100);
    refused("@/cut/a.jsonl.bz2 --text-field body --out @/x", 1, expected);
    mem_free(data);
    /* In a folder the rest of it is left out, and told. */
    scratch_write("cut/b.txt", "other text that is whole");
    prep("@/cut --text-field body --out @/cutdata --vocab-size 300");
    assert_non_null(strstr(command_err(), "is damaged at byte"));
}

static void test_left_out(void **state)
{
    (void)state;
    scratch_write("mixed.jsonl", "{\"text\": \"one two\"}\nnonsense\n{\"text\": \"three\"}\n"
                                 "{\"other\": \"x\"}\n{\"text\": \"four");
    prep("@/mixed.jsonl --out @/mixed --vocab-size 260");
    assert_non_null(strstr(command_out(), "malformed                      2"));
    assert_non_null(strstr(command_out(), "no text field                  1"));
    assert_non_null(strstr(command_out(), "documents                        2"));
}

/* A compressed text of long lines, most of which repeat: buffers for decompressing and for lines
 * are in the budget as well. */
static void test_budget(void **state)
{
    (void)state;
    if (!mem_heap_has_stats())
        skip(); /* the sanitizers' heap is not held to a budget */
    const size_t whole = 24 * MIB, line_bytes = 3 * MIB;
    char *lines = mem_alloc(whole, 1);
    for (size_t at = 0; at + line_bytes <= whole; at += line_bytes) {
        size_t used = (size_t)sprintf(lines + at, "{\"text\": \"");
        for (size_t i = used; i < line_bytes; i++)
            lines[at + i] = i % 7 == 0 ? ' ' : (char)('a' + rng_below(5, at, i / 700, 26));
        memcpy(lines + at + line_bytes - 3, "\"}\n", 3);
    }
    write_packed("lines.jsonl", lines, whole / line_bytes * line_bytes);
    mem_free(lines);
    for (int kind = PACK_GZIP; kind < PACK_KIND_COUNT; kind++) {
        char line[256];
        snprintf(line, sizeof(line),
                 "@/lines.jsonl%s --out @/budget%d --vocab-size 300 --threads 2 --ram-budget 128M",
                 endings[kind], kind);
        prep(line);
    }
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_CHILDREN, &usage), 0);
    assert_true((uint64_t)usage.ru_maxrss * KIB <= 128 * MIB);
}

int main(void)
{
    /* The budget first: the kernel counts the largest of all children. */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_forms),    cmocka_unit_test(test_wiki),
        cmocka_unit_test(test_weights),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_left_out), cmocka_unit_test(test_budget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
