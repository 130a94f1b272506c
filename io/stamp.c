#include "io/stamp.h"
#include "core/base.h"
#include "core/hash.h"
#include "core/mem.h"
#include "core/pool.h"
#include <string.h>
#include <sys/stat.h>

/* Files are asked for in batches, by all threads; the hashes are put together in order. */
#define BATCH_FILES 16384
#define TASK_FILES  256

struct batch {
    const struct tree *tree;
    uint64_t first, count;
    uint64_t bytes[BATCH_FILES], hashes[BATCH_FILES];
};

static void stamp_file(struct batch *batch, uint64_t index)
{
    const char *path = tree_path(batch->tree, batch->first + index);
    struct stat status = {0};
    uint64_t told[4] = {0};
    if (strcmp(path, TREE_STDIN) != 0 && stat(path, &status) == 0) {
        told[0] = 1;
        told[1] = (uint64_t)status.st_size;
        told[2] = (uint64_t)status.st_mtim.tv_sec;
        told[3] = (uint64_t)status.st_mtim.tv_nsec;
    }
    batch->bytes[index] = told[1];
    batch->hashes[index] = hash_bytes(path, strlen(path), hash_bytes(told, sizeof(told), 0));
}

static void stamp_files(void *context, uint32_t task, uint32_t worker)
{
    struct batch *batch = context;
    (void)worker;
    uint64_t end = MIN((uint64_t)(task + 1) * TASK_FILES, batch->count);
    for (uint64_t i = (uint64_t)task * TASK_FILES; i < end; i++)
        stamp_file(batch, i);
}

static void run_batch(struct batch *batch, struct pool *pool)
{
    uint32_t tasks = (uint32_t)div_up(batch->count, TASK_FILES);
    if (pool != NULL)
        pool_run(pool, stamp_files, batch, tasks);
    for (uint32_t i = 0; pool == NULL && i < tasks; i++)
        stamp_files(batch, i, 0);
}

void stamp_take(struct stamp *stamps, size_t input_count, const struct tree *tree,
                struct pool *pool)
{
    struct batch *batch = mem_alloc(1, sizeof(*batch));
    memset(stamps, 0, input_count * sizeof(*stamps));
    batch->tree = tree;
    for (; batch->first < tree->file_count; batch->first += batch->count) {
        batch->count = MIN(tree->file_count - batch->first, (uint64_t)BATCH_FILES);
        run_batch(batch, pool);
        for (uint64_t i = 0; i < batch->count; i++) {
            uint32_t input = tree->files[batch->first + i].input;
            ASSERT(input < input_count);
            struct stamp *stamp = &stamps[input];
            stamp->files++;
            stamp->bytes += batch->bytes[i];
            stamp->hash = hash_bytes(&batch->hashes[i], sizeof(batch->hashes[i]), stamp->hash);
        }
    }
    mem_free(batch);
}
