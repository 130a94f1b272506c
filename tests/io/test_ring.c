/*
 * Property: a transfer is whole or it is an error, never something between, whatever the kernel
 * answers. Method: a file of words that each hold their own offset is read and written through the
 * ring while a fault makes the n-th answer fail or be short, for every n; then the bytes in memory
 * and on the drive are compared word by word. Ends of files, wakes from other threads, arenas and
 * files that are registered or not, and a kernel that forbids io_uring (seccomp in a child) have
 * tests of their own. Files live in the folder that TMPDIR names, else /var/tmp, on a real drive.
 */
#include "core/base.h"
#include "core/clock.h"
#include "io/file.h"
#include "io/ring.h"
#include "tests/shared/check.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEPTH       8
#define CHUNK_BYTES (16 * IO_ALIGN)
#define FILE_BYTES  (DEPTH * CHUNK_BYTES)

static char path[FILE_PATH_MAX];
static struct mem_arena arena;
static int fd;

static void fill(uint8_t *at, uint64_t bytes, uint64_t offset, uint64_t salt)
{
    for (uint64_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t word = (offset + i) ^ salt;
        memcpy(at + i, &word, sizeof(word));
    }
}

static void check(const uint8_t *at, uint64_t bytes, uint64_t offset, uint64_t salt)
{
    for (uint64_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, at + i, sizeof(word));
        assert_int_equal(word, (offset + i) ^ salt);
    }
}

/* The file's first FILE_BYTES, past the ring, compared with fill's pattern. */
static void check_file(uint64_t salt)
{
    static uint8_t bytes[FILE_BYTES];
    struct err err;
    int plain = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(plain >= 0);
    assert_int_equal(file_read_at(plain, bytes, sizeof(bytes), 0, path, &err), 0);
    close(plain);
    check(bytes, sizeof(bytes), 0, salt);
}

static struct ring *open_ring(bool registered)
{
    struct ring *ring;
    struct err err;
    if (ring_open(&ring, DEPTH, &err) < 0)
        fail_msg("%s", err.message);
    if (registered)
        assert_int_equal(ring_register(ring, &arena, 1, &err), 0);
    return ring;
}

/* One ring without and one with registered buffers serve most tests: the kernel takes closed rings
 * down at its leisure, and until then what they had locked counts against a user's limit. */
static struct ring *shared_ring(bool registered)
{
    static struct ring *rings[2];
    if (rings[registered] == NULL)
        rings[registered] = open_ring(registered);
    assert_int_equal(ring_in_flight(rings[registered]), 0);
    return rings[registered];
}

/* Moves chunk i of the file from or to chunk i of the arena, all chunks at once; errors[i] is what
 * came back. Every tag must come back exactly once. */
static void move_all(struct ring *ring, bool write, int errors[DEPTH], uint64_t done[DEPTH])
{
    for (uint64_t i = 0; i < DEPTH; i++) {
        struct ring_transfer transfer = {.fd = fd,
                                         .write = write,
                                         .buffer = arena.base + i * CHUNK_BYTES,
                                         .bytes = CHUNK_BYTES,
                                         .offset = i * CHUNK_BYTES,
                                         .tag = 100 + i};
        ring_submit(ring, &transfer);
        errors[i] = -1;
    }
    assert_int_equal(ring_in_flight(ring), DEPTH);
    uint32_t reaped = 0;
    while (reaped < DEPTH) {
        struct ring_completion completions[3];
        uint32_t count = ring_reap(ring, completions, ARRAY_COUNT(completions), true);
        assert_in_range(count, 1, ARRAY_COUNT(completions));
        for (uint32_t c = 0; c < count; c++) {
            uint64_t i = completions[c].tag - 100;
            assert_true(i < DEPTH && errors[i] == -1);
            errors[i] = completions[c].error;
            done[i] = completions[c].done_bytes;
            assert_int_equal(done[i] % IO_ALIGN, 0);
            assert_true(errors[i] == 0 ? done[i] == CHUNK_BYTES : done[i] < CHUNK_BYTES);
        }
        reaped += count;
    }
    assert_int_equal(ring_in_flight(ring), 0);
}

/* ---- Whole transfers ---- */

static void round_trip(bool registered)
{
    struct ring *ring = shared_ring(registered);
    int errors[DEPTH];
    uint64_t done[DEPTH], salt = registered ? 0x5a5a : 0xa5a5;
    fill(arena.base, FILE_BYTES, 0, salt);
    move_all(ring, true, errors, done);
    check_file(salt);
    memset(arena.base, 0, FILE_BYTES);
    move_all(ring, false, errors, done);
    check(arena.base, FILE_BYTES, 0, salt);
    for (uint32_t i = 0; i < DEPTH; i++)
        assert_int_equal(errors[i], 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    round_trip(false);
    round_trip(true);
}

static void test_note_tells_what_is_registered(void **state)
{
    (void)state;
    struct ring *ring = shared_ring(false);
    assert_non_null(strstr(ring_note(ring), "no registered buffers"));
    ring = shared_ring(true);
    assert_non_null(strstr(ring_note(ring), "1 registered buffer"));
    assert_non_null(strstr(ring_note(ring), "no registered files"));
    assert_non_null(strstr(ring_note(ring), "memlock limit "));
    if (ring_has_deadline(ring))
        assert_non_null(strstr(ring_note(ring), "fails after 60 s without an answer"));
}

/* Two arenas, and a buffer in neither: each goes its own way. */
static void test_several_arenas(void **state)
{
    (void)state;
    struct mem_arena pair[3] = {0};
    struct err err;
    struct ring *ring = open_ring(false);
    assert_int_equal(mem_arena_open(&pair[0], IO_ALIGN, &err), 0);
    assert_int_equal(mem_arena_open(&pair[2], 2 * IO_ALIGN, &err), 0); /* pair[1] stays empty */
    assert_int_equal(ring_register(ring, pair, 3, &err), 0);
    fill(arena.base, FILE_BYTES, 0, 3);
    int errors[DEPTH];
    uint64_t done[DEPTH];
    move_all(ring, true, errors, done);
    uint8_t *buffers[] = {pair[2].base + IO_ALIGN, pair[0].base, arena.base};
    for (uint32_t i = 0; i < ARRAY_COUNT(buffers); i++) {
        struct ring_transfer transfer = {
            .fd = fd, .buffer = buffers[i], .bytes = IO_ALIGN, .offset = i * IO_ALIGN, .tag = i};
        struct ring_completion completion;
        ring_submit(ring, &transfer);
        assert_int_equal(ring_reap(ring, &completion, 1, true), 1);
        assert_int_equal(completion.error, 0);
        check(buffers[i], IO_ALIGN, i * IO_ALIGN, 3);
    }
    ring_close(ring);
    mem_arena_close(&pair[0]);
    mem_arena_close(&pair[2]);
}

static void test_reap_without_waiting(void **state)
{
    (void)state;
    struct ring *ring = shared_ring(true);
    struct ring_completion completion;
    assert_int_equal(ring_reap(ring, &completion, 1, false), 0);
    struct ring_transfer transfer = {.fd = fd, .buffer = arena.base, .bytes = IO_ALIGN, .tag = 9};
    ring_submit(ring, &transfer);
    ring_flush(ring);
    uint32_t count = 0;
    while (count == 0)
        count = ring_reap(ring, &completion, 1, false);
    assert_int_equal(completion.tag, 9);
    assert_int_equal(completion.error, 0);
}

static void test_close_waits_for_what_is_in_flight(void **state)
{
    (void)state;
    struct ring *ring = open_ring(true);
    fill(arena.base, FILE_BYTES, 0, 77);
    for (uint64_t i = 0; i < DEPTH; i++) {
        struct ring_transfer transfer = {.fd = fd,
                                         .write = true,
                                         .buffer = arena.base + i * CHUNK_BYTES,
                                         .bytes = CHUNK_BYTES,
                                         .offset = i * CHUNK_BYTES};
        ring_submit(ring, &transfer);
    }
    ring_close(ring);
    check_file(77);
    ring_close(NULL);
}

/* ---- Registered files ---- */

/* A registered file is meant by its number even after that number has come to mean another file,
 * which tells the two ways apart. */
static void test_registered_files(void **state)
{
    (void)state;
    struct ring *ring = open_ring(true);
    char other_path[FILE_PATH_MAX + 8];
    struct err err;
    int other, mine = fd;
    snprintf(other_path, sizeof(other_path), "%s-other", path);
    assert_int_equal(file_open_direct(&other, other_path, true, true, &err), 0);
    unlink(other_path);
    fd = dup(mine);
    ring_register_files(ring, (int[]){other, fd}, 2);
    assert_non_null(strstr(ring_note(ring), "2 registered files"));
    assert_int_equal(dup3(other, fd, O_CLOEXEC), fd);
    int errors[DEPTH];
    uint64_t done[DEPTH];
    fill(arena.base, FILE_BYTES, 0, 41);
    move_all(ring, true, errors, done);
    check_file(41);
    assert_int_equal(lseek(other, 0, SEEK_END), 0);
    close(fd);
    fd = mine; /* which is not registered */
    fill(arena.base, FILE_BYTES, 0, 42);
    move_all(ring, true, errors, done);
    check_file(42);
    memset(arena.base, 0, FILE_BYTES);
    move_all(ring, false, errors, done);
    check(arena.base, FILE_BYTES, 0, 42);
    ring_close(ring);
    close(other);
}

/* ---- Ends of files ---- */

static void read_of_file_of(uint64_t file_bytes, uint64_t expect_done)
{
    struct ring *ring = shared_ring(true);
    struct ring_completion completion;
    assert_int_equal(ftruncate(fd, (off_t)file_bytes), 0);
    struct ring_transfer transfer = {.fd = fd, .buffer = arena.base, .bytes = 4 * IO_ALIGN};
    ring_submit(ring, &transfer);
    assert_int_equal(ring_reap(ring, &completion, 1, true), 1);
    assert_int_equal(completion.error, ENODATA);
    assert_int_equal(completion.done_bytes, expect_done);
    assert_int_equal(ftruncate(fd, FILE_BYTES), 0);
}

static void test_read_beyond_the_end(void **state)
{
    (void)state;
    read_of_file_of(0, 0);
    read_of_file_of(1, 0);
    read_of_file_of(2 * IO_ALIGN, 2 * IO_ALIGN);
    read_of_file_of(2 * IO_ALIGN + 17, 2 * IO_ALIGN);
}

static void test_errors_of_the_kernel_come_through(void **state)
{
    (void)state;
    struct ring *ring = shared_ring(true);
    struct ring_completion completion;
    struct ring_transfer transfer = {.fd = -1, .buffer = arena.base, .bytes = IO_ALIGN};
    ring_submit(ring, &transfer);
    assert_int_equal(ring_reap(ring, &completion, 1, true), 1);
    assert_int_equal(completion.error, EBADF);
}

/* ---- Faults ---- */

struct plan {
    uint64_t hit;        /* which answer, from 0 */
    uint64_t hit_count;  /* how many from there on */
    int32_t error;       /* what it becomes when < 0 */
    int32_t short_bytes; /* else what it is cut to */
    uint64_t seen;
};

static int32_t apply(void *context, const struct ring_transfer *part, int32_t result)
{
    struct plan *plan = context;
    uint64_t n = plan->seen++;
    assert_true(part->bytes % IO_ALIGN == 0 && part->offset % IO_ALIGN == 0);
    assert_true((uint64_t)(part->offset + part->bytes) <= FILE_BYTES);
    if (n < plan->hit || n - plan->hit >= plan->hit_count)
        return result;
    if (plan->error < 0)
        return plan->error;
    return MIN(plan->short_bytes, result);
}

/* The transfer that the fault hit reports it, the others are whole, and the ring works on. */
static void fail_nth(bool write, uint64_t n)
{
    struct plan plan = {.hit = n, .hit_count = 1, .error = -EIO};
    struct ring *ring = shared_ring(n % 2 == 0);
    int errors[DEPTH];
    uint64_t done[DEPTH], failed = 0;
    fill(arena.base, FILE_BYTES, 0, n);
    move_all(ring, true, errors, done);
    ring_set_fault(apply, &plan);
    memset(arena.base, 0, write ? 0 : FILE_BYTES);
    move_all(ring, write, errors, done);
    ring_set_fault(NULL, NULL);
    for (uint64_t i = 0; i < DEPTH; i++) {
        failed += errors[i] == EIO;
        assert_true(errors[i] == 0 || errors[i] == EIO);
        if (errors[i] == 0)
            check(arena.base + i * CHUNK_BYTES, CHUNK_BYTES, i * CHUNK_BYTES, n);
    }
    assert_int_equal(failed, n < DEPTH ? 1 : 0);
    move_all(ring, false, errors, done);
    check(arena.base, FILE_BYTES, 0, n);
}

static void test_nth_failure(void **state)
{
    (void)state;
    for (uint64_t n = 0; n <= DEPTH; n++) {
        fail_nth(false, n);
        fail_nth(true, n);
    }
}

/* hit_count answers from the n-th on (n < DEPTH) are cut to short_bytes, or are the error: all is
 * whole in the end, at the price of more than DEPTH answers. */
static void absorb(struct plan plan, bool write)
{
    struct ring *ring = shared_ring(plan.hit % 2 == 0);
    int errors[DEPTH];
    uint64_t done[DEPTH], salt = plan.hit + 1000 + (uint64_t)plan.short_bytes;
    fill(arena.base, FILE_BYTES, 0, salt);
    ring_set_fault(write ? apply : NULL, &plan);
    move_all(ring, true, errors, done);
    check_file(salt);
    memset(arena.base, 0xff, FILE_BYTES);
    ring_set_fault(write ? NULL : apply, &plan);
    move_all(ring, false, errors, done);
    ring_set_fault(NULL, NULL);
    check(arena.base, FILE_BYTES, 0, salt);
    for (uint32_t i = 0; i < DEPTH; i++)
        assert_int_equal(errors[i], 0);
    assert_true(plan.seen > DEPTH);
}

static void test_short_transfers_are_completed(void **state)
{
    (void)state;
    const int32_t lengths[] = {1, 4095, 4096, 4097, 3 * 4096 + 1, 15 * 4096, 16 * 4096 - 1};
    for (uint32_t l = 0; l < ARRAY_COUNT(lengths); l++)
        for (uint64_t n = 0; n < DEPTH; n++) {
            struct plan plan = {.hit = n, .hit_count = 5, .short_bytes = lengths[l]};
            absorb(plan, false);
            absorb(plan, true);
        }
}

static void test_interruptions_are_absorbed(void **state)
{
    (void)state;
    const int32_t answers[] = {-EINTR, -EAGAIN};
    for (uint32_t a = 0; a < ARRAY_COUNT(answers); a++)
        for (uint64_t n = 0; n < DEPTH; n++) {
            struct plan plan = {.hit = n, .hit_count = 30, .error = answers[a]};
            absorb(plan, n % 2 == 0);
        }
}

/* A drive that never gets further is an error in the end, and not a loop. */
static void stuck(int32_t answer, int32_t short_bytes, bool write, int expect)
{
    struct plan plan = {.hit_count = UINT64_MAX, .error = answer, .short_bytes = short_bytes};
    struct ring *ring = shared_ring(true);
    int errors[DEPTH];
    uint64_t done[DEPTH];
    ring_set_fault(apply, &plan);
    move_all(ring, write, errors, done);
    ring_set_fault(NULL, NULL);
    for (uint32_t i = 0; i < DEPTH; i++) {
        assert_int_equal(errors[i], expect);
        assert_int_equal(done[i], 0);
    }
}

static void test_retries_are_bounded(void **state)
{
    (void)state;
    stuck(-EAGAIN, 0, false, EAGAIN);
    stuck(-EINTR, 0, true, EINTR);
    stuck(0, 4095, false, ENODATA);
    stuck(0, 1, true, EIO);
    stuck(0, 0, true, EIO);
    stuck(0, 0, false, ENODATA);
}

/* ---- Waking ---- */

static void *wake_from_thread(void *ring)
{
    ring_wake(ring);
    return NULL;
}

static void test_wake_ends_a_wait(void **state)
{
    (void)state;
    struct ring *ring = shared_ring(false);
    struct ring_completion completion;
    for (uint32_t i = 0; i < 200; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, wake_from_thread, ring), 0);
        assert_int_equal(ring_reap(ring, &completion, 1, true), 0); /* hangs when it is not heard */
        pthread_join(thread, NULL);
    }
}

/* A wake that comes while the owner is busy, and even takes completions without waiting, is kept
 * for the next wait. */
static void test_wake_is_kept(void **state)
{
    (void)state;
    struct ring *ring = shared_ring(true);
    struct ring_completion completion;
    ring_wake(ring);
    ring_wake(ring);
    struct ring_transfer transfer = {.fd = fd, .buffer = arena.base, .bytes = IO_ALIGN};
    ring_submit(ring, &transfer);
    while (ring_reap(ring, &completion, 1, false) == 0)
        ;
    assert_int_equal(ring_reap(ring, &completion, 1, true), 0);
}

/* A wait ends at its deadline and not before, with nothing lost: what is in flight comes later. */
static void test_deadline_ends_a_wait(void **state)
{
    (void)state;
    struct ring *ring = shared_ring(false);
    struct ring_completion completion;
    if (!ring_has_deadline(ring))
        skip();
    for (uint64_t wait_ns = 0; wait_ns < 20000000; wait_ns = 3 * wait_ns + 1000) {
        uint64_t deadline_ns = clock_ns() + wait_ns;
        assert_int_equal(ring_reap_until(ring, &completion, 1, deadline_ns), 0);
        assert_true(clock_ns() >= deadline_ns);
        struct ring_transfer transfer = {.fd = fd, .buffer = arena.base, .bytes = IO_ALIGN};
        ring_submit(ring, &transfer);
        uint32_t count = ring_reap_until(ring, &completion, 1, deadline_ns);
        while (count == 0)
            count = ring_reap_until(ring, &completion, 1, clock_ns() + 1000);
        assert_int_equal(completion.error, 0);
    }
    assert_int_equal(ring_in_flight(ring), 0);
}

/* A completion, or a wake, ends a wait whose deadline is far: hangs else. */
static void test_deadline_is_not_waited_for(void **state)
{
    (void)state;
    struct ring *ring = shared_ring(true);
    struct ring_completion completion;
    uint64_t never_ns = UINT64_MAX - 1;
    if (!ring_has_deadline(ring))
        skip();
    struct ring_transfer transfer = {.fd = fd, .buffer = arena.base, .bytes = IO_ALIGN};
    ring_submit(ring, &transfer);
    assert_int_equal(ring_reap_until(ring, &completion, 1, never_ns), 1);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, wake_from_thread, ring), 0);
    assert_int_equal(ring_reap_until(ring, &completion, 1, never_ns), 0);
    pthread_join(thread, NULL);
}

static void nothing(int signal_number)
{
    (void)signal_number;
}

static atomic_bool is_waking;

static void *interrupt_then_wake(void *context)
{
    void **pair = context;
    for (uint32_t i = 0; i < 50; i++)
        pthread_kill(*(pthread_t *)pair[0], SIGUSR1);
    atomic_store(&is_waking, true);
    ring_wake(pair[1]);
    return NULL;
}

static void test_signals_do_not_end_a_wait(void **state)
{
    (void)state;
    struct sigaction action = {.sa_handler = nothing};
    sigaction(SIGUSR1, &action, NULL);
    struct ring *ring = shared_ring(false);
    struct ring_completion completion;
    pthread_t self = pthread_self(), thread;
    void *pair[] = {&self, ring};
    assert_int_equal(pthread_create(&thread, NULL, interrupt_then_wake, pair), 0);
    assert_int_equal(ring_reap(ring, &completion, 1, true), 0);
    assert_true(atomic_load(&is_waking));
    pthread_join(thread, NULL);
}

/* ---- What the kernel may forbid ---- */

static void forbid_io_uring(int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((uint32_t)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = ARRAY_COUNT(code), .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(99);
}

/* Runs body in a child, whose exit status it gives back. */
static int in_child(int (*body)(int), int argument)
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(body(argument));
    assert_true(child > 0 && waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static int open_forbidden(int error)
{
    struct ring *ring;
    struct err err = {0};
    forbid_io_uring(error);
    if (ring_open(&ring, DEPTH, &err) != ERR_SYSTEM || ring != NULL)
        return 1;
    if (strstr(err.message, "io_uring") == NULL || strstr(err.message, "state") == NULL)
        return 2;
    return strchr(err.message, '\n') != NULL ? 3 : 0;
}

static void test_forbidden_io_uring_is_told(void **state)
{
    (void)state;
    assert_int_equal(in_child(open_forbidden, EPERM), 0);
    assert_int_equal(in_child(open_forbidden, ENOSYS), 0);
}

/* What a child says when its user's locked memory is used up or root's rights can't be given up. */
#define CANNOT_SAY 77

/* Gives up root's right to lock memory, so that a limit between what the ring itself needs and the
 * arena's size counts; with a user number of its own, since what other processes of a user have
 * locked counts as well. The parent's arena is kept out of forks, so the child opens its own. */
static int register_under_limit(int unused)
{
    (void)unused;
    struct rlimit limit = {.rlim_cur = 32 * IO_ALIGN, .rlim_max = 32 * IO_ALIGN};
    struct ring *ring;
    struct err err;
    if (mem_arena_open(&arena, FILE_BYTES, &err) < 0 || setrlimit(RLIMIT_MEMLOCK, &limit) != 0)
        return 99;
    bool root = getuid() == 0;
    if (root && setuid(100000 + (uid_t)getpid()) != 0)
        return CANNOT_SAY;
    if (ring_open(&ring, DEPTH, &err) < 0)
        return root ? 1 : CANNOT_SAY;
    if (ring_register(ring, &arena, 1, &err) != 0)
        return 4;
    if (strstr(ring_note(ring), "ulimit -l") == NULL)
        return 2;
    int errors[DEPTH];
    uint64_t done[DEPTH];
    move_all(ring, false, errors, done);
    for (uint32_t i = 0; i < DEPTH; i++)
        if (errors[i] != 0)
            return 3;
    ring_close(ring);
    return 0;
}

static void test_memlock_limit_only_slows(void **state)
{
    (void)state;
    int status = in_child(register_under_limit, 0);
    if (status == CANNOT_SAY) {
        fprintf(stderr, "SKIPPED: this user cannot lock memory as the test needs it\n");
        skip();
    }
    assert_int_equal(status, 0);
}

/* More files than a process may have open are not registered, and serve all the same. */
static int register_files_under_limit(int unused)
{
    (void)unused;
    struct rlimit limit = {0, 0};
    struct ring *ring;
    struct err err;
    if (mem_arena_open(&arena, FILE_BYTES, &err) < 0 || ring_open(&ring, DEPTH, &err) < 0 ||
        setrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 99;
    ring_register_files(ring, &fd, 1);
    if (strstr(ring_note(ring), "no registered files (") == NULL)
        return 1;
    int errors[DEPTH];
    uint64_t done[DEPTH];
    move_all(ring, false, errors, done);
    for (uint32_t i = 0; i < DEPTH; i++)
        if (errors[i] != 0)
            return 2;
    ring_close(ring);
    return 0;
}

static void test_refused_files_only_slow(void **state)
{
    (void)state;
    assert_int_equal(in_child(register_files_under_limit, 0), 0);
}

/* ---- Setting up ---- */

static int setup(void **state)
{
    (void)state;
    const char *dir = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/var/tmp";
    struct err err;
    snprintf(path, sizeof(path), "%s/spillway-test-ring-%ld", dir, (long)getpid());
    if (file_open_direct(&fd, path, true, true, &err) < 0 ||
        file_allocate(fd, path, FILE_BYTES, &err) < 0 ||
        mem_arena_open(&arena, FILE_BYTES, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mem_arena_close(&arena);
    close(fd);
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_note_tells_what_is_registered),
        cmocka_unit_test(test_several_arenas),
        cmocka_unit_test(test_reap_without_waiting),
        cmocka_unit_test(test_close_waits_for_what_is_in_flight),
        cmocka_unit_test(test_registered_files),
        cmocka_unit_test(test_read_beyond_the_end),
        cmocka_unit_test(test_errors_of_the_kernel_come_through),
        cmocka_unit_test(test_nth_failure),
        cmocka_unit_test(test_short_transfers_are_completed),
        cmocka_unit_test(test_interruptions_are_absorbed),
        cmocka_unit_test(test_retries_are_bounded),
        cmocka_unit_test(test_wake_ends_a_wait),
        cmocka_unit_test(test_wake_is_kept),
        cmocka_unit_test(test_deadline_ends_a_wait),
        cmocka_unit_test(test_deadline_is_not_waited_for),
        cmocka_unit_test(test_signals_do_not_end_a_wait),
        cmocka_unit_test(test_forbidden_io_uring_is_told),
        cmocka_unit_test(test_memlock_limit_only_slows),
        cmocka_unit_test(test_refused_files_only_slow),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
