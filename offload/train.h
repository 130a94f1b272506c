/*
 * train: a training run from its settings to its end: places, plans, fills the tiers, walks the
 * plans, logs, evaluates, commits, and stops when it is told to. Called by tools/train.c.
 */
#ifndef SPILLWAY_OFFLOAD_TRAIN_H
#define SPILLWAY_OFFLOAD_TRAIN_H

#include "core/err.h"
#include "model/config.h"
#include "model/moments.h"
#include "model/optim.h"
#include "offload/place.h"
#include "offload/stripe.h"

struct json_value;

/* Folders of the NVMe tier, one on each drive, and what each takes of the state, relative to each
 * other (1..STRIPE_SHARE_MAX). Without any, the state that commits is in the run's own folder. */
struct train_nvme {
    uint32_t count;
    const char *dir[STRIPE_DRIVES_MAX]; /* borrowed */
    uint32_t share[STRIPE_DRIVES_MAX];
};
/* One folder, or none for NULL. */
static inline struct train_nvme train_nvme(const char *dir)
{
    return (struct train_nvme){.count = dir != NULL, .dir = {dir}, .share = {1}};
}

struct train_settings {
    /* Mathematics: fixed for the life of a run. */
    struct config config;  /* vocab 0: the data's */
    const char *model_dir; /* initial weights: a Hugging Face folder, or NULL */
    const char *data_dir;
    enum precision precision;
    enum moments_kind moments; /* how AdamW's moments are stored */
    uint64_t seq, batch, accum, seed;
    bool within_documents;       /* no sequence runs across the end of one (io/batch.h) */
    struct optim_settings optim; /* total_steps: the horizon of the schedule */

    bool cuda; /* the device is CUDA device number cuda_device, else the CPU */
    uint32_t cuda_device;

    /* The rest may change when a run is resumed. */
    const char *run_dir;
    struct train_nvme nvme;
    uint64_t ram_budget, vram_budget, nvme_budget;
    bool thrifty;          /* the RAM budget is nobody's wish (place.h) */
    uint64_t write_budget; /* bytes a day to the drive, as predicted; 0: no limit */
    bool one_slot;         /* of the state file (tier.h): --nvme-slots 1 */
    int resident_planes;
    enum place_update update;
    uint64_t prefetch;
    enum place_recompute recompute;
    uint64_t threads; /* 0: one a core */
    uint64_t steps;
    double max_time_s;                                 /* 0: no limit */
    uint64_t checkpoint_every, keep_every, eval_every; /* 0: never */
    bool resume;
    bool replay; /* each step is simulated again with its ops' durations: replayed_s in the log */
    const struct profile *profile; /* borrowed: the machine; NULL: defaults */
    /* Borrowed: what predictions of the card begin with, where the machine's device is the CPU;
     * NULL: a card of the middle class. */
    const struct profile_device *card;
    const char *trace_path;          /* or NULL */
    const char *resume_command;      /* what the user types to go on, for the last line */
    const struct json_value *record; /* borrowed; becomes RUN/config.json */
};

/* Runs to the end of `steps`, or until a signal or max_time_s; 0, or an error. */
int train_run(struct train_settings *settings, struct err *err);

#endif
