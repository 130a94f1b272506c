#include "offload/layout.h"

#include "core/mem.h"

const char *const layout_plane_name[PLANE_COUNT] = {"hi", "lo", "m", "v"};

_Static_assert(LAYOUT_PAD % MOMENTS_BLOCK == 0 && LAYOUT_PART_PARAMETERS % MOMENTS_BLOCK == 0,
               "chunks and parts consist of whole blocks of moments");

/* ---- Bytes ----------------------------------------------------------------------------------- */

uint64_t layout_plane_offset(const struct layout *layout, uint64_t count, uint32_t plane)
{
    uint64_t bytes = 0;
    ASSERT(plane <= PLANE_COUNT);
    for (uint32_t p = 0; p < plane; p++)
        bytes += layout_plane_bytes(layout, count, p);
    return bytes;
}

uint64_t layout_part_offset(const struct layout *layout, uint32_t plane, uint64_t part)
{
    return layout_least_bytes(layout, part * LAYOUT_PART_PARAMETERS, plane);
}

/* ---- Chunks ---------------------------------------------------------------------------------- */

static uint64_t gcd(uint64_t a, uint64_t b)
{
    while (b) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* The most rows whose parameters fit a chunk and are a multiple of the padding; at least one such
 * unit, however wide a row is. */
static uint64_t rows_per_chunk(uint64_t channels, uint64_t chunk_parameters)
{
    uint64_t unit = LAYOUT_PAD / gcd(LAYOUT_PAD, channels);
    uint64_t rows = chunk_parameters / channels / unit * unit;
    return MAX(rows, unit);
}

static void add_chunk(struct layout *layout, uint32_t group, uint64_t first, uint64_t real_count)
{
    struct layout_chunk *chunk = &layout->chunks[layout->chunk_count];
    *chunk = (struct layout_chunk){
        .group = group,
        .position = layout->chunk_count - layout->group_first_chunk[group],
        .first = first,
        .count = round_up(real_count, LAYOUT_PAD),
        .real_count = real_count,
        .offset = layout->slot_bytes,
    };
    ASSERT(first % LAYOUT_PAD == 0);
    layout->slot_bytes += layout_state_bytes(layout, chunk->count);
    layout->padded_parameters += chunk->count;
    layout->real_parameters += real_count;
    layout->chunk_count_max = MAX(layout->chunk_count_max, chunk->count);
    layout->chunk_count++;
}

/* Cuts [first, first + count) of a group's vector; returns the number of chunks. */
static uint32_t add_run(struct layout *layout, uint32_t group, uint64_t first, uint64_t count,
                        uint64_t step)
{
    uint32_t before = layout->chunk_count;
    for (uint64_t done = 0; done < count; done += step)
        add_chunk(layout, group, first + done, MIN(step, count - done));
    return layout->chunk_count - before;
}

/* Tiles of the chunks [first, first + count), which hold rows of one matrix. */
static void add_tiles(struct layout *layout, uint32_t first, uint32_t count, uint32_t columns,
                      uint32_t per_tile)
{
    uint64_t row_first = layout->chunks[first].first;
    for (uint32_t done = 0; done < count; done += per_tile) {
        struct layout_tile *tile = &layout->tiles[layout->tile_count++];
        tile->first_chunk = first + done;
        tile->chunk_count = MIN(per_tile, count - done);
        uint64_t real = 0;
        for (uint32_t i = 0; i < tile->chunk_count; i++) {
            tile->count += layout->chunks[tile->first_chunk + i].count;
            real += layout->chunks[tile->first_chunk + i].real_count;
        }
        ASSERT(real % columns == 0);
        tile->row_first =
            (uint32_t)((layout->chunks[tile->first_chunk].first - row_first) / columns);
        tile->row_count = (uint32_t)(real / columns);
        layout->tile_rows_max = MAX(layout->tile_rows_max, tile->row_count);
        layout->tile_chunks_max = MAX(layout->tile_chunks_max, tile->chunk_count);
    }
}

/* The tiles of wte, and of the head when it is not tied: both are cut alike. */
static void cut_tiles(struct layout *layout, const struct tensor *wte, uint64_t tile_parameters)
{
    uint32_t per_tile = (uint32_t)MAX(1, tile_parameters / layout->chunks[0].count);
    uint32_t chunks = layout->wpe_first_chunk;
    uint64_t tiles = div_up(chunks, per_tile);
    layout->tiles = mem_alloc(layout->tied ? tiles : 2 * tiles, sizeof(*layout->tiles));
    add_tiles(layout, 0, chunks, wte->shape[1], per_tile);
    if (!layout->tied)
        add_tiles(layout, layout->final_chunk + 1, chunks, wte->shape[1], per_tile);
    layout->tile_count = (uint32_t)tiles;
    layout->tile_slot_count = layout->tiles[0].count;
}

static void find_runs(struct layout *layout)
{
    layout->runs = mem_alloc(layout->chunk_count, sizeof(*layout->runs));
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        struct layout_run *run = layout->run_count ? &layout->runs[layout->run_count - 1] : NULL;
        if (!run || run->each != layout->chunks[c].count)
            layout->runs[layout->run_count++] = (struct layout_run){c, 1, layout->chunks[c].count};
        else
            run->chunk_count++;
    }
    layout->runs = mem_realloc(layout->runs, layout->run_count, sizeof(*layout->runs));
}

/* Chunks of group g, which is cut at rows when it is the head. */
static void add_group(struct layout *layout, const struct tensors *tensors, uint32_t g,
                      uint64_t chunk, uint64_t wte_step)
{
    uint64_t count = tensors->groups[g].parameter_count;
    bool head = !layout->tied && g == tensors->group_count - 1;
    layout->group_first_chunk[g] = layout->chunk_count;
    uint32_t chunks = add_run(layout, g, 0, count, head ? wte_step : chunk);
    if (g == 1) {
        layout->block_chunks = chunks;
        layout->block_count = round_up(count, LAYOUT_PAD);
    }
    if (head)
        return;
    layout->final_chunk = layout->group_first_chunk[g];
    layout->final_count = round_up(count, LAYOUT_PAD);
}

void layout_init_sized(struct layout *layout, const struct tensors *tensors,
                       enum moments_kind moments, uint64_t chunk, uint64_t tile)
{
    ASSERT(chunk >= LAYOUT_PAD && chunk % LAYOUT_PAD == 0);
    ASSERT(tensors->group_count >= 3 && tensors->list[0].dim_count == 2);
    *layout = (struct layout){.moments = moments, .group_count = tensors->group_count};
    const struct tensor_group *last = &tensors->groups[tensors->group_count - 1];
    const struct tensor *wte = &tensors->list[0];
    const struct tensor *wpe = tensors->groups[0].tensor_count > 1 ? &tensors->list[1] : NULL;
    layout->tied = tensors->list[last->first_tensor].dim_count == 1;
    uint64_t wte_step = rows_per_chunk(wte->shape[1], chunk) * wte->shape[1];
    uint64_t wpe_count = wpe ? wpe->count : 0;
    uint64_t chunk_max = div_up(wte->count, wte_step) * 2 + div_up(wpe_count, chunk);
    for (uint32_t g = 1; g < tensors->group_count; g++)
        chunk_max += div_up(tensors->groups[g].parameter_count, chunk);
    layout->chunks = mem_alloc(chunk_max, sizeof(*layout->chunks));
    layout->group_first_chunk =
        mem_alloc(tensors->group_count + 1, sizeof(*layout->group_first_chunk));

    add_run(layout, 0, 0, wte->count, wte_step);
    layout->wte_count = layout->padded_parameters;
    layout->wpe_first_chunk = layout->chunk_count;
    if (wpe)
        layout->wpe_chunk_count = add_run(layout, 0, wpe->offset, wpe->count, chunk);
    layout->wpe_count = layout->padded_parameters - layout->wte_count;
    for (uint32_t g = 1; g < tensors->group_count; g++)
        add_group(layout, tensors, g, chunk, wte_step);
    layout->group_first_chunk[tensors->group_count] = layout->chunk_count;
    ASSERT(layout->chunk_count <= chunk_max);
    cut_tiles(layout, wte, tile);
    find_runs(layout);
    /* The vector of group 0 has no hole between wte's last chunk and wpe's first. */
    const struct layout_chunk *last_wte = &layout->chunks[layout->wpe_first_chunk - 1];
    ASSERT(!wpe || last_wte->first + last_wte->count == wpe->offset);
}

void layout_init(struct layout *layout, const struct tensors *tensors, enum moments_kind moments)
{
    uint64_t chunk = LAYOUT_CHUNK_PARAMETERS;
    while (chunk < LAYOUT_CHUNK_PARAMETERS_MAX &&
           tensors->parameter_count / chunk > LAYOUT_CHUNKS_MANY)
        chunk *= 2;
    layout_init_sized(layout, tensors, moments, chunk,
                      MAX(LAYOUT_TILE_PARAMETERS, chunk * LAYOUT_TILE_CHUNKS));
}

void layout_deinit(struct layout *layout)
{
    mem_free(layout->chunks);
    mem_free(layout->group_first_chunk);
    mem_free(layout->tiles);
    mem_free(layout->runs);
    *layout = (struct layout){0};
}
