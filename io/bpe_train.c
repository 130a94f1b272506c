/*
 * Learning merges (Sennrich et al. 2016, algorithm 1), made fast by counting each different piece
 * once, by keeping for every pair the words it occurs in, and by a heap whose entries may be
 * stale: counts mostly fall, so an entry that is popped with a count that is no longer true is
 * pushed back with the true one.
 *
 * Invariants:
 *  1. A pair's count is the number of its places in all words, each times its word's count.
 *  2. A pair's list names every word that it occurs in; it may name others and name one twice.
 *  3. Every pair whose count is at least COUNT_MIN has a heap entry with its count or a higher one.
 */
#include "core/base.h"
#include "core/hash.h"
#include "core/mem.h"
#include "io/bpe.h"
#include "io/bpe_table.h"
#include "io/pretoken.h"
#include <string.h>

/* A pair that occurs once teaches nothing. */
#define COUNT_MIN 2
/* A longer piece (base64, a line of dashes without end) counts as consecutive pieces of this many
 * bytes, so that no merge has to walk a word of megabytes. */
#define PIECE_BYTES_MAX 4096
#define SLOT_BITS_FIRST 12
#define NO_PAIR         UINT32_MAX
#define WORDS_AHEAD     32
/* Pieces are counted so many at a time, with their places in the table on their way. */
#define PIECES_AHEAD 16

/* A different piece of the text, its bytes in the trainer's arena. */
struct piece {
    uint64_t start;
    uint64_t count;
    uint32_t hash; /* its upper half: the lower finds the slot */
    uint32_t bytes;
};

struct bpe_trainer {
    enum pretoken_kind pattern;
    struct pretoken *pretoken;
    struct piece *pieces;
    uint64_t piece_count, piece_capacity;
    char *text;
    uint64_t text_bytes, text_capacity;
    uint32_t *slots; /* index of a piece + 1; 0 is empty */
    uint32_t slot_bits;
};

/* ---------------------------------------------------------------------------------------------
 * Counting pieces
 * ------------------------------------------------------------------------------------------- */

struct bpe_trainer *bpe_trainer_new(enum pretoken_kind pattern)
{
    struct bpe_trainer *trainer = mem_alloc(1, sizeof(*trainer));
    trainer->pattern = pattern;
    trainer->pretoken = pretoken_new(pattern, false);
    trainer->slot_bits = SLOT_BITS_FIRST;
    trainer->slots = mem_alloc((uint64_t)1 << SLOT_BITS_FIRST, sizeof(*trainer->slots));
    return trainer;
}

void bpe_trainer_free(struct bpe_trainer *trainer)
{
    if (trainer == NULL)
        return;
    pretoken_free(trainer->pretoken);
    mem_free(trainer->pieces);
    mem_free(trainer->text);
    mem_free(trainer->slots);
    mem_free(trainer);
}

static void rehash(struct bpe_trainer *trainer)
{
    mem_free(trainer->slots);
    trainer->slot_bits++;
    trainer->slots = mem_alloc((uint64_t)1 << trainer->slot_bits, sizeof(*trainer->slots));
    uint32_t mask = (uint32_t)(((uint64_t)1 << trainer->slot_bits) - 1);
    for (uint64_t i = 0; i < trainer->piece_count; i++) {
        const struct piece *piece = &trainer->pieces[i];
        uint32_t slot = (uint32_t)hash_bytes(trainer->text + piece->start, piece->bytes, 0) & mask;
        while (trainer->slots[slot] != 0)
            slot = (slot + 1) & mask;
        trainer->slots[slot] = (uint32_t)i + 1;
    }
}

static void new_piece(struct bpe_trainer *trainer, uint32_t slot, const char *text,
                      struct piece piece)
{
    if (trainer->piece_count == trainer->piece_capacity) {
        trainer->piece_capacity = trainer->piece_capacity == 0 ? 4096 : trainer->piece_capacity * 2;
        trainer->pieces =
            mem_realloc(trainer->pieces, trainer->piece_capacity, sizeof(*trainer->pieces));
    }
    if (piece.bytes > trainer->text_capacity - trainer->text_bytes) {
        trainer->text_capacity = MAX(trainer->text_capacity * 2, (uint64_t)1 << 16);
        trainer->text = mem_realloc(trainer->text, trainer->text_capacity, 1);
    }
    ASSERT(trainer->piece_count < UINT32_MAX - 1);
    piece.start = trainer->text_bytes;
    memcpy(trainer->text + piece.start, text, piece.bytes);
    trainer->text_bytes += piece.bytes;
    trainer->pieces[trainer->piece_count++] = piece;
    trainer->slots[slot] = (uint32_t)trainer->piece_count;
    if (trainer->piece_count > (uint64_t)1 << (trainer->slot_bits - 1))
        rehash(trainer);
}

static void count_piece(struct bpe_trainer *trainer, const char *text, uint32_t bytes,
                        uint64_t hash, uint64_t times)
{
    ASSERT(bytes > 0 && bytes <= PIECE_BYTES_MAX);
    uint32_t upper = (uint32_t)(hash >> 32);
    uint32_t mask = (uint32_t)(((uint64_t)1 << trainer->slot_bits) - 1);
    uint32_t slot = (uint32_t)hash & mask;
    for (; trainer->slots[slot] != 0; slot = (slot + 1) & mask) {
        struct piece *piece = &trainer->pieces[trainer->slots[slot] - 1];
        if (piece->hash == upper && piece->bytes == bytes &&
            memcmp(trainer->text + piece->start, text, bytes) == 0) {
            piece->count += times;
            return;
        }
    }
    new_piece(trainer, slot, text, (struct piece){0, times, upper, bytes});
}

/* Pieces that wait to be counted. */
struct waiting {
    const char *text[PIECES_AHEAD];
    uint32_t bytes[PIECES_AHEAD];
    uint64_t hash[PIECES_AHEAD];
    uint32_t count;
};

static void count_waiting(struct bpe_trainer *trainer, struct waiting *waiting)
{
    uint32_t mask = (uint32_t)(((uint64_t)1 << trainer->slot_bits) - 1);
    for (uint32_t i = 0; i < waiting->count; i++) {
        uint32_t piece = trainer->slots[(uint32_t)waiting->hash[i] & mask];
        if (piece != 0)
            __builtin_prefetch(&trainer->pieces[piece - 1]);
    }
    for (uint32_t i = 0; i < waiting->count; i++)
        count_piece(trainer, waiting->text[i], waiting->bytes[i], waiting->hash[i], 1);
    waiting->count = 0;
}

static void add_piece(struct bpe_trainer *trainer, struct waiting *waiting, const char *text,
                      uint32_t bytes)
{
    uint64_t hash = hash_bytes(text, bytes, 0);
    __builtin_prefetch(&trainer->slots[(uint32_t)hash & (((uint64_t)1 << trainer->slot_bits) - 1)]);
    waiting->text[waiting->count] = text;
    waiting->bytes[waiting->count] = bytes;
    waiting->hash[waiting->count++] = hash;
    if (waiting->count == PIECES_AHEAD)
        count_waiting(trainer, waiting);
}

void bpe_trainer_add(struct bpe_trainer *trainer, const char *text, size_t bytes)
{
    size_t start, piece_bytes;
    struct waiting waiting = {.count = 0};
    pretoken_begin(trainer->pretoken, text, bytes);
    while (pretoken_next(trainer->pretoken, &start, &piece_bytes))
        for (size_t done = 0; done < piece_bytes; done += PIECE_BYTES_MAX)
            add_piece(trainer, &waiting, text + start + done,
                      (uint32_t)MIN(piece_bytes - done, (size_t)PIECE_BYTES_MAX));
    count_waiting(trainer, &waiting);
}

void bpe_trainer_merge(struct bpe_trainer *into, const struct bpe_trainer *from)
{
    ASSERT(into != from && into->pattern == from->pattern);
    for (uint64_t i = 0; i < from->piece_count; i++) {
        const struct piece *piece = &from->pieces[i];
        const char *text = from->text + piece->start;
        count_piece(into, text, piece->bytes, hash_bytes(text, piece->bytes, 0), piece->count);
    }
}

uint64_t bpe_trainer_bytes(const struct bpe_trainer *trainer)
{
    return trainer->piece_capacity * sizeof(*trainer->pieces) + trainer->text_capacity +
           ((uint64_t)1 << trainer->slot_bits) * sizeof(*trainer->slots);
}

/* Arrays double, and slots are 2 to 4 for each piece. */
uint64_t bpe_trainer_least_bytes(const struct bpe_trainer *trainer)
{
    return trainer->piece_count * (sizeof(*trainer->pieces) + 2 * sizeof(*trainer->slots)) +
           trainer->text_bytes;
}

/* ---------------------------------------------------------------------------------------------
 * Words and pairs
 * ------------------------------------------------------------------------------------------- */

/* A piece as symbols; symbols[start, start + length). */
struct word {
    uint64_t start;
    uint64_t count;
    uint32_t length;
};

struct pair {
    uint32_t left, right;
    uint64_t count;
    uint32_t *words; /* owned; indices of words */
    uint32_t word_count, word_capacity;
    bool raised; /* is in learner.raised */
};

struct entry {
    uint64_t count;
    uint32_t left, right;
    uint32_t pair;
};

struct learner {
    struct bpe *bpe; /* borrowed: what is being learned */
    uint32_t *symbols;
    struct word *words;
    uint32_t word_count;
    struct pair *pairs;
    uint32_t pair_count, pair_capacity;
    uint32_t *slots; /* pair by (left, right); NO_PAIR is empty */
    uint32_t slot_bits;
    struct entry *heap;
    size_t heap_count, heap_capacity;
    uint32_t *raised; /* pairs whose count rose in the merge at hand */
    size_t raised_count, raised_capacity;
};

static void words_init(struct learner *learner, const struct bpe_trainer *trainer)
{
    learner->word_count = (uint32_t)trainer->piece_count;
    learner->words = mem_alloc(MAX(trainer->piece_count, (uint64_t)1), sizeof(*learner->words));
    learner->symbols = mem_alloc(MAX(trainer->text_bytes, (uint64_t)1), sizeof(*learner->symbols));
    for (uint64_t i = 0; i < trainer->text_bytes; i++)
        learner->symbols[i] = learner->bpe->byte_token[(uint8_t)trainer->text[i]];
    for (uint32_t i = 0; i < learner->word_count; i++) {
        const struct piece *piece = &trainer->pieces[i];
        learner->words[i] = (struct word){piece->start, piece->count, piece->bytes};
    }
}

static uint32_t *slot_of(const struct learner *learner, uint32_t left, uint32_t right)
{
    uint32_t mask = (1u << learner->slot_bits) - 1;
    uint32_t slot = bpe_table_pair_slot(bpe_table_pair(left, right), learner->slot_bits);
    while (learner->slots[slot] != NO_PAIR) {
        const struct pair *pair = &learner->pairs[learner->slots[slot]];
        if (pair->left == left && pair->right == right)
            break;
        slot = (slot + 1) & mask;
    }
    return &learner->slots[slot];
}

static void reset_slots(struct learner *learner, uint32_t slot_bits)
{
    mem_free(learner->slots);
    ASSERT(slot_bits < 32);
    learner->slot_bits = slot_bits;
    learner->slots = mem_alloc((uint64_t)1 << slot_bits, sizeof(*learner->slots));
    memset(learner->slots, 0xff, ((size_t)1 << slot_bits) * sizeof(*learner->slots));
    for (uint32_t i = 0; i < learner->pair_count; i++)
        *slot_of(learner, learner->pairs[i].left, learner->pairs[i].right) = i;
}

static uint32_t find_or_add_pair(struct learner *learner, uint32_t left, uint32_t right)
{
    uint32_t *slot = slot_of(learner, left, right);
    if (*slot != NO_PAIR)
        return *slot;
    if (learner->pair_count == learner->pair_capacity) {
        learner->pair_capacity = learner->pair_capacity == 0 ? 4096 : learner->pair_capacity * 2;
        learner->pairs =
            mem_realloc(learner->pairs, learner->pair_capacity, sizeof(*learner->pairs));
    }
    uint32_t index = learner->pair_count++;
    learner->pairs[index] = (struct pair){.left = left, .right = right};
    *slot = index;
    if (learner->pair_count > 1u << (learner->slot_bits - 1))
        reset_slots(learner, learner->slot_bits + 1);
    return index;
}

static void note_word(struct pair *pair, uint32_t word)
{
    if (pair->word_count > 0 && pair->words[pair->word_count - 1] == word)
        return;
    if (pair->word_count == pair->word_capacity) {
        pair->word_capacity = pair->word_capacity == 0 ? 4 : pair->word_capacity * 2;
        pair->words = mem_realloc(pair->words, pair->word_capacity, sizeof(*pair->words));
    }
    pair->words[pair->word_count++] = word;
}

static void raise_pair(struct learner *learner, uint32_t left, uint32_t right, uint32_t word)
{
    uint32_t index = find_or_add_pair(learner, left, right);
    struct pair *pair = &learner->pairs[index];
    pair->count += learner->words[word].count;
    note_word(pair, word);
    if (pair->raised)
        return;
    pair->raised = true;
    if (learner->raised_count == learner->raised_capacity) {
        learner->raised_capacity = MAX(learner->raised_capacity * 2, (size_t)1024);
        learner->raised =
            mem_realloc(learner->raised, learner->raised_capacity, sizeof(*learner->raised));
    }
    learner->raised[learner->raised_count++] = index;
}

static void lower_pair(struct learner *learner, uint32_t left, uint32_t right, uint64_t count)
{
    uint32_t index = *slot_of(learner, left, right);
    ASSERT(index != NO_PAIR && learner->pairs[index].count >= count);
    learner->pairs[index].count -= count;
}

/* ---------------------------------------------------------------------------------------------
 * The heap: count descending, then left and right ascending
 * ------------------------------------------------------------------------------------------- */

static bool before(const struct entry *a, const struct entry *b)
{
    if (a->count != b->count)
        return a->count > b->count;
    return a->left != b->left ? a->left < b->left : a->right < b->right;
}

static void heap_push(struct learner *learner, uint32_t pair)
{
    const struct pair *what = &learner->pairs[pair];
    if (what->count < COUNT_MIN)
        return;
    if (learner->heap_count == learner->heap_capacity) {
        learner->heap_capacity = MAX(learner->heap_capacity * 2, (size_t)4096);
        learner->heap = mem_realloc(learner->heap, learner->heap_capacity, sizeof(*learner->heap));
    }
    struct entry item = {what->count, what->left, what->right, pair};
    size_t at = learner->heap_count++;
    while (at > 0 && before(&item, &learner->heap[(at - 1) / 2])) {
        learner->heap[at] = learner->heap[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    learner->heap[at] = item;
}

static struct entry heap_pop(struct learner *learner)
{
    struct entry *heap = learner->heap;
    struct entry top = heap[0], last = heap[--learner->heap_count];
    size_t count = learner->heap_count, at = 0;
    for (size_t child = 1; child < count; child = 2 * at + 1) {
        if (child + 1 < count && before(&heap[child + 1], &heap[child]))
            child++;
        if (!before(&heap[child], &last))
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = last;
    return top;
}

static void push_raised(struct learner *learner)
{
    for (size_t i = 0; i < learner->raised_count; i++) {
        learner->pairs[learner->raised[i]].raised = false;
        heap_push(learner, learner->raised[i]);
    }
    learner->raised_count = 0;
}

/* The pair to merge next, or NO_PAIR. Each stale entry is replaced by a lower one or by none, so
 * this ends. */
static uint32_t best_pair(struct learner *learner)
{
    while (learner->heap_count > 0) {
        struct entry top = heap_pop(learner);
        if (learner->pairs[top.pair].count == top.count)
            return top.pair;
        if (learner->pairs[top.pair].count < top.count)
            heap_push(learner, top.pair);
    }
    return NO_PAIR;
}

/* ---------------------------------------------------------------------------------------------
 * Learning
 * ------------------------------------------------------------------------------------------- */

/* Replaces (left, right) by result in one word, from the left, keeping the counts of what stood
 * beside it (invariant 1); the merged pair's own comes to nothing when all its words are done. */
static void merge_in_word(struct learner *learner, uint32_t word, struct bpe_merge merge)
{
    uint64_t count = learner->words[word].count;
    uint32_t *symbols = learner->symbols + learner->words[word].start;
    uint32_t length = learner->words[word].length, kept = 0;
    for (uint32_t i = 0; i < length; i++) {
        if (i + 1 == length || symbols[i] != merge.left || symbols[i + 1] != merge.right) {
            symbols[kept++] = symbols[i];
            continue;
        }
        lower_pair(learner, merge.left, merge.right, count);
        if (kept > 0) {
            lower_pair(learner, symbols[kept - 1], merge.left, count);
            raise_pair(learner, symbols[kept - 1], merge.result, word);
        }
        if (i + 2 < length) {
            lower_pair(learner, merge.right, symbols[i + 2], count);
            raise_pair(learner, merge.result, symbols[i + 2], word);
        }
        symbols[kept++] = merge.result;
        i++;
    }
    learner->words[word].length = kept;
}

/* The words of a pair lie all over memory, and waiting for them would be half of what learning
 * takes: where a word is is asked for WORDS_AHEAD words before its turn, what it is half as many.
 * (Not by functions of their own: gcc takes those for doing nothing, and leaves them out.) */
static void merge_in_words(struct learner *learner, const uint32_t *words, uint32_t word_count,
                           struct bpe_merge merge)
{
    const uint32_t near = WORDS_AHEAD / 2;
    for (uint32_t i = 0; i < MIN(word_count, (uint32_t)WORDS_AHEAD); i++)
        __builtin_prefetch(&learner->words[words[i]]);
    for (uint32_t i = 0; i < MIN(word_count, near); i++)
        __builtin_prefetch(learner->symbols + learner->words[words[i]].start);
    for (uint32_t i = 0; i < word_count; i++) {
        if (i + WORDS_AHEAD < word_count)
            __builtin_prefetch(&learner->words[words[i + WORDS_AHEAD]]);
        if (i + near < word_count)
            __builtin_prefetch(learner->symbols + learner->words[words[i + near]].start);
        merge_in_word(learner, words[i], merge);
    }
}

static void apply_merge(struct learner *learner, uint32_t index, struct bpe_merge merge)
{
    /* Taken out of the pair, because raising others may move the array of pairs. */
    uint32_t *words = learner->pairs[index].words;
    uint32_t word_count = learner->pairs[index].word_count;
    learner->pairs[index].words = NULL;
    learner->pairs[index].word_count = learner->pairs[index].word_capacity = 0;
    merge_in_words(learner, words, word_count, merge);
    mem_free(words);
    push_raised(learner);
}

/* The token that the pair becomes: a new one, or the one of the same bytes that another pair has
 * made before ("a" "bc" after "ab" "c"). */
static uint32_t result_token(struct bpe *bpe, uint32_t left, uint32_t right)
{
    uint32_t left_bytes = bpe->tokens[left].bytes, right_bytes = bpe->tokens[right].bytes;
    char text[PIECE_BYTES_MAX];
    ASSERT(left_bytes + right_bytes <= sizeof(text));
    memcpy(text, bpe->text + bpe->tokens[left].start, left_bytes);
    memcpy(text + left_bytes, bpe->text + bpe->tokens[right].start, right_bytes);
    uint32_t known = bpe_table_find_token(bpe, text, left_bytes + right_bytes);
    return known != BPE_NO_TOKEN
               ? known
               : bpe_table_add_token(bpe, text, left_bytes + right_bytes, BPE_TOKEN_MODEL);
}

static void learn(struct learner *learner, uint32_t vocab_size)
{
    for (uint32_t word = 0; word < learner->word_count; word++) {
        const uint32_t *symbols = learner->symbols + learner->words[word].start;
        for (uint32_t i = 0; i + 1 < learner->words[word].length; i++)
            raise_pair(learner, symbols[i], symbols[i + 1], word);
    }
    push_raised(learner);
    while (learner->bpe->vocab_size < vocab_size) {
        uint32_t index = best_pair(learner);
        if (index == NO_PAIR)
            break;
        struct bpe_merge merge = {.left = learner->pairs[index].left,
                                  .right = learner->pairs[index].right};
        merge.result = result_token(learner->bpe, merge.left, merge.right);
        bpe_table_add_merge(learner->bpe, merge);
        apply_merge(learner, index, merge);
    }
}

static void learner_deinit(struct learner *learner)
{
    for (uint32_t i = 0; i < learner->pair_count; i++)
        mem_free(learner->pairs[i].words);
    mem_free(learner->pairs);
    mem_free(learner->slots);
    mem_free(learner->symbols);
    mem_free(learner->words);
    mem_free(learner->heap);
    mem_free(learner->raised);
}

/* End-of-text and the 256 bytes, before any merge. */
static struct bpe *first_tokens(enum pretoken_kind pattern)
{
    struct bpe *bpe = bpe_table_new();
    bpe->pattern = pattern;
    uint8_t order[256];
    bpe_table_byte_order(order);
    bpe_table_add_token(bpe, BPE_END_OF_TEXT, strlen(BPE_END_OF_TEXT),
                        BPE_TOKEN_ADDED | BPE_TOKEN_SPECIAL | BPE_TOKEN_RAW);
    for (uint32_t i = 0; i < 256; i++)
        bpe_table_add_token(bpe, (const char *)&order[i], 1, BPE_TOKEN_MODEL);
    uint32_t missing = bpe_table_finish(bpe);
    ASSERT(missing == 256);
    return bpe;
}

int bpe_train(struct bpe **bpe, struct bpe_trainer *trainer, uint32_t vocab_size, struct err *err)
{
    *bpe = NULL;
    if (vocab_size < BPE_TRAIN_VOCAB_MIN || vocab_size > BPE_TRAIN_VOCAB_MAX)
        return err_set(err, ERR_USAGE,
                       "a vocabulary of %u cannot be trained: the 256 bytes and the end-of-text "
                       "token need %d, and %d is the most",
                       vocab_size, BPE_TRAIN_VOCAB_MIN, BPE_TRAIN_VOCAB_MAX);
    struct learner learner = {.bpe = first_tokens(trainer->pattern)};
    reset_slots(&learner, SLOT_BITS_FIRST);
    words_init(&learner, trainer);
    learn(&learner, vocab_size);
    learner_deinit(&learner);
    uint32_t missing = bpe_table_finish(learner.bpe);
    ASSERT(missing == 256);
    *bpe = learner.bpe;
    return 0;
}
