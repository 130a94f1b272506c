/*
 * Property: what takes longer than the patience ends the program with its sentence and status 1;
 * what does not is left alone, however often; a call that has ended is not held against the next
 * one. Method: children that wait for ever, or whose patience is longer than the test.
 */
#include "core/watch.h"

#include "tests/shared/check.h"
#include "tests/shared/tiny.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LONG_NS  (3600 * (uint64_t)1000000000)
#define SHORT_NS (20 * (uint64_t)1000000)

static struct watch *open_watch(uint64_t patience_ns)
{
    struct watch *watch;
    struct err err;
    if (watch_open(&watch, patience_ns, &err) != 0)
        fatal("%s", err.message);
    return watch;
}

static void never_ends(void *context)
{
    (void)context;
    struct watch *watch = open_watch(SHORT_NS);
    watch_begin(watch, "the drive of %s is gone", "/mnt");
    for (;;)
        pause();
}

static void test_late(void **state)
{
    (void)state;
    char *output;
    int status = tiny_fork(never_ends, NULL, &output);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_string_equal(output, "spillway: the drive of /mnt is gone\n");
    free(output);
}

/* The second of two calls; the first was in time. */
static void second_never_ends(void *context)
{
    struct watch *watch = open_watch(LONG_NS);
    watch_begin(watch, "first");
    watch_end(watch);
    watch_close(watch);
    watch = open_watch(SHORT_NS);
    watch_begin(watch, "first");
    watch_end(watch);
    watch_begin(watch, "second");
    (void)context;
    for (;;)
        pause();
}

static void test_second_is_late(void **state)
{
    (void)state;
    char *output;
    int status = tiny_fork(second_never_ends, NULL, &output);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_string_equal(output, "spillway: second\n");
    free(output);
}

static void test_in_time(void **state)
{
    (void)state;
    struct watch *watch = open_watch(LONG_NS);
    for (int i = 0; i < 10000; i++) {
        watch_begin(watch, "number %d", i);
        watch_end(watch);
    }
    watch_close(watch);
    watch_close(NULL);
    char longer[2 * WATCH_TEXT_MAX];
    memset(longer, 'x', sizeof(longer));
    longer[sizeof(longer) - 1] = 0;
    watch = open_watch(LONG_NS);
    watch_begin(watch, "%s", longer); /* cut */
    watch_end(watch);
    watch_close(watch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late),
        cmocka_unit_test(test_second_is_late),
        cmocka_unit_test(test_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
