/*
 * forecast: what training a model would be like on a machine: what sits where, how long a step
 * takes, what binds, what the drive has to bear. The one path from a question to an answer for
 * plan, sweep and the advice that they give; nothing is opened, measured or written.
 *
 * A machine with several devices is taken to train data-parallel: each device has a share of the
 * batch (of the micro-batches where the batch cannot be divided), all hold the same placement, and
 * the updates add their gradients up.
 */
#ifndef SPILLWAY_OFFLOAD_FORECAST_H
#define SPILLWAY_OFFLOAD_FORECAST_H

#include "core/err.h"
#include "offload/bound.h"
#include "offload/place.h"
#include "offload/plan.h"
#include "offload/wear.h"

/* What follows from the model and the kind of its moments alone: shared by all forecasts of it,
 * also of several threads. */
struct forecast_model {
    struct config config;
    struct tensors tensors;
    struct layout layout;
};
void forecast_model_init(struct forecast_model *model, const struct config *config,
                         enum moments_kind moments);
void forecast_model_deinit(struct forecast_model *model); /* a zeroed one is legal */

struct forecast_request {
    const struct forecast_model *model; /* borrowed, as the profile */
    const struct profile *profile;
    enum precision precision;
    uint32_t seq, batch, accum; /* of a step, all devices together */
    uint64_t ram_budget;        /* 0: the machine's RAM less what others need */
    uint64_t vram_budget;       /* of one GPU; 0: all of it. CPU device: 0: none */
    uint64_t nvme_budget;       /* 0: the drives' capacity where known, else no limit */
    bool one_slot;
    bool nvme; /* the drives may be used */
    bool clip;
    int resident_planes; /* as in struct place_spec, all below */
    enum place_update update;
    uint32_t prefetch;
    enum place_recompute recompute;
    uint64_t write_budget;
    uint32_t checkpoint_every;
    bool chunks; /* simulate at chunk level (tenths of a second for large models) */
};

struct forecast {
    struct place place; /* owned; at chunk level; its profile and layout stay borrowed */
    double predicted_s;
    struct bound bound;
    double busy_s[LANE_COUNT];
    uint64_t bytes[LANE_COUNT]; /* of a usual step, one device's copies */
    struct place_least least;
    uint64_t tokens; /* of a step */
    struct wear wear;
    double hiding_tokens; /* a step of so many hides what does not grow with tokens; INFINITY */
    uint32_t devices;
};

/* 0, or ERR_INPUT with the sentence that refuses it; then only place.spec says something: what was
 * asked. The result is to be given to forecast_deinit either way. */
int forecast_make(struct forecast *forecast, const struct forecast_request *request,
                  struct err *err);
/* The same of a placement that was chosen already, which is copied in and then owned. */
void forecast_of_place(struct forecast *forecast, const struct place *place, bool chunks);
void forecast_deinit(struct forecast *forecast);

static inline double forecast_tokens_per_s(const struct forecast *forecast)
{
    return (double)forecast->tokens / forecast->predicted_s;
}

/* What plans, threads and rings take of the process's RAM beyond what can be measured before they
 * are made; grows with the model. cuda: a CUDA device is part of it. */
uint64_t forecast_overhead_bytes(const struct layout *layout, uint32_t layers, uint32_t accum,
                                 bool cuda);

#endif
