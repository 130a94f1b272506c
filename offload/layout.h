/*
 * layout: how the parameters of a model are cut into chunks, and where a chunk's state lies in the
 * state file. A function of the model and of the kind of its moments alone: never of budgets or
 * drives.
 *
 * A group's flat vector (model/tensors.h) is cut into chunks of at most LAYOUT_CHUNK_PARAMETERS; a
 * chunk is what one sequential read, one update and one sequential write serve. Its state is four
 * planes back to back, each a multiple of IO_ALIGN:
 *
 *     hi (2 bytes a parameter) | lo (2) | m (4) | v (4)
 *
 * or less of m and v where they are kept in a smaller type (model/moments.h): 2 and 2, or a little
 * more than 1 and 1, with zeros up to a multiple of IO_ALIGN,
 *
 * so that whatever RAM does not hold (it is filled in that order) is one contiguous run of the
 * file, and the compute weights (bf16: hi; fp32: hi and lo) are one too. Both slots of the state
 * file have this layout, whatever is resident where: a run resumes under other budgets without
 * conversion.
 *
 * wte is cut at rows, so that a run of its chunks is a tile of the vocabulary; wpe has chunks of
 * its own. A head that is not tied to wte is cut like it, after the final norm.
 */
#ifndef SPILLWAY_OFFLOAD_LAYOUT_H
#define SPILLWAY_OFFLOAD_LAYOUT_H

#include "core/base.h"
#include "model/moments.h"
#include "model/tensors.h"
#include <stdbool.h>

#define LAYOUT_CHUNK_PARAMETERS ((uint64_t)262144)
/* A model of more chunks than LAYOUT_CHUNKS_MANY (from 17 G parameters on) has larger ones: a plan
 * has some dozen ops for each. */
#define LAYOUT_CHUNK_PARAMETERS_MAX ((uint64_t)524288)
#define LAYOUT_CHUNKS_MANY          65536
#define LAYOUT_TILE_CHUNKS          4 /* at least, where a chunk is larger than the smallest */
#define LAYOUT_PAD                  ((uint64_t)2048)    /* parameters: 4 KiB of the 2-byte planes */
#define LAYOUT_TILE_PARAMETERS      ((uint64_t)1 << 20) /* a head tile has about this many */

/* A part of a chunk is what one task updates: with all its planes and its gradient it fits a core's
 * second-level cache. A plane's checksum is that of its parts' checksums (offload/tier.h). */
#define LAYOUT_PART_PARAMETERS ((uint64_t)32768)
#define LAYOUT_PARTS_MAX       (LAYOUT_CHUNK_PARAMETERS_MAX / LAYOUT_PART_PARAMETERS)

enum plane { PLANE_HI, PLANE_LO, PLANE_M, PLANE_V, PLANE_COUNT };

extern const char *const layout_plane_name[PLANE_COUNT];

#define LAYOUT_STATE_BYTES 12 /* a parameter, all planes, where moments are FP32 */

struct layout_chunk {
    uint32_t group;
    uint32_t position;   /* among the chunks of its group (wpe counts on after wte) */
    uint64_t first;      /* in the group's vector; a multiple of LAYOUT_PAD */
    uint64_t count;      /* padded; a multiple of LAYOUT_PAD */
    uint64_t real_count; /* what the model has of it: count less the padding at its end */
    uint64_t offset;     /* in a slot of the state file; multiple of IO_ALIGN */
};

struct layout_tile {
    uint32_t first_chunk, chunk_count;
    uint32_t row_first, row_count;
    uint64_t count; /* parameters, padded */
};

/* Chunks in a row that are equally large. */
struct layout_run {
    uint32_t first_chunk, chunk_count;
    uint64_t each; /* padded parameters */
};

struct layout {
    enum moments_kind moments;   /* how m and v are stored */
    struct layout_chunk *chunks; /* owned */
    uint32_t chunk_count;
    uint32_t *group_first_chunk; /* owned; group_count + 1 entries */
    uint32_t group_count;        /* embedding, blocks, final norm, and the head unless tied */
    struct layout_run *runs;     /* owned; all chunks, in order */
    uint32_t run_count;
    bool tied;                                 /* the head's tiles are wte's */
    struct layout_tile *tiles;                 /* owned; of wte, then of the head unless tied */
    uint32_t tile_count;                       /* of one of them */
    uint32_t final_chunk;                      /* the final norm's */
    uint32_t wpe_first_chunk, wpe_chunk_count; /* no chunks where positions are rotated in */
    uint64_t wte_count, wpe_count;             /* padded parameters */
    uint64_t block_count;     /* padded parameters of a block: all blocks are alike */
    uint64_t final_count;     /* padded parameters of the final norm */
    uint32_t block_chunks;    /* chunks of a block */
    uint64_t tile_slot_count; /* padded parameters of the first tile, which is as large as any */
    uint32_t tile_rows_max;
    uint32_t tile_chunks_max;
    uint64_t chunk_count_max; /* padded parameters of the largest chunk */
    uint64_t padded_parameters, real_parameters;
    uint64_t slot_bytes; /* of the state file */
};

void layout_init(struct layout *layout, const struct tensors *tensors, enum moments_kind moments);
/* The same with smaller chunks and tiles, for tests that want many of them in a small model. Both
 * in parameters; chunk a multiple of LAYOUT_PAD. */
void layout_init_sized(struct layout *layout, const struct tensors *tensors,
                       enum moments_kind moments, uint64_t chunk, uint64_t tile);
void layout_deinit(struct layout *layout); /* a zeroed one is legal */

/* Tiles of wte and of the head together, and the head's first. */
static inline uint32_t layout_tile_count(const struct layout *layout)
{
    return layout->tied ? layout->tile_count : 2 * layout->tile_count;
}
static inline uint32_t layout_head_tile(const struct layout *layout, uint32_t tile)
{
    return layout->tied ? tile : layout->tile_count + tile;
}

/* ---- Bytes ------------------------------------------------------------------------------------
 * count: padded parameters of a chunk. Offsets take PLANE_COUNT too, for where the last one ends.
 */

/* Of a plane without any padding, for any `count` of parameters. */
static inline uint64_t layout_least_bytes(const struct layout *layout, uint64_t count,
                                          uint32_t plane)
{
    return plane >= PLANE_M ? moments_bytes(layout->moments, count) : count * 2;
}
/* Of a plane in the file and in RAM. */
static inline uint64_t layout_plane_bytes(const struct layout *layout, uint64_t count,
                                          uint32_t plane)
{
    ASSERT(count % LAYOUT_PAD == 0 && plane < PLANE_COUNT);
    return round_up(layout_least_bytes(layout, count, plane), IO_ALIGN);
}
/* Of the planes before this one: where it begins in its chunk's state. */
uint64_t layout_plane_offset(const struct layout *layout, uint64_t count, uint32_t plane);
/* Where a part begins in its plane. The last part of a plane goes on to the plane's end. */
uint64_t layout_part_offset(const struct layout *layout, uint32_t plane, uint64_t part);

/* Of all planes. */
static inline uint64_t layout_state_bytes(const struct layout *layout, uint64_t count)
{
    return layout_plane_offset(layout, count, PLANE_COUNT);
}

#endif
