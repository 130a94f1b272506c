/*
 * timeline: RUN/timeline.json, what every lane did in one steady step of a run, for `spillway
 * report` and for https://ui.perfetto.dev. A trace (core/trace.h) of that one step, made once a
 * call and put in the place of the one before when it is whole. No part of the state: whatever
 * fails is a warning, and the run goes on.
 */
#ifndef SPILLWAY_OFFLOAD_TIMELINE_H
#define SPILLWAY_OFFLOAD_TIMELINE_H

#include "core/trace.h"
#include "io/file.h"

#define TIMELINE_FILE "timeline.json"

struct timeline {
    struct trace *trace; /* owned; NULL: there is none, or it is done */
    char path[FILE_PATH_MAX], tmp_path[FILE_PATH_MAX];
};

/* Before memory is sealed: what comes later allocates nothing. */
void timeline_open(struct timeline *timeline, const char *run_dir);
/* The step has been traced: the file takes its name. */
void timeline_finish(struct timeline *timeline);
/* Drops what was not finished; zeroed and finished is legal. */
void timeline_close(struct timeline *timeline);

#endif
