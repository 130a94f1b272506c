#include "tools/page.h"

#include "core/base.h"
#include "core/log.h"
#include "io/file.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ---- The style -------------------------------------------------------------------------------
 * The colours of lines differ in lightness too, for eyes that do not tell red from green.
 */
static const char style[] =
    ":root{color-scheme:light dark;--bg:#fbfbf9;--panel:#fff;--ink:#1b1f23;--soft:#5a636c;"
    "--line:#dde1e4;--grid:#dfe3e6;--track:#edeff1;--warn:#7a4d00;--warn-bg:#fff3d9;"
    "--c0:#1f6fb5;--c1:#d4601a;--c2:#2f8f5b;--c3:#8250c4;--c4:#c2334d;--c5:#12879a;--c6:#94700f;"
    "--c7:#6b7280}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#14171a;--panel:#1c2024;--ink:#e8eaec;"
    "--soft:#9aa4ad;--line:#30363c;--grid:#333a41;--track:#2a3036;--warn:#f3c469;"
    "--warn-bg:#35290f;--c0:#66aef0;--c1:#f28f50;--c2:#5cc48c;--c3:#b592f0;--c4:#f07a8e;"
    "--c5:#4fc3d4;--c6:#d4ae4a;--c7:#a3abb5}}\n"
    "*{box-sizing:border-box}html{-webkit-text-size-adjust:100%}\n"
    "body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"
    "\"Segoe UI\",Roboto,\"Helvetica Neue\",Arial,sans-serif;overflow-wrap:anywhere}\n"
    "main{max-width:1080px;margin:0 auto;padding:2.5rem 1.25rem 4rem}\n"
    "h1{font-size:1.75rem;line-height:1.2;margin:0;letter-spacing:-.015em}\n"
    "h2{font-size:1.2rem;line-height:1.3;margin:0 0 1rem;letter-spacing:-.01em}\n"
    "section{margin-top:3rem}p{margin:.75rem 0;max-width:46rem}\n"
    ".subtitle,.note,figcaption,.card small,.card span{color:var(--soft)}\n"
    ".subtitle{margin:.4rem 0 0}.note{font-size:.9rem}\n"
    ".verdict{font-size:1.2rem;line-height:1.55;margin:1.5rem 0}\n"
    ".warning{background:var(--warn-bg);color:var(--warn);border-radius:.5rem;"
    "padding:.6rem .9rem}\n"
    "ul.points{padding-left:1.2rem;max-width:48rem;margin:1rem 0}ul.points li{margin:.6rem "
    "0;white-space:pre-line}\n"
    ".cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.2rem,1fr));gap:.75rem;"
    "margin:1.5rem 0}\n"
    ".card{background:var(--panel);border:1px solid var(--line);border-radius:.6rem;"
    "padding:.7rem .9rem}\n"
    ".card span,.card small{display:block;font-size:.82rem;line-height:1.4}\n"
    ".card b{display:block;font-size:1.35rem;line-height:1.35;font-weight:600;"
    "font-variant-numeric:tabular-nums;white-space:nowrap}\n"
    ".scroll{overflow-x:auto;border:1px solid var(--line);border-radius:.6rem;"
    "background:var(--panel);margin:1rem 0}\n"
    "table{border-collapse:collapse;width:100%;font-size:.88rem;line-height:1.4;"
    "font-variant-numeric:tabular-nums}\n"
    "th,td{padding:.45rem .75rem;text-align:left;vertical-align:top;overflow-wrap:normal;"
    "border-bottom:1px solid var(--line)}tbody tr:last-child td{border-bottom:0}\n"
    "th{font-weight:600;color:var(--soft);vertical-align:bottom;line-height:1.25}\n"
    ".number{text-align:right;white-space:nowrap}th.number{white-space:normal;min-width:4.5rem}\n"
    "td.name{min-width:8.5rem;max-width:20rem;overflow-wrap:anywhere}\n"
    "td.prose{min-width:17rem;max-width:34rem;overflow-wrap:anywhere}\n"
    "tr.refused td{color:var(--soft)}tr.best td{font-weight:600}\n"
    "td.heat{text-align:right;white-space:nowrap;border-left:.25rem solid var(--lane);"
    "background:color-mix(in srgb,var(--lane) 16%,transparent)}\n"
    "td.heat small{display:block;color:var(--soft)}\n"
    ".figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));"
    "gap:1.5rem;margin:1rem 0}\n"
    "figure{margin:0;background:var(--panel);border:1px solid var(--line);border-radius:.6rem;"
    "padding:.9rem .9rem .7rem;min-width:0}\n"
    "figure h3{margin:0 0 .4rem;font-size:1rem;line-height:1.3}figcaption{font-size:.85rem;"
    "line-height:1.45}\n"
    "svg.plot{display:block;width:100%;height:auto;font-family:inherit}\n"
    ".legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;padding:0;margin:.5rem 0;"
    "font-size:.88rem;line-height:1.4}\n"
    ".legend i{display:inline-block;width:.75rem;height:.75rem;border-radius:.2rem;"
    "margin-right:.45rem;vertical-align:-.06rem}\n"
    ".bars{display:grid;grid-template-columns:max-content minmax(4rem,1fr) max-content;"
    "gap:.55rem .9rem;align-items:center;font-size:.92rem;line-height:1.35;"
    "font-variant-numeric:tabular-nums;margin:1rem 0;max-width:54rem}\n"
    ".track{position:relative;height:.9rem;border-radius:.25rem;background:var(--track)}\n"
    ".fill{height:100%;border-radius:.25rem;min-width:1px}\n"
    ".mark{position:absolute;top:-.2rem;bottom:-.2rem;width:2px;background:var(--ink)}\n"
    ".bar{display:contents}\n"
    "@media(max-width:600px){main{padding:1.5rem 1rem 3rem}.verdict{font-size:1.08rem}"
    ".bars{display:block}.bar{display:grid;grid-template:\"n v\" \"t t\"/1fr max-content;"
    "gap:.2rem .9rem;margin-bottom:.8rem}.bar>.name{grid-area:n}.bar>.value{grid-area:v}"
    ".bar>.track{grid-area:t}.lanes{gap:.4rem .6rem;font-size:.8rem}}\n"
    ".lanes{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.5rem .9rem;"
    "align-items:center;font-size:.88rem}\n"
    ".lanes svg{display:block;width:100%;height:1.9rem;background:var(--track);"
    "border-radius:.25rem}\n"
    ".lanes .axis{display:flex;justify-content:space-between;color:var(--soft);font-size:.82rem}\n"
    "details{margin:1rem 0}summary{cursor:pointer;color:var(--soft)}\n"
    "pre{font-size:.82rem;line-height:1.45;overflow-x:auto;background:var(--panel);"
    "border:1px solid var(--line);border-radius:.6rem;padding:.8rem;overflow-wrap:normal}\n"
    "@media print{:root{--bg:#fff}main{max-width:none;padding:0}figure,.card,tr,.bars{"
    "break-inside:avoid}h2{break-after:avoid}.scroll{overflow:visible}"
    "*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}\n";

/* ---- Text ------------------------------------------------------------------------------------ */

void page_escape(FILE *out, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            /* HTML knows no control characters but white space. */
            fputc((unsigned char)*text < ' ' && *text != '\n' && *text != '\t' ? '?' : *text, out);
        }
    }
}

void page_html(struct page *page, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(page->out, format, arguments);
    va_end(arguments);
}

static void element(struct page *page, const char *open, const char *text, const char *close)
{
    fputs(open, page->out);
    page_escape(page->out, text);
    fputs(close, page->out);
}

void page_init(struct page *page, const char *title, const char *subtitle)
{
    *page = (struct page){0};
    page->out = open_memstream(&page->text, &page->bytes);
    ASSERT(page->out);
    fputs("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n",
          page->out);
    element(page, "<title>", title, "</title>\n<style>\n");
    fputs(style, page->out);
    element(page, "</style>\n</head>\n<body>\n<main>\n<h1>", title, "</h1>\n");
    if (subtitle)
        element(page, "<p class=\"subtitle\">", subtitle, "</p>\n");
}

int page_save(struct page *page, const char *path, struct err *err)
{
    fputs(page->in_section ? "</section>\n" : "", page->out);
    fputs("</main>\n</body>\n</html>\n", page->out);
    bool failed = ferror(page->out);
    ASSERT(fclose(page->out) == 0 && !failed);
    page->out = NULL;
    return file_replace(path, page->text, page->bytes, err);
}

void page_deinit(struct page *page)
{
    if (page->out)
        fclose(page->out);
    free(page->text); /* open_memstream's */
    *page = (struct page){0};
}

void page_section(struct page *page, const char *title)
{
    fputs(page->in_section ? "</section>\n" : "", page->out);
    page->in_section = true;
    element(page, "<section>\n<h2>", title, "</h2>\n");
}

void page_paragraph(struct page *page, enum page_tone tone, const char *text)
{
    static const char *const opens[] = {
        [PAGE_PLAIN] = "<p>",
        [PAGE_VERDICT] = "<p class=\"verdict\">",
        [PAGE_NOTE] = "<p class=\"note\">",
        [PAGE_WARNING] = "<p class=\"warning\">",
    };
    element(page, opens[tone], text, "</p>\n");
}

void page_list_begin(struct page *page)
{
    fputs("<ul class=\"points\">\n", page->out);
}

void page_item(struct page *page, const char *strong, const char *text)
{
    fputs("<li>", page->out);
    if (strong)
        element(page, "<b>", strong, "</b> ");
    element(page, "", text, "</li>\n");
}

void page_list_end(struct page *page)
{
    fputs("</ul>\n", page->out);
}

/* ---- Cards, tables, bars, figures ------------------------------------------------------------ */

void page_cards_begin(struct page *page)
{
    fputs("<div class=\"cards\">\n", page->out);
}

void page_card(struct page *page, const char *name, const char *value, const char *note)
{
    element(page, "<div class=\"card\"><span>", name, "</span>");
    element(page, "<b>", value, "</b>");
    if (note)
        element(page, "<small>", note, "</small>");
    fputs("</div>\n", page->out);
}

void page_cards_end(struct page *page)
{
    fputs("</div>\n", page->out);
}

static const char *const column_class[] = {
    [PAGE_NUMBER] = "number", [PAGE_NAME] = "name", [PAGE_PROSE] = "prose"};

void page_table_begin(struct page *page, const struct page_column *columns, size_t count)
{
    fputs("<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr>", page->out);
    for (size_t i = 0; i < count; i++) {
        page_html(page, "<th class=\"%s\">", column_class[columns[i].kind]);
        element(page, "", columns[i].name, "</th>");
    }
    /* A row's end tag may be left out in HTML; so page_row needs no memory of the row before. */
    fputs("</tr></thead>\n<tbody>\n", page->out);
}

void page_row(struct page *page, const char *row_class)
{
    page_html(page, row_class ? "<tr class=\"%s\">" : "<tr>", row_class);
}

void page_cell(struct page *page, const struct page_column *column, const char *text)
{
    page_html(page, "<td class=\"%s\">", column_class[column->kind]);
    element(page, "", text, "</td>");
}

void page_cell_wide(struct page *page, size_t columns, const char *text)
{
    page_html(page, "<td class=\"prose\" colspan=\"%zu\">", columns);
    element(page, "", text, "</td>");
}

void page_table_end(struct page *page)
{
    fputs("</tbody></table></div>\n", page->out);
}

void page_bars_begin(struct page *page)
{
    fputs("<div class=\"bars\">\n", page->out);
}

void page_bar(struct page *page, const char *name, double fraction, double mark, unsigned colour,
              const char *value)
{
    element(page, "<div class=\"bar\"><span class=\"name\">", name, "</span>");
    page_html(page,
              "<div class=\"track\"><div class=\"fill\" style=\"width:%.2f%%;"
              "background:var(--c%u)\"></div>",
              100 * fmin(fmax(fraction, 0), 1), colour);
    if (mark >= 0)
        page_html(page, "<div class=\"mark\" style=\"left:%.2f%%\"></div>", 100 * fmin(mark, 1));
    element(page, "</div><span class=\"value\">", value, "</span></div>\n");
}

void page_bars_end(struct page *page)
{
    fputs("</div>\n", page->out);
}

void page_figures_begin(struct page *page)
{
    fputs("<div class=\"figures\">\n", page->out);
}

void page_figure(struct page *page, const struct page_figure *figure)
{
    element(page, "<figure><h3>", figure->title, "</h3>\n");
    fputs(figure->svg, page->out);
    if (figure->legend)
        page_legend(page, figure->legend, figure->legend_count);
    if (figure->caption)
        element(page, "<figcaption>", figure->caption, "</figcaption>");
    fputs("</figure>\n", page->out);
}

void page_figures_end(struct page *page)
{
    fputs("</div>\n", page->out);
}

void page_legend(struct page *page, const char *const *names, size_t count)
{
    fputs("<ul class=\"legend\">\n", page->out);
    for (size_t i = 0; i < count; i++) {
        page_html(page, "<li><i style=\"background:var(--c%zu)\"></i>", i);
        element(page, "", names[i], "</li>\n");
    }
    fputs("</ul>\n", page->out);
}

void page_details_begin(struct page *page, const char *summary)
{
    element(page, "<details><summary>", summary, "</summary>\n");
}

void page_details_end(struct page *page)
{
    fputs("</details>\n", page->out);
}

void page_csv_field(FILE *out, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (; *text; text++) {
        fputs(*text == '"' ? "\"" : "", out);
        fputc(*text, out);
    }
    fputc('"', out);
}

/* ---- Numbers --------------------------------------------------------------------------------- */

const char *page_count(char text[PAGE_NUMBER_MAX], uint64_t value)
{
    char digits[32];
    size_t length = (size_t)snprintf(digits, sizeof(digits), "%llu", (unsigned long long)value);
    size_t used = 0;
    for (size_t i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = '\0';
    return text;
}

const char *page_number(char text[PAGE_NUMBER_MAX], double value)
{
    double size = fabs(value);
    if (!isfinite(value))
        snprintf(text, PAGE_NUMBER_MAX, "–");
    else if (value >= 99.95 && value < 1e18)
        page_count(text, (uint64_t)llround(value));
    else
        snprintf(text, PAGE_NUMBER_MAX, "%.*f",
                 size >= 9.995                 ? 1
                 : size >= 0.9995 || size == 0 ? 2
                 : size >= 0.0995              ? 3
                                               : 4,
                 value);
    return text;
}

const char *page_seconds(char text[PAGE_NUMBER_MAX], double seconds)
{
    if (!isfinite(seconds))
        snprintf(text, PAGE_NUMBER_MAX, "–");
    else if (seconds < 0.9995e-3)
        snprintf(text, PAGE_NUMBER_MAX, "%.0f µs", seconds * 1e6);
    else if (seconds < 0.9995)
        snprintf(text, PAGE_NUMBER_MAX, seconds < 9.95e-3 ? "%.1f ms" : "%.0f ms", seconds * 1e3);
    else if (seconds < 99.95)
        snprintf(text, PAGE_NUMBER_MAX, seconds < 9.95 ? "%.2f s" : "%.1f s", seconds);
    else {
        char duration[LOG_BYTES_MAX];
        snprintf(text, PAGE_NUMBER_MAX, "%s", log_duration(duration, seconds));
    }
    return text;
}

static const char *scaled(char text[PAGE_NUMBER_MAX], double bytes, double step)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB", "PB"};
    size_t unit = 0;
    if (!isfinite(bytes)) {
        snprintf(text, PAGE_NUMBER_MAX, "–");
        return text;
    }
    for (; bytes >= step * 0.9995 && unit + 1 < ARRAY_COUNT(units); unit++)
        bytes /= step;
    bool whole = unit == 0 || bytes >= 99.95 || fabs(bytes - round(bytes)) < 0.005;
    snprintf(text, PAGE_NUMBER_MAX, "%.*f %s",
             whole           ? 0
             : bytes < 9.995 ? 2
                             : 1,
             bytes, units[unit]);
    return text;
}

const char *page_memory(char text[PAGE_NUMBER_MAX], double bytes)
{
    return scaled(text, bytes, 1024);
}

const char *page_bytes(char text[PAGE_NUMBER_MAX], double bytes)
{
    return scaled(text, bytes, 1000);
}
