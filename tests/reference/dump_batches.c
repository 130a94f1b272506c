/*
 * dump_batches DATA_DIR SEED SEQ BATCH ACCUM STEPS > FILE: the tokens that a run with these
 * settings trains on, for tests/reference/train_gpt2.py: uint32, [step][M][B][2][T], inputs then
 * targets.
 */
#include "core/mem.h"
#include "io/batch.h"
#include "io/dataset.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    struct err err;
    struct dataset dataset;
    struct batch_source source;
    if (argc != 7)
        fatal("usage: dump_batches DATA_DIR SEED SEQ BATCH ACCUM STEPS");
    uint32_t seq = (uint32_t)strtoul(argv[3], NULL, 10);
    uint64_t sequences =
        strtoull(argv[4], NULL, 10) * strtoull(argv[5], NULL, 10) * strtoull(argv[6], NULL, 10);
    if (dataset_open(&dataset, argv[1], &err) != 0 ||
        batch_init(&source, &dataset.train, strtoull(argv[2], NULL, 10), seq, &err) != 0)
        fatal("%s", err.message);
    uint32_t *tokens = mem_alloc(2 * (uint64_t)seq, sizeof(*tokens));
    for (uint64_t i = 0; i < sequences; i++) {
        batch_sequence(&source, i, tokens, tokens + seq);
        if (fwrite(tokens, sizeof(*tokens), 2 * (size_t)seq, stdout) != 2 * (size_t)seq)
            fatal("cannot write the batches: is the disk full?");
    }
    mem_free(tokens);
    dataset_close(&dataset);
    return fclose(stdout) ? 1 : 0;
}
