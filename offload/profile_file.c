#include "offload/profile_file.h"

#include "core/base.h"
#include "core/fields.h"
#include "core/json.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define FORMAT_VERSION 1
#define WHAT_MAX       4200 /* a path, and some */

/* ---- The fields ------------------------------------------------------------------------------ */

/* Ranges are there to catch a unit mistaken (GB for bytes, microseconds for seconds), not to judge
 * machines: from a floppy disk to what no memory will reach in a lifetime. */
#define RATE_LEAST     1e3
#define RATE_MOST      1e15
#define FLOPS_LEAST    1e6
#define FLOPS_MOST     1e18
#define LATENCY_MOST   10
#define SIZE_MOST      1e16
#define ENDURANCE_MOST 1e18
#define DEVICES_MOST   1024
#define CORES_MOST     65536
#define WIDTH_MOST     1e6
#define ROWS_MOST      1e9
/* Two figures that were measured one after the other may contradict each other by this much. */
#define SLACK 1.05

#define AT(type, name)           #name, .offset = offsetof(struct type, name)
#define FLAG(type, field)        AT(type, field), .kind = FIELD_BOOL, .required = true
#define COUNT(type, field, l, m) NUMBER(type, field, FIELD_U32, l, m)
#define SIZE(type, field, m)     NUMBER(type, field, FIELD_U64, 0, m)
#define RATE(type, field)        NUMBER(type, field, FIELD_DOUBLE, RATE_LEAST, RATE_MOST)
#define LATENCY(type, field)     NUMBER(type, field, FIELD_DOUBLE, 0, LATENCY_MOST)
#define NUMBER(type, field, k, l, m)                                                               \
    AT(type, field), .kind = k, .required = true, .least = l, .most = m
#define NAME(type)                                                                                 \
    AT(type, name), .kind = FIELD_TEXT, .required = true, .least = 1, .most = PROFILE_NAME_MAX - 1
/* 0, or left out: not known. */
#define MAYBE_SIZE(type, field, m)  AT(type, field), .kind = FIELD_U64, .most = m
#define MAYBE_COUNT(type, field, m) AT(type, field), .kind = FIELD_U32, .most = m

#define MAYBE_RATE(type, field) AT(type, field), .kind = FIELD_DOUBLE, .most = RATE_MOST

static const struct field device_fields[] = {
    {NAME(profile_device)},
    {FLAG(profile_device, is_cpu)},
    {COUNT(profile_device, count, 1, DEVICES_MOST)},
    {SIZE(profile_device, vram_bytes, SIZE_MOST)},
    {SIZE(profile_device, reserve_bytes, SIZE_MOST)},
    {SIZE(profile_device, overhead_bytes, SIZE_MOST)},
    {RATE(profile_device, stream_bytes_per_s)},
    {RATE(profile_device, h2d_bytes_per_s)},
    {RATE(profile_device, d2h_bytes_per_s)},
    {RATE(profile_device, h2d_both_bytes_per_s)},
    {RATE(profile_device, d2h_both_bytes_per_s)},
    {LATENCY(profile_device, copy_latency_s)},
    {LATENCY(profile_device, launch_s)},
    {.name = "points", .kind = FIELD_OTHER, .required = true},
};

static const struct field cpu_fields[] = {
    {NAME(profile_cpu)},
    {COUNT(profile_cpu, cores, 1, CORES_MOST)},
    {COUNT(profile_cpu, threads, 1, CORES_MOST)},
    {MAYBE_SIZE(profile_cpu, l2_bytes, SIZE_MOST)},
    {MAYBE_SIZE(profile_cpu, l3_bytes, SIZE_MOST)},
    {RATE(profile_cpu, optimizer_parameters_per_s)},
    {MAYBE_RATE(profile_cpu, optimizer_bf16_parameters_per_s)},
    {MAYBE_RATE(profile_cpu, optimizer_8bit_parameters_per_s)},
    {RATE(profile_cpu, checksum_bytes_per_s)},
    {MAYBE_RATE(profile_cpu, cached_checksum_bytes_per_s)},
    {RATE(profile_cpu, copy_bytes_per_s)},
    {RATE(profile_cpu, join_parameters_per_s)},
    {LATENCY(profile_cpu, launch_s)},
};

static const struct field ram_fields[] = {
    {SIZE(profile_ram, bytes, SIZE_MOST)},
    {RATE(profile_ram, bytes_per_s)},
    {MAYBE_COUNT(profile_ram, mts, 1e6)},
    {MAYBE_COUNT(profile_ram, dimms, DEVICES_MOST)},
};

static const struct field ssd_fields[] = {
    {NAME(profile_ssd)},
    {COUNT(profile_ssd, count, 0, DEVICES_MOST)},
    {RATE(profile_ssd, read_bytes_per_s)},
    {RATE(profile_ssd, write_bytes_per_s)},
    {RATE(profile_ssd, mixed_read_bytes_per_s)},
    {RATE(profile_ssd, mixed_write_bytes_per_s)},
    {RATE(profile_ssd, sustained_write_bytes_per_s)},
    {MAYBE_SIZE(profile_ssd, fast_cache_bytes, SIZE_MOST)},
    {MAYBE_SIZE(profile_ssd, capacity_bytes, SIZE_MOST)},
    {MAYBE_SIZE(profile_ssd, endurance_bytes, ENDURANCE_MOST)},
    {LATENCY(profile_ssd, read_latency_s)},
    {LATENCY(profile_ssd, write_latency_s)},
    {MAYBE_COUNT(profile_ssd, queue_depth, PROFILE_QUEUE_DEPTH_MAX)},
};

/* A machine without a drive has no figures of one: {"count": 0} is enough. */
#define NO_RATE(field) MAYBE_RATE(profile_ssd, field)
static const struct field no_ssd_fields[] = {
    {AT(profile_ssd, name), .kind = FIELD_TEXT, .most = PROFILE_NAME_MAX - 1},
    {COUNT(profile_ssd, count, 0, 0)},
    {NO_RATE(read_bytes_per_s)},
    {NO_RATE(write_bytes_per_s)},
    {NO_RATE(mixed_read_bytes_per_s)},
    {NO_RATE(mixed_write_bytes_per_s)},
    {NO_RATE(sustained_write_bytes_per_s)},
    {MAYBE_SIZE(profile_ssd, fast_cache_bytes, SIZE_MOST)},
    {MAYBE_SIZE(profile_ssd, capacity_bytes, SIZE_MOST)},
    {MAYBE_SIZE(profile_ssd, endurance_bytes, ENDURANCE_MOST)},
    {AT(profile_ssd, read_latency_s), .kind = FIELD_DOUBLE, .most = LATENCY_MOST},
    {AT(profile_ssd, write_latency_s), .kind = FIELD_DOUBLE, .most = LATENCY_MOST},
    {MAYBE_COUNT(profile_ssd, queue_depth, PROFILE_QUEUE_DEPTH_MAX)},
};

static const char *const precision_names[] = {[PRECISION_FP32] = "fp32", [PRECISION_BF16] = "bf16"};

#define KERNEL(index, text)                                                                        \
    .name = text "_flops_per_s", .kind = FIELD_DOUBLE, .required = true,                           \
    .offset = offsetof(struct profile_point, flops_per_s) + (index) * sizeof(double),              \
    .least = FLOPS_LEAST, .most = FLOPS_MOST
static const struct field point_fields[] = {
    {AT(profile_point, precision), .kind = FIELD_CHOICE, .required = true,
     .most = ARRAY_COUNT(precision_names) - 1, .choices = precision_names},
    {COUNT(profile_point, channels, 1, WIDTH_MOST)},
    {COUNT(profile_point, rows, 1, ROWS_MOST)},
    {KERNEL(PROFILE_BLOCK_FORWARD, "block_forward")},
    {KERNEL(PROFILE_BLOCK_BACKWARD, "block_backward")},
    {KERNEL(PROFILE_ATTENTION_FORWARD, "attention_forward")},
    {KERNEL(PROFILE_ATTENTION_BACKWARD, "attention_backward")},
    {KERNEL(PROFILE_HEAD_FORWARD, "head_forward")},
    {KERNEL(PROFILE_HEAD_BACKWARD, "head_backward")},
};
_Static_assert(PROFILE_KERNEL_COUNT == 6, "a row above for every kernel");

static const struct field drive_fields[] = {
    {AT(profile_drive, mount), .kind = FIELD_TEXT, .required = true, .least = 1,
     .most = PROFILE_NAME_MAX - 1},
    {RATE(profile_drive, read_bytes_per_s)},
    {RATE(profile_drive, write_bytes_per_s)},
    {RATE(profile_drive, mixed_read_bytes_per_s)},
    {RATE(profile_drive, mixed_write_bytes_per_s)},
    {RATE(profile_drive, sustained_write_bytes_per_s)},
};
static const struct fields drive = {drive_fields, ARRAY_COUNT(drive_fields)};

enum section { SECTION_DEVICE, SECTION_CPU, SECTION_RAM, SECTION_SSD, SECTION_COUNT };
static const struct {
    const char *name;
    struct fields fields;
    size_t offset;
} sections[SECTION_COUNT] = {
    {"device", {device_fields, ARRAY_COUNT(device_fields)}, offsetof(struct profile, device)},
    {"cpu", {cpu_fields, ARRAY_COUNT(cpu_fields)}, offsetof(struct profile, cpu)},
    {"ram", {ram_fields, ARRAY_COUNT(ram_fields)}, offsetof(struct profile, ram)},
    {"ssd", {ssd_fields, ARRAY_COUNT(ssd_fields)}, offsetof(struct profile, ssd)},
};
static const struct fields no_ssd = {no_ssd_fields, ARRAY_COUNT(no_ssd_fields)};
static const struct fields point = {point_fields, ARRAY_COUNT(point_fields)};

/* ---- Checking -------------------------------------------------------------------------------- */

#define ENTRY_NAME_MAX 32
static struct fields_at at_entry(char name[ENTRY_NAME_MAX], const char *what, const char *list,
                                 uint32_t index)
{
    snprintf(name, ENTRY_NAME_MAX, "%s[%u]", list, index);
    return (struct fields_at){what, name};
}

static bool same_shape(const struct profile_point *a, const struct profile_point *b)
{
    return a->precision == b->precision && a->channels == b->channels && a->rows == b->rows;
}

static int check_points(const struct profile_device *device, const char *what, struct err *err)
{
    if (device->point_count < 1 || device->point_count > PROFILE_POINTS_MAX)
        return err_set(err, ERR_INPUT, "%s: device.points must have from 1 to %d points, not %u",
                       what, PROFILE_POINTS_MAX, device->point_count);
    for (uint32_t i = 0; i < device->point_count; i++) {
        char name[ENTRY_NAME_MAX];
        int rc =
            fields_check(&point, &device->points[i], at_entry(name, what, "device.points", i), err);
        if (rc)
            return rc;
        for (uint32_t j = 0; j < i; j++)
            if (same_shape(&device->points[i], &device->points[j]))
                return err_set(err, ERR_INPUT,
                               "%s: device.points[%u].rows: points %u and %u are of the same "
                               "precision, channels and rows",
                               what, i, j, i);
    }
    return 0;
}

struct pair {
    const char *less_name, *more_name;
    double less, more;
};

/* What cannot be more than something else. */
static int check_pairs(const struct pair *pairs, size_t count, const char *what, struct err *err)
{
    for (size_t i = 0; i < count; i++)
        if (!(pairs[i].less <= pairs[i].more))
            return err_set(err, ERR_INPUT, "%s: %s (%.6g) must be at most %s (%.6g)", what,
                           pairs[i].less_name, pairs[i].less, pairs[i].more_name, pairs[i].more);
    return 0;
}

static int check_device(const struct profile_device *d, const char *what, struct err *err)
{
    if (d->is_cpu && d->vram_bytes)
        return err_set(err, ERR_INPUT,
                       "%s: device.vram_bytes must be 0 where device.is_cpu is true: the processor "
                       "has no memory of its own",
                       what);
    if (d->is_cpu && d->count != 1)
        return err_set(err, ERR_INPUT, "%s: device.count must be 1 where device.is_cpu is true",
                       what);
    if (!d->is_cpu && !d->vram_bytes)
        return err_set(err, ERR_INPUT,
                       "%s: device.vram_bytes must be above 0 where device.is_cpu is false", what);
    const struct pair pairs[] = {
        {"device.h2d_both_bytes_per_s", "1.05 times device.h2d_bytes_per_s",
         d->h2d_both_bytes_per_s, d->h2d_bytes_per_s * SLACK},
        {"device.d2h_both_bytes_per_s", "1.05 times device.d2h_bytes_per_s",
         d->d2h_both_bytes_per_s, d->d2h_bytes_per_s * SLACK},
        {"device.reserve_bytes", "device.vram_bytes", (double)d->reserve_bytes,
         d->is_cpu ? SIZE_MOST : (double)d->vram_bytes},
    };
    int rc = check_pairs(pairs, ARRAY_COUNT(pairs), what, err);
    return rc ? rc : check_points(d, what, err);
}

static int check_cpu(const struct profile_cpu *cpu, const char *what, struct err *err)
{
    const struct pair pair = {"cpu.cores", "cpu.threads", cpu->cores, cpu->threads};
    return check_pairs(&pair, 1, what, err);
}

static int check_ssd(const struct profile_ssd *ssd, const char *what, struct err *err)
{
    const struct pair pairs[] = {
        {"ssd.mixed_read_bytes_per_s", "1.05 times ssd.read_bytes_per_s",
         ssd->mixed_read_bytes_per_s, ssd->read_bytes_per_s * SLACK},
        {"ssd.mixed_write_bytes_per_s", "1.05 times ssd.write_bytes_per_s",
         ssd->mixed_write_bytes_per_s, ssd->write_bytes_per_s * SLACK},
        {"ssd.sustained_write_bytes_per_s", "1.05 times ssd.write_bytes_per_s",
         ssd->sustained_write_bytes_per_s, ssd->write_bytes_per_s * SLACK},
        {"ssd.fast_cache_bytes", "ssd.capacity_bytes", (double)ssd->fast_cache_bytes,
         ssd->capacity_bytes ? (double)ssd->capacity_bytes : SIZE_MOST},
        /* A drive that may not be filled once: terabytes mistaken for bytes. */
        {"ssd.capacity_bytes", "ssd.endurance_bytes", (double)ssd->capacity_bytes,
         ssd->endurance_bytes ? (double)ssd->endurance_bytes : SIZE_MOST},
    };
    return ssd->count ? check_pairs(pairs, ARRAY_COUNT(pairs), what, err) : 0;
}

static int check_drives(const struct profile *profile, const char *what, struct err *err)
{
    int rc = 0;
    ASSERT(profile->drive_count <= PROFILE_DRIVES_MAX);
    for (uint32_t d = 0; d < profile->drive_count && !rc; d++) {
        char name[ENTRY_NAME_MAX];
        rc = fields_check(&drive, &profile->drives[d], at_entry(name, what, "drives", d), err);
        for (uint32_t e = 0; e < d && !rc; e++)
            if (strcmp(profile->drives[d].mount, profile->drives[e].mount) == 0)
                rc = err_set(err, ERR_INPUT, "%s: drives[%u].mount: drives[%u] is the same one",
                             what, d, e);
    }
    return rc;
}

/* A card's figures are a device's: messages name them as such, after this. */
static const char *card_of(char text[WHAT_MAX], const char *what)
{
    snprintf(text, WHAT_MAX, "%s, card", what);
    return text;
}

static int check_card(const struct profile *profile, const char *what, struct err *err)
{
    char card[WHAT_MAX];
    if (!profile->card.point_count)
        return 0;
    if (profile->card.is_cpu)
        return err_set(err, ERR_INPUT, "%s: card.is_cpu must be false", what);
    int rc = fields_check(&sections[SECTION_DEVICE].fields, &profile->card,
                          (struct fields_at){what, "card"}, err);
    return rc ? rc : check_device(&profile->card, card_of(card, what), err);
}

static const struct fields *fields_of(enum section section, bool has_ssd)
{
    return section == SECTION_SSD && !has_ssd ? &no_ssd : &sections[section].fields;
}

static int check_section(const struct profile *profile, enum section section, const char *what,
                         struct err *err)
{
    const void *record = (const char *)profile + sections[section].offset;
    const struct fields *fields = fields_of(section, profile->ssd.count > 0);
    int rc = fields_check(fields, record, (struct fields_at){what, sections[section].name}, err);
    if (rc)
        return rc;
    switch (section) {
    case SECTION_DEVICE:
        return check_device(&profile->device, what, err);
    case SECTION_CPU:
        return check_cpu(&profile->cpu, what, err);
    case SECTION_SSD:
        return check_ssd(&profile->ssd, what, err);
    default:
        return 0;
    }
}

/* The members of the file itself. */
static const struct field root_fields[] = {
    {.name = "spillway_profile", .kind = FIELD_OTHER, .required = true},
    {AT(profile, name), .kind = FIELD_TEXT, .least = 1, .most = PROFILE_NAME_MAX - 1},
    {AT(profile, measured), .kind = FIELD_BOOL},
    {.name = "date", .kind = FIELD_OTHER},
    {.name = "device", .kind = FIELD_OTHER},
    {.name = "cpu", .kind = FIELD_OTHER},
    {.name = "ram", .kind = FIELD_OTHER},
    {.name = "ssd", .kind = FIELD_OTHER},
    {.name = "drives", .kind = FIELD_OTHER},
    {.name = "card", .kind = FIELD_OTHER},
    {.name = "board", .kind = FIELD_OTHER},
};
static const struct fields root_of_file = {root_fields, ARRAY_COUNT(root_fields)};

int profile_check(const struct profile *profile, const char *what, struct err *err)
{
    int rc = fields_check(&root_of_file, profile, (struct fields_at){what, "profile"}, err);
    for (uint32_t s = 0; s < SECTION_COUNT && !rc; s++)
        rc = check_section(profile, s, what, err);
    if (!rc)
        rc = check_card(profile, what, err);
    return rc ? rc : check_drives(profile, what, err);
}

/* ---- Reading --------------------------------------------------------------------------------- */

static int read_points(struct profile_device *device, const struct json_value *array,
                       const char *what, struct err *err)
{
    size_t count = json_length(array);
    if (json_kind(array) != JSON_KIND_ARRAY || count < 1 || count > PROFILE_POINTS_MAX)
        return err_set(err, ERR_INPUT, "%s: device.points must be a list of 1 to %d points", what,
                       PROFILE_POINTS_MAX);
    device->point_count = (uint32_t)count;
    int rc = 0;
    for (uint32_t i = 0; i < count && !rc; i++) {
        char name[ENTRY_NAME_MAX];
        rc = fields_read(&point, &device->points[i], json_at(array, i),
                         at_entry(name, what, "device.points", i), err);
    }
    return rc;
}

/* The drives of section ssd one by one, which few files have. */
static int read_drives(struct profile *profile, const struct json_value *array, const char *what,
                       struct err *err)
{
    size_t count = json_length(array);
    profile->drive_count = 0;
    if (!array)
        return 0;
    if (json_kind(array) != JSON_KIND_ARRAY || count > PROFILE_DRIVES_MAX)
        return err_set(err, ERR_INPUT, "%s: drives must be a list of at most %d drives", what,
                       PROFILE_DRIVES_MAX);
    for (uint32_t d = 0; d < count; d++) {
        char name[ENTRY_NAME_MAX];
        int rc = fields_read(&drive, &profile->drives[d], json_at(array, d),
                             at_entry(name, what, "drives", d), err);
        if (rc)
            return rc;
        profile->drive_count++;
    }
    return check_drives(profile, what, err);
}

static int read_card(struct profile *profile, const struct json_value *object, const char *what,
                     struct err *err)
{
    char card[WHAT_MAX];
    if (!object)
        return 0;
    profile->card = (struct profile_device){0};
    int rc = fields_read(&sections[SECTION_DEVICE].fields, &profile->card, object,
                         (struct fields_at){what, "card"}, err);
    if (!rc)
        rc = read_points(&profile->card, json_get(object, "points"), card_of(card, what), err);
    return rc ? rc : check_card(profile, what, err);
}

static int read_section(struct profile *profile, enum section section,
                        const struct json_value *object, const char *what, struct err *err)
{
    static const size_t bytes[SECTION_COUNT] = {
        sizeof(struct profile_device), sizeof(struct profile_cpu), sizeof(struct profile_ram),
        sizeof(struct profile_ssd)};
    void *record = (char *)profile + sections[section].offset;
    memset(record, 0, bytes[section]);
    bool has_ssd = json_get_number(object, "count", 1) != 0;
    int rc = fields_read(fields_of(section, has_ssd), record, object,
                         (struct fields_at){what, sections[section].name}, err);
    if (!rc && section == SECTION_DEVICE)
        rc = read_points(&profile->device, json_get(object, "points"), what, err);
    return rc ? rc : check_section(profile, section, what, err);
}

/* The sections that root has, whether name and measured are taken too or not. */
static int read_root(struct profile *profile, const struct json_value *root, const char *what,
                     struct err *err)
{
    if (json_kind(root) != JSON_KIND_OBJECT)
        return err_set(err, ERR_INPUT, "%s: a machine's profile must be a JSON object", what);
    if (json_get(root, "box"))
        return err_set(err, ERR_INPUT,
                       "%s: it names the parts of a machine and has no figures itself; give it as "
                       "--machine",
                       what);
    int rc = fields_read(&root_of_file, profile, root, (struct fields_at){what, "profile"}, err);
    if (rc)
        return rc;
    if (json_get_number(root, "spillway_profile", 0) != FORMAT_VERSION)
        return err_set(
            err, ERR_INPUT,
            "%s: profile.spillway_profile must be %d: this program reads no other format", what,
            FORMAT_VERSION);
    uint32_t found = 0;
    for (uint32_t s = 0; s < SECTION_COUNT && !rc; s++) {
        const struct json_value *object = json_get(root, sections[s].name);
        if (!object)
            continue;
        found++;
        rc = read_section(profile, s, object, what, err);
        if (!rc && s == SECTION_SSD)
            rc = read_drives(profile, json_get(root, "drives"), what, err);
    }
    if (!rc)
        rc = read_card(profile, json_get(root, "card"), what, err);
    if (!rc && !found)
        rc = err_set(err, ERR_INPUT, "%s: it has none of the sections device, cpu, ram and ssd",
                     what);
    return rc;
}

int profile_merge(struct profile *profile, const struct json_value *root, const char *what,
                  struct err *err)
{
    struct profile merged = *profile;
    int rc = read_root(&merged, root, what, err);
    if (rc)
        return rc;
    memcpy(merged.name, profile->name, sizeof(merged.name));
    merged.measured = profile->measured;
    *profile = merged;
    return 0;
}

int profile_read(struct profile *profile, const struct json_value *root, const char *what,
                 struct err *err)
{
    struct profile read = {0};
    int rc = read_root(&read, root, what, err);
    for (uint32_t s = 0; s < SECTION_COUNT && !rc; s++)
        if (!json_get(root, sections[s].name))
            rc = err_set(err, ERR_INPUT,
                         "%s: %s is missing: a machine has the sections device, cpu, ram and ssd",
                         what, sections[s].name);
    if (!rc && !read.name[0])
        rc = err_set(err, ERR_INPUT, "%s: profile.name is missing", what);
    if (!rc)
        *profile = read;
    return rc;
}

int profile_load(struct profile *profile, const char *path, struct err *err)
{
    struct json_value *root = json_load(path, err);
    if (!root)
        return err->code;
    int rc = profile_read(profile, root, path, err);
    json_free(root);
    return rc;
}

/* ---- Writing --------------------------------------------------------------------------------- */

static struct json_value *written_points(const struct profile_device *device)
{
    struct json_value *array = json_new_array();
    for (uint32_t i = 0; i < device->point_count; i++) {
        struct json_value *object = json_new_object();
        fields_write(&point, &device->points[i], object);
        json_append(array, object);
    }
    return array;
}

static struct json_value *written_drives(const struct profile *profile)
{
    struct json_value *array = json_new_array();
    for (uint32_t d = 0; d < profile->drive_count; d++) {
        struct json_value *object = json_new_object();
        fields_write(&drive, &profile->drives[d], object);
        json_append(array, object);
    }
    return array;
}

static void write_date(struct json_value *root)
{
    char text[32];
    time_t now = time(NULL);
    struct tm tm;
    if (gmtime_r(&now, &tm) && strftime(text, sizeof(text), "%Y-%m-%d", &tm))
        json_set_string(root, "date", text);
}

int profile_save(const struct profile *profile, const char *path, struct err *err)
{
    int rc = profile_check(profile, path, err);
    if (rc)
        return rc;
    struct json_value *root = json_new_object();
    json_set_int(root, "spillway_profile", FORMAT_VERSION);
    fields_write(&root_of_file, profile, root);
    if (profile->measured)
        write_date(root);
    for (uint32_t s = 0; s < SECTION_COUNT; s++) {
        struct json_value *object = json_new_object();
        fields_write(fields_of(s, profile->ssd.count > 0),
                     (const char *)profile + sections[s].offset, object);
        if (s == SECTION_DEVICE)
            json_set(object, "points", written_points(&profile->device));
        json_set(root, sections[s].name, object);
    }
    if (profile->card.point_count) {
        struct json_value *object = json_new_object();
        fields_write(&sections[SECTION_DEVICE].fields, &profile->card, object);
        json_set(object, "points", written_points(&profile->card));
        json_set(root, "card", object);
    }
    if (profile->drive_count)
        json_set(root, "drives", written_drives(profile));
    rc = json_save(root, path, err);
    json_free(root);
    return rc;
}
