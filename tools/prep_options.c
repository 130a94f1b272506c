/* The command line of prep. */
#include "core/args.h"
#include "core/base.h"
#include "core/mem.h"
#include "core/pool.h"
#include "io/bpe.h"
#include "io/file.h"
#include "tools/prep.h"
#include "tools/prep_tokens.h"
#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int choose_format(struct prep *prep, const char *name, struct err *err)
{
    prep->from = foreign_by_name(name);
    if (prep->from < FOREIGN_FORMATS)
        return 0;
    if (strcmp(name, "auto") == 0)
        prep->format = CORPUS_FORMAT_AUTO;
    else if (strcmp(name, "text") == 0 || strcmp(name, "files") == 0)
        prep->format = CORPUS_FORMAT_TEXT;
    else if (strcmp(name, "jsonl") == 0)
        prep->format = CORPUS_FORMAT_JSONL;
    else if (strcmp(name, "wiki") == 0)
        prep->format = CORPUS_FORMAT_WIKI;
    else
        return err_set(err, ERR_USAGE,
                       "--format takes auto, text, jsonl or wiki, or nanogpt, llmc or megatron for "
                       "tokens, not \"%s\"",
                       name);
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

/* "a.jsonl:0.7": where there is no file of that whole name. 0 with *weight < 0: none is given. */
static int take_weight(const char **input, double *weight, struct err *err)
{
    const char *colon = strrchr(*input, ':');
    char *end;
    *weight = -1;
    if (colon == NULL || colon == *input || file_exists(*input))
        return 0;
    double value = strtod(colon + 1, &end);
    if (end == colon + 1 || *end != '\0')
        return 0;
    if (!(value > 0) || !isfinite(value))
        return err_set(err, ERR_USAGE, "a weight is a number above 0, unlike that of %s", *input);
    ((char *)*input)[colon - *input] = '\0'; /* argv's own text */
    *weight = value;
    return 0;
}

static int take_weights(struct prep *prep, const char **inputs, double *weights, struct err *err)
{
    size_t given = 0;
    for (size_t i = 0; i < prep->input_count; i++) {
        int code = take_weight(&inputs[i], &weights[i], err);
        if (code != 0)
            return code;
        given += weights[i] > 0;
    }
    if (given > 0 && given < prep->input_count)
        return err_set(err, ERR_USAGE,
                       "some inputs have a weight and some have none: give all of them one");
    prep->weights = given > 0 ? weights : NULL;
    return 0;
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
    uint64_t threads_bytes = prep->threads * PREP_THREAD_BYTES;
    /* A tokenizer that is learned has a merge for nearly every token. */
    uint64_t tokenizer = prep->tokenizer_path == NULL ? prep->vocab_size * 2 * BPE_ITEM_BYTES : 0;
    uint64_t least = PREP_FIXED_BYTES + threads_bytes +
                     MAX(threads_bytes / 3, PREP_TABLE_BYTES_MIN) + tokenizer -
                     MIN(tokenizer, PREP_TOKENIZER_BYTES);
    if (prep->ram_budget < least)
        return err_set(err, ERR_INPUT,
                       "prep with %" PRIu64 " threads and this tokenizer does not fit into this "
                       "budget: the smallest that works is --ram-budget %" PRIu64 "M",
                       prep->threads, div_up(least, MIB));
    return 0;
}

int prep_parse(struct prep *prep, const char **inputs, double *weights, int argc, char **argv,
               struct err *err)
{
    const char *format = "auto", *split = "file", *pattern = "gpt2", *shard_format = "spillway";
    bool vocab_given = false, pattern_given = false;
    const struct args_option options[] = {
        {"out", ARGS_STRING, &prep->out, "DIR", "folder for the tokens, made if it is missing",
         NULL},
        {"vocab-size", ARGS_U64, &prep->vocab_size, "N",
         "train a tokenizer of N tokens (default 32768)", &vocab_given},
        {"tokenizer", ARGS_STRING, &prep->tokenizer_path, "PATH",
         "take this one: tokenizer.json, a folder with vocab.json and merges.txt, or a .tiktoken "
         "file",
         NULL},
        {"pattern", ARGS_STRING, &pattern, "NAME",
         "cut text for a new one as gpt2 does (default), or cl100k, llama3, o200k", &pattern_given},
        {"format", ARGS_STRING, &format, "NAME",
         "text, jsonl or wiki; auto: told by content (default); nanogpt, llmc, megatron: tokens "
         "(.bin) of these trainers",
         NULL},
        {"shard-format", ARGS_STRING, &shard_format, "NAME",
         "also write tokens as nanogpt, llmc or megatron has them", NULL},
        {"split", ARGS_STRING, &split, "NAME",
         "file: a file is a document (default); blank: blank lines part documents", NULL},
        {"text-field", ARGS_STRING, &prep->text_field, "NAME",
         "of JSON lines, the member that is the text (default text)", NULL},
        {"val-fraction", ARGS_DOUBLE, &prep->val_fraction, "X",
         "share of the documents kept for validation (default 0.01)", NULL},
        {"seed", ARGS_U64, &prep->seed, "S", "chooses those documents (default 0)", NULL},
        {"ram-budget", ARGS_SIZE, &prep->ram_budget, "SIZE",
         "memory that prep may use (default 2G)", NULL},
        {"threads", ARGS_U64, &prep->threads, "N", "default: one for each core", NULL},
        {"save-every", ARGS_DURATION, &prep->save_every_s, "TIME",
         "how much work a kill may cost: what is done is marked so often (default 10s)", NULL},
        {"restart", ARGS_FLAG, &prep->restart, NULL,
         "begin anew in DIR, where a prep was ended before it was done", NULL},
        {"force", ARGS_FLAG, &prep->force, NULL, "replace what is prepared in DIR already", NULL},
    };
    struct args_command command = {
        .name = "prep",
        .summary = "Makes tokens of text: trains or takes a tokenizer, writes train and val.",
        .usage = "INPUT[:WEIGHT]... --out DIR [--vocab-size N | --tokenizer PATH] [options]",
        .example = "spillway prep cswiki.xml.bz2 novels/ --out data --vocab-size 16384",
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
    code = take_weights(prep, inputs, weights, err);
    if (code == 0)
        code = choose_format(prep, format, err);
    if (code == 0)
        code = choose_split(prep, split, err);
    if (code == 0)
        code = choose_pattern(prep, pattern, err);
    if (code == 0)
        code = prep_tokens_choose(&prep->shard_format, shard_format, err);
    return code == 0 ? check_options(prep, vocab_given || pattern_given, err) : code;
}

static bool is_plain(char c)
{
    return isalnum((unsigned char)c) || strchr("_./:=,+@%-", c) != NULL;
}

/* As a shell takes it: what is not plain stands between apostrophes. */
static size_t quote(char *to, const char *word)
{
    size_t used = 0;
    bool plain = *word != '\0';
    for (const char *c = word; *c != '\0'; c++)
        plain &= is_plain(*c);
    to[used++] = ' ';
    if (!plain)
        to[used++] = '\'';
    for (const char *c = word; *c != '\0'; c++) {
        if (*c == '\'')
            used += (size_t)sprintf(to + used, "'\\'");
        to[used++] = *c;
    }
    if (!plain)
        to[used++] = '\'';
    return used;
}

char *prep_command(int argc, char **argv)
{
    uint64_t bytes = 64;
    for (int i = 0; i < argc; i++)
        bytes += 5 * strlen(argv[i]) + 4;
    char *command = mem_alloc(bytes, 1);
    size_t used = (size_t)sprintf(command, "spillway prep");
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--restart") != 0)
            used += quote(command + used, argv[i]);
    command[used] = '\0';
    return command;
}
