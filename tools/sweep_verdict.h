/*
 * sweep_verdict: what the rows of a sweep say, in plain words: which configuration is fastest, what
 * a step up of each thing brings with all else equal, where more changes nothing, what binds, what
 * wears out, what was refused.
 *
 * An axis is a thing that differs between rows. Two rows are a pair of an axis when they differ in
 * nothing else; only pairs are compared. The sentences are in sweep_words.c. Owns copies of
 * nothing: names are borrowed from the parsed results.json, which outlives it. Called by
 * tools/sweep_page.c. Refuses results without rows.
 */
#ifndef SPILLWAY_TOOLS_SWEEP_VERDICT_H
#define SPILLWAY_TOOLS_SWEEP_VERDICT_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct json_value;

enum sweep_kind {
    SWEEP_RAM,
    SWEEP_VRAM,
    SWEEP_SSD, /* the drive: its name and its rates */
    SWEEP_SSDS,
    SWEEP_CPU,
    SWEEP_RAM_SPEED,
    SWEEP_GPU,
    SWEEP_GPUS,
    SWEEP_BATCH,
    SWEEP_ACCUM,
    SWEEP_KIND_COUNT
};

#define SWEEP_LANES      6
#define SWEEP_LABEL_MAX  128
#define SWEEP_VALUES_MAX 64
#define SWEEP_ROWS_MAX   4096
#define SWEEP_NOTHING    0.03 /* a change of less than 3 % is none: predictions are no better */

extern const char *const sweep_lane_key[SWEEP_LANES];  /* as in results.json */
extern const char *const sweep_lane_name[SWEEP_LANES]; /* "reading from the SSD" */

struct sweep_row {
    const struct json_value *json; /* borrowed */
    double tokens_per_s;           /* NAN when refused */
    double predicted_s, measured_s, bound_s;
    double ssd_days_left;             /* NAN when there is no limit, or none is known */
    int bound_lane;                   /* index of sweep_lane_key; -1: unknown */
    bool by_machine;                  /* RAM is told by the machine's size, not by the budget */
    const char *refused;              /* the reason, or NULL */
    uint16_t value[SWEEP_KIND_COUNT]; /* which value of each kind, in its order */
};

/* The values of a kind in the order of "more": sizes and counts by number, drives by their speed,
 * processors and GPUs by the speed of their fastest row. */
struct sweep_axis {
    enum sweep_kind kind;
    size_t value_count;
    char label[SWEEP_VALUES_MAX][SWEEP_LABEL_MAX];
    double number[SWEEP_VALUES_MAX]; /* sizes and counts; else the position */
};

struct sweep {
    const struct json_value *json; /* borrowed */
    struct sweep_row *rows;        /* owned */
    size_t row_count, refused_count;
    bool measured;
    struct sweep_axis *kinds;               /* owned, one for each kind */
    enum sweep_kind axes[SWEEP_KIND_COUNT]; /* those that vary, and follow from no other */
    size_t axis_count;
    size_t best; /* row; row_count when all were refused */
};

int sweep_read(struct sweep *sweep, const struct json_value *results, struct err *err);
void sweep_deinit(struct sweep *sweep); /* zeroed is legal */

/* Whether two rows differ in this axis and in no other. */
bool sweep_is_pair(const struct sweep *sweep, size_t a, size_t b, enum sweep_kind axis);

/* What going from one value of an axis to the next one up brings, over all pairs. */
struct sweep_step {
    size_t pair_count;
    double low, high;         /* times as fast: least and most */
    size_t low_row, high_row; /* the upper row of those pairs */
    size_t newly_fits;        /* pairs of which only the upper one was not refused */
};
void sweep_step(const struct sweep *sweep, enum sweep_kind axis, size_t from, size_t to,
                struct sweep_step *step);

/* The smallest value of the axis within SWEEP_NOTHING of the best, with all else as in row; its
 * row. row itself must not be refused. */
size_t sweep_knee(const struct sweep *sweep, enum sweep_kind axis, size_t row);

/* The smallest row within SWEEP_NOTHING of the best: by how many steps up its values are. */
size_t sweep_modest(const struct sweep *sweep);

/* Steps up from the smallest configuration that works, each the one that brings most: what to buy,
 * in this order. Batch and accum are not for sale, and stay. Returns how many; from[i], to[i] are
 * rows, axis[i] what changes. */
#define SWEEP_PATH_MAX 8
struct sweep_path {
    size_t count;
    size_t from[SWEEP_PATH_MAX], to[SWEEP_PATH_MAX];
    enum sweep_kind axis[SWEEP_PATH_MAX];
};
void sweep_find_path(const struct sweep *sweep, struct sweep_path *path);

/* "64 GB, 990 PRO, RTX 3060": what varies, of that row, without axis `except` (or
 * SWEEP_KIND_COUNT); "this machine" when nothing does. */
#define SWEEP_NAME_MAX 512
const char *sweep_name(const struct sweep *sweep, size_t row, enum sweep_kind except,
                       char text[SWEEP_NAME_MAX]);
const char *sweep_axis_name(enum sweep_kind axis); /* "RAM", "the SSD" */

/* The words; text has a line for each of several things. Each is one paragraph or sentence, through
 * `say`; strong: the words before it, or NULL. */
enum sweep_tone { SWEEP_HEADLINE, SWEEP_POINT, SWEEP_ALARM };
struct sweep_speaker {
    void (*say)(void *context, enum sweep_tone tone, const char *strong, const char *text);
    void *context;
};
void sweep_speak(const struct sweep *sweep, const struct sweep_speaker *speaker);

#endif
