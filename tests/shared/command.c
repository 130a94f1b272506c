#include "tests/shared/command.h"

#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "core/rng.h"
#include "io/bpe.h"
#include "io/dataset.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "tests/shared/check.h"
#include "tests/shared/scratch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORDS_MAX      40
#define LINE_BYTES_MAX 8192
#define TRAIN_TOKENS   4000
#define VAL_TOKENS     700

static void require(int result, const struct err *err)
{
    if (result != 0)
        fail_msg("%s", err->message);
}

/* ---- Commands -------------------------------------------------------------------------------- */

static void expand(char *to, size_t size, const char *from)
{
    size_t used = 0;
    for (const char *c = from; *c; c++) {
        const char *text = *c == '@' ? scratch_dir() : (const char[]){*c, '\0'};
        used += (size_t)snprintf(to + used, size - used, "%s", text);
        ASSERT(used < size);
    }
    to[used] = '\0';
}

static char *said_out, *said_err;

const char *command_out(void)
{
    return said_out;
}

const char *command_err(void)
{
    return said_err;
}

int command_run(int (*main)(int argc, char **argv), const char *line)
{
    char words[LINE_BYTES_MAX], *argv[WORDS_MAX + 1] = {NULL};
    int argc = 0;
    expand(words, sizeof(words), line);
    for (char *word = strtok(words, " "); word; word = strtok(NULL, " ")) {
        ASSERT(argc < WORDS_MAX);
        argv[argc++] = word;
    }
    fflush(NULL);
    pid_t child = fork();
    ASSERT(child >= 0);
    if (child == 0) {
        ASSERT(freopen(scratch_path("command.out"), "w", stdout));
        ASSERT(freopen(scratch_path("command.err"), "w", stderr));
        /* exit and not _exit: the sanitizer looks for leaks then. */
        exit(main(argc, argv));
    }
    int status;
    ASSERT(waitpid(child, &status, 0) == child);
    free(said_out);
    free(said_err);
    said_out = scratch_read(scratch_path("command.out"));
    said_err = scratch_read(scratch_path("command.err"));
    if (!WIFEXITED(status))
        fail_msg("%s: ended by signal %d: %s", line, WTERMSIG(status), said_err);
    return WEXITSTATUS(status);
}

void command_must(int (*main)(int argc, char **argv), const char *line)
{
    int status = command_run(main, line);
    if (status != 0)
        fail_msg("%s: status %d: %s", line, status, said_err);
}

void command_refused(int (*main)(int argc, char **argv), const char *line, int status,
                     const char *what)
{
    char wanted[LINE_BYTES_MAX];
    expand(wanted, sizeof(wanted), what);
    int got = command_run(main, line);
    const char *sentence = strstr(said_err, "spillway: ");
    if (got != status || !sentence || strstr(sentence + 1, "spillway: ") ||
        !strstr(sentence, wanted))
        fail_msg("%s: status %d instead of %d, or no sentence that says '%s': %s", line, got,
                 status, wanted, said_err);
}

/* ---- Data ------------------------------------------------------------------------------------ */

/* Text of `bytes` bytes at least: words in an order that a small model can learn something of. */
static char *make_text(uint64_t seed, size_t bytes)
{
    static const char *const words[] = {"voda", "mlýn", "obilí", "řeka", "chleba", "večer",
                                        "lípa", "pes",  "děti",  "vítr", "listí",  "krajina"};
    char *text = mem_alloc(bytes + 64, 1);
    size_t used = 0, word = 0;
    for (uint64_t i = 0; used < bytes; i++) {
        uint64_t random = rng_u64(seed, RNG_STREAM_SAMPLE, i);
        word = random % 4 ? (word * 5 + 1) % ARRAY_COUNT(words) : random / 4 % ARRAY_COUNT(words);
        used += (size_t)sprintf(text + used, "%s%s", words[word], random % 7 ? " " : ".\n");
    }
    return text;
}

static void write_shard(const char *dir, const char *name, const struct bpe *bpe, const char *text,
                        uint32_t count)
{
    struct err err;
    char path[FILE_PATH_MAX];
    struct shard_writer *writer;
    size_t bytes = strlen(text);
    uint32_t *tokens = mem_alloc(bytes, sizeof(*tokens)), end = bpe_end_of_text(bpe);
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    ASSERT(bpe_encode(encoder, text, bytes, tokens, bytes) >= count);
    require(file_join(path, dir, name, &err), &err);
    require(shard_writer_open(&writer, path, bpe_vocab_size(bpe), bpe_hash(bpe), &err), &err);
    require(shard_writer_append(writer, tokens, count, &err), &err);
    require(shard_writer_append(writer, &end, 1, &err), &err);
    shard_writer_end_document(writer);
    require(shard_writer_close(writer, &err), &err);
    bpe_encoder_free(encoder);
    mem_free(tokens);
}

void command_data(const char *name, uint64_t seed)
{
    struct err err;
    struct bpe *bpe;
    const char *dir = scratch_path(name);
    char *text = make_text(seed, 8 * TRAIN_TOKENS), *val = make_text(seed + 1, 8 * VAL_TOKENS);
    struct bpe_trainer *trainer = bpe_trainer_new(PRETOKEN_GPT2);
    bpe_trainer_add(trainer, text, strlen(text));
    require(bpe_train(&bpe, trainer, COMMAND_VOCAB, &err), &err);
    require(file_make_dirs(dir, &err), &err);
    require(bpe_save(bpe, dir, &err), &err);
    write_shard(dir, DATASET_TRAIN_FILE, bpe, text, TRAIN_TOKENS);
    write_shard(dir, DATASET_VAL_FILE, bpe, val, VAL_TOKENS);
    require(dataset_seal(dir, true, json_new_object(), &err), &err);
    bpe_free(bpe);
    bpe_trainer_free(trainer);
    mem_free(val);
    mem_free(text);
}

/* ---- Models ---------------------------------------------------------------------------------- */

void command_model(struct config *config, const char *name, uint32_t layers, uint32_t channels,
                   uint32_t positions, uint32_t vocab)
{
    struct err err;
    char file[128];
    *config = (struct config){
        .layers = layers,
        .channels = channels,
        .heads = channels / 16,
        .positions = positions,
        .vocab = vocab,
        .norm_epsilon = 1e-5f,
    };
    config_derive(config);
    snprintf(config->name, sizeof(config->name), "%s", name);
    snprintf(file, sizeof(file), "%s.json", name);
    struct json_value *root = config_to_json(config);
    require(json_save(root, scratch_path(file), &err), &err);
    json_free(root);
}

static void describe(const struct tensors *tensors, struct safetensors_tensor *list)
{
    for (uint32_t t = 0; t < tensors->count; t++) {
        const struct tensor *from = &tensors->list[t];
        strcpy(list[t].name, from->name);
        list[t].dim_count = from->dim_count;
        list[t].element_count = from->count;
        for (uint32_t d = 0; d < from->dim_count; d++)
            list[t].shape[d] = from->shape[d];
    }
}

static void copy_tokenizer(const char *data, const char *dir)
{
    struct err err;
    char from[FILE_PATH_MAX], to[FILE_PATH_MAX];
    require(file_join(from, scratch_path(data), DATASET_TOKENIZER_FILE, &err), &err);
    require(file_join(to, dir, DATASET_TOKENIZER_FILE, &err), &err);
    char *text = scratch_read(from);
    require(file_replace(to, text, strlen(text), &err), &err);
    free(text);
}

void command_folder(const char *name, const struct config *config, const char *data,
                    float (*value)(const void *context, const struct tensors *tensors,
                                   uint32_t tensor, uint64_t index),
                    const void *context)
{
    struct err err;
    struct tensors tensors;
    char dir[FILE_PATH_MAX], path[FILE_PATH_MAX];
    struct safetensors_writer *writer;
    snprintf(dir, sizeof(dir), "%s", scratch_path(name));
    require(file_make_dirs(dir, &err), &err);
    tensors_init(&tensors, config);
    struct safetensors_tensor *list = mem_alloc(tensors.count, sizeof(*list));
    describe(&tensors, list);
    require(file_join(path, dir, "model.safetensors", &err), &err);
    require(safetensors_writer_open(&writer, path, list, tensors.count, &err), &err);
    for (uint32_t t = 0; t < tensors.count; t++) {
        float *values = mem_alloc(tensors.list[t].count, sizeof(*values));
        for (uint64_t i = 0; i < tensors.list[t].count; i++)
            values[i] = value(context, &tensors, t, i);
        require(safetensors_writer_add(writer, values, tensors.list[t].count, &err), &err);
        mem_free(values);
    }
    require(safetensors_writer_close(writer, &err), &err);
    struct json_value *root = config_to_json(config);
    require(file_join(path, dir, "config.json", &err), &err);
    require(json_save(root, path, &err), &err);
    json_free(root);
    copy_tokenizer(data, dir);
    mem_free(list);
    tensors_deinit(&tensors);
}
