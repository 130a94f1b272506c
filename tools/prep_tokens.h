/*
 * prep_tokens: what prep does with other trainers' tokens (io/foreign.h): takes them in the place
 * of text, and writes them beside ours. Called by prep, which owns the writers.
 *
 * A file whose name has "val" in it is validation data, and then all others are for training; where
 * none has, documents go to val by the hash of their first tokens. Documents without a token are
 * left out.
 */
#ifndef SPILLWAY_TOOLS_PREP_TOKENS_H
#define SPILLWAY_TOOLS_PREP_TOKENS_H

#include "core/err.h"
#include "io/bpe.h"
#include "io/foreign.h"
#include "io/shard.h"
#include "io/split.h"
#include <stdbool.h>
#include <stdint.h>

/* What came of it; the run goes on from here, zero being the beginning. */
struct prep_tokens_done {
    uint64_t input, pieces; /* taken of that input */
    bool in_document;
    enum split_side side; /* of the document at hand */
    uint64_t file_bytes;  /* of the inputs before */
    uint64_t documents, empty_documents;
    uint64_t text_bytes; /* that the tokens stand for */
};

struct prep_tokens {
    const char *const *inputs; /* borrowed */
    size_t input_count;
    enum foreign_format format;
    const struct bpe *bpe;                          /* borrowed */
    struct shard_writer *writers[SPLIT_SIDE_COUNT]; /* borrowed */
    double val_fraction;
    uint64_t seed;
    /* Called between pieces, when done says where it is; what is not 0 ends the run. NULL: none. */
    int (*pause)(void *context, struct err *err);
    void *pause_context;
    struct prep_tokens_done done;
};

int prep_tokens_run(struct prep_tokens *prep, struct err *err);

/* What --shard-format asks for: FOREIGN_FORMATS where that is our own format. */
int prep_tokens_choose(enum foreign_format *format, const char *name, struct err *err);
/* Writes one of the token files of dir in that format beside it; nothing for FOREIGN_FORMATS. */
int prep_tokens_export(const char *dir, const char *file, enum foreign_format format,
                       uint32_t end_of_text, struct err *err);

#endif
