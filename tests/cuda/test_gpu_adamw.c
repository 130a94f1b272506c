/*
 * AdamW on the GPU gives the bits that model/optim and model/moments give on the CPU, for gradients
 * of both kinds and moments of all three, over several steps, with segments that decay, segments
 * that do not, and padding between them, in blocks that several segments share. Against float64 in
 * tests/model/test_optim.c stands the CPU. What is not finite is reported.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/mem.h"
#include "core/rng.h"
#include "model/cuda/gpu_adamw.h"
#include "model/moments.h"
#include "model/optim.h"
#include "tests/cuda/gpu.h"
#include <math.h>
#include <string.h>

#define COUNT  1999u
#define BLOCKS ((COUNT + GPU_ADAMW_BLOCK - 1) / GPU_ADAMW_BLOCK)
#define PADDED (BLOCKS * GPU_ADAMW_BLOCK)
#define FIRST  ((uint64_t)3 << 40)
#define SEED   99
#define STEPS  3

_Static_assert(GPU_ADAMW_BLOCK == MOMENTS_BLOCK, "moments lie in the same blocks");
_Static_assert((int)GPU_ADAMW_8BIT == (int)MOMENTS_8BIT && (int)GPU_ADAMW_BF16 == MOMENTS_BF16,
               "the kinds have the same numbers");

/* Not aligned to blocks; 1000 to 1023 and 1990 on are padding. */
static const struct gpu_adamw_segment segments[] = {
    {0, 300, 1}, {300, 7, 0}, {307, 693, 1}, {1024, 500, 0}, {1524, 466, 1}};

/* The same as two runs that are updated at once, cut where a block ends. */
#define CUT (2 * GPU_ADAMW_BLOCK)
static const struct gpu_adamw_segment cut_segments[] = {
    {0, 300, 1},        {300, 7, 0},          {307, CUT - 307, 1}, /* of the first */
    {0, 1000 - CUT, 1}, {1024 - CUT, 500, 0}, {1524 - CUT, 466, 1}};

struct state {
    uint16_t hi[PADDED];
    int16_t lo[PADDED];
    uint8_t m[PADDED * 4 + 64], v[PADDED * 4 + 64]; /* as stored */
    uint8_t gradient[PADDED * 4];
};

struct device_state {
    void *hi, *lo, *m, *v, *gradient, *maps, *broken;
};

static struct moments moments;

static void fill(struct state *s, bool bf16)
{
    memset(s, 0, sizeof(*s));
    for (uint32_t i = 0; i < COUNT; i++) {
        float gradient =
            (float)(rng_normal(SEED, 2, i) * pow(10.0, -6.0 * rng_uniform(SEED, 3, i)));
        float_split((float)rng_normal(SEED, 1, i), &s->hi[i], &s->lo[i]);
        if (bf16)
            ((uint16_t *)s->gradient)[i] = float_to_bf16(gradient);
        else
            ((float *)s->gradient)[i] = gradient;
    }
}

/* -- The CPU's way -- */

static bool update_segment(struct state *s, const struct optim_step *step, bool bf16,
                           struct optim_range range)
{
    uint64_t first = (uint64_t)(range.hi - s->hi);
    range.lo = s->lo + first;
    range.gradient = s->gradient + first * (bf16 ? 2 : 4);
    return optim_update(&range, step, bf16 ? PRECISION_BF16 : PRECISION_FP32);
}

static bool cpu_block(struct state *s, const struct optim_step *step, bool bf16, uint64_t at)
{
    uint64_t stored = moments_block_bytes(moments.kind), block = at / MOMENTS_BLOCK;
    struct moments_values values;
    bool finite = true;
    moments_load(&moments, &values, s->m + block * stored, s->v + block * stored);
    for (size_t i = 0; i < ARRAY_COUNT(segments); i++) {
        uint64_t from = MAX(at, segments[i].first);
        uint64_t to = MIN(at + MOMENTS_BLOCK, segments[i].first + segments[i].count);
        if (from >= to)
            continue;
        finite &= update_segment(s, step, bf16,
                                 (struct optim_range){.hi = s->hi + from,
                                                      .m = values.m + (from - at),
                                                      .v = values.v + (from - at),
                                                      .count = to - from,
                                                      .decay = segments[i].decay});
    }
    struct moments_place place = {step->step, FIRST + at};
    return finite &
           moments_store(&moments, &values, s->m + block * stored, s->v + block * stored, &place);
}

static bool cpu_step(struct state *s, const struct optim_step *step, bool bf16)
{
    bool finite = true;
    for (uint64_t at = 0; at < COUNT; at += MOMENTS_BLOCK)
        finite &= cpu_block(s, step, bf16, at);
    return finite;
}

/* -- The GPU's -- */

static void *upload(const void *host, size_t bytes)
{
    struct gpu_array array = gpu_unwritten(GPU_FLOAT, div_up(bytes, 4));
    gpu_upload(array.device, host, bytes);
    return array.device;
}

struct maps {
    struct moments_map m, v;
};

static struct device_state device_of(const struct state *s)
{
    const uint32_t zero = 0;
    struct maps maps = {moments.m, moments.v};
    size_t plane = BLOCKS * moments_block_bytes(moments.kind);
    return (struct device_state){upload(s->hi, sizeof(s->hi)),
                                 upload(s->lo, sizeof(s->lo)),
                                 upload(s->m, plane),
                                 upload(s->v, plane),
                                 upload(s->gradient, sizeof(s->gradient)),
                                 upload(&maps, sizeof(maps)),
                                 upload(&zero, sizeof(zero))};
}

static struct gpu_adamw_map map_of(const struct moments_map *map)
{
    return (struct gpu_adamw_map){map->value, map->middle, map->start};
}

static void gpu_step(const struct device_state *d, const struct optim_step *step, bool bf16)
{
    const struct maps *maps = d->maps;
    size_t moments_part = CUT / GPU_ADAMW_BLOCK * moments_block_bytes(moments.kind);
    struct gpu_adamw args = {
        .moments = (enum gpu_adamw_moments)moments.kind,
        .bf16 = bf16,
        .step = {step->lr, step->beta1, step->beta2, step->eps, step->weight_decay,
                 step->clip_factor, step->correction1, step->correction2, (uint32_t)step->step,
                 SEED},
        .map_m = map_of(&maps->m),
        .map_v = map_of(&maps->v),
        .run_count = 2,
        .segment_count = ARRAY_COUNT(cut_segments),
        .runs = {{.first = FIRST,
                  .count = CUT,
                  .segment_count = 3,
                  .hi = d->hi,
                  .lo = d->lo,
                  .m = d->m,
                  .v = d->v,
                  .gradient = d->gradient,
                  .broken = d->broken},
                 {.first = FIRST + CUT,
                  .count = COUNT - CUT,
                  .segment_first = 3,
                  .segment_count = 3,
                  .hi = (uint16_t *)d->hi + CUT,
                  .lo = (int16_t *)d->lo + CUT,
                  .m = (uint8_t *)d->m + moments_part,
                  .v = (uint8_t *)d->v + moments_part,
                  .gradient = (uint8_t *)d->gradient + CUT * (bf16 ? 2 : 4),
                  .broken = d->broken}},
    };
    memcpy(args.segments, cut_segments, sizeof(cut_segments));
    assert_int_equal(gpu_adamw(&args, gpu_stream), cudaSuccess);
}

static void check_equal(const void *host, const void *device, size_t bytes)
{
    void *copy = mem_alloc(1, bytes);
    assert_int_equal(cudaStreamSynchronize(gpu_stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(copy, device, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_memory_equal(host, copy, bytes);
    mem_free(copy);
}

static const struct optim_settings settings = {.lr = 1e-2,
                                               .min_lr = 1e-3,
                                               .warmup_steps = 1,
                                               .total_steps = 10,
                                               .beta1 = 0.9,
                                               .beta2 = 0.95,
                                               .eps = 1e-8,
                                               .weight_decay = 0.1,
                                               .clip = 1.0};

static void check_kind(enum moments_kind kind, bool bf16)
{
    static struct state s;
    moments_init(&moments, kind, SEED);
    fill(&s, bf16);
    struct device_state d = device_of(&s);
    for (uint64_t n = 0; n < STEPS; n++) {
        struct optim_step step;
        optim_step_init(&step, &settings, n, 0.7);
        assert_true(cpu_step(&s, &step, bf16));
        gpu_step(&d, &step, bf16);
    }
    const uint32_t zero = 0;
    size_t plane = BLOCKS * moments_block_bytes(kind);
    check_equal(s.hi, d.hi, sizeof(s.hi));
    check_equal(s.lo, d.lo, sizeof(s.lo));
    check_equal(s.m, d.m, plane);
    check_equal(s.v, d.v, plane);
    check_equal(&zero, d.broken, sizeof(zero));
    gpu_free_all();
}

static void test_same_bits_as_the_cpu(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        check_kind((enum moments_kind)kind, false);
        check_kind((enum moments_kind)kind, true);
    }
}

static void test_broken_is_told(void **state)
{
    (void)state;
    static struct state s;
    const uint32_t one = 1;
    for (unsigned kind = 0; kind < MOMENTS_KIND_COUNT; kind++) {
        struct optim_step step;
        moments_init(&moments, (enum moments_kind)kind, SEED);
        fill(&s, false);
        ((float *)s.gradient)[1100] = INFINITY;
        struct device_state d = device_of(&s);
        optim_step_init(&step, &settings, 0, 1.0);
        assert_false(cpu_step(&s, &step, false));
        gpu_step(&d, &step, false);
        check_equal(&one, d.broken, sizeof(one));
        gpu_free_all();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        gpu_unit_test(test_same_bits_as_the_cpu),
        gpu_unit_test(test_broken_is_told),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
