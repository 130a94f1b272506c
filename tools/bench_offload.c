/*
 * bench offload: NVMe offload with a GPU that has not been bought yet: a model's steps with this
 * machine's drive, RAM and cores at work and the card's time kept by the model
 * (offload/rehearsal.h); what they took beside what was predicted for them.
 */
#include "tools/bench.h"

#include "core/args.h"
#include "core/mem.h"
#include "core/topo.h"
#include "io/file.h"
#include "offload/rehearsal.h"
#include "tools/bench_drive.h"
#include "tools/commands.h"
#include "tools/local.h"
#include "tools/machine.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define BATCH_DEFAULT 4
#define SEQ_DEFAULT   1024
#define STEPS_DEFAULT 3
#define VOCAB_DEFAULT 50257 /* of a model that takes the data's: GPT-2's */

struct offload {
    const char *model, *gpu, *machine, *nvme, *precision;
    uint64_t ram_budget, vram_budget, nvme_budget;
    uint64_t batch, seq, accum, steps, threads;
    char local_path[FILE_PATH_MAX]; /* of this machine's profile; empty: not used, or defaults */

    struct profile profile;
    struct config config;
    struct tensors tensors;
    struct layout layout;
    struct rehearsal rehearsal;

    struct sched_result predicted;
    struct bound bound;
    struct bench_samples seconds;
    /* Of all steps together. */
    uint64_t busy_ns[LANE_COUNT], bytes[LANE_COUNT];
    struct engine_time *times;           /* owned; [op] of the last step */
    struct bench_latencies latencies[2]; /* of the drive's reads and writes */
};

/* ---- The command line ------------------------------------------------------------------------ */

static int parse(struct offload *o, int argc, char **argv, struct err *err)
{
    const struct args_option options[] = {
        {"model", ARGS_STRING, &o->model, "NAME|FILE.json|DIR",
         "gpt-tiny, gpt2-124m ... gpt2-1558m, llama-8b, or a config.json", NULL},
        {"gpu", ARGS_STRING, &o->gpu, "GPU",
         "the card to imagine: rtx3060, rtx4090, ... or a part's file", NULL},
        {"machine", ARGS_STRING, &o->machine, "PROFILE",
         "what to predict by (default: ~/.config/spillway/machine.json, which 'spillway bench all' "
         "writes, else cautious defaults)",
         NULL},
        {"nvme", ARGS_STRING, &o->nvme, "DIR", "a folder on the drive", NULL},
        {"ram-budget", ARGS_SIZE, &o->ram_budget, "SIZE",
         "RAM for the whole process (default: 80 % of what is free)", NULL},
        {"vram-budget", ARGS_SIZE, &o->vram_budget, "SIZE",
         "of the imagined card, beside what its driver and a desktop need (default: all the rest)",
         NULL},
        {"nvme-budget", ARGS_SIZE, &o->nvme_budget, "SIZE",
         "space on the drive (default: what is free)", NULL},
        {"precision", ARGS_STRING, &o->precision, "bf16|fp32", "default: bf16", NULL},
        {"seq", ARGS_U64, &o->seq, "T", "default: the model's, at most 1024", NULL},
        {"batch", ARGS_U64, &o->batch, "B", "sequences in a micro-batch (default: 4)", NULL},
        {"accum", ARGS_U64, &o->accum, "M", "micro-batches in a step (default: 1)", NULL},
        {"steps", ARGS_U64, &o->steps, "N", "steps to measure, after one that is not (default: 3)",
         NULL},
        {"threads", ARGS_U64, &o->threads, "N", "of the optimizer (default: one a core)", NULL},
    };
    struct args_command args = {
        .name = "bench offload",
        .summary = "Measures NVMe offload on this machine's drive, RAM and cores under a GPU that "
                   "is only imagined, beside what is predicted for it.",
        .usage = "--model NAME --gpu GPU --nvme DIR [options]",
        .example = "spillway bench offload --model gpt2-1558m --gpu rtx3060 --nvme /mnt/nvme "
                   "--ram-budget 8G",
        .options = options,
        .option_count = ARRAY_COUNT(options),
    };
    return args_parse(&args, argc, argv, err);
}

static int in_range(const char *name, uint64_t value, uint64_t most, struct err *err)
{
    if (value >= 1 && value <= most)
        return 0;
    return err_set(err, ERR_USAGE, "--%s is %" PRIu64 "; it may be 1 to %" PRIu64, name, value,
                   most);
}

static int check_options(struct offload *o, struct err *err)
{
    if (!o->model)
        return err_set(err, ERR_USAGE, "--model is missing: the model whose steps to measure");
    if (!o->nvme)
        return err_set(err, ERR_USAGE, "--nvme is missing: --nvme DIR, a folder on the drive");
    if (!o->gpu && !o->machine)
        return err_set(err, ERR_USAGE,
                       "--gpu is missing: the card to imagine, such as --gpu rtx3060");
    if (strcmp(o->precision, "bf16") != 0 && strcmp(o->precision, "fp32") != 0)
        return err_set(err, ERR_USAGE, "--precision is '%.40s'; it may be: fp32, bf16",
                       o->precision);
    int result = in_range("batch", o->batch, 65536, err);
    if (result == 0)
        result = in_range("accum", o->accum, 4096, err);
    if (result == 0)
        result = in_range("steps", o->steps, BENCH_SAMPLES_MAX, err);
    if (result == 0)
        result = in_range("threads", o->threads, topo_open()->thread_count, err);
    return result;
}

/* ---- What is asked for ----------------------------------------------------------------------- */

/* This machine as it was measured, or as defaults guess it to be, with the card put into it. */
static int open_profile(struct offload *o, struct err *err)
{
    const struct machine_request request = {.machine = o->machine, .gpu = o->gpu};
    bool measured = false;
    int result = local_profile(&o->profile, &measured, err);
    if (result == 0 && measured && !o->machine)
        result = local_profile_path(o->local_path, err);
    if (result == 0)
        result = machine_compose(&o->profile, &request, err);
    if (result)
        return result;
    if (o->profile.device.is_cpu)
        return err_set(err, ERR_USAGE,
                       "there is no GPU in that machine, and this one's processor need not be "
                       "imagined: give --gpu, such as --gpu rtx3060");
    if (o->profile.device.count > 1)
        return err_set(err, ERR_USAGE,
                       "one imagined GPU is all that can be measured here: the gradients of the "
                       "others would come from nowhere");
    return 0;
}

static int open_model(struct offload *o, struct err *err)
{
    int result = config_load(&o->config, o->model, err);
    if (result)
        return result;
    if (!o->config.vocab)
        o->config.vocab = VOCAB_DEFAULT;
    result = config_check(&o->config, err);
    if (result)
        return result;
    if (!o->seq)
        o->seq = MIN(o->config.positions, SEQ_DEFAULT);
    result = in_range("seq", o->seq, o->config.positions, err);
    if (result)
        return result;
    tensors_init(&o->tensors, &o->config);
    layout_init(&o->layout, &o->tensors, MOMENTS_FP32);
    return 0;
}

static int open_budgets(struct offload *o, struct err *err)
{
    const struct profile_device *device = &o->profile.device;
    if (!file_exists(o->nvme))
        return err_set(err, ERR_INPUT, "--nvme: there is no folder %s: make it first", o->nvme);
    int result = file_check_tier(o->nvme, err);
    if (result == 0 && o->nvme_budget == UINT64_MAX)
        result = file_free_bytes(o->nvme, &o->nvme_budget, err);
    uint64_t whole = device->vram_bytes - MIN(device->vram_bytes, device->reserve_bytes);
    if (!o->vram_budget)
        o->vram_budget = whole;
    if (result == 0 && (!whole || o->vram_budget > whole))
        result = err_set(err, ERR_INPUT,
                         "the card has %" PRIu64 "M of memory to use: give --vram-budget %" PRIu64
                         "M or less",
                         whole / MIB, whole / MIB);
    if (!o->ram_budget)
        o->ram_budget = mem_available_bytes() / 5 * 4;
    return result;
}

static int plan_steps(struct offload *o, struct err *err)
{
    const struct place_spec spec = {
        .config = &o->config,
        .layout = &o->layout,
        .precision = strcmp(o->precision, "bf16") == 0 ? PRECISION_BF16 : PRECISION_FP32,
        .seq = (uint32_t)o->seq,
        .batch = (uint32_t)o->batch,
        .accum = (uint32_t)o->accum,
        .ram_budget = o->ram_budget,
        .vram_budget = o->vram_budget,
        .nvme_budget = o->nvme_budget,
        .nvme = true,
        .clip = true,
        .resident_planes = PLACE_RESIDENT_AUTO,
        .profile = &o->profile,
    };
    return rehearsal_plan(&o->rehearsal, &spec, err);
}

/* A few steps end before a drive's fast cache is full: they are compared with what it does until
 * then. */
static void predict(struct offload *o)
{
    struct profile fresh = o->profile;
    fresh.ssd.sustained_write_bytes_per_s = fresh.ssd.write_bytes_per_s;
    rehearsal_predict(&o->rehearsal, NULL, &o->predicted);
    bound_of(&o->bound, &fresh, &o->rehearsal.steady, NULL);
}

/* ---- Telling --------------------------------------------------------------------------------- */

static double seconds_of(const struct sched_result *result)
{
    return (double)(result->end_ns - result->start_ns) / 1e9;
}

static void print_intro(const struct offload *o)
{
    const struct profile_device *device = &o->profile.device;
    char text[LOG_BYTES_MAX], driver[LOG_BYTES_MAX];
    printf("imagined   %s, %s of its memory, link %.1f GB/s\n", device->name,
           log_bytes(text, o->vram_budget), device->h2d_bytes_per_s / 1e9);
    printf("at work    %s, %" PRIu64 " threads, %s\n", topo_open()->cpu_model, o->threads, o->nvme);
    if (o->local_path[0])
        printf("predicted  by the figures of %s\n", o->local_path);
    else if (o->machine)
        printf("predicted  by the figures of %s\n", o->machine);
    else
        printf("predicted  by default figures of processor, RAM and drive, which are rough: "
               "'spillway bench all --nvme %s' measures this machine's\n",
               o->nvme);
    printf("model      %s: %" PRIu64 " parameters, %s; %" PRIu64 " x %" PRIu64 " x %" PRIu64
           " tokens a step (batch x seq x accum)\n",
           o->config.name, o->tensors.parameter_count, o->precision, o->batch, o->seq, o->accum);
    if (device->overhead_bytes)
        printf(
            "           the card's driver would take %s of RAM more, which no budget here counts\n",
            log_bytes(driver, device->overhead_bytes));
    place_print(&o->rehearsal.place, &o->rehearsal.memory, stdout);
}

static void print_head(void)
{
    printf("\n%-9s %8s %9s %8s %-9s %6s %9s %6s %9s  busy, %% of the step\n", "", "", "", "", "",
           "read", "", "write", "");
    printf("%-9s %8s %9s %8s %-9s %6s %9s %6s %9s ", "step", "seconds", "predicted", "bound", "by",
           "GB/s", "bytes", "GB/s", "bytes");
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        printf(" %*s", (int)strlen(plan_lane_name[lane]), plan_lane_name[lane]);
    printf("\n");
}

static void print_drive(const struct sched_result *result, enum plan_lane lane)
{
    char text[LOG_BYTES_MAX];
    double busy_s = (double)result->busy_ns[lane] / 1e9;
    printf(" %6.2f %9s", busy_s > 0 ? (double)result->bytes[lane] / busy_s / 1e9 : 0,
           log_bytes(text, result->bytes[lane]));
}

static void print_row(const struct offload *o, const char *name, const struct sched_result *result)
{
    double seconds = seconds_of(result);
    printf("%-9s %8.3f %9.3f %8.3f %-9s", name, seconds, seconds_of(&o->predicted),
           o->bound.seconds, plan_lane_name[o->bound.lane]);
    print_drive(result, LANE_SSD_READ);
    print_drive(result, LANE_SSD_WRITE);
    printf(" ");
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        printf(" %*.0f", (int)strlen(plan_lane_name[lane]),
               100 * (double)result->busy_ns[lane] / 1e9 / seconds);
    printf("\n");
    fflush(stdout);
}

/* The same model at the speeds that were reached: what is left then is the model's own error. */
static double predict_again(struct offload *o)
{
    double stretch[LANE_COUNT];
    struct sched_result again;
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        double said = (double)o->predicted.busy_ns[lane] * o->seconds.count;
        bool is_real = lane == LANE_SSD_READ || lane == LANE_SSD_WRITE || lane == LANE_CPU;
        stretch[lane] = is_real && said > 0 ? (double)o->busy_ns[lane] / said : 1;
    }
    rehearsal_predict(&o->rehearsal, stretch, &again);
    return seconds_of(&again);
}

/* What `bench ssd` tells of a drive, of the traffic of whole steps: from where a step begins to its
 * end, and of the time in which the lane had something to move. Lanes that move nothing are left
 * out. */
static void print_traffic(const struct offload *o)
{
    static const enum plan_lane lanes[] = {LANE_SSD_READ, LANE_SSD_WRITE};
    const struct profile_ssd *ssd = &o->profile.ssd;
    const double figures[] = {ssd->mixed_read_bytes_per_s, ssd->mixed_write_bytes_per_s};
    double seconds = 0;
    for (uint32_t i = 0; i < o->seconds.count; i++)
        seconds += o->seconds.value[i];
    if (!o->latencies[0].count && !o->latencies[1].count)
        return;
    printf("\n%-10s %9s %10s %9s %10s  %s\n", "the drive", "bytes", "GB/s over", "GB/s",
           "by figures", "a transfer takes, ms");
    printf("%-10s %9s %10s %9s %10s %9s %9s %9s %9s\n", "", "a step", "the step", "busy",
           "both ways", "p50", "p99", "p99.9", "max");
    for (uint32_t i = 0; i < ARRAY_COUNT(lanes); i++) {
        char text[LOG_BYTES_MAX];
        double bytes = (double)o->bytes[lanes[i]], busy_s = (double)o->busy_ns[lanes[i]] / 1e9;
        const struct bench_latencies *l = &o->latencies[i];
        if (!l->count)
            continue;
        printf("%-10s %9s %10.2f %9.2f %10.2f %9.2f %9.2f %9.2f %9.2f\n", plan_lane_name[lanes[i]],
               log_bytes(text, o->bytes[lanes[i]] / o->seconds.count), bytes / seconds / 1e9,
               busy_s > 0 ? bytes / busy_s / 1e9 : 0, figures[i] / 1e9,
               bench_latencies_within(l, 0.5) * 1e3, bench_latencies_within(l, 0.99) * 1e3,
               bench_latencies_within(l, 0.999) * 1e3, bench_latencies_within(l, 1) * 1e3);
    }
}

static void print_long_run(const struct offload *o, double median_s)
{
    double least_s = bound_sustained_s(&o->profile, (double)o->predicted.bytes[LANE_SSD_WRITE]);
    if (least_s > median_s)
        printf("past the drive's fast cache a step takes %.3f s at least, by the figures\n",
               least_s);
}

static void print_summary(struct offload *o)
{
    struct mem_usage usage;
    char held[LOG_BYTES_MAX], budget[LOG_BYTES_MAX];
    double median_s = bench_median(&o->seconds), predicted_s = seconds_of(&o->predicted);
    print_traffic(o);
    double again_s = predict_again(o);
    printf("\nmedian %.3f s a step, %.2f times the %.3f s predicted; %.0f tokens/s\n", median_s,
           median_s / predicted_s, predicted_s, (double)(o->batch * o->seq * o->accum) / median_s);
    printf("at the speeds that drive and cores reached here the model says %.3f s; measured: %.2f "
           "times that\n",
           again_s, median_s / again_s);
    print_long_run(o, median_s);
    mem_usage_read(&usage);
    uint64_t peak = usage.rss_peak_bytes + usage.page_table_bytes;
    printf("RAM held %s of %s (peak, whole process)\n", log_bytes(held, peak),
           log_bytes(budget, o->ram_budget));
    if (peak > o->ram_budget)
        log_warn("the process holds more than its RAM budget");
}

/* ---- The whole ------------------------------------------------------------------------------- */

/* A transfer's time is all late, from its submission until it was known to have ended. */
static void add_transfers(struct offload *o)
{
    const struct plan *plan = &o->rehearsal.steady;
    for (uint32_t op = 0; op < plan->op_count; op++) {
        enum plan_lane lane = plan->ops[op].lane;
        if (lane == LANE_SSD_READ || lane == LANE_SSD_WRITE)
            bench_latencies_add(&o->latencies[lane == LANE_SSD_WRITE],
                                (uint64_t)(o->times[op].late_s * 1e9));
    }
}

static void add_step(struct offload *o, const struct sched_result *result)
{
    bench_add(&o->seconds, seconds_of(result));
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        o->busy_ns[lane] += result->busy_ns[lane];
        o->bytes[lane] += result->bytes[lane];
    }
    add_transfers(o);
}

static void run_steps(struct offload *o)
{
    o->times = mem_alloc(o->rehearsal.sched.op_max, sizeof(*o->times));
    o->rehearsal.sched.times = o->times;
    print_head();
    print_row(o, "predicted", &o->predicted);
    for (uint64_t step = 0; step < o->steps; step++) {
        struct sched_result result;
        char name[24];
        rehearsal_step(&o->rehearsal, &result);
        add_step(o, &result);
        snprintf(name, sizeof(name), "%" PRIu64, step + 1);
        print_row(o, name, &result);
    }
    print_summary(o);
}

static int measure(struct offload *o, struct err *err)
{
    int result = check_options(o, err);
    if (result == 0)
        result = open_profile(o, err);
    if (result == 0)
        result = open_model(o, err);
    if (result == 0)
        result = open_budgets(o, err);
    if (result == 0)
        result = plan_steps(o, err);
    if (result)
        return result;
    predict(o);
    print_intro(o);
    fflush(stdout);
    result = rehearsal_open(&o->rehearsal, &o->tensors, o->nvme, (uint32_t)o->threads, err);
    if (result == 0)
        run_steps(o);
    return result;
}

int bench_offload_main(int argc, char **argv)
{
    struct offload *o = mem_alloc(1, sizeof(*o));
    struct err err = {0};
    o->precision = "bf16";
    o->batch = BATCH_DEFAULT;
    o->accum = 1;
    o->steps = STEPS_DEFAULT;
    o->nvme_budget = UINT64_MAX;
    o->threads = topo_open()->core_count;
    int result = parse(o, argc, argv, &err);
    if (result == 0)
        result = measure(o, &err);
    rehearsal_close(&o->rehearsal);
    mem_free(o->times);
    layout_deinit(&o->layout);
    tensors_deinit(&o->tensors);
    mem_free(o);
    return commands_status(result, &err);
}
