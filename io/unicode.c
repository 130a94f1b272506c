#include "io/unicode.h"
#include "core/base.h"
#include <stdbool.h>
#include <threads.h>

/* A range of characters; first, first + 2, ... are of one class and those between of another, as
 * capitals and small letters are in much of Latin and Cyrillic. */
struct range {
    uint32_t first, last;
    uint8_t even, odd;
};

#define S UNICODE_SPACE
#define N UNICODE_NUMBER
#define M UNICODE_MARK
#define U UNICODE_UPPER
#define L UNICODE_LOWER
#define B UNICODE_UNCASED
static const struct range ranges[] = {
#include "io/unicode_ranges.h"
};
#undef S
#undef N
#undef M
#undef U
#undef L
#undef B

static uint8_t table[UNICODE_MAX + 1];
const uint8_t *const unicode_classes = table;

static void fill_table(void)
{
    for (size_t i = 0; i < ARRAY_COUNT(ranges); i++) {
        const struct range *range = &ranges[i];
        ASSERT(range->first <= range->last && range->last <= UNICODE_MAX);
        for (uint32_t c = range->first; c <= range->last; c++)
            table[c] = (c - range->first) % 2 == 0 ? range->even : range->odd;
    }
    table['\r'] |= UNICODE_LINE;
    table['\n'] |= UNICODE_LINE;
}

void unicode_init(void)
{
    static once_flag once = ONCE_FLAG_INIT;
    call_once(&once, fill_table);
}

static bool in_range(uint8_t byte, uint8_t first, uint8_t last)
{
    return byte >= first && byte <= last;
}

/* Unicode's table 3-7. */
size_t unicode_character_bytes(const uint8_t *text, size_t bytes)
{
    if (bytes == 0)
        return 0;
    uint8_t lead = text[0];
    if (lead < 0x80)
        return 1;
    if (in_range(lead, 0xc2, 0xdf))
        return bytes >= 2 && in_range(text[1], 0x80, 0xbf) ? 2 : 0;
    if (in_range(lead, 0xe0, 0xef)) {
        uint8_t least = lead == 0xe0 ? 0xa0 : 0x80, most = lead == 0xed ? 0x9f : 0xbf;
        return bytes >= 3 && in_range(text[1], least, most) && in_range(text[2], 0x80, 0xbf) ? 3
                                                                                             : 0;
    }
    if (in_range(lead, 0xf0, 0xf4)) {
        uint8_t least = lead == 0xf0 ? 0x90 : 0x80, most = lead == 0xf4 ? 0x8f : 0xbf;
        return bytes >= 4 && in_range(text[1], least, most) && in_range(text[2], 0x80, 0xbf) &&
                       in_range(text[3], 0x80, 0xbf)
                   ? 4
                   : 0;
    }
    return 0;
}
