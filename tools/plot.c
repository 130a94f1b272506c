#include "tools/plot.h"

#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"

#include <errno.h>
#include <math.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Small, since it is scaled to its box: on a phone 430 units become some 340 pixels, and text of 14
 * units is still 11 pixels high. */
#define WIDTH  430
#define HEIGHT 260

/* ---- The child ------------------------------------------------------------------------------- */

/* What gnuplot reads, draws and says. Files in memory, so that no pipe can be full on both sides.
 */
struct child {
    int in, out, said;
};

static int child_open(struct child *child, const char *script, struct err *err)
{
    child->in = memfd_create("script", MFD_CLOEXEC);
    child->out = memfd_create("svg", MFD_CLOEXEC);
    child->said = memfd_create("said", MFD_CLOEXEC);
    size_t bytes = strlen(script);
    if (child->in < 0 || child->out < 0 || child->said < 0 ||
        pwrite(child->in, script, bytes, 0) != (ssize_t)bytes)
        return err_set_errno(err, errno, "cannot hand a plot to gnuplot");
    return 0;
}

static void child_close(struct child *child)
{
    const int fds[] = {child->in, child->out, child->said};
    for (size_t i = 0; i < ARRAY_COUNT(fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* Its status as of waitpid. -d: what stands in ~/.gnuplot is not for these plots. */
static int child_run(const struct child *child, int *status, struct err *err)
{
    char *const argv[] = {"gnuplot", "-d", "-", NULL};
    char *const environment[] = {"LC_ALL=C", "HOME=/", NULL};
    posix_spawn_file_actions_t actions;
    pid_t pid;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, child->in, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, child->out, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, child->said, STDERR_FILENO);
    int failed = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environment);
    posix_spawn_file_actions_destroy(&actions);
    if (failed == ENOENT)
        return err_set(err, ERR_SYSTEM,
                       "gnuplot is not installed, and it draws the plots: install the package "
                       "gnuplot-nox (apt-get install gnuplot-nox)");
    if (failed)
        return err_set_errno(err, failed, "cannot start gnuplot");
    while (waitpid(pid, status, 0) < 0)
        if (errno != EINTR)
            return err_set_errno(err, errno, "cannot wait for gnuplot");
    return 0;
}

/* Zero-terminated beyond *bytes. */
static char *read_all(int fd, size_t *bytes)
{
    struct stat status;
    ASSERT(fstat(fd, &status) == 0);
    char *text = mem_alloc((uint64_t)status.st_size + 1, 1);
    ssize_t got = pread(fd, text, (size_t)status.st_size, 0);
    *bytes = (size_t)MAX(got, 0);
    text[*bytes] = '\0';
    return text;
}

/* gnuplot's complaint: it shows the line, a caret, and then says what is wrong. */
static int complain(const struct child *child, struct err *err)
{
    size_t length;
    char *said = read_all(child->said, &length);
    for (char *c = said; *c; c++)
        if (*c == '\n')
            *c = ' ';
    int result = err_set(err, ERR_SYSTEM, "gnuplot could not draw a plot: %s",
                         length > 300 ? said + length - 300
                         : length     ? said
                                      : "it said nothing");
    mem_free(said);
    return result;
}

/* ---- From gnuplot's colours to the page's ---------------------------------------------------- */

/* What gnuplot writes, and what stands in its place. */
static const struct {
    const char *from, *to;
} replacements[] = {
    {" font-family=\"sans\"", ""},
    {" color=\"black\"", ""},
    {" color=\"white\"", ""},
    {" color=\"gray\"", ""},
    {"\"black\"", "\"var(--ink)\""},
    /* A point refers to a definition whose id would stand in every plot of the page. */
    {"<use xlink:href='#gpPt6'", "<circle r=\"1\" stroke=\"none\" fill=\"currentColor\""},
};

/* Length of what stands at text and is to be left out: groups without contents, the background, ids
 * and titles, which repeat from plot to plot. */
static size_t skipped(const char *text)
{
    static const struct {
        const char *begin, *end;
    } spans[] = {{"<title>", "</title>"},
                 {" id=\"", "\""},
                 {"<defs>", "</defs>"},
                 {"<rect x=\"0\" y=\"0\" ", "/>"}};
    for (size_t i = 0; i < ARRAY_COUNT(spans); i++) {
        size_t length = strlen(spans[i].begin);
        const char *end =
            strncmp(text, spans[i].begin, length) == 0 ? strstr(text + length, spans[i].end) : NULL;
        if (end)
            return (size_t)(end - text) + strlen(spans[i].end);
    }
    const char *close = strncmp(text, "<g ", 3) == 0 ? strchr(text, '>') : NULL;
    return close && strncmp(close, ">\n</g>\n", 7) == 0 ? (size_t)(close - text) + 7 : 0;
}

/* Writes the variable for a placeholder colour at text; returns how much that was. */
static size_t put_colour(FILE *out, const char *text)
{
    int red, green, blue, length = 0;
    if (strncmp(text, "rgb(", 4) != 0 ||
        sscanf(text, "rgb(%d,%d,%d)%n", &red, &green, &blue, &length) != 3 || !length)
        return 0;
    if (red != 0xa0 || green != 0xb0 || blue < PLOT_INK || blue >= PLOT_SERIES + PLOT_COLOURS)
        return 0;
    static const char *const names[] = {"ink", "soft", "grid"};
    if (blue >= PLOT_SERIES)
        fprintf(out, "var(--c%d)", blue - PLOT_SERIES);
    else if (blue < PLOT_INK + (int)ARRAY_COUNT(names))
        fprintf(out, "var(--%s)", names[blue - PLOT_INK]);
    return blue >= PLOT_SERIES || blue < PLOT_INK + (int)ARRAY_COUNT(names) ? (size_t)length : 0;
}

static size_t put_replacement(FILE *out, const char *text)
{
    for (size_t i = 0; i < ARRAY_COUNT(replacements); i++) {
        size_t length = strlen(replacements[i].from);
        if (strncmp(text, replacements[i].from, length) == 0) {
            fputs(replacements[i].to, out);
            return length;
        }
    }
    return 0;
}

static void put_attribute(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '"' || *text == '<' || *text == '&')
            fprintf(out, "&#%d;", *text);
        else
            fputc(*text, out);
    }
}

/* NULL when drawn is no whole SVG. */
static char *restyle(const char *drawn, const char *label)
{
    const char *body = strstr(drawn, "<g id=\"gnuplot_canvas\">");
    const char *box = strstr(drawn, "viewBox=\""), *end = strstr(drawn, "</svg>");
    int width, height;
    if (!body || !end || !box || sscanf(box, "viewBox=\"0 0 %d %d\"", &width, &height) != 2)
        return NULL;
    char *svg = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&svg, &bytes);
    ASSERT(out);
    fprintf(out, "<svg class=\"plot\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", width,
            height);
    put_attribute(out, label);
    fputs("\">", out);
    while (body < end) {
        size_t used = skipped(body);
        if (!used)
            used = put_colour(out, body);
        if (!used)
            used = put_replacement(out, body);
        if (!used)
            fputc(*body, out);
        body += MAX(used, 1);
    }
    fputs("</svg>\n", out);
    fclose(out);
    char *owned = mem_strdup(svg);
    free(svg);
    return owned;
}

/* What gnuplot drew in *drawn, to be freed with mem_free. */
static int draw(const char *script, char **drawn, size_t *bytes, struct err *err)
{
    struct child child;
    int status = 0;
    *drawn = NULL;
    int result = child_open(&child, script, err);
    if (result == 0)
        result = child_run(&child, &status, err);
    if (result == 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
        result = complain(&child, err);
    if (result == 0)
        *drawn = read_all(child.out, bytes);
    child_close(&child);
    return result;
}

int plot_run(const char *script, const char *label, char **svg, struct err *err)
{
    char *drawn;
    size_t bytes;
    *svg = NULL;
    int result = draw(script, &drawn, &bytes, err);
    if (result)
        return result;
    *svg = restyle(drawn, label);
    mem_free(drawn);
    return *svg ? 0 : err_set(err, ERR_SYSTEM, "gnuplot could not draw a plot: it drew no SVG");
}

int plot_try(const char *script, struct err *err)
{
    char *drawn;
    size_t bytes;
    int result = draw(script, &drawn, &bytes, err);
    mem_free(drawn);
    return result;
}

int plot_write(const char *script, const char *path, struct err *err)
{
    char *drawn;
    size_t bytes;
    int result = draw(script, &drawn, &bytes, err);
    if (result == 0)
        result = file_replace(path, drawn, bytes, err);
    mem_free(drawn);
    return result;
}

/* ---- The script ------------------------------------------------------------------------------ */

/* In single quotes only ' means something to gnuplot, and a line's end ends the string. */
static void put_string(FILE *out, const char *text)
{
    fputc('\'', out);
    for (; *text; text++) {
        if (*text == '\'')
            fputc('\'', out);
        fputc((unsigned char)*text < ' ' ? ' ' : *text, out);
    }
    fputc('\'', out);
}

struct range {
    double low, high;
};

static void widen(struct range *range, double value)
{
    if (!isfinite(value))
        return;
    range->low = fmin(range->low, value);
    range->high = fmax(range->high, value);
}

/* A range that gnuplot can draw, whatever there is: nothing, one value, many. */
static struct range margins(struct range range, double part)
{
    if (!(range.low <= range.high))
        return (struct range){0, 1};
    double span = range.high - range.low;
    if (span <= fabs(range.high) * 1e-9)
        span = part > 0 && range.high != 0 ? fabs(range.high) : 1 / fmax(part, 0.5);
    return part > 0 || range.low == range.high
               ? (struct range){range.low - span * fmax(part, 0.05),
                                range.high + span * fmax(part, 0.05)}
               : range;
}

static void find_ranges(const struct plot *plot, struct range *x, struct range *y)
{
    *x = *y = (struct range){INFINITY, -INFINITY};
    for (size_t s = 0; s < plot->series_count; s++) {
        const struct plot_series *series = &plot->series[s];
        for (size_t i = 0; i < series->count; i++) {
            widen(x, series->x[i]);
            widen(y, series->y[i]);
            if (series->style == PLOT_BAND)
                widen(y, series->y_high[i]);
        }
    }
    *x = margins(*x, plot->x_ticks ? 0.04 : 0);
    if (plot->y_from_zero)
        widen(y, 0);
    *y = margins(*y, 0.06);
    if (plot->y_from_zero)
        y->low = 0;
    if (plot->y_max > y->low)
        y->high = plot->y_max;
}

/* 1, 2 or 5 times a power of ten, so that at most so many labels stand at an axis and none touches
 * the next. */
static double tick_step(double span, double most)
{
    double step = pow(10, floor(log10(span / most)));
    const double times[] = {1, 2, 5, 10};
    size_t t = 0;
    while (t + 1 < ARRAY_COUNT(times) && span / (step * times[t]) > most)
        t++;
    return step * times[t];
}

static void put_axes(FILE *out, const struct plot *plot)
{
    struct range x, y;
    find_ranges(plot, &x, &y);
    fprintf(out,
            "set encoding utf8\n"
            "set terminal svg size %d,%d noenhanced font \"sans,14\" linewidth 1.6\n"
            "set border 1 lw 0.6 lc rgb \"#a0b0%02x\"\n"
            "set tics nomirror out scale 0.4,0 textcolor rgb \"#a0b0%02x\"\n"
            "set grid ytics lw 0.6 lc rgb \"#a0b0%02x\" dt solid\n"
            "set lmargin 7.5\nset rmargin 2.5\nset tmargin 0.7\nunset key\n"
            "set xrange [%.9g:%.9g]\nset yrange [%.9g:%.9g]\nset format x \"%%.0f\"\n",
            WIDTH, HEIGHT, PLOT_SOFT, PLOT_SOFT, PLOT_GRID, x.low, x.high, y.low, y.high);
    fprintf(out, "set format y \"%s\"\n", y.high >= 1e5 ? "%.1s%c" : "%g");
    /* Whole steps of training only. */
    fprintf(out, "set xtics %.9g\nset ytics %.9g\n", fmax(tick_step(x.high - x.low, 5), 1),
            tick_step(y.high - y.low, 6));
    if (plot->x_ticks) {
        fputs("set xtics (", out);
        bool first = true;
        for (size_t i = 0; i < plot->tick_count; i++) {
            if (!isfinite(plot->x_ticks[i]))
                continue; /* a row that could not even be asked has no place on the axis */
            fputs(first ? "" : ",", out);
            put_string(out, plot->ticks[i]);
            fprintf(out, " %.9g", plot->x_ticks[i]);
            first = false;
        }
        fputs(")\n", out);
    }
    if (plot->x_label) {
        fputs("set xlabel ", out);
        put_string(out, plot->x_label);
        fprintf(out, " textcolor rgb \"#a0b0%02x\" offset 0,0.4\n", PLOT_SOFT);
    }
}

static void put_data(FILE *out, const struct plot_series *series, size_t number)
{
    fprintf(out, "$d%zu << EOD\n", number);
    for (size_t i = 0; i < series->count; i++) {
        bool band = series->style == PLOT_BAND;
        double high = band ? series->y_high[i] : series->y[i];
        if (isfinite(series->x[i]) && isfinite(series->y[i]) && isfinite(high))
            fprintf(out, "%.9g %.9g %.9g\n", series->x[i], series->y[i], high);
    }
    /* A block without a point is no data to gnuplot, and an error. */
    fputs("NaN NaN NaN\nEOD\n", out);
}

static void put_series(FILE *out, const struct plot_series *series, size_t number)
{
    ASSERT(series->colour < PLOT_COLOURS);
    unsigned colour = PLOT_SERIES + series->colour;
    /* A single point makes no line. */
    bool dots = series->style == PLOT_POINTS || series->count == 1;
    fprintf(out, "%s$d%zu using 1:2%s with ", number ? ", " : "plot ", number,
            series->style == PLOT_BAND ? ":3" : "");
    if (series->style == PLOT_BAND)
        fprintf(out, "filledcurves lc rgb \"#a0b0%02x\" fs transparent solid 0.22 noborder",
                colour);
    else
        fprintf(out, "%s lc rgb \"#a0b0%02x\" dt %d%s", dots ? "linespoints" : "lines", colour,
                series->style == PLOT_DASHED ? 2 : 1, dots ? " pt 7 ps 0.5" : "");
}

int plot_draw(const struct plot *plot, char **svg, struct err *err)
{
    ASSERT(plot->series_count > 0);
    char *script = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&script, &bytes);
    ASSERT(out);
    put_axes(out, plot);
    for (size_t s = 0; s < plot->series_count; s++)
        put_data(out, &plot->series[s], s);
    for (size_t s = 0; s < plot->series_count; s++)
        put_series(out, &plot->series[s], s);
    fputs("\n", out);
    fclose(out);
    int result = plot_run(script, plot->label, svg, err);
    free(script);
    return result;
}
