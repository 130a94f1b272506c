/*
 * wiki_dump: a MediaWiki dump of made-up articles whose prose is known.
 *
 * Built as a real one is: siteinfo, pages of several namespaces, redirects; articles of about 3 KB
 * with infoboxes, nested templates, references, tables, files with linked captions, galleries,
 * lists, headings, comments, formulas, entities and links of all kinds. The same for the same seed.
 * For the tests and for benchmarks/bench_wiki.c.
 */
#ifndef SPILLWAY_TESTS_SHARED_WIKI_DUMP_H
#define SPILLWAY_TESTS_SHARED_WIKI_DUMP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIKI_DUMP_PAGE_MAX (128u << 10)

struct wiki_dump_page {
    char xml[WIKI_DUMP_PAGE_MAX]; /* "<page>" to "</page>" and a newline */
    size_t xml_bytes;
    char truth[WIKI_DUMP_PAGE_MAX]; /* the document: title, blank line, prose; "" when it is none */
    size_t truth_bytes;
};

/* Page number `index`: five of six are articles. */
void wiki_dump_page(struct wiki_dump_page *page, uint64_t seed, uint64_t index);

/* What stands before the first page and after the last one. */
extern const char wiki_dump_head[], wiki_dump_tail[];

#endif
