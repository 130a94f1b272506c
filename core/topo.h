/*
 * topo: the machine's cores and caches, by hwloc (the only file that includes it).
 *
 * topo_open reads the topology once; topo_bind_thread pins the calling thread to one core, taking
 * performance cores first and one hardware thread per core before siblings. On a machine where
 * binding is refused (a container), it does nothing and says so by its result.
 */
#ifndef SPILLWAY_CORE_TOPO_H
#define SPILLWAY_CORE_TOPO_H

#include "core/err.h"
#include <stddef.h>
#include <stdint.h>

struct topo {
    uint32_t core_count;         /* physical cores this process may use (its cpuset), at least 1 */
    uint32_t thread_count;       /* hardware threads this process may use */
    uint32_t node_count;         /* NUMA nodes */
    uint64_t l2_bytes, l3_bytes; /* of the first core; 0 when unknown */
    char cpu_model[128];
};

/* Idempotent; the result stays valid for the life of the process. Never NULL. */
const struct topo *topo_open(void);

/* Pins the calling thread to the index-th core in preference order (modulo core_count).
 * 0, or -1 where the system refuses. */
int topo_bind_thread(uint32_t index);

/* Asks that the pages of [address, address + bytes) be on the node of the first core. Best effort;
 * 0, or -1 where the system refuses. Call before the first touch. */
int topo_bind_memory(void *address, size_t bytes);

#endif
