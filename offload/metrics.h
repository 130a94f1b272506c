/*
 * metrics: RUN/metrics.jsonl: a line per step and a line per commit (DESIGN section 6). On resume
 * it is cut back to the commit. Allocates nothing after metrics_open.
 */
#ifndef SPILLWAY_OFFLOAD_METRICS_H
#define SPILLWAY_OFFLOAD_METRICS_H

#include "core/err.h"
#include "io/file.h"
#include "offload/place.h"
#include "offload/sched.h"

struct metrics {
    int fd;
    char path[FILE_PATH_MAX];
    int64_t last_commit; /* of which there is a line; -1: none */
    /* To drives by the run so far: its state at first, steps, commits and kept copies, not this
     * log. Found by metrics_open in the lines that there are, those that it cuts off as well: what
     * a killed run has repeated was written twice. The trainer counts it up; every line tells it.
     */
    uint64_t written_bytes;
};

struct metrics_step {
    uint64_t step;
    double loss, grad_norm, clip, lr;
    uint64_t tokens; /* of this step */
    double step_s, predicted_s, bound_s;
    double data_s;             /* of step_s: until the batch was there */
    double plan_s, replayed_s; /* the plan alone, and simulated again; 0: was not asked for */
    enum plan_lane bound_lane;
    uint64_t ram_bytes, ram_peak_bytes, vram_bytes, vram_peak_bytes;
    struct place_least least;
    const struct sched_result *run; /* borrowed */
    bool has_val;
    double val_loss;
};

/* The step of the last commit that the run's log tells of, or -1. */
int64_t metrics_last_commit(const char *run_dir);

/* Opens for appending; keeps only what belongs to steps <= keep_step. */
int metrics_open(struct metrics *metrics, const char *run_dir, uint64_t keep_step, struct err *err);
void metrics_close(struct metrics *metrics);

/* To be called before a commit: what was logged is on the drive then. A failure is not told: the
 * log is no part of the state. */
void metrics_sync(struct metrics *metrics);

int metrics_write_step(struct metrics *metrics, const struct metrics_step *step, struct err *err);
/* rest: what moved for this commit and is in no step's line (the last updates of a run), with the
 * least of it; or both NULL. */
int metrics_write_commit(struct metrics *metrics, uint64_t step, uint64_t weights_hash,
                         uint64_t bytes, double seconds, const struct sched_result *rest,
                         const struct place_least *least, struct err *err);

#endif
