/* topo: counts agree with what the kernel lets this process use; every core is in one domain of a
 * third-level cache, which can be numbered first; binding sticks where it is allowed, and is
 * undone; PCI devices are whole. */
#include "tests/shared/check.h"
#include "tests/shared/child.h"
#include "core/base.h"
#include "core/mem.h"
#include "core/topo.h"
#include <sched.h>
#include <stdlib.h>
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

static void test_l3_domains(void **state)
{
    (void)state;
    const struct topo *topo = topo_open();
    uint32_t times[1024] = {0};
    uint64_t bytes = 0;
    assert_true(topo->l3_count >= 1 && topo->l3_count <= topo->core_count);
    assert_true(topo->core_count <= ARRAY_COUNT(times));
    for (uint32_t i = 0; i < topo->l3_count; i++) {
        const struct topo_l3 *l3 = &topo->l3[i];
        assert_true(l3->core_count >= 1);
        bytes += l3->bytes;
        for (uint32_t j = 0; j < l3->core_count; j++) {
            assert_true(l3->cores[j] < topo->core_count);
            assert_true(j == 0 || l3->cores[j - 1] < l3->cores[j]);
            times[l3->cores[j]]++;
        }
    }
    for (uint32_t i = 0; i < topo->core_count; i++)
        assert_int_equal(times[i], 1);
    assert_int_equal(bytes, topo_l3_bytes());
    assert_true(bytes >= topo->l3_bytes);
}

/* Counted without a list, then listed: the same number, and nothing beyond it is written. */
static void test_devices(void **state)
{
    (void)state;
    struct topo_device devices[64];
    memset(devices, 0x5a, sizeof(devices));
    uint32_t count = topo_devices(NULL, 0), listed = topo_devices(devices, ARRAY_COUNT(devices));
    assert_int_equal(count, listed);
    for (uint32_t i = 0; i < MIN(listed, ARRAY_COUNT(devices)); i++) {
        assert_true(strlen(devices[i].name) > 0 && strlen(devices[i].kind) > 0);
        assert_int_equal(strlen(devices[i].bus), strlen("0000:00:00.0"));
        assert_true(devices[i].link_bytes_per_s >= 0 && devices[i].node >= -1);
    }
    if (listed < ARRAY_COUNT(devices))
        assert_int_equal(devices[listed].name[0], 0x5a);
}

static void test_unbinding(void **state)
{
    (void)state;
    cpu_set_t before, after;
    assert_int_equal(sched_getaffinity(0, sizeof(before), &before), 0);
    if (topo_bind_thread(0) != 0)
        skip();
    assert_int_equal(topo_unbind_thread(), 0);
    assert_int_equal(sched_getaffinity(0, sizeof(after), &after), 0);
    assert_true(CPU_EQUAL(&before, &after));
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

static bool has_cores(uint32_t l3, uint32_t first, uint32_t second)
{
    const struct topo_l3 *domain = &topo_open()->l3[l3];
    return domain->core_count == 2 && domain->cores[0] == first && domain->cores[1] == second;
}

/* In a process whose machine is made up, of three dies of two cores: nothing can be bound there. */
static void prefer_dies(void)
{
    setenv("HWLOC_SYNTHETIC", "pack:1 l3:3 core:2 pu:1", 1);
    const struct topo *topo = topo_open();
    ASSERT(topo->core_count == 6 && topo->l3_count == 3);
    ASSERT(has_cores(0, 0, 1) && has_cores(1, 2, 3) && has_cores(2, 4, 5));
    topo_prefer(1);
    ASSERT(has_cores(0, 2, 3) && has_cores(1, 0, 1) && has_cores(2, 4, 5));
    topo_prefer(2);
    ASSERT(has_cores(0, 4, 5) && has_cores(1, 2, 3) && has_cores(2, 0, 1));
    topo_prefer(2);
    ASSERT(has_cores(0, 4, 5) && has_cores(1, 2, 3) && has_cores(2, 0, 1));
    ASSERT(topo->core_count == 6);
}

/* Before this process reads its own topology. */
static void test_preferred_dies_come_first(void **state)
{
    (void)state;
    child_passes(prefer_dies);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_preferred_dies_come_first),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_l3_domains),
        cmocka_unit_test(test_binding),
        cmocka_unit_test(test_unbinding),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_memory_binding_leaves_memory_usable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
