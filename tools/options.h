/*
 * options: the options that train and plan share: parsing, defaults, and the record of them in
 * RUN/config.json from which --resume takes what is not given again.
 */
#ifndef SPILLWAY_TOOLS_OPTIONS_H
#define SPILLWAY_TOOLS_OPTIONS_H

#include "core/args.h"
#include "io/file.h"
#include "offload/train.h"
#include "tools/machine.h"
#include "tools/nvme.h"

#define OPTIONS_MAX 48

struct options {
    /* As given on the command line or recorded. */
    const char *model, *data, *out, *nvme, *device, *precision, *optimizer_state, *resident,
        *update;
    const char *recompute, *trace, *pack;
    struct machine_request machine; /* train: its `machine` alone */
    double tokens;                  /* of the data, for a plan without it */
    uint64_t ram_budget, vram_budget, nvme_budget, write_budget;
    bool thrifty; /* ram_budget was not given */
    uint64_t nvme_slots, seq, batch, accum, steps, lr_steps, epochs, seed, warmup, prefetch,
        threads;
    uint64_t checkpoint_every, keep_every, eval_every;
    double max_time, lr, min_lr, weight_decay, beta1, beta2, eps, clip;
    bool resume, replay, json, dump;

    struct args_option table[OPTIONS_MAX];
    bool given[OPTIONS_MAX];
    size_t count;
    struct json_value *record; /* owned */
    struct json_value *loaded; /* owned: strings of a resumed run are borrowed from it */
    char resume_command[4096];
    char data_path[FILE_PATH_MAX], machine_path[FILE_PATH_MAX];
    struct nvme_list nvme_list;
    struct profile local, profile; /* the machine at hand, and the one that is asked for */
    bool local_measured;
    struct profile_device card; /* what predictions of a CUDA device begin with */
};

enum options_command { OPTIONS_TRAIN, OPTIONS_PLAN };

/* As args_parse: 0, 1 after --help, or an error; fills settings, whose strings stay borrowed from
 * options and argv. */
int options_parse(struct options *options, enum options_command command, int argc, char **argv,
                  struct train_settings *settings, struct err *err);
void options_deinit(struct options *options);

/* Another machine than the one at hand is asked for, or a model that it cannot train. */
bool options_imagined(const struct options *options, const struct train_settings *settings);

/* "x2" after the name of a drive, as in --ssd t700-2tb x2. */
int options_ssd_count(const char *const *words, size_t count, uint64_t *ssds, struct err *err);

/* How the options of machine_request are told: plan, sweep and bench have them alike. */
#define OPTIONS_HELP_MACHINE                                                                       \
    "a known machine, or the file of one (default: this one, as 'spillway bench' measured it)"

#endif
