#include "core/hash.h"
#include "core/base.h"
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h> /* the library's choice of SSE2, AVX2 or AVX-512, at run time */
#else
#include <xxhash.h>
#endif

uint64_t hash_bytes(const void *data, size_t bytes, uint64_t seed)
{
    ASSERT(data != NULL || bytes == 0);
    return XXH3_64bits_withSeed(data, bytes, seed);
}
