/*
 * sweep_page: the page of a sweep: what to buy. Called by tools/sweep.c with its parsed
 * results.json (the same names as in metrics.jsonl and `plan --json`).
 *
 * out_dir exists. Writes out_dir/index.html and out_dir/results.csv, each whole or not at all; an
 * error names the file, or gnuplot where it is missing.
 */
#ifndef SPILLWAY_TOOLS_SWEEP_PAGE_H
#define SPILLWAY_TOOLS_SWEEP_PAGE_H

#include "core/err.h"

struct json_value;

int sweep_page_write(const struct json_value *results, const char *out_dir, struct err *err);

#endif
