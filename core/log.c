#include "core/log.h"
#include "core/base.h"
#include "core/clock.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LINE_BYTES_MAX      4096
#define BAR_CELLS           24
#define TERMINAL_PERIOD_NS  100000000u
#define PLAIN_PERIOD_NS     2000000000u
#define TERMINAL_COLUMNS_80 80

/* Whether a progress line stands on the terminal's last row and has to be erased first. */
static bool progress_shown;

static bool on_terminal(void)
{
    static int known = -1;
    if (known < 0) {
        const char *term = getenv("TERM");
        known = isatty(STDERR_FILENO) && term != NULL && strcmp(term, "dumb") != 0;
    }
    return known == 1;
}

static size_t terminal_columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return TERMINAL_COLUMNS_80;
}

/* One write per line, so that lines of two processes do not mix; stdio would allocate. */
static void put(const char *text, size_t bytes)
{
    ssize_t written = write(STDERR_FILENO, text, bytes);
    (void)written;
}

static void put_line(const char *prefix, const char *format, va_list arguments)
{
    char line[LINE_BYTES_MAX];
    int used = snprintf(line, sizeof(line), "%s%s", progress_shown ? "\r\033[K" : "", prefix);
    vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, arguments);
    size_t bytes = strlen(line);
    line[bytes++] = '\n';
    put(line, bytes);
    progress_shown = false;
}

void log_line(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    put_line("", format, arguments);
    va_end(arguments);
}

void log_warn(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    put_line("warning: ", format, arguments);
    va_end(arguments);
}

void log_progress_start(struct log_progress *progress, const char *label, const char *unit,
                        double total_units)
{
    ASSERT(label != NULL && unit != NULL);
    *progress = (struct log_progress){
        .label = label, .unit = unit, .total_units = total_units, .start_ns = clock_ns()};
    progress->last_ns = progress->start_ns;
}

/* Enough digits to see it move, no more: 0.53, 5.31, 53.1, 531. What is counted (steps, chunks) has
 * a whole total and needs none. */
static int digits_after_point(double value)
{
    return value < 10 ? 2 : value < 100 ? 1 : 0;
}

static int digits_of_total(double total)
{
    return total == floor(total) ? 0 : digits_after_point(total);
}

static size_t format_bar(char *text, size_t size, double fraction)
{
    int filled = (int)(fraction * BAR_CELLS + 0.5);
    char cells[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++)
        cells[i] = i < filled ? '#' : '.';
    cells[BAR_CELLS] = 0;
    return (size_t)snprintf(text, size, " [%s] %3.0f%%", cells, fraction * 100);
}

static size_t format_progress(char *line, size_t size, const struct log_progress *progress,
                              double done_units, const char *note)
{
    double elapsed_s = (double)(progress->last_ns - progress->start_ns) * 1e-9;
    double rate = elapsed_s > 0 ? (done_units - progress->start_units) / elapsed_s : 0;
    size_t used = (size_t)snprintf(line, size, "%.60s", progress->label);
    if (progress->total_units > 0) {
        double fraction = fmin(fmax(done_units / progress->total_units, 0), 1);
        if (on_terminal())
            used += format_bar(line + used, size - used, fraction);
        used += (size_t)snprintf(line + used, size - used, " %.*f/%.*f %.20s",
                                 digits_of_total(progress->total_units), done_units,
                                 digits_of_total(progress->total_units), progress->total_units,
                                 progress->unit);
    } else {
        used += (size_t)snprintf(line + used, size - used, " %.*f %.20s",
                                 digits_after_point(done_units), done_units, progress->unit);
    }
    used += (size_t)snprintf(line + used, size - used, ", %.*f %.20s/s", digits_after_point(rate),
                             rate, progress->unit);
    if (progress->total_units > 0 && rate > 0) {
        char left[LOG_BYTES_MAX];
        double left_units = fmax(progress->total_units - done_units, 0);
        used += (size_t)snprintf(line + used, size - used, ", %s left",
                                 log_duration(left, left_units / rate));
    }
    if (note != NULL)
        used += (size_t)snprintf(line + used, size - used, ", %.200s", note);
    return used;
}

void log_progress_update(struct log_progress *progress, double done_units, const char *note)
{
    uint64_t now_ns = clock_ns();
    uint64_t period_ns = on_terminal() ? TERMINAL_PERIOD_NS : PLAIN_PERIOD_NS;
    if (now_ns - progress->last_ns < period_ns)
        return;
    progress->last_ns = now_ns;
    char line[1024] = "\r\033[K";
    size_t start = on_terminal() ? strlen(line) : 0;
    size_t used =
        start + format_progress(line + start, sizeof(line) - start - 1, progress, done_units, note);
    ASSERT(used < sizeof(line) - 1);
    if (on_terminal()) {
        /* A line that wraps could not be erased. */
        used = MIN(used, start + terminal_columns() - 1);
        progress_shown = true;
    } else {
        line[used++] = '\n';
    }
    put(line, used);
}

void log_progress_end(struct log_progress *progress)
{
    ASSERT(progress->label != NULL);
    if (progress_shown)
        put("\r\033[K", 4);
    progress_shown = false;
}

const char *log_bytes(char text[LOG_BYTES_MAX], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    size_t unit = 0;
    /* 1023.95 and more would print as 1024.0. */
    while (value >= 1023.95 && unit + 1 < ARRAY_COUNT(units)) {
        value /= 1024;
        unit++;
    }
    int digits = unit == 0 || value >= 99.95 || value == floor(value) ? 0 : 1;
    snprintf(text, LOG_BYTES_MAX, "%.*f %s", digits, value, units[unit]);
    return text;
}

const char *log_duration(char text[LOG_BYTES_MAX], double seconds)
{
    if (!(seconds >= 0) || seconds > 1e9) {
        snprintf(text, LOG_BYTES_MAX, "?");
        return text;
    }
    uint64_t whole = (uint64_t)(seconds + 0.5);
    unsigned day = (unsigned)(whole / 86400), hour = (unsigned)(whole / 3600 % 24);
    unsigned minute = (unsigned)(whole / 60 % 60), second = (unsigned)(whole % 60);
    if (seconds >= 0.0005 && seconds < 0.0995)
        snprintf(text, LOG_BYTES_MAX, "%.0fms", seconds * 1e3);
    else if (seconds < 59.95)
        snprintf(text, LOG_BYTES_MAX, "%.1fs", seconds);
    else if (whole < 3600)
        snprintf(text, LOG_BYTES_MAX, "%um%02us", minute, second);
    else if (whole < 86400)
        snprintf(text, LOG_BYTES_MAX, "%uh%02um", hour, minute);
    else
        snprintf(text, LOG_BYTES_MAX, "%ud%02uh", day, hour);
    return text;
}
