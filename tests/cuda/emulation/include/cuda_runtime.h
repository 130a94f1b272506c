/*
 * CUDA C++ for kernels that are compiled as plain C++: the keywords, the built-in variables, and
 * the functions of device code that the project uses. A CUDA thread is a fiber (block.c); a
 * function that meets other threads gives way until they have come.
 *
 * No template of the standard library is used here, so that none of its functions is compiled both
 * with and without instrumentation in the checked flavour.
 */
#ifndef SPILLWAY_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H
#define SPILLWAY_TESTS_CUDA_EMULATION_CUDA_RUNTIME_H

#include "cuda_runtime_api.h"
#include "device.h"
#include <math.h>
#include <string.h>

#define SPILLWAY_EMULATION 1
#define __global__
#define __device__
#define __grid_constant__
#define __host__
#define __forceinline__        inline __attribute__((always_inline))
#define __launch_bounds__(...) /* a hint for the compiler of device code */

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
        : x(x_), y(y_), z(z_)
    {
    }
};

/* Ordinary variables that a switch between threads rewrites; macros would also hit the members of
 * cudaLaunchConfig_t that have the same names. */
static const struct emulation_triple &threadIdx = emulation_index.thread;
static const struct emulation_triple &blockIdx = emulation_index.block;
static const struct emulation_triple &blockDim = emulation_index.block_size;
static const struct emulation_triple &gridDim = emulation_index.grid_size;

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned int numAttrs;
};

/* Kernels of the project take one struct. */
template <class P> struct emulation_call {
    void (*kernel)(P);
    P parameters;

    static void run(const void *call)
    {
        const emulation_call *c = static_cast<const emulation_call *>(call);
        c->kernel(c->parameters);
    }
};

template <class P>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P),
                               const P &parameters)
{
    static_assert(__is_trivially_copyable(P), "kernel parameters are copied as bytes");
    const emulation_call<P> call = {kernel, parameters};
    emulation_launch launch = {
        {config->gridDim.x, config->gridDim.y, config->gridDim.z},
        {config->blockDim.x, config->blockDim.y, config->blockDim.z},
        config->dynamicSmemBytes,
        config->stream,
        (const void *)kernel,
        emulation_call<P>::run,
        &call,
        sizeof(call),
    };
    return emulation_launch_kernel(&launch);
}

template <class T>
cudaError_t cudaFuncSetAttribute(T *kernel, cudaFuncAttribute attribute, int value)
{
    return emulation_set_attribute((const void *)kernel, attribute, value);
}

/* -- Meeting other threads. Each call tells where it stands: a default argument of its own, as GCC
 * evaluates these where the call is only then. -- */

#define EMULATION_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATION_PLACE)
{
    emulation_barrier({file, line});
}

inline void __syncwarp(unsigned int mask = 0xffffffffu, EMULATION_PLACE)
{
    emulation_warp_barrier(mask, {file, line});
}

template <class T> struct emulation_shuffle {
    T in, out;
    int source; /* -1: keeps its own value */
};

template <class T> void emulation_shuffle_all(void *const *lanes, unsigned int mask)
{
    for (int l = 0; l < 32; l++) {
        emulation_shuffle<T> *lane = static_cast<emulation_shuffle<T> *>(lanes[l]);
        if (!lane || lane->source < 0)
            continue;
        if (!lanes[lane->source])
            emulation_fault("shuffle", "lane %d reads lane %d, which is not in mask %08x or gone",
                            l, lane->source, mask);
        else
            lane->out = static_cast<emulation_shuffle<T> *>(lanes[lane->source])->in;
    }
}

template <class T>
T emulation_shuffle_run(unsigned int mask, T value, int source, const char *what,
                        struct emulation_place place)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    emulation_shuffle<T> lane = {value, value, source};
    emulation_collective(mask, &lane, emulation_shuffle_all<T>, what, false, place);
    return lane.out;
}

template <class T> T __shfl_sync(unsigned int mask, T value, int source, EMULATION_PLACE)
{
    return emulation_shuffle_run(mask, value, source & 31, "__shfl_sync", {file, line});
}

template <class T> T __shfl_xor_sync(unsigned int mask, T value, int flip, EMULATION_PLACE)
{
    return emulation_shuffle_run(mask, value, (int)emulation_lane() ^ flip, "__shfl_xor_sync",
                                 {file, line});
}

struct emulation_ballot {
    int predicate;
    unsigned int result;
};

inline void emulation_ballot_all(void *const *lanes, unsigned int mask)
{
    unsigned int result = 0;
    for (int l = 0; l < 32; l++)
        if (lanes[l] && static_cast<emulation_ballot *>(lanes[l])->predicate)
            result |= 1u << l;
    for (int l = 0; l < 32; l++)
        if (lanes[l])
            static_cast<emulation_ballot *>(lanes[l])->result = result;
    (void)mask;
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, EMULATION_PLACE)
{
    emulation_ballot lane = {predicate, 0};
    emulation_collective(mask, &lane, emulation_ballot_all, "__ballot_sync", false, {file, line});
    return lane.result;
}

/* -- Atomics: the compiler's own, which every sanitizer knows as such. -- */

inline unsigned int atomicOr(unsigned int *address, unsigned int value)
{
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}

/* -- Arithmetic -- */

struct alignas(16) float4 {
    float x, y, z, w;
};

/* As exact as they need not be. */
inline float __expf(float x)
{
    return expf(x);
}

inline float __fdividef(float a, float b)
{
    return a / b;
}

inline unsigned int min(unsigned int a, unsigned int b)
{
    return a < b ? a : b;
}

inline unsigned int __float_as_uint(float value)
{
    unsigned int bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

inline float __uint_as_float(unsigned int bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

inline unsigned int __umulhi(unsigned int a, unsigned int b)
{
    return (unsigned int)(((unsigned long long)a * b) >> 32);
}

inline int __popc(unsigned int bits)
{
    return __builtin_popcount(bits);
}

#endif
