/*
 * cuda_device: the inside of struct kernels_cuda, shared by the files that implement it:
 * kernels_cuda (opening, and what is one kernel), cuda_block, cuda_head.
 *
 * Invariants:
 * 1. Shapes of products and pieces follow from struct kernels_shape alone.
 * 2. After the first failure nothing more is enqueued, and that failure is what all calls return.
 */
#ifndef SPILLWAY_MODEL_CUDA_CUDA_DEVICE_H
#define SPILLWAY_MODEL_CUDA_CUDA_DEVICE_H

#include "core/base.h"
#include "model/cuda/gpu_product.h"
#include "model/cuda/kernels_cuda.h"

/* Rows of logits that are in memory at once. */
#define HEAD_ROWS 2048u

/* Logits' rows are this many elements apart, or a multiple: products want 16 bytes. */
#define HEAD_STRIDE 32u

#define DEVICE_ALIGN 256u

enum block_linear { LINEAR_QKV, LINEAR_PROJ, LINEAR_FC, LINEAR_OUT, LINEAR_COUNT };

/* y = x W + b with W [in, out]: forward, the input's gradient dy W^T, the weight's x^T dy. */
struct linear {
    struct gpu_product *forward, *input, *weight; /* borrowed from products */
};

/* [last piece of rows][last tile of the vocabulary]; NULL where there is no such piece. */
struct head_products {
    struct gpu_product *logits[2][2], *dy[2][2], *gradient[2][2];
};

struct tensor_span {
    uint64_t offset, count;
};

struct kernels_cuda {
    struct kernels_shape shape;
    uint32_t row_count; /* R */
    bool bf16;
    cudaStream_t stream; /* borrowed */
    void *workspace;     /* borrowed; one call's after the other, as the stream has them */
    struct gpu_products *products; /* owned */
    struct linear linears[LINEAR_COUNT];
    struct head_products head;
    struct tensor_span block[BLOCK_TENSOR_COUNT], final[2];
    uint64_t block_count, final_count; /* parameters of the groups' vectors */
    bool failed;
    struct err failure;
};

int cuda_block_open(struct kernels_cuda *k, struct err *err);
void cuda_block_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes);
int cuda_head_open(struct kernels_cuda *k, struct err *err);
uint64_t cuda_head_scratch_bytes(const struct kernels_shape *shape);
uint64_t cuda_head_once_bytes(const struct kernels_shape *shape);

/* False once anything has failed. what: the call, for the message. */
bool cuda_device_check(struct kernels_cuda *k, cudaError_t error, const char *what);
void cuda_device_product(struct kernels_cuda *k, const struct gpu_product_run *run,
                         const char *what);
/* What a public function returns. */
int cuda_device_end(const struct kernels_cuda *k, struct err *err);

/* Runs a gpu_ function unless something has failed, and notes if it does. */
#define CUDA_DEVICE_RUN(k, function, ...)                                                          \
    ((void)((k)->failed ||                                                                         \
            cuda_device_check((k), function(&(struct function)__VA_ARGS__, (k)->stream),           \
                              #function)))

/* Zeroes what lies between and behind the tensors of a group's vector. */
void cuda_device_zero_gaps(struct kernels_cuda *k, float *vector, const struct tensor_span *spans,
                           uint32_t span_count, uint64_t count);

static inline uint32_t cuda_shape_rows(const struct kernels_shape *shape)
{
    uint64_t rows = mul_checked(shape->batch, shape->seq);
    ASSERT(rows > 0 && rows <= KERNELS_ROWS_MAX);
    return (uint32_t)rows;
}

static inline const void *element_at(const struct kernels_cuda *k, const void *base, uint64_t index)
{
    return (const char *)base + index * (k->bf16 ? 2 : 4);
}

static inline uint64_t cuda_layout_take(uint64_t *used, uint64_t bytes)
{
    uint64_t offset = *used;
    *used = add_checked(offset, round_up(bytes, DEVICE_ALIGN));
    return offset;
}

#endif
