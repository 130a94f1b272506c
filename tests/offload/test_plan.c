/*
 * Properties of plans:
 * 1. plan_check accepts every plan that the builder makes, over a sweep of placements and kinds of
 *    step; and what the checker does not look at holds too: an op's lane follows from its kind,
 *    transfers fit the cells at both ends, nothing is read that was neither written before nor
 *    lasting, a commit follows the last update and write of state, and every plan is listed op by
 *    op; gradients share cells with those activations only that are used up. So for models without
 * positions and with a head of their own.
 * 2. The waits of an op are exactly those that its uses demand (the last writer of each cell it
 *    uses, and the readers since of each cell it writes): none is missing and none is spare.
 * 3. plan_check refuses plans that are wrong. Method: mutation. Plans are damaged in one place: a
 *    wait is removed, a use moved to another cell, an update dropped, doubled or given to another
 *    chunk, cells are laid over one another or out of bounds, a wait points forwards. The oracle is
 *    brute force: the transitive closure of all waits, and every pair of uses of every cell.
 *    The checker demands direct waits where the oracle accepts a detour, so by property 2 the
 *    removal of any wait at all is refused; and whatever it accepts, the oracle accepts.
 */
#include "core/mem.h"
#include "core/rng.h"
#include "offload/plan.h"
#include "tests/shared/check.h"
#include "tests/shared/choices.h"
#include "tests/shared/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEED 3

static const struct plan_request requests[] = {
    {.forward = true},
    {.forward = true, .backward = true},
    {.update = true},
    {.update = true, .commit = true},
    {.update = true, .forward = true, .backward = true},
    {.update = true, .commit = true, .forward = true, .backward = true},
};

/* A placement and its plan of a step with everything in it. */
struct example {
    struct tiny_model model;
    struct place place;
    struct plan_memory memory;
    struct plan plan;
};

static void example_open(struct example *e, const struct place_spec *change,
                         const struct plan_request *request)
{
    struct place_spec spec = *change;
    struct err err;
    spec.config = &e->model.config;
    spec.layout = &e->model.layout;
    if (place_choose(&e->place, &spec, &err) != 0)
        fail_msg("%s", err.message);
    plan_memory_init(&e->memory, &e->place);
    plan_build(&e->plan, &e->place, &e->memory, request);
}

static void example_close(struct example *e)
{
    plan_deinit(&e->plan);
    plan_memory_deinit(&e->memory);
    place_deinit(&e->place);
}

/* ---- What the checker does not look at --------------------------------------------------------
 */

static enum plan_lane lane_of(enum plan_op_kind kind)
{
    switch (kind) {
    case OP_COPY_H2D:
        return LANE_H2D;
    case OP_COPY_D2H:
        return LANE_D2H;
    case OP_READ:
        return LANE_SSD_READ;
    case OP_WRITE:
        return LANE_SSD_WRITE;
    default: /* in the order of enum plan_op_kind */
        return kind >= OP_COMMIT ? LANE_CPU : LANE_COMPUTE;
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
    bool planes = op->kind == OP_COPY_D2H && op->plane_count;
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
    if (!drive) /* a commit brings a whole chunk's planes */
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
        assert_int_equal(op->lane, lane_of(op->kind));
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

/* ---- The oracle -------------------------------------------------------------------------------
 */

struct use {
    uint32_t op;
    bool write;
};

struct oracle {
    const struct plan *plan;
    uint32_t *first;  /* [cell]: into uses; cell_count + 1 entries */
    struct use *uses; /* by cell, in order of ops; an op once for each cell */
    uint64_t *before; /* [op][words]: bit p: op p is surely done before op starts */
    uint32_t words;
};

static void oracle_uses(struct oracle *oracle)
{
    const struct plan *plan = oracle->plan;
    uint32_t cells = plan->memory->cell_count;
    uint32_t *last = mem_alloc(cells, sizeof(*last)); /* op + 1 of the cell's newest use */
    oracle->first = mem_alloc((uint64_t)cells + 1, sizeof(*oracle->first));
    /* Twice the same walk: first to count, then to fill. */
    for (int fill = 0; fill < 2; fill++) {
        memset(last, 0, cells * sizeof(*last));
        for (uint32_t o = 0; o < plan->op_count; o++)
            for (uint32_t u = 0; u < plan->ops[o].use_count; u++)
                for (uint32_t i = 0; i < plan->ops[o].uses[u].cells.count; i++) {
                    uint32_t cell = plan->ops[o].uses[u].cells.first + i;
                    bool write = plan->ops[o].uses[u].write, again = last[cell] == o + 1;
                    last[cell] = o + 1;
                    if (!fill)
                        oracle->first[cell + 1] += !again;
                    else if (again)
                        oracle->uses[oracle->first[cell] - 1].write |= write;
                    else
                        oracle->uses[oracle->first[cell]++] = (struct use){o, write};
                }
        if (fill) {
            memmove(oracle->first + 1, oracle->first, cells * sizeof(*oracle->first));
            oracle->first[0] = 0;
            continue;
        }
        for (uint32_t c = 0; c < cells; c++)
            oracle->first[c + 1] += oracle->first[c];
        oracle->uses = mem_alloc(oracle->first[cells] + 1, sizeof(*oracle->uses));
    }
    mem_free(last);
}

static void oracle_close_waits(struct oracle *oracle)
{
    const struct plan *plan = oracle->plan;
    memset(oracle->before, 0, (size_t)plan->op_count * oracle->words * sizeof(uint64_t));
    for (uint32_t o = 0; o < plan->op_count; o++) {
        uint64_t *mine = oracle->before + (size_t)o * oracle->words;
        for (uint32_t i = 0; i < plan->ops[o].wait_count; i++) {
            uint32_t on = plan->waits[plan->ops[o].first_wait + i];
            const uint64_t *theirs = oracle->before + (size_t)on * oracle->words;
            for (uint32_t w = 0; w <= on / 64; w++)
                mine[w] |= theirs[w];
            mine[on / 64] |= (uint64_t)1 << on % 64;
        }
    }
}

static void oracle_open(struct oracle *oracle, const struct plan *plan)
{
    *oracle = (struct oracle){.plan = plan, .words = plan->op_count / 64 + 1};
    oracle->before = mem_alloc((uint64_t)plan->op_count * oracle->words, sizeof(uint64_t));
    oracle_uses(oracle);
    oracle_close_waits(oracle);
}

static void oracle_close(struct oracle *oracle)
{
    mem_free(oracle->first);
    mem_free(oracle->uses);
    mem_free(oracle->before);
}

/* Whether every two uses of a cell of which one is a write have an order. */
static bool oracle_ordered(const struct oracle *oracle)
{
    for (uint32_t c = 0; c < oracle->plan->memory->cell_count; c++)
        for (uint32_t i = oracle->first[c]; i < oracle->first[c + 1]; i++)
            for (uint32_t j = oracle->first[c]; j < i; j++) {
                const struct use *early = &oracle->uses[j], *late = &oracle->uses[i];
                const uint64_t *before = oracle->before + (size_t)late->op * oracle->words;
                if ((early->write || late->write) &&
                    !(before[early->op / 64] >> early->op % 64 & 1))
                    return false;
            }
    return true;
}

/* Property 2: marks what the uses demand, compares with the waits. */
static void check_waits_exact(const struct plan *plan)
{
    struct oracle oracle;
    oracle_open(&oracle, plan);
    uint64_t *demanded = oracle.before; /* reused: only direct waits now */
    memset(demanded, 0, (size_t)plan->op_count * oracle.words * sizeof(uint64_t));
    for (uint32_t c = 0; c < plan->memory->cell_count; c++) {
        uint32_t since = oracle.first[c]; /* the last write, or the first use */
        for (uint32_t i = oracle.first[c]; i < oracle.first[c + 1]; i++) {
            const struct use *use = &oracle.uses[i];
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
    oracle_close(&oracle);
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

static uint32_t once_count, passes_count; /* plans with the head at once, or in passes */

static void check_plans(struct example *e, const struct place_spec *spec)
{
    for (size_t i = 0; i < ARRAY_COUNT(requests); i++) {
        struct err err;
        if (requests[i].update && !spec->clip)
            continue;
        example_open(e, spec, &requests[i]);
        if (plan_check(&e->plan, &err) != 0)
            fail_msg("%s", err.message);
        once_count += requests[i].backward && e->place.head_once;
        passes_count += requests[i].backward && !e->place.head_once;
        check_shared(&e->place, &e->memory);
        check_ops(&e->plan);
        check_commit(&e->plan);
        check_dump(&e->plan);
        check_waits_exact(&e->plan);
        example_close(e);
    }
}

/* kind: of choices_model; NULL: GPT-2. */
static void sweep_moments(const char *kind, enum moments_kind moments, enum precision precision,
                          bool separate, bool clip)
{
    static const uint64_t spare_kib[] = {0, 400, 1500, 100000};
    struct example e;
    if (kind)
        choices_model(&e.model, kind, 4096, 8192);
    else
        tiny_model_init(&e.model, 3, 64, 300, 8192, 8192);
    tiny_model_set_moments(&e.model, moments);
    once_count = passes_count = 0;
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

/* ---- Mutants ----------------------------------------------------------------------------------
 */

static const struct {
    enum precision precision;
    uint64_t vram_budget;
    int resident;
    enum place_recompute recompute;
    uint32_t accum;
    bool nvme, clip;
} examples[] = {
    {PRECISION_FP32, 0, 0, RECOMPUTE_NONE, 2, true, true},
    {PRECISION_FP32, 0, 2, RECOMPUTE_ALL, 1, true, true},
    {PRECISION_BF16, 0, 1, RECOMPUTE_ALL, 2, true, true},
    {PRECISION_BF16, 0, 4, RECOMPUTE_NONE, 1, false, true},
    {PRECISION_FP32, 0, 4, RECOMPUTE_NONE, 2, false, true},
    {PRECISION_FP32, 4 * MIB, 0, RECOMPUTE_NONE, 2, true, true},
    {PRECISION_FP32, 64 * MIB, 4, RECOMPUTE_AUTO, 1, false, true},
    {PRECISION_BF16, 3 * MIB, 1, RECOMPUTE_NONE, 2, true, true},
    {PRECISION_BF16, MIB + 100 * KIB, 3, RECOMPUTE_ALL, 1, true, true},
    {PRECISION_FP32, 0, 1, RECOMPUTE_NONE, 2, true, false},
    {PRECISION_BF16, 0, 4, RECOMPUTE_NONE, 1, false, false},
    {PRECISION_BF16, 3 * MIB, 0, RECOMPUTE_ALL, 2, true, false},
    {PRECISION_FP32, 4 * MIB, PLACE_RESIDENT_DEVICE, RECOMPUTE_ALL, 2, true, true},
    {PRECISION_BF16, 3 * MIB, PLACE_RESIDENT_DEVICE, RECOMPUTE_NONE, 1, true, false},
    {PRECISION_BF16, 64 * MIB, PLACE_RESIDENT_DEVICE, RECOMPUTE_AUTO, 1, false, true},
};

/* Calls fn with each example's plan; the plan is as it was when fn returns. */
static void each_example(void (*fn)(struct example *e))
{
    struct example e;
    tiny_model_init(&e.model, 3, 64, 300, 8192, 8192);
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        struct place_spec spec;
        struct err err;
        tiny_spec(&spec, &e.model);
        spec.precision = examples[i].precision;
        spec.vram_budget = examples[i].vram_budget;
        spec.resident_planes = examples[i].resident;
        spec.recompute = examples[i].recompute;
        spec.accum = examples[i].accum;
        spec.nvme = examples[i].nvme;
        spec.clip = examples[i].clip;
        /* All of a step: without clipping, backward updates and nothing is pending. */
        example_open(&e, &spec, &requests[spec.clip ? ARRAY_COUNT(requests) - 1 : 1]);
        if (plan_check(&e.plan, &err) != 0)
            fail_msg("%s", err.message);
        fn(&e);
        if (plan_check(&e.plan, &err) != 0)
            fail_msg("a mutation was not undone: %s", err.message);
        example_close(&e);
    }
    tiny_model_deinit(&e.model);
}

static bool refused(const struct plan *plan)
{
    struct err err;
    return plan_check(plan, &err) == ERR_INPUT;
}

static uint32_t random_below(uint64_t index, uint32_t bound)
{
    return (uint32_t)rng_below(SEED, RNG_STREAM_SAMPLE, index, bound);
}

#define WAITS_REMOVED 120

static uint32_t disordered_count; /* mutants that the oracle, too, finds unordered */

/* Op `op` without its wait number i. */
static void remove_wait(struct example *e, uint32_t number, uint32_t i)
{
    struct plan_op *op = &e->plan.ops[number];
    uint32_t *waits = &e->plan.waits[op->first_wait];
    uint32_t removed = waits[i], last = --op->wait_count;
    waits[i] = waits[last];
    if (!refused(&e->plan))
        fail_msg("op %u (%s) is accepted without its wait on op %u (%s)", number,
                 plan_op_name[op->kind], removed, plan_op_name[e->plan.ops[removed].kind]);
    struct oracle oracle;
    oracle_open(&oracle, &e->plan);
    disordered_count += !oracle_ordered(&oracle);
    oracle_close(&oracle);
    waits[last] = waits[i];
    waits[i] = removed;
    op->wait_count++;
}

static void remove_waits(struct example *e)
{
    struct oracle oracle;
    oracle_open(&oracle, &e->plan);
    assert_true(oracle_ordered(&oracle));
    oracle_close(&oracle);
    for (uint32_t i = 0; i < WAITS_REMOVED; i++) {
        uint32_t wait = random_below(i, e->plan.wait_count), op = 0;
        while (e->plan.ops[op].first_wait + e->plan.ops[op].wait_count <= wait)
            op++;
        remove_wait(e, op, wait - e->plan.ops[op].first_wait);
    }
}

static void test_removed_waits(void **state)
{
    (void)state;
    disordered_count = 0;
    each_example(remove_waits);
    /* The sample is worth its name only if many of these would have gone wrong. */
    assert_true(disordered_count >= 100);
}

#define CELLS_SWAPPED 150

static uint32_t refused_count, accepted_count;

static void swap_cells(struct example *e)
{
    struct plan *plan = &e->plan;
    for (uint32_t i = 0; i < CELLS_SWAPPED; i++) {
        struct plan_op *op = &plan->ops[random_below(3 * i, plan->op_count)];
        struct plan_use *use = &op->uses[random_below(3 * i + 1, op->use_count)];
        struct plan_cells before = use->cells;
        if (!before.count)
            continue;
        use->cells.first = random_below(3 * i + 2, e->memory.cell_count - before.count + 1);
        struct oracle oracle;
        oracle_open(&oracle, plan);
        bool ordered = oracle_ordered(&oracle), is_refused = refused(plan);
        if (!ordered && !is_refused)
            fail_msg("op %u (%s) is accepted with cell %u in place of %u",
                     (uint32_t)(op - plan->ops), plan_op_name[op->kind], use->cells.first,
                     before.first);
        disordered_count += !ordered;
        refused_count += is_refused;
        accepted_count += !is_refused;
        oracle_close(&oracle);
        use->cells = before;
    }
}

static void test_swapped_cells(void **state)
{
    (void)state;
    disordered_count = refused_count = accepted_count = 0;
    each_example(swap_cells);
    assert_true(disordered_count >= 300);
    assert_true(refused_count >= disordered_count);
    /* A cell that nothing else touches can take a use without harm: not everything is refused. */
    assert_true(accepted_count > 0);
}

/* Updates and stored gradients, dropped, doubled, and given to another chunk. */
static void change_counts(struct example *e)
{
    static const enum plan_op_kind counted[] = {OP_UPDATE, OP_GRADIENT_STORE, OP_DEVICE_UPDATE};
    struct plan *plan = &e->plan;
    uint32_t mutants = 0, chunks = e->model.layout.chunk_count;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        struct plan_op *op = &plan->ops[o];
        uint8_t kind = op->kind;
        uint32_t chunk = op->chunk;
        if (kind == OP_UPDATE || kind == OP_GRADIENT_STORE || kind == OP_DEVICE_UPDATE) {
            op->kind = kind == OP_UPDATE          ? OP_DEVICE_UPDATE
                       : kind == OP_DEVICE_UPDATE ? OP_UPDATE
                                                  : OP_JOIN;
            assert_true(refused(plan));
            op->kind = kind;
            op->chunk = (chunk + 1) % chunks;
            assert_true(refused(plan));
            mutants += 2;
        } else if (o % 16 == 0) {
            op->kind = (uint8_t)counted[o / 16 % 3];
            op->chunk = o % chunks;
            assert_true(refused(plan));
            mutants++;
        }
        op->kind = kind;
        op->chunk = chunk;
    }
    assert_true(mutants >= 4 * chunks);
}

static uint32_t once_examples, early_examples;

/* Losses that are not made, made of another micro-batch or after the check of them; no check, or
 * another one. */
static void change_losses(struct example *e)
{
    struct plan *plan = &e->plan;
    uint32_t mutants = 0;
    once_examples += e->place.head_once;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        struct plan_op *op = &plan->ops[o], before = *op;
        bool losses = op->kind == OP_HEAD_LOSS || op->kind == OP_HEAD_ONCE;
        op->kind = losses                 ? OP_NORM_FORWARD
                   : op->kind == OP_CHECK ? OP_CLIP
                   : o % 2                ? OP_CHECK
                                          : OP_HEAD_LOSS;
        if (losses || before.kind == OP_CHECK || before.kind == OP_CLIP || o % 16 < 2) {
            assert_true(refused(plan));
            mutants++;
        }
        op->kind = before.kind;
        if (losses) {
            op->micro++;
            assert_true(refused(plan));
        }
        *op = before;
    }
    assert_true(mutants > 1 + e->place.spec.accum);
}

static void test_losses(void **state)
{
    (void)state;
    once_examples = 0;
    each_example(change_losses);
    assert_in_range(once_examples, 2, ARRAY_COUNT(examples) - 1);
}

/* Where updates are immediate: one comes before the check of the losses. */
static void update_early(struct example *e)
{
    struct plan *plan = &e->plan;
    uint32_t check = PLAN_NONE, update = PLAN_NONE;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        if (plan->ops[o].kind == OP_CHECK)
            check = o;
        else if (update == PLAN_NONE && plan->ops[o].kind == OP_UPDATE)
            update = o;
    }
    if (check == PLAN_NONE || update == PLAN_NONE)
        return;
    assert_true(check < update);
    struct plan_op kept = plan->ops[check];
    /* The update's count stays right: it and the check exchange their kinds and chunks. */
    plan->ops[check].kind = OP_UPDATE;
    plan->ops[check].chunk = plan->ops[update].chunk;
    plan->ops[update].kind = OP_CHECK;
    assert_true(refused(plan));
    plan->ops[update].kind = OP_UPDATE;
    plan->ops[check] = kept;
    early_examples++;
}

static void test_early_updates(void **state)
{
    (void)state;
    early_examples = 0;
    each_example(update_early);
    assert_true(early_examples >= 2);
}

static void test_counts(void **state)
{
    (void)state;
    each_example(change_counts);
}

/* Another cell of the same tier and file that is not empty. */
static uint32_t neighbour(const struct plan_memory *memory, uint32_t cell, uint64_t index)
{
    const struct plan_cell *c = &memory->cells[cell];
    uint32_t start = random_below(index, memory->cell_count);
    for (uint32_t i = 0; i < memory->cell_count; i++) {
        uint32_t other = (start + i) % memory->cell_count;
        const struct plan_cell *o = &memory->cells[other];
        if (other != cell && o->bytes && o->tier == c->tier && o->state_file == c->state_file)
            return other;
    }
    return cell;
}

static void break_cells(struct example *e)
{
    struct plan_memory *memory = &e->memory;
    uint32_t overlaps = 0;
    for (uint32_t c = 0; c < memory->cell_count; c++) {
        struct plan_cell *cell = &memory->cells[c], before = *cell;
        if (!cell->bytes)
            continue;
        cell->offset += IO_ALIGN / 2;
        assert_true(refused(&e->plan));
        *cell = before;
        cell->bytes += 512;
        assert_true(refused(&e->plan));
        *cell = before;
        cell->offset = UINT64_MAX / 2 / IO_ALIGN * IO_ALIGN;
        assert_true(refused(&e->plan));
        *cell = before;
        /* One block longer: into the next cell, or out of the tier. */
        cell->bytes += IO_ALIGN;
        assert_true(refused(&e->plan));
        *cell = before;
        uint32_t other = neighbour(memory, c, c);
        if (other == c)
            continue;
        cell->offset = memory->cells[other].offset;
        assert_true(refused(&e->plan));
        *cell = before;
        overlaps++;
    }
    assert_true(overlaps > 50);
}

static void test_cells(void **state)
{
    (void)state;
    each_example(break_cells);
}

static void wait_forwards(struct example *e)
{
    struct plan *plan = &e->plan;
    for (uint32_t i = 0; i < 40; i++) {
        uint32_t wait = random_below(2 * i, plan->wait_count), op = 0, before = plan->waits[wait];
        while (plan->ops[op].first_wait + plan->ops[op].wait_count <= wait)
            op++;
        uint32_t later = op + random_below(2 * i + 1, plan->op_count - op);
        plan->waits[wait] = i % 4 ? later : op;
        assert_true(refused(plan));
        plan->waits[wait] = before;
    }
}

static void test_forward_waits(void **state)
{
    (void)state;
    each_example(wait_forwards);
}

static void shrink_budgets(struct example *e)
{
    struct place *place = &e->place;
    struct place_spec before = place->spec;
    place->spec.ram_budget = place->spec.overhead_bytes + e->memory.tier_bytes[TIER_RAM] - 1;
    assert_true(refused(&e->plan));
    place->spec = before;
    place->spec.overhead_bytes = UINT64_MAX - e->memory.tier_bytes[TIER_RAM];
    place->spec.ram_budget = UINT64_MAX - 1;
    assert_true(refused(&e->plan));
    place->spec = before;
    if (!place->separate_device)
        return;
    place->spec.vram_budget = e->memory.tier_bytes[TIER_DEVICE] - 1;
    assert_true(refused(&e->plan));
    place->spec = before;
}

static void test_budgets(void **state)
{
    (void)state;
    each_example(shrink_budgets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kinds),         cmocka_unit_test(test_moments),
        cmocka_unit_test(test_fp32),          cmocka_unit_test(test_losses),
        cmocka_unit_test(test_early_updates), cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_removed_waits), cmocka_unit_test(test_swapped_cells),
        cmocka_unit_test(test_counts),        cmocka_unit_test(test_cells),
        cmocka_unit_test(test_forward_waits), cmocka_unit_test(test_budgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
