#include "tests/fuzz/files.h"
#include "core/base.h"
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char folder[64];

static void remove_folder(void)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    if (system(command) != 0)
        fprintf(stderr, "cannot remove %s\n", folder);
}

const char *fuzz_folder(void)
{
    if (folder[0] != '\0')
        return folder;
    bool in_memory = access("/dev/shm", W_OK) == 0;
    snprintf(folder, sizeof(folder), "%s/spillway-fuzz-XXXXXX", in_memory ? "/dev/shm" : "/tmp");
    ASSERT(mkdtemp(folder) != NULL);
    atexit(remove_folder);
    return folder;
}

const char *fuzz_path(const char *name)
{
    static char paths[4][128];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", fuzz_folder(), name);
    return path;
}

const char *fuzz_write(const char *name, const void *data, size_t bytes)
{
    const char *path = fuzz_path(name);
    FILE *file = fopen(path, "w");
    ASSERT(file != NULL);
    ASSERT(fwrite(data, 1, bytes, file) == bytes);
    ASSERT(fclose(file) == 0);
    return path;
}

size_t fuzz_read(const char *name, void *to, size_t most)
{
    FILE *file = fopen(fuzz_path(name), "r");
    ASSERT(file != NULL);
    size_t bytes = fread(to, 1, most, file);
    ASSERT(fclose(file) == 0);
    return bytes;
}
