/*
 * pool: a team of worker threads, each pinned to a core. The only file with locks.
 *
 * A job is `task_count` independent calls fn(context, task, worker); workers take tasks from a
 * counter, so which worker runs which task varies: a task must write only what is its own, and
 * its result must not depend on `worker` (which may choose scratch memory only). That makes
 * results identical for any number of threads.
 * Idle workers spin for some microseconds and then sleep in futex. pool_run is called by one
 * thread at a time; the caller works too, as worker 0. Nothing allocates after pool_open.
 */
#ifndef SPILLWAY_CORE_POOL_H
#define SPILLWAY_CORE_POOL_H

#include "core/err.h"
#include <stdbool.h>
#include <stdint.h>

struct pool;

#define POOL_THREADS_MAX 256

/* thread_count in 1..POOL_THREADS_MAX counts the caller. name (<= 10 characters) names the
 * threads. bind: pin worker i to core i, and whoever calls pool_run to core 0 from
 * then on; threads that it starts later inherit that (topo_unbind_thread undoes it). */
int pool_open(struct pool **pool, const char *name, uint32_t thread_count, bool bind,
              struct err *err);
void pool_close(struct pool *pool); /* NULL is legal */

uint32_t pool_thread_count(const struct pool *pool);

void pool_run(struct pool *pool, void (*fn)(void *context, uint32_t task, uint32_t worker),
              void *context, uint32_t task_count);

#endif
