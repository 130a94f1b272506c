/*
 * Invariants:
 *  1. A slot is free, or its transfer has exactly one request in the kernel's hands (its part) and
 *     at most one that calls it home, or its completion waits in `done`, or it is abandoned: given
 *     up while the kernel still had its part, and never used again. So requests never outnumber
 *     2 * depth + 1 (the wake's read).
 *  2. The queues hold as many entries, so getting one never fails and completions never overflow.
 *  3. A transfer's done_bytes is a multiple of IO_ALIGN: what a short transfer left beyond the last
 *     whole block is moved again, because O_DIRECT can only go on from an aligned place.
 *  4. The read of wake_fd is in the kernel's hands from the first time that it is entered to
 *     ring_close. Not before: kernels up to 5.12 register only when no request is left.
 *  5. No part in the kernel's hands is late before look_ns. What is late is looked for only after
 *     the kernel was entered, since answers that it has ready may show only then.
 *
 * Splitting a transfer into parallel parts was measured and left out: with 16 MiB in flight on an
 * O_DIRECT virtio drive, parts of 256 KiB to 16 MiB all read 3.3 and wrote 5.6 GB/s within the
 * noise (the block layer splits by itself). A part is bounded only because the kernel's count is a
 * signed 32-bit number.
 */
#include "io/ring.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/log.h"
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

/* A part and a registered piece have the same bound, so that a piece never needs two parts. */
#define PART_BYTES_MAX GIB
#define PIECES_MAX     1024 /* kernels before 5.12 accept no more buffers */
#define WAKE_TAG       UINT64_MAX
#define HOME_TAG       (UINT64_MAX - 1)

/* Answers without progress (EINTR, EAGAIN, shorter than a block) that one transfer may have in a
 * row. A drive that gives this many is not transient any more. */
#define RETRY_MAX 64

/* Times that entering the kernel may fail for want of memory before that is fatal. */
#define ENTER_MAX 1000

#define NEVER UINT64_MAX /* a deadline that does not come */

/* What is called home and can come is there at once. This long is for a machine that was stopped
 * meanwhile (SIGSTOP, a debugger), whose drive had no chance to answer in time but does now. */
#define HOME_NS ((uint64_t)1000000000)

struct slot {
    struct ring_transfer transfer;
    uint64_t done_bytes;
    uint64_t part_bytes; /* of the request in the kernel's hands */
    uint64_t late_ns;    /* when that is late, or once called home, given up */
    uint32_t retry_count;
    bool in_kernel;
    bool called_home;
    bool abandoned;
    int error;
    uint32_t next; /* of the free list or of the done queue */
};

#define SLOT_NONE UINT32_MAX

struct ring {
    struct io_uring uring;
    struct slot *slots; /* [depth], owned */
    uint32_t depth;
    uint32_t in_flight;
    uint32_t free_first;
    uint32_t done_first, done_last; /* finished and not yet reaped, in order of finishing */
    struct iovec *pieces;           /* [piece_count], owned; fixed buffer i is pieces[i] */
    uint32_t piece_count;
    int files[RING_FILES_MAX]; /* [file_count]; fixed file i is files[i] */
    uint32_t file_count;
    uint64_t patience_ns;
    uint64_t look_ns;         /* invariant 5 */
    uint32_t abandoned_count; /* reaped */
    int wake_fd;
    uint64_t wake_value; /* the kernel reads the eventfd into it */
    bool armed, woken, closing;
    const char *mode;
    int buffers_error, files_error; /* why the kernel refused to register, or 0 */
    char note[512], late_text[128];
};

static ring_fault *fault_fn;
static void *fault_context;
static uint64_t patience_of_new_ns = RING_PATIENCE_S * 1000000000ull;

void ring_set_patience(uint64_t patience_ns)
{
    patience_of_new_ns = patience_ns ? patience_ns : RING_PATIENCE_S * 1000000000ull;
}

void ring_set_fault(ring_fault *fault, void *context)
{
    fault_fn = fault;
    fault_context = context;
}

/* ---- Entering the kernel ---- */

static int enter_until(struct ring *ring, uint64_t deadline_ns)
{
    uint64_t now_ns = clock_ns(), left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    struct __kernel_timespec left = {
        .tv_sec = (long long)(left_ns / 1000000000),
        .tv_nsec = (long long)(left_ns % 1000000000),
    };
    struct io_uring_cqe *cqe;
    int result = io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, &left, NULL);
    return result == -ETIME ? 0 : result;
}

/* A wait ends when something is late as well, where the kernel can end one. */
static int enter_once(struct ring *ring, bool wait, uint64_t deadline_ns)
{
    if (!wait)
        return io_uring_submit_and_get_events(&ring->uring);
    if (ring_has_deadline(ring))
        deadline_ns = MIN(deadline_ns, ring->look_ns);
    return deadline_ns == NEVER ? io_uring_submit_and_wait(&ring->uring, 1)
                                : enter_until(ring, deadline_ns);
}

/* The queue has room by invariant 2. */
static struct io_uring_sqe *next_request(struct ring *ring)
{
    struct io_uring_sqe *request = io_uring_get_sqe(&ring->uring);
    ASSERT(request != NULL);
    return request;
}

static void arm_wake(struct ring *ring)
{
    struct io_uring_sqe *request = next_request(ring);
    io_uring_prep_read(request, ring->wake_fd, &ring->wake_value, sizeof(ring->wake_value), 0);
    request->user_data = WAKE_TAG;
    ring->armed = true;
}

/* Hands over what is queued and waits for a completion, though not beyond the deadline, or only
 * runs what is due when wait is not set. An interrupted wait goes on. */
static void enter(struct ring *ring, bool wait, uint64_t deadline_ns)
{
    if (!ring->armed)
        arm_wake(ring);
    for (uint32_t failures = 0; failures < ENTER_MAX;) {
        int result = enter_once(ring, wait, deadline_ns);
        if (result >= 0 && io_uring_sq_ready(&ring->uring) == 0)
            return;
        if (result == -EINTR)
            continue;
        if (result < 0 && result != -EAGAIN && result != -EBUSY)
            fatal("io_uring_enter failed: %s", strerror(-result));
        if (io_uring_cq_ready(&ring->uring) > 0)
            return; /* the caller takes these, which makes room, and comes back */
        failures++;
    }
    fatal("the kernel has no memory for I/O requests: free some memory and resume");
}

/* ---- Opening and closing ---- */

static int open_error(int error, uint32_t depth, struct err *err)
{
    if (error == ENOSYS)
        return err_set(err, ERR_SYSTEM,
                       "this kernel has no io_uring, through which a run's state is read and "
                       "written: use Linux 5.10 or later");
    if (error == EPERM || error == EACCES)
        return err_set(err, ERR_SYSTEM,
                       "the kernel forbids io_uring, through which a run's state is read and "
                       "written: set it free with 'sysctl kernel.io_uring_disabled=0' or in the "
                       "container's seccomp profile");
    if (error == ENOMEM)
        return err_set(err, ERR_SYSTEM,
                       "no locked memory for an io_uring of depth %u: raise 'ulimit -l'", depth);
    return err_set_errno(err, error, "cannot set up an io_uring of depth %u", depth);
}

/* Newest way first; a kernel that does not know a flag says EINVAL. */
static int setup_uring(struct ring *ring)
{
    static const struct {
        uint32_t flags;
        const char *name;
    } modes[] = {
        {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, "single issuer, deferred work"},
        {IORING_SETUP_COOP_TASKRUN, "cooperative work"},
        {0, "plain"},
    };
    int result = -EINVAL;
    for (size_t i = 0; i < ARRAY_COUNT(modes) && result == -EINVAL; i++) {
        struct io_uring_params params = {.flags = modes[i].flags};
        result = io_uring_queue_init_params(2 * ring->depth + 1, &ring->uring, &params);
        ring->mode = modes[i].name;
    }
    ASSERT(result != 0 || ring->uring.cq.ring_entries > 2 * ring->depth);
    return -result;
}

/* "3 registered files", or none of them and why. */
static void note_registered(char text[128], const char *what, uint32_t count, int error)
{
    if (count > 0)
        snprintf(text, 128, "%u registered %s%s", count, what, count == 1 ? "" : "s");
    else if (error)
        snprintf(text, 128, "no registered %ss (%s%s)", what, strerror(error),
                 error == ENOMEM ? ": raise 'ulimit -l'" : "");
    else
        snprintf(text, 128, "no registered %ss", what);
}

static void write_note(struct ring *ring)
{
    char buffers[128], files[128], late[64], lock[LOG_BYTES_MAX] = "none";
    struct rlimit limit;
    note_registered(buffers, "buffer", ring->piece_count, ring->buffers_error);
    note_registered(files, "file", ring->file_count, ring->files_error);
    if (ring_has_deadline(ring))
        snprintf(late, sizeof(late), "a transfer fails after %g s without an answer",
                 (double)ring->patience_ns / 1e9);
    else
        snprintf(late, sizeof(late), "no deadline for transfers (that takes Linux 5.11)");
    if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
        log_bytes(lock, limit.rlim_cur);
    snprintf(ring->note, sizeof(ring->note), "io_uring: %s; %s; %s; memlock limit %s; %s",
             ring->mode, buffers, files, lock, late);
}

int ring_open(struct ring **out, uint32_t depth, struct err *err)
{
    ASSERT(depth >= 1 && depth <= RING_DEPTH_MAX);
    *out = NULL;
    struct ring *ring = mem_alloc(1, sizeof(*ring));
    ring->depth = depth;
    ring->done_first = ring->done_last = SLOT_NONE;
    ring->patience_ns = patience_of_new_ns;
    ring->look_ns = NEVER;
    /* Blocking, since io_uring answers EAGAIN at once for a descriptor that is not. */
    ring->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (ring->wake_fd < 0) {
        err_set_errno(err, errno, "cannot make an eventfd");
        mem_free(ring);
        return err->code;
    }
    int error = setup_uring(ring);
    if (error != 0) {
        open_error(error, depth, err);
        close(ring->wake_fd);
        mem_free(ring);
        return err->code;
    }
    ring->slots = mem_alloc(depth, sizeof(ring->slots[0]));
    for (uint32_t i = 0; i < depth; i++)
        ring->slots[i].next = i + 1 < depth ? i + 1 : SLOT_NONE;
    snprintf(ring->late_text, sizeof(ring->late_text),
             "the drive has not answered for %g s ('dmesg' may say why)",
             (double)ring->patience_ns / 1e9);
    write_note(ring);
    *out = ring;
    return 0;
}

void ring_close(struct ring *ring)
{
    if (ring == NULL)
        return;
    while (ring->in_flight > 0) {
        struct ring_completion completion;
        ring_reap(ring, &completion, 1, true);
    }
    /* The wake's read is called home as well: the kernel could otherwise still write into this
     * struct after it is freed, since tearing a ring down is not synchronous. */
    ring->closing = true;
    ring->woken = false;
    ring_wake(ring);
    while (!ring->woken) {
        struct ring_completion completion;
        ring_reap(ring, &completion, 1, false);
    }
    /* The kernel takes a ring down at its leisure; until then its files would keep a drive from
     * being unmounted. Some kernels wait here for what is in their hands, so not for a drive that
     * does not answer. */
    if (ring->file_count > 0 && ring->abandoned_count == 0)
        io_uring_unregister_files(&ring->uring);
    io_uring_queue_exit(&ring->uring);
    close(ring->wake_fd);
    mem_free(ring->pieces);
    mem_free(ring->slots);
    mem_free(ring);
}

/* ---- Registered buffers and files ---- */

static uint32_t cut_pieces(struct iovec *pieces, const struct mem_arena *arenas, uint32_t count)
{
    uint32_t piece_count = 0;
    for (uint32_t a = 0; a < count; a++)
        for (uint64_t at = 0; at < arenas[a].bytes; at += PART_BYTES_MAX) {
            if (pieces != NULL)
                pieces[piece_count] = (struct iovec){
                    .iov_base = arenas[a].base + at,
                    .iov_len = MIN(PART_BYTES_MAX, arenas[a].bytes - at),
                };
            piece_count++;
        }
    return piece_count;
}

int ring_register(struct ring *ring, const struct mem_arena *arenas, uint32_t count,
                  struct err *err)
{
    ASSERT(ring->pieces == NULL && ring->in_flight == 0 && !ring->armed);
    uint32_t piece_count = cut_pieces(NULL, arenas, count);
    if (piece_count == 0)
        return 0;
    if (piece_count > PIECES_MAX)
        return err_set(err, ERR_INPUT,
                       "%u GiB of arenas are more than the %u that can be registered", piece_count,
                       PIECES_MAX);
    ring->pieces = mem_alloc(piece_count, sizeof(ring->pieces[0]));
    cut_pieces(ring->pieces, arenas, count);
    int result = io_uring_register_buffers(&ring->uring, ring->pieces, piece_count);
    if (result < 0)
        ring->buffers_error = -result;
    else
        ring->piece_count = piece_count;
    write_note(ring);
    return 0;
}

void ring_register_files(struct ring *ring, const int *fds, uint32_t count)
{
    ASSERT(count >= 1 && count <= RING_FILES_MAX);
    ASSERT(ring->file_count == 0 && ring->in_flight == 0 && !ring->armed);
    int result = io_uring_register_files(&ring->uring, fds, count);
    if (result < 0) {
        ring->files_error = -result;
    } else {
        memcpy(ring->files, fds, count * sizeof(fds[0]));
        ring->file_count = count;
    }
    write_note(ring);
}

const char *ring_note(const struct ring *ring)
{
    return ring->note;
}

/* The piece that holds address, or -1; *bytes is then cut at its end. */
static int find_piece(const struct ring *ring, const uint8_t *address, uint64_t *bytes)
{
    for (uint32_t i = 0; i < ring->piece_count; i++) {
        const uint8_t *base = ring->pieces[i].iov_base;
        if (address < base || address >= base + ring->pieces[i].iov_len)
            continue;
        *bytes = MIN(*bytes, (uint64_t)(base + ring->pieces[i].iov_len - address));
        return (int)i;
    }
    return -1;
}

static int find_file(const struct ring *ring, int fd)
{
    for (uint32_t i = 0; i < ring->file_count; i++)
        if (ring->files[i] == fd)
            return (int)i;
    return -1;
}

/* ---- Transfers ---- */

static struct ring_transfer rest_of(const struct slot *slot)
{
    struct ring_transfer rest = slot->transfer;
    rest.buffer = (uint8_t *)rest.buffer + slot->done_bytes;
    rest.offset += slot->done_bytes;
    rest.bytes = MIN(rest.bytes - slot->done_bytes, PART_BYTES_MAX);
    return rest;
}

/* The transfer has begun, or got further. */
static void start_clock(struct ring *ring, struct slot *slot)
{
    slot->late_ns = clock_ns() + ring->patience_ns;
    slot->called_home = false;
    slot->retry_count = 0;
    ring->look_ns = MIN(ring->look_ns, slot->late_ns);
}

/* Queues one request for what is left of the slot's transfer, or for the first part of that. */
static void queue_part(struct ring *ring, uint32_t index)
{
    struct slot *slot = &ring->slots[index];
    struct ring_transfer part = rest_of(slot);
    int piece = find_piece(ring, part.buffer, &part.bytes);
    ASSERT(part.bytes > 0 && part.bytes % IO_ALIGN == 0);
    slot->part_bytes = part.bytes;
    slot->in_kernel = true;
    struct io_uring_sqe *request = next_request(ring);
    unsigned bytes = (unsigned)part.bytes;
    if (piece >= 0 && part.write)
        io_uring_prep_write_fixed(request, part.fd, part.buffer, bytes, part.offset, piece);
    else if (piece >= 0)
        io_uring_prep_read_fixed(request, part.fd, part.buffer, bytes, part.offset, piece);
    else if (part.write)
        io_uring_prep_write(request, part.fd, part.buffer, bytes, part.offset);
    else
        io_uring_prep_read(request, part.fd, part.buffer, bytes, part.offset);
    request->user_data = index;
    int file = find_file(ring, part.fd);
    if (file >= 0) {
        request->fd = file;
        request->flags |= IOSQE_FIXED_FILE;
    }
}

void ring_submit(struct ring *ring, const struct ring_transfer *transfer)
{
    ASSERT(ring->in_flight + ring->abandoned_count < ring->depth);
    ASSERT(transfer->bytes > 0 && transfer->bytes % IO_ALIGN == 0);
    ASSERT(transfer->offset % IO_ALIGN == 0 && (uintptr_t)transfer->buffer % IO_ALIGN == 0);
    add_checked(transfer->offset, transfer->bytes);
    uint32_t index = ring->free_first;
    ASSERT(index != SLOT_NONE);
    struct slot *slot = &ring->slots[index];
    ring->free_first = slot->next;
    *slot = (struct slot){.transfer = *transfer, .next = SLOT_NONE};
    ring->in_flight++;
    start_clock(ring, slot);
    queue_part(ring, index);
}

void ring_flush(struct ring *ring)
{
    enter(ring, false, NEVER);
}

const char *ring_explain(const struct ring *ring, int error)
{
    if (error == ETIMEDOUT)
        return ring->late_text;
    return error == ENODATA ? "the file ends there, it was cut short" : strerror(error);
}

uint32_t ring_in_flight(const struct ring *ring)
{
    return ring->in_flight;
}

static void finish(struct ring *ring, uint32_t index, int error)
{
    ring->slots[index].error = error;
    ring->slots[index].next = SLOT_NONE;
    if (ring->done_first == SLOT_NONE)
        ring->done_first = index;
    else
        ring->slots[ring->done_last].next = index;
    ring->done_last = index;
}

static void retry(struct ring *ring, uint32_t index, int error_at_last)
{
    if (++ring->slots[index].retry_count > RETRY_MAX)
        finish(ring, index, error_at_last);
    else
        queue_part(ring, index);
}

/* What the kernel said of a part: bytes, or minus an errno value. */
static void take_result(struct ring *ring, uint32_t index, int32_t result)
{
    struct slot *slot = &ring->slots[index];
    bool write = slot->transfer.write;
    if (slot->abandoned)
        return;
    slot->in_kernel = false;
    if (slot->called_home && (result == -ECANCELED || result == -EINTR || result == -EAGAIN)) {
        finish(ring, index, ETIMEDOUT);
    } else if (result == -EINTR || result == -EAGAIN) {
        retry(ring, index, -result);
    } else if (result < 0) {
        finish(ring, index, -result);
    } else if (result == 0 && !write) {
        finish(ring, index, ENODATA);
    } else if ((uint64_t)result < IO_ALIGN) {
        /* Invariant 3 leaves no progress. A read that stays so meets the end of a file whose size
         * is no multiple of IO_ALIGN; a write that stays so has no better name than EIO. */
        retry(ring, index, write ? EIO : ENODATA);
    } else {
        ASSERT((uint64_t)result <= slot->part_bytes);
        slot->done_bytes += (uint64_t)result / IO_ALIGN * IO_ALIGN;
        if (slot->done_bytes == slot->transfer.bytes) {
            finish(ring, index, 0);
            return;
        }
        start_clock(ring, slot);
        queue_part(ring, index);
    }
}

static int32_t apply_fault(const struct slot *slot, int32_t result)
{
    if (fault_fn == NULL)
        return result;
    struct ring_transfer part = rest_of(slot);
    part.bytes = slot->part_bytes;
    int32_t believed = fault_fn(fault_context, &part, result);
    ASSERT(result < 0 || believed <= result);
    return believed;
}

static void take_wake(struct ring *ring, int32_t result)
{
    ASSERT(result == sizeof(ring->wake_value) || result == -EINTR || result == -EAGAIN);
    ring->woken |= result > 0;
    if (!ring->closing || result < 0)
        arm_wake(ring);
}

/* Takes what the kernel has ready off its queue; a part that must go again is queued again. Bounded
 * by what was ready at the start. */
static void drain(struct ring *ring)
{
    for (uint32_t left = io_uring_cq_ready(&ring->uring); left > 0; left--) {
        struct io_uring_cqe *cqe;
        int peeked = io_uring_peek_cqe(&ring->uring, &cqe);
        ASSERT(peeked == 0);
        uint64_t tag = cqe->user_data;
        int32_t result = cqe->res;
        io_uring_cqe_seen(&ring->uring, cqe);
        if (tag == WAKE_TAG)
            take_wake(ring, result);
        if (tag == WAKE_TAG || tag == HOME_TAG)
            continue; /* whether a transfer comes home its own answer says */
        ASSERT(tag < ring->depth);
        result = apply_fault(&ring->slots[tag], result);
        if (result != RING_SWALLOWED)
            take_result(ring, (uint32_t)tag, result);
    }
}

/* A part is late: it is called home, and given up when it has not come from there either. The
 * kernel can call home what waits (in its worker threads, on a pipe), and not what is in the hands
 * of a drive. */
static void be_late(struct ring *ring, uint32_t index, uint64_t now_ns)
{
    struct slot *slot = &ring->slots[index];
    if (slot->called_home) {
        slot->in_kernel = false;
        slot->abandoned = true;
        finish(ring, index, ETIMEDOUT);
        return;
    }
    slot->called_home = true;
    slot->late_ns = now_ns + MIN(HOME_NS, ring->patience_ns);
    struct io_uring_sqe *request = next_request(ring);
    io_uring_prep_cancel64(request, index, 0);
    request->user_data = HOME_TAG;
}

static void look_for_late(struct ring *ring)
{
    uint64_t now_ns = ring->look_ns == NEVER ? 0 : clock_ns();
    if (now_ns < ring->look_ns)
        return;
    ring->look_ns = NEVER;
    for (uint32_t i = 0; i < ring->depth; i++) {
        struct slot *slot = &ring->slots[i];
        if (slot->in_kernel && slot->late_ns <= now_ns)
            be_late(ring, i, now_ns);
        if (slot->in_kernel)
            ring->look_ns = MIN(ring->look_ns, slot->late_ns);
    }
}

static uint32_t pop_done(struct ring *ring, struct ring_completion *completions, uint32_t max)
{
    uint32_t count = 0;
    while (count < max && ring->done_first != SLOT_NONE) {
        uint32_t index = ring->done_first;
        struct slot *slot = &ring->slots[index];
        completions[count++] = (struct ring_completion){.tag = slot->transfer.tag,
                                                        .error = slot->error,
                                                        .abandoned = slot->abandoned,
                                                        .done_bytes = slot->done_bytes};
        ring->done_first = slot->next;
        if (slot->abandoned) {
            ring->abandoned_count++;
        } else {
            slot->next = ring->free_first;
            ring->free_first = index;
        }
        ASSERT(ring->in_flight > 0);
        ring->in_flight--;
    }
    return count;
}

static uint32_t reap(struct ring *ring, struct ring_completion *completions, uint32_t max,
                     bool wait, uint64_t deadline_ns)
{
    ASSERT(max > 0);
    drain(ring);
    uint32_t count = pop_done(ring, completions, max);
    bool block = wait && count == 0;
    /* Without a completion at hand the kernel is entered at least once: deferred work runs only
     * there. With some, what was queued meanwhile is handed over all the same. */
    if (count == 0 || io_uring_sq_ready(&ring->uring) > 0) {
        enter(ring, block && !ring->woken, deadline_ns);
        drain(ring);
        look_for_late(ring);
        count += max > count ? pop_done(ring, completions + count, max - count) : 0;
    }
    /* A part that went again, or was called home, is no completion: keep waiting. Bounded by
     * RETRY_MAX, by the number of blocks in what is in flight and by the ring's patience. */
    while (block && count == 0 && !ring->woken && clock_ns() < deadline_ns) {
        enter(ring, true, deadline_ns);
        drain(ring);
        look_for_late(ring);
        count = pop_done(ring, completions, max);
    }
    if (block && count == 0)
        ring->woken = false;
    if (io_uring_sq_ready(&ring->uring) > 0)
        enter(ring, false, NEVER);
    return count;
}

uint32_t ring_reap(struct ring *ring, struct ring_completion *completions, uint32_t max, bool wait)
{
    return reap(ring, completions, max, wait, NEVER);
}

uint32_t ring_reap_until(struct ring *ring, struct ring_completion *completions, uint32_t max,
                         uint64_t deadline_ns)
{
    ASSERT(ring_has_deadline(ring));
    return reap(ring, completions, max, true, deadline_ns);
}

/* liburing would queue a timeout as a request of its own on older kernels, for which invariant 2
 * has no room. */
bool ring_has_deadline(const struct ring *ring)
{
    return ring->uring.features & IORING_FEAT_EXT_ARG;
}

void ring_wake(struct ring *ring)
{
    uint64_t one = 1;
    int saved = errno; /* a signal handler must leave it alone */
    ssize_t written = write(ring->wake_fd, &one, sizeof(one));
    (void)written; /* fails only beyond 2^64 - 2 pending wakes, which wake as well */
    errno = saved;
}

/* ---- Small files ---- */

#define WORKERS_MIN 64

enum { STEP_OPEN, STEP_READ, STEP_CLOSE, STEPS };

struct ring_files {
    struct io_uring uring;
    struct ring_file *batch; /* borrowed */
    uint32_t count_max;
    uint32_t due; /* answers that are still to come */
    bool widened; /* the thread that submits may have WORKERS_MIN */
};

int ring_files_open(struct ring_files **out, uint32_t count_max, struct err *err)
{
    ASSERT(count_max >= 1 && count_max <= RING_FILES_AT_ONCE_MAX);
    struct ring_files *files = mem_alloc(1, sizeof(*files));
    files->count_max = count_max;
    *out = NULL;
    /* Not the modes above: work that waits for the caller to enter the kernel would stand still
     * while the caller computes. */
    int result = io_uring_queue_init(STEPS * count_max, &files->uring, 0);
    if (result == 0) {
        result = io_uring_register_files_sparse(&files->uring, count_max);
        if (result < 0)
            io_uring_queue_exit(&files->uring);
    }
    if (result < 0) {
        mem_free(files);
        return err_set_errno(err, -result, "cannot set up an io_uring for %u files", count_max);
    }
    *out = files;
    return 0;
}

void ring_files_close(struct ring_files *files)
{
    if (files == NULL)
        return;
    ring_files_wait(files);
    io_uring_queue_exit(&files->uring);
    mem_free(files);
}

/* A chain of three: without the file there is nothing to read, and a file is closed whatever the
 * read said (a hard link: reading less than asked for would break a soft one). */
static void queue_file(struct ring_files *files, uint32_t index)
{
    const struct ring_file *file = &files->batch[index];
    struct io_uring_sqe *steps[STEPS];
    for (uint32_t i = 0; i < STEPS; i++) {
        steps[i] = io_uring_get_sqe(&files->uring);
        ASSERT(steps[i] != NULL); /* the queue holds STEPS * count_max */
    }
    io_uring_prep_openat_direct(steps[STEP_OPEN], AT_FDCWD, file->path, O_RDONLY, 0, index);
    io_uring_prep_read(steps[STEP_READ], (int)index, file->buffer, file->buffer_bytes, 0);
    io_uring_prep_close_direct(steps[STEP_CLOSE], index);
    steps[STEP_OPEN]->flags |= IOSQE_IO_LINK;
    steps[STEP_READ]->flags |= IOSQE_FIXED_FILE | IOSQE_IO_HARDLINK;
    for (uint32_t i = 0; i < STEPS; i++)
        steps[i]->user_data = (uint64_t)index * STEPS + i;
    files->due += STEPS;
}

/* Files whose folder is not cached are opened by the kernel's threads for the thread that submits:
 * 4 a core, if not told otherwise, which is too few for a drive that answers many at once (2 cores
 * and 8 threads: 30,000 cold files a second; 64: 52,000). Only a wish: it works without. */
static void widen(struct ring_files *files)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    unsigned int workers[2] = {MAX(WORKERS_MIN, 4 * (unsigned int)MAX(cores, 1)), 0};
    files->widened = true;
    io_uring_register_iowq_max_workers(&files->uring, workers);
}

static void submit_files(struct ring_files *files)
{
    if (!files->widened)
        widen(files);
    for (uint32_t failures = 0; io_uring_sq_ready(&files->uring) > 0; failures++) {
        int result = io_uring_submit(&files->uring);
        if (result < 0 && result != -EINTR && result != -EAGAIN && result != -EBUSY)
            fatal("io_uring_enter failed: %s", strerror(-result));
        if (failures == ENTER_MAX)
            fatal("the kernel has no memory for I/O requests: free some memory and try again");
    }
}

void ring_files_start(struct ring_files *files, struct ring_file *batch, uint32_t count)
{
    ASSERT(files->due == 0 && count <= files->count_max);
    files->batch = batch;
    for (uint32_t i = 0; i < count; i++) {
        batch[i].result = 0;
        if (batch[i].path != NULL)
            queue_file(files, i);
    }
    submit_files(files);
}

/* The first step that failed tells why; those behind it were called off. */
static void take_step(struct ring_files *files, uint64_t tag, int32_t result)
{
    struct ring_file *file = &files->batch[tag / STEPS];
    uint64_t step = tag % STEPS;
    bool told = step == STEP_READ ? result != -ECANCELED : result < 0 && step == STEP_OPEN;
    if (told)
        file->result = result;
    files->due--;
}

void ring_files_wait(struct ring_files *files)
{
    while (files->due > 0) {
        struct io_uring_cqe *cqe;
        int result = io_uring_wait_cqe(&files->uring, &cqe);
        if (result == -EINTR)
            continue;
        if (result < 0)
            fatal("io_uring_enter failed: %s", strerror(-result));
        take_step(files, cqe->user_data, cqe->res);
        io_uring_cqe_seen(&files->uring, cqe);
    }
}
