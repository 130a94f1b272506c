#include "core/hash.h"
#include "core/base.h"
#include <xxhash.h>

uint64_t hash_bytes(const void *data, size_t bytes, uint64_t seed)
{
    ASSERT(data != NULL || bytes == 0);
    return XXH3_64bits_withSeed(data, bytes, seed);
}
