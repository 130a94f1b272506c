/*
 * spillway sweep: what to buy: forecasts of one training over lists of RAM sizes, drives, GPUs and
 * step sizes, all combined; with --measure each is really run on this machine. Writes results.json,
 * results.csv and one HTML page that begins with the verdict. A combination that cannot work is a
 * row that says why.
 */
#include "core/args.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "io/file.h"
#include "model/kernels.h"
#include "offload/forecast.h"
#include "tools/commands.h"
#include "tools/forecast_json.h"
#include "tools/local.h"
#include "tools/measure.h"
#include "tools/options.h"
#include "tools/sweep_page.h"
#include "tools/sweep_verdict.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VALUES_MAX 64
#define ROWS_MAX   4096

/* What a sweep may have lists of. */
enum axis {
    AXIS_RAM,
    AXIS_RAM_BUDGET,
    AXIS_VRAM_BUDGET,
    AXIS_GPU,
    AXIS_GPUS,
    AXIS_CPU,
    AXIS_SSD,
    AXIS_SSDS,
    AXIS_SSD_READ,
    AXIS_BATCH,
    AXIS_ACCUM,
    AXIS_COUNT
};

static const struct {
    const char *option, *value, *help;
    bool here; /* can be varied with --measure */
} axes[AXIS_COUNT] = {
    [AXIS_RAM] = {"ram", "SIZE[@MTS],...", "RAM of the machine: 64G,96G,128G,192G", false},
    [AXIS_RAM_BUDGET] = {"ram-budget", "SIZE,...",
                         "of it, for the process (default: all but what "
                         "the system needs)",
                         true},
    [AXIS_VRAM_BUDGET] = {"vram-budget", "SIZE,...", "of the device's memory (default: all)", true},
    [AXIS_GPU] = {"gpu", "NAME,...", "graphics cards: rtx3060,rtx3090; none: the processor", false},
    [AXIS_GPUS] = {"gpus", "N,...", "how many of them: 1,2", false},
    [AXIS_CPU] = {"cpu", "NAME,...", "processors: 7950x3d,13900k", false},
    [AXIS_SSD] = {"ssd", "NAME,...", "drives: 990pro-2tb,t700-2tb; none: without", false},
    [AXIS_SSDS] = {"ssds", "N,...", "how many of them, striped: 1,2", false},
    [AXIS_SSD_READ] = {"ssd-read", "RATE,...",
                       "read rates of an imagined drive, a second: "
                       "3.5G,7G,14G; it writes in proportion",
                       false},
    [AXIS_BATCH] = {"batch", "B,...", "sequences in a micro-batch (default: 4)", true},
    [AXIS_ACCUM] = {"accum", "M,...", "micro-batches in a step (default: 1)", true},
};

struct values {
    char *text;                    /* owned: the list, cut at its commas */
    const char *value[VALUES_MAX]; /* NULL: as the machine has it */
    uint32_t count;
};

struct survey {
    const char *list[AXIS_COUNT], *model, *data, *out, *nvme, *precision, *machine;
    const char *optimizer_state;
    uint64_t seq, steps;
    bool measure;
    struct values values[AXIS_COUNT];
    uint32_t row_count;
    struct config config;
    struct forecast_model shape;
    struct profile base;
    enum precision wanted;
    enum moments_kind moments;
    struct json_value **rows; /* owned until they are in results */
};

/* One combination: an index into each axis. */
struct combination {
    const char *value[AXIS_COUNT];
};

static void find_combination(const struct survey *survey, uint32_t row, struct combination *c)
{
    for (uint32_t a = 0; a < AXIS_COUNT; a++) {
        const struct values *values = &survey->values[a];
        c->value[a] = values->value[row % values->count];
        row /= values->count;
    }
}

/* ---- From words to a request ------------------------------------------------------------------
 */

static int number(const char *option, const char *text, uint64_t most, uint64_t *value,
                  struct err *err)
{
    char *end;
    if (!text)
        return 0;
    unsigned long long parsed = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || parsed < 1 || parsed > most)
        return err_set(err, ERR_USAGE, "--%s has '%s'; it may be 1 to %" PRIu64, option, text,
                       most);
    *value = parsed;
    return 0;
}

static int size(const char *option, const char *text, uint64_t *bytes, struct err *err)
{
    struct err wrong;
    if (text && args_parse_size(text, bytes, &wrong) != 0)
        return err_set(err, ERR_USAGE, "--%s has '%s': %s", option, text, wrong.message);
    return 0;
}

/* A drive that reads at this rate, and else is as it was in proportion. */
static void set_read_rate(struct profile_ssd *ssd, double bytes_per_s)
{
    double factor = bytes_per_s / ssd->read_bytes_per_s;
    ssd->read_bytes_per_s *= factor;
    ssd->write_bytes_per_s *= factor;
    ssd->mixed_read_bytes_per_s *= factor;
    ssd->mixed_write_bytes_per_s *= factor;
    ssd->sustained_write_bytes_per_s *= factor;
    snprintf(ssd->name, sizeof(ssd->name), "drive of %.3g GB/s", bytes_per_s / 1e9);
}

static int make_machine(const struct survey *survey, const struct combination *c,
                        struct profile *profile, struct err *err)
{
    const char *ssd = c->value[AXIS_SSD];
    bool drive = !ssd || strcmp(ssd, "none") != 0;
    struct machine_request machine = {
        .machine = survey->machine,
        .gpu = c->value[AXIS_GPU],
        .cpu = c->value[AXIS_CPU],
        .ram = c->value[AXIS_RAM],
        .ssd = drive ? ssd : NULL,
    };
    bool card = !machine.gpu || strcmp(machine.gpu, "none") != 0;
    uint64_t rate = 0;
    int result = number("gpus", c->value[AXIS_GPUS], 16, &machine.gpus, err);
    if (!card)
        machine.gpus = 0;
    if (result == 0)
        result = number("ssds", c->value[AXIS_SSDS], 16, &machine.ssds, err);
    if (result == 0)
        result = size("ssd-read", c->value[AXIS_SSD_READ], &rate, err);
    *profile = survey->base;
    if (result == 0)
        result = machine_compose(profile, &machine, err);
    if (result == 0 && rate)
        set_read_rate(&profile->ssd, (double)rate / GIB * 1e9); /* drives count in powers of ten */
    return result;
}

static int make_request(const struct survey *survey, const struct combination *c,
                        const struct profile *profile, struct forecast_request *request,
                        struct err *err)
{
    uint64_t batch = 4, accum = 1, ram = 0, vram = 0;
    int result = number("batch", c->value[AXIS_BATCH], 65536, &batch, err);
    if (result == 0)
        result = number("accum", c->value[AXIS_ACCUM], 4096, &accum, err);
    if (result == 0)
        result = size("ram-budget", c->value[AXIS_RAM_BUDGET], &ram, err);
    if (result == 0)
        result = size("vram-budget", c->value[AXIS_VRAM_BUDGET], &vram, err);
    if (result == 0 && batch * survey->seq > KERNELS_ROWS_MAX)
        result = err_set(err, ERR_USAGE, "--batch %" PRIu64 " of --seq %" PRIu64 " is too large",
                         batch, survey->seq);
    const char *ssd = c->value[AXIS_SSD];
    *request = (struct forecast_request){
        .model = &survey->shape,
        .profile = profile,
        .precision = survey->wanted,
        .seq = (uint32_t)survey->seq,
        .batch = (uint32_t)batch,
        .accum = (uint32_t)accum,
        .ram_budget = ram,
        .vram_budget = vram,
        .nvme = !ssd || strcmp(ssd, "none") != 0,
        .clip = true,
        .resident_planes = PLACE_RESIDENT_AUTO,
        .checkpoint_every = 100,
    };
    return result;
}

/* ---- Rows -------------------------------------------------------------------------------------
 */

/* A machine that cannot be put together: what was asked, in words. */
static void words_to_json(struct json_value *row, const struct combination *c)
{
    static const enum axis words[] = {AXIS_GPU, AXIS_CPU, AXIS_SSD};
    struct err ignored;
    uint64_t bytes = 0;
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (c->value[words[i]])
            json_set_string(row, axes[words[i]].option, c->value[words[i]]);
    if (c->value[AXIS_RAM] && args_parse_size(c->value[AXIS_RAM], &bytes, &ignored) == 0)
        json_set_int(row, "machine_ram_bytes", (int64_t)bytes);
}

static void forecast_row(struct survey *survey, uint32_t index)
{
    struct combination c;
    struct profile profile;
    struct forecast_request request;
    struct forecast forecast = {0};
    struct err err = {0};
    struct json_value *row = survey->rows[index] = json_new_object();
    find_combination(survey, index, &c);
    int result = make_machine(survey, &c, &profile, &err);
    if (result == 0)
        result = make_request(survey, &c, &profile, &request, &err);
    if (result == 0)
        result = forecast_make(&forecast, &request, &err);
    if (result == 0)
        forecast_to_json(row, &forecast);
    else if (forecast.place.spec.profile)
        forecast_asked_to_json(row, &forecast.place.spec);
    else
        words_to_json(row, &c);
    if (result == 0) { /* as asked, not one device's share */
        json_set_int(row, "batch", request.batch);
        json_set_int(row, "accum", request.accum);
    }
    if (result)
        json_set_string(row, "refused", err.message);
    forecast_deinit(&forecast);
}

/* Words that mean nothing are the whole command's fault, not a row's: each is tried once, alone. */
static int check_values(const struct survey *survey, struct err *err)
{
    struct profile profile;
    struct forecast_request request;
    for (uint32_t a = 0; a < AXIS_COUNT; a++)
        for (uint32_t i = 0; i < survey->values[a].count; i++) {
            struct combination c = {{NULL}};
            c.value[a] = survey->values[a].value[i];
            if (a == AXIS_GPUS && survey->list[AXIS_GPU])
                c.value[AXIS_GPU] = "rtx3060"; /* more than one need a card */
            int result = make_machine(survey, &c, &profile, err);
            if (result == 0)
                result = make_request(survey, &c, &profile, &request, err);
            if (result == ERR_USAGE)
                return result;
        }
    return 0;
}

struct part {
    struct survey *survey;
    uint32_t first;
};

static void forecast_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct part *part = context;
    forecast_row(part->survey, part->first + task);
}

static int forecast_rows(struct survey *survey, struct err *err)
{
    struct log_progress progress;
    struct pool *pool = NULL;
    int result = pool_open(&pool, "sweep", topo_open()->core_count, false, err);
    if (result)
        return result;
    uint32_t at_once = 2 * pool_thread_count(pool);
    log_progress_start(&progress, "forecasting", "rows", survey->row_count);
    for (uint32_t done = 0; done < survey->row_count;) {
        uint32_t count = MIN(at_once, survey->row_count - done);
        struct part part = {survey, done};
        pool_run(pool, forecast_task, &part, count);
        done += count;
        log_progress_update(&progress, done, NULL);
    }
    log_progress_end(&progress);
    pool_close(pool);
    return 0;
}

/* ---- Rows that are run ------------------------------------------------------------------------
 */

static int measure_row(struct survey *survey, uint32_t index, struct err *err)
{
    struct json_value *row = survey->rows[index];
    struct combination c;
    struct measured measured;
    if (json_get(row, "refused"))
        return 0;
    find_combination(survey, index, &c);
    struct measure_run run = {
        .model = survey->model,
        .data = survey->data,
        .nvme = survey->nvme,
        .out = survey->out,
        .machine = survey->machine,
        .precision = survey->precision,
        .optimizer_state = survey->optimizer_state,
        .ram_budget = c.value[AXIS_RAM_BUDGET],
        .vram_budget = c.value[AXIS_VRAM_BUDGET],
        .batch = c.value[AXIS_BATCH],
        .accum = c.value[AXIS_ACCUM],
        .seq = survey->seq,
        .steps = survey->steps,
    };
    int result = measure_training(&run, &measured, err);
    if (result == 1) {
        json_set_string(row, "refused", err->message);
        return 0;
    }
    if (result)
        return result;
    json_set_number(row, "measured_s", measured.step_s);
    json_set_int(row, "ram_peak_bytes", (int64_t)measured.ram_peak_bytes);
    json_set_number(row, "tokens_per_s", json_get_number(row, "tokens", 0) / measured.step_s);
    return 0;
}

static int measure_rows(struct survey *survey, struct err *err)
{
    struct log_progress progress;
    int result = 0;
    log_progress_start(&progress, "training", "rows", survey->row_count);
    for (uint32_t i = 0; i < survey->row_count && result == 0; i++) {
        result = measure_row(survey, i, err);
        log_progress_update(&progress, i + 1, NULL);
    }
    log_progress_end(&progress);
    return result;
}

/* ---- What comes of it -------------------------------------------------------------------------
 */

/* Takes the rows over. */
static struct json_value *make_results(struct survey *survey)
{
    char text[MACHINE_TEXT_MAX];
    struct json_value *results = json_new_object(), *rows = json_new_array();
    json_set_string(results, "model", survey->config.name);
    json_set_int(results, "parameters", (int64_t)survey->shape.tensors.parameter_count);
    json_set_string(results, "precision", survey->precision);
    json_set_string(results, "optimizer_state", survey->optimizer_state);
    json_set_int(results, "seq", (int64_t)survey->seq);
    /* Where every part is said, the machine that was begun with says nothing. */
    bool all = survey->list[AXIS_GPU] && survey->list[AXIS_CPU] && survey->list[AXIS_RAM] &&
               survey->list[AXIS_SSD];
    if (!all)
        json_set_string(results, "base", machine_describe(&survey->base, text, sizeof(text)));
    json_set_bool(results, "measured", survey->measure);
    for (uint32_t i = 0; i < survey->row_count; i++) {
        json_append(rows, survey->rows[i]);
        survey->rows[i] = NULL;
    }
    json_set(results, "rows", rows);
    return results;
}

static int write_results(const struct survey *survey, const struct json_value *results,
                         struct err *err)
{
    char path[FILE_PATH_MAX];
    int result = file_join(path, survey->out, "results.json", err);
    if (result == 0)
        result = json_save(results, path, err);
    if (result == 0)
        result = sweep_page_write(results, survey->out, err);
    return result;
}

static void say(void *context, enum sweep_tone tone, const char *strong, const char *text)
{
    (void)context;
    printf("%s%s%s%s\n",
           tone == SWEEP_POINT   ? "  "
           : tone == SWEEP_ALARM ? "warning: "
                                 : "",
           strong ? strong : "", strong ? " " : "", text);
}

static int print_verdict(const struct survey *survey, const struct json_value *results,
                         struct err *err)
{
    struct sweep sweep;
    int result = sweep_read(&sweep, results, err);
    if (result == 0)
        sweep_speak(&sweep, &(struct sweep_speaker){say, NULL});
    sweep_deinit(&sweep);
    if (result)
        return result;
    printf("%u rows are in %s: index.html (a page to read), results.csv and results.json\n",
           survey->row_count, survey->out);
    return 0;
}

/* ---- The command ------------------------------------------------------------------------------
 */

static int cut_lists(struct survey *survey, struct err *err)
{
    uint64_t rows = 1;
    for (uint32_t a = 0; a < AXIS_COUNT; a++) {
        struct values *values = &survey->values[a];
        values->count = 1;
        if (survey->measure && survey->list[a] && !axes[a].here)
            return err_set(err, ERR_USAGE,
                           "--measure runs on this machine, so --%s cannot be varied: leave one of "
                           "them away",
                           axes[a].option);
        if (!survey->list[a])
            continue;
        values->text = mem_strdup(survey->list[a]);
        values->count = 0;
        for (char *at = values->text, *next; at; at = next) {
            next = strchr(at, ',');
            if (next)
                *next++ = 0;
            if (!*at || values->count == VALUES_MAX)
                return err_set(err, ERR_USAGE,
                               "--%s is '%s'; it must be a list of 1 to %d values, with commas "
                               "between",
                               axes[a].option, survey->list[a], VALUES_MAX);
            values->value[values->count++] = at;
        }
        rows *= values->count;
    }
    if (rows > ROWS_MAX)
        return err_set(err, ERR_USAGE, "these lists make %" PRIu64 " combinations; at most %d work",
                       rows, ROWS_MAX);
    survey->row_count = (uint32_t)rows;
    return 0;
}

static int choose_model(struct survey *survey, struct err *err)
{
    static const char *const precisions[] = {"fp32", "bf16"};
    if (!survey->model)
        return err_set(err, ERR_USAGE, "--model is missing: a name, a config.json or a folder");
    if (!survey->out)
        return err_set(err, ERR_USAGE, "--out is missing: --out REPORT_DIR, a folder for the page");
    if (!survey->precision)
        survey->precision = survey->measure && !kernels_cpu_has_bf16() ? "fp32" : "bf16";
    if (strcmp(survey->precision, precisions[0]) && strcmp(survey->precision, precisions[1]))
        return err_set(err, ERR_USAGE, "--precision is '%s'; it may be: fp32, bf16",
                       survey->precision);
    survey->wanted = strcmp(survey->precision, "bf16") == 0 ? PRECISION_BF16 : PRECISION_FP32;
    survey->moments = moments_find(survey->optimizer_state);
    if (survey->moments == MOMENTS_KIND_COUNT)
        return err_set(err, ERR_USAGE, "--optimizer-state is '%s'; it may be: fp32, bf16, 8bit",
                       survey->optimizer_state);
    int result = config_load(&survey->config, survey->model, err);
    if (result)
        return result;
    if (!survey->config.vocab)
        survey->config.vocab = 50257;
    if (!survey->seq)
        survey->seq = MIN(survey->config.positions, 1024);
    if (survey->seq > survey->config.positions)
        return err_set(err, ERR_USAGE, "--seq %" PRIu64 " is longer than the %u positions of %s",
                       survey->seq, survey->config.positions, survey->config.name);
    if (survey->measure && (!survey->data || !survey->nvme))
        return err_set(err, ERR_USAGE, "--measure trains: it needs --data DIR and --nvme DIR");
    if (survey->nvme && strchr(survey->nvme, ',') && !file_exists(survey->nvme))
        return err_set(err, ERR_USAGE, "--nvme of a sweep is one folder, not a list: %s",
                       survey->nvme);
    if (survey->measure &&
        (survey->steps <= MEASURE_WARM_UP_STEPS || survey->steps > MEASURE_STEPS_MAX))
        return err_set(err, ERR_USAGE,
                       "--steps is %" PRIu64 "; it must be %d to %d, as the first steps are not "
                       "typical",
                       survey->steps, MEASURE_WARM_UP_STEPS + 1, MEASURE_STEPS_MAX);
    return config_check(&survey->config, err);
}

static int choose_base(struct survey *survey, struct err *err)
{
    bool measured;
    int result = local_profile(&survey->base, &measured, err);
    struct machine_request machine = {.machine = survey->machine};
    return result ? result : machine_compose(&survey->base, &machine, err);
}

static int survey_run(struct survey *survey, struct err *err)
{
    int result = cut_lists(survey, err);
    if (result == 0)
        result = choose_model(survey, err);
    if (result == 0)
        result = choose_base(survey, err);
    if (result)
        return result;
    forecast_model_init(&survey->shape, &survey->config, survey->moments);
    result = check_values(survey, err);
    if (result == 0)
        result = file_make_dirs(survey->out, err);
    if (result)
        return result;
    survey->rows = mem_alloc(survey->row_count, sizeof(*survey->rows));
    result = forecast_rows(survey, err);
    if (result == 0 && survey->measure)
        result = measure_rows(survey, err);
    struct json_value *results = result == 0 ? make_results(survey) : NULL;
    if (result == 0)
        result = write_results(survey, results, err);
    if (result == 0)
        result = print_verdict(survey, results, err);
    json_free(results);
    return result;
}

static void survey_deinit(struct survey *survey)
{
    for (uint32_t a = 0; a < AXIS_COUNT; a++)
        mem_free(survey->values[a].text);
    for (uint32_t i = 0; survey->rows && i < survey->row_count; i++)
        json_free(survey->rows[i]);
    mem_free(survey->rows);
    forecast_model_deinit(&survey->shape);
}

int sweep_main(int argc, char **argv)
{
    struct survey survey = {.steps = 8, .optimizer_state = "fp32"};
    struct err err = {0};
    struct args_option table[AXIS_COUNT + 16];
    size_t count = 0;
    const struct args_option more[] = {
        {"model", ARGS_STRING, &survey.model, "NAME|FILE.json|DIR",
         "gpt2-1558m, llama-8b, qwen-32b ..., or a Hugging Face config.json", NULL},
        {"out", ARGS_STRING, &survey.out, "REPORT_DIR", "folder for the page and the results",
         NULL},
        {"machine", ARGS_STRING, &survey.machine, "NAME|FILE", OPTIONS_HELP_MACHINE, NULL},
        {"seq", ARGS_U64, &survey.seq, "T", "tokens in a sequence (default: 1024 at most)", NULL},
        {"precision", ARGS_STRING, &survey.precision, "bf16|fp32", "default: bf16", NULL},
        {"optimizer-state", ARGS_STRING, &survey.optimizer_state, "fp32|bf16|8bit",
         "how AdamW's moments are stored (default: fp32)", NULL},
        {"measure", ARGS_FLAG, &survey.measure, NULL, "train each row here, a few steps", NULL},
        {"data", ARGS_STRING, &survey.data, "DIR", "with --measure: prepared data", NULL},
        {"nvme", ARGS_STRING, &survey.nvme, "DIR", "with --measure: folder of the NVMe tier", NULL},
        {"steps", ARGS_U64, &survey.steps, "N", "with --measure: steps of a row (default: 8)",
         NULL},
    };
    for (size_t i = 0; i < ARRAY_COUNT(more); i++)
        table[count++] = more[i];
    for (uint32_t a = 0; a < AXIS_COUNT; a++)
        table[count++] = (struct args_option){axes[a].option, ARGS_STRING,  &survey.list[a],
                                              axes[a].value,  axes[a].help, NULL};
    struct args_command args = {
        .name = "sweep",
        .summary = "Says what to buy: step times over lists of RAM, drives, GPUs and batches.",
        .usage = "--model NAME --out REPORT_DIR [lists]",
        .example = "spillway sweep --model llama-8b --gpu rtx3060 --cpu 7950x3d --ram "
                   "64G,96G,128G,192G --ssd 990pro-2tb,t700-2tb --batch 8 --out report",
        .options = table,
        .option_count = count,
    };
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0)
        result = survey_run(&survey, &err);
    survey_deinit(&survey);
    return commands_status(result, &err);
}
