/*
 * engine_real: the CPU device's engine. A thread for each of the compute, cpu and copy lanes; the
 * drive lanes are io_uring's. The thread that calls the scheduler owns the ring.
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

#endif
