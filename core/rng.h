/*
 * rng: counter-based random numbers (Philox-4x32-10, Salmon et al., "Parallel random numbers: as
 * easy as 1, 2, 3", SC'11). A number is a pure function of (seed, stream, index): no state, no
 * order, any thread, so that what is drawn never depends on placement or on resuming.
 */
#ifndef SPILLWAY_CORE_RNG_H
#define SPILLWAY_CORE_RNG_H

#include <stdbool.h>
#include <stdint.h>

/* Streams keep the purposes apart. A tensor's initial values use RNG_STREAM_INIT + its index. */
enum rng_stream {
    RNG_STREAM_BATCH = 1,
    RNG_STREAM_SPLIT = 2,
    RNG_STREAM_SAMPLE = 3,
    RNG_STREAM_ROUNDING = 4, /* and the step in the upper half (model/moments.h) */
    RNG_STREAM_INIT = 1 << 16,
};

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index);

/* All four words of the numbers `first` to first + RNG_MANY - 1, word by word: word w of number
 * first + i is words[w * RNG_MANY + i]. rng_u64 is words 0 (low) and 1. For loops that need a bit
 * of chance at every turn: some ten times as fast, by vectors. */
#define RNG_MANY 64
void rng_many(uint64_t seed, uint64_t stream, uint64_t first, uint32_t words[4 * RNG_MANY]);
/* The same, in one of the ways that it chooses from; false where this CPU cannot. For tests. */
enum rng_way { RNG_PLAIN, RNG_AVX2, RNG_AVX512, RNG_WAYS };
bool rng_many_by(enum rng_way way, uint64_t seed, uint64_t stream, uint64_t first,
                 uint32_t words[4 * RNG_MANY]);

/* Uniform in [0, 1) with 53 random bits. */
double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index);

/* Standard normal (Box-Muller on the pair of numbers at index), the same on every machine with
 * the same libm. */
double rng_normal(uint64_t seed, uint64_t stream, uint64_t index);

/* Uniform integer in [0, bound), bound > 0, without bias worth naming (128-bit multiply). */
uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound);

#endif
