/*
 * spillway plan: what train would do, without doing it: what sits where, what a step moves, how
 * long it should take at the rates of offload/profile.c, which lane binds, and what it writes to
 * the drive.
 */
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "offload/run.h"
#include "tools/commands.h"
#include "tools/options.h"

#include <stdio.h>

#define SECONDS_A_DAY 86400.0

struct forecast {
    double predicted_s, bound_s;
    enum plan_lane bound_lane;
    struct plan_totals totals;
    struct place_least least;
};

static uint64_t moved(const struct forecast *f, enum plan_lane lane)
{
    return f->totals.bytes[PHASE_FORWARD][lane] + f->totals.bytes[PHASE_BACKWARD][lane];
}

static void print_lane(const struct forecast *f, const char *name, enum plan_lane lane,
                       uint64_t least)
{
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    printf("  %-14s %12s a step (least: %s)\n", name, log_bytes(a, moved(f, lane)),
           log_bytes(b, least));
}

static void print_forecast(const struct run *run, const struct forecast *f)
{
    char text[LOG_BYTES_MAX];
    uint64_t tokens = run_tokens_per_step(run);
    printf("\nA step: %llu tokens\n", (unsigned long long)tokens);
    print_lane(f, "RAM -> VRAM", LANE_H2D, f->least.h2d_bytes);
    print_lane(f, "VRAM -> RAM", LANE_D2H, f->least.d2h_bytes);
    print_lane(f, "NVMe -> RAM", LANE_SSD_READ, f->least.ssd_read_bytes);
    print_lane(f, "RAM -> NVMe", LANE_SSD_WRITE, f->least.ssd_write_bytes);
    printf("  predicted      %12s  %.0f tokens/s (at default rates: nothing was measured here)\n",
           log_duration(text, f->predicted_s), (double)tokens / f->predicted_s);
    printf("  lower bound    %12s  %s binds\n", log_duration(text, f->bound_s),
           plan_lane_name[f->bound_lane]);
    if (moved(f, LANE_SSD_WRITE))
        printf("  written        %9.0f GB a day of training, and commits\n",
               (double)moved(f, LANE_SSD_WRITE) / 1e9 * SECONDS_A_DAY / f->predicted_s);
    if (run->settings->data_dir)
        printf("  the data once  %12s\n",
               log_duration(text, (double)run->dataset.train.token_count / (double)tokens *
                                      f->predicted_s));
}

static void print_json(const struct run *run, const struct forecast *f)
{
    struct json_value *root = json_new_object();
    json_set_string(root, "model", run->config.name);
    json_set_int(root, "parameters", (int64_t)run->tensors.parameter_count);
    json_set_int(root, "tokens", (int64_t)run_tokens_per_step(run));
    json_set_number(root, "predicted_s", f->predicted_s);
    json_set_number(root, "bound_s", f->bound_s);
    json_set_string(root, "bound_lane", plan_lane_name[f->bound_lane]);
    json_set_number(root, "tokens_per_s", (double)run_tokens_per_step(run) / f->predicted_s);
    json_set_int(root, "ram_bytes", (int64_t)run->place.ram_bytes);
    json_set_int(root, "vram_bytes", (int64_t)run->place.vram_bytes);
    json_set_int(root, "nvme_bytes", (int64_t)run->place.nvme_bytes);
    json_set_int(root, "overhead_bytes", (int64_t)run->place.spec.overhead_bytes);
    json_set_int(root, "h2d_bytes", (int64_t)moved(f, LANE_H2D));
    json_set_int(root, "d2h_bytes", (int64_t)moved(f, LANE_D2H));
    json_set_int(root, "ssd_read_bytes", (int64_t)moved(f, LANE_SSD_READ));
    json_set_int(root, "ssd_write_bytes", (int64_t)moved(f, LANE_SSD_WRITE));
    json_set_int(root, "h2d_least_bytes", (int64_t)f->least.h2d_bytes);
    json_set_int(root, "d2h_least_bytes", (int64_t)f->least.d2h_bytes);
    json_set_int(root, "ssd_read_least_bytes", (int64_t)f->least.ssd_read_bytes);
    json_set_int(root, "ssd_write_least_bytes", (int64_t)f->least.ssd_write_bytes);
    char *text = json_text(root, true);
    printf("%s\n", text);
    mem_free(text);
    json_free(root);
}

static int show_plan(struct options *options, struct train_settings *settings, struct err *err)
{
    struct run *run = NULL;
    int result = run_plan_open(&run, settings, settings->nvme_dir != NULL, err);
    if (result == 0) {
        struct forecast f;
        enum variant usual = run_usual(run);
        f.predicted_s = run_predict(run, usual);
        f.bound_s = run_bound(run, usual, &f.bound_lane);
        f.least = run->least[usual];
        plan_total(&run->plans[usual], &f.totals);
        if (options->json) {
            print_json(run, &f);
        } else {
            place_print(&run->place, &run->memory, stdout);
            print_forecast(run, &f);
            if (options->dump)
                plan_dump(&run->plans[usual], stdout);
        }
    }
    run_close(run);
    return result;
}

int plan_main(int argc, char **argv)
{
    struct options options;
    struct train_settings settings;
    struct err err = {0};
    int result = options_parse(&options, OPTIONS_PLAN, argc, argv, &settings, &err);
    if (result == 0)
        result = show_plan(&options, &settings, &err);
    options_deinit(&options);
    return commands_status(result, &err);
}
