#include "offload/record.h"

#include "core/base.h"
#include "core/hash.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/file.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Members in the order in which the hash takes them; what is not listed means nothing. */
static const char *const members[] = {"model", "precision", "text", "options", "moments"};

/* Of the members' texts as this program writes them, so that spaces and line ends do not count. */
static void hash_members(const struct json_value *root, char hash_text[32])
{
    uint64_t hash = 0;
    for (size_t i = 0; i < ARRAY_COUNT(members); i++) {
        const struct json_value *member = json_get(root, members[i]);
        const char *string = json_string(member);
        char *text = string ? mem_strdup(string) : member ? json_text(member, false) : NULL;
        if (text)
            hash = hash_bytes(text, strlen(text), hash + i);
        mem_free(text);
    }
    snprintf(hash_text, 32, "%016" PRIx64, hash);
}

int record_save(struct json_value *root, const char *run_dir, struct err *err)
{
    char path[FILE_PATH_MAX], hash[32];
    int result = file_join(path, run_dir, RECORD_FILE, err);
    if (result)
        return result;
    hash_members(root, hash);
    json_set_string(root, "hash", hash);
    return json_save(root, path, err);
}

int record_load(struct json_value **root, const char *run_dir, struct err *err)
{
    char path[FILE_PATH_MAX], hash[32];
    *root = NULL;
    int result = file_join(path, run_dir, RECORD_FILE, err);
    if (result)
        return result;
    if (!file_exists(path))
        return 1;
    *root = json_load(path, err);
    if (!*root)
        return err->code;
    if (!json_get(*root, "model") || !json_get(*root, "options")) {
        json_free(*root);
        *root = NULL;
        return err_set(err, ERR_INPUT,
                       "%s is not the config.json of a run: give --run a folder that 'spillway "
                       "train' made, or --model a Hugging Face folder",
                       path);
    }
    hash_members(*root, hash);
    if (strcmp(hash, json_get_string(*root, "hash", "")) == 0)
        return 0;
    json_free(*root);
    *root = NULL;
    return err_set(err, ERR_CORRUPT,
                   "%s is damaged or was edited: it does not agree with its own hash; put the "
                   "original back (each folder in kept/ has the same one)",
                   path);
}
