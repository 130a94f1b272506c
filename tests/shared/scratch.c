#include "tests/shared/scratch.h"
#include "core/base.h"
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[2048];
static pid_t owner;

static int remove_entry(const char *path, const struct stat *info, int kind, struct FTW *place)
{
    (void)info, (void)kind, (void)place;
    return remove(path);
}

void scratch_remove(const char *path)
{
    nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* A child that was forked off must not take its parent's folder away. */
static void remove_folder(void)
{
    if (getpid() == owner)
        nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

const char *scratch_dir(void)
{
    if (folder[0] != 0)
        return folder;
    const char *parent = getenv("TMPDIR");
    if (parent == NULL) {
        parent = "build";
        mkdir(parent, 0755);
    }
    snprintf(folder, sizeof(folder), "%s/test-XXXXXX", parent);
    ASSERT(mkdtemp(folder) != NULL);
    owner = getpid();
    atexit(remove_folder);
    return folder;
}

const char *scratch_path(const char *name)
{
    static char paths[8][4096];
    static unsigned next;
    char *path = paths[next++ % ARRAY_COUNT(paths)];
    int bytes = snprintf(path, sizeof(paths[0]), "%s/%s", scratch_dir(), name);
    ASSERT(bytes > 0 && (size_t)bytes < sizeof(paths[0]));
    return path;
}

const char *scratch_write(const char *name, const char *text)
{
    const char *path = scratch_path(name);
    char parent[4096];
    for (const char *slash = path + strlen(scratch_dir()) + 1; (slash = strchr(slash, '/'));
         slash++) {
        snprintf(parent, sizeof(parent), "%.*s", (int)(slash - path), path);
        mkdir(parent, 0755);
    }
    FILE *file = fopen(path, "wb");
    ASSERT(file != NULL);
    ASSERT(fwrite(text, 1, strlen(text), file) == strlen(text));
    ASSERT(fclose(file) == 0);
    return path;
}

char *scratch_read(const char *path)
{
    FILE *file = fopen(path, "rb");
    ASSERT(file != NULL);
    char *text = NULL;
    size_t size = 0, used = 0, got = 0;
    do {
        used += got;
        if (used + 1 >= size) {
            size = size * 2 + 4096;
            text = realloc(text, size);
            ASSERT(text != NULL);
        }
    } while ((got = fread(text + used, 1, size - used - 1, file)) > 0);
    text[used] = 0;
    ASSERT(fclose(file) == 0);
    return text;
}
