/*
 * tiny: models, data and settings so small that a test can train them hundreds of times, and the
 * memory, tiers and threads that ops run on, cut into many small chunks and tiles. All files lie
 * in the scratch folder (tests/shared/scratch.h), on a real drive.
 */
#ifndef SPILLWAY_TESTS_SHARED_TINY_H
#define SPILLWAY_TESTS_SHARED_TINY_H

#include "offload/checkpoint.h"
#include "offload/exec.h"
#include "offload/gpu.h"
#include "offload/train.h"

struct ring;

/* A model and its layout. Chunks and tiles in parameters; 0: as the trainer cuts them. */
struct tiny_model {
    struct config config;
    struct tensors tensors;
    struct layout layout;
    uint64_t chunk, tile; /* that it was cut with; 0: as the trainer cuts */
};
void tiny_model_init(struct tiny_model *model, uint32_t layers, uint32_t channels, uint32_t vocab,
                     uint64_t chunk, uint64_t tile);
void tiny_model_deinit(struct tiny_model *model);
/* Moments of another kind than FP32, before anything is made of the layout. */
void tiny_model_set_moments(struct tiny_model *model, enum moments_kind moments);

/* What places a tiny model: B 2, T 16, M 1, fp32, a drive, no device of its own, budgets without
 * end, no profile and so no search. */
void tiny_spec(struct place_spec *spec, const struct tiny_model *model);

/* What kernels are opened for. */
struct kernels_shape tiny_shape(const struct place_spec *spec);

/* On a card of the plugin: what its kernels need, and a VRAM budget without end. */
void tiny_spec_set_card(struct place_spec *spec, const struct gpu_plugin *plugin);

/* Lowers the RAM budget, and the VRAM budget where there is one, to the least that works. */
void tiny_spec_shrink(struct place_spec *spec);

/* The number after the flag that ends a refusal, in bytes; fails the test when the sentence does
 * not end with it. */
uint64_t tiny_flag(const char *message, const char *flag);

/* Everything that ops run on, short of an engine: arenas, state file, run folder, ring. The
 * state file is fresh and holds nothing yet; state_create or state_load fill it. */
struct tiny_box {
    const struct tiny_model *model; /* borrowed */
    struct place place;
    struct plan_memory memory;
    struct pool *pool, *cpu_pool; /* two lanes run at the same time */
    struct kernels *kernels;
    struct device *device;
    struct ring *ring;
    struct tier tier;
    struct checkpoint checkpoint;
    struct exec exec;
    char run_dir[FILE_PATH_MAX], state_path[FILE_PATH_MAX];
};
/* name: of the run's folder below the scratch folder. create false: the state file is there. */
void tiny_box_open(struct tiny_box *box, const struct tiny_model *model,
                   const struct place_spec *spec, const char *name, bool create);
/* The same on a card of the plugin, or, with NULL, on the CPU. */
void tiny_box_open_on(struct tiny_box *box, const struct tiny_model *model,
                      const struct place_spec *spec, const char *name, bool create,
                      const struct gpu_plugin *plugin);
void tiny_box_close(struct tiny_box *box);

/* What a few steps of a box are made of: settings that clip, and tokens by seed and step in all of
 * its micro-batches. */
extern const struct optim_settings tiny_optim;
void tiny_box_load_tokens(struct tiny_box *box, uint64_t seed, uint32_t step);

/* The current state, wherever its planes are: slot_bytes in the order of a slot of the state file.
 * Freed with mem_free. */
uint8_t *tiny_box_state(struct tiny_box *box);

/* A prepared data folder of `tokens` tokens, with validation data; made by the first call for this
 * vocabulary. The path is good until the test ends. */
const char *tiny_data(uint32_t vocab);

/* Settings of a run that takes a fraction of a second. The paths are this struct's own. */
struct tiny_run {
    struct train_settings settings;
    char run_dir[FILE_PATH_MAX], nvme_dir[FILE_PATH_MAX];
};
/* 3 layers, 64 channels, T 16, B 2, M 1, fp32, 1 thread, no drive, 20 steps, one commit at the end.
 * The folders are run-<name> and nvme-<name>; settings.nvme is empty. */
void tiny_run_init(struct tiny_run *run, const char *name);
/* train_run, which must succeed. */
void tiny_train(struct tiny_run *run);
/* Starts with budgets that are refused and takes what the refusals say until the run is accepted,
 * which must then succeed. settings.vram_budget 0 stays so. */
void tiny_train_least(struct tiny_run *run);
/* With a part of the state on the device: all that fits into little more VRAM than the least. */
void tiny_train_part(struct tiny_run *run);
/* How much of the state a run has on the device, in percent, by its plan.txt. */
int tiny_device_share(const struct tiny_run *run);
/* Whether it computes the head's logits once. */
bool tiny_head_once(const struct tiny_run *run);

/* What a run has logged, as text: one line per step "step loss grad_norm", one per commit "commit
 * weights_hash", in the order of the file; freed with free. */
char *tiny_log(const struct tiny_run *run);
/* A number of the log line of a step; -1 where it has none. */
double tiny_number(const struct tiny_run *run, uint64_t step, const char *name);
/* weights_hash of the run's last commit and its step. */
uint64_t tiny_hash(const struct tiny_run *run, uint64_t *step);

/* Runs fn in a child process and returns its wait status; what it wrote to stderr is put into
 * *output (freed with free). */
int tiny_fork(void (*fn)(void *context), void *context, char **output);

#endif
