/*
 * Properties: every line is one JSON object with all the names that DESIGN section 6 promises,
 * whatever the numbers are (JSON knows no infinity: null then); opening for a resumed run keeps
 * exactly the lines up to the commit and cuts what is later, torn, foreign or filled with zeros, as
 * a drive that lost power leaves it. Method: files written by hand and by the module itself, read
 * back with the JSON parser; a torn end is tried at every byte of a line.
 */
#include "core/base.h"
#include "core/json.h"
#include "offload/metrics.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *run_dir(void)
{
    struct err err;
    const char *dir = scratch_path("run");
    assert_int_equal(file_make_dirs(dir, &err), 0);
    return dir;
}

static void open_metrics(struct metrics *metrics, uint64_t keep_step)
{
    struct err err;
    if (metrics_open(metrics, run_dir(), keep_step, &err) != 0)
        fail_msg("%s", err.message);
}

static struct metrics_step example(const struct sched_result *result)
{
    return (struct metrics_step){
        .step = 12,
        .loss = 3.25,
        .grad_norm = 0.5,
        .clip = 1,
        .lr = 6e-4,
        .tokens = 1024,
        .step_s = 0.5,
        .predicted_s = 0.25,
        .bound_s = 0.125,
        .bound_lane = LANE_SSD_READ,
        .ram_bytes = 1,
        .ram_peak_bytes = 2,
        .vram_bytes = 3,
        .vram_peak_bytes = 4,
        .least = {.ssd_read_bytes = 5, .ssd_write_bytes = 6, .h2d_bytes = 7, .d2h_bytes = 8},
        .run = result,
    };
}

static struct sched_result example_result(void)
{
    struct sched_result result = {0};
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        result.bytes[lane] = UINT64_MAX - lane; /* the longest that a number can get */
        result.busy_ns[lane] = UINT64_MAX;
    }
    return result;
}

/* The only line of a fresh file, parsed. */
static struct json_value *written(const struct metrics_step *step)
{
    struct metrics metrics;
    struct err err;
    unlink(scratch_path("run/metrics.jsonl"));
    open_metrics(&metrics, 0);
    assert_int_equal(metrics_write_step(&metrics, step, &err), 0);
    metrics_sync(&metrics);
    metrics_close(&metrics);
    char *text = scratch_read(scratch_path("run/metrics.jsonl"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
    struct json_value *line = json_parse(text, strlen(text), "metrics", &err);
    if (!line)
        fail_msg("%s", err.message);
    free(text);
    return line;
}

static void test_names(void **state)
{
    (void)state;
    static const char *const numbers[] = {
        "step",
        "loss",
        "grad_norm",
        "clip",
        "lr",
        "tokens",
        "step_s",
        "data_s",
        "predicted_s",
        "bound_s",
        "tokens_per_s",
        "ram_bytes",
        "ram_peak_bytes",
        "vram_bytes",
        "vram_peak_bytes",
        "h2d_bytes",
        "d2h_bytes",
        "ssd_read_bytes",
        "ssd_write_bytes",
        "ssd_read_least_bytes",
        "ssd_write_least_bytes",
        "ssd_written_total_bytes",
    };
    struct sched_result result = {.bytes = {[LANE_H2D] = 70, [LANE_SSD_READ] = 50},
                                  .busy_ns = {[LANE_CPU] = 1500000000}};
    struct metrics_step step = example(&result);
    struct json_value *line = written(&step);
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++)
        if (!(json_number(json_get(line, numbers[i]), NAN) >= 0))
            fail_msg("%s is missing", numbers[i]);
    assert_string_equal(json_get_string(line, "bound_lane", ""), "ssd_read");
    assert_true(json_get_number(line, "loss", 0) == 3.25);
    assert_true(json_get_number(line, "tokens_per_s", 0) == 2048);
    assert_int_equal(json_get_int(line, "h2d_bytes", 0), 70);
    assert_int_equal(json_get_int(line, "ssd_read_bytes", 0), 50);
    assert_int_equal(json_get_int(line, "ssd_read_least_bytes", 0), 5);
    assert_int_equal(json_get_int(line, "ssd_write_least_bytes", 0), 6);
    const struct json_value *busy = json_get(line, "busy_s");
    assert_int_equal(json_length(busy), LANE_COUNT);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        assert_true(json_get_number(busy, plan_lane_name[lane], -1) ==
                    (lane == LANE_CPU ? 1.5 : 0));
    assert_null(json_get(line, "val_loss"));
    json_free(line);
    step.has_val = true;
    step.val_loss = 4.5;
    line = written(&step);
    assert_true(json_get_number(line, "val_loss", 0) == 4.5);
    json_free(line);
}

static void test_extreme_numbers(void **state)
{
    (void)state;
    struct sched_result result = example_result();
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        result.bytes[lane] = INT64_MAX; /* what a JSON parser still takes for a whole number */
    struct metrics_step step = example(&result);
    step.step = step.tokens = step.ram_bytes = step.ram_peak_bytes = INT64_MAX;
    step.vram_bytes = step.vram_peak_bytes = INT64_MAX;
    step.least = (struct place_least){INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
    step.grad_norm = -1.23456789e-300;
    step.clip = step.lr = step.predicted_s = step.bound_s = step.val_loss = -1.23456789e300;
    step.has_val = true;
    step.loss = NAN;
    struct json_value *line = written(&step);
    assert_non_null(json_get(line, "loss"));
    assert_true(isnan(json_number(json_get(line, "loss"), NAN)));
    assert_int_equal(json_get_int(line, "step", 0), INT64_MAX);
    json_free(line);
    step.loss = INFINITY;
    step.step_s = 0; /* tokens per second would be infinite */
    line = written(&step);
    assert_true(isnan(json_number(json_get(line, "tokens_per_s"), NAN)));
    json_free(line);
}

static void test_commit_line(void **state)
{
    (void)state;
    struct metrics metrics;
    struct err err;
    unlink(scratch_path("run/metrics.jsonl"));
    open_metrics(&metrics, 0);
    assert_int_equal(metrics_write_commit(&metrics, 7, 0xabcd, 4096, 0.25, NULL, NULL, &err), 0);
    metrics_close(&metrics);
    char *text = scratch_read(scratch_path("run/metrics.jsonl"));
    struct json_value *line = json_parse(text, strlen(text), "metrics", &err);
    assert_non_null(line);
    assert_int_equal(json_get_int(line, "commit", 0), 7);
    assert_string_equal(json_get_string(line, "weights_hash", ""), "000000000000abcd");
    assert_int_equal(json_get_int(line, "commit_write_bytes", 0), 4096);
    assert_true(json_get_number(line, "commit_s", 0) == 0.25);
    json_free(line);
    free(text);
}

/* ---- Cutting back -----------------------------------------------------------------------------
 */

#define LINE_1   "{\"step\": 1, \"loss\": 1}\n"
#define LINE_2   "{\"step\": 2, \"loss\": 1}\n"
#define COMMIT_2 "{\"commit\": 2, \"weights_hash\": \"00\"}\n"
#define LINE_3   "{\"step\": 3, \"loss\": 1}\n"

static void write_file(const char *text, size_t bytes)
{
    run_dir();
    FILE *file = fopen(scratch_path("run/metrics.jsonl"), "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, bytes, file), bytes);
    fclose(file);
}

static void check_kept(const char *text, size_t bytes, uint64_t keep_step, const char *kept)
{
    struct metrics metrics;
    struct err err;
    write_file(text, bytes);
    open_metrics(&metrics, keep_step);
    /* What follows is appended there. */
    assert_int_equal(metrics_write_commit(&metrics, 9, 0, 0, 0, NULL, NULL, &err), 0);
    metrics_close(&metrics);
    char *found = scratch_read(scratch_path("run/metrics.jsonl"));
    size_t kept_bytes = strlen(kept);
    assert_memory_equal(found, kept, kept_bytes);
    assert_int_equal(strncmp(found + kept_bytes, "{\"commit\": 9, ", 14), 0);
    assert_ptr_equal(strchr(found + kept_bytes, '\n'), found + strlen(found) - 1);
    free(found);
}

static void check_text(const char *text, uint64_t keep_step, const char *kept)
{
    check_kept(text, strlen(text), keep_step, kept);
}

static void test_cut_back(void **state)
{
    (void)state;
    static const char all[] = LINE_1 LINE_2 COMMIT_2 LINE_3;
    check_text(all, 0, "");
    check_text(all, 1, LINE_1);
    check_text(all, 2, LINE_1 LINE_2 COMMIT_2);
    check_text(all, 3, all);
    check_text(all, UINT64_MAX, all);
    check_text("", 5, "");
    unlink(scratch_path("run/metrics.jsonl"));
    struct metrics metrics;
    open_metrics(&metrics, 5);
    metrics_close(&metrics);
    assert_int_equal(access(scratch_path("run/metrics.jsonl"), F_OK), 0);
}

/* What a killed run did after its commit is cut off, and was written all the same. */
static void test_written_bytes(void **state)
{
    (void)state;
    static const char text[] = "{\"step\": 1, \"ssd_written_total_bytes\": 100}\n"
                               "{\"commit\": 1, \"ssd_written_total_bytes\": 120}\n"
                               "{\"step\": 2, \"ssd_written_total_bytes\": 220}\n"
                               "{\"step\": 3, \"ssd_written_total_bytes\": 3";
    struct metrics metrics;
    struct err err;
    write_file(text, sizeof(text) - 1);
    open_metrics(&metrics, 1);
    assert_int_equal(metrics.written_bytes, 220);
    metrics.written_bytes += 5;
    assert_int_equal(metrics_write_commit(&metrics, 2, 0, 0, 0, NULL, NULL, &err), 0);
    metrics_close(&metrics);
    open_metrics(&metrics, 2);
    assert_int_equal(metrics.written_bytes, 225);
    assert_int_equal(metrics.last_commit, 2);
    metrics_close(&metrics);
    unlink(scratch_path("run/metrics.jsonl"));
    open_metrics(&metrics, 2);
    assert_int_equal(metrics.written_bytes, 0);
    metrics_close(&metrics);
}

static void test_torn_end(void **state)
{
    (void)state;
    static const char whole[] = LINE_1 LINE_2;
    for (size_t bytes = sizeof(LINE_1) - 1; bytes < sizeof(whole) - 1; bytes++)
        check_kept(whole, bytes, 5, LINE_1);
}

static void test_foreign_ends(void **state)
{
    (void)state;
    check_text(LINE_1 "\n" LINE_2, 5, LINE_1);
    check_text(LINE_1 "step 2\n", 5, LINE_1);
    check_text(LINE_1 "{\"loss\": 2}\n" LINE_2, 5, LINE_1);
    check_text(LINE_1 "{\"step\": -2}\n", 5, LINE_1);
    /* Blocks that were given to the file and never written read as zeros. */
    static const char zeros[] = LINE_1 "\0\0\0\0\n" LINE_2;
    check_kept(zeros, sizeof(zeros) - 1, 5, LINE_1);
    static const char inside[] = LINE_1 "{\"step\": 2\0\0\0\0";
    check_kept(inside, sizeof(inside) - 1, 5, LINE_1);
    char longer[10000];
    memset(longer, 'x', sizeof(longer));
    memcpy(longer, LINE_1 LINE_2, 2 * (sizeof(LINE_1) - 1));
    check_kept(longer, sizeof(longer), 5, LINE_1 LINE_2);
}

static void test_errors(void **state)
{
    (void)state;
    struct metrics metrics;
    struct err err;
    assert_true(metrics_open(&metrics, scratch_path("no-such-folder"), 0, &err) < 0);
    assert_non_null(strstr(err.message, "no-such-folder"));
    metrics_close(&metrics);
    /* A full disk is told, with the file's name. */
    metrics.fd = open("/dev/full", O_WRONLY);
    strcpy(metrics.path, "metrics-on-a-full-disk");
    struct sched_result result = {0};
    struct metrics_step step = example(&result);
    assert_true(metrics_write_step(&metrics, &step, &err) < 0);
    assert_non_null(strstr(err.message, "metrics-on-a-full-disk"));
    metrics_close(&metrics);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),       cmocka_unit_test(test_extreme_numbers),
        cmocka_unit_test(test_commit_line), cmocka_unit_test(test_cut_back),
        cmocka_unit_test(test_torn_end),    cmocka_unit_test(test_foreign_ends),
        cmocka_unit_test(test_errors),      cmocka_unit_test(test_written_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
