/*
 * Property: bench refuses what it cannot measure or write before it measures, with the place named;
 * what it writes is a profile that can be read; a part replaces its own section and leaves the
 * others bit for bit; nothing is left on the drive; samples have the median that sorting gives.
 * Method: very short runs, whose figures mean nothing and are not looked at.
 */
#include "core/json.h"
#include "offload/profile_file.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/bench.h"
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
    command_refused(bench_main, "bench pcie --out @/pcie.json", 1, "CUDA");
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
}

static void test_part_without_out(void **state)
{
    (void)state;
    set_folder("XDG_CONFIG_HOME", "untouched");
    command_must(bench_main, "bench ssd --nvme @/drive --sustained 64M" SHORT);
    assert_non_null(strstr(command_out(), "ssd, sustained write"));
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
        cmocka_unit_test(test_part_without_out),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
