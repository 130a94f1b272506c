/*
 * unpack_codec: what io/unpack.c and the kinds of compression share, and nobody else: the
 * compressed bytes, and the table of what a kind can do. One .c file for each kind is the only one
 * that includes its library.
 */
#ifndef SPILLWAY_IO_UNPACK_CODEC_H
#define SPILLWAY_IO_UNPACK_CODEC_H

#include "io/unpack.h"
#include <stdbool.h>

/* The compressed bytes: data[start, end) has been read and not been used. */
struct unpack_input {
    const char *name; /* borrowed */
    int fd;           /* borrowed; -1: nothing comes after what is here */
    const uint8_t *data;
    size_t start, end;
    uint64_t offset; /* in the file of data[0] */
    bool at_end;     /* nothing comes after data[end) */
    uint8_t *buffer; /* owned [UNPACK_INPUT_BYTES] */
};
#define UNPACK_INPUT_BYTES (256u << 10)

/* More bytes, when start == end: 0, with start == end again where the file has ended; or a negative
 * code. */
int unpack_input_fill(struct unpack_input *input, struct err *err);
/* At least `bytes` (<= UNPACK_INPUT_BYTES) unused ones, or all that there are. */
int unpack_input_need(struct unpack_input *input, size_t bytes, struct err *err);

static inline uint64_t unpack_input_position(const struct unpack_input *input)
{
    return input->offset + input->start;
}

/* "FILE is damaged at byte N: WHAT", ERR_CORRUPT. */
int unpack_damaged(const struct unpack_input *input, uint64_t position, const char *what,
                   struct err *err);
#define UNPACK_TOO_SHORT "it ends in the middle of what was compressed"

struct unpack_codec {
    const char *kind;
    /* Whether a file that begins so is of this kind. */
    bool (*recognise)(const uint8_t *head, size_t bytes);
    void *(*create)(const struct unpack_settings *settings);
    void (*destroy)(void *state);
    void (*begin)(void *state); /* a new file */
    ssize_t (*read)(void *state, struct unpack_input *input, uint8_t *out, size_t bytes,
                    struct err *err);
};

extern const struct unpack_codec unpack_gzip, unpack_bzip2, unpack_zstd;

#endif
