/*
 * bench_drives: the drives of a list, each measured by itself: profile.drives has one entry for
 * each, by its mount, and profile.ssd their mean and number. For bench.c; bench_ssd measures one
 * drive.
 */
#ifndef SPILLWAY_TOOLS_BENCH_DRIVES_H
#define SPILLWAY_TOOLS_BENCH_DRIVES_H

#include "tools/bench.h"
#include "tools/nvme.h"

/* bench->nvme_dir is set for each in turn, and bench->seconds shared among them. Two folders on one
 * drive are measured once. Entries of other drives that the profile has already are kept. */
int bench_drives(struct bench *bench, const struct nvme_list *list, struct err *err);

#endif
