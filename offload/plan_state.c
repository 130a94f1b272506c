#include "offload/plan_state.h"

static const struct emit_about about_nothing = {PLAN_NONE, PLAN_NONE, PLAN_NONE};

static struct emit_about about_chunk(uint32_t chunk)
{
    return (struct emit_about){PLAN_NONE, PLAN_NONE, chunk};
}

/* ---- Slots ---------------------------------------------------------------------------------- */

static void slots_init(struct plan_slots *slots, uint32_t count)
{
    ASSERT(count <= PLAN_SLOTS_MAX);
    slots->count = count;
    slots->clock = 0;
    for (uint32_t i = 0; i < count; i++) {
        slots->key[i] = PLAN_NONE;
        slots->used[i] = 0;
    }
}

/* The slot that holds key, or the least recently used one, which then belongs to key. */
static uint32_t slots_take(struct plan_slots *slots, uint32_t key, bool *held)
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

/* What an update has left where weights can be made of it: the stage in RAM with the planes that
 * are spilled, and the one on the device with a streamed chunk's; or no cells. */
struct updated {
    struct plan_cells spilled, streamed;
};
static const struct updated not_updated = {{0, 0}, {0, 0}};

/* The weights of a chunk of which the device has all planes: on the compute lane where it always
 * has, on the d2h lane where it is streamed. */
static void join_on_device(struct plan_state *state, enum plan_lane lane, uint32_t chunk,
                           struct plan_cells planes, struct plan_cells target)
{
    struct plan_op *op = emit_start(state->emit, OP_DEVICE_JOIN, lane);
    op->chunk = chunk;
    emit_reads(op, planes);
    emit_writes(op, target);
    emit_finish(state->emit);
}

/* The weights of `count` parameters of any other. stage holds the chunk's spilled planes when an
 * update has just made them; else what RAM does not hold is read. */
static void load_from_host(struct plan_state *state, uint32_t chunk, uint64_t count,
                           struct plan_cells target, struct plan_cells stage)
{
    const struct place *place = state->place;
    uint32_t planes = place->spec.precision == PRECISION_BF16 ? 1 : 2;
    uint32_t resident = MIN(place->resident[chunk], planes);
    bool bf16 = planes == 1;
    if (resident < planes && !stage.count) {
        struct plan_cells file =
            emit_some(state->memory->plane_nvme, chunk * PLANE_COUNT + resident, planes - resident);
        bool direct = bf16 && !state->memory->separate_device;
        stage = direct ? target : emit_next(state->memory->state_stage, &state->next_stage);
        uint64_t bytes =
            emit_planes(state->emit, OP_READ, chunk, resident, planes - resident, stage);
        emit_checksum(state->emit, OP_VERIFY, stage, file, bytes);
        struct plan_op *verify = emit_last(state->emit);
        verify->chunk = chunk;
        verify->plane = (uint8_t)resident;
        verify->plane_count = (uint8_t)(planes - resident);
        /* At layer level a part of the chunk may be in RAM; of one chunk, all or nothing is. */
        count -= direct ? bytes / 2 : 0;
        if (!count)
            return;
    }
    struct plan_cells planes_ram =
        emit_some(state->memory->plane_ram, chunk * PLANE_COUNT, resident);
    if (resident == planes)
        stage = emit_none;
    if (bf16 && state->memory->separate_device) {
        emit_copy(state->emit, OP_COPY_H2D, resident ? planes_ram : stage, target, count * 2,
                  about_chunk(chunk));
        return;
    }
    struct plan_cells to = target;
    if (state->memory->separate_device)
        to = emit_next(state->memory->join_stage, &state->next_join);
    struct plan_op *op = emit_start(state->emit, OP_JOIN, LANE_CPU);
    op->chunk = chunk;
    op->bytes = count * (bf16 ? 4 : 8);
    emit_reads(op, planes_ram);
    emit_reads(op, stage);
    emit_writes(op, to);
    emit_finish(state->emit);
    if (state->memory->separate_device)
        emit_copy(state->emit, OP_COPY_H2D, to, target, count * 4, about_chunk(chunk));
}

/* The compute weights of a chunk into `target` on the device. What the copy lane brings does not
 * wait for what the compute lane does. */
static void load_chunk(struct plan_state *state, uint32_t chunk, struct plan_cells target,
                       const struct updated *updated)
{
    ASSERT(!state->place->weights_in_place);
    uint64_t streamed = updated->streamed.count ? place_streamed_count(state->place, chunk) : 0;
    uint64_t count = place_host_count(state->place, chunk) - streamed;
    uint32_t planes = state->place->spec.precision == PRECISION_BF16 ? 1 : 2;
    if (count)
        load_from_host(state, chunk, count, target, updated->spilled);
    if (streamed)
        join_on_device(state, LANE_D2H, chunk, updated->streamed, target);
    if (place_device_count(state->place, chunk))
        join_on_device(state, LANE_COMPUTE, chunk,
                       emit_some(state->memory->plane_device, chunk * PLANE_COUNT, planes), target);
}

/* A chunk's state on the device, through a stage, to the slot that a commit is made of. */
static void commit_from_device(struct plan_state *state, uint32_t chunk)
{
    struct plan_cells planes =
        emit_some(state->memory->plane_device, chunk * PLANE_COUNT, PLANE_COUNT);
    struct plan_cells file = emit_some(state->memory->plane_nvme, chunk * PLANE_COUNT, PLANE_COUNT);
    struct plan_cells stage = emit_next(state->memory->state_stage, &state->next_stage);
    uint64_t bytes = emit_bytes(state->emit, planes);
    emit_copy(state->emit, OP_COPY_D2H, planes, stage, bytes, about_chunk(chunk));
    emit_last(state->emit)->plane_count = PLANE_COUNT;
    emit_checksum(state->emit, OP_SUM, stage, file, bytes);
    emit_last(state->emit)->chunk = chunk;
    emit_last(state->emit)->plane_count = PLANE_COUNT;
    emit_drive(state->emit, OP_WRITE, stage, file, bytes, about_chunk(chunk));
    emit_last(state->emit)->plane_count = PLANE_COUNT;
    emit_last(state->emit)->flags = OP_COMMITTED;
}

/* The two lanes have flags of their own, or each would wait for the other's updates. */
static void emit_device_update(struct plan_state *state, enum plan_lane lane, uint32_t chunk,
                               struct plan_cells planes, struct plan_cells gradient)
{
    const struct plan_memory *memory = state->memory;
    uint32_t flags = lane == LANE_COMPUTE ? 0 : memory->update_flags.count - 1;
    struct plan_op *op = emit_start(state->emit, OP_DEVICE_UPDATE, lane);
    op->chunk = chunk;
    emit_writes(op, planes);
    emit_reads(op, gradient);
    emit_writes(op, emit_one(memory->update_flags, flags));
    if (state->place->immediate)
        emit_reads(op, memory->losses_host); /* behind OP_CHECK */
    emit_finish(state->emit);
}

/* Applies a gradient on the device; no cells: the pending one. */
static void update_on_device(struct plan_state *state, uint32_t chunk, struct plan_cells gradient)
{
    const struct plan_memory *memory = state->memory;
    emit_device_update(state, LANE_COMPUTE, chunk,
                       emit_some(memory->plane_device, chunk * PLANE_COUNT, PLANE_COUNT),
                       gradient.count ? gradient : emit_one(memory->gradient_device, chunk));
    if (state->request.commit)
        commit_from_device(state, chunk);
}

/* A commit of what has just come back to RAM; what the CPU updates it sums on the way. */
static void commit_streamed(struct plan_state *state, uint32_t chunk, struct plan_cells planes)
{
    struct plan_cells file = emit_some(state->memory->plane_nvme, chunk * PLANE_COUNT, PLANE_COUNT);
    emit_checksum(state->emit, OP_SUM, planes, file, emit_bytes(state->emit, planes));
    emit_last(state->emit)->chunk = chunk;
    emit_last(state->emit)->plane_count = PLANE_COUNT;
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        emit_committed(state->emit, chunk, p);
}

/* A streamed chunk on the device: its state, and the pending gradient. */
struct stream {
    struct plan_cells stage, gradient;
};

static struct stream fetch_streamed(struct plan_state *state, uint32_t chunk)
{
    const struct plan_memory *memory = state->memory;
    uint64_t count = place_streamed_count(state->place, chunk);
    uint32_t turn = state->next_stream++ % memory->stream_stage.count;
    struct stream stream = {emit_one(memory->stream_stage, turn),
                            emit_one(memory->stream_gradient, turn)};
    emit_copy(state->emit, OP_COPY_H2D,
              emit_some(memory->plane_ram, chunk * PLANE_COUNT, PLANE_COUNT), stream.stage,
              layout_state_bytes(state->place->spec.layout, count), about_chunk(chunk));
    emit_last(state->emit)->plane_count = PLANE_COUNT;
    emit_copy(state->emit, OP_COPY_H2D, memory->gradient_ram[chunk], stream.gradient,
              count * state->place->gradient_bytes, about_chunk(chunk));
    return stream;
}

static void return_streamed(struct plan_state *state, uint32_t chunk, struct plan_cells stage)
{
    uint64_t count = place_streamed_count(state->place, chunk);
    struct plan_cells planes =
        emit_some(state->memory->plane_ram, chunk * PLANE_COUNT, PLANE_COUNT);
    emit_copy(state->emit, OP_COPY_D2H, stage, planes,
              layout_state_bytes(state->place->spec.layout, count), about_chunk(chunk));
    emit_last(state->emit)->plane_count = PLANE_COUNT;
    if (state->request.commit)
        commit_streamed(state, chunk, planes);
}

/* Applies a gradient where the rest of the state is, and writes what is spilled (and, in a commit,
 * what is not). gradient is where backward has just put it, or no cells: then it is the pending
 * one. Returns the stage with the new spilled planes, or no cells. */
static struct plan_cells update_on_host(struct plan_state *state, uint32_t chunk,
                                        struct plan_cells gradient)
{
    const struct place *place = state->place;
    const struct plan_memory *memory = state->memory;
    uint64_t count = place_host_count(place, chunk) - place_streamed_count(place, chunk);
    uint32_t resident = place->resident[chunk];
    struct plan_cells stage = emit_none;
    if (resident < PLANE_COUNT) {
        stage = emit_next(memory->state_stage, &state->next_stage);
        emit_planes(state->emit, OP_READ, chunk, resident, PLANE_COUNT - resident, stage);
    }
    if (!gradient.count && place->gradient_in_ram[chunk])
        gradient = memory->gradient_ram[chunk];
    if (!gradient.count) {
        gradient = emit_next(memory->gradient_stage, &state->next_gradient_stage);
        emit_drive(state->emit, OP_READ, emit_one(memory->gradient_nvme, chunk), gradient,
                   place_gradient_spilled(place, chunk), about_nothing);
        emit_last(state->emit)->chunk = chunk;
        emit_last(state->emit)->gradient = true;
    }
    struct plan_op *op = emit_start(state->emit, OP_UPDATE, LANE_CPU);
    op->chunk = chunk;
    op->bytes = 2 * layout_state_bytes(place->spec.layout, count) + count * place->gradient_bytes;
    emit_writes(op, emit_some(memory->plane_ram, chunk * PLANE_COUNT, resident));
    emit_writes(op, stage);
    emit_reads(op, gradient);
    if (place->immediate)
        emit_reads(op, memory->losses_host); /* behind OP_CHECK */
    emit_finish(state->emit);
    if (stage.count)
        emit_planes(state->emit, OP_WRITE, chunk, resident, PLANE_COUNT - resident, stage);
    for (uint32_t p = 0; p < resident && state->request.commit; p++)
        emit_committed(state->emit, chunk, p);
    return stage;
}

/* The pending gradient of a chunk, as far as the CPU applies it or the link brings it to be. Of a
 * coarse plan both, in the same cells: the CPU runs ahead, as its updates do not wait for the link,
 * and the link's would hold it up. */
static struct updated begin_update(struct plan_state *state, uint32_t chunk, struct stream *stream)
{
    struct updated updated = not_updated;
    uint64_t streamed = place_streamed_count(state->place, chunk);
    if (place_host_count(state->place, chunk) > streamed)
        updated.spilled = update_on_host(state, chunk, emit_none);
    if (streamed)
        *stream = fetch_streamed(state, chunk);
    updated.streamed = stream->stage;
    return updated;
}

/* The rest of it, on the device. */
static void end_update(struct plan_state *state, uint32_t chunk, const struct stream *stream)
{
    if (stream->stage.count)
        emit_device_update(state, LANE_D2H, chunk, stream->stage, stream->gradient);
    if (place_device_count(state->place, chunk))
        update_on_device(state, chunk, emit_none);
}

/* How many chunks from `first` on are brought together: whole ones that are streamed, or one. */
static uint32_t group_at(const struct plan_state *state, uint32_t first, uint32_t count)
{
    uint32_t most = MIN(count, MIN(state->memory->stream_stage.count / 2, PLACE_STREAM_STAGES / 2));
    uint32_t group = 0;
    while (group < most && place_streamed_count(state->place, first + group) ==
                               state->layout->chunks[first + group].count)
        group++;
    return MAX(group, 1);
}

static void bring_group(struct plan_state *state, uint32_t first, uint32_t count,
                        struct plan_cells target, bool update)
{
    struct stream streams[PLACE_STREAM_STAGES / 2] = {{{0, 0}, {0, 0}}};
    struct updated updated[PLACE_STREAM_STAGES / 2];
    for (uint32_t i = 0; i < count; i++)
        updated[i] = update ? begin_update(state, first + i, &streams[i]) : not_updated;
    for (uint32_t i = 0; i < count && update; i++)
        end_update(state, first + i, &streams[i]);
    for (uint32_t i = 0; i < count; i++)
        if (state->request.forward && !state->place->weights_in_place)
            load_chunk(state, first + i, emit_one(target, i), &updated[i]);
    for (uint32_t i = 0; i < count; i++)
        if (streams[i].stage.count)
            return_streamed(state, first + i, streams[i].stage);
}

/* Brings chunks [first, first + count) to the device cells `target` (one each), updating them on
 * the way when gradients are pending. */
static void bring(struct plan_state *state, uint32_t first, uint32_t count,
                  struct plan_cells target, bool update)
{
    for (uint32_t i = 0; i < count;) {
        uint32_t group = update ? group_at(state, first + i, count - i) : 1;
        bring_group(state, first + i, group, target.count ? emit_some(target, i, group) : target,
                    update);
        i += group;
    }
}

/* The cells in which kernels find the weights of chunks [first, first + count). In place, the hi
 * planes are read; the range covers the other planes of these chunks too, which nothing else
 * uses while the weights are. */
static struct plan_cells in_place(const struct plan_state *state, uint32_t first, uint32_t count)
{
    const struct plan_memory *memory = state->memory;
    return emit_some(memory->separate_device ? memory->plane_device : memory->plane_ram,
                     first * PLANE_COUNT, count * PLANE_COUNT);
}

/* The weights of these chunks in the slot of `slots` that is key's, in cells of `stride` a slot. */
static struct plan_cells in_slot(struct plan_state *state, struct plan_slots *slots, uint32_t key,
                                 struct plan_cells cells, uint32_t stride, uint32_t first,
                                 uint32_t count, bool update)
{
    bool held;
    if (state->place->weights_in_place)
        return plan_state_fixed(state, first, count, emit_none, update);
    uint32_t slot = slots_take(slots, key, &held);
    struct plan_cells target = emit_some(cells, slot * stride, count);
    ASSERT(!(held && update));
    return held ? target : plan_state_fixed(state, first, count, target, update);
}

struct plan_cells plan_state_block(struct plan_state *state, uint32_t layer, bool update)
{
    uint32_t chunks = state->layout->block_chunks;
    return in_slot(state, &state->blocks, layer, state->memory->block_weights, chunks,
                   state->layout->group_first_chunk[layer + 1], chunks, update);
}

struct plan_cells plan_state_tile(struct plan_state *state, uint32_t tile, bool update)
{
    const struct layout_tile *t = &state->layout->tiles[tile];
    return in_slot(state, &state->tiles, tile, state->memory->tile_weights,
                   state->layout->tile_chunks_max, t->first_chunk, t->chunk_count, update);
}

struct plan_cells plan_state_fixed(struct plan_state *state, uint32_t first, uint32_t count,
                                   struct plan_cells target, bool update)
{
    if (update || !state->place->weights_in_place)
        bring(state, first, count, target, update);
    return state->place->weights_in_place ? in_place(state, first, count) : target;
}

/* ---- Gradients ------------------------------------------------------------------------------ */

/* Where a chunk's gradient waits, or is on its way to: in RAM. */
static struct plan_cells host_gradient(struct plan_state *state, uint32_t chunk)
{
    return state->place->gradient_in_ram[chunk]
               ? state->memory->gradient_ram[chunk]
               : emit_next(state->memory->gradient_stage, &state->next_gradient_stage);
}

/* Where the device stores a chunk's gradient; home: where it goes in RAM, or no cells. */
static struct plan_cells stored_gradient(struct plan_state *state, uint32_t chunk,
                                         struct plan_cells gradient, struct plan_cells home)
{
    if (!state->memory->separate_device)
        return home;
    if (!home.count && !state->place->immediate)
        return emit_one(state->memory->gradient_device, chunk);
    if (state->place->spec.precision != PRECISION_BF16)
        return gradient;
    return emit_next(state->memory->gradient_out, &state->next_gradient_out);
}

static void spill_gradient(struct plan_state *state, uint32_t chunk, struct plan_cells home)
{
    uint64_t bytes = place_gradient_spilled(state->place, chunk);
    struct plan_cells file = emit_one(state->memory->gradient_nvme, chunk);
    emit_checksum(state->emit, OP_SUM, home, file, bytes);
    emit_last(state->emit)->chunk = chunk;
    emit_drive(state->emit, OP_WRITE, home, file, bytes, about_nothing);
    emit_last(state->emit)->chunk = chunk;
    emit_last(state->emit)->gradient = true;
}

void plan_state_store(struct plan_state *state, uint32_t chunk, struct plan_cells gradient)
{
    const struct place *place = state->place;
    const struct plan_memory *memory = state->memory;
    uint64_t host = place_host_count(place, chunk), device = place_device_count(place, chunk);
    struct plan_cells home = host ? host_gradient(state, chunk) : emit_none;
    struct plan_cells stored = stored_gradient(state, chunk, gradient, home);
    struct plan_op *op = emit_start(state->emit, OP_GRADIENT_STORE, LANE_COMPUTE);
    op->chunk = chunk;
    emit_reads(op, gradient);
    emit_writes(op, stored);
    emit_writes(op, memory->square_sums);
    if (host && device && !place->immediate)
        emit_writes(op, emit_one(memory->gradient_device, chunk)); /* of a coarse plan */
    emit_finish(state->emit);
    if (host && memory->separate_device)
        emit_copy(state->emit, OP_COPY_D2H, stored, home, host * place->gradient_bytes,
                  about_chunk(chunk));
    if (place->immediate && host)
        update_on_host(state, chunk, home);
    if (place->immediate && device)
        update_on_device(state, chunk, stored);
    if (host && !place->immediate && !place->gradient_in_ram[chunk])
        spill_gradient(state, chunk, home);
}

void plan_state_check(struct plan_state *state)
{
    const struct plan_memory *memory = state->memory;
    if (!memory->update_flags.count)
        return;
    for (uint32_t i = 0; i < memory->update_flags.count; i++)
        emit_copy(state->emit, OP_COPY_D2H, emit_one(memory->update_flags, i),
                  emit_one(memory->update_flags_host, i),
                  (uint64_t)state->layout->chunk_count * sizeof(uint32_t), about_nothing);
    struct plan_op *op = emit_start(state->emit, OP_CHECK_UPDATES, LANE_CPU);
    /* As good as written, so that a commit waits for the verdict. */
    emit_writes(op, memory->update_flags_host);
    emit_finish(state->emit);
}

void plan_state_init(struct plan_state *state, struct emit *emit,
                     const struct plan_request *request)
{
    const struct place *place = emit->place;
    state->emit = emit;
    state->place = place;
    state->memory = emit->memory;
    state->layout = emit->layout;
    state->request = *request;
    state->next_stage = state->next_join = state->next_gradient_stage = state->next_gradient_out =
        state->next_stream = 0;
    slots_init(&state->blocks, place->block_slots);
    slots_init(&state->tiles, place->tile_slots);
}
