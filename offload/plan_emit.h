/*
 * plan_emit: how ops are written down: room for an op, its uses, the waits that follow from them,
 * and the transfers that every pass of the builder needs. Called by plan_build.c alone, which knows
 * what a step consists of; this file knows what an op is.
 *
 * Waits are derived from the uses alone: the builder never states one by hand.
 */
#ifndef SPILLWAY_OFFLOAD_PLAN_EMIT_H
#define SPILLWAY_OFFLOAD_PLAN_EMIT_H

#include "offload/plan.h"

struct emit_reader {
    uint32_t op, next;
};

struct emit {
    struct plan *plan;
    const struct place *place;
    const struct plan_memory *memory;
    const struct layout *layout;

    uint32_t *last_writer;  /* [cell] */
    uint32_t *first_reader; /* [cell]: readers since, a list in `readers` */
    struct emit_reader *readers;
    uint32_t reader_count, reader_max;
    uint32_t *seen; /* [op]: last op that waits on it, so that a wait is listed once */
};

void emit_init(struct emit *emit, struct plan *plan);
void emit_deinit(struct emit *emit);

/* Room for a new op; the caller adds its uses in order and calls emit_finish. The pointer is good
 * until then. */
struct plan_op *emit_start(struct emit *emit, enum plan_op_kind kind, enum plan_lane lane);
void emit_reads(struct plan_op *op, struct plan_cells cells);
void emit_writes(struct plan_op *op, struct plan_cells cells);
void emit_finish(struct emit *emit);
/* The op finished last, to add what does not concern its waits. */
struct plan_op *emit_last(struct emit *emit);

/* Sub-runs of a run of cells; emit_next walks round a ring. */
struct plan_cells emit_some(struct plan_cells cells, uint32_t first, uint32_t count);
struct plan_cells emit_one(struct plan_cells cells, uint32_t index);
struct plan_cells emit_next(struct plan_cells ring, uint32_t *counter);
uint64_t emit_bytes(const struct emit *emit, struct plan_cells cells);
extern const struct plan_cells emit_none;

/* What an op is about, for the listing and the trace; PLAN_NONE where it does not apply. */
struct emit_about {
    uint32_t layer, micro, chunk;
};

/* Between RAM and the device. */
void emit_copy(struct emit *emit, enum plan_op_kind kind, struct plan_cells from,
               struct plan_cells to, uint64_t bytes, struct emit_about about);
/* Between RAM and the scratch file. */
void emit_drive(struct emit *emit, enum plan_op_kind kind, struct plan_cells from,
                struct plan_cells to, uint64_t bytes, struct emit_about about);
/* Planes [first, first + count) of a chunk, what RAM does not hold of them, between the state file
 * and memory cell `cell`; returns the bytes. Nothing is emitted when there are none. */
uint64_t emit_planes(struct emit *emit, enum plan_op_kind kind, uint32_t chunk, uint32_t first,
                     uint32_t count, struct plan_cells cell);
/* A resident plane of a chunk, written for a commit. */
void emit_committed(struct emit *emit, uint32_t chunk, uint32_t plane);
/* OP_VERIFY: `cell` against the checksum of the file's cell; OP_SUM: the checksum of what will be
 * written there. */
void emit_checksum(struct emit *emit, enum plan_op_kind kind, struct plan_cells cell,
                   struct plan_cells file, uint64_t bytes);

#endif
