/* trace: the file is JSON that a viewer reads, whole over many buffers; write errors are told. */
#include "tests/shared/check.h"
#include "core/clock.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/trace.h"
#include "tests/shared/scratch.h"
#include <stdlib.h>
#include <string.h>

#define EVENTS 5000 /* some 500 KB: the 64 KiB buffer is written several times */

static void test_file(void **state) {
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
        assert_int_equal(json_get_int(event, "tid", -1), i % 2);
        assert_int_equal(json_get_int(json_get(event, "args"), "bytes", -1), i);
        assert_true(json_get_number(event, "dur", 0) == 0.5);
    }
    json_free(root);
}

static void test_longest_name(void **state) {
    (void)state;
    struct err err;
    struct trace *trace;
    const char *path = scratch_path("long.json");
    char name[101];
    memset(name, 'n', 100);
    name[100] = 0;
    assert_int_equal(trace_open(&trace, path, &err), 0);
    trace_lane(trace, UINT32_MAX, name);
    trace_event(trace, UINT32_MAX, name, 0, UINT64_MAX, UINT64_MAX);
    assert_int_equal(trace_close(trace, &err), 0);
    char *text = scratch_read(path);
    assert_non_null(strstr(text, name));
    free(text);
}

static void test_errors(void **state) {
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

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_file),
        cmocka_unit_test(test_longest_name),
        cmocka_unit_test(test_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
