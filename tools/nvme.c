#include "tools/nvme.h"

#include "core/log.h"
#include "io/file.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHARES_SUM 1000

/* ---- Names ----------------------------------------------------------------------------------- */

/* The last folder of the path that is there: a tier's own may still have to be made. */
static void find_existing(char path[FILE_PATH_MAX])
{
    while (!file_exists(path) && strchr(path, '/')) {
        char *slash = strrchr(path, '/');
        slash[slash == path] = 0;
    }
}

/* Where the file system of an absolute path is mounted: the highest folder on the same device. */
static int find_mount(const char *dir, char mount[FILE_PATH_MAX], struct err *err)
{
    char real[PATH_MAX], path[FILE_PATH_MAX];
    struct stat here, above;
    strcpy(path, dir);
    find_existing(path);
    if (!realpath(path, real) || stat(real, &here) != 0 || strlen(real) >= FILE_PATH_MAX)
        return err_set_errno(err, errno, "cannot look at %s", path);
    strcpy(mount, real);
    while (strcmp(mount, "/") != 0) {
        strcpy(path, mount);
        char *slash = strrchr(path, '/');
        slash[slash == path] = 0;
        if (stat(path, &above) != 0 || above.st_dev != here.st_dev)
            break;
        strcpy(mount, path);
    }
    return 0;
}

static int add_folder(struct nvme_list *list, const char *name, size_t bytes, struct err *err)
{
    if (bytes == 0)
        return err_set(err, ERR_USAGE, "--nvme has an empty name in its list of folders");
    if (list->count == STRIPE_DRIVES_MAX)
        return err_set(err, ERR_USAGE, "--nvme takes at most %d folders", STRIPE_DRIVES_MAX);
    char here[FILE_PATH_MAX] = "", *dir = list->dir[list->count];
    if (*name != '/' && !getcwd(here, sizeof(here)))
        return err_set_errno(err, errno, "cannot find the current folder");
    int written =
        snprintf(dir, FILE_PATH_MAX, "%s%s%.*s", here, *here ? "/" : "", (int)bytes, name);
    if (written >= FILE_PATH_MAX)
        return err_set(err, ERR_INPUT, "the name of the folder is too long: %.*s", (int)bytes,
                       name);
    size_t used = strlen(list->text);
    snprintf(list->text + used, sizeof(list->text) - used, "%s%s", used ? "," : "", dir);
    return find_mount(dir, list->mount[list->count++], err);
}

int nvme_parse(struct nvme_list *list, const char *text, struct err *err)
{
    list->count = 0;
    list->text[0] = 0;
    if (!text)
        return 0;
    if (file_exists(text))
        return add_folder(list, text, strlen(text), err);
    for (;;) {
        size_t bytes = strcspn(text, ",");
        int result = add_folder(list, text, bytes, err);
        if (result || !text[bytes])
            return result;
        text += bytes + 1;
    }
}

struct train_nvme nvme_folders(const struct nvme_list *list)
{
    struct train_nvme nvme = {.count = list->count};
    for (uint32_t d = 0; d < list->count; d++) {
        nvme.dir[d] = list->dir[d];
        nvme.share[d] = 1;
    }
    return nvme;
}

/* ---- What was measured of the drives --------------------------------------------------------- */

static const struct profile_drive *find_drive(const struct profile *profile, const char *mount)
{
    for (uint32_t d = 0; d < profile->drive_count; d++)
        if (strcmp(profile->drives[d].mount, mount) == 0)
            return &profile->drives[d];
    return NULL;
}

/* How many folders of the list are on this one's drive. */
static uint32_t folders_beside(const struct nvme_list *list, uint32_t folder)
{
    uint32_t count = 0;
    for (uint32_t d = 0; d < list->count; d++)
        count += strcmp(list->mount[d], list->mount[folder]) == 0;
    return count;
}

bool nvme_is_first(const struct nvme_list *list, uint32_t folder)
{
    for (uint32_t d = 0; d < folder; d++)
        if (strcmp(list->mount[d], list->mount[folder]) == 0)
            return false;
    return true;
}

static bool knows_all(const struct nvme_list *list, const struct profile *profile)
{
    bool all = list->count > 0;
    for (uint32_t d = 0; d < list->count; d++)
        all = all && find_drive(profile, list->mount[d]);
    return all;
}

static double mixed_rate(const struct nvme_list *list, const struct profile *profile, uint32_t d)
{
    const struct profile_drive *drive = find_drive(profile, list->mount[d]);
    return (drive->mixed_read_bytes_per_s + drive->mixed_write_bytes_per_s) /
           folders_beside(list, d);
}

void nvme_share(const struct nvme_list *list, const struct profile *profile,
                struct train_nvme *nvme)
{
    double sum = 0;
    if (list->count < 2)
        return;
    for (uint32_t d = 0; d < list->count; d++)
        if (folders_beside(list, d) > 1) {
            log_warn("several folders of --nvme are on the drive at %s: nothing is gained by that",
                     list->mount[d]);
            break;
        }
    if (!knows_all(list, profile)) {
        log_line("the state is shared equally among %u drives: 'spillway bench ssd --nvme %s' "
                 "would measure each",
                 list->count, list->text);
        return;
    }
    for (uint32_t d = 0; d < list->count; d++)
        sum += mixed_rate(list, profile, d);
    for (uint32_t d = 0; d < list->count; d++) {
        double share = SHARES_SUM * mixed_rate(list, profile, d) / sum;
        nvme->share[d] = (uint32_t)MAX(1, share + 0.5);
        log_line("%s takes %.1f %% of the state, by what the drive gives", list->dir[d],
                 100 * share / SHARES_SUM);
    }
}

void nvme_profile(const struct nvme_list *list, struct profile *profile)
{
    struct profile_ssd *ssd = &profile->ssd;
    if (!list->count || !ssd->count)
        return;
    uint32_t count = 0;
    struct profile_drive sum = {0};
    bool known = knows_all(list, profile);
    for (uint32_t d = 0; d < list->count; d++) {
        if (!nvme_is_first(list, d))
            continue;
        count++;
        if (!known)
            continue;
        const struct profile_drive *drive = find_drive(profile, list->mount[d]);
        sum.read_bytes_per_s += drive->read_bytes_per_s;
        sum.write_bytes_per_s += drive->write_bytes_per_s;
        sum.mixed_read_bytes_per_s += drive->mixed_read_bytes_per_s;
        sum.mixed_write_bytes_per_s += drive->mixed_write_bytes_per_s;
        sum.sustained_write_bytes_per_s += drive->sustained_write_bytes_per_s;
    }
    ssd->count = count;
    if (!known)
        return;
    ssd->read_bytes_per_s = sum.read_bytes_per_s / count;
    ssd->write_bytes_per_s = sum.write_bytes_per_s / count;
    ssd->mixed_read_bytes_per_s = sum.mixed_read_bytes_per_s / count;
    ssd->mixed_write_bytes_per_s = sum.mixed_write_bytes_per_s / count;
    ssd->sustained_write_bytes_per_s = sum.sustained_write_bytes_per_s / count;
}

/* ---- What is free ---------------------------------------------------------------------------- */

/* What is free on the drive of this folder, and what files of the list are on it already. */
static int room_on_drive(const struct nvme_list *list, uint32_t folder,
                         const struct stripe_files *held, uint64_t *bytes, struct err *err)
{
    struct stat mount, file;
    int result = file_free_bytes(list->mount[folder], bytes, err);
    if (result == 0 && stat(list->mount[folder], &mount) != 0)
        result = err_set_errno(err, errno, "cannot look at %s", list->mount[folder]);
    for (uint32_t d = 0; d < held->count && result == 0; d++)
        if (stat(held->path[d], &file) == 0 && file.st_dev == mount.st_dev)
            *bytes += (uint64_t)file.st_blocks * 512;
    return result;
}

int nvme_free_bytes(const struct nvme_list *list, const struct train_nvme *nvme,
                    const struct stripe_files *held, uint64_t *bytes, struct err *err)
{
    double shares = 0, most = (double)UINT64_MAX;
    for (uint32_t d = 0; d < list->count; d++)
        shares += nvme->share[d];
    for (uint32_t d = 0; d < list->count; d++) {
        double here = 0;
        uint64_t room;
        int result = room_on_drive(list, d, held, &room, err);
        if (result)
            return result;
        for (uint32_t e = 0; e < list->count; e++)
            here += strcmp(list->mount[e], list->mount[d]) == 0 ? nvme->share[e] : 0;
        most = MIN(most, (double)room * shares / here);
    }
    /* Dealing by whole chunks may give a drive a chunk or two more than its share. */
    *bytes = (uint64_t)most - MIN((uint64_t)most, list->count > 1 ? 64 * MIB : 0);
    return 0;
}
