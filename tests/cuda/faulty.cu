#include "tests/cuda/faulty.h"
#include "model/cuda/element.cuh"
#include "model/cuda/ptx.cuh"

#define THREADS 64u

static __device__ void meet(const struct faulty &p, float *shared)
{
    uint32_t i = threadIdx.x;
    shared[i] = (float)i;
    if (p.kind == FAULTY_NO_WARP_BARRIER) {
        p.x[i] = shared[i ^ 1];
        return;
    }
    if (p.kind == FAULTY_EARLY_EXIT && i >= 32)
        return;
    if (p.kind == FAULTY_TWO_BARRIERS && i >= 32)
        __syncthreads();
    else if (p.kind != FAULTY_NO_BARRIER)
        __syncthreads();
    p.x[i] = shared[(i + 32) % THREADS];
    if (p.kind != FAULTY_NO_SECOND_BARRIER)
        __syncthreads();
    shared[(i + 1) % THREADS] = 1.0f;
    __syncwarp();
}

static __device__ void talk(const struct faulty &p)
{
    uint32_t i = threadIdx.x;
    float value = (float)i;
    if (p.kind == FAULTY_SHUFFLE_OF_ENDED && i % WARP >= 20)
        return;
    if (p.kind == FAULTY_SHUFFLE_MASK)
        value = __shfl_xor_sync(0x0000ffffu, value, 1);
    else if (p.kind == FAULTY_SHUFFLE_OF_ENDED)
        value = __shfl_sync(ALL_LANES, value, 25);
    else if (i % WARP < 8)
        value = __shfl_xor_sync(ALL_LANES, value, 1);
    else
        __syncthreads();
    p.x[i] = value;
}

static __device__ void reach(const struct faulty &p, float *shared)
{
    uint32_t i = threadIdx.x;
    switch (p.kind) {
    case FAULTY_SHARED_PAST_END:
        shared[i + 1] = 1.0f;
        return;
    case FAULTY_DEVICE_PAST_END:
        p.x[i + 1] = 1.0f;
        return;
    case FAULTY_DEVICE_BEFORE_START:
        p.x[(int64_t)i - 1] = 1.0f;
        return;
    case FAULTY_FAR_AWAY:
        p.x[i + ((uint64_t)1 << 33)] = 1.0f;
        return;
    case FAULTY_MISALIGNED:
        if (i == 0)
            *reinterpret_cast<float4 *>(p.x) = *reinterpret_cast<const float4 *>(p.y + 1);
        return;
    case FAULTY_SHARED_UNWRITTEN:
        p.x[i] = shared[i];
        return;
    case FAULTY_TWO_BLOCKS:
        p.x[0] += 1.0f;
        return;
    default: /* FAULTY_UNWRITTEN, FAULTY_HOST_POINTER: y is not what it should be */
        p.x[i] = p.y[i];
    }
}

static __device__ void copy(const struct faulty &p, float *shared)
{
    uint32_t i = threadIdx.x;
    if (i < THREADS / 4)
        ptx_copy_async(p.kind == FAULTY_COPY_TO_DEVICE ? p.x + 4 * i : shared + 4 * i, p.y + 4 * i,
                       true);
    ptx_copy_commit();
    __syncthreads();
    p.x[i] = shared[i];
}

static __device__ void halves(const struct faulty &p)
{
    uint16_t *own = reinterpret_cast<uint16_t *>(p.x) + threadIdx.x;
    uint32_t value = *own;
    *own = (uint16_t)(value + __shfl_xor_sync(ALL_LANES, value, 1));
}

__global__ void faulty_kernel(struct faulty p)
{
    SHARED(memory);
    float *shared = reinterpret_cast<float *>(memory);
    if (p.kind == FAULTY_NOTHING_IN_HALVES)
        halves(p);
    else if (p.kind <= FAULTY_TWO_BARRIERS)
        meet(p, shared);
    else if (p.kind <= FAULTY_SHUFFLE_OF_ENDED)
        talk(p);
    else if (p.kind <= FAULTY_TWO_BLOCKS)
        reach(p, shared);
    else
        copy(p, shared);
}

__global__ void faulty_add_kernel(struct faulty_add p)
{
    uint64_t i = flat_first();
    if (i < p.count)
        p.x[i] += p.scale * p.y[i];
}

cudaError_t faulty_run(const struct faulty *args, cudaStream_t stream)
{
    launch_shape shape = {};
    shape.grid = dim3(args->kind == FAULTY_TWO_BLOCKS ? 4 : 1);
    shape.block = dim3(THREADS);
    shape.shared_bytes = THREADS * sizeof(float);
    return launch(faulty_kernel, shape, stream, *args);
}

cudaError_t faulty_add_run(const struct faulty_add *args, cudaStream_t stream)
{
    return launch(faulty_add_kernel, flat_shape(args->count), stream, *args);
}
