/*
 * Property: bench offload refuses, before it makes anything and with one sentence, what it cannot
 * measure; what it does measure it tells step by step, in any kind of model, and it leaves nothing
 * in the folder. Method: small models under the least budget that works, which the refusal of a
 * smaller one names; figures mean nothing here and are not looked at.
 */
#include "core/base.h"
#include "offload/profile_file.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tests/shared/tiny.h"
#include "tools/bench.h"
#include "tools/commands.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define TMPFS_MAGIC 0x01021994
#define TINY        "bench offload --model gpt-tiny --batch 1 --seq 64 --nvme @/drive"

/* No run of this test may reach the real home folder. */
static int setup(void **state)
{
    (void)state;
    unsetenv("XDG_CONFIG_HOME");
    setenv("HOME", "/nonexistent", 1);
    scratch_write("file", "not a folder");
    return mkdir(scratch_path("drive"), 0755);
}

static void check_drive_is_empty(void)
{
    DIR *dir = opendir(scratch_path("drive"));
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.')
            fail_msg("%s was left on the drive", entry->d_name);
    closedir(dir);
}

static bool says(const char *what)
{
    return strstr(command_out(), what) != NULL;
}

/* The command under the smallest RAM budget that works, found by being refused one that does not.
 */
static void run_in_little(const char *command)
{
    char line[512];
    snprintf(line, sizeof(line), "%s --ram-budget 1M", command);
    command_refused(bench_main, line, 1, "the RAM budget of 1 MiB is too small");
    char *refusal = strdup(command_err());
    refusal[strcspn(refusal, "\n")] = '\0';
    uint64_t bytes = tiny_flag(refusal, "--ram-budget");
    free(refusal);
    check_drive_is_empty();
    snprintf(line, sizeof(line), "%s --ram-budget %" PRIu64 "M", command, bytes / MIB);
    command_must(bench_main, line);
    check_drive_is_empty();
}

/* ---- Refusals -------------------------------------------------------------------------------- */

static void test_bad_words(void **state)
{
    (void)state;
    command_must(bench_main, "bench offload --help");
    assert_true(says("--gpu rtx3060"));
    command_refused(bench_main, "bench offload", 2, "--model is missing");
    command_refused(bench_main, "bench offload --model gpt-tiny --gpu rtx3060", 2, "--nvme");
    command_refused(bench_main, TINY, 2, "--gpu is missing");
    command_refused(bench_main, TINY " --gpu rtx9999", 2, "rtx9999");
    command_refused(bench_main, TINY " --gpu none", 2, "--gpu");
    command_refused(bench_main, TINY " --machine cpu-7950x-128", 2, "no GPU");
    command_refused(bench_main, TINY " --machine rtx3090x2-7950x3d-192", 2, "one imagined GPU");
    command_refused(bench_main, TINY " --gpu rtx3060 --steps 0", 2, "--steps");
    command_refused(bench_main, TINY " --gpu rtx3060 --batch 0", 2, "--batch");
    command_refused(bench_main, TINY " --gpu rtx3060 --seq 2000", 2, "--seq is 2000");
    command_refused(bench_main, TINY " --gpu rtx3060 --precision fp8", 2, "fp8");
    command_refused(bench_main, TINY " --gpu rtx3060 --threads 100000", 2, "--threads");
    check_drive_is_empty();
}

static void test_what_is_not_there(void **state)
{
    (void)state;
    command_refused(bench_main, "bench offload --model nothing --gpu rtx3060 --nvme @/drive", 1,
                    "nothing");
    command_refused(bench_main, "bench offload --model gpt-tiny --gpu rtx3060 --nvme @/none", 1,
                    "@/none");
    command_refused(bench_main, "bench offload --model gpt-tiny --gpu rtx3060 --nvme @/file", 1,
                    "@/file");
    command_refused(bench_main, TINY " --gpu @/none.json", 1, "@/none.json");
    check_drive_is_empty();
}

static void test_budgets(void **state)
{
    (void)state;
    command_refused(bench_main, TINY " --gpu rtx3060 --ram-budget 1M", 1, "--ram-budget");
    command_refused(bench_main, TINY " --gpu rtx3060 --vram-budget 1M", 1, "--vram-budget");
    command_refused(bench_main, TINY " --gpu rtx3060 --vram-budget 13G", 1, "11264M");
    command_refused(bench_main, TINY " --gpu rtx3060 --nvme-budget 1M", 1, "--nvme-budget");
    /* A state that no machine of today holds, and all of it is to. */
    command_refused(bench_main,
                    "bench offload --model llama-70b --gpu rtx4090 --nvme @/drive --batch 1 "
                    "--seq 64 --nvme-budget 10T --ram-budget 900T",
                    1, "free now");
    check_drive_is_empty();
}

static void test_tmpfs(void **state)
{
    (void)state;
    struct statfs fs;
    if (statfs("/dev/shm", &fs) != 0 || fs.f_type != TMPFS_MAGIC)
        skip();
    command_refused(bench_main, "bench offload --model gpt-tiny --gpu rtx3060 --nvme /dev/shm", 1,
                    "/dev/shm");
}

/* ---- Steps ----------------------------------------------------------------------------------- */

static void test_tiny(void **state)
{
    (void)state;
    run_in_little(TINY " --gpu rtx3060 --vram-budget 14M --steps 2 --accum 2");
    assert_true(says("RTX 3060") && says("default figures"));
    assert_true(says("\npredicted ") && says("\n1  ") && says("\n2  ") && !says("\n3  "));
    assert_true(says("\nmedian ") && says("RAM held "));
    assert_true(says("\nthe drive ") && says("\nssd_read ") && says("\nssd_write "));
    /* A sanitizer's shadow is no memory of ours. */
    if (mem_heap_has_stats())
        assert_null(strstr(command_err(), "warning"));
}

static void test_precision_and_all_on_the_device(void **state)
{
    (void)state;
    run_in_little(TINY " --gpu rtx4090 --vram-budget 19M --steps 1 --precision fp32");
    command_must(bench_main, TINY " --gpu rtx4090 --steps 1 --ram-budget 1G");
    assert_true(says("updated there: 100 %") && !says("\nssd_read "));
    check_drive_is_empty();
}

/* Norms without biases, fewer key heads, a head of its own. */
static void test_llama(void **state)
{
    (void)state;
    scratch_write("llama.json",
                  "{\"model_type\": \"llama\", \"architectures\": [\"LlamaForCausalLM\"], "
                  "\"num_hidden_layers\": 3, \"hidden_size\": 256, \"num_attention_heads\": 8, "
                  "\"num_key_value_heads\": 2, \"intermediate_size\": 512, "
                  "\"max_position_embeddings\": 256, \"vocab_size\": 9000, "
                  "\"rms_norm_eps\": 1e-5, \"tie_word_embeddings\": false}");
    run_in_little("bench offload --model @/llama.json --gpu rtx3060 --steps 2 --batch 1 --seq 32 "
                  "--nvme @/drive");
    assert_true(says("\nmedian "));
}

/* By which figures it predicts is said: those measured here, or those of a known machine. */
static void test_figures(void **state)
{
    (void)state;
    struct err err;
    struct profile profile;
    char *scratch = realpath(scratch_dir(), NULL), config[4096];
    snprintf(config, sizeof(config), "%s/config", scratch);
    free(scratch);
    profile_init(&profile, 2);
    profile.measured = true;
    scratch_write("config/spillway/made", "");
    assert_int_equal(profile_save(&profile, scratch_path("config/spillway/machine.json"), &err), 0);
    setenv("XDG_CONFIG_HOME", config, 1);
    command_must(bench_main, TINY " --gpu rtx3060 --steps 1 --ram-budget 1G");
    assert_true(says("config/spillway/machine.json") && !says("default figures"));
    command_must(bench_main, TINY " --machine rtx3060-7950x-96 --steps 1 --ram-budget 1G");
    assert_true(says("figures of rtx3060-7950x-96") && says("RTX 3060"));
    scratch_write("config/spillway/machine.json", "{}");
    command_refused(bench_main, TINY " --gpu rtx3060", 1, "config/spillway/machine.json");
    unsetenv("XDG_CONFIG_HOME");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_words), cmocka_unit_test(test_what_is_not_there),
        cmocka_unit_test(test_budgets),   cmocka_unit_test(test_tmpfs),
        cmocka_unit_test(test_tiny),      cmocka_unit_test(test_precision_and_all_on_the_device),
        cmocka_unit_test(test_llama),     cmocka_unit_test(test_figures),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
