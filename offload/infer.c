#include "offload/infer.h"

#include "core/float.h"
#include "core/json.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/topo.h"
#include "io/batch.h"
#include "io/safetensors.h"
#include "offload/record.h"
#include "offload/state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SEQ_DEFAULT   1024u
#define BATCH_DEFAULT 4u
/* Contexts are computed at lengths that are a power of two or one and a half times that: at most a
 * third of the rows is padding, and a text of 1,024 tokens opens kernels 13 times, which takes 0.05
 * to 0.3 s each at gpt2-124m, as much as some of the tokens between. */
#define CONTEXT_MIN 16u
/* The seed of the order of validation windows: train's. */
#define EVAL_SEED 0

/* ---- What a folder says of its model --------------------------------------------------------- */

static bool is_folder(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISDIR(status.st_mode);
}

static uint32_t read_count(const struct json_value *object, const char *key, uint32_t fallback)
{
    int64_t value = json_get_int(object, key, 0);
    return value > 0 && value <= UINT32_MAX ? (uint32_t)value : fallback;
}

static enum precision read_precision(const char *text)
{
    if (!text)
        return kernels_cpu_has_bf16() ? PRECISION_BF16 : PRECISION_FP32;
    return strcmp(text, "bf16") == 0 ? PRECISION_BF16 : PRECISION_FP32;
}

/* How it was trained: the options of a run, or the record in an exported folder. */
static void read_settings(struct infer_model *model, const struct json_value *settings,
                          const char *precision)
{
    uint32_t longest = MIN(model->config.positions, SEQ_DEFAULT);
    model->seq = MIN(read_count(settings, "seq", longest), model->config.positions);
    model->batch = read_count(settings, "batch", settings ? 1 : BATCH_DEFAULT);
    model->accum = read_count(settings, "accum", 1);
    model->precision = read_precision(precision);
}

static int read_root(struct infer_model *model, const struct json_value *root, const char *path,
                     struct err *err)
{
    const struct json_value *config = json_get(root, "model");
    if (!model->is_run && config && !json_get(root, "model_type"))
        return err_set(err, ERR_INPUT, "%s is a run and no Hugging Face folder: give it as --run",
                       model->dir);
    const struct json_value *record = json_get(root, INFER_RECORD);
    int result = config_from_json(&model->config, model->is_run ? config : root, path, err);
    if (result)
        return result;
    if (model->is_run)
        read_settings(model, json_get(root, "options"), json_get_string(root, "precision", "fp32"));
    else
        read_settings(model, record, json_get_string(record, "precision", NULL));
    enum moments_kind moments = moments_find(json_get_string(root, "moments", moments_name[0]));
    if (moments == MOMENTS_KIND_COUNT)
        return err_set(err, ERR_INPUT, "%s was written by another version of spillway", path);
    tensors_init(&model->tensors, &model->config);
    layout_init(&model->layout, &model->tensors, moments);
    return 0;
}

int infer_model_open(struct infer_model *model, const char *run_dir, const char *model_dir,
                     struct err *err)
{
    ASSERT(!run_dir != !model_dir);
    const char *dir = run_dir ? run_dir : model_dir;
    char path[FILE_PATH_MAX];
    *model = (struct infer_model){.is_run = run_dir != NULL};
    int result = file_join(path, dir, "config.json", err);
    if (result)
        return result;
    snprintf(model->dir, sizeof(model->dir), "%s", dir);
    if (!is_folder(dir) || !file_exists(path))
        return err_set(err, ERR_INPUT, "%s is no %s: there is no %s", dir,
                       run_dir ? "run (the folder that 'spillway train --out' made)"
                               : "Hugging Face folder",
                       path);
    struct json_value *root = NULL;
    if (run_dir)
        result = record_load(&root, run_dir, err);
    else if (!(root = json_load(path, err)))
        result = err->code;
    if (result)
        return result;
    result = read_root(model, root, path, err);
    json_free(root);
    return result;
}

void infer_model_close(struct infer_model *model)
{
    layout_deinit(&model->layout);
    tensors_deinit(&model->tensors);
    *model = (struct infer_model){0};
}

struct json_value *infer_record(const struct infer_model *model,
                                const struct checkpoint_manifest *manifest)
{
    char hash[24];
    snprintf(hash, sizeof(hash), "%016" PRIx64, manifest->weights_hash);
    struct json_value *record = json_new_object();
    json_set_int(record, "step", (int64_t)manifest->step);
    json_set_int(record, "tokens", (int64_t)manifest->tokens);
    json_set_string(record, "weights_hash", hash);
    json_set_string(record, "precision", model->precision == PRECISION_BF16 ? "bf16" : "fp32");
    json_set_int(record, "seq", model->seq);
    json_set_int(record, "batch", model->batch);
    json_set_int(record, "accum", model->accum);
    return record;
}

int infer_read_commit(const struct infer_model *model,
                      int (*read)(void *context, struct checkpoint_reader *reader, struct err *err),
                      void *context, struct err *err)
{
    ASSERT(model->is_run && model->layout.chunk_count > 0);
    for (uint32_t i = 0; i < INFER_TRIES_MAX; i++) {
        struct checkpoint_reader reader;
        int result = checkpoint_reader_open(&reader, model->dir, &model->layout, err);
        if (result == 0)
            result = read(context, &reader, err);
        checkpoint_reader_close(&reader);
        if (result <= 0)
            return result;
    }
    return err_set(err, ERR_INPUT,
                   "%s commits faster than it can be read (%d tries): try again when it has "
                   "ended, or read a commit that --keep-every keeps",
                   model->dir, INFER_TRIES_MAX);
}

/* ---- Weights --------------------------------------------------------------------------------- */

/* Where chunk's compute weights begin: chunks of a group follow each other without a hole. */
static void *chunk_weights(const struct infer *infer, const struct layout_chunk *chunk)
{
    uint64_t at = infer->group_offset[chunk->group] + chunk->first;
    ASSERT(at + chunk->count <= infer->group_offset[chunk->group + 1]);
    return infer->weights.base + at * precision_bytes(infer->precision);
}

static const void *group_weights(const struct infer *infer, uint32_t group)
{
    ASSERT(group < infer->model.tensors.group_count);
    return infer->weights.base + infer->group_offset[group] * precision_bytes(infer->precision);
}

static int open_weights(struct infer *infer, struct err *err)
{
    const struct layout *layout = &infer->model.layout;
    uint32_t groups = layout->group_count;
    infer->group_offset = mem_alloc((uint64_t)groups + 1, sizeof(*infer->group_offset));
    for (uint32_t g = 0; g < groups; g++) {
        const struct layout_chunk *last = &layout->chunks[layout->group_first_chunk[g + 1] - 1];
        infer->group_offset[g + 1] = infer->group_offset[g] + last->first + last->count;
    }
    uint64_t bytes = mul_checked(infer->group_offset[groups], precision_bytes(infer->precision));
    return mem_arena_open(&infer->weights, bytes, err);
}

struct load {
    struct infer *infer;
    uint16_t *stage; /* hi and lo of a chunk; NULL in bf16 */
};

static int load_commit(void *context, struct checkpoint_reader *reader, struct err *err)
{
    struct load *load = context;
    const struct layout *layout = &load->infer->model.layout;
    struct log_progress progress;
    log_progress_start(&progress, "reading weights", "chunks", layout->chunk_count);
    int result = 0;
    for (uint32_t c = 0; c < layout->chunk_count && result == 0; c++) {
        const struct layout_chunk *chunk = &layout->chunks[c];
        void *weights = chunk_weights(load->infer, chunk);
        if (load->stage) {
            result = checkpoint_read(reader, c, PLANE_HI, 2, load->stage, err);
            const int16_t *lo = (const int16_t *)load->stage + chunk->count;
            if (result == 0)
                float_join_many(load->stage, lo, weights, chunk->count);
        } else {
            result = checkpoint_read(reader, c, PLANE_HI, 1, weights, err);
        }
        log_progress_update(&progress, c + 1, NULL);
    }
    log_progress_end(&progress);
    load->infer->step = reader->manifest.step;
    return result;
}

static int load_run(struct infer *infer, struct err *err)
{
    struct load load = {.infer = infer};
    if (infer->precision == PRECISION_FP32)
        load.stage = mem_alloc(2 * infer->model.layout.chunk_count_max, sizeof(*load.stage));
    int result = infer_read_commit(&infer->model, load_commit, &load, err);
    mem_free(load.stage);
    return result;
}

static int load_tensor(struct infer *infer, const struct safetensors *file,
                       const struct tensor *tensor, float *values, struct err *err)
{
    const struct safetensors_tensor *found = state_find_weights(file, tensor->name);
    uint64_t piece = infer->model.layout.chunk_count_max;
    uint64_t at = infer->group_offset[tensor->group] + tensor->offset;
    ASSERT(found && found->element_count == tensor->count);
    for (uint64_t done = 0, count; done < tensor->count; done += count) {
        count = MIN(piece, tensor->count - done);
        int result = safetensors_read(file, found, done, values, count, err);
        if (result)
            return result;
        for (uint64_t i = 0; i < count; i++) {
            uint64_t to = at + done + i;
            int16_t ignored;
            if (!isfinite(values[i]))
                return err_set(err, ERR_INPUT,
                               "the tensor %s in %s has a weight that is not finite", tensor->name,
                               infer->model.dir);
            if (infer->precision == PRECISION_BF16)
                float_split(values[i], (uint16_t *)(void *)infer->weights.base + to, &ignored);
            else
                ((float *)(void *)infer->weights.base)[to] = values[i];
        }
    }
    return 0;
}

/* Padding between tensors stays as the arena's pages are: zero. */
static int load_folder(struct infer *infer, struct err *err)
{
    const struct tensors *tensors = &infer->model.tensors;
    struct safetensors *file = NULL;
    float *values = mem_alloc(infer->model.layout.chunk_count_max, sizeof(*values));
    struct log_progress progress;
    log_progress_start(&progress, "reading weights", "tensors", tensors->count);
    int result = safetensors_open(&file, infer->model.dir, err);
    if (result == 0)
        result = state_check_weights(file, tensors, err);
    for (uint32_t t = 0; t < tensors->count && result == 0; t++) {
        result = load_tensor(infer, file, &tensors->list[t], values, err);
        log_progress_update(&progress, t + 1, NULL);
    }
    log_progress_end(&progress);
    safetensors_close(file);
    mem_free(values);
    return result;
}

/* ---- Opening --------------------------------------------------------------------------------- */

static int choose_precision(struct infer *infer, const char *precision, struct err *err)
{
    infer->precision = infer->model.precision;
    if (!precision)
        return 0;
    if (strcmp(precision, "fp32") != 0 && strcmp(precision, "bf16") != 0)
        return err_set(err, ERR_USAGE, "--precision is '%s'; it may be: fp32, bf16", precision);
    infer->precision = read_precision(precision);
    return 0;
}

static int open_tokenizer(struct infer *infer, struct err *err)
{
    int result = bpe_load(&infer->bpe, infer->model.dir, err);
    if (result)
        return result;
    if (bpe_vocab_size(infer->bpe) > infer->model.config.vocab)
        return err_set(err, ERR_INPUT,
                       "the tokenizer in %s has %u tokens and the model beside it only %u: they "
                       "do not belong together",
                       infer->model.dir, bpe_vocab_size(infer->bpe), infer->model.config.vocab);
    return 0;
}

int infer_open(struct infer *infer, const char *run_dir, const char *model_dir,
               const char *precision, struct err *err)
{
    *infer = (struct infer){0};
    int result = infer_model_open(&infer->model, run_dir, model_dir, err);
    if (result == 0)
        result = choose_precision(infer, precision, err);
    if (result == 0)
        result = open_tokenizer(infer, err);
    if (result == 0)
        result = open_weights(infer, err);
    if (result == 0)
        result = run_dir ? load_run(infer, err) : load_folder(infer, err);
    if (result == 0)
        result = pool_open(&infer->pool, "infer", topo_open()->core_count, true, err);
    if (result)
        infer_close(infer);
    return result;
}

static void close_shape(struct infer *infer)
{
    kernels_close(infer->kernels);
    mem_arena_close(&infer->work_arena);
    infer->kernels = NULL;
    infer->shape = (struct kernels_shape){0};
}

void infer_close(struct infer *infer)
{
    close_shape(infer);
    pool_close(infer->pool);
    mem_arena_close(&infer->weights);
    mem_free(infer->group_offset);
    bpe_free(infer->bpe);
    infer_model_close(&infer->model);
    *infer = (struct infer){0};
}

uint32_t infer_token_count(const struct infer *infer)
{
    return bpe_vocab_size(infer->bpe);
}

/* Kernels and working memory for one shape; nothing to do when they are open for it. */
static int open_shape(struct infer *infer, uint32_t batch, uint32_t seq, struct err *err)
{
    const struct config *config = &infer->model.config;
    ASSERT(batch > 0 && seq > 0 && seq <= config->positions);
    if (infer->kernels && infer->shape.batch == batch && infer->shape.seq == seq)
        return 0;
    close_shape(infer);
    infer->shape = (struct kernels_shape){
        .precision = infer->precision,
        .batch = batch,
        .seq = seq,
        .channels = config->channels,
        .heads = config->heads,
        .vocab = config->vocab,
        .tile_rows_max = infer->model.layout.tile_rows_max,
        .norm_epsilon = config->norm_epsilon,
    };
    struct kernels_sizes sizes;
    kernels_sizes(&infer->shape, &sizes);
    uint64_t rows = mul_checked(batch, seq), x_bytes = mul_checked(rows, config->channels * 4);
    const uint64_t bytes[WORK_COUNT] = {
        [WORK_X] = x_bytes,
        [WORK_X_NEXT] = x_bytes,
        [WORK_INNER] = sizes.inner_bytes,
        [WORK_SCRATCH] = sizes.scratch_bytes,
        [WORK_Y] = x_bytes,
        [WORK_STATISTICS] = 2 * 4 * rows,
        [WORK_RUNNING] = 3 * 4 * rows,
        [WORK_LOSSES] = 4 * rows,
        [WORK_TOKENS] = 4 * rows,
        [WORK_TARGETS] = 4 * rows,
    };
    uint64_t total = 0;
    for (uint32_t w = 0; w < WORK_COUNT; w++)
        total = add_checked(total, round_up(bytes[w], IO_ALIGN));
    int result = mem_arena_open(&infer->work_arena, total, err);
    if (result)
        return result;
    uint64_t used = 0;
    for (uint32_t w = 0; w < WORK_COUNT; w++) {
        infer->work[w] = infer->work_arena.base + used;
        used += round_up(bytes[w], IO_ALIGN);
    }
    return kernels_cpu_open(&infer->kernels, &infer->shape, &infer->model.tensors, infer->pool,
                            err);
}

/* ---- Forward --------------------------------------------------------------------------------- */

/* WORK_TOKENS to WORK_Y: everything but the head. */
static void run_forward(struct infer *infer)
{
    const struct infer_model *model = &infer->model;
    float *x = infer->work[WORK_X], *x_next = infer->work[WORK_X_NEXT];
    struct kernels_embed_forward embed = {
        .tile = group_weights(infer, 0),
        .row_count = model->config.vocab,
        .tokens = infer->work[WORK_TOKENS],
        .x = x,
    };
    kernels_embed_forward(infer->kernels, &embed);
    struct kernels_position_forward position = {
        .wpe = chunk_weights(infer, &model->layout.chunks[model->layout.wpe_first_chunk]),
        .x = x,
    };
    kernels_position_forward(infer->kernels, &position);
    for (uint32_t layer = 0; layer < model->config.layers; layer++) {
        struct kernels_block_forward block = {
            .weights = group_weights(infer, layer + 1),
            .x_in = x,
            .x_out = x_next,
            .inner = infer->work[WORK_INNER],
            .scratch = infer->work[WORK_SCRATCH],
        };
        kernels_block_forward(infer->kernels, &block);
        x_next = x;
        x = block.x_out;
    }
    struct kernels_norm_forward norm = {
        .weights = group_weights(infer, model->config.layers + 1),
        .x = x,
        .y = infer->work[WORK_Y],
        .statistics = infer->work[WORK_STATISTICS],
    };
    kernels_norm_forward(infer->kernels, &norm);
}

/* WORK_Y and WORK_TARGETS to WORK_LOSSES. The trainer goes through its tiles from the last one down
 * in the forward pass, and the bits of a sum over tiles follow their order. */
static void run_head(struct infer *infer)
{
    const struct layout *layout = &infer->model.layout;
    for (uint32_t i = 0; i < layout->tile_count; i++) {
        const struct layout_tile *tile = &layout->tiles[layout->tile_count - 1 - i];
        struct kernels_head_forward head = {
            .tile = chunk_weights(infer, &layout->chunks[tile->first_chunk]),
            .row_first = tile->row_first,
            .row_count = tile->row_count,
            .y = infer->work[WORK_Y],
            .targets = infer->work[WORK_TARGETS],
            .running = infer->work[WORK_RUNNING],
            .first = i == 0,
            .scratch = infer->work[WORK_SCRATCH],
        };
        kernels_head_forward(infer->kernels, &head);
    }
    struct kernels_head_loss loss = {infer->work[WORK_RUNNING], infer->work[WORK_LOSSES]};
    kernels_head_loss(infer->kernels, &loss);
}

static uint32_t context_length(uint64_t count, uint32_t positions)
{
    uint64_t length = CONTEXT_MIN;
    while (length < count)
        length += (length & (length - 1)) == 0 ? length / 2 : length / 3;
    return (uint32_t)MIN(length, positions);
}

int infer_logits(struct infer *infer, const uint32_t *tokens, uint64_t count, float *logits,
                 struct err *err)
{
    const struct config *config = &infer->model.config;
    ASSERT(count > 0);
    uint64_t used = MIN(count, config->positions);
    int result = open_shape(infer, 1, context_length(used, config->positions), err);
    if (result)
        return result;
    /* What follows the last token cannot be seen by it: attention is causal. */
    uint32_t *row = infer->work[WORK_TOKENS];
    memcpy(row, tokens + (count - used), used * sizeof(*row));
    memset(row + used, 0, (infer->shape.seq - used) * sizeof(*row));
    run_forward(infer);
    struct kernels_logits args = {
        .tile = group_weights(infer, 0),
        .row_count = config->vocab,
        .y_row = (const uint8_t *)infer->work[WORK_Y] +
                 (used - 1) * config->channels * precision_bytes(infer->precision),
        .logits = logits,
    };
    kernels_logits(infer->kernels, &args);
    for (uint32_t v = 0; v < config->vocab; v++)
        if (!isfinite(logits[v]))
            return err_set(err, ERR_INPUT,
                           "the model in %s gives no finite number for token %u: its training "
                           "has failed; take an earlier commit",
                           infer->model.dir, v);
    return 0;
}

/* ---- Drawing --------------------------------------------------------------------------------- */

static int compare_candidates(const void *a, const void *b)
{
    const struct infer_candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

static uint32_t likeliest(const float *logits, uint32_t count)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < count; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

uint32_t infer_draw(const struct infer_sampling *sampling, const float *logits, uint32_t count,
                    uint64_t index, struct infer_candidate *candidates)
{
    ASSERT(count > 0 && sampling->temperature >= 0);
    uint32_t best = likeliest(logits, count);
    if (sampling->temperature == 0)
        return best;
    for (uint32_t i = 0; i < count; i++)
        candidates[i] = (struct infer_candidate){logits[i], i};
    if (sampling->top_k && sampling->top_k < count) {
        qsort(candidates, count, sizeof(*candidates), compare_candidates);
        count = sampling->top_k;
    }
    /* Less the greatest, so that no exponential overflows, however low the temperature. */
    double sum = 0, most = logits[best];
    for (uint32_t i = 0; i < count; i++)
        sum += exp((candidates[i].logit - most) / sampling->temperature);
    double left = rng_uniform(sampling->seed, RNG_STREAM_SAMPLE, index) * sum;
    for (uint32_t i = 0; i < count; i++) {
        double share = exp((candidates[i].logit - most) / sampling->temperature);
        if (left < share)
            return candidates[i].token;
        left -= share;
    }
    return best; /* rounding used up the sum before the last share */
}

/* ---- Evaluating ------------------------------------------------------------------------------ */

/* Sum of the losses of one step: over its micro-batches and rows in order, in double, as the
 * trainer adds them. */
static double evaluate_step(struct infer *infer, const struct infer_evaluation *e,
                            const struct batch_source *source, uint64_t step)
{
    uint32_t *inputs = infer->work[WORK_TOKENS], *targets = infer->work[WORK_TARGETS];
    const float *losses = infer->work[WORK_LOSSES];
    uint64_t rows = (uint64_t)e->batch * e->seq;
    double sum = 0;
    for (uint64_t m = 0; m < e->accum; m++) {
        for (uint64_t b = 0; b < e->batch; b++)
            batch_sequence(source, (step * e->accum + m) * e->batch + b, inputs + b * e->seq,
                           targets + b * e->seq);
        batch_fetch(source, (step * e->accum + m + 1) * e->batch, e->batch);
        run_forward(infer);
        run_head(infer);
        for (uint64_t r = 0; r < rows; r++)
            sum += losses[r];
    }
    return sum;
}

static int check_evaluation(const struct infer *infer, const struct infer_evaluation *e,
                            struct err *err)
{
    if (!e->seq || e->seq > infer->model.config.positions)
        return err_set(err, ERR_INPUT, "--seq is %u; this model can take 1 to %u", e->seq,
                       infer->model.config.positions);
    if (!e->batch || (uint64_t)e->batch * e->seq > KERNELS_ROWS_MAX)
        return err_set(err, ERR_INPUT, "--batch is %u; with --seq %u it may be 1 to %" PRIu64,
                       e->batch, e->seq, KERNELS_ROWS_MAX / e->seq);
    if (e->shard->vocab_size > infer->model.config.vocab)
        return err_set(err, ERR_INPUT, "%s has %u tokens in its vocabulary and the model only %u",
                       e->shard->path, e->shard->vocab_size, infer->model.config.vocab);
    return 0;
}

int infer_evaluate(struct infer *infer, struct infer_evaluation *e, struct err *err)
{
    struct batch_source source;
    int result = check_evaluation(infer, e, err);
    if (result == 0)
        result = batch_init(&source, e->shard, EVAL_SEED, e->seq, err);
    if (result == 0)
        result = open_shape(infer, e->batch, e->seq, err);
    if (result)
        return result;
    ASSERT(e->accum > 0);
    uint64_t per_step = (uint64_t)e->batch * e->accum;
    if (!e->steps)
        e->steps = div_up(source.window_count, per_step);
    e->token_count = mul_checked(e->steps, per_step * e->seq);
    struct log_progress progress;
    log_progress_start(&progress, "evaluating", "tokens", (double)e->token_count);
    double sum = 0;
    for (uint64_t i = 0; i < e->steps; i++) {
        sum += evaluate_step(infer, e, &source, i) / (double)(per_step * e->seq);
        log_progress_update(&progress, (double)((i + 1) * per_step * e->seq), NULL);
    }
    log_progress_end(&progress);
    e->loss = sum / (double)e->steps;
    return 0;
}
