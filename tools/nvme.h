/*
 * nvme: what --nvme DIR[,DIR...] means: folders on one drive each, what is free there, and how the
 * state is shared among them by what `spillway bench` measured of the drives.
 *
 * Drives are known by where their file system is mounted. Two folders on one file system are one
 * drive, and legal, for tests. Owns nothing but names. For options, and for bench, which writes
 * what is read here.
 */
#ifndef SPILLWAY_TOOLS_NVME_H
#define SPILLWAY_TOOLS_NVME_H

#include "offload/profile.h"
#include "offload/train.h"

struct nvme_list {
    uint32_t count;
    char dir[STRIPE_DRIVES_MAX][FILE_PATH_MAX]; /* absolute */
    char mount[STRIPE_DRIVES_MAX][FILE_PATH_MAX];
    char text[STRIPE_DRIVES_MAX * FILE_PATH_MAX]; /* the folders again, as --nvme takes them */
};

/* text NULL: an empty list. A folder that is there and has a comma in its name is one folder. */
int nvme_parse(struct nvme_list *list, const char *text, struct err *err);

/* The folders, each with a share of 1. Borrows from list. */
struct train_nvme nvme_folders(const struct nvme_list *list);

/* Shares by the profile's drives, in proportion to what each gives to reads and writes together; a
 * line of the log says so, or that they are taken to be alike. */
void nvme_share(const struct nvme_list *list, const struct profile *profile,
                struct train_nvme *nvme);

/* Whether no folder before this one is on the same drive. */
bool nvme_is_first(const struct nvme_list *list, uint32_t folder);

/* Makes profile->ssd that of the listed drives: their number, and the mean of their rates where
 * profile->drives has them all. */
void nvme_profile(const struct nvme_list *list, struct profile *profile);

/* The most that the state may take on all drives together: each has room for its share. held: what
 * a run that goes on has on each of them already. */
int nvme_free_bytes(const struct nvme_list *list, const struct train_nvme *nvme,
                    const struct stripe_files *held, uint64_t *bytes, struct err *err);

#endif
