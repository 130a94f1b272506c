/*
 * Property: bench refuses what it cannot measure or write before it measures, with the place named;
 * what it writes is a profile that can be read; a part replaces its own section and leaves the
 * others bit for bit; nothing is left on the drive; samples have the median that sorting gives.
 * Method: very short runs, whose figures mean nothing and are not looked at.
 */
#include "core/json.h"
#include "core/mem.h"
#include "offload/profile_file.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/bench.h"
#include "tools/bench_drive.h"
#include "tools/commands.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define TMPFS_MAGIC 0x01021994
#define SHORT       " --seconds 0.2 --size 16M --threads 1"

static void load(struct profile *profile, const char *name)
{
    struct err err;
    if (profile_load(profile, scratch_path(name), &err) != 0)
        fail_msg("%s", err.message);
}

static uint32_t count_entries(const char *path)
{
    uint32_t count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

/* No run of this test may reach the real home folder. */
static int setup(void **state)
{
    (void)state;
    unsetenv("XDG_CONFIG_HOME");
    setenv("HOME", "/nonexistent", 1);
    scratch_write("file", "not a folder");
    return mkdir(scratch_path("drive"), 0755);
}

/* ---- Samples --------------------------------------------------------------------------------- */

static void test_samples(void **state)
{
    (void)state;
    static struct bench_samples samples;
    bench_add(&samples, 7);
    assert_true(bench_median(&samples) == 7 && bench_spread(&samples) == 0);
    bench_add(&samples, 3);
    assert_true(bench_median(&samples) == 5);
    for (int i = 0; i < 3; i++)
        bench_add(&samples, 100 * i);
    /* 0 3 7 100 200: quarters at 3 and 100. */
    assert_true(bench_median(&samples) == 7);
    assert_true(fabs(bench_spread(&samples) - 97.0 / 2 / 7) < 1e-12);
    for (uint32_t i = 0; i < 2 * BENCH_SAMPLES_MAX; i++)
        bench_add(&samples, 1);
    assert_int_equal(samples.count, BENCH_SAMPLES_MAX);
    assert_true(bench_median(&samples) == 1);
}

/* ---- Refusals -------------------------------------------------------------------------------- */

static void test_bad_words(void **state)
{
    (void)state;
    command_must(bench_main, "bench --help");
    assert_non_null(strstr(command_out(), "spillway bench all"));
    command_refused(bench_main, "bench", 2, "say what to measure");
    command_refused(bench_main, "bench gpu", 2, "\"gpu\"");
    command_refused(bench_main, "bench ram ssd", 2, "ssd");
    command_refused(bench_main, "bench ssd", 2, "--nvme");
    command_refused(bench_main, "bench ssd --nvme @/drive,@/none", 1, "@/none");
    command_refused(bench_main, "bench ssd --nvme @/drive --size 1M", 2, "16M");
    command_refused(bench_main, "bench ssd --nvme @/drive --size 16M --sustained 1M", 2,
                    "--sustained");
    command_refused(bench_main, "bench ssd --nvme @/drive --size 900000T", 1, "smaller --size");
    command_refused(bench_main, "bench ram --threads 100000", 2, "--threads");
    command_refused(bench_main, "bench ram --seconds 0", 2, "--seconds");
    command_refused(bench_main, "bench ssd --nvme @/none", 1, "@/none");
}

static void test_unwritable_out(void **state)
{
    (void)state;
    mkdir(scratch_path("folder"), 0755);
    command_refused(bench_main, "bench ram --out @/file/p.json", 1, "@/file");
    command_refused(bench_main, "bench ram --out @/folder", 1, "@/folder");
    command_refused(bench_main, "bench ram --out /proc/none/p.json", 1, "/proc");
    scratch_write("bad.json", "{\"spillway_profile\": 1, \"name\": \"x\"}");
    command_refused(bench_main, "bench ram --out @/bad.json", 1, "@/bad.json");
}

static void test_tmpfs(void **state)
{
    (void)state;
    struct statfs fs;
    if (statfs("/dev/shm", &fs) != 0 || fs.f_type != TMPFS_MAGIC)
        skip();
    command_refused(bench_main, "bench ssd --nvme /dev/shm" SHORT, 1, "/dev/shm");
    command_refused(bench_main, "bench all --nvme /dev/shm" SHORT, 1, "/dev/shm");
}

static void test_pcie(void **state)
{
    (void)state;
    command_refused(bench_main, "bench pcie --device cpu --out @/pcie.json", 1, "CUDA");
    assert_non_null(strstr(command_out(), "no CUDA"));
    assert_int_not_equal(access(scratch_path("pcie.json"), F_OK), 0);
}

/* ---- What is written ------------------------------------------------------------------------- */

static void test_all(void **state)
{
    (void)state;
    struct profile profile;
    command_must(bench_main, "bench all --nvme @/drive --out @/new/deep/all.json" SHORT);
    load(&profile, "new/deep/all.json");
    assert_true(profile.measured && profile.device.is_cpu && profile.device.point_count >= 1);
    assert_int_equal(profile.cpu.cores, 1);
    assert_int_equal(profile.ssd.count, 1);
    assert_true(profile.ssd.capacity_bytes > 0 && profile.ram.bytes > 0);
    assert_non_null(strstr(command_out(), "ssd, read in a step"));
    assert_non_null(strstr(command_out(), "no CUDA"));
    assert_int_equal(count_entries(scratch_path("drive")), 0);
    assert_int_equal(count_entries(scratch_path("new/deep")), 1);
}

static void set_folder(const char *variable, const char *name)
{
    char *path = realpath(scratch_dir(), NULL), full[4096];
    assert_non_null(path);
    snprintf(full, sizeof(full), "%s/%s", path, name);
    free(path);
    assert_int_equal(setenv(variable, full, 1), 0);
}

/* Without --nvme the drive's figures are left, and that is said. */
static void test_all_in_config_folder(void **state)
{
    (void)state;
    struct profile profile, defaults;
    set_folder("XDG_CONFIG_HOME", "config");
    command_must(bench_main, "bench all" SHORT);
    load(&profile, "config/spillway/machine.json");
    profile_init(&defaults, 1);
    assert_memory_equal(&profile.ssd, &defaults.ssd, sizeof(profile.ssd));
    assert_non_null(strstr(command_err(), "give --nvme DIR"));
    assert_non_null(strstr(command_out(), "config/spillway/machine.json"));
    unsetenv("XDG_CONFIG_HOME");
    set_folder("HOME", "file");
    command_refused(bench_main, "bench all" SHORT, 1, "/file/.config/spillway/machine.json");
}

static void test_part_leaves_the_others(void **state)
{
    (void)state;
    struct err err;
    struct profile before, after;
    profile_init(&before, 3);
    before.measured = true;
    before.ram.mts = 4321;
    before.cpu.optimizer_parameters_per_s = 123456789;
    before.ssd.read_bytes_per_s = 1e4;
    before.ssd.mixed_read_bytes_per_s = 1e4;
    before.ssd.fast_cache_bytes = 77;
    assert_int_equal(profile_save(&before, scratch_path("part.json"), &err), 0);
    command_must(bench_main, "bench ssd --nvme @/drive --out @/part.json" SHORT);
    load(&after, "part.json");
    assert_true(after.ssd.read_bytes_per_s > 1e5 && after.ssd.fast_cache_bytes == 0);
    assert_memory_equal(&after.ram, &before.ram, sizeof(before.ram));
    assert_memory_equal(&after.cpu, &before.cpu, sizeof(before.cpu));
    assert_memory_equal(after.device.points, before.device.points, sizeof(before.device.points));
    assert_true(after.measured);
    assert_string_equal(after.name, before.name);
    before = after;
    command_must(bench_main, "bench ram --out @/part.json" SHORT);
    load(&after, "part.json");
    assert_true(after.ram.bytes > 0);
    assert_memory_equal(&after.ssd, &before.ssd, sizeof(before.ssd));
    assert_memory_equal(&after.cpu, &before.cpu, sizeof(before.cpu));
}

/* What a person has written by hand: bench does not know better, as long as it is the same drive.
 */
static void test_endurance_stays(void **state)
{
    (void)state;
    struct profile profile;
    struct err err;
    command_must(bench_main, "bench ssd --nvme @/drive --out @/worn.json" SHORT);
    load(&profile, "worn.json");
    assert_int_equal(profile.ssd.endurance_bytes, 0);
    profile.ssd.endurance_bytes = profile.ssd.capacity_bytes * 600;
    uint64_t endurance_bytes = profile.ssd.endurance_bytes;
    assert_int_equal(profile_save(&profile, scratch_path("worn.json"), &err), 0);
    command_must(bench_main, "bench ssd --nvme @/drive --out @/worn.json" SHORT);
    load(&profile, "worn.json");
    assert_int_equal(profile.ssd.endurance_bytes, endurance_bytes);
    strcpy(profile.ssd.name, "another");
    assert_int_equal(profile_save(&profile, scratch_path("worn.json"), &err), 0);
    command_must(bench_main, "bench ssd --nvme @/drive --out @/worn.json" SHORT);
    load(&profile, "worn.json");
    assert_int_equal(profile.ssd.endurance_bytes, 0);
}

/* Two folders of one drive are one drive; a drive that was measured before stays known. */
static void test_several_drives(void **state)
{
    (void)state;
    struct profile before, after;
    struct err err;
    profile_init(&before, 3);
    before.measured = true;
    before.drive_count = 1;
    before.drives[0] = (struct profile_drive){"/mnt/other", 4e9, 3e9, 2e9, 1e9, 1e9};
    assert_int_equal(profile_save(&before, scratch_path("several.json"), &err), 0);
    assert_int_equal(mkdir(scratch_path("second"), 0755), 0);
    command_must(bench_main, "bench ssd --nvme @/drive,@/second --out @/several.json" SHORT);
    load(&after, "several.json");
    assert_int_equal(after.ssd.count, 1);
    assert_int_equal(after.drive_count, 2);
    assert_memory_equal(&after.drives[0], &before.drives[0], sizeof(before.drives[0]));
    assert_true(after.drives[1].mixed_read_bytes_per_s == after.ssd.mixed_read_bytes_per_s);
    assert_int_equal(count_entries(scratch_path("second")), 0);
    command_refused(bench_main, "bench ssd --nvme @/drive,@/second --table" SHORT, 2, "one drive");
}

/* ---- The drive ------------------------------------------------------------------------------- */

static struct bench_samples same_samples(uint32_t count, double value)
{
    struct bench_samples samples = {0};
    for (uint32_t i = 0; i < count; i++)
        bench_add(&samples, value);
    return samples;
}

/* Another depth than the usual one has to be better in every round; of those that are, the
 * smallest that is as good as the best. */
static void test_choose_depth(void **state)
{
    (void)state;
    static struct bench_samples ratios[4];
    struct bench_depth depths[4] = {
        {1, &ratios[0]}, {3, &ratios[1]}, {4, &ratios[2]}, {8, &ratios[3]}};
    ratios[0] = same_samples(7, 0.8);
    ratios[1] = same_samples(7, 1);
    ratios[2] = same_samples(7, 1.01);
    ratios[3] = same_samples(7, 1.5);
    ratios[3].value[4] = 1.01;
    assert_int_equal(bench_choose_depth(depths, 4, 3), 3);
    ratios[3].value[4] = 1.03;
    assert_int_equal(bench_choose_depth(depths, 4, 3), 8);
    ratios[2] = same_samples(7, 1.45);
    assert_int_equal(bench_choose_depth(depths, 4, 3), 8);
    ratios[2] = same_samples(7, 1.48);
    assert_int_equal(bench_choose_depth(depths, 4, 3), 4);
    ratios[0] = same_samples(7, 1.6);
    assert_int_equal(bench_choose_depth(depths, 4, 3), 1);
    ratios[0] = ratios[2] = ratios[3] = same_samples(6, 2);
    assert_int_equal(bench_choose_depth(depths, 4, 3), 3);
    assert_int_equal(bench_choose_depth(depths, 0, 3), 3);
}

/* The window where the fast cache is full, in noise that is not one. */
static void test_find_fall(void **state)
{
    (void)state;
    double rates[32];
    for (uint32_t at = 0; at <= 32; at++) {
        for (uint32_t i = 0; i < 32; i++)
            rates[i] = (i < at ? 6 : 2) * (i % 3 ? 1 : 0.9);
        assert_int_equal(bench_find_fall(rates, 32), at % 32);
    }
    for (uint32_t i = 0; i < 32; i++)
        rates[i] = i % 2 ? 4 : 3.5;
    assert_int_equal(bench_find_fall(rates, 32), 0);
    rates[7] = rates[20] = 0.5; /* a moment in which the drive was shared */
    assert_int_equal(bench_find_fall(rates, 32), 0);
    for (uint32_t i = 0; i < 32; i++)
        rates[i] = i < 16 ? 2 : 6; /* faster where it is written for the second time */
    assert_int_equal(bench_find_fall(rates, 32), 0);
    assert_int_equal(bench_find_fall(rates, 1), 0);
}

static struct json_value *json_of(const char *command)
{
    struct err err;
    command_must(bench_main, command);
    struct json_value *root = json_parse(command_out(), strlen(command_out()), "out", &err);
    if (!root)
        fail_msg("%s", err.message);
    return root;
}

static void check_latencies(const struct json_value *cell, const char *key)
{
    const struct json_value *l = json_get(cell, key);
    double p50 = json_get_number(l, "p50", -1), p99 = json_get_number(l, "p99", -1);
    double p999 = json_get_number(l, "p99_9", -1), longest = json_get_number(l, "max", -1);
    assert_true(p50 > 0 && p50 <= p99 && p99 <= p999 && p999 <= longest && longest < 60);
}

/* Both directions have their rate and latencies, and only what was measured is told. */
static void check_cell(const struct json_value *cell)
{
    const char *way = json_get_string(cell, "way", "");
    bool reads = strcmp(way, "write") != 0, writes = strcmp(way, "read") != 0;
    assert_true(json_get_number(cell, "bytes_per_s", 0) > 0);
    assert_true(json_get_number(cell, "mean_bytes_per_s", 0) > 0);
    assert_int_equal(json_has(cell, "read_bytes_per_s"), reads);
    assert_int_equal(json_has(cell, "write_bytes_per_s"), writes);
    if (reads)
        check_latencies(cell, "read_latency_s");
    if (writes)
        check_latencies(cell, "write_latency_s");
}

static void test_cell(void **state)
{
    (void)state;
    struct json_value *root =
        json_of("bench ssd --nvme @/drive --block 64K --depth 2 --json" SHORT);
    const struct json_value *cells = json_get(root, "cells");
    assert_int_equal(json_length(cells), 3);
    for (size_t i = 0; i < 3; i++) {
        const struct json_value *cell = json_at(cells, i);
        check_cell(cell);
        assert_int_equal(json_get_int(cell, "transfer_bytes", 0), 64 * KIB);
        assert_int_equal(json_get_int(cell, "depth", 0), 2);
    }
    assert_int_equal(json_length(json_get(root, "figures")), 0);
    json_free(root);
    command_must(bench_main, "bench ssd --nvme @/drive --block 1M --way mixed" SHORT);
    assert_non_null(strstr(command_out(), "mixed: reads, 1 MiB, 3 deep"));
    assert_non_null(strstr(command_out(), "mixed: writes, 1 MiB, 3 deep"));
    assert_null(strstr(command_out(), "write, 1 MiB"));
    assert_null(strstr(command_out(), "ssd, read"));
    assert_int_equal(count_entries(scratch_path("drive")), 0);
}

/* Equal amounts: their rates differ by no more than what a direction may be ahead at the end. */
static void test_mixed_in_equal_amounts(void **state)
{
    (void)state;
    struct err err;
    struct bench_drive drive = {.dir = scratch_path("drive"),
                                .file_bytes = 16 * MIB,
                                .space_bytes = 16 * MIB,
                                .buffer_bytes = MIB};
    struct bench_latencies *latencies = mem_alloc(2, sizeof(*latencies));
    struct bench_traffic traffic = {.way = BENCH_MIXED,
                                    .transfer_bytes = 64 * KIB,
                                    .depth = 5,
                                    .least_bytes = 20 * MIB,
                                    .latencies = latencies};
    assert_int_equal(bench_drive_open(&drive, &err), 0);
    assert_int_equal(bench_drive_fill(&drive, 64 * KIB, &err), 0);
    assert_int_equal(bench_drive_run(&drive, &traffic, &err), 0);
    uint64_t reads = traffic.moved_bytes[0], writes = traffic.moved_bytes[1];
    uint64_t ahead = reads > writes ? reads - writes : writes - reads;
    assert_true(reads >= 20 * MIB && writes >= 20 * MIB && ahead <= 5 * 64 * KIB);
    /* Every transfer is counted, those in flight at the end too. */
    assert_int_equal(latencies[0].count * 64 * KIB, reads);
    assert_int_equal(latencies[1].count * 64 * KIB, writes);
    assert_true(traffic.took_s > bench_latencies_within(&latencies[0], 1));
    bench_drive_close(&drive);
    mem_free(latencies);
}

/* Against the sorted values themselves. */
static void test_latencies(void **state)
{
    (void)state;
    struct bench_latencies *latencies = mem_alloc(1, sizeof(*latencies));
    assert_true(bench_latencies_within(latencies, 0.5) == 0);
    for (uint64_t i = 1; i <= 10000; i++)
        bench_latencies_add(latencies, i * i);
    static const double shares[] = {0.0001, 0.01, 0.5, 0.99, 0.999, 1};
    for (size_t i = 0; i < sizeof(shares) / sizeof(*shares); i++) {
        double at = shares[i] * 10000, exact = at * at / 1e9;
        double told = bench_latencies_within(latencies, shares[i]);
        if (told < exact * (1 - 1e-9) || told > exact * 1.035)
            fail_msg("%g: %g instead of %g", shares[i], told, exact);
    }
    assert_true(bench_latencies_within(latencies, 1) == 0.1);
    bench_latencies_add(latencies, 0);
    bench_latencies_add(latencies, UINT64_MAX);
    assert_true(bench_latencies_within(latencies, 1) == (double)UINT64_MAX / 1e9);
    mem_free(latencies);
}

static void test_table(void **state)
{
    (void)state;
    struct profile profile;
    struct json_value *root =
        json_of("bench ssd --nvme @/drive --out @/table.json --table --json" SHORT);
    const struct json_value *cells = json_get(root, "cells");
    /* Of 8 sizes and 7 depths each way those that fit the buffers for so small a file. */
    assert_true(json_length(cells) > 100);
    for (size_t i = 0; i < json_length(cells); i++)
        check_cell(json_at(cells, i));
    assert_true(json_length(json_get(root, "figures")) >= 6);
    load(&profile, "table.json");
    assert_true(profile.ssd.queue_depth >= 1 && profile.ssd.queue_depth <= 8);
    assert_int_equal(json_get_int(root, "queue_depth", 0), profile.ssd.queue_depth);
    assert_string_equal(json_get_string(root, "drive", ""), profile.ssd.name);
    json_free(root);
}

static void test_plot(void **state)
{
    (void)state;
    if (access("/usr/bin/gnuplot", X_OK) != 0)
        skip();
    command_must(bench_main, "bench ssd --nvme @/drive --table --plot @/t.png" SHORT);
    assert_non_null(strstr(command_out(), "95 % of the best from transfers of "));
    assert_non_null(strstr(command_out(), "mixed, reads and writes together"));
    char *drawn = scratch_read(scratch_path("t.png"));
    assert_memory_equal(drawn, "\x89PNG", 4);
    free(drawn);
}

static void test_bad_cells(void **state)
{
    (void)state;
    static const struct {
        const char *words, *said;
    } cases[] = {
        {"--depth 0", "--depth may be 1 to 128"},
        {"--depth 129", "--depth may be 1 to 128"},
        {"--block 0", "multiple of 4K"},
        {"--block 5000", "multiple of 4K"},
        {"--block 4M --depth 3", "--size"},
        {"--way sideways", "read, write, mixed"},
        {"--way read --out @/x.json", "leave out --out"},
        {"--depth 2 --table", "leave out"},
        {"--block 64K --sustained 64M", "leave out"},
        {"--plot @/x.png", "--table"},
        {"--table --plot @/x.gif", ".png or .svg"},
        {"--table --plot x", ".png or .svg"},
    };
    char command[256];
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        snprintf(command, sizeof(command), "bench ssd --nvme @/drive --size 16M %s",
                 cases[i].words);
        command_refused(bench_main, command, 2, cases[i].said);
    }
    command_refused(bench_main, "bench ssd --nvme @/drive --table --plot @/file/x.png", 1, "plot");
    command_refused(bench_main, "bench ram --table", 2, "for 'bench ssd'");
    command_refused(bench_main, "bench all --json", 2, "for 'bench ssd'");
    assert_int_equal(access(scratch_path("x.json"), F_OK), -1);
}

/* ---- Elsewhere ------------------------------------------------------------------------------- */

static void test_part_without_out(void **state)
{
    (void)state;
    set_folder("XDG_CONFIG_HOME", "untouched");
    command_must(bench_main, "bench ssd --nvme @/drive --sustained 64M" SHORT);
    assert_non_null(strstr(command_out(), "ssd, sustained write"));
    assert_non_null(strstr(command_out(), "at a stretch"));
    assert_non_null(strstr(command_out(), "Nothing is written"));
    assert_int_not_equal(access(scratch_path("untouched"), F_OK), 0);
    assert_int_equal(count_entries(scratch_path("drive")), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_bad_words),
        cmocka_unit_test(test_unwritable_out),
        cmocka_unit_test(test_tmpfs),
        cmocka_unit_test(test_pcie),
        cmocka_unit_test(test_all),
        cmocka_unit_test(test_all_in_config_folder),
        cmocka_unit_test(test_part_leaves_the_others),
        cmocka_unit_test(test_endurance_stays),
        cmocka_unit_test(test_several_drives),

        cmocka_unit_test(test_choose_depth),
        cmocka_unit_test(test_find_fall),
        cmocka_unit_test(test_cell),
        cmocka_unit_test(test_mixed_in_equal_amounts),
        cmocka_unit_test(test_latencies),
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_plot),
        cmocka_unit_test(test_bad_cells),
        cmocka_unit_test(test_part_without_out),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
