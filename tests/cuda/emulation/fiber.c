/*
 * Fibers by hand on x86-64 (a dozen instructions; a kernel switches millions of times), by ucontext
 * elsewhere.
 */
#include "internal.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define STACK_BYTES (256u << 10)
static void *scheduler_sanitizer_stack;
static const void *scheduler_stack;
static size_t scheduler_stack_bytes;
#else
#define STACK_BYTES (64u << 10)
#endif

static void *scheduler;

#if defined(__x86_64__)
void fiber_switch(void **save, void *load);
__asm__(".text\n"
        ".globl fiber_switch\n"
        ".type fiber_switch,@function\n"
        "fiber_switch:\n"
        "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "movq %rsp, (%rdi)\n"
        "movq %rsi, %rsp\n"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n"
        "ret\n"
        ".size fiber_switch,.-fiber_switch\n");

static void prepare(struct fiber *fiber, void (*entry)(void))
{
    /* The place of entry's return address keeps the stack's alignment as at a call. */
    void **top = (void **)(fiber->stack + fiber->stack_bytes - 64);
    *--top = NULL;
    *--top = (void *)entry;
    top -= 6;
    memset(top, 0, 6 * sizeof(void *));
    fiber->stack_pointer = top;
}
#else
#include <ucontext.h>

static void fiber_switch(void **save, void *load)
{
    ucontext_t here;
    *save = &here;
    swapcontext(&here, load);
}

static void prepare(struct fiber *fiber, void (*entry)(void))
{
    ucontext_t *start = (ucontext_t *)fiber->stack;
    getcontext(start);
    start->uc_stack.ss_sp = fiber->stack + sizeof(*start);
    start->uc_stack.ss_size = fiber->stack_bytes - sizeof(*start);
    makecontext(start, entry, 0);
    fiber->stack_pointer = start;
}
#endif

void fiber_init(struct fiber *fiber, void (*entry)(void))
{
    char *memory = mmap(NULL, STACK_BYTES + PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, PAGE, PROT_NONE))
        abort();
    *fiber = (struct fiber){.stack = memory + PAGE, .stack_bytes = STACK_BYTES};
    prepare(fiber, entry);
}

void fiber_restart(struct fiber *fiber, void (*entry)(void))
{
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(fiber->stack, fiber->stack_bytes);
#endif
    fiber->sanitizer_stack = NULL;
    prepare(fiber, entry);
}

void fiber_enter(struct fiber *fiber)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&scheduler_sanitizer_stack, fiber->stack, fiber->stack_bytes);
#endif
    fiber_switch(&scheduler, fiber->stack_pointer);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(scheduler_sanitizer_stack, NULL, NULL);
#endif
}

void fiber_started(void)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(NULL, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

void fiber_leave(struct fiber *fiber)
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&fiber->sanitizer_stack, scheduler_stack, scheduler_stack_bytes);
#endif
    fiber_switch(&fiber->stack_pointer, scheduler);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fiber->sanitizer_stack, &scheduler_stack,
                                    &scheduler_stack_bytes);
#endif
}
