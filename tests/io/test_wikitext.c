/*
 * Property: what each kind of markup leaves is what the header says; any bytes whatever give no
 * more bytes than they are, and the work is linear in them, also where braces, brackets, tags and
 * comments are opened by the million. Method: a table of markup and prose; random strings of pieces
 * of markup; bombs, whose time is not measured but would not end if it were quadratic (a million
 * openings, each looking through the rest, are 10^12 steps).
 */
#include "core/base.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/wikitext.h"
#include "tests/shared/check.h"
#include <stdlib.h>
#include <string.h>

static struct wikitext_names names;

/* The prose of text, zero-terminated, to be freed with mem_free. */
static char *prose_of(const char *text, size_t bytes, size_t *prose_bytes, uint32_t *broken)
{
    char *copy = mem_alloc(bytes + 1, 1), *prose = mem_alloc(bytes + 1, 1);
    memcpy(copy, text, bytes);
    prose[bytes] = '\1';
    *prose_bytes = wikitext_prose(&names, copy, bytes, prose, broken);
    assert_true(*prose_bytes <= bytes);
    assert_int_equal(prose[bytes], '\1');
    prose[*prose_bytes] = '\0';
    mem_free(copy);
    return prose;
}

static void test_markup(void **state)
{
    (void)state;
    static const struct {
        const char *text, *prose;
        uint32_t broken;
    } cases[] = {
        {"plain text", "plain text", 0},
        {"''italic'' and '''bold''' and '''''both'''''", "italic and bold and both", 0},
        {"l'eau d'or", "l'eau d'or", 0},
        /* Links */
        {"a [[b]] c", "a b c", 0},
        {"a [[b|c d]] e", "a c d e", 0},
        {"[[b]]s and [[b (c)|b]]s", "bs and bs", 0},
        {"[[:Category:Rivers]]", "Category:Rivers", 0},
        {"a [[Category:Rivers]][[Kategorie:\xc5\x98"
         "eky]] b",
         "a b", 0},
        {"[[File:x.jpg|thumb|A [[caption]] with [http://x.y z]]] text", "text", 0},
        {"[[soubor:x.jpg|n\xc3\xa1hled]]text", "text", 0},
        {"[[cs:Praha]][[zh-min-nan:Praha]]x", "x", 0},
        {"[[Star Trek: Voyager]]", "Star Trek: Voyager", 0},
        {"[http://a.b text of link] [https://a.b] [//a.b c]", "text of link c", 0},
        {"http://bare.url stays, [sic] too", "http://bare.url stays, [sic] too", 0},
        {"a [[open\n\nb", "a open\n\nb", 1},
        {"a ]] b", "a b", 1},
        /* Templates */
        {"{{Infobox\n| a = b\n| c = {{d|e}}\n}}\nText", "Text", 0},
        {"A ({{lang-cs|x}}; born) b", "A (born) b", 0},
        {"A ({{x}}) b", "A b", 0},
        {"f() stays", "f() stays", 0},
        {"word {{cn}}. Next", "word. Next", 0},
        {"a {{lang|fr|bonjour}} b {{nowrap|c d}} e {{convert|5|km|mi}}.", "a bonjour b c d e 5 km.",
         0},
        {"{{{1|default}}}x{{{{a}}}}y", "xy", 0},
        {"a {{b", "a", 1},
        {"text\n\n{{Infobox\n| a = b\n\nparagraph", "text\n\nparagraph", 1},
        {"a }} b", "a b", 1},
        {"set {x} and }", "set {x} and }", 0},
        /* Tables */
        {"a\n{| class=\"x\"\n! h\n|-\n| [[c]] || d\n|}\nb", "a\n\nb", 0},
        {"a\n:{|\n| x\n{|\n| y\n|}\n|}\nb", "a\n\nb", 0},
        {"{{a|\n{|\n|b\n|}}}x", "x", 0},
        {"<table><tr><td>a</td></tr></table>b", "b", 0},
        /* Tags */
        {"a<ref>b {{c}} [[d]]</ref> e<ref name=\"f\" /> g<ref name=x>h</ref>.", "a e g.", 0},
        {"a<!-- b -->c", "ac", 0},
        {"a\n<!-- b -->\nc", "a\nc", 0},
        {"a <b>b</b> H<sub>2</sub>O <span style='x'>c</span>", "a b H2O c", 0},
        {"<nowiki>[[a]] ''b''</nowiki> &amp;lt;", "[[a]] ''b'' &lt;", 0},
        {"a <math>x < y</math> b", "a b", 0},
        {"1 < 2 <unknown> 3", "1 < 2 <unknown> 3", 0},
        {"a<br>b<br />c", "a\nb\nc", 0},
        {"a<gallery>\nFile:x\n</gallery>b", "ab", 0},
        {"a<ref>b", "ab", 1},
        {"a<!-- b", "a", 1},
        /* Entities */
        {"&eacute;&#233;&#xe9;&lt;&nbsp;&ndash;&amp;&bogus;&",
         "\xc3\xa9\xc3\xa9\xc3\xa9<\xc2\xa0\xe2\x80\x93&&bogus;&", 0},
        {"&#0;&#xd800;&#x110000;", "&#0;&#xd800;&#x110000;", 0},
        {"&#x1f600;", "\xf0\x9f\x98\x80", 0},
        /* Lines */
        {"== History ==\nText\n=== Early ===\nMore", "History\n\nText\n\nEarly\n\nMore", 0},
        {"Text\n== References ==\n{{reflist}}\n== See ==\n=== Deep ===\n", "Text", 0},
        {"== A ==\n== B ==\nx", "B\n\nx", 0},
        {"==Links==<!-- x -->\nx\n", "Links\n\nx", 0},
        {"a = b\n=c\nd==", "a = b\n=c\nd==", 0},
        {"* one\n* [[two]]\n** three\n# four\n; term\n: text", "one\ntwo\nthree\nfour\nterm\ntext",
         0},
        {"a\n----\nb", "a\n\nb", 0},
        {"__NOTOC__\na __init__ b\n__BEZOBSAHU__", "a b", 0},
        {"a  b \n\n\n\n c", "a b\n\nc", 0},
        {"\r\n a\tb\x01\n", "a b", 0},
        {"* <math>a</math>,\n* <math>b</math>.\nc", "c", 0},
        {"", "", 0},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        uint32_t broken;
        size_t bytes;
        char *prose = prose_of(cases[i].text, strlen(cases[i].text), &bytes, &broken);
        if (strcmp(prose, cases[i].prose) != 0 || broken != cases[i].broken)
            fail_msg("'%s' gives '%s' (%u broken), not '%s' (%u)", cases[i].text, prose, broken,
                     cases[i].prose, cases[i].broken);
        mem_free(prose);
    }
}

static const char *const pieces[] = {
    "{{",      "}}",       "{{{",  "}}}",     "{|",         "|}",       "\n{|",      "\n|}",
    "\n|-",    "|",        "[[",   "]]",      "[http://a ", "]",        "<ref>",     "</ref>",
    "<ref/>",  "<!--",     "-->",  "<math>",  "</math>",    "<nowiki>", "</nowiki>", "<br>",
    "<table>", "</table>", "<p>",  "''",      "'''",        "\n",       "\n\n",      "\n== ",
    " ==\n",   "\n* ",     "(",    ")",       " ",          ", ",       ".",         "&amp;",
    "&#",      "File:",    "lang", "__TOC__", "=",          "word",     "\xc4\x8d",  "\xff",
    "\0",      "<",
};

static void test_random(void **state)
{
    (void)state;
    for (uint64_t n = 0; n < 20000; n++) {
        char text[2048];
        size_t used = 0, count = rng_below(1, 0, n, 60);
        for (size_t i = 0; i < count; i++) {
            const char *piece = pieces[rng_below(1, n + 1, i, ARRAY_COUNT(pieces))];
            size_t bytes = piece[0] == '\0' ? 1 : strlen(piece);
            memcpy(text + used, piece, bytes);
            used += bytes;
        }
        uint32_t broken;
        size_t bytes;
        char *prose = prose_of(text, used, &bytes, &broken);
        if (bytes > 0 && (prose[0] == '\n' || prose[bytes - 1] == '\n'))
            fail_msg("'%.*s' gives '%s'", (int)used, text, prose);
        assert_null(strstr(prose, "\n\n\n"));
        mem_free(prose);
    }
}

/* Openings by the million, alone, and each with what makes the next one look further. */
static void test_bombs(void **state)
{
    (void)state;
    static const struct {
        const char *before, *again, *after;
    } bombs[] = {
        {"", "{", ""},           {"", "{{a", ""},        {"", "}}", ""},
        {"", "{{a|", "}}"},      {"", "\n{|\n", "}}}}"}, {"{{x", "\n{|\n}}", ""},
        {"", "[[", "]]"},        {"", "[[a|", ""},       {"", "[[a|b", "]]]]]]]]"},
        {"", "[http://", ""},    {"", "<ref>", ""},      {"", "<ref", ""},
        {"", "<!-", ""},         {"", "<!--", ""},       {"", "<", ""},
        {"", "<b", ""},          {"", "</ref", ""},      {"", "<math><ref>", ""},
        {"", "<table>", ""},     {"", "</table>", ""},   {"", "&", ""},
        {"", "&#x", ""},         {"", "'", ""},          {"", "\n==", ""},
        {"", "\n== a ==", ""},   {"", "__", ""},         {"", "\n*", ""},
        {"", "(", ")"},          {"", "{{x}}(", ")"},    {"", "\n==<!--", ""},
        {"", "{{lang|a|", "}}"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(bombs); i++) {
        const size_t whole = 4 * MIB;
        char *text = mem_alloc(whole + 64, 1);
        size_t used = strlen(bombs[i].before), step = strlen(bombs[i].again);
        memcpy(text, bombs[i].before, used);
        for (; used + step <= whole; used += step)
            memcpy(text + used, bombs[i].again, step);
        /* As many endings as openings, where there is room. */
        for (size_t at = whole / 2;
             bombs[i].after[0] != '\0' && at + strlen(bombs[i].after) <= whole;
             at += strlen(bombs[i].after))
            memcpy(text + at, bombs[i].after, strlen(bombs[i].after));
        uint32_t broken;
        size_t bytes;
        char *prose = prose_of(text, whole, &bytes, &broken);
        mem_free(prose);
        mem_free(text);
    }
}

static int setup(void **state)
{
    (void)state;
    wikitext_names_init(&names);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_markup),
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_bombs),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
