/*
 * advice: what would make training faster, by forecasts of the same training on a changed machine
 * (more RAM, another drive or GPU, a second one) or with a larger step. Called by plan.
 */
#ifndef SPILLWAY_TOOLS_ADVICE_H
#define SPILLWAY_TOOLS_ADVICE_H

#include "offload/forecast.h"
#include "tools/machine.h"

#define ADVICE_MAX 10

struct advice {
    char what[128]; /* "192 GiB of RAM", "a second SSD" */
    double speedup; /* of tokens/s */
    double predicted_s;
};

/* The changes that can be made, the best first; returns how many. request->profile is what
 * machine_compose made of *machine and of *base, the local machine. */
size_t advice_find(struct advice advice[ADVICE_MAX], const struct forecast_request *request,
                   const struct machine_request *machine, const struct profile *base,
                   const struct forecast *now);

#endif
