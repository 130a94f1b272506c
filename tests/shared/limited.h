/*
 * limited: a test program once more, in a process where oneDNN is told that the CPU has no AVX-512,
 * so that what is there for other CPUs is tested on this one: the library's products instead of our
 * own, and bf16 ones in float.
 */
#ifndef SPILLWAY_TESTS_SHARED_LIMITED_H
#define SPILLWAY_TESTS_SHARED_LIMITED_H

#include <stdbool.h>

/* Whether this is that process. */
bool limited_is(void);

/* A cmocka test: all of the program's tests pass there. Skipped in that process itself. */
void limited_test(void **state);

#endif
