/*
 * Embedding of tokens and positions on the GPU, against float64: one row, odd sizes, a model's
 * width; tiles of the vocabulary; gradients whose bits are those of a sum in order of rows; rows of
 * wte beyond index 2^31.
 */
#include "core/base.h"
#include "model/cuda/gpu_embed.h"
#include "tests/cuda/gpu.h"
#include <string.h>

struct size {
    uint32_t rows, channels, vocab, tile;
};
static const struct size sizes[] = {
    {1, 32, 1, 1}, {7, 96, 50, 13}, {2100, 32, 70, 70}, {300, 288, 5, 3}, {33, 768, 200, 130}};

static void check_forward(bool bf16, const struct size *s)
{
    uint64_t count = (uint64_t)s->rows * s->channels;
    struct gpu_array wte = gpu_normal(bf16, (uint64_t)s->vocab * s->channels, 1, 1.0);
    struct gpu_array tokens = gpu_below(s->rows, 2, s->vocab);
    struct gpu_array x = gpu_unwritten(GPU_FLOAT, count);
    double *expected = gpu_doubles(count);
    for (uint64_t i = 0; i < count; i++)
        expected[i] =
            wte.host[(uint64_t)tokens.host[i / s->channels] * s->channels + i % s->channels];
    for (uint32_t first = 0; first < s->vocab; first += s->tile) {
        struct gpu_embed_forward args = {.bf16 = bf16,
                                         .rows = s->rows,
                                         .channels = s->channels,
                                         .row_first = first,
                                         .row_count = MIN(s->tile, s->vocab - first),
                                         .tokens = tokens.device,
                                         .x = x.device};
        args.tile = (char *)wte.device + (uint64_t)first * s->channels * (bf16 ? 2 : 4);
        assert_int_equal(gpu_embed_forward(&args, gpu_stream), cudaSuccess);
    }
    gpu_check("x", &x, expected, 0.0);
    gpu_free_all();
}

/* In float and in order, so that equal means equal. */
static void check_backward(const struct size *s)
{
    uint64_t count = (uint64_t)s->vocab * s->channels;
    struct gpu_array dx = gpu_normal(false, (uint64_t)s->rows * s->channels, 1, 1.0);
    struct gpu_array tokens = gpu_below(s->rows, 2, s->vocab);
    struct gpu_array gradient = gpu_normal(false, count, 3, 1.0);
    double *expected = gpu_doubles(count);
    memcpy(expected, gradient.host, count * sizeof(double));
    for (uint64_t i = 0; i < dx.count; i++) {
        uint64_t row = (uint64_t)tokens.host[i / s->channels];
        double *to = &expected[row * s->channels + i % s->channels];
        *to = (float)((float)*to + (float)dx.host[i]);
    }
    for (uint32_t first = 0; first < s->vocab; first += s->tile) {
        struct gpu_embed_backward args = {.rows = s->rows,
                                          .channels = s->channels,
                                          .row_first = first,
                                          .row_count = MIN(s->tile, s->vocab - first),
                                          .tokens = tokens.device,
                                          .dx = dx.device};
        args.gradient = (float *)gradient.device + (uint64_t)first * s->channels;
        assert_int_equal(gpu_embed_backward(&args, gpu_stream), cudaSuccess);
    }
    gpu_check("gradient", &gradient, expected, 0.0);
    gpu_free_all();
}

static void test_tokens(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++) {
        check_forward(false, &sizes[i]);
        check_forward(true, &sizes[i]);
        check_backward(&sizes[i]);
    }
}

static void check_positions(bool bf16, uint32_t batch, uint32_t seq, uint32_t channels)
{
    uint64_t count = (uint64_t)batch * seq * channels, positions = seq + 2;
    struct gpu_array wpe = gpu_normal(bf16, positions * channels, 1, 1.0);
    struct gpu_array x = gpu_normal(false, count, 2, 1.0), dx = gpu_normal(false, count, 3, 1.0);
    struct gpu_array gradient = gpu_unwritten(GPU_FLOAT, positions * channels);
    double *expected = gpu_doubles(count), *sums = gpu_doubles(positions * channels);
    for (uint64_t i = 0; i < count; i++) {
        expected[i] = x.host[i] + wpe.host[i % ((uint64_t)seq * channels)];
        sums[i % ((uint64_t)seq * channels)] += dx.host[i];
    }
    struct gpu_position_backward backward = {batch,     seq,  channels, (uint32_t)positions,
                                             dx.device, NULL, false};
    backward.gradient = gradient.device;
    assert_int_equal(gpu_position_forward(&(struct gpu_position_forward){bf16, batch, seq, channels,
                                                                         wpe.device, x.device},
                                          gpu_stream),
                     cudaSuccess);
    assert_int_equal(gpu_position_backward(&backward, gpu_stream), cudaSuccess);
    gpu_check("x", &x, expected, FP32_TOLERANCE);
    gpu_check("gradient", &gradient, sums, FP32_TOLERANCE);
    backward.accumulate = true;
    assert_int_equal(gpu_position_backward(&backward, gpu_stream), cudaSuccess);
    for (uint64_t i = 0; i < positions * channels; i++)
        sums[i] *= 2.0;
    gpu_check("gradient twice", &gradient, sums, FP32_TOLERANCE);
    gpu_free_all();
}

static void test_positions(void **state)
{
    (void)state;
    for (unsigned bf16 = 0; bf16 < 2; bf16++) {
        check_positions(bf16, 1, 1, 32);
        check_positions(bf16, 3, 7, 96);
        check_positions(bf16, 2, 5, 768);
    }
}

/* A row of wte whose elements have numbers above 2^31, read in forward and added to in backward. */
static void test_index_beyond_31_bits(void **state)
{
    (void)state;
    const uint32_t channels = 1024, vocab = (1u << 21) + 9;
    const uint64_t at = (uint64_t)(vocab - 1) * channels;
    float *wte = gpu_big((at + channels) * sizeof(*wte));
    struct gpu_array tokens = gpu_unwritten(GPU_U32, 1);
    struct gpu_array row = gpu_normal(false, channels, 1, 1.0);
    struct gpu_array x = gpu_unwritten(GPU_FLOAT, channels);
    double *twice = gpu_doubles(channels);
    tokens.host[0] = vocab - 1;
    gpu_write(&tokens);
    assert_int_equal(cudaMemcpyAsync(wte + at, row.device, channels * sizeof(float),
                                     cudaMemcpyDeviceToDevice, gpu_stream),
                     cudaSuccess);
    struct gpu_embed_forward forward = {false, 1, channels, 0, vocab, wte, tokens.device, x.device};
    assert_int_equal(gpu_embed_forward(&forward, gpu_stream), cudaSuccess);
    gpu_check("x", &x, row.host, 0.0);
    struct gpu_embed_backward backward = {1, channels, 0, vocab, tokens.device, row.device, wte};
    assert_int_equal(gpu_embed_backward(&backward, gpu_stream), cudaSuccess);
    assert_int_equal(gpu_embed_forward(&forward, gpu_stream), cudaSuccess);
    for (uint32_t i = 0; i < channels; i++)
        twice[i] = 2.0 * row.host[i];
    gpu_check("added to", &x, twice, 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_tokens),
        gpu_unit_test(test_positions),
        gpu_unit_test(test_index_beyond_31_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
