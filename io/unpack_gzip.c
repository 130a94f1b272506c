/* gzip by zlib: members one after the other, each with its checksum. */
#include "core/base.h"
#include "core/mem.h"
#include "io/unpack_codec.h"
#include <string.h>
#include <zlib.h>

#define HEADER_BYTES 10
#define WINDOW_BITS  (15 + 16) /* the largest window, in gzip's wrapper */

struct gzip {
    z_stream stream;
    bool in_member, done;
};

static void *allocate(void *opaque, unsigned count, unsigned size)
{
    (void)opaque;
    return mem_alloc(count, size);
}

static void release(void *opaque, void *pointer)
{
    (void)opaque;
    mem_free(pointer);
}

/* Method 8 is the only one there is, and the upper three flags are always 0. */
static bool recognise(const uint8_t *head, size_t bytes)
{
    return bytes >= 4 && head[0] == 0x1f && head[1] == 0x8b && head[2] == 8 && head[3] < 0x20;
}

static void *create(const struct unpack_settings *settings)
{
    (void)settings;
    struct gzip *gzip = mem_alloc(1, sizeof(*gzip));
    gzip->stream.zalloc = allocate;
    gzip->stream.zfree = release;
    int result = inflateInit2(&gzip->stream, WINDOW_BITS);
    ASSERT(result == Z_OK);
    return gzip;
}

static void destroy(void *state)
{
    struct gzip *gzip = state;
    inflateEnd(&gzip->stream);
    mem_free(gzip);
}

static void begin(void *state)
{
    struct gzip *gzip = state;
    gzip->in_member = gzip->done = false;
}

/* Another member, or the end of what is to be read. */
static int next_member(struct gzip *gzip, struct unpack_input *input, struct err *err)
{
    int code = unpack_input_need(input, HEADER_BYTES, err);
    if (code != 0)
        return code;
    gzip->in_member = recognise(input->data + input->start, input->end - input->start);
    gzip->done = !gzip->in_member;
    inflateReset(&gzip->stream);
    return 0;
}

/* One call of inflate; a negative code, or the bytes that it gave. */
static ssize_t step(struct gzip *gzip, struct unpack_input *input, uint8_t *out, size_t bytes,
                    struct err *err)
{
    z_stream *stream = &gzip->stream;
    stream->next_in = (uint8_t *)input->data + input->start;
    stream->avail_in = (unsigned)(input->end - input->start);
    stream->next_out = out;
    stream->avail_out = (unsigned)MIN(bytes, (size_t)1 << 30);
    size_t room = stream->avail_out;
    int result = inflate(stream, Z_NO_FLUSH);
    input->start = input->end - stream->avail_in;
    if (result == Z_STREAM_END)
        gzip->in_member = false;
    else if (result != Z_OK && result != Z_BUF_ERROR)
        return unpack_damaged(input, unpack_input_position(input),
                              stream->msg != NULL ? stream->msg : "this is no gzip data", err);
    return (ssize_t)(room - stream->avail_out);
}

static ssize_t read_gzip(void *state, struct unpack_input *input, uint8_t *out, size_t bytes,
                         struct err *err)
{
    struct gzip *gzip = state;
    for (;;) {
        int code = 0;
        if (!gzip->in_member && !gzip->done)
            code = next_member(gzip, input, err);
        if (code == 0 && !gzip->done && input->start == input->end)
            code = unpack_input_fill(input, err);
        if (code != 0 || gzip->done)
            return code;
        bool starved = input->start == input->end;
        ssize_t got = step(gzip, input, out, bytes, err);
        if (got != 0)
            return got;
        if (starved && gzip->in_member)
            return unpack_damaged(input, unpack_input_position(input), UNPACK_TOO_SHORT, err);
    }
}

const struct unpack_codec unpack_gzip = {"gzip", recognise, create, destroy, begin, read_gzip};
