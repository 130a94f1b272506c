/*
 * Properties of plans:
 * 1. plan_check accepts every plan that the builder makes, over a sweep of placements and kinds of
 *    step; and what the checker does not look at holds too: an op's lane follows from its kind and
 *    its chunk's place, transfers fit the cells at both ends, nothing is read that was neither
 *    written before nor lasting, a commit follows the last update and write of state, and every
 *    plan is listed op by op; gradients share cells with those activations only that are used up.
 *    So for models without positions and with a head of their own.
 * 2. The waits of an op are exactly those that its uses demand (the last writer of each cell it
 *    uses, and the readers since of each cell it writes): none is missing and none is spare.
 * That wrong plans are refused: test_plan_mutants.c.
 */
#include "core/mem.h"
#include "tests/shared/check.h"
#include "tests/shared/choices.h"
#include "tests/shared/plans.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct plan_request requests[] = {
    {.forward = true},
    {.forward = true, .backward = true},
    {.update = true},
    {.update = true, .commit = true},
    {.update = true, .forward = true, .backward = true},
    {.update = true, .commit = true, .forward = true, .backward = true},
};

/* ---- What the checker does not look at --------------------------------------------------------
 */

static enum plan_lane lane_of(const struct place *place, const struct plan_op *op)
{
    switch ((enum plan_op_kind)op->kind) {
    case OP_DEVICE_UPDATE:
    case OP_DEVICE_JOIN:
        return place->streamed[op->chunk] ? LANE_D2H : LANE_COMPUTE;
    case OP_COPY_H2D:
        return LANE_H2D;
    case OP_COPY_D2H:
        return LANE_D2H;
    case OP_READ:
        return LANE_SSD_READ;
    case OP_WRITE:
        return LANE_SSD_WRITE;
    default: /* in the order of enum plan_op_kind */
        return op->kind >= OP_COMMIT ? LANE_CPU : LANE_COMPUTE;
    }
}

static uint64_t cells_bytes(const struct plan_memory *memory, struct plan_cells cells)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < cells.count; i++)
        bytes += memory->cells[cells.first + i].bytes;
    return bytes;
}

static void check_transfer(const struct plan *plan, const struct plan_op *op)
{
    const struct plan_memory *memory = plan->memory;
    assert_int_equal(op->use_count, 2);
    struct plan_cells from = op->uses[0].cells, to = op->uses[1].cells;
    assert_true(op->bytes > 0 && !op->uses[0].write && op->uses[1].write);
    bool drive = op->kind == OP_READ || op->kind == OP_WRITE;
    bool from_file = memory->cells[from.first].tier == TIER_NVME;
    bool to_file = memory->cells[to.first].tier == TIER_NVME;
    assert_int_equal(from_file, op->kind == OP_READ);
    assert_int_equal(to_file, op->kind == OP_WRITE);
    bool planes = !drive && from.count > 1; /* apart there, and in one image on the other side */
    struct plan_cells file = from_file || planes ? from : to;
    struct plan_cells other = from_file || planes ? to : from;
    uint64_t start = 0;
    if (drive && op->plane_count) {
        assert_int_equal(cells_bytes(memory, file), op->bytes);
        assert_int_equal(file.count, op->plane_count);
        if (!(op->flags & OP_COMMITTED))
            start =
                layout_plane_offset(plan->place->spec.layout,
                                    plan->place->spec.layout->chunks[op->chunk].count, op->plane);
    }
    assert_true(op->bytes <= cells_bytes(memory, file));
    assert_int_equal(other.count, 1);
    assert_true(start + op->bytes <= memory->cells[other.first].bytes);
    if (!drive) /* a commit brings a whole chunk's planes, and so does an update on the device */
        assert_int_equal(file.count, op->plane_count ? PLANE_COUNT : 1);
}

static bool within(uint32_t cell, struct plan_cells cells)
{
    return cell >= cells.first && cell < cells.first + cells.count;
}

/* What a step finds in memory: state, pending gradients, and the tokens that the trainer put there.
 */
static bool lasts(const struct plan *plan, uint32_t cell)
{
    const struct plan_memory *memory = plan->memory;
    for (uint32_t c = 0; plan->update && c < plan->place->spec.layout->chunk_count; c++)
        if (within(cell, memory->gradient_ram[c]))
            return true;
    return within(cell, memory->plane_ram) || within(cell, memory->plane_nvme) ||
           within(cell, memory->plane_device) || within(cell, memory->tokens_host) ||
           (plan->update &&
            (within(cell, memory->gradient_nvme) || within(cell, memory->gradient_device)));
}

static void check_ops(const struct plan *plan)
{
    bool *written = mem_alloc(plan->memory->cell_count, sizeof(*written));
    for (uint32_t o = 0; o < plan->op_count; o++) {
        const struct plan_op *op = &plan->ops[o];
        assert_int_equal(op->lane, lane_of(plan->place, op));
        if (op->lane == LANE_H2D || op->lane == LANE_D2H)
            assert_true(plan->memory->separate_device);
        if (op->kind >= OP_COPY_H2D && op->kind <= OP_WRITE)
            check_transfer(plan, op);
        for (uint32_t u = 0; u < op->use_count; u++)
            for (uint32_t i = 0; i < op->uses[u].cells.count; i++) {
                uint32_t cell = op->uses[u].cells.first + i;
                if (!op->uses[u].write && !written[cell] && !lasts(plan, cell))
                    fail_msg("op %u (%s) reads cell %u, which nothing has written", o,
                             plan_op_name[op->kind], cell);
            }
        for (uint32_t u = 0; u < op->use_count; u++)
            for (uint32_t i = 0; op->uses[u].write && i < op->uses[u].cells.count; i++)
                written[op->uses[u].cells.first + i] = true;
    }
    mem_free(written);
}

/* A commit comes once all that it commits is written: after every update and every write of the
 * state. */
static void check_commit(const struct plan *plan)
{
    uint32_t commit = PLAN_NONE, last = 0, commits = 0;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        const struct plan_op *op = &plan->ops[o];
        commits += op->kind == OP_COMMIT;
        commit = op->kind == OP_COMMIT ? o : commit;
        if (op->kind == OP_UPDATE || op->kind == OP_DEVICE_UPDATE || op->kind == OP_CHECK_UPDATES ||
            (op->kind == OP_WRITE && op->plane_count))
            last = o;
    }
    assert_int_equal(commits, plan->commit);
    assert_true(!plan->commit || commit > last);
}

static void check_dump(const struct plan *plan)
{
    char *text = NULL, *rest;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    plan_dump(plan, out);
    fclose(out);
    uint32_t ops = 0, comments = 0;
    rest = text;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        if (*line == '#') {
            comments++;
            continue;
        }
        char lane[32], kind[32];
        unsigned number;
        assert_int_equal(sscanf(line, "%u %31s %31s", &number, lane, kind), 3);
        assert_int_equal(number, ops);
        assert_string_equal(lane, plan_lane_name[plan->ops[ops].lane]);
        assert_string_equal(kind, plan_op_name[plan->ops[ops].kind]);
        ops++;
    }
    assert_int_equal(ops, plan->op_count);
    assert_int_equal(comments, 1 + plan->backward);
    free(text);
}

/* Property 2: marks what the uses demand, compares with the waits. */
static void check_waits_exact(const struct plan *plan)
{
    struct plans_oracle oracle;
    plans_oracle_open(&oracle, plan);
    uint64_t *demanded = oracle.before; /* reused: only direct waits now */
    memset(demanded, 0, (size_t)plan->op_count * oracle.words * sizeof(uint64_t));
    for (uint32_t c = 0; c < plan->memory->cell_count; c++) {
        uint32_t since = oracle.first[c]; /* the last write, or the first use */
        for (uint32_t i = oracle.first[c]; i < oracle.first[c + 1]; i++) {
            const struct plans_use *use = &oracle.uses[i];
            for (uint32_t j = since; j < i; j++)
                if (use->write || oracle.uses[j].write) {
                    uint32_t on = oracle.uses[j].op;
                    demanded[(size_t)use->op * oracle.words + on / 64] |= (uint64_t)1 << on % 64;
                }
            if (use->write)
                since = i;
        }
    }
    for (uint32_t o = 0; o < plan->op_count; o++) {
        uint32_t count = 0;
        for (uint32_t w = 0; w < oracle.words; w++)
            count += (uint32_t)__builtin_popcountll(demanded[(size_t)o * oracle.words + w]);
        assert_int_equal(plan->ops[o].wait_count, count);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t on = plan->waits[plan->ops[o].first_wait + i];
            assert_true(demanded[(size_t)o * oracle.words + on / 64] >> on % 64 & 1);
        }
    }
    plans_oracle_close(&oracle);
}

static uint32_t shared_count; /* placements in which a gradient lay where activations were */

/* Cells that follow one another in memory; returns where they end. */
static uint64_t check_run(const struct plan_memory *memory, struct plan_cells run, uint64_t bytes)
{
    uint64_t end = memory->cells[run.first].offset;
    assert_true(run.count > 0 && cells_bytes(memory, run) >= bytes);
    for (uint32_t i = run.first; i < run.first + run.count; end += memory->cells[i++].bytes)
        assert_int_equal(memory->cells[i].offset, end);
    return end;
}

/* Gradients and what is kept of activations are in one piece each; a block's gradient shares cells
 * with the activations of one layer at most: in FP32, where it is summed there, the next one's. */
static void check_shared(const struct place *place, const struct plan_memory *memory)
{
    const struct layout *layout = place->spec.layout;
    uint32_t layers = place->spec.config->layers, accum = place->spec.accum, found = 0;
    uint32_t ahead = place->spec.precision == PRECISION_FP32, inner_count = layers * accum;
    for (uint32_t i = 0; i < inner_count; i++)
        if (place->inner_where[i / accum] == WHERE_DEVICE)
            check_run(memory, memory->inner_keep[i], place->inner_bytes);
    uint64_t end = 0;
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        struct plan_cells run = memory->gradient_ram[c];
        uint32_t group = layout->chunks[c].group;
        if (!place->gradient_in_ram[c])
            continue;
        bool follows = c && layout->chunks[c - 1].group == group;
        if (!place->gradient_slots && follows && group >= 1 && group <= layers)
            assert_int_equal(memory->cells[run.first].offset, end);
        end = check_run(memory, run, layout->chunks[c].count * place->gradient_bytes);
        for (uint32_t i = 0; i < inner_count * run.count; i++)
            if (within(run.first + i / inner_count, memory->inner_keep[i % inner_count]) && ++found)
                assert_int_equal(i % inner_count / accum + 1, group + ahead);
    }
    assert_true(place->gradients_shared || !found);
    shared_count += found > 0;
}

/* ---- The sweep --------------------------------------------------------------------------------
 */

/* Plans with the head at once, or in passes; with state that is streamed. */
static uint32_t once_count, passes_count, streamed_count;

static void check_plans(struct plans_example *e, const struct place_spec *spec)
{
    for (size_t i = 0; i < ARRAY_COUNT(requests); i++) {
        struct err err;
        if (requests[i].update && !spec->clip)
            continue;
        plans_open(e, spec, &requests[i]);
        if (plan_check(&e->plan, &err) != 0)
            fail_msg("%s", err.message);
        streamed_count +=
            place_streamed_taken(&e->place, &e->place.choice, e->model.layout.chunk_count) > 0;
        once_count += requests[i].backward && e->place.head_once;
        passes_count += requests[i].backward && !e->place.head_once;
        check_shared(&e->place, &e->memory);
        check_ops(&e->plan);
        check_commit(&e->plan);
        check_dump(&e->plan);
        check_waits_exact(&e->plan);
        plans_close(e);
    }
}

/* kind: of choices_model; NULL: GPT-2. */
static void sweep_moments(const char *kind, enum moments_kind moments, enum precision precision,
                          bool separate, bool clip)
{
    static const uint64_t spare_kib[] = {0, 400, 1500, 100000};
    struct plans_example e;
    if (kind)
        choices_model(&e.model, kind, 4096, 8192);
    else
        tiny_model_init(&e.model, 3, 64, 300, 8192, 8192);
    tiny_model_set_moments(&e.model, moments);
    once_count = passes_count = streamed_count = 0;
    for (int resident = separate ? PLACE_RESIDENT_DEVICE : PLACE_RESIDENT_AUTO;
         resident <= PLANE_COUNT; resident++)
        for (uint32_t prefetch = 1; prefetch <= 3; prefetch++)
            for (int recompute = RECOMPUTE_AUTO; recompute <= RECOMPUTE_NONE; recompute++) {
                struct place_spec spec;
                struct place place;
                struct err err;
                tiny_spec(&spec, &e.model);
                spec.precision = precision;
                spec.resident_planes = resident;
                spec.prefetch = prefetch;
                spec.recompute = (enum place_recompute)recompute;
                spec.accum = prefetch;
                spec.clip = clip;
                bool in_ram = resident < 0 || resident == PLANE_COUNT;
                bool streams = separate && clip && in_ram && recompute == RECOMPUTE_NONE;
                spec.update = streams ? UPDATE_DEVICE : UPDATE_CPU;
                uint64_t *budgets[] = {&spec.ram_budget, &spec.vram_budget};
                spec.vram_budget = separate ? GIB : 0;
                static const char *const flags[] = {"--ram-budget", "--vram-budget"};
                uint64_t least[2] = {0};
                size_t spare = (size_t)(resident + 1 + recompute) % ARRAY_COUNT(spare_kib);
                for (int b = 0; b <= separate; b++) {
                    uint64_t before = *budgets[b];
                    *budgets[b] = 1;
                    assert_int_equal(place_choose(&place, &spec, &err), ERR_INPUT);
                    place_deinit(&place);
                    least[b] = tiny_flag(err.message, flags[b]);
                    *budgets[b] = before;
                    /* Of the device what this RAM wants: state may be in either. */
                    if (b == 0)
                        spec.ram_budget = least[0] + spare_kib[spare] * KIB;
                }
                spare = (spare + prefetch) % ARRAY_COUNT(spare_kib);
                spec.vram_budget = separate ? least[1] + spare_kib[spare] * KIB : 0;
                check_plans(&e, &spec);
            }
    assert_true(once_count > 20 && (passes_count > 5 || !separate));
    assert_true(streamed_count > 5 || !separate || !clip);
    tiny_model_deinit(&e.model);
}

static void sweep_kind(const char *kind, enum precision precision, bool separate, bool clip)
{
    sweep_moments(kind, MOMENTS_FP32, precision, separate, clip);
}

static void sweep(enum precision precision, bool separate, bool clip)
{
    sweep_kind(NULL, precision, separate, clip);
}

/* Models without positions; one has a head of its own, which is updated last. */
static void test_kinds(void **state)
{
    (void)state;
    sweep_kind("tiny-llama", PRECISION_FP32, true, true);
    sweep_kind("tiny-llama", PRECISION_BF16, false, true);
    sweep_kind("tiny-llama", PRECISION_BF16, true, false);
    sweep_kind("tiny-tied", PRECISION_BF16, true, true);
    sweep_kind("tiny-tied", PRECISION_FP32, false, false);
}

/* Planes of other sizes, and in 8 bits padded ones. */
static void test_moments(void **state)
{
    (void)state;
    sweep_moments(NULL, MOMENTS_BF16, PRECISION_BF16, true, true);
    sweep_moments(NULL, MOMENTS_8BIT, PRECISION_BF16, false, false);
    sweep_moments("tiny-llama", MOMENTS_8BIT, PRECISION_FP32, true, true);
}

static void test_fp32(void **state)
{
    (void)state;
    shared_count = 0;
    sweep(PRECISION_FP32, false, true);
    assert_true(shared_count > 0);
    sweep(PRECISION_FP32, false, false);
    sweep(PRECISION_FP32, true, true);
    sweep(PRECISION_FP32, true, false);
}

static void test_bf16(void **state)
{
    (void)state;
    shared_count = 0;
    sweep(PRECISION_BF16, false, true);
    assert_true(shared_count > 0);
    sweep(PRECISION_BF16, false, false);
    sweep(PRECISION_BF16, true, true);
    sweep(PRECISION_BF16, true, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_moments),
        cmocka_unit_test(test_fp32),
        cmocka_unit_test(test_bf16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
