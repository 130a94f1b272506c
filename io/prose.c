#include "io/prose.h"
#include "core/base.h"
#include <string.h>

/* ---------------------------------------------------------------------------------------------
 * Output
 * ------------------------------------------------------------------------------------------- */

size_t prose_floor(const struct prose *p)
{
    if (p->depth == 0)
        return 0;
    const struct open *open = &p->stack[p->depth - 1];
    return open->pipe_count > 0 ? open->pipes[open->pipe_count - 1] : open->out;
}

bool prose_ends_with(const struct prose *p, char c)
{
    return p->used > 0 && p->out[p->used - 1] == c;
}

void prose_put(struct prose *p, char c)
{
    p->out[p->used++] = c;
}

void prose_put_space(struct prose *p)
{
    bool hole = p->removed_at == p->used && prose_ends_with(p, '(');
    if (p->used == p->line || prose_ends_with(p, ' '))
        return;
    if (hole)
        return;
    prose_put(p, ' ');
}

void prose_trim_spaces(struct prose *p)
{
    bool removed = p->removed_at == p->used;
    while (p->used > prose_floor(p) && prose_ends_with(p, ' '))
        p->used--;
    if (removed)
        p->removed_at = p->used;
}

/* At most one blank line, and none at the beginning. */
void prose_put_newline(struct prose *p)
{
    prose_trim_spaces(p);
    if (p->used > 0 && !(p->used > 1 && p->out[p->used - 1] == '\n' && p->out[p->used - 2] == '\n'))
        prose_put(p, '\n');
    p->line = p->used;
}

/* Ends the paragraph at hand, where the input has room for that: called at a line break or a tag.
 */
void prose_end_paragraph(struct prose *p)
{
    prose_put_newline(p);
    if (p->used < p->at)
        prose_put_newline(p);
}

/* What comes behind a removal closes the hole. */
void prose_put_mark(struct prose *p, char c)
{
    if (p->removed_at != p->used || p->used <= prose_floor(p)) {
        prose_put(p, c);
        return;
    }
    prose_trim_spaces(p);
    bool opened = p->used > prose_floor(p) && prose_ends_with(p, '(');
    if (opened && c == ')') {
        p->used--;
        prose_trim_spaces(p);
        p->removed_at = p->used;
    } else if (opened && (c == ',' || c == ';')) {
        p->removed_at = p->used;
    } else {
        prose_put(p, c);
    }
}

static void note_removed(struct prose *p)
{
    p->removed_at = p->used;
    p->removed_line = true;
}

/* Something that began at start was removed: a line that began there begins behind it. */
void prose_removed_since(struct prose *p, size_t start)
{
    note_removed(p);
    if (p->line_in == start)
        p->line_begin = true;
}

/* ---------------------------------------------------------------------------------------------
 * The stack
 * ------------------------------------------------------------------------------------------- */

struct open *prose_top(struct prose *p, enum open_kind kind)
{
    return p->depth > 0 && p->stack[p->depth - 1].kind == kind ? &p->stack[p->depth - 1] : NULL;
}

void prose_push(struct prose *p, enum open_kind kind, uint32_t braces)
{
    if (p->depth == PROSE_DEPTH_MAX) {
        p->unpaired++;
        p->broken++;
        return;
    }
    struct open *open = &p->stack[p->depth++];
    open->kind = kind;
    open->braces = braces;
    open->pipe_count = 0;
    open->line_begin = p->line_in == p->at;
    open->out = p->used;
    open->line = p->line;
    p->kind_depth[kind]++;
}

static struct open take_top(struct prose *p)
{
    ASSERT(p->depth > 0);
    struct open open = p->stack[--p->depth];
    p->kind_depth[open.kind]--;
    return open;
}

void prose_pop(struct prose *p)
{
    (void)take_top(p);
}

/* The top and its output are gone. */
void prose_pop_removed(struct prose *p)
{
    struct open open = take_top(p);
    p->used = open.out;
    p->line = open.line;
    p->line_begin = open.line_begin;
    note_removed(p);
}

/* out[start, end) is what stays of the top. */
void prose_pop_kept(struct prose *p, size_t start, size_t end)
{
    struct open open = take_top(p);
    ASSERT(open.out <= start && start <= end && end <= p->used);
    memmove(p->out + open.out, p->out + start, end - start);
    p->used = open.out + (end - start);
    p->line = MIN(open.line, p->used);
}

/* Links that were not closed in their paragraph lose their brackets. */
void prose_pop_links(struct prose *p)
{
    while (prose_top(p, OPEN_LINK) != NULL || prose_top(p, OPEN_EXTERNAL) != NULL) {
        prose_pop(p);
        p->broken++;
    }
}

/* The innermost of that kind is closed with all that is open in it. */
void prose_pop_to(struct prose *p, enum open_kind kind)
{
    ASSERT(p->kind_depth[kind] > 0);
    while (p->stack[p->depth - 1].kind != kind) {
        prose_pop(p);
        p->broken++;
    }
}
