/*
 * bench ram: what the memory carries, against the size of what is worked on and where the cores
 * are. Four mixes of reads and writes, each over a slice of the working set per core:
 *
 *   read   sums it up
 *   copy   memcpy of one half to the other: beyond the caches glibc writes past them
 *   triad  a = b + s * c of three thirds, by plain stores (a is read too, which is not counted)
 *   adamw  the optimizer's update itself: reads all of its state, writes all but the gradient
 *
 * ram.bytes_per_s is the best of them over the largest working set with all cores: what is called a
 * mix here is what the lanes of a step do at the same time.
 */
#include "tools/bench.h"

#include "core/float.h"
#include "core/mem.h"
#include "core/pool.h"
#include "core/topo.h"
#include "model/kernels.h"
#include "model/optim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIZE_COUNT       7 /* 256 KiB to 1 GiB by factors of 4 */
#define SIZE_FIRST       (256 * KIB)
#define PLACEMENTS_MAX   4
#define SLICE_ALIGN      ((uint64_t)4096)
#define SLOW_BYTES_PER_S 4e9
#define SAMPLES_WANTED   5
#define REPEATS_MAX      ((uint64_t)1 << 20)
/* A job should be long against the waking of a worker. */
#define JOB_SECONDS_MIN 0.002

enum mix { MIX_READ, MIX_COPY, MIX_TRIAD, MIX_ADAMW, MIX_COUNT };
static const char *const mix_name[MIX_COUNT] = {"read", "copy", "triad", "adamw"};

struct placement {
    char name[48];
    const uint32_t *cores; /* borrowed from topo, or NULL: the first core_count */
    uint32_t core_count;
    struct bench_samples rates[MIX_COUNT][SIZE_COUNT]; /* bytes per second */
};

/* ---- The mixes ------------------------------------------------------------------------------- */

typedef uint64_t wide __attribute__((vector_size(64)));

static inline __attribute__((always_inline)) uint64_t read_loop(const void *from, uint64_t bytes)
{
    const wide *at = from;
    wide sum[4] = {0};
    for (uint64_t i = 0; i + 4 <= bytes / sizeof(wide); i += 4)
        for (int j = 0; j < 4; j++)
            sum[j] ^= at[i + (uint64_t)j];
    wide all = sum[0] ^ sum[1] ^ sum[2] ^ sum[3];
    return all[0] ^ all[1] ^ all[2] ^ all[3] ^ all[4] ^ all[5] ^ all[6] ^ all[7];
}

static inline __attribute__((always_inline)) void triad_loop(void *base, uint64_t bytes)
{
    uint64_t count = bytes / 3 / sizeof(wide);
    wide *restrict a = base;
    const wide *restrict b = a + count, *restrict c = b + count;
    for (uint64_t i = 0; i < count; i++)
        a[i] = b[i] + 3 * c[i];
}

/* Compiled for each width of vectors, as the optimizer is. */
#define FOR_TARGET(suffix, attribute)                                                              \
    attribute static uint64_t read_##suffix(const void *from, uint64_t bytes)                      \
    {                                                                                              \
        return read_loop(from, bytes);                                                             \
    }                                                                                              \
    attribute static void triad_##suffix(void *base, uint64_t bytes)                               \
    {                                                                                              \
        triad_loop(base, bytes);                                                                   \
    }

FOR_TARGET(plain, )
#if defined(__x86_64__)
FOR_TARGET(avx2, __attribute__((target("avx2"))))
FOR_TARGET(avx512, __attribute__((target("avx512f,avx512dq,prefer-vector-width=512"))))
#endif

static uint64_t read_all(const void *from, uint64_t bytes)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512dq"))
        return read_avx512(from, bytes);
    if (__builtin_cpu_supports("avx2"))
        return read_avx2(from, bytes);
#endif
    return read_plain(from, bytes);
}

static void triad(void *base, uint64_t bytes)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512dq")) {
        triad_avx512(base, bytes);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        triad_avx2(base, bytes);
        return;
    }
#endif
    triad_plain(base, bytes);
}

/* ---- Jobs ------------------------------------------------------------------------------------ */

struct ram {
    struct bench *bench;
    struct mem_arena arena;
    struct pool *pool; /* of the placement */
    const struct placement *placement;
    bool bound[POOL_THREADS_MAX];
    struct optim_step step;
    enum precision precision; /* of gradients */
    uint32_t placement_count;
    struct placement placements[PLACEMENTS_MAX];
    /* The job. */
    enum mix mix;
    uint64_t slice_bytes, repeats;
    uint64_t sums[POOL_THREADS_MAX]; /* so that what is read is needed */
};

static uint64_t adamw_bytes(const struct ram *ram)
{
    return 12 + precision_bytes(ram->precision);
}

static void run_adamw(const struct ram *ram, uint8_t *base)
{
    uint64_t count = ram->slice_bytes / adamw_bytes(ram) / 32 * 32;
    struct optim_range range = {
        .m = (float *)base,
        .v = (float *)base + count,
        .hi = (uint16_t *)(base + 8 * count),
        .lo = (int16_t *)(base + 10 * count),
        .gradient = base + 12 * count,
        .count = count,
    };
    optim_update(&range, &ram->step, ram->precision);
}

static void run_slice(void *context, uint32_t task, uint32_t worker)
{
    struct ram *ram = context;
    if (!ram->bound[worker]) {
        topo_bind_thread(ram->placement->cores ? ram->placement->cores[worker] : worker);
        ram->bound[worker] = true;
    }
    uint8_t *base = ram->arena.base + task * ram->slice_bytes;
    uint64_t half = ram->slice_bytes / 2;
    for (uint64_t i = 0; i < ram->repeats; i++) {
        if (ram->mix == MIX_READ)
            ram->sums[worker] += read_all(base, ram->slice_bytes);
        else if (ram->mix == MIX_COPY)
            memcpy(base + (i % 2) * half, base + (1 - i % 2) * half, half);
        else if (ram->mix == MIX_TRIAD)
            triad(base, ram->slice_bytes);
        else
            run_adamw(ram, base);
    }
}

/* Reads and writes of one pass over a slice. */
static double moved_bytes(const struct ram *ram)
{
    double bytes = (double)ram->slice_bytes;
    if (ram->mix == MIX_ADAMW)
        return bytes * (24 + precision_bytes(ram->precision)) / (double)adamw_bytes(ram);
    return bytes;
}

static double run_job(struct ram *ram)
{
    uint64_t start_ns = clock_ns();
    pool_run(ram->pool, run_slice, ram, ram->placement->core_count);
    return bench_seconds_since(start_ns);
}

/* Zeros: every mix keeps them, and no float among them is slow. */
static void measure(struct ram *ram, struct bench_samples *rates, double seconds)
{
    uint64_t start_ns = clock_ns();
    double took;
    /* Doubled until one job is as long as a sample should be; the last one was warm already. */
    for (ram->repeats = 1;; ram->repeats *= 2) {
        took = run_job(ram);
        if (took >= MAX(seconds / SAMPLES_WANTED / 2, JOB_SECONDS_MIN) ||
            ram->repeats >= REPEATS_MAX)
            break;
    }
    double moved = moved_bytes(ram) * ram->placement->core_count * (double)ram->repeats;
    bench_add(rates, moved / took);
    while (rates->count < SAMPLES_WANTED && bench_seconds_since(start_ns) < seconds)
        bench_add(rates, moved / run_job(ram));
}

/* ---- Placements ------------------------------------------------------------------------------ */

static void add_placement(struct ram *ram, const uint32_t *cores, uint32_t core_count,
                          const char *name)
{
    struct placement *placement = &ram->placements[ram->placement_count++];
    snprintf(placement->name, sizeof(placement->name), "%s", name);
    placement->cores = cores;
    placement->core_count = MIN(core_count, ram->bench->threads);
}

/* One core; the cores of the first third-level cache, and of one of another size if there is one
 * (two dies, one of them with cache stacked on it); all cores. */
static void choose_placements(struct ram *ram)
{
    const struct topo *topo = topo_open();
    char name[48], bytes[LOG_BYTES_MAX];
    add_placement(ram, NULL, 1, "one core");
    const struct topo_l3 *first = &topo->l3[0];
    for (uint32_t i = 0; topo->l3_count > 1 && i < topo->l3_count; i++) {
        bool other = topo->l3[i].bytes != first->bytes || i == 0;
        if (!other || ram->placement_count + 1 >= PLACEMENTS_MAX)
            continue;
        snprintf(name, sizeof(name), "%u cores of one L3 (%s)", topo->l3[i].core_count,
                 log_bytes(bytes, topo->l3[i].bytes));
        add_placement(ram, topo->l3[i].cores, topo->l3[i].core_count, name);
    }
    if (ram->bench->threads > 1) {
        snprintf(name, sizeof(name), "all %u cores", ram->bench->threads);
        add_placement(ram, NULL, ram->bench->threads, name);
    }
}

static uint64_t size_at(uint32_t index)
{
    return SIZE_FIRST << (2 * index);
}

static int measure_placement(struct ram *ram, struct placement *placement, uint32_t sizes,
                             double seconds, struct err *err)
{
    int result = pool_open(&ram->pool, "bench", placement->core_count, false, err);
    if (result)
        return result;
    ram->placement = placement;
    memset(ram->bound, 0, sizeof(ram->bound));
    for (uint32_t s = 0; s < sizes; s++)
        for (uint32_t mix = 0; mix < MIX_COUNT; mix++) {
            ram->mix = mix;
            ram->slice_bytes = size_at(s) / placement->core_count / SLICE_ALIGN * SLICE_ALIGN;
            bench_step(ram->bench, placement->name);
            measure(ram, &placement->rates[mix][s], seconds);
        }
    pool_close(ram->pool);
    topo_unbind_thread();
    return 0;
}

/* ---- What was found -------------------------------------------------------------------------- */

static void print_placement(const struct placement *placement, uint32_t sizes)
{
    char bytes[LOG_BYTES_MAX];
    printf("\n%-12s  GB/s, %s\n", "working set", placement->name);
    printf("%12s", "");
    for (uint32_t mix = 0; mix < MIX_COUNT; mix++)
        printf(" %8s", mix_name[mix]);
    for (uint32_t s = 0; s < sizes; s++) {
        printf("\n%12s", log_bytes(bytes, size_at(s)));
        for (uint32_t mix = 0; mix < MIX_COUNT; mix++)
            printf(" %8.1f", bench_median(&placement->rates[mix][s]) / 1e9);
    }
    printf("\n");
}

/* The largest working set that a cache of those bytes holds with room to spare. */
static uint32_t size_within(uint64_t bytes, uint32_t sizes)
{
    uint32_t s = 0;
    while (s + 1 < sizes && size_at(s + 1) <= bytes / 4 * 3)
        s++;
    return s;
}

static void answer_l3(const struct ram *ram, const struct placement *all, uint32_t sizes)
{
    char small[LOG_BYTES_MAX], large[LOG_BYTES_MAX], cache[LOG_BYTES_MAX];
    uint64_t l3 = topo_l3_bytes();
    uint32_t inside = size_within(l3, sizes), last = sizes - 1;
    if (!l3 || inside == last) {
        printf("\nWhether the L3 cache helps is not known: %s\n",
               l3 ? "no larger working set was measured" : "its size is not known");
        return;
    }
    double moved = 24 + precision_bytes(ram->precision);
    double in_cache = bench_median(&all->rates[MIX_ADAMW][inside]) / moved;
    double streaming = bench_median(&all->rates[MIX_ADAMW][last]) / moved;
    printf("\nDoes the big L3 cache help? AdamW updates %.0f million parameters/s where %s of "
           "state fit the %s of L3, and %.0f million over %s: %.1f times as fast; but a step "
           "streams every byte of state once, so only a model of less than %.1f million "
           "parameters (12 bytes of state and the gradient of each) would find it there again.\n",
           in_cache / 1e6, log_bytes(small, size_at(inside)), log_bytes(cache, l3), streaming / 1e6,
           log_bytes(large, size_at(last)), in_cache / streaming,
           (double)l3 / (double)adamw_bytes(ram) / 1e6);
}

/* ---- DMI ------------------------------------------------------------------------------------- */

#define DMI_PATH      "/sys/firmware/dmi/tables/DMI"
#define DMI_BYTES_MAX 65536
/* DMTF DSP0134 (SMBIOS 3), table 76: offsets in a memory device, which is structure type 17. */
#define DMI_MEMORY_DEVICE 17
#define DMI_SIZE          0x0c
#define DMI_SPEED         0x15
#define DMI_CONFIGURED    0x20

static uint32_t read_u16(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8;
}

/* Modules that are plugged in, and the speed that they run at. */
static void read_modules(const uint8_t *table, size_t bytes, struct profile_ram *ram)
{
    for (size_t at = 0; at + 4 <= bytes;) {
        uint8_t type = table[at], length = table[at + 1];
        if (length < 4 || at + length > bytes)
            return;
        if (type == DMI_MEMORY_DEVICE && length > DMI_SPEED + 1 &&
            read_u16(table + at + DMI_SIZE) != 0) {
            uint32_t speed = read_u16(table + at + DMI_SPEED);
            if (length > DMI_CONFIGURED + 1 && read_u16(table + at + DMI_CONFIGURED))
                speed = read_u16(table + at + DMI_CONFIGURED);
            ram->dimms++;
            ram->mts = speed == 0xffff ? 0 : speed;
        }
        /* Its strings follow, up to two zeros. */
        for (at += length; at + 1 < bytes && (table[at] || table[at + 1]); at++)
            ;
        at += 2;
    }
}

/* Readable for root only, as a rule. */
static void read_dmi(struct profile_ram *ram)
{
    FILE *file = fopen(DMI_PATH, "rbe");
    ram->mts = ram->dimms = 0;
    if (!file)
        return;
    uint8_t *table = mem_alloc(DMI_BYTES_MAX, 1);
    read_modules(table, fread(table, 1, DMI_BYTES_MAX, file), ram);
    fclose(file);
    mem_free(table);
}

/* 8 bytes a transfer and channel. How many channels four modules or more are on is not told. */
static double theoretical(const struct profile_ram *ram)
{
    return ram->dimms == 1 || ram->dimms == 2 ? 8e6 * ram->mts * ram->dimms : 0;
}

static void report(struct ram *ram, uint32_t sizes)
{
    struct bench *bench = ram->bench;
    struct profile_ram *profile = &bench->profile.ram;
    const struct placement *all = &ram->placements[ram->placement_count - 1];
    for (uint32_t p = 0; p < ram->placement_count; p++)
        print_placement(&ram->placements[p], sizes);
    answer_l3(ram, all, sizes);
    enum mix best = MIX_READ;
    for (uint32_t mix = 0; mix < MIX_COUNT; mix++)
        if (bench_median(&all->rates[mix][sizes - 1]) > bench_median(&all->rates[best][sizes - 1]))
            best = mix;
    const struct bench_samples *rates = &all->rates[best][sizes - 1];
    profile->bytes_per_s = bench_median(rates);
    profile->bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    read_dmi(profile);
    bench->ram_known = true;
    struct bench_row *row = bench_report(bench, BENCH_GB_S, profile->bytes_per_s, rates,
                                         "ram, reads and writes (%s)", mix_name[best]);
    bench_limit(row, theoretical(profile), "modules x 8 bytes x MT/s, by DMI");
}

int bench_ram(struct bench *bench, struct err *err)
{
    struct ram *ram = mem_alloc(1, sizeof(*ram));
    uint32_t sizes = SIZE_COUNT;
    const struct optim_settings settings = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8};
    ram->bench = bench;
    ram->precision = kernels_cpu_has_bf16() ? PRECISION_BF16 : PRECISION_FP32;
    optim_step_init(&ram->step, &settings, 10, 1);
    choose_placements(ram);
    /* Nor more than there is time to go through twice with each mix. */
    double most = bench->seconds * SLOW_BYTES_PER_S / (2 * MIX_COUNT * ram->placement_count);
    most = fmin(most, (double)mem_available_bytes() / 4);
    while (sizes > 1 && (double)size_at(sizes - 1) > most)
        sizes--;
    uint32_t steps = ram->placement_count * sizes * MIX_COUNT;
    bench_begin(bench, "memory", "figures", steps);
    int result = mem_arena_open(&ram->arena, size_at(sizes - 1), err);
    for (uint32_t p = 0; p < ram->placement_count && result == 0; p++)
        result = measure_placement(ram, &ram->placements[p], sizes, bench->seconds / steps, err);
    bench_end(bench);
    if (result == 0)
        report(ram, sizes);
    mem_arena_close(&ram->arena);
    mem_free(ram);
    return result;
}
