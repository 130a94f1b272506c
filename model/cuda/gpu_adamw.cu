/*
 * A block of threads has a block of moments, a thread a parameter: all of a block's moments are
 * loaded, those in segments are updated, and all are stored again, as offload/exec.c does it on the
 * CPU. tests/cuda/test_gpu_adamw.c compares the bits.
 */
#include "model/cuda/gpu_adamw.h"
#include "model/cuda/element.cuh"

#define THREADS         GPU_ADAMW_BLOCK
#define FLOAT_INFINITY  0x7f800000u
#define ROUNDING        4u /* RNG_STREAM_ROUNDING */
#define KEY_FIRST       ((127u - 24u) * 128u)
#define NUMBERS         64u /* RNG_MANY */
#define MAP_ENTRIES     256u
#define MAGNITUDES_OF_M 129u

static __device__ __forceinline__ bool not_finite(float value)
{
    return (__float_as_uint(value) & FLOAT_INFINITY) == FLOAT_INFINITY;
}

/* -- Random bits: Philox-4x32-10 (Salmon et al. 2011), core/rng.h's numbers -- */

static __device__ __forceinline__ uint32_t random_word(const struct gpu_adamw &p, uint64_t first,
                                                       uint64_t block)
{
    uint64_t index = (first + block * GPU_ADAMW_BLOCK) / 4 + threadIdx.x % NUMBERS;
    uint32_t key0 = (uint32_t)p.step.seed, key1 = (uint32_t)(p.step.seed >> 32);
    uint32_t x0 = (uint32_t)index, x1 = (uint32_t)(index >> 32), x2 = ROUNDING, x3 = p.step.step;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint32_t high0 = __umulhi(0xD2511F53u, x0), low0 = 0xD2511F53u * x0;
        uint32_t high1 = __umulhi(0xCD9E8D57u, x2), low1 = 0xCD9E8D57u * x2;
        x0 = high1 ^ x1 ^ key0;
        x1 = low1;
        x2 = high0 ^ x3 ^ key1;
        x3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    uint32_t word = threadIdx.x / NUMBERS;
    return word == 0 ? x0 : word == 1 ? x1 : word == 2 ? x2 : x3;
}

/* -- Moments as they are stored -- */

struct eight_bits {
    float scale;
    uint8_t code[GPU_ADAMW_BLOCK];
};

static __device__ __forceinline__ float load_moment(const struct gpu_adamw &p, const void *plane,
                                                    const gpu_adamw_map &map, uint64_t block)
{
    uint64_t at = block * GPU_ADAMW_BLOCK + threadIdx.x;
    if (p.moments == GPU_ADAMW_FP32)
        return static_cast<const float *>(plane)[at];
    if (p.moments == GPU_ADAMW_BF16)
        return __uint_as_float((uint32_t) static_cast<const uint16_t *>(plane)[at] << 16);
    const eight_bits *stored = static_cast<const eight_bits *>(plane) + block;
    return map.value[stored->code[threadIdx.x]] * stored->scale;
}

/* Stochastic rounding: the lower half of the bits says how likely it is to go up. */
static __device__ __forceinline__ bool store_bf16(uint16_t *to, float value, uint32_t random)
{
    uint32_t bits = __float_as_uint(value), rounded = bits + (random & 0xffffu);
    *to = (uint16_t)(rounded >> 16);
    return !not_finite(value) && (rounded & FLOAT_INFINITY) != FLOAT_INFINITY;
}

static __device__ __forceinline__ uint32_t block_largest(uint32_t value, uint32_t *scratch)
{
    for (int flip = 16; flip > 0; flip /= 2) {
        uint32_t other = __shfl_xor_sync(ALL_LANES, value, flip);
        value = other > value ? other : value;
    }
    if (threadIdx.x % WARP == 0)
        scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    for (uint32_t w = 0; w < THREADS / WARP; w++)
        value = scratch[w] > value ? scratch[w] : value;
    __syncthreads();
    return value;
}

/* To the nearest entry of the map (model/moments.c). Every thread of the block calls it; the old
 * scale has been read when they have met over the largest magnitude. */
static __device__ __forceinline__ bool
store_8bit(eight_bits *to, float value, const gpu_adamw_map &map, bool is_signed, uint32_t *scratch)
{
    uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
    uint32_t largest = block_largest(magnitude, scratch);
    bool usable = largest > 0 && largest < FLOAT_INFINITY;
    if (threadIdx.x == 0)
        to->scale = __uint_as_float(largest);
    uint32_t entry = 0;
    if (usable) {
        float scaled = __uint_as_float(magnitude) / __uint_as_float(largest);
        uint32_t key = __float_as_uint(scaled) >> 16;
        key = key > KEY_FIRST ? key - KEY_FIRST : 0;
        entry = map.start[key];
        entry += scaled >= map.middle[entry];
        bool negative = is_signed && bits >> 31;
        uint32_t most = negative ? MAGNITUDES_OF_M - 2 : MAP_ENTRIES - 1;
        entry = entry < most ? entry : most;
        entry += !is_signed && entry == 0 && magnitude > 0;
        entry = negative ? MAP_ENTRIES - entry : entry;
    }
    to->code[threadIdx.x] = (uint8_t)entry;
    return largest < FLOAT_INFINITY;
}

/* -- The update -- */

struct moments_pair {
    float m, v;
};

enum { PADDING, STAYS, DECAYS };

static __device__ __forceinline__ int kind_of(const struct gpu_adamw &p, const gpu_adamw_run &run,
                                              uint64_t at)
{
    for (uint32_t s = 0; s < run.segment_count; s++) {
        const gpu_adamw_segment &segment = p.segments[run.segment_first + s];
        if (at >= segment.first && at - segment.first < segment.count)
            return segment.decay ? DECAYS : STAYS;
    }
    return PADDING;
}

/* model/optim.c's loop, one turn of it. False when the new weight is not finite. */
static __device__ __forceinline__ bool update(const struct gpu_adamw &p, const gpu_adamw_run &run,
                                              uint64_t at, bool decays, moments_pair *moments)
{
    const gpu_adamw_step &s = p.step;
    float gradient = p.bf16 ? to_float(static_cast<const bf16 *>(run.gradient)[at])
                            : static_cast<const float *>(run.gradient)[at];
    gradient *= s.clip_factor;
    float weight = __uint_as_float(((uint32_t)run.hi[at] << 16) + (uint32_t)(int32_t)run.lo[at]);
    moments->m = s.beta1 * moments->m + (1.0f - s.beta1) * gradient;
    moments->v = s.beta2 * moments->v + (1.0f - s.beta2) * (gradient * gradient);
    float direction = (moments->m * s.correction1) / (sqrtf(moments->v * s.correction2) + s.eps);
    weight -= s.lr * (direction + (decays ? s.weight_decay : 0.0f) * weight);
    uint32_t bits = __float_as_uint(weight), high = (bits + 0x8000u) >> 16;
    run.hi[at] = (uint16_t)high;
    run.lo[at] = (int16_t)(uint16_t)(bits - (high << 16));
    return !not_finite(weight);
}

__global__ void adamw_kernel(const __grid_constant__ struct gpu_adamw p)
{
    SHARED(shared);
    uint32_t *scratch = reinterpret_cast<uint32_t *>(shared);
    const gpu_adamw_run &run = p.runs[blockIdx.y];
    uint64_t block = blockIdx.x, at = block * GPU_ADAMW_BLOCK + threadIdx.x;
    if (block * GPU_ADAMW_BLOCK >= run.count)
        return;
    int kind = kind_of(p, run, at);
    moments_pair moments = {};
    bool finite = true;
    if (kind != PADDING || p.moments != GPU_ADAMW_FP32)
        moments = {load_moment(p, run.m, p.map_m, block), load_moment(p, run.v, p.map_v, block)};
    if (kind != PADDING)
        finite = update(p, run, at, kind == DECAYS, &moments);
    if (p.moments == GPU_ADAMW_FP32 && kind != PADDING) {
        static_cast<float *>(run.m)[at] = moments.m;
        static_cast<float *>(run.v)[at] = moments.v;
    } else if (p.moments == GPU_ADAMW_BF16) {
        uint32_t random = random_word(p, run.first, block);
        finite &= store_bf16(static_cast<uint16_t *>(run.m) + at, moments.m, random);
        finite &= store_bf16(static_cast<uint16_t *>(run.v) + at, moments.v, random >> 16);
    } else if (p.moments == GPU_ADAMW_8BIT) {
        eight_bits *m = static_cast<eight_bits *>(run.m) + block;
        eight_bits *v = static_cast<eight_bits *>(run.v) + block;
        finite &= store_8bit(m, moments.m, p.map_m, true, scratch);
        finite &= store_8bit(v, moments.v, p.map_v, false, scratch);
    }
    if (!finite)
        atomicOr(run.broken, 1u);
}

cudaError_t gpu_adamw(const struct gpu_adamw *args, cudaStream_t stream)
{
    uint64_t most = 0;
    if (args->run_count == 0 || args->run_count > GPU_ADAMW_RUNS)
        return cudaErrorInvalidValue;
    for (uint32_t i = 0; i < args->run_count; i++)
        most = larger_of(most, args->runs[i].count);
    launch_shape shape = {};
    shape.grid = dim3((unsigned)blocks_for(most, GPU_ADAMW_BLOCK), args->run_count);
    shape.block = dim3(THREADS);
    shape.shared_bytes = THREADS / WARP * sizeof(uint32_t);
    return launch(adamw_kernel, shape, stream, *args);
}
