/*
 * Property: the page of a sweep is written whole, whatever the sweep: one row, none that works,
 * very many, very long names; the CSV beside it has a line for each row. Skipped without gnuplot.
 */
#include "core/base.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/sweep.h"
#include "tools/sweep_page.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t count(const char *text, const char *what)
{
    size_t n = 0;
    for (; (text = strstr(text, what)); text += strlen(what))
        n++;
    return n;
}

static char *write_page(const struct sweep_shape *shape)
{
    struct err err;
    struct json_value *root = sweep_results(shape);
    if (sweep_page_write(root, scratch_dir(), &err))
        fail_msg("%s", err.message);
    json_free(root);
    return scratch_read(scratch_path("index.html"));
}

static void test_shapes(void **state)
{
    (void)state;
    if (system("gnuplot --version >/dev/null 2>&1") != 0) {
        printf("SKIPPED: gnuplot is not installed (package gnuplot-nox)\n");
        skip();
    }
    static const struct {
        struct sweep_shape shape;
        size_t plots;
    } cases[] = {
        {{4, 2, 3, 1, false, false}, 1}, /* six lines */
        {{1, 2, 1, 1, false, false}, 0}, /* nothing that goes to the right */
        {{4, 1, 1, 1, false, false}, 1}, {{1, 1, 1, 1, true, false}, 0},
        {{4, 2, 3, 1, true, false}, 0},  {{8, 4, 3, 1, false, false}, 3}, /* a plot for each GPU */
        {{8, 4, 4, 4, false, false}, 0},                                  /* too many to draw */
        {{4, 2, 3, 1, false, true}, 1},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        const struct sweep_shape *s = &cases[i].shape;
        char *text = write_page(s);
        size_t rows = s->rams * s->ssds * s->gpus * s->batches;
        assert_int_equal(count(text, "<svg class=\"plot\""), cases[i].plots);
        assert_int_equal(count(text, "<section>"), count(text, "</section>"));
        assert_non_null(strstr(text, "</html>"));
        assert_null(strstr(text, "<that>"));
        assert_null(strstr(text, ">nan"));
        char *csv = scratch_read(scratch_path("results.csv"));
        assert_int_equal(count(csv, "\n"), rows + 1);
        free(csv);
        free(text);
    }
}

/* Smaller moments are told in the head; the usual ones go without saying. */
static void test_moments_are_told(void **state)
{
    (void)state;
    for (int small = 0; small < 2; small++) {
        struct err err;
        struct json_value *root = sweep_results(&(struct sweep_shape){1, 1, 1, 1, true, false});
        json_set_string(root, "optimizer_state", small ? "8bit" : "fp32");
        if (sweep_page_write(root, scratch_dir(), &err))
            fail_msg("%s", err.message);
        json_free(root);
        char *text = scratch_read(scratch_path("index.html"));
        assert_int_equal(count(text, "8bit moments") > 0, small);
        assert_int_equal(count(text, "fp32 moments"), 0);
        free(text);
    }
}

static void test_no_place(void **state)
{
    (void)state;
    struct err err;
    struct json_value *root = sweep_results(&(struct sweep_shape){1, 1, 1, 1, true, false});
    assert_true(sweep_page_write(root, scratch_path("nowhere"), &err) < 0);
    assert_non_null(strstr(err.message, "nowhere"));
    json_free(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_moments_are_told),
        cmocka_unit_test(test_no_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
