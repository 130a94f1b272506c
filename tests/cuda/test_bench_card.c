/*
 * Property: `bench pcie` and `bench compute` of a card write its section of the profile, every
 * figure positive, and leave the rest as it was; a card that the catalogue knows begins with its
 * figures, and train says what its predictions begin from; `devices` tells all that there is to
 * tell. Method: the emulated card, whose time means nothing, so no figure is held against another;
 * tiny classes in the place of GPT-2's.
 */
#include "core/topo.h"
#include "model/cuda/gpu_rates.h"
#include "offload/gpu.h"
#include "offload/profile_file.h"
#include "tests/cuda/emulation/emulation.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/bench_card.h"
#include "tools/commands.h"
#include "tools/devices.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern const struct gpu_plugin spillway_gpu_plugin;

static void load(struct profile *profile, const char *name)
{
    struct err err;
    if (profile_load(profile, scratch_path(name), &err) != 0)
        fail_msg("%s", err.message);
}

static int setup(void **state)
{
    (void)state;
    setenv("XDG_CONFIG_HOME", scratch_path("config"), 1);
    return 0;
}

static void check_card(const struct profile_device *card)
{
    assert_false(card->is_cpu);
    assert_true(card->vram_bytes > 0 && card->point_count > 0);
    assert_true(card->h2d_bytes_per_s > 0 && card->d2h_bytes_per_s > 0);
    assert_true(card->h2d_both_bytes_per_s > 0 &&
                card->h2d_both_bytes_per_s <= card->h2d_bytes_per_s);
    assert_true(card->d2h_both_bytes_per_s > 0 &&
                card->d2h_both_bytes_per_s <= card->d2h_bytes_per_s);
}

static void test_link(void **state)
{
    (void)state;
    struct profile before, after;
    struct err err;
    profile_init(&before, 3);
    strcpy(before.name, "before");
    assert_int_equal(profile_save(&before, scratch_path("p.json"), &err), 0);
    command_must(bench_main, "bench pcie --device cuda --out @/p.json");
    assert_non_null(strstr(command_out(), "PCIe, RAM to card"));
    load(&after, "p.json");
    check_card(&after.card);
    assert_true(after.device.is_cpu);
    assert_memory_equal(&after.cpu, &before.cpu, sizeof(after.cpu));
    assert_memory_equal(&after.ssd, &before.ssd, sizeof(after.ssd));
    assert_memory_equal(&after.device.points, &before.device.points, sizeof(after.device.points));
    command_refused(bench_main, "bench pcie --device cuda:7", 1, "cuda:7");
    command_refused(bench_main, "bench ram --device cuda", 2, "--device");
}

/* In the process of the test, with classes that the emulation can run. */
static void test_compute(void **state)
{
    (void)state;
    static const struct gpu_rates_class classes[] = {
        {true, 1, 16, 32, 2, 40}, {false, 1, 16, 32, 2, 40}, {true, 2, 16, 32, 2, 40}};
    static struct bench bench = {.seconds = 100, .threads = 1, .on_card = true};
    struct err err;
    emulation_reset(1);
    profile_init(&bench.profile, 1);
    if (bench_card_compute(&bench, classes, ARRAY_COUNT(classes), &err) != 0)
        fail_msg("%s", err.message);
    const struct profile_device *card = &bench.profile.card;
    check_card(card);
    assert_int_equal(card->point_count, ARRAY_COUNT(classes));
    assert_true(card->stream_bytes_per_s > 0 && card->launch_s > 0);
    for (size_t i = 0; i < ARRAY_COUNT(classes); i++) {
        assert_int_equal(card->points[i].precision == PRECISION_BF16, classes[i].bf16);
        assert_int_equal(card->points[i].rows, classes[i].batch * classes[i].seq);
        for (uint32_t k = 0; k < PROFILE_KERNEL_COUNT; k++) {
            assert_true(card->points[i].flops_per_s[k] > 0);
            /* The emulation may be slower than any card of which a profile is believed. */
            bench.profile.card.points[i].flops_per_s[k] *= 1e6;
        }
    }
    assert_true(bench.row_count > 12);
    strcpy(bench.profile.name, "with a card");
    if (profile_save(&bench.profile, scratch_path("card.json"), &err) != 0)
        fail_msg("%s", err.message);
    struct profile back;
    load(&back, "card.json");
    assert_memory_equal(&back.card, card, sizeof(*card));
}

/* The shape of a card by another name: what the driver says. */
static const char *card_name;

static int named_info(uint32_t number, struct gpu_info *info, struct err *err)
{
    int result = spillway_gpu_plugin.info(number, info, err);
    snprintf(info->name, sizeof(info->name), "%s", card_name);
    return result;
}

static void test_what_predictions_begin_from(void **state)
{
    (void)state;
    if (!emulation_is_here)
        skip();
    struct gpu_plugin plugin = spillway_gpu_plugin;
    struct train_settings settings = {.cuda = true};
    struct profile profile;
    struct profile_device card = {0};
    struct err err;
    plugin.info = named_info;
    gpu_set_plugin(&plugin);
    profile_init(&profile, 1);
    card_name = "NVIDIA Unheard Of";
    assert_int_equal(devices_card(&settings, &profile, &card, &err), 1);
    assert_int_equal(card.point_count, 0);
    card_name = "NVIDIA GeForce RTX 4090"; /* of 24 GiB, as the emulated one has */
    assert_int_equal(devices_card(&settings, &profile, &card, &err), 0);
    assert_true(card.point_count > 1 && card.stream_bytes_per_s > 5e11);
    profile.card = card;
    profile.card.stream_bytes_per_s = 123e9;
    assert_int_equal(devices_card(&settings, &profile, &card, &err), 0);
    assert_true(card.stream_bytes_per_s == 123e9);
    strcpy(profile.card.name, "another");
    assert_int_equal(devices_card(&settings, &profile, &card, &err), 0);
    assert_true(card.stream_bytes_per_s > 5e11);
    settings.cuda_device = 9;
    assert_int_equal(devices_card(&settings, &profile, &card, &err), ERR_INPUT);
    gpu_set_plugin(&spillway_gpu_plugin);
}

static void test_train_says_so(void **state)
{
    (void)state;
    if (!emulation_is_here)
        skip();
    struct config config;
    command_data("data", 1);
    command_model(&config, "tiny", 1, 32, 16, COMMAND_VOCAB);
    const char *line = "train --model @/tiny.json --data @/data --out @/run --device cuda --seq 16 "
                       "--batch 1 --steps 1 --vram-budget 1G --ram-budget 4G";
    command_must(train_main, line);
    assert_non_null(strstr(command_err(), "no figures of the emulated card are known"));
}

/* Name, memory, link, NUMA node, driver: whatever this machine tells of that address. */
static void test_devices(void **state)
{
    (void)state;
    if (!emulation_is_here)
        skip();
    static const char *const told[] = {"\ncuda:0  emulated card: 24 GiB, 24 GiB free; ",
                                       "compute capability 8.6, 28 processors; ",
                                       "PCI 0000:01:00.0, ",
                                       "NUMA node",
                                       "; driver ",
                                       "for CUDA 13.0, built with 13.0\n"};
    command_must(devices_main, "devices");
    for (size_t i = 0; i < ARRAY_COUNT(told); i++)
        if (!strstr(command_out(), told[i]))
            fail_msg("no \"%s\" in: %s", told[i], command_out());
    assert_true(strstr(command_out(), ", gen ") || strstr(command_out(), ", link not known, "));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_devices, setup),
        cmocka_unit_test_setup(test_train_says_so, setup),
        cmocka_unit_test_setup(test_link, setup),
        cmocka_unit_test_setup(test_compute, setup),
        cmocka_unit_test_setup(test_what_predictions_begin_from, setup),
    };
    gpu_set_plugin(&spillway_gpu_plugin);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
