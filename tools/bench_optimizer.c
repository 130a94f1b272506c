/*
 * bench optimizer: what the cpu lane and the copy lanes do, on chunks as the trainer has them
 * (offload/layout.h): the update by all cores, without and with checksums, a checksum and a copy by
 * one, the join of hi and lo.
 *
 * What an update could do at most is measured beside it: a bare loop that reads and writes the same
 * bytes, both taking turns.
 *
 * All on cold data: chunks are taken in turn out of a working set that no cache holds.
 */
#include "tools/bench.h"

#include "core/float.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "io/ring.h"
#include "model/kernels.h"
#include "model/optim.h"
#include "offload/layout.h"
#include "offload/tier.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define CHUNK_PARTS (LAYOUT_CHUNK_PARAMETERS / LAYOUT_PART_PARAMETERS)
#define PLANE_STATE (LAYOUT_CHUNK_PARAMETERS * LAYOUT_STATE_BYTES)
/* Of a chunk and everything that an op on it touches: state, FP32 gradient or joined weights. */
#define CHUNK_BYTES     (PLANE_STATE + LAYOUT_CHUNK_PARAMETERS * 4)
#define SAMPLE_COUNT    41u
#define SAMPLE_RUNS     4u    /* at least */
#define LEAST_MORE      0.01  /* of an update's time: what noise lets checksums take at least */
#define GAIN_PARAMETERS 124e6 /* what the time to win is told of: gpt2-124m's */
#define LANE_DEPTH      4u    /* as in offload/engine_real.c */
#define LAUNCHES        64u
#define LAUNCH_SAMPLES  65u

struct optimizer {
    struct bench *bench;
    struct mem_arena arena;
    struct pool *pool;
    uint32_t chunk_count;
    uint32_t next; /* chunk */
    struct optim_step step;
    struct moments moments;
    enum precision precision;
    uint64_t sum;   /* so that sums are needed */
    uint8_t *chunk; /* of the job */
};

static uint8_t *take_chunk(struct optimizer *o)
{
    o->chunk = o->arena.base + (o->next++ % o->chunk_count) * CHUNK_BYTES;
    return o->chunk;
}

/* Values as in training: weights of 0.02, gradients of 1e-3, moments that go with them. Zeros would
 * do for time, but not what becomes denormal of them. */
static void fill_chunk(uint8_t *chunk, enum precision precision)
{
    uint16_t *hi = (uint16_t *)chunk;
    float *gradient = (float *)(chunk + PLANE_STATE);
    for (uint64_t i = 0; i < LAYOUT_CHUNK_PARAMETERS; i++) {
        float sign = i % 3 ? 1 : -1;
        hi[i] = float_to_bf16(sign * 0.02f);
        if (precision == PRECISION_BF16)
            ((uint16_t *)gradient)[i] = float_to_bf16(sign * 1e-3f);
        else
            gradient[i] = sign * 1e-3f;
    }
}

/* Where a block of a moment is: planes of moments begin where those in FP32 do. */
static void *block_at(uint8_t *chunk, enum plane plane, uint64_t block, enum moments_kind kind)
{
    return chunk + LAYOUT_CHUNK_PARAMETERS * (plane == PLANE_M ? 4 : 8) +
           block * moments_block_bytes(kind);
}

/* Moments of all chunks in this kind. */
static void fill_moments(struct optimizer *o, enum moments_kind kind)
{
    struct moments_values values;
    struct moments_place place = {0};
    moments_init(&o->moments, kind, 1);
    for (uint64_t i = 0; i < MOMENTS_BLOCK; i++) {
        values.m[i] = i % 3 ? 1e-3f : -1e-3f;
        values.v[i] = 1e-6f;
    }
    for (uint32_t c = 0; c < o->chunk_count; c++)
        for (uint64_t b = 0; b < LAYOUT_CHUNK_PARAMETERS / MOMENTS_BLOCK; b++) {
            uint8_t *chunk = o->arena.base + c * CHUNK_BYTES;
            bool finite = moments_store(&o->moments, &values, block_at(chunk, PLANE_M, b, kind),
                                        block_at(chunk, PLANE_V, b, kind), &place);
            ASSERT(finite);
        }
}

/* ---- What is measured ------------------------------------------------------------------------ */

/* As in offload/exec.c. */
static void update_blocks(struct optimizer *o, struct optim_range range, uint64_t first)
{
    enum moments_kind kind = o->moments.kind;
    const uint8_t *gradient = range.gradient;
    struct moments_values values;
    range.m = values.m;
    range.v = values.v;
    range.count = MOMENTS_BLOCK;
    for (uint64_t done = 0; done < LAYOUT_PART_PARAMETERS; done += MOMENTS_BLOCK) {
        uint64_t block = (first + done) / MOMENTS_BLOCK;
        struct moments_place place = {o->step.step, first + done};
        void *m = block_at(o->chunk, PLANE_M, block, kind);
        void *v = block_at(o->chunk, PLANE_V, block, kind);
        moments_load(&o->moments, &values, m, v);
        range.gradient = gradient + done * precision_bytes(o->precision);
        bool finite = optim_update(&range, &o->step, o->precision) &&
                      moments_store(&o->moments, &values, m, v, &place);
        ASSERT(finite);
        range.hi += MOMENTS_BLOCK;
        range.lo += MOMENTS_BLOCK;
    }
}

static void update_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    struct optimizer *o = context;
    uint64_t first = task * LAYOUT_PART_PARAMETERS;
    uint8_t *chunk = o->chunk;
    struct optim_range range = {
        .hi = (uint16_t *)chunk + first,
        .lo = (int16_t *)(chunk + LAYOUT_CHUNK_PARAMETERS * 2) + first,
        .m = (float *)(chunk + LAYOUT_CHUNK_PARAMETERS * 4) + first,
        .v = (float *)(chunk + LAYOUT_CHUNK_PARAMETERS * 8) + first,
        .gradient = chunk + PLANE_STATE + first * precision_bytes(o->precision),
        .count = LAYOUT_PART_PARAMETERS,
        .decay = true,
    };
    if (o->moments.kind != MOMENTS_FP32) {
        update_blocks(o, range, first);
        return;
    }
    ASSERT(optim_update(&range, &o->step, o->precision));
}

static void run_update(struct optimizer *o)
{
    take_chunk(o);
    pool_run(o->pool, update_task, o, CHUNK_PARTS);
}

/* What an update reads and writes, and next to nothing else: its limit. The last bit of some values
 * changes, which no update minds. */
static void stream_plane(uint8_t *plane, uint64_t bytes)
{
    uint64_t *words = (uint64_t *)plane;
    for (uint64_t i = 0; i < bytes / sizeof(*words); i++)
        words[i] ^= 1;
}

static void stream_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    struct optimizer *o = context;
    const uint64_t count = LAYOUT_PART_PARAMETERS, first = task * count;
    const uint64_t each = precision_bytes(o->precision);
    const uint64_t *gradient = (const uint64_t *)(o->chunk + PLANE_STATE + first * each);
    uint64_t before = 0, sum = 0;
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        uint64_t bytes = p < PLANE_M ? 2 : 4;
        stream_plane(o->chunk + before + first * bytes, count * bytes);
        before += LAYOUT_CHUNK_PARAMETERS * bytes;
    }
    for (uint64_t i = 0; i < count * each / sizeof(*gradient); i++)
        sum += gradient[i];
    __atomic_fetch_add(&o->sum, sum, __ATOMIC_RELAXED);
}

static void run_stream(struct optimizer *o)
{
    take_chunk(o);
    pool_run(o->pool, stream_task, o, CHUNK_PARTS);
}

static void sum_part(struct optimizer *o, uint64_t first)
{
    uint64_t sum = 0, before = 0;
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        uint64_t bytes = p < PLANE_M ? 2 : 4;
        sum += tier_part_sum(o->chunk + before + first * bytes, LAYOUT_PART_PARAMETERS * bytes);
        before += LAYOUT_CHUNK_PARAMETERS * bytes;
    }
    __atomic_fetch_add(&o->sum, sum, __ATOMIC_RELAXED);
}

/* As in offload/exec.c. */
static void checked_task(void *context, uint32_t task, uint32_t worker)
{
    sum_part(context, task * LAYOUT_PART_PARAMETERS);
    update_task(context, task, worker);
    sum_part(context, task * LAYOUT_PART_PARAMETERS);
}

static void run_checked(struct optimizer *o)
{
    take_chunk(o);
    pool_run(o->pool, checked_task, o, CHUNK_PARTS);
}

/* The wide planes, of which there is most. */
static void run_checksum(struct optimizer *o)
{
    uint8_t *chunk = take_chunk(o);
    uint64_t part = LAYOUT_PART_PARAMETERS * 4;
    for (uint64_t i = 0; i < 2 * CHUNK_PARTS; i++)
        o->sum += tier_part_sum(chunk + LAYOUT_CHUNK_PARAMETERS * 4 + i * part, part);
}

/* What goes to a device: weights of a chunk. */
static void run_copy(struct optimizer *o)
{
    uint8_t *from = take_chunk(o), *to = take_chunk(o);
    memcpy(to, from, LAYOUT_CHUNK_PARAMETERS * precision_bytes(o->precision));
}

static void join_task(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    struct optimizer *o = context;
    uint64_t first = task * LAYOUT_PART_PARAMETERS;
    float_join_many((uint16_t *)o->chunk + first,
                    (int16_t *)(o->chunk + LAYOUT_CHUNK_PARAMETERS * 2) + first,
                    (float *)(o->chunk + PLANE_STATE) + first, LAYOUT_PART_PARAMETERS);
}

static void run_join(struct optimizer *o)
{
    take_chunk(o);
    pool_run(o->pool, join_task, o, CHUNK_PARTS);
}

/* Units per second; each run does `units`. */
static void measure(struct optimizer *o, void (*run)(struct optimizer *), double units,
                    double seconds, const char *what, struct bench_samples *rates)
{
    bench_step(o->bench, what);
    for (uint32_t i = 0; i < SAMPLE_COUNT; i++) {
        uint64_t start_ns = clock_ns(), runs = 0;
        double took;
        do {
            run(o);
            runs++;
            took = bench_seconds_since(start_ns);
        } while (runs < SAMPLE_RUNS || took < seconds / SAMPLE_COUNT);
        bench_add(rates, units * (double)runs / took);
    }
}

/* Updates and the bare loop, taking turns: parameters per second of either. */
static void measure_update(struct optimizer *o, double seconds, struct bench_samples *update,
                           struct bench_samples *stream)
{
    bench_step(o->bench, "AdamW and a bare loop");
    for (uint32_t i = 0; i < SAMPLE_COUNT; i++) {
        double took[2] = {0};
        uint64_t runs = 0;
        do {
            for (uint32_t bare = 0; bare < 2; bare++) {
                uint64_t start_ns = clock_ns();
                (bare ? run_stream : run_update)(o);
                took[bare] += bench_seconds_since(start_ns);
            }
            runs++;
        } while (runs < SAMPLE_RUNS || took[0] + took[1] < seconds / SAMPLE_COUNT);
        bench_add(update, (double)(LAYOUT_CHUNK_PARAMETERS * runs) / took[0]);
        bench_add(stream, (double)(LAYOUT_CHUNK_PARAMETERS * runs) / took[1]);
    }
}

/* What checksums add to updates: both take turns, so that what else goes on strikes both. */
static void measure_cached(struct optimizer *o, double seconds, struct bench_samples *rates)
{
    double bytes = 2 * PLANE_STATE;
    bench_step(o->bench, "AdamW and checksums");
    for (uint32_t i = 0; i < SAMPLE_COUNT; i++) {
        double took[2] = {0};
        uint64_t runs = 0;
        do {
            for (uint32_t checked = 0; checked < 2; checked++) {
                uint64_t start_ns = clock_ns();
                (checked ? run_checked : run_update)(o);
                took[checked] += bench_seconds_since(start_ns);
            }
            runs++;
        } while (runs < SAMPLE_RUNS || took[0] + took[1] < seconds / SAMPLE_COUNT);
        double more_s = fmax(took[1] - took[0], took[0] * LEAST_MORE);
        bench_add(rates, bytes * (double)runs / (more_s * o->bench->threads));
    }
}

/* ---- Handing over ---------------------------------------------------------------------------- */

struct lane {
    sem_t work;
    struct ring *ring;
    atomic_uint finished;
    atomic_bool stop;
};

static void *lane_main(void *context)
{
    struct lane *lane = context;
    mem_own_thread();
    for (;;) {
        while (sem_wait(&lane->work) != 0)
            ASSERT(errno == EINTR);
        if (atomic_load_explicit(&lane->stop, memory_order_acquire))
            return NULL;
        atomic_fetch_add_explicit(&lane->finished, 1, memory_order_release);
        ring_wake(lane->ring);
    }
}

/* `count` empty ops, LANE_DEPTH of them on their way at any moment, as the scheduler keeps it. */
static void hand_over(struct lane *lane, uint32_t count)
{
    unsigned first = atomic_load_explicit(&lane->finished, memory_order_acquire);
    struct ring_completion none;
    for (uint32_t posted = 0, done = 0; done < count;) {
        for (; posted < count && posted - done < LANE_DEPTH; posted++)
            sem_post(&lane->work);
        done = atomic_load_explicit(&lane->finished, memory_order_acquire) - first;
        if (done < count && (posted == count || posted - done == LANE_DEPTH))
            ring_reap(lane->ring, &none, 1, true);
    }
}

/* The trainer's scheduler and its lanes' threads share the first core: opening the device binds the
 * one, and the others are started by it. */
int bench_launch(struct bench_samples *seconds, struct err *err)
{
    struct lane lane = {0};
    pthread_t thread;
    int result = ring_open(&lane.ring, 1, err);
    if (result)
        return result;
    topo_bind_thread(0);
    sem_init(&lane.work, 0, 0);
    int error = pthread_create(&thread, NULL, lane_main, &lane);
    if (error)
        result = err_set_errno(err, error, "cannot start a thread");
    for (uint32_t i = 0; i < LAUNCH_SAMPLES && result == 0; i++) {
        uint64_t start_ns = clock_ns();
        hand_over(&lane, LAUNCHES);
        bench_add(seconds, bench_seconds_since(start_ns) / LAUNCHES);
    }
    if (result == 0) {
        atomic_store_explicit(&lane.stop, true, memory_order_release);
        sem_post(&lane.work);
        pthread_join(thread, NULL);
    }
    sem_destroy(&lane.work);
    ring_close(lane.ring);
    topo_unbind_thread();
    return result;
}

/* ---- The part -------------------------------------------------------------------------------- */

static void describe_cpu(struct bench *bench)
{
    const struct topo *topo = topo_open();
    struct profile_cpu *cpu = &bench->profile.cpu;
    snprintf(cpu->name, sizeof(cpu->name), "%.*s", PROFILE_NAME_MAX - 1, topo->cpu_model);
    cpu->cores = bench->threads;
    cpu->threads = MAX(topo->thread_count, bench->threads);
    cpu->l2_bytes = topo->l2_bytes;
    cpu->l3_bytes = topo_l3_bytes();
}

static void report(struct bench *bench, double *figure, enum bench_unit unit, double bytes_a_unit,
                   const struct bench_samples *rates, const char *name)
{
    *figure = bench_median(rates);
    struct bench_row *row = bench_report(bench, unit, *figure, rates, "%s", name);
    double ram = bench->ram_known ? bench->profile.ram.bytes_per_s : 0;
    bench_limit(row, ram / bytes_a_unit, "the memory of all cores");
}

/* Of all cores' work on parameters; stream: bytes per second of the bare loop. */
static void report_update(struct bench *bench, double *figure, double bytes_a_parameter,
                          const struct bench_samples *rates, double stream, const char *name,
                          struct bench_gain *gain)
{
    *figure = bench_median(rates);
    struct bench_row *row = bench_report(bench, BENCH_M_PARAMETERS_S, *figure, rates, "%s", name);
    bench_limit(row, stream / bytes_a_parameter, "a bare loop over the same bytes");
    *gain = (struct bench_gain){.seconds = GAIN_PARAMETERS / *figure,
                                .least_s = GAIN_PARAMETERS * bytes_a_parameter / stream};
    snprintf(gain->name, sizeof(gain->name), "%s", name);
}

static int measure_all(struct optimizer *o, struct err *err)
{
    struct bench *bench = o->bench;
    struct profile_cpu *cpu = &bench->profile.cpu;
    struct bench_samples update = {0}, bf16 = {0}, in_8bit = {0}, cached = {0}, sum = {0},
                         copy = {0}, join = {0}, launch = {0}, stream = {0};
    double parameters = (double)LAYOUT_CHUNK_PARAMETERS, each = bench->seconds / 10;
    double gradient = precision_bytes(o->precision);
    measure_update(o, 2 * each, &update, &stream);
    measure_cached(o, 2 * each, &cached);
    measure(o, run_checksum, parameters * 8, each, "checksums", &sum);
    measure(o, run_copy, parameters * gradient, each, "copies", &copy);
    measure(o, run_join, parameters, each, "joins", &join);
    fill_moments(o, MOMENTS_BF16);
    measure(o, run_update, parameters, each, "AdamW, moments in bf16", &bf16);
    fill_moments(o, MOMENTS_8BIT);
    measure(o, run_update, parameters, each, "AdamW, moments in 8 bits", &in_8bit);
    bench_step(bench, "handing over");
    int result = bench_launch(&launch, err);
    if (result)
        return result;
    struct bench_gain gains[4];
    double bare = bench_median(&stream) * (2 * LAYOUT_STATE_BYTES + gradient);
    report_update(bench, &cpu->optimizer_parameters_per_s, 2 * LAYOUT_STATE_BYTES + gradient,
                  &update, bare, "optimizer, all cores", &gains[0]);
    report_update(bench, &cpu->optimizer_bf16_parameters_per_s, 16 + gradient, &bf16, bare,
                  "optimizer, moments in bf16", &gains[1]);
    report_update(bench, &cpu->optimizer_8bit_parameters_per_s, 12 + gradient, &in_8bit, bare,
                  "optimizer, moments in 8 bits", &gains[2]);
    report_update(bench, &cpu->join_parameters_per_s, 8, &join, bare, "join, all cores", &gains[3]);
    bench_gains("these, over 124 M parameters", gains, ARRAY_COUNT(gains));
    report(bench, &cpu->checksum_bytes_per_s, BENCH_GB_S, 1, &sum, "checksum, one core");
    cpu->cached_checksum_bytes_per_s = bench_median(&cached);
    bench_report(bench, BENCH_GB_S, cpu->cached_checksum_bytes_per_s, &cached,
                 "checksum in an update, one core");
    report(bench, &cpu->copy_bytes_per_s, BENCH_GB_S, 2, &copy, "copy, one core");
    cpu->launch_s = bench_median(&launch);
    bench_report(bench, BENCH_US, cpu->launch_s, &launch, "handing an op to a lane's thread");
    return 0;
}

static int open_chunks(struct optimizer *o, uint32_t threads, struct err *err)
{
    const struct optim_settings settings = {
        .lr = 1e-6, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
    o->precision = kernels_cpu_has_bf16() ? PRECISION_BF16 : PRECISION_FP32;
    optim_step_init(&o->step, &settings, 10, 1);
    o->chunk_count = (uint32_t)MAX(bench_cold_bytes() / CHUNK_BYTES, 2);
    int result = mem_arena_open(&o->arena, o->chunk_count * CHUNK_BYTES, err);
    if (result == 0)
        result = pool_open(&o->pool, "bench", threads, false, err);
    if (result)
        return result;
    fill_chunk(o->arena.base, o->precision);
    for (uint32_t i = 1; i < o->chunk_count; i++)
        memcpy(o->arena.base + i * CHUNK_BYTES, o->arena.base, CHUNK_BYTES);
    fill_moments(o, MOMENTS_FP32);
    return 0;
}

static void close_chunks(struct optimizer *o)
{
    pool_close(o->pool);
    mem_arena_close(&o->arena);
}

int bench_optimizer(struct bench *bench, struct err *err)
{
    struct optimizer o = {.bench = bench};
    bench_begin(bench, "optimizer", "figures", 8);
    int result = open_chunks(&o, bench->threads, err);
    if (result == 0) {
        describe_cpu(bench);
        result = measure_all(&o, err);
    }
    bench_end(bench);
    close_chunks(&o);
    return result;
}

/* ---- Beside a drive -------------------------------------------------------------------------- */

struct bench_updates {
    struct optimizer optimizer;
};

int bench_updates_open(struct bench_updates **updates, uint32_t threads, struct err *err)
{
    *updates = mem_alloc(1, sizeof(**updates));
    return open_chunks(&(*updates)->optimizer, threads, err);
}

void bench_updates_run(struct bench_updates *updates)
{
    run_checked(&updates->optimizer);
}

void bench_updates_close(struct bench_updates *updates)
{
    if (!updates)
        return;
    close_chunks(&updates->optimizer);
    mem_free(updates);
}
