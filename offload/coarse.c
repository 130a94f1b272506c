#include "offload/coarse.h"

#include "core/mem.h"
#include "offload/bound.h"
#include "offload/engine_model.h"

#include <math.h>

/* ---- The layout -------------------------------------------------------------------------------
 */

static void add_chunk(struct coarse *coarse, uint32_t first, uint32_t count)
{
    const struct layout *fine = coarse->fine;
    struct layout *layout = &coarse->layout;
    struct layout_chunk *chunk = &layout->chunks[layout->chunk_count];
    coarse->first_fine[layout->chunk_count++] = first;
    *chunk = fine->chunks[first];
    for (uint32_t c = first + 1; c < first + count; c++) {
        chunk->count += fine->chunks[c].count;
        chunk->real_count += fine->chunks[c].real_count;
    }
    layout->chunk_count_max = MAX(layout->chunk_count_max, chunk->count);
}

/* Cuts the fine chunks [first, first + count) into at most `parts`; returns how many. */
static uint32_t merge(struct coarse *coarse, uint32_t first, uint32_t count, uint32_t parts)
{
    uint32_t before = coarse->layout.chunk_count;
    uint32_t each = count ? (uint32_t)div_up(count, parts) : 1;
    for (uint32_t done = 0; done < count; done += each)
        add_chunk(coarse, first + done, MIN(each, count - done));
    return coarse->layout.chunk_count - before;
}

/* Merges the chunks of fine tiles [tile, tile + count) into one coarse chunk. */
static void merge_tiles(struct coarse *coarse, uint32_t tile, uint32_t count)
{
    const struct layout_tile *first = &coarse->fine->tiles[tile];
    const struct layout_tile *last = &coarse->fine->tiles[tile + count - 1];
    add_chunk(coarse, first->first_chunk,
              last->first_chunk + last->chunk_count - first->first_chunk);
    struct layout *layout = &coarse->layout;
    struct layout_tile *merged = &layout->tiles[layout->tile_count++];
    *merged = (struct layout_tile){
        .first_chunk = layout->chunk_count - 1,
        .chunk_count = 1,
        .row_first = first->row_first,
        .row_count = last->row_first + last->row_count - first->row_first,
        .count = layout->chunks[layout->chunk_count - 1].count,
    };
    coarse->tiles_each[layout->tile_count - 1] = count;
}

/* The fine tiles [tile, tile + fine->tile_count), of wte or of the head. What a device with few
 * slots holds from one pass over them to the next is at the ends: there a tile is a tile. */
static void cut_tiles(struct coarse *coarse, uint32_t tile)
{
    uint32_t count = coarse->fine->tile_count, end = tile + count;
    bool all = count <= COARSE_TILES;
    uint32_t each =
        all ? 1
            : (uint32_t)div_up(count - 2 * COARSE_TILES_END, COARSE_TILES - 2 * COARSE_TILES_END);
    for (uint32_t t = tile; t < end;) {
        bool middle = t - tile >= COARSE_TILES_END && end - t > COARSE_TILES_END;
        uint32_t merged = middle ? MIN(each, end - COARSE_TILES_END - t) : 1;
        merge_tiles(coarse, t, merged);
        t += merged;
    }
}

static void add_groups(struct coarse *coarse)
{
    const struct layout *fine = coarse->fine;
    struct layout *layout = &coarse->layout;
    for (uint32_t g = 1; g < fine->group_count; g++) {
        uint32_t first = fine->group_first_chunk[g];
        uint32_t count = fine->group_first_chunk[g + 1] - first;
        layout->group_first_chunk[g] = layout->chunk_count;
        if (first > fine->final_chunk) {
            cut_tiles(coarse, fine->tile_count);
            continue;
        }
        uint32_t chunks = merge(coarse, first, count, COARSE_BLOCK_CHUNKS);
        if (g == 1)
            layout->block_chunks = chunks;
        if (first == fine->final_chunk)
            layout->final_chunk = layout->chunk_count - 1;
    }
    layout->group_first_chunk[fine->group_count] = layout->chunk_count;
}

void coarse_init(struct coarse *coarse, const struct layout *fine)
{
    uint32_t chunk_max = 2 * COARSE_TILES + (fine->group_count + 1) * COARSE_BLOCK_CHUNKS;
    *coarse = (struct coarse){.fine = fine};
    struct layout *layout = &coarse->layout;
    *layout = (struct layout){
        .moments = fine->moments,
        .group_count = fine->group_count,
        .tied = fine->tied,
        .wte_count = fine->wte_count,
        .wpe_count = fine->wpe_count,
        .block_count = fine->block_count,
        .final_count = fine->final_count,
        .padded_parameters = fine->padded_parameters,
        .real_parameters = fine->real_parameters,
        .slot_bytes = fine->slot_bytes,
    };
    layout->chunks = mem_alloc(chunk_max, sizeof(*layout->chunks));
    coarse->first_fine = mem_alloc(chunk_max + 1, sizeof(*coarse->first_fine));
    layout->group_first_chunk =
        mem_alloc(fine->group_count + 1, sizeof(*layout->group_first_chunk));
    layout->tiles = mem_alloc(2 * COARSE_TILES, sizeof(*layout->tiles));
    coarse->tiles_each = mem_alloc(2 * COARSE_TILES, sizeof(*coarse->tiles_each));
    cut_tiles(coarse, 0);
    uint32_t tiles = layout->tile_count;
    layout->wpe_first_chunk = layout->chunk_count;
    layout->wpe_chunk_count = merge(coarse, fine->wpe_first_chunk, fine->wpe_chunk_count, 1);
    add_groups(coarse);
    ASSERT(layout->chunk_count <= chunk_max);
    coarse->first_fine[layout->chunk_count] = fine->chunk_count;
    layout->tile_count = tiles;
    layout->tile_chunks_max = 1;
    for (uint32_t t = 0; t < tiles; t++) {
        layout->tile_slot_count = MAX(layout->tile_slot_count, layout->tiles[t].count);
        layout->tile_rows_max = MAX(layout->tile_rows_max, layout->tiles[t].row_count);
    }
}

void coarse_deinit(struct coarse *coarse)
{
    layout_deinit(&coarse->layout);
    mem_free(coarse->first_fine);
    mem_free(coarse->tiles_each);
    *coarse = (struct coarse){0};
}

/* ---- The placement ----------------------------------------------------------------------------
 */

/* Padded parameters of the fine chunks [first, end) of which `before` and after say how many of the
 * chunks before them are taken. All but the last are equally large. */
static uint64_t parameters_taken(const struct layout *fine, uint32_t first, uint32_t end,
                                 uint64_t before, uint64_t last, uint64_t after)
{
    return (last - before) * fine->chunks[first].count +
           (after - last) * fine->chunks[end - 1].count;
}

/* Fine chunks among the first `before` whose plane is in RAM or on the device. */
static uint64_t held_before(const struct place *fine, const struct place_choice *choice,
                            uint32_t plane, uint32_t before)
{
    return place_plane_taken(fine, choice, plane, before) +
           place_device_taken(fine, choice, before);
}

/* Bytes of a plane of the same chunks that are not taken. */
static uint64_t plane_left(const struct coarse *coarse, const struct place *fine,
                           const struct place_choice *choice, uint32_t chunk, uint32_t plane)
{
    const struct layout *layout = coarse->fine;
    uint32_t first = coarse->first_fine[chunk], end = coarse->first_fine[chunk + 1];
    uint64_t before = held_before(fine, choice, plane, first);
    uint64_t last = held_before(fine, choice, plane, end - 1);
    uint64_t after = held_before(fine, choice, plane, end);
    uint64_t bytes = layout_plane_bytes(layout, layout->chunks[first].count, plane);
    uint64_t last_bytes = layout_plane_bytes(layout, layout->chunks[end - 1].count, plane);
    return (end - 1 - first - (last - before)) * bytes + (1 - (after - last)) * last_bytes;
}

static void fill_chunk(const struct coarse *coarse, const struct place *fine,
                       const struct place_choice *choice, struct place *place, uint32_t chunk)
{
    uint32_t first = coarse->first_fine[chunk], end = coarse->first_fine[chunk + 1];
    const struct layout_chunk *c = &coarse->layout.chunks[chunk];
    struct place_share *share = &place->share[chunk];
    uint32_t resident = 0;
    share->chunks = end - first;
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        share->plane[p] = plane_left(coarse, fine, choice, chunk, p);
        resident += share->plane[p] == 0 && resident == p;
    }
    share->device = parameters_taken(
        coarse->fine, first, end, place_device_taken(fine, choice, first),
        place_device_taken(fine, choice, end - 1), place_device_taken(fine, choice, end));
    share->streamed = parameters_taken(
        coarse->fine, first, end, place_streamed_taken(fine, choice, first),
        place_streamed_taken(fine, choice, end - 1), place_streamed_taken(fine, choice, end));
    place->streamed[chunk] = share->streamed == c->count;
    place->on_device[chunk] = share->device == c->count;
    place->resident[chunk] = place->on_device[chunk] ? 0 : (uint8_t)resident;
    uint64_t taken = share->device + parameters_taken(coarse->fine, first, end,
                                                      place_gradients_taken(fine, choice, first),
                                                      place_gradients_taken(fine, choice, end - 1),
                                                      place_gradients_taken(fine, choice, end));
    share->gradient = place->immediate ? 0 : (c->count - taken) * place->gradient_bytes;
    place->gradient_in_ram[chunk] =
        !place->immediate && share->gradient == 0 && !place->on_device[chunk];
    if (chunk >= coarse->layout.wpe_first_chunk)
        return;
    uint32_t stash = choice->knob[KNOB_STASH];
    taken = parameters_taken(coarse->fine, first, end, MIN(first, stash), MIN(end - 1, stash),
                             MIN(end, stash));
    share->stash = (c->count - taken) * 4;
    place->stash_in_ram[chunk] = share->stash == 0;
}

void coarse_place(const struct coarse *coarse, const struct place *fine,
                  const struct place_choice *choice, struct place *place)
{
    const struct layout *layout = &coarse->layout;
    struct place measured = *fine;
    measured.resident = NULL; /* what place_apply would own */
    place_measure(&measured, choice);
    *place = measured;
    place->spec.layout = layout;
    place->choice = *choice;
    uint32_t layers = place->spec.config->layers;
    place->resident = mem_alloc(layout->chunk_count, sizeof(*place->resident));
    place->on_device = mem_alloc(layout->chunk_count, sizeof(*place->on_device));
    place->streamed = mem_alloc(layout->chunk_count, sizeof(*place->streamed));
    place->gradient_in_ram = mem_alloc(layout->chunk_count, sizeof(*place->gradient_in_ram));
    place->stash_in_ram = mem_alloc(layout->wpe_first_chunk, sizeof(*place->stash_in_ram));
    place->share = mem_alloc(layout->chunk_count, sizeof(*place->share));
    place->x_where = mem_alloc(layers, sizeof(*place->x_where));
    place->inner_where = mem_alloc(layers, sizeof(*place->inner_where));
    for (uint32_t l = 0; l < layers; l++) {
        place->x_where[l] = (uint8_t)place_x_where(fine, choice, l);
        place->inner_where[l] = (uint8_t)place_inner_where(fine, choice, l);
    }
    for (uint32_t c = 0; c < layout->chunk_count; c++)
        fill_chunk(coarse, fine, choice, place, c);
    /* A ring of gradients holds so many bytes, whatever is a chunk; two at least, for overlap.
     * Where backward updates, the ring is how far it runs ahead of the updates: with two, a quarter
     * of a block, the search took rings of 3 chunks for enough and was 20 % too fast. */
    uint32_t each = (uint32_t)div_up(coarse->fine->block_chunks, layout->block_chunks);
    if (place->gradient_outs)
        place->gradient_outs = MAX(2, (measured.gradient_outs + each / 2) / each);
    if (place->gradient_stages)
        place->gradient_stages =
            MAX(place->immediate ? 1 : 2, (measured.gradient_stages + each / 2) / each);
    /* Three at least, or reads, updates and writes could not go on side by side. With as many
     * coarse chunks as there are real ones, reads ran a block or two ahead of the drive's writes:
     * 20 % too fast with activations on the drive (tests/offload/test_coarse.c). */
    if (place->state_stages)
        place->state_stages =
            MIN(measured.state_stages, MAX(3, (measured.state_stages + each / 2) / each));
    if (place->stream_stages) /* for the same reason */
        place->stream_stages = MAX(3, (measured.stream_stages + each / 2) / each);
    place->tiles_each = coarse->tiles_each;
    /* Tiles are fewer here: held is held, and else two are. */
    uint32_t tiles = layout_tile_count(layout), all = layout_tile_count(coarse->fine);
    place->tile_slots = measured.tile_slots >= all ? tiles : MIN(2, tiles);
    place->tile_gradient_slots =
        measured.tile_gradient_slots >= all ? tiles : MIN(measured.tile_gradient_slots, tiles);
}

/* ---- A step -----------------------------------------------------------------------------------
 */

double coarse_step(const struct place *place, struct sched_result *result, struct bound *bound)
{
    const struct profile *profile = place->spec.profile;
    struct plan_memory memory;
    struct plan plan;
    struct sched sched;
    struct sched_result ignored;
    struct engine_model *model = mem_alloc(1, sizeof(*model));
    struct plan_request request = {.update = !place->immediate, .forward = true, .backward = true};
    result = result ? result : &ignored;
    plan_memory_init(&memory, place);
    plan_build(&plan, place, &memory, &request);
    sched_init(&sched, plan.op_count);
    engine_model_init(model, profile);
    sched_run(&sched, &plan, &model->engine, NULL, result);
    if (bound)
        bound_of(bound, profile, &plan, NULL);
    sched_deinit(&sched);
    plan_deinit(&plan);
    plan_memory_deinit(&memory);
    mem_free(model);
    double seconds = (double)(result->end_ns - result->start_ns) / 1e9;
    return fmax(seconds, bound_sustained_s(profile, (double)result->bytes[LANE_SSD_WRITE]));
}
