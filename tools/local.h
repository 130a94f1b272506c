/*
 * local: the profile of the machine that we run on: the file that `spillway bench` keeps, or
 * cautious defaults as long as there is none. Called by every command that predicts.
 */
#ifndef SPILLWAY_TOOLS_LOCAL_H
#define SPILLWAY_TOOLS_LOCAL_H

#include "io/file.h"
#include "offload/profile.h"

/* $XDG_CONFIG_HOME/spillway/machine.json, or ~/.config/spillway/machine.json. ERR_INPUT when
 * neither variable is set. */
int local_profile_path(char path[FILE_PATH_MAX], struct err *err);

/* That file's profile, and true in *measured; or the defaults. RAM that is not known is the
 * machine's. A file that is there and wrong is an error. */
int local_profile(struct profile *profile, bool *measured, struct err *err);

#endif
