/*
 * fields: a struct's members as a JSON object's, by a table that drives reading, checking and
 * writing alike.
 *
 * Refuses what a person would not notice: a name that no field has (a typo), a missing field, a
 * value of another kind, a number out of its range. Every sentence names the file and the field as
 * `section.field`. "source", "sources" and "comment" are allowed everywhere and mean nothing here.
 */
#ifndef SPILLWAY_CORE_FIELDS_H
#define SPILLWAY_CORE_FIELDS_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_value;

enum field_kind {
    FIELD_BOOL,   /* bool */
    FIELD_U32,    /* uint32_t */
    FIELD_U64,    /* uint64_t, below 2^63 */
    FIELD_DOUBLE, /* double, finite */
    FIELD_TEXT,   /* char[most + 1]: at least `least` bytes, none of them a control character */
    FIELD_CHOICE, /* uint32_t or enum: the index of one of choices[0 .. most] */
    FIELD_OTHER,  /* a member that the caller reads, checks and writes itself */
};

struct field {
    const char *name;
    enum field_kind kind;
    bool required; /* in a file; one that is missing leaves the struct's member as it was */
    size_t offset;
    double least, most; /* both inclusive */
    const char *const *choices;
};

struct fields {
    const struct field *table;
    size_t count;
};

/* What the sentences name: "FILE: SECTION.FIELD ...". */
struct fields_at {
    const char *what, *section;
};

/* object may be NULL or of another kind than an object, which is refused. Members of *record that
 * were read before an error stay changed. 0 or ERR_INPUT. */
int fields_read(const struct fields *fields, void *record, const struct json_value *object,
                struct fields_at at, struct err *err);

/* The same ranges for a struct that a program filled. */
int fields_check(const struct fields *fields, const void *record, struct fields_at at,
                 struct err *err);

/* Sets every field but FIELD_OTHER in object. The record must pass fields_check. */
void fields_write(const struct fields *fields, const void *record, struct json_value *object);

/* Whether a member of this name is a remark for people ("source", "sources", "comment"). */
bool fields_is_remark(const char *name);

#endif
