/*
 * place_search: the choice of knobs with the least predicted step time within the budgets. Called
 * by place_choose.
 *
 * Candidates are spendings of the budgets (place_spend) with some knobs held back: recomputation
 * may be better than fetching, gradients may better go to the drive than state. Each is simulated
 * at layer level (coarse.h). The search goes from a few starts and from samples downhill, one limit
 * at a time, in steps that get smaller; at last it trades a part of one knob for a part of another.
 * It keeps the best of all it has seen, never looks at a clock and draws its samples from a fixed
 * seed, so it gives the same placement for the same spec. Of choices that take the same
 * time, the one that moves less over the drive wins; and where RAM is the device's memory and holds
 * everything, copies (weights held beside the state, rings) are given up as long as a step is no
 * more than two percent longer without them.
 */
#ifndef SPILLWAY_OFFLOAD_PLACE_SEARCH_H
#define SPILLWAY_OFFLOAD_PLACE_SEARCH_H

#include "offload/place.h"

/* Simulations at most, of which most models need less than 400: what is tried last, trades, is what
 * it cuts off; 20 are kept for how much is streamed. */
#define PLACE_SEARCH_EVALUATIONS_MAX 620

/* place has been place_init'ed and has a profile. choice: in: one that fits; out: the best of those
 * that write no more than most_per_day bytes (INFINITY: no limit), or, where none of them was
 * found, the one that writes least. Sets place->predicted_s and place->evaluations. Returns what
 * the choice writes a day, at layer level. */
double place_search(struct place *place, const struct place_limits *limits, double most_per_day,
                    struct place_choice *choice);

/* The same for place->spec.write_budget, which the choice keeps at chunk level too; else ERR_INPUT,
 * with the least that was found as the flag that works. A drive that is too small for the choice is
 * left to the caller to refuse. */
int place_search_writes(struct place *place, const struct place_limits *limits,
                        struct place_choice *choice, struct err *err);

#endif
