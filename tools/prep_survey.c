/*
 * The first pass of prep: what the split into train and val has to know, the shares of weighted
 * inputs, and the tokenizer, learned from as much of the text as its budget holds.
 */
#include "core/base.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/pool.h"
#include "io/bpe.h"
#include "tools/prep.h"
#include "tools/prep_state.h"
#include <inttypes.h>
#include <string.h>

#define TABLE_SHARE 6
/* The tokenizer is learned from at most this share of the budget in text: in prose the tables take
 * about as much as the text. Where words hardly repeat the tables fill up, and it is learned from
 * half as much, and half again; 64 halvings leave nothing of any text. */
#define SAMPLE_SHARE       8
#define HALVINGS_MAX       64
#define SMALL_CORPUS_BYTES (1u << 20)
#define REPEATS_MAX        100.0 /* of an input, by its weight: more is a mistake */

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

void prep_trainers_deinit(struct prep *prep)
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
    prep_trainers_deinit(prep);
    if (code == 0 && bpe_vocab_size(prep->bpe) < prep->vocab_size)
        log_warn("the text gives a vocabulary of %u only, not of %" PRIu64,
                 bpe_vocab_size(prep->bpe), prep->vocab_size);
    return code;
}

int prep_no_text(const struct prep *prep, struct err *err)
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
    const struct corpus_tally *const tallies[] = {&corpus->left[CORPUS_DAMAGED],
                                                  &corpus->left[CORPUS_UNREADABLE]};
    for (size_t i = 0; i < ARRAY_COUNT(tallies); i++)
        if (tallies[i]->count > 0)
            return err_set(err, ERR_INPUT, "there is no text in %s that can be read: %s",
                           prep->inputs[0], tallies[i]->example);
    if (corpus->left[CORPUS_SKIPPED].count > 0)
        return err_set(err, ERR_INPUT,
                       "there is no plain text in %s: what is there is of another kind, such as %s",
                       prep->inputs[0], corpus->left[CORPUS_SKIPPED].example);
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
    const struct prep_pass pass = {"counting words", 1, prep_survey_piece, count_words,
                                   check_tables};
    int code = prep_pass_run(prep, &pass, err);
    if (code == 0 && merge_tables(prep) == 0)
        return 0;
    prep_trainers_deinit(prep);
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

/* The pass that keeps apart what is costly to read again; or it was made before. */
static int read_first(struct prep *prep, struct err *err)
{
    const struct prep_pass pass = {"reading", 1, prep_survey_piece, NULL, NULL};
    bool spooled = corpus_is_spooled(&prep->corpus);
    if (prep->phase >= PREP_LEARNING) {
        prep->surveyed = prep->mark.surveyed;
        return corpus_resume(&prep->corpus, &prep->surveyed, prep->mark.examples, true, err);
    }
    if (!prep->goes_on)
        begin_survey(prep);
    if (!spooled && prep->tokenizer_path == NULL)
        return 0;
    prep->phase = spooled ? PREP_READING : PREP_NOTHING;
    int code = prep_pass_run(prep, &pass, err);
    if (code == 0 && spooled) {
        prep->phase = PREP_LEARNING;
        code = prep_pause(prep, err);
    }
    return code;
}

int prep_survey(struct prep *prep, struct err *err)
{
    bool learns = prep->tokenizer_path == NULL && prep->phase < PREP_TOKENIZING;
    int code = check_memory(prep, err);
    if (code == 0)
        code = read_first(prep, err);
    bool empty = corpus_is_spooled(&prep->corpus) && prep->split.documents == 0;
    if (code == 0 && !empty && learns)
        code = survey_and_learn(prep, err);
    if (code == 0 && prep->split.documents == 0)
        code = prep_no_text(prep, err);
    if (code != 0)
        return code;
    decide_split(prep);
    return decide_repeats(prep, err);
}
