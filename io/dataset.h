/*
 * dataset: a prepared data folder: train.tok, perhaps val.tok, tokenizer.json, and dataset.json,
 * which says what they were made of and is written last.
 *
 * A folder without dataset.json is no dataset: prep was interrupted (tools/prep_state.h). Opening
 * checks that the four files belong together (counts, vocabulary, hash of the tokenizer), so that a
 * file copied from elsewhere is refused. Written by prep, opened by train, eval and check.
 */
#ifndef SPILLWAY_IO_DATASET_H
#define SPILLWAY_IO_DATASET_H

#include "core/err.h"
#include "io/shard.h"
#include <stdbool.h>
#include <stdint.h>

#define DATASET_FILE           "dataset.json"
#define DATASET_TRAIN_FILE     "train.tok"
#define DATASET_VAL_FILE       "val.tok"
#define DATASET_TOKENIZER_FILE "tokenizer.json"
#define DATASET_UNFINISHED     "unfinished" /* a folder in it while prep is not done */

struct json_value;

struct dataset {
    struct shard train;
    struct shard val; /* zeroed unless has_val */
    bool has_val;
    uint32_t vocab;
    uint64_t tokenizer_hash; /* bpe_hash of tokenizer.json */
};

/* Reads dataset.json and opens the shards; does not read the tokens (shard_verify does). On an
 * error *dataset is zeroed. */
int dataset_open(struct dataset *dataset, const char *dir, struct err *err);
void dataset_close(struct dataset *dataset); /* a zeroed one is legal */

/* Removes dataset.json durably, so that what is written next is no dataset until it is sealed. */
int dataset_unseal(const char *dir, struct err *err);

/* Writes dataset.json from the files that lie in dir; details (where the text came from; owned,
 * freed whatever is returned) becomes its member "prepared". */
int dataset_seal(const char *dir, bool has_val, struct json_value *details, struct err *err);

#endif
