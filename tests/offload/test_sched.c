/*
 * Properties of the scheduler: every op is submitted once, after all that it waits for is done (or,
 * on a lane that keeps its order, is ahead of it there), in plan order within its lane, and never
 * more than the lane's depth at once; what it counts is what the plan says. Method: a fake engine
 * that checks each of these at every submission and completes ops in the most awkward order that a
 * real one could: at random, newest first, or with one lane starved as long as any other has work.
 *
 * Properties of the model engine: the same plan takes the same time, to the nanosecond; an op or a
 * lane that takes longer never makes the end earlier (the lanes are a max-plus system: no op
 * overtakes another); no lane is busy longer than the step.
 */
#include "core/mem.h"
#include "core/rng.h"
#include "offload/engine_model.h"
#include "offload/sched.h"
#include "tests/shared/check.h"
#include "tests/shared/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Examples ---------------------------------------------------------------------------------
 */

struct example {
    struct tiny_model model;
    struct place place;
    struct plan_memory memory;
    struct plan plan;
};

static const struct {
    enum precision precision;
    uint64_t vram_budget;
    int resident;
    enum place_recompute recompute;
    bool clip;
} examples[] = {
    {PRECISION_FP32, 0, 0, RECOMPUTE_NONE, true},
    {PRECISION_FP32, 4 * MIB, 1, RECOMPUTE_NONE, true},
    {PRECISION_BF16, 3 * MIB, 0, RECOMPUTE_ALL, true},
    {PRECISION_BF16, 64 * MIB, 4, RECOMPUTE_AUTO, true},
    {PRECISION_FP32, 4 * MIB, 0, RECOMPUTE_NONE, false},
};

static void example_open(struct example *e, size_t i)
{
    struct place_spec spec;
    struct err err;
    tiny_model_init(&e->model, 3, 64, 300, 8192, 8192);
    tiny_spec(&spec, &e->model);
    spec.precision = examples[i].precision;
    spec.vram_budget = examples[i].vram_budget;
    spec.resident_planes = examples[i].resident;
    spec.recompute = examples[i].recompute;
    spec.accum = 2;
    spec.clip = examples[i].clip;
    if (place_choose(&e->place, &spec, &err) != 0)
        fail_msg("%s", err.message);
    plan_memory_init(&e->memory, &e->place);
    /* Without clipping, backward updates. */
    const struct plan_request request = {
        .update = examples[i].clip, .commit = examples[i].clip, .forward = true, .backward = true};
    plan_build(&e->plan, &e->place, &e->memory, &request);
}

static void example_close(struct example *e)
{
    plan_deinit(&e->plan);
    plan_memory_deinit(&e->memory);
    place_deinit(&e->place);
    tiny_model_deinit(&e->model);
}

/* ---- The fake engine --------------------------------------------------------------------------
 */

enum order { RANDOM, NEWEST, STARVE, ORDER_COUNT = STARVE + LANE_COUNT }; /* STARVE + lane */

enum { UNTOUCHED, SUBMITTED, FINISHED };

struct fake {
    struct engine engine; /* first: the scheduler's pointer is ours */
    const struct plan *plan;
    enum order order;
    uint64_t seed, draws, clock_ns;
    uint8_t *state;      /* [op] */
    uint32_t *in_flight; /* [op_count]: in order of submission */
    uint32_t in_flight_count, lane_count[LANE_COUNT], deepest[LANE_COUNT];
    uint32_t last[LANE_COUNT]; /* newest op of the lane, or PLAN_NONE */
    uint32_t submitted;
    uint32_t chained_count; /* waits for what another lane had only been given */
};

static void fake_begin(struct engine *engine, const struct plan *plan)
{
    struct fake *fake = (struct fake *)engine;
    assert_ptr_equal(plan, fake->plan);
    assert_int_equal(fake->submitted, 0);
}

static void fake_submit(struct engine *engine, uint32_t number)
{
    struct fake *fake = (struct fake *)engine;
    const struct plan *plan = fake->plan;
    assert_true(number < plan->op_count);
    const struct plan_op *op = &plan->ops[number];
    assert_int_equal(fake->state[number], UNTOUCHED);
    /* The lane's next one: between it and the one before lies no other op of the lane. */
    uint32_t next = fake->last[op->lane] == PLAN_NONE ? 0 : fake->last[op->lane] + 1;
    while (plan->ops[next].lane != op->lane)
        next++;
    assert_int_equal(number, next);
    for (uint32_t i = 0; i < op->wait_count; i++) {
        uint32_t on = plan->waits[op->first_wait + i];
        uint8_t lane = plan->ops[on].lane;
        bool ahead = lane == op->lane ? engine->in_order[lane]
                                      : engine->chained[lane] && engine->chained[op->lane];
        fake->chained_count += ahead && lane != op->lane && fake->state[on] == SUBMITTED;
        assert_true(fake->state[on] == FINISHED || (ahead && fake->state[on] == SUBMITTED));
    }
    fake->state[number] = SUBMITTED;
    fake->last[op->lane] = number;
    fake->in_flight[fake->in_flight_count++] = number;
    fake->submitted++;
    assert_true(++fake->lane_count[op->lane] <= engine->depth[op->lane]);
    fake->deepest[op->lane] = MAX(fake->deepest[op->lane], fake->lane_count[op->lane]);
}

/* Whether a real lane could finish this one now: the oldest of a lane that keeps its order. */
static bool may_finish(const struct fake *fake, uint32_t i)
{
    uint8_t lane = fake->plan->ops[fake->in_flight[i]].lane;
    for (uint32_t j = 0; j < i && fake->engine.in_order[lane]; j++)
        if (fake->plan->ops[fake->in_flight[j]].lane == lane)
            return false;
    return true;
}

static uint32_t pick(struct fake *fake)
{
    uint32_t candidates[256], count = 0;
    for (uint32_t i = 0; i < fake->in_flight_count; i++)
        if (may_finish(fake, i))
            candidates[count++] = i;
    assert_true(count > 0);
    uint32_t random = (uint32_t)rng_below(fake->seed, RNG_STREAM_SAMPLE, fake->draws++, count);
    if (fake->order == NEWEST)
        return candidates[count - 1];
    if (fake->order == RANDOM)
        return candidates[random];
    for (uint32_t i = 0; i < count; i++) {
        uint32_t c = candidates[(random + i) % count];
        if (fake->plan->ops[fake->in_flight[c]].lane != fake->order - STARVE)
            return c;
    }
    return candidates[random];
}

static uint32_t fake_reap(struct engine *engine, struct engine_completion *completions,
                          uint32_t max)
{
    struct fake *fake = (struct fake *)engine;
    assert_true(fake->in_flight_count > 0 && max > 0);
    /* Now and then several at once. */
    uint32_t wanted =
        1 + (uint32_t)rng_below(fake->seed, RNG_STREAM_SAMPLE, fake->draws++, 8) / 5 * 3;
    uint32_t count = 0;
    while (count < MIN(wanted, max) && fake->in_flight_count) {
        uint32_t i = pick(fake), number = fake->in_flight[i];
        fake->in_flight_count--;
        memmove(fake->in_flight + i, fake->in_flight + i + 1,
                (fake->in_flight_count - i) * sizeof(*fake->in_flight));
        fake->state[number] = FINISHED;
        fake->lane_count[fake->plan->ops[number].lane]--;
        fake->clock_ns += 10;
        completions[count++] =
            (struct engine_completion){number, fake->clock_ns - 10, fake->clock_ns};
    }
    return count;
}

static uint64_t fake_now(struct engine *engine)
{
    return ((struct fake *)engine)->clock_ns;
}

enum lanes { PLAIN, DRIVES_IN_ORDER, CHAINED, LANES_COUNT };

static void run_fake(const struct plan *plan, enum order order, uint32_t depth, enum lanes lanes,
                     uint64_t seed)
{
    struct fake fake = {
        .engine = {.begin = fake_begin,
                   .submit = fake_submit,
                   .reap = fake_reap,
                   .now_ns = fake_now},
        .plan = plan,
        .order = order,
        .seed = seed,
        .state = mem_alloc(plan->op_count, 1),
        .in_flight = mem_alloc(plan->op_count, sizeof(uint32_t)),
    };
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        bool drive = lane == LANE_SSD_READ || lane == LANE_SSD_WRITE;
        fake.engine.depth[lane] = depth;
        fake.engine.in_order[lane] = !drive || lanes == DRIVES_IN_ORDER;
        fake.engine.chained[lane] =
            lanes == CHAINED && (lane == LANE_COMPUTE || lane == LANE_H2D || lane == LANE_D2H);
        fake.last[lane] = PLAN_NONE;
    }
    struct sched sched;
    struct sched_result result;
    struct plan_totals totals;
    sched_init(&sched, plan->op_count);
    sched_run(&sched, plan, &fake.engine, NULL, &result);
    assert_int_equal(fake.submitted, plan->op_count);
    assert_int_equal(fake.in_flight_count, 0);
    plan_total(plan, &totals);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        assert_int_equal(result.bytes[lane],
                         totals.bytes[PHASE_FORWARD][lane] + totals.bytes[PHASE_BACKWARD][lane]);
    }
    /* The lane that keeps its order is fed ahead: its ops may wait for one another in its queue. */
    if (depth <= 4)
        assert_int_equal(fake.deepest[LANE_COMPUTE], depth);
    if (lanes != CHAINED)
        assert_int_equal(fake.chained_count, 0);
    else if (plan->memory->separate_device && depth > 1)
        assert_true(fake.chained_count > 0);
    assert_int_equal(result.commit_bytes, totals.commit_bytes);
    assert_int_equal(result.flops, totals.flops[PHASE_FORWARD] + totals.flops[PHASE_BACKWARD]);
    assert_int_equal(result.end_ns - result.start_ns, (uint64_t)plan->op_count * 10);
    assert_true(result.backward_start_ns < result.end_ns);
    sched_deinit(&sched);
    mem_free(fake.state);
    mem_free(fake.in_flight);
}

static void test_orders(void **state)
{
    (void)state;
    static const uint32_t depths[] = {1, 2, 4, 32};
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        struct example e;
        example_open(&e, i);
        for (uint32_t order = 0; order < ORDER_COUNT; order++)
            for (size_t d = 0; d < ARRAY_COUNT(depths); d++)
                for (int lanes = 0; lanes < LANES_COUNT; lanes++)
                    run_fake(&e.plan, (enum order)order, depths[d], (enum lanes)lanes, 1 + d);
        for (uint64_t seed = 0; seed < 60; seed++)
            run_fake(&e.plan, RANDOM, 8, (enum lanes)(seed % LANES_COUNT), seed);
        example_close(&e);
    }
}

/* ---- The model engine -------------------------------------------------------------------------
 */

/* A machine on which nothing is shared, and how its lanes are stretched. */
struct machine {
    struct profile profile;
    double stretch[LANE_COUNT];
};

static uint64_t simulate(const struct plan *plan, const struct machine *machine,
                         struct sched_result *result)
{
    static struct engine_model model;
    struct sched sched;
    engine_model_init(&model, &machine->profile);
    memcpy(model.stretch, machine->stretch, sizeof(model.stretch));
    sched_init(&sched, plan->op_count);
    sched_run(&sched, plan, &model.engine, NULL, result);
    sched_deinit(&sched);
    uint64_t ns = result->end_ns - result->start_ns;
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        assert_true(result->busy_ns[lane] <= ns);
    return ns;
}

/* Every lane has a tenth of a second's work: none hides behind another. */
static void balanced_machine(struct machine *machine, const struct plan *plan)
{
    struct profile *profile = &machine->profile;
    double work_s[LANE_COUNT] = {0};
    profile_init(profile, 1);
    profile->device.is_cpu = false;
    profile->cpu.cores = 64;
    profile->ram.bytes_per_s = 1e15;
    profile->device.launch_s = profile->cpu.launch_s = 0;
    profile->ssd.mixed_read_bytes_per_s = profile->ssd.read_bytes_per_s;
    profile->ssd.mixed_write_bytes_per_s = profile->ssd.write_bytes_per_s;
    profile->device.h2d_both_bytes_per_s = profile->device.h2d_bytes_per_s;
    profile->device.d2h_both_bytes_per_s = profile->device.d2h_bytes_per_s;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        struct cost cost;
        cost_of(&cost, profile, plan, &plan->ops[o]);
        work_s[plan->ops[o].lane] += cost.work_s;
    }
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        machine->stretch[lane] = work_s[lane] > 0 ? 0.1 / work_s[lane] : 1;
}

static void test_model_is_deterministic(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        struct example e;
        struct machine machine;
        struct sched_result first, second;
        example_open(&e, i);
        balanced_machine(&machine, &e.plan);
        simulate(&e.plan, &machine, &first);
        simulate(&e.plan, &machine, &second);
        assert_memory_equal(&first, &second, sizeof(first));
        /* All lanes hidden behind one another, or none of them behind another. */
        assert_true(first.end_ns > 100000000 && first.end_ns < 700000000);
        example_close(&e);
    }
}

static void test_longer_is_not_shorter(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(examples); i++) {
        struct example e;
        struct machine machine;
        struct sched_result result;
        example_open(&e, i);
        balanced_machine(&machine, &e.plan);
        uint64_t before = simulate(&e.plan, &machine, &result), longer = 0;
        for (uint32_t o = 0; o < e.plan.op_count; o += 2) {
            struct plan_op *op = &e.plan.ops[o], kept = *op;
            uint64_t factor = 1 + rng_below(5, RNG_STREAM_SAMPLE, o, 400);
            op->bytes = (op->bytes + 4096) * factor;
            op->flops = (op->flops + 4096) * factor;
            uint64_t ns = simulate(&e.plan, &machine, &result);
            assert_true(ns >= before);
            longer += ns > before;
            *op = kept;
        }
        assert_true(longer > 50);
        for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
            double kept = machine.stretch[lane];
            for (int step = 0; step < 8; step++) {
                uint64_t faster = simulate(&e.plan, &machine, &result);
                machine.stretch[lane] /= 0.7;
                assert_true(simulate(&e.plan, &machine, &result) >= faster);
            }
            machine.stretch[lane] = kept;
        }
        example_close(&e);
    }
}

/* With one lane slower than all others together, the step takes that lane's time and little more.
 */
static void test_model_follows_its_profile(void **state)
{
    (void)state;
    struct example e;
    struct machine machine;
    struct sched_result result;
    example_open(&e, 1);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        balanced_machine(&machine, &e.plan);
        machine.stretch[lane] *= 100; /* 10 s on this lane, 0.1 s on each of the others */
        double seconds = (double)simulate(&e.plan, &machine, &result) / 1e9;
        assert_true(seconds >= 9.9 && seconds <= 10.7);
        assert_true((double)result.busy_ns[lane] / 1e9 >= 9.9);
    }
    example_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_model_is_deterministic),
        cmocka_unit_test(test_longer_is_not_shorter),
        cmocka_unit_test(test_model_follows_its_profile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
