/*
 * tree: inputs as the user names them -> the list of files.
 *
 * An input is a file, a folder or "-" (standard input, once). A folder is read recursively, its
 * files in byte order of their paths; hidden entries, links and what is neither file nor folder are
 * left out, so that no text is counted twice and no loop of links is entered. A folder within an
 * input that cannot be read is left out and counted; an input that cannot be is an error. So is the
 * folder that is written to, which is left out where it lies within an input.
 *
 * Files are not opened, and those in folders not even asked for their size: a million files are
 * listed in seconds, and take about 100 bytes of memory each. Owned by io/corpus.c.
 */
#ifndef SPILLWAY_IO_TREE_H
#define SPILLWAY_IO_TREE_H

#include "core/err.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TREE_STDIN "-"

struct tree_file {
    uint64_t path; /* where it begins in tree->text */
    uint32_t input;
    bool found; /* in a folder; else the user has named it */
};

struct tree {
    struct tree_file *files; /* owned; inputs in their order */
    uint64_t file_count, file_capacity;
    char *text; /* owned; all paths, each with its 0 */
    uint64_t text_bytes, text_capacity;
    uint64_t unreadable_count; /* folders within inputs */
    char *unreadable_example;  /* owned; or NULL */
    bool has_folders;
    dev_t leave_device; /* the folder that is left out */
    ino_t leave_inode;  /* 0: none */
};

/* leave_out: a folder, or NULL. On an error *tree is closed. */
int tree_open(struct tree *tree, const char *const *inputs, size_t input_count,
              const char *leave_out, struct err *err);
void tree_close(struct tree *tree); /* a zeroed one is legal */

const char *tree_path(const struct tree *tree, uint64_t file); /* good until tree_close */
uint64_t tree_memory_bytes(const struct tree *tree);

#endif
