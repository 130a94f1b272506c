/*
 * state: the first filling of the tiers: fresh weights, weights of a Hugging Face folder, or a
 * committed state; and a commit outside a step. For use before and between steps: these functions
 * wait for every transfer.
 */
#ifndef SPILLWAY_OFFLOAD_STATE_H
#define SPILLWAY_OFFLOAD_STATE_H

#include "offload/checkpoint.h"
#include "offload/exec.h"

struct ring;
struct safetensors;
struct safetensors_tensor;

/* Master weights from (seed, tensor, index), or from `weights` when it is not NULL; moments zero.
 */
int state_create(struct exec *exec, struct ring *ring, const struct tensors *tensors, uint64_t seed,
                 const struct safetensors *weights, struct err *err);

/* A committed state that lies in tier's own file: planes in RAM and on the device are read, sums
 * taken over. */
int state_load(struct exec *exec, struct ring *ring, const struct checkpoint_manifest *manifest,
               struct err *err);

/* A committed state of another file, read through `reader`, into this (new) tier. */
int state_move(struct exec *exec, struct ring *ring, struct checkpoint_reader *reader,
               struct err *err);

/* Writes what RAM and the device hold into the open slot and commits. No gradient is pending.
 * Returns the bytes written in *written. */
int state_commit(struct exec *exec, struct ring *ring, uint64_t *written, struct err *err);

/* Checks names and shapes of a Hugging Face GPT-2 weight file against the model. */
int state_check_weights(const struct safetensors *weights, const struct tensors *tensors,
                        struct err *err);

/* A tensor by its canonical name, also where the file leaves "transformer." away; NULL when there
 * is none. */
const struct safetensors_tensor *state_find_weights(const struct safetensors *weights,
                                                    const char *name);

#endif
