#include "io/shard.h"
#include "core/base.h"
#include "core/hash.h"
#include "core/mem.h"
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHARD_VERSION  1
#define PATH_BYTES_MAX (FILE_PATH_MAX + 8)

static const char shard_magic[8] = {'S', 'P', 'I', 'L', 'L', 'T', 'O', 'K'};

/* The first bytes of the file; the rest of the 4096 is zero, and all of them are under
 * header_checksum, computed with that field as zero. */
struct shard_header {
    char magic[8];
    uint32_t version;
    uint32_t token_bytes;
    uint64_t token_count;
    uint64_t document_count;
    uint32_t vocab_size;
    uint32_t reserved;
    uint64_t tokenizer_hash;
    uint64_t contents_checksum;
    uint64_t header_checksum;
};

_Static_assert(sizeof(struct shard_header) == 64, "the header's layout is the file's");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tokens are stored little endian");

static uint32_t token_bytes_for(uint32_t vocab_size)
{
    return vocab_size <= (1u << 16) ? 2 : 4;
}

static uint64_t header_checksum(const void *header_page)
{
    uint8_t page[SHARD_HEADER_BYTES];
    memcpy(page, header_page, sizeof(page));
    memset(page + offsetof(struct shard_header, header_checksum), 0, sizeof(uint64_t));
    return hash_bytes(page, sizeof(page), 0);
}

/* ---------------------------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------------------------- */

static const char *path_of(const struct shard *shard)
{
    return shard->path != NULL ? shard->path : "the token shard";
}

/* The size that a file with this header has. False where it is more than any file can have, which
 * a forged header could ask for. */
static bool expected_bytes(const struct shard_header *header, uint64_t *bytes)
{
    uint64_t tokens, index;
    if (__builtin_mul_overflow(header->token_count, (uint64_t)header->token_bytes, &tokens) ||
        __builtin_mul_overflow(header->document_count, (uint64_t)8, &index) ||
        tokens > INT64_MAX / 4 || index > INT64_MAX / 4)
        return false;
    *bytes = SHARD_HEADER_BYTES + round_up(tokens, 8) + index;
    return true;
}

static int header_check(const void *map, uint64_t map_bytes, const char *path, struct err *err)
{
    const struct shard_header *header = map;
    if (memcmp(header->magic, shard_magic, sizeof(shard_magic)) != 0)
        return err_set(err, ERR_INPUT,
                       "%s is no token shard of spillway: prepare the text with `spillway prep`",
                       path);
    if (header->version != SHARD_VERSION)
        return err_set(err, ERR_INPUT,
                       "%s is a token shard of version %u, and this program reads version %d: "
                       "prepare the text again with `spillway prep`",
                       path, header->version, SHARD_VERSION);
    if (header->header_checksum != header_checksum(map))
        return err_set(err, ERR_CORRUPT,
                       "the header of %s is damaged (its checksum does not match): prepare the "
                       "text again with `spillway prep`",
                       path);
    uint64_t bytes;
    if (header->vocab_size == 0 || header->token_bytes != token_bytes_for(header->vocab_size) ||
        (header->token_count == 0) != (header->document_count == 0) ||
        header->document_count > header->token_count || !expected_bytes(header, &bytes))
        return err_set(err, ERR_CORRUPT,
                       "the header of %s contradicts itself: prepare the text "
                       "again with `spillway prep`",
                       path);
    if (bytes != map_bytes)
        return err_set(err, ERR_CORRUPT,
                       "%s is %s: it has %llu bytes and should have %llu; copy it again, or "
                       "prepare the text again with `spillway prep`",
                       path, map_bytes < bytes ? "truncated" : "too long",
                       (unsigned long long)map_bytes, (unsigned long long)bytes);
    return 0;
}

/* Fills in map, map_bytes and fd. */
static int map_file(struct shard *shard, const char *path, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open the token shard %s", path);
    int code = 0;
    struct stat status;
    if (fstat(fd, &status) != 0) {
        code = err_set_errno(err, errno, "cannot read the size of %s", path);
        goto out;
    }
    if (!S_ISREG(status.st_mode) || status.st_size < SHARD_HEADER_BYTES) {
        code = err_set(err, ERR_CORRUPT,
                       "%s is no whole token shard (%lld bytes, and its header alone has %d): "
                       "prepare the text again with `spillway prep`",
                       path, (long long)status.st_size, SHARD_HEADER_BYTES);
        goto out;
    }
    void *address = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) {
        code = err_set_errno(err, errno, "cannot map %s", path);
        goto out;
    }
    shard->map = address;
    shard->map_bytes = (uint64_t)status.st_size;
    shard->fd = fd;
    return 0;
out:
    close(fd);
    return code;
}

int shard_open(struct shard *shard, const char *path, struct err *err)
{
    memset(shard, 0, sizeof(*shard));
    int code = map_file(shard, path, err);
    if (code != 0)
        return code;
    code = header_check(shard->map, shard->map_bytes, path, err);
    if (code != 0) {
        shard_close(shard);
        return code;
    }
    const struct shard_header *header = shard->map;
    shard->token_bytes = header->token_bytes;
    shard->vocab_size = header->vocab_size;
    shard->token_count = header->token_count;
    shard->document_count = header->document_count;
    shard->contents_checksum = header->contents_checksum;
    shard->tokenizer_hash = header->tokenizer_hash;
    shard->tokens = (const uint8_t *)shard->map + SHARD_HEADER_BYTES;
    shard->documents = (const uint64_t *)((const uint8_t *)shard->tokens +
                                          round_up(shard->token_count * shard->token_bytes, 8));
    shard->path = mem_strdup(path);
    /* Windows are read in random order: readahead would only fill the page cache. */
    shard_expect_all(shard, false);
    return 0;
}

void shard_close(struct shard *shard)
{
    if (shard->map != NULL) {
        munmap((void *)(uintptr_t)shard->map, shard->map_bytes);
        close(shard->fd);
    }
    mem_free(shard->path);
    memset(shard, 0, sizeof(*shard));
}

/* A fault maps the pages around it too (64 KiB, or a huge page where the file system has them), so
 * what is given back is rounded out by as much; otherwise each read would leave 15 pages behind
 * that count as ours. */
static void give_back(const struct shard *shard, uint64_t offset, uint64_t bytes)
{
    const uint64_t around = 2 * MIB;
    uint64_t first = offset / around * around;
    uint64_t end = MIN(round_up(offset + bytes, around), shard->map_bytes);
    (void)madvise((uint8_t *)(uintptr_t)shard->map + first, end - first, MADV_DONTNEED);
}

static uint32_t widen_tokens(const void *from, uint32_t token_bytes, uint32_t *tokens, size_t count)
{
    uint32_t greatest = 0;
    if (token_bytes == 2) {
        const uint16_t *narrow = from;
        for (size_t i = 0; i < count; i++) {
            tokens[i] = narrow[i];
            greatest = MAX(greatest, tokens[i]);
        }
    } else {
        memcpy(tokens, from, count * sizeof(uint32_t));
        for (size_t i = 0; i < count; i++)
            greatest = MAX(greatest, tokens[i]);
    }
    return greatest;
}

void shard_read(const struct shard *shard, uint64_t start, uint32_t *tokens, size_t count)
{
    ASSERT(shard->map != NULL);
    ASSERT(start <= shard->token_count && count <= shard->token_count - start);
    uint64_t offset = start * shard->token_bytes;
    uint32_t greatest =
        widen_tokens((const uint8_t *)shard->tokens + offset, shard->token_bytes, tokens, count);
    give_back(shard, SHARD_HEADER_BYTES + offset, count * shard->token_bytes);
    if (count > 0 && greatest >= shard->vocab_size)
        fatal("%s is damaged: token %u stands near position %llu, and the vocabulary has %u; "
              "`spillway check` on its folder says more",
              path_of(shard), greatest, (unsigned long long)start, shard->vocab_size);
}

/* The pages that hold these tokens, as offset and bytes of the file. */
static void pages_of(const struct shard *shard, uint64_t start, uint64_t count, uint64_t *offset,
                     uint64_t *bytes)
{
    const uint64_t page = 4 * KIB;
    ASSERT(start <= shard->token_count && count <= shard->token_count - start);
    uint64_t end = SHARD_HEADER_BYTES + (start + count) * shard->token_bytes;
    *offset = (SHARD_HEADER_BYTES + start * shard->token_bytes) / page * page;
    *bytes = MIN(round_up(end, page), shard->map_bytes) - *offset;
}

/* Both are advice: where the kernel does not take it, reading is slower or memory fuller. */
void shard_fetch(const struct shard *shard, uint64_t start, uint64_t count)
{
    uint64_t offset, bytes;
    pages_of(shard, start, count, &offset, &bytes);
    (void)posix_fadvise(shard->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

void shard_forget(const struct shard *shard, uint64_t start, uint64_t count)
{
    uint64_t offset, bytes;
    pages_of(shard, start, count, &offset, &bytes);
    (void)posix_fadvise(shard->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_DONTNEED);
}

/* The greatest of the tokens that lie in contents [start, start + bytes); 0 where none does. Blocks
 * hold whole tokens. */
static uint32_t greatest_token(const struct shard *shard, uint64_t start, size_t bytes)
{
    uint64_t first = start / shard->token_bytes;
    uint64_t end = MIN(first + bytes / shard->token_bytes, shard->token_count);
    uint32_t greatest = 0;
    for (uint64_t i = first; i < end; i++) {
        uint32_t token = shard->token_bytes == 2 ? ((const uint16_t *)shard->tokens)[i]
                                                 : ((const uint32_t *)shard->tokens)[i];
        greatest = MAX(greatest, token);
    }
    return greatest;
}

/* Everything behind the header, block by block, giving each block's pages back. */
static int verify_contents(const struct shard *shard, const char *path, struct err *err)
{
    const struct shard_header *header = shard->map;
    const uint8_t *contents = (const uint8_t *)shard->map + SHARD_HEADER_BYTES;
    uint64_t contents_bytes = shard->map_bytes - SHARD_HEADER_BYTES;
    uint64_t checksum = 0;
    uint32_t greatest = 0;
    for (uint64_t done = 0; done < contents_bytes;) {
        size_t bytes = (size_t)MIN((uint64_t)SHARD_BLOCK_BYTES, contents_bytes - done);
        uint32_t token = greatest_token(shard, done, bytes);
        checksum = hash_bytes(contents + done, bytes, checksum);
        greatest = MAX(greatest, token);
        give_back(shard, SHARD_HEADER_BYTES + done, bytes);
        done += bytes;
    }
    if (checksum != header->contents_checksum)
        return err_set(err, ERR_CORRUPT,
                       "%s is damaged: its contents do not match their checksum; copy it again, "
                       "or prepare the text again with `spillway prep`",
                       path);
    if (shard->token_count > 0 && greatest >= shard->vocab_size)
        return err_set(err, ERR_CORRUPT,
                       "%s holds token %u, and its vocabulary has %u: prepare the text again with "
                       "`spillway prep`",
                       path, greatest, shard->vocab_size);
    return 0;
}

static int verify_documents(const struct shard *shard, const char *path, struct err *err)
{
    for (uint64_t i = 0; i < shard->document_count; i++) {
        uint64_t least = i == 0 ? 0 : shard->documents[i - 1] + 1;
        uint64_t most = i == 0 ? 0 : shard->token_count - 1;
        if (i % (SHARD_BLOCK_BYTES / 8) == 0 && i > 0)
            give_back(shard, shard->map_bytes - (shard->document_count - i) * 8 - SHARD_BLOCK_BYTES,
                      SHARD_BLOCK_BYTES);
        if (shard->documents[i] < least || shard->documents[i] > most)
            return err_set(err, ERR_CORRUPT,
                           "the document index of %s is wrong at entry %llu: "
                           "prepare the text again with `spillway prep`",
                           path, (unsigned long long)i);
    }
    return 0;
}

void shard_expect_all(const struct shard *shard, bool all)
{
    (void)madvise((void *)(uintptr_t)shard->map, shard->map_bytes,
                  all ? MADV_SEQUENTIAL : MADV_RANDOM);
}

int shard_verify(const struct shard *shard, const char *path, struct err *err)
{
    ASSERT(shard->map != NULL);
    shard_expect_all(shard, true);
    int code = verify_contents(shard, path, err);
    if (code == 0)
        code = verify_documents(shard, path, err);
    give_back(shard, 0, shard->map_bytes);
    shard_expect_all(shard, false);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * Writing
 * ------------------------------------------------------------------------------------------- */

struct shard_writer {
    char *path, *path_tmp, *path_index;
    int fd;
    int index_fd; /* the document index until the tokens are all there */
    struct shard_header header;
    uint64_t checksum;
    bool in_document;
    size_t block_used; /* bytes in block */
    size_t index_used; /* entries in index */
    uint64_t index[SHARD_BLOCK_BYTES / 64];
    uint8_t block[SHARD_BLOCK_BYTES];
};

static void writer_free(struct shard_writer *writer)
{
    if (writer->fd >= 0)
        close(writer->fd);
    if (writer->index_fd >= 0)
        close(writer->index_fd);
    mem_free(writer->path);
    mem_free(writer->path_tmp);
    mem_free(writer->path_index);
    mem_free(writer);
}

static int open_part(const char *path, int flags, int *fd, struct err *err)
{
    *fd = open(path, O_RDWR | O_CLOEXEC | flags, 0644);
    return *fd >= 0 ? 0 : err_set_errno(err, errno, "cannot open %s", path);
}

/* Everything but the open files. */
static int new_writer(struct shard_writer **writer, const char *path, uint32_t vocab_size,
                      uint64_t tokenizer_hash, struct err *err)
{
    ASSERT(vocab_size > 0);
    *writer = NULL;
    char path_tmp[PATH_BYTES_MAX], path_index[PATH_BYTES_MAX + 8];
    if (strlen(path) >= FILE_PATH_MAX)
        return err_set(err, ERR_INPUT, "the path is too long: %.200s...", path);
    snprintf(path_tmp, sizeof(path_tmp), "%s.tmp", path);
    snprintf(path_index, sizeof(path_index), "%s.index", path_tmp);

    struct shard_writer *fresh = mem_alloc(1, sizeof(*fresh));
    fresh->path = mem_strdup(path);
    fresh->path_tmp = mem_strdup(path_tmp);
    fresh->path_index = mem_strdup(path_index);
    fresh->fd = fresh->index_fd = -1;
    memcpy(fresh->header.magic, shard_magic, sizeof(shard_magic));
    fresh->header.version = SHARD_VERSION;
    fresh->header.token_bytes = token_bytes_for(vocab_size);
    fresh->header.vocab_size = vocab_size;
    fresh->header.tokenizer_hash = tokenizer_hash;
    *writer = fresh;
    return 0;
}

int shard_writer_open(struct shard_writer **writer, const char *path, uint32_t vocab_size,
                      uint64_t tokenizer_hash, struct err *err)
{
    struct shard_writer *fresh;
    int code = new_writer(&fresh, path, vocab_size, tokenizer_hash, err);
    *writer = NULL;
    if (code != 0)
        return code;
    code = open_part(fresh->path_tmp, O_CREAT | O_TRUNC, &fresh->fd, err);
    if (code == 0)
        code = open_part(fresh->path_index, O_CREAT | O_TRUNC, &fresh->index_fd, err);
    /* The header's place; filled in by the close. Zeros are no magic. */
    if (code == 0)
        code = file_write_all(fresh->fd, fresh->block, SHARD_HEADER_BYTES, fresh->path_tmp, err);
    if (code != 0) {
        shard_writer_abort(fresh);
        return code;
    }
    *writer = fresh;
    return 0;
}

static int flush_block(struct shard_writer *writer, struct err *err)
{
    if (writer->block_used == 0)
        return 0;
    writer->checksum = hash_bytes(writer->block, writer->block_used, writer->checksum);
    int code = file_write_all(writer->fd, writer->block, writer->block_used, writer->path_tmp, err);
    writer->block_used = 0;
    /* To the drive now, so that neither a mark nor the page cache has much to wait for. */
    off_t end = lseek(writer->fd, 0, SEEK_CUR);
    (void)sync_file_range(writer->fd, end - SHARD_BLOCK_BYTES, SHARD_BLOCK_BYTES,
                          SYNC_FILE_RANGE_WRITE);
    return code;
}

static int flush_index(struct shard_writer *writer, struct err *err)
{
    size_t bytes = writer->index_used * sizeof(writer->index[0]);
    writer->index_used = 0;
    return bytes == 0
               ? 0
               : file_write_all(writer->index_fd, writer->index, bytes, writer->path_tmp, err);
}

static int begin_document(struct shard_writer *writer, struct err *err)
{
    writer->in_document = true;
    writer->index[writer->index_used++] = writer->header.token_count;
    writer->header.document_count++;
    return writer->index_used == ARRAY_COUNT(writer->index) ? flush_index(writer, err) : 0;
}

/* Appends count tokens, which fit into what is left of the block. */
static void pack_tokens(struct shard_writer *writer, const uint32_t *tokens, size_t count)
{
    uint8_t *to = writer->block + writer->block_used;
    for (size_t i = 0; i < count; i++) {
        ASSERT(tokens[i] < writer->header.vocab_size);
        if (writer->header.token_bytes == 2)
            memcpy(to + i * 2, &(uint16_t){(uint16_t)tokens[i]}, 2);
        else
            memcpy(to + i * 4, &tokens[i], 4);
    }
    writer->block_used += count * writer->header.token_bytes;
    writer->header.token_count += count;
}

int shard_writer_append(struct shard_writer *writer, const uint32_t *tokens, size_t count,
                        struct err *err)
{
    int code = 0;
    if (count > 0 && !writer->in_document)
        code = begin_document(writer, err);
    while (code == 0 && count > 0) {
        size_t room = (sizeof(writer->block) - writer->block_used) / writer->header.token_bytes;
        size_t part = MIN(room, count);
        pack_tokens(writer, tokens, part);
        tokens += part;
        count -= part;
        if (writer->block_used == sizeof(writer->block))
            code = flush_block(writer, err);
    }
    return code;
}

void shard_writer_end_document(struct shard_writer *writer)
{
    ASSERT(writer->in_document);
    writer->in_document = false;
}

int shard_writer_add(struct shard_writer *writer, const uint32_t *tokens, size_t count,
                     struct err *err)
{
    ASSERT(!writer->in_document && count > 0);
    int code = shard_writer_append(writer, tokens, count, err);
    if (code == 0)
        shard_writer_end_document(writer);
    return code;
}

uint64_t shard_writer_token_count(const struct shard_writer *writer)
{
    return writer->header.token_count;
}

uint64_t shard_writer_document_count(const struct shard_writer *writer)
{
    return writer->header.document_count;
}

/* Copies the document index behind the tokens, through the same blocks and checksum. */
static int append_index(struct shard_writer *writer, struct err *err)
{
    int code = flush_index(writer, err);
    if (code == 0 && lseek(writer->index_fd, 0, SEEK_SET) != 0)
        code = err_set_errno(err, errno, "cannot read back the index of %s", writer->path_tmp);
    uint64_t left_bytes = writer->header.document_count * sizeof(uint64_t);
    while (code == 0 && left_bytes > 0) {
        size_t room = sizeof(writer->block) - writer->block_used;
        ssize_t got = read(writer->index_fd, writer->block + writer->block_used,
                           (size_t)MIN((uint64_t)room, left_bytes));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return err_set_errno(err, got < 0 ? errno : EIO, "cannot read back the index of %s",
                                 writer->path_tmp);
        writer->block_used += (size_t)got;
        left_bytes -= (uint64_t)got;
        if (writer->block_used == sizeof(writer->block))
            code = flush_block(writer, err);
    }
    return code == 0 ? flush_block(writer, err) : code;
}

static int write_header(struct shard_writer *writer, struct err *err)
{
    uint8_t page[SHARD_HEADER_BYTES] = {0};
    writer->header.contents_checksum = writer->checksum;
    memcpy(page, &writer->header, sizeof(writer->header));
    writer->header.header_checksum = header_checksum(page);
    memcpy(page, &writer->header, sizeof(writer->header));
    if (lseek(writer->fd, 0, SEEK_SET) != 0)
        return err_set_errno(err, errno, "cannot write the header of %s", writer->path_tmp);
    return file_write_all(writer->fd, page, sizeof(page), writer->path_tmp, err);
}

int shard_publish(const char *path, struct err *err)
{
    char path_tmp[PATH_BYTES_MAX], path_index[PATH_BYTES_MAX + 8], dir[FILE_PATH_MAX];
    snprintf(path_tmp, sizeof(path_tmp), "%s.tmp", path);
    snprintf(path_index, sizeof(path_index), "%s.index", path_tmp);
    if (rename(path_tmp, path) != 0 && (errno != ENOENT || !file_exists(path)))
        return err_set_errno(err, errno, "cannot rename %s to %s", path_tmp, path);
    (void)unlink(path_index);
    snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash == NULL)
        return file_sync_dir(".", err);
    slash[slash == dir ? 1 : 0] = '\0';
    return file_sync_dir(dir, err);
}

static int finish(struct shard_writer *writer, struct err *err)
{
    ASSERT(!writer->in_document);
    /* The block's room is a multiple of 8 whenever it is flushed, so the padding fits. */
    while (writer->block_used % 8 != 0)
        writer->block[writer->block_used++] = 0;
    int code = 0;
    if (writer->block_used == sizeof(writer->block))
        code = flush_block(writer, err);
    if (code == 0)
        code = append_index(writer, err);
    if (code == 0)
        code = write_header(writer, err);
    if (code == 0 && fsync(writer->fd) != 0)
        code = err_set_errno(err, errno, "cannot write %s to the drive", writer->path_tmp);
    return code;
}

int shard_writer_close(struct shard_writer *writer, struct err *err)
{
    int code = finish(writer, err);
    if (code == 0)
        code = shard_publish(writer->path, err);
    if (code != 0) {
        shard_writer_abort(writer);
        return code;
    }
    writer_free(writer);
    return 0;
}

int shard_writer_finish(struct shard_writer *writer, struct err *err)
{
    int code = finish(writer, err);
    writer_free(writer);
    return code;
}

void shard_writer_abort(struct shard_writer *writer)
{
    if (writer == NULL)
        return;
    if (writer->fd >= 0)
        (void)unlink(writer->path_tmp);
    if (writer->index_fd >= 0)
        (void)unlink(writer->path_index);
    writer_free(writer);
}

/* ---------------------------------------------------------------------------------------------
 * Going on
 * ------------------------------------------------------------------------------------------- */

void shard_writer_leave(struct shard_writer *writer)
{
    if (writer != NULL)
        writer_free(writer);
}

/* The block at hand goes to the file as it is, and again when it is full. */
static int write_partial_block(struct shard_writer *writer, struct err *err)
{
    int code = file_write_all(writer->fd, writer->block, writer->block_used, writer->path_tmp, err);
    if (code == 0 && lseek(writer->fd, -(off_t)writer->block_used, SEEK_CUR) < 0)
        code = err_set_errno(err, errno, "cannot go back in %s", writer->path_tmp);
    return code;
}

int shard_writer_mark(struct shard_writer *writer, struct shard_mark *mark, struct err *err)
{
    int code = write_partial_block(writer, err);
    if (code == 0)
        code = flush_index(writer, err);
    if (code == 0 && (fdatasync(writer->fd) != 0 || fdatasync(writer->index_fd) != 0))
        code = err_set_errno(err, errno, "cannot write %s to the drive", writer->path_tmp);
    *mark = (struct shard_mark){writer->header.token_count, writer->header.document_count,
                                writer->checksum, writer->in_document};
    return code;
}

/* Opens one of the two files and cuts off what is behind the mark; writing goes on at `at`. */
static int reopen_part(const char *path, uint64_t bytes, uint64_t at, int *fd, struct err *err)
{
    struct stat status;
    int code = open_part(path, 0, fd, err);
    if (code == 0 && (fstat(*fd, &status) != 0 || (uint64_t)status.st_size < bytes))
        code =
            err_set(err, ERR_CORRUPT, "%s is shorter than it was: begin anew with --restart", path);
    if (code == 0 && (ftruncate(*fd, (off_t)bytes) != 0 || lseek(*fd, (off_t)at, SEEK_SET) < 0))
        code = err_set_errno(err, errno, "cannot cut %s", path);
    return code;
}

int shard_writer_reopen(struct shard_writer **writer, const char *path, uint32_t vocab_size,
                        uint64_t tokenizer_hash, const struct shard_mark *mark, struct err *err)
{
    struct shard_writer *fresh;
    int code = new_writer(&fresh, path, vocab_size, tokenizer_hash, err);
    *writer = NULL;
    if (code != 0)
        return code;
    uint64_t bytes = mark->token_count * fresh->header.token_bytes;
    uint64_t index_bytes = mark->document_count * sizeof(fresh->index[0]);
    uint64_t full_end = SHARD_HEADER_BYTES + bytes / SHARD_BLOCK_BYTES * SHARD_BLOCK_BYTES;
    fresh->block_used = bytes % SHARD_BLOCK_BYTES;
    fresh->checksum = mark->checksum;
    fresh->in_document = mark->in_document;
    fresh->header.token_count = mark->token_count;
    fresh->header.document_count = mark->document_count;
    code = reopen_part(fresh->path_tmp, SHARD_HEADER_BYTES + bytes, full_end, &fresh->fd, err);
    if (code == 0)
        code = reopen_part(fresh->path_index, index_bytes, index_bytes, &fresh->index_fd, err);
    if (code == 0)
        code = file_read_at(fresh->fd, fresh->block, fresh->block_used, full_end, fresh->path_tmp,
                            err);
    if (code != 0) {
        shard_writer_leave(fresh);
        return code;
    }
    *writer = fresh;
    return 0;
}
