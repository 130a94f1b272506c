/*
 * cores: which cores compute threads run on, where fewer threads are asked for than there are cores
 * and the processor has several third-level caches, as one of two dies does: one may have more
 * cache and the other a higher clock. Which is faster is measured, by a matrix product on the cores
 * of each (a tenth of a second or so each), and the fastest come first from then on (topo_prefer).
 * For the CPU device of the trainer, and for bench compute.
 */
#ifndef SPILLWAY_OFFLOAD_CORES_H
#define SPILLWAY_OFFLOAD_CORES_H

#include "core/err.h"
#include "model/config.h"
#include <stdint.h>

/* Before threads are bound; says what it found. Where there is nothing to choose, does nothing. */
int cores_choose(uint32_t thread_count, enum precision precision, struct err *err);

/* The index of the highest rate; the first one stays where none is CORES_MARGIN higher. */
#define CORES_MARGIN 1.02
uint32_t cores_fastest(const double *rates, uint32_t count);

#endif
