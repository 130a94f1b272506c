/*
 * Property: an exported folder holds the run's weights bit for bit under GPT-2's names, is a model
 * that train starts from at the same weights_hash, and is never half an export: whatever goes
 * wrong, the folder holds the old model, the new one, or none.
 * Method: a model whose tensors straddle chunks; damage to the state file; death by a limit on file
 * size, whose signal kills in the middle of a write.
 */
#include "core/base.h"
#include "core/float.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/safetensors.h"
#include "offload/infer.h"
#include "tests/shared/check.h"
#include "tests/shared/command.h"
#include "tests/shared/scratch.h"
#include "tools/commands.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int setup(void **state)
{
    (void)state;
    struct config ignored;
    command_data("data", 1);
    /* Blocks of 12 x 160^2 parameters: more than a chunk. */
    command_model(&ignored, "wide", 2, 160, 32, COMMAND_VOCAB + 33);
    command_must(train_main, "train --model @/wide.json --data @/data --out @/run --nvme @/nvme "
                             "--seq 16 --batch 2 --steps 3 --lr 1e-3 --precision fp32");
    command_must(export_main, "export --run @/run --out @/hf");
    return 0;
}

/* ---- What is exported ------------------------------------------------------------------------ */

struct group_copy {
    float **values; /* [group]: its vector, from the planes */
};

static int read_groups(void *context, struct checkpoint_reader *reader, struct err *err)
{
    struct group_copy *copy = context;
    const struct layout *layout = reader->layout;
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        const struct layout_chunk *chunk = &layout->chunks[c];
        uint16_t *planes = mem_alloc(2 * chunk->count, sizeof(*planes));
        int result = checkpoint_read(reader, c, PLANE_HI, 2, planes, err);
        for (uint64_t i = 0; i < chunk->count; i++)
            copy->values[chunk->group][chunk->first + i] =
                float_join(planes[i], (int16_t)planes[chunk->count + i]);
        mem_free(planes);
        if (result)
            return result;
    }
    return 0;
}

static void compare_tensor(const struct safetensors *file, const struct tensor *tensor,
                           const float *expected)
{
    struct err err;
    const struct safetensors_tensor *found = safetensors_find(file, tensor->name);
    if (!found || found->element_count != tensor->count)
        fail_msg("%s is missing or of another size", tensor->name);
    assert_int_equal(found->dim_count, tensor->dim_count);
    assert_int_equal(found->shape[0], tensor->shape[0]);
    float *values = mem_alloc(tensor->count, sizeof(*values));
    assert_int_equal(safetensors_read(file, found, 0, values, tensor->count, &err), 0);
    assert_memory_equal(values, expected, tensor->count * sizeof(*values));
    mem_free(values);
}

static void test_weights(void **state)
{
    (void)state;
    struct err err;
    struct infer_model model;
    struct safetensors *file;
    assert_int_equal(infer_model_open(&model, scratch_path("run"), NULL, &err), 0);
    assert_true(model.layout.block_chunks >= 2);
    struct group_copy copy = {mem_alloc(model.tensors.group_count, sizeof(*copy.values))};
    for (uint32_t g = 0; g < model.tensors.group_count; g++)
        copy.values[g] = mem_alloc(model.tensors.groups[g].parameter_count + LAYOUT_PAD, 4);
    assert_int_equal(infer_read_commit(&model, read_groups, &copy, &err), 0);
    assert_int_equal(safetensors_open(&file, scratch_path("hf"), &err), 0);
    assert_int_equal(safetensors_count(file), model.tensors.count);
    for (uint32_t t = 0; t < model.tensors.count; t++) {
        const struct tensor *tensor = &model.tensors.list[t];
        compare_tensor(file, tensor, copy.values[tensor->group] + tensor->offset);
    }
    safetensors_close(file);
    for (uint32_t g = 0; g < model.tensors.group_count; g++)
        mem_free(copy.values[g]);
    mem_free(copy.values);
    infer_model_close(&model);
}

static void test_config(void **state)
{
    (void)state;
    struct err err;
    struct json_value *root = json_load(scratch_path("hf/config.json"), &err);
    assert_non_null(root);
    assert_string_equal(json_get_string(root, "model_type", ""), "gpt2");
    assert_string_equal(json_string(json_at(json_get(root, "architectures"), 0)),
                        "GPT2LMHeadModel");
    assert_string_equal(json_get_string(root, "activation_function", ""), "gelu_new");
    assert_int_equal(json_get_int(root, "vocab_size", -1), COMMAND_VOCAB + 33);
    assert_int_equal(json_get_int(root, "n_positions", -1), 32);
    assert_int_equal(json_get_int(root, "n_embd", -1), 160);
    assert_int_equal(json_get_int(root, "n_layer", -1), 2);
    assert_int_equal(json_get_int(root, "n_head", -1), 10);
    assert_int_equal(json_get_int(root, "eos_token_id", -1), 0);
    assert_int_equal(json_get_int(root, "bos_token_id", -1), 0);
    assert_true(json_get_bool(root, "tie_word_embeddings", false));
    const struct json_value *record = json_get(root, INFER_RECORD);
    assert_int_equal(json_get_int(record, "step", -1), 3);
    assert_int_equal(json_get_int(record, "seq", -1), 16);
    json_free(root);
    char *tokenizer = scratch_read(scratch_path("hf/tokenizer.json"));
    char *original = scratch_read(scratch_path("data/tokenizer.json"));
    assert_string_equal(tokenizer, original);
    free(original);
    free(tokenizer);
}

static uint64_t weights_hash(const char *run, uint64_t *step)
{
    struct err err;
    struct checkpoint_manifest manifest;
    assert_int_equal(checkpoint_load(&manifest, scratch_path(run), NULL, &err), 0);
    uint64_t hash = manifest.weights_hash;
    *step = manifest.step;
    checkpoint_unload(&manifest);
    return hash;
}

/* In both precisions: the master weights are exported, whatever is computed with. */
static void test_train_starts_from_it(void **state)
{
    (void)state;
    uint64_t step;
    uint64_t hash = weights_hash("run", &step);
    assert_int_equal(step, 3);
    command_must(train_main,
                 "train --model @/hf --data @/data --out @/again --nvme @/nvme --seq 16 "
                 "--steps 0 --precision bf16");
    assert_true(weights_hash("again", &step) == hash);
    assert_int_equal(step, 0);
}

/* ---- What goes wrong ------------------------------------------------------------------------- */

static void test_usage(void **state)
{
    (void)state;
    command_must(export_main, "export --help");
    assert_non_null(strstr(command_out(), "spillway export --run"));
    command_refused(export_main, "export", 2, "--run");
    command_refused(export_main, "export --run @/run", 2, "--out");
    command_refused(export_main, "export --run @/none --out @/never", 1, "@/none");
    command_refused(export_main, "export --run @/hf --out @/never", 1, "@/hf");
    assert_int_not_equal(access(scratch_path("never"), F_OK), 0);
}

static void test_foreign_folder(void **state)
{
    (void)state;
    scratch_write("mine/notes.txt", "not yours");
    command_refused(export_main, "export --run @/run --out @/mine", 1, "@/mine");
    scratch_write("mine/config.json", "{\"model_type\": \"gpt2\"}");
    command_refused(export_main, "export --run @/run --out @/mine", 1, "@/mine");
    command_refused(export_main, "export --run @/run --out @/run", 1, "@/run");
    command_refused(export_main, "export --run @/run --out @/mine/notes.txt", 1, "notes.txt");
    char *notes = scratch_read(scratch_path("mine/notes.txt"));
    assert_string_equal(notes, "not yours");
    free(notes);
    assert_int_not_equal(access(scratch_path("mine/model.safetensors"), F_OK), 0);
}

/* Dies with the first byte beyond file_bytes_max of any file. */
static void export_and_die(const char *out, rlim_t file_bytes_max)
{
    char run[4096], to[4096];
    snprintf(run, sizeof(run), "%s", scratch_path("run"));
    snprintf(to, sizeof(to), "%s", scratch_path(out));
    char *argv[] = {"export", "--run", run, "--out", to, NULL};
    fflush(NULL);
    pid_t child = fork();
    ASSERT(child >= 0);
    if (child == 0) {
        struct rlimit limit = {file_bytes_max, file_bytes_max}, no_core = {0, 0};
        ASSERT(setrlimit(RLIMIT_CORE, &no_core) == 0 && setrlimit(RLIMIT_FSIZE, &limit) == 0);
        _exit(export_main(5, argv));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ);
}

static void assert_same_file(const char *a, const char *b)
{
    struct err err;
    char *a_data, *b_data;
    size_t a_bytes, b_bytes;
    assert_int_equal(file_read_all(scratch_path(a), GIB, &a_data, &a_bytes, &err), 0);
    assert_int_equal(file_read_all(scratch_path(b), GIB, &b_data, &b_bytes, &err), 0);
    assert_int_equal(a_bytes, b_bytes);
    assert_memory_equal(a_data, b_data, a_bytes);
    mem_free(a_data);
    mem_free(b_data);
}

static void test_killed(void **state)
{
    (void)state;
    /* A first export: no model, and the folder is taken again afterwards. */
    export_and_die("killed", 100000);
    assert_int_not_equal(access(scratch_path("killed/config.json"), F_OK), 0);
    assert_int_not_equal(access(scratch_path("killed/model.safetensors"), F_OK), 0);
    command_refused(train_main, "train --model @/killed --data @/data --out @/x --seq 16 --steps 0",
                    1, "killed");
    command_must(export_main, "export --run @/run --out @/killed");
    assert_same_file("killed/model.safetensors", "hf/model.safetensors");
    assert_same_file("killed/config.json", "hf/config.json");
    assert_int_not_equal(access(scratch_path("killed/model.safetensors.tmp"), F_OK), 0);
    assert_int_not_equal(access(scratch_path("killed/config.json.new"), F_OK), 0);
    /* Over an earlier one: that stays whole. */
    export_and_die("killed", 100000);
    assert_same_file("killed/model.safetensors", "hf/model.safetensors");
    assert_same_file("killed/config.json", "hf/config.json");
}

/* Offset in the state file of a plane of the committed state. */
static uint64_t plane_offset(uint32_t chunk, uint32_t plane, char state_path[FILE_PATH_MAX])
{
    struct err err;
    struct infer_model model;
    struct checkpoint_manifest manifest;
    assert_int_equal(infer_model_open(&model, scratch_path("run"), NULL, &err), 0);
    assert_int_equal(checkpoint_load(&manifest, scratch_path("run"), &model.layout, &err), 0);
    strcpy(state_path, manifest.files.path[0]);
    const struct layout_chunk *c = &model.layout.chunks[chunk];
    uint64_t offset = manifest.slot * model.layout.slot_bytes + c->offset +
                      layout_plane_offset(&model.layout, c->count, plane);
    checkpoint_unload(&manifest);
    infer_model_close(&model);
    return offset;
}

static void flip_byte(const char *path, uint64_t offset)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, &byte, 1, (off_t)offset), 1);
    byte ^= 4;
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)offset), 1);
    close(fd);
}

static void test_damaged_run(void **state)
{
    (void)state;
    char state_path[FILE_PATH_MAX], said[64];
    uint64_t offset = plane_offset(3, PLANE_LO, state_path);
    snprintf(said, sizeof(said), "offset %" PRIu64 " ", offset);
    flip_byte(state_path, offset + 5);
    command_refused(export_main, "export --run @/run --out @/damaged", 1, said);
    assert_int_not_equal(access(scratch_path("damaged/model.safetensors"), F_OK), 0);
    assert_int_not_equal(access(scratch_path("damaged/config.json"), F_OK), 0);
    command_refused(export_main, "export --run @/run --out @/hf", 1, said);
    flip_byte(state_path, offset + 5);
    /* The earlier export was left as it was, and what failed does not stand in the way. */
    command_must(export_main, "export --run @/run --out @/damaged");
    assert_same_file("damaged/model.safetensors", "hf/model.safetensors");
    /* Moments are no part of a model. */
    offset = plane_offset(1, PLANE_V, state_path);
    flip_byte(state_path, offset);
    command_must(export_main, "export --run @/run --out @/damaged");
    assert_same_file("damaged/model.safetensors", "hf/model.safetensors");
    flip_byte(state_path, offset);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_weights),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_train_starts_from_it),
        cmocka_unit_test(test_usage),
        cmocka_unit_test(test_foreign_folder),
        cmocka_unit_test(test_killed),
        cmocka_unit_test(test_damaged_run),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
