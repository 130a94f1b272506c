/*
 * fuzz: what a fuzz entry is. Each tests/fuzz/fuzz_*.c has one function that takes any bytes and
 * must come back, and some seeds. `make fuzz` runs them by libFuzzer where clang has it, else by
 * tests/fuzz/driver.c, which mutates the seeds by itself; both under the sanitizers.
 */
#ifndef SPILLWAY_TESTS_FUZZ_FUZZ_H
#define SPILLWAY_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#define FUZZ_INPUT_MAX (64u << 10)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Seed number index into to (FUZZ_INPUT_MAX), and its bytes; SIZE_MAX: there are no more. */
size_t fuzz_seed(size_t index, uint8_t *to);

#endif
