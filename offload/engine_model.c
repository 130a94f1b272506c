#include "offload/engine_model.h"

#include <math.h>
#include <string.h>

#define DRIVE_DEPTH 8
#define LANE_DEPTH  4

static struct engine_model_op *front(struct engine_model *model, uint32_t lane)
{
    struct engine_model_lane *l = &model->lanes[lane];
    return l->count ? &l->queue[l->first] : NULL;
}

static void begin(struct engine *engine, const struct plan *plan)
{
    struct engine_model *model = (struct engine_model *)engine;
    model->plan = plan;
    ASSERT(model->late_count == 0);
}

static void submit(struct engine *engine, uint32_t op)
{
    struct engine_model *model = (struct engine_model *)engine;
    uint32_t which = model->plan->ops[op].lane;
    struct engine_model_lane *lane = &model->lanes[which];
    ASSERT(lane->count < ENGINE_MODEL_DEPTH_MAX);
    struct engine_model_op *new =
        &lane->queue[(lane->first + lane->count) % ENGINE_MODEL_DEPTH_MAX];
    *new = (struct engine_model_op){.op = op, .start_s = model->now_s};
    if (model->replay) {
        new->left_s = model->replay[op].work_s;
        new->cost.latency_s = model->replay[op].late_s;
    } else {
        cost_of(&new->cost, model->profile, model->plan, &model->plan->ops[op]);
        new->cost.work_s *= model->stretch[which];
        new->cost.launch_s *= model->stretch[which];
        new->left_s = new->cost.launch_s + new->cost.work_s;
    }
    lane->count++;
}

/* ---- What is shared -------------------------------------------------------------------------- */

static void share_cores(const struct engine_model *model, struct engine_model_op *const *ops,
                        double *speed)
{
    double wanted = 0, cores = model->profile->cpu.cores;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        wanted += ops[l] ? ops[l]->cost.cores : 0;
    for (uint32_t l = 0; l < LANE_COUNT && wanted > cores; l++)
        if (ops[l] && ops[l]->cost.cores > 0)
            speed[l] *= cores / wanted;
}

/* Both of a pair of lanes at work: each at the rate that it reaches beside the other. */
static void share_pair(struct engine_model_op *const *ops, double *speed, enum plan_lane a,
                       enum plan_lane b, double a_factor, double b_factor)
{
    if (!ops[a] || !ops[b])
        return;
    speed[a] *= a_factor;
    speed[b] *= b_factor;
}

/* The part of an op's time that is memory traffic. */
static double memory_part(const struct engine_model *model, const struct engine_model_op *op)
{
    if (!op || op->cost.work_s <= 0)
        return 0;
    return fmin(1, op->cost.ram_bytes / model->profile->ram.bytes_per_s / op->cost.work_s);
}

static void share_ram(const struct engine_model *model, struct engine_model_op *const *ops,
                      double *speed)
{
    double used = 0;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        used += speed[l] * memory_part(model, ops[l]);
    for (uint32_t l = 0; l < LANE_COUNT && used > 1; l++)
        speed[l] /= 1 + memory_part(model, ops[l]) * (used - 1);
}

static void find_speeds(const struct engine_model *model, struct engine_model_op *const *ops,
                        double *speed)
{
    const struct profile_device *device = &model->profile->device;
    const struct profile_ssd *ssd = &model->profile->ssd;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        speed[l] = 1;
    if (model->replay)
        return;
    share_cores(model, ops, speed);
    share_pair(ops, speed, LANE_SSD_READ, LANE_SSD_WRITE,
               ssd->mixed_read_bytes_per_s / ssd->read_bytes_per_s,
               ssd->mixed_write_bytes_per_s / ssd->write_bytes_per_s);
    if (!device->is_cpu)
        share_pair(ops, speed, LANE_H2D, LANE_D2H,
                   device->h2d_both_bytes_per_s / device->h2d_bytes_per_s,
                   device->d2h_both_bytes_per_s / device->d2h_bytes_per_s);
    share_ram(model, ops, speed);
}

/* ---- The clock ------------------------------------------------------------------------------- */

/* Moves the clock to the next event; ops whose work has ended begin their latency. */
static void advance(struct engine_model *model)
{
    struct engine_model_op *ops[LANE_COUNT];
    double speed[LANE_COUNT], step_s = INFINITY;
    uint32_t ends = LANE_COUNT;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        ops[l] = front(model, l);
    find_speeds(model, ops, speed);
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        if (ops[l] && ops[l]->left_s / speed[l] < step_s) {
            step_s = ops[l]->left_s / speed[l];
            ends = l;
        }
    for (uint32_t i = 0; i < model->late_count; i++)
        if (model->late[i].end_s - model->now_s < step_s) {
            step_s = model->late[i].end_s - model->now_s;
            ends = LANE_COUNT;
        }
    ASSERT(step_s < INFINITY);
    model->now_s += step_s;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        if (ops[l])
            ops[l]->left_s = fmax(0, ops[l]->left_s - step_s * speed[l]);
    if (ends == LANE_COUNT)
        return;
    struct engine_model_lane *lane = &model->lanes[ends];
    model->late[model->late_count++] = (struct engine_model_late){
        ops[ends]->op, ops[ends]->start_s, model->now_s + ops[ends]->cost.latency_s};
    lane->first = (lane->first + 1) % ENGINE_MODEL_DEPTH_MAX;
    lane->count--;
    if (lane->count)
        front(model, ends)->start_s = model->now_s;
}

/* The op that has ended first; of two, the one with the smaller number. */
static bool take_ended(struct engine_model *model, struct engine_completion *completion)
{
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < model->late_count; i++) {
        const struct engine_model_late *a = &model->late[i];
        if (a->end_s > model->now_s)
            continue;
        const struct engine_model_late *b = best == UINT32_MAX ? NULL : &model->late[best];
        if (!b || a->end_s < b->end_s || (a->end_s == b->end_s && a->op < b->op))
            best = i;
    }
    if (best == UINT32_MAX)
        return false;
    const struct engine_model_late *ended = &model->late[best];
    *completion = (struct engine_completion){ended->op, (uint64_t)(ended->start_s * 1e9),
                                             (uint64_t)(ended->end_s * 1e9)};
    model->late[best] = model->late[--model->late_count];
    return true;
}

static uint32_t reap(struct engine *engine, struct engine_completion *completions, uint32_t max)
{
    struct engine_model *model = (struct engine_model *)engine;
    ASSERT(max > 0);
    while (!take_ended(model, completions))
        advance(model);
    return 1;
}

static uint64_t now_ns(struct engine *engine)
{
    return (uint64_t)(((struct engine_model *)engine)->now_s * 1e9);
}

void engine_model_init(struct engine_model *model, const struct profile *profile)
{
    *model = (struct engine_model){
        .engine = {.begin = begin, .submit = submit, .reap = reap, .now_ns = now_ns},
        .profile = profile,
    };
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        bool is_drive = lane == LANE_SSD_READ || lane == LANE_SSD_WRITE;
        model->engine.depth[lane] = is_drive ? DRIVE_DEPTH : LANE_DEPTH;
        model->engine.in_order[lane] = !is_drive;
        model->stretch[lane] = 1;
    }
}
