#include "tools/prep_state.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "io/bpe.h"
#include "io/stamp.h"
#include "tools/commands.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define STATE_FILE    "state.json"
#define SPOOL_FILE    "text"
#define STATE_VERSION 1
#define FIELDS_MAX    96
#define GO_BACK       "repeat the command as it was, or begin anew with --restart"

struct prep_state {
    struct json_value *root, *arguments; /* owned: as read, or NULL; of this prep */
    struct stamp *stamps;                /* owned [input_count] */
    uint64_t saved_ns;                   /* the last mark, or the start */
    bool told;
};

static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
    stop_signal = number;
}

/* Standard input ends here: whoever waits for it would not look at the signal before there is more
 * of it. Both calls may be made in a handler. */
static void on_signal_at_stdin(int number)
{
    int error = errno, nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing >= 0)
        (void)dup2(nothing, STDIN_FILENO);
    stop_signal = number;
    errno = error;
}

/* A second one ends the program at once, as if there were no handler. */
static void catch_signals(bool reads_stdin)
{
    struct sigaction action = {.sa_handler = reads_stdin ? on_signal_at_stdin : on_signal,
                               .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    stop_signal = 0;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* ---------------------------------------------------------------------------------------------
 * The numbers of a mark
 * ------------------------------------------------------------------------------------------- */

/* One number of a mark, wherever it lies: the same list writes it and reads it. */
struct field {
    char name[48];
    void *value;
    size_t bytes; /* 1, 4 or 8 */
};

struct fields {
    struct field list[FIELDS_MAX];
    size_t count;
};

static void add(struct fields *fields, const char *group, const char *name, void *value,
                size_t bytes)
{
    ASSERT(fields->count < FIELDS_MAX && (bytes == 1 || bytes == 4 || bytes == 8));
    struct field *field = &fields->list[fields->count++];
    snprintf(field->name, sizeof(field->name), "%s%s", group, name);
    field->value = value;
    field->bytes = bytes;
}
#define ADD(fields, group, name, lvalue) add(fields, group, name, &(lvalue), sizeof(lvalue))

static void add_position(struct fields *fields, const char *group, struct corpus_position *position)
{
    struct corpus_counts *counts = &position->counts;
    char name[32];
    ADD(fields, group, "file", position->file);
    ADD(fields, group, "pieces", position->pieces);
    ADD(fields, group, "closed_bytes", position->closed_bytes);
    ADD(fields, group, "spool_bytes", position->spool_bytes);
    ADD(fields, group, "files_with_text", counts->file_count);
    ADD(fields, group, "jsonl_files", counts->jsonl_files);
    ADD(fields, group, "wiki_files", counts->wiki_files);
    ADD(fields, group, "packed_files", counts->packed_files);
    for (size_t i = 0; i < CORPUS_LEFTS; i++) {
        snprintf(name, sizeof(name), "left_%zu", i);
        ADD(fields, group, name, counts->left[i]);
    }
    for (size_t i = 0; i < RECORD_RESULT_COUNT; i++) {
        snprintf(name, sizeof(name), "records_%zu", i);
        ADD(fields, group, name, counts->records.results[i]);
    }
    ADD(fields, group, "broken_documents", counts->records.broken_documents);
    ADD(fields, group, "broken_parts", counts->records.broken_parts);
}

static void add_shard(struct fields *fields, const char *group, struct shard_mark *mark)
{
    ADD(fields, group, "tokens", mark->token_count);
    ADD(fields, group, "documents", mark->document_count);
    ADD(fields, group, "checksum", mark->checksum);
    ADD(fields, group, "in_document", mark->in_document);
}

static void add_tokens(struct fields *fields, const char *group, struct prep_tokens_done *done)
{
    ADD(fields, group, "input", done->input);
    ADD(fields, group, "pieces", done->pieces);
    ADD(fields, group, "in_document", done->in_document);
    ADD(fields, group, "side", done->side);
    ADD(fields, group, "file_bytes", done->file_bytes);
    ADD(fields, group, "documents", done->documents);
    ADD(fields, group, "empty_documents", done->empty_documents);
    ADD(fields, group, "text_bytes", done->text_bytes);
}

static void list_fields(struct fields *fields, struct prep *prep, struct prep_mark *mark)
{
    fields->count = 0;
    ADD(fields, "", "phase", mark->phase);
    ADD(fields, "", "documents", prep->split.documents);
    ADD(fields, "", "text_bytes", prep->split.text_bytes);
    ADD(fields, "", "hash_min", prep->split.hash_min);
    ADD(fields, "", "hash_max", prep->split.hash_max);
    ADD(fields, "", "position", mark->position);
    ADD(fields, "", "documents_read", mark->documents_read);
    ADD(fields, "", "round", mark->round);
    ADD(fields, "", "side", mark->side);
    ADD(fields, "", "taken", mark->taken);
    ADD(fields, "", "has_val", mark->has_val);
    ADD(fields, "", "tokenizer_hash", mark->tokenizer_hash);
    add_position(fields, "surveyed.", &mark->surveyed);
    add_position(fields, "at.", &mark->at);
    add_shard(fields, "train.", &mark->shards[SPLIT_TRAIN]);
    add_shard(fields, "val.", &mark->shards[SPLIT_VAL]);
    add_tokens(fields, "taken.", &mark->tokens);
}

/* 64 bits go through as they are, whatever their sign. */
static struct json_value *fields_to_json(const struct fields *fields)
{
    struct json_value *object = json_new_object();
    for (size_t i = 0; i < fields->count; i++) {
        uint64_t value = 0;
        memcpy(&value, fields->list[i].value, fields->list[i].bytes);
        json_set_int(object, fields->list[i].name, (int64_t)value);
    }
    return object;
}

static void fields_from_json(const struct fields *fields, const struct json_value *object)
{
    for (size_t i = 0; i < fields->count; i++) {
        uint64_t value = (uint64_t)json_get_int(object, fields->list[i].name, 0);
        memcpy(fields->list[i].value, &value, fields->list[i].bytes);
    }
}

/* ---------------------------------------------------------------------------------------------
 * What must be the same
 * ------------------------------------------------------------------------------------------- */

static void set_text(struct json_value *object, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void set_text(struct json_value *object, const char *name, const char *format, ...)
{
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    json_set_string(object, name, text);
}

static void set_inputs(struct json_value *object, const struct prep *prep)
{
    char name[32];
    for (size_t i = 0; i < prep->input_count; i++) {
        snprintf(name, sizeof(name), "input %zu", i + 1);
        json_set_string(object, name, prep->inputs[i]);
        snprintf(name, sizeof(name), "weight %zu", i + 1);
        if (prep->weights != NULL)
            set_text(object, name, "%.17g", prep->weights[i]);
        else
            json_set_string(object, name, "none");
    }
    set_text(object, "number of inputs", "%zu", prep->input_count);
}

/* By the names that the user knows. The number of threads changes nothing, so is not among them. */
static struct json_value *arguments_of(const struct prep *prep)
{
    struct json_value *object = json_new_object();
    set_text(object, "program", "spillway %s, state %d", SPILLWAY_VERSION, STATE_VERSION);
    set_inputs(object, prep);
    json_set_string(object, "--tokenizer",
                    prep->tokenizer_path != NULL ? prep->tokenizer_path : "none");
    set_text(object, "--vocab-size", "%" PRIu64, prep->vocab_size);
    json_set_string(object, "--pattern", pretoken_names[prep->pattern]);
    json_set_string(object, "--format", prep_format_name(prep));
    json_set_string(object, "--split", prep->corpus_split == CORPUS_SPLIT_BLANK ? "blank" : "file");
    json_set_string(object, "--text-field", prep->text_field != NULL ? prep->text_field : "text");
    json_set_string(object, "--shard-format",
                    prep->shard_format < FOREIGN_FORMATS ? foreign_names[prep->shard_format]
                                                         : "spillway");
    set_text(object, "--val-fraction", "%.17g", prep->val_fraction);
    set_text(object, "--seed", "%" PRIu64, prep->seed);
    set_text(object, "--ram-budget", "%" PRIu64, prep->ram_budget);
    return object;
}

struct comparison {
    const struct prep *prep;
    const struct json_value *before;
    bool learned; /* what words were counted in no longer matters */
    struct err *err;
};

static int compare_argument(void *context, const char *name, const struct json_value *value)
{
    const struct comparison *comparison = context;
    const char *now = json_string(value), *was = json_get_string(comparison->before, name, "none");
    bool may_differ = comparison->learned && strcmp(name, "--ram-budget") == 0;
    return may_differ || strcmp(was, now) == 0
               ? 0
               : err_set(
                     comparison->err, ERR_INPUT,
                     "%s holds what another prep has begun: %s was %s there and is %s: " GO_BACK,
                     comparison->prep->out, name, was, now);
}

static struct json_value *stamp_to_json(const struct stamp *stamp)
{
    struct json_value *object = json_new_object();
    json_set_int(object, "files", (int64_t)stamp->files);
    json_set_int(object, "bytes", (int64_t)stamp->bytes);
    json_set_int(object, "hash", (int64_t)stamp->hash);
    return object;
}

static int compare_input(const struct prep *prep, size_t index, const struct json_value *before,
                         struct err *err)
{
    const struct stamp *now = &prep->state->stamps[index];
    const struct stamp was = {(uint64_t)json_get_int(before, "files", 0),
                              (uint64_t)json_get_int(before, "bytes", 0),
                              (uint64_t)json_get_int(before, "hash", 0)};
    if (was.files == now->files && was.bytes == now->bytes && was.hash == now->hash)
        return 0;
    char what[160];
    if (was.files != now->files)
        snprintf(what, sizeof(what),
                 "%" PRIu64 " files with text there were then, and %" PRIu64 " there are now",
                 was.files, now->files);
    else if (was.bytes != now->bytes)
        snprintf(what, sizeof(what), "it had %" PRIu64 " bytes then and has %" PRIu64 " now",
                 was.bytes, now->bytes);
    else
        snprintf(what, sizeof(what), "%s",
                 now->files == 1 ? "it was written to" : "a file in it was written to or renamed");
    return err_set(
        err, ERR_INPUT,
        "%s has changed since the prep began that is to go on in %s (%s): put it back as "
        "it was, or begin anew with --restart",
        prep->inputs[index], prep->out, what);
}

static int compare(const struct prep *prep, const struct json_value *body, struct err *err)
{
    int64_t phase = json_get_int(json_get(body, "mark"), "phase", 0);
    struct comparison comparison = {prep, json_get(body, "arguments"),
                                    prep->tokenizer_path != NULL || phase >= PREP_TOKENIZING, err};
    int code = json_each(prep->state->arguments, compare_argument, &comparison);
    for (size_t i = 0; code == 0 && i < prep->input_count; i++)
        code = compare_input(prep, i, json_at(json_get(body, "inputs"), i), err);
    return code;
}

static int take_stamps(struct prep *prep, struct err *err)
{
    struct tree tree;
    struct prep_state *state = prep->state;
    state->stamps = mem_alloc(prep->input_count, sizeof(*state->stamps));
    if (prep->from == FOREIGN_FORMATS) {
        stamp_take(state->stamps, prep->input_count, &prep->corpus.tree, prep->pool);
        return 0;
    }
    int code = tree_open(&tree, prep->inputs, prep->input_count, prep->out, err);
    if (code == 0)
        stamp_take(state->stamps, prep->input_count, &tree, prep->pool);
    tree_close(&tree);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------------------------- */

static int state_path(const struct prep *prep, char path[FILE_PATH_MAX], struct err *err)
{
    return file_join(path, prep->unfinished, STATE_FILE, err);
}

static void checksum_of(const struct json_value *body, char text[17])
{
    char *body_text = json_text(body, false);
    snprintf(text, 17, "%016" PRIx64, hash_bytes(body_text, strlen(body_text), 0));
    mem_free(body_text);
}

static void restore(struct prep *prep, const struct json_value *body)
{
    struct fields fields;
    const struct json_value *bytes = json_get(body, "input_bytes");
    const struct json_value *examples = json_get(body, "examples");
    list_fields(&fields, prep, &prep->mark);
    fields_from_json(&fields, json_get(body, "mark"));
    for (size_t i = 0; i < prep->input_count; i++)
        prep->input_bytes[i] = (uint64_t)json_int(json_at(bytes, i), 0);
    for (size_t i = 0; i < CORPUS_LEFTS; i++)
        prep->mark.examples[i] = json_string(json_at(examples, i));
    prep->phase = prep->mark.phase;
    prep->goes_on = prep->from == FOREIGN_FORMATS &&
                    (prep->phase == PREP_READING || prep->phase == PREP_TOKENIZING);
}

static int read_state(struct prep *prep, const char *path, struct err *err)
{
    char checksum[17];
    struct prep_state *state = prep->state;
    state->root = json_load(path, err);
    const struct json_value *body = json_get(state->root, "state");
    if (body != NULL)
        checksum_of(body, checksum);
    if (body == NULL || strcmp(json_get_string(state->root, "checksum", ""), checksum) != 0)
        return err_set(err, ERR_CORRUPT, "%s is damaged: begin anew with --restart", path);
    int code = compare(prep, body, err);
    if (code != 0)
        return code;
    restore(prep, body);
    log_line("Going on where a prep was ended: %s.",
             prep->phase == PREP_READING     ? "its text was being read"
             : prep->phase == PREP_LEARNING  ? "its text is read"
             : prep->phase == PREP_FINISHING ? "its tokens are written"
                                             : "its tokens were being written");
    return 0;
}

int prep_state_open(struct prep *prep, struct err *err)
{
    char path[FILE_PATH_MAX];
    struct prep_state *state = prep->state = mem_alloc(1, sizeof(*prep->state));
    state->saved_ns = clock_ns();
    state->arguments = arguments_of(prep);
    prep->cannot_go_on = prep_state_spool(prep) == NULL;
    catch_signals(prep->cannot_go_on);
    int code = state_path(prep, path, err);
    prep->saved = code == 0 && file_exists(path);
    if (code == 0)
        code = take_stamps(prep, err);
    if (code == 0 && prep->saved && !prep->restart) {
        code = read_state(prep, path, err);
    } else if (code == 0) {
        prep_state_discard(prep);
        code = file_make_dirs(prep->unfinished, err);
    }
    return code;
}

const char *prep_state_spool(const struct prep *prep)
{
    for (size_t i = 0; i < prep->input_count; i++)
        if (strcmp(prep->inputs[i], TREE_STDIN) == 0)
            return NULL;
    return SPOOL_FILE;
}

int prep_state_tokenizer(struct prep *prep, struct err *err)
{
    int code = prep->bpe == NULL ? bpe_load(&prep->bpe, prep->unfinished, err) : 0;
    if (code == 0 && bpe_hash(prep->bpe) != prep->mark.tokenizer_hash)
        code =
            err_set(err, ERR_INPUT,
                    "the tokenizer is not the one that the tokens in %s were made with: " GO_BACK,
                    prep->out);
    prep->learned_saved = prep->tokenizer_path == NULL;
    return code;
}

/* The state first: what it speaks of may only be missing when it is gone. Nothing but what prep
 * itself puts there, whoever else uses the folder's name. */
static void remove_unfinished(const struct prep *prep)
{
    static const char *const parts[] = {STATE_FILE, STATE_FILE ".tmp", SPOOL_FILE,
                                        DATASET_TOKENIZER_FILE, DATASET_TOKENIZER_FILE ".tmp"};
    char path[FILE_PATH_MAX];
    struct err ignored;
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++)
        if (file_join(path, prep->unfinished, parts[i], &ignored) == 0)
            (void)unlink(path);
    (void)rmdir(prep->unfinished);
}

void prep_state_close(struct prep *prep, bool ok)
{
    struct prep_state *state = prep->state;
    if (!ok && !prep->saved)
        remove_unfinished(prep);
    else if (!ok && prep->begun)
        fprintf(stderr, "What is done is kept. To go on: %s\n", prep->command); /* of any length */
    json_free(state->root);
    json_free(state->arguments);
    mem_free(state->stamps);
    mem_free(state);
    prep->state = NULL;
}

/* ---------------------------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------------------------- */

/* All that the mark will speak of reaches the drive. */
static int mark_files(struct prep *prep, struct prep_mark *mark, struct err *err)
{
    int code = corpus_sync(&prep->corpus, err);
    if (code == 0 && prep->phase >= PREP_TOKENIZING && prep->tokenizer_path == NULL &&
        !prep->learned_saved) {
        code = bpe_save(prep->bpe, prep->unfinished, err);
        prep->learned_saved = code == 0;
    }
    for (int side = 0; code == 0 && side < SPLIT_SIDE_COUNT; side++)
        if (prep->writers[side] != NULL)
            code = shard_writer_mark(prep->writers[side], &mark->shards[side], err);
    return code == 0 ? file_sync_dir(prep->out, err) : code;
}

static void mark_numbers(struct prep *prep, struct prep_mark *mark)
{
    mark->phase = prep->phase;
    mark->surveyed = prep->surveyed;
    mark->has_val = prep->has_val;
    mark->tokens = prep->tokens.done;
    mark->tokenizer_hash = prep->bpe != NULL ? bpe_hash(prep->bpe) : 0;
    if (prep->from == FOREIGN_FORMATS && prep->phase < PREP_FINISHING)
        prep_mark_pass(prep, mark);
    if (prep->phase == PREP_LEARNING)
        mark->at = prep->surveyed;
}

static struct json_value *describe(struct prep *prep, struct prep_mark *mark)
{
    struct fields fields;
    struct json_value *body = json_new_object(), *inputs = json_new_array();
    struct json_value *bytes = json_new_array(), *examples = json_new_array();
    list_fields(&fields, prep, mark);
    for (size_t i = 0; i < prep->input_count; i++) {
        json_append(inputs, stamp_to_json(&prep->state->stamps[i]));
        json_append(bytes, json_new_int((int64_t)prep->input_bytes[i]));
    }
    for (size_t i = 0; i < CORPUS_LEFTS; i++) {
        const char *example = prep->corpus.left[i].example;
        example = example != NULL ? example : "";
        json_append(examples, json_new_string(example, strlen(example)));
    }
    json_set(body, "arguments", arguments_of(prep));
    json_set(body, "inputs", inputs);
    json_set(body, "input_bytes", bytes);
    json_set(body, "examples", examples);
    json_set(body, "mark", fields_to_json(&fields));
    return body;
}

int prep_state_save(struct prep *prep, struct err *err)
{
    char path[FILE_PATH_MAX], checksum[17];
    struct prep_mark mark = {0};
    int code = prep->cannot_go_on ? 0 : state_path(prep, path, err);
    if (prep->cannot_go_on || code != 0)
        return code;
    code = mark_files(prep, &mark, err);
    if (code != 0)
        return code;
    mark_numbers(prep, &mark);
    struct json_value *root = json_new_object(), *body = describe(prep, &mark);
    checksum_of(body, checksum);
    json_set_string(root, "checksum", checksum);
    json_set(root, "state", body);
    code = json_save(root, path, err);
    json_free(root);
    prep->saved |= code == 0;
    prep->state->saved_ns = clock_ns();
    return code;
}

static int stopped(const struct prep *prep, struct err *err)
{
    return err_set(err, ERR_INPUT, "stopped by signal %d before it was done%s", (int)stop_signal,
                   prep->saved          ? ": the same command goes on where it was"
                   : prep->cannot_go_on ? ": standard input cannot be read again, so begin anew"
                                        : ": nothing was worth keeping yet, so begin anew");
}

int prep_pause(struct prep *prep, struct err *err)
{
    struct prep_state *state = prep->state;
    double waited_s = (double)(clock_ns() - state->saved_ns) * 1e-9;
    bool learning = prep->phase == PREP_LEARNING;
    /* What is read once is kept at once; while words are counted there is nothing new to keep. */
    bool due = waited_s >= prep->save_every_s || (learning && prep->saved);
    bool worth = prep->phase != PREP_NOTHING && !(learning && prep->learning_saved);
    int code = 0;
    if (due && worth && prep->cannot_go_on && !state->told) {
        log_line("Standard input cannot be read again: if this is ended, it begins anew.");
        state->told = true;
    }
    if (worth && (due || stop_signal != 0)) {
        code = prep_state_save(prep, err);
        prep->learning_saved = code == 0 && learning;
    }
    return code == 0 && stop_signal != 0 ? stopped(prep, err) : code;
}

void prep_state_discard(struct prep *prep)
{
    static const char *const parts[] = {DATASET_TRAIN_FILE ".tmp", DATASET_TRAIN_FILE ".tmp.index",
                                        DATASET_VAL_FILE ".tmp", DATASET_VAL_FILE ".tmp.index"};
    char path[FILE_PATH_MAX];
    struct err ignored;
    remove_unfinished(prep);
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++)
        if (file_join(path, prep->out, parts[i], &ignored) == 0)
            (void)unlink(path);
    prep->saved = false;
}
