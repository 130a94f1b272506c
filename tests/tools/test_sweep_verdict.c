/*
 * Property: the words of a sweep's verdict follow from its rows: only rows that differ in one thing
 * are compared, what brings nothing is said to bring nothing, and refusals, wear and misses are
 * told. Small sweeps are written out, so that every number can be checked by hand.
 */
#include "core/base.h"
#include "core/json.h"
#include "tests/shared/check.h"
#include "tests/shared/sweep.h"
#include "tools/sweep_verdict.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define G 1073741824.0

static char words[64 * 1024];
static struct json_value *root;
static struct sweep sweep;

static void hear(void *context, enum sweep_tone tone, const char *strong, const char *text)
{
    (void)context;
    size_t used = strlen(words);
    snprintf(words + used, sizeof(words) - used, "%d %s %s\n", tone, strong ? strong : "", text);
}

/* ram in GB, drive name, its read rate in GB/s, GPU, tokens/s (0: refused). */
struct row {
    double ram;
    const char *ssd;
    double read;
    const char *gpu;
    double speed;
};

static void open_sweep(void)
{
    struct err err;
    if (sweep_read(&sweep, root, &err))
        fail_msg("%s", err.message);
    words[0] = '\0';
    sweep_speak(&sweep, &(struct sweep_speaker){.say = hear});
}

static void read_rows(const struct row *rows, size_t count)
{
    root = json_new_object();
    json_set_string(root, "model", "m");
    struct json_value *array = json_new_array();
    for (size_t i = 0; i < count; i++) {
        struct json_value *row = json_new_object();
        json_set_number(row, "ram_budget_bytes", rows[i].ram * G);
        json_set_string(row, "ssd", rows[i].ssd);
        json_set_number(row, "ssd_read_bytes_per_s", rows[i].read * 1e9);
        json_set_string(row, "gpu", rows[i].gpu);
        json_set_number(row, "vram_budget_bytes",
                        strcmp(rows[i].gpu, "small") == 0 ? 12 * G : 24 * G);
        if (rows[i].speed > 0) {
            json_set_number(row, "tokens_per_s", rows[i].speed);
            json_set_number(row, "predicted_s", 100 / rows[i].speed);
            json_set_number(row, "bound_s", 80 / rows[i].speed);
            json_set_string(row, "bound_lane", "ssd_read");
        } else {
            json_set_string(row, "refused", "too little RAM");
        }
        json_append(array, row);
    }
    json_set(root, "rows", array);
    open_sweep();
}

static int close_sweep(void **state)
{
    (void)state;
    sweep_deinit(&sweep);
    json_free(root);
    root = NULL;
    return 0;
}

static void must_say(const char *what)
{
    if (!strstr(words, what))
        fail_msg("'%s' is not said in:\n%s", what, words);
}

static void must_not_say(const char *what)
{
    if (strstr(words, what))
        fail_msg("'%s' is said in:\n%s", what, words);
}

static const struct row two_drives[] = {
    {192, "T700", 12, "small", 210}, {64, "T700", 12, "small", 190},
    {128, "T700", 12, "small", 200}, {64, "990", 7, "small", 0},
    {128, "990", 7, "small", 100},   {192, "990", 7, "small", 132},
};

static void test_all_else_equal(void **state)
{
    (void)state;
    read_rows(two_drives, ARRAY_COUNT(two_drives));
    assert_int_equal(sweep.axis_count, 2);
    assert_int_equal(sweep.axes[0], SWEEP_RAM);
    assert_int_equal(sweep.axes[1], SWEEP_SSD);
    assert_int_equal(sweep.best, 0);
    assert_int_equal(sweep.refused_count, 1);
    assert_true(sweep_is_pair(&sweep, 0, 1, SWEEP_RAM));
    assert_false(sweep_is_pair(&sweep, 0, 1, SWEEP_SSD));
    assert_false(sweep_is_pair(&sweep, 0, 4, SWEEP_RAM)); /* the drive differs too */
    assert_true(sweep_is_pair(&sweep, 0, 5, SWEEP_SSD));
    assert_false(sweep_is_pair(&sweep, 0, 0, SWEEP_RAM)); /* not with itself */
    struct sweep_step step;
    sweep_step(&sweep, SWEEP_RAM, 1, 2, &step);
    assert_int_equal(step.pair_count, 2);
    assert_true(fabs(step.high - 1.32) < 1e-9 && step.high_row == 5);
    assert_true(fabs(step.low - 1.05) < 1e-9 && step.low_row == 0);
    sweep_step(&sweep, SWEEP_RAM, 0, 1, &step);
    assert_true(step.pair_count == 1 && step.newly_fits == 1);
}

static void test_words_of_steps(void **state)
{
    (void)state;
    read_rows(two_drives, ARRAY_COUNT(two_drives));
    must_say("0  m: the fastest of 5 configurations is 192 GB RAM, T700: 210 tokens/s, a step of "
             "476 ms, 1.25 times its lower bound. What binds there is reading from the SSD.");
    must_say("128 GB → 192 GB: 1.32 times as fast with 990, 1.05 times as fast with T700");
    must_say("64 GB → 128 GB: 1.05 times as fast; 1 more configuration works");
    must_say("within 3 % of the best: 192 GB\n");
    /* With 64 GB the drive has no pair: 128 GB 2.00, 192 GB 1.59. */
    must_say(
        "The SSD: \n990 → T700: 2.00 times as fast with 128 GB RAM, 1.59 times as fast with 192 GB "
        "RAM; 1 more configuration works");
    must_say("What binds: reading from the SSD, everywhere.");
    must_say("Refused: 1 of 6 configurations. Why: too little RAM");
    must_not_say("wears out");
    must_not_say("measured");
}

static void test_plateau_and_knee(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {64, "s", 7, "small", 100},  {96, "s", 7, "small", 150},  {128, "s", 7, "small", 196},
        {160, "s", 7, "small", 200}, {192, "s", 7, "small", 201},
    };
    read_rows(rows, ARRAY_COUNT(rows));
    must_say("64 GB → 96 GB: 1.50 times as fast\n96 GB → 128 GB: 1.31 times as fast\nbeyond 128 GB "
             "nothing changes\nwithin 3 % of the best: 128 GB");
    must_say("Within 3 % of it, and smaller: 128 GB RAM (196 tokens/s).");
    assert_int_equal(sweep_knee(&sweep, SWEEP_RAM, 0), 2);
    assert_int_equal(sweep_modest(&sweep), 2);
    must_say("RAM, 64 GB → 128 GB, brings 1.96 times the speed. So first RAM.");
}

static void test_nothing_helps(void **state)
{
    (void)state;
    static const struct row rows[] = {{64, "s", 7, "small", 100}, {128, "s", 7, "small", 101}};
    read_rows(rows, ARRAY_COUNT(rows));
    must_say("no difference between 64 GB and 128 GB");
    must_say("buy nothing");
}

/* A second thing brings more than the first: it is bought first, and VRAM that comes with a GPU is
 * no axis of its own. */
static void test_what_to_buy(void **state)
{
    (void)state;
    static const struct row rows[] = {
        {64, "s", 7, "small", 100},   {64, "s", 14, "small", 140}, {128, "s", 7, "small", 110},
        {128, "s", 14, "small", 150}, {64, "s", 7, "big", 100},    {64, "s", 14, "big", 141},
        {128, "s", 7, "big", 110},    {128, "s", 14, "big", 200},
    };
    read_rows(rows, ARRAY_COUNT(rows));
    assert_int_equal(sweep.axis_count, 3); /* RAM, SSD, GPU */
    must_say(
        "from the smallest that works, 64 GB RAM, s, 7 GB/s, small (100 tokens/s), the SSD, "
        "s, 7 GB/s → s, 14 GB/s, brings 1.40 times the speed; RAM, 64 GB → 128 GB, brings 1.10 "
        "times "
        "the speed; the GPU alone brings nothing. So first the SSD; then RAM, 64 GB → 128 GB, "
        "brings 1.07 times the speed; and then the GPU, small → big, brings 1.33 times the speed.");
}

static void test_single_and_refused(void **state)
{
    (void)state;
    static const struct row one[] = {{64, "s", 7, "small", 100}};
    static const struct row none[] = {{64, "s", 7, "small", 0}, {128, "s", 7, "small", 0}};
    read_rows(one, 1);
    assert_int_equal(sweep.axis_count, 0);
    must_say("m: 100 tokens/s, a step of 1.00 s, 1.25 times its lower bound. What binds it is");
    must_not_say("What to buy");
    must_not_say("RAM:");
    close_sweep(NULL);
    read_rows(none, 2);
    must_say("m: all 2 configurations were refused.");
    must_say("Refused: 2 of 2 configurations. The first: too little RAM");
    must_not_say("What to buy");
}

static void test_wear_and_measured(void **state)
{
    (void)state;
    static const char text[] =
        "{\"model\": \"m\", \"measured\": true, \"rows\": ["
        "{\"gpus\": 1, \"tokens\": 100, \"predicted_s\": 1, \"measured_s\": 1.1, \"bound_s\": 1, "
        "\"bound_lane\": \"compute\", \"ssd_days_left\": 90},"
        "{\"gpus\": 2, \"tokens\": 100, \"predicted_s\": 0.5, \"measured_s\": 0.55, \"bound_s\": "
        "0.5, "
        "\"bound_lane\": \"h2d\", \"ssd_days_left\": 400}]}";
    struct err err;
    root = json_parse(text, strlen(text), "test", &err);
    assert_non_null(root);
    open_sweep();
    must_say(
        "2 The SSD wears out: with 1 of 2 configurations, training without a pause uses up the "
        "SSD's rated endurance in less than a year: in 90 days with 1 GPU.");
    must_say("of 2 configurations that were measured, a step took 1.10 times what was predicted.");
    must_say("a step of 550 ms (measured)");
    must_say("1 GPU → 2 GPUs: 2.00 times as fast");
    must_say("in 1 of 2 configurations");
}

static void test_bad_results(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", "{\"rows\": []}", "{\"rows\": 3}",
                                        "{\"rows\": {\"a\": 1}}"};
    struct err err;
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        root = json_parse(texts[i], strlen(texts[i]), "test", &err);
        assert_int_equal(sweep_read(&sweep, root, &err), ERR_INPUT);
        close_sweep(NULL);
    }
    /* A row that tells nothing is refused, and no crash. */
    static const char odd[] =
        "{\"rows\": [{}, 7, {\"tokens_per_s\": -1, \"ram_budget_bytes\": \"x\"}]}";
    root = json_parse(odd, strlen(odd), "test", &err);
    open_sweep();
    must_say("all 3 configurations were refused");
}

static void test_large(void **state)
{
    (void)state;
    root = sweep_results(&(struct sweep_shape){.rams = 8, .ssds = 4, .gpus = 3, .batches = 2});
    open_sweep();
    assert_int_equal(sweep.row_count, 192);
    must_say("the fastest of 186 configurations is");
    must_say("beyond 160 GB nothing changes");
    must_say("The SSD wears out:");
    struct sweep_path path;
    sweep_find_path(&sweep, &path);
    for (size_t i = 0; i < path.count; i++) {
        assert_true(sweep_is_pair(&sweep, path.from[i], path.to[i], path.axis[i]));
        assert_true(sweep.rows[path.to[i]].tokens_per_s > sweep.rows[path.from[i]].tokens_per_s);
    }
}

int main(void)
{
#define CASE(test) cmocka_unit_test_teardown(test, close_sweep)
    const struct CMUnitTest tests[] = {
        CASE(test_all_else_equal),    CASE(test_words_of_steps), CASE(test_plateau_and_knee),
        CASE(test_nothing_helps),     CASE(test_what_to_buy),    CASE(test_single_and_refused),
        CASE(test_wear_and_measured), CASE(test_bad_results),    CASE(test_large),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
