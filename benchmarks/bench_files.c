/*
 * bench_files: thousands of files of 2 to 8 KB, read cold (where it may drop the page cache, which
 * takes root; else warm, and it says so) in three ways: by a loop of open, read and close; by a
 * bare loop of io_uring (liburing, chains of open, read and close in two batches by turns); and as
 * a corpus with all that it does to them, listing the folders included. The ways take turns;
 * medians, and the corpus' rate beside each of the loops' in the same round. asked: at least 90 %
 * of the bare loop's rate, and 3 times that of the plain one
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/corpus.h"
#include "io/file.h"
#include "tools/bench.h"
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILES        20000
#define PER_FOLDER   500
#define ROUNDS       5
#define BARE_BATCH   128
#define BARE_BYTES   (16u << 10)
#define BARE_WORKERS 64 /* of the kernel: 4 a core without this, which is slower */
#define BARE_READ    2  /* of user_data, beside the half's number */

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

/* ---- A bare loop of io_uring ----------------------------------------------------------------- */

struct bare {
    struct io_uring ring;
    char (*text)[BARE_BYTES]; /* [2 * BARE_BATCH] */
    uint64_t bytes;
    uint32_t waited[2]; /* requests of each half that are not done */
};

/* Chains for the files [first, first + count), into one half of the slots. */
static void bare_submit(struct bare *bare, const struct tree *tree, uint64_t first, uint32_t count)
{
    uint32_t turn = first / BARE_BATCH % 2, half = turn * BARE_BATCH;
    for (uint32_t i = 0; i < count; i++) {
        struct io_uring_sqe *open = io_uring_get_sqe(&bare->ring);
        struct io_uring_sqe *read = io_uring_get_sqe(&bare->ring);
        struct io_uring_sqe *close = io_uring_get_sqe(&bare->ring);
        io_uring_prep_openat_direct(open, AT_FDCWD, tree_path(tree, first + i), O_RDONLY, 0,
                                    half + i);
        io_uring_prep_read(read, (int)(half + i), bare->text[half + i], BARE_BYTES, 0);
        io_uring_prep_close_direct(close, half + i);
        open->flags |= IOSQE_IO_LINK;
        read->flags |= IOSQE_FIXED_FILE | IOSQE_IO_HARDLINK;
        open->user_data = close->user_data = turn;
        read->user_data = turn | BARE_READ;
    }
    bare->waited[turn] = 3 * count;
    if (io_uring_submit(&bare->ring) != (int)(3 * count))
        fatal("io_uring takes no batch");
}

static void bare_wait(struct bare *bare, uint32_t turn)
{
    while (bare->waited[turn]) {
        struct io_uring_cqe *cqe;
        if (io_uring_wait_cqe(&bare->ring, &cqe) != 0 || cqe->res < 0)
            fatal("io_uring cannot read a file");
        bare->bytes += cqe->user_data & BARE_READ ? (uint64_t)cqe->res : 0;
        bare->waited[cqe->user_data & 1]--;
        io_uring_cqe_seen(&bare->ring, cqe);
    }
}

static uint64_t read_by_ring(const struct tree *tree)
{
    struct bare bare = {.text = mem_alloc(2 * BARE_BATCH, sizeof(*bare.text))};
    if (io_uring_queue_init(3 * BARE_BATCH, &bare.ring, 0) != 0 ||
        io_uring_register_files_sparse(&bare.ring, 2 * BARE_BATCH) != 0)
        fatal("there is no io_uring here");
    io_uring_register_iowq_max_workers(&bare.ring, (unsigned int[2]){BARE_WORKERS, 0});
    for (uint64_t i = 0; i < tree->file_count; i += BARE_BATCH) {
        uint32_t turn = i / BARE_BATCH % 2;
        bare_wait(&bare, turn); /* the other half goes on beside it */
        bare_submit(&bare, tree, i, (uint32_t)MIN(BARE_BATCH, tree->file_count - i));
    }
    bare_wait(&bare, 0);
    bare_wait(&bare, 1);
    io_uring_queue_exit(&bare.ring);
    mem_free(bare.text);
    return bare.bytes;
}

static struct bench_samples listing; /* seconds */

static uint64_t read_corpus(const struct tree *tree)
{
    uint64_t start_ns = clock_ns();
    (void)tree;
    struct err err;
    struct corpus corpus;
    struct corpus_piece piece;
    const char *input = root;
    uint64_t bytes = 0;
    const struct corpus_settings settings = {.inputs = &input, .input_count = 1};
    if (corpus_open(&corpus, &settings, &err) != 0)
        fatal("%s", err.message);
    bench_add(&listing, bench_seconds_since(start_ns));
    while (corpus_next(&corpus, &piece, &err) == 1)
        bytes += piece.bytes;
    corpus_close(&corpus);
    return bytes;
}

int main(void)
{
    enum { PLAIN, BARE, CORPUS, WAYS };
    static const struct {
        const char *what;
        uint64_t (*read)(const struct tree *tree);
    } ways[WAYS] = {
        {"open, read, close in a loop", read_plainly},
        {"io_uring alone", read_by_ring},
        {"as a corpus, folders listed too", read_corpus},
    };
    struct err err;
    struct tree tree;
    static struct bench_samples rates[WAYS], to_plain, to_bare;
    bool cold = true;
    const char *dir = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "build", *input = root;
    snprintf(root, sizeof(root), "%s/files-%ld", dir, (long)getpid());
    make_files();
    if (tree_open(&tree, &input, 1, NULL, &err) != 0)
        fatal("%s", err.message);
    for (int round = 0; round < ROUNDS; round++) {
        double rate[WAYS];
        for (size_t i = 0; i < WAYS; i++) {
            cold &= drop_cache();
            uint64_t start_ns = clock_ns();
            ways[i].read(&tree);
            rate[i] = FILES / bench_seconds_since(start_ns);
            bench_add(&rates[i], rate[i]);
        }
        bench_add(&to_plain, rate[CORPUS] / rate[PLAIN]);
        bench_add(&to_bare, rate[CORPUS] / rate[BARE]);
    }
    for (size_t i = 0; i < WAYS; i++)
        printf("%-32s %8.0f files/s%s\n", ways[i].what, bench_median(&rates[i]),
               cold ? "" : "  (warm)");
    printf("listing the folders, which the loops need not %4.0f ms\n",
           bench_median(&listing) * 1e3);
    printf("a corpus beside io_uring alone   %8.2f times (0.90 asked)\n", bench_median(&to_bare));
    printf("a corpus beside the plain loop   %8.2f times (3.00 asked)\n", bench_median(&to_plain));
    tree_close(&tree);
    file_remove_tree(root);
    return 0;
}
