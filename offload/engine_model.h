/*
 * engine_model: a virtual clock and a machine profile: the simulator. Nothing is executed.
 *
 * A lane serves its ops in order, one at a time; what an op takes alone is cost.h's. Ops of
 * different lanes that are served at the same moment share what the machine has one of, and each
 * is stretched by what it does not get:
 *
 *   cores  threads in proportion, when there are more than cores (CPU device: compute, updates and
 *          copies all want them)
 *   RAM    the part of an op's time that is memory traffic, when the sum is above ram.bytes_per_s;
 *          what cores ask for comes almost first
 *   link   copies in and out at the rates measured together (..._both_...), when both go on
 *   drive  by phase, not by moment: see cost_drive_of
 *
 * The device's lanes (of a card, not of the CPU) are chained: an op at the head of its lane begins
 * when the work of what it waits for on the others is done. The latency of that is the host's.
 *
 * While an op is handed over (its launch) it holds its lane and shares nothing. Speeds are constant
 * between two events (an op's work begins or ends), so time advances from event to event. The
 * result depends on nothing but the plan and the profile.
 */
#ifndef SPILLWAY_OFFLOAD_ENGINE_MODEL_H
#define SPILLWAY_OFFLOAD_ENGINE_MODEL_H

#include "offload/cost.h"
#include "offload/engine.h"
#include "offload/profile.h"

#define ENGINE_MODEL_DEPTH_MAX MAX(ENGINE_DRIVE_DEPTH_MAX, ENGINE_CHAIN_DEPTH)

struct engine_model_op {
    uint32_t op;
    struct cost cost;
    double start_s;
    double left_s; /* of its work, at full speed, when the speeds were last found */
    bool begun;    /* first of its lane, and nothing that it waits for is ahead */
    bool working;  /* launched */
    /* Of each other chained lane, the last op that it waits for, or PLAN_NONE. */
    uint32_t behind[LANE_COUNT];
};

struct engine_model_lane {
    struct engine_model_op queue[ENGINE_MODEL_DEPTH_MAX];
    uint32_t first, count;
};

/* An op whose work is done and whose latency runs. */
struct engine_model_late {
    uint32_t op;
    double start_s, end_s;
};

struct engine_model {
    struct engine engine;             /* first: the scheduler's pointer is ours */
    const struct profile *profile;    /* borrowed */
    double stretch[LANE_COUNT];       /* what a lane's work takes, as a multiple of the profile's */
    const struct engine_time *replay; /* borrowed, or NULL: [op] to use instead of costs */
    const struct plan *plan;
    double now_s;
    double event_s[LANE_COUNT]; /* when the first op is launched, or its work is done; INFINITY */
    double speed[LANE_COUNT];   /* of the work of the first ops */
    struct cost_drive drive;
    double beside[LANE_COUNT]; /* of a drive's or link's lane beside its other one */
    double found_s;            /* when the speeds were last found */
    bool changed;              /* since then, what works is not what worked */
    struct engine_model_lane lanes[LANE_COUNT];
    struct engine_model_late late[ENGINE_MODEL_DEPTH_MAX * LANE_COUNT];
    uint32_t late_count;
};

/* profile stays borrowed. All stretches are 1, nothing is replayed. */
void engine_model_init(struct engine_model *model, const struct profile *profile);

/* ---- For a clock that is not its own: engine_mixed ------------------------------------------- */

/* Moves the clock to now_s, which it has not passed yet. What ends on the way waits to be taken. */
void engine_model_pass(struct engine_model *model, double now_s);
/* When something can be taken next; INFINITY when nothing is in flight. */
double engine_model_next_s(const struct engine_model *model);
/* The op that has ended first, of two the one with the smaller number; false where none has. */
bool engine_model_take(struct engine_model *model, struct engine_completion *completion);

#endif
