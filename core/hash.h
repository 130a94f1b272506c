/*
 * hash: XXH3 (xxHash), the only file that includes it. 64-bit checksums of byte ranges, not
 * cryptographic. Pure, any thread, allocates nothing.
 */
#ifndef SPILLWAY_CORE_HASH_H
#define SPILLWAY_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>

/* XXH3_64bits_withSeed. data may be NULL when bytes is 0. */
uint64_t hash_bytes(const void *data, size_t bytes, uint64_t seed);

#endif
