/*
 * drive: what the drive below an open file asks for and offers, as far as the kernel tells.
 *
 * Owns nothing and changes nothing. For io/file.c, which refuses what does not fit, and for the
 * lines at the start of a run. Any thread; a few system calls, which do not wait for the drive.
 */
#ifndef SPILLWAY_IO_DRIVE_H
#define SPILLWAY_IO_DRIVE_H

#include "core/err.h"
#include <stdbool.h>
#include <stdint.h>

enum drive_polling {
    DRIVE_POLLING_UNKNOWN, /* no one block device of its own: btrfs, a network, overlayfs */
    DRIVE_POLLING_NO,      /* no poll queues */
    DRIVE_POLLING_YES
};

struct drive {
    /* What buffers and offsets of O_DIRECT must be multiples of (statx STATX_DIOALIGN, Linux 6.1).
     * known and 0: the file system takes O_DIRECT but goes through the page cache. */
    bool alignment_known;
    uint32_t memory_align, offset_align;
    enum drive_polling polling;
};

/* What is not told is left unknown. fd is open. */
void drive_ask(struct drive *drive, int fd);

/* 0 when transfers that are aligned to IO_ALIGN suit the drive; path is for the sentence. */
int drive_check(const struct drive *drive, const char *path, struct err *err);

/* "direct I/O is aligned to 512 bytes in memory and 512 in the file, transfers to 4096; no polling:
 * the drive has no poll queues" into text; returns text. */
#define DRIVE_NOTE_MAX 256
const char *drive_note(const struct drive *drive, char text[DRIVE_NOTE_MAX]);

#endif
