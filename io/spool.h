/*
 * spool: pieces of documents on the drive, written once and read as often as needed.
 *
 * What is costly or impossible to read again (compressed files, dumps, a million small files,
 * standard input) is kept here between the passes of prep, as text. A file with a name can be gone
 * on with by the next process; one without leaves nothing behind. Owned by io/corpus.c; one thread.
 */
#ifndef SPILLWAY_IO_SPOOL_H
#define SPILLWAY_IO_SPOOL_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct spool;

struct spool_piece {
    const char *text; /* borrowed until the next call */
    uint32_t bytes;   /* <= SPOOL_PIECE_MAX */
    uint32_t input;   /* < 2^30 */
    bool first, last; /* of its document */
};
#define SPOOL_PIECE_MAX (1u << 20)

/* In dir, which exists, and empty. name NULL: the file has none. */
int spool_open(struct spool **spool, const char *dir, const char *name, struct err *err);
/* The first so many bytes of what another process has written, to be written on; refuses a file
 * that has fewer. */
int spool_reopen(struct spool **spool, const char *dir, const char *name, uint64_t bytes,
                 struct err *err);
void spool_close(struct spool *spool); /* NULL is legal */

void spool_clear(struct spool *spool); /* nothing is in it, and it is to be written */
int spool_write(struct spool *spool, const struct spool_piece *piece, struct err *err);
/* All that is written reaches the drive. */
int spool_sync(struct spool *spool, struct err *err);
/* After the last write; from now on it is read, from the beginning. Again: from there anew. */
int spool_rewind(struct spool *spool, struct err *err);
/* 1 and the next piece, 0 at the end, or a negative code. */
int spool_read(struct spool *spool, struct spool_piece *piece, struct err *err);

/* Where the next piece to be read lies, and going there again. */
uint64_t spool_position(const struct spool *spool);
void spool_seek(struct spool *spool, uint64_t position);
uint64_t spool_bytes(const struct spool *spool); /* written, or to be read */

#endif
