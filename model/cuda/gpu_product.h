/*
 * gpu_product: matrix products on a GPU, by cuBLASLt. Owns its handle, descriptors and the choice
 * of algorithm for each product, made once by its heuristic: measuring would choose differently
 * from run to run, and so give other bits. Sums that are split are added up in FP32, in order.
 *
 * The one file that includes cublasLt.h.
 */
#ifndef SPILLWAY_MODEL_CUDA_GPU_PRODUCT_H
#define SPILLWAY_MODEL_CUDA_GPU_PRODUCT_H

#include "core/err.h"
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

/* What cuBLASLt may use at most, in device memory, for all products of one stream. */
#define GPU_PRODUCT_WORKSPACE ((uint64_t)32 << 20)

struct gpu_products;

/* workspace: GPU_PRODUCT_WORKSPACE bytes of device memory, borrowed until closing. */
int gpu_products_open(struct gpu_products **products, void *workspace, struct err *err);
void gpu_products_close(struct gpu_products *products); /* NULL is legal */

/* C[m, n] = op(A)[m, k] op(B)[k, n] (+ bias), row-major. A transposed factor is stored the other
 * way round. Strides are elements from row to row, of 16 bytes or a multiple, as arrays are
 * aligned. */
struct gpu_product_shape {
    uint32_t m, n, k;
    uint32_t a_stride, b_stride, c_stride;
    bool a_transposed, b_transposed;
    bool bf16;   /* of A and B, and of C unless: */
    bool widens; /* C is float */
    bool biased; /* bias[n], of C's element, is added to every row */
};

struct gpu_product; /* a prepared one */

/* The product lives as long as products. Refuses what the heuristic finds nothing for. */
int gpu_product_prepare(struct gpu_products *products, struct gpu_product **product,
                        const struct gpu_product_shape *shape, struct err *err);

struct gpu_product_run {
    const struct gpu_product *product;
    const void *a, *b, *bias;
    void *c;
    bool accumulate; /* C += instead of C = */
};
/* 0, or a status of cuBLASLt, whose name gpu_product_status_name tells. */
int gpu_product_run(struct gpu_products *products, const struct gpu_product_run *run,
                    cudaStream_t stream);
const char *gpu_product_status_name(int status);

#endif
