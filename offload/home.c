#include "offload/home.h"

#include "core/hash.h"
#include "core/log.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The folders as they really are, in the order of their names, whatever order they were given in;
 * into files->path, which the names of the files are added to later. */
static int sort_folders(struct stripe_files *files, const struct train_nvme *nvme, struct err *err)
{
    files->count = nvme->count;
    for (uint32_t d = 0; d < nvme->count; d++) {
        char real[PATH_MAX];
        if (!realpath(nvme->dir[d], real))
            return err_set_errno(err, errno, "cannot resolve %s", nvme->dir[d]);
        uint32_t at = d;
        for (; at > 0 && strcmp(files->path[at - 1], real) > 0; at--) {
            strcpy(files->path[at], files->path[at - 1]);
            files->share[at] = files->share[at - 1];
        }
        if (at > 0 && strcmp(files->path[at - 1], real) == 0)
            return err_set(err, ERR_INPUT, "--nvme names the folder %s twice", real);
        strcpy(files->path[at], real);
        files->share[at] = nvme->share[d];
    }
    return 0;
}

static int name_files(struct home *home, struct err *err)
{
    struct stripe_files *files = &home->files;
    uint64_t set = 0;
    for (uint32_t d = 0; d < files->count; d++)
        set = hash_bytes(files->path[d], strlen(files->path[d]), set + 1);
    for (uint32_t d = 0; d < files->count; d++) {
        char name[96], dir[FILE_PATH_MAX];
        if (files->count == 1)
            snprintf(name, sizeof(name), "%s.state", home->prefix);
        else
            snprintf(name, sizeof(name), "%s-%08" PRIx64 "-%uof%u.state", home->prefix, set >> 32,
                     d + 1, files->count);
        strcpy(dir, files->path[d]);
        int result = file_join(files->path[d], dir, name, err);
        if (result)
            return result;
    }
    return 0;
}

int home_find(struct home *home, const struct train_settings *settings, struct err *err)
{
    char real[PATH_MAX];
    struct stat folder;
    if (!realpath(settings->run_dir, real) || stat(real, &folder) != 0)
        return err_set_errno(err, errno, "cannot resolve %s", settings->run_dir);
    snprintf(home->prefix, sizeof(home->prefix), "spillway-%016" PRIx64,
             hash_bytes(real, strlen(real), folder.st_ino));
    int result = file_join(home->own, real, CHECKPOINT_STATE_FILE, err);
    if (result)
        return result;
    if (!settings->nvme.count)
        return stripe_files_one(&home->files, home->own, err);
    result = sort_folders(&home->files, &settings->nvme, err);
    return result ? result : name_files(home, err);
}

static bool is_ours(const struct home *home, const char *path)
{
    const char *slash = strrchr(path, '/');
    return strcmp(path, home->own) == 0 ||
           strncmp(slash ? slash + 1 : path, home->prefix, strlen(home->prefix)) == 0;
}

void home_leave(const struct home *home, const struct stripe_files *old)
{
    for (uint32_t d = 0; d < old->count; d++) {
        if (is_ours(home, old->path[d]))
            unlink(old->path[d]);
        else
            log_line("%s is left as it is: it was made for another folder than this run's; remove "
                     "it if that one is gone",
                     old->path[d]);
    }
}

void home_clean(const struct home *home)
{
    for (uint32_t d = 0; d < home->files.count; d++)
        if (strcmp(home->files.path[d], home->own) == 0)
            return;
    unlink(home->own);
}
