#include "tools/machine.h"

#include "core/args.h"
#include "core/base.h"
#include "core/fields.h"
#include "core/json.h"
#include "offload/profile_file.h"
#include "tools/machines.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_MAX_BYTES 128
#define DEVICES_MAX    64
#define RAM_LEAST      GIB
#define RAM_MOST       (64 * 1024 * GIB)
#define MTS_LEAST      800
#define MTS_MOST       20000
/* Kits of two DIMMs end at 2 x 48 GB; what is more has a DIMM in every slot of a desktop board. */
#define TWO_DIMMS_BYTES (96 * GIB)
/* What a pass moves in RAM for a parameter: AdamW reads and writes 12 bytes of state, or 8 or 6,
 * and reads a gradient of 4; a join reads hi and lo and writes 4 bytes. */
#define OPTIMIZER_BYTES      28.0
#define OPTIMIZER_BF16_BYTES 20.0
#define OPTIMIZER_8BIT_BYTES 16.0
#define JOIN_BYTES           8.0
/* A measured rate within this of what RAM allows was bound by RAM, and goes with it. */
#define RAM_BOUND 0.8
/* Of a card's memory a driver shows some less. */
#define VRAM_SLACK 0.1
/* What no drive on a PCIe 4.0 link of 4 lanes reads. */
#define GEN4_SSD_BYTES_PER_S 8e9

/* ---- Boards ---------------------------------------------------------------------------------- */

/* The "board" section. A GPU's and a drive's say what they can use, a processor's what its boards
 * have; the RAM's fields are a processor's only. */
struct board {
    uint32_t pcie_gen;            /* 0: not known */
    uint32_t pcie_lanes;          /* of the slot of the only GPU, or that a card can use */
    uint32_t pcie_lanes_two_gpus; /* of each slot when there are two */
    bool gen5_ssd_halves_gpu_slot;
    uint32_t channels;
    uint32_t mts_2_dimms, mts_4_dimms;
    double ram_efficiency;      /* of mts * 8 bytes * channels in practice */
    double ram_bytes_per_s_max; /* whatever the DIMMs */
    uint64_t ram_bytes_max;
};

#define AT(member)          #member, .offset = offsetof(struct board, member), .required = true
#define WHOLE(member, l, m) AT(member), .kind = FIELD_U32, .least = l, .most = m
#define GEN_LEAST           3
#define GEN_MOST            5
static const struct field board_fields[] = {
    {WHOLE(pcie_gen, GEN_LEAST, GEN_MOST)},
    {WHOLE(pcie_lanes, 1, 16)},
    {WHOLE(pcie_lanes_two_gpus, 1, 16)},
    {AT(gen5_ssd_halves_gpu_slot), .kind = FIELD_BOOL},
    {WHOLE(channels, 1, 16)},
    {WHOLE(mts_2_dimms, MTS_LEAST, MTS_MOST)},
    {WHOLE(mts_4_dimms, MTS_LEAST, MTS_MOST)},
    {AT(ram_efficiency), .kind = FIELD_DOUBLE, .least = 0.1, .most = 1},
    {AT(ram_bytes_per_s_max), .kind = FIELD_DOUBLE, .least = 1e9, .most = 1e13},
    {AT(ram_bytes_max), .kind = FIELD_U64, .least = (double)GIB, .most = 1e14},
};
/* How many of them, from the first, a part of each kind has. */
static const size_t board_field_count[MACHINES_KIND_COUNT] = {
    [MACHINES_GPU] = 2, [MACHINES_CPU] = ARRAY_COUNT(board_fields), [MACHINES_SSD] = 1};

/* What a link of 16 lanes and a drive's of 4 carry. GPUs: pinned copies, 12 GB/s (gen 3), 25 to 26
 * (gen 4), 56.3 and 57.3, and 50.9 with both directions busy (gen 5, an RTX 5090); both directions
 * of gens 3 and 4 have the same share of one, which is not confirmed. Drives: the fastest read
 * known of each generation (970 EVO Plus, 990 Pro, 9100 Pro). */
struct link {
    double h2d, d2h, h2d_both, d2h_both, ssd;
};
static const struct link links[GEN_MOST - GEN_LEAST + 1] = {
    {12e9, 12e9, 10.8e9, 10.8e9, 3.5e9},
    {25.5e9, 25.5e9, 23e9, 23e9, 7.45e9},
    {56.3e9, 57.3e9, 50.9e9, 50.9e9, 14.8e9},
};

static const struct link *link_of(uint32_t gen)
{
    ASSERT(gen >= GEN_LEAST && gen <= GEN_MOST);
    return &links[gen - GEN_LEAST];
}

static int board_read(struct board *board, const struct json_value *root, enum machines_kind kind,
                      const char *what, struct err *err)
{
    struct fields fields = {board_fields, board_field_count[kind]};
    *board = (struct board){0};
    return fields_read(&fields, board, json_get(root, "board"), (struct fields_at){what, "board"},
                       err);
}

/* ---- Finding parts --------------------------------------------------------------------------- */

static const char *const kind_name[MACHINES_KIND_COUNT] = {"GPU", "processor", "drive", "machine"};
static const char *const kind_section[MACHINES_KIND_COUNT] = {"device", "cpu", "ssd", "box"};
static const char *const kind_option[MACHINES_KIND_COUNT] = {"--gpu", "--cpu", "--ssd",
                                                             "--machine"};

/* Lower case without '-', '_' and spaces. */
static void plain_name(char plain[NAME_MAX_BYTES], const char *name)
{
    size_t used = 0;
    for (; *name && used < NAME_MAX_BYTES - 1; name++)
        if (*name != '-' && *name != '_' && *name != ' ')
            plain[used++] = (char)tolower((unsigned char)*name);
    plain[used] = 0;
}

static bool same_name(const char *a, const char *b)
{
    char plain_a[NAME_MAX_BYTES], plain_b[NAME_MAX_BYTES];
    plain_name(plain_a, a);
    plain_name(plain_b, b);
    return strcmp(plain_a, plain_b) == 0;
}

static bool is_path(const char *name)
{
    size_t bytes = strlen(name);
    return strchr(name, '/') || (bytes > 5 && strcmp(name + bytes - 5, ".json") == 0);
}

static const struct machines_file *find_known(enum machines_kind kind, const char *name)
{
    for (size_t i = 0; i < machines_count; i++)
        if (machines_files[i].kind == kind && same_name(machines_files[i].name, name))
            return &machines_files[i];
    return NULL;
}

/* The processor that a name such as the kernel gives speaks of: the longest name in it, so that a
 * 7950X3D is no 7950X. */
static const struct machines_file *find_cpu_in(const char *text)
{
    char plain_text[NAME_MAX_BYTES], plain[NAME_MAX_BYTES];
    plain_name(plain_text, text);
    const struct machines_file *found = NULL;
    for (size_t i = 0; i < machines_count; i++) {
        const struct machines_file *file = &machines_files[i];
        plain_name(plain, file->name);
        if (file->kind == MACHINES_CPU && strstr(plain_text, plain) &&
            (!found || strlen(file->name) > strlen(found->name)))
            found = file;
    }
    return found;
}

/* What follows in the names of cards that are other cards. */
static bool is_variant(const char *rest)
{
    static const char *const variants[] = {"ti", "super", "laptop", "mobile", "max",
                                           "d",  "pcie",  "nvl",    "ada"};
    for (size_t i = 0; i < ARRAY_COUNT(variants); i++)
        if (strncmp(rest, variants[i], strlen(variants[i])) == 0)
            return true;
    return strstr(rest, "mig") != NULL;
}

static bool is_card(const struct machines_file *file, const char *text)
{
    char plain_text[NAME_MAX_BYTES], plain[NAME_MAX_BYTES];
    plain_name(plain_text, text);
    plain_name(plain, file->name);
    const char *found = file->kind == MACHINES_GPU ? strstr(plain_text, plain) : NULL;
    return found && !is_variant(found + strlen(plain));
}

static int refuse_name(enum machines_kind kind, const char *name, struct err *err)
{
    char known[512];
    size_t used = 0;
    known[0] = 0;
    for (size_t i = 0; i < machines_count && used < sizeof(known); i++)
        if (machines_files[i].kind == kind)
            used += (size_t)snprintf(known + used, sizeof(known) - used, "%s%s", used ? ", " : "",
                                     machines_files[i].name);
    return err_set(err, ERR_USAGE, "%s: no %s is known as \"%.80s\"; give a JSON file or one of %s",
                   kind_option[kind], kind_name[kind], name, known);
}

static struct json_value *parse_known(const struct machines_file *file, struct err *err)
{
    return json_parse(file->begin, (size_t)(file->end - file->begin), file->name, err);
}

/* NULL with *err filled. */
static struct json_value *open_part(enum machines_kind kind, const char *name, struct err *err)
{
    if (is_path(name))
        return json_load(name, err);
    const struct machines_file *file = find_known(kind, name);
    if (file)
        return parse_known(file, err);
    refuse_name(kind, name, err);
    return NULL;
}

const char *machine_card(const char *name, uint64_t vram_bytes, struct profile_device *device)
{
    for (size_t i = 0; i < machines_count; i++) {
        struct profile profile = {0};
        struct err err;
        if (!is_card(&machines_files[i], name))
            continue;
        struct json_value *root = parse_known(&machines_files[i], &err);
        int rc = root ? profile_merge(&profile, root, machines_files[i].name, &err) : err.code;
        json_free(root);
        ASSERT(rc == 0);
        double memory = (double)profile.device.vram_bytes;
        if (fabs((double)vram_bytes - memory) > VRAM_SLACK * memory)
            continue;
        *device = profile.device;
        device->vram_bytes = vram_bytes;
        snprintf(device->name, sizeof(device->name), "%.*s", PROFILE_NAME_MAX - 1, name);
        return machines_files[i].name;
    }
    return NULL;
}

/* ---- Composing ------------------------------------------------------------------------------- */

struct machine {
    struct profile profile;
    struct machine_request request; /* what a box names filled in */
    struct json_value *box;         /* owned; NULL when there is none: strings are borrowed */
    struct board board;             /* pcie_gen 0: not known */
    struct board gpu;               /* pcie_gen 0: a GPU that is there already */
    struct board ssd;               /* the same of a drive */
    uint64_t ram_bytes;             /* asked for; 0: none */
    uint32_t mts;                   /* asked for; 0: as the board runs it */
    bool cpu_replaced;
};

static bool cpu_computes(const struct machine_request *request)
{
    return request->gpu && (same_name(request->gpu, "none") || same_name(request->gpu, "cpu"));
}

/* The part's sections into the profile, and its board. A file of another kind is refused. */
static int put_part(struct machine *m, enum machines_kind kind, const char *name,
                    struct board *board, struct err *err)
{
    struct json_value *root = open_part(kind, name, err);
    if (!root)
        return err->code;
    const char *others[] = {"device", "cpu", "ram", "ssd"};
    int rc = 0;
    if (!json_get(root, kind_section[kind]))
        rc = err_set(err, ERR_INPUT, "%s: it is no %s: it has no section \"%s\"", name,
                     kind_name[kind], kind_section[kind]);
    for (size_t i = 0; i < ARRAY_COUNT(others) && !rc; i++)
        if (json_get(root, others[i]) && strcmp(others[i], kind_section[kind]) != 0 &&
            !(kind == MACHINES_CPU && i == 0))
            rc = err_set(err, ERR_INPUT,
                         "%s: a %s has the sections \"%s\" and \"board\" only, not \"%s\"", name,
                         kind_name[kind], kind_section[kind], others[i]);
    struct profile_device device = m->profile.device;
    if (!rc)
        rc = profile_merge(&m->profile, root, name, err);
    /* The processor as a device is only of use where there is no other. */
    if (!rc && kind == MACHINES_CPU && !cpu_computes(&m->request) && !device.is_cpu)
        m->profile.device = device;
    if (!rc)
        rc = board_read(board, root, kind, name, err);
    json_free(root);
    return rc;
}

static const char *or_else(const char *given, const struct json_value *box, const char *member)
{
    return given ? given : json_get_string(box, member, NULL);
}

static const struct field box_fields[] = {
    {.name = "gpu", .kind = FIELD_OTHER, .required = true},
    {.name = "cpu", .kind = FIELD_OTHER, .required = true},
    {.name = "ram", .kind = FIELD_OTHER, .required = true},
    {.name = "ssd", .kind = FIELD_OTHER, .required = true},
    {"gpus", FIELD_U64, false, offsetof(struct machine_request, gpus), 1, DEVICES_MAX, NULL},
    {"ssds", FIELD_U64, false, offsetof(struct machine_request, ssds), 1, DEVICES_MAX, NULL},
};

static const struct field box_file_fields[] = {
    {.name = "spillway_profile", .kind = FIELD_U32, .required = true, .least = 1, .most = 1},
    {.name = "name", .kind = FIELD_OTHER},
    {.name = "box", .kind = FIELD_OTHER, .required = true},
};

/* Parts that the request leaves open come from the box; all of them are put together anew. */
static int open_box(struct machine *m, const char *what, struct err *err)
{
    static const struct fields fields = {box_fields, ARRAY_COUNT(box_fields)};
    static const struct fields whole = {box_file_fields, ARRAY_COUNT(box_file_fields)};
    static const char *const members[] = {"gpu", "cpu", "ram", "ssd"};
    const struct json_value *box = json_get(m->box, "box");
    struct machine_request *r = &m->request, counts = {0};
    uint32_t version;
    int rc = fields_read(&whole, &version, m->box, (struct fields_at){what, "profile"}, err);
    if (!rc)
        rc = fields_read(&fields, &counts, box, (struct fields_at){what, "box"}, err);
    for (size_t i = 0; i < ARRAY_COUNT(members) && !rc; i++)
        if (!json_get_string(box, members[i], NULL))
            rc = err_set(err, ERR_INPUT, "%s: box.%s must be the name of a part", what, members[i]);
    if (rc)
        return rc;
    r->gpu = or_else(r->gpu, box, "gpu");
    r->cpu = or_else(r->cpu, box, "cpu");
    r->ram = or_else(r->ram, box, "ram");
    r->ssd = or_else(r->ssd, box, "ssd");
    r->gpus = r->gpus || cpu_computes(r) ? r->gpus : counts.gpus;
    r->ssds = r->ssds ? r->ssds : counts.ssds;
    m->profile = (struct profile){.device = {.is_cpu = true}};
    return 0;
}

/* The machine to start from, and what is known of its board. */
static int open_base(struct machine *m, struct err *err)
{
    const char *name = m->request.machine;
    struct json_value *root = NULL;
    int rc = 0;
    if (name && !(root = open_part(MACHINES_BOX, name, err)))
        return err->code;
    m->box = root;
    if (root && json_get(root, "box"))
        return open_box(m, name, err);
    if (root)
        rc = profile_read(&m->profile, root, name, err);
    if (!rc && root && json_get(root, "board"))
        return board_read(&m->board, root, MACHINES_CPU, name, err);
    const struct machines_file *cpu = find_cpu_in(m->profile.cpu.name);
    if (rc || !cpu)
        return rc;
    root = parse_known(cpu, err);
    if (!root)
        return err->code;
    rc = board_read(&m->board, root, MACHINES_CPU, cpu->name, err);
    json_free(root);
    return rc;
}

/* ---- RAM ------------------------------------------------------------------------------------- */

static int refuse_ram(const char *text, struct err *err)
{
    return err_set(err, ERR_USAGE,
                   "--ram: \"%.60s\" must be a size, or size@rate with %d to %d transfers per "
                   "microsecond, such as 192G@3600",
                   text, MTS_LEAST, MTS_MOST);
}

/* Fills ram_bytes and mts. */
static int parse_ram(struct machine *m, struct err *err)
{
    char size[32];
    const char *text = m->request.ram, *at = strchr(text, '@');
    size_t bytes = at ? (size_t)(at - text) : strlen(text);
    if (bytes >= sizeof(size))
        return refuse_ram(text, err);
    memcpy(size, text, bytes);
    size[bytes] = 0;
    struct err ignored;
    if (args_parse_size(size, &m->ram_bytes, &ignored) != 0)
        return refuse_ram(text, err);
    if (at) {
        char *end;
        unsigned long mts = strtoul(at + 1, &end, 10);
        if (!isdigit((unsigned char)at[1]) || *end || mts < MTS_LEAST || mts > MTS_MOST)
            return refuse_ram(text, err);
        m->mts = (uint32_t)mts;
    }
    return 0;
}

static int check_ram(const struct machine *m, struct err *err)
{
    uint64_t bytes = m->profile.ram.bytes;
    uint64_t most = m->board.pcie_gen ? m->board.ram_bytes_max : RAM_MOST;
    bool unknown = !m->request.ram && bytes == 0;
    if (unknown || (bytes >= RAM_LEAST && bytes <= most))
        return 0;
    return err_set(err, ERR_USAGE,
                   "--ram: %.6g GiB is not possible: this board takes from 1G to %lluG",
                   (double)bytes / (double)GIB, (unsigned long long)(most / GIB));
}

/* A measured or a part's rate, and what RAM lets it be when RAM changes from one rate to another
 * (0: the rate is the cores' own). */
static double with_ram(double rate, double bytes, double from, double to)
{
    bool bound = from > 0 && rate * bytes >= RAM_BOUND * from;
    return bound ? rate * to / from : MIN(rate, to / bytes);
}

/* What passes over memory goes no faster than memory. */
static void limit_by_ram(struct machine *m, double from)
{
    struct profile_cpu *cpu = &m->profile.cpu;
    struct profile_device *device = &m->profile.device;
    double to = m->profile.ram.bytes_per_s;
    cpu->optimizer_parameters_per_s =
        with_ram(cpu->optimizer_parameters_per_s, OPTIMIZER_BYTES, from, to);
    cpu->optimizer_bf16_parameters_per_s =
        with_ram(cpu->optimizer_bf16_parameters_per_s, OPTIMIZER_BF16_BYTES, from, to);
    cpu->optimizer_8bit_parameters_per_s =
        with_ram(cpu->optimizer_8bit_parameters_per_s, OPTIMIZER_8BIT_BYTES, from, to);
    cpu->join_parameters_per_s = with_ram(cpu->join_parameters_per_s, JOIN_BYTES, from, to);
    cpu->copy_bytes_per_s = MIN(cpu->copy_bytes_per_s, to / 2);
    if (device->is_cpu)
        device->stream_bytes_per_s = with_ram(device->stream_bytes_per_s, 1, from, to);
}

static int put_ram(struct machine *m, struct err *err)
{
    struct profile_ram *ram = &m->profile.ram;
    double before = m->cpu_replaced ? 0 : ram->bytes_per_s;
    int rc = m->request.ram ? parse_ram(m, err) : 0;
    if (rc || (!m->request.ram && !m->cpu_replaced))
        return rc;
    if (m->request.ram)
        ram->bytes = m->ram_bytes;
    if ((rc = check_ram(m, err)))
        return rc;
    if (!m->board.pcie_gen) {
        if (m->mts && ram->mts)
            ram->bytes_per_s *= (double)m->mts / ram->mts;
        ram->mts = m->mts ? m->mts : ram->mts;
        ram->dimms = 0;
    } else {
        ram->dimms = ram->bytes > TWO_DIMMS_BYTES ? 4 : 2;
        ram->mts = m->mts ? m->mts : ram->dimms == 4 ? m->board.mts_4_dimms : m->board.mts_2_dimms;
        ram->bytes_per_s = MIN(m->board.ram_bytes_per_s_max,
                               m->board.ram_efficiency * ram->mts * 1e6 * 8 * m->board.channels);
    }
    limit_by_ram(m, before);
    return 0;
}

/* ---- Devices, drives and links --------------------------------------------------------------- */

static int put_devices(struct machine *m, struct err *err)
{
    struct profile_device *device = &m->profile.device;
    const struct machine_request *r = &m->request;
    if (cpu_computes(r) && !device->is_cpu)
        return err_set(err, ERR_USAGE,
                       "--gpu none: what this processor computes is not known; give --cpu as well");
    if (r->gpu && !cpu_computes(r)) {
        int rc = put_part(m, MACHINES_GPU, r->gpu, &m->gpu, err);
        if (rc)
            return rc;
        if (device->is_cpu)
            return err_set(err, ERR_INPUT, "%s: device.is_cpu must be false for a GPU", r->gpu);
    }
    if (!r->gpus)
        return 0;
    if (device->is_cpu)
        return err_set(err, ERR_USAGE, "--gpus: there is no GPU in this machine; give --gpu");
    uint64_t most = m->board.pcie_gen ? 2 : DEVICES_MAX;
    if (r->gpus > most)
        return err_set(err, ERR_USAGE, "--gpus: %llu must be from 1 to %llu on this board",
                       (unsigned long long)r->gpus, (unsigned long long)most);
    device->count = (uint32_t)r->gpus;
    return 0;
}

static int put_drives(struct machine *m, struct err *err)
{
    struct profile_ssd *ssd = &m->profile.ssd;
    const struct machine_request *r = &m->request;
    uint32_t count = MAX(ssd->count, 1);
    if (r->ssd) {
        int rc = put_part(m, MACHINES_SSD, r->ssd, &m->ssd, err);
        if (rc)
            return rc;
        ssd->count = count;
    }
    if (!r->ssds)
        return 0;
    if (!ssd->count)
        return err_set(err, ERR_USAGE, "--ssds: there is no drive in this machine; give --ssd");
    if (r->ssds > DEVICES_MAX)
        return err_set(err, ERR_USAGE, "--ssds: %llu must be from 1 to %d",
                       (unsigned long long)r->ssds, DEVICES_MAX);
    ssd->count = (uint32_t)r->ssds;
    return 0;
}

static uint32_t slot_lanes(const struct machine *m)
{
    const struct profile_ssd *ssd = &m->profile.ssd;
    uint32_t lanes =
        m->profile.device.count > 1 ? m->board.pcie_lanes_two_gpus : m->board.pcie_lanes;
    bool gen5 = m->ssd.pcie_gen ? m->ssd.pcie_gen >= 5
                                : ssd->count && ssd->read_bytes_per_s > GEN4_SSD_BYTES_PER_S;
    return gen5 && m->board.gen5_ssd_halves_gpu_slot ? MAX(lanes / 2, 1) : lanes;
}

/* A card gets what it can use of what the slot gives. One that was there already is only held to
 * the slot: its own figures may well be those of a slower one. */
static void limit_by_slot(struct machine *m)
{
    struct profile_device *device = &m->profile.device;
    uint32_t gen = m->board.pcie_gen, lanes = slot_lanes(m);
    if (m->gpu.pcie_gen) {
        gen = MIN(gen, m->gpu.pcie_gen);
        lanes = MIN(lanes, m->gpu.pcie_lanes);
    }
    const struct link *link = link_of(gen);
    double share = lanes / 16.0;
    device->h2d_bytes_per_s = MIN(device->h2d_bytes_per_s, link->h2d * share);
    device->d2h_bytes_per_s = MIN(device->d2h_bytes_per_s, link->d2h * share);
    device->h2d_both_bytes_per_s = MIN(device->h2d_both_bytes_per_s, link->h2d_both * share);
    device->d2h_both_bytes_per_s = MIN(device->d2h_both_bytes_per_s, link->d2h_both * share);
}

static void limit_drive(struct machine *m)
{
    struct profile_ssd *ssd = &m->profile.ssd;
    double most = link_of(m->board.pcie_gen)->ssd;
    double *rates[] = {&ssd->read_bytes_per_s, &ssd->write_bytes_per_s,
                       &ssd->mixed_read_bytes_per_s, &ssd->mixed_write_bytes_per_s,
                       &ssd->sustained_write_bytes_per_s};
    for (size_t i = 0; i < ARRAY_COUNT(rates); i++)
        *rates[i] = MIN(*rates[i], most);
}

/* ---- Text ------------------------------------------------------------------------------------ */

/* Is cut where it is too long. */
struct line {
    char *text;
    size_t size, used;
};

static void __attribute__((format(printf, 2, 3))) add(struct line *line, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int bytes = vsnprintf(line->text + line->used, line->size - line->used, format, arguments);
    va_end(arguments);
    ASSERT(bytes >= 0);
    line->used = MIN(line->used + (size_t)bytes, line->size - 1);
}

static void add_times(struct line *line, uint32_t count)
{
    if (count > 1)
        add(line, "%u x ", count);
}

/* What was asked for, else what is there: "2 x rtx3060 + 7950x3d + 192G@3600 + t700-2tb". */
static void put_name(struct machine *m)
{
    const struct machine_request *asked = &m->request;
    struct profile *p = &m->profile;
    struct line line = {p->name, sizeof(p->name), 0};
    if (!p->device.is_cpu) {
        add_times(&line, p->device.count);
        add(&line, "%s + ", asked->gpu ? asked->gpu : p->device.name);
    }
    add(&line, "%s", asked->cpu ? asked->cpu : p->cpu.name);
    if (p->ram.bytes)
        add(&line, " + %lluG", (unsigned long long)(p->ram.bytes / GIB));
    if (p->ram.bytes && p->ram.mts)
        add(&line, "@%u", p->ram.mts);
    if (!p->ssd.count)
        return;
    add(&line, " + ");
    add_times(&line, p->ssd.count);
    add(&line, "%s", asked->ssd ? asked->ssd : p->ssd.name);
}

/* ---- The whole ------------------------------------------------------------------------------- */

static bool replaces(const struct machine_request *r)
{
    return r->gpu || r->cpu || r->ram || r->ssd || r->gpus || r->ssds;
}

static int put_all(struct machine *m, struct err *err)
{
    const struct machine_request *r = &m->request;
    int rc = 0;
    if (r->cpu)
        rc = put_part(m, MACHINES_CPU, r->cpu, &m->board, err);
    m->cpu_replaced = r->cpu != NULL;
    if (rc || (rc = put_ram(m, err)) || (rc = put_devices(m, err)) || (rc = put_drives(m, err)))
        return rc;
    if (!m->board.pcie_gen)
        return 0;
    if (!m->profile.device.is_cpu)
        limit_by_slot(m);
    if (m->ssd.pcie_gen)
        limit_drive(m);
    return 0;
}

int machine_compose(struct profile *profile, const struct machine_request *request, struct err *err)
{
    struct machine m = {.profile = *profile, .request = *request};
    int rc = open_base(&m, err);
    if (!rc && replaces(&m.request)) {
        rc = put_all(&m, err);
        if (!rc && (!m.box || !json_get(m.box, "box") || replaces(request)))
            put_name(&m);
        else if (!rc)
            snprintf(m.profile.name, sizeof(m.profile.name), "%s",
                     json_get_string(m.box, "name", request->machine));
        m.profile.measured = false;
        if (!rc)
            rc = profile_check(&m.profile, "the machine that was asked for", err);
    }
    if (!rc)
        *profile = m.profile;
    json_free(m.box);
    return rc;
}

/* ---- Telling --------------------------------------------------------------------------------- */

const char *machine_describe(const struct profile *profile, char *text, size_t size)
{
    ASSERT(size > 0);
    struct line line = {text, size, 0};
    const struct profile_device *device = &profile->device;
    const struct profile_ram *ram = &profile->ram;
    const struct profile_ssd *ssd = &profile->ssd;
    text[0] = 0;
    if (!device->is_cpu) {
        add_times(&line, device->count);
        add(&line, "%s (%.0f GiB, link %.1f GB/s), ", device->name,
            (double)device->vram_bytes / (double)GIB, device->h2d_bytes_per_s / 1e9);
    }
    add(&line, "%s (%u cores), ", profile->cpu.name, profile->cpu.cores);
    if (ram->bytes)
        add(&line, "%.0f GiB of RAM (", (double)ram->bytes / (double)GIB);
    else
        add(&line, "RAM (");
    if (ram->mts)
        add(&line, "%u MT/s, ", ram->mts);
    add(&line, "%.0f GB/s), ", ram->bytes_per_s / 1e9);
    if (!ssd->count) {
        add(&line, "no drive");
        return text;
    }
    add_times(&line, ssd->count);
    add(&line, "%s (read %.1f, write %.1f, in the long run %.2f GB/s)", ssd->name,
        ssd->read_bytes_per_s / 1e9, ssd->write_bytes_per_s / 1e9,
        ssd->sustained_write_bytes_per_s / 1e9);
    return text;
}

static void list_file(FILE *out, const struct machines_file *file)
{
    struct err err;
    struct profile profile = {0};
    char text[MACHINE_TEXT_MAX];
    struct json_value *root = parse_known(file, &err);
    ASSERT(root != NULL); /* test_machine loads every one */
    const char *what = json_get_string(json_get(root, kind_section[file->kind]), "name", "");
    struct machine_request request = {.machine = file->name};
    if (file->kind == MACHINES_BOX && machine_compose(&profile, &request, &err) == 0)
        what = machine_describe(&profile, text, sizeof(text));
    fprintf(out, "  %-22s %s\n", file->name, what);
    json_free(root);
}

void machine_list(FILE *file)
{
    static const char *const titles[MACHINES_KIND_COUNT] = {
        "GPUs (--gpu)", "Processors with their boards (--cpu)", "Drives (--ssd)",
        "Whole machines (--machine)"};
    for (enum machines_kind kind = 0; kind < MACHINES_KIND_COUNT; kind++) {
        fprintf(file, "%s%s:\n", kind ? "\n" : "", titles[kind]);
        for (size_t i = 0; i < machines_count; i++)
            if (machines_files[i].kind == kind)
                list_file(file, &machines_files[i]);
    }
}
