#include "io/pretoken.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/pretoken_pattern.h"
#include "io/pretoken_scan.h"
#include "io/unicode.h"
#include <string.h>

const char *const pretoken_names[PRETOKEN_KINDS] = {
    [PRETOKEN_GPT2] = "gpt2",
    [PRETOKEN_CL100K] = "cl100k",
    [PRETOKEN_LLAMA3] = "llama3",
    [PRETOKEN_O200K] = "o200k",
};

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define WORDS        "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
#define LINES        "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define HEAD         "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define TAIL         "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"

const char *const pretoken_spellings[PRETOKEN_KINDS] = {
    [PRETOKEN_GPT2] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                      "\\s+(?!\\S)|\\s+",
    /* "Nothing follows" for $, which is the end of a line to some engines. */
    [PRETOKEN_CL100K] = CONTRACTIONS "|" WORDS "\\s+(?![\\s\\S])|" LINES,
    [PRETOKEN_LLAMA3] = CONTRACTIONS "|" WORDS LINES,
    [PRETOKEN_O200K] =
        "[^\\r\\n\\p{L}\\p{N}]?" HEAD "*" TAIL "+" CONTRACTIONS "?|[^\\r\\n\\p{L}\\p{N}]?" HEAD
        "+" TAIL "*" CONTRACTIONS "?|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" LINES,
};

/* Other spellings that are about. */
static const struct {
    const char *pattern;
    enum pretoken_kind kind;
} published[] = {
    {"'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
     PRETOKEN_GPT2},
    {"'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s",
     PRETOKEN_GPT2},
    {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++"
     "[\\r\\n]*+|\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s",
     PRETOKEN_CL100K},
    {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]++"
     "[\\r\\n]*|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
     PRETOKEN_LLAMA3},
};

struct pretoken {
    pretoken_scan_fn *scan;
    struct pretoken_pattern *pattern; /* owned; NULL unless it is to check */
    const char *text;
    size_t bytes;
    size_t position; /* where the next piece starts */
    /* [position, valid_end) is UTF-8, and a byte that is none, or the end, follows. */
    size_t valid_end;
};

enum pretoken_kind pretoken_by_name(const char *name)
{
    enum pretoken_kind kind = 0;
    while (kind < PRETOKEN_KINDS && strcmp(pretoken_names[kind], name) != 0)
        kind++;
    return kind;
}

enum pretoken_kind pretoken_by_spelling(const char *pattern)
{
    for (enum pretoken_kind kind = 0; kind < PRETOKEN_KINDS; kind++)
        if (strcmp(pretoken_spellings[kind], pattern) == 0)
            return kind;
    for (size_t i = 0; i < ARRAY_COUNT(published); i++)
        if (strcmp(published[i].pattern, pattern) == 0)
            return published[i].kind;
    return PRETOKEN_KINDS;
}

struct pretoken *pretoken_new(enum pretoken_kind kind, bool check)
{
    ASSERT(kind < PRETOKEN_KINDS);
    unicode_init();
    struct pretoken *pretoken = mem_alloc(1, sizeof(*pretoken));
    pretoken->scan = pretoken_scanners[kind];
    pretoken->pattern = check ? pretoken_pattern_new(kind) : NULL;
    return pretoken;
}

void pretoken_free(struct pretoken *pretoken)
{
    if (pretoken == NULL)
        return;
    pretoken_pattern_free(pretoken->pattern);
    mem_free(pretoken);
}

/* ---------------------------------------------------------------------------------------------
 * Runs of bytes that are UTF-8, and of those that are not
 * ------------------------------------------------------------------------------------------- */

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
        size_t step = unicode_character_bytes(text + done, bytes - done);
        if (step == 0)
            break;
        done += step;
    }
    return done;
}

static size_t invalid_run(const uint8_t *text, size_t bytes)
{
    size_t done = 0;
    while (done < bytes && unicode_character_bytes(text + done, bytes - done) == 0)
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

static size_t scan_end(const struct pretoken *pretoken)
{
    const uint8_t *text = (const uint8_t *)pretoken->text;
    return (size_t)(pretoken->scan(text + pretoken->position, text + pretoken->valid_end) - text);
}

bool pretoken_next(struct pretoken *pretoken, size_t *start, size_t *bytes)
{
    *start = pretoken->position;
    if (pretoken->position == pretoken->bytes)
        return false;
    if (pretoken->position == pretoken->valid_end)
        take_invalid(pretoken);
    else if (pretoken->pattern == NULL)
        pretoken->position = scan_end(pretoken);
    else
        pretoken->position = pretoken_pattern_end(pretoken->pattern, pretoken->text,
                                                  pretoken->valid_end, pretoken->position);
    ASSERT(pretoken->position > *start);
    *bytes = pretoken->position - *start;
    return true;
}

/* ---------------------------------------------------------------------------------------------
 * Safe cuts
 * ------------------------------------------------------------------------------------------- */

static bool ascii_space(uint8_t c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool letter_or_digit(uint8_t c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool in_range(uint8_t byte, uint8_t first, uint8_t last)
{
    return byte >= first && byte <= last;
}

/* U+1680, U+2000 to U+200A, U+2028, U+2029, U+202F, U+205F and U+3000. */
static bool is_wide_space(const uint8_t text[3])
{
    if (text[0] == 0xe2 && text[1] == 0x80)
        return in_range(text[2], 0x80, 0x8a) || text[2] == 0xa8 || text[2] == 0xa9 ||
               text[2] == 0xaf;
    return (text[0] == 0xe1 && text[1] == 0x9a && text[2] == 0x80) ||
           (text[0] == 0xe2 && text[1] == 0x81 && text[2] == 0x9f) ||
           (text[0] == 0xe3 && text[1] == 0x80 && text[2] == 0x80);
}

static bool ends_in_space(const uint8_t *text, size_t bytes)
{
    ASSERT(bytes > 0);
    const uint8_t *end = text + bytes;
    if (end[-1] < 0x80)
        return ascii_space(end[-1]);
    if (bytes >= 2 && end[-2] == 0xc2)
        return end[-1] == 0x85 || end[-1] == 0xa0;
    return bytes >= 3 && is_wide_space(end - 3);
}

/* What stands there is a white space or a slash, or is cut off and might be. */
static bool may_begin_space_or_slash(const uint8_t *text, size_t bytes)
{
    if (text[0] < 0x80)
        return ascii_space(text[0]) || text[0] == '/';
    if (text[0] == 0xc2)
        return bytes < 2 || text[1] == 0x85 || text[1] == 0xa0;
    if (in_range(text[0], 0xe1, 0xe3))
        return bytes < 3 || is_wide_space(text);
    return false;
}

static bool may_cut(const uint8_t *text, size_t bytes, size_t cut)
{
    uint8_t before = text[cut - 1], behind = text[cut];
    if (behind == '\r' || behind == '\n')
        return letter_or_digit(before);
    if (ascii_space(behind))
        return !ends_in_space(text, cut);
    return before == '\n' && cut >= 2 && !ends_in_space(text, cut - 1) &&
           !may_begin_space_or_slash(text + cut, bytes - cut);
}

size_t pretoken_cut(const char *text, size_t bytes)
{
    for (size_t cut = bytes; cut > 1;)
        if (may_cut((const uint8_t *)text, bytes, --cut))
            return cut;
    return 0;
}
