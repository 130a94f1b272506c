#include "io/drive.h"
#include "core/base.h"
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static void ask_alignment(struct drive *drive, int fd)
{
#ifdef STATX_DIOALIGN
    struct statx status;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) != 0 ||
        !(status.stx_mask & STATX_DIOALIGN))
        return;
    drive->alignment_known = true;
    drive->memory_align = status.stx_dio_mem_align;
    drive->offset_align = status.stx_dio_offset_align;
#else
    (void)drive, (void)fd; /* headers older than Linux 6.1 */
#endif
}

/* A partition has no queue; its drive is the folder above. */
static enum drive_polling ask_polling(dev_t device)
{
    static const char *const places[] = {"", "/.."};
    for (size_t i = 0; i < ARRAY_COUNT(places); i++) {
        char path[96];
        snprintf(path, sizeof(path), "/sys/dev/block/%u:%u%s/queue/io_poll", major(device),
                 minor(device), places[i]);
        FILE *file = fopen(path, "re");
        if (file == NULL)
            continue;
        int first = fgetc(file);
        fclose(file);
        return first == '1' ? DRIVE_POLLING_YES : DRIVE_POLLING_NO;
    }
    return DRIVE_POLLING_UNKNOWN;
}

void drive_ask(struct drive *drive, int fd)
{
    struct stat status;
    *drive = (struct drive){0};
    ask_alignment(drive, fd);
    if (fstat(fd, &status) == 0)
        drive->polling = ask_polling(status.st_dev);
}

static bool suits(uint32_t align)
{
    return align == 0 || IO_ALIGN % align == 0;
}

int drive_check(const struct drive *drive, const char *path, struct err *err)
{
    if (suits(drive->memory_align) && suits(drive->offset_align))
        return 0;
    return err_set(err, ERR_INPUT,
                   "the drive of '%s' asks for transfers that are aligned to %u bytes, and all of "
                   "this program's are aligned to %u: use a folder on another drive",
                   path, MAX(drive->memory_align, drive->offset_align), (unsigned)IO_ALIGN);
}

const char *drive_note(const struct drive *drive, char text[DRIVE_NOTE_MAX])
{
    static const char *const polling[] = {
        [DRIVE_POLLING_UNKNOWN] = "no polling: it is not known whether the drive has poll queues",
        [DRIVE_POLLING_NO] = "no polling: the drive has no poll queues",
        [DRIVE_POLLING_YES] = "no polling, though the drive has poll queues: a wait must hear of "
                              "more than the drive",
    };
    char alignment[128];
    if (!drive->alignment_known)
        snprintf(
            alignment, sizeof(alignment),
            "which alignment direct I/O needs is not told (Linux 6.1), transfers have %u bytes",
            (unsigned)IO_ALIGN);
    else if (drive->offset_align == 0)
        snprintf(alignment, sizeof(alignment),
                 "the file system does no direct I/O here and goes through the page cache");
    else
        snprintf(alignment, sizeof(alignment),
                 "direct I/O is aligned to %u bytes in memory and %u in the file, transfers to %u",
                 drive->memory_align, drive->offset_align, (unsigned)IO_ALIGN);
    snprintf(text, DRIVE_NOTE_MAX, "%s; %s", alignment, polling[drive->polling]);
    return text;
}
