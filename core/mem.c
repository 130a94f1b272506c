/*
 * How the heap is counted: with jemalloc's thread caches off (malloc_conf below), every allocation
 * goes to an arena and that arena's counters are exact. A library bracket moves its thread to an
 * arena of its own, whose count is left out. So neither costs anything per allocation beyond the
 * arena's lock, which nobody contends for: the steady state does not allocate.
 */
#include "core/mem.h"
#include "core/base.h"
#include "core/topo.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifndef SPILLWAY_SYSTEM_HEAP
#include <jemalloc/jemalloc.h>
#endif

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

#define PAGE_BYTES       4096
#define HUGE_BYTES       (2 * MIB)
#define HUGE_ARENA_MIN   (4 * MIB)  /* below, a huge page's rounding is not worth asking */
#define PREFAULT_SLICE   (64 * MIB) /* per thread at least, else starting it costs more */
#define PREFAULT_THREADS 8          /* zeroing saturates memory with fewer */
#define TEXT_BYTES_MAX   8192
#define PATH_BYTES_MAX   4096

/* The heap */

void *mem_alloc(uint64_t count, uint64_t size)
{
    uint64_t bytes = mul_checked(count, size);
    void *pointer = calloc(1, MAX(bytes, 1));
    if (pointer == NULL)
        fatal("out of memory: %" PRIu64 " bytes were asked for; lower the budgets or free memory",
              bytes);
    return pointer;
}

void *mem_alloc_aligned(uint64_t alignment, uint64_t bytes)
{
    ASSERT(alignment >= sizeof(void *) && (alignment & (alignment - 1)) == 0);
    void *pointer = NULL;
    if (posix_memalign(&pointer, alignment, MAX(bytes, 1)) != 0)
        fatal("out of memory: %" PRIu64 " bytes were asked for; lower the budgets or free memory",
              bytes);
    return memset(pointer, 0, bytes);
}

void *mem_realloc(void *old, uint64_t count, uint64_t size)
{
    uint64_t bytes = mul_checked(count, size);
    void *pointer = realloc(old, MAX(bytes, 1));
    if (pointer == NULL)
        fatal("out of memory: %" PRIu64 " bytes were asked for; lower the budgets or free memory",
              bytes);
    return pointer;
}

void mem_free(void *pointer)
{
    free(pointer);
}

char *mem_strdup(const char *text)
{
    ASSERT(text != NULL);
    size_t bytes = strlen(text) + 1;
    return memcpy(mem_alloc(bytes, 1), text, bytes);
}

#ifdef SPILLWAY_SYSTEM_HEAP

bool mem_heap_has_stats(void)
{
    return false;
}

uint64_t mem_heap_count(void)
{
    return 0;
}

uint64_t mem_heap_bytes(void)
{
    return 0;
}

void mem_own_thread(void) {}

void mem_library_enter(void) {}

void mem_library_leave(void) {}

#else

/* Few arenas instead of four per hardware thread, and no thread caches: on a machine with many
 * cores that is tens of megabytes that belong to the budget. */
#define OWN_ARENAS 4u

/* Read by jemalloc before main. The one arena is for threads that are not the program's own. */
const char *malloc_conf = "tcache:false,narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0";

static bool heap_counted;
static unsigned own_arenas[OWN_ARENAS], library_arena;
static atomic_uint own_threads;
static __thread unsigned library_depth, arena_before;

/* jemalloc purges an arena whenever its last thread leaves it, that is, after every bracket: a
 * matrix product would fault its packing buffers in again each time (a third of its speed). So the
 * library's arena may not give pages back; it stays as large as one call of each thread needs. */
static void keep_library_pages(void)
{
    static extent_hooks_t hooks;
    extent_hooks_t *former, *kept = &hooks;
    char name[64];
    size_t size = sizeof(former);
    snprintf(name, sizeof(name), "arena.%u.extent_hooks", library_arena);
    ASSERT(mallctl(name, &former, &size, NULL, 0) == 0);
    hooks = *former;
    hooks.dalloc = NULL;
    hooks.decommit = NULL;
    hooks.purge_lazy = NULL;
    hooks.purge_forced = NULL;
    ASSERT(mallctl(name, NULL, NULL, &kept, sizeof(kept)) == 0);
}

static bool create_arena(unsigned *arena)
{
    size_t size = sizeof(*arena);
    return mallctl("arenas.create", arena, &size, NULL, 0) == 0;
}

__attribute__((constructor)) static void heap_start(void)
{
    bool stats = false;
    size_t size = sizeof(stats);
    if (mallctl("config.stats", &stats, &size, NULL, 0) != 0 || !stats)
        return;
    if (!create_arena(&library_arena))
        return;
    for (unsigned i = 0; i < OWN_ARENAS; i++)
        if (!create_arena(&own_arenas[i]))
            return;
    heap_counted = true;
    keep_library_pages();
    mem_own_thread();
}

bool mem_heap_has_stats(void)
{
    return heap_counted;
}

static void heap_refresh(void)
{
    uint64_t epoch = 1;
    ASSERT(mallctl("epoch", NULL, NULL, &epoch, sizeof(epoch)) == 0);
}

static uint64_t arena_count(unsigned arena, const char *sizes)
{
    char name[64];
    snprintf(name, sizeof(name), "stats.arenas.%u.%s.nmalloc", arena, sizes);
    uint64_t count = 0;
    size_t size = sizeof(count);
    ASSERT(mallctl(name, &count, &size, NULL, 0) == 0);
    return count;
}

uint64_t mem_heap_count(void)
{
    if (!heap_counted)
        return 0;
    heap_refresh();
    uint64_t count = 0;
    for (unsigned i = 0; i < OWN_ARENAS; i++)
        count += arena_count(own_arenas[i], "small") + arena_count(own_arenas[i], "large");
    return count;
}

uint64_t mem_heap_bytes(void)
{
    if (!heap_counted)
        return 0;
    heap_refresh();
    size_t bytes = 0, size = sizeof(bytes);
    ASSERT(mallctl("stats.allocated", &bytes, &size, NULL, 0) == 0);
    return bytes;
}

void mem_own_thread(void)
{
    if (!heap_counted)
        return;
    unsigned *arena = &own_arenas[atomic_fetch_add(&own_threads, 1) % OWN_ARENAS];
    ASSERT(mallctl("thread.arena", NULL, NULL, arena, sizeof(*arena)) == 0);
}

void mem_library_enter(void)
{
    if (!heap_counted || library_depth++ > 0)
        return;
    size_t size = sizeof(arena_before);
    ASSERT(mallctl("thread.arena", &arena_before, &size, &library_arena, sizeof(library_arena)) ==
           0);
}

void mem_library_leave(void)
{
    if (!heap_counted)
        return;
    ASSERT(library_depth > 0);
    if (--library_depth == 0)
        ASSERT(mallctl("thread.arena", NULL, NULL, &arena_before, sizeof(arena_before)) == 0);
}

#endif

/* What the kernel says. Everything below reads small files into the stack. */

/* The file's text, cut at size - 1 bytes; false when there is none. */
static bool read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size_t used = 0;
    ssize_t got;
    while (used < size - 1 && (got = read(fd, text + used, size - 1 - used)) != 0) {
        if (got < 0 && errno != EINTR)
            break;
        if (got > 0)
            used += (size_t)got;
    }
    close(fd);
    text[used] = 0;
    return used > 0;
}

/* The number after `key` at the start of a line; 0 when there is no such line. */
static uint64_t number_after(const char *text, const char *key)
{
    size_t length = strlen(key);
    for (const char *line = text; line != NULL && *line != 0;) {
        if (strncmp(line, key, length) == 0)
            return strtoull(line + length, NULL, 10);
        line = strchr(line, '\n');
        line = line != NULL ? line + 1 : NULL;
    }
    return 0;
}

void mem_usage_read(struct mem_usage *usage)
{
    char text[TEXT_BYTES_MAX];
    if (!read_text("/proc/self/status", text, sizeof(text)))
        fatal("cannot read /proc/self/status; is /proc mounted?");
    usage->rss_bytes = number_after(text, "VmRSS:") * KIB;
    usage->rss_peak_bytes = number_after(text, "VmHWM:") * KIB;
    usage->page_table_bytes = number_after(text, "VmPTE:") * KIB;
}

/* The files of one kind of memory cgroup. */
struct cgroup_kind {
    const char *mount, *limit, *current, *stat_inactive, *stat_active;
};

static const struct cgroup_kind cgroup_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                             "inactive_file ", "active_file "};
static const struct cgroup_kind cgroup_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                             "memory.usage_in_bytes", "total_inactive_file ",
                                             "total_active_file "};

static bool read_text_in(const char *folder, const char *name, char *text, size_t size)
{
    char path[PATH_BYTES_MAX];
    int bytes = snprintf(path, sizeof(path), "%s/%s", folder, name);
    return bytes > 0 && (size_t)bytes < sizeof(path) && read_text(path, text, size);
}

/* What one group still allows. Page cache that the kernel can drop is not in the way. */
static uint64_t cgroup_group_available(const struct cgroup_kind *kind, const char *folder)
{
    char text[TEXT_BYTES_MAX];
    if (!read_text_in(folder, kind->limit, text, sizeof(text)) || text[0] < '0' || text[0] > '9')
        return UINT64_MAX; /* no such file, or "max" */
    uint64_t limit = strtoull(text, NULL, 10);
    if (!read_text_in(folder, kind->current, text, sizeof(text)))
        return limit;
    uint64_t current = strtoull(text, NULL, 10);
    uint64_t cache = 0;
    if (read_text_in(folder, "memory.stat", text, sizeof(text)))
        cache = number_after(text, kind->stat_inactive) + number_after(text, kind->stat_active);
    uint64_t held = current > cache ? current - cache : 0;
    return limit > held ? limit - held : 0;
}

/* The least over the group at path (of path_bytes) and its ancestors up to the mount. In a
 * container the path may be that of the host and not be there: then the walk finds nothing until
 * it comes to the mount, which is the container's own group. */
static uint64_t cgroup_available(const struct cgroup_kind *kind, const char *root, const char *path,
                                 size_t path_bytes)
{
    char folder[PATH_BYTES_MAX];
    int bytes =
        snprintf(folder, sizeof(folder), "%s%s%.*s", root, kind->mount, (int)path_bytes, path);
    if (bytes < 0 || (size_t)bytes >= sizeof(folder))
        return UINT64_MAX;
    size_t mount_bytes = strlen(root) + strlen(kind->mount);
    uint64_t available = cgroup_group_available(kind, folder);
    while (strlen(folder) > mount_bytes) {
        *strrchr(folder, '/') = 0;
        available = MIN(available, cgroup_group_available(kind, folder));
    }
    return available;
}

static void available_read(struct mem_available *available, const char *root)
{
    char text[TEXT_BYTES_MAX];
    if (!read_text_in(root, "proc/meminfo", text, sizeof(text)))
        fatal("cannot read %s/proc/meminfo; is /proc mounted?", root);
    available->machine_bytes = number_after(text, "MemAvailable:") * KIB;
    available->group_bytes = UINT64_MAX;
    if (!read_text_in(root, "proc/self/cgroup", text, sizeof(text)))
        return;
    /* Lines are id:controllers:path; the one of version 2 is 0::path. */
    for (const char *line = text; *line != 0;) {
        const char *end = strchrnul(line, '\n');
        const char *controllers = strchr(line, ':');
        const char *path = controllers != NULL ? strchr(controllers + 1, ':') : NULL;
        if (path != NULL && path < end) {
            size_t bytes = (size_t)(end - path - 1);
            uint64_t group = UINT64_MAX;
            if (strncmp(line, "0::", 3) == 0)
                group = cgroup_available(&cgroup_v2, root, path + 1, bytes);
            else if (memmem(controllers, (size_t)(path - controllers), "memory", 6) != NULL)
                group = cgroup_available(&cgroup_v1, root, path + 1, bytes);
            available->group_bytes = MIN(available->group_bytes, group);
        }
        line = *end != 0 ? end + 1 : end;
    }
}

void mem_available_read(struct mem_available *available)
{
    available_read(available, "");
}

uint64_t mem_available_bytes_under(const char *root)
{
    struct mem_available available;
    available_read(&available, root);
    return MIN(available.machine_bytes, available.group_bytes);
}

uint64_t mem_available_bytes(void)
{
    return mem_available_bytes_under("");
}

/* Arenas */

struct prefault {
    uint8_t *base;
    uint64_t bytes;
    pthread_t thread;
    bool started;
    int error; /* errno */
};

static void *prefault_main(void *argument)
{
    struct prefault *part = argument;
    if (part->bytes == 0)
        return NULL;
    if (madvise(part->base, part->bytes, MADV_POPULATE_WRITE) == 0)
        return NULL;
    if (errno != EINVAL) {
        part->error = errno;
        return NULL;
    }
    /* Kernels before 5.14: touch every page. Fresh anonymous pages are zero, so zero is right. */
    for (uint64_t offset = 0; offset < part->bytes; offset += PAGE_BYTES)
        *(volatile uint8_t *)(part->base + offset) = 0;
    return NULL;
}

/* 0 or an errno. */
static int prefault(uint8_t *base, uint64_t bytes)
{
    struct prefault parts[PREFAULT_THREADS] = {0};
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t count = MIN(bytes / PREFAULT_SLICE, (uint64_t)MAX(cores, 1));
    count = MAX(MIN(count, PREFAULT_THREADS), 1);
    uint64_t part_bytes = round_up(div_up(bytes, count), HUGE_BYTES);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t start = MIN(i * part_bytes, bytes);
        parts[i].base = base + start;
        parts[i].bytes = MIN(part_bytes, bytes - start);
        /* The last part is this thread's, and so is any whose thread cannot be started. */
        if (i + 1 < count)
            parts[i].started =
                pthread_create(&parts[i].thread, NULL, prefault_main, &parts[i]) == 0;
        if (!parts[i].started)
            prefault_main(&parts[i]);
    }
    int error = 0;
    for (uint64_t i = 0; i < count; i++) {
        if (parts[i].started)
            ASSERT(pthread_join(parts[i].thread, NULL) == 0);
        if (error == 0)
            error = parts[i].error;
    }
    return error;
}

/* Whether the kernel backs the mapping at base by huge pages, at least in part. */
static bool has_huge_pages(const uint8_t *base)
{
    FILE *file = fopen("/proc/self/smaps", "re");
    if (file == NULL)
        return false;
    char line[512];
    bool inside = false;
    uint64_t huge_kib = 0;
    while (fgets(line, sizeof(line), file) != NULL) {
        uintptr_t start, end;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2)
            inside = start <= (uintptr_t)base && (uintptr_t)base < end;
        else if (inside && sscanf(line, "AnonHugePages: %" SCNu64, &huge_kib) == 1)
            break;
    }
    fclose(file);
    return huge_kib > 0;
}

/* Maps bytes at a multiple of 2 MiB and gives back what the alignment took too much. */
static uint8_t *map_aligned(uint64_t bytes)
{
    uint64_t mapped = add_checked(bytes, HUGE_BYTES);
    uint8_t *start = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    uint64_t head = round_up((uintptr_t)start, HUGE_BYTES) - (uintptr_t)start;
    uint64_t tail = mapped - head - bytes;
    if (head > 0)
        ASSERT(munmap(start, head) == 0);
    if (tail > 0)
        ASSERT(munmap(start + head + bytes, tail) == 0);
    return start + head;
}

int mem_arena_open(struct mem_arena *arena, uint64_t bytes, struct err *err)
{
    *arena = (struct mem_arena){0};
    if (bytes == 0)
        return 0;
    bytes = round_up(bytes, PAGE_BYTES);
    uint64_t available = mem_available_bytes();
    /* Asked before the pages are: the kernel's own answer would be to kill somebody. */
    if (bytes > available)
        return err_set(err, ERR_INPUT,
                       "%" PRIu64 " MiB of memory are needed at once, and the machine has %" PRIu64
                       " MiB to give now; free memory or lower the budget",
                       div_up(bytes, MIB), available / MIB);
    uint8_t *base = map_aligned(bytes);
    if (base == NULL)
        return err_set_errno(err, errno, "cannot map %" PRIu64 " MiB of memory",
                             div_up(bytes, MIB));
    /* Preference only, before the first touch: the node of the core that works most. */
    if (topo_open()->node_count > 1)
        topo_bind_memory(base, bytes);
    /* Advice only: a kernel without huge pages refuses, and `huge` says so. */
    if (bytes >= HUGE_ARENA_MIN)
        madvise(base, bytes, MADV_HUGEPAGE);
    ASSERT(madvise(base, bytes, MADV_DONTFORK) == 0);
    int error = prefault(base, bytes);
    if (error != 0) {
        munmap(base, bytes);
        return err_set_errno(err, error, "cannot get %" PRIu64 " MiB of memory",
                             div_up(bytes, MIB));
    }
    *arena = (struct mem_arena){
        .base = base, .bytes = bytes, .huge = bytes >= HUGE_ARENA_MIN && has_huge_pages(base)};
    return 0;
}

void mem_arena_close(struct mem_arena *arena)
{
    if (arena->base != NULL)
        ASSERT(munmap(arena->base, arena->bytes) == 0);
    *arena = (struct mem_arena){0};
}
