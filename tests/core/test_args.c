/*
 * args: what each kind of option takes and refuses, that refusals name the option and the nearest
 * one, and that --help comes from the table.
 */
#include "tests/shared/check.h"
#include "core/args.h"
#include "core/base.h"
#include "tests/shared/scratch.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
    bool flag, steps_given;
    const char *out;
    uint64_t steps, ram, daily;
    double lr, max_time;
} got;

static const struct args_option options[] = {
    {"resume", ARGS_FLAG, &got.flag, NULL, "go on from the last commit", NULL},
    {"out", ARGS_STRING, &got.out, "RUN", "the folder of the run", NULL},
    {"steps", ARGS_U64, &got.steps, "N", "how many steps (default 100)", &got.steps_given},
    {"ram-budget", ARGS_SIZE, &got.ram, "SIZE", "bytes of RAM", NULL},
    {"write-budget", ARGS_DAILY, &got.daily, "SIZE/day", "bytes a day", NULL},
    {"lr", ARGS_DOUBLE, &got.lr, "X", "the learning rate", NULL},
    {"max-time", ARGS_DURATION, &got.max_time, "TIME", "when to stop", NULL},
    {"a-name-that-is-longer-than-the-column", ARGS_U64, &got.steps, "N", "long", NULL},
};
static const char *positional[2];
static struct args_command command = {
    .name = "train",
    .summary = "Trains a model.",
    .usage = "--out RUN [options]",
    .example = "spillway train --out run",
    .options = options,
    .option_count = ARRAY_COUNT(options),
    .positional = positional,
    .positional_max = ARRAY_COUNT(positional),
};
static struct err err;

/* Parses up to four words; NULL ends them. */
static int parse(const char *a, const char *b, const char *c, const char *d)
{
    const char *words[] = {"train", a, b, c, d, NULL};
    int count = 1;
    while (words[count] != NULL)
        count++;
    memset(&got, 0, sizeof(got));
    err.code = 0;
    err.message[0] = 0;
    return args_parse(&command, count, (char **)(uintptr_t)words, &err);
}

static void refused(const char *a, const char *b, const char *says)
{
    assert_int_equal(parse(a, b, NULL, NULL), ERR_USAGE);
    assert_int_equal(err.code, ERR_USAGE);
    if (strstr(err.message, says) == NULL)
        fail_msg("\"%s\" does not say \"%s\"", err.message, says);
}

static void test_values(void **state)
{
    (void)state;
    assert_int_equal(parse(NULL, NULL, NULL, NULL), 0);
    assert_false(got.steps_given);
    assert_int_equal(parse("--steps", "12", "--out=run", "--resume"), 0);
    assert_int_equal(got.steps, 12);
    assert_true(got.steps_given && got.flag);
    assert_string_equal(got.out, "run");
    assert_int_equal(parse("--lr", "3e-4", "--max-time", "1.5h"), 0);
    assert_true(got.lr == 3e-4);
    assert_true(got.max_time == 5400);
    assert_int_equal(parse("--out=", "--ram-budget=1.5G", "--steps=18446744073709551615", NULL), 0);
    assert_string_equal(got.out, "");
    assert_int_equal(got.ram, 3 * GIB / 2);
    assert_true(got.steps == UINT64_MAX);
    assert_int_equal(parse("--write-budget", "2T/day", NULL, NULL), 0);
    assert_int_equal(got.daily, (uint64_t)2 << 40);
    assert_int_equal(parse("--write-budget=1.5G", NULL, NULL, NULL), 0);
    assert_int_equal(got.daily, 3 * GIB / 2);
    assert_int_equal(parse("--write-budget=0", NULL, NULL, NULL), 0);
    assert_int_equal(got.daily, 0);
    /* A single dash may begin a value; the last one given counts. */
    assert_int_equal(parse("--out", "-", "--out", "-x"), 0);
    assert_string_equal(got.out, "-x");
}

static void test_positional(void **state)
{
    (void)state;
    assert_int_equal(parse("a", "--steps", "3", "b"), 0);
    assert_int_equal(command.positional_count, 2);
    assert_string_equal(positional[0], "a");
    assert_string_equal(positional[1], "b");
    assert_int_equal(parse("--", "--steps", "-", NULL), 0);
    assert_string_equal(positional[0], "--steps");
    assert_int_equal(parse("a", "b", "c", NULL), ERR_USAGE);
    assert_non_null(strstr(err.message, "\"c\""));
    command.positional = NULL;
    refused("a", NULL, "\"a\" is no option");
    command.positional = positional;
}

static void test_refusals(void **state)
{
    (void)state;
    refused("--step", "3", "did you mean --steps?");
    refused("--ram-buget", "3", "did you mean --ram-budget?");
    refused("--zzzzzzzzzzzz", NULL, "unknown option --zzzzzzzzzzzz");
    assert_null(strstr(err.message, "did you mean"));
    refused("-r", NULL, "two dashes");
    refused("--steps", NULL, "--steps needs a value: --steps N");
    refused("--steps", "--resume", "--steps needs a value");
    refused("--resume=yes", NULL, "takes no value");
    refused("--steps", "ten", "--steps: \"ten\"");
    refused("--steps", "-3", "whole number");
    refused("--steps", "3.5", "whole number");
    refused("--steps", "18446744073709551616", "whole number");
    refused("--lr", "nan", "no number");
    refused("--lr", "inf", "no number");
    refused("--lr", "-1", "no number");
    refused("--lr", "0x10", "no number");
    refused("--lr", "1e-3x", "no number");
    refused("--lr", "1e999", "no number");
    refused("--max-time", "8w", "no time");
    refused("--max-time", "8hours", "no time");
    refused("--ram-budget", "", "no size");
    static const char *const not_daily[] = {"",        "/day",     "2T/week",    "2T/days",
                                            "2T /day", "/day/day", "2T/day/day", "many/day"};
    for (size_t i = 0; i < ARRAY_COUNT(not_daily); i++)
        refused("--write-budget", not_daily[i], "no size a day");
    refused("--write-budget", "0000000000000000000000000000000000000001T", "no size a day");
    /* Longer than any option, as a name and as a word. */
    char longest[300];
    memset(longest, 'a', sizeof(longest));
    memcpy(longest, "--", 2);
    longest[sizeof(longest) - 1] = 0;
    refused(longest, NULL, "unknown option");
}

static void test_sizes(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},          {"312M", 327155712},
                {"1k", 1024},      {"1.5G", 3 * GIB / 2},
                {".5K", 512},      {"1T", GIB * 1024},
                {"4GiB", 4 * GIB}, {"4gb", 4 * GIB},
                {"4096", 4096},    {"9007199254740993", 9007199254740993u},
                {"0.3K", 307}};
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        uint64_t bytes = 1;
        assert_int_equal(args_parse_size(good[i].text, &bytes, &err), 0);
        assert_true(bytes == good[i].bytes);
    }
    static const char *const bad[] = {"",     "M",    "-1",  "1X",   "1MM",      "1 M",   "1M ",
                                      "0x10", "infM", "nan", "1e30", "9999999T", "1.5.2K"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        uint64_t bytes;
        assert_int_equal(args_parse_size(bad[i], &bytes, &err), ERR_USAGE);
        assert_non_null(strstr(err.message, "312M"));
    }
}

/* stdout goes to a file for the time of the call. */
static void test_help(void **state)
{
    (void)state;
    const char *path = scratch_path("help");
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    assert_non_null(freopen(path, "w", stdout));
    int result = parse("--steps", "3", "--help", NULL);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    assert_int_equal(result, 1);
    char *text = scratch_read(path);
    for (size_t i = 0; i < ARRAY_COUNT(options); i++) {
        assert_non_null(strstr(text, options[i].name));
        assert_non_null(strstr(text, options[i].help));
    }
    assert_non_null(strstr(text, "usage: spillway train --out RUN [options]"));
    assert_non_null(strstr(text, "example:\n  spillway train --out run\n"));
    assert_non_null(strstr(text, "  --ram-budget SIZE"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),   cmocka_unit_test(test_positional),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_help),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
