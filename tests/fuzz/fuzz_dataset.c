/*
 * A data folder of any bytes. The first two bytes say how many of the rest are dataset.json; what
 * follows is train.tok, whose header's checksum is put right if the byte after says so, since no
 * mutation would pass it. What opens is read to its end.
 */
#include "core/base.h"
#include "core/hash.h"
#include "core/json.h"
#include "io/dataset.h"
#include "tests/fuzz/files.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

#define CHECKSUM_AT 56 /* in the header of a shard (io/shard.c) */

static void try_shard(const char *path)
{
    struct err err;
    struct shard shard;
    uint32_t token;
    if (shard_open(&shard, path, &err) != 0)
        return;
    if (shard_verify(&shard, path, &err) == 0)
        for (uint64_t i = 0; i < MIN(shard.token_count, (uint64_t)64); i++) {
            shard_read(&shard, shard.token_count - 1 - i, &token, 1);
            ASSERT(token < shard.vocab_size);
        }
    shard_close(&shard);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static uint8_t shard[FUZZ_INPUT_MAX];
    struct err err;
    struct dataset dataset;
    if (bytes < 3)
        return 0;
    size_t json = MIN((size_t)data[0] + 256 * (size_t)data[1], bytes - 3);
    size_t shard_bytes = bytes - 3 - json;
    memcpy(shard, data + 3 + json, shard_bytes);
    if (data[2] % 2 == 1 && shard_bytes >= SHARD_HEADER_BYTES) {
        memset(shard + CHECKSUM_AT, 0, 8);
        uint64_t checksum = hash_bytes(shard, SHARD_HEADER_BYTES, 0);
        memcpy(shard + CHECKSUM_AT, &checksum, 8);
    }
    fuzz_write(DATASET_FILE, data + 3, json);
    fuzz_write(DATASET_TOKENIZER_FILE, "{}", 2);
    try_shard(fuzz_write(DATASET_TRAIN_FILE, shard, shard_bytes));
    if (dataset_open(&dataset, fuzz_folder(), &err) == 0)
        dataset_close(&dataset);
    return 0;
}

size_t fuzz_seed(size_t index, uint8_t *to)
{
    struct err err;
    struct shard_writer *writer;
    if (index >= 2)
        return SIZE_MAX;
    const char *path = fuzz_path(DATASET_TRAIN_FILE);
    ASSERT(shard_writer_open(&writer, path, index == 0 ? 300 : 70000, 1, &err) == 0);
    for (int i = 0; i < 20; i++)
        ASSERT(shard_writer_add(writer, (uint32_t[]){1, 2, 7}, 3, &err) == 0);
    ASSERT(shard_writer_close(writer, &err) == 0);
    fuzz_write(DATASET_TOKENIZER_FILE, "{}", 2);
    ASSERT(dataset_seal(fuzz_folder(), false, json_new_object(), &err) == 0);
    size_t json = fuzz_read(DATASET_FILE, to + 3, 8192);
    to[0] = (uint8_t)json;
    to[1] = (uint8_t)(json / 256);
    to[2] = 1;
    return 3 + json + fuzz_read(DATASET_TRAIN_FILE, to + 3 + json, 16384);
}
