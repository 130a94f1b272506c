/*
 * place: what sits where. Turns (model, batch, budgets, machine) into a placement: how many planes
 * of each chunk RAM holds, where activations and gradients wait, how deep the rings are.
 *
 * The placement never touches the mathematics: the plan built from any two placements computes the
 * same bits. place_choose refuses budgets that cannot work, naming what takes the most and the
 * smallest flag that works. Pure; called by train, plan and the tests.
 */
#ifndef SPILLWAY_OFFLOAD_PLACE_H
#define SPILLWAY_OFFLOAD_PLACE_H

#include "core/err.h"
#include "model/kernels.h"
#include "offload/layout.h"
#include "offload/profile.h"
#include <stdio.h>
#include <stdbool.h>
#include <stdint.h>

struct plan_memory;

enum place_recompute { RECOMPUTE_AUTO, RECOMPUTE_ALL, RECOMPUTE_NONE };

/* How many planes are pinned in RAM: by the search, or by the user. */
#define PLACE_RESIDENT_AUTO (-1)

struct place_spec {
    const struct config *config; /* borrowed */
    const struct layout *layout; /* borrowed */
    enum precision precision;
    uint32_t seq, batch, accum; /* T, B, M */
    uint64_t ram_budget;        /* the whole process */
    uint64_t vram_budget;       /* 0: no separate device memory */
    uint64_t nvme_budget;       /* UINT64_MAX: what the drive has */
    uint64_t overhead_bytes;    /* code, libraries, stacks, heap: measured by the caller */
    bool nvme;                  /* there is a folder for the NVMe tier */
    bool clip;                  /* gradients are clipped by their global norm */
    int resident_planes;        /* 0..4 forced, or PLACE_RESIDENT_AUTO */
    uint32_t prefetch;          /* layers ahead; 0: chosen (1 where memory is short, else 2) */
    enum place_recompute recompute;
    const struct profile *profile; /* borrowed: the machine that it should be fast on */
};

enum place_where { WHERE_DEVICE, WHERE_RAM, WHERE_NVME, WHERE_RECOMPUTE };

struct place {
    struct place_spec spec; /* as given, prefetch filled in */
    struct kernels_sizes sizes;
    bool separate_device;
    bool immediate;          /* no clipping: backward updates, and no gradient is stored */
    uint64_t weight_bytes;   /* a parameter on the device: 2 or 4 */
    uint64_t gradient_bytes; /* a parameter, stored: 2 or 4 */
    uint64_t x_bytes, inner_bytes;

    uint8_t *resident;     /* owned; [chunk]: 0..4 planes in RAM (hi, lo, m, v in that order) */
    bool *gradient_in_ram; /* owned; [chunk]; all false when updates are immediate */
    bool *stash_in_ram;    /* owned; [wte chunk] */
    uint8_t *x_where;      /* owned; [layer] enum place_where */
    uint8_t *inner_where;  /* owned; [layer] */
    bool weights_in_place; /* blocks compute straight from the resident hi plane */

    uint32_t block_slots, tile_slots, gradient_slots, tile_gradient_slots;
    uint32_t state_stages, join_stages, gradient_stages, gradient_outs, stash_stages;
    uint32_t inner_slots, activation_stages;

    uint64_t ram_bytes, vram_bytes, nvme_bytes; /* arenas, and files on the drive */
    uint64_t resident_plane_chunks[PLANE_COUNT];
};

/* 0, or ERR_INPUT. The result is to be given to place_deinit either way. */
int place_choose(struct place *place, const struct place_spec *spec, struct err *err);
void place_deinit(struct place *place);

/* The least that the budgets allow to move in one step, for what the placement makes unavoidable
 * (DESIGN section 2.3), unpadded. update: a step that applies pending updates. */
struct place_least {
    uint64_t ssd_read_bytes, ssd_write_bytes, h2d_bytes, d2h_bytes;
};
void place_least(const struct place *place, bool update, bool forward, bool backward,
                 struct place_least *least);

/* FLOPs of a step without recomputation: {forward, backward}. Matrix products and attention, the
 * head's second look at its logits included. */
void place_flops(const struct place_spec *spec, uint64_t *forward, uint64_t *backward);

/* A table of what sits where, for a person. */
void place_print(const struct place *place, const struct plan_memory *memory, FILE *out);

#endif
