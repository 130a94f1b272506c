/*
 * gemm: products of matrices on one thread by kernels of our own, for x86-64 with AVX-512 (and
 * AVX512_BF16 for bf16). Called by matmul, for one product, and by product and head, which pack a
 * panel of columns once for many rows.
 *
 * c[m, n] (+)= op(a)[m, k] op(b)[k, n] as struct matmul_product has it. Every element of c is one
 * sum over k in order, whatever m, n and the panel are: a product that is cut up along m and n has
 * the same bits as a whole one. In bf16 two neighbours along k are one step (VDPBF16PS).
 *
 * Blocking as in Goto and van de Geijn 2008 ("Anatomy of high-performance matrix multiplication"),
 * but for k, which is not cut: a panel of packed b stays in the second cache, and 8 rows of a, read
 * where they are, meet 48 of its columns at a time in registers.
 * Nothing is allocated; any thread, with memory of its own.
 */
#ifndef SPILLWAY_MODEL_CPU_GEMM_H
#define SPILLWAY_MODEL_CPU_GEMM_H

#include "model/cpu/matmul.h"

/* Columns of a panel are best a multiple of this, or all. */
#define GEMM_STRIP_COLUMNS 48u

/* Whether this CPU runs it. */
bool gemm_has(enum precision precision);

/* The factor b of a product, packed, and what rows of a need. */
struct gemm {
    const struct matmul_product *product; /* borrowed: all but m, c_stride and accumulate */
    uint32_t *b, *scratch; /* borrowed; 64-byte aligned; scratch is NULL where it has 0 bytes */
};

uint64_t gemm_panel_bytes(uint32_t n, uint32_t k, enum precision precision);
/* Of a product that is cut along k, into blocks of k; 0 where rows of a are read as they are. */
uint64_t gemm_scratch_bytes(const struct matmul_product *product, uint32_t k);

/* panel: gemm_panel_bytes. */
void gemm_pack(const struct matmul_product *product, const void *b, void *panel);

/* The first `rows` rows of op(a) times the panel: all of them, if a part of the product matters. */
void gemm_rows(const struct gemm *gemm, const void *a, uint32_t rows, float *c, uint32_t c_stride,
               bool accumulate);

#endif
