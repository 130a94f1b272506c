/*
 * batch: (seed, step) -> tokens, without any state.
 *
 * The corpus is cut into windows of seq + 1 tokens, seq apart, at an offset drawn per epoch; each
 * epoch visits every window once in an order given by a counter-based permutation (a Feistel
 * network with cycle walking, Black and Rogaway 2002, keyed by seed and epoch). Sequence number n
 * of the run (= step * sequences_per_step + i) is therefore a pure function, and resuming needs
 * only the step. Windows may run across documents, whose ends the end-of-text token marks; or,
 * after batch_init_within, each document is cut by itself: as many windows as it holds, at an
 * offset of its own that is drawn per epoch, so that its rest is another one each time. A document
 * of seq tokens or less holds none. Since the future is known, a step's tokens are fetched while
 * the one before computes. Called by train and eval.
 */
#ifndef SPILLWAY_IO_BATCH_H
#define SPILLWAY_IO_BATCH_H

#include "core/err.h"
#include "io/shard.h"
#include <stdbool.h>
#include <stdint.h>

struct batch_source {
    const struct shard *shard; /* borrowed */
    uint64_t seed;
    uint32_t seq;          /* T: tokens per sequence */
    uint64_t window_count; /* sequences in an epoch */
    /* Set by the caller where the shard does not fit beside what else is in memory: what has been
     * read leaves the page cache, as the rest of the epoch has no use for it. */
    bool forgets;
    /* Owned; NULL: across documents. Windows in the documents before each BATCH_STRIDE-th, and in
     * all. */
    uint64_t *firsts;
};

#define BATCH_SEQ_MAX 65536
#define BATCH_STRIDE  256

/* 0 < seq <= BATCH_SEQ_MAX. Refuses a shard with fewer than seq + 1 tokens, saying how many it
 * has. */
int batch_init(struct batch_source *source, const struct shard *shard, uint64_t seed, uint32_t seq,
               struct err *err);
/* The same within documents; reads the shard's document index. Refuses a shard without a document
 * of seq + 1 tokens. */
int batch_init_within(struct batch_source *source, const struct shard *shard, uint64_t seed,
                      uint32_t seq, struct err *err);
void batch_deinit(struct batch_source *source); /* a zeroed one is legal */

/* Sequence number `sequence` of the run: inputs[0..seq) and targets[0..seq), targets being the
 * inputs moved by one token. Allocates nothing. Any thread. */
void batch_sequence(const struct batch_source *source, uint64_t sequence, uint32_t *inputs,
                    uint32_t *targets);

/* Asks for the tokens of sequences [first, first + count) without waiting, so that batch_sequence
 * does not wait for the drive when their step comes. Allocates nothing. Any thread. */
void batch_fetch(const struct batch_source *source, uint64_t first, uint64_t count);

#endif
