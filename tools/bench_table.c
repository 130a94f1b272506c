#include "tools/bench_table.h"

#include "core/base.h"
#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "tools/bench.h"
#include "tools/plot.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIZES_MAX     8
#define DEPTHS_MAX    7
#define TABLE_ROUNDS  3u
#define ROUND_SECONDS 2.0 /* of a cell that is measured alone */
#define ROUNDS_MAX    64u
#define NEAR          0.95 /* of the best: as good as it */

static const double shares[] = {0.5, 0.99, 0.999, 1};
static const char *const share_keys[] = {"p50", "p99", "p99_9", "max"};

struct cell {
    enum bench_way way;
    uint64_t transfer_bytes;
    uint32_t depth;
    struct bench_samples rate; /* reads and writes together */
    struct bench_samples rates[2];
    double took_s; /* all turns together */
    uint64_t moved_bytes;
    struct bench_latencies latencies[2];
};

struct bench_table {
    struct bench_drive *drive;
    bool alone; /* a cell */
    uint64_t chunk_bytes;
    uint64_t sizes[SIZES_MAX];
    uint32_t depths[DEPTHS_MAX];
    uint32_t size_count, depth_count, rounds;
    double seconds;     /* of a turn */
    struct cell *cells; /* owned */
    uint32_t cell_count;
};

/* ---- Cells ----------------------------------------------------------------------------------- */

static void add_size(struct bench_table *table, uint64_t bytes)
{
    for (uint32_t i = 0; i < table->size_count; i++)
        if (table->sizes[i] == bytes)
            return;
    uint32_t at = table->size_count++;
    ASSERT(at < SIZES_MAX);
    for (; at > 0 && table->sizes[at - 1] > bytes; at--)
        table->sizes[at] = table->sizes[at - 1];
    table->sizes[at] = bytes;
}

static void choose_axes(struct bench_table *table, const struct bench_table_request *request)
{
    static const uint64_t sizes[] = {64 * KIB, 256 * KIB, 512 * KIB, MIB,
                                     2 * MIB,  4 * MIB,   8 * MIB};
    static const uint32_t depths[] = {1, 2, 3, 4, 8, 16, 32};
    if (request->block_bytes) {
        add_size(table, request->block_bytes);
        table->depths[table->depth_count++] = request->depth;
        return;
    }
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        add_size(table, sizes[i]);
    add_size(table, request->chunk_bytes);
    memcpy(table->depths, depths, sizeof(depths));
    table->depth_count = ARRAY_COUNT(depths);
}

static void add_cells(struct bench_table *table, enum bench_way way)
{
    for (uint32_t s = 0; s < table->size_count; s++)
        for (uint32_t d = 0; d < table->depth_count; d++)
            if (bench_drive_holds(table->drive, table->sizes[s], table->depths[d]))
                table->cells[table->cell_count++] = (struct cell){
                    .way = way, .transfer_bytes = table->sizes[s], .depth = table->depths[d]};
}

struct bench_table *bench_table_open(const struct bench_table_request *request)
{
    struct bench_table *table = mem_alloc(1, sizeof(*table));
    table->drive = request->drive;
    table->alone = request->block_bytes > 0;
    table->chunk_bytes = request->chunk_bytes;
    choose_axes(table, request);
    table->cells =
        mem_alloc(BENCH_WAY_COUNT * table->size_count * table->depth_count, sizeof(*table->cells));
    for (uint32_t way = 0; way < BENCH_WAY_COUNT; way++)
        if (!request->way || strcmp(request->way, bench_way_name[way]) == 0)
            add_cells(table, way);
    ASSERT(table->cell_count > 0);
    double each_s = request->seconds / table->cell_count;
    table->rounds = TABLE_ROUNDS;
    if (table->alone)
        table->rounds = (uint32_t)fmin(fmax(round(each_s / ROUND_SECONDS), 1), ROUNDS_MAX);
    table->seconds = each_s / table->rounds;
    return table;
}

void bench_table_close(struct bench_table *table)
{
    if (!table)
        return;
    mem_free(table->cells);
    mem_free(table);
}

uint32_t bench_table_steps(const struct bench_table *table)
{
    return table ? table->cell_count * table->rounds : 0;
}

/* ---- Measuring ------------------------------------------------------------------------------- */

static int measure_cell(struct bench_table *table, struct cell *cell, struct bench *bench,
                        struct err *err)
{
    struct bench_traffic traffic = {.way = cell->way,
                                    .transfer_bytes = cell->transfer_bytes,
                                    .depth = cell->depth,
                                    .seconds = table->seconds,
                                    .least_bytes = 2 * cell->transfer_bytes,
                                    .latencies = cell->latencies};
    char what[64], bytes[LOG_BYTES_MAX];
    snprintf(what, sizeof(what), "%s, %s, %u deep", bench_way_name[cell->way],
             log_bytes(bytes, cell->transfer_bytes), cell->depth);
    bench_step(bench, what);
    int result = bench_drive_run(table->drive, &traffic, err);
    if (result)
        return result;
    for (int write = 0; write < 2; write++)
        bench_add(&cell->rates[write], (double)traffic.moved_bytes[write] / traffic.took_s);
    cell->took_s += traffic.took_s;
    cell->moved_bytes += traffic.moved_bytes[0] + traffic.moved_bytes[1];
    bench_add(&cell->rate,
              (double)(traffic.moved_bytes[0] + traffic.moved_bytes[1]) / traffic.took_s);
    return 0;
}

/* Of one size and depth the ways follow each other. */
int bench_table_measure(struct bench_table *table, struct bench *bench, struct err *err)
{
    uint32_t ways = table->cells[table->cell_count - 1].way - table->cells[0].way + 1;
    uint32_t each = table->cell_count / ways;
    int result = 0;
    for (uint32_t round = 0; round < table->rounds; round++)
        for (uint32_t i = 0; i < table->cell_count && result == 0; i++)
            result = measure_cell(table, &table->cells[i % ways * each + i / ways], bench, err);
    return result;
}

/* ---- Telling --------------------------------------------------------------------------------- */

static const struct cell *find_cell(const struct bench_table *table, enum bench_way way,
                                    uint64_t transfer_bytes, uint32_t depth)
{
    for (uint32_t i = 0; i < table->cell_count; i++) {
        const struct cell *cell = &table->cells[i];
        if (cell->way == way && cell->transfer_bytes == transfer_bytes && cell->depth == depth)
            return cell;
    }
    return NULL;
}

/* The best rate of a way; the first cell, by size and then depth, that is near it. */
static double best_of(const struct bench_table *table, enum bench_way way,
                      const struct cell **first)
{
    double best = 0;
    *first = NULL;
    for (uint32_t i = 0; i < table->cell_count; i++)
        if (table->cells[i].way == way)
            best = fmax(best, bench_median(&table->cells[i].rate));
    for (uint32_t i = 0; i < table->cell_count && !*first; i++)
        if (table->cells[i].way == way && bench_median(&table->cells[i].rate) >= NEAR * best)
            *first = &table->cells[i];
    return best;
}

static void print_way(const struct bench_table *table, enum bench_way way)
{
    char bytes[LOG_BYTES_MAX];
    const struct cell *first;
    double best = best_of(table, way, &first);
    printf("\n%s\n%10s",
           way == BENCH_MIXED ? "mixed, reads and writes together" : bench_way_name[way], "deep");
    for (uint32_t d = 0; d < table->depth_count; d++)
        printf(" %7u", table->depths[d]);
    printf("\n");
    for (uint32_t s = 0; s < table->size_count; s++) {
        printf("%10s", log_bytes(bytes, table->sizes[s]));
        for (uint32_t d = 0; d < table->depth_count; d++) {
            const struct cell *cell = find_cell(table, way, table->sizes[s], table->depths[d]);
            double rate = cell ? bench_median(&cell->rate) : 0;
            if (cell)
                printf(" %6.2f%c", rate / 1e9, rate >= NEAR * best ? '*' : ' ');
            else
                printf(" %6s ", "-");
        }
        printf("\n");
    }
    printf("%.0f %% of the best from transfers of %s on, with %u in flight%s\n", 100 * NEAR,
           log_bytes(bytes, first->transfer_bytes), first->depth,
           way == BENCH_MIXED ? " in each direction" : "");
}

static void print_latencies(const struct cell *cell, bool write)
{
    char name[64], bytes[LOG_BYTES_MAX];
    const char *way = bench_way_name[cell->way];
    snprintf(name, sizeof(name), "%s%s, %s, %u deep", way,
             cell->way != BENCH_MIXED ? ""
             : write                  ? ": writes"
                                      : ": reads",
             log_bytes(bytes, cell->transfer_bytes), cell->depth);
    printf("%-32s %6.2f  +-%3.0f %%", name, bench_median(&cell->rates[write]) / 1e9,
           100 * bench_spread(&cell->rates[write]));
    for (size_t i = 0; i < ARRAY_COUNT(shares); i++)
        printf(" %9.2f", bench_latencies_within(&cell->latencies[write], shares[i]) * 1e3);
    printf("\n");
}

/* Of a table those that a step's traffic is like. */
static void print_cells(const struct bench_table *table, uint32_t depth)
{
    printf("\n%-32s %6s  %7s %9s %9s %9s %9s  (ms until a transfer ends)\n", "", "GB/s", "spread",
           "p50", "p99", "p99.9", "max");
    for (uint32_t i = 0; i < table->cell_count; i++) {
        const struct cell *cell = &table->cells[i];
        if (!table->alone && (cell->transfer_bytes != table->chunk_bytes || cell->depth != depth))
            continue;
        for (int write = 0; write < 2; write++)
            if (cell->latencies[write].count)
                print_latencies(cell, write);
    }
}

void bench_table_print(const struct bench_table *table, uint32_t depth)
{
    if (!table->alone) {
        printf("\nGB/s by transfer size and transfers in flight (of each direction; *: %.0f %% of "
               "the best or more)\n",
               100 * NEAR);
        for (uint32_t way = 0; way < BENCH_WAY_COUNT; way++)
            print_way(table, way);
    }
    print_cells(table, depth);
}

static struct json_value *json_latencies(const struct bench_latencies *latencies)
{
    struct json_value *object = json_new_object();
    for (size_t i = 0; i < ARRAY_COUNT(shares); i++)
        json_set_number(object, share_keys[i], bench_latencies_within(latencies, shares[i]));
    return object;
}

static struct json_value *json_cell(const struct cell *cell)
{
    static const char *const keys[][2] = {{"read_bytes_per_s", "read_latency_s"},
                                          {"write_bytes_per_s", "write_latency_s"}};
    struct json_value *object = json_new_object();
    json_set_string(object, "way", bench_way_name[cell->way]);
    json_set_int(object, "transfer_bytes", (int64_t)cell->transfer_bytes);
    json_set_int(object, "depth", cell->depth);
    json_set_number(object, "bytes_per_s", bench_median(&cell->rate));
    json_set_number(object, "mean_bytes_per_s", (double)cell->moved_bytes / cell->took_s);
    json_set_number(object, "spread", bench_spread(&cell->rate));
    for (int write = 0; write < 2; write++) {
        if (!cell->latencies[write].count)
            continue;
        json_set_number(object, keys[write][0], bench_median(&cell->rates[write]));
        json_set(object, keys[write][1], json_latencies(&cell->latencies[write]));
    }
    return object;
}

struct json_value *bench_table_json(const struct bench_table *table)
{
    struct json_value *array = json_new_array();
    for (uint32_t i = 0; i < table->cell_count; i++)
        json_append(array, json_cell(&table->cells[i]));
    return array;
}

/* ---- The plot -------------------------------------------------------------------------------- */

/* From light to dark, so that depths are told apart without colours too; a step's usual depth, 3,
 * stands out. */
static const char *const colours[DEPTHS_MAX] = {"#c6dbef", "#9ecae1", "#fd8d3c", "#6baed6",
                                                "#4292c6", "#2171b5", "#08306b"};

static bool ends_in(const char *path, const char *ending)
{
    size_t length = strlen(path), end = strlen(ending);
    return length > end && strcmp(path + length - end, ending) == 0;
}

int bench_table_check_plot(const char *path, struct err *err)
{
    if (ends_in(path, ".png"))
        return plot_try("set terminal pngcairo\nplot 0\n", err);
    if (ends_in(path, ".svg"))
        return plot_try("set terminal svg\nplot 0\n", err);
    return err_set(err, ERR_USAGE, "--plot is '%.200s'; its name must end in .png or .svg", path);
}

static void put_panel_data(FILE *out, const struct bench_table *table, enum bench_way way)
{
    for (uint32_t d = 0; d < table->depth_count; d++) {
        fprintf(out, "$w%ud%u << EOD\n", (unsigned)way, d);
        for (uint32_t s = 0; s < table->size_count; s++) {
            const struct cell *cell = find_cell(table, way, table->sizes[s], table->depths[d]);
            if (cell)
                fprintf(out, "%.9g %.9g\n", (double)cell->transfer_bytes / MIB,
                        bench_median(&cell->rate) / 1e9);
        }
        /* A block without a point is an error to gnuplot. */
        fputs("NaN NaN\nEOD\n", out);
    }
}

static void put_panel(FILE *out, const struct bench_table *table, enum bench_way way)
{
    fprintf(out, "set title '%s'\n",
            way == BENCH_MIXED ? "read and written, in equal amounts" : bench_way_name[way]);
    fprintf(out, "set key %s\n", way == BENCH_READ ? "bottom right title 'in flight'" : "off");
    for (uint32_t d = 0; d < table->depth_count; d++)
        fprintf(out, "%s$w%ud%u using 1:2 with linespoints pt 7 ps 0.7 lw 2 lc rgb '%s' title '%u'",
                d ? ", " : "plot ", (unsigned)way, d, colours[d], table->depths[d]);
    fputs("\n", out);
}

static void put_script(FILE *out, const struct bench_table *table, bool png)
{
    fprintf(out, "set terminal %s size 1500,520 font 'sans,12'\n", png ? "pngcairo" : "svg");
    fputs("set multiplot layout 1,3\n"
          "set border 3\nset tics nomirror\nset grid ytics lt 1 lw 0.5 lc rgb '#cccccc'\n"
          "set logscale x 2\nset xrange [0.05:10]\nset yrange [0:*]\n"
          "set xtics ('64 KiB' 0.0625, '256 KiB' 0.25, '1 MiB' 1, '2' 2, '4' 4, '8' 8)\n"
          "set xlabel 'transfer'\nset ylabel 'GB/s'\n",
          out);
    for (uint32_t way = 0; way < BENCH_WAY_COUNT; way++)
        put_panel_data(out, table, way);
    for (uint32_t way = 0; way < BENCH_WAY_COUNT; way++)
        put_panel(out, table, way);
    fputs("unset multiplot\n", out);
}

int bench_table_plot(const struct bench_table *table, const char *path, struct err *err)
{
    char *script = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&script, &bytes);
    ASSERT(out);
    put_script(out, table, ends_in(path, ".png"));
    fclose(out);
    int result = plot_write(script, path, err);
    free(script);
    return result;
}
