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

struct trace;

int trace_open(struct trace **trace, const char *path, struct err *err);
/* Names the row with number lane. */
void trace_lane(struct trace *trace, uint32_t lane, const char *name);
/* name: at most 100 bytes, no quote or backslash. Times from clock_ns. */
void trace_event(struct trace *trace, uint32_t lane, const char *name, uint64_t start_ns,
                 uint64_t end_ns, uint64_t bytes);
int trace_close(struct trace *trace, struct err *err); /* NULL is legal: 0 */

#endif
