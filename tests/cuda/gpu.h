/*
 * gpu: what the tests of CUDA kernels have in common: a stream, device memory with values in it,
 * and the measure of an error. Works on the emulation and on a GPU alike.
 *
 * Values are kept as double, rounded to what the device can hold, so that the float64 reference and
 * the kernel start from the same numbers.
 */
#ifndef SPILLWAY_TESTS_CUDA_GPU_H
#define SPILLWAY_TESTS_CUDA_GPU_H

#include "tests/cuda/emulation/emulation.h"
#include "tests/shared/check.h"
#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stdint.h>

#define FP32_TOLERANCE 1e-5
#define BF16_TOLERANCE 1e-2

extern cudaStream_t gpu_stream;

/* As setup and teardown of a test case: opens the stream; checks that nothing was found, and frees
 * everything. The emulation's seed differs from case to case. */
int gpu_setup(void **state);
int gpu_teardown(void **state);

#define gpu_unit_test(function) cmocka_unit_test_setup_teardown(function, gpu_setup, gpu_teardown)

/* Frees all device memory and host arrays of the case so far. */
void gpu_free_all(void);

enum gpu_type { GPU_FLOAT, GPU_BF16, GPU_U32, GPU_DOUBLE };

struct gpu_array {
    enum gpu_type type;
    uint64_t count;
    double *host; /* what the device has, as of gpu_random or gpu_read */
    void *device;
};

/* Normal with this deviation around the mean, rounded to type; in host and device memory. */
struct gpu_random {
    enum gpu_type type;
    uint64_t count, seed;
    double mean, deviation;
};
struct gpu_array gpu_random(const struct gpu_random *args);
/* E by the flag, around zero. */
struct gpu_array gpu_normal(bool bf16, uint64_t count, uint64_t seed, double deviation);
/* Uniform below bound, GPU_U32. */
struct gpu_array gpu_below(uint64_t count, uint64_t seed, uint32_t bound);
/* Device memory that nobody has written. */
struct gpu_array gpu_unwritten(enum gpu_type type, uint64_t count);
/* Device memory of more than 1 GiB, zero until something writes to it; the case is skipped where a
 * card has no such memory free, and where GPU_TESTS_SMALL is in the environment. */
void *gpu_big(uint64_t bytes);
/* From host memory to the device. */
void gpu_write(struct gpu_array *array);
/* Any bytes: when it returns, streams may use them. */
void gpu_upload(void *to, const void *from, size_t bytes);
/* Waits for the stream, and fetches. */
void gpu_read(struct gpu_array *array);

static inline enum gpu_type gpu_element(bool bf16)
{
    return bf16 ? GPU_BF16 : GPU_FLOAT;
}

double *gpu_doubles(uint64_t count);

/* |ours - reference| / |reference| by Euclidean norm; fails above tolerance, and on a NaN. Fetches
 * ours first. */
void gpu_check(const char *what, struct gpu_array *ours, const double *reference, double tolerance);

/* By type: FP32_TOLERANCE or BF16_TOLERANCE. */
double gpu_tolerance(bool bf16);

#endif
