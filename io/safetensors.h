/*
 * safetensors: reading and writing weight files of Hugging Face's format (8-byte little-endian
 * header length, JSON header, raw tensors; https://github.com/huggingface/safetensors).
 *
 * Reading: header parsed and checked (offsets inside the file, sizes equal to shape times dtype, no
 * overlap), data read by pread in pieces, never mapped, so that a model larger than RAM streams.
 * Several files through model.safetensors.index.json look like one. Reads F32, BF16, F16; writes
 * F32.
 */
#ifndef SPILLWAY_IO_SAFETENSORS_H
#define SPILLWAY_IO_SAFETENSORS_H

#include "core/err.h"
#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_DIMS_MAX 4
#define SAFETENSORS_NAME_MAX 128

struct safetensors;

struct safetensors_tensor {
    char name[SAFETENSORS_NAME_MAX];
    uint64_t shape[SAFETENSORS_DIMS_MAX];
    uint32_t dim_count;
    uint64_t element_count;
};

/* path: a .safetensors file, or a folder with model.safetensors or model.safetensors.index.json. */
int safetensors_open(struct safetensors **file, const char *path, struct err *err);
void safetensors_close(struct safetensors *file); /* NULL is legal */
size_t safetensors_count(const struct safetensors *file);
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index);
/* NULL when there is none of that name. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);
/* Elements [start, start + count) of the tensor, row-major, as float. */
int safetensors_read(const struct safetensors *file, const struct safetensors_tensor *tensor,
                     uint64_t start, float *values, size_t count, struct err *err);

/* Writing: all names and shapes first, then every element of every tensor in that order. The file
 * is written to ".tmp", fsynced and renamed by the close. */
struct safetensors_writer;
int safetensors_writer_open(struct safetensors_writer **writer, const char *path,
                            const struct safetensors_tensor *tensors, size_t count,
                            struct err *err);
int safetensors_writer_add(struct safetensors_writer *writer, const float *values, size_t count,
                           struct err *err);
/* Refuses when elements are missing. Frees the writer whatever it returns. */
int safetensors_writer_close(struct safetensors_writer *writer, struct err *err);
void safetensors_writer_abort(struct safetensors_writer *writer); /* NULL is legal */

#endif
