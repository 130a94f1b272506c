/*
 * time_tokens train FILE PATTERN VOCAB_SIZE THREADS: seconds for learning a tokenizer from a text;
 * time_tokens encode FILE TOKENIZER THREADS: seconds for its tokens. Reading the text and the
 * tokenizer is not counted. For benchmarks/tokenizers.sh.
 */
#include "core/base.h"
#include "core/clock.h"
#include "core/mem.h"
#include "core/pool.h"
#include "io/bpe.h"
#include "io/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES (256 * KIB)

/* The text, torn where that changes no piece, and what each thread works with. */
struct work {
    char *text;
    size_t bytes;
    size_t *starts; /* of blocks, and the end */
    uint32_t block_count;
    uint32_t *tokens; /* room for one of each byte */
    uint64_t token_counts[POOL_THREADS_MAX];
    struct bpe_trainer *trainers[POOL_THREADS_MAX];
    struct bpe_encoder *encoders[POOL_THREADS_MAX];
};

/* Blocks of about BLOCK_BYTES, longer where a piece is. */
static void tear(struct work *work)
{
    work->starts = mem_alloc(work->bytes / (BLOCK_BYTES / 2) + 2, sizeof(*work->starts));
    for (size_t at = 0, most = BLOCK_BYTES; at < work->bytes;) {
        size_t left = work->bytes - at;
        size_t cut = most < left ? pretoken_cut(work->text + at, most) : left;
        if (cut <= BLOCK_BYTES / 2 && cut < left) {
            most *= 2;
            continue;
        }
        at += cut;
        most = BLOCK_BYTES;
        work->starts[++work->block_count] = at;
    }
}

static void count_block(void *context, uint32_t block, uint32_t worker)
{
    struct work *work = context;
    size_t start = work->starts[block];
    bpe_trainer_add(work->trainers[worker], work->text + start, work->starts[block + 1] - start);
}

static void encode_block(void *context, uint32_t block, uint32_t worker)
{
    struct work *work = context;
    size_t start = work->starts[block], bytes = work->starts[block + 1] - start;
    work->token_counts[worker] +=
        bpe_encode(work->encoders[worker], work->text + start, bytes, work->tokens + start, bytes);
}

static uint32_t train(struct work *work, struct pool *pool, uint32_t vocab_size)
{
    struct err err;
    struct bpe *bpe;
    pool_run(pool, count_block, work, work->block_count);
    for (uint32_t i = 1; i < pool_thread_count(pool); i++)
        bpe_trainer_merge(work->trainers[0], work->trainers[i]);
    if (bpe_train(&bpe, work->trainers[0], vocab_size, &err) != 0)
        fatal("%s", err.message);
    return bpe_vocab_size(bpe);
}

int main(int argc, char **argv)
{
    struct err err;
    struct pool *pool;
    struct work work = {0};
    bool trains = argc == 6 && strcmp(argv[1], "train") == 0;
    if (!trains && !(argc == 5 && strcmp(argv[1], "encode") == 0))
        fatal("usage: time_tokens train FILE PATTERN VOCAB_SIZE THREADS | encode FILE TOKENIZER "
              "THREADS");
    uint32_t threads = (uint32_t)atoi(argv[trains ? 5 : 4]);
    struct bpe *bpe = NULL;
    if (file_read_all(argv[2], 16 * GIB, &work.text, &work.bytes, &err) != 0 ||
        pool_open(&pool, "tokens", threads, true, &err) != 0 ||
        (!trains && bpe_load(&bpe, argv[3], &err) != 0))
        fatal("%s", err.message);
    tear(&work);
    work.tokens = mem_alloc(work.bytes + 1, sizeof(*work.tokens));
    memset(work.tokens, 1, work.bytes * sizeof(*work.tokens)); /* its pages are there */
    for (uint32_t i = 0; i < threads; i++) {
        if (trains)
            work.trainers[i] = bpe_trainer_new(pretoken_by_name(argv[3]));
        else
            work.encoders[i] = bpe_encoder_new(bpe);
    }
    uint64_t start_ns = clock_ns(), result = 0;
    if (trains)
        result = train(&work, pool, (uint32_t)atoi(argv[4]));
    else
        pool_run(pool, encode_block, &work, work.block_count);
    double seconds = (double)(clock_ns() - start_ns) * 1e-9;
    for (uint32_t i = 0; i < threads; i++)
        result += work.token_counts[i];
    printf("%.6f %llu\n", seconds, (unsigned long long)result);
    pool_close(pool);
    return 0;
}
