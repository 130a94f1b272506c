/*
 * pool: every task runs once and only once, by a worker that exists, and what tasks wrote is seen
 * by the caller, whatever the number of threads and tasks; run under tsan by `make tsan`. The
 * pauses between jobs and inside tasks are longer than the pool spins, so that its sleeping paths
 * run.
 */
#include "tests/shared/check.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/pool.h"
#include <stdatomic.h>
#include <string.h>

#define TASKS_MAX      1000
#define LONGER_THAN_NS 60000u /* than the pool spins */

struct job {
    uint32_t ran[TASKS_MAX]; /* how often; plain, since a task writes its own */
    uint32_t worker_count;
    _Atomic uint32_t bad_workers;
    _Atomic uint32_t busy[POOL_THREADS_MAX]; /* that no two threads are one worker */
    bool pause;
};

static void pass_time(void)
{
    uint64_t end_ns = clock_ns() + LONGER_THAN_NS;
    while (clock_ns() < end_ns)
        ;
}

static void run_task(void *context, uint32_t task, uint32_t worker)
{
    struct job *job = context;
    if (worker >= job->worker_count || atomic_exchange(&job->busy[worker], 1) != 0)
        atomic_fetch_add(&job->bad_workers, 1);
    job->ran[task]++;
    if (job->pause && task % 3 == 0)
        pass_time();
    atomic_store(&job->busy[worker], 0);
}

static void check_job(struct pool *pool, uint32_t task_count, bool pause)
{
    static struct job job;
    memset(job.ran, 0, sizeof(job.ran));
    job.worker_count = pool_thread_count(pool);
    job.pause = pause;
    pool_run(pool, run_task, &job, task_count);
    assert_int_equal(atomic_load(&job.bad_workers), 0);
    for (uint32_t task = 0; task < TASKS_MAX; task++)
        assert_int_equal(job.ran[task], task < task_count ? 1 : 0);
}

static void check_thread_count(uint32_t thread_count, bool bind)
{
    struct err err;
    struct pool *pool;
    assert_int_equal(pool_open(&pool, "test", thread_count, bind, &err), 0);
    assert_int_equal(pool_thread_count(pool), thread_count);
    static const uint32_t task_counts[] = {0, 1, 2, 3, 7, 64, TASKS_MAX};
    for (size_t i = 0; i < ARRAY_COUNT(task_counts); i++) {
        check_job(pool, task_counts[i], false);
        check_job(pool, MIN(task_counts[i], 64u), true);
        pass_time();
    }
    for (uint32_t i = 0; i < 300; i++)
        check_job(pool, i % 5, false);
    pool_close(pool);
}

static void test_one_thread(void **state)
{
    (void)state;
    check_thread_count(1, false);
}

static void test_two_threads(void **state)
{
    (void)state;
    check_thread_count(2, true);
}

static void test_more_threads_than_cores(void **state)
{
    (void)state;
    check_thread_count(5, false);
    check_thread_count(16, true);
}

/* Open and close without a job, and with NULL. */
static void test_close(void **state)
{
    (void)state;
    struct err err;
    pool_close(NULL);
    for (uint32_t i = 0; i < 50; i++) {
        struct pool *pool;
        assert_int_equal(pool_open(&pool, "tenletters", 1 + i % 4, false, &err), 0);
        pool_close(pool);
    }
}

struct sum {
    const uint32_t *values;
    uint64_t parts[64];
};

static void sum_part(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    struct sum *sum = context;
    sum->parts[task] = 0;
    for (uint32_t i = 0; i < 1000; i++)
        sum->parts[task] += sum->values[task * 1000 + i];
}

/* The caller's writes before a job are seen by the tasks, the tasks' by the caller, job after job.
 */
static void test_memory_is_passed_on(void **state)
{
    (void)state;
    struct err err;
    struct pool *pool;
    assert_int_equal(pool_open(&pool, "test", 3, false, &err), 0);
    static uint32_t values[64 * 1000];
    struct sum sum = {.values = values};
    for (uint32_t round = 0; round < 50; round++) {
        for (uint32_t i = 0; i < ARRAY_COUNT(values); i++)
            values[i] = i ^ round;
        pool_run(pool, sum_part, &sum, 64);
        uint64_t total = 0, expected = 0;
        for (uint32_t i = 0; i < ARRAY_COUNT(values); i++)
            expected += i ^ round;
        for (uint32_t i = 0; i < 64; i++)
            total += sum.parts[i];
        assert_int_equal(total, expected);
    }
    pool_close(pool);
}

static void nothing(void *context, uint32_t task, uint32_t worker)
{
    (void)context, (void)task, (void)worker;
}

static void test_running_does_not_allocate(void **state)
{
    (void)state;
    if (!mem_heap_has_stats())
        skip();
    struct err err;
    struct pool *pool;
    assert_int_equal(pool_open(&pool, "test", 4, true, &err), 0);
    pool_run(pool, nothing, NULL, 100);
    uint64_t before = mem_heap_count();
    for (int i = 0; i < 100; i++)
        pool_run(pool, nothing, NULL, 100);
    assert_int_equal(mem_heap_count(), before);
    pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_thread),
        cmocka_unit_test(test_two_threads),
        cmocka_unit_test(test_more_threads_than_cores),
        cmocka_unit_test(test_close),
        cmocka_unit_test(test_memory_is_passed_on),
        cmocka_unit_test(test_running_does_not_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
