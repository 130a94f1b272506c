/*
 * place_measure: where a choice of knobs puts what, and what it takes of each tier, in closed form,
 * so that thousands can be tried; plan_memory.c divides the memory for good. See place.h.
 */
#include "offload/place.h"

#include "offload/plan.h"

/* Where no state streams: what a commit brings from the device to the drive, two chunks at a time;
 * and the way of the maps of moments to it. */
#define COMMIT_STAGES 2

/* One 8-byte entry for each 4 KiB page: what the kernel needs where huge pages are not granted. */
static uint64_t page_table_bytes(uint64_t bytes)
{
    return bytes / 512;
}

static enum place_where outermost(const struct place *place)
{
    if (place->spec.nvme)
        return WHERE_NVME;
    return place->separate_device ? WHERE_RAM : WHERE_DEVICE;
}

/* ---- Where a choice puts what ---------------------------------------------------------------- */

struct where_counts {
    uint32_t layers[WHERE_RECOMPUTE + 1];
};

/* The last layers first: their activations wait the shortest. */
enum place_where place_x_where(const struct place *place, const struct place_choice *choice,
                               uint32_t layer)
{
    uint32_t from_end = place->spec.config->layers - layer;
    if (from_end <= choice->knob[KNOB_X_DEVICE])
        return WHERE_DEVICE;
    if (from_end <= choice->knob[KNOB_X_DEVICE] + choice->knob[KNOB_X_RAM])
        return WHERE_RAM;
    return outermost(place);
}

enum place_where place_inner_where(const struct place *place, const struct place_choice *choice,
                                   uint32_t layer)
{
    uint32_t from_end = place->spec.config->layers - layer;
    const uint32_t *knob = choice->knob;
    if (from_end <= knob[KNOB_INNER_DEVICE])
        return WHERE_DEVICE;
    if (from_end <= knob[KNOB_INNER_DEVICE] + knob[KNOB_INNER_RAM])
        return WHERE_RAM;
    if (from_end <= knob[KNOB_INNER_DEVICE] + knob[KNOB_INNER_RAM] + knob[KNOB_INNER_NVME])
        return WHERE_NVME;
    return place->spec.recompute == RECOMPUTE_NONE ? outermost(place) : WHERE_RECOMPUTE;
}

static void count_where(const struct place *place, const struct place_choice *choice,
                        struct where_counts *x, struct where_counts *inner)
{
    *x = *inner = (struct where_counts){0};
    for (uint32_t l = 0; l < place->spec.config->layers; l++) {
        x->layers[place_x_where(place, choice, l)]++;
        inner->layers[place_inner_where(place, choice, l)]++;
    }
}

uint64_t place_device_taken(const struct place *place, const struct place_choice *choice,
                            uint32_t before)
{
    return place_taken_before(before, choice->knob[KNOB_DEVICE], place->spec.layout->chunk_count);
}

/* Of the first `before` chunks those whose state is not on the device. */
static uint64_t host_before(const struct place *place, const struct place_choice *choice,
                            uint32_t before)
{
    return before - place_device_taken(place, choice, before);
}

uint64_t place_plane_taken(const struct place *place, const struct place_choice *choice,
                           uint32_t plane, uint32_t before)
{
    const struct layout *layout = place->spec.layout;
    uint64_t all = host_before(place, choice, layout->chunk_count);
    /* Planes are spread over different chunks, and a chunk has none without those before it: of
     * what has left the device, the first planes come first. */
    for (uint32_t p = 0; p < plane; p++)
        if (choice->knob[KNOB_HI + p] < all)
            return 0;
    uint64_t count = MIN(choice->knob[KNOB_HI + plane], all);
    uint64_t index = host_before(place, choice, before);
    if (plane != PLANE_HI)
        return place_taken_before(index, count, all);
    /* hi of wte is used by both ends of the model, so it goes first; the rest is spread. */
    uint64_t wte = host_before(place, choice, layout->wpe_first_chunk), first = MIN(count, wte);
    if (before <= layout->wpe_first_chunk)
        return MIN(index, first);
    return first + place_taken_before(index - wte, count - first, all - wte);
}

/* How long the rings are that this choice needs, and what is held at all. */
static void set_rings(struct place *place, const struct place_choice *choice,
                      const struct where_counts *x, const struct where_counts *inner)
{
    const struct place_spec *spec = &place->spec;
    const uint32_t *knob = choice->knob;
    bool separate = place->separate_device, bf16 = spec->precision == PRECISION_BF16;
    uint32_t tiles = layout_tile_count(spec->layout), extra = knob[KNOB_GRADIENT_SLOTS];
    uint32_t prefetch = knob[KNOB_PREFETCH] + 1;
    uint32_t device = knob[KNOB_DEVICE], rest = spec->layout->chunk_count - device;
    bool held = knob[KNOB_TILES] >= TILES_HELD || (!separate && !spec->nvme);
    place->tile_gradient_slots = held ? tiles : MIN(1 + extra, tiles);
    bool leaves = bf16 && separate && (rest || place->immediate);
    place->gradient_outs = leaves ? 2 + 2 * extra + knob[KNOB_GRADIENT_RING] : 0;
    place->tile_slots = knob[KNOB_TILES] >= TILES_HELD ? tiles : MIN(2, tiles);
    place->head_once = knob[KNOB_TILES] >= TILES_ONCE;
    place->block_slots = MIN(prefetch + 1 + knob[KNOB_BLOCK_SLOTS], spec->config->layers);
    bool maps = knob[KNOB_STREAMED] && spec->layout->moments == MOMENTS_8BIT;
    bool streams = rest && (place->immediate || knob[KNOB_GRADIENTS] < rest);
    place->gradient_stages = streams ? prefetch + 2 + knob[KNOB_GRADIENT_RING] : 0;
    bool stashes = separate && place->tile_gradient_slots < tiles && spec->layout->tied &&
                   knob[KNOB_STASH] < spec->layout->wpe_first_chunk;
    place->stash_stages = stashes ? 2 : 0;
    place->state_stages = spec->nvme && rest ? PLACE_STATE_STAGES_MIN + knob[KNOB_STATE_STAGES]
                          : device || maps   ? COMMIT_STAGES
                                             : 0;
    place->join_stages = separate && !bf16 && rest ? 2 + knob[KNOB_STATE_STAGES] / 2 : 0;
    place->stream_stages = knob[KNOB_STREAMED] ? PLACE_STREAM_STAGES : 0;
    bool moved = inner->layers[WHERE_RAM] || inner->layers[WHERE_NVME];
    place->inner_slots = moved ? 2 : inner->layers[WHERE_RECOMPUTE] ? 1 : 0;
    bool staged = x->layers[WHERE_NVME] || inner->layers[WHERE_NVME];
    place->activation_stages = staged && separate ? 2 : 0;
    place->gradients_shared =
        !separate && !place->immediate && knob[KNOB_GRADIENTS] == spec->layout->chunk_count;
    place->gradient_slots = place->gradients_shared && !bf16 ? 0 : 1 + extra;
    place->weights_in_place =
        bf16 && (separate ? !rest : knob[KNOB_HI] == spec->layout->chunk_count);
}

/* ---- What a choice takes ----------------------------------------------------------------------
 */

/* Padded parameters of the chunks that `taken` says, run by run of chunks of one size. */
static uint64_t taken_parameters(const struct place *place, const struct place_choice *choice,
                                 uint64_t (*taken)(const struct place *,
                                                   const struct place_choice *, uint32_t, uint32_t),
                                 uint32_t which)
{
    const struct layout *layout = place->spec.layout;
    uint64_t sum = 0, before = 0;
    for (uint32_t r = 0; r < layout->run_count; r++) {
        const struct layout_run *run = &layout->runs[r];
        uint64_t after = taken(place, choice, which, run->first_chunk + run->chunk_count);
        sum += (after - before) * run->each;
        before = after;
    }
    return sum;
}

/* Bytes of a plane that the choice puts into RAM. */
static uint64_t plane_bytes_taken(const struct place *place, const struct place_choice *choice,
                                  uint32_t plane)
{
    const struct layout *layout = place->spec.layout;
    uint64_t sum = 0, before = 0;
    for (uint32_t r = 0; r < layout->run_count; r++) {
        const struct layout_run *run = &layout->runs[r];
        uint64_t after =
            place_plane_taken(place, choice, plane, run->first_chunk + run->chunk_count);
        sum += (after - before) * layout_plane_bytes(layout, run->each, plane);
        before = after;
    }
    return sum;
}

uint64_t place_gradients_taken(const struct place *place, const struct place_choice *choice,
                               uint32_t before)
{
    if (place->immediate)
        return 0;
    uint64_t all = host_before(place, choice, place->spec.layout->chunk_count);
    return place_taken_before(host_before(place, choice, before),
                              MIN(choice->knob[KNOB_GRADIENTS], all), all);
}

uint32_t place_streamable(const struct place *place, const struct place_choice *choice)
{
    uint32_t chunks = place->spec.layout->chunk_count;
    if (place->immediate || choice->knob[KNOB_GRADIENTS] < host_before(place, choice, chunks))
        return 0;
    return (uint32_t)place_plane_taken(place, choice, PLANE_V, chunks);
}

uint64_t place_streamed_taken(const struct place *place, const struct place_choice *choice,
                              uint32_t before)
{
    uint64_t all = place_streamable(place, choice);
    return place_taken_before(place_plane_taken(place, choice, PLANE_V, before),
                              MIN(choice->knob[KNOB_STREAMED], all), all);
}

static uint64_t device_taken(const struct place *place, const struct place_choice *choice,
                             uint32_t which, uint32_t before)
{
    (void)which;
    return place_device_taken(place, choice, before);
}

static uint64_t gradients_taken(const struct place *place, const struct place_choice *choice,
                                uint32_t which, uint32_t before)
{
    (void)which;
    return place_gradients_taken(place, choice, before);
}

static uint64_t stash_taken(const struct place *place, const struct place_choice *choice,
                            uint32_t which, uint32_t before)
{
    (void)which;
    (void)place;
    return MIN(before, choice->knob[KNOB_STASH]);
}

static uint64_t pages(uint64_t bytes)
{
    return round_up(bytes, IO_ALIGN);
}

struct tiers {
    uint64_t bytes[TIER_COUNT];
};

/* Chunks on the device and on their way through it, with what their updates need there; returns the
 * parameters of the former. */
static uint64_t add_device_state(const struct place *place, const struct place_choice *choice,
                                 struct tiers *tiers)
{
    const struct layout *layout = place->spec.layout;
    uint64_t before = 0, *device = &tiers->bytes[TIER_DEVICE];
    uint64_t flags = pages((uint64_t)layout->chunk_count * sizeof(uint32_t));
    uint64_t chunk = layout->chunk_count_max;
    if (!choice->knob[KNOB_DEVICE] && !place->stream_stages)
        return 0;
    *device += place->stream_stages *
               (layout_state_bytes(layout, chunk) + pages(chunk * place->gradient_bytes));
    for (uint32_t r = 0; r < layout->run_count; r++) {
        const struct layout_run *run = &layout->runs[r];
        uint64_t after = place_device_taken(place, choice, run->first_chunk + run->chunk_count);
        *device += (after - before) * layout_state_bytes(layout, run->each);
        before = after;
    }
    uint64_t count = taken_parameters(place, choice, device_taken, 0);
    *device += place->immediate ? 0 : count * place->gradient_bytes;
    flags *= (choice->knob[KNOB_DEVICE] > 0) + (place->stream_stages > 0);
    *device += flags + (layout->moments == MOMENTS_8BIT ? pages(PLAN_MAPS_BYTES) : 0);
    tiers->bytes[TIER_RAM] += flags;
    return count;
}

/* Parameters of shared gradients that have memory of their own. */
static uint64_t unshared_gradients(const struct place *place, uint32_t kept_layers)
{
    const struct layout *layout = place->spec.layout;
    uint64_t inner = place->spec.accum * pages(place->inner_bytes) / place->gradient_bytes;
    bool held = place->tile_gradient_slots >= layout_tile_count(layout);
    uint64_t tiles = held ? 0 : layout->wte_count * (layout->tied ? 1 : 2);
    uint32_t layers = place->spec.config->layers;
    uint32_t shared = MIN(kept_layers, place->gradient_slots ? layers : layers - 1);
    return tiles + (layers - shared) * layout->block_count +
           shared * (layout->block_count > inner ? layout->block_count - inner : 0);
}

static void add_state(const struct place *place, const struct place_choice *choice,
                      uint32_t kept_layers, struct tiers *tiers)
{
    const struct layout *layout = place->spec.layout;
    uint64_t chunk = layout->chunk_count_max, each = place->gradient_bytes;
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        tiers->bytes[TIER_RAM] += plane_bytes_taken(place, choice, p);
    uint64_t in_ram = taken_parameters(place, choice, gradients_taken, 0) * each;
    uint64_t on_device = add_device_state(place, choice, tiers) * each;
    tiers->bytes[TIER_RAM] +=
        place->gradients_shared ? unshared_gradients(place, kept_layers) * each : in_ram;
    if (!place->immediate)
        tiers->bytes[TIER_NVME] += layout->padded_parameters * each - in_ram - on_device;
    if (place->tile_gradient_slots < layout_tile_count(layout) && layout->tied) {
        uint64_t stash = taken_parameters(place, choice, stash_taken, 0) * 4;
        tiers->bytes[TIER_RAM] += stash;
        tiers->bytes[TIER_NVME] += layout->wte_count * 4 - stash;
    }
    tiers->bytes[TIER_RAM] += place->gradient_stages * pages(chunk * each);
    tiers->bytes[TIER_DEVICE] += place->gradient_outs * pages(chunk * each);
    tiers->bytes[TIER_RAM] += place->stash_stages * pages(chunk * 4);
    tiers->bytes[TIER_RAM] += place->state_stages * layout_state_bytes(layout, chunk);
    tiers->bytes[TIER_RAM] += place->join_stages * pages(chunk * 4);
}

static void add_weights(const struct place *place, struct tiers *tiers)
{
    const struct layout *layout = place->spec.layout;
    uint64_t own = place->weights_in_place ? 0 : place->weight_bytes;
    uint64_t fixed = layout->wpe_count + layout->final_count;
    tiers->bytes[TIER_DEVICE] += own * (place->block_slots * layout->block_count +
                                        place->tile_slots * layout->tile_slot_count + fixed) +
                                 4 * (place->gradient_slots * layout->block_count +
                                      place->tile_gradient_slots * layout->tile_slot_count + fixed);
}

static void add_activations(const struct place *place, const struct where_counts *x_counts,
                            const struct where_counts *inner_counts, struct tiers *tiers)
{
    uint64_t accum = place->spec.accum, rows = (uint64_t)place->spec.batch * place->spec.seq;
    uint64_t x = pages(place->x_bytes), inner = pages(place->inner_bytes);
    uint64_t *device = &tiers->bytes[TIER_DEVICE], *ram = &tiers->bytes[TIER_RAM];
    bool ring = x_counts->layers[WHERE_DEVICE] < place->spec.config->layers;
    uint64_t squares = (uint64_t)place->spec.layout->chunk_count * PLAN_SQUARES_PER_CHUNK * 8;
    *device += x * (accum * x_counts->layers[WHERE_DEVICE] + (ring ? accum + 2 : 0) + 2 * accum);
    *device += inner * (accum * inner_counts->layers[WHERE_DEVICE] + place->inner_slots);
    *device += accum * (pages(rows * place->spec.config->channels * place->weight_bytes) +
                        pages(rows * 2 * 4) * 2 + pages(rows * 3 * 4) + pages(rows * 4));
    *device += pages(squares) + pages(place_scratch_bytes(place));
    *ram += accum * (x * x_counts->layers[WHERE_RAM] + inner * inner_counts->layers[WHERE_RAM]);
    *ram += place->activation_stages * MAX(x, inner);
    if (place->separate_device)
        *ram += accum * (pages(rows * 4) + pages(rows * 2 * 4)) + pages(squares);
    tiers->bytes[TIER_NVME] +=
        accum * (x * x_counts->layers[WHERE_NVME] + inner * inner_counts->layers[WHERE_NVME]);
}

bool place_measure(struct place *place, const struct place_choice *choice)
{
    struct tiers tiers = {0};
    struct where_counts x, inner;
    count_where(place, choice, &x, &inner);
    set_rings(place, choice, &x, &inner);
    add_state(place, choice, inner.layers[WHERE_DEVICE], &tiers);
    add_weights(place, &tiers);
    add_activations(place, &x, &inner, &tiers);
    uint64_t ram = tiers.bytes[TIER_RAM];
    if (!place->separate_device) {
        ram += tiers.bytes[TIER_DEVICE];
        tiers.bytes[TIER_DEVICE] = 0;
    }
    place->vram_bytes = tiers.bytes[TIER_DEVICE];
    /* On the CPU device the arena's page tables are the process's as well. */
    bool arena = place->spec.profile == NULL || place->spec.profile->device.is_cpu;
    place->ram_bytes = place->spec.overhead_bytes + ram + page_table_bytes(ram) +
                       (arena ? page_table_bytes(place->vram_bytes) : 0);
    place->nvme_bytes = place_state_bytes(&place->spec) + tiers.bytes[TIER_NVME];
    return place->ram_bytes <= place->spec.ram_budget &&
           (!place->separate_device || place->vram_bytes <= place->spec.vram_budget);
}
