#include "tests/shared/tiny.h"

#include "core/json.h"
#include "core/rng.h"
#include "io/dataset.h"
#include "io/ring.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define TRAIN_TOKENS 4001
#define VAL_TOKENS   801
#define RING_DEPTH   32
#define TRIES_MAX    8

/* ---- Models and placements --------------------------------------------------------------------
 */

static void tiny_config(struct config *config, uint32_t layers, uint32_t channels, uint32_t vocab)
{
    *config = (struct config){
        .name = "tiny",
        .layers = layers,
        .channels = channels,
        .heads = channels / 16,
        .positions = 32,
        .vocab = vocab,
        .norm_epsilon = 1e-5f,
    };
    config_derive(config);
}

void tiny_model_init(struct tiny_model *model, uint32_t layers, uint32_t channels, uint32_t vocab,
                     uint64_t chunk, uint64_t tile)
{
    tiny_config(&model->config, layers, channels, vocab);
    tensors_init(&model->tensors, &model->config);
    model->chunk = chunk ? chunk : LAYOUT_CHUNK_PARAMETERS;
    model->tile = tile ? tile : LAYOUT_TILE_PARAMETERS;
    layout_init_sized(&model->layout, &model->tensors, MOMENTS_FP32, model->chunk, model->tile);
}

void tiny_model_set_moments(struct tiny_model *model, enum moments_kind moments)
{
    layout_deinit(&model->layout);
    if (model->chunk)
        layout_init_sized(&model->layout, &model->tensors, moments, model->chunk, model->tile);
    else
        layout_init(&model->layout, &model->tensors, moments);
}

void tiny_model_deinit(struct tiny_model *model)
{
    layout_deinit(&model->layout);
    tensors_deinit(&model->tensors);
}

void tiny_spec(struct place_spec *spec, const struct tiny_model *model)
{
    *spec = (struct place_spec){
        .config = &model->config,
        .layout = &model->layout,
        .precision = PRECISION_FP32,
        .seq = 16,
        .batch = 2,
        .accum = 1,
        .ram_budget = UINT64_MAX,
        .nvme_budget = UINT64_MAX,
        .nvme = true,
        .clip = true,
        .resident_planes = PLACE_RESIDENT_AUTO,
    };
}

static void shrink(struct place_spec *spec, uint64_t *budget)
{
    uint64_t low = 1, high = 256 * MIB;
    while (low < high) {
        struct place place;
        struct err err;
        *budget = low + (high - low) / 2;
        if (place_choose(&place, spec, &err) == 0)
            high = *budget;
        else
            low = *budget + 1;
        place_deinit(&place);
    }
    *budget = low;
}

void tiny_spec_shrink(struct place_spec *spec)
{
    if (spec->vram_budget)
        shrink(spec, &spec->vram_budget);
    shrink(spec, &spec->ram_budget);
}

uint64_t tiny_flag(const char *message, const char *flag)
{
    size_t bytes = strlen(flag);
    const char *found = strstr(message, flag);
    while (found && strstr(found + 1, flag))
        found = strstr(found + 1, flag);
    if (!found || found[bytes] != ' ')
        fail_msg("no %s in: %s", flag, message);
    char *end;
    uint64_t value = strtoull(found + bytes + 1, &end, 10);
    if (value == 0 || strcmp(end, "M") != 0)
        fail_msg("the sentence does not end with %s NUMBERM: %s", flag, message);
    return value * MIB;
}

/* ---- Boxes ------------------------------------------------------------------------------------
 */

static void require(int result, const struct err *err)
{
    if (result != 0)
        fail_msg("%s", err->message);
}

static void open_tier(struct tiny_box *box, const char *name, bool create)
{
    struct err err;
    char dir[64];
    snprintf(dir, sizeof(dir), "box-%s", name);
    require(file_make_dirs(scratch_path(dir), &err), &err);
    ASSERT(realpath(scratch_path(dir), box->run_dir) != NULL);
    require(file_join(box->state_path, box->run_dir, "tier.state", &err), &err);
    struct stripe_files files;
    require(stripe_files_one(&files, box->state_path, &err), &err);
    require(tier_open(&box->tier, &box->model->layout, &box->memory, &files, create, &err), &err);
}

struct kernels_shape tiny_shape(const struct place_spec *spec)
{
    return (struct kernels_shape){
        .precision = spec->precision,
        .batch = spec->batch,
        .seq = spec->seq,
        .channels = spec->config->channels,
        .heads = spec->config->heads,
        .vocab = spec->config->vocab,
        .tile_rows_max = spec->layout->tile_rows_max,
        .norm_epsilon = spec->config->norm_epsilon,
    };
}

void tiny_spec_set_card(struct place_spec *spec, const struct gpu_plugin *plugin)
{
    struct kernels_shape shape = tiny_shape(spec);
    struct kernels_sizes sizes;
    plugin->sizes(&shape, &sizes);
    spec->device_inner_bytes = sizes.inner_bytes;
    spec->device_scratch_bytes = sizes.scratch_bytes;
    spec->device_head_once_bytes = sizes.head_once_bytes;
    spec->vram_budget = 256 * MIB;
}

static void open_device(struct tiny_box *box, const struct place_spec *spec,
                        const struct gpu_plugin *plugin)
{
    struct err err;
    struct gpu_setup setup = {.shape = tiny_shape(spec), .tensors = &box->model->tensors};
    uint64_t overhead_bytes;
    if (plugin) {
        require(plugin->open(&box->device, &setup, &overhead_bytes, &err), &err);
        return;
    }
    require(pool_open(&box->pool, "tiny", 1, false, &err), &err);
    require(kernels_cpu_open(&box->kernels, &setup.shape, setup.tensors, box->pool, &err), &err);
    require(device_cpu_open(&box->device, box->kernels, box->pool, &err), &err);
}

void tiny_box_open_on(struct tiny_box *box, const struct tiny_model *model,
                      const struct place_spec *spec, const char *name, bool create,
                      const struct gpu_plugin *plugin)
{
    struct err err;
    *box = (struct tiny_box){.model = model};
    require(place_choose(&box->place, spec, &err), &err);
    plan_memory_init(&box->memory, &box->place);
    require(pool_open(&box->cpu_pool, "tiny-cpu", 1, false, &err), &err);
    open_device(box, spec, plugin);
    require(ring_open(&box->ring, RING_DEPTH, &err), &err);
    open_tier(box, name, create);
    checkpoint_init(&box->checkpoint, box->run_dir, &model->layout);
    box->exec = (struct exec){
        .place = &box->place,
        .memory = &box->memory,
        .layout = &model->layout,
        .device = box->device,
        .cpu_pool = box->cpu_pool,
        .tier = &box->tier,
        .checkpoint = &box->checkpoint,
        .loss_scale = 1.0f / (float)(spec->batch * spec->seq * spec->accum),
    };
    require(exec_open(&box->exec, &model->tensors, &err), &err);
}

void tiny_box_open(struct tiny_box *box, const struct tiny_model *model,
                   const struct place_spec *spec, const char *name, bool create)
{
    tiny_box_open_on(box, model, spec, name, create, NULL);
}

void tiny_box_close(struct tiny_box *box)
{
    ring_close(box->ring);
    exec_close(&box->exec);
    checkpoint_deinit(&box->checkpoint);
    tier_close(&box->tier);
    device_close(box->device);
    kernels_close(box->kernels);
    pool_close(box->pool);
    pool_close(box->cpu_pool);
    plan_memory_deinit(&box->memory);
    place_deinit(&box->place);
}

const struct optim_settings tiny_optim = {.lr = 1e-2,
                                          .min_lr = 1e-3,
                                          .warmup_steps = 1,
                                          .total_steps = 8,
                                          .beta1 = 0.9,
                                          .beta2 = 0.95,
                                          .eps = 1e-8,
                                          .weight_decay = 0.1,
                                          .clip = 0.5};

void tiny_box_load_tokens(struct tiny_box *box, uint64_t seed, uint32_t step)
{
    const struct place_spec *spec = &box->place.spec;
    uint32_t rows = spec->batch * spec->seq;
    for (uint32_t m = 0; m < spec->accum; m++) {
        uint32_t *tokens = exec_tokens(&box->exec, m);
        for (uint32_t i = 0; i < 2 * rows; i++)
            tokens[i] = (uint32_t)rng_below(seed, RNG_STREAM_SAMPLE, (step * 8 + m) * 1000 + i,
                                            spec->config->vocab);
    }
}

uint8_t *tiny_box_state(struct tiny_box *box)
{
    const struct layout *layout = &box->model->layout;
    uint8_t *state = mem_alloc_aligned(IO_ALIGN, layout->slot_bytes);
    struct err err;
    for (uint32_t c = 0; c < layout->chunk_count; c++)
        for (uint32_t p = 0; p < PLANE_COUNT; p++) {
            const struct layout_chunk *chunk = &layout->chunks[c];
            uint32_t i = c * PLANE_COUNT + p;
            uint64_t bytes = layout_plane_bytes(layout, chunk->count, p);
            uint8_t *to = state + chunk->offset + layout_plane_offset(layout, chunk->count, p);
            if (p < box->place.resident[c]) {
                memcpy(to, exec_cell(&box->exec, box->memory.plane_ram.first + i), bytes);
                continue;
            }
            if (box->place.on_device[c]) {
                uint8_t *stage = exec_cell(&box->exec, box->memory.state_stage.first);
                exec_move_state(&box->exec, LANE_D2H, c, stage);
                memcpy(to, stage + layout_plane_offset(layout, chunk->count, p), bytes);
                continue;
            }
            struct tier_location at = tier_read_at(&box->tier, box->memory.plane_nvme.first + i);
            require(tier_transfer(&box->tier, box->ring, false, at, to, bytes, &err), &err);
        }
    return state;
}

/* ---- Data -------------------------------------------------------------------------------------
 */

/* Each token follows from the one before, but for a random one in eight: something to learn. */
static void write_shard(const char *path, uint32_t vocab, uint32_t count, uint64_t seed)
{
    struct err err;
    struct shard_writer *writer;
    require(shard_writer_open(&writer, path, vocab, 1, &err), &err);
    uint32_t token = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t random = rng_u64(seed, RNG_STREAM_SAMPLE, i);
        token = random % 8 ? (token * 5 + 3) % vocab : (uint32_t)(random / 8 % vocab);
        require(shard_writer_append(writer, &token, 1, &err), &err);
    }
    shard_writer_end_document(writer);
    require(shard_writer_close(writer, &err), &err);
}

const char *tiny_data(uint32_t vocab)
{
    static char dirs[4][FILE_PATH_MAX];
    static uint32_t vocabs[4];
    size_t i = 0;
    while (i < ARRAY_COUNT(vocabs) && vocabs[i] && vocabs[i] != vocab)
        i++;
    ASSERT(i < ARRAY_COUNT(vocabs));
    if (vocabs[i])
        return dirs[i];
    vocabs[i] = vocab;
    char name[64], file[96];
    struct err err;
    snprintf(name, sizeof(name), "data-%u", vocab);
    strcpy(dirs[i], scratch_path(name));
    require(file_make_dirs(dirs[i], &err), &err);
    snprintf(file, sizeof(file), "%s/%s", name, DATASET_TRAIN_FILE);
    write_shard(scratch_path(file), vocab, TRAIN_TOKENS, 1);
    snprintf(file, sizeof(file), "%s/%s", name, DATASET_VAL_FILE);
    write_shard(scratch_path(file), vocab, VAL_TOKENS, 2);
    snprintf(file, sizeof(file), "%s/%s", name, DATASET_TOKENIZER_FILE);
    scratch_write(file, "{}\n");
    require(dataset_seal(dirs[i], true, json_new_object(), &err), &err);
    return dirs[i];
}

/* ---- Runs -------------------------------------------------------------------------------------
 */

static struct json_value *empty_record(void)
{
    static struct json_value *record;
    if (!record)
        record = json_new_object();
    return record;
}

void tiny_run_init(struct tiny_run *run, const char *name)
{
    char folder[128];
    *run = (struct tiny_run){0};
    snprintf(folder, sizeof(folder), "run-%s", name);
    strcpy(run->run_dir, scratch_path(folder));
    snprintf(folder, sizeof(folder), "nvme-%s", name);
    strcpy(run->nvme_dir, scratch_path(folder));
    run->settings = (struct train_settings){
        .data_dir = tiny_data(300),
        .precision = PRECISION_FP32,
        .seq = 16,
        .batch = 2,
        .accum = 1,
        .seed = 7,
        .optim = {.lr = 1e-2,
                  .min_lr = 1e-3,
                  .warmup_steps = 4,
                  .total_steps = 20,
                  .beta1 = 0.9,
                  .beta2 = 0.95,
                  .eps = 1e-8,
                  .weight_decay = 0.1,
                  .clip = 1.0},
        .run_dir = run->run_dir,
        .ram_budget = GIB,
        .nvme_budget = GIB,
        .resident_planes = PLACE_RESIDENT_AUTO,
        .threads = 1,
        .steps = 20,
        .record = empty_record(),
    };
    tiny_config(&run->settings.config, 3, 64, 0);
}

void tiny_train(struct tiny_run *run)
{
    struct err err;
    if (train_run(&run->settings, &err) != 0)
        fail_msg("%s: %s", run->run_dir, err.message);
}

/* The program's own memory counts, and in a process that has run others before it moves from one
 * try to the next: a sanitizer's heap by megabytes, since it keeps what was freed. */
static uint64_t headroom(void)
{
    return mem_heap_has_stats() ? 0 : 24 * MIB;
}

void tiny_train_least(struct tiny_run *run)
{
    struct train_settings *s = &run->settings;
    struct err err;
    s->ram_budget = MIB;
    s->vram_budget = MIN(s->vram_budget, KIB);
    for (int i = 0; i < TRIES_MAX; i++) {
        if (train_run(s, &err) == 0)
            return;
        bool vram = strstr(err.message, "--vram-budget") != NULL;
        if (vram)
            s->vram_budget = tiny_flag(err.message, "--vram-budget");
        else
            s->ram_budget = tiny_flag(err.message, "--ram-budget") + headroom();
    }
    fail_msg("no budget works: %s", err.message);
}

void tiny_train_part(struct tiny_run *run)
{
    struct train_settings *s = &run->settings;
    struct err err;
    s->resident_planes = PLACE_RESIDENT_DEVICE;
    s->vram_budget = KIB;
    if (train_run(s, &err) == 0)
        fail_msg("%s: runs in no VRAM", run->run_dir);
    s->vram_budget = tiny_flag(err.message, "--vram-budget") + MIB / 2;
    tiny_train(run);
}

static char *read_plan(const struct tiny_run *run)
{
    struct err err;
    char path[FILE_PATH_MAX];
    require(file_join(path, run->run_dir, "plan.txt", &err), &err);
    return scratch_read(path);
}

int tiny_device_share(const struct tiny_run *run)
{
    static const char label[] = "state on the device, and updated there: ";
    char *text = read_plan(run), *found = strstr(text, label);
    int share = found ? atoi(found + sizeof(label) - 1) : 0;
    free(text);
    return share;
}

bool tiny_head_once(const struct tiny_run *run)
{
    char *text = read_plan(run);
    bool once = strstr(text, "logits are computed once") != NULL;
    free(text);
    return once;
}

/* Calls fn with every line of metrics.jsonl. */
static void each_line(const struct tiny_run *run,
                      void (*fn)(void *context, const struct json_value *line), void *context)
{
    struct err err;
    char path[FILE_PATH_MAX];
    require(file_join(path, run->run_dir, "metrics.jsonl", &err), &err);
    char *text = scratch_read(path), *rest = text;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        struct json_value *value = json_parse(line, strlen(line), path, &err);
        if (!value)
            fail_msg("%s", err.message);
        fn(context, value);
        json_free(value);
    }
    free(text);
}

static void log_line_of(void *out, const struct json_value *line)
{
    if (json_get(line, "commit"))
        fprintf(out, "commit %" PRId64 " %s\n", json_get_int(line, "commit", -1),
                json_get_string(line, "weights_hash", "?"));
    else
        fprintf(out, "step %" PRId64 " %.17g %.17g\n", json_get_int(line, "step", -1),
                json_get_number(line, "loss", -1), json_get_number(line, "grad_norm", -1));
}

char *tiny_log(const struct tiny_run *run)
{
    char *log = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&log, &bytes);
    ASSERT(out != NULL);
    each_line(run, log_line_of, out);
    fclose(out);
    return log;
}

struct wanted {
    uint64_t step;
    const char *name;
    double value;
};

static void find_number(void *context, const struct json_value *line)
{
    struct wanted *wanted = context;
    if (json_get_int(line, "step", -1) == (int64_t)wanted->step)
        wanted->value = json_get_number(line, wanted->name, -1);
}

double tiny_number(const struct tiny_run *run, uint64_t step, const char *name)
{
    struct wanted wanted = {step, name, -1};
    each_line(run, find_number, &wanted);
    return wanted.value;
}

uint64_t tiny_hash(const struct tiny_run *run, uint64_t *step)
{
    struct err err;
    struct checkpoint_manifest manifest;
    int result = checkpoint_load(&manifest, run->run_dir, NULL, &err);
    if (result == 1)
        fail_msg("%s has no commit", run->run_dir);
    require(result, &err);
    uint64_t hash = manifest.weights_hash;
    *step = manifest.step;
    checkpoint_unload(&manifest);
    return hash;
}

int tiny_fork(void (*fn)(void *context), void *context, char **output)
{
    static unsigned number;
    char name[64];
    snprintf(name, sizeof(name), "child-%u.err", number++);
    const char *path = scratch_write(name, "");
    fflush(NULL);
    pid_t child = fork();
    ASSERT(child >= 0);
    if (child == 0) {
        ASSERT(freopen(path, "a", stderr) && freopen("/dev/null", "w", stdout));
        fn(context);
        _exit(0);
    }
    int status;
    ASSERT(waitpid(child, &status, 0) == child);
    *output = scratch_read(path);
    unlink(path);
    return status;
}
