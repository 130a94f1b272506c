/*
 * report_timeline: RUN/timeline.json, a trace of one step (offload/timeline.h), as bars on a page:
 * a row for each lane, coloured by phase. Called by tools/report.c.
 *
 * Bars that would lie within a thousandth of a step of each other and are of one phase are drawn as
 * one, so that a step of a hundred thousand ops is still a page that opens.
 */
#ifndef SPILLWAY_TOOLS_REPORT_TIMELINE_H
#define SPILLWAY_TOOLS_REPORT_TIMELINE_H

#include "tools/page.h"

/* Says so on the page when the file is absent or cannot be read. */
void report_put_timeline(struct page *page, const char *run_dir);

#endif
