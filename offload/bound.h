/*
 * bound: what a step cannot be faster than on a machine, whatever the schedule (DESIGN section 4).
 *
 * For each phase (forward with the pending updates; backward), the longest of
 *   - each lane's unavoidable work over its rate: bytes of place_least for links and drive, the ops
 *     of the plan without recomputation for compute, the updates and checksums for cpu;
 *   - the cores, where lanes share them; the drive, where it reads and writes at once; the RAM.
 * The sum over the phases, less what rings let pass from one to the other, is the bound, or the
 * longest of the whole step where that is more; the lane that takes most where it is longest binds.
 * Where a drive cannot write on and on as fast as at first, what a step writes takes at least as
 * long as past the fast cache. Pure.
 */
#ifndef SPILLWAY_OFFLOAD_BOUND_H
#define SPILLWAY_OFFLOAD_BOUND_H

#include "offload/plan.h"
#include "offload/profile.h"

struct bound {
    double seconds;
    enum plan_lane lane;
    double lane_s[PHASE_COUNT][LANE_COUNT]; /* what each lane needs alone */
};

/* stretch: per lane, a multiple of the profile's times; NULL: 1. */
void bound_of(struct bound *bound, const struct profile *profile, const struct plan *plan,
              const double *stretch);

/* What writing at the sustained rate takes at least: 0 where nothing is written. */
double bound_sustained_s(const struct profile *profile, double write_bytes);

#endif
