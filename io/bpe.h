/*
 * bpe: byte-level BPE (Sennrich et al. 2016, "Neural machine translation of rare words with subword
 * units"; byte-level as in GPT-2, Radford et al. 2019): training, encoding, decoding, and its two
 * file forms, Hugging Face tokenizer.json and GPT-2 vocab.json + merges.txt.
 *
 * Text is cut into pieces by GPT-2's pattern (PCRE2, the only file that includes it, may live in
 * io/pretoken.c); merges never cross pieces. Bytes that are no UTF-8 are kept: any byte string
 * encodes, and decoding gives exactly the same bytes back. Token 0..255 order follows the file; in
 * tokenizers trained here the end-of-text token "<|endoftext|>" is id 0 when trained (as Hugging
 * Face's trainer does with a special token), the bytes follow in GPT-2's printable order.
 * Deterministic whatever the thread count. bpe_encode and bpe_decode: any thread, const.
 */
#ifndef SPILLWAY_IO_BPE_H
#define SPILLWAY_IO_BPE_H

#include "core/err.h"
#include <stddef.h>
#include <stdint.h>

struct bpe;

/* The most that a tokenizer file may have, and the range that can be trained. */
#define BPE_VOCAB_MAX       (1u << 24)
#define BPE_TRAIN_VOCAB_MIN 257
#define BPE_TRAIN_VOCAB_MAX (1 << 20)

/* Reads PATH: a tokenizer.json, or a folder that holds one, or vocab.json (encoder.json) +
 * merges.txt (vocab.bpe). */
int bpe_load(struct bpe **bpe, const char *path, struct err *err);
void bpe_free(struct bpe *bpe); /* NULL is legal */

/* Writes dir/tokenizer.json in a form that Hugging Face tokenizers loads. */
int bpe_save(const struct bpe *bpe, const char *dir, struct err *err);

uint32_t bpe_vocab_size(const struct bpe *bpe);  /* ids are 0 .. vocab_size-1 */
uint32_t bpe_end_of_text(const struct bpe *bpe); /* UINT32_MAX when there is none */
uint64_t bpe_hash(const struct bpe *bpe);        /* of vocabulary and merges; identifies it */

/* Scratch for one encoding thread. */
struct bpe_encoder;
struct bpe_encoder *bpe_encoder_new(const struct bpe *bpe);
void bpe_encoder_free(struct bpe_encoder *encoder);

/* Appends nothing else: tokens of text in order. tokens has room for token_max >= bytes entries
 * (a token is at least one byte). Returns the count. No special tokens are recognised in text. */
size_t bpe_encode(struct bpe_encoder *encoder, const char *text, size_t bytes, uint32_t *tokens,
                  size_t token_max);

/* The bytes of one token (not zero-terminated), borrowed. */
const char *bpe_token_bytes(const struct bpe *bpe, uint32_t token, size_t *bytes);

/* Training: count pieces, then learn merges until vocab_size tokens (end-of-text included) exist
 * or no pair is left that occurs twice. Ties: higher count first, then lower left id, then lower
 * right id (as Hugging Face). */
struct bpe_trainer;
struct bpe_trainer *bpe_trainer_new(void);
void bpe_trainer_free(struct bpe_trainer *trainer);
/* Counts the pieces of one document, or of one part of a document that was torn where
 * pretoken_cut allows it. One thread; several threads take a trainer each. */
void bpe_trainer_add(struct bpe_trainer *trainer, const char *text, size_t bytes);
/* Adds the counts of another trainer. What is learned does not depend on the order. */
void bpe_trainer_merge(struct bpe_trainer *into, const struct bpe_trainer *from);
/* Memory of the counts; learning takes up to five times as much. */
uint64_t bpe_trainer_bytes(const struct bpe_trainer *trainer);
/* vocab_size in BPE_TRAIN_VOCAB_MIN .. BPE_TRAIN_VOCAB_MAX; the tokenizer has fewer where the text
 * is too small to give that many. */
int bpe_train(struct bpe **bpe, struct bpe_trainer *trainer, uint32_t vocab_size, struct err *err);

#endif
