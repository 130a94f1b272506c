#include "core/rng.h"
#include "core/base.h"
#include <math.h>

#define PHILOX_ROUNDS 10

struct philox {
    uint32_t word[4];
};

/* Salmon et al., section 3: ten rounds of two 32x32 -> 64 multiplications, the key moved by the
 * golden ratio and sqrt(3) - 1 between rounds. The key is the seed; the counter is the index (low
 * words) and the stream (high words), so two streams never meet. */
static struct philox philox_4x32_10(uint64_t seed, uint64_t stream, uint64_t index)
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    struct philox x = {
        {(uint32_t)index, (uint32_t)(index >> 32), (uint32_t)stream, (uint32_t)(stream >> 32)}};
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * x.word[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * x.word[2];
        x = (struct philox){{(uint32_t)(product1 >> 32) ^ x.word[1] ^ key0, (uint32_t)product1,
                             (uint32_t)(product0 >> 32) ^ x.word[3] ^ key1, (uint32_t)product0}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return x;
}

static uint64_t pair(const struct philox *x, int half)
{
    return (uint64_t)x->word[2 * half] | (uint64_t)x->word[2 * half + 1] << 32;
}

uint64_t rng_u64(uint64_t seed, uint64_t stream, uint64_t index)
{
    struct philox x = philox_4x32_10(seed, stream, index);
    return pair(&x, 0);
}

/* The same rounds with every word of RNG_MANY numbers side by side, as the vectoriser wants it. */
static inline __attribute__((always_inline)) void many(uint64_t seed, uint64_t stream,
                                                       uint64_t first, uint32_t *restrict words)
{
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    uint32_t *x0 = words, *x1 = x0 + RNG_MANY, *x2 = x1 + RNG_MANY, *x3 = x2 + RNG_MANY;
    for (uint32_t i = 0; i < RNG_MANY; i++) {
        x0[i] = (uint32_t)(first + i);
        x1[i] = (uint32_t)((first + i) >> 32);
        x2[i] = (uint32_t)stream;
        x3[i] = (uint32_t)(stream >> 32);
    }
    for (int round = 0; round < PHILOX_ROUNDS; round++) {
        for (uint32_t i = 0; i < RNG_MANY; i++) {
            uint64_t product0 = (uint64_t)0xD2511F53u * x0[i];
            uint64_t product1 = (uint64_t)0xCD9E8D57u * x2[i];
            x0[i] = (uint32_t)(product1 >> 32) ^ x1[i] ^ key0;
            x1[i] = (uint32_t)product1;
            x2[i] = (uint32_t)(product0 >> 32) ^ x3[i] ^ key1;
            x3[i] = (uint32_t)product0;
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

static void many_plain(uint64_t seed, uint64_t stream, uint64_t first, uint32_t *words)
{
    many(seed, stream, first, words);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void many_avx2(uint64_t seed, uint64_t stream,
                                                      uint64_t first, uint32_t *words)
{
    many(seed, stream, first, words);
}

__attribute__((target("avx512f,avx512vl,prefer-vector-width=512"))) static void
many_avx512(uint64_t seed, uint64_t stream, uint64_t first, uint32_t *words)
{
    many(seed, stream, first, words);
}
#endif

void rng_many(uint64_t seed, uint64_t stream, uint64_t first, uint32_t words[4 * RNG_MANY])
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
        many_avx512(seed, stream, first, words);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        many_avx2(seed, stream, first, words);
        return;
    }
#endif
    many_plain(seed, stream, first, words);
}

double rng_uniform(uint64_t seed, uint64_t stream, uint64_t index)
{
    return (double)(rng_u64(seed, stream, index) >> 11) * 0x1p-53;
}

double rng_normal(uint64_t seed, uint64_t stream, uint64_t index)
{
    struct philox x = philox_4x32_10(seed, stream, index);
    /* In (0, 1], since log(0) is not a number to build on. */
    double radius = (double)((pair(&x, 0) >> 11) + 1) * 0x1p-53;
    double angle = (double)(pair(&x, 1) >> 11) * 0x1p-53;
    return sqrt(-2.0 * log(radius)) * cos(2.0 * M_PI * angle);
}

uint64_t rng_below(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound)
{
    ASSERT(bound > 0);
    return (uint64_t)(((unsigned __int128)rng_u64(seed, stream, index) * bound) >> 64);
}
