/*
 * rehearsal: training steps of a model with this machine's RAM, drive and cores under a device that
 * is only modelled (offload/engine_mixed.h): how fast NVMe offload would be with a GPU that nobody
 * has bought yet.
 *
 * Placement, plans, arena, tier files and scheduler are those of training with that device and
 * these budgets; what needs the device itself (kernels, data, losses) is not there. Weights are
 * fresh, moments zero at first, and gradients noise that was put into RAM once, since nothing comes
 * from the device: the drive sees data that it can neither compress nor find to be zero. Nothing is
 * committed.
 *
 * The tier files have no name from their first moment on, and are gone with the process however it
 * ends. Refuses what place_choose refuses, more RAM than the machine has free now, and folders that
 * cannot hold a tier. One thread.
 */
#ifndef SPILLWAY_OFFLOAD_REHEARSAL_H
#define SPILLWAY_OFFLOAD_REHEARSAL_H

#include "offload/bound.h"
#include "offload/engine_mixed.h"
#include "offload/sched.h"

struct rehearsal {
    struct place place;
    struct plan_memory memory;
    struct plan first, steady; /* without and with an update */
    struct tier tier;
    struct ring *ring;
    struct pool *pool;
    struct exec exec;
    struct engine_mixed *mixed;
    struct sched sched;
    uint64_t done; /* updates */
};

/* Placement and checked plans; nothing is written or allocated on a large scale yet. spec has a
 * profile, a VRAM budget and clipping; its overhead_bytes are measured here. */
int rehearsal_plan(struct rehearsal *rehearsal, const struct place_spec *spec, struct err *err);

/* Arena, files and their first contents, and the step without an update that a run begins with: it
 * puts gradients and activations on the drive. threads: of the cpu lane. */
int rehearsal_open(struct rehearsal *rehearsal, const struct tensors *tensors, const char *nvme_dir,
                   uint32_t threads, struct err *err);

/* A step as a long run makes them. */
void rehearsal_step(struct rehearsal *rehearsal, struct sched_result *result);

/* What the model engine says of that step. stretch: per lane, a multiple of the profile's times;
 * NULL: 1. */
void rehearsal_predict(struct rehearsal *rehearsal, const double *stretch,
                       struct sched_result *result);

/* Whatever state it is in, a zeroed one too. */
void rehearsal_close(struct rehearsal *rehearsal);

#endif
