/*
 * wiki: MediaWiki's XML dumps (https://www.mediawiki.org/xml/export-0.11.xsd): articles as title,
 * blank line, prose.
 *
 * Not a general XML parser: in these files text never holds a raw '<', so a page is what stands
 * from
 * "<page>" to "</page>", and a damaged one costs itself and not the rest of the dump (expat stops
 * at the first error, and takes some thirty times the instructions). Comments and CDATA are read
 * where a text might hold them. Of a page with many revisions the last one counts. Pages outside
 * namespace 0 and redirects are no documents.
 *
 * The names of the namespaces for files and categories are read from the head of the dump.
 */
#include "core/base.h"
#include "io/records.h"
#include "io/wikitext.h"
#include <string.h>
#include <strings.h>

#define PAGE_OPEN  "<page>"
#define PAGE_CLOSE "</page>"

/* A slice of a page. */
struct slice {
    char *text; /* NULL: there is none */
    size_t bytes;
};

static const char *find_text(const char *bytes, size_t count, const char *what)
{
    return memmem(bytes, count, what, strlen(what));
}

/* ---------------------------------------------------------------------------------------------
 * Pages
 * ------------------------------------------------------------------------------------------- */

/* <namespace key="6" case="first-letter">File</namespace>, of files, categories and media. */
static void read_names(struct records_rules *rules, const char *bytes, size_t count)
{
    static const char *const keys[] = {"key=\"6\"", "key=\"14\"", "key=\"-2\""};
    const char *end = find_text(bytes, count, "</siteinfo>");
    const char *at = bytes, *limit = end != NULL ? end : bytes + count;
    while ((at = find_text(at, (size_t)(limit - at), "<namespace ")) != NULL) {
        const char *close = memchr(at, '>', (size_t)(limit - at));
        const char *next = close != NULL ? memchr(close, '<', (size_t)(limit - close)) : NULL;
        if (next == NULL)
            return;
        for (size_t i = 0; i < ARRAY_COUNT(keys); i++)
            if (find_text(at, (size_t)(close - at), keys[i]) != NULL)
                wikitext_names_add(&rules->names, close + 1, (size_t)(next - close - 1));
        at = next;
    }
}

static int find_page(struct records_rules *rules, const char *bytes, size_t count, bool at_end,
                     size_t *start, size_t *end, size_t *skip)
{
    const char *open = find_text(bytes, count, PAGE_OPEN);
    *skip = 0;
    if (open == NULL) {
        /* The beginning of one may be at the end of the bytes; siteinfo is to stay in one piece. */
        bool head = find_text(bytes, count, "<siteinfo>") != NULL;
        *skip = at_end ? count : head || count < strlen(PAGE_OPEN) ? 0 : count - strlen(PAGE_OPEN);
        return 0;
    }
    size_t first = (size_t)(open - bytes);
    if (first > 0 && find_text(bytes, first, "<siteinfo>") != NULL)
        read_names(rules, bytes, first);
    const char *close = find_text(open, count - first, PAGE_CLOSE);
    *skip = first;
    if (close == NULL && !at_end)
        return 0;
    *start = first;
    *end = close != NULL ? (size_t)(close - bytes) + strlen(PAGE_CLOSE) : count;
    return 1;
}

static size_t pass_page(const char *bytes, size_t count, bool *over)
{
    const char *close = find_text(bytes, count, PAGE_CLOSE);
    *over = close != NULL;
    if (close != NULL)
        return (size_t)(close - bytes) + strlen(PAGE_CLOSE);
    return count - MIN(count, strlen(PAGE_CLOSE) - 1);
}

/* ---------------------------------------------------------------------------------------------
 * XML
 * ------------------------------------------------------------------------------------------- */

/* The last element of that name in the page, without attributes or with them. */
static struct slice last_element(char *page, size_t bytes, const char *name, bool *malformed)
{
    struct slice found = {NULL, 0};
    char *at = page, *end = page + bytes;
    size_t name_bytes = strlen(name);
    char closing[16] = "</";
    memcpy(closing + 2, name + 1, name_bytes - 1);
    while ((at = memmem(at, (size_t)(end - at), name, name_bytes)) != NULL) {
        at += name_bytes;
        if (at == end || (*at != '>' && *at != ' ' && *at != '/'))
            continue;
        char *close = memchr(at, '>', (size_t)(end - at));
        if (close == NULL)
            break;
        found = (struct slice){close + 1, 0};
        at = close + 1;
        if (close[-1] == '/')
            continue;
        char *next = memmem(at, (size_t)(end - at), closing, name_bytes + 1);
        *malformed |= next == NULL;
        found.bytes = next != NULL ? (size_t)(next - found.text) : 0;
        at = next != NULL ? next : end;
    }
    return found;
}

/* What XML stands for, in place. Only what a dump holds is taken: entities, comments, CDATA. */
static void decode(struct slice *slice)
{
    char *text = slice->text;
    size_t at = 0, used = 0, bytes = slice->bytes;
    while (at < bytes) {
        char utf8[WIKITEXT_UTF8_MAX];
        size_t taken, put;
        const char *mark = memchr(text + at, '&', bytes - at);
        size_t plain = mark != NULL ? (size_t)(mark - text) - at : bytes - at;
        memmove(text + used, text + at, plain);
        used += plain;
        at += plain;
        if (at == bytes)
            break;
        put = wikitext_entity(text + at, bytes - at, utf8, &taken);
        if (taken == 0) {
            text[used++] = text[at++];
            continue;
        }
        memcpy(text + used, utf8, put);
        used += put;
        at += taken;
    }
    slice->bytes = used;
}

static bool is_redirect(const struct slice *text)
{
    static const char *const words[] = {"#redirect",
                                        "#p\xc5\x99"
                                        "esm\xc4\x9bruj",
                                        "#presmeruj", "#weiterleitung"};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++)
        if (text->bytes >= strlen(words[i]) &&
            strncasecmp(text->text, words[i], strlen(words[i])) == 0)
            return true;
    return false;
}

static bool is_article(char *page, size_t bytes, bool *malformed)
{
    struct slice ns = last_element(page, bytes, "<ns", malformed);
    return ns.text == NULL || (ns.bytes == 1 && ns.text[0] == '0');
}

static enum record_result convert_page(const struct records_rules *rules, char *record,
                                       size_t bytes, char *text, size_t *text_bytes,
                                       uint32_t *broken)
{
    bool malformed = memmem(record + 1, bytes - 1, PAGE_OPEN, strlen(PAGE_OPEN)) != NULL;
    /* What stands before the text: a title or a "<ns>" in it would be escaped, but it may be long.
     */
    char *body = memmem(record, bytes, "<revision>", strlen("<revision>"));
    size_t head = body != NULL ? (size_t)(body - record) : bytes;
    *text_bytes = 0;
    *broken = 0;
    if (bytes < strlen(PAGE_OPEN PAGE_CLOSE) ||
        memcmp(record + bytes - strlen(PAGE_CLOSE), PAGE_CLOSE, strlen(PAGE_CLOSE)) != 0 ||
        body == NULL)
        malformed = true;
    struct slice title = last_element(record, head, "<title", &malformed);
    bool article = is_article(record, head, &malformed);
    if (malformed || title.text == NULL)
        return RECORD_MALFORMED;
    if (!article || find_text(record, head, "<redirect") != NULL)
        return RECORD_OTHER;
    struct slice wikitext = last_element(record + head, bytes - head, "<text", &malformed);
    if (malformed || wikitext.text == NULL)
        return RECORD_MALFORMED;
    decode(&title);
    decode(&wikitext);
    if (is_redirect(&wikitext))
        return RECORD_OTHER;
    memcpy(text, title.text, title.bytes);
    memcpy(text + title.bytes, "\n\n", 2);
    size_t prose = wikitext_prose(&rules->names, wikitext.text, wikitext.bytes,
                                  text + title.bytes + 2, broken);
    /* A title alone says nothing. */
    *text_bytes = prose > 0 ? title.bytes + 2 + prose : 0;
    return prose > 0 ? RECORD_TEXT : RECORD_OTHER;
}

const struct records_kind wiki_records = {"wiki", find_page, pass_page, convert_page};
