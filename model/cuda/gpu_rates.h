/*
 * gpu_rates: what one card reaches: its link, its memory, large products, and the kernels of a
 * training step at a class of width and rows; for a machine's profile (tools/bench_card.c) and as
 * the limits that benchmarks of kernels stand beside (benchmarks/cuda).
 *
 * Everything is measured as the trainer uses it: pinned memory, copies and kernels queued on
 * streams, values that are not zero (a card is faster on zeros). A figure is the best of
 * GPU_RATES_SAMPLES queues, each as long as GPU_RATES_SPAN_S or one call; sizes grow until a call
 * takes GPU_RATES_CALL_S, so that a slow device is not kept busy for hours. Functions take and free
 * the card's memory themselves, wait for the card, and return 0, or a negative code with the call
 * that failed: ERR_INPUT where the card has too little memory free. One at a time. No type of CUDA
 * is in this header.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_RATES_H
#define SPILLWAY_MODEL_CUDA_GPU_RATES_H

#include "core/err.h"
#include <stdbool.h>
#include <stdint.h>

#define GPU_RATES_SAMPLES 3
#define GPU_RATES_SPAN_S  20e-3
#define GPU_RATES_CALL_S  2e-3

/* Bytes per second between pinned RAM and the card: each direction alone, and both at once; and
 * seconds from handing over a small copy to its end. */
struct gpu_rates_link {
    double h2d_bytes_per_s, d2h_bytes_per_s, h2d_both_bytes_per_s, d2h_both_bytes_per_s;
    double latency_s;
};

struct gpu_rates_memory {
    double copy_bytes_per_s;   /* a copy within the card: bytes read and written added up */
    double stream_bytes_per_s; /* the gradient's store: the same, by one of our kernels */
    double launch_s;           /* between two small kernels in a queue */
};

/* Kernels of GPT-2 on a micro-batch. tile_rows: of the vocabulary's words in one tile. */
struct gpu_rates_class {
    bool bf16;
    uint32_t batch, seq, channels, heads, tile_rows;
};

/* FLOPs per second, counted as offload/cost.c does: a block's products 24 C C a row forward and
 * twice that backward, attention 2 C T and 4 C T (causal), the head 2 C and 6 C a row and word. */
struct gpu_rates_kernels {
    double block_forward, block_backward; /* without attention */
    double attention_forward, attention_backward;
    double head_forward, head_backward;
};

struct gpu_rates_table {
    int (*use)(uint32_t number, struct err *err); /* the card that the others measure */
    int (*link)(struct gpu_rates_link *link, struct err *err);
    int (*memory)(struct gpu_rates_memory *memory, struct err *err);
    /* FLOPs per second of one large square product. */
    int (*product)(bool bf16, double *flops_per_s, struct err *err);
    int (*kernels)(const struct gpu_rates_class *class, struct gpu_rates_kernels *kernels,
                   struct err *err);
};
extern const struct gpu_rates_table gpu_rates_table;

/* Seconds that one of many queued calls takes. run enqueues one on the stream that wait waits for;
 * the first call is not counted. */
struct gpu_rates_work {
    int (*run)(void *context, struct err *err);
    void *context;
    int (*wait)(void *waiting, struct err *err);
    void *waiting;
};
int gpu_rates_time(const struct gpu_rates_work *work, double *seconds, struct err *err);

#endif
