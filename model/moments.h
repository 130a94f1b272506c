/*
 * moments: AdamW's two moments in fewer bytes than FP32 has. Owns how a plane of moments is stored
 * and read: FP32 as it is, bf16 with stochastic rounding, or 8 bits with a scale for every block.
 *
 * Moments are stored in blocks of MOMENTS_BLOCK parameters. An update loads a block as FP32,
 * computes with that (model/optim.h) and stores it again, so the mathematics of AdamW is the same
 * for all kinds; only what a step keeps for the next is rounded.
 *
 * bf16: the upper half of the FP32 bits, rounded up with the probability that the lower half says
 * (stochastic rounding: Gupta et al. 2015, "Deep learning with limited numerical precision",
 * section 3.1). To the nearest would not do: a step changes v by (1 - beta2) of a difference, and
 * what is less than half a step of bf16, 0.2 to 0.4 %, would be lost every time; so it is on
 * average not. The random bits are a function of (seed, step, parameter, which moment) and of
 * nothing else (core/rng.h).
 *
 * 8 bits: dynamic tree quantisation in blocks (Dettmers et al. 2022, "8-bit optimizers via
 * block-wise quantization", sections 1.3, 2.1 and 2.2): value = scale * map[code], scale the
 * largest magnitude of the block; the map is signed for m and unsigned for v, from 1e-7 to 1 in
 * decades of which each has twice as many entries as the one below. To the nearest: nothing in it
 * is random. Two things are not as there. Blocks are of 256 parameters and not of 2,048, so that an
 * outlier spoils fewer neighbours; and a v that is not zero never becomes zero: an update divides
 * by its root, and beside an m that is still there it would be of no bounded size.
 *
 * Refuses moments that are not finite. Pure functions, any thread.
 */
#ifndef SPILLWAY_MODEL_MOMENTS_H
#define SPILLWAY_MODEL_MOMENTS_H

#include "core/base.h"
#include <stdbool.h>
#include <stdint.h>

enum moments_kind { MOMENTS_FP32, MOMENTS_BF16, MOMENTS_8BIT, MOMENTS_KIND_COUNT };
extern const char *const moments_name[MOMENTS_KIND_COUNT]; /* "fp32", "bf16", "8bit" */

/* The kind of that name, or MOMENTS_KIND_COUNT. */
enum moments_kind moments_find(const char *name);

#define MOMENTS_BLOCK ((uint64_t)256) /* parameters */

/* A block of one moment in 8 bits. Code 0 is zero: bytes that are all zero are moments of zero, in
 * every kind. */
struct moments_8bit {
    float scale;
    uint8_t code[MOMENTS_BLOCK];
};

/* Bytes of one moment of a block, as stored. */
static inline uint64_t moments_block_bytes(enum moments_kind kind)
{
    static const uint64_t bytes[MOMENTS_KIND_COUNT] = {MOMENTS_BLOCK * 4, MOMENTS_BLOCK * 2,
                                                       sizeof(struct moments_8bit)};
    return bytes[kind];
}

/* Bytes of one moment of `count` parameters without padding: of the last block, what they take. */
static inline uint64_t moments_bytes(enum moments_kind kind, uint64_t count)
{
    if (kind == MOMENTS_8BIT)
        return count + div_up(count, MOMENTS_BLOCK) * sizeof(float);
    return count * (kind == MOMENTS_FP32 ? 4 : 2);
}

/* From the magnitude of a scaled value, 0 to 1, to the number of the nearest entry of the map. */
#define MOMENTS_KEYS 3073
struct moments_map {
    float value[256];             /* by code */
    float middle[256];            /* between entries i and i + 1: from there on it is i + 1 */
    uint32_t start[MOMENTS_KEYS]; /* by the upper half of the bits: the entry to compare with */
};

struct moments {
    enum moments_kind kind;
    uint64_t seed; /* of the run */
    struct moments_map m, v;
};
void moments_init(struct moments *moments, enum moments_kind kind, uint64_t seed);

struct moments_values {
    float m[MOMENTS_BLOCK], v[MOMENTS_BLOCK];
};

/* What was stored at m and v, each one block. */
void moments_load(const struct moments *moments, struct moments_values *values, const void *m,
                  const void *v);

/* Where a block belongs: step counts from 0, below 2^32; first is the canonical number of its first
 * parameter, a multiple of MOMENTS_BLOCK. */
struct moments_place {
    uint64_t step, first;
};
/* Stores a block. False when a value is not finite, or not after rounding; what is stored is then
 * of no use. */
bool moments_store(const struct moments *moments, const struct moments_values *values, void *m,
                   void *v, const struct moments_place *place);

#endif
