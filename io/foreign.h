/*
 * foreign: the token files of other trainers, read and written.
 *
 *   nanogpt   uint16 tokens and nothing else; documents end with the end-of-text token.
 * DIR/train.bin llmc      llm.c: a header of 256 int32 (20240520, 1, tokens, 0...), uint16 tokens;
 * or 20240801, 7 and uint32 tokens for vocabularies above 65,536. Documents begin with the
 * end-of-text token. DIR/train_000001.bin, train_000002.bin, ... of at most 100 million tokens each
 *   megatron  Megatron-LM: tokens in .bin (uint16 or int32), the lengths, places and documents of
 * its sequences in .idx beside it. A sequence a document, end-of-text last. DIR/train.bin, .idx
 *
 * Reading gives documents without their end-of-text tokens, piece by piece; whichever end of a
 * document a file has them on, and whether it has them at all (Megatron's need not), no longer
 * matters then. Nothing in such files is checksummed: sizes, places and counts that contradict each
 * other are refused with the file, and every token is held against the vocabulary. Called by prep.
 */
#ifndef SPILLWAY_IO_FOREIGN_H
#define SPILLWAY_IO_FOREIGN_H

#include "core/err.h"
#include "io/shard.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum foreign_format { FOREIGN_NANOGPT, FOREIGN_LLMC, FOREIGN_MEGATRON, FOREIGN_FORMATS };

/* By format: "nanogpt", ... */
extern const char *const foreign_names[FOREIGN_FORMATS];
/* FOREIGN_FORMATS where no format has this name. */
enum foreign_format foreign_by_name(const char *name);

/* Most tokens in a piece. */
#define FOREIGN_PIECE_MAX 65536

struct foreign_file {
    const uint8_t *map; /* owned */
    uint64_t map_bytes;
    const uint8_t *tokens; /* into map */
    uint64_t token_count;
    uint32_t token_bytes;
    /* Megatron's index; owned, with its parts, which need not be aligned. */
    const uint8_t *index;
    uint64_t index_bytes;
    const uint8_t *lengths, *places, *documents;
    uint64_t sequence_count, document_count; /* documents has one more entry */
    /* Where reading is. */
    uint64_t position; /* token, or of Megatron the sequence */
    uint64_t document,
        done; /* Megatron: the document at hand; tokens of the sequence that are read */
    uint32_t vocab_size, end_of_text;
    char *path; /* owned */
};

/* path names the file of tokens. On an error *file is zeroed. */
int foreign_open(struct foreign_file *file, enum foreign_format format, const char *path,
                 uint32_t vocab_size, uint32_t end_of_text, struct err *err);
void foreign_close(struct foreign_file *file); /* a zeroed one is legal */

struct foreign_piece {
    uint32_t tokens[FOREIGN_PIECE_MAX];
    size_t count; /* may be 0 where a document ends */
    bool ends_document;
};

/* 1 with the next piece, 0 at the end, or a negative code. The last piece of a file ends a
 * document. */
int foreign_next(struct foreign_file *file, struct foreign_piece *piece, struct err *err);

/* Refuses a vocabulary whose tokens the format cannot hold. */
int foreign_check(enum foreign_format format, uint32_t vocab_size, struct err *err);

/* Writes the shard's documents as dir/stem... Each file is written to a ".tmp" name and renamed.
 * Refuses what the format cannot hold. */
int foreign_write(const struct shard *shard, enum foreign_format format, uint32_t end_of_text,
                  const char *dir, const char *stem, struct err *err);

#endif
