/*
 * The CUDA device: a stream for each of the compute and copy lanes, chained by events: a mark is
 * two of them, one before and one after its op.
 *
 * Invariants:
 * 1. The card's memory, and all events, are taken when the device and its arena are opened, and
 *    never after.
 * 2. Each call's result is looked at; the first one that fails ends the program, or the opening.
 * 3. CUDA's libraries may allocate as they like: calls of a step are between mem_library_enter and
 *    mem_library_leave.
 */
#include "offload/gpu.h"

#include "core/clock.h"
#include "model/cuda/kernels_cuda.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

/* An allowance for a context with its modules, on the safe side: CUDA does not tell. */
#define CONTEXT_BYTES (450 * MIB)

extern const struct gpu_plugin spillway_gpu_plugin;

_Static_assert(DEVICE_LIST <= KERNELS_CUDA_LIST, "what comes as one list goes as one");

static const enum plan_lane lanes[] = {LANE_COMPUTE, LANE_H2D, LANE_D2H};

struct mark_events {
    cudaEvent_t begin, end;
};

/* What a mark that was given to an op is reached at: its own events or those that it shares. */
struct reached {
    const struct mark_events *events;
    uint64_t turn; /* counts what the events were recorded for; 0: nothing yet */
};

/* The last that a lane's thread has reached: ops that are done together ask once. */
struct latest {
    uint64_t turn;
    struct device_time time;
};

struct gpu {
    struct device device; /* first: the caller's pointer is ours */
    int number;
    cudaStream_t streams[LANE_COUNT]; /* of the compute and copy lanes */
    struct mark_events marks[LANE_COUNT][DEVICE_MARKS];
    struct reached reached[LANE_COUNT][DEVICE_MARKS];
    struct latest latest[LANE_COUNT];
    uint64_t turns;
    cudaEvent_t base; /* a moment of the plan that runs, and when it was by the host's clock */
    uint64_t base_ns;
    struct kernels_cuda *kernels; /* owned; runs on the compute lane's stream */
    void *workspace;
    void *ram; /* registered; NULL: not */
};

static struct gpu *gpu_of(struct device *device)
{
    return (struct gpu *)device;
}

/* ---- Failing --------------------------------------------------------------------------------- */

static int failed(cudaError_t error, const char *call, struct err *err)
{
    return err_set(err, ERR_SYSTEM, "the GPU failed in %s: %s (%s)", call,
                   cudaGetErrorString(error), cudaGetErrorName(error));
}

/* While a step runs. Nothing that was committed is lost by it. */
static void must(cudaError_t error, const char *call)
{
    if (error)
        fatal("the GPU failed in %s: %s (%s); the last commit is intact: continue with --resume",
              call, cudaGetErrorString(error), cudaGetErrorName(error));
}

static void must_run(int result, const struct err *err)
{
    if (result)
        fatal("%s; the last commit is intact: continue with --resume", err->message);
}

/* ---- Ops ------------------------------------------------------------------------------------- */

/* A function of kernels_cuda.h under the device's name for it. */
#define FORWARD(name)                                                                              \
    static void name(struct device *device, const struct kernels_##name *args)                     \
    {                                                                                              \
        struct err err;                                                                            \
        mem_library_enter();                                                                       \
        must_run(kernels_cuda_##name(gpu_of(device)->kernels, args, &err), &err);                  \
        mem_library_leave();                                                                       \
    }
DEVICE_KERNELS(FORWARD)

static void gradient_store(struct device *device, const struct device_store *list, uint32_t count)
{
    struct kernels_cuda_store stores[DEVICE_LIST];
    for (uint32_t i = 0; i < count; i++)
        stores[i] = (struct kernels_cuda_store){
            .gradient = list[i].gradient,
            .stored = list[i].stored,
            .count = list[i].count,
            .padded_count = list[i].padded_count,
            .square_sums = list[i].square_sums,
            .square_count = PLAN_SQUARES_PER_CHUNK,
        };
    struct err err;
    mem_library_enter();
    must_run(kernels_cuda_gradient_store(gpu_of(device)->kernels, stores, count, &err), &err);
    mem_library_leave();
}

static struct gpu_adamw_map map_of(const void *maps, uint32_t number)
{
    const struct moments_map *map = (const struct moments_map *)maps + number;
    return maps ? (struct gpu_adamw_map){map->value, map->middle, map->start}
                : (struct gpu_adamw_map){0};
}

/* Segments end at parts of a chunk, for the CPU's caches; here those of one tensor are one again.
 * False, and nothing is added, where there is no room for them. */
static bool add_run(struct gpu_adamw *adamw, const struct device_update *args)
{
    const struct update *u = &args->update;
    struct gpu_adamw_run *run = &adamw->runs[adamw->run_count];
    uint32_t first = adamw->segment_count;
    *run = (struct gpu_adamw_run){
        .first = u->origin,
        .segment_first = adamw->segment_count,
        .hi = (uint16_t *)u->plane[PLANE_HI],
        .lo = (int16_t *)u->plane[PLANE_LO],
        .m = u->plane[PLANE_M],
        .v = u->plane[PLANE_V],
        .gradient = u->gradient,
        .broken = args->flag,
    };
    for (uint32_t s = 0; s < u->segment_count; s++) {
        const struct update_segment *from = &u->segments[s];
        struct gpu_adamw_segment *last =
            run->segment_count ? &adamw->segments[adamw->segment_count - 1] : NULL;
        run->count = (uint32_t)(from->first + from->count);
        if (last && last->first + last->count == from->first && last->decay == from->decay) {
            last->count += (uint32_t)from->count;
            continue;
        }
        if (adamw->segment_count == GPU_ADAMW_SEGMENTS) {
            ASSERT(first > 0); /* a group has fewer tensors */
            adamw->segment_count = first;
            return false;
        }
        adamw->segments[adamw->segment_count++] =
            (struct gpu_adamw_segment){(uint32_t)from->first, (uint32_t)from->count, from->decay};
        run->segment_count++;
    }
    adamw->run_count++;
    return true;
}

/* As many of the list as fit: how many. They are of one step. */
static uint32_t update_some(struct gpu *gpu, const struct device_update *list, uint32_t count)
{
    const struct update *u = &list->update;
    const struct optim_step *s = u->step;
    struct gpu_adamw adamw = {
        .moments = (enum gpu_adamw_moments)u->moments->kind,
        .bf16 = u->precision == PRECISION_BF16,
        .step = {s->lr, s->beta1, s->beta2, s->eps, s->weight_decay, s->clip_factor, s->correction1,
                 s->correction2, (uint32_t)s->step, u->moments->seed},
        .map_m = map_of(list->maps, 0),
        .map_v = map_of(list->maps, 1),
    };
    while (adamw.run_count < MIN(count, GPU_ADAMW_RUNS) &&
           add_run(&adamw, &list[adamw.run_count])) {
    }
    struct err err;
    must_run(kernels_cuda_adamw(gpu->kernels, gpu->streams[list->lane], &adamw, &err), &err);
    return adamw.run_count;
}

static void update(struct device *device, const struct device_update *list, uint32_t count)
{
    mem_library_enter();
    for (uint32_t done = 0; done < count;)
        done += update_some(gpu_of(device), list + done, count - done);
    mem_library_leave();
}

static void join(struct device *device, const struct device_join *list, uint32_t count)
{
    struct gpu *gpu = gpu_of(device);
    struct gpu_join joins[DEVICE_LIST];
    for (uint32_t i = 0; i < count; i++)
        joins[i] = (struct gpu_join){list[i].count, list[i].hi, list[i].lo, list[i].weights};
    struct err err;
    mem_library_enter();
    must_run(kernels_cuda_join(gpu->kernels, gpu->streams[list->lane], joins, count, &err), &err);
    mem_library_leave();
}

static void copy(struct device *device, const struct device_copy *args)
{
    ASSERT(args->lane == LANE_H2D || args->lane == LANE_D2H);
    mem_library_enter();
    must(cudaMemcpyAsync(args->to, args->from, args->bytes,
                         args->lane == LANE_H2D ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost,
                         gpu_of(device)->streams[args->lane]),
         "cudaMemcpyAsync");
    mem_library_leave();
}

static void enter(struct device *device)
{
    mem_library_enter();
    must(cudaSetDevice(gpu_of(device)->number), "cudaSetDevice");
    mem_library_leave();
}

/* ---- Marks ----------------------------------------------------------------------------------- */

static struct reached *reached_of(struct gpu *gpu, const struct device_mark *mark)
{
    ASSERT(gpu->streams[mark->lane] && mark->number < DEVICE_MARKS);
    return &gpu->reached[mark->lane][mark->number];
}

/* A call that may tell of an earlier op: names the op that it was made for, and its lane. */
static void must_at(cudaError_t error, const char *call, const struct device_mark *mark)
{
    if (error)
        fatal("the GPU failed in %s (%s, %s lane): %s (%s); the last commit is intact: continue "
              "with --resume",
              call, mark->op, plan_lane_name[mark->lane], cudaGetErrorString(error),
              cudaGetErrorName(error));
}

/* The lanes are idle, so that the base is reached at once: the host is not far behind it. */
static void start_plan(struct device *device)
{
    struct gpu *gpu = gpu_of(device);
    mem_library_enter();
    must(cudaEventRecord(gpu->base, gpu->streams[LANE_COMPUTE]), "cudaEventRecord");
    must(cudaEventSynchronize(gpu->base), "cudaEventSynchronize");
    mem_library_leave();
    gpu->base_ns = clock_ns();
}

static void settle(struct device *device, enum plan_lane lane)
{
    mem_library_enter();
    must(cudaStreamSynchronize(gpu_of(device)->streams[lane]), "cudaStreamSynchronize");
    mem_library_leave();
}

static void follow(struct device *device, enum plan_lane lane, const struct device_mark *mark)
{
    struct gpu *gpu = gpu_of(device);
    mem_library_enter();
    must_at(cudaStreamWaitEvent(gpu->streams[lane], reached_of(gpu, mark)->events->end, 0),
            "cudaStreamWaitEvent", mark);
    mem_library_leave();
}

static void begin_mark(struct device *device, const struct device_mark *mark)
{
    struct gpu *gpu = gpu_of(device);
    *reached_of(gpu, mark) = (struct reached){&gpu->marks[mark->lane][mark->number], ++gpu->turns};
    mem_library_enter();
    must_at(cudaEventRecord(reached_of(gpu, mark)->events->begin, gpu->streams[mark->lane]),
            "cudaEventRecord", mark);
    mem_library_leave();
}

static void end_mark(struct device *device, const struct device_mark *mark)
{
    struct gpu *gpu = gpu_of(device);
    mem_library_enter();
    must_at(cudaEventRecord(reached_of(gpu, mark)->events->end, gpu->streams[mark->lane]),
            "cudaEventRecord", mark);
    mem_library_leave();
}

static void share_mark(struct device *device, const struct device_mark *mark,
                       const struct device_mark *with)
{
    struct gpu *gpu = gpu_of(device);
    *reached_of(gpu, mark) = *reached_of(gpu, with);
}

/* When an event was, by the host's clock; not after latest_ns. A float of milliseconds since the
 * plan began: 2 us of a plan of 16 s. */
static uint64_t time_of(const struct gpu *gpu, cudaEvent_t event, const struct device_mark *mark,
                        uint64_t latest_ns)
{
    float ms = 0;
    must_at(cudaEventElapsedTime(&ms, gpu->base, event), "cudaEventElapsedTime", mark);
    return MIN(gpu->base_ns + (uint64_t)(MAX(ms, 0) * 1e6), latest_ns);
}

static void reach(struct device *device, const struct device_mark *mark, struct device_time *time)
{
    struct gpu *gpu = gpu_of(device);
    const struct reached *reached = reached_of(gpu, mark);
    const struct mark_events *events = reached->events;
    struct latest *latest = &gpu->latest[mark->lane];
    if (reached->turn != latest->turn) {
        mem_library_enter();
        must_at(cudaEventSynchronize(events->end), "cudaEventSynchronize", mark);
        latest->turn = reached->turn;
        latest->time.end_ns = time_of(gpu, events->end, mark, clock_ns());
        latest->time.start_ns = time_of(gpu, events->begin, mark, latest->time.end_ns);
        mem_library_leave();
    }
    *time = latest->time;
}

/* ---- Memory ---------------------------------------------------------------------------------- */

static int open_memory(struct device *device, struct mem_arena *vram, uint64_t bytes,
                       const struct mem_arena *ram, struct err *err)
{
    struct gpu *gpu = gpu_of(device);
    void *base = NULL;
    cudaError_t error = cudaMalloc(&base, bytes);
    if (error == cudaErrorMemoryAllocation)
        return err_set(err, ERR_INPUT,
                       "the card has no %llu MiB free for the VRAM budget's arena: close what else "
                       "uses it, or give a smaller --vram-budget",
                       (unsigned long long)(bytes / MIB));
    if (error)
        return failed(error, "cudaMalloc", err);
    *vram = (struct mem_arena){.base = base, .bytes = bytes};
    if (!ram->bytes)
        return 0;
    error = cudaHostRegister(ram->base, ram->bytes, cudaHostRegisterDefault);
    if (error)
        return failed(error, "cudaHostRegister", err);
    gpu->ram = ram->base;
    return 0;
}

/* Closing what has failed fails again, which says nothing new. */
static void close_memory(struct device *device, struct mem_arena *vram)
{
    struct gpu *gpu = gpu_of(device);
    if (gpu->ram)
        cudaHostUnregister(gpu->ram);
    if (vram->base)
        cudaFree(vram->base);
    gpu->ram = NULL;
    *vram = (struct mem_arena){0};
}

/* ---- Opening and closing --------------------------------------------------------------------- */

static void close_lane(struct gpu *gpu, enum plan_lane lane)
{
    for (uint32_t i = 0; i < DEVICE_MARKS; i++) {
        const struct mark_events *events = &gpu->marks[lane][i];
        if (events->begin)
            cudaEventDestroy(events->begin);
        if (events->end)
            cudaEventDestroy(events->end);
    }
    if (gpu->streams[lane])
        cudaStreamDestroy(gpu->streams[lane]);
}

static void close_gpu(struct device *device)
{
    struct gpu *gpu = gpu_of(device);
    kernels_cuda_close(gpu->kernels);
    if (gpu->workspace)
        cudaFree(gpu->workspace);
    for (size_t i = 0; i < ARRAY_COUNT(lanes); i++)
        close_lane(gpu, lanes[i]);
    if (gpu->base)
        cudaEventDestroy(gpu->base);
    mem_free(gpu);
}

static const struct device_ops ops = {
    DEVICE_KERNELS(DEVICE_ENTRY).gradient_store = gradient_store,
    .update = update,
    .join = join,
    .copy = copy,
    .enter = enter,
    .chained = true,
    .start_plan = start_plan,
    .settle = settle,
    .follow = follow,
    .begin = begin_mark,
    .end = end_mark,
    .share = share_mark,
    .reach = reach,
    .open_memory = open_memory,
    .close_memory = close_memory,
    .close = close_gpu,
};

static uint32_t count(struct err *err)
{
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error)
        err_set(err, ERR_INPUT, "there is no CUDA device here: %s (%s)", cudaGetErrorString(error),
                cudaGetErrorName(error));
    else if (!devices)
        err_set(err, ERR_INPUT, "there is no CUDA device here");
    return error ? 0 : (uint32_t)devices;
}

static int info(uint32_t number, struct gpu_info *gpu_info, struct err *err)
{
    struct cudaDeviceProp prop;
    size_t free_bytes = 0, vram_bytes = 0;
    *gpu_info = (struct gpu_info){0};
    cudaError_t error = cudaGetDeviceProperties(&prop, (int)number);
    if (error)
        return failed(error, "cudaGetDeviceProperties", err);
    error = cudaSetDevice((int)number);
    if (error)
        return failed(error, "cudaSetDevice", err);
    error = cudaMemGetInfo(&free_bytes, &vram_bytes);
    if (error)
        return failed(error, "cudaMemGetInfo", err);
    snprintf(gpu_info->name, sizeof(gpu_info->name), "%s", prop.name);
    snprintf(gpu_info->pci, sizeof(gpu_info->pci), "%04x:%02x:%02x.0", prop.pciDomainID,
             prop.pciBusID, prop.pciDeviceID);
    gpu_info->major = (uint32_t)prop.major;
    gpu_info->minor = (uint32_t)prop.minor;
    gpu_info->processors = (uint32_t)prop.multiProcessorCount;
    gpu_info->vram_bytes = vram_bytes;
    gpu_info->free_bytes = free_bytes;
    cudaDriverGetVersion(&gpu_info->driver);
    cudaRuntimeGetVersion(&gpu_info->runtime);
    return 0;
}

static int open_event(cudaEvent_t *event, unsigned int flags, struct err *err)
{
    cudaError_t error = cudaEventCreateWithFlags(event, flags);
    return error ? failed(error, "cudaEventCreateWithFlags", err) : 0;
}

/* Threads sleep until an end is reached: the cores are the optimizer's. */
static int open_lane(struct gpu *gpu, enum plan_lane lane, struct err *err)
{
    cudaError_t error = cudaStreamCreateWithFlags(&gpu->streams[lane], cudaStreamNonBlocking);
    int result = error ? failed(error, "cudaStreamCreateWithFlags", err) : 0;
    for (uint32_t i = 0; i < DEVICE_MARKS && result == 0; i++) {
        result = open_event(&gpu->marks[lane][i].begin, cudaEventDefault, err);
        if (result == 0)
            result = open_event(&gpu->marks[lane][i].end, cudaEventBlockingSync, err);
    }
    return result;
}

static int open_lanes(struct gpu *gpu, struct err *err)
{
    int result = open_event(&gpu->base, cudaEventDefault, err);
    for (size_t i = 0; i < ARRAY_COUNT(lanes) && result == 0; i++)
        result = open_lane(gpu, lanes[i], err);
    return result;
}

static int open_kernels(struct gpu *gpu, const struct gpu_setup *setup, struct err *err)
{
    cudaError_t error = cudaMalloc(&gpu->workspace, kernels_cuda_workspace_bytes());
    if (error)
        return failed(error, "cudaMalloc", err);
    const struct kernels_cuda_open args = {
        .shape = setup->shape,
        .tensors = setup->tensors,
        .stream = gpu->streams[LANE_COMPUTE],
        .workspace = gpu->workspace,
    };
    return kernels_cuda_open(&gpu->kernels, &args, err);
}

static int open_gpu(struct device **device, const struct gpu_setup *setup, uint64_t *overhead_bytes,
                    struct err *err)
{
    struct gpu *gpu = mem_alloc(1, sizeof(*gpu));
    struct cudaDeviceProp prop;
    size_t before = 0, after = 0, all = 0;
    gpu->device.ops = &ops;
    gpu->number = (int)setup->number;
    *device = &gpu->device;
    cudaError_t error = cudaSetDevice(gpu->number);
    if (error)
        return failed(error, "cudaSetDevice", err);
    error = cudaGetDeviceProperties(&prop, gpu->number);
    if (error)
        return failed(error, "cudaGetDeviceProperties", err);
    gpu->device.host_memory = prop.integrated;
    error = cudaMemGetInfo(&before, &all);
    if (error)
        return failed(error, "cudaMemGetInfo", err);
    int result = open_lanes(gpu, err);
    if (result == 0)
        result = open_kernels(gpu, setup, err);
    if (result)
        return result;
    error = cudaMemGetInfo(&after, &all);
    if (error)
        return failed(error, "cudaMemGetInfo", err);
    /* The context was there when `before` was asked for; what it takes is not told. */
    *overhead_bytes = CONTEXT_BYTES + (before > after ? before - after : 0);
    return 0;
}

const struct gpu_plugin spillway_gpu_plugin = {
    .version = GPU_PLUGIN_VERSION,
    .count = count,
    .info = info,
    .sizes = kernels_cuda_sizes,
    .open = open_gpu,
    .rates = &gpu_rates_table,
};
