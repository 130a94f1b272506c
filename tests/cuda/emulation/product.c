/* cuBLASLt's products, plainly: factors widened to float, sums in float in order of k. */
#include "internal.h"
#include "include/cublasLt.h"
#include <stdlib.h>
#include <string.h>

struct emulation_matmul {
    cublasOperation_t a, b;
    cublasLtEpilogue_t epilogue;
    const void *bias;
};

struct emulation_layout {
    cudaDataType_t type;
    uint64_t rows, columns;
    int64_t stride;
};

struct emulation_preference {
    uint64_t workspace_bytes;
};

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    }
}

/* -- Objects -- */

static cublasStatus_t begin(void)
{
    return call_begin(cudaErrorUnknown) ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

static void *object(size_t bytes)
{
    void *memory = calloc(1, bytes);
    if (!memory)
        abort();
    return memory;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    CALL_LOCK;
    cublasStatus_t status = begin();
    if (!status)
        *handle = object(1);
    return status;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    CALL_LOCK;
    free(handle);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    CALL_LOCK;
    cublasStatus_t status = begin();
    if (status)
        return status;
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    *desc = object(sizeof(**desc));
    (*desc)->epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    CALL_LOCK;
    free(desc);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    CALL_LOCK;
    struct {
        void *field;
        size_t bytes;
    } fields[] = {
        [CUBLASLT_MATMUL_DESC_TRANSA] = {&desc->a, sizeof(desc->a)},
        [CUBLASLT_MATMUL_DESC_TRANSB] = {&desc->b, sizeof(desc->b)},
        [CUBLASLT_MATMUL_DESC_EPILOGUE] = {&desc->epilogue, sizeof(desc->epilogue)},
        [CUBLASLT_MATMUL_DESC_BIAS_POINTER] = {&desc->bias, sizeof(desc->bias)},
    };
    cublasStatus_t status = begin();
    if (status)
        return status;
    if (attribute >= sizeof(fields) / sizeof(fields[0]) || !fields[attribute].field ||
        fields[attribute].bytes != bytes)
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(fields[attribute].field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type,
                                          uint64_t rows, uint64_t columns, int64_t stride)
{
    CALL_LOCK;
    cublasStatus_t status = begin();
    if (status)
        return status;
    *layout = object(sizeof(**layout));
    **layout = (struct emulation_layout){type, rows, columns, stride};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    CALL_LOCK;
    free(layout);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    CALL_LOCK;
    cublasStatus_t status = begin();
    if (!status)
        *preference = object(sizeof(**preference));
    return status;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    CALL_LOCK;
    free(preference);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    CALL_LOCK;
    cublasStatus_t status = begin();
    if (!status && attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == 8)
        memcpy(&preference->workspace_bytes, value, bytes);
    return status;
}

/* -- Products -- */

/* Tensor cores want 16-byte columns. */
static bool usable(const struct emulation_layout *l)
{
    int64_t bytes = l->type == CUDA_R_16BF ? 2 : 4;
    return l->stride >= (int64_t)l->rows && l->stride * bytes % 16 == 0;
}

struct sizes {
    uint64_t m, n, k;
};

static bool sizes_of(const struct emulation_matmul *desc, const struct emulation_layout *a,
                     const struct emulation_layout *b, const struct emulation_layout *d,
                     struct sizes *sizes)
{
    *sizes = (struct sizes){.m = desc->a ? a->columns : a->rows,
                            .n = desc->b ? b->rows : b->columns,
                            .k = desc->a ? a->rows : a->columns};
    return sizes->k == (desc->b ? b->columns : b->rows) && sizes->m == d->rows &&
           sizes->n == d->columns && usable(a) && usable(b) && usable(d) && a->type == b->type;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found)
{
    CALL_LOCK;
    struct sizes sizes;
    (void)handle, (void)c;
    cublasStatus_t status = begin();
    if (status)
        return status;
    if (wanted < 1 || !sizes_of(desc, a, b, d, &sizes))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    memset(results, 0, sizeof(*results));
    results->workspaceSize = preference->workspace_bytes / 2;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

struct queued_product {
    struct emulation_matmul desc;
    struct emulation_layout a_layout, b_layout, d_layout;
    const void *a, *b;
    void *d;
    float alpha, beta;
    struct sizes sizes;
};

static float get(const void *matrix, cudaDataType_t type, uint64_t at)
{
    if (type == CUDA_R_32F)
        return ((const float *)matrix)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)matrix)[at] << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static void put(void *matrix, cudaDataType_t type, uint64_t at, float value)
{
    if (type == CUDA_R_32F) {
        ((float *)matrix)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    ((uint16_t *)matrix)[at] =
        nan ? 0x7fff : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* Exactly the elements, not what lies between columns; and all inside one allocation. */
static bool touch(const void *matrix, const struct emulation_layout *l, bool write)
{
    size_t element = l->type == CUDA_R_16BF ? 2 : 4, bytes = l->rows * element;
    for (uint64_t c = 0; c < l->columns; c++) {
        uintptr_t column = (uintptr_t)matrix + c * (uint64_t)l->stride * element;
        const struct allocation *a = memory_find(column);
        if (!a || !a->device || a->freed || column < a->base ||
            column + bytes > a->base + a->bytes) {
            char where[200];
            memory_describe(column, where, sizeof(where));
            emulation_fault("out-of-bounds", "column %lu of a product's matrix is at %s",
                            (unsigned long)c, where);
            return false;
        }
        detector_range((const void *)column, bytes, write, current_op);
    }
    return true;
}

/* op(matrix)[rows, columns] as float, row by row. */
static float *widen(const void *matrix, const struct emulation_layout *l, bool by_rows)
{
    float *wide = malloc(l->rows * l->columns * sizeof(float));
    if (!wide)
        abort();
    for (uint64_t c = 0; c < l->columns; c++)
        for (uint64_t r = 0; r < l->rows; r++)
            wide[by_rows ? r * l->columns + c : c * l->rows + r] =
                get(matrix, l->type, c * (uint64_t)l->stride + r);
    return wide;
}

static void multiply(const struct queued_product *q, const float *a, const float *b)
{
    struct sizes s = q->sizes;
    float *column = malloc(s.m * sizeof(float));
    if (!column)
        abort();
    for (uint64_t n = 0; n < s.n; n++) {
        memset(column, 0, s.m * sizeof(float));
        for (uint64_t k = 0; k < s.k; k++) {
            const float *from = a + k * s.m;
            float factor = b[n * s.k + k];
            for (uint64_t m = 0; m < s.m; m++)
                column[m] += from[m] * factor;
        }
        for (uint64_t m = 0; m < s.m; m++) {
            uint64_t at = n * (uint64_t)q->d_layout.stride + m;
            float value = q->alpha * column[m];
            if (q->beta != 0.0f)
                value += q->beta * get(q->d, q->d_layout.type, at);
            if (q->desc.epilogue == CUBLASLT_EPILOGUE_BIAS)
                value += get(q->desc.bias, q->d_layout.type, m);
            put(q->d, q->d_layout.type, at, value);
        }
    }
    free(column);
}

static void run_product(void *context)
{
    const struct queued_product *q = context;
    struct emulation_layout bias = {q->d_layout.type, q->sizes.m, 1, (int64_t)q->sizes.m};
    bool biased = q->desc.epilogue == CUBLASLT_EPILOGUE_BIAS;
    if (!touch(q->a, &q->a_layout, false) || !touch(q->b, &q->b_layout, false) ||
        (q->beta != 0.0f && !touch(q->d, &q->d_layout, false)) ||
        (biased && !touch(q->desc.bias, &bias, false)) || !touch(q->d, &q->d_layout, true))
        return;
    /* a as [k, m], b as [n, k]. */
    float *a = widen(q->a, &q->a_layout, q->desc.a == CUBLAS_OP_T);
    float *b = widen(q->b, &q->b_layout, q->desc.b == CUBLAS_OP_T);
    multiply(q, a, b);
    free(a);
    free(b);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    CALL_LOCK;
    struct queued_product queued = {.desc = *desc,
                                    .a_layout = *a_layout,
                                    .b_layout = *b_layout,
                                    .d_layout = *d_layout,
                                    .a = a,
                                    .b = b,
                                    .d = d,
                                    .alpha = *(const float *)alpha,
                                    .beta = *(const float *)beta};
    (void)handle, (void)algo;
    cublasStatus_t status = begin();
    if (status)
        return status;
    if (c != d || c_layout != d_layout ||
        !sizes_of(desc, a_layout, b_layout, d_layout, &queued.sizes))
        return CUBLAS_STATUS_INVALID_VALUE;
    const struct allocation *space = memory_find((uintptr_t)workspace);
    if (workspace_bytes > 0 && (!space || workspace_bytes > space->bytes))
        return CUBLAS_STATUS_INVALID_VALUE;
    return stream_enqueue(stream, "a product", run_product, &queued, sizeof(queued))
               ? CUBLAS_STATUS_EXECUTION_FAILED
               : CUBLAS_STATUS_SUCCESS;
}
