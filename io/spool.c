#include "io/spool.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES (2 * (size_t)SPOOL_PIECE_MAX)
/* Linux keeps written pages until they are old or many. They would be most of what a memory cgroup
 * holds, so every so often those behind are given to the drive. */
#define FLUSH_BYTES (32 * MIB)

struct header {
    uint32_t bytes;
    uint32_t input : 30, first : 1, last : 1;
};

struct spool {
    int fd;
    char dir[FILE_PATH_MAX]; /* for messages */
    uint64_t total;          /* bytes of the file, with what waits in the buffer */
    uint64_t flushed;        /* bytes that were handed to the drive */
    uint64_t offset;         /* in the file of what comes behind the buffer */
    char *buffer;            /* owned [BUFFER_BYTES] */
    size_t start, end;       /* written: [0, end) waits; read: [start, end) is not given out */
    bool reading;
};

static int open_nameless(const char *dir, struct err *err)
{
    char path[FILE_PATH_MAX];
    int fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd >= 0)
        return fd;
    /* Not every file system can; then it has a name for a moment. */
    int code = file_join(path, dir, "text.tmp", err);
    if (code != 0)
        return code;
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot make %s", path);
    unlink(path);
    return fd;
}

static int open_named(const char *dir, const char *name, int flags, struct err *err)
{
    char path[FILE_PATH_MAX];
    int code = file_join(path, dir, name, err);
    if (code != 0)
        return code;
    int fd = open(path, O_RDWR | O_CLOEXEC | flags, 0600);
    return fd >= 0 ? fd : err_set_errno(err, errno, "cannot open %s", path);
}

static void make_spool(struct spool **out, const char *dir, int fd)
{
    struct spool *spool = mem_alloc(1, sizeof(*spool));
    spool->fd = fd;
    snprintf(spool->dir, sizeof(spool->dir), "%s", dir);
    spool->buffer = mem_alloc(BUFFER_BYTES, 1);
    *out = spool;
}

int spool_open(struct spool **out, const char *dir, const char *name, struct err *err)
{
    int fd = name == NULL ? open_nameless(dir, err) : open_named(dir, name, O_CREAT | O_TRUNC, err);
    if (fd < 0)
        return fd;
    make_spool(out, dir, fd);
    return 0;
}

int spool_reopen(struct spool **out, const char *dir, const char *name, uint64_t bytes,
                 struct err *err)
{
    struct stat status;
    int fd = open_named(dir, name, 0, err);
    if (fd < 0)
        return fd;
    int code = 0;
    if (fstat(fd, &status) != 0 || (uint64_t)status.st_size < bytes)
        code = err_set(
            err, ERR_CORRUPT,
            "the text that was kept in %s is shorter than it was: begin anew with --restart", dir);
    else if (ftruncate(fd, (off_t)bytes) != 0)
        code = err_set_errno(err, errno, "cannot cut the text that was kept in %s", dir);
    if (code != 0) {
        close(fd);
        return code;
    }
    make_spool(out, dir, fd);
    (*out)->total = (*out)->flushed = (*out)->offset = bytes;
    return 0;
}

void spool_close(struct spool *spool)
{
    if (spool == NULL)
        return;
    close(spool->fd);
    mem_free(spool->buffer);
    mem_free(spool);
}

void spool_clear(struct spool *spool)
{
    spool->total = spool->flushed = spool->offset = 0;
    spool->start = spool->end = 0;
    spool->reading = false;
}

/* ---------------------------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------------------------- */

static int write_out(struct spool *spool, struct err *err)
{
    size_t done = 0;
    while (done < spool->end) {
        ssize_t wrote = pwrite(spool->fd, spool->buffer + done, spool->end - done,
                               (off_t)(spool->offset + done));
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote < 0)
            return err_set_errno(err, errno,
                                 "cannot keep the text, which is read again, in %s: make room "
                                 "there, or name another folder",
                                 spool->dir);
        done += (size_t)wrote;
    }
    spool->offset += spool->end;
    spool->end = 0;
    if (spool->offset - spool->flushed >= FLUSH_BYTES) {
        (void)sync_file_range(spool->fd, (off_t)spool->flushed,
                              (off_t)(spool->offset - spool->flushed), SYNC_FILE_RANGE_WRITE);
        spool->flushed = spool->offset;
    }
    return 0;
}

int spool_write(struct spool *spool, const struct spool_piece *piece, struct err *err)
{
    struct header header = {piece->bytes, piece->input, piece->first, piece->last};
    size_t bytes = sizeof(header) + piece->bytes;
    ASSERT(!spool->reading && piece->bytes <= SPOOL_PIECE_MAX);
    if (bytes > BUFFER_BYTES - spool->end) {
        int code = write_out(spool, err);
        if (code != 0)
            return code;
    }
    memcpy(spool->buffer + spool->end, &header, sizeof(header));
    memcpy(spool->buffer + spool->end + sizeof(header), piece->text, piece->bytes);
    spool->end += bytes;
    spool->total += bytes;
    return 0;
}

int spool_sync(struct spool *spool, struct err *err)
{
    int code = spool->reading ? 0 : write_out(spool, err);
    if (code == 0 && fdatasync(spool->fd) != 0)
        code =
            err_set_errno(err, errno, "cannot bring the text kept in %s to the drive", spool->dir);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------------------------- */

int spool_rewind(struct spool *spool, struct err *err)
{
    int code = spool->reading ? 0 : write_out(spool, err);
    if (code != 0)
        return code;
    ASSERT(spool->reading || spool->offset == spool->total);
    spool->reading = true;
    spool_seek(spool, 0);
    (void)posix_fadvise(spool->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return 0;
}

uint64_t spool_position(const struct spool *spool)
{
    ASSERT(spool->reading);
    return spool->offset - (spool->end - spool->start);
}

void spool_seek(struct spool *spool, uint64_t position)
{
    ASSERT(spool->reading && position <= spool->total);
    spool->offset = position;
    spool->start = spool->end = 0;
}

uint64_t spool_bytes(const struct spool *spool)
{
    return spool->total;
}

/* Makes sure of so many bytes at start; the file holds what was written, so fewer are damage. */
static int need(struct spool *spool, size_t bytes, struct err *err)
{
    if (spool->end - spool->start >= bytes)
        return 0;
    memmove(spool->buffer, spool->buffer + spool->start, spool->end - spool->start);
    spool->end -= spool->start;
    spool->start = 0;
    while (spool->end < bytes) {
        ssize_t got = pread(spool->fd, spool->buffer + spool->end, BUFFER_BYTES - spool->end,
                            (off_t)spool->offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_set_errno(err, got < 0 ? errno : EIO,
                                 "cannot read the text again that was kept in %s", spool->dir);
        spool->end += (size_t)got;
        spool->offset += (uint64_t)got;
    }
    return 0;
}

int spool_read(struct spool *spool, struct spool_piece *piece, struct err *err)
{
    struct header header;
    if (spool_position(spool) == spool->total)
        return 0;
    int code = need(spool, sizeof(header), err);
    if (code != 0)
        return code;
    memcpy(&header, spool->buffer + spool->start, sizeof(header));
    if (header.bytes > SPOOL_PIECE_MAX)
        return err_set(err, ERR_CORRUPT,
                       "the text that was kept in %s is damaged: begin anew with --restart",
                       spool->dir);
    code = need(spool, sizeof(header) + header.bytes, err);
    if (code != 0)
        return code;
    *piece = (struct spool_piece){.text = spool->buffer + spool->start + sizeof(header),
                                  .bytes = header.bytes,
                                  .input = header.input,
                                  .first = header.first,
                                  .last = header.last};
    spool->start += sizeof(header) + header.bytes;
    return 1;
}
