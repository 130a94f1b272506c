/*
 * log: lines for a person, and one progress line that redraws itself on a terminal.
 *
 * Owns stderr's presentation. Plain lines when stderr is no terminal (or TERM=dumb), at most one
 * progress line every 2 seconds then. Allocates nothing. One thread at a time (the main one).
 */
#ifndef SPILLWAY_CORE_LOG_H
#define SPILLWAY_CORE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A line to stderr; erases a progress line that is being shown, if any. */
void log_line(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* As log_line with "warning: " before it. */
void log_warn(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A bar with rate and time left. total_units 0: unknown. The caller zeroes nothing by hand:
 * log_progress_start fills it; start_units may be set afterwards, where some were done before. */
struct log_progress {
    const char *label; /* borrowed, e.g. "tokenizing" */
    const char *unit;  /* borrowed, e.g. "MB", "steps" */
    double total_units, start_units;
    uint64_t start_ns, last_ns;
};

void log_progress_start(struct log_progress *progress, const char *label, const char *unit,
                        double total_units);

/* Draws when enough time has passed. note (may be NULL) is appended, e.g. "loss 6.21". */
void log_progress_update(struct log_progress *progress, double done_units, const char *note);

/* Ends the line: erases it on a terminal, prints nothing elsewhere. */
void log_progress_end(struct log_progress *progress);

/* "1.4 GiB", "312 MiB", "17 B" into text; returns text. */
#define LOG_BYTES_MAX 32
const char *log_bytes(char text[LOG_BYTES_MAX], uint64_t bytes);

/* "2h03m", "4m05s", "12.3s", "28ms" into text; returns text. */
const char *log_duration(char text[LOG_BYTES_MAX], double seconds);

#endif
