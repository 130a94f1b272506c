/*
 * Property: gnuplot's plot arrives as one whole SVG in the page's colours, whatever the data and
 * the strings are; without gnuplot, and when it refuses a script, one sentence says so. Skipped
 * without gnuplot, but for the sentence about that.
 */
#include "core/mem.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tools/plot.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void need_gnuplot(void)
{
    if (system("gnuplot --version >/dev/null 2>&1") == 0)
        return;
    printf("SKIPPED: gnuplot is not installed (package gnuplot-nox)\n");
    skip();
}

/* Draws, and demands what holds for every plot. */
static char *draw(const struct plot *plot)
{
    struct err err;
    char *svg;
    if (plot_draw(plot, &svg, &err))
        fail_msg("%s", err.message);
    assert_int_equal(strncmp(svg, "<svg class=\"plot\" viewBox=\"0 0 ", 31), 0);
    assert_string_equal(svg + strlen(svg) - 7, "</svg>\n");
    static const char *const foreign[] = {"rgb(",  "black", " width=\"430\"", "<?xml",
                                          "xlink", " id=",  "<defs",          "font-family"};
    for (size_t i = 0; i < sizeof(foreign) / sizeof(*foreign); i++)
        if (strstr(svg, foreign[i]))
            fail_msg("'%s' is in %s", foreign[i], svg);
    size_t depth = 0, opened = 0;
    for (const char *c = svg; *c; c++) {
        if (strncmp(c, "<g>", 3) == 0 || strncmp(c, "<g ", 3) == 0) {
            depth++;
            opened++;
        } else if (strncmp(c, "</g>", 4) == 0) {
            assert_true(depth-- > 0);
        }
    }
    assert_true(depth == 0 && opened > 0);
    return svg;
}

static void test_styles(void **state)
{
    (void)state;
    need_gnuplot();
    const double x[] = {1, 2, 3}, y[] = {2, 1, 3}, high[] = {3, 2, 4};
    const struct plot_series series[] = {
        {PLOT_BAND, 0, x, y, high, 3},
        {PLOT_LINE, 0, x, y, NULL, 3},
        {PLOT_POINTS, 7, x, y, NULL, 3},
        {PLOT_DASHED, 2, x, y, NULL, 3},
    };
    char *svg = draw(&(struct plot){.label = "all",
                                    .x_label = "step",
                                    .series = series,
                                    .series_count = 4,
                                    .y_from_zero = true});
    assert_non_null(strstr(svg, "var(--c0)"));
    assert_non_null(strstr(svg, "var(--c7)"));
    assert_non_null(strstr(svg, "var(--soft)"));
    assert_non_null(strstr(svg, "<circle"));
    assert_non_null(strstr(svg, "fill-opacity"));
    assert_non_null(strstr(svg, "stroke-dasharray"));
    mem_free(svg);
}

/* Nothing, one point, one value, holes, large and small numbers. */
static void test_data(void **state)
{
    (void)state;
    need_gnuplot();
    const double x[] = {5, 6, 7}, same[] = {2, 2, 2}, zero[] = {0, 0, 0};
    const double holes[] = {NAN, 1, INFINITY}, large[] = {1e12, 2e12, 3e12};
    const struct plot_series cases[] = {
        {PLOT_LINE, 0, x, same, NULL, 0},  {PLOT_LINE, 0, x, same, NULL, 1},
        {PLOT_LINE, 0, x, same, NULL, 3},  {PLOT_LINE, 0, x, zero, NULL, 3},
        {PLOT_LINE, 0, x, holes, NULL, 3}, {PLOT_LINE, 0, x, large, NULL, 3},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        for (int from_zero = 0; from_zero < 2; from_zero++)
            mem_free(draw(&(struct plot){
                .label = "", .series = &cases[i], .series_count = 1, .y_from_zero = from_zero}));
}

static void test_strings(void **state)
{
    (void)state;
    need_gnuplot();
    const double x[] = {1, 2}, y[] = {1, 2};
    const struct plot_series series = {PLOT_LINE, 0, x, y, NULL, 2};
    const char *const ticks[] = {"it's <b>\n'; !touch hacked", "{/Bold a_b^c} \\\" čaj"};
    char *svg = draw(&(struct plot){.label = "\"<&>\"",
                                    .x_label = "a'b; system('touch hacked')",
                                    .series = &series,
                                    .series_count = 1,
                                    .x_ticks = x,
                                    .ticks = ticks,
                                    .tick_count = 2});
    assert_null(strstr(svg, "<b>"));
    assert_non_null(strstr(svg, "&lt;b>"));
    assert_non_null(strstr(svg, "{/Bold a_b^c}"));
    assert_non_null(strstr(svg, "čaj"));
    assert_non_null(strstr(svg, "aria-label=\"&#34;&#60;&#38;>&#34;\""));
    FILE *hacked = fopen("hacked", "r");
    assert_null(hacked);
    mem_free(svg);
}

static void test_bad_script(void **state)
{
    (void)state;
    need_gnuplot();
    struct err err;
    char *svg;
    assert_int_equal(plot_run("set nonsense\n", "x", &svg, &err), ERR_SYSTEM);
    assert_null(svg);
    assert_non_null(strstr(err.message, "gnuplot could not draw"));
    assert_null(strchr(err.message, '\n'));
    assert_int_equal(plot_run("", "x", &svg, &err), ERR_SYSTEM); /* draws nothing */
}

static void test_missing(void **state)
{
    (void)state;
    struct err err;
    char *svg, *path = strdup(getenv("PATH"));
    setenv("PATH", scratch_dir(), 1);
    int result = plot_run("plot x\n", "x", &svg, &err);
    setenv("PATH", path, 1);
    free(path);
    assert_int_equal(result, ERR_SYSTEM);
    assert_non_null(strstr(err.message, "gnuplot-nox"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_styles),  cmocka_unit_test(test_data),
        cmocka_unit_test(test_strings), cmocka_unit_test(test_bad_script),
        cmocka_unit_test(test_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
