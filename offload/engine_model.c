#include "offload/engine_model.h"

_Static_assert((int)PROFILE_RATE_COUNT == (int)LANE_COUNT &&
                   (int)PROFILE_CPU_BYTES == (int)LANE_CPU,
               "a profile has a rate for each lane");

/* What handing an op to a lane costs, whatever it does. */
#define OP_LATENCY_NS 15000
#define DRIVE_DEPTH   8
#define LANE_DEPTH    4

/* A lane's rate is in FLOPs on the compute lane and in bytes elsewhere. */
static double duration_s(const struct engine_model *model, const struct plan_op *op)
{
    uint64_t work = op->lane == LANE_COMPUTE ? op->flops : op->bytes;
    return (double)work / model->profile.rate[op->lane];
}

static void begin(struct engine *engine, const struct plan *plan)
{
    struct engine_model *model = (struct engine_model *)engine;
    model->plan = plan;
    ASSERT(model->count == 0);
}

static void submit(struct engine *engine, uint32_t op)
{
    struct engine_model *model = (struct engine_model *)engine;
    ASSERT(model->count < ENGINE_MODEL_IN_FLIGHT_MAX);
    uint64_t *free_ns = &model->lane_free_ns[model->plan->ops[op].lane];
    uint64_t start_ns = MAX(model->now_ns, *free_ns);
    double seconds = duration_s(model, &model->plan->ops[op]);
    uint64_t end_ns = start_ns + OP_LATENCY_NS + (uint64_t)(seconds * 1e9);
    *free_ns = end_ns;
    model->in_flight[model->count++] = (struct engine_completion){op, start_ns, end_ns};
}

/* The op that ends first; of two, the one with the smaller number, so that a simulation is
 * deterministic. */
static uint32_t reap(struct engine *engine, struct engine_completion *completions, uint32_t max)
{
    struct engine_model *model = (struct engine_model *)engine;
    ASSERT(model->count > 0 && max > 0);
    uint32_t best = 0;
    for (uint32_t i = 1; i < model->count; i++) {
        const struct engine_completion *a = &model->in_flight[i], *b = &model->in_flight[best];
        if (a->end_ns < b->end_ns || (a->end_ns == b->end_ns && a->op < b->op))
            best = i;
    }
    completions[0] = model->in_flight[best];
    model->in_flight[best] = model->in_flight[--model->count];
    model->now_ns = completions[0].end_ns;
    return 1;
}

static uint64_t now_ns(struct engine *engine)
{
    return ((struct engine_model *)engine)->now_ns;
}

void engine_model_init(struct engine_model *model, const struct profile *profile)
{
    *model = (struct engine_model){
        .engine = {.begin = begin, .submit = submit, .reap = reap, .now_ns = now_ns},
        .profile = *profile,
    };
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        bool is_drive = lane == LANE_SSD_READ || lane == LANE_SSD_WRITE;
        model->engine.depth[lane] = is_drive ? DRIVE_DEPTH : LANE_DEPTH;
        model->engine.in_order[lane] = !is_drive;
    }
}
