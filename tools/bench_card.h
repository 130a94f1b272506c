/*
 * bench_card: what bench measures of a CUDA device, through the plugin (offload/gpu.h): its link
 * for `bench pcie`, its memory and kernels for `bench compute`; into profile.card, which begins
 * from what is known of a card of that name. Only tools/bench.c and the test call it.
 */
#ifndef SPILLWAY_TOOLS_BENCH_CARD_H
#define SPILLWAY_TOOLS_BENCH_CARD_H

#include "tools/bench.h"

struct gpu_rates_class;

/* Link: both directions, alone and at once. */
int bench_card_link(struct bench *bench, struct err *err);
/* Memory, large products, and the kernels of every class, smallest first, as long as there is time;
 * the first of each precision is measured in any case. classes NULL: those of GPT-2's sizes. What a
 * card has no memory for is left out, and said. */
int bench_card_compute(struct bench *bench, const struct gpu_rates_class *classes, size_t count,
                       struct err *err);

#endif
