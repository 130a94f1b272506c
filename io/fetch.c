/*
 * Invariants:
 * 1. Half h holds the batch that begins at firsts[h], or nothing (UINT64_MAX); batches begin at
 *    origin plus multiples of BATCH_FILES, and those beside each other are in different halves.
 * 2. A batch is started when the one before it is first asked for, or, the first, when it is.
 */
#include "io/fetch.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/ring.h"
#include <errno.h>

#define BATCH_FILES 256
#define HALVES      2
#define NOTHING     UINT64_MAX

struct fetch {
    const struct tree *tree; /* borrowed */
    struct ring_files *rings[HALVES];
    struct ring_file batches[HALVES][BATCH_FILES];
    uint64_t firsts[HALVES]; /* invariant 1 */
    uint64_t origin;
    char *buffer; /* owned [HALVES][BATCH_FILES][FETCH_BYTES] */
};

_Static_assert(FETCH_MEMORY_BYTES == (uint64_t)HALVES * BATCH_FILES * FETCH_BYTES, "as told");

int fetch_open(struct fetch **out, const struct tree *tree, struct err *err)
{
    struct fetch *fetch = mem_alloc(1, sizeof(*fetch));
    int code = 0;
    fetch->tree = tree;
    fetch->buffer = mem_alloc(FETCH_MEMORY_BYTES, 1);
    for (int half = 0; half < HALVES; half++)
        fetch->firsts[half] = NOTHING;
    for (int half = 0; code == 0 && half < HALVES; half++)
        code = ring_files_open(&fetch->rings[half], BATCH_FILES, err);
    if (code != 0) {
        fetch_close(fetch);
        fetch = NULL;
    }
    *out = fetch;
    return code;
}

void fetch_close(struct fetch *fetch)
{
    if (fetch == NULL)
        return;
    for (int half = 0; half < HALVES; half++)
        ring_files_close(fetch->rings[half]);
    mem_free(fetch->buffer);
    mem_free(fetch);
}

void fetch_seek(struct fetch *fetch, uint64_t file)
{
    for (int half = 0; half < HALVES; half++) {
        ring_files_wait(fetch->rings[half]);
        fetch->firsts[half] = NOTHING;
    }
    fetch->origin = file;
}

/* Of the batch that begins at first. */
static uint32_t half_of(const struct fetch *fetch, uint64_t first)
{
    return (first - fetch->origin) / BATCH_FILES % HALVES;
}

static void start(struct fetch *fetch, uint64_t first)
{
    uint32_t half = half_of(fetch, first);
    if (fetch->firsts[half] == first || first >= fetch->tree->file_count)
        return;
    uint32_t count = (uint32_t)MIN(fetch->tree->file_count - first, (uint64_t)BATCH_FILES);
    ring_files_wait(fetch->rings[half]);
    for (uint32_t i = 0; i < count; i++)
        fetch->batches[half][i] = (struct ring_file){
            .path = fetch->tree->files[first + i].found ? tree_path(fetch->tree, first + i) : NULL,
            .buffer = fetch->buffer + ((uint64_t)half * BATCH_FILES + i) * FETCH_BYTES,
            .buffer_bytes = FETCH_BYTES,
        };
    ring_files_start(fetch->rings[half], fetch->batches[half], count);
    fetch->firsts[half] = first;
}

int32_t fetch_take(struct fetch *fetch, uint64_t file, const char **text)
{
    ASSERT(file >= fetch->origin && file < fetch->tree->file_count);
    uint64_t first = file - (file - fetch->origin) % BATCH_FILES;
    uint32_t half = half_of(fetch, first);
    start(fetch, first);
    start(fetch, first + BATCH_FILES);
    ring_files_wait(fetch->rings[half]);
    const struct ring_file *got = &fetch->batches[half][file - first];
    *text = got->buffer;
    bool again = got->path == NULL || got->result == (int32_t)FETCH_BYTES ||
                 got->result == -EINTR || got->result == -EAGAIN;
    return again ? -EFBIG : got->result;
}
