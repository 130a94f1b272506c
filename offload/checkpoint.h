/*
 * checkpoint: commits and their manifests: RUN/commit.json says which slot of which state files is
 * complete, for which step, and the checksum of every plane in it.
 *
 * A commit is a flush of the state files and one atomic replacement of the manifest; nothing of the
 * NVMe-resident state is copied. A reader (sample, eval, export, check, --resume) opens the
 * manifest and reads the slot it names; a trainer that goes on meanwhile writes only the other slot
 * until its next commit, after which the reader's checksums catch what has changed and it starts
 * again.
 *
 * A state file of one slot (--nvme-slots 1) has no other slot to write: there the manifest is
 * marked as open before its commit is overwritten, and an open one is refused by every reader. What
 * is kept (checkpoint_keep) is a copy and stays whole.
 */
#ifndef SPILLWAY_OFFLOAD_CHECKPOINT_H
#define SPILLWAY_OFFLOAD_CHECKPOINT_H

#include "core/err.h"
#include "offload/tier.h"

#define CHECKPOINT_MANIFEST_FILE "commit.json"
/* The state of a run without an NVMe folder, and of a kept commit, in the run's own folder. */
#define CHECKPOINT_STATE_FILE "state.bin"

struct watch;

struct checkpoint {
    char run_dir[FILE_PATH_MAX];
    uint64_t step;   /* of the commit that is being made: set by the trainer beforehand */
    uint64_t tokens; /* trained on so far, with that step */
    char *text;      /* owned; room for the manifest: a commit allocates nothing */
    size_t text_max;
    struct watch
        *watch; /* owned; over flushes and manifests. NULL: they may take as long as they like */
    uint64_t weights_hash;   /* of the last commit */
    uint64_t committed_step; /* its step: also set by whoever loads one (state_load) */
};

void checkpoint_init(struct checkpoint *checkpoint, const char *run_dir,
                     const struct layout *layout);
void checkpoint_deinit(struct checkpoint *checkpoint);
/* From now on a commit that the drive never answers ends the program with a sentence. */
int checkpoint_watch(struct checkpoint *checkpoint, struct err *err);

/* Flushes the state files, replaces the manifest, and turns the slots around. Everything of the
 * open slot has been written and tier->plane_sums are its sums. */
int checkpoint_commit(struct checkpoint *checkpoint, struct tier *tier, struct err *err);

/* With one slot, before the first write after a commit: marks the manifest as open, durably. With
 * two, before the first commit, and where it is marked already: nothing to do. */
int checkpoint_open_commit(struct checkpoint *checkpoint, struct tier *tier, struct err *err);

/* Copies the commit that has just been made to RUN/kept/step-<number>, a folder that can be
 * sampled, exported and resumed like a run. Allocates nothing. */
bool checkpoint_is_kept(const struct checkpoint *checkpoint, uint64_t step);
int checkpoint_keep(struct checkpoint *checkpoint, const struct tier *tier, struct err *err);

/* A committed state, as a reader sees it. */
struct checkpoint_manifest {
    uint64_t step, tokens, weights_hash;
    uint32_t slot;
    bool open;           /* its only slot has been overwritten since: there is no commit any more */
    uint64_t parameters; /* real, of the model */
    enum moments_kind moments;
    struct stripe_files files;
    uint64_t *plane_sums; /* owned; [chunk * 4 + plane] */
    uint32_t chunk_count;
};

/* 0; 1 when the run has no commit yet (manifest is then zeroed); or an error. layout NULL: it
 * is not checked that the state is of that model, with moments of that kind. */
int checkpoint_load(struct checkpoint_manifest *manifest, const char *run_dir,
                    const struct layout *layout, struct err *err);
void checkpoint_unload(struct checkpoint_manifest *manifest);

/* The sentence for a manifest that is open, naming the newest kept commit: ERR_INPUT. */
int checkpoint_refuse_open(const struct checkpoint_manifest *manifest, const char *run_dir,
                           struct err *err);

/* Reading of committed planes, with their checksums: plain and buffered, unless it is made direct.
 */
struct checkpoint_reader {
    struct checkpoint_manifest manifest;
    const struct layout *layout; /* borrowed */
    char run_dir[FILE_PATH_MAX];
    struct stripe stripe; /* owned */
    int fds[STRIPE_DRIVES_MAX];
    bool direct[STRIPE_DRIVES_MAX];
};
int checkpoint_reader_open(struct checkpoint_reader *reader, const char *run_dir,
                           const struct layout *layout, struct err *err);
/* From now on past the page cache, so that what is read is what the drive holds: data must then be
 * aligned to IO_ALIGN. Where the file system has no such reading, nothing changes. */
void checkpoint_reader_direct(struct checkpoint_reader *reader);
void checkpoint_reader_close(struct checkpoint_reader *reader);
/* Planes [first, first + count) of a chunk into data, back to back. ERR_CORRUPT names file and
 * offset; 1: another commit has taken this one's place meanwhile: close, open and begin again. */
int checkpoint_read(struct checkpoint_reader *reader, uint32_t chunk, uint32_t first,
                    uint32_t count, void *data, struct err *err);

#endif
