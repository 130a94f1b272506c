#include "offload/plan_emit.h"

#include "core/mem.h"

#include <string.h>

void emit_init(struct emit *emit, struct plan *plan)
{
    *emit = (struct emit){
        .plan = plan,
        .place = plan->place,
        .memory = plan->memory,
        .layout = plan->place->spec.layout,
    };
    emit->last_writer = mem_alloc(plan->memory->cell_count, sizeof(*emit->last_writer));
    emit->first_reader = mem_alloc(plan->memory->cell_count, sizeof(*emit->first_reader));
    for (uint32_t i = 0; i < plan->memory->cell_count; i++)
        emit->last_writer[i] = emit->first_reader[i] = PLAN_NONE;
}

void emit_deinit(struct emit *emit)
{
    mem_free(emit->last_writer);
    mem_free(emit->first_reader);
    mem_free(emit->readers);
    mem_free(emit->seen);
    *emit = (struct emit){0};
}

static void add_wait(struct emit *emit, uint32_t op, uint32_t on)
{
    struct plan *plan = emit->plan;
    if (on == PLAN_NONE || on == op || emit->seen[on] == op)
        return;
    emit->seen[on] = op;
    if (plan->wait_count == plan->wait_max) {
        plan->wait_max = plan->wait_max ? plan->wait_max * 2 : 4096;
        plan->waits = mem_realloc(plan->waits, plan->wait_max, sizeof(*plan->waits));
    }
    plan->waits[plan->wait_count++] = on;
}

static void add_reader(struct emit *emit, uint32_t cell, uint32_t op)
{
    if (emit->reader_count == emit->reader_max) {
        emit->reader_max = emit->reader_max ? emit->reader_max * 2 : 4096;
        emit->readers = mem_realloc(emit->readers, emit->reader_max, sizeof(*emit->readers));
    }
    emit->readers[emit->reader_count] = (struct emit_reader){op, emit->first_reader[cell]};
    emit->first_reader[cell] = emit->reader_count++;
}

/* Derives the waits of the newest op from its uses, then records the uses. */
static void track(struct emit *emit, uint32_t number)
{
    struct plan_op *op = &emit->plan->ops[number];
    op->first_wait = emit->plan->wait_count;
    for (uint32_t u = 0; u < op->use_count; u++)
        for (uint32_t i = 0; i < op->uses[u].cells.count; i++) {
            uint32_t cell = op->uses[u].cells.first + i;
            add_wait(emit, number, emit->last_writer[cell]);
            if (!op->uses[u].write)
                continue;
            for (uint32_t r = emit->first_reader[cell]; r != PLAN_NONE; r = emit->readers[r].next)
                add_wait(emit, number, emit->readers[r].op);
        }
    op->wait_count = emit->plan->wait_count - op->first_wait;
    for (uint32_t u = 0; u < op->use_count; u++)
        for (uint32_t i = 0; i < op->uses[u].cells.count; i++) {
            uint32_t cell = op->uses[u].cells.first + i;
            if (op->uses[u].write) {
                emit->last_writer[cell] = number;
                emit->first_reader[cell] = PLAN_NONE;
            }
        }
    for (uint32_t u = 0; u < op->use_count; u++)
        for (uint32_t i = 0; i < op->uses[u].cells.count; i++)
            if (!op->uses[u].write)
                add_reader(emit, op->uses[u].cells.first + i, number);
}

struct plan_op *emit_start(struct emit *emit, enum plan_op_kind kind, enum plan_lane lane)
{
    struct plan *plan = emit->plan;
    if (plan->op_count == plan->op_max) {
        uint32_t old = plan->op_max;
        plan->op_max = old ? old * 2 : 1024;
        plan->ops = mem_realloc(plan->ops, plan->op_max, sizeof(*plan->ops));
        emit->seen = mem_realloc(emit->seen, plan->op_max, sizeof(*emit->seen));
        for (uint32_t i = old; i < plan->op_max; i++)
            emit->seen[i] = PLAN_NONE;
    }
    struct plan_op *op = &plan->ops[plan->op_count];
    memset(op, 0, sizeof(*op));
    op->kind = (uint8_t)kind;
    op->lane = (uint8_t)lane;
    op->micro = op->layer = op->chunk = PLAN_NONE;
    return op;
}

static void use(struct plan_op *op, struct plan_cells cells, bool write)
{
    ASSERT(op->use_count < PLAN_USES_MAX);
    op->uses[op->use_count++] = (struct plan_use){cells, write};
}
void emit_reads(struct plan_op *op, struct plan_cells cells)
{
    use(op, cells, false);
}
void emit_writes(struct plan_op *op, struct plan_cells cells)
{
    use(op, cells, true);
}

void emit_finish(struct emit *emit)
{
    track(emit, emit->plan->op_count++);
}

struct plan_op *emit_last(struct emit *emit)
{
    ASSERT(emit->plan->op_count > 0);
    return &emit->plan->ops[emit->plan->op_count - 1];
}

struct plan_cells emit_some(struct plan_cells cells, uint32_t first, uint32_t count)
{
    ASSERT(first + count <= cells.count);
    return (struct plan_cells){cells.first + first, count};
}
struct plan_cells emit_one(struct plan_cells cells, uint32_t index)
{
    return emit_some(cells, index, 1);
}
struct plan_cells emit_next(struct plan_cells ring, uint32_t *counter)
{
    ASSERT(ring.count > 0);
    return emit_one(ring, (*counter)++ % ring.count);
}
const struct plan_cells emit_none = {0, 0};

uint64_t emit_bytes(const struct emit *emit, struct plan_cells cells)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < cells.count; i++)
        bytes += emit->memory->cells[cells.first + i].bytes;
    return bytes;
}

static void set_about(struct plan_op *op, struct emit_about about)
{
    op->layer = about.layer;
    op->micro = about.micro;
    op->chunk = about.chunk;
}

void emit_copy(struct emit *emit, enum plan_op_kind kind, struct plan_cells from,
               struct plan_cells to, uint64_t bytes, struct emit_about about)
{
    ASSERT(emit->memory->separate_device);
    struct plan_op *op = emit_start(emit, kind, kind == OP_COPY_H2D ? LANE_H2D : LANE_D2H);
    set_about(op, about);
    op->bytes = bytes;
    emit_reads(op, from);
    emit_writes(op, to);
    emit_finish(emit);
}

void emit_drive(struct emit *emit, enum plan_op_kind kind, struct plan_cells from,
                struct plan_cells to, uint64_t bytes, struct emit_about about)
{
    struct plan_op *op = emit_start(emit, kind, kind == OP_READ ? LANE_SSD_READ : LANE_SSD_WRITE);
    set_about(op, about);
    op->bytes = bytes;
    emit_reads(op, from);
    emit_writes(op, to);
    emit_finish(emit);
}

static void emit_state(struct emit *emit, enum plan_op_kind kind, uint32_t chunk, uint32_t first,
                       uint32_t count, struct plan_cells cell, uint64_t bytes)
{
    struct plan_cells file =
        emit_some(emit->memory->plane_nvme, chunk * PLANE_COUNT + first, count);
    struct plan_op *op = emit_start(emit, kind, kind == OP_READ ? LANE_SSD_READ : LANE_SSD_WRITE);
    op->chunk = chunk;
    op->plane = (uint8_t)first;
    op->plane_count = (uint8_t)count;
    op->bytes = bytes;
    emit_reads(op, kind == OP_READ ? file : cell);
    emit_writes(op, kind == OP_READ ? cell : file);
    emit_finish(emit);
}

uint64_t emit_planes(struct emit *emit, enum plan_op_kind kind, uint32_t chunk, uint32_t first,
                     uint32_t count, struct plan_cells cell)
{
    uint64_t bytes = 0;
    for (uint32_t p = first; p < first + count; p++)
        bytes += place_plane_spilled(emit->place, chunk, p);
    if (bytes)
        emit_state(emit, kind, chunk, first, count, cell, bytes);
    return bytes;
}

void emit_committed(struct emit *emit, uint32_t chunk, uint32_t plane)
{
    struct plan_cells cell = emit_one(emit->memory->plane_ram, chunk * PLANE_COUNT + plane);
    emit_state(emit, OP_WRITE, chunk, plane, 1, cell, emit_bytes(emit, cell));
    emit_last(emit)->flags = OP_COMMITTED;
}

void emit_checksum(struct emit *emit, enum plan_op_kind kind, struct plan_cells cell,
                   struct plan_cells file, uint64_t bytes)
{
    struct plan_op *op = emit_start(emit, kind, LANE_CPU);
    op->bytes = bytes;
    /* A verified cell counts as written, so that its readers wait for the verdict. */
    use(op, cell, kind == OP_VERIFY);
    /* The file's checksum travels with the file's cell: a sum is one of its writers. */
    use(op, file, kind == OP_SUM);
    emit_finish(emit);
}
