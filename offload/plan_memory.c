/*
 * plan_memory: divides the arenas and the scratch file into cells. See plan.h.
 *
 * Invariants:
 * 1. Cells of a tier never overlap (plan_check proves it again).
 * 2. Every offset and size is a multiple of IO_ALIGN, so that any cell in RAM can be one end of an
 *    O_DIRECT transfer. Cells of one buffer that kernels see as one vector (a block's weights, its
 *    gradient, a plane of a block) are consecutive without gaps, because chunks are multiples of
 *    LAYOUT_PAD.
 * 3. The resident hi planes come first in RAM, in chunk order; so do those on the device there.
 */
#include "offload/plan.h"

#include "core/mem.h"

static uint32_t add_cell(struct plan_memory *memory, enum plan_tier tier, enum plan_content content,
                         uint64_t bytes)
{
    ASSERT(memory->cell_count < memory->cell_max);
    /* Without a device of its own, device memory is RAM. */
    if (tier == TIER_DEVICE && !memory->separate_device)
        tier = TIER_RAM;
    bytes = round_up(bytes, IO_ALIGN);
    memory->cells[memory->cell_count] = (struct plan_cell){
        .tier = (uint8_t)tier,
        .content = (uint8_t)content,
        .offset = memory->tier_bytes[tier],
        .bytes = bytes,
    };
    memory->tier_bytes[tier] = add_checked(memory->tier_bytes[tier], bytes);
    memory->content_bytes[tier][content] += bytes;
    return memory->cell_count++;
}

static struct plan_cells add_ring(struct plan_memory *memory, enum plan_tier tier,
                                  enum plan_content content, uint32_t count, uint64_t bytes)
{
    struct plan_cells cells = {memory->cell_count, count};
    for (uint32_t i = 0; i < count; i++)
        add_cell(memory, tier, content, bytes);
    return cells;
}

/* slots x the chunks [first, first + count), each bytes_each per parameter. */
static struct plan_cells add_chunked(struct plan_memory *memory, enum plan_content content,
                                     const struct layout *layout, uint32_t slots, uint32_t first,
                                     uint32_t count, uint64_t bytes_each)
{
    struct plan_cells cells = {memory->cell_count, slots * count};
    for (uint32_t slot = 0; slot < slots; slot++)
        for (uint32_t i = 0; i < count; i++)
            add_cell(memory, TIER_DEVICE, content, layout->chunks[first + i].count * bytes_each);
    return cells;
}

static void add_planes(struct plan_memory *memory, const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    /* Numbered [chunk * 4 + plane], laid out plane by plane (invariant 3). */
    uint32_t first = memory->cell_count;
    memory->plane_ram = (struct plan_cells){first, layout->chunk_count * PLANE_COUNT};
    memory->cell_count += layout->chunk_count * PLANE_COUNT;
    ASSERT(memory->cell_count <= memory->cell_max);
    for (uint32_t plane = 0; plane < PLANE_COUNT; plane++)
        for (uint32_t c = 0; c < layout->chunk_count; c++) {
            bool resident = plane < place->resident[c];
            uint64_t bytes =
                resident ? layout_plane_bytes(layout, layout->chunks[c].count, plane) : 0;
            memory->cells[first + c * PLANE_COUNT + plane] = (struct plan_cell){
                .tier = TIER_RAM,
                .content = CONTENT_STATE,
                .offset = memory->tier_bytes[TIER_RAM],
                .bytes = bytes,
            };
            memory->tier_bytes[TIER_RAM] += bytes;
            memory->content_bytes[TIER_RAM][CONTENT_STATE] += bytes;
        }
    first = memory->cell_count;
    memory->plane_nvme = (struct plan_cells){first, layout->chunk_count * PLANE_COUNT};
    memory->cell_count += layout->chunk_count * PLANE_COUNT;
    ASSERT(memory->cell_count <= memory->cell_max);
    for (uint32_t c = 0; c < layout->chunk_count; c++)
        for (uint32_t plane = 0; plane < PLANE_COUNT; plane++) {
            uint64_t bytes = layout_plane_bytes(layout, layout->chunks[c].count, plane);
            memory->cells[first + c * PLANE_COUNT + plane] = (struct plan_cell){
                .tier = TIER_NVME,
                .content = CONTENT_STATE,
                .state_file = true,
                .offset = layout->chunks[c].offset +
                          layout_plane_offset(layout, layout->chunks[c].count, plane),
                .bytes = bytes,
            };
            if (plane >= place->resident[c] && !place->on_device[c])
                memory->content_bytes[TIER_NVME][CONTENT_STATE] += bytes;
        }
}

/* Chunks whose state is on the device. Numbered and laid out as planes in RAM are. */
static void add_device_state(struct plan_memory *memory, const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    uint32_t first = memory->cell_count, chunks = layout->chunk_count;
    bool any = false;
    memory->plane_device = (struct plan_cells){first, chunks * PLANE_COUNT};
    memory->cell_count += chunks * PLANE_COUNT;
    ASSERT(memory->cell_count <= memory->cell_max);
    for (uint32_t plane = 0; plane < PLANE_COUNT; plane++)
        for (uint32_t c = 0; c < chunks; c++) {
            bool here = place_device_count(place, c) > 0;
            uint64_t bytes = here ? layout_plane_bytes(layout, layout->chunks[c].count, plane) : 0;
            memory->cells[first + c * PLANE_COUNT + plane] = (struct plan_cell){
                .tier = TIER_DEVICE,
                .content = CONTENT_STATE,
                .offset = memory->tier_bytes[TIER_DEVICE],
                .bytes = bytes,
            };
            memory->tier_bytes[TIER_DEVICE] += bytes;
            memory->content_bytes[TIER_DEVICE][CONTENT_STATE] += bytes;
            any |= here;
        }
    ASSERT(!any || memory->separate_device);
    uint32_t flag_runs = any + (place->stream_stages > 0);
    any = flag_runs > 0;
    uint64_t each = place->immediate ? 0 : place->gradient_bytes, flags = chunks * sizeof(uint32_t);
    memory->gradient_device = (struct plan_cells){memory->cell_count, chunks};
    for (uint32_t c = 0; c < chunks; c++)
        add_cell(memory, TIER_DEVICE, CONTENT_GRADIENT,
                 place_device_count(place, c) ? layout->chunks[c].count * each : 0);
    memory->update_flags = add_ring(memory, TIER_DEVICE, CONTENT_OTHER, flag_runs, flags);
    memory->update_flags_host = add_ring(memory, TIER_RAM, CONTENT_OTHER, flag_runs, flags);
    memory->moment_maps = add_ring(memory, TIER_DEVICE, CONTENT_OTHER,
                                   any && layout->moments == MOMENTS_8BIT, PLAN_MAPS_BYTES);
    memory->stream_stage = add_ring(memory, TIER_DEVICE, CONTENT_STAGING, place->stream_stages,
                                    layout_state_bytes(layout, layout->chunk_count_max));
    memory->stream_gradient = add_ring(memory, TIER_DEVICE, CONTENT_STAGING, place->stream_stages,
                                       layout->chunk_count_max * place->gradient_bytes);
}

/* A gradient in RAM has cells of its own, unless it lies where others were (share_gradients). */
static void add_own_gradients(struct plan_memory *memory, const struct place *place, uint32_t first,
                              uint32_t count)
{
    for (uint32_t c = first; c < first + count; c++) {
        uint64_t bytes = place->spec.layout->chunks[c].count * place->gradient_bytes;
        memory->gradient_ram[c].count = 1;
        memory->gradient_ram[c].first =
            add_cell(memory, TIER_RAM, CONTENT_GRADIENT, place->gradient_in_ram[c] ? bytes : 0);
    }
}

static void add_gradients(struct plan_memory *memory, const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    uint32_t chunks = layout->chunk_count, wte_chunks = layout->wpe_first_chunk;
    if (!place->gradients_shared)
        add_own_gradients(memory, place, 0, chunks);
    memory->gradient_nvme = (struct plan_cells){memory->cell_count, chunks};
    for (uint32_t c = 0; c < chunks; c++)
        add_cell(memory, TIER_NVME, CONTENT_GRADIENT,
                 place->gradient_in_ram[c] || place->immediate || place->on_device[c]
                     ? 0
                     : layout->chunks[c].count * place->gradient_bytes);
    memory->gradient_stage = add_ring(memory, TIER_RAM, CONTENT_STAGING, place->gradient_stages,
                                      layout->chunk_count_max * place->gradient_bytes);
    memory->gradient_out = add_ring(memory, TIER_DEVICE, CONTENT_STAGING, place->gradient_outs,
                                    layout->chunk_count_max * place->gradient_bytes);
    /* The head's gradient waits only where the device does not hold it. */
    bool stashed = layout->tied && place->tile_gradient_slots < layout_tile_count(layout);
    memory->stash_ram = (struct plan_cells){memory->cell_count, wte_chunks};
    for (uint32_t c = 0; c < wte_chunks; c++)
        add_cell(memory, TIER_RAM, CONTENT_GRADIENT,
                 stashed && place->stash_in_ram[c] ? layout->chunks[c].count * 4 : 0);
    memory->stash_nvme = (struct plan_cells){memory->cell_count, wte_chunks};
    for (uint32_t c = 0; c < wte_chunks; c++)
        add_cell(memory, TIER_NVME, CONTENT_GRADIENT,
                 stashed && !place->stash_in_ram[c] ? layout->chunks[c].count * 4 : 0);
    memory->stash_stage = add_ring(memory, TIER_RAM, CONTENT_STAGING, place->stash_stages,
                                   layout->chunk_count_max * 4);
}

static struct plan_cells add_layers(struct plan_memory *memory, const struct place *place,
                                    enum plan_tier tier, const uint8_t *where,
                                    enum place_where wanted, uint64_t bytes)
{
    uint32_t layers = place->spec.config->layers, accum = place->spec.accum;
    struct plan_cells cells = {memory->cell_count, layers * accum};
    for (uint32_t l = 0; l < layers; l++)
        for (uint32_t m = 0; m < accum; m++)
            add_cell(memory, tier, CONTENT_ACTIVATION, where[l] == wanted ? bytes : 0);
    return cells;
}

/* `cell` is the next part of a run of which `left` bytes are still to come. */
static void take_part(struct plan_cells *run, uint32_t cell, uint64_t bytes, uint64_t *left)
{
    ASSERT(bytes <= *left);
    run->first = run->count ? run->first : cell;
    run->count++;
    *left -= bytes;
}

/* One piece of memory for what is kept for the backward pass of `layer`, micro-batch after
 * micro-batch, and for the gradient of chunks from c to chunk_end: with a cell between any two
 * places where one of either ends. */
static void add_inner_and_gradient(struct plan_memory *memory, const struct place *place,
                                   uint32_t layer, uint32_t c, uint32_t chunk_end)
{
    const struct layout *layout = place->spec.layout;
    uint32_t m = layer * place->spec.accum, inner_end = m + place->spec.accum;
    uint64_t inner = round_up(place->inner_bytes, IO_ALIGN), inner_left = inner;
    uint64_t gradient_left = 0;
    if (c < chunk_end)
        gradient_left = layout->chunks[c].count * place->gradient_bytes;
    while (m < inner_end || c < chunk_end) {
        bool is_inner = m < inner_end, is_gradient = c < chunk_end;
        uint64_t bytes =
            MIN(is_inner ? inner_left : UINT64_MAX, is_gradient ? gradient_left : UINT64_MAX);
        uint32_t cell =
            add_cell(memory, TIER_DEVICE, is_inner ? CONTENT_ACTIVATION : CONTENT_GRADIENT, bytes);
        if (is_inner)
            take_part(&memory->inner_keep[m], cell, bytes, &inner_left);
        if (is_gradient)
            take_part(&memory->gradient_ram[c], cell, bytes, &gradient_left);
        if (is_inner && !inner_left) {
            inner_left = inner;
            m++;
        }
        if (is_gradient && !gradient_left && ++c < chunk_end)
            gradient_left = layout->chunks[c].count * place->gradient_bytes;
    }
}

/* What is kept of each block, where the device keeps it. The gradient that shares its memory is in
 * FP32 that of the block before, which is summed when this one's backward pass is done. */
static void add_inner(struct plan_memory *memory, const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    uint32_t layers = place->spec.config->layers, accum = place->spec.accum;
    uint32_t chunk = layout->group_first_chunk[1];
    uint32_t later = place->gradient_slots ? 0 : layout->block_chunks;
    memory->inner_keep = mem_alloc((uint64_t)layers * accum, sizeof(*memory->inner_keep));
    for (uint32_t l = 0; l < layers; l++) {
        bool kept = place->inner_where[l] == WHERE_DEVICE;
        uint32_t next = layout->group_first_chunk[l + 2] - later;
        if (kept && place->gradients_shared) {
            add_inner_and_gradient(memory, place, l, chunk, next);
            chunk = next;
            continue;
        }
        for (uint32_t m = 0; m < accum; m++)
            memory->inner_keep[l * accum + m] =
                add_ring(memory, TIER_DEVICE, CONTENT_ACTIVATION, 1, kept ? place->inner_bytes : 0);
        if (place->gradients_shared)
            add_own_gradients(memory, place, chunk, next - chunk);
        chunk = next;
    }
    if (place->gradients_shared)
        add_own_gradients(memory, place, chunk, layout->group_first_chunk[layers + 1] - chunk);
}

static void add_activations(struct plan_memory *memory, const struct place *place)
{
    uint32_t accum = place->spec.accum;
    uint64_t x = place->x_bytes, inner = place->inner_bytes;
    uint64_t rows = (uint64_t)place->spec.batch * place->spec.seq;
    uint64_t channels = place->spec.config->channels;
    memory->x_keep = add_layers(memory, place, TIER_DEVICE, place->x_where, WHERE_DEVICE, x);
    bool ring = false;
    for (uint32_t l = 0; l < place->spec.config->layers; l++)
        ring |= place->x_where[l] != WHERE_DEVICE;
    memory->x_ring = add_ring(memory, TIER_DEVICE, CONTENT_ACTIVATION, ring ? accum + 2 : 0, x);
    memory->x_final = add_ring(memory, TIER_DEVICE, CONTENT_ACTIVATION, accum, x);
    memory->x_ram = add_layers(memory, place, TIER_RAM, place->x_where, WHERE_RAM, x);
    memory->x_nvme = add_layers(memory, place, TIER_NVME, place->x_where, WHERE_NVME, x);
    add_inner(memory, place);
    memory->inner_ring =
        add_ring(memory, TIER_DEVICE, CONTENT_ACTIVATION, place->inner_slots, inner);
    memory->inner_ram = add_layers(memory, place, TIER_RAM, place->inner_where, WHERE_RAM, inner);
    memory->inner_nvme =
        add_layers(memory, place, TIER_NVME, place->inner_where, WHERE_NVME, inner);
    memory->activation_stage =
        add_ring(memory, TIER_RAM, CONTENT_STAGING, place->activation_stages, MAX(x, inner));
    memory->dx = add_ring(memory, TIER_DEVICE, CONTENT_ACTIVATION, accum, x);
    memory->y = add_ring(memory, TIER_DEVICE, CONTENT_ACTIVATION, accum,
                         rows * channels * place->weight_bytes);
    memory->statistics = add_ring(memory, TIER_DEVICE, CONTENT_OTHER, accum, rows * 2 * 4);
    memory->running = add_ring(memory, TIER_DEVICE, CONTENT_OTHER, accum, rows * 3 * 4);
    memory->losses = add_ring(memory, TIER_DEVICE, CONTENT_OTHER, accum, rows * 4);
    memory->losses_host = memory->separate_device
                              ? add_ring(memory, TIER_RAM, CONTENT_OTHER, accum, rows * 4)
                              : memory->losses;
    memory->tokens = add_ring(memory, TIER_DEVICE, CONTENT_OTHER, accum, rows * 2 * 4);
    memory->tokens_host = memory->separate_device
                              ? add_ring(memory, TIER_RAM, CONTENT_OTHER, accum, rows * 2 * 4)
                              : memory->tokens;
}

static void add_device_weights(struct plan_memory *memory, const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    uint32_t block = layout->group_first_chunk[1], final = layout->final_chunk;
    uint64_t each = place->weight_bytes;
    ASSERT(layout->chunks[final].count == layout->final_count); /* the final norm is one chunk */
    bool own = !place->weights_in_place;
    memory->block_weights =
        add_chunked(memory, CONTENT_WEIGHTS, layout, own ? place->block_slots : 0, block,
                    layout->block_chunks, each);
    /* Chunk 0 .. tile_chunks_max - 1 are the first tile, which is as large as any. */
    memory->tile_weights = add_chunked(memory, CONTENT_WEIGHTS, layout, own ? place->tile_slots : 0,
                                       0, layout->tile_chunks_max, each);
    memory->wpe_weights = add_chunked(memory, CONTENT_WEIGHTS, layout, own ? 1 : 0,
                                      layout->wpe_first_chunk, layout->wpe_chunk_count, each);
    memory->final_weights =
        add_chunked(memory, CONTENT_WEIGHTS, layout, own ? 1 : 0, final, 1, each);
    memory->block_gradient = add_chunked(memory, CONTENT_GRADIENT, layout, place->gradient_slots,
                                         block, layout->block_chunks, 4);
    memory->tile_gradient = add_chunked(memory, CONTENT_GRADIENT, layout,
                                        place->tile_gradient_slots, 0, layout->tile_chunks_max, 4);
    memory->wpe_gradient = add_chunked(memory, CONTENT_GRADIENT, layout, 1, layout->wpe_first_chunk,
                                       layout->wpe_chunk_count, 4);
    memory->final_gradient = add_chunked(memory, CONTENT_GRADIENT, layout, 1, final, 1, 4);
}

/* The gradients of all but the blocks, where they were summed: in the tiles' cells, if those are
 * all held. */
static void share_gradients(struct plan_memory *memory, const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    uint32_t tiles = layout_tile_count(layout), final = layout->final_chunk;
    bool held = place->tile_gradient_slots >= tiles;
    for (uint32_t t = 0; t < tiles; t++) {
        uint32_t first = layout->tiles[t].first_chunk, count = layout->tiles[t].chunk_count;
        if (!held)
            add_own_gradients(memory, place, first, count);
        for (uint32_t i = 0; held && i < count; i++)
            memory->gradient_ram[first + i] = (struct plan_cells){
                memory->tile_gradient.first + t * layout->tile_chunks_max + i, 1};
    }
    for (uint32_t i = 0; i < layout->wpe_chunk_count; i++)
        memory->gradient_ram[layout->wpe_first_chunk + i] =
            (struct plan_cells){memory->wpe_gradient.first + i, 1};
    memory->gradient_ram[final] = (struct plan_cells){memory->final_gradient.first, 1};
}

/* An upper bound, so that cells can be written into one allocation. */
static uint32_t cell_bound(const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    uint64_t layers = place->spec.config->layers, accum = place->spec.accum;
    uint64_t bound =
        (uint64_t)layout->chunk_count * 20 + layers * accum * 6 + accum * 12 +
        (uint64_t)place->block_slots * layout->block_chunks +
        (uint64_t)place->gradient_slots * layout->block_chunks +
        (uint64_t)(place->tile_slots + place->tile_gradient_slots) * layout->tile_chunks_max +
        place->state_stages + place->join_stages + place->gradient_stages + place->gradient_outs +
        place->stash_stages + place->inner_slots + place->activation_stages +
        2 * (uint64_t)place->stream_stages + 68;
    ASSERT(bound < UINT32_MAX);
    return (uint32_t)bound;
}

void plan_memory_init(struct plan_memory *memory, const struct place *place)
{
    const struct layout *layout = place->spec.layout;
    *memory = (struct plan_memory){
        .state_slots = place_slots(&place->spec),
        .separate_device = place->separate_device,
        .cell_max = cell_bound(place),
    };
    memory->cells = mem_alloc(memory->cell_max, sizeof(*memory->cells));
    memory->gradient_ram = mem_alloc(layout->chunk_count, sizeof(*memory->gradient_ram));
    add_planes(memory, place);
    add_device_state(memory, place);
    add_gradients(memory, place);
    memory->state_stage = add_ring(memory, TIER_RAM, CONTENT_STAGING, place->state_stages,
                                   layout_state_bytes(layout, layout->chunk_count_max));
    memory->join_stage = add_ring(memory, TIER_RAM, CONTENT_STAGING, place->join_stages,
                                  layout->chunk_count_max * 4);
    add_device_weights(memory, place);
    add_activations(memory, place);
    if (place->gradients_shared)
        share_gradients(memory, place);
    memory->square_sums =
        add_ring(memory, TIER_DEVICE, CONTENT_OTHER, 1,
                 (uint64_t)layout->chunk_count * PLAN_SQUARES_PER_CHUNK * sizeof(double));
    memory->square_host =
        memory->separate_device
            ? add_ring(memory, TIER_RAM, CONTENT_OTHER, 1,
                       (uint64_t)layout->chunk_count * PLAN_SQUARES_PER_CHUNK * sizeof(double))
            : memory->square_sums;
    memory->scratch = add_ring(memory, TIER_DEVICE, CONTENT_OTHER, 1, place_scratch_bytes(place));
}

void plan_memory_deinit(struct plan_memory *memory)
{
    mem_free(memory->cells);
    mem_free(memory->gradient_ram);
    mem_free(memory->inner_keep);
    *memory = (struct plan_memory){0};
}
