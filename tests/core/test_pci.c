/*
 * pci: a link is read from the kernel's files, here a folder that looks like them: all generations,
 * a card that has gone down to a lower one, what is missing or nonsense, and addresses of any case.
 */
#include "core/pci.h"
#include "core/base.h"
#include "io/file.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"

#include <stdio.h>
#include <string.h>

#define DEVICE "sys/bus/pci/devices/0000:0a:00.0"

static void write_attribute(const char *name, const char *text)
{
    char path[128];
    struct err err;
    assert_int_equal(file_make_dirs(scratch_path(DEVICE), &err), 0);
    snprintf(path, sizeof(path), DEVICE "/%s", name);
    scratch_write(path, text);
}

static void write_link(const char *now, const char *width, const char *most, const char *width_max)
{
    write_attribute("current_link_speed", now);
    write_attribute("current_link_width", width);
    write_attribute("max_link_speed", most);
    write_attribute("max_link_width", width_max);
}

static const char *shown(const char *address)
{
    static char text[PCI_LINK_TEXT_MAX];
    char root[512];
    snprintf(root, sizeof(root), "%s", scratch_path("."));
    struct pci_link link = pci_link_read(root, address);
    return pci_link_text(&link, text);
}

static void test_generations(void **state)
{
    (void)state;
    static const char *const speeds[] = {"2.5 GT/s PCIe\n",  "5.0 GT/s PCIe\n",
                                         "8.0 GT/s PCIe\n",  "16.0 GT/s PCIe\n",
                                         "32.0 GT/s PCIe\n", "64.0 GT/s PCIe\n"};
    for (size_t i = 0; i < ARRAY_COUNT(speeds); i++) {
        char expected[32];
        snprintf(expected, sizeof(expected), "gen %zu x8", i + 1);
        write_link(speeds[i], "8\n", speeds[i], "8\n");
        assert_string_equal(shown("0000:0a:00.0"), expected);
    }
}

static void test_idle_card(void **state)
{
    (void)state;
    write_link("2.5 GT/s PCIe\n", "16\n", "16.0 GT/s PCIe\n", "16\n");
    assert_string_equal(shown("0000:0A:00.0"), "gen 4 x16 (now gen 1 x16)");
    write_link("16.0 GT/s PCIe\n", "4\n", "16.0 GT/s PCIe\n", "16\n");
    assert_string_equal(shown("0000:0a:00.0"), "gen 4 x16 (now gen 4 x4)");
}

static void test_not_known(void **state)
{
    (void)state;
    assert_string_equal(shown("0000:0b:00.0"), "link not known");
    write_link("Unknown\n", "255\n", "", "0\n");
    assert_string_equal(shown("0000:0a:00.0"), "link not known");
    write_link("Unknown\n", "0\n", "8.0 GT/s PCIe\n", "16\n");
    assert_string_equal(shown("0000:0a:00.0"), "gen 3 x16");
    assert_string_equal(shown(""), "link not known");
}

static void test_driver(void **state)
{
    (void)state;
    char version[PCI_DRIVER_MAX], root[512];
    struct err err;
    snprintf(root, sizeof(root), "%s", scratch_path("."));
    pci_nvidia_driver(root, version);
    assert_string_equal(version, "");
    assert_int_equal(file_make_dirs(scratch_path("sys/module/nvidia"), &err), 0);
    scratch_write("sys/module/nvidia/version", "580.159.04\n");
    pci_nvidia_driver(root, version);
    assert_string_equal(version, "580.159.04");
    scratch_write("sys/module/nvidia/version", "(none)\n");
    pci_nvidia_driver(root, version);
    assert_string_equal(version, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_generations),
        cmocka_unit_test(test_idle_card),
        cmocka_unit_test(test_not_known),
        cmocka_unit_test(test_driver),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
