/*
 * bench ssd: one drive, through io/ring as the tier uses it: O_DIRECT, registered buffers on huge
 * pages, transfers of a chunk's state (3 MiB), eight in flight. What it does in both directions at
 * once is measured as a step does it: a chunk is read, updated by all cores and written, since a
 * drive of memory's neighbours is slower while cores pass over memory (by a tenth to a half on a
 * virtual machine), and a transfer ends later where a core has to be woken for it.
 *
 * The test file has no name from its first moment on, so it is gone with the process, however that
 * ends. It is written once in full before anything is measured: the first pass over fallocated
 * extents is slow. A shared drive is noisy in the range of seconds, so reading, writing and both
 * take turns, and medians count.
 */
#include "tools/bench.h"

#include "core/mem.h"
#include "io/file.h"
#include "io/ring.h"
#include "offload/engine.h"
#include "offload/layout.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define CHUNK_BYTES   (LAYOUT_CHUNK_PARAMETERS * LAYOUT_STATE_BYTES)
#define MOMENT_BYTES  (LAYOUT_CHUNK_PARAMETERS * 8)
#define DEPTH         8u
#define STAGES        8u /* chunks at once in a step (offload/place.c) */
#define DEPTH_MAX     32u
#define BUFFER_BYTES  (96 * MIB) /* of one direction */
#define ROUNDS_MAX    9u
#define ROUNDS_MIN    3u
#define ROUND_SECONDS 0.4
#define LATENCY_BYTES (256 * KIB)
#define LATENCIES     96u
/* Of the part's seconds. */
#define SHARE_SWEEP  0.25
#define SHARE_ROUNDS 0.55
#define WINDOWS      32u  /* of a sustained write */
#define CACHE_FULL   0.75 /* of the first rate: below, the fast cache is taken to be full */

struct stream {
    bool write;
    uint64_t first, bytes; /* of the file, gone through in a circle */
    uint64_t transfer_bytes;
    uint32_t depth;
    uint8_t *buffers; /* depth of them */
    uint64_t at;      /* next transfer, from first */
    uint64_t done_bytes;
};

struct drive {
    struct bench *bench;
    struct mem_arena arena;
    struct ring *ring;
    struct bench_updates *updates;
    int fd;
    uint64_t file_bytes;
    uint64_t chunk_bytes;  /* of a transfer: less where the file is small */
    uint64_t moment_bytes; /* of those, what a step moves where RAM holds the weights */
};

/* ---- Streams --------------------------------------------------------------------------------- */

static void submit(struct drive *drive, struct stream *stream, uint32_t number, uint32_t slot)
{
    if (stream->at + stream->transfer_bytes > stream->bytes)
        stream->at = 0;
    struct ring_transfer transfer = {
        .fd = drive->fd,
        .write = stream->write,
        .buffer = stream->buffers + slot * stream->transfer_bytes,
        .bytes = stream->transfer_bytes,
        .offset = stream->first + stream->at,
        .tag = (uint64_t)number << 32 | slot,
    };
    stream->at += stream->transfer_bytes;
    ring_submit(drive->ring, &transfer);
}

static int failed(const struct drive *drive, const struct ring_completion *done, bool write,
                  struct err *err)
{
    return err_set_errno(err, done->error, "cannot %s the test file in %s",
                         write ? "write" : "read", drive->bench->nvme_dir);
}

/* Keeps every stream at its depth for `seconds`, and longer until each has done `least_bytes`.
 * *elapsed_s is when their done_bytes were true; what was in flight then is waited for and not
 * counted. */
static int run_streams(struct drive *drive, struct stream *streams, uint32_t count, double seconds,
                       uint64_t least_bytes, double *elapsed_s, struct err *err)
{
    uint64_t start_ns = clock_ns();
    bool over = false;
    int result = 0;
    for (uint32_t i = 0; i < count; i++) {
        ASSERT(streams[i].transfer_bytes <= streams[i].bytes);
        ASSERT(streams[i].depth * streams[i].transfer_bytes <= BUFFER_BYTES);
        for (uint32_t slot = 0; slot < streams[i].depth; slot++)
            submit(drive, &streams[i], i, slot);
    }
    while (ring_in_flight(drive->ring) > 0) {
        struct ring_completion done;
        if (ring_reap(drive->ring, &done, 1, true) == 0)
            continue;
        uint32_t number = (uint32_t)(done.tag >> 32);
        struct stream *stream = &streams[number];
        if (done.error && result == 0)
            result = failed(drive, &done, stream->write, err);
        if (over || result)
            continue;
        stream->done_bytes += stream->transfer_bytes;
        *elapsed_s = bench_seconds_since(start_ns);
        over = *elapsed_s >= seconds;
        for (uint32_t i = 0; i < count; i++)
            over = over && streams[i].done_bytes >= least_bytes;
        if (!over)
            submit(drive, stream, number, (uint32_t)done.tag);
    }
    return result;
}

/* Reads take the file's first half and writes its second, as the slots of a state do. */
static struct stream make_stream(const struct drive *drive, bool write, uint64_t transfer_bytes,
                                 uint32_t depth)
{
    uint64_t half = drive->file_bytes / 2 / MIB * MIB;
    return (struct stream){
        .write = write,
        .first = write ? half : 0,
        .bytes = half,
        .transfer_bytes = transfer_bytes,
        .depth = depth,
        .buffers = drive->arena.base + (write ? BUFFER_BYTES : 0),
    };
}

/* ---- The file -------------------------------------------------------------------------------- */

static int open_file(struct drive *drive, struct err *err)
{
    char name[64], path[FILE_PATH_MAX];
    sigset_t all, before;
    snprintf(name, sizeof(name), "spillway-bench-%ld.tmp", (long)getpid());
    int result = file_join(path, drive->bench->nvme_dir, name, err);
    if (result)
        return result;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    result = file_open_direct(&drive->fd, path, true, true, err);
    if (result == 0)
        unlink(path);
    else
        drive->fd = -1;
    sigprocmask(SIG_SETMASK, &before, NULL);
    uint64_t bytes = MAX(drive->file_bytes, drive->bench->sustained_bytes);
    return result ? result : file_allocate(drive->fd, path, bytes, err);
}

/* What a drive compresses or finds to be zero would be faster than state is. */
static void fill_buffers(struct mem_arena *arena)
{
    uint64_t state = 1;
    for (uint64_t i = 0; i < arena->bytes / 8; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u; /* Knuth's MMIX */
        ((uint64_t *)arena->base)[i] = state;
    }
}

static int fill_file(struct drive *drive, struct err *err)
{
    struct stream stream = make_stream(drive, true, drive->chunk_bytes, DEPTH);
    double elapsed_s;
    stream.first = 0;
    stream.bytes = drive->file_bytes;
    bench_step(drive->bench, "writing the file once");
    return run_streams(drive, &stream, 1, 0, drive->file_bytes, &elapsed_s, err);
}

static int open_drive(struct drive *drive, struct err *err)
{
    int result = mem_arena_open(&drive->arena, 2 * BUFFER_BYTES, err);
    if (result == 0)
        result = ring_open(&drive->ring, 2 * DEPTH_MAX, err);
    if (result == 0)
        result = ring_register(drive->ring, &drive->arena, 1, err);
    if (result == 0)
        result = bench_updates_open(&drive->updates, drive->bench->threads, err);
    if (result == 0)
        result = open_file(drive, err);
    if (result == 0)
        fill_buffers(&drive->arena);
    return result;
}

/* ---- What is measured ------------------------------------------------------------------------ */

struct figures {
    struct bench_samples read, write, mixed_read, mixed_write, read_latency, write_latency;
    double best[2]; /* of the sweep: read, write */
    uint64_t best_bytes[2];
    uint32_t best_depth[2];
};

static int measure_alone(struct drive *drive, bool write, uint64_t transfer_bytes, uint32_t depth,
                         double seconds, double *rate, struct err *err)
{
    struct stream stream = make_stream(drive, write, transfer_bytes, depth);
    double elapsed_s = 0;
    int result = run_streams(drive, &stream, 1, seconds, 2 * transfer_bytes, &elapsed_s, err);
    if (result == 0)
        *rate = (double)stream.done_bytes / elapsed_s;
    return result;
}

/* ---- As a step does ---------------------------------------------------------------------------
 */

enum slot { SLOT_FREE, SLOT_READING, SLOT_READ, SLOT_UPDATED, SLOT_WRITING };

/* Chunks are read, updated and written, each in its turn, as many at once as in a step: their
 * moments, since RAM is filled with weights first. */
struct pipeline {
    enum slot slots[STAGES];
    uint64_t read_next, update_next, write_next; /* slots are used in turn */
    uint32_t reading, writing;
    uint64_t read_bytes, written_bytes;
    uint64_t not_updated_bytes; /* of chunks that are cut short */
};

static void pipeline_submit(struct drive *drive, struct pipeline *p, bool write)
{
    uint64_t *next = write ? &p->write_next : &p->read_next;
    uint32_t slot = (uint32_t)(*next % STAGES);
    uint64_t half = drive->file_bytes / 2 / MIB * MIB, count = half / drive->chunk_bytes;
    struct ring_transfer transfer = {
        .fd = drive->fd,
        .write = write,
        .buffer = drive->arena.base + slot * drive->chunk_bytes,
        .bytes = drive->moment_bytes,
        .offset = (write ? half : 0) + *next % count * drive->chunk_bytes,
        .tag = slot,
    };
    p->slots[slot] = write ? SLOT_WRITING : SLOT_READING;
    (*next)++;
    (*(write ? &p->writing : &p->reading))++;
    ring_submit(drive->ring, &transfer);
}

static void pipeline_update(struct drive *drive, struct pipeline *p)
{
    uint32_t slot = (uint32_t)(p->update_next++ % STAGES);
    for (p->not_updated_bytes += drive->chunk_bytes; p->not_updated_bytes >= CHUNK_BYTES;
         p->not_updated_bytes -= CHUNK_BYTES)
        bench_updates_run(drive->updates);
    p->slots[slot] = SLOT_UPDATED;
}

static int pipeline_reap(struct drive *drive, struct pipeline *p, bool wait, struct err *err)
{
    struct ring_completion done[2 * STAGES];
    uint32_t count = ring_reap(drive->ring, done, ARRAY_COUNT(done), wait);
    int result = 0;
    for (uint32_t i = 0; i < count; i++) {
        enum slot *slot = &p->slots[done[i].tag];
        bool write = *slot == SLOT_WRITING;
        if (done[i].error && result == 0)
            result = failed(drive, &done[i], write, err);
        *slot = write ? SLOT_FREE : SLOT_READ;
        (*(write ? &p->writing : &p->reading))--;
        *(write ? &p->written_bytes : &p->read_bytes) += drive->moment_bytes;
    }
    return result;
}

static int measure_mixed(struct drive *drive, double seconds, struct figures *f, struct err *err)
{
    struct pipeline p = {0};
    uint64_t start_ns = clock_ns();
    double elapsed_s = 0;
    int result = 0;
    while (result == 0 && (elapsed_s < seconds || p.written_bytes < 2 * drive->chunk_bytes)) {
        while (p.reading < ENGINE_DRIVE_DEPTH && p.slots[p.read_next % STAGES] == SLOT_FREE)
            pipeline_submit(drive, &p, false);
        while (p.writing < ENGINE_DRIVE_DEPTH && p.slots[p.write_next % STAGES] == SLOT_UPDATED)
            pipeline_submit(drive, &p, true);
        ring_flush(drive->ring);
        bool due = p.slots[p.update_next % STAGES] == SLOT_READ;
        if (due)
            pipeline_update(drive, &p);
        result = pipeline_reap(drive, &p, !due, err);
        elapsed_s = bench_seconds_since(start_ns);
    }
    bench_add(&f->mixed_read, (double)p.read_bytes / elapsed_s);
    bench_add(&f->mixed_write, (double)p.written_bytes / elapsed_s);
    while (ring_in_flight(drive->ring) > 0) {
        struct err ignored;
        int late = pipeline_reap(drive, &p, true, result ? &ignored : err);
        result = result ? result : late;
    }
    return result;
}

static int measure_rounds(struct drive *drive, struct figures *f, struct err *err)
{
    double seconds = drive->bench->seconds * SHARE_ROUNDS / 3, rate;
    uint32_t rounds = (uint32_t)fmin(fmax(seconds / ROUND_SECONDS, ROUNDS_MIN), ROUNDS_MAX);
    int result = 0;
    for (uint32_t i = 0; i < rounds && result == 0; i++) {
        bench_step(drive->bench, "reading, writing, a step");
        result =
            measure_alone(drive, false, drive->chunk_bytes, DEPTH, seconds / rounds, &rate, err);
        if (result)
            break;
        bench_add(&f->read, rate);
        result =
            measure_alone(drive, true, drive->chunk_bytes, DEPTH, seconds / rounds, &rate, err);
        if (result)
            break;
        bench_add(&f->write, rate);
        result = measure_mixed(drive, seconds / rounds, f, err);
    }
    return result;
}

static const uint64_t sweep_bytes[] = {256 * KIB, MIB, CHUNK_BYTES, 8 * MIB};
static const uint32_t sweep_depth[] = {1, 4, DEPTH, DEPTH_MAX};

static int measure_sweep(struct drive *drive, struct figures *f, struct err *err)
{
    const size_t sizes = ARRAY_COUNT(sweep_bytes), depths = ARRAY_COUNT(sweep_depth);
    double seconds = drive->bench->seconds * SHARE_SWEEP / (double)(2 * sizes * depths);
    for (size_t i = 0; i < 2 * sizes * depths; i++) {
        bool write = i % 2;
        uint64_t bytes = sweep_bytes[i / 2 / depths];
        uint32_t depth = sweep_depth[i / 2 % depths];
        double rate;
        bench_step(drive->bench, "sizes and depths");
        if (bytes * depth > BUFFER_BYTES || 2 * bytes > drive->file_bytes / 2)
            continue;
        int result = measure_alone(drive, write, bytes, depth, seconds, &rate, err);
        if (result)
            return result;
        if (rate > f->best[write]) {
            f->best[write] = rate;
            f->best_bytes[write] = bytes;
            f->best_depth[write] = depth;
        }
    }
    return 0;
}

/* Small transfers, one at a time and far apart, less what their bytes take at the full rate. */
static int measure_latency(struct drive *drive, bool write, double rate,
                           struct bench_samples *seconds, struct err *err)
{
    struct stream stream = make_stream(drive, write, LATENCY_BYTES, 1);
    bench_step(drive->bench, "latencies");
    for (uint32_t i = 0; i < LATENCIES; i++) {
        double elapsed_s = 0;
        int result = run_streams(drive, &stream, 1, 0, 0, &elapsed_s, err);
        if (result)
            return result;
        stream.at += 3 * LATENCY_BYTES;
        bench_add(seconds, fmax(elapsed_s - (double)LATENCY_BYTES / rate, 0));
    }
    return 0;
}

/* One pass over a file of that size; the last quarter's rate is what a run of weeks gets. */
static int measure_sustained(struct drive *drive, struct bench_samples *rates, struct err *err)
{
    struct bench *bench = drive->bench;
    uint64_t window = bench->sustained_bytes / WINDOWS / MIB * MIB;
    double first = 0;
    for (uint32_t i = 0; i < WINDOWS; i++) {
        struct stream stream = make_stream(drive, true, MIN(drive->chunk_bytes, window), DEPTH);
        double elapsed_s = 0;
        bench_step(bench, "writing at a stretch");
        stream.first = i * window;
        stream.bytes = window;
        int result = run_streams(drive, &stream, 1, 0, window, &elapsed_s, err);
        if (result)
            return result;
        double rate = (double)stream.done_bytes / elapsed_s;
        first = fmax(first, i < WINDOWS / 8 ? rate : 0);
        if (!bench->profile.ssd.fast_cache_bytes && rate < CACHE_FULL * first)
            bench->profile.ssd.fast_cache_bytes = i * window;
        if (i >= WINDOWS / 4 * 3)
            bench_add(rates, rate);
    }
    return 0;
}

/* ---- The drive's name ------------------------------------------------------------------------ */

static bool read_name(char name[PROFILE_NAME_MAX], unsigned major_number, unsigned minor_number,
                      const char *below)
{
    char path[128], text[PROFILE_NAME_MAX] = "";
    snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major_number, minor_number, below);
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool read = fgets(text, sizeof(text), file) != NULL;
    fclose(file);
    for (size_t end = strlen(text); end > 0 && (text[end - 1] == '\n' || text[end - 1] == ' ');)
        text[--end] = '\0';
    if (!read || !text[0])
        return false;
    memcpy(name, text, PROFILE_NAME_MAX);
    return true;
}

/* The model where the kernel tells it, of the drive or of that which a partition is on. */
static void describe_drive(const struct drive *drive, struct profile_ssd *ssd)
{
    struct stat stat;
    struct statvfs space;
    snprintf(ssd->name, sizeof(ssd->name), "drive of %.*s", PROFILE_NAME_MAX - 16,
             drive->bench->nvme_dir);
    if (fstat(drive->fd, &stat) == 0 &&
        !read_name(ssd->name, major(stat.st_dev), minor(stat.st_dev), "device/model"))
        read_name(ssd->name, major(stat.st_dev), minor(stat.st_dev), "../device/model");
    if (fstatvfs(drive->fd, &space) == 0)
        ssd->capacity_bytes = (uint64_t)space.f_blocks * space.f_frsize;
}

/* ---- The part -------------------------------------------------------------------------------- */

static int measure_all(struct drive *drive, struct figures *f, struct bench_samples *sustained,
                       struct err *err)
{
    struct bench *bench = drive->bench;
    int result = fill_file(drive, err);
    if (result == 0)
        result = measure_rounds(drive, f, err);
    if (result == 0)
        result = measure_sweep(drive, f, err);
    if (result == 0)
        result = measure_latency(drive, false, bench_median(&f->read), &f->read_latency, err);
    if (result == 0)
        result = measure_latency(drive, true, bench_median(&f->write), &f->write_latency, err);
    if (result == 0 && bench->sustained_bytes)
        result = measure_sustained(drive, sustained, err);
    return result;
}

static void report_rate(struct bench *bench, const struct figures *f, bool write, double *figure,
                        const struct bench_samples *rates, const char *name)
{
    static char of[2][64]; /* rows point at it */
    char bytes[LOG_BYTES_MAX];
    struct bench_row *row = bench_report(bench, BENCH_GB_S, *figure, rates, "%s", name);
    if (f->best[write] > 0)
        snprintf(of[write], sizeof(of[write]), "the best of the sweep: %s, %u deep",
                 log_bytes(bytes, f->best_bytes[write]), f->best_depth[write]);
    /* The rounds are part of what was tried. */
    bench_limit(row, fmax(f->best[write], bench_median(write ? &f->write : &f->read)), of[write]);
}

/* Mixed rates above those alone are noise, and no profile may say so. */
static void report(struct drive *drive, const struct figures *f,
                   const struct bench_samples *sustained)
{
    struct bench *bench = drive->bench;
    struct profile_ssd *ssd = &bench->profile.ssd;
    ssd->count = 1;
    ssd->endurance_bytes = 0;
    describe_drive(drive, ssd);
    ssd->read_bytes_per_s = bench_median(&f->read);
    ssd->write_bytes_per_s = bench_median(&f->write);
    ssd->mixed_read_bytes_per_s = fmin(bench_median(&f->mixed_read), ssd->read_bytes_per_s);
    ssd->mixed_write_bytes_per_s = fmin(bench_median(&f->mixed_write), ssd->write_bytes_per_s);
    ssd->sustained_write_bytes_per_s = ssd->write_bytes_per_s;
    if (sustained->count)
        ssd->sustained_write_bytes_per_s = fmin(bench_median(sustained), ssd->write_bytes_per_s);
    ssd->read_latency_s = bench_median(&f->read_latency);
    ssd->write_latency_s = bench_median(&f->write_latency);
    report_rate(bench, f, false, &ssd->read_bytes_per_s, &f->read, "ssd, read");
    report_rate(bench, f, true, &ssd->write_bytes_per_s, &f->write, "ssd, write");
    report_rate(bench, f, false, &ssd->mixed_read_bytes_per_s, &f->mixed_read,
                "ssd, read in a step");
    report_rate(bench, f, true, &ssd->mixed_write_bytes_per_s, &f->mixed_write,
                "ssd, write in a step");
    if (sustained->count)
        report_rate(bench, f, true, &ssd->sustained_write_bytes_per_s, sustained,
                    "ssd, sustained write");
    bench_report(bench, BENCH_US, ssd->read_latency_s, &f->read_latency, "ssd, read latency");
    bench_report(bench, BENCH_US, ssd->write_latency_s, &f->write_latency, "ssd, write latency");
    printf("\n%s: %s\n", ssd->name, ring_note(drive->ring));
    if (!sustained->count)
        printf("The sustained write rate was not measured (--sustained SIZE does) and is taken to "
               "be the other one; drives with a fast cache fall far below it.\n");
}

int bench_ssd(struct bench *bench, struct err *err)
{
    struct figures *f = mem_alloc(1, sizeof(*f));
    struct bench_samples sustained = {0};
    struct drive drive = {.bench = bench, .fd = -1, .file_bytes = bench->file_bytes};
    /* A small file's half holds two transfers at least. */
    drive.chunk_bytes = MIN(CHUNK_BYTES, bench->file_bytes / 4 / IO_ALIGN * IO_ALIGN);
    drive.moment_bytes = MIN(MOMENT_BYTES, drive.chunk_bytes);
    uint32_t sweep = 2 * ARRAY_COUNT(sweep_bytes) * ARRAY_COUNT(sweep_depth);
    bench->profile.ssd.fast_cache_bytes = 0;
    bench_begin(bench, "drive", "figures",
                sweep + ROUNDS_MAX + 3 + (bench->sustained_bytes ? WINDOWS : 0));
    int result = open_drive(&drive, err);
    if (result == 0)
        result = measure_all(&drive, f, &sustained, err);
    bench_end(bench);
    if (result == 0)
        report(&drive, f, &sustained);
    ring_close(drive.ring);
    if (drive.fd >= 0)
        close(drive.fd);
    mem_arena_close(&drive.arena);
    bench_updates_close(drive.updates);
    mem_free(f);
    return result;
}
