/*
 * json: reading and writing JSON, by jansson (the only file that includes it). For configurations,
 * manifests and tokenizers; the per-step log writes its own lines because it may not allocate.
 *
 * A `struct json_value` is opaque. The root is owned by the caller (json_free); what getters return
 * is borrowed from it. Setters take ownership of the child.
 */
#ifndef SPILLWAY_CORE_JSON_H
#define SPILLWAY_CORE_JSON_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct json_value;

/* Both name the file (or `what`), the line and what was expected when the text is no JSON. */
struct json_value *json_load(const char *path, struct err *err); /* NULL on error */
struct json_value *json_parse(const char *text, size_t bytes, const char *what, struct err *err);
void json_free(struct json_value *root); /* NULL is legal */

/* Writes to path + ".tmp", fsyncs, renames over path, fsyncs the folder. */
int json_save(const struct json_value *root, const char *path, struct err *err);
/* The text, to be freed with mem_free. */
char *json_text(const struct json_value *root, bool indent);

/* What a value is; JSON_KIND_NONE for NULL. */
enum json_kind {
    JSON_KIND_NONE,
    JSON_KIND_NULL,
    JSON_KIND_BOOL,
    JSON_KIND_NUMBER,
    JSON_KIND_STRING,
    JSON_KIND_ARRAY,
    JSON_KIND_OBJECT,
};
enum json_kind json_kind(const struct json_value *value);

/* Getters: NULL / fallback when value is NULL, is of another kind, or has no such member. */
const struct json_value *json_get(const struct json_value *object, const char *key);
/* The member is there and is not null: what a reader needs that refuses a member of another kind
 * but takes its absence. */
bool json_has(const struct json_value *object, const char *key);
const char *json_get_string(const struct json_value *object, const char *key, const char *fallback);
double json_get_number(const struct json_value *object, const char *key, double fallback);
int64_t json_get_int(const struct json_value *object, const char *key, int64_t fallback);
bool json_get_bool(const struct json_value *object, const char *key, bool fallback);
size_t json_length(const struct json_value *array_or_object);
const struct json_value *json_at(const struct json_value *array, size_t index);
/* NULL when it is no string. jansson has a function of the same name, which the symbol given here
 * keeps apart from ours. */
const char *json_string(const struct json_value *value) __asm__("spillway_json_string");
size_t json_string_bytes(const struct json_value *value);
double json_number(const struct json_value *value, double fallback);
int64_t json_int(const struct json_value *value, int64_t fallback);
bool json_bool(const struct json_value *value, bool fallback);

/* Calls fn for every member, in the order of the file; stops at the first non-zero result and
 * returns it. */
int json_each(const struct json_value *object,
              int (*fn)(void *context, const char *key, const struct json_value *value),
              void *context);

/* Strings given to these are UTF-8; a byte that is not (a path may hold one) becomes U+FFFD.
 * Numbers are finite, and written with the 17 digits that give the same double back. */
struct json_value *json_new_object(void);
struct json_value *json_new_array(void);
struct json_value *json_new_string(const char *text, size_t bytes);
struct json_value *json_new_int(int64_t value);
void json_set(struct json_value *object, const char *key, struct json_value *child);
void json_set_string(struct json_value *object, const char *key, const char *text);
void json_set_number(struct json_value *object, const char *key, double value);
void json_set_int(struct json_value *object, const char *key, int64_t value);
void json_set_bool(struct json_value *object, const char *key, bool value);
void json_append(struct json_value *array, struct json_value *child);

#endif
