/* The scanners and PCRE2 cut any bytes into the same pieces, by each pattern, also where text is
 * torn. */
#include "core/base.h"
#include "io/pretoken.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

static void compare(enum pretoken_kind kind, const char *text, size_t bytes)
{
    static struct pretoken *scanners[PRETOKEN_KINDS], *patterns[PRETOKEN_KINDS];
    size_t start[2], piece[2], end = 0;
    if (scanners[kind] == NULL) {
        scanners[kind] = pretoken_new(kind, false);
        patterns[kind] = pretoken_new(kind, true);
    }
    pretoken_begin(scanners[kind], text, bytes);
    pretoken_begin(patterns[kind], text, bytes);
    while (pretoken_next(scanners[kind], &start[0], &piece[0])) {
        ASSERT(pretoken_next(patterns[kind], &start[1], &piece[1]));
        ASSERT(start[0] == start[1] && piece[0] == piece[1]);
        ASSERT(start[0] == end && piece[0] > 0);
        end += piece[0];
    }
    ASSERT(!pretoken_next(patterns[kind], &start[1], &piece[1]));
    ASSERT(end == bytes);
}

/* A cut is where a piece begins, whatever follows it. */
static void compare_cut(enum pretoken_kind kind, const char *text, size_t bytes)
{
    size_t start, piece, cut = bytes > 0 ? pretoken_cut(text, bytes) : 0;
    ASSERT(cut < bytes || cut == 0);
    if (cut == 0)
        return;
    struct pretoken *whole = pretoken_new(kind, false);
    bool found = false;
    pretoken_begin(whole, text, bytes);
    while (pretoken_next(whole, &start, &piece))
        found |= start == cut;
    ASSERT(found);
    pretoken_free(whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text = (const char *)data;
    bytes = MIN(bytes, (size_t)2000); /* PCRE2 is slow on long runs */
    for (enum pretoken_kind kind = 0; kind < PRETOKEN_KINDS; kind++) {
        compare(kind, text, bytes);
        compare_cut(kind, text, bytes);
    }
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *to)
{
    static const char *const seeds[] = {
        "It's 1234 o'clock, isn't it?\n\n  Yes! \t(\xc5\x99\xc3\xad\x6b\xc3\xa1)\r\n",
        "HTMLParser don'T WE'LL \xe2\x80\x99s \xe6\xbc\xa2\xe5\xad\x97\xe4\xbb\xae\xe5\x90\x8d "
        "3.14",
        "\xc2\xa0\xe3\x80\x80  x\xcc\x81\xe0\xa4\xa8\xe0\xa5\x87 "
        "\xf0\x9f\x98\x80\xf0\x9f\x91\x8d/\n//\n",
        "\xff\xfe\xc0\x80 a\xed\xa0\x80 \xf4\x90\x80\x80 'S'D'M'T'll've're \xc5\xbf'\xc5\xbf",
        "\xc7\x85\xca\xb0\xe2\x85\xa7\xc2\xb2 \xe2\x80\xa8\xe2\x80\xa9\xc2\x85\x0b\x0c\x1c   \n  a",
    };
    if (index >= ARRAY_COUNT(seeds))
        return SIZE_MAX;
    memcpy(to, seeds[index], strlen(seeds[index]));
    return strlen(seeds[index]);
}
