/*
 * plan_build: writes the ops of a step down, in issue order. See plan.h.
 *
 * The order of the passes over the weights is up and down: embedding tiles upwards, blocks upwards,
 * the head's first pass over its tiles downwards, its second upwards, blocks downwards. So what the
 * device used last is what it needs next, the least recently used slot is the right one to give
 * up, and "not still held" in DESIGN section 2.3 is met exactly. The order is fixed: it never
 * depends on the number of slots, since sums over tiles follow it. Where the head is one op
 * (place.h: TILES_ONCE), it keeps to that order inside.
 */
#include "offload/plan_state.h"

#include "core/mem.h"
#include "model/graph.h"

struct builder {
    struct emit emit; /* first: passes hand &b->emit on */
    const struct place *place;
    const struct plan_memory *memory;
    const struct layout *layout;
    struct plan_request request;
    struct plan_state state;
    uint32_t next_stash_stage, next_x, next_inner, next_activation_stage;
    uint32_t *x_cell; /* [micro]: where the residual stream is now */
    struct leaving {
        bool waits;
        uint32_t layer, micro;
        struct plan_cells x, inner;
    } leaving; /* of the block before */
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
        struct plan_cells weights = plan_state_tile(&b->state, t, b->request.update);
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
    struct plan_cells wpe =
        plan_state_fixed(&b->state, b->layout->wpe_first_chunk, b->layout->wpe_chunk_count,
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
        return b->memory->inner_keep[layer * accum(b) + micro];
    return emit_next(b->memory->inner_ring, &b->next_inner);
}

static void spill_block(struct builder *b, const struct leaving *leaving)
{
    uint32_t i = leaving->layer * accum(b) + leaving->micro;
    spill_x(b, leaving->layer + 1, leaving->micro, leaving->x);
    if (b->request.backward)
        spill(b, b->place->inner_where[leaving->layer], leaving->inner,
              emit_one(b->memory->inner_ram, i), emit_one(b->memory->inner_nvme, i),
              b->place->inner_bytes, about_layer(leaving->layer, leaving->micro));
}

/* Where state is streamed, the last micro-batch's activations leave behind the next block's
 * updates: these would wait for them on the d2h lane, and so for this block, although the device
 * has nothing else to do for them. Nothing is written over before: a block's ops come later. */
static void leave_block(struct builder *b, const struct leaving *leaving)
{
    if (b->place->stream_stages && b->request.update && leaving->micro == accum(b) - 1)
        b->leaving = *leaving;
    else
        spill_block(b, leaving);
}

static void spill_waiting(struct builder *b)
{
    if (b->leaving.waits)
        spill_block(b, &b->leaving);
    b->leaving.waits = false;
}

static void build_block_forward(struct builder *b, uint32_t layer)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells weights = plan_state_block(&b->state, layer, b->request.update);
    spill_waiting(b);
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
        struct leaving leaving = {true, layer, m, x_out, inner};
        leave_block(b, &leaving);
    }
}

/* All is updated. */
static void build_commit(struct builder *b)
{
    if (b->request.update)
        plan_state_check(&b->state);
    if (!b->request.commit)
        return;
    struct plan_op *op = emit_start(&b->emit, OP_COMMIT, LANE_CPU);
    emit_reads(op, b->memory->plane_nvme);
    if (b->memory->update_flags_host.count)
        emit_reads(op, b->memory->update_flags_host);
    emit_finish(&b->emit);
}

/* The head's first pass over its tiles. A head of its own is updated here, the last of all. */
static void build_head_forward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    bool tied = b->layout->tied;
    for (uint32_t i = 0; i < b->layout->tile_count && (b->request.forward || !tied); i++) {
        uint32_t t = layout_head_tile(b->layout, b->layout->tile_count - 1 - i);
        struct plan_cells weights = plan_state_tile(&b->state, t, b->request.update && !tied);
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

static void bring_losses(struct builder *b, uint32_t micro)
{
    if (b->memory->separate_device)
        emit_copy(&b->emit, OP_COPY_D2H, emit_one(b->memory->losses, micro),
                  emit_one(b->memory->losses_host, micro), rows(b) * 4,
                  about_layer(PLAN_NONE, micro));
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
        bring_losses(b, m);
    }
}

static struct plan_cells build_final_norm(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    struct plan_cells weights = plan_state_fixed(&b->state, b->layout->final_chunk, 1,
                                                 memory->final_weights, b->request.update);
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
        plan_state_store(&b->state, b->layout->tiles[tile].first_chunk + i, emit_one(gradient, i));
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

/* The losses, before updates that backward makes. */
static void build_check(struct builder *b)
{
    if (!b->place->immediate)
        return;
    struct plan_op *op = emit_start(&b->emit, OP_CHECK, LANE_CPU);
    emit_writes(op, b->memory->losses_host);
    emit_finish(&b->emit);
}

static void build_head_backward(struct builder *b)
{
    const struct plan_memory *memory = b->memory;
    for (uint32_t i = 0; i < b->layout->tile_count; i++) {
        uint32_t t = layout_head_tile(b->layout, i);
        struct plan_cells weights = plan_state_tile(&b->state, t, false);
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

/* Where the op finds tile i of those in `all`: as many parameters further on as a slot has. */
static void check_stride(const struct builder *b, struct plan_cells all, uint32_t i,
                         struct plan_cells tile)
{
    const struct plan_cell *cells = b->memory->cells;
    uint64_t stride = b->layout->tile_slot_count * b->place->weight_bytes;
    ASSERT(tile.first >= all.first);
    /* At layer level a tile stands for many, and nothing is computed. */
    ASSERT(b->place->share || cells[tile.first].offset == cells[all.first].offset + i * stride);
}

/* The head's tiles, all of them at a time. A head of its own is updated here, the last of all. */
static struct plan_cells build_head_tiles(struct builder *b)
{
    struct plan_cells all = emit_none;
    bool update = b->request.update && !b->layout->tied;
    for (uint32_t i = 0; i < b->layout->tile_count; i++) {
        struct plan_cells tile = plan_state_tile(&b->state, layout_head_tile(b->layout, i), update);
        all = i ? all : tile;
        check_stride(b, all, i, tile);
        all.count = tile.first + tile.count - all.first;
    }
    return all;
}

/* Forward, loss and backward in one. */
static void build_head_once(struct builder *b, struct plan_cells weights)
{
    const struct plan_memory *memory = b->memory;
    const struct config *config = b->place->spec.config;
    uint32_t first = layout_head_tile(b->layout, 0), each = b->layout->tile_chunks_max;
    for (uint32_t m = 0; m < accum(b); m++) {
        struct plan_op *op = emit_start(&b->emit, OP_HEAD_ONCE, LANE_COMPUTE);
        op->micro = m;
        op->flops = 3 * graph_head_flops(config, rows(b), config->vocab);
        emit_reads(op, weights);
        emit_reads(op, emit_one(memory->y, m));
        emit_reads(op, emit_one(memory->tokens, m));
        emit_writes(op, emit_one(memory->running, m));
        emit_writes(op, emit_one(memory->losses, m));
        emit_writes(op, emit_one(memory->dx, m));
        emit_writes(op,
                    emit_some(memory->tile_gradient, first * each, b->layout->tile_count * each));
        emit_writes(op, memory->scratch);
        emit_finish(&b->emit);
        bring_losses(b, m);
    }
}

/* The gradient of a head of its own; a tied one waits for the embedding's. */
static void store_head(struct builder *b)
{
    for (uint32_t i = 0; i < b->layout->tile_count && !b->layout->tied; i++)
        store_tile(b, layout_head_tile(b->layout, i));
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
    plan_state_store(&b->state, b->layout->final_chunk, memory->final_gradient);
}

/* The cells in which the gradient of a chunk of a block is summed: a slot's, or where it stays. */
static struct plan_cells block_gradient(const struct builder *b, uint32_t layer, uint32_t position)
{
    uint32_t chunks = b->layout->block_chunks, slots = b->place->gradient_slots;
    if (!slots)
        return b->memory->gradient_ram[b->layout->group_first_chunk[layer + 1] + position];
    return emit_one(b->memory->block_gradient, layer % slots * chunks + position);
}

static void build_block_backward(struct builder *b, uint32_t layer)
{
    const struct plan_memory *memory = b->memory;
    uint32_t chunks = b->layout->block_chunks;
    struct plan_cells weights = plan_state_block(&b->state, layer, false);
    struct plan_cells gradient = block_gradient(b, layer, 0);
    struct plan_cells last = block_gradient(b, layer, chunks - 1);
    gradient.count = last.first + last.count - gradient.first;
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
        emit_writes(op, inner);
        emit_writes(op, emit_one(memory->dx, m));
        emit_writes(op, gradient);
        emit_writes(op, memory->scratch);
        emit_finish(&b->emit);
    }
    for (uint32_t i = 0; i < chunks; i++)
        plan_state_store(&b->state, b->layout->group_first_chunk[layer + 1] + i,
                         block_gradient(b, layer, i));
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
        plan_state_store(&b->state, b->layout->wpe_first_chunk + i,
                         emit_one(memory->wpe_gradient, i));
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
    plan_state_init(&b->state, &b->emit, request);

    build_embedding(b);
    for (uint32_t l = 0; l < layer_count(b); l++)
        build_block_forward(b, l);
    spill_waiting(b);
    struct plan_cells final_weights = build_final_norm(b);
    if (b->layout->tied)
        build_commit(b);
    bool once = place->head_once && request->backward;
    struct plan_cells tiles = once ? build_head_tiles(b) : emit_none;
    if (!once)
        build_head_forward(b);
    if (!b->layout->tied)
        build_commit(b);
    if (request->forward && !once)
        build_loss(b);
    plan->backward_first = plan->op_count;
    if (request->backward) {
        if (once)
            build_head_once(b, tiles);
        build_check(b);
        if (once)
            store_head(b);
        else
            build_head_backward(b);
        build_norm_backward(b, final_weights);
        for (uint32_t i = 0; i < layer_count(b); i++)
            build_block_backward(b, layer_count(b) - 1 - i);
        build_embedding_backward(b);
        if (place->immediate)
            plan_state_check(&b->state);
    }
    emit_deinit(&b->emit);
    mem_free(b->x_cell);
    mem_free(b);
}
