/* Wiki dumps and JSON lines of any bytes, through a buffer so small that records cross its end. */
#include "core/base.h"
#include "io/records.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

static void read_all(const struct records_kind *kind, const uint8_t *data, size_t bytes)
{
    static const struct unpack_settings settings;
    static struct unpack *unpack;
    static struct records *records;
    struct err err;
    const char *text;
    size_t text_bytes;
    if (unpack == NULL) {
        unpack = unpack_new(&settings);
        records = records_new(&settings, 1000);
    }
    const struct unpack_file file = {"fuzz", -1, (const char *)data, bytes, true};
    ASSERT(unpack_begin(unpack, &file, &err) == 0);
    records_begin(records, kind, unpack, "text", "", 0);
    while (records_next(records, &text, &text_bytes, &err) == 1)
        ASSERT(text_bytes > 0 && text_bytes <= 1000);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    read_all(&jsonl_records, data, bytes);
    read_all(&wiki_records, data, bytes);
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *to)
{
    static const char *const seeds[] = {
        "{\"id\": [1, {\"a\": null}], \"text\": \"x \\u00e9 \\ud83d\\ude00 \\n\", \"b\": -1.5e3}\n"
        "{\"text\": \"b\"}\n\n{}\n",
        "{\"a\":{\"b\":[true,false,[[]]]},\"text\":\"\\\"\\\\\\/\"}\nno "
        "json\n{\"te\\u0078t\":\"c\"}",
        "<mediawiki><siteinfo><namespaces><namespace key=\"6\" case=\"first-letter\">Soubor"
        "</namespace></namespaces></siteinfo>\n<page><title>A &amp; B</title><ns>0</ns><revision>"
        "<text bytes=\"9\">a [[b]] {{c}} &lt;ref&gt;d&lt;/ref&gt;</text></revision></page>\n",
        "<page><title>B</title><ns>1</ns><redirect title=\"C\" /><revision><text /></revision>"
        "</page><page><title>D</title><revision><text>#redirect [[E]]</text></revision></page>",
    };
    if (index >= ARRAY_COUNT(seeds))
        return SIZE_MAX;
    memcpy(to, seeds[index], strlen(seeds[index]));
    return strlen(seeds[index]);
}
