/*
 * Properties of costs: an op that has work takes time, one that has none takes none but its launch,
 * and every cost is a finite number that is not negative; a cost scales with the machine; several
 * devices and drives share what they share and no more; the ops of a coarse plan cost what those of
 * the plan at chunk level do, added up by kind: work, RAM traffic and bytes.
 * Method: plans of many random placements, op by op and added up.
 */
#include "core/mem.h"
#include "offload/coarse.h"
#include "offload/cost.h"
#include "tests/shared/check.h"
#include "tests/shared/choices.h"

#include <math.h>
#include <string.h>

struct sums {
    double work_s[OP_KIND_COUNT], launch_s[OP_KIND_COUNT], ram_bytes[OP_KIND_COUNT];
    uint64_t bytes[OP_KIND_COUNT];
    uint32_t ops;
};

static bool has_work(const struct plan_op *op)
{
    switch ((enum plan_op_kind)op->kind) {
    case OP_COMMIT:
    case OP_CLIP:
    case OP_CHECK:
    case OP_CHECK_UPDATES:
        return false;
    default:
        return op->lane == LANE_COMPUTE || op->bytes > 0;
    }
}

static void check_cost(const struct plan_op *op, const struct cost *cost,
                       const struct profile *profile)
{
    assert_true(isfinite(cost->work_s) && cost->work_s >= 0);
    assert_true(isfinite(cost->ram_bytes) && cost->ram_bytes >= 0);
    assert_true(cost->latency_s >= 0 && cost->launch_s >= 0);
    assert_true(cost->cores >= 0 && cost->cores <= profile->cpu.cores);
    if (has_work(op) && cost->work_s <= 0)
        fail_msg("%s takes no time", plan_op_name[op->kind]);
    if (!has_work(op) && cost->work_s > 0)
        fail_msg("%s takes %g s for nothing", plan_op_name[op->kind], cost->work_s);
    bool device = op->lane == LANE_COMPUTE || op->lane == LANE_H2D || op->lane == LANE_D2H;
    bool cores = op->lane == LANE_CPU || (device && profile->device.is_cpu);
    assert_true((cost->cores > 0) == cores);
}

static void add_up(struct sums *sums, const struct place *place, const struct profile *profile)
{
    struct plan_memory memory;
    struct plan plan;
    struct plan_request request = {.update = !place->immediate, .forward = true, .backward = true};
    *sums = (struct sums){0};
    plan_memory_init(&memory, place);
    plan_build(&plan, place, &memory, &request);
    for (uint32_t o = 0; o < plan.op_count; o++) {
        const struct plan_op *op = &plan.ops[o];
        struct cost cost;
        cost_of(&cost, profile, &plan, op);
        check_cost(op, &cost, profile);
        sums->work_s[op->kind] += cost.work_s;
        sums->launch_s[op->kind] += cost.launch_s;
        sums->ram_bytes[op->kind] += cost.ram_bytes;
        sums->bytes[op->kind] += op->bytes;
    }
    sums->ops = plan.op_count;
    plan_deinit(&plan);
    plan_memory_deinit(&memory);
}

/* ---- Layer level and chunk level --------------------------------------------------------------
 */

static void close_to(const char *what, uint32_t kind, double coarse, double fine, double tolerance,
                     double extra, const struct place_choice *choice)
{
    char text[CHOICES_TEXT_MAX];
    if (fabs(coarse - fine) > tolerance * fine + extra + 1e-12)
        fail_msg("%s of %s: %.9g at layer level, %.9g at chunk level; %s", what, plan_op_name[kind],
                 coarse, fine, choices_text(choice, text));
}

/* Of what a step copies back, a chunk's: sums of squares, and the word that says whether its update
 * was finite. */
#define CHUNK_BYTES (PLAN_SQUARES_PER_CHUNK * sizeof(double) + sizeof(uint32_t))
/* An op of a part of its chunks counts as that part of them, by bytes. */
#define LAUNCHES 0.05

static void compare(const char *name, uint64_t chunk, const char *machine, double ram_gib,
                    enum precision precision, bool clip, uint32_t draws)
{
    struct tiny_model model;
    struct profile profile;
    struct place_spec spec;
    struct place init, layers_place, chunks_place;
    struct place_choice choice;
    struct coarse coarse;
    choices_model(&model, name, chunk, 4 * chunk);
    choices_machine(&profile, machine);
    choices_spec(&spec, &model, &profile, 32, 2, 2);
    spec.ram_budget = GIB + (uint64_t)(ram_gib * (double)GIB);
    spec.precision = precision;
    spec.clip = clip;
    coarse_init(&coarse, &model.layout);
    place_init(&init, &spec);
    for (uint64_t seed = 0; seed < draws; seed++) {
        struct sums at_layers, at_chunks;
        choices_random(&init, seed, &choice);
        coarse_place(&coarse, &init, &choice, &layers_place);
        place_init(&chunks_place, &spec);
        place_apply(&chunks_place, &choice);
        add_up(&at_layers, &layers_place, &profile);
        add_up(&at_chunks, &chunks_place, &profile);
        assert_true(at_layers.ops <= at_chunks.ops || model.layout.chunk_count < 100);
        for (uint32_t k = 0; k < OP_KIND_COUNT; k++) {
            double bytes = k == OP_COPY_D2H ? (double)model.layout.chunk_count * CHUNK_BYTES : 0;
            close_to("work", k, at_layers.work_s[k], at_chunks.work_s[k], 1e-9,
                     bytes / profile.device.d2h_bytes_per_s, &choice);
            close_to("RAM", k, at_layers.ram_bytes[k], at_chunks.ram_bytes[k], 1e-9, 2 * bytes,
                     &choice);
            if (k != OP_READ && k != OP_WRITE)
                close_to("launches", k, at_layers.launch_s[k], at_chunks.launch_s[k], LAUNCHES, 0,
                         &choice);
        }
        place_deinit(&layers_place);
        place_deinit(&chunks_place);
    }
    coarse_deinit(&coarse);
    tiny_model_deinit(&model);
}

static void test_levels_agree(void **state)
{
    (void)state;
    compare("gpt2-124m", 65536, "cpu", 1.2, PRECISION_BF16, true, 30);
    compare("gpt2-124m", 65536, "cpu", 1.2, PRECISION_FP32, true, 30);
    compare("gpt2-124m", 65536, "rtx3060-7950x3d-128", 1, PRECISION_BF16, true, 30);
    compare("gpt2-124m", 65536, "rtx3060-7950x3d-128", 1, PRECISION_FP32, false, 30);
    compare("qwen-1.5b", 0, "rtx3060-7950x3d-128", 8, PRECISION_BF16, true, 8);
    compare("llama-8b", 0, "rtx3060-7950x3d-128", 60, PRECISION_BF16, true, 3);
    compare("llama-8b", 0, "cpu", 60, PRECISION_BF16, true, 3);
}

/* ---- Machines ---------------------------------------------------------------------------------
 */

struct example {
    struct tiny_model model;
    struct profile profile;
    struct place place;
};

static void example_open(struct example *e, const char *machine, enum precision precision)
{
    struct place_spec spec;
    struct place_choice choice;
    struct place init;
    choices_model(&e->model, "gpt2-124m", 0, 0);
    choices_machine(&e->profile, machine);
    choices_spec(&spec, &e->model, &e->profile, 256, 2, 2);
    spec.ram_budget = 2 * GIB;
    spec.precision = precision;
    place_init(&init, &spec);
    choices_random(&init, 1, &choice);
    place_init(&e->place, &spec);
    place_apply(&e->place, &choice);
}

static void example_close(struct example *e)
{
    place_deinit(&e->place);
    tiny_model_deinit(&e->model);
}

/* Everything of a machine twice as fast costs half, bytes stay. */
static void test_scale(void **state)
{
    (void)state;
    static const char *const machines[] = {"cpu", "rtx3060-7950x3d-128", "rtx3090x2-7950x3d-192"};
    for (size_t i = 0; i < ARRAY_COUNT(machines); i++)
        for (int precision = PRECISION_FP32; precision <= PRECISION_BF16; precision++) {
            struct example e;
            struct sums once, twice;
            example_open(&e, machines[i], (enum precision)precision);
            struct profile fast = e.profile;
            profile_scale(&fast, 2);
            add_up(&once, &e.place, &e.profile);
            add_up(&twice, &e.place, &fast);
            for (uint32_t k = 0; k < OP_KIND_COUNT; k++) {
                assert_true(fabs(once.work_s[k] - 2 * twice.work_s[k]) <= 1e-12 * once.work_s[k]);
                assert_true(once.ram_bytes[k] == twice.ram_bytes[k]);
            }
            example_close(&e);
        }
}

/* Two devices: a copy passes RAM twice, the update reads two gradients; links and devices are each
 * one's own. Two drives: half the time. */
static void test_several(void **state)
{
    (void)state;
    struct example e;
    struct sums one, two;
    example_open(&e, "rtx3060-7950x3d-128", PRECISION_BF16);
    struct profile more = e.profile;
    more.device.count = 2;
    more.ssd.count = 2 * e.profile.ssd.count;
    add_up(&one, &e.place, &e.profile);
    add_up(&two, &e.place, &more);
    assert_true(one.work_s[OP_COPY_H2D] == two.work_s[OP_COPY_H2D]);
    assert_true(2 * one.ram_bytes[OP_COPY_H2D] == two.ram_bytes[OP_COPY_H2D]);
    assert_true(one.work_s[OP_BLOCK_FORWARD] == two.work_s[OP_BLOCK_FORWARD]);
    double gradients = 0; /* of what is updated in RAM */
    for (uint32_t c = 0; c < e.model.layout.chunk_count; c++)
        gradients += (double)place_host_count(&e.place, c) * 2;
    assert_true(fabs(two.ram_bytes[OP_UPDATE] - one.ram_bytes[OP_UPDATE] - gradients) < 1);
    assert_true(two.work_s[OP_UPDATE] > one.work_s[OP_UPDATE]);
    assert_true(fabs(one.work_s[OP_READ] - 2 * two.work_s[OP_READ]) <= 1e-12 * one.work_s[OP_READ]);
    assert_true(one.ram_bytes[OP_READ] == two.ram_bytes[OP_READ]);
    example_close(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_levels_agree),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_several),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
