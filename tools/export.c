/*
 * spillway export: the last commit of a run as a Hugging Face folder.
 *
 * A folder is a model when its config.json is there. So config.json waits as config.json.new, which
 * also marks an export that was cut off; the weights are written beside what is there; and only
 * when they are whole is the old config.json removed, everything put in its place, and the new
 * config.json renamed last. Whatever kills an export, the folder holds the old model, the new one,
 * or none.
 */
#include "core/args.h"
#include "core/base.h"
#include "core/float.h"
#include "core/json.h"
#include "core/log.h"
#include "io/safetensors.h"
#include "offload/infer.h"
#include "tools/commands.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define TOKENIZER_BYTES_MAX GIB

struct export
{
    const char *run, *out;
    struct infer_model model;
    struct bpe *bpe;                    /* owned */
    struct safetensors_tensor *tensors; /* owned; [model.tensors.count] */
    uint16_t *stage;                    /* owned: hi and lo of a chunk */
    float *values;                      /* owned: its weights */
    uint64_t step, weights_hash;        /* out */
    char config_path[FILE_PATH_MAX], config_new[FILE_PATH_MAX];
    char weights_path[FILE_PATH_MAX];
    char tokenizer_from[FILE_PATH_MAX], tokenizer_to[FILE_PATH_MAX];
};

/* ---- The folder ------------------------------------------------------------------------------ */

static int find_paths(struct export *export, struct err *err)
{
    int result = file_join(export->config_path, export->out, "config.json", err);
    if (result == 0)
        result = file_join(export->config_new, export->out, "config.json.new", err);
    if (result == 0)
        result = file_join(export->weights_path, export->out, "model.safetensors", err);
    if (result == 0)
        result = file_join(export->tokenizer_to, export->out, "tokenizer.json", err);
    if (result == 0)
        result = file_join(export->tokenizer_from, export->run, "tokenizer.json", err);
    return result;
}

static bool has_record(const char *path)
{
    struct err ignored;
    struct json_value *root = file_exists(path) ? json_load(path, &ignored) : NULL;
    bool found = json_get(root, INFER_RECORD) != NULL;
    json_free(root);
    return found;
}

/* Nothing in it, but for what an export leaves that was killed in its first moment. */
static bool is_empty(const char *dir)
{
    static const char *const passed_over[] = {".", "..", "config.json.new.tmp"};
    DIR *entries = opendir(dir);
    if (!entries)
        return false;
    bool empty = true;
    for (struct dirent *entry; empty && (entry = readdir(entries));) {
        empty = false;
        for (size_t i = 0; i < ARRAY_COUNT(passed_over); i++)
            empty |= strcmp(entry->d_name, passed_over[i]) == 0;
    }
    closedir(entries);
    return empty;
}

static int check_out(const struct export *export, struct err *err)
{
    if (!file_exists(export->out) || is_empty(export->out))
        return 0;
    if (has_record(export->config_path) || has_record(export->config_new))
        return 0;
    return err_set(err, ERR_INPUT,
                   "%s is not empty and no earlier export: give --out a folder that is, or that is "
                   "not there yet",
                   export->out);
}

/* ---- Its files ------------------------------------------------------------------------------- */

/* Hugging Face's configuration, with the token that ends a text (GPT-2 begins one with it too) and
 * where the weights come from. */
static int save_config(const struct export *export, const struct checkpoint_manifest *manifest,
                       struct err *err)
{
    struct json_value *root = config_to_json(&export->model.config);
    uint32_t end = bpe_end_of_text(export->bpe);
    if (end != UINT32_MAX) {
        json_set_int(root, "bos_token_id", end);
        json_set_int(root, "eos_token_id", end);
    }
    json_set(root, INFER_RECORD, infer_record(&export->model, manifest));
    int result = json_save(root, export->config_new, err);
    json_free(root);
    return result;
}

static void name_tensors(struct export *export)
{
    const struct tensors *tensors = &export->model.tensors;
    export->tensors = mem_alloc(tensors->count, sizeof(*export->tensors));
    for (uint32_t t = 0; t < tensors->count; t++) {
        const struct tensor *from = &tensors->list[t];
        struct safetensors_tensor *to = &export->tensors[t];
        _Static_assert(sizeof(from->name) <= sizeof(to->name), "every name fits");
        strcpy(to->name, from->name);
        to->dim_count = from->dim_count;
        to->element_count = from->count;
        for (uint32_t d = 0; d < from->dim_count; d++)
            to->shape[d] = from->shape[d];
    }
}

/* The chunk's part of each of its group's tensors. Chunks in order give the tensors in canonical
 * order, each piece where the one before it ended. */
static int write_chunk(struct export *export, struct safetensors_writer *writer, uint32_t index,
                       struct err *err)
{
    const struct tensors *tensors = &export->model.tensors;
    const struct layout_chunk *chunk = &export->model.layout.chunks[index];
    const struct tensor_group *group = &tensors->groups[chunk->group];
    const int16_t *lo = (const int16_t *)export->stage + chunk->count;
    for (uint64_t i = 0; i < chunk->real_count; i++)
        export->values[i] = float_join(export->stage[i], lo[i]);
    for (uint32_t t = group->first_tensor; t < group->first_tensor + group->tensor_count; t++) {
        const struct tensor *tensor = &tensors->list[t];
        uint64_t from = MAX(chunk->first, tensor->offset);
        uint64_t to = MIN(chunk->first + chunk->real_count, tensor->offset + tensor->count);
        if (from >= to)
            continue;
        int result =
            safetensors_writer_add(writer, export->values + (from - chunk->first), to - from, err);
        if (result)
            return result;
    }
    return 0;
}

static int write_weights(struct export *export, struct safetensors_writer *writer,
                         struct checkpoint_reader *reader, struct err *err)
{
    uint32_t chunk_count = export->model.layout.chunk_count;
    struct log_progress progress;
    log_progress_start(&progress, "exporting", "chunks", chunk_count);
    int result = 0;
    for (uint32_t c = 0; c < chunk_count && result == 0; c++) {
        result = checkpoint_read(reader, c, PLANE_HI, 2, export->stage, err);
        if (result == 0)
            result = write_chunk(export, writer, c, err);
        log_progress_update(&progress, c + 1, NULL);
    }
    log_progress_end(&progress);
    return result;
}

/* tokenizer.json as it is, and GPT-2's two files beside it where they can say the same. */
static int copy_tokenizer(const struct export *export, struct err *err)
{
    char *text;
    size_t bytes;
    int result = file_read_all(export->tokenizer_from, TOKENIZER_BYTES_MAX, &text, &bytes, err);
    if (result == 0)
        result = file_replace(export->tokenizer_to, text, bytes, err);
    mem_free(text);
    return result ? result : bpe_save_gpt2(export->bpe, export->out, err);
}

/* The weights are whole: from here to the end the folder is no model. Takes the writer. */
static int put_in_place(const struct export *export, struct safetensors_writer *writer,
                        struct err *err)
{
    if (unlink(export->config_path) != 0 && errno != ENOENT) {
        safetensors_writer_abort(writer);
        return err_set_errno(err, errno, "cannot replace %s", export->config_path);
    }
    int result = safetensors_writer_close(writer, err);
    if (result == 0)
        result = copy_tokenizer(export, err);
    if (result == 0 && rename(export->config_new, export->config_path) != 0)
        result = err_set_errno(err, errno, "cannot make %s", export->config_path);
    return result ? result : file_sync_dir(export->out, err);
}

static int write_folder(void *context, struct checkpoint_reader *reader, struct err *err)
{
    struct export *export = context;
    struct safetensors_writer *writer = NULL;
    int result = file_make_dirs(export->out, err);
    if (result == 0)
        result = save_config(export, &reader->manifest, err);
    if (result == 0)
        result = safetensors_writer_open(&writer, export->weights_path, export->tensors,
                                         export->model.tensors.count, err);
    if (result == 0)
        result = write_weights(export, writer, reader, err);
    if (result) {
        safetensors_writer_abort(writer);
        unlink(export->config_new);
        return result;
    }
    export->step = reader->manifest.step;
    export->weights_hash = reader->manifest.weights_hash;
    return put_in_place(export, writer, err);
}

static void print_result(const struct export *export)
{
    char text[LOG_BYTES_MAX];
    printf("step %" PRIu64 " of %s, weights_hash %016" PRIx64 "\n", export->step, export->run,
           export->weights_hash);
    printf("written to %s: %" PRIu64 " parameters, %s\n", export->out,
           export->model.tensors.parameter_count,
           log_bytes(text, export->model.tensors.parameter_count * sizeof(float)));
}

static int run(struct export *export, struct err *err)
{
    int result = find_paths(export, err);
    if (result == 0)
        result = infer_model_open(&export->model, export->run, NULL, err);
    if (result == 0)
        result = bpe_load(&export->bpe, export->run, err);
    if (result == 0)
        result = check_out(export, err);
    if (result == 0) {
        name_tensors(export);
        uint64_t chunk_count_max = export->model.layout.chunk_count_max;
        export->stage = mem_alloc(2 * chunk_count_max, sizeof(*export->stage));
        export->values = mem_alloc(chunk_count_max, sizeof(*export->values));
        result = infer_read_commit(&export->model, write_folder, export, err);
    }
    if (result == 0)
        print_result(export);
    mem_free(export->values);
    mem_free(export->stage);
    mem_free(export->tensors);
    bpe_free(export->bpe);
    infer_model_close(&export->model);
    return result;
}

int export_main(int argc, char **argv)
{
    struct export export = {0};
    const struct args_option options[] = {
        {"run", ARGS_STRING, &export.run, "RUN",
         "a run's folder; its last commit is read, also while it is being trained", NULL},
        {"out", ARGS_STRING, &export.out, "HF_DIR",
         "a new or empty folder, or an earlier export, which is replaced", NULL},
    };
    struct args_command args = {
        .name = "export",
        .summary = "Writes a run as a Hugging Face folder: config.json, model.safetensors, "
                   "tokenizer.json (and vocab.json with merges.txt).",
        .usage = "--run RUN --out HF_DIR",
        .example = "spillway export --run run --out my-gpt",
        .options = options,
        .option_count = ARRAY_COUNT(options),
    };
    struct err err = {0};
    int result = args_parse(&args, argc, argv, &err);
    if (result == 0 && (!export.run || !export.out))
        result = err_set(&err, ERR_USAGE, "--%s is missing; see spillway export --help",
                         export.run ? "out" : "run");
    if (result == 0)
        result = run(&export, &err);
    return commands_status(result, &err);
}
