/*
 * emulation: runs the project's CUDA code without a GPU. Kernels are compiled as C++ against the
 * headers in include/; this is what tests set and ask beyond CUDA's own functions.
 *
 * How it works. Threads of a block are fibers; a barrier, shuffle, ldmatrix or mma gives way until
 * all have come, and the last one computes the result of all. Blocks, warps and lanes run in an
 * order that a seed draws; cp.async lands at once or when it is waited for, as the seed says.
 * Streams are queues that one scheduler empties in an order that the seed draws too; what is
 * ordered follows from stream order, events and waits of the host alone (vector clocks), so that a
 * missing wait is found whatever the order was. Device and shared memory is filled with NaN and
 * ends at a page that cannot be touched.
 *
 * Two flavours. Plain runs fast and finds wrong values, threads that wait for each other, and
 * masks. Checked is compiled with -fsanitize=thread and linked with detector.c instead of that
 * sanitizer's library: it sees every access, and reports races between threads, blocks, streams and
 * the host, and reads or writes out of bounds, of memory nobody wrote or that is freed.
 *
 * What it cannot find: registers, PTX that does not assemble (nvcc compiles all of it in make), a
 * host function called in a kernel, memory order behind fences, an index that stays inside its
 * allocation, the same mistake in mma and ldmatrix. See docs/cuda.md.
 *
 * In the checked flavour offload/exec.c and model/optim.c are watched too where they touch pinned
 * memory. All threads of the host are one to the detector: it does not see one of them use what
 * only another has waited for.
 *
 * A fault is printed, counted, and ends its kernel; later calls return cudaErrorIllegalAddress
 * until emulation_reset. One host thread at a time.
 */
#ifndef SPILLWAY_TESTS_CUDA_EMULATION_EMULATION_H
#define SPILLWAY_TESTS_CUDA_EMULATION_EMULATION_H

#include <stdbool.h>
#include <stdint.h>

/* Forgets faults, queued work and sticky errors; all memory has been freed or never will be. Where
 * all is freed, streams and events too, it forgets what it knew of them. */
void emulation_reset(uint64_t seed);

/* Faults since the last reset, and the first one's text ("race: ..."), "" if there was none. */
uint32_t emulation_fault_count(void);
const char *emulation_first_fault(void);
/* Whether faults go to stderr; they do unless a test provokes them. */
void emulation_set_quiet(bool quiet);

/* The call number n from now that can fail (from 1) does, with cudaErrorUnknown, or as an
 * allocation that finds no memory. 0: none does. */
void emulation_fail_call(uint32_t n);
/* The same, of the calls of one of CUDA's functions; name stays the caller's. */
void emulation_fail_call_of(const char *name, uint32_t n);
/* Calls of one of CUDA's functions since the last reset. */
uint32_t emulation_call_count(const char *name);

/* Of every launch only the last `blocks` blocks run, or the first one: for sizes of which all would
 * take hours. 0 and false: all of them. Allocations of more than 1 GiB are zero and count as
 * written. */
void emulation_only_last_blocks(uint32_t blocks);
void emulation_only_first_block(bool only);

/* Whether this is the checked flavour. */
extern const bool emulation_is_checked;
/* Whether there is an emulation at all: in the real flavour (tests/cuda/real/no_emulation.c) the
 * functions above do nothing, and CUDA's own libraries run on a card. */
extern const bool emulation_is_here;

#endif
