#include "offload/tier.h"

#include "core/hash.h"
#include "core/log.h"
#include "core/mem.h"
#include "io/ring.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SCRATCH_BLOCK_MAX (((uint64_t)1 << 56) - 1)

/* ---- Opening --------------------------------------------------------------------------------- */

/* Deals the scratch cells to the drives, each in proportion to its share of the state. */
static void place_scratch(struct tier *tier)
{
    const struct plan_memory *memory = tier->memory;
    struct stripe_deal deal = {0};
    tier->scratch = mem_alloc(memory->cell_count, sizeof(*tier->scratch));
    for (uint32_t cell = 0; cell < memory->cell_count; cell++) {
        const struct plan_cell *c = &memory->cells[cell];
        if (c->tier != TIER_NVME || c->state_file || !c->bytes)
            continue;
        uint32_t d = stripe_next(&deal, &tier->files, c->bytes);
        tier->scratch[cell].drive = (uint8_t)d;
        tier->scratch[cell].block = tier->drives[d].scratch_bytes / IO_ALIGN & SCRATCH_BLOCK_MAX;
        tier->drives[d].scratch_bytes += c->bytes;
    }
}

static int open_scratch(struct tier_drive *drive, const char *state_path, struct err *err)
{
    if (!drive->scratch_bytes)
        return 0;
    static const char end[] = ".scratch";
    if (strlen(state_path) + sizeof(end) > sizeof(drive->scratch_path))
        return err_set(err, ERR_INPUT, "the path %s is too long", state_path);
    strcpy(drive->scratch_path, state_path);
    strcat(drive->scratch_path, end);
    int result = file_open_direct(&drive->scratch_fd, drive->scratch_path, true, true, err);
    if (result)
        return result;
    result = file_allocate(drive->scratch_fd, drive->scratch_path, drive->scratch_bytes, err);
    /* Spilled gradients and activations mean nothing to a later run. */
    unlink(drive->scratch_path);
    return result;
}

/* A commit may name the file only if its name survives a power cut. */
static int sync_parent(const char *path, struct err *err)
{
    char dir[FILE_PATH_MAX];
    strcpy(dir, path);
    char *end = strrchr(dir, '/');
    if (!end)
        return file_sync_dir(".", err);
    end[end == dir] = '\0'; /* the root keeps its slash */
    return file_sync_dir(dir, err);
}

/* The size of a state file that is there already; a second slot is added where one is missing. */
static int check_size(const struct tier *tier, uint32_t d, struct err *err)
{
    const char *path = tier->files.path[d];
    int fd = tier->drives[d].state_fd;
    uint64_t slot_bytes = tier->stripe.slot_bytes[d], bytes = tier->slots * slot_bytes;
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return err_set_errno(err, errno, "cannot look at %s", path);
    uint64_t size = (uint64_t)stat.st_size;
    if (size == bytes)
        return 0;
    if (tier->slots == 1 && size == 2 * slot_bytes)
        return err_set(err, ERR_INPUT,
                       "%s has two slots, and the last commit may be in either: go on with "
                       "--nvme-slots 2, or move the state to another folder with --nvme DIR",
                       path);
    if (tier->slots == 2 && size == slot_bytes)
        return file_allocate(fd, path, bytes, err);
    return err_set(err, ERR_CORRUPT,
                   "%s has not the size of this model's state (%" PRIu64
                   " bytes): it belongs to another model or was cut off",
                   path, bytes);
}

static int open_drive(struct tier *tier, uint32_t d, bool create, struct err *err)
{
    const char *path = tier->files.path[d];
    struct tier_drive *drive = &tier->drives[d];
    int result = file_open_direct(&drive->state_fd, path, create, true, err);
    if (result)
        return result;
    if (create)
        result =
            file_allocate(drive->state_fd, path, tier->slots * tier->stripe.slot_bytes[d], err);
    if (create && result == 0)
        result = sync_parent(path, err);
    if (result == 0)
        result = check_size(tier, d, err);
    return result ? result : open_scratch(drive, path, err);
}

int tier_open(struct tier *tier, const struct layout *layout, const struct plan_memory *memory,
              const struct stripe_files *files, bool create, struct err *err)
{
    ASSERT(memory->state_slots == 1 || memory->state_slots == 2);
    *tier = (struct tier){
        .layout = layout,
        .memory = memory,
        .files = *files,
        .slots = memory->state_slots,
        .committed_slot = -1,
    };
    for (uint32_t d = 0; d < STRIPE_DRIVES_MAX; d++)
        tier->drives[d].state_fd = tier->drives[d].scratch_fd = -1;
    stripe_init(&tier->stripe, layout, files);
    place_scratch(tier);
    uint32_t opened = 0;
    int result = 0;
    for (; opened < files->count && result == 0; opened++)
        result = open_drive(tier, opened, create, err);
    for (uint32_t d = 0; d < opened && result && create; d++)
        if (tier->drives[d].state_fd >= 0)
            unlink(files->path[d]);
    if (result)
        return result;
    tier->chunk_slot = mem_alloc(layout->chunk_count, sizeof(*tier->chunk_slot));
    tier->plane_sums =
        mem_alloc((uint64_t)layout->chunk_count * PLANE_COUNT, sizeof(*tier->plane_sums));
    tier->cell_sums = mem_alloc(memory->cell_count, sizeof(*tier->cell_sums));
    return 0;
}

void tier_register(const struct tier *tier, struct ring *ring)
{
    int fds[2 * STRIPE_DRIVES_MAX];
    uint32_t count = 0;
    for (uint32_t d = 0; d < tier->files.count; d++) {
        fds[count++] = tier->drives[d].state_fd;
        if (tier->drives[d].scratch_fd >= 0)
            fds[count++] = tier->drives[d].scratch_fd;
    }
    ring_register_files(ring, fds, count);
}

void tier_close(struct tier *tier)
{
    for (uint32_t d = 0; d < tier->files.count; d++) {
        if (tier->drives[d].state_fd >= 0)
            close(tier->drives[d].state_fd);
        if (tier->drives[d].scratch_fd >= 0)
            close(tier->drives[d].scratch_fd);
    }
    stripe_deinit(&tier->stripe);
    mem_free(tier->scratch);
    mem_free(tier->chunk_slot);
    mem_free(tier->plane_sums);
    mem_free(tier->cell_sums);
    *tier = (struct tier){0};
}

/* ---- Slots ----------------------------------------------------------------------------------- */

uint32_t tier_open_slot(const struct tier *tier)
{
    return tier->committed_slot < 0 || tier->slots == 1 ? 0 : 1 - (uint32_t)tier->committed_slot;
}

static uint32_t chunk_of(const struct tier *tier, uint32_t cell)
{
    ASSERT(cell >= tier->memory->plane_nvme.first);
    return (cell - tier->memory->plane_nvme.first) / PLANE_COUNT;
}

static struct tier_location state_at(const struct tier *tier, uint32_t cell, uint32_t slot)
{
    uint32_t chunk = chunk_of(tier, cell), d = tier->stripe.drive[chunk];
    uint32_t plane = (cell - tier->memory->plane_nvme.first) % PLANE_COUNT;
    return (struct tier_location){
        .fd = tier->drives[d].state_fd,
        .offset = stripe_plane_offset(&tier->stripe, tier->layout, slot, chunk, plane),
        .path = tier->files.path[d],
    };
}

static struct tier_location scratch_at(const struct tier *tier, uint32_t cell)
{
    const struct tier_scratch *at = &tier->scratch[cell];
    const struct tier_drive *drive = &tier->drives[at->drive];
    return (struct tier_location){drive->scratch_fd, at->block * IO_ALIGN, drive->scratch_path};
}

struct tier_location tier_read_at(const struct tier *tier, uint32_t cell)
{
    const struct plan_cell *c = &tier->memory->cells[cell];
    ASSERT(c->tier == TIER_NVME && c->bytes > 0);
    return c->state_file ? state_at(tier, cell, tier->chunk_slot[chunk_of(tier, cell)])
                         : scratch_at(tier, cell);
}

struct tier_location tier_write_at(struct tier *tier, uint32_t cell)
{
    const struct plan_cell *c = &tier->memory->cells[cell];
    ASSERT(c->tier == TIER_NVME && c->bytes > 0);
    if (!c->state_file)
        return scratch_at(tier, cell);
    uint32_t slot = tier_open_slot(tier);
    tier->chunk_slot[chunk_of(tier, cell)] = (uint8_t)slot;
    return state_at(tier, cell, slot);
}

int tier_flush(const struct tier *tier, struct err *err)
{
    for (uint32_t d = 0; d < tier->files.count; d++)
        if (fdatasync(tier->drives[d].state_fd) != 0)
            return err_set_errno(
                err, errno, "cannot flush %s; %s", tier->files.path[d],
                tier->overwriting ? tier_commit_note(tier)
                                  : "the commit before this one is intact: continue with --resume");
    return 0;
}

int tier_transfer(struct tier *tier, struct ring *ring, bool write, struct tier_location where,
                  void *buffer, uint64_t bytes, struct err *err)
{
    struct ring_transfer transfer = {
        .fd = where.fd,
        .write = write,
        .buffer = buffer,
        .bytes = bytes,
        .offset = where.offset,
    };
    ASSERT(ring_in_flight(ring) == 0);
    ring_submit(ring, &transfer);
    struct ring_completion done;
    while (ring_reap(ring, &done, 1, true) == 0)
        ;
    if (write)
        tier->written_bytes += done.done_bytes;
    if (!done.error)
        return 0;
    err_set(err, ERR_SYSTEM, "cannot %s %s at offset %" PRIu64 ": %s", write ? "write" : "read",
            where.path, where.offset + done.done_bytes, ring_explain(ring, done.error));
    /* The kernel may still write into the buffer, so nothing that follows could be trusted. */
    if (done.abandoned)
        fatal("%s; %s", err->message, tier_commit_note(tier));
    return err->code;
}

uint64_t tier_part_sum(const void *data, uint64_t bytes)
{
    return hash_bytes(data, bytes, 0);
}

uint64_t tier_join_sums(uint32_t chunk, uint32_t plane, const uint64_t *parts, uint32_t count)
{
    return hash_bytes(parts, count * sizeof(*parts), ((uint64_t)chunk << 8) | plane);
}

uint64_t tier_plane_sum(const struct layout *layout, uint32_t chunk, uint32_t plane,
                        const void *data)
{
    uint64_t parts[LAYOUT_PARTS_MAX], parameters = layout->chunks[chunk].count;
    uint32_t count = (uint32_t)div_up(parameters, LAYOUT_PART_PARAMETERS);
    ASSERT(count <= LAYOUT_PARTS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t first = layout_part_offset(layout, plane, i);
        uint64_t end = i + 1 < count ? layout_part_offset(layout, plane, i + 1)
                                     : layout_plane_bytes(layout, parameters, plane);
        parts[i] = tier_part_sum((const uint8_t *)data + first, end - first);
    }
    return tier_join_sums(chunk, plane, parts, count);
}

uint64_t tier_cell_sum(uint32_t cell, const void *data, uint64_t bytes)
{
    return hash_bytes(data, bytes, ((uint64_t)cell << 8) | 0xff);
}

const char *tier_commit_note(const struct tier *tier)
{
    return tier->overwriting ? "the last commit has been overwritten (--nvme-slots 1)"
                             : "the last commit is intact";
}

void tier_fail_plane(const struct tier *tier, uint32_t chunk, uint32_t plane)
{
    struct tier_location at =
        tier_read_at(tier, tier->memory->plane_nvme.first + chunk * PLANE_COUNT + plane);
    fatal("%s is damaged: at offset %" PRIu64 " the checksum of chunk %u (%s) is wrong; the drive "
          "or its cable returned other bytes than were written; %s%s",
          at.path, at.offset, chunk, layout_plane_name[plane], tier_commit_note(tier),
          tier->overwriting ? "" : " where 'spillway check' says so, then --resume");
}

void tier_fail_cell(const struct tier *tier, uint32_t cell)
{
    struct tier_location at = scratch_at(tier, cell);
    fatal("%s is damaged: at offset %" PRIu64 " the checksum of a spilled block is wrong; the "
          "drive or its cable returned other bytes than were written; %s",
          at.path, at.offset,
          tier->overwriting ? tier_commit_note(tier) : "continue with --resume");
}

uint64_t tier_weights_hash(const struct tier *tier)
{
    uint64_t hash = 0;
    for (uint32_t c = 0; c < tier->layout->chunk_count; c++)
        hash = hash_bytes(&tier->plane_sums[c * PLANE_COUNT], 2 * sizeof(uint64_t), hash);
    return hash;
}
