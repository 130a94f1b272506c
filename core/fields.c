#include "core/fields.h"
#include "core/base.h"
#include "core/json.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

#define RANGE_TEXT_MAX 128
/* Up to here a double holds every whole number. */
#define WHOLE_MAX 0x1p53

bool fields_is_remark(const char *name)
{
    return strcmp(name, "source") == 0 || strcmp(name, "sources") == 0 ||
           strcmp(name, "comment") == 0;
}

static const void *member(const struct field *field, const void *record)
{
    return (const char *)record + field->offset;
}

static void *member_to_set(const struct field *field, void *record)
{
    return (char *)record + field->offset;
}

/* ---- Sentences ------------------------------------------------------------------------------- */

/* "true or false", "a whole number from 1 to 64", ... */
static const char *expected(const struct field *field, char text[RANGE_TEXT_MAX])
{
    size_t used = 0;
    switch (field->kind) {
    case FIELD_BOOL:
        return "true or false";
    case FIELD_U32:
    case FIELD_U64:
        snprintf(text, RANGE_TEXT_MAX, "a whole number from %.15g to %.15g", field->least,
                 field->most);
        return text;
    case FIELD_DOUBLE:
        snprintf(text, RANGE_TEXT_MAX, "a number from %g to %g", field->least, field->most);
        return text;
    case FIELD_TEXT:
        snprintf(text, RANGE_TEXT_MAX, "a text of %g to %g printable bytes", field->least,
                 field->most);
        return text;
    case FIELD_CHOICE:
        for (size_t i = 0; (double)i <= field->most && used < RANGE_TEXT_MAX; i++)
            used += (size_t)snprintf(text + used, RANGE_TEXT_MAX - used, "%s\"%s\"",
                                     i ? " or " : "", field->choices[i]);
        return text;
    case FIELD_OTHER:
        break;
    }
    ASSERT(!"no kind of its own");
    return "";
}

static const char *found(const struct json_value *value, char text[RANGE_TEXT_MAX])
{
    switch (json_kind(value)) {
    case JSON_KIND_NUMBER:
        snprintf(text, RANGE_TEXT_MAX, "%.15g", json_number(value, 0));
        return text;
    case JSON_KIND_STRING:
        snprintf(text, RANGE_TEXT_MAX, "\"%.100s\"", json_string(value));
        return text;
    case JSON_KIND_BOOL:
        return "a truth value";
    case JSON_KIND_ARRAY:
        return "a list";
    case JSON_KIND_OBJECT:
        return "an object";
    case JSON_KIND_NULL:
        return "null";
    case JSON_KIND_NONE:
        break;
    }
    return "missing";
}

static int refuse(const struct field *field, const char *what_is, struct fields_at at,
                  struct err *err)
{
    char range[RANGE_TEXT_MAX];
    return err_set(err, ERR_INPUT, "%s: %s.%s must be %s, but it is %s", at.what, at.section,
                   field->name, expected(field, range), what_is);
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* Also false for a NaN. */
static bool in_range(const struct field *field, double value)
{
    return value >= field->least && value <= field->most;
}

static bool text_fits(const struct field *field, const char *text, size_t bytes)
{
    if (!in_range(field, (double)bytes))
        return false;
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f)
            return false;
    return true;
}

static bool read_bool(const struct json_value *value, void *to)
{
    if (json_kind(value) != JSON_KIND_BOOL)
        return false;
    *(bool *)to = json_bool(value, false);
    return true;
}

/* A whole number may also be written as 2e12. */
static bool read_whole(const struct field *field, const struct json_value *value, uint64_t *whole)
{
    double number = json_number(value, -1);
    if (!in_range(field, number) || number != floor(number))
        return false;
    int64_t exact = json_int(value, -1);
    if (exact < 0 && number > WHOLE_MAX)
        return false;
    *whole = exact >= 0 ? (uint64_t)exact : (uint64_t)number;
    return true;
}

static bool read_double(const struct field *field, const struct json_value *value, void *to)
{
    double number = json_number(value, NAN);
    if (!in_range(field, number))
        return false;
    *(double *)to = number + 0.0; /* no -0 */
    return true;
}

static bool read_text(const struct field *field, const struct json_value *value, char *to)
{
    const char *text = json_string(value);
    size_t bytes = text ? json_string_bytes(value) : 0;
    if (!text || !text_fits(field, text, bytes))
        return false;
    memset(to, 0, (size_t)field->most + 1);
    memcpy(to, text, bytes);
    return true;
}

static bool read_choice(const struct field *field, const struct json_value *value, uint32_t *to)
{
    const char *text = json_string(value);
    for (uint32_t i = 0; text && i <= (uint32_t)field->most; i++)
        if (strcmp(text, field->choices[i]) == 0) {
            *to = i;
            return true;
        }
    return false;
}

static bool read_value(const struct field *field, const struct json_value *value, void *to)
{
    uint64_t whole;
    switch (field->kind) {
    case FIELD_BOOL:
        return read_bool(value, to);
    case FIELD_U32:
        ASSERT(field->least >= 0 && field->most <= UINT32_MAX);
        if (!read_whole(field, value, &whole))
            return false;
        *(uint32_t *)to = (uint32_t)whole;
        return true;
    case FIELD_U64:
        ASSERT(field->least >= 0 && field->most < 0x1p63);
        return read_whole(field, value, to);
    case FIELD_DOUBLE:
        return read_double(field, value, to);
    case FIELD_TEXT:
        return read_text(field, value, to);
    case FIELD_CHOICE:
        return read_choice(field, value, to);
    case FIELD_OTHER:
        break;
    }
    return true;
}

struct names {
    const struct fields *fields;
    struct fields_at at;
    struct err *err;
};

static int refuse_unknown(void *context, const char *name, const struct json_value *value)
{
    (void)value;
    const struct names *names = context;
    for (size_t i = 0; i < names->fields->count; i++)
        if (strcmp(names->fields->table[i].name, name) == 0)
            return 0;
    if (fields_is_remark(name))
        return 0;
    return err_set(names->err, ERR_INPUT, "%s: %s.%.80s is not known; is it mistyped?",
                   names->at.what, names->at.section, name);
}

int fields_read(const struct fields *fields, void *record, const struct json_value *object,
                struct fields_at at, struct err *err)
{
    char text[RANGE_TEXT_MAX];
    if (json_kind(object) != JSON_KIND_OBJECT)
        return err_set(err, ERR_INPUT, "%s: %s must be an object with fields, but it is %s",
                       at.what, at.section, found(object, text));
    for (size_t i = 0; i < fields->count; i++) {
        const struct field *field = &fields->table[i];
        const struct json_value *value = json_get(object, field->name);
        if (!value && !field->required)
            continue;
        if (!value && field->kind == FIELD_OTHER)
            return err_set(err, ERR_INPUT, "%s: %s.%s is missing", at.what, at.section,
                           field->name);
        if (!read_value(field, value, member_to_set(field, record)))
            return refuse(field, found(value, text), at, err);
    }
    struct names names = {fields, at, err};
    return json_each(object, refuse_unknown, &names);
}

/* ---- Checking and writing -------------------------------------------------------------------- */

/* The numbers of all kinds that have a range; NULL text: they are in it. */
static bool value_fits(const struct field *field, const void *from, char text[RANGE_TEXT_MAX])
{
    double number;
    switch (field->kind) {
    case FIELD_U32:
    case FIELD_CHOICE:
        number = *(const uint32_t *)from;
        break;
    case FIELD_U64:
        number = (double)*(const uint64_t *)from;
        break;
    case FIELD_DOUBLE:
        number = *(const double *)from;
        break;
    case FIELD_TEXT:
        snprintf(text, RANGE_TEXT_MAX, "\"%.*s\"", (int)MIN(field->most, 100), (const char *)from);
        return text_fits(field, from, strnlen(from, (size_t)field->most + 1));
    default:
        return true;
    }
    snprintf(text, RANGE_TEXT_MAX, "%.15g", number);
    return in_range(field, number);
}

int fields_check(const struct fields *fields, const void *record, struct fields_at at,
                 struct err *err)
{
    char text[RANGE_TEXT_MAX];
    for (size_t i = 0; i < fields->count; i++)
        if (!value_fits(&fields->table[i], member(&fields->table[i], record), text))
            return refuse(&fields->table[i], text, at, err);
    return 0;
}

static void write_double(struct json_value *object, const char *name, double value)
{
    if (value == floor(value) && fabs(value) <= WHOLE_MAX)
        json_set_int(object, name, (int64_t)value);
    else
        json_set_number(object, name, value);
}

void fields_write(const struct fields *fields, const void *record, struct json_value *object)
{
    for (size_t i = 0; i < fields->count; i++) {
        const struct field *field = &fields->table[i];
        const void *from = member(field, record);
        switch (field->kind) {
        case FIELD_BOOL:
            json_set_bool(object, field->name, *(const bool *)from);
            break;
        case FIELD_U32:
            json_set_int(object, field->name, *(const uint32_t *)from);
            break;
        case FIELD_U64:
            json_set_int(object, field->name, (int64_t) * (const uint64_t *)from);
            break;
        case FIELD_DOUBLE:
            write_double(object, field->name, *(const double *)from);
            break;
        case FIELD_TEXT:
            json_set_string(object, field->name, from);
            break;
        case FIELD_CHOICE:
            json_set_string(object, field->name, field->choices[*(const uint32_t *)from]);
            break;
        case FIELD_OTHER:
            break;
        }
    }
}
