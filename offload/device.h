/*
 * device: what computes, and where its memory is, as a table of functions: the kernels of
 * model/kernels.h over memory of the device, copies between it and RAM, and how its lanes wait for
 * each other. device_cpu.c implements it with threads and RAM; gpu.c with CUDA, in a plugin that is
 * loaded at run time (gpu.h).
 *
 * A device is chained or it is not. One that is not has a thread for each lane, which calls its ops
 * one at a time; an op is done when it returns. Of a chained device one thread calls the ops of all
 * lanes, in an order in which what an op waits for comes before it; they return before they are
 * done. Around each of them that thread calls `follow` for what the op has to wait for, `begin`
 * and `end`, or, of ops that are done together, around all of them; the lane's own thread then
 * calls `reach`, once for each op, in their order.
 *
 * What breaks underneath is fatal there, with a sentence: the last commit is intact. Nothing
 * allocates between open_memory and close_memory.
 */
#ifndef SPILLWAY_OFFLOAD_DEVICE_H
#define SPILLWAY_OFFLOAD_DEVICE_H

#include "core/mem.h"
#include "model/kernels.h"
#include "offload/engine.h"
#include "offload/plan.h"
#include "offload/update.h"

struct device;

/* Of a chained device: a moment in a lane, of DEVICE_MARKS that each lane has. A mark is used again
 * when it has been reached, and all before it. */
#define DEVICE_MARKS ENGINE_CHAIN_DEPTH
struct device_mark {
    enum plan_lane lane;
    uint32_t number; /* below DEVICE_MARKS */
    const char *op;  /* what is done between begin and end, for messages */
};

struct device_time {
    uint64_t start_ns, end_ns; /* of clock_ns */
};

/* kernels_gradient_store of a whole chunk: what its padding stores is zeroed, and so are the sums
 * of squares before theirs are written. */
struct device_store {
    const float *gradient;
    void *stored;
    uint64_t count, padded_count; /* parameters */
    uint64_t element_bytes;       /* of stored */
    double *square_sums;          /* PLAN_SQUARES_PER_CHUNK */
};

/* An update of a chunk whose state and gradient are the device's: the pointers in `update` to
 * planes and gradient are to its memory. Every device gives the bits that update_part gives. */
struct device_update {
    enum plan_lane lane; /* LANE_COMPUTE or LANE_D2H */
    struct update update;
    const void *maps; /* PLAN_MAPS_BYTES on the device; NULL unless moments are of 8 bits */
    uint32_t *flag;   /* on the device: set to 1 when something is no longer finite, never to 0 */
};

/* The compute weights of such a chunk: of hi alone its copy, with lo what both are in FP32. */
struct device_join {
    enum plan_lane lane; /* as of the update */
    const uint16_t *hi;
    const int16_t *lo; /* or NULL */
    void *weights;
    uint64_t count; /* padded parameters */
};
/* How the CPU makes one part (LAYOUT_PART_PARAMETERS) of it, any thread. */
void device_cpu_join_part(const struct device_join *args, uint32_t part);

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
    X(head_backward)                                                                               \
    X(head_once)
#define DEVICE_MEMBER(name) void (*name)(struct device *, const struct kernels_##name *);
#define DEVICE_ENTRY(name)  .name = name,

/* What the three that pass over chunks take at once, all of one lane: a chunk alone is too little
 * for a GPU, which can do more of them in the time that it takes to begin. */
#define DEVICE_LIST 16u

struct device_ops {
    DEVICE_KERNELS(DEVICE_MEMBER)
    void (*gradient_store)(struct device *device, const struct device_store *list, uint32_t count);
    void (*update)(struct device *device, const struct device_update *list, uint32_t count);
    void (*join)(struct device *device, const struct device_join *list, uint32_t count);
    void (*copy)(struct device *device, const struct device_copy *args);

    /* A thread, before its first op. */
    void (*enter)(struct device *device);

    /* Below, only of a chained device. */
    bool chained;
    /* Before the ops of a plan, by the thread that opened the device; nothing is in flight. */
    void (*start_plan)(struct device *device);
    /* What `lane` is given from here on begins when the mark, which was ended, is reached. */
    void (*follow)(struct device *device, enum plan_lane lane, const struct device_mark *mark);
    void (*begin)(struct device *device, const struct device_mark *mark);
    void (*end)(struct device *device, const struct device_mark *mark);
    /* In the place of begin and end, after `with` was ended: of an op that was done with the op of
     * `with`, which comes after it in the lane. It is reached when `with` is, and told its times.
     */
    void (*share)(struct device *device, const struct device_mark *mark,
                  const struct device_mark *with);
    /* Outside of plans: returns when all that the lane was given is done. */
    void (*settle)(struct device *device, enum plan_lane lane);
    /* Returns when all that the lane was given before `end` is done, its writes visible to the
     * host. time: of what lay between begin and end, by the device's own clock; how far that is
     * off the host's was found at start_plan. */
    void (*reach)(struct device *device, const struct device_mark *mark, struct device_time *time);

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
    bool host_memory; /* its memory is the host's, and counted as this process's */
};

/* The CPU. kernels and the pool that they run on are borrowed. */
int device_cpu_open(struct device **device, struct kernels *kernels, struct pool *pool,
                    struct err *err);
static inline void device_close(struct device *device)
{
    if (device)
        device->ops->close(device);
}

#endif
