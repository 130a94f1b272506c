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
    char buffer[BUFFER_BYTES];
};

static void flush(struct trace *trace) {
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
static char *room(struct trace *trace) {
    if (trace->used + EVENT_BYTES_MAX > BUFFER_BYTES)
        flush(trace);
    return trace->buffer + trace->used;
}

static void take(struct trace *trace, int bytes) {
    ASSERT(bytes > 0 && bytes < EVENT_BYTES_MAX);
    trace->used += (size_t)bytes;
}

int trace_open(struct trace **trace, const char *path, struct err *err) {
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

void trace_lane(struct trace *trace, uint32_t lane, const char *name) {
    ASSERT(strlen(name) <= NAME_BYTES_MAX);
    take(trace,
         snprintf(room(trace), EVENT_BYTES_MAX,
                  ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":%" PRIu32
                  ",\"args\":{\"name\":\"%s\"}}"
                  ",\n{\"name\":\"thread_sort_index\",\"ph\":\"M\",\"pid\":1,\"tid\":%" PRIu32
                  ",\"args\":{\"sort_index\":%" PRIu32 "}}",
                  lane, name, lane, lane));
}

void trace_event(struct trace *trace, uint32_t lane, const char *name, uint64_t start_ns,
                 uint64_t end_ns, uint64_t bytes) {
    ASSERT(strlen(name) <= NAME_BYTES_MAX);
    ASSERT(start_ns <= end_ns);
    /* Relative to trace_open: microseconds in a double lose digits once a machine is up for weeks.
     */
    uint64_t start = start_ns > trace->start_ns ? start_ns - trace->start_ns : 0;
    take(trace,
         snprintf(room(trace), EVENT_BYTES_MAX,
                  ",\n{\"name\":\"%s\",\"ph\":\"X\",\"pid\":1,\"tid\":%" PRIu32
                  ",\"ts\":%.3f,\"dur\":%.3f,\"args\":{\"bytes\":%" PRIu64 "}}",
                  name, lane, (double)start * 1e-3, (double)(end_ns - start_ns) * 1e-3, bytes));
}

int trace_close(struct trace *trace, struct err *err) {
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
