/*
 * place: from the least that can work, upwards.
 *
 * The search starts from the smallest placement (everything on the outermost tier, rings as short
 * as they can be) and then spends what the budgets leave in a fixed order, each step as far as it
 * fits: what saves the most drive traffic or recomputation per byte comes first. Each trial divides
 * the memory anew with plan_memory_init, so that the sizes compared are the sizes used.
 */
#include "offload/place.h"

#include "core/log.h"
#include "core/mem.h"
#include "offload/plan.h"

#include <string.h>

/* Short of nothing, this many chunk states are in flight between drive and optimizer: enough to
 * keep a drive busy in both directions, about 24 MiB. */
#define STATE_STAGES_MAX 8
/* The smallest flag that works is stated with a little more than this run needs: what the program
 * itself takes varies by some hundred KiB from one start to the next. */
static uint64_t with_margin(uint64_t bytes)
{
    return bytes + MAX(bytes / 64, 512 * KIB);
}

static uint32_t layer_count(const struct place *place)
{
    return place->spec.config->layers;
}

/* One 8-byte entry for each 4 KiB page: what the kernel needs where huge pages are not granted. */
static uint64_t page_table_bytes(uint64_t bytes)
{
    return bytes / 512;
}

static void measure(struct place *place)
{
    struct plan_memory memory;
    plan_memory_init(&memory, place);
    uint64_t ram = memory.tier_bytes[TIER_RAM];
    place->vram_bytes = memory.tier_bytes[TIER_DEVICE];
    place->ram_bytes = place->spec.overhead_bytes + ram + page_table_bytes(ram) +
                       page_table_bytes(place->vram_bytes);
    place->nvme_bytes = 2 * place->spec.layout->slot_bytes + memory.tier_bytes[TIER_NVME];
    plan_memory_deinit(&memory);
}

/* RAM and device; the drive is asked at the end, when RAM has taken from it what it can. */
static bool fits(struct place *place)
{
    measure(place);
    return place->ram_bytes <= place->spec.ram_budget &&
           (!place->separate_device || place->vram_bytes <= place->spec.vram_budget);
}

/* Setters: each puts `count` of something at its better place, and the rest at its worse one. */

/* The count-th part of plane `plane`: planes before it are resident everywhere. hi of wte is used
 * by both ends of the model, so it goes first; the rest is spread evenly over the layers, so that
 * no layer waits longer for the drive than another. */
static void set_plane(struct place *place, uint32_t plane, uint32_t count)
{
    const struct layout *layout = place->spec.layout;
    uint32_t chunks = layout->chunk_count, first = 0;
    if (plane == PLANE_HI) {
        first = MIN(count, layout->wpe_first_chunk);
        for (uint32_t c = 0; c < layout->wpe_first_chunk; c++)
            place->resident[c] = (uint8_t)(plane + (c < first));
        count -= first;
        first = layout->wpe_first_chunk;
    }
    uint64_t rest = chunks - first;
    for (uint32_t c = first; c < chunks; c++) {
        uint64_t i = c - first;
        bool taken = (i + 1) * count / rest > i * count / rest;
        place->resident[c] = (uint8_t)(plane + taken);
    }
    /* bf16 without a device of its own: the resident hi planes are the weights. */
    place->weights_in_place = !place->separate_device && place->spec.precision == PRECISION_BF16;
    for (uint32_t c = 0; c < chunks; c++)
        place->weights_in_place &= place->resident[c] > PLANE_HI;
}

static void set_hi(struct place *place, uint32_t count)
{
    set_plane(place, PLANE_HI, count);
}
static void set_lo(struct place *place, uint32_t count)
{
    set_plane(place, PLANE_LO, count);
}
static void set_m(struct place *place, uint32_t count)
{
    set_plane(place, PLANE_M, count);
}
static void set_v(struct place *place, uint32_t count)
{
    set_plane(place, PLANE_V, count);
}

static bool streams_gradients(const struct place *place)
{
    for (uint32_t c = 0; c < place->spec.layout->chunk_count; c++)
        if (!place->gradient_in_ram[c])
            return true;
    return false;
}

static void set_gradients(struct place *place, uint32_t count)
{
    uint64_t chunks = place->spec.layout->chunk_count;
    for (uint64_t c = 0; c < chunks; c++)
        place->gradient_in_ram[c] =
            !place->immediate && (c + 1) * count / chunks > c * count / chunks;
    place->gradient_stages = streams_gradients(place) ? place->spec.prefetch + 2 : 0;
}

static void set_stash(struct place *place, uint32_t count)
{
    uint32_t chunks = place->spec.layout->wpe_first_chunk;
    /* Where RAM is the device, holding the tiles' gradients is better than a copy beside them. */
    if (!place->separate_device)
        count = 0;
    for (uint32_t c = 0; c < chunks; c++)
        place->stash_in_ram[c] = c < count;
    bool spilled = place->tile_gradient_slots < place->spec.layout->tile_count && count < chunks;
    place->stash_stages = spilled && place->separate_device ? 2 : 0;
}

static bool any_where(const struct place *place, const uint8_t *where, enum place_where wanted)
{
    for (uint32_t l = 0; l < layer_count(place); l++)
        if (where[l] == wanted)
            return true;
    return false;
}

/* Rings that exist only because something is not kept where it is used. */
static void set_activation_rings(struct place *place)
{
    bool spilled = any_where(place, place->inner_where, WHERE_RAM) ||
                   any_where(place, place->inner_where, WHERE_NVME);
    bool recomputed = any_where(place, place->inner_where, WHERE_RECOMPUTE);
    place->inner_slots = spilled ? 2 : recomputed ? 1 : 0;
    bool staged = any_where(place, place->x_where, WHERE_NVME) ||
                  any_where(place, place->inner_where, WHERE_NVME);
    place->activation_stages = staged && place->separate_device ? 2 : 0;
}

static enum place_where outermost(const struct place *place)
{
    if (place->spec.nvme)
        return WHERE_NVME;
    return place->separate_device ? WHERE_RAM : WHERE_DEVICE;
}

/* The last layers first, here and below: their activations wait the shortest. */
static void set_x_device(struct place *place, uint32_t count)
{
    for (uint32_t l = 0; l < layer_count(place); l++)
        if (layer_count(place) - l <= count)
            place->x_where[l] = WHERE_DEVICE;
    set_activation_rings(place);
}
static void set_x_ram(struct place *place, uint32_t count)
{
    for (uint32_t l = 0; l < layer_count(place); l++)
        if (place->x_where[l] != WHERE_DEVICE)
            place->x_where[l] =
                (uint8_t)(layer_count(place) - l <= count ? WHERE_RAM : outermost(place));
    set_activation_rings(place);
}
static void set_inner_device(struct place *place, uint32_t count)
{
    for (uint32_t l = 0; l < layer_count(place); l++)
        if (layer_count(place) - l <= count)
            place->inner_where[l] = WHERE_DEVICE;
    set_activation_rings(place);
}
static void set_inner_ram(struct place *place, uint32_t count)
{
    enum place_where worse =
        place->spec.recompute == RECOMPUTE_NONE ? outermost(place) : WHERE_RECOMPUTE;
    for (uint32_t l = 0; l < layer_count(place); l++)
        if (place->inner_where[l] != WHERE_DEVICE)
            place->inner_where[l] = (uint8_t)(layer_count(place) - l <= count ? WHERE_RAM : worse);
    set_activation_rings(place);
}
static void set_gradient_slots(struct place *place, uint32_t extra)
{
    uint32_t tiles = place->spec.layout->tile_count;
    bool held = !place->separate_device && !place->spec.nvme;
    place->gradient_slots = 1 + extra;
    place->tile_gradient_slots = held ? tiles : MIN(1 + extra, tiles);
    place->gradient_outs =
        place->spec.precision == PRECISION_BF16 && place->separate_device ? 2 + 2 * extra : 0;
}
static void set_tiles(struct place *place, uint32_t held)
{
    uint32_t tiles = place->spec.layout->tile_count;
    if (!held)
        return;
    place->tile_slots = tiles;
    place->tile_gradient_slots = tiles;
    place->stash_stages = 0;
}
static void set_block_slots(struct place *place, uint32_t extra)
{
    place->block_slots = MIN(place->spec.prefetch + 1 + extra, layer_count(place));
}
static void set_state_stages(struct place *place, uint32_t extra)
{
    bool streams = place->spec.nvme;
    place->state_stages = streams ? 2 + extra : 0;
    place->join_stages =
        place->separate_device && place->spec.precision == PRECISION_FP32 ? 2 + extra / 2 : 0;
}

/* The largest count in 0..max that fits, when 0 does: found by halving, since memory grows with the
 * count. */
static uint32_t grow(struct place *place, void (*set)(struct place *, uint32_t), uint32_t max)
{
    uint32_t low = 0, high = max;
    while (low < high) {
        uint32_t middle = high - (high - low) / 2;
        set(place, middle);
        if (fits(place))
            low = middle;
        else
            high = middle - 1;
    }
    set(place, low);
    return low;
}

/* As grow, where the setter only ever improves: a copy is kept to return to. */
static void grow_where(struct place *place, uint8_t *where, void (*set)(struct place *, uint32_t),
                       uint32_t max)
{
    uint32_t layers = layer_count(place), low = 0, high = max;
    uint8_t before[layers];
    memcpy(before, where, layers);
    while (low < high) {
        uint32_t middle = high - (high - low) / 2;
        memcpy(where, before, layers);
        set(place, middle);
        if (fits(place))
            low = middle;
        else
            high = middle - 1;
    }
    memcpy(where, before, layers);
    set(place, low);
}

static void set_least(struct place *place)
{
    const struct place_spec *spec = &place->spec;
    uint32_t layers = layer_count(place), chunks = spec->layout->chunk_count;
    bool outer = spec->nvme;
    set_plane(place, PLANE_HI, 0);
    if (spec->resident_planes > 0)
        set_plane(place, (uint32_t)spec->resident_planes - 1, chunks);
    else if (!outer)
        set_plane(place, PLANE_V, chunks);
    set_gradient_slots(place, 0);
    set_gradients(place, outer ? 0 : chunks);
    set_stash(place, outer ? 0 : chunks);
    memset(place->x_where, outermost(place), layers);
    memset(place->inner_where,
           spec->recompute == RECOMPUTE_NONE ? outermost(place) : WHERE_RECOMPUTE, layers);
    set_activation_rings(place);
    place->tile_slots = MIN(2, spec->layout->tile_count);
    set_block_slots(place, 0);
    set_state_stages(place, 0);
}

/* Whether arithmetic takes longer than moving all state over the drive would: then recomputation is
 * what costs, else drive traffic is. */
static bool compute_binds(const struct place *place)
{
    const struct place_spec *spec = &place->spec;
    const struct profile *profile = spec->profile;
    uint64_t forward, backward;
    place_flops(spec, &forward, &backward);
    double state = (double)spec->layout->padded_parameters * LAYOUT_STATE_BYTES;
    double flops = profile_flops(profile, spec->precision, PROFILE_BLOCK_BACKWARD,
                                 spec->config->channels, spec->batch * spec->seq);
    return (double)(forward + backward) / flops >
           state / profile->ssd.read_bytes_per_s + state / profile->ssd.write_bytes_per_s;
}

static void grow_inner(struct place *place)
{
    if (place->spec.recompute == RECOMPUTE_ALL)
        return;
    uint32_t layers = layer_count(place);
    grow_where(place, place->inner_where, set_inner_device, layers);
    if (place->separate_device)
        grow_where(place, place->inner_where, set_inner_ram, layers);
}

/* The head's tiles all on the device, with their gradients: all or nothing. */
static void grow_tiles(struct place *place)
{
    uint32_t gradient_slots = place->tile_gradient_slots, slots = place->tile_slots;
    uint32_t stages = place->stash_stages;
    if (grow(place, set_tiles, 1))
        return;
    place->tile_gradient_slots = gradient_slots;
    place->tile_slots = slots;
    place->stash_stages = stages;
}

static bool all_resident(const struct place *place, enum plane plane)
{
    for (uint32_t c = 0; c < place->spec.layout->chunk_count; c++)
        if (place->resident[c] <= plane)
            return false;
    return true;
}

/* RAM and, without a device of its own, everything: from what saves most drive traffic per byte
 * (hi: three times its size in a step) to what saves least. */
static void spend(struct place *place)
{
    const struct place_spec *spec = &place->spec;
    uint32_t layers = layer_count(place), chunks = spec->layout->chunk_count;
    bool search = spec->resident_planes == PLACE_RESIDENT_AUTO && spec->nvme;
    bool inner_first = compute_binds(place);
    grow(place, set_gradient_slots, 1);
    if (spec->nvme)
        grow(place, set_state_stages, STATE_STAGES_MAX - 2);
    if (search)
        grow(place, set_hi, chunks);
    grow_where(place, place->x_where, set_x_device, layers);
    if (place->separate_device && any_where(place, place->x_where, WHERE_NVME))
        grow_where(place, place->x_where, set_x_ram, layers);
    if (inner_first)
        grow_inner(place);
    grow_tiles(place);
    if (spec->nvme) {
        grow(place, set_gradients, chunks);
        if (place->tile_gradient_slots < spec->layout->tile_count)
            grow(place, set_stash, spec->layout->wpe_first_chunk);
    }
    void (*const planes[])(struct place *, uint32_t) = {set_lo, set_m, set_v};
    for (uint32_t i = 0; i < ARRAY_COUNT(planes) && search; i++)
        if (all_resident(place, i))
            grow(place, planes[i], chunks);
    if (!inner_first)
        grow_inner(place);
    grow(place, set_block_slots, layers);
}

static int refuse(struct place *place, struct err *err)
{
    const struct place_spec *spec = &place->spec;
    measure(place);
    char need[LOG_BYTES_MAX], have[LOG_BYTES_MAX], what[LOG_BYTES_MAX];
    struct plan_memory memory;
    plan_memory_init(&memory, place);
    bool device = place->separate_device && place->vram_bytes > spec->vram_budget;
    enum plan_tier tier = device ? TIER_DEVICE : TIER_RAM;
    enum plan_content most = CONTENT_STATE;
    for (uint32_t c = 0; c < CONTENT_COUNT; c++)
        if (memory.content_bytes[tier][c] > memory.content_bytes[tier][most])
            most = c;
    uint64_t most_bytes = memory.content_bytes[tier][most];
    const char *most_name = plan_content_name[most];
    plan_memory_deinit(&memory);
    if (tier == TIER_RAM && spec->overhead_bytes > most_bytes) {
        most_bytes = spec->overhead_bytes;
        most_name = "the program itself";
    }
    log_bytes(what, most_bytes);
    if (device)
        return err_set(err, ERR_INPUT,
                       "the VRAM budget of %s is too small: this model needs %s there at least "
                       "(most of it: %s, %s); the smallest that works, other budgets as given: "
                       "--vram-budget %lluM",
                       log_bytes(have, spec->vram_budget), log_bytes(need, place->vram_bytes),
                       most_name, what, (unsigned long long)div_up(place->vram_bytes, MIB));
    if (place->ram_bytes > spec->ram_budget)
        return err_set(
            err, ERR_INPUT,
            "the RAM budget of %s is too small: this model needs %s at least%s (most of it: %s, "
            "%s); the smallest that works, other budgets as given: --ram-budget %lluM",
            log_bytes(have, spec->ram_budget), log_bytes(need, place->ram_bytes),
            spec->nvme ? "" : " without --nvme DIR", most_name, what,
            (unsigned long long)div_up(with_margin(place->ram_bytes), MIB));
    /* What RAM takes from the drive varies with what the program itself takes: by a chunk or so. */
    uint64_t chunk = spec->layout->chunk_count_max * place->gradient_bytes;
    return err_set(err, ERR_INPUT,
                   "the NVMe budget of %s is too small: both slots of the state and what is "
                   "spilled need %s; the smallest that works, other budgets as given: "
                   "--nvme-budget %lluM",
                   log_bytes(have, spec->nvme_budget), log_bytes(need, place->nvme_bytes),
                   (unsigned long long)div_up(with_margin(place->nvme_bytes) + chunk, MIB));
}

int place_choose(struct place *place, const struct place_spec *spec, struct err *err)
{
    const struct layout *layout = spec->layout;
    ASSERT(spec->batch > 0 && spec->accum > 0 && spec->seq > 0);
    ASSERT(spec->resident_planes <= PLANE_COUNT);
    *place = (struct place){
        .spec = *spec,
        .separate_device = spec->vram_budget > 0,
        .immediate = !spec->clip,
        .weight_bytes = precision_bytes(spec->precision),
        .gradient_bytes = precision_bytes(spec->precision),
    };
    struct kernels_shape shape = {
        .precision = spec->precision,
        .batch = spec->batch,
        .seq = spec->seq,
        .channels = spec->config->channels,
        .heads = spec->config->heads,
        .vocab = spec->config->vocab,
        .tile_rows_max = layout->tile_rows_max,
        .norm_epsilon = spec->config->norm_epsilon,
    };
    kernels_sizes(&shape, &place->sizes);
    place->x_bytes =
        round_up((uint64_t)spec->batch * spec->seq * spec->config->channels * 4, IO_ALIGN);
    place->inner_bytes = place->sizes.inner_bytes;
    place->resident = mem_alloc(layout->chunk_count, sizeof(*place->resident));
    place->gradient_in_ram = mem_alloc(layout->chunk_count, sizeof(*place->gradient_in_ram));
    place->stash_in_ram = mem_alloc(layout->wpe_first_chunk, sizeof(*place->stash_in_ram));
    place->x_where = mem_alloc(spec->config->layers, sizeof(*place->x_where));
    place->inner_where = mem_alloc(spec->config->layers, sizeof(*place->inner_where));
    if (spec->resident_planes != PLACE_RESIDENT_AUTO && spec->resident_planes < PLANE_COUNT &&
        !spec->nvme)
        return err_set(err, ERR_INPUT,
                       "--resident keeps state out of RAM, but there is no drive for it: add "
                       "--nvme DIR");

    place->spec.prefetch = spec->prefetch ? spec->prefetch : 1;
    set_least(place);
    if (!fits(place))
        return refuse(place, err);
    if (!spec->prefetch) {
        place->spec.prefetch = 2;
        set_least(place);
        if (!fits(place)) {
            place->spec.prefetch = 1;
            set_least(place);
        }
    }
    spend(place);
    ASSERT(fits(place));
    if (place->nvme_bytes > spec->nvme_budget)
        return refuse(place, err);
    for (uint32_t c = 0; c < layout->chunk_count; c++)
        for (uint32_t plane = 0; plane < place->resident[c]; plane++)
            place->resident_plane_chunks[plane]++;
    return 0;
}

void place_deinit(struct place *place)
{
    mem_free(place->resident);
    mem_free(place->gradient_in_ram);
    mem_free(place->stash_in_ram);
    mem_free(place->x_where);
    mem_free(place->inner_where);
    *place = (struct place){0};
}
