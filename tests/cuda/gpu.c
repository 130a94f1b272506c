#include "tests/cuda/gpu.h"
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECES_MAX 4096u

cudaStream_t gpu_stream;

static void *device_pieces[PIECES_MAX], *host_pieces[PIECES_MAX];
static uint32_t device_count, host_count;
static uint64_t next_seed = 1;

int gpu_setup(void **state)
{
    (void)state;
    emulation_reset(next_seed++);
    emulation_set_quiet(false);
    return cudaStreamCreateWithFlags(&gpu_stream, cudaStreamNonBlocking) != cudaSuccess;
}

void gpu_free_all(void)
{
    for (uint32_t i = 0; i < device_count; i++)
        cudaFree(device_pieces[i]);
    for (uint32_t i = 0; i < host_count; i++)
        mem_free(host_pieces[i]);
    device_count = host_count = 0;
}

int gpu_teardown(void **state)
{
    (void)state;
    cudaError_t error = cudaStreamSynchronize(gpu_stream);
    gpu_free_all();
    cudaStreamDestroy(gpu_stream);
    return error != cudaSuccess || emulation_fault_count() > 0;
}

double *gpu_doubles(uint64_t count)
{
    assert_true(host_count < PIECES_MAX);
    return host_pieces[host_count++] = mem_alloc(count + 1, sizeof(double));
}

static size_t bytes_of(enum gpu_type type)
{
    static const size_t bytes[] = {4, 2, 4, 8};
    return bytes[type];
}

struct gpu_array gpu_unwritten(enum gpu_type type, uint64_t count)
{
    struct gpu_array array = {.type = type, .count = count, .host = gpu_doubles(count)};
    assert_true(device_count < PIECES_MAX);
    assert_int_equal(cudaMalloc(&array.device, count * bytes_of(type)), cudaSuccess);
    device_pieces[device_count++] = array.device;
    return array;
}

void *gpu_big(uint64_t bytes)
{
    void *big = NULL;
    assert_true(bytes > GIB && device_count < PIECES_MAX);
    if (getenv("GPU_TESTS_SMALL"))
        skip();
    cudaError_t error = cudaMalloc(&big, bytes);
    if (error == cudaErrorMemoryAllocation && !emulation_is_here) {
        cudaGetLastError();
        print_message("skipped: the card has no %.1f GiB free\n", (double)bytes / GIB);
        skip();
    }
    assert_int_equal(error, cudaSuccess);
    device_pieces[device_count++] = big;
    /* The emulation's is zero already, and not there before it is touched. */
    if (!emulation_is_here)
        assert_int_equal(cudaMemsetAsync(big, 0, bytes, gpu_stream), cudaSuccess);
    return big;
}

static void encode(void *to, enum gpu_type type, uint64_t at, double value)
{
    switch (type) {
    case GPU_FLOAT:
        ((float *)to)[at] = (float)value;
        return;
    case GPU_BF16:
        ((uint16_t *)to)[at] = float_to_bf16((float)value);
        return;
    case GPU_U32:
        ((uint32_t *)to)[at] = (uint32_t)value;
        return;
    default:
        ((double *)to)[at] = value;
    }
}

static double decode(const void *from, enum gpu_type type, uint64_t at)
{
    switch (type) {
    case GPU_FLOAT:
        return ((const float *)from)[at];
    case GPU_BF16:
        return float_from_bf16(((const uint16_t *)from)[at]);
    case GPU_U32:
        return ((const uint32_t *)from)[at];
    default:
        return ((const double *)from)[at];
    }
}

/* On a card a copy of pageable memory may still be under way when the call returns, and the stream
 * does not wait for it. */
void gpu_upload(void *to, const void *from, size_t bytes)
{
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
}

void gpu_write(struct gpu_array *array)
{
    size_t bytes = array->count * bytes_of(array->type);
    void *coded = mem_alloc(1, bytes + 8);
    for (uint64_t i = 0; i < array->count; i++) {
        encode(coded, array->type, i, array->host[i]);
        array->host[i] = decode(coded, array->type, i);
    }
    gpu_upload(array->device, coded, bytes);
    mem_free(coded);
}

void gpu_read(struct gpu_array *array)
{
    size_t bytes = array->count * bytes_of(array->type);
    void *coded = mem_alloc(1, bytes + 8);
    assert_int_equal(cudaStreamSynchronize(gpu_stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(coded, array->device, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    for (uint64_t i = 0; i < array->count; i++)
        array->host[i] = decode(coded, array->type, i);
    mem_free(coded);
}

struct gpu_array gpu_random(const struct gpu_random *args)
{
    struct gpu_array array = gpu_unwritten(args->type, args->count);
    for (uint64_t i = 0; i < args->count; i++)
        array.host[i] = args->mean + args->deviation * rng_normal(args->seed, 1, i);
    gpu_write(&array);
    return array;
}

struct gpu_array gpu_normal(bool bf16, uint64_t count, uint64_t seed, double deviation)
{
    return gpu_random(&(struct gpu_random){
        .type = gpu_element(bf16), .count = count, .seed = seed, .deviation = deviation});
}

struct gpu_array gpu_below(uint64_t count, uint64_t seed, uint32_t bound)
{
    struct gpu_array array = gpu_unwritten(GPU_U32, count);
    for (uint64_t i = 0; i < count; i++)
        array.host[i] = (double)rng_below(seed, 2, i, bound);
    gpu_write(&array);
    return array;
}

double gpu_tolerance(bool bf16)
{
    return bf16 ? BF16_TOLERANCE : FP32_TOLERANCE;
}

void gpu_check(const char *what, struct gpu_array *ours, const double *reference, double tolerance)
{
    gpu_read(ours);
    double difference = 0.0, size = 0.0;
    for (uint64_t i = 0; i < ours->count; i++) {
        difference += (ours->host[i] - reference[i]) * (ours->host[i] - reference[i]);
        size += reference[i] * reference[i];
    }
    double error = difference == 0.0 ? 0.0 : sqrt(difference / size);
    if (!(error <= tolerance))
        print_error("%s: relative error %g, allowed %g\n", what, error, tolerance);
    assert_true(error <= tolerance);
}
