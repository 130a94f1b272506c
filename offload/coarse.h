/*
 * coarse: a placement at layer level. A chunk of the coarse layout stands for many of the real one
 * (a block has COARSE_BLOCK_CHUNKS of them, whatever its size), so that plan_build makes a plan of
 * some thousand ops of a model of 100,000 chunks, and a simulation takes a millisecond. The bytes
 * of its transfers are those of the real chunks, added up.
 *
 * What it leaves out is how finely transfers interleave; the winner of a search is therefore
 * divided and, where a plan is made for it, simulated at chunk level. Called by place_search and by
 * forecast.
 */
#ifndef SPILLWAY_OFFLOAD_COARSE_H
#define SPILLWAY_OFFLOAD_COARSE_H

#include "offload/place.h"
#include "offload/plan.h"
#include "offload/sched.h"

#define COARSE_BLOCK_CHUNKS 8
#define COARSE_TILES        12
#define COARSE_TILES_END    2 /* at each end, tiles as they are: what two slots hold */

struct coarse {
    const struct layout *fine; /* borrowed */
    struct layout layout;
    uint32_t *first_fine; /* owned; [chunk_count + 1] */
    uint32_t *tiles_each; /* owned; [layout_tile_count]: how many a tile stands for */
};

void coarse_init(struct coarse *coarse, const struct layout *fine);
void coarse_deinit(struct coarse *coarse);

/* The coarse placement of a choice of `fine`, which is place_init'ed for coarse->fine. To be given
 * to place_deinit. */
void coarse_place(const struct coarse *coarse, const struct place *fine,
                  const struct place_choice *choice, struct place *place);

/* A usual step of a coarse (or real) placement, simulated on its profile: its time (with what the
 * drive's sustained rate demands), and the rest in *result where that is not NULL. bound_s: the
 * lower bound, or NULL. */
struct bound;
double coarse_step(const struct place *place, struct sched_result *result, struct bound *bound);

#endif
