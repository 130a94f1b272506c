/*
 * Property: no transfer is waited for for ever. One that is late ends with ETIMEDOUT, says whether
 * its buffer is the caller's again, and leaves the other transfers and the ring's closing alone.
 * Method: a pipe that nobody writes to, from which the kernel can call a read home, and answers
 * that a fault swallows, which it cannot. A wait without an end is a test that hangs. Patience is
 * short where an answer is sure not to come, and half a second where others must.
 */
#include "core/base.h"
#include "core/clock.h"
#include "io/file.h"
#include "io/ring.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DEPTH 8

static uint8_t memory[DEPTH * IO_ALIGN] __attribute__((aligned(4096)));
static int fd;

static struct ring *impatient_ring(uint64_t patience_ns)
{
    ring_set_patience(patience_ns);
    struct ring *ring;
    struct err err;
    if (ring_open(&ring, DEPTH, &err) < 0)
        fail_msg("%s", err.message);
    ring_set_patience(0);
    return ring;
}

/* Whether the test can be made; else it is told. */
static bool can_be_late(struct ring *ring)
{
    if (ring_has_deadline(ring))
        return true;
    fprintf(stderr, "SKIPPED: this kernel cannot end a wait (Linux 5.11)\n");
    ring_close(ring);
    return false;
}

/* What the kernel can call home: the buffer is the caller's again, and the ring as good as new. */
static void test_late_and_called_home(void **state)
{
    (void)state;
    int ends[2];
    struct ring_completion completion;
    struct ring *ring = impatient_ring(1000000);
    assert_int_equal(pipe(ends), 0);
    if (!can_be_late(ring))
        skip();
    for (uint64_t round = 0; round < 3 * DEPTH; round++) {
        struct ring_transfer transfer = {
            .fd = ends[0], .buffer = memory, .bytes = IO_ALIGN, .tag = round};
        uint64_t start_ns = clock_ns();
        ring_submit(ring, &transfer);
        bool waiting = round % 2; /* who looks in now and then meets it too */
        while (ring_reap(ring, &completion, 1, waiting) == 0)
            ;
        assert_true(clock_ns() - start_ns >= 1000000);
        assert_int_equal(completion.tag, round);
        assert_int_equal(completion.error, ETIMEDOUT);
        assert_int_equal(completion.done_bytes, 0);
        assert_false(completion.abandoned);
    }
    assert_non_null(strstr(ring_explain(ring, ETIMEDOUT), "has not answered for 0.001 s"));
    memset(memory, 7, IO_ALIGN);
    assert_int_equal(write(ends[1], "nobody reads it", 15), 15);
    while (ring_reap(ring, &completion, 1, false) != 0)
        fail();
    assert_int_equal(memory[0], 7);
    ring_close(ring);
    close(ends[0]);
    close(ends[1]);
}

static int32_t swallow(void *context, const struct ring_transfer *part, int32_t result)
{
    return part->offset == *(uint64_t *)context ? RING_SWALLOWED : result;
}

/* What it cannot: the buffer stays the kernel's, and the others are whole. */
static void test_late_and_abandoned(void **state)
{
    (void)state;
    uint64_t lost_offset = 3 * IO_ALIGN;
    struct ring_completion completion;
    struct ring *ring = impatient_ring(500000000);
    if (!can_be_late(ring))
        skip();
    ring_set_fault(swallow, &lost_offset);
    for (uint64_t i = 0; i < DEPTH; i++) {
        struct ring_transfer transfer = {.fd = fd,
                                         .buffer = memory + i * IO_ALIGN,
                                         .bytes = IO_ALIGN,
                                         .offset = i * IO_ALIGN,
                                         .tag = i};
        ring_submit(ring, &transfer);
    }
    for (uint64_t i = 0; i < DEPTH; i++) {
        while (ring_reap(ring, &completion, 1, true) == 0)
            ;
        assert_int_equal(completion.abandoned, completion.tag == 3);
        assert_int_equal(completion.error, completion.tag == 3 ? ETIMEDOUT : 0);
        assert_int_equal(completion.tag == 3, i == DEPTH - 1);
    }
    assert_int_equal(ring_in_flight(ring), 0);
    /* One of the ring's places is lost, the others serve on. */
    for (uint64_t i = 0; i < 2 * DEPTH; i++) {
        struct ring_transfer transfer = {.fd = fd, .buffer = memory, .bytes = IO_ALIGN};
        ring_submit(ring, &transfer);
        while (ring_reap(ring, &completion, 1, true) == 0)
            ;
        assert_int_equal(completion.error, 0);
    }
    ring_set_fault(NULL, NULL);
    ring_close(ring);
}

/* Hangs when a ring's closing waits for ever. */
static void test_close_does_not_wait_for_ever(void **state)
{
    (void)state;
    int ends[2];
    struct ring *ring = impatient_ring(1000000);
    uint64_t lost_offset = 0;
    assert_int_equal(pipe(ends), 0);
    if (!can_be_late(ring))
        skip();
    ring_set_fault(swallow, &lost_offset);
    struct ring_transfer transfers[] = {
        {.fd = ends[0], .buffer = memory, .bytes = IO_ALIGN, .offset = IO_ALIGN},
        {.fd = fd, .buffer = memory + IO_ALIGN, .bytes = IO_ALIGN},
    };
    for (size_t i = 0; i < ARRAY_COUNT(transfers); i++)
        ring_submit(ring, &transfers[i]);
    ring_close(ring);
    ring_set_fault(NULL, NULL);
    close(ends[0]);
    close(ends[1]);
}

static int setup(void **state)
{
    (void)state;
    struct err err;
    const char *path = scratch_path("late");
    if (file_open_direct(&fd, path, true, true, &err) < 0 ||
        file_allocate(fd, path, sizeof(memory), &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return -1;
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_late_and_called_home),
        cmocka_unit_test(test_late_and_abandoned),
        cmocka_unit_test(test_close_does_not_wait_for_ever),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
