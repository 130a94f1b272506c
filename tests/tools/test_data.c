/*
 * Property: data tells what is in a folder: documents, tokens, bytes of text and lengths as they
 * are, the beginnings of documents as text, and whether tokens are those that their text gives.
 * Method: a folder whose documents are written here, one of them in other tokens than the
 * tokenizer's.
 */
#include "core/base.h"
#include "core/json.h"
#include "io/bpe.h"
#include "io/dataset.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"

#include <stdio.h>
#include <string.h>

static void add_document(struct shard_writer *writer, const struct bpe *bpe, const char *text,
                         bool by_bytes)
{
    struct err err;
    uint32_t tokens[256];
    size_t bytes = strlen(text), count = 0;
    assert_true(bytes + 1 < ARRAY_COUNT(tokens));
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    for (size_t done = 0; done < bytes; done += by_bytes ? 1 : bytes)
        count += bpe_encode(encoder, text + done, by_bytes ? 1 : bytes, tokens + count,
                            ARRAY_COUNT(tokens) - count);
    tokens[count++] = bpe_end_of_text(bpe);
    assert_int_equal(shard_writer_add(writer, tokens, count, &err), 0);
    bpe_encoder_free(encoder);
}

static const char refrain[] = "hey ho, hey ho, hey ho; \xc5\xbelu\xc5\xa5, hey ho\n";

/* The folder: two documents to train on and one to validate with. */
static void make_data(const char *name, bool by_bytes)
{
    struct err err;
    struct bpe *bpe;
    struct shard_writer *train, *val;
    char path[FILE_PATH_MAX];
    struct bpe_trainer *trainer = bpe_trainer_new(PRETOKEN_LLAMA3);
    bpe_trainer_add(trainer, refrain, strlen(refrain));
    assert_int_equal(bpe_train(&bpe, trainer, 261, &err), 0);
    assert_int_equal(file_make_dirs(scratch_path(name), &err), 0);
    assert_int_equal(bpe_save(bpe, scratch_path(name), &err), 0);
    assert_int_equal(file_join(path, scratch_path(name), DATASET_TRAIN_FILE, &err), 0);
    assert_int_equal(shard_writer_open(&train, path, bpe_vocab_size(bpe), bpe_hash(bpe), &err), 0);
    assert_int_equal(file_join(path, scratch_path(name), DATASET_VAL_FILE, &err), 0);
    assert_int_equal(shard_writer_open(&val, path, bpe_vocab_size(bpe), bpe_hash(bpe), &err), 0);
    add_document(train, bpe, refrain, by_bytes);
    add_document(train, bpe, "x\x1b[2Jy\xff", false);
    add_document(val, bpe, "hey", false);
    assert_int_equal(shard_writer_close(train, &err), 0);
    assert_int_equal(shard_writer_close(val, &err), 0);
    assert_int_equal(dataset_seal(scratch_path(name), true, json_new_object(), &err), 0);
    bpe_trainer_free(trainer);
    bpe_free(bpe);
}

static void assert_says(const char *what)
{
    if (strstr(command_out(), what) == NULL)
        fail_msg("'%s' is not in:\n%s", what, command_out());
}

static void test_shows(void **state)
{
    (void)state;
    make_data("data", false);
    command_must(data_main, "data @/data");
    assert_says("a vocabulary of 261, text cut as llama3 has it, tokens of 2 bytes");
    /* 39 and 7 bytes of text in the one, 3 in the other. */
    assert_says("train               2");
    assert_says("               46");
    assert_says("val                 1");
    assert_says("         2 to 3                     1");
    assert_says(
        "checked 3 documents, 49 B of text: text -> tokens -> text is exact, and the tokens "
        "are the same");
    /* Samples in order, since three are all; nothing that moves the cursor comes through. */
    assert_says("train, document 0 (");
    assert_says("hey ho, hey ho, hey ho; \xc5\xbelu\xc5\xa5, hey ho ");
    assert_says("x [2Jy\xef\xbf\xbd");
    assert_says("val, document 0 (3 tokens):\n  hey\n");
    assert_null(strchr(command_out(), '\x1b'));
    command_must(data_main, "data @/data --samples 0 --check 0");
    assert_null(strstr(command_out(), "hey"));
    assert_null(strstr(command_out(), "checked"));
}

static void test_other_tokens(void **state)
{
    (void)state;
    make_data("bytes", true);
    command_must(data_main, "data @/bytes");
    assert_says("text -> tokens -> text is exact; 1 have other tokens");
}

static void test_refused(void **state)
{
    (void)state;
    command_refused(data_main, "data", 2, "say which data");
    scratch_write("empty/readme", "nothing");
    command_refused(data_main, "data @/empty", 1, "holds no prepared data");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shows),
        cmocka_unit_test(test_other_tokens),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
