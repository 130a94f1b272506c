#include "tests/shared/limited.h"
#include "tests/shared/check.h"
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define LIMITED "SPILLWAY_TEST_WITHOUT_AVX512"

bool limited_is(void)
{
    return getenv(LIMITED) != NULL;
}

void limited_test(void **state)
{
    (void)state;
    if (limited_is())
        skip();
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv(LIMITED, "1", 1);
        setenv("DNNL_MAX_CPU_ISA", "AVX2", 1);
        setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
        execl("/proc/self/exe", "limited", (char *)NULL);
        _exit(127);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}
