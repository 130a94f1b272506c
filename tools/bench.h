/*
 * bench: what the parts of `spillway bench` share. Each part measures some figures of a struct
 * profile, in the way that the trainer uses what they describe (the same functions, sizes, depths
 * and kinds of memory), and tells each figure's distance from what the machine could do.
 *
 * tools/bench.c has the command: it runs parts one after the other in the main thread, draws their
 * progress, prints the table and writes the profile. Parts are tools/bench_*.c. A part leaves
 * nothing behind: not on the drive, whenever it is killed, and no thread bound.
 */
#ifndef SPILLWAY_TOOLS_BENCH_H
#define SPILLWAY_TOOLS_BENCH_H

#include "core/base.h"
#include "core/clock.h"
#include "core/err.h"
#include "core/log.h"
#include "offload/profile.h"

struct json_value;

/* ---- Samples --------------------------------------------------------------------------------- */

#define BENCH_SAMPLES_MAX 256

struct bench_samples {
    uint32_t count;
    double value[BENCH_SAMPLES_MAX];
};

/* What comes after BENCH_SAMPLES_MAX is not needed and not kept. */
void bench_add(struct bench_samples *samples, double value);
double bench_median(const struct bench_samples *samples);
/* Half the middle half's width over the median: the middle half lies within this share of it, more
 * or less. 0 for a single sample. */
double bench_spread(const struct bench_samples *samples);

static inline double bench_seconds_since(uint64_t start_ns)
{
    return (double)(clock_ns() - start_ns) / 1e9;
}

/* ---- Figures --------------------------------------------------------------------------------- */

enum bench_unit { BENCH_GB_S, BENCH_GFLOP_S, BENCH_M_PARAMETERS_S, BENCH_US };

struct bench_row {
    char figure[64];
    enum bench_unit unit;
    double value;   /* in bytes, FLOPs, parameters or seconds */
    double limit;   /* in the same; 0: not known */
    const char *of; /* what the limit is, in words; NULL without one */
    double spread;  /* by bench_spread; below 0: from one sample, or computed */
};

#define BENCH_ROWS_MAX 64

/* What only `bench ssd` is asked for. */
struct bench_ssd_request {
    bool table;
    bool cell;            /* only one size and depth is measured, and nothing of the profile */
    uint64_t block_bytes; /* of that cell */
    uint64_t depth;       /* in each direction */
    const char *way;      /* read, write or mixed; NULL: each in turn */
    const char *plot;     /* a file to draw the table into, or NULL */
};

struct bench {
    struct profile profile; /* parts write their figures here */
    const char *nvme_dir;   /* the drive that bench_ssd measures */
    uint32_t threads;
    uint64_t file_bytes;      /* of the drive's test file */
    uint64_t sustained_bytes; /* 0: the sustained rate is not measured */
    double seconds;           /* that the part which runs should take, about */
    bool alone;               /* it was asked for by its own name */
    bool on_card;             /* pcie and compute measure CUDA device number `card` */
    uint32_t card;
    struct bench_ssd_request ssd;
    struct json_value *json; /* borrowed: what is told goes into it instead of to stdout; or NULL */
    bool ram_known;          /* profile.ram was measured, now or by an earlier run */

    struct log_progress progress;
    double done_units;
    struct bench_row rows[BENCH_ROWS_MAX];
    uint32_t row_count;
};

/* The part's progress, in units of `unit`: measurements of about the same length, or seconds;
 * `what` is the name of that which begins. */
void bench_begin(struct bench *bench, const char *label, const char *unit, double units);
void bench_step(struct bench *bench, const char *what); /* one more unit is done */
void bench_at(struct bench *bench, double done_units, const char *what);
void bench_end(struct bench *bench);

/* A line of the table at the end; figure is in the manner of printf. */
struct bench_row *bench_report(struct bench *bench, enum bench_unit unit, double value,
                               const struct bench_samples *samples, const char *figure, ...)
    __attribute__((format(printf, 5, 6)));
/* That row's limit. 0 means that it is not known. */
void bench_limit(struct bench_row *row, double limit, const char *of);

/* Something that a step does: what it takes, and what it would at its limit (0: not known). */
struct bench_gain {
    char name[64];
    double seconds, least_s;
};
/* Prints the three with the most between the two; `of` is what all of them together are. Sorts
 * gains. */
void bench_gains(const char *of, struct bench_gain *gains, size_t count);

/* ---- Parts ----------------------------------------------------------------------------------- */

/* profile.ram. */
int bench_ram(struct bench *bench, struct err *err);
/* profile.cpu: what the cpu and copy lanes do. */
int bench_optimizer(struct bench *bench, struct err *err);
/* profile.device: the CPU device's kernels. */
int bench_compute(struct bench *bench, struct err *err);
/* profile.ssd: one drive, at nvme_dir. */
int bench_ssd(struct bench *bench, struct err *err);

/* `bench offload` has options of its own: the rest of the command line. */
int bench_offload_main(int argc, char **argv);

/* A working set that no cache holds: of more than all third-level caches by far, but at most an
 * eighth of what memory is free. */
uint64_t bench_cold_bytes(void);

/* What goes on beside a drive's transfers: updates of chunks, with all their checksums, by all
 * cores on cold data. */
struct bench_updates;
int bench_updates_open(struct bench_updates **updates, uint32_t threads, struct err *err);
void bench_updates_run(struct bench_updates *updates);   /* one chunk */
void bench_updates_close(struct bench_updates *updates); /* NULL is legal */

/* The queue depth that serves a drive best in a step. ratios: what a depth reached over what the
 * fallback did just then, a sample a round. The fallback, unless others are better by 2 % in every
 * one of seven rounds or more: then the smallest of those within 2 % of the best. depths ascend. */
struct bench_depth {
    uint32_t depth;
    const struct bench_samples *ratios;
};
uint32_t bench_choose_depth(const struct bench_depth *depths, size_t count, uint32_t fallback);

/* The rates of a long write, window after window: how many came before it fell to less than three
 * quarters for good; 0 where it did not. */
uint32_t bench_find_fall(const double *rates, uint32_t count);

/* Seconds that a lane loses between two ops which wait in its queue, by the primitives of
 * offload/engine_real.c. */
int bench_launch(struct bench_samples *seconds, struct err *err);

#endif
