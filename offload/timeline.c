#include "offload/timeline.h"

#include "core/log.h"
#include "offload/plan.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

void timeline_open(struct timeline *timeline, const char *run_dir)
{
    struct err err;
    int result = file_join(timeline->path, run_dir, TIMELINE_FILE, &err);
    if (result == 0)
        result = file_join(timeline->tmp_path, run_dir, TIMELINE_FILE ".tmp", &err);
    if (result == 0)
        result = trace_open(&timeline->trace, timeline->tmp_path, &err);
    for (uint32_t lane = 0; lane < LANE_COUNT && result == 0; lane++)
        trace_lane(timeline->trace, lane, plan_lane_name[lane]);
    if (result)
        log_warn("there will be no timeline of a step: %s", err.message);
}

void timeline_finish(struct timeline *timeline)
{
    struct err err;
    if (!timeline->trace)
        return;
    int result = trace_close(timeline->trace, &err);
    timeline->trace = NULL;
    if (result == 0 && rename(timeline->tmp_path, timeline->path) != 0)
        result = err_set_errno(&err, errno, "cannot make %s", timeline->path);
    if (result == 0)
        return;
    unlink(timeline->tmp_path);
    log_warn("there is no timeline of a step: %s", err.message);
}

void timeline_close(struct timeline *timeline)
{
    struct err ignored;
    if (!timeline->trace)
        return;
    trace_close(timeline->trace, &ignored);
    timeline->trace = NULL;
    unlink(timeline->tmp_path);
}
