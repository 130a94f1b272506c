/*
 * Streams, events, and the order between what they do.
 *
 * Invariants:
 * 1. An op's clock is made when it is enqueued, of the clocks of its stream, of the host, and of
 *    the event it waits for; op a comes before op b if b's clock says so, and not because of when
 *    they ran. So a missing wait shows under every schedule.
 * 2. What is enqueued runs later, in an order that the seed draws, and at last when the host waits
 *    for it. An event's record is of the moment when it was recorded: a later one is another.
 */
#include "internal.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OPS_MAX     (1u << 20)
#define QUEUE_MAX   8192u
#define KERNELS_MAX 256u
#define CALLS_MAX   64u

/* A moment in a stream: shared by the event and the ops that wait for it, and so kept for good. */
struct moment {
    bool passed;
    struct timespec when;
    struct clock clock;
    struct moment *next;
};
static struct moment *moments; /* all there are */

struct queued {
    uint32_t op;
    void (*run)(void *);
    void *context;                /* owned */
    struct moment *wait, *record; /* or an op of these */
};

struct CUstream_st {
    uint32_t agent;
    struct clock clock;
    struct queued queue[QUEUE_MAX];
    uint32_t first, count;
};

struct CUevent_st {
    struct moment *moment;
    bool untimed;
};

/* A function of CUDA's that was called. */
struct calls {
    const char *name;
    uint32_t count;
};

_Thread_local uint32_t current_op;

static struct op_record *ops;
static uint32_t op_count;
static struct CUstream_st *streams[AGENTS]; /* 0: none, as the host is agent 0 */
static struct clock host;
static uint32_t host_op;
static uint64_t random_state = 1;
static cudaError_t last_error;
static uint32_t event_count;
static uint32_t failing_call;
static const char *failing_name; /* NULL: of any */
static struct calls calls[CALLS_MAX];
static struct block_range range;

/* xorshift64 (Marsaglia 2003): all that matters is that a seed repeats a run. */
uint32_t random_below(uint32_t bound)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % bound;
}

/* -- Clocks -- */

static void clock_join(struct clock *clock, const struct clock *other)
{
    for (uint32_t i = 0; i < AGENTS; i++)
        if (other->at[i] > clock->at[i])
            clock->at[i] = other->at[i];
}

static uint32_t op_new(uint32_t agent, const struct clock *clock, const char *name)
{
    if (!ops)
        ops = calloc(OPS_MAX, sizeof(*ops));
    if (!ops || op_count + 1 == OPS_MAX) {
        fprintf(stderr, "emulation: more than %u ops\n", OPS_MAX);
        abort();
    }
    struct op_record *op = &ops[++op_count];
    *op = (struct op_record){.clock = *clock, .agent = agent};
    snprintf(op->name, sizeof(op->name), "%s", name);
    return op_count;
}

const struct op_record *op_find(uint32_t op)
{
    return &ops[op];
}

uint32_t op_of_host(void)
{
    if (host_op == 0) {
        host.at[0]++;
        host_op = op_new(0, &host, "the host");
    }
    return host_op;
}

bool op_before(uint32_t first, uint32_t second)
{
    const struct op_record *a = &ops[first], *b = &ops[second];
    return first == second || b->clock.at[a->agent] >= a->clock.at[a->agent];
}

/* -- Running what is queued -- */

static bool can_run(const struct CUstream_st *stream)
{
    if (!stream || stream->count == 0)
        return false;
    const struct moment *wait = stream->queue[stream->first].wait;
    return !wait || wait->passed;
}

static void run_first(struct CUstream_st *stream)
{
    struct queued queued = stream->queue[stream->first];
    stream->first = (stream->first + 1) % QUEUE_MAX;
    stream->count--;
    if (queued.run && emulation_fault_count() == 0) {
        current_op = queued.op;
        queued.run(queued.context);
        current_op = 0;
    }
    free(queued.context);
    if (queued.record) {
        queued.record->passed = true;
        clock_gettime(CLOCK_MONOTONIC, &queued.record->when);
    }
}

static struct CUstream_st *pick(void)
{
    struct CUstream_st *ready[AGENTS];
    uint32_t count = 0;
    for (uint32_t i = 1; i < AGENTS; i++)
        if (can_run(streams[i]))
            ready[count++] = streams[i];
    return count ? ready[random_below(count)] : NULL;
}

static void run_some(void)
{
    struct CUstream_st *stream;
    while (random_below(3) == 0 && (stream = pick()))
        run_first(stream);
}

static void host_wait(struct moment *moment)
{
    while (!moment->passed) {
        struct CUstream_st *stream = pick();
        if (!stream) {
            emulation_fault("stream-deadlock", "the host waits for what can never run");
            break;
        }
        run_first(stream);
    }
    clock_join(&host, &moment->clock);
    host_op = 0;
}

static void enqueue(struct CUstream_st *stream, struct queued queued)
{
    if (stream->count == QUEUE_MAX)
        run_first(stream);
    stream->queue[(stream->first + stream->count++) % QUEUE_MAX] = queued;
    /* What the host does from here on is not before this op. */
    host_op = 0;
    run_some();
}

static void *copy_of(const void *bytes, size_t count)
{
    void *copy = malloc(count);
    if (!copy)
        abort();
    return memcpy(copy, bytes, count);
}

cudaError_t stream_enqueue(cudaStream_t stream, const char *name, void (*run)(void *),
                           void *context, size_t context_bytes)
{
    if (!stream) {
        emulation_fault("default-stream", "%s without a stream of its own", name);
        return cudaErrorInvalidResourceHandle;
    }
    op_of_host();
    clock_join(&stream->clock, &host);
    stream->clock.at[stream->agent]++;
    enqueue(stream, (struct queued){.op = op_new(stream->agent, &stream->clock, name),
                                    .run = run,
                                    .context = copy_of(context, context_bytes)});
    return cudaSuccess;
}

/* -- What a call returns -- */

static struct calls *calls_of(const char *name)
{
    uint32_t i = 0;
    while (calls[i].name && strcmp(calls[i].name, name) != 0)
        if (++i == CALLS_MAX)
            abort();
    calls[i].name = name;
    return &calls[i];
}

cudaError_t call_begin_of(const char *name, cudaError_t asked_for)
{
    cudaError_t error = cudaSuccess;
    calls_of(name)->count++;
    if (emulation_fault_count() > 0)
        error = cudaErrorIllegalAddress;
    else if (failing_call && (!failing_name || strcmp(failing_name, name) == 0) &&
             --failing_call == 0)
        error = asked_for;
    if (error)
        last_error = error;
    return error;
}

void emulation_fail_call(uint32_t n)
{
    failing_call = n;
    failing_name = NULL;
}

void emulation_fail_call_of(const char *name, uint32_t n)
{
    failing_call = n;
    failing_name = name;
}

uint32_t emulation_call_count(const char *name)
{
    CALL_LOCK;
    return calls_of(name)->count;
}

void emulation_only_last_blocks(uint32_t blocks)
{
    range.last_blocks = blocks;
}

void emulation_only_first_block(bool only)
{
    range.first_only = only;
}

/* Nothing is left that names an op or a moment. */
static void forget_ops(void)
{
    op_count = host_op = 0;
    while (moments) {
        struct moment *next = moments->next;
        free(moments);
        moments = next;
    }
}

static bool is_unused(void)
{
    bool used = event_count > 0 || !memory_is_empty();
    for (uint32_t i = 1; i < AGENTS; i++)
        used |= streams[i] != NULL;
    return !used;
}

void emulation_reset(uint64_t seed)
{
    fault_catch_signals();
    fault_forget();
    for (uint32_t i = 1; i < AGENTS; i++)
        while (streams[i] && streams[i]->count > 0) {
            free(streams[i]->queue[streams[i]->first].context);
            streams[i]->first = (streams[i]->first + 1) % QUEUE_MAX;
            streams[i]->count--;
        }
    if (is_unused())
        forget_ops();
    failing_call = 0;
    memset(calls, 0, sizeof(calls));
    range = (struct block_range){0};
    last_error = cudaSuccess;
    random_state = (seed + 1) * 0x9E3779B97F4A7C15u;
}

/* -- CUDA's functions -- */

cudaError_t cudaGetLastError(void)
{
    CALL_LOCK;
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    if (flags != cudaStreamNonBlocking)
        emulation_fault("blocking-stream", "streams are created with cudaStreamNonBlocking");
    for (uint32_t i = 1; i < AGENTS; i++) {
        if (streams[i])
            continue;
        *stream = streams[i] = calloc(1, sizeof(**stream));
        if (!*stream)
            abort();
        /* An agent that had this number before has ended: its clock goes on. */
        (*stream)->agent = i;
        (*stream)->clock = host;
        return cudaSuccess;
    }
    return cudaErrorMemoryAllocation;
}

static struct moment *record(struct CUstream_st *stream)
{
    struct moment *moment = calloc(1, sizeof(*moment));
    if (!moment)
        abort();
    moment->clock = stream->clock;
    moment->next = moments;
    moments = moment;
    enqueue(stream, (struct queued){.record = moment});
    return moment;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    host_wait(record(stream));
    return emulation_fault_count() ? cudaErrorIllegalAddress : cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    CALL_LOCK;
    cudaError_t error = cudaStreamSynchronize(stream);
    streams[stream->agent] = NULL;
    free(stream);
    return error;
}

cudaError_t cudaDeviceSynchronize(void)
{
    CALL_LOCK;
    for (uint32_t i = 1; i < AGENTS; i++) {
        cudaError_t error = streams[i] ? cudaStreamSynchronize(streams[i]) : cudaSuccess;
        if (error)
            return error;
    }
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int flags)
{
    CALL_LOCK;
    (void)flags;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    if (!event->moment) {
        emulation_fault("event", "a wait for an event that was never recorded waits for nothing");
        return cudaSuccess;
    }
    clock_join(&stream->clock, &event->moment->clock);
    enqueue(stream, (struct queued){.wait = event->moment});
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    *event = calloc(1, sizeof(**event));
    if (!*event)
        return cudaErrorMemoryAllocation;
    (*event)->untimed = flags & cudaEventDisableTiming;
    event_count++;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    CALL_LOCK;
    event_count--;
    free(event);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    event->moment = record(stream);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (!error && event->moment)
        host_wait(event->moment);
    return error ? error : emulation_fault_count() ? cudaErrorIllegalAddress : cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error || !event->moment)
        return error;
    run_some();
    if (!event->moment->passed)
        return cudaErrorNotReady;
    host_wait(event->moment);
    return cudaSuccess;
}

/* Of the emulation's time: how long an op is means nothing, which comes first does. */
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    if (!start->moment || !end->moment || start->untimed || end->untimed)
        return last_error = cudaErrorInvalidResourceHandle;
    if (!start->moment->passed || !end->moment->passed)
        return cudaErrorNotReady;
    const struct timespec *a = &start->moment->when, *b = &end->moment->when;
    *ms = (float)((double)(b->tv_sec - a->tv_sec) * 1e3 + (double)(b->tv_nsec - a->tv_nsec) / 1e6);
    return cudaSuccess;
}

/* -- Launches -- */

struct queued_launch {
    struct emulation_launch launch;
    char name[64];
    struct block_range range;
    _Alignas(16) unsigned char call[];
};

/* The function's name without its mangling: enough to know it by. */
static void kernel_name(const void *kernel, char *name, size_t bytes)
{
    Dl_info info;
    if (!dladdr(kernel, &info) || !info.dli_sname) {
        snprintf(name, bytes, "a kernel");
        return;
    }
    const char *at = info.dli_sname + strcspn(info.dli_sname, "0123456789");
    unsigned long length = strtoul(at, (char **)&at, 10);
    snprintf(name, bytes, "%.*s", (int)length, at);
}

struct attribute {
    const void *kernel;
    int shared_bytes;
};
static struct attribute attributes[KERNELS_MAX];

static struct attribute *attribute_of(const void *kernel)
{
    uint32_t i = 0;
    while (i + 1 < KERNELS_MAX && attributes[i].kernel && attributes[i].kernel != kernel)
        i++;
    attributes[i].kernel = kernel;
    return &attributes[i];
}

cudaError_t emulation_set_attribute(const void *kernel, cudaFuncAttribute attribute, int value)
{
    CALL_LOCK;
    (void)attribute;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    if (value < 0 || (size_t)value > SHARED_MAX)
        return last_error = cudaErrorInvalidValue;
    attribute_of(kernel)->shared_bytes = value;
    return cudaSuccess;
}

static void run_launch(void *context)
{
    struct queued_launch *queued = context;
    queued->launch.call = queued->call;
    block_run_kernel(&queued->launch, queued->range, queued->name);
}

static bool launch_is_valid(const struct emulation_launch *l)
{
    struct emulation_triple g = l->grid_size, b = l->block_size;
    return g.x && g.y && g.z && b.x && b.y && b.z && g.x <= 0x7fffffff && g.y <= 65535 &&
           g.z <= 65535 && b.z <= 64 && (uint64_t)b.x * b.y * b.z <= THREADS_MAX;
}

cudaError_t emulation_launch_kernel(const struct emulation_launch *launch)
{
    CALL_LOCK;
    cudaError_t error = call_begin(cudaErrorUnknown);
    if (error)
        return error;
    if (!launch_is_valid(launch))
        return last_error = cudaErrorInvalidConfiguration;
    int asked = attribute_of(launch->kernel)->shared_bytes;
    if (launch->shared_bytes > (size_t)(asked > 48 << 10 ? asked : 48 << 10))
        return last_error = cudaErrorInvalidValue;
    size_t bytes = sizeof(struct queued_launch) + launch->call_bytes;
    struct queued_launch *queued = malloc(bytes);
    if (!queued)
        abort();
    queued->launch = *launch;
    queued->range = range;
    kernel_name(launch->kernel, queued->name, sizeof(queued->name));
    memcpy(queued->call, launch->call, launch->call_bytes);
    error = stream_enqueue(launch->stream, queued->name, run_launch, queued, bytes);
    free(queued);
    return error;
}
