/*
 * spillway check: reads every byte that has a checksum, of a run, a commit that was kept, prepared
 * data, or one shard. Goes on after the first damage, to count all, and names the first.
 */
#include "core/args.h"
#include "core/base.h"
#include "core/log.h"
#include "core/pool.h"
#include "core/topo.h"
#include "io/dataset.h"
#include "offload/infer.h"
#include "tools/commands.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Between two looks at the progress line: some 200 MiB. */
#define CHUNKS_AT_ONCE 64u

struct check {
    struct pool *pool; /* owned */
    uint32_t file_count;
    uint64_t bytes;
    uint64_t damage_count; /* planes, or whole files */
    struct err first;      /* damage that was met */
};

static uint64_t file_bytes(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? (uint64_t)status.st_size : 0;
}

/* One line per file. bytes: those that were read. damage_count 0: it is whole. */
static void report(struct check *check, const char *path, uint64_t bytes, uint64_t damage_count,
                   const struct err *err)
{
    char text[LOG_BYTES_MAX];
    printf("%-8s %10s  %s", damage_count ? "damaged" : "ok", log_bytes(text, bytes), path);
    if (damage_count > 1)
        printf("  (%" PRIu64 " places)", damage_count);
    printf("\n");
    check->file_count++;
    check->bytes += bytes;
    if (damage_count && !check->damage_count)
        check->first = *err;
    check->damage_count += damage_count;
}

static void report_file(struct check *check, const char *path, int result, const struct err *err)
{
    report(check, path, file_bytes(path), result ? 1 : 0, err);
}

/* ---- Runs ------------------------------------------------------------------------------------ */

/* Reading a slot: a chunk is a task. */
struct slot_job {
    struct checkpoint_reader *reader;
    uint32_t first_chunk; /* of this run of the pool */
    uint64_t buffer_bytes;
    uint8_t *buffers;      /* owned: a plane for each worker */
    uint8_t *damage_count; /* owned: of each chunk */
    struct err *errors;    /* owned: of each chunk, its first damage */
    bool replaced;         /* by a newer commit; one writer at least, all write true */
};

static void read_chunk(void *context, uint32_t task, uint32_t worker)
{
    struct slot_job *job = context;
    uint32_t chunk = job->first_chunk + task;
    uint8_t *buffer = job->buffers + worker * job->buffer_bytes;
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        struct err err;
        int result = checkpoint_read(job->reader, chunk, p, 1, buffer, &err);
        if (result == 1)
            __atomic_store_n(&job->replaced, true, __ATOMIC_RELAXED);
        if (result < 0 && job->damage_count[chunk]++ == 0)
            job->errors[chunk] = err;
    }
}

static void read_slot(struct slot_job *job, struct pool *pool)
{
    uint32_t chunk_count = job->reader->layout->chunk_count;
    struct log_progress progress;
    log_progress_start(&progress, "checking", "chunks", chunk_count);
    for (uint32_t c = 0; c < chunk_count && !job->replaced; c += CHUNKS_AT_ONCE) {
        job->first_chunk = c;
        pool_run(pool, read_chunk, job, MIN(CHUNKS_AT_ONCE, chunk_count - c));
        log_progress_update(&progress, MIN(c + CHUNKS_AT_ONCE, chunk_count), NULL);
    }
    log_progress_end(&progress);
}

/* The manifest's sums were checked when it was loaded; its weights_hash follows from them. */
static void report_manifest(struct check *check, const struct checkpoint_reader *reader)
{
    struct err err = {0};
    const struct tier tier = {
        .layout = reader->layout,
        .plane_sums = reader->manifest.plane_sums,
    };
    char path[FILE_PATH_MAX];
    int result = file_join(path, reader->run_dir, CHECKPOINT_MANIFEST_FILE, &err);
    ASSERT(result == 0); /* it was opened by this name */
    if (tier_weights_hash(&tier) != reader->manifest.weights_hash)
        result = err_set(&err, ERR_CORRUPT,
                         "%s is damaged: its weights_hash is not that of its checksums", path);
    report_file(check, path, result, &err);
}

/* A line for the file on each drive. */
static void report_slot(struct check *check, const struct slot_job *job)
{
    const struct checkpoint_reader *reader = job->reader;
    const struct stripe_files *files = &reader->manifest.files;
    for (uint32_t d = 0; d < files->count; d++) {
        uint64_t damage_count = 0;
        struct err first = {0};
        for (uint32_t c = 0; c < reader->layout->chunk_count; c++) {
            if (reader->stripe.drive[c] != d || !job->damage_count[c])
                continue;
            if (!damage_count)
                first = job->errors[c];
            damage_count += job->damage_count[c];
        }
        report(check, files->path[d], reader->stripe.slot_bytes[d], damage_count, &first);
    }
}

static int check_commit(void *context, struct checkpoint_reader *reader, struct err *err)
{
    (void)err;
    struct check *check = context;
    uint32_t chunk_count = reader->layout->chunk_count;
    struct slot_job job = {
        .reader = reader,
        .buffer_bytes = reader->layout->chunk_count_max * 4, /* the largest plane */
        .damage_count = mem_alloc(chunk_count, sizeof(*job.damage_count)),
        .errors = mem_alloc(chunk_count, sizeof(*job.errors)),
    };
    job.buffers = mem_alloc_aligned(IO_ALIGN, pool_thread_count(check->pool) * job.buffer_bytes);
    checkpoint_reader_direct(reader);
    read_slot(&job, check->pool);
    if (!job.replaced) {
        report_manifest(check, reader);
        report_slot(check, &job);
    }
    mem_free(job.buffers);
    mem_free(job.errors);
    mem_free(job.damage_count);
    return job.replaced ? 1 : 0;
}

/* A file that has no checksum but must at least be what it is said to be. */
static void check_tokenizer(struct check *check, const char *dir)
{
    char path[FILE_PATH_MAX];
    struct err err;
    struct bpe *bpe = NULL;
    int result = file_join(path, dir, DATASET_TOKENIZER_FILE, &err);
    if (result == 0)
        result = bpe_load(&bpe, path, &err);
    report_file(check, path, result, &err);
    bpe_free(bpe);
}

/* A run or a kept commit: its model, its tokenizer, its manifest and the slot that it names. */
static int check_state(struct check *check, const char *dir, struct err *err)
{
    struct infer_model model;
    char path[FILE_PATH_MAX];
    int result = infer_model_open(&model, dir, NULL, err);
    if (result == 0)
        result = file_join(path, dir, "config.json", err);
    if (result == 0) {
        report_file(check, path, 0, NULL);
        check_tokenizer(check, dir);
        result = infer_read_commit(&model, check_commit, check, err);
    }
    infer_model_close(&model);
    return result;
}

static int is_visible(const struct dirent *entry)
{
    return entry->d_name[0] != '.';
}

static bool has_file(const char *dir, const char *name)
{
    char path[FILE_PATH_MAX];
    struct err ignored;
    return file_join(path, dir, name, &ignored) == 0 && file_exists(path);
}

/* The commits that --keep-every kept, in order of their steps. One that cannot be opened counts as
 * damaged; the others are still looked at. One without a manifest was never finished, by a kill or
 * a full disk, and means nothing (tests/system/abuse.sh). */
static int check_kept(struct check *check, const char *dir, struct err *err)
{
    char kept[FILE_PATH_MAX], path[FILE_PATH_MAX];
    struct dirent **entries = NULL;
    int result = file_join(kept, dir, "kept", err);
    if (result || !file_exists(kept))
        return result;
    int count = scandir(kept, &entries, is_visible, alphasort);
    if (count < 0)
        return err_set_errno(err, errno, "cannot list %s", kept);
    for (int i = 0; i < count; i++) {
        struct err one;
        if (result == 0)
            result = file_join(path, kept, entries[i]->d_name, err);
        bool unfinished = result == 0 && !has_file(path, CHECKPOINT_MANIFEST_FILE);
        if (unfinished)
            printf("%-8s %10s  %s\n", "unfinished", "", path);
        else if (result == 0 && check_state(check, path, &one))
            report_file(check, path, -1, &one);
        free(entries[i]);
    }
    free(entries);
    return result;
}

static int check_run(struct check *check, const char *dir, struct err *err)
{
    struct err first;
    int result = pool_open(&check->pool, "check", topo_open()->core_count, true, err);
    if (result)
        return result;
    int broken = check_state(check, dir, &first);
    result = check_kept(check, dir, err);
    pool_close(check->pool);
    if (!broken)
        return result;
    /* A run that cannot be opened at all: that sentence says more than any count. */
    *err = first;
    return broken;
}

/* ---- Prepared data --------------------------------------------------------------------------- */

static void check_shard(struct check *check, const char *path)
{
    struct shard shard;
    struct err err;
    int result = shard_open(&shard, path, &err);
    if (result == 0)
        result = shard_verify(&shard, path, &err);
    report_file(check, path, result, &err);
    shard_close(&shard);
}

/* dataset.json: that the files belong together, down to the hash of the tokenizer's merges. */
static int check_belonging(const char *dir, struct err *err)
{
    struct dataset dataset;
    struct bpe *bpe = NULL;
    int result = dataset_open(&dataset, dir, err);
    if (result == 0)
        result = bpe_load(&bpe, dir, err);
    if (result == 0 && bpe_hash(bpe) != dataset.tokenizer_hash)
        result = err_set(err, ERR_CORRUPT,
                         "%s/" DATASET_TOKENIZER_FILE " is not the tokenizer that the tokens "
                         "beside it were made with",
                         dir);
    bpe_free(bpe);
    dataset_close(&dataset);
    return result;
}

static int check_data(struct check *check, const char *dir, struct err *err)
{
    static const char *const shards[] = {DATASET_TRAIN_FILE, DATASET_VAL_FILE};
    char path[FILE_PATH_MAX];
    for (size_t i = 0; i < ARRAY_COUNT(shards); i++) {
        int result = file_join(path, dir, shards[i], err);
        if (result)
            return result;
        if (file_exists(path))
            check_shard(check, path);
    }
    check_tokenizer(check, dir);
    int result = file_join(path, dir, DATASET_FILE, err);
    if (result || check->damage_count)
        return result; /* what does not open cannot be compared */
    result = check_belonging(dir, err);
    report_file(check, path, result, err);
    return 0;
}

/* ---- The command ----------------------------------------------------------------------------- */

static int check_path(struct check *check, const char *path, struct err *err)
{
    struct stat status;
    if (stat(path, &status) != 0)
        return err_set_errno(err, errno, "cannot open %s", path);
    if (S_ISREG(status.st_mode)) {
        check_shard(check, path);
        return 0;
    }
    if (has_file(path, CHECKPOINT_MANIFEST_FILE))
        return check_run(check, path, err);
    if (has_file(path, DATASET_FILE) || has_file(path, DATASET_TRAIN_FILE))
        return check_data(check, path, err);
    return err_set(err, ERR_INPUT,
                   "%s holds nothing with checksums: give a run that has made a commit, one of its "
                   "kept commits, a folder made by 'spillway prep', or a .tok file",
                   path);
}

static int summarize(const struct check *check, struct err *err)
{
    char text[LOG_BYTES_MAX];
    printf("%u file%s, %s: ", check->file_count, check->file_count == 1 ? "" : "s",
           log_bytes(text, check->bytes));
    if (!check->damage_count) {
        printf("no damage\n");
        return 0;
    }
    printf("%" PRIu64 " damaged\n", check->damage_count);
    *err = check->first;
    return check->first.code;
}

int check_main(int argc, char **argv)
{
    struct check check = {0};
    const char *path = NULL;
    struct args_command args = {
        .name = "check",
        .summary = "Reads everything that has a checksum, of a run or of prepared data, and says "
                   "what is damaged.",
        .usage = "RUN | DATA | FILE.tok",
        .example = "spillway check run",
        .positional = &path,
        .positional_max = 1,
    };
    struct err err = {0};
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0 && !path)
        result = err_set(&err, ERR_USAGE, "say what to check: a run, or a folder of prepared data");
    if (result == 0)
        result = check_path(&check, path, &err);
    if (result == 0)
        result = summarize(&check, &err);
    return commands_status(result, &err);
}
