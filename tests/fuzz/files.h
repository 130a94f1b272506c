/*
 * files: the input of a fuzz entry as files, for parsers that take a path. One folder for each
 * process, in memory where there is a /dev/shm; what a process leaves there is some small files.
 */
#ifndef SPILLWAY_TESTS_FUZZ_FILES_H
#define SPILLWAY_TESTS_FUZZ_FILES_H

#include <stddef.h>

/* The folder's path. */
const char *fuzz_folder(void);
/* "FOLDER/NAME" in one of four static buffers, used in turn. */
const char *fuzz_path(const char *name);
/* Writes FOLDER/NAME anew, and returns its path. */
const char *fuzz_write(const char *name, const void *data, size_t bytes);
/* FOLDER/NAME into to, and its bytes, <= most. */
size_t fuzz_read(const char *name, void *to, size_t most);

#endif
