/* What prep tells at its end, to the user and in dataset.json. */
#include "core/base.h"
#include "core/json.h"
#include "core/log.h"
#include "tools/commands.h"
#include "tools/prep.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const char *const format_names[] = {"auto", "text", "jsonl", "wiki"};

const char *prep_stage_name(enum prep_stage stage)
{
    static const char *const names[PREP_STAGES] = {"reading", "decompressing", "taking text out",
                                                   "tokenizing", "writing"};
    return names[stage];
}

const char *prep_format_name(const struct prep *prep)
{
    return prep->from < FOREIGN_FORMATS ? foreign_names[prep->from] : format_names[prep->format];
}

static struct json_value *weights_of(const struct prep *prep)
{
    struct json_value *weights = json_new_object();
    for (size_t i = 0; i < prep->input_count; i++)
        json_set_number(weights, prep->inputs[i], prep->weights[i]);
    return weights;
}

struct json_value *prep_details(const struct prep *prep)
{
    struct json_value *inputs = json_new_array();
    for (size_t i = 0; i < prep->input_count; i++)
        json_append(inputs, json_new_string(prep->inputs[i], strlen(prep->inputs[i])));
    struct json_value *value = json_new_object();
    json_set_string(value, "program", "spillway " SPILLWAY_VERSION);
    json_set(value, "inputs", inputs);
    if (prep->weights != NULL)
        json_set(value, "weights", weights_of(prep));
    json_set_int(value, "files", (int64_t)prep->corpus.file_count);
    json_set_int(value, "file_bytes", (int64_t)prep->corpus.total_bytes);
    json_set_int(value, "text_bytes", (int64_t)prep->split.text_bytes);
    json_set_string(value, "format", prep_format_name(prep));
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

static void warn_tally(const struct corpus_tally *tally, const char *one, const char *many)
{
    if (tally->count > 0)
        log_warn("%" PRIu64 " %s left out%s: %s", tally->count, tally->count == 1 ? one : many,
                 tally->count == 1 ? "" : ", such as", tally->example);
}

static void print_skipped(const struct corpus *corpus)
{
    warn_tally(&corpus->left[CORPUS_EMPTY], "empty file was", "empty files were");
    warn_tally(&corpus->left[CORPUS_SKIPPED], "file is no text and was",
               "files are no text and were");
    warn_tally(&corpus->left[CORPUS_UNREADABLE], "file cannot be read and was",
               "files cannot be read and were");
    warn_tally(&corpus->left[CORPUS_DAMAGED], "rest of a file was", "rests of files were");
    if (corpus->fetch_failed)
        log_warn(
            "files were read one by one: this kernel has no io_uring, or an old one, or forbids "
            "it");
    if (corpus->tree.unreadable_count > 0)
        log_warn("%" PRIu64 " folder%s cannot be read and left out, such as %s",
                 corpus->tree.unreadable_count, corpus->tree.unreadable_count == 1 ? "" : "s",
                 corpus->tree.unreadable_example);
}

static void print_if_any(const char *label, uint64_t value, const char *note)
{
    if (value > 0)
        print_count(label, value, note);
}

/* Lines and pages that gave no document. */
static void print_records(const struct corpus *corpus)
{
    const struct records_count *count = corpus_records(corpus);
    if (count == NULL)
        return;
    const uint64_t *results = count->results;
    print_if_any("  no articles", results[RECORD_OTHER],
                 "  (redirects, other namespaces, no text)");
    print_if_any("  no text field", results[RECORD_FIELDLESS], "  (left out)");
    print_if_any("  malformed", results[RECORD_MALFORMED], "  (left out)");
    print_if_any("  too long", results[RECORD_TOO_LONG], "  (left out: more --ram-budget helps)");
    print_if_any("  partly unclear", count->broken_documents,
                 "  (markup that is not closed; its text is kept)");
}

static void print_stages(const struct prep *prep)
{
    uint64_t total = 0;
    for (int i = 0; i < PREP_STAGES; i++)
        total += prep->stage_ns[i];
    printf("  %-18s ", "");
    for (int i = 0, told = 0; i < PREP_STAGES; i++) {
        double share = 100.0 * (double)prep->stage_ns[i] / (double)MAX(total, (uint64_t)1);
        if (share >= 0.5)
            printf("%s%s %.0f %%", told++ > 0 ? ", " : "", prep_stage_name(i), share);
    }
    printf("\n");
}

static void print_table(const struct prep *prep, const struct dataset *dataset, double seconds)
{
    char text[LOG_BYTES_MAX], note[64];
    uint64_t train = dataset->train.token_count, val = dataset->val.token_count;
    uint64_t ends = dataset->train.document_count + dataset->val.document_count;
    printf("\n");
    print_count("files", prep->corpus.file_count, "");
    print_if_any("  compressed", prep->corpus.packed_files, "");
    print_count("documents", prep->split.documents, "");
    print_records(&prep->corpus);
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
    print_stages(prep);
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

void prep_report(const struct prep *prep, const struct dataset *dataset, double seconds)
{
    print_skipped(&prep->corpus);
    warn_of_val(prep, dataset);
    print_table(prep, dataset, seconds);
}
