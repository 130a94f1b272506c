#include "offload/metrics.h"

#include "core/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE_BYTES_MAX 2048

/* The value of "step" or "commit" at the start of a line that this file wrote; -1 for another. */
static int64_t line_step(const char *line)
{
    static const char *const heads[] = {"{\"step\": ", "{\"commit\": "};
    for (size_t i = 0; i < ARRAY_COUNT(heads); i++)
        if (strncmp(line, heads[i], strlen(heads[i])) == 0)
            return strtoll(line + strlen(heads[i]), NULL, 10);
    return -1;
}

/* "ssd_written_total_bytes" of a line that this file wrote; 0 where it has none. */
static uint64_t line_written(const char *line)
{
    static const char name[] = "\"ssd_written_total_bytes\": ";
    const char *at = strstr(line, name);
    return at ? strtoull(at + sizeof(name) - 1, NULL, 10) : 0;
}

/* What a log tells up to the first line that is cut off or not ours. */
struct told {
    off_t end;              /* where the first line begins that is of a later step, or not ours */
    int64_t last_commit;    /* before that; -1: none */
    uint64_t written_bytes; /* anywhere */
};

static int read_log(FILE *file, uint64_t keep_step, struct told *told)
{
    char line[LINE_BYTES_MAX];
    bool kept = true;
    *told = (struct told){.last_commit = -1};
    while (fgets(line, sizeof(line), file)) {
        size_t length = strlen(line);
        int64_t step = line_step(line);
        /* Length 0: zeros, where the power went while the file grew. */
        if (!length || line[length - 1] != '\n' || step < 0)
            break;
        told->written_bytes = MAX(told->written_bytes, line_written(line));
        kept = kept && (uint64_t)step <= keep_step;
        if (!kept)
            continue;
        told->end += (off_t)length;
        if (line[2] == 'c')
            told->last_commit = step;
    }
    return ferror(file) ? -1 : 0;
}

int64_t metrics_last_commit(const char *run_dir)
{
    char path[FILE_PATH_MAX];
    struct err ignored;
    struct told told;
    FILE *file = file_join(path, run_dir, "metrics.jsonl", &ignored) ? NULL : fopen(path, "r");
    if (!file)
        return -1;
    read_log(file, UINT64_MAX, &told);
    fclose(file);
    return told.last_commit;
}

int metrics_open(struct metrics *metrics, const char *run_dir, uint64_t keep_step, struct err *err)
{
    struct told told = {.last_commit = -1};
    metrics->fd = -1;
    int result = file_join(metrics->path, run_dir, "metrics.jsonl", err);
    if (result)
        return result;
    FILE *file = fopen(metrics->path, "r");
    if (file) {
        result = read_log(file, keep_step, &told);
        fclose(file);
        if (result)
            return err_set(err, ERR_SYSTEM, "cannot read %s", metrics->path);
    }
    metrics->last_commit = told.last_commit;
    metrics->written_bytes = told.written_bytes;
    metrics->fd = open(metrics->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (metrics->fd < 0 || ftruncate(metrics->fd, told.end) != 0)
        return err_set_errno(err, errno, "cannot write %s", metrics->path);
    return 0;
}

void metrics_close(struct metrics *metrics)
{
    if (metrics->fd > 0)
        close(metrics->fd);
    metrics->fd = -1;
}

void metrics_sync(struct metrics *metrics)
{
    fdatasync(metrics->fd);
}

/* JSON has no infinity: a number that is not finite becomes null. */
static int add_number(char *line, int used, const char *name, double value)
{
    if (!isfinite(value))
        return used + snprintf(line + used, LINE_BYTES_MAX - (size_t)used, ", \"%s\": null", name);
    return used +
           snprintf(line + used, LINE_BYTES_MAX - (size_t)used, ", \"%s\": %.9g", name, value);
}

static int add_count(char *line, int used, const char *name, uint64_t value)
{
    return used +
           snprintf(line + used, LINE_BYTES_MAX - (size_t)used, ", \"%s\": %" PRIu64, name, value);
}

int metrics_write_step(struct metrics *metrics, const struct metrics_step *step, struct err *err)
{
    char line[LINE_BYTES_MAX];
    const uint64_t *bytes = step->run->bytes;
    int used = snprintf(line, sizeof(line), "{\"step\": %" PRIu64, step->step);
    used = add_number(line, used, "loss", step->loss);
    used = add_number(line, used, "grad_norm", step->grad_norm);
    used = add_number(line, used, "clip", step->clip);
    used = add_number(line, used, "lr", step->lr);
    used = add_count(line, used, "tokens", step->tokens);
    used = add_number(line, used, "step_s", step->step_s);
    used = add_number(line, used, "data_s", step->data_s);
    used = add_number(line, used, "predicted_s", step->predicted_s);
    used = add_number(line, used, "bound_s", step->bound_s);
    used += snprintf(line + used, sizeof(line) - (size_t)used, ", \"bound_lane\": \"%s\"",
                     plan_lane_name[step->bound_lane]);
    used = add_number(line, used, "tokens_per_s", (double)step->tokens / step->step_s);
    used = add_count(line, used, "ram_bytes", step->ram_bytes);
    used = add_count(line, used, "ram_peak_bytes", step->ram_peak_bytes);
    used = add_count(line, used, "vram_bytes", step->vram_bytes);
    used = add_count(line, used, "vram_peak_bytes", step->vram_peak_bytes);
    used = add_count(line, used, "h2d_bytes", bytes[LANE_H2D]);
    used = add_count(line, used, "h2d_least_bytes", step->least.h2d_bytes);
    used = add_count(line, used, "d2h_bytes", bytes[LANE_D2H]);
    used = add_count(line, used, "d2h_least_bytes", step->least.d2h_bytes);
    used = add_count(line, used, "ssd_read_bytes", bytes[LANE_SSD_READ]);
    used = add_count(line, used, "ssd_read_least_bytes", step->least.ssd_read_bytes);
    used = add_count(line, used, "ssd_write_bytes", bytes[LANE_SSD_WRITE]);
    used = add_count(line, used, "ssd_write_least_bytes", step->least.ssd_write_bytes);
    used = add_count(line, used, "ssd_written_total_bytes", metrics->written_bytes);
    used += snprintf(line + used, sizeof(line) - (size_t)used, ", \"busy_s\": {");
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        used +=
            snprintf(line + used, sizeof(line) - (size_t)used, "%s\"%s\": %.6f", lane ? ", " : "",
                     plan_lane_name[lane], (double)step->run->busy_ns[lane] / 1e9);
    used += snprintf(line + used, sizeof(line) - (size_t)used, "}");
    if (step->replayed_s > 0) {
        used = add_number(line, used, "plan_s", step->plan_s);
        used = add_number(line, used, "replayed_s", step->replayed_s);
    }
    if (step->has_val)
        used = add_number(line, used, "val_loss", step->val_loss);
    used += snprintf(line + used, sizeof(line) - (size_t)used, "}\n");
    ASSERT(used < LINE_BYTES_MAX);
    return file_write_all(metrics->fd, line, (size_t)used, metrics->path, err);
}

int metrics_write_commit(struct metrics *metrics, uint64_t step, uint64_t weights_hash,
                         uint64_t bytes, double seconds, const struct sched_result *rest,
                         const struct place_least *least, struct err *err)
{
    char line[LINE_BYTES_MAX];
    metrics->last_commit = (int64_t)step;
    int used = snprintf(line, sizeof(line),
                        "{\"commit\": %" PRIu64 ", \"weights_hash\": \"%016" PRIx64
                        "\", \"commit_write_bytes\": %" PRIu64 ", \"commit_s\": %.6f",
                        step, weights_hash, bytes, seconds);
    used = add_count(line, used, "ssd_written_total_bytes", metrics->written_bytes);
    if (rest) {
        used = add_count(line, used, "ssd_read_bytes", rest->bytes[LANE_SSD_READ]);
        used = add_count(line, used, "ssd_read_least_bytes", least->ssd_read_bytes);
        used = add_count(line, used, "ssd_write_bytes", rest->bytes[LANE_SSD_WRITE]);
        used = add_count(line, used, "ssd_write_least_bytes", least->ssd_write_bytes);
    }
    used += snprintf(line + used, sizeof(line) - (size_t)used, "}\n");
    return file_write_all(metrics->fd, line, (size_t)used, metrics->path, err);
}
