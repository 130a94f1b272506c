/*
 * unicode: the classes of characters that pre-tokenisation asks for, by a table of our own, so that
 * text is cut alike whatever Unicode the libraries at hand know. The table is Unicode 16's, which
 * tiktoken 0.14 and Hugging Face tokenizers 0.23 use (io/unicode_ranges.h, made by
 * tests/reference/unicode_ranges.py); a character that is unassigned there has no class.
 *
 * Also UTF-8: which bytes are a character (RFC 3629: no surrogates, no overlong forms). Called by
 * pretoken and what is behind it. Any thread.
 */
#ifndef SPILLWAY_IO_UNICODE_H
#define SPILLWAY_IO_UNICODE_H

#include <stddef.h>
#include <stdint.h>

#define UNICODE_MAX 0x10ffffu

/* Bits; a character has at most one, but the two line ends, which are UNICODE_SPACE as well. */
enum unicode_class {
    UNICODE_SPACE = 1,    /* White_Space */
    UNICODE_LINE = 2,     /* carriage return and line feed */
    UNICODE_NUMBER = 4,   /* N */
    UNICODE_MARK = 8,     /* M */
    UNICODE_UPPER = 16,   /* Lu, Lt */
    UNICODE_LOWER = 32,   /* Ll */
    UNICODE_UNCASED = 64, /* Lm, Lo */
    UNICODE_LETTER = UNICODE_UPPER | UNICODE_LOWER | UNICODE_UNCASED,
};

/* By character; read it after unicode_init. */
extern const uint8_t *const unicode_classes;

/* Fills the table, once; later calls return at once. */
void unicode_init(void);

/* Bytes of the valid character at text, 1..4, or 0 where none stands; bytes are there to be read.
 */
size_t unicode_character_bytes(const uint8_t *text, size_t bytes);

/* The character at text, which is valid UTF-8 there. */
static inline uint32_t unicode_decode(const uint8_t *text, size_t *bytes)
{
    uint32_t lead = text[0];
    *bytes = 1u + (lead >= 0xc0) + (lead >= 0xe0) + (lead >= 0xf0);
    switch (*bytes) {
    case 1:
        return lead;
    case 2:
        return (lead & 0x1f) << 6 | (text[1] & 0x3fu);
    case 3:
        return (lead & 0x0f) << 12 | (text[1] & 0x3fu) << 6 | (text[2] & 0x3fu);
    default:
        return (lead & 0x07) << 18 | (text[1] & 0x3fu) << 12 | (text[2] & 0x3fu) << 6 |
               (text[3] & 0x3fu);
    }
}

#endif
