/*
 * log: numbers for people at the edges of their units; on a pipe progress comes as whole plain
 * lines, on a terminal (a pseudo-terminal here) as one line that is redrawn and erased.
 */
#include "tests/shared/check.h"
#include "core/base.h"
#include "core/log.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_bytes(void **state)
{
    (void)state;
    static const struct {
        uint64_t bytes;
        const char *text;
    } cases[] = {{0, "0 B"},
                 {17, "17 B"},
                 {1023, "1023 B"},
                 {1024, "1 KiB"},
                 {1536, "1.5 KiB"},
                 {312 * MIB, "312 MiB"},
                 {GIB - 1, "1.0 GiB"},
                 {GIB * 14 / 10, "1.4 GiB"},
                 {UINT64_MAX, "16 EiB"}};
    char text[LOG_BYTES_MAX];
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        assert_string_equal(log_bytes(text, cases[i].bytes), cases[i].text);
}

static void test_duration(void **state)
{
    (void)state;
    static const struct {
        double seconds;
        const char *text;
    } cases[] = {{0, "0.0s"},       {12.34, "12.3s"},  {59.94, "59.9s"}, {59.99, "1m00s"},
                 {245, "4m05s"},    {3599.7, "1h00m"}, {7380, "2h03m"},  {86400, "1d00h"},
                 {200000, "2d07h"}, {-1, "?"},         {1e300, "?"},     {0.0 / 1, "0.0s"},
                 {0.0284, "28ms"},  {0.0996, "0.1s"}};
    char text[LOG_BYTES_MAX];
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++)
        assert_string_equal(log_duration(text, cases[i].seconds), cases[i].text);
}

/* What runs in the child, with start_ns moved into the past so that drawing is due at once. */
static void show(void)
{
    struct log_progress progress;
    log_line("first %d", 1);
    log_progress_start(&progress, "training", "steps", 100);
    progress.last_ns -= 10000000000u;
    progress.start_ns -= 10000000000u;
    log_progress_update(&progress, 25, "loss 6.21");
    log_progress_update(&progress, 26, "too soon");
    log_warn("a warning");
    log_progress_start(&progress, "reading", "MB", 0);
    progress.last_ns -= 10000000000u;
    progress.start_ns -= 10000000000u;
    log_progress_update(&progress, 5, NULL);
    log_progress_end(&progress);
    log_line("last");
}

/* Runs show with stderr at fd `end` in a child and collects what comes out at `from`. */
static void run_show(int from, int end, char *text, size_t size)
{
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("TERM", "xterm", 1);
        dup2(end, STDERR_FILENO);
        show();
        _exit(0);
    }
    close(end);
    size_t used = 0;
    ssize_t bytes;
    while (used < size - 1 && (bytes = read(from, text + used, size - 1 - used)) > 0)
        used += (size_t)bytes;
    text[used] = 0;
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void test_plain_lines(void **state)
{
    (void)state;
    int ends[2];
    char text[4096];
    assert_int_equal(pipe(ends), 0);
    run_show(ends[0], ends[1], text, sizeof(text));
    close(ends[0]);
    assert_string_equal(text, "first 1\n"
                              "training 25/100 steps, 2.50 steps/s, 30.0s left, loss 6.21\n"
                              "warning: a warning\n"
                              "reading 5.00 MB, 0.50 MB/s\n"
                              "last\n");
}

static void test_terminal(void **state)
{
    (void)state;
    int from = posix_openpt(O_RDWR | O_NOCTTY);
    if (from < 0 || grantpt(from) != 0 || unlockpt(from) != 0)
        skip(); /* no pseudo-terminals in this container */
    int end = open(ptsname(from), O_RDWR | O_NOCTTY);
    if (end < 0)
        skip();
    char text[4096];
    run_show(from, end, text, sizeof(text));
    close(from);
    assert_non_null(strstr(text, "\r\033[Ktraining [######..................]  25%"));
    assert_null(strstr(text, "too soon"));
    assert_non_null(strstr(text, "\r\033[Kwarning: a warning\r\n"));
    assert_non_null(strstr(text, "\r\033[Kreading 5.00 MB, 0.50 MB/s\r\033[Klast\r\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_duration),
        cmocka_unit_test(test_plain_lines),
        cmocka_unit_test(test_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
