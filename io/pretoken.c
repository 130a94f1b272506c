#include "io/pretoken.h"
#include "core/base.h"
#include "core/err.h"
#include "core/mem.h"
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Unicode's White_Space as the inside of a class. */
#define SPACE                                                                                      \
    "\\t\\n\\x0b\\f\\r \\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}" \
    "\\x{3000}"

static const char pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE
                              "\\p{L}\\p{N}]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+";

struct pretoken {
    pcre2_code *code;
    pcre2_match_data *match;
    const char *text;
    size_t bytes;
    size_t position; /* where the next piece starts */
    size_t
        valid_end; /* [position, valid_end) is UTF-8 and a byte that is none, or the end, follows */
};

struct pretoken *pretoken_new(void)
{
    struct pretoken *pretoken = mem_alloc(1, sizeof(*pretoken));
    int error;
    PCRE2_SIZE offset;
    /* Anchored: one of the alternatives matches any character, so a search never has to skip. */
    pretoken->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_ANCHORED, &error, &offset, NULL);
    if (pretoken->code == NULL)
        fatal("PCRE2 refuses the pre-tokenisation pattern (error %d at %zu): is it built without "
              "Unicode?",
              error, offset);
    /* Without the JIT (some hardened systems forbid it) pcre2_match interprets: slower, the same.
     */
    (void)pcre2_jit_compile(pretoken->code, PCRE2_JIT_COMPLETE);
    pretoken->match = pcre2_match_data_create(1, NULL);
    if (pretoken->match == NULL)
        fatal("out of memory for pre-tokenisation");
    return pretoken;
}

void pretoken_free(struct pretoken *pretoken)
{
    if (pretoken == NULL)
        return;
    pcre2_match_data_free(pretoken->match);
    pcre2_code_free(pretoken->code);
    mem_free(pretoken);
}

/* ---------------------------------------------------------------------------------------------
 * UTF-8 (RFC 3629, Unicode's table 3-7)
 * ------------------------------------------------------------------------------------------- */

static bool in_range(uint8_t byte, uint8_t first, uint8_t last)
{
    return byte >= first && byte <= last;
}

/* Bytes of the valid character at text, 1..4, or 0 where none stands. */
static size_t character_bytes(const uint8_t *text, size_t bytes)
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

static size_t valid_run(const uint8_t *text, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        uint64_t eight;
        while (bytes - done >= sizeof(eight)) {
            memcpy(&eight, text + done, sizeof(eight));
            if ((eight & 0x8080808080808080u) != 0)
                break;
            done += sizeof(eight);
        }
        size_t step = character_bytes(text + done, bytes - done);
        if (step == 0)
            break;
        done += step;
    }
    return done;
}

static size_t invalid_run(const uint8_t *text, size_t bytes)
{
    size_t done = 0;
    while (done < bytes && character_bytes(text + done, bytes - done) == 0)
        done++;
    return done;
}

/* ---------------------------------------------------------------------------------------------
 * Pieces
 * ------------------------------------------------------------------------------------------- */

void pretoken_begin(struct pretoken *pretoken, const char *text, size_t bytes)
{
    pretoken->text = text;
    pretoken->bytes = bytes;
    pretoken->position = 0;
    pretoken->valid_end = bytes == 0 ? 0 : valid_run((const uint8_t *)text, bytes);
}

static void take_invalid(struct pretoken *pretoken)
{
    const uint8_t *text = (const uint8_t *)pretoken->text;
    pretoken->position +=
        invalid_run(text + pretoken->position, pretoken->bytes - pretoken->position);
    pretoken->valid_end = pretoken->position + valid_run(text + pretoken->position,
                                                         pretoken->bytes - pretoken->position);
}

bool pretoken_next(struct pretoken *pretoken, size_t *start, size_t *bytes)
{
    *start = pretoken->position;
    if (pretoken->position == pretoken->bytes)
        return false;
    if (pretoken->position == pretoken->valid_end) {
        take_invalid(pretoken);
        ASSERT(pretoken->position > *start);
    } else {
        int count = pcre2_match(pretoken->code, (PCRE2_SPTR)pretoken->text, pretoken->valid_end,
                                pretoken->position, PCRE2_NO_UTF_CHECK, pretoken->match, NULL);
        size_t end = count > 0 ? pcre2_get_ovector_pointer(pretoken->match)[1] : 0;
        ASSERT(end > pretoken->position && end <= pretoken->valid_end);
        pretoken->position = end;
    }
    *bytes = pretoken->position - *start;
    return true;
}

/* ---------------------------------------------------------------------------------------------
 * Safe cuts
 * ------------------------------------------------------------------------------------------- */

static bool ascii_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Any byte >= 0x80 may end a white space of more than one byte. U+0085 and U+00A0 end in 85 and
 * A0, U+1680 in 9A 80, the U+20xx in 80 8x and 80 A8/A9/AF or 81 9F, U+3000 in 80 80. */
static bool may_end_space(const uint8_t *end, size_t bytes)
{
    ASSERT(bytes > 0);
    if (end[-1] < 0x80)
        return ascii_space((char)end[-1]);
    if (bytes >= 2 && end[-2] == 0xc2)
        return end[-1] == 0x85 || end[-1] == 0xa0;
    if (bytes >= 3 && in_range(end[-3], 0xe1, 0xe3))
        return end[-2] == 0x80 || end[-2] == 0x81 || end[-2] == 0x9a;
    return false;
}

size_t pretoken_cut(const char *text, size_t bytes)
{
    for (size_t cut = bytes; cut > 1;) {
        cut--;
        if (ascii_space(text[cut]) && !may_end_space((const uint8_t *)text + cut, cut))
            return cut;
    }
    return 0;
}
