#include "tools/options.h"

#include "core/json.h"
#include "core/log.h"
#include "core/mem.h"
#include "core/topo.h"
#include "io/batch.h"
#include "io/dataset.h"
#include "io/file.h"
#include "model/kernels.h"
#include "offload/checkpoint.h"
#include "offload/record.h"
#include "tools/devices.h"
#include "tools/local.h"

#include <float.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a user who says nothing gets; printed in --help and in config.json. */
#define DEFAULT_BATCH 4
#define DEFAULT_LR    6e-4

/* Options that fix the mathematics of a run: a resumed run may not change them. --data is none of
 * them: data may be moved, and that it is the same is told by its checksum. */
static const char *const fixed[] = {
    "model", "precision", "optimizer-state", "seq",    "batch",        "accum", "lr-steps",
    "seed",  "lr",        "min-lr",          "warmup", "weight-decay", "beta1", "beta2",
    "eps",   "clip",      "device",          "pack"};

static void add(struct options *o, const char *name, enum args_kind kind, void *target,
                const char *value_name, const char *help)
{
    ASSERT(o->count < OPTIONS_MAX);
    o->table[o->count] =
        (struct args_option){name, kind, target, value_name, help, &o->given[o->count]};
    o->count++;
}

static void fill_table(struct options *o, enum options_command command)
{
    bool train = command == OPTIONS_TRAIN;
    add(o, "model", ARGS_STRING, &o->model, "NAME|FILE.json|DIR",
        "gpt-tiny, gpt-mini, gpt2-124m ... gpt2-1558m, a config.json, or a Hugging Face folder "
        "whose weights are the start; for plan also llama-8b, qwen-32b and others");
    add(o, "data", ARGS_STRING, &o->data, "DIR", "a folder made by 'spillway prep'");
    if (train)
        add(o, "out", ARGS_STRING, &o->out, "RUN", "the run's folder, made when missing");
    add(o, "ram-budget", ARGS_SIZE, &o->ram_budget, "SIZE",
        "RAM for the whole process, such as 900M or 8G (default: 80 % of what is free)");
    add(o, "vram-budget", ARGS_SIZE, &o->vram_budget, "SIZE",
        "the device's own memory, an arena on the CPU device (default: none, RAM serves)");
    add(o, "nvme", ARGS_STRING, &o->nvme, "DIR[,DIR]",
        "a folder on a drive for state that RAM does not hold, or one on each of several "
        "(default: none)");
    add(o, "nvme-budget", ARGS_SIZE, &o->nvme_budget, "SIZE",
        "space on all of them (default: what is free)");
    add(o, "nvme-slots", ARGS_U64, &o->nvme_slots, "1|2",
        "copies of the state: 2, or 1 in half the space, which a kill in a step destroys (default: "
        "2)");
    add(o, "write-budget", ARGS_DAILY, &o->write_budget, "SIZE/day",
        "what may be written to the drive a day, commits included, such as 2T/day (default: no "
        "limit)");
    add(o, "device", ARGS_STRING, &o->device, "auto|cpu|cuda[:N]",
        "what computes (default: auto, a CUDA device where there is one, else the CPU)");
    add(o, "precision", ARGS_STRING, &o->precision, "bf16|fp32",
        "default: bf16 on a CUDA device and where the processor has bf16 matrix instructions, else "
        "fp32");
    add(o, "optimizer-state", ARGS_STRING, &o->optimizer_state, "fp32|bf16|8bit",
        "AdamW's moments, 8, 4 or 2 bytes a parameter beside the weight's 4 (default: fp32)");
    add(o, "seq", ARGS_U64, &o->seq, "T",
        "tokens in a sequence (default: the model's, at most 1024)");
    add(o, "pack", ARGS_STRING, &o->pack, "across|within",
        "sequences run across the ends of documents, or within one, and what is shorter is left "
        "out "
        "(default: across)");
    add(o, "batch", ARGS_U64, &o->batch, "B", "sequences in a micro-batch (default: 4)");
    add(o, "accum", ARGS_U64, &o->accum, "M", "micro-batches in a step (default: 1)");
    add(o, "steps", ARGS_U64, &o->steps, "N", "steps in all (default: one epoch)");
    add(o, "epochs", ARGS_U64, &o->epochs, "E", "instead of --steps: passes over the data");
    add(o, "lr-steps", ARGS_U64, &o->lr_steps, "N",
        "where the learning rate reaches --min-lr (default: --steps)");
    if (train)
        add(o, "max-time", ARGS_DURATION, &o->max_time, "TIME",
            "stop after the step in which this much time is over, e.g. 8h (default: no limit)");
    add(o, "seed", ARGS_U64, &o->seed, "S", "of weights and of the order of data (default: 1)");
    add(o, "lr", ARGS_DOUBLE, &o->lr, "X", "highest learning rate (default: 6e-4)");
    add(o, "min-lr", ARGS_DOUBLE, &o->min_lr, "X",
        "lowest learning rate (default: a tenth of --lr)");
    add(o, "warmup", ARGS_U64, &o->warmup, "N",
        "steps of linear warm-up (default: a tenth of the steps, at most 2000)");
    add(o, "weight-decay", ARGS_DOUBLE, &o->weight_decay, "X", "on matrices only (default: 0.1)");
    add(o, "beta1", ARGS_DOUBLE, &o->beta1, "X", "default: 0.9");
    add(o, "beta2", ARGS_DOUBLE, &o->beta2, "X", "default: 0.95");
    add(o, "eps", ARGS_DOUBLE, &o->eps, "X", "default: 1e-8");
    add(o, "clip", ARGS_DOUBLE, &o->clip, "X",
        "largest global gradient norm; 0: no clipping (default: 1.0)");
    add(o, "checkpoint-every", ARGS_U64, &o->checkpoint_every, "N",
        "steps between commits; 0: only at the end (default: 100)");
    if (train) {
        add(o, "keep-every", ARGS_U64, &o->keep_every, "N",
            "steps between copies that are kept under RUN/kept; 0: never (default: 0)");
        add(o, "eval-every", ARGS_U64, &o->eval_every, "N",
            "steps between evaluations on the validation data; 0: never (default: 0)");
        add(o, "resume", ARGS_FLAG, &o->resume, NULL,
            "continue the run in --out; options not given again are as before");
        add(o, "replay", ARGS_FLAG, &o->replay, NULL,
            "simulate each step again with the durations of its ops (replayed_s in the log)");
        add(o, "trace", ARGS_STRING, &o->trace, "FILE",
            "write what every lane did when, for https://ui.perfetto.dev");
    } else {
        add(o, "gpu", ARGS_STRING, &o->machine.gpu, "NAME", "with this GPU, e.g. rtx3060; or none");
        add(o, "gpus", ARGS_U64, &o->machine.gpus, "N", "how many of it (default: 1)");
        add(o, "cpu", ARGS_STRING, &o->machine.cpu, "NAME", "with this processor, e.g. 7950x3d");
        add(o, "ram", ARGS_STRING, &o->machine.ram, "SIZE[@MTS]",
            "with so much RAM, e.g. 192G or 192G@3600 (MT/s)");
        add(o, "ssd", ARGS_STRING, &o->machine.ssd, "NAME [xN]",
            "with this drive, e.g. t700-2tb, or two of it: t700-2tb x2");
        add(o, "ssds", ARGS_U64, &o->machine.ssds, "N", "how many drives");
        add(o, "tokens", ARGS_DOUBLE, &o->tokens, "N", "size of the data, e.g. 1.2e9 tokens");
        add(o, "json", ARGS_FLAG, &o->json, NULL, "print the plan's figures as JSON");
        add(o, "ops", ARGS_FLAG, &o->dump, NULL, "list every op of a step");
    }
    add(o, "resident", ARGS_STRING, &o->resident, "auto|none|LIST|device",
        "parts of the state kept in RAM: hi; hi,lo; hi,lo,m; hi,lo,m,v; or all that fits on the "
        "device (default: auto, where it is fastest; for experiments)");
    add(o, "update", ARGS_STRING, &o->update, "auto|cpu|device",
        "who updates the state that is in RAM: the CPU, or the device, through which it is then "
        "streamed (default: auto, the fastest split)");
    add(o, "prefetch", ARGS_U64, &o->prefetch, "N",
        "layers fetched ahead (default: 2, or 1 where memory is short)");
    add(o, "recompute", ARGS_STRING, &o->recompute, "auto|all|none",
        "activations inside blocks in backward (default: auto, what does not fit)");
    add(o, "threads", ARGS_U64, &o->threads, "N", "compute threads (default: one a core)");
    add(o, "machine", ARGS_STRING, &o->machine.machine, "NAME|FILE", OPTIONS_HELP_MACHINE);
}

static bool was_given(const struct options *o, const char *name)
{
    for (size_t i = 0; i < o->count; i++)
        if (strcmp(o->table[i].name, name) == 0)
            return o->given[i];
    return false;
}

static bool is_fixed(const char *name)
{
    for (size_t i = 0; i < ARRAY_COUNT(fixed); i++)
        if (strcmp(fixed[i], name) == 0)
            return true;
    return false;
}

/* ---- The record ------------------------------------------------------------------------------ */

static void record_option(struct json_value *record, const struct args_option *option)
{
    /* Of the call, not of the run: the next call would write over the trace of this one. */
    if (strcmp(option->name, "trace") == 0)
        return;
    switch (option->kind) {
    case ARGS_STRING: {
        const char *text = *(const char **)option->target;
        if (text)
            json_set_string(record, option->name, text);
        return;
    }
    case ARGS_U64:
    case ARGS_SIZE:
    case ARGS_DAILY: {
        uint64_t value = *(uint64_t *)option->target;
        if (value <= INT64_MAX)
            json_set_int(record, option->name, (int64_t)value);
        return;
    }
    case ARGS_DOUBLE:
    case ARGS_DURATION:
        json_set_number(record, option->name, *(double *)option->target);
        return;
    case ARGS_FLAG:
        return; /* of the call, not of the run */
    }
}

static bool same_value(const struct args_option *option, const struct json_value *recorded)
{
    if (option->kind == ARGS_STRING) {
        const char *text = *(const char **)option->target, *before = json_string(recorded);
        return before && strcmp(text, before) == 0;
    }
    if (option->kind == ARGS_DOUBLE || option->kind == ARGS_DURATION)
        return *(double *)option->target == json_number(recorded, -1);
    return *(uint64_t *)option->target == (uint64_t)json_int(recorded, -1);
}

static void take_value(const struct args_option *option, const struct json_value *recorded)
{
    if (option->kind == ARGS_STRING)
        *(const char **)option->target = json_string(recorded);
    else if (option->kind == ARGS_DOUBLE || option->kind == ARGS_DURATION)
        *(double *)option->target = json_number(recorded, 0);
    else if (option->kind != ARGS_FLAG)
        *(uint64_t *)option->target = (uint64_t)json_int(recorded, 0);
}

static int differs(const struct options *o, const char *name, struct err *err)
{
    return err_set(err, ERR_INPUT,
                   "--%s differs from that of the run in %s, and a resumed run may not "
                   "change its mathematics: leave the option away, or start another run",
                   name, o->out);
}

/* --device auto, given again, is what it was then, whatever there is by now. */
static bool is_auto(const struct args_option *option)
{
    return strcmp(option->name, "device") == 0 &&
           strcmp(*(const char **)option->target, "auto") == 0;
}

/* What is not given again is as it was; what is given again must not change the mathematics. */
static int take_record(struct options *o, struct err *err)
{
    char path[FILE_PATH_MAX];
    int result = file_join(path, o->out, CHECKPOINT_MANIFEST_FILE, err);
    if (result == 0)
        result = record_load(&o->loaded, o->out, err);
    if (result < 0)
        return result;
    if (!o->loaded) {
        if (file_exists(path))
            return err_set(err, ERR_CORRUPT,
                           "%s has a commit but no %s, which says how it was trained: put it back "
                           "(each folder in kept/ has the same one)",
                           o->out, RECORD_FILE);
        /* Killed before it was written: with --model given again the run starts at step 0. */
        if (o->model)
            return 0;
        return err_set(
            err, ERR_INPUT,
            "there is no run in %s to resume: give --out the folder of one, or start one "
            "with --model and --data",
            o->out);
    }
    const struct json_value *record = json_get(o->loaded, "options");
    o->device = devices_name(o->device);
    for (size_t i = 0; i < o->count; i++) {
        const struct args_option *option = &o->table[i];
        const struct json_value *recorded = json_get(record, option->name);
        /* Records from before there was --pack. */
        if (!recorded && o->given[i] && strcmp(option->name, "pack") == 0 &&
            strcmp(o->pack, "across") != 0)
            return differs(o, option->name, err);
        if (!recorded)
            continue;
        if (!o->given[i] || is_auto(option)) {
            take_value(option, recorded);
            continue;
        }
        if (is_fixed(option->name) && !same_value(option, recorded))
            return differs(o, option->name, err);
    }
    /* Recorded before there was another device. */
    if (strcmp(o->device, "auto") == 0)
        o->device = "cpu";
    return 0;
}

/* What a run computes with is in its folder once it has made a commit: the file or folder that
 * --model named may have changed since, or be gone. Before, its weights are still needed. */
static int choose_config(const struct options *o, struct train_settings *s, struct err *err)
{
    char path[FILE_PATH_MAX];
    const struct json_value *model = json_get(o->loaded, "model");
    if (model) {
        int result = file_join(path, o->out, CHECKPOINT_MANIFEST_FILE, err);
        if (result)
            return result;
        if (file_exists(path))
            return config_from_json(&s->config, model, o->out, err);
    }
    return config_load(&s->config, o->model, err);
}

/* ---- Choices --------------------------------------------------------------------------------- */

static int choice(const char *name, const char *value, const char *const *names, size_t count,
                  int *index, struct err *err)
{
    char list[128] = "";
    for (size_t i = 0; i < count; i++) {
        if (strcmp(value, names[i]) == 0) {
            *index = (int)i;
            return 0;
        }
        size_t used = strlen(list);
        snprintf(list + used, sizeof(list) - used, "%s%s", i ? ", " : "", names[i]);
    }
    return err_set(err, ERR_USAGE, "--%s is '%s'; it may be: %s", name, value, list);
}

static int choose_words(struct options *o, struct train_settings *s, struct err *err)
{
    static const char *const precisions[] = {"fp32", "bf16"};
    static const char *const recomputes[] = {"auto", "all", "none"};
    static const char *const residents[] = {"none",      "hi",   "hi,lo", "hi,lo,m",
                                            "hi,lo,m,v", "auto", "all",   "device"};
    static const char *const updates[] = {"auto", "cpu", "device"};
    static const char *const packs[] = {"across", "within"};
    int precision = 0, recompute = 0, resident = 0, moments = 0, pack = 0, update = 0;
    int result = devices_choose(o->device, s, &o->device, err);
    if (!o->precision)
        o->precision = o->machine.gpu || s->cuda || kernels_cpu_has_bf16() ? "bf16" : "fp32";
    if (result == 0)
        result = choice("precision", o->precision, precisions, 2, &precision, err);
    if (result == 0)
        result = choice("recompute", o->recompute, recomputes, 3, &recompute, err);
    if (result == 0)
        result = choice("pack", o->pack, packs, 2, &pack, err);
    if (result == 0)
        result = choice("optimizer-state", o->optimizer_state, moments_name, MOMENTS_KIND_COUNT,
                        &moments, err);
    if (result == 0)
        result = choice("resident", o->resident, residents, 8, &resident, err);
    if (result == 0)
        result = choice("update", o->update, updates, 3, &update, err);
    s->update = (enum place_update)update;
    s->precision = precision ? PRECISION_BF16 : PRECISION_FP32;
    s->moments = (enum moments_kind)moments;
    s->within_documents = pack == 1;
    s->recompute = (enum place_recompute)recompute;
    s->resident_planes = resident == 5   ? PLACE_RESIDENT_AUTO
                         : resident == 7 ? PLACE_RESIDENT_DEVICE
                                         : MIN(resident, PLANE_COUNT);
    return result;
}

static int in_range(const char *name, uint64_t value, uint64_t least, uint64_t most,
                    struct err *err)
{
    if (value >= least && value <= most)
        return 0;
    return err_set(err, ERR_USAGE, "--%s is %" PRIu64 "; it may be %" PRIu64 " to %" PRIu64, name,
                   value, least, most);
}

/* JSON's numbers, in which a run's options are recorded, end at INT64_MAX. */
static int check_recordable(const struct options *o, struct err *err)
{
    int result = 0;
    for (size_t i = 0; i < o->count && result == 0; i++)
        if (o->table[i].kind == ARGS_U64 && o->given[i])
            result = in_range(o->table[i].name, *(uint64_t *)o->table[i].target, 0, INT64_MAX, err);
    return result;
}

/* The kernels compute in floats: what is no number there, or nothing, is refused before it makes
 * weights that are not finite, or a run that learns nothing and says nothing. */
static int check_floats(const struct options *o, struct err *err)
{
    for (size_t i = 0; i < o->count; i++) {
        if (o->table[i].kind != ARGS_DOUBLE || !o->given[i])
            continue;
        double value = *(double *)o->table[i].target;
        if (value > FLT_MAX || (value > 0 && value < FLT_MIN))
            return err_set(err, ERR_USAGE, "--%s is %g; it may be %g to %g%s", o->table[i].name,
                           value, (double)FLT_MIN, (double)FLT_MAX,
                           strcmp(o->table[i].name, "eps") == 0 ? "" : ", or 0");
    }
    return 0;
}

static int check_numbers(const struct options *o, struct err *err)
{
    int result = in_range("batch", o->batch, 1, 65536, err);
    if (result == 0)
        result = in_range("accum", o->accum, 1, 4096, err);
    if (result == 0 && was_given(o, "seq"))
        result = in_range("seq", o->seq, 1, 65536, err);
    if (result == 0 && was_given(o, "prefetch"))
        result = in_range("prefetch", o->prefetch, 1, 64, err);
    if (result == 0)
        result = in_range("nvme-slots", o->nvme_slots, 1, 2, err);
    if (result == 0 && was_given(o, "threads"))
        result = in_range("threads", o->threads, 1, 256, err);
    if (result == 0 && was_given(o, "epochs"))
        result = in_range("epochs", o->epochs, 1, 100000, err);
    if (result == 0)
        result = check_recordable(o, err);
    if (result == 0)
        result = check_floats(o, err);
    if (result)
        return result;
    if (was_given(o, "steps") && was_given(o, "epochs"))
        return err_set(err, ERR_USAGE, "--steps and --epochs both say how long: give one of them");
    if (o->beta1 >= 1 || o->beta2 >= 1)
        return err_set(err, ERR_USAGE, "--beta1 and --beta2 must be below 1");
    if (o->eps <= 0)
        return err_set(err, ERR_USAGE, "--eps must be above 0");
    if (o->min_lr > o->lr)
        return err_set(err, ERR_USAGE, "--min-lr %g is above --lr %g", o->min_lr, o->lr);
    return 0;
}

/* Sequences in an epoch. */
static int count_windows(const struct options *o, const struct shard *shard, uint64_t *windows,
                         struct err *err)
{
    struct batch_source source;
    uint64_t seq = o->seq ? o->seq : 1024;
    *windows = (shard->token_count - 1) / seq;
    if (strcmp(o->pack, "within") != 0)
        return 0;
    int result = seq <= BATCH_SEQ_MAX
                     ? batch_init_within(&source, shard, 0, (uint32_t)seq, err)
                     : err_set(err, ERR_USAGE, "--seq is at most %d", BATCH_SEQ_MAX);
    if (result == 0) {
        *windows = source.window_count;
        batch_deinit(&source);
    }
    return result;
}

/* Steps and the schedule, which may need the size of the data. */
static int choose_steps(struct options *o, struct err *err)
{
    bool recorded = o->steps != UINT64_MAX && !was_given(o, "epochs");
    if (!was_given(o, "steps") && !recorded) {
        o->steps = 1000; /* a plan without data */
        if (o->data) {
            struct dataset dataset;
            int result = dataset_open(&dataset, o->data, err);
            if (result)
                return result;
            uint64_t windows;
            result = count_windows(o, &dataset.train, &windows, err);
            dataset_close(&dataset);
            if (result)
                return result;
            o->steps = MAX(1, windows * o->epochs / (o->batch * o->accum));
        }
    }
    if (o->lr_steps == UINT64_MAX)
        o->lr_steps = o->steps;
    if (o->warmup == UINT64_MAX)
        o->warmup = MIN(o->lr_steps / 10, 2000);
    return 0;
}

static void print_resume_command(struct options *o)
{
    bool plain = o->out[strspn(o->out, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                       "0123456789/._-+,:@")] == 0;
    snprintf(o->resume_command, sizeof(o->resume_command), "spillway train --resume --out %s%s%s",
             plain ? "" : "'", o->out, plain ? "" : "'");
}

static void set_defaults(struct options *o)
{
    o->device = "auto";
    o->optimizer_state = "fp32";
    o->resident = "auto";
    o->update = "auto";
    o->recompute = "auto";
    o->pack = "across";
    o->nvme_budget = UINT64_MAX;
    o->batch = DEFAULT_BATCH;
    o->accum = 1;
    o->steps = o->lr_steps = o->warmup = UINT64_MAX;
    o->epochs = 1;
    o->seed = 1;
    o->lr = DEFAULT_LR;
    o->min_lr = -1;
    o->weight_decay = 0.1;
    o->beta1 = 0.9;
    o->beta2 = 0.95;
    o->eps = 1e-8;
    o->clip = 1.0;
    o->checkpoint_every = 100;
    o->nvme_slots = 2;
}

static bool is_folder(const char *path)
{
    struct stat stat_;
    return stat(path, &stat_) == 0 && S_ISDIR(stat_.st_mode);
}

/* A path is recorded so that the run may be resumed from another folder. */
static void make_absolute(const char **path, char text[FILE_PATH_MAX])
{
    char here[FILE_PATH_MAX];
    if (!*path || **path == '/' || !getcwd(here, sizeof(here)) ||
        snprintf(text, FILE_PATH_MAX, "%s/%s", here, *path) >= FILE_PATH_MAX)
        return;
    *path = text;
}

static int require(const struct options *o, const char *name, const char *value, struct err *err)
{
    if (value)
        return 0;
    for (size_t i = 0; i < o->count; i++)
        if (strcmp(o->table[i].name, name) == 0)
            return err_set(err, ERR_USAGE, "--%s is missing: --%s %s, %s", name, name,
                           o->table[i].value_name, o->table[i].help);
    ASSERT(!"a required option is in the table");
    return 0;
}

/* A run among prepared data would have two meanings for the files that both have. */
static int check_out(const struct options *o, struct err *err)
{
    char path[FILE_PATH_MAX];
    int result = file_join(path, o->out, DATASET_FILE, err);
    if (result == 0 && file_exists(path))
        result = err_set(err, ERR_INPUT,
                         "%s holds prepared data, not a run: give --out another folder", o->out);
    return result;
}

/* What a run that goes on holds of its drives already. */
static void held_files(const struct options *o, struct stripe_files *files)
{
    struct checkpoint_manifest manifest;
    struct err ignored;
    files->count = 0;
    if (!o->resume || checkpoint_load(&manifest, o->out, NULL, &ignored) != 0)
        return;
    *files = manifest.files;
    checkpoint_unload(&manifest);
}

/* The drives' free space bounds the NVMe budget. */
static int choose_nvme(struct options *o, bool train, struct train_settings *s, struct err *err)
{
    char text[LOG_BYTES_MAX];
    struct stripe_files held;
    s->nvme = nvme_folders(&o->nvme_list);
    if (!o->nvme)
        return 0;
    nvme_share(&o->nvme_list, &o->profile, &s->nvme);
    if (train || !options_imagined(o, s))
        nvme_profile(&o->nvme_list, &o->profile);
    if (o->nvme_budget != UINT64_MAX)
        return 0;
    held_files(o, &held);
    int result = 0;
    for (uint32_t d = 0; d < s->nvme.count && train && result == 0; d++)
        result = file_make_dirs(s->nvme.dir[d], err);
    if (result == 0)
        result = nvme_free_bytes(&o->nvme_list, &s->nvme, &held, &o->nvme_budget, err);
    if (result == 0)
        log_line("NVMe budget: %s (what is free there)", log_bytes(text, o->nvme_budget));
    return result;
}

static void fill_settings(struct options *o, struct train_settings *s)
{
    s->model_dir = is_folder(o->model) ? o->model : NULL;
    s->data_dir = o->data;
    s->seq = o->seq;
    s->batch = o->batch;
    s->accum = o->accum;
    s->seed = o->seed;
    s->optim = (struct optim_settings){
        .lr = o->lr,
        .min_lr = o->min_lr,
        .warmup_steps = o->warmup,
        .total_steps = o->lr_steps,
        .beta1 = o->beta1,
        .beta2 = o->beta2,
        .eps = o->eps,
        .weight_decay = o->weight_decay,
        .clip = o->clip,
    };
    s->run_dir = o->out;
    s->ram_budget = o->ram_budget;
    s->thrifty = o->thrifty;
    s->vram_budget = o->vram_budget;
    s->nvme_budget = o->nvme_budget;
    s->write_budget = o->write_budget;
    s->one_slot = o->nvme_slots == 1;
    s->prefetch = o->prefetch;
    s->threads = o->threads;
    s->steps = o->steps;
    s->max_time_s = o->max_time;
    s->checkpoint_every = o->checkpoint_every;
    s->keep_every = o->keep_every;
    s->eval_every = o->eval_every;
    s->resume = o->resume;
    s->replay = o->replay;
    s->trace_path = o->trace;
    s->record = o->record;
    s->resume_command = o->resume_command;
    s->profile = &o->profile;
}

bool options_imagined(const struct options *o, const struct train_settings *settings)
{
    const struct machine_request *m = &o->machine;
    return m->gpu || m->cpu || m->ram || m->ssd || m->gpus || m->ssds ||
           (m->machine && !o->profile.measured) || !o->profile.device.is_cpu ||
           settings->config.kind != CONFIG_GPT2;
}

int options_ssd_count(const char *const *words, size_t count, uint64_t *ssds, struct err *err)
{
    for (size_t i = 0; i < count; i++) {
        char *end = NULL;
        unsigned long drives = words[i][0] == 'x' ? strtoul(words[i] + 1, &end, 10) : 0;
        if (drives < 1 || drives > 16 || *end)
            return err_set(err, ERR_USAGE,
                           "unexpected argument '%s': only the number of drives may follow --ssd "
                           "NAME, such as x2",
                           words[i]);
        *ssds = drives;
    }
    return 0;
}

/* The machine at hand, and what the options make of it. */
static int choose_machine(struct options *o, struct err *err)
{
    struct machine_request machine = o->machine;
    int result = local_profile(&o->local, &o->local_measured, err);
    o->profile = o->local;
    if (machine.ssd && strcmp(machine.ssd, "none") == 0)
        machine.ssd = NULL;
    return result ? result : machine_compose(&o->profile, &machine, err);
}

/* A profile whose device is the CPU says nothing of a card. */
static int choose_card(struct options *o, struct train_settings *settings, struct err *err)
{
    if (!settings->cuda || !o->profile.device.is_cpu)
        return 0;
    int result = devices_card(settings, &o->profile, &o->card, err);
    if (result == 0)
        settings->card = &o->card;
    return result > 0 ? 0 : result;
}

static void default_ram(struct options *o)
{
    char text[LOG_BYTES_MAX];
    o->ram_budget = mem_available_bytes() / 5 * 4 - MIN(o->vram_budget, mem_available_bytes() / 2);
    o->thrifty = true;
    log_line("RAM budget: %s (80 %% of what is free%s)", log_bytes(text, o->ram_budget),
             o->vram_budget ? ", less the VRAM budget" : "");
}

int options_parse(struct options *o, enum options_command command, int argc, char **argv,
                  struct train_settings *settings, struct err *err)
{
    bool train = command == OPTIONS_TRAIN;
    const char *words[2];
    *o = (struct options){0};
    *settings = (struct train_settings){0};
    set_defaults(o);
    fill_table(o, command);
    struct args_command args = {
        .name = train ? "train" : "plan",
        .summary = train ? "Trains a model, within budgets of RAM, device memory and drive."
                         : "Shows what sits where and what a step moves, without training.",
        .usage = train ? "--model NAME --data DIR --out RUN [options]" : "--model NAME [options]",
        .example = train ? "spillway train --model gpt2-124m --data wiki --out run --ram-budget 8G "
                           "--nvme /mnt/ssd --steps 1000"
                         : "spillway plan --model qwen-32b --gpu rtx3060 --cpu 7950x3d --ram 192G "
                           "--ssd t700-2tb "
                           "x2 --batch 4 --accum 8",
        .options = o->table,
        .option_count = o->count,
        .positional = train ? NULL : words,
        .positional_max = ARRAY_COUNT(words),
    };
    int result = args_parse(&args, argc, argv, err);
    if (result == 0)
        result = options_ssd_count(words, args.positional_count, &o->machine.ssds, err);
    if (result)
        return result;
    if (o->machine.machine && file_exists(o->machine.machine))
        make_absolute(&o->machine.machine, o->machine_path);
    make_absolute(&o->data, o->data_path);
    if (train)
        result = require(o, "out", o->out, err);
    if (result == 0 && train)
        result = check_out(o, err);
    if (result == 0 && o->resume)
        result = take_record(o, err);
    if (result == 0)
        result = require(o, "model", o->model, err);
    if (result == 0 && train)
        result = require(o, "data", o->data, err);
    if (result == 0)
        result = choose_words(o, settings, err);
    if (result == 0 && o->min_lr < 0)
        o->min_lr = o->lr / 10;
    if (result == 0)
        result = check_numbers(o, err);
    if (result == 0)
        result = choose_config(o, settings, err);
    if (result == 0)
        result = choose_steps(o, err);
    if (result == 0)
        result = choose_machine(o, err);
    if (result == 0)
        result = nvme_parse(&o->nvme_list, o->nvme, err);
    if (result)
        return result;
    if (o->nvme)
        o->nvme = o->nvme_list.text; /* absolute: a run may be resumed from another folder */
    /* Before what is free now takes the place of budgets that were not given: on another day it may
     * be another amount. */
    o->record = json_new_object();
    for (size_t i = 0; i < o->count; i++)
        record_option(o->record, &o->table[i]);
    result = choose_nvme(o, train, settings, err);
    if (result)
        return result;
    /* train is always on the machine at hand, whatever profile it predicts by. */
    if (!o->ram_budget && !was_given(o, "ram-budget") && (train || !options_imagined(o, settings)))
        default_ram(o);
    if (train)
        print_resume_command(o);
    fill_settings(o, settings);
    return choose_card(o, settings, err);
}

void options_deinit(struct options *o)
{
    json_free(o->record);
    json_free(o->loaded);
    *o = (struct options){0};
}
