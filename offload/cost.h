/*
 * cost: what an op of a plan takes on a machine: the only place where kinds of op meet a profile.
 * Pure. Called by engine_model for every op that it runs, and by bound.c for what a step cannot do
 * without.
 */
#ifndef SPILLWAY_OFFLOAD_COST_H
#define SPILLWAY_OFFLOAD_COST_H

#include "offload/plan.h"
#include "offload/profile.h"

/* Of one op, when it has the machine to itself. */
struct cost {
    double launch_s;  /* handing it over: occupies the lane, and nothing else */
    double work_s;    /* occupies the lane; stretched by what it shares */
    double latency_s; /* after its work: the next op of the lane need not wait for it */
    double cores;     /* that it keeps busy while it works; 0 for what a device or a drive does */
    double ram_bytes; /* that it moves in RAM, reads and writes added up */
};

/* An op of a coarse plan (offload/coarse.h) has the launches and latencies of all ops that it
 * stands for: where rings are short, each waits for the one before.
 *
 * With several devices, each has a share of the batch (place->spec.batch is one device's), copies
 * go over links of their own, and the updates add the gradients of all. */
void cost_of(struct cost *cost, const struct profile *profile, const struct plan *plan,
             const struct plan_op *op);

/* A drive that has reads and writes to do in a phase does each at the rate that it reaches beside
 * the other: what one of them leaves unused the other does not get, because both are always in its
 * queue (measured: reads at 1.45 GB/s beside writes at 1.0 or at 1.5, and 2.4 alone). Where there
 * is little of one kind, the other suffers less: fully from a quarter of its bytes on. factor: of
 * the rate alone, at most 1. */
struct cost_drive {
    double factor[PHASE_COUNT][LANE_COUNT]; /* 1 for lanes that are no drive's */
};
void cost_drive_of(struct cost_drive *drive, const struct profile *profile,
                   const struct plan *plan);

#endif
