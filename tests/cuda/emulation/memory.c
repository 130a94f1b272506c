/*
 * Device and pinned memory: an arena of addresses that are never used twice. An allocation ends at
 * a page that cannot be touched, is full of NaN, and cannot be touched once it is freed.
 */
#include "internal.h"
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define ARENA_BYTES     ((size_t)1 << 37)
#define ALLOCATIONS_MAX 65536u
#define ALIGNMENT       256u
#define SPARSE_BYTES    ((size_t)1 << 30)
#define RANGES_MAX      256u

static char *arena;
static size_t arena_used;
static struct allocation allocations[ALLOCATIONS_MAX]; /* 0 is none */
static uint32_t allocation_count = 1;
static uint32_t *page_owner; /* of each page of the arena: an allocation */

static bool arena_open(void)
{
    if (arena)
        return true;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *memory = mmap(NULL, ARENA_BYTES, PROT_NONE, flags, -1, 0);
    void *owners =
        mmap(NULL, ARENA_BYTES / PAGE * sizeof(uint32_t), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED || owners == MAP_FAILED)
        return false;
    arena = memory;
    page_owner = owners;
    return true;
}

bool memory_is_empty(void)
{
    for (uint32_t i = 1; i < allocation_count; i++)
        if (!allocations[i].freed)
            return false;
    return !memory_is_any_registered();
}

static size_t pages_of(size_t bytes)
{
    return bytes ? (bytes + PAGE - 1) / PAGE : 1;
}

struct allocation *memory_take(size_t bytes, bool device)
{
    size_t pages = pages_of(bytes);
    if (!arena_open() || bytes > ARENA_BYTES / 2 || allocation_count == ALLOCATIONS_MAX ||
        arena_used + (pages + 2) * PAGE > ARENA_BYTES)
        return NULL;
    char *start = arena + arena_used + PAGE;
    if (mprotect(start, pages * PAGE, PROT_READ | PROT_WRITE))
        return NULL;
    struct allocation *a = &allocations[allocation_count];
    size_t padded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    *a = (struct allocation){.base = (uintptr_t)(start + pages * PAGE - padded),
                             .bytes = bytes,
                             .device = device,
                             .written = !device || bytes > SPARSE_BYTES};
    for (size_t i = 0; i < pages + 2; i++)
        page_owner[arena_used / PAGE + i] = allocation_count;
    if (bytes <= SPARSE_BYTES)
        memset((void *)a->base, 0xff, bytes);
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region(start, a->base - (uintptr_t)start);
    __asan_poison_memory_region((char *)a->base + bytes, padded - bytes);
#endif
    arena_used += (pages + 1) * PAGE;
    allocation_count++;
    return a;
}

void memory_free(struct allocation *a)
{
    uintptr_t first = a->base / PAGE * PAGE;
    size_t bytes = pages_of(a->base + a->bytes - first) * PAGE;
#ifdef __SANITIZE_ADDRESS__
    __asan_poison_memory_region((void *)first, bytes);
#endif
    a->freed = true;
    a->free_op = op_of_host();
    mmap((void *)first, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
         -1, 0);
    memory_forget(a);
}

void memory_forget(struct allocation *a)
{
    if (a->shadow)
        munmap(a->shadow, a->shadow_bytes);
    a->shadow = NULL;
}

struct allocation *memory_find(uintptr_t address)
{
    if (!arena || address - (uintptr_t)arena >= ARENA_BYTES)
        return memory_registered(address);
    uint32_t owner = page_owner[(address - (uintptr_t)arena) / PAGE];
    return owner ? &allocations[owner] : NULL;
}

void memory_describe(uintptr_t address, char *text, size_t bytes)
{
    const struct allocation *a = memory_find(address);
    if (!a) {
        snprintf(text, bytes, "%#lx, which is neither device nor pinned memory", address);
        return;
    }
    long offset = (long)(address - a->base);
    snprintf(text, bytes, "offset %ld of %zu bytes of %s memory%s%s", offset, a->bytes,
             a->device ? "device" : "pinned",
             offset < 0                   ? ", before its start"
             : (size_t)offset >= a->bytes ? ", past its end"
                                          : "",
             a->freed ? ", freed" : "");
}

struct range {
    uintptr_t first, end;
};
static struct range ranges[RANGES_MAX];
static uint32_t range_count;

static int note_ranges(struct dl_phdr_info *info, size_t bytes, void *context)
{
    (void)bytes;
    (void)context;
    for (int i = 0; i < info->dlpi_phnum && range_count < RANGES_MAX; i++) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD)
            continue;
        uintptr_t first = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr;
        ranges[range_count++] = (struct range){first, first + info->dlpi_phdr[i].p_memsz};
    }
    return 0;
}

bool memory_is_static(uintptr_t address)
{
    if (range_count == 0)
        dl_iterate_phdr(note_ranges, NULL);
    for (uint32_t i = 0; i < range_count; i++)
        if (address >= ranges[i].first && address < ranges[i].end)
            return true;
    return false;
}
