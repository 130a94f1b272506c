/*
 * gpu: CUDA devices, through a plugin: libspillway_cuda.so beside the program, which is built where
 * nvcc is and loaded when a device of it is asked for, so that the program itself needs no library
 * of CUDA. gpu.c is the plugin's side and the only file of offload that knows CUDA's runtime;
 * gpu_load.c is the program's.
 *
 * A device is opened in two steps: its context, streams and kernels first (gpu_plugin.open), since
 * the placement must know what is left of its memory; then its arena (device_ops.open_memory).
 */
#ifndef SPILLWAY_OFFLOAD_GPU_H
#define SPILLWAY_OFFLOAD_GPU_H

#include "model/cuda/gpu_rates.h"
#include "offload/device.h"

#define GPU_PLUGIN_VERSION 3
#define GPU_PLUGIN_FILE    "libspillway_cuda.so"
#define GPU_PLUGIN_SYMBOL  "spillway_gpu_plugin"
#define GPU_NAME_MAX       256
/* Of a card's memory, what a budget that was not given leaves to the desktop and others. */
#define GPU_RESERVE_BYTES (512 * MIB)

struct gpu_info {
    char name[GPU_NAME_MAX];
    char pci[16];          /* "0000:01:00.0" */
    uint32_t major, minor; /* compute capability */
    uint32_t processors;   /* streaming multiprocessors */
    int driver, runtime;   /* CUDA versions, as 12040 */
    uint64_t vram_bytes, free_bytes;
};

struct gpu_setup {
    uint32_t number;
    struct kernels_shape shape;
    const struct tensors *tensors; /* read while opening only */
};

struct gpu_plugin {
    uint32_t version; /* GPU_PLUGIN_VERSION: of the program that it was built with */
    /* 0 devices where there is no driver or no card, with the reason in err. */
    uint32_t (*count)(struct err *err);
    /* free_bytes costs a context, some hundred MiB of the card for a moment. */
    int (*info)(uint32_t number, struct gpu_info *info, struct err *err);
    /* What the kernels need, as kernels_sizes. */
    void (*sizes)(const struct kernels_shape *shape, struct kernels_sizes *sizes);
    /* overhead_bytes: of the card's memory, what context, modules and workspaces take, as far as
     * the card tells. */
    int (*open)(struct device **device, const struct gpu_setup *setup, uint64_t *overhead_bytes,
                struct err *err);
    const struct gpu_rates_table *rates; /* what a card reaches */
};

/* The plugin; loaded by the first call, kept to the end. NULL, with what is missing in err: there
 * is no plugin beside the program, or it does not load here. */
const struct gpu_plugin *gpu_load(struct err *err);
/* The same, where there is a card of this number; else NULL, with why in err. */
const struct gpu_plugin *gpu_find(uint32_t number, struct err *err);
/* Whether a driver of CUDA devices is there at all, without loading anything: the plugin's
 * libraries take some 150 MiB of RAM, which no run on the CPU is to pay. */
bool gpu_has_driver(void);
/* For tests, instead of what lies beside the program; NULL: that again. */
void gpu_set_plugin(const struct gpu_plugin *plugin);

#endif
