#include "io/dataset.h"
#include "core/base.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/file.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DATASET_FORMAT      "spillway dataset"
#define DATASET_VERSION     1
#define TOKENIZER_BYTES_MAX (1 * GIB)
#define HASH_TEXT_BYTES     17
#define PREPARE_AGAIN       "prepare the text again with `spillway prep`"

static void hash_to_text(char text[HASH_TEXT_BYTES], uint64_t hash)
{
    snprintf(text, HASH_TEXT_BYTES, "%016" PRIx64, hash);
}

/* The hash of the tokenizer file's bytes: telling whether it is the file that was sealed costs
 * milliseconds this way, and building the tokenizer would cost its memory. */
static int tokenizer_file_hash(const char *dir, char text[HASH_TEXT_BYTES], struct err *err)
{
    char path[FILE_PATH_MAX];
    char *data;
    size_t bytes;
    int code = file_join(path, dir, DATASET_TOKENIZER_FILE, err);
    if (code == 0)
        code = file_read_all(path, TOKENIZER_BYTES_MAX, &data, &bytes, err);
    if (code != 0)
        return code;
    hash_to_text(text, hash_bytes(data, bytes, 0));
    mem_free(data);
    return 0;
}

static int open_shard(struct shard *shard, const char *dir, const char *name, struct err *err)
{
    char path[FILE_PATH_MAX];
    int code = file_join(path, dir, name, err);
    return code == 0 ? shard_open(shard, path, err) : code;
}

static int open_shards(struct dataset *dataset, const char *dir, struct err *err)
{
    int code = open_shard(&dataset->train, dir, DATASET_TRAIN_FILE, err);
    if (code == 0 && dataset->has_val)
        code = open_shard(&dataset->val, dir, DATASET_VAL_FILE, err);
    if (code != 0)
        return code;
    dataset->vocab = dataset->train.vocab_size;
    dataset->tokenizer_hash = dataset->train.tokenizer_hash;
    return 0;
}

/* ---------------------------------------------------------------------------------------------
 * Opening
 * ------------------------------------------------------------------------------------------- */

static int check_shard(const struct shard *shard, const struct json_value *root, const char *side,
                       struct err *err)
{
    char hash[HASH_TEXT_BYTES];
    hash_to_text(hash, shard->tokenizer_hash);
    int64_t tokens = json_get_int(json_get(root, "tokens"), side, -1);
    int64_t documents = json_get_int(json_get(root, "documents"), side, -1);
    if (tokens >= 0 && (uint64_t)tokens == shard->token_count && documents >= 0 &&
        (uint64_t)documents == shard->document_count &&
        json_get_int(root, "vocab_size", -1) == (int64_t)shard->vocab_size &&
        strcmp(json_get_string(root, "tokenizer_hash", ""), hash) == 0)
        return 0;
    return err_set(err, ERR_CORRUPT,
                   "%s does not belong to the " DATASET_FILE " beside it (other counts, vocabulary "
                   "or tokenizer): " PREPARE_AGAIN,
                   shard->path);
}

static int check_files(const struct dataset *dataset, const struct json_value *root,
                       const char *dir, struct err *err)
{
    char hash[HASH_TEXT_BYTES];
    int code = check_shard(&dataset->train, root, "train", err);
    if (code == 0 && dataset->has_val)
        code = check_shard(&dataset->val, root, "val", err);
    if (code == 0)
        code = tokenizer_file_hash(dir, hash, err);
    if (code == 0 && strcmp(json_get_string(root, "tokenizer_file_hash", ""), hash) != 0)
        code = err_set(err, ERR_CORRUPT,
                       "%s/" DATASET_TOKENIZER_FILE " is not the tokenizer that "
                       "the tokens beside it were made with: put that one back, or " PREPARE_AGAIN,
                       dir);
    return code;
}

static int check_root(const struct json_value *root, const char *path, struct err *err)
{
    if (strcmp(json_get_string(root, "format", ""), DATASET_FORMAT) != 0)
        return err_set(err, ERR_INPUT,
                       "%s was not written by `spillway prep`: give --data a "
                       "folder that it has prepared",
                       path);
    int64_t version = json_get_int(root, "version", -1);
    if (version != DATASET_VERSION)
        return err_set(err, ERR_INPUT,
                       "%s is of version %" PRId64 ", and this program reads "
                       "version %d: " PREPARE_AGAIN,
                       path, version, DATASET_VERSION);
    return 0;
}

static int no_dataset(const char *dir, const char *path, struct err *err)
{
    char unfinished[FILE_PATH_MAX];
    int code = file_join(unfinished, dir, DATASET_UNFINISHED, err);
    if (code == 0 && file_exists(unfinished))
        return err_set(err, ERR_INPUT,
                       "%s is not finished (%s is missing): run the `spillway prep` that began it "
                       "once more, which goes on where it was",
                       dir, path);
    return err_set(err, ERR_INPUT,
                   "%s holds no prepared data (%s is missing): run `spillway "
                   "prep TEXT --out %s`, again if it was interrupted",
                   dir, path, dir);
}

int dataset_open(struct dataset *dataset, const char *dir, struct err *err)
{
    memset(dataset, 0, sizeof(*dataset));
    char path[FILE_PATH_MAX];
    int code = file_join(path, dir, DATASET_FILE, err);
    if (code != 0)
        return code;
    if (!file_exists(path))
        return no_dataset(dir, path, err);
    struct json_value *root = json_load(path, err);
    if (root == NULL)
        return err->code;
    dataset->has_val = json_get(json_get(root, "tokens"), "val") != NULL;
    code = check_root(root, path, err);
    if (code == 0)
        code = open_shards(dataset, dir, err);
    if (code == 0)
        code = check_files(dataset, root, dir, err);
    if (code != 0)
        dataset_close(dataset);
    json_free(root);
    return code;
}

void dataset_close(struct dataset *dataset)
{
    shard_close(&dataset->train);
    shard_close(&dataset->val);
    memset(dataset, 0, sizeof(*dataset));
}

/* ---------------------------------------------------------------------------------------------
 * Sealing
 * ------------------------------------------------------------------------------------------- */

int dataset_unseal(const char *dir, struct err *err)
{
    char path[FILE_PATH_MAX];
    int code = file_join(path, dir, DATASET_FILE, err);
    if (code != 0)
        return code;
    if (unlink(path) != 0 && errno != ENOENT)
        return err_set_errno(err, errno, "cannot remove %s", path);
    return file_sync_dir(dir, err);
}

static struct json_value *both_sides(const struct dataset *dataset, uint64_t train, uint64_t val)
{
    struct json_value *sides = json_new_object();
    json_set_int(sides, "train", (int64_t)train);
    if (dataset->has_val)
        json_set_int(sides, "val", (int64_t)val);
    return sides;
}

static struct json_value *describe(const struct dataset *dataset, const char *file_hash)
{
    char hash[HASH_TEXT_BYTES];
    hash_to_text(hash, dataset->tokenizer_hash);
    struct json_value *root = json_new_object();
    json_set_string(root, "format", DATASET_FORMAT);
    json_set_int(root, "version", DATASET_VERSION);
    json_set_int(root, "vocab_size", dataset->vocab);
    json_set_string(root, "tokenizer_hash", hash);
    json_set_string(root, "tokenizer_file_hash", file_hash);
    json_set(root, "documents",
             both_sides(dataset, dataset->train.document_count, dataset->val.document_count));
    json_set(root, "tokens",
             both_sides(dataset, dataset->train.token_count, dataset->val.token_count));
    return root;
}

int dataset_seal(const char *dir, bool has_val, struct json_value *details, struct err *err)
{
    struct dataset dataset = {.has_val = has_val};
    struct json_value *root = NULL;
    char path[FILE_PATH_MAX], file_hash[HASH_TEXT_BYTES];
    int code = open_shards(&dataset, dir, err);
    if (code == 0)
        code = tokenizer_file_hash(dir, file_hash, err);
    if (code == 0)
        code = file_join(path, dir, DATASET_FILE, err);
    if (code != 0)
        goto out;
    ASSERT(!has_val || dataset.val.tokenizer_hash == dataset.tokenizer_hash);
    root = describe(&dataset, file_hash);
    json_set(root, "prepared", details);
    details = NULL;
    code = json_save(root, path, err);
out:
    json_free(root);
    json_free(details);
    dataset_close(&dataset);
    return code;
}
