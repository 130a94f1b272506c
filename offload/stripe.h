/*
 * stripe: the state of a run over several drives: which drive holds which chunk, and where in its
 * file. One drive is the usual case of it, and then a chunk lies where the layout says.
 *
 * Chunks are dealt in their order, each to the drive that is furthest behind its share by bytes, so
 * that any stretch of chunks, and so any part of a step, uses all drives in proportion to their
 * shares. A chunk lies whole on one drive. The mapping follows from the layout and the shares
 * alone, which the manifest of a commit records: it never changes as long as the files live.
 *
 * Owns the mapping; opens nothing. Called by tier (state and scratch files) and by checkpoint's
 * readers.
 */
#ifndef SPILLWAY_OFFLOAD_STRIPE_H
#define SPILLWAY_OFFLOAD_STRIPE_H

#include "io/file.h"
#include "offload/layout.h"

#define STRIPE_DRIVES_MAX 8
#define STRIPE_SHARE_MAX  10000 /* shares are relative: 1 to this */

/* The state files of a run: one on each drive. */
struct stripe_files {
    uint32_t count; /* 1..STRIPE_DRIVES_MAX */
    uint32_t share[STRIPE_DRIVES_MAX];
    char path[STRIPE_DRIVES_MAX][FILE_PATH_MAX];
};

/* One file, the usual case. ERR_INPUT when the path is too long. */
int stripe_files_one(struct stripe_files *files, const char *path, struct err *err);
/* Whether both have the same files, in whatever order. */
bool stripe_files_same(const struct stripe_files *a, const struct stripe_files *b);
/* All paths, "a, b and c", into text; returns text. */
char *stripe_files_text(const struct stripe_files *files, char *text, size_t bytes);

/* Dealing to drives by their shares: what each has been dealt so far. Zeroed at the start. */
struct stripe_deal {
    uint64_t dealt_bytes[STRIPE_DRIVES_MAX];
};
/* The drive that takes the next `bytes`; ties go to the first. */
uint32_t stripe_next(struct stripe_deal *deal, const struct stripe_files *files, uint64_t bytes);

struct stripe {
    uint32_t count;
    uint64_t slot_bytes[STRIPE_DRIVES_MAX]; /* of each drive's file; may be 0 for a tiny model */
    uint8_t *drive;                         /* owned; [chunk] */
    uint64_t *offset;                       /* owned; [chunk] in a slot of its drive's file */
};

void stripe_init(struct stripe *stripe, const struct layout *layout,
                 const struct stripe_files *files);
void stripe_deinit(struct stripe *stripe); /* a zeroed one is legal */

/* Where a plane of a chunk is in its drive's file. */
static inline uint64_t stripe_plane_offset(const struct stripe *stripe, const struct layout *layout,
                                           uint32_t slot, uint32_t chunk, uint32_t plane)
{
    return slot * stripe->slot_bytes[stripe->drive[chunk]] + stripe->offset[chunk] +
           layout_plane_offset(layout, layout->chunks[chunk].count, plane);
}

#endif
