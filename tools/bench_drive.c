#include "tools/bench_drive.h"

#include "core/base.h"
#include "core/clock.h"
#include "io/file.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define FILL_DEPTH 8u

const char *const bench_way_name[BENCH_WAY_COUNT] = {"read", "write", "mixed"};

/* ---- The file -------------------------------------------------------------------------------- */

static int open_file(struct bench_drive *drive, struct err *err)
{
    char name[64], path[FILE_PATH_MAX];
    sigset_t all, before;
    snprintf(name, sizeof(name), "spillway-bench-%ld.tmp", (long)getpid());
    int result = file_join(path, drive->dir, name, err);
    if (result)
        return result;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    result = file_open_direct(&drive->fd, path, true, true, err);
    if (result == 0)
        unlink(path);
    else
        drive->fd = 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return result ? result : file_allocate(drive->fd, path, drive->space_bytes, err);
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

int bench_drive_open(struct bench_drive *drive, struct err *err)
{
    ASSERT(drive->file_bytes % MIB == 0 && drive->space_bytes >= drive->file_bytes);
    int result = mem_arena_open(&drive->arena, 2 * drive->buffer_bytes, err);
    if (result == 0)
        result = ring_open(&drive->ring, 2 * BENCH_DRIVE_DEPTH_MAX, err);
    if (result == 0)
        result = ring_register(drive->ring, &drive->arena, 1, err);
    if (result == 0)
        result = open_file(drive, err);
    if (result)
        return result;
    ring_register_files(drive->ring, &drive->fd, 1);
    fill_buffers(&drive->arena);
    return 0;
}

void bench_drive_close(struct bench_drive *drive)
{
    ring_close(drive->ring);
    if (drive->fd > 0)
        close(drive->fd);
    mem_arena_close(&drive->arena);
}

int bench_drive_fill(struct bench_drive *drive, uint64_t transfer_bytes, struct err *err)
{
    struct bench_traffic traffic = {.way = BENCH_WRITE,
                                    .transfer_bytes = transfer_bytes,
                                    .bytes = drive->file_bytes,
                                    .least_bytes = drive->file_bytes};
    traffic.depth = (uint32_t)MIN(FILL_DEPTH, drive->buffer_bytes / transfer_bytes);
    return bench_drive_run(drive, &traffic, err);
}

int bench_drive_failed(const struct bench_drive *drive, int error, bool write, struct err *err)
{
    return err_set_errno(err, error, "cannot %s the test file in %s", write ? "write" : "read",
                         drive->dir);
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
void bench_drive_describe(const struct bench_drive *drive, struct profile_ssd *ssd)
{
    struct stat stat;
    struct statvfs space;
    snprintf(ssd->name, sizeof(ssd->name), "drive of %.*s", PROFILE_NAME_MAX - 16, drive->dir);
    if (fstat(drive->fd, &stat) == 0 &&
        !read_name(ssd->name, major(stat.st_dev), minor(stat.st_dev), "device/model"))
        read_name(ssd->name, major(stat.st_dev), minor(stat.st_dev), "../device/model");
    if (fstatvfs(drive->fd, &space) == 0)
        ssd->capacity_bytes = (uint64_t)space.f_blocks * space.f_frsize;
}

/* ---- Latencies ------------------------------------------------------------------------------- */

/* Below 32 ns a class has one value, above that the five bits behind the first one tell it. */
static uint32_t class_of(uint64_t ns)
{
    uint32_t top = 63 - (uint32_t)__builtin_clzll(ns | 1);
    if (top < 5)
        return (uint32_t)ns;
    uint32_t shift = top - 5;
    return (shift + 1) * 32 + (uint32_t)(ns >> shift & 31);
}

static uint64_t class_end(uint32_t class)
{
    return class < 32 ? class : ((32ull + class % 32 + 1) << (class / 32 - 1)) - 1;
}

void bench_latencies_add(struct bench_latencies *latencies, uint64_t ns)
{
    uint32_t class = class_of(ns);
    ASSERT(class < BENCH_LATENCY_CLASSES);
    latencies->classes[class]++;
    latencies->count++;
    latencies->max_ns = MAX(latencies->max_ns, ns);
}

double bench_latencies_within(const struct bench_latencies *latencies, double share)
{
    uint64_t seen = 0;
    uint32_t class = 0;
    ASSERT(share > 0 && share <= 1);
    for (; class < BENCH_LATENCY_CLASSES; class ++) {
        seen += latencies->classes[class];
        if ((double)seen >= share * (double)latencies->count)
            break;
    }
    return latencies->count ? (double)MIN(class_end(class), latencies->max_ns) / 1e9 : 0;
}

/* ---- Traffic --------------------------------------------------------------------------------- */

struct stream {
    bool write;
    uint64_t first, bytes, at;
    uint8_t *buffers;
    uint64_t submitted; /* transfers */
    uint32_t free[BENCH_DRIVE_DEPTH_MAX], free_count;
    uint64_t submit_ns[BENCH_DRIVE_DEPTH_MAX]; /* [slot] */
};

struct run {
    struct bench_drive *drive;
    struct bench_traffic *traffic;
    struct stream streams[2]; /* reads, writes */
    uint64_t start_ns;
    bool over;
};

static bool takes_part(const struct run *run, bool write)
{
    enum bench_way way = run->traffic->way;
    return way == BENCH_MIXED || write == (way == BENCH_WRITE);
}

static void open_stream(struct run *run, bool write)
{
    const struct bench_drive *drive = run->drive;
    const struct bench_traffic *traffic = run->traffic;
    uint64_t half = drive->file_bytes / 2 / MIB * MIB;
    struct stream *stream = &run->streams[write];
    *stream = (struct stream){
        .write = write,
        .first = traffic->bytes ? traffic->first : write * half,
        .bytes = traffic->bytes ? traffic->bytes : half,
        .at = traffic->at,
        .buffers = drive->arena.base + write * drive->buffer_bytes,
        .free_count = takes_part(run, write) ? traffic->depth : 0,
    };
    ASSERT(traffic->transfer_bytes <= stream->bytes);
    for (uint32_t i = 0; i < stream->free_count; i++)
        stream->free[i] = i;
}

static void submit(struct run *run, struct stream *stream)
{
    uint64_t bytes = run->traffic->transfer_bytes;
    uint32_t slot = stream->free[--stream->free_count];
    if (stream->at + bytes > stream->bytes)
        stream->at = 0;
    struct ring_transfer transfer = {
        .fd = run->drive->fd,
        .write = stream->write,
        .buffer = stream->buffers + slot * bytes,
        .bytes = bytes,
        .offset = stream->first + stream->at,
        .tag = (uint64_t)stream->write << 32 | slot,
    };
    stream->at += bytes;
    stream->submitted++;
    stream->submit_ns[slot] = clock_ns();
    ring_submit(run->drive->ring, &transfer);
}

/* In mixed traffic no direction gets ahead of the other by more than its depth. */
static bool may_submit(const struct run *run, bool write)
{
    const struct stream *stream = &run->streams[write], *other = &run->streams[!write];
    return stream->free_count > 0 && (run->traffic->way != BENCH_MIXED ||
                                      stream->submitted < other->submitted + run->traffic->depth);
}

static void submit_all(struct run *run)
{
    while (!run->over && (may_submit(run, false) || may_submit(run, true)))
        for (int write = 0; write < 2; write++)
            if (may_submit(run, write))
                submit(run, &run->streams[write]);
}

static int take(struct run *run, const struct ring_completion *done, uint64_t now_ns,
                struct err *err)
{
    struct bench_traffic *traffic = run->traffic;
    bool write = done->tag >> 32;
    uint32_t slot = (uint32_t)done->tag;
    struct stream *stream = &run->streams[write];
    if (done->error)
        return bench_drive_failed(run->drive, done->error, write, err);
    stream->free[stream->free_count++] = slot;
    traffic->moved_bytes[write] += traffic->transfer_bytes;
    if (traffic->latencies)
        bench_latencies_add(&traffic->latencies[write], now_ns - stream->submit_ns[slot]);
    return 0;
}

static bool is_over(const struct run *run)
{
    const struct bench_traffic *traffic = run->traffic;
    bool over = traffic->took_s >= traffic->seconds;
    for (int write = 0; write < 2; write++)
        if (takes_part(run, write))
            over = over && traffic->moved_bytes[write] >= traffic->least_bytes;
    return over;
}

bool bench_drive_holds(const struct bench_drive *drive, uint64_t transfer_bytes, uint32_t depth)
{
    return depth <= BENCH_DRIVE_DEPTH_MAX && transfer_bytes * depth <= drive->buffer_bytes &&
           transfer_bytes <= drive->file_bytes / 2 / MIB * MIB;
}

int bench_drive_run(struct bench_drive *drive, struct bench_traffic *traffic, struct err *err)
{
    struct run run = {.drive = drive, .traffic = traffic, .start_ns = clock_ns()};
    struct ring_completion done[2 * BENCH_DRIVE_DEPTH_MAX];
    int result = 0;
    ASSERT(traffic->depth > 0 && bench_drive_holds(drive, traffic->transfer_bytes, traffic->depth));
    traffic->took_s = 0;
    memset(traffic->moved_bytes, 0, sizeof(traffic->moved_bytes));
    for (int write = 0; write < 2; write++)
        open_stream(&run, write);
    submit_all(&run);
    while (ring_in_flight(drive->ring) > 0) {
        uint32_t count = ring_reap(drive->ring, done, ARRAY_COUNT(done), true);
        uint64_t now_ns = clock_ns();
        for (uint32_t i = 0; i < count; i++) {
            struct err ignored;
            int taken = take(&run, &done[i], now_ns, result ? &ignored : err);
            result = result ? result : taken;
        }
        traffic->took_s = (double)(now_ns - run.start_ns) / 1e9;
        run.over = run.over || result || is_over(&run);
        submit_all(&run);
    }
    return result;
}
