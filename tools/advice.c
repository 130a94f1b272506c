#include "tools/advice.h"

#include "core/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* RAM that can be bought for a desktop: kits of two and of four. */
static const uint64_t ram_sizes[] = {32 * GIB, 64 * GIB, 96 * GIB, 128 * GIB, 192 * GIB, 256 * GIB};
/* From slower to faster; the next one up is tried. */
static const char *const gpus[] = {"rtx3060", "rtx3090", "rtx4090", "rtx5090"};
static const char *const fast_ssd = "t700-2tb";

struct adviser {
    struct advice *advice;
    size_t count;
    const struct forecast_request *request;
    const struct machine_request *machine;
    const struct profile *base;
    double tokens_per_s;
};

/* Forecasts a changed request on a changed machine; a change that is refused is no advice. */
static void consider(struct adviser *a, const struct forecast_request *request,
                     const struct machine_request *machine, const char *what)
{
    struct forecast forecast;
    struct forecast_request changed = *request;
    struct profile profile = *a->base;
    struct err err;
    ASSERT(a->count < ADVICE_MAX);
    if (machine_compose(&profile, machine, &err) != 0)
        return;
    changed.profile = &profile;
    changed.chunks = false;
    if (forecast_make(&forecast, &changed, &err) == 0) {
        struct advice *advice = &a->advice[a->count++];
        snprintf(advice->what, sizeof(advice->what), "%s", what);
        advice->predicted_s = forecast.predicted_s;
        advice->speedup = forecast_tokens_per_s(&forecast) / a->tokens_per_s;
    }
    forecast_deinit(&forecast);
}

static void consider_ram(struct adviser *a)
{
    const struct profile *profile = a->request->profile;
    struct forecast_request request = *a->request;
    struct machine_request machine = *a->machine;
    char text[32], what[96], size[LOG_BYTES_MAX];
    uint64_t now = profile->ram.bytes, next = 0;
    for (size_t i = 0; i < ARRAY_COUNT(ram_sizes) && !next; i++)
        /* A machine tells a little less than it has. */
        if (now && ram_sizes[i] > now + now / 8)
            next = ram_sizes[i];
    if (!next)
        return;
    snprintf(text, sizeof(text), "%lluG", (unsigned long long)(next / GIB));
    machine.ram = text;
    if (request.ram_budget)
        request.ram_budget += next - now;
    snprintf(what, sizeof(what), "%s of RAM instead of %llu (--ram %s)", log_bytes(size, next),
             (unsigned long long)(now / GIB), text);
    consider(a, &request, &machine, what);
}

static void consider_drives(struct adviser *a)
{
    const struct profile_ssd *ssd = &a->request->profile->ssd;
    struct machine_request machine = *a->machine;
    if (!a->request->nvme || !ssd->count)
        return;
    machine.ssds = ssd->count + 1;
    consider(a, a->request, &machine, ssd->count == 1 ? "a second SSD (--ssds 2)" : "one more SSD");
    struct profile fast = *a->base;
    struct machine_request part = {.ssd = fast_ssd};
    struct err err;
    machine = *a->machine;
    machine.ssd = fast_ssd;
    if (machine_compose(&fast, &part, &err) == 0 &&
        fast.ssd.read_bytes_per_s > 1.2 * ssd->read_bytes_per_s)
        consider(a, a->request, &machine, "a PCIe 5 SSD (--ssd t700-2tb)");
}

static void consider_gpus(struct adviser *a)
{
    const struct profile_device *device = &a->request->profile->device;
    struct machine_request machine = *a->machine;
    char what[128];
    if (!device->is_cpu && device->count == 1) {
        machine.gpus = 2;
        consider(a, a->request, &machine, "a second GPU (--gpus 2)");
    }
    double now =
        profile_flops(a->request->profile, PRECISION_BF16, PROFILE_BLOCK_FORWARD, 4096, 4096);
    for (size_t i = 0; i < ARRAY_COUNT(gpus); i++) {
        struct profile profile = *a->base;
        struct err err;
        struct forecast_request request = *a->request;
        machine = *a->machine;
        machine.gpu = gpus[i];
        request.vram_budget = 0;
        if (machine_compose(&profile, &machine, &err) != 0 ||
            profile_flops(&profile, PRECISION_BF16, PROFILE_BLOCK_FORWARD, 4096, 4096) < 1.1 * now)
            continue;
        snprintf(what, sizeof(what), "%.80s (--gpu %s)", profile.device.name, gpus[i]);
        consider(a, &request, &machine, what);
        return;
    }
}

static void consider_steps(struct adviser *a)
{
    struct forecast_request request = *a->request;
    char what[96];
    request.accum *= 2;
    snprintf(what, sizeof(what), "twice the tokens a step (--accum %u)", request.accum);
    consider(a, &request, a->machine, what);
    request = *a->request;
    request.batch *= 2;
    snprintf(what, sizeof(what), "twice the sequences of a micro-batch (--batch %u)",
             request.batch);
    consider(a, &request, a->machine, what);
}

static int better_first(const void *x, const void *y)
{
    const struct advice *a = x, *b = y;
    return a->speedup < b->speedup ? 1 : a->speedup > b->speedup ? -1 : strcmp(a->what, b->what);
}

size_t advice_find(struct advice advice[ADVICE_MAX], const struct forecast_request *request,
                   const struct machine_request *machine, const struct profile *base,
                   const struct forecast *now)
{
    struct adviser adviser = {
        .advice = advice,
        .request = request,
        .machine = machine,
        .base = base,
        .tokens_per_s = forecast_tokens_per_s(now),
    };
    consider_ram(&adviser);
    consider_drives(&adviser);
    consider_gpus(&adviser);
    consider_steps(&adviser);
    qsort(advice, adviser.count, sizeof(*advice), better_first);
    return adviser.count;
}
