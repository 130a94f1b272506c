/*
 * stamp: whether inputs are still what they were, told without reading them: for each, its files,
 * their bytes, and a hash of their paths, sizes and times of change. A file that is written to
 * within a tick of the clock without a change of its size is not noticed.
 *
 * A million files take a second or two. Called by prep before it reads.
 */
#ifndef SPILLWAY_IO_STAMP_H
#define SPILLWAY_IO_STAMP_H

#include "io/tree.h"
#include <stddef.h>
#include <stdint.h>

struct pool;

struct stamp {
    uint64_t files, bytes, hash;
};

/* stamps[0..input_count) of the tree's inputs. Standard input has no size and always the same hash.
 * The pool may be NULL. */
void stamp_take(struct stamp *stamps, size_t input_count, const struct tree *tree,
                struct pool *pool);

#endif
