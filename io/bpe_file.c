/*
 * Reading tokenizers: Hugging Face's tokenizer.json and GPT-2's vocab.json + merges.txt; lists of
 * ranks are io/bpe_ranks.c's.
 *
 * What would make a tokenizer give other tokens than its own library gives is refused, never
 * ignored: another model than BPE, another pre-tokenisation than those of io/pretoken.h, a
 * normalizer, byte fallback, prefixes. Every byte must have a token; of the ids up to the greatest
 * a few may have none.
 */
#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/bpe.h"
#include "io/bpe_ranks.h"
#include "io/bpe_table.h"
#include "io/file.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define MERGES_BYTES_MAX (1 * GIB)
#define TOKEN_BYTES_MAX  (1u << 20)
/* Ids that no token has, which GPT-4's tokenizers have a dozen or two of. */
#define HOLES_MAX  1024
#define CHARACTERS 324 /* GPT-2's printable forms: U+0021 .. U+0143 */

/* A token as the file names it, before the ids are in order. */
struct named {
    const char *name; /* borrowed from the JSON */
    uint32_t flags;
};

struct loader {
    const char *path;          /* borrowed; for messages */
    struct named *named;       /* owned; by id */
    uint32_t count;            /* the greatest id that has a name, and one more */
    uint32_t capacity;         /* no id is >= this */
    int16_t bytes[CHARACTERS]; /* character -> byte, or -1 */
    struct bpe *bpe;
    struct err *err;
};

/* ---------------------------------------------------------------------------------------------
 * Names: GPT-2's printable form of bytes
 * ------------------------------------------------------------------------------------------- */

static void fill_characters(int16_t bytes[CHARACTERS])
{
    for (uint32_t i = 0; i < CHARACTERS; i++)
        bytes[i] = -1;
    for (uint32_t byte = 0; byte < 256; byte++)
        bytes[bpe_table_byte_character((uint8_t)byte)] = (int16_t)byte;
}

/* One character of valid UTF-8 below U+0800 (all that can be a byte), or UINT32_MAX. */
static uint32_t take_character(const char **name)
{
    const uint8_t *text = (const uint8_t *)*name;
    if (text[0] < 0x80) {
        *name += 1;
        return text[0];
    }
    if (text[0] < 0xc2 || text[0] > 0xdf || (text[1] & 0xc0) != 0x80)
        return UINT32_MAX;
    *name += 2;
    return (uint32_t)(text[0] & 0x1f) << 6 | (text[1] & 0x3f);
}

/* The bytes that a name stands for into text (as many as the name has are enough room); false where
 * a character stands for none. */
static bool name_to_bytes(const struct loader *loader, const char *name, char *text, size_t *bytes)
{
    size_t count = 0;
    while (*name != '\0') {
        uint32_t character = take_character(&name);
        if (character >= CHARACTERS || loader->bytes[character] < 0)
            return false;
        text[count++] = (char)loader->bytes[character];
    }
    *bytes = count;
    return true;
}

/* ---------------------------------------------------------------------------------------------
 * Reading the vocabulary
 * ------------------------------------------------------------------------------------------- */

static int name_token(struct loader *loader, const char *name, const struct json_value *value,
                      uint32_t flags)
{
    int64_t id = json_int(value, -1);
    size_t bytes = strlen(name);
    if (bytes == 0 || bytes > TOKEN_BYTES_MAX)
        return err_set(loader->err, ERR_INPUT, "%s: a token of %zu bytes is no token", loader->path,
                       bytes);
    if (id < 0 || id >= (int64_t)loader->capacity)
        return err_set(
            loader->err, ERR_INPUT,
            "%s: the token \"%.60s\" has the id %lld, and there are %u tokens, which must "
            "have the ids from 0 with hardly a hole",
            loader->path, name, (long long)id, loader->capacity - HOLES_MAX);
    struct named *named = &loader->named[id];
    if (named->name == NULL) {
        *named = (struct named){name, flags};
        loader->count = MAX(loader->count, (uint32_t)id + 1);
        return 0;
    }
    if (strcmp(named->name, name) != 0)
        return err_set(loader->err, ERR_INPUT,
                       "%s: the tokens \"%.60s\" and \"%.60s\" have the same id %lld", loader->path,
                       named->name, name, (long long)id);
    named->flags |= flags;
    return 0;
}

static int name_model_token(void *context, const char *name, const struct json_value *value)
{
    return name_token(context, name, value, BPE_TOKEN_MODEL);
}

static int name_added_tokens(struct loader *loader, const struct json_value *added)
{
    for (size_t i = 0; i < json_length(added); i++) {
        const struct json_value *token = json_at(added, i);
        const char *content = json_get_string(token, "content", "");
        uint32_t flags = BPE_TOKEN_ADDED;
        if (json_get_bool(token, "special", false))
            flags |= BPE_TOKEN_SPECIAL;
        int code = name_token(loader, content, json_get(token, "id"), flags);
        if (code != 0)
            return code;
    }
    return 0;
}

/* Ids come in any order in the file; the table takes them in theirs. */
static int add_named_tokens(struct loader *loader)
{
    int code = 0;
    char *text = mem_alloc(TOKEN_BYTES_MAX, 1);
    for (uint32_t id = 0; code == 0 && id < loader->count; id++) {
        const struct named *named = &loader->named[id];
        size_t bytes;
        if (named->name == NULL) {
            bpe_table_add_token(loader->bpe, "", 0, BPE_TOKEN_HOLE);
        } else if ((named->flags & BPE_TOKEN_MODEL) != 0 &&
                   name_to_bytes(loader, named->name, text, &bytes)) {
            bpe_table_add_token(loader->bpe, text, bytes, named->flags);
        } else if ((named->flags & BPE_TOKEN_ADDED) != 0) {
            bpe_table_add_token(loader->bpe, named->name, strlen(named->name),
                                (named->flags & ~(uint32_t)BPE_TOKEN_MODEL) | BPE_TOKEN_RAW);
        } else {
            code = err_set(loader->err, ERR_INPUT,
                           "%s: the token \"%.60s\" is not in GPT-2's byte form, so this is no "
                           "byte-level tokenizer",
                           loader->path, named->name);
        }
    }
    mem_free(text);
    return code;
}

static int load_vocabulary(struct loader *loader, const struct json_value *vocab,
                           const struct json_value *added)
{
    size_t most = json_length(vocab) + json_length(added);
    if (json_length(vocab) == 0 || most > BPE_VOCAB_MAX - HOLES_MAX)
        return err_set(loader->err, ERR_INPUT, "%s: a vocabulary of %zu tokens is none (1 to %u)",
                       loader->path, most, BPE_VOCAB_MAX - HOLES_MAX);
    loader->capacity = (uint32_t)most + HOLES_MAX;
    loader->named = mem_alloc(loader->capacity, sizeof(*loader->named));
    int code = json_each(vocab, name_model_token, loader);
    if (code == 0 && loader->count == 0)
        code = err_set(loader->err, ERR_INPUT, "%s names no tokens with their ids", loader->path);
    if (code == 0)
        code = name_added_tokens(loader, added);
    return code == 0 ? add_named_tokens(loader) : code;
}

/* ---------------------------------------------------------------------------------------------
 * Reading the merges
 * ------------------------------------------------------------------------------------------- */

static int refuse_merge(struct loader *loader, size_t number, const char *why)
{
    return err_set(loader->err, ERR_INPUT, "%s: merge %zu %s", loader->path, number, why);
}

/* left and right are names; text has room for both. */
static int add_merge(struct loader *loader, size_t number, const char *left, const char *right,
                     char *text)
{
    size_t left_bytes, right_bytes;
    struct bpe *bpe = loader->bpe;
    if (!name_to_bytes(loader, left, text, &left_bytes) ||
        !name_to_bytes(loader, right, text + left_bytes, &right_bytes))
        return refuse_merge(loader, number, "is not in GPT-2's byte form");
    struct bpe_merge merge = {
        .left = bpe_table_find_token(bpe, text, left_bytes),
        .right = bpe_table_find_token(bpe, text + left_bytes, right_bytes),
        .result = bpe_table_find_token(bpe, text, left_bytes + right_bytes),
    };
    if (merge.left == BPE_NO_TOKEN || merge.right == BPE_NO_TOKEN || merge.result == BPE_NO_TOKEN)
        return refuse_merge(loader, number, "names a token that the vocabulary has not");
    if (bpe_table_find_merge(bpe, merge.left, merge.right)->rank != BPE_NO_RANK)
        return refuse_merge(loader, number, "is there twice");
    if (bpe->merge_count == BPE_VOCAB_MAX - 1)
        return refuse_merge(loader, number, "is one too many");
    bpe_table_add_merge(bpe, merge);
    return 0;
}

/* "left right", which is torn apart in place. */
static int add_merge_line(struct loader *loader, size_t number, char *line, char *text)
{
    char *space = strchr(line, ' ');
    if (space == NULL || space == line || space[1] == '\0' || strchr(space + 1, ' ') != NULL)
        return refuse_merge(loader, number, "is not two tokens with one space between them");
    *space = '\0';
    return add_merge(loader, number, line, space + 1, text);
}

/* An element of "merges": "left right", or ["left", "right"] as newer files have it. */
static int add_merge_value(struct loader *loader, size_t number, const struct json_value *value,
                           char *line, char *text)
{
    const char *both = json_string(value);
    const char *left = both != NULL ? both : json_string(json_at(value, 0));
    const char *right = both != NULL ? "" : json_string(json_at(value, 1));
    if (left == NULL || right == NULL || (both == NULL && json_length(value) != 2))
        return refuse_merge(loader, number, "is neither a text nor a pair of texts");
    if (strlen(left) + strlen(right) >= TOKEN_BYTES_MAX)
        return refuse_merge(loader, number, "is too long");
    if (both == NULL)
        return add_merge(loader, number, left, right, text);
    strcpy(line, both);
    return add_merge_line(loader, number, line, text);
}

static int load_merge_values(struct loader *loader, const struct json_value *merges)
{
    int code = 0;
    char *scratch = mem_alloc(2, TOKEN_BYTES_MAX);
    for (size_t i = 0; code == 0 && i < json_length(merges); i++)
        code =
            add_merge_value(loader, i + 1, json_at(merges, i), scratch, scratch + TOKEN_BYTES_MAX);
    mem_free(scratch);
    return code;
}

/* merges.txt: an optional first line "#version: ...", then one merge a line. */
static int load_merge_lines(struct loader *loader, char *lines)
{
    int code = 0;
    size_t number = 0;
    char *text = mem_alloc(TOKEN_BYTES_MAX, 1);
    for (char *line = lines, *next; code == 0 && line != NULL; line = next) {
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        size_t bytes = strlen(line);
        if (bytes > 0 && line[bytes - 1] == '\r')
            line[--bytes] = '\0';
        if (bytes == 0 || (line == lines && strncmp(line, "#version", 8) == 0))
            continue;
        number++;
        code = bytes < TOKEN_BYTES_MAX ? add_merge_line(loader, number, line, text)
                                       : refuse_merge(loader, number, "is too long");
    }
    mem_free(text);
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * tokenizer.json
 * ------------------------------------------------------------------------------------------- */

static int refuse_feature(struct loader *loader, const char *what)
{
    return err_set(loader->err, ERR_INPUT,
                   "%s %s; this program reads byte-level BPE with the pre-tokenisation of GPT-2, "
                   "cl100k, o200k or Llama 3",
                   loader->path, what);
}

/* Whether a member is there and says something: not null, not false, not "", not []. */
static bool says_something(const struct json_value *object, const char *key)
{
    const struct json_value *value = json_get(object, key);
    const char *text = json_string(value);
    if (text != NULL)
        return text[0] != '\0';
    return json_get_bool(object, key, false) || json_length(value) > 0 ||
           json_number(value, 0) != 0;
}

/* ByteLevel, which turns bytes into characters, and cuts by GPT-2's pattern where regex is set. */
static int check_byte_level(struct loader *loader, const struct json_value *pre, bool regex)
{
    if (strcmp(json_get_string(pre, "type", ""), "ByteLevel") != 0 ||
        json_get_bool(pre, "use_regex", true) != regex)
        return refuse_feature(loader, "cuts text by another rule");
    if (json_get_bool(pre, "add_prefix_space", true))
        return refuse_feature(loader, "puts a space before each text (add_prefix_space)");
    return 0;
}

/* Split by a pattern that is known; the two ways of saying that matches are the pieces. */
static int choose_pattern(struct loader *loader, const struct json_value *split)
{
    const char *behavior = json_get_string(split, "behavior", "");
    bool invert = json_get_bool(split, "invert", false);
    const char *regex = json_get_string(json_get(split, "pattern"), "Regex", "");
    enum pretoken_kind kind = pretoken_by_spelling(regex);
    if (strcmp(json_get_string(split, "type", ""), "Split") != 0 || kind == PRETOKEN_KINDS ||
        strcmp(behavior, invert ? "Removed" : "Isolated") != 0)
        return refuse_feature(loader, "cuts text by another rule");
    loader->bpe->pattern = kind;
    return 0;
}

static int check_pre_tokenizer(struct loader *loader, const struct json_value *pre)
{
    const struct json_value *steps = json_get(pre, "pretokenizers");
    if (strcmp(json_get_string(pre, "type", ""), "Sequence") != 0)
        return check_byte_level(loader, pre, true);
    if (json_length(steps) != 2)
        return refuse_feature(loader, "cuts text by another rule");
    int code = choose_pattern(loader, json_at(steps, 0));
    return code == 0 ? check_byte_level(loader, json_at(steps, 1), false) : code;
}

static int check_features(struct loader *loader, const struct json_value *root)
{
    const struct json_value *model = json_get(root, "model");
    if (strcmp(json_get_string(model, "type", "BPE"), "BPE") != 0)
        return refuse_feature(loader, "has a model that is not BPE");
    if (says_something(root, "normalizer"))
        return refuse_feature(loader, "has a normalizer");
    int code = check_pre_tokenizer(loader, json_get(root, "pre_tokenizer"));
    if (code != 0)
        return code;
    static const char *const refused[] = {
        "dropout",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "byte_fallback",
    };
    for (size_t i = 0; i < ARRAY_COUNT(refused); i++) {
        char what[64];
        snprintf(what, sizeof(what), "uses %s", refused[i]);
        if (says_something(model, refused[i]))
            return refuse_feature(loader, what);
    }
    loader->bpe->whole_pieces = json_get_bool(model, "ignore_merges", false);
    return 0;
}

static int load_tokenizer_json(struct loader *loader, const struct json_value *root)
{
    const struct json_value *model = json_get(root, "model");
    int code = check_features(loader, root);
    if (code == 0)
        code = load_vocabulary(loader, json_get(model, "vocab"), json_get(root, "added_tokens"));
    return code == 0 ? load_merge_values(loader, json_get(model, "merges")) : code;
}

/* ---------------------------------------------------------------------------------------------
 * vocab.json + merges.txt
 * ------------------------------------------------------------------------------------------- */

/* Finds the first of two names that is in dir. */
static int find_either(char path[FILE_PATH_MAX], const char *dir, const char *first,
                       const char *second, struct err *err)
{
    int code = file_join(path, dir, first, err);
    if (code == 0 && !file_exists(path))
        code = file_join(path, dir, second, err);
    if (code == 0 && !file_exists(path))
        code = err_set(err, ERR_INPUT, "%s has neither %s nor %s", dir, first, second);
    return code;
}

static int load_vocab_and_merges(struct loader *loader, const struct json_value *vocab,
                                 const char *dir)
{
    char path[FILE_PATH_MAX], *lines = NULL;
    size_t bytes;
    int code = load_vocabulary(loader, vocab, NULL);
    if (code == 0)
        code = find_either(path, dir, "merges.txt", "vocab.bpe", loader->err);
    if (code == 0)
        code = file_read_all(path, MERGES_BYTES_MAX, &lines, &bytes, loader->err);
    if (code != 0)
        return code;
    loader->path = path;
    code = strlen(lines) == bytes ? load_merge_lines(loader, lines)
                                  : err_set(loader->err, ERR_INPUT, "%s is no text", path);
    mem_free(lines);
    return code;
}

static bool ends_in(const char *text, const char *end)
{
    size_t bytes = strlen(text), end_bytes = strlen(end);
    return bytes >= end_bytes && strcmp(text + bytes - end_bytes, end) == 0;
}

static int load_file(struct loader *loader, const char *dir)
{
    if (ends_in(loader->path, ".tiktoken") || ends_in(loader->path, ".model"))
        return bpe_ranks_load(loader->bpe, loader->path, loader->err);
    struct json_value *root = json_load(loader->path, loader->err);
    if (root == NULL)
        return loader->err->code;
    bool whole = json_get(root, "model") != NULL && json_int(json_get(root, "model"), -1) < 0;
    int code = whole ? load_tokenizer_json(loader, root) : load_vocab_and_merges(loader, root, dir);
    json_free(root);
    return code;
}

int bpe_load(struct bpe **bpe, const char *path, struct err *err)
{
    *bpe = NULL;
    struct stat status;
    char file[FILE_PATH_MAX], dir[FILE_PATH_MAX];
    int code = 0;
    if (strlen(path) >= FILE_PATH_MAX || stat(path, &status) != 0)
        return err_set(err, ERR_INPUT,
                       "there is no tokenizer at %.200s: give a tokenizer.json, or a folder that "
                       "holds one, or vocab.json and merges.txt, or a .tiktoken file",
                       path);
    snprintf(file, sizeof(file), "%s", path);
    snprintf(dir, sizeof(dir), "%s", path);
    if (S_ISDIR(status.st_mode)) {
        code = file_join(file, path, "tokenizer.json", err);
        if (code == 0 && !file_exists(file) &&
            find_either(file, path, "vocab.json", "encoder.json", err) != 0)
            code = err_set(err, ERR_INPUT,
                           "%s holds no tokenizer: neither tokenizer.json nor vocab.json with "
                           "merges.txt",
                           path);
    } else {
        char *slash = strrchr(dir, '/');
        snprintf(slash != NULL ? slash + 1 : dir, 2, "%s", ".");
    }
    if (code != 0)
        return code;

    struct loader loader = {.path = file, .bpe = bpe_table_new(), .err = err};
    fill_characters(loader.bytes);
    code = load_file(&loader, dir);
    mem_free(loader.named);
    uint32_t missing = code == 0 ? bpe_table_finish(loader.bpe) : 256;
    if (code == 0 && missing < 256)
        code = err_set(err, ERR_INPUT,
                       "%s has no token for the byte 0x%02x, so it is no byte-level tokenizer",
                       file, missing);
    if (code != 0) {
        bpe_free(loader.bpe);
        return code;
    }
    *bpe = loader.bpe;
    return 0;
}
