/*
 * machines: the files of tools/machines/ as they are inside the program, so that an installed
 * spillway needs no data folder. Only tools/machine.c and its test read them.
 */
#ifndef SPILLWAY_TOOLS_MACHINES_H
#define SPILLWAY_TOOLS_MACHINES_H

#include <stddef.h>

enum machines_kind {
    MACHINES_GPU,
    MACHINES_CPU,
    MACHINES_SSD,
    MACHINES_BOX, /* a whole machine that names parts */
    MACHINES_KIND_COUNT
};

struct machines_file {
    enum machines_kind kind;
    const char *name;        /* of the file, without .json */
    const char *begin, *end; /* JSON, not terminated */
};

extern const struct machines_file machines_files[];
extern const size_t machines_count;

#endif
