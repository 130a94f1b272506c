/*
 * train: see train.h. The trainer's own rules:
 * 1. A step's gradients wait until the next step's forward pass, which applies them. `pending` says
 *    that they do. Evaluation and the end apply them by a plan that only updates.
 * 2. A commit of step s rides on the plan that applies the gradients of s.
 * 3. A loss or norm that is not finite ends the run before its gradients are applied.
 * 4. From the end of the second step on, nothing allocates (check_sealed).
 */
#include "offload/train.h"

#include "core/clock.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/log.h"
#include "core/topo.h"
#include "io/batch.h"
#include "io/dataset.h"
#include "io/ring.h"
#include "io/safetensors.h"
#include "offload/checkpoint.h"
#include "offload/engine_model.h"
#include "offload/engine_real.h"
#include "offload/metrics.h"
#include "offload/sched.h"
#include "offload/state.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DRIVE_DEPTH      8
#define EVAL_STEPS_MAX   8
#define EVAL_SEED        0
/* What the measurement at the start cannot see yet: stacks, rings, plans under construction. */
#define OVERHEAD_FIXED   (6 * MIB)
/* A plan's ops and waits, all variants together, for each chunk (measured: 9 to 14 KiB). */
#define OVERHEAD_CHUNK   (16 * KIB)
#define OVERHEAD_LAYER   (24 * KIB) /* for each layer and micro-batch */

/* The plans of a run. */
enum variant {
    PLAN_FIRST,         /* nothing pending */
    PLAN_STEADY,        /* pending gradients applied in the forward pass */
    PLAN_STEADY_COMMIT, /* and committed */
    PLAN_FLUSH,         /* applied, nothing else */
    PLAN_FLUSH_COMMIT,
    PLAN_EVAL, /* loss only */
    VARIANT_COUNT
};

static const struct plan_request variant_request[VARIANT_COUNT] = {
    [PLAN_FIRST] = {.forward = true, .backward = true},
    [PLAN_STEADY] = {.update = true, .forward = true, .backward = true},
    [PLAN_STEADY_COMMIT] = {.update = true, .commit = true, .forward = true, .backward = true},
    [PLAN_FLUSH] = {.update = true},
    [PLAN_FLUSH_COMMIT] = {.update = true, .commit = true},
    [PLAN_EVAL] = {.forward = true},
};

struct run {
    struct train_settings *settings;
    struct config config;
    struct tensors tensors;
    struct layout layout;
    struct dataset dataset;
    struct batch_source train_batches, val_batches;
    struct kernels *kernels;
    struct pool *pool, *cpu_pool;
    struct place place;
    struct plan_memory memory;
    struct plan plans[VARIANT_COUNT];
    struct place_least least[VARIANT_COUNT];
    struct tier tier;
    struct checkpoint checkpoint;
    struct exec exec;
    struct ring *ring;
    struct engine_real *real;
    struct sched sched, model_sched;
    struct engine_model model;
    struct profile profile;
    struct metrics metrics;
    struct trace *trace;
    int lock_fd;

    uint64_t done;          /* steps done: computed, their gradients perhaps pending */
    uint64_t committed;     /* step of the last commit; UINT64_MAX before the first */
    bool pending;
    double pending_norm;    /* of the gradients that wait */
    uint64_t sealed_count;  /* heap allocations made before memory was sealed; 0: not yet */
    double first_loss, last_loss;
    uint64_t start_ns, start_done;
    uint64_t moved[LANE_COUNT], commit_bytes;
};

static volatile sig_atomic_t stop_signal;

static void on_signal(int number)
{
    if (stop_signal)
        _exit(128 + number);
    stop_signal = number;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

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
    if (result)
        return result;
    if (!s->seq)
        s->seq = MIN(run->config.positions, 1024);
    if (s->seq > run->config.positions)
        return err_set(err, ERR_INPUT, "--seq %" PRIu64 " is longer than the %u positions of %s",
                       s->seq, run->config.positions, run->config.name);
    tensors_init(&run->tensors, &run->config);
    layout_init(&run->layout, &run->tensors);
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

static int open_device(struct run *run, struct err *err)
{
    uint32_t threads = (uint32_t)run->settings->threads;
    if (!threads)
        threads = topo_open()->core_count;
    int result = pool_open(&run->pool, "compute", threads, true, err);
    if (result == 0)
        result = pool_open(&run->cpu_pool, "cpu", threads, false, err);
    if (result)
        return result;
    struct kernels_shape shape;
    kernels_shape_of(run, &shape);
    return kernels_cpu_open(&run->kernels, &shape, &run->tensors, run->pool, err);
}

/* What the process takes beside its arenas. */
static uint64_t measure_overhead(const struct run *run)
{
    struct mem_usage usage;
    mem_usage_read(&usage);
    return usage.rss_bytes + usage.page_table_bytes + OVERHEAD_FIXED +
           OVERHEAD_CHUNK * run->layout.chunk_count +
           OVERHEAD_LAYER * run->config.layers * run->settings->accum;
}

static int choose_place(struct run *run, bool nvme, struct err *err)
{
    const struct train_settings *s = run->settings;
    struct place_spec spec = {
        .config = &run->config,
        .layout = &run->layout,
        .precision = s->precision,
        .seq = (uint32_t)s->seq,
        .batch = (uint32_t)s->batch,
        .accum = (uint32_t)s->accum,
        .ram_budget = s->ram_budget,
        .vram_budget = s->vram_budget,
        .nvme_budget = s->nvme_budget,
        .overhead_bytes = measure_overhead(run),
        .nvme = nvme,
        .clip = s->optim.clip > 0,
        .resident_planes = s->resident_planes,
        .prefetch = (uint32_t)s->prefetch,
        .recompute = s->recompute,
    };
    return place_choose(&run->place, &spec, err);
}

static int check_machine(const struct run *run, struct err *err)
{
    struct mem_usage usage;
    mem_usage_read(&usage);
    uint64_t need = run->place.ram_bytes + run->place.vram_bytes;
    uint64_t have = mem_available_bytes() + usage.rss_bytes;
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    if (need > have)
        return err_set(err, ERR_INPUT,
                       "the plan needs %s of memory and the machine has only %s free now: close "
                       "other programs, or lower the budget to --ram-budget %" PRIu64 "M",
                       log_bytes(a, need), log_bytes(b, have),
                       have > run->place.vram_bytes ? (have - run->place.vram_bytes) / MIB : 0);
    return 0;
}

static int build_plans(struct run *run, struct err *err)
{
    plan_memory_init(&run->memory, &run->place);
    uint32_t op_max = 0;
    for (uint32_t v = 0; v < VARIANT_COUNT; v++) {
        const struct plan_request *request = &variant_request[v];
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
    profile_init(&run->profile, run->settings->precision, pool_thread_count(run->pool));
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
    plan_dump(&run->plans[PLAN_STEADY], file);
    if (ferror(file) | fclose(file))
        return err_set(err, ERR_SYSTEM, "cannot write %s: is the disk full?", path);
    return 0;
}

/* DIR/spillway-<hash of the run's folder>.state, or RUN/state.bin where there is no NVMe tier. */
static int state_path(const struct run *run, char path[FILE_PATH_MAX], struct err *err)
{
    char real[FILE_PATH_MAX], name[64];
    if (!realpath(run->settings->run_dir, real))
        return err_set_errno(err, errno, "cannot resolve %s", run->settings->run_dir);
    if (!run->settings->nvme_dir)
        return file_join(path, real, "state.bin", err);
    snprintf(name, sizeof(name), "spillway-%016" PRIx64 ".state",
             hash_bytes(real, strlen(real), 0));
    if (!realpath(run->settings->nvme_dir, real))
        return err_set_errno(err, errno, "cannot resolve %s", run->settings->nvme_dir);
    return file_join(path, real, name, err);
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

static int start_fresh(struct run *run, const char *path, struct err *err)
{
    struct safetensors *weights = NULL;
    int result = open_initial_weights(run, &weights, err);
    if (result == 0)
        result = tier_open(&run->tier, &run->layout, &run->memory, path, true, err);
    if (result == 0)
        result = state_create(&run->exec, run->ring, &run->tensors, run->settings->seed, weights,
                              err);
    safetensors_close(weights);
    run->committed = UINT64_MAX;
    return result;
}

static int start_from_commit(struct run *run, const char *path,
                             const struct checkpoint_manifest *manifest, struct err *err)
{
    run->done = run->committed = manifest->step;
    run->checkpoint.tokens = manifest->tokens;
    if (strcmp(path, manifest->state_path) == 0) {
        int result = tier_open(&run->tier, &run->layout, &run->memory, path, false, err);
        return result ? result : state_load(&run->exec, run->ring, manifest, err);
    }
    /* The state moves to another drive, and only then is the old file given up. */
    struct checkpoint_reader reader;
    int result = checkpoint_reader_open(&reader, run->settings->run_dir, &run->layout, err);
    uint64_t written = 0;
    log_line("moving the state from %s to %s", manifest->state_path, path);
    if (result == 0)
        result = tier_open(&run->tier, &run->layout, &run->memory, path, true, err);
    if (result == 0)
        result = state_move(&run->exec, run->ring, &reader, err);
    run->checkpoint.step = manifest->step;
    if (result == 0)
        result = state_commit(&run->exec, run->ring, &written, err);
    if (result == 0)
        unlink(manifest->state_path);
    checkpoint_reader_close(&reader);
    return result;
}

static int open_tiers(struct run *run, struct err *err)
{
    const struct train_settings *s = run->settings;
    char path[FILE_PATH_MAX];
    struct checkpoint_manifest manifest = {0};
    int result = checkpoint_load(&manifest, s->run_dir, &run->layout, err);
    if (result < 0)
        return result;
    bool has_commit = result == 0;
    if (has_commit && !s->resume) {
        checkpoint_unload(&manifest);
        return err_set(err, ERR_INPUT,
                       "%s already holds a run: add --resume to continue it, or choose another "
                       "--out",
                       s->run_dir);
    }
    run->exec.tier = &run->tier;
    run->exec.checkpoint = &run->checkpoint;
    checkpoint_init(&run->checkpoint, s->run_dir, &run->layout);
    result = state_path(run, path, err);
    if (result == 0)
        result = has_commit ? start_from_commit(run, path, &manifest, err)
                            : start_fresh(run, path, err);
    checkpoint_unload(&manifest);
    return result;
}

static int open_engine(struct run *run, struct err *err)
{
    run->exec.place = &run->place;
    run->exec.memory = &run->memory;
    run->exec.layout = &run->layout;
    run->exec.kernels = run->kernels;
    run->exec.cpu_pool = run->cpu_pool;
    run->exec.loss_scale =
        (float)(1.0 / (double)(run->settings->batch * run->settings->seq * run->settings->accum));
    int result = ring_open(&run->ring, 4 * DRIVE_DEPTH, err);
    if (result == 0)
        result = exec_open(&run->exec, &run->tensors, err);
    if (result == 0)
        result = ring_register(run->ring, &run->exec.ram, 1, err);
    if (result == 0)
        result = engine_real_open(&run->real, &run->exec, run->ring, DRIVE_DEPTH, err);
    if (result == 0)
        engine_real_reserve(run->real, run->sched.op_max);
    return result;
}

/* The run's folder, locked, with what is needed to repeat the run and to sample from it. */
static int open_run_dir(struct run *run, struct err *err)
{
    const struct train_settings *s = run->settings;
    char from[FILE_PATH_MAX], to[FILE_PATH_MAX], *text = NULL;
    size_t bytes = 0;
    int result = file_make_dirs(s->run_dir, err);
    if (result == 0)
        result = file_lock(&run->lock_fd, s->run_dir, err);
    if (result == 0 && s->nvme_dir)
        result = file_make_dirs(s->nvme_dir, err);
    if (result == 0 && s->nvme_dir)
        result = file_check_tier(s->nvme_dir, err);
    if (result == 0)
        result = file_join(from, s->data_dir, DATASET_TOKENIZER_FILE, err);
    if (result == 0)
        result = file_join(to, s->run_dir, DATASET_TOKENIZER_FILE, err);
    if (result == 0)
        result = file_read_all(from, GIB, &text, &bytes, err);
    if (result == 0)
        result = file_replace(to, text, bytes, err);
    mem_free(text);
    return result;
}

static int save_config(struct run *run, struct err *err)
{
    char path[FILE_PATH_MAX];
    int result = file_join(path, run->settings->run_dir, "config.json", err);
    if (result)
        return result;
    struct json_value *root = json_new_object();
    json_set(root, "model", config_to_json(&run->config));
    json_set_string(root, "precision",
                    run->settings->precision == PRECISION_BF16 ? "bf16" : "fp32");
    char *text = json_text(run->settings->record, false);
    json_set(root, "options", json_parse(text, strlen(text), "options", err));
    mem_free(text);
    result = json_save(root, path, err);
    json_free(root);
    return result;
}

static int open_data(struct run *run, struct err *err)
{
    const struct train_settings *s = run->settings;
    int result = batch_init(&run->train_batches, &run->dataset.train, s->seed, (uint32_t)s->seq,
                            err);
    if (result == 0 && s->eval_every) {
        if (!run->dataset.has_val)
            return err_set(err, ERR_INPUT,
                           "--eval-every needs validation data, and %s has none: prepare it with "
                           "--val-fraction above 0",
                           s->data_dir);
        result = batch_init(&run->val_batches, &run->dataset.val, EVAL_SEED, (uint32_t)s->seq, err);
    }
    return result;
}

/* ---- Steps ----------------------------------------------------------------------------------- */

static uint64_t tokens_per_step(const struct run *run)
{
    return run->settings->batch * run->settings->seq * run->settings->accum;
}

static void load_tokens(struct run *run, const struct batch_source *source, uint64_t step)
{
    uint64_t batch = run->settings->batch, seq = run->settings->seq, accum = run->settings->accum;
    for (uint64_t m = 0; m < accum; m++) {
        uint32_t *inputs = exec_tokens(&run->exec, (uint32_t)m);
        uint32_t *targets = inputs + batch * seq;
        for (uint64_t b = 0; b < batch; b++)
            batch_sequence(source, (step * accum + m) * batch + b, inputs + b * seq,
                           targets + b * seq);
    }
}

static void run_plan(struct run *run, enum variant variant, struct sched_result *result)
{
    sched_run(&run->sched, &run->plans[variant], engine_real_engine(run->real), run->trace,
              result);
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        run->moved[lane] += result->bytes[lane];
    run->commit_bytes += result->commit_bytes;
}

static void learn(struct run *run, enum variant variant, const struct sched_result *result)
{
    struct profile *p = &run->profile;
    const double ns = 1e-9;
    (void)variant;
    profile_learn(&p->compute_flops, (double)result->flops,
                  (double)result->busy_ns[LANE_COMPUTE] * ns);
    double *rates[LANE_COUNT] = {
        [LANE_H2D] = &p->h2d_bytes,
        [LANE_D2H] = &p->d2h_bytes,
        [LANE_SSD_READ] = &p->ssd_read_bytes,
        [LANE_SSD_WRITE] = &p->ssd_write_bytes,
        [LANE_CPU] = &p->cpu_bytes,
    };
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++)
        if (rates[lane])
            profile_learn(rates[lane], (double)result->bytes[lane],
                          (double)result->busy_ns[lane] * ns);
}

static double predict(struct run *run, enum variant variant)
{
    struct sched_result result;
    engine_model_init(&run->model, &run->profile);
    sched_run(&run->model_sched, &run->plans[variant], &run->model.engine, NULL, &result);
    return (double)(result.end_ns - result.start_ns) / 1e9;
}

/* The lower bound: for each phase the slowest lane's least work, added up. */
static double bound(const struct run *run, enum variant variant, enum plan_lane *lane)
{
    const struct plan_request *request = &variant_request[variant];
    const struct profile *p = &run->profile;
    struct place_least least[PHASE_COUNT];
    uint64_t flops[PHASE_COUNT];
    place_least(&run->place, request->update, request->forward, false, &least[PHASE_FORWARD]);
    least[PHASE_BACKWARD] = run->least[variant];
    least[PHASE_BACKWARD].ssd_read_bytes -= least[PHASE_FORWARD].ssd_read_bytes;
    least[PHASE_BACKWARD].ssd_write_bytes -= least[PHASE_FORWARD].ssd_write_bytes;
    least[PHASE_BACKWARD].h2d_bytes -= least[PHASE_FORWARD].h2d_bytes;
    least[PHASE_BACKWARD].d2h_bytes -= least[PHASE_FORWARD].d2h_bytes;
    place_flops(&run->place.spec, &flops[PHASE_FORWARD], &flops[PHASE_BACKWARD]);
    double state = (double)run->layout.real_parameters *
                   (double)(2 * LAYOUT_STATE_BYTES + run->place.gradient_bytes);
    double total = 0, longest = 0;
    for (uint32_t phase = 0; phase < PHASE_COUNT; phase++) {
        double lanes[LANE_COUNT] = {
            [LANE_COMPUTE] = (double)flops[phase] / p->compute_flops,
            [LANE_H2D] = (double)least[phase].h2d_bytes / p->h2d_bytes,
            [LANE_D2H] = (double)least[phase].d2h_bytes / p->d2h_bytes,
            [LANE_SSD_READ] = (double)least[phase].ssd_read_bytes / p->ssd_read_bytes,
            [LANE_SSD_WRITE] = (double)least[phase].ssd_write_bytes / p->ssd_write_bytes,
            [LANE_CPU] = phase == PHASE_FORWARD && request->update ? state / p->cpu_bytes : 0,
        };
        enum plan_lane most = LANE_COMPUTE;
        for (uint32_t l = 0; l < LANE_COUNT; l++)
            if (lanes[l] > lanes[most])
                most = l;
        total += lanes[most];
        if (lanes[most] > longest) {
            longest = lanes[most];
            *lane = most;
        }
    }
    return total;
}

static void check_sealed(struct run *run)
{
    if (!mem_heap_has_stats())
        return;
    uint64_t count = mem_heap_count();
    if (!run->sealed_count) {
        if (run->done >= run->start_done + 2)
            run->sealed_count = count;
        return;
    }
    if (count != run->sealed_count)
        fatal("a bug: step %" PRIu64 " allocated heap memory %" PRIu64
              " times after memory was sealed; the last commit is intact",
              run->done, count - run->sealed_count);
}

/* The pending gradients become optim_step scalars of the update that the next plan makes. */
static void prepare_update(struct run *run)
{
    const struct optim_settings *optim = &run->settings->optim;
    optim_step_init(&run->exec.step, optim, run->done - 1,
                    optim_clip_factor(optim, run->pending_norm));
}

static int log_commit(struct run *run, uint64_t step, uint64_t bytes, struct err *err)
{
    run->committed = step;
    return metrics_write_commit(&run->metrics, step, run->checkpoint.weights_hash, bytes,
                                (double)run->exec.commit_ns / 1e9, err);
}

static bool keep_due(const struct run *run, uint64_t step)
{
    return run->settings->keep_every && step && step % run->settings->keep_every == 0;
}

static bool commit_due(const struct run *run, uint64_t step)
{
    return (run->settings->checkpoint_every && step % run->settings->checkpoint_every == 0) ||
           keep_due(run, step);
}

/* A commit that has just been made, for good measure kept apart. */
static int keep(struct run *run, uint64_t step, struct err *err)
{
    return keep_due(run, step) ? checkpoint_keep(&run->checkpoint, &run->tier, err) : 0;
}

/* Applies what is pending and commits when asked to; afterwards nothing is pending. */
static int flush(struct run *run, bool commit, struct err *err)
{
    struct sched_result result;
    run->checkpoint.step = run->done;
    run->checkpoint.tokens = run->done * tokens_per_step(run);
    if (run->pending) {
        prepare_update(run);
        run_plan(run, commit ? PLAN_FLUSH_COMMIT : PLAN_FLUSH, &result);
        run->pending = false;
        if (!commit)
            return 0;
        int code = log_commit(run, run->done, result.commit_bytes, err);
        return code ? code : keep(run, run->done, err);
    }
    if (!commit || run->committed == run->done)
        return 0;
    uint64_t written = 0, start_ns = clock_ns();
    int code = state_commit(&run->exec, run->ring, &written, err);
    run->exec.commit_ns = clock_ns() - start_ns;
    run->commit_bytes += written;
    if (code == 0)
        code = log_commit(run, run->done, written, err);
    return code ? code : keep(run, run->done, err);
}

static int evaluate(struct run *run, double *val_loss, struct err *err)
{
    int code = flush(run, commit_due(run, run->done), err);
    if (code)
        return code;
    uint64_t per_step = run->settings->batch * run->settings->accum;
    uint64_t steps = MIN(div_up(run->val_batches.window_count, per_step), EVAL_STEPS_MAX);
    double sum = 0;
    for (uint64_t i = 0; i < steps; i++) {
        struct sched_result result;
        load_tokens(run, &run->val_batches, i);
        run_plan(run, PLAN_EVAL, &result);
        sum += exec_loss(&run->exec);
    }
    *val_loss = sum / (double)steps;
    return 0;
}

static const char *tensor_of_chunk(const struct run *run, uint32_t chunk)
{
    const struct layout_chunk *c = &run->layout.chunks[chunk];
    const struct tensor_group *group = &run->tensors.groups[c->group];
    const char *name = run->tensors.list[group->first_tensor].name;
    for (uint32_t t = group->first_tensor; t < group->first_tensor + group->tensor_count; t++)
        if (run->tensors.list[t].offset <= c->first)
            name = run->tensors.list[t].name;
    return name;
}

static int check_finite(const struct run *run, double loss, struct err *err)
{
    char commit[64] = "no commit was made yet";
    if (run->committed != UINT64_MAX)
        snprintf(commit, sizeof(commit), "the commit of step %" PRIu64 " is intact", run->committed);
    if (!isfinite(loss))
        return err_set(err, ERR_INPUT,
                       "the loss of step %" PRIu64 " is not finite; stopped before its update: "
                       "lower --lr or set --clip 1.0 (%s)",
                       run->done, commit);
    if (!isfinite(run->exec.gradient_norm))
        return err_set(err, ERR_INPUT,
                       "the gradient of step %" PRIu64 " is not finite, first in or after %s; "
                       "stopped before its update: lower --lr (%s)",
                       run->done,
                       run->exec.bad_chunk == PLAN_NONE ? "the sum"
                                                        : tensor_of_chunk(run, run->exec.bad_chunk),
                       commit);
    return 0;
}

static void fill_memory(const struct run *run, struct metrics_step *m)
{
    struct mem_usage usage;
    mem_usage_read(&usage);
    m->vram_bytes = m->vram_peak_bytes = run->exec.vram.bytes;
    m->ram_bytes = usage.rss_bytes + usage.page_table_bytes - m->vram_bytes;
    m->ram_peak_bytes = usage.rss_peak_bytes + usage.page_table_bytes - m->vram_bytes;
}

/* One step: the update and commit of the one before, forward, backward, and its log line. */
static int step(struct run *run, struct metrics_step *m, struct err *err)
{
    struct train_settings *s = run->settings;
    bool commit = run->pending && commit_due(run, run->done) && run->committed != run->done;
    enum variant variant =
        !run->pending ? PLAN_FIRST : commit ? PLAN_STEADY_COMMIT : PLAN_STEADY;
    struct sched_result result;
    *m = (struct metrics_step){.run = &result, .least = run->least[variant]};
    uint64_t start_ns = clock_ns();
    load_tokens(run, &run->train_batches, run->done);
    if (run->pending)
        prepare_update(run);
    run->checkpoint.step = run->done;
    run->checkpoint.tokens = run->done * tokens_per_step(run);
    m->predicted_s = predict(run, variant);
    m->bound_s = bound(run, variant, &m->bound_lane);
    run_plan(run, variant, &result);
    if (commit) {
        int code = log_commit(run, run->done, result.commit_bytes, err);
        if (code == 0)
            code = keep(run, run->done, err);
        if (code)
            return code;
    }
    run->done++;
    m->step = run->done;
    m->loss = exec_loss(&run->exec);
    m->grad_norm = run->exec.gradient_norm;
    m->clip = optim_clip_factor(&s->optim, m->grad_norm);
    m->lr = optim_learning_rate(&s->optim, run->done - 1);
    m->tokens = tokens_per_step(run);
    int code = check_finite(run, m->loss, err);
    if (code)
        return code;
    run->pending = true;
    run->pending_norm = m->grad_norm;
    m->step_s = (double)(clock_ns() - start_ns) / 1e9;
    learn(run, variant, &result);
    if (s->eval_every && run->done % s->eval_every == 0) {
        m->has_val = true;
        code = evaluate(run, &m->val_loss, err);
        if (code)
            return code;
    }
    fill_memory(run, m);
    return metrics_write_step(&run->metrics, m, err);
}

static void show_step(struct run *run, struct log_progress *progress, const struct metrics_step *m)
{
    char note[160];
    int used = snprintf(note, sizeof(note), "step %" PRIu64 " loss %.4f  %.0f tokens/s  %.2f s "
                                            "(predicted %.2f, bound %.2f by %s)",
                        m->step, m->loss, (double)m->tokens / m->step_s, m->step_s,
                        m->predicted_s, m->bound_s, plan_lane_name[m->bound_lane]);
    if (m->has_val) {
        snprintf(note + used, sizeof(note) - (size_t)used, "  val %.4f", m->val_loss);
        log_line("%s", note);
    }
    log_progress_update(progress, (double)m->step, note);
    if (m->step == run->start_done + 1)
        run->first_loss = m->loss;
    run->last_loss = m->loss;
}

static bool should_stop(const struct run *run)
{
    double elapsed_s = (double)(clock_ns() - run->start_ns) / 1e9;
    if (stop_signal)
        log_line("stopping after step %" PRIu64 ": signal %d", run->done, (int)stop_signal);
    else if (run->settings->max_time_s > 0 && elapsed_s >= run->settings->max_time_s)
        log_line("stopping after step %" PRIu64 ": --max-time is over", run->done);
    else
        return false;
    return true;
}

static int loop(struct run *run, struct err *err)
{
    struct log_progress progress;
    log_progress_start(&progress, "training", "steps", (double)run->settings->steps);
    run->start_ns = clock_ns();
    run->start_done = run->done;
    int code = 0;
    while (run->done < run->settings->steps && code == 0) {
        struct metrics_step m;
        code = step(run, &m, err);
        if (code)
            break;
        show_step(run, &progress, &m);
        check_sealed(run);
        if (should_stop(run))
            break;
    }
    log_progress_end(&progress);
    return code ? code : flush(run, true, err);
}

static void print_lane(const struct run *run, const char *name, enum plan_lane lane)
{
    char text[LOG_BYTES_MAX], each[LOG_BYTES_MAX];
    uint64_t steps = MAX(run->done - run->start_done, 1);
    if (run->moved[lane])
        printf("  %-18s %12s in all %12s a step\n", name, log_bytes(text, run->moved[lane]),
               log_bytes(each, run->moved[lane] / steps));
}

static void print_summary(const struct run *run)
{
    struct metrics_step m;
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    fill_memory(run, &m);
    double elapsed_s = (double)(clock_ns() - run->start_ns) / 1e9;
    uint64_t steps = run->done - run->start_done;
    double written = (double)(run->moved[LANE_SSD_WRITE] + run->commit_bytes) / 1e9;
    printf("\n%" PRIu64 " steps, %" PRIu64 " tokens in %s: %.0f tokens/s\n", steps,
           steps * tokens_per_step(run), log_duration(a, elapsed_s),
           (double)(steps * tokens_per_step(run)) / elapsed_s);
    if (steps)
        printf("  loss %.4f -> %.4f\n", run->first_loss, run->last_loss);
    if (run->place.separate_device)
        printf("  VRAM held          %12s of %s\n", log_bytes(a, m.vram_peak_bytes),
               log_bytes(b, run->settings->vram_budget));
    printf("  RAM held           %12s of %s (peak, whole process)\n", log_bytes(a, m.ram_peak_bytes),
           log_bytes(b, run->settings->ram_budget));
    if (run->settings->nvme_dir)
        printf("  NVMe held          %12s\n", log_bytes(a, run->place.nvme_bytes));
    print_lane(run, "RAM -> VRAM", LANE_H2D);
    print_lane(run, "VRAM -> RAM", LANE_D2H);
    print_lane(run, "NVMe -> RAM", LANE_SSD_READ);
    print_lane(run, "RAM -> NVMe", LANE_SSD_WRITE);
    printf("  commits            %12s in all\n", log_bytes(a, run->commit_bytes));
    printf("  written to drive   %9.3f GB\n", written);
    if (run->done < run->settings->steps && run->settings->resume_command)
        printf("continue with:\n  %s\n", run->settings->resume_command);
}

static void close_run(struct run *run)
{
    struct err ignored;
    engine_real_close(run->real);
    ring_close(run->ring);
    exec_close(&run->exec);
    tier_close(&run->tier);
    checkpoint_deinit(&run->checkpoint);
    metrics_close(&run->metrics);
    trace_close(run->trace, &ignored);
    for (uint32_t v = 0; v < VARIANT_COUNT; v++)
        plan_deinit(&run->plans[v]);
    plan_memory_deinit(&run->memory);
    sched_deinit(&run->sched);
    sched_deinit(&run->model_sched);
    place_deinit(&run->place);
    kernels_close(run->kernels);
    pool_close(run->pool);
    pool_close(run->cpu_pool);
    layout_deinit(&run->layout);
    tensors_deinit(&run->tensors);
    dataset_close(&run->dataset);
    file_unlock(run->lock_fd);
    mem_free(run);
}

static struct run *new_run(struct train_settings *settings)
{
    struct run *run = mem_alloc(1, sizeof(*run));
    run->settings = settings;
    run->lock_fd = -1;
    run->metrics.fd = -1;
    run->tier.state_fd = run->tier.scratch_fd = -1;
    return run;
}

/* Everything up to the first step. */
static int prepare(struct run *run, struct err *err)
{
    int code = open_model(run, err);
    if (code == 0)
        code = open_data(run, err);
    if (code == 0)
        code = open_device(run, err);
    if (code == 0)
        code = choose_place(run, run->settings->nvme_dir != NULL, err);
    if (code == 0)
        code = check_machine(run, err);
    if (code == 0)
        code = build_plans(run, err);
    if (code == 0)
        code = open_run_dir(run, err);
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
    if (code == 0 && run->settings->trace_path) {
        code = trace_open(&run->trace, run->settings->trace_path, err);
        for (uint32_t lane = 0; lane < LANE_COUNT && code == 0; lane++)
            trace_lane(run->trace, lane, plan_lane_name[lane]);
    }
    return code;
}

int train_run(struct train_settings *settings, struct err *err)
{
    struct run *run = new_run(settings);
    catch_signals();
    int code = prepare(run, err);
    if (code == 0) {
        place_print(&run->place, &run->memory, stderr);
        log_line("%s", ring_note(run->ring));
        if (run->done >= settings->steps && run->committed == run->done)
            log_line("nothing to do: %s has done its %" PRIu64 " steps", settings->run_dir,
                     run->done);
        else
            code = loop(run, err);
    }
    if (code == 0 && run->start_ns)
        print_summary(run);
    close_run(run);
    return code;
}
