/*
 * Property: of a dump with known prose every document comes out exact, in order, whatever it is
 * compressed with, however its bytes are cut into buffers, for any number of threads; pages that
 * are no articles, malformed or too long are left out and counted, and cost no other page. Method:
 * the generator of tests/shared/wiki_dump; pages written down.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/pool.h"
#include "io/records.h"
#include "tests/shared/check.h"
#include "tests/shared/pack.h"
#include "tests/shared/wiki_dump.h"
#include <stdlib.h>
#include <string.h>

#define PAGES 400

static struct wiki_dump_page page;

/* All documents of the packed dump, each with a \1 behind it; to be freed with mem_free. */
static char *documents_of(const char *packed, size_t packed_bytes, struct pool *pool,
                          uint64_t buffer_bytes, struct records_count *counted)
{
    struct err err;
    const struct unpack_settings settings = {.pool = pool};
    const struct unpack_file file = {"dump", -1, packed, packed_bytes, false};
    struct unpack *unpack = unpack_new(&settings);
    struct records *records = records_new(&settings, buffer_bytes);
    size_t used = 0, room = 8 * MIB, bytes;
    char *all = mem_alloc(room, 1);
    const char *text;
    int code;
    assert_int_equal(unpack_begin(unpack, &file, &err), 0);
    records_begin(records, &wiki_records, unpack, "text", "", 0);
    while ((code = records_next(records, &text, &bytes, &err)) == 1) {
        assert_true(used + bytes + 2 < room);
        memcpy(all + used, text, bytes);
        used += bytes;
        all[used++] = '\1';
    }
    assert_int_equal(code, 0);
    all[used] = '\0';
    *counted = *records_counted(records);
    records_free(records);
    unpack_free(unpack);
    return all;
}

static void test_generated(void **state)
{
    (void)state;
    struct err err;
    struct pool *pool;
    char *dump = mem_alloc(16 * MIB, 1), *expected = mem_alloc(16 * MIB, 1);
    uint64_t articles = 0;
    strcpy(dump, wiki_dump_head);
    char *dump_end = dump + strlen(dump), *expected_end = expected;
    for (uint64_t i = 0; i < PAGES; i++) {
        wiki_dump_page(&page, 7, i);
        dump_end = stpcpy(dump_end, page.xml);
        if (page.truth_bytes == 0)
            continue;
        expected_end = stpcpy(stpcpy(expected_end, page.truth), "\1");
        articles++;
    }
    dump_end = stpcpy(dump_end, wiki_dump_tail);
    assert_int_equal(pool_open(&pool, "wiki", 3, false, &err), 0);
    for (int kind = 0; kind < PACK_KIND_COUNT; kind++) {
        size_t bytes;
        char *packed = pack(kind, dump, (size_t)(dump_end - dump), &bytes);
        for (int threads = 0; threads < 2; threads++) {
            struct records_count counted;
            char *all = documents_of(packed, bytes, threads > 0 ? pool : NULL,
                                     threads > 0 ? 4 * MIB : 64 * KIB, &counted);
            assert_string_equal(all, expected);
            assert_int_equal(counted.results[RECORD_TEXT], articles);
            assert_int_equal(counted.results[RECORD_OTHER], PAGES - articles);
            assert_int_equal(counted.results[RECORD_MALFORMED], 0);
            assert_int_equal(counted.results[RECORD_TOO_LONG], 0);
            assert_int_equal(counted.broken_documents, 0);
            mem_free(all);
        }
        mem_free(packed);
    }
    pool_close(pool);
    mem_free(dump);
    mem_free(expected);
}

#define PAGE(title, ns, text)                                                                      \
    "<page><title>" title "</title>" ns "<revision><text xml:space=\"preserve\">" text             \
    "</text></revision></page>\n"

static void expect(const char *dump, const char *expected, struct records_count *counted)
{
    char *all = documents_of(dump, strlen(dump), NULL, 4096, counted);
    assert_string_equal(all, expected);
    mem_free(all);
}

static void test_pages(void **state)
{
    (void)state;
    struct records_count counted;
    expect("<mediawiki>" PAGE("A &amp; B", "<ns>0</ns>", "a &lt;b&gt;c&lt;/b&gt; &amp;amp; d"),
           "A & B\n\na c & d\1", &counted);
    /* Old dumps name no namespace; a page may have many revisions, an empty one or no text. */
    expect(PAGE("A", "", "a"), "A\n\na\1", &counted);
    expect("<page><title>A</title><ns>0</ns><revision><text>old</text></revision><revision>"
           "<text bytes=\"3\">new</text></revision></page>",
           "A\n\nnew\1", &counted);
    expect(
        "<page><title>A</title><ns>0</ns><revision><text /></revision></page>" PAGE("B", "", "b"),
        "B\n\nb\1", &counted);
    assert_int_equal(counted.results[RECORD_OTHER], 1);
    expect(PAGE("Talk:A", "<ns>1</ns>", "a") PAGE("A", "<ns>0</ns><redirect title=\"B\" />", "b")
               PAGE("C", "<ns>0</ns>", "#Redirect [[D]]") PAGE("E", "<ns>0</ns>", "e"),
           "E\n\ne\1", &counted);
    assert_int_equal(counted.results[RECORD_OTHER], 3);
    /* The word "text" within a text, and names of elements in it. */
    expect(PAGE("A", "<ns>0</ns>", "text /text &lt;/text&gt; title ns"),
           "A\n\ntext /text </text> title ns\1", &counted);
    expect("", "", &counted);
    expect("<mediawiki></mediawiki>", "", &counted);
}

static void test_malformed(void **state)
{
    (void)state;
    struct records_count counted;
    /* Cut off, without an end, without a title, one in another: the next one is whole. */
    expect(PAGE("A", "", "a") "<page><title>B</title><revision><text>cut", "A\n\na\1", &counted);
    assert_int_equal(counted.results[RECORD_MALFORMED], 1);
    expect("<page><title>A</title><revision><text>a</revision></page>" PAGE("B", "", "b"),
           "B\n\nb\1", &counted);
    assert_int_equal(counted.results[RECORD_MALFORMED], 1);
    expect("<page><revision><text>a</text></revision></page>" PAGE("B", "", "b"), "B\n\nb\1",
           &counted);
    assert_int_equal(counted.results[RECORD_MALFORMED], 1);
    expect("<page><title>A</title><page>" PAGE("B", "", "b") PAGE("C", "", "c"), "C\n\nc\1",
           &counted);
    assert_int_equal(counted.results[RECORD_MALFORMED], 1);
    expect("<page></page><page>x</page>" PAGE("B", "", "{{open [[b"), "", &counted);
    assert_int_equal(counted.results[RECORD_MALFORMED], 2);
    assert_int_equal(counted.results[RECORD_OTHER], 1);
    expect(PAGE("B", "", "b ]]"), "B\n\nb\1", &counted);
    assert_int_equal(counted.broken_documents, 1);
}

/* Pages that are longer than the buffer, of one to many times its size, between others. */
static void test_too_long(void **state)
{
    (void)state;
    static const size_t lengths[] = {4200, 5000, 8192, 100000};
    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        struct records_count counted;
        char *dump = mem_alloc(lengths[i] + 1000, 1);
        char *end = stpcpy(dump, PAGE("A", "", "a") "<page><title>");
        memset(end, 'x', lengths[i]);
        strcpy(end + lengths[i], "</title></page>" PAGE("B", "", "b") PAGE("C", "", "c"));
        expect(dump,
               "A\n\na\1"
               "B\n\nb\1"
               "C\n\nc\1",
               &counted);
        assert_int_equal(counted.results[RECORD_TOO_LONG], 1);
        mem_free(dump);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generated),
        cmocka_unit_test(test_pages),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test(test_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
