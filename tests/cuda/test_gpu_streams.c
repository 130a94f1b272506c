/*
 * Property: the streams of the card are ordered by the plan's edges, whatever order they run in:
 * the same bits from every seed of the emulation's scheduler, and, in the checked flavour, no
 * access of a kernel, a copy or the host that is not ordered after what it needs. Nothing of the
 * card is taken after its memory was opened; each call for an event that fails ends the program
 * with the call, the op and the error. Method: steps of a model of one layer in the least memory,
 * so that every ring turns over, through sched, engine_real and gpu.c; the updates are the host's,
 * or the state is streamed through the card for them.
 */
#include "core/rng.h"
#include "io/ring.h"
#include "offload/engine_real.h"
#include "offload/gpu.h"
#include "offload/sched.h"
#include "offload/state.h"
#include "tests/cuda/emulation/emulation.h"
#include "tests/shared/check.h"
#include "tests/shared/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SEEDS (emulation_is_checked ? 100u : 20u) /* of each case */

extern const struct gpu_plugin spillway_gpu_plugin;

/* What streams have to do with: copies of activations or none, one micro-batch or two. */
struct stream_case {
    uint32_t vocab, layers, accum, prefetch;
    enum place_recompute recompute;
    bool update; /* without one, nothing holds the card up */
    bool streamed;
    bool plenty; /* of memory: the head's passes are one */
};
static const struct stream_case cases[] = {
    {48, 3, 1, 2, RECOMPUTE_NONE, false, false, false},
    {48, 3, 1, 1, RECOMPUTE_ALL, true, false, false},
    {48, 3, 1, 1, RECOMPUTE_NONE, true, false, false},
    {70, 2, 2, 1, RECOMPUTE_AUTO, true, false, false},
    {70, 2, 2, 1, RECOMPUTE_AUTO, true, false, true},
    {48, 3, 1, 1, RECOMPUTE_NONE, true, true, false},
};
/* Two of them that compute the same. */
#define IN_PASSES 3
#define AT_ONCE   4

/* Tokens, and gradients of the step before. */
static void load(struct tiny_box *box)
{
    for (uint32_t c = 0; c < box->model->layout.chunk_count; c++) {
        uint32_t cell = box->memory.gradient_ram[c].first;
        memset(exec_cell(&box->exec, cell), 0x3b, box->memory.cells[cell].bytes);
    }
    tiny_box_load_tokens(box, 7, 0);
}

struct outcome {
    double loss, norm;
    uint8_t *state; /* owned */
};

struct walk {
    struct tiny_model model;
    struct tiny_box box;
    struct plan plan;
    struct sched sched;
    struct engine_real *real;
};

static void choose(struct place_spec *spec, const struct tiny_model *model,
                   const struct stream_case *c)
{
    tiny_spec(spec, model);
    spec->precision = PRECISION_BF16;
    spec->seq = 8;
    spec->batch = 1;
    spec->accum = c->accum;
    spec->recompute = c->recompute;
    spec->nvme = false;
    spec->ram_budget = GIB;
    spec->prefetch = c->prefetch;
    tiny_spec_set_card(spec, &spillway_gpu_plugin);
    if (c->streamed || c->plenty)
        spec->resident_planes = PLANE_COUNT;
    if (c->plenty)
        spec->update = UPDATE_CPU;
    else
        tiny_spec_shrink(spec);
    if (!c->streamed)
        return;
    spec->update = UPDATE_DEVICE;
    spec->vram_budget += 320 * KIB; /* for the stages, and the flags of updates */
    spec->ram_budget += 64 * KIB;
}

static void walk_open(struct walk *w, const struct stream_case *c)
{
    static uint32_t created; /* a bit for each number of layers, whose state files differ */
    const struct plan_request request = {.update = c->update, .forward = true, .backward = true};
    struct place_spec spec;
    struct err err;
    char name[32];
    *w = (struct walk){0};
    tiny_model_init(&w->model, c->layers, 32, c->vocab, 2048, 1024);
    choose(&spec, &w->model, c);
    snprintf(name, sizeof(name), "streams-%u", c->layers);
    tiny_box_open_on(&w->box, &w->model, &spec, name, !(created >> c->layers & 1),
                     &spillway_gpu_plugin);
    created |= 1u << c->layers;
    assert_true((place_streamed_count(&w->box.place, 0) > 0) == c->streamed);
    plan_build(&w->plan, &w->box.place, &w->box.memory, &request);
    sched_init(&w->sched, w->plan.op_count);
    if (engine_real_open(&w->real, &w->box.exec, w->box.ring, 4, &err) != 0)
        fail_msg("%s", err.message);
    engine_real_reserve(w->real, w->plan.op_count);
}

static void walk_step(struct walk *w, struct outcome *outcome)
{
    struct exec *exec = &w->box.exec;
    struct sched_result result;
    struct err err;
    if (state_create(exec, w->box.ring, &w->model.tensors, 4, NULL, &err) != 0)
        fail_msg("%s", err.message);
    load(&w->box);
    optim_step_init(&exec->step, &tiny_optim, 0, 0.25f);
    sched_run(&w->sched, &w->plan, engine_real_engine(w->real), NULL, &result);
    outcome->loss = exec_loss(exec);
    outcome->norm = exec->gradient_norm;
    for (enum plan_lane lane = LANE_COMPUTE; lane <= LANE_D2H; lane++)
        assert_true(result.busy_ns[lane] <= result.end_ns - result.start_ns);
    outcome->state = tiny_box_state(&w->box);
}

static void walk_close(struct walk *w)
{
    engine_real_close(w->real);
    sched_deinit(&w->sched);
    plan_deinit(&w->plan);
    tiny_box_close(&w->box);
    tiny_model_deinit(&w->model);
}

static void compute(struct walk *w, uint64_t seed, struct outcome *outcome)
{
    emulation_reset(seed);
    walk_step(w, outcome);
    if (emulation_fault_count() > 0)
        fail_msg("seed %llu: %s", (unsigned long long)seed, emulation_first_fault());
}

static void compare(const struct walk *w, uint64_t seed, const struct outcome *found,
                    const struct outcome *expected)
{
    if (found->loss != expected->loss || found->norm != expected->norm ||
        memcmp(found->state, expected->state, w->model.layout.slot_bytes) != 0)
        fail_msg("seed %llu: loss %.17g, norm %.17g, not %.17g and %.17g", (unsigned long long)seed,
                 found->loss, found->norm, expected->loss, expected->norm);
}

static void check_case(const struct stream_case *c)
{
    struct walk w;
    struct outcome expected = {0}, found;
    emulation_reset(0);
    walk_open(&w, c);
    compute(&w, 0, &expected);
    assert_true(expected.loss > 3 && expected.loss < 5 && expected.norm > 0);
    for (uint64_t seed = 1; seed < SEEDS; seed++) {
        compute(&w, seed, &found);
        compare(&w, seed, &found, &expected);
        mem_free(found.state);
    }
    mem_free(expected.state);
    walk_close(&w);
}

static void test_every_order_gives_the_same_bits(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        check_case(&cases[i]);
}

static void test_head_at_once_has_the_bits_of_its_passes(void **state)
{
    (void)state;
    static const size_t pair[] = {IN_PASSES, AT_ONCE};
    struct outcome outcome[2];
    struct walk w;
    for (int i = 0; i < 2; i++) {
        walk_open(&w, &cases[pair[i]]);
        assert_true(w.model.layout.tile_count > 1);
        assert_int_equal(w.box.place.head_once, i);
        compute(&w, 1, &outcome[i]);
        if (i)
            compare(&w, 1, &outcome[1], &outcome[0]);
        walk_close(&w);
    }
    mem_free(outcome[0].state);
    mem_free(outcome[1].state);
}

/* Functions that take something of the card. */
static const char *const takes[] = {"cudaMalloc", "cudaMallocHost", "cudaHostRegister",
                                    "cudaEventCreateWithFlags", "cudaStreamCreateWithFlags"};

static void test_nothing_is_taken_after_opening(void **state)
{
    (void)state;
    if (!emulation_is_here)
        skip();
    struct walk w;
    struct outcome outcome;
    emulation_reset(1);
    walk_open(&w, &cases[1]);
    uint32_t before[ARRAY_COUNT(takes)];
    for (size_t i = 0; i < ARRAY_COUNT(takes); i++)
        before[i] = emulation_call_count(takes[i]);
    walk_step(&w, &outcome);
    assert_true(emulation_call_count("cudaStreamWaitEvent") > 0);
    for (size_t i = 0; i < ARRAY_COUNT(takes); i++)
        assert_int_equal(emulation_call_count(takes[i]), before[i]);
    /* The workspace and the arena; all of the RAM's arena and nothing else. */
    assert_int_equal(before[0], 2);
    assert_int_equal(before[1], 0);
    assert_int_equal(before[2], 1);
    assert_int_equal(w.box.exec.ram.bytes, round_up(w.box.memory.tier_bytes[TIER_RAM], IO_ALIGN));
    mem_free(outcome.state);
    walk_close(&w);
}

/* ---- Failing calls ----------------------------------------------------------------------------
 */

struct failing {
    const char *name;
    uint32_t call;
};

static void step_and_fail(void *context)
{
    const struct failing *failing = context;
    struct walk w;
    struct outcome outcome;
    emulation_reset(failing->call);
    emulation_set_quiet(true);
    walk_open(&w, &cases[1]);
    emulation_fail_call_of(failing->name, failing->call);
    walk_step(&w, &outcome);
    _exit(0);
}

/* A call of a step that fails; false when there was none so late. */
static bool fails(struct failing *failing)
{
    char *output, call[64];
    snprintf(call, sizeof(call), "the GPU failed in %s", failing->name);
    int status = tiny_fork(step_and_fail, failing, &output);
    assert_true(WIFEXITED(status));
    bool told = strstr(output, call) && strstr(output, "(cudaErrorUnknown)") &&
                strstr(output, "the last commit is intact");
    /* The first two calls, of the plan's base, are of no op. */
    if (failing->call > 2 && WEXITSTATUS(status) != 0)
        told = told && strstr(output, " lane)");
    if (WEXITSTATUS(status) != 0 && (WEXITSTATUS(status) != 1 || !told))
        fail_msg("call %u of %s: status %d: %s", failing->call, failing->name, WEXITSTATUS(status),
                 output);
    free(output);
    return WEXITSTATUS(status) != 0;
}

static void test_failing_calls(void **state)
{
    (void)state;
    static const char *const names[] = {"cudaEventRecord", "cudaStreamWaitEvent",
                                        "cudaEventSynchronize", "cudaEventElapsedTime"};
    if (emulation_is_checked || !emulation_is_here)
        skip();
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct failing failing = {names[i], 1};
        uint32_t failed = 0;
        for (; fails(&failing); failed++)
            failing.call += 1 + failing.call / 2;
        assert_true(failed > 2);
    }
}

/* Of what opening takes, each in turn. */
static void test_failing_to_open(void **state)
{
    (void)state;
    if (!emulation_is_here)
        skip();
    struct tiny_model model;
    struct place_spec spec;
    uint32_t failed = 0;
    tiny_model_init(&model, 2, 32, 48, 2048, 1024);
    choose(&spec, &model, &cases[1]);
    for (uint32_t call = 1;; call += 8) {
        struct gpu_setup setup = {.shape = tiny_shape(&spec), .tensors = &model.tensors};
        struct device *device;
        struct err err;
        uint64_t overhead_bytes;
        emulation_reset(call);
        emulation_fail_call_of("cudaEventCreateWithFlags", call);
        int result = spillway_gpu_plugin.open(&device, &setup, &overhead_bytes, &err);
        device_close(device);
        if (result == 0)
            break;
        assert_non_null(strstr(err.message, "the GPU failed in cudaEventCreateWithFlags"));
        failed++;
    }
    assert_true(failed > 20);
    tiny_model_deinit(&model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_order_gives_the_same_bits),
        cmocka_unit_test(test_head_at_once_has_the_bits_of_its_passes),
        cmocka_unit_test(test_nothing_is_taken_after_opening),
        cmocka_unit_test(test_failing_calls),
        cmocka_unit_test(test_failing_to_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
