/*
 * bench_drive: a drive under traffic: a test file and a ring on it, as the tier has them (O_DIRECT,
 * registered buffers on huge pages, a registered file), and streams of transfers of one size that
 * keep so many in flight in each direction. For tools/bench_ssd.c and tools/bench_table.c.
 *
 * The test file has no name from its first moment on, so it is gone with the process, however that
 * ends. Reads take its first half and writes its second, as the slots of a state do.
 *
 * A rate is counted as fio counts it: all bytes that were moved, over the time from the first
 * submission to the last completion.
 */
#ifndef SPILLWAY_TOOLS_BENCH_DRIVE_H
#define SPILLWAY_TOOLS_BENCH_DRIVE_H

#include "core/mem.h"
#include "io/ring.h"
#include "offload/profile.h"

#include <stdbool.h>
#include <stdint.h>

#define BENCH_DRIVE_DEPTH_MAX 128 /* in each direction */

struct bench_drive {
    /* Given. */
    const char *dir;       /* borrowed */
    uint64_t file_bytes;   /* a multiple of 1 MiB */
    uint64_t space_bytes;  /* of the file altogether: no less */
    uint64_t buffer_bytes; /* of each direction: what is in flight at most */

    struct mem_arena arena; /* buffers of reads, then those of writes */
    struct ring *ring;
    int fd;
};

/* What is given is set and the rest zeroed. On error too it is to be closed. */
int bench_drive_open(struct bench_drive *drive, struct err *err);
void bench_drive_close(struct bench_drive *drive); /* a zeroed one is legal */

/* Writes the file once, without which the first pass over its blocks would be slow. */
int bench_drive_fill(struct bench_drive *drive, uint64_t transfer_bytes, struct err *err);

/* The sentence on a transfer that failed. */
int bench_drive_failed(const struct bench_drive *drive, int error, bool write, struct err *err);

/* name and capacity_bytes, as far as the kernel tells. */
void bench_drive_describe(const struct bench_drive *drive, struct profile_ssd *ssd);

/* ---- Latencies ------------------------------------------------------------------------------- */

/* How many transfers took how long: 32 classes to an octave of nanoseconds. */
#define BENCH_LATENCY_CLASSES 1920
struct bench_latencies {
    uint64_t count, max_ns;
    uint32_t classes[BENCH_LATENCY_CLASSES];
};

void bench_latencies_add(struct bench_latencies *latencies, uint64_t ns);
/* Seconds within which that share of the transfers ended, too much by 3 % at most; 1: the longest;
 * 0 where there were none. */
double bench_latencies_within(const struct bench_latencies *latencies, double share);

/* ---- Traffic --------------------------------------------------------------------------------- */

enum bench_way { BENCH_READ, BENCH_WRITE, BENCH_MIXED, BENCH_WAY_COUNT };
extern const char *const bench_way_name[BENCH_WAY_COUNT];

struct bench_traffic {
    enum bench_way way; /* mixed: both, in equal amounts */
    uint64_t transfer_bytes;
    uint32_t depth;       /* in each direction; transfers of so many fit buffer_bytes */
    double seconds;       /* that are submitted for */
    uint64_t least_bytes; /* and longer until so much is done in each direction */
    /* The part of the file, gone through in a circle from at; bytes 0: the direction's half. */
    uint64_t first, bytes, at;
    struct bench_latencies *latencies; /* [2]: added to, of reads and of writes; NULL: not wanted */

    double took_s; /* out */
    uint64_t moved_bytes[2];
};

/* A transfer of this size fits a half and so many the buffers. */
bool bench_drive_holds(const struct bench_drive *drive, uint64_t transfer_bytes, uint32_t depth);

int bench_drive_run(struct bench_drive *drive, struct bench_traffic *traffic, struct err *err);

#endif
