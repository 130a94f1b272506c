/*
 * Invariants:
 * 1. A lane thread and the scheduler share one queue each way: the scheduler alone moves `queued`
 *    and `reaped`, the thread alone `finished`. At most depth[lane] ops lie between.
 * 2. A semaphore counts queued ops, or, of a chained lane, those that the feeder has handed over;
 *    ring_wake follows every finished one, or the last of those that are done together, so that
 *    ring_reap is the only place where the scheduler sleeps.
 * 3. The feeder hands ops over in the order of submission. So the end of what an op waits for was
 *    recorded before the op comes to it, and the mark, which is free for another op when its own
 *    has been reaped, cannot have been given to one yet: that one was submitted later.
 * 4. It comes to them when the scheduler has gone over all lanes, so that those that can be done as
 *    one are there. They share the mark of the last, which is reaped after the others.
 */
#include "offload/engine_real.h"

#include "core/clock.h"
#include "io/ring.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <assert.h>
#include <semaphore.h>
#include <stdatomic.h>

#define LANE_DEPTH       4
#define LANE_STACK_BYTES (512 * KIB)
#define QUEUE_MAX        ENGINE_CHAIN_DEPTH
#define FEED_MAX         (4 * ENGINE_CHAIN_DEPTH) /* three lanes are chained at most */

static_assert(LANE_DEPTH <= QUEUE_MAX && QUEUE_MAX == DEVICE_MARKS, "a mark for each op of a lane");

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
    uint32_t ops[QUEUE_MAX];
    bool with_next[QUEUE_MAX]; /* done together with the op behind it */
    struct engine_completion done[QUEUE_MAX];
    atomic_uint queued, finished;
    unsigned reaped;
    atomic_bool stop;
};

/* An op of a chained lane on its way to the device. */
struct feed {
    uint32_t op;
    struct device_mark mark;
    struct device_mark after[LANE_COUNT]; /* what it waits for on other lanes */
    uint32_t after_count;
};

struct feeder {
    struct engine_real *real;
    bool running;
    pthread_t thread;
    sem_t work;
    struct feed queue[FEED_MAX];
    unsigned queued;    /* the scheduler's */
    atomic_uint handed; /* of these, what the feeder may take */
    atomic_bool stop;
};

struct engine_real {
    struct engine engine; /* first: the scheduler's pointer is ours */
    struct exec *exec;
    struct ring *ring;
    const struct plan *plan;
    struct lane lanes[LANE_COUNT];
    struct feeder feeder; /* runs where lanes are chained */
    uint64_t *start_ns;   /* owned; [op]: when a transfer was submitted */
    uint32_t op_max;
};

/* False at the end. */
static bool next_work(sem_t *work, atomic_bool *stop)
{
    while (sem_wait(work) != 0)
        ASSERT(errno == EINTR);
    return !atomic_load_explicit(stop, memory_order_acquire);
}

static struct device_mark mark_of(const struct engine_real *real, const struct lane *lane,
                                  unsigned position)
{
    uint32_t number = position % QUEUE_MAX;
    uint8_t kind = real->plan->ops[lane->ops[number]].kind;
    return (struct device_mark){lane->which, number, plan_op_name[kind]};
}

/* The feed at `at`, before `end`, with those after it that can be done with it: how many. */
static uint32_t feed_together(struct feeder *feeder, unsigned at, unsigned end)
{
    struct engine_real *real = feeder->real;
    struct device *device = real->exec->device;
    const struct feed *feed = &feeder->queue[at % FEED_MAX], *last = feed;
    const struct plan_op *ops[DEVICE_LIST] = {&real->plan->ops[feed->op]};
    enum plan_lane lane = (enum plan_lane)ops[0]->lane;
    uint32_t count = 1;
    for (; count < DEVICE_LIST && at + count != end; count++) {
        const struct feed *next = &feeder->queue[(at + count) % FEED_MAX];
        const struct plan_op *op = &real->plan->ops[next->op];
        if (next->after_count || !exec_joins(ops, count, op))
            break;
        ops[count] = op;
        last = next;
    }
    for (uint32_t i = 0; i < feed->after_count; i++)
        device->ops->follow(device, lane, &feed->after[i]);
    device->ops->begin(device, &last->mark);
    exec_ops(real->exec, ops, count);
    device->ops->end(device, &last->mark);
    for (uint32_t i = 0; i < count; i++) {
        const struct device_mark *mark = &feeder->queue[(at + i) % FEED_MAX].mark;
        real->lanes[lane].with_next[mark->number] = i + 1 < count;
        if (i + 1 < count)
            device->ops->share(device, mark, &last->mark);
    }
    for (uint32_t i = 0; i < count; i++)
        sem_post(&real->lanes[lane].work);
    return count;
}

static void *feeder_main(void *context)
{
    struct feeder *feeder = context;
    struct device *device = feeder->real->exec->device;
    unsigned at = 0;
    mem_own_thread();
    device->ops->enter(device);
    while (next_work(&feeder->work, &feeder->stop)) {
        unsigned end = atomic_load_explicit(&feeder->handed, memory_order_acquire);
        while (at != end)
            at += feed_together(feeder, at, end);
    }
    return NULL;
}

/* Runs an op, or waits for one that the feeder has handed over. */
static void complete(struct lane *lane, unsigned position, struct engine_completion *done)
{
    struct engine_real *real = lane->real;
    if (real->engine.chained[lane->which]) {
        struct device_mark mark = mark_of(real, lane, position);
        struct device_time time;
        lane->device->ops->reach(lane->device, &mark, &time);
        done->start_ns = time.start_ns;
        done->end_ns = time.end_ns;
        return;
    }
    done->start_ns = clock_ns();
    exec_op(real->exec, &real->plan->ops[done->op]);
    done->end_ns = clock_ns();
}

static void *lane_main(void *context)
{
    struct lane *lane = context;
    mem_own_thread();
    if (lane->device)
        lane->device->ops->enter(lane->device);
    while (next_work(&lane->work, &lane->stop)) {
        unsigned position = atomic_load_explicit(&lane->finished, memory_order_relaxed);
        struct engine_completion *done = &lane->done[position % QUEUE_MAX];
        done->op = lane->ops[position % QUEUE_MAX];
        complete(lane, position, done);
        bool with_next = lane->with_next[position % QUEUE_MAX];
        atomic_fetch_add_explicit(&lane->finished, 1, memory_order_release);
        if (!with_next)
            ring_wake(lane->real->ring);
    }
    return NULL;
}

static void begin(struct engine *engine, const struct plan *plan)
{
    struct engine_real *real = (struct engine_real *)engine;
    ASSERT(ring_in_flight(real->ring) == 0);
    ASSERT(plan->op_count <= real->op_max);
    real->plan = plan;
    real->exec->commit_plan = plan->commit;
    if (real->feeder.running)
        real->exec->device->ops->start_plan(real->exec->device);
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

/* What is still in flight of what the op waits for on other chained lanes. */
static void find_after(const struct engine_real *real, struct feed *feed)
{
    uint32_t last[LANE_COUNT];
    engine_find_behind(&real->engine, real->plan, feed->op, last);
    feed->after_count = 0;
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        const struct lane *lane = &real->lanes[l];
        unsigned end = atomic_load_explicit(&lane->queued, memory_order_relaxed);
        for (unsigned at = lane->reaped; last[l] != PLAN_NONE && at != end; at++)
            if (lane->ops[at % QUEUE_MAX] == last[l])
                feed->after[feed->after_count++] = mark_of(real, lane, at);
    }
}

static void feed_device(struct engine_real *real, const struct lane *lane, unsigned position)
{
    struct feeder *feeder = &real->feeder;
    struct feed *feed = &feeder->queue[feeder->queued++ % FEED_MAX]; /* free: FEED_MAX says why */
    feed->op = lane->ops[position % QUEUE_MAX];
    feed->mark = mark_of(real, lane, position);
    find_after(real, feed);
}

/* What was submitted since the last time. */
static void hand_over(struct feeder *feeder)
{
    if (feeder->queued == atomic_load_explicit(&feeder->handed, memory_order_relaxed))
        return;
    atomic_store_explicit(&feeder->handed, feeder->queued, memory_order_release);
    sem_post(&feeder->work);
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
    ASSERT(queued - lane->reaped < engine->depth[op->lane]); /* invariant 1 */
    lane->ops[queued % QUEUE_MAX] = number;
    atomic_store_explicit(&lane->queued, queued + 1, memory_order_release);
    if (engine->chained[op->lane])
        feed_device(real, lane, queued);
    else
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
            completions[count++] = lane->done[lane->reaped++ % QUEUE_MAX];
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
    if (real->feeder.running)
        hand_over(&real->feeder);
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

static int start_thread(pthread_t *thread, const char *name, void *(*run)(void *), void *context,
                        struct err *err)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, LANE_STACK_BYTES);
    int error = pthread_create(thread, &attributes, run, context);
    pthread_attr_destroy(&attributes);
    if (error)
        return err_set_errno(err, error, "cannot start the %s thread", name);
    pthread_setname_np(*thread, name);
    return 0;
}

static int start_lane(struct engine_real *real, enum plan_lane which, struct err *err)
{
    struct lane *lane = &real->lanes[which];
    lane->real = real;
    lane->which = which;
    lane->device = which == LANE_CPU ? NULL : real->exec->device;
    sem_init(&lane->work, 0, 0);
    int result = start_thread(&lane->thread, plan_lane_name[which], lane_main, lane, err);
    lane->running = result == 0;
    return result;
}

static int start_feeder(struct engine_real *real, struct err *err)
{
    struct feeder *feeder = &real->feeder;
    feeder->real = real;
    sem_init(&feeder->work, 0, 0);
    int result = start_thread(&feeder->thread, "feeder", feeder_main, feeder, err);
    feeder->running = result == 0;
    return result;
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
    bool chained = !exec->device_modelled && exec->device->ops->chained;
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        bool is_drive = lane == LANE_SSD_READ || lane == LANE_SSD_WRITE;
        bool is_copy = lane == LANE_H2D || lane == LANE_D2H;
        bool is_modelled = exec->device_modelled && (is_copy || lane == LANE_COMPUTE);
        bool is_chained = chained && (is_copy || lane == LANE_COMPUTE);
        real->engine.depth[lane] = is_drive     ? drive_depth
                                   : is_chained ? ENGINE_CHAIN_DEPTH
                                                : LANE_DEPTH;
        real->engine.in_order[lane] = !is_drive;
        real->engine.chained[lane] = is_chained;
        if (is_drive || is_modelled || (is_copy && !exec->memory->separate_device))
            continue;
        int result = start_lane(real, lane, err);
        if (result)
            return result;
    }
    return chained ? start_feeder(real, err) : 0;
}

void engine_real_reserve(struct engine_real *real, uint32_t op_max)
{
    mem_free(real->start_ns);
    real->op_max = op_max;
    real->start_ns = mem_alloc(op_max, sizeof(*real->start_ns));
}

static void stop_thread(pthread_t thread, sem_t *work, atomic_bool *stop)
{
    atomic_store_explicit(stop, true, memory_order_release);
    sem_post(work);
    pthread_join(thread, NULL);
    sem_destroy(work);
}

void engine_real_close(struct engine_real *real)
{
    if (!real)
        return;
    if (real->feeder.running)
        stop_thread(real->feeder.thread, &real->feeder.work, &real->feeder.stop);
    for (uint32_t l = 0; l < LANE_COUNT; l++) {
        struct lane *lane = &real->lanes[l];
        if (lane->running)
            stop_thread(lane->thread, &lane->work, &lane->stop);
    }
    mem_free(real->start_ns);
    mem_free(real);
}

struct engine *engine_real_engine(struct engine_real *real)
{
    return &real->engine;
}
