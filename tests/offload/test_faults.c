/*
 * Properties of a drive that fails beneath a whole run (DESIGN section 2.4):
 * 1. Short transfers, EINTR and EAGAIN are absorbed: same weights, not a word.
 * 2. Any other fault, at whichever transfer of the run it strikes, ends the run with status 1 and a
 *    sentence that names file and offset: errors, full drives, files that end, answers that never
 *    come, flipped bits, chunks that were read from or written to another place.
 * 3. --resume then ends at the same weights, bit for bit, so the last commit was intact.
 * 4. Nothing hangs: an answer that does not come is waited for no longer than the ring's patience.
 * Method: a run of three steps with a commit at each, with moments, gradients and activations
 * on the drive, meets the fault in a child, between the kernel's answer and the ring. The sweeps
 * begin with the first transfer of a run and end when it has no more.
 */
#include "core/mem.h"
#include "io/ring.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define HANG_S 120 /* a run takes a fraction of a second, or some on a busy machine */
#define PATIENCE_NS                                                                                \
    50000000 /* where a busy drive is late by accident, the run ends rightly too                   \
              */

/* ---- Faults -----------------------------------------------------------------------------------
 */

/* What happens to transfers of one direction: to the one with number `at`, counted from 0, and
 * where the comment says so to later ones. Lies in memory that is shared with the child that runs
 * into it. Nothing here allocates, since a run's memory is sealed. */
struct fault {
    enum {
        FAULT_NONE,
        FAULT_ERROR,   /* and to all later ones */
        FAULT_SHORT,   /* a file that ends, a drive that takes nothing; all later ones as well */
        FAULT_CUT,     /* every second answer from there on is a part of what was asked for */
        FAULT_HICCUP,  /* every second answer from there on is EINTR or EAGAIN */
        FAULT_FLIP,    /* a bit, on its way into memory */
        FAULT_LOSE,    /* said to be written, and was not */
        FAULT_STRAY,   /* a read gets what lies beside it in the file */
        FAULT_SWAP,    /* two writes of the same size take each other's place */
        FAULT_SWALLOW, /* no answer ever comes */
        FAULT_STOP     /* a signal */
    } kind;
    bool write;
    uint32_t at, seen;
    int error;
    bool differs; /* FAULT_STRAY, FAULT_SWAP: it has changed something */
    struct ring_transfer first;
    struct tiny_run *run;
    uint64_t ram_budget; /* of the run, found by tiny_train_least in a child */
};

static uint8_t block[2][IO_ALIGN] __attribute__((aligned(4096)));

static void pread_block(int fd, uint8_t *to, uint64_t offset)
{
    ASSERT(pread(fd, to, IO_ALIGN, (off_t)offset) == (ssize_t)IO_ALIGN);
}

static void stray(struct fault *fault, const struct ring_transfer *part, uint64_t bytes)
{
    struct stat status;
    ASSERT(fstat(part->fd, &status) == 0);
    uint64_t from = part->offset + bytes, file_bytes = (uint64_t)status.st_size;
    if (from + bytes > file_bytes)
        from = part->offset >= bytes ? part->offset - bytes : part->offset;
    for (uint64_t at = 0; at < bytes; at += IO_ALIGN) {
        uint8_t *to = (uint8_t *)part->buffer + at;
        pread_block(part->fd, block[0], from + at);
        fault->differs |= memcmp(to, block[0], IO_ALIGN) != 0;
        memcpy(to, block[0], IO_ALIGN);
    }
}

static void swap(struct fault *fault, const struct ring_transfer *part)
{
    struct ring_transfer *first = &fault->first;
    if (!first->bytes) {
        *first = *part;
        return;
    }
    if (part->fd != first->fd || part->bytes != first->bytes || part->offset == first->offset)
        return;
    for (uint64_t at = 0; at < part->bytes; at += IO_ALIGN) {
        off_t places[] = {(off_t)(first->offset + at), (off_t)(part->offset + at)};
        for (int i = 0; i < 2; i++)
            pread_block(part->fd, block[i], (uint64_t)places[i]);
        fault->differs |= memcmp(block[0], block[1], IO_ALIGN) != 0;
        for (int i = 0; i < 2; i++)
            ASSERT(pwrite(part->fd, block[1 - i], IO_ALIGN, places[i]) == (ssize_t)IO_ALIGN);
    }
    fault->kind = FAULT_NONE;
}

static int32_t strike(void *context, const struct ring_transfer *part, int32_t result)
{
    struct fault *fault = context;
    if (part->write != fault->write || fault->seen++ < fault->at)
        return result;
    uint32_t past = fault->seen - 1 - fault->at;
    if (fault->kind == FAULT_ERROR)
        return -fault->error;
    if (fault->kind == FAULT_SHORT)
        return 0;
    if (fault->kind == FAULT_CUT && past % 2 == 0 && result > (int32_t)IO_ALIGN)
        return (int32_t)((uint64_t)result * (1 + past % 5) / 7);
    if (fault->kind == FAULT_HICCUP && past % 2 == 0)
        return past % 4 ? -EINTR : -EAGAIN;
    if (fault->kind == FAULT_SWAP)
        swap(fault, part);
    if (past > 0 || result < 0)
        return result;
    if (fault->kind == FAULT_FLIP)
        ((uint8_t *)part->buffer)[(uint64_t)result * 5 / 7] ^= 0x10;
    if (fault->kind == FAULT_STRAY)
        stray(fault, part, (uint64_t)result);
    if (fault->kind == FAULT_LOSE) {
        memset(block[0], 0, IO_ALIGN);
        ASSERT(pwrite(part->fd, block[0], IO_ALIGN, (off_t)part->offset) == (ssize_t)IO_ALIGN);
    }
    if (fault->kind == FAULT_STOP)
        raise(SIGTERM);
    return fault->kind == FAULT_SWALLOW ? RING_SWALLOWED : result;
}

/* In a child: exits with the program's status. One that hangs is killed, which is a failure. */
static void train_with_fault(void *context)
{
    struct fault *fault = context;
    struct err err;
    alarm(HANG_S);
    ring_set_fault(strike, fault);
    ring_set_patience(fault->kind == FAULT_SWALLOW ? PATIENCE_NS : 0);
    if (train_run(&fault->run->settings, &err) == 0)
        _exit(0);
    fprintf(stderr, "spillway: %s\n", err.message);
    fflush(stderr);
    _exit(1);
}

/* A small run that has moments on the drive, and at the least budget, activations. */
static void faulty_run_init(struct tiny_run *run, const char *name, uint64_t ram_budget)
{
    tiny_run_init(run, name);
    run->settings.nvme = train_nvme(run->nvme_dir);
    run->settings.prefetch = 1;
    run->settings.accum = 4;
    run->settings.seq = 32;
    run->settings.resident_planes = 1;
    run->settings.steps = 3;
    run->settings.checkpoint_every = 1;
    run->settings.recompute = RECOMPUTE_NONE;
    run->settings.ram_budget = ram_budget;
}

static void find_budget(void *context)
{
    struct fault *fault = context;
    tiny_train_least(fault->run);
    fault->ram_budget = fault->run->settings.ram_budget;
}

static void forget(const struct tiny_run *run)
{
    scratch_remove(run->run_dir);
    scratch_remove(run->nvme_dir);
}

struct campaign {
    double clip;
    struct fault *fault; /* shared */
    uint64_t ram_budget; /* the least that works in a child, which holds less than this process */
    uint64_t hash;       /* of the weights after step 3 */
};

static void campaign_open(struct campaign *campaign, double clip)
{
    *campaign = (struct campaign){.clip = clip};
    struct tiny_run run;
    uint64_t step;
    char *output;
    campaign->fault =
        mmap(NULL, sizeof(struct fault), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(campaign->fault != MAP_FAILED);
    faulty_run_init(&run, "budget", GIB);
    run.settings.optim.clip = clip;
    *campaign->fault = (struct fault){.run = &run};
    assert_int_equal(tiny_fork(find_budget, campaign->fault, &output), 0);
    if (mem_heap_has_stats() && !strstr(output, "2 registered files"))
        fail_msg("nothing is spilled to a scratch file: %s", output);
    free(output);
    /* A sanitizer's heap grows with every run of this process, and children have it too. */
    campaign->ram_budget = mem_heap_has_stats() ? campaign->fault->ram_budget + MIB / 4 : GIB;
    campaign->hash = tiny_hash(&run, &step);
    assert_int_equal(step, 3);
    assert_true(tiny_number(&run, 3, "ssd_read_bytes") > 1e6);
    forget(&run);
}

static void campaign_close(struct campaign *campaign)
{
    munmap(campaign->fault, sizeof(struct fault));
}

/* A fresh run meets the fault in a child. False when the run has no such transfer any more; else
 * *ended says whether the run ended well all the same. */
static bool campaign_strike(struct campaign *campaign, struct tiny_run *run, struct fault fault,
                            bool *ended, char **output)
{
    faulty_run_init(run, "strike", campaign->ram_budget);
    run->settings.optim.clip = campaign->clip;
    forget(run); /* of a test that failed */
    fault.run = run;
    *campaign->fault = fault;
    int status = tiny_fork(train_with_fault, campaign->fault, output);
    if (!WIFEXITED(status) || WEXITSTATUS(status) > 1)
        fail_msg("status %#x: %s", status, *output);
    *ended = WEXITSTATUS(status) == 0;
    return campaign->fault->seen > fault.at;
}

static bool all_planes_are_whole(const struct tiny_run *run)
{
    struct tiny_model model;
    struct checkpoint_reader reader;
    struct err err;
    tiny_model_init(&model, run->settings.config.layers, run->settings.config.channels, 300, 0, 0);
    if (checkpoint_reader_open(&reader, run->run_dir, &model.layout, &err) != 0)
        fail_msg("%s", err.message);
    uint8_t *data = mem_alloc(model.layout.chunk_count_max, LAYOUT_STATE_BYTES);
    int result = 0;
    for (uint32_t c = 0; c < model.layout.chunk_count && result == 0; c++)
        result = checkpoint_read(&reader, c, 0, PLANE_COUNT, data, &err);
    if (result != 0)
        assert_int_equal(result, ERR_CORRUPT);
    mem_free(data);
    checkpoint_reader_close(&reader);
    tiny_model_deinit(&model);
    return result == 0;
}

static void resume_to_the_end(struct campaign *campaign, struct tiny_run *run)
{
    uint64_t step;
    run->settings.resume = true;
    run->settings.ram_budget = GIB;
    tiny_train(run);
    assert_int_equal(tiny_hash(run, &step), campaign->hash);
    assert_int_equal(step, 3);
    assert_true(all_planes_are_whole(run));
}

static void expect_message(const struct tiny_run *run, const char *output, const char *what)
{
    if (!strstr(output, what) || !strstr(output, run->nvme_dir) || !strstr(output, "at offset "))
        fail_msg("the message does not say '%s' with file and offset: %s", what, output);
}

/* The fault of `like` at every stride-th transfer, from the first to the last of a run, each in a
 * run of its own: all of these end and say what, and --resume ends at the same weights. */
static void sweep(struct campaign *campaign, struct fault like, uint32_t stride, const char *what)
{
    struct tiny_run run;
    uint32_t strikes = 0;
    char *output;
    bool ended, struck;
    do {
        struck = campaign_strike(campaign, &run, like, &ended, &output);
        bool harmless = like.kind == FAULT_STRAY && !campaign->fault->differs;
        if (struck && ended && !harmless)
            fail_msg("fault %d at %s %u, and the run goes on", like.kind,
                     like.write ? "write" : "read", like.at);
        if (!ended)
            expect_message(&run, output, what);
        if (struck && !harmless)
            strikes++;
        free(output);
        resume_to_the_end(campaign, &run);
        forget(&run);
        like.at += stride;
    } while (struck);
    assert_true(strikes >= 3);
}

/* The fault in every stride-th read, then in every stride-th write, each with what it is to say;
 * NULL: not that way. */
static void sweep_both(struct fault fault, uint32_t read_stride, const char *read_words,
                       uint32_t write_stride, const char *write_words)
{
    struct campaign campaign;
    campaign_open(&campaign, 1);
    if (read_words)
        sweep(&campaign, fault, read_stride, read_words);
    fault.write = true;
    sweep(&campaign, fault, write_stride, write_words);
    campaign_close(&campaign);
}

static void test_errors(void **state)
{
    (void)state;
    struct fault fault = {.kind = FAULT_ERROR, .error = EIO};
    sweep_both(fault, 1, "cannot read ", 1, "cannot write ");
}

static void test_full_drive(void **state)
{
    (void)state;
    struct fault fault = {.kind = FAULT_ERROR, .error = ENOSPC};
    sweep_both(fault, 0, NULL, 5, strerror(ENOSPC));
}

static void test_files_that_end(void **state)
{
    (void)state;
    sweep_both((struct fault){.kind = FAULT_SHORT}, 3, "cut short", 5, "cannot write ");
}

static void test_drive_that_does_not_answer(void **state)
{
    (void)state;
    static const char words[] = "has not answered for ";
    sweep_both((struct fault){.kind = FAULT_SWALLOW}, 3, words, 5, words);
}

/* Whatever is read is compared with its checksum before it is used. */
static void check_damage(double clip, uint32_t stride)
{
    struct campaign campaign;
    campaign_open(&campaign, clip);
    struct fault fault = {.kind = FAULT_FLIP};
    sweep(&campaign, fault, stride, "is damaged: at offset ");
    fault.kind = FAULT_STRAY;
    sweep(&campaign, fault, stride, "is damaged: at offset ");
    campaign_close(&campaign);
}

static void test_damaged_reads(void **state)
{
    (void)state;
    check_damage(1, 1);
    check_damage(0, 5);
}

/* A write that never reached the drive, or reached another place, is found when it is read, at the
 * latest by a reader of the commit: no run ends with other weights, all checksums right. */
static void check_writes(int kind, uint32_t stride)
{
    struct campaign campaign;
    struct tiny_run run;
    uint32_t found = 0;
    char *output;
    bool ended, struck;
    struct fault fault = {.kind = kind, .write = true, .at = 1};
    campaign_open(&campaign, 1);
    do {
        struck = campaign_strike(&campaign, &run, fault, &ended, &output);
        uint64_t step;
        if (!ended)
            expect_message(&run, output, "is damaged: at offset ");
        else if (all_planes_are_whole(&run))
            assert_int_equal(tiny_hash(&run, &step), campaign.hash);
        found += !ended || !all_planes_are_whole(&run);
        free(output);
        forget(&run);
        fault.at += stride;
    } while (struck);
    assert_true(found >= 3);
    campaign_close(&campaign);
}

static void test_damaged_writes(void **state)
{
    (void)state;
    check_writes(FAULT_LOSE, 4);
    check_writes(FAULT_SWAP, 4);
}

/* ---- What is absorbed -------------------------------------------------------------------------
 */

/* Short transfers and interruptions, half of all answers, are no faults at all: nothing is said and
 * nothing differs. */
static void test_hiccups(void **state)
{
    (void)state;
    static const int kinds[] = {FAULT_CUT, FAULT_HICCUP};
    struct campaign campaign;
    struct tiny_run run;
    uint64_t step;
    char *output;
    bool ended;
    campaign_open(&campaign, 1);
    for (uint32_t i = 0; i < 8; i++) {
        struct fault fault = {.kind = kinds[i / 4], .write = i % 2, .at = i / 2 % 2};
        assert_true(campaign_strike(&campaign, &run, fault, &ended, &output));
        if (!ended)
            fail_msg("fault %d is not absorbed: %s", fault.kind, output);
        assert_int_equal(tiny_hash(&run, &step), campaign.hash);
        assert_int_equal(step, 3);
        assert_true(all_planes_are_whole(&run));
        free(output);
        forget(&run);
    }
    campaign_close(&campaign);
}

static void test_signal(void **state)
{
    (void)state;
    struct campaign campaign;
    struct tiny_run run;
    uint64_t step;
    char *output;
    bool ended;
    campaign_open(&campaign, 1);
    struct fault fault = {.kind = FAULT_STOP, .write = true, .at = 12};
    assert_true(campaign_strike(&campaign, &run, fault, &ended, &output));
    assert_true(ended);
    assert_non_null(strstr(output, "signal 15"));
    free(output);
    tiny_hash(&run, &step);
    assert_in_range(step, 1, 2);
    resume_to_the_end(&campaign, &run);
    forget(&run);
    campaign_close(&campaign);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors),         cmocka_unit_test(test_full_drive),
        cmocka_unit_test(test_files_that_end), cmocka_unit_test(test_drive_that_does_not_answer),
        cmocka_unit_test(test_damaged_reads),  cmocka_unit_test(test_damaged_writes),
        cmocka_unit_test(test_hiccups),        cmocka_unit_test(test_signal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
