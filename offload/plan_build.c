/*
 * plan_build: writes the ops of a step down, in issue order. See plan.h.
 *
 * The order of the passes over the weights is up and down: embedding tiles upwards, blocks upwards,
 * the head's first pass over its tiles downwards, its second upwards, blocks downwards. So what the
 * device used last is what it needs next, the least recently used slot is the right one to give
 * up, and "not still held" in DESIGN section 2.3 is met exactly. The order is fixed: it never
 * depends on the number of slots, since sums over tiles follow it.
 *
 * Waits are derived from the uses alone (track): the builder never states one by hand.
 */
#include "offload/plan.h"

#include "core/mem.h"

#include <string.h>

#define SLOTS_MAX 4096

/* Which weights a set of device slots holds; the least recently used one is given up. */
struct slots {
    uint32_t count, clock;
    uint32_t key[SLOTS_MAX], used[SLOTS_MAX];
};

struct reader {
    uint32_t op, next;
};

struct builder {
    struct plan *plan;
    const struct place *place;
    const struct plan_memory *memory;
    const struct layout *layout;
    struct plan_request request;

    uint32_t *last_writer;  /* [cell] */
    uint32_t *first_reader; /* [cell]: readers since, a list in `readers` */
    struct reader *readers;
    uint32_t reader_count, reader_max;
    uint32_t *seen; /* [op]: last op that waits on it, so that a wait is listed once */

    struct slots blocks, tiles;
    uint32_t next_stage, next_join, next_gradient_stage, next_gradient_out, next_stash_stage;
    uint32_t next_x, next_inner, next_activation_stage;
    uint32_t *x_cell; /* [micro]: where the residual stream is now */
};

static void add_wait(struct builder *b, uint32_t op, uint32_t on)
{
    struct plan *plan = b->plan;
    if (on == PLAN_NONE || on == op || b->seen[on] == op)
        return;
    b->seen[on] = op;
    if (plan->wait_count == plan->wait_max) {
        plan->wait_max = plan->wait_max ? plan->wait_max * 2 : 4096;
        plan->waits = mem_realloc(plan->waits, plan->wait_max, sizeof(*plan->waits));
    }
    plan->waits[plan->wait_count++] = on;
}

static void add_reader(struct builder *b, uint32_t cell, uint32_t op)
{
    if (b->reader_count == b->reader_max) {
        b->reader_max = b->reader_max ? b->reader_max * 2 : 4096;
        b->readers = mem_realloc(b->readers, b->reader_max, sizeof(*b->readers));
    }
    b->readers[b->reader_count] = (struct reader){op, b->first_reader[cell]};
    b->first_reader[cell] = b->reader_count++;
}

/* Derives the waits of the newest op from its uses, then records the uses. */
static void track(struct builder *b, uint32_t number)
{
    struct plan_op *op = &b->plan->ops[number];
    op->first_wait = b->plan->wait_count;
    for (uint32_t u = 0; u < op->use_count; u++)
        for (uint32_t i = 0; i < op->uses[u].cells.count; i++) {
            uint32_t cell = op->uses[u].cells.first + i;
            add_wait(b, number, b->last_writer[cell]);
            if (!op->uses[u].write)
                continue;
            for (uint32_t r = b->first_reader[cell]; r != PLAN_NONE; r = b->readers[r].next)
                add_wait(b, number, b->readers[r].op);
        }
    op->wait_count = b->plan->wait_count - op->first_wait;
    for (uint32_t u = 0; u < op->use_count; u++)
        for (uint32_t i = 0; i < op->uses[u].cells.count; i++) {
            uint32_t cell = op->uses[u].cells.first + i;
            if (op->uses[u].write) {
                b->last_writer[cell] = number;
                b->first_reader[cell] = PLAN_NONE;
            }
        }
    for (uint32_t u = 0; u < op->use_count; u++)
        for (uint32_t i = 0; i < op->uses[u].cells.count; i++)
            if (!op->uses[u].write)
                add_reader(b, op->uses[u].cells.first + i, number);
}

/* Room for a new op; the caller fills it and calls finish. */
static struct plan_op *start(struct builder *b, enum plan_op_kind kind, enum plan_lane lane)
{
    struct plan *plan = b->plan;
    if (plan->op_count == plan->op_max) {
        uint32_t old = plan->op_max;
        plan->op_max = old ? old * 2 : 1024;
        plan->ops = mem_realloc(plan->ops, plan->op_max, sizeof(*plan->ops));
        b->seen = mem_realloc(b->seen, plan->op_max, sizeof(*b->seen));
        for (uint32_t i = old; i < plan->op_max; i++)
            b->seen[i] = PLAN_NONE;
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
static void reads(struct plan_op *op, struct plan_cells cells) { use(op, cells, false); }
static void writes(struct plan_op *op, struct plan_cells cells) { use(op, cells, true); }

static void finish(struct builder *b) { track(b, b->plan->op_count++); }

/* Sub-runs of a run of cells. */
static struct plan_cells some(struct plan_cells cells, uint32_t first, uint32_t count)
{
    ASSERT(first + count <= cells.count);
    return (struct plan_cells){cells.first + first, count};
}
static struct plan_cells one(struct plan_cells cells, uint32_t index)
{
    return some(cells, index, 1);
}
static struct plan_cells next(struct plan_cells ring, uint32_t *counter)
{
    ASSERT(ring.count > 0);
    return one(ring, (*counter)++ % ring.count);
}
static const struct plan_cells no_cells = {0, 0};

static uint64_t cell_bytes(const struct builder *b, struct plan_cells cells)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < cells.count; i++)
        bytes += b->memory->cells[cells.first + i].bytes;
    return bytes;
}

static void slots_init(struct slots *slots, uint32_t count)
{
    ASSERT(count <= SLOTS_MAX);
    slots->count = count;
    slots->clock = 0;
    for (uint32_t i = 0; i < count; i++) {
        slots->key[i] = PLAN_NONE;
        slots->used[i] = 0;
    }
}

/* The slot that holds key, or the least recently used one, which then belongs to key. */
static uint32_t slots_take(struct slots *slots, uint32_t key, bool *held)
{
    ASSERT(slots->count > 0);
    uint32_t best = 0;
    for (uint32_t i = 0; i < slots->count; i++) {
        if (slots->key[i] == key) {
            best = i;
            break;
        }
        if (slots->used[i] < slots->used[best])
            best = i;
    }
    *held = slots->key[best] == key;
    slots->key[best] = key;
    slots->used[best] = ++slots->clock;
    return best;
}

/* ---- Transfers ------------------------------------------------------------------------------ */

static void copy(struct builder *b, enum plan_op_kind kind, struct plan_cells from,
                 struct plan_cells to, uint64_t bytes, uint32_t layer, uint32_t micro,
                 uint32_t chunk)
{
    ASSERT(b->memory->separate_device);
    struct plan_op *op = start(b, kind, kind == OP_COPY_H2D ? LANE_H2D : LANE_D2H);
    op->layer = layer;
    op->micro = micro;
    op->chunk = chunk;
    op->bytes = bytes;
    reads(op, from);
    writes(op, to);
    finish(b);
}

static void drive(struct builder *b, enum plan_op_kind kind, struct plan_cells from,
                  struct plan_cells to, uint64_t bytes, uint32_t layer, uint32_t micro)
{
    struct plan_op *op = start(b, kind, kind == OP_READ ? LANE_SSD_READ : LANE_SSD_WRITE);
    op->layer = layer;
    op->micro = micro;
    op->bytes = bytes;
    reads(op, from);
    writes(op, to);
    finish(b);
}

/* Planes [first, first + count) of a chunk, to or from memory cell `cell`. */
static void drive_planes(struct builder *b, enum plan_op_kind kind, uint32_t chunk,
                         uint32_t first, uint32_t count, struct plan_cells cell, uint16_t flags)
{
    struct plan_cells file = some(b->memory->plane_nvme, chunk * PLANE_COUNT + first, count);
    struct plan_op *op = start(b, kind, kind == OP_READ ? LANE_SSD_READ : LANE_SSD_WRITE);
    op->chunk = chunk;
    op->plane = (uint8_t)first;
    op->plane_count = (uint8_t)count;
    op->flags = flags;
    op->bytes = cell_bytes(b, file);
    reads(op, kind == OP_READ ? file : cell);
    writes(op, kind == OP_READ ? cell : file);
    finish(b);
}

/* A checksum of the memory in `cell` is compared with, or becomes, that of the file's `file`. */
static void checksum(struct builder *b, enum plan_op_kind kind, struct plan_cells cell,
                     struct plan_cells file, uint64_t bytes)
{
    struct plan_op *op = start(b, kind, LANE_CPU);
    op->bytes = bytes;
    /* A verified cell counts as written, so that its readers wait for the verdict. */
    use(op, cell, kind == OP_VERIFY);
    /* The file's checksum travels with the file's cell: a sum is one of its writers. */
    use(op, file, kind == OP_SUM);
    finish(b);
}

/* ---- Weights and updates -------------------------------------------------------------------- */

/* The compute weights of a chunk into `target` on the device. stage holds the chunk's spilled
 * planes when an update has just made them; else what RAM does not hold is read. */
static void load_chunk(struct builder *b, uint32_t chunk, struct plan_cells target,
                       struct plan_cells stage)
{
    const struct place *place = b->place;
    ASSERT(!place->weights_in_place);
    uint64_t count = b->layout->chunks[chunk].count;
    uint32_t planes = place->spec.precision == PRECISION_BF16 ? 1 : 2;
    uint32_t resident = MIN(place->resident[chunk], planes);
    bool bf16 = planes == 1;
    if (resident < planes && !stage.count) {
        struct plan_cells file =
            some(b->memory->plane_nvme, chunk * PLANE_COUNT + resident, planes - resident);
        bool direct = bf16 && !b->memory->separate_device;
        stage = direct ? target : next(b->memory->state_stage, &b->next_stage);
        drive_planes(b, OP_READ, chunk, resident, planes - resident, stage, 0);
        checksum(b, OP_VERIFY, stage, file, cell_bytes(b, file));
        struct plan_op *verify = &b->plan->ops[b->plan->op_count - 1];
        verify->chunk = chunk;
        verify->plane = (uint8_t)resident;
        verify->plane_count = (uint8_t)(planes - resident);
        if (direct)
            return;
    }
    struct plan_cells planes_ram = some(b->memory->plane_ram, chunk * PLANE_COUNT, resident);
    if (resident == planes)
        stage = no_cells;
    if (bf16 && b->memory->separate_device) {
        copy(b, OP_COPY_H2D, resident ? planes_ram : stage, target, count * 2, PLAN_NONE,
             PLAN_NONE, chunk);
        return;
    }
    struct plan_cells to = target;
    if (b->memory->separate_device)
        to = next(b->memory->join_stage, &b->next_join);
    struct plan_op *op = start(b, OP_JOIN, LANE_CPU);
    op->chunk = chunk;
    op->bytes = count * (bf16 ? 4 : 8);
    reads(op, planes_ram);
    reads(op, stage);
    writes(op, to);
    finish(b);
    if (b->memory->separate_device)
        copy(b, OP_COPY_H2D, to, target, count * 4, PLAN_NONE, PLAN_NONE, chunk);
}

/* Applies the pending gradient to a chunk and writes what is spilled (and, in a commit, what is
 * not). Returns the stage with the new spilled planes, or no cells. */
static struct plan_cells update_chunk(struct builder *b, uint32_t chunk)
{
    const struct place *place = b->place;
    const struct plan_memory *memory = b->memory;
    uint64_t count = b->layout->chunks[chunk].count;
    uint32_t resident = place->resident[chunk];
    struct plan_cells stage = no_cells, gradient = one(memory->gradient_ram, chunk);
    if (resident < PLANE_COUNT) {
        stage = next(memory->state_stage, &b->next_stage);
        drive_planes(b, OP_READ, chunk, resident, PLANE_COUNT - resident, stage, 0);
    }
    if (!place->gradient_in_ram[chunk]) {
        gradient = next(memory->gradient_stage, &b->next_gradient_stage);
        drive(b, OP_READ, one(memory->gradient_nvme, chunk), gradient,
              count * place->gradient_bytes, PLAN_NONE, PLAN_NONE);
        b->plan->ops[b->plan->op_count - 1].chunk = chunk;
        b->plan->ops[b->plan->op_count - 1].gradient = true;
    }
    struct plan_op *op = start(b, OP_UPDATE, LANE_CPU);
    op->chunk = chunk;
    op->flags = OP_VERIFY_INPUT;
    op->bytes = count * (2 * LAYOUT_STATE_BYTES + place->gradient_bytes);
    writes(op, some(memory->plane_ram, chunk * PLANE_COUNT, resident));
    writes(op, stage);
    reads(op, gradient);
    finish(b);
    if (stage.count)
        drive_planes(b, OP_WRITE, chunk, resident, PLANE_COUNT - resident, stage, 0);
    for (uint32_t p = 0; p < resident && b->request.commit; p++)
        drive_planes(b, OP_WRITE, chunk, p, 1, one(memory->plane_ram, chunk * PLANE_COUNT + p),
                     OP_COMMITTED);
    return stage;
}

/* Brings chunks [first, first + count) to the device cells `target` (one each), updating them on
 * the way when gradients are pending. */
static void bring(struct builder *b, uint32_t first, uint32_t count, struct plan_cells target,
                  bool update)
{
    for (uint32_t i = 0; i < count; i++) {
        struct plan_cells stage = update ? update_chunk(b, first + i) : no_cells;
        if (!b->request.forward || b->place->weights_in_place)
            continue;
        load_chunk(b, first + i, one(target, i), stage);
    }
}

/* The cells in which kernels find the weights of chunks [first, first + count). In place, the hi
 * planes are read; the range covers the other planes of these chunks too, which nothing else
 * uses while the weights are. */
static struct plan_cells in_place(const struct builder *b, uint32_t first, uint32_t count)
{
    return some(b->memory->plane_ram, first * PLANE_COUNT, count * PLANE_COUNT);
}

static struct plan_cells block_weights(struct builder *b, uint32_t layer, bool update)
{
    uint32_t chunks = b->layout->block_chunks;
    uint32_t first = b->layout->group_first_chunk[layer + 1];
    struct plan_cells target = no_cells;
    bool held = false;
    if (!b->place->weights_in_place) {
        uint32_t slot = slots_take(&b->blocks, layer, &held);
        target = some(b->memory->block_weights, slot * chunks, chunks);
    }
    ASSERT(!(held && update));
    if (!held && (update || !b->place->weights_in_place))
        bring(b, first, chunks, target, update);
    return b->place->weights_in_place ? in_place(b, first, chunks) : target;
}

static struct plan_cells tile_weights(struct builder *b, uint32_t tile, bool update)
{
    const struct layout_tile *t = &b->layout->tiles[tile];
    struct plan_cells target = no_cells;
    bool held = false;
    if (!b->place->weights_in_place) {
        uint32_t slot = slots_take(&b->tiles, tile, &held);
        target = some(b->memory->tile_weights, slot * b->layout->tile_chunks_max, t->chunk_count);
    }
    if (!held && (update || !b->place->weights_in_place))
        bring(b, t->first_chunk, t->chunk_count, target, update);
    return b->place->weights_in_place ? in_place(b, t->first_chunk, t->chunk_count) : target;
}

static struct plan_cells fixed_weights(struct builder *b, uint32_t first, uint32_t count,
                                       struct plan_cells target, bool update)
{
    if (update || !b->place->weights_in_place)
        bring(b, first, count, target, update);
    return b->place->weights_in_place ? in_place(b, first, count) : target;
}

/* ---- Activations ---------------------------------------------------------------------------- */

static uint32_t layer_count(const struct builder *b) { return b->place->spec.config->layers; }
static uint32_t accum(const struct builder *b) { return b->place->spec.accum; }

/* Where the input of a block (or of ln_f: layer == layers) is written on the device. */
static struct plan_cells x_home(struct builder *b, uint32_t layer, uint32_t micro)
{
    if (layer == layer_count(b))
        return one(b->memory->x_final, micro);
    if (b->place->x_where[layer] == WHERE_DEVICE)
        return one(b->memory->x_keep, layer * accum(b) + micro);
    return next(b->memory->x_ring, &b->next_x);
}

/* Sends an activation away from the device, or back; ram and nvme are its cells there. */
static void spill(struct builder *b, enum place_where where, struct plan_cells from,
                  struct plan_cells ram, struct plan_cells nvme, uint64_t bytes, uint32_t layer,
                  uint32_t micro)
{
    if (where == WHERE_RAM)
        copy(b, OP_COPY_D2H, from, ram, bytes, layer, micro, PLAN_NONE);
    if (where != WHERE_NVME)
        return;
    struct plan_cells stage = from;
    if (b->memory->separate_device) {
        stage = next(b->memory->activation_stage, &b->next_activation_stage);
        copy(b, OP_COPY_D2H, from, stage, bytes, layer, micro, PLAN_NONE);
    }
    checksum(b, OP_SUM, stage, nvme, bytes);
    drive(b, OP_WRITE, stage, nvme, bytes, layer, micro);
}

static void fetch(struct builder *b, enum place_where where, struct plan_cells to,
                  struct plan_cells ram, struct plan_cells nvme, uint64_t bytes, uint32_t layer,
                  uint32_t micro)
{
    if (where == WHERE_RAM)
        copy(b, OP_COPY_H2D, ram, to, bytes, layer, micro, PLAN_NONE);
    if (where != WHERE_NVME)
        return;
    struct plan_cells stage = to;
    if (b->memory->separate_device)
        stage = next(b->memory->activation_stage, &b->next_activation_stage);
    drive(b, OP_READ, nvme, stage, bytes, layer, micro);
    checksum(b, OP_VERIFY, stage, nvme, bytes);
    if (b->memory->separate_device)
        copy(b, OP_COPY_H2D, stage, to, bytes, layer, micro, PLAN_NONE);
}

static void spill_x(struct builder *b, uint32_t layer, uint32_t micro, struct plan_cells x)
{
    if (!b->request.backward || layer == layer_count(b))
        return;
    uint32_t i = layer * accum(b) + micro;
    spill(b, b->place->x_where[layer], x, one(b->memory->x_ram, i), one(b->memory->x_nvme, i),
          b->place->x_bytes, layer, micro);
}

static struct plan_cells fetch_x(struct builder *b, uint32_t layer, uint32_t micro)
{
    uint32_t i = layer * accum(b) + micro;
    struct plan_cells x = x_home(b, layer, micro);
    fetch(b, b->place->x_where[layer], x, one(b->memory->x_ram, i), one(b->memory->x_nvme, i),
          b->place->x_bytes, layer, micro);
    return x;
}

/* ---- Forward -------------------------------------------------------------------------------- */

static uint64_t rows(const struct builder *b)
{
    return (uint64_t)b->place->spec.batch * b->place->spec.seq;
}

static void build_embedding(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
        if (memory->separate_device)
            copy(b, OP_COPY_H2D, one(memory->tokens_host, m), one(memory->tokens, m),
                 rows(b) * 2 * 4, PLAN_NONE, m, PLAN_NONE);
        b->x_cell[m] = x_home(b, 0, m).first;
    }
    for (uint32_t t = 0; t < b->layout->tile_count; t++) {
        struct plan_cells weights = tile_weights(b, t, b->request.update);
        for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
            struct plan_op *op = start(b, OP_EMBED_FORWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            reads(op, weights);
            reads(op, one(memory->tokens, m));
            writes(op, (struct plan_cells){b->x_cell[m], 1});
            finish(b);
        }
    }
    struct plan_cells wpe = fixed_weights(b, b->layout->wpe_first_chunk, b->layout->wpe_chunk_count,
                                          memory->wpe_weights, b->request.update);
    for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
        struct plan_cells x = {b->x_cell[m], 1};
        struct plan_op *op = start(b, OP_POSITION_FORWARD, LANE_COMPUTE);
        op->micro = m;
        reads(op, wpe);
        writes(op, x);
        finish(b);
        spill_x(b, 0, m, x);
    }
}

static uint64_t block_flops(const struct builder *b)
{
    uint64_t c = b->place->spec.config->channels;
    return rows(b) * (24 * c * c + 2 * c * b->place->spec.seq);
}

static struct plan_cells inner_home(struct builder *b, uint32_t layer, uint32_t micro)
{
    if (b->place->inner_where[layer] == WHERE_DEVICE)
        return one(b->memory->inner_keep, layer * accum(b) + micro);
    return next(b->memory->inner_ring, &b->next_inner);
}

static void build_block_forward(struct builder *b, uint32_t layer)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells weights = block_weights(b, layer, b->request.update);
    for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
        struct plan_cells x_in = {b->x_cell[m], 1};
        struct plan_cells x_out = x_home(b, layer + 1, m);
        struct plan_cells inner = inner_home(b, layer, m);
        struct plan_op *op = start(b, OP_BLOCK_FORWARD, LANE_COMPUTE);
        op->layer = layer;
        op->micro = m;
        op->flops = block_flops(b);
        reads(op, weights);
        reads(op, x_in);
        writes(op, x_out);
        writes(op, inner);
        writes(op, memory->scratch);
        finish(b);
        b->x_cell[m] = x_out.first;
        spill_x(b, layer + 1, m, x_out);
        uint32_t i = layer * accum(b) + m;
        if (b->request.backward)
            spill(b, b->place->inner_where[layer], inner, one(memory->inner_ram, i),
                  one(memory->inner_nvme, i), b->place->inner_bytes, layer, m);
    }
}

static void build_head_forward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    uint64_t c = b->place->spec.config->channels;
    for (uint32_t i = 0; i < b->layout->tile_count; i++) {
        uint32_t t = b->layout->tile_count - 1 - i;
        struct plan_cells weights = tile_weights(b, t, false);
        for (uint32_t m = 0; m < accum(b); m++) {
            struct plan_op *op = start(b, OP_HEAD_FORWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            op->flags = i == 0 ? OP_FIRST : 0;
            op->flops = 2 * rows(b) * c * b->layout->tiles[t].row_count;
            reads(op, weights);
            reads(op, one(memory->y, m));
            reads(op, one(memory->tokens, m));
            writes(op, one(memory->running, m));
            writes(op, memory->scratch);
            finish(b);
        }
    }
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_op *op = start(b, OP_HEAD_LOSS, LANE_COMPUTE);
        op->micro = m;
        writes(op, one(memory->running, m));
        writes(op, one(memory->losses, m));
        finish(b);
        if (memory->separate_device)
            copy(b, OP_COPY_D2H, one(memory->losses, m), one(memory->losses_host, m),
                 rows(b) * 4, PLAN_NONE, m, PLAN_NONE);
    }
}

static struct plan_cells build_final_norm(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells weights = fixed_weights(b, b->layout->chunk_count - 1, 1,
                                              memory->final_weights, b->request.update);
    for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
        struct plan_op *op = start(b, OP_NORM_FORWARD, LANE_COMPUTE);
        op->micro = m;
        reads(op, weights);
        reads(op, one(memory->x_final, m));
        writes(op, one(memory->y, m));
        writes(op, one(memory->statistics, m));
        finish(b);
    }
    return weights;
}

/* ---- Backward ------------------------------------------------------------------------------- */

/* A chunk's finished gradient, in the device cell `gradient`, to where it waits for the update. */
static void store_gradient(struct builder *b, uint32_t chunk, struct plan_cells gradient)
{
    const struct place *place = b->place;
    const struct plan_memory *memory = b->memory;
    bool separate = memory->separate_device, bf16 = place->spec.precision == PRECISION_BF16;
    uint64_t bytes = b->layout->chunks[chunk].count * place->gradient_bytes;
    bool spilled = !place->gradient_in_ram[chunk];
    struct plan_cells home = spilled ? next(memory->gradient_stage, &b->next_gradient_stage)
                                     : one(memory->gradient_ram, chunk);
    struct plan_cells stored = home;
    if (separate)
        stored = bf16 ? next(memory->gradient_out, &b->next_gradient_out) : gradient;
    struct plan_op *op = start(b, OP_GRADIENT_STORE, LANE_COMPUTE);
    op->chunk = chunk;
    reads(op, gradient);
    writes(op, stored);
    writes(op, memory->square_sums);
    finish(b);
    if (separate)
        copy(b, OP_COPY_D2H, stored, home, bytes, PLAN_NONE, PLAN_NONE, chunk);
    if (!spilled)
        return;
    struct plan_cells file = one(memory->gradient_nvme, chunk);
    checksum(b, OP_SUM, home, file, bytes);
    drive(b, OP_WRITE, home, file, bytes, PLAN_NONE, PLAN_NONE);
    b->plan->ops[b->plan->op_count - 1].chunk = chunk;
    b->plan->ops[b->plan->op_count - 1].gradient = true;
}

/* The head's gradient of a tile waits, in FP32, until the embedding's is added to it. */
static bool tile_gradients_held(const struct builder *b)
{
    return b->place->tile_gradient_slots >= b->layout->tile_count;
}

static struct plan_cells tile_gradient(const struct builder *b, uint32_t tile)
{
    uint32_t slot = tile % b->place->tile_gradient_slots;
    return some(b->memory->tile_gradient, slot * b->layout->tile_chunks_max,
                b->layout->tiles[tile].chunk_count);
}

static void stash_tile(struct builder *b, uint32_t tile)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells gradient = tile_gradient(b, tile);
    for (uint32_t i = 0; i < gradient.count; i++) {
        uint32_t c = b->layout->tiles[tile].first_chunk + i;
        uint64_t bytes = b->layout->chunks[c].count * 4;
        struct plan_cells from = one(gradient, i), stage = from;
        if (b->place->stash_in_ram[c]) {
            copy(b, OP_COPY_D2H, from, one(memory->stash_ram, c), bytes, PLAN_NONE, PLAN_NONE, c);
            continue;
        }
        if (memory->separate_device) {
            stage = next(memory->stash_stage, &b->next_stash_stage);
            copy(b, OP_COPY_D2H, from, stage, bytes, PLAN_NONE, PLAN_NONE, c);
        }
        checksum(b, OP_SUM, stage, one(memory->stash_nvme, c), bytes);
        drive(b, OP_WRITE, stage, one(memory->stash_nvme, c), bytes, PLAN_NONE, PLAN_NONE);
    }
}

static void unstash_tile(struct builder *b, uint32_t tile)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells gradient = tile_gradient(b, tile);
    for (uint32_t i = 0; i < gradient.count; i++) {
        uint32_t c = b->layout->tiles[tile].first_chunk + i;
        uint64_t bytes = b->layout->chunks[c].count * 4;
        struct plan_cells to = one(gradient, i), stage = to;
        if (b->place->stash_in_ram[c]) {
            copy(b, OP_COPY_H2D, one(memory->stash_ram, c), to, bytes, PLAN_NONE, PLAN_NONE, c);
            continue;
        }
        if (memory->separate_device)
            stage = next(memory->stash_stage, &b->next_stash_stage);
        drive(b, OP_READ, one(memory->stash_nvme, c), stage, bytes, PLAN_NONE, PLAN_NONE);
        checksum(b, OP_VERIFY, stage, one(memory->stash_nvme, c), bytes);
        if (memory->separate_device)
            copy(b, OP_COPY_H2D, stage, to, bytes, PLAN_NONE, PLAN_NONE, c);
    }
}

static void build_head_backward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    uint64_t c = b->place->spec.config->channels;
    for (uint32_t t = 0; t < b->layout->tile_count; t++) {
        struct plan_cells weights = tile_weights(b, t, false);
        for (uint32_t m = 0; m < accum(b); m++) {
            struct plan_op *op = start(b, OP_HEAD_BACKWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            op->flags = t == 0 ? OP_FIRST : 0;
            op->flops = 6 * rows(b) * c * b->layout->tiles[t].row_count;
            reads(op, weights);
            reads(op, one(memory->y, m));
            reads(op, one(memory->tokens, m));
            reads(op, one(memory->running, m));
            writes(op, one(memory->dx, m));
            writes(op, tile_gradient(b, t));
            writes(op, memory->scratch);
            finish(b);
        }
        if (!tile_gradients_held(b))
            stash_tile(b, t);
    }
}

static void build_norm_backward(struct builder *b, struct plan_cells weights)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_op *op = start(b, OP_NORM_BACKWARD, LANE_COMPUTE);
        op->micro = m;
        reads(op, weights);
        reads(op, one(memory->x_final, m));
        reads(op, one(memory->statistics, m));
        writes(op, one(memory->dx, m));
        writes(op, memory->final_gradient);
        writes(op, memory->scratch);
        finish(b);
    }
    store_gradient(b, b->layout->chunk_count - 1, memory->final_gradient);
}

static void build_block_backward(struct builder *b, uint32_t layer)
{
    const struct plan_memory *memory = b->memory;
    uint32_t chunks = b->layout->block_chunks;
    struct plan_cells weights = block_weights(b, layer, false);
    struct plan_cells gradient =
        some(memory->block_gradient, layer % b->place->gradient_slots * chunks, chunks);
    enum place_where where = b->place->inner_where[layer];
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_cells x = fetch_x(b, layer, m);
        struct plan_cells inner = inner_home(b, layer, m);
        uint32_t i = layer * accum(b) + m;
        fetch(b, where, inner, one(memory->inner_ram, i), one(memory->inner_nvme, i),
              b->place->inner_bytes, layer, m);
        if (where == WHERE_RECOMPUTE) {
            struct plan_op *op = start(b, OP_RECOMPUTE, LANE_COMPUTE);
            op->layer = layer;
            op->micro = m;
            /* All but the last product (8 of 24 C^2). */
            uint64_t c = b->place->spec.config->channels;
            op->flops = block_flops(b) - rows(b) * 8 * c * c;
            reads(op, weights);
            reads(op, x);
            writes(op, inner);
            writes(op, memory->scratch);
            finish(b);
        }
        struct plan_op *op = start(b, OP_BLOCK_BACKWARD, LANE_COMPUTE);
        op->layer = layer;
        op->micro = m;
        op->flops = 2 * block_flops(b);
        reads(op, weights);
        reads(op, x);
        reads(op, inner);
        writes(op, one(memory->dx, m));
        writes(op, gradient);
        writes(op, memory->scratch);
        finish(b);
    }
    for (uint32_t i = 0; i < chunks; i++)
        store_gradient(b, b->layout->group_first_chunk[layer + 1] + i, one(gradient, i));
}

static void build_embedding_backward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_op *op = start(b, OP_POSITION_BACKWARD, LANE_COMPUTE);
        op->micro = m;
        reads(op, one(memory->dx, m));
        writes(op, memory->wpe_gradient);
        finish(b);
    }
    for (uint32_t i = 0; i < b->layout->wpe_chunk_count; i++)
        store_gradient(b, b->layout->wpe_first_chunk + i, one(memory->wpe_gradient, i));
    for (uint32_t t = 0; t < b->layout->tile_count; t++) {
        if (!tile_gradients_held(b))
            unstash_tile(b, t);
        struct plan_cells gradient = tile_gradient(b, t);
        for (uint32_t m = 0; m < accum(b); m++) {
            struct plan_op *op = start(b, OP_EMBED_BACKWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            reads(op, one(memory->tokens, m));
            reads(op, one(memory->dx, m));
            writes(op, gradient);
            finish(b);
        }
        for (uint32_t i = 0; i < gradient.count; i++)
            store_gradient(b, b->layout->tiles[t].first_chunk + i, one(gradient, i));
    }
    if (memory->separate_device)
        copy(b, OP_COPY_D2H, memory->square_sums, memory->square_host,
             (uint64_t)b->layout->chunk_count * PLAN_SQUARES_PER_CHUNK * sizeof(double), PLAN_NONE,
             PLAN_NONE, PLAN_NONE);
    struct plan_op *op = start(b, OP_CLIP, LANE_CPU);
    reads(op, memory->square_host);
    finish(b);
}

void plan_build(struct plan *plan, const struct place *place, const struct plan_memory *memory,
                const struct plan_request *request)
{
    ASSERT(request->forward || !request->backward);
    ASSERT(request->update || !request->commit);
    *plan = (struct plan){
        .place = place,
        .memory = memory,
        .update = request->update,
        .commit = request->commit,
        .forward = request->forward,
        .backward = request->backward,
    };
    struct builder *b = mem_alloc(1, sizeof(*b));
    b->plan = plan;
    b->place = place;
    b->memory = memory;
    b->layout = place->spec.layout;
    b->request = *request;
    b->last_writer = mem_alloc(memory->cell_count, sizeof(*b->last_writer));
    b->first_reader = mem_alloc(memory->cell_count, sizeof(*b->first_reader));
    b->x_cell = mem_alloc(place->spec.accum, sizeof(*b->x_cell));
    for (uint32_t i = 0; i < memory->cell_count; i++)
        b->last_writer[i] = b->first_reader[i] = PLAN_NONE;
    slots_init(&b->blocks, place->block_slots);
    slots_init(&b->tiles, place->tile_slots);

    build_embedding(b);
    for (uint32_t l = 0; l < layer_count(b); l++)
        build_block_forward(b, l);
    struct plan_cells final_weights = build_final_norm(b);
    if (request->commit) {
        struct plan_op *op = start(b, OP_COMMIT, LANE_CPU);
        reads(op, memory->plane_nvme);
        finish(b);
    }
    if (request->forward)
        build_head_forward(b);
    plan->backward_first = plan->op_count;
    if (request->backward) {
        build_head_backward(b);
        build_norm_backward(b, final_weights);
        for (uint32_t i = 0; i < layer_count(b); i++)
            build_block_backward(b, layer_count(b) - 1 - i);
        build_embedding_backward(b);
    }
    mem_free(b->last_writer);
    mem_free(b->first_reader);
    mem_free(b->readers);
    mem_free(b->seen);
    mem_free(b->x_cell);
    mem_free(b);
}
