/*
 * More RAM never makes the predicted step slower, by more than half a percent: the law of the
 * search that a person who buys RAM believes in. Method: for each scene, a ladder of twelve budgets
 * from little more than the model needs to all that it could use. Other laws: test_search.c.
 */
#include "tests/shared/check.h"
#include "tests/shared/choices.h"

#include <math.h>

#define BUDGETS 12

static void test_more_ram(void **state)
{
    (void)state;
    for (size_t i = 0; i < CHOICES_SCENES; i++) {
        struct choices_example e;
        struct choices_ladder ladder = {"more RAM", INFINITY};
        choices_open(&e, &choices_scenes[i]);
        for (uint32_t b = 0; b < BUDGETS; b++) {
            choices_set_ram(&e, (double)b / (BUDGETS - 1));
            choices_climb(&ladder, &e);
        }
        choices_close(&e);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_more_ram)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
