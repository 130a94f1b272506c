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
#define PREFETCH_MAX            3

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
                                                 "block slots",
                                                 "device state",
                                                 "streamed"};

/* The smallest flag that works is stated with a little more than this run needs: what the program
 * itself takes varies by some hundred KiB from one start to the next. */
static uint64_t with_margin(uint64_t bytes)
{
    return bytes + MAX(bytes / 64, 512 * KIB);
}

/* ---- Choices ----------------------------------------------------------------------------------
 */

static uint32_t drive_depth(const struct place_spec *spec)
{
    const struct profile_ssd *ssd = spec->profile ? &spec->profile->ssd : NULL;
    return engine_drive_depth(ssd ? ssd->queue_depth : 0, ssd ? ssd->count : 1);
}

/* A CPU that plays the device has nothing to spare for it. */
static bool may_stream(const struct place_spec *spec)
{
    const struct profile_device *device = spec->profile ? &spec->profile->device : NULL;
    bool all_in_ram = spec->resident_planes < 0 || spec->resident_planes == PLANE_COUNT;
    bool wanted =
        spec->update == UPDATE_DEVICE || (spec->update == UPDATE_AUTO && device && !device->is_cpu);
    return wanted && spec->vram_budget > 0 && spec->clip && all_in_ram &&
           (!device || device->count == 1);
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
        return spec->nvme ? MAX(STATE_STAGES_MAX(drive_depth(spec)), PLACE_STATE_STAGES_MIN) -
                                PLACE_STATE_STAGES_MIN
                          : 0;
    case KNOB_GRADIENT_RING:
        return separate || spec->nvme ? layout->block_chunks : 0;
    case KNOB_HI:
    case KNOB_LO:
    case KNOB_M:
    case KNOB_V:
        if (spec->resident_planes >= 0 && spec->nvme)
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
        return TILES_COUNT - 1;
    case KNOB_GRADIENTS:
        return place->immediate ? 0 : layout->chunk_count;
    case KNOB_STASH:
        /* Where RAM is the device, holding the tiles' gradients is better than a copy of them. */
        return separate && layout->tied ? layout->wpe_first_chunk : 0;
    case KNOB_BLOCK_SLOTS:
        return spec->config->layers;
    case KNOB_DEVICE:
        return separate && spec->resident_planes < 0 &&
                       (!spec->profile || spec->profile->device.count == 1)
                   ? layout->chunk_count
                   : 0;
    case KNOB_STREAMED:
        return may_stream(spec) ? layout->chunk_count : 0;
    case KNOB_COUNT:
        break;
    }
    ASSERT(!"no knob");
    return 0;
}

static bool fits_device(struct place *place, struct place_choice *choice, uint32_t count)
{
    choice->knob[KNOB_DEVICE] = count;
    place_measure(place, choice);
    return place->vram_bytes <= place->spec.vram_budget;
}

static bool fits_ram(struct place *place, struct place_choice *choice, uint32_t count)
{
    choice->knob[KNOB_DEVICE] = count;
    place_measure(place, choice);
    return place->ram_bytes <= place->spec.ram_budget;
}

static bool fits_both(struct place *place, struct place_choice *choice, uint32_t count)
{
    choice->knob[KNOB_DEVICE] = count;
    return place_measure(place, choice);
}

/* As many chunks as the device has room for. All of them may take less than almost all, where
 * weights are then used in place. */
static uint32_t most_on_device(struct place *place, struct place_choice *choice)
{
    uint32_t most = place_knob_max(place, KNOB_DEVICE), low = 0;
    if (fits_device(place, choice, most))
        return most;
    for (uint32_t high = most - 1; low < high;) {
        uint32_t middle = high - (high - low) / 2;
        if (fits_device(place, choice, middle))
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* As few as `fits`: none do not, `high` do. */
static uint32_t least_on_device(struct place *place, struct place_choice *choice, uint32_t high,
                                bool (*fits)(struct place *, struct place_choice *, uint32_t))
{
    for (uint32_t low = 0; high - low > 1;) {
        uint32_t middle = low + (high - low) / 2;
        if (fits(place, choice, middle))
            high = middle;
        else
            low = middle;
    }
    return high;
}

/* State that RAM has no room for may be on the device: the least of it that helps. Where nothing
 * does, it is what makes the refusal name the smallest flag that does: where the device has room,
 * as much as fits there, for the least RAM; where it has none either, the least that RAM wants. */
static void move_to_device(struct place *place, struct place_choice *choice)
{
    uint32_t all = place_knob_max(place, KNOB_DEVICE), count = 0;
    bool forced = place->spec.resident_planes == PLACE_RESIDENT_DEVICE;
    if (!all || (fits_ram(place, choice, 0) && !forced))
        return;
    uint64_t before = place->ram_bytes;
    if (place->vram_bytes > place->spec.vram_budget) {
        if (fits_ram(place, choice, all))
            count = least_on_device(place, choice, all, fits_ram);
    } else {
        count = most_on_device(place, choice);
        if (fits_both(place, choice, count) && !forced)
            count = least_on_device(place, choice, count, fits_both);
        else if (place->ram_bytes >= before && !forced)
            count = 0;
    }
    choice->knob[KNOB_DEVICE] = count;
}

/* Where gradients lie in what is kept of activations, keeping them may take no more than a place to
 * compute them again. */
static void keep_where_shared(struct place *place, struct place_choice *choice)
{
    place_measure(place, choice);
    uint64_t before = place->ram_bytes;
    if (!place->gradients_shared)
        return;
    choice->knob[KNOB_INNER_DEVICE] = place_knob_max(place, KNOB_INNER_DEVICE);
    place_measure(place, choice);
    if (place->ram_bytes > before)
        choice->knob[KNOB_INNER_DEVICE] = 0;
}

void place_least_choice(struct place *place, struct place_choice *choice)
{
    const struct place_spec *spec = &place->spec;
    *choice = (struct place_choice){{0}};
    choice->knob[KNOB_PREFETCH] = spec->prefetch ? spec->prefetch - 1 : 0;
    for (uint32_t k = KNOB_HI; k <= KNOB_V; k++)
        if (!spec->nvme ||
            (spec->resident_planes >= 0 && k - KNOB_HI < (uint32_t)spec->resident_planes))
            choice->knob[k] = spec->layout->chunk_count;
    if (!spec->nvme) {
        choice->knob[KNOB_GRADIENTS] = place_knob_max(place, KNOB_GRADIENTS);
        choice->knob[KNOB_STASH] = place_knob_max(place, KNOB_STASH);
    }
    move_to_device(place, choice);
    keep_where_shared(place, choice);
}

/* A plane is taken only where the planes before it are; chunks on the device need none in RAM. */
static uint32_t limit(const struct place *place, const struct place_choice *choice,
                      enum place_knob knob, uint32_t most)
{
    uint32_t rest = place->spec.layout->chunk_count - choice->knob[KNOB_DEVICE];
    most = MIN(most, place_knob_max(place, knob));
    if (knob > KNOB_HI && knob <= KNOB_V && choice->knob[knob - 1] < rest)
        return choice->knob[knob];
    bool counts_rest = (knob >= KNOB_HI && knob <= KNOB_V) || knob == KNOB_GRADIENTS;
    if (knob == KNOB_STREAMED)
        return MIN(most, place_streamable(place, choice));
    return counts_rest ? MIN(most, rest) : most;
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
    /* Room to stream through, before it is known how much will be. */
    choice->knob[KNOB_STREAMED] = most[KNOB_STREAMED] > 0;
    if (!place_measure(place, choice))
        choice->knob[KNOB_STREAMED] = 0;
    bool streams = choice->knob[KNOB_STREAMED];
    place_grow(place, choice, KNOB_PREFETCH, most[KNOB_PREFETCH]);
    /* Of the layers that neither device nor RAM will have: what it takes are rings. */
    place_grow(place, choice, KNOB_INNER_NVME, most[KNOB_INNER_NVME]);
    if (!limits->device_last)
        place_grow(place, choice, KNOB_DEVICE, most[KNOB_DEVICE]);
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
    place_grow(place, choice, KNOB_DEVICE, most[KNOB_DEVICE]);
    for (uint32_t k = KNOB_HI; k <= KNOB_V; k++)
        place_grow(place, choice, k, UINT32_MAX);
    choice->knob[KNOB_STREAMED] = 0;
    if (streams)
        place_grow(place, choice, KNOB_STREAMED, most[KNOB_STREAMED]);
}

void place_limits_init(const struct place *place, struct place_limits *limits)
{
    *limits = (struct place_limits){.inner_last = !compute_binds(place), .device_last = true};
    for (uint32_t k = 0; k < KNOB_COUNT; k++)
        limits->most[k] = place_knob_max(place, k);
    limits->most[KNOB_PREFETCH] = MIN(limits->most[KNOB_PREFETCH], 1);
    if (place->spec.prefetch)
        limits->most[KNOB_PREFETCH] = place->spec.prefetch - 1;
    limits->most[KNOB_INNER_NVME] = 0;
    if (place->spec.update != UPDATE_DEVICE)
        limits->most[KNOB_STREAMED] = 0;
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
    place->head_once_bytes = spec->device_head_once_bytes
                                 ? spec->device_head_once_bytes
                                 : graph_head_once_bytes(spec->config, &shape);
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
    place->on_device = mem_alloc(layout->chunk_count, sizeof(*place->on_device));
    place->streamed = mem_alloc(layout->chunk_count, sizeof(*place->streamed));
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
        place->on_device[c] =
            place_device_taken(place, choice, c + 1) > place_device_taken(place, choice, c);
        place->gradient_in_ram[c] =
            place_gradients_taken(place, choice, c + 1) > place_gradients_taken(place, choice, c);
        place->streamed[c] =
            place_streamed_taken(place, choice, c + 1) > place_streamed_taken(place, choice, c);
        ASSERT(!place->streamed[c] || (planes == PLANE_COUNT && place->gradient_in_ram[c]));
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
    if (spec->resident_planes == PLACE_RESIDENT_DEVICE && !place_knob_max(place, KNOB_DEVICE))
        return err_set(err, ERR_INPUT,
                       "--resident device wants one device with memory of its own: a card, or "
                       "--vram-budget");
    if (spec->update == UPDATE_DEVICE && !place_knob_max(place, KNOB_STREAMED))
        return err_set(err, ERR_INPUT,
                       "--update device wants one device with memory of its own (a card, or "
                       "--vram-budget), clipping (--clip above 0), and no part of the state kept "
                       "out of RAM by --resident");
    if (spec->resident_planes >= 0 && spec->resident_planes < PLANE_COUNT && !spec->nvme)
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
    mem_free(place->on_device);
    mem_free(place->streamed);
    mem_free(place->gradient_in_ram);
    mem_free(place->stash_in_ram);
    mem_free(place->x_where);
    mem_free(place->inner_where);
    mem_free(place->share);
    *place = (struct place){0};
}
