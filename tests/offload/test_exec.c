/*
 * Property: the real engine computes the same bits from any placement also where a block, its
 * gradient and the vocabulary are many chunks and tiles, so that every ring turns over: losses,
 * gradient norms and all four planes of every chunk after several steps. Method: the model of the
 * other tests in chunks of 8192 parameters and tiles of one chunk, walked by the scheduler over
 * engine_real in some hundred placements, most of them in the least memory that works; the
 * reference has everything in RAM. With moments in fewer bytes too, where moreover the size of
 * chunks must not matter: a parameter draws the same random bits in any.
 */
#include "core/mem.h"
#include "core/rng.h"
#include "io/ring.h"
#include "offload/engine_real.h"
#include "offload/sched.h"
#include "offload/state.h"
#include "tests/shared/check.h"
#include "tests/shared/tiny.h"

#include <stdio.h>
#include <string.h>

#define STEPS 3
#define SEED  4

struct outcome {
    double loss[STEPS], norm[STEPS];
    uint8_t *state; /* owned */
};

/* The plans of a run: the first step, later ones, what is left at the end. */
enum { FIRST, STEADY, FLUSH, PLAN_COUNT };

static void walk(struct tiny_box *box, struct outcome *outcome)
{
    bool deferred = !box->place.immediate;
    const struct plan_request requests[PLAN_COUNT] = {
        [FIRST] = {.forward = true, .backward = true},
        [STEADY] = {.update = deferred, .forward = true, .backward = true},
        [FLUSH] = {.update = true},
    };
    struct plan plans[PLAN_COUNT] = {0};
    struct sched sched;
    struct sched_result result;
    struct engine_real *real;
    struct err err;
    uint32_t op_max = 0;
    for (uint32_t i = 0; i < (deferred ? PLAN_COUNT : FLUSH); i++) {
        plan_build(&plans[i], &box->place, &box->memory, &requests[i]);
        op_max = MAX(op_max, plans[i].op_count);
    }
    assert_int_equal(engine_real_open(&real, &box->exec, box->ring, 4, &err), 0);
    engine_real_reserve(real, op_max);
    sched_init(&sched, op_max);
    for (uint32_t step = 0; step < STEPS; step++) {
        tiny_box_load_tokens(box, SEED, step);
        if (!deferred)
            optim_step_init(&box->exec.step, &tiny_optim, step, 1);
        else if (step)
            optim_step_init(&box->exec.step, &tiny_optim, step - 1,
                            optim_clip_factor(&tiny_optim, outcome->norm[step - 1]));
        sched_run(&sched, &plans[step ? STEADY : FIRST], engine_real_engine(real), NULL, &result);
        outcome->loss[step] = exec_loss(&box->exec);
        outcome->norm[step] = box->exec.gradient_norm;
    }
    if (deferred) {
        optim_step_init(&box->exec.step, &tiny_optim, STEPS - 1,
                        optim_clip_factor(&tiny_optim, outcome->norm[STEPS - 1]));
        sched_run(&sched, &plans[FLUSH], engine_real_engine(real), NULL, &result);
    }
    outcome->state = tiny_box_state(box);
    engine_real_close(real);
    sched_deinit(&sched);
    for (uint32_t i = 0; i < PLAN_COUNT; i++)
        plan_deinit(&plans[i]);
}

struct where {
    uint32_t on_device, streamed; /* chunks */
};

/* Placements of a sweep: the head in passes, or at once; and that on a device of its own. */
static uint32_t passes_count, once_count, once_separate_count;

static void count_ways(const struct place *place)
{
    passes_count += !place->head_once;
    once_count += place->head_once;
    once_separate_count += place->head_once && place->separate_device;
}

static struct where compute(const struct tiny_model *model, const struct place_spec *spec,
                            struct outcome *outcome)
{
    /* One file serves all of its size: making one durable takes longer than a walk. */
    static uint64_t created;
    struct tiny_box box;
    struct err err;
    char name[64];
    snprintf(name, sizeof(name), "exec-%llu", (unsigned long long)model->layout.slot_bytes);
    tiny_box_open(&box, model, spec, name, created != model->layout.slot_bytes);
    created = model->layout.slot_bytes;
    if (state_create(&box.exec, box.ring, &model->tensors, SEED, NULL, &err) != 0)
        fail_msg("%s", err.message);
    walk(&box, outcome);
    struct where where = {
        box.place.choice.knob[KNOB_DEVICE],
        (uint32_t)place_streamed_taken(&box.place, &box.place.choice, model->layout.chunk_count)};
    count_ways(&box.place);
    tiny_box_close(&box);
    return where;
}

static void compare(const struct place_spec *spec, const struct outcome *found,
                    const struct outcome *expected)
{
    bool same = memcmp(found->loss, expected->loss, sizeof(found->loss)) == 0 &&
                memcmp(found->norm, expected->norm, sizeof(found->norm)) == 0 &&
                memcmp(found->state, expected->state, spec->layout->slot_bytes) == 0;
    if (!same)
        fail_msg("resident %d, VRAM %llu, recompute %d, prefetch %u, accum %u, clip %d: losses "
                 "%.17g %.17g %.17g, not %.17g %.17g %.17g",
                 spec->resident_planes, (unsigned long long)spec->vram_budget, spec->recompute,
                 spec->prefetch, spec->accum, spec->clip, found->loss[0], found->loss[1],
                 found->loss[2], expected->loss[0], expected->loss[1], expected->loss[2]);
}

/* State on the device, from some of it to all. */
static void sweep_device(const struct tiny_model *model, const struct place_spec *given,
                         const struct outcome *expected)
{
    static const uint64_t spare_kib[] = {300, 1100, 100000};
    uint32_t part = 0, whole = 0;
    for (size_t i = 0; i < 2 * ARRAY_COUNT(spare_kib); i++) {
        struct place_spec spec = *given;
        struct outcome found;
        spec.recompute = i % 2 ? RECOMPUTE_ALL : RECOMPUTE_NONE;
        spec.prefetch = (uint32_t)i % 3 + 1;
        spec.nvme = i < ARRAY_COUNT(spare_kib);
        spec.vram_budget = 256 * MIB;
        spec.resident_planes = PLACE_RESIDENT_AUTO;
        tiny_spec_shrink(&spec);
        spec.resident_planes = PLACE_RESIDENT_DEVICE;
        spec.vram_budget += spare_kib[i % ARRAY_COUNT(spare_kib)] * KIB;
        spec.ram_budget += 256 * KIB; /* for commits, and the flags of updates */
        uint32_t chunks = compute(model, &spec, &found).on_device;
        compare(&spec, &found, expected);
        mem_free(found.state);
        part += chunks > 0 && chunks < model->layout.chunk_count;
        whole += chunks == model->layout.chunk_count;
    }
    assert_true(part >= 2 && whole >= 2);
}

/* State in RAM that is streamed through the device: some of it beside what the CPU updates, some
 * beside what is on the device, all. */
static void sweep_streamed(const struct tiny_model *model, const struct place_spec *given,
                           const struct outcome *expected)
{
    static const struct {
        uint64_t vram_kib, ram_kib;
        int resident;
    } spare[] = {{1300, 1600, PLACE_RESIDENT_AUTO},
                 {1300, 2200, PLACE_RESIDENT_AUTO},
                 {1300, 2600, PLACE_RESIDENT_AUTO},
                 {2100, 100000, PLACE_RESIDENT_AUTO},
                 {1300, 100000, PLANE_COUNT}};
    uint32_t beside_cpu = 0, whole = 0, beside_device = 0;
    for (size_t i = 0; i < 2 * ARRAY_COUNT(spare); i++) {
        struct place_spec spec = *given;
        struct outcome found;
        spec.update = UPDATE_DEVICE;
        spec.recompute = i % 2 ? RECOMPUTE_ALL : RECOMPUTE_NONE;
        spec.prefetch = (uint32_t)i % 3 + 1;
        spec.nvme = i < ARRAY_COUNT(spare);
        spec.vram_budget = 256 * MIB;
        spec.resident_planes = spare[i % ARRAY_COUNT(spare)].resident;
        tiny_spec_shrink(&spec);
        spec.vram_budget += spare[i % ARRAY_COUNT(spare)].vram_kib * KIB;
        spec.ram_budget += spare[i % ARRAY_COUNT(spare)].ram_kib * KIB;
        struct where chunks = compute(model, &spec, &found);
        compare(&spec, &found, expected);
        mem_free(found.state);
        uint32_t rest = model->layout.chunk_count - chunks.streamed - chunks.on_device;
        beside_cpu += chunks.streamed > 0 && rest > 0;
        beside_device += chunks.streamed > 0 && chunks.on_device > 0;
        whole += chunks.streamed == model->layout.chunk_count;
    }
    assert_true(whole > 0 && beside_device > 0);
    assert_true(beside_cpu > 0 || model->layout.moments != MOMENTS_FP32);
}

/* Every placement of one kind of mathematics. */
static void sweep(const struct tiny_model *model, enum precision precision, uint32_t accum,
                  bool clip)
{
    struct outcome expected, found;
    struct place_spec spec;
    tiny_spec(&spec, model);
    spec.precision = precision;
    spec.accum = accum;
    spec.clip = clip;
    spec.nvme = false;
    spec.ram_budget = GIB;
    passes_count = once_count = once_separate_count = 0;
    compute(model, &spec, &expected);
    assert_int_equal(once_count, 1);
    assert_true(expected.loss[0] > 5 && expected.loss[0] < 6.5);
    assert_true(expected.loss[1] != expected.loss[0] && expected.norm[0] > tiny_optim.clip);
    spec.nvme = true;
    for (int resident = PLACE_RESIDENT_AUTO; resident <= PLANE_COUNT; resident++)
        for (int recompute = RECOMPUTE_ALL; recompute <= RECOMPUTE_NONE; recompute++)
            for (int separate = 0; separate < 2; separate++) {
                spec.resident_planes = resident;
                spec.recompute = (enum place_recompute)recompute;
                spec.prefetch = (uint32_t)(resident + 1 + recompute) % 3 + 1;
                spec.vram_budget = separate ? 256 * MIB : 0;
                tiny_spec_shrink(&spec);
                /* Where it is the search that decides: half of this, half of that. */
                if (resident == PLACE_RESIDENT_AUTO)
                    spec.ram_budget += 1500 * KIB;
                compute(model, &spec, &found);
                compare(&spec, &found, &expected);
                mem_free(found.state);
            }
    sweep_device(model, &spec, &expected);
    if (clip)
        sweep_streamed(model, &spec, &expected);
    assert_true(passes_count > 5 && once_count > 1 && once_separate_count > 0);
    mem_free(expected.state);
}

static void test_placements(void **state)
{
    (void)state;
    struct tiny_model model;
    tiny_model_init(&model, 3, 64, 300, 8192, 8192);
    assert_true(model.layout.tile_count >= 3 && model.layout.block_chunks >= 5);
    sweep(&model, PRECISION_FP32, 1, true);
    sweep(&model, PRECISION_FP32, 3, false);
    sweep(&model, PRECISION_BF16, 3, true);
    sweep(&model, PRECISION_BF16, 1, false);
    tiny_model_deinit(&model);
}

static void test_moments(void **state)
{
    (void)state;
    for (uint32_t kind = MOMENTS_BF16; kind < MOMENTS_KIND_COUNT; kind++) {
        struct tiny_model model;
        tiny_model_init(&model, 3, 64, 300, 8192, 8192);
        tiny_model_set_moments(&model, kind);
        sweep(&model, PRECISION_FP32, 2, true);
        sweep(&model, PRECISION_BF16, 1, false);
        tiny_model_deinit(&model);
    }
}

/* A plane of the state in canonical order, chunks' padding left out; owned by the caller. */
static uint8_t *canonical(const struct layout *layout, const uint8_t *state, uint32_t plane,
                          uint64_t *bytes)
{
    uint8_t *out = mem_alloc(layout->slot_bytes, 1);
    *bytes = 0;
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        const struct layout_chunk *chunk = &layout->chunks[c];
        uint64_t bare = layout_least_bytes(layout, chunk->count, plane);
        memcpy(out + *bytes,
               state + chunk->offset + layout_plane_offset(layout, chunk->count, plane), bare);
        *bytes += bare;
    }
    return out;
}

/* Without clipping: the norm's sum is by chunks. */
static void test_chunks_do_not_matter(void **state)
{
    (void)state;
    for (uint32_t kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        struct tiny_model model[2];
        struct outcome outcome[2];
        for (int i = 0; i < 2; i++) {
            struct place_spec spec;
            tiny_model_init(&model[i], 3, 64, 300, i ? 2048 : 8192, 8192);
            tiny_model_set_moments(&model[i], kind);
            tiny_spec(&spec, &model[i]);
            spec.clip = false;
            spec.ram_budget = GIB;
            compute(&model[i], &spec, &outcome[i]);
        }
        assert_true(model[1].layout.chunk_count > 2 * model[0].layout.chunk_count);
        for (uint32_t p = 0; p < PLANE_COUNT; p++) {
            uint64_t bytes[2];
            uint8_t *a = canonical(&model[0].layout, outcome[0].state, p, &bytes[0]);
            uint8_t *b = canonical(&model[1].layout, outcome[1].state, p, &bytes[1]);
            assert_int_equal(bytes[0], bytes[1]);
            assert_memory_equal(a, b, bytes[0]);
            mem_free(a);
            mem_free(b);
        }
        for (int i = 0; i < 2; i++) {
            mem_free(outcome[i].state);
            tiny_model_deinit(&model[i]);
        }
    }
}

/* Chunk by chunk, ops that a device does as one: of one kind and lane, and none that another's
 * memory is written by or that writes it, but for what all chunks have a part of. */
static void test_what_is_done_as_one(void **state)
{
    (void)state;
    const struct plan_op first = {.kind = OP_GRADIENT_STORE,
                                  .lane = LANE_COMPUTE,
                                  .use_count = 3,
                                  .uses = {{{10, 2}, false}, {{20, 1}, true}, {{5, 1}, true}}};
    const struct plan_op *ops[] = {&first, &first};
    struct plan_op next = first;
    assert_false(exec_joins(ops, 1, &next)); /* both write cell 20 */
    next.uses[1].cells.first = 21;
    assert_true(exec_joins(ops, 1, &next));
    next.uses[1].cells.first = 11;
    assert_false(exec_joins(ops, 1, &next)); /* which the first reads */
    next.uses[0].cells = (struct plan_cells){19, 2};
    next.uses[1].cells.first = 22;
    assert_false(exec_joins(ops, 1, &next)); /* of what the first writes */
    next.uses[0].cells.first = 30;
    assert_true(exec_joins(ops, 2, &next));
    struct plan_op other = next;
    other.lane = LANE_D2H;
    assert_false(exec_joins(ops, 1, &other));
    other = next;
    other.kind = OP_DEVICE_UPDATE;
    assert_false(exec_joins(ops, 1, &other));
    other = first;
    other.kind = OP_BLOCK_FORWARD;
    const struct plan_op *blocks[] = {&other};
    assert_false(exec_joins(blocks, 1, &other));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_placements),
        cmocka_unit_test(test_moments),
        cmocka_unit_test(test_chunks_do_not_matter),
        cmocka_unit_test(test_what_is_done_as_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
