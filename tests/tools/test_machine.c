/*
 * machine: every file that is inside the program loads as what it is said to be and gives a source
 * for every figure; composing follows the rules for RAM, slots and drives, each shown by an example
 * worked out by hand from docs/machine-profiles.md; what is not known or not possible is refused
 * and leaves the machine as it was.
 */
#include "tests/shared/check.h"
#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "offload/profile_file.h"
#include "tests/shared/scratch.h"
#include "tools/machine.h"
#include "tools/machines.h"
#include <dirent.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool near(double a, double b)
{
    return fabs(a / b - 1) < 1e-9;
}

static struct profile local_machine(void)
{
    struct profile profile;
    profile_init(&profile, 2);
    profile.measured = true;
    return profile;
}

static struct profile compose(struct machine_request request)
{
    struct profile profile = local_machine();
    struct err err = {0};
    if (machine_compose(&profile, &request, &err) != 0)
        fail_msg("%s", err.message);
    return profile;
}

static void refuse(struct machine_request request, int code, const char *message)
{
    struct profile profile = local_machine(), before = profile;
    struct err err = {0};
    int rc = machine_compose(&profile, &request, &err);
    if (rc != code || !strstr(err.message, message))
        fail_msg("%d \"%s\" is not \"%s\"", rc, err.message, message);
    assert_memory_equal(&profile, &before, sizeof(profile));
}

static struct json_value *parse(const struct machines_file *file)
{
    struct err err = {0};
    struct json_value *root =
        json_parse(file->begin, (size_t)(file->end - file->begin), file->name, &err);
    if (!root)
        fail_msg("%s", err.message);
    return root;
}

/* ---- The files ------------------------------------------------------------------------------- */

static void test_all_files_load(void **state)
{
    (void)state;
    static const char *const section[] = {"device", "cpu", "ssd", "box"};
    for (size_t i = 0; i < machines_count; i++) {
        const struct machines_file *file = &machines_files[i];
        struct json_value *root = parse(file);
        assert_string_equal(json_get_string(root, "name", ""), file->name);
        assert_non_null(json_get(root, section[file->kind]));
        struct machine_request request = {0};
        switch (file->kind) {
        case MACHINES_GPU:
            request.gpu = file->name;
            break;
        case MACHINES_CPU:
            request.cpu = file->name;
            break;
        case MACHINES_SSD:
            request.ssd = file->name;
            break;
        default:
            request.machine = file->name;
            break;
        }
        struct profile profile = compose(request);
        assert_false(profile.measured);
        if (file->kind == MACHINES_BOX)
            assert_string_equal(profile.name, file->name);
        json_free(root);
    }
}

static void test_every_file_is_inside(void **state)
{
    (void)state;
    DIR *folder = opendir("tools/machines");
    if (!folder)
        skip(); /* not run from the source's folder */
    size_t found = 0;
    for (const struct dirent *entry; (entry = readdir(folder));) {
        size_t length = strlen(entry->d_name);
        if (length < 5 || strcmp(entry->d_name + length - 5, ".json") != 0)
            continue;
        bool known = false;
        for (size_t i = 0; i < machines_count; i++)
            known |= strlen(machines_files[i].name) == length - 5 &&
                     strncmp(machines_files[i].name, entry->d_name, length - 5) == 0;
        if (!known)
            fail_msg("tools/machines/%s is not listed in tools/machines.c", entry->d_name);
        found++;
    }
    closedir(folder);
    assert_int_equal(found, machines_count);
}

struct source_check {
    const struct json_value *sources;
    const char *file, *section;
    size_t figures;
};

static int check_source(void *context, const char *key, const struct json_value *value)
{
    struct source_check *check = context;
    enum json_kind kind = json_kind(value);
    if (kind != JSON_KIND_NUMBER && kind != JSON_KIND_ARRAY)
        return 0;
    check->figures++;
    const char *text = json_get_string(check->sources, key, "");
    if (strlen(text) < 4)
        fail_msg("%s: %s.%s has no source", check->file, check->section, key);
    return 0;
}

static int check_stale(void *context, const char *key, const struct json_value *value)
{
    (void)value;
    const struct source_check *check = context;
    if (!json_get(check->sources, key))
        fail_msg("%s: %s.sources.%s is of no field", check->file, check->section, key);
    return 0;
}

static void test_every_figure_has_a_source(void **state)
{
    (void)state;
    static const char *const sections[] = {"device", "cpu", "ssd", "board"};
    for (size_t i = 0; i < machines_count; i++) {
        if (machines_files[i].kind == MACHINES_BOX)
            continue; /* it has no figures: names of parts, and how many */
        struct json_value *root = parse(&machines_files[i]);
        size_t figures = 0;
        for (size_t s = 0; s < ARRAY_COUNT(sections); s++) {
            const struct json_value *section = json_get(root, sections[s]);
            if (!section)
                continue;
            struct source_check check = {json_get(section, "sources"), machines_files[i].name,
                                         sections[s], 0};
            json_each(section, check_source, &check);
            figures += check.figures;
            check.sources = section; /* and the other way round */
            json_each(json_get(section, "sources"), check_stale, &check);
        }
        assert_true(figures >= 12);
        json_free(root);
    }
}

/* ---- Composing ------------------------------------------------------------------------------- */

static void test_nothing_asked(void **state)
{
    (void)state;
    struct profile before = local_machine();
    struct profile profile = compose((struct machine_request){0});
    assert_memory_equal(&profile, &before, sizeof(profile));
}

static void test_a_machine_of_parts(void **state)
{
    (void)state;
    struct profile p = compose((struct machine_request){
        .gpu = "RTX 3060", .cpu = "7950X3D", .ram = "192G@3600", .ssd = "T700_2TB", .ssds = 2});
    assert_false(p.device.is_cpu);
    assert_int_equal(p.device.vram_bytes, 12 * GIB);
    assert_int_equal(p.device.count, 1);
    assert_true(near(p.device.h2d_bytes_per_s, 25.5e9)); /* a gen-4 card in a gen-5 slot */
    assert_int_equal(p.cpu.cores, 16);
    assert_int_equal(p.cpu.l3_bytes, 128 * MIB);
    assert_int_equal(p.ram.bytes, 192 * GIB);
    assert_int_equal(p.ram.mts, 3600);
    assert_int_equal(p.ram.dimms, 4);
    assert_true(near(p.ram.bytes_per_s, 0.8 * 3600e6 * 8 * 2)); /* 46.08 GB/s */
    assert_true(near(p.cpu.optimizer_parameters_per_s, p.ram.bytes_per_s / 28));
    assert_true(near(p.cpu.join_parameters_per_s, p.ram.bytes_per_s / 8));
    assert_int_equal(p.ssd.count, 2);
    assert_true(near(p.ssd.read_bytes_per_s, 12.4e9));
    assert_true(near(p.ssd.mixed_read_bytes_per_s, 11.8e9 / 1.1) ||
                fabs(p.ssd.mixed_read_bytes_per_s - 11.8e9 / 1.1) < 5e7);
    assert_int_equal(p.ssd.endurance_bytes, 1200000000000000);
    assert_false(p.measured);
    assert_string_equal(p.name, "RTX 3060 + 7950X3D + 192G@3600 + 2 x T700_2TB");
    char text[MACHINE_TEXT_MAX];
    machine_describe(&p, text, sizeof(text));
    assert_non_null(strstr(text, "192 GiB"));
    assert_non_null(strstr(text, "2 x Crucial T700 2TB"));
    for (size_t size = 1; size < 40; size++)
        assert_true(strlen(machine_describe(&p, text, size)) < size);
    /* It is a whole machine like any other: saved, loaded and composed upon. */
    struct err err = {0};
    const char *path = scratch_path("composed.json");
    assert_int_equal(profile_save(&p, path, &err), 0);
    struct profile same = compose((struct machine_request){.machine = path});
    assert_memory_equal(&same, &p, sizeof(p));
    struct profile more = compose((struct machine_request){.machine = path, .ram = "96G"});
    assert_true(near(more.ram.bytes_per_s, 0.8 * 5200e6 * 8 * 2));
    assert_true(near(more.cpu.optimizer_parameters_per_s, more.ram.bytes_per_s / 28));
    assert_int_equal(more.ssd.count, 2);
}

/* What speed RAM runs at follows from how many DIMMs it takes. */
static void test_ram(void **state)
{
    (void)state;
    static const struct {
        const char *cpu, *ram;
        uint32_t mts, dimms;
        double bytes_per_s;
    } cases[] = {
        {"7950x", "32G", 5200, 2, 66.56e9},       {"7950x", "96G", 5200, 2, 66.56e9},
        {"7950x", "128G", 3600, 4, 46.08e9},      {"7950x", "96G@6000", 6000, 2, 68e9},
        {"7950x", "128G@4800", 4800, 4, 61.44e9}, {"13900k", "96G", 5600, 2, 78.848e9},
        {"13900k", "128G", 4800, 4, 67.584e9},    {"13900k", "192G@8000", 8000, 4, 85e9},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct profile p =
            compose((struct machine_request){.cpu = cases[i].cpu, .ram = cases[i].ram});
        assert_int_equal(p.ram.mts, cases[i].mts);
        assert_int_equal(p.ram.dimms, cases[i].dimms);
        if (!near(p.ram.bytes_per_s, cases[i].bytes_per_s))
            fail_msg("%s, %s: %g", cases[i].cpu, cases[i].ram, p.ram.bytes_per_s);
    }
}

/* Where the board is not known, RAM keeps its rate unless both rates are known; a rate of the
 * processor that RAM bound goes with it, one that it did not bind stays. */
static void test_ram_of_an_unknown_board(void **state)
{
    (void)state;
    struct profile p = local_machine(), before = p;
    struct err err = {0};
    struct machine_request request = {.ram = "64G@4800"};
    assert_int_equal(machine_compose(&p, &request, &err), 0);
    assert_int_equal(p.ram.bytes, 64 * GIB);
    assert_true(p.ram.bytes_per_s == before.ram.bytes_per_s);
    p = before;
    p.ram.mts = 2400;
    p.cpu.optimizer_parameters_per_s = p.ram.bytes_per_s / 28 * 0.9;
    p.cpu.join_parameters_per_s = 1e9;
    assert_int_equal(machine_compose(&p, &request, &err), 0);
    assert_true(near(p.ram.bytes_per_s, 2 * before.ram.bytes_per_s));
    assert_true(near(p.cpu.optimizer_parameters_per_s, p.ram.bytes_per_s / 28 * 0.9));
    assert_true(p.cpu.join_parameters_per_s == 1e9);
    /* A name such as the kernel gives makes it known, and the longer one counts. */
    p = before;
    strcpy(p.cpu.name, "AMD Ryzen 9 7950X3D 16-Core Processor");
    request.ram = "192G";
    assert_int_equal(machine_compose(&p, &request, &err), 0);
    assert_int_equal(p.ram.mts, 3600);
    p = before;
    strcpy(p.cpu.name, "13th Gen Intel(R) Core(TM) i9-13900K");
    assert_int_equal(machine_compose(&p, &request, &err), 0);
    assert_int_equal(p.ram.mts, 4800);
}

static void test_slots(void **state)
{
    (void)state;
    static const struct {
        const char *gpu, *cpu, *ssd;
        uint64_t gpus;
        double h2d, d2h, both;
    } cases[] = {
        {"rtx3060", "7950x", "990pro-2tb", 0, 25.5e9, 25.5e9, 23e9},
        {"rtx3060", "7950x", "t700-2tb", 0, 25.5e9, 25.5e9, 23e9},
        {"rtx3060", "13900k", "990pro-2tb", 0, 25.5e9, 25.5e9, 23e9},
        {"rtx3060", "13900k", "t700-2tb", 0, 12.75e9, 12.75e9, 11.5e9},
        {"rtx3060", "7950x", "990pro-2tb", 2, 12.75e9, 12.75e9, 11.5e9},
        {"rtx3060", "13900k", "t700-2tb", 2, 6.375e9, 6.375e9, 5.75e9},
        {"rtx5090", "7950x", "t700-2tb", 1, 56.3e9, 57.3e9, 50.9e9},
        {"rtx5090", "13900k", "9100pro-2tb", 1, 28.15e9, 28.65e9, 25.45e9},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct profile p = compose((struct machine_request){
            .gpu = cases[i].gpu, .cpu = cases[i].cpu, .ssd = cases[i].ssd, .gpus = cases[i].gpus});
        assert_int_equal(p.device.count, MAX(cases[i].gpus, 1));
        assert_true(near(p.device.h2d_bytes_per_s, cases[i].h2d));
        assert_true(near(p.device.d2h_bytes_per_s, cases[i].d2h));
        assert_true(near(p.device.h2d_both_bytes_per_s, cases[i].both));
        assert_true(near(p.device.d2h_both_bytes_per_s, cases[i].both));
    }
    /* A measured card is held to its slot, and gets no faster than it was measured. */
    struct profile p = compose((struct machine_request){.gpu = "rtx3060"});
    struct machine_request request = {.cpu = "13900k", .ssd = "t705-2tb"};
    struct err err = {0};
    p.device.h2d_bytes_per_s = 24e9;
    p.device.h2d_both_bytes_per_s = 20e9;
    assert_int_equal(machine_compose(&p, &request, &err), 0);
    assert_true(p.device.h2d_bytes_per_s == 24e9); /* its slot may be gen 5: 28 GB/s */
}

static void test_boxes(void **state)
{
    (void)state;
    struct profile p = compose((struct machine_request){.machine = "RTX3060-7950X3D-192"});
    assert_int_equal(p.ram.bytes, 192 * GIB);
    assert_int_equal(p.ssd.count, 1);
    struct profile other = compose(
        (struct machine_request){.machine = "rtx3060-7950x3d-192", .gpu = "rtx4090", .ssds = 2});
    assert_int_equal(other.device.vram_bytes, 24 * GIB);
    assert_int_equal(other.ssd.count, 2);
    assert_true(other.ram.bytes_per_s == p.ram.bytes_per_s);
    assert_memory_equal(&other.cpu, &p.cpu, sizeof(p.cpu));
    p = compose((struct machine_request){.machine = "rtx3090x2-7950x3d-192"});
    assert_int_equal(p.device.count, 2);
    assert_int_equal(p.ssd.count, 2);
    p = compose((struct machine_request){.machine = "rtx3090x2-7950x3d-192", .gpu = "none"});
    assert_true(p.device.is_cpu);
    assert_int_equal(p.device.count, 1);
    p = compose((struct machine_request){.machine = "cpu-7950x-128"});
    assert_true(p.device.is_cpu);
    double bf16 = profile_flops(&p, PRECISION_BF16, PROFILE_BLOCK_FORWARD, 4096, 2048);
    assert_true(bf16 > 2e12 && bf16 < 4e12);
    assert_true(p.device.stream_bytes_per_s <= p.ram.bytes_per_s);
}

/* A part and a box of one's own. */
static void test_files_of_ones_own(void **state)
{
    (void)state;
    const char *drive = scratch_write(
        "slow.json", "{\"spillway_profile\":1,\"name\":\"slow\",\"ssd\":{\"name\":\"slow\","
                     "\"count\":1,\"read_bytes_per_s\":5e8,\"write_bytes_per_s\":4e8,"
                     "\"mixed_read_bytes_per_s\":3e8,\"mixed_write_bytes_per_s\":3e8,"
                     "\"sustained_write_bytes_per_s\":1e8,\"read_latency_s\":1e-4,"
                     "\"write_latency_s\":1e-4},\"board\":{\"pcie_gen\":3}}");
    struct profile p = compose((struct machine_request){.ssd = drive});
    assert_true(p.ssd.read_bytes_per_s == 5e8);
    char text[1024];
    snprintf(text, sizeof(text),
             "{\"spillway_profile\":1,\"name\":\"mine\",\"box\":{\"gpu\":\"rtx3090\",\"cpu\":"
             "\"13900K\",\"ram\":\"64G@6000\",\"ssd\":\"%s\",\"ssds\":3}}",
             drive);
    p = compose((struct machine_request){.machine = scratch_write("mine.json", text)});
    assert_string_equal(p.name, "mine");
    assert_int_equal(p.ssd.count, 3);
    assert_true(p.ssd.sustained_write_bytes_per_s == 1e8);
    assert_int_equal(p.ram.mts, 6000);
    refuse((struct machine_request){.gpu = drive}, ERR_INPUT, "it is no GPU");
    refuse((struct machine_request){.ssd = scratch_path("absent.json")}, ERR_SYSTEM, "absent");
    refuse((struct machine_request){.machine = drive}, ERR_INPUT, "device is missing");
    refuse((struct machine_request){.machine = scratch_write("half.json",
                                                             "{\"spillway_profile\":1,\"box\":{"
                                                             "\"gpu\":\"rtx3060\",\"cpu\":7}}")},
           ERR_INPUT, "box.ram");
    refuse((struct machine_request){.machine = scratch_write(
                                        "typo.json", "{\"spillway_profile\":1,\"box\":{"
                                                     "\"gpu\":\"rtx3060\",\"cpu\":\"7950x\","
                                                     "\"ram\":\"96G\",\"ssd\":\"qlc-2tb\","
                                                     "\"sdds\":2}}")},
           ERR_INPUT, "box.sdds");
}

static void test_refusals(void **state)
{
    (void)state;
    refuse((struct machine_request){.gpu = "rtx3070"}, ERR_USAGE, "rtx3060, rtx3090");
    refuse((struct machine_request){.cpu = "8086"}, ERR_USAGE, "7950x3d");
    refuse((struct machine_request){.ssd = "t700"}, ERR_USAGE, "t700-2tb");
    refuse((struct machine_request){.machine = "rtx3060"}, ERR_USAGE, "rtx3060-7950x3d-128");
    refuse((struct machine_request){.gpu = ""}, ERR_USAGE, "--gpu");
    static const char *const bad_ram[] = {
        "",      "lots",    "128",   "0",           "-5G",       "512G",      "9999T", "64G@",
        "64G@x", "64G@100", "@3600", "64G@3600MHz", "64G@99999", "64G@-3600", "1M"};
    for (size_t i = 0; i < ARRAY_COUNT(bad_ram); i++)
        refuse((struct machine_request){.cpu = "7950x", .ram = bad_ram[i]}, ERR_USAGE, "--ram");
    refuse((struct machine_request){.ram = "9999T"}, ERR_USAGE, "--ram");
    refuse((struct machine_request){.gpus = 2}, ERR_USAGE, "give --gpu");
    refuse((struct machine_request){.gpu = "rtx3060", .cpu = "7950x", .gpus = 3}, ERR_USAGE,
           "--gpus: 3");
    refuse((struct machine_request){.gpu = "rtx3060", .gpus = 1u << 20}, ERR_USAGE, "--gpus");
    refuse((struct machine_request){.ssds = 1u << 20}, ERR_USAGE, "--ssds");
    struct profile p = compose((struct machine_request){.gpu = "rtx3060"});
    struct machine_request request = {.gpu = "none"};
    struct err err = {0};
    assert_int_equal(machine_compose(&p, &request, &err), ERR_USAGE);
    p.ssd = (struct profile_ssd){0};
    request = (struct machine_request){.ssds = 2};
    assert_int_equal(machine_compose(&p, &request, &err), ERR_USAGE);
    request = (struct machine_request){.ssd = "qlc-2tb"};
    assert_int_equal(machine_compose(&p, &request, &err), 0);
    assert_int_equal(p.ssd.count, 1);
}

static void test_list(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    FILE *file = open_memstream(&text, &bytes);
    assert_non_null(file);
    machine_list(file);
    fclose(file);
    for (size_t i = 0; i < machines_count; i++)
        assert_non_null(strstr(text, machines_files[i].name));
    assert_non_null(strstr(text, "RTX 3060 12GB"));
    free(text);
}

/* Names as drivers give them. */
static void test_cards(void **state)
{
    (void)state;
    static const struct {
        const char *name, *part;
        double gib;
    } cards[] = {
        {"NVIDIA GeForce RTX 3060", "rtx3060", 11.6},
        {"NVIDIA GeForce RTX 3090", "rtx3090", 23.6},
        {"NVIDIA GeForce RTX 4090", "rtx4090", 23.5},
        {"NVIDIA GeForce RTX 5090", "rtx5090", 31.4},
        {"NVIDIA H100 80GB HBM3", "h100", 79.2},
        {"NVIDIA GeForce RTX 3060", NULL, 7.7},
        {"NVIDIA GeForce RTX 3060 Ti", NULL, 11.6},
        {"NVIDIA GeForce RTX 3060 Laptop GPU", NULL, 11.6},
        {"NVIDIA GeForce RTX 3090 Ti", NULL, 23.6},
        {"NVIDIA GeForce RTX 4090 D", NULL, 23.5},
        {"NVIDIA GeForce RTX 4090 Laptop GPU", NULL, 15.6},
        {"NVIDIA H100 PCIe", NULL, 79.2},
        {"NVIDIA H100 NVL", NULL, 93.1},
        {"NVIDIA H100 80GB HBM3 MIG 7g.80gb", NULL, 79.2},
        {"NVIDIA H200", NULL, 139.8},
        {"Tesla T4", NULL, 15.6},
        {"", NULL, 24},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cards); i++) {
        struct profile_device device = {0};
        uint64_t bytes = (uint64_t)(cards[i].gib * (double)GIB);
        const char *part = machine_card(cards[i].name, bytes, &device);
        if (!part || !cards[i].part) {
            if (part != cards[i].part)
                fail_msg("%s: %s", cards[i].name, part ? part : "not known");
            continue;
        }
        assert_string_equal(part, cards[i].part);
        assert_string_equal(device.name, cards[i].name);
        assert_int_equal(device.vram_bytes, bytes);
        assert_true(device.point_count > 0 && !device.is_cpu && device.h2d_bytes_per_s > 1e9);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cards),
        cmocka_unit_test(test_all_files_load),
        cmocka_unit_test(test_every_file_is_inside),
        cmocka_unit_test(test_every_figure_has_a_source),
        cmocka_unit_test(test_nothing_asked),
        cmocka_unit_test(test_a_machine_of_parts),
        cmocka_unit_test(test_ram),
        cmocka_unit_test(test_ram_of_an_unknown_board),
        cmocka_unit_test(test_slots),
        cmocka_unit_test(test_boxes),
        cmocka_unit_test(test_files_of_ones_own),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_list),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
