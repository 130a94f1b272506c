/*
 * base: the checked helpers are right at the edges, and what must abort does. An abort is looked
 * for in a forked child, by the signal that ended it.
 */
#include "tests/shared/check.h"
#include "core/base.h"
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_rounding(void **state)
{
    (void)state;
    assert_int_equal(round_up(0, 4096), 0);
    assert_int_equal(round_up(1, 4096), 4096);
    assert_int_equal(round_up(4096, 4096), 4096);
    assert_int_equal(round_up(10, 3), 12);
    assert_int_equal(round_up(UINT64_MAX - 4095, 4096), UINT64_MAX - 4095);
    assert_int_equal(div_up(0, 7), 0);
    assert_int_equal(div_up(7, 7), 1);
    assert_int_equal(div_up(8, 7), 2);
    assert_int_equal(div_up(UINT64_MAX, 2), (uint64_t)1 << 63);
    assert_int_equal(mul_checked((uint64_t)1 << 32, ((uint64_t)1 << 32) - 1),
                     UINT64_MAX - 0xffffffffu);
    assert_int_equal(add_checked(UINT64_MAX - 1, 1), UINT64_MAX);
}

/* Whether fn ends its process by SIGABRT. */
static int aborts(void (*fn)(void))
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        (void)!freopen("/dev/null", "w", stderr);
        fn();
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static volatile uint64_t big = UINT64_MAX;
static volatile uint64_t zero = 0;
static volatile uint64_t sink;

static void multiply(void)
{
    sink = mul_checked(big, 2);
}
static void add(void)
{
    sink = add_checked(big, 1);
}
static void round_over(void)
{
    sink = round_up(big, 4096);
}
static void divide_by_zero(void)
{
    sink = div_up(1, zero);
}
static void fine(void)
{
    ASSERT(big > zero);
}

static void test_overflow_aborts(void **state)
{
    (void)state;
    assert_true(aborts(multiply));
    assert_true(aborts(add));
    assert_true(aborts(round_over));
    assert_true(aborts(divide_by_zero));
    assert_false(aborts(fine));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_overflow_aborts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
