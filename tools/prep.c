/*
 * prep: text -> a data folder (io/dataset.h).
 *
 * Two passes over the text. The first counts documents, finds what the split into train and val
 * needs to know, and counts words for the tokenizer; the second encodes. Each pass reads batches
 * of blocks, works on them with all cores, and (in the second) writes them in the order of the
 * text, so that the files do not depend on the number of threads.
 *
 * Which side a document is on: io/split.h. A text that is cut in two is cut before white space.
 */
#include "core/args.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "io/bpe.h"
#include "io/corpus.h"
#include "io/dataset.h"
#include "io/file.h"
#include "io/pretoken.h"
#include "io/split.h"
#include "tools/commands.h"
#include "tools/prep_tokens.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BLOCK_BYTES        (256u << 10)
#define BLOCK_SEGMENTS_MAX 8192
#define BLOCK_TOKENS_MAX   (BLOCK_BYTES + BLOCK_SEGMENTS_MAX) /* an end of text for each segment */
#define BLOCKS_PER_THREAD  4
#define VOCAB_DEFAULT      32768

/* What --ram-budget has to hold, measured: the program, its libraries and a tokenizer; and for each
 * thread its blocks (in the worst text every byte is a token) and its word cache. The rest is for
 * the tables of words, of which learning takes up to five times as much. */
#define FIXED_BYTES     (32 * MIB)
#define THREAD_BYTES    (12 * MIB)
#define TABLE_BYTES_MIN (32 * MIB)
/* Of a tokenizer in FIXED_BYTES: GPT-2's has some 100,000 tokens and merges. */
#define TOKENIZER_BYTES (18 * MIB)
#define TABLE_SHARE     6
/* The tokenizer is learned from at most this share of the budget in text: in prose the tables take
 * about as much as the text. Where words hardly repeat the tables fill up, and it is learned from
 * half as much, and half again; 64 halvings leave nothing of any text. */
#define SAMPLE_SHARE 8
#define HALVINGS_MAX 64

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

    struct corpus corpus;
    struct pool *pool;
    struct block *blocks;
    uint32_t block_count, blocks_used;
    struct corpus_piece pending; /* read, and without room in the last batch */
    bool has_pending;

    struct split split;
    uint64_t position;     /* text bytes of documents before the next piece */
    enum split_side side;  /* of the document at hand */
    double sample;         /* share of the text that teaches the tokenizer */
    uint64_t sample_below; /* a piece whose hash is at most this belongs to it */
    bool tables_full;

    struct bpe *bpe;
    struct bpe_trainer **trainers; /* one for each thread; NULL where none is needed */
    struct bpe_encoder **encoders;
    struct shard_writer *writers[SPLIT_SIDE_COUNT];
    bool has_val;
};

/* ---------------------------------------------------------------------------------------------
 * The command line
 * ------------------------------------------------------------------------------------------- */

static int choose_format(struct prep *prep, const char *name, struct err *err)
{
    prep->from = foreign_by_name(name);
    if (prep->from < FOREIGN_FORMATS)
        return 0;
    if (strcmp(name, "auto") == 0)
        prep->format = CORPUS_FORMAT_AUTO;
    else if (strcmp(name, "text") == 0)
        prep->format = CORPUS_FORMAT_TEXT;
    else if (strcmp(name, "jsonl") == 0 || strcmp(name, "wiki") == 0 || strcmp(name, "files") == 0)
        return err_set(err, ERR_INPUT,
                       "--format %s cannot be read yet: turn it into plain text "
                       "and use --format text",
                       name);
    else
        return err_set(err, ERR_USAGE, "--format takes auto or text, not \"%s\"", name);
    return 0;
}

static int choose_pattern(struct prep *prep, const char *name, struct err *err)
{
    prep->pattern = pretoken_by_name(name);
    return prep->pattern < PRETOKEN_KINDS
               ? 0
               : err_set(err, ERR_USAGE,
                         "--pattern takes gpt2, cl100k, llama3 or o200k, not \"%s\"", name);
}

static int choose_split(struct prep *prep, const char *name, struct err *err)
{
    if (strcmp(name, "file") == 0)
        prep->corpus_split = CORPUS_SPLIT_FILE;
    else if (strcmp(name, "blank") == 0)
        prep->corpus_split = CORPUS_SPLIT_BLANK;
    else
        return err_set(err, ERR_USAGE, "--split takes file or blank, not \"%s\"", name);
    return 0;
}

/* Whether all of it fits, with a tokenizer that takes this much. */
static int check_budget(const struct prep *prep, uint64_t tokenizer_bytes, struct err *err)
{
    uint64_t threads_bytes = prep->threads * THREAD_BYTES;
    uint64_t least = FIXED_BYTES + threads_bytes + MAX(threads_bytes / 3, TABLE_BYTES_MIN) +
                     tokenizer_bytes - MIN(tokenizer_bytes, TOKENIZER_BYTES);
    if (prep->ram_budget >= least)
        return 0;
    return err_set(err, ERR_INPUT,
                   "prep with %" PRIu64 " threads and this tokenizer does not fit into this "
                   "budget: the smallest that works is --ram-budget %" PRIu64 "M",
                   prep->threads, div_up(least, MIB));
}

static int check_options(const struct prep *prep, bool vocab_given, struct err *err)
{
    if (prep->input_count == 0)
        return err_set(err, ERR_USAGE, "prep needs at least one file or folder of text");
    if (prep->out == NULL)
        return err_set(err, ERR_USAGE, "prep needs --out DIR, the folder for the tokens");
    if (prep->from < FOREIGN_FORMATS && prep->tokenizer_path == NULL)
        return err_set(err, ERR_USAGE,
                       "tokens that are there already need their --tokenizer, which says what they "
                       "stand for");
    if (vocab_given && prep->tokenizer_path != NULL)
        return err_set(err, ERR_USAGE,
                       "--vocab-size and --pattern are for a tokenizer to train, and --tokenizer "
                       "brings one: give one of them");
    if (prep->vocab_size < BPE_TRAIN_VOCAB_MIN || prep->vocab_size > BPE_TRAIN_VOCAB_MAX)
        return err_set(err, ERR_USAGE, "--vocab-size takes %d to %d, not %" PRIu64,
                       BPE_TRAIN_VOCAB_MIN, BPE_TRAIN_VOCAB_MAX, prep->vocab_size);
    if (prep->val_fraction > 0.5)
        return err_set(err, ERR_USAGE, "--val-fraction takes 0 to 0.5, not %g", prep->val_fraction);
    if (prep->threads < 1 || prep->threads > POOL_THREADS_MAX)
        return err_set(err, ERR_USAGE, "--threads takes 1 to %d, not %" PRIu64, POOL_THREADS_MAX,
                       prep->threads);
    /* A tokenizer that is learned has a merge for nearly every token. */
    return check_budget(
        prep, prep->tokenizer_path == NULL ? prep->vocab_size * 2 * BPE_ITEM_BYTES : 0, err);
}

/* 0, 1 after --help, or a negative code. */
static int parse_options(struct prep *prep, const char **inputs, int argc, char **argv,
                         struct err *err)
{
    const char *format = "auto", *split = "file", *pattern = "gpt2", *shard_format = "spillway";
    bool vocab_given = false, pattern_given = false;
    const struct args_option options[] = {
        {"out", ARGS_STRING, &prep->out, "DIR", "folder for the tokens, made if it is missing",
         NULL},
        {"vocab-size", ARGS_U64, &prep->vocab_size, "N",
         "train a tokenizer of N tokens (default 32768)", &vocab_given},
        {"pattern", ARGS_STRING, &pattern, "NAME",
         "cut text for it as gpt2 does (default), or cl100k, llama3, o200k", &pattern_given},
        {"tokenizer", ARGS_STRING, &prep->tokenizer_path, "PATH",
         "take this one: tokenizer.json, a folder with vocab.json and merges.txt, or a .tiktoken "
         "file",
         NULL},
        {"format", ARGS_STRING, &format, "NAME",
         "auto: refuse what is no plain text (default); text: take files as they are; nanogpt, "
         "llmc, megatron: tokens (.bin) of these trainers",
         NULL},
        {"shard-format", ARGS_STRING, &shard_format, "NAME",
         "also write tokens as nanogpt, llmc or megatron has them", NULL},
        {"split", ARGS_STRING, &split, "NAME",
         "file: a file is a document (default); blank: blank lines part documents", NULL},
        {"val-fraction", ARGS_DOUBLE, &prep->val_fraction, "X",
         "share of the documents kept for validation (default 0.01)", NULL},
        {"seed", ARGS_U64, &prep->seed, "S", "chooses those documents (default 0)", NULL},
        {"ram-budget", ARGS_SIZE, &prep->ram_budget, "SIZE",
         "memory that prep may use (default 2G)", NULL},
        {"threads", ARGS_U64, &prep->threads, "N", "default: one for each core", NULL},
        {"force", ARGS_FLAG, &prep->force, NULL, "replace what is prepared in DIR already", NULL},
    };
    struct args_command command = {
        .name = "prep",
        .summary = "Makes tokens of text: trains or takes a tokenizer, writes train and val.",
        .usage = "INPUT... --out DIR [--vocab-size N | --tokenizer PATH] [options]",
        .example = "spillway prep novels/ notes.txt --out data --vocab-size 16384",
        .options = options,
        .option_count = ARRAY_COUNT(options),
        .positional = inputs,
        .positional_max = (size_t)argc,
    };
    int code = args_parse(&command, argc, argv, err);
    if (code != 0)
        return code;
    prep->inputs = inputs;
    prep->input_count = command.positional_count;
    code = choose_format(prep, format, err);
    if (code == 0)
        code = choose_split(prep, split, err);
    if (code == 0)
        code = choose_pattern(prep, pattern, err);
    if (code == 0)
        code = prep_tokens_choose(&prep->shard_format, shard_format, err);
    return code == 0 ? check_options(prep, vocab_given || pattern_given, err) : code;
}

/* ---------------------------------------------------------------------------------------------
 * The output folder
 * ------------------------------------------------------------------------------------------- */

static bool out_has(const struct prep *prep, const char *name)
{
    char path[FILE_PATH_MAX];
    struct err ignored;
    return file_join(path, prep->out, name, &ignored) == 0 && file_exists(path);
}

/* Refuses what this prep must not overwrite. A train.tok without dataset.json is left over from a
 * prep that was killed, and a tokenizer.json alone is somebody's tokenizer. */
static int check_out(const struct prep *prep, struct err *err)
{
    if (prep->force)
        return 0;
    if (out_has(prep, DATASET_FILE))
        return err_set(err, ERR_INPUT,
                       "%s holds prepared data already: name another folder, or "
                       "replace it with --force",
                       prep->out);
    if (out_has(prep, DATASET_TOKENIZER_FILE) && !out_has(prep, DATASET_TRAIN_FILE))
        return err_set(err, ERR_INPUT,
                       "%s holds a tokenizer.json that prep would replace: name "
                       "another folder, or say so with --force",
                       prep->out);
    return 0;
}

/* ---------------------------------------------------------------------------------------------
 * Blocks
 * ------------------------------------------------------------------------------------------- */

static void blocks_init(struct prep *prep)
{
    prep->block_count = (uint32_t)prep->threads * BLOCKS_PER_THREAD;
    prep->blocks = mem_alloc(prep->block_count, sizeof(*prep->blocks));
    for (uint32_t i = 0; i < prep->block_count; i++) {
        struct block *block = &prep->blocks[i];
        block->text = mem_alloc(BLOCK_BYTES, 1);
        block->segments = mem_alloc(BLOCK_SEGMENTS_MAX, sizeof(*block->segments));
        block->tokens = mem_alloc(BLOCK_TOKENS_MAX, sizeof(*block->tokens));
    }
}

static void blocks_deinit(struct prep *prep)
{
    for (uint32_t i = 0; prep->blocks != NULL && i < prep->block_count; i++) {
        mem_free(prep->blocks[i].text);
        mem_free(prep->blocks[i].segments);
        mem_free(prep->blocks[i].tokens);
    }
    mem_free(prep->blocks);
}

static void add_segment(struct block *block, const char *text, size_t bytes, enum split_side side,
                        bool ends_document)
{
    ASSERT(block->segment_count < BLOCK_SEGMENTS_MAX && bytes <= BLOCK_BYTES - block->text_bytes);
    memcpy(block->text + block->text_bytes, text, bytes);
    block->segments[block->segment_count++] =
        (struct segment){block->text_bytes, (uint32_t)bytes, 0, side, ends_document};
    block->text_bytes += (uint32_t)bytes;
}

/* Where in the piece val begins, when the text is cut in two: before white space at or before
 * tail_start, or else at the end of the piece. */
static size_t train_bytes(const struct prep *prep, const struct corpus_piece *piece)
{
    uint64_t tail_start = prep->split.tail_start;
    if (prep->position + piece->bytes <= tail_start)
        return piece->bytes;
    size_t cut = pretoken_cut(piece->text, (size_t)(tail_start - prep->position) + 1);
    return cut > 0 ? cut : piece->bytes;
}

static void place_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    if (prep->split.tail_start == UINT64_MAX) {
        if (piece->first)
            prep->side =
                split_side_of(&prep->split, hash_bytes(piece->text, piece->bytes, prep->seed));
        add_segment(block, piece->text, piece->bytes, prep->side, piece->last);
    } else if (prep->side == SPLIT_VAL) {
        add_segment(block, piece->text, piece->bytes, SPLIT_VAL, piece->last);
    } else {
        size_t bytes = train_bytes(prep, piece);
        /* The document in train ends where val begins, whatever comes after. */
        bool cut = bytes < piece->bytes || prep->position + bytes > prep->split.tail_start;
        add_segment(block, piece->text, bytes, SPLIT_TRAIN, piece->last || cut);
        if (cut)
            prep->side = SPLIT_VAL;
        if (bytes < piece->bytes)
            add_segment(block, piece->text + bytes, piece->bytes - bytes, SPLIT_VAL, piece->last);
    }
    prep->position += piece->bytes;
}

/* The first pass: every piece is looked at, and a sample of them goes to the trainers. */
static void survey_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    uint64_t hash = hash_bytes(piece->text, piece->bytes, prep->seed);
    if (piece->first)
        split_notice(&prep->split, hash);
    prep->split.text_bytes += piece->bytes;
    /* The bits are mixed anew: which documents teach must not hang on which side they are on. */
    if (prep->trainers != NULL && hash_bytes(&hash, sizeof(hash), 1) <= prep->sample_below)
        add_segment(block, piece->text, piece->bytes, SPLIT_TRAIN, piece->last);
}

/* Reads into the blocks until they are full or the text ends; 0 or a negative code. A batch of no
 * blocks is the end. */
static int fill_blocks(struct prep *prep,
                       void (*place)(struct prep *, struct block *, const struct corpus_piece *),
                       struct err *err)
{
    prep->blocks_used = 0;
    for (uint32_t i = 0; i < prep->block_count; i++) {
        struct block *block = &prep->blocks[i];
        block->text_bytes = block->segment_count = 0;
        /* Two segments: a piece may be cut in two. */
        while (block->segment_count + 2 <= BLOCK_SEGMENTS_MAX) {
            if (!prep->has_pending) {
                int code = corpus_next(&prep->corpus, &prep->pending, err);
                if (code < 0)
                    return code;
                if (code == 0)
                    return 0;
                prep->has_pending = true;
            }
            if (prep->pending.bytes > BLOCK_BYTES - block->text_bytes)
                break;
            place(prep, block, &prep->pending);
            prep->has_pending = false;
            prep->blocks_used = i + 1;
        }
    }
    return 0;
}

/* One pass: batches of blocks, task on each block by all threads, then finish (or NULL) in order.
 */
static int run_pass(struct prep *prep, const char *label,
                    void (*place)(struct prep *, struct block *, const struct corpus_piece *),
                    void (*task)(void *context, uint32_t block, uint32_t worker),
                    int (*finish)(struct prep *, struct err *), struct err *err)
{
    struct log_progress progress;
    log_progress_start(&progress, label, "MB", (double)prep->corpus.total_bytes / 1e6);
    corpus_rewind(&prep->corpus);
    prep->has_pending = false;
    prep->position = 0;
    prep->side = SPLIT_TRAIN;
    int code = 0;
    for (;;) {
        code = fill_blocks(prep, place, err);
        if (code != 0 || prep->blocks_used == 0)
            break;
        if (task != NULL)
            pool_run(prep->pool, task, prep, prep->blocks_used);
        code = finish != NULL ? finish(prep, err) : 0;
        if (code != 0)
            break;
        log_progress_update(&progress, (double)prep->corpus.done_bytes / 1e6, NULL);
    }
    log_progress_end(&progress);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * The first pass
 * ------------------------------------------------------------------------------------------- */

static void count_words(void *context, uint32_t index, uint32_t worker)
{
    struct prep *prep = context;
    const struct block *block = &prep->blocks[index];
    for (uint32_t i = 0; i < block->segment_count; i++)
        bpe_trainer_add(prep->trainers[worker], block->text + block->segments[i].start,
                        block->segments[i].bytes);
}

/* What tables of words may take, whatever the number of threads (check_options sees to it that
 * these fit beside). */
static uint64_t table_bytes_max(const struct prep *prep)
{
    return (prep->ram_budget - FIXED_BYTES) / 4 / TABLE_SHARE;
}

/* Puts the tables of all threads into one. Whether that is too big depends on the text alone: it
 * only grows, and what it takes at least does not depend on how it came together. */
static int merge_tables(struct prep *prep)
{
    for (uint32_t i = 1; i < prep->threads; i++) {
        bpe_trainer_merge(prep->trainers[0], prep->trainers[i]);
        bpe_trainer_free(prep->trainers[i]);
        prep->trainers[i] = bpe_trainer_new(prep->pattern);
    }
    prep->tables_full = bpe_trainer_least_bytes(prep->trainers[0]) > table_bytes_max(prep) / 2;
    return prep->tables_full;
}

/* After each batch of the first pass; 1 ends the pass. */
static int check_tables(struct prep *prep, struct err *err)
{
    (void)err;
    uint64_t bytes = 0;
    for (uint32_t i = 0; prep->trainers != NULL && i < prep->threads; i++)
        bytes += bpe_trainer_bytes(prep->trainers[i]);
    return bytes > table_bytes_max(prep) ? merge_tables(prep) : 0;
}

static void trainers_init(struct prep *prep)
{
    prep->trainers = mem_alloc(prep->threads, sizeof(struct bpe_trainer *));
    for (uint32_t i = 0; i < prep->threads; i++)
        prep->trainers[i] = bpe_trainer_new(prep->pattern);
    prep->sample_below = prep->sample < 1 ? (uint64_t)(prep->sample * 0x1p64) : UINT64_MAX;
}

static void trainers_deinit(struct prep *prep)
{
    for (uint32_t i = 0; prep->trainers != NULL && i < prep->threads; i++)
        bpe_trainer_free(prep->trainers[i]);
    mem_free(prep->trainers);
    prep->trainers = NULL;
}

static int learn_tokenizer(struct prep *prep, struct err *err)
{
    log_line("Learning a vocabulary of %" PRIu64 " tokens from the text.", prep->vocab_size);
    int code = bpe_train(&prep->bpe, prep->trainers[0], (uint32_t)prep->vocab_size, err);
    trainers_deinit(prep);
    if (code == 0 && bpe_vocab_size(prep->bpe) < prep->vocab_size)
        log_warn("the text gives a vocabulary of %u only, not of %" PRIu64,
                 bpe_vocab_size(prep->bpe), prep->vocab_size);
    return code;
}

static int no_text(const struct prep *prep, struct err *err)
{
    if (prep->corpus.skipped_count > 0)
        return err_set(err, ERR_INPUT,
                       "there is no plain text in %s: what is there is of another kind, such as %s",
                       prep->inputs[0], prep->corpus.skipped_example);
    return err_set(err, ERR_INPUT, "there is no text in %s%s: give files or folders that hold some",
                   prep->inputs[0], prep->input_count > 1 ? " and the others" : "");
}

static void decide_split(struct prep *prep)
{
    const struct split *split = &prep->split;
    split_decide(&prep->split, prep->val_fraction);
    if (split->tail_start == UINT64_MAX)
        return;
    log_line("%s, so val is cut off its end%s.",
             split->documents == 1 ? "The text is one document" : "All documents begin alike",
             split->documents == 1 && prep->corpus_split == CORPUS_SPLIT_FILE
                 ? " (--split blank would take paragraphs as documents)"
                 : "");
}

/* The first pass with the sample at hand. 1: the tables were too small for it. */
static int survey_sample(struct prep *prep, struct err *err)
{
    prep->split = (struct split){0};
    prep->tables_full = false;
    trainers_init(prep);
    int code = run_pass(prep, "counting words", survey_piece, count_words, check_tables, err);
    if (code == 0 && merge_tables(prep) == 0)
        return 0;
    trainers_deinit(prep);
    return prep->tables_full ? 1 : code;
}

static int survey_and_learn(struct prep *prep, struct err *err)
{
    double most = (double)prep->ram_budget / SAMPLE_SHARE;
    prep->sample = MIN(most / (double)prep->corpus.total_bytes, 1.0);
    int code = 1;
    for (int i = 0; code == 1 && i < HALVINGS_MAX; i++) {
        code = survey_sample(prep, err);
        if (code == 1)
            prep->sample /= 2;
    }
    ASSERT(code <= 0);
    if (code == 0 && prep->sample < 1)
        log_line("The tokenizer is learned from %.2g %% of the text: the words of more would not "
                 "fit into --ram-budget.",
                 100 * prep->sample);
    return code == 0 ? learn_tokenizer(prep, err) : code;
}

static int survey(struct prep *prep, struct err *err)
{
    int code = prep->tokenizer_path == NULL
                   ? survey_and_learn(prep, err)
                   : run_pass(prep, "reading", survey_piece, NULL, NULL, err);
    if (code == 0 && prep->split.documents == 0)
        code = no_text(prep, err);
    if (code == 0)
        decide_split(prep);
    return code;
}

static int load_tokenizer(struct prep *prep, struct err *err)
{
    int code = bpe_load(&prep->bpe, prep->tokenizer_path, err);
    if (code == 0 && bpe_end_of_text(prep->bpe) == UINT32_MAX)
        code = err_set(err, ERR_INPUT,
                       "the tokenizer %s has no <|endoftext|> token to part "
                       "documents with: add one to its added_tokens",
                       prep->tokenizer_path);
    return code == 0 ? check_budget(prep, bpe_memory_bytes(prep->bpe), err) : code;
}

/* ---------------------------------------------------------------------------------------------
 * The second pass
 * ------------------------------------------------------------------------------------------- */

static void encode_block(void *context, uint32_t index, uint32_t worker)
{
    struct prep *prep = context;
    struct block *block = &prep->blocks[index];
    uint32_t *tokens = block->tokens;
    for (uint32_t i = 0; i < block->segment_count; i++) {
        struct segment *segment = &block->segments[i];
        size_t room = BLOCK_TOKENS_MAX - (size_t)(tokens - block->tokens);
        size_t count = bpe_encode(prep->encoders[worker], block->text + segment->start,
                                  segment->bytes, tokens, room);
        if (segment->ends_document)
            tokens[count++] = bpe_end_of_text(prep->bpe);
        segment->token_count = (uint32_t)count;
        tokens += count;
        ASSERT(tokens <= block->tokens + BLOCK_TOKENS_MAX);
    }
}

static int write_blocks(struct prep *prep, struct err *err)
{
    int code = 0;
    for (uint32_t b = 0; b < prep->blocks_used; b++) {
        const struct block *block = &prep->blocks[b];
        const uint32_t *tokens = block->tokens;
        for (uint32_t i = 0; code == 0 && i < block->segment_count; i++) {
            const struct segment *segment = &block->segments[i];
            struct shard_writer *writer = prep->writers[segment->side];
            code = shard_writer_append(writer, tokens, segment->token_count, err);
            if (code == 0 && segment->ends_document)
                shard_writer_end_document(writer);
            tokens += segment->token_count;
        }
    }
    return code;
}

static int open_writers(struct prep *prep, struct err *err)
{
    static const char *const names[SPLIT_SIDE_COUNT] = {DATASET_TRAIN_FILE, DATASET_VAL_FILE};
    int code = 0;
    for (int side = 0; code == 0 && side < SPLIT_SIDE_COUNT; side++) {
        char path[FILE_PATH_MAX];
        code = file_join(path, prep->out, names[side], err);
        if (code == 0)
            code = shard_writer_open(&prep->writers[side], path, bpe_vocab_size(prep->bpe),
                                     bpe_hash(prep->bpe), err);
    }
    return code;
}

/* Everything but dataset.json, in the order that check_out relies on. */
static int close_writers(struct prep *prep, struct err *err)
{
    char val_path[FILE_PATH_MAX];
    struct shard_writer *train = prep->writers[SPLIT_TRAIN], *val = prep->writers[SPLIT_VAL];
    prep->has_val = shard_writer_token_count(val) > 0;
    prep->writers[SPLIT_TRAIN] = NULL;
    int code = shard_writer_close(train, err);
    if (code == 0 && prep->has_val) {
        prep->writers[SPLIT_VAL] = NULL;
        code = shard_writer_close(val, err);
    }
    if (code == 0)
        code = file_join(val_path, prep->out, DATASET_VAL_FILE, err);
    if (code == 0 && !prep->has_val && unlink(val_path) != 0 && errno != ENOENT)
        code = err_set_errno(err, errno, "cannot remove %s", val_path);
    return code == 0 ? bpe_save(prep->bpe, prep->out, err) : code;
}

static int encode(struct prep *prep, struct err *err)
{
    uint64_t surveyed_bytes = prep->split.text_bytes;
    prep->encoders = mem_alloc(prep->threads, sizeof(struct bpe_encoder *));
    for (uint32_t i = 0; i < prep->threads; i++)
        prep->encoders[i] = bpe_encoder_new(prep->bpe);
    int code = open_writers(prep, err);
    if (code == 0)
        code = run_pass(prep, "tokenizing", place_piece, encode_block, write_blocks, err);
    if (code == 0 && prep->position != surveyed_bytes)
        code = err_set(err, ERR_INPUT, "the text changed while it was read: run prep again");
    return code;
}

/* In the place of both passes where the input is tokens. */
static int take_tokens(struct prep *prep, struct err *err)
{
    struct prep_tokens tokens = {
        .inputs = prep->inputs,
        .input_count = prep->input_count,
        .format = prep->from,
        .bpe = prep->bpe,
        .val_fraction = prep->val_fraction,
        .seed = prep->seed,
    };
    int code = open_writers(prep, err);
    memcpy(tokens.writers, prep->writers, sizeof(tokens.writers));
    if (code == 0)
        code = prep_tokens_run(&tokens, err);
    prep->corpus.file_count = prep->input_count;
    prep->corpus.total_bytes = tokens.file_bytes;
    prep->split.documents = tokens.documents;
    prep->split.text_bytes = tokens.text_bytes;
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * Sealing and telling
 * ------------------------------------------------------------------------------------------- */

static struct json_value *details(const struct prep *prep)
{
    struct json_value *inputs = json_new_array();
    for (size_t i = 0; i < prep->input_count; i++)
        json_append(inputs, json_new_string(prep->inputs[i], strlen(prep->inputs[i])));
    struct json_value *value = json_new_object();
    json_set_string(value, "program", "spillway " SPILLWAY_VERSION);
    json_set(value, "inputs", inputs);
    json_set_int(value, "files", (int64_t)prep->corpus.file_count);
    json_set_int(value, "file_bytes", (int64_t)prep->corpus.total_bytes);
    json_set_int(value, "text_bytes", (int64_t)prep->split.text_bytes);
    json_set_string(value, "format",
                    prep->from < FOREIGN_FORMATS ? foreign_names[prep->from] : "text");
    json_set_string(value, "split", prep->corpus_split == CORPUS_SPLIT_BLANK ? "blank" : "file");
    json_set_string(value, "tokenizer",
                    prep->tokenizer_path != NULL ? prep->tokenizer_path : "trained on this text");
    json_set_number(value, "val_fraction", prep->val_fraction);
    json_set_int(value, "seed", (int64_t)prep->seed);
    return value;
}

/* 19110483 -> "19,110,483". */
#define GROUPED_MAX 32
static const char *grouped(char text[GROUPED_MAX], uint64_t value)
{
    char digits[GROUPED_MAX];
    int length = snprintf(digits, sizeof(digits), "%" PRIu64, value), used = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0)
            text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = '\0';
    return text;
}

static void print_count(const char *label, uint64_t value, const char *note)
{
    char text[GROUPED_MAX];
    printf("  %-18s %15s%s\n", label, grouped(text, value), note);
}

static void print_skipped(const struct prep *prep)
{
    if (prep->corpus.empty_count > 0)
        log_warn("%" PRIu64 " empty file%s left out", prep->corpus.empty_count,
                 prep->corpus.empty_count == 1 ? " was" : "s were");
    if (prep->corpus.skipped_count > 0)
        log_warn("%" PRIu64 " file%s no plain text and left out, such as %s",
                 prep->corpus.skipped_count, prep->corpus.skipped_count == 1 ? " is" : "s are",
                 prep->corpus.skipped_example);
}

static void print_table(const struct prep *prep, const struct dataset *dataset, double seconds)
{
    char text[LOG_BYTES_MAX], note[64];
    uint64_t train = dataset->train.token_count, val = dataset->val.token_count;
    uint64_t ends = dataset->train.document_count + dataset->val.document_count;
    printf("\n");
    print_count("files", prep->corpus.file_count, "");
    print_count("documents", prep->split.documents, "");
    snprintf(note, sizeof(note), "  (%s)", log_bytes(text, prep->split.text_bytes));
    print_count("bytes of text", prep->split.text_bytes, note);
    print_count("tokens, train", train, "");
    snprintf(note, sizeof(note), "  (%.2f %%)", 100.0 * (double)val / (double)(train + val));
    print_count("tokens, val", val, note);
    /* The end-of-text tokens stand for no text. */
    printf("  %-18s %15.3f\n", "bytes per token",
           (double)prep->split.text_bytes / (double)MAX(train + val - ends, (uint64_t)1));
    print_count("vocabulary", dataset->vocab, "");
    printf("  %-18s %15s\n", "time", log_duration(text, seconds));
    printf("  %-18s %s\n", "written to", prep->out);
}

static void warn_of_val(const struct prep *prep, const struct dataset *dataset)
{
    double share = (double)dataset->val.token_count /
                   (double)(dataset->train.token_count + dataset->val.token_count);
    if (prep->val_fraction > 0 && !dataset->has_val)
        log_warn("the text is too short to keep some for validation");
    else if (share > 0.05 && share > 3 * prep->val_fraction)
        log_warn("val has %.0f %% of the tokens, because documents are kept whole%s", 100 * share,
                 prep->corpus_split == CORPUS_SPLIT_FILE
                     ? ": --split blank makes smaller ones of the same files"
                     : "");
}

static int seal(struct prep *prep, uint64_t start_ns, struct err *err)
{
    struct dataset dataset;
    int code = dataset_seal(prep->out, prep->has_val, details(prep), err);
    if (code == 0)
        code = dataset_open(&dataset, prep->out, err);
    if (code != 0)
        return code;
    code = prep_tokens_export(&dataset, prep->shard_format, bpe_end_of_text(prep->bpe), prep->out,
                              err);
    if (code == 0) {
        print_skipped(prep);
        warn_of_val(prep, &dataset);
        print_table(prep, &dataset, (double)(clock_ns() - start_ns) * 1e-9);
    }
    dataset_close(&dataset);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * The command
 * ------------------------------------------------------------------------------------------- */

static int prepare(struct prep *prep, struct err *err)
{
    uint64_t start_ns = clock_ns();
    bool from_text = prep->from == FOREIGN_FORMATS;
    int code = from_text ? survey(prep, err) : 0;
    if (code == 0 && prep->shard_format < FOREIGN_FORMATS)
        code = foreign_check(prep->shard_format, bpe_vocab_size(prep->bpe), err);
    if (code == 0)
        code = dataset_unseal(prep->out, err);
    if (code == 0)
        code = from_text ? encode(prep, err) : take_tokens(prep, err);
    if (code == 0)
        code = close_writers(prep, err);
    return code == 0 ? seal(prep, start_ns, err) : code;
}

static int run(struct prep *prep, struct err *err)
{
    int lock = -1;
    int code = check_out(prep, err);
    if (code != 0)
        return code;
    bool from_text = prep->from == FOREIGN_FORMATS;
    if (from_text)
        code = corpus_open(&prep->corpus, prep->inputs, prep->input_count, prep->format,
                           prep->corpus_split, err);
    if (code == 0 && prep->tokenizer_path != NULL)
        code = load_tokenizer(prep, err);
    if (code == 0 && from_text && prep->corpus.file_count == 0)
        code = no_text(prep, err);
    if (code == 0)
        code = file_make_dirs(prep->out, err);
    if (code == 0)
        code = file_lock(&lock, prep->out, err);
    if (code == 0)
        code = pool_open(&prep->pool, "prep", (uint32_t)prep->threads, true, err);
    if (code == 0) {
        blocks_init(prep);
        code = prepare(prep, err);
    }
    for (int side = 0; side < SPLIT_SIDE_COUNT; side++)
        shard_writer_abort(prep->writers[side]);
    for (uint32_t i = 0; prep->encoders != NULL && i < prep->threads; i++)
        bpe_encoder_free(prep->encoders[i]);
    mem_free(prep->encoders);
    trainers_deinit(prep);
    blocks_deinit(prep);
    pool_close(prep->pool);
    file_unlock(lock);
    bpe_free(prep->bpe);
    if (from_text)
        corpus_close(&prep->corpus);
    return code;
}

int prep_main(int argc, char **argv)
{
    struct err err;
    struct prep prep = {
        .vocab_size = VOCAB_DEFAULT,
        .ram_budget = 2 * GIB,
        .val_fraction = 0.01,
        .threads = topo_open()->core_count,
    };
    const char **inputs = mem_alloc((uint64_t)argc + 1, sizeof(*inputs));
    int code = parse_options(&prep, inputs, argc, argv, &err);
    if (code == 0)
        code = run(&prep, &err);
    mem_free(inputs);
    return commands_status(code, &err);
}
