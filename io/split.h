/*
 * split: which documents of a text go to train and which to val, from what one pass over it has
 * told. A document goes to val where the hash of its first piece is under the fraction asked for,
 * so that equal documents fall on the same side, whatever their order. The least and the greatest
 * hash are kept apart, so that both sides get at least one document. A single document, or many
 * that all begin alike, is cut in two instead, at tail_start.
 *
 * Pure; owns nothing.
 */
#ifndef SPILLWAY_IO_SPLIT_H
#define SPILLWAY_IO_SPLIT_H

#include <stdint.h>

enum split_side { SPLIT_TRAIN, SPLIT_VAL, SPLIT_SIDE_COUNT };

/* Zeroed before the pass. */
struct split {
    uint64_t documents;
    uint64_t text_bytes;         /* of all documents: the caller counts them */
    uint64_t hash_min, hash_max; /* of the documents */
    uint64_t val_below;          /* a document whose hash is less goes to val */
    uint64_t tail_start;         /* text byte where val begins; UINT64_MAX: documents stay whole */
};

/* One more document; hash is of its first piece. */
void split_notice(struct split *split, uint64_t hash);

/* After the pass; val_fraction is 0 to 0.5. */
void split_decide(struct split *split, double val_fraction);

/* Of a whole document, where documents stay whole. */
static inline enum split_side split_side_of(const struct split *split, uint64_t hash)
{
    return hash < split->val_below ? SPLIT_VAL : SPLIT_TRAIN;
}

#endif
