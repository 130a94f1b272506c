/*
 * Properties of the mixed engine: a modelled op never takes less than the model says and ends in
 * the model's order; a plan never takes less than on the model engine; every op completes once and
 * nothing is left in flight; with drive and cpu lanes real, the state and its checksums after a
 * step are bit for bit those of the same updates by the real engine, and the device's memory is
 * never touched. The model divides what lanes share alike when its clock is moved from outside. A
 * drive that fails ends the process with one sentence, as in the real engine.
 *
 * Method: steps of a small model with all lanes modelled on a machine that shares nothing (where
 * lateness can only make the end later), watched through an engine that passes everything on; and
 * with known gradients in RAM and on the drive, compared with a plan of updates alone on the real
 * engine. exec_cell aborts when an op asks for memory of a device that has no arena.
 */
#include "core/clock.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/ring.h"
#include "offload/engine_mixed.h"
#include "offload/engine_model.h"
#include "offload/engine_real.h"
#include "offload/sched.h"
#include "offload/state.h"
#include "tests/shared/check.h"
#include "tests/shared/tiny.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#define SEED        7
#define DRIVE_DEPTH 4
#define LANE_S      0.03 /* of work in every lane, where all are modelled */

static const struct {
    enum precision precision;
    int resident;
    bool least; /* budgets that only just work: gradients on the drive, rings that turn over */
} examples[] = {
    {PRECISION_FP32, 0, true},
    {PRECISION_BF16, 1, true},
    {PRECISION_BF16, PLANE_COUNT, false},
};

static const struct optim_settings optim = {
    .lr = 1e-2, .total_steps = 8, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};

static void require(int result, const struct err *err)
{
    if (result != 0)
        fail_msg("%s", err->message);
}

static void open_box(struct tiny_box *box, const struct tiny_model *model, size_t i,
                     const char *name)
{
    struct place_spec spec;
    tiny_spec(&spec, model);
    spec.precision = examples[i].precision;
    spec.resident_planes = examples[i].resident;
    spec.vram_budget = 4 * MIB;
    if (examples[i].least)
        tiny_spec_shrink(&spec);
    tiny_box_open(box, model, &spec, name, true);
}

/* From here on whoever touches the device aborts. */
static void take_device_away(struct tiny_box *box)
{
    mem_arena_close(&box->exec.vram);
    box->exec.device_modelled = true;
}

/* ---- A witness --------------------------------------------------------------------------------
 */

/* Passes on what it is asked and looks at what comes back. */
struct witness {
    struct engine engine; /* first: the scheduler's pointer is ours */
    struct engine *inner;
    const struct plan *plan;
    const struct profile *profile;
    const bool *modelled;
    uint32_t *seen;                      /* owned; [op]: times completed */
    uint32_t last[LANE_COUNT];           /* newest op completed, or PLAN_NONE */
    uint64_t modelled_end_ns, in_flight; /* of the modelled op that came last */
};

static void witness_begin(struct engine *engine, const struct plan *plan)
{
    struct witness *w = (struct witness *)engine;
    w->inner->begin(w->inner, plan);
}

static void witness_submit(struct engine *engine, uint32_t op)
{
    struct witness *w = (struct witness *)engine;
    w->in_flight++;
    w->inner->submit(w->inner, op);
}

static void look(struct witness *w, const struct engine_completion *done)
{
    const struct plan_op *op = &w->plan->ops[done->op];
    struct cost cost;
    cost_of(&cost, w->profile, w->plan, op);
    assert_int_equal(++w->seen[done->op], 1);
    assert_true(done->start_ns <= done->end_ns && done->end_ns <= clock_ns());
    if (w->engine.in_order[op->lane]) {
        assert_true(w->last[op->lane] == PLAN_NONE || w->last[op->lane] < done->op);
        w->last[op->lane] = done->op;
    }
    if (!w->modelled[op->lane])
        return;
    double took_ns = (double)(done->end_ns - done->start_ns);
    /* Both ends are rounded down to a nanosecond. */
    assert_true(took_ns + 2 >= (cost.launch_s + cost.work_s + cost.latency_s) * 1e9);
    assert_true(done->end_ns >= w->modelled_end_ns);
    w->modelled_end_ns = done->end_ns;
}

static uint32_t witness_reap(struct engine *engine, struct engine_completion *completions,
                             uint32_t max)
{
    struct witness *w = (struct witness *)engine;
    /* Few at a time, so that what has ended must wait for its turn. */
    uint32_t count = w->inner->reap(w->inner, completions, MIN(max, 3u));
    assert_in_range(count, 1, 3);
    for (uint32_t i = 0; i < count; i++)
        look(w, &completions[i]);
    w->in_flight -= count;
    return count;
}

static uint64_t witness_now(struct engine *engine)
{
    struct witness *w = (struct witness *)engine;
    return w->inner->now_ns(w->inner);
}

/* Runs the plan on a mixed engine of its own, under a witness. */
static void run_mixed(struct tiny_box *box, const struct plan *plan, const struct profile *profile,
                      const bool *modelled, struct sched_result *result)
{
    struct engine_mixed_setup setup = {.exec = &box->exec,
                                       .ring = box->ring,
                                       .profile = profile,
                                       .drive_depth = DRIVE_DEPTH,
                                       .op_max = plan->op_count};
    struct engine_mixed *mixed;
    struct sched sched;
    struct err err;
    memcpy(setup.modelled, modelled, sizeof(setup.modelled));
    require(engine_mixed_open(&mixed, &setup, &err), &err);
    struct witness w = {.engine = *engine_mixed_engine(mixed),
                        .inner = engine_mixed_engine(mixed),
                        .plan = plan,
                        .profile = profile,
                        .modelled = modelled,
                        .seen = mem_alloc(plan->op_count, sizeof(uint32_t))};
    w.engine.begin = witness_begin;
    w.engine.submit = witness_submit;
    w.engine.reap = witness_reap;
    w.engine.now_ns = witness_now;
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        w.last[lane] = PLAN_NONE;
    sched_init(&sched, plan->op_count);
    sched_run(&sched, plan, &w.engine, NULL, result);
    for (uint32_t o = 0; o < plan->op_count; o++)
        assert_int_equal(w.seen[o], 1);
    assert_int_equal(w.in_flight, 0);
    assert_int_equal(ring_in_flight(box->ring), 0);
    sched_deinit(&sched);
    mem_free(w.seen);
    engine_mixed_close(mixed);
}

/* ---- All modelled -----------------------------------------------------------------------------
 */

/* A GPU's machine on which nothing is shared, with LANE_S of work in each lane of the plan. */
static void lone_machine(struct profile *profile, const struct plan *plan)
{
    profile_init(profile, 1);
    profile->device.is_cpu = false;
    profile->cpu.cores = 64;
    profile->ram.bytes_per_s = 1e15;
    profile->ssd.mixed_read_bytes_per_s = profile->ssd.read_bytes_per_s;
    profile->ssd.mixed_write_bytes_per_s = profile->ssd.write_bytes_per_s;
    profile->device.h2d_both_bytes_per_s = profile->device.h2d_bytes_per_s;
    profile->device.d2h_both_bytes_per_s = profile->device.d2h_bytes_per_s;
    double work_s[LANE_COUNT] = {0}, most_s = 0;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        struct cost cost;
        cost_of(&cost, profile, plan, &plan->ops[o]);
        work_s[plan->ops[o].lane] += cost.work_s;
    }
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        most_s = MAX(most_s, work_s[lane]);
    profile_scale(profile, most_s / LANE_S);
}

static uint64_t simulate(const struct plan *plan, const struct profile *profile,
                         struct sched_result *result)
{
    struct engine_model model;
    struct sched sched;
    engine_model_init(&model, profile);
    sched_init(&sched, plan->op_count);
    sched_run(&sched, plan, &model.engine, NULL, result);
    sched_deinit(&sched);
    return result->end_ns - result->start_ns;
}

static void test_all_modelled(void **state)
{
    (void)state;
    static const bool modelled[LANE_COUNT] = {true, true, true, true, true, true};
    const struct plan_request request = {.update = true, .forward = true, .backward = true};
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        struct tiny_model model;
        struct tiny_box box;
        struct plan plan;
        struct profile profile;
        struct sched_result result;
        tiny_model_init(&model, 3, 64, 300, 8192, 8192);
        open_box(&box, &model, i, "modelled");
        take_device_away(&box);
        plan_build(&plan, &box.place, &box.memory, &request);
        lone_machine(&profile, &plan);
        uint64_t modelled_ns = simulate(&plan, &profile, &result);
        run_mixed(&box, &plan, &profile, modelled, &result);
        assert_true(modelled_ns > 0);
        /* Rounding: a nanosecond an op at most. */
        assert_true(result.end_ns - result.start_ns + plan.op_count >= modelled_ns);
        plan_deinit(&plan);
        tiny_box_close(&box);
        tiny_model_deinit(&model);
    }
}

/* ---- A clock that is not the model's own ------------------------------------------------------
 */

/* A model whose clock is moved from outside, at times to where nothing happens. */
struct pushed {
    struct engine engine; /* first: the scheduler's pointer is ours */
    struct engine_model model;
    uint64_t pushes;
};

static void pushed_begin(struct engine *engine, const struct plan *plan)
{
    struct pushed *pushed = (struct pushed *)engine;
    pushed->model.engine.begin(&pushed->model.engine, plan);
}

static void pushed_submit(struct engine *engine, uint32_t op)
{
    struct pushed *pushed = (struct pushed *)engine;
    pushed->model.engine.submit(&pushed->model.engine, op);
}

static uint32_t pushed_reap(struct engine *engine, struct engine_completion *completions,
                            uint32_t max)
{
    struct pushed *pushed = (struct pushed *)engine;
    struct engine_model *model = &pushed->model;
    assert_true(max > 0);
    while (!engine_model_take(model, completions)) {
        double next_s = engine_model_next_s(model), now_s = model->now_s;
        bool half = rng_below(SEED, RNG_STREAM_SAMPLE, pushed->pushes++, 2);
        assert_true(next_s > now_s && next_s < INFINITY);
        engine_model_pass(model, half ? now_s + (next_s - now_s) / 2 : next_s);
    }
    return 1;
}

static uint64_t pushed_now(struct engine *engine)
{
    struct pushed *pushed = (struct pushed *)engine;
    return pushed->model.engine.now_ns(&pushed->model.engine);
}

static void run_pushed(const struct plan *plan, const struct profile *profile,
                       struct sched_result *result)
{
    struct pushed pushed = {.engine = {.begin = pushed_begin,
                                       .submit = pushed_submit,
                                       .reap = pushed_reap,
                                       .now_ns = pushed_now}};
    struct sched sched;
    engine_model_init(&pushed.model, profile);
    memcpy(pushed.engine.depth, pushed.model.engine.depth, sizeof(pushed.engine.depth));
    memcpy(pushed.engine.in_order, pushed.model.engine.in_order, sizeof(pushed.engine.in_order));
    assert_true(engine_model_next_s(&pushed.model) == INFINITY);
    sched_init(&sched, plan->op_count);
    sched_run(&sched, plan, &pushed.engine, NULL, result);
    sched_deinit(&sched);
    assert_true(engine_model_next_s(&pushed.model) == INFINITY);
}

/* What lanes share is divided alike whoever moves the clock. */
static void test_pushed_clock(void **state)
{
    (void)state;
    const struct plan_request request = {.update = true, .forward = true, .backward = true};
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        struct tiny_model model;
        struct tiny_box box;
        struct plan plan;
        struct profile profile;
        struct sched_result expected, result;
        tiny_model_init(&model, 3, 64, 300, 8192, 8192);
        open_box(&box, &model, i, "pushed");
        plan_build(&plan, &box.place, &box.memory, &request);
        lone_machine(&profile, &plan);
        uint64_t lone_ns = simulate(&plan, &profile, &expected);
        profile.device.h2d_both_bytes_per_s /= 2;
        profile.device.d2h_both_bytes_per_s /= 3;
        profile.ram.bytes_per_s = profile.device.h2d_bytes_per_s;
        assert_true(simulate(&plan, &profile, &expected) > lone_ns);
        run_pushed(&plan, &profile, &result);
        assert_memory_equal(&result, &expected, sizeof(result));
        plan_deinit(&plan);
        tiny_box_close(&box);
        tiny_model_deinit(&model);
    }
}

/* ---- Drive and cpu real -----------------------------------------------------------------------
 */

static const bool device_only[LANE_COUNT] = {
    [LANE_COMPUTE] = true, [LANE_H2D] = true, [LANE_D2H] = true};

/* Gradients of +-2^-10 to 2^-11 with random bits, different for every chunk. */
static void make_gradient(const struct tiny_box *box, uint32_t chunk, void *to)
{
    bool bf16 = box->place.spec.precision == PRECISION_BF16;
    uint64_t keep = bf16 ? 0x807f807f807f807f : 0x807fffff807fffff;
    uint64_t set = bf16 ? 0x3a003a003a003a00 : 0x3a0000003a000000;
    uint64_t bytes = box->model->layout.chunks[chunk].count * box->place.gradient_bytes;
    for (uint64_t i = 0; i < bytes / sizeof(uint64_t); i++)
        ((uint64_t *)to)[i] = (rng_u64(SEED + chunk, RNG_STREAM_SAMPLE, i) & keep) | set;
}

/* The gradient that waits for the next step, wherever the placement keeps it. */
static void put_gradients(struct tiny_box *box)
{
    struct err err;
    uint8_t *stage = mem_alloc_aligned(IO_ALIGN, box->model->layout.chunk_count_max * 4);
    for (uint32_t c = 0; c < box->model->layout.chunk_count; c++) {
        uint32_t ram = box->memory.gradient_ram[c].first;
        uint32_t nvme = box->memory.gradient_nvme.first + c;
        uint64_t bytes = box->memory.cells[nvme].bytes;
        if (box->memory.cells[ram].bytes)
            make_gradient(box, c, exec_cell(&box->exec, ram));
        if (!bytes)
            continue;
        make_gradient(box, c, stage);
        require(tier_transfer(&box->tier, box->ring, true, tier_write_at(&box->tier, nvme), stage,
                              bytes, &err),
                &err);
        box->tier.cell_sums[nvme] = tier_cell_sum(nvme, stage, bytes);
    }
    mem_free(stage);
}

static void fill_box(struct tiny_box *box)
{
    struct err err;
    require(state_create(&box->exec, box->ring, &box->model->tensors, SEED, NULL, &err), &err);
    put_gradients(box);
    optim_step_init(&box->exec.step, &optim, 0, 1);
}

/* What the real engine makes of these gradients: updates alone, which need no device. */
static uint8_t *expected_state(const struct tiny_model *model, size_t i, uint64_t *sums)
{
    struct tiny_box box;
    struct plan plan;
    struct sched sched;
    struct sched_result result;
    struct engine_real *real;
    struct err err;
    const struct plan_request request = {.update = true};
    open_box(&box, model, i, "real");
    fill_box(&box);
    plan_build(&plan, &box.place, &box.memory, &request);
    require(engine_real_open(&real, &box.exec, box.ring, DRIVE_DEPTH, &err), &err);
    engine_real_reserve(real, plan.op_count);
    sched_init(&sched, plan.op_count);
    sched_run(&sched, &plan, engine_real_engine(real), NULL, &result);
    memcpy(sums, box.tier.plane_sums, model->layout.chunk_count * PLANE_COUNT * sizeof(*sums));
    uint8_t *bytes = tiny_box_state(&box);
    engine_real_close(real);
    sched_deinit(&sched);
    plan_deinit(&plan);
    tiny_box_close(&box);
    return bytes;
}

static void check_state(struct tiny_box *box, const uint8_t *expected, const uint64_t *sums)
{
    const struct layout *layout = &box->model->layout;
    uint8_t *bytes = tiny_box_state(box);
    assert_memory_equal(bytes, expected, layout->slot_bytes);
    for (uint32_t c = 0; c < layout->chunk_count; c++)
        for (uint32_t p = box->place.resident[c]; p < PLANE_COUNT; p++) {
            const struct layout_chunk *chunk = &layout->chunks[c];
            uint64_t sum = box->tier.plane_sums[c * PLANE_COUNT + p];
            assert_int_equal(sum, sums[c * PLANE_COUNT + p]);
            assert_int_equal(sum, tier_plane_sum(layout, c, p,
                                                 bytes + chunk->offset +
                                                     layout_plane_offset(layout, chunk->count, p)));
        }
    mem_free(bytes);
}

static void run_real_lanes(const struct tiny_model *model, size_t i,
                           const struct plan_request *request, const uint8_t *expected,
                           const uint64_t *sums)
{
    struct tiny_box box;
    struct plan plan;
    struct profile profile;
    struct sched_result result;
    struct plan_totals totals;
    open_box(&box, model, i, "mixed");
    take_device_away(&box);
    fill_box(&box);
    plan_build(&plan, &box.place, &box.memory, request);
    lone_machine(&profile, &plan);
    run_mixed(&box, &plan, &profile, device_only, &result);
    plan_total(&plan, &totals);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        assert_int_equal(result.bytes[lane],
                         totals.bytes[PHASE_FORWARD][lane] + totals.bytes[PHASE_BACKWARD][lane]);
    check_state(&box, expected, sums);
    /* What was left on the drive is good for another step: its sums are checked as it is read. */
    optim_step_init(&box.exec.step, &optim, 1, 1);
    if (request->backward)
        run_mixed(&box, &plan, &profile, device_only, &result);
    plan_deinit(&plan);
    tiny_box_close(&box);
}

static void test_real_lanes(void **state)
{
    (void)state;
    static const struct plan_request requests[] = {
        {.update = true}, {.update = true, .forward = true, .backward = true}};
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        struct tiny_model model;
        tiny_model_init(&model, 3, 64, 300, 8192, 8192);
        uint64_t *sums = mem_alloc(model.layout.chunk_count * PLANE_COUNT, sizeof(*sums));
        uint8_t *expected = expected_state(&model, i, sums);
        for (size_t r = 0; r < ARRAY_COUNT(requests); r++)
            run_real_lanes(&model, i, &requests[r], expected, sums);
        mem_free(expected);
        mem_free(sums);
        tiny_model_deinit(&model);
    }
}

/* ---- A drive that fails -----------------------------------------------------------------------
 */

struct failing {
    bool write;
    uint64_t left; /* answers until it fails; at first in quarters of the plan's transfers */
};

static int32_t fail_once(void *context, const struct ring_transfer *part, int32_t result)
{
    struct failing *failing = context;
    if (part->write != failing->write || failing->left-- != 0)
        return result;
    return -EIO;
}

static void run_failing(void *context)
{
    const struct plan_request request = {.update = true, .forward = true, .backward = true};
    struct tiny_model model;
    struct tiny_box box;
    struct plan plan;
    struct profile profile;
    struct sched_result result;
    tiny_model_init(&model, 2, 64, 300, 8192, 8192);
    open_box(&box, &model, 0, "failing");
    take_device_away(&box);
    fill_box(&box);
    plan_build(&plan, &box.place, &box.memory, &request);
    lone_machine(&profile, &plan);
    struct failing *failing = context;
    uint64_t transfers = 0;
    for (uint32_t o = 0; o < plan.op_count; o++)
        transfers += plan.ops[o].lane == (failing->write ? LANE_SSD_WRITE : LANE_SSD_READ);
    failing->left *= transfers / 4;
    ring_set_fault(fail_once, failing);
    run_mixed(&box, &plan, &profile, device_only, &result);
    _exit(0);
}

static void test_failing_drive(void **state)
{
    (void)state;
    for (int write = 0; write < 2; write++)
        for (uint64_t quarter = 0; quarter < 4; quarter++) {
            struct failing failing = {write, quarter};
            char *said;
            int status = tiny_fork(run_failing, &failing, &said);
            if (!WIFEXITED(status) || WEXITSTATUS(status) != 1)
                fail_msg("status %x: %s", status, said);
            assert_non_null(strstr(said, write ? "cannot write " : "cannot read "));
            assert_non_null(strstr(said, "at offset "));
            assert_non_null(strstr(said, strerror(EIO)));
            free(said);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_modelled),
        cmocka_unit_test(test_pushed_clock),
        cmocka_unit_test(test_real_lanes),
        cmocka_unit_test(test_failing_drive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
