/*
 * train: see train.h. The trainer's own rules:
 * 1. A step's gradients wait until the next step's forward pass, which applies them. `pending` says
 *    that they do. Evaluation and the end apply them by a plan that only updates.
 * 2. A commit of step s rides on the plan that applies the gradients of s, after the log line of s
 * is on the drive: a resumed run finds a line for every step it does not repeat. With --clip 0
 * backward has applied them itself and nothing is ever pending.
 * 3. A loss or norm that is not finite ends the run before its gradients are applied.
 * 4. With one slot of state, the manifest is marked before anything of its commit is overwritten,
 * so that a kill in between is told on resume and never trained on.
 * 5. From the end of the second step on, nothing allocates (check_sealed).
 */
#include "offload/train.h"

#include "core/clock.h"
#include "core/json.h"
#include "core/log.h"
#include "io/drive.h"
#include "io/ring.h"
#include "offload/run.h"
#include "offload/state.h"
#include "offload/wear.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define EVAL_STEPS_MAX 8

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

/* ---- Steps ----------------------------------------------------------------------------------- */

/* This step's tokens, and the drive begins to read those of the next one. */
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
    batch_fetch(source, (step + 1) * accum * batch, accum * batch);
}

/* Before a plan that writes into the only slot there is (rule 4). Where RAM holds all state, that
 * is a commit alone. */
static void open_commit(struct run *run, const struct plan *plan)
{
    bool updates = plan->update || (plan->backward && !run_defers_updates(run));
    struct err err;
    if (!plan->commit && !(updates && run->spills_state))
        return;
    if (checkpoint_open_commit(&run->checkpoint, &run->tier, &err) != 0)
        fatal("%s", err.message);
}

static void run_plan(struct run *run, enum variant variant, struct sched_result *result)
{
    open_commit(run, &run->plans[variant]);
    sched_run(&run->sched, &run->plans[variant], engine_real_engine(run->real), run->trace, result);
    const struct place_least *least = &run->least[variant];
    for (uint32_t lane = 0; lane < LANE_COUNT; lane++) {
        run->moved[lane] += result->bytes[lane];
        run->line.bytes[lane] += result->bytes[lane];
        run->line.busy_ns[lane] += result->busy_ns[lane];
    }
    run->line_least.h2d_bytes += least->h2d_bytes;
    run->line_least.d2h_bytes += least->d2h_bytes;
    run->line_least.ssd_read_bytes += least->ssd_read_bytes;
    run->line_least.ssd_write_bytes += least->ssd_write_bytes;
    run->commit_bytes += result->commit_bytes;
    run->metrics.written_bytes += result->bytes[LANE_SSD_WRITE] + result->commit_bytes;
}

/* The third step of a call, the first that is steady and in which nothing is touched for the first
 * time, is what RUN/timeline.json shows. */
static void run_step(struct run *run, enum variant variant, struct sched_result *result)
{
    struct trace *trace = run->trace;
    bool shown = run->timeline.trace && run->done == run->start_done + 2;
    if (shown) {
        trace_also(run->timeline.trace, trace);
        run->trace = run->timeline.trace;
    }
    run_plan(run, variant, result);
    run->trace = trace;
    if (shown)
        timeline_finish(&run->timeline);
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
              " times after memory was sealed; %s",
              run->done, count - run->sealed_count, tier_commit_note(&run->tier));
}

/* The pending gradients become optim_step scalars of the update that the next plan makes. */
static void prepare_update(struct run *run)
{
    const struct optim_settings *optim = &run->settings->optim;
    optim_step_init(&run->exec.step, optim, run->done - 1,
                    optim_clip_factor(optim, run->pending_norm));
}

static int log_commit(struct run *run, uint64_t step, uint64_t bytes,
                      const struct sched_result *rest, struct err *err)
{
    run->committed = step;
    return metrics_write_commit(&run->metrics, step, run->checkpoint.weights_hash, bytes,
                                (double)run->exec.commit_ns / 1e9, rest,
                                &run->least[PLAN_FLUSH_COMMIT], err);
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
    if (!keep_due(run, step))
        return 0;
    run->metrics.written_bytes += run->layout.slot_bytes;
    return checkpoint_keep(&run->checkpoint, &run->tier, err);
}

/* Applies what is pending and commits when asked to; afterwards nothing is pending. */
static int flush(struct run *run, bool commit, struct err *err)
{
    struct sched_result result;
    run->checkpoint.step = run->done;
    run->checkpoint.tokens = run->done * run_tokens_per_step(run);
    if (commit)
        metrics_sync(&run->metrics);
    if (run->pending) {
        prepare_update(run);
        run_plan(run, commit ? PLAN_FLUSH_COMMIT : PLAN_FLUSH, &result);
        run->pending = false;
        if (!commit)
            return 0;
        int code = log_commit(run, run->done, result.commit_bytes, &result, err);
        return code ? code : keep(run, run->done, err);
    }
    if (!commit || run->committed == run->done)
        return 0;
    uint64_t written = 0, start_ns = clock_ns();
    int code = checkpoint_open_commit(&run->checkpoint, &run->tier, err);
    if (code)
        return code;
    code = state_commit(&run->exec, run->ring, &written, err);
    run->exec.commit_ns = clock_ns() - start_ns;
    run->commit_bytes += written;
    run->metrics.written_bytes += written;
    if (code == 0)
        code = log_commit(run, run->done, written, NULL, err);
    return code ? code : keep(run, run->done, err);
}

static int evaluate(struct run *run, double *val_loss, struct err *err)
{
    int code = flush(run, false, err);
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
    char commit[64];
    exec_commit_note(&run->exec, run->committed, commit);
    if (!isfinite(loss))
        return err_set(err, ERR_INPUT, EXEC_LOSS_MESSAGE, run->done, commit);
    if (!isfinite(run->exec.gradient_norm))
        return err_set(err, ERR_INPUT,
                       "the gradient of step %" PRIu64 " is not finite, first in or after %s; "
                       "stopped %s: lower --lr (%s)",
                       run->done,
                       run->exec.bad_chunk == PLAN_NONE ? "the sum"
                                                        : tensor_of_chunk(run, run->exec.bad_chunk),
                       run_defers_updates(run) ? "before its update"
                                               : "after its update, which is not committed",
                       commit);
    return 0;
}

static void fill_memory(const struct run *run, struct metrics_step *m)
{
    struct mem_usage usage;
    mem_usage_read(&usage);
    m->vram_bytes = m->vram_peak_bytes = run->exec.vram.bytes;
    uint64_t counted_vram = run->exec.device->host_memory ? m->vram_bytes : 0;
    uint64_t held = usage.rss_bytes + usage.page_table_bytes;
    uint64_t peak = usage.rss_peak_bytes + usage.page_table_bytes;
    m->ram_bytes = held - MIN(held, counted_vram);
    m->ram_peak_bytes = peak - MIN(peak, counted_vram);
}

/* One step: the update and commit of the one before, forward, backward, and its log line. */
static int step(struct run *run, struct metrics_step *m, struct err *err)
{
    struct train_settings *s = run->settings;
    bool commit = run->pending && commit_due(run, run->done) && run->committed != run->done;
    enum variant variant = !run->pending ? PLAN_FIRST : commit ? PLAN_STEADY_COMMIT : PLAN_STEADY;
    struct sched_result result;
    *m = (struct metrics_step){.run = &run->line};
    run->line = (struct sched_result){0};
    run->line_least = (struct place_least){0};
    uint64_t start_ns = clock_ns();
    load_tokens(run, &run->train_batches, run->done);
    m->data_s = (double)(clock_ns() - start_ns) / 1e9;
    run->exec.step_number = run->done + 1;
    run->exec.committed_step = run->committed;
    if (run->pending)
        prepare_update(run);
    else if (!run_defers_updates(run))
        optim_step_init(&run->exec.step, &s->optim, run->done, 1);
    run->checkpoint.step = run->done;
    run->checkpoint.tokens = run->done * run_tokens_per_step(run);
    if (commit)
        metrics_sync(&run->metrics);
    m->predicted_s = run_predict(run, variant);
    m->bound_s = run_bound(run, variant, &m->bound_lane);
    run_step(run, variant, &result);
    if (commit) {
        int code = log_commit(run, run->done, result.commit_bytes, NULL, err);
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
    m->tokens = run_tokens_per_step(run);
    int code = check_finite(run, m->loss, err);
    if (code)
        return code;
    run->pending = run_defers_updates(run);
    run->pending_norm = m->grad_norm;
    m->step_s = (double)(clock_ns() - start_ns) / 1e9;
    run_learn(run, &result);
    if (s->replay) {
        m->plan_s = (double)(result.end_ns - result.start_ns) / 1e9;
        m->replayed_s = run_replay(run, variant);
    }
    if (s->eval_every && run->done % s->eval_every == 0) {
        m->has_val = true;
        code = evaluate(run, &m->val_loss, err);
        if (code)
            return code;
    }
    fill_memory(run, m);
    m->least = run->line_least;
    code = metrics_write_step(&run->metrics, m, err);
    /* An evaluation has applied the gradients already: a commit that is due cannot wait for them.
     */
    if (code == 0 && !run->pending && commit_due(run, run->done))
        code = flush(run, true, err);
    return code;
}

/* The plan keeps the budget; should the kernel count more all the same, the user must know. */
static void check_budget(const struct run *run, const struct metrics_step *m)
{
    char held[LOG_BYTES_MAX], budget[LOG_BYTES_MAX];
    if (run->done == run->start_done + 2 && m->ram_peak_bytes > run->settings->ram_budget)
        log_warn("the process holds %s, more than the RAM budget of %s",
                 log_bytes(held, m->ram_peak_bytes), log_bytes(budget, run->settings->ram_budget));
}

static void show_step(struct run *run, struct log_progress *progress, const struct metrics_step *m)
{
    char val[32] = "", note[192];
    if (m->has_val)
        snprintf(val, sizeof(val), "  val loss %.4f", m->val_loss);
    snprintf(note, sizeof(note),
             "loss %.4f%s  %.0f tokens/s  %.2f s a step (predicted %.2f, bound %.2f by %s)",
             m->loss, val, (double)m->tokens / m->step_s, m->step_s, m->predicted_s, m->bound_s,
             plan_lane_name[m->bound_lane]);
    if (m->has_val)
        log_line("step %" PRIu64 " %s", m->step, note);
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

/* Killed between a commit and its kept copy: the copy is made now. */
static int keep_missed(struct run *run, struct err *err)
{
    if (run->committed != run->done || !keep_due(run, run->done) ||
        checkpoint_is_kept(&run->checkpoint, run->done))
        return 0;
    run->checkpoint.step = run->done;
    run->checkpoint.weights_hash = tier_weights_hash(&run->tier);
    return keep(run, run->done, err);
}

static int loop(struct run *run, struct err *err)
{
    struct log_progress progress;
    log_progress_start(&progress, "training", "steps", (double)run->settings->steps);
    run->start_ns = clock_ns();
    run->start_done = run->done;
    run->start_written_bytes = run->metrics.written_bytes;
    int code = 0;
    while (run->done < run->settings->steps && code == 0) {
        struct metrics_step m;
        code = step(run, &m, err);
        if (code)
            break;
        show_step(run, &progress, &m);
        check_budget(run, &m);
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

/* In powers of 1000, as drives are rated. */
static void print_written(const struct run *run, double elapsed_s)
{
    const struct profile_ssd *ssd = &run->profile.ssd;
    char budget[LOG_BYTES_MAX];
    double written = (double)(run->metrics.written_bytes - run->start_written_bytes);
    double per_day = written / elapsed_s * WEAR_DAY_S;
    double endurance = (double)ssd->endurance_bytes * ssd->count;
    printf(
        "  written to drive   %9.3f GB, %.3f GB since the run began; %.3f TB a day of training\n",
        written / 1e9, (double)run->metrics.written_bytes / 1e9, per_day / 1e12);
    if (endurance > 0 && per_day > 0)
        printf(
            "  endurance          %9.1f days at this pace, of the %.0f TB that the drive is rated "
            "for\n",
            endurance / per_day, endurance / 1e12);
    if (run->settings->write_budget && per_day > (double)run->settings->write_budget)
        log_warn(
            "this was more a day than the %s of --write-budget, which holds for the steps that "
            "the plan predicts: lower it by as much, or give --checkpoint-every more steps",
            log_bytes(budget, run->settings->write_budget));
}

static void print_summary(const struct run *run)
{
    struct metrics_step m;
    char a[LOG_BYTES_MAX], b[LOG_BYTES_MAX];
    fill_memory(run, &m);
    double elapsed_s = (double)(clock_ns() - run->start_ns) / 1e9;
    uint64_t steps = run->done - run->start_done;
    printf("\n%" PRIu64 " step%s, %" PRIu64 " tokens in %s: %.0f tokens/s\n", steps,
           steps == 1 ? "" : "s", steps * run_tokens_per_step(run), log_duration(a, elapsed_s),
           (double)(steps * run_tokens_per_step(run)) / elapsed_s);
    if (steps)
        printf("  loss %.4f -> %.4f\n", run->first_loss, run->last_loss);
    if (run->place.separate_device)
        printf("  VRAM held          %12s of %s\n", log_bytes(a, m.vram_peak_bytes),
               log_bytes(b, run->settings->vram_budget));
    printf("  RAM held           %12s of %s (peak, whole process)\n",
           log_bytes(a, m.ram_peak_bytes), log_bytes(b, run->settings->ram_budget));
    if (run->settings->nvme.count)
        printf("  NVMe held          %12s\n", log_bytes(a, run->place.nvme_bytes));
    print_lane(run, "RAM -> VRAM", LANE_H2D);
    print_lane(run, "VRAM -> RAM", LANE_D2H);
    print_lane(run, "NVMe -> RAM", LANE_SSD_READ);
    print_lane(run, "RAM -> NVMe", LANE_SSD_WRITE);
    printf("  commits            %12s in all\n", log_bytes(a, run->commit_bytes));
    print_written(run, elapsed_s);
    printf("step %" PRIu64 " is committed in %s\n", run->committed, run->settings->run_dir);
    if (run->done < run->settings->steps && run->settings->resume_command)
        printf("continue with:\n  %s\n", run->settings->resume_command);
}

static void print_intro(const struct run *run)
{
    const struct train_settings *s = run->settings;
    log_line("%s: %" PRIu64 " parameters, %s; %" PRIu64 " x %" PRIu64 " x %" PRIu64 " = %" PRIu64
             " tokens a step (batch x seq x accum)",
             run->config.name, run->tensors.parameter_count,
             s->precision == PRECISION_BF16 ? "bf16" : "fp32", s->batch, s->seq, s->accum,
             run_tokens_per_step(run));
    log_line(
        "lr %g to %g in %" PRIu64 " steps, warm-up %" PRIu64 ", weight decay %g, clip %g, seed "
        "%" PRIu64 "; a commit every %" PRIu64 " steps; from step %" PRIu64 " to %" PRIu64,
        s->optim.lr, s->optim.min_lr, s->optim.total_steps, s->optim.warmup_steps,
        s->optim.weight_decay, s->optim.clip, s->seed, s->checkpoint_every, run->done, s->steps);
}

/* What the drive and the kernel offered. */
static void print_io(const struct run *run)
{
    struct drive drive;
    char note[DRIVE_NOTE_MAX];
    log_line("%s", ring_note(run->ring));
    for (uint32_t d = 0; d < run->tier.files.count; d++) {
        drive_ask(&drive, run->tier.drives[d].state_fd);
        log_line("%s: %s", run->tier.files.path[d], drive_note(&drive, note));
    }
}

static void warn_of_wear(struct run *run)
{
    struct wear wear;
    double step_s = run_predict(run, run_usual(run));
    wear_of(&wear, &run->place, run->predicted.bytes[LANE_SSD_WRITE], step_s);
    wear_warn(&wear);
}

int train_run(struct train_settings *settings, struct err *err)
{
    struct run *run = NULL;
    catch_signals();
    int code = run_plan_open(&run, settings, settings->nvme.count > 0, err);
    if (code == 0)
        code = run_open(run, err);
    if (code == 0) {
        print_intro(run);
        place_print(&run->place, &run->memory, stderr);
        print_io(run);
        warn_of_wear(run);
        code = keep_missed(run, err);
    }
    if (code == 0) {
        if (run->done >= settings->steps && run->committed == run->done)
            log_line("nothing to do: %s is at step %" PRIu64 " of %" PRIu64
                     "; to go on, give more --steps",
                     settings->run_dir, run->done, settings->steps);
        else
            code = loop(run, err);
    }
    if (code == 0 && run->start_ns)
        print_summary(run);
    run_close(run);
    return code;
}
