#include "io/wikitext.h"
#include "core/base.h"
#include "io/prose.h"
#include <string.h>

/* ---------------------------------------------------------------------------------------------
 * Lines
 * ------------------------------------------------------------------------------------------- */

/* Headings of sections of this level and deeper that have nothing under them are taken back. */
static void drop_empty_sections(struct prose *p, uint32_t level)
{
    size_t end = p->used;
    while (end > 0 && (p->out[end - 1] == '\n' || p->out[end - 1] == ' '))
        end--;
    if (end > p->heading_end) {
        p->heading_count = 0;
        return;
    }
    while (p->heading_count > 0 && p->headings[p->heading_count - 1].level >= level)
        p->used = p->headings[--p->heading_count].out;
    p->line = p->used;
    p->heading_end = p->heading_count > 0 ? p->used : 0;
    while (p->heading_end > 0 && p->out[p->heading_end - 1] == '\n')
        p->heading_end--;
}

/* The end of the heading's line without white space and a comment behind it. */
static size_t heading_text_end(const struct prose *p, size_t end)
{
    for (int i = 0; i < 2; i++) {
        while (end > p->at && (p->in[end - 1] == ' ' || p->in[end - 1] == '\t'))
            end--;
        if (end - p->at < 7 || memcmp(p->in + end - 3, "-->", 3) != 0)
            break;
        const char *start = memmem(p->in + p->at, end - p->at, "<!--", 4);
        if (start == NULL)
            break;
        end = (size_t)(start - p->in);
    }
    return end;
}

/* "== Title ==": the marks at its end become spaces. */
static void begin_heading(struct prose *p)
{
    const char *newline = memchr(p->in + p->at, '\n', p->bytes - p->at);
    size_t end = heading_text_end(p, newline != NULL ? (size_t)(newline - p->in) : p->bytes);
    size_t opening = 0, closing = 0;
    while (p->at + opening < end && opening < 6 && p->in[p->at + opening] == '=')
        opening++;
    while (end - closing > p->at + opening && closing < opening && p->in[end - closing - 1] == '=')
        closing++;
    if (closing == 0)
        return;
    memset(p->in + end - closing, ' ', closing);
    p->at += closing;
    if (p->depth > 0)
        return;
    drop_empty_sections(p, (uint32_t)closing);
    prose_end_paragraph(p);
    ASSERT(p->heading_count < ARRAY_COUNT(p->headings) || p->heading_count == 6);
    if (p->heading_count == ARRAY_COUNT(p->headings))
        p->heading_count = 0;
    p->headings[p->heading_count].out = p->used;
    p->headings[p->heading_count++].level = (uint32_t)closing;
    p->heading_line = true;
}

static bool here(const struct prose *p, const char *what)
{
    size_t bytes = strlen(what);
    return p->bytes - p->at >= bytes && memcmp(p->in + p->at, what, bytes) == 0;
}

static void skip(struct prose *p, const char *set)
{
    while (p->at < p->bytes && p->in[p->at] != '\0' && strchr(set, p->in[p->at]) != NULL)
        p->at++;
}

/* "|}" ends a table; in a template, "|}}" ends that. */
static void end_table(struct prose *p)
{
    if (p->kind_depth[OPEN_TABLE] == 0)
        return;
    prose_pop_links(p);
    if (prose_top(p, OPEN_TABLE) == NULL)
        return;
    p->at += 2;
    prose_pop_removed(p);
}

/* Marks that count at the beginning of a line only. */
static void begin_line(struct prose *p)
{
    p->line_begin = false;
    p->line_in = p->at;
    if (here(p, "="))
        begin_heading(p);
    else if (here(p, "----"))
        skip(p, "-");
    else if (here(p, "|}") &&
             !(p->kind_depth[OPEN_TEMPLATE] > 0 && here(p, "|}}") && !here(p, "|}}}")))
        end_table(p);
    if (p->at < p->bytes && strchr("*#:; ", p->in[p->at]) != NULL && p->in[p->at] != '\0') {
        p->list_line = p->in[p->at] != ' ';
        skip(p, "*#:; \t");
        p->line_in = p->at;
    }
    if (here(p, "{|")) {
        prose_push(p, OPEN_TABLE, 0);
        p->at += 2;
    }
}

/* Punctuation that stood between formulas says nothing without them. */
static void drop_bare_marks(struct prose *p)
{
    bool bare = p->removed_line && p->line >= prose_floor(p);
    for (size_t i = p->line; bare && i < p->used; i++) {
        unsigned char c = (unsigned char)p->out[i];
        bare = c < 0x80 && !prose_is_letter((char)c) && !(c >= '0' && c <= '9');
    }
    if (bare)
        p->used = p->line;
    p->removed_line = false;
}

static void end_line(struct prose *p)
{
    p->at++;
    bool blank = p->at < p->bytes && p->in[p->at] == '\n';
    if (prose_top(p, OPEN_EXTERNAL) != NULL || (blank && prose_top(p, OPEN_LINK) != NULL))
        prose_pop_links(p);
    prose_trim_spaces(p);
    drop_bare_marks(p);
    if (p->heading_line) {
        p->heading_end = p->used;
        if (p->depth == 0)
            prose_end_paragraph(p);
    } else if (!(p->list_line && p->used == p->line)) {
        prose_put_newline(p);
    }
    p->heading_line = p->list_line = false;
    p->line_begin = true;
}

/* ---------------------------------------------------------------------------------------------
 * The pass
 * ------------------------------------------------------------------------------------------- */

static void take_apostrophes(struct prose *p)
{
    size_t count = 1;
    while (p->at + count < p->bytes && p->in[p->at + count] == '\'')
        count++;
    p->at += count;
    /* Two are italic, three bold, five both; what is too many is meant. */
    size_t meant = count == 1 || count == 4 ? 1 : count > 5 ? count - 5 : 0;
    for (size_t i = 0; i < meant; i++)
        prose_put(p, '\'');
}

/* "__NOTOC__" */
static void take_underscores(struct prose *p)
{
    size_t end = p->at + 2;
    while (here(p, "__") && end < p->bytes && end < p->at + 40 &&
           (prose_is_letter(p->in[end]) || (p->in[end] & 0x80)))
        end++;
    if (end < p->at + 5 || end + 2 > p->bytes || memcmp(p->in + end, "__", 2) != 0) {
        prose_put(p, '_');
        p->at++;
        return;
    }
    size_t start = p->at;
    p->at = end + 2;
    prose_removed_since(p, start);
}

/* What a byte may begin. */
enum class { CLASS_TEXT, CLASS_SPACE, CLASS_MARK, CLASS_NEWLINE, CLASS_MARKUP, CLASS_CONTROL };

static enum class class_of(unsigned char c) {
    static const unsigned char classes[256] =
        {
            [0 ... 8] = CLASS_CONTROL,   ['\t'] = CLASS_SPACE,  ['\n'] = CLASS_NEWLINE,
            [11 ... 31] = CLASS_CONTROL, [' '] = CLASS_SPACE,   ['.'] = CLASS_MARK,
            [','] = CLASS_MARK,          [';'] = CLASS_MARK,    [':'] = CLASS_MARK,
            ['!'] = CLASS_MARK,          ['?'] = CLASS_MARK,    [')'] = CLASS_MARK,
            ['{'] = CLASS_MARKUP,        ['}'] = CLASS_MARKUP,  ['['] = CLASS_MARKUP,
            [']'] = CLASS_MARKUP,        ['|'] = CLASS_MARKUP,  ['<'] = CLASS_MARKUP,
            ['&'] = CLASS_MARKUP,        ['\''] = CLASS_MARKUP, ['_'] = CLASS_MARKUP,
            [127] = CLASS_CONTROL,
        };
    return classes[c];
}

static void take_markup(struct prose *p)
{
    switch (p->in[p->at]) {
    case '{':
        prose_open_braces(p);
        break;
    case '}':
        prose_close_braces(p);
        break;
    case '[':
        prose_open_bracket(p);
        break;
    case ']':
        prose_close_bracket(p);
        break;
    case '|':
        prose_put_pipe(p);
        break;
    case '<':
        prose_take_tag(p);
        break;
    case '&':
        prose_put_entity(p);
        break;
    case '\'':
        take_apostrophes(p);
        break;
    default:
        take_underscores(p);
        break;
    }
}

static void take_all(struct prose *p)
{
    while (p->at < p->bytes) {
        if (p->line_begin) {
            begin_line(p);
            continue;
        }
        char c = p->in[p->at];
        switch (class_of((unsigned char)c)) {
        case CLASS_TEXT:
            prose_put(p, c);
            p->at++;
            break;
        case CLASS_SPACE:
            prose_put_space(p);
            p->at++;
            break;
        case CLASS_MARK:
            prose_put_mark(p, c);
            p->at++;
            break;
        case CLASS_NEWLINE:
            end_line(p);
            break;
        case CLASS_MARKUP:
            take_markup(p);
            break;
        case CLASS_CONTROL:
            p->at++;
            break;
        }
    }
}

/* What was open at the end began no template or table, or nobody can tell where it ends: from
 * there on the line at hand and lines that look like arguments or cells go. */
static void drop_remains(struct prose *p, size_t from)
{
    size_t used = from;
    for (size_t start = from, end; start < p->used; start = end) {
        const char *newline = memchr(p->out + start, '\n', p->used - start);
        end = newline != NULL ? (size_t)(newline - p->out) + 1 : p->used;
        bool keep = start > from && strchr("|!}", p->out[start]) == NULL;
        if (keep) {
            memmove(p->out + used, p->out + start, end - start);
            used += end - start;
        }
    }
    p->used = used;
}

/* Parts of lines that were closed late may have left white space at their seams: lines lose it at
 * their ends, and blank ones at the beginning, the end, and beside others. */
static void tidy(struct prose *p)
{
    size_t used = 0;
    bool blank = true; /* the line before, or the beginning */
    for (size_t start = 0, next; start < p->used; start = next) {
        const char *newline = memchr(p->out + start, '\n', p->used - start);
        size_t end = newline != NULL ? (size_t)(newline - p->out) : p->used;
        next = end + 1;
        while (end > start && p->out[end - 1] == ' ')
            end--;
        while (start < end && p->out[start] == ' ')
            start++;
        if (start == end && blank)
            continue;
        blank = start == end;
        memmove(p->out + used, p->out + start, end - start);
        used += end - start;
        if (newline != NULL)
            p->out[used++] = '\n';
    }
    while (used > 0 && p->out[used - 1] == '\n')
        used--;
    p->used = used;
}

static void close_all(struct prose *p)
{
    size_t from = SIZE_MAX;
    while (p->depth > 0) {
        const struct open *open = &p->stack[p->depth - 1];
        if (open->kind == OPEN_TEMPLATE || open->kind == OPEN_TABLE)
            from = open->out;
        prose_pop(p);
        p->broken++;
    }
    drop_bare_marks(p);
    if (from != SIZE_MAX)
        drop_remains(p, from);
    while (p->heading_count > 0 && p->headings[p->heading_count - 1].out >= from)
        p->heading_count--;
    if (p->heading_line)
        p->heading_end = p->used;
    drop_empty_sections(p, 0);
    tidy(p);
}

size_t wikitext_prose(const struct wikitext_names *names, char *text, size_t bytes, char *prose,
                      uint32_t *broken)
{
    struct prose p;
    p.names = names;
    p.in = text;
    p.bytes = bytes;
    p.at = 0;
    p.out = prose;
    p.used = p.line = p.heading_end = 0;
    p.removed_at = p.line_in = SIZE_MAX;
    p.line_begin = true;
    p.list_line = p.heading_line = p.removed_line = false;
    p.depth = p.broken = p.heading_count = 0;
    memset(p.kind_depth, 0, sizeof(p.kind_depth));
    p.unpaired = p.no_more_ends = 0;
    const char *tag_end = memchr(text, '>', bytes);
    p.tag_end = tag_end != NULL ? (size_t)(tag_end - text) : bytes;
    take_all(&p);
    ASSERT(p.used <= bytes);
    close_all(&p);
    *broken = p.broken;
    return p.used;
}
