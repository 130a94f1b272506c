/*
 * tier: the NVMe tier. Owns the state files (two slots of every chunk's planes), the scratch files
 * (spilled gradients and activations), one of each on every drive, the checksum of everything in
 * them, and which slot of a chunk is current. Which drive holds what: offload/stripe.h.
 *
 * Shadow slots (DESIGN section 4): what is committed is never overwritten. The slot that is
 * not committed is the one that updates write; since every update rewrites a whole chunk, the
 * two slots simply change roles at each commit. RAM-resident planes are written into the same slot
 * at their own place when a commit asks for it, so a slot is complete whatever is resident where.
 * With one slot (--nvme-slots 1) that slot is both: the updates after a commit overwrite it, so the
 * manifest is marked as open before them (checkpoint_open_commit) and is whole again at the next.
 * Checksums live outside the chunks: in memory for current state, in the manifest for committed
 * state. Refuses: tmpfs and file systems without O_DIRECT (by io/file.c).
 * One thread at a time, except tier_sum_* on different cells.
 */
#ifndef SPILLWAY_OFFLOAD_TIER_H
#define SPILLWAY_OFFLOAD_TIER_H

#include "core/err.h"
#include "io/file.h"
#include "offload/plan.h"
#include "offload/stripe.h"

struct ring;

struct tier_drive {
    int state_fd, scratch_fd;         /* scratch_fd: -1 where nothing is spilled here */
    char scratch_path[FILE_PATH_MAX]; /* the state's is in files */
    uint64_t scratch_bytes;
};

/* Where a scratch cell is: there is one for every cell, so they are kept small. */
struct tier_scratch {
    uint64_t drive : 8;
    uint64_t block : 56; /* of IO_ALIGN bytes */
};

struct tier {
    const struct layout *layout;      /* borrowed */
    const struct plan_memory *memory; /* borrowed */
    struct stripe_files files;
    struct stripe stripe;
    struct tier_drive drives[STRIPE_DRIVES_MAX]; /* files.count are there */
    struct tier_scratch *scratch; /* owned; [cell] of NVMe cells that are not of the state */
    uint32_t slots;               /* 1 or 2 */
    bool overwriting;     /* the only slot was committed and no longer holds it: the mark is made */
    int committed_slot;   /* 0, 1, or -1 before the first commit */
    uint8_t *chunk_slot;  /* owned; [chunk]: where the current NVMe-resident planes are */
    uint64_t *plane_sums; /* owned; [chunk * 4 + plane]: of the current state */
    uint64_t *cell_sums;  /* owned; [cell]: of scratch cells */
    uint64_t written_bytes; /* by tier_transfer */
};

/* Opens or creates the state files (memory->state_slots allocated) and the scratch files beside
 * them; those are unlinked at once, so that a killed run leaves none. A file of one slot is given a
 * second where two are asked for; one of two slots is refused where one is. What was created is
 * removed again after an error. */
int tier_open(struct tier *tier, const struct layout *layout, const struct plan_memory *memory,
              const struct stripe_files *files, bool create, struct err *err);
/* Makes the ring know the open files (ring_register_files). It is closed before they are. */
void tier_register(const struct tier *tier, struct ring *ring);
void tier_close(struct tier *tier); /* a zeroed one is legal, and one whose opening failed */

/* Where an NVMe cell (or run of a chunk's planes) is to be read or written now. */
struct tier_location {
    int fd;
    uint64_t offset;
    const char *path; /* borrowed from the tier */
};
struct tier_location tier_read_at(const struct tier *tier, uint32_t cell);
struct tier_location tier_write_at(struct tier *tier, uint32_t cell);

/* The state to the drives: whatever was written to it is there when this returns 0. */
int tier_flush(const struct tier *tier, struct err *err);

/* The slot that is being written: the one that is not committed, or the only one. */
uint32_t tier_open_slot(const struct tier *tier);

/* One whole transfer, waited for; for initialisation and resuming, not for steps. An error names
 * file and offset; one that leaves the buffer to the kernel (ring.h: abandoned) is fatal. */
int tier_transfer(struct tier *tier, struct ring *ring, bool write, struct tier_location where,
                  void *buffer, uint64_t bytes, struct err *err);

/* XXH3 of a plane or scratch cell, seeded by its identity, so that a misplaced block is caught. A
 * plane's is that of the sums of its parts (layout.h), so that whoever passes over the parts can
 * make it on the way: tier_join_sums. */
uint64_t tier_plane_sum(const struct layout *layout, uint32_t chunk, uint32_t plane,
                        const void *data);
uint64_t tier_part_sum(const void *data, uint64_t bytes);
uint64_t tier_join_sums(uint32_t chunk, uint32_t plane, const uint64_t *parts, uint32_t count);
uint64_t tier_cell_sum(uint32_t cell, const void *data, uint64_t bytes);

/* What a message that ends the program says of the last commit: "the last commit is intact", or
 * that the only slot has been overwritten. */
const char *tier_commit_note(const struct tier *tier);

/* Fatal, naming file and offset. */
_Noreturn void tier_fail_plane(const struct tier *tier, uint32_t chunk, uint32_t plane);
_Noreturn void tier_fail_cell(const struct tier *tier, uint32_t cell);

/* One number for all master weights: the sums of all hi and lo planes in canonical order. */
uint64_t tier_weights_hash(const struct tier *tier);

#endif
