/* The words of a sweep's verdict: see sweep_verdict.h. One function a sentence, or a clause. */
#include "tools/sweep_verdict.h"

#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "tools/page.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CLAUSES_MAX      8 /* steps of an axis that are told one by one */
#define A_YEAR_DAYS      365
#define REASON_MAX       600
#define REFUSED_AXES_MAX 6

struct sentence {
    FILE *out;
    char *text;
    size_t bytes;
    size_t clauses;
};

static void begin(struct sentence *s)
{
    *s = (struct sentence){0};
    s->out = open_memstream(&s->text, &s->bytes);
    ASSERT(s->out);
}

static void end(struct sentence *s, const struct sweep_speaker *speaker, enum sweep_tone tone,
                const char *strong)
{
    fclose(s->out);
    if (s->bytes)
        speaker->say(speaker->context, tone, strong, s->text);
    free(s->text);
}

/* "; " between clauses. */
static void next(struct sentence *s)
{
    fputs(s->clauses++ ? "; " : "", s->out);
}

/* A line for each clause. */
static void next_line(struct sentence *s)
{
    s->clauses++;
    fputc('\n', s->out);
}

static const char *times(char text[PAGE_NUMBER_MAX], double ratio)
{
    snprintf(text, PAGE_NUMBER_MAX, ratio < 9.95 ? "%.2f times" : "%.0f times", ratio);
    return text;
}

static bool is_nothing(double ratio)
{
    return ratio > 1 - SWEEP_NOTHING && ratio < 1 + SWEEP_NOTHING;
}

static const char *label(const struct sweep *sweep, enum sweep_kind axis, size_t value)
{
    return sweep->kinds[axis].label[value];
}

/* ---- The fastest ----------------------------------------------------------------------------- */

static void put_step(const struct sweep *sweep, const struct sweep_row *row, struct sentence *s)
{
    char a[PAGE_NUMBER_MAX], b[PAGE_NUMBER_MAX];
    double step_s = isnan(row->measured_s) ? row->predicted_s : row->measured_s;
    if (!isnan(step_s))
        fprintf(s->out, ", a step of %s%s", page_seconds(a, step_s),
                isnan(row->measured_s) ? "" : " (measured)");
    if (!isnan(step_s) && row->bound_s > 0)
        fprintf(s->out, ", %s its lower bound", times(b, step_s / row->bound_s));
    fputs(".", s->out);
    if (row->bound_lane >= 0)
        fprintf(s->out, " What binds %s is %s.", sweep->row_count > 1 ? "there" : "it",
                sweep_lane_name[row->bound_lane]);
}

/* What is as good as the fastest and asks for less. */
static void put_modest(const struct sweep *sweep, struct sentence *s)
{
    char name[SWEEP_NAME_MAX], a[PAGE_NUMBER_MAX];
    size_t modest = sweep_modest(sweep);
    if (modest != sweep->best)
        fprintf(s->out, " Within 3 %% of it, and smaller: %s (%s tokens/s).",
                sweep_name(sweep, modest, SWEEP_KIND_COUNT, name),
                page_number(a, sweep->rows[modest].tokens_per_s));
}

static void say_fastest(const struct sweep *sweep, const struct sweep_speaker *speaker)
{
    struct sentence s;
    char name[SWEEP_NAME_MAX], a[PAGE_NUMBER_MAX];
    begin(&s);
    fprintf(s.out, "%s: ", json_get_string(sweep->json, "model", "The model"));
    if (sweep->best == sweep->row_count) {
        fprintf(s.out,
                sweep->row_count == 1 ? "this configuration was refused."
                                      : "all %zu configurations were refused.",
                sweep->row_count);
        end(&s, speaker, SWEEP_HEADLINE, NULL);
        return;
    }
    const struct sweep_row *best = &sweep->rows[sweep->best];
    if (sweep->row_count > 1)
        fprintf(s.out, "the fastest of %zu configurations is %s: ",
                sweep->row_count - sweep->refused_count,
                sweep_name(sweep, sweep->best, SWEEP_KIND_COUNT, name));
    fprintf(s.out, "%s tokens/s", page_number(a, best->tokens_per_s));
    put_step(sweep, best, &s);
    put_modest(sweep, &s);
    end(&s, speaker, SWEEP_HEADLINE, NULL);
}

/* ---- What to buy ----------------------------------------------------------------------------- */

static void put_purchase(const struct sweep *sweep, enum sweep_kind axis, size_t from, size_t to,
                         struct sentence *s)
{
    char a[PAGE_NUMBER_MAX];
    fprintf(s->out, "%s, %s → %s, brings %s the speed", sweep_axis_name(axis),
            label(sweep, axis, sweep->rows[from].value[axis]),
            label(sweep, axis, sweep->rows[to].value[axis]),
            times(a, sweep->rows[to].tokens_per_s / sweep->rows[from].tokens_per_s));
}

/* What the other axes would bring in the place of the first purchase. */
static void put_alternatives(const struct sweep *sweep, const struct sweep_path *path,
                             struct sentence *s)
{
    size_t from = path->from[0];
    for (size_t a = 0; a < sweep->axis_count; a++) {
        enum sweep_kind k = sweep->axes[a];
        size_t knee = sweep_knee(sweep, k, from);
        const struct sweep_row *row = &sweep->rows[from];
        if (k == path->axis[0] || k == SWEEP_BATCH || k == SWEEP_ACCUM)
            continue;
        next(s);
        if (sweep->rows[knee].value[k] > row->value[k] &&
            !is_nothing(sweep->rows[knee].tokens_per_s / row->tokens_per_s))
            put_purchase(sweep, k, from, knee, s);
        else
            fprintf(s->out, "%s alone brings nothing", sweep_axis_name(k));
    }
}

static bool is_for_sale(const struct sweep *sweep)
{
    for (size_t a = 0; a < sweep->axis_count; a++)
        if (sweep->axes[a] != SWEEP_BATCH && sweep->axes[a] != SWEEP_ACCUM)
            return true;
    return false;
}

static void say_purchases(const struct sweep *sweep, const struct sweep_speaker *speaker)
{
    struct sweep_path path;
    struct sentence s;
    char name[SWEEP_NAME_MAX], a[PAGE_NUMBER_MAX];
    if (sweep->best == sweep->row_count || !is_for_sale(sweep))
        return;
    sweep_find_path(sweep, &path);
    begin(&s);
    fprintf(s.out, "from the smallest that works, %s (%s tokens/s), ",
            sweep_name(sweep, path.from[0], SWEEP_KIND_COUNT, name),
            page_number(a, sweep->rows[path.from[0]].tokens_per_s));
    if (!path.count)
        fprintf(s.out, "no single thing that is more brings 3 %% or more: buy nothing.");
    for (size_t i = 0; i < path.count; i++) {
        next(&s);
        fputs(i == 0 ? "" : i == 1 ? "then " : "and then ", s.out);
        put_purchase(sweep, path.axis[i], path.from[i], path.to[i], &s);
        if (i == 0) {
            put_alternatives(sweep, &path, &s);
            fprintf(s.out, ". So first %s", sweep_axis_name(path.axis[0]));
        }
    }
    fputs(path.count ? "." : "", s.out);
    end(&s, speaker, SWEEP_POINT, "What to buy:");
}

/* ---- Axes ------------------------------------------------------------------------------------ */

static void put_fits(const struct sweep_step *step, struct sentence *s)
{
    if (step->newly_fits)
        fprintf(s->out, "%s%zu %sconfiguration%s work%s", step->pair_count ? "; " : "",
                step->newly_fits, step->pair_count ? "more " : "", step->newly_fits == 1 ? "" : "s",
                step->newly_fits == 1 ? "s" : "");
}

static const char *as_fast(char text[PAGE_NUMBER_MAX + 16], double ratio)
{
    char number[PAGE_NUMBER_MAX];
    snprintf(text, PAGE_NUMBER_MAX + 16, is_nothing(ratio) ? "no faster" : "%s as fast",
             times(number, ratio));
    return text;
}

static void put_ratios(const struct sweep *sweep, enum sweep_kind axis,
                       const struct sweep_step *step, struct sentence *s)
{
    char a[PAGE_NUMBER_MAX + 16], b[PAGE_NUMBER_MAX + 16];
    char low[SWEEP_NAME_MAX], high[SWEEP_NAME_MAX];
    bool nothing = is_nothing(step->low) && is_nothing(step->high);
    if (nothing || step->high < step->low * (1 + SWEEP_NOTHING)) {
        fputs(as_fast(a, nothing ? 1 : (step->low + step->high) / 2), s->out);
        return;
    }
    sweep_name(sweep, step->high_row, axis, high);
    sweep_name(sweep, step->low_row, axis, low);
    fprintf(s->out,
            step->pair_count == 2 ? "%s with %s, %s with %s"
                                  : "at best %s (with %s), at worst %s (with %s)",
            as_fast(a, step->high), high, as_fast(b, step->low), low);
}

static bool changes_nothing(const struct sweep_step *step)
{
    return !step->newly_fits &&
           (!step->pair_count || (is_nothing(step->low) && is_nothing(step->high)));
}

/* The first value from which on no step changes anything. */
static size_t find_plateau(const struct sweep *sweep, enum sweep_kind axis)
{
    size_t value = sweep->kinds[axis].value_count - 1;
    struct sweep_step step;
    while (value > 0) {
        sweep_step(sweep, axis, value - 1, value, &step);
        if (!changes_nothing(&step))
            break;
        value--;
    }
    return value;
}

static void put_steps(const struct sweep *sweep, enum sweep_kind axis, size_t plateau,
                      struct sentence *s)
{
    for (size_t v = 0; v < plateau; v++) {
        struct sweep_step step;
        sweep_step(sweep, axis, v, v + 1, &step);
        if (!step.pair_count && !step.newly_fits)
            continue;
        if (s->clauses == CLAUSES_MAX) {
            next_line(s);
            fputs("and so on (see the table)", s->out);
            break;
        }
        next_line(s);
        fprintf(s->out, "%s → %s: ", label(sweep, axis, v), label(sweep, axis, v + 1));
        if (step.pair_count)
            put_ratios(sweep, axis, &step, s);
        put_fits(&step, s);
    }
    if (plateau == 0) {
        next_line(s);
        fprintf(s->out, "no difference between %s and %s", label(sweep, axis, 0),
                label(sweep, axis, sweep->kinds[axis].value_count - 1));
    } else if (plateau + 1 < sweep->kinds[axis].value_count) {
        next_line(s);
        fprintf(s->out, "beyond %s nothing changes", label(sweep, axis, plateau));
    }
}

/* Names have an order, but no amount that could be enough. Of two values the step says it all. */
static void put_knees(const struct sweep *sweep, enum sweep_kind axis, struct sentence *s)
{
    char name[SWEEP_NAME_MAX];
    size_t least = SIZE_MAX, most = SIZE_MAX;
    if (sweep->kinds[axis].value_count < 3 || axis == SWEEP_CPU || axis == SWEEP_GPU ||
        axis == SWEEP_BATCH || axis == SWEEP_ACCUM)
        return;
    for (size_t i = 0; i < sweep->row_count; i++) {
        if (sweep->rows[i].refused)
            continue;
        size_t knee = sweep_knee(sweep, axis, i);
        size_t value = sweep->rows[knee].value[axis];
        if (least == SIZE_MAX || value < sweep->rows[least].value[axis])
            least = knee;
        if (most == SIZE_MAX || value > sweep->rows[most].value[axis])
            most = knee;
    }
    const char *low = label(sweep, axis, sweep->rows[least].value[axis]);
    const char *high = label(sweep, axis, sweep->rows[most].value[axis]);
    if (strcmp(low, high) == 0) {
        next_line(s);
        fprintf(s->out, "within 3 %% of the best: %s", low);
        return;
    }
    next_line(s);
    fprintf(s->out, "within 3 %% of the best: %s with %s", low,
            sweep_name(sweep, least, axis, name));
    fprintf(s->out, ", but %s with %s", high, sweep_name(sweep, most, axis, name));
}

static void say_axis(const struct sweep *sweep, enum sweep_kind axis,
                     const struct sweep_speaker *speaker)
{
    struct sentence s;
    char strong[64];
    size_t plateau = find_plateau(sweep, axis);
    begin(&s);
    put_steps(sweep, axis, plateau, &s);
    put_knees(sweep, axis, &s);
    snprintf(strong, sizeof(strong), "%s:", sweep_axis_name(axis));
    if (strong[0] >= 'a' && strong[0] <= 'z')
        strong[0] = (char)(strong[0] - 'a' + 'A');
    end(&s, speaker, SWEEP_POINT, strong);
}

/* ---- What binds, wears out, was refused, was measured ---------------------------------------- */

static void say_lanes(const struct sweep *sweep, const struct sweep_speaker *speaker)
{
    size_t counts[SWEEP_LANES] = {0}, known = 0;
    struct sentence s;
    for (size_t i = 0; i < sweep->row_count; i++)
        if (!sweep->rows[i].refused && sweep->rows[i].bound_lane >= 0) {
            counts[sweep->rows[i].bound_lane]++;
            known++;
        }
    begin(&s);
    for (size_t told = 0; told < known && sweep->row_count > 1;) {
        size_t most = 0;
        for (size_t l = 1; l < SWEEP_LANES; l++)
            most = counts[l] > counts[most] ? l : most;
        if (!s.clauses && counts[most] == known)
            fprintf(s.out, "%s, everywhere", sweep_lane_name[most]);
        else if (s.clauses == 0)
            fprintf(s.out, "%s in %zu of %zu configurations", sweep_lane_name[most], counts[most],
                    known);
        else
            fprintf(s.out, ", %s in %zu", sweep_lane_name[most], counts[most]);
        s.clauses++;
        told += counts[most];
        counts[most] = 0;
    }
    fputs(s.clauses ? "." : "", s.out);
    end(&s, speaker, SWEEP_POINT, "What binds:");
}

static void say_wear(const struct sweep *sweep, const struct sweep_speaker *speaker)
{
    struct sentence s;
    char name[SWEEP_NAME_MAX];
    size_t count = 0, worst = sweep->row_count;
    for (size_t i = 0; i < sweep->row_count; i++) {
        double days = sweep->rows[i].ssd_days_left;
        count += days < A_YEAR_DAYS;
        if (days < A_YEAR_DAYS &&
            (worst == sweep->row_count || days < sweep->rows[worst].ssd_days_left))
            worst = i;
    }
    if (!count)
        return;
    begin(&s);
    if (sweep->row_count == 1)
        fprintf(s.out, "training without a pause uses up the SSD's rated endurance in %.0f days.",
                sweep->rows[worst].ssd_days_left);
    else
        fprintf(s.out,
                "with %zu of %zu configurations, training without a pause uses up the SSD's rated "
                "endurance in less than a year: in %.0f days with %s.",
                count, sweep->row_count - sweep->refused_count, sweep->rows[worst].ssd_days_left,
                sweep_name(sweep, worst, SWEEP_KIND_COUNT, name));
    if (sweep->best < sweep->row_count && sweep->row_count > 1 &&
        sweep->rows[sweep->best].ssd_days_left < A_YEAR_DAYS && sweep->best != worst)
        fprintf(s.out, " The fastest: in %.0f days.", sweep->rows[sweep->best].ssd_days_left);
    end(&s, speaker, SWEEP_ALARM, "The SSD wears out:");
}

/* Values with which nothing works, told as such: "all with 64 GB RAM". */
static void put_hopeless(const struct sweep *sweep, struct sentence *s)
{
    size_t told = 0;
    for (size_t a = 0; a < sweep->axis_count; a++) {
        const struct sweep_axis *axis = &sweep->kinds[sweep->axes[a]];
        for (size_t v = 0; v < axis->value_count && told < REFUSED_AXES_MAX; v++) {
            bool works = false;
            for (size_t i = 0; i < sweep->row_count; i++)
                works |= sweep->rows[i].value[axis->kind] == v && !sweep->rows[i].refused;
            if (!works)
                fprintf(s->out, "%s%s%s", told++ ? " and all with " : ", among them all with ",
                        axis->label[v], axis->kind == SWEEP_RAM ? " RAM" : "");
        }
    }
}

static void say_refused(const struct sweep *sweep, const struct sweep_speaker *speaker)
{
    struct sentence s;
    if (!sweep->refused_count)
        return;
    size_t first = 0;
    while (!sweep->rows[first].refused)
        first++;
    const char *reason = sweep->rows[first].refused;
    begin(&s);
    if (sweep->row_count > 1) {
        fprintf(s.out, "%zu of %zu configurations", sweep->refused_count, sweep->row_count);
        if (sweep->best < sweep->row_count)
            put_hopeless(sweep, &s);
        fprintf(s.out, ". %s: ", sweep->refused_count > 1 ? "The first" : "Why");
    }
    fprintf(s.out, "%.*s%s", REASON_MAX, reason, strlen(reason) > REASON_MAX ? " …" : "");
    end(&s, speaker, SWEEP_POINT, "Refused:");
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void say_measured(const struct sweep *sweep, const struct sweep_speaker *speaker)
{
    double *ratios = mem_alloc(sweep->row_count, sizeof(*ratios));
    size_t count = 0;
    char a[PAGE_NUMBER_MAX], b[PAGE_NUMBER_MAX], c[PAGE_NUMBER_MAX];
    struct sentence s;
    for (size_t i = 0; i < sweep->row_count; i++) {
        const struct sweep_row *row = &sweep->rows[i];
        if (!row->refused && row->measured_s > 0 && row->predicted_s > 0)
            ratios[count++] = row->measured_s / row->predicted_s;
    }
    if (!count) {
        mem_free(ratios);
        return;
    }
    qsort(ratios, count, sizeof(*ratios), compare_doubles);
    begin(&s);
    fprintf(s.out, "of %zu configuration%s that %s measured, a step took %s what was predicted",
            count, count == 1 ? "" : "s", count == 1 ? "was" : "were", times(a, ratios[count / 2]));
    if (count > 2)
        fprintf(s.out, " in the middle, %s to %s in all", times(b, ratios[0]),
                times(c, ratios[count - 1]));
    fputs(".", s.out);
    end(&s, speaker, SWEEP_POINT, "Is the prediction right?");
    mem_free(ratios);
}

void sweep_speak(const struct sweep *sweep, const struct sweep_speaker *speaker)
{
    say_fastest(sweep, speaker);
    say_wear(sweep, speaker);
    say_purchases(sweep, speaker);
    for (size_t a = 0; a < sweep->axis_count && sweep->best < sweep->row_count; a++)
        say_axis(sweep, sweep->axes[a], speaker);
    say_lanes(sweep, speaker);
    say_refused(sweep, speaker);
    say_measured(sweep, speaker);
}
