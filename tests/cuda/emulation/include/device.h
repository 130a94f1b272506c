/*
 * What the emulated headers call: the seam between code that is compiled as kernels and the
 * emulator, in C. ptx.cuh uses it too.
 */
#ifndef SPILLWAY_TESTS_CUDA_EMULATION_DEVICE_H
#define SPILLWAY_TESTS_CUDA_EMULATION_DEVICE_H

#include "cuda_runtime_api.h"
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct emulation_triple {
    unsigned int x, y, z;
};

/* Of the CUDA thread that runs now. */
struct emulation_indices {
    struct emulation_triple thread, block, block_size, grid_size;
};
extern struct emulation_indices emulation_index;

/* Where in the source a thread waits. */
struct emulation_place {
    const char *file;
    int line;
};

struct emulation_launch {
    struct emulation_triple grid_size, block_size;
    size_t shared_bytes;
    cudaStream_t stream;
    const void *kernel; /* the function, for its name and attributes */
    void (*run)(const void *call);
    const void *call;
    size_t call_bytes;
};
cudaError_t emulation_launch_kernel(const struct emulation_launch *launch);
cudaError_t emulation_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value);

unsigned int emulation_lane(void);
/* Dynamic shared memory of the block: where it ends no more can be touched. */
unsigned char *emulation_shared(void);

void emulation_barrier(struct emulation_place place);
void emulation_warp_barrier(unsigned int mask, struct emulation_place place);

/* All lanes of mask come, each with an operand; the last one runs all over the operands of all 32
 * lanes (NULL where a lane is not in mask or has ended), and they go on. aligned: they must stand
 * at the same line, as .aligned in PTX demands. */
void emulation_collective(unsigned int mask, void *operand,
                          void (*all)(void *const *lanes, unsigned int mask), const char *what,
                          bool aligned, struct emulation_place place);

/* cp.async: copies valid of 16 bytes and zeroes the rest, at some time until it is waited for. */
void emulation_copy_async(void *shared, const void *global, unsigned int valid);
void emulation_copy_commit(void);
void emulation_copy_wait(unsigned int groups_left);

/* An access that the compiler cannot see. */
void emulation_access(const void *memory, size_t bytes, bool write);

/* Something that would be a bug on a GPU. Does not return when a kernel's thread calls it. */
void emulation_fault(const char *kind, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#ifdef __cplusplus
}
#endif

#endif
