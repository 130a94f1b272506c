/*
 * update: AdamW on one chunk's state: what an update is, for whoever makes it, and how the CPU
 * does, part by part. Knows nothing of plans: exec.c calls it on the cpu lane, device_cpu.c as the
 * CPU device; a device of another kind gives the same bits.
 */
#ifndef SPILLWAY_OFFLOAD_UPDATE_H
#define SPILLWAY_OFFLOAD_UPDATE_H

#include "model/moments.h"
#include "model/optim.h"
#include "offload/layout.h"

/* A run of parameters of one decay kind, within a chunk and within a part of it. */
struct update_segment {
    uint64_t first, count; /* in the chunk */
    bool decay;
};

/* All borrowed. What no segment has is padding, and stays as it is. */
struct update {
    const struct moments *moments;
    const struct optim_step *step;
    enum precision precision; /* of the gradient */
    uint64_t origin;          /* canonical number of the first parameter (update_origin) */
    uint64_t count;           /* padded parameters */
    const struct update_segment *segments; /* in order */
    uint32_t segment_count;
    uint8_t *plane[PLANE_COUNT];
    const uint8_t *gradient;
};

/* The group and the place in its vector: the same whatever the chunks are. */
static inline uint64_t update_origin(const struct layout_chunk *chunk)
{
    return ((uint64_t)chunk->group << 40) + chunk->first;
}

static inline uint32_t update_part_count(const struct update *update)
{
    return (uint32_t)div_up(update->count, LAYOUT_PART_PARAMETERS);
}

/* One part; different ones may be made at the same time. False when a weight or moment is no longer
 * finite; the part is then of no use. */
bool update_part(const struct update *update, uint32_t part);

#endif
