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
#include "io/dataset.h"
#include "io/foreign.h"
#include "io/shard.h"
#include "io/split.h"

struct prep_tokens {
    const char *const *inputs; /* borrowed */
    size_t input_count;
    enum foreign_format format;
    const struct bpe *bpe;                          /* borrowed */
    struct shard_writer *writers[SPLIT_SIDE_COUNT]; /* borrowed */
    double val_fraction;
    uint64_t seed;

    /* What came of it. */
    uint64_t file_bytes, documents, empty_documents;
    uint64_t text_bytes; /* that the tokens stand for */
};

int prep_tokens_run(struct prep_tokens *prep, struct err *err);

/* What --shard-format asks for: FOREIGN_FORMATS where that is our own format. */
int prep_tokens_choose(enum foreign_format *format, const char *name, struct err *err);
/* Writes both sides in that format into dir; nothing for FOREIGN_FORMATS. */
int prep_tokens_export(const struct dataset *dataset, enum foreign_format format,
                       uint32_t end_of_text, const char *dir, struct err *err);

#endif
