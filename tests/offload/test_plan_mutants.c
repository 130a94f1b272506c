/*
 * Property: plan_check refuses plans that are wrong. Method: mutation. Plans are damaged in one
 * place: a wait is removed, a use moved to another cell, an update dropped, doubled or given to
 * another chunk, cells are laid over one another or out of bounds, a wait points forwards. The
 * oracle is brute force: the transitive closure of all waits, and every pair of uses of every cell.
 * The checker demands direct waits where the oracle accepts a detour; as there are no spare waits
 * (test_plan.c), the removal of any at all is refused; and whatever it accepts, the oracle accepts.
 */
#include "core/mem.h"
#include "core/rng.h"
#include "tests/shared/check.h"
#include "tests/shared/plans.h"

#include <string.h>

#define SEED 3

static const struct {
    enum precision precision;
    uint64_t vram_budget;
    int resident;
    enum place_recompute recompute;
    uint32_t accum;
    bool nvme, clip;
    enum place_update update;
} examples[] = {
    {PRECISION_FP32, 0, 0, RECOMPUTE_NONE, 2, true, true, UPDATE_CPU},
    {PRECISION_FP32, 0, 2, RECOMPUTE_ALL, 1, true, true, UPDATE_CPU},
    {PRECISION_BF16, 0, 1, RECOMPUTE_ALL, 2, true, true, UPDATE_CPU},
    {PRECISION_BF16, 0, 4, RECOMPUTE_NONE, 1, false, true, UPDATE_CPU},
    {PRECISION_FP32, 0, 4, RECOMPUTE_NONE, 2, false, true, UPDATE_CPU},
    {PRECISION_FP32, 4 * MIB, 0, RECOMPUTE_NONE, 2, true, true, UPDATE_CPU},
    {PRECISION_FP32, 64 * MIB, 4, RECOMPUTE_AUTO, 1, false, true, UPDATE_CPU},
    {PRECISION_BF16, 3 * MIB, 1, RECOMPUTE_NONE, 2, true, true, UPDATE_CPU},
    {PRECISION_BF16, MIB + 100 * KIB, 3, RECOMPUTE_ALL, 1, true, true, UPDATE_CPU},
    {PRECISION_FP32, 0, 1, RECOMPUTE_NONE, 2, true, false, UPDATE_CPU},
    {PRECISION_BF16, 0, 4, RECOMPUTE_NONE, 1, false, false, UPDATE_CPU},
    {PRECISION_BF16, 3 * MIB, 0, RECOMPUTE_ALL, 2, true, false, UPDATE_CPU},
    {PRECISION_FP32, 4 * MIB, PLACE_RESIDENT_DEVICE, RECOMPUTE_ALL, 2, true, true, UPDATE_CPU},
    {PRECISION_BF16, 3 * MIB, PLACE_RESIDENT_DEVICE, RECOMPUTE_NONE, 1, true, false, UPDATE_CPU},
    {PRECISION_BF16, 64 * MIB, PLACE_RESIDENT_DEVICE, RECOMPUTE_AUTO, 1, false, true, UPDATE_CPU},
    {PRECISION_BF16, 3 * MIB, PLANE_COUNT, RECOMPUTE_ALL, 2, true, true, UPDATE_DEVICE},
    {PRECISION_FP32, 4 * MIB, PLANE_COUNT, RECOMPUTE_NONE, 1, false, true, UPDATE_DEVICE},
};

/* Calls fn with each example's plan; the plan is as it was when fn returns. */
static void each_example(void (*fn)(struct plans_example *e))
{
    struct plans_example e;
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
        spec.update = examples[i].update;
        /* All of a step: without clipping, backward updates and nothing is pending. */
        const struct plan_request request = {
            .update = spec.clip, .commit = spec.clip, .forward = true, .backward = true};
        plans_open(&e, &spec, &request);
        if (plan_check(&e.plan, &err) != 0)
            fail_msg("%s", err.message);
        fn(&e);
        if (plan_check(&e.plan, &err) != 0)
            fail_msg("a mutation was not undone: %s", err.message);
        plans_close(&e);
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
static void remove_wait(struct plans_example *e, uint32_t number, uint32_t i)
{
    struct plan_op *op = &e->plan.ops[number];
    uint32_t *waits = &e->plan.waits[op->first_wait];
    uint32_t removed = waits[i], last = --op->wait_count;
    waits[i] = waits[last];
    if (!refused(&e->plan))
        fail_msg("op %u (%s) is accepted without its wait on op %u (%s)", number,
                 plan_op_name[op->kind], removed, plan_op_name[e->plan.ops[removed].kind]);
    struct plans_oracle oracle;
    plans_oracle_open(&oracle, &e->plan);
    disordered_count += !plans_oracle_ordered(&oracle);
    plans_oracle_close(&oracle);
    waits[last] = waits[i];
    waits[i] = removed;
    op->wait_count++;
}

static void remove_waits(struct plans_example *e)
{
    struct plans_oracle oracle;
    plans_oracle_open(&oracle, &e->plan);
    assert_true(plans_oracle_ordered(&oracle));
    plans_oracle_close(&oracle);
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

static void swap_cells(struct plans_example *e)
{
    struct plan *plan = &e->plan;
    for (uint32_t i = 0; i < CELLS_SWAPPED; i++) {
        struct plan_op *op = &plan->ops[random_below(3 * i, plan->op_count)];
        struct plan_use *use = &op->uses[random_below(3 * i + 1, op->use_count)];
        struct plan_cells before = use->cells;
        if (!before.count)
            continue;
        use->cells.first = random_below(3 * i + 2, e->memory.cell_count - before.count + 1);
        struct plans_oracle oracle;
        plans_oracle_open(&oracle, plan);
        bool ordered = plans_oracle_ordered(&oracle), is_refused = refused(plan);
        if (!ordered && !is_refused)
            fail_msg("op %u (%s) is accepted with cell %u in place of %u",
                     (uint32_t)(op - plan->ops), plan_op_name[op->kind], use->cells.first,
                     before.first);
        disordered_count += !ordered;
        refused_count += is_refused;
        accepted_count += !is_refused;
        plans_oracle_close(&oracle);
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
static void change_counts(struct plans_example *e)
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
static void change_losses(struct plans_example *e)
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
static void update_early(struct plans_example *e)
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

static void break_cells(struct plans_example *e)
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

static void wait_forwards(struct plans_example *e)
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

static void shrink_budgets(struct plans_example *e)
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
        cmocka_unit_test(test_losses),        cmocka_unit_test(test_early_updates),
        cmocka_unit_test(test_removed_waits), cmocka_unit_test(test_swapped_cells),
        cmocka_unit_test(test_counts),        cmocka_unit_test(test_cells),
        cmocka_unit_test(test_forward_waits), cmocka_unit_test(test_budgets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
