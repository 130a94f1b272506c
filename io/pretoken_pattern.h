/*
 * pretoken_pattern: the pre-tokenisation patterns themselves, run by PCRE2 (this file's .c is the
 * only one that includes it). They define what the scanners of io/pretoken_scan.h do faster.
 *
 * The text of a pattern is the published one, with \p{L} and its like spelled out as ranges from
 * io/unicode.h, because every PCRE2 knows another Unicode, and PCRE2's own \s also holds U+180E.
 */
#ifndef SPILLWAY_IO_PRETOKEN_PATTERN_H
#define SPILLWAY_IO_PRETOKEN_PATTERN_H

#include "io/pretoken.h"
#include <stddef.h>

struct pretoken_pattern;

struct pretoken_pattern *pretoken_pattern_new(enum pretoken_kind kind); /* never NULL */
void pretoken_pattern_free(struct pretoken_pattern *pattern);           /* NULL is legal */

/* The end of the piece that starts at start in text[0, bytes), which is valid UTF-8; start < bytes.
 */
size_t pretoken_pattern_end(struct pretoken_pattern *pattern, const char *text, size_t bytes,
                            size_t start);

#endif
