/* err: messages are whole sentences however long, codes come back, fatal says one line and exits 1.
 */
#include "tests/shared/check.h"
#include "core/err.h"
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void test_set(void **state)
{
    (void)state;
    struct err err;
    assert_int_equal(err_set(&err, ERR_INPUT, "%s has %d", "file", 3), ERR_INPUT);
    assert_int_equal(err.code, ERR_INPUT);
    assert_string_equal(err.message, "file has 3");
    assert_int_equal(err_set_errno(&err, ENOSPC, "cannot write %s", "x"), ERR_SYSTEM);
    assert_int_equal(err.code, ERR_SYSTEM);
    assert_string_equal(err.message, "cannot write x: No space left on device");
}

static void test_long_message_is_cut(void **state)
{
    (void)state;
    struct err err;
    char text[3000];
    memset(text, 'a', sizeof(text));
    text[sizeof(text) - 1] = 0;
    err_set(&err, ERR_INPUT, "%s", text);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
    err_set_errno(&err, EIO, "%s", text);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
}

static void test_fatal(void **state)
{
    (void)state;
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        fatal("%s at offset %d", "tier.0", 4096);
    }
    close(ends[1]);
    char text[256] = "";
    assert_true(read(ends[0], text, sizeof(text) - 1) > 0);
    assert_string_equal(text, "spillway: tier.0 at offset 4096\n");
    close(ends[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_set),
        cmocka_unit_test(test_long_message_is_cut),
        cmocka_unit_test(test_fatal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
