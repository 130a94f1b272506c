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

static double lane_rate(const struct profile *profile, enum plan_lane lane)
{
    const struct profile_device *device = &profile->device;
    const struct profile_ssd *ssd = &profile->ssd;
    switch (lane) {
    case LANE_H2D:
        return device->is_cpu ? profile->cpu.copy_bytes_per_s : device->h2d_bytes_per_s;
    case LANE_D2H:
        return device->is_cpu ? profile->cpu.copy_bytes_per_s : device->d2h_bytes_per_s;
    case LANE_SSD_READ:
        return ssd->read_bytes_per_s * ssd->count;
    case LANE_SSD_WRITE:
        return ssd->write_bytes_per_s * ssd->count;
    default:
        return profile->cpu.checksum_bytes_per_s;
    }
}

static void add_least(struct phase_work *phase, const struct profile *profile,
                      const struct place_least *least, const double *stretch, const double *factor)
{
    const double bytes[LANE_COUNT] = {[LANE_H2D] = (double)least->h2d_bytes,
                                      [LANE_D2H] = (double)least->d2h_bytes,
                                      [LANE_SSD_READ] = (double)least->ssd_read_bytes,
                                      [LANE_SSD_WRITE] = (double)least->ssd_write_bytes};
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        if (bytes[l] > 0)
            phase->lane_s[l] = bytes[l] / (lane_rate(profile, l) * factor[l]) * stretch[l];
}

/* What rings hold at the turn from forward to backward: that much of forward's work may be done
 * later, and that much of backward's before. Weights never are: the slot that backward gives up
 * first is one that backward has used. */
struct turn {
    double lane_s[LANE_COUNT];
    double ram_bytes;
};

static bool any_moved(const uint8_t *where, uint32_t layers)
{
    for (uint32_t l = 0; l < layers; l++)
        if (where[l] == WHERE_RAM || where[l] == WHERE_NVME)
            return true;
    return false;
}

static void find_turn(struct turn *turn, const struct profile *profile, const struct place *place,
                      const double *stretch, const double *factor, bool late)
{
    const struct place_spec *spec = &place->spec;
    uint32_t layers = spec->config->layers;
    enum plan_lane drive = late ? LANE_SSD_WRITE : LANE_SSD_READ;
    enum plan_lane link = late ? LANE_D2H : LANE_H2D;
    double x = any_moved(place->x_where, layers) ? (double)(spec->accum + 2) : 0;
    double inner = any_moved(place->inner_where, layers) ? (double)place->inner_slots : 0;
    double ring = x * (double)place->x_bytes + inner * (double)place->inner_bytes;
    double staged = place->separate_device ? (double)place->activation_stages *
                                                 (double)MAX(place->x_bytes, place->inner_bytes)
                                           : ring;
    double chunk = (double)spec->layout->chunk_count_max;
    double state = (double)place->state_stages *
                   (double)layout_state_bytes(spec->layout, spec->layout->chunk_count_max);
    double losses = (double)spec->accum * spec->batch * spec->seq * 4;
    double bytes[LANE_COUNT] = {[LANE_CPU] = staged + (late ? 0 : state)};
    bytes[drive] = spec->nvme ? staged + state : 0;
    bytes[link] = place->separate_device ? ring + losses : 0;
    *turn = (struct turn){0};
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        if (bytes[l] > 0)
            turn->lane_s[l] = bytes[l] / (lane_rate(profile, l) * factor[l]) * stretch[l];
        turn->ram_bytes += 2 * bytes[l] * profile->device.count;
    }
    if (!late)
        turn->lane_s[LANE_CPU] += (double)place->join_stages * chunk /
                                  profile->cpu.join_parameters_per_s * stretch[LANE_CPU];
    turn->ram_bytes += late ? 0 : (double)place->join_stages * chunk * 8;
}

static void take_turn(struct phase_work *phase, const struct turn *turn, uint32_t cores)
{
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        phase->lane_s[l] = fmax(0, phase->lane_s[l] - turn->lane_s[l]);
        phase->core_s -= turn->lane_s[l] * cores;
    }
    phase->core_s = fmax(0, phase->core_s);
    phase->ram_bytes = fmax(0, phase->ram_bytes - turn->ram_bytes);
}

/* Both ways over one link: together as far as both go on, the longer one alone after that; or one
 * after the other, should that be faster. */
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
    const double *lane_s = phase->lane_s;
    double longest = 0;
    *lane = LANE_COMPUTE;
    for (uint32_t l = 0; l < LANE_COUNT; l++)
        if (lane_s[l] > longest) {
            longest = lane_s[l];
            *lane = l;
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

/* place_least counts activations as backward's, which is what wants them; they leave in forward. */
static void move_spills(const struct place *place, struct place_least *forward,
                        struct place_least *backward)
{
    const struct place_spec *spec = &place->spec;
    uint64_t rows = (uint64_t)spec->batch * spec->seq * spec->accum;
    uint64_t x = rows * spec->config->channels * 4, inner = place->inner_bytes * spec->accum;
    uint64_t drive = 0, link = 0;
    for (uint32_t l = 0; l < spec->config->layers; l++) {
        enum place_where x_where = place->x_where[l], inner_where = place->inner_where[l];
        drive += (x_where == WHERE_NVME ? x : 0) + (inner_where == WHERE_NVME ? inner : 0);
        link += x_where == WHERE_NVME || x_where == WHERE_RAM ? x : 0;
        link += inner_where == WHERE_NVME || inner_where == WHERE_RAM ? inner : 0;
    }
    link = place->separate_device ? link : 0;
    ASSERT(drive <= backward->ssd_write_bytes && link <= backward->d2h_bytes);
    forward->ssd_write_bytes += drive;
    backward->ssd_write_bytes -= drive;
    forward->d2h_bytes += link;
    backward->d2h_bytes -= link;
}

static void part_phases(struct phase_work *phases, const struct profile *profile,
                        const struct place *place, const double *stretch,
                        const struct cost_drive *drive)
{
    struct turn late, early;
    find_turn(&late, profile, place, stretch, drive->factor[PHASE_FORWARD], true);
    find_turn(&early, profile, place, stretch, drive->factor[PHASE_BACKWARD], false);
    take_turn(&phases[PHASE_FORWARD], &late, profile->cpu.cores);
    take_turn(&phases[PHASE_BACKWARD], &early, profile->cpu.cores);
}

void bound_of(struct bound *bound, const struct profile *profile, const struct plan *plan,
              const double *stretch)
{
    static const double ones[LANE_COUNT] = {1, 1, 1, 1, 1, 1};
    struct phase_work phases[PHASE_COUNT] = {0};
    struct place_least forward, whole;
    struct cost_drive drive;
    stretch = stretch ? stretch : ones;
    place_least(plan->place, plan->update, plan->forward, false, &forward);
    place_least(plan->place, plan->update, plan->forward, plan->backward, &whole);
    struct place_least backward = {
        .ssd_read_bytes = whole.ssd_read_bytes - forward.ssd_read_bytes,
        .ssd_write_bytes = whole.ssd_write_bytes - forward.ssd_write_bytes,
        .h2d_bytes = whole.h2d_bytes - forward.h2d_bytes,
        .d2h_bytes = whole.d2h_bytes - forward.d2h_bytes,
    };
    if (plan->backward)
        move_spills(plan->place, &forward, &backward);
    add_ops(phases, profile, plan, stretch);
    cost_drive_of(&drive, profile, plan);
    add_least(&phases[PHASE_FORWARD], profile, &forward, stretch, drive.factor[PHASE_FORWARD]);
    add_least(&phases[PHASE_BACKWARD], profile, &backward, stretch, drive.factor[PHASE_BACKWARD]);
    *bound = (struct bound){.lane = LANE_COMPUTE};
    struct phase_work step = {0};
    for (uint32_t p = 0; p < PHASE_COUNT; p++) {
        for (uint32_t l = 0; l < LANE_COUNT; l++) {
            bound->lane_s[p][l] = phases[p].lane_s[l];
            step.lane_s[l] += phases[p].lane_s[l];
        }
        step.core_s += phases[p].core_s;
        step.ram_bytes += phases[p].ram_bytes;
    }
    if (plan->backward)
        part_phases(phases, profile, plan->place, stretch, &drive);
    double longest = 0;
    for (uint32_t p = 0; p < PHASE_COUNT; p++) {
        enum plan_lane lane;
        double seconds = phase_s(&phases[p], profile, &lane);
        bound->seconds += seconds;
        if (seconds > longest) {
            longest = seconds;
            bound->lane = lane;
        }
    }
    enum plan_lane lane;
    double whole_s = phase_s(&step, profile, &lane);
    if (whole_s > bound->seconds) {
        bound->seconds = whole_s;
        bound->lane = lane;
    }
    double sustained = bound_sustained_s(profile, (double)whole.ssd_write_bytes);
    if (sustained > bound->seconds) {
        bound->seconds = sustained;
        bound->lane = LANE_SSD_WRITE;
    }
}
