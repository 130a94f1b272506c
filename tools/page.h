/*
 * page: one HTML file for a person: its style and its pictures are inside, nothing is fetched and
 * no script runs. Reads well on a phone and on paper, in light and in dark.
 *
 * The text is built in memory and written whole by page_save (path.tmp, then renamed). All text
 * given to these functions is plain UTF-8 and is escaped; only page_html and page_figure take
 * markup. Called by tools/report.c and tools/sweep_page.c.
 */
#ifndef SPILLWAY_TOOLS_PAGE_H
#define SPILLWAY_TOOLS_PAGE_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct page {
    FILE *out; /* owned */
    char *text;
    size_t bytes;
    bool in_section;
};

/* The head, and a heading with a line below it (or NULL). */
void page_init(struct page *page, const char *title, const char *subtitle);
/* Ends the text and writes it; the page is then only good for page_deinit. */
int page_save(struct page *page, const char *path, struct err *err);
void page_deinit(struct page *page); /* zeroed is legal */

/* Ends the section before it. */
void page_section(struct page *page, const char *title);

enum page_tone { PAGE_PLAIN, PAGE_VERDICT, PAGE_NOTE, PAGE_WARNING };
void page_paragraph(struct page *page, enum page_tone tone, const char *text);
void page_list_begin(struct page *page);
void page_item(struct page *page, const char *strong, const char *text); /* strong: or NULL */
void page_list_end(struct page *page);

/* Key figures, side by side: note may be NULL. */
void page_cards_begin(struct page *page);
void page_card(struct page *page, const char *name, const char *value, const char *note);
void page_cards_end(struct page *page);

enum page_column_kind { PAGE_NUMBER, PAGE_NAME, PAGE_PROSE };
struct page_column {
    const char *name;
    enum page_column_kind kind;
};
/* A table scrolls sideways in a box of its own. Each row has as many cells as there are columns,
 * but for page_cell_wide, which fills the rest of the row. */
void page_table_begin(struct page *page, const struct page_column *columns, size_t count);
void page_row(struct page *page, const char *row_class); /* ends the row before; NULL: plain */
void page_cell(struct page *page, const struct page_column *column, const char *text);
void page_cell_wide(struct page *page, size_t columns, const char *text);
void page_table_end(struct page *page);

/* A bar of fraction 0 to 1 (more is cut) between its name and its value. mark: where a line crosses
 * it, or below 0. */
void page_bars_begin(struct page *page);
void page_bar(struct page *page, const char *name, double fraction, double mark, unsigned colour,
              const char *value);
void page_bars_end(struct page *page);

/* Figures stand side by side where there is room. */
struct page_figure {
    const char *title, *svg;
    const char *caption;       /* or NULL */
    const char *const *legend; /* what --c0, --c1 ... stand for; or NULL */
    size_t legend_count;
};
void page_figures_begin(struct page *page);
void page_figure(struct page *page, const struct page_figure *figure);
void page_figures_end(struct page *page);
/* What --c0, --c1 ... stand for. */
void page_legend(struct page *page, const char *const *names, size_t count);

void page_details_begin(struct page *page, const char *summary);
void page_details_end(struct page *page);

void page_html(struct page *page, const char *format, ...) __attribute__((format(printf, 2, 3)));
void page_escape(FILE *out, const char *text);

/* A field of a CSV file, in quotes where it needs them. */
void page_csv_field(FILE *out, const char *text);

/* Numbers for a person, into text; returns text. */
#define PAGE_NUMBER_MAX 48
const char *page_count(char text[PAGE_NUMBER_MAX], uint64_t value);   /* 1,234,567 */
const char *page_number(char text[PAGE_NUMBER_MAX], double value);    /* 1,234  12.3  0.0123 */
const char *page_seconds(char text[PAGE_NUMBER_MAX], double seconds); /* 41 ms  2.3 s  4m05s */
/* Of memory, as it is sold: 128 GB is 128 x 2^30. */
const char *page_memory(char text[PAGE_NUMBER_MAX], double bytes);
/* Of traffic and drives: 10^9 bytes are a GB. */
const char *page_bytes(char text[PAGE_NUMBER_MAX], double bytes);

#endif
