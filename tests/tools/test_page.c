/*
 * Property: a page is one whole file that fetches nothing; what is put into it as text stays text;
 * numbers read as a person writes them; a page that cannot be written leaves nothing behind.
 */
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tools/page.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char nasty[] = "<script>\"a\" & 'b'\x01</script>";

static void fill(struct page *page)
{
    static const struct page_column columns[] = {{"n <1>", PAGE_NUMBER}, {nasty, PAGE_NAME}};
    const char *const names[] = {nasty, "two"};
    page_init(page, nasty, nasty);
    page_paragraph(page, PAGE_VERDICT, nasty);
    page_section(page, nasty);
    page_list_begin(page);
    page_item(page, nasty, nasty);
    page_list_end(page);
    page_cards_begin(page);
    page_card(page, nasty, nasty, nasty);
    page_cards_end(page);
    page_section(page, "two");
    page_table_begin(page, columns, 2);
    page_row(page, "best");
    page_cell(page, &columns[0], "1");
    page_cell(page, &columns[1], nasty);
    page_row(page, NULL);
    page_cell_wide(page, 2, nasty);
    page_table_end(page);
    page_bars_begin(page);
    page_bar(page, nasty, 7.5, 0.5, 0, nasty);
    page_bar(page, "none", NAN, -1, 0, "–");
    page_bars_end(page);
    page_figures_begin(page);
    page_figure(page, &(struct page_figure){nasty, "<svg></svg>", nasty, names, 2});
    page_figures_end(page);
    page_details_begin(page, nasty);
    page_details_end(page);
}

static size_t count(const char *text, const char *what)
{
    size_t n = 0;
    for (; (text = strstr(text, what)); text += strlen(what))
        n++;
    return n;
}

static void test_text_stays_text(void **state)
{
    (void)state;
    struct page page;
    struct err err;
    fill(&page);
    assert_int_equal(page_save(&page, scratch_path("page.html"), &err), 0);
    page_deinit(&page);
    char *text = scratch_read(scratch_path("page.html"));
    assert_null(strstr(text, "<script"));
    assert_null(strchr(text, '\x01'));
    assert_true(count(text, "&lt;script&gt;&quot;a&quot; &amp; 'b'?&lt;/script&gt;") >= 18);
    assert_int_equal(strncmp(text, "<!doctype html>", 15), 0);
    assert_non_null(strstr(text, "</html>\n"));
    free(text);
}

/* Nothing outside is referred to, and every element that must be closed is. */
static void test_whole(void **state)
{
    (void)state;
    static const char *const tags[] = {"section", "ul", "li",     "table",   "p",
                                       "div",     "h2", "figure", "details", "span",
                                       "main",    "h1", "style",  "body",    "figcaption"};
    struct page page;
    struct err err;
    fill(&page);
    assert_int_equal(page_save(&page, scratch_path("whole.html"), &err), 0);
    page_deinit(&page);
    char *text = scratch_read(scratch_path("whole.html"));
    static const char *const outside[] = {"http:", "https:", "src=", "href=", "url(", "@import"};
    for (size_t i = 0; i < sizeof(outside) / sizeof(*outside); i++)
        assert_null(strstr(text, outside[i]));
    for (size_t i = 0; i < sizeof(tags) / sizeof(*tags); i++) {
        char open[32], with[32], close[32];
        snprintf(open, sizeof(open), "<%s>", tags[i]);
        snprintf(with, sizeof(with), "<%s ", tags[i]);
        snprintf(close, sizeof(close), "</%s>", tags[i]);
        assert_true(count(text, open) + count(text, with) == count(text, close));
    }
    assert_non_null(strstr(text, "prefers-color-scheme:dark"));
    assert_non_null(strstr(text, "@media print"));
    assert_non_null(strstr(text, "width:100.00%")); /* a bar of 7.5 is cut */
    assert_null(strstr(text, "nan"));
    free(text);
}

static void test_no_place(void **state)
{
    (void)state;
    struct page page;
    struct err err;
    fill(&page);
    scratch_write("a-file", "");
    assert_true(page_save(&page, scratch_path("a-file/page.html"), &err) < 0);
    assert_non_null(strstr(err.message, "page.html"));
    page_deinit(&page);
    fill(&page); /* given up half way */
    page_deinit(&page);
}

static void test_numbers(void **state)
{
    (void)state;
    char t[PAGE_NUMBER_MAX];
    assert_string_equal(page_count(t, 0), "0");
    assert_string_equal(page_count(t, 999), "999");
    assert_string_equal(page_count(t, 1000), "1,000");
    assert_string_equal(page_count(t, UINT64_MAX), "18,446,744,073,709,551,615");
    assert_string_equal(page_number(t, 0), "0.00");
    assert_string_equal(page_number(t, 1234.4), "1,234");
    assert_string_equal(page_number(t, 99.96), "100");
    assert_string_equal(page_number(t, 12.34), "12.3");
    assert_string_equal(page_number(t, 1.234), "1.23");
    assert_string_equal(page_number(t, 0.1234), "0.123");
    assert_string_equal(page_number(t, NAN), "–");
    assert_string_equal(page_seconds(t, 0.0000123), "12 µs");
    assert_string_equal(page_seconds(t, 0.0412), "41 ms");
    assert_string_equal(page_seconds(t, 8.664), "8.66 s");
    assert_string_equal(page_seconds(t, 64), "64.0 s");
    assert_string_equal(page_seconds(t, 245), "4m05s");
    assert_string_equal(page_memory(t, 128.0 * 1073741824), "128 GB");
    assert_string_equal(page_memory(t, 1023.9 * 1073741824), "1 TB");
    assert_string_equal(page_bytes(t, 0), "0 B");
    assert_string_equal(page_bytes(t, 14.5e6), "14.5 MB");
    assert_string_equal(page_bytes(t, 7e9), "7 GB");
}

static void test_csv(void **state)
{
    (void)state;
    char text[64];
    FILE *out = fmemopen(text, sizeof(text), "w");
    page_csv_field(out, "plain");
    fputc(',', out);
    page_csv_field(out, "a \"b\", c\n");
    fclose(out);
    assert_string_equal(text, "plain,\"a \"\"b\"\", c\n\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text_stays_text),
        cmocka_unit_test(test_whole),
        cmocka_unit_test(test_no_place),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_csv),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
