#include "core/base.h"
#include <stdio.h>
#include <stdlib.h>

_Noreturn void base_assert_failed(const char *file, int line, const char *condition)
{
    fprintf(stderr, "spillway: bug: %s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}
