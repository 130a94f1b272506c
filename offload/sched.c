#include "offload/sched.h"

#include "core/mem.h"

#include <math.h>
#include <stdio.h>

enum { WAITING, SUBMITTED, DONE };

struct lane_state {
    uint32_t next; /* op to issue next; PLAN_NONE at the end */
    uint32_t in_flight;
    uint32_t waited; /* waits of `next` already seen satisfied */
    uint64_t busy_until_ns;
};

void sched_init(struct sched *sched, uint32_t op_max)
{
    *sched = (struct sched){.op_max = op_max};
    sched->state = mem_alloc(op_max, sizeof(*sched->state));
    sched->next_in_lane = mem_alloc(op_max, sizeof(*sched->next_in_lane));
    sched->end_ns = mem_alloc(op_max, sizeof(*sched->end_ns));
}

void sched_deinit(struct sched *sched)
{
    mem_free(sched->state);
    mem_free(sched->next_in_lane);
    mem_free(sched->end_ns);
    *sched = (struct sched){0};
}

static void index_lanes(struct sched *sched, const struct plan *plan, struct lane_state *lanes)
{
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        lanes[lane] = (struct lane_state){.next = PLAN_NONE};
    for (uint32_t o = plan->op_count; o-- > 0;) {
        struct lane_state *lane = &lanes[plan->ops[o].lane];
        sched->next_in_lane[o] = lane->next;
        lane->next = o;
        sched->state[o] = WAITING;
    }
}

/* Whether an op of lane `to` needs no word of the host to come after one of lane `from` that was
 * submitted before it. */
static bool follows(const struct engine *engine, uint8_t from, uint8_t to)
{
    return from == to ? engine->in_order[to] : engine->chained[from] && engine->chained[to];
}

static bool ready(const struct sched *sched, const struct plan *plan, const struct engine *engine,
                  struct lane_state *lane)
{
    const struct plan_op *op = &plan->ops[lane->next];
    for (; lane->waited < op->wait_count; lane->waited++) {
        uint32_t on = plan->waits[op->first_wait + lane->waited];
        bool ahead = sched->state[on] == SUBMITTED && follows(engine, plan->ops[on].lane, op->lane);
        if (sched->state[on] != DONE && !ahead)
            return false;
    }
    return true;
}

static uint32_t issue(struct sched *sched, const struct plan *plan, struct engine *engine,
                      struct lane_state *lane, uint32_t depth)
{
    uint32_t issued = 0;
    while (lane->next != PLAN_NONE && lane->in_flight < depth && ready(sched, plan, engine, lane)) {
        uint32_t op = lane->next;
        sched->state[op] = SUBMITTED;
        lane->in_flight++;
        lane->next = sched->next_in_lane[op];
        lane->waited = 0;
        if (sched->times) /* until it ends, when it was submitted */
            sched->times[op].work_s = (double)engine->now_ns(engine);
        engine->submit(engine, op);
        issued++;
    }
    return issued;
}

static void trace_op(struct trace *trace, const struct plan_op *op,
                     const struct engine_completion *done)
{
    char name[96];
    int length = snprintf(name, sizeof(name), "%s", plan_op_name[op->kind]);
    if (op->layer != PLAN_NONE)
        length += snprintf(name + length, sizeof(name) - (size_t)length, " layer %u", op->layer);
    if (op->micro != PLAN_NONE)
        length += snprintf(name + length, sizeof(name) - (size_t)length, " micro %u", op->micro);
    if (op->chunk != PLAN_NONE)
        snprintf(name + length, sizeof(name) - (size_t)length, " chunk %u", op->chunk);
    trace_event(trace, op->lane, name, done->start_ns, done->end_ns, op->bytes);
}

/* Busy time is the union of the lane's ops; completions of a lane with depth arrive roughly in
 * order, so counting from where the last one ended is exact enough for a log line. */
static void account(struct sched_result *result, struct lane_state *lane, const struct plan_op *op,
                    const struct engine_completion *done)
{
    uint64_t from = MAX(done->start_ns, lane->busy_until_ns);
    if (done->end_ns > from)
        result->busy_ns[op->lane] += done->end_ns - from;
    lane->busy_until_ns = MAX(lane->busy_until_ns, done->end_ns);
    if (op->flags & OP_COMMITTED)
        result->commit_bytes += op->bytes;
    else
        result->bytes[op->lane] += op->bytes;
    result->flops += op->flops;
}

/* What the ops took, of when they were submitted and ended. Only now is all of it known: of two ops
 * of chained lanes the later one may have been reported first. */
static void time_ops(const struct sched *sched, const struct plan *plan,
                     const struct engine *engine)
{
    uint64_t lane_end_ns[LANE_COUNT] = {0};
    for (uint32_t o = 0; o < plan->op_count; o++) {
        const struct plan_op *op = &plan->ops[o];
        struct engine_time *time = &sched->times[o];
        double submitted_ns = time->work_s, end_ns = (double)sched->end_ns[o];
        uint64_t before_ns = lane_end_ns[op->lane];
        lane_end_ns[op->lane] = sched->end_ns[o];
        if (!engine->in_order[op->lane]) {
            *time = (struct engine_time){0, time->late_s + (end_ns - submitted_ns) / 1e9};
            continue;
        }
        for (uint32_t i = 0; i < op->wait_count; i++) {
            uint32_t on = plan->waits[op->first_wait + i];
            if (follows(engine, plan->ops[on].lane, op->lane))
                before_ns = MAX(before_ns, sched->end_ns[on]);
        }
        time->work_s = fmax(0, end_ns - fmax(submitted_ns, (double)before_ns)) / 1e9;
    }
}

void sched_run(struct sched *sched, const struct plan *plan, struct engine *engine,
               struct trace *trace, struct sched_result *result)
{
    ASSERT(plan->op_count <= sched->op_max);
    struct lane_state lanes[LANE_COUNT];
    index_lanes(sched, plan, lanes);
    *result = (struct sched_result){.backward_start_ns = UINT64_MAX};
    engine->begin(engine, plan);
    result->start_ns = engine->now_ns(engine);
    uint32_t done_count = 0, in_flight = 0;
    while (done_count < plan->op_count) {
        for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
            in_flight += issue(sched, plan, engine, &lanes[lane], engine->depth[lane]);
        ASSERT(in_flight > 0); /* else the plan could never end: plan_check forbids it */
        struct engine_completion completions[32];
        uint32_t count = engine->reap(engine, completions, ARRAY_COUNT(completions));
        for (uint32_t i = 0; i < count; i++) {
            const struct engine_completion *done = &completions[i];
            const struct plan_op *op = &plan->ops[done->op];
            ASSERT(sched->state[done->op] == SUBMITTED);
            sched->state[done->op] = DONE;
            lanes[op->lane].in_flight--;
            account(result, &lanes[op->lane], op, done);
            sched->end_ns[done->op] = done->end_ns;
            if (sched->times)
                sched->times[done->op].late_s =
                    ((double)engine->now_ns(engine) - (double)done->end_ns) / 1e9;
            if (done->op >= plan->backward_first)
                result->backward_start_ns = MIN(result->backward_start_ns, done->start_ns);
            if (trace)
                trace_op(trace, op, done);
        }
        done_count += count;
        in_flight -= count;
    }
    result->end_ns = engine->now_ns(engine);
    if (sched->times)
        time_ops(sched, plan, engine);
}
