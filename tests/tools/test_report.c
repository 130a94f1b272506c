/*
 * Property: report makes one page, and the same numbers as CSV, of any run that has made a step:
 * finished, running (a last line that is cut), of one step or of thousands, without a drive, with
 * fields missing, with a damaged or missing config.json; what is no run is refused in a sentence.
 * train records the timeline that the page shows. Pages are skipped without gnuplot.
 */
#include "core/base.h"
#include "core/json.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"
#include "tools/report_data.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRAIN                                                                                      \
    "train --model @/small.json --data @/data --out @/run --nvme @/nvme --seq 16 --batch 4 "       \
    "--lr 1e-2 --warmup 0 --eval-every 3 --checkpoint-every 3 --trace @/all.trace --resident hi"

static int setup(void **state)
{
    (void)state;
    struct config ignored;
    command_data("data", 1);
    command_model(&ignored, "small", 2, 32, 32, COMMAND_VOCAB + 50);
    command_must(train_main, TRAIN " --steps 6");
    return 0;
}

static void need_gnuplot(void)
{
    if (system("gnuplot --version >/dev/null 2>&1") == 0)
        return;
    printf("SKIPPED: gnuplot is not installed (package gnuplot-nox)\n");
    skip();
}

static size_t count(const char *text, const char *what)
{
    size_t n = 0;
    for (; (text = strstr(text, what)); text += strlen(what))
        n++;
    return n;
}

/* The page of the run in the scratch folder `name`, to be freed. */
static char *report(const char *name)
{
    char line[256];
    snprintf(line, sizeof(line), "report @/%s --out @/pages/%s", name, name);
    need_gnuplot();
    command_must(report_main, line);
    snprintf(line, sizeof(line), "pages/%s/index.html", name);
    char *page = scratch_read(scratch_path(line));
    assert_non_null(strstr(page, "</html>"));
    assert_null(strstr(page, ">nan"));
    assert_null(strstr(page, "-nan"));
    return page;
}

static void must_hold(const char *page, const char *what)
{
    const char *body = strstr(page, "<main>");
    if (!strstr(page, what))
        fail_msg("'%s' is not in %.3000s", what, body ? body : page);
}

static void test_run(void **state)
{
    (void)state;
    char *page = report("run");
    must_hold(page, "step 6 of 6; loss ");
    must_hold(page, "(validation ");
    must_hold(page, "times its lower bound");
    must_hold(page, "written to the drive");
    must_hold(page, "RAM, whole process");
    must_hold(page, "drive: reading");
    must_hold(page, "What sits where");
    assert_int_equal(count(page, "<svg class=\"plot\""), 4);
    assert_true(count(page, "<rect ") > 20); /* the timeline's bars */
    char *commits = scratch_read(scratch_path("pages/run/commits.csv"));
    char *steps = scratch_read(scratch_path("pages/run/steps.csv"));
    assert_int_equal(count(commits, "\n"), 1 + 2);
    assert_int_equal(count(steps, "\n"), 1 + 6);
    free(commits);
    free(steps);
    free(page);
}

/* One step's ops, and all of them are in the whole trace too. */
static void test_timeline_of_train(void **state)
{
    (void)state;
    struct err err;
    struct json_value *one = json_load(scratch_path("run/timeline.json"), &err);
    struct json_value *all = json_load(scratch_path("all.trace"), &err);
    assert_non_null(one);
    assert_non_null(all);
    size_t forwards = 0, updates = 0, all_forwards = 0;
    for (size_t i = 0; i < json_length(one); i++) {
        const char *name = json_get_string(json_at(one, i), "name", "");
        forwards += strncmp(name, "embed_forward", 13) == 0;
        updates += strncmp(name, "update", 6) == 0;
    }
    for (size_t i = 0; i < json_length(all); i++)
        all_forwards +=
            strncmp(json_get_string(json_at(all, i), "name", ""), "embed_forward", 13) == 0;
    assert_int_equal(forwards, 1);
    assert_true(updates > 0);       /* so it is a steady step */
    assert_true(all_forwards >= 6); /* and evaluations */
    json_free(one);
    json_free(all);
    assert_int_not_equal(access(scratch_path("run/timeline.json.tmp"), F_OK), 0);
    /* A call of two steps has no third: what was there stays, and nothing is left over. */
    char *before = scratch_read(scratch_path("run/timeline.json"));
    command_must(train_main, "train --resume --out @/run --steps 8");
    char *after = scratch_read(scratch_path("run/timeline.json"));
    assert_string_equal(before, after);
    assert_int_not_equal(access(scratch_path("run/timeline.json.tmp"), F_OK), 0);
    free(before);
    free(after);
}

/* No folder can be made there: a warning, and the run goes on. */
static void test_timeline_that_cannot_be_written(void **state)
{
    (void)state;
    scratch_write("run3/timeline.json.tmp/in-the-way", "");
    command_must(train_main, "train --model @/small.json --data @/data --out @/run3 --seq 16 "
                             "--batch 4 --steps 4");
    assert_non_null(strstr(command_err(), "warning: there will be no timeline"));
    if (system("gnuplot --version >/dev/null 2>&1") == 0) {
        char *page = report("run3");
        must_hold(page, "There is no timeline");
        assert_null(strstr(page, "drive: reading")); /* there is no NVMe */
        free(page);
    }
}

static void add(char **at, const char *text)
{
    *at += sprintf(*at, "%s", text);
}

static void add_steps(char **at, size_t from, size_t to)
{
    for (size_t s = from; s <= to; s++)
        *at += sprintf(*at,
                       "{\"step\": %zu, \"loss\": %.4f, \"tokens\": 64, \"step_s\": %.3f, "
                       "\"predicted_s\": 0.09, \"bound_s\": 0.08, \"bound_lane\": \"ssd_write\", "
                       "\"tokens_per_s\": 640, \"ssd_write_bytes\": 1000000}\n",
                       s, 2 + 7.0 / (double)s, s % 500 == 0 ? 3.0 : 0.1);
}

static void test_odd_logs(void **state)
{
    (void)state;
    static char text[2 * 1024 * 1024];
    char *at = text;
    add_steps(&at, 1, 1);
    scratch_write("one/metrics.jsonl", text);
    char *page = report("one");
    must_hold(page,
              "a model: step 1; loss 9; 640 tokens/s; writing to the drive binds; a step takes 100 "
              "ms, 1.11 times what was predicted and 1.25 times its lower bound; 1 MB written");
    must_hold(page, "config.json is missing");
    must_hold(page, "None yet");
    free(page);

    add(&at, "{\"step\": 2, \"loss\": 8.5, \"tok");
    scratch_write("cut/metrics.jsonl", text);
    page = report("cut");
    must_hold(page, "step 1; loss 9;");
    must_hold(page, "is not whole and was left out");
    free(page);

    at = text;
    add_steps(&at, 1, 3000);
    add(&at, "nonsense\n{\"commit\": 3000, \"commit_write_bytes\": 5000000}\n");
    scratch_write("long/metrics.jsonl", text);
    page = report("long");
    must_hold(page, "step 3,000; loss 9 → 2.002;");
    must_hold(page, "3 GB written");
    must_hold(page, "Medians of 25 steps each");
    must_hold(page, "1 line of metrics.jsonl could not be read");
    assert_true(strlen(page) < 200 * 1024);
    free(page);

    scratch_write("bare/metrics.jsonl", "{\"step\": 7}\n{\"step\": 8, \"loss\": null}\n");
    scratch_write("bare/config.json", "{\"model\": {}, \"options\": {}, \"hash\": \"0\"}");
    scratch_write("bare/timeline.json", "[{\"name\": 3}, 4, ");
    page = report("bare");
    must_hold(page, "step 8.");
    must_hold(page, "is damaged or was edited");
    must_hold(page, "timeline.json, line 1");
    free(page);
}

static void test_statistics(void **state)
{
    (void)state;
    struct report_data data;
    struct err err;
    static char text[64 * 1024];
    char *at = text;
    add_steps(&at, 1, 9);
    scratch_write("nine/metrics.jsonl", text);
    assert_int_equal(report_load(&data, scratch_path("nine"), &err), 0);
    assert_int_equal(report_steady(&data), 2);
    assert_true(report_quantile(&data, REPORT_STEP, REPORT_FIELD_COUNT, 0, 9, 0.5) == 5);
    assert_true(report_quantile(&data, REPORT_STEP, REPORT_FIELD_COUNT, 0, 9, 0.25) == 3);
    assert_true(report_quantile(&data, REPORT_STEP, REPORT_STEP, 0, 9, 1) == 1);
    assert_true(isnan(report_quantile(&data, REPORT_VAL_LOSS, REPORT_FIELD_COUNT, 0, 9, 0.5)));
    assert_true(isnan(report_quantile(&data, REPORT_STEP, REPORT_FIELD_COUNT, 3, 3, 0.5)));
    assert_true(report_sum(&data, REPORT_SSD_WRITE) == 9e6);
    assert_int_equal(report_bound_lane(&data), 4);
    report_unload(&data);
}

static void test_refusals(void **state)
{
    (void)state;
    command_refused(report_main, "report", 2, "which run");
    command_refused(report_main, "report @/run", 2, "--out");
    command_refused(report_main, "report @/none --out @/p", 1, "@/none is no run");
    command_refused(report_main, "report @/data --out @/p", 1, "no run");
    command_refused(report_main, "report @/small.json --out @/p", 1, "no run");
    scratch_write("empty/metrics.jsonl", "");
    command_refused(report_main, "report @/empty --out @/p", 1, "no step yet");
    scratch_write("odd/metrics.jsonl", "not json\n[1]\n{}\n");
    command_refused(report_main, "report @/odd --out @/p", 1, "no step yet");
    assert_int_not_equal(access(scratch_path("p"), F_OK), 0);
    command_refused(report_main, "report @/run --out @/small.json/p", 1, "@/small.json' is a file");
    command_must(report_main, "report --help");
    assert_non_null(strstr(command_out(), "spillway report run --out"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run),
        cmocka_unit_test(test_timeline_of_train),
        cmocka_unit_test(test_timeline_that_cannot_be_written),
        cmocka_unit_test(test_odd_logs),
        cmocka_unit_test(test_statistics),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
