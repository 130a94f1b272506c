/*
 * The update is one pass over hi, lo, m, v and the gradient: it is bound by memory, so what counts
 * is that every byte is touched once. The loop is written for the compiler's vectoriser and
 * compiled three times; the versions give the same bits, because every operation in it is one that
 * IEEE 754 rounds correctly (+ - * / sqrt) and the build forbids contraction (-ffp-contract=off):
 * otherwise AVX-512 would fuse what SSE2 does not. test_optim compares against plain scalar code.
 */
#include "model/optim.h"
#include "core/base.h"
#include "core/float.h"
#include <math.h>

double optim_learning_rate(const struct optim_settings *settings, uint64_t step)
{
    if (step < settings->warmup_steps)
        return settings->lr * (double)(step + 1) / (double)settings->warmup_steps;
    if (step >= settings->total_steps)
        return settings->min_lr;
    double done = (double)(step - settings->warmup_steps) /
                  (double)(settings->total_steps - settings->warmup_steps);
    return settings->min_lr + 0.5 * (settings->lr - settings->min_lr) * (1.0 + cos(M_PI * done));
}

double optim_clip_factor(const struct optim_settings *settings, double norm)
{
    ASSERT(settings->clip >= 0.0);
    if (settings->clip == 0.0 || !(norm > settings->clip))
        return 1.0;
    return settings->clip / norm;
}

void optim_step_init(struct optim_step *scalars, const struct optim_settings *settings,
                     uint64_t step, double clip_factor)
{
    double t = (double)step + 1.0;
    *scalars = (struct optim_step){
        .lr = (float)optim_learning_rate(settings, step),
        .beta1 = (float)settings->beta1,
        .beta2 = (float)settings->beta2,
        .eps = (float)settings->eps,
        .weight_decay = (float)settings->weight_decay,
        .clip_factor = (float)clip_factor,
        .correction1 = (float)(1.0 / (1.0 - pow(settings->beta1, t))),
        .correction2 = (float)(1.0 / (1.0 - pow(settings->beta2, t))),
        .step = step,
    };
}

/* Returns bits with all of the exponent set when some new weight was not finite. */
static inline __attribute__((always_inline)) bool update_loop(const struct optim_range *range,
                                                              const struct optim_step *scalars,
                                                              bool gradient_is_bf16)
{
    uint16_t *restrict hi = range->hi;
    int16_t *restrict lo = range->lo;
    float *restrict m = range->m;
    float *restrict v = range->v;
    const float *restrict gradient_fp32 = range->gradient;
    const uint16_t *restrict gradient_bf16 = range->gradient;
    const struct optim_step s = *scalars;
    const float rest1 = 1.0f - s.beta1, rest2 = 1.0f - s.beta2;
    const float decay = range->decay ? s.weight_decay : 0.0f;
    uint32_t broken = 0;
    for (uint64_t i = 0; i < range->count; i++) {
        float gradient =
            gradient_is_bf16 ? float_from_bits((uint32_t)gradient_bf16[i] << 16) : gradient_fp32[i];
        gradient *= s.clip_factor;
        float weight = float_from_bits(((uint32_t)hi[i] << 16) + (uint32_t)(int32_t)lo[i]);
        m[i] = s.beta1 * m[i] + rest1 * gradient;
        v[i] = s.beta2 * v[i] + rest2 * (gradient * gradient);
        float direction = (m[i] * s.correction1) / (sqrtf(v[i] * s.correction2) + s.eps);
        weight -= s.lr * (direction + decay * weight);
        uint32_t bits = float_bits(weight);
        uint32_t high = (bits + 0x8000u) >> 16;
        hi[i] = (uint16_t)high;
        lo[i] = (int16_t)(uint16_t)(bits - (high << 16));
        broken |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return broken == 0;
}

static inline __attribute__((always_inline)) bool
update(const struct optim_range *range, const struct optim_step *scalars, enum precision precision)
{
    if (precision == PRECISION_BF16)
        return update_loop(range, scalars, true);
    return update_loop(range, scalars, false);
}

static bool update_plain(const struct optim_range *range, const struct optim_step *scalars,
                         enum precision precision)
{
    return update(range, scalars, precision);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static bool update_avx2(const struct optim_range *range,
                                                        const struct optim_step *scalars,
                                                        enum precision precision)
{
    return update(range, scalars, precision);
}

__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))) static bool
update_avx512(const struct optim_range *range, const struct optim_step *scalars,
              enum precision precision)
{
    return update(range, scalars, precision);
}
#endif

bool optim_update(const struct optim_range *range, const struct optim_step *scalars,
                  enum precision gradient_precision)
{
    ASSERT(range->hi && range->lo && range->m && range->v && range->gradient);
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        return update_avx512(range, scalars, gradient_precision);
    if (__builtin_cpu_supports("avx2"))
        return update_avx2(range, scalars, gradient_precision);
#endif
    return update_plain(range, scalars, gradient_precision);
}
