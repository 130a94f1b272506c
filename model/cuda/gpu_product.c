/*
 * cuBLASLt's matrices are column-major: a row-major C = A B is its C^T = B^T A^T, so the factors
 * change places and nothing is transposed in memory.
 */
#include "model/cuda/gpu_product.h"
#include "core/base.h"
#include "core/mem.h"
#include <cublasLt.h>

#define ALIGN_BYTES 16u /* of every array and row */

struct gpu_product {
    cublasLtMatmulDesc_t operation;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
    uint64_t workspace_bytes;
    bool biased;
    struct gpu_product *next;
};

struct gpu_products {
    cublasLtHandle_t handle;
    void *workspace;          /* borrowed */
    struct gpu_product *list; /* owned */
};

const char *gpu_product_status_name(int status)
{
    return cublasLtGetStatusName((cublasStatus_t)status);
}

static int refuse(struct err *err, cublasStatus_t status, const char *what)
{
    return err_set(err, ERR_SYSTEM, "cuBLASLt: %s failed with %s", what,
                   cublasLtGetStatusName(status));
}

int gpu_products_open(struct gpu_products **out, void *workspace, struct err *err)
{
    struct gpu_products *products = mem_alloc(1, sizeof(*products));
    *products = (struct gpu_products){.workspace = workspace};
    cublasStatus_t status = cublasLtCreate(&products->handle);
    if (status) {
        mem_free(products);
        return refuse(err, status, "cublasLtCreate");
    }
    *out = products;
    return 0;
}

static void release(struct gpu_product *product)
{
    if (product->operation)
        cublasLtMatmulDescDestroy(product->operation);
    cublasLtMatrixLayout_t layouts[] = {product->a, product->b, product->c};
    for (size_t i = 0; i < ARRAY_COUNT(layouts); i++)
        if (layouts[i])
            cublasLtMatrixLayoutDestroy(layouts[i]);
    mem_free(product);
}

void gpu_products_close(struct gpu_products *products)
{
    if (!products)
        return;
    while (products->list) {
        struct gpu_product *product = products->list;
        products->list = product->next;
        release(product);
    }
    cublasLtDestroy(products->handle);
    mem_free(products);
}

/* -- Preparing -- */

/* A factor as it lies in memory, column by column for cuBLASLt. */
static cublasStatus_t describe(cublasLtMatrixLayout_t *layout, bool bf16, uint32_t rows,
                               uint32_t columns, uint32_t stride)
{
    return cublasLtMatrixLayoutCreate(layout, bf16 ? CUDA_R_16BF : CUDA_R_32F, columns, rows,
                                      stride);
}

static cublasStatus_t describe_all(struct gpu_product *product,
                                   const struct gpu_product_shape *shape)
{
    const struct gpu_product_shape s = *shape;
    cublasStatus_t status = describe(&product->a, s.bf16, s.a_transposed ? s.k : s.m,
                                     s.a_transposed ? s.m : s.k, s.a_stride);
    if (!status)
        status = describe(&product->b, s.bf16, s.b_transposed ? s.n : s.k,
                          s.b_transposed ? s.k : s.n, s.b_stride);
    if (!status)
        status = describe(&product->c, s.bf16 && !s.widens, s.m, s.n, s.c_stride);
    return status;
}

static cublasStatus_t set_bias(cublasLtMatmulDesc_t operation, const void *bias)
{
    return cublasLtMatmulDescSetAttribute(operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias,
                                          sizeof(bias));
}

/* The heuristic looks at the bias's alignment: until a run brings its own, the workspace stands in.
 */
static cublasStatus_t set_operation(cublasLtMatmulDesc_t *operation,
                                    const struct gpu_product_shape *shape, const void *workspace)
{
    cublasOperation_t first = shape->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasOperation_t second = shape->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasLtEpilogue_t epilogue =
        shape->biased ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    cublasStatus_t status = cublasLtMatmulDescCreate(operation, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status)
        status = cublasLtMatmulDescSetAttribute(*operation, CUBLASLT_MATMUL_DESC_TRANSA, &first,
                                                sizeof(first));
    if (!status)
        status = cublasLtMatmulDescSetAttribute(*operation, CUBLASLT_MATMUL_DESC_TRANSB, &second,
                                                sizeof(second));
    if (!status)
        status = cublasLtMatmulDescSetAttribute(*operation, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                &epilogue, sizeof(epilogue));
    if (!status && shape->biased)
        status = set_bias(*operation, workspace);
    return status;
}

/* Unless it is told, the heuristic takes arrays to be aligned to 256 bytes; tensors in a group's
 * vector and tiles are not. */
static cublasStatus_t set_alignment(cublasLtMatmulPreference_t preference)
{
    static const cublasLtMatmulPreferenceAttributes_t attributes[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const uint32_t bytes = ALIGN_BYTES;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; i < ARRAY_COUNT(attributes) && !status; i++)
        status =
            cublasLtMatmulPreferenceSetAttribute(preference, attributes[i], &bytes, sizeof(bytes));
    return status;
}

static cublasStatus_t choose(struct gpu_products *products, struct gpu_product *product)
{
    uint64_t bytes = GPU_PRODUCT_WORKSPACE;
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasStatus_t status = cublasLtMatmulPreferenceCreate(&preference);
    if (status)
        return status;
    status = cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    if (!status)
        status = cublasLtMatmulPreferenceSetAttribute(preference,
                                                      CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                      &reductions, sizeof(reductions));
    if (!status)
        status = set_alignment(preference);
    if (!status)
        status = cublasLtMatmulAlgoGetHeuristic(products->handle, product->operation, product->b,
                                                product->a, product->c, product->c, preference, 1,
                                                &found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status)
        return status;
    if (count == 0)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    product->algorithm = found.algo;
    product->workspace_bytes = found.workspaceSize;
    return CUBLAS_STATUS_SUCCESS;
}

int gpu_product_prepare(struct gpu_products *products, struct gpu_product **out,
                        const struct gpu_product_shape *shape, struct err *err)
{
    ASSERT(shape->m > 0 && shape->n > 0 && shape->k > 0);
    ASSERT(!shape->biased || !shape->bf16 || !shape->widens);
    struct gpu_product *product = mem_alloc(1, sizeof(*product));
    *product = (struct gpu_product){.biased = shape->biased, .next = products->list};
    products->list = product;
    cublasStatus_t status = describe_all(product, shape);
    if (!status)
        status = set_operation(&product->operation, shape, products->workspace);
    if (!status)
        status = choose(products, product);
    if (status)
        return err_set(err, ERR_SYSTEM, "cuBLASLt has no product of %u x %u x %u: %s", shape->m,
                       shape->n, shape->k, cublasLtGetStatusName(status));
    *out = product;
    return 0;
}

/* -- Running -- */

int gpu_product_run(struct gpu_products *products, const struct gpu_product_run *run,
                    cudaStream_t stream)
{
    const struct gpu_product *product = run->product;
    ASSERT(product && !run->bias == !product->biased);
    float one = 1.0f, kept = run->accumulate ? 1.0f : 0.0f;
    if (run->bias) {
        cublasStatus_t status = set_bias(product->operation, run->bias);
        if (status)
            return (int)status;
    }
    return (int)cublasLtMatmul(products->handle, product->operation, &one, run->b, product->b,
                               run->a, product->a, &kept, run->c, product->c, run->c, product->c,
                               &product->algorithm, products->workspace, product->workspace_bytes,
                               stream);
}
