/*
 * bench ssd: one drive, through io/ring as the tier uses it: O_DIRECT, registered buffers on huge
 * pages, transfers of a chunk's state (3 MiB), eight in flight. What it does in both directions at
 * once is measured as a step does it: a chunk is read, updated by all cores and written, since a
 * drive of memory's neighbours is slower while cores pass over memory (by a tenth to a half on a
 * virtual machine), and a transfer ends later where a core has to be woken for it.
 *
 * The test file is written once in full before anything is measured: the first pass over fallocated
 * extents is slow. A shared drive is noisy in the range of seconds, so reading, writing and both
 * take turns, and medians count. Tables of sizes and depths are tools/bench_table.c.
 */
#include "tools/bench.h"

#include "core/json.h"
#include "core/mem.h"
#include "io/ring.h"
#include "offload/engine.h"
#include "offload/layout.h"
#include "tools/bench_drive.h"
#include "tools/bench_table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_BYTES   (LAYOUT_CHUNK_PARAMETERS * LAYOUT_STATE_BYTES)
#define MOMENT_BYTES  (LAYOUT_CHUNK_PARAMETERS * 8)
#define DEPTH         8u
#define STAGES        8u /* chunks at once in a step (offload/place.c) */
#define SWEEP_DEPTH   32u
#define BUFFER_BYTES  (96 * MIB)  /* of one direction */
#define TABLE_BYTES   (256 * MIB) /* of one direction, for a table */
#define ROUNDS_MAX    9u
#define ROUNDS_MIN    3u
#define ROUND_SECONDS 0.4
#define LATENCY_BYTES (256 * KIB)
#define LATENCIES     96u
/* Of the part's seconds. */
#define SHARE_SWEEP  0.10
#define SHARE_DEPTHS 0.09
#define SHARE_ROUNDS 0.55
#define TABLE_FACTOR 3 /* a table takes so many times the part's seconds */
#define DEPTH_ROUNDS 7u
#define DEPTH_GAIN   1.02 /* what another depth than the usual one must bring in every round */
#define WINDOWS      32u  /* of a sustained write */
#define PASS         (WINDOWS / 2)
#define CACHE_FULL   0.75 /* of the first rate: above, no fast cache is taken to be full */

struct ssd {
    struct bench *bench;
    struct bench_drive drive;
    struct bench_updates *updates;
    uint64_t chunk_bytes;  /* of a transfer: less where the file is small */
    uint64_t moment_bytes; /* of those, what a step moves where RAM holds the weights */
};

/* ---- What is measured ------------------------------------------------------------------------ */

static const uint32_t step_depths[] = {1, 2, ENGINE_DRIVE_DEPTH, 4, STAGES};
#define STEP_DEPTHS ARRAY_COUNT(step_depths)
#define DEFAULT_AT  2 /* of step_depths */

struct figures {
    struct bench_samples read, write, mixed_read, mixed_write, read_latency, write_latency;
    struct bench_samples sustained;
    struct bench_samples depth_ratios[STEP_DEPTHS]; /* of a step's rate to that at DEFAULT_AT */
    double best[2];                                 /* of the sweep: read, write */
    uint64_t best_bytes[2];
    uint32_t best_depth[2];
};

static int measure_alone(struct ssd *ssd, bool write, uint64_t transfer_bytes, uint32_t depth,
                         double seconds, double *rate, struct err *err)
{
    struct bench_traffic traffic = {.way = write ? BENCH_WRITE : BENCH_READ,
                                    .transfer_bytes = transfer_bytes,
                                    .depth = depth,
                                    .seconds = seconds,
                                    .least_bytes = 2 * transfer_bytes};
    int result = bench_drive_run(&ssd->drive, &traffic, err);
    if (result == 0)
        *rate = (double)traffic.moved_bytes[write] / traffic.took_s;
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
    uint32_t depth;                              /* of each direction */
    uint32_t reading, writing;
    uint64_t read_bytes, written_bytes;
    uint64_t filling_bytes; /* until so much was written it is not counted */
    double elapsed_s, filled_s;
    uint64_t filled_bytes;      /* written at filled_s */
    uint64_t not_updated_bytes; /* of chunks that are cut short */
};

static void pipeline_submit(struct ssd *ssd, struct pipeline *p, bool write)
{
    uint64_t *next = write ? &p->write_next : &p->read_next;
    uint32_t slot = (uint32_t)(*next % STAGES);
    uint64_t half = ssd->drive.file_bytes / 2 / MIB * MIB, count = half / ssd->chunk_bytes;
    struct ring_transfer transfer = {
        .fd = ssd->drive.fd,
        .write = write,
        .buffer = ssd->drive.arena.base + slot * ssd->chunk_bytes,
        .bytes = ssd->moment_bytes,
        .offset = (write ? half : 0) + *next % count * ssd->chunk_bytes,
        .tag = slot,
    };
    p->slots[slot] = write ? SLOT_WRITING : SLOT_READING;
    (*next)++;
    (*(write ? &p->writing : &p->reading))++;
    ring_submit(ssd->drive.ring, &transfer);
}

static void pipeline_update(struct ssd *ssd, struct pipeline *p)
{
    uint32_t slot = (uint32_t)(p->update_next++ % STAGES);
    for (p->not_updated_bytes += ssd->chunk_bytes; p->not_updated_bytes >= CHUNK_BYTES;
         p->not_updated_bytes -= CHUNK_BYTES)
        bench_updates_run(ssd->updates);
    p->slots[slot] = SLOT_UPDATED;
}

static int pipeline_reap(struct ssd *ssd, struct pipeline *p, bool wait, struct err *err)
{
    struct ring_completion done[2 * STAGES];
    uint32_t count = ring_reap(ssd->drive.ring, done, ARRAY_COUNT(done), wait);
    int result = 0;
    for (uint32_t i = 0; i < count; i++) {
        enum slot *slot = &p->slots[done[i].tag];
        bool write = *slot == SLOT_WRITING;
        if (done[i].error && result == 0)
            result = bench_drive_failed(&ssd->drive, done[i].error, write, err);
        *slot = write ? SLOT_FREE : SLOT_READ;
        (*(write ? &p->writing : &p->reading))--;
        *(write ? &p->written_bytes : &p->read_bytes) += ssd->moment_bytes;
    }
    return result;
}

/* What is in flight at the end is waited for and not counted. */
static int pipeline_run(struct ssd *ssd, struct pipeline *p, double seconds, struct err *err)
{
    uint64_t start_ns = clock_ns();
    int result = 0;
    while (result == 0 && (p->elapsed_s - p->filled_s < seconds ||
                           p->written_bytes < p->filled_bytes + 2 * ssd->chunk_bytes)) {
        while (p->reading < p->depth && p->slots[p->read_next % STAGES] == SLOT_FREE)
            pipeline_submit(ssd, p, false);
        while (p->writing < p->depth && p->slots[p->write_next % STAGES] == SLOT_UPDATED)
            pipeline_submit(ssd, p, true);
        ring_flush(ssd->drive.ring);
        bool due = p->slots[p->update_next % STAGES] == SLOT_READ;
        bool filling = p->written_bytes < p->filling_bytes;
        if (due)
            pipeline_update(ssd, p);
        result = pipeline_reap(ssd, p, !due, err);
        p->elapsed_s = bench_seconds_since(start_ns);
        if (filling) {
            p->filled_s = p->elapsed_s;
            p->filled_bytes = p->written_bytes;
        }
    }
    const struct pipeline counted = *p;
    while (ring_in_flight(ssd->drive.ring) > 0) {
        struct err ignored;
        int late = pipeline_reap(ssd, p, true, result ? &ignored : err);
        result = result ? result : late;
    }
    *p = counted;
    return result;
}

static int measure_mixed(struct ssd *ssd, double seconds, struct figures *f, struct err *err)
{
    struct pipeline p = {.depth = ENGINE_DRIVE_DEPTH};
    int result = pipeline_run(ssd, &p, seconds, err);
    if (result)
        return result;
    bench_add(&f->mixed_read, (double)p.read_bytes / p.elapsed_s);
    bench_add(&f->mixed_write, (double)p.written_bytes / p.elapsed_s);
    return 0;
}

/* What a start costs is more where more is in flight, and a short run would hold that against a
 * deep queue: counted is what comes after all stages have been filled. */
static int measure_depth(struct ssd *ssd, uint32_t depth, double seconds, double *rate,
                         struct err *err)
{
    struct pipeline p = {.depth = depth, .filling_bytes = STAGES * ssd->moment_bytes};
    int result = pipeline_run(ssd, &p, seconds, err);
    if (result == 0)
        *rate = (double)(p.written_bytes - p.filled_bytes) / (p.elapsed_s - p.filled_s);
    return result;
}

/* The depths take turns, and each turn is judged by itself: between turns the drive may change its
 * speed. A drive so slow that the turns take too long leaves the question open. */
static int measure_depths(struct ssd *ssd, double seconds, struct figures *f, struct err *err)
{
    uint64_t start_ns = clock_ns();
    int result = 0;
    for (uint32_t i = 0; i < DEPTH_ROUNDS && result == 0; i++) {
        double rate[STEP_DEPTHS];
        bench_step(ssd->bench, "a step's depths");
        for (size_t d = 0; d < STEP_DEPTHS && result == 0; d++)
            result = measure_depth(ssd, step_depths[d], seconds / (DEPTH_ROUNDS * STEP_DEPTHS),
                                   &rate[d], err);
        for (size_t d = 0; d < STEP_DEPTHS && result == 0; d++)
            bench_add(&f->depth_ratios[d], rate[d] / rate[DEFAULT_AT]);
        if (bench_seconds_since(start_ns) > 2 * seconds)
            break;
    }
    return result;
}

static double least(const struct bench_samples *samples)
{
    double least = INFINITY;
    for (uint32_t i = 0; i < samples->count; i++)
        least = fmin(least, samples->value[i]);
    return least;
}

uint32_t bench_choose_depth(const struct bench_depth *depths, size_t count, uint32_t fallback)
{
    double best = 0;
    for (size_t d = 0; d < count; d++)
        if (depths[d].ratios->count >= DEPTH_ROUNDS && least(depths[d].ratios) > DEPTH_GAIN)
            best = fmax(best, bench_median(depths[d].ratios));
    for (size_t d = 0; d < count && best > 0; d++)
        if (least(depths[d].ratios) > DEPTH_GAIN &&
            bench_median(depths[d].ratios) * DEPTH_GAIN >= best)
            return depths[d].depth;
    return fallback;
}

static int measure_rounds(struct ssd *ssd, struct figures *f, struct err *err)
{
    double seconds = ssd->bench->seconds * SHARE_ROUNDS / 3, rate;
    uint32_t rounds = (uint32_t)fmin(fmax(seconds / ROUND_SECONDS, ROUNDS_MIN), ROUNDS_MAX);
    int result = 0;
    for (uint32_t i = 0; i < rounds && result == 0; i++) {
        bench_step(ssd->bench, "reading, writing, a step");
        result = measure_alone(ssd, false, ssd->chunk_bytes, DEPTH, seconds / rounds, &rate, err);
        if (result)
            break;
        bench_add(&f->read, rate);
        result = measure_alone(ssd, true, ssd->chunk_bytes, DEPTH, seconds / rounds, &rate, err);
        if (result)
            break;
        bench_add(&f->write, rate);
        result = measure_mixed(ssd, seconds / rounds, f, err);
    }
    return result;
}

static const uint64_t sweep_bytes[] = {MIB, CHUNK_BYTES, 8 * MIB};
static const uint32_t sweep_depth[] = {1, 4, DEPTH, SWEEP_DEPTH};

static int measure_sweep(struct ssd *ssd, struct figures *f, struct err *err)
{
    const size_t sizes = ARRAY_COUNT(sweep_bytes), depths = ARRAY_COUNT(sweep_depth);
    double seconds = ssd->bench->seconds * SHARE_SWEEP / (double)(2 * sizes * depths);
    for (size_t i = 0; i < 2 * sizes * depths; i++) {
        bool write = i % 2;
        uint64_t bytes = sweep_bytes[i / 2 / depths];
        uint32_t depth = sweep_depth[i / 2 % depths];
        double rate;
        bench_step(ssd->bench, "sizes and depths");
        if (!bench_drive_holds(&ssd->drive, bytes, depth))
            continue;
        int result = measure_alone(ssd, write, bytes, depth, seconds, &rate, err);
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
static int measure_latency(struct ssd *ssd, bool write, double rate, struct bench_samples *seconds,
                           struct err *err)
{
    uint64_t half = ssd->drive.file_bytes / 2 / MIB * MIB;
    struct bench_traffic traffic = {
        .way = write ? BENCH_WRITE : BENCH_READ, .transfer_bytes = LATENCY_BYTES, .depth = 1};
    bench_step(ssd->bench, "latencies");
    for (uint32_t i = 0; i < LATENCIES; i++) {
        traffic.at = 4 * i * LATENCY_BYTES % half;
        int result = bench_drive_run(&ssd->drive, &traffic, err);
        if (result)
            return result;
        bench_add(seconds, fmax(traffic.took_s - (double)LATENCY_BYTES / rate, 0));
    }
    return 0;
}

static double mean(const double *values, uint32_t count)
{
    double sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += values[i];
    return sum / count;
}

static double squares(const double *values, uint32_t count)
{
    double middle = mean(values, count), sum = 0;
    for (uint32_t i = 0; i < count; i++)
        sum += (values[i] - middle) * (values[i] - middle);
    return sum;
}

/* A step down fits the rates best where the squares around both means are least. */
uint32_t bench_find_fall(const double *rates, uint32_t count)
{
    uint32_t at = 1;
    double best = INFINITY;
    for (uint32_t i = 1; i < count; i++) {
        double error = squares(rates, i) + squares(rates + i, count - i);
        if (error < best) {
            best = error;
            at = i;
        }
    }
    return count > 1 && mean(rates + at, count - at) < CACHE_FULL * mean(rates, at) ? at : 0;
}

/* Two passes over half that size behind the test file: blocks that nobody has written before may be
 * slow for the file system's sake (here by a third), and those of a state are not like that. So
 * what a run of weeks gets is the rate of the last quarter, which is written for the second time.
 */
static int measure_sustained(struct ssd *ssd, struct bench_samples *last, struct err *err)
{
    struct bench *bench = ssd->bench;
    uint64_t window = bench->sustained_bytes / WINDOWS / MIB * MIB;
    double rates[WINDOWS];
    for (uint32_t i = 0; i < WINDOWS; i++) {
        struct bench_traffic traffic = {.way = BENCH_WRITE,
                                        .transfer_bytes = MIN(ssd->chunk_bytes, window),
                                        .depth = DEPTH,
                                        .first = ssd->drive.file_bytes + i % PASS * window,
                                        .bytes = window,
                                        .least_bytes = window};
        bench_step(bench, "writing at a stretch");
        int result = bench_drive_run(&ssd->drive, &traffic, err);
        if (result)
            return result;
        rates[i] = (double)traffic.moved_bytes[1] / traffic.took_s;
        if (i >= WINDOWS / 4 * 3)
            bench_add(last, rates[i]);
    }
    bench->profile.ssd.fast_cache_bytes = bench_find_fall(rates, WINDOWS) * window;
    return 0;
}

/* ---- The part -------------------------------------------------------------------------------- */

static int measure_profile(struct ssd *ssd, struct figures *f, struct err *err)
{
    struct bench *bench = ssd->bench;
    /* Where a table is asked for there is time for a look that sees more. */
    double depths_s = bench->seconds * SHARE_DEPTHS * (bench->ssd.table ? TABLE_FACTOR : 1);
    bench->profile.ssd.fast_cache_bytes = 0;
    int result = measure_rounds(ssd, f, err);
    if (result == 0)
        result = measure_depths(ssd, depths_s, f, err);
    if (result == 0)
        result = measure_sweep(ssd, f, err);
    if (result == 0)
        result = measure_latency(ssd, false, bench_median(&f->read), &f->read_latency, err);
    if (result == 0)
        result = measure_latency(ssd, true, bench_median(&f->write), &f->write_latency, err);
    if (result == 0 && bench->sustained_bytes)
        result = measure_sustained(ssd, &f->sustained, err);
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

static void print_sustained(const struct bench *bench, const struct figures *f)
{
    char bytes[LOG_BYTES_MAX];
    uint64_t cache_bytes = bench->profile.ssd.fast_cache_bytes;
    if (!f->sustained.count)
        printf("The sustained write rate was not measured (--sustained SIZE does) and is taken to "
               "be the other one; drives with a fast cache fall far below it.\n");
    else if (cache_bytes)
        printf("After %s written at a stretch it became slower for good: so much its fast cache "
               "takes.\n",
               log_bytes(bytes, cache_bytes));
    else
        printf("It took %s at a stretch without becoming slower for good.\n",
               log_bytes(bytes, bench->sustained_bytes));
}

/* Which depth, and what it was chosen among. */
static void print_depths(const struct ssd *ssd, const struct figures *f)
{
    char bytes[LOG_BYTES_MAX];
    const struct profile_ssd *p = &ssd->bench->profile.ssd;
    printf("\n%s: in a step %u transfers in flight in each direction serve it (%s each, with",
           p->name, p->queue_depth, log_bytes(bytes, ssd->moment_bytes));
    for (size_t d = 0; d < STEP_DEPTHS; d++)
        printf("%s %u: %.0f %%", d ? "," : "", step_depths[d],
               100 * bench_median(&f->depth_ratios[d]));
    printf(")\n");
    print_sustained(ssd->bench, f);
}

static uint32_t choose_depth(const struct figures *f)
{
    struct bench_depth depths[STEP_DEPTHS];
    for (size_t d = 0; d < STEP_DEPTHS; d++)
        depths[d] = (struct bench_depth){step_depths[d], &f->depth_ratios[d]};
    return bench_choose_depth(depths, STEP_DEPTHS, ENGINE_DRIVE_DEPTH);
}

/* Mixed rates above those alone are noise, and no profile may say so. */
static void report(struct ssd *ssd, const struct figures *f)
{
    struct bench *bench = ssd->bench;
    struct profile_ssd *p = &bench->profile.ssd;
    p->count = 1;
    p->endurance_bytes = 0;
    bench_drive_describe(&ssd->drive, p);
    p->read_bytes_per_s = bench_median(&f->read);
    p->write_bytes_per_s = bench_median(&f->write);
    p->mixed_read_bytes_per_s = fmin(bench_median(&f->mixed_read), p->read_bytes_per_s);
    p->mixed_write_bytes_per_s = fmin(bench_median(&f->mixed_write), p->write_bytes_per_s);
    p->sustained_write_bytes_per_s = p->write_bytes_per_s;
    if (f->sustained.count)
        p->sustained_write_bytes_per_s = fmin(bench_median(&f->sustained), p->write_bytes_per_s);
    p->read_latency_s = bench_median(&f->read_latency);
    p->write_latency_s = bench_median(&f->write_latency);
    p->queue_depth = choose_depth(f);
    report_rate(bench, f, false, &p->read_bytes_per_s, &f->read, "ssd, read");
    report_rate(bench, f, true, &p->write_bytes_per_s, &f->write, "ssd, write");
    report_rate(bench, f, false, &p->mixed_read_bytes_per_s, &f->mixed_read, "ssd, read in a step");
    report_rate(bench, f, true, &p->mixed_write_bytes_per_s, &f->mixed_write,
                "ssd, write in a step");
    if (f->sustained.count)
        report_rate(bench, f, true, &p->sustained_write_bytes_per_s, &f->sustained,
                    "ssd, sustained write");
    bench_report(bench, BENCH_US, p->read_latency_s, &f->read_latency, "ssd, read latency");
    bench_report(bench, BENCH_US, p->write_latency_s, &f->write_latency, "ssd, write latency");
}

/* ---- Tables ---------------------------------------------------------------------------------- */

/* A table, or the one cell of it that was asked for, which is measured for all of the seconds. */
static struct bench_table *open_table(struct ssd *ssd)
{
    const struct bench *bench = ssd->bench;
    struct bench_table_request request = {.drive = &ssd->drive,
                                          .seconds = bench->seconds,
                                          .way = bench->ssd.way,
                                          .chunk_bytes = ssd->chunk_bytes};
    if (bench->ssd.table)
        request.seconds *= TABLE_FACTOR;
    if (bench->ssd.cell) {
        request.block_bytes = bench->ssd.block_bytes;
        request.depth = (uint32_t)bench->ssd.depth;
        ssd->drive.buffer_bytes = request.block_bytes * request.depth;
    }
    return bench->ssd.table || bench->ssd.cell ? bench_table_open(&request) : NULL;
}

static int tell_table(const struct bench *bench, struct bench_table *table, struct err *err)
{
    if (bench->json)
        json_set(bench->json, "cells", bench_table_json(table));
    else
        bench_table_print(table, bench->profile.ssd.queue_depth);
    return bench->ssd.plot ? bench_table_plot(table, bench->ssd.plot, err) : 0;
}

/* ---- The whole ------------------------------------------------------------------------------- */

/* Of the profile. */
static uint32_t count_steps(const struct bench *bench)
{
    return ROUNDS_MAX + DEPTH_ROUNDS + 2 + 2 * ARRAY_COUNT(sweep_bytes) * ARRAY_COUNT(sweep_depth) +
           (bench->sustained_bytes ? WINDOWS : 0);
}

static int measure(struct ssd *ssd, struct figures *f, struct bench_table *table, struct err *err)
{
    struct bench *bench = ssd->bench;
    int result = bench_drive_open(&ssd->drive, err);
    if (result == 0 && !bench->ssd.cell)
        result = bench_updates_open(&ssd->updates, bench->threads, err);
    if (result)
        return result;
    bench_step(bench, "writing the file once");
    result = bench_drive_fill(&ssd->drive, MIN(ssd->chunk_bytes, ssd->drive.buffer_bytes), err);
    if (result == 0 && !bench->ssd.cell)
        result = measure_profile(ssd, f, err);
    return result == 0 && table ? bench_table_measure(table, bench, err) : result;
}

static int tell(struct ssd *ssd, const struct figures *f, struct bench_table *table,
                struct err *err)
{
    struct bench *bench = ssd->bench;
    if (!bench->ssd.cell)
        report(ssd, f);
    int result = table ? tell_table(bench, table, err) : 0;
    if (!bench->ssd.cell && !bench->json)
        print_depths(ssd, f);
    if (bench->json && !bench->ssd.cell) {
        json_set_string(bench->json, "drive", bench->profile.ssd.name);
        json_set_int(bench->json, "queue_depth", bench->profile.ssd.queue_depth);
    }
    if (bench->json)
        json_set_string(bench->json, "io", ring_note(ssd->drive.ring));
    else
        printf("%s\n", ring_note(ssd->drive.ring));
    return result;
}

int bench_ssd(struct bench *bench, struct err *err)
{
    struct figures *f = mem_alloc(1, sizeof(*f));
    struct ssd ssd = {.bench = bench};
    /* A small file needs no more than the transfers alone do. */
    uint64_t most = MAX(bench->file_bytes / 2, DEPTH * CHUNK_BYTES);
    ssd.drive.dir = bench->nvme_dir;
    ssd.drive.file_bytes = bench->file_bytes;
    ssd.drive.space_bytes = bench->file_bytes + bench->sustained_bytes / 2;
    ssd.drive.buffer_bytes = MIN(bench->ssd.table ? TABLE_BYTES : BUFFER_BYTES, most);
    /* A small file's half holds two transfers at least. */
    ssd.chunk_bytes = MIN(CHUNK_BYTES, bench->file_bytes / 4 / IO_ALIGN * IO_ALIGN);
    ssd.moment_bytes = MIN(MOMENT_BYTES, ssd.chunk_bytes);
    struct bench_table *table = open_table(&ssd);
    uint32_t steps = 1 + (bench->ssd.cell ? 0 : count_steps(bench)) + bench_table_steps(table);
    bench_begin(bench, "drive", "figures", steps);
    int result = measure(&ssd, f, table, err);
    bench_end(bench);
    if (result == 0)
        result = tell(&ssd, f, table, err);
    bench_table_close(table);
    bench_updates_close(ssd.updates);
    bench_drive_close(&ssd.drive);
    mem_free(f);
    return result;
}
