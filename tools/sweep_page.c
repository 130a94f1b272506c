#include "tools/sweep_page.h"

#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/file.h"
#include "tools/page.h"
#include "tools/plot.h"
#include "tools/sweep_verdict.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PANELS_MAX 9 /* plots side by side; beyond that the matrix says it better */
#define LINES_MAX  PLOT_COLOURS

/* ---- The verdict ----------------------------------------------------------------------------- */

struct verdict {
    struct page *page;
    bool in_list;
};

static void say(void *context, enum sweep_tone tone, const char *strong, const char *text)
{
    struct verdict *verdict = context;
    if (tone == SWEEP_POINT && !verdict->in_list)
        page_list_begin(verdict->page);
    if (tone != SWEEP_POINT && verdict->in_list)
        page_list_end(verdict->page);
    verdict->in_list = tone == SWEEP_POINT;
    if (tone == SWEEP_POINT) {
        page_item(verdict->page, strong, text);
        return;
    }
    char *whole = mem_alloc(strlen(text) + 128, 1);
    snprintf(whole, strlen(text) + 128, "%s%s%s", strong ? strong : "", strong ? " " : "", text);
    page_paragraph(verdict->page, tone == SWEEP_HEADLINE ? PAGE_VERDICT : PAGE_WARNING, whole);
    mem_free(whole);
}

static void put_verdict(struct page *page, const struct sweep *sweep)
{
    struct verdict verdict = {.page = page};
    sweep_speak(sweep, &(struct sweep_speaker){say, &verdict});
    if (verdict.in_list)
        page_list_end(page);
}

static void put_head(struct page *page, const struct sweep *sweep)
{
    char text[1024], count[PAGE_NUMBER_MAX], seq[PAGE_NUMBER_MAX];
    const struct json_value *json = sweep->json;
    const char *base = json_get_string(json, "base", NULL);
    double parameters = json_get_number(json, "parameters", NAN);
    double length = json_get_number(json, "seq", NAN);
    const char *state = json_get_string(json, "optimizer_state", "fp32");
    bool small = strcmp(state, "fp32") != 0;
    snprintf(text, sizeof(text), "%s%s%s%s%s%s%s%s%s%s",
             isnan(parameters) ? "" : page_number(count, parameters),
             isnan(parameters) ? "" : " parameters, ", json_get_string(json, "precision", ""),
             small ? ", " : "", small ? state : "", small ? " moments" : "",
             isnan(length) ? "" : ", sequences of ", isnan(length) ? "" : page_number(seq, length),
             base ? "; to begin with: " : "", base ? base : "");
    char title[256];
    snprintf(title, sizeof(title), "What to buy for %.200s",
             json_get_string(json, "model", "this model"));
    page_init(page, title, text);
}

/* What every row has: it stands in no other place. */
static void put_common(struct page *page, const struct sweep *sweep)
{
    char text[SWEEP_KIND_COUNT * (SWEEP_LABEL_MAX + 8) + 64] = "";
    size_t used = 0;
    for (enum sweep_kind k = 0; k < SWEEP_KIND_COUNT; k++) {
        const struct sweep_axis *axis = &sweep->kinds[k];
        if (axis->value_count == 1 && *axis->label[0])
            used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s%s",
                                     used                   ? ", "
                                     : sweep->row_count > 1 ? "The same in all: "
                                                            : "",
                                     axis->label[0], k == SWEEP_RAM ? " RAM" : "");
    }
    if (used)
        page_paragraph(page, PAGE_NOTE, text);
}

/* ---- Lines ----------------------------------------------------------------------------------- */

/* The axis that goes to the right: RAM, or the first other that is a number. */
static bool find_x_axis(const struct sweep *sweep, enum sweep_kind *axis)
{
    static const enum sweep_kind order[] = {SWEEP_RAM,       SWEEP_VRAM,  SWEEP_SSDS, SWEEP_GPUS,
                                            SWEEP_RAM_SPEED, SWEEP_BATCH, SWEEP_ACCUM};
    for (size_t o = 0; o < ARRAY_COUNT(order); o++)
        for (size_t a = 0; a < sweep->axis_count; a++)
            if (sweep->axes[a] == order[o]) {
                *axis = order[o];
                return true;
            }
    return false;
}

/* Rows that are the same but for the x axis make a line; first[l] is a row of line l. Returns how
 * many there are, of which the first SWEEP_ROWS_MAX are told. */
static size_t find_lines(const struct sweep *sweep, enum sweep_kind x, size_t *first)
{
    size_t count = 0;
    for (size_t i = 0; i < sweep->row_count; i++) {
        bool known = false;
        for (size_t l = 0; l < count && !known; l++)
            known = first[l] == i || sweep_is_pair(sweep, first[l], i, x);
        if (!known && count < SWEEP_ROWS_MAX)
            first[count++] = i;
    }
    return count;
}

/* The points of a line, in order; room for as many as the axis has values. */
static size_t line_points(const struct sweep *sweep, enum sweep_kind x, size_t first, double *xs,
                          double *ys)
{
    size_t count = 0;
    for (size_t v = 0; v < sweep->kinds[x].value_count; v++)
        for (size_t i = 0; i < sweep->row_count; i++) {
            const struct sweep_row *row = &sweep->rows[i];
            if (row->value[x] != v || row->refused ||
                (i != first && !sweep_is_pair(sweep, first, i, x)))
                continue;
            xs[count] = sweep->kinds[x].number[v];
            ys[count++] = row->tokens_per_s;
            break;
        }
    return count;
}

/* What tells the lines of one panel apart: a row's name without the x axis and the panel's. */
static void line_name(const struct sweep *sweep, size_t row, enum sweep_kind x,
                      enum sweep_kind panel, char text[SWEEP_NAME_MAX])
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t a = 0; a < sweep->axis_count; a++) {
        enum sweep_kind k = sweep->axes[a];
        const char *label = sweep->kinds[k].label[sweep->rows[row].value[k]];
        if (k != x && k != panel && *label && used < SWEEP_NAME_MAX - SWEEP_LABEL_MAX - 4)
            used += (size_t)snprintf(text + used, SWEEP_NAME_MAX - used, "%s%s", used ? ", " : "",
                                     label);
    }
}

/* The line's colour by its name; a new name takes the next one. LINES_MAX: there is none left. */
static unsigned colour_of(char names[LINES_MAX][SWEEP_NAME_MAX], size_t *count, const char *name)
{
    for (size_t c = 0; c < *count; c++)
        if (strcmp(names[c], name) == 0)
            return (unsigned)c;
    if (*count == LINES_MAX)
        return LINES_MAX;
    snprintf(names[*count], SWEEP_NAME_MAX, "%s", name);
    return (unsigned)(*count)++;
}

/* Whether lines can be told apart by LINES_MAX colours when each value of k has its own plot. */
static bool colours_suffice(const struct sweep *sweep, enum sweep_kind x, enum sweep_kind k,
                            const size_t *lines, size_t line_count)
{
    char names[LINES_MAX][SWEEP_NAME_MAX], name[SWEEP_NAME_MAX];
    size_t count = 0;
    for (size_t l = 0; l < line_count; l++) {
        line_name(sweep, lines[l], x, k, name);
        if (colour_of(names, &count, name) == LINES_MAX)
            return false;
    }
    return true;
}

/* The axis whose values each get a plot of their own: the one with the fewest values that leaves no
 * more than LINES_MAX lines in each. SWEEP_KIND_COUNT: one plot holds all; false: none does. */
static bool find_panels(const struct sweep *sweep, enum sweep_kind x, const size_t *lines,
                        size_t line_count, enum sweep_kind *panel)
{
    *panel = SWEEP_KIND_COUNT;
    if (line_count <= LINES_MAX)
        return true;
    size_t fewest = PANELS_MAX + 1;
    for (size_t a = 0; a < sweep->axis_count; a++) {
        enum sweep_kind k = sweep->axes[a];
        if (k != x && sweep->kinds[k].value_count < fewest &&
            colours_suffice(sweep, x, k, lines, line_count)) {
            fewest = sweep->kinds[k].value_count;
            *panel = k;
        }
    }
    return *panel != SWEEP_KIND_COUNT;
}

/* Labels that would touch each other are left out; the last one always stands. */
static size_t thin_ticks(const struct sweep_axis *axis, double *at, const char **labels)
{
    size_t count = 0, n = axis->value_count;
    double span = axis->number[n - 1] - axis->number[0];
    for (size_t v = 0; v < n; v++) {
        bool far = count == 0 || axis->number[v] - at[count - 1] >= span * 0.17;
        bool last = v == n - 1;
        if (last && !far && count > 1)
            count--;
        if (far || last) {
            at[count] = axis->number[v];
            labels[count++] = axis->label[v];
        }
    }
    return count;
}

struct panel {
    const struct sweep *sweep;
    enum sweep_kind x;
    const size_t *lines;
    size_t line_count;
    double y_max;
};

/* One plot of the lines that are among members. Colours are the same in all panels: a line's name
 * without the panel's axis is its colour. */
static int draw_panel(struct page *page, const struct panel *p, const size_t *members,
                      const unsigned *colours, size_t count, const char *title, struct err *err)
{
    const struct sweep_axis *axis = &p->sweep->kinds[p->x];
    size_t n = axis->value_count;
    double *values = mem_alloc(2 * n * LINES_MAX, sizeof(*values)), at[SWEEP_VALUES_MAX];
    const char *labels[SWEEP_VALUES_MAX];
    struct plot_series series[LINES_MAX];
    for (size_t l = 0; l < count; l++) {
        double *x = values + 2 * n * l, *y = x + n;
        series[l] =
            (struct plot_series){.style = PLOT_POINTS, .colour = colours[l], .x = x, .y = y};
        series[l].count = line_points(p->sweep, p->x, members[l], x, y);
    }
    struct plot plot = {
        .label = title,
        .series = series,
        .series_count = count,
        .y_from_zero = true,
        .y_max = p->y_max,
        .x_ticks = at,
        .ticks = labels,
        .tick_count = thin_ticks(axis, at, labels),
    };
    char *svg = NULL;
    int result = plot_draw(&plot, &svg, err);
    if (result == 0)
        page_figure(page, &(struct page_figure){.title = title, .svg = svg});
    mem_free(svg);
    mem_free(values);
    return result;
}

static int put_panels(struct page *page, const struct panel *p, enum sweep_kind split,
                      struct err *err)
{
    char names[LINES_MAX][SWEEP_NAME_MAX];
    size_t name_count = 0;
    size_t panel_count = split == SWEEP_KIND_COUNT ? 1 : p->sweep->kinds[split].value_count;
    int result = 0;
    page_figures_begin(page);
    for (size_t v = 0; v < panel_count && result == 0; v++) {
        size_t members[LINES_MAX], count = 0;
        unsigned colours[LINES_MAX];
        for (size_t l = 0; l < p->line_count; l++) {
            char name[SWEEP_NAME_MAX];
            if (split != SWEEP_KIND_COUNT && p->sweep->rows[p->lines[l]].value[split] != v)
                continue;
            ASSERT(count < LINES_MAX);
            line_name(p->sweep, p->lines[l], p->x, split, name);
            colours[count] = colour_of(names, &name_count, name);
            ASSERT(colours[count] < LINES_MAX);
            members[count++] = p->lines[l];
        }
        char title[SWEEP_LABEL_MAX + 64];
        snprintf(title, sizeof(title), "Tokens a second against %s%s%s", sweep_axis_name(p->x),
                 split == SWEEP_KIND_COUNT ? "" : ": ",
                 split == SWEEP_KIND_COUNT ? "" : p->sweep->kinds[split].label[v]);
        if (count)
            result = draw_panel(page, p, members, colours, count, title, err);
    }
    page_figures_end(page);
    const char *legend[LINES_MAX];
    for (size_t c = 0; c < name_count; c++)
        legend[c] = names[c];
    if (name_count > 1 || (name_count == 1 && *names[0]))
        page_legend(page, legend, name_count);
    return result;
}

static int put_lines(struct page *page, const struct sweep *sweep, struct err *err)
{
    enum sweep_kind x, split;
    if (sweep->best == sweep->row_count || !find_x_axis(sweep, &x))
        return 0;
    size_t *lines = mem_alloc(sweep->row_count, sizeof(*lines));
    struct panel panel = {
        .sweep = sweep,
        .x = x,
        .lines = lines,
        .y_max = sweep->rows[sweep->best].tokens_per_s * 1.06,
    };
    panel.line_count = find_lines(sweep, x, lines);
    int result = 0;
    page_section(page, "Speed");
    if (find_panels(sweep, x, lines, panel.line_count, &split))
        result = put_panels(page, &panel, split, err);
    else
        page_paragraph(page, PAGE_NOTE,
                       "There are too many combinations to draw; the table below has them all.");
    mem_free(lines);
    return result;
}

/* ---- What binds: a cell for each configuration ----------------------------------------------- */

static void put_heat_cell(struct page *page, const struct sweep *sweep, size_t first,
                          enum sweep_kind x, size_t value)
{
    char text[PAGE_NUMBER_MAX];
    for (size_t i = 0; i < sweep->row_count; i++) {
        const struct sweep_row *row = &sweep->rows[i];
        if (row->value[x] != value || (i != first && !sweep_is_pair(sweep, first, i, x)))
            continue;
        if (row->refused)
            page_html(page, "<td class=\"number\">refused</td>");
        else
            page_html(
                page, "<td class=\"heat\" style=\"--lane:var(--c%d)\">%s<small>%s</small></td>",
                row->bound_lane < 0 ? 7 : row->bound_lane, page_number(text, row->tokens_per_s),
                row->bound_lane < 0 ? "" : sweep_lane_key[row->bound_lane]);
        return;
    }
    page_html(page, "<td class=\"number\">–</td>");
}

static void put_matrix(struct page *page, const struct sweep *sweep)
{
    enum sweep_kind x;
    if (sweep->best == sweep->row_count || !find_x_axis(sweep, &x))
        return;
    const struct sweep_axis *axis = &sweep->kinds[x];
    size_t *lines = mem_alloc(sweep->row_count, sizeof(*lines));
    size_t line_count = find_lines(sweep, x, lines);
    struct page_column columns[SWEEP_VALUES_MAX + 1] = {{"", PAGE_NAME}};
    for (size_t v = 0; v < axis->value_count; v++)
        columns[v + 1] = (struct page_column){axis->label[v], PAGE_NUMBER};
    page_section(page, "What binds where");
    page_paragraph(page, PAGE_NOTE,
                   "Tokens a second, and below it the lane that binds: the one to make faster.");
    page_legend(page, sweep_lane_name, SWEEP_LANES);
    page_table_begin(page, columns, axis->value_count + 1);
    for (size_t l = 0; l < line_count; l++) {
        char name[SWEEP_NAME_MAX];
        line_name(sweep, lines[l], x, SWEEP_KIND_COUNT, name);
        page_row(page, NULL);
        page_cell(page, &columns[0], *name ? name : sweep_axis_name(x));
        for (size_t v = 0; v < axis->value_count; v++)
            put_heat_cell(page, sweep, lines[l], x, v);
    }
    page_table_end(page);
    mem_free(lines);
}

/* ---- All of it ------------------------------------------------------------------------------- */

/* Best first, refused last. */
static void order_rows(const struct sweep *sweep, size_t *order)
{
    for (size_t i = 0; i < sweep->row_count; i++) {
        double speed = sweep->rows[i].refused ? -1 : sweep->rows[i].tokens_per_s;
        size_t p = i;
        for (; p > 0; p--) {
            const struct sweep_row *before = &sweep->rows[order[p - 1]];
            if ((before->refused ? -1 : before->tokens_per_s) >= speed)
                break;
            order[p] = order[p - 1];
        }
        order[p] = i;
    }
}

enum unit { SPEED, SECONDS, MEMORY, TRAFFIC, DAYS };
static const struct {
    const char *name, *key;
    enum unit unit;
} figures[] = {
    {"tokens/s", "tokens_per_s", SPEED},
    {"predicted", "predicted_s", SECONDS},
    {"measured", "measured_s", SECONDS},
    {"bound", "bound_s", SECONDS},
    {"read a step", "ssd_read_bytes", TRAFFIC},
    {"written a step", "ssd_write_bytes", TRAFFIC},
    {"to the GPU", "h2d_bytes", TRAFFIC},
    {"from the GPU", "d2h_bytes", TRAFFIC},
    {"RAM used", "ram_bytes", MEMORY},
    {"VRAM used", "vram_bytes", MEMORY},
    {"NVMe used", "nvme_bytes", MEMORY},
    {"written a day", "ssd_written_bytes_per_day", TRAFFIC},
    {"SSD days left", "ssd_days_left", DAYS},
};

static bool is_shown(const struct sweep *sweep, size_t figure)
{
    for (size_t i = 0; i < sweep->row_count; i++)
        if (figure == 0 || !isnan(json_get_number(sweep->rows[i].json, figures[figure].key, NAN)))
            return true;
    return false;
}

static const char *figure_text(const struct sweep_row *row, size_t figure,
                               char text[PAGE_NUMBER_MAX])
{
    double value = json_get_number(row->json, figures[figure].key, NAN);
    switch (figures[figure].unit) {
    case SPEED:
        return page_number(text, row->tokens_per_s);
    case SECONDS:
        return page_seconds(text, value);
    case MEMORY:
        return page_memory(text, value);
    case TRAFFIC:
        return page_bytes(text, value);
    case DAYS:
        snprintf(text, PAGE_NUMBER_MAX, isnan(value) ? "–" : "%.0f", value);
        return text;
    }
    return "";
}

static void put_table_row(struct page *page, const struct sweep *sweep, size_t index,
                          const struct page_column *columns, size_t column_count)
{
    const struct sweep_row *row = &sweep->rows[index];
    size_t c = 0;
    page_row(page, row->refused ? "refused" : index == sweep->best ? "best" : NULL);
    for (size_t a = 0; a < sweep->axis_count; a++) {
        enum sweep_kind k = sweep->axes[a];
        page_cell(page, &columns[c++], sweep->kinds[k].label[row->value[k]]);
    }
    if (row->refused) {
        char *text = mem_alloc(strlen(row->refused) + 16, 1);
        sprintf(text, "refused: %s", row->refused);
        page_cell_wide(page, column_count - c, text);
        mem_free(text);
        return;
    }
    for (size_t f = 0; f < ARRAY_COUNT(figures); f++) {
        char text[PAGE_NUMBER_MAX];
        if (is_shown(sweep, f))
            page_cell(page, &columns[c++], figure_text(row, f, text));
        if (f == 0)
            page_cell(page, &columns[c++],
                      row->bound_lane < 0 ? "–" : sweep_lane_name[row->bound_lane]);
    }
}

static void put_table(struct page *page, const struct sweep *sweep)
{
    struct page_column columns[SWEEP_KIND_COUNT + ARRAY_COUNT(figures) + 1];
    size_t count = 0, *order = mem_alloc(sweep->row_count, sizeof(*order));
    char names[SWEEP_KIND_COUNT][64];
    for (size_t a = 0; a < sweep->axis_count; a++) {
        const char *name = sweep_axis_name(sweep->axes[a]);
        snprintf(names[a], sizeof(names[a]), "%s", strncmp(name, "the ", 4) == 0 ? name + 4 : name);
        columns[count++] = (struct page_column){names[a], PAGE_NAME};
    }
    bool all_refused = sweep->best == sweep->row_count;
    if (all_refused)
        columns[count++] = (struct page_column){"why", PAGE_PROSE};
    for (size_t f = 0; f < ARRAY_COUNT(figures) && !all_refused; f++) {
        if (is_shown(sweep, f))
            columns[count++] = (struct page_column){figures[f].name, PAGE_NUMBER};
        if (f == 0)
            columns[count++] = (struct page_column){"binds", PAGE_NAME};
    }
    order_rows(sweep, order);
    page_section(page, "All configurations");
    page_table_begin(page, columns, count);
    for (size_t i = 0; i < sweep->row_count; i++)
        put_table_row(page, sweep, order[i], columns, count);
    page_table_end(page);
    page_paragraph(page, PAGE_NOTE,
                   "Sizes of RAM and VRAM are as they are sold (a GB is 2^30 bytes); traffic and "
                   "drives count 10^9 bytes to a GB. The same numbers are in results.csv.");
    mem_free(order);
}

/* ---- The CSV --------------------------------------------------------------------------------- */

static const char *const csv_strings[] = {"ssd", "cpu", "gpu", "bound_lane", "refused"};
static const char *const csv_numbers[] = {
    "machine_ram_bytes",
    "ram_budget_bytes",
    "vram_budget_bytes",
    "ssd_read_bytes_per_s",
    "ssd_write_bytes_per_s",
    "ssds",
    "ram_mts",
    "ram_bytes_per_s",
    "gpus",
    "batch",
    "accum",
    "tokens",
    "predicted_s",
    "measured_s",
    "bound_s",
    "tokens_per_s",
    "h2d_bytes",
    "d2h_bytes",
    "ssd_read_bytes",
    "ssd_write_bytes",
    "ram_bytes",
    "vram_bytes",
    "nvme_bytes",
    "ssd_days_left",
    "ssd_written_bytes_per_day",
};

static void put_csv(FILE *out, const struct sweep *sweep)
{
    for (size_t c = 0; c < ARRAY_COUNT(csv_strings); c++)
        fprintf(out, "%s,", csv_strings[c]);
    for (size_t c = 0; c < ARRAY_COUNT(csv_numbers); c++)
        fprintf(out, "%s,", csv_numbers[c]);
    for (size_t l = 0; l < SWEEP_LANES; l++)
        fprintf(out, "busy_s_%s%s", sweep_lane_key[l], l + 1 < SWEEP_LANES ? "," : "\n");
    for (size_t i = 0; i < sweep->row_count; i++) {
        const struct json_value *json = sweep->rows[i].json;
        for (size_t c = 0; c < ARRAY_COUNT(csv_strings); c++) {
            page_csv_field(out, json_get_string(json, csv_strings[c], ""));
            fputc(',', out);
        }
        for (size_t c = 0; c < ARRAY_COUNT(csv_numbers); c++) {
            double value = json_get_number(json, csv_numbers[c], NAN);
            fprintf(out, isnan(value) ? "," : "%.15g,", value);
        }
        for (size_t l = 0; l < SWEEP_LANES; l++) {
            double value = json_get_number(json_get(json, "busy_s"), sweep_lane_key[l], NAN);
            if (!isnan(value))
                fprintf(out, "%.9g", value);
            fputc(l + 1 < SWEEP_LANES ? ',' : '\n', out);
        }
    }
}

static int save_csv(const struct sweep *sweep, const char *out_dir, struct err *err)
{
    char path[FILE_PATH_MAX], *text = NULL;
    size_t bytes = 0;
    int result = file_join(path, out_dir, "results.csv", err);
    if (result)
        return result;
    FILE *out = open_memstream(&text, &bytes);
    ASSERT(out);
    put_csv(out, sweep);
    fclose(out);
    result = file_replace(path, text, bytes, err);
    free(text);
    return result;
}

int sweep_page_write(const struct json_value *results, const char *out_dir, struct err *err)
{
    struct sweep sweep;
    struct page page = {0};
    char path[FILE_PATH_MAX];
    int result = sweep_read(&sweep, results, err);
    if (result == 0)
        result = file_join(path, out_dir, "index.html", err);
    if (result == 0) {
        put_head(&page, &sweep);
        put_verdict(&page, &sweep);
        put_common(&page, &sweep);
        result = put_lines(&page, &sweep, err);
    }
    if (result == 0) {
        put_matrix(&page, &sweep);
        put_table(&page, &sweep);
        result = save_csv(&sweep, out_dir, err);
    }
    if (result == 0)
        result = page_save(&page, path, err);
    page_deinit(&page);
    sweep_deinit(&sweep);
    return result;
}
