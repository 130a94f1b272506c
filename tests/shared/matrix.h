/* matrix: factors of products under test. */
#ifndef SPILLWAY_TESTS_SHARED_MATRIX_H
#define SPILLWAY_TESTS_SHARED_MATRIX_H

#include "model/config.h"
#include <stddef.h>
#include <stdint.h>

/* `count` normal numbers, the same for a stream; the caller's, by mem_free. */
void *matrix_draw(uint64_t stream, size_t count, enum precision precision);

/* Element `index` as float. */
float matrix_element(const void *matrix, size_t index, enum precision precision);

#endif
