/*
 * engine_real: the engine of real devices. A thread for each of the compute, cpu and copy lanes;
 * the drive lanes are io_uring's. The thread that calls the scheduler owns the ring. Where exec's
 * device is modelled, only cpu and drive lanes are there.
 *
 * The lanes of a chained device (offload/device.h) are fed by one more thread, in the order of
 * submission, and their own threads only wait for what was given. Times of their ops are the
 * device's, those of all others the host's.
 */
#ifndef SPILLWAY_OFFLOAD_ENGINE_REAL_H
#define SPILLWAY_OFFLOAD_ENGINE_REAL_H

#include "offload/engine.h"
#include "offload/exec.h"

struct ring;
struct engine_real;

/* exec and ring are borrowed; exec's arenas are open. drive_depth: transfers in flight in each
 * direction. */
int engine_real_open(struct engine_real **real, struct exec *exec, struct ring *ring,
                     uint32_t drive_depth, struct err *err);
/* Room for plans of up to op_max ops; before the first plan. */
void engine_real_reserve(struct engine_real *real, uint32_t op_max);
void engine_real_close(struct engine_real *real); /* NULL is legal; nothing is in flight */
struct engine *engine_real_engine(struct engine_real *real);

/* As the engine's reap, but nothing need be in flight, and it returns 0 at deadline_ns (of
 * clock_ns) at the latest; 0: does not wait. Other deadlines only where ring_has_deadline. */
uint32_t engine_real_reap(struct engine_real *real, struct engine_completion *completions,
                          uint32_t max, uint64_t deadline_ns);

#endif
