/*
 * matmul: products of small dense matrices on one thread, by gemm.h where this CPU runs that, else
 * by oneDNN (the only file that includes it; versions 2.x and 3.x). oneDNN's own limit on
 * instructions, ONEDNN_MAX_CPU_ISA in the environment, holds for both.
 *
 * A product's shape is declared before use; matmul_run then computes it as often as wanted, on any
 * worker at a time. Every call runs on the calling thread alone, so that the order of the sums
 * follows from the declared shape and never from how many threads there are; splitting work over
 * threads is the caller's business. In bf16 both factors are bf16 and the sum is float.
 * Refuses nothing but an oneDNN that cannot be started. Where oneDNN has no bf16 product (a CPU
 * without AVX-512), the factors are widened to float first: slower, the same result but for the
 * order of the sums.
 * oneDNN allocates by itself during a call (a few hundred KiB, freed again): matmul_run brackets it
 * with mem_library_enter and mem_library_leave.
 */
#ifndef SPILLWAY_MODEL_CPU_MATMUL_H
#define SPILLWAY_MODEL_CPU_MATMUL_H

#include "core/err.h"
#include "model/config.h"
#include <stdbool.h>
#include <stdint.h>

struct matmul;

/* What of a square product matters: gemm.h leaves the rest out, the library does not. */
enum matmul_part {
    MATMUL_WHOLE,
    MATMUL_C_LOWER, /* of c nothing above the diagonal is wanted: it may be left as it was */
    MATMUL_A_LOWER, /* op(a) is zero above its diagonal */
    MATMUL_A_UPPER, /* op(a) is zero below its diagonal */
};

/* c[m, n] = op(a)[m, k] op(b)[k, n], or c += when accumulate is set. c is float and not transposed.
 * A transposed factor is stored [k, m] or [n, k]; row strides are in elements. */
struct matmul_product {
    uint32_t m, n, k; /* all > 0 */
    uint32_t a_stride, b_stride, c_stride;
    bool a_transposed, b_transposed;
    bool accumulate;
    enum precision precision; /* of a and b */
    enum matmul_part part;
};

int matmul_open(struct matmul **matmul, uint32_t worker_count, struct err *err);
void matmul_close(struct matmul *matmul); /* NULL is legal */

/* Never gemm in this one's own products (product.c and head.c do not ask): before the first
 * declaration, for tests and benchmarks of the library. */
void matmul_use_library(struct matmul *matmul);

/* The product's number; the same for an equal product. At most MATMUL_PRODUCTS_MAX kinds. Fatal
 * when oneDNN refuses it, which it does for no shape that it documents. One thread, before
 * matmul_ready. */
#define MATMUL_PRODUCTS_MAX 1024
uint32_t matmul_declare(struct matmul *matmul, const struct matmul_product *product);

/* After the last declaration: memory that workers need is allocated here. */
void matmul_ready(struct matmul *matmul);

/* worker in 0..worker_count-1; no two calls with the same worker at a time. c may not overlap. */
void matmul_run(struct matmul *matmul, uint32_t product, uint32_t worker, const void *a,
                const void *b, float *c);

/* The factor b of a product, ready for any number of a: packed, where products are. memory:
 * matmul_panel_bytes of it, 64-byte aligned, its owner's until the panel is used no more. */
struct matmul_panel {
    const void *b;
    void *packed; /* NULL: not packed */
};
uint64_t matmul_panel_bytes(const struct matmul *matmul, uint32_t product);
struct matmul_panel matmul_prepare(const struct matmul *matmul, uint32_t product, const void *b,
                                   void *memory);
/* As matmul_run with the panel's b. product may differ from what the panel was prepared for in m, a
 * and c alone. */
void matmul_apply(struct matmul *matmul, uint32_t product, uint32_t worker, const void *a,
                  const struct matmul_panel *panel, float *c);

/* Runs every product once on zeros, so that the library's code and packing buffers are in memory
 * before memory is counted. Not while another call has the same worker. */
void matmul_warm(struct matmul *matmul, uint32_t worker);

/* Whether products of this precision are gemm.h's. */
bool matmul_is_packed(enum precision precision);

/* Whether bf16 products run on bf16 instructions of this CPU. */
bool matmul_has_bf16(void);

/* "oneDNN 2.6.3" */
const char *matmul_library(void);

#endif
