/*
 * prep: what the files of the command `prep` share: tools/prep.c (the passes over the text),
 * tools/prep_options.c (the command line) and tools/prep_report.c (what is told at the end). Nobody
 * else includes this.
 */
#ifndef SPILLWAY_TOOLS_PREP_H
#define SPILLWAY_TOOLS_PREP_H

#include "core/err.h"
#include "io/corpus.h"
#include "io/dataset.h"
#include "io/foreign.h"
#include "io/pretoken.h"
#include "io/split.h"
#include <stdbool.h>
#include <stdint.h>

/* What --ram-budget has to hold, measured: the program, its libraries and a tokenizer; and for each
 * thread its blocks (in the worst text every byte is a token) and its word cache. The rest is for
 * the tables of words, of which learning takes up to five times as much. */
#define PREP_FIXED_BYTES     (32 * MIB)
#define PREP_THREAD_BYTES    (12 * MIB)
#define PREP_TABLE_BYTES_MIN (32 * MIB)
/* Of a tokenizer in PREP_FIXED_BYTES: GPT-2's has some 100,000 tokens and merges. */
#define PREP_TOKENIZER_BYTES (18 * MIB)

/* Where the time of a pass goes. */
enum prep_stage { PREP_READ, PREP_UNPACK, PREP_CONVERT, PREP_COMPUTE, PREP_WRITE, PREP_STAGES };

/* A piece of a document in a block. */
struct segment {
    uint32_t start, bytes; /* in the block's text */
    uint32_t token_count;
    enum split_side side;
    bool ends_document;
};

struct block {
    char *text; /* owned [BLOCK_BYTES] */
    uint32_t text_bytes;
    struct segment *segments; /* owned [BLOCK_SEGMENTS_MAX] */
    uint32_t segment_count;
    uint32_t *tokens; /* owned [BLOCK_TOKENS_MAX]; of all segments in order */
};

struct prep {
    /* Asked for. */
    const char *out, *tokenizer_path;
    uint64_t vocab_size, ram_budget, threads, seed;
    double val_fraction;
    bool force;
    enum pretoken_kind pattern; /* of the tokenizer to train */
    enum corpus_split corpus_split;
    enum corpus_format format;
    enum foreign_format from;         /* the inputs are tokens; FOREIGN_FORMATS: they are text */
    enum foreign_format shard_format; /* written beside ours; FOREIGN_FORMATS: none */
    const char *const *inputs;
    size_t input_count;

    const double *weights; /* [input_count]; NULL: none were given */
    const char *text_field;

    struct corpus corpus;
    struct pool *pool;
    struct block *blocks;
    uint32_t block_count, blocks_used;
    struct corpus_piece pending; /* read, and without room in the last batch */
    bool has_pending;

    struct split split;
    uint64_t position;       /* text bytes of documents before the next piece */
    uint64_t documents_read; /* in this pass */
    uint64_t *input_bytes;   /* owned [input_count]; text of each input, found by the first pass */
    double *repeats;       /* owned [input_count]; how often its documents are taken; NULL: once */
    uint32_t round;        /* of the second pass: the documents that are taken again */
    bool taken;            /* the document at hand is */
    enum split_side side;  /* of the document at hand */
    double sample;         /* share of the text that teaches the tokenizer */
    uint64_t sample_below; /* a piece whose hash is at most this belongs to it */
    bool tables_full;

    struct bpe *bpe;
    struct bpe_trainer **trainers; /* one for each thread; NULL where none is needed */
    struct bpe_encoder **encoders;
    struct shard_writer *writers[SPLIT_SIDE_COUNT];
    bool has_val;
    uint64_t stage_ns[PREP_STAGES], unpack_seen_ns, convert_seen_ns;
};

/* 0, 1 after --help, or a negative code. inputs and weights have room for argc words; what they
 * point to is argv's, which is changed. */
int prep_parse(struct prep *prep, const char **inputs, double *weights, int argc, char **argv,
               struct err *err);

/* Where the text came from, for dataset.json. */
struct json_value *prep_details(const struct prep *prep);
/* What was left out, and the table. */
void prep_report(const struct prep *prep, const struct dataset *dataset, double seconds);
/* "decompressing" */
const char *prep_stage_name(enum prep_stage stage);

#endif
