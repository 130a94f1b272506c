/*
 * devices: which device a run computes on, by --device auto|cpu|cuda[:N].
 */
#ifndef SPILLWAY_TOOLS_DEVICES_H
#define SPILLWAY_TOOLS_DEVICES_H

#include "offload/train.h"

/* How a device is recorded: "cuda" is "cuda:0", all else as it is. */
const char *devices_name(const char *word);

/* Sets settings->cuda and cuda_device; *name: "cpu" or "cuda:N", what auto has become (a static
 * string, or word). auto is the first card where there is one. ERR_INPUT where a card is asked for
 * and there is none, with why. */
int devices_choose(const char *word, struct train_settings *settings, const char **name,
                   struct err *err);

#endif
