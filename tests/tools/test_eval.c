/*
 * Property: eval prints the loss that train calls val_loss, the same from the run and from its
 * export, and refuses data that the model was not made for. (That the loss is right to the last
 * bit: tests/offload/test_infer.c.)
 */
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int setup(void **state)
{
    (void)state;
    struct config ignored;
    command_data("data", 1);
    command_data("other", 77);
    command_model(&ignored, "small", 2, 32, 32, COMMAND_VOCAB + 50);
    command_must(train_main, "train --model @/small.json --data @/data --out @/run --nvme @/nvme "
                             "--seq 16 --batch 4 --steps 6 --lr 1e-2 --warmup 0 --eval-every 6");
    command_must(export_main, "export --run @/run --out @/hf");
    return 0;
}

/* The number after this word in the last output. */
static double number(const char *word)
{
    const char *found = strstr(command_out(), word);
    if (!found)
        fail_msg("'%s' does not say '%s'", command_out(), word);
    return strtod(found + strlen(word), NULL);
}

static void test_val_loss(void **state)
{
    (void)state;
    char *metrics = scratch_read(scratch_path("run/metrics.jsonl"));
    const char *found = strstr(metrics, "\"val_loss\": ");
    assert_non_null(found);
    double trained = strtod(found + strlen("\"val_loss\": "), NULL);
    free(metrics);
    command_must(eval_main, "eval --run @/run --data @/data --steps 8");
    assert_true(fabs(number("val loss") - trained) < 1e-6);
    assert_true(fabs(number("perplexity") / exp(trained) - 1) < 1e-3);
    assert_true(number("tokens") == 8 * 4 * 16);
    assert_true(number("commit") == 6);
}

static void test_folder_is_the_same(void **state)
{
    (void)state;
    command_must(eval_main, "eval --run @/run --data @/data");
    double loss = number("val loss"), tokens = number("tokens");
    assert_true(tokens >= 600); /* all of the 700, but for a window that is not full */
    command_must(eval_main, "eval --model @/hf --data @/data");
    assert_true(number("val loss") == loss && number("tokens") == tokens);
}

static void test_options(void **state)
{
    (void)state;
    command_must(eval_main, "eval --run @/run --data @/data --seq 8 --batch 2 --steps 3");
    assert_true(number("tokens") == 8 * 2 * 3);
    command_must(eval_main, "eval --run @/run --data @/data --precision fp32");
    double fp32 = number("val loss");
    command_must(eval_main, "eval --run @/run --data @/data --precision bf16");
    double bf16 = number("val loss");
    assert_true(fp32 != bf16 && fabs(fp32 - bf16) < 0.02 * fp32);
    command_must(eval_main, "eval --help");
    assert_non_null(strstr(command_out(), "spillway eval --run"));
}

static void test_refusals(void **state)
{
    (void)state;
    command_refused(eval_main, "eval", 2, "--run");
    command_refused(eval_main, "eval --run @/run", 2, "--data");
    command_refused(eval_main, "eval --run @/run --data @/data --steps x", 2, "--steps");
    command_refused(eval_main, "eval --run @/run --data @/none", 1, "@/none");
    command_refused(eval_main, "eval --run @/none --data @/data", 1, "@/none");
    command_refused(eval_main, "eval --run @/run --data @/data --seq 33", 1, "1 to 32");
    command_refused(eval_main, "eval --run @/run --data @/data --batch 4000000000", 1, "--batch");
}

static void test_other_tokenizer(void **state)
{
    (void)state;
    char *mine = scratch_read(scratch_path("data/tokenizer.json"));
    char *other = scratch_read(scratch_path("other/tokenizer.json"));
    assert_string_not_equal(mine, other); /* else this test says nothing */
    free(mine);
    free(other);
    command_refused(eval_main, "eval --run @/run --data @/other", 1, "another tokenizer");
    command_refused(eval_main, "eval --model @/hf --data @/other", 1, "another tokenizer");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_val_loss),        cmocka_unit_test(test_folder_is_the_same),
        cmocka_unit_test(test_options),         cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_other_tokenizer),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
