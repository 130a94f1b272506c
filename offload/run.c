#include "offload/run.h"

#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/topo.h"
#include "io/ring.h"
#include "io/safetensors.h"
#include "offload/bound.h"
#include "offload/cores.h"
#include "offload/forecast.h"
#include "offload/gpu.h"
#include "offload/home.h"
#include "offload/record.h"
#include "offload/state.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EVAL_SEED 0
/* Of the machine's free memory, what is left to others. */
#define MACHINE_RESERVE (256 * MIB)
/* Up to so many rows of a micro-batch the CPU device opens well within a second. */
#define QUICK_ROWS_MAX 4096
/* What is touched in the first step only: stacks of the lanes, the ring's pages, the log; and what
 * scheduler and engine hold for the ops of a chunk. Measured at gpt-mini and gpt2-124m. */
#define ENGINE_BYTES       MIB
#define ENGINE_CHUNK_BYTES (3 * KIB)
/* What is shorter says nothing about a rate; what differs more is something else than a rate. */
#define LEARN_SECONDS_MIN 0.002
#define LEARN_RATIO_MIN   0.05
#define STRETCH_MAX       16.0 /* a profile is not further from the truth than that */

const struct plan_request run_variant[VARIANT_COUNT] = {
    [PLAN_FIRST] = {.forward = true, .backward = true},
    [PLAN_STEADY] = {.update = true, .forward = true, .backward = true},
    [PLAN_STEADY_COMMIT] = {.update = true, .commit = true, .forward = true, .backward = true},
    [PLAN_FLUSH] = {.update = true},
    [PLAN_FLUSH_COMMIT] = {.update = true, .commit = true},
    [PLAN_EVAL] = {.forward = true},
};

/* ---- Setting up ------------------------------------------------------------------------------ */

static int open_model(struct run *run, struct err *err)
{
    struct train_settings *s = run->settings;
    run->config = s->config;
    if (s->data_dir) {
        int result = dataset_open(&run->dataset, s->data_dir, err);
        if (result)
            return result;
        if (run->config.vocab && run->dataset.vocab > run->config.vocab)
            return err_set(err, ERR_INPUT,
                           "the data in %s has %u tokens in its vocabulary, more than the %u of "
                           "the model: prepare it with --vocab-size %u or less, or take a model "
                           "that follows the data (gpt-tiny, gpt-mini)",
                           s->data_dir, run->dataset.vocab, run->config.vocab, run->config.vocab);
        if (!run->config.vocab)
            run->config.vocab = run->dataset.vocab;
    }
    if (!run->config.vocab)
        run->config.vocab = 50257; /* a plan without data: GPT-2's */
    int result = config_check(&run->config, err);
    if (result == 0)
        result = config_check_trains(&run->config, err);
    if (result)
        return result;
    if (!s->seq)
        s->seq = MIN(run->config.positions, 1024);
    if (s->seq > run->config.positions)
        return err_set(err, ERR_INPUT, "--seq %" PRIu64 " is longer than the %u positions of %s",
                       s->seq, run->config.positions, run->config.name);
    if (s->batch * s->seq > KERNELS_ROWS_MAX)
        return err_set(err, ERR_INPUT,
                       "--batch %" PRIu64 " of --seq %" PRIu64
                       " are more tokens than a micro-batch "
                       "may have: take --batch %" PRIu64 " or less, and --accum for the rest",
                       s->batch, s->seq, KERNELS_ROWS_MAX / s->seq);
    tensors_init(&run->tensors, &run->config);
    layout_init(&run->layout, &run->tensors, s->moments);
    return 0;
}

static void kernels_shape_of(const struct run *run, struct kernels_shape *shape)
{
    *shape = (struct kernels_shape){
        .precision = run->settings->precision,
        .batch = (uint32_t)run->settings->batch,
        .seq = (uint32_t)run->settings->seq,
        .channels = run->config.channels,
        .heads = run->config.heads,
        .vocab = run->config.vocab,
        .tile_rows_max = run->layout.tile_rows_max,
        .norm_epsilon = run->config.norm_epsilon,
    };
}

static uint32_t thread_count(const struct run *run)
{
    return run->settings->threads ? (uint32_t)run->settings->threads : topo_open()->core_count;
}

/* The card's context, streams and kernels. A budget that was not given is what the card has free,
 * less a reserve. */
static int open_gpu(struct run *run, struct err *err)
{
    struct train_settings *s = run->settings;
    const struct gpu_plugin *plugin = gpu_find(s->cuda_device, err);
    struct gpu_info info;
    struct gpu_setup setup = {.number = s->cuda_device, .tensors = &run->tensors};
    if (!plugin)
        return err->code;
    int result = plugin->info(s->cuda_device, &info, err);
    if (result)
        return result;
    kernels_shape_of(run, &setup.shape);
    plugin->sizes(&setup.shape, &run->sizes);
    result = plugin->open(&run->device, &setup, &run->device_overhead_bytes, err);
    if (result)
        return result;
    if (!s->vram_budget) {
        char text[LOG_BYTES_MAX];
        s->vram_budget = info.free_bytes - MIN(info.free_bytes, GPU_RESERVE_BYTES);
        log_line("VRAM budget: %s (what is free, less a reserve)", log_bytes(text, s->vram_budget));
    }
    /* A profile of the CPU device says nothing of a card. */
    if (run->profile.device.is_cpu && s->card)
        run->profile.device = *s->card;
    else if (run->profile.device.is_cpu)
        profile_init_gpu(&run->profile, info.name, info.vram_bytes);
    return 0;
}

static int open_cpu(struct run *run, uint32_t threads, struct err *err)
{
    struct kernels_shape shape;
    kernels_shape_of(run, &shape);
    int result = cores_choose(threads, shape.precision, err);
    if (result == 0)
        result = pool_open(&run->pool, "compute", threads, true, err);
    if (result == 0)
        result = kernels_cpu_open(&run->kernels, &shape, &run->tensors, run->pool, err);
    /* Opening has run the kernels, and so bound this thread to the first core: the lanes that it
     * starts would all sit there. */
    topo_unbind_thread();
    return result ? result : device_cpu_open(&run->device, run->kernels, run->pool, err);
}

static int open_device(struct run *run, struct err *err)
{
    uint32_t threads = thread_count(run);
    int result = pool_open(&run->cpu_pool, "cpu", threads, false, err);
    if (result)
        return result;
    return run->settings->cuda ? open_gpu(run, err) : open_cpu(run, threads, err);
}

/* What the process takes beside its arenas. */
static uint64_t measure_overhead(const struct run *run)
{
    struct mem_usage usage;
    mem_usage_read(&usage);
    /* In whole MiB: what differs by some pages from one start to the next, plan and train among
     * them, should not be placed differently. */
    return round_up(usage.rss_bytes + usage.page_table_bytes, MIB) +
           forecast_overhead_bytes(&run->layout, run->config.layers, (uint32_t)run->settings->accum,
                                   run->settings->cuda);
}

/* What --vram-budget leaves to the arena; at least a byte of a card, so that the placement refuses
 * with what would do. */
static uint64_t arena_budget(const struct run *run)
{
    uint64_t budget = run->settings->vram_budget, overhead = run->device_overhead_bytes;
    return budget > overhead || !run->settings->cuda ? budget - overhead : 1;
}

static struct place_spec place_spec_of(const struct run *run, bool nvme, uint64_t overhead_bytes)
{
    const struct train_settings *s = run->settings;
    return (struct place_spec){
        .config = &run->config,
        .layout = &run->layout,
        .precision = s->precision,
        .seq = (uint32_t)s->seq,
        .batch = (uint32_t)s->batch,
        .accum = (uint32_t)s->accum,
        .ram_budget = s->ram_budget,
        .thrifty = s->thrifty,
        .vram_budget = arena_budget(run),
        .vram_reserve = run->device_overhead_bytes,
        .vram_given = s->vram_budget,
        .device_inner_bytes = run->sizes.inner_bytes,
        .device_scratch_bytes = run->sizes.scratch_bytes,
        .device_head_once_bytes = run->sizes.head_once_bytes,
        .nvme_budget = s->nvme_budget,
        .overhead_bytes = overhead_bytes,
        .write_budget = s->write_budget,
        .checkpoint_every = (uint32_t)MIN(s->checkpoint_every, UINT32_MAX),
        .one_slot = s->one_slot,
        .nvme = nvme,
        .clip = s->optim.clip > 0,
        .resident_planes = s->resident_planes,
        .update = s->update,
        .prefetch = (uint32_t)s->prefetch,
        .recompute = s->recompute,
        .profile = &run->profile,
    };
}

/* Opening the device runs every product of the library's once, which takes as long as a layer does
 * where all are: seconds or minutes where a micro-batch is very large. So what cannot fit even
 * without the device's own memory is refused before, by an estimate that is on the safe side
 * (tests/system/budget.sh). */
static int refuse_early(const struct run *run, bool nvme, struct err *err)
{
    struct place place;
    uint64_t overhead_bytes = measure_overhead(run);
    if (run->settings->batch * run->settings->seq <= QUICK_ROWS_MAX || run->settings->cuda)
        return 0;
    struct place_spec spec = place_spec_of(run, nvme, overhead_bytes);
    spec.profile = NULL; /* whether, not which: no search */
    int result = place_choose(&place, &spec, err);
    place_deinit(&place);
    if (result == 0)
        return 0;
    struct kernels_shape shape;
    kernels_shape_of(run, &shape);
    spec.overhead_bytes += kernels_cpu_bytes(&shape, thread_count(run));
    result = place_choose(&place, &spec, err);
    place_deinit(&place);
    return result;
}

static int choose_place(struct run *run, bool nvme, struct err *err)
{
    struct place_spec spec = place_spec_of(run, nvme, measure_overhead(run));
    return place_choose(&run->place, &spec, err);
}

int run_check_machine(const struct place *place, uint64_t device_bytes, struct err *err)
{
    struct mem_usage usage;
    mem_usage_read(&usage);
    uint64_t need = place->ram_bytes + device_bytes;
    struct mem_available available;
    mem_available_read(&available);
    uint64_t have = available.machine_bytes + usage.rss_bytes;
    /* The machine's last free byte is not ours: what else runs breathes too. A group's is. */
    have -= MIN(have / 32, MACHINE_RESERVE);
    if (available.group_bytes < UINT64_MAX)
        have = MIN(have, available.group_bytes + usage.rss_bytes);
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    if (need <= have)
        return 0;
    uint64_t ram = have > device_bytes ? have - device_bytes : 0;
    if (ram < place->spec.overhead_bytes)
        return err_set(err, ERR_INPUT,
                       "the plan needs %s of memory and the machine has only %s free now: close "
                       "other programs",
                       log_bytes(a, need), log_bytes(b, have));
    return err_set(err, ERR_INPUT,
                   "the plan needs %s of memory and the machine has only %s free now: close other "
                   "programs, or try what is free, other budgets as given: --ram-budget %" PRIu64
                   "M",
                   log_bytes(a, need), log_bytes(b, have), ram / MIB);
}

static int build_plans(struct run *run, struct err *err)
{
    plan_memory_init(&run->memory, &run->place);
    for (uint32_t c = 0; c < run->layout.chunk_count; c++)
        run->spills_state |= run->place.resident[c] < PLANE_COUNT && !run->place.on_device[c];
    uint32_t op_max = 0;
    for (uint32_t v = 0; v < VARIANT_COUNT; v++) {
        const struct plan_request *request = &run_variant[v];
        if (request->update && !run_defers_updates(run))
            continue;
        plan_build(&run->plans[v], &run->place, &run->memory, request);
        place_least(&run->place, request->update, request->forward, request->backward,
                    &run->least[v]);
        int result = plan_check(&run->plans[v], err);
        if (result)
            return result;
        op_max = MAX(op_max, run->plans[v].op_count);
    }
    sched_init(&run->sched, op_max);
    sched_init(&run->model_sched, op_max);
    if (run->settings->replay)
        run->sched.times = run->times = mem_alloc(op_max, sizeof(*run->times));
    return 0;
}

static int save_plan(const struct run *run, struct err *err)
{
    char path[FILE_PATH_MAX];
    int result = file_join(path, run->settings->run_dir, "plan.txt", err);
    if (result)
        return result;
    FILE *file = fopen(path, "w");
    if (!file)
        return err_set_errno(err, errno, "cannot write %s", path);
    place_print(&run->place, &run->memory, file);
    fprintf(file, "\nA step\n");
    plan_dump(&run->plans[run_usual(run)], file);
    if (ferror(file) | fclose(file))
        return err_set(err, ERR_SYSTEM, "cannot write %s: is the disk full?", path);
    return 0;
}

static int open_initial_weights(const struct run *run, struct safetensors **weights,
                                struct err *err)
{
    *weights = NULL;
    if (!run->settings->model_dir)
        return 0;
    int result = safetensors_open(weights, run->settings->model_dir, err);
    return result ? result : state_check_weights(*weights, &run->tensors, err);
}

static int open_tier(struct run *run, const struct stripe_files *files, bool create,
                     struct err *err)
{
    int result = tier_open(&run->tier, &run->layout, &run->memory, files, create, err);
    if (result == 0)
        tier_register(&run->tier, run->ring);
    return result;
}

static int start_fresh(struct run *run, const struct stripe_files *files, struct err *err)
{
    struct safetensors *weights = NULL;
    int result = open_initial_weights(run, &weights, err);
    if (result == 0)
        result = open_tier(run, files, true, err);
    if (result == 0)
        result =
            state_create(&run->exec, run->ring, &run->tensors, run->settings->seed, weights, err);
    safetensors_close(weights);
    run->committed = UINT64_MAX;
    return result;
}

/* The state moves to other drives, and only then are the old files given up. */
static int move_state(struct run *run, const struct home *home,
                      const struct checkpoint_manifest *manifest, struct err *err)
{
    struct checkpoint_reader reader;
    char from[FILE_PATH_MAX], to[FILE_PATH_MAX];
    int result = checkpoint_reader_open(&reader, run->settings->run_dir, &run->layout, err);
    uint64_t written = 0;
    log_line("moving the state from %s to %s",
             stripe_files_text(&manifest->files, from, sizeof(from)),
             stripe_files_text(&home->files, to, sizeof(to)));
    if (result == 0)
        result = open_tier(run, &home->files, true, err);
    if (result == 0)
        result = state_move(&run->exec, run->ring, &reader, err);
    run->checkpoint.step = manifest->step;
    if (result == 0)
        result = state_commit(&run->exec, run->ring, &written, err);
    if (result == 0)
        home_leave(home, &manifest->files);
    checkpoint_reader_close(&reader);
    return result;
}

static int start_from_commit(struct run *run, const struct home *home,
                             const struct checkpoint_manifest *manifest, struct err *err)
{
    run->done = run->committed = manifest->step;
    run->checkpoint.tokens = manifest->tokens;
    if (!stripe_files_same(&home->files, &manifest->files))
        return move_state(run, home, manifest, err);
    /* The shares are those that the files were made with. */
    int result = open_tier(run, &manifest->files, false, err);
    return result ? result : state_load(&run->exec, run->ring, manifest, err);
}

static int open_tiers(struct run *run, struct err *err)
{
    const struct train_settings *s = run->settings;
    struct home home;
    struct checkpoint_manifest manifest = {0};
    int result = checkpoint_load(&manifest, s->run_dir, &run->layout, err);
    if (result < 0)
        return result;
    bool has_commit = result == 0;
    run->exec.tier = &run->tier;
    run->exec.checkpoint = &run->checkpoint;
    checkpoint_init(&run->checkpoint, s->run_dir, &run->layout);
    result = checkpoint_watch(&run->checkpoint, err);
    if (result == 0)
        result = home_find(&home, s, err);
    if (result == 0)
        result = has_commit ? start_from_commit(run, &home, &manifest, err)
                            : start_fresh(run, &home.files, err);
    checkpoint_unload(&manifest);
    if (result == 0 && has_commit)
        home_clean(&home);
    return result;
}

static int open_engine(struct run *run, struct err *err)
{
    run->exec.place = &run->place;
    run->exec.memory = &run->memory;
    run->exec.layout = &run->layout;
    run->exec.device = run->device;
    run->exec.cpu_pool = run->cpu_pool;
    run->exec.seed = run->settings->seed;
    run->exec.loss_scale =
        (float)(1.0 / (double)(run->settings->batch * run->settings->seq * run->settings->accum));
    uint32_t depth = engine_drive_depth(run->profile.ssd.queue_depth, run->settings->nvme.count);
    int result = ring_open(&run->ring, 4 * depth, err);
    if (result == 0)
        result = exec_open(&run->exec, &run->tensors, err);
    if (result == 0)
        result = ring_register(run->ring, &run->exec.ram, 1, err);
    if (result == 0)
        result = engine_real_open(&run->real, &run->exec, run->ring, depth, err);
    if (result == 0)
        engine_real_reserve(run->real, run->sched.op_max);
    return result;
}

/* The tokenizer belongs to what was trained: a run that goes on must find the same one in its data,
 * or its tokens would mean something else from here on. */
static int keep_tokenizer(const struct run *run, bool has_commit, struct err *err)
{
    const struct train_settings *s = run->settings;
    char from[FILE_PATH_MAX], to[FILE_PATH_MAX], *text = NULL, *before = NULL;
    size_t bytes = 0, before_bytes = 0;
    int result = file_join(from, s->data_dir, DATASET_TOKENIZER_FILE, err);
    if (result == 0)
        result = file_join(to, s->run_dir, DATASET_TOKENIZER_FILE, err);
    if (result == 0)
        result = file_read_all(from, GIB, &text, &bytes, err);
    if (result == 0 && has_commit && file_exists(to))
        result = file_read_all(to, GIB, &before, &before_bytes, err);
    if (result == 0 && before && (bytes != before_bytes || memcmp(text, before, bytes) != 0))
        result =
            err_set(err, ERR_INPUT,
                    "the data in %s has another tokenizer than the run in %s was trained with: "
                    "prepare the text again with `spillway prep TEXT --tokenizer %s`, or start "
                    "another run",
                    s->data_dir, s->run_dir, to);
    if (result == 0 && !before)
        result = file_replace(to, text, bytes, err);
    mem_free(text);
    mem_free(before);
    return result;
}

/* The text too must be the one that was trained on: the order of the batches follows from it. */
static int check_text(const struct run *run, struct err *err)
{
    char now[32];
    struct json_value *root;
    int result = record_load(&root, run->settings->run_dir, err);
    if (result)
        return result < 0 ? result : 0;
    const char *before = json_get_string(root, "text", NULL);
    snprintf(now, sizeof(now), "%016" PRIx64, run->dataset.train.contents_checksum);
    if (before && strcmp(before, now) != 0)
        result = err_set(err, ERR_INPUT,
                         "the data in %s is no longer what the run in %s was trained on: put the "
                         "old data back, or start another run",
                         run->settings->data_dir, run->settings->run_dir);
    json_free(root);
    return result;
}

/* Nothing of a run that is there already is touched before it is known to be the one that is meant.
 */
static int check_run_dir(const struct run *run, bool *has_commit, struct err *err)
{
    struct checkpoint_manifest manifest;
    char path[FILE_PATH_MAX];
    int result = file_join(path, run->settings->run_dir, CHECKPOINT_MANIFEST_FILE, err);
    if (result)
        return result;
    if (file_exists(path) && !run->settings->resume)
        return err_set(err, ERR_INPUT,
                       "%s already holds a run: add --resume to continue it, or choose another "
                       "--out",
                       run->settings->run_dir);
    result = checkpoint_load(&manifest, run->settings->run_dir, &run->layout, err);
    if (result < 0)
        return result;
    *has_commit = result == 0;
    if (manifest.open)
        result = checkpoint_refuse_open(&manifest, run->settings->run_dir, err);
    checkpoint_unload(&manifest);
    if (result < 0)
        return result;
    int64_t told = *has_commit ? -1 : metrics_last_commit(run->settings->run_dir);
    if (told < 0)
        return 0;
    /* A commit's line is written after the commit itself: that one has been lost since. To begin
     * anew over it would lose the state too, without a word (tests/system/abuse.sh). */
    return err_set(err, ERR_INPUT,
                   "metrics.jsonl in %s tells of a commit of step %" PRId64
                   ", but %s is gone: put it back, or choose another --out to begin anew",
                   run->settings->run_dir, told, path);
}

/* The run's folder, locked, with what is needed to sample from it. */
static int open_run_dir(struct run *run, struct err *err)
{
    const struct train_settings *s = run->settings;
    bool has_commit = false;
    int result = file_make_dirs(s->run_dir, err);
    if (result == 0)
        result = file_lock(&run->lock_fd, s->run_dir, err);
    if (result == 0)
        result = check_run_dir(run, &has_commit, err);
    for (uint32_t d = 0; d < s->nvme.count && result == 0; d++) {
        result = file_make_dirs(s->nvme.dir[d], err);
        if (result == 0)
            result = file_check_tier(s->nvme.dir[d], err);
    }
    if (result == 0)
        result = keep_tokenizer(run, has_commit, err);
    /* Another tokenizer makes other tokens too, and is the better thing to be told of. */
    return result == 0 && has_commit ? check_text(run, err) : result;
}

static int save_config(struct run *run, struct err *err)
{
    struct json_value *root = json_new_object();
    json_set(root, "model", config_to_json(&run->config));
    json_set_string(root, "precision",
                    run->settings->precision == PRECISION_BF16 ? "bf16" : "fp32");
    json_set_string(root, "moments", moments_name[run->settings->moments]);
    char checksum[32];
    snprintf(checksum, sizeof(checksum), "%016" PRIx64, run->dataset.train.contents_checksum);
    json_set_string(root, "text", checksum);
    char *text = json_text(run->settings->record, false);
    json_set(root, "options", json_parse(text, strlen(text), "options", err));
    mem_free(text);
    int result = record_save(root, run->settings->run_dir, err);
    json_free(root);
    return result;
}

static int open_data(struct run *run, struct err *err)
{
    const struct train_settings *s = run->settings;
    int result = (s->within_documents ? batch_init_within : batch_init)(
        &run->train_batches, &run->dataset.train, s->seed, (uint32_t)s->seq, err);
    if (result == 0 && s->eval_every) {
        if (!run->dataset.has_val)
            return err_set(err, ERR_INPUT,
                           "--eval-every needs validation data, and %s has none: prepare it with "
                           "--val-fraction above 0",
                           s->data_dir);
        result = batch_init(&run->val_batches, &run->dataset.val, EVAL_SEED, (uint32_t)s->seq, err);
    }
    /* Of a dataset that the budget could not hold hardly a page is there still when it is read
     * again. */
    run->train_batches.forgets = run->dataset.train.map_bytes > s->ram_budget;
    return result;
}

/* ---- What a step should take ----------------------------------------------------------------- */

uint64_t run_tokens_per_step(const struct run *run)
{
    return run->settings->batch * run->settings->seq * run->settings->accum;
}

double run_predict(struct run *run, enum variant variant)
{
    engine_model_init(&run->model, &run->profile);
    memcpy(run->model.stretch, run->stretch, sizeof(run->stretch));
    sched_run(&run->model_sched, &run->plans[variant], &run->model.engine, NULL, &run->predicted);
    double seconds = (double)(run->predicted.end_ns - run->predicted.start_ns) / 1e9;
    return fmax(seconds,
                bound_sustained_s(&run->profile, (double)run->predicted.bytes[LANE_SSD_WRITE]));
}

double run_replay(struct run *run, enum variant variant)
{
    struct sched_result result;
    engine_model_init(&run->model, &run->profile);
    run->model.replay = run->times;
    sched_run(&run->model_sched, &run->plans[variant], &run->model.engine, NULL, &result);
    return (double)(result.end_ns - result.start_ns) / 1e9;
}

void run_learn(struct run *run, const struct sched_result *result)
{
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        double seen_s = (double)result->busy_ns[lane] / 1e9;
        double said_s = (double)run->predicted.busy_ns[lane] / 1e9;
        if (seen_s < LEARN_SECONDS_MIN || said_s < LEARN_SECONDS_MIN)
            continue;
        double ratio = fmin(fmax(seen_s / said_s, LEARN_RATIO_MIN), 1 / LEARN_RATIO_MIN);
        double stretch = run->stretch[lane] * (run->learned[lane] ? sqrt(ratio) : ratio);
        run->stretch[lane] = fmin(fmax(stretch, 1 / STRETCH_MAX), STRETCH_MAX);
        run->learned[lane] = true;
    }
}

double run_bound(const struct run *run, enum variant variant, enum plan_lane *lane)
{
    struct bound bound;
    bound_of(&bound, &run->profile, &run->plans[variant], run->stretch);
    *lane = bound.lane;
    return bound.seconds;
}

uint64_t run_expected_ram_bytes(const struct run *run)
{
    struct mem_usage usage;
    mem_usage_read(&usage);
    uint64_t arenas = run->memory.tier_bytes[TIER_RAM];
    return usage.rss_bytes + usage.page_table_bytes + arenas + ENGINE_BYTES +
           run->layout.chunk_count * ENGINE_CHUNK_BYTES;
}

/* ---- From nothing to the first step, and back --------------------------------------------------
 */

static struct run *new_run(struct train_settings *settings)
{
    struct run *run = mem_alloc(1, sizeof(*run));
    run->settings = settings;
    if (settings->profile)
        run->profile = *settings->profile;
    else
        profile_init(&run->profile, thread_count(run));
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        run->stretch[lane] = 1;
    run->lock_fd = -1;
    run->metrics.fd = -1;
    return run;
}

int run_plan_open(struct run **out, struct train_settings *settings, bool nvme, struct err *err)
{
    struct run *run = *out = new_run(settings);
    int code = open_model(run, err);
    if (code == 0 && settings->data_dir)
        code = open_data(run, err);
    if (code == 0)
        code = refuse_early(run, nvme, err);
    if (code == 0)
        code = open_device(run, err);
    if (code == 0)
        code = choose_place(run, nvme, err);
    return code ? code : build_plans(run, err);
}

static int open_trace(struct run *run, struct err *err)
{
    if (!run->settings->trace_path)
        return 0;
    int code = trace_open(&run->trace, run->settings->trace_path, err);
    for (uint32_t lane = 0; lane < LANE_COUNT && code == 0; lane++)
        trace_lane(run->trace, lane, plan_lane_name[lane]);
    return code;
}

int run_open(struct run *run, struct err *err)
{
    int code = run_check_machine(&run->place, run->settings->cuda ? 0 : run->place.vram_bytes, err);
    if (code == 0)
        code = open_run_dir(run, err);
    if (code == 0)
        code = open_trace(run, err); /* before the filling of the tiers, which may take long */
    if (code == 0)
        timeline_open(&run->timeline, run->settings->run_dir);
    if (code == 0)
        code = open_engine(run, err);
    if (code == 0)
        code = open_tiers(run, err);
    if (code == 0)
        code = save_config(run, err);
    if (code == 0)
        code = save_plan(run, err);
    if (code == 0)
        code = metrics_open(&run->metrics, run->settings->run_dir, run->done, err);
    run->metrics.written_bytes += run->tier.written_bytes;
    /* Killed between a commit and its line: what it cost is not known any more. */
    if (code == 0 && run->committed != UINT64_MAX &&
        run->metrics.last_commit != (int64_t)run->committed)
        code = metrics_write_commit(&run->metrics, run->committed, tier_weights_hash(&run->tier), 0,
                                    0, NULL, NULL, err);
    return code;
}

void run_close(struct run *run)
{
    struct err err;
    if (!run)
        return;
    engine_real_close(run->real);
    ring_close(run->ring);
    exec_close(&run->exec);
    tier_close(&run->tier);
    checkpoint_deinit(&run->checkpoint);
    metrics_close(&run->metrics);
    if (trace_close(run->trace, &err) != 0)
        log_warn("%s", err.message);
    timeline_close(&run->timeline);
    for (uint32_t v = 0; v < VARIANT_COUNT; v++)
        plan_deinit(&run->plans[v]);
    plan_memory_deinit(&run->memory);
    sched_deinit(&run->sched);
    sched_deinit(&run->model_sched);
    mem_free(run->times);
    place_deinit(&run->place);
    device_close(run->device);
    kernels_close(run->kernels);
    pool_close(run->pool);
    pool_close(run->cpu_pool);
    layout_deinit(&run->layout);
    tensors_deinit(&run->tensors);
    batch_deinit(&run->train_batches);
    batch_deinit(&run->val_batches);
    dataset_close(&run->dataset);
    file_unlock(run->lock_fd);
    mem_free(run);
}
