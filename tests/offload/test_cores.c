/* cores: the highest rate wins, the first where it is close; on a machine of two caches, made up
 * for a process of its own, a choice is made for fewer threads than cores, and none for all of
 * them. */
#include "offload/cores.h"
#include "core/base.h"
#include "core/topo.h"
#include "tests/shared/check.h"
#include "tests/shared/child.h"
#include <stdlib.h>

static void test_fastest(void **state)
{
    (void)state;
    assert_int_equal(cores_fastest((double[]){5.0}, 1), 0);
    assert_int_equal(cores_fastest((double[]){5.0, 5.05}, 2), 0);
    assert_int_equal(cores_fastest((double[]){5.0, 5.2}, 2), 1);
    assert_int_equal(cores_fastest((double[]){5.0, 4.0, 5.3, 5.31}, 4), 3);
    assert_int_equal(cores_fastest((double[]){5.0, 6.0, 5.9}, 3), 1);
}

/* Each cache's cores are the first two, or the last two. */
static void check_dies(void)
{
    const struct topo *topo = topo_open();
    ASSERT(topo->l3_count == 2 && topo->core_count == 4);
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t *cores = topo->l3[i].cores;
        ASSERT(topo->l3[i].core_count == 2 && cores[0] % 2 == 0 && cores[1] == cores[0] + 1);
    }
    ASSERT(topo->l3[0].cores[0] != topo->l3[1].cores[0]);
}

static void choose_on_two_dies(void)
{
    struct err err;
    setenv("HWLOC_SYNTHETIC", "pack:1 l3:2 core:2 pu:1", 1);
    check_dies();
    ASSERT(topo_open()->l3[0].cores[0] == 0);
    ASSERT(cores_choose(4, PRECISION_FP32, &err) == 0);
    ASSERT(topo_open()->l3[0].cores[0] == 0);
    ASSERT(cores_choose(1, PRECISION_FP32, &err) == 0);
    check_dies();
    ASSERT(cores_choose(3, PRECISION_BF16, &err) == 0);
    check_dies();
}

static void test_two_dies(void **state)
{
    (void)state;
    child_passes(choose_on_two_dies);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_dies), /* before this process reads its own topology */
        cmocka_unit_test(test_fastest),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
