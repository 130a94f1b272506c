/*
 * bpe_ranks: reads a list of ranks, the form in which tiktoken and Llama 3 have their tokenizers: a
 * line "base64-of-the-bytes rank" for each token. Called by bpe_load alone.
 *
 * Such a list says neither how text is cut nor which special tokens follow, so it has to be one
 * that is known by its size. Two neighbours merge where their bytes together are a token, the
 * lowest rank first; that is written out here as merges, for every way of parting a token in two
 * tokens, in the order in which Hugging Face's converter has them.
 */
#ifndef SPILLWAY_IO_BPE_RANKS_H
#define SPILLWAY_IO_BPE_RANKS_H

#include "core/err.h"
#include "io/bpe_table.h"

/* Fills an empty table; bpe_table_finish is the caller's. */
int bpe_ranks_load(struct bpe *bpe, const char *path, struct err *err);

#endif
