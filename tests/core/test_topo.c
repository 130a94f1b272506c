/* topo: counts agree with what the kernel lets this process use; binding sticks where it is
 * allowed. */
#include "tests/shared/check.h"
#include "core/mem.h"
#include "core/topo.h"
#include <sched.h>
#include <string.h>

static void test_counts(void **state)
{
    (void)state;
    const struct topo *topo = topo_open();
    assert_ptr_equal(topo, topo_open());
    cpu_set_t allowed;
    assert_int_equal(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
    assert_true(topo->core_count >= 1 && topo->core_count <= topo->thread_count);
    assert_true(topo->thread_count <= (uint32_t)CPU_COUNT(&allowed));
    assert_true(topo->node_count >= 1);
    assert_true(strlen(topo->cpu_model) > 0);
}

static void test_binding(void **state)
{
    (void)state;
    cpu_set_t before, bound;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    uint32_t core_count = topo_open()->core_count;
    cpu_set_t all_bound;
    CPU_ZERO(&all_bound);
    for (uint32_t i = 0; i < core_count; i++) {
        if (topo_bind_thread(i) != 0)
            skip();
        assert_int_equal(sched_getaffinity(0, sizeof(bound), &bound), 0);
        assert_int_equal(CPU_COUNT(&bound), 1);
        CPU_OR(&all_bound, &all_bound, &bound);
    }
    /* Each index its own core, and beyond the last one round again. */
    assert_int_equal(CPU_COUNT(&all_bound), core_count);
    assert_int_equal(topo_bind_thread(core_count), 0);
    assert_int_equal(sched_getaffinity(0, sizeof(bound), &bound), 0);
    assert_int_equal(topo_bind_thread(0), 0);
    cpu_set_t first;
    assert_int_equal(sched_getaffinity(0, sizeof(first), &first), 0);
    assert_true(CPU_EQUAL(&bound, &first));
    sched_setaffinity(0, sizeof(before), &before);
}

static void test_memory_binding_leaves_memory_usable(void **state)
{
    (void)state;
    struct err err;
    struct mem_arena arena;
    assert_int_equal(mem_arena_open(&arena, 1 << 20, &err), 0);
    int result = topo_bind_memory(arena.base, arena.bytes);
    assert_true(result == 0 || result == -1);
    memset(arena.base, 3, arena.bytes);
    assert_int_equal(arena.base[arena.bytes - 1], 3);
    mem_arena_close(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_binding),
        cmocka_unit_test(test_memory_binding_leaves_memory_usable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
