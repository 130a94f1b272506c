#include "offload/forecast.h"

#include "core/log.h"
#include "core/mem.h"
#include "offload/coarse.h"
#include "offload/sched.h"

#include <inttypes.h>
#include <math.h>

/* What a process of ours takes before anything is planned: code, libraries, stacks. */
#define PROGRAM_BYTES (40 * MIB)
/* What CUDA's driver and libraries take of a process with a card, before its first step and more in
 * it, as kernels are loaded when they are used (measured with an H200 and driver 580: 340 to 380
 * MiB, and 10 to 20 more). */
#define CUDA_PROGRAM_BYTES (380 * MIB)
#define CUDA_GROWTH_BYTES  (64 * MIB)
/* What the measurement at the start cannot see yet: stacks, rings, plans under construction. */
#define OVERHEAD_FIXED (9 * MIB)
/* A plan's ops and waits, all variants together, for each chunk (measured: 8 to 11 KiB). */
#define OVERHEAD_CHUNK (12 * KIB)
#define OVERHEAD_LAYER (24 * KIB) /* for each layer and micro-batch */
/* Of a machine's RAM, what the system and a desktop need. */
#define RAM_RESERVE      (4 * GIB)
#define RAM_RESERVE_PART 8 /* at most an eighth */

void forecast_model_init(struct forecast_model *model, const struct config *config,
                         enum moments_kind moments)
{
    *model = (struct forecast_model){.config = *config};
    tensors_init(&model->tensors, &model->config);
    layout_init(&model->layout, &model->tensors, moments);
}

void forecast_model_deinit(struct forecast_model *model)
{
    layout_deinit(&model->layout);
    tensors_deinit(&model->tensors);
}

uint64_t forecast_overhead_bytes(const struct layout *layout, uint32_t layers, uint32_t accum,
                                 bool cuda)
{
    return OVERHEAD_FIXED + OVERHEAD_CHUNK * layout->chunk_count +
           OVERHEAD_LAYER * layers * (uint64_t)accum + (cuda ? CUDA_GROWTH_BYTES : 0);
}

/* Of a program that runs on this device. */
static uint64_t program_bytes(const struct profile_device *device)
{
    uint64_t libraries = device->overhead_bytes;
    if (!device->is_cpu && !libraries)
        libraries = CUDA_PROGRAM_BYTES;
    return PROGRAM_BYTES + libraries;
}

/* ---- The spec ---------------------------------------------------------------------------------
 */

static int divide_batch(struct place_spec *spec, uint32_t devices, struct err *err)
{
    if (spec->batch % devices == 0)
        spec->batch /= devices;
    else if (spec->accum % devices == 0)
        spec->accum /= devices;
    else
        return err_set(err, ERR_INPUT,
                       "--batch %u and --accum %u cannot be divided among %u GPUs: make one of "
                       "them a multiple of %u",
                       spec->batch, spec->accum, devices, devices);
    return 0;
}

static int set_budgets(struct place_spec *spec, const struct forecast_request *request,
                       struct err *err)
{
    const struct profile *profile = request->profile;
    const struct profile_device *device = &profile->device;
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    spec->ram_budget = request->ram_budget;
    if (!spec->ram_budget) {
        if (!profile->ram.bytes)
            return err_set(err, ERR_INPUT,
                           "the RAM of %s is not known: give --ram SIZE or --ram-budget SIZE",
                           profile->name);
        spec->ram_budget =
            profile->ram.bytes - MIN(RAM_RESERVE, profile->ram.bytes / RAM_RESERVE_PART);
    }
    if (profile->ram.bytes && spec->ram_budget > profile->ram.bytes)
        return err_set(err, ERR_INPUT, "--ram-budget %s is more than the machine's RAM of %s",
                       log_bytes(a, spec->ram_budget), log_bytes(b, profile->ram.bytes));
    spec->vram_budget = request->vram_budget;
    if (!device->is_cpu) {
        uint64_t vram = request->vram_budget ? MIN(request->vram_budget, device->vram_bytes)
                                             : device->vram_bytes;
        if (vram <= device->reserve_bytes)
            return err_set(err, ERR_INPUT,
                           "--vram-budget %s is not more than what %s needs for itself, %s",
                           log_bytes(a, vram), device->name, log_bytes(b, device->reserve_bytes));
        spec->vram_budget = vram - device->reserve_bytes;
        spec->vram_reserve = device->reserve_bytes;
    }
    uint64_t drives = profile->ssd.capacity_bytes * profile->ssd.count;
    spec->nvme = request->nvme && profile->ssd.count > 0;
    spec->nvme_budget = request->nvme_budget ? request->nvme_budget : drives ? drives : UINT64_MAX;
    return 0;
}

static int make_spec(struct place_spec *spec, const struct forecast_request *request,
                     struct err *err)
{
    const struct forecast_model *model = request->model;
    *spec = (struct place_spec){
        .config = &model->config,
        .layout = &model->layout,
        .precision = request->precision,
        .seq = request->seq,
        .batch = request->batch,
        .accum = request->accum,
        .overhead_bytes = program_bytes(&request->profile->device) +
                          forecast_overhead_bytes(&model->layout, model->config.layers,
                                                  request->accum, !request->profile->device.is_cpu),
        .write_budget = request->write_budget,
        .checkpoint_every = request->checkpoint_every,
        .one_slot = request->one_slot,
        .clip = request->clip,
        .resident_planes = request->resident_planes,
        .update = request->update,
        .prefetch = request->prefetch,
        .recompute = request->recompute,
        .profile = request->profile,
    };
    int result = divide_batch(spec, request->profile->device.count, err);
    return result ? result : set_budgets(spec, request, err);
}

/* ---- What follows from a placement -------------------------------------------------------------
 */

/* Least bytes of one phase on one lane. */
static double lane_bytes(const struct place_least *least, enum plan_lane lane)
{
    switch (lane) {
    case LANE_H2D:
        return (double)least->h2d_bytes;
    case LANE_D2H:
        return (double)least->d2h_bytes;
    case LANE_SSD_READ:
        return (double)least->ssd_read_bytes;
    case LANE_SSD_WRITE:
        return (double)least->ssd_write_bytes;
    default:
        return 0;
    }
}

static void phase_least(const struct place *place, enum plan_phase phase, struct place_least *least)
{
    struct place_least forward;
    bool update = !place->immediate;
    place_least(place, update, true, false, &forward);
    *least = forward;
    if (phase == PHASE_FORWARD)
        return;
    place_least(place, update, true, true, least);
    least->h2d_bytes -= forward.h2d_bytes;
    least->d2h_bytes -= forward.d2h_bytes;
    least->ssd_read_bytes -= forward.ssd_read_bytes;
    least->ssd_write_bytes -= forward.ssd_write_bytes;
}

/* How many micro-batches make compute as long as one lane is in one phase. What a lane moves is a
 * part that is the same in every step and a part for each micro-batch; the placement stays. */
static double hiding_factor(const struct forecast *f, enum plan_phase phase, enum plan_lane lane)
{
    struct place twice = f->place;
    struct place_least once_least, twice_least;
    twice.spec.accum *= 2;
    phase_least(&f->place, phase, &once_least);
    phase_least(&twice, phase, &twice_least);
    double bytes = lane_bytes(&once_least, lane);
    double growing = lane_bytes(&twice_least, lane) - bytes;
    double lane_s = f->bound.lane_s[phase][lane];
    double fixed_s = bytes > 0          ? lane_s * (bytes - growing) / bytes
                     : lane == LANE_CPU ? lane_s /* updates */
                                        : 0;
    double growing_s = bytes > 0 ? lane_s * growing / bytes : 0;
    double compute_s = f->bound.lane_s[phase][LANE_COMPUTE];
    if (fixed_s <= 0)
        return 0;
    return compute_s > growing_s ? fixed_s / (compute_s - growing_s) : INFINITY;
}

static double hiding_tokens(const struct forecast *f)
{
    double factor = 0;
    for (uint32_t p = 0; p < PHASE_COUNT; p++)
        for (uint32_t l = 0; l < LANE_COUNT; l++)
            if (l != LANE_COMPUTE)
                factor = fmax(factor, hiding_factor(f, p, l));
    return factor * (double)f->tokens;
}

static void simulate(struct forecast *f, bool chunks)
{
    struct sched_result result;
    if (chunks) {
        f->predicted_s = coarse_step(&f->place, &result, &f->bound);
    } else {
        struct coarse coarse;
        struct place place;
        coarse_init(&coarse, f->place.spec.layout);
        coarse_place(&coarse, &f->place, &f->place.choice, &place);
        f->predicted_s = coarse_step(&place, &result, &f->bound);
        place_deinit(&place);
        coarse_deinit(&coarse);
    }
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        f->busy_s[l] = (double)result.busy_ns[l] / 1e9;
        f->bytes[l] = result.bytes[l];
    }
}

void forecast_of_place(struct forecast *f, const struct place *place, bool chunks)
{
    const struct place_spec *spec = &place->spec;
    ASSERT(spec->profile != NULL);
    *f = (struct forecast){.place = *place, .devices = spec->profile->device.count};
    f->tokens = (uint64_t)spec->batch * spec->seq * spec->accum * f->devices;
    simulate(f, chunks);
    place_least(&f->place, !place->immediate, true, true, &f->least);
    f->hiding_tokens = hiding_tokens(f);
    wear_of(&f->wear, &f->place, f->bytes[LANE_SSD_WRITE], f->predicted_s);
}

/* No budget helps where the card itself is too small. */
static int explain_card(const struct place *place, const struct profile *profile, int result,
                        struct err *err)
{
    const struct profile_device *device = &profile->device;
    char need[LOG_BYTES_MAX], has[LOG_BYTES_MAX];
    uint64_t bytes = place->vram_bytes + place->spec.vram_reserve;
    if (device->is_cpu || bytes <= device->vram_bytes)
        return result;
    return err_set(err, ERR_INPUT,
                   "%s has %s of VRAM and this needs %s at least: take a smaller --batch or --seq, "
                   "or a card with more",
                   device->name, log_bytes(has, device->vram_bytes), log_bytes(need, bytes));
}

int forecast_make(struct forecast *f, const struct forecast_request *request, struct err *err)
{
    struct place_spec spec;
    struct place place = {0};
    *f = (struct forecast){0};
    int result = make_spec(&spec, request, err);
    if (result == 0)
        result = place_choose(&place, &spec, err);
    if (result) {
        result = explain_card(&place, request->profile, result, err);
        place_deinit(&place);
        f->place.spec = spec;
        return result;
    }
    forecast_of_place(f, &place, request->chunks);
    return 0;
}

void forecast_deinit(struct forecast *f)
{
    place_deinit(&f->place);
    *f = (struct forecast){0};
}
