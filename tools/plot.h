/*
 * plot: a line plot as SVG text for a page (tools/page.h), drawn by gnuplot, which runs as a child
 * without a shell: the script goes in and the SVG comes back through memory, so no file is left
 * half written.
 *
 * The SVG has no size and no colours of its own: it fills its box, and its lines and text take the
 * page's CSS variables (--ink, --soft, --grid, --c0 ... --c7), so that it follows dark mode. Names
 * of lines are not drawn: a legend in HTML wraps on a phone (page_legend). Called by tools/report.c
 * and tools/sweep_page.c; tools/bench_table.c has a script and a file of its own (plot_write).
 * Refuses nothing but points that are not finite, which are left out.
 */
#ifndef SPILLWAY_TOOLS_PLOT_H
#define SPILLWAY_TOOLS_PLOT_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>

#define PLOT_COLOURS 8

enum plot_style {
    PLOT_LINE,
    PLOT_POINTS, /* and the line through them */
    PLOT_DASHED,
    PLOT_BAND, /* between y and y_high, in a faint tone */
};

struct plot_series {
    enum plot_style style;
    unsigned colour; /* --c0 ..., below PLOT_COLOURS */
    const double *x, *y, *y_high;
    size_t count; /* 0 is legal */
};

struct plot {
    const char *label;   /* what a screen reader says; UTF-8 */
    const char *x_label; /* or NULL */
    const struct plot_series *series;
    size_t series_count;
    bool y_from_zero;
    double y_max;             /* 0: that of the data */
    const double *x_ticks;    /* or NULL: where gnuplot likes */
    const char *const *ticks; /* their labels */
    size_t tick_count;
};

/* The SVG in *svg, to be freed with mem_free. ERR_SYSTEM when gnuplot is missing or fails. */
int plot_draw(const struct plot *plot, char **svg, struct err *err);

/* As plot_draw, but of a script whose terminal is set already: for tests, and for what no struct
 * plot can say. Colours: "#a0b0NN" with NN from enum plot_ink. */
int plot_run(const char *script, const char *label, char **svg, struct err *err);

/* What gnuplot draws of that script, whose terminal is set, written to a file as it is. */
int plot_write(const char *script, const char *path, struct err *err);

/* Draws it and drops it: 0 where gnuplot is there and can do what the script asks for. */
int plot_try(const char *script, struct err *err);

/* The last byte of a placeholder colour. */
enum plot_ink { PLOT_INK = 0xe0, PLOT_SOFT, PLOT_GRID, PLOT_SERIES = 0xf0 };

#endif
