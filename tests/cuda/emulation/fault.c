/*
 * Faults: told once on stderr, counted, and sticky as on a GPU. A signal in a kernel's thread is
 * one too, and so ends its kernel alone.
 */
#include "internal.h"
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint32_t fault_count;
static char first_fault[1200];
static bool quiet;

const bool emulation_is_here = true;

uint32_t emulation_fault_count(void)
{
    return fault_count;
}

const char *emulation_first_fault(void)
{
    return first_fault;
}

void emulation_set_quiet(bool silent)
{
    quiet = silent;
}

void fault_forget(void)
{
    fault_count = 0;
    first_fault[0] = 0;
}

void emulation_fault(const char *kind, const char *format, ...)
{
    char text[900], place[256] = "";
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    if (running_thread)
        block_describe(place, sizeof(place));
    if (fault_count++ == 0)
        snprintf(first_fault, sizeof(first_fault), "%s: %s%s", kind, text, place);
    if (!quiet)
        fprintf(stderr, "emulation: %s: %s%s\n", kind, text, place);
    block_silent = false;
    block_abort();
}

#ifndef __SANITIZE_ADDRESS__
static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    char where[200];
    memory_describe((uintptr_t)info->si_addr, where, sizeof(where));
    emulation_fault("illegal-address", "signal %d at %s", number, where);
    /* Not a kernel's thread: nothing to go on with. */
    _exit(66);
}

void fault_catch_signals(void)
{
    static char stack[65536];
    stack_t alternative = {.ss_sp = stack, .ss_size = sizeof(stack)};
    struct sigaction action = {.sa_sigaction = on_signal,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigaltstack(&alternative, NULL);
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}
#else
void fault_catch_signals(void) {}
#endif
