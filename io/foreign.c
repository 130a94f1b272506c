/*
 * Reading; io/foreign_write.c is the other half.
 */
#include "io/foreign.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"
#include "io/foreign_layout.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

const char *const foreign_names[FOREIGN_FORMATS] = {
    [FOREIGN_NANOGPT] = "nanogpt",
    [FOREIGN_LLMC] = "llmc",
    [FOREIGN_MEGATRON] = "megatron",
};

enum foreign_format foreign_by_name(const char *name)
{
    enum foreign_format format = 0;
    while (format < FOREIGN_FORMATS && strcmp(foreign_names[format], name) != 0)
        format++;
    return format;
}

static int map_whole(const char *path, const uint8_t **map, uint64_t *bytes, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat status;
    if (fd < 0)
        return err_set_errno(err, errno, "cannot open %s", path);
    int code = 0;
    void *address = NULL;
    if (fstat(fd, &status) != 0)
        code = err_set_errno(err, errno, "cannot read the size of %s", path);
    else if (!S_ISREG(status.st_mode) || status.st_size == 0)
        code = err_set(err, ERR_INPUT, "%s is no file of tokens: it is empty, or no file", path);
    else if ((address = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0)) ==
             MAP_FAILED)
        code = err_set_errno(err, errno, "cannot map %s", path);
    close(fd);
    if (code != 0)
        return code;
    (void)madvise(address, (size_t)status.st_size, MADV_SEQUENTIAL);
    *map = address;
    *bytes = (uint64_t)status.st_size;
    return 0;
}

/* ---------------------------------------------------------------------------------------------
 * Opening
 * ------------------------------------------------------------------------------------------- */

static uint32_t token_at(const struct foreign_file *file, uint64_t position)
{
    const uint8_t *from = file->tokens + position * file->token_bytes;
    uint16_t narrow;
    uint32_t wide;
    if (file->token_bytes == 2) {
        memcpy(&narrow, from, sizeof(narrow));
        return narrow;
    }
    memcpy(&wide, from, sizeof(wide));
    return wide;
}

static int open_nanogpt(struct foreign_file *file, struct err *err)
{
    file->token_bytes = 2;
    file->tokens = file->map;
    file->token_count = file->map_bytes / 2;
    return file->map_bytes % 2 == 0
               ? 0
               : err_set(err, ERR_INPUT, "%s is no file of uint16 tokens: it has %llu bytes",
                         file->path, (unsigned long long)file->map_bytes);
}

static int open_llmc(struct foreign_file *file, struct err *err)
{
    int32_t header[FOREIGN_LLMC_HEADER];
    if (file->map_bytes < sizeof(header))
        return err_set(err, ERR_INPUT, "%s is no file of llm.c: it has no whole header",
                       file->path);
    memcpy(header, file->map, sizeof(header));
    bool narrow = header[0] == FOREIGN_LLMC_MAGIC_16 && header[1] == FOREIGN_LLMC_VERSION_16;
    if (!narrow && !(header[0] == FOREIGN_LLMC_MAGIC_32 && header[1] == FOREIGN_LLMC_VERSION_32))
        return err_set(
            err, ERR_INPUT,
            "%s is no file of llm.c: it begins with %d and %d, and not with %d and %d or "
            "%d and %d",
            file->path, header[0], header[1], FOREIGN_LLMC_MAGIC_16, FOREIGN_LLMC_VERSION_16,
            FOREIGN_LLMC_MAGIC_32, FOREIGN_LLMC_VERSION_32);
    file->token_bytes = narrow ? 2 : 4;
    file->tokens = file->map + sizeof(header);
    file->token_count = (file->map_bytes - sizeof(header)) / file->token_bytes;
    if (header[2] < 0 || file->token_count != (uint64_t)header[2] ||
        (file->map_bytes - sizeof(header)) % file->token_bytes != 0)
        return err_set(err, ERR_CORRUPT,
                       "%s is cut off: its header says %d tokens, and it has %llu", file->path,
                       header[2], (unsigned long long)file->token_count);
    if (file->token_count > 0 && token_at(file, 0) == file->end_of_text)
        file->position = 1; /* it begins the first document, and ends none */
    return 0;
}

static int refuse_index(const struct foreign_file *file, const char *why, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "the index of %s (.idx beside it) %s", file->path, why);
}

static uint64_t read_u64(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof(value));
    return value;
}

static uint32_t read_length(const struct foreign_file *file, uint64_t sequence)
{
    uint32_t value;
    memcpy(&value, file->lengths + 4 * sequence, sizeof(value));
    return value;
}

static uint64_t read_entry(const uint8_t *entries, uint64_t number)
{
    return read_u64(entries + 8 * number);
}

/* Where the parts of the index are, and that they are all of it. */
static int lay_out_index(struct foreign_file *file, struct err *err)
{
    const uint8_t *at = file->index;
    if (file->index_bytes < FOREIGN_MEGATRON_HEADER ||
        memcmp(at, FOREIGN_MEGATRON_MAGIC, FOREIGN_MEGATRON_MAGIC_BYTES) != 0 ||
        read_u64(at + FOREIGN_MEGATRON_MAGIC_BYTES) != 1)
        return refuse_index(file, "is none of Megatron's, version 1", err);
    uint8_t type = at[FOREIGN_MEGATRON_MAGIC_BYTES + 8];
    if (type != FOREIGN_MEGATRON_U16 && type != FOREIGN_MEGATRON_I32)
        return refuse_index(file, "is of another type than uint16 and int32", err);
    file->token_bytes = type == FOREIGN_MEGATRON_U16 ? 2 : 4;
    file->sequence_count = read_u64(at + FOREIGN_MEGATRON_MAGIC_BYTES + 9);
    uint64_t entries = read_u64(at + FOREIGN_MEGATRON_MAGIC_BYTES + 17);
    uint64_t most = file->index_bytes / 4;
    if (entries == 0 || file->sequence_count > most || entries > most ||
        FOREIGN_MEGATRON_HEADER + 12 * file->sequence_count + 8 * entries > file->index_bytes)
        return refuse_index(file, "is cut off", err);
    file->document_count = entries - 1;
    file->lengths = at + FOREIGN_MEGATRON_HEADER;
    file->places = file->lengths + 4 * file->sequence_count;
    file->documents = file->places + 8 * file->sequence_count;
    return 0;
}

static int check_index(const struct foreign_file *file, struct err *err)
{
    for (uint64_t i = 0; i < file->sequence_count; i++) {
        uint64_t place = read_entry(file->places, i);
        uint64_t bytes = (uint64_t)read_length(file, i) * file->token_bytes;
        if (place % file->token_bytes != 0 || place > file->map_bytes ||
            bytes > file->map_bytes - place)
            return refuse_index(file, "has a sequence outside of the tokens", err);
    }
    if (read_entry(file->documents, 0) != 0 ||
        read_entry(file->documents, file->document_count) != file->sequence_count)
        return refuse_index(file, "has documents that are not all of its sequences", err);
    for (uint64_t i = 0; i < file->document_count; i++)
        if (read_entry(file->documents, i) > read_entry(file->documents, i + 1))
            return refuse_index(file, "has documents out of order", err);
    return 0;
}

static int open_megatron(struct foreign_file *file, struct err *err)
{
    char path[FILE_PATH_MAX];
    size_t bytes = strlen(file->path);
    if (bytes < 4 || bytes >= sizeof(path) || strcmp(file->path + bytes - 4, ".bin") != 0)
        return err_set(err, ERR_INPUT, "%s is no file of Megatron: its name does not end in .bin",
                       file->path);
    snprintf(path, sizeof(path), "%.*s.idx", (int)bytes - 4, file->path);
    int code = map_whole(path, &file->index, &file->index_bytes, err);
    if (code == 0)
        code = lay_out_index(file, err);
    file->tokens = file->map;
    file->token_count = code == 0 ? file->map_bytes / file->token_bytes : 0;
    return code == 0 ? check_index(file, err) : code;
}

int foreign_open(struct foreign_file *file, enum foreign_format format, const char *path,
                 uint32_t vocab_size, uint32_t end_of_text, struct err *err)
{
    *file = (struct foreign_file){
        .vocab_size = vocab_size, .end_of_text = end_of_text, .path = mem_strdup(path)};
    int code = map_whole(path, &file->map, &file->map_bytes, err);
    if (code == 0 && format == FOREIGN_NANOGPT)
        code = open_nanogpt(file, err);
    else if (code == 0 && format == FOREIGN_LLMC)
        code = open_llmc(file, err);
    else if (code == 0)
        code = open_megatron(file, err);
    if (code != 0)
        foreign_close(file);
    return code;
}

void foreign_close(struct foreign_file *file)
{
    if (file->map != NULL)
        munmap((void *)(uintptr_t)file->map, file->map_bytes);
    if (file->index != NULL)
        munmap((void *)(uintptr_t)file->index, file->index_bytes);
    mem_free(file->path);
    *file = (struct foreign_file){0};
}

/* ---------------------------------------------------------------------------------------------
 * Reading
 * ------------------------------------------------------------------------------------------- */

/* Takes tokens [start, start + most) up to the end-of-text token, which is left out; *taken counts
 * it.
 */
static int take_tokens(const struct foreign_file *file, uint64_t start, uint64_t most,
                       struct foreign_piece *piece, uint64_t *taken, struct err *err)
{
    piece->count = 0;
    piece->ends_document = false;
    *taken = 0;
    while (*taken < most && piece->count < FOREIGN_PIECE_MAX && !piece->ends_document) {
        uint32_t token = token_at(file, start + *taken);
        if (token >= file->vocab_size)
            return err_set(
                err, ERR_INPUT,
                "%s holds token %u at position %llu, and the tokenizer has %u: is it the "
                "one that these were made with?",
                file->path, token, (unsigned long long)(start + *taken), file->vocab_size);
        *taken += 1;
        if (token == file->end_of_text)
            piece->ends_document = true;
        else
            piece->tokens[piece->count++] = token;
    }
    return 0;
}

static int next_of_stream(struct foreign_file *file, struct foreign_piece *piece, struct err *err)
{
    uint64_t taken;
    if (file->position == file->token_count)
        return 0;
    int code =
        take_tokens(file, file->position, file->token_count - file->position, piece, &taken, err);
    file->position += taken;
    piece->ends_document |= file->position == file->token_count;
    return code == 0 ? 1 : code;
}

static int next_of_sequences(struct foreign_file *file, struct foreign_piece *piece,
                             struct err *err)
{
    piece->count = 0;
    piece->ends_document = true;
    if (file->document == file->document_count)
        return 0;
    uint64_t document_end = read_entry(file->documents, file->document + 1);
    int code = 0;
    if (file->position < document_end) {
        uint64_t start = read_entry(file->places, file->position) / file->token_bytes + file->done;
        uint64_t length = read_length(file, file->position), taken;
        code = take_tokens(file, start, length - file->done, piece, &taken, err);
        file->done += taken;
        if (file->done == length) {
            file->position++;
            file->done = 0;
        }
        /* An end-of-text token within a sequence parts documents too. */
        piece->ends_document |= file->position == document_end;
    }
    if (file->position == document_end)
        file->document++;
    return code == 0 ? 1 : code;
}

int foreign_next(struct foreign_file *file, struct foreign_piece *piece, struct err *err)
{
    return file->index != NULL ? next_of_sequences(file, piece, err)
                               : next_of_stream(file, piece, err);
}
