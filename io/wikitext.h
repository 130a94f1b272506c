/*
 * wikitext: the text of a wiki page -> prose.
 *
 * What goes: templates, tables, references, files and categories, comments, mathematics, galleries,
 * markup, links to other languages, headings of sections that have nothing left. What stays: the
 * text of paragraphs, list items (one a line), headings and links, what entities stand for, and the
 * text of the few templates that are nothing but text ({{lang|fr|bonjour}}, {{convert|5|km}}).
 * Paragraphs are parted by one blank line; runs of spaces are one; the holes that removals leave
 * ("( )", " .") are closed. It is not MediaWiki's parser: templates are not expanded.
 *
 * One pass and an explicit stack of what is open, of bounded depth: time is linear in the text
 * whatever is in it. What is open at the end was no markup, or too broken to know; its text is kept
 * without the brackets, and counted. Bytes that are no UTF-8 are kept. Pure; any thread. Called by
 * io/wiki.c, which decodes XML's own entities before.
 */
#ifndef SPILLWAY_IO_WIKITEXT_H
#define SPILLWAY_IO_WIKITEXT_H

#include <stddef.h>
#include <stdint.h>

#define WIKITEXT_NAMES_MAX  64
#define WIKITEXT_NAME_BYTES 64

/* Namespaces of which links are left out: files and categories, in the wiki's language. */
struct wikitext_names {
    char names[WIKITEXT_NAMES_MAX][WIKITEXT_NAME_BYTES];
    uint32_t count;
};
/* Those of English and some other languages. */
void wikitext_names_init(struct wikitext_names *names);
/* One more; what is too long or too many is left out. */
void wikitext_names_add(struct wikitext_names *names, const char *name, size_t bytes);

/* text is overwritten. prose has room for as many bytes as text, and is somewhere else. Returns the
 * bytes of prose; *broken: constructs that were not closed, or closed and not open. */
size_t wikitext_prose(const struct wikitext_names *names, char *text, size_t bytes, char *prose,
                      uint32_t *broken);

/* The UTF-8 of an entity at text ("&eacute;", "&#233;", "&#xe9;") into utf8, and its bytes;
 * *used: of the entity, 0 when it is none. */
#define WIKITEXT_UTF8_MAX 4
size_t wikitext_entity(const char *text, size_t bytes, char utf8[WIKITEXT_UTF8_MAX], size_t *used);

#endif
