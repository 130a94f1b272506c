/*
 * engine_mixed: each lane real or modelled, in real time: this machine's drive, RAM and cores under
 * a device that is only imagined. The plan and the scheduler are those of a run with that device.
 *
 * Real lanes are engine_real's. A modelled lane serves its ops in order as engine_model does, each
 * for what cost.h says of it, and its ops touch no memory; their completions come when that time is
 * over by the clock, never before. What a modelled lane would have written is therefore what the
 * memory held before: gradients that never leave an imagined device are what the caller put into
 * RAM.
 *
 * What modelled lanes share with each other (both ways of the link, cores, RAM) is divided between
 * them as in engine_model. What they would share with real lanes is not taken from those: an
 * imagined card's copies slow no real core or drive down, and are not slowed by them. Where copies
 * and updates together need more than the RAM carries, what is measured here is too fast.
 *
 * Refuses kernels without timed waits (before Linux 5.11). Called by the rehearsal of a step.
 */
#ifndef SPILLWAY_OFFLOAD_ENGINE_MIXED_H
#define SPILLWAY_OFFLOAD_ENGINE_MIXED_H

#include "offload/engine.h"
#include "offload/exec.h"
#include "offload/profile.h"

struct ring;
struct engine_mixed;

struct engine_mixed_setup {
    struct exec *exec;             /* borrowed; its arenas are open */
    struct ring *ring;             /* borrowed */
    const struct profile *profile; /* borrowed: what modelled lanes take */
    uint32_t drive_depth;          /* transfers in flight in each direction, where they are real */
    uint32_t op_max;               /* room for plans of up to so many ops */
    /* Compute and copy lanes all, where exec->device_modelled. A real cpu lane needs both drive
     * lanes real: it checks what was read. */
    bool modelled[LANE_COUNT];
};

int engine_mixed_open(struct engine_mixed **mixed, const struct engine_mixed_setup *setup,
                      struct err *err);
void engine_mixed_close(struct engine_mixed *mixed); /* NULL is legal; nothing is in flight */
struct engine *engine_mixed_engine(struct engine_mixed *mixed);

#endif
