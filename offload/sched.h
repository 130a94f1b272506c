/*
 * sched: the only loop. Walks a plan over an engine.
 *
 * Order is data: each lane issues in plan order, whatever finishes first. So a run on the model
 * engine and one on the real engine are the same run and differ only in durations. One thread;
 * allocates only in sched_init.
 */
#ifndef SPILLWAY_OFFLOAD_SCHED_H
#define SPILLWAY_OFFLOAD_SCHED_H

#include "core/trace.h"
#include "offload/engine.h"

struct sched {
    uint32_t op_max;
    uint8_t *state;            /* owned; [op] */
    uint32_t *next_in_lane;    /* owned; [op]: the following op of the same lane */
    uint64_t *end_ns;          /* owned; [op] */
    struct engine_time *times; /* borrowed; [op], what each op took, at the end; NULL: not wanted */
};

struct sched_result {
    uint64_t start_ns, end_ns;
    uint64_t busy_ns[LANE_COUNT]; /* time in which the lane had at least one op running */
    uint64_t bytes[LANE_COUNT];   /* commit writes not included */
    uint64_t commit_bytes;
    uint64_t flops;
    uint64_t backward_start_ns; /* when the first op of the backward phase began */
};

/* Room for plans of up to op_max ops. */
void sched_init(struct sched *sched, uint32_t op_max);
void sched_deinit(struct sched *sched);

/* Runs the plan to its end. trace may be NULL. */
void sched_run(struct sched *sched, const struct plan *plan, struct engine *engine,
               struct trace *trace, struct sched_result *result);

#endif
