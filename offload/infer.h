/*
 * infer: a trained model for reading: what a run or a Hugging Face folder says of its model, its
 * compute weights in memory, and the forward pass on the CPU device. Called by sample, eval, export
 * and check.
 *
 * Never locks or writes a run. The trainer may go on meanwhile: what is read is its last commit,
 * and a commit that is replaced while it is being read is left for the newer one. The kernels and
 * the order of the head's tiles are the trainer's, so a loss has the trainer's bits when precision,
 * batch and seq are the same. One thread at a time.
 */
#ifndef SPILLWAY_OFFLOAD_INFER_H
#define SPILLWAY_OFFLOAD_INFER_H

#include "core/err.h"
#include "core/mem.h"
#include "io/bpe.h"
#include "io/file.h"
#include "io/shard.h"
#include "model/kernels.h"
#include "offload/checkpoint.h"
#include "offload/layout.h"

struct json_value;

/* How often a commit that was replaced while it was read is begun again. */
#define INFER_TRIES_MAX 100

/* Member of an exported config.json that says which run it came from and how that was trained. */
#define INFER_RECORD "spillway"

/* ---- What a folder says of its model --------------------------------------------------------- */

struct infer_model {
    char dir[FILE_PATH_MAX];
    bool is_run; /* else a Hugging Face folder */
    struct config config;
    struct tensors tensors;
    struct layout layout;
    /* As trained, in a run and in a folder that was exported of one; otherwise what the machine
     * does best, and the model's longest sequence. */
    enum precision precision;
    uint32_t seq, batch, accum;
};

/* One of the two is NULL. Refuses a folder of the other kind, saying so. */
int infer_model_open(struct infer_model *model, const char *run_dir, const char *model_dir,
                     struct err *err);
void infer_model_close(struct infer_model *model); /* a zeroed one is legal */

/* The members of INFER_RECORD for a commit of the run. */
struct json_value *infer_record(const struct infer_model *model,
                                const struct checkpoint_manifest *manifest);

/* Calls read(context, reader, err) on the run's last commit, again on the newer one each time it
 * returns 1 (as checkpoint_read does), INFER_TRIES_MAX times at most. */
int infer_read_commit(const struct infer_model *model,
                      int (*read)(void *context, struct checkpoint_reader *reader, struct err *err),
                      void *context, struct err *err);

/* ---- A model that computes ------------------------------------------------------------------- */

enum infer_work {
    WORK_X,
    WORK_X_NEXT,
    WORK_INNER,
    WORK_SCRATCH,
    WORK_Y,
    WORK_STATISTICS,
    WORK_RUNNING,
    WORK_LOSSES,
    WORK_TOKENS,
    WORK_TARGETS,
    WORK_COUNT
};

struct infer {
    struct infer_model model;
    struct bpe *bpe;          /* owned */
    enum precision precision; /* that is computed in */
    uint64_t step;            /* of the commit; 0 for a folder */
    struct mem_arena weights; /* owned: every group's padded vector, back to back */
    uint64_t *group_offset;   /* owned; [group_count + 1], in parameters */
    struct pool *pool;        /* owned */

    /* For one shape at a time. */
    struct kernels *kernels; /* owned */
    struct kernels_shape shape;
    struct mem_arena work_arena; /* owned */
    void *work[WORK_COUNT];      /* into work_arena */
};

/* precision: "fp32", "bf16", or NULL for the model's own. Reads all weights, with their checksums
 * where they have some. On an error *infer is closed. */
int infer_open(struct infer *infer, const char *run_dir, const char *model_dir,
               const char *precision, struct err *err);
void infer_close(struct infer *infer); /* a zeroed one is legal */

/* Tokens that can be sampled: ids of the tokenizer, which may have fewer than the model. */
uint32_t infer_token_count(const struct infer *infer);

/* Logits [vocab] of the token that follows tokens[0..count), of which the last `positions` count;
 * count > 0. Cost grows with the context: the whole of it is computed for every token. */
int infer_logits(struct infer *infer, const uint32_t *tokens, uint64_t count, float *logits,
                 struct err *err);

struct infer_sampling {
    double temperature; /* 0: always the likeliest token */
    uint32_t top_k;     /* only the k likeliest; 0: all */
    uint64_t seed;
};
/* Which of logits[0..count) is drawn as number `index`; the same for the same arguments. Ties go to
 * the lower id. candidates: room for count. */
struct infer_candidate {
    float logit;
    uint32_t token;
};
uint32_t infer_draw(const struct infer_sampling *sampling, const float *logits, uint32_t count,
                    uint64_t index, struct infer_candidate *candidates);

/* What train calls val_loss: the mean over `steps` steps of accum x batch sequences in the order of
 * evaluations; steps 0: as many as it takes to meet every window once (the last step begins again
 * at the first where they do not divide). */
struct infer_evaluation {
    const struct shard *shard;
    uint32_t seq, batch, accum;
    uint64_t steps;       /* out: those that were made */
    uint64_t token_count; /* out */
    double loss;          /* out: mean, nats per token */
};
int infer_evaluate(struct infer *infer, struct infer_evaluation *evaluation, struct err *err);

#endif
