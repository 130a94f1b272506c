/*
 * base: what every file needs and no more: ASSERT, checked size arithmetic, small numeric helpers.
 *
 * Owns nothing. Everything here is a static inline function or a macro, except base_assert_failed.
 * Everybody includes it.
 */
#ifndef SPILLWAY_CORE_BASE_H
#define SPILLWAY_CORE_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KIB ((uint64_t)1 << 10)
#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)

/* The granularity of every O_DIRECT transfer, and so of everything that is laid out on a drive. */
#define IO_ALIGN ((uint64_t)4096)

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b)      ((a) < (b) ? (a) : (b))
#define MAX(a, b)      ((a) > (b) ? (a) : (b))

/* Prints the file, line and condition to stderr and aborts. On in release builds too: a broken
 * invariant in a trainer costs weeks when it is silent. */
_Noreturn void base_assert_failed(const char *file, int line, const char *condition);

#define ASSERT(condition)                                                                          \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0))                                                     \
            base_assert_failed(__FILE__, __LINE__, #condition);                                    \
    } while (0)

/* Sizes multiply and add through these: an overflow is a bug and aborts. */
static inline uint64_t mul_checked(uint64_t a, uint64_t b)
{
    uint64_t product;
    ASSERT(!__builtin_mul_overflow(a, b, &product));
    return product;
}

static inline uint64_t add_checked(uint64_t a, uint64_t b)
{
    uint64_t sum;
    ASSERT(!__builtin_add_overflow(a, b, &sum));
    return sum;
}

/* The least multiple of step that is >= value; step > 0, need not be a power of two. */
static inline uint64_t round_up(uint64_t value, uint64_t step)
{
    ASSERT(step > 0);
    return mul_checked(add_checked(value, step - 1) / step, step);
}

static inline uint64_t div_up(uint64_t value, uint64_t step)
{
    ASSERT(step > 0);
    return value / step + (value % step != 0);
}

#endif
