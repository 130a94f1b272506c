#include "core/json.h"
#include "core/base.h"
#include "core/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* jansson's json_string makes a string, ours reads one; jansson's is not needed here. */
#define json_string jansson_string
#include <jansson.h>
#undef json_string

/* NUL may stand in a tokenizer's strings, hence the lengths everywhere. */
#define LOAD_FLAGS JSON_ALLOW_NUL

/* The walls: a struct json_value is a json_t. */
static json_t *inside(const struct json_value *value)
{
    return (json_t *)(uintptr_t)value;
}

static struct json_value *outside(json_t *value)
{
    ASSERT(value != NULL); /* jansson returns NULL when the heap is exhausted */
    return (struct json_value *)value;
}

/* Reading */

struct json_value *json_parse(const char *text, size_t bytes, const char *what, struct err *err)
{
    json_error_t error;
    json_t *root = json_loadb(text, bytes, LOAD_FLAGS, &error);
    if (root == NULL) {
        err_set(err, ERR_INPUT, "%s, line %d, column %d: not valid JSON: %s", what,
                MAX(error.line, 1), MAX(error.column, 0), error.text);
        return NULL;
    }
    return outside(root);
}

/* The whole file in memory from the heap; NULL with *err filled. */
static char *read_file(const char *path, size_t *bytes, struct err *err)
{
    FILE *file = fopen(path, "rbe");
    if (file == NULL) {
        err_set_errno(err, errno, "cannot open %s", path);
        return NULL;
    }
    size_t used = 0, size = 64 * 1024;
    char *text = mem_alloc(size, 1);
    while (!ferror(file)) {
        size_t got = fread(text + used, 1, size - used, file);
        if (got == 0)
            break;
        used += got;
        if (used == size)
            text = mem_realloc(text, size *= 2, 1);
    }
    if (ferror(file)) {
        err_set_errno(err, errno, "cannot read %s", path);
        mem_free(text);
        text = NULL;
    }
    fclose(file);
    *bytes = used;
    return text;
}

struct json_value *json_load(const char *path, struct err *err)
{
    size_t bytes;
    char *text = read_file(path, &bytes, err);
    if (text == NULL)
        return NULL;
    struct json_value *root = json_parse(text, bytes, path, err);
    mem_free(text);
    return root;
}

void json_free(struct json_value *root)
{
    json_decref(inside(root));
}

enum json_kind json_kind(const struct json_value *value)
{
    if (value == NULL)
        return JSON_KIND_NONE;
    switch (json_typeof(inside(value))) {
    case JSON_OBJECT:
        return JSON_KIND_OBJECT;
    case JSON_ARRAY:
        return JSON_KIND_ARRAY;
    case JSON_STRING:
        return JSON_KIND_STRING;
    case JSON_INTEGER:
    case JSON_REAL:
        return JSON_KIND_NUMBER;
    case JSON_TRUE:
    case JSON_FALSE:
        return JSON_KIND_BOOL;
    case JSON_NULL:
        break;
    }
    return JSON_KIND_NULL;
}

const struct json_value *json_get(const struct json_value *object, const char *key)
{
    return (const struct json_value *)json_object_get(inside(object), key);
}

bool json_has(const struct json_value *object, const char *key)
{
    const json_t *value = inside(json_get(object, key));
    return value != NULL && !json_is_null(value);
}

const char *json_string(const struct json_value *value)
{
    return json_string_value(inside(value));
}

size_t json_string_bytes(const struct json_value *value)
{
    return json_string_length(inside(value));
}

double json_number(const struct json_value *value, double fallback)
{
    return json_is_number(inside(value)) ? json_number_value(inside(value)) : fallback;
}

int64_t json_int(const struct json_value *value, int64_t fallback)
{
    return json_is_integer(inside(value)) ? json_integer_value(inside(value)) : fallback;
}

bool json_bool(const struct json_value *value, bool fallback)
{
    return json_is_boolean(inside(value)) ? json_is_true(inside(value)) : fallback;
}

const char *json_get_string(const struct json_value *object, const char *key, const char *fallback)
{
    const char *text = json_string(json_get(object, key));
    return text != NULL ? text : fallback;
}

double json_get_number(const struct json_value *object, const char *key, double fallback)
{
    return json_number(json_get(object, key), fallback);
}

int64_t json_get_int(const struct json_value *object, const char *key, int64_t fallback)
{
    return json_int(json_get(object, key), fallback);
}

bool json_get_bool(const struct json_value *object, const char *key, bool fallback)
{
    return json_bool(json_get(object, key), fallback);
}

size_t json_length(const struct json_value *array_or_object)
{
    const json_t *value = inside(array_or_object);
    return json_is_object(value) ? json_object_size(value) : json_array_size(value);
}

const struct json_value *json_at(const struct json_value *array, size_t index)
{
    return (const struct json_value *)json_array_get(inside(array), index);
}

int json_each(const struct json_value *object,
              int (*fn)(void *context, const char *key, const struct json_value *value),
              void *context)
{
    const char *key;
    json_t *value;
    json_object_foreach(inside(object), key, value)
    {
        int result = fn(context, key, (const struct json_value *)value);
        if (result != 0)
            return result;
    }
    return 0;
}

/* Writing */

char *json_text(const struct json_value *root, bool indent)
{
    size_t flags = JSON_ENCODE_ANY | (indent ? JSON_INDENT(2) : JSON_COMPACT);
    char *text = json_dumps(inside(root), flags);
    ASSERT(text != NULL);
    return text;
}

/* 0 or an errno. */
static int write_all(int fd, const char *text, size_t bytes)
{
    while (bytes > 0) {
        ssize_t written = write(fd, text, bytes);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written == 0 ? EIO : errno;
        text += written;
        bytes -= (size_t)written;
    }
    return 0;
}

/* Makes a rename in path's folder durable. 0 or an errno. */
static int sync_folder(const char *path)
{
    char *folder = mem_strdup(path);
    char *slash = strrchr(folder, '/');
    if (slash != NULL)
        slash[slash == folder] = 0; /* "/name" is in "/" */
    int fd = open(slash != NULL ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    mem_free(folder);
    if (fd < 0)
        return errno;
    int error = fsync(fd) == 0 ? 0 : errno;
    close(fd);
    return error;
}

/* Creates path with the text, synced. 0 or an errno. */
static int write_synced(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return errno;
    int error = write_all(fd, text, strlen(text));
    if (error == 0)
        error = write_all(fd, "\n", 1);
    if (error == 0 && fsync(fd) != 0)
        error = errno;
    if (close(fd) != 0 && error == 0)
        error = errno;
    return error;
}

int json_save(const struct json_value *root, const char *path, struct err *err)
{
    size_t size = strlen(path) + sizeof(".tmp");
    char *temporary = mem_alloc(size, 1);
    snprintf(temporary, size, "%s.tmp", path);
    char *text = json_text(root, true);
    int error = write_synced(temporary, text);
    if (error == 0 && rename(temporary, path) != 0)
        error = errno;
    if (error == 0)
        error = sync_folder(path);
    else
        unlink(temporary);
    mem_free(text);
    mem_free(temporary);
    return error == 0 ? 0 : err_set_errno(err, error, "cannot write %s", path);
}

struct json_value *json_new_object(void)
{
    return outside(json_object());
}

struct json_value *json_new_array(void)
{
    return outside(json_array());
}

/* The string with U+FFFD for every byte that starts no UTF-8 sequence that jansson takes. */
static json_t *repaired_string(const char *text, size_t bytes)
{
    static const char replacement[] = "\xef\xbf\xbd";
    char *repaired = mem_alloc(add_checked(mul_checked(bytes, 3), 1), 1);
    size_t used = 0;
    for (size_t i = 0; i < bytes;) {
        size_t length = 0;
        for (size_t candidate = 1; candidate <= 4 && candidate <= bytes - i; candidate++) {
            json_t *probe = json_stringn(text + i, candidate);
            if (probe != NULL) {
                length = candidate;
                json_decref(probe);
                break;
            }
        }
        memcpy(repaired + used, length > 0 ? text + i : replacement, length > 0 ? length : 3);
        used += length > 0 ? length : 3;
        i += length > 0 ? length : 1;
    }
    json_t *string = json_stringn(repaired, used);
    mem_free(repaired);
    return string;
}

struct json_value *json_new_string(const char *text, size_t bytes)
{
    json_t *string = json_stringn(text, bytes);
    return outside(string != NULL ? string : repaired_string(text, bytes));
}

struct json_value *json_new_int(int64_t value)
{
    return outside(json_integer(value));
}

void json_set(struct json_value *object, const char *key, struct json_value *child)
{
    ASSERT(json_is_object(inside(object)));
    ASSERT(json_object_set_new_nocheck(inside(object), key, inside(child)) == 0);
}

void json_set_string(struct json_value *object, const char *key, const char *text)
{
    json_set(object, key, json_new_string(text, strlen(text)));
}

void json_set_number(struct json_value *object, const char *key, double value)
{
    ASSERT(isfinite(value));
    json_set(object, key, outside(json_real(value)));
}

void json_set_int(struct json_value *object, const char *key, int64_t value)
{
    json_set(object, key, json_new_int(value));
}

void json_set_bool(struct json_value *object, const char *key, bool value)
{
    json_set(object, key, outside(json_boolean(value)));
}

void json_append(struct json_value *array, struct json_value *child)
{
    ASSERT(json_is_array(inside(array)));
    ASSERT(json_array_append_new(inside(array), inside(child)) == 0);
}
