#include "model/cuda/gpu_join.h"
#include "model/cuda/element.cuh"

/* What one launch does, a row of the grid for each. */
struct joins {
    struct gpu_join of[GPU_JOIN_LIST];
};

static __device__ __forceinline__ void join_pack(const struct gpu_join &p, uint64_t at,
                                                 uint64_t left, const pack<uint16_t> &hi)
{
    constexpr uint32_t HALF = pack<float>::COUNT;
    pack<int16_t> lo = load_pack(p.lo + at, left);
    float *to = static_cast<float *>(p.weights) + at;
    pack<float> low, high;
#pragma unroll
    for (uint32_t i = 0; i < HALF; i++) {
        low.value[i] =
            __uint_as_float(((uint32_t)hi.value[i] << 16) + (uint32_t)(int32_t)lo.value[i]);
        high.value[i] = __uint_as_float(((uint32_t)hi.value[HALF + i] << 16) +
                                        (uint32_t)(int32_t)lo.value[HALF + i]);
    }
    store_group(to, low, left);
    if (left > HALF)
        store_group(to + HALF, high, left - HALF);
}

__global__ void join_kernel(const __grid_constant__ joins list)
{
    const struct gpu_join &p = list.of[blockIdx.y];
    for_packs<uint16_t>(p.count, [&](uint64_t at, uint64_t left) {
        pack<uint16_t> hi = load_pack(p.hi + at, left);
        if (p.lo)
            join_pack(p, at, left, hi);
        else
            store_group(static_cast<uint16_t *>(p.weights) + at, hi, left);
    });
}

cudaError_t gpu_join(const struct gpu_join *list, uint32_t count, cudaStream_t stream)
{
    if (count == 0 || count > GPU_JOIN_LIST)
        return cudaErrorInvalidValue;
    joins all = {};
    uint64_t most = 0;
    for (uint32_t i = 0; i < count; i++) {
        all.of[i] = list[i];
        most = larger_of(most, list[i].count);
    }
    launch_shape shape = flat_pack_shape<uint16_t>(most);
    shape.grid.y = count;
    return launch(join_kernel, shape, stream, all);
}
