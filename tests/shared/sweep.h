/*
 * sweep: results.json of a sweep as `spillway sweep` writes it, made up: a 13 B model on a machine
 * with RAM of 64 to 192 GB, one of two SSDs and one of three GPUs, after a plain formula. With 64
 * GB the slower SSDs are refused.
 */
#ifndef SPILLWAY_TESTS_SHARED_SWEEP_H
#define SPILLWAY_TESTS_SHARED_SWEEP_H

#include "core/json.h"

struct sweep_shape {
    size_t rams, ssds, gpus, batches; /* at most 8, 4, 4, 4 */
    bool all_refused;
    bool long_names;
};

/* Owned by the caller (json_free). */
struct json_value *sweep_results(const struct sweep_shape *shape);

#endif
