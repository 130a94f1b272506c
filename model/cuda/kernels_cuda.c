/* Opening of the CUDA device, and the operations that are one kernel. */
#include "model/cuda/kernels_cuda.h"
#include "core/mem.h"
#include "model/cuda/cuda_device.h"
#include "model/cuda/gpu_attention.h"
#include "model/cuda/gpu_embed.h"
#include "model/cuda/gpu_gradient.h"
#include "model/cuda/gpu_norm.h"

_Static_assert(KERNELS_CUDA_LIST == GPU_GRADIENT_LIST && KERNELS_CUDA_LIST == GPU_JOIN_LIST,
               "a list is one launch");
_Static_assert(GPU_GRADIENT_BLOCK == KERNELS_NORM_BLOCK, "one sum of squares for each");

/* -- Sizes, opening, closing -- */

void kernels_cuda_sizes(const struct kernels_shape *shape, struct kernels_sizes *sizes)
{
    uint64_t norm = gpu_norm_partial_bytes(cuda_shape_rows(shape), shape->channels);
    cuda_block_sizes(shape, sizes);
    sizes->head_bytes = cuda_head_scratch_bytes(shape);
    sizes->scratch_bytes = MAX(sizes->scratch_bytes, sizes->head_bytes);
    sizes->scratch_bytes = MAX(sizes->scratch_bytes, round_up(norm, IO_ALIGN));
    sizes->head_once_bytes = cuda_head_once_bytes(shape);
}

uint64_t kernels_cuda_workspace_bytes(void)
{
    return GPU_PRODUCT_WORKSPACE;
}

static struct tensor_span span_of(const struct tensor *tensor)
{
    return (struct tensor_span){tensor->offset, tensor->count};
}

static void read_spans(struct kernels_cuda *k, const struct tensors *tensors)
{
    ASSERT(tensors->group_count >= 3);
    const struct tensor_group *block = &tensors->groups[1];
    const struct tensor_group *final = &tensors->groups[tensors->group_count - 1];
    ASSERT(block->tensor_count == BLOCK_TENSOR_COUNT && final->tensor_count == 2);
    for (uint32_t i = 0; i < BLOCK_TENSOR_COUNT; i++)
        k->block[i] = span_of(&tensors->list[block->first_tensor + i]);
    for (uint32_t i = 0; i < 2; i++)
        k->final[i] = span_of(&tensors->list[final->first_tensor + i]);
    k->block_count = block->parameter_count;
    k->final_count = final->parameter_count;
    ASSERT(k->block[BLOCK_LN1_WEIGHT].count == k->shape.channels);
}

static int check_shape(const struct kernels_shape *shape, struct err *err)
{
    ASSERT(shape->channels % 32 == 0 && shape->heads > 0);
    uint32_t depth = shape->channels / shape->heads;
    if (shape->batch > GPU_ATTENTION_GRID)
        return err_set(err, ERR_INPUT,
                       "--batch %u: the CUDA device takes %u sequences at most in one micro-batch",
                       shape->batch, GPU_ATTENTION_GRID);
    if (depth <= GPU_ATTENTION_DEPTH)
        return 0;
    return err_set(err, ERR_INPUT,
                   "the model has heads of %u channels; the CUDA device computes with %u at most, "
                   "so use --device cpu",
                   depth, GPU_ATTENTION_DEPTH);
}

int kernels_cuda_open(struct kernels_cuda **out, const struct kernels_cuda_open *args,
                      struct err *err)
{
    int rc = check_shape(&args->shape, err);
    if (rc)
        return rc;
    struct kernels_cuda *k = mem_alloc(1, sizeof(*k));
    *k = (struct kernels_cuda){.shape = args->shape,
                               .row_count = cuda_shape_rows(&args->shape),
                               .bf16 = args->shape.precision == PRECISION_BF16,
                               .stream = args->stream,
                               .workspace = args->workspace};
    read_spans(k, args->tensors);
    rc = gpu_products_open(&k->products, args->workspace, err);
    if (!rc)
        rc = cuda_block_open(k, err);
    if (!rc)
        rc = cuda_head_open(k, err);
    if (rc)
        kernels_cuda_close(k);
    else
        *out = k;
    return rc;
}

void kernels_cuda_close(struct kernels_cuda *k)
{
    if (!k)
        return;
    gpu_products_close(k->products);
    mem_free(k);
}

/* -- Failing -- */

bool cuda_device_check(struct kernels_cuda *k, cudaError_t error, const char *what)
{
    if (error && !k->failed) {
        k->failed = true;
        err_set(&k->failure, ERR_SYSTEM, "the GPU failed in %s: %s (%s)", what,
                cudaGetErrorString(error), cudaGetErrorName(error));
    }
    return !k->failed;
}

void cuda_device_product(struct kernels_cuda *k, const struct gpu_product_run *run,
                         const char *what)
{
    int status = k->failed ? 0 : gpu_product_run(k->products, run, k->stream);
    if (!status)
        return;
    k->failed = true;
    err_set(&k->failure, ERR_SYSTEM, "the GPU failed in %s: cuBLASLt says %s", what,
            gpu_product_status_name(status));
}

int cuda_device_end(const struct kernels_cuda *k, struct err *err)
{
    if (!k->failed)
        return 0;
    *err = k->failure;
    return err->code;
}

void cuda_device_zero_gaps(struct kernels_cuda *k, float *vector, const struct tensor_span *spans,
                           uint32_t span_count, uint64_t count)
{
    for (uint32_t i = 0; i < span_count; i++) {
        uint64_t end = spans[i].offset + spans[i].count;
        uint64_t next = i + 1 < span_count ? spans[i + 1].offset : count;
        ASSERT(end <= next);
        if (end < next && !k->failed)
            cuda_device_check(
                k, cudaMemsetAsync(vector + end, 0, (next - end) * sizeof(float), k->stream),
                "cudaMemsetAsync");
    }
}

/* -- One kernel each -- */

int kernels_cuda_embed_forward(struct kernels_cuda *k, const struct kernels_embed_forward *args,
                               struct err *err)
{
    CUDA_DEVICE_RUN(k, gpu_embed_forward,
                    {.bf16 = k->bf16,
                     .rows = k->row_count,
                     .channels = k->shape.channels,
                     .row_first = args->row_first,
                     .row_count = args->row_count,
                     .tile = args->tile,
                     .tokens = args->tokens,
                     .x = args->x});
    return cuda_device_end(k, err);
}

int kernels_cuda_position_forward(struct kernels_cuda *k,
                                  const struct kernels_position_forward *args, struct err *err)
{
    CUDA_DEVICE_RUN(k, gpu_position_forward,
                    {.bf16 = k->bf16,
                     .batch = k->shape.batch,
                     .seq = k->shape.seq,
                     .channels = k->shape.channels,
                     .wpe = args->wpe,
                     .x = args->x});
    return cuda_device_end(k, err);
}

int kernels_cuda_embed_backward(struct kernels_cuda *k, const struct kernels_embed_backward *args,
                                struct err *err)
{
    CUDA_DEVICE_RUN(k, gpu_embed_backward,
                    {.rows = k->row_count,
                     .channels = k->shape.channels,
                     .row_first = args->row_first,
                     .row_count = args->row_count,
                     .tokens = args->tokens,
                     .dx = args->dx,
                     .gradient = args->gradient});
    return cuda_device_end(k, err);
}

int kernels_cuda_position_backward(struct kernels_cuda *k,
                                   const struct kernels_position_backward *args, struct err *err)
{
    CUDA_DEVICE_RUN(k, gpu_position_backward,
                    {.batch = k->shape.batch,
                     .seq = k->shape.seq,
                     .channels = k->shape.channels,
                     .positions = args->positions,
                     .dx = args->dx,
                     .gradient = args->gradient,
                     .accumulate = args->accumulate});
    return cuda_device_end(k, err);
}

int kernels_cuda_norm_forward(struct kernels_cuda *k, const struct kernels_norm_forward *args,
                              struct err *err)
{
    CUDA_DEVICE_RUN(k, gpu_norm_forward,
                    {.bf16 = k->bf16,
                     .rows = k->row_count,
                     .columns = k->shape.channels,
                     .epsilon = k->shape.norm_epsilon,
                     .x = args->x,
                     .weight = element_at(k, args->weights, k->final[0].offset),
                     .bias = element_at(k, args->weights, k->final[1].offset),
                     .mean = args->statistics,
                     .deviation = args->statistics + k->row_count,
                     .y = args->y});
    return cuda_device_end(k, err);
}

int kernels_cuda_norm_backward(struct kernels_cuda *k, const struct kernels_norm_backward *args,
                               struct err *err)
{
    if (!args->accumulate)
        cuda_device_zero_gaps(k, args->gradient, k->final, 2, k->final_count);
    CUDA_DEVICE_RUN(k, gpu_norm_backward,
                    {.bf16 = k->bf16,
                     .rows = k->row_count,
                     .columns = k->shape.channels,
                     .x = args->x,
                     .dy = args->dy,
                     .weight = element_at(k, args->weights, k->final[0].offset),
                     .mean = args->statistics,
                     .deviation = args->statistics + k->row_count,
                     .dx = args->dx,
                     .dweight = args->gradient + k->final[0].offset,
                     .dbias = args->gradient + k->final[1].offset,
                     .accumulate = args->accumulate,
                     .partial = args->scratch});
    return cuda_device_end(k, err);
}

int kernels_cuda_gradient_store(struct kernels_cuda *k, const struct kernels_cuda_store *list,
                                uint32_t count, struct err *err)
{
    struct gpu_gradient_store stores[GPU_GRADIENT_LIST];
    uint64_t used = 0;
    ASSERT(count >= 1 && count <= GPU_GRADIENT_LIST);
    for (uint32_t i = 0; i < count; i++) {
        stores[i] = (struct gpu_gradient_store){.bf16 = k->bf16,
                                                .count = list[i].count,
                                                .padded_count = list[i].padded_count,
                                                .gradient = list[i].gradient,
                                                .stored = list[i].stored,
                                                .square_sums = list[i].square_sums,
                                                .square_count = list[i].square_count,
                                                .workspace = (char *)k->workspace + used};
        used += gpu_gradient_workspace_bytes(list[i].padded_count);
    }
    ASSERT(used <= kernels_cuda_workspace_bytes());
    if (!k->failed)
        cuda_device_check(k, gpu_gradient_store(stores, count, k->stream), "gpu_gradient_store");
    return cuda_device_end(k, err);
}

int kernels_cuda_adamw(struct kernels_cuda *k, cudaStream_t stream, const struct gpu_adamw *args,
                       struct err *err)
{
    if (!k->failed)
        cuda_device_check(k, gpu_adamw(args, stream), "gpu_adamw");
    return cuda_device_end(k, err);
}

int kernels_cuda_join(struct kernels_cuda *k, cudaStream_t stream, const struct gpu_join *list,
                      uint32_t count, struct err *err)
{
    if (!k->failed)
        cuda_device_check(k, gpu_join(list, count, stream), "gpu_join");
    return cuda_device_end(k, err);
}
