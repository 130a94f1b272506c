/*
 * spillway plan: what training would be like, without doing it: what sits where, how long a step
 * takes and what binds it, what the drive has to bear, and what would help most. For the machine at
 * hand and what it can train, exactly as train would do it (the device is opened and measured); for
 * an imagined machine or another kind of model, by a forecast.
 */
#include "core/json.h"
#include "core/log.h"
#include "io/dataset.h"
#include "core/mem.h"
#include "offload/forecast.h"
#include "offload/run.h"
#include "tools/advice.h"
#include "tools/commands.h"
#include "tools/forecast_json.h"
#include "tools/options.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define BAR_WIDTH    48
#define ADVICE_SHOWN 3
/* How to spare a drive is worth a word where that helps so much. */
#define SPARING_LEAST 1.2
/* Less is no help. */
#define ADVICE_LEAST 1.02

struct shown {
    const struct options *options;
    const struct train_settings *settings;
    struct forecast forecast;
    struct forecast_model model; /* of an imagined one */
    const struct config *config;
    uint64_t parameters;
    double data_tokens; /* 0: not known */
    struct forecast_request request;
    uint64_t ram_peak_bytes; /* expected; 0: only the budgeted figure is known */
};

/* ---- For a person -----------------------------------------------------------------------------
 */

static const char content_mark[CONTENT_COUNT] = {'S', 'W', 'G', 'A', 't', 'o'};

static void print_bar(const uint64_t *content, uint64_t program, uint64_t total)
{
    char bar[BAR_WIDTH + 1];
    uint64_t done = 0;
    uint32_t filled = 0;
    for (uint32_t c = 0; c <= CONTENT_COUNT; c++) {
        done += c < CONTENT_COUNT ? content[c] : program;
        uint32_t end = (uint32_t)((double)done / (double)total * BAR_WIDTH + 0.5);
        while (filled < MIN(end, BAR_WIDTH))
            bar[filled++] = c < CONTENT_COUNT ? content_mark[c] : 'p';
    }
    while (filled < BAR_WIDTH)
        bar[filled++] = '.';
    bar[BAR_WIDTH] = 0;
    printf("         [%s]\n", bar);
}

static void print_tier(const char *name, const uint64_t *content, uint64_t program, uint64_t held,
                       uint64_t budget)
{
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    printf("  %-5s %10s", name, log_bytes(a, held));
    if (budget != UINT64_MAX)
        printf(" of %s", log_bytes(b, budget));
    for (uint32_t c = 0; c < CONTENT_COUNT; c++)
        if (content[c])
            printf("  %s %s", plan_content_name[c], log_bytes(a, content[c]));
    if (program)
        printf("  program %s", log_bytes(a, program));
    printf("\n");
    print_bar(content, program, MAX(budget != UINT64_MAX ? budget : held, 1));
}

static void print_tiers(const struct shown *shown)
{
    const struct place *place = &shown->forecast.place;
    const struct place_spec *spec = &place->spec;
    struct plan_memory memory;
    plan_memory_init(&memory, place);
    printf(
        "\nWhat sits where (S state, W weights, G gradients, A activations, t in transit, o other, "
        "p program)\n");
    if (place->separate_device)
        print_tier("VRAM", memory.content_bytes[TIER_DEVICE], 0, place->vram_bytes,
                   spec->vram_budget);
    print_tier("RAM", memory.content_bytes[TIER_RAM], spec->overhead_bytes, place->ram_bytes,
               spec->ram_budget);
    if (spec->nvme) {
        uint64_t content[CONTENT_COUNT];
        for (uint32_t c = 0; c < CONTENT_COUNT; c++)
            content[c] = memory.content_bytes[TIER_NVME][c];
        content[CONTENT_STATE] = place_state_bytes(spec); /* all slots, whatever RAM holds */
        print_tier("NVMe", content, 0, place->nvme_bytes, spec->nvme_budget);
    }
    if (spec->one_slot)
        printf("  " PLACE_ONE_SLOT_NOTE "\n");
    plan_memory_deinit(&memory);
    place_print_choice(place, stdout);
}

static void print_lane(const struct forecast *f, enum plan_lane lane, const char *what,
                       uint64_t least)
{
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    double share = f->busy_s[lane] / f->predicted_s;
    if (f->busy_s[lane] <= 0)
        return;
    printf("  %-10s %-12s busy %3.0f %%", plan_lane_name[lane], what, 100 * MIN(share, 1));
    if (least)
        printf("  %s a step (least: %s)", log_bytes(a, f->bytes[lane]), log_bytes(b, least));
    printf("%s\n", f->bound.lane == lane ? "  <- binds" : "");
}

static const char *rates_of(const struct shown *shown)
{
    const struct options *o = shown->options;
    if (options_imagined(o, shown->settings))
        return "from data sheets and measurements of others: see docs/machine-profiles.md";
    return o->profile.measured
               ? "as measured on this machine"
               : "at default rates: run 'spillway bench all' to measure this machine";
}

static void print_step(const struct shown *shown)
{
    const struct forecast *f = &shown->forecast;
    char text[LOG_BYTES_MAX];
    printf("\nA step: %" PRIu64 " tokens\n", f->tokens);
    printf("  predicted    %10s  %.0f tokens/s (%s)\n", log_duration(text, f->predicted_s),
           forecast_tokens_per_s(f), rates_of(shown));
    printf("  lower bound  %10s  %s binds; the step takes %.2f times the bound\n",
           log_duration(text, f->bound.seconds), plan_lane_name[f->bound.lane],
           f->predicted_s / f->bound.seconds);
    print_lane(f, LANE_COMPUTE, "device", 0);
    print_lane(f, LANE_CPU, "updates", 0);
    print_lane(f, LANE_H2D, "RAM -> VRAM", f->least.h2d_bytes);
    print_lane(f, LANE_D2H, "VRAM -> RAM", f->least.d2h_bytes);
    print_lane(f, LANE_SSD_READ, "NVMe -> RAM", f->least.ssd_read_bytes);
    print_lane(f, LANE_SSD_WRITE, "RAM -> NVMe", f->least.ssd_write_bytes);
}

static void print_days(const char *name, double days, const char *rest)
{
    if (days >= 1000)
        printf("  %-12s %10.1f years%s\n", name, days / 365.25, rest);
    else
        printf("  %-12s %10.1f days%s\n", name, days, rest);
}

/* The fastest plan may write activations to the drive that could be computed again: what sparing
 * the drive would cost. */
static void print_sparing(const struct shown *shown)
{
    const struct forecast *now = &shown->forecast;
    struct forecast_request request = shown->request;
    struct forecast spared;
    struct err err;
    char text[LOG_BYTES_MAX];
    request.recompute = RECOMPUTE_ALL;
    request.chunks = false;
    if (forecast_make(&spared, &request, &err) == 0 &&
        spared.wear.days_left > SPARING_LEAST * now->wear.days_left) {
        print_days("  spared", spared.wear.days_left, "");
        printf("               with --recompute all, at %s a step: %.2f times as long\n",
               log_duration(text, spared.predicted_s), spared.predicted_s / now->predicted_s);
    }
    forecast_deinit(&spared);
}

static void print_wear(const struct shown *shown)
{
    const struct wear *wear = &shown->forecast.wear;
    char text[LOG_BYTES_MAX];
    uint64_t budget = shown->request.write_budget;
    if (wear->bytes_per_day <= 0)
        return;
    printf("  written      %10.1f TB a day of training, commits included\n",
           wear->bytes_per_day / 1e12);
    if (budget)
        printf("               of %s a day that --write-budget allows\n", log_bytes(text, budget));
    if (isfinite(wear->days_left))
        print_days("endurance", wear->days_left,
                   wear->days_left < WEAR_WARN_DAYS
                       ? " until what the drive is rated for is used up: under a year"
                       : " until what the drive is rated for is used up");
    if (wear->days_left < WEAR_WARN_DAYS && shown->request.recompute == RECOMPUTE_AUTO)
        print_sparing(shown);
}

static void print_hints(const struct shown *shown)
{
    const struct forecast *f = &shown->forecast;
    char text[LOG_BYTES_MAX];
    print_wear(shown);
    if (shown->data_tokens > 0)
        printf("  the data     %10s  (%.3g tokens, once)\n",
               log_duration(text, shown->data_tokens / forecast_tokens_per_s(f)),
               shown->data_tokens);
    if (isinf(f->hiding_tokens))
        printf("  hiding       activations alone take longer than the arithmetic: a larger step "
               "does not hide them\n");
    else if (f->hiding_tokens > (double)f->tokens)
        printf("  hiding       %10.0f tokens a step would hide the traffic of state and weights\n",
               f->hiding_tokens);
    else
        printf("  hiding       the traffic of state and weights hides behind the arithmetic\n");
}

static size_t find_advice(const struct shown *shown, struct advice *advice)
{
    struct machine_request machine = shown->options->machine;
    return advice_find(advice, &shown->request, &machine, &shown->options->local, &shown->forecast);
}

static void print_advice(const struct shown *shown)
{
    struct advice advice[ADVICE_MAX];
    size_t count = find_advice(shown, advice), shown_count = 0;
    printf("\nWhat would help most (tokens/s)\n");
    for (size_t i = 0; i < count && shown_count < ADVICE_SHOWN; i++)
        if (advice[i].speedup >= ADVICE_LEAST) {
            printf("  %.2f times  %s\n", advice[i].speedup, advice[i].what);
            shown_count++;
        }
    if (!shown_count)
        printf("  nothing that was tried brings 2 %% or more\n");
    bool first = true;
    for (size_t i = 0; i < count; i++)
        if (advice[i].speedup < ADVICE_LEAST) {
            printf("%s%s", first ? "  no help: " : "; ", advice[i].what);
            first = false;
        }
    if (!first)
        printf("\n");
}

static void print_plan(const struct shown *shown)
{
    char text[MACHINE_TEXT_MAX], state[32] = "";
    const struct place_spec *spec = &shown->forecast.place.spec;
    if (spec->layout->moments != MOMENTS_FP32)
        snprintf(state, sizeof(state), ", %s moments", moments_name[spec->layout->moments]);
    printf("%s: %" PRIu64 " parameters, %s%s, %u x %u x %u x %u tokens (batch x seq x accum x "
           "devices)\n",
           shown->config->name, shown->parameters,
           spec->precision == PRECISION_BF16 ? "bf16" : "fp32", state, spec->batch, spec->seq,
           spec->accum, shown->forecast.devices);
    printf("on %s\n", machine_describe(&shown->options->profile, text, sizeof(text)));
    print_tiers(shown);
    print_step(shown);
    print_hints(shown);
    print_advice(shown);
}

/* ---- For a program ----------------------------------------------------------------------------
 */

static void print_json(const struct shown *shown)
{
    struct advice advice[ADVICE_MAX];
    struct json_value *root = json_new_object(), *list = json_new_array();
    json_set_string(root, "model", shown->config->name);
    json_set_int(root, "parameters", (int64_t)shown->parameters);
    forecast_to_json(root, &shown->forecast);
    json_set_int(root, "batch", shown->request.batch); /* all devices together */
    json_set_int(root, "accum", shown->request.accum);
    if (shown->data_tokens > 0)
        json_set_number(root, "data_s",
                        shown->data_tokens / forecast_tokens_per_s(&shown->forecast));
    if (shown->ram_peak_bytes)
        json_set_int(root, "ram_peak_bytes", (int64_t)shown->ram_peak_bytes);
    size_t count = find_advice(shown, advice);
    for (size_t i = 0; i < count; i++) {
        struct json_value *item = json_new_object();
        json_set_string(item, "change", advice[i].what);
        json_set_number(item, "speedup", advice[i].speedup);
        json_set_number(item, "predicted_s", advice[i].predicted_s);
        json_append(list, item);
    }
    json_set(root, "advice", list);
    char *text = json_text(root, true);
    printf("%s\n", text);
    mem_free(text);
    json_free(root);
}

static void show(const struct shown *shown)
{
    wear_warn(&shown->forecast.wear);
    if (shown->options->json)
        print_json(shown);
    else
        print_plan(shown);
}

/* ---- The two ways -----------------------------------------------------------------------------
 */

static void fill_request(struct shown *shown, const struct forecast_model *model)
{
    const struct train_settings *s = shown->settings;
    const struct machine_request *machine = &shown->options->machine;
    bool drive = !machine->ssd || strcmp(machine->ssd, "none") != 0;
    bool imagined = options_imagined(shown->options, s);
    shown->request = (struct forecast_request){
        .model = model,
        .profile = &shown->options->profile,
        .precision = s->precision,
        .seq = (uint32_t)s->seq,
        .batch = (uint32_t)s->batch,
        .accum = (uint32_t)s->accum,
        .ram_budget = s->ram_budget,
        .vram_budget = s->vram_budget,
        .nvme_budget = s->nvme_budget == UINT64_MAX || imagined ? 0 : s->nvme_budget,
        .nvme = imagined ? drive : s->nvme.count > 0,
        .one_slot = s->one_slot,
        .clip = s->optim.clip > 0,
        .resident_planes = s->resident_planes,
        .update = s->update,
        .prefetch = (uint32_t)s->prefetch,
        .recompute = s->recompute,
        .write_budget = s->write_budget,
        .checkpoint_every = (uint32_t)MIN(s->checkpoint_every, UINT32_MAX),
        .chunks = true,
    };
}

/* As train would begin: the device is opened, so that what it takes is measured. */
static int plan_here(struct shown *shown, struct train_settings *settings, struct err *err)
{
    struct run *run = NULL;
    int result = run_plan_open(&run, settings, settings->nvme.count > 0, err);
    if (result == 0) {
        shown->ram_peak_bytes = run_expected_ram_bytes(run);
        forecast_of_place(&shown->forecast, &run->place, true);
        shown->config = &run->config;
        shown->parameters = run->tensors.parameter_count;
        if (settings->data_dir)
            shown->data_tokens = (double)run->dataset.train.token_count;
        forecast_model_init(&shown->model, &run->config, settings->moments);
        fill_request(shown, &shown->model);
        show(shown);
        if (shown->options->dump)
            plan_dump(&run->plans[run_usual(run)], stdout);
    }
    run_close(run); /* and with it the placement */
    return result;
}

/* What the data says of itself: a model that is given no vocabulary takes that of the data. */
static int look_at_data(struct shown *shown, const char *dir, struct config *config,
                        struct err *err)
{
    struct dataset dataset;
    int result = dataset_open(&dataset, dir, err);
    if (result)
        return result;
    if (!config->vocab)
        config->vocab = dataset.vocab;
    shown->data_tokens = (double)dataset.train.token_count;
    dataset_close(&dataset);
    return 0;
}

static int plan_imagined(struct shown *shown, struct train_settings *settings, struct err *err)
{
    struct config config = settings->config;
    int result = settings->data_dir ? look_at_data(shown, settings->data_dir, &config, err) : 0;
    if (!config.vocab)
        config.vocab = 50257;
    if (result == 0)
        result = config_check(&config, err);
    if (result)
        return result;
    if (!settings->seq)
        settings->seq = MIN(config.positions, 1024);
    if (settings->seq > config.positions)
        return err_set(err, ERR_INPUT, "--seq %" PRIu64 " is longer than the %u positions of %s",
                       settings->seq, config.positions, config.name);
    if (settings->batch * settings->seq > KERNELS_ROWS_MAX)
        return err_set(err, ERR_INPUT, "--batch %" PRIu64 " of --seq %" PRIu64 " is too large",
                       settings->batch, settings->seq);
    forecast_model_init(&shown->model, &config, settings->moments);
    shown->config = &shown->model.config;
    shown->parameters = shown->model.tensors.parameter_count;
    fill_request(shown, &shown->model);
    result = forecast_make(&shown->forecast, &shown->request, err);
    if (result == 0) {
        show(shown);
        if (shown->options->dump)
            log_line("--ops lists the ops of plans for this machine only");
    }
    forecast_deinit(&shown->forecast);
    return result;
}

int plan_main(int argc, char **argv)
{
    struct options options;
    struct train_settings settings;
    struct err err = {0};
    int result = options_parse(&options, OPTIONS_PLAN, argc, argv, &settings, &err);
    if (result == 0) {
        struct shown shown = {
            .options = &options, .settings = &settings, .data_tokens = options.tokens};
        result = options_imagined(&options, &settings) ? plan_imagined(&shown, &settings, &err)
                                                       : plan_here(&shown, &settings, &err);
        forecast_model_deinit(&shown.model);
    }
    options_deinit(&options);
    return commands_status(result, &err);
}
