/*
 * Properties of the model engine: what ops of different lanes share is divided as engine_model.h
 * says; launches hold their lane and share nothing; latencies overlap the service of what comes
 * next; replayed durations are used as they are; chained lanes wait for work and not for the host;
 * nothing but plan and profile decides; a machine twice as fast takes half the time.
 * Method: plans of a few ops on a machine of round figures, whose times are computed by hand (the
 * comments do it), to the rounding of nanoseconds; a real plan for what must hold of any.
 */
#include "core/mem.h"
#include "core/rng.h"
#include "offload/engine_model.h"
#include "offload/sched.h"
#include "tests/shared/check.h"
#include "tests/shared/choices.h"

#include <string.h>

#define GB        1e9
#define OPS_MAX   16
#define ROUNDING  2 /* ns: each end of an interval is rounded down */
#define UNLIMITED 1e18

/* ---- Plans by hand ----------------------------------------------------------------------------
 */

struct hand {
    struct tiny_model model;
    struct place place;
    struct profile profile;
    struct plan plan;
    struct plan_op ops[OPS_MAX];
    uint32_t waits[OPS_MAX];
};

/* One core; a drive that reads 2 and writes 1 GB/s, together half and three quarters of that; a
 * link of 10 and 5 GB/s, together 5 and 4; RAM without end; checksums and copies of 1 GB/s; no
 * launches and no latencies. */
static void hand_open(struct hand *hand)
{
    struct place_spec spec;
    struct err err;
    struct profile *p = &hand->profile;
    *hand = (struct hand){0};
    tiny_model_init(&hand->model, 2, 64, 300, 8192, 8192);
    tiny_spec(&spec, &hand->model);
    if (place_choose(&hand->place, &spec, &err) != 0)
        fail_msg("%s", err.message);
    profile_init(p, 1);
    p->device.is_cpu = false;
    p->device.h2d_bytes_per_s = 10 * GB;
    p->device.d2h_bytes_per_s = 5 * GB;
    p->device.h2d_both_bytes_per_s = 5 * GB;
    p->device.d2h_both_bytes_per_s = 4 * GB;
    p->device.copy_latency_s = p->device.launch_s = p->cpu.launch_s = 0;
    p->cpu.checksum_bytes_per_s = p->cpu.copy_bytes_per_s = GB;
    p->ram.bytes_per_s = UNLIMITED;
    p->ssd.read_bytes_per_s = 2 * GB;
    p->ssd.write_bytes_per_s = GB;
    p->ssd.mixed_read_bytes_per_s = GB;
    p->ssd.mixed_write_bytes_per_s = 0.75 * GB;
    p->ssd.read_latency_s = p->ssd.write_latency_s = 0;
    hand->plan = (struct plan){
        .place = &hand->place, .ops = hand->ops, .waits = hand->waits, .backward_first = OPS_MAX};
}

static void hand_close(struct hand *hand)
{
    place_deinit(&hand->place);
    tiny_model_deinit(&hand->model);
}

/* An op that waits for op `on`, or for none (PLAN_NONE). Returns its number. */
static uint32_t add(struct hand *hand, enum plan_op_kind kind, double bytes, uint32_t on)
{
    static const enum plan_lane lanes[OP_KIND_COUNT] = {[OP_COPY_H2D] = LANE_H2D,
                                                        [OP_COPY_D2H] = LANE_D2H,
                                                        [OP_READ] = LANE_SSD_READ,
                                                        [OP_WRITE] = LANE_SSD_WRITE,
                                                        [OP_VERIFY] = LANE_CPU};
    struct plan *plan = &hand->plan;
    assert_true(plan->op_count < OPS_MAX);
    struct plan_op *op = &plan->ops[plan->op_count];
    *op = (struct plan_op){.kind = (uint8_t)kind,
                           .lane = (uint8_t)lanes[kind],
                           .micro = PLAN_NONE,
                           .layer = PLAN_NONE,
                           .chunk = PLAN_NONE,
                           .bytes = (uint64_t)bytes,
                           .first_wait = plan->wait_count};
    if (on != PLAN_NONE) {
        plan->waits[plan->wait_count++] = on;
        op->wait_count = 1;
    }
    return plan->op_count++;
}

static uint64_t run(const struct plan *plan, const struct profile *profile,
                    const struct engine_time *replay, struct sched_result *result)
{
    static struct engine_model model;
    struct sched sched;
    struct sched_result ignored;
    result = result ? result : &ignored;
    engine_model_init(&model, profile);
    model.replay = replay;
    sched_init(&sched, plan->op_count);
    sched_run(&sched, plan, &model.engine, NULL, result);
    sched_deinit(&sched);
    return result->end_ns - result->start_ns;
}

static void assert_s(double found_s, double expected_s)
{
    if (found_s < expected_s - ROUNDING / GB || found_s > expected_s + ROUNDING / GB)
        fail_msg("%.9f s, not %.9f", found_s, expected_s);
}

/* The hand's plan takes so long, and two of its lanes are busy so long. */
static void takes(const struct hand *hand, double step_s, enum plan_lane a, double a_s,
                  enum plan_lane b, double b_s)
{
    struct sched_result result;
    assert_s((double)run(&hand->plan, &hand->profile, NULL, &result) / GB, step_s);
    assert_s((double)result.busy_ns[a] / GB, a_s);
    assert_s((double)result.busy_ns[b] / GB, b_s);
}

/* ---- What is shared ---------------------------------------------------------------------------
 */

static void test_cores(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    hand.profile.device.is_cpu = true; /* copies are a core's work */
    add(&hand, OP_VERIFY, GB, PLAN_NONE);
    add(&hand, OP_COPY_H2D, 3 * GB, PLAN_NONE);
    /* Half a core each: the checksum is done after 2 s, the copy has 2 of its 3 s left. */
    takes(&hand, 4, LANE_CPU, 2, LANE_H2D, 4);
    hand.profile.cpu.cores = 2;
    takes(&hand, 3, LANE_CPU, 1, LANE_H2D, 3);
    /* Three threads on two cores: two thirds each until the checksum is done after 1.5 s; the
     * copies then have 2 s left. */
    add(&hand, OP_COPY_D2H, 3 * GB, PLAN_NONE);
    takes(&hand, 3.5, LANE_CPU, 1.5, LANE_D2H, 3.5);
    hand_close(&hand);
}

static void test_drive(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    uint32_t read = add(&hand, OP_READ, 2 * GB, PLAN_NONE);
    add(&hand, OP_WRITE, 3 * GB, PLAN_NONE);
    /* The read at half its speed, the write at three quarters, to their ends. */
    takes(&hand, 4, LANE_SSD_READ, 2, LANE_SSD_WRITE, 4);
    /* And so when their order keeps them apart: the phase has both. */
    hand.ops[1].first_wait = 0;
    hand.ops[1].wait_count = 1;
    hand.waits[0] = read;
    takes(&hand, 6, LANE_SSD_READ, 2, LANE_SSD_WRITE, 4);
    /* Two drives, striped. */
    hand.profile.ssd.count = 2;
    takes(&hand, 3, LANE_SSD_READ, 1, LANE_SSD_WRITE, 2);
    /* In phases of their own each has the drive to itself. */
    hand.plan.backward_first = 1;
    takes(&hand, 2, LANE_SSD_READ, 0.5, LANE_SSD_WRITE, 1.5);
    /* Little of one kind is little trouble: a twentieth of the bytes is a fifth of it. */
    hand.plan.backward_first = OPS_MAX;
    hand.profile.ssd.count = 1;
    hand.ops[1].wait_count = 0;
    hand.ops[1].bytes = (uint64_t)(0.1 * GB);
    takes(&hand, 1.2, LANE_SSD_READ, 1.2, LANE_SSD_WRITE, 0.4 / 3);
    hand_close(&hand);
}

static void test_link(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    add(&hand, OP_COPY_H2D, 10 * GB, PLAN_NONE);
    add(&hand, OP_COPY_D2H, 20 * GB, PLAN_NONE);
    /* In at half speed: 2 s. Out at 0.8: 1.6 of 4 s by then. */
    takes(&hand, 4.4, LANE_H2D, 2, LANE_D2H, 4.4);
    /* The drive does not mind the link. */
    add(&hand, OP_READ, 2 * GB, PLAN_NONE);
    takes(&hand, 4.4, LANE_SSD_READ, 1, LANE_D2H, 4.4);
    hand_close(&hand);
}

static void test_ram_of_equals(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    struct profile *p = &hand.profile;
    /* Each could fill the RAM alone: half of it each. */
    p->ram.bytes_per_s = 2 * GB;
    p->ssd.write_bytes_per_s = p->ssd.mixed_write_bytes_per_s = 2 * GB;
    p->ssd.mixed_read_bytes_per_s = 2 * GB;
    add(&hand, OP_READ, 2 * GB, PLAN_NONE);
    add(&hand, OP_WRITE, 4 * GB, PLAN_NONE);
    takes(&hand, 3, LANE_SSD_READ, 2, LANE_SSD_WRITE, 3);
    hand_close(&hand);
    /* Two ops that wait for RAM 0.6 of their time, a copy moving its bytes twice: 0.5 of the RAM
     * is each one's, at 5/6 of its speed. */
    hand_open(&hand);
    p->device.is_cpu = true;
    p->cpu.cores = 2;
    p->ram.bytes_per_s = 2 * GB;
    p->cpu.checksum_bytes_per_s = 1.2 * GB;
    p->cpu.copy_bytes_per_s = 0.6 * GB;
    add(&hand, OP_VERIFY, 1.2 * GB, PLAN_NONE);
    add(&hand, OP_COPY_H2D, 0.6 * GB, PLAN_NONE);
    takes(&hand, 1.2, LANE_CPU, 1.2, LANE_H2D, 1.2);
    hand_close(&hand);
}

static void test_ram_of_core_and_drive(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    hand.profile.ram.bytes_per_s = 2 * GB;
    hand.profile.cpu.checksum_bytes_per_s = 2 * GB;
    add(&hand, OP_VERIFY, 2 * GB, PLAN_NONE);
    add(&hand, OP_READ, 2 * GB, PLAN_NONE);
    /* 1 / s + 1 / (1 + 16 (s - 1)) = 1 at s = 1.25: the core at 0.8, the drive at 0.2. The checksum
     * ends after 1.25 s, the read has 0.75 s left. */
    takes(&hand, 2, LANE_CPU, 1.25, LANE_SSD_READ, 2);
    hand_close(&hand);
}

/* Whatever is asked of it, RAM carries no more than it can: random ops on all lanes. */
static void test_ram_is_never_oversubscribed(void **state)
{
    (void)state;
    static const enum plan_op_kind kinds[] = {OP_COPY_H2D, OP_COPY_D2H, OP_READ, OP_WRITE,
                                              OP_VERIFY};
    uint32_t close = 0;
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct hand hand;
        double bytes = 0;
        uint64_t draw = 0;
        hand_open(&hand);
        hand.profile.device.is_cpu = seed % 2;
        hand.profile.cpu.cores = 4;
        hand.profile.ssd.mixed_read_bytes_per_s = hand.profile.ssd.read_bytes_per_s;
        hand.profile.ssd.mixed_write_bytes_per_s = hand.profile.ssd.write_bytes_per_s;
        hand.profile.ram.bytes_per_s =
            (1 + (double)rng_below(seed, RNG_STREAM_SAMPLE, draw++, 60)) * GB / 10;
        for (uint32_t i = 0; i < OPS_MAX; i++) {
            uint64_t kind = rng_below(seed, RNG_STREAM_SAMPLE, draw++, ARRAY_COUNT(kinds));
            double size = 1 + (double)rng_below(seed, RNG_STREAM_SAMPLE, draw++, 1000);
            struct cost cost;
            add(&hand, kinds[kind], size * GB / 100, PLAN_NONE);
            cost_of(&cost, &hand.profile, &hand.plan, &hand.ops[i]);
            bytes += cost.ram_bytes;
        }
        double least_s = bytes / hand.profile.ram.bytes_per_s;
        double step_s = (double)run(&hand.plan, &hand.profile, NULL, NULL) / GB;
        if (step_s < least_s * (1 - 1e-9))
            fail_msg("seed %llu: %.9f s, RAM alone needs %.9f", (unsigned long long)seed, step_s,
                     least_s);
        close += step_s < least_s * 1.01;
        hand_close(&hand);
    }
    assert_true(close > 50); /* and where it binds, it is used */
}

/* ---- Launch and latency -----------------------------------------------------------------------
 */

static void test_launch_holds_the_lane(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    hand.profile.cpu.launch_s = 0.25;
    add(&hand, OP_VERIFY, GB, PLAN_NONE);
    add(&hand, OP_VERIFY, GB, PLAN_NONE);
    takes(&hand, 2.5, LANE_CPU, 2.5, LANE_H2D, 0);
    hand.profile.device.is_cpu = true;
    hand.profile.device.launch_s = 0.25;
    hand.profile.cpu.cores = 1;
    hand.plan.op_count = 2;
    add(&hand, OP_COPY_H2D, 3 * GB, PLAN_NONE);
    /* While a checksum is launched, the core is the copy's alone. Both are launched until 0.25 and
     * have half a core each until 2.25, when the copy has done 1 s; alone it has done 1.25 at 2.5,
     * half a core again 2.25 at 4.5, and alone the rest. */
    takes(&hand, 5.25, LANE_CPU, 4.5, LANE_H2D, 5.25);
    hand_close(&hand);
}

static void test_latency_overlaps(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    hand.profile.ssd.read_latency_s = 0.5;
    uint32_t first = add(&hand, OP_READ, 2 * GB, PLAN_NONE);
    add(&hand, OP_READ, 2 * GB, PLAN_NONE);
    /* The second is served from 1 to 2 s and is there at 2.5. */
    takes(&hand, 2.5, LANE_SSD_READ, 2.5, LANE_CPU, 0);
    /* What waits for the first begins when its latency is over: from 1.5 to 2.5 s. */
    add(&hand, OP_VERIFY, GB, first);
    takes(&hand, 2.5, LANE_SSD_READ, 2.5, LANE_CPU, 1);
    add(&hand, OP_VERIFY, GB, first);
    takes(&hand, 3.5, LANE_SSD_READ, 2.5, LANE_CPU, 2);
    hand_close(&hand);
}

static void test_nothing_takes_no_time(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    uint32_t read = add(&hand, OP_READ, 0, PLAN_NONE);
    add(&hand, OP_VERIFY, 0, read);
    takes(&hand, 0, LANE_SSD_READ, 0, LANE_CPU, 0);
    hand_close(&hand);
}

/* ---- Replay -----------------------------------------------------------------------------------
 */

static void test_replay(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    hand.profile.ram.bytes_per_s = 1;
    hand.profile.ssd.read_latency_s = hand.profile.cpu.launch_s = 1000;
    uint32_t read = add(&hand, OP_READ, 2 * GB, PLAN_NONE);
    add(&hand, OP_WRITE, GB, PLAN_NONE);
    add(&hand, OP_VERIFY, GB, read);
    add(&hand, OP_VERIFY, GB, PLAN_NONE);
    static const struct engine_time times[] = {{0, 0.125}, {0, 0.0625}, {0.5, 0}, {2.25, 0}};
    struct sched_result result;
    /* Nothing of the profile counts, and nothing is shared. */
    assert_s((double)run(&hand.plan, &hand.profile, times, &result) / GB, 2.875);
    assert_s((double)result.busy_ns[LANE_SSD_READ] / GB, 0.125);
    assert_s((double)result.busy_ns[LANE_SSD_WRITE] / GB, 0.0625);
    assert_s((double)result.busy_ns[LANE_CPU] / GB, 2.75);
    hand_close(&hand);
}

/* ---- Chained lanes ----------------------------------------------------------------------------
 */

/* Two copies up, of 1 s each; down comes what waits for the first, 1 s too. */
static void add_chain(struct hand *hand)
{
    uint32_t up = add(hand, OP_COPY_H2D, 10 * GB, PLAN_NONE);
    add(hand, OP_COPY_H2D, 10 * GB, PLAN_NONE);
    uint32_t down = add(hand, OP_COPY_D2H, 5 * GB, up);
    add(hand, OP_VERIFY, GB, down);
    hand->profile.device.h2d_both_bytes_per_s = 10 * GB;
    hand->profile.device.d2h_both_bytes_per_s = 5 * GB;
    hand->profile.device.copy_latency_s = 0.25;
}

/* On a card the copy down begins with the second copy up, at 1 s, and the host knows of its end at
 * 2.25 s; where the host is between them, a quarter of a second later. */
static void test_chained(void **state)
{
    (void)state;
    struct hand hand;
    hand_open(&hand);
    add_chain(&hand);
    takes(&hand, 3.25, LANE_D2H, 1.25, LANE_CPU, 1);
    static const struct engine_time times[] = {{1, 0.5}, {2, 0.5}, {1, 0.25}, {1, 0}};
    assert_s((double)run(&hand.plan, &hand.profile, times, NULL) / GB, 3.5);
    hand.profile.device.is_cpu = true;
    hand.profile.cpu.cores = 4;
    assert_s((double)run(&hand.plan, &hand.profile, times, NULL) / GB, 3.75);
    hand_close(&hand);
}

/* What ops took is found again from when they ended, also of those that were handed over while
 * what they wait for was under way; a replay takes as long. */
static void test_chained_times(void **state)
{
    (void)state;
    struct hand hand;
    struct engine_model model;
    struct sched sched;
    struct sched_result result;
    struct engine_time times[4];
    hand_open(&hand);
    add_chain(&hand);
    hand.profile.device.copy_latency_s = 0;
    engine_model_init(&model, &hand.profile);
    sched_init(&sched, hand.plan.op_count);
    sched.times = times;
    sched_run(&sched, &hand.plan, &model.engine, NULL, &result);
    for (size_t i = 0; i < ARRAY_COUNT(times); i++) {
        assert_s(times[i].work_s, 1);
        assert_s(times[i].late_s, 0);
    }
    assert_s((double)run(&hand.plan, &hand.profile, times, NULL) / GB, 3);
    sched_deinit(&sched);
    hand_close(&hand);
}

/* ---- Any plan ---------------------------------------------------------------------------------
 */

static void check_any(const char *machine, enum precision precision, bool clip)
{
    struct tiny_model model;
    struct profile profile, twice;
    struct place_spec spec;
    struct place init, place;
    struct place_choice choice;
    choices_model(&model, "tiny-llama", 2048, 8192);
    choices_machine(&profile, machine);
    choices_spec(&spec, &model, &profile, 16, 2, 2);
    spec.precision = precision;
    spec.clip = clip;
    spec.ram_budget = GIB + 3 * MIB;
    place_init(&init, &spec);
    twice = profile;
    profile_scale(&twice, 2);
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct plan_memory memory;
        struct plan plan;
        struct sched_result first, second;
        struct plan_request request = {.update = clip, .forward = true, .backward = true};
        choices_random(&init, seed, &choice);
        place_init(&place, &spec);
        place_apply(&place, &choice);
        plan_memory_init(&memory, &place);
        plan_build(&plan, &place, &memory, &request);
        uint64_t ns = run(&plan, &profile, NULL, &first);
        run(&plan, &profile, NULL, &second);
        assert_memory_equal(&first, &second, sizeof(first));
        uint64_t half_ns = run(&plan, &twice, NULL, NULL);
        assert_in_range(2 * half_ns, ns - ROUNDING, ns + ROUNDING);
        plan_deinit(&plan);
        plan_memory_deinit(&memory);
        place_deinit(&place);
    }
    tiny_model_deinit(&model);
}

static void test_deterministic_and_scaled(void **state)
{
    (void)state;
    check_any("cpu", PRECISION_FP32, true);
    check_any("cpu", PRECISION_BF16, false);
    check_any("rtx3060-7950x3d-128", PRECISION_BF16, true);
    check_any("rtx4090-13900k-128", PRECISION_FP32, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cores),
        cmocka_unit_test(test_drive),
        cmocka_unit_test(test_link),
        cmocka_unit_test(test_ram_of_equals),
        cmocka_unit_test(test_ram_of_core_and_drive),
        cmocka_unit_test(test_ram_is_never_oversubscribed),
        cmocka_unit_test(test_launch_holds_the_lane),
        cmocka_unit_test(test_latency_overlaps),
        cmocka_unit_test(test_nothing_takes_no_time),
        cmocka_unit_test(test_replay),
        cmocka_unit_test(test_chained),
        cmocka_unit_test(test_chained_times),
        cmocka_unit_test(test_deterministic_and_scaled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
