/*
 * Property: prep loses nothing (train and val together decode to the documents of the text), its
 * files depend on text and seed alone, a prep that dies at any byte leaves no folder that would be
 * trusted and does not stand in the way of the next one, and what cannot be done is refused with
 * one sentence and the right exit status. Method: prep_main in a child process on small texts;
 * death by a limit on file size, whose signal kills in the middle of a write.
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/bpe.h"
#include "io/dataset.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGS_MAX 24

/* "prep" and the words of line, with '@' standing for the scratch folder; the wait status. What it
 * says goes to the files "out" and "err". */
static int run_limited(rlim_t file_bytes_max, const char *line)
{
    char words[4096], *argv[ARGS_MAX] = {"prep"};
    int argc = 1;
    size_t used = 0;
    for (const char *c = line; *c != '\0'; c++) {
        const char *text = *c == '@' ? scratch_dir() : (char[]){*c, '\0'};
        used += (size_t)snprintf(words + used, sizeof(words) - used, "%s", text);
    }
    for (char *word = strtok(words, " "); word != NULL; word = strtok(NULL, " "))
        argv[argc++] = word;
    assert_true(argc < ARGS_MAX);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {file_bytes_max, file_bytes_max}, no_core = {0, 0};
        if (freopen(scratch_path("out"), "w", stdout) == NULL ||
            freopen(scratch_path("err"), "w", stderr) == NULL ||
            setrlimit(RLIMIT_CORE, &no_core) != 0 || setrlimit(RLIMIT_FSIZE, &limit) != 0)
            _exit(99);
        int code = prep_main(argc, argv);
        fflush(NULL);
        _exit(code);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static int run(const char *line)
{
    int status = run_limited(RLIM_INFINITY, line);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void assert_said(const char *file, const char *what)
{
    char *said = scratch_read(scratch_path(file));
    if (strstr(said, what) == NULL)
        fail_msg("'%s' does not say '%s'", said, what);
    free(said);
}

static void refuse(const char *line, int status, const char *why)
{
    assert_int_equal(run(line), status);
    assert_said("err", why);
    char *said = scratch_read(scratch_path("err"));
    assert_true(strlen(said) > 0 && strchr(said, '\n') == said + strlen(said) - 1);
    free(said);
}

static void succeed(const char *line)
{
    if (run(line) != 0)
        fail_msg("prep %s: %s", line, scratch_read(scratch_path("err")));
}

/* count documents of words, parted by blank lines. */
static void write_text(const char *name, uint32_t count, uint64_t seed)
{
    static const char *const words[] = {"hora", "les", "voda", "v\xc3\xadtr",
                                        "dub",  "kos", "cesta"};
    char *text = mem_alloc(count, 400);
    size_t used = 0;
    for (uint32_t i = 0; i < count; i++) {
        used += (size_t)sprintf(text + used, "%s%u.", i > 0 ? "\n\n" : "", i);
        uint64_t length = 1 + rng_below(seed, 1, i, 30);
        for (uint64_t j = 0; j < length; j++)
            used += (size_t)sprintf(text + used, "%c%s", j % 7 == 6 ? '\n' : ' ',
                                    words[rng_below(seed, i, j, ARRAY_COUNT(words))]);
    }
    scratch_write(name, text);
    mem_free(text);
}

static void open_dataset(struct dataset *dataset, const char *name)
{
    struct err err;
    if (dataset_open(dataset, scratch_path(name), &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(shard_verify(&dataset->train, "train", &err), 0);
    if (dataset->has_val)
        assert_int_equal(shard_verify(&dataset->val, "val", &err), 0);
}

/* Appends the text of document index, which must end with the end-of-text token. */
static void append_document(const struct shard *shard, const struct bpe *bpe, uint64_t index,
                            char *text)
{
    uint64_t start = shard->documents[index];
    uint64_t end =
        index + 1 < shard->document_count ? shard->documents[index + 1] : shard->token_count;
    assert_true(end > start);
    uint32_t *tokens = mem_alloc(end - start, sizeof(*tokens));
    shard_read(shard, start, tokens, end - start);
    assert_int_equal(tokens[end - start - 1], bpe_end_of_text(bpe));
    for (uint64_t i = 0; i + 1 < end - start; i++) {
        size_t bytes;
        const char *token = bpe_token_bytes(bpe, tokens[i], &bytes);
        assert_int_not_equal(tokens[i], bpe_end_of_text(bpe));
        strncat(text, token, bytes);
    }
    mem_free(tokens);
}

/* Takes the documents of both sides in the order of the numbers that they begin with. */
static void check_documents(const char *data, const char *text_name, uint32_t count)
{
    struct err err;
    struct dataset dataset;
    struct bpe *bpe;
    open_dataset(&dataset, data);
    assert_int_equal(bpe_load(&bpe, scratch_path(data), &err), 0);
    assert_int_equal(bpe_hash(bpe), dataset.tokenizer_hash);
    assert_int_equal(dataset.train.document_count + dataset.val.document_count, count);
    assert_true(dataset.has_val && dataset.train.document_count > 0);
    char *expected = scratch_read(scratch_path(text_name));
    char *text = mem_alloc(strlen(expected) + 4096, 1);
    uint64_t train = 0, val = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t at = strlen(text);
        char number[16];
        snprintf(number, sizeof(number), "%u.", i);
        if (train < dataset.train.document_count)
            append_document(&dataset.train, bpe, train, text);
        if (strncmp(text + at, number, strlen(number)) == 0) {
            train++;
        } else {
            text[at] = '\0';
            append_document(&dataset.val, bpe, val++, text);
        }
        if (i + 1 < count)
            strcat(text, "\n\n");
    }
    assert_string_equal(text, expected);
    mem_free(text);
    free(expected);
    bpe_free(bpe);
    dataset_close(&dataset);
}

/* ---------------------------------------------------------------------------------------------
 * What comes out
 * ------------------------------------------------------------------------------------------- */

static void test_documents(void **state)
{
    (void)state;
    write_text("text", 300, 1);
    succeed("@/text --out @/data --split blank --vocab-size 300 --val-fraction 0.1");
    check_documents("data", "text", 300);
    assert_said("out", "300");
    struct dataset dataset;
    open_dataset(&dataset, "data");
    assert_int_equal(dataset.vocab, 300);
    assert_in_range(dataset.val.document_count, 10, 60);
    uint64_t tokens = dataset.val.token_count;
    dataset_close(&dataset);
    /* Another seed chooses other documents. */
    succeed("@/text --out @/seed --split blank --vocab-size 300 --val-fraction 0.1 --seed 9");
    check_documents("seed", "text", 300);
    open_dataset(&dataset, "seed");
    assert_int_not_equal(dataset.val.token_count, tokens);
    dataset_close(&dataset);
}

static void assert_same_file(const char *a, const char *b)
{
    struct err err;
    char *data[2];
    size_t bytes[2];
    assert_int_equal(file_read_all(scratch_path(a), 64 * MIB, &data[0], &bytes[0], &err), 0);
    assert_int_equal(file_read_all(scratch_path(b), 64 * MIB, &data[1], &bytes[1], &err), 0);
    assert_int_equal(bytes[0], bytes[1]);
    assert_memory_equal(data[0], data[1], bytes[0]);
    mem_free(data[0]);
    mem_free(data[1]);
}

/* Several batches of blocks, and documents that cross them. */
static void test_threads(void **state)
{
    (void)state;
    write_text("long", 30000, 2);
    for (int blank = 0; blank < 2; blank++) {
        const char *split = blank ? "blank" : "file";
        char line[256];
        for (int threads = 1; threads <= 3; threads += 2) {
            snprintf(line, sizeof(line),
                     "@/long @/text --out @/t%d --threads %d --split %s --vocab-size 600 --force",
                     threads, threads, split);
            succeed(line);
        }
        assert_same_file("t1/train.tok", "t3/train.tok");
        assert_same_file("t1/val.tok", "t3/val.tok");
        assert_same_file("t1/tokenizer.json", "t3/tokenizer.json");
        assert_same_file("t1/dataset.json", "t3/dataset.json");
    }
    /* The tokenizer that was trained, given back, makes the same tokens. */
    succeed("@/long @/text --out @/given --tokenizer @/t1 --split blank");
    assert_same_file("t1/train.tok", "given/train.tok");
    assert_same_file("t1/tokenizer.json", "given/tokenizer.json");
}

/* One document: its end is val, and nothing between the two is lost. */
static void test_one_document(void **state)
{
    (void)state;
    static const char *const fractions[] = {"0.5", "0.03", "0.0001"};
    for (size_t i = 0; i < ARRAY_COUNT(fractions); i++) {
        struct err err;
        struct dataset dataset;
        struct bpe *bpe;
        char line[256];
        snprintf(line, sizeof(line),
                 "@/long --out @/single --vocab-size 500 --force "
                 "--val-fraction %s",
                 fractions[i]);
        succeed(line);
        assert_said("err", "one document");
        open_dataset(&dataset, "single");
        assert_int_equal(dataset.train.document_count, 1);
        assert_int_equal(dataset.val.document_count, 1);
        uint64_t all = dataset.train.token_count + dataset.val.token_count;
        double share = (double)dataset.val.token_count / (double)all;
        assert_true(share > 0.9 * atof(fractions[i]) && share < 1.1 * atof(fractions[i]) + 0.0001);
        assert_int_equal(bpe_load(&bpe, scratch_path("single"), &err), 0);
        char *expected = scratch_read(scratch_path("long"));
        if (i == 1) {
            /* Quadratic in the text, so once, and of the end only. */
            char *text = mem_alloc(strlen(expected) + 1, 1);
            append_document(&dataset.val, bpe, 0, text);
            assert_string_equal(text, expected + strlen(expected) - strlen(text));
            mem_free(text);
        }
        free(expected);
        bpe_free(bpe);
        dataset_close(&dataset);
    }
    scratch_write("tiny", "word");
    succeed("@/tiny --out @/tinydata --vocab-size 257");
    assert_said("err", "too short");
    struct dataset dataset;
    open_dataset(&dataset, "tinydata");
    assert_false(dataset.has_val);
    assert_int_equal(dataset.train.token_count, 5);
    dataset_close(&dataset);
}

/* Two documents: one on each side, whatever the fraction; equal ones cannot be told apart. */
static void test_two_documents(void **state)
{
    (void)state;
    struct dataset dataset;
    scratch_write("two", "one text\n\nanother text\n");
    succeed("@/two --out @/twodata --split blank --vocab-size 257 --val-fraction 0.001");
    open_dataset(&dataset, "twodata");
    assert_int_equal(dataset.train.document_count, 1);
    assert_int_equal(dataset.val.document_count, 1);
    dataset_close(&dataset);
    succeed("@/two --out @/twodata --split blank --vocab-size 257 --val-fraction 0 --force");
    open_dataset(&dataset, "twodata");
    assert_false(dataset.has_val);
    assert_false(file_exists(scratch_path("twodata/val.tok")));
    assert_int_equal(dataset.train.document_count, 2);
    dataset_close(&dataset);
    scratch_write("equal", "one text\n\none text\n\none text");
    succeed("@/equal --out @/equaldata --split blank --vocab-size 257 --val-fraction 0.5");
    assert_said("err", "begin alike");
    open_dataset(&dataset, "equaldata");
    assert_true(dataset.has_val);
    dataset_close(&dataset);
}

/* ---------------------------------------------------------------------------------------------
 * What is refused
 * ------------------------------------------------------------------------------------------- */

static void test_bad_usage(void **state)
{
    (void)state;
    refuse("--out @/x", 2, "at least one");
    refuse("@/text", 2, "--out");
    refuse("@/text --out @/x --vocab-size 256", 2, "257");
    refuse("@/text --out @/x --vocab-size 300 --tokenizer @/t1", 2, "one of them");
    refuse("@/text --out @/x --val-fraction 0.6", 2, "0.5");
    refuse("@/text --out @/x --threads 0", 2, "--threads");
    refuse("@/text --out @/x --split word", 2, "--split");
    refuse("@/text --out @/x --format word", 2, "--format");
    refuse("@/text --out @/x --outt y", 2, "--outt");
    assert_false(file_exists(scratch_path("x")));
    assert_int_equal(run("--help"), 0);
    assert_said("out", "spillway prep");
}

static void test_bad_input(void **state)
{
    (void)state;
    scratch_write("empty", "");
    scratch_write("blank", " \n\n");
    refuse("@/nowhere --out @/x", 1, "nowhere");
    refuse("@/empty --out @/x", 1, "no text");
    refuse("@/text --out @/x --tokenizer @/nowhere", 1, "nowhere");
    refuse("@/text --out @/x --tokenizer @/text", 1, "text");
    refuse("@/text --out @/x --ram-budget 20M", 1, "--ram-budget ");
    refuse("@/text --out @/x --vocab-size 1000000 --ram-budget 100M", 1, "this tokenizer");
    assert_false(file_exists(scratch_path("x")));
    refuse("@/text --out @/x --format jsonl --tokenizer @/t1", 1, "malformed");
    refuse("@/blank --out @/x --split blank --tokenizer @/t1", 1, "no text");
    assert_false(file_exists(scratch_path("x/dataset.json")));
}

/* Tokens as other trainers have them, written beside ours and taken again: the same data. */
static void test_other_trainers(void **state)
{
    (void)state;
    static const struct {
        const char *format, *train, *val;
    } cases[] = {
        {"nanogpt", "train.bin", "val.bin"},
        {"llmc", "train_000001.bin", "val_000001.bin"},
        {"megatron", "train.bin", "val.bin"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const char *format = cases[i].format;
        char line[512];
        snprintf(line, sizeof(line),
                 "@/text --out @/%s --split blank --vocab-size 400 --val-fraction 0.2 "
                 "--shard-format %s",
                 format, format);
        succeed(line);
        snprintf(line, sizeof(line), "@/%s/%s @/%s/%s --format %s --tokenizer @/%s --out @/%s-back",
                 format, cases[i].train, format, cases[i].val, format, format, format);
        succeed(line);
        struct dataset ours, back;
        char name[64];
        snprintf(name, sizeof(name), "%s-back", format);
        open_dataset(&ours, format);
        open_dataset(&back, name);
        assert_true(ours.has_val && back.has_val);
        assert_int_equal(back.train.contents_checksum, ours.train.contents_checksum);
        assert_int_equal(back.val.contents_checksum, ours.val.contents_checksum);
        dataset_close(&ours);
        dataset_close(&back);
    }
    /* Without a file for it, val gets documents by their hash. */
    succeed("@/nanogpt/train.bin --format nanogpt --tokenizer @/nanogpt --out @/split "
            "--val-fraction 0.3");
    struct dataset whole, split;
    open_dataset(&whole, "nanogpt");
    open_dataset(&split, "split");
    assert_true(split.has_val && split.val.document_count > 0);
    assert_int_equal(split.train.token_count + split.val.token_count, whole.train.token_count);
    dataset_close(&whole);
    dataset_close(&split);
    refuse("@/nanogpt/train.bin --format nanogpt --out @/x", 2, "--tokenizer");
    refuse("@/text --shard-format tar --out @/x", 2, "--shard-format takes");
    refuse("@/text --format llmc --tokenizer @/nanogpt --out @/x", 1, "text");
}

static void test_existing_out(void **state)
{
    (void)state;
    succeed("@/text --out @/exists --vocab-size 300");
    refuse("@/text --out @/exists --vocab-size 300", 1, "--force");
    succeed("@/two --out @/exists --vocab-size 260 --force");
    struct dataset dataset;
    open_dataset(&dataset, "exists");
    assert_int_equal(dataset.vocab, 260);
    dataset_close(&dataset);
    scratch_write("model/tokenizer.json", "{}");
    refuse("@/text --out @/model --vocab-size 300", 1, "tokenizer.json");
    assert_false(file_exists(scratch_path("model/train.tok")));
}

/* The kernel's own count of the most that prep held stays under --ram-budget, also for a text whose
 * words never repeat; the tokenizer is then learned from part of it. */
static void test_budget(void **state)
{
    (void)state;
    if (!mem_heap_has_stats())
        skip(); /* the sanitizers' heap is not held to a budget */
    const size_t bytes = 24 * MIB;
    struct err err;
    char *text = mem_alloc(bytes, 1);
    for (size_t i = 0; i < bytes; i += 8)
        memcpy(text + i, &(uint64_t){rng_u64(4, 0, i)}, 8);
    assert_int_equal(file_replace(scratch_path("random"), text, bytes, &err), 0);
    mem_free(text);
    succeed("@/random --format text --out @/budget --vocab-size 5000 --threads 2 --ram-budget 88M");
    assert_said("err", "% of the text");
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_CHILDREN, &usage), 0);
    assert_true((uint64_t)usage.ru_maxrss * KIB <= 88 * MIB);

    /* Which part does not depend on the number of threads, though each has a table of its own. */
    succeed(
        "@/random --format text --out @/budget1 --vocab-size 5000 --threads 1 --ram-budget 88M");
    char *two = scratch_read(scratch_path("budget/tokenizer.json"));
    char *one = scratch_read(scratch_path("budget1/tokenizer.json"));
    assert_string_equal(one, two);
    free(one);
    free(two);
}

/* ---------------------------------------------------------------------------------------------
 * Death
 * ------------------------------------------------------------------------------------------- */

static void test_killed(void **state)
{
    (void)state;
    struct err err;
    struct dataset dataset;
    char line[256];
    uint32_t killed = 0;
    write_text("short", 100, 3);
    for (rlim_t limit = 0, n = 0; limit < 20000; limit += 1237, n++) {
        snprintf(line, sizeof(line), "@/short --out @/killed%d --split blank --vocab-size 400",
                 (int)n);
        int status = run_limited(limit, line);
        if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
            break;
        killed += WIFSIGNALED(status);
        snprintf(line, sizeof(line), "killed%d", (int)n);
        assert_int_not_equal(dataset_open(&dataset, scratch_path(line), &err), 0);
        /* The next one does not trip over what is left. */
        snprintf(line, sizeof(line), "@/short --out @/killed%d --split blank --vocab-size 400",
                 (int)n);
        succeed(line);
        snprintf(line, sizeof(line), "killed%d", (int)n);
        check_documents(line, "short", 100);
    }
    assert_true(killed > 3);
}

/* Killed while it replaces a dataset: the old one is no longer taken for whole either. */
static void test_killed_while_replacing(void **state)
{
    (void)state;
    struct err err;
    struct dataset dataset;
    succeed("@/text --out @/replaced --split blank --vocab-size 300");
    int status = run_limited(5000, "@/text --out @/replaced --vocab-size 400 --force");
    assert_true(WIFSIGNALED(status));
    assert_int_not_equal(dataset_open(&dataset, scratch_path("replaced"), &err), 0);
    assert_non_null(strstr(err.message, "dataset.json is missing"));
    succeed("@/text --out @/replaced --split blank --vocab-size 300");
    check_documents("replaced", "text", 300);
}

int main(void)
{
    const struct CMUnitTest tests[] = {

        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_one_document),
        cmocka_unit_test(test_two_documents),
        cmocka_unit_test(test_bad_usage),
        cmocka_unit_test(test_bad_input),
        cmocka_unit_test(test_existing_out),
        cmocka_unit_test(test_other_trainers),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_killed_while_replacing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
