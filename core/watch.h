/*
 * watch: ends the program with a sentence when a system call never comes back. A drive that does
 * not answer leaves fsync and its like waiting for ever, and no signal ends that wait; so a thread
 * of the watch's own looks at the clock. (Transfers have their deadlines in io/ring.h.)
 *
 * Owns a thread, which sleeps. One call at a time is watched; begin and end come from one thread,
 * or are ordered otherwise. Nothing allocates after watch_open. For offload/checkpoint.c.
 */
#ifndef SPILLWAY_CORE_WATCH_H
#define SPILLWAY_CORE_WATCH_H

#include "core/err.h"
#include <stdint.h>

struct watch;

/* Long: an fsync may have to wait for all that other programs have written to the same file system,
 * which takes minutes on a slow drive; a run of weeks is not to end for that. */
#define WATCH_PATIENCE_NS (600 * (uint64_t)1000000000)
#define WATCH_TEXT_MAX    1024

int watch_open(struct watch **watch, uint64_t patience_ns, struct err *err);
void watch_close(struct watch *watch); /* NULL is legal; nothing is watched */

/* From now on, until watch_end: fatal with this sentence after the patience. The text is copied,
 * and cut at WATCH_TEXT_MAX. */
void watch_begin(struct watch *watch, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void watch_end(struct watch *watch);

#endif
