/*
 * bpe_table: the vocabulary and the merges of a tokenizer, with the two look-ups that everything
 * needs: token by its bytes and merge by its pair.
 *
 * Shared by bpe (encode, decode), bpe_train and those that read and write files, and by nobody
 * else. Built once by setting pattern and whole_pieces, adding tokens and merges and then
 * bpe_table_finish; constant afterwards.
 */
#ifndef SPILLWAY_IO_BPE_TABLE_H
#define SPILLWAY_IO_BPE_TABLE_H

#include "io/bpe.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BPE_NO_TOKEN    UINT32_MAX
#define BPE_NO_RANK     UINT32_MAX
#define BPE_END_OF_TEXT "<|endoftext|>"
/* What Llama 3 calls it. */
#define BPE_END_OF_TEXT_2 "<|end_of_text|>"

enum bpe_token_flag {
    BPE_TOKEN_MODEL = 1,   /* made by merges or a single byte: text can encode to it */
    BPE_TOKEN_ADDED = 2,   /* listed in added_tokens */
    BPE_TOKEN_SPECIAL = 4, /* added and special: control, never text */
    BPE_TOKEN_RAW = 8,     /* its name in the file is its bytes, not GPT-2's printable form */
    BPE_TOKEN_HOLE = 16,   /* an id without a token; has no bytes */
};

struct bpe_token {
    uint32_t start; /* in text */
    uint32_t bytes;
    uint32_t flags; /* enum bpe_token_flag */
};

struct bpe_merge {
    uint32_t left, right, result;
};

/* One slot of the pair look-up; rank BPE_NO_RANK marks an empty one. */
struct bpe_pair_slot {
    uint64_t pair;
    uint32_t rank; /* index of the merge: a lower one is applied first */
    uint32_t result;
};

struct bpe {
    struct bpe_token *tokens;
    uint32_t vocab_size, token_capacity;
    char *text; /* the bytes of all tokens */
    size_t text_bytes, text_capacity;
    struct bpe_merge *merges;
    uint32_t merge_count, merge_capacity;

    uint32_t *token_slots; /* open addressing by bytes; BPE_NO_TOKEN is empty */
    uint32_t token_slot_bits;
    struct bpe_pair_slot *pair_slots;
    uint32_t pair_slot_bits;
    /* A bit for each pair that has a merge, by its hash, four times as many as slots: most pairs
     * have none, and the slots of a big vocabulary are 16 MB, far from the core. */
    uint64_t *pair_filter;

    enum pretoken_kind pattern;
    bool whole_pieces; /* a piece that is a token is not merged (ignore_merges) */
    uint32_t byte_token[256];
    uint32_t (*byte_pair_ranks)[256]; /* of the pair of two bytes' tokens; BPE_NO_RANK: none */
    uint32_t end_of_text;
    uint64_t hash;
};

struct bpe *bpe_table_new(void);

/* Appends a token, whose id is returned. Only BPE_TOKEN_MODEL tokens are found by their bytes; the
 * caller has made sure that none of the same bytes is there. */
uint32_t bpe_table_add_token(struct bpe *bpe, const char *text, size_t bytes, uint32_t flags);

/* BPE_NO_TOKEN when there is none. The second is for those who know the bytes' hash (by hash_bytes,
 * seed 0). */
uint32_t bpe_table_find_token(const struct bpe *bpe, const char *text, size_t bytes);
uint32_t bpe_table_find_hashed(const struct bpe *bpe, const char *text, size_t bytes,
                               uint64_t hash);

/* The next merge; the pair is not there yet. */
void bpe_table_add_merge(struct bpe *bpe, struct bpe_merge merge);

/* After the last token and merge. Returns the first byte that no token stands for, or 256. */
uint32_t bpe_table_finish(struct bpe *bpe);

static inline uint64_t bpe_table_pair(uint32_t left, uint32_t right)
{
    return (uint64_t)left << 32 | right;
}

/* Fibonacci hashing (Knuth, TAOCP 6.4): the high bits of a product with 2^64 over the golden ratio.
 * The right id alone would fill only the low bits, hence the fold. */
static inline uint32_t bpe_table_pair_slot(uint64_t pair, uint32_t slot_bits)
{
    return (uint32_t)(((pair ^ pair >> 29) * 0x9e3779b97f4a7c15u) >> (64 - slot_bits));
}

/* The slot of the pair, or an empty one (rank BPE_NO_RANK). */
static inline const struct bpe_pair_slot *bpe_table_find_merge(const struct bpe *bpe, uint32_t left,
                                                               uint32_t right)
{
    uint64_t pair = bpe_table_pair(left, right);
    uint32_t mask = (1u << bpe->pair_slot_bits) - 1;
    uint32_t slot = bpe_table_pair_slot(pair, bpe->pair_slot_bits);
    /* Never more than half full, so an empty slot ends the walk. */
    while (bpe->pair_slots[slot].rank != BPE_NO_RANK && bpe->pair_slots[slot].pair != pair)
        slot = (slot + 1) & mask;
    return &bpe->pair_slots[slot];
}

#define BPE_FILTER_BITS(slot_bits) ((slot_bits) + 2)

/* The rank of the pair's merge, BPE_NO_RANK where it has none; after bpe_table_finish. */
static inline uint32_t bpe_table_rank(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    uint32_t bit =
        bpe_table_pair_slot(bpe_table_pair(left, right), BPE_FILTER_BITS(bpe->pair_slot_bits));
    if ((bpe->pair_filter[bit / 64] >> bit % 64 & 1) == 0)
        return BPE_NO_RANK;
    return bpe_table_find_merge(bpe, left, right)->rank;
}

/* GPT-2's printable form of bytes (its bytes_to_unicode): each byte is one character, itself where
 * that is printable Latin-1, and U+0100 + n for the n-th other byte. */
uint32_t bpe_table_byte_character(uint8_t byte);

/* The bytes in order of their characters, which is the order of ids in trained tokenizers. */
void bpe_table_byte_order(uint8_t order[256]);

#endif
