/*
 * Writing other trainers' token files from a shard of ours.
 */
#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"
#include "io/foreign.h"
#include "io/foreign_layout.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LLMC_TOKENS_MAX 100000000u /* in a file */
#define BUFFER_TOKENS   65536u

/* A file being written: tokens of 2 or 4 bytes, or bytes, through one buffer. */
struct output {
    char path[FILE_PATH_MAX], path_tmp[FILE_PATH_MAX + 8];
    int fd;
    uint32_t token_bytes;
    size_t used;
    uint8_t buffer[BUFFER_TOKENS * 4];
};

static int output_open(struct output *output, const char *dir, const char *name, struct err *err)
{
    output->fd = -1;
    int code = file_join(output->path, dir, name, err);
    if (code != 0)
        return code;
    snprintf(output->path_tmp, sizeof(output->path_tmp), "%s.tmp", output->path);
    output->used = 0;
    output->fd = open(output->path_tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return output->fd >= 0 ? 0 : err_set_errno(err, errno, "cannot create %s", output->path_tmp);
}

static int output_flush(struct output *output, struct err *err)
{
    size_t used = output->used;
    output->used = 0;
    return file_write_all(output->fd, output->buffer, used, output->path_tmp, err);
}

/* bytes is at most what the buffer holds. */
static int output_bytes(struct output *output, const void *data, size_t bytes, struct err *err)
{
    int code = bytes > sizeof(output->buffer) - output->used ? output_flush(output, err) : 0;
    memcpy(output->buffer + output->used, data, bytes);
    output->used += bytes;
    return code;
}

static int output_token(struct output *output, uint32_t token, struct err *err)
{
    ASSERT(output->token_bytes == 4 || token <= UINT16_MAX);
    /* Little endian, so the lower bytes come first. */
    return output_bytes(output, &token, output->token_bytes, err);
}

/* Ends the file, whole where code is 0; else what there is of it goes. */
static int output_close(struct output *output, int code, struct err *err)
{
    if (output->fd < 0)
        return code;
    if (code == 0)
        code = output_flush(output, err);
    if (code == 0)
        code = file_commit(output->fd, output->path_tmp, output->path, err);
    close(output->fd);
    if (code != 0)
        (void)unlink(output->path_tmp);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * The formats
 * ------------------------------------------------------------------------------------------- */

/* Tokens [start, end) of the shard. */
static int copy_tokens(struct output *output, const struct shard *shard, uint64_t start,
                       uint64_t end, uint32_t *tokens, struct err *err)
{
    int code = 0;
    while (code == 0 && start < end) {
        size_t count = (size_t)MIN((uint64_t)BUFFER_TOKENS, end - start);
        shard_read(shard, start, tokens, count);
        for (size_t i = 0; code == 0 && i < count; i++)
            code = output_token(output, tokens[i], err);
        start += count;
    }
    return code;
}

static int write_nanogpt(struct output *output, const struct shard *shard, const char *dir,
                         const char *stem, uint32_t *tokens, struct err *err)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.bin", stem);
    int code = output_open(output, dir, name, err);
    if (code == 0)
        code = copy_tokens(output, shard, 0, shard->token_count, tokens, err);
    return output_close(output, code, err);
}

/* The end-of-text token that ends each document begins the next one here; the first gets one, and
 * the last loses its own: token n of all files together is token n - 1 of the shard. Writes those
 * from first. */
static int write_llmc_part(struct output *output, const struct shard *shard, uint64_t first,
                           uint32_t count, uint32_t end_of_text, uint32_t *tokens, struct err *err)
{
    int32_t header[FOREIGN_LLMC_HEADER] = {FOREIGN_LLMC_MAGIC_16, FOREIGN_LLMC_VERSION_16,
                                           (int32_t)count};
    if (shard->token_bytes == 4) {
        header[0] = FOREIGN_LLMC_MAGIC_32;
        header[1] = FOREIGN_LLMC_VERSION_32;
    }
    int code = output_bytes(output, header, sizeof(header), err);
    uint64_t end = first + count;
    if (code == 0 && first == 0 && count > 0) {
        code = output_token(output, end_of_text, err);
        first = 1;
    }
    return code == 0 ? copy_tokens(output, shard, first - 1, end - 1, tokens, err) : code;
}

static int write_llmc(struct output *output, const struct shard *shard, const char *dir,
                      const char *stem, uint32_t end_of_text, uint32_t *tokens, struct err *err)
{
    int code = 0;
    uint64_t done = 0;
    for (unsigned part = 1; code == 0 && done < shard->token_count; part++) {
        char name[64];
        uint32_t count = (uint32_t)MIN((uint64_t)LLMC_TOKENS_MAX, shard->token_count - done);
        snprintf(name, sizeof(name), "%s_%06u.bin", stem, part);
        code = output_open(output, dir, name, err);
        if (code == 0)
            code = write_llmc_part(output, shard, done, count, end_of_text, tokens, err);
        code = output_close(output, code, err);
        done += count;
    }
    return code;
}

static uint64_t document_end(const struct shard *shard, uint64_t document)
{
    return document + 1 < shard->document_count ? shard->documents[document + 1]
                                                : shard->token_count;
}

static int write_lengths(struct output *output, const struct shard *shard, struct err *err)
{
    int code = 0;
    for (uint64_t i = 0; code == 0 && i < shard->document_count; i++) {
        uint64_t length = document_end(shard, i) - shard->documents[i];
        if (length > INT32_MAX)
            return err_set(err, ERR_INPUT,
                           "document %llu has %llu tokens, and Megatron's lengths end at %d",
                           (unsigned long long)i, (unsigned long long)length, INT32_MAX);
        code = output_bytes(output, &(uint32_t){(uint32_t)length}, 4, err);
    }
    return code;
}

static int write_index(struct output *output, const struct shard *shard, struct err *err)
{
    uint8_t type = shard->token_bytes == 2 ? FOREIGN_MEGATRON_U16 : FOREIGN_MEGATRON_I32;
    uint64_t count = shard->document_count, head[3] = {1, count, count + 1};
    int code = output_bytes(output, FOREIGN_MEGATRON_MAGIC, FOREIGN_MEGATRON_MAGIC_BYTES, err);
    if (code == 0)
        code = output_bytes(output, &head[0], 8, err);
    if (code == 0)
        code = output_bytes(output, &type, 1, err);
    if (code == 0)
        code = output_bytes(output, &head[1], 16, err);
    if (code == 0)
        code = write_lengths(output, shard, err);
    for (uint64_t i = 0; code == 0 && i < count; i++)
        code = output_bytes(output, &(uint64_t){shard->documents[i] * shard->token_bytes}, 8, err);
    for (uint64_t i = 0; code == 0 && i <= count; i++)
        code = output_bytes(output, &i, 8, err);
    return code;
}

static int write_megatron(struct output *output, const struct shard *shard, const char *dir,
                          const char *stem, uint32_t *tokens, struct err *err)
{
    char name[64];
    snprintf(name, sizeof(name), "%s.bin", stem);
    int code = output_open(output, dir, name, err);
    if (code == 0)
        code = copy_tokens(output, shard, 0, shard->token_count, tokens, err);
    code = output_close(output, code, err);
    if (code != 0)
        return code;
    snprintf(name, sizeof(name), "%s.idx", stem);
    code = output_open(output, dir, name, err);
    if (code == 0)
        code = write_index(output, shard, err);
    return output_close(output, code, err);
}

int foreign_check(enum foreign_format format, uint32_t vocab_size, struct err *err)
{
    if (format != FOREIGN_NANOGPT || vocab_size <= UINT16_MAX + 1)
        return 0;
    return err_set(err, ERR_INPUT,
                   "a vocabulary of %u does not fit into nanoGPT's uint16 tokens: take "
                   "--shard-format llmc or megatron",
                   vocab_size);
}

int foreign_write(const struct shard *shard, enum foreign_format format, uint32_t end_of_text,
                  const char *dir, const char *stem, struct err *err)
{
    ASSERT(format < FOREIGN_FORMATS && strlen(stem) < 32);
    struct output *output = mem_alloc(1, sizeof(*output));
    uint32_t *tokens = mem_alloc(BUFFER_TOKENS, sizeof(*tokens));
    output->token_bytes = shard->token_bytes;
    shard_expect_all(shard, true);
    int code = foreign_check(format, shard->vocab_size, err);
    if (code == 0 && format == FOREIGN_NANOGPT)
        code = write_nanogpt(output, shard, dir, stem, tokens, err);
    else if (code == 0 && format == FOREIGN_LLMC)
        code = write_llmc(output, shard, dir, stem, end_of_text, tokens, err);
    else if (code == 0)
        code = write_megatron(output, shard, dir, stem, tokens, err);
    shard_expect_all(shard, false);
    mem_free(tokens);
    mem_free(output);
    return code;
}
