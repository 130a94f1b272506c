/*
 * wear: what training costs a drive: the bytes written a day, commits included, and how long what
 * the drive is rated for lasts at that. Where the endurance is not known (a profile that bench has
 * measured, unless its ssd.endurance_bytes was written in by hand) nothing is claimed. Pure but for
 * wear_warn. Called by the search, which keeps a --write-budget by it, by forecast and by train.
 */
#ifndef SPILLWAY_OFFLOAD_WEAR_H
#define SPILLWAY_OFFLOAD_WEAR_H

#include "offload/place.h"

#define WEAR_DAY_S 86400.0
/* Drives that are used up sooner are worth a warning, and a word on how to spare them. */
#define WEAR_WARN_DAYS 365.0

struct wear {
    uint64_t commit_bytes;  /* what a commit writes: the state that RAM holds */
    double bytes_per_day;   /* training day and night, commits as often as the spec says */
    double days_left;       /* INFINITY: not known, or nothing is written */
    double endurance_bytes; /* of all drives together; 0: not known */
};

/* Of a placement (at chunk or at layer level) whose usual step writes so much and takes so long. */
void wear_of(struct wear *wear, const struct place *place, uint64_t step_bytes, double step_s);

/* One line where the endurance would be used up within WEAR_WARN_DAYS. */
void wear_warn(const struct wear *wear);

#endif
