#include "io/pretoken_pattern.h"
#include "core/base.h"
#include "core/err.h"
#include "core/mem.h"
#include "io/unicode.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

struct pretoken_pattern {
    pcre2_code *code;
    pcre2_match_data *match;
};

/* Between brackets %L letters, %H and %T those of o200k's heads and tails of words (with the
 * marks), %N numbers, %s white space. */
static const char *const patterns[PRETOKEN_KINDS] = {
    [PRETOKEN_GPT2] = "'(?:[sdmt]|ll|ve|re)| ?[%L]+| ?[%N]+| ?[^%s%L%N]+|[%s]+(?![^%s])|[%s]+",
    [PRETOKEN_CL100K] = "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n%L%N]?+[%L]++|[%N]{1,3}+| "
                        "?[^%s%L%N]++[\\r\\n]*+|[%s]++\\z|[%s]*[\\r\\n]|[%s]+(?![^%s])|[%s]",
    [PRETOKEN_LLAMA3] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n%L%N]?[%L]+|[%N]{1,3}| "
                        "?[^%s%L%N]+[\\r\\n]*|[%s]*[\\r\\n]+|[%s]+(?![^%s])|[%s]+",
    [PRETOKEN_O200K] =
        "[^\\r\\n%L%N]?[%H]*[%T]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\\r\\n%L%N]?[%H]+[%T]*"
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[%N]{1,3}| ?[^%s%L%N]+[\\r\\n/]*|[%s]*[\\r\\n]+|"
        "[%s]+(?![^%s])|[%s]+",
};

/* ---------------------------------------------------------------------------------------------
 * Spelling out
 * ------------------------------------------------------------------------------------------- */

static uint32_t classes_of(char letter)
{
    switch (letter) {
    case 'L':
        return UNICODE_LETTER;
    case 'H':
        return UNICODE_UPPER | UNICODE_UNCASED | UNICODE_MARK;
    case 'T':
        return UNICODE_LOWER | UNICODE_UNCASED | UNICODE_MARK;
    case 'N':
        return UNICODE_NUMBER;
    default:
        ASSERT(letter == 's');
        return UNICODE_SPACE;
    }
}

/* The classes as the inside of a bracket: "\x{61}-\x{7a}..." */
static void print_ranges(FILE *to, uint32_t classes)
{
    for (uint32_t first = 0; first <= UNICODE_MAX; first++) {
        if ((unicode_classes[first] & classes) == 0)
            continue;
        uint32_t last = first;
        while (last < UNICODE_MAX && (unicode_classes[last + 1] & classes) != 0)
            last++;
        fprintf(to, last > first ? "\\x{%x}-\\x{%x}" : "\\x{%x}", first, last);
        first = last;
    }
}

static char *spell_out(const char *pattern)
{
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    if (to == NULL)
        fatal("out of memory for pre-tokenisation");
    for (const char *at = pattern; *at != '\0'; at++) {
        if (*at == '%')
            print_ranges(to, classes_of(*++at));
        else
            fputc(*at, to);
    }
    if (fclose(to) != 0)
        fatal("out of memory for pre-tokenisation");
    return text;
}

/* ---------------------------------------------------------------------------------------------
 * Matching
 * ------------------------------------------------------------------------------------------- */

struct pretoken_pattern *pretoken_pattern_new(enum pretoken_kind kind)
{
    ASSERT(kind < PRETOKEN_KINDS);
    unicode_init();
    struct pretoken_pattern *pattern = mem_alloc(1, sizeof(*pattern));
    char *text = spell_out(patterns[kind]);
    int error;
    PCRE2_SIZE offset;
    /* Anchored: one of the alternatives matches any character, so a search never has to skip. */
    pattern->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
                                  PCRE2_UTF | PCRE2_ANCHORED, &error, &offset, NULL);
    if (pattern->code == NULL)
        fatal("PCRE2 refuses a pre-tokenisation pattern (error %d at %zu): is it built without "
              "Unicode?",
              error, offset);
    free(text);
    /* Without the JIT (some hardened systems forbid it) pcre2_match interprets: slower, the same.
     */
    (void)pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);
    pattern->match = pcre2_match_data_create(1, NULL);
    if (pattern->match == NULL)
        fatal("out of memory for pre-tokenisation");
    return pattern;
}

void pretoken_pattern_free(struct pretoken_pattern *pattern)
{
    if (pattern == NULL)
        return;
    pcre2_match_data_free(pattern->match);
    pcre2_code_free(pattern->code);
    mem_free(pattern);
}

size_t pretoken_pattern_end(struct pretoken_pattern *pattern, const char *text, size_t bytes,
                            size_t start)
{
    ASSERT(start < bytes);
    int count = pcre2_match(pattern->code, (PCRE2_SPTR)text, bytes, start, PCRE2_NO_UTF_CHECK,
                            pattern->match, NULL);
    size_t end = count > 0 ? pcre2_get_ovector_pointer(pattern->match)[1] : 0;
    ASSERT(end > start && end <= bytes);
    return end;
}
