#include "offload/bound.h"

#include "offload/cost.h"

#include <math.h>

struct phase_work {
    double lane_s[LANE_COUNT];
    double core_s; /* core seconds */
    double ram_bytes;
};

static void add_ops(struct phase_work *phases, const struct profile *profile,
                    const struct plan *plan, const double *stretch)
{
    for (uint32_t o = 0; o < plan->op_count; o++) {
        const struct plan_op *op = &plan->ops[o];
        struct phase_work *phase =
            &phases[o >= plan->backward_first ? PHASE_BACKWARD : PHASE_FORWARD];
        struct cost cost;
        if (op->kind == OP_RECOMPUTE || (op->flags & OP_COMMITTED))
            continue;
        cost_of(&cost, profile, plan, op);
        double work_s = cost.work_s * stretch[op->lane];
        if (op->lane == LANE_COMPUTE || op->lane == LANE_CPU)
            phase->lane_s[op->lane] += work_s;
        phase->core_s += work_s * cost.cores;
        phase->ram_bytes += cost.ram_bytes;
    }
}

static void add_least(struct phase_work *phase, const struct profile *profile,
                      const struct place_least *least, const double *stretch)
{
    const struct profile_device *device = &profile->device;
    const struct profile_ssd *ssd = &profile->ssd;
    double h2d = device->is_cpu ? profile->cpu.copy_bytes_per_s : device->h2d_bytes_per_s;
    double d2h = device->is_cpu ? profile->cpu.copy_bytes_per_s : device->d2h_bytes_per_s;
    phase->lane_s[LANE_H2D] = (double)least->h2d_bytes / h2d * stretch[LANE_H2D];
    phase->lane_s[LANE_D2H] = (double)least->d2h_bytes / d2h * stretch[LANE_D2H];
    if (!ssd->count)
        return;
    phase->lane_s[LANE_SSD_READ] = (double)least->ssd_read_bytes /
                                   (ssd->read_bytes_per_s * ssd->count) * stretch[LANE_SSD_READ];
    phase->lane_s[LANE_SSD_WRITE] = (double)least->ssd_write_bytes /
                                    (ssd->write_bytes_per_s * ssd->count) * stretch[LANE_SSD_WRITE];
}

/* Both ways over one drive (or link): together as far as both go on, the longer one alone after
 * that; or one after the other, should that be faster. */
static double both_s(double a_s, double b_s, double a_speed, double b_speed)
{
    double a_beside = a_s / a_speed, b_beside = b_s / b_speed;
    double together = a_beside < b_beside ? a_beside + (b_s - a_beside * b_speed)
                                          : b_beside + (a_s - b_beside * a_speed);
    return fmin(together, a_s + b_s);
}

static double phase_s(const struct phase_work *phase, const struct profile *profile,
                      enum plan_lane *lane)
{
    const struct profile_device *device = &profile->device;
    const struct profile_ssd *ssd = &profile->ssd;
    const double *lane_s = phase->lane_s;
    double longest = 0;
    *lane = LANE_COMPUTE;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        if (lane_s[l] > longest) {
            longest = lane_s[l];
            *lane = l;
        }
    double drive = both_s(lane_s[LANE_SSD_READ], lane_s[LANE_SSD_WRITE],
                          ssd->mixed_read_bytes_per_s / ssd->read_bytes_per_s,
                          ssd->mixed_write_bytes_per_s / ssd->write_bytes_per_s);
    if (drive > longest) {
        longest = drive;
        *lane = lane_s[LANE_SSD_READ] >= lane_s[LANE_SSD_WRITE] ? LANE_SSD_READ : LANE_SSD_WRITE;
    }
    double link = device->is_cpu ? 0
                                 : both_s(lane_s[LANE_H2D], lane_s[LANE_D2H],
                                          device->h2d_both_bytes_per_s / device->h2d_bytes_per_s,
                                          device->d2h_both_bytes_per_s / device->d2h_bytes_per_s);
    if (link > longest) {
        longest = link;
        *lane = lane_s[LANE_H2D] >= lane_s[LANE_D2H] ? LANE_H2D : LANE_D2H;
    }
    double cores = phase->core_s / profile->cpu.cores;
    double ram = phase->ram_bytes / profile->ram.bytes_per_s;
    if (fmax(cores, ram) > longest) {
        longest = fmax(cores, ram);
        bool compute = device->is_cpu && lane_s[LANE_COMPUTE] >= lane_s[LANE_CPU];
        *lane = compute ? LANE_COMPUTE : LANE_CPU;
    }
    return longest;
}

double bound_sustained_s(const struct profile *profile, double write_bytes)
{
    const struct profile_ssd *ssd = &profile->ssd;
    if (write_bytes <= 0 || !ssd->count)
        return 0;
    return write_bytes / (ssd->sustained_write_bytes_per_s * ssd->count);
}

void bound_of(struct bound *bound, const struct profile *profile, const struct plan *plan,
              const double *stretch)
{
    static const double ones[LANE_COUNT] = {1, 1, 1, 1, 1, 1};
    struct phase_work phases[PHASE_COUNT] = {0};
    struct place_least forward, whole;
    stretch = stretch ? stretch : ones;
    place_least(plan->place, plan->update, plan->forward, false, &forward);
    place_least(plan->place, plan->update, plan->forward, plan->backward, &whole);
    struct place_least backward = {
        .ssd_read_bytes = whole.ssd_read_bytes - forward.ssd_read_bytes,
        .ssd_write_bytes = whole.ssd_write_bytes - forward.ssd_write_bytes,
        .h2d_bytes = whole.h2d_bytes - forward.h2d_bytes,
        .d2h_bytes = whole.d2h_bytes - forward.d2h_bytes,
    };
    add_ops(phases, profile, plan, stretch);
    add_least(&phases[PHASE_FORWARD], profile, &forward, stretch);
    add_least(&phases[PHASE_BACKWARD], profile, &backward, stretch);
    *bound = (struct bound){.lane = LANE_COMPUTE};
    double longest = 0;
    for (uint32_t p = 0; p < PHASE_COUNT; p++) {
        enum plan_lane lane;
        double seconds = phase_s(&phases[p], profile, &lane);
        for (uint32_t l = 0; l < LANE_COUNT; l++)
            bound->lane_s[p][l] = phases[p].lane_s[l];
        bound->seconds += seconds;
        if (seconds > longest) {
            longest = seconds;
            bound->lane = lane;
        }
    }
    double sustained = bound_sustained_s(profile, (double)whole.ssd_write_bytes);
    if (sustained > bound->seconds) {
        bound->seconds = sustained;
        bound->lane = LANE_SSD_WRITE;
    }
}
