#include "io/batch.h"
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include <string.h>

/* Four rounds make a Feistel network a good permutation (Luby and Rackoff 1988); small domains
 * profit from a few more, and a sequence costs one evaluation. */
#define FEISTEL_ROUNDS 8

int batch_init(struct batch_source *source, const struct shard *shard, uint64_t seed, uint32_t seq,
               struct err *err)
{
    ASSERT(seq > 0 && seq <= BATCH_SEQ_MAX);
    if (shard->token_count < (uint64_t)seq + 1)
        return err_set(err, ERR_INPUT,
                       "%s has %llu tokens, and one sequence needs %llu (--seq %u and one more): "
                       "prepare more text, or take a shorter --seq",
                       shard->path != NULL ? shard->path : "the data",
                       (unsigned long long)shard->token_count, (unsigned long long)seq + 1, seq);
    source->shard = shard;
    source->seed = seed;
    source->forgets = false;
    source->firsts = NULL;
    source->seq = seq;
    source->window_count = MAX((shard->token_count - seq) / seq, (uint64_t)1);
    return 0;
}

/* The greatest offset at which window_count windows fit; seq - 1 in all but the smallest corpora,
 * which is why window_count leaves up to one window unused. */
static uint64_t offset_max(const struct batch_source *source)
{
    uint64_t slack = source->shard->token_count - 1 - source->window_count * source->seq;
    return MIN(slack, (uint64_t)source->seq - 1);
}

/* One evaluation of the network over [0, 4^half_bits): a bijection whatever the round function. */
static uint64_t feistel(uint64_t value, uint32_t half_bits, uint64_t key)
{
    uint64_t mask = ((uint64_t)1 << half_bits) - 1;
    uint64_t left = value >> half_bits, right = value & mask;
    for (uint64_t round = 0; round < FEISTEL_ROUNDS; round++) {
        uint64_t mixed = rng_u64(key, RNG_STREAM_BATCH, round << 32 | right) & mask;
        uint64_t next = left ^ mixed;
        left = right;
        right = next;
    }
    return left << half_bits | right;
}

/* The index-th element of a permutation of [0, count). Walking the cycle comes back into the range
 * because index itself is on it; the domain is less than 4 * count (or 4), so it takes less than
 * four evaluations on average. */
static uint64_t permute(uint64_t index, uint64_t count, uint64_t key)
{
    ASSERT(index < count && count < (uint64_t)1 << 62);
    uint32_t half_bits = 1;
    while (((uint64_t)1 << (2 * half_bits)) < count)
        half_bits++;
    uint64_t domain = (uint64_t)1 << (2 * half_bits);
    for (uint64_t steps = 0; steps < domain; steps++) {
        index = feistel(index, half_bits, key);
        if (index < count)
            return index;
    }
    ASSERT(!"a permutation's cycle left its domain");
    return 0;
}

/* ---------------------------------------------------------------------------------------------
 * Within documents
 * ------------------------------------------------------------------------------------------- */

static uint64_t document_length(const struct shard *shard, uint64_t document)
{
    uint64_t end =
        document + 1 < shard->document_count ? shard->documents[document + 1] : shard->token_count;
    return end - shard->documents[document];
}

static uint64_t windows_of(const struct batch_source *source, uint64_t document)
{
    return (document_length(source->shard, document) - 1) / source->seq;
}

int batch_init_within(struct batch_source *source, const struct shard *shard, uint64_t seed,
                      uint32_t seq, struct err *err)
{
    ASSERT(seq > 0 && seq <= BATCH_SEQ_MAX);
    *source = (struct batch_source){.shard = shard, .seed = seed, .seq = seq};
    uint64_t strides = div_up(shard->document_count, BATCH_STRIDE);
    source->firsts = mem_alloc(strides + 1, sizeof(*source->firsts));
    for (uint64_t document = 0; document < shard->document_count; document++) {
        if (document % BATCH_STRIDE == 0)
            source->firsts[document / BATCH_STRIDE] = source->window_count;
        source->window_count += windows_of(source, document);
    }
    source->firsts[strides] = source->window_count;
    if (source->window_count > 0)
        return 0;
    batch_deinit(source);
    return err_set(err, ERR_INPUT,
                   "no document of %s has the %llu tokens that a sequence needs (--seq %u and one "
                   "more): take a shorter --seq, or --pack across",
                   shard->path != NULL ? shard->path : "the data", (unsigned long long)seq + 1,
                   seq);
}

void batch_deinit(struct batch_source *source)
{
    mem_free(source->firsts);
    *source = (struct batch_source){0};
}

/* The last stride of documents before which there are no more windows than this. */
static uint64_t find_stride(const struct batch_source *source, uint64_t window)
{
    uint64_t low = 0, high = div_up(source->shard->document_count, BATCH_STRIDE);
    while (high - low > 1) {
        uint64_t middle = low + (high - low) / 2;
        if (source->firsts[middle] <= window)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static uint64_t start_within(const struct batch_source *source, uint64_t window, uint64_t key)
{
    const struct shard *shard = source->shard;
    uint64_t stride = find_stride(source, window), document = stride * BATCH_STRIDE;
    uint64_t left = window - source->firsts[stride];
    for (; left >= windows_of(source, document); document++)
        left -= windows_of(source, document);
    ASSERT(document < shard->document_count);
    uint64_t rest =
        document_length(shard, document) - 1 - windows_of(source, document) * source->seq;
    /* Far from the network's indices, and from the offset of windows across documents. */
    uint64_t offset = rng_below(key, RNG_STREAM_BATCH, UINT64_MAX - 1 - document, rest + 1);
    return shard->documents[document] + offset + left * source->seq;
}

/* ---------------------------------------------------------------------------------------------
 * Sequences
 * ------------------------------------------------------------------------------------------- */

/* The first token of a sequence. */
static uint64_t sequence_start(const struct batch_source *source, uint64_t sequence)
{
    uint64_t epoch = sequence / source->window_count;
    uint64_t key = rng_u64(source->seed, RNG_STREAM_BATCH, epoch);
    uint64_t window = permute(sequence % source->window_count, source->window_count, key);
    if (source->firsts != NULL)
        return start_within(source, window, key);
    /* The network's indices stay below FEISTEL_ROUNDS << 32: this one is another number. */
    uint64_t offset = rng_below(key, RNG_STREAM_BATCH, UINT64_MAX, offset_max(source) + 1);

    uint64_t start = offset + window * source->seq;
    ASSERT(start + source->seq + 1 <= source->shard->token_count);
    return start;
}

void batch_sequence(const struct batch_source *source, uint64_t sequence, uint32_t *inputs,
                    uint32_t *targets)
{
    uint64_t start = sequence_start(source, sequence);
    shard_read(source->shard, start, inputs, source->seq);
    memcpy(targets, inputs + 1, (source->seq - 1) * sizeof(*targets));
    shard_read(source->shard, start + source->seq, targets + source->seq - 1, 1);
    if (source->forgets)
        shard_forget(source->shard, start, (uint64_t)source->seq + 1);
}

void batch_fetch(const struct batch_source *source, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        shard_fetch(source->shard, sequence_start(source, first + i), (uint64_t)source->seq + 1);
}
