/*
 * profile_file: what is saved is loaded the same, bit for bit; every field refuses, by its name and
 * the file's, to be missing, of another kind, negative, zero where it is a rate, and absurd; what
 * contradicts itself is refused; no text, cut off or with bytes changed, does worse than be
 * refused.
 *
 * Fields are listed here once more, so that one that the reader's table lacks is found. A mutation
 * puts another value in a field's place in a saved file's text; a field is missing when a remark
 * stands in its place.
 */
#include "tests/shared/check.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/rng.h"
#include "offload/profile_file.h"
#include "tests/shared/scratch.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FUZZ_ROUNDS 20000

enum shape { NAME, TRUTH, WHOLE, SIZE, RATE, MAYBE_RATE, LATENCY, DEPTH, CHOICE };

struct expected_field {
    const char *section, *field, *shown;
    enum shape shape;
    bool optional;
};

static const struct expected_field expected[] = {
    {"device", "name", "device.name", NAME, false},
    {"device", "is_cpu", "device.is_cpu", TRUTH, false},
    {"device", "count", "device.count", WHOLE, false},
    {"device", "vram_bytes", "device.vram_bytes", SIZE, false},
    {"device", "reserve_bytes", "device.reserve_bytes", SIZE, false},
    {"device", "overhead_bytes", "device.overhead_bytes", SIZE, false},
    {"device", "stream_bytes_per_s", "device.stream_bytes_per_s", RATE, false},
    {"device", "h2d_bytes_per_s", "device.h2d_bytes_per_s", RATE, false},
    {"device", "d2h_bytes_per_s", "device.d2h_bytes_per_s", RATE, false},
    {"device", "h2d_both_bytes_per_s", "device.h2d_both_bytes_per_s", RATE, false},
    {"device", "d2h_both_bytes_per_s", "device.d2h_both_bytes_per_s", RATE, false},
    {"device", "copy_latency_s", "device.copy_latency_s", LATENCY, false},
    {"device", "launch_s", "device.launch_s", LATENCY, false},
    {"points", "precision", "device.points[0].precision", CHOICE, false},
    {"points", "channels", "device.points[0].channels", WHOLE, false},
    {"points", "rows", "device.points[0].rows", WHOLE, false},
    {"points", "block_forward_flops_per_s", "device.points[0].block_forward_flops_per_s", RATE,
     false},
    {"points", "block_backward_flops_per_s", "device.points[0].block_backward_flops_per_s", RATE,
     false},
    {"points", "attention_forward_flops_per_s", "device.points[0].attention_forward_flops_per_s",
     RATE, false},
    {"points", "attention_backward_flops_per_s", "device.points[0].attention_backward_flops_per_s",
     RATE, false},
    {"points", "head_forward_flops_per_s", "device.points[0].head_forward_flops_per_s", RATE,
     false},
    {"points", "head_backward_flops_per_s", "device.points[0].head_backward_flops_per_s", RATE,
     false},
    {"cpu", "name", "cpu.name", NAME, false},
    {"cpu", "cores", "cpu.cores", WHOLE, false},
    {"cpu", "threads", "cpu.threads", WHOLE, false},
    {"cpu", "l2_bytes", "cpu.l2_bytes", SIZE, true},
    {"cpu", "l3_bytes", "cpu.l3_bytes", SIZE, true},
    {"cpu", "optimizer_parameters_per_s", "cpu.optimizer_parameters_per_s", RATE, false},
    {"cpu", "optimizer_bf16_parameters_per_s", "cpu.optimizer_bf16_parameters_per_s", MAYBE_RATE,
     true},
    {"cpu", "optimizer_8bit_parameters_per_s", "cpu.optimizer_8bit_parameters_per_s", MAYBE_RATE,
     true},
    {"cpu", "checksum_bytes_per_s", "cpu.checksum_bytes_per_s", RATE, false},
    {"cpu", "cached_checksum_bytes_per_s", "cpu.cached_checksum_bytes_per_s", MAYBE_RATE, true},
    {"cpu", "copy_bytes_per_s", "cpu.copy_bytes_per_s", RATE, false},
    {"cpu", "join_parameters_per_s", "cpu.join_parameters_per_s", RATE, false},
    {"cpu", "launch_s", "cpu.launch_s", LATENCY, false},
    {"ram", "bytes", "ram.bytes", SIZE, false},
    {"ram", "bytes_per_s", "ram.bytes_per_s", RATE, false},
    {"ram", "mts", "ram.mts", SIZE, true},
    {"ram", "dimms", "ram.dimms", SIZE, true},
    {"ssd", "name", "ssd.name", NAME, false},
    {"ssd", "count", "ssd.count", SIZE, false},
    {"ssd", "read_bytes_per_s", "ssd.read_bytes_per_s", RATE, false},
    {"ssd", "write_bytes_per_s", "ssd.write_bytes_per_s", RATE, false},
    {"ssd", "mixed_read_bytes_per_s", "ssd.mixed_read_bytes_per_s", RATE, false},
    {"ssd", "mixed_write_bytes_per_s", "ssd.mixed_write_bytes_per_s", RATE, false},
    {"ssd", "sustained_write_bytes_per_s", "ssd.sustained_write_bytes_per_s", RATE, false},
    {"ssd", "fast_cache_bytes", "ssd.fast_cache_bytes", SIZE, true},
    {"ssd", "capacity_bytes", "ssd.capacity_bytes", SIZE, true},
    {"ssd", "endurance_bytes", "ssd.endurance_bytes", SIZE, true},
    {"ssd", "read_latency_s", "ssd.read_latency_s", LATENCY, false},
    {"ssd", "write_latency_s", "ssd.write_latency_s", LATENCY, false},
    {"drives", "mount", "drives[0].mount", NAME, false},
    {"drives", "read_bytes_per_s", "drives[0].read_bytes_per_s", RATE, false},
    {"drives", "write_bytes_per_s", "drives[0].write_bytes_per_s", RATE, false},
    {"drives", "mixed_read_bytes_per_s", "drives[0].mixed_read_bytes_per_s", RATE, false},
    {"drives", "mixed_write_bytes_per_s", "drives[0].mixed_write_bytes_per_s", RATE, false},
    {"drives", "sustained_write_bytes_per_s", "drives[0].sustained_write_bytes_per_s", RATE, false},
    {"ssd", "queue_depth", "ssd.queue_depth", DEPTH, true},
};

/* A machine in which no field is 0, and no figure a short decimal. */
static struct profile odd_machine(void)
{
    struct profile p;
    profile_init(&p, 6);
    strcpy(p.name, "odd \"machine\" \xc4\x8d");
    p.device.is_cpu = false;
    p.device.count = 2;
    p.device.vram_bytes = 12884901887;
    p.device.reserve_bytes = 1000003;
    p.device.overhead_bytes = 1610612735;
    p.device.copy_latency_s = 1.0 / 3e5;
    p.cpu.optimizer_bf16_parameters_per_s = 2.1e9 / 7;
    p.cpu.optimizer_8bit_parameters_per_s = 1.9e9 / 7;
    p.cpu.cached_checksum_bytes_per_s = 35.1e9 / 3;
    p.cpu.l2_bytes = 1 << 20;
    p.cpu.l3_bytes = 64 << 20;
    p.ram = (struct profile_ram){(uint64_t)192 << 30, 46.1e9 / 3, 3600, 4};
    p.ssd.count = 3;
    p.ssd.fast_cache_bytes = 113000000001;
    p.ssd.capacity_bytes = 2000398934016;
    p.ssd.endurance_bytes = (uint64_t)1200000000000000;
    p.drive_count = 2;
    p.drives[0] =
        (struct profile_drive){"/mnt/a \xc4\x8d", 7e9 / 3, 6e9 / 7, 3e9 / 7, 2e9 / 7, 1e9 / 7};
    p.drives[1] = (struct profile_drive){"/", 6e9 / 7, 5e9 / 7, 2e9 / 7, 1e9 / 7, 1e9 / 9};
    p.ssd.queue_depth = 5;
    profile_scale(&p, 1 / 0.7);
    return p;
}

static char *saved_text(void)
{
    struct profile p = odd_machine();
    struct err err = {0};
    const char *path = scratch_path("saved.json");
    assert_int_equal(profile_save(&p, path, &err), 0);
    return scratch_read(path);
}

static int read_text(struct profile *profile, const char *text, size_t bytes, struct err *err)
{
    struct json_value *root = json_parse(text, bytes, "box.json", err);
    if (!root)
        return err->code;
    int rc = profile_read(profile, root, "box.json", err);
    json_free(root);
    return rc;
}

static void test_round_trip(void **state)
{
    (void)state;
    for (int measured = 0; measured < 2; measured++) {
        struct profile p = odd_machine(), back;
        struct err err = {0};
        p.measured = measured;
        const char *path = scratch_path("round.json");
        assert_int_equal(profile_save(&p, path, &err), 0);
        memset(&back, 0xa5, sizeof(back));
        assert_int_equal(profile_load(&back, path, &err), 0);
        assert_memory_equal(&back.device.points, &p.device.points, sizeof(p.device.points));
        assert_memory_equal(&back.ssd, &p.ssd, sizeof(p.ssd));
        assert_memory_equal(&back, &p, sizeof(p));
    }
}

static struct json_value *saved_card(void)
{
    struct profile p = odd_machine();
    struct err err = {0};
    p.card = p.device;
    strcpy(p.card.name, "a card");
    p.device.is_cpu = true;
    p.device.vram_bytes = 0;
    p.device.count = 1;
    const char *path = scratch_path("card.json");
    assert_int_equal(profile_save(&p, path, &err), 0);
    struct profile back;
    assert_int_equal(profile_load(&back, path, &err), 0);
    assert_memory_equal(&back, &p, sizeof(p));
    struct json_value *root = json_load(path, &err);
    assert_non_null(root);
    return root;
}

/* A card beside a device that is the CPU: whole, checked as a device is, kept by a merge. */
static void test_card(void **state)
{
    (void)state;
    struct err err = {0};
    struct profile back;
    struct json_value *root = saved_card(), *card = (struct json_value *)json_get(root, "card");
    json_set_bool(card, "is_cpu", true);
    assert_int_equal(profile_read(&back, root, "box.json", &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "box.json: card.is_cpu"));
    json_set_bool(card, "is_cpu", false);
    json_set_number(card, "h2d_both_bytes_per_s", 1e14);
    assert_int_equal(profile_read(&back, root, "box.json", &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "box.json, card: device.h2d_both_bytes_per_s"));
    json_set_number(card, "h2d_both_bytes_per_s", -1);
    assert_int_equal(profile_read(&back, root, "box.json", &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "card.h2d_both_bytes_per_s"));
    json_set(card, "points", json_new_array());
    json_set_number(card, "h2d_both_bytes_per_s", 1e9);
    assert_int_equal(profile_read(&back, root, "box.json", &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "box.json, card: device.points"));
    json_free(root);
    const char *text = "{\"spillway_profile\":1,\"ssd\":{\"count\":0}}";
    root = json_parse(text, strlen(text), "x", &err);
    back = odd_machine();
    back.card = back.device;
    assert_int_equal(profile_merge(&back, root, "x", &err), 0);
    assert_int_equal(back.card.point_count, back.device.point_count);
    json_free(root);
}

/* Doubles of every size and with all their digits. */
static void test_digits(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 200; i++) {
        struct profile p = odd_machine(), back;
        struct err err = {0};
        double unit = (double)(rng_u64(7, i, 0) >> 11) * 0x1p-53;
        p.ram.bytes_per_s = exp(log(1e3) + unit * (log(1e15) - log(1e3)));
        p.cpu.launch_s = exp(unit * log(1e-300));
        const char *path = scratch_path("digits.json");
        assert_int_equal(profile_save(&p, path, &err), 0);
        assert_int_equal(profile_load(&back, path, &err), 0);
        assert_memory_equal(&back, &p, sizeof(p));
    }
}

static void test_without_a_drive(void **state)
{
    (void)state;
    struct profile p = odd_machine(), back;
    struct err err = {0};
    p.ssd = (struct profile_ssd){0};
    const char *path = scratch_path("no_ssd.json");
    assert_int_equal(profile_save(&p, path, &err), 0);
    assert_int_equal(profile_load(&back, path, &err), 0);
    assert_memory_equal(&back, &p, sizeof(p));
    const char *text = "{\"spillway_profile\":1,\"ssd\":{\"count\":0}}";
    struct json_value *root = json_parse(text, strlen(text), "x", &err);
    assert_non_null(root);
    p = odd_machine();
    assert_int_equal(profile_merge(&p, root, "x", &err), 0);
    assert_int_equal(p.ssd.count, 0);
    json_free(root);
}

/* A drive of a catalogue is none of this machine's. */
static void test_another_drive(void **state)
{
    (void)state;
    struct profile p = odd_machine();
    struct err err = {0};
    const char *text = "{\"spillway_profile\":1,\"ssd\":{\"count\":0}}";
    struct json_value *root = json_parse(text, strlen(text), "x", &err);
    assert_non_null(root);
    assert_int_equal(profile_merge(&p, root, "x", &err), 0);
    assert_int_equal(p.drive_count, 0);
    json_free(root);
    p = odd_machine();
    strcpy(p.drives[1].mount, p.drives[0].mount);
    assert_int_equal(profile_save(&p, scratch_path("twice.json"), &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "drives[1].mount"));
}

/* The text with another value for the first such field of a section; to be freed. */
static char *with_value(const char *text, const struct expected_field *e, const char *member)
{
    char key[128];
    snprintf(key, sizeof(key), "\"%s\":", e->section);
    const char *at = strstr(text, key);
    assert_non_null(at);
    snprintf(key, sizeof(key), "\"%s\":", e->field);
    at = strstr(at, key);
    assert_non_null(at);
    const char *end = at + strcspn(at, ",\n");
    size_t size = strlen(text) + strlen(member) + 1;
    char *mutated = malloc(size);
    assert_non_null(mutated);
    snprintf(mutated, size, "%.*s%s%s", (int)(at - text), text, member, end);
    return mutated;
}

static void expect_refusal(const char *text, const struct expected_field *e, const char *member)
{
    char *mutated = with_value(text, e, member);
    struct profile p = odd_machine(), before = p;
    struct err err = {0};
    int rc = read_text(&p, mutated, strlen(mutated), &err);
    if (rc != ERR_INPUT || !strstr(err.message, e->shown) || !strstr(err.message, "box.json"))
        fail_msg("%s as %s: %d \"%s\"", e->shown, member, rc, err.message);
    assert_memory_equal(&p, &before, sizeof(p));
    free(mutated);
}

static void test_every_field_refuses(void **state)
{
    (void)state;
    static const char *const bad[][10] = {
        [NAME] = {"\"\"", "7", "true", "\"a\\u0000b\"", "\"a\\nb\"",
                  "\"12345678901234567890123456789012345678901234567890123456789012345678901234567"
                  "8901234567890123456\""},
        [TRUTH] = {"1", "\"true\""},
        [WHOLE] = {"0", "-1", "1.5", "1e19", "9223372036854775807", "\"4\"", "true"},
        [SIZE] = {"-1", "0.5", "1e19", "9223372036854775807", "\"4\"", "true"},
        [RATE] = {"0", "-1e9", "1e30", "\"1e9\"", "false"},
        [MAYBE_RATE] = {"-1e9", "1e30", "\"1e9\"", "false"},
        [LATENCY] = {"-1e-6", "11", "1e300", "\"0\"", "true"},
        [DEPTH] = {"-1", "2.5", "65", "\"3\"", "true"},
        [CHOICE] = {"\"fp16\"", "1", "\"\""},
    };
    char *text = saved_text(), member[256];
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        const struct expected_field *e = &expected[i];
        if (!e->optional)
            expect_refusal(text, e, "\"comment\": 0");
        for (size_t b = 0; b < 10 && bad[e->shape][b]; b++) {
            snprintf(member, sizeof(member), "\"%s\": %s", e->field, bad[e->shape][b]);
            expect_refusal(text, e, member);
        }
        for (size_t b = 0; b < 3; b++) {
            static const char *const never[] = {"null", "[]", "{}"};
            snprintf(member, sizeof(member), "\"%s\": %s", e->field, never[b]);
            expect_refusal(text, e, member);
        }
    }
    free(text);
}

/* Each field's name with a letter more, before the right one. */
static void test_typos_are_refused(void **state)
{
    (void)state;
    char *text = saved_text(), key[128], member[256];
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
        const struct expected_field *e = &expected[i];
        snprintf(key, sizeof(key), "\"%s\":", e->section);
        const char *at = strstr(strstr(text, key), e->field) - 1;
        snprintf(member, sizeof(member), "\"%ss\": 1, \"sources\": {}, ", e->field);
        size_t size = strlen(text) + strlen(member) + 1;
        char *mutated = malloc(size);
        assert_non_null(mutated);
        snprintf(mutated, size, "%.*s%s%s", (int)(at - text), text, member, at);
        snprintf(member, sizeof(member), "%ss is not known", e->shown);
        struct profile p;
        struct err err = {0};
        int rc = read_text(&p, mutated, strlen(mutated), &err);
        if (rc != ERR_INPUT || !strstr(err.message, member))
            fail_msg("%s: %d \"%s\"", member, rc, err.message);
        free(mutated);
    }
    free(text);
}

static void refuse_text(const char *text, const char *message)
{
    struct profile p;
    struct err err = {0};
    int rc = read_text(&p, text, strlen(text), &err);
    if (rc != ERR_INPUT || !strstr(err.message, message))
        fail_msg("%s: %d \"%s\"", text, rc, err.message);
}

static void test_the_file_itself(void **state)
{
    (void)state;
    refuse_text("[]", "object");
    refuse_text("{}", "spillway_profile");
    refuse_text("{\"spillway_profile\":2}", "spillway_profile must be 1");
    refuse_text("{\"spillway_profile\":\"1\"}", "spillway_profile must be 1");
    refuse_text("{\"spillway_profile\":1}", "none of the sections");
    refuse_text("{\"spillway_profile\":1,\"gpu\":{}}", "profile.gpu is not known");
    refuse_text("{\"spillway_profile\":1,\"measured\":1}", "profile.measured");
    refuse_text("{\"spillway_profile\":1,\"name\":7}", "profile.name");
    refuse_text("{\"spillway_profile\":1,\"ssd\":[]}", "ssd must be an object");
    refuse_text("{\"spillway_profile\":1,\"ssd\":{\"count\":0}}", "device is missing");
    refuse_text("{\"spillway_profile\":1,\"box\":{}}", "--machine");
    struct profile p;
    struct err err = {0};
    assert_true(profile_load(&p, scratch_path("absent.json"), &err) != 0);
    assert_non_null(strstr(err.message, "absent.json"));
    assert_true(profile_load(&p, scratch_dir(), &err) != 0);
}

static void test_points_are_counted(void **state)
{
    (void)state;
    struct profile p = odd_machine();
    struct err err = {0};
    while (p.device.point_count < PROFILE_POINTS_MAX) {
        p.device.points[p.device.point_count] = p.device.points[0];
        p.device.points[p.device.point_count].rows = 2000 + p.device.point_count;
        p.device.point_count++;
    }
    const char *path = scratch_path("points.json");
    assert_int_equal(profile_save(&p, path, &err), 0);
    char *text = scratch_read(path);
    struct profile back;
    assert_int_equal(read_text(&back, text, strlen(text), &err), 0);
    assert_memory_equal(&back, &p, sizeof(p));
    /* One more. */
    char *list = strstr(text, "\"points\": [");
    char *first = strchr(list, '{'), *end = strchr(first, '}');
    size_t size = strlen(text) + (size_t)(end - first) + 3;
    char *longer = malloc(size);
    assert_non_null(longer);
    snprintf(longer, size, "%.*s,%s", (int)(end + 1 - text), text, first);
    assert_int_equal(read_text(&back, longer, strlen(longer), &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "device.points must be a list of 1 to 64"));
    free(longer);
    free(text);
    p.device.points[3] = p.device.points[0];
    assert_int_equal(profile_check(&p, "x", &err), ERR_INPUT);
    assert_non_null(strstr(err.message, "device.points[3]"));
    p.device.point_count = 0;
    assert_int_equal(profile_check(&p, "x", &err), ERR_INPUT);
}

/* Each alters one figure of a sane machine so that it contradicts another. */
static void test_contradictions(void **state)
{
    (void)state;
    static const char *const named[] = {
        "ssd.mixed_read_bytes_per_s",
        "ssd.mixed_write_bytes_per_s",
        "ssd.sustained_write",
        "ssd.endurance_bytes",
        "ssd.fast_cache_bytes",
        "device.h2d_both_bytes_per_s",
        "device.d2h_both_bytes_per_s",
        "device.vram_bytes",
        "device.vram_bytes",
        "device.reserve_bytes",
        "cpu.threads",
        "device.count",
        "ram.bytes_per_s",
        "ram.bytes_per_s",
        "device.points[1].head_forward",
    };
    for (size_t i = 0; i < sizeof(named) / sizeof(named[0]); i++) {
        struct profile p = odd_machine();
        switch (i) {
        case 0:
            p.ssd.mixed_read_bytes_per_s = p.ssd.read_bytes_per_s * 1.06;
            break;
        case 1:
            p.ssd.mixed_write_bytes_per_s = p.ssd.write_bytes_per_s * 1.06;
            break;
        case 2:
            p.ssd.sustained_write_bytes_per_s = p.ssd.write_bytes_per_s * 1.06;
            break;
        case 3:
            p.ssd.endurance_bytes = 1200;
            break;
        case 4:
            p.ssd.fast_cache_bytes = p.ssd.capacity_bytes + 1;
            break;
        case 5:
            p.device.h2d_both_bytes_per_s = p.device.h2d_bytes_per_s * 1.06;
            break;
        case 6:
            p.device.d2h_both_bytes_per_s = p.device.d2h_bytes_per_s * 1.06;
            break;
        case 7:
            p.device.is_cpu = true;
            break;
        case 8:
            p.device.vram_bytes = 0;
            break;
        case 9:
            p.device.reserve_bytes = p.device.vram_bytes + 1;
            break;
        case 10:
            p.cpu.threads = p.cpu.cores - 1;
            break;
        case 11:
            p.device.is_cpu = true;
            p.device.vram_bytes = 0;
            break;
        case 12:
            p.ram.bytes_per_s = NAN;
            break;
        case 13:
            p.ram.bytes_per_s = INFINITY;
            break;
        case 14:
            p.device.points[1].flops_per_s[PROFILE_HEAD_FORWARD] = 0;
            break;
        }
        struct err err = {0};
        assert_int_equal(profile_save(&p, scratch_path("never.json"), &err), ERR_INPUT);
        if (!strstr(err.message, named[i]))
            fail_msg("%s: \"%s\"", named[i], err.message);
    }
    /* What two measurements one after the other may differ by is no contradiction. */
    struct profile p = odd_machine();
    struct err err = {0};
    p.ssd.mixed_read_bytes_per_s = p.ssd.read_bytes_per_s * 1.04;
    p.device.d2h_both_bytes_per_s = p.device.d2h_bytes_per_s * 1.04;
    assert_int_equal(profile_check(&p, "x", &err), 0);
}

static void test_merge(void **state)
{
    (void)state;
    const char *text =
        "{\"spillway_profile\":1,\"name\":\"part\",\"measured\":true,\"comment\":\"c\","
        "\"ram\":{\"bytes\":2e9,\"bytes_per_s\":5e10,\"sources\":{\"bytes\":\"x\"}}}";
    struct err err = {0};
    struct json_value *root = json_parse(text, strlen(text), "part.json", &err);
    struct profile p = odd_machine(), before = p;
    assert_int_equal(profile_merge(&p, root, "part.json", &err), 0);
    assert_int_equal(p.ram.bytes, 2000000000);
    assert_true(p.ram.bytes_per_s == 5e10);
    assert_int_equal(p.ram.mts, 0); /* whole sections: nothing of the old one stays */
    p.ram = before.ram;
    assert_memory_equal(&p, &before, sizeof(p));
    json_free(root);
}

static void read_any(const char *text, size_t bytes)
{
    struct profile p;
    struct err err = {0};
    if (read_text(&p, text, bytes, &err) == 0)
        assert_int_equal(profile_check(&p, "x", &err), 0);
    else
        assert_true(err.code != 0 && err.message[0]);
}

static void test_fuzz(void **state)
{
    (void)state;
    static const char bytes[] = "{}[]\",:0123456789.eE+-ntf\\ \n\0\xff";
    char *text = saved_text();
    size_t length = strlen(text);
    for (size_t cut = 0; cut < length; cut++)
        read_any(text, cut);
    char *mutated = malloc(length);
    assert_non_null(mutated);
    for (uint64_t round = 0; round < FUZZ_ROUNDS; round++) {
        memcpy(mutated, text, length);
        uint64_t changes = 1 + rng_u64(1, round, 0) % 3;
        for (uint64_t c = 0; c < changes; c++) {
            uint64_t random = rng_u64(1, round, c + 1);
            mutated[random % length] = bytes[(random >> 40) % sizeof(bytes)];
        }
        read_any(mutated, length);
    }
    free(mutated);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_card),
        cmocka_unit_test(test_digits),
        cmocka_unit_test(test_without_a_drive),
        cmocka_unit_test(test_another_drive),
        cmocka_unit_test(test_every_field_refuses),
        cmocka_unit_test(test_typos_are_refused),
        cmocka_unit_test(test_the_file_itself),
        cmocka_unit_test(test_points_are_counted),
        cmocka_unit_test(test_contradictions),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_fuzz),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
