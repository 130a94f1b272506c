/*
 * topo: the machine's cores, caches and PCI devices, by hwloc (the only file that includes it).
 *
 * topo_open reads the topology once; topo_bind_thread pins the calling thread to one core, taking
 * performance cores first and one hardware thread per core before siblings. On a machine where
 * binding is refused (a container), it does nothing and says so by its result.
 *
 * Cores are numbered in that order of preference everywhere here.
 */
#ifndef SPILLWAY_CORE_TOPO_H
#define SPILLWAY_CORE_TOPO_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Cores that share a third-level cache: on a processor of several dies there is one a die, and they
 * may differ in size. */
struct topo_l3 {
    uint64_t bytes; /* 0 when unknown */
    uint32_t core_count;
    const uint32_t *cores; /* [core_count], ascending, as for topo_bind_thread */
};

struct topo {
    uint32_t core_count;         /* physical cores this process may use (its cpuset), at least 1 */
    uint32_t thread_count;       /* hardware threads this process may use */
    uint32_t node_count;         /* NUMA nodes */
    uint64_t l2_bytes, l3_bytes; /* of the first cache there is; 0 when unknown */
    uint32_t l3_count;           /* at least 1: without such a cache, all cores and 0 bytes */
    const struct topo_l3 *l3;    /* [l3_count]; every core is in exactly one */
    char cpu_model[128];
};

/* Idempotent; the result stays valid for the life of the process. Never NULL. */
const struct topo *topo_open(void);

/* Pins the calling thread to the index-th core in preference order (modulo core_count).
 * 0, or -1 where the system refuses. */
int topo_bind_thread(uint32_t index);

/* Lets the calling thread run wherever this process may: what a pool of bound workers has left of
 * its caller, and so of the threads that the caller starts, is undone. 0, or -1 where the system
 * refuses. */
int topo_unbind_thread(void);

/* From now on the cores of l3[index] come first, among them and the others as before: cores are
 * numbered anew, and so are the lists in l3, whose order stays. For one thread, while no other is
 * bound or uses the numbers. */
void topo_prefer(uint32_t index);

/* All third-level caches together. */
uint64_t topo_l3_bytes(void);

/* A graphics card, another accelerator, or an NVMe drive. */
struct topo_device {
    char name[96]; /* the vendor's and the device's names, or numbers where no list knows them */
    char kind[16]; /* "GPU", "accelerator", "NVMe drive" */
    char bus[16];  /* "0000:01:00.0" */
    double link_bytes_per_s; /* of its PCIe link as it is now, one way; 0 when unknown */
    int32_t node;            /* NUMA node it hangs on; -1 when all are alike */
};

/* Those on PCI, at most max; returns how many there are. Reads the topology anew (some
 * milliseconds to seconds); one thread at a time. */
uint32_t topo_devices(struct topo_device *devices, uint32_t max);

/* Asks that the pages of [address, address + bytes) be on the node of the first core. Best effort;
 * 0, or -1 where the system refuses. Call before the first touch. */
int topo_bind_memory(void *address, size_t bytes);

#endif
