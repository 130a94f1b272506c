/*
 * pack: compresses what a test is to unpack; by the libraries themselves (the only file of the
 * tests that includes them).
 */
#ifndef SPILLWAY_TESTS_SHARED_PACK_H
#define SPILLWAY_TESTS_SHARED_PACK_H

#include <stddef.h>

enum pack_kind {
    PACK_PLAIN,
    PACK_GZIP,
    PACK_BZIP2,       /* blocks of 100,000 bytes: many of them in a short text */
    PACK_BZIP2_LARGE, /* of 900,000, as the program makes */
    PACK_ZSTD,
    PACK_KIND_COUNT
};

/* One stream (member, frame) of these bytes, to be freed with mem_free. */
char *pack(enum pack_kind kind, const char *data, size_t bytes, size_t *packed_bytes);

/* The bytes that libbz2 alone gives of a file of one stream, which are thrown away. */
size_t pack_unbzip2(const char *packed, size_t bytes);

#endif
