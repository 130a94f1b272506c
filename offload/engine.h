/*
 * engine: what the scheduler drives: lanes that can submit, reap and tell the time.
 *
 * Engines: engine_real (threads, the device's streams, io_uring) and engine_model (a virtual
 * clock). The scheduler knows only this table. It submits ops of a lane in plan order, at most
 * `depth` at once, and only when each op that they wait for is done; or is ahead of them on the
 * same lane, which runs its ops one after the other (in_order); or was submitted to another lane,
 * and both lanes are `chained`: the device makes one wait for the other by itself, and no edge of
 * the plan between such lanes goes through the host.
 */
#ifndef SPILLWAY_OFFLOAD_ENGINE_H
#define SPILLWAY_OFFLOAD_ENGINE_H

#include "offload/plan.h"

/* Transfers in flight on each drive in each direction, where nothing better is known. A chunk's
 * transfer keeps a drive busy by itself; two more hide the way back. More of them only end later: a
 * virtual drive that tells of what it has done when its queue is empty made steps 7 % longer with 8
 * than with 2 or 3. */
#define ENGINE_DRIVE_DEPTH     3
#define ENGINE_DRIVE_DEPTH_MAX 24 /* of all drives together; more are no faster */

/* Of the drive lanes, all drives together. queue_depth: what `bench ssd` has found best for one
 * drive; 0: not known. */
static inline uint32_t engine_drive_depth(uint32_t queue_depth, uint32_t drive_count)
{
    uint32_t each = queue_depth ? queue_depth : ENGINE_DRIVE_DEPTH;
    return MIN(each * MAX(drive_count, 1), ENGINE_DRIVE_DEPTH_MAX);
}

/* Ops that a chained lane holds at once. A GPU must never wait for the host: the way from the end
 * of an op through a thread and the scheduler to the next one's launch takes some 100 us, in which
 * a large GPU does the stores of a gradient or the updates of some 50 chunks, which it takes
 * DEVICE_LIST at a time; so twice that is ahead of it at any moment. Where a stream has the 1024
 * launches that it takes before the next one blocks, the host waits, and loses nothing by it: an op
 * has one to some 35 of them, the head more. */
#define ENGINE_CHAIN_DEPTH 128

struct engine_completion {
    uint32_t op;
    uint64_t start_ns, end_ns; /* on the engine's clock */
};

/* What an op took, as the scheduler saw it: work from when its lane could begin it (it was
 * submitted, the one before it had ended, and so had, of a chained lane, all that it waits for) to
 * its end; late from its end until the scheduler knew. A transfer of a drive overlaps the others of
 * its lane and is all late. */
struct engine_time {
    double work_s, late_s;
};

struct engine {
    uint32_t depth[LANE_COUNT];
    bool in_order[LANE_COUNT];
    bool chained[LANE_COUNT]; /* these are in_order too */
    /* Called before the first op of a plan. */
    void (*begin)(struct engine *engine, const struct plan *plan);
    /* Never blocks. */
    void (*submit)(struct engine *engine, uint32_t op);
    /* At least one completion, up to max; blocks for it. Something is in flight when called. */
    uint32_t (*reap)(struct engine *engine, struct engine_completion *completions, uint32_t max);
    uint64_t (*now_ns)(struct engine *engine);
};

/* What an op of a chained lane waits for on other such lanes: of each lane the last, which comes
 * after the others; PLAN_NONE: nothing. */
static inline void engine_find_behind(const struct engine *engine, const struct plan *plan,
                                      uint32_t number, uint32_t behind[LANE_COUNT])
{
    const struct plan_op *op = &plan->ops[number];
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        behind[l] = PLAN_NONE;
    for (uint32_t i = 0; i < op->wait_count && engine->chained[op->lane]; i++) {
        uint32_t on = plan->waits[op->first_wait + i], lane = plan->ops[on].lane;
        if (engine->chained[lane] && lane != op->lane &&
            (behind[lane] == PLAN_NONE || behind[lane] < on))
            behind[lane] = on;
    }
}

#endif
