/*
 * prose: what is known in the middle of a wiki page: the output so far and what is open. Shared by
 * io/wikitext.c (lines, the pass), io/prose_links.c (templates and links) and io/prose_tags.c, and
 * by nobody else.
 *
 * Invariants:
 * 1. What is written is never more than what was read, so prose fits: used <= at.
 * 2. The output of what is open begins at its entry's out; nothing before the out of the top entry
 *    is changed before that one is closed, and nothing before its last argument (prose_floor).
 * 3. Every search forward (for the end of a comment, a tag, an element) either moves `at` to what
 *    it found or remembers that there is none, so that no byte is searched again and again. What
 *    moves output on closing is bounded: links nest LINKS_MAX deep, kept arguments are short.
 */
#ifndef SPILLWAY_IO_PROSE_H
#define SPILLWAY_IO_PROSE_H

#include "io/wikitext.h"
#include <stdbool.h>

#define PROSE_DEPTH_MAX 1024 /* of what is open; more is left unpaired and counted */
#define PROSE_LINKS_MAX 16   /* links within (the captions of) links */
#define PROSE_PIPES_MAX 3

enum open_kind { OPEN_TEMPLATE, OPEN_TABLE, OPEN_HTML_TABLE, OPEN_LINK, OPEN_EXTERNAL, OPEN_COUNT };

struct open {
    enum open_kind kind;
    uint32_t braces; /* of a template, not yet closed */
    uint32_t pipe_count;
    bool line_begin;               /* it began a line */
    size_t out;                    /* invariant 2 */
    size_t line;                   /* prose.line before it */
    size_t pipes[PROSE_PIPES_MAX]; /* in the output: where its arguments begin */
};

struct prose {
    const struct wikitext_names *names;
    char *in;
    size_t bytes, at;
    char *out;
    size_t used;
    size_t line;       /* in the output: where the line at hand begins */
    size_t removed_at; /* something was removed, and no output came since; SIZE_MAX: no */
    bool line_begin;   /* a line begins at `at`, as far as markup goes */
    size_t line_in;    /* where in the input it began; SIZE_MAX within a line */
    bool list_line, heading_line;
    bool removed_line; /* something was removed from the line at hand */

    struct open stack[PROSE_DEPTH_MAX];
    uint32_t depth, kind_depth[OPEN_COUNT];
    uint64_t unpaired; /* openings beyond PROSE_DEPTH_MAX */
    uint32_t broken;

    size_t tag_end;        /* the first '>' at or behind `at`; invariant 3 */
    uint64_t no_more_ends; /* bit e: no closing tag of elements[e] comes any more */
    struct {
        size_t out;
        uint32_t level;
    } headings[6]; /* the last ones, that may have nothing under them */
    uint32_t heading_count;
    size_t heading_end; /* in the output: the end of the last of them */
};

/* ---- Output ---- */

size_t prose_floor(const struct prose *p);
bool prose_ends_with(const struct prose *p, char c);
void prose_put(struct prose *p, char c);
void prose_put_space(struct prose *p);   /* unless there is one, or a line begins */
void prose_put_newline(struct prose *p); /* at most one blank line, and none at the beginning */
void prose_put_mark(struct prose *p, char c); /* punctuation: closes the hole of a removal */
void prose_trim_spaces(struct prose *p);
/* Ends the paragraph at hand, as far as the input that was read has room for that. */
void prose_end_paragraph(struct prose *p);
/* Something that began at start was removed: a line that began there begins behind it. */
void prose_removed_since(struct prose *p, size_t start);

/* ---- What is open ---- */

/* The innermost, if it is of that kind; else NULL. */
struct open *prose_top(struct prose *p, enum open_kind kind);
void prose_push(struct prose *p, enum open_kind kind, uint32_t braces);
void prose_pop(struct prose *p);                                /* its output stays */
void prose_pop_removed(struct prose *p);                        /* its output goes */
void prose_pop_kept(struct prose *p, size_t start, size_t end); /* out[start, end) of it stays */
void prose_pop_links(struct prose *p); /* links that their paragraph did not close */
/* What is open in the innermost of that kind, which is there, is closed. */
void prose_pop_to(struct prose *p, enum open_kind kind);

bool prose_is_letter(char c); /* of ASCII */

/* ---- Markup, at `at` ---- */

void prose_open_braces(struct prose *p);
void prose_close_braces(struct prose *p);
void prose_open_bracket(struct prose *p);
void prose_close_bracket(struct prose *p);
void prose_put_pipe(
    struct prose *p); /* where arguments are parted; the pipe of a link is not put */
void prose_take_tag(struct prose *p);
void prose_put_entity(struct prose *p);

#endif
