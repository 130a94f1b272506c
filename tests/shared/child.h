/* child: a part of a test in a process of its own, where it may change what a process has once. */
#ifndef SPILLWAY_TESTS_SHARED_CHILD_H
#define SPILLWAY_TESTS_SHARED_CHILD_H

/* Passes if `run` returns (or its process exits with 0), fails if that process ends otherwise. */
void child_passes(void (*run)(void));

#endif
