#include "offload/profile.h"

#include "core/base.h"

/* Per core: what two generations of desktop cores reach in whole training kernels (about half of
 * their matrix peak). The other figures are those of one PCIe 3 drive and dual-channel DDR4: a plan
 * made before anything was measured should promise too little rather than too much. */
#define DEFAULT_FP32_FLOPS  60e9
#define DEFAULT_BF16_FLOPS  110e9
#define DEFAULT_COPY_BYTES  8e9
#define DEFAULT_READ_BYTES  2e9
#define DEFAULT_WRITE_BYTES 1.7e9
#define DEFAULT_CPU_BYTES   12e9

#define LEARN_SECONDS_MIN 0.002

void profile_init(struct profile *profile, enum precision precision, uint32_t cores)
{
    ASSERT(cores > 0);
    double flops = precision == PRECISION_BF16 ? DEFAULT_BF16_FLOPS : DEFAULT_FP32_FLOPS;
    *profile = (struct profile){
        .rate = {[PROFILE_COMPUTE_FLOPS] = flops * cores,
                 [PROFILE_H2D_BYTES] = DEFAULT_COPY_BYTES,
                 [PROFILE_D2H_BYTES] = DEFAULT_COPY_BYTES,
                 [PROFILE_SSD_READ_BYTES] = DEFAULT_READ_BYTES,
                 [PROFILE_SSD_WRITE_BYTES] = DEFAULT_WRITE_BYTES,
                 [PROFILE_CPU_BYTES] = DEFAULT_CPU_BYTES},
    };
}

void profile_learn(struct profile *profile, enum profile_rate rate, double work, double busy_s)
{
    if (busy_s < LEARN_SECONDS_MIN || work <= 0)
        return;
    double seen = work / busy_s;
    profile->rate[rate] = profile->measured[rate] ? (profile->rate[rate] + seen) / 2 : seen;
    profile->measured[rate] = true;
}
