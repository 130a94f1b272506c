/*
 * mem: budgets and memory. Owns the pinned arenas, the heap's statistics (jemalloc, the only file
 * that includes it) and what the kernel says that this process uses.
 *
 * An arena is one exact anonymous mapping, huge pages advised, prefaulted, kept out of forks.
 * The heap is plain malloc; a failed allocation is fatal through mem_alloc. After the first step
 * the trainer seals memory: mem_heap_count may then not grow. It counts the program's own threads
 * (main's, and those that call mem_own_thread), not those that a library starts, as CUDA's driver
 * does; and not what is inside mem_library_enter/leave, the bracket around a library whose calls
 * allocate and free by themselves (their balance is checked by mem_heap_bytes instead).
 */
#ifndef SPILLWAY_CORE_MEM_H
#define SPILLWAY_CORE_MEM_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Zeroed memory; count * size checked; never NULL (fatal when the heap is exhausted). */
void *mem_alloc(uint64_t count, uint64_t size);
void *mem_realloc(void *old, uint64_t count, uint64_t size); /* new part is not zeroed */
/* Zeroed, at a multiple of alignment (a power of two); freed by mem_free. */
void *mem_alloc_aligned(uint64_t alignment, uint64_t bytes);
void mem_free(void *pointer); /* NULL is legal */
char *mem_strdup(const char *text);

struct mem_arena {
    uint8_t *base; /* 2 MiB aligned */
    uint64_t bytes;
    bool huge; /* huge pages were granted for it */
};

/* bytes is rounded up to 4 KiB; bytes 0 gives an empty arena. Prefaults all pages. ERR_INPUT when
 * the machine has less than that to give now, ERR_SYSTEM when the kernel refuses; the arena is then
 * empty. Closing an empty or zeroed arena is legal. */
int mem_arena_open(struct mem_arena *arena, uint64_t bytes, struct err *err);
void mem_arena_close(struct mem_arena *arena);

/* What the kernel counts of this process now (from /proc/self, without allocating). */
struct mem_usage {
    uint64_t rss_bytes;        /* VmRSS: anonymous, file and shared pages */
    uint64_t rss_peak_bytes;   /* VmHWM */
    uint64_t page_table_bytes; /* VmPTE */
};
void mem_usage_read(struct mem_usage *usage);

/* What the machine could give now, and what the memory cgroup still allows. */
struct mem_available {
    uint64_t machine_bytes; /* MemAvailable */
    uint64_t group_bytes;   /* UINT64_MAX: without a limit */
};
void mem_available_read(struct mem_available *available);
/* The less of the two. */
uint64_t mem_available_bytes(void);
/* The same, read below root instead of / (for tests). */
uint64_t mem_available_bytes_under(const char *root);

/* Whether the heap's statistics are there (false in sanitizer builds, which use their own heap). */
bool mem_heap_has_stats(void);
/* Allocation calls made so far by the program's own threads together, less those inside library
 * brackets. Exact, and costs some tens of microseconds: once per step, not per op. 0 without
 * statistics. */
uint64_t mem_heap_count(void);
/* Bytes that are allocated now, library brackets and threads included. 0 without statistics. */
uint64_t mem_heap_bytes(void);
/* The first call of every thread of this program that may allocate: what it allocates from here on
 * counts. */
void mem_own_thread(void);
/* A bracket is the calling thread's own, and may be nested. */
void mem_library_enter(void);
void mem_library_leave(void);

#endif
