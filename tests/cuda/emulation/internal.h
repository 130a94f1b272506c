/*
 * The inside of the emulator, shared by its files: fiber (stacks), block (one block of threads),
 * memory (allocations), streams (queues and their order), runtime and product (CUDA's functions),
 * detector (the checked flavour; no_detector is its absence).
 */
#ifndef SPILLWAY_TESTS_CUDA_EMULATION_INTERNAL_H
#define SPILLWAY_TESTS_CUDA_EMULATION_INTERNAL_H

#include "device.h"
#include "emulation.h"
#include <stddef.h>
#include <stdint.h>

#define WARP        32u
#define THREADS_MAX 1024u
#define SHARED_MAX  (size_t)(99 << 10) /* of a block, with the attribute; 48 KiB without */
#define PAGE        4096u

/* -- fiber.c -- */

struct fiber {
    void *stack_pointer;
    char *stack;
    size_t stack_bytes;
    void *sanitizer_stack; /* address sanitizer's */
    struct fiber *next;
};

/* A fiber that will call entry when it is first switched to; entry does not return. */
void fiber_init(struct fiber *fiber, void (*entry)(void));
void fiber_restart(struct fiber *fiber, void (*entry)(void));
void fiber_enter(struct fiber *fiber); /* from the scheduler; returns at fiber_leave */
void fiber_leave(struct fiber *fiber); /* back to the scheduler */
void fiber_started(void);              /* the first thing that entry calls */

/* -- block.c -- */

struct block {
    uint32_t id, thread_count, live;
    uint16_t interval;                          /* barriers that all have passed, from 1 */
    uint16_t warp_interval[THREADS_MAX / WARP]; /* __syncwarp of whole warps */
    unsigned char *shared;
    size_t shared_bytes;
};

enum thread_state { THREAD_FRESH, THREAD_READY, THREAD_AT_BARRIER, THREAD_AT_WARP, THREAD_DONE };

struct copy_async {
    void *shared;
    const void *global;
    uint32_t valid, group;
};

struct thread {
    struct emulation_indices indices;
    uint32_t number, lane, warp;
    struct block *block;
    enum thread_state state;
    struct fiber *fiber;
    struct emulation_place place;
    /* What it waits for in a collective. */
    uint32_t mask;
    void *operand;
    void (*all)(void *const *, unsigned int);
    const char *what;
    bool aligned;
    /* cp.async in flight. */
    struct copy_async *copies; /* owned */
    uint32_t copy_count, copy_capacity, copy_group;
};

/* Of the thread of the host that is in a call of CUDA; others may run beside it. NULL: the host or
 * the scheduler. */
extern _Thread_local struct thread *running_thread;
extern _Thread_local bool block_silent; /* accesses are the emulator's own */
extern const void *block_call;          /* parameters of the running kernel */
extern size_t block_call_bytes;

/* Which blocks of the grid run. */
struct block_range {
    uint32_t last_blocks; /* 0: all */
    bool first_only;
};
void block_run_kernel(const struct emulation_launch *launch, struct block_range range,
                      const char *name);
/* Ends the running kernel; does not return from a kernel's thread. */
void block_abort(void);
void block_describe(char *text, size_t bytes);

/* -- memory.c -- */

struct allocation {
    uintptr_t base;
    size_t bytes;
    bool device, freed, written; /* written: counts as such from the start */
    uint32_t free_op;
    void *shadow;
    size_t shadow_bytes;
};

struct allocation *memory_take(size_t bytes, bool device); /* NULL: no memory */
void memory_free(struct allocation *allocation);
/* Of an address in it or in the pages around it, freed or not, or in registered memory; NULL. */
struct allocation *memory_find(uintptr_t address);
/* Memory of the host that cudaHostRegister has pinned; NULL: this address is not in it. */
struct allocation *memory_registered(uintptr_t address);
bool memory_is_any_registered(void);
/* What the detector knows of it. */
void memory_forget(struct allocation *allocation);
bool memory_is_empty(void); /* all is freed, none registered */
void memory_describe(uintptr_t address, char *text, size_t bytes);
bool memory_is_static(uintptr_t address); /* of the program */

/* -- streams.c -- */

#define AGENTS 32 /* the host is 0, then streams */

struct clock {
    uint32_t at[AGENTS];
};

struct op_record {
    struct clock clock;
    uint32_t agent;
    char name[64];
};

extern _Thread_local uint32_t current_op; /* on the device now; 0: none */

const struct op_record *op_find(uint32_t op);
uint32_t op_of_host(void); /* a pseudo-op of what the host does now */
bool op_before(uint32_t first, uint32_t second);
uint32_t random_below(uint32_t bound);
/* -- fault.c -- */

void fault_forget(void);
void fault_catch_signals(void);

/* Takes `context` (malloc) over; run is called once, on the device's side. */
cudaError_t stream_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                           void *context, size_t context_bytes);
/* Callers of CUDA are threads of one host: one call at a time, each whole. */
void call_lock(void);
void call_unlock(const int *unused);
#define CALL_LOCK                                                                                  \
    __attribute__((cleanup(call_unlock), unused)) const int call_is_locked = (call_lock(), 0)

/* Counts this call of CUDA's; the error that it returns: sticky, or asked for. */
#define call_begin(asked_for) call_begin_of(__func__, asked_for)
cudaError_t call_begin_of(const char *name, cudaError_t asked_for);

/* -- detector.c -- */

void detector_range(const void *memory, size_t bytes, bool write, uint32_t op);
/* A read that may take along what nobody wrote: whole cells are copied, with their padding. */
void detector_copied_down(const void *memory, size_t bytes, uint32_t op);
void detector_block_start(struct block *block);
void detector_copy(void *shared, size_t bytes, bool begin);
void detector_access(uintptr_t address, size_t bytes, bool write, bool atomic, void *from);

#endif
