/*
 * plan_state: the ops that depend on where a chunk's state is: weights brought to where kernels
 * find them, updates, finished gradients sent to where they wait, and what a commit writes. Owns
 * which weights the device's slots hold. Called by plan_build.c alone, which knows in what order
 * the passes want them.
 *
 * A chunk on the device is updated there and its weights are joined there; so is a streamed one,
 * on the d2h lane: the compute lane would come to its update behind the blocks before it, and hold
 * up the copies. A chunk of a coarse plan (offload/coarse.h) may be there or be streamed in part,
 * and then has the ops of all kinds.
 */
#ifndef SPILLWAY_OFFLOAD_PLAN_STATE_H
#define SPILLWAY_OFFLOAD_PLAN_STATE_H

#include "offload/plan_emit.h"

#define PLAN_SLOTS_MAX 4096

/* Which weights a set of device slots holds; the least recently used one is given up. */
struct plan_slots {
    uint32_t count, clock;
    uint32_t key[PLAN_SLOTS_MAX], used[PLAN_SLOTS_MAX];
};

struct plan_state {
    struct emit *emit; /* borrowed, as all below */
    const struct place *place;
    const struct plan_memory *memory;
    const struct layout *layout;
    struct plan_request request;
    struct plan_slots blocks, tiles;
    uint32_t next_stage, next_join, next_gradient_stage, next_gradient_out, next_stream;
};

void plan_state_init(struct plan_state *state, struct emit *emit,
                     const struct plan_request *request);

/* The cells in which kernels find the weights of a block, of a tile, or of chunks [first, first +
 * count) that have a place of their own, `target`; brought there first where they are not held.
 * update: the pending gradients are applied on the way. */
struct plan_cells plan_state_block(struct plan_state *state, uint32_t layer, bool update);
struct plan_cells plan_state_tile(struct plan_state *state, uint32_t tile, bool update);
struct plan_cells plan_state_fixed(struct plan_state *state, uint32_t first, uint32_t count,
                                   struct plan_cells target, bool update);

/* A chunk's finished gradient, in the device cell `gradient`, to where it waits for the update; or
 * the update itself, where updates are immediate. */
void plan_state_store(struct plan_state *state, uint32_t chunk, struct plan_cells gradient);

/* After the last update: whether what the device has updated is finite. */
void plan_state_check(struct plan_state *state);

#endif
