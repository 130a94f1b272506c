/* io/wikitext on any bytes, which are those of a page's text. */
#include "core/base.h"
#include "io/wikitext.h"
#include "tests/fuzz/fuzz.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct wikitext_names names;
    uint32_t broken;
    char *text = malloc(bytes + (bytes == 0)), *prose = malloc(bytes + (bytes == 0));
    ASSERT(text != NULL && prose != NULL);
    memcpy(text, data, bytes);
    wikitext_names_init(&names);
    size_t prose_bytes = wikitext_prose(&names, text, bytes, prose, &broken);
    ASSERT(prose_bytes <= bytes);
    ASSERT(prose_bytes == 0 || (prose[0] != '\n' && prose[prose_bytes - 1] != '\n'));
    free(text);
    free(prose);
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *to)
{
    static const char *const seeds[] = {
        "{{Infobox x\n| a = [[b|c]]\n| d = {{e|f={{{1|}}}}}\n}}\n'''A''' is a [[b]] (''c'').\n",
        "== H ==\n{| class=\"x\"\n! a !! b\n|-\n| [[c]] || {{d}}\n|}\ntext <ref "
        "name=\"a\">b</ref>.\n",
        "[[File:a.jpg|thumb|a [[b]] [http://c d]]]\n* one\n** two\n; a : b\n----\n__TOC__\n",
        "<!-- c --><nowiki>[[a]]</nowiki> <math>x<y</math> &amp; &#233; &nbsp;<br "
        "/><table><tr>a</table>",
        "{{lang|fr|a}} {{convert|5|km}} ({{a}}; b) "
        "<gallery>\na\n</gallery>[[Category:x]][[cs:y]]\n",
    };
    if (index >= ARRAY_COUNT(seeds))
        return SIZE_MAX;
    memcpy(to, seeds[index], strlen(seeds[index]));
    return strlen(seeds[index]);
}
