#include "io/safetensors.h"
#include "core/base.h"
#include "core/float.h"
#include "core/json.h"
#include "core/mem.h"
#include "io/file.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bounds on what a file may make this program allocate. The header of a model with 10,000 tensors
 * has about 1.5 MB; the format itself allows 100 MB. */
#define HEADER_BYTES_MAX (16 * MIB)
#define TENSORS_MAX      65536
#define PARTS_MAX        256 /* files of one model, all kept open */

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_OTHER };

struct entry {
    struct safetensors_tensor tensor; /* first: a pointer to it is a pointer to the entry */
    enum dtype dtype;
    uint32_t part;
    uint64_t offset; /* in the file */
    uint64_t bytes;
};

struct part {
    int fd; /* owned */
    uint64_t file_bytes;
    uint64_t data_offset;
    char path[FILE_PATH_MAX];
};

struct safetensors {
    struct entry *entries; /* [entry_count], owned; in the order of parts and offsets once open */
    size_t entry_count, entry_room;
    struct entry **by_name; /* [entry_count], owned */
    struct part *parts;     /* [part_count], owned */
    uint32_t part_count;
    struct err *err; /* borrowed while the headers are read, for json_each's callbacks */
};

/* ---- Headers ---- */

static bool dtype_parse(const char *name, enum dtype *dtype, uint64_t *element_bytes)
{
    static const struct {
        const char *name;
        enum dtype dtype;
        uint64_t bytes;
    } known[] = {
        {"F32", DTYPE_F32, 4},    {"F16", DTYPE_F16, 2},       {"BF16", DTYPE_BF16, 2},
        {"BOOL", DTYPE_OTHER, 1}, {"U8", DTYPE_OTHER, 1},      {"I8", DTYPE_OTHER, 1},
        {"U16", DTYPE_OTHER, 2},  {"I16", DTYPE_OTHER, 2},     {"U32", DTYPE_OTHER, 4},
        {"I32", DTYPE_OTHER, 4},  {"U64", DTYPE_OTHER, 8},     {"I64", DTYPE_OTHER, 8},
        {"F64", DTYPE_OTHER, 8},  {"F8_E4M3", DTYPE_OTHER, 1}, {"F8_E5M2", DTYPE_OTHER, 1},
    };
    for (size_t i = 0; name != NULL && i < ARRAY_COUNT(known); i++)
        if (strcmp(name, known[i].name) == 0) {
            *dtype = known[i].dtype;
            *element_bytes = known[i].bytes;
            return true;
        }
    return false;
}

static int corrupt(const struct part *part, const char *name, const char *what, struct err *err)
{
    return err_set(err, ERR_CORRUPT,
                   "'%s': the tensor '%.100s' has %s: copy or export the file again", part->path,
                   name, what);
}

/* Numbers come from the file, so they overflow into an error and not into an ASSERT. */
static int parse_shape(const struct part *part, const struct json_value *shape, struct entry *entry,
                       struct err *err)
{
    struct safetensors_tensor *tensor = &entry->tensor;
    size_t dim_count = json_length(shape);
    if (dim_count > SAFETENSORS_DIMS_MAX)
        return corrupt(part, tensor->name, "more than 4 dimensions", err);
    tensor->dim_count = (uint32_t)dim_count;
    tensor->element_count = 1;
    for (size_t d = 0; d < dim_count; d++) {
        int64_t size = json_int(json_at(shape, d), -1);
        if (size < 0)
            return corrupt(part, tensor->name, "a size that is no whole number", err);
        tensor->shape[d] = (uint64_t)size;
        if (__builtin_mul_overflow(tensor->element_count, tensor->shape[d], &tensor->element_count))
            return corrupt(part, tensor->name, "more elements than a number can count", err);
    }
    return 0;
}

static int parse_range(const struct part *part, const struct json_value *range,
                       uint64_t element_bytes, struct entry *entry, struct err *err)
{
    const char *name = entry->tensor.name;
    int64_t begin = json_int(json_at(range, 0), -1), end = json_int(json_at(range, 1), -1);
    uint64_t data_bytes = part->file_bytes - part->data_offset, expected;
    if (json_length(range) != 2 || begin < 0 || end < begin)
        return corrupt(part, name, "data_offsets that are no range", err);
    if ((uint64_t)end > data_bytes)
        return corrupt(part, name, "data beyond the end of the file, which was cut short", err);
    entry->bytes = (uint64_t)(end - begin);
    entry->offset = part->data_offset + (uint64_t)begin;
    if (__builtin_mul_overflow(entry->tensor.element_count, element_bytes, &expected) ||
        entry->bytes != expected)
        return corrupt(part, name, "another number of bytes than its shape and dtype need", err);
    return 0;
}

static struct entry *new_entry(struct safetensors *file)
{
    if (file->entry_count == file->entry_room) {
        file->entry_room = MAX(64, 2 * file->entry_room);
        file->entries = mem_realloc(file->entries, file->entry_room, sizeof(file->entries[0]));
    }
    struct entry *entry = &file->entries[file->entry_count++];
    memset(entry, 0, sizeof(*entry));
    return entry;
}

static int take_tensor(void *context, const char *name, const struct json_value *value)
{
    struct safetensors *file = context;
    struct err *err = file->err;
    const struct part *part = &file->parts[file->part_count - 1];
    uint64_t element_bytes;
    if (strcmp(name, "__metadata__") == 0)
        return 0;
    if (strlen(name) >= SAFETENSORS_NAME_MAX)
        return corrupt(part, name, "a name longer than 127 bytes", err);
    if (file->entry_count == TENSORS_MAX)
        return err_set(err, ERR_CORRUPT, "'%s' has more than %d tensors", part->path, TENSORS_MAX);
    struct entry *entry = new_entry(file);
    snprintf(entry->tensor.name, sizeof(entry->tensor.name), "%s", name);
    entry->part = file->part_count - 1;
    if (!dtype_parse(json_get_string(value, "dtype", NULL), &entry->dtype, &element_bytes))
        return corrupt(part, name, "no dtype, or one that is not known", err);
    if (json_get(value, "shape") == NULL)
        return corrupt(part, name, "no shape", err);
    if (parse_shape(part, json_get(value, "shape"), entry, err) < 0)
        return err->code;
    return parse_range(part, json_get(value, "data_offsets"), element_bytes, entry, err);
}

/* The header as text (mem_free), its length checked against the file before anything is allocated
 * for it. */
static int read_header(struct part *part, char **text, uint64_t *bytes, struct err *err)
{
    uint8_t prefix[8];
    struct stat status;
    *text = NULL;
    *bytes = 0;
    if (fstat(part->fd, &status) < 0)
        return err_set_errno(err, errno, "cannot ask for the size of '%s'", part->path);
    part->file_bytes = S_ISREG(status.st_mode) ? (uint64_t)status.st_size : 0;
    if (part->file_bytes < sizeof(prefix))
        return err_set(err, ERR_CORRUPT, "'%s' is no safetensors file: it has no header",
                       part->path);
    if (file_read_at(part->fd, prefix, sizeof(prefix), 0, part->path, err) < 0)
        return err->code;
    for (size_t i = 0; i < sizeof(prefix); i++)
        *bytes |= (uint64_t)prefix[i] << (8 * i);
    if (*bytes > HEADER_BYTES_MAX || *bytes > part->file_bytes - sizeof(prefix))
        return err_set(
            err, ERR_CORRUPT,
            "'%s' is no safetensors file, or was cut short: its header claims %llu bytes",
            part->path, (unsigned long long)*bytes);
    part->data_offset = sizeof(prefix) + *bytes;
    *text = mem_alloc(*bytes + 1, 1);
    return file_read_at(part->fd, *text, *bytes, sizeof(prefix), part->path, err);
}

static int parse_header(struct safetensors *file, const char *text, uint64_t bytes, struct err *err)
{
    const struct part *part = &file->parts[file->part_count - 1];
    struct json_value *root = json_parse(text, bytes, part->path, err);
    if (root == NULL)
        return err->code;
    file->err = err;
    int result = json_each(root, take_tensor, file);
    json_free(root);
    return result;
}

static int add_part(struct safetensors *file, const char *path, struct err *err)
{
    if (file->part_count == PARTS_MAX)
        return err_set(err, ERR_INPUT, "'%s': the model has more than %d files", path, PARTS_MAX);
    struct part *part = &file->parts[file->part_count];
    char *text;
    uint64_t bytes;
    snprintf(part->path, sizeof(part->path), "%s", path);
    part->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (part->fd < 0)
        return err_set_errno(err, errno, "cannot open the weights '%s'", path);
    file->part_count++;
    int result = read_header(part, &text, &bytes, err);
    if (result == 0)
        result = parse_header(file, text, bytes, err);
    mem_free(text);
    return result;
}

/* ---- Several files: model.safetensors.index.json ---- */

struct index_walk {
    struct safetensors *file;
    const char *dir;
};

/* Adds the file that holds one tensor, if it is not there yet. */
static int take_index_line(void *context, const char *name, const struct json_value *value)
{
    struct index_walk *walk = context;
    struct safetensors *file = walk->file;
    const char *part_name = json_string(value);
    char path[FILE_PATH_MAX];
    if (part_name == NULL || strchr(part_name, '/') != NULL || part_name[0] == '.' ||
        part_name[0] == '\0')
        return err_set(
            file->err, ERR_CORRUPT,
            "'%s/model.safetensors.index.json': the file of '%.100s' is no name of a file "
            "in that folder",
            walk->dir, name);
    if (file_join(path, walk->dir, part_name, file->err) < 0)
        return file->err->code;
    for (uint32_t p = 0; p < file->part_count; p++)
        if (strcmp(file->parts[p].path, path) == 0)
            return 0;
    return add_part(file, path, file->err);
}

static int open_index(struct safetensors *file, const char *dir, const char *path, struct err *err)
{
    char *text;
    size_t bytes;
    if (file_read_all(path, HEADER_BYTES_MAX, &text, &bytes, err) < 0)
        return err->code;
    struct json_value *root = json_parse(text, bytes, path, err);
    mem_free(text);
    if (root == NULL)
        return err->code;
    struct index_walk walk = {.file = file, .dir = dir};
    file->err = err;
    int result = json_each(json_get(root, "weight_map"), take_index_line, &walk);
    json_free(root);
    if (result == 0 && file->part_count == 0)
        return err_set(err, ERR_CORRUPT, "'%s' names no files", path);
    return result;
}

static int open_folder(struct safetensors *file, const char *dir, struct err *err)
{
    char single[FILE_PATH_MAX], index[FILE_PATH_MAX];
    if (file_join(single, dir, "model.safetensors", err) < 0 ||
        file_join(index, dir, "model.safetensors.index.json", err) < 0)
        return err->code;
    if (file_exists(single))
        return add_part(file, single, err);
    if (file_exists(index))
        return open_index(file, dir, index, err);
    return err_set(err, ERR_INPUT,
                   "'%s' holds neither model.safetensors nor model.safetensors.index.json: name "
                   "the folder of a Hugging Face model",
                   dir);
}

/* ---- Opening ---- */

static int compare_places(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    if (x->offset != y->offset)
        return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) /* an empty tensor goes before the one that begins where it lies */
        return x->bytes < y->bytes ? -1 : 1;
    return strcmp(x->tensor.name, y->tensor.name);
}

static int compare_names(const void *a, const void *b)
{
    const struct entry *const *x = a, *const *y = b;
    return strcmp((*x)->tensor.name, (*y)->tensor.name);
}

/* Sorts, and refuses tensors that overlap or share a name. */
static int order_entries(struct safetensors *file, struct err *err)
{
    size_t count = file->entry_count;
    if (count == 0)
        return err_set(err, ERR_CORRUPT, "'%s' holds no tensors", file->parts[0].path);
    qsort(file->entries, count, sizeof(file->entries[0]), compare_places);
    file->by_name = mem_alloc(count, sizeof(file->by_name[0]));
    for (size_t i = 0; i < count; i++) {
        const struct entry *entry = &file->entries[i];
        file->by_name[i] = &file->entries[i];
        if (i > 0 && entry->part == entry[-1].part &&
            entry->offset < entry[-1].offset + entry[-1].bytes)
            return corrupt(&file->parts[entry->part], entry->tensor.name,
                           "data that another tensor also claims", err);
    }
    qsort(file->by_name, count, sizeof(file->by_name[0]), compare_names);
    for (size_t i = 1; i < count; i++)
        if (compare_names(&file->by_name[i - 1], &file->by_name[i]) == 0)
            return corrupt(&file->parts[file->by_name[i]->part], file->by_name[i]->tensor.name,
                           "a second definition", err);
    return 0;
}

int safetensors_open(struct safetensors **out, const char *path, struct err *err)
{
    *out = NULL;
    struct safetensors *file = mem_alloc(1, sizeof(*file));
    file->parts = mem_alloc(PARTS_MAX, sizeof(file->parts[0]));
    struct stat status;
    int result;
    if (stat(path, &status) < 0)
        result = err_set_errno(err, errno, "cannot open the weights '%s'", path);
    else if (S_ISDIR(status.st_mode))
        result = open_folder(file, path, err);
    else
        result = add_part(file, path, err);
    if (result == 0)
        result = order_entries(file, err);
    file->err = NULL;
    if (result < 0)
        safetensors_close(file);
    else
        *out = file;
    return result;
}

void safetensors_close(struct safetensors *file)
{
    if (file == NULL)
        return;
    for (uint32_t p = 0; p < file->part_count; p++)
        close(file->parts[p].fd);
    mem_free(file->parts);
    mem_free(file->by_name);
    mem_free(file->entries);
    mem_free(file);
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->entry_count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index)
{
    ASSERT(index < file->entry_count);
    return &file->entries[index].tensor;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    size_t low = 0, high = file->entry_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->by_name[middle]->tensor.name);
        if (order == 0)
            return &file->by_name[middle]->tensor;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* ---- Reading values ---- */

/* IEEE binary16 is exact in float: a subnormal is its 10 bits times 2^-24. */
static float float_from_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31u;
    uint32_t fraction = half & 0x3ffu;
    if (exponent == 31)
        return float_from_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0)
        return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f;
    return float_from_bits(sign | float_bits(magnitude));
}

/* values' upper half holds count 16-bit numbers, which become floats from the front on: number i is
 * read before any write reaches it, since 4 i + 4 <= 2 count + 2 i + 2 for all i < count. */
static void widen(float *values, size_t count, enum dtype dtype)
{
    const char *from = (const char *)values + 2 * count;
    for (size_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, from + 2 * i, sizeof(bits));
        values[i] = dtype == DTYPE_F16 ? float_from_f16(bits) : float_from_bf16(bits);
    }
}

int safetensors_read(const struct safetensors *file, const struct safetensors_tensor *tensor,
                     uint64_t start, float *values, size_t count, struct err *err)
{
    const struct entry *entry = (const struct entry *)tensor;
    ASSERT(entry >= file->entries && entry < file->entries + file->entry_count);
    ASSERT(start <= tensor->element_count && count <= tensor->element_count - start);
    const struct part *part = &file->parts[entry->part];
    if (entry->dtype == DTYPE_OTHER)
        return err_set(err, ERR_INPUT,
                       "'%s': the tensor '%s' is stored as neither F32, F16 nor BF16: convert the "
                       "model to one of these",
                       part->path, tensor->name);
    if (entry->dtype == DTYPE_F32)
        return file_read_at(part->fd, values, count * 4, entry->offset + start * 4, part->path,
                            err);
    if (file_read_at(part->fd, (char *)values + 2 * count, count * 2, entry->offset + start * 2,
                     part->path, err) < 0)
        return err->code;
    widen(values, count, entry->dtype);
    return 0;
}

/* ---- Writing ---- */

struct safetensors_writer {
    int fd; /* owned */
    uint64_t left_bytes;
    char path[FILE_PATH_MAX];
    char tmp_path[FILE_PATH_MAX + 8];
};

static struct json_value *describe(const struct safetensors_tensor *tensor, uint64_t *offset)
{
    struct json_value *object = json_new_object(), *shape = json_new_array(),
                      *range = json_new_array();
    uint64_t elements = 1;
    for (uint32_t d = 0; d < tensor->dim_count; d++) {
        elements = mul_checked(elements, tensor->shape[d]);
        json_append(shape, json_new_int((int64_t)tensor->shape[d]));
    }
    ASSERT(elements == tensor->element_count);
    json_append(range, json_new_int((int64_t)*offset));
    *offset = add_checked(*offset, mul_checked(elements, sizeof(float)));
    json_append(range, json_new_int((int64_t)*offset));
    json_set_string(object, "dtype", "F32");
    json_set(object, "shape", shape);
    json_set(object, "data_offsets", range);
    return object;
}

/* Length and text, padded with blanks so that the data begins at a multiple of 8 as the format's
 * own writer does; "format" is what the transformers library asks for. */
static int write_header(struct safetensors_writer *writer, const struct safetensors_tensor *tensors,
                        size_t count, struct err *err)
{
    struct json_value *root = json_new_object(), *metadata = json_new_object();
    json_set_string(metadata, "format", "pt");
    json_set(root, "__metadata__", metadata);
    for (size_t i = 0; i < count; i++)
        json_set(root, tensors[i].name, describe(&tensors[i], &writer->left_bytes));
    ASSERT(json_length(root) == count + 1); /* no name came twice */
    char *text = json_text(root, false);
    json_free(root);
    size_t length = strlen(text), padded = round_up(length, 8);
    uint8_t prefix[8];
    for (size_t i = 0; i < sizeof(prefix); i++)
        prefix[i] = (uint8_t)((uint64_t)padded >> (8 * i));
    int result = file_write_all(writer->fd, prefix, sizeof(prefix), writer->tmp_path, err);
    if (result == 0)
        result = file_write_all(writer->fd, text, length, writer->tmp_path, err);
    if (result == 0)
        result = file_write_all(writer->fd, "        ", padded - length, writer->tmp_path, err);
    mem_free(text);
    return result;
}

int safetensors_writer_open(struct safetensors_writer **out, const char *path,
                            const struct safetensors_tensor *tensors, size_t count, struct err *err)
{
    *out = NULL;
    struct safetensors_writer *writer = mem_alloc(1, sizeof(*writer));
    int length = snprintf(writer->path, sizeof(writer->path), "%s", path);
    snprintf(writer->tmp_path, sizeof(writer->tmp_path), "%s.tmp", path);
    writer->fd = -1;
    if (length >= FILE_PATH_MAX)
        err_set(err, ERR_INPUT, "the path '%.60s...' is too long: use a shorter one", path);
    else if ((writer->fd = open(writer->tmp_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)) <
             0)
        err_set_errno(err, errno, "cannot make '%s'", writer->tmp_path);
    else if (write_header(writer, tensors, count, err) == 0) {
        *out = writer;
        return 0;
    }
    safetensors_writer_abort(writer);
    return err->code;
}

int safetensors_writer_add(struct safetensors_writer *writer, const float *values, size_t count,
                           struct err *err)
{
    size_t bytes = (size_t)mul_checked(count, sizeof(float));
    ASSERT(bytes <= writer->left_bytes);
    if (file_write_all(writer->fd, values, bytes, writer->tmp_path, err) < 0)
        return err->code;
    writer->left_bytes -= bytes;
    return 0;
}

int safetensors_writer_close(struct safetensors_writer *writer, struct err *err)
{
    int result;
    if (writer->left_bytes > 0)
        result = err_set(err, ERR_INPUT, "'%s' was not finished: %llu bytes are missing",
                         writer->path, (unsigned long long)writer->left_bytes);
    else
        result = file_commit(writer->fd, writer->tmp_path, writer->path, err);
    if (result < 0) {
        safetensors_writer_abort(writer);
        return result;
    }
    close(writer->fd);
    mem_free(writer);
    return 0;
}

void safetensors_writer_abort(struct safetensors_writer *writer)
{
    if (writer == NULL)
        return;
    if (writer->fd >= 0) {
        close(writer->fd);
        unlink(writer->tmp_path);
    }
    mem_free(writer);
}
