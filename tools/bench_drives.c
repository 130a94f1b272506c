#include "tools/bench_drives.h"

#include "core/log.h"

#include <stdio.h>
#include <string.h>

/* The entry of this mount: the one that is there, or a new one; NULL where there is no room. */
static struct profile_drive *entry_of(struct profile *profile, const char *mount)
{
    for (uint32_t d = 0; d < profile->drive_count; d++)
        if (strcmp(profile->drives[d].mount, mount) == 0)
            return &profile->drives[d];
    if (profile->drive_count == PROFILE_DRIVES_MAX || strlen(mount) >= PROFILE_NAME_MAX)
        return NULL;
    return &profile->drives[profile->drive_count++];
}

static void remember(struct profile *profile, const char *mount)
{
    struct profile_drive *drive = entry_of(profile, mount);
    if (!drive) {
        log_warn("what the drive at %s gives is not written by itself: its mount's name is too "
                 "long, or there are too many",
                 mount);
        return;
    }
    const struct profile_ssd *ssd = &profile->ssd;
    *drive = (struct profile_drive){
        .read_bytes_per_s = ssd->read_bytes_per_s,
        .write_bytes_per_s = ssd->write_bytes_per_s,
        .mixed_read_bytes_per_s = ssd->mixed_read_bytes_per_s,
        .mixed_write_bytes_per_s = ssd->mixed_write_bytes_per_s,
        .sustained_write_bytes_per_s = ssd->sustained_write_bytes_per_s,
    };
    strcpy(drive->mount, mount);
}

/* The figures of the table since `first` as those of one drive of several: "ssd 2, read". */
static void number_figures(struct bench *bench, uint32_t first, uint32_t number)
{
    static const char ssd[] = "ssd";
    for (uint32_t r = first; r < bench->row_count; r++) {
        char *figure = bench->rows[r].figure, rest[sizeof(bench->rows[r].figure)];
        if (strncmp(figure, ssd, strlen(ssd)) != 0)
            continue;
        strcpy(rest, figure + strlen(ssd));
        snprintf(figure, sizeof(rest), "%s %u%.*s", ssd, number, (int)sizeof(rest) - 16, rest);
    }
}

int bench_drives(struct bench *bench, const struct nvme_list *list, struct err *err)
{
    double seconds = bench->seconds;
    uint32_t drives = 0;
    ASSERT(list->count > 0);
    for (uint32_t d = 0; d < list->count; d++)
        drives += nvme_is_first(list, d);
    bench->seconds = seconds / drives;
    uint32_t number = 0, deepest = 0;
    int result = 0;
    for (uint32_t d = 0; d < list->count && result == 0; d++) {
        if (!nvme_is_first(list, d))
            continue;
        bench->nvme_dir = list->dir[d];
        bench->profile.ssd.count = 1;
        uint32_t first_row = bench->row_count;
        if (drives > 1)
            log_line("ssd %u: %s", ++number, list->dir[d]);
        result = bench_ssd(bench, err);
        if (result == 0 && drives > 1)
            number_figures(bench, first_row, number);
        if (result == 0)
            remember(&bench->profile, list->mount[d]);
        deepest = MAX(deepest, bench->profile.ssd.queue_depth);
    }
    bench->seconds = seconds;
    if (result == 0)
        nvme_profile(list, &bench->profile);
    bench->profile.ssd.queue_depth = deepest;
    return result;
}
