/*
 * bench_files: thousands of files of 2 to 8 KB, read cold (where it may drop the page cache, which
 * takes root; else warm, and it says so) in three ways: by a loop of open, read and close; by
 * io_uring alone (io/ring.h, batches of which one is read while the other is waited for); and as a
 * corpus with all that it does to them. Each way is measured twice, in turn.
 */
#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/corpus.h"
#include "io/fetch.h"
#include "io/file.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILES      20000
#define PER_FOLDER 500
#define ROUNDS     2

static char root[FILE_PATH_MAX - 64];

static void make_files(void)
{
    static char text[8192];
    struct err err;
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = "some words of text "[i % 19];
    for (uint64_t i = 0; i < FILES; i++) {
        char path[FILE_PATH_MAX];
        snprintf(path, sizeof(path), "%s/%03u", root, (unsigned)(i / PER_FOLDER));
        if (i % PER_FOLDER == 0 && file_make_dirs(path, &err) != 0)
            fatal("%s", err.message);
        snprintf(path, sizeof(path), "%s/%03u/%05u", root, (unsigned)(i / PER_FOLDER), (unsigned)i);
        int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        size_t bytes = 2000 + rng_below(1, 0, i, 6000);
        if (fd < 0 || write(fd, text, bytes) != (ssize_t)bytes)
            fatal("cannot write %s", path);
        close(fd);
    }
    sync();
}

static bool drop_cache(void)
{
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    bool dropped = fd >= 0 && write(fd, "3", 1) == 1;
    if (fd >= 0)
        close(fd);
    return dropped;
}

static uint64_t read_plainly(const struct tree *tree)
{
    static char buffer[1 << 16];
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < tree->file_count; i++) {
        int fd = open(tree_path(tree, i), O_RDONLY | O_CLOEXEC);
        for (ssize_t got; fd >= 0 && (got = read(fd, buffer, sizeof(buffer))) > 0;)
            bytes += (uint64_t)got;
        if (fd >= 0)
            close(fd);
    }
    return bytes;
}

static uint64_t read_by_ring(const struct tree *tree)
{
    struct err err;
    struct fetch *fetch;
    uint64_t bytes = 0;
    if (fetch_open(&fetch, tree, &err) != 0)
        fatal("%s", err.message);
    fetch_seek(fetch, 0);
    for (uint64_t i = 0; i < tree->file_count; i++) {
        const char *text;
        int32_t got = fetch_take(fetch, i, &text);
        ASSERT(got > 0);
        bytes += (uint64_t)got;
    }
    fetch_close(fetch);
    return bytes;
}

static uint64_t read_corpus(const struct tree *tree)
{
    (void)tree;
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    const char *input = root;
    uint64_t bytes = 0;
    const struct corpus_settings settings = {.inputs = &input, .input_count = 1};
    if (corpus_open(&corpus, &settings, &err) != 0)
        fatal("%s", err.message);
    while (corpus_next(&corpus, &piece, &err) == 1)
        bytes += piece.bytes;
    corpus_close(&corpus);
    return bytes;
}

int main(void)
{
    static const struct {
        const char *what;
        uint64_t (*read)(const struct tree *tree);
    } ways[] = {
        {"open, read, close in a loop", read_plainly},
        {"io_uring alone", read_by_ring},
        {"as a corpus, folders listed too", read_corpus},
    };
    struct err err;
    struct tree tree;
    const char *dir = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "build", *input = root;
    snprintf(root, sizeof(root), "%s/files-%ld", dir, (long)getpid());
    make_files();
    if (tree_open(&tree, &input, 1, &err) != 0)
        fatal("%s", err.message);
    for (int round = 0; round < ROUNDS; round++)
        for (size_t i = 0; i < ARRAY_COUNT(ways); i++) {
            bool cold = drop_cache();
            uint64_t start_ns = clock_ns(), bytes = ways[i].read(&tree);
            double seconds = (double)(clock_ns() - start_ns) * 1e-9;
            printf("%-32s %8.0f files/s, %6.1f MB/s%s\n", ways[i].what, FILES / seconds,
                   (double)bytes / 1e6 / seconds, cold ? "" : "  (warm)");
        }
    tree_close(&tree);
    file_remove_tree(root);
    return 0;
}
