/*
 * Property: sweep makes a row of every combination, under the names that are promised, with what
 * was asked in it; a combination that cannot work is a row that says why, and words that mean
 * nothing are refused before anything is written. plan --json of the same question gives the same
 * answer. Method: the commands in child processes; the results are read back. (--measure runs the
 * program itself: tests/system/sweep.sh.)
 */
#include "core/base.h"
#include "core/json.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SWEEP "sweep --out @/report --cpu 7950x3d --ssd 990pro-2tb "

static int setup(void **state)
{
    (void)state;
    unsetenv("XDG_CONFIG_HOME");
    setenv("HOME", "/nonexistent", 1); /* no profile but the defaults */
    return 0;
}

static struct json_value *results(void)
{
    struct err err;
    struct json_value *root = json_load(scratch_path("report/results.json"), &err);
    if (!root)
        fail_msg("%s", err.message);
    return root;
}

static void check_row(const struct json_value *row)
{
    static const char *const numbers[] = {
        "ram_budget_bytes", "vram_budget_bytes", "ssd_read_bytes_per_s", "gpus",
        "predicted_s",      "bound_s",           "tokens_per_s",         "ssd_read_bytes",
        "ssd_write_bytes",  "ssd_days_left",     "machine_ram_bytes",    "ssds"};
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++)
        if (!isfinite(json_get_number(row, numbers[i], NAN)))
            fail_msg("a row has no %s", numbers[i]);
    assert_non_null(json_get_string(row, "gpu", NULL));
    assert_non_null(json_get_string(row, "bound_lane", NULL));
    double predicted_s = json_get_number(row, "predicted_s", 0);
    assert_true(predicted_s >= 0.999 * json_get_number(row, "bound_s", 0));
    double tokens = json_get_number(row, "tokens", 0);
    assert_true(fabs(tokens / predicted_s / json_get_number(row, "tokens_per_s", 0) - 1) < 1e-9);
    assert_int_equal(tokens, json_get_number(row, "batch", 0) * json_get_number(row, "accum", 0) *
                                 json_get_number(row, "seq", 0));
}

static void test_every_combination(void **state)
{
    (void)state;
    command_must(sweep_main, SWEEP "--model gpt2-774m --gpu rtx3060,rtx3090 --gpus 1,2 "
                                   "--ram 16G,32G,64G --batch 2,4 --seq 512");
    assert_non_null(strstr(command_out(), "24 rows are in"));
    assert_int_equal(access(scratch_path("report/index.html"), R_OK), 0);
    assert_int_equal(access(scratch_path("report/results.csv"), R_OK), 0);
    struct json_value *root = results();
    const struct json_value *rows = json_get(root, "rows");
    assert_int_equal(json_length(rows), 24);
    uint32_t batch_2 = 0, two = 0;
    for (size_t i = 0; i < json_length(rows); i++) {
        const struct json_value *row = json_at(rows, i);
        check_row(row);
        batch_2 += json_get_int(row, "batch", 0) == 2;
        two += json_get_int(row, "gpus", 0) == 2;
    }
    assert_int_equal(batch_2, 12); /* as asked, not one card's share */
    assert_int_equal(two, 12);
    json_free(root);
}

static void test_what_cannot_work_is_a_row(void **state)
{
    (void)state;
    command_must(sweep_main, SWEEP "--model qwen-14b --gpu rtx3060,none --ram 4G,96G "
                                   "--seq 512 --batch 1,4000");
    struct json_value *root = results();
    const struct json_value *rows = json_get(root, "rows");
    uint32_t refused = 0, worked = 0;
    for (size_t i = 0; i < json_length(rows); i++) {
        const char *why = json_get_string(json_at(rows, i), "refused", NULL);
        if (why) {
            assert_true(strlen(why) > 20);
            refused++;
        } else {
            check_row(json_at(rows, i));
            worked++;
        }
    }
    assert_int_equal(refused + worked, 8);
    assert_true(refused > 2 && worked > 0);
    json_free(root);
}

static void test_plan_agrees(void **state)
{
    (void)state;
    struct err err;
    command_must(sweep_main, SWEEP "--model gpt2-774m --gpu rtx3060 --ram 16G --batch 2 --seq 512");
    struct json_value *root = results();
    const struct json_value *row = json_at(json_get(root, "rows"), 0);
    command_must(plan_main, "plan --cpu 7950x3d --ssd 990pro-2tb --model gpt2-774m --gpu rtx3060 "
                            "--ram 16G --batch 2 --seq 512 --json");
    struct json_value *plan = json_parse(command_out(), strlen(command_out()), "plan", &err);
    assert_non_null(plan);
    /* The same placement; plan simulates it chunk by chunk. */
    static const char *const same[] = {"ram_bytes",      "vram_bytes",      "nvme_bytes",
                                       "ssd_read_bytes", "ssd_write_bytes", "tokens"};
    for (size_t i = 0; i < ARRAY_COUNT(same); i++)
        assert_int_equal(json_get_int(row, same[i], -1), json_get_int(plan, same[i], -2));
    double ratio = json_get_number(row, "predicted_s", 0) / json_get_number(plan, "predicted_s", 1);
    assert_true(ratio > 0.92 && ratio < 1.08);
    assert_true(json_length(json_get(plan, "advice")) > 3);
    json_free(plan);
    json_free(root);
}

static void test_bad_words(void **state)
{
    (void)state;
    static const struct {
        const char *line, *what;
        int status;
    } bad[] = {
        {"sweep --model gpt2-124m --gpu rtx3060 --ram 8G", "--out is missing", 2},
        {"sweep --out @/no --gpu rtx3060 --ram 8G", "--model is missing", 2},
        {"sweep --out @/no --model gpt2-124m --gpu rtx999", "rtx999", 2},
        {"sweep --out @/no --model gpt2-124m --gpu rtx3060 --ram 8G,,9G", "--ram", 2},
        {"sweep --out @/no --model gpt2-124m --gpu rtx3060 --ram 8G,12", "--ram", 2},
        {"sweep --out @/no --model gpt2-124m --gpus 2", "--gpus", 2},
        {"sweep --out @/no --model gpt2-124m --gpu rtx3060 --batch 0", "--batch", 2},
        {"sweep --out @/no --model gpt2-124m --gpu rtx3060 --ssd-read x", "--ssd-read", 2},
        {"sweep --out @/no --model gpt2-124m --gpu rtx3060 --seq 5000", "--seq", 2},
        {"sweep --out @/no --model gpt2-124m --gpu rtx3060 --precision fp8", "--precision", 2},
        {"sweep --out @/no --model gpt2-124m --measure --gpu rtx3060", "--gpu", 2},
        {"sweep --out @/no --model gpt2-124m --measure", "--data", 2},
        {"sweep --out @/no --model @/model.json --gpu rtx3060", "num_hidden_layers", 1},
    };
    scratch_write("model.json", "{\"model_type\": \"llama\", \"hidden_size\": 4096}");
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++)
        command_refused(sweep_main, bad[i].line, bad[i].status, bad[i].what);
    assert_int_not_equal(access(scratch_path("no"), F_OK), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_combination),
        cmocka_unit_test(test_what_cannot_work_is_a_row),
        cmocka_unit_test(test_plan_agrees),
        cmocka_unit_test(test_bad_words),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
