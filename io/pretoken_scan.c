#include "io/pretoken_scan.h"
#include "core/base.h"
#include "io/unicode.h"
#include <stdbool.h>

/* What [^\s\p{L}\p{N}] leaves out, and what [^\r\n\p{L}\p{N}] leaves out. */
#define NOT_OTHER  (UNICODE_SPACE | UNICODE_LETTER | UNICODE_NUMBER)
#define NOT_PREFIX (UNICODE_LINE | UNICODE_LETTER | UNICODE_NUMBER)
/* o200k's two halves of a word. */
#define HEAD (UNICODE_UPPER | UNICODE_UNCASED | UNICODE_MARK)
#define TAIL (UNICODE_LOWER | UNICODE_UNCASED | UNICODE_MARK)

/* The class of the character at text, whose end goes to *after. */
static inline uint32_t class_at(const uint8_t *text, const uint8_t **after)
{
    if (text[0] < 0x80) {
        *after = text + 1;
        return unicode_classes[text[0]];
    }
    size_t bytes;
    uint32_t character = unicode_decode(text, &bytes);
    *after = text + bytes;
    return unicode_classes[character];
}

/* The end of the run of characters that have one of these classes. */
static inline const uint8_t *run_of(const uint8_t *text, const uint8_t *end, uint32_t classes)
{
    const uint8_t *after;
    while (text < end && (class_at(text, &after) & classes) != 0)
        text = after;
    return text;
}

static inline const uint8_t *run_of_other(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *after;
    while (text < end && (class_at(text, &after) & NOT_OTHER) == 0)
        text = after;
    return text;
}

static inline const uint8_t *run_of_lines(const uint8_t *text, const uint8_t *end, bool slashes)
{
    while (text < end && (*text == '\r' || *text == '\n' || (slashes && *text == '/')))
        text++;
    return text;
}

static const uint8_t *up_to_three_numbers(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *after;
    for (int i = 0; i < 3 && text < end && (class_at(text, &after) & UNICODE_NUMBER) != 0; i++)
        text = after;
    return text;
}

/* White space as every pattern takes it when nothing else did: all of it at the end of the text,
 * else all but its last character, else that one. text is at a white space. */
static const uint8_t *spaces_before_text(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *last = text, *at = text, *after;
    while (at < end && (class_at(at, &after) & UNICODE_SPACE) != 0) {
        last = at;
        at = after;
    }
    return at == end || last == text ? at : last;
}

/* White space of the newer patterns: up to its last line end, if it has one. */
static const uint8_t *spaces_with_lines(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *line_end = NULL, *at = text, *after;
    for (uint32_t class; at < end && ((class = class_at(at, &after)) & UNICODE_SPACE) != 0;) {
        at = after;
        if ((class & UNICODE_LINE) != 0)
            line_end = at;
    }
    return line_end != NULL ? line_end : spaces_before_text(text, end);
}

/* The letters of a contraction, small as they come: 1 or 2 after the apostrophe, or 0. */
static size_t contraction_letters(uint32_t first, uint32_t second)
{
    if (first == 's' || first == 't' || first == 'm' || first == 'd')
        return 1;
    if ((first == 'l' && second == 'l') || (first == 'v' && second == 'e') ||
        (first == 'r' && second == 'e'))
        return 2;
    return 0;
}

static uint32_t small(uint8_t letter)
{
    return letter >= 'A' && letter <= 'Z' ? letter | 0x20u : letter;
}

/* The end of (?i:'s|'t|'re|'ve|'m|'ll|'d) at text, or text. Without regard to case the long s
 * (U+017F, bytes C5 BF) is an s. */
static const uint8_t *contraction(const uint8_t *text, const uint8_t *end)
{
    if (end - text < 2 || text[0] != '\'')
        return text;
    if (end - text >= 3 && text[1] == 0xc5 && text[2] == 0xbf)
        return text + 3;
    size_t letters = contraction_letters(small(text[1]), end - text > 2 ? small(text[2]) : 0);
    return letters == 0 ? text : text + 1 + letters;
}

/* ---------------------------------------------------------------------------------------------
 * GPT-2
 * ------------------------------------------------------------------------------------------- */

static const uint8_t *scan_gpt2(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *at = text, *after;
    if (*text == '\'' && end - text >= 2) {
        size_t letters = contraction_letters(text[1], end - text > 2 ? text[2] : 0);
        if (letters > 0)
            return text + 1 + letters;
    }
    if (*text == ' ' && end - text >= 2)
        at++;
    uint32_t class = class_at(at, &after);
    if ((class & UNICODE_LETTER) != 0)
        return run_of(after, end, UNICODE_LETTER);
    if ((class & UNICODE_NUMBER) != 0)
        return run_of(after, end, UNICODE_NUMBER);
    if ((class & UNICODE_SPACE) == 0)
        return run_of_other(after, end);
    return spaces_before_text(text, end);
}

/* ---------------------------------------------------------------------------------------------
 * cl100k and Llama 3, which differ in white space alone
 * ------------------------------------------------------------------------------------------- */

/* The end of what is no white space, or text where that stands. */
static inline const uint8_t *scan_word(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *after, *prefixed;
    uint32_t class = class_at(text, &after);
    if ((class & UNICODE_LETTER) != 0)
        return run_of(after, end, UNICODE_LETTER);
    if ((class & UNICODE_NUMBER) != 0)
        return up_to_three_numbers(text, end);
    if (*text == '\'') {
        const uint8_t *contracted = contraction(text, end);
        if (contracted != text)
            return contracted;
    }
    if ((class & UNICODE_LINE) == 0 && after < end &&
        (class_at(after, &prefixed) & UNICODE_LETTER) != 0)
        return run_of(prefixed, end, UNICODE_LETTER);
    const uint8_t *others = *text == ' ' ? after : text;
    const uint8_t *stop = run_of_other(others, end);
    return stop > others ? run_of_lines(stop, end, false) : text;
}

static const uint8_t *scan_llama3(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *stop = scan_word(text, end);
    return stop > text ? stop : spaces_with_lines(text, end);
}

static const uint8_t *scan_cl100k(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *stop = scan_word(text, end);
    if (stop > text)
        return stop;
    /* \s++$ comes first: white space at the end is one piece, whatever lines are in it. */
    return run_of(text, end, UNICODE_SPACE) == end ? end : spaces_with_lines(text, end);
}

/* ---------------------------------------------------------------------------------------------
 * o200k
 * ------------------------------------------------------------------------------------------- */

/* HEAD* TAIL+ from text, or NULL. Where no small letter follows the run of HEAD, the run gives back
 * characters until one of them can be the TAIL: its last that is no capital. */
static inline const uint8_t *head_and_tail(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *tail_end = NULL, *at = text, *after;
    uint32_t class = 0;
    while (at < end && ((class = class_at(at, &after)) & HEAD) != 0) {
        at = after;
        if ((class & TAIL) != 0)
            tail_end = at;
    }
    if (at < end && (class & TAIL) != 0)
        return run_of(after, end, TAIL);
    return tail_end;
}

/* The end of the word at text, with the one character before its letters that it may have, or NULL.
 * A mark may be either, and is that character where it can. */
static const uint8_t *cased_word(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *after;
    uint32_t class = class_at(text, &after);
    bool prefixed = (class & NOT_PREFIX) == 0;
    if (!prefixed && (class & UNICODE_LETTER) == 0)
        return NULL;
    const uint8_t *letters = prefixed ? after : text;
    const uint8_t *stop = head_and_tail(letters, end);
    if (stop == NULL && prefixed && (class & UNICODE_MARK) != 0)
        stop = head_and_tail(text, end);
    if (stop != NULL)
        return stop;
    stop = run_of(letters, end, HEAD);
    return stop > letters ? stop : NULL;
}

static const uint8_t *scan_o200k(const uint8_t *text, const uint8_t *end)
{
    const uint8_t *stop = cased_word(text, end);
    if (stop != NULL)
        return contraction(stop, end);
    stop = up_to_three_numbers(text, end);
    if (stop > text)
        return stop;
    const uint8_t *others = *text == ' ' ? text + 1 : text;
    stop = run_of_other(others, end);
    return stop > others ? run_of_lines(stop, end, true) : spaces_with_lines(text, end);
}

pretoken_scan_fn *const pretoken_scanners[PRETOKEN_KINDS] = {
    [PRETOKEN_GPT2] = scan_gpt2,
    [PRETOKEN_CL100K] = scan_cl100k,
    [PRETOKEN_LLAMA3] = scan_llama3,
    [PRETOKEN_O200K] = scan_o200k,
};
