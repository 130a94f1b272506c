/* Templates, and links of both kinds. */
#include "core/base.h"
#include "io/prose.h"
#include <string.h>
#include <strings.h>

#define KEPT_BYTES_MAX 512 /* of a template's argument that is kept */

/* ---------------------------------------------------------------------------------------------
 * Templates
 * ------------------------------------------------------------------------------------------- */

enum kept { KEPT_FIRST, KEPT_SECOND, KEPT_TWO };

static const struct {
    const char *name;
    enum kept kept;
} text_templates[] = {
    {"lang", KEPT_SECOND},   {"nowrap", KEPT_FIRST},   {"nobr", KEPT_FIRST},
    {"convert", KEPT_TWO},   {"cvt", KEPT_TWO},        {"small", KEPT_FIRST},
    {"transl", KEPT_SECOND}, {"cizojaz", KEPT_SECOND}, {"vjazyce2", KEPT_SECOND},
};

static bool is_name(const char *text, size_t bytes, const char *name)
{
    while (bytes > 0 && (text[bytes - 1] == ' ' || text[bytes - 1] == '\n'))
        bytes--;
    return strlen(name) == bytes && strncasecmp(text, name, bytes) == 0;
}

/* Where argument `index` of the top ends. */
static size_t argument_end(const struct prose *p, const struct open *open, uint32_t index)
{
    return index + 1 < open->pipe_count ? open->pipes[index + 1] - 1 : p->used;
}

/* Whether out[start, end) can stay: short, no name of an argument, one line. */
static bool keepable(const struct prose *p, size_t start, size_t end)
{
    size_t bytes = end - MIN(start, end);
    return bytes > 0 && bytes <= KEPT_BYTES_MAX && memchr(p->out + start, '=', bytes) == NULL &&
           memchr(p->out + start, '\n', bytes) == NULL;
}

/* {{convert|5|km|mi}}: the pipe between the two becomes a space. */
static bool keep_two(struct prose *p, const struct open *open)
{
    if (open->pipe_count < 2)
        return false;
    size_t start = open->pipes[0], end = argument_end(p, open, 1);
    if (!keepable(p, start, end))
        return false;
    p->out[open->pipes[1] - 1] = ' ';
    prose_pop_kept(p, start, end);
    return true;
}

static bool keep_template(struct prose *p, const struct open *open)
{
    if (open->pipe_count == 0)
        return false;
    for (size_t i = 0; i < ARRAY_COUNT(text_templates); i++) {
        if (!is_name(p->out + open->out, open->pipes[0] - 1 - open->out, text_templates[i].name))
            continue;
        if (text_templates[i].kept == KEPT_TWO)
            return keep_two(p, open);
        uint32_t index = text_templates[i].kept == KEPT_SECOND;
        if (index >= open->pipe_count)
            return false;
        size_t start = open->pipes[index], end = argument_end(p, open, index);
        if (!keepable(p, start, end))
            return false;
        prose_pop_kept(p, start, end);
        return true;
    }
    return false;
}

/* `count` braces that open; a run of them is one entry, whatever its length. */
void prose_open_braces(struct prose *p)
{
    size_t count = 1;
    while (p->at + count < p->bytes && p->in[p->at + count] == '{')
        count++;
    if (count == 1)
        prose_put(p, '{');
    else
        prose_push(p, OPEN_TEMPLATE, (uint32_t)MIN(count, (size_t)UINT32_MAX));
    p->at += count;
}

void prose_close_braces(struct prose *p)
{
    size_t count = 1;
    while (p->at + count < p->bytes && p->in[p->at + count] == '}')
        count++;
    p->at += count;
    if (count == 1) {
        prose_put(p, '}');
        return;
    }
    while (count >= 2 && p->unpaired > 0) {
        p->unpaired--;
        count -= 2;
    }
    while (count >= 2 && p->kind_depth[OPEN_TEMPLATE] > 0) {
        prose_pop_to(p, OPEN_TEMPLATE);
        struct open *open = &p->stack[p->depth - 1];
        uint32_t closed = open->braces >= 3 && count >= 3 ? 3 : 2;
        bool whole = open->braces == 2;
        count -= closed;
        open->braces -= closed;
        if (whole && keep_template(p, open))
            continue;
        if (open->braces < 2) {
            prose_pop_removed(p);
            continue;
        }
        p->used = open->out;
        p->line = open->line;
        open->pipe_count = 0;
    }
    p->broken += count >= 2;
}

/* ---------------------------------------------------------------------------------------------
 * Links
 * ------------------------------------------------------------------------------------------- */

void wikitext_names_add(struct wikitext_names *names, const char *name, size_t bytes)
{
    if (bytes == 0 || bytes >= WIKITEXT_NAME_BYTES || names->count == WIKITEXT_NAMES_MAX)
        return;
    memcpy(names->names[names->count], name, bytes);
    names->names[names->count++][bytes] = '\0';
}

void wikitext_names_init(struct wikitext_names *names)
{
    static const char *const known[] = {
        "File",
        "Image",
        "Media",
        "Category",
        "Soubor",
        "Obr\xc3\xa1zek",
        "Kategorie",
        "Datei",
        "Bild",
        "Fichier",
        "Archivo",
        "Imagen",
        "Plik",
        "Kategoria",
        "S\xc3\xba"
        "bor",
        "Kateg\xc3\xb3ria",
        "Immagine",
        "Categoria",
        "Cat\xc3\xa9gorie",
    };
    names->count = 0;
    for (size_t i = 0; i < ARRAY_COUNT(known); i++)
        wikitext_names_add(names, known[i], strlen(known[i]));
}

static bool is_dropped_name(const struct wikitext_names *names, const char *text, size_t bytes)
{
    for (uint32_t i = 0; i < names->count; i++)
        if (strlen(names->names[i]) == bytes && strncasecmp(names->names[i], text, bytes) == 0)
            return true;
    return false;
}

/* "cs:", "zh-min-nan:" before something: the page in another language. */
static bool is_language(const char *text, size_t colon, size_t bytes)
{
    size_t letters = 0;
    while (letters < colon && text[letters] >= 'a' && text[letters] <= 'z')
        letters++;
    bool tail = letters == colon || text[letters] == '-';
    for (size_t i = letters; i < colon; i++)
        tail &= text[i] == '-' || (text[i] >= 'a' && text[i] <= 'z');
    return (letters == 2 || letters == 3) && tail && colon + 1 < bytes && text[colon + 1] != ' ';
}

static void close_link(struct prose *p, const struct open *open)
{
    const char *target = p->out + open->out;
    size_t target_end = open->pipe_count > 0 ? open->pipes[0] : p->used;
    size_t bytes = target_end - open->out;
    bool colon_first = bytes > 0 && target[0] == ':';
    const char *colon = memchr(target, ':', MIN(bytes, (size_t)WIKITEXT_NAME_BYTES));
    size_t prefix = colon != NULL ? (size_t)(colon - target) : 0;
    while (prefix > 0 && target[prefix - 1] == ' ')
        prefix--;
    if (prefix > 0 && (is_dropped_name(p->names, target, prefix) ||
                       (open->pipe_count == 0 && is_language(target, prefix, bytes))))
        prose_pop_removed(p);
    else if (open->pipe_count > 0 && p->used > open->pipes[0])
        prose_pop_kept(p, open->pipes[0], p->used);
    else
        prose_pop_kept(p, open->out + colon_first, target_end);
}

/* Bytes of "http://" and the like, or 0. */
static size_t protocol_at(const struct prose *p, size_t at)
{
    static const char *const protocols[] = {"http://", "https://", "//", "ftp://", "mailto:"};
    for (size_t i = 0; i < ARRAY_COUNT(protocols); i++) {
        size_t bytes = strlen(protocols[i]);
        if (bytes <= p->bytes - at && strncasecmp(p->in + at, protocols[i], bytes) == 0)
            return bytes;
    }
    return 0;
}

void prose_open_bracket(struct prose *p)
{
    if (p->at + 1 < p->bytes && p->in[p->at + 1] == '[' && protocol_at(p, p->at + 2) == 0) {
        if (p->kind_depth[OPEN_LINK] < PROSE_LINKS_MAX)
            prose_push(p, OPEN_LINK, 0);
        else
            p->broken++;
        p->at += 2;
        return;
    }
    size_t protocol = protocol_at(p, p->at + 1);
    if (protocol == 0 || prose_top(p, OPEN_EXTERNAL) != NULL) {
        prose_put(p, '[');
        p->at++;
        return;
    }
    prose_push(p, OPEN_EXTERNAL, 0);
    p->at += 1 + protocol;
    while (p->at < p->bytes && strchr(" \t\n]<", p->in[p->at]) == NULL)
        p->at++;
}

void prose_close_bracket(struct prose *p)
{
    struct open *open;
    bool two = p->at + 1 < p->bytes && p->in[p->at + 1] == ']';
    if ((open = prose_top(p, OPEN_EXTERNAL)) != NULL) {
        size_t start = open->out;
        if (p->used == start)
            prose_pop_removed(p);
        else
            prose_pop_kept(p, start + (p->out[start] == ' '), p->used);
        p->at++;
    } else if (two && (open = prose_top(p, OPEN_LINK)) != NULL) {
        p->at += 2;
        close_link(p, open);
    } else if (two) {
        p->broken++;
        p->at += 2;
    } else {
        prose_put(p, ']');
        p->at++;
    }
}

/* Where the arguments of the top begin. The pipe of a link is not put out. */
void prose_put_pipe(struct prose *p)
{
    struct open *open = p->depth > 0 ? &p->stack[p->depth - 1] : NULL;
    bool link = open != NULL && open->kind == OPEN_LINK && open->pipe_count == 0;
    bool template =
        open != NULL && open->kind == OPEN_TEMPLATE && open->pipe_count < PROSE_PIPES_MAX;
    p->at++;
    if (!link)
        prose_put(p, '|');
    if (link || template)
        open->pipes[open->pipe_count++] = p->used;
}
