/*
 * profile: a machine in figures: how fast its device computes, what each link carries, what the
 * drive, the memory and the processor do. The model engine turns a plan and a profile into time.
 * Never used by the mathematics.
 *
 * All rates are per second, all sizes in bytes, all times in seconds. profile_init gives cautious
 * defaults; offload/profile_file.h reads and writes profiles as JSON, `spillway bench` measures the
 * local one, and tools/machine.h composes imagined ones of parts.
 *
 * A rate is what one side reaches when nothing else runs. What happens when things share a drive,
 * the links, the cores or the memory is the model engine's business; the figures that it needs for
 * that (..._both_..., mixed_...) are here.
 */
#ifndef SPILLWAY_OFFLOAD_PROFILE_H
#define SPILLWAY_OFFLOAD_PROFILE_H

#include "model/config.h"
#include <stdbool.h>
#include <stdint.h>

#define PROFILE_NAME_MAX 96

/* Kernels whose speed differs enough to be told apart. Products and attention of a block are
 * apart, because their share of the FLOPs depends on the length of a sequence. */
enum profile_kernel {
    PROFILE_BLOCK_FORWARD, /* a block's matrix products, with all that is fused to them */
    PROFILE_BLOCK_BACKWARD,
    PROFILE_ATTENTION_FORWARD,
    PROFILE_ATTENTION_BACKWARD,
    PROFILE_HEAD_FORWARD,
    PROFILE_HEAD_BACKWARD,
    PROFILE_KERNEL_COUNT
};
extern const char *const profile_kernel_name[PROFILE_KERNEL_COUNT]; /* "block_forward", ... */

/* A shape class: what the device's kernels reach at this width and size of a micro-batch. */
struct profile_point {
    enum precision precision;
    uint32_t channels; /* C */
    uint32_t rows;     /* R = B * T of a micro-batch */
    double flops_per_s[PROFILE_KERNEL_COUNT];
};

#define PROFILE_POINTS_MAX 64

struct profile_device {
    char name[PROFILE_NAME_MAX];
    bool is_cpu;               /* computes on the cores that the optimizer needs too; no links */
    uint32_t count;            /* devices: data-parallel, each with links of its own */
    uint64_t vram_bytes;       /* 0 on the CPU device */
    uint64_t reserve_bytes;    /* of VRAM: context, modules, what the desktop shows */
    uint64_t overhead_bytes;   /* of RAM: what the driver's libraries take of the process */
    double stream_bytes_per_s; /* kernels bound by memory: norms, embeddings, gradient stores, and
                                * updates of state that is on the device */
    double h2d_bytes_per_s, d2h_bytes_per_s;           /* one direction busy */
    double h2d_both_bytes_per_s, d2h_both_bytes_per_s; /* both directions busy */
    double copy_latency_s;
    double launch_s; /* what handing over one op costs */
    struct profile_point points[PROFILE_POINTS_MAX];
    uint32_t point_count;
};

struct profile_cpu {
    char name[PROFILE_NAME_MAX];
    uint32_t cores, threads;
    uint64_t l2_bytes, l3_bytes;       /* one core's, all of it */
    double optimizer_parameters_per_s; /* AdamW in FP32 state, all cores, data in memory */
    /* With moments in bf16 and in 8 bits; 0: not known, as in FP32. */
    double optimizer_bf16_parameters_per_s, optimizer_8bit_parameters_per_s;
    double checksum_bytes_per_s;        /* one core, data in memory */
    double cached_checksum_bytes_per_s; /* one core, in passing, as an update does it; 0: not known,
                                         * as in memory */
    double copy_bytes_per_s;            /* one core, memory to memory: bytes copied */
    double join_parameters_per_s;       /* hi and lo to FP32, all cores */
    double launch_s;                    /* what handing an op to a lane's thread costs */
};

struct profile_ram {
    uint64_t bytes;     /* 0: not known */
    double bytes_per_s; /* what all cores together reach, reads and writes added up */
    uint32_t mts;       /* transfers per microsecond (DDR5-5600: 5600); 0: not known */
    uint32_t dimms;     /* 0: not known */
};

struct profile_ssd {
    char name[PROFILE_NAME_MAX];
    uint32_t count; /* drives, striped; 0: there is none. The figures below are of one drive. */
    uint32_t queue_depth; /* transfers of a step in flight in each direction that serve it best; 0:
                           * not known, and ENGINE_DRIVE_DEPTH (offload/engine.h) is taken */
    double read_bytes_per_s, write_bytes_per_s;
    double mixed_read_bytes_per_s, mixed_write_bytes_per_s; /* both going on, equal amounts */
    double sustained_write_bytes_per_s; /* past the fast cache: what a run of weeks gets */
    uint64_t fast_cache_bytes;          /* 0: not known or none */
    uint64_t capacity_bytes;            /* 0: not known */
    uint64_t endurance_bytes;           /* rated: TBW; 0: not known */
    double read_latency_s, write_latency_s;
};
/* The ring and the tier have room for no more. */
#define PROFILE_QUEUE_DEPTH_MAX 64

#define PROFILE_DRIVES_MAX 8

/* One of the drives of this machine, as measured by itself; struct profile_ssd has their mean. */
struct profile_drive {
    char mount[PROFILE_NAME_MAX]; /* where its file system is mounted: what it is known by */
    double read_bytes_per_s, write_bytes_per_s;
    double mixed_read_bytes_per_s, mixed_write_bytes_per_s;
    double sustained_write_bytes_per_s;
};

struct profile {
    char name[PROFILE_NAME_MAX];
    struct profile_device device;
    struct profile_cpu cpu;
    struct profile_ram ram;
    struct profile_ssd ssd;
    struct profile_drive drives[PROFILE_DRIVES_MAX];
    uint32_t drive_count; /* 0: not measured one by one */
    /* A CUDA device of this machine as bench has measured it, beside the device that the profile
     * predicts with: what --device cuda predicts with. point_count 0: none was. */
    struct profile_device card;
    bool measured; /* by bench, on the machine that it is used on; else defaults or data sheets */
};

/* The defaults for a machine of `cores` cores whose device is the CPU. */
void profile_init(struct profile *profile, uint32_t cores);

/* The defaults for a CUDA device of which nothing is known but its memory: a card of the middle
 * class on PCIe 4.0 x16. Replaces profile->device; the drive, memory and cores stay. */
void profile_init_gpu(struct profile *profile, const char *name, uint64_t vram_bytes);

/* FLOPs per second of one device in a kernel at this width and micro-batch: between points of the
 * same precision, times per FLOP are interpolated over the logarithms of rows and channels; beyond
 * them the nearest counts. A device without points of a precision has half the speed of the other
 * one in fp32, and the same in bf16. */
double profile_flops(const struct profile *profile, enum precision precision,
                     enum profile_kernel kernel, uint32_t channels, uint32_t rows);

/* The same machine `factor` times as fast in everything: rates multiplied, latencies divided. */
void profile_scale(struct profile *profile, double factor);

#endif
