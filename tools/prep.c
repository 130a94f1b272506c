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
#include "io/file.h"
#include "io/pretoken.h"
#include "tools/commands.h"
#include "tools/prep.h"
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

#define TABLE_SHARE 6
/* The tokenizer is learned from at most this share of the budget in text: in prose the tables take
 * about as much as the text. Where words hardly repeat the tables fill up, and it is learned from
 * half as much, and half again; 64 halvings leave nothing of any text. */
#define SAMPLE_SHARE       8
#define HALVINGS_MAX       64
#define SMALL_CORPUS_BYTES (1u << 20)
#define REPEATS_MAX        100.0 /* of an input, by its weight: more is a mistake */

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

/* Whether the document that begins is taken in this round: as often as its input is to be
 * repeated, and once more by chance for what is left of that. Val has every document once. */
static bool is_taken(const struct prep *prep, uint32_t input, uint64_t hash)
{
    if (prep->repeats == NULL)
        return true;
    if (prep->round > 0 && prep->side == SPLIT_VAL)
        return false;
    double left = prep->repeats[input] - prep->round;
    return left >= 1 || (double)hash_bytes(&hash, sizeof(hash), 2) * 0x1p-64 < left;
}

static void place_whole(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    if (piece->first) {
        uint64_t hash = hash_bytes(piece->text, piece->bytes, prep->seed);
        prep->side = split_side_of(&prep->split, hash);
        prep->taken = is_taken(prep, piece->input, hash);
    }
    if (prep->taken)
        add_segment(block, piece->text, piece->bytes, prep->side, piece->last);
}

static void place_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    if (prep->split.tail_start == UINT64_MAX) {
        place_whole(prep, block, piece);
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
}

/* The first pass: every piece is looked at, and a sample of them goes to the trainers. */
static void survey_piece(struct prep *prep, struct block *block, const struct corpus_piece *piece)
{
    uint64_t hash = hash_bytes(piece->text, piece->bytes, prep->seed);
    if (piece->first)
        split_notice(&prep->split, hash);
    prep->split.text_bytes += piece->bytes;
    prep->input_bytes[piece->input] += piece->bytes;
    /* The bits are mixed anew: which documents teach must not hang on which side they are on. */
    if (prep->trainers != NULL && hash_bytes(&hash, sizeof(hash), 1) <= prep->sample_below)
        add_segment(block, piece->text, piece->bytes, SPLIT_TRAIN, piece->last);
}

/* Reads into the blocks until they are full or the text ends; 0 or a negative code. *over: it has
 * ended. A batch also ends after as much text as the blocks would hold if all of it went there. */
static int fill_blocks(struct prep *prep,
                       void (*place)(struct prep *, struct block *, const struct corpus_piece *),
                       bool *over, struct err *err)
{
    uint64_t end = prep->position + (uint64_t)prep->block_count * BLOCK_BYTES;
    prep->blocks_used = 0;
    for (uint32_t i = 0; i < prep->block_count; i++) {
        struct block *block = &prep->blocks[i];
        block->text_bytes = block->segment_count = 0;
        /* Two segments: a piece may be cut in two. */
        while (block->segment_count + 2 <= BLOCK_SEGMENTS_MAX) {
            if (!prep->has_pending) {
                int code = corpus_next(&prep->corpus, &prep->pending, err);
                *over = code == 0;
                if (code <= 0)
                    return code;
                prep->has_pending = true;
            }
            if (prep->position >= end)
                return 0;
            if (prep->pending.bytes > BLOCK_BYTES - block->text_bytes)
                break;
            place(prep, block, &prep->pending);
            prep->position += prep->pending.bytes;
            prep->documents_read += prep->pending.last;
            prep->has_pending = false;
            prep->blocks_used = i + 1;
        }
    }
    return 0;
}

/* Adds the time since *since_ns to a stage, and moves that to now. */
static void note_stage(struct prep *prep, enum prep_stage stage, uint64_t *since_ns)
{
    uint64_t now_ns = clock_ns();
    prep->stage_ns[stage] += now_ns - *since_ns;
    *since_ns = now_ns;
}

/* Reading, less what of it was decompressing and taking text out. */
static void note_reading(struct prep *prep, uint64_t *since_ns)
{
    uint64_t unpack_ns = prep->corpus.unpack_ns, convert_ns = corpus_convert_ns(&prep->corpus);
    uint64_t before = prep->stage_ns[PREP_READ];
    note_stage(prep, PREP_READ, since_ns);
    uint64_t spent = prep->stage_ns[PREP_READ] - before;
    uint64_t unpacked = MIN(unpack_ns - prep->unpack_seen_ns, spent);
    uint64_t converted = MIN(convert_ns - prep->convert_seen_ns, spent - unpacked);
    prep->stage_ns[PREP_READ] -= unpacked + converted;
    prep->stage_ns[PREP_UNPACK] += unpacked;
    prep->stage_ns[PREP_CONVERT] += converted;
    prep->unpack_seen_ns = unpack_ns;
    prep->convert_seen_ns = convert_ns;
}

/* "1203 documents/s, tokenizing binds" */
static void show_progress(struct prep *prep, struct log_progress *progress, double done,
                          const uint64_t before_ns[PREP_STAGES])
{
    char note[128];
    double seconds = (double)(clock_ns() - progress->start_ns) * 1e-9;
    double megabytes = (double)prep->position / 1e6;
    int binds = 0;
    for (int i = 1; i < PREP_STAGES; i++)
        if (prep->stage_ns[i] - before_ns[i] > prep->stage_ns[binds] - before_ns[binds])
            binds = i;
    double rate = (double)prep->documents_read / MAX(seconds, 1e-9);
    int used = rate >= 1 ? snprintf(note, sizeof(note), "%.0f documents/s, ", rate) : 0;
    snprintf(note + used, sizeof(note) - (size_t)used, "%s binds", prep_stage_name(binds));
    /* How much text the rest of the files holds is known only when it was read. */
    progress->total_units = done > 0 ? megabytes / done : 0;
    log_progress_update(progress, megabytes, note);
}

/* Batches of blocks, task on each block by all threads, then finish (or NULL) in order. */
static int run_batches(struct prep *prep, struct log_progress *progress, uint32_t rounds,
                       void (*place)(struct prep *, struct block *, const struct corpus_piece *),
                       void (*task)(void *context, uint32_t block, uint32_t worker),
                       int (*finish)(struct prep *, struct err *), struct err *err)
{
    uint64_t before_ns[PREP_STAGES], since_ns = clock_ns();
    memcpy(before_ns, prep->stage_ns, sizeof(before_ns));
    bool over = false;
    while (!over) {
        int code = fill_blocks(prep, place, &over, err);
        note_reading(prep, &since_ns);
        if (code != 0)
            return code;
        if (task != NULL && prep->blocks_used > 0)
            pool_run(prep->pool, task, prep, prep->blocks_used);
        note_stage(prep, PREP_COMPUTE, &since_ns);
        code = finish != NULL ? finish(prep, err) : 0;
        note_stage(prep, PREP_WRITE, &since_ns);
        if (code != 0)
            return code;
        double done = corpus_done(&prep->corpus);
        show_progress(prep, progress, done < 0 ? 0 : (prep->round + done) / rounds, before_ns);
    }
    return 0;
}

/* One pass over the text, or as many as there are rounds. */
static int run_pass(struct prep *prep, const char *label, uint32_t rounds,
                    void (*place)(struct prep *, struct block *, const struct corpus_piece *),
                    void (*task)(void *context, uint32_t block, uint32_t worker),
                    int (*finish)(struct prep *, struct err *), struct err *err)
{
    struct log_progress progress;
    int code = 0;
    log_progress_start(&progress, label, "MB", 0);
    prep->has_pending = false;
    prep->position = prep->documents_read = 0;
    prep->side = SPLIT_TRAIN;
    for (prep->round = 0; code == 0 && prep->round < rounds; prep->round++) {
        code = corpus_rewind(&prep->corpus, err);
        if (code == 0)
            code = run_batches(prep, &progress, rounds, place, task, finish, err);
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

/* What the corpus takes beyond what is in PREP_FIXED_BYTES: decompressing too, where something is
 * compressed or may be. */
static uint64_t corpus_bytes(const struct prep *prep)
{
    uint64_t unpack = corpus_is_spooled(&prep->corpus) ? prep->threads * UNPACK_THREAD_BYTES : 0;
    uint64_t bytes = corpus_memory_bytes(&prep->corpus) + unpack;
    return bytes - MIN(bytes, (uint64_t)SMALL_CORPUS_BYTES);
}

/* What tables of words may take where it is decided whether they are too big: whatever the number
 * of threads, which take three times as much at most (check_options and check_memory see to it). */
static uint64_t table_bytes_max(const struct prep *prep)
{
    return (prep->ram_budget - PREP_FIXED_BYTES) / 4 / TABLE_SHARE;
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
    const struct corpus *corpus = &prep->corpus;
    const struct records_count *records = corpus_records(corpus);
    if (records != NULL && records->results[RECORD_FIELDLESS] > 0)
        return err_set(err, ERR_INPUT,
                       "no line of %s has a string \"%s\": name the member that is the text with "
                       "--text-field",
                       prep->inputs[0], prep->text_field != NULL ? prep->text_field : "text");
    if (records != NULL && records->results[RECORD_MALFORMED] > 0)
        return err_set(err, ERR_INPUT,
                       "%s holds nothing but what is malformed (%" PRIu64
                       " lines or pages): is --format right?",
                       prep->inputs[0], records->results[RECORD_MALFORMED]);
    const struct corpus_tally *const tallies[] = {&corpus->damaged, &corpus->unreadable};
    for (size_t i = 0; i < ARRAY_COUNT(tallies); i++)
        if (tallies[i]->count > 0)
            return err_set(err, ERR_INPUT, "there is no text in %s that can be read: %s",
                           prep->inputs[0], tallies[i]->example);
    if (corpus->skipped.count > 0)
        return err_set(err, ERR_INPUT,
                       "there is no plain text in %s: what is there is of another kind, such as %s",
                       prep->inputs[0], corpus->skipped.example);
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

static void begin_survey(struct prep *prep)
{
    prep->split = (struct split){0};
    memset(prep->input_bytes, 0, prep->input_count * sizeof(*prep->input_bytes));
}

/* The first pass with the sample at hand. 1: the tables were too small for it. */
static int survey_sample(struct prep *prep, struct err *err)
{
    begin_survey(prep);
    prep->tables_full = false;
    trainers_init(prep);
    int code = run_pass(prep, "counting words", 1, survey_piece, count_words, check_tables, err);
    if (code == 0 && merge_tables(prep) == 0)
        return 0;
    trainers_deinit(prep);
    return prep->tables_full ? 1 : code;
}

static int survey_and_learn(struct prep *prep, struct err *err)
{
    double most = (double)prep->ram_budget / SAMPLE_SHARE;
    uint64_t text_bytes =
        corpus_is_spooled(&prep->corpus) ? prep->split.text_bytes : prep->corpus.total_bytes;
    prep->sample = MIN(most / (double)text_bytes, 1.0);
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

/* Shares of the text as the weights say, of as much text as there is: an input of which more is
 * wanted than it holds is repeated, of one of which less is wanted documents are left out. */
static int decide_repeats(struct prep *prep, struct err *err)
{
    double weights = 0;
    if (prep->weights == NULL)
        return 0;
    if (prep->split.tail_start != UINT64_MAX)
        return err_set(err, ERR_INPUT,
                       "weights choose among documents, and here is only one: --split blank makes "
                       "more of it");
    for (size_t i = 0; i < prep->input_count; i++)
        weights += prep->weights[i];
    prep->repeats = mem_alloc(prep->input_count, sizeof(*prep->repeats));
    for (size_t i = 0; i < prep->input_count; i++) {
        if (prep->input_bytes[i] == 0)
            return err_set(err, ERR_INPUT, "there is no text in %s, which has a weight",
                           prep->inputs[i]);
        prep->repeats[i] = prep->weights[i] / weights * (double)prep->split.text_bytes /
                           (double)prep->input_bytes[i];
        if (prep->repeats[i] > REPEATS_MAX)
            return err_set(err, ERR_INPUT,
                           "by its weight %s would be repeated %.0f times: give it at most %g of "
                           "the sum of the weights",
                           prep->inputs[i], prep->repeats[i],
                           REPEATS_MAX * (double)prep->input_bytes[i] /
                               (double)prep->split.text_bytes);
        log_line("%s: %.2f times its text, to be %.1f %% of all.", prep->inputs[i],
                 prep->repeats[i], 100 * prep->weights[i] / weights);
    }
    return 0;
}

static int check_memory(const struct prep *prep, struct err *err)
{
    uint64_t taken = prep->threads * PREP_THREAD_BYTES + corpus_bytes(prep);
    uint64_t tokenizer =
        prep->bpe != NULL ? bpe_memory_bytes(prep->bpe) : prep->vocab_size * 2 * BPE_ITEM_BYTES;
    uint64_t least = PREP_FIXED_BYTES + taken + MAX(taken / 3, PREP_TABLE_BYTES_MIN) + tokenizer -
                     MIN(tokenizer, PREP_TOKENIZER_BYTES);
    if (prep->ram_budget >= least)
        return 0;
    return err_set(
        err, ERR_INPUT,
        "prep with %" PRIu64 " threads, the list of %" PRIu64
        " files and this tokenizer does not fit into this budget: the smallest that works "
        "is --ram-budget %" PRIu64 "M",
        prep->threads, prep->corpus.tree.file_count, div_up(least, MIB));
}

static int survey(struct prep *prep, struct err *err)
{
    int code = check_memory(prep, err);
    begin_survey(prep);
    if (code == 0 && (corpus_is_spooled(&prep->corpus) || prep->tokenizer_path != NULL))
        code = run_pass(prep, "reading", 1, survey_piece, NULL, NULL, err);
    bool empty = corpus_is_spooled(&prep->corpus) && prep->split.documents == 0;
    if (code == 0 && !empty && prep->tokenizer_path == NULL)
        code = survey_and_learn(prep, err);
    if (code == 0 && prep->split.documents == 0)
        code = no_text(prep, err);
    if (code != 0)
        return code;
    decide_split(prep);
    return decide_repeats(prep, err);
}

static int load_tokenizer(struct prep *prep, struct err *err)
{
    int code = bpe_load(&prep->bpe, prep->tokenizer_path, err);
    if (code == 0 && bpe_end_of_text(prep->bpe) == UINT32_MAX)
        code = err_set(err, ERR_INPUT,
                       "the tokenizer %s has no <|endoftext|> token to part "
                       "documents with: add one to its added_tokens",
                       prep->tokenizer_path);
    return code;
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

/* How often the text is gone through, so that the copies of a document are far apart. */
static uint32_t round_count(const struct prep *prep)
{
    double most = 1;
    for (size_t i = 0; prep->repeats != NULL && i < prep->input_count; i++)
        most = MAX(most, prep->repeats[i]);
    return (uint32_t)ceil(most);
}

static int encode(struct prep *prep, struct err *err)
{
    uint32_t rounds = round_count(prep);
    prep->encoders = mem_alloc(prep->threads, sizeof(struct bpe_encoder *));
    for (uint32_t i = 0; i < prep->threads; i++)
        prep->encoders[i] = bpe_encoder_new(prep->bpe);
    int code = open_writers(prep, err);
    if (code == 0)
        code = run_pass(prep, "tokenizing", rounds, place_piece, encode_block, write_blocks, err);
    if (code == 0 && prep->position != rounds * prep->split.text_bytes)
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
 * Sealing
 * ------------------------------------------------------------------------------------------- */

static int seal(struct prep *prep, uint64_t start_ns, struct err *err)
{
    struct dataset dataset;
    int code = dataset_seal(prep->out, prep->has_val, prep_details(prep), err);
    if (code == 0)
        code = dataset_open(&dataset, prep->out, err);
    if (code != 0)
        return code;
    code = prep_tokens_export(&dataset, prep->shard_format, bpe_end_of_text(prep->bpe), prep->out,
                              err);
    if (code == 0)
        prep_report(prep, &dataset, (double)(clock_ns() - start_ns) * 1e-9);
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

static int open_corpus(struct prep *prep, struct err *err)
{
    const struct corpus_settings settings = {
        .inputs = prep->inputs,
        .input_count = prep->input_count,
        .format = prep->format,
        .split = prep->corpus_split,
        .text_field = prep->text_field,
        .pool = prep->pool,
        .spool_dir = prep->out,
        .ram_budget = prep->ram_budget,
    };
    if (prep->from < FOREIGN_FORMATS)
        return load_tokenizer(prep, err);
    int code = corpus_open(&prep->corpus, &settings, err);
    if (code == 0 && prep->tokenizer_path != NULL)
        code = load_tokenizer(prep, err);
    if (code == 0 && prep->corpus.tree.file_count == 0)
        code = no_text(prep, err);
    return code;
}

static void release(struct prep *prep)
{
    for (int side = 0; side < SPLIT_SIDE_COUNT; side++)
        shard_writer_abort(prep->writers[side]);
    for (uint32_t i = 0; prep->encoders != NULL && i < prep->threads; i++)
        bpe_encoder_free(prep->encoders[i]);
    mem_free(prep->encoders);
    trainers_deinit(prep);
    blocks_deinit(prep);
    bpe_free(prep->bpe);
    corpus_close(&prep->corpus);
    mem_free(prep->input_bytes);
    mem_free(prep->repeats);
    pool_close(prep->pool);
}

static int run(struct prep *prep, struct err *err)
{
    int lock = -1;
    int code = check_out(prep, err);
    if (code != 0)
        return code;
    code = pool_open(&prep->pool, "prep", (uint32_t)prep->threads, true, err);
    if (code == 0)
        code = open_corpus(prep, err);
    if (code == 0)
        code = file_make_dirs(prep->out, err);
    if (code == 0)
        code = file_lock(&lock, prep->out, err);
    if (code == 0) {
        prep->input_bytes = mem_alloc(prep->input_count, sizeof(*prep->input_bytes));
        blocks_init(prep);
        code = prepare(prep, err);
    }
    release(prep);
    file_unlock(lock);
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
    double *weights = mem_alloc((uint64_t)argc + 1, sizeof(*weights));
    int code = prep_parse(&prep, inputs, weights, argc, argv, &err);
    if (code == 0)
        code = run(&prep, &err);
    mem_free(inputs);
    mem_free(weights);
    return commands_status(code, &err);
}
