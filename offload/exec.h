/*
 * exec: what each op of a plan does: the table from op kinds to the device's kernels and copies,
 * and to updates and checksums on the CPU. Owns the arenas. Called by engine_real's threads, one op
 * of a lane at a time; two ops that run at the same moment never touch the same cell, because the
 * plan says so.
 */
#ifndef SPILLWAY_OFFLOAD_EXEC_H
#define SPILLWAY_OFFLOAD_EXEC_H

#include "core/mem.h"
#include "core/pool.h"
#include "offload/device.h"
#include "offload/plan.h"
#include "offload/tier.h"

struct checkpoint;

struct exec {
    const struct place *place; /* borrowed, as all below */
    const struct plan_memory *memory;
    const struct layout *layout;
    struct device *device; /* NULL where it is modelled */
    struct pool *cpu_pool;
    struct tier *tier;
    struct checkpoint *checkpoint;
    uint64_t seed;        /* of the run, for what is rounded by chance (model/moments.h) */
    bool device_modelled; /* no op of the compute and copy lanes comes here: the device's arena
                           * is never opened (engine_mixed) */
    struct mem_arena ram, vram;      /* owned; vram is empty without a separate device */
    struct moments moments;          /* as the layout says */
    struct update_segment *segments; /* owned */
    uint32_t *chunk_segments;        /* owned; [chunk_count + 1] */

    /* Set by the trainer between plans. */
    struct optim_step step;  /* of the pending update */
    uint64_t step_number;    /* of the step that runs, from 1, for messages */
    uint64_t committed_step; /* UINT64_MAX before the first commit */
    float loss_scale;        /* 1 / tokens of a step */
    bool commit_plan;        /* the plan that runs commits */

    /* Results. */
    double gradient_norm; /* by OP_CLIP */
    uint32_t bad_chunk;   /* chunk whose gradient is not finite, or PLAN_NONE */
    uint64_t commit_ns;   /* how long the last commit's flush and manifest took */
};

/* Opens the arenas. Everything else is assigned by the caller beforehand. */
int exec_open(struct exec *exec, const struct tensors *tensors, struct err *err);
void exec_close(struct exec *exec);

void *exec_cell(const struct exec *exec, uint32_t cell);

/* A chunk's whole state between its planes on the device and its image in RAM, waited for; before
 * and between steps, from the thread that opened the device. Nothing moves where the device is
 * modelled. */
void exec_move_state(const struct exec *exec, enum plan_lane lane, uint32_t chunk, uint8_t *image);

/* Compute, copy and cpu lanes. */
void exec_op(struct exec *exec, const struct plan_op *op);
/* Whether the ops, and then `next`, one after the other in a lane, may be done as one. */
bool exec_joins(const struct plan_op *const *ops, uint32_t count, const struct plan_op *next);
/* 1 to DEVICE_LIST ops, each of which joins those before it. */
void exec_ops(struct exec *exec, const struct plan_op *const *ops, uint32_t count);

/* Tokens of a micro-batch on the host: inputs [R], then targets [R]. */
uint32_t *exec_tokens(const struct exec *exec, uint32_t micro);
/* What is said when a loss is not finite: the step's number, then a note on the commit. */
#define EXEC_LOSS_MESSAGE                                                                          \
    "the loss of step %" PRIu64 " is not finite; stopped before its update: lower --lr or set "    \
    "--clip 1.0 (%s)"
void exec_commit_note(const struct exec *exec, uint64_t step, char note[64]);

/* Mean loss over all tokens of the step, summed in double in canonical order. */
double exec_loss(const struct exec *exec);

#endif
