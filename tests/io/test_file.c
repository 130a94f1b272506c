/*
 * Property: each function does what its header says or leaves nothing that a later run would trust,
 * and its error is one sentence that names the path. Method: a fresh folder per test; failures come
 * from the system itself: a limit on the size of files that stops a replacement at each of its
 * bytes, a full loop-mounted ext4 and a mounted tmpfs (both need root, else the test says that it
 * was skipped), a lock that a child holds.
 */
#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[FILE_PATH_MAX];
static char path[FILE_PATH_MAX + 16];

static void check_sentence(const struct err *err, int code, const char *part)
{
    assert_int_equal(err->code, code);
    assert_null(strchr(err->message, '\n'));
    if (strstr(err->message, part) == NULL)
        fail_msg("'%s' does not say '%s'", err->message, part);
}

static void shell(const char *format, const char *argument)
{
    char command[2 * FILE_PATH_MAX];
    snprintf(command, sizeof(command), format, argument);
    if (system(command) != 0)
        fail_msg("failed: %s", command);
}

static int setup(void **state)
{
    (void)state;
    const char *parent = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/var/tmp";
    snprintf(dir, sizeof(dir), "%s/spillway-test-file-XXXXXX", parent);
    if (mkdtemp(dir) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/a", dir);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    shell("rm -rf '%s'", dir);
    return 0;
}

/* ---- Paths and folders ---- */

static void test_join(void **state)
{
    (void)state;
    char joined[FILE_PATH_MAX], longest[FILE_PATH_MAX + 1];
    struct err err;
    assert_int_equal(file_join(joined, "a", "b", &err), 0);
    assert_string_equal(joined, "a/b");
    assert_int_equal(file_join(joined, "/", "b", &err), 0);
    assert_string_equal(joined, "/b");
    memset(longest, 'x', sizeof(longest));
    longest[FILE_PATH_MAX - 3] = '\0'; /* + "/b" fits exactly, + "/bc" does not */
    assert_int_equal(file_join(joined, longest, "b", &err), 0);
    assert_int_equal(file_join(joined, longest, "bc", &err), ERR_INPUT);
    check_sentence(&err, ERR_INPUT, "longer");
}

static void test_make_dirs(void **state)
{
    (void)state;
    char deep[FILE_PATH_MAX], below[FILE_PATH_MAX];
    struct err err;
    assert_int_equal(file_join(deep, dir, "x/y//z/", &err), 0);
    assert_false(file_exists(deep));
    assert_int_equal(file_make_dirs(deep, &err), 0);
    assert_int_equal(file_make_dirs(deep, &err), 0);
    assert_true(file_exists(deep));
    assert_int_equal(file_replace(path, "1", 1, &err), 0);
    assert_int_equal(file_make_dirs(path, &err), ERR_INPUT);
    check_sentence(&err, ERR_INPUT, path);
    assert_int_equal(file_join(below, path, "b", &err), 0);
    assert_true(file_make_dirs(below, &err) < 0);
    assert_int_equal(file_make_dirs("", &err), ERR_INPUT);
}

/* ---- Tiers ---- */

static void test_tier_on_a_drive(void **state)
{
    (void)state;
    struct err err;
    uint64_t bytes;
    assert_int_equal(file_check_tier(dir, &err), 0);
    assert_int_equal(file_free_bytes(dir, &bytes, &err), 0);
    assert_true(bytes > 0);
    assert_true(file_check_tier("/nonexistent", &err) < 0);
    check_sentence(&err, ERR_SYSTEM, "/nonexistent");
    assert_true(file_free_bytes("/nonexistent", &bytes, &err) < 0);
    assert_int_equal(file_replace(path, "1", 1, &err), 0);
    assert_int_equal(file_check_tier(path, &err), ERR_INPUT);
    check_sentence(&err, ERR_INPUT, "not a folder");
}

/* Root may write anywhere, so the child gives that up first. */
static void test_tier_without_permission(void **state)
{
    (void)state;
    int status;
    assert_int_equal(chmod(dir, 0555), 0);
    pid_t child = fork();
    if (child == 0) {
        struct err err = {0};
        if (getuid() == 0 && setuid(65534) != 0)
            _exit(99);
        int result = file_check_tier(dir, &err);
        _exit(result == ERR_SYSTEM && strstr(err.message, dir) != NULL ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void test_tmpfs_is_no_tier(void **state)
{
    (void)state;
    struct err err;
    if (mount("tmpfs", dir, "tmpfs", 0, "size=1m") != 0) {
        fprintf(stderr, "SKIPPED: cannot mount a tmpfs here (%s)\n", strerror(errno));
        skip();
    }
    int tmpfs = file_check_tier(dir, &err);
    umount(dir);
    assert_int_equal(tmpfs, ERR_INPUT);
    check_sentence(&err, ERR_INPUT, "tmpfs");
    check_sentence(&err, ERR_INPUT, "O_DIRECT");
    check_sentence(&err, ERR_INPUT, "/var/tmp"); /* what works instead */
    if (mount("ramfs", dir, "ramfs", 0, NULL) != 0)
        return;
    int ramfs = file_check_tier(dir, &err);
    umount(dir);
    assert_int_equal(ramfs, ERR_INPUT);
    check_sentence(&err, ERR_INPUT, "ramfs");
}

static void test_open_direct(void **state)
{
    (void)state;
    int fd;
    struct err err;
    assert_true(file_open_direct(&fd, path, false, true, &err) < 0);
    check_sentence(&err, ERR_SYSTEM, path);
    assert_int_equal(fd, -1);
    assert_int_equal(file_open_direct(&fd, path, true, true, &err), 0);
    assert_true(fcntl(fd, F_GETFL) & O_DIRECT);
    close(fd);
    assert_int_equal(file_open_direct(&fd, path, false, false, &err), 0);
    close(fd);
}

static void test_no_direct_transfers(void **state)
{
    (void)state;
    int fd;
    struct err err;
    /* procfs has regular files, and no O_DIRECT. */
    assert_int_equal(file_open_direct(&fd, "/proc/self/stat", false, false, &err), ERR_INPUT);
    check_sentence(&err, ERR_INPUT, "O_DIRECT");
}

static void test_allocate(void **state)
{
    (void)state;
    int fd;
    struct stat status;
    struct err err;
    assert_int_equal(file_open_direct(&fd, path, true, true, &err), 0);
    const uint64_t sizes[] = {IO_ALIGN, MIB, MIB, 3 * IO_ALIGN, 0};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        assert_int_equal(file_allocate(fd, path, sizes[i], &err), 0);
        assert_int_equal(fstat(fd, &status), 0);
        assert_int_equal(status.st_size, sizes[i]);
        assert_true((uint64_t)status.st_blocks * 512 >= sizes[i]);
    }
    assert_int_equal(file_allocate(fd, path, (uint64_t)1 << 60, &err), ERR_INPUT);
    check_sentence(&err, ERR_INPUT, path);
    close(fd);
}

/* A drive of 8 MiB, mounted on dir; false (said loudly) where that is not allowed. */
static bool mount_small_drive(void)
{
    char command[2 * FILE_PATH_MAX];
    snprintf(command, sizeof(command),
             "d='%s'; truncate -s 8M \"$d.img\" && mkfs.ext4 -q -F -m 0 \"$d.img\" && "
             "mount -o loop \"$d.img\" \"$d\" 2>/dev/null",
             dir);
    if (geteuid() == 0 && system(command) == 0)
        return true;
    fprintf(stderr, "SKIPPED: no root or no loop device, so no full drive can be made here\n");
    return false;
}

static void unmount_small_drive(void)
{
    shell("umount '%s'", dir);
    shell("rm -f '%s.img'", dir);
}

static void test_full_drive(void **state)
{
    (void)state;
    struct err at_allocate = {0}, at_replace = {0}, err;
    int fd, allocated = 0, replaced = 0;
    char *old = NULL;
    size_t bytes;
    if (!mount_small_drive()) {
        shell("rm -f '%s.img'", dir);
        skip();
    }
    static const char text[64 * 1024] = "new";
    int opened = file_open_direct(&fd, path, true, true, &err);
    if (opened == 0) {
        char small[FILE_PATH_MAX + 16];
        snprintf(small, sizeof(small), "%s/small", dir);
        allocated = file_allocate(fd, path, 64 * MIB, &at_allocate);
        file_replace(small, "old", 3, &err);
        shell("dd if=/dev/zero of='%s/filler' bs=64k status=none 2>/dev/null || true", dir);
        replaced = file_replace(small, text, sizeof(text), &at_replace);
        file_read_all(small, 100, &old, &bytes, &err);
        snprintf(small, sizeof(small), "%s/small.tmp", dir);
        assert_false(file_exists(small));
        close(fd);
    }
    unmount_small_drive();
    assert_int_equal(opened, 0);
    assert_int_equal(allocated, ERR_INPUT);
    check_sentence(&at_allocate, ERR_INPUT, "is free");
    assert_int_equal(replaced, ERR_INPUT);
    check_sentence(&at_replace, ERR_INPUT, "free some space");
    assert_non_null(old);
    assert_string_equal(old, "old");
    mem_free(old);
}

/* ---- Locks ---- */

static void test_lock(void **state)
{
    (void)state;
    int first, second, pipe_fds[2], status;
    struct err err;
    assert_int_equal(file_lock(&first, dir, &err), 0);
    assert_int_equal(file_lock(&second, dir, &err), ERR_INPUT);
    char expected[64];
    snprintf(expected, sizeof(expected), "process %ld", (long)getpid());
    check_sentence(&err, ERR_INPUT, expected);
    file_unlock(first);
    file_unlock(-1);

    /* A child that holds the lock and is then killed: the lock dies with it. */
    assert_int_equal(pipe(pipe_fds), 0);
    pid_t child = fork();
    if (child == 0) {
        char ready = (char)(file_lock(&first, dir, &err) == 0);
        if (write(pipe_fds[1], &ready, 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    char ready = 0;
    assert_int_equal(read(pipe_fds[0], &ready, 1), 1);
    assert_int_equal(ready, 1);
    int refused = file_lock(&second, dir, &err);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(refused, ERR_INPUT);
    snprintf(expected, sizeof(expected), "process %ld", (long)child);
    check_sentence(&err, ERR_INPUT, expected);
    assert_int_equal(file_lock(&second, dir, &err), 0);
    file_unlock(second);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    assert_true(file_lock(&second, "/nonexistent", &err) < 0);
    check_sentence(&err, ERR_SYSTEM, "/nonexistent/.lock");
}

/* ---- Whole files ---- */

static void test_read_all(void **state)
{
    (void)state;
    char *data;
    size_t bytes;
    struct err err;
    static char content[100000];
    memset(content, 'x', sizeof(content));
    const size_t sizes[] = {0, 1, 4094, 4095, 4096, 65537, sizeof(content)};
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        assert_int_equal(file_replace(path, content, sizes[i], &err), 0);
        assert_int_equal(file_read_all(path, sizes[i], &data, &bytes, &err), 0);
        assert_int_equal(bytes, sizes[i]);
        assert_memory_equal(data, content, bytes);
        assert_int_equal(data[bytes], 0);
        mem_free(data);
        if (sizes[i] == 0)
            continue;
        assert_int_equal(file_read_all(path, sizes[i] - 1, &data, &bytes, &err), ERR_INPUT);
        check_sentence(&err, ERR_INPUT, path);
        assert_null(data);
    }
    assert_int_equal(file_read_all("/proc/self/maps", MIB, &data, &bytes, &err), 0);
    assert_true(bytes > 0); /* a file whose size the kernel says is 0 */
    mem_free(data);
    assert_int_equal(file_read_all("/dev/zero", 100000, &data, &bytes, &err), ERR_INPUT);
    assert_int_equal(file_read_all(dir, 100, &data, &bytes, &err), ERR_INPUT);
    check_sentence(&err, ERR_INPUT, "folder");
    assert_true(file_read_all("/nonexistent", 100, &data, &bytes, &err) < 0);
}

static void test_read_at(void **state)
{
    (void)state;
    char data[4];
    struct err err;
    assert_int_equal(file_replace(path, "0123456789", 10, &err), 0);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(file_read_at(fd, data, 4, 6, path, &err), 0);
    assert_memory_equal(data, "6789", 4);
    assert_int_equal(file_read_at(fd, data, 0, 99, path, &err), 0);
    assert_int_equal(file_read_at(fd, data, 4, 7, path, &err), ERR_CORRUPT);
    check_sentence(&err, ERR_CORRUPT, "byte 10");
    close(fd);
    assert_true(file_read_at(-1, data, 4, 0, path, &err) < 0);
}

/* Under a limit of n bytes a file can't grow beyond n: the n-th byte's write fails. The old text
 * must stay whole and the .tmp must go, for each n; and the whole text must come at the end. */
static int replace_under_limit(rlim_t limit_bytes)
{
    struct rlimit limit = {.rlim_cur = limit_bytes, .rlim_max = RLIM_INFINITY};
    struct err err = {0};
    signal(SIGXFSZ, SIG_IGN);
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0)
        return 99;
    int result = file_replace(path, "0123456789", 10, &err);
    if (result < 0 && (strstr(err.message, path) == NULL || strchr(err.message, '\n') != NULL))
        return 98;
    return result == 0 ? 0 : 1;
}

static void test_replace_fails_at_each_byte(void **state)
{
    (void)state;
    char tmp_path[FILE_PATH_MAX + 32];
    snprintf(tmp_path, sizeof(tmp_path), "%s.tmp", path);
    for (rlim_t n = 0; n <= 10; n++) {
        char *data;
        size_t bytes;
        int status;
        struct err err;
        assert_int_equal(file_replace(path, "old", 3, &err), 0);
        pid_t child = fork();
        if (child == 0)
            _exit(replace_under_limit(n));
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), n < 10 ? 1 : 0);
        assert_int_equal(file_read_all(path, 100, &data, &bytes, &err), 0);
        assert_string_equal(data, n < 10 ? "old" : "0123456789");
        assert_false(file_exists(tmp_path));
        mem_free(data);
    }
}

static void test_replace_refuses(void **state)
{
    (void)state;
    struct err err;
    char missing[FILE_PATH_MAX + 32], tmp_path[FILE_PATH_MAX + 32];
    snprintf(missing, sizeof(missing), "%s/none/a", dir);
    assert_true(file_replace(missing, "1", 1, &err) < 0);
    check_sentence(&err, ERR_SYSTEM, missing);
    /* A folder in the way: the rename fails, and the .tmp goes. */
    assert_int_equal(file_make_dirs(path, &err), 0);
    snprintf(tmp_path, sizeof(tmp_path), "%s.tmp", path);
    assert_true(file_replace(path, "1", 1, &err) < 0);
    assert_false(file_exists(tmp_path));
    assert_true(file_sync_dir(missing, &err) < 0);
    assert_int_equal(file_sync_dir(dir, &err), 0);
}

static void test_write_all(void **state)
{
    (void)state;
    struct err err;
    int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(file_write_all(fd, "x", 1, "/dev/full", &err), ERR_INPUT);
    check_sentence(&err, ERR_INPUT, "/dev/full");
    close(fd);
    assert_int_equal(file_write_all(-1, NULL, 0, "none", &err), 0);
    assert_int_equal(file_write_all(-1, "x", 1, "none", &err), ERR_SYSTEM);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_join),
        TEST(test_make_dirs),
        TEST(test_tier_on_a_drive),
        TEST(test_tier_without_permission),
        TEST(test_tmpfs_is_no_tier),
        TEST(test_open_direct),
        TEST(test_no_direct_transfers),
        TEST(test_allocate),
        TEST(test_full_drive),
        TEST(test_lock),
        TEST(test_read_all),
        TEST(test_read_at),
        TEST(test_replace_fails_at_each_byte),
        TEST(test_replace_refuses),
        TEST(test_write_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
