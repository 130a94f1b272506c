/*
 * trace: a Chrome/Perfetto trace file (JSON array format) of what every lane did when.
 *
 * trace_event formats into a fixed buffer and writes it when full: nothing is allocated after
 * trace_open. One thread (the scheduler's). Write errors are reported by trace_close.
 */
#ifndef SPILLWAY_CORE_TRACE_H
#define SPILLWAY_CORE_TRACE_H

#include "core/err.h"
#include <stdint.h>

#define TRACE_LANES_MAX 16
#define TRACE_ROWS_MAX  32

struct trace;

int trace_open(struct trace **trace, const char *path, struct err *err);
/* Names the lane, which is below TRACE_LANES_MAX; name: at most 100 bytes. A lane has as many rows
 * as it has events at once (up to TRACE_ROWS_MAX, then they share the last one): viewers drop an
 * event that begins on a row before another has ended there. Row r of a lane has tid lane *
 * TRACE_ROWS_MAX + r. */
void trace_lane(struct trace *trace, uint32_t lane, const char *name);
/* name: at most 100 bytes, no quote or backslash. Times from clock_ns. */
void trace_event(struct trace *trace, uint32_t lane, const char *name, uint64_t start_ns,
                 uint64_t end_ns, uint64_t bytes);
/* From now on every event of trace is written to `also` too, which has the same lanes (NULL: no
 * more). Borrowed: it outlives trace, or this is taken back before. */
void trace_also(struct trace *trace, struct trace *also);
int trace_close(struct trace *trace, struct err *err); /* NULL is legal: 0 */

#endif
