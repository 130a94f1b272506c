/*
 * jsonl: lines of JSON objects (RFC 8259), each a document in one field.
 *
 * A line is checked whole, so what is not JSON is told from what lacks the field. Values other than
 * that field's are passed without being kept; nesting is a bit for each level, to a bound. The
 * field is looked for in the outermost object only; where it stands twice, the last one counts, as
 * in most parsers. Raw control characters in strings, which JSON forbids and some writers leave,
 * are taken as they are; a lone surrogate becomes U+FFFD.
 */
#include "core/base.h"
#include "io/records.h"
#include <string.h>

#define DEPTH_MAX 1024

struct reader {
    const char *at, *end;
};

/* ---------------------------------------------------------------------------------------------
 * Lines
 * ------------------------------------------------------------------------------------------- */

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static int find_line(struct records_rules *rules, const char *bytes, size_t count, bool at_end,
                     size_t *start, size_t *end, size_t *skip)
{
    (void)rules;
    size_t first = 0;
    while (first < count && is_space(bytes[first]))
        first++;
    *skip = first;
    const char *newline = first < count ? memchr(bytes + first, '\n', count - first) : NULL;
    if (first == count || (newline == NULL && !at_end))
        return 0;
    *start = first;
    *end = newline != NULL ? (size_t)(newline - bytes) : count;
    return 1;
}

static size_t pass_line(const char *bytes, size_t count, bool *over)
{
    const char *newline = memchr(bytes, '\n', count);
    *over = newline != NULL;
    return newline != NULL ? (size_t)(newline - bytes) + 1 : count;
}

/* ---------------------------------------------------------------------------------------------
 * Values
 * ------------------------------------------------------------------------------------------- */

static void pass_space(struct reader *reader)
{
    while (reader->at < reader->end && is_space(*reader->at))
        reader->at++;
}

static bool take(struct reader *reader, char c)
{
    pass_space(reader);
    if (reader->at == reader->end || *reader->at != c)
        return false;
    reader->at++;
    return true;
}

static bool hex4(const char *text, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < 4; i++) {
        char c = text[i];
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a') + 10
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A') + 10
                                                : 16;
        if (digit == 16)
            return false;
        *value = *value << 4 | digit;
    }
    return true;
}

static size_t put_utf8(char *to, uint32_t codepoint)
{
    if (codepoint < 0x80) {
        to[0] = (char)codepoint;
        return 1;
    }
    size_t bytes = codepoint < 0x800 ? 2 : codepoint < 0x10000 ? 3 : 4;
    for (size_t i = bytes - 1; i > 0; i--, codepoint >>= 6)
        to[i] = (char)(0x80 | (codepoint & 0x3f));
    to[0] = (char)((0xf00 >> bytes & 0xff) | codepoint);
    return bytes;
}

/* "\u" is read; a second half follows a first one. */
static bool take_codepoint(struct reader *reader, uint32_t *codepoint)
{
    uint32_t low;
    if (reader->end - reader->at < 4 || !hex4(reader->at, codepoint))
        return false;
    reader->at += 4;
    bool high = *codepoint >= 0xd800 && *codepoint < 0xdc00;
    if (high && reader->end - reader->at >= 6 && reader->at[0] == '\\' && reader->at[1] == 'u' &&
        hex4(reader->at + 2, &low) && low >= 0xdc00 && low < 0xe000) {
        *codepoint = 0x10000 + ((*codepoint - 0xd800) << 10) + (low - 0xdc00);
        reader->at += 6;
    } else if (*codepoint >= 0xd800 && *codepoint < 0xe000) {
        *codepoint = 0xfffd;
    }
    return true;
}

/* Behind a backslash. */
static bool take_escape(struct reader *reader, char *to, size_t *used)
{
    static const char escapes[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    uint32_t codepoint;
    char c = *reader->at++;
    const char *known = c != '\0' ? strchr(escapes, c) : NULL;
    if (known != NULL) {
        codepoint = (uint32_t)meant[known - escapes];
    } else if (c != 'u' || !take_codepoint(reader, &codepoint)) {
        return false;
    }
    char scratch[4];
    size_t bytes = put_utf8(scratch, codepoint);
    if (to != NULL)
        memcpy(to + *used, scratch, bytes);
    *used += bytes;
    return true;
}

/* Bytes up to the next quote or backslash; to may be NULL. */
static void take_plain(struct reader *reader, char *to, size_t *used)
{
    const char *start = reader->at;
    while (reader->at < reader->end && *reader->at != '"' && *reader->at != '\\')
        reader->at++;
    if (to != NULL)
        memcpy(to + *used, start, (size_t)(reader->at - start));
    *used += (size_t)(reader->at - start);
}

/* A string, unescaped into to, which has room for its bytes in the line; to may be NULL. */
static bool take_string(struct reader *reader, char *to, size_t *used)
{
    *used = 0;
    if (!take(reader, '"'))
        return false;
    while (reader->at < reader->end) {
        take_plain(reader, to, used);
        if (reader->at == reader->end)
            return false;
        if (*reader->at++ == '"')
            return true;
        if (reader->at == reader->end || !take_escape(reader, to, used))
            return false;
    }
    return false;
}

static bool take_word(struct reader *reader, const char *word)
{
    size_t bytes = strlen(word);
    if ((size_t)(reader->end - reader->at) < bytes || memcmp(reader->at, word, bytes) != 0)
        return false;
    reader->at += bytes;
    return true;
}

static size_t pass_digits(struct reader *reader)
{
    size_t count = 0;
    while (reader->at < reader->end && *reader->at >= '0' && *reader->at <= '9') {
        reader->at++;
        count++;
    }
    return count;
}

static bool take_number(struct reader *reader)
{
    (void)take_word(reader, "-");
    if (pass_digits(reader) == 0)
        return false;
    if (take_word(reader, ".") && pass_digits(reader) == 0)
        return false;
    if (take_word(reader, "e") || take_word(reader, "E")) {
        if (!take_word(reader, "+"))
            (void)take_word(reader, "-");
        return pass_digits(reader) > 0;
    }
    return true;
}

/* Some writers put NaN and Infinity where they have no number. */
static bool take_scalar(struct reader *reader)
{
    size_t used;
    pass_space(reader);
    if (reader->at == reader->end)
        return false;
    if (*reader->at == '"')
        return take_string(reader, NULL, &used);
    return take_word(reader, "true") || take_word(reader, "false") || take_word(reader, "null") ||
           take_word(reader, "NaN") || take_word(reader, "Infinity") ||
           take_word(reader, "-Infinity") || take_number(reader);
}

/* A bit for each open bracket: an object. */
struct nesting {
    uint64_t objects[DEPTH_MAX / 64];
    uint32_t depth;
};

static bool in_object(const struct nesting *nesting)
{
    uint32_t level = nesting->depth - 1;
    return nesting->objects[level / 64] >> (level % 64) & 1;
}

static bool open_bracket(struct nesting *nesting, bool object)
{
    if (nesting->depth == DEPTH_MAX)
        return false;
    uint64_t bit = (uint64_t)1 << (nesting->depth % 64),
             *word = &nesting->objects[nesting->depth / 64];
    *word = object ? *word | bit : *word & ~bit;
    nesting->depth++;
    return true;
}

static bool take_key(struct reader *reader)
{
    size_t used;
    return take_string(reader, NULL, &used) && take(reader, ':');
}

/* Brackets that close, and the comma that leads to the next value. *done: the outermost closed. */
static bool after_value(struct reader *reader, struct nesting *nesting, bool *done)
{
    while (nesting->depth > 0) {
        if (take(reader, ','))
            return !in_object(nesting) || take_key(reader);
        if (!take(reader, in_object(nesting) ? '}' : ']'))
            return false;
        nesting->depth--;
    }
    *done = true;
    return true;
}

/* Any value. */
static bool pass_value(struct reader *reader)
{
    struct nesting nesting = {.depth = 0};
    bool done = false, good = true;
    while (good && !done) {
        bool object = take(reader, '{');
        if (object || take(reader, '[')) {
            good = open_bracket(&nesting, object);
            if (good && take(reader, object ? '}' : ']')) {
                nesting.depth--;
                good = after_value(reader, &nesting, &done);
            } else if (good && object) {
                good = take_key(reader);
            }
        } else {
            good = take_scalar(reader) && after_value(reader, &nesting, &done);
        }
    }
    return good;
}

/* ---------------------------------------------------------------------------------------------
 * Documents
 * ------------------------------------------------------------------------------------------- */

/* One member of the outermost object. The key is unescaped into text, which has room. */
static bool take_member(struct reader *reader, const char *field, char *text, size_t *text_bytes,
                        bool *has_text)
{
    char key[256];
    size_t key_bytes = 0;
    pass_space(reader);
    const char *start = reader->at;
    struct reader again = *reader;
    /* A long key cannot be the field: its length in the line is at least that of what it means. */
    if (!take_string(&again, NULL, &key_bytes))
        return false;
    bool is_field = key_bytes == strlen(field) && key_bytes <= sizeof(key);
    if (is_field) {
        reader->at = start;
        is_field = take_string(reader, key, &key_bytes) && memcmp(key, field, key_bytes) == 0;
    }
    *reader = again;
    if (!take(reader, ':'))
        return false;
    pass_space(reader);
    if (!is_field || reader->at == reader->end || *reader->at != '"')
        return pass_value(reader);
    *has_text = true;
    return take_string(reader, text, text_bytes);
}

static enum record_result convert_line(const struct records_rules *rules, char *record,
                                       size_t bytes, char *text, size_t *text_bytes,
                                       uint32_t *broken)
{
    struct reader reader = {record, record + bytes};
    bool has_text = false;
    *text_bytes = 0;
    *broken = 0;
    if (bytes >= 3 && memcmp(record, "\xef\xbb\xbf", 3) == 0)
        reader.at += 3;
    if (!take(&reader, '{'))
        return RECORD_MALFORMED;
    bool empty = take(&reader, '}');
    for (bool more = !empty; more; more = take(&reader, ',')) {
        if (!take_member(&reader, rules->text_field, text, text_bytes, &has_text))
            return RECORD_MALFORMED;
    }
    if (!empty && !take(&reader, '}'))
        return RECORD_MALFORMED;
    pass_space(&reader);
    if (reader.at < reader.end)
        return RECORD_MALFORMED;
    return has_text ? RECORD_TEXT : RECORD_FIELDLESS;
}

const struct records_kind jsonl_records = {"jsonl", find_line, pass_line, convert_line};
