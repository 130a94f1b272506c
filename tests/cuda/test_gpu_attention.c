/*
 * Attention on the GPU, forward and backward, against float64: one row, odd lengths, tiles with and
 * without a rest, depths that are and are not multiples of 8, grouped queries, q, k and v in one
 * array, a model's real shape, and rows beyond index 2^31. Same bits
 * whatever order the emulation draws.
 */
#include "core/base.h"
#include "core/float.h"
#include "model/cuda/gpu_attention.h"
#include "tests/cuda/gpu.h"
#include "tests/shared/pieces.h"
#include <string.h>

struct setup {
    uint32_t batch, seq, heads, kv_heads, depth;
};

static const struct setup setups[] = {
    {1, 1, 1, 1, 8},  {2, 7, 2, 2, 32},    {1, 33, 3, 3, 3},  {2, 65, 2, 1, 64}, {1, 130, 4, 2, 64},
    {1, 64, 1, 1, 1}, {1, 129, 1, 1, 128}, {1, 97, 2, 1, 80}, {3, 32, 6, 2, 16}, {1, 70, 1, 1, 65},
};
static const struct setup real = {1, 1024, 1, 1, 64};

struct problem {
    struct setup setup;
    bool bf16;
    uint32_t q_width, kv_width, wide; /* columns of q, of k, of a row of all three */
    uint64_t rows;
    struct gpu_array qkv, out, log_sum, dout, delta, dqkv;
    double *expected_out, *expected_log_sum, *expected_dqkv;
};

static struct problem problem_of(const struct setup *setup, bool bf16)
{
    struct problem p = {.setup = *setup, .bf16 = bf16};
    p.q_width = setup->heads * setup->depth;
    p.kv_width = setup->kv_heads * setup->depth;
    p.wide = p.q_width + 2 * p.kv_width;
    p.rows = (uint64_t)setup->batch * setup->seq;
    p.qkv = gpu_normal(bf16, p.rows * p.wide, 1, 1.3);
    p.out = gpu_unwritten(gpu_element(bf16), p.rows * p.q_width);
    p.log_sum = gpu_unwritten(GPU_FLOAT, p.rows * setup->heads);
    p.dout = gpu_normal(bf16, p.rows * p.q_width, 2, 1.0);
    p.delta = gpu_unwritten(GPU_FLOAT, p.rows * setup->heads);
    p.dqkv = gpu_unwritten(gpu_element(bf16), p.rows * p.wide);
    p.expected_out = gpu_doubles(p.rows * p.q_width);
    p.expected_log_sum = gpu_doubles(p.rows * setup->heads);
    p.expected_dqkv = gpu_doubles(p.rows * p.wide);
    return p;
}

static void compute_reference(struct problem *p, bool backward)
{
    const struct setup *s = &p->setup;
    for (uint32_t b = 0; b < s->batch; b++) {
        uint64_t row = (uint64_t)b * s->seq, at = row * p->wide;
        const double *x = p->qkv.host + at;
        double *dx = p->expected_dqkv + at;
        struct pieces_attention args = {
            s->seq,  s->heads,   s->kv_heads, s->depth,       p->wide,
            p->wide, p->q_width, x,           x + p->q_width, x + p->q_width + p->kv_width};
        pieces_attention(&args, p->expected_out + row * p->q_width,
                         p->expected_log_sum + row * s->heads);
        if (backward)
            pieces_attention_backward(&args, p->dout.host + row * p->q_width, dx, dx + p->q_width,
                                      dx + p->q_width + p->kv_width);
    }
}

static struct gpu_attention_array part(const struct problem *p, const struct gpu_array *array,
                                       unsigned which)
{
    uint32_t first = which == 0 ? 0 : which == 1 ? p->q_width : p->q_width + p->kv_width;
    return (struct gpu_attention_array){(char *)array->device + first * (p->bf16 ? 2 : 4), p->wide};
}

static struct gpu_attention_shape shape_of(const struct problem *p)
{
    const struct setup *s = &p->setup;
    return (struct gpu_attention_shape){p->bf16, s->batch, s->seq, s->heads, s->kv_heads, s->depth};
}

static cudaError_t run_forward(const struct problem *p)
{
    return gpu_attention_forward(&(struct gpu_attention_forward){.shape = shape_of(p),
                                                                 .q = part(p, &p->qkv, 0),
                                                                 .k = part(p, &p->qkv, 1),
                                                                 .v = part(p, &p->qkv, 2),
                                                                 .out = {p->out.device, p->q_width},
                                                                 .log_sum = p->log_sum.device},
                                 gpu_stream);
}

static cudaError_t run_backward(const struct problem *p)
{
    return gpu_attention_backward(
        &(struct gpu_attention_backward){.shape = shape_of(p),
                                         .q = part(p, &p->qkv, 0),
                                         .k = part(p, &p->qkv, 1),
                                         .v = part(p, &p->qkv, 2),
                                         .out = {p->out.device, p->q_width},
                                         .dout = {p->dout.device, p->q_width},
                                         .log_sum = p->log_sum.device,
                                         .delta = p->delta.device,
                                         .dq = part(p, &p->dqkv, 0),
                                         .dk = part(p, &p->dqkv, 1),
                                         .dv = part(p, &p->dqkv, 2)},
        gpu_stream);
}

/* The columns [first, first + width) of all rows, as an array of their own on the host. */
static void check_columns(const char *what, struct problem *p, uint32_t first, uint32_t width)
{
    double difference = 0.0, size = 0.0;
    for (uint64_t i = 0; i < p->rows * p->wide; i++) {
        if (i % p->wide < first || i % p->wide >= first + width)
            continue;
        double error = p->dqkv.host[i] - p->expected_dqkv[i];
        difference += error * error;
        size += p->expected_dqkv[i] * p->expected_dqkv[i];
    }
    double tolerance = gpu_tolerance(p->bf16), limit = tolerance * tolerance * size;
    /* One row: the gradients of q and k are zero but for rounding. */
    if (p->setup.seq == 1)
        limit = tolerance * tolerance * (double)p->rows * width;
    if (!(difference <= limit))
        print_error("%s: relative error squared %g\n", what, difference / size);
    assert_true(difference <= limit);
}

static void check_setup(const struct setup *setup, bool bf16)
{
    struct problem p = problem_of(setup, bf16);
    compute_reference(&p, true);
    assert_int_equal(run_forward(&p), cudaSuccess);
    gpu_check("out", &p.out, p.expected_out, gpu_tolerance(bf16));
    gpu_check("log_sum", &p.log_sum, p.expected_log_sum, gpu_tolerance(bf16));
    assert_int_equal(run_backward(&p), cudaSuccess);
    gpu_read(&p.dqkv);
    check_columns("dq", &p, 0, p.q_width);
    check_columns("dk", &p, p.q_width, p.kv_width);
    check_columns("dv", &p, p.q_width + p.kv_width, p.kv_width);
    gpu_free_all();
}

static void test_fp32(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(setups); i++)
        check_setup(&setups[i], false);
}

static void test_bf16(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(setups); i++)
        check_setup(&setups[i], true);
}

/* The watched flavour is slower and looks at the same code: a quarter of the length will do. */
static void test_real_shape(void **state)
{
    (void)state;
    struct setup setup = real;
    if (emulation_is_checked)
        setup.seq /= 4;
    check_setup(&setup, true);
    setup.seq /= 4;
    check_setup(&setup, false);
}

/* The emulation's orders of blocks, warps, lanes and copies are drawn anew: the bits stay. */
static void test_same_bits(void **state)
{
    (void)state;
    const struct setup setup = {1, 100, 2, 1, 64};
    double *first_out = NULL, *first_dqkv = NULL;
    struct problem p = problem_of(&setup, true);
    for (uint64_t seed = 0; seed < 4; seed++) {
        emulation_reset(1000 + seed);
        assert_int_equal(run_forward(&p), cudaSuccess);
        assert_int_equal(run_backward(&p), cudaSuccess);
        gpu_read(&p.out);
        gpu_read(&p.dqkv);
        if (seed == 0) {
            first_out = gpu_doubles(p.out.count);
            first_dqkv = gpu_doubles(p.dqkv.count);
            memcpy(first_out, p.out.host, p.out.count * sizeof(double));
            memcpy(first_dqkv, p.dqkv.host, p.dqkv.count * sizeof(double));
        }
        assert_memory_equal(first_out, p.out.host, p.out.count * sizeof(double));
        assert_memory_equal(first_dqkv, p.dqkv.host, p.dqkv.count * sizeof(double));
    }
}

static void test_refuses_wide_heads(void **state)
{
    (void)state;
    struct problem p = problem_of(&(struct setup){1, 2, 1, 1, 129}, true);
    assert_int_equal(run_forward(&p), cudaErrorInvalidValue);
    assert_int_equal(run_backward(&p), cudaErrorInvalidValue);
}

/* Rows that are 2^24 + 8 elements apart: the last of 130 begins beyond 2^31. */
#define FAR_STRIDE ((1u << 24) + 8)
#define FAR_ROWS   130u
#define FAR_DEPTH  32u

static struct gpu_attention_array far_array(void)
{
    uint64_t bytes = ((uint64_t)FAR_STRIDE * (FAR_ROWS - 1) + FAR_DEPTH) * sizeof(uint16_t);
    return (struct gpu_attention_array){gpu_big(bytes), FAR_STRIDE};
}

/* Row by row between a far array and columns of a near one, in either direction. */
static void far_copy(const struct gpu_attention_array *far, void *near, uint32_t width, bool to_far)
{
    for (uint32_t r = 0; r < FAR_ROWS; r++) {
        void *there = (uint16_t *)far->at + (uint64_t)r * FAR_STRIDE;
        void *here = (uint16_t *)near + (uint64_t)r * width;
        assert_int_equal(cudaMemcpyAsync(to_far ? there : here, to_far ? here : there,
                                         FAR_DEPTH * sizeof(uint16_t), cudaMemcpyDeviceToDevice,
                                         gpu_stream),
                         cudaSuccess);
    }
}

static void test_index_beyond_31_bits(void **state)
{
    (void)state;
    struct problem p = problem_of(&(struct setup){1, FAR_ROWS, 1, 1, FAR_DEPTH}, true);
    struct gpu_attention_array far[8]; /* q, k, v, out, dout, dq, dk, dv */
    compute_reference(&p, true);
    for (unsigned i = 0; i < 8; i++)
        far[i] = far_array();
    for (unsigned i = 0; i < 3; i++)
        far_copy(&far[i], (uint16_t *)p.qkv.device + i * FAR_DEPTH, p.wide, true);
    far_copy(&far[4], p.dout.device, FAR_DEPTH, true);
    struct gpu_attention_forward forward = {shape_of(&p), far[0], far[1],
                                            far[2],       far[3], p.log_sum.device};
    struct gpu_attention_backward backward = {
        shape_of(&p),     far[0],         far[1], far[2], far[3], far[4],
        p.log_sum.device, p.delta.device, far[5], far[6], far[7]};
    assert_int_equal(gpu_attention_forward(&forward, gpu_stream), cudaSuccess);
    assert_int_equal(gpu_attention_backward(&backward, gpu_stream), cudaSuccess);
    far_copy(&far[3], p.out.device, FAR_DEPTH, false);
    for (unsigned i = 0; i < 3; i++)
        far_copy(&far[5 + i], (uint16_t *)p.dqkv.device + i * FAR_DEPTH, p.wide, false);
    gpu_check("out", &p.out, p.expected_out, BF16_TOLERANCE);
    gpu_check("dqkv", &p.dqkv, p.expected_dqkv, BF16_TOLERANCE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_fp32),
        gpu_unit_test(test_bf16),
        gpu_unit_test(test_real_shape),
        gpu_unit_test(test_same_bits),
        gpu_unit_test(test_refuses_wide_heads),
        gpu_unit_test(test_index_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
