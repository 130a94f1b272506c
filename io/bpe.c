#include "io/bpe.h"
#include "core/base.h"
#include "core/hash.h"
#include "core/mem.h"
#include "io/bpe_table.h"
#include "io/pretoken.h"
#include <string.h>

/* A piece of up to this many bytes is merged by scanning its pairs, which needs no memory and is
 * fastest for words; a longer one by a heap, which is n log n. Both give the same tokens. */
#define SCAN_BYTES_MAX 64

/* The word cache: text repeats its words (Zipf's law), so most pieces are found here and cost one
 * hash and one cache line. Two ways, the older one is replaced. 4 MiB for each thread. */
#define CACHE_SET_BITS   15
#define CACHE_WAYS       2
#define CACHE_KEY_MAX    22
#define CACHE_TOKENS_MAX 10

struct cache_entry {
    uint8_t key_bytes; /* 0: empty */
    uint8_t token_count;
    char key[CACHE_KEY_MAX];
    uint32_t tokens[CACHE_TOKENS_MAX];
};

_Static_assert(sizeof(struct cache_entry) == 64, "an entry is one cache line");

/* A pair that may be merged, in the heap of long pieces. It is stale when the symbols at its place
 * are no longer these two. */
struct candidate {
    uint32_t rank;
    uint32_t position;
    uint32_t left, right;
};

struct bpe_encoder {
    const struct bpe *bpe; /* borrowed */
    struct pretoken *pretoken;
    struct cache_entry *cache; /* owned; NULL: none */
    /* For long pieces; owned, grown to the longest seen. */
    struct candidate *heap;
    uint32_t *next, *previous;
    size_t long_capacity; /* bytes of the longest piece that they hold */
};

void bpe_free(struct bpe *bpe)
{
    if (bpe == NULL)
        return;
    mem_free(bpe->tokens);
    mem_free(bpe->text);
    mem_free(bpe->merges);
    mem_free(bpe->token_slots);
    mem_free(bpe->pair_slots);
    mem_free(bpe);
}

uint32_t bpe_vocab_size(const struct bpe *bpe)
{
    return bpe->vocab_size;
}

uint32_t bpe_end_of_text(const struct bpe *bpe)
{
    return bpe->end_of_text;
}

uint64_t bpe_hash(const struct bpe *bpe)
{
    return bpe->hash;
}

const char *bpe_token_bytes(const struct bpe *bpe, uint32_t token, size_t *bytes)
{
    ASSERT(token < bpe->vocab_size);
    *bytes = bpe->tokens[token].bytes;
    return bpe->text + bpe->tokens[token].start;
}

enum pretoken_kind bpe_pattern(const struct bpe *bpe)
{
    return bpe->pattern;
}

bool bpe_has_gpt2_form(const struct bpe *bpe)
{
    return bpe->pattern == PRETOKEN_GPT2 && !bpe->whole_pieces;
}

static struct bpe_encoder *new_encoder(const struct bpe *bpe, bool check)
{
    struct bpe_encoder *encoder = mem_alloc(1, sizeof(*encoder));
    encoder->bpe = bpe;
    encoder->pretoken = pretoken_new(bpe->pattern, check);
    if (!check)
        encoder->cache = mem_alloc((uint64_t)CACHE_WAYS << CACHE_SET_BITS, sizeof(*encoder->cache));
    return encoder;
}

struct bpe_encoder *bpe_encoder_new(const struct bpe *bpe)
{
    return new_encoder(bpe, false);
}

struct bpe_encoder *bpe_encoder_new_checking(const struct bpe *bpe)
{
    return new_encoder(bpe, true);
}

void bpe_encoder_free(struct bpe_encoder *encoder)
{
    if (encoder == NULL)
        return;
    pretoken_free(encoder->pretoken);
    mem_free(encoder->cache);
    mem_free(encoder->heap);
    mem_free(encoder->next);
    mem_free(encoder->previous);
    mem_free(encoder);
}

/* ---------------------------------------------------------------------------------------------
 * Merging one piece: the pair of the lowest rank first, the leftmost of equals, until no pair of
 * neighbours has a merge.
 * ------------------------------------------------------------------------------------------- */

static void bytes_to_tokens(const struct bpe *bpe, const char *text, size_t bytes, uint32_t *tokens)
{
    for (size_t i = 0; i < bytes; i++)
        tokens[i] = bpe->byte_token[(uint8_t)text[i]];
}

static size_t lowest(const uint32_t *ranks, size_t count)
{
    size_t best = 0;
    for (size_t i = 1; i < count; i++)
        if (ranks[i] < ranks[best])
            best = i;
    return best;
}

static size_t merge_by_scan(const struct bpe *bpe, uint32_t *tokens, size_t count)
{
    uint32_t ranks[SCAN_BYTES_MAX]; /* of the pair (i, i + 1) */
    ASSERT(count > 0 && count <= SCAN_BYTES_MAX);
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = bpe_table_find_merge(bpe, tokens[i], tokens[i + 1])->rank;
    while (count > 1) {
        size_t at = lowest(ranks, count - 1);
        if (ranks[at] == BPE_NO_RANK)
            break;
        tokens[at] = bpe->merges[ranks[at]].result;
        memmove(tokens + at + 1, tokens + at + 2, (count - at - 2) * sizeof(*tokens));
        memmove(ranks + at, ranks + at + 1, (count - at - 2) * sizeof(*ranks));
        count--;
        if (at > 0)
            ranks[at - 1] = bpe_table_find_merge(bpe, tokens[at - 1], tokens[at])->rank;
        if (at + 1 < count)
            ranks[at] = bpe_table_find_merge(bpe, tokens[at], tokens[at + 1])->rank;
    }
    return count;
}

static bool before(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->position < b->position;
}

static void heap_push(struct candidate *heap, size_t *count, struct candidate item)
{
    size_t at = (*count)++;
    while (at > 0 && before(&item, &heap[(at - 1) / 2])) {
        heap[at] = heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    heap[at] = item;
}

static struct candidate heap_pop(struct candidate *heap, size_t *count)
{
    struct candidate top = heap[0], last = heap[--(*count)];
    size_t at = 0;
    for (size_t child = 1; child < *count; child = 2 * at + 1) {
        if (child + 1 < *count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static void reserve_long(struct bpe_encoder *encoder, size_t bytes)
{
    if (bytes <= encoder->long_capacity)
        return;
    /* Every byte starts one pair; a merge takes one out and puts at most two in. */
    encoder->heap = mem_realloc(encoder->heap, mul_checked(bytes, 2), sizeof(*encoder->heap));
    encoder->next = mem_realloc(encoder->next, bytes, sizeof(*encoder->next));
    encoder->previous = mem_realloc(encoder->previous, bytes, sizeof(*encoder->previous));
    encoder->long_capacity = bytes;
}

/* Queues the pair that starts at position, if it has a merge. */
static void consider(struct bpe_encoder *encoder, size_t *heap_count, const uint32_t *tokens,
                     size_t position, size_t end)
{
    size_t after = encoder->next[position];
    if (after == end)
        return;
    uint32_t left = tokens[position], right = tokens[after];
    uint32_t rank = bpe_table_find_merge(encoder->bpe, left, right)->rank;
    if (rank != BPE_NO_RANK)
        heap_push(encoder->heap, heap_count,
                  (struct candidate){rank, (uint32_t)position, left, right});
}

/* tokens is a linked list through next and previous; a merged symbol's place gets BPE_NO_TOKEN, so
 * that candidates which start there are stale. */
static size_t merge_by_heap(struct bpe_encoder *encoder, uint32_t *tokens, size_t count)
{
    const size_t end = count;
    size_t heap_count = 0;
    ASSERT(count < UINT32_MAX);
    reserve_long(encoder, count);
    for (size_t i = 0; i < count; i++) {
        encoder->next[i] = (uint32_t)i + 1;
        encoder->previous[i] = (uint32_t)i - 1;
    }
    for (size_t i = 0; i < end; i++)
        consider(encoder, &heap_count, tokens, i, end);
    while (heap_count > 0) {
        struct candidate best = heap_pop(encoder->heap, &heap_count);
        size_t at = best.position, gone = encoder->next[at];
        if (tokens[at] != best.left || gone == end || tokens[gone] != best.right)
            continue;
        tokens[at] = encoder->bpe->merges[best.rank].result;
        tokens[gone] = BPE_NO_TOKEN;
        encoder->next[at] = encoder->next[gone];
        if (encoder->next[at] != end)
            encoder->previous[encoder->next[at]] = (uint32_t)at;
        if (at > 0)
            consider(encoder, &heap_count, tokens, encoder->previous[at], end);
        consider(encoder, &heap_count, tokens, at, end);
    }
    size_t kept = 0;
    for (size_t i = 0; i < end; i = encoder->next[i])
        tokens[kept++] = tokens[i];
    return kept;
}

static size_t merge_piece(struct bpe_encoder *encoder, const char *text, size_t bytes,
                          uint32_t *tokens)
{
    const struct bpe *bpe = encoder->bpe;
    if (bpe->whole_pieces) {
        tokens[0] = bpe_table_find_token(bpe, text, bytes);
        if (tokens[0] != BPE_NO_TOKEN)
            return 1;
    }
    bytes_to_tokens(bpe, text, bytes, tokens);
    return bytes <= SCAN_BYTES_MAX ? merge_by_scan(bpe, tokens, bytes)
                                   : merge_by_heap(encoder, tokens, bytes);
}

/* ---------------------------------------------------------------------------------------------
 * Encoding
 * ------------------------------------------------------------------------------------------- */

static void cache_insert(struct cache_entry *set, const char *text, size_t bytes,
                         const uint32_t *tokens, size_t count)
{
    set[1] = set[0];
    set[0].key_bytes = (uint8_t)bytes;
    set[0].token_count = (uint8_t)count;
    memcpy(set[0].key, text, bytes);
    memcpy(set[0].tokens, tokens, count * sizeof(*tokens));
}

static size_t encode_piece(struct bpe_encoder *encoder, const char *text, size_t bytes,
                           uint32_t *tokens)
{
    if (bytes > CACHE_KEY_MAX || encoder->cache == NULL)
        return merge_piece(encoder, text, bytes, tokens);
    uint64_t hash = hash_bytes(text, bytes, 0);
    struct cache_entry *set = encoder->cache + CACHE_WAYS * (hash >> (64 - CACHE_SET_BITS));
    for (uint32_t way = 0; way < CACHE_WAYS; way++) {
        const struct cache_entry *entry = &set[way];
        if (entry->key_bytes == bytes && memcmp(entry->key, text, bytes) == 0) {
            memcpy(tokens, entry->tokens, entry->token_count * sizeof(*tokens));
            return entry->token_count;
        }
    }
    size_t count = merge_piece(encoder, text, bytes, tokens);
    if (count <= CACHE_TOKENS_MAX)
        cache_insert(set, text, bytes, tokens, count);
    return count;
}

size_t bpe_encode(struct bpe_encoder *encoder, const char *text, size_t bytes, uint32_t *tokens,
                  size_t token_max)
{
    ASSERT(token_max >= bytes);
    size_t count = 0, start, piece_bytes;
    pretoken_begin(encoder->pretoken, text, bytes);
    while (pretoken_next(encoder->pretoken, &start, &piece_bytes))
        count += encode_piece(encoder, text + start, piece_bytes, tokens + count);
    ASSERT(count <= token_max);
    return count;
}
