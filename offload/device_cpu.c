#include "offload/device.h"

#include "core/float.h"
#include "core/pool.h"

#include <string.h>

struct device_cpu {
    struct device device; /* first: the caller's pointer is ours */
    struct kernels *kernels;
    struct pool *pool;
};

static struct kernels *kernels_of(struct device *device)
{
    return ((struct device_cpu *)device)->kernels;
}

/* A function of model/kernels.h under the device's name for it. */
#define FORWARD(name)                                                                              \
    static void name(struct device *device, const struct kernels_##name *args)                     \
    {                                                                                              \
        kernels_##name(kernels_of(device), args);                                                  \
    }
DEVICE_KERNELS(FORWARD)

static void store_one(struct device *device, const struct device_store *args)
{
    uint8_t *stored = args->stored;
    memset(args->square_sums, 0, PLAN_SQUARES_PER_CHUNK * sizeof(*args->square_sums));
    kernels_gradient_store(kernels_of(device), args->gradient, stored, args->count,
                           args->square_sums);
    memset(stored + args->count * args->element_bytes, 0,
           (args->padded_count - args->count) * args->element_bytes);
}

static void gradient_store(struct device *device, const struct device_store *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        store_one(device, &list[i]);
}

/* The pool is the compute lane's; another lane works by itself. */
static void run_parts(struct device *device, enum plan_lane lane,
                      void (*task)(void *context, uint32_t part, uint32_t worker), void *context,
                      uint32_t count)
{
    if (lane == LANE_COMPUTE) {
        pool_run(((struct device_cpu *)device)->pool, task, context, count);
        return;
    }
    for (uint32_t part = 0; part < count; part++)
        task(context, part, 0);
}

static void update_task(void *context, uint32_t part, uint32_t worker)
{
    (void)worker;
    const struct device_update *args = context;
    if (!update_part(&args->update, part))
        __atomic_store_n(args->flag, 1, __ATOMIC_RELAXED);
}

static void update(struct device *device, const struct device_update *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct device_update job = list[i];
        run_parts(device, job.lane, update_task, &job, update_part_count(&job.update));
    }
}

void device_cpu_join_part(const struct device_join *args, uint32_t part)
{
    uint64_t first = part * LAYOUT_PART_PARAMETERS;
    uint64_t count = MIN(LAYOUT_PART_PARAMETERS, args->count - first);
    if (args->lo)
        float_join_many(args->hi + first, args->lo + first, (float *)args->weights + first, count);
    else
        memcpy((uint16_t *)args->weights + first, args->hi + first, count * sizeof(*args->hi));
}

static void join_task(void *context, uint32_t part, uint32_t worker)
{
    (void)worker;
    device_cpu_join_part(context, part);
}

static void join(struct device *device, const struct device_join *list, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct device_join job = list[i];
        run_parts(device, job.lane, join_task, &job,
                  (uint32_t)div_up(job.count, LAYOUT_PART_PARAMETERS));
    }
}

static void copy(struct device *device, const struct device_copy *args)
{
    (void)device;
    memcpy(args->to, args->from, args->bytes);
}

static void enter(struct device *device)
{
    (void)device;
}

static int open_memory(struct device *device, struct mem_arena *vram, uint64_t bytes,
                       const struct mem_arena *ram, struct err *err)
{
    (void)device;
    (void)ram;
    return mem_arena_open(vram, bytes, err);
}

static void close_memory(struct device *device, struct mem_arena *vram)
{
    (void)device;
    mem_arena_close(vram);
}

static void close_device(struct device *device)
{
    mem_free(device);
}

static const struct device_ops ops = {
    DEVICE_KERNELS(DEVICE_ENTRY).gradient_store = gradient_store,
    .update = update,
    .join = join,
    .copy = copy,
    .enter = enter,
    .open_memory = open_memory,
    .close_memory = close_memory,
    .close = close_device,
};

int device_cpu_open(struct device **out, struct kernels *kernels, struct pool *pool,
                    struct err *err)
{
    (void)err;
    struct device_cpu *cpu = mem_alloc(1, sizeof(*cpu));
    cpu->device.ops = &ops;
    cpu->device.host_memory = true;
    cpu->kernels = kernels;
    cpu->pool = pool;
    *out = &cpu->device;
    return 0;
}
