#include "offload/rehearsal.h"

#include "core/rng.h"
#include "io/ring.h"
#include "offload/engine_model.h"
#include "offload/forecast.h"
#include "offload/run.h"
#include "offload/state.h"

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SEED 1

/* Sign and mantissa of a gradient are noise, its size is 2^-11 to 2^-10. */
#define BF16_NOISE 0x807f807f807f807f
#define BF16_SIZE  0x3a003a003a003a00
#define FP32_NOISE 0x807fffff807fffff
#define FP32_SIZE  0x3a0000003a000000

/* The mathematics is not looked at; weights stay finite. */
static const struct optim_settings optim = {.lr = 1e-4,
                                            .min_lr = 1e-4,
                                            .total_steps = 1000,
                                            .beta1 = 0.9,
                                            .beta2 = 0.95,
                                            .eps = 1e-8,
                                            .weight_decay = 0.1,
                                            .clip = 1};

int rehearsal_plan(struct rehearsal *r, const struct place_spec *given, struct err *err)
{
    static const struct plan_request first = {.forward = true, .backward = true};
    static const struct plan_request steady = {.update = true, .forward = true, .backward = true};
    struct place_spec spec = *given;
    ASSERT(spec.profile && spec.vram_budget && spec.clip);
    *r = (struct rehearsal){0};
    struct mem_usage usage;
    mem_usage_read(&usage);
    spec.overhead_bytes =
        usage.rss_bytes + usage.page_table_bytes +
        forecast_overhead_bytes(spec.layout, spec.config->layers, spec.accum, false);
    int result = place_choose(&r->place, &spec, err);
    if (result == 0)
        result = run_check_machine(&r->place, 0, err);
    if (result)
        return result;
    plan_memory_init(&r->memory, &r->place);
    plan_build(&r->first, &r->place, &r->memory, &first);
    plan_build(&r->steady, &r->place, &r->memory, &steady);
    sched_init(&r->sched, MAX(r->first.op_count, r->steady.op_count));
    result = plan_check(&r->first, err);
    return result ? result : plan_check(&r->steady, err);
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* A signal that came between the making of a file and the removal of its name would leave the file
 * behind; it waits. No other thread of ours is there yet that could take it. */
static int open_tier(struct rehearsal *r, const char *nvme_dir, struct err *err)
{
    char name[64], path[FILE_PATH_MAX];
    sigset_t all, before;
    snprintf(name, sizeof(name), "spillway-bench-%ld.state", (long)getpid());
    int result = file_check_tier(nvme_dir, err);
    if (result == 0)
        result = file_join(path, nvme_dir, name, err);
    if (result)
        return result;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    struct stripe_files files;
    result = stripe_files_one(&files, path, err);
    if (result == 0)
        result = tier_open(&r->tier, r->place.spec.layout, &r->memory, &files, true, err);
    unlink(path);
    sigprocmask(SIG_SETMASK, &before, NULL);
    return result;
}

static void fill_cell(const struct rehearsal *r, uint32_t cell)
{
    bool bf16 = r->place.spec.precision == PRECISION_BF16;
    uint64_t noise = bf16 ? BF16_NOISE : FP32_NOISE, size = bf16 ? BF16_SIZE : FP32_SIZE;
    uint64_t words = r->memory.cells[cell].bytes / sizeof(uint64_t);
    uint64_t *to = words ? exec_cell(&r->exec, cell) : NULL;
    for (uint64_t i = 0; i < words; i++)
        to[i] = (rng_u64(SEED + cell, RNG_STREAM_SAMPLE, i) & noise) | size;
}

static void fill_cells(const struct rehearsal *r, struct plan_cells cells)
{
    for (uint32_t c = 0; c < cells.count; c++)
        fill_cell(r, cells.first + c);
}

/* Gradients that wait in RAM, and the stages through which the others go. */
static void fill_gradients(const struct rehearsal *r)
{
    for (uint32_t c = 0; c < r->place.spec.layout->chunk_count; c++)
        fill_cells(r, r->memory.gradient_ram[c]);
    fill_cells(r, r->memory.gradient_stage);
}

static uint32_t drive_depth(const struct rehearsal *r)
{
    return engine_drive_depth(r->place.spec.profile->ssd.queue_depth, 1);
}

static int open_memory(struct rehearsal *r, const struct tensors *tensors, struct err *err)
{
    r->exec = (struct exec){
        .place = &r->place,
        .memory = &r->memory,
        .layout = r->place.spec.layout,
        .cpu_pool = r->pool,
        .tier = &r->tier,
        .committed_step = UINT64_MAX,
        .device_modelled = true,
    };
    int result = ring_open(&r->ring, 4 * drive_depth(r), err);
    if (result == 0)
        result = exec_open(&r->exec, tensors, err);
    if (result == 0)
        result = ring_register(r->ring, &r->exec.ram, 1, err);
    if (result == 0)
        tier_register(&r->tier, r->ring);
    return result;
}

static int open_engine(struct rehearsal *r, struct err *err)
{
    const struct engine_mixed_setup setup = {
        .exec = &r->exec,
        .ring = r->ring,
        .profile = r->place.spec.profile,
        .drive_depth = drive_depth(r),
        .op_max = r->sched.op_max,
        .modelled = {[LANE_COMPUTE] = true, [LANE_H2D] = true, [LANE_D2H] = true},
    };
    return engine_mixed_open(&r->mixed, &setup, err);
}

int rehearsal_open(struct rehearsal *r, const struct tensors *tensors, const char *nvme_dir,
                   uint32_t threads, struct err *err)
{
    struct sched_result ignored;
    int result = open_tier(r, nvme_dir, err);
    if (result == 0)
        result = pool_open(&r->pool, "cpu", threads, false, err);
    if (result == 0)
        result = open_memory(r, tensors, err);
    if (result == 0)
        result = open_engine(r, err);
    if (result == 0)
        result = state_create(&r->exec, r->ring, tensors, SEED, NULL, err);
    if (result)
        return result;
    fill_gradients(r);
    sched_run(&r->sched, &r->first, engine_mixed_engine(r->mixed), NULL, &ignored);
    return 0;
}

/* ---- Steps ----------------------------------------------------------------------------------- */

void rehearsal_step(struct rehearsal *r, struct sched_result *result)
{
    ASSERT(r->mixed);
    optim_step_init(&r->exec.step, &optim, r->done++, 1);
    sched_run(&r->sched, &r->steady, engine_mixed_engine(r->mixed), NULL, result);
}

void rehearsal_predict(struct rehearsal *r, const double *stretch, struct sched_result *result)
{
    struct engine_model model;
    engine_model_init(&model, r->place.spec.profile);
    if (stretch)
        memcpy(model.stretch, stretch, sizeof(model.stretch));
    sched_run(&r->sched, &r->steady, &model.engine, NULL, result);
}

void rehearsal_close(struct rehearsal *r)
{
    engine_mixed_close(r->mixed);
    ring_close(r->ring);
    exec_close(&r->exec);
    tier_close(&r->tier);
    pool_close(r->pool);
    plan_deinit(&r->first);
    plan_deinit(&r->steady);
    plan_memory_deinit(&r->memory);
    sched_deinit(&r->sched);
    place_deinit(&r->place);
    *r = (struct rehearsal){0};
}
