/*
 * profile: how fast this machine's lanes are. Starts from cautious defaults of a desktop machine,
 * and learns from what the run measures, so that predictions and bounds on the log line speak of
 * the machine at hand. Never used by the mathematics.
 */
#ifndef SPILLWAY_OFFLOAD_PROFILE_H
#define SPILLWAY_OFFLOAD_PROFILE_H

#include "model/config.h"
#include <stdbool.h>
#include <stdint.h>

/* Per second. The order is that of enum plan_lane. */
enum profile_rate {
    PROFILE_COMPUTE_FLOPS, /* matrix products inside whole kernels */
    PROFILE_H2D_BYTES,
    PROFILE_D2H_BYTES,
    PROFILE_SSD_READ_BYTES,
    PROFILE_SSD_WRITE_BYTES,
    PROFILE_CPU_BYTES, /* state and gradient bytes that the optimizer's lane passes over */
    PROFILE_RATE_COUNT
};

struct profile {
    double rate[PROFILE_RATE_COUNT];
    bool measured[PROFILE_RATE_COUNT]; /* false: still a default */
};

/* The defaults for a device of `cores` cores. */
void profile_init(struct profile *profile, enum precision precision, uint32_t cores);

/* Takes in a measurement: `work` in the rate's unit done in busy_s seconds. The first replaces the
 * default, later ones are smoothed by halves; what is too short to mean anything is ignored. */
void profile_learn(struct profile *profile, enum profile_rate rate, double work, double busy_s);

#endif
