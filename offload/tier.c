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

static int open_scratch(struct tier *tier, struct err *err)
{
    uint64_t bytes = tier->memory->tier_bytes[TIER_NVME];
    tier->scratch_fd = -1;
    if (!bytes)
        return 0;
    int written =
        snprintf(tier->scratch_path, sizeof(tier->scratch_path), "%s.scratch", tier->state_path);
    if (written >= (int)sizeof(tier->scratch_path))
        return err_set(err, ERR_INPUT, "the path %s is too long", tier->state_path);
    int result = file_open_direct(&tier->scratch_fd, tier->scratch_path, true, true, err);
    if (result)
        return result;
    result = file_allocate(tier->scratch_fd, tier->scratch_path, bytes, err);
    /* Spilled gradients and activations mean nothing to a later run. */
    unlink(tier->scratch_path);
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

int tier_open(struct tier *tier, const struct layout *layout, const struct plan_memory *memory,
              const char *state_path, bool create, struct err *err)
{
    *tier = (struct tier){
        .layout = layout,
        .memory = memory,
        .slots = memory->state_slots,
        .state_fd = -1,
        .scratch_fd = -1,
        .committed_slot = -1,
    };
    if (strlen(state_path) >= sizeof(tier->state_path))
        return err_set(err, ERR_INPUT, "the path %s is too long", state_path);
    strcpy(tier->state_path, state_path);
    int result = file_open_direct(&tier->state_fd, state_path, create, true, err);
    if (result)
        return result;
    uint64_t bytes = tier->slots * layout->slot_bytes;
    ASSERT(tier->slots == 1 || tier->slots == 2);
    if (create) {
        result = file_allocate(tier->state_fd, state_path, bytes, err);
        if (result == 0)
            result = sync_parent(state_path, err);
        if (result) {
            unlink(state_path);
            return result;
        }
    }
    struct stat stat;
    if (fstat(tier->state_fd, &stat) != 0)
        return err_set_errno(err, errno, "cannot look at %s", state_path);
    if (tier->slots == 1 && (uint64_t)stat.st_size == 2 * layout->slot_bytes)
        return err_set(err, ERR_INPUT,
                       "%s has two slots, and the last commit may be in either: go on with "
                       "--nvme-slots 2, or move the state to another folder with --nvme DIR",
                       state_path);
    if (tier->slots == 2 && (uint64_t)stat.st_size == layout->slot_bytes) {
        result = file_allocate(tier->state_fd, state_path, bytes, err);
        if (result)
            return result;
    } else if ((uint64_t)stat.st_size != bytes)
        return err_set(err, ERR_CORRUPT,
                       "%s has not the size of this model's state (%" PRIu64
                       " bytes): it belongs to another model or was cut off",
                       state_path, bytes);
    result = open_scratch(tier, err);
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
    int fds[] = {tier->state_fd, tier->scratch_fd};
    ring_register_files(ring, fds, tier->scratch_fd >= 0 ? 2 : 1);
}

void tier_close(struct tier *tier)
{
    if (tier->state_fd > 0)
        close(tier->state_fd);
    if (tier->scratch_fd > 0)
        close(tier->scratch_fd);
    mem_free(tier->chunk_slot);
    mem_free(tier->plane_sums);
    mem_free(tier->cell_sums);
    *tier = (struct tier){.state_fd = -1, .scratch_fd = -1};
}

uint32_t tier_open_slot(const struct tier *tier)
{
    return tier->committed_slot < 0 || tier->slots == 1 ? 0 : 1 - (uint32_t)tier->committed_slot;
}

static uint32_t chunk_of(const struct tier *tier, uint32_t cell)
{
    ASSERT(cell >= tier->memory->plane_nvme.first);
    return (cell - tier->memory->plane_nvme.first) / PLANE_COUNT;
}

struct tier_location tier_read_at(const struct tier *tier, uint32_t cell)
{
    const struct plan_cell *c = &tier->memory->cells[cell];
    ASSERT(c->tier == TIER_NVME && c->bytes > 0);
    if (!c->state_file)
        return (struct tier_location){tier->scratch_fd, c->offset};
    uint32_t slot = tier->chunk_slot[chunk_of(tier, cell)];
    return (struct tier_location){tier->state_fd, slot * tier->layout->slot_bytes + c->offset};
}

struct tier_location tier_write_at(struct tier *tier, uint32_t cell)
{
    const struct plan_cell *c = &tier->memory->cells[cell];
    ASSERT(c->tier == TIER_NVME && c->bytes > 0);
    if (!c->state_file)
        return (struct tier_location){tier->scratch_fd, c->offset};
    uint32_t slot = tier_open_slot(tier);
    tier->chunk_slot[chunk_of(tier, cell)] = (uint8_t)slot;
    return (struct tier_location){tier->state_fd, slot * tier->layout->slot_bytes + c->offset};
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
            where.fd == tier->state_fd ? tier->state_path : tier->scratch_path,
            where.offset + done.done_bytes, ring_explain(ring, done.error));
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
          tier->state_path, at.offset, chunk, layout_plane_name[plane], tier_commit_note(tier),
          tier->overwriting ? "" : " where 'spillway check' says so, then --resume");
}

void tier_fail_cell(const struct tier *tier, uint32_t cell)
{
    fatal("%s is damaged: at offset %" PRIu64 " the checksum of a spilled block is wrong; the "
          "drive or its cable returned other bytes than were written; %s",
          tier->scratch_path, tier->memory->cells[cell].offset,
          tier->overwriting ? tier_commit_note(tier) : "continue with --resume");
}

uint64_t tier_weights_hash(const struct tier *tier)
{
    uint64_t hash = 0;
    for (uint32_t c = 0; c < tier->layout->chunk_count; c++)
        hash = hash_bytes(&tier->plane_sums[c * PLANE_COUNT], 2 * sizeof(uint64_t), hash);
    return hash;
}
