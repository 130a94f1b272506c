/*
 * home: where a run keeps its state: RUN/state.bin, or DIR/spillway-<hash>.state on an NVMe folder,
 * or a file on each of several (offload/stripe.h).
 *
 * The hash is of the run's folder as it is now, its path and its inode, so that neither a copy of
 * that folder nor a new run under the name of one that was renamed takes another run's file
 * (tests/system/folders.sh). Over several drives the names say of which set of folders they are, so
 * that a run can move between sets that overlap.
 *
 * Decides names and removes files that were left; tier.c opens and creates them. For run.c.
 */
#ifndef SPILLWAY_OFFLOAD_HOME_H
#define SPILLWAY_OFFLOAD_HOME_H

#include "offload/checkpoint.h"
#include "offload/stripe.h"
#include "offload/train.h"

struct home {
    struct stripe_files files; /* where the state is to be by the settings */
    char own[FILE_PATH_MAX];   /* RUN/state.bin */
    char prefix[32];           /* of this run's files on NVMe folders */
};

/* The run's folder and those of the tier are there. ERR_INPUT: a folder is named twice. */
int home_find(struct home *home, const struct train_settings *settings, struct err *err);

/* The state has moved: its old files are given up, but for those that another run may still mean:
 * the log names them. */
void home_leave(const struct home *home, const struct stripe_files *old);

/* Killed after a move to a drive had been committed, and before the old file was given up: RUN's
 * own state file, where the state is elsewhere. */
void home_clean(const struct home *home);

#endif
