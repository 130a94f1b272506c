/*
 * place: from the least that can work, upwards.
 *
 * A placement is a choice of knobs (enum place_knob). What a choice takes of each tier is known in
 * closed form (place_measure), so that thousands can be tried; tests/offload/test_place.c holds it
 * against plan_memory_init, which divides the memory for good. Without a profile, a fixed order of
 * spending is taken, in which what saves the most drive traffic or recomputation per byte comes
 * first; with one, place_search tries others by simulation.
 */
#include "offload/place.h"

#include "core/log.h"
#include "core/mem.h"
#include "model/graph.h"
#include "offload/engine.h"
#include "offload/place_search.h"
#include "offload/plan.h"

#include <math.h>
#include <string.h>

/* Short of nothing, this many chunk states are in flight between drives and optimizer: what keeps
 * each drive busy in both directions and two that are updated, about 24 MiB with one drive. */
#define STATE_STAGES_MAX(depth) (2 + 2 * (depth))
/* With less, read, update and write of different chunks wait for one another: 2 made the smallest
 * placements 1.5 times as slow as the drive allows. */
#define STATE_STAGES_MIN 4
#define PREFETCH_MAX     3

const char *const place_knob_name[KNOB_COUNT] = {"prefetch",
                                                 "gradient slots",
                                                 "state stages",
                                                 "gradient ring",
                                                 "hi",
                                                 "lo",
                                                 "m",
                                                 "v",
                                                 "x device",
                                                 "x ram",
                                                 "inner device",
                                                 "inner ram",
                                                 "inner nvme",
                                                 "tiles",
                                                 "gradients",
                                                 "stash",
                                                 "block slots"};

/* The smallest flag that works is stated with a little more than this run needs: what the program
 * itself takes varies by some hundred KiB from one start to the next. */
static uint64_t with_margin(uint64_t bytes)
{
    return bytes + MAX(bytes / 64, 512 * KIB);
}

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

/* hi of wte is used by both ends of the model, so it goes first; the rest is spread. */
static uint32_t plane_first(const struct place *place, uint32_t plane, uint32_t count)
{
    return plane == PLANE_HI ? MIN(count, place->spec.layout->wpe_first_chunk) : 0;
}

uint64_t place_plane_taken(const struct place *place, const struct place_choice *choice,
                           uint32_t plane, uint32_t before)
{
    const struct layout *layout = place->spec.layout;
    uint32_t count = choice->knob[KNOB_HI + plane];
    if (plane != PLANE_HI)
        return place_taken_before(before, count, layout->chunk_count);
    uint32_t first = plane_first(place, plane, count), wte = layout->wpe_first_chunk;
    if (before <= wte)
        return MIN(before, first);
    return first + place_taken_before(before - wte, count - first, layout->chunk_count - wte);
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
    bool held = knob[KNOB_TILES] || (!separate && !spec->nvme);
    place->gradient_slots = 1 + extra;
    place->tile_gradient_slots = held ? tiles : MIN(1 + extra, tiles);
    place->gradient_outs = bf16 && separate ? 2 + 2 * extra + knob[KNOB_GRADIENT_RING] : 0;
    place->tile_slots = knob[KNOB_TILES] ? tiles : MIN(2, tiles);
    place->block_slots = MIN(prefetch + 1 + knob[KNOB_BLOCK_SLOTS], spec->config->layers);
    bool streams = place->immediate || knob[KNOB_GRADIENTS] < spec->layout->chunk_count;
    place->gradient_stages = streams ? prefetch + 2 + knob[KNOB_GRADIENT_RING] : 0;
    bool stashes = separate && place->tile_gradient_slots < tiles && spec->layout->tied &&
                   knob[KNOB_STASH] < spec->layout->wpe_first_chunk;
    place->stash_stages = stashes ? 2 : 0;
    place->state_stages = spec->nvme ? STATE_STAGES_MIN + knob[KNOB_STATE_STAGES] : 0;
    place->join_stages = separate && !bf16 ? 2 + knob[KNOB_STATE_STAGES] / 2 : 0;
    bool moved = inner->layers[WHERE_RAM] || inner->layers[WHERE_NVME];
    place->inner_slots = moved ? 2 : inner->layers[WHERE_RECOMPUTE] ? 1 : 0;
    bool staged = x->layers[WHERE_NVME] || inner->layers[WHERE_NVME];
    place->activation_stages = staged && separate ? 2 : 0;
    place->weights_in_place = !separate && bf16 && knob[KNOB_HI] == spec->layout->chunk_count;
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
    return place_taken_before(before, choice->knob[KNOB_GRADIENTS],
                              place->spec.layout->chunk_count);
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

static void add_state(const struct place *place, const struct place_choice *choice,
                      struct tiers *tiers)
{
    const struct layout *layout = place->spec.layout;
    uint64_t chunk = layout->chunk_count_max, each = place->gradient_bytes;
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        tiers->bytes[TIER_RAM] += plane_bytes_taken(place, choice, p);
    uint64_t in_ram = taken_parameters(place, choice, gradients_taken, 0) * each;
    tiers->bytes[TIER_RAM] += in_ram;
    if (!place->immediate)
        tiers->bytes[TIER_NVME] += layout->padded_parameters * each - in_ram;
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
    *device += pages(squares) + pages(place->scratch_bytes);
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
    add_state(place, choice, &tiers);
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

/* ---- Choices ----------------------------------------------------------------------------------
 */

static uint32_t drive_depth(const struct place_spec *spec)
{
    const struct profile_ssd *ssd = spec->profile ? &spec->profile->ssd : NULL;
    return engine_drive_depth(ssd ? ssd->queue_depth : 0, ssd ? ssd->count : 1);
}

/* Whether a knob means anything here, and how far it goes. */
uint32_t place_knob_max(const struct place *place, enum place_knob knob)
{
    const struct place_spec *spec = &place->spec;
    const struct layout *layout = spec->layout;
    bool separate = place->separate_device;
    switch (knob) {
    case KNOB_PREFETCH:
        return spec->prefetch ? spec->prefetch - 1 : PREFETCH_MAX - 1;
    case KNOB_GRADIENT_SLOTS:
        return 1;
    case KNOB_STATE_STAGES:
        return spec->nvme
                   ? MAX(STATE_STAGES_MAX(drive_depth(spec)), STATE_STAGES_MIN) - STATE_STAGES_MIN
                   : 0;
    case KNOB_GRADIENT_RING:
        return separate || spec->nvme ? layout->block_chunks : 0;
    case KNOB_HI:
    case KNOB_LO:
    case KNOB_M:
    case KNOB_V:
        if (spec->resident_planes != PLACE_RESIDENT_AUTO && spec->nvme)
            return knob - KNOB_HI < (enum place_knob)spec->resident_planes ? layout->chunk_count
                                                                           : 0;
        return layout->chunk_count;
    case KNOB_X_DEVICE:
        return spec->config->layers;
    case KNOB_X_RAM:
        return separate ? spec->config->layers : 0;
    case KNOB_INNER_DEVICE:
        return spec->recompute == RECOMPUTE_ALL ? 0 : spec->config->layers;
    case KNOB_INNER_RAM:
        return spec->recompute == RECOMPUTE_ALL || !separate ? 0 : spec->config->layers;
    case KNOB_INNER_NVME:
        return spec->recompute == RECOMPUTE_AUTO && spec->nvme ? spec->config->layers : 0;
    case KNOB_TILES:
        return 1;
    case KNOB_GRADIENTS:
        return place->immediate ? 0 : layout->chunk_count;
    case KNOB_STASH:
        /* Where RAM is the device, holding the tiles' gradients is better than a copy of them. */
        return separate && layout->tied ? layout->wpe_first_chunk : 0;
    case KNOB_BLOCK_SLOTS:
        return spec->config->layers;
    case KNOB_COUNT:
        break;
    }
    ASSERT(!"no knob");
    return 0;
}

void place_least_choice(const struct place *place, struct place_choice *choice)
{
    const struct place_spec *spec = &place->spec;
    *choice = (struct place_choice){{0}};
    choice->knob[KNOB_PREFETCH] = spec->prefetch ? spec->prefetch - 1 : 0;
    for (uint32_t k = KNOB_HI; k <= KNOB_V; k++)
        if (!spec->nvme || (spec->resident_planes != PLACE_RESIDENT_AUTO &&
                            k - KNOB_HI < (uint32_t)spec->resident_planes))
            choice->knob[k] = spec->layout->chunk_count;
    if (spec->nvme)
        return;
    choice->knob[KNOB_GRADIENTS] = place_knob_max(place, KNOB_GRADIENTS);
    choice->knob[KNOB_STASH] = place_knob_max(place, KNOB_STASH);
}

/* A plane is taken only where the planes before it are. */
static uint32_t limit(const struct place *place, const struct place_choice *choice,
                      enum place_knob knob, uint32_t most)
{
    most = MIN(most, place_knob_max(place, knob));
    if (knob > KNOB_HI && knob <= KNOB_V &&
        choice->knob[knob - 1] < place->spec.layout->chunk_count)
        return choice->knob[knob];
    return most;
}

/* Memory grows with a knob, but at the end of some, where the last layer that needs a ring is gone:
 * so the end is tried first, and then halves. */
void place_grow(struct place *place, struct place_choice *choice, enum place_knob knob,
                uint32_t most)
{
    uint32_t *value = &choice->knob[knob], low = *value;
    uint32_t high = limit(place, choice, knob, most);
    if (high <= low)
        return;
    *value = high;
    if (place_measure(place, choice))
        return;
    for (high--; low < high;) {
        uint32_t middle = high - (high - low) / 2;
        *value = middle;
        if (place_measure(place, choice))
            low = middle;
        else
            high = middle - 1;
    }
    *value = low;
}

/* Whether arithmetic takes longer than moving all state over the drive would: then recomputation is
 * what costs, else drive traffic is. */
static bool compute_binds(const struct place *place)
{
    const struct place_spec *spec = &place->spec;
    struct profile defaults;
    uint64_t forward, backward;
    profile_init(&defaults, 2);
    place_flops(spec, &forward, &backward);
    double state = (double)spec->layout->slot_bytes;
    double flops = profile_flops(&defaults, spec->precision, PROFILE_BLOCK_BACKWARD,
                                 spec->config->channels, spec->batch * spec->seq);
    return (double)(forward + backward) / flops >
           state / defaults.ssd.read_bytes_per_s + state / defaults.ssd.write_bytes_per_s;
}

void place_spend(struct place *place, const struct place_limits *limits,
                 struct place_choice *choice)
{
    const uint32_t *most = limits->most;
    static const enum place_knob before[] = {
        KNOB_GRADIENT_SLOTS, KNOB_STATE_STAGES, KNOB_HI,
        KNOB_X_DEVICE,       KNOB_X_RAM,        KNOB_GRADIENT_RING};
    static const enum place_knob after[] = {KNOB_TILES, KNOB_GRADIENTS, KNOB_STASH,
                                            KNOB_LO,    KNOB_M,         KNOB_V};
    place_least_choice(place, choice);
    place_grow(place, choice, KNOB_PREFETCH, most[KNOB_PREFETCH]);
    /* Of the layers that neither device nor RAM will have: what it takes are rings. */
    place_grow(place, choice, KNOB_INNER_NVME, most[KNOB_INNER_NVME]);
    for (size_t i = 0; i < ARRAY_COUNT(before); i++)
        place_grow(place, choice, before[i], most[before[i]]);
    place_grow(place, choice, KNOB_BLOCK_SLOTS, limits->block_slots_first);
    if (!limits->inner_last) {
        place_grow(place, choice, KNOB_INNER_DEVICE, most[KNOB_INNER_DEVICE]);
        place_grow(place, choice, KNOB_INNER_RAM, most[KNOB_INNER_RAM]);
    }
    for (size_t i = 0; i < ARRAY_COUNT(after); i++)
        place_grow(place, choice, after[i], most[after[i]]);
    /* What is left, where more is never slower; what was held back, after what it was held back
     * for. */
    place_grow(place, choice, KNOB_GRADIENTS, UINT32_MAX);
    if (most[KNOB_INNER_DEVICE] < place_knob_max(place, KNOB_INNER_DEVICE))
        place_grow(place, choice, KNOB_BLOCK_SLOTS, most[KNOB_BLOCK_SLOTS]);
    place_grow(place, choice, KNOB_INNER_DEVICE, UINT32_MAX);
    place_grow(place, choice, KNOB_INNER_RAM, most[KNOB_INNER_RAM]);
    place_grow(place, choice, KNOB_BLOCK_SLOTS, most[KNOB_BLOCK_SLOTS]);
    for (uint32_t k = KNOB_HI; k <= KNOB_V; k++)
        place_grow(place, choice, k, UINT32_MAX);
}

void place_limits_init(const struct place *place, struct place_limits *limits)
{
    *limits = (struct place_limits){.inner_last = !compute_binds(place)};
    for (uint32_t k = 0; k < KNOB_COUNT; k++)
        limits->most[k] = place_knob_max(place, k);
    limits->most[KNOB_PREFETCH] = MIN(limits->most[KNOB_PREFETCH], 1);
    if (place->spec.prefetch)
        limits->most[KNOB_PREFETCH] = place->spec.prefetch - 1;
    limits->most[KNOB_INNER_NVME] = 0;
}

/* ---- Refusals ---------------------------------------------------------------------------------
 */

static int refuse(struct place *place, struct err *err)
{
    const struct place_spec *spec = &place->spec;
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
                       log_bytes(have, spec->vram_given ? spec->vram_given
                                                        : spec->vram_budget + spec->vram_reserve),
                       log_bytes(need, place->vram_bytes + spec->vram_reserve), most_name, what,
                       (unsigned long long)div_up(place->vram_bytes + spec->vram_reserve, MIB));
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
                   "the NVMe budget of %s is too small: state%s and what is spilled need %s; the "
                   "smallest that works, other budgets as given: --nvme-budget %lluM",
                   log_bytes(have, spec->nvme_budget),
                   spec->one_slot ? ""
                                  : " in two slots (--nvme-slots 1 takes half, not crash-safe)",
                   log_bytes(need, place->nvme_bytes),
                   (unsigned long long)div_up(with_margin(place->nvme_bytes) + chunk, MIB));
}

/* ---- From a spec to a placement ----------------------------------------------------------------
 */

void place_init(struct place *place, const struct place_spec *spec)
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
    struct graph_shape shape = {spec->precision, spec->batch, spec->seq, layout->tile_rows_max};
    place->scratch_bytes = spec->device_scratch_bytes ? spec->device_scratch_bytes
                                                      : graph_scratch_bytes(spec->config, &shape);
    place->inner_bytes = spec->device_inner_bytes ? spec->device_inner_bytes
                                                  : graph_inner_bytes(spec->config, &shape);
    place->x_bytes =
        round_up((uint64_t)spec->batch * spec->seq * spec->config->channels * 4, IO_ALIGN);
}

static void reserve(struct place *place)
{
    const struct layout *layout = place->spec.layout;
    if (place->resident)
        return;
    place->resident = mem_alloc(layout->chunk_count, sizeof(*place->resident));
    place->gradient_in_ram = mem_alloc(layout->chunk_count, sizeof(*place->gradient_in_ram));
    place->stash_in_ram = mem_alloc(layout->wpe_first_chunk, sizeof(*place->stash_in_ram));
    place->x_where = mem_alloc(place->spec.config->layers, sizeof(*place->x_where));
    place->inner_where = mem_alloc(place->spec.config->layers, sizeof(*place->inner_where));
}

void place_apply(struct place *place, const struct place_choice *choice)
{
    const struct layout *layout = place->spec.layout;
    reserve(place);
    place->choice = *choice;
    place_measure(place, choice);
    place->spec.prefetch = choice->knob[KNOB_PREFETCH] + 1;
    uint64_t before[PLANE_COUNT] = {0};
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        uint32_t planes = 0;
        for (uint32_t p = 0; p < PLANE_COUNT; p++) {
            uint64_t after = place_plane_taken(place, choice, p, c + 1);
            planes += after > before[p];
            before[p] = after;
        }
        place->resident[c] = (uint8_t)planes;
        place->gradient_in_ram[c] =
            place_gradients_taken(place, choice, c + 1) > place_gradients_taken(place, choice, c);
    }
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        place->resident_plane_chunks[p] = before[p];
    for (uint32_t c = 0; c < layout->wpe_first_chunk; c++)
        place->stash_in_ram[c] = c < choice->knob[KNOB_STASH];
    for (uint32_t l = 0; l < place->spec.config->layers; l++) {
        place->x_where[l] = (uint8_t)place_x_where(place, choice, l);
        place->inner_where[l] = (uint8_t)place_inner_where(place, choice, l);
    }
}

int place_choose(struct place *place, const struct place_spec *spec, struct err *err)
{
    struct place_choice choice;
    struct place_limits limits;
    place_init(place, spec);
    if (spec->resident_planes != PLACE_RESIDENT_AUTO && spec->resident_planes < PLANE_COUNT &&
        !spec->nvme)
        return err_set(err, ERR_INPUT,
                       "--resident keeps state out of RAM, but there is no drive for it: add "
                       "--nvme DIR");
    place_least_choice(place, &choice);
    if (!place_measure(place, &choice)) {
        place_apply(place, &choice);
        return refuse(place, err);
    }
    place_limits_init(place, &limits);
    place_spend(place, &limits, &choice);
    int result = 0;
    if (spec->profile && spec->write_budget)
        result = place_search_writes(place, &limits, &choice, err);
    else if (spec->profile)
        place_search(place, &limits, INFINITY, &choice);
    place_apply(place, &choice);
    ASSERT(place->ram_bytes <= spec->ram_budget);
    return place->nvme_bytes > spec->nvme_budget ? refuse(place, err) : result;
}

void place_deinit(struct place *place)
{
    mem_free(place->resident);
    mem_free(place->gradient_in_ram);
    mem_free(place->stash_in_ram);
    mem_free(place->x_where);
    mem_free(place->inner_where);
    mem_free(place->share);
    *place = (struct place){0};
}
