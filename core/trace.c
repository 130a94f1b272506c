#include "core/trace.h"
#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BUFFER_BYTES    (64 * 1024)
#define EVENT_BYTES_MAX 512
#define NAME_BYTES_MAX  100

struct trace {
    int fd;
    int errno_first; /* of the first write that failed; what follows is dropped */
    uint64_t start_ns;
    size_t used;
    char *path;
    struct trace *also; /* borrowed, or NULL */
    struct trace_lane {
        char name[NAME_BYTES_MAX + 1];
        uint32_t row_count;
        uint64_t end_ns[TRACE_ROWS_MAX]; /* of each row's last event */
    } lanes[TRACE_LANES_MAX];
    char buffer[BUFFER_BYTES];
};

static void flush(struct trace *trace)
{
    size_t done = 0;
    while (done < trace->used && trace->errno_first == 0) {
        ssize_t written = write(trace->fd, trace->buffer + done, trace->used - done);
        if (written > 0)
            done += (size_t)written;
        else if (written == 0 || errno != EINTR)
            trace->errno_first = written == 0 ? EIO : errno;
    }
    trace->used = 0;
}

/* Room for one more event, always: the caller formats straight into it. */
static char *room(struct trace *trace)
{
    if (trace->used + EVENT_BYTES_MAX > BUFFER_BYTES)
        flush(trace);
    return trace->buffer + trace->used;
}

static void take(struct trace *trace, int bytes)
{
    ASSERT(bytes > 0 && bytes < EVENT_BYTES_MAX);
    trace->used += (size_t)bytes;
}

int trace_open(struct trace **trace, const char *path, struct err *err)
{
    *trace = NULL;
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return err_set_errno(err, errno, "cannot create the trace file %s", path);
    struct trace *t = mem_alloc(1, sizeof(*t));
    t->fd = fd;
    t->path = mem_strdup(path);
    t->start_ns = clock_ns();
    take(t, snprintf(room(t), EVENT_BYTES_MAX,
                     "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"tid\":0,"
                     "\"args\":{\"name\":\"spillway\"}}"));
    *trace = t;
    return 0;
}

/* The next row of the lane. */
static uint32_t add_row(struct trace *trace, uint32_t lane)
{
    struct trace_lane *l = &trace->lanes[lane];
    uint32_t tid = lane * TRACE_ROWS_MAX + l->row_count;
    take(trace,
         snprintf(room(trace), EVENT_BYTES_MAX,
                  ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":%" PRIu32
                  ",\"args\":{\"name\":\"%s\"}}"
                  ",\n{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":1,\"tid\":%" PRIu32
                  ",\"args\":{\"sort_index\":%" PRIu32 "}}",
                  tid, l->name, tid, tid));
    return l->row_count++;
}

/* A row on which nothing ends after start_ns. */
static uint32_t find_row(struct trace *trace, uint32_t lane, uint64_t start_ns)
{
    const struct trace_lane *l = &trace->lanes[lane];
    for (uint32_t row = 0; row < l->row_count; row++)
        if (l->end_ns[row] <= start_ns)
            return row;
    return l->row_count < TRACE_ROWS_MAX ? add_row(trace, lane) : TRACE_ROWS_MAX - 1;
}

void trace_lane(struct trace *trace, uint32_t lane, const char *name)
{
    ASSERT(lane < TRACE_LANES_MAX && strlen(name) <= NAME_BYTES_MAX);
    struct trace_lane *l = &trace->lanes[lane];
    ASSERT(l->row_count == 0);
    strcpy(l->name, name);
    add_row(trace, lane);
}

void trace_also(struct trace *trace, struct trace *also)
{
    ASSERT(trace != also && (!also || !also->also));
    trace->also = also;
}

static void put_event(struct trace *trace, uint32_t lane, const char *name, uint64_t start_ns,
                      uint64_t end_ns, uint64_t bytes)
{
    ASSERT(lane < TRACE_LANES_MAX && strlen(name) <= NAME_BYTES_MAX);
    ASSERT(start_ns <= end_ns);
    uint32_t row = find_row(trace, lane, start_ns);
    trace->lanes[lane].end_ns[row] = end_ns;
    /* Relative to trace_open: microseconds in a double lose digits once a machine is up for weeks.
     */
    uint64_t start = start_ns > trace->start_ns ? start_ns - trace->start_ns : 0;
    take(trace, snprintf(room(trace), EVENT_BYTES_MAX,
                         ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":1,\"tid\":%" PRIu32
                         ",\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"bytes\":%" PRIu64 "}}",
                         name, lane * TRACE_ROWS_MAX + row, (double)start * 1e-3,
                         (double)(end_ns - start_ns) * 1e-3, bytes));
}

void trace_event(struct trace *trace, uint32_t lane, const char *name, uint64_t start_ns,
                 uint64_t end_ns, uint64_t bytes)
{
    put_event(trace, lane, name, start_ns, end_ns, bytes);
    if (trace->also)
        put_event(trace->also, lane, name, start_ns, end_ns, bytes);
}

int trace_close(struct trace *trace, struct err *err)
{
    if (trace == NULL)
        return 0;
    take(trace, snprintf(room(trace), EVENT_BYTES_MAX, "\n]\n"));
    flush(trace);
    if (close(trace->fd) != 0 && trace->errno_first == 0)
        trace->errno_first = errno;
    int result = 0;
    if (trace->errno_first != 0)
        result =
            err_set_errno(err, trace->errno_first, "cannot write the trace file %s", trace->path);
    mem_free(trace->path);
    mem_free(trace);
    return result;
}
