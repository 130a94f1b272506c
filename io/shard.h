/*
 * shard: token files. A data folder holds train.tok, val.tok, tokenizer.json and dataset.json.
 *
 * File: a 4096-byte header (magic "SPILLTOK", version, bytes per token 2 or 4, token_count,
 * document_count, vocab_size, tokenizer hash, checksum of header and of contents), the tokens
 * (little endian, uint16 when the vocabulary allows, else uint32) padded with zeros to a multiple
 * of 8 bytes, then the document index (uint64 start of each document, in tokens). Each document
 * ends with the end-of-text token. The contents checksum is XXH3 over blocks of SHARD_BLOCK_BYTES,
 * each seeded with the one before, so that it is computed while the file streams.
 *
 * shard_open maps the file read-only and refuses a truncated or foreign file; shard_verify reads
 * all of it against the checksum. A writer writes to a ".tmp" name and renames at the end, so a
 * file of the right name is always a whole one. Its memory is bounded: the document index waits in
 * a file beside it (".tmp.index"). A writer whose process died goes on from its last mark. Written
 * by prep, read by train, eval and check.
 */
#ifndef SPILLWAY_IO_SHARD_H
#define SPILLWAY_IO_SHARD_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHARD_HEADER_BYTES 4096
#define SHARD_BLOCK_BYTES  (1u << 20)

struct shard {
    const void *map; /* owned */
    int fd;          /* owned; for advice about the page cache */
    uint64_t map_bytes;
    uint32_t token_bytes; /* 2 or 4 */
    uint32_t vocab_size;
    uint64_t token_count;
    uint64_t document_count;
    uint64_t tokenizer_hash;
    uint64_t contents_checksum; /* as the header says: tells one text from another */
    const void *tokens;         /* into map */
    const uint64_t *documents;  /* into map */
    char *path;                 /* owned; for messages */
};

/* On an error *shard is zeroed. */
int shard_open(struct shard *shard, const char *path, struct err *err);
void shard_close(struct shard *shard); /* a zeroed one is legal */
/* Reads everything: checksum, every token below vocab_size, document index ascending from 0. */
int shard_verify(const struct shard *shard, const char *path, struct err *err);

/* All of it will be read in order (the kernel reads ahead), or, as after shard_open, here and
 * there. */
void shard_expect_all(const struct shard *shard, bool all);

/* tokens[0..count) = tokens at start; start + count <= token_count. Gives the touched pages of the
 * map back to the kernel afterwards, so that a large dataset does not count against the RAM
 * budget. A token >= vocab_size is fatal (corruption). Any thread. */
void shard_read(const struct shard *shard, uint64_t start, uint32_t *tokens, size_t count);

/* Asks the kernel for these tokens without waiting for them, so that a shard_read some time later
 * does not wait either. Allocates nothing. Any thread. */
void shard_fetch(const struct shard *shard, uint64_t start, uint64_t count);
/* Lets the kernel drop these tokens from the page cache: they will not be read again for long. */
void shard_forget(const struct shard *shard, uint64_t start, uint64_t count);

struct shard_writer;
int shard_writer_open(struct shard_writer **writer, const char *path, uint32_t vocab_size,
                      uint64_t tokenizer_hash, struct err *err);
/* More tokens of the current document, each < vocab_size; the first call begins a document. */
int shard_writer_append(struct shard_writer *writer, const uint32_t *tokens, size_t count,
                        struct err *err);
/* Ends the current document; the end-of-text token is the caller's to append before. */
void shard_writer_end_document(struct shard_writer *writer);
/* One whole document, its end-of-text token included by the caller; count > 0. */
int shard_writer_add(struct shard_writer *writer, const uint32_t *tokens, size_t count,
                     struct err *err);
uint64_t shard_writer_token_count(const struct shard_writer *writer);
uint64_t shard_writer_document_count(const struct shard_writer *writer);
/* Finishes, fsyncs and renames; frees the writer whatever it returns. */
int shard_writer_close(struct shard_writer *writer, struct err *err);
void shard_writer_abort(struct shard_writer *writer); /* removes the .tmp; NULL is legal */

/* What has been appended; in a mark it is on the drive. */
struct shard_mark {
    uint64_t token_count, document_count;
    uint64_t checksum; /* of the blocks that are full */
    bool in_document;
};
int shard_writer_mark(struct shard_writer *writer, struct shard_mark *mark, struct err *err);
/* Goes on from a mark of the same file, whatever was written behind it. */
int shard_writer_reopen(struct shard_writer **writer, const char *path, uint32_t vocab_size,
                        uint64_t tokenizer_hash, const struct shard_mark *mark, struct err *err);
void shard_writer_leave(struct shard_writer *writer); /* for a later reopen; NULL is legal */
/* The two halves of a close: a file that is whole under its ".tmp" name, and its renaming, which
 * may be done again. */
int shard_writer_finish(struct shard_writer *writer, struct err *err);
int shard_publish(const char *path, struct err *err);

#endif
