#include "tools/sweep_verdict.h"

#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "tools/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const sweep_lane_key[SWEEP_LANES] = {"compute",  "h2d",       "d2h",
                                                 "ssd_read", "ssd_write", "cpu"};
const char *const sweep_lane_name[SWEEP_LANES] = {
    "computing",          "copying to the GPU",      "copying from the GPU", "reading from the SSD",
    "writing to the SSD", "the optimizer on the CPU"};

static const struct {
    const char *name, *key, *unit; /* unit of counts: "2 SSDs" */
} kinds[SWEEP_KIND_COUNT] = {
    [SWEEP_RAM] = {"RAM", "ram_budget_bytes", NULL},
    [SWEEP_VRAM] = {"VRAM", "vram_budget_bytes", NULL},
    [SWEEP_SSD] = {"the SSD", "ssd", NULL},
    [SWEEP_SSDS] = {"the number of SSDs", "ssds", "SSD"},
    [SWEEP_CPU] = {"the CPU", "cpu", NULL},
    [SWEEP_RAM_SPEED] = {"the RAM's speed", "ram_mts", NULL},
    [SWEEP_GPU] = {"the GPU", "gpu", NULL},
    [SWEEP_GPUS] = {"the number of GPUs", "gpus", "GPU"},
    [SWEEP_BATCH] = {"the batch", "batch", NULL},
    [SWEEP_ACCUM] = {"the accumulation", "accum", NULL},
};

const char *sweep_axis_name(enum sweep_kind axis)
{
    return kinds[axis].name;
}

/* ---- Values ---------------------------------------------------------------------------------- */

static double field(const struct sweep_row *row, const char *key)
{
    return json_get_number(row->json, key, NAN);
}

/* What the values of a kind are ordered by. Names have none yet: NAN. */
static double rank(const struct sweep_row *row, enum sweep_kind kind)
{
    if (kind == SWEEP_CPU || kind == SWEEP_GPU)
        return NAN;
    if (kind == SWEEP_SSD)
        return field(row, "ssd_read_bytes_per_s");
    if (kind == SWEEP_RAM && row->by_machine)
        return field(row, "machine_ram_bytes");
    double number = field(row, kinds[kind].key);
    return kind == SWEEP_RAM_SPEED && isnan(number) ? field(row, "ram_bytes_per_s") : number;
}

static void put_rate(char label[SWEEP_LABEL_MAX], double read, double write)
{
    char a[PAGE_NUMBER_MAX], b[PAGE_NUMBER_MAX];
    if (isnan(read))
        snprintf(label, SWEEP_LABEL_MAX, "no SSD");
    else if (isnan(write))
        snprintf(label, SWEEP_LABEL_MAX, "SSD %s/s", page_bytes(a, read));
    else
        snprintf(label, SWEEP_LABEL_MAX, "SSD %s/s, writes %s/s", page_bytes(a, read),
                 page_bytes(b, write));
}

/* Distinct values have distinct labels: the value's identity is its label. */
static void put_label(const struct sweep_row *row, enum sweep_kind kind,
                      char label[SWEEP_LABEL_MAX])
{
    char text[PAGE_NUMBER_MAX];
    const char *name = json_get_string(row->json, kinds[kind].key, NULL);
    double number = rank(row, kind);
    if (kind == SWEEP_SSD && (!name || !*name))
        put_rate(label, number, field(row, "ssd_write_bytes_per_s"));
    else if (name)
        snprintf(label, SWEEP_LABEL_MAX, "%s", name);
    else if (isnan(number))
        label[0] = '\0';
    else if (kind == SWEEP_RAM || kind == SWEEP_VRAM)
        snprintf(label, SWEEP_LABEL_MAX, "%s%s", page_memory(text, number),
                 kind == SWEEP_VRAM ? " VRAM" : "");
    else if (kind == SWEEP_RAM_SPEED)
        snprintf(label, SWEEP_LABEL_MAX, number > 1e6 ? "RAM %s/s" : "%s MT/s",
                 number > 1e6 ? page_bytes(text, number) : page_count(text, (uint64_t)number));
    else if (kinds[kind].unit)
        snprintf(label, SWEEP_LABEL_MAX, "%.0f %s%s", number, kinds[kind].unit,
                 number == 1 ? "" : "s");
    else
        snprintf(label, SWEEP_LABEL_MAX, "%s %.0f", kind == SWEEP_BATCH ? "batch" : "accum",
                 number);
}

/* NAN, which is "not given", equals itself here. */
static bool is_same(double a, double b)
{
    return a == b || (isnan(a) && isnan(b));
}

/* One name with two speeds is two drives, so the speed joins the name. */
static void part_drives(const struct sweep *sweep, size_t row, char label[SWEEP_LABEL_MAX])
{
    const struct sweep_row *mine = &sweep->rows[row];
    const char *name = json_get_string(mine->json, "ssd", NULL);
    if (!name || !*name)
        return;
    for (size_t i = 0; i < sweep->row_count; i++) {
        const struct sweep_row *other = &sweep->rows[i];
        double read = field(mine, "ssd_read_bytes_per_s");
        double write = field(mine, "ssd_write_bytes_per_s");
        char rate[SWEEP_LABEL_MAX];
        if (strcmp(name, json_get_string(other->json, "ssd", "")) != 0 ||
            (is_same(read, field(other, "ssd_read_bytes_per_s")) &&
             is_same(write, field(other, "ssd_write_bytes_per_s"))))
            continue;
        put_rate(rate, read, write);
        if (!isnan(read))
            snprintf(label, SWEEP_LABEL_MAX, "%.60s, %.60s", name, rate + strlen("SSD "));
        return;
    }
}

static int find_value(struct sweep_axis *axis, const char *label, double number, uint16_t *value,
                      struct err *err)
{
    for (size_t v = 0; v < axis->value_count; v++)
        if (strcmp(axis->label[v], label) == 0) {
            *value = (uint16_t)v;
            return 0;
        }
    if (axis->value_count == SWEEP_VALUES_MAX)
        return err_set(err, ERR_INPUT,
                       "results.json has more than %d values of \"%s\": split the sweep",
                       SWEEP_VALUES_MAX, kinds[axis->kind].key);
    *value = (uint16_t)axis->value_count;
    axis->number[axis->value_count] = number;
    snprintf(axis->label[axis->value_count++], SWEEP_LABEL_MAX, "%s", label);
    return 0;
}

/* The speed of a name's fastest row orders the names. */
static void rank_names(const struct sweep *sweep, struct sweep_axis *axis)
{
    if (axis->kind != SWEEP_CPU && axis->kind != SWEEP_GPU)
        return;
    for (size_t v = 0; v < axis->value_count; v++)
        axis->number[v] = 0;
    for (size_t i = 0; i < sweep->row_count; i++) {
        double *number = &axis->number[sweep->rows[i].value[axis->kind]];
        *number = fmax(*number, sweep->rows[i].tokens_per_s);
    }
}

static void sort_values(struct sweep *sweep, struct sweep_axis *axis)
{
    uint16_t order[SWEEP_VALUES_MAX], place[SWEEP_VALUES_MAX];
    struct sweep_axis *old = mem_alloc(1, sizeof(*old));
    *old = *axis;
    for (uint16_t v = 0; v < axis->value_count; v++) {
        uint16_t p = v;
        /* "No SSD" has no number, and is the least. */
        for (; p > 0 && (isnan(old->number[v]) ? !isnan(old->number[order[p - 1]])
                                               : old->number[order[p - 1]] > old->number[v]);
             p--)
            order[p] = order[p - 1];
        order[p] = v;
    }
    for (uint16_t p = 0; p < axis->value_count; p++) {
        place[order[p]] = p;
        axis->number[p] = old->number[order[p]];
        memcpy(axis->label[p], old->label[order[p]], SWEEP_LABEL_MAX);
    }
    for (size_t i = 0; i < sweep->row_count; i++)
        sweep->rows[i].value[axis->kind] = place[sweep->rows[i].value[axis->kind]];
    mem_free(old);
}

static int read_values(struct sweep *sweep, enum sweep_kind kind, struct err *err)
{
    struct sweep_axis *axis = &sweep->kinds[kind];
    axis->kind = kind;
    for (size_t i = 0; i < sweep->row_count; i++) {
        char label[SWEEP_LABEL_MAX];
        put_label(&sweep->rows[i], kind, label);
        if (kind == SWEEP_SSD)
            part_drives(sweep, i, label);
        int result =
            find_value(axis, label, rank(&sweep->rows[i], kind), &sweep->rows[i].value[kind], err);
        if (result)
            return result;
    }
    rank_names(sweep, axis);
    sort_values(sweep, axis);
    return 0;
}

/* ---- Rows ------------------------------------------------------------------------------------ */

static int lane_index(const char *key)
{
    for (int l = 0; l < SWEEP_LANES; l++)
        if (strcmp(sweep_lane_key[l], key) == 0)
            return l;
    return -1;
}

/* tokens_per_s may be left out: it follows from the tokens and the time. */
static void read_row(struct sweep_row *row, const struct json_value *json)
{
    *row = (struct sweep_row){.json = json};
    row->refused = json_get_string(json, "refused", NULL);
    row->predicted_s = field(row, "predicted_s");
    row->measured_s = field(row, "measured_s");
    row->bound_s = field(row, "bound_s");
    row->ssd_days_left = field(row, "ssd_days_left");
    row->bound_lane = lane_index(json_get_string(json, "bound_lane", ""));
    double step_s = isnan(row->measured_s) ? row->predicted_s : row->measured_s;
    row->tokens_per_s = json_get_number(json, "tokens_per_s", field(row, "tokens") / step_s);
    if (!row->refused && !(row->tokens_per_s > 0 && isfinite(row->tokens_per_s)))
        row->refused = "there is no result";
    if (row->refused)
        row->tokens_per_s = row->ssd_days_left = NAN;
}

/* Whether `kind` is settled by two others: a GPU brings its own VRAM, the number of DIMMs the speed
 * of RAM. */
static bool follows(const struct sweep *sweep, enum sweep_kind kind, enum sweep_kind a,
                    enum sweep_kind b)
{
    if (sweep->kinds[a].value_count < 2 && sweep->kinds[b].value_count < 2)
        return false;
    for (size_t i = 0; i < sweep->row_count; i++)
        for (size_t j = 0; j < i; j++) {
            const uint16_t *x = sweep->rows[i].value, *y = sweep->rows[j].value;
            if (x[a] == y[a] && x[b] == y[b] && x[kind] != y[kind])
                return false;
        }
    return true;
}

static void find_axes(struct sweep *sweep)
{
    for (enum sweep_kind k = 0; k < SWEEP_KIND_COUNT; k++) {
        bool follower = (k == SWEEP_VRAM && follows(sweep, k, SWEEP_GPU, SWEEP_GPUS)) ||
                        (k == SWEEP_RAM_SPEED && follows(sweep, k, SWEEP_CPU, SWEEP_RAM));
        if (sweep->kinds[k].value_count > 1 && !follower)
            sweep->axes[sweep->axis_count++] = k;
    }
}

/* Where machines differ in RAM, their sizes are what can be bought; budgets follow. */
static void tell_ram(struct sweep *sweep)
{
    bool differ = false;
    for (size_t i = 0; i < sweep->row_count; i++)
        differ |= !is_same(field(&sweep->rows[i], "machine_ram_bytes"),
                           field(&sweep->rows[0], "machine_ram_bytes"));
    for (size_t i = 0; i < sweep->row_count; i++)
        sweep->rows[i].by_machine = differ;
}

int sweep_read(struct sweep *sweep, const struct json_value *results, struct err *err)
{
    const struct json_value *rows = json_get(results, "rows");
    *sweep = (struct sweep){.json = results, .row_count = json_length(rows)};
    if (!sweep->row_count || sweep->row_count > SWEEP_ROWS_MAX || !json_at(rows, 0))
        return err_set(err, ERR_INPUT,
                       "the results of a sweep have %zu rows, and must have 1 to %d",
                       sweep->row_count, SWEEP_ROWS_MAX);
    sweep->measured = json_get_bool(results, "measured", false);
    sweep->rows = mem_alloc(sweep->row_count, sizeof(*sweep->rows));
    sweep->kinds = mem_alloc(SWEEP_KIND_COUNT, sizeof(*sweep->kinds));
    sweep->best = sweep->row_count;
    for (size_t i = 0; i < sweep->row_count; i++) {
        struct sweep_row *row = &sweep->rows[i];
        read_row(row, json_at(rows, i));
        sweep->refused_count += row->refused != NULL;
        if (!row->refused && (sweep->best == sweep->row_count ||
                              row->tokens_per_s > sweep->rows[sweep->best].tokens_per_s))
            sweep->best = i;
    }
    tell_ram(sweep);
    for (enum sweep_kind k = 0; k < SWEEP_KIND_COUNT; k++) {
        int result = read_values(sweep, k, err);
        if (result)
            return result;
    }
    find_axes(sweep);
    return 0;
}

void sweep_deinit(struct sweep *sweep)
{
    mem_free(sweep->rows);
    mem_free(sweep->kinds);
    *sweep = (struct sweep){0};
}

/* ---- All else equal -------------------------------------------------------------------------- */

bool sweep_is_pair(const struct sweep *sweep, size_t a, size_t b, enum sweep_kind axis)
{
    for (size_t i = 0; i < sweep->axis_count; i++) {
        enum sweep_kind k = sweep->axes[i];
        if ((sweep->rows[a].value[k] != sweep->rows[b].value[k]) != (k == axis))
            return false;
    }
    return true;
}

static double ratio(const struct sweep *sweep, size_t from, size_t to)
{
    return sweep->rows[to].tokens_per_s / sweep->rows[from].tokens_per_s;
}

static void add_pair(const struct sweep *sweep, size_t lower, size_t upper, struct sweep_step *step)
{
    if (sweep->rows[upper].refused)
        return;
    if (sweep->rows[lower].refused) {
        step->newly_fits++;
        return;
    }
    double times = ratio(sweep, lower, upper);
    if (!step->pair_count || times < step->low) {
        step->low = times;
        step->low_row = upper;
    }
    if (!step->pair_count || times > step->high) {
        step->high = times;
        step->high_row = upper;
    }
    step->pair_count++;
}

void sweep_step(const struct sweep *sweep, enum sweep_kind axis, size_t from, size_t to,
                struct sweep_step *step)
{
    *step = (struct sweep_step){0};
    for (size_t a = 0; a < sweep->row_count; a++)
        for (size_t b = 0; b < sweep->row_count; b++)
            if (sweep->rows[a].value[axis] == from && sweep->rows[b].value[axis] == to &&
                sweep_is_pair(sweep, a, b, axis))
                add_pair(sweep, a, b, step);
}

size_t sweep_knee(const struct sweep *sweep, enum sweep_kind axis, size_t row)
{
    ASSERT(row < sweep->row_count && !sweep->rows[row].refused);
    double best = sweep->rows[row].tokens_per_s;
    for (size_t i = 0; i < sweep->row_count; i++)
        if (!sweep->rows[i].refused && sweep_is_pair(sweep, row, i, axis))
            best = fmax(best, sweep->rows[i].tokens_per_s);
    size_t knee = SIZE_MAX;
    for (size_t i = 0; i < sweep->row_count; i++) {
        const struct sweep_row *r = &sweep->rows[i];
        if (r->refused || (i != row && !sweep_is_pair(sweep, row, i, axis)) ||
            r->tokens_per_s < best * (1 - SWEEP_NOTHING))
            continue;
        if (knee == SIZE_MAX || r->value[axis] < sweep->rows[knee].value[axis])
            knee = i;
    }
    ASSERT(knee != SIZE_MAX); /* the best one is within 3 % of itself */
    return knee;
}

/* ---- What to buy ----------------------------------------------------------------------------- */

static size_t size_of(const struct sweep *sweep, size_t row)
{
    size_t sum = 0;
    for (size_t a = 0; a < sweep->axis_count; a++)
        sum += sweep->rows[row].value[sweep->axes[a]];
    return sum;
}

/* The smallest of the rows that make so many tokens a second at least. */
static size_t find_smallest(const struct sweep *sweep, double tokens_per_s)
{
    size_t smallest = sweep->row_count;
    for (size_t i = 0; i < sweep->row_count; i++)
        if (sweep->rows[i].tokens_per_s >= tokens_per_s && /* a refused row's is NAN */
            (smallest == sweep->row_count || size_of(sweep, i) < size_of(sweep, smallest)))
            smallest = i;
    return smallest;
}

size_t sweep_modest(const struct sweep *sweep)
{
    ASSERT(sweep->best < sweep->row_count);
    size_t row = find_smallest(sweep, sweep->rows[sweep->best].tokens_per_s * (1 - SWEEP_NOTHING));
    return size_of(sweep, row) < size_of(sweep, sweep->best) ? row : sweep->best;
}

/* The axis and the row that one purchase is best spent on; false when none brings anything. Of
 * values that bring the same, the smallest. */
static bool find_purchase(const struct sweep *sweep, size_t from, size_t *to, enum sweep_kind *axis)
{
    double most = 1 + SWEEP_NOTHING;
    bool found = false;
    for (size_t a = 0; a < sweep->axis_count; a++) {
        enum sweep_kind k = sweep->axes[a];
        if (k == SWEEP_BATCH || k == SWEEP_ACCUM)
            continue;
        size_t knee = sweep_knee(sweep, k, from);
        if (sweep->rows[knee].value[k] > sweep->rows[from].value[k] &&
            ratio(sweep, from, knee) > most) {
            most = ratio(sweep, from, knee);
            *to = knee;
            *axis = k;
            found = true;
        }
    }
    return found;
}

void sweep_find_path(const struct sweep *sweep, struct sweep_path *path)
{
    *path = (struct sweep_path){0};
    size_t row = find_smallest(sweep, 0);
    while (row < sweep->row_count && path->count < SWEEP_PATH_MAX) {
        size_t i = path->count;
        path->from[i] = row;
        if (!find_purchase(sweep, row, &path->to[i], &path->axis[i]))
            return;
        row = path->to[i];
        path->count++;
    }
}

const char *sweep_name(const struct sweep *sweep, size_t row, enum sweep_kind except,
                       char text[SWEEP_NAME_MAX])
{
    size_t used = 0;
    text[0] = '\0';
    for (size_t a = 0; a < sweep->axis_count; a++) {
        enum sweep_kind k = sweep->axes[a];
        const char *label = sweep->kinds[k].label[sweep->rows[row].value[k]];
        if (k == except || !*label || used + 4 >= SWEEP_NAME_MAX)
            continue;
        used += (size_t)snprintf(text + used, SWEEP_NAME_MAX - used, "%s%s%s", used ? ", " : "",
                                 label, k == SWEEP_RAM ? " RAM" : "");
        used = MIN(used, SWEEP_NAME_MAX - 1);
    }
    if (!used)
        snprintf(text, SWEEP_NAME_MAX, "this machine");
    return text;
}
