/*
 * bench_table: reading, writing and mixed traffic of a drive against transfer size and queue depth:
 * measured, printed, as JSON and as a plot. For tools/bench_ssd.c.
 *
 * A cell is a way, a size and a depth (of each direction). All cells take turns several times,
 * since a shared drive changes its speed within seconds, and a cell's rate is the median of its
 * turns; its latencies are those of all its transfers, from submission to completion. Cells whose
 * transfers do not fit the drive's buffers or file are left out.
 */
#ifndef SPILLWAY_TOOLS_BENCH_TABLE_H
#define SPILLWAY_TOOLS_BENCH_TABLE_H

#include "core/err.h"
#include "tools/bench_drive.h"

struct bench;
struct json_value;
struct bench_table;

struct bench_table_request {
    struct bench_drive *drive; /* borrowed; its given members are set, and it need not be open */
    double seconds;            /* altogether, about */
    uint64_t chunk_bytes;      /* what a step moves */
    uint64_t block_bytes;      /* of the one cell that is measured; 0: a table */
    uint32_t depth;
    const char *way; /* the only one that is measured; NULL: all */
};

struct bench_table *bench_table_open(const struct bench_table_request *request);
void bench_table_close(struct bench_table *table);           /* NULL is legal */
uint32_t bench_table_steps(const struct bench_table *table); /* of progress; NULL: none */
int bench_table_measure(struct bench_table *table, struct bench *bench, struct err *err);

/* depth: that of a step, whose latencies are told. */
void bench_table_print(const struct bench_table *table, uint32_t depth);
/* A list of cells, owned by the caller. */
struct json_value *bench_table_json(const struct bench_table *table);
/* Draws a panel for each way into a PNG or SVG file, by its name's ending. */
int bench_table_plot(const struct bench_table *table, const char *path, struct err *err);
/* 0 when the path has an ending that can be drawn, and gnuplot can: to be asked before measuring.
 */
int bench_table_check_plot(const char *path, struct err *err);

#endif
