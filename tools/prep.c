/*
 * prep: text -> a data folder (io/dataset.h).
 *
 * Two passes over the text. The first counts documents, finds what the split into train and val
 * needs to know, and counts words for the tokenizer; the second encodes. Each pass reads batches
 * of blocks, works on them with all cores, and (in the second) writes them in the order of the
 * text, so that the files do not depend on the number of threads. What is done is marked on the
 * drive every so often (tools/prep_state.h), and a prep that was killed goes on from there.
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
#include "tools/prep_state.h"
#include "tools/prep_tokens.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define VOCAB_DEFAULT 32768
#define SAVE_EVERY_S  10.0

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
 * The second pass
 * ------------------------------------------------------------------------------------------- */

static void encode_block(void *context, uint32_t index, uint32_t worker)
{
    struct prep *prep = context;
    struct block *block = &prep->blocks[index];
    uint32_t *tokens = block->tokens;
    for (uint32_t i = 0; i < block->segment_count; i++) {
        struct segment *segment = &block->segments[i];
        size_t room = PREP_BLOCK_TOKENS_MAX - (size_t)(tokens - block->tokens);
        size_t count = bpe_encode(prep->encoders[worker], block->text + segment->start,
                                  segment->bytes, tokens, room);
        if (segment->ends_document)
            tokens[count++] = bpe_end_of_text(prep->bpe);
        segment->token_count = (uint32_t)count;
        tokens += count;
        ASSERT(tokens <= block->tokens + PREP_BLOCK_TOKENS_MAX);
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

static const char *const side_files[SPLIT_SIDE_COUNT] = {DATASET_TRAIN_FILE, DATASET_VAL_FILE};

static int open_writer(struct prep *prep, int side, struct err *err)
{
    char path[FILE_PATH_MAX];
    uint32_t vocab_size = bpe_vocab_size(prep->bpe);
    uint64_t hash = bpe_hash(prep->bpe);
    int code = file_join(path, prep->out, side_files[side], err);
    if (code != 0)
        return code;
    return prep->phase == PREP_TOKENIZING
               ? shard_writer_reopen(&prep->writers[side], path, vocab_size, hash,
                                     &prep->mark.shards[side], err)
               : shard_writer_open(&prep->writers[side], path, vocab_size, hash, err);
}

/* From now on there is something to go on with that is not the text. */
static int open_writers(struct prep *prep, struct err *err)
{
    int code = 0;
    for (int side = 0; code == 0 && side < SPLIT_SIDE_COUNT; side++)
        code = open_writer(prep, side, err);
    if (code == 0)
        prep->phase = PREP_TOKENIZING;
    return code;
}

/* Both files become whole, still under the names of unfinished ones: which of them are there is
 * decided at once by the mark that follows. */
static int finish_writers(struct prep *prep, struct err *err)
{
    int code = 0;
    prep->has_val = shard_writer_token_count(prep->writers[SPLIT_VAL]) > 0;
    for (int side = 0; code == 0 && side < SPLIT_SIDE_COUNT; side++) {
        struct shard_writer *writer = prep->writers[side];
        prep->writers[side] = NULL;
        if (side == SPLIT_VAL && !prep->has_val)
            shard_writer_leave(writer); /* until the mark says that all is written */
        else
            code = shard_writer_finish(writer, err);
    }
    prep->phase = PREP_FINISHING;
    return code == 0 ? prep_state_save(prep, err) : code;
}

/* Everything but dataset.json, in the order that check_out relies on. May be done again. */
static int publish(struct prep *prep, struct err *err)
{
    char path[FILE_PATH_MAX];
    int code = 0;
    for (int side = 0; code == 0 && side < SPLIT_SIDE_COUNT; side++) {
        code = file_join(path, prep->out, side_files[side], err);
        if (code == 0 && (side == SPLIT_TRAIN || prep->has_val))
            code = shard_publish(path, err);
        else if (code == 0 && unlink(path) != 0 && errno != ENOENT)
            code = err_set_errno(err, errno, "cannot remove %s", path);
    }
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
    const struct prep_pass pass = {"tokenizing", round_count(prep), prep_place_piece, encode_block,
                                   write_blocks};
    prep->encoders = mem_alloc(prep->threads, sizeof(struct bpe_encoder *));
    for (uint32_t i = 0; i < prep->threads; i++)
        prep->encoders[i] = bpe_encoder_new(prep->bpe);
    int code = open_writers(prep, err);
    if (code == 0)
        code = prep_pass_run(prep, &pass, err);
    if (code == 0 && prep->position != pass.rounds * prep->split.text_bytes) {
        prep_state_discard(prep);
        code = err_set(err, ERR_INPUT, "the text changed while it was read: run prep again");
    }
    return code;
}

static int pause_tokens(void *context, struct err *err)
{
    return prep_pause(context, err);
}

/* In the place of both passes where the input is tokens. */
static int take_tokens(struct prep *prep, struct err *err)
{
    struct prep_tokens *tokens = &prep->tokens;
    *tokens = (struct prep_tokens){
        .inputs = prep->inputs,
        .input_count = prep->input_count,
        .format = prep->from,
        .bpe = prep->bpe,
        .val_fraction = prep->val_fraction,
        .seed = prep->seed,
        .done = prep->mark.tokens,
        .pause = pause_tokens,
        .pause_context = prep,
    };
    int code = open_writers(prep, err);
    memcpy(tokens->writers, prep->writers, sizeof(tokens->writers));
    return code == 0 ? prep_tokens_run(tokens, err) : code;
}

/* ---------------------------------------------------------------------------------------------
 * Sealing
 * ------------------------------------------------------------------------------------------- */

/* Copies for other trainers come first: what is sealed is all there. */
static int export_tokens(struct prep *prep, struct err *err)
{
    uint32_t end_of_text = bpe_end_of_text(prep->bpe);
    int code =
        prep_tokens_export(prep->out, DATASET_TRAIN_FILE, prep->shard_format, end_of_text, err);
    return code == 0 && prep->has_val ? prep_tokens_export(prep->out, DATASET_VAL_FILE,
                                                           prep->shard_format, end_of_text, err)
                                      : code;
}

static int seal(struct prep *prep, uint64_t start_ns, struct err *err)
{
    struct dataset dataset;
    if (prep->from < FOREIGN_FORMATS) {
        prep->corpus.file_count = prep->input_count;
        prep->corpus.total_bytes = prep->tokens.done.file_bytes;
        prep->split.documents = prep->tokens.done.documents;
        prep->split.text_bytes = prep->tokens.done.text_bytes;
    }
    int code = export_tokens(prep, err);
    if (code == 0)
        code = dataset_seal(prep->out, prep->has_val, prep_details(prep), err);
    if (code == 0)
        code = dataset_open(&dataset, prep->out, err);
    if (code != 0)
        return code;
    prep_state_discard(prep);
    prep_report(prep, &dataset, (double)(clock_ns() - start_ns) * 1e-9);
    dataset_close(&dataset);
    return 0;
}

/* ---------------------------------------------------------------------------------------------
 * The command
 * ------------------------------------------------------------------------------------------- */

/* Up to whole files of tokens. */
static int make_tokens(struct prep *prep, struct err *err)
{
    bool from_text = prep->from == FOREIGN_FORMATS;
    int code = from_text ? prep_survey(prep, err) : 0;
    if (code == 0 && prep->shard_format < FOREIGN_FORMATS)
        code = foreign_check(prep->shard_format, bpe_vocab_size(prep->bpe), err);
    if (code == 0)
        code = dataset_unseal(prep->out, err);
    if (code == 0)
        code = from_text ? encode(prep, err) : take_tokens(prep, err);
    return code == 0 ? finish_writers(prep, err) : code;
}

/* Nothing but the last steps is left to be done. */
static int take_over(struct prep *prep, struct err *err)
{
    prep->has_val = prep->mark.has_val;
    prep->tokens.done = prep->mark.tokens;
    return prep->from == FOREIGN_FORMATS
               ? corpus_resume(&prep->corpus, &prep->mark.surveyed, prep->mark.examples, true, err)
               : 0;
}

static int prepare(struct prep *prep, struct err *err)
{
    uint64_t start_ns = clock_ns();
    int code = prep->phase == PREP_FINISHING ? take_over(prep, err) : make_tokens(prep, err);
    if (code == 0)
        code = publish(prep, err);
    return code == 0 ? seal(prep, start_ns, err) : code;
}

/* Goes on where a prep with the same arguments was ended, if there is one. */
static int begin(struct prep *prep, struct err *err)
{
    int code = prep->restart ? check_out(prep, err) : 0;
    if (code == 0)
        code = prep_state_open(prep, err);
    if (code == 0 && prep->phase < PREP_FINISHING)
        code = check_out(prep, err);
    if (code == 0 && prep->phase >= PREP_TOKENIZING)
        code = prep_state_tokenizer(prep, err);
    prep->begun = code == 0;
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
    return code;
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
        .leave_out = prep->out,
        .spool_dir = prep->unfinished,
        .spool_name = prep_state_spool(prep),
        .ram_budget = prep->ram_budget,
    };
    if (prep->from < FOREIGN_FORMATS)
        return load_tokenizer(prep, err);
    int code = corpus_open(&prep->corpus, &settings, err);
    if (code == 0 && prep->tokenizer_path != NULL)
        code = load_tokenizer(prep, err);
    if (code == 0 && prep->corpus.tree.file_count == 0)
        code = prep_no_text(prep, err);
    return code;
}

static void release(struct prep *prep)
{
    for (int side = 0; side < SPLIT_SIDE_COUNT; side++)
        if (prep->saved)
            shard_writer_leave(prep->writers[side]);
        else
            shard_writer_abort(prep->writers[side]);
    for (uint32_t i = 0; prep->encoders != NULL && i < prep->threads; i++)
        bpe_encoder_free(prep->encoders[i]);
    mem_free(prep->encoders);
    prep_trainers_deinit(prep);
    prep_blocks_deinit(prep);
    bpe_free(prep->bpe);
    corpus_close(&prep->corpus);
    mem_free(prep->input_bytes);
    mem_free(prep->repeats);
    pool_close(prep->pool);
}

static int run(struct prep *prep, struct err *err)
{
    int lock = -1;
    int code = file_join(prep->unfinished, prep->out, DATASET_UNFINISHED, err);
    if (code == 0 && !file_exists(prep->unfinished))
        code = check_out(prep, err);
    if (code == 0)
        code = pool_open(&prep->pool, "prep", (uint32_t)prep->threads, true, err);
    if (code == 0)
        code = open_corpus(prep, err);
    if (code == 0)
        code = file_make_dirs(prep->out, err);
    if (code == 0)
        code = file_lock(&lock, prep->out, err);
    if (code == 0) {
        prep->input_bytes = mem_alloc(prep->input_count, sizeof(*prep->input_bytes));
        prep_blocks_init(prep);
        code = begin(prep, err);
        if (code == 0)
            code = prepare(prep, err);
        if (prep->state != NULL)
            prep_state_close(prep, code == 0);
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
        .save_every_s = SAVE_EVERY_S,
    };
    const char **inputs = mem_alloc((uint64_t)argc + 1, sizeof(*inputs));
    double *weights = mem_alloc((uint64_t)argc + 1, sizeof(*weights));
    prep.command = prep_command(argc, argv); /* before weights are cut off the inputs */
    int code = prep_parse(&prep, inputs, weights, argc, argv, &err);
    if (code == 0)
        code = run(&prep, &err);
    mem_free(prep.command);
    mem_free(inputs);
    mem_free(weights);
    return commands_status(code, &err);
}
