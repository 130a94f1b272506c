/* Writes the seeds into the folder that libFuzzer is given as its last argument. */
#include "tests/fuzz/fuzz.h"
#include <stdio.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static uint8_t seed[FUZZ_INPUT_MAX];
    size_t bytes;
    for (size_t i = 0; *argc > 1 && (bytes = fuzz_seed(i, seed)) != SIZE_MAX; i++) {
        char path[4096];
        snprintf(path, sizeof(path), "%s/seed-%zu", (*argv)[*argc - 1], i);
        FILE *file = fopen(path, "w");
        if (file == NULL)
            return 0;
        fwrite(seed, 1, bytes, file);
        fclose(file);
    }
    return 0;
}
