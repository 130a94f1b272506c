#include "io/bpe_ranks.h"
#include "core/base.h"
#include "core/mem.h"
#include "io/file.h"
#include <stdlib.h>
#include <string.h>

#define RANKS_BYTES_MAX (1 * GIB)
#define TOKEN_BYTES_MAX 4096
#define SPECIALS_MAX    8

struct special {
    const char *name;
    uint32_t id;
};

/* The lists that are about: as many tokens as this, and then these special ones. */
static const struct known {
    const char *name;
    uint32_t token_count;
    enum pretoken_kind pattern;
    struct special specials[SPECIALS_MAX];
} known_lists[] = {
    {"gpt2", 50256, PRETOKEN_GPT2, {{BPE_END_OF_TEXT, 50256}}},
    {"cl100k",
     100256,
     PRETOKEN_CL100K,
     {{BPE_END_OF_TEXT, 100257},
      {"<|fim_prefix|>", 100258},
      {"<|fim_middle|>", 100259},
      {"<|fim_suffix|>", 100260},
      {"<|endofprompt|>", 100276}}},
    {"o200k", 199998, PRETOKEN_O200K, {{BPE_END_OF_TEXT, 199999}, {"<|endofprompt|>", 200018}}},
    {"llama3",
     128000,
     PRETOKEN_LLAMA3,
     {{"<|begin_of_text|>", 128000},
      {BPE_END_OF_TEXT_2, 128001},
      {"<|start_header_id|>", 128006},
      {"<|end_header_id|>", 128007},
      {"<|eot_id|>", 128009},
      {"<|reserved_special_token_250|>", 128255}}},
};

/* ---------------------------------------------------------------------------------------------
 * Lines
 * ------------------------------------------------------------------------------------------- */

static int base64_digit(char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* The bytes that text[0, length) stands for (RFC 4648) into bytes, which has room for them; their
 * count, 0 where it stands for none. */
static size_t base64_decode(const char *text, size_t length, char *bytes)
{
    size_t count = 0;
    uint32_t bits = 0, bit_count = 0;
    while (length > 0 && text[length - 1] == '=')
        length--;
    for (size_t i = 0; i < length; i++) {
        int digit = base64_digit(text[i]);
        if (digit < 0)
            return 0;
        bits = bits << 6 | (uint32_t)digit;
        bit_count += 6;
        if (bit_count < 8)
            continue;
        bit_count -= 8;
        bytes[count++] = (char)(bits >> bit_count);
    }
    return count;
}

struct reader {
    struct bpe *bpe;  /* borrowed */
    const char *path; /* borrowed */
    uint64_t line;
    struct err *err;
};

static int refuse_line(const struct reader *reader, const char *why)
{
    return err_set(reader->err, ERR_INPUT, "%s, line %llu %s", reader->path,
                   (unsigned long long)reader->line, why);
}

/* "base64 rank"; ranks count from 0. */
static int read_line(struct reader *reader, const char *line)
{
    char bytes[TOKEN_BYTES_MAX];
    const char *space = strchr(line, ' ');
    size_t length = space != NULL ? (size_t)(space - line) : 0;
    if (length == 0 || length > sizeof(bytes))
        return refuse_line(reader, "is not a token in base64 and its rank");
    size_t count = base64_decode(line, length, bytes);
    char *end;
    unsigned long long rank = strtoull(space + 1, &end, 10);
    if (count == 0 || end == space + 1 || *end != '\0')
        return refuse_line(reader, "is not a token in base64 and its rank");
    if (rank != reader->bpe->vocab_size || rank >= BPE_VOCAB_MAX)
        return refuse_line(reader, "has a rank that does not follow on the one before");
    if (bpe_table_find_token(reader->bpe, bytes, count) != BPE_NO_TOKEN)
        return refuse_line(reader, "has a token that was there before");
    bpe_table_add_token(reader->bpe, bytes, count, BPE_TOKEN_MODEL);
    return 0;
}

static int read_lines(struct reader *reader, char *text)
{
    int code = 0;
    for (char *line = text, *next; code == 0 && line != NULL; line = next) {
        next = strchr(line, '\n');
        if (next != NULL)
            *next++ = '\0';
        size_t bytes = strlen(line);
        if (bytes > 0 && line[bytes - 1] == '\r')
            line[--bytes] = '\0';
        reader->line++;
        if (bytes == 0)
            continue;
        code = read_line(reader, line);
    }
    return code;
}

/* ---------------------------------------------------------------------------------------------
 * What the list does not say
 * ------------------------------------------------------------------------------------------- */

static const struct known *find_known(uint32_t token_count)
{
    for (size_t i = 0; i < ARRAY_COUNT(known_lists); i++)
        if (known_lists[i].token_count == token_count)
            return &known_lists[i];
    return NULL;
}

static void add_special(struct bpe *bpe, const struct special *special)
{
    const uint32_t flags = BPE_TOKEN_ADDED | BPE_TOKEN_SPECIAL | BPE_TOKEN_RAW;
    size_t bytes = strlen(special->name);
    while (bpe->vocab_size < special->id)
        bpe_table_add_token(bpe, "", 0, BPE_TOKEN_HOLE);
    uint32_t id = bpe_table_add_token(bpe, special->name, bytes, flags);
    ASSERT(id == special->id);
}

static int by_left_and_right(const void *a, const void *b)
{
    const struct bpe_merge *one = a, *other = b;
    if (one->left != other->left)
        return one->left < other->left ? -1 : 1;
    return one->right < other->right ? -1 : one->right > other->right;
}

/* A merge for every way of parting the token in two others. */
static void add_merges_of(struct bpe *bpe, uint32_t id)
{
    struct bpe_merge merges[TOKEN_BYTES_MAX];
    const char *text = bpe->text + bpe->tokens[id].start;
    uint32_t bytes = bpe->tokens[id].bytes;
    size_t count = 0;
    for (uint32_t cut = 1; cut < bytes; cut++) {
        uint32_t left = bpe_table_find_token(bpe, text, cut);
        uint32_t right = bpe_table_find_token(bpe, text + cut, bytes - cut);
        if (left != BPE_NO_TOKEN && right != BPE_NO_TOKEN)
            merges[count++] = (struct bpe_merge){left, right, id};
    }
    qsort(merges, count, sizeof(*merges), by_left_and_right);
    for (size_t i = 0; i < count && bpe->merge_count < BPE_VOCAB_MAX - 1; i++)
        bpe_table_add_merge(bpe, merges[i]);
}

int bpe_ranks_load(struct bpe *bpe, const char *path, struct err *err)
{
    char *text;
    size_t bytes;
    struct reader reader = {.bpe = bpe, .path = path, .err = err};
    int code = file_read_all(path, RANKS_BYTES_MAX, &text, &bytes, err);
    if (code != 0)
        return code;
    code = strlen(text) == bytes ? read_lines(&reader, text)
                                 : err_set(err, ERR_INPUT, "%s is no text", path);
    mem_free(text);
    if (code != 0)
        return code;
    uint32_t token_count = bpe->vocab_size;
    const struct known *known = find_known(token_count);
    if (known == NULL)
        return err_set(err, ERR_INPUT,
                       "%s lists %u tokens, which is none of the lists that are known by their "
                       "size (50256, 100256, 128000, 199998): convert it to tokenizer.json",
                       path, token_count);
    for (size_t i = 0; i < SPECIALS_MAX && known->specials[i].name != NULL; i++)
        add_special(bpe, &known->specials[i]);
    bpe->pattern = known->pattern;
    bpe->whole_pieces = true;
    for (uint32_t id = 0; id < token_count; id++)
        add_merges_of(bpe, id);
    return 0;
}
