/*
 * Invariants:
 * 1. The model's clock is the real one since opening, and is moved to it before anything is
 *    submitted or taken. So an op that waits in a modelled lane begins when the one ahead of it
 *    ends, not when the scheduler has woken up: what waking takes does not add up along a lane.
 * 2. A modelled op is taken when its end has passed, so a completion never lies ahead of the clock.
 */
#include "offload/engine_mixed.h"

#include "core/clock.h"
#include "io/ring.h"
#include "offload/engine_model.h"
#include "offload/engine_real.h"

#include <math.h>

struct engine_mixed {
    struct engine engine; /* first: the scheduler's pointer is ours */
    bool modelled[LANE_COUNT];
    struct engine_real *real; /* owned */
    struct engine_model model;
    const struct plan *plan;
    uint64_t base_ns; /* the model's time 0 */
};

static void pass(struct engine_mixed *mixed)
{
    engine_model_pass(&mixed->model, (double)(clock_ns() - mixed->base_ns) / 1e9);
}

static void begin(struct engine *engine, const struct plan *plan)
{
    struct engine_mixed *mixed = (struct engine_mixed *)engine;
    struct engine *real = engine_real_engine(mixed->real), *model = &mixed->model.engine;
    mixed->plan = plan;
    real->begin(real, plan);
    model->begin(model, plan);
}

static void submit(struct engine *engine, uint32_t op)
{
    struct engine_mixed *mixed = (struct engine_mixed *)engine;
    struct engine *real = engine_real_engine(mixed->real), *model = &mixed->model.engine;
    if (!mixed->modelled[mixed->plan->ops[op].lane]) {
        real->submit(real, op);
        return;
    }
    pass(mixed);
    model->submit(model, op);
}

static uint32_t take_modelled(struct engine_mixed *mixed, struct engine_completion *completions,
                              uint32_t max)
{
    uint32_t count = 0;
    pass(mixed);
    while (count < max && engine_model_take(&mixed->model, &completions[count])) {
        completions[count].start_ns += mixed->base_ns;
        completions[count].end_ns += mixed->base_ns;
        count++;
    }
    return count;
}

/* The clock's time at which something can be taken of the model, rounded up. */
static uint64_t next_ns(const struct engine_mixed *mixed)
{
    double next_s = engine_model_next_s(&mixed->model);
    return next_s == INFINITY ? UINT64_MAX : mixed->base_ns + (uint64_t)ceil(next_s * 1e9);
}

static uint32_t reap(struct engine *engine, struct engine_completion *completions, uint32_t max)
{
    struct engine_mixed *mixed = (struct engine_mixed *)engine;
    ASSERT(max > 0);
    for (;;) {
        uint32_t count = take_modelled(mixed, completions, max);
        uint64_t deadline_ns = count ? 0 : next_ns(mixed);
        if (count < max)
            count += engine_real_reap(mixed->real, completions + count, max - count, deadline_ns);
        if (count)
            return count;
    }
}

static uint64_t now_ns(struct engine *engine)
{
    (void)engine;
    return clock_ns();
}

static void check_setup(const struct engine_mixed_setup *setup)
{
    const bool *modelled = setup->modelled;
    ASSERT(modelled[LANE_CPU] || (!modelled[LANE_SSD_READ] && !modelled[LANE_SSD_WRITE]));
    if (!setup->exec->device_modelled)
        return;
    ASSERT(modelled[LANE_COMPUTE] && modelled[LANE_H2D] && modelled[LANE_D2H]);
    /* Else the cpu lane would look for what it checks and sums in the device's memory. */
    ASSERT(setup->exec->memory->separate_device);
}

/* Whether the device's lanes are all real or all modelled. */
static bool device_is_whole(const bool *modelled)
{
    return modelled[LANE_COMPUTE] == modelled[LANE_H2D] &&
           modelled[LANE_COMPUTE] == modelled[LANE_D2H];
}

int engine_mixed_open(struct engine_mixed **out, const struct engine_mixed_setup *setup,
                      struct err *err)
{
    *out = NULL;
    check_setup(setup);
    if (!ring_has_deadline(setup->ring))
        return err_set(err, ERR_SYSTEM,
                       "this kernel cannot end a wait for the drive at a given time, by which an "
                       "imagined device is kept in step: use Linux 5.11 or later");
    struct engine_mixed *mixed = *out = mem_alloc(1, sizeof(*mixed));
    mixed->engine =
        (struct engine){.begin = begin, .submit = submit, .reap = reap, .now_ns = now_ns};
    engine_model_init(&mixed->model, setup->profile);
    mixed->base_ns = clock_ns();
    int result = engine_real_open(&mixed->real, setup->exec, setup->ring, setup->drive_depth, err);
    if (result)
        return result;
    engine_real_reserve(mixed->real, setup->op_max);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        mixed->modelled[lane] = setup->modelled[lane];
        const struct engine *from =
            setup->modelled[lane] ? &mixed->model.engine : engine_real_engine(mixed->real);
        mixed->engine.depth[lane] = from->depth[lane];
        mixed->engine.in_order[lane] = from->in_order[lane];
        /* Lanes of a real device and modelled ones cannot wait for each other. */
        mixed->engine.chained[lane] = from->chained[lane] && device_is_whole(setup->modelled);
    }
    return 0;
}

void engine_mixed_close(struct engine_mixed *mixed)
{
    if (!mixed)
        return;
    engine_real_close(mixed->real);
    mem_free(mixed);
}

struct engine *engine_mixed_engine(struct engine_mixed *mixed)
{
    return &mixed->engine;
}
