/*
 * Invariants:
 * 1. A lane thread and the scheduler share one queue each way: the scheduler alone moves `queued`
 *    and `reaped`, the thread alone `finished`. At most LANE_DEPTH ops lie between.
 * 2. A semaphore counts queued ops; ring_wake follows every finished one, so that ring_reap is the
 *    only place where the scheduler sleeps.
 */
#include "offload/engine_real.h"

#include "core/clock.h"
#include "io/ring.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#define LANE_DEPTH       4
#define LANE_STACK_BYTES (512 * KIB)

/* Deadlines that do not wait, and that do not come. */
#define NOW   0
#define NEVER UINT64_MAX

struct lane {
    struct engine_real *real;
    enum plan_lane which;
    struct device *device; /* NULL for lanes of the CPU */
    bool running;
    pthread_t thread;
    sem_t work;
    uint32_t ops[LANE_DEPTH];
    struct engine_completion done[LANE_DEPTH];
    atomic_uint queued, finished;
    unsigned reaped;
    atomic_bool stop;
};

struct engine_real {
    struct engine engine; /* first: the scheduler's pointer is ours */
    struct exec *exec;
    struct ring *ring;
    const struct plan *plan;
    struct lane lanes[LANE_COUNT];
    uint64_t *start_ns; /* owned; [op]: when a transfer was submitted */
    uint32_t op_max;
};

static void *lane_main(void *context)
{
    struct lane *lane = context;
    struct engine_real *real = lane->real;
    if (lane->device)
        lane->device->ops->enter(lane->device);
    for (;;) {
        while (sem_wait(&lane->work) != 0)
            ASSERT(errno == EINTR);
        if (atomic_load_explicit(&lane->stop, memory_order_acquire))
            return NULL;
        unsigned slot = atomic_load_explicit(&lane->finished, memory_order_relaxed) % LANE_DEPTH;
        struct engine_completion *done = &lane->done[slot];
        done->op = lane->ops[slot];
        done->start_ns = clock_ns();
        exec_op(real->exec, &real->plan->ops[done->op]);
        if (lane->device)
            lane->device->ops->wait(lane->device, lane->which);
        done->end_ns = clock_ns();
        atomic_fetch_add_explicit(&lane->finished, 1, memory_order_release);
        ring_wake(real->ring);
    }
}

static void begin(struct engine *engine, const struct plan *plan)
{
    struct engine_real *real = (struct engine_real *)engine;
    ASSERT(ring_in_flight(real->ring) == 0);
    ASSERT(plan->op_count <= real->op_max);
    real->plan = plan;
    real->exec->commit_plan = plan->commit;
}

static void submit_transfer(struct engine_real *real, uint32_t number)
{
    const struct plan_op *op = &real->plan->ops[number];
    struct exec *exec = real->exec;
    bool write = op->kind == OP_WRITE;
    uint32_t file_cell = op->uses[write ? 1 : 0].cells.first;
    uint8_t *buffer = exec_cell(exec, op->uses[write ? 0 : 1].cells.first);
    /* A stage holds the image of a whole chunk; a resident plane is its own memory. */
    if (op->plane_count && !(op->flags & OP_COMMITTED))
        buffer +=
            layout_plane_offset(exec->layout, exec->layout->chunks[op->chunk].count, op->plane);
    struct tier_location where =
        write ? tier_write_at(exec->tier, file_cell) : tier_read_at(exec->tier, file_cell);
    struct ring_transfer transfer = {
        .fd = where.fd,
        .write = write,
        .buffer = buffer,
        .bytes = op->bytes,
        .offset = where.offset,
        .tag = number,
    };
    real->start_ns[number] = clock_ns();
    ring_submit(real->ring, &transfer);
}

static void submit(struct engine *engine, uint32_t number)
{
    struct engine_real *real = (struct engine_real *)engine;
    const struct plan_op *op = &real->plan->ops[number];
    if (op->lane == LANE_SSD_READ || op->lane == LANE_SSD_WRITE) {
        submit_transfer(real, number);
        return;
    }
    struct lane *lane = &real->lanes[op->lane];
    ASSERT(lane->running);
    unsigned queued = atomic_load_explicit(&lane->queued, memory_order_relaxed);
    ASSERT(queued - lane->reaped < LANE_DEPTH); /* invariant 1 */
    lane->ops[queued % LANE_DEPTH] = number;
    atomic_store_explicit(&lane->queued, queued + 1, memory_order_release);
    sem_post(&lane->work);
}

static uint32_t reap_lanes(struct engine_real *real, struct engine_completion *completions,
                           uint32_t max)
{
    uint32_t count = 0;
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        struct lane *lane = &real->lanes[l];
        if (!lane->running)
            continue;
        unsigned finished = atomic_load_explicit(&lane->finished, memory_order_acquire);
        while (lane->reaped != finished && count < max)
            completions[count++] = lane->done[lane->reaped++ % LANE_DEPTH];
    }
    return count;
}

_Noreturn static void transfer_failed(struct engine_real *real, const struct plan_op *op,
                                      const struct ring_completion *completion)
{
    bool write = op->kind == OP_WRITE;
    struct tier *tier = real->exec->tier;
    uint32_t cell = op->uses[write ? 1 : 0].cells.first;
    struct tier_location at = tier_read_at(tier, cell);
    fatal("cannot %s %s at offset %" PRIu64 ": %s; %s%s", write ? "write" : "read", at.path,
          at.offset + completion->done_bytes, ring_explain(real->ring, completion->error),
          tier_commit_note(tier),
          tier->overwriting ? "" : ": continue with --resume when the drive is well again");
}

static uint32_t reap_ring(struct engine_real *real, struct engine_completion *completions,
                          uint32_t max, uint64_t deadline_ns)
{
    struct ring_completion done[32];
    max = MIN(max, (uint32_t)ARRAY_COUNT(done));
    uint32_t count = deadline_ns == NOW || deadline_ns == NEVER
                         ? ring_reap(real->ring, done, max, deadline_ns == NEVER)
                         : ring_reap_until(real->ring, done, max, deadline_ns);
    uint64_t now_ns = clock_ns();
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = (uint32_t)done[i].tag;
        if (done[i].error)
            transfer_failed(real, &real->plan->ops[number], &done[i]);
        completions[i] = (struct engine_completion){number, real->start_ns[number], now_ns};
    }
    return count;
}

uint32_t engine_real_reap(struct engine_real *real, struct engine_completion *completions,
                          uint32_t max, uint64_t deadline_ns)
{
    for (;;) {
        uint32_t count = reap_lanes(real, completions, max);
        if (count < max)
            count += reap_ring(real, completions + count, max - count, count ? NOW : deadline_ns);
        if (count || (deadline_ns != NEVER && clock_ns() >= deadline_ns))
            return count;
    }
}

static uint32_t reap(struct engine *engine, struct engine_completion *completions, uint32_t max)
{
    return engine_real_reap((struct engine_real *)engine, completions, max, NEVER);
}

static uint64_t now_ns(struct engine *engine)
{
    (void)engine;
    return clock_ns();
}

static int start_lane(struct engine_real *real, enum plan_lane which, struct err *err)
{
    struct lane *lane = &real->lanes[which];
    lane->real = real;
    lane->which = which;
    lane->device = which == LANE_CPU ? NULL : real->exec->device;
    sem_init(&lane->work, 0, 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, LANE_STACK_BYTES);
    int error = pthread_create(&lane->thread, &attributes, lane_main, lane);
    pthread_attr_destroy(&attributes);
    if (error)
        return err_set_errno(err, error, "cannot start the thread of the %s lane",
                             plan_lane_name[which]);
    lane->running = true;
    pthread_setname_np(lane->thread, plan_lane_name[which]);
    return 0;
}

int engine_real_open(struct engine_real **out, struct exec *exec, struct ring *ring,
                     uint32_t drive_depth, struct err *err)
{
    ASSERT(drive_depth > 0 && drive_depth <= ENGINE_DRIVE_DEPTH_MAX);
    struct engine_real *real = mem_alloc(1, sizeof(*real));
    *out = real;
    real->engine =
        (struct engine){.begin = begin, .submit = submit, .reap = reap, .now_ns = now_ns};
    real->exec = exec;
    real->ring = ring;
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        bool is_drive = lane == LANE_SSD_READ || lane == LANE_SSD_WRITE;
        bool is_copy = lane == LANE_H2D || lane == LANE_D2H;
        bool is_modelled = exec->device_modelled && (is_copy || lane == LANE_COMPUTE);
        real->engine.depth[lane] = is_drive ? drive_depth : LANE_DEPTH;
        real->engine.in_order[lane] = !is_drive;
        if (is_drive || is_modelled || (is_copy && !exec->memory->separate_device))
            continue;
        int result = start_lane(real, lane, err);
        if (result)
            return result;
    }
    return 0;
}

void engine_real_reserve(struct engine_real *real, uint32_t op_max)
{
    mem_free(real->start_ns);
    real->op_max = op_max;
    real->start_ns = mem_alloc(op_max, sizeof(*real->start_ns));
}

void engine_real_close(struct engine_real *real)
{
    if (!real)
        return;
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        struct lane *lane = &real->lanes[l];
        if (!lane->running)
            continue;
        atomic_store_explicit(&lane->stop, true, memory_order_release);
        sem_post(&lane->work);
        pthread_join(lane->thread, NULL);
        sem_destroy(&lane->work);
    }
    mem_free(real->start_ns);
    mem_free(real);
}

struct engine *engine_real_engine(struct engine_real *real)
{
    return &real->engine;
}
