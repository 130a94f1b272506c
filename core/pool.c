/*
 * Invariants:
 * 1. `ticket` is (generation << 32) | tasks left to take. A worker takes a task by lowering it with
 *    a compare-exchange, so it never takes one of a job that is over.
 * 2. fn, context and task_count change only while the ticket says that nothing is left and every
 *    task taken is done. Read between a load of the ticket with tasks left and a successful
 *    exchange of that same value, they therefore belong to that generation.
 * 3. pool_run returns when `done` equals task_count, not when all workers have looked: a worker
 *    that is still waking up costs nothing, and finds nothing to take.
 */
#include "core/pool.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/topo.h"
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* About what a futex wake-up costs; spinning longer takes the core from whoever needs it. */
#define SPIN_NS         20000u
#define SPINS_PER_CLOCK 32
#define CACHE_LINE      64

typedef void pool_fn(void *context, uint32_t task, uint32_t worker);

struct worker {
    struct pool *pool;
    uint32_t index;
    pthread_t thread;
};

struct pool {
    _Alignas(CACHE_LINE) _Atomic uint64_t ticket;
    _Alignas(CACHE_LINE) _Atomic uint32_t done; /* tasks; the caller's futex */
    _Alignas(CACHE_LINE) _Atomic uint32_t job;  /* counts jobs; the workers' futex */
    _Atomic uint32_t started;                   /* workers that are bound; pool_open's futex */
    _Atomic uint32_t sleepers;                  /* workers that may be in their futex */
    _Atomic bool caller_sleeps;
    _Atomic bool closing;
    /* Of the current job (invariant 2). Atomic because a late worker may read them while they
     * change; it then fails to take a task and forgets what it read. */
    _Atomic(pool_fn *) fn;
    _Atomic(void *) context;
    _Atomic uint32_t task_count;
    /* The caller's. */
    _Alignas(CACHE_LINE) uint32_t thread_count;
    uint32_t generation;
    bool bind, caller_bound, running;
    pthread_t caller; /* that was bound */
    char name[11];
    struct worker workers[]; /* thread_count - 1 */
};

static void futex_wait(_Atomic uint32_t *word, uint32_t expected)
{
    /* EAGAIN and EINTR are as good as a wake-up: every caller looks again. */
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether *word left `value` within SPIN_NS. */
static bool spin_while_equal(_Atomic uint32_t *word, uint32_t value)
{
    uint64_t deadline_ns = clock_ns() + SPIN_NS;
    do {
        for (int i = 0; i < SPINS_PER_CLOCK; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value)
                return true;
            pause_cpu();
        }
    } while (clock_ns() < deadline_ns);
    return false;
}

/* Takes tasks until none is left. */
static void work(struct pool *pool, uint32_t worker)
{
    uint64_t ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    while ((uint32_t)ticket > 0) {
        pool_fn *fn = atomic_load_explicit(&pool->fn, memory_order_relaxed);
        void *context = atomic_load_explicit(&pool->context, memory_order_relaxed);
        uint32_t task_count = atomic_load_explicit(&pool->task_count, memory_order_relaxed);
        if (!atomic_compare_exchange_weak_explicit(&pool->ticket, &ticket, ticket - 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        ASSERT((uint32_t)ticket <= task_count);
        fn(context, task_count - (uint32_t)ticket, worker);
        uint32_t done = atomic_fetch_add(&pool->done, 1) + 1;
        if (done == task_count && atomic_load(&pool->caller_sleeps))
            futex_wake(&pool->done, 1);
        ticket = atomic_load_explicit(&pool->ticket, memory_order_acquire);
    }
}

static void wait_for_job(struct pool *pool, uint32_t seen)
{
    if (spin_while_equal(&pool->job, seen))
        return;
    /* Sequentially consistent on both sides: either pool_run sees the sleeper, or the sleeper sees
     * the new job. */
    atomic_fetch_add(&pool->sleepers, 1);
    if (atomic_load(&pool->job) == seen)
        futex_wait(&pool->job, seen);
    atomic_fetch_sub(&pool->sleepers, 1);
}

static void *worker_main(void *argument)
{
    struct worker *worker = argument;
    struct pool *pool = worker->pool;
    char name[16];
    mem_own_thread();
    snprintf(name, sizeof(name), "%s-%u", pool->name, (unsigned)worker->index % 1000);
    pthread_setname_np(pthread_self(), name);
    if (pool->bind)
        topo_bind_thread(worker->index);
    atomic_fetch_add(&pool->started, 1);
    futex_wake(&pool->started, INT_MAX);
    uint32_t seen = 0;
    while (!atomic_load(&pool->closing)) {
        uint32_t job = atomic_load(&pool->job);
        if (job == seen) {
            wait_for_job(pool, seen);
            continue;
        }
        seen = job;
        work(pool, worker->index);
    }
    return NULL;
}

/* Binding allocates: a pool is open when that is over, so that memory may be sealed afterwards. */
static void wait_for_workers(struct pool *pool)
{
    for (;;) {
        uint32_t started = atomic_load(&pool->started);
        if (started == pool->thread_count - 1)
            return;
        futex_wait(&pool->started, started);
    }
}

static void stop_workers(struct pool *pool, uint32_t started)
{
    atomic_store(&pool->closing, true);
    atomic_fetch_add(&pool->job, 1);
    futex_wake(&pool->job, INT_MAX);
    for (uint32_t i = 0; i < started; i++)
        ASSERT(pthread_join(pool->workers[i].thread, NULL) == 0);
}

int pool_open(struct pool **pool, const char *name, uint32_t thread_count, bool bind,
              struct err *err)
{
    *pool = NULL;
    ASSERT(thread_count >= 1 && thread_count <= POOL_THREADS_MAX);
    ASSERT(strlen(name) <= 10);
    topo_open(); /* by one thread, before the workers use it */
    uint64_t bytes = sizeof(struct pool) + (thread_count - 1) * sizeof(struct worker);
    struct pool *p = mem_alloc_aligned(CACHE_LINE, bytes);
    p->thread_count = thread_count;
    p->bind = bind;
    snprintf(p->name, sizeof(p->name), "%s", name);

    /* Signals are the main thread's: a worker that took SIGINT would end a wait of nobody. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = 0;
    for (uint32_t i = 0; i + 1 < thread_count && result == 0; i++) {
        p->workers[i] = (struct worker){.pool = p, .index = i + 1};
        int error = pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]);
        if (error != 0) {
            result = err_set_errno(err, error, "cannot start thread %u of %u", i + 2, thread_count);
            stop_workers(p, i);
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result == 0)
        wait_for_workers(p);
    if (result != 0) {
        mem_free(p);
        return result;
    }
    *pool = p;
    return 0;
}

void pool_close(struct pool *pool)
{
    if (pool == NULL)
        return;
    ASSERT(!pool->running);
    stop_workers(pool, pool->thread_count - 1);
    mem_free(pool);
}

uint32_t pool_thread_count(const struct pool *pool)
{
    return pool->thread_count;
}

static void wait_for_done(struct pool *pool, uint32_t task_count)
{
    for (;;) {
        uint32_t done = atomic_load(&pool->done);
        if (done == task_count)
            return;
        if (spin_while_equal(&pool->done, done))
            continue;
        atomic_store(&pool->caller_sleeps, true);
        /* Only the last task wakes the caller, so it sleeps through the others. */
        while ((done = atomic_load(&pool->done)) != task_count)
            futex_wait(&pool->done, done);
        atomic_store(&pool->caller_sleeps, false);
    }
}

void pool_run(struct pool *pool, void (*fn)(void *context, uint32_t task, uint32_t worker),
              void *context, uint32_t task_count)
{
    ASSERT(fn != NULL);
    ASSERT(!pool->running); /* one caller at a time, and no job inside a job */
    if (task_count == 0)
        return;
    pool->running = true;
    if (pool->bind && !(pool->caller_bound && pthread_equal(pool->caller, pthread_self()))) {
        topo_bind_thread(0);
        pool->caller = pthread_self();
        pool->caller_bound = true;
    }
    ASSERT((uint32_t)atomic_load_explicit(&pool->ticket, memory_order_relaxed) == 0);
    atomic_store_explicit(&pool->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&pool->context, context, memory_order_relaxed);
    atomic_store_explicit(&pool->task_count, task_count, memory_order_relaxed);
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    uint64_t generation = ++pool->generation;
    atomic_store_explicit(&pool->ticket, generation << 32 | task_count, memory_order_release);
    /* A single task is the caller's; waking somebody for it would only cost. */
    if (task_count > 1 && pool->thread_count > 1) {
        atomic_fetch_add(&pool->job, 1);
        if (atomic_load(&pool->sleepers) > 0)
            futex_wake(&pool->job, (int)MIN(task_count - 1, (uint32_t)INT_MAX));
    }
    work(pool, 0);
    wait_for_done(pool, task_count);
    pool->running = false;
}
