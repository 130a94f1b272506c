#include "tools/measure.h"

#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#define ARGUMENTS_MAX 48
#define RUN_FOLDER    "measured-run"
#define TIER_FOLDER   "spillway-sweep"
#define PROGRAM       "/proc/self/exe"

struct command {
    char *words[ARGUMENTS_MAX];
    size_t count;
    char run[FILE_PATH_MAX], tier[FILE_PATH_MAX], log[FILE_PATH_MAX];
    char seq[24], steps[24];
};

static void add(struct command *command, const char *option, const char *value)
{
    ASSERT(command->count + 3 < ARGUMENTS_MAX);
    if (!value)
        return;
    command->words[command->count++] = (char *)option;
    command->words[command->count++] = (char *)value;
}

static void make_command(struct command *command, const struct measure_run *run)
{
    snprintf(command->seq, sizeof(command->seq), "%" PRIu64, run->seq);
    snprintf(command->steps, sizeof(command->steps), "%" PRIu64, run->steps);
    command->words[command->count++] = "spillway";
    command->words[command->count++] = "train";
    add(command, "--model", run->model);
    add(command, "--data", run->data);
    add(command, "--out", command->run);
    add(command, "--nvme", command->tier);
    add(command, "--machine", run->machine);
    add(command, "--precision", run->precision);
    add(command, "--optimizer-state", run->optimizer_state);
    add(command, "--ram-budget", run->ram_budget);
    add(command, "--vram-budget", run->vram_budget);
    add(command, "--batch", run->batch);
    add(command, "--accum", run->accum);
    add(command, "--seq", command->seq);
    add(command, "--steps", command->steps);
    add(command, "--checkpoint-every", "0");
    command->words[command->count] = NULL;
}

static int spawn(const struct command *command, int *status, struct err *err)
{
    pid_t child = fork();
    if (child < 0)
        return err_set_errno(err, errno, "cannot start a training");
    if (child == 0) {
        int log = open(command->log, O_WRONLY | O_CREAT | O_TRUNC, 0666);
        int null = open("/dev/null", O_RDWR);
        if (log < 0 || null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 || dup2(log, 2) < 0)
            _exit(127);
        execv(PROGRAM, command->words);
        _exit(127);
    }
    while (waitpid(child, status, 0) < 0)
        if (errno != EINTR)
            return err_set_errno(err, errno, "cannot wait for a training");
    return 0;
}

/* The last line of the child's log, which is the sentence that it ended with. */
static int refusal(const struct command *command, struct err *err)
{
    char *text = NULL;
    size_t bytes = 0;
    struct err ignored;
    if (file_read_all(command->log, GIB, &text, &bytes, &ignored) != 0 || bytes == 0) {
        mem_free(text);
        return err_set(err, ERR_SYSTEM, "a training ended without saying why");
    }
    if (text[bytes - 1] == '\n')
        text[bytes - 1] = 0;
    const char *last = strrchr(text, '\n');
    last = last ? last + 1 : text;
    if (strncmp(last, "spillway: ", strlen("spillway: ")) == 0)
        last += strlen("spillway: ");
    err_set(err, ERR_INPUT, "%s", last);
    mem_free(text);
    return 1;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int read_metrics(const struct command *command, struct measured *measured, struct err *err)
{
    char path[FILE_PATH_MAX], line[4096];
    double step_s[MEASURE_STEPS_MAX];
    uint64_t count = 0;
    int result = file_join(path, command->run, "metrics.jsonl", err);
    FILE *file = result == 0 ? fopen(path, "r") : NULL;
    if (!file)
        return err_set(err, ERR_SYSTEM, "cannot read the log of a training, %s", path);
    *measured = (struct measured){0};
    while (fgets(line, sizeof(line), file)) {
        struct err ignored;
        struct json_value *root = json_parse(line, strlen(line), path, &ignored);
        int64_t step = json_get_int(root, "step", 0);
        if (step > MEASURE_WARM_UP_STEPS && count < MEASURE_STEPS_MAX)
            step_s[count++] = json_get_number(root, "step_s", 0);
        if (step > 0)
            measured->ram_peak_bytes = (uint64_t)json_get_int(root, "ram_peak_bytes", 0);
        json_free(root);
    }
    fclose(file);
    if (!count)
        return err_set(err, ERR_SYSTEM, "a training left no step in its log, %s", path);
    qsort(step_s, count, sizeof(*step_s), by_size);
    measured->step_s = (step_s[(count - 1) / 2] + step_s[count / 2]) / 2;
    measured->steps = count;
    return 0;
}

int measure_training(const struct measure_run *run, struct measured *measured, struct err *err)
{
    struct command command = {.count = 0};
    int status = 0;
    int result = file_join(command.run, run->out, RUN_FOLDER, err);
    if (result == 0)
        result = file_join(command.log, run->out, "measured-run.log", err);
    if (result == 0)
        result = file_join(command.tier, run->nvme, TIER_FOLDER, err);
    if (result)
        return result;
    make_command(&command, run);
    file_remove_tree(command.run);
    result = spawn(&command, &status, err);
    if (result == 0 && (!WIFEXITED(status) || WEXITSTATUS(status) != 0))
        result = refusal(&command, err);
    else if (result == 0)
        result = read_metrics(&command, measured, err);
    file_remove_tree(command.run);
    file_remove_tree(command.tier);
    unlink(command.log);
    return result;
}
