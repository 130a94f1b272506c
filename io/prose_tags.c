/* Tags, comments and entities. */
#include "core/base.h"
#include "io/prose.h"
#include <string.h>
#include <strings.h>

#define TAG_BYTES_MAX 4096 /* of one tag with its attributes */

/* ---------------------------------------------------------------------------------------------
 * Tags
 * ------------------------------------------------------------------------------------------- */

enum effect {
    EFFECT_NONE,    /* the tag goes, what is within stays */
    EFFECT_DROP,    /* what is within goes too */
    EFFECT_LITERAL, /* what is within is no markup */
    EFFECT_BREAK,   /* ends a line */
    EFFECT_PARAGRAPH,
    EFFECT_TABLE,
};

static const struct {
    const char *name;
    enum effect effect;
} elements[] = {
    {"ref", EFFECT_DROP},
    {"br", EFFECT_BREAK},
    {"nowiki", EFFECT_LITERAL},
    {"math", EFFECT_DROP},
    {"gallery", EFFECT_DROP},
    {"timeline", EFFECT_DROP},
    {"syntaxhighlight", EFFECT_DROP},
    {"source", EFFECT_DROP},
    {"score", EFFECT_DROP},
    {"hiero", EFFECT_DROP},
    {"graph", EFFECT_DROP},
    {"imagemap", EFFECT_DROP},
    {"templatedata", EFFECT_DROP},
    {"mapframe", EFFECT_DROP},
    {"maplink", EFFECT_DROP},
    {"chem", EFFECT_DROP},
    {"ce", EFFECT_DROP},
    {"references", EFFECT_DROP},
    {"includeonly", EFFECT_DROP},
    {"inputbox", EFFECT_DROP},
    {"categorytree", EFFECT_DROP},
    {"indicator", EFFECT_DROP},
    {"pre", EFFECT_LITERAL},
    {"table", EFFECT_TABLE},
    {"p", EFFECT_PARAGRAPH},
    {"blockquote", EFFECT_PARAGRAPH},
    {"div", EFFECT_BREAK},
    {"center", EFFECT_BREAK},
    {"li", EFFECT_BREAK},
    {"ul", EFFECT_BREAK},
    {"ol", EFFECT_BREAK},
    {"dl", EFFECT_BREAK},
    {"dd", EFFECT_BREAK},
    {"dt", EFFECT_BREAK},
    {"tr", EFFECT_BREAK},
    {"hr", EFFECT_BREAK},
    {"poem", EFFECT_PARAGRAPH},
    {"b", EFFECT_NONE},
    {"i", EFFECT_NONE},
    {"u", EFFECT_NONE},
    {"s", EFFECT_NONE},
    {"em", EFFECT_NONE},
    {"strong", EFFECT_NONE},
    {"small", EFFECT_NONE},
    {"big", EFFECT_NONE},
    {"sub", EFFECT_NONE},
    {"sup", EFFECT_NONE},
    {"span", EFFECT_NONE},
    {"font", EFFECT_NONE},
    {"tt", EFFECT_NONE},
    {"code", EFFECT_NONE},
    {"cite", EFFECT_NONE},
    {"del", EFFECT_NONE},
    {"ins", EFFECT_NONE},
    {"strike", EFFECT_NONE},
    {"abbr", EFFECT_NONE},
    {"var", EFFECT_NONE},
    {"kbd", EFFECT_NONE},
    {"samp", EFFECT_NONE},
    {"q", EFFECT_NONE},
    {"onlyinclude", EFFECT_NONE},
    {"noinclude", EFFECT_NONE},
    {"section", EFFECT_NONE},
};
_Static_assert(ARRAY_COUNT(elements) <= 64, "a bit of no_more_ends for each");
#define ELEMENT_NONE ARRAY_COUNT(elements)

bool prose_is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* The element whose name is at in[at], whole. */
static size_t element_at(const struct prose *p, size_t at)
{
    size_t bytes = 0;
    while (at + bytes < p->bytes && prose_is_letter(p->in[at + bytes]))
        bytes++;
    for (size_t e = 0; bytes > 0 && e < ARRAY_COUNT(elements); e++)
        if (strlen(elements[e].name) == bytes &&
            strncasecmp(p->in + at, elements[e].name, bytes) == 0)
            return e;
    return ELEMENT_NONE;
}

/* Where the tag at `at` ends, or SIZE_MAX. */
static size_t tag_end(struct prose *p)
{
    if (p->tag_end < p->at) {
        const char *end = memchr(p->in + p->at, '>', p->bytes - p->at);
        p->tag_end = end != NULL ? (size_t)(end - p->in) : p->bytes;
    }
    return p->tag_end < p->bytes && p->tag_end - p->at <= TAG_BYTES_MAX ? p->tag_end : SIZE_MAX;
}

/* The first "</name" behind from; p->bytes when there is none. */
static size_t find_element_end(struct prose *p, size_t element, size_t from)
{
    if (p->no_more_ends >> element & 1)
        return p->bytes;
    const char *found = p->in + from;
    while ((found = memchr(found, '<', p->bytes - (size_t)(found - p->in))) != NULL) {
        size_t at = (size_t)(found - p->in);
        if (at + 2 < p->bytes && found[1] == '/' && element_at(p, at + 2) == element)
            return at;
        found++;
    }
    p->no_more_ends |= (uint64_t)1 << element;
    return p->bytes;
}

void prose_put_entity(struct prose *p)
{
    char utf8[WIKITEXT_UTF8_MAX];
    size_t used, bytes = wikitext_entity(p->in + p->at, p->bytes - p->at, utf8, &used);
    if (used == 0) {
        prose_put(p, '&');
        p->at++;
        return;
    }
    p->at += used;
    if (bytes == 1 && (utf8[0] == ' ' || utf8[0] == '\n' || utf8[0] == '\t'))
        prose_put_space(p);
    else
        for (size_t i = 0; i < bytes; i++)
            prose_put(p, utf8[i]);
}

/* Text that is no markup, up to end. */
static void put_literally(struct prose *p, size_t end)
{
    while (p->at < end) {
        char c = p->in[p->at];
        if (c == '&') {
            prose_put_entity(p);
        } else {
            p->at++;
            if (c == '\n')
                prose_put_newline(p);
            else if (c == ' ')
                prose_put_space(p);
            else if ((unsigned char)c >= ' ')
                prose_put(p, c);
        }
    }
}

/* An element whose text is no wikitext; its opening tag ends at end. */
static void take_element(struct prose *p, size_t element, size_t end)
{
    size_t start = p->at, close = find_element_end(p, element, end);
    p->at = end + 1;
    if (close == p->bytes) {
        p->broken++;
        return;
    }
    if (elements[element].effect == EFFECT_LITERAL)
        put_literally(p, close);
    p->at = close;
    size_t close_end = tag_end(p);
    p->at = close_end != SIZE_MAX ? close_end + 1 : p->bytes;
    if (elements[element].effect == EFFECT_DROP)
        prose_removed_since(p, start);
}

static void take_table_tag(struct prose *p, bool closing)
{
    if (!closing) {
        prose_push(p, OPEN_HTML_TABLE, 0);
    } else if (p->kind_depth[OPEN_HTML_TABLE] > 0) {
        prose_pop_to(p, OPEN_HTML_TABLE);
        prose_pop_removed(p);
    }
}

static void take_comment(struct prose *p)
{
    size_t start = p->at;
    const char *end = memmem(p->in + start + 4, p->bytes - start - 4, "-->", 3);
    p->broken += end == NULL;
    p->at = end != NULL ? (size_t)(end - p->in) + 3 : p->bytes;
    prose_removed_since(p, start);
    /* A line of nothing but comments is no line. */
    if (p->line_begin && p->at < p->bytes && p->in[p->at] == '\n')
        p->at++;
}

void prose_take_tag(struct prose *p)
{
    size_t start = p->at;
    if (p->bytes - start >= 4 && memcmp(p->in + start, "<!--", 4) == 0) {
        take_comment(p);
        return;
    }
    bool closing = start + 1 < p->bytes && p->in[start + 1] == '/';
    size_t element = element_at(p, start + 1 + closing);
    size_t end = element != ELEMENT_NONE ? tag_end(p) : SIZE_MAX;
    if (end == SIZE_MAX) {
        prose_put(p, '<');
        p->at++;
        return;
    }
    bool empty = p->in[end - 1] == '/';
    enum effect effect = elements[element].effect;
    if ((effect == EFFECT_DROP || effect == EFFECT_LITERAL) && !closing && !empty) {
        take_element(p, element, end);
        return;
    }
    if (effect == EFFECT_TABLE && !empty)
        take_table_tag(p, closing);
    p->at = end + 1;
    if (effect == EFFECT_DROP)
        prose_removed_since(p, start);
    if (effect == EFFECT_BREAK && p->used > p->line)
        prose_put_newline(p);
    if (effect == EFFECT_PARAGRAPH)
        prose_end_paragraph(p);
}
