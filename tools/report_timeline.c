#include "tools/report_timeline.h"

#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/trace.h"
#include "io/file.h"
#include "offload/timeline.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define UNITS_WIDE 1000.0 /* a step */
#define UNITS_HIGH 30.0   /* a lane */

/* Bars of at most TICKS + 1 labels below them. */
#define TICKS 4

enum phase { PHASE_FORWARDS, PHASE_BACKWARDS, PHASE_UPDATES, PHASE_OTHERS, PHASES };
static const char *const phase_name[PHASES] = {
    "forward, and what is moved for it", "backward, and what is moved for it",
    "the optimizer's updates", "commits, checksums, norms"};

struct event {
    const char *name;  /* borrowed from the JSON */
    double start, end; /* microseconds */
    double bytes;
    uint32_t tid;
    enum phase phase;
};

struct timeline_view {
    struct event *events; /* owned; by row, then by start */
    size_t event_count;
    double start, end;
    const char *lane_name[TRACE_LANES_MAX]; /* borrowed; NULL: no such lane */
    uint32_t row_count[TRACE_LANES_MAX];    /* with events */
};

static bool says(const struct event *event, const char *word)
{
    return strstr(event->name, word) != NULL;
}

/* The head at once is mostly that. */
static bool says_backward(const struct event *event)
{
    return says(event, "backward") || says(event, "head_once");
}

/* By the op's name (plan_op_name). A transfer belongs to the pass that it starts in. */
static enum phase find_phase(const struct event *event, double backward_start)
{
    static const char *const updates[] = {"update", "join"};
    static const char *const others[] = {"commit", "verify", "sum", "clip", "check"};
    for (size_t i = 0; i < ARRAY_COUNT(updates); i++)
        if (says(event, updates[i]))
            return PHASE_UPDATES;
    for (size_t i = 0; i < ARRAY_COUNT(others); i++)
        if (says(event, others[i]))
            return PHASE_OTHERS;
    if (says_backward(event) || says(event, "recompute") || says(event, "gradient"))
        return PHASE_BACKWARDS;
    if (says(event, "forward") || says(event, "head_loss"))
        return PHASE_FORWARDS;
    return event->start < backward_start ? PHASE_FORWARDS : PHASE_BACKWARDS;
}

static int compare_events(const void *a, const void *b)
{
    const struct event *x = a, *y = b;
    if (x->tid != y->tid)
        return x->tid < y->tid ? -1 : 1;
    return (x->start > y->start) - (x->start < y->start);
}

static void add_event(struct timeline_view *view, const struct json_value *json)
{
    const char *kind = json_get_string(json, "ph", "");
    const char *name = json_get_string(json, "name", "");
    int64_t tid = json_get_int(json, "tid", -1);
    if (tid < 0 || tid >= TRACE_LANES_MAX * TRACE_ROWS_MAX)
        return;
    uint32_t lane = (uint32_t)tid / TRACE_ROWS_MAX;
    if (strcmp(kind, "M") == 0 && strcmp(name, "thread_name") == 0)
        view->lane_name[lane] = json_get_string(json_get(json, "args"), "name", "?");
    double start = json_get_number(json, "ts", NAN), took = json_get_number(json, "dur", NAN);
    if (strcmp(kind, "X") != 0 || !isfinite(start) || !(took >= 0))
        return;
    view->events[view->event_count++] = (struct event){
        .name = name,
        .start = start,
        .end = start + took,
        .bytes = json_get_number(json_get(json, "args"), "bytes", 0),
        .tid = (uint32_t)tid,
    };
    view->row_count[lane] = MAX(view->row_count[lane], (uint32_t)tid % TRACE_ROWS_MAX + 1);
    view->start = fmin(view->start, start);
    view->end = fmax(view->end, start + took);
}

static void read_view(struct timeline_view *view, const struct json_value *root)
{
    *view = (struct timeline_view){.start = INFINITY, .end = -INFINITY};
    view->events = mem_alloc(json_length(root) + 1, sizeof(*view->events));
    for (size_t i = 0; i < json_length(root); i++)
        if (json_at(root, i))
            add_event(view, json_at(root, i));
    double backward_start = INFINITY;
    for (size_t i = 0; i < view->event_count; i++)
        if (says(&view->events[i], "backward"))
            backward_start = fmin(backward_start, view->events[i].start);
    for (size_t i = 0; i < view->event_count; i++)
        view->events[i].phase = find_phase(&view->events[i], backward_start);
    qsort(view->events, view->event_count, sizeof(*view->events), compare_events);
}

/* Bars that were merged. */
struct bar {
    const struct event *first;
    size_t count;
    double end, bytes;
};

static void put_bar(struct page *page, const struct timeline_view *view, const struct bar *bar)
{
    char took[PAGE_NUMBER_MAX], bytes[PAGE_NUMBER_MAX];
    uint32_t lane = bar->first->tid / TRACE_ROWS_MAX, row = bar->first->tid % TRACE_ROWS_MAX;
    double scale = UNITS_WIDE / fmax(view->end - view->start, 1e-9);
    double height = UNITS_HIGH / view->row_count[lane];
    page_html(page,
              "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"var(--c%d)\">",
              (bar->first->start - view->start) * scale, height * row,
              fmax((bar->end - bar->first->start) * scale, 0.4), height, (int)bar->first->phase);
    page_html(page, "<title>");
    page_escape(page->out, bar->first->name);
    if (bar->count > 1)
        page_html(page, " and %zu more", bar->count - 1);
    page_html(page, ": %s", page_seconds(took, (bar->end - bar->first->start) * 1e-6));
    if (bar->bytes > 0)
        page_html(page, ", %s", page_bytes(bytes, bar->bytes));
    page_html(page, "</title></rect>");
}

static void put_lane(struct page *page, const struct timeline_view *view, uint32_t lane)
{
    double near = (view->end - view->start) / UNITS_WIDE;
    struct bar bar = {0};
    page_html(page, "<span>");
    page_escape(page->out, view->lane_name[lane] ? view->lane_name[lane] : "?");
    page_html(page,
              "</span><svg viewBox=\"0 0 %.0f %.0f\" preserveAspectRatio=\"none\" role=\"img\" "
              "aria-label=\"what this lane did\">",
              UNITS_WIDE, UNITS_HIGH);
    for (size_t i = 0; i < view->event_count; i++) {
        const struct event *event = &view->events[i];
        if (event->tid / TRACE_ROWS_MAX != lane)
            continue;
        if (bar.count && bar.first->tid == event->tid && bar.first->phase == event->phase &&
            event->start - bar.end < near && (event->end - event->start < near || bar.count > 1) &&
            bar.end - bar.first->start < 4 * near) {
            bar.end = fmax(bar.end, event->end);
            bar.bytes += event->bytes;
            bar.count++;
            continue;
        }
        if (bar.count)
            put_bar(page, view, &bar);
        bar = (struct bar){event, 1, event->end, event->bytes};
    }
    if (bar.count)
        put_bar(page, view, &bar);
    page_html(page, "</svg>\n");
}

static void put_axis(struct page *page, const struct timeline_view *view)
{
    page_html(page, "<span></span><div class=\"axis\">");
    for (int t = 0; t <= TICKS; t++) {
        char text[PAGE_NUMBER_MAX];
        double seconds = (view->end - view->start) * 1e-6 * t / TICKS;
        page_html(page, "<span>%s</span>", t ? page_seconds(text, seconds) : "0");
    }
    page_html(page, "</div>\n");
}

static void put_view(struct page *page, const struct timeline_view *view)
{
    page_legend(page, phase_name, PHASES);
    page_html(page, "<div class=\"lanes\">\n");
    for (uint32_t lane = 0; lane < TRACE_LANES_MAX; lane++)
        if (view->lane_name[lane] && view->row_count[lane])
            put_lane(page, view, lane);
    put_axis(page, view);
    page_html(page, "</div>\n");
    page_paragraph(page, PAGE_NOTE,
                   "One steady step, the third of the last call of train; what a lane does at once "
                   "lies below each other. A lane that is missing did nothing. For every op, open "
                   "timeline.json in https://ui.perfetto.dev.");
}

void report_put_timeline(struct page *page, const char *run_dir)
{
    char path[FILE_PATH_MAX];
    struct err err;
    page_section(page, "One step");
    if (file_join(path, run_dir, TIMELINE_FILE, &err) || !file_exists(path)) {
        page_paragraph(page, PAGE_PLAIN,
                       "There is no timeline: this run has no " TIMELINE_FILE
                       ". train writes it in "
                       "the third step of a call.");
        return;
    }
    struct json_value *root = json_load(path, &err);
    if (!root) {
        page_paragraph(page, PAGE_WARNING, err.message);
        return;
    }
    struct timeline_view view;
    read_view(&view, root);
    if (view.event_count)
        put_view(page, &view);
    else
        page_paragraph(page, PAGE_PLAIN, TIMELINE_FILE " tells of no op, so there is no timeline.");
    mem_free(view.events);
    json_free(root);
}
