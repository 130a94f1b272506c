/*
 * report_data: what RUN/metrics.jsonl, RUN/config.json and RUN/plan.txt say, for the page of a run
 * (tools/report.c). Reads a run that is being written: a last line that is cut off is left out and
 * counted. A field that a line does not have is NAN.
 */
#ifndef SPILLWAY_TOOLS_REPORT_DATA_H
#define SPILLWAY_TOOLS_REPORT_DATA_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define REPORT_LANES 6 /* as in offload/plan.h, in that order */

enum report_field {
    REPORT_STEP,
    REPORT_LOSS,
    REPORT_VAL_LOSS,
    REPORT_GRAD_NORM,
    REPORT_CLIP,
    REPORT_LR,
    REPORT_TOKENS,
    REPORT_STEP_S,
    REPORT_PREDICTED_S,
    REPORT_BOUND_S,
    REPORT_TOKENS_PER_S,
    REPORT_RAM,
    REPORT_RAM_PEAK,
    REPORT_VRAM,
    REPORT_VRAM_PEAK,
    REPORT_H2D,
    REPORT_H2D_LEAST,
    REPORT_D2H,
    REPORT_D2H_LEAST,
    REPORT_SSD_READ,
    REPORT_SSD_READ_LEAST,
    REPORT_SSD_WRITE,
    REPORT_SSD_WRITE_LEAST,
    REPORT_BUSY, /* of the first lane; the others follow */
    REPORT_FIELD_COUNT = REPORT_BUSY + REPORT_LANES
};

struct report_step {
    double value[REPORT_FIELD_COUNT];
    int bound_lane; /* -1: unknown */
};

struct report_commit {
    double step, write_bytes, seconds;
    double rest_write_bytes; /* updates written for it that are in no step's line; 0: none */
    char weights_hash[24];
};

struct report_data {
    char model[256];
    double parameters;               /* or NAN */
    double seq, batch, accum, steps; /* of the whole run; NAN: unknown */
    double ram_budget, vram_budget;  /* NAN: unknown, or none */
    double nvme_bytes, nvme_budget;
    char precision[16];
    char *placement;          /* owned: the head of plan.txt, or NULL */
    struct report_step *step; /* owned */
    size_t step_count;
    struct report_commit *commit; /* owned */
    size_t commit_count;
    size_t unread_count;    /* lines in the middle that are no JSON */
    bool cut;               /* the last line is not whole */
    char config_note[1100]; /* why config.json was left out; empty: it was not */
};

/* Refuses a folder without metrics.jsonl, and one whose metrics.jsonl tells of no step. */
int report_load(struct report_data *data, const char *run_dir, struct err *err);
void report_unload(struct report_data *data); /* zeroed is legal */

/* Where the steady steps begin: after the first two of the log, and at most the last 200. */
size_t report_steady(const struct report_data *data);

/* The value below which `part` (0 to 1) of the field's values lie, over steps [first, end) that
 * have it, divided by field `over` of the same step unless that is REPORT_FIELD_COUNT. NAN: none.
 */
double report_quantile(const struct report_data *data, enum report_field field,
                       enum report_field over, size_t first, size_t end, double part);
/* Over all steps that have it; 0 when none does. */
double report_sum(const struct report_data *data, enum report_field field);
/* The lane that bound most of the steady steps; -1: unknown. */
int report_bound_lane(const struct report_data *data);

void report_write_steps(const struct report_data *data, FILE *out);   /* CSV */
void report_write_commits(const struct report_data *data, FILE *out); /* CSV */

#endif
