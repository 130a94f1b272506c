/*
 * The checked flavour: kernels and tests are compiled with -fsanitize=thread, whose calls at every
 * access land here and not in that sanitizer's library. What is told apart from the schedule: every
 * 4 bytes of device, pinned and shared memory remember their last write and reads, by op, block,
 * thread and how many barriers these had passed; two accesses of which one writes, and neither
 * comes before the other by what CUDA promises, are a race.
 */
#include "internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const bool emulation_is_checked = true;

#define NO_BLOCK ~0u

enum { ATOMIC = 1, MANY_THREADS = 2, MANY_WARPS = 4 };

struct access {
    uint32_t op, block;
    uint16_t thread, interval, warp_interval;
    uint8_t mask; /* a bit per byte of the cell */
    uint8_t flags;
};

/* Reads are kept apart by halves of the cell: neighbours that each read and write a bf16 in place
 * do not race. */
#define HALVES 2

struct cell {
    struct access written, read[HALVES];
    uint32_t other_read; /* an op whose reads are not before `read` */
    uint8_t initialised; /* a bit per byte */
    bool in_flight;      /* of a cp.async that is not waited for */
};

static struct cell *shared_cells;

/* -- Reports -- */

/* file:line of a place in the program, outside of the emulation's headers. */
static void source_of(void *from, char *text, size_t bytes)
{
    char program[300], command[500], line[400] = "";
    ssize_t length = readlink("/proc/self/exe", program, sizeof(program) - 1);
    snprintf(text, bytes, "unknown place");
    FILE *maps = length > 0 ? fopen("/proc/self/maps", "r") : NULL;
    unsigned long base = 0;
    if (!maps)
        return;
    program[length] = 0;
    if (fscanf(maps, "%lx", &base) != 1)
        base = 0;
    fclose(maps);
    snprintf(command, sizeof(command), "addr2line -i -e '%s' %#lx 2>/dev/null", program,
             (unsigned long)from - 1 - base);
    FILE *pipe = popen(command, "r");
    while (pipe && fgets(line, sizeof(line), pipe)) {
        line[strcspn(line, " \n")] = 0;
        const char *name = strrchr(line, '/');
        snprintf(text, bytes, "%.100s", name ? name + 1 : line);
        if (!strstr(line, "/emulation/") && !strstr(line, "ptx.cuh"))
            break;
    }
    if (pipe)
        pclose(pipe);
}

static void tell_access(const struct access *a, bool write, char *text, size_t bytes)
{
    const char *name = op_find(a->op)->name;
    const char *verb = write ? "write" : "read";
    if (a->block == NO_BLOCK)
        snprintf(text, bytes, "%s by %s (op %u)", verb, name, a->op);
    else
        snprintf(text, bytes, "%s by %s (op %u), block %u, thread %u%s, after %u barriers", verb,
                 name, a->op, a->block, a->thread, a->flags & MANY_THREADS ? " and others" : "",
                 a->interval - 1u);
}

struct touch {
    uintptr_t address;
    bool write, atomic, check_initialised;
    void *from;
    const char *space;
};

static void race(const struct access *before, bool before_wrote, const struct access *now,
                 const struct touch *t)
{
    char first[200], second[200], source[128] = "a copy", where[200];
    tell_access(before, before_wrote, first, sizeof(first));
    tell_access(now, t->write, second, sizeof(second));
    if (t->from)
        source_of(t->from, source, sizeof(source));
    if (memory_find(t->address))
        memory_describe(t->address, where, sizeof(where));
    else
        snprintf(where, sizeof(where), "shared memory");
    emulation_fault("race", "at %s: %s [%s] is not ordered after %s", where, second, source, first);
}

/* -- Order -- */

static bool ordered(const struct access *before, const struct access *now)
{
    if (before->op != now->op)
        return op_before(before->op, now->op);
    if (before->block != now->block)
        return false;
    if (before->interval < now->interval)
        return true;
    if (before->thread == now->thread && !(before->flags & MANY_THREADS))
        return true;
    return before->thread / WARP == now->thread / WARP && !(before->flags & MANY_WARPS) &&
           before->warp_interval < now->warp_interval;
}

static struct access access_now(void)
{
    struct access a = {.op = current_op, .block = NO_BLOCK};
    const struct thread *t = running_thread;
    if (t) {
        a.block = t->block->id;
        a.thread = (uint16_t)t->number;
        a.interval = t->block->interval;
        a.warp_interval = t->block->warp_interval[t->warp];
    } else if (a.op == 0) {
        a.op = op_of_host();
    }
    return a;
}

/* -- One cell -- */

static bool clashes(const struct access *before, const struct access *now, bool atomic)
{
    return before->op && before->mask & now->mask && !(atomic && before->flags & ATOMIC) &&
           !ordered(before, now);
}

/* The bytes of a half that mask has. */
static uint8_t half_of(uint8_t mask, unsigned half)
{
    return mask & (uint8_t)(3u << (2 * half));
}

static void cell_write(struct cell *cell, const struct access *now, const struct touch *t)
{
    bool unread = true;
    for (unsigned half = 0; half < HALVES; half++) {
        struct access *read = &cell->read[half];
        if (clashes(read, now, t->atomic))
            race(read, false, now, t);
        if (!(read->mask & ~now->mask))
            read->op = 0;
        unread &= read->op == 0;
    }
    if (cell->other_read && !op_before(cell->other_read, now->op)) {
        struct access other = {.op = cell->other_read, .block = NO_BLOCK};
        race(&other, false, now, t);
    }
    cell->written = *now;
    cell->initialised |= now->mask;
    if (unread)
        cell->other_read = 0;
}

/* One record has to do for all readers since the last write: it says whether they are of several
 * threads or warps. */
static void half_read(struct cell *cell, unsigned half, struct access now)
{
    struct access *read = &cell->read[half];
    now.mask = half_of(now.mask, half);
    if (read->op == now.op && read->block == now.block && read->interval == now.interval &&
        (read->thread != now.thread || read->flags & MANY_THREADS)) {
        uint8_t many = MANY_THREADS | (read->flags & MANY_WARPS);
        if (read->thread / WARP != now.thread / WARP)
            many |= MANY_WARPS;
        now.flags = (now.flags & read->flags & ATOMIC) | many;
        now.mask |= read->mask;
        if (read->warp_interval > now.warp_interval)
            now.warp_interval = read->warp_interval;
    } else if (read->op && read->op != now.op && !op_before(read->op, now.op)) {
        cell->other_read = read->op;
    }
    *read = now;
}

static void cell_read(struct cell *cell, const struct access *now, const struct touch *t)
{
    if (t->check_initialised && (cell->initialised & now->mask) != now->mask) {
        char source[128] = "a copy", where[200] = "";
        if (t->from)
            source_of(t->from, source, sizeof(source));
        if (memory_find(t->address))
            memory_describe(t->address, where, sizeof(where));
        emulation_fault("uninitialised", "read of %s memory that nobody wrote, %s [%s]", t->space,
                        where, source);
    }
    for (unsigned half = 0; half < HALVES; half++)
        if (half_of(now->mask, half))
            half_read(cell, half, *now);
}

static void cell_touch(struct cell *cell, struct access now, uint8_t mask, const struct touch *t)
{
    now.mask = mask;
    now.flags = t->atomic ? ATOMIC : 0;
    if (cell->in_flight) {
        char source[128] = "a copy";
        cell->in_flight = false;
        if (t->from)
            source_of(t->from, source, sizeof(source));
        emulation_fault("cp.async",
                        "%s of shared memory before thread %u has waited for its copy "
                        "[%s]",
                        t->write ? "write" : "read", cell->written.thread, source);
    }
    if (clashes(&cell->written, &now, t->atomic))
        race(&cell->written, true, &now, t);
    if (t->write)
        cell_write(cell, &now, t);
    if (!t->write || t->atomic)
        cell_read(cell, &now, t);
}

static void touch_span(struct cell *cells, uintptr_t base, size_t bytes, const struct access *now,
                       struct touch t)
{
    uintptr_t at = t.address, end = at + bytes;
    uint32_t faults = emulation_fault_count();
    while (at < end && emulation_fault_count() == faults) {
        size_t index = (at - base) / 4, inside = (at - base) % 4;
        size_t count = end - at < 4 - inside ? end - at : 4 - inside;
        t.address = at;
        cell_touch(&cells[index], *now, (uint8_t)(((1u << count) - 1) << inside), &t);
        at += count;
    }
}

/* -- Which memory an address is of -- */

static struct cell *cells_of(struct allocation *a)
{
    if (!a->shadow) {
        a->shadow_bytes = (a->bytes / 4 + 2) * sizeof(struct cell);
        a->shadow = mmap(NULL, a->shadow_bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (a->shadow == MAP_FAILED)
            abort();
    }
    return a->shadow;
}

void detector_block_start(struct block *block)
{
    size_t count = SHARED_MAX / 4 + 2;
    if (!shared_cells)
        shared_cells = calloc(count, sizeof(*shared_cells));
    if (!shared_cells)
        abort();
    memset(shared_cells, 0, (block->shared_bytes / 4 + 1) * sizeof(*shared_cells));
}

static void misplaced(const char *kind, uintptr_t address, size_t bytes, bool write, void *from)
{
    char where[200], source[128];
    memory_describe(address, where, sizeof(where));
    source_of(from, source, sizeof(source));
    emulation_fault(kind, "%s of %zu bytes at %s [%s]", write ? "write" : "read", bytes, where,
                    source);
}

static bool aligned(uintptr_t address, size_t bytes)
{
    return address % (bytes > 16 ? 16 : bytes) == 0;
}

/* True if the address is near the block's shared memory, and so dealt with. */
static bool touch_shared(struct touch *t, size_t bytes)
{
    const struct block *b = running_thread->block;
    uintptr_t base = (uintptr_t)b->shared;
    if (t->address - (base - 2 * PAGE) >= 2 * PAGE + b->shared_bytes + PAGE)
        return false;
    char source[128];
    if (t->address < base || t->address + bytes > base + b->shared_bytes) {
        source_of(t->from, source, sizeof(source));
        emulation_fault("out-of-bounds",
                        "%s of %zu bytes at offset %ld of %zu of shared memory "
                        "[%s]",
                        t->write ? "write" : "read", bytes, (long)(t->address - base),
                        b->shared_bytes, source);
    }
    if (!aligned(t->address, bytes))
        misplaced("misaligned", t->address, bytes, t->write, t->from);
    t->space = "shared";
    t->check_initialised = true;
    struct access now = access_now();
    touch_span(shared_cells, base, bytes, &now, *t);
    return true;
}

static void touch_allocation(struct allocation *a, struct touch *t, size_t bytes)
{
    if (a->freed)
        misplaced("use-after-free", t->address, bytes, t->write, t->from);
    else if (t->address < a->base || t->address + bytes > a->base + a->bytes)
        misplaced("out-of-bounds", t->address, bytes, t->write, t->from);
    else if (running_thread && !aligned(t->address, bytes))
        misplaced("misaligned", t->address, bytes, t->write, t->from);
    else if (!running_thread && a->device)
        misplaced("host-access", t->address, bytes, t->write, t->from);
    else {
        t->space = a->device ? "device" : "pinned";
        t->check_initialised = !a->written;
        struct access now = access_now();
        touch_span(cells_of(a), a->base, bytes, &now, *t);
    }
}

/* What needs no watching: the kernel's parameters, constants, the built-in indices. */
static bool is_constant(uintptr_t address, bool write)
{
    return !write &&
           (address - (uintptr_t)block_call < block_call_bytes || memory_is_static(address));
}

void detector_access(uintptr_t address, size_t bytes, bool write, bool atomic, void *from)
{
    if (block_silent || bytes == 0)
        return;
    if (running_thread &&
        address - (uintptr_t)running_thread->fiber->stack < running_thread->fiber->stack_bytes)
        return;
    struct touch t = {.address = address, .write = write, .atomic = atomic, .from = from};
    if (running_thread && touch_shared(&t, bytes))
        return;
    struct allocation *a = memory_find(address);
    if (a) {
        CALL_LOCK; /* threads of the host come as they like */
        touch_allocation(a, &t, bytes);
    } else if (running_thread && !is_constant(address, write))
        misplaced("illegal-address", address, bytes, write, from);
}

static void touch_range(const void *memory, size_t bytes, bool write, bool check, uint32_t op)
{
    struct allocation *a = memory_find((uintptr_t)memory);
    if (!a || a->freed || bytes == 0)
        return;
    struct touch t = {.address = (uintptr_t)memory,
                      .write = write,
                      .check_initialised = check && !a->written,
                      .space = a->device ? "device" : "pinned"};
    struct access now = {.op = op, .block = NO_BLOCK};
    touch_span(cells_of(a), a->base, bytes, &now, t);
}

void detector_range(const void *memory, size_t bytes, bool write, uint32_t op)
{
    touch_range(memory, bytes, write, true, op);
}

void detector_copied_down(const void *memory, size_t bytes, uint32_t op)
{
    touch_range(memory, bytes, false, false, op);
}

void detector_copy(void *shared, size_t bytes, bool begin)
{
    uintptr_t base = (uintptr_t)running_thread->block->shared;
    struct cell *cells = shared_cells + ((uintptr_t)shared - base) / 4;
    for (size_t i = 0; i < bytes / 4 && !begin; i++)
        cells[i].in_flight = false;
    detector_access((uintptr_t)shared, bytes, true, false, __builtin_return_address(0));
    for (size_t i = 0; i < bytes / 4 && begin; i++) {
        cells[i].in_flight = true;
        cells[i].initialised = 0;
    }
}

/* -- What the compiler calls -- */

#define HERE __builtin_return_address(0)

#define PLAIN_ACCESS(bytes)                                                                        \
    void __tsan_read##bytes(void *p)                                                               \
    {                                                                                              \
        detector_access((uintptr_t)p, bytes, false, false, HERE);                                  \
    }                                                                                              \
    void __tsan_write##bytes(void *p)                                                              \
    {                                                                                              \
        detector_access((uintptr_t)p, bytes, true, false, HERE);                                   \
    }                                                                                              \
    void __tsan_unaligned_read##bytes(void *p)                                                     \
    {                                                                                              \
        detector_access((uintptr_t)p, bytes, false, false, HERE);                                  \
    }                                                                                              \
    void __tsan_unaligned_write##bytes(void *p)                                                    \
    {                                                                                              \
        detector_access((uintptr_t)p, bytes, true, false, HERE);                                   \
    }

#pragma GCC diagnostic ignored "-Wmissing-prototypes"
PLAIN_ACCESS(1)
PLAIN_ACCESS(2)
PLAIN_ACCESS(4)
PLAIN_ACCESS(8)
PLAIN_ACCESS(16)

void __tsan_read_range(void *p, size_t bytes)
{
    detector_access((uintptr_t)p, bytes, false, false, HERE);
}

void __tsan_write_range(void *p, size_t bytes)
{
    detector_access((uintptr_t)p, bytes, true, false, HERE);
}

uint32_t __tsan_atomic32_fetch_or(volatile uint32_t *p, uint32_t value, int order)
{
    (void)order;
    detector_access((uintptr_t)p, 4, true, true, HERE);
    return __atomic_fetch_or(p, value, __ATOMIC_SEQ_CST);
}

void __tsan_atomic8_store(volatile uint8_t *p, uint8_t value, int order)
{
    (void)order;
    detector_access((uintptr_t)p, 1, true, true, HERE);
    __atomic_store_n(p, value, __ATOMIC_SEQ_CST);
}

/* What sources that are compiled with -Dmemcpy=watched_memcpy call. */
void *watched_memcpy(void *to, const void *from, size_t bytes)
{
    detector_access((uintptr_t)from, bytes, false, false, HERE);
    detector_access((uintptr_t)to, bytes, true, false, HERE);
    return memcpy(to, from, bytes);
}

void __tsan_func_entry(void *caller)
{
    (void)caller;
}

void __tsan_func_exit(void) {}

void __tsan_init(void) {}
