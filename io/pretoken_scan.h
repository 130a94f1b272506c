/*
 * pretoken_scan: the pre-tokenisation patterns written out as scanners over io/unicode.h's classes,
 * which is what production runs; io/pretoken_pattern.h is the same by PCRE2, and the two are held
 * against each other by tests/io/test_pretoken.c and by `spillway data`.
 *
 * Each alternative of a pattern is a branch, in the pattern's order. No scanner goes back over text
 * more than a fixed number of times, so a piece costs what it is long.
 */
#ifndef SPILLWAY_IO_PRETOKEN_SCAN_H
#define SPILLWAY_IO_PRETOKEN_SCAN_H

#include "io/pretoken.h"
#include <stdint.h>

/* The end of the piece that starts at text < end; [text, end) is valid UTF-8 and not empty.
 * unicode_init has been called. */
typedef const uint8_t *pretoken_scan_fn(const uint8_t *text, const uint8_t *end);

extern pretoken_scan_fn *const pretoken_scanners[PRETOKEN_KINDS];

#endif
