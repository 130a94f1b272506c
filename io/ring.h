/*
 * ring: io_uring (liburing, the only file that includes it). A transfer is whole or it is an error:
 * short reads and writes, EINTR and EAGAIN are absorbed here and nowhere else. None lasts for ever:
 * a drive that does not answer is an error as well (RING_PATIENCE_S).
 *
 * The thread that opens a ring owns it: every call but ring_wake comes from that thread (the kernel
 * refuses others, which is fatal here). ring_submit never blocks for the device; ring_reap may.
 * A buffer belongs to the kernel from ring_submit until its completion is reaped, and for good when
 * that says `abandoned`. Buffers inside a registered arena and registered files are used as such by
 * themselves. Nothing allocates after ring_open and ring_register.
 * Refuses: buffers, offsets or sizes that are not multiples of IO_ALIGN.
 *
 * Completions are not polled for (IORING_SETUP_IOPOLL), even where a drive has poll queues: such a
 * ring cannot read the eventfd by which ring_wake ends a wait, its waits have no end but a
 * completion, and they spin on a core that has updates to compute. What polling saves, some
 * microseconds, is nothing to transfers of megabytes.
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
    int error;           /* 0, or an errno value; ENODATA: the file ended before the transfer did,
                            ETIMEDOUT: it was late */
    bool abandoned;      /* late, and the kernel may still read or write the buffer at any time */
    uint64_t done_bytes; /* whole IO_ALIGN blocks before the error; all of it when error is 0 */
};

#define RING_DEPTH_MAX 4096
#define RING_FILES_MAX 16

/* A transfer is late when it has not got further for so many seconds since its submission or its
 * last answer that brought it further. The kernel's NVMe and SCSI drivers give a command 30 s, then
 * reset the drive and try again: what has no answer after twice that will have none.
 *
 * What is late is called home (async cancel), which may take another second. Where the kernel lets
 * go of it, its error is ETIMEDOUT and its buffer the caller's. Where it does not, `abandoned` is
 * set too: the buffer must never be touched or freed to a heap again, the ring has one transfer
 * less in its depth, and the program should end with a sentence (even its exit may then wait for
 * the kernel). Needs ring_has_deadline; else a late transfer is noticed only when the ring is
 * reaped without waiting. */
#define RING_PATIENCE_S 60

/* At most depth transfers (1..RING_DEPTH_MAX) are in flight. Where the kernel forbids io_uring
 * (ENOSYS, EPERM), the error says so and what to do. */
int ring_open(struct ring **ring, uint32_t depth, struct err *err);
/* Waits for what is in flight, though no longer than it takes to be late; NULL is legal. */
void ring_close(struct ring *ring);

/* Registers the arenas for fixed buffers, in pieces of at most 1 GiB. At most once per ring, and
 * before its first flush or reap; the arenas outlive the ring. Empty arenas are skipped. Where the
 * memlock limit or the kernel forbids it, returns 0 and ring_note tells; transfers then go the
 * plain way. */
int ring_register(struct ring *ring, const struct mem_arena *arenas, uint32_t count,
                  struct err *err);

/* Registers open files, 1..RING_FILES_MAX, so that a transfer need not look its file up. At most
 * once per ring, and before its first flush or reap. The descriptors stay open, and stay what they
 * are, as long as the ring. Where the kernel forbids it, ring_note tells. */
void ring_register_files(struct ring *ring, const int *fds, uint32_t count);

/* One line on what was available: "io_uring: single issuer, deferred work; 3 registered buffers; 2
 * registered files; memlock limit 8.0 MiB; a transfer fails after 60 s without an answer". */
const char *ring_note(const struct ring *ring);

/* What a completion's error means, for a sentence; good until the next call of strerror. */
const char *ring_explain(const struct ring *ring, int error);

uint32_t ring_in_flight(const struct ring *ring); /* submitted and not reaped */

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

/* ---- Small files ---------------------------------------------------------------------------
 * Whole small files, many at a time: opening, reading and closing each is one chain of requests,
 * which the kernel works on while the caller does something else. Through the page cache, unlike
 * transfers, and with a ring of their own. */
struct ring_files;

struct ring_file {
    const char *path; /* NULL: left out */
    void *buffer;
    uint32_t buffer_bytes; /* > 0 */
    /* Out: bytes from the beginning of the file, or minus an errno value. buffer_bytes: there may
     * be more of it. */
    int32_t result;
};

#define RING_FILES_AT_ONCE_MAX 1024

/* At most count_max (1..RING_FILES_AT_ONCE_MAX) at a time. Needs Linux 5.19; the error says what is
 * missing. */
int ring_files_open(struct ring_files **files, uint32_t count_max, struct err *err);
void ring_files_close(struct ring_files *files); /* waits for what was started; NULL is legal */
/* One batch at a time; the array, paths and buffers are the kernel's until ring_files_wait has
 * returned. */
void ring_files_start(struct ring_files *files, struct ring_file *batch, uint32_t count);
void ring_files_wait(struct ring_files *files); /* nothing started is legal */

/* ---- Fault injection -----------------------------------------------------------------------
 * For tests only: what stands between the kernel's answers and the ring, so that each of them can
 * fail or be short. It is process-wide, because the code above a ring opens it out of a test's
 * sight; set it while no ring has a transfer in flight.
 *
 * fault sees every answer to a part of a transfer: part is what was asked of the kernel (the whole
 * transfer, or its rest after a short one), result what the kernel said: bytes, or minus an errno
 * value. What fault returns is believed instead, and never exceeds result when that is >= 0;
 * RING_SWALLOWED: as if the drive had not answered, now or ever. */
#define RING_SWALLOWED INT32_MIN
typedef int32_t ring_fault(void *context, const struct ring_transfer *part, int32_t result);
void ring_set_fault(ring_fault *fault, void *context); /* NULL: none */

/* Of rings opened from now on, instead of RING_PATIENCE_S; 0: that again. Process-wide likewise. */
void ring_set_patience(uint64_t patience_ns);

#endif
