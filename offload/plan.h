/*
 * plan: a training step as data. A plan is a list of ops in issue order; each names its lane, what
 * it reads and writes, its bytes and FLOPs, and the earlier ops it waits for. plan_build
 * (plan_build.c) makes it, plan_check proves it, plan_dump prints it, sched walks it.
 *
 * Memory is dependencies. All memory of a run, on every tier, is divided once into *cells* that do
 * not overlap (struct plan_memory). Ops use cells; an op waits for the last writer of every cell
 * it reads, and for the last writer and all readers since of every cell it writes. Reusing a
 * buffer is therefore an edge like any other, and no op ever looks at a clock. What is never needed
 * at the same time may lie in the same cells (place.h: gradients_shared).
 */
#ifndef SPILLWAY_OFFLOAD_PLAN_H
#define SPILLWAY_OFFLOAD_PLAN_H

#include "core/err.h"
#include "offload/layout.h"
#include "offload/place.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum plan_lane {
    LANE_COMPUTE,
    LANE_H2D,
    LANE_D2H,
    LANE_SSD_READ,
    LANE_SSD_WRITE,
    LANE_CPU, /* optimizer, checksums, hi/lo joins */
    LANE_COUNT
};
extern const char *const plan_lane_name[LANE_COUNT];

enum plan_op_kind {
    /* compute lane */
    OP_EMBED_FORWARD,
    OP_POSITION_FORWARD,
    OP_BLOCK_FORWARD,
    OP_RECOMPUTE,
    OP_NORM_FORWARD,
    OP_HEAD_FORWARD,
    OP_HEAD_LOSS,
    OP_HEAD_BACKWARD,
    OP_HEAD_ONCE, /* these three in one, over all tiles of a micro-batch */
    OP_NORM_BACKWARD,
    OP_BLOCK_BACKWARD,
    OP_EMBED_BACKWARD,
    OP_POSITION_BACKWARD,
    OP_GRADIENT_STORE,
    OP_DEVICE_UPDATE, /* AdamW on one chunk whose state is on the device; of a streamed one, on the
                       * d2h lane, since what follows is its copy out and the lane would wait */
    OP_DEVICE_JOIN,   /* its compute weights from hi (and lo); on the same lane */
    /* copy lanes: uses[0] is the source, uses[1] the destination */
    OP_COPY_H2D,
    OP_COPY_D2H,
    /* drive lanes: uses[0] is the source, uses[1] the destination; one of them is on NVMe */
    OP_READ,
    OP_WRITE,
    /* cpu lane */
    OP_COMMIT, /* flush, then the manifest, after every write of the state */
    OP_UPDATE, /* AdamW on one chunk; what was read for it is checked, what is written summed */
    OP_JOIN,   /* compute weights from hi (and lo) */
    OP_VERIFY, /* what was read against its checksum */
    OP_SUM,    /* checksum of what will be written */
    OP_CLIP,   /* global norm and clip factor */
    OP_CHECK,  /* the loss, before updates that backward makes */
    OP_CHECK_UPDATES, /* that what the device has updated is finite */
    OP_KIND_COUNT
};
extern const char *const plan_op_name[OP_KIND_COUNT];

enum plan_tier { TIER_DEVICE, TIER_RAM, TIER_NVME, TIER_COUNT };

enum plan_content {
    CONTENT_STATE,    /* planes of a chunk */
    CONTENT_WEIGHTS,  /* compute weights */
    CONTENT_GRADIENT, /* accumulators and stored gradients */
    CONTENT_ACTIVATION,
    CONTENT_STAGING,
    CONTENT_OTHER, /* tokens, losses, norms, scratch */
    CONTENT_COUNT
};
extern const char *const plan_content_name[CONTENT_COUNT];

struct plan_cell {
    uint8_t tier;    /* enum plan_tier: for TIER_NVME, the state file or the scratch file */
    uint8_t content; /* enum plan_content */
    bool state_file; /* TIER_NVME: a plane of a chunk (its slot is chosen by tier.c) */
    uint64_t offset; /* in the tier's arena or file; IO_ALIGN */
    uint64_t bytes;  /* may be 0: the cell does not exist */
};

/* A run of cells with consecutive numbers. */
struct plan_cells {
    uint32_t first, count;
};

/* Partial sums of squares of a chunk's gradient (KERNELS_NORM_BLOCK parameters each), at most. A
 * row of wte that is wider than a chunk is no longer GPT-2. */
#define PLAN_SQUARES_PER_CHUNK 8

/* The maps of 8-bit moments on the device: of m, then of v. */
#define PLAN_MAPS_BYTES (2 * sizeof(struct moments_map))

struct plan_memory {
    struct plan_cell *cells; /* owned */
    uint32_t cell_count, cell_max;
    uint64_t tier_bytes[TIER_COUNT]; /* arenas; TIER_NVME: the scratch file */
    uint64_t content_bytes[TIER_COUNT][CONTENT_COUNT];
    uint32_t state_slots; /* of the state file: 1 or 2 */
    bool separate_device; /* false: device cells lie in the RAM arena and no copy lane exists */

    /* Where everything is: cell numbers. [n] says how many entries a run has. */
    struct plan_cells plane_ram;         /* [chunk * 4 + plane]; 0 bytes unless resident */
    struct plan_cells plane_nvme;        /* [chunk * 4 + plane] */
    struct plan_cells plane_device;      /* [chunk * 4 + plane]; 0 bytes unless on the device */
    struct plan_cells gradient_device;   /* [chunk]; the same */
    struct plan_cells update_flags;      /* a word a chunk, not 0 once it is not finite: first those
                                          * of chunks on the device, last of streamed ones, where
                                          * there are any */
    struct plan_cells update_flags_host; /* the same on the host */
    struct plan_cells moment_maps;       /* 0 or 1: PLAN_MAPS_BYTES */
    struct plan_cells stream_stage;      /* ring on the device: states of streamed chunks, */
    struct plan_cells stream_gradient;   /* and their gradients */
    struct plan_cells *gradient_ram;     /* owned; [chunk]: cells in a row; 0 bytes when spilled */
    struct plan_cells gradient_nvme;     /* [chunk]; 0 bytes when resident */
    struct plan_cells gradient_stage;    /* ring in RAM: gradients on their way to or from NVMe */
    struct plan_cells gradient_out;      /* ring on the device: stored bf16 before the copy out */
    struct plan_cells stash_ram; /* [wte chunk] FP32 gradient of the head until embed backward */
    struct plan_cells stash_nvme;
    struct plan_cells stash_stage;
    struct plan_cells state_stage;    /* ring in RAM: whole states of chunks */
    struct plan_cells join_stage;     /* ring in RAM: joined FP32 weights before the copy in */
    struct plan_cells block_weights;  /* [slot * block_chunks + position] on the device */
    struct plan_cells tile_weights;   /* [slot * tile_chunks_max + i] */
    struct plan_cells wpe_weights;    /* [i] */
    struct plan_cells final_weights;  /* [i] */
    struct plan_cells block_gradient; /* [slot * block_chunks + position], FP32 */
    struct plan_cells tile_gradient;  /* [slot * tile_chunks_max + i] */
    struct plan_cells wpe_gradient;
    struct plan_cells final_gradient;
    struct plan_cells x_keep;        /* [layer * M + micro]; 0 bytes unless kept on the device */
    struct plan_cells x_ring;        /* M + 2 */
    struct plan_cells x_final;       /* [micro] */
    struct plan_cells x_ram, x_nvme; /* [layer * M + micro] */
    struct plan_cells *inner_keep;   /* owned; [layer * M + micro]: cells in a row; 0 bytes unless
                                      * kept on the device */
    struct plan_cells inner_ring, inner_ram, inner_nvme;
    struct plan_cells activation_stage; /* ring in RAM, only with a separate device */
    struct plan_cells dx;               /* [micro] */
    struct plan_cells y;                /* [micro] ln_f's output */
    struct plan_cells statistics;       /* [micro] */
    struct plan_cells running;          /* [micro] */
    struct plan_cells losses;           /* [micro] */
    struct plan_cells losses_host;      /* [micro]; the same cells without a separate device */
    struct plan_cells tokens;           /* [micro] inputs and targets, on the device */
    struct plan_cells tokens_host;      /* [micro] */
    struct plan_cells square_sums;      /* 1: PLAN_SQUARES_PER_CHUNK doubles a chunk */
    struct plan_cells square_host;      /* 1: the same on the host */
    struct plan_cells scratch;          /* 1 */
};

/* Divides all memory by the placement. Needs place->... to be complete. */
void plan_memory_init(struct plan_memory *memory, const struct place *place);
void plan_memory_deinit(struct plan_memory *memory);

#define PLAN_USES_MAX 8

struct plan_use {
    struct plan_cells cells;
    bool write; /* written (or read and written); else only read */
};

#define PLAN_NONE UINT32_MAX

/* Flags of ops. */
enum {
    OP_FIRST = 1,    /* first micro-batch (gradients overwritten) or first tile */
    OP_COMMITTED = 2 /* a write of resident planes that belongs to a commit */
};

struct plan_op {
    uint8_t kind, lane;
    uint16_t flags;
    uint32_t micro; /* PLAN_NONE where there is none */
    uint32_t layer; /* block number from 0, or tile number, or PLAN_NONE */
    uint32_t chunk; /* PLAN_NONE where there is none */
    uint8_t plane;  /* first plane that a drive op moves */
    uint8_t plane_count;
    uint8_t use_count;
    bool gradient;                   /* a drive op on a gradient (chunk says which) */
    uint32_t first_wait, wait_count; /* into plan->waits */
    uint64_t bytes, flops;
    struct plan_use uses[PLAN_USES_MAX]; /* in the order that offload/exec.c documents per kind */
};

enum plan_phase { PHASE_FORWARD, PHASE_BACKWARD, PHASE_COUNT };

struct plan {
    const struct place *place;        /* borrowed */
    const struct plan_memory *memory; /* borrowed */
    struct plan_op *ops;              /* owned */
    uint32_t op_count, op_max;
    uint32_t *waits; /* owned: numbers of earlier ops */
    uint32_t wait_count, wait_max;
    uint32_t backward_first; /* ops from here on belong to the backward phase */
    bool update, commit, backward, forward;
};

struct plan_request {
    bool update;   /* gradients are pending: apply them in (or as) the forward phase; never with a
                    * placement whose updates are immediate */
    bool commit;   /* and commit the state they lead to */
    bool forward;  /* forward and loss */
    bool backward; /* and gradients; needs forward */
};

void plan_build(struct plan *plan, const struct place *place, const struct plan_memory *memory,
                const struct plan_request *request);
void plan_deinit(struct plan *plan);

/* Proves: every wait is on an earlier op; every conflicting pair of uses of a cell is ordered; no
 * two cells of a tier overlap and all lie within its bytes; with update (or with
 * backward, where updates are immediate), every chunk is updated exactly once, and where the
 * placement says; with backward, every chunk's gradient is stored exactly once; with forward, every
 * micro-batch has its losses once, and updates of backward come after these are checked. Returns 0
 * or ERR_INPUT with what is wrong (which is a bug: callers treat it as fatal). */
int plan_check(const struct plan *plan, struct err *err);

/* A readable listing: one line an op. */
void plan_dump(const struct plan *plan, FILE *out);

/* What a plan moves. */
struct plan_totals {
    uint64_t bytes[PHASE_COUNT][LANE_COUNT];
    uint64_t flops[PHASE_COUNT];
    uint64_t commit_bytes;
};
void plan_total(const struct plan *plan, struct plan_totals *totals);

#endif
