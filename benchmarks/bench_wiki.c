/*
 * bench_wiki: a generated dump with known prose goes through io/corpus, as XML and as XML.bz2, with
 * one thread and with all; prints how much of the prose came out exact, and MB of XML per second
 * beside what libbz2 does with the same file. `--write N` writes a dump of N pages to standard
 * output instead; 576,000 are 480,000 articles and 1.8 GB:
 *
 *     bench_wiki --write 576000 | bzip2 > dump.xml.bz2
 */
#include "core/base.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "io/corpus.h"
#include "io/file.h"
#include "io/unpack.h"
#include "tests/shared/pack.h"
#include "tests/shared/wiki_dump.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SEED       1
#define PAGES      12000
#define STREAM_MAX (900u << 10) /* what a multistream dump has in a stream, about */

static struct wiki_dump_page page;

static void write_dump(uint64_t pages)
{
    fputs(wiki_dump_head, stdout);
    for (uint64_t i = 0; i < pages; i++) {
        wiki_dump_page(&page, SEED, i);
        fwrite(page.xml, 1, page.xml_bytes, stdout);
    }
    fputs(wiki_dump_tail, stdout);
}

/* How many paragraphs of expected are among those of text. */
static void compare(const char *expected, const char *text, uint64_t *exact, uint64_t *all)
{
    static uint64_t hashes[65536];
    size_t count = 0;
    for (const char *at = text; *at != '\0' && count < ARRAY_COUNT(hashes);) {
        const char *end = strstr(at, "\n\n");
        size_t bytes = end != NULL ? (size_t)(end - at) : strlen(at);
        hashes[count++] = hash_bytes(at, bytes, 0);
        at += bytes + (end != NULL ? 2 : 0);
    }
    for (const char *at = expected; *at != '\0';) {
        const char *end = strstr(at, "\n\n");
        size_t bytes = end != NULL ? (size_t)(end - at) : strlen(at);
        uint64_t hash = hash_bytes(at, bytes, 0);
        bool found = false;
        for (size_t i = 0; i < count && !found; i++)
            found = hashes[i] == hash;
        *exact += found;
        (*all)++;
        at += bytes + (end != NULL ? 2 : 0);
    }
}

static void open_corpus(struct corpus *corpus, const char *path, struct pool *pool)
{
    struct err err;
    const struct corpus_settings settings = {
        .inputs = &path, .input_count = 1, .pool = pool, .ram_budget = 2 * GIB};
    if (corpus_open(corpus, &settings, &err) != 0)
        fatal("%s", err.message);
}

static void check_prose(const char *path)
{
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    static char text[4 * WIKI_DUMP_PAGE_MAX];
    uint64_t exact = 0, all = 0, index = 0, documents = 0, extra = 0;
    size_t used = 0;
    int code;
    open_corpus(&corpus, path, NULL);
    while ((code = corpus_next(&corpus, &piece, &err)) == 1) {
        ASSERT(piece.bytes < sizeof(text) - used);
        memcpy(text + used, piece.text, piece.bytes);
        used += piece.bytes;
        if (!piece.last)
            continue;
        text[used] = '\0';
        used = 0;
        do
            wiki_dump_page(&page, SEED, index++);
        while (page.truth_bytes == 0 && index < PAGES);
        extra += page.truth_bytes == 0;
        documents++;
        compare(page.truth, text, &exact, &all);
    }
    if (code < 0)
        fatal("%s", err.message);
    corpus_close(&corpus);
    printf("%" PRIu64 " documents, %" PRIu64 " paragraphs, %.3f %% of them exact\n", documents, all,
           100.0 * (double)exact / (double)all);
    if (extra > 0 || (double)exact < 0.97 * (double)all)
        fatal("that is less than 97 %%");
}

static void measure(const char *path, const char *what, uint64_t xml_bytes, uint32_t threads)
{
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    struct pool *pool;
    if (pool_open(&pool, "bench", threads, true, &err) != 0)
        fatal("%s", err.message);
    uint64_t start_ns = clock_ns(), text_bytes = 0;
    open_corpus(&corpus, path, pool);
    while (corpus_next(&corpus, &piece, &err) == 1)
        text_bytes += piece.bytes;
    double seconds = (double)(clock_ns() - start_ns) * 1e-9;
    printf("%-32s %3u threads: %7.1f MB of XML/s\n", what, threads,
           (double)xml_bytes / 1e6 / seconds);
    corpus_close(&corpus);
    pool_close(pool);
}

static void measure_bzip2(const char *path, uint64_t xml_bytes)
{
    struct err err;
    char *packed;
    size_t bytes;
    if (file_read_all(path, UINT32_MAX, &packed, &bytes, &err) != 0)
        fatal("%s", err.message);
    uint64_t start_ns = clock_ns();
    if (pack_unbzip2(packed, bytes) != xml_bytes)
        fatal("libbz2 gives another number of bytes");
    double seconds = (double)(clock_ns() - start_ns) * 1e-9;
    printf("%-32s %3u thread:  %7.1f MB of XML/s\n", "libbz2 alone", 1u,
           (double)xml_bytes / 1e6 / seconds);
    mem_free(packed);
}

/* The dump as XML, as one bzip2 stream and as many. Returns the bytes of XML. */
static uint64_t make_files(const char *const paths[3])
{
    size_t used = 0, room = (size_t)PAGES * 12000, packed_bytes;
    char *xml = mem_alloc(room, 1);
    FILE *many = fopen(paths[2], "w");
    used += (size_t)sprintf(xml, "%s", wiki_dump_head);
    for (uint64_t i = 0; i < PAGES; i++) {
        wiki_dump_page(&page, SEED, i);
        ASSERT(page.xml_bytes + 100 < room - used);
        memcpy(xml + used, page.xml, page.xml_bytes);
        used += page.xml_bytes;
    }
    used += (size_t)sprintf(xml + used, "%s", wiki_dump_tail);
    for (size_t at = 0; at < used; at += STREAM_MAX) {
        char *packed =
            pack(PACK_BZIP2_LARGE, xml + at, MIN(used - at, (size_t)STREAM_MAX), &packed_bytes);
        ASSERT(many != NULL && fwrite(packed, 1, packed_bytes, many) == packed_bytes);
        mem_free(packed);
    }
    fclose(many);
    char *packed = pack(PACK_BZIP2_LARGE, xml, used, &packed_bytes);
    FILE *plain = fopen(paths[0], "w"), *one = fopen(paths[1], "w");
    ASSERT(plain != NULL && fwrite(xml, 1, used, plain) == used && fclose(plain) == 0);
    ASSERT(one != NULL && fwrite(packed, 1, packed_bytes, one) == packed_bytes && fclose(one) == 0);
    mem_free(packed);
    mem_free(xml);
    return used;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--write") == 0) {
        write_dump(strtoull(argv[2], NULL, 10));
        return fflush(stdout) != 0;
    }
    const char *dir = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "build";
    char names[3][FILE_PATH_MAX];
    const char *const endings[] = {"xml", "xml.bz2", "multistream.xml.bz2"};
    for (int i = 0; i < 3; i++)
        snprintf(names[i], sizeof(names[i]), "%s/wiki.%s", dir, endings[i]);
    const char *const paths[] = {names[0], names[1], names[2]};
    uint64_t bytes = make_files(paths);
    check_prose(paths[0]);
    measure_bzip2(paths[1], bytes);
    for (uint32_t threads = 1; threads <= topo_open()->core_count;
         threads = threads < topo_open()->core_count ? topo_open()->core_count : UINT32_MAX) {
        measure(paths[0], "XML to text", bytes, threads);
        measure(paths[1], "XML.bz2 to text", bytes, threads);
        measure(paths[2], "multistream XML.bz2 to text", bytes, threads);
    }
    for (int i = 0; i < 3; i++)
        unlink(paths[i]);
    return 0;
}
