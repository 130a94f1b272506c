/*
 * spillway report: one page of a run, for the person who waits for it: where it is, how fast, what
 * holds it up, and what it costs.
 */
#include "core/args.h"
#include "core/base.h"
#include "core/log.h"
#include "core/mem.h"
#include "io/file.h"
#include "offload/plan.h"
#include "tools/commands.h"
#include "tools/page.h"
#include "tools/plot.h"
#include "tools/report_data.h"
#include "tools/report_timeline.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define POINTS_MAX  240 /* steps that are drawn one by one; more become BUCKETS medians */
#define BUCKETS     120
#define DOTS_MAX    30 /* more run into each other */
#define COMMITS_MAX 10 /* rows of the table; commits.csv has all */

static const char *const lane_verb[REPORT_LANES] = {"computing binds",
                                                    "copying to the device binds",
                                                    "copying from the device binds",
                                                    "reading from the drive binds",
                                                    "writing to the drive binds",
                                                    "the optimizer on the CPU binds"};

static const char *const lane_title[REPORT_LANES] = {
    "compute",        "copies to the device", "copies from the device",
    "drive: reading", "drive: writing",       "CPU: the optimizer"};

static double steady(const struct report_data *data, enum report_field field)
{
    return report_quantile(data, field, REPORT_FIELD_COUNT, report_steady(data), data->step_count,
                           0.5);
}

static double steady_ratio(const struct report_data *data, enum report_field field,
                           enum report_field over)
{
    return report_quantile(data, field, over, report_steady(data), data->step_count, 0.5);
}

/* The first and last step that has this field; NAN where none does. */
static void ends(const struct report_data *data, enum report_field field, double *first,
                 double *last)
{
    *first = *last = NAN;
    for (size_t i = 0; i < data->step_count; i++) {
        double value = data->step[i].value[field];
        if (isnan(value))
            continue;
        *first = isnan(*first) ? value : *first;
        *last = value;
    }
}

static double written_bytes(const struct report_data *data)
{
    double bytes = report_sum(data, REPORT_SSD_WRITE);
    for (size_t i = 0; i < data->commit_count; i++)
        bytes += data->commit[i].rest_write_bytes +
                 (isnan(data->commit[i].write_bytes) ? 0 : data->commit[i].write_bytes);
    return bytes;
}

/* ---- The verdict ----------------------------------------------------------------------------- */

static void put_loss_words(const struct report_data *data, FILE *out)
{
    double first, last;
    ends(data, REPORT_LOSS, &first, &last);
    if (isnan(last))
        return;
    if (data->step_count == 1)
        fprintf(out, "; loss %.4g", last);
    else
        fprintf(out, "; loss %.4g → %.4g", first, last);
    ends(data, REPORT_VAL_LOSS, &first, &last);
    if (!isnan(last))
        fprintf(out, " (validation %.4g)", last);
}

static void put_time_words(const struct report_data *data, FILE *out)
{
    char text[PAGE_NUMBER_MAX];
    double step_s = steady(data, REPORT_STEP_S);
    double predicted = steady_ratio(data, REPORT_STEP_S, REPORT_PREDICTED_S);
    double bound = steady_ratio(data, REPORT_STEP_S, REPORT_BOUND_S);
    if (isnan(step_s))
        return;
    fprintf(out, "; a step takes %s", page_seconds(text, step_s));
    if (!isnan(predicted))
        fprintf(out, ", %s times what was predicted", page_number(text, predicted));
    if (!isnan(bound))
        fprintf(out, "%s %s times its lower bound", isnan(predicted) ? "," : " and",
                page_number(text, bound));
}

static void put_verdict(struct page *page, const struct report_data *data)
{
    char *text = NULL, a[PAGE_NUMBER_MAX], b[PAGE_NUMBER_MAX];
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    ASSERT(out);
    double step = data->step[data->step_count - 1].value[REPORT_STEP];
    double speed = steady(data, REPORT_TOKENS_PER_S), written = written_bytes(data);
    int lane = report_bound_lane(data);
    fprintf(out, "%s: step %s", data->model, page_count(a, (uint64_t)fmax(step, 0)));
    if (!isnan(data->steps))
        fprintf(out, " of %s", page_count(b, (uint64_t)data->steps));
    put_loss_words(data, out);
    if (!isnan(speed))
        fprintf(out, "; %s tokens/s", page_number(a, speed));
    if (lane >= 0)
        fprintf(out, "; %s", lane_verb[lane]);
    put_time_words(data, out);
    if (written > 0)
        fprintf(out, "; %s written to the drive, commits included", page_bytes(a, written));
    fputs(".", out);
    fclose(out);
    page_paragraph(page, PAGE_VERDICT, text);
    free(text);
}

static void put_notes(struct page *page, const struct report_data *data)
{
    char text[1400];
    double left = data->steps - data->step[data->step_count - 1].value[REPORT_STEP];
    double step_s = steady(data, REPORT_STEP_S);
    char a[PAGE_NUMBER_MAX];
    if (left > 0 && !isnan(step_s)) {
        snprintf(text, sizeof(text), "%.0f step%s to go: %s at this pace.", left,
                 left == 1 ? " is" : "s are", page_seconds(a, left * step_s));
        page_paragraph(page, PAGE_PLAIN, text);
    }
    if (data->cut)
        page_paragraph(page, PAGE_NOTE,
                       "The last line of metrics.jsonl is not whole and was left out: the run is "
                       "writing it, or was stopped in the middle.");
    if (data->unread_count) {
        snprintf(text, sizeof(text),
                 "%zu line%s of metrics.jsonl could not be read and %s left out.",
                 data->unread_count, data->unread_count == 1 ? "" : "s",
                 data->unread_count == 1 ? "was" : "were");
        page_paragraph(page, PAGE_WARNING, text);
    }
    if (*data->config_note)
        page_paragraph(page, PAGE_WARNING, data->config_note);
}

static void put_cards(struct page *page, const struct report_data *data)
{
    char value[PAGE_NUMBER_MAX], note[128], a[PAGE_NUMBER_MAX], b[PAGE_NUMBER_MAX];
    double first, last, step_s = steady(data, REPORT_STEP_S);
    size_t from = report_steady(data), n = data->step_count;
    page_cards_begin(page);
    ends(data, REPORT_LOSS, &first, &last);
    snprintf(note, sizeof(note), "from %.4g", first);
    snprintf(value, sizeof(value), "%.4g", last);
    page_card(page, "loss", isnan(last) ? "–" : value, isnan(first) ? NULL : note);
    page_card(page, "tokens a second", page_number(value, steady(data, REPORT_TOKENS_PER_S)),
              n > 1 ? "median of the steady steps" : "of the only step");
    snprintf(
        note, sizeof(note), "half of them %s to %s",
        page_seconds(a, report_quantile(data, REPORT_STEP_S, REPORT_FIELD_COUNT, from, n, 0.25)),
        page_seconds(b, report_quantile(data, REPORT_STEP_S, REPORT_FIELD_COUNT, from, n, 0.75)));
    page_card(page, "a step", page_seconds(value, step_s), n > 4 ? note : NULL);
    page_card(page, "predicted", page_seconds(value, steady(data, REPORT_PREDICTED_S)), NULL);
    int lane = report_bound_lane(data);
    page_card(page, "lower bound", page_seconds(value, steady(data, REPORT_BOUND_S)),
              lane < 0 ? NULL : lane_verb[lane]);
    double tokens = report_sum(data, REPORT_TOKENS);
    if (tokens >= 1e6)
        snprintf(value, sizeof(value), "%.3g million", tokens / 1e6);
    page_card(page, "tokens seen", tokens >= 1e6 ? value : page_number(value, tokens), NULL);
    page_card(page, "written to the drive", page_bytes(value, written_bytes(data)),
              "commits included");
    page_cards_end(page);
}

/* ---- Curves ---------------------------------------------------------------------------------- */

struct curve {
    double x[POINTS_MAX], y[POINTS_MAX], low[POINTS_MAX], high[POINTS_MAX];
    size_t count;
    bool has_band;
};

/* Each step, or the medians and quartiles of buckets of steps. */
static void fill_curve(struct curve *curve, const struct report_data *data, enum report_field field)
{
    size_t n = data->step_count;
    size_t buckets = n > POINTS_MAX ? BUCKETS : n;
    curve->count = 0;
    curve->has_band = n > POINTS_MAX;
    for (size_t b = 0; b < buckets; b++) {
        size_t first = n * b / buckets, end = n * (b + 1) / buckets, c = curve->count;
        double median = report_quantile(data, field, REPORT_FIELD_COUNT, first, end, 0.5);
        if (isnan(median))
            continue;
        curve->x[c] = report_quantile(data, REPORT_STEP, REPORT_FIELD_COUNT, first, end, 0.5);
        curve->y[c] = median;
        curve->low[c] = report_quantile(data, field, REPORT_FIELD_COUNT, first, end, 0.25);
        curve->high[c] = report_quantile(data, field, REPORT_FIELD_COUNT, first, end, 0.75);
        curve->count++;
    }
}

/* Some steps take ten times as long (a first one, a commit on a busy drive), and would press all
 * others to the floor: then the scale ends above most, and the caption counts the rest. 0: all are
 * shown. */
static double find_ceiling(const struct curve *curve, size_t *beyond)
{
    double sorted[POINTS_MAX];
    size_t n = curve->count;
    *beyond = 0;
    if (n < 10)
        return 0;
    memcpy(sorted, curve->y, n * sizeof(*sorted));
    for (size_t i = 1; i < n; i++)
        for (size_t j = i; j > 0 && sorted[j - 1] > sorted[j]; j--) {
            double swap = sorted[j];
            sorted[j] = sorted[j - 1];
            sorted[j - 1] = swap;
        }
    double usual = sorted[n - 1 - n / 20];
    if (sorted[n - 1] < 2.5 * usual)
        return 0;
    for (size_t i = 0; i < n; i++)
        *beyond += curve->y[i] > 1.3 * usual;
    return 1.3 * usual;
}

struct chart {
    const char *title;
    enum report_field fields[3];
    const char *names[3];
    enum plot_style styles[3];
    size_t count;
    bool from_zero;
};

/* Nothing when no step has any of its fields. */
static int put_chart(struct page *page, const struct report_data *data, const struct chart *chart,
                     struct err *err)
{
    struct curve *curves = mem_alloc(chart->count, sizeof(*curves));
    struct plot_series series[6];
    size_t series_count = 0, points = 0, beyond = 0;
    char caption[200] = "", *svg = NULL;
    for (size_t i = 0; i < chart->count; i++) {
        struct curve *c = &curves[i];
        fill_curve(c, data, chart->fields[i]);
        points += c->count;
        bool crowded = chart->styles[i] == PLOT_POINTS && c->count > DOTS_MAX;
        enum plot_style style = crowded ? PLOT_LINE : chart->styles[i];
        if (c->has_band && chart->styles[i] == PLOT_LINE)
            series[series_count++] =
                (struct plot_series){PLOT_BAND, (unsigned)i, c->x, c->low, c->high, c->count};
        series[series_count++] =
            (struct plot_series){style, (unsigned)i, c->x, c->y, NULL, c->count};
    }
    struct plot plot = {.label = chart->title,
                        .x_label = "step",
                        .series = series,
                        .series_count = series_count,
                        .y_from_zero = chart->from_zero};
    if (chart->from_zero)
        plot.y_max = find_ceiling(&curves[0], &beyond);
    if (curves[0].has_band)
        snprintf(caption, sizeof(caption),
                 "Medians of %zu steps each; the band holds half of them. ",
                 data->step_count / BUCKETS);
    if (beyond)
        snprintf(caption + strlen(caption), sizeof(caption) - strlen(caption),
                 "%zu of %zu points lie above the scale.", beyond, curves[0].count);
    size_t named = chart->count;
    while (named > 1 && !curves[named - 1].count)
        named--;
    int result = points ? plot_draw(&plot, &svg, err) : 0;
    if (svg)
        page_figure(page, &(struct page_figure){chart->title, svg, *caption ? caption : NULL,
                                                named > 1 ? chart->names : NULL, named});
    mem_free(svg);
    mem_free(curves);
    return result;
}

static int put_charts(struct page *page, const struct report_data *data, struct err *err)
{
    static const struct chart charts[] = {
        {"Loss",
         {REPORT_LOSS, REPORT_VAL_LOSS},
         {"training", "validation"},
         {PLOT_LINE, PLOT_POINTS},
         2,
         false},
        {"Tokens a second", {REPORT_TOKENS_PER_S}, {"measured"}, {PLOT_LINE}, 1, true},
        {"Seconds a step",
         {REPORT_STEP_S, REPORT_PREDICTED_S, REPORT_BOUND_S},
         {"measured", "predicted", "lower bound"},
         {PLOT_LINE, PLOT_LINE, PLOT_DASHED},
         3,
         true},
        {"Gradient norm, before clipping", {REPORT_GRAD_NORM}, {"norm"}, {PLOT_LINE}, 1, true},
    };
    int result = 0;
    page_section(page, "Step by step");
    page_figures_begin(page);
    for (size_t i = 0; i < ARRAY_COUNT(charts) && result == 0; i++)
        result = put_chart(page, data, &charts[i], err);
    page_figures_end(page);
    return result;
}

/* ---- Memory and lanes ------------------------------------------------------------------------ */

static void put_tier(struct page *page, const char *name, double bytes, double budget)
{
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX], text[128];
    if (!(bytes > 0))
        return;
    bool known = budget > 0;
    snprintf(text, sizeof(text), "%s%s%s", log_bytes(a, (uint64_t)bytes), known ? " of " : "",
             known ? log_bytes(b, (uint64_t)budget) : "");
    page_bar(page, name, known ? bytes / budget : 0, -1, known && bytes > budget ? 4 : 0, text);
}

static double largest(const struct report_data *data, enum report_field field)
{
    return report_quantile(data, field, REPORT_FIELD_COUNT, 0, data->step_count, 1);
}

static void put_memory(struct page *page, const struct report_data *data)
{
    page_section(page, "Memory against the budgets");
    page_bars_begin(page);
    put_tier(page, "VRAM", largest(data, REPORT_VRAM_PEAK), data->vram_budget);
    put_tier(page, "RAM, whole process", largest(data, REPORT_RAM_PEAK), data->ram_budget);
    put_tier(page, "NVMe", data->nvme_bytes, data->nvme_budget);
    page_bars_end(page);
    page_paragraph(page, PAGE_NOTE, "The most that was held at any time; NVMe as planned.");
    if (data->placement) {
        page_details_begin(page, "What sits where (plan.txt)");
        page_html(page, "<pre tabindex=\"0\">");
        page_escape(page->out, data->placement);
        page_html(page, "</pre>");
        page_details_end(page);
    }
}

static void put_traffic(struct page *page, const struct report_data *data)
{
    double most = 0;
    bool any = false;
    for (size_t i = 0; i < 4; i++)
        most = fmax(most, steady(data, REPORT_H2D + 2 * i));
    page_section(page, "What a step moves, and the least that the budgets allow");
    page_bars_begin(page);
    for (size_t i = 0; i < 4; i++) {
        double bytes = steady(data, REPORT_H2D + 2 * i),
               least = steady(data, REPORT_H2D_LEAST + 2 * i);
        char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX], text[128];
        if (!(bytes > 0))
            continue;
        any = true;
        snprintf(text, sizeof(text), "%s%s%s", log_bytes(a, (uint64_t)bytes),
                 least >= 0 ? ", least " : "", least >= 0 ? log_bytes(b, (uint64_t)least) : "");
        page_bar(page, lane_title[1 + i], bytes / most, isnan(least) ? -1 : least / most, 0, text);
    }
    page_bars_end(page);
    page_paragraph(page, PAGE_NOTE,
                   any ? "The line across a bar is the least. Commits are counted apart."
                       : "Nothing: everything sits where it is computed with.");
}

static void put_lanes(struct page *page, const struct report_data *data)
{
    page_section(page, "How busy the lanes are");
    page_bars_begin(page);
    size_t shown = 0;
    for (int l = 0; l < REPORT_LANES; l++) {
        double part = steady_ratio(data, REPORT_BUSY + l, REPORT_STEP_S);
        char text[64];
        if (!(part > 0))
            continue;
        shown++;
        snprintf(text, sizeof(text), part < 0.0995 ? "%.1f %%" : "%.0f %%", 100 * part);
        page_bar(page, lane_title[l], part, -1, l == report_bound_lane(data) ? 1 : 0, text);
    }
    page_bars_end(page);
    page_paragraph(page, PAGE_NOTE,
                   shown ? "Part of a step's time in which the lane does something. The one that "
                           "binds, by the lower bound, has another colour."
                         : "The log does not say.");
}

static void put_commits(struct page *page, const struct report_data *data)
{
    static const struct page_column columns[] = {{"step", PAGE_NUMBER},
                                                 {"written", PAGE_NUMBER},
                                                 {"took", PAGE_NUMBER},
                                                 {"hash of the weights", PAGE_NAME}};
    char text[128];
    page_section(page, "Commits");
    if (!data->commit_count) {
        page_paragraph(page, PAGE_PLAIN, "None yet: what is lost now is lost from the start.");
        return;
    }
    size_t first = data->commit_count > COMMITS_MAX ? data->commit_count - COMMITS_MAX : 0;
    page_table_begin(page, columns, ARRAY_COUNT(columns));
    for (size_t i = data->commit_count; i-- > first;) {
        const struct report_commit *c = &data->commit[i];
        page_row(page, NULL);
        page_cell(page, &columns[0], page_count(text, (uint64_t)fmax(c->step, 0)));
        page_cell(page, &columns[1], page_bytes(text, c->write_bytes));
        page_cell(page, &columns[2], page_seconds(text, c->seconds));
        page_cell(page, &columns[3], c->weights_hash);
    }
    page_table_end(page);
    if (first) {
        snprintf(text, sizeof(text), "The last %d of %zu; commits.csv has all.", COMMITS_MAX,
                 data->commit_count);
        page_paragraph(page, PAGE_NOTE, text);
    }
}

/* ---- The command ----------------------------------------------------------------------------- */

static int save_csv(const struct report_data *data, const char *out_dir, const char *name,
                    void (*write)(const struct report_data *data, FILE *out), struct err *err)
{
    char path[FILE_PATH_MAX], *text = NULL;
    size_t bytes = 0;
    int result = file_join(path, out_dir, name, err);
    if (result)
        return result;
    FILE *out = open_memstream(&text, &bytes);
    ASSERT(out);
    write(data, out);
    fclose(out);
    result = file_replace(path, text, bytes, err);
    free(text);
    return result;
}

static int build_page(struct page *page, const struct report_data *data, const char *run_dir,
                      struct err *err)
{
    char title[300], subtitle[256], shape[160] = "";
    snprintf(title, sizeof(title), "A run of %s", data->model);
    if (!isnan(data->seq * data->batch * data->accum))
        snprintf(shape, sizeof(shape),
                 "%s; %.0f x %.0f x %.0f tokens a step (batch x seq x accum); ", data->precision,
                 data->batch, data->seq, data->accum);
    snprintf(subtitle, sizeof(subtitle), "%ssteps %.0f to %.0f are in its log", shape,
             data->step[0].value[REPORT_STEP], data->step[data->step_count - 1].value[REPORT_STEP]);
    page_init(page, title, subtitle);
    put_verdict(page, data);
    put_notes(page, data);
    put_cards(page, data);
    int result = put_charts(page, data, err);
    if (result)
        return result;
    put_memory(page, data);
    put_traffic(page, data);
    put_lanes(page, data);
    report_put_timeline(page, run_dir);
    put_commits(page, data);
    page_paragraph(page, PAGE_NOTE, "The numbers are beside this page: steps.csv and commits.csv.");
    return 0;
}

static int report(const char *run_dir, const char *out_dir, struct err *err)
{
    struct report_data data;
    struct page page = {0};
    char path[FILE_PATH_MAX];
    int result = report_load(&data, run_dir, err);
    if (result == 0)
        result = file_make_dirs(out_dir, err);
    if (result == 0)
        result = file_join(path, out_dir, "index.html", err);
    if (result == 0)
        result = build_page(&page, &data, run_dir, err);
    if (result == 0)
        result = save_csv(&data, out_dir, "steps.csv", report_write_steps, err);
    if (result == 0)
        result = save_csv(&data, out_dir, "commits.csv", report_write_commits, err);
    if (result == 0)
        result = page_save(&page, path, err);
    if (result == 0)
        printf("%s: %zu steps, %zu commits\n", path, data.step_count, data.commit_count);
    if (result == 0 && *data.config_note)
        log_warn("%s", data.config_note);
    page_deinit(&page);
    report_unload(&data);
    return result;
}

int report_main(int argc, char **argv)
{
    const char *run_dir = NULL, *out_dir = NULL;
    const struct args_option options[] = {
        {"out", ARGS_STRING, &out_dir, "REPORT_DIR",
         "where index.html, steps.csv and commits.csv go; made when missing", NULL},
    };
    struct args_command args = {
        .name = "report",
        .summary = "Makes a page of a run, also while it is being trained: loss, speed, memory, "
                   "traffic, and what every lane does in a step.",
        .usage = "RUN --out REPORT_DIR",
        .example = "spillway report run --out report && xdg-open report/index.html",
        .options = options,
        .option_count = ARRAY_COUNT(options),
        .positional = &run_dir,
        .positional_max = 1,
    };
    struct err err = {0};
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0 && !run_dir)
        result = err_set(&err, ERR_USAGE, "say which run: spillway report RUN --out REPORT_DIR");
    if (result == 0 && !out_dir)
        result =
            err_set(&err, ERR_USAGE, "--out is missing: --out REPORT_DIR, where the page goes");
    if (result == 0)
        result = report(run_dir, out_dir, &err);
    return commands_status(result, &err);
}
