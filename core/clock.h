/* clock: monotonic time in nanoseconds. The only clock of the program; called from any thread. */
#ifndef SPILLWAY_CORE_CLOCK_H
#define SPILLWAY_CORE_CLOCK_H

#include <stdint.h>

uint64_t clock_ns(void);

#endif
