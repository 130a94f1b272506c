/*
 * Invariant: deadline_ns is IDLE, or the time at which the watched call is late, or FIRED for good.
 * The text is written while it is IDLE and read only by who has made it FIRED.
 */
#include "core/watch.h"

#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

/* What is touched counts, and that is little; but thread-local data of all libraries lies in it
 * too, and cuBLASLt alone, where it is linked, has 92 KiB. */
#define STACK_BYTES (256 * KIB)
#define IDLE        0
#define FIRED       1

struct watch {
    uint64_t patience_ns;
    pthread_t thread;
    sem_t changed; /* something was begun, or all ends */
    atomic_bool stop;
    atomic_uint_least64_t deadline_ns;
    char text[WATCH_TEXT_MAX];
};

/* Until something has changed, or the deadline has passed. */
static void sleep_until(struct watch *watch, uint64_t deadline_ns)
{
    struct timespec at = {(time_t)(deadline_ns / 1000000000), (long)(deadline_ns % 1000000000)};
    int result = deadline_ns == IDLE ? sem_wait(&watch->changed)
                                     : sem_clockwait(&watch->changed, CLOCK_MONOTONIC, &at);
    ASSERT(result == 0 || errno == EINTR || errno == ETIMEDOUT);
}

static void *watch_main(void *context)
{
    struct watch *watch = context;
    mem_own_thread();
    while (!atomic_load(&watch->stop)) {
        sleep_until(watch, atomic_load(&watch->deadline_ns));
        uint_least64_t deadline_ns = atomic_load(&watch->deadline_ns);
        if (deadline_ns == IDLE || clock_ns() < deadline_ns)
            continue;
        if (atomic_compare_exchange_strong(&watch->deadline_ns, &deadline_ns, FIRED))
            fatal("%s", watch->text);
    }
    return NULL;
}

int watch_open(struct watch **out, uint64_t patience_ns, struct err *err)
{
    struct watch *watch = *out = mem_alloc(1, sizeof(*watch));
    watch->patience_ns = patience_ns;
    sem_init(&watch->changed, 0, 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    int error = pthread_create(&watch->thread, &attributes, watch_main, watch);
    pthread_attr_destroy(&attributes);
    if (error == 0) {
        pthread_setname_np(watch->thread, "watch");
        return 0;
    }
    sem_destroy(&watch->changed);
    mem_free(watch);
    *out = NULL;
    return err_set_errno(err, error, "cannot start the thread that looks after the drive");
}

void watch_close(struct watch *watch)
{
    if (!watch)
        return;
    ASSERT(atomic_load(&watch->deadline_ns) == IDLE);
    atomic_store(&watch->stop, true);
    sem_post(&watch->changed);
    pthread_join(watch->thread, NULL);
    sem_destroy(&watch->changed);
    mem_free(watch);
}

void watch_begin(struct watch *watch, const char *format, ...)
{
    ASSERT(atomic_load(&watch->deadline_ns) == IDLE);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(watch->text, sizeof(watch->text), format, arguments);
    va_end(arguments);
    atomic_store(&watch->deadline_ns, clock_ns() + watch->patience_ns);
    sem_post(&watch->changed);
}

void watch_end(struct watch *watch)
{
    if (atomic_exchange(&watch->deadline_ns, IDLE) == FIRED)
        for (;;)
            pause(); /* the program is being ended */
}
