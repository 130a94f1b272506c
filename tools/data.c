/*
 * spillway data: what is in prepared data: counts, lengths of documents, samples, and whether text
 * comes back exactly from its tokens.
 *
 * The whole of both token files is read for the counts. Some documents are turned into text and
 * into tokens again by the slow way (pieces by PCRE2, no cache of words), so that what prep did
 * with its fast paths is held against something else than itself.
 */
#include "core/args.h"
#include "core/base.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/bpe.h"
#include "io/dataset.h"
#include "io/unicode.h"
#include "tools/commands.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define READ_TOKENS     (1u << 16)
#define LENGTH_CLASSES  64
#define BAR_COLUMNS     40
#define SAMPLE_BYTES    320
#define CHECK_BYTES_MAX (16 * MIB) /* of text, in all documents that are checked */
#define CHECK_TOKENS    (4u << 20) /* a longer document is not checked */

enum side { TRAIN, VAL, SIDES };
static const char *const side_names[SIDES] = {"train", "val"};

struct tally {
    uint64_t text_bytes;
    uint64_t ends; /* end-of-text tokens, which stand for no text */
    uint64_t shortest, longest;
    uint64_t by_length[LENGTH_CLASSES]; /* documents of 2^i to 2^(i+1) - 1 tokens */
};

struct data {
    const char *dir;
    uint64_t samples, checks, seed;
    struct dataset dataset;
    struct bpe *bpe;
    struct tally tallies[SIDES];
    uint64_t checked, checked_bytes, other_tokens, passed_over;
};

/* A document: its tokens and their text; the buffers grow to the longest seen. */
struct document {
    uint32_t *tokens, *again;
    uint64_t token_count, token_capacity;
    char *text;
    size_t bytes, capacity;
};

static const struct shard *shard_of(const struct data *data, enum side side)
{
    return side == TRAIN ? &data->dataset.train : &data->dataset.val;
}

static uint64_t document_length(const struct shard *shard, uint64_t index)
{
    uint64_t end =
        index + 1 < shard->document_count ? shard->documents[index + 1] : shard->token_count;
    return end - shard->documents[index];
}

/* ---- Counting -------------------------------------------------------------------------------- */

static void count_lengths(struct tally *tally, const struct shard *shard)
{
    tally->shortest = UINT64_MAX;
    for (uint64_t i = 0; i < shard->document_count; i++) {
        uint64_t length = document_length(shard, i);
        tally->shortest = MIN(tally->shortest, length);
        tally->longest = MAX(tally->longest, length);
        tally->by_length[63 - __builtin_clzll(length | 1)]++;
    }
}

static void count_text(struct data *data, enum side side, uint32_t *tokens)
{
    const struct shard *shard = shard_of(data, side);
    struct tally *tally = &data->tallies[side];
    struct log_progress progress;
    log_progress_start(&progress, "counting", "M tokens", (double)shard->token_count / 1e6);
    for (uint64_t start = 0; start < shard->token_count; start += READ_TOKENS) {
        size_t count = (size_t)MIN((uint64_t)READ_TOKENS, shard->token_count - start);
        shard_read(shard, start, tokens, count);
        for (size_t i = 0; i < count; i++) {
            size_t bytes;
            bpe_token_bytes(data->bpe, tokens[i], &bytes);
            bool end = tokens[i] == bpe_end_of_text(data->bpe);
            tally->ends += end;
            tally->text_bytes += end ? 0 : bytes;
        }
        log_progress_update(&progress, (double)start / 1e6, NULL);
    }
    log_progress_end(&progress);
}

static void count_all(struct data *data)
{
    uint32_t *tokens = mem_alloc(READ_TOKENS, sizeof(*tokens));
    for (enum side side = TRAIN; side < SIDES; side++) {
        if (side == VAL && !data->dataset.has_val)
            continue;
        shard_expect_all(shard_of(data, side), true);
        count_lengths(&data->tallies[side], shard_of(data, side));
        count_text(data, side, tokens);
        shard_expect_all(shard_of(data, side), false);
    }
    mem_free(tokens);
}

/* ---- Documents ------------------------------------------------------------------------------- */

static void append_token(const struct bpe *bpe, struct document *document, uint32_t token)
{
    size_t bytes;
    const char *text = bpe_token_bytes(bpe, token, &bytes);
    if (bytes > document->capacity - document->bytes) {
        document->capacity = 2 * document->capacity + bytes + 4096;
        document->text = mem_realloc(document->text, document->capacity, 1);
    }
    memcpy(document->text + document->bytes, text, bytes);
    document->bytes += bytes;
}

/* Reads at most token_max tokens of a document, without the end-of-text token, as tokens and text.
 */
static void read_document(const struct data *data, enum side side, uint64_t index,
                          uint64_t token_max, struct document *document)
{
    const struct shard *shard = shard_of(data, side);
    uint64_t count = MIN(document_length(shard, index), token_max);
    if (count > document->token_capacity) {
        document->token_capacity = count;
        document->tokens = mem_realloc(document->tokens, count, sizeof(*document->tokens));
    }
    shard_read(shard, shard->documents[index], document->tokens, (size_t)count);
    if (count > 0 && document->tokens[count - 1] == bpe_end_of_text(data->bpe))
        count--;
    document->token_count = count;
    document->bytes = 0;
    for (uint64_t i = 0; i < count; i++)
        append_token(data->bpe, document, document->tokens[i]);
}

static void document_deinit(struct document *document)
{
    mem_free(document->tokens);
    mem_free(document->again);
    mem_free(document->text);
}

static uint64_t document_count(const struct data *data)
{
    return data->dataset.train.document_count +
           (data->dataset.has_val ? data->dataset.val.document_count : 0);
}

/* The number-th of `draws` documents of either side by chance, or in order where that is all. */
static uint64_t draw(const struct data *data, uint64_t stream, uint64_t draws, uint64_t number,
                     enum side *side)
{
    uint64_t train = data->dataset.train.document_count, all = document_count(data);
    uint64_t index = draws >= all ? number : rng_below(data->seed, stream, number, all);
    ASSERT(index < all);
    *side = index < train ? TRAIN : VAL;
    return index < train ? index : index - train;
}

/* ---- Checking -------------------------------------------------------------------------------- */

/* Whether the tokens stand for exactly this text. */
static bool is_text_of(const struct bpe *bpe, const uint32_t *tokens, size_t count,
                       const struct document *document)
{
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        const char *text = bpe_token_bytes(bpe, tokens[i], &bytes);
        if (bytes > document->bytes - at || memcmp(text, document->text + at, bytes) != 0)
            return false;
        at += bytes;
    }
    return at == document->bytes;
}

static int check_document(struct data *data, struct bpe_encoder *encoder, struct document *document,
                          enum side side, uint64_t index, struct err *err)
{
    if (document_length(shard_of(data, side), index) > CHECK_TOKENS) {
        data->passed_over++;
        return 0;
    }
    read_document(data, side, index, CHECK_TOKENS, document);
    document->again =
        mem_realloc(document->again, MAX(document->bytes, (size_t)1), sizeof(*document->again));
    size_t count =
        bpe_encode(encoder, document->text, document->bytes, document->again, document->bytes);
    if (!is_text_of(data->bpe, document->again, count, document))
        return err_set(err, ERR_CORRUPT,
                       "document %" PRIu64 " of %s does not come back from its tokens: this is a "
                       "fault of the program, please report it with the tokenizer",
                       index, shard_of(data, side)->path);
    data->checked++;
    data->checked_bytes += document->bytes;
    data->other_tokens +=
        count != document->token_count ||
        memcmp(document->again, document->tokens, count * sizeof(*document->again)) != 0;
    return 0;
}

static int check_some(struct data *data, struct err *err)
{
    int result = 0;
    struct document document = {0};
    struct bpe_encoder *encoder = bpe_encoder_new_checking(data->bpe);
    struct log_progress progress;
    log_progress_start(&progress, "checking", "documents", (double)data->checks);
    for (uint64_t i = 0; result == 0 && i < data->checks && data->checked_bytes < CHECK_BYTES_MAX;
         i++) {
        enum side side;
        uint64_t index = draw(data, 0, data->checks, i, &side);
        result = check_document(data, encoder, &document, side, index, err);
        log_progress_update(&progress, (double)i, NULL);
    }
    log_progress_end(&progress);
    bpe_encoder_free(encoder);
    document_deinit(&document);
    return result;
}

/* ---- Printing -------------------------------------------------------------------------------- */

static void print_side(const struct data *data, enum side side)
{
    const struct shard *shard = shard_of(data, side);
    const struct tally *tally = &data->tallies[side];
    uint64_t text_tokens = shard->token_count - tally->ends;
    printf("%-6s %14" PRIu64 " %16" PRIu64 " %16" PRIu64 " %12.3f %12" PRIu64 " %12.1f %12" PRIu64
           "\n",
           side_names[side], shard->document_count, shard->token_count, tally->text_bytes,
           (double)tally->text_bytes / (double)MAX(text_tokens, (uint64_t)1),
           shard->document_count > 0 ? tally->shortest : 0,
           (double)shard->token_count / (double)MAX(shard->document_count, (uint64_t)1),
           tally->longest);
}

static void print_counts(const struct data *data)
{
    printf("%s: a vocabulary of %u, text cut as %s has it, tokens of %u bytes\n\n", data->dir,
           data->dataset.vocab, pretoken_names[bpe_pattern(data->bpe)],
           data->dataset.train.token_bytes);
    printf("%-6s %14s %16s %16s %12s %12s %12s %12s\n", "", "documents", "tokens", "bytes of text",
           "bytes/token", "shortest", "mean", "longest");
    print_side(data, TRAIN);
    if (data->dataset.has_val)
        print_side(data, VAL);
}

static void print_histogram(const struct data *data)
{
    uint64_t counts[LENGTH_CLASSES], most = 0;
    for (int i = 0; i < LENGTH_CLASSES; i++) {
        counts[i] = data->tallies[TRAIN].by_length[i] + data->tallies[VAL].by_length[i];
        most = MAX(most, counts[i]);
    }
    printf("\ndocuments by their length in tokens\n");
    for (int i = 0; i < LENGTH_CLASSES; i++) {
        if (counts[i] == 0)
            continue;
        char bar[BAR_COLUMNS + 1];
        int columns = (int)(((double)counts[i] * BAR_COLUMNS + (double)most - 1) / (double)most);
        memset(bar, '#', (size_t)columns);
        bar[columns] = '\0';
        printf("%10" PRIu64 " to %-10" PRIu64 " %12" PRIu64 "  %s\n", (uint64_t)1 << i,
               ((uint64_t)2 << i) - 1, counts[i], bar);
    }
}

/* Text for a terminal: what is no character becomes U+FFFD, what would move the cursor a space. */
static void print_text(const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        size_t step = unicode_character_bytes((const uint8_t *)text + at, bytes - at);
        uint8_t lead = (uint8_t)text[at];
        if (step == 0)
            fputs("\xef\xbf\xbd", stdout);
        else if (lead < 0x20 || lead == 0x7f || (lead == 0xc2 && (uint8_t)text[at + 1] < 0xa0))
            putchar(' ');
        else
            fwrite(text + at, 1, step, stdout);
        at += MAX(step, (size_t)1);
    }
}

static void print_samples(const struct data *data)
{
    struct document document = {0};
    for (uint64_t i = 0; i < data->samples; i++) {
        enum side side;
        uint64_t index = draw(data, RNG_STREAM_SAMPLE, data->samples, i, &side);
        read_document(data, side, index, SAMPLE_BYTES, &document);
        size_t bytes = MIN(document.bytes, (size_t)SAMPLE_BYTES);
        printf("\n%s, document %" PRIu64 " (%" PRIu64 " tokens):\n  ", side_names[side], index,
               document_length(shard_of(data, side), index));
        /* A character that was cut in two at the end is left out. */
        for (int back = 0; back < 3 && bytes > 0 && bytes < document.bytes &&
                           ((uint8_t)document.text[bytes] & 0xc0) == 0x80;
             back++)
            bytes--;
        print_text(document.text, bytes);
        printf("%s\n", bytes < document.bytes ? " ..." : "");
    }
    document_deinit(&document);
}

static void print_check(const struct data *data)
{
    char text[LOG_BYTES_MAX];
    printf("\nchecked %" PRIu64 " documents, %s of text: text -> tokens -> text is exact",
           data->checked, log_bytes(text, data->checked_bytes));
    if (data->other_tokens == 0)
        printf(", and the tokens are the same\n");
    else
        printf("; %" PRIu64 " have other tokens than their text gives as a whole\n",
               data->other_tokens);
    if (data->passed_over > 0)
        printf("%" PRIu64 " documents of more than %u tokens were passed over\n", data->passed_over,
               CHECK_TOKENS);
}

/* ---- The command ----------------------------------------------------------------------------- */

static int open_data(struct data *data, struct err *err)
{
    int result = dataset_open(&data->dataset, data->dir, err);
    if (result == 0)
        result = bpe_load(&data->bpe, data->dir, err);
    if (result == 0 && (bpe_vocab_size(data->bpe) != data->dataset.vocab ||
                        data->dataset.train.document_count == 0))
        result = err_set(err, ERR_CORRUPT,
                         "%s is not what its tokenizer says: `spillway check %s` says more",
                         data->dir, data->dir);
    return result;
}

static int run(struct data *data, struct err *err)
{
    int result = open_data(data, err);
    if (result == 0) {
        data->samples = MIN(data->samples, document_count(data));
        data->checks = MIN(data->checks, document_count(data));
        count_all(data);
        print_counts(data);
        print_histogram(data);
        print_samples(data);
        fflush(stdout);
        result = check_some(data, err);
    }
    if (result == 0 && data->checks > 0)
        print_check(data);
    bpe_free(data->bpe);
    dataset_close(&data->dataset);
    return result;
}

int data_main(int argc, char **argv)
{
    struct data data = {.samples = 3, .checks = 100};
    const struct args_option options[] = {
        {"samples", ARGS_U64, &data.samples, "N", "show the beginnings of N documents (default 3)",
         NULL},
        {"check", ARGS_U64, &data.checks, "N",
         "turn N documents into text and tokens again, 16 MiB of text at most (default 100)", NULL},
        {"seed", ARGS_U64, &data.seed, "S", "chooses those documents (default 0)", NULL},
    };
    struct args_command args = {
        .name = "data",
        .summary = "Shows what is in prepared data: counts, lengths, samples, and whether text "
                   "comes back exactly.",
        .usage = "DIR [options]",
        .example = "spillway data wiki --samples 10",
        .options = options,
        .option_count = ARRAY_COUNT(options),
        .positional = &data.dir,
        .positional_max = 1,
    };
    struct err err = {0};
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0 && !data.dir)
        result = err_set(&err, ERR_USAGE, "say which data: a folder made by 'spillway prep'");
    if (result == 0)
        result = run(&data, &err);
    return commands_status(result, &err);
}
