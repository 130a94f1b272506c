#include "tools/report_data.h"

#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/file.h"
#include "offload/plan.h"
#include "offload/record.h"
#include "tools/page.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STEADY_MAX     200
#define PLAN_BYTES_MAX (16 * KIB) /* the head of plan.txt; the list of ops is behind it */

_Static_assert((int)REPORT_LANES == (int)LANE_COUNT, "a lane of the log is a lane of the plan");

static const char *const field_key[REPORT_BUSY] = {
    [REPORT_STEP] = "step",
    [REPORT_LOSS] = "loss",
    [REPORT_VAL_LOSS] = "val_loss",
    [REPORT_GRAD_NORM] = "grad_norm",
    [REPORT_CLIP] = "clip",
    [REPORT_LR] = "lr",
    [REPORT_TOKENS] = "tokens",
    [REPORT_STEP_S] = "step_s",
    [REPORT_PREDICTED_S] = "predicted_s",
    [REPORT_BOUND_S] = "bound_s",
    [REPORT_TOKENS_PER_S] = "tokens_per_s",
    [REPORT_RAM] = "ram_bytes",
    [REPORT_RAM_PEAK] = "ram_peak_bytes",
    [REPORT_VRAM] = "vram_bytes",
    [REPORT_VRAM_PEAK] = "vram_peak_bytes",
    [REPORT_H2D] = "h2d_bytes",
    [REPORT_H2D_LEAST] = "h2d_least_bytes",
    [REPORT_D2H] = "d2h_bytes",
    [REPORT_D2H_LEAST] = "d2h_least_bytes",
    [REPORT_SSD_READ] = "ssd_read_bytes",
    [REPORT_SSD_READ_LEAST] = "ssd_read_least_bytes",
    [REPORT_SSD_WRITE] = "ssd_write_bytes",
    [REPORT_SSD_WRITE_LEAST] = "ssd_write_least_bytes",
};

/* ---- metrics.jsonl --------------------------------------------------------------------------- */

static void add_step(struct report_data *data, const struct json_value *line)
{
    /* Room doubles at each power of two. */
    if ((data->step_count & (data->step_count - 1)) == 0)
        data->step = mem_realloc(data->step, MAX(2 * data->step_count, 1), sizeof(*data->step));
    struct report_step *step = &data->step[data->step_count++];
    for (size_t f = 0; f < REPORT_BUSY; f++)
        step->value[f] = json_get_number(line, field_key[f], NAN);
    const struct json_value *busy = json_get(line, "busy_s");
    const char *bound = json_get_string(line, "bound_lane", "");
    step->bound_lane = -1;
    for (int l = 0; l < REPORT_LANES; l++) {
        step->value[REPORT_BUSY + l] = json_get_number(busy, plan_lane_name[l], NAN);
        if (strcmp(bound, plan_lane_name[l]) == 0)
            step->bound_lane = l;
    }
}

static void add_commit(struct report_data *data, const struct json_value *line)
{
    if ((data->commit_count & (data->commit_count - 1)) == 0)
        data->commit =
            mem_realloc(data->commit, MAX(2 * data->commit_count, 1), sizeof(*data->commit));
    struct report_commit *commit = &data->commit[data->commit_count++];
    commit->step = json_get_number(line, "commit", NAN);
    commit->write_bytes = json_get_number(line, "commit_write_bytes", NAN);
    commit->seconds = json_get_number(line, "commit_s", NAN);
    commit->rest_write_bytes = json_get_number(line, "ssd_write_bytes", 0);
    snprintf(commit->weights_hash, sizeof(commit->weights_hash), "%s",
             json_get_string(line, "weights_hash", ""));
}

/* false: it is no line of metrics. */
static bool add_line(struct report_data *data, const char *text, size_t bytes)
{
    struct err ignored;
    struct json_value *line = json_parse(text, bytes, "metrics.jsonl", &ignored);
    bool is_step = !isnan(json_get_number(line, "step", NAN));
    bool is_commit = !isnan(json_get_number(line, "commit", NAN));
    if (is_step)
        add_step(data, line);
    else if (is_commit)
        add_commit(data, line);
    if (line)
        json_free(line);
    return is_step || is_commit;
}

static int load_metrics(struct report_data *data, const char *run_dir, struct err *err)
{
    char path[FILE_PATH_MAX], *line = NULL;
    size_t size = 0;
    ssize_t length;
    int result = file_join(path, run_dir, "metrics.jsonl", err);
    if (result)
        return result;
    FILE *file = fopen(path, "re");
    if (!file)
        return errno == ENOENT || errno == ENOTDIR
                   ? err_set(err, ERR_INPUT,
                             "%s is no run: there is no metrics.jsonl in it; give a folder that "
                             "'spillway train' made with --out",
                             run_dir)
                   : err_set_errno(err, errno, "cannot read %s", path);
    while ((length = getline(&line, &size, file)) > 0) {
        bool whole = line[length - 1] == '\n';
        bool read = add_line(data, line, (size_t)length);
        data->cut = !whole && !read;
        data->unread_count += whole && !read;
    }
    if (ferror(file))
        result = err_set_errno(err, errno, "cannot read %s", path);
    free(line); /* getline's */
    fclose(file);
    if (result == 0 && !data->step_count)
        result = err_set(err, ERR_INPUT,
                         "%s tells of no step yet: wait until the first step is done, or give a "
                         "folder that 'spillway train' made",
                         path);
    return result;
}

/* ---- config.json and plan.txt ---------------------------------------------------------------- */

static double positive(const struct json_value *object, const char *key)
{
    double value = json_get_number(object, key, NAN);
    return value > 0 ? value : NAN;
}

/* What is missing or damaged is told on the page: the log is worth a page without it. */
static void load_config(struct report_data *data, const char *run_dir)
{
    struct json_value *root = NULL;
    struct err err = {0};
    int result = record_load(&root, run_dir, &err);
    if (result)
        snprintf(data->config_note, sizeof(data->config_note), "%s",
                 result == 1 ? "config.json is missing, so the model and the budgets are not known"
                             : err.message);
    const struct json_value *options = json_get(root, "options"), *model = json_get(root, "model");
    snprintf(data->model, sizeof(data->model), "%s",
             json_get_string(model, "_name_or_path", json_get_string(options, "model", "a model")));
    snprintf(data->precision, sizeof(data->precision), "%s",
             json_get_string(root, "precision", ""));
    data->seq = positive(options, "seq");
    data->batch = positive(options, "batch");
    data->accum = positive(options, "accum");
    data->steps = positive(options, "steps");
    data->ram_budget = positive(options, "ram-budget");
    data->vram_budget = positive(options, "vram-budget");
    data->nvme_budget = positive(options, "nvme-budget");
    if (root)
        json_free(root);
}

/* "33.2 MiB" -> bytes; NAN when it is no such thing. */
static double parse_bytes(const char *text)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    char unit[8] = "";
    double value;
    if (sscanf(text, "%lf %7s", &value, unit) != 2)
        return NAN;
    for (size_t u = 0; u < ARRAY_COUNT(units); u++)
        if (strcmp(unit, units[u]) == 0)
            return ldexp(value, 10 * (int)u);
    return NAN;
}

/* "  NVMe     33.2 MiB of 78.2 GiB" */
static void find_nvme(struct report_data *data)
{
    const char *line = data->placement ? strstr(data->placement, "\n  NVMe ") : NULL;
    if (!line)
        return;
    line += strlen("\n  NVMe ");
    const char *of = strstr(line, " of ");
    data->nvme_bytes = parse_bytes(line);
    if (of && isnan(data->nvme_budget) && of < line + strcspn(line, "\n"))
        data->nvme_budget = parse_bytes(of + strlen(" of "));
}

static void load_plan(struct report_data *data, const char *run_dir)
{
    char path[FILE_PATH_MAX];
    struct err ignored;
    data->nvme_bytes = NAN;
    FILE *file = file_join(path, run_dir, "plan.txt", &ignored) == 0 ? fopen(path, "re") : NULL;
    if (!file)
        return;
    data->placement = mem_alloc(PLAN_BYTES_MAX + 1, 1);
    size_t got = fread(data->placement, 1, PLAN_BYTES_MAX, file);
    fclose(file);
    data->placement[got] = '\0';
    char *ops = strstr(data->placement, "\nA step");
    if (ops)
        ops[1] = '\0';
    find_nvme(data);
}

int report_load(struct report_data *data, const char *run_dir, struct err *err)
{
    *data = (struct report_data){.parameters = NAN};
    int result = load_metrics(data, run_dir, err);
    if (result)
        return result;
    load_config(data, run_dir);
    load_plan(data, run_dir);
    return 0;
}

void report_unload(struct report_data *data)
{
    mem_free(data->placement);
    mem_free(data->step);
    mem_free(data->commit);
    *data = (struct report_data){0};
}

/* ---- Statistics ------------------------------------------------------------------------------ */

size_t report_steady(const struct report_data *data)
{
    size_t n = data->step_count;
    size_t first = n > 4 ? 2 : n > 1 ? 1 : 0;
    return n - first > STEADY_MAX ? n - STEADY_MAX : first;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double report_quantile(const struct report_data *data, enum report_field field,
                       enum report_field over, size_t first, size_t end, double part)
{
    ASSERT(first <= end && end <= data->step_count && part >= 0 && part <= 1);
    double *values = mem_alloc(end - first + 1, sizeof(*values)), quantile = NAN;
    size_t count = 0;
    for (size_t i = first; i < end; i++) {
        const double *value = data->step[i].value;
        double v = over == REPORT_FIELD_COUNT ? value[field] : value[field] / value[over];
        if (isfinite(v))
            values[count++] = v;
    }
    if (count) {
        qsort(values, count, sizeof(*values), compare_doubles);
        double at = part * (double)(count - 1);
        size_t low = (size_t)at, high = MIN(low + 1, count - 1);
        quantile = values[low] + (values[high] - values[low]) * (at - (double)low);
    }
    mem_free(values);
    return quantile;
}

double report_sum(const struct report_data *data, enum report_field field)
{
    double sum = 0;
    for (size_t i = 0; i < data->step_count; i++)
        if (isfinite(data->step[i].value[field]))
            sum += data->step[i].value[field];
    return sum;
}

int report_bound_lane(const struct report_data *data)
{
    size_t counts[REPORT_LANES] = {0}, most = 0;
    for (size_t i = report_steady(data); i < data->step_count; i++)
        if (data->step[i].bound_lane >= 0)
            counts[data->step[i].bound_lane]++;
    for (size_t l = 1; l < REPORT_LANES; l++)
        most = counts[l] > counts[most] ? l : most;
    return counts[most] ? (int)most : -1;
}

/* ---- CSV ------------------------------------------------------------------------------------- */

void report_write_steps(const struct report_data *data, FILE *out)
{
    for (size_t f = 0; f < REPORT_BUSY; f++)
        fprintf(out, "%s,", field_key[f]);
    for (size_t l = 0; l < REPORT_LANES; l++)
        fprintf(out, "busy_s_%s,", plan_lane_name[l]);
    fputs("bound_lane\n", out);
    for (size_t i = 0; i < data->step_count; i++) {
        const struct report_step *step = &data->step[i];
        for (size_t f = 0; f < REPORT_FIELD_COUNT; f++)
            fprintf(out, isnan(step->value[f]) ? "," : "%.15g,", step->value[f]);
        fprintf(out, "%s\n", step->bound_lane < 0 ? "" : plan_lane_name[step->bound_lane]);
    }
}

void report_write_commits(const struct report_data *data, FILE *out)
{
    fputs("commit,weights_hash,commit_write_bytes,commit_s,ssd_write_bytes\n", out);
    for (size_t i = 0; i < data->commit_count; i++) {
        const struct report_commit *c = &data->commit[i];
        fprintf(out, "%.15g,", c->step);
        page_csv_field(out, c->weights_hash);
        fprintf(out, isnan(c->write_bytes) ? "," : ",%.15g", c->write_bytes);
        fprintf(out, isnan(c->seconds) ? "," : ",%.9g", c->seconds);
        fprintf(out, ",%.15g\n", c->rest_write_bytes);
    }
}
