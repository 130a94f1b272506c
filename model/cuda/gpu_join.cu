#include "model/cuda/gpu_join.h"
#include "model/cuda/launch.cuh"

__global__ void join_kernel(struct gpu_join p)
{
    for (uint64_t i = flat_first(); i < p.count; i += flat_step())
        p.masters[i] = __uint_as_float(((uint32_t)p.hi[i] << 16) + (uint32_t)(int32_t)p.lo[i]);
}

cudaError_t gpu_join(const struct gpu_join *args, cudaStream_t stream)
{
    return launch(join_kernel, flat_shape(args->count), stream, *args);
}
