#include "tests/shared/pack.h"
#include "core/base.h"
#include "core/mem.h"
#include <bzlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

static size_t pack_gzip(char *to, size_t room, const char *data, size_t bytes)
{
    z_stream stream = {0};
    ASSERT(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) == Z_OK);
    stream.next_in = (unsigned char *)data;
    stream.avail_in = (unsigned)bytes;
    stream.next_out = (unsigned char *)to;
    stream.avail_out = (unsigned)room;
    ASSERT(deflate(&stream, Z_FINISH) == Z_STREAM_END);
    deflateEnd(&stream);
    return room - stream.avail_out;
}

static size_t pack_bzip2(char *to, size_t room, const char *data, size_t bytes, int level)
{
    unsigned used = (unsigned)room;
    ASSERT(BZ2_bzBuffToBuffCompress(to, &used, (char *)data, (unsigned)bytes, level, 0, 0) ==
           BZ_OK);
    return used;
}

static size_t pack_zstd(char *to, size_t room, const char *data, size_t bytes)
{
    ZSTD_CCtx *context = ZSTD_createCCtx();
    ASSERT(!ZSTD_isError(ZSTD_CCtx_setParameter(context, ZSTD_c_checksumFlag, 1)));
    size_t used = ZSTD_compress2(context, to, room, data, bytes);
    ASSERT(!ZSTD_isError(used));
    ZSTD_freeCCtx(context);
    return used;
}

char *pack(enum pack_kind kind, const char *data, size_t bytes, size_t *packed_bytes)
{
    size_t room = bytes + bytes / 50 + 1000;
    char *to = mem_alloc(room, 1);
    if (kind == PACK_GZIP)
        *packed_bytes = pack_gzip(to, room, data, bytes);
    else if (kind == PACK_BZIP2)
        *packed_bytes = pack_bzip2(to, room, data, bytes, 1);
    else if (kind == PACK_BZIP2_LARGE)
        *packed_bytes = pack_bzip2(to, room, data, bytes, 9);
    else if (kind == PACK_ZSTD)
        *packed_bytes = pack_zstd(to, room, data, bytes);
    else
        memcpy(to, data, *packed_bytes = bytes);
    return to;
}

size_t pack_unbzip2(const char *packed, size_t bytes)
{
    static char thrown_away[1 << 16];
    bz_stream stream = {.next_in = (char *)packed, .avail_in = (unsigned)bytes};
    size_t total = 0;
    int result = BZ2_bzDecompressInit(&stream, 0, 0);
    while (result == BZ_OK) {
        stream.next_out = thrown_away;
        stream.avail_out = sizeof(thrown_away);
        result = BZ2_bzDecompress(&stream);
        total += sizeof(thrown_away) - stream.avail_out;
    }
    ASSERT(result == BZ_STREAM_END);
    BZ2_bzDecompressEnd(&stream);
    return total;
}
