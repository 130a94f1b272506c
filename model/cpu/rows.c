#include "model/cpu/rows.h"

extern const struct rows rows_plain, rows_avx2, rows_avx512;

const struct rows *rows_at(unsigned level)
{
    if (level == 0)
        return &rows_plain;
#if defined(__x86_64__)
    if (level == 1 && __builtin_cpu_supports("avx2"))
        return &rows_avx2;
    if (level == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return &rows_avx512;
#endif
    return NULL;
}

const struct rows *rows_best(void)
{
    for (unsigned level = 2; level > 0; level--)
        if (rows_at(level))
            return rows_at(level);
    return rows_at(0);
}
