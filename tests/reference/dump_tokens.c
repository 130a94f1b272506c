/*
 * dump_tokens TOKENIZER FILE [check] > IDS: encodes strings and writes their ids, for
 * tests/reference/compare_tokenizers.py. FILE holds records, each a uint32 of bytes and those
 * bytes; out come records of a uint32 of ids and those ids. Fails where decoding does not give the
 * bytes back. With "check" it encodes by the patterns themselves instead of the scanners.
 */
#include "core/base.h"
#include "core/mem.h"
#include "io/bpe.h"
#include "io/file.h"

#include <stdio.h>
#include <string.h>

static void check_decoding(const struct bpe *bpe, const uint32_t *tokens, size_t count,
                           const char *text, size_t bytes)
{
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t token_bytes;
        const char *token = bpe_token_bytes(bpe, tokens[i], &token_bytes);
        if (token_bytes > bytes - at || memcmp(token, text + at, token_bytes) != 0)
            fatal("decoding gives other bytes than were encoded");
        at += token_bytes;
    }
    if (at != bytes)
        fatal("decoding gives fewer bytes than were encoded");
}

int main(int argc, char **argv)
{
    struct err err;
    struct bpe *bpe;
    char *text;
    size_t bytes;
    if (argc < 3)
        fatal("usage: dump_tokens TOKENIZER FILE [check]");
    if (bpe_load(&bpe, argv[1], &err) != 0 ||
        file_read_all(argv[2], 16 * GIB, &text, &bytes, &err) != 0)
        fatal("%s", err.message);
    struct bpe_encoder *encoder = argc > 3 ? bpe_encoder_new_checking(bpe) : bpe_encoder_new(bpe);
    for (size_t at = 0; at < bytes;) {
        uint32_t record;
        memcpy(&record, text + at, sizeof(record));
        at += sizeof(record);
        ASSERT(record <= bytes - at);
        uint32_t *tokens = mem_alloc((uint64_t)record + 1, sizeof(*tokens));
        uint32_t count = (uint32_t)bpe_encode(encoder, text + at, record, tokens, record);
        check_decoding(bpe, tokens, count, text + at, record);
        if (fwrite(&count, sizeof(count), 1, stdout) != 1 ||
            fwrite(tokens, sizeof(*tokens), count, stdout) != count)
            fatal("cannot write the ids: is the disk full?");
        mem_free(tokens);
        at += record;
    }
    bpe_encoder_free(encoder);
    bpe_free(bpe);
    mem_free(text);
    return fclose(stdout) ? 1 : 0;
}
