/*
 * spillway bench: measures this machine and writes its profile, by which plan and train predict.
 *
 * A partial bench replaces the figures of its part in the profile that is there already and leaves
 * the others. Everything is written at the end: a bench that is interrupted changes nothing.
 */
#include "tools/bench.h"

#include "core/args.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/topo.h"
#include "io/file.h"
#include "offload/engine.h"
#include "offload/layout.h"
#include "offload/profile_file.h"
#include "offload/train.h"
#include "tools/bench_card.h"
#include "tools/bench_drive.h"
#include "tools/bench_drives.h"
#include "tools/bench_table.h"
#include "tools/commands.h"
#include "tools/devices.h"
#include "tools/local.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SECONDS_DEFAULT 60.0
#define BLOCK_DEFAULT   (LAYOUT_CHUNK_PARAMETERS * LAYOUT_STATE_BYTES)
#define FILE_BYTES_MIN  (16 * MIB)
#define COLD_FACTOR     8 /* times the third-level caches */
#define COLD_BYTES_MIN  (128 * MIB)
#define COLD_BYTES_MAX  (2 * GIB)
#define DEVICES_MAX     64
#define CARD_SECONDS    15.0 /* of `all`, on kernels of a card */
#define BUSY_SHARE      0.4  /* of the cores */

/* ---- Samples --------------------------------------------------------------------------------- */

void bench_add(struct bench_samples *samples, double value)
{
    ASSERT(isfinite(value));
    if (samples->count < BENCH_SAMPLES_MAX)
        samples->value[samples->count++] = value;
}

static int compare_doubles(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* The value below which that share of the samples lies, between neighbours in proportion. */
static double quantile(const struct bench_samples *samples, double share)
{
    double sorted[BENCH_SAMPLES_MAX];
    ASSERT(samples->count > 0);
    memcpy(sorted, samples->value, samples->count * sizeof(*sorted));
    qsort(sorted, samples->count, sizeof(*sorted), compare_doubles);
    double at = share * (samples->count - 1);
    uint32_t low = (uint32_t)at, high = MIN(low + 1, samples->count - 1);
    return sorted[low] + (sorted[high] - sorted[low]) * (at - low);
}

double bench_median(const struct bench_samples *samples)
{
    return quantile(samples, 0.5);
}

double bench_spread(const struct bench_samples *samples)
{
    double median = bench_median(samples);
    if (median == 0)
        return 0;
    return (quantile(samples, 0.75) - quantile(samples, 0.25)) / 2 / median;
}

uint64_t bench_cold_bytes(void)
{
    uint64_t wanted = MAX(COLD_FACTOR * topo_l3_bytes(), COLD_BYTES_MIN);
    return MIN(MIN(wanted, COLD_BYTES_MAX), mem_available_bytes() / 8) / MIB * MIB;
}

/* ---- Progress and the table ------------------------------------------------------------------ */

void bench_begin(struct bench *bench, const char *label, const char *unit, double units)
{
    bench->done_units = 0;
    log_progress_start(&bench->progress, label, unit, units);
}

void bench_at(struct bench *bench, double done_units, const char *what)
{
    bench->done_units = done_units;
    log_progress_update(&bench->progress, done_units, what);
}

void bench_step(struct bench *bench, const char *what)
{
    bench_at(bench, bench->done_units + 1, what);
}

void bench_end(struct bench *bench)
{
    log_progress_end(&bench->progress);
}

struct bench_row *bench_report(struct bench *bench, enum bench_unit unit, double value,
                               const struct bench_samples *samples, const char *figure, ...)
{
    ASSERT(bench->row_count < BENCH_ROWS_MAX && isfinite(value));
    struct bench_row *row = &bench->rows[bench->row_count++];
    *row = (struct bench_row){.unit = unit, .value = value, .spread = -1};
    if (samples != NULL && samples->count > 1)
        row->spread = bench_spread(samples);
    va_list arguments;
    va_start(arguments, figure);
    vsnprintf(row->figure, sizeof(row->figure), figure, arguments);
    va_end(arguments);
    return row;
}

void bench_limit(struct bench_row *row, double limit, const char *of)
{
    row->limit = limit;
    row->of = limit > 0 ? of : NULL;
}

static const struct {
    const char *name;
    double scale;
    const char *base; /* of the value itself */
} units[] = {
    [BENCH_GB_S] = {"GB/s", 1e9, "bytes/s"},
    [BENCH_GFLOP_S] = {"GFLOP/s", 1e9, "FLOP/s"},
    [BENCH_M_PARAMETERS_S] = {"M param/s", 1e6, "parameters/s"},
    [BENCH_US] = {"us", 1e-6, "s"},
};

static void print_row(const struct bench_row *row)
{
    double scale = units[row->unit].scale;
    int digits = row->value / scale < 100 ? 2 : 0;
    printf("%-38s %9.*f %-9s", row->figure, digits, row->value / scale, units[row->unit].name);
    if (row->limit > 0)
        printf(" %9.*f %5.0f %%", digits, row->limit / scale, 100 * row->value / row->limit);
    else
        printf(" %9s %7s", row->unit == BENCH_US ? "-" : "not known", "");
    if (row->spread >= 0)
        printf("  +-%3.0f %%", 100 * row->spread);
    else
        printf("  %7s", "-");
    printf("%s%s\n", row->of ? "  " : "", row->of ? row->of : "");
}

static double to_win(const struct bench_gain *gain)
{
    return gain->least_s > 0 ? fmax(gain->seconds - gain->least_s, 0) : 0;
}

static int compare_gains(const void *left, const void *right)
{
    double a = to_win(left), b = to_win(right);
    return (a < b) - (a > b);
}

void bench_gains(const char *of, struct bench_gain *gains, size_t count)
{
    double all_s = 0;
    for (size_t i = 0; i < count; i++)
        all_s += gains[i].seconds;
    qsort(gains, count, sizeof(*gains), compare_gains);
    printf("\nThe most time to win in %s (%.0f ms)\n", of, all_s * 1e3);
    for (size_t i = 0; i < MIN(count, 3) && to_win(&gains[i]) > 0; i++)
        printf("  %-32s %6.1f of its %.1f ms: %4.1f %% of all\n", gains[i].name,
               to_win(&gains[i]) * 1e3, gains[i].seconds * 1e3, 100 * to_win(&gains[i]) / all_s);
}

static void print_table(const struct bench *bench)
{
    if (!bench->row_count)
        return;
    printf("\n%-38s %9s %-9s %9s %7s  %7s  %s\n", "figure", "value", "", "limit", "share", "spread",
           "the limit is");
    for (uint32_t i = 0; i < bench->row_count; i++)
        print_row(&bench->rows[i]);
    printf("(spread: the middle half of the samples lies within this of the median)\n");
}

/* What print_table tells, beside what the part has put there. */
static void print_json(const struct bench *bench)
{
    struct json_value *figures = json_new_array();
    for (uint32_t i = 0; i < bench->row_count; i++) {
        const struct bench_row *row = &bench->rows[i];
        struct json_value *object = json_new_object();
        json_set_string(object, "figure", row->figure);
        json_set_number(object, "value", row->value);
        json_set_string(object, "unit", units[row->unit].base);
        if (row->limit > 0)
            json_set_number(object, "limit", row->limit);
        if (row->spread >= 0)
            json_set_number(object, "spread", row->spread);
        json_append(figures, object);
    }
    json_set(bench->json, "figures", figures);
    char *text = json_text(bench->json, true);
    printf("%s\n", text);
    mem_free(text);
}

/* ---- PCI ------------------------------------------------------------------------------------- */

static void print_device(const struct topo_device *device)
{
    char link[32] = "link speed not known", node[32] = "all nodes alike";
    if (device->link_bytes_per_s > 0)
        snprintf(link, sizeof(link), "link %.1f GB/s", device->link_bytes_per_s / 1e9);
    if (device->node >= 0)
        snprintf(node, sizeof(node), "NUMA node %d", device->node);
    printf("  %-12s %s  %s, %s, %s\n", device->bus, device->kind, device->name, link, node);
}

/* The links are a GPU's, and its copies are CUDA's to make. What can be seen without it is what
 * hangs where. In `all` the kernels of a card that is there are measured here, too: `compute` is
 * the CPU's. */
static int bench_pcie(struct bench *bench, struct err *err)
{
    if (bench->on_card) {
        int result = bench_card_link(bench, err);
        bench->seconds = MAX(bench->seconds, CARD_SECONDS);
        return result || bench->alone ? result : bench_card_compute(bench, NULL, 0, err);
    }
    struct topo_device devices[DEVICES_MAX];
    uint32_t count = topo_devices(devices, DEVICES_MAX);
    printf(
        "\nThere is no CUDA device here, so no copies to or from one are measured; GPUs and NVMe "
        "drives on PCI: %u\n",
        count);
    for (uint32_t i = 0; i < MIN(count, (uint32_t)DEVICES_MAX); i++)
        print_device(&devices[i]);
    if (!bench->alone)
        return 0;
    return err_set(err, ERR_INPUT,
                   "there is nothing to measure of PCIe without a CUDA device, and the profile is "
                   "as it was: take a card's figures from a part (--machine)");
}

static int bench_kernels(struct bench *bench, struct err *err)
{
    bool card = bench->on_card && bench->alone;
    return card ? bench_card_compute(bench, NULL, 0, err) : bench_compute(bench, err);
}

/* ---- The parts ------------------------------------------------------------------------------- */

static const struct part {
    const char *word;
    int (*run)(struct bench *bench, struct err *err); /* NULL: of drives (bench_drives) */
    double share;                                     /* of the seconds of `all` */
    bool in_all, writes;
} parts[] = {
    {"ram", bench_ram, 0.14, true, true},         {"optimizer", bench_optimizer, 0.07, true, true},
    {"compute", bench_kernels, 0.50, true, true}, {"ssd", NULL, 0.28, true, true},
    {"pcie", bench_pcie, 0.01, true, false},
};

static const struct part *find_part(const char *word)
{
    for (size_t i = 0; i < ARRAY_COUNT(parts); i++)
        if (strcmp(parts[i].word, word) == 0)
            return &parts[i];
    return NULL;
}

struct command {
    const char *word, *out, *nvme, *device;
    struct nvme_list drives; /* of nvme */
    uint64_t threads;
    double seconds;
    bool seconds_given, json;
    char out_path[FILE_PATH_MAX];
    struct bench bench;
};

static int run_part(struct command *command, const struct part *part, struct err *err)
{
    struct bench *bench = &command->bench;
    bool all = !bench->alone;
    bench->seconds = command->seconds * (all || !command->seconds_given ? part->share : 1);
    if (!part->run && !command->drives.count) {
        log_line("the drive is not measured: give --nvme DIR, a folder on it");
        return 0;
    }
    int result = part->run ? part->run(bench, err) : bench_drives(bench, &command->drives, err);
    /* Threads that are started later would inherit what a bound pool has left of this one. */
    topo_unbind_thread();
    return result;
}

static int run_parts(struct command *command, struct err *err)
{
    if (command->bench.alone)
        return run_part(command, find_part(command->word), err);
    int result = 0;
    for (size_t i = 0; i < ARRAY_COUNT(parts) && result == 0; i++)
        if (parts[i].in_all)
            result = run_part(command, &parts[i], err);
    return result;
}

/* ---- The profile's file ---------------------------------------------------------------------- */

/* The folder that path is in, as far as it exists. */
static void existing_folder(char folder[FILE_PATH_MAX], const char *path)
{
    strcpy(folder, path);
    for (;;) {
        char *slash = strrchr(folder, '/');
        if (!slash) {
            strcpy(folder, ".");
            return;
        }
        slash[slash == folder] = '\0'; /* the root keeps its slash */
        if (access(folder, F_OK) == 0)
            return;
    }
}

/* Before a minute of measuring, and without making anything yet. */
static int check_writable(const char *path, const char *what, struct err *err)
{
    char folder[FILE_PATH_MAX];
    existing_folder(folder, path);
    errno = 0;
    /* A file in the place of a folder is found by the slash. */
    size_t length = strlen(folder);
    if (length + 2 < sizeof(folder) && folder[length - 1] != '/')
        strcpy(folder + length, "/");
    if (access(folder, W_OK | X_OK) != 0)
        return err_set_errno(err, errno, "cannot write the %s %s: in %s", what, path, folder);
    folder[length] = '\0';
    if (access(path, F_OK) == 0 && strcmp(path, folder) == 0)
        return err_set(err, ERR_INPUT, "%s is a folder: the %s needs a file's name", path, what);
    return 0;
}

static int open_profile(struct command *command, struct err *err)
{
    struct bench *bench = &command->bench;
    const struct topo *topo = topo_open();
    profile_init(&bench->profile, bench->threads);
    if (!command->out && bench->alone)
        return 0;
    if (command->out) {
        if (strlen(command->out) >= FILE_PATH_MAX)
            return err_set(err, ERR_INPUT, "the path of --out is too long");
        strcpy(command->out_path, command->out);
    } else {
        int result = local_profile_path(command->out_path, err);
        if (result)
            return result;
    }
    int result = check_writable(command->out_path, "profile", err);
    if (result || !bench->alone || !file_exists(command->out_path)) {
        snprintf(bench->profile.name, PROFILE_NAME_MAX, "%.*s", PROFILE_NAME_MAX - 1,
                 topo->cpu_model);
        return result;
    }
    result = profile_load(&bench->profile, command->out_path, err);
    bench->ram_known = result == 0 && bench->profile.measured;
    return result;
}

/* Endurance is measured by nothing: what a person has written into the profile (as
 * docs/machine-profiles.md says) stays, as long as the drive has the same name and size. */
static void keep_endurance(struct profile_ssd *ssd, const char *path)
{
    struct profile before;
    struct err ignored;
    if (!ssd->count || ssd->endurance_bytes || !file_exists(path) ||
        profile_load(&before, path, &ignored) != 0)
        return;
    if (strcmp(before.ssd.name, ssd->name) == 0 && before.ssd.capacity_bytes == ssd->capacity_bytes)
        ssd->endurance_bytes = before.ssd.endurance_bytes;
}

/* Interrupted in here it could leave a temporary file; it takes some milliseconds. */
static int save_profile(struct command *command, struct err *err)
{
    struct bench *bench = &command->bench;
    char folder[FILE_PATH_MAX];
    sigset_t all, before;
    strcpy(folder, command->out_path);
    char *slash = strrchr(folder, '/');
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    int result = 0;
    if (slash && slash != folder) {
        *slash = '\0';
        result = file_make_dirs(folder, err);
    }
    keep_endurance(&bench->profile.ssd, command->out_path);
    if (result == 0)
        result = profile_save(&bench->profile, command->out_path, err);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (result == 0 && !bench->json)
        printf("\nwritten: %s\n", command->out_path);
    return result;
}

/* What follows from other figures. The links of a device that is the CPU are its memory. */
static void complete_profile(struct profile *profile, bool all)
{
    struct profile_device *device = &profile->device;
    if (device->is_cpu) {
        device->h2d_bytes_per_s = device->d2h_bytes_per_s = profile->cpu.copy_bytes_per_s;
        device->h2d_both_bytes_per_s = device->d2h_both_bytes_per_s = profile->cpu.copy_bytes_per_s;
    }
    profile->measured |= all;
}

/* Who shares the cores with others measures the others too. */
static void warn_busy(const struct bench *bench)
{
    double load;
    if (getloadavg(&load, 1) == 1 && load > BUSY_SHARE * bench->threads)
        log_warn("the machine is busy (a load of %.1f on %u cores): rates will be too low; measure "
                 "again when nothing else runs",
                 load, topo_open()->core_count);
}

static int measure(struct command *command, struct err *err)
{
    struct bench *bench = &command->bench;
    char took[LOG_BYTES_MAX];
    uint64_t start_ns = clock_ns();
    int result = open_profile(command, err);
    if (result == 0) {
        warn_busy(bench);
        result = run_parts(command, err);
    }
    if (result)
        return result;
    complete_profile(&bench->profile, !bench->alone);
    if (bench->json) {
        print_json(bench);
    } else {
        print_table(bench);
        printf("measured in %s\n", log_duration(took, bench_seconds_since(start_ns)));
    }
    if (bench->alone && !command->out) {
        if (!bench->json && !bench->ssd.cell)
            printf("\nNothing is written without --out PROFILE.json\n");
        return 0;
    }
    return save_profile(command, err);
}

/* ---- The command line ------------------------------------------------------------------------ */

static int check_drive(const struct bench *bench, const char *dir, struct err *err)
{
    uint64_t need = bench->file_bytes + bench->sustained_bytes / 2, free_bytes;
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    if (!file_exists(dir))
        return err_set(err, ERR_INPUT, "--nvme: there is no folder %s: make it first", dir);
    int result = file_check_tier(dir, err);
    if (result == 0)
        result = file_free_bytes(dir, &free_bytes, err);
    if (result == 0 && need > free_bytes)
        result = err_set(err, ERR_INPUT,
                         "the drive of %s has %s free and the test file needs %s: give a smaller "
                         "--size or --sustained",
                         dir, log_bytes(a, free_bytes), log_bytes(b, need));
    return result;
}

static bool is_way(const char *word)
{
    return strcmp(word, "read") == 0 || strcmp(word, "write") == 0 || strcmp(word, "mixed") == 0;
}

static int check_cell(const struct command *command, struct err *err)
{
    const struct bench *bench = &command->bench;
    const struct bench_ssd_request *ssd = &bench->ssd;
    if (command->out || ssd->table || bench->sustained_bytes)
        return err_set(err, ERR_USAGE,
                       "--block, --depth and --way measure nothing of a profile: leave out --out, "
                       "--table and --sustained");
    if (ssd->way && !is_way(ssd->way))
        return err_set(err, ERR_USAGE, "--way is '%.40s'; it may be: read, write, mixed", ssd->way);
    if (ssd->depth < 1 || ssd->depth > BENCH_DRIVE_DEPTH_MAX)
        return err_set(err, ERR_USAGE, "--depth may be 1 to %d", BENCH_DRIVE_DEPTH_MAX);
    if (!ssd->block_bytes || ssd->block_bytes % IO_ALIGN)
        return err_set(err, ERR_USAGE, "--block must be a multiple of %uK",
                       (unsigned)(IO_ALIGN / KIB));
    if (ssd->block_bytes > bench->file_bytes / 2 / ssd->depth)
        return err_set(err, ERR_USAGE,
                       "transfers of that --block and --depth need a larger file: give --size");
    return 0;
}

/* For more than the profile's figures. */
static bool ssd_is_asked(const struct command *command)
{
    const struct bench_ssd_request *ssd = &command->bench.ssd;
    return ssd->table || ssd->plot || ssd->cell || command->json;
}

static int check_ssd_options(struct command *command, struct err *err)
{
    const struct bench *bench = &command->bench;
    const struct bench_ssd_request *ssd = &bench->ssd;
    if (ssd_is_asked(command) && strcmp(command->word, "ssd") != 0)
        return err_set(err, ERR_USAGE,
                       "--table, --plot, --block, --depth, --way and --json are for 'bench ssd'");
    if (ssd->plot && !ssd->table)
        return err_set(err, ERR_USAGE, "--plot draws a table: give --table too");
    int result = ssd->plot ? bench_table_check_plot(ssd->plot, err) : 0;
    if (result == 0 && ssd->plot)
        result = check_writable(ssd->plot, "plot", err);
    return result == 0 && ssd->cell ? check_cell(command, err) : result;
}

/* `pcie` and `all` take the first card where there is one; `compute` is the CPU's unless a card is
 * asked for. */
static int choose_device(struct command *command, struct err *err)
{
    struct train_settings settings = {0};
    const char *word = command->device, *name;
    bool links = strcmp(command->word, "pcie") == 0 || strcmp(command->word, "all") == 0;
    if (word && !links && strcmp(command->word, "compute") != 0)
        return err_set(err, ERR_USAGE, "--device is for 'bench pcie', 'bench compute' and 'all'");
    int result = devices_choose(word ? word : links ? "auto" : "cpu", &settings, &name, err);
    command->bench.on_card = settings.cuda;
    command->bench.card = settings.cuda_device;
    return result;
}

static int check_options(struct command *command, struct err *err)
{
    struct bench *bench = &command->bench;
    bool all = strcmp(command->word, "all") == 0;
    if (!all && !find_part(command->word))
        return err_set(err, ERR_USAGE,
                       "\"%.40s\" is nothing that bench measures: ssd, ram, pcie, compute, "
                       "optimizer, all or offload",
                       command->word);
    bench->alone = !all;
    bool drive = all || !find_part(command->word)->run;
    if (!all && drive && !command->nvme)
        return err_set(err, ERR_USAGE, "--nvme is missing: --nvme DIR, a folder on the drive");
    if (command->threads > topo_open()->thread_count)
        return err_set(err, ERR_USAGE, "--threads is at most %u here", topo_open()->thread_count);
    bench->threads = command->threads ? (uint32_t)command->threads : topo_open()->core_count;
    if (!(command->seconds > 0))
        return err_set(err, ERR_USAGE, "--seconds must be above 0");
    if (bench->file_bytes < FILE_BYTES_MIN)
        return err_set(err, ERR_USAGE, "--size is at least 16M");
    if (bench->sustained_bytes && bench->sustained_bytes < bench->file_bytes)
        return err_set(err, ERR_USAGE, "--sustained must be more than --size");
    bench->file_bytes = bench->file_bytes / MIB * MIB;
    bench->sustained_bytes = bench->sustained_bytes / MIB * MIB;
    int result = check_ssd_options(command, err);
    if (result == 0)
        result = choose_device(command, err);
    if (result == 0 && drive)
        result = nvme_parse(&command->drives, command->nvme, err);
    if (result == 0 && command->drives.count > 1 && ssd_is_asked(command))
        result =
            err_set(err, ERR_USAGE,
                    "--table, --plot, --block, --depth, --way and --json are of one drive: give "
                    "--nvme one folder");
    for (uint32_t d = 0; d < command->drives.count && result == 0; d++)
        result = check_drive(bench, command->drives.dir[d], err);
    return result;
}

static int parse(struct command *command, int argc, char **argv, struct err *err)
{
    struct bench *bench = &command->bench;
    bool block = false, depth = false;
    const struct args_option options[] = {
        {"nvme", ARGS_STRING, &command->nvme, "DIR[,DIR]",
         "a folder on the drive to measure, or one on each of several", NULL},
        {"out", ARGS_STRING, &command->out, "PROFILE.json",
         "where to write; a part replaces its own figures there (default of all: "
         "~/.config/spillway/machine.json)",
         NULL},
        {"device", ARGS_STRING, &command->device, "cpu|cuda[:N]",
         "pcie, compute: of which device (default: for compute the CPU, else a card where there is "
         "one)",
         NULL},
        {"threads", ARGS_U64, &command->threads, "N", "cores to use (default: all)", NULL},
        {"seconds", ARGS_DOUBLE, &command->seconds, "X",
         "about how long to measure (default: 60 for all, 17 for ssd)", &command->seconds_given},
        {"size", ARGS_SIZE, &bench->file_bytes, "SIZE",
         "of the test file on the drive (default: 1G)", NULL},
        {"sustained", ARGS_SIZE, &bench->sustained_bytes, "SIZE",
         "write that much at a stretch, half the size twice, to see what the drive does past its "
         "fast cache (default: not measured)",
         NULL},
        {"table", ARGS_FLAG, &bench->ssd.table, NULL,
         "ssd: reading, writing and both at every size and depth too, with latencies (three times "
         "as long again)",
         NULL},
        {"plot", ARGS_STRING, &bench->ssd.plot, "FILE.png|.svg",
         "ssd: draw the table into this file (by gnuplot)", NULL},
        {"block", ARGS_SIZE, &bench->ssd.block_bytes, "SIZE",
         "ssd: measure transfers of this size alone, and nothing for the profile (default: 3M)",
         &block},
        {"depth", ARGS_U64, &bench->ssd.depth, "N",
         "ssd: measure so many in flight in each direction alone (default: 3)", &depth},
        {"way", ARGS_STRING, &bench->ssd.way, "read|write|mixed",
         "ssd: measure this alone (default: each in turn)", NULL},
        {"json", ARGS_FLAG, &command->json, NULL,
         "ssd: print what was measured as JSON and not as tables", NULL},
    };
    struct args_command args = {
        .name = "bench",
        .summary = "Measures this machine, and writes the profile by which steps are predicted.",
        .usage = "ssd|ram|pcie|compute|optimizer|all [options]\n"
                 "       spillway bench offload --help",
        .example = "spillway bench all --nvme /mnt/nvme\n"
                   "  spillway bench ssd --nvme /mnt/nvme --table --plot drive.png\n"
                   "  spillway bench compute --device cuda --out machine.json",
        .options = options,
        .option_count = ARRAY_COUNT(options),
        .positional = &command->word,
        .positional_max = 1,
    };
    int result = args_parse(&args, argc, argv, err);
    bench->ssd.cell = block || depth || bench->ssd.way;
    if (result == 0 && args.positional_count == 0)
        result = err_set(err, ERR_USAGE,
                         "say what to measure: ssd, ram, pcie, compute, optimizer, all or "
                         "offload");
    return result ? result : check_options(command, err);
}

int bench_main(int argc, char **argv)
{
    /* It measures steps of a model, not figures of the profile. */
    if (argc > 1 && strcmp(argv[1], "offload") == 0)
        return bench_offload_main(argc - 1, argv + 1);
    struct command *command = mem_alloc(1, sizeof(*command));
    struct err err = {0};
    command->seconds = SECONDS_DEFAULT;
    command->bench.file_bytes = GIB;
    command->bench.ssd.block_bytes = BLOCK_DEFAULT;
    command->bench.ssd.depth = ENGINE_DRIVE_DEPTH;
    int result = parse(command, argc, argv, &err);
    if (result == 0 && command->json)
        command->bench.json = json_new_object();
    if (result == 0)
        result = measure(command, &err);
    json_free(command->bench.json);
    mem_free(command);
    return commands_status(result, &err);
}
