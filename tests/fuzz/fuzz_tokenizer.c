/*
 * Tokenizers of any bytes: a tokenizer.json; vocab.json and merges.txt, which the input parts by a
 * NUL; a list of ranks. What loads gives any bytes back, and is the same when it is saved and
 * loaded again.
 */
#include "core/base.h"
#include "core/mem.h"
#include "io/bpe.h"
#include "tests/fuzz/files.h"
#include "tests/fuzz/fuzz.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static void try_encoding(const struct bpe *bpe, const char *text, size_t bytes)
{
    char back[2048];
    uint32_t tokens[1024];
    size_t used = 0, token_bytes;
    bytes = MIN(bytes, sizeof(tokens) / sizeof(tokens[0]));
    struct bpe_encoder *encoder = bpe_encoder_new(bpe);
    size_t count = bpe_encode(encoder, text, bytes, tokens, ARRAY_COUNT(tokens));
    for (size_t i = 0; i < count; i++) {
        ASSERT(tokens[i] < bpe_vocab_size(bpe));
        const char *token = bpe_token_bytes(bpe, tokens[i], &token_bytes);
        ASSERT(used + token_bytes <= bytes);
        memcpy(back + used, token, token_bytes);
        used += token_bytes;
    }
    ASSERT(used == bytes && memcmp(back, text, bytes) == 0);
    bpe_encoder_free(encoder);
}

static void try_tokenizer(const char *path, const char *text, size_t bytes)
{
    struct err err;
    struct bpe *bpe, *again;
    if (bpe_load(&bpe, path, &err) != 0)
        return;
    try_encoding(bpe, text, bytes);
    const char *saved = fuzz_path("saved");
    mkdir(saved, 0777);
    ASSERT(bpe_save(bpe, saved, &err) == 0);
    if (bpe_load(&again, saved, &err) != 0)
        fatal("what was saved does not load: %s", err.message);
    ASSERT(bpe_hash(again) == bpe_hash(bpe));
    try_encoding(again, text, bytes);
    bpe_free(again);
    bpe_free(bpe);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text = (const char *)data;
    const uint8_t *parted = memchr(data, 0, bytes);
    mkdir(fuzz_path("pair"), 0777);
    mkdir(fuzz_path("json"), 0777);
    if (parted != NULL) {
        size_t first = (size_t)(parted - data);
        fuzz_write("pair/vocab.json", data, first);
        fuzz_write("pair/merges.txt", parted + 1, bytes - first - 1);
        try_tokenizer(fuzz_path("pair"), text, bytes);
    } else if (bytes > 0 && data[0] == '{') {
        fuzz_write("json/tokenizer.json", data, bytes);
        try_tokenizer(fuzz_path("json/tokenizer.json"), text, bytes);
    } else {
        try_tokenizer(fuzz_write("ranks.tiktoken", data, bytes), text, bytes);
    }
    return 0;
}

/* A tokenizer that was learned from two words, with each pattern, in both forms; and some ranks. */
size_t fuzz_seed(size_t index, uint8_t *to)
{
    static const char ranks[] = "IQ== 0\nIg== 1\nIw== 2\nJA== 3\nIGE= 4\n";
    struct err err;
    struct bpe *bpe;
    if (index > PRETOKEN_KINDS + 1)
        return SIZE_MAX;
    if (index > PRETOKEN_KINDS) {
        memcpy(to, ranks, sizeof(ranks) - 1);
        return sizeof(ranks) - 1;
    }
    bool pair = index == PRETOKEN_KINDS;
    struct bpe_trainer *trainer = bpe_trainer_new(pair ? PRETOKEN_GPT2 : (enum pretoken_kind)index);
    bpe_trainer_add(trainer, "banana bandana banana bandana", 29);
    ASSERT(bpe_train(&bpe, trainer, 264, &err) == 0);
    bpe_trainer_free(trainer);
    ASSERT(bpe_save(bpe, fuzz_folder(), &err) == 0 && bpe_save_gpt2(bpe, fuzz_folder(), &err) == 0);
    bpe_free(bpe);
    size_t bytes = fuzz_read(pair ? "vocab.json" : "tokenizer.json", to, FUZZ_INPUT_MAX / 2);
    if (pair) {
        to[bytes++] = 0;
        bytes += fuzz_read("merges.txt", to + bytes, FUZZ_INPUT_MAX / 2);
    }
    return bytes;
}
