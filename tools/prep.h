/*
 * prep: what the files of the command `prep` share: tools/prep.c (the command and its second pass),
 * prep_survey.c (the first pass), prep_pass.c (how a pass runs), prep_state.c (going on after a
 * kill), prep_options.c (the command line) and prep_report.c (what is told at the end). Nobody else
 * includes this.
 */
#ifndef SPILLWAY_TOOLS_PREP_H
#define SPILLWAY_TOOLS_PREP_H

#include "core/err.h"
#include "io/corpus.h"
#include "io/dataset.h"
#include "io/file.h"
#include "io/foreign.h"
#include "io/pretoken.h"
#include "io/split.h"
#include "tools/prep_tokens.h"
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

/* Text of a block, segments of it at most, and tokens: an end of text for each segment. */
#define PREP_BLOCK_BYTES        (256u << 10)
#define PREP_BLOCK_SEGMENTS_MAX 8192
#define PREP_BLOCK_TOKENS_MAX   (PREP_BLOCK_BYTES + PREP_BLOCK_SEGMENTS_MAX)

/* How far a prep has come; what a mark on the drive can say. */
enum prep_phase {
    PREP_NOTHING,    /* that would be worth going on with */
    PREP_READING,    /* text is being kept apart */
    PREP_LEARNING,   /* all of it is */
    PREP_TOKENIZING, /* the tokenizer is there, tokens are being written */
    PREP_FINISHING,  /* all tokens are */
};

/* A mark: everything that a later process needs beside the files. Zeroed: the beginning. */
struct prep_mark {
    enum prep_phase phase;
    struct corpus_position surveyed; /* the end of the first pass */
    struct corpus_position at;       /* where the pass at hand is, with what follows */
    uint64_t position, documents_read;
    uint32_t round;
    enum split_side side;
    bool taken, has_val;
    struct shard_mark shards[SPLIT_SIDE_COUNT];
    struct prep_tokens_done tokens;
    uint64_t tokenizer_hash;
    const char *examples[CORPUS_LEFTS]; /* borrowed from the state that was read */
};

/* A piece of a document in a block. */
struct segment {
    uint32_t start, bytes; /* in the block's text */
    uint32_t token_count;
    enum split_side side;
    bool ends_document;
};

struct block {
    char *text; /* owned [PREP_BLOCK_BYTES] */
    uint32_t text_bytes;
    struct segment *segments; /* owned [PREP_BLOCK_SEGMENTS_MAX] */
    uint32_t segment_count;
    uint32_t *tokens; /* owned [PREP_BLOCK_TOKENS_MAX]; of all segments in order */
};

struct prep {
    /* Asked for. */
    const char *out, *tokenizer_path;
    uint64_t vocab_size, ram_budget, threads, seed;
    double val_fraction;
    bool force, restart;
    double save_every_s;
    char *command;              /* owned; that would go on with this prep */
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
    struct corpus_position pending_at; /* where it begins */

    struct split split;
    uint64_t position;         /* text bytes of documents before the next piece */
    uint64_t documents_read;   /* in this pass */
    uint64_t documents_before; /* of these, by a process before this one */
    uint64_t *input_bytes; /* owned [input_count]; text of each input, found by the first pass */
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
    struct prep_tokens tokens;
    struct corpus_position surveyed; /* the end of the first pass */

    /* Going on (tools/prep_state.c). */
    char unfinished[FILE_PATH_MAX];
    enum prep_phase phase;
    struct prep_mark mark;    /* of the process before; zeroed where there was none */
    bool goes_on;             /* the next pass begins at mark */
    bool begun;               /* the text is being worked on */
    bool saved;               /* there is a mark on the drive */
    bool learning_saved;      /* with all text kept apart */
    bool learned_saved;       /* and the tokenizer beside it */
    bool cannot_go_on;        /* an input is standard input */
    struct prep_state *state; /* owned */
    uint64_t stage_ns[PREP_STAGES], unpack_seen_ns, convert_seen_ns;
};

/* A pass over the text, or as many as there are rounds: place puts each piece into a block or notes
 * it, task (or NULL) works on a block by any thread, finish (or NULL) follows each batch in order;
 * what it returns other than 0 ends the pass. */
struct prep_pass {
    const char *label;
    uint32_t rounds;
    void (*place)(struct prep *prep, struct block *block, const struct corpus_piece *piece);
    void (*task)(void *prep, uint32_t block, uint32_t worker);
    int (*finish)(struct prep *prep, struct err *err);
};
int prep_pass_run(struct prep *prep, const struct prep_pass *pass, struct err *err);
/* Where it is, between two batches. */
void prep_mark_pass(const struct prep *prep, struct prep_mark *mark);
void prep_blocks_init(struct prep *prep);
void prep_blocks_deinit(struct prep *prep); /* a zeroed prep is legal */
/* The first pass: every piece is looked at, and a sample of them goes to the trainers. The second:
 * each document to its side. */
void prep_survey_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece);
void prep_place_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece);

/* All that has to be known before the second pass: split, repeats, and bpe where it is learned. */
int prep_survey(struct prep *prep, struct err *err);
void prep_trainers_deinit(struct prep *prep);
int prep_no_text(const struct prep *prep, struct err *err); /* says why */

/* "spillway prep ..." as it was typed, without --restart; to be freed with mem_free. */
char *prep_command(int argc, char **argv);
/* 0, 1 after --help, or a negative code. inputs and weights have room for argc words; what they
 * point to is argv's, which is changed. */
int prep_parse(struct prep *prep, const char **inputs, double *weights, int argc, char **argv,
               struct err *err);

/* Where the text came from, for dataset.json. */
struct json_value *prep_details(const struct prep *prep);
/* What was left out, and the table. */
void prep_report(const struct prep *prep, const struct dataset *dataset, double seconds);
/* As --format takes it. */
const char *prep_format_name(const struct prep *prep);
/* "decompressing" */
const char *prep_stage_name(enum prep_stage stage);

#endif
