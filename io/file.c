#include "io/file.h"
#include "core/base.h"
#include "core/log.h"
#include "core/mem.h"
#include "io/drive.h"
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* fallocate gives up when a signal arrives; this many signals during one call are no accident. */
#define INTERRUPTED_MAX 1000

/* ---- Paths and folders ---- */

static int copy_path(char path[FILE_PATH_MAX], const char *text, struct err *err)
{
    int length = snprintf(path, FILE_PATH_MAX, "%s", text);
    if (length < 0 || length >= FILE_PATH_MAX)
        return err_set(err, ERR_INPUT,
                       "the path '%.60s...' is longer than %d bytes: use a shorter one", text,
                       FILE_PATH_MAX - 1);
    return 0;
}

int file_join(char path[FILE_PATH_MAX], const char *dir, const char *name, struct err *err)
{
    size_t dir_length = strlen(dir);
    const char *slash = dir_length > 0 && dir[dir_length - 1] == '/' ? "" : "/";
    int length = snprintf(path, FILE_PATH_MAX, "%s%s%s", dir, slash, name);
    if (length < 0 || length >= FILE_PATH_MAX)
        return err_set(err, ERR_INPUT,
                       "the path '%.60s.../%.60s' is longer than %d bytes: use a "
                       "shorter one",
                       dir, name, FILE_PATH_MAX - 1);
    return 0;
}

/* The folder that holds path: "." for a bare name. */
static int parent_of(char dir[FILE_PATH_MAX], const char *path, struct err *err)
{
    if (copy_path(dir, path, err) < 0)
        return err->code;
    char *slash = strrchr(dir, '/');
    if (slash == NULL)
        return copy_path(dir, ".", err);
    slash[slash == dir ? 1 : 0] = '\0';
    return 0;
}

bool file_exists(const char *path)
{
    return access(path, F_OK) == 0;
}

static int make_dir(const char *path, struct err *err)
{
    struct stat status;
    if (mkdir(path, 0777) == 0)
        return 0;
    int error = errno;
    if (stat(path, &status) == 0) {
        if (S_ISDIR(status.st_mode))
            return 0;
        return err_set(err, ERR_INPUT, "'%s' is a file, not a folder: remove it or name another",
                       path);
    }
    return err_set_errno(err, error, "cannot make the folder '%s'", path);
}

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info;
    (void)kind;
    (void)place;
    remove(path);
    return 0;
}

void file_remove_tree(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

int file_make_dirs(const char *path, struct err *err)
{
    char prefix[FILE_PATH_MAX];
    if (path[0] == '\0')
        return err_set(err, ERR_INPUT, "the name of a folder is empty: give one");
    if (copy_path(prefix, path, err) < 0)
        return err->code;
    for (char *at = prefix + 1; *at != '\0'; at++) {
        if (*at != '/')
            continue;
        *at = '\0';
        if (make_dir(prefix, err) < 0)
            return err->code;
        *at = '/';
    }
    return make_dir(prefix, err);
}

/* ---- What a tier may stand on ---- */

int file_check_tier(const char *dir, struct err *err)
{
    struct statfs status;
    if (statfs(dir, &status) < 0)
        return err_set_errno(err, errno, "cannot use '%s' as an NVMe tier", dir);
    struct stat kind;
    if (stat(dir, &kind) < 0 || !S_ISDIR(kind.st_mode))
        return err_set(err, ERR_INPUT, "'%s' is not a folder: give --nvme a folder on a drive",
                       dir);
    unsigned long type = (unsigned long)status.f_type;
    if (type == TMPFS_MAGIC || type == RAMFS_MAGIC)
        return err_set(err, ERR_INPUT,
                       "'%s' is on %s, which keeps its files in RAM and refuses O_DIRECT: give "
                       "--nvme a folder on a drive (ext4, xfs, btrfs), such as /var/tmp/spillway",
                       dir, type == TMPFS_MAGIC ? "tmpfs" : "ramfs");
    if (access(dir, W_OK | X_OK) < 0)
        return err_set_errno(err, errno,
                             "cannot write into '%s', so it cannot be an NVMe tier: give --nvme "
                             "another folder or change its permissions",
                             dir);
    return 0;
}

int file_free_bytes(const char *dir, uint64_t *bytes, struct err *err)
{
    struct statfs status;
    *bytes = 0;
    if (statfs(dir, &status) < 0)
        return err_set_errno(err, errno, "cannot ask how much is free in '%s'", dir);
    *bytes = mul_checked((uint64_t)status.f_bavail, (uint64_t)status.f_bsize);
    return 0;
}

int file_open_direct(int *fd, const char *path, bool create, bool writable, struct err *err)
{
    ASSERT(writable || !create);
    int flags = O_DIRECT | O_CLOEXEC | (writable ? O_RDWR : O_RDONLY) | (create ? O_CREAT : 0);
    *fd = open(path, flags, 0666);
    if (*fd >= 0) {
        struct drive drive;
        drive_ask(&drive, *fd);
        int result = drive_check(&drive, path, err);
        if (result < 0) {
            close(*fd);
            *fd = -1;
        }
        return result;
    }
    if (errno == EINVAL)
        return err_set(err, ERR_INPUT,
                       "the file system of '%s' refuses O_DIRECT: use a folder on ext4, xfs or "
                       "btrfs",
                       path);
    return err_set_errno(err, errno, "cannot open '%s' for %s", path,
                         writable ? "reading and writing" : "reading");
}

static int full_disk(int error, const char *path, uint64_t bytes, struct err *err)
{
    char need[LOG_BYTES_MAX], free_text[LOG_BYTES_MAX], dir[FILE_PATH_MAX];
    uint64_t free_now = 0;
    struct err ignored;
    if (parent_of(dir, path, &ignored) == 0)
        file_free_bytes(dir, &free_now, &ignored);
    return err_set(err, ERR_INPUT,
                   "'%s' needs %s and %s is free (%s): free some space or name a folder on another "
                   "drive",
                   path, log_bytes(need, bytes), log_bytes(free_text, free_now), strerror(error));
}

int file_allocate(int fd, const char *path, uint64_t bytes, struct err *err)
{
    ASSERT(fd >= 0);
    struct stat status;
    if (fstat(fd, &status) < 0)
        return err_set_errno(err, errno, "cannot ask for the size of '%s'", path);
    if ((uint64_t)status.st_size > bytes && ftruncate(fd, (off_t)bytes) < 0)
        return err_set_errno(err, errno, "cannot cut '%s' to %llu bytes", path,
                             (unsigned long long)bytes);
    if (bytes == 0)
        return 0;
    int result = -1;
    for (uint32_t i = 0; i < INTERRUPTED_MAX && result < 0; i++) {
        result = fallocate(fd, 0, 0, (off_t)bytes);
        if (result < 0 && errno != EINTR)
            break;
    }
    if (result == 0)
        return 0;
    int error = errno;
    /* What a full drive still gave is given back (test_full_drive). */
    if (ftruncate(fd, MIN(status.st_size, (off_t)bytes)) < 0)
        log_warn("cannot give back the space that '%s' got", path);
    if (error == ENOSPC || error == EDQUOT || error == EFBIG)
        return full_disk(error, path, bytes, err);
    if (error == EOPNOTSUPP)
        return err_set(err, ERR_INPUT,
                       "the file system of '%s' cannot reserve space (fallocate): use a folder on "
                       "ext4, xfs or btrfs",
                       path);
    return err_set_errno(err, error, "cannot reserve %llu bytes for '%s'",
                         (unsigned long long)bytes, path);
}

/* ---- Locks ---- */

/* flock and not fcntl's lock: the latter is lost as soon as any descriptor of the file is closed
 * anywhere in the process. The price is that the kernel does not tell the holder, so that it writes
 * its number into the file. */
static void describe_holder(int fd, char text[64])
{
    char number[24] = "";
    ssize_t got = pread(fd, number, sizeof(number) - 1, 0);
    long pid = got > 0 ? strtol(number, NULL, 10) : 0;
    if (pid > 0)
        snprintf(text, 64, "process %ld", pid);
    else
        snprintf(text, 64, "another process");
}

static void write_holder(int fd)
{
    char number[24];
    int length = snprintf(number, sizeof(number), "%ld\n", (long)getpid());
    /* Only the sentence of a process that is refused depends on it. */
    if (ftruncate(fd, 0) == 0 && pwrite(fd, number, (size_t)length, 0) != length)
        log_warn("cannot write the process number into the lock file");
}

int file_lock(int *fd, const char *dir, struct err *err)
{
    char path[FILE_PATH_MAX], holder[64];
    *fd = -1;
    if (file_join(path, dir, ".lock", err) < 0)
        return err->code;
    int lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (lock_fd < 0)
        return err_set_errno(err, errno, "cannot open the lock '%s'", path);
    if (flock(lock_fd, LOCK_EX | LOCK_NB) == 0) {
        write_holder(lock_fd);
        *fd = lock_fd;
        return 0;
    }
    int error = errno;
    describe_holder(lock_fd, holder);
    close(lock_fd);
    if (error != EWOULDBLOCK)
        return err_set_errno(err, error, "cannot lock '%s'", path);
    return err_set(err, ERR_INPUT,
                   "'%s' is in use by %s: wait for it, stop it, or name another "
                   "folder",
                   dir, holder);
}

void file_unlock(int fd)
{
    if (fd >= 0)
        close(fd);
}

/* ---- Whole files ---- */

static int read_rest(int fd, const char *path, uint64_t max_bytes, char **data, size_t *bytes,
                     struct err *err)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        return err_set_errno(err, errno, "cannot ask for the size of '%s'", path);
    if (S_ISDIR(status.st_mode))
        return err_set(err, ERR_INPUT, "'%s' is a folder, not a file: name the file", path);
    /* A pipe has no size; a file may grow while it is read. One byte more than max tells either. */
    size_t room = (size_t)MIN(MAX((uint64_t)status.st_size, 4095), max_bytes) + 1;
    *data = mem_alloc(room + 1, 1);
    for (;;) {
        ssize_t got = read(fd, *data + *bytes, room - *bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, errno, "cannot read '%s'", path);
        *bytes += (size_t)got;
        if (*bytes > max_bytes)
            return err_set(err, ERR_INPUT, "'%s' has more than %llu bytes: is it the right file?",
                           path, (unsigned long long)max_bytes);
        (*data)[*bytes] = '\0';
        if (got == 0)
            return 0;
        if (*bytes == room) {
            room = (size_t)MIN(mul_checked(room, 2), max_bytes + 1);
            *data = mem_realloc(*data, room + 1, 1);
        }
    }
}

int file_read_all(const char *path, uint64_t max_bytes, char **data, size_t *bytes, struct err *err)
{
    ASSERT(max_bytes < SIZE_MAX / 4);
    *data = NULL;
    *bytes = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open '%s'", path);
    int result = read_rest(fd, path, max_bytes, data, bytes, err);
    close(fd);
    if (result < 0) {
        mem_free(*data);
        *data = NULL;
        *bytes = 0;
    }
    return result;
}

int file_read_at(int fd, void *data, size_t bytes, uint64_t offset, const char *path,
                 struct err *err)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(fd, (char *)data + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return err_set_errno(err, errno, "cannot read '%s' at byte %llu", path,
                                 (unsigned long long)(offset + done));
        if (got == 0)
            return err_set(err, ERR_CORRUPT,
                           "'%s' ends at byte %llu, in the middle of its data: "
                           "it was cut short, copy it again",
                           path, (unsigned long long)(offset + done));
        done += (size_t)got;
    }
    return 0;
}

int file_write_all(int fd, const void *data, size_t bytes, const char *path, struct err *err)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t put = write(fd, (const char *)data + done, bytes - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
            return full_disk(errno, path, bytes - done, err);
        if (put < 0)
            return err_set_errno(err, errno, "cannot write '%s'", path);
        done += (size_t)put;
    }
    return 0;
}

int file_sync_dir(const char *dir, struct err *err)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open the folder '%s'", dir);
    int result = 0;
    if (fsync(fd) < 0)
        result = err_set_errno(err, errno, "cannot bring the folder '%s' to the drive", dir);
    close(fd);
    return result;
}

int file_commit(int fd, const char *tmp_path, const char *path, struct err *err)
{
    char dir[FILE_PATH_MAX];
    if (parent_of(dir, path, err) < 0)
        return err->code;
    if (fsync(fd) < 0)
        return err_set_errno(err, errno, "cannot bring '%s' to the drive", tmp_path);
    if (rename(tmp_path, path) < 0)
        return err_set_errno(err, errno, "cannot rename '%s' to '%s'", tmp_path, path);
    return file_sync_dir(dir, err);
}

int file_replace(const char *path, const void *data, size_t bytes, struct err *err)
{
    char tmp_path[FILE_PATH_MAX];
    int length = snprintf(tmp_path, sizeof(tmp_path), "%s.tmp", path);
    if (length >= FILE_PATH_MAX)
        return err_set(err, ERR_INPUT, "the path '%.60s...' is too long: use a shorter one", path);
    int fd = open(tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot make '%s'", tmp_path);
    int result = file_write_all(fd, data, bytes, tmp_path, err);
    if (result == 0)
        result = file_commit(fd, tmp_path, path, err);
    close(fd);
    if (result < 0)
        unlink(tmp_path); /* fails, rightly, when the rename was done and only the folder's fsync
                             failed */
    return result;
}
