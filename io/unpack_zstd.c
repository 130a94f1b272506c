/* zstd by libzstd: frames one after the other, skippable ones among them. */
#include "core/base.h"
#include "core/log.h"
#include "core/mem.h"
#include "io/unpack_codec.h"
#include <stdio.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

#define WINDOW_LOG_MIN     10
#define WINDOW_LOG_DEFAULT 27 /* the most that the zstd program takes without being told */

struct zstd {
    ZSTD_DCtx *context;
    int window_log;
    bool in_frame, done;
};

static uint32_t little_endian(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static bool recognise(const uint8_t *head, size_t bytes)
{
    return bytes >= 4 &&
           (little_endian(head) == ZSTD_MAGICNUMBER ||
            (little_endian(head) & ZSTD_MAGIC_SKIPPABLE_MASK) == ZSTD_MAGIC_SKIPPABLE_START);
}

static void *create(const struct unpack_settings *settings)
{
    struct zstd *zstd = mem_alloc(1, sizeof(*zstd));
    zstd->context = ZSTD_createDCtx();
    ASSERT(zstd->context != NULL);
    zstd->window_log = WINDOW_LOG_DEFAULT;
    while (settings->window_bytes_max > 0 && zstd->window_log > WINDOW_LOG_MIN &&
           (uint64_t)1 << zstd->window_log > settings->window_bytes_max)
        zstd->window_log--;
    size_t result = ZSTD_DCtx_setParameter(zstd->context, ZSTD_d_windowLogMax, zstd->window_log);
    ASSERT(!ZSTD_isError(result));
    return zstd;
}

static void destroy(void *state)
{
    struct zstd *zstd = state;
    ZSTD_freeDCtx(zstd->context);
    mem_free(zstd);
}

static void begin(void *state)
{
    struct zstd *zstd = state;
    ZSTD_DCtx_reset(zstd->context, ZSTD_reset_session_only);
    zstd->in_frame = zstd->done = false;
}

static int explain(const struct zstd *zstd, const struct unpack_input *input, size_t result,
                   struct err *err)
{
    char most[LOG_BYTES_MAX];
    if (ZSTD_getErrorCode(result) == ZSTD_error_frameParameter_windowTooLarge)
        return err_set(err, ERR_INPUT,
                       "%s was compressed with a window of more than %s, the most that fits here: "
                       "raise --ram-budget, or compress it anew without --long",
                       input->name, log_bytes(most, (uint64_t)1 << zstd->window_log));
    return unpack_damaged(input, unpack_input_position(input), ZSTD_getErrorName(result), err);
}

/* Whether another frame begins. */
static int next_frame(struct zstd *zstd, struct unpack_input *input, struct err *err)
{
    int code = unpack_input_need(input, 4, err);
    if (code != 0)
        return code;
    zstd->in_frame = recognise(input->data + input->start, input->end - input->start);
    zstd->done = !zstd->in_frame;
    return 0;
}

static ssize_t step(struct zstd *zstd, struct unpack_input *input, uint8_t *out, size_t bytes,
                    struct err *err)
{
    ZSTD_inBuffer in = {input->data + input->start, input->end - input->start, 0};
    ZSTD_outBuffer to = {out, bytes, 0};
    size_t result = ZSTD_decompressStream(zstd->context, &to, &in);
    if (ZSTD_isError(result))
        return explain(zstd, input, result, err);
    input->start += in.pos;
    zstd->in_frame = result != 0;
    return (ssize_t)to.pos;
}

static ssize_t read_zstd(void *state, struct unpack_input *input, uint8_t *out, size_t bytes,
                         struct err *err)
{
    struct zstd *zstd = state;
    for (;;) {
        int code = 0;
        if (!zstd->in_frame && !zstd->done)
            code = next_frame(zstd, input, err);
        if (code == 0 && !zstd->done && input->start == input->end)
            code = unpack_input_fill(input, err);
        if (code != 0 || zstd->done)
            return code;
        bool starved = input->start == input->end;
        ssize_t got = step(zstd, input, out, bytes, err);
        if (got != 0)
            return got;
        if (starved && zstd->in_frame)
            return unpack_damaged(input, unpack_input_position(input), UNPACK_TOO_SHORT, err);
    }
}

const struct unpack_codec unpack_zstd = {"zstd", recognise, create, destroy, begin, read_zstd};
