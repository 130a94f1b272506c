/*
 * engine_model: a virtual clock and a machine profile: the simulator. Each lane does one op at a
 * time, for latency + bytes / rate or FLOPs / rate; nothing is executed.
 */
#ifndef SPILLWAY_OFFLOAD_ENGINE_MODEL_H
#define SPILLWAY_OFFLOAD_ENGINE_MODEL_H

#include "offload/engine.h"
#include "offload/profile.h"

#define ENGINE_MODEL_IN_FLIGHT_MAX 64

struct engine_model {
    struct engine engine; /* first: the scheduler's pointer is ours */
    struct profile profile;
    const struct plan *plan;
    uint64_t now_ns, lane_free_ns[LANE_COUNT];
    struct engine_completion in_flight[ENGINE_MODEL_IN_FLIGHT_MAX];
    uint32_t count;
};

void engine_model_init(struct engine_model *model, const struct profile *profile);

#endif
