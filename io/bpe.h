/*
 * bpe: byte-level BPE (Sennrich et al. 2016, "Neural machine translation of rare words with subword
 * units"; byte-level as in GPT-2, Radford et al. 2019): training, encoding, decoding, and its
 * file forms: Hugging Face tokenizer.json and GPT-2's vocab.json + merges.txt, read and written,
 * and tiktoken's lists of ranks, read.
 *
 * Text is cut into pieces by the tokenizer's pattern (io/pretoken.h); merges never cross pieces.
 * Where the file asks for it (ignore_merges, and in tiktoken always) a piece that is a token
 * becomes that token, whatever its merges would make of it. Bytes that are no UTF-8 are kept: any
 * byte string encodes, and decoding gives exactly the same bytes back. Ids are those of the file;
 * in tokenizers trained here the end-of-text token "<|endoftext|>" is id 0 (as Hugging Face's
 * trainer does with a special token), the bytes follow in GPT-2's printable order. Deterministic
 * whatever the thread count. bpe_encode and bpe_decode: any thread, const.
 */
#ifndef SPILLWAY_IO_BPE_H
#define SPILLWAY_IO_BPE_H

#include "core/err.h"
#include "io/pretoken.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bpe;

/* The most that a tokenizer file may have, and the range that can be trained. */
#define BPE_VOCAB_MAX       (1u << 24)
#define BPE_TRAIN_VOCAB_MIN 257
#define BPE_TRAIN_VOCAB_MAX (1 << 24)

/* Reads PATH: a tokenizer.json, or a folder that holds one, or vocab.json (encoder.json) +
 * merges.txt (vocab.bpe), or a list of ranks as tiktoken and Llama 3 have it (a name that ends in
 * ".tiktoken" or ".model"), which says neither its pattern nor its special tokens: it has to be one
 * of those that are known by their size (gpt2, cl100k, o200k, Llama 3). */
int bpe_load(struct bpe **bpe, const char *path, struct err *err);
void bpe_free(struct bpe *bpe); /* NULL is legal */

/* Writes dir/tokenizer.json in a form that Hugging Face tokenizers loads. */
int bpe_save(const struct bpe *bpe, const char *dir, struct err *err);
/* Writes dir/vocab.json and dir/merges.txt, which can say neither a pattern nor special tokens:
 * only where bpe_has_gpt2_form, else it does nothing. */
int bpe_save_gpt2(const struct bpe *bpe, const char *dir, struct err *err);
bool bpe_has_gpt2_form(const struct bpe *bpe); /* cut by GPT-2's pattern, without ignore_merges */

/* What a tokenizer takes in memory while it is loaded, used and saved; as measured, the JSON in
 * which it is written being most of it. */
uint64_t bpe_memory_bytes(const struct bpe *bpe);
#define BPE_ITEM_BYTES 180 /* of that, for each token and each merge */

uint32_t bpe_vocab_size(const struct bpe *bpe);  /* ids are 0 .. vocab_size-1 */
uint32_t bpe_end_of_text(const struct bpe *bpe); /* UINT32_MAX when there is none */
enum pretoken_kind bpe_pattern(const struct bpe *bpe);
uint64_t bpe_hash(const struct bpe *bpe); /* of vocabulary, merges and pattern; identifies it */

/* Scratch for one encoding thread. */
struct bpe_encoder;
struct bpe_encoder *bpe_encoder_new(const struct bpe *bpe);
/* The same tokens by the slow way: pieces by PCRE2, and no cache of words. */
struct bpe_encoder *bpe_encoder_new_checking(const struct bpe *bpe);
void bpe_encoder_free(struct bpe_encoder *encoder);

/* Appends nothing else: tokens of text in order. tokens has room for token_max >= bytes entries
 * (a token is at least one byte). Returns the count. No special tokens are recognised in text. */
size_t bpe_encode(struct bpe_encoder *encoder, const char *text, size_t bytes, uint32_t *tokens,
                  size_t token_max);

/* The bytes of one token (not zero-terminated), borrowed; none for an id that the file leaves out,
 * which no text gives. */
const char *bpe_token_bytes(const struct bpe *bpe, uint32_t token, size_t *bytes);

/* Training: count pieces, then learn merges until vocab_size tokens (end-of-text included) exist
 * or no pair is left that occurs twice. Ties: higher count first, then lower left id, then lower
 * right id (as Hugging Face). */
struct bpe_trainer;
struct bpe_trainer *bpe_trainer_new(enum pretoken_kind pattern);
void bpe_trainer_free(struct bpe_trainer *trainer);
/* Counts the pieces of one document, or of one part of a document that was torn where
 * pretoken_cut allows it. One thread; several threads take a trainer each. */
void bpe_trainer_add(struct bpe_trainer *trainer, const char *text, size_t bytes);
/* Adds the counts of another trainer. What is learned does not depend on the order. */
void bpe_trainer_merge(struct bpe_trainer *into, const struct bpe_trainer *from);
/* Memory of the counts; learning takes up to five times as much. */
uint64_t bpe_trainer_bytes(const struct bpe_trainer *trainer);
/* The least that these counts take, at least half of bpe_trainer_bytes: the same however they came
 * together, which bpe_trainer_bytes is not. */
uint64_t bpe_trainer_least_bytes(const struct bpe_trainer *trainer);
/* vocab_size in BPE_TRAIN_VOCAB_MIN .. BPE_TRAIN_VOCAB_MAX; the tokenizer has fewer where the text
 * is too small to give that many. */
int bpe_train(struct bpe **bpe, struct bpe_trainer *trainer, uint32_t vocab_size, struct err *err);

#endif
