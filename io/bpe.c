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

/* Pieces are looked up so many at a time, each one's place in the cache having been asked for when
 * the first is read: the cache is bigger than the core's own. */
#define PIECES_AHEAD 16

struct piece {
    size_t start, bytes;
    uint64_t hash;
};

struct bpe_encoder {
    const struct bpe *bpe; /* borrowed */
    struct pretoken *pretoken;
    struct cache_entry *cache; /* owned; NULL: none */
    /* For long pieces; owned, grown to the longest seen. */
    uint64_t *heap;
    uint32_t *next, *previous, *ranks;
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
    mem_free(bpe->byte_pair_ranks);
    mem_free(bpe->pair_filter);
    mem_free(bpe);
}

uint64_t bpe_memory_bytes(const struct bpe *bpe)
{
    return ((uint64_t)bpe->vocab_size + bpe->merge_count) * BPE_ITEM_BYTES;
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
    mem_free(encoder->ranks);
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

/* The rank of the pair that the two bytes at text are. */
static uint32_t byte_pair_rank(const struct bpe *bpe, const char *text)
{
    return bpe->byte_pair_ranks[(uint8_t)text[0]][(uint8_t)text[1]];
}

static size_t lowest(const uint32_t *ranks, size_t count)
{
    size_t best = 0;
    for (size_t i = 1; i < count; i++)
        if (ranks[i] < ranks[best])
            best = i;
    return best;
}

static size_t merge_by_scan(const struct bpe *bpe, const char *text, uint32_t *tokens, size_t count)
{
    uint32_t ranks[SCAN_BYTES_MAX]; /* of the pair (i, i + 1) */
    ASSERT(count > 0 && count <= SCAN_BYTES_MAX);
    for (size_t i = 0; i + 1 < count; i++)
        ranks[i] = byte_pair_rank(bpe, text + i);
    while (count > 1) {
        size_t at = lowest(ranks, count - 1);
        if (ranks[at] == BPE_NO_RANK)
            break;
        tokens[at] = bpe->merges[ranks[at]].result;
        memmove(tokens + at + 1, tokens + at + 2, (count - at - 2) * sizeof(*tokens));
        memmove(ranks + at, ranks + at + 1, (count - at - 2) * sizeof(*ranks));
        count--;
        if (at > 0)
            ranks[at - 1] = bpe_table_rank(bpe, tokens[at - 1], tokens[at]);
        if (at + 1 < count)
            ranks[at] = bpe_table_rank(bpe, tokens[at], tokens[at + 1]);
    }
    return count;
}

/* A heap of four children a node (fewer levels, and the children share a cache line) over
 * candidates, least first: the rank in the upper half, the position in the lower. */
#define HEAP_CHILDREN 4

/* Puts item into the hole at `at`, moving the hole down to where it belongs. */
static void heap_sift(uint64_t *heap, size_t count, size_t at, uint64_t item)
{
    for (size_t first = HEAP_CHILDREN * at + 1; first < count; first = HEAP_CHILDREN * at + 1) {
        size_t least = first, end = MIN(first + HEAP_CHILDREN, count);
        for (size_t child = first + 1; child < end; child++)
            if (heap[child] < heap[least])
                least = child;
        if (item <= heap[least])
            break;
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = item;
}

static void heap_build(uint64_t *heap, size_t count)
{
    for (size_t at = count / HEAP_CHILDREN + 1; at-- > 0;)
        if (at < count)
            heap_sift(heap, count, at, heap[at]);
}

static void heap_push(uint64_t *heap, size_t *count, uint64_t item)
{
    size_t at = (*count)++;
    while (at > 0 && item < heap[(at - 1) / HEAP_CHILDREN]) {
        heap[at] = heap[(at - 1) / HEAP_CHILDREN];
        at = (at - 1) / HEAP_CHILDREN;
    }
    heap[at] = item;
}

static uint64_t heap_pop(uint64_t *heap, size_t *count)
{
    uint64_t top = heap[0];
    (*count)--;
    if (*count > 0)
        heap_sift(heap, *count, 0, heap[*count]);
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
    encoder->ranks = mem_realloc(encoder->ranks, bytes, sizeof(*encoder->ranks));
    encoder->long_capacity = bytes;
}

/* Every byte a symbol of its own, and all pairs that have a merge in the heap. */
static size_t begin_heap(struct bpe_encoder *encoder, const char *text, size_t count)
{
    size_t heap_count = 0;
    for (size_t i = 0; i < count; i++) {
        encoder->next[i] = (uint32_t)i + 1;
        encoder->previous[i] = (uint32_t)i - 1;
        encoder->ranks[i] = i + 1 < count ? byte_pair_rank(encoder->bpe, text + i) : BPE_NO_RANK;
        if (encoder->ranks[i] != BPE_NO_RANK)
            encoder->heap[heap_count++] = (uint64_t)encoder->ranks[i] << 32 | i;
    }
    heap_build(encoder->heap, heap_count);
    return heap_count;
}

/* The pair that starts at position is another one now: notes its rank, and queues it if it has one.
 * What is in the heap for the old one is stale, since its rank is not the one noted. */
static void consider(struct bpe_encoder *encoder, size_t *heap_count, const uint32_t *tokens,
                     size_t position, size_t end)
{
    size_t after = encoder->next[position];
    uint32_t rank = BPE_NO_RANK;
    if (after != end)
        rank = bpe_table_rank(encoder->bpe, tokens[position], tokens[after]);
    encoder->ranks[position] = rank;
    if (rank != BPE_NO_RANK)
        heap_push(encoder->heap, heap_count, (uint64_t)rank << 32 | position);
}

/* tokens is a linked list through next and previous; ranks[i] is that of the pair that starts at i,
 * BPE_NO_RANK where no symbol does. */
static size_t merge_by_heap(struct bpe_encoder *encoder, const char *text, uint32_t *tokens,
                            size_t count)
{
    const size_t end = count;
    ASSERT(count < UINT32_MAX);
    reserve_long(encoder, count);
    size_t heap_count = begin_heap(encoder, text, count);
    while (heap_count > 0) {
        uint64_t best = heap_pop(encoder->heap, &heap_count);
        uint32_t rank = (uint32_t)(best >> 32), at = (uint32_t)best;
        if (encoder->ranks[at] != rank)
            continue;
        uint32_t gone = encoder->next[at];
        tokens[at] = encoder->bpe->merges[rank].result;
        encoder->ranks[gone] = BPE_NO_RANK;
        encoder->next[at] = encoder->next[gone];
        if (encoder->next[at] != end)
            encoder->previous[encoder->next[at]] = at;
        if (at > 0)
            consider(encoder, &heap_count, tokens, encoder->previous[at], end);
        consider(encoder, &heap_count, tokens, at, end);
    }
    size_t kept = 0;
    for (size_t i = 0; i < end; i = encoder->next[i])
        tokens[kept++] = tokens[i];
    return kept;
}

static size_t merge_piece(struct bpe_encoder *encoder, const char *text, const struct piece *piece,
                          uint32_t *tokens)
{
    const struct bpe *bpe = encoder->bpe;
    size_t bytes = piece->bytes;
    text += piece->start;
    if (bpe->whole_pieces) {
        tokens[0] = bpe_table_find_hashed(bpe, text, bytes, piece->hash);
        if (tokens[0] != BPE_NO_TOKEN)
            return 1;
    }
    bytes_to_tokens(bpe, text, bytes, tokens);
    return bytes <= SCAN_BYTES_MAX ? merge_by_scan(bpe, text, tokens, bytes)
                                   : merge_by_heap(encoder, text, tokens, bytes);
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

static struct cache_entry *cache_set(const struct bpe_encoder *encoder, const struct piece *piece)
{
    return encoder->cache + CACHE_WAYS * (piece->hash >> (64 - CACHE_SET_BITS));
}

static size_t encode_piece(struct bpe_encoder *encoder, const char *text, const struct piece *piece,
                           uint32_t *tokens)
{
    size_t bytes = piece->bytes;
    if (bytes > CACHE_KEY_MAX || encoder->cache == NULL)
        return merge_piece(encoder, text, piece, tokens);
    struct cache_entry *set = cache_set(encoder, piece);
    for (uint32_t way = 0; way < CACHE_WAYS; way++) {
        const struct cache_entry *entry = &set[way];
        if (entry->key_bytes == bytes && memcmp(entry->key, text + piece->start, bytes) == 0) {
            memcpy(tokens, entry->tokens, entry->token_count * sizeof(*tokens));
            return entry->token_count;
        }
    }
    size_t count = merge_piece(encoder, text, piece, tokens);
    if (count <= CACHE_TOKENS_MAX)
        cache_insert(set, text + piece->start, bytes, tokens, count);
    return count;
}

/* The next pieces, their places in the cache on their way; how many they are. */
static size_t take_pieces(struct bpe_encoder *encoder, const char *text,
                          struct piece pieces[PIECES_AHEAD])
{
    size_t count = 0;
    for (; count < PIECES_AHEAD; count++) {
        struct piece *piece = &pieces[count];
        if (!pretoken_next(encoder->pretoken, &piece->start, &piece->bytes))
            break;
        piece->hash = hash_bytes(text + piece->start, piece->bytes, 0);
        if (encoder->cache == NULL)
            continue;
        const struct cache_entry *set = cache_set(encoder, piece);
        for (uint32_t way = 0; way < CACHE_WAYS; way++)
            __builtin_prefetch(&set[way]);
    }
    return count;
}

size_t bpe_encode(struct bpe_encoder *encoder, const char *text, size_t bytes, uint32_t *tokens,
                  size_t token_max)
{
    ASSERT(token_max >= bytes);
    struct piece pieces[PIECES_AHEAD];
    size_t count = 0, piece_count;
    pretoken_begin(encoder->pretoken, text, bytes);
    while ((piece_count = take_pieces(encoder, text, pieces)) > 0)
        for (size_t i = 0; i < piece_count; i++)
            count += encode_piece(encoder, text, &pieces[i], tokens + count);
    ASSERT(count <= token_max);
    return count;
}
