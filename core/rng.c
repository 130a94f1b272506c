#include "core/rng.h"
#include "core/base.h"
#include <math.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PHILOX_ROUNDS 10
#define GROUPS        2

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

/* Numbers first to first + RNG_MANY - 1, word by word. */
static void many_plain(uint64_t seed, uint64_t stream, uint64_t first, uint32_t *words)
{
    for (uint32_t i = 0; i < RNG_MANY; i++) {
        struct philox x = philox_4x32_10(seed, stream, first + i);
        for (uint32_t w = 0; w < 4; w++)
            words[w * RNG_MANY + i] = x.word[w];
    }
}

#if defined(__x86_64__)
/* Eight numbers side by side. By hand, since the vectoriser makes three multiplications of 64 bits
 * out of each of 32. */
__attribute__((target("avx2"))) static inline __m256i high_product(__m256i x, __m256i factor,
                                                                   __m256i *low)
{
    __m256i even = _mm256_mul_epu32(x, factor);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), factor);
    *low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    return _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
}

__attribute__((target("avx2"))) static void many_avx2(uint64_t seed, uint64_t stream,
                                                      uint64_t first, uint32_t *words)
{
    const __m256i factor0 = _mm256_set1_epi32((int)0xD2511F53u);
    const __m256i factor1 = _mm256_set1_epi32((int)0xCD9E8D57u);
    __m256i key[PHILOX_ROUNDS][2];
    for (uint32_t round = 0; round < PHILOX_ROUNDS; round++) {
        key[round][0] = _mm256_set1_epi32((int)((uint32_t)seed + round * 0x9E3779B9u));
        key[round][1] = _mm256_set1_epi32((int)((uint32_t)(seed >> 32) + round * 0xBB67AE85u));
    }
    for (uint32_t i = 0; i < RNG_MANY; i++) {
        words[i] = (uint32_t)(first + i);
        words[RNG_MANY + i] = (uint32_t)((first + i) >> 32);
    }
    /* GROUPS at a time, so that one's multiplications fill the others' waits. */
    for (uint32_t i = 0; i < RNG_MANY; i += GROUPS * 8) {
        __m256i x[GROUPS][4];
        for (uint32_t g = 0; g < GROUPS; g++) {
            x[g][0] = _mm256_loadu_si256((__m256i *)(words + i + g * 8));
            x[g][1] = _mm256_loadu_si256((__m256i *)(words + RNG_MANY + i + g * 8));
            x[g][2] = _mm256_set1_epi32((int)(uint32_t)stream);
            x[g][3] = _mm256_set1_epi32((int)(uint32_t)(stream >> 32));
        }
        for (uint32_t round = 0; round < PHILOX_ROUNDS; round++)
            for (uint32_t g = 0; g < GROUPS; g++) {
                __m256i low0, low1, high0 = high_product(x[g][0], factor0, &low0);
                __m256i high1 = high_product(x[g][2], factor1, &low1);
                x[g][0] = _mm256_xor_si256(_mm256_xor_si256(x[g][1], key[round][0]), high1);
                x[g][1] = low1;
                x[g][2] = _mm256_xor_si256(_mm256_xor_si256(x[g][3], key[round][1]), high0);
                x[g][3] = low0;
            }
        for (uint32_t g = 0; g < GROUPS; g++)
            for (uint32_t w = 0; w < 4; w++)
                _mm256_storeu_si256((__m256i *)(words + w * RNG_MANY + i + g * 8), x[g][w]);
    }
}

#define AVX512 __attribute__((target("avx512f,avx512dq")))

AVX512 static inline __m512i high_product_wide(__m512i x, __m512i factor, __m512i *low)
{
    __m512i even = _mm512_mul_epu32(x, factor);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), factor);
    *low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    return _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
}

/* Sixteen numbers side by side; all of them at a time, so that one's multiplications fill the
 * others' waits. */
AVX512 static void many_avx512(uint64_t seed, uint64_t stream, uint64_t first, uint32_t *words)
{
    enum { ALL = RNG_MANY / 16 };
    const __m512i factor0 = _mm512_set1_epi32((int)0xD2511F53u);
    const __m512i factor1 = _mm512_set1_epi32((int)0xCD9E8D57u);
    for (uint32_t i = 0; i < RNG_MANY; i++) {
        words[i] = (uint32_t)(first + i);
        words[RNG_MANY + i] = (uint32_t)((first + i) >> 32);
    }
    __m512i x[ALL][4];
    for (uint32_t g = 0; g < ALL; g++) {
        x[g][0] = _mm512_loadu_si512(words + g * 16);
        x[g][1] = _mm512_loadu_si512(words + RNG_MANY + g * 16);
        x[g][2] = _mm512_set1_epi32((int)(uint32_t)stream);
        x[g][3] = _mm512_set1_epi32((int)(uint32_t)(stream >> 32));
    }
    for (uint32_t round = 0; round < PHILOX_ROUNDS; round++) {
        __m512i key0 = _mm512_set1_epi32((int)((uint32_t)seed + round * 0x9E3779B9u));
        __m512i key1 = _mm512_set1_epi32((int)((uint32_t)(seed >> 32) + round * 0xBB67AE85u));
        for (uint32_t g = 0; g < ALL; g++) {
            __m512i low0, low1, high0 = high_product_wide(x[g][0], factor0, &low0);
            __m512i high1 = high_product_wide(x[g][2], factor1, &low1);
            x[g][0] = _mm512_ternarylogic_epi32(x[g][1], key0, high1, 0x96);
            x[g][1] = low1;
            x[g][2] = _mm512_ternarylogic_epi32(x[g][3], key1, high0, 0x96);
            x[g][3] = low0;
        }
    }
    for (uint32_t g = 0; g < ALL; g++)
        for (uint32_t w = 0; w < 4; w++)
            _mm512_storeu_si512(words + w * RNG_MANY + g * 16, x[g][w]);
}
#endif

bool rng_many_by(enum rng_way way, uint64_t seed, uint64_t stream, uint64_t first,
                 uint32_t words[4 * RNG_MANY])
{
    if (way == RNG_PLAIN)
        many_plain(seed, stream, first, words);
#if defined(__x86_64__)
    else if (way == RNG_AVX2 && __builtin_cpu_supports("avx2"))
        many_avx2(seed, stream, first, words);
    else if (way == RNG_AVX512 && __builtin_cpu_supports("avx512dq"))
        many_avx512(seed, stream, first, words);
#endif
    else
        return false;
    return true;
}

void rng_many(uint64_t seed, uint64_t stream, uint64_t first, uint32_t words[4 * RNG_MANY])
{
    for (int way = RNG_WAYS; way-- > 0;)
        if (rng_many_by((enum rng_way)way, seed, stream, first, words))
            return;
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
