/*
 * command: the program's commands as a user meets them, each call in a child process of its own,
 * and the folders they work on: prepared data with a real tokenizer, descriptions of small models,
 * Hugging Face folders with weights that a test chooses. All of it in the scratch folder
 * (tests/shared/scratch.h).
 */
#ifndef SPILLWAY_TESTS_SHARED_COMMAND_H
#define SPILLWAY_TESTS_SHARED_COMMAND_H

#include "model/tensors.h"

/* Runs main with the words of line, the first being the command's name; '@' stands for the scratch
 * folder. Returns the exit status; fails the test when the child dies of a signal. */
int command_run(int (*main)(int argc, char **argv), const char *line);
/* What the last call wrote; valid until the next one. */
const char *command_out(void);
const char *command_err(void);

/* Status 0, or the test fails with what was said. */
void command_must(int (*main)(int argc, char **argv), const char *line);
/* That status, and one sentence on stderr that contains `what` ('@' as above). */
void command_refused(int (*main)(int argc, char **argv), const char *line, int status,
                     const char *what);

/* Data in the folder `name`: some 4,000 tokens to train on and 700 to validate with, and a
 * tokenizer of COMMAND_VOCAB tokens or less, the same for the same seed. */
#define COMMAND_VOCAB 300
void command_data(const char *name, uint64_t seed);

/* name.json: a GPT-2 of that shape, with heads of 16 channels. vocab >= COMMAND_VOCAB. */
void command_model(struct config *config, const char *name, uint32_t layers, uint32_t channels,
                   uint32_t positions, uint32_t vocab);

/* A Hugging Face folder of that model, with the tokenizer of the data folder `data`; value gives
 * element `index` of tensor number `tensor`. */
void command_folder(const char *name, const struct config *config, const char *data,
                    float (*value)(const void *context, const struct tensors *tensors,
                                   uint32_t tensor, uint64_t index),
                    const void *context);

#endif
