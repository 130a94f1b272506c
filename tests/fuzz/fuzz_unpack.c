/* io/unpack on any bytes: gzip, bzip2 and zstd files that are damaged in any way. */
#include "core/mem.h"
#include "io/unpack.h"
#include "tests/fuzz/fuzz.h"
#include "tests/shared/pack.h"
#include <string.h>

#define OUT_BYTES_MAX                                                                              \
    (16u << 20) /* a bomb is no crash, but takes the time of a thousand inputs                     \
                 */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static struct unpack *unpack;
    static char buffer[1 << 16];
    struct err err;
    size_t total = 0;
    if (unpack == NULL)
        unpack = unpack_new(&(struct unpack_settings){.window_bytes_max = 8u << 20});
    const struct unpack_file file = {"fuzz", -1, (const char *)data, bytes, false};
    ssize_t got = unpack_begin(unpack, &file, &err) == 0;
    while (got > 0 && total < OUT_BYTES_MAX) {
        got = unpack_read(unpack, buffer, sizeof(buffer), &err);
        total += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *to)
{
    char text[8192];
    size_t packed_bytes, used = 0;
    if (index >= 2 * PACK_KIND_COUNT)
        return SIZE_MAX;
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)("etaoin shrdlu"[i * i % 13] + (i > 5000 ? (int)(i * 7919 % 100) : 0));
    /* One stream, and three of them. */
    for (size_t stream = 0; stream < (index < PACK_KIND_COUNT ? 1 : 3); stream++) {
        char *packed = pack((enum pack_kind)(index % PACK_KIND_COUNT), text, 600 + 3000 * stream,
                            &packed_bytes);
        memcpy(to + used, packed, packed_bytes);
        used += packed_bytes;
        mem_free(packed);
    }
    return used;
}
