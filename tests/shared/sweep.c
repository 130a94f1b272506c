#include "tests/shared/sweep.h"

#include "core/base.h"

#include <math.h>

#define PARAMETERS 13.0e9
#define SEQ        2048.0
#define GIB_BYTES  1073741824.0

static const double ram_gib[8] = {64, 96, 128, 160, 192, 256, 384, 512};
static const struct {
    const char *name;
    double read, write, endurance; /* bytes a second, bytes */
} drives[4] = {{"Samsung 970 EVO 1 TB", 3.5e9, 2.5e9, 600e12},
               {"Samsung 990 PRO 2 TB", 7.4e9, 6.9e9, 1200e12},
               {"two Crucial T700 2 TB", 24.0e9, 22.0e9, 2400e12},
               {"PCIe 5 array", 48.0e9, 44.0e9, 9600e12}};
static const struct {
    const char *name;
    double flops, vram_gib, link;
} gpus[4] = {{"RTX 3060 12 GB", 25e12, 12, 12e9},
             {"RTX 3090 24 GB", 71e12, 24, 24e9},
             {"RTX 4090 24 GB", 165e12, 24, 24e9},
             {"RTX 5090 32 GB", 210e12, 32, 50e9}};
static const char long_tail[] =
    " in a rather long name <that> nobody & \"no page\" should break over";

static void set_name(struct json_value *row, const char *key, const char *name, bool is_long)
{
    char text[256];
    snprintf(text, sizeof(text), "%s%s", name, is_long ? long_tail : "");
    json_set_string(row, key, text);
}

static void set_result(struct json_value *row, double ram, size_t d, size_t g, double batch)
{
    double nvme = fmax(0, 12 * PARAMETERS - (ram - 12) * GIB_BYTES);
    double lanes[6] = {6 * PARAMETERS * batch * SEQ / gpus[g].flops,
                       4 * PARAMETERS / gpus[g].link,
                       2 * PARAMETERS / gpus[g].link,
                       nvme / drives[d].read,
                       nvme / drives[d].write,
                       28 * PARAMETERS / 45e9};
    static const char *const names[6] = {"compute", "h2d", "d2h", "ssd_read", "ssd_write", "cpu"};
    size_t most = 0;
    struct json_value *busy = json_new_object();
    for (size_t l = 0; l < 6; l++) {
        most = lanes[l] > lanes[most] ? l : most;
        json_set_number(busy, names[l], lanes[l]);
    }
    double step_s = lanes[most] * 1.07, a_day = nvme / step_s * 86400;
    json_set(row, "busy_s", busy);
    json_set_number(row, "tokens", batch * SEQ);
    json_set_number(row, "predicted_s", step_s);
    json_set_number(row, "bound_s", lanes[most]);
    json_set_string(row, "bound_lane", names[most]);
    json_set_number(row, "tokens_per_s", batch * SEQ / step_s);
    json_set_number(row, "h2d_bytes", 4 * PARAMETERS);
    json_set_number(row, "d2h_bytes", 2 * PARAMETERS);
    json_set_number(row, "ssd_read_bytes", nvme);
    json_set_number(row, "ssd_write_bytes", nvme);
    json_set_number(row, "ram_bytes", fmin(ram, 157) * GIB_BYTES);
    json_set_number(row, "vram_bytes", gpus[g].vram_gib * 0.9 * GIB_BYTES);
    json_set_number(row, "nvme_bytes", 24 * PARAMETERS);
    json_set_number(row, "ssd_written_bytes_per_day", a_day);
    if (a_day > 0)
        json_set_number(row, "ssd_days_left", drives[d].endurance / a_day);
}

static struct json_value *make_row(const struct sweep_shape *shape, double ram, size_t d, size_t g,
                                   double batch)
{
    struct json_value *row = json_new_object();
    json_set_number(row, "ram_budget_bytes", ram * GIB_BYTES);
    json_set_number(row, "vram_budget_bytes", gpus[g].vram_gib * GIB_BYTES);
    json_set_number(row, "ssd_read_bytes_per_s", drives[d].read);
    json_set_number(row, "ssd_write_bytes_per_s", drives[d].write);
    set_name(row, "ssd", drives[d].name, shape->long_names);
    json_set_int(row, "ssds", 1);
    json_set_string(row, "cpu", "7950X3D");
    json_set_int(row, "ram_mts", 5200);
    json_set_number(row, "ram_bytes_per_s", 70e9);
    set_name(row, "gpu", gpus[g].name, shape->long_names);
    json_set_int(row, "gpus", 1);
    json_set_number(row, "batch", batch);
    json_set_int(row, "accum", 1);
    if (shape->all_refused || (ram == 64 && d == 0))
        json_set_string(
            row, "refused",
            "the RAM budget of 64 GiB is too small: gradients take 24.2 GiB and staging "
            "for a drive this slow 41.0 GiB; --ram-budget 68G works");
    else
        set_result(row, ram, d, g, batch);
    return row;
}

struct json_value *sweep_results(const struct sweep_shape *shape)
{
    ASSERT(shape->rams <= 8 && shape->ssds <= 4 && shape->gpus <= 4 && shape->batches <= 4);
    struct json_value *root = json_new_object(), *rows = json_new_array();
    json_set_string(root, "model", "gpt-13b");
    json_set_number(root, "parameters", PARAMETERS);
    json_set_string(root, "precision", "bf16");
    json_set_number(root, "seq", SEQ);
    json_set_string(root, "base", "RTX 3060 12 GB, 7950X3D, DDR5-5200");
    json_set_bool(root, "measured", false);
    for (size_t r = 0; r < shape->rams; r++)
        for (size_t d = 0; d < shape->ssds; d++)
            for (size_t g = 0; g < shape->gpus; g++)
                for (size_t b = 0; b < shape->batches; b++)
                    json_append(rows, make_row(shape, ram_gib[r], d, g, 4.0 * (double)(1u << b)));
    json_set(root, "rows", rows);
    return root;
}
