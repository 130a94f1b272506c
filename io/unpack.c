#include "io/unpack.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/unpack_codec.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

static const struct unpack_codec *const codecs[] = {&unpack_gzip, &unpack_bzip2, &unpack_zstd};
#define HEAD_BYTES 16 /* enough to recognise any of them */

struct unpack {
    struct unpack_settings settings;
    struct unpack_input input;
    void *states[ARRAY_COUNT(codecs)]; /* owned; made when first needed */
    int codec;                         /* -1: none */
};

/* ---------------------------------------------------------------------------------------------
 * The compressed bytes
 * ------------------------------------------------------------------------------------------- */

/* Reads behind what is in the buffer. */
static int read_more(struct unpack_input *input, struct err *err)
{
    size_t room = UNPACK_INPUT_BYTES - input->end;
    ssize_t got;
    ASSERT(room > 0);
    do
        got = read(input->fd, input->buffer + input->end, room);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return err_set_errno(err, errno, "cannot read %s", input->name);
    input->end += (size_t)got;
    input->at_end = got == 0;
    return 0;
}

/* What is left moves to the beginning of the buffer, from there or from the caller's head. */
static void move_to_front(struct unpack_input *input)
{
    size_t left = input->end - input->start;
    memmove(input->buffer, input->data + input->start, left);
    input->offset += input->start;
    input->data = input->buffer;
    input->start = 0;
    input->end = left;
}

int unpack_input_fill(struct unpack_input *input, struct err *err)
{
    ASSERT(input->start == input->end);
    if (input->at_end)
        return 0;
    move_to_front(input);
    return read_more(input, err);
}

int unpack_input_need(struct unpack_input *input, size_t bytes, struct err *err)
{
    ASSERT(bytes <= UNPACK_INPUT_BYTES);
    while (input->end - input->start < bytes && !input->at_end) {
        move_to_front(input);
        int code = read_more(input, err);
        if (code != 0)
            return code;
    }
    return 0;
}

int unpack_damaged(const struct unpack_input *input, uint64_t position, const char *what,
                   struct err *err)
{
    return err_set(err, ERR_CORRUPT, "%s is damaged at byte %" PRIu64 ": %s", input->name, position,
                   what);
}

/* ---------------------------------------------------------------------------------------------
 * Files
 * ------------------------------------------------------------------------------------------- */

struct unpack *unpack_new(const struct unpack_settings *settings)
{
    struct unpack *unpack = mem_alloc(1, sizeof(*unpack));
    unpack->settings = *settings;
    unpack->input.fd = -1;
    unpack->input.at_end = true;
    unpack->input.buffer = mem_alloc(UNPACK_INPUT_BYTES, 1);
    unpack->codec = -1;
    return unpack;
}

void unpack_free(struct unpack *unpack)
{
    if (unpack == NULL)
        return;
    for (size_t i = 0; i < ARRAY_COUNT(codecs); i++)
        if (unpack->states[i] != NULL)
            codecs[i]->destroy(unpack->states[i]);
    mem_free(unpack->input.buffer);
    mem_free(unpack);
}

static int recognise(const struct unpack_input *input)
{
    for (size_t i = 0; i < ARRAY_COUNT(codecs); i++)
        if (codecs[i]->recognise(input->data + input->start, input->end - input->start))
            return (int)i;
    return -1;
}

int unpack_begin(struct unpack *unpack, const struct unpack_file *file, struct err *err)
{
    struct unpack_input *input = &unpack->input;
    input->name = file->name;
    input->fd = file->fd;
    input->data = file->head_bytes > 0 ? (const uint8_t *)file->head : input->buffer;
    input->start = 0;
    input->end = file->head_bytes;
    input->offset = 0;
    input->at_end = file->fd < 0;
    unpack->codec = -1;
    if (file->raw)
        return 0;
    int code = unpack_input_need(input, HEAD_BYTES, err);
    int found = code == 0 ? recognise(input) : -1;
    if (found < 0)
        return code;
    if (unpack->states[found] == NULL)
        unpack->states[found] = codecs[found]->create(&unpack->settings);
    codecs[found]->begin(unpack->states[found]);
    unpack->codec = found;
    return 0;
}

static ssize_t read_plain(struct unpack_input *input, uint8_t *buffer, size_t bytes,
                          struct err *err)
{
    int code = input->start == input->end ? unpack_input_fill(input, err) : 0;
    if (code != 0)
        return code;
    size_t taken = MIN(bytes, input->end - input->start);
    memcpy(buffer, input->data + input->start, taken);
    input->start += taken;
    return (ssize_t)taken;
}

ssize_t unpack_read(struct unpack *unpack, void *buffer, size_t bytes, struct err *err)
{
    ASSERT(bytes > 0);
    if (unpack->codec < 0)
        return read_plain(&unpack->input, buffer, bytes, err);
    return codecs[unpack->codec]->read(unpack->states[unpack->codec], &unpack->input, buffer, bytes,
                                       err);
}

uint64_t unpack_used_bytes(const struct unpack *unpack)
{
    return unpack_input_position(&unpack->input);
}

const char *unpack_kind(const struct unpack *unpack)
{
    return unpack->codec < 0 ? NULL : codecs[unpack->codec]->kind;
}
