#include "offload/profile.h"

#include "core/base.h"

#include <math.h>
#include <stdio.h>

/* Per core: what two generations of desktop cores reach in whole training kernels (about half of
 * their matrix peak). The other figures are those of one PCIe 3 drive and dual-channel DDR4: a plan
 * made before anything was measured should promise too little rather than too much. */
#define DEFAULT_FP32_FLOPS  60e9
#define DEFAULT_BF16_FLOPS  110e9
#define DEFAULT_COPY_BYTES  8e9
#define DEFAULT_READ_BYTES  2e9
#define DEFAULT_WRITE_BYTES 1.7e9
#define DEFAULT_MIXED       0.9 /* of the same alone */
#define DEFAULT_PARAMETERS  0.5e9
#define DEFAULT_CHECKSUM    10e9
#define DEFAULT_RAM_BYTES   25e9
#define DEFAULT_LAUNCH      15e-6
#define DEFAULT_LATENCY     100e-6
/* Of the speed of its matrix products. */
#define DEFAULT_ATTENTION 0.35

const char *const profile_kernel_name[PROFILE_KERNEL_COUNT] = {
    "block_forward",      "block_backward", "attention_forward",
    "attention_backward", "head_forward",   "head_backward"};

/* Of a card of the middle class (RTX 3060: 360 GB/s, 12.7 TFLOP/s in FP32, 51 in bf16 by its data
 * sheet), what whole kernels make of it; and of its link. */
#define GPU_STREAM_BYTES 280e9
#define GPU_COPY_BYTES   20e9
#define GPU_LATENCY      10e-6
#define GPU_FP32_FLOPS   7e12
#define GPU_BF16_FLOPS   25e12

static void add_default_point(struct profile_device *device, enum precision precision, double flops)
{
    struct profile_point *point = &device->points[device->point_count++];
    *point = (struct profile_point){.precision = precision, .channels = 768, .rows = 1024};
    for (uint32_t k = 0; k < PROFILE_KERNEL_COUNT; k++)
        point->flops_per_s[k] = flops;
    point->flops_per_s[PROFILE_ATTENTION_FORWARD] *= DEFAULT_ATTENTION;
    point->flops_per_s[PROFILE_ATTENTION_BACKWARD] *= DEFAULT_ATTENTION;
}

void profile_init(struct profile *profile, uint32_t cores)
{
    ASSERT(cores > 0);
    *profile = (struct profile){
        .name = "defaults",
        .device = {.name = "cpu",
                   .is_cpu = true,
                   .count = 1,
                   .stream_bytes_per_s = DEFAULT_RAM_BYTES / 2,
                   .h2d_bytes_per_s = DEFAULT_COPY_BYTES,
                   .d2h_bytes_per_s = DEFAULT_COPY_BYTES,
                   .h2d_both_bytes_per_s = DEFAULT_COPY_BYTES * DEFAULT_MIXED,
                   .d2h_both_bytes_per_s = DEFAULT_COPY_BYTES * DEFAULT_MIXED,
                   .launch_s = DEFAULT_LAUNCH},
        .cpu = {.name = "unknown",
                .cores = cores,
                .threads = cores,
                .optimizer_parameters_per_s = DEFAULT_PARAMETERS * cores,
                .checksum_bytes_per_s = DEFAULT_CHECKSUM,
                .copy_bytes_per_s = DEFAULT_COPY_BYTES,
                .join_parameters_per_s = DEFAULT_PARAMETERS * cores,
                .launch_s = DEFAULT_LAUNCH},
        .ram = {.bytes_per_s = DEFAULT_RAM_BYTES},
        .ssd = {.name = "unknown",
                .count = 1,
                .read_bytes_per_s = DEFAULT_READ_BYTES,
                .write_bytes_per_s = DEFAULT_WRITE_BYTES,
                .mixed_read_bytes_per_s = DEFAULT_READ_BYTES * DEFAULT_MIXED,
                .mixed_write_bytes_per_s = DEFAULT_WRITE_BYTES * DEFAULT_MIXED,
                .sustained_write_bytes_per_s = DEFAULT_WRITE_BYTES,
                .read_latency_s = DEFAULT_LATENCY,
                .write_latency_s = DEFAULT_LATENCY},
    };
    add_default_point(&profile->device, PRECISION_FP32, DEFAULT_FP32_FLOPS * cores);
    add_default_point(&profile->device, PRECISION_BF16, DEFAULT_BF16_FLOPS * cores);
}

void profile_init_gpu(struct profile *profile, const char *name, uint64_t vram_bytes)
{
    struct profile_device *device = &profile->device;
    *device = (struct profile_device){
        .count = 1,
        .vram_bytes = vram_bytes,
        .stream_bytes_per_s = GPU_STREAM_BYTES,
        .h2d_bytes_per_s = GPU_COPY_BYTES,
        .d2h_bytes_per_s = GPU_COPY_BYTES,
        .h2d_both_bytes_per_s = GPU_COPY_BYTES * DEFAULT_MIXED,
        .d2h_both_bytes_per_s = GPU_COPY_BYTES * DEFAULT_MIXED,
        .copy_latency_s = GPU_LATENCY,
        .launch_s = GPU_LATENCY,
    };
    snprintf(device->name, sizeof(device->name), "%s", name);
    add_default_point(device, PRECISION_FP32, GPU_FP32_FLOPS);
    add_default_point(device, PRECISION_BF16, GPU_BF16_FLOPS);
}

/* ---- Interpolation --------------------------------------------------------------------------- */

/* The points on either side of `value` among those of one precision that `member` of the point
 * selects; both the same at the ends. */
struct between {
    double low, high; /* 0: there is none */
};

static void narrow(struct between *between, double at, double value)
{
    if (at <= value && (!between->low || at > between->low))
        between->low = at;
    if (at >= value && (!between->high || at < between->high))
        between->high = at;
}

static void close_ends(struct between *between)
{
    if (!between->low)
        between->low = between->high;
    if (!between->high)
        between->high = between->low;
}

static double mix(double low, double high, double a, double b, double value)
{
    if (low == high)
        return a;
    double t = (log(value) - log(low)) / (log(high) - log(low));
    return a + (b - a) * t;
}

/* Seconds per FLOP at one width. */
static double at_channels(const struct profile_device *device, enum precision precision,
                          enum profile_kernel kernel, double channels, double rows)
{
    struct between rows_between = {0};
    for (uint32_t i = 0; i < device->point_count; i++)
        if (device->points[i].precision == precision && device->points[i].channels == channels)
            narrow(&rows_between, device->points[i].rows, rows);
    close_ends(&rows_between);
    double low_s = 0, high_s = 0;
    for (uint32_t i = 0; i < device->point_count; i++) {
        const struct profile_point *p = &device->points[i];
        if (p->precision != precision || p->channels != channels)
            continue;
        if (p->rows == rows_between.low)
            low_s = 1 / p->flops_per_s[kernel];
        if (p->rows == rows_between.high)
            high_s = 1 / p->flops_per_s[kernel];
    }
    return mix(rows_between.low, rows_between.high, low_s, high_s, rows);
}

static bool has_precision(const struct profile_device *device, enum precision precision)
{
    for (uint32_t i = 0; i < device->point_count; i++)
        if (device->points[i].precision == precision)
            return true;
    return false;
}

double profile_flops(const struct profile *profile, enum precision precision,
                     enum profile_kernel kernel, uint32_t channels, uint32_t rows)
{
    const struct profile_device *device = &profile->device;
    ASSERT(device->point_count > 0 && device->point_count <= PROFILE_POINTS_MAX);
    double factor = 1;
    if (!has_precision(device, precision)) {
        factor = precision == PRECISION_FP32 ? 0.5 : 1;
        precision = precision == PRECISION_FP32 ? PRECISION_BF16 : PRECISION_FP32;
    }
    struct between widths = {0};
    for (uint32_t i = 0; i < device->point_count; i++)
        if (device->points[i].precision == precision)
            narrow(&widths, device->points[i].channels, channels);
    close_ends(&widths);
    double low_s = at_channels(device, precision, kernel, widths.low, rows);
    double high_s = at_channels(device, precision, kernel, widths.high, rows);
    return factor / mix(widths.low, widths.high, low_s, high_s, channels);
}

static void scale_drive(struct profile_drive *drive, double factor)
{
    drive->read_bytes_per_s *= factor;
    drive->write_bytes_per_s *= factor;
    drive->mixed_read_bytes_per_s *= factor;
    drive->mixed_write_bytes_per_s *= factor;
    drive->sustained_write_bytes_per_s *= factor;
}

void profile_scale(struct profile *profile, double factor)
{
    ASSERT(factor > 0);
    struct profile_device *device = &profile->device;
    struct profile_cpu *cpu = &profile->cpu;
    struct profile_ssd *ssd = &profile->ssd;
    double *rates[] = {&device->stream_bytes_per_s,
                       &device->h2d_bytes_per_s,
                       &device->d2h_bytes_per_s,
                       &device->h2d_both_bytes_per_s,
                       &device->d2h_both_bytes_per_s,
                       &cpu->optimizer_parameters_per_s,
                       &cpu->optimizer_bf16_parameters_per_s,
                       &cpu->optimizer_8bit_parameters_per_s,
                       &cpu->cached_checksum_bytes_per_s,
                       &cpu->checksum_bytes_per_s,
                       &cpu->copy_bytes_per_s,
                       &cpu->join_parameters_per_s,
                       &profile->ram.bytes_per_s,
                       &ssd->read_bytes_per_s,
                       &ssd->write_bytes_per_s,
                       &ssd->mixed_read_bytes_per_s,
                       &ssd->mixed_write_bytes_per_s,
                       &ssd->sustained_write_bytes_per_s};
    double *times[] = {&device->copy_latency_s, &device->launch_s, &cpu->launch_s,
                       &ssd->read_latency_s, &ssd->write_latency_s};
    for (size_t i = 0; i < ARRAY_COUNT(rates); i++)
        *rates[i] *= factor;
    for (size_t i = 0; i < ARRAY_COUNT(times); i++)
        *times[i] /= factor;
    for (uint32_t p = 0; p < device->point_count; p++)
        for (uint32_t k = 0; k < PROFILE_KERNEL_COUNT; k++)
            device->points[p].flops_per_s[k] *= factor;
    for (uint32_t d = 0; d < profile->drive_count; d++)
        scale_drive(&profile->drives[d], factor);
}
