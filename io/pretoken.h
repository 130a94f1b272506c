/*
 * pretoken: cuts text into the pieces that BPE merges never cross, by one of the patterns that
 * tokenizers are published with:
 *
 *   gpt2    's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
 *   cl100k  '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|
 * ?[^\s\p{L}\p{N}]++[\r\n]*+
 *           |\s++$|\s*[\r\n]|\s+(?!\S)|\s                                     (tiktoken's GPT-4)
 *   llama3  cl100k as it was first published and Llama 3 has it: without \s++$
 *   o200k   words end before the next capital; tiktoken's GPT-4o
 *
 * Pieces are found by the scanners of io/pretoken_scan.h, or, where pretoken_new is asked to check,
 * by the patterns themselves (io/pretoken_pattern.h); both give the same. \s is Unicode's
 * White_Space, and which characters are letters is Unicode 16 on every machine (io/unicode.h).
 *
 * Text need not be UTF-8. Each longest run of bytes that are no UTF-8 (RFC 3629) is a piece of its
 * own, and the valid text on either side of it is matched as if it began or ended there. The pieces
 * put together are always exactly the text.
 */
#ifndef SPILLWAY_IO_PRETOKEN_H
#define SPILLWAY_IO_PRETOKEN_H

#include <stdbool.h>
#include <stddef.h>

enum pretoken_kind {
    PRETOKEN_GPT2,
    PRETOKEN_CL100K,
    PRETOKEN_LLAMA3,
    PRETOKEN_O200K,
    PRETOKEN_KINDS
};

/* By kind: "gpt2", ... */
extern const char *const pretoken_names[PRETOKEN_KINDS];
/* PRETOKEN_KINDS where no kind has this name. */
enum pretoken_kind pretoken_by_name(const char *name);

/* The kind's pattern as tokenizer files have it, in a spelling that Hugging Face tokenizers, PCRE2,
 * Oniguruma and Rust's engines read alike; and the kind of a pattern in that or a published
 * spelling, PRETOKEN_KINDS where it is none of them. */
extern const char *const pretoken_spellings[PRETOKEN_KINDS];
enum pretoken_kind pretoken_by_spelling(const char *pattern);

/* One per thread. */
struct pretoken;

struct pretoken *pretoken_new(enum pretoken_kind kind, bool check); /* never NULL */
void pretoken_free(struct pretoken *pretoken);                      /* NULL is legal */

/* Begins a text, which is borrowed until the next begin. */
void pretoken_begin(struct pretoken *pretoken, const char *text, size_t bytes);
/* The next piece as text[*start, *start + *bytes), *bytes > 0; false at the end. */
bool pretoken_next(struct pretoken *pretoken, size_t *start, size_t *bytes);

/* The greatest cut < bytes where text may be torn without changing a piece of any kind, whatever
 * follows: between what is no white space and a blank; between an ASCII letter or digit and a line
 * end; or between a single line end after what is no white space and a character that is neither
 * white space nor '/'. 0 where there is none. */
size_t pretoken_cut(const char *text, size_t bytes);

#endif
