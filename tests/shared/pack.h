/*
 * pack: compresses what a test is to unpack; by the libraries themselves (the only file of the
 * tests that includes them).
 */
#ifndef SPILLWAY_TESTS_SHARED_PACK_H
#define SPILLWAY_TESTS_SHARED_PACK_H

#include <stddef.h>

enum pack_kind { PACK_PLAIN, PACK_GZIP, PACK_BZIP2, PACK_ZSTD, PACK_KIND_COUNT };

/* One stream (member, frame) of these bytes, to be freed with mem_free. */
char *pack(enum pack_kind kind, const char *data, size_t bytes, size_t *packed_bytes);

#endif
