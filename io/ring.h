/*
 * ring: io_uring (liburing, the only file that includes it). A transfer is whole or it is an error:
 * short reads and writes, EINTR and EAGAIN are absorbed here and nowhere else.
 *
 * The thread that opens a ring owns it: every call but ring_wake comes from that thread (the kernel
 * refuses others, which is fatal here). ring_submit never blocks for the device; ring_reap may.
 * A buffer belongs to the kernel from ring_submit until its completion is reaped. Buffers inside a
 * registered arena use fixed buffers by themselves. Nothing allocates after ring_open.
 * Refuses: buffers, offsets or sizes that are not multiples of IO_ALIGN.
 */
#ifndef SPILLWAY_IO_RING_H
#define SPILLWAY_IO_RING_H

#include "core/err.h"
#include "core/mem.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring;

struct ring_transfer {
    int fd;
    bool write;
    void *buffer;
    uint64_t bytes;  /* > 0 */
    uint64_t offset; /* in the file */
    uint64_t tag;    /* the caller's, given back by ring_reap */
};

struct ring_completion {
    uint64_t tag;
    int error;           /* 0, or an errno value; ENODATA: the file ended before the transfer did */
    uint64_t done_bytes; /* whole IO_ALIGN blocks before the error; all of it when error is 0 */
};

#define RING_DEPTH_MAX 4096

/* At most depth transfers (1..RING_DEPTH_MAX) are in flight. Where the kernel forbids io_uring
 * (ENOSYS, EPERM), the error says so and what to do. */
int ring_open(struct ring **ring, uint32_t depth, struct err *err);
void ring_close(struct ring *ring); /* waits for what is in flight; NULL is legal */

/* Registers the arenas for fixed buffers, in pieces of at most 1 GiB. At most once per ring, and
 * before the first transfer; the arenas outlive the ring. Empty arenas are skipped. Where the
 * memlock limit or the kernel forbids it, returns 0 and ring_note tells; transfers then go the
 * plain way. */
int ring_register(struct ring *ring, const struct mem_arena *arenas, uint32_t count,
                  struct err *err);

/* One sentence on what was available: "io_uring: single issuer, 3 registered buffers". */
const char *ring_note(const struct ring *ring);

uint32_t ring_in_flight(const struct ring *ring);

/* Queues one transfer; the caller keeps in-flight transfers <= depth. Handed to the kernel by the
 * next ring_flush, or ring_reap. */
void ring_submit(struct ring *ring, const struct ring_transfer *transfer);
void ring_flush(struct ring *ring);

/* Takes up to max completions. When wait is set and none is there, blocks until one is, or until
 * ring_wake is called from another thread; may return 0 then. */
uint32_t ring_reap(struct ring *ring, struct ring_completion *completions, uint32_t max, bool wait);

/* As ring_reap with wait set, but returns 0 at deadline_ns (of clock_ns) at the latest. Only where
 * ring_has_deadline says that the kernel can (Linux 5.11). */
uint32_t ring_reap_until(struct ring *ring, struct ring_completion *completions, uint32_t max,
                         uint64_t deadline_ns);
bool ring_has_deadline(const struct ring *ring);

/* Makes a blocked or the next blocking ring_reap return. Any thread; async-signal-safe. Several
 * wakes before that reap count as one. A signal alone does not end ring_reap's wait: a handler that
 * wants to be heard calls this. */
void ring_wake(struct ring *ring);

/* ---- Fault injection -----------------------------------------------------------------------
 * For tests only: what stands between the kernel's answers and the ring, so that each of them can
 * fail or be short. It is process-wide, because the code above a ring opens it out of a test's
 * sight; set it while no ring has a transfer in flight.
 *
 * fault sees every answer to a part of a transfer: part is what was asked of the kernel (the whole
 * transfer, or its rest after a short one), result what the kernel said: bytes, or minus an errno
 * value. What fault returns is believed instead, and never exceeds result when that is >= 0. */
typedef int32_t ring_fault(void *context, const struct ring_transfer *part, int32_t result);
void ring_set_fault(ring_fault *fault, void *context); /* NULL: none */

#endif
