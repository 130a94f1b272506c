#include "tools/bench_card.h"

#include "core/topo.h"
#include "offload/gpu.h"
#include "tools/machine.h"

#include <stdio.h>
#include <string.h>

#define HEAD_CHANNELS 64
#define SEQ           1024
#define TILE_ROWS     8192

/* ---- The card ------------------------------------------------------------------------------- */

/* Its plugin's table, with that card in use; profile.card is of that card, its figures those that
 * were measured, are known, or are guessed. */
static const struct gpu_rates_table *open_card(struct bench *bench, struct err *err)
{
    struct gpu_info info;
    struct profile *profile = &bench->profile;
    const struct gpu_plugin *plugin = gpu_find(bench->card, err);
    if (!plugin || plugin->info(bench->card, &info, err) != 0 ||
        plugin->rates->use(bench->card, err) != 0)
        return NULL;
    bool known = profile->card.point_count && strcmp(profile->card.name, info.name) == 0 &&
                 profile->card.vram_bytes == info.vram_bytes;
    if (!known && !machine_card(info.name, info.vram_bytes, &profile->card)) {
        struct profile unknown = *profile;
        profile_init_gpu(&unknown, info.name, info.vram_bytes);
        profile->card = unknown.device;
    }
    return plugin->rates;
}

/* ---- Its link ------------------------------------------------------------------------------- */

static void report_link(struct bench *bench, const struct gpu_rates_link *link)
{
    const struct {
        const char *figure;
        double value, limit;
    } rows[] = {
        {"PCIe, RAM to card", link->h2d_bytes_per_s, 0},
        {"PCIe, card to RAM", link->d2h_bytes_per_s, 0},
        {"PCIe, RAM to card, both busy", link->h2d_both_bytes_per_s, link->h2d_bytes_per_s},
        {"PCIe, card to RAM, both busy", link->d2h_both_bytes_per_s, link->d2h_bytes_per_s},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        struct bench_row *row =
            bench_report(bench, BENCH_GB_S, rows[i].value, NULL, "%s", rows[i].figure);
        bench_limit(row, rows[i].limit, "the same direction alone");
    }
    bench_report(bench, BENCH_US, link->latency_s, NULL, "a small copy to the card");
}

/* A direction is no faster while the other is busy, whatever the clock says of two short runs. */
static void take_link(struct profile_device *card, const struct gpu_rates_link *link)
{
    card->h2d_bytes_per_s = link->h2d_bytes_per_s;
    card->d2h_bytes_per_s = link->d2h_bytes_per_s;
    card->h2d_both_bytes_per_s = MIN(link->h2d_both_bytes_per_s, link->h2d_bytes_per_s);
    card->d2h_both_bytes_per_s = MIN(link->d2h_both_bytes_per_s, link->d2h_bytes_per_s);
    card->copy_latency_s = link->latency_s;
}

int bench_card_link(struct bench *bench, struct err *err)
{
    struct gpu_rates_link link;
    const struct gpu_rates_table *rates = open_card(bench, err);
    if (!rates)
        return err->code;
    bench_begin(bench, "the card's link", "measurements", 1);
    int result = rates->link(&link, err);
    bench_end(bench);
    if (result)
        return result;
    take_link(&bench->profile.card, &link);
    report_link(bench, &link);
    return 0;
}

/* ---- Its kernels ---------------------------------------------------------------------------- */

static void add_point(struct profile_device *card, const struct gpu_rates_class *class,
                      const struct gpu_rates_kernels *k)
{
    ASSERT(card->point_count < PROFILE_POINTS_MAX);
    struct profile_point *point = &card->points[card->point_count++];
    *point = (struct profile_point){
        .precision = class->bf16 ? PRECISION_BF16 : PRECISION_FP32,
        .channels = class->channels,
        .rows = class->batch * class->seq,
        .flops_per_s = {[PROFILE_BLOCK_FORWARD] = k->block_forward,
                        [PROFILE_BLOCK_BACKWARD] = k->block_backward,
                        [PROFILE_ATTENTION_FORWARD] = k->attention_forward,
                        [PROFILE_ATTENTION_BACKWARD] = k->attention_backward,
                        [PROFILE_HEAD_FORWARD] = k->head_forward,
                        [PROFILE_HEAD_BACKWARD] = k->head_backward},
    };
}

/* Points that were measured replace all that were known before: these were of the same kernels only
 * by assumption. */
static int measure_classes(struct bench *bench, const struct gpu_rates_table *rates,
                           const struct gpu_rates_class *classes, size_t count, struct err *err)
{
    struct profile_device measured = {0};
    uint64_t start_ns = clock_ns();
    uint32_t left_out = 0;
    for (size_t i = 0; i < count; i++) {
        const struct gpu_rates_class *class = &classes[i];
        struct gpu_rates_kernels kernels;
        char what[64];
        if (i > 1 && bench_seconds_since(start_ns) > bench->seconds) {
            left_out++;
            continue;
        }
        snprintf(what, sizeof(what), "%s, %u channels, %u rows", class->bf16 ? "bf16" : "fp32",
                 class->channels, class->batch * class->seq);
        bench_step(bench, what);
        int result = rates->kernels(class, &kernels, err);
        if (result == ERR_INPUT && measured.point_count > 1) {
            log_line("%s: %s", what, err->message);
            continue;
        }
        if (result)
            return result;
        add_point(&measured, class, &kernels);
    }
    if (left_out)
        log_line("there was no time for the %u largest classes: give --seconds more", left_out);
    bench->profile.card.point_count = measured.point_count;
    memcpy(bench->profile.card.points, measured.points, sizeof(measured.points));
    return 0;
}

static void report_points(struct bench *bench, const double limit[2])
{
    const struct profile_device *card = &bench->profile.card;
    for (uint32_t precision = 0; precision < 2; precision++) {
        const struct profile_point *widest = NULL;
        for (uint32_t i = 0; i < card->point_count; i++)
            if (card->points[i].precision == precision)
                widest = &card->points[i];
        for (uint32_t k = 0; widest && k < PROFILE_KERNEL_COUNT; k++) {
            struct bench_row *row =
                bench_report(bench, BENCH_GFLOP_S, widest->flops_per_s[k], NULL, "%s, %s, %u x %u",
                             profile_kernel_name[k], precision == PRECISION_BF16 ? "bf16" : "fp32",
                             widest->channels, widest->rows);
            bench_limit(row, limit[precision], "a large product on the card");
        }
    }
}

static void report_memory(struct bench *bench, const struct gpu_rates_memory *memory)
{
    bench_report(bench, BENCH_GB_S, memory->copy_bytes_per_s, NULL, "a copy within the card");
    struct bench_row *row = bench_report(bench, BENCH_GB_S, memory->stream_bytes_per_s, NULL,
                                         "the card's kernels bound by memory");
    bench_limit(row, memory->copy_bytes_per_s, "a copy within the card");
    bench_report(bench, BENCH_US, memory->launch_s, NULL, "a launch on the card");
}

/* Both precisions of each width and length, small ones first. */
#define WIDTHS(X, batch) X(batch, 768), X(batch, 1600), X(batch, 4096)
#define BOTH(batch, width)                                                                         \
    {true, batch, SEQ, width, width / HEAD_CHANNELS, TILE_ROWS},                                   \
    {                                                                                              \
        false, batch, SEQ, width, width / HEAD_CHANNELS, TILE_ROWS                                 \
    }
static const struct gpu_rates_class default_classes[] = {WIDTHS(BOTH, 1), WIDTHS(BOTH, 4),
                                                         WIDTHS(BOTH, 8)};

int bench_card_compute(struct bench *bench, const struct gpu_rates_class *classes, size_t count,
                       struct err *err)
{
    struct gpu_rates_memory memory;
    double limit[2] = {0};
    const struct gpu_rates_table *rates = open_card(bench, err);
    if (!rates)
        return err->code;
    if (!classes) {
        classes = default_classes;
        count = ARRAY_COUNT(default_classes);
    }
    bench_begin(bench, "the card's kernels", "classes", (double)count);
    int result = rates->memory(&memory, err);
    for (uint32_t precision = 0; precision < 2 && result == 0; precision++)
        result = rates->product(precision == PRECISION_BF16, &limit[precision], err);
    if (result == 0)
        result = measure_classes(bench, rates, classes, count, err);
    bench_end(bench);
    if (result)
        return result;
    bench->profile.card.stream_bytes_per_s = memory.stream_bytes_per_s;
    bench->profile.card.launch_s = memory.launch_s;
    report_memory(bench, &memory);
    report_points(bench, limit);
    return 0;
}
