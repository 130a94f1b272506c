/*
 * fetch: the files of a tree in order, read ahead in batches through io_uring (io/ring.h).
 *
 * For folders of many small files: while one batch is used, the kernel opens and reads the next.
 * What is larger than FETCH_BYTES, and what the user has named, is left to the caller to open.
 * Owned by io/corpus.c, one thread.
 */
#ifndef SPILLWAY_IO_FETCH_H
#define SPILLWAY_IO_FETCH_H

#include "core/err.h"
#include "io/tree.h"
#include <stddef.h>
#include <stdint.h>

#define FETCH_BYTES        (16u << 10)
#define FETCH_MEMORY_BYTES (2 * 256 * (uint64_t)FETCH_BYTES)

struct fetch;

/* tree is borrowed and stays as it is. An error where the kernel has no io_uring for this. */
int fetch_open(struct fetch **fetch, const struct tree *tree, struct err *err);
void fetch_close(struct fetch *fetch); /* NULL is legal */

/* From the file of this number on. */
void fetch_seek(struct fetch *fetch, uint64_t file);

/* File number `file`, not less than that of the call before: its bytes (0: it is empty), borrowed
 * until the next call; or minus an errno value; -EFBIG: the caller opens it. */
int32_t fetch_take(struct fetch *fetch, uint64_t file, const char **text);

#endif
