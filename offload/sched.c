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
    uint64_t end_ns; /* of the op that ended last */
};

void sched_init(struct sched *sched, uint32_t op_max)
{
    *sched = (struct sched){.op_max = op_max};
    sched->state = mem_alloc(op_max, sizeof(*sched->state));
    sched->next_in_lane = mem_alloc(op_max, sizeof(*sched->next_in_lane));
}

void sched_deinit(struct sched *sched)
{
    mem_free(sched->state);
    mem_free(sched->next_in_lane);
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

static bool ready(const struct sched *sched, const struct plan *plan, const struct engine *engine,
                  struct lane_state *lane)
{
    const struct plan_op *op = &plan->ops[lane->next];
    for (; lane->waited < op->wait_count; lane->waited++) {
        uint32_t on = plan->waits[op->first_wait + lane->waited];
        bool ahead = engine->in_order[op->lane] && plan->ops[on].lane == op->lane &&
                     sched->state[on] == SUBMITTED;
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

static void time_op(struct engine_time *time, struct lane_state *lane,
                    const struct engine_completion *done, bool in_order, uint64_t now_ns)
{
    double submitted_ns = time->work_s;
    double begin_ns = fmax(submitted_ns, (double)lane->end_ns);
    double end_ns = (double)done->end_ns;
    *time = in_order
                ? (struct engine_time){(end_ns - begin_ns) / 1e9, ((double)now_ns - end_ns) / 1e9}
                : (struct engine_time){0, ((double)now_ns - submitted_ns) / 1e9};
    lane->end_ns = done->end_ns;
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
            if (sched->times)
                time_op(&sched->times[done->op], &lanes[op->lane], done, engine->in_order[op->lane],
                        engine->now_ns(engine));
            if (done->op >= plan->backward_first)
                result->backward_start_ns = MIN(result->backward_start_ns, done->start_ns);
            if (trace)
                trace_op(trace, op, done);
        }
        done_count += count;
        in_flight -= count;
    }
    result->end_ns = engine->now_ns(engine);
}
