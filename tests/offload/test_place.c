/*
 * Properties of placements:
 * 1. What is accepted fits: the tiers that plan_memory_init divides are within the budgets.
 * 2. What is refused names a flag that then works, and 95 % of it is refused with the same flag.
 * 3. place_least, in closed form, is what the built plans move: the same number to the byte once
 *    the padding is added that the layout says (the padded layout is given to place_least as if it
 *    were all real), for every phase, precision and choice.
 * 4. Where memory allows, and then only, the head is computed at once; that never makes a budget
 * too small that was enough without.
 * 5. More memory never means more traffic, but for what the rings take first (check_monotone).
 * Method: sweeps over forced choices times budgets, on a tiny model in many chunks and, for
 * refusals, on gpt2-124m, where megabytes are small against the budgets.
 */
#include "tests/shared/check.h"
#include "tests/shared/choices.h"
#include "tests/shared/tiny.h"

#include <stdio.h>
#include <string.h>

/* ---- What fits ------------------------------------------------------------------------------ */

static void check_fits(const struct place *place)
{
    const struct place_spec *spec = &place->spec;
    struct plan_memory memory;
    plan_memory_init(&memory, place);
    uint64_t content[TIER_COUNT] = {0};
    for (uint32_t tier = 0; tier < TIER_COUNT; tier++)
        for (uint32_t c = 0; c < CONTENT_COUNT; c++)
            content[tier] += memory.content_bytes[tier][c];
    assert_int_equal(content[TIER_RAM], memory.tier_bytes[TIER_RAM]);
    assert_int_equal(content[TIER_DEVICE], memory.tier_bytes[TIER_DEVICE]);
    assert_int_equal(place->vram_bytes, memory.tier_bytes[TIER_DEVICE]);
    uint64_t pages = (memory.tier_bytes[TIER_RAM] + memory.tier_bytes[TIER_DEVICE]) / 512;
    assert_in_range(spec->overhead_bytes + memory.tier_bytes[TIER_RAM] + pages, place->ram_bytes,
                    place->ram_bytes + 1);
    assert_true(place->ram_bytes <= spec->ram_budget);
    if (place->separate_device)
        assert_true(memory.tier_bytes[TIER_DEVICE] <= spec->vram_budget);
    else
        assert_int_equal(memory.tier_bytes[TIER_DEVICE], 0);
    assert_int_equal(place->nvme_bytes,
                     2 * spec->layout->slot_bytes + memory.tier_bytes[TIER_NVME]);
    assert_true(place->nvme_bytes <= spec->nvme_budget);
    if (!spec->nvme)
        assert_int_equal(memory.tier_bytes[TIER_NVME], 0);
    plan_memory_deinit(&memory);
}

/* ---- What moves ----------------------------------------------------------------------------- */

/* The least with padding: all parameters of the layout taken as real, and activations in whole
 * blocks. */
static struct place_least padded_least(const struct place *place, const struct plan_request *r)
{
    struct layout layout = *place->spec.layout;
    struct layout_chunk chunks[layout.chunk_count];
    memcpy(chunks, layout.chunks, sizeof(chunks));
    for (uint32_t c = 0; c < layout.chunk_count; c++)
        chunks[c].real_count = chunks[c].count;
    layout.chunks = chunks;
    struct place padded = *place;
    padded.spec.layout = &layout;
    struct place_least least;
    place_least(&padded, r->update, r->forward, r->backward, &least);
    const struct place_spec *spec = &place->spec;
    uint64_t x = (uint64_t)spec->batch * spec->seq * spec->config->channels * 4;
    for (uint32_t l = 0; l < spec->config->layers && r->backward; l++) {
        uint64_t padding = (place->x_bytes - x) * spec->accum;
        if (place->x_where[l] == WHERE_NVME) {
            least.ssd_read_bytes += padding;
            least.ssd_write_bytes += padding;
        }
        if (place->x_where[l] != WHERE_DEVICE && place->separate_device) {
            least.h2d_bytes += padding;
            least.d2h_bytes += padding;
        }
    }
    return least;
}

static uint64_t moved(const struct plan_totals *totals, enum plan_lane lane)
{
    return totals->bytes[PHASE_FORWARD][lane] + totals->bytes[PHASE_BACKWARD][lane];
}

static uint64_t resident_bytes(const struct place *place)
{
    uint64_t bytes = 0;
    for (uint32_t c = 0; c < place->spec.layout->chunk_count; c++)
        for (uint32_t p = 0; p < place->resident[c]; p++)
            bytes += layout_plane_bytes(place->spec.layout, place->spec.layout->chunks[c].count, p);
    return bytes;
}

static void check_traffic(const struct place *place)
{
    static const struct plan_request requests[] = {
        {.forward = true},
        {.forward = true, .backward = true},
        {.update = true},
        {.update = true, .commit = true},
        {.update = true, .forward = true},
        {.update = true, .forward = true, .backward = true},
        {.update = true, .commit = true, .forward = true, .backward = true},
    };
    struct plan_memory memory;
    plan_memory_init(&memory, place);
    for (size_t i = 0; i < ARRAY_COUNT(requests); i++) {
        const struct plan_request *r = &requests[i];
        if (r->update && place->immediate)
            continue;
        struct plan plan;
        struct plan_totals totals;
        struct place_least least, padded = padded_least(place, r);
        plan_build(&plan, place, &memory, r);
        plan_total(&plan, &totals);
        place_least(place, r->update, r->forward, r->backward, &least);
        assert_int_equal(moved(&totals, LANE_SSD_READ), padded.ssd_read_bytes);
        assert_int_equal(moved(&totals, LANE_SSD_WRITE), padded.ssd_write_bytes);
        assert_int_equal(moved(&totals, LANE_H2D), padded.h2d_bytes);
        uint64_t on_device = memory.content_bytes[TIER_DEVICE][CONTENT_STATE];
        assert_int_equal(moved(&totals, LANE_D2H), padded.d2h_bytes + (r->commit ? on_device : 0));
        assert_int_equal(totals.commit_bytes, r->commit ? resident_bytes(place) + on_device : 0);
        assert_true(least.ssd_read_bytes <= padded.ssd_read_bytes &&
                    least.ssd_write_bytes <= padded.ssd_write_bytes &&
                    least.h2d_bytes <= padded.h2d_bytes && least.d2h_bytes <= padded.d2h_bytes);
        plan_deinit(&plan);
    }
    plan_memory_deinit(&memory);
}

/* ---- The sweep ------------------------------------------------------------------------------ */

/* The least budgets that work, found by bisection. */
static bool accepted(struct place_spec *spec, uint64_t *field, uint64_t value)
{
    struct place place;
    struct err err;
    *field = value;
    bool ok = place_choose(&place, spec, &err) == 0;
    if (ok)
        check_fits(&place);
    place_deinit(&place);
    return ok;
}

static uint64_t least_budget(struct place_spec *spec, uint64_t *field)
{
    uint64_t low = 1, high = 256 * MIB;
    assert_true(accepted(spec, field, high));
    while (low < high) {
        uint64_t middle = low + (high - low) / 2;
        if (accepted(spec, field, middle))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/* The least of RAM and the least of VRAM need not do together, where state may be in either. Then
 * the flag that the refusal names does. */
static void place_as_told(struct place *place, struct place_spec *spec)
{
    struct err err;
    if (place_choose(place, spec, &err) == 0)
        return;
    place_deinit(place);
    assert_true(spec->vram_budget && spec->resident_planes < 0);
    bool vram = strstr(err.message, "--vram-budget") != NULL;
    *(vram ? &spec->vram_budget : &spec->ram_budget) =
        tiny_flag(err.message, vram ? "--vram-budget" : "--ram-budget");
    if (place_choose(place, spec, &err) != 0)
        fail_msg("%s", err.message);
}

static void sweep_budgets(struct place_spec *spec)
{
    struct place_spec probe = *spec;
    bool separate = spec->vram_budget > 0;
    uint64_t ram = least_budget(&probe, &probe.ram_budget), vram = 0;
    probe = *spec;
    if (separate)
        vram = least_budget(&probe, &probe.vram_budget);
    /* From the least upwards: all that lies between nothing and everything. */
    static const uint64_t more_kib[] = {0, 60, 300, 2500, 100000};
    for (size_t i = 0; i < ARRAY_COUNT(more_kib); i++)
        for (size_t j = 0; j < (separate ? ARRAY_COUNT(more_kib) : 1); j++) {
            struct place place;
            spec->ram_budget = ram + more_kib[i] * KIB;
            spec->vram_budget = separate ? vram + more_kib[j] * KIB : 0;
            place_as_told(&place, spec);
            check_fits(&place);
            check_traffic(&place);
            place_deinit(&place);
        }
}

static void sweep(const struct tiny_model *model, uint32_t seq, enum precision precision,
                  bool separate)
{
    for (int resident = separate ? PLACE_RESIDENT_DEVICE : PLACE_RESIDENT_AUTO;
         resident <= PLANE_COUNT; resident++)
        for (uint32_t prefetch = 0; prefetch <= 3; prefetch++)
            for (int recompute = RECOMPUTE_AUTO; recompute <= RECOMPUTE_NONE; recompute++) {
                struct place_spec spec;
                tiny_spec(&spec, model);
                spec.seq = seq;
                spec.precision = precision;
                spec.vram_budget = separate ? 256 * MIB : 0;
                spec.resident_planes = resident;
                spec.prefetch = prefetch;
                spec.recompute = (enum place_recompute)recompute;
                spec.accum = prefetch == 2 ? 3 : 1;
                spec.clip = prefetch != 3;
                bool in_ram = resident < 0 || resident == PLANE_COUNT;
                bool streams = separate && spec.clip && in_ram && recompute != RECOMPUTE_AUTO;
                spec.update = streams ? UPDATE_DEVICE : UPDATE_AUTO;
                sweep_budgets(&spec);
            }
}

/* C 64 makes activations whole blocks, C 96 with T 7 leaves padding everywhere. */
static void sweep_gpt2(uint32_t channels, uint32_t seq, enum precision precision, bool separate)
{
    struct tiny_model model;
    tiny_model_init(&model, 3, channels, 300, 8192, 16384);
    sweep(&model, seq, precision, separate);
    tiny_model_deinit(&model);
}

/* Models without positions, with a head of their own and without. */
static void test_kinds(void **state)
{
    (void)state;
    static const char *const names[] = {"tiny-llama", "tiny-tied"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct tiny_model model;
        choices_model(&model, names[i], 2048, 8192);
        sweep(&model, 16, PRECISION_BF16, i == 0);
        sweep(&model, 7, PRECISION_FP32, i == 1);
        tiny_model_deinit(&model);
    }
}

/* In bf16 nothing is padded but parameters. */
static void test_moments(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 3, 96, 300, 8192, 16384);
    tiny_model_set_moments(&model, MOMENTS_BF16);
    sweep(&model, 7, PRECISION_BF16, true);
    tiny_model_deinit(&model);
}

static void test_fp32(void **state)
{
    (void)state;
    sweep_gpt2(64, 16, PRECISION_FP32, false);
    sweep_gpt2(96, 7, PRECISION_FP32, true);
}

static void test_bf16(void **state)
{
    (void)state;
    sweep_gpt2(96, 7, PRECISION_BF16, false);
    sweep_gpt2(64, 16, PRECISION_BF16, true);
}

static void test_without_drive(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 3, 64, 300, 8192, 16384);
    for (int separate = 0; separate < 2; separate++)
        for (int recompute = RECOMPUTE_AUTO; recompute <= RECOMPUTE_NONE; recompute++)
            for (int precision = PRECISION_FP32; precision <= PRECISION_BF16; precision++) {
                struct place_spec spec;
                tiny_spec(&spec, &model);
                spec.nvme = false;
                spec.precision = (enum precision)precision;
                spec.vram_budget = separate ? 256 * MIB : 0;
                spec.recompute = (enum place_recompute)recompute;
                spec.clip = recompute != RECOMPUTE_ALL;
                spec.update = separate && recompute == RECOMPUTE_NONE ? UPDATE_DEVICE : UPDATE_CPU;
                sweep_budgets(&spec);
            }
    struct place place;
    struct place_spec spec;
    struct err err;
    tiny_spec(&spec, &model);
    spec.nvme = false;
    spec.resident_planes = 2;
    assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "--nvme"));
    place_deinit(&place);
    spec.resident_planes = PLACE_RESIDENT_DEVICE;
    assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "--vram-budget"));
    place_deinit(&place);
    spec.resident_planes = PLACE_RESIDENT_AUTO;
    spec.update = UPDATE_DEVICE;
    assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "--update device"));
    place_deinit(&place);
    tiny_model_deinit(&model);
}

/* Of chunks that have left the device RAM may hold all but a plane; then none counts as wholly
 * there, although some are. */
static void test_streams_only_what_ram_holds(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 3, 64, 300, 8192, 16384);
    uint32_t all = model.layout.chunk_count, gone = all / 3, streamed = 0;
    for (uint32_t lacking = KNOB_HI; lacking <= KNOB_V + 1; lacking++) {
        struct place_spec spec;
        struct place place;
        struct place_choice choice;
        tiny_spec(&spec, &model);
        spec.vram_budget = 256 * MIB;
        spec.update = UPDATE_DEVICE;
        place_init(&place, &spec);
        place_least_choice(&place, &choice);
        choice.knob[KNOB_DEVICE] = gone;
        choice.knob[KNOB_GRADIENTS] = all - gone;
        for (uint32_t k = KNOB_HI; k <= KNOB_V; k++)
            choice.knob[k] = k < lacking ? all - gone : all - gone - 1;
        choice.knob[KNOB_STREAMED] = all;
        place_apply(&place, &choice);
        check_fits(&place);
        check_traffic(&place);
        streamed += place_streamed_taken(&place, &choice, all) > 0;
        assert_int_equal(place_streamable(&place, &choice),
                         lacking < KNOB_V ? 0 : all - gone - (lacking == KNOB_V));
        place_deinit(&place);
    }
    assert_int_equal(streamed, 2);
    tiny_model_deinit(&model);
}

/* ---- Refusals ------------------------------------------------------------------------------- */

struct refusal {
    const char *flag;
    size_t field; /* offset in struct place_spec */
};

static void check_refusal(const struct place_spec *given, const struct refusal *refusal)
{
    struct place_spec spec = *given;
    uint64_t *budget = (uint64_t *)((uint8_t *)&spec + refusal->field);
    struct place place;
    struct err err;
    *budget = MIB;
    assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
    place_deinit(&place);
    uint64_t works = tiny_flag(err.message, refusal->flag);
    *budget = works;
    if (place_choose(&place, &spec, &err) != 0)
        fail_msg("%s does not work: %s", refusal->flag, err.message);
    check_fits(&place);
    place_deinit(&place);
    *budget = works / 100 * 95;
    assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
    place_deinit(&place);
    assert_int_equal(tiny_flag(err.message, refusal->flag), works);
}

static void test_refusals(void **state)
{
    (void)state;
    static const struct refusal refusals[] = {
        {"--ram-budget", offsetof(struct place_spec, ram_budget)},
        {"--vram-budget", offsetof(struct place_spec, vram_budget)},
        {"--nvme-budget", offsetof(struct place_spec, nvme_budget)},
    };
    struct config config;
    struct tensors tensors;
    struct layout layout;
    struct err err;
    assert_int_equal(config_from_name(&config, "gpt2-124m", &err), 0);
    tensors_init(&tensors, &config);
    layout_init(&layout, &tensors, MOMENTS_FP32);
    struct place_spec spec = {
        .config = &config,
        .layout = &layout,
        .seq = 1024,
        .batch = 1,
        .accum = 2,
        .ram_budget = 64 * GIB,
        .nvme_budget = UINT64_MAX,
        .overhead_bytes = 80 * MIB,
        .clip = true,
    };
    for (int precision = PRECISION_FP32; precision <= PRECISION_BF16; precision++)
        for (int resident = PLACE_RESIDENT_AUTO; resident <= PLANE_COUNT; resident++)
            for (int separate = 0; separate < 2; separate++)
                for (size_t i = 0; i < ARRAY_COUNT(refusals); i++) {
                    spec.precision = (enum precision)precision;
                    spec.resident_planes = resident;
                    spec.vram_budget = separate ? 64 * GIB : 0;
                    spec.nvme = resident < PLANE_COUNT;
                    if (separate || refusals[i].field != refusals[1].field)
                        check_refusal(&spec, &refusals[i]);
                }
    layout_deinit(&layout);
    tensors_deinit(&tensors);
}

/* Both budgets too small: each refusal in turn names the next flag, and then it works. */
static void test_refusals_in_turn(void **state)
{
    (void)state;
    struct tiny_model model;
    struct place_spec spec;
    struct place place;
    struct err err;
    tiny_model_init(&model, 3, 64, 300, 8192, 16384);
    tiny_spec(&spec, &model);
    spec.vram_budget = spec.ram_budget = spec.nvme_budget = 1;
    struct {
        const char *flag;
        uint64_t *budget;
    } turns[] = {{"--vram-budget", &spec.vram_budget},
                 {"--ram-budget", &spec.ram_budget},
                 {"--nvme-budget", &spec.nvme_budget}};
    for (size_t i = 0; i < ARRAY_COUNT(turns); i++) {
        assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
        place_deinit(&place);
        *turns[i].budget = tiny_flag(err.message, turns[i].flag);
    }
    assert_int_equal(place_choose(&place, &spec, &err), 0);
    check_fits(&place);
    place_deinit(&place);
    tiny_model_deinit(&model);
}

/* ---- More memory ---------------------------------------------------------------------------- */

static uint64_t drive_traffic(const struct place_spec *spec)
{
    struct place place;
    struct place_least least;
    struct err err;
    if (place_choose(&place, spec, &err) != 0)
        fail_msg("%s", err.message);
    place_least(&place, true, true, true, &least);
    place_deinit(&place);
    return least.ssd_read_bytes + least.ssd_write_bytes;
}

#define BUDGETS 64
#define STEP    (60 * KIB)

/* Memory goes to rings first (six more chunk states, a second gradient of a block and a tile, two
 * gradients on their way out), because a drive that waits costs more than it moves. So a budget may
 * move more than one that is smaller by less than these rings, and by that much only: it never
 * moves more than any budget that is smaller by all of them. */
static void check_monotone(struct place_spec *spec, uint64_t *field, uint64_t least, uint64_t rings)
{
    uint64_t traffic[BUDGETS], lag = div_up(rings, STEP);
    for (uint64_t i = 0; i < BUDGETS; i++) {
        *field = least + i * STEP;
        traffic[i] = drive_traffic(spec);
        for (uint64_t j = 0; j + lag <= i; j++)
            assert_true(traffic[i] <= traffic[j]);
    }
    *field = GIB;
    uint64_t all = drive_traffic(spec);
    for (uint64_t i = 0; i < BUDGETS; i++)
        assert_true(all <= traffic[i]);
}

static void test_more_is_not_worse(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 3, 64, 300, 8192, 16384);
    const struct layout *layout = &model.layout;
    uint64_t rings = 6 * layout->chunk_count_max * LAYOUT_STATE_BYTES + layout->block_count * 4 +
                     layout->tile_slot_count * 4 + 2 * layout->chunk_count_max * 2;
    for (int precision = PRECISION_FP32; precision <= PRECISION_BF16; precision++)
        for (int separate = 0; separate < 2; separate++)
            for (uint32_t prefetch = 0; prefetch < 3; prefetch++) {
                struct place_spec spec;
                tiny_spec(&spec, &model);
                spec.precision = (enum precision)precision;
                spec.vram_budget = separate ? 256 * MIB : 0;
                spec.ram_budget = 256 * MIB;
                spec.prefetch = prefetch;
                uint64_t *fields[] = {&spec.ram_budget, &spec.vram_budget};
                for (int f = 0; f <= separate; f++) {
                    uint64_t before = *fields[f];
                    uint64_t least = least_budget(&spec, fields[f]);
                    struct place_spec copy = spec;
                    uint64_t *field = f ? &copy.vram_budget : &copy.ram_budget;
                    check_monotone(&copy, field, least, rings);
                    *fields[f] = before;
                }
            }
    tiny_model_deinit(&model);
}

/* ---- The head at once ------------------------------------------------------------------------
 */

/* What the budgets take of the head, with the bytes that this wants in both; its place is counted.
 */
static uint32_t tiles_of(const struct place_spec *spec, uint64_t *bytes)
{
    struct place place;
    struct err err;
    if (place_choose(&place, spec, &err) != 0)
        fail_msg("%s", err.message);
    check_fits(&place);
    uint32_t tiles = place.choice.knob[KNOB_TILES];
    assert_int_equal(place.head_once, tiles == TILES_ONCE);
    *bytes = spec->vram_budget ? place.vram_bytes : place.ram_bytes;
    if (place.head_once)
        assert_true(*bytes > place.head_once_bytes);
    place_deinit(&place);
    return tiles;
}

/* From the least memory that works to plenty of it: no less than before, in every step, and in
 * between all that there is. */
static void climb_to_once(struct place_spec *spec)
{
    struct place_spec probe = *spec;
    struct place place;
    struct err err;
    uint64_t *budget = spec->vram_budget ? &probe.vram_budget : &probe.ram_budget, bytes;
    *budget = 1;
    assert_int_equal(place_choose(&place, &probe, &err), ERR_INPUT);
    place_deinit(&place);
    uint64_t least = tiny_flag(err.message, spec->vram_budget ? "--vram-budget" : "--ram-budget");
    uint32_t tiles = TILES_STREAMED, seen[TILES_COUNT] = {0};
    for (uint64_t more = 0; more < 4 * GIB; more += 24 * MIB) {
        *budget = least + more;
        uint32_t now = tiles_of(&probe, &bytes);
        assert_true(now >= tiles);
        tiles = now;
        seen[tiles]++;
    }
    for (uint32_t t = 0; t < TILES_COUNT; t++)
        assert_true(seen[t] > 0);
    /* Where that has no room, less of it is taken, and nothing is refused. */
    probe.device_head_once_bytes = (uint64_t)1 << 50;
    assert_int_equal(tiles_of(&probe, &bytes), TILES_HELD);
    *budget = least;
    tiles_of(&probe, &bytes);
    *budget = 1;
    assert_int_equal(place_choose(&place, &probe, &err), ERR_INPUT);
    place_deinit(&place);
    assert_int_equal(tiny_flag(err.message, spec->vram_budget ? "--vram-budget" : "--ram-budget"),
                     least);
}

static void test_head_once(void **state)
{
    (void)state;
    struct tiny_model model;
    choices_model(&model, "gpt2-124m", 0, 0);
    for (int precision = PRECISION_FP32; precision <= PRECISION_BF16; precision++)
        for (int separate = 0; separate < 2; separate++) {
            struct place_spec spec;
            tiny_spec(&spec, &model);
            spec.precision = (enum precision)precision;
            spec.seq = 1024;
            spec.ram_budget = 64 * GIB;
            spec.vram_budget = separate ? 64 * GIB : 0;
            climb_to_once(&spec);
        }
    tiny_model_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp32),
        cmocka_unit_test(test_moments),
        cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_without_drive),
        cmocka_unit_test(test_streams_only_what_ram_holds),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_refusals_in_turn),
        cmocka_unit_test(test_more_is_not_worse),
        cmocka_unit_test(test_head_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
