#include "io/bpe_table.h"
#include "core/base.h"
#include "core/hash.h"
#include "core/mem.h"
#include <string.h>

#define SLOT_BITS_FIRST 10

/* Makes room for one more element of size bytes each, by doubling. */
static void *grow_to_fit(void *array, uint32_t count, uint32_t *capacity, size_t size)
{
    if (count < *capacity)
        return array;
    *capacity = *capacity == 0 ? 1024 : *capacity * 2;
    return mem_realloc(array, *capacity, size);
}

/* ---------------------------------------------------------------------------------------------
 * Tokens
 * ------------------------------------------------------------------------------------------- */

static void reset_token_slots(struct bpe *bpe, uint32_t slot_bits)
{
    mem_free(bpe->token_slots);
    bpe->token_slot_bits = slot_bits;
    bpe->token_slots = mem_alloc((uint64_t)1 << slot_bits, sizeof(*bpe->token_slots));
    memset(bpe->token_slots, 0xff, ((size_t)1 << slot_bits) * sizeof(*bpe->token_slots));
}

static void reset_pair_slots(struct bpe *bpe, uint32_t slot_bits)
{
    mem_free(bpe->pair_slots);
    bpe->pair_slot_bits = slot_bits;
    bpe->pair_slots = mem_alloc((uint64_t)1 << slot_bits, sizeof(*bpe->pair_slots));
    memset(bpe->pair_slots, 0xff, ((size_t)1 << slot_bits) * sizeof(*bpe->pair_slots));
}

struct bpe *bpe_table_new(void)
{
    struct bpe *bpe = mem_alloc(1, sizeof(*bpe));
    bpe->end_of_text = BPE_NO_TOKEN;
    reset_token_slots(bpe, SLOT_BITS_FIRST);
    reset_pair_slots(bpe, SLOT_BITS_FIRST);
    return bpe;
}

/* The slot that holds these bytes, or the empty one where they belong. */
static uint32_t *token_slot(const struct bpe *bpe, const char *text, size_t bytes, uint64_t hash)
{
    uint32_t mask = (1u << bpe->token_slot_bits) - 1;
    uint32_t slot = (uint32_t)hash & mask;
    while (bpe->token_slots[slot] != BPE_NO_TOKEN) {
        const struct bpe_token *token = &bpe->tokens[bpe->token_slots[slot]];
        if (token->bytes == bytes && memcmp(bpe->text + token->start, text, bytes) == 0)
            break;
        slot = (slot + 1) & mask;
    }
    return &bpe->token_slots[slot];
}

uint32_t bpe_table_find_token(const struct bpe *bpe, const char *text, size_t bytes)
{
    return *token_slot(bpe, text, bytes, hash_bytes(text, bytes, 0));
}

uint32_t bpe_table_find_hashed(const struct bpe *bpe, const char *text, size_t bytes, uint64_t hash)
{
    return *token_slot(bpe, text, bytes, hash);
}

static void index_token(struct bpe *bpe, uint32_t id)
{
    const struct bpe_token *token = &bpe->tokens[id];
    if ((token->flags & BPE_TOKEN_MODEL) == 0)
        return;
    const char *text = bpe->text + token->start;
    uint32_t *slot = token_slot(bpe, text, token->bytes, hash_bytes(text, token->bytes, 0));
    ASSERT(*slot == BPE_NO_TOKEN);
    *slot = id;
}

static uint32_t append_text(struct bpe *bpe, const char *text, size_t bytes)
{
    if (bytes > bpe->text_capacity - bpe->text_bytes) {
        bpe->text_capacity = MAX(bpe->text_capacity * 2, bpe->text_bytes + bytes + 4096);
        bpe->text = mem_realloc(bpe->text, bpe->text_capacity, 1);
    }
    size_t start = bpe->text_bytes;
    ASSERT(start + bytes <= UINT32_MAX);
    if (bytes > 0) /* a hole may be the first, before there is any text */
        memcpy(bpe->text + start, text, bytes);
    bpe->text_bytes += bytes;
    return (uint32_t)start;
}

uint32_t bpe_table_add_token(struct bpe *bpe, const char *text, size_t bytes, uint32_t flags)
{
    ASSERT(bpe->vocab_size < BPE_VOCAB_MAX);
    ASSERT((bytes == 0) == ((flags & BPE_TOKEN_HOLE) != 0));
    uint32_t id = bpe->vocab_size;
    bpe->tokens = grow_to_fit(bpe->tokens, id, &bpe->token_capacity, sizeof(*bpe->tokens));
    bpe->tokens[id] = (struct bpe_token){append_text(bpe, text, bytes), (uint32_t)bytes, flags};
    bpe->vocab_size++;
    if (bpe->vocab_size <= 1u << (bpe->token_slot_bits - 1)) {
        index_token(bpe, id);
        return id;
    }
    reset_token_slots(bpe, bpe->token_slot_bits + 1);
    for (uint32_t i = 0; i <= id; i++)
        index_token(bpe, i);
    return id;
}

/* ---------------------------------------------------------------------------------------------
 * Merges
 * ------------------------------------------------------------------------------------------- */

static void index_merge(struct bpe *bpe, uint32_t rank)
{
    const struct bpe_merge *merge = &bpe->merges[rank];
    const struct bpe_pair_slot *found = bpe_table_find_merge(bpe, merge->left, merge->right);
    ASSERT(found->rank == BPE_NO_RANK);
    bpe->pair_slots[found - bpe->pair_slots] = (struct bpe_pair_slot){
        bpe_table_pair(merge->left, merge->right),
        rank,
        merge->result,
    };
}

void bpe_table_add_merge(struct bpe *bpe, struct bpe_merge merge)
{
    ASSERT(merge.left < bpe->vocab_size && merge.right < bpe->vocab_size);
    ASSERT(merge.result < bpe->vocab_size && bpe->merge_count < BPE_VOCAB_MAX);
    uint32_t rank = bpe->merge_count;
    bpe->merges = grow_to_fit(bpe->merges, rank, &bpe->merge_capacity, sizeof(*bpe->merges));
    bpe->merges[rank] = merge;
    bpe->merge_count++;
    if (bpe->merge_count <= 1u << (bpe->pair_slot_bits - 1)) {
        index_merge(bpe, rank);
        return;
    }
    reset_pair_slots(bpe, bpe->pair_slot_bits + 1);
    for (uint32_t i = 0; i <= rank; i++)
        index_merge(bpe, i);
}

/* ---------------------------------------------------------------------------------------------
 * Finishing
 * ------------------------------------------------------------------------------------------- */

static uint64_t hash_table(const struct bpe *bpe)
{
    uint64_t hash = hash_bytes(&bpe->end_of_text, sizeof(bpe->end_of_text), bpe->vocab_size);
    for (uint32_t i = 0; i < bpe->vocab_size; i++) {
        const struct bpe_token *token = &bpe->tokens[i];
        hash = hash_bytes(&token->bytes, sizeof(token->bytes), hash);
        hash = hash_bytes(bpe->text + token->start, token->bytes, hash);
    }
    hash = hash_bytes(bpe->merges, bpe->merge_count * sizeof(*bpe->merges), hash);
    /* Tokenizers of GPT-2's kind keep the hash that they had when there was no other. */
    uint32_t rest[2] = {bpe->pattern, bpe->whole_pieces};
    return rest[0] == 0 && rest[1] == 0 ? hash : hash_bytes(rest, sizeof(rest), hash);
}

static uint32_t find_by_name(const struct bpe *bpe, const char *name)
{
    size_t bytes = strlen(name);
    for (uint32_t i = 0; i < bpe->vocab_size; i++)
        if (bpe->tokens[i].bytes == bytes &&
            memcmp(bpe->text + bpe->tokens[i].start, name, bytes) == 0)
            return i;
    return BPE_NO_TOKEN;
}

static uint32_t find_end_of_text(const struct bpe *bpe)
{
    uint32_t token = find_by_name(bpe, BPE_END_OF_TEXT);
    return token != BPE_NO_TOKEN ? token : find_by_name(bpe, BPE_END_OF_TEXT_2);
}

static void fill_byte_pairs(struct bpe *bpe)
{
    if (bpe->byte_pair_ranks == NULL)
        bpe->byte_pair_ranks = mem_alloc(256, sizeof(*bpe->byte_pair_ranks));
    for (uint32_t left = 0; left < 256; left++)
        for (uint32_t right = 0; right < 256; right++)
            bpe->byte_pair_ranks[left][right] =
                bpe_table_find_merge(bpe, bpe->byte_token[left], bpe->byte_token[right])->rank;
}

static void fill_pair_filter(struct bpe *bpe)
{
    uint32_t bits = BPE_FILTER_BITS(bpe->pair_slot_bits);
    mem_free(bpe->pair_filter);
    bpe->pair_filter = mem_alloc((uint64_t)1 << (bits - 6), sizeof(*bpe->pair_filter));
    for (uint32_t i = 0; i < bpe->merge_count; i++) {
        const struct bpe_merge *merge = &bpe->merges[i];
        uint32_t bit = bpe_table_pair_slot(bpe_table_pair(merge->left, merge->right), bits);
        bpe->pair_filter[bit / 64] |= (uint64_t)1 << bit % 64;
    }
}

uint32_t bpe_table_finish(struct bpe *bpe)
{
    uint32_t missing = 256;
    for (uint32_t byte = 256; byte-- > 0;) {
        char text = (char)byte;
        bpe->byte_token[byte] = bpe_table_find_token(bpe, &text, 1);
        if (bpe->byte_token[byte] == BPE_NO_TOKEN)
            missing = byte;
    }
    fill_byte_pairs(bpe);
    fill_pair_filter(bpe);
    bpe->end_of_text = find_end_of_text(bpe);
    bpe->hash = hash_table(bpe);
    return missing;
}

/* ---------------------------------------------------------------------------------------------
 * GPT-2's printable bytes
 * ------------------------------------------------------------------------------------------- */

static bool printable(uint32_t byte)
{
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

uint32_t bpe_table_byte_character(uint8_t byte)
{
    if (printable(byte))
        return byte;
    uint32_t others = 0;
    for (uint32_t i = 0; i < byte; i++)
        others += !printable(i);
    return 256 + others;
}

void bpe_table_byte_order(uint8_t order[256])
{
    uint32_t count = 0;
    for (uint32_t byte = 0; byte < 256; byte++)
        if (printable(byte))
            order[count++] = (uint8_t)byte;
    for (uint32_t byte = 0; byte < 256; byte++)
        if (!printable(byte))
            order[count++] = (uint8_t)byte;
    ASSERT(count == 256);
}
