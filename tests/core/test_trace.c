/* trace: the file is JSON that a viewer reads, whole over many buffers; no two events of a row
 * overlap; write errors are told. */
#include "tests/shared/check.h"
#include "core/clock.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/trace.h"
#include "tests/shared/scratch.h"
#include <stdlib.h>
#include <string.h>

#define EVENTS 5000 /* some 500 KB: the 64 KiB buffer is written several times */

static void test_file(void **state)
{
    (void)state;
    struct err err;
    struct trace *trace;
    const char *path = scratch_path("trace.json");
    assert_int_equal(trace_open(&trace, path, &err), 0);
    trace_lane(trace, 0, "compute");
    trace_lane(trace, 1, "ssd_read");
    uint64_t start_ns = clock_ns();
    uint64_t allocations = mem_heap_count();
    for (uint64_t i = 0; i < EVENTS; i++)
        trace_event(trace, i % 2, "forward h.3", start_ns + i * 1000, start_ns + i * 1000 + 500, i);
    assert_int_equal(mem_heap_count(), allocations);
    assert_int_equal(trace_close(trace, &err), 0);

    struct json_value *root = json_load(path, &err);
    assert_non_null(root);
    size_t before = 1 + 2 * 2; /* the process, and a name and a place for each lane */
    assert_int_equal(json_length(root), before + EVENTS);
    for (uint64_t i = 0; i < EVENTS; i++) {
        const struct json_value *event = json_at(root, before + i);
        assert_string_equal(json_get_string(event, "name", ""), "forward h.3");
        assert_int_equal(json_get_int(event, "tid", -1), i % 2 * TRACE_ROWS_MAX);
        assert_int_equal(json_get_int(json_get(event, "args"), "bytes", -1), i);
        assert_true(json_get_number(event, "dur", 0) == 0.5);
    }
    json_free(root);
}

static void test_also(void **state)
{
    (void)state;
    struct err err;
    struct trace *trace, *also;
    assert_int_equal(trace_open(&trace, scratch_path("one.json"), &err), 0);
    assert_int_equal(trace_open(&also, scratch_path("also.json"), &err), 0);
    trace_lane(trace, 0, "compute");
    trace_lane(also, 0, "compute");
    uint64_t t = clock_ns();
    trace_event(trace, 0, "alone", t, t + 10, 1);
    trace_also(trace, also);
    trace_event(trace, 0, "both", t + 10, t + 20, 1);
    trace_also(trace, NULL);
    trace_event(trace, 0, "alone", t + 20, t + 30, 1);
    assert_int_equal(trace_close(trace, &err) + trace_close(also, &err), 0);
    char *one = scratch_read(scratch_path("one.json")),
         *two = scratch_read(scratch_path("also.json"));
    assert_true(strstr(one, "both") && strstr(one, "alone"));
    assert_true(strstr(two, "both") && !strstr(two, "alone"));
    free(one);
    free(two);
}

/* The tid of the first event of that name. */
static int64_t row_of(const struct json_value *root, const char *name)
{
    for (size_t i = 0; i < json_length(root); i++)
        if (strcmp(json_get_string(json_at(root, i), "name", ""), name) == 0)
            return json_get_int(json_at(root, i), "tid", -1);
    return -1;
}

/* What a drive does at once: told in the order of ends, each row takes the next that fits. */
static void test_rows(void **state)
{
    (void)state;
    struct err err;
    struct trace *trace;
    const char *path = scratch_path("rows.json");
    assert_int_equal(trace_open(&trace, path, &err), 0);
    trace_lane(trace, 3, "ssd_read");
    uint64_t t = clock_ns();
    trace_event(trace, 3, "a", t, t + 100, 1);
    trace_event(trace, 3, "b", t + 50, t + 120, 1);
    trace_event(trace, 3, "c", t + 60, t + 130, 1);
    trace_event(trace, 3, "d", t + 100, t + 140, 1);
    trace_event(trace, 3, "e", t + 130, t + 150, 1);
    /* More at once than there are rows: the last one takes them, and nothing is lost. */
    for (uint32_t i = 0; i <= TRACE_ROWS_MAX; i++)
        trace_event(trace, 3, "f", t + 200, t + 300, 1);
    assert_int_equal(trace_close(trace, &err), 0);
    struct json_value *root = json_load(path, &err);
    assert_non_null(root);
    int64_t first = 3 * TRACE_ROWS_MAX;
    assert_int_equal(row_of(root, "a"), first);
    assert_int_equal(row_of(root, "b"), first + 1);
    assert_int_equal(row_of(root, "c"), first + 2);
    assert_int_equal(row_of(root, "d"), first);
    assert_int_equal(row_of(root, "e"), first + 1);
    size_t named = 0, told = 0;
    for (size_t i = 0; i < json_length(root); i++) {
        const char *name = json_get_string(json_at(root, i), "name", "");
        named += strcmp(name, "thread_name") == 0;
        told += strcmp(name, "f") == 0;
        assert_in_range(json_get_int(json_at(root, i), "tid", -1), 0, first + TRACE_ROWS_MAX - 1);
    }
    assert_int_equal(named, TRACE_ROWS_MAX);
    assert_int_equal(told, TRACE_ROWS_MAX + 1);
    json_free(root);
}

static void test_longest_name(void **state)
{
    (void)state;
    struct err err;
    struct trace *trace;
    const char *path = scratch_path("long.json");
    char name[101];
    memset(name, 'n', 100);
    name[100] = 0;
    assert_int_equal(trace_open(&trace, path, &err), 0);
    trace_lane(trace, TRACE_LANES_MAX - 1, name);
    trace_event(trace, TRACE_LANES_MAX - 1, name, 0, UINT64_MAX, UINT64_MAX);
    assert_int_equal(trace_close(trace, &err), 0);
    char *text = scratch_read(path);
    assert_non_null(strstr(text, name));
    free(text);
}

static void test_errors(void **state)
{
    (void)state;
    struct err err;
    struct trace *trace;
    assert_int_equal(trace_open(&trace, scratch_path("no/such/trace.json"), &err), ERR_SYSTEM);
    assert_null(trace);
    assert_int_equal(trace_close(NULL, &err), 0);
    assert_int_equal(trace_open(&trace, "/dev/full", &err), 0);
    for (uint64_t i = 0; i < EVENTS; i++)
        trace_event(trace, 0, "x", i, i, 0);
    assert_int_equal(trace_close(trace, &err), ERR_SYSTEM);
    assert_non_null(strstr(err.message, "/dev/full"));
    assert_non_null(strstr(err.message, "No space left"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_also),   cmocka_unit_test(test_file),
        cmocka_unit_test(test_rows),   cmocka_unit_test(test_longest_name),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
