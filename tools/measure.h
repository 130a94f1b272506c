/*
 * measure: trains for a few steps in a process of its own and reads what its log says: how sweep
 * --measure and the prediction benchmark get their measured times. The child is this program, with
 * budgets enforced as always; its run folder and tier files are removed afterwards.
 */
#ifndef SPILLWAY_TOOLS_MEASURE_H
#define SPILLWAY_TOOLS_MEASURE_H

#include "core/err.h"
#include <stdint.h>

#define MEASURE_WARM_UP_STEPS 2 /* not typical, so not counted */
#define MEASURE_STEPS_MAX     4096

/* Strings are given to train as they are; NULL: not given. */
struct measure_run {
    const char *model, *data, *nvme, *machine, *precision, *optimizer_state;
    const char *ram_budget, *vram_budget, *batch, *accum;
    const char *out;     /* a folder; the run's is made in it */
    uint64_t seq, steps; /* steps: MEASURE_WARM_UP_STEPS + 1 to MEASURE_STEPS_MAX */
};

struct measured {
    double step_s; /* median, without the warm-up */
    uint64_t ram_peak_bytes;
    uint64_t steps; /* that the median is of */
};

/* 0; 1 when train refused, with its sentence in err; or an error. */
int measure_training(const struct measure_run *run, struct measured *measured, struct err *err);

#endif
