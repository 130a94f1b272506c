#include "offload/layout.h"

#include "core/mem.h"

const uint8_t layout_plane_bytes[PLANE_COUNT] = {2, 2, 4, 4};
const char *const layout_plane_name[PLANE_COUNT] = {"hi", "lo", "m", "v"};

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
    layout->slot_bytes += chunk->count * LAYOUT_STATE_BYTES;
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

static void add_tiles(struct layout *layout, const struct tensor *wte, uint64_t tile_parameters)
{
    uint32_t channels = wte->shape[1];
    uint32_t chunk_count = layout->chunk_count;
    uint64_t chunk = layout->chunks[0].count;
    uint32_t per_tile = (uint32_t)MAX(1, tile_parameters / chunk);
    layout->tile_count = (uint32_t)div_up(chunk_count, per_tile);
    layout->tiles = mem_alloc(layout->tile_count, sizeof(*layout->tiles));
    for (uint32_t t = 0; t < layout->tile_count; t++) {
        struct layout_tile *tile = &layout->tiles[t];
        tile->first_chunk = t * per_tile;
        tile->chunk_count = MIN(per_tile, chunk_count - tile->first_chunk);
        uint64_t real = 0;
        for (uint32_t i = 0; i < tile->chunk_count; i++) {
            tile->count += layout->chunks[tile->first_chunk + i].count;
            real += layout->chunks[tile->first_chunk + i].real_count;
        }
        ASSERT(real % channels == 0);
        tile->row_first = (uint32_t)(layout->chunks[tile->first_chunk].first / channels);
        tile->row_count = (uint32_t)(real / channels);
        layout->tile_count_max = MAX(layout->tile_count_max, tile->count);
        layout->tile_rows_max = MAX(layout->tile_rows_max, tile->row_count);
        layout->tile_chunks_max = MAX(layout->tile_chunks_max, tile->chunk_count);
    }
}

void layout_init_sized(struct layout *layout, const struct tensors *tensors, uint64_t chunk,
                       uint64_t tile)
{
    ASSERT(chunk >= LAYOUT_PAD && chunk % LAYOUT_PAD == 0);
    ASSERT(tensors->group_count >= 3 && tensors->list[0].dim_count == 2);
    *layout = (struct layout){.group_count = tensors->group_count};
    const struct tensor *wte = &tensors->list[0], *wpe = &tensors->list[1];
    uint64_t wte_step = rows_per_chunk(wte->shape[1], chunk) * wte->shape[1];
    uint64_t chunk_max = div_up(wte->count, wte_step) + div_up(wpe->count, chunk);
    for (uint32_t g = 1; g < tensors->group_count; g++)
        chunk_max += div_up(tensors->groups[g].parameter_count, chunk);
    layout->chunks = mem_alloc(chunk_max, sizeof(*layout->chunks));
    layout->group_first_chunk =
        mem_alloc(tensors->group_count + 1, sizeof(*layout->group_first_chunk));

    add_run(layout, 0, 0, wte->count, wte_step);
    add_tiles(layout, wte, tile);
    layout->wpe_first_chunk = layout->chunk_count;
    layout->wpe_chunk_count = add_run(layout, 0, wpe->offset, wpe->count, chunk);
    layout->wpe_count = round_up(wpe->count, LAYOUT_PAD);
    for (uint32_t g = 1; g < tensors->group_count; g++) {
        layout->group_first_chunk[g] = layout->chunk_count;
        uint32_t chunks = add_run(layout, g, 0, tensors->groups[g].parameter_count, chunk);
        if (g == 1) {
            layout->block_chunks = chunks;
            layout->block_count = round_up(tensors->groups[g].parameter_count, LAYOUT_PAD);
        }
    }
    layout->group_first_chunk[tensors->group_count] = layout->chunk_count;
    layout->final_count =
        round_up(tensors->groups[tensors->group_count - 1].parameter_count, LAYOUT_PAD);
    ASSERT(layout->chunk_count == chunk_max);
    /* The vector of group 0 has no hole between wte's last chunk and wpe's first. */
    const struct layout_chunk *last_wte = &layout->chunks[layout->wpe_first_chunk - 1];
    ASSERT(last_wte->first + last_wte->count == wpe->offset);
}

void layout_init(struct layout *layout, const struct tensors *tensors)
{
    layout_init_sized(layout, tensors, LAYOUT_CHUNK_PARAMETERS, LAYOUT_TILE_PARAMETERS);
}

void layout_deinit(struct layout *layout)
{
    mem_free(layout->chunks);
    mem_free(layout->group_first_chunk);
    mem_free(layout->tiles);
    *layout = (struct layout){0};
}
