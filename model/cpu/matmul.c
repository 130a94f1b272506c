/*
 * Why oneDNN: bench_matmul has the comparison; in short, the same fp32 speed as the best of
 * OpenBLAS, and the only one of the distribution's libraries with bf16 products. Why not always: it
 * packs both factors in every call, and reaches 190 to 218 GFLOP/s in bf16 where gemm reaches 216
 * to 230 (of 236; Zen 4, one thread), and 97 to 114 and 105 to 115 in fp32 (of 118).
 *
 * Invariants:
 * 1. Every oneDNN primitive is created and executed with one OpenMP thread. oneDNN cuts a product
 *    by the number of threads it sees, also along k, which would change the order of the sums.
 * 2. A primitive is shared by all workers (executing one is thread-safe); memory objects, streams
 *    and scratchpads are per worker, because they are written by a call.
 */
#include "model/cpu/matmul.h"
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "model/cpu/gemm.h"
#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define SCRATCH_ALIGN 64

struct primitive {
    struct matmul_product product;
    dnnl_primitive_t handle; /* NULL: by gemm */
    uint64_t scratch_bytes;
    struct matmul_product computed; /* what oneDNN is asked for: `product`, unless: */
    bool widened;                   /* a bf16 product that is computed in float */
    bool gathered;                  /* a's one row lies in a column: it is made dense first */
};

/* What a call writes; the memory objects are owned. */
struct operands {
    dnnl_memory_t a, b, c, scratch;
};

struct worker {
    dnnl_stream_t stream;
    struct operands *operands; /* [product_count], owned */
    void *scratch;             /* owned; the largest that any product asks for */
    float *wide_a, *wide_b;    /* owned; factors of a widened or gathered product */
};

struct matmul {
    dnnl_engine_t engine;
    uint32_t worker_count, product_count;
    bool ready, library;      /* library: never gemm */
    void (*set_threads)(int); /* of the OpenMP runtime; NULL where oneDNN was built without */
    struct worker *workers;   /* owned */
    struct primitive products[MATMUL_PRODUCTS_MAX];
};

static void check(dnnl_status_t status, const char *what)
{
    if (status != dnnl_success)
        fatal("oneDNN failed in %s with status %d: this is a defect of the installed library", what,
              (int)status);
}

/* -- What differs between oneDNN 2 and 3: who owns a memory descriptor, and how a primitive
 * descriptor is made. `layout` hides the first; both are used in this section only. -- */

#if DNNL_VERSION_MAJOR >= 3
struct layout {
    dnnl_memory_desc_t desc;
};

static void layout_init(struct layout *layout, const dnnl_dims_t dims, dnnl_data_type_t type,
                        const dnnl_dims_t strides)
{
    check(dnnl_memory_desc_create_with_strides(&layout->desc, 2, dims, type, strides),
          "dnnl_memory_desc_create_with_strides");
}
static void layout_deinit(struct layout *layout)
{
    dnnl_memory_desc_destroy(layout->desc);
}
static const_dnnl_memory_desc_t layout_desc(const struct layout *layout)
{
    return layout->desc;
}
static uint64_t desc_bytes(const_dnnl_memory_desc_t desc)
{
    return dnnl_memory_desc_get_size(desc);
}

static dnnl_status_t describe(dnnl_primitive_desc_t *desc, dnnl_engine_t engine,
                              const struct layout *a, const struct layout *b,
                              const struct layout *c, dnnl_primitive_attr_t attributes)
{
    return dnnl_matmul_primitive_desc_create(desc, engine, a->desc, b->desc, NULL, c->desc,
                                             attributes);
}
static dnnl_status_t append_sum(dnnl_post_ops_t operations)
{
    return dnnl_post_ops_append_sum(operations, 1.0f, 0, dnnl_data_type_undef);
}
#else
struct layout {
    dnnl_memory_desc_t desc;
};

static void layout_init(struct layout *layout, const dnnl_dims_t dims, dnnl_data_type_t type,
                        const dnnl_dims_t strides)
{
    check(dnnl_memory_desc_init_by_strides(&layout->desc, 2, dims, type, strides),
          "dnnl_memory_desc_init_by_strides");
}
static void layout_deinit(struct layout *layout)
{
    (void)layout;
}
static const dnnl_memory_desc_t *layout_desc(const struct layout *layout)
{
    return &layout->desc;
}
static uint64_t desc_bytes(const dnnl_memory_desc_t *desc)
{
    return dnnl_memory_desc_get_size(desc);
}

static dnnl_status_t describe(dnnl_primitive_desc_t *desc, dnnl_engine_t engine,
                              const struct layout *a, const struct layout *b,
                              const struct layout *c, dnnl_primitive_attr_t attributes)
{
    dnnl_matmul_desc_t operation;
    check(dnnl_matmul_desc_init(&operation, &a->desc, &b->desc, NULL, &c->desc),
          "dnnl_matmul_desc_init");
    return dnnl_primitive_desc_create(desc, &operation, attributes, engine, NULL);
}
static dnnl_status_t append_sum(dnnl_post_ops_t operations)
{
    return dnnl_post_ops_append_sum(operations, 1.0f);
}
#endif

struct layouts {
    struct layout a, b, c;
};

static void layouts_init(struct layouts *layouts, const struct matmul_product *p)
{
    dnnl_data_type_t type = p->precision == PRECISION_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t a = {p->m, p->k}, b = {p->k, p->n}, c = {p->m, p->n};
    dnnl_dims_t a_strides = {p->a_transposed ? 1 : p->a_stride, p->a_transposed ? p->a_stride : 1};
    dnnl_dims_t b_strides = {p->b_transposed ? 1 : p->b_stride, p->b_transposed ? p->b_stride : 1};
    dnnl_dims_t c_strides = {p->c_stride, 1};
    layout_init(&layouts->a, a, type, a_strides);
    layout_init(&layouts->b, b, type, b_strides);
    layout_init(&layouts->c, c, dnnl_f32, c_strides);
}

static void layouts_deinit(struct layouts *layouts)
{
    layout_deinit(&layouts->a);
    layout_deinit(&layouts->b);
    layout_deinit(&layouts->c);
}

static dnnl_primitive_attr_t attributes_create(bool accumulate)
{
    dnnl_primitive_attr_t attributes;
    check(dnnl_primitive_attr_create(&attributes), "dnnl_primitive_attr_create");
    check(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user),
          "dnnl_primitive_attr_set_scratchpad_mode");
    if (!accumulate)
        return attributes;
    dnnl_post_ops_t operations;
    check(dnnl_post_ops_create(&operations), "dnnl_post_ops_create");
    check(append_sum(operations), "dnnl_post_ops_append_sum");
    check(dnnl_primitive_attr_set_post_ops(attributes, operations),
          "dnnl_primitive_attr_set_post_ops");
    dnnl_post_ops_destroy(operations);
    return attributes;
}

static dnnl_status_t primitive_create(struct primitive *primitive, dnnl_engine_t engine,
                                      const struct matmul_product *product)
{
    struct layouts layouts;
    layouts_init(&layouts, product);
    dnnl_primitive_attr_t attributes = attributes_create(product->accumulate);
    dnnl_primitive_desc_t desc = NULL;
    dnnl_status_t status = describe(&desc, engine, &layouts.a, &layouts.b, &layouts.c, attributes);
    if (status == dnnl_success) {
        primitive->scratch_bytes =
            desc_bytes(dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0));
        status = dnnl_primitive_create(&primitive->handle, desc);
        dnnl_primitive_desc_destroy(desc);
    }
    dnnl_primitive_attr_destroy(attributes);
    layouts_deinit(&layouts);
    return status;
}

/* -- Opening and declaring -- */

int matmul_open(struct matmul **out, uint32_t worker_count, struct err *err)
{
    ASSERT(worker_count > 0);
    struct matmul *matmul = mem_alloc(1, sizeof(*matmul));
    matmul->worker_count = worker_count;
    matmul->workers = mem_alloc(worker_count, sizeof(*matmul->workers));
    /* By name, because a distribution may build oneDNN for another runtime than OpenMP. */
    *(void **)&matmul->set_threads = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    if (matmul->set_threads)
        matmul->set_threads(1);
    /* We share primitives ourselves; the library's cache would only keep closed ones alive. */
    dnnl_set_primitive_cache_capacity(0);
    dnnl_status_t status = dnnl_engine_create(&matmul->engine, dnnl_cpu, 0);
    if (status != dnnl_success) {
        matmul_close(matmul);
        return err_set(err, ERR_SYSTEM, "oneDNN cannot be started on this CPU (status %d)",
                       (int)status);
    }
    *out = matmul;
    return 0;
}

void matmul_use_library(struct matmul *matmul)
{
    ASSERT(matmul->product_count == 0);
    matmul->library = true;
}

static bool same(const struct matmul_product *p, const struct matmul_product *q)
{
    return p->m == q->m && p->n == q->n && p->k == q->k && p->a_stride == q->a_stride &&
           p->b_stride == q->b_stride && p->c_stride == q->c_stride &&
           p->a_transposed == q->a_transposed && p->b_transposed == q->b_transposed &&
           p->accumulate == q->accumulate && p->precision == q->precision && p->part == q->part;
}

/* The float product that stands in for a bf16 one: its factors are dense copies. */
static struct matmul_product widen(const struct matmul_product *product)
{
    struct matmul_product wide = *product;
    wide.precision = PRECISION_FP32;
    wide.a_stride = product->a_transposed ? product->m : product->k;
    wide.b_stride = product->b_transposed ? product->k : product->n;
    return wide;
}

uint32_t matmul_declare(struct matmul *matmul, const struct matmul_product *product)
{
    ASSERT(!matmul->ready);
    ASSERT(product->m > 0 && product->n > 0 && product->k > 0);
    ASSERT(product->part == MATMUL_WHOLE ||
           product->m == (product->part == MATMUL_C_LOWER ? product->n : product->k));
    for (uint32_t i = 0; i < matmul->product_count; i++)
        if (same(&matmul->products[i].product, product))
            return i;
    ASSERT(matmul->product_count < MATMUL_PRODUCTS_MAX);
    struct primitive *primitive = &matmul->products[matmul->product_count];
    primitive->product = primitive->computed = *product;
    if (!matmul->library && matmul_is_packed(product->precision)) {
        primitive->scratch_bytes = gemm_scratch_bytes(product, product->k) +
                                   gemm_panel_bytes(product->n, product->k, product->precision);
        return matmul->product_count++;
    }
    /* oneDNN 3.7 takes the strides of a single row in a column for those of a dense row. */
    primitive->gathered = product->m == 1 && product->a_transposed && product->a_stride > 1;
    if (primitive->gathered) {
        primitive->computed.a_transposed = false;
        primitive->computed.a_stride = product->k;
    }
    dnnl_status_t status = primitive_create(primitive, matmul->engine, &primitive->computed);
    if (status != dnnl_success && product->precision == PRECISION_BF16) {
        primitive->computed = widen(product);
        primitive->widened = true;
        primitive->gathered = false;
        status = primitive_create(primitive, matmul->engine, &primitive->computed);
    }
    check(status, "creating a matrix product");
    return matmul->product_count++;
}

static dnnl_memory_t memory_create(struct matmul *matmul, const struct layout *layout)
{
    dnnl_memory_t memory;
    check(dnnl_memory_create(&memory, layout_desc(layout), matmul->engine, DNNL_MEMORY_NONE),
          "dnnl_memory_create");
    return memory;
}

static void operands_create(struct matmul *matmul, const struct primitive *primitive,
                            struct worker *worker, struct operands *operands)
{
    struct layouts layouts;
    if (!primitive->handle)
        return;
    layouts_init(&layouts, &primitive->computed);
    operands->a = memory_create(matmul, &layouts.a);
    operands->b = memory_create(matmul, &layouts.b);
    operands->c = memory_create(matmul, &layouts.c);
    layouts_deinit(&layouts);
    if (primitive->scratch_bytes == 0)
        return;
    struct layout scratch;
    layout_init(&scratch, (dnnl_dims_t){1, (dnnl_dim_t)primitive->scratch_bytes}, dnnl_u8,
                (dnnl_dims_t){(dnnl_dim_t)primitive->scratch_bytes, 1});
    operands->scratch = memory_create(matmul, &scratch);
    check(dnnl_memory_set_data_handle(operands->scratch, worker->scratch),
          "dnnl_memory_set_data_handle");
    layout_deinit(&scratch);
}

void matmul_ready(struct matmul *matmul)
{
    ASSERT(!matmul->ready);
    matmul->ready = true;
    uint64_t scratch_bytes = 0, a_bytes = 0, b_bytes = 0;
    for (uint32_t i = 0; i < matmul->product_count; i++) {
        const struct primitive *primitive = &matmul->products[i];
        const struct matmul_product *p = &primitive->product;
        scratch_bytes = MAX(scratch_bytes, primitive->scratch_bytes);
        if (primitive->widened) {
            a_bytes = MAX(a_bytes, (uint64_t)p->m * p->k * sizeof(float));
            b_bytes = MAX(b_bytes, (uint64_t)p->k * p->n * sizeof(float));
        }
        if (primitive->gathered)
            a_bytes = MAX(a_bytes, (uint64_t)p->k * sizeof(float));
    }
    for (uint32_t w = 0; w < matmul->worker_count; w++) {
        struct worker *worker = &matmul->workers[w];
        check(dnnl_stream_create(&worker->stream, matmul->engine, dnnl_stream_default_flags),
              "dnnl_stream_create");
        worker->scratch = mem_alloc_aligned(SCRATCH_ALIGN, scratch_bytes);
        worker->wide_a = mem_alloc_aligned(SCRATCH_ALIGN, a_bytes);
        worker->wide_b = mem_alloc_aligned(SCRATCH_ALIGN, b_bytes);
        worker->operands = mem_alloc(matmul->product_count, sizeof(*worker->operands));
        for (uint32_t i = 0; i < matmul->product_count; i++)
            operands_create(matmul, &matmul->products[i], worker, &worker->operands[i]);
    }
}

static void worker_deinit(struct worker *worker, uint32_t product_count)
{
    for (uint32_t i = 0; worker->operands && i < product_count; i++) {
        if (!worker->operands[i].a)
            continue;
        dnnl_memory_destroy(worker->operands[i].a);
        dnnl_memory_destroy(worker->operands[i].b);
        dnnl_memory_destroy(worker->operands[i].c);
        if (worker->operands[i].scratch)
            dnnl_memory_destroy(worker->operands[i].scratch);
    }
    if (worker->stream)
        dnnl_stream_destroy(worker->stream);
    mem_free(worker->operands);
    mem_free(worker->scratch);
    mem_free(worker->wide_a);
    mem_free(worker->wide_b);
}

void matmul_close(struct matmul *matmul)
{
    if (!matmul)
        return;
    for (uint32_t w = 0; w < matmul->worker_count; w++)
        worker_deinit(&matmul->workers[w], matmul->product_count);
    for (uint32_t i = 0; i < matmul->product_count; i++)
        if (matmul->products[i].handle)
            dnnl_primitive_destroy(matmul->products[i].handle);
    if (matmul->engine)
        dnnl_engine_destroy(matmul->engine);
    mem_free(matmul->workers);
    mem_free(matmul);
}

/* -- Running -- */

/* A dense float copy of a [rows, columns] matrix of bf16. */
static void widen_matrix(const uint16_t *from, uint32_t stride, uint32_t rows, uint32_t columns,
                         float *to)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < columns; i++)
            to[(size_t)r * columns + i] = float_from_bf16(from[(size_t)r * stride + i]);
}

static void execute(struct matmul *matmul, const struct primitive *primitive, struct worker *worker,
                    const struct operands *operands, const void *a, const void *b, float *c)
{
    /* The setting is the calling thread's own, and which thread is a worker is not ours to know. */
    if (matmul->set_threads)
        matmul->set_threads(1);
    check(dnnl_memory_set_data_handle(operands->a, (void *)a), "dnnl_memory_set_data_handle");
    check(dnnl_memory_set_data_handle(operands->b, (void *)b), "dnnl_memory_set_data_handle");
    check(dnnl_memory_set_data_handle(operands->c, c), "dnnl_memory_set_data_handle");
    dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, operands->a},
        {DNNL_ARG_WEIGHTS, operands->b},
        {DNNL_ARG_DST, operands->c},
        {DNNL_ARG_SCRATCHPAD, operands->scratch},
    };
    int count = operands->scratch ? 4 : 3;
    check(dnnl_primitive_execute(primitive->handle, worker->stream, count, arguments),
          "dnnl_primitive_execute");
}

static void gather(const struct matmul_product *p, const void *from, void *to)
{
    uint32_t element = precision_bytes(p->precision);
    for (uint32_t i = 0; i < p->k; i++)
        memcpy((uint8_t *)to + (size_t)i * element,
               (const uint8_t *)from + (size_t)i * p->a_stride * element, element);
}

uint64_t matmul_panel_bytes(const struct matmul *matmul, uint32_t product)
{
    ASSERT(product < matmul->product_count);
    const struct matmul_product *p = &matmul->products[product].product;
    return matmul->products[product].handle ? 0 : gemm_panel_bytes(p->n, p->k, p->precision);
}

struct matmul_panel matmul_prepare(const struct matmul *matmul, uint32_t product, const void *b,
                                   void *memory)
{
    ASSERT(matmul->ready && product < matmul->product_count);
    if (matmul->products[product].handle)
        return (struct matmul_panel){.b = b};
    gemm_pack(&matmul->products[product].product, b, memory);
    return (struct matmul_panel){.b = b, .packed = memory};
}

static void run_library(struct matmul *matmul, uint32_t product, struct worker *worker,
                        const void *a, const void *b, float *c)
{
    const struct primitive *primitive = &matmul->products[product];
    if (primitive->widened) {
        const struct matmul_product *p = &primitive->product;
        bool at = p->a_transposed, bt = p->b_transposed;
        widen_matrix(a, p->a_stride, at ? p->k : p->m, at ? p->m : p->k, worker->wide_a);
        widen_matrix(b, p->b_stride, bt ? p->n : p->k, bt ? p->k : p->n, worker->wide_b);
        a = worker->wide_a;
        b = worker->wide_b;
    }
    if (primitive->gathered) {
        gather(&primitive->product, a, worker->wide_a);
        a = worker->wide_a;
    }
    mem_library_enter();
    execute(matmul, primitive, worker, &worker->operands[product], a, b, c);
    mem_library_leave();
}

void matmul_apply(struct matmul *matmul, uint32_t product, uint32_t worker_index, const void *a,
                  const struct matmul_panel *panel, float *c)
{
    ASSERT(matmul->ready && product < matmul->product_count);
    ASSERT(worker_index < matmul->worker_count);
    struct worker *worker = &matmul->workers[worker_index];
    if (!panel->packed) {
        run_library(matmul, product, worker, a, panel->b, c);
        return;
    }
    const struct matmul_product *p = &matmul->products[product].product;
    struct gemm gemm = {p, panel->packed, worker->scratch};
    gemm_rows(&gemm, a, p->m, c, p->c_stride, p->accumulate);
}

void matmul_run(struct matmul *matmul, uint32_t product, uint32_t worker, const void *a,
                const void *b, float *c)
{
    ASSERT(product < matmul->product_count && worker < matmul->worker_count);
    const struct matmul_product *p = &matmul->products[product].product;
    uint8_t *memory = matmul->workers[worker].scratch;
    if (!matmul->products[product].handle)
        memory += gemm_scratch_bytes(p, p->k);
    struct matmul_panel panel = matmul_prepare(matmul, product, b, memory);
    matmul_apply(matmul, product, worker, a, &panel, c);
}

/* Bytes from a matrix's first to its last element. */
static uint64_t matrix_bytes(uint32_t rows, uint32_t columns, uint32_t stride, uint32_t element)
{
    return (mul_checked(rows - 1, stride) + columns) * element;
}

void matmul_warm(struct matmul *matmul, uint32_t worker)
{
    uint64_t read_bytes = 0, write_bytes = 0;
    for (uint32_t i = 0; i < matmul->product_count; i++) {
        const struct matmul_product *p = &matmul->products[i].product;
        bool at = p->a_transposed, bt = p->b_transposed;
        uint32_t element = precision_bytes(p->precision);
        uint64_t a = matrix_bytes(at ? p->k : p->m, at ? p->m : p->k, p->a_stride, element);
        uint64_t b = matrix_bytes(bt ? p->n : p->k, bt ? p->k : p->n, p->b_stride, element);
        read_bytes = MAX(read_bytes, MAX(a, b));
        write_bytes = MAX(write_bytes, matrix_bytes(p->m, p->n, p->c_stride, sizeof(float)));
    }
    /* Anonymous pages that are only read are all the kernel's one page of zeros: they cost nothing.
     */
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *zeros = mmap(NULL, read_bytes, PROT_READ, flags, -1, 0);
    void *result = mmap(NULL, write_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (zeros == MAP_FAILED || result == MAP_FAILED)
        fatal("cannot map %llu bytes for a first run of the matrix products",
              (unsigned long long)(read_bytes + write_bytes));
    for (uint32_t i = 0; i < matmul->product_count; i++)
        matmul_run(matmul, i, worker, zeros, zeros, result);
    munmap(zeros, read_bytes);
    munmap(result, write_bytes);
}

static bool within_limit(dnnl_cpu_isa_t isa)
{
    uint32_t wanted = (uint32_t)isa;
    return ((uint32_t)dnnl_get_effective_cpu_isa() & wanted) == wanted;
}

bool matmul_is_packed(enum precision precision)
{
    return gemm_has(precision) &&
           within_limit(precision == PRECISION_BF16 ? dnnl_cpu_isa_avx512_core_bf16
                                                    : dnnl_cpu_isa_avx512_core);
}

bool matmul_has_bf16(void)
{
    return within_limit(dnnl_cpu_isa_avx512_core_bf16);
}

const char *matmul_library(void)
{
    static char text[64];
    const dnnl_version_t *version = dnnl_version();
    snprintf(text, sizeof(text), "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
    return text;
}
