#include "tests/shared/limited.h"
#include "tests/shared/check.h"
#include "tests/shared/child.h"
#include <stdlib.h>
#include <unistd.h>

#define LIMITED "SPILLWAY_TEST_WITHOUT_AVX512"

bool limited_is(void)
{
    return getenv(LIMITED) != NULL;
}

static void run_again(void)
{
    setenv(LIMITED, "1", 1);
    setenv("DNNL_MAX_CPU_ISA", "AVX2", 1);
    setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
    execl("/proc/self/exe", "limited", (char *)NULL);
    _exit(127);
}

void limited_test(void **state)
{
    (void)state;
    if (limited_is())
        skip();
    child_passes(run_again);
}
