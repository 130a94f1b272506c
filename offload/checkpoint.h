/*
 * checkpoint: commits and their manifests: RUN/commit.json says which slot of which state file is
 * complete, for which step, and the checksum of every plane in it.
 *
 * A commit is a flush of the state file and one atomic replacement of the manifest; nothing of the
 * NVMe-resident state is copied. A reader (sample, eval, export, check, --resume) opens the
 * manifest and reads the slot it names; a trainer that goes on meanwhile writes only the other slot
 * until its next commit, after which the reader's checksums catch what has changed and it starts
 * again.
 */
#ifndef SPILLWAY_OFFLOAD_CHECKPOINT_H
#define SPILLWAY_OFFLOAD_CHECKPOINT_H

#include "core/err.h"
#include "offload/tier.h"

#define CHECKPOINT_MANIFEST_FILE "commit.json"
/* The state of a run without an NVMe folder, and of a kept commit, in the run's own folder. */
#define CHECKPOINT_STATE_FILE "state.bin"

struct checkpoint {
    char run_dir[FILE_PATH_MAX];
    uint64_t step;   /* of the commit that is being made: set by the trainer beforehand */
    uint64_t tokens; /* trained on so far, with that step */
    char *text;      /* owned; room for the manifest: a commit allocates nothing */
    size_t text_max;
    uint64_t weights_hash; /* of the last commit */
};

void checkpoint_init(struct checkpoint *checkpoint, const char *run_dir,
                     const struct layout *layout);
void checkpoint_deinit(struct checkpoint *checkpoint);

/* Flushes the state file, replaces the manifest, and turns the slots around. Everything of the open
 * slot has been written and tier->plane_sums are its sums. */
int checkpoint_commit(struct checkpoint *checkpoint, struct tier *tier, struct err *err);

/* Copies the commit that has just been made to RUN/kept/step-<number>, a folder that can be
 * sampled, exported and resumed like a run. Allocates nothing. */
bool checkpoint_is_kept(const struct checkpoint *checkpoint, uint64_t step);
int checkpoint_keep(struct checkpoint *checkpoint, const struct tier *tier, struct err *err);

/* A committed state, as a reader sees it. */
struct checkpoint_manifest {
    uint64_t step, tokens, weights_hash;
    uint32_t slot;
    uint64_t parameters; /* real, of the model */
    enum moments_kind moments;
    char state_path[FILE_PATH_MAX];
    uint64_t *plane_sums; /* owned; [chunk * 4 + plane] */
    uint32_t chunk_count;
};

/* 0; 1 when the run has no commit yet (manifest is then zeroed); or an error. layout NULL: it
 * is not checked that the state is of that model, with moments of that kind. */
int checkpoint_load(struct checkpoint_manifest *manifest, const char *run_dir,
                    const struct layout *layout, struct err *err);
void checkpoint_unload(struct checkpoint_manifest *manifest);

/* Plain (buffered) reading of committed planes, with their checksums. */
struct checkpoint_reader {
    struct checkpoint_manifest manifest;
    const struct layout *layout; /* borrowed */
    char run_dir[FILE_PATH_MAX];
    int fd;
};
int checkpoint_reader_open(struct checkpoint_reader *reader, const char *run_dir,
                           const struct layout *layout, struct err *err);
void checkpoint_reader_close(struct checkpoint_reader *reader);
/* Planes [first, first + count) of a chunk into data, back to back. ERR_CORRUPT names file and
 * offset; 1: another commit has taken this one's place meanwhile: close, open and begin again. */
int checkpoint_read(struct checkpoint_reader *reader, uint32_t chunk, uint32_t first,
                    uint32_t count, void *data, struct err *err);

#endif
