/* bf16 as in CUDA's cuda_bf16.h: the conversions that the project uses, to nearest even. */
#ifndef SPILLWAY_TESTS_CUDA_EMULATION_CUDA_BF16_H
#define SPILLWAY_TESTS_CUDA_EMULATION_CUDA_BF16_H

#include "cuda_runtime.h"

struct __nv_bfloat16 {
    unsigned short bits;
};

inline float __bfloat162float(__nv_bfloat16 value)
{
    return __uint_as_float((unsigned int)value.bits << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float value)
{
    unsigned int bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return {0x7fff};
    return {(unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value)
{
    return value.bits;
}

#endif
