/*
 * device: what computes, and where its memory is, as a table of functions: the kernels of
 * model/kernels.h over memory of the device, copies between it and RAM, and waiting. device_cpu.c
 * implements it with threads and RAM; gpu.c with CUDA, in a plugin that is loaded at run time
 * (gpu.h).
 *
 * An op of a lane is called by that lane's thread, one at a time; it may return before its work is
 * done. `wait` returns when all that the lane was given is done, its reads and writes visible to
 * every other lane. What breaks underneath is fatal there, with a sentence: the last commit is
 * intact. Nothing allocates between open_memory and close_memory.
 */
#ifndef SPILLWAY_OFFLOAD_DEVICE_H
#define SPILLWAY_OFFLOAD_DEVICE_H

#include "core/mem.h"
#include "model/kernels.h"
#include "offload/plan.h"

struct device;

/* kernels_gradient_store of a whole chunk: what its padding stores is zeroed, and so are the sums
 * of squares before theirs are written. */
struct device_store {
    const float *gradient;
    void *stored;
    uint64_t count, padded_count; /* parameters */
    uint64_t element_bytes;       /* of stored */
    double *square_sums;          /* PLAN_SQUARES_PER_CHUNK */
};

struct device_copy {
    enum plan_lane lane; /* LANE_H2D or LANE_D2H */
    void *to;
    const void *from;
    uint64_t bytes;
};

/* The functions of model/kernels.h that a device has under the same names: X(block_forward) ... */
#define DEVICE_KERNELS(X)                                                                          \
    X(block_forward)                                                                               \
    X(block_backward)                                                                              \
    X(embed_forward)                                                                               \
    X(position_forward)                                                                            \
    X(embed_backward)                                                                              \
    X(position_backward)                                                                           \
    X(norm_forward)                                                                                \
    X(norm_backward)                                                                               \
    X(head_forward)                                                                                \
    X(head_loss)                                                                                   \
    X(head_backward)
#define DEVICE_MEMBER(name) void (*name)(struct device *, const struct kernels_##name *);
#define DEVICE_ENTRY(name)  .name = name,

struct device_ops {
    DEVICE_KERNELS(DEVICE_MEMBER)
    void (*gradient_store)(struct device *device, const struct device_store *args);
    void (*copy)(struct device *device, const struct device_copy *args);

    /* A lane's thread, before its first op. */
    void (*enter)(struct device *device);
    void (*wait)(struct device *device, enum plan_lane lane);

    /* vram: `bytes` of the device's memory, for the life of the run; its base is no address of the
     * host where the device has its own. ram: what the device copies from and to, pinned for it.
     * Closing what was not opened is legal. */
    int (*open_memory)(struct device *device, struct mem_arena *vram, uint64_t bytes,
                       const struct mem_arena *ram, struct err *err);
    void (*close_memory)(struct device *device, struct mem_arena *vram);
    void (*close)(struct device *device);
};

struct device {
    const struct device_ops *ops;
};

/* The CPU. kernels is borrowed. */
int device_cpu_open(struct device **device, struct kernels *kernels, struct err *err);
static inline void device_close(struct device *device)
{
    if (device)
        device->ops->close(device);
}

#endif
