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

/* What predictions of the chosen card begin with, into *card, and a line that says whence: what
 * bench measured of it (profile->card), or else what is known of a card of that name. 1: nothing is
 * known, and *card is as it was. */
int devices_card(const struct train_settings *settings, const struct profile *profile,
                 struct profile_device *card, struct err *err);

#endif
