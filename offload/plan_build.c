/*
 * plan_build: writes the ops of a step down, in issue order. See plan.h.
 *
 * The order of the passes over the weights is up and down: embedding tiles upwards, blocks upwards,
 * the head's first pass over its tiles downwards, its second upwards, blocks downwards. So what the
 * device used last is what it needs next, the least recently used slot is the right one to give
 * up, and "not still held" in DESIGN section 2.3 is met exactly. The order is fixed: it never
 * depends on the number of slots, since sums over tiles follow it.
 */
#include "offload/plan_emit.h"

#include "core/mem.h"
#include "model/graph.h"

#define SLOTS_MAX 4096

/* Which weights a set of device slots holds; the least recently used one is given up. */
struct slots {
    uint32_t count, clock;
    uint32_t key[SLOTS_MAX], used[SLOTS_MAX];
};

struct builder {
    struct emit emit; /* first: passes hand &b->emit on */
    const struct place *place;
    const struct plan_memory *memory;
    const struct layout *layout;
    struct plan_request request;
    struct slots blocks, tiles;
    uint32_t next_stage, next_join, next_gradient_stage, next_gradient_out, next_stash_stage;
    uint32_t next_x, next_inner, next_activation_stage;
    uint32_t *x_cell; /* [micro]: where the residual stream is now */
};

static const struct emit_about about_nothing = {PLAN_NONE, PLAN_NONE, PLAN_NONE};

static struct emit_about about_chunk(uint32_t chunk)
{
    return (struct emit_about){PLAN_NONE, PLAN_NONE, chunk};
}

static struct emit_about about_layer(uint32_t layer, uint32_t micro)
{
    return (struct emit_about){layer, micro, PLAN_NONE};
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
            emit_some(b->memory->plane_nvme, chunk * PLANE_COUNT + resident, planes - resident);
        bool direct = bf16 && !b->memory->separate_device;
        stage = direct ? target : emit_next(b->memory->state_stage, &b->next_stage);
        uint64_t bytes = emit_planes(&b->emit, OP_READ, chunk, resident, planes - resident, stage);
        emit_checksum(&b->emit, OP_VERIFY, stage, file, bytes);
        struct plan_op *verify = emit_last(&b->emit);
        verify->chunk = chunk;
        verify->plane = (uint8_t)resident;
        verify->plane_count = (uint8_t)(planes - resident);
        /* At layer level a part of the chunk may be in RAM; of one chunk, all or nothing is. */
        count -= direct ? bytes / 2 : 0;
        if (!count)
            return;
    }
    struct plan_cells planes_ram = emit_some(b->memory->plane_ram, chunk * PLANE_COUNT, resident);
    if (resident == planes)
        stage = emit_none;
    if (bf16 && b->memory->separate_device) {
        emit_copy(&b->emit, OP_COPY_H2D, resident ? planes_ram : stage, target, count * 2,
                  about_chunk(chunk));
        return;
    }
    struct plan_cells to = target;
    if (b->memory->separate_device)
        to = emit_next(b->memory->join_stage, &b->next_join);
    struct plan_op *op = emit_start(&b->emit, OP_JOIN, LANE_CPU);
    op->chunk = chunk;
    op->bytes = count * (bf16 ? 4 : 8);
    emit_reads(op, planes_ram);
    emit_reads(op, stage);
    emit_writes(op, to);
    emit_finish(&b->emit);
    if (b->memory->separate_device)
        emit_copy(&b->emit, OP_COPY_H2D, to, target, count * 4, about_chunk(chunk));
}

/* Applies a gradient to a chunk and writes what is spilled (and, in a commit, what is not).
 * gradient is where backward has just put it, or no cells: then it is the pending one. Returns the
 * stage with the new spilled planes, or no cells. */
static struct plan_cells update_chunk(struct builder *b, uint32_t chunk, struct plan_cells gradient)
{
    const struct place *place = b->place;
    const struct plan_memory *memory = b->memory;
    uint64_t count = b->layout->chunks[chunk].count;
    uint32_t resident = place->resident[chunk];
    struct plan_cells stage = emit_none;
    if (resident < PLANE_COUNT) {
        stage = emit_next(memory->state_stage, &b->next_stage);
        emit_planes(&b->emit, OP_READ, chunk, resident, PLANE_COUNT - resident, stage);
    }
    if (!gradient.count && place->gradient_in_ram[chunk])
        gradient = emit_one(memory->gradient_ram, chunk);
    if (!gradient.count) {
        gradient = emit_next(memory->gradient_stage, &b->next_gradient_stage);
        emit_drive(&b->emit, OP_READ, emit_one(memory->gradient_nvme, chunk), gradient,
                   place_gradient_spilled(place, chunk), about_nothing);
        emit_last(&b->emit)->chunk = chunk;
        emit_last(&b->emit)->gradient = true;
    }
    struct plan_op *op = emit_start(&b->emit, OP_UPDATE, LANE_CPU);
    op->chunk = chunk;
    op->bytes = 2 * layout_state_bytes(place->spec.layout, count) + count * place->gradient_bytes;
    emit_writes(op, emit_some(memory->plane_ram, chunk * PLANE_COUNT, resident));
    emit_writes(op, stage);
    emit_reads(op, gradient);
    if (place->immediate)
        emit_reads(op, memory->losses_host); /* behind OP_CHECK */
    emit_finish(&b->emit);
    if (stage.count)
        emit_planes(&b->emit, OP_WRITE, chunk, resident, PLANE_COUNT - resident, stage);
    for (uint32_t p = 0; p < resident && b->request.commit; p++)
        emit_committed(&b->emit, chunk, p);
    return stage;
}

/* Brings chunks [first, first + count) to the device cells `target` (one each), updating them on
 * the way when gradients are pending. */
static void bring(struct builder *b, uint32_t first, uint32_t count, struct plan_cells target,
                  bool update)
{
    for (uint32_t i = 0; i < count; i++) {
        struct plan_cells stage = update ? update_chunk(b, first + i, emit_none) : emit_none;
        if (!b->request.forward || b->place->weights_in_place)
            continue;
        load_chunk(b, first + i, emit_one(target, i), stage);
    }
}

/* The cells in which kernels find the weights of chunks [first, first + count). In place, the hi
 * planes are read; the range covers the other planes of these chunks too, which nothing else
 * uses while the weights are. */
static struct plan_cells in_place(const struct builder *b, uint32_t first, uint32_t count)
{
    return emit_some(b->memory->plane_ram, first * PLANE_COUNT, count * PLANE_COUNT);
}

static struct plan_cells block_weights(struct builder *b, uint32_t layer, bool update)
{
    uint32_t chunks = b->layout->block_chunks;
    uint32_t first = b->layout->group_first_chunk[layer + 1];
    struct plan_cells target = emit_none;
    bool held = false;
    if (!b->place->weights_in_place) {
        uint32_t slot = slots_take(&b->blocks, layer, &held);
        target = emit_some(b->memory->block_weights, slot * chunks, chunks);
    }
    ASSERT(!(held && update));
    if (!held && (update || !b->place->weights_in_place))
        bring(b, first, chunks, target, update);
    return b->place->weights_in_place ? in_place(b, first, chunks) : target;
}

static struct plan_cells tile_weights(struct builder *b, uint32_t tile, bool update)
{
    const struct layout_tile *t = &b->layout->tiles[tile];
    struct plan_cells target = emit_none;
    bool held = false;
    if (!b->place->weights_in_place) {
        uint32_t slot = slots_take(&b->tiles, tile, &held);
        target =
            emit_some(b->memory->tile_weights, slot * b->layout->tile_chunks_max, t->chunk_count);
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

static uint32_t layer_count(const struct builder *b)
{
    return b->place->spec.config->layers;
}
static uint32_t accum(const struct builder *b)
{
    return b->place->spec.accum;
}

/* Where the input of a block (or of ln_f: layer == layers) is written on the device. */
static struct plan_cells x_home(struct builder *b, uint32_t layer, uint32_t micro)
{
    if (layer == layer_count(b))
        return emit_one(b->memory->x_final, micro);
    if (b->place->x_where[layer] == WHERE_DEVICE)
        return emit_one(b->memory->x_keep, layer * accum(b) + micro);
    return emit_next(b->memory->x_ring, &b->next_x);
}

/* Sends an activation away from the device, or back; ram and nvme are its cells there. */
static void spill(struct builder *b, enum place_where where, struct plan_cells from,
                  struct plan_cells ram, struct plan_cells nvme, uint64_t bytes,
                  struct emit_about about)
{
    if (where == WHERE_RAM)
        emit_copy(&b->emit, OP_COPY_D2H, from, ram, bytes, about);
    if (where != WHERE_NVME)
        return;
    struct plan_cells stage = from;
    if (b->memory->separate_device) {
        stage = emit_next(b->memory->activation_stage, &b->next_activation_stage);
        emit_copy(&b->emit, OP_COPY_D2H, from, stage, bytes, about);
    }
    emit_checksum(&b->emit, OP_SUM, stage, nvme, bytes);
    emit_drive(&b->emit, OP_WRITE, stage, nvme, bytes, about);
}

static void fetch(struct builder *b, enum place_where where, struct plan_cells to,
                  struct plan_cells ram, struct plan_cells nvme, uint64_t bytes,
                  struct emit_about about)
{
    if (where == WHERE_RAM)
        emit_copy(&b->emit, OP_COPY_H2D, ram, to, bytes, about);
    if (where != WHERE_NVME)
        return;
    struct plan_cells stage = to;
    if (b->memory->separate_device)
        stage = emit_next(b->memory->activation_stage, &b->next_activation_stage);
    emit_drive(&b->emit, OP_READ, nvme, stage, bytes, about);
    emit_checksum(&b->emit, OP_VERIFY, stage, nvme, bytes);
    if (b->memory->separate_device)
        emit_copy(&b->emit, OP_COPY_H2D, stage, to, bytes, about);
}

static void spill_x(struct builder *b, uint32_t layer, uint32_t micro, struct plan_cells x)
{
    if (!b->request.backward || layer == layer_count(b))
        return;
    uint32_t i = layer * accum(b) + micro;
    spill(b, b->place->x_where[layer], x, emit_one(b->memory->x_ram, i),
          emit_one(b->memory->x_nvme, i), b->place->x_bytes, about_layer(layer, micro));
}

static struct plan_cells fetch_x(struct builder *b, uint32_t layer, uint32_t micro)
{
    uint32_t i = layer * accum(b) + micro;
    struct plan_cells x = x_home(b, layer, micro);
    fetch(b, b->place->x_where[layer], x, emit_one(b->memory->x_ram, i),
          emit_one(b->memory->x_nvme, i), b->place->x_bytes, about_layer(layer, micro));
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
            emit_copy(&b->emit, OP_COPY_H2D, emit_one(memory->tokens_host, m),
                      emit_one(memory->tokens, m), rows(b) * 2 * 4, about_layer(PLAN_NONE, m));
        b->x_cell[m] = x_home(b, 0, m).first;
    }
    for (uint32_t t = 0; t < b->layout->tile_count; t++) {
        struct plan_cells weights = tile_weights(b, t, b->request.update);
        for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
            struct plan_op *op = emit_start(&b->emit, OP_EMBED_FORWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            emit_reads(op, weights);
            emit_reads(op, emit_one(memory->tokens, m));
            emit_writes(op, (struct plan_cells){b->x_cell[m], 1});
            emit_finish(&b->emit);
        }
    }
    struct plan_cells wpe = fixed_weights(b, b->layout->wpe_first_chunk, b->layout->wpe_chunk_count,
                                          memory->wpe_weights, b->request.update);
    for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
        struct plan_cells x = {b->x_cell[m], 1};
        if (wpe.count) {
            struct plan_op *op = emit_start(&b->emit, OP_POSITION_FORWARD, LANE_COMPUTE);
            op->micro = m;
            emit_reads(op, wpe);
            emit_writes(op, x);
            emit_finish(&b->emit);
        }
        spill_x(b, 0, m, x);
    }
}

static uint64_t block_flops(const struct builder *b)
{
    const struct config *config = b->place->spec.config;
    return graph_block_flops(config, rows(b)) +
           graph_attention_flops(config, rows(b), b->place->spec.seq);
}

static struct plan_cells inner_home(struct builder *b, uint32_t layer, uint32_t micro)
{
    if (b->place->inner_where[layer] == WHERE_DEVICE)
        return emit_one(b->memory->inner_keep, layer * accum(b) + micro);
    return emit_next(b->memory->inner_ring, &b->next_inner);
}

static void build_block_forward(struct builder *b, uint32_t layer)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells weights = block_weights(b, layer, b->request.update);
    for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
        struct plan_cells x_in = {b->x_cell[m], 1};
        struct plan_cells x_out = x_home(b, layer + 1, m);
        struct plan_cells inner = inner_home(b, layer, m);
        struct plan_op *op = emit_start(&b->emit, OP_BLOCK_FORWARD, LANE_COMPUTE);
        op->layer = layer;
        op->micro = m;
        op->flops = block_flops(b);
        emit_reads(op, weights);
        emit_reads(op, x_in);
        emit_writes(op, x_out);
        emit_writes(op, inner);
        emit_writes(op, memory->scratch);
        emit_finish(&b->emit);
        b->x_cell[m] = x_out.first;
        spill_x(b, layer + 1, m, x_out);
        uint32_t i = layer * accum(b) + m;
        if (b->request.backward)
            spill(b, b->place->inner_where[layer], inner, emit_one(memory->inner_ram, i),
                  emit_one(memory->inner_nvme, i), b->place->inner_bytes, about_layer(layer, m));
    }
}

static void build_commit(struct builder *b)
{
    if (!b->request.commit)
        return;
    struct plan_op *op = emit_start(&b->emit, OP_COMMIT, LANE_CPU);
    emit_reads(op, b->memory->plane_nvme);
    emit_finish(&b->emit);
}

/* The head's first pass over its tiles. A head of its own is updated here, the last of all. */
static void build_head_forward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    bool tied = b->layout->tied;
    for (uint32_t i = 0; i < b->layout->tile_count && (b->request.forward || !tied); i++) {
        uint32_t t = layout_head_tile(b->layout, b->layout->tile_count - 1 - i);
        struct plan_cells weights = tile_weights(b, t, b->request.update && !tied);
        for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
            struct plan_op *op = emit_start(&b->emit, OP_HEAD_FORWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            op->flags = i == 0 ? OP_FIRST : 0;
            op->flops =
                graph_head_flops(b->place->spec.config, rows(b), b->layout->tiles[t].row_count);
            emit_reads(op, weights);
            emit_reads(op, emit_one(memory->y, m));
            emit_reads(op, emit_one(memory->tokens, m));
            emit_writes(op, emit_one(memory->running, m));
            emit_writes(op, memory->scratch);
            emit_finish(&b->emit);
        }
    }
}

static void build_loss(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_op *op = emit_start(&b->emit, OP_HEAD_LOSS, LANE_COMPUTE);
        op->micro = m;
        emit_writes(op, emit_one(memory->running, m));
        emit_writes(op, emit_one(memory->losses, m));
        emit_finish(&b->emit);
        if (memory->separate_device)
            emit_copy(&b->emit, OP_COPY_D2H, emit_one(memory->losses, m),
                      emit_one(memory->losses_host, m), rows(b) * 4, about_layer(PLAN_NONE, m));
    }
}

static struct plan_cells build_final_norm(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells weights =
        fixed_weights(b, b->layout->final_chunk, 1, memory->final_weights, b->request.update);
    for (uint32_t m = 0; m < accum(b) && b->request.forward; m++) {
        struct plan_op *op = emit_start(&b->emit, OP_NORM_FORWARD, LANE_COMPUTE);
        op->micro = m;
        emit_reads(op, weights);
        emit_reads(op, emit_one(memory->x_final, m));
        emit_writes(op, emit_one(memory->y, m));
        emit_writes(op, emit_one(memory->statistics, m));
        emit_finish(&b->emit);
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
    struct plan_cells home = spilled ? emit_next(memory->gradient_stage, &b->next_gradient_stage)
                                     : emit_one(memory->gradient_ram, chunk);
    struct plan_cells stored = home;
    if (separate)
        stored = bf16 ? emit_next(memory->gradient_out, &b->next_gradient_out) : gradient;
    struct plan_op *op = emit_start(&b->emit, OP_GRADIENT_STORE, LANE_COMPUTE);
    op->chunk = chunk;
    emit_reads(op, gradient);
    emit_writes(op, stored);
    emit_writes(op, memory->square_sums);
    emit_finish(&b->emit);
    if (separate)
        emit_copy(&b->emit, OP_COPY_D2H, stored, home, bytes, about_chunk(chunk));
    if (b->place->immediate)
        update_chunk(b, chunk, home);
    if (!spilled || b->place->immediate)
        return;
    struct plan_cells file = emit_one(memory->gradient_nvme, chunk);
    emit_checksum(&b->emit, OP_SUM, home, file, place_gradient_spilled(place, chunk));
    emit_last(&b->emit)->chunk = chunk;
    emit_drive(&b->emit, OP_WRITE, home, file, place_gradient_spilled(place, chunk), about_nothing);
    emit_last(&b->emit)->chunk = chunk;
    emit_last(&b->emit)->gradient = true;
}

/* The head's gradient of a tile waits, in FP32, until the embedding's is added to it. */
static bool tile_gradients_held(const struct builder *b)
{
    return b->place->tile_gradient_slots >= layout_tile_count(b->layout);
}

static struct plan_cells tile_gradient(const struct builder *b, uint32_t tile)
{
    uint32_t slot = tile % b->place->tile_gradient_slots;
    return emit_some(b->memory->tile_gradient, slot * b->layout->tile_chunks_max,
                     b->layout->tiles[tile].chunk_count);
}

static void store_tile(struct builder *b, uint32_t tile)
{
    struct plan_cells gradient = tile_gradient(b, tile);
    for (uint32_t i = 0; i < gradient.count; i++)
        store_gradient(b, b->layout->tiles[tile].first_chunk + i, emit_one(gradient, i));
}

static void stash_tile(struct builder *b, uint32_t tile)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells gradient = tile_gradient(b, tile);
    for (uint32_t i = 0; i < gradient.count; i++) {
        uint32_t c = b->layout->tiles[tile].first_chunk + i;
        uint64_t bytes = b->layout->chunks[c].count * 4;
        struct plan_cells from = emit_one(gradient, i), stage = from;
        if (b->place->stash_in_ram[c]) {
            emit_copy(&b->emit, OP_COPY_D2H, from, emit_one(memory->stash_ram, c), bytes,
                      about_chunk(c));
            continue;
        }
        if (memory->separate_device) {
            stage = emit_next(memory->stash_stage, &b->next_stash_stage);
            emit_copy(&b->emit, OP_COPY_D2H, from, stage, bytes, about_chunk(c));
        }
        uint64_t spilled = place_stash_spilled(b->place, c);
        emit_checksum(&b->emit, OP_SUM, stage, emit_one(memory->stash_nvme, c), spilled);
        emit_last(&b->emit)->chunk = c;
        emit_drive(&b->emit, OP_WRITE, stage, emit_one(memory->stash_nvme, c), spilled,
                   about_nothing);
    }
}

static void unstash_tile(struct builder *b, uint32_t tile)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells gradient = tile_gradient(b, tile);
    for (uint32_t i = 0; i < gradient.count; i++) {
        uint32_t c = b->layout->tiles[tile].first_chunk + i;
        uint64_t bytes = b->layout->chunks[c].count * 4;
        struct plan_cells to = emit_one(gradient, i), stage = to;
        if (b->place->stash_in_ram[c]) {
            emit_copy(&b->emit, OP_COPY_H2D, emit_one(memory->stash_ram, c), to, bytes,
                      about_chunk(c));
            continue;
        }
        if (memory->separate_device)
            stage = emit_next(memory->stash_stage, &b->next_stash_stage);
        uint64_t spilled = place_stash_spilled(b->place, c);
        emit_drive(&b->emit, OP_READ, emit_one(memory->stash_nvme, c), stage, spilled,
                   about_nothing);
        emit_checksum(&b->emit, OP_VERIFY, stage, emit_one(memory->stash_nvme, c), spilled);
        emit_last(&b->emit)->chunk = c;
        if (memory->separate_device)
            emit_copy(&b->emit, OP_COPY_H2D, stage, to, bytes, about_chunk(c));
    }
}

static void build_head_backward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t i = 0; i < b->layout->tile_count; i++) {
        uint32_t t = layout_head_tile(b->layout, i);
        struct plan_cells weights = tile_weights(b, t, false);
        for (uint32_t m = 0; m < accum(b); m++) {
            struct plan_op *op = emit_start(&b->emit, OP_HEAD_BACKWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            op->flags = i == 0 ? OP_FIRST : 0;
            op->flops =
                3 * graph_head_flops(b->place->spec.config, rows(b), b->layout->tiles[t].row_count);
            emit_reads(op, weights);
            emit_reads(op, emit_one(memory->y, m));
            emit_reads(op, emit_one(memory->tokens, m));
            emit_reads(op, emit_one(memory->running, m));
            emit_writes(op, emit_one(memory->dx, m));
            emit_writes(op, tile_gradient(b, t));
            emit_writes(op, memory->scratch);
            emit_finish(&b->emit);
        }
        if (!b->layout->tied)
            store_tile(b, t);
        else if (!tile_gradients_held(b))
            stash_tile(b, t);
    }
}

static void build_norm_backward(struct builder *b, struct plan_cells weights)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_op *op = emit_start(&b->emit, OP_NORM_BACKWARD, LANE_COMPUTE);
        op->micro = m;
        emit_reads(op, weights);
        emit_reads(op, emit_one(memory->x_final, m));
        emit_reads(op, emit_one(memory->statistics, m));
        emit_writes(op, emit_one(memory->dx, m));
        emit_writes(op, memory->final_gradient);
        emit_writes(op, memory->scratch);
        emit_finish(&b->emit);
    }
    store_gradient(b, b->layout->final_chunk, memory->final_gradient);
}

static void build_block_backward(struct builder *b, uint32_t layer)
{
    const struct plan_memory *memory = b->memory;
    uint32_t chunks = b->layout->block_chunks;
    struct plan_cells weights = block_weights(b, layer, false);
    struct plan_cells gradient =
        emit_some(memory->block_gradient, layer % b->place->gradient_slots * chunks, chunks);
    enum place_where where = b->place->inner_where[layer];
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_cells x = fetch_x(b, layer, m);
        struct plan_cells inner = inner_home(b, layer, m);
        uint32_t i = layer * accum(b) + m;
        fetch(b, where, inner, emit_one(memory->inner_ram, i), emit_one(memory->inner_nvme, i),
              b->place->inner_bytes, about_layer(layer, m));
        if (where == WHERE_RECOMPUTE) {
            struct plan_op *op = emit_start(&b->emit, OP_RECOMPUTE, LANE_COMPUTE);
            op->layer = layer;
            op->micro = m;
            op->flops = block_flops(b) - graph_last_product_flops(b->place->spec.config, rows(b));
            emit_reads(op, weights);
            emit_reads(op, x);
            emit_writes(op, inner);
            emit_writes(op, memory->scratch);
            emit_finish(&b->emit);
        }
        struct plan_op *op = emit_start(&b->emit, OP_BLOCK_BACKWARD, LANE_COMPUTE);
        op->layer = layer;
        op->micro = m;
        op->flops = 2 * block_flops(b);
        emit_reads(op, weights);
        emit_reads(op, x);
        emit_reads(op, inner);
        emit_writes(op, emit_one(memory->dx, m));
        emit_writes(op, gradient);
        emit_writes(op, memory->scratch);
        emit_finish(&b->emit);
    }
    for (uint32_t i = 0; i < chunks; i++)
        store_gradient(b, b->layout->group_first_chunk[layer + 1] + i, emit_one(gradient, i));
}

static void build_embedding_backward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t m = 0; m < accum(b) && b->layout->wpe_chunk_count; m++) {
        struct plan_op *op = emit_start(&b->emit, OP_POSITION_BACKWARD, LANE_COMPUTE);
        op->micro = m;
        emit_reads(op, emit_one(memory->dx, m));
        emit_writes(op, memory->wpe_gradient);
        emit_finish(&b->emit);
    }
    for (uint32_t i = 0; i < b->layout->wpe_chunk_count; i++)
        store_gradient(b, b->layout->wpe_first_chunk + i, emit_one(memory->wpe_gradient, i));
    for (uint32_t t = 0; t < b->layout->tile_count; t++) {
        if (!tile_gradients_held(b) && b->layout->tied)
            unstash_tile(b, t);
        struct plan_cells gradient = tile_gradient(b, t);
        for (uint32_t m = 0; m < accum(b); m++) {
            struct plan_op *op = emit_start(&b->emit, OP_EMBED_BACKWARD, LANE_COMPUTE);
            op->layer = t;
            op->micro = m;
            emit_reads(op, emit_one(memory->tokens, m));
            emit_reads(op, emit_one(memory->dx, m));
            emit_writes(op, gradient);
            emit_finish(&b->emit);
        }
        store_tile(b, t);
    }
    if (memory->separate_device)
        emit_copy(&b->emit, OP_COPY_D2H, memory->square_sums, memory->square_host,
                  (uint64_t)b->layout->chunk_count * PLAN_SQUARES_PER_CHUNK * sizeof(double),
                  about_nothing);
    struct plan_op *op = emit_start(&b->emit, OP_CLIP, LANE_CPU);
    emit_reads(op, memory->square_host);
    emit_finish(&b->emit);
}

void plan_build(struct plan *plan, const struct place *place, const struct plan_memory *memory,
                const struct plan_request *request)
{
    ASSERT(request->forward || !request->backward);
    ASSERT(request->update || !request->commit);
    ASSERT(!request->update || !place->immediate);
    *plan = (struct plan){
        .place = place,
        .memory = memory,
        .update = request->update,
        .commit = request->commit,
        .forward = request->forward,
        .backward = request->backward,
    };
    struct builder *b = mem_alloc(1, sizeof(*b));
    emit_init(&b->emit, plan);
    b->place = place;
    b->memory = memory;
    b->layout = place->spec.layout;
    b->request = *request;
    b->x_cell = mem_alloc(place->spec.accum, sizeof(*b->x_cell));
    slots_init(&b->blocks, place->block_slots);
    slots_init(&b->tiles, place->tile_slots);

    build_embedding(b);
    for (uint32_t l = 0; l < layer_count(b); l++)
        build_block_forward(b, l);
    struct plan_cells final_weights = build_final_norm(b);
    if (b->layout->tied)
        build_commit(b);
    build_head_forward(b);
    if (!b->layout->tied)
        build_commit(b);
    if (request->forward)
        build_loss(b);
    plan->backward_first = plan->op_count;
    if (request->backward) {
        if (place->immediate) {
            struct plan_op *op = emit_start(&b->emit, OP_CHECK, LANE_CPU);
            emit_writes(op, memory->losses_host);
            emit_finish(&b->emit);
        }
        build_head_backward(b);
        build_norm_backward(b, final_weights);
        for (uint32_t i = 0; i < layer_count(b); i++)
            build_block_backward(b, layer_count(b) - 1 - i);
        build_embedding_backward(b);
    }
    emit_deinit(&b->emit);
    mem_free(b->x_cell);
    mem_free(b);
}
