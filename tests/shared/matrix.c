#include "tests/shared/matrix.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"

void *matrix_draw(uint64_t stream, size_t count, enum precision precision)
{
    void *matrix = mem_alloc(count, precision_bytes(precision));
    for (size_t i = 0; i < count; i++) {
        float value = (float)rng_normal(1, stream, i);
        if (precision == PRECISION_BF16)
            ((uint16_t *)matrix)[i] = float_to_bf16(value);
        else
            ((float *)matrix)[i] = value;
    }
    return matrix;
}

float matrix_element(const void *matrix, size_t index, enum precision precision)
{
    return precision == PRECISION_BF16 ? float_from_bf16(((const uint16_t *)matrix)[index])
                                       : ((const float *)matrix)[index];
}
