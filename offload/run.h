/*
 * run: everything a training run holds, and how it comes to be: the model, the placement, the plans
 * of all kinds of step, the tiers with their first contents, the engine. train.c walks it.
 *
 * Opening is in two parts, so that budgets are refused, and plans shown, before anything is
 * written: run_plan_open decides, run_open creates.
 */
#ifndef SPILLWAY_OFFLOAD_RUN_H
#define SPILLWAY_OFFLOAD_RUN_H

#include "core/trace.h"
#include "io/batch.h"
#include "io/dataset.h"
#include "offload/checkpoint.h"
#include "offload/engine_model.h"
#include "offload/engine_real.h"
#include "offload/exec.h"
#include "offload/metrics.h"
#include "offload/sched.h"
#include "offload/timeline.h"
#include "offload/train.h"

/* The plans of a run. */
enum variant {
    PLAN_FIRST,         /* nothing pending */
    PLAN_STEADY,        /* pending gradients applied in the forward pass */
    PLAN_STEADY_COMMIT, /* and committed */
    PLAN_FLUSH,         /* applied, nothing else */
    PLAN_FLUSH_COMMIT,
    PLAN_EVAL, /* loss only */
    VARIANT_COUNT
};

extern const struct plan_request run_variant[VARIANT_COUNT];

struct run {
    struct train_settings *settings;
    struct config config;
    struct tensors tensors;
    struct layout layout;
    struct dataset dataset;
    struct batch_source train_batches, val_batches;
    struct kernels *kernels; /* of the CPU device; NULL with another */
    struct device *device;
    struct kernels_sizes sizes;     /* what its kernels need; zeroes for the CPU's */
    uint64_t device_overhead_bytes; /* of the card's memory, beside the arena */
    struct pool *pool, *cpu_pool;
    struct place place;
    struct plan_memory memory;
    bool spills_state; /* some planes are on the drive alone: every update writes there */
    struct plan plans[VARIANT_COUNT];
    struct place_least least[VARIANT_COUNT];
    struct tier tier;
    struct checkpoint checkpoint;
    struct exec exec;
    struct ring *ring;
    struct engine_real *real;
    struct sched sched, model_sched;
    struct engine_model model;
    struct profile profile;
    double stretch[LANE_COUNT]; /* learned: times of a lane as multiples of the profile's */
    bool learned[LANE_COUNT];
    struct sched_result predicted; /* by the last run_predict */
    struct engine_time *times;     /* owned; [op] of the last plan; NULL without settings->replay */
    struct metrics metrics;
    struct trace *trace;
    struct timeline timeline;
    int lock_fd;

    uint64_t done;      /* steps done: computed, their gradients perhaps pending */
    uint64_t committed; /* step of the last commit; UINT64_MAX before the first */
    bool pending;
    double pending_norm;   /* of the gradients that wait */
    uint64_t sealed_count; /* heap allocations made before memory was sealed; 0: not yet */
    double first_loss, last_loss;
    uint64_t start_ns, start_done;
    uint64_t moved[LANE_COUNT], commit_bytes;
    uint64_t start_written_bytes; /* metrics.written_bytes when the loop began */
    struct sched_result line;     /* what has run since the last step's line */
    struct place_least line_least;
};

/* Model, data and placement; checked plans. Nothing is written yet. nvme: there will be a folder
 * for the tier (its contents do not matter here). */
int run_plan_open(struct run **run, struct train_settings *settings, bool nvme, struct err *err);

/* The run's folder, tiers and engine; then run->done is where to go on from. */
int run_open(struct run *run, struct err *err);

/* Whether gradients wait for the next step, and the kind of step that a long run mostly makes. */
static inline bool run_defers_updates(const struct run *run)
{
    return !run->place.immediate;
}
static inline enum variant run_usual(const struct run *run)
{
    return run_defers_updates(run) ? PLAN_STEADY : PLAN_FIRST;
}

/* Whatever state it is in; NULL is legal. */
void run_close(struct run *run);

/* Step time by simulation, and by the lower bound with the lane that binds most, at the rates of
 * run->profile and what run_learn has made of them. */
double run_predict(struct run *run, enum variant variant);
/* The plan that went last, simulated again with the durations that its ops had: what the schedule
 * alone makes of them. Needs settings->replay. */
double run_replay(struct run *run, enum variant variant);
/* Takes in how a step went whose variant was the last one predicted: a lane that was busy longer
 * than predicted is taken to be slower from then on. The first time at once, later by halves. */
void run_learn(struct run *run, const struct sched_result *result);
double run_bound(const struct run *run, enum variant variant, enum plan_lane *lane);

uint64_t run_tokens_per_step(const struct run *run);

/* What the process will hold at its peak, before run_open: what it holds now, the arena to come,
 * and what the engine adds. place.ram_bytes is above it by what is set aside for safety. */
uint64_t run_expected_ram_bytes(const struct run *run);

/* Refuses a placement that the machine has no memory for now. device_bytes: what stands for the
 * device's memory in RAM. */
int run_check_machine(const struct place *place, uint64_t device_bytes, struct err *err);

#endif
