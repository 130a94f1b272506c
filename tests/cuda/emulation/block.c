/*
 * One block at a time: its threads, what they meet in, and in which order they run.
 *
 * Warps are run one after the other, each until none of its lanes can go on, so that some run far
 * ahead of others: in turns lane by lane, a missing barrier before memory is used again would stay
 * hidden. A collective is computed by the last lane that comes, over the operands on the others'
 * stacks.
 */
#include "internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

struct emulation_indices emulation_index;
_Thread_local struct thread *running_thread;
_Thread_local bool block_silent;
const void *block_call;
size_t block_call_bytes;

static struct thread threads[THREADS_MAX];
static struct block block;
static struct fiber *idle; /* fibers without a thread */
static unsigned char *shared_region;
static void (*run_call)(const void *);
static const char *kernel_name = "";
static bool aborted;
static bool backwards; /* the order of lanes, drawn anew for every round */

/* -- Threads -- */

static void thread_main(void)
{
    fiber_started();
    for (;;) {
        run_call(block_call);
        emulation_copy_wait(0);
        running_thread->state = THREAD_DONE;
        fiber_leave(running_thread->fiber);
    }
}

static struct fiber *take_fiber(void)
{
    struct fiber *fiber = idle;
    if (fiber) {
        idle = fiber->next;
        return fiber;
    }
    fiber = malloc(sizeof(*fiber));
    if (!fiber)
        abort();
    fiber_init(fiber, thread_main);
    return fiber;
}

static void give_fiber(struct thread *thread)
{
    thread->fiber->next = idle;
    idle = thread->fiber;
    thread->fiber = NULL;
}

static void wait_as(enum thread_state state)
{
    running_thread->state = state;
    fiber_leave(running_thread->fiber);
}

void block_abort(void)
{
    aborted = true;
    struct thread *thread = running_thread;
    if (!thread)
        return;
    thread->state = THREAD_DONE;
    fiber_leave(thread->fiber);
    abort();
}

void block_describe(char *text, size_t bytes)
{
    const struct thread *t = running_thread;
    snprintf(text, bytes, " in %s, block (%u, %u, %u), thread %u", kernel_name, t->indices.block.x,
             t->indices.block.y, t->indices.block.z, t->number);
}

unsigned int emulation_lane(void)
{
    return running_thread->lane;
}

unsigned char *emulation_shared(void)
{
    return running_thread->block->shared;
}

/* -- Meeting -- */

void emulation_barrier(struct emulation_place place)
{
    running_thread->place = place;
    wait_as(THREAD_AT_BARRIER);
}

static uint32_t lanes_of_warp(uint32_t warp)
{
    uint32_t left = block.thread_count - warp * WARP;
    return left < WARP ? left : WARP;
}

static bool waits_alike(const struct thread *a, const struct thread *b)
{
    return a->state == THREAD_AT_WARP && a->mask == b->mask && a->all == b->all;
}

/* Whether all lanes of thread's mask that are still there have come. */
static bool warp_complete(struct thread *thread)
{
    struct thread *first = thread - thread->lane;
    for (uint32_t l = 0; l < lanes_of_warp(thread->warp); l++) {
        struct thread *other = first + l;
        if (!(thread->mask >> l & 1) || other->state == THREAD_DONE)
            continue;
        if (!waits_alike(other, thread))
            return false;
        if (thread->aligned && other->place.line != thread->place.line)
            emulation_fault("aligned", "%s: lanes %u and %u stand at lines %d and %d", thread->what,
                            thread->lane, l, thread->place.line, other->place.line);
    }
    return true;
}

static void warp_run(struct thread *thread)
{
    struct thread *first = thread - thread->lane;
    void *operands[WARP] = {NULL};
    for (uint32_t l = 0; l < lanes_of_warp(thread->warp); l++)
        if (thread->mask >> l & 1 && first[l].state == THREAD_AT_WARP)
            operands[l] = first[l].operand;
    block_silent = true;
    thread->all(operands, thread->mask);
    block_silent = false;
    for (uint32_t l = 0; l < WARP; l++)
        if (operands[l])
            first[l].state = THREAD_READY;
}

static void check_mask(const struct thread *thread, uint32_t mask, const char *what)
{
    uint32_t lanes = lanes_of_warp(thread->warp);
    if (!(mask >> thread->lane & 1))
        emulation_fault("mask", "%s at line %d: lane %u is not in its own mask %08x", what,
                        thread->place.line, thread->lane, mask);
    if (lanes < WARP && mask >> lanes)
        emulation_fault("mask", "%s at line %d: mask %08x names lanes that the block does not have",
                        what, thread->place.line, mask);
}

void emulation_collective(unsigned int mask, void *operand,
                          void (*all)(void *const *lanes, unsigned int mask), const char *what,
                          bool aligned, struct emulation_place place)
{
    struct thread *thread = running_thread;
    thread->place = place;
    check_mask(thread, mask, what);
    thread->mask = mask;
    thread->operand = operand;
    thread->all = all;
    thread->what = what;
    thread->aligned = aligned;
    thread->state = THREAD_AT_WARP;
    if (warp_complete(thread))
        warp_run(thread);
    else
        fiber_leave(thread->fiber);
}

static void count_warp_barrier(void *const *lanes, unsigned int mask)
{
    const struct thread *thread = running_thread;
    uint32_t there = lanes_of_warp(thread->warp);
    uint32_t everyone = there == WARP ? ~0u : (1u << there) - 1;
    (void)lanes;
    if ((mask & everyone) == everyone)
        block.warp_interval[thread->warp]++;
}

void emulation_warp_barrier(unsigned int mask, struct emulation_place place)
{
    emulation_collective(mask, running_thread, count_warp_barrier, "__syncwarp", false, place);
}

/* -- cp.async -- */

static void copy_now(const struct copy_async *copy)
{
    block_silent = true;
    memcpy(copy->shared, copy->global, copy->valid);
    memset((char *)copy->shared + copy->valid, 0, 16 - copy->valid);
    block_silent = false;
}

void emulation_copy_async(void *shared, const void *global, unsigned int valid)
{
    struct thread *thread = running_thread;
    const struct block *b = thread->block;
    if ((uintptr_t)shared % 16 || (valid && (uintptr_t)global % 16))
        emulation_fault("misaligned", "cp.async to %p from %p", shared, global);
    if ((uintptr_t)shared - (uintptr_t)b->shared > b->shared_bytes - 16)
        emulation_fault("cp.async", "%p is not in this block's shared memory", shared);
    if (valid)
        detector_access((uintptr_t)global, valid, false, false, __builtin_return_address(0));
    detector_copy(shared, 16, true);
    if (thread->copy_count == thread->copy_capacity) {
        thread->copy_capacity = thread->copy_capacity ? 2 * thread->copy_capacity : 64;
        thread->copies = realloc(thread->copies, thread->copy_capacity * sizeof(*thread->copies));
        if (!thread->copies)
            abort();
    }
    struct copy_async copy = {shared, global, valid, thread->copy_group};
    thread->copies[thread->copy_count++] = copy;
    /* A GPU writes at any time from here to the wait: the seed says at once, or as late as can be.
     */
    if (random_below(2))
        copy_now(&copy);
}

void emulation_copy_commit(void)
{
    running_thread->copy_group++;
}

void emulation_copy_wait(unsigned int groups_left)
{
    struct thread *thread = running_thread;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < thread->copy_count; i++) {
        struct copy_async copy = thread->copies[i];
        if (copy.group + groups_left >= thread->copy_group && groups_left > 0) {
            thread->copies[kept++] = copy;
            continue;
        }
        detector_copy(copy.shared, 16, false);
        copy_now(&copy);
    }
    thread->copy_count = kept;
}

void emulation_access(const void *memory, size_t bytes, bool write)
{
    detector_access((uintptr_t)memory, bytes, write, false, __builtin_return_address(0));
}

/* -- A block -- */

static void tell_stuck(const char *kind)
{
    char text[600];
    size_t used = 0;
    const struct thread *last = NULL;
    for (uint32_t i = 0; i < block.thread_count && used < sizeof(text) - 100; i++) {
        const struct thread *t = &threads[i];
        bool same = last && last->state == t->state &&
                    (t->state == THREAD_DONE || last->place.line == t->place.line);
        if (same)
            continue;
        last = t;
        if (t->state == THREAD_DONE)
            used += (size_t)snprintf(text + used, sizeof(text) - used, " from %u: ended;", i);
        else
            used += (size_t)snprintf(text + used, sizeof(text) - used, " from %u: at line %d (%s);",
                                     i, t->place.line,
                                     t->state == THREAD_AT_BARRIER ? "__syncthreads" : t->what);
    }
    emulation_fault(kind, "threads of %s, block %u, wait for each other:%s", kernel_name, block.id,
                    text);
    aborted = true;
}

static void run_thread(struct thread *thread)
{
    if (thread->state == THREAD_FRESH)
        thread->fiber = take_fiber();
    thread->state = THREAD_READY;
    running_thread = thread;
    emulation_index = thread->indices;
    fiber_enter(thread->fiber);
    running_thread = NULL;
    if (thread->state != THREAD_DONE || aborted)
        return;
    block.live--;
    give_fiber(thread);
}

/* Until none of the warp's lanes can go on, or the seed stops it. True if any ran. */
static bool run_warp(uint32_t warp)
{
    uint32_t lanes = lanes_of_warp(warp);
    bool ran = false, again = true;
    while (again && !aborted) {
        again = false;
        uint32_t rotation = random_below(lanes);
        backwards = random_below(2);
        for (uint32_t i = 0; i < lanes && !aborted; i++) {
            uint32_t lane = (i + rotation) % lanes;
            struct thread *thread = &threads[warp * WARP + (backwards ? lanes - 1 - lane : lane)];
            if (thread->state > THREAD_READY)
                continue;
            ran = again = true;
            run_thread(thread);
        }
        if (random_below(8) == 0)
            break;
    }
    return ran;
}

/* True if all threads stood at one barrier and went on. */
static bool pass_barrier(void)
{
    uint32_t waiting = 0;
    const struct thread *first = NULL;
    bool same = true;
    for (uint32_t i = 0; i < block.thread_count; i++) {
        if (threads[i].state != THREAD_AT_BARRIER)
            continue;
        waiting++;
        if (!first)
            first = &threads[i];
        same &= threads[i].place.line == first->place.line;
    }
    if (waiting == 0 || waiting < block.live)
        return false;
    if (waiting < block.thread_count || !same) {
        tell_stuck("barrier-divergence");
        return false;
    }
    for (uint32_t i = 0; i < block.thread_count; i++)
        threads[i].state = THREAD_READY;
    block.interval++;
    return true;
}

/* A collective whose missing lanes have ended since can run now. */
static bool release_warps(void)
{
    for (uint32_t i = 0; i < block.thread_count; i++) {
        struct thread *thread = &threads[i];
        if (thread->state == THREAD_AT_WARP && warp_complete(thread)) {
            running_thread = thread;
            warp_run(thread);
            running_thread = NULL;
            return true;
        }
    }
    return false;
}

static void shuffle(uint32_t *order, uint32_t count)
{
    for (uint32_t i = count; i > 1; i--) {
        uint32_t other = random_below(i), kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
}

static void run_block(void)
{
    uint32_t order[THREADS_MAX / WARP], warps = (block.thread_count + WARP - 1) / WARP;
    for (uint32_t i = 0; i < warps; i++)
        order[i] = i;
    while (block.live > 0 && !aborted) {
        bool ran = false;
        shuffle(order, warps);
        for (uint32_t i = 0; i < warps && !aborted; i++)
            ran |= run_warp(order[i]);
        if (aborted || block.live == 0)
            break;
        ran |= pass_barrier();
        if (!ran && !aborted && !release_warps())
            tell_stuck("deadlock");
    }
}

static void shared_open(size_t bytes)
{
    if (!shared_region) {
        shared_region = mmap(NULL, SHARED_MAX + 2 * PAGE, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        size_t end = (SHARED_MAX + PAGE - 1) / PAGE * PAGE;
        if (shared_region == MAP_FAILED || mprotect(shared_region + end, PAGE, PROT_NONE))
            abort();
    }
    unsigned char *end = shared_region + (SHARED_MAX + PAGE - 1) / PAGE * PAGE;
    block.shared_bytes = bytes;
    block.shared = end - (bytes + 127) / 128 * 128;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(shared_region, (size_t)(end - shared_region));
#endif
    memset(block.shared, 0xff, bytes);
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(shared_region, (size_t)(block.shared - shared_region));
    __asan_poison_memory_region(block.shared + bytes, (size_t)(end - block.shared) - bytes);
#endif
}

static struct emulation_triple split(uint32_t number, struct emulation_triple size)
{
    return (struct emulation_triple){number % size.x, number / size.x % size.y,
                                     number / size.x / size.y};
}

static void block_open(const struct emulation_launch *launch, uint32_t id)
{
    struct emulation_triple size = launch->block_size;
    block = (struct block){.id = id, .interval = 1};
    block.thread_count = block.live = size.x * size.y * size.z;
    shared_open(launch->shared_bytes);
    for (uint32_t i = 0; i < block.thread_count; i++) {
        struct thread *t = &threads[i];
        t->indices = (struct emulation_indices){split(i, size), split(id, launch->grid_size), size,
                                                launch->grid_size};
        t->number = i;
        t->lane = i % WARP;
        t->warp = i / WARP;
        t->block = &block;
        t->state = THREAD_FRESH;
        t->copy_count = t->copy_group = 0;
    }
    detector_block_start(&block);
}

/* After a fault the fibers stand in the middle of something. */
static void clean_up(void)
{
    for (uint32_t i = 0; i < block.thread_count; i++) {
        if (!threads[i].fiber)
            continue;
        fiber_restart(threads[i].fiber, thread_main);
        give_fiber(&threads[i]);
    }
    running_thread = NULL;
}

void block_run_kernel(const struct emulation_launch *launch, struct block_range range,
                      const char *name)
{
    struct emulation_triple grid = launch->grid_size;
    uint32_t count = grid.x * grid.y * grid.z;
    uint32_t first = range.last_blocks && range.last_blocks < count ? count - range.last_blocks : 0;
    if (range.first_only)
        count = 1;
    uint32_t *order = malloc((count - first) * sizeof(*order));
    if (!order)
        abort();
    for (uint32_t i = first; i < count; i++)
        order[i - first] = i;
    shuffle(order, count - first);
    block_call = launch->call;
    block_call_bytes = launch->call_bytes;
    run_call = launch->run;
    kernel_name = name;
    aborted = false;
    for (uint32_t i = 0; i < count - first && !aborted; i++) {
        block_open(launch, order[i]);
        run_block();
    }
    if (aborted)
        clean_up();
    free(order);
}
