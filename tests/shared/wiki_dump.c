#include "tests/shared/wiki_dump.h"
#include "core/base.h"
#include "core/rng.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char wiki_dump_head[] =
    "<mediawiki xmlns=\"http://www.mediawiki.org/xml/export-0.11/\" version=\"0.11\" "
    "xml:lang=\"cs\">\n  <siteinfo>\n    <sitename>Zkouška</sitename>\n    <namespaces>\n"
    "      <namespace key=\"0\" case=\"first-letter\" />\n"
    "      <namespace key=\"1\" case=\"first-letter\">Diskuse</namespace>\n"
    "      <namespace key=\"6\" case=\"first-letter\">Příloha</namespace>\n"
    "      <namespace key=\"14\" case=\"first-letter\">Třída</namespace>\n"
    "    </namespaces>\n  </siteinfo>\n";
const char wiki_dump_tail[] = "</mediawiki>\n";

struct maker {
    struct wiki_dump_page *page;
    uint64_t seed, index, draws;
    char text[WIKI_DUMP_PAGE_MAX]; /* wikitext, before it is escaped */
    size_t text_bytes;
};

static uint64_t draw(struct maker *maker, uint64_t bound)
{
    return rng_below(maker->seed, maker->index, maker->draws++, bound);
}

static void append(char *to, size_t *used, const char *text)
{
    size_t bytes = strlen(text);
    ASSERT(bytes < WIKI_DUMP_PAGE_MAX - *used);
    memcpy(to + *used, text, bytes + 1);
    *used += bytes;
}

/* Markup that leaves nothing. */
static void markup(struct maker *maker, const char *format, ...)
{
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    append(maker->text, &maker->text_bytes, text);
}

static void truth(struct maker *maker, const char *text)
{
    append(maker->page->truth, &maker->page->truth_bytes, text);
}

static void both(struct maker *maker, const char *text)
{
    markup(maker, "%s", text);
    truth(maker, text);
}

/* A word of one to four syllables; short ones are as common as in prose. */
static const char *word(struct maker *maker, char to[64])
{
    static const char *const syllables[] = {
        "ho",  "ra",  "vo",   "da",   "ře",  "ka",  "mě",  "sto", "les",
        "ní",  "po",  "to",   "ku",   "lom", "ven", "čer", "žlu", "ťou",
        "krá", "lov", "ství", "stra", "na",  "ves", "ni",  "ce",  "dub",
    };
    size_t count = 1 + draw(maker, 1 + draw(maker, 4));
    to[0] = '\0';
    for (size_t i = 0; i < count; i++)
        strcat(to, syllables[draw(maker, ARRAY_COUNT(syllables))]);
    return to;
}

static void template(struct maker *maker)
{
    char a[64], b[64];
    switch (draw(maker, 4)) {
    case 0:
        markup(maker, "{{Doplňte zdroj}}");
        break;
    case 1:
        markup(maker, "{{%s|%s={{Malé2|[[%s|%s]]}}|x}}", word(maker, a), a, word(maker, b), b);
        break;
    case 2:
        markup(maker,
               "<ref>{{Citace monografie | titul = %s | strany = 1&ndash;%d\n| url = "
               "http://example.org/%s }}</ref>",
               word(maker, a), (int)draw(maker, 400), word(maker, b));
        break;
    default:
        markup(maker, "<ref name=\"%s\" />", word(maker, a));
    }
}

/* A word of prose, as itself or in markup that leaves it. */
static void prose_word(struct maker *maker)
{
    char a[64], b[64];
    word(maker, a);
    truth(maker, a);
    switch (draw(maker, 24)) {
    case 0:
        markup(maker, "[[%s|%s]]", word(maker, b), a);
        break;
    case 1:
        markup(maker, "[[%s]]", a);
        break;
    case 2:
        markup(maker, "'''%s'''", a);
        break;
    case 3:
        markup(maker, "''[[%s (okres)|%s]]''", word(maker, b), a);
        break;
    case 4:
        markup(maker, "<span style=\"color:red\">%s</span>", a);
        break;
    case 5:
        markup(maker, "[http://example.org/%s %s]", word(maker, b), a);
        break;
    case 6:
        markup(maker, "%s<!-- %s -->", a, word(maker, b));
        break;
    default:
        markup(maker, "%s", a);
    }
}

static void gap(struct maker *maker)
{
    switch (draw(maker, 40)) {
    case 0:
        markup(maker, "&nbsp;");
        truth(maker, "\xc2\xa0");
        break;
    case 1:
        markup(maker, " &ndash; ");
        truth(maker, " \xe2\x80\x93 ");
        break;
    case 2:
        markup(maker, " &amp; ");
        truth(maker, " & ");
        break;
    case 3:
        markup(maker, " (");
        template(maker);
        markup(maker, ") ");
        truth(maker, " ");
        break;
    case 4:
        both(maker, ", ");
        break;
    default:
        both(maker, " ");
    }
}

static void sentence(struct maker *maker)
{
    size_t count = 3 + draw(maker, 14);
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            gap(maker);
        prose_word(maker);
    }
    if (draw(maker, 8) == 0) {
        markup(maker, " ");
        template(maker);
    }
    both(maker, ".");
    if (draw(maker, 3) == 0)
        template(maker);
}

static void paragraph(struct maker *maker)
{
    size_t count = 1 + draw(maker, 5);
    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            both(maker, " ");
        sentence(maker);
    }
    both(maker, "\n\n");
}

static void list(struct maker *maker)
{
    size_t count = 2 + draw(maker, 5);
    for (size_t i = 0; i < count; i++) {
        markup(maker, i % 3 == 2 ? "** " : "* ");
        sentence(maker);
        both(maker, "\n");
    }
    both(maker, "\n");
}

static void infobox(struct maker *maker)
{
    char a[64], b[64];
    markup(maker, "{{Infobox %s\n", word(maker, a));
    for (uint64_t i = 0, rows = draw(maker, 12); i < rows; i++)
        markup(maker, " | %s = {{%s|[[%s]]}} {{{x|}}}\n", word(maker, a), word(maker, b), a);
    markup(maker, "}}\n");
}

static void table(struct maker *maker)
{
    char a[64], b[64];
    markup(maker, "{| class=\"wikitable\"\n|+ %s\n! %s !! [[%s]]\n", word(maker, a), a, a);
    for (uint64_t i = 0, rows = draw(maker, 8); i < rows; i++)
        markup(maker, "|-\n| {{Vlajka|%s}} || %s\n", word(maker, a), word(maker, b));
    markup(maker, "|}\n\n");
}

static void block(struct maker *maker)
{
    char a[64], b[64];
    switch (draw(maker, 6)) {
    case 0:
        table(maker);
        break;
    case 1:
        markup(maker, "[[Soubor:%s.jpg|náhled|vpravo|%s [[%s]] a [http://a.b c]]]\n",
               word(maker, a), word(maker, b), a);
        break;
    case 2:
        markup(maker, "[[příloha:%s.png|thumb|{{Popis|%s}}]]\n", word(maker, a), word(maker, b));
        break;
    case 3:
        markup(maker, "<gallery>\n%s.jpg|[[%s]]\n</gallery>\n\n", word(maker, a), word(maker, b));
        break;
    case 4:
        list(maker);
        break;
    default:
        markup(maker, "<math>\\frac{%s}{x} < y</math>\n\n", word(maker, a));
    }
}

static void section(struct maker *maker)
{
    char a[64];
    word(maker, a);
    markup(maker, draw(maker, 2) ? "== %s ==\n" : "=== %s ===\n", a);
    truth(maker, a);
    truth(maker, "\n\n");
    for (uint64_t i = 0, count = 1 + draw(maker, 3); i < count; i++) {
        if (draw(maker, 4) == 0)
            block(maker);
        paragraph(maker);
    }
}

static void article(struct maker *maker)
{
    char a[64];
    infobox(maker);
    paragraph(maker);
    for (uint64_t i = 0, count = draw(maker, 5); i < count; i++)
        section(maker);
    markup(maker, "== Reference ==\n<references />\n\n{{Portály|%s}}\n", word(maker, a));
    markup(maker, "[[Kategorie:%s]]\n[[třída:%s]]\n[[en:%s]]\n", a, a, a);
}

/* As in XML. */
static void put_escaped(struct wiki_dump_page *page, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        const char one[2] = {text[i], '\0'};
        append(page->xml, &page->xml_bytes,
               text[i] == '<'   ? "&lt;"
               : text[i] == '>' ? "&gt;"
               : text[i] == '&' ? "&amp;"
               : text[i] == '"' ? "&quot;"
                                : one);
    }
}

void wiki_dump_page(struct wiki_dump_page *page, uint64_t seed, uint64_t index)
{
    static struct maker maker;
    char title[128], head[1024], a[64];
    uint64_t kind = index % 12;
    maker.page = page;
    maker.seed = seed;
    maker.index = index;
    maker.draws = maker.text_bytes = 0;
    page->xml_bytes = page->truth_bytes = 0;
    page->truth[0] = '\0';
    snprintf(title, sizeof(title), "%s %" PRIu64, word(&maker, a), index);
    int ns = kind == 5 ? 1 : 0;
    if (kind == 11) {
        markup(&maker, "#PŘESMĚRUJ [[%s]]", word(&maker, a));
    } else {
        if (ns == 0) {
            truth(&maker, title);
            truth(&maker, "\n\n");
        }
        article(&maker);
        while (page->truth_bytes > 0 && page->truth[page->truth_bytes - 1] == '\n')
            page->truth_bytes--;
    }
    if (ns != 0 || kind == 11)
        page->truth_bytes = 0;
    page->truth[page->truth_bytes] = '\0';
    snprintf(head, sizeof(head),
             "  <page>\n    <title>%s</title>\n    <ns>%d</ns>\n    <id>%" PRIu64 "</id>\n%s"
             "    <revision>\n      <id>%" PRIu64 "</id>\n      <timestamp>2016-04-22T10:19:33Z"
             "</timestamp>\n      <contributor>\n        <username>%s</username>\n      "
             "</contributor>\n      <model>wikitext</model>\n      <format>text/x-wiki</format>\n"
             "      <text bytes=\"%zu\" xml:space=\"preserve\">",
             title, ns, index, kind == 11 ? "    <redirect title=\"x\" />\n" : "", index * 7,
             word(&maker, a), maker.text_bytes);
    append(page->xml, &page->xml_bytes, head);
    put_escaped(page, maker.text, maker.text_bytes);
    append(page->xml, &page->xml_bytes,
           "</text>\n      <sha1>4ro7vvppa5kmm0o1egfjztzcwd0vabw</sha1>\n    </revision>\n"
           "  </page>\n");
}
