/*
 * Other trainers' token files of any bytes. The first two bytes say how many of the rest are the
 * index that Megatron has beside its tokens.
 */
#include "core/base.h"
#include "io/foreign.h"
#include "tests/fuzz/files.h"
#include "tests/fuzz/fuzz.h"
#include <string.h>

#define VOCAB 300
#define END   7

static void read_all(enum foreign_format format, const char *path, size_t bytes)
{
    static struct foreign_piece piece;
    struct foreign_file file;
    struct err err;
    uint64_t pieces = 0, tokens = 0;
    if (foreign_open(&file, format, path, VOCAB, END, &err) != 0)
        return;
    while (foreign_next(&file, &piece, &err) == 1) {
        ASSERT(piece.count <= FOREIGN_PIECE_MAX);
        for (size_t i = 0; i < piece.count; i++)
            ASSERT(piece.tokens[i] < VOCAB && piece.tokens[i] != END);
        tokens += piece.count;
        /* Megatron's sequences may share tokens, so there is no bound but that of the index. */
        ASSERT(++pieces <= (bytes + 2) * (bytes + 2));
        if (tokens > 1000000)
            break;
    }
    foreign_close(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    if (bytes < 2)
        return 0;
    size_t index = MIN((size_t)data[0] + 256 * (size_t)data[1], bytes - 2);
    const char *path = fuzz_write("a.bin", data + 2 + index, bytes - 2 - index);
    fuzz_write("a.idx", data + 2, index);
    read_all(FOREIGN_MEGATRON, path, bytes);
    path = fuzz_write("b.bin", data + 2, bytes - 2);
    read_all(FOREIGN_NANOGPT, path, bytes);
    read_all(FOREIGN_LLMC, path, bytes);
    return 0;
}

/* Two documents in each format, as we write them. */
size_t fuzz_seed(size_t index, uint8_t *to)
{
    struct err err;
    struct shard shard;
    struct shard_writer *writer;
    if (index >= 2 * FOREIGN_FORMATS)
        return SIZE_MAX;
    enum foreign_format format = (enum foreign_format)(index % FOREIGN_FORMATS);
    uint32_t vocab = index < FOREIGN_FORMATS || format == FOREIGN_NANOGPT ? VOCAB : 70000;
    ASSERT(shard_writer_open(&writer, fuzz_path("seed.tok"), vocab, 1, &err) == 0);
    ASSERT(shard_writer_add(writer, (uint32_t[]){1, 2, END}, 3, &err) == 0);
    ASSERT(shard_writer_add(writer, (uint32_t[]){3, END}, 2, &err) == 0);
    ASSERT(shard_writer_close(writer, &err) == 0);
    ASSERT(shard_open(&shard, fuzz_path("seed.tok"), &err) == 0);
    ASSERT(foreign_write(&shard, format, END, fuzz_folder(), "seed", &err) == 0);
    shard_close(&shard);
    size_t used = 2;
    if (format == FOREIGN_MEGATRON)
        used += fuzz_read("seed.idx", to + 2, 30000);
    to[0] = (uint8_t)(used - 2);
    to[1] = (uint8_t)((used - 2) / 256);
    return used +
           fuzz_read(format == FOREIGN_LLMC ? "seed_000001.bin" : "seed.bin", to + used, 30000);
}
