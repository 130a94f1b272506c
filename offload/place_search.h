/*
 * place_search: the choice of knobs with the least predicted step time within the budgets. Called
 * by place_choose.
 *
 * Candidates are spendings of the budgets (place_spend) with some knobs held back: recomputation
 * may be better than fetching, gradients may better go to the drive than state. Each is simulated
 * at layer level (coarse.h). The search goes from a few starts downhill, one limit at a time, in
 * steps that get smaller; it keeps the best of all it has seen, never looks at a clock and draws no
 * random numbers, so it gives the same placement for the same spec. Of choices that take the same
 * time, the one that moves less over the drive wins.
 */
#ifndef SPILLWAY_OFFLOAD_PLACE_SEARCH_H
#define SPILLWAY_OFFLOAD_PLACE_SEARCH_H

#include "offload/place.h"

/* place has been place_init'ed and has a profile. choice: in: one that fits; out: the best. Sets
 * place->predicted_s. */
void place_search(struct place *place, const struct place_limits *limits,
                  struct place_choice *choice);

#endif
