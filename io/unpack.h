/*
 * unpack: the bytes of a file or pipe, decompressed where its content says that they are
 * compressed.
 *
 * gzip, bzip2 and zstd are told by their first bytes, whatever the name; several streams in one
 * file follow each other (gzip members, multistream bzip2, zstd frames). bzip2 is decompressed with
 * all threads of the pool, in files of one stream as well; the others by the caller. Bytes after
 * the end of the last stream that begin no other one are left out, as the tools of each kind do.
 *
 * Memory is bounded whatever is in the file: buffers of fixed size, and for zstd a window of at
 * most window_bytes_max. A stream that ends too early or is damaged is an error that names the file
 * and the place, after the bytes before it were given out (ERR_CORRUPT).
 *
 * One unpack reads one file after the other: what it allocates for a kind of compression stays.
 * Called by io/corpus.c, from the one thread that also runs the pool.
 */
#ifndef SPILLWAY_IO_UNPACK_H
#define SPILLWAY_IO_UNPACK_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct pool;
struct unpack;

struct unpack_settings {
    struct pool *pool;         /* borrowed; NULL: the caller alone */
    uint64_t window_bytes_max; /* of zstd; 0: what the zstd program takes, 128 MiB */
};

/* Memory for each thread of the pool that bzip2 takes, and for zstd without its window. */
#define UNPACK_THREAD_BYTES (12u << 20)

struct unpack *unpack_new(const struct unpack_settings *settings); /* never NULL */
void unpack_free(struct unpack *unpack);                           /* NULL is legal */

/* Begins a file: its first head_bytes are at head (borrowed until the next begin), the rest comes
 * from fd (borrowed; -1: there is no rest). name is for messages, borrowed. raw: nothing is
 * decompressed. */
struct unpack_file {
    const char *name;
    int fd;
    const char *head;
    size_t head_bytes;
    bool raw;
};
int unpack_begin(struct unpack *unpack, const struct unpack_file *file, struct err *err);

/* Up to `bytes` > 0 bytes; 0 at the end and a negative code are final until the next begin. */
ssize_t unpack_read(struct unpack *unpack, void *buffer, size_t bytes, struct err *err);

/* Bytes of the file that were used so far, for telling how far one is. */
uint64_t unpack_used_bytes(const struct unpack *unpack);
/* "gzip", "bzip2", "zstd", or NULL for a file that is not compressed. */
const char *unpack_kind(const struct unpack *unpack);

#endif
