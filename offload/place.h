/*
 * place: what sits where. Turns (model, batch, budgets, machine) into a placement: which chunks
 * have their state on the device, how many planes of each other one RAM holds, where activations
 * and gradients wait, how deep the rings are.
 *
 * A chunk on the device has all there: its four planes and the gradient that waits. It is updated
 * there, and nothing of it moves in a step but what a commit writes. Only where the device has
 * memory of its own; not where the user says what of the state RAM holds (resident_planes >= 0),
 * nor with several devices, whose gradients meet in RAM.
 *
 * A chunk that is wholly in RAM is updated by the CPU or streamed: copied to the device with its
 * gradient, updated and joined there, and copied back. That takes its state over the link twice and
 * RAM's bandwidth as the CPU's update does, but no core; so it pays where cores or the CPU's
 * arithmetic bind and the link has room. Where state comes from a drive, the drive binds; and
 * without clipping, updates would hold up the copies of backward: such chunks are never streamed.
 *
 * The placement never touches the mathematics: the plan built from any two placements computes the
 * same bits. place_choose refuses budgets that cannot work, naming what takes the most and the
 * smallest flag that works. Pure; called by train, plan and the tests.
 */
#ifndef SPILLWAY_OFFLOAD_PLACE_H
#define SPILLWAY_OFFLOAD_PLACE_H

#include "core/err.h"
#include "model/config.h"
#include "offload/layout.h"
#include "offload/profile.h"
#include <stdio.h>
#include <stdbool.h>
#include <stdint.h>

struct plan_memory;

enum place_recompute { RECOMPUTE_AUTO, RECOMPUTE_ALL, RECOMPUTE_NONE };

/* How many planes are pinned in RAM: by the search, or by the user; or as much of the state on the
 * device as its memory takes. */
#define PLACE_RESIDENT_AUTO   (-1)
#define PLACE_RESIDENT_DEVICE (-2)

/* Who updates what is wholly in RAM: the planner decides; the CPU; as much as can be is streamed
 * through the device. */
enum place_update { UPDATE_AUTO, UPDATE_CPU, UPDATE_DEVICE };

struct place_spec {
    const struct config *config; /* borrowed */
    const struct layout *layout; /* borrowed */
    enum precision precision;
    uint32_t seq, batch, accum; /* T, B, M */
    uint64_t ram_budget;        /* the whole process */
    bool thrifty;               /* nobody asked for so much: what of it is hardly of use is left */
    uint64_t vram_budget;       /* for arenas; 0: no separate device memory */
    uint64_t vram_reserve;      /* what the driver takes besides, a part of --vram-budget too */
    uint64_t vram_given;        /* what the user gave, for messages; 0: both of these together */
    uint64_t nvme_budget;       /* UINT64_MAX: what the drive has */
    uint64_t overhead_bytes;    /* code, libraries, stacks, heap: measured by the caller */
    uint64_t write_budget;      /* bytes a day to the drive, commits included; 0: no limit */
    uint32_t checkpoint_every;  /* steps between commits; 0: none but the last */
    bool one_slot;       /* the state file has one slot, and no crash safety, instead of two */
    bool nvme;           /* there is a folder for the NVMe tier */
    bool clip;           /* gradients are clipped by their global norm */
    int resident_planes; /* 0..4 forced, or PLACE_RESIDENT_... */
    enum place_update update;
    uint32_t prefetch; /* layers ahead; 0: chosen (1 where memory is short, else 2) */
    enum place_recompute recompute;
    /* What the device's kernels need of its memory (model/kernels.h: kernels_sizes); 0: what those
     * of the CPU need. */
    uint64_t device_inner_bytes, device_scratch_bytes, device_head_once_bytes;
    const struct profile *profile; /* borrowed: the machine that it should be fast on */
};

enum place_where { WHERE_DEVICE, WHERE_RAM, WHERE_NVME, WHERE_RECOMPUTE };

/* Chunk states in flight beside KNOB_STATE_STAGES, where state streams from a drive. With less,
 * read, update and write of different chunks wait for one another: 2 made the smallest placements
 * 1.5 times as slow as the drive allows. */
#define PLACE_STATE_STAGES_MIN 4
/* Chunks on their way through the device: half of them come while the others are updated, one after
 * the other, and then go. By turns, a GPU takes as long to begin an update and to turn from it to a
 * copy as it takes to copy half a chunk. */
#define PLACE_STREAM_STAGES 8

/* What a placement is free to choose, each from 0 (the least memory) to place_knob_max. */
enum place_knob {
    KNOB_PREFETCH,       /* layers fetched ahead, less one */
    KNOB_GRADIENT_SLOTS, /* 1: a second set of device gradients, so that storing overlaps */
    KNOB_STATE_STAGES,   /* chunk states in flight beyond four */
    KNOB_GRADIENT_RING,  /* stored gradients on their way beyond a few: a whole block's at most,
                          * which then leave beside the backward pass of the next one */
    KNOB_HI,             /* chunks whose plane is pinned in RAM, here and below */
    KNOB_LO,
    KNOB_M,
    KNOB_V,
    KNOB_X_DEVICE,     /* layers whose input is kept on the device */
    KNOB_X_RAM,        /* and in RAM; of the others: on the drive */
    KNOB_INNER_DEVICE, /* layers whose inner activations are kept on the device, */
    KNOB_INNER_RAM,    /* in RAM, */
    KNOB_INNER_NVME,  /* on the drive; of the others: recomputed (--recompute none: on the drive) */
    KNOB_TILES,       /* what of the head the device holds: enum place_tiles */
    KNOB_GRADIENTS,   /* chunks whose stored gradient waits in RAM */
    KNOB_STASH,       /* chunks of wte whose head gradient waits in RAM */
    KNOB_BLOCK_SLOTS, /* blocks' weights held beyond those fetched ahead */
    KNOB_DEVICE,      /* chunks whose state and gradient are on the device; HI to V and GRADIENTS
                       * count chunks among the others, and all of them where there are fewer */
    KNOB_STREAMED, /* chunks that are streamed, among those of which RAM holds all; none unless it
                    * holds all of the planes before v and all gradients that wait */
    KNOB_COUNT
};
extern const char *const place_knob_name[KNOB_COUNT];

/* The head's passes over its tiles want a few of them at a time. Where all are held, with their
 * gradients, and the logits of some rows beside them, the passes of a training step are one, in
 * which no logit is computed twice; the bits are the same. */
enum place_tiles {
    TILES_STREAMED,
    TILES_HELD, /* all tiles and their gradients */
    TILES_ONCE, /* and what kernels_head_once works with */
    TILES_COUNT
};

struct place_choice {
    uint32_t knob[KNOB_COUNT];
};

/* A chunk's bytes that neither RAM nor the device holds, where a chunk stands for many
 * (offload/coarse.h). */
struct place_share {
    uint64_t plane[PLANE_COUNT], gradient, stash;
    uint64_t device;   /* padded parameters whose state is on the device */
    uint64_t streamed; /* and that are streamed through it */
    uint32_t chunks;   /* how many it stands for */
};

struct place {
    struct place_spec spec; /* as given, prefetch filled in */
    struct place_choice choice;
    bool separate_device;
    bool immediate; /* no clipping: backward updates, and no gradient is stored */
    /* RAM is the device's memory and holds all gradients: one is stored where it was summed. A
     * block's lies where activations were that backward has used up, and the update comes before
     * they are written again: in bf16 where its own were, in FP32, where it is summed there too
     * (gradient_slots is 0), where the next block's were. */
    bool gradients_shared;
    uint64_t weight_bytes;                        /* a parameter on the device: 2 or 4 */
    uint64_t gradient_bytes;                      /* a parameter, stored: 2 or 4 */
    uint64_t x_bytes, inner_bytes, scratch_bytes; /* of a micro-batch (and block) */
    uint64_t head_once_bytes;                     /* scratch of the head at once */

    uint8_t *resident;         /* owned; [chunk]: 0..4 planes in RAM (hi, lo, m, v in that order) */
    bool *on_device;           /* owned; [chunk]: its whole state is there, and resident is 0 */
    bool *streamed;            /* owned; [chunk]: resident is PLANE_COUNT */
    bool *gradient_in_ram;     /* owned; [chunk]; all false when updates are immediate */
    bool *stash_in_ram;        /* owned; [wte chunk] */
    uint8_t *x_where;          /* owned; [layer] enum place_where */
    uint8_t *inner_where;      /* owned; [layer] */
    bool weights_in_place;     /* blocks compute straight from the hi plane that is there */
    bool head_once;            /* TILES_ONCE */
    struct place_share *share; /* owned; [chunk], or NULL: chunks are wholly here or there */
    const uint32_t *tiles_each; /* borrowed, with share: [tile] how many it stands for */

    uint32_t block_slots, tile_slots, gradient_slots, tile_gradient_slots;
    uint32_t state_stages, join_stages, gradient_stages, gradient_outs, stash_stages;
    uint32_t inner_slots, activation_stages, stream_stages;

    uint64_t ram_bytes, vram_bytes, nvme_bytes; /* arenas, and files on the drive */
    uint64_t resident_plane_chunks[PLANE_COUNT];
    double predicted_s;   /* of a usual step, at layer level; 0: not searched */
    uint32_t evaluations; /* placements that the search has simulated */
};

/* Slots of the state file, and their bytes. */
static inline uint32_t place_slots(const struct place_spec *spec)
{
    return spec->one_slot ? 1 : 2;
}
static inline uint64_t place_state_bytes(const struct place_spec *spec)
{
    return place_slots(spec) * spec->layout->slot_bytes;
}

/* The kernels' working memory: no two of them run at once. */
static inline uint64_t place_scratch_bytes(const struct place *place)
{
    return place->head_once ? MAX(place->scratch_bytes, place->head_once_bytes)
                            : place->scratch_bytes;
}

/* Padded parameters of a chunk whose state is on the device; and of those whose is not. */
static inline uint64_t place_device_count(const struct place *place, uint32_t chunk)
{
    if (place->share)
        return place->share[chunk].device;
    return place->on_device[chunk] ? place->spec.layout->chunks[chunk].count : 0;
}
static inline uint64_t place_host_count(const struct place *place, uint32_t chunk)
{
    return place->spec.layout->chunks[chunk].count - place_device_count(place, chunk);
}

/* Of these, those that are streamed; the CPU updates the others. */
static inline uint64_t place_streamed_count(const struct place *place, uint32_t chunk)
{
    if (place->share)
        return place->share[chunk].streamed;
    return place->streamed[chunk] ? place->spec.layout->chunks[chunk].count : 0;
}

/* What of a chunk's plane, stored gradient or stashed gradient is on the drive. */
static inline uint64_t place_plane_spilled(const struct place *place, uint32_t chunk,
                                           uint32_t plane)
{
    if (place->share)
        return place->share[chunk].plane[plane];
    bool resident = plane < place->resident[chunk] || place->on_device[chunk];
    return resident ? 0
                    : layout_plane_bytes(place->spec.layout,
                                         place->spec.layout->chunks[chunk].count, plane);
}
static inline uint64_t place_gradient_spilled(const struct place *place, uint32_t chunk)
{
    if (place->share)
        return place->share[chunk].gradient;
    bool resident = place->immediate || place->gradient_in_ram[chunk] || place->on_device[chunk];
    return resident ? 0 : place->spec.layout->chunks[chunk].count * place->gradient_bytes;
}
static inline uint64_t place_stash_spilled(const struct place *place, uint32_t chunk)
{
    if (place->share)
        return place->share[chunk].stash;
    return place->stash_in_ram[chunk] ? 0 : place->spec.layout->chunks[chunk].count * 4;
}

/* The fastest placement on spec->profile that place_search finds, among those that keep the write
 * budget; without a profile, what a fixed order of spending gives, whatever it writes. 0, or
 * ERR_INPUT. The result is to be given to place_deinit either way.
 */
int place_choose(struct place *place, const struct place_spec *spec, struct err *err);
void place_deinit(struct place *place);

/* The steps of place_choose, for its search and for tests. place_init: what follows from the spec
 * alone. place_least_choice: what takes the least memory; where RAM is too small for that and the
 * device has room, state is there. place_measure: what a choice takes of
 * each tier, in closed form; true when it fits RAM and device. place_grow raises a knob as far as
 * that fits, up to `most`. place_apply makes the choice the placement. */
void place_init(struct place *place, const struct place_spec *spec);
void place_least_choice(struct place *place, struct place_choice *choice);
bool place_measure(struct place *place, const struct place_choice *choice);
uint32_t place_knob_max(const struct place *place, enum place_knob knob);
void place_grow(struct place *place, struct place_choice *choice, enum place_knob knob,
                uint32_t most);
void place_apply(struct place *place, const struct place_choice *choice);

/* How far a spending of the budgets goes with each knob, and in which order. */
struct place_limits {
    uint32_t most[KNOB_COUNT];
    uint32_t block_slots_first; /* of KNOB_BLOCK_SLOTS, before activations take the device */
    bool inner_last;            /* inner activations only from what state leaves over */
    bool device_last;           /* state on the device only from what all else leaves over */
};
void place_limits_init(const struct place *place, struct place_limits *limits);
void place_spend(struct place *place, const struct place_limits *limits,
                 struct place_choice *choice);

/* Where the choice keeps a layer's input and its inner activations. */
enum place_where place_x_where(const struct place *place, const struct place_choice *choice,
                               uint32_t layer);
enum place_where place_inner_where(const struct place *place, const struct place_choice *choice,
                                   uint32_t layer);
/* Chunks among the first `before` whose state the choice puts on the device, or whose plane, or
 * stored gradient, into RAM. */
uint64_t place_device_taken(const struct place *place, const struct place_choice *choice,
                            uint32_t before);
uint64_t place_plane_taken(const struct place *place, const struct place_choice *choice,
                           uint32_t plane, uint32_t before);
uint64_t place_gradients_taken(const struct place *place, const struct place_choice *choice,
                               uint32_t before);
uint64_t place_streamed_taken(const struct place *place, const struct place_choice *choice,
                              uint32_t before);
/* Of how many chunks RAM holds all, so that they may be streamed. */
uint32_t place_streamable(const struct place *place, const struct place_choice *choice);

/* Which of `rest` chunks in a row are the `count` taken ones: spread evenly, so that no layer waits
 * longer for the drive than another. The number among the first `index` of them. */
static inline uint64_t place_taken_before(uint64_t index, uint64_t count, uint64_t rest)
{
    return rest ? index * count / rest : 0;
}

/* The least that the budgets allow to move in one step, for what the placement makes unavoidable
 * (DESIGN section 2.3), unpadded. update: a step that applies pending updates. */
struct place_least {
    uint64_t ssd_read_bytes, ssd_write_bytes, h2d_bytes, d2h_bytes;
};
void place_least(const struct place *place, bool update, bool forward, bool backward,
                 struct place_least *least);

/* FLOPs of a step without recomputation, logits included: {forward, backward}. Matrix products and
 * attention. */
void place_flops(const struct place_spec *spec, uint64_t *forward, uint64_t *backward);

/* What train and plan say of --nvme-slots 1. */
#define PLACE_ONE_SLOT_NOTE                                                                        \
    "one slot (--nvme-slots 1): no crash safety between commits; what is killed in a step goes "   \
    "on only from a copy that --keep-every made"

/* A table of what sits where, for a person; and what was chosen, in words. */
void place_print(const struct place *place, const struct plan_memory *memory, FILE *out);
void place_print_choice(const struct place *place, FILE *out);

#endif
