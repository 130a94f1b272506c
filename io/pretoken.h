/*
 * pretoken: cuts text into the pieces that BPE merges never cross, by GPT-2's pattern
 *
 *     's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *
 * as Hugging Face tokenizers and tiktoken apply it, with PCRE2 (this file's .c is the only one that
 * includes it) and its JIT where the system allows that. \s is Unicode's White_Space, spelled out,
 * because PCRE2's own \s also holds U+180E.
 *
 * Text need not be UTF-8. Each longest run of bytes that are no UTF-8 (RFC 3629: no surrogates, no
 * overlong forms) is a piece of its own, and the valid text on either side of it is matched as if
 * it began or ended there. The pieces put together are always exactly the text. Which characters
 * are letters is the Unicode version of the PCRE2 at hand; only newly assigned characters differ.
 */
#ifndef SPILLWAY_IO_PRETOKEN_H
#define SPILLWAY_IO_PRETOKEN_H

#include <stdbool.h>
#include <stddef.h>

/* One per thread. */
struct pretoken;

struct pretoken *pretoken_new(void);           /* never NULL */
void pretoken_free(struct pretoken *pretoken); /* NULL is legal */

/* Begins a text, which is borrowed until the next begin. */
void pretoken_begin(struct pretoken *pretoken, const char *text, size_t bytes);
/* The next piece as text[*start, *start + *bytes), *bytes > 0; false at the end. */
bool pretoken_next(struct pretoken *pretoken, size_t *start, size_t *bytes);

/* The greatest cut < bytes where text may be torn without changing a piece, whatever follows:
 * between a character that is no white space and an ASCII white space. 0 where there is none. */
size_t pretoken_cut(const char *text, size_t bytes);

#endif
