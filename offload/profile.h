/*
 * profile: how fast this machine's lanes are. Starts from cautious defaults of a desktop machine, and
 * learns from what the run measures, so that predictions and bounds on the log line speak of the
 * machine at hand. Never used by the mathematics.
 */
#ifndef SPILLWAY_OFFLOAD_PROFILE_H
#define SPILLWAY_OFFLOAD_PROFILE_H

#include "model/config.h"
#include <stdint.h>

struct profile {
    double compute_flops;      /* per second, matrix products inside whole kernels */
    double h2d_bytes;          /* per second */
    double d2h_bytes;          /* per second */
    double ssd_read_bytes;     /* per second */
    double ssd_write_bytes;    /* per second */
    double cpu_bytes;          /* state and gradient bytes that the optimizer lane passes over */
};

/* The defaults for a device of `cores` cores. */
void profile_init(struct profile *profile, enum precision precision, uint32_t cores);

/* Takes in a measurement: `work` in the unit of *rate (bytes or FLOPs) during busy seconds. Ignores
 * what is too short to mean anything; smooths by halves. */
void profile_learn(double *rate, double work, double busy_s);

#endif
