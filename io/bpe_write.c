/*
 * Writing tokenizers: Hugging Face's tokenizer.json, and GPT-2's vocab.json + merges.txt.
 */
#include "core/base.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/bpe.h"
#include "io/bpe_table.h"
#include "io/file.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The name of a token; name has room for 2 * bytes + 1. */
static void bytes_to_name(const char *text, size_t bytes, char *name)
{
    for (size_t i = 0; i < bytes; i++) {
        uint32_t character = bpe_table_byte_character((uint8_t)text[i]);
        if (character >= 0x80)
            *name++ = (char)(0xc0 | character >> 6);
        *name++ = (char)(character < 0x80 ? character : 0x80 | (character & 0x3f));
    }
    *name = '\0';
}

/* The token's name into a text of its own (mem_free). */
static char *token_name(const struct bpe *bpe, uint32_t id)
{
    const struct bpe_token *token = &bpe->tokens[id];
    const char *text = bpe->text + token->start;
    char *name = mem_alloc(2 * (uint64_t)token->bytes + 1, 1);
    if ((token->flags & BPE_TOKEN_RAW) != 0)
        memcpy(name, text, token->bytes);
    else
        bytes_to_name(text, token->bytes, name);
    return name;
}

static struct json_value *byte_level(bool add_prefix_space, bool trim_offsets, bool use_regex)
{
    struct json_value *value = json_new_object();
    json_set_string(value, "type", "ByteLevel");
    json_set_bool(value, "add_prefix_space", add_prefix_space);
    json_set_bool(value, "trim_offsets", trim_offsets);
    json_set_bool(value, "use_regex", use_regex);
    return value;
}

/* ByteLevel alone cuts by GPT-2's pattern; the others are a step before it. */
static struct json_value *pre_tokenizer(const struct bpe *bpe)
{
    if (bpe->pattern == PRETOKEN_GPT2)
        return byte_level(false, true, true);
    struct json_value *pattern = json_new_object(), *split = json_new_object();
    json_set_string(pattern, "Regex", pretoken_spellings[bpe->pattern]);
    json_set_string(split, "type", "Split");
    json_set(split, "pattern", pattern);
    json_set_string(split, "behavior", "Isolated");
    json_set_bool(split, "invert", false);
    struct json_value *steps = json_new_array(), *sequence = json_new_object();
    json_append(steps, split);
    json_append(steps, byte_level(false, true, false));
    json_set_string(sequence, "type", "Sequence");
    json_set(sequence, "pretokenizers", steps);
    return sequence;
}

static struct json_value *added_token(const struct bpe *bpe, uint32_t id)
{
    char *name = token_name(bpe, id);
    struct json_value *value = json_new_object();
    json_set_int(value, "id", id);
    json_set_string(value, "content", name);
    json_set_bool(value, "single_word", false);
    json_set_bool(value, "lstrip", false);
    json_set_bool(value, "rstrip", false);
    json_set_bool(value, "normalized", false);
    json_set_bool(value, "special", (bpe->tokens[id].flags & BPE_TOKEN_SPECIAL) != 0);
    mem_free(name);
    return value;
}

/* The end-of-text token is always listed, also where a vocab.json could not say that it is one. */
static struct json_value *added_tokens(const struct bpe *bpe)
{
    struct json_value *values = json_new_array();
    for (uint32_t id = 0; id < bpe->vocab_size; id++)
        if ((bpe->tokens[id].flags & BPE_TOKEN_ADDED) != 0 || id == bpe->end_of_text)
            json_append(values, added_token(bpe, id));
    return values;
}

static struct json_value *vocabulary(const struct bpe *bpe)
{
    struct json_value *values = json_new_object();
    for (uint32_t id = 0; id < bpe->vocab_size; id++) {
        if ((bpe->tokens[id].flags & BPE_TOKEN_HOLE) != 0)
            continue;
        char *name = token_name(bpe, id);
        json_set_int(values, name, id);
        mem_free(name);
    }
    return values;
}

/* "left right", to be freed with mem_free. */
static char *merge_text(const struct bpe *bpe, uint32_t rank)
{
    char *left = token_name(bpe, bpe->merges[rank].left);
    char *right = token_name(bpe, bpe->merges[rank].right);
    size_t bytes = strlen(left) + 1 + strlen(right);
    char *both = mem_alloc(bytes + 1, 1);
    snprintf(both, bytes + 1, "%s %s", left, right);
    mem_free(right);
    mem_free(left);
    return both;
}

static struct json_value *merge_values(const struct bpe *bpe)
{
    struct json_value *values = json_new_array();
    for (uint32_t i = 0; i < bpe->merge_count; i++) {
        char *both = merge_text(bpe, i);
        json_append(values, json_new_string(both, strlen(both)));
        mem_free(both);
    }
    return values;
}

int bpe_save(const struct bpe *bpe, const char *dir, struct err *err)
{
    char path[FILE_PATH_MAX];
    int code = file_join(path, dir, "tokenizer.json", err);
    if (code != 0)
        return code;
    struct json_value *model = json_new_object();
    json_set_string(model, "type", "BPE");
    json_set_bool(model, "fuse_unk", false);
    json_set_bool(model, "byte_fallback", false);
    json_set_bool(model, "ignore_merges", bpe->whole_pieces);
    json_set(model, "vocab", vocabulary(bpe));
    json_set(model, "merges", merge_values(bpe));

    struct json_value *root = json_new_object();
    json_set_string(root, "version", "1.0");
    json_set(root, "added_tokens", added_tokens(bpe));
    json_set(root, "pre_tokenizer", pre_tokenizer(bpe));
    json_set(root, "post_processor", byte_level(true, false, true));
    json_set(root, "decoder", byte_level(true, true, true));
    json_set(root, "model", model);
    code = json_save(root, path, err);
    json_free(root);
    return code;
}

static int save_merges(const struct bpe *bpe, const char *path, struct err *err)
{
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    if (to == NULL)
        fatal("out of memory for %s", path);
    fputs("#version: 0.2\n", to);
    for (uint32_t i = 0; i < bpe->merge_count; i++) {
        char *both = merge_text(bpe, i);
        fprintf(to, "%s\n", both);
        mem_free(both);
    }
    if (fclose(to) != 0)
        fatal("out of memory for %s", path);
    int code = file_replace(path, text, bytes, err);
    free(text);
    return code;
}

int bpe_save_gpt2(const struct bpe *bpe, const char *dir, struct err *err)
{
    char vocab_path[FILE_PATH_MAX], merges_path[FILE_PATH_MAX];
    if (!bpe_has_gpt2_form(bpe))
        return 0;
    int code = file_join(vocab_path, dir, "vocab.json", err);
    if (code == 0)
        code = file_join(merges_path, dir, "merges.txt", err);
    if (code == 0)
        code = save_merges(bpe, merges_path, err);
    if (code != 0)
        return code;
    struct json_value *vocab = vocabulary(bpe);
    code = json_save(vocab, vocab_path, err);
    json_free(vocab);
    return code;
}
