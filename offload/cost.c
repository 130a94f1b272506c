#include "offload/cost.h"

#include "model/graph.h"

#include <math.h>

/* Columns of float that a pass over the residual stream reads and writes. */
#define EMBED_PASSES    2
#define POSITION_PASSES 3
#define NORM_PASSES     4
/* Of the logits that are kept from the head's forward pass to its backward one. */
#define LOGITS_PASSES 2

struct about {
    const struct profile *profile;
    const struct plan *plan;
    const struct plan_op *op;
    const struct place_spec *spec;
    double rows, channels;
};

static double flops_per_s(const struct about *a, enum profile_kernel kernel)
{
    return profile_flops(a->profile, a->spec->precision, kernel, a->spec->config->channels,
                         (uint32_t)a->rows);
}

static double attention_flops(const struct about *a)
{
    return (double)graph_attention_flops(a->spec->config, (uint64_t)a->rows, a->spec->seq);
}

static double block_s(const struct about *a, double flops, double attention, bool backward)
{
    enum profile_kernel products = backward ? PROFILE_BLOCK_BACKWARD : PROFILE_BLOCK_FORWARD;
    enum profile_kernel heads = backward ? PROFILE_ATTENTION_BACKWARD : PROFILE_ATTENTION_FORWARD;
    return (flops - attention) / flops_per_s(a, products) + attention / flops_per_s(a, heads);
}

/* Tiles that the op's tile stands for. */
static double tiles_each(const struct about *a)
{
    return a->plan->place->share ? a->plan->place->tiles_each[a->op->layer] : 1;
}

/* An update reads and writes the state and reads the gradient. */
static double update_bytes(const struct about *a, double count)
{
    const struct layout *layout = a->spec->layout;
    double whole = (double)layout->chunks[a->op->chunk].count;
    double state = (double)layout_state_bytes(layout, layout->chunks[a->op->chunk].count);
    return count * (2 * state / whole + (double)a->plan->place->gradient_bytes);
}

/* Parameters of the op's chunk that the device updates or joins in the op. */
static double device_count(const struct about *a)
{
    const struct place *place = a->plan->place;
    return (double)(a->op->lane == LANE_COMPUTE ? place_device_count(place, a->op->chunk)
                                                : place_streamed_count(place, a->op->chunk));
}

/* What a kernel that is bound by memory moves on the device. */
static double stream_bytes(const struct about *a)
{
    const struct layout *layout = a->spec->layout;
    const struct plan_op *op = a->op;
    double stream = a->rows * a->channels * 4;
    double part = 0;
    switch ((enum plan_op_kind)op->kind) {
    case OP_EMBED_FORWARD:
    case OP_EMBED_BACKWARD:
        part = (double)layout->tiles[op->layer].row_count / a->spec->config->vocab;
        return stream * EMBED_PASSES * part + a->rows * 4 * tiles_each(a);
    case OP_POSITION_FORWARD:
    case OP_POSITION_BACKWARD:
        return stream * POSITION_PASSES;
    case OP_NORM_FORWARD:
    case OP_NORM_BACKWARD:
        return stream * NORM_PASSES;
    case OP_HEAD_LOSS:
        return a->rows * 4 * 4;
    case OP_HEAD_ONCE:
        return a->rows * a->spec->config->vocab * 4 * LOGITS_PASSES;
    case OP_GRADIENT_STORE:
        return (double)layout->chunks[op->chunk].count *
               (4 + (double)a->plan->place->gradient_bytes);
    case OP_DEVICE_UPDATE:
        return update_bytes(a, device_count(a));
    case OP_DEVICE_JOIN:
        return device_count(a) * 2 * (double)a->plan->place->weight_bytes;
    default:
        return 0;
    }
}

static double update_rate(const struct profile_cpu *cpu, enum moments_kind moments)
{
    double rate = moments == MOMENTS_BF16   ? cpu->optimizer_bf16_parameters_per_s
                  : moments == MOMENTS_8BIT ? cpu->optimizer_8bit_parameters_per_s
                                            : 0;
    return rate > 0 ? rate : cpu->optimizer_parameters_per_s;
}

static double compute_s(const struct about *a)
{
    double flops = (double)a->op->flops, attention = attention_flops(a);
    switch ((enum plan_op_kind)a->op->kind) {
    case OP_BLOCK_FORWARD:
    case OP_RECOMPUTE:
        return block_s(a, flops, attention, false);
    case OP_BLOCK_BACKWARD:
        return block_s(a, flops, 2 * attention, true);
    case OP_HEAD_FORWARD:
        return flops / flops_per_s(a, PROFILE_HEAD_FORWARD);
    case OP_HEAD_BACKWARD:
        return flops / flops_per_s(a, PROFILE_HEAD_BACKWARD);
    case OP_HEAD_ONCE: /* a product of forward's and two of backward's */
        return flops / 3 / flops_per_s(a, PROFILE_HEAD_FORWARD) +
               flops * 2 / 3 / flops_per_s(a, PROFILE_HEAD_BACKWARD) +
               stream_bytes(a) / a->profile->device.stream_bytes_per_s;
    case OP_DEVICE_UPDATE:
        if (a->profile->device.is_cpu)
            return device_count(a) / update_rate(&a->profile->cpu, a->spec->layout->moments);
        return stream_bytes(a) / a->profile->device.stream_bytes_per_s;
    default:
        return stream_bytes(a) / a->profile->device.stream_bytes_per_s;
    }
}

static void cost_compute(struct cost *cost, const struct about *a)
{
    const struct profile_device *device = &a->profile->device;
    cost->launch_s = device->launch_s;
    cost->work_s = compute_s(a);
    if (!device->is_cpu)
        return;
    cost->cores = a->profile->cpu.cores;
    cost->ram_bytes = stream_bytes(a);
    if (a->op->lane != LANE_COMPUTE) { /* a CPU's lane without its pool */
        cost->work_s *= cost->cores;
        cost->cores = 1;
    }
}

static void cost_copy(struct cost *cost, const struct about *a)
{
    const struct profile_device *device = &a->profile->device;
    double bytes = (double)a->op->bytes;
    cost->ram_bytes = bytes * device->count;
    if (device->is_cpu) {
        cost->launch_s = a->profile->cpu.launch_s;
        cost->work_s = bytes / a->profile->cpu.copy_bytes_per_s;
        cost->cores = 1;
        cost->ram_bytes = 2 * bytes;
        return;
    }
    cost->launch_s = device->launch_s;
    cost->work_s =
        bytes / (a->op->lane == LANE_H2D ? device->h2d_bytes_per_s : device->d2h_bytes_per_s);
    cost->latency_s = device->copy_latency_s;
}

static void cost_drive(struct cost *cost, const struct about *a)
{
    const struct profile_ssd *ssd = &a->profile->ssd;
    bool write = a->op->lane == LANE_SSD_WRITE;
    double rate = write ? ssd->write_bytes_per_s : ssd->read_bytes_per_s;
    ASSERT(ssd->count > 0);
    cost->work_s = (double)a->op->bytes / (rate * ssd->count);
    cost->latency_s = write ? ssd->write_latency_s : ssd->read_latency_s;
    cost->ram_bytes = (double)a->op->bytes;
}

/* Checksums, before and after its update, of what of a chunk's state goes to the drive. */
static double checksums_s(const struct about *a)
{
    const struct profile_cpu *cpu = &a->profile->cpu;
    double bytes = 0, rate = cpu->cached_checksum_bytes_per_s;
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        bytes += (double)place_plane_spilled(a->plan->place, a->op->chunk, p);
    return 2 * bytes / ((rate > 0 ? rate : cpu->checksum_bytes_per_s) * cpu->cores);
}

/* One pass of AdamW over a chunk, with the checksums of what came from the drive and goes there. */
static void cost_update(struct cost *cost, const struct about *a)
{
    const struct place *place = a->plan->place;
    const struct profile_cpu *cpu = &a->profile->cpu;
    double count =
        (double)(place_host_count(place, a->op->chunk) - place_streamed_count(place, a->op->chunk));
    double gradient = (double)place->gradient_bytes;
    cost->work_s = count / update_rate(cpu, a->spec->layout->moments) + checksums_s(a);
    cost->work_s += (double)place_gradient_spilled(place, a->op->chunk) / cpu->checksum_bytes_per_s;
    double more = a->profile->device.count - 1; /* gradients of the other devices */
    cost->work_s += more * count * gradient / (cpu->copy_bytes_per_s * cpu->cores);
    cost->ram_bytes = update_bytes(a, count) + more * count * gradient;
    cost->cores = cpu->cores;
}

static void cost_cpu(struct cost *cost, const struct about *a)
{
    const struct profile_cpu *cpu = &a->profile->cpu;
    double bytes = (double)a->op->bytes;
    cost->launch_s = cpu->launch_s;
    cost->cores = 1;
    cost->ram_bytes = bytes;
    switch ((enum plan_op_kind)a->op->kind) {
    case OP_UPDATE:
        cost_update(cost, a);
        return;
    case OP_JOIN:
        if (a->spec->precision == PRECISION_BF16) {
            cost->work_s = bytes / 2 / cpu->copy_bytes_per_s;
            return;
        }
        cost->work_s = bytes / 8 / cpu->join_parameters_per_s;
        cost->cores = cpu->cores;
        return;
    default:
        cost->work_s = bytes / cpu->checksum_bytes_per_s;
        return;
    }
}

/* How many ops of the real plan an op of a coarse one stands for: one for each tile or chunk, of
 * those that it moves at all. */
static double ops_each(const struct about *a)
{
    const struct place *place = a->plan->place;
    const struct plan_op *op = a->op;
    if (!place->share)
        return 1;
    switch ((enum plan_op_kind)op->kind) {
    case OP_EMBED_FORWARD:
    case OP_EMBED_BACKWARD:
    case OP_HEAD_FORWARD:
    case OP_HEAD_BACKWARD:
        return tiles_each(a);
    default:
        break;
    }
    if (op->chunk == PLAN_NONE)
        return 1;
    double count = (double)a->spec->layout->chunks[op->chunk].count, whole = (double)op->bytes;
    double device = (double)place_device_count(place, op->chunk) / count;
    double streamed = (double)place_streamed_count(place, op->chunk) / count;
    bool copied = op->lane == LANE_H2D || op->lane == LANE_D2H;
    if (op->kind == OP_DEVICE_UPDATE || op->kind == OP_DEVICE_JOIN)
        return place->share[op->chunk].chunks * device_count(a) / count;
    if (op->kind == OP_UPDATE)
        return place->share[op->chunk].chunks * (1 - device - streamed);
    if (op->plane_count && copied)
        return place->share[op->chunk].chunks * streamed;
    if (op->plane_count) {
        /* Where a plane is on the drive, those after it are. */
        uint32_t last = op->plane + op->plane_count - 1u;
        const struct layout *layout = a->spec->layout;
        whole = (double)layout_plane_bytes(layout, layout->chunks[op->chunk].count, last);
        return place->share[op->chunk].chunks *
               fmin(1, (double)place_plane_spilled(place, op->chunk, last) / whole);
    }
    bool stash = op->kind == OP_VERIFY;
    if (op->kind == OP_SUM) {
        const struct plan_cells *files = &a->plan->memory->stash_nvme;
        stash = op->uses[1].cells.first - files->first < files->count;
    }
    if (stash || (op->kind == OP_JOIN && a->spec->precision == PRECISION_BF16))
        whole = count * 4;
    else if (op->kind == OP_JOIN)
        whole = count * 8;
    else if (op->kind == OP_COPY_H2D || op->kind == OP_COPY_D2H)
        whole = count * (double)place->weight_bytes;
    else if (op->kind == OP_SUM || op->kind == OP_READ || op->kind == OP_WRITE)
        whole = count * (double)place->gradient_bytes;
    return place->share[op->chunk].chunks * fmin(1, (double)op->bytes / whole);
}

void cost_of(struct cost *cost, const struct profile *profile, const struct plan *plan,
             const struct plan_op *op)
{
    const struct place_spec *spec = &plan->place->spec;
    struct about about = {
        .profile = profile,
        .plan = plan,
        .op = op,
        .spec = spec,
        .rows = (double)spec->batch * spec->seq,
        .channels = spec->config->channels,
    };
    *cost = (struct cost){0};
    ASSERT(op->lane < LANE_COUNT);
    if (op->lane == LANE_COMPUTE || op->kind == OP_DEVICE_UPDATE || op->kind == OP_DEVICE_JOIN)
        cost_compute(cost, &about);
    else if (op->lane == LANE_CPU)
        cost_cpu(cost, &about);
    else if (op->lane == LANE_H2D || op->lane == LANE_D2H)
        cost_copy(cost, &about);
    else
        cost_drive(cost, &about);
    double each = ops_each(&about);
    cost->launch_s *= each;
    cost->latency_s *= each;
}

#define FULLY_BESIDE 4 /* times: a quarter of the other's bytes */

static double beside(double alone, double mixed, double mine, double other)
{
    double part = mine > 0 ? fmin(1, FULLY_BESIDE * other / mine) : 0;
    return 1 / (1 + (alone / mixed - 1) * part);
}

void cost_drive_of(struct cost_drive *drive, const struct profile *profile, const struct plan *plan)
{
    const struct profile_ssd *ssd = &profile->ssd;
    double bytes[PHASE_COUNT][LANE_COUNT] = {{0}};
    for (uint32_t o = 0; o < plan->op_count; o++)
        bytes[o >= plan->backward_first][plan->ops[o].lane] += (double)plan->ops[o].bytes;
    for (uint32_t p = 0; p < PHASE_COUNT; p++) {
        for (uint32_t l = 0; l < LANE_COUNT; l++)
            drive->factor[p][l] = 1;
        if (!ssd->count)
            continue;
        double read = bytes[p][LANE_SSD_READ], write = bytes[p][LANE_SSD_WRITE];
        drive->factor[p][LANE_SSD_READ] =
            beside(ssd->read_bytes_per_s, ssd->mixed_read_bytes_per_s, read, write);
        drive->factor[p][LANE_SSD_WRITE] =
            beside(ssd->write_bytes_per_s, ssd->mixed_write_bytes_per_s, write, read);
    }
}
