/*
 * Every loop here is one that the compiler can turn into vectors, and is compiled three times, as
 * in model/optim.c; the versions give the same bits, because they consist of integers, comparisons
 * and single operations that IEEE 754 rounds correctly. tests/model/test_moments.c compares with
 * plain code.
 */
#include "model/moments.h"

#include "core/float.h"
#include "core/rng.h"

#include <math.h>
#include <string.h>

#define EXPONENT_BITS   7 /* that is, decades of the map: section 1.3 of the paper */
#define KEY_FIRST       ((127 - 24) * 128) /* 2^-24: below it all maps are at their first entry */
#define MAP_ENTRIES     256
#define MAGNITUDES_OF_M (MAP_ENTRIES / 2 + 1) /* zero, 127 of either sign, and 1 */
#define FLOAT_INFINITY  0x7f800000u

_Static_assert(sizeof(struct moments_8bit) == MOMENTS_BLOCK + 4, "blocks lie back to back");
_Static_assert(MOMENTS_BLOCK == 4 * RNG_MANY, "one word of random bits a parameter");

const char *const moments_name[MOMENTS_KIND_COUNT] = {"fp32", "bf16", "8bit"};

enum moments_kind moments_find(const char *name)
{
    uint32_t kind = 0;
    while (kind < MOMENTS_KIND_COUNT && strcmp(name, moments_name[kind]) != 0)
        kind++;
    return (enum moments_kind)kind;
}

/* ---- Maps ------------------------------------------------------------------------------------ */

/* The magnitudes of a map, ascending: zero, the middles of 2^i (unsigned: 2^(i+1)) equal parts of
 * every decade i from 1e-7 to 1, and 1. Returns how many. */
static uint32_t magnitudes(float values[MAP_ENTRIES], bool is_signed)
{
    uint32_t count = 0;
    values[count++] = 0;
    for (int decade = 0; decade < EXPONENT_BITS; decade++) {
        int parts = 1 << (is_signed ? decade : decade + 1);
        double unit = pow(10, decade - (EXPONENT_BITS - 1));
        for (int i = 0; i < parts; i++)
            values[count++] = (float)(unit * (0.1 + 0.9 * (i + 0.5) / parts));
    }
    values[count++] = 1;
    return count;
}

static void map_init(struct moments_map *map, bool is_signed)
{
    float values[MAP_ENTRIES];
    uint32_t count = magnitudes(values, is_signed);
    ASSERT(count == (is_signed ? MAGNITUDES_OF_M : MAP_ENTRIES));
    for (uint32_t i = 0; i < MAP_ENTRIES; i++)
        map->middle[i] = i + 1 < count ? (values[i] + values[i + 1]) / 2 : INFINITY;
    /* -1 is not in the signed map, or it would have 257 entries. */
    for (uint32_t i = 0; i < count; i++) {
        map->value[i] = values[i];
        if (is_signed && i > 0 && i + 1 < count)
            map->value[MAP_ENTRIES - i] = -values[i];
    }
    uint32_t entry = 0;
    for (uint32_t key = 0; key < MOMENTS_KEYS; key++) {
        float low = key ? float_from_bits((KEY_FIRST + key) << 16) : 0;
        while (low >= map->middle[entry])
            entry++;
        map->start[key] = entry;
        /* One comparison tells the entry: no two middles have the same key. */
        ASSERT(float_from_bits((KEY_FIRST + key + 1) << 16) <= map->middle[MIN(entry + 1, 255)]);
    }
}

void moments_init(struct moments *moments, enum moments_kind kind, uint64_t seed)
{
    ASSERT(kind < MOMENTS_KIND_COUNT);
    *moments = (struct moments){.kind = kind, .seed = seed};
    map_init(&moments->m, true);
    map_init(&moments->v, false);
}

/* ---- Loops ------------------------------------------------------------------------------------
 */

#define INLINE static inline __attribute__((always_inline))

INLINE void load_bf16(float *restrict values, const uint16_t *restrict stored)
{
    for (uint32_t i = 0; i < MOMENTS_BLOCK; i++)
        values[i] = float_from_bits((uint32_t)stored[i] << 16);
}

/* Signs are apart from magnitudes, so to add to the bits moves a value away from zero. */
INLINE bool store_bf16(uint16_t *restrict stored, const float *restrict values,
                       const uint32_t *restrict random, uint32_t shift)
{
    uint32_t broken = 0;
    for (uint32_t i = 0; i < MOMENTS_BLOCK; i++) {
        uint32_t bits = float_bits(values[i]);
        uint32_t rounded = bits + ((random[i] >> shift) & 0xffffu);
        broken |= (bits & FLOAT_INFINITY) == FLOAT_INFINITY;
        broken |= (rounded & FLOAT_INFINITY) == FLOAT_INFINITY;
        stored[i] = (uint16_t)(rounded >> 16);
    }
    return broken == 0;
}

INLINE void load_8bit(float *restrict values, const struct moments_8bit *restrict stored,
                      const struct moments_map *restrict map)
{
    for (uint32_t i = 0; i < MOMENTS_BLOCK; i++)
        values[i] = map->value[stored->code[i]] * stored->scale;
}

INLINE bool store_8bit(struct moments_8bit *restrict stored, const float *restrict values,
                       const struct moments_map *restrict map, bool is_signed)
{
    uint32_t largest = 0, entries[MOMENTS_BLOCK];
    for (uint32_t i = 0; i < MOMENTS_BLOCK; i++) {
        uint32_t magnitude = float_bits(values[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    stored->scale = float_from_bits(largest);
    if (largest == 0 || largest >= FLOAT_INFINITY) {
        memset(stored->code, 0, sizeof(stored->code));
        return largest == 0;
    }
    for (uint32_t i = 0; i < MOMENTS_BLOCK; i++) {
        uint32_t bits = float_bits(values[i]), magnitude = bits & 0x7fffffffu;
        float scaled = float_from_bits(magnitude) / stored->scale;
        uint32_t key = float_bits(scaled) >> 16;
        key = key > KEY_FIRST ? key - KEY_FIRST : 0;
        uint32_t entry = map->start[key];
        entry += scaled >= map->middle[entry];
        uint32_t negative = is_signed ? bits >> 31 : 0;
        uint32_t most = negative ? MAGNITUDES_OF_M - 2 : MAP_ENTRIES - 1;
        entry = entry < most ? entry : most;
        entry += !is_signed && entry == 0 && magnitude > 0;
        entries[i] = negative ? MAP_ENTRIES - entry : entry;
    }
    for (uint32_t i = 0; i < MOMENTS_BLOCK; i++)
        stored->code[i] = (uint8_t)entries[i];
    return true;
}

INLINE void load(const struct moments *moments, struct moments_values *values, const void *m,
                 const void *v)
{
    switch (moments->kind) {
    case MOMENTS_BF16:
        load_bf16(values->m, m);
        load_bf16(values->v, v);
        return;
    case MOMENTS_8BIT:
        load_8bit(values->m, m, &moments->m);
        load_8bit(values->v, v, &moments->v);
        return;
    default:
        memcpy(values->m, m, sizeof(values->m));
        memcpy(values->v, v, sizeof(values->v));
    }
}

/* Of the word that a parameter draws, m takes the lower half and v the upper. */
INLINE bool store(const struct moments *moments, const struct moments_values *values, void *m,
                  void *v, const uint32_t *random)
{
    if (moments->kind == MOMENTS_BF16)
        return store_bf16(m, values->m, random, 0) & store_bf16(v, values->v, random, 16);
    return store_8bit(m, values->m, &moments->m, true) &
           store_8bit(v, values->v, &moments->v, false);
}

/* ---- The two versions -----------------------------------------------------------------------
 */

static void load_plain(const struct moments *moments, struct moments_values *values, const void *m,
                       const void *v)
{
    load(moments, values, m, v);
}

static bool store_plain(const struct moments *moments, const struct moments_values *values, void *m,
                        void *v, const uint32_t *random)
{
    return store(moments, values, m, v, random);
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))

AVX2 static void load_avx2(const struct moments *moments, struct moments_values *values,
                           const void *m, const void *v)
{
    load(moments, values, m, v);
}

AVX2 static bool store_avx2(const struct moments *moments, const struct moments_values *values,
                            void *m, void *v, const uint32_t *random)
{
    return store(moments, values, m, v, random);
}
#endif

void moments_load(const struct moments *moments, struct moments_values *values, const void *m,
                  const void *v)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        load_avx2(moments, values, m, v);
        return;
    }
#endif
    load_plain(moments, values, m, v);
}

static bool store_any(const struct moments *moments, const struct moments_values *values, void *m,
                      void *v, const uint32_t *random)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2"))
        return store_avx2(moments, values, m, v, random);
#endif
    return store_plain(moments, values, m, v, random);
}

static bool all_finite(const float *values)
{
    uint32_t broken = 0;
    for (uint32_t i = 0; i < MOMENTS_BLOCK; i++)
        broken |= (float_bits(values[i]) & FLOAT_INFINITY) == FLOAT_INFINITY;
    return broken == 0;
}

bool moments_store(const struct moments *moments, const struct moments_values *values, void *m,
                   void *v, const struct moments_place *place)
{
    uint32_t random[MOMENTS_BLOCK];
    ASSERT(place->first % MOMENTS_BLOCK == 0 && place->step <= UINT32_MAX);
    if (moments->kind == MOMENTS_FP32) {
        memcpy(m, values->m, sizeof(values->m));
        memcpy(v, values->v, sizeof(values->v));
        return all_finite(values->m) & all_finite(values->v);
    }
    if (moments->kind == MOMENTS_BF16)
        rng_many(moments->seed, RNG_STREAM_ROUNDING | place->step << 32, place->first / 4, random);
    return store_any(moments, values, m, v, random);
}
