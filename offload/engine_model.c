#include "offload/engine_model.h"

#include <math.h>
#include <string.h>

#define LANE_DEPTH 4

/* Cores have many more requests on their way than a drive or a link, whose transfers are buffered:
 * these give way. With equal rights a faster drive made steps up to 8 % slower (qwen-32b on 46 GB/s
 * of RAM): its bursts held up updates, which had the memory to themselves afterwards and could not
 * use all of it (tests/offload/test_search.c). */
#define RAM_YIELD 16
#define RAM_STEPS 32
#define RAM_EXACT 1e-12

static struct engine_model_op *front(struct engine_model *model, uint32_t lane)
{
    struct engine_model_lane *l = &model->lanes[lane];
    return l->count ? &l->queue[l->first] : NULL;
}

/* Of each lane, the op whose work goes on; or NULL. */
static void find_working(struct engine_model *model, struct engine_model_op **ops)
{
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        struct engine_model_op *op = front(model, l);
        ops[l] = op && op->working ? op : NULL;
    }
}

static void begin(struct engine *engine, const struct plan *plan)
{
    struct engine_model *model = (struct engine_model *)engine;
    const struct profile_device *device = &model->profile->device;
    ASSERT(model->late_count == 0);
    model->plan = plan;
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        model->event_s[l] = INFINITY;
        model->beside[l] = 1;
    }
    cost_drive_of(&model->drive, model->profile, plan);
    if (!device->is_cpu) {
        model->beside[LANE_H2D] = device->h2d_both_bytes_per_s / device->h2d_bytes_per_s;
        model->beside[LANE_D2H] = device->d2h_both_bytes_per_s / device->d2h_bytes_per_s;
    }
}

static void start_work(struct engine_model *model, struct engine_model_op *op)
{
    op->working = true;
    model->changed = true;
}

/* What an op waits for on another chained lane was submitted before it, so it is still ahead if it
 * is in that lane's queue, whose ops are in the plan's order. */
static bool is_held(struct engine_model *model, const struct engine_model_op *op)
{
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        const struct engine_model_op *ahead = front(model, l);
        if (ahead && op->behind[l] != PLAN_NONE && ahead->op <= op->behind[l])
            return true;
    }
    return false;
}

/* The first op of a lane begins, if it may. */
static void start(struct engine_model *model, uint32_t lane)
{
    struct engine_model_op *op = front(model, lane);
    if (!op || op->begun || is_held(model, op))
        return;
    op->begun = true;
    op->start_s = model->now_s;
    if (op->cost.launch_s > 0)
        model->event_s[lane] = model->now_s + op->cost.launch_s;
    else
        start_work(model, op);
}

static void submit(struct engine *engine, uint32_t op)
{
    struct engine_model *model = (struct engine_model *)engine;
    uint32_t which = model->plan->ops[op].lane;
    struct engine_model_lane *lane = &model->lanes[which];
    ASSERT(lane->count < ENGINE_MODEL_DEPTH_MAX);
    struct engine_model_op *new =
        &lane->queue[(lane->first + lane->count) % ENGINE_MODEL_DEPTH_MAX];
    *new = (struct engine_model_op){.op = op};
    engine_find_behind(engine, model->plan, op, new->behind);
    if (model->replay) {
        new->left_s = model->replay[op].work_s;
        new->cost.latency_s = model->replay[op].late_s;
    } else {
        double stretch = model->stretch[which];
        cost_of(&new->cost, model->profile, model->plan, &model->plan->ops[op]);
        new->cost.work_s *= stretch / model->drive.factor[op >= model->plan->backward_first][which];
        /* Faster than the profile says, but not at more traffic than RAM carries. */
        new->cost.ram_bytes *= fmin(1, stretch);
        new->left_s = new->cost.work_s;
    }
    lane->count++;
    start(model, which);
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
static void share_pair(const struct engine_model *model, struct engine_model_op *const *ops,
                       double *speed, enum plan_lane a, enum plan_lane b)
{
    if (!ops[a] || !ops[b])
        return;
    speed[a] *= model->beside[a];
    speed[b] *= model->beside[b];
}

/* The part of a time unit's RAM traffic that an op asks for at this speed. */
static double ram_part(const struct engine_model *model, const struct engine_model_op *op,
                       double speed)
{
    if (!op || op->cost.work_s <= 0)
        return 0;
    return speed * op->cost.ram_bytes / (model->profile->ram.bytes_per_s * op->cost.work_s);
}

/* An op that waits for RAM a part p of its time takes 1 + p (s - 1) as long when RAM takes s times
 * as long for cores; for what has no cores (drives and links), 1 + p RAM_YIELD (s - 1). s is where
 * the traffic of all is what RAM carries: what they ask for falls and is convex in s, so that
 * Newton's steps from 1 come closer from below. */
static void share_ram(const struct engine_model *model, struct engine_model_op *const *ops,
                      double *speed)
{
    double part[LANE_COUNT], waits[LANE_COUNT], wanted = 0, s = 1;
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        part[l] = ram_part(model, ops[l], speed[l]);
        waits[l] = MIN(1, part[l]) * (ops[l] && ops[l]->cost.cores > 0 ? 1 : RAM_YIELD);
        wanted += part[l];
    }
    if (wanted <= 1)
        return;
    for (uint32_t step = 0; step < RAM_STEPS && wanted > 1 + RAM_EXACT; step++) {
        double slope = 0;
        wanted = 0;
        for (uint32_t l = 0; l < LANE_COUNT; l++) {
            double longer = 1 + waits[l] * (s - 1);
            wanted += part[l] / longer;
            slope += part[l] * waits[l] / (longer * longer);
        }
        s += (wanted - 1) / slope;
    }
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        speed[l] /= 1 + waits[l] * (s - 1);
}

static void find_speeds(const struct engine_model *model, struct engine_model_op *const *ops,
                        double *speed)
{
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        speed[l] = 1;
    if (model->replay)
        return;
    share_cores(model, ops, speed);
    share_pair(model, ops, speed, LANE_H2D, LANE_D2H);
    share_ram(model, ops, speed);
}

/* ---- The clock ------------------------------------------------------------------------------- */

/* What works has changed: how fast all of it goes on from now, and when each will be done. */
static void find_events(struct engine_model *model)
{
    struct engine_model_op *ops[LANE_COUNT];
    double speed[LANE_COUNT], passed_s = model->now_s - model->found_s;
    find_working(model, ops);
    find_speeds(model, ops, speed);
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        if (!ops[l])
            continue;
        if (model->speed[l] > 0)
            ops[l]->left_s = MAX(0, ops[l]->left_s - passed_s * model->speed[l]);
        model->event_s[l] = model->now_s + ops[l]->left_s / speed[l];
    }
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        model->speed[l] = ops[l] ? speed[l] : 0;
    model->found_s = model->now_s;
    model->changed = false;
}

/* An op's work is done: its latency begins, the lane's next op, and what was held by it. */
static void finish(struct engine_model *model, uint32_t which)
{
    struct engine_model_lane *lane = &model->lanes[which];
    struct engine_model_op *op = front(model, which);
    model->late[model->late_count++] =
        (struct engine_model_late){op->op, op->start_s, model->now_s + op->cost.latency_s};
    lane->first = (lane->first + 1) % ENGINE_MODEL_DEPTH_MAX;
    lane->count--;
    model->speed[which] = 0; /* the next one has not begun when the speeds are found again */
    model->event_s[which] = INFINITY;
    model->changed = true;
    start(model, which);
    for (uint32_t l = 0; l < LANE_COUNT && model->engine.chained[which]; l++)
        if (model->engine.chained[l])
            start(model, l);
}

/* Moves the clock to the next event, or to until_s where none comes first. What has ended is no
 * event. True when something was launched or its work is done. */
static bool advance(struct engine_model *model, double until_s)
{
    double next_s = until_s;
    uint32_t at = LANE_COUNT;
    if (model->changed)
        find_events(model);
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        if (model->event_s[l] < next_s || (model->event_s[l] == until_s && at == LANE_COUNT)) {
            next_s = model->event_s[l];
            at = l;
        }
    for (uint32_t i = 0; i < model->late_count; i++)
        if (model->late[i].end_s > model->now_s && model->late[i].end_s < next_s) {
            next_s = model->late[i].end_s;
            at = LANE_COUNT;
        }
    ASSERT(next_s < INFINITY && next_s >= model->now_s);
    model->now_s = next_s;
    if (at == LANE_COUNT)
        return false;
    struct engine_model_op *op = front(model, at);
    if (op->working)
        finish(model, at);
    else
        start_work(model, op);
    return true;
}

bool engine_model_take(struct engine_model *model, struct engine_completion *completion)
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
    while (!engine_model_take(model, completions))
        advance(model, INFINITY);
    return 1;
}

void engine_model_pass(struct engine_model *model, double now_s)
{
    ASSERT(now_s >= model->now_s);
    while (advance(model, now_s) || model->now_s < now_s)
        ;
}

static bool is_idle(const struct engine_model *model)
{
    uint32_t count = model->late_count;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        count += model->lanes[l].count;
    return count == 0;
}

/* A copy runs ahead: some kilobytes, and a few events at most. */
double engine_model_next_s(const struct engine_model *model)
{
    struct engine_model ahead = *model;
    struct engine_completion ended;
    if (is_idle(model))
        return INFINITY;
    while (!engine_model_take(&ahead, &ended))
        advance(&ahead, INFINITY);
    return ahead.now_s;
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
    uint32_t drive_depth = engine_drive_depth(profile->ssd.queue_depth, profile->ssd.count);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        bool is_drive = lane == LANE_SSD_READ || lane == LANE_SSD_WRITE;
        bool is_device = lane == LANE_COMPUTE || lane == LANE_H2D || lane == LANE_D2H;
        model->engine.chained[lane] = is_device && !profile->device.is_cpu;
        model->engine.depth[lane] = is_drive                      ? drive_depth
                                    : model->engine.chained[lane] ? ENGINE_CHAIN_DEPTH
                                                                  : LANE_DEPTH;
        model->engine.in_order[lane] = !is_drive;
        model->stretch[lane] = 1;
    }
}
