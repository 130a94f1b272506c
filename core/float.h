/*
 * float: bfloat16, and the hi/lo split of an FP32 weight (DESIGN section 3).
 *
 * hi is the bf16 weight the device computes with: (bits + 0x8000) >> 16, that is to nearest with
 * ties away from zero; lo is the signed 16-bit difference. (hi, lo) give the FP32 master back bit
 * for bit, ties and denormals included. A non-finite master is the caller's to refuse.
 * Gradients and activations stored as bf16 use float_to_bf16: to nearest, ties to even; a NaN
 * stays a NaN.
 */
#ifndef SPILLWAY_CORE_FLOAT_H
#define SPILLWAY_CORE_FLOAT_H

#include <stdint.h>
#include <string.h>

typedef uint16_t bf16_bits; /* storage only: arithmetic is done in float */

static inline uint32_t float_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline float float_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline float float_from_bf16(uint16_t value)
{
    return float_from_bits((uint32_t)value << 16);
}

static inline uint16_t float_to_bf16(float value)
{
    uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline void float_split(float master, uint16_t *hi, int16_t *lo)
{
    uint32_t bits = float_bits(master);
    uint32_t high = (bits + 0x8000u) >> 16;
    *hi = (uint16_t)high;
    *lo = (int16_t)(uint16_t)(bits - (high << 16));
}

static inline float float_join(uint16_t hi, int16_t lo)
{
    return float_from_bits(((uint32_t)hi << 16) + (uint32_t)(int32_t)lo);
}

/* count of them; the ranges do not overlap. */
static inline void float_join_many(const uint16_t *hi, const int16_t *lo, float *masters,
                                   uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        masters[i] = float_join(hi[i], lo[i]);
}

#endif
