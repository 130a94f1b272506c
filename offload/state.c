#include "offload/state.h"

#include "core/float.h"
#include "core/log.h"
#include "io/ring.h"
#include "io/safetensors.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define PIECE_PARAMETERS ((uint64_t)16384)

/* Memory for one chunk's planes: home where resident, else a stage (the builder's first state
 * stage, which is there where anything is spilled or on the device). */
struct image {
    uint8_t *plane[PLANE_COUNT];
};

static uint8_t *stage_of(const struct exec *exec)
{
    return exec_cell(exec, exec->memory->state_stage.first);
}

static struct image image_of(const struct exec *exec, uint32_t chunk)
{
    struct image image;
    const struct layout_chunk *c = &exec->layout->chunks[chunk];
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        if (p < exec->place->resident[chunk])
            image.plane[p] =
                exec_cell(exec, exec->memory->plane_ram.first + chunk * PLANE_COUNT + p);
        else
            image.plane[p] = stage_of(exec) + layout_plane_offset(exec->layout, c->count, p);
    return image;
}

static uint64_t plane_bytes(const struct exec *exec, uint32_t chunk, uint32_t plane)
{
    return layout_plane_bytes(exec->layout, exec->layout->chunks[chunk].count, plane);
}

/* Sums all planes of the image, writes the spilled ones, or sends all to the device. */
static int keep_image(struct exec *exec, struct ring *ring, uint32_t chunk,
                      const struct image *image, struct err *err)
{
    uint32_t resident = exec->place->resident[chunk];
    uint32_t first_cell = exec->memory->plane_nvme.first + chunk * PLANE_COUNT;
    uint64_t bytes = 0;
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        exec->tier->plane_sums[chunk * PLANE_COUNT + p] =
            tier_plane_sum(exec->layout, chunk, p, image->plane[p]);
        bytes += p >= resident ? plane_bytes(exec, chunk, p) : 0;
    }
    if (exec->place->on_device[chunk])
        exec_move_state(exec, LANE_H2D, chunk, image->plane[0]);
    if (!bytes || exec->place->on_device[chunk])
        return 0;
    struct tier_location where = tier_write_at(exec->tier, first_cell + resident);
    return tier_transfer(exec->tier, ring, true, where, image->plane[resident], bytes, err);
}

struct fill_job {
    const struct tensors *tensors;
    const struct layout_chunk *chunk;
    const struct image *image;
    uint64_t seed;
    bool failed;
};

static void put_master(const struct image *image, uint64_t i, float master)
{
    float_split(master, (uint16_t *)image->plane[PLANE_HI] + i,
                (int16_t *)image->plane[PLANE_LO] + i);
}

static void fill_piece(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    struct fill_job *job = context;
    const struct layout_chunk *chunk = job->chunk;
    const struct tensor_group *group = &job->tensors->groups[chunk->group];
    uint64_t first = chunk->first + task * PIECE_PARAMETERS;
    uint64_t end = MIN(first + PIECE_PARAMETERS, chunk->first + chunk->count);
    for (uint64_t i = first; i < end; i++)
        put_master(job->image, i - chunk->first, 0);
    for (uint32_t t = group->first_tensor; t < group->first_tensor + group->tensor_count; t++) {
        const struct tensor *tensor = &job->tensors->list[t];
        uint64_t from = MAX(first, tensor->offset);
        uint64_t to = MIN(end, tensor->offset + tensor->count);
        for (uint64_t i = from; i < to; i++)
            put_master(job->image, i - chunk->first,
                       tensors_initial_value(job->tensors, t, i - tensor->offset, job->seed));
    }
}

const struct safetensors_tensor *state_find_weights(const struct safetensors *weights,
                                                    const char *name)
{
    static const char prefix[] = "transformer.";
    const struct safetensors_tensor *found = safetensors_find(weights, name);
    /* The files of the original GPT-2 lack the prefix of the model with a head. */
    if (!found && strncmp(name, prefix, sizeof(prefix) - 1) == 0)
        found = safetensors_find(weights, name + sizeof(prefix) - 1);
    return found;
}

int state_check_weights(const struct safetensors *weights, const struct tensors *tensors,
                        struct err *err)
{
    for (uint32_t t = 0; t < tensors->count; t++) {
        const struct tensor *tensor = &tensors->list[t];
        const struct safetensors_tensor *found = state_find_weights(weights, tensor->name);
        if (!found)
            return err_set(err, ERR_INPUT, "the weight file has no tensor %s", tensor->name);
        bool same = found->dim_count == tensor->dim_count;
        for (uint32_t d = 0; d < tensor->dim_count && same; d++)
            same = found->shape[d] == tensor->shape[d];
        if (!same)
            return err_set(err, ERR_INPUT,
                           "tensor %s of the weight file has another shape than the model's "
                           "config.json says",
                           tensor->name);
    }
    return 0;
}

static int fill_from_weights(struct fill_job *job, const struct safetensors *weights, float *values,
                             struct err *err)
{
    const struct layout_chunk *chunk = job->chunk;
    const struct tensor_group *group = &job->tensors->groups[chunk->group];
    for (uint64_t i = 0; i < chunk->count; i++)
        put_master(job->image, i, 0);
    for (uint32_t t = group->first_tensor; t < group->first_tensor + group->tensor_count; t++) {
        const struct tensor *tensor = &job->tensors->list[t];
        uint64_t from = MAX(chunk->first, tensor->offset);
        uint64_t to = MIN(chunk->first + chunk->real_count, tensor->offset + tensor->count);
        if (from >= to)
            continue;
        const struct safetensors_tensor *found = state_find_weights(weights, tensor->name);
        ASSERT(found); /* state_check_weights */
        int result =
            safetensors_read(weights, found, from - tensor->offset, values, to - from, err);
        if (result)
            return result;
        for (uint64_t i = from; i < to; i++) {
            if (!isfinite(values[i - from]))
                return err_set(err, ERR_INPUT, "tensor %s has a weight that is not finite",
                               tensor->name);
            put_master(job->image, i - chunk->first, values[i - from]);
        }
    }
    return 0;
}

int state_create(struct exec *exec, struct ring *ring, const struct tensors *tensors, uint64_t seed,
                 const struct safetensors *weights, struct err *err)
{
    float *values = weights ? mem_alloc(exec->layout->chunk_count_max, sizeof(*values)) : NULL;
    struct log_progress progress;
    log_progress_start(&progress, "weights", "chunks", exec->layout->chunk_count);
    int result = 0;
    for (uint32_t c = 0; c < exec->layout->chunk_count && result == 0; c++) {
        struct image image = image_of(exec, c);
        struct fill_job job = {tensors, &exec->layout->chunks[c], &image, seed, false};
        if (weights)
            result = fill_from_weights(&job, weights, values, err);
        else
            pool_run(exec->cpu_pool, fill_piece, &job,
                     (uint32_t)div_up(exec->layout->chunks[c].count, PIECE_PARAMETERS));
        memset(image.plane[PLANE_M], 0, plane_bytes(exec, c, PLANE_M));
        memset(image.plane[PLANE_V], 0, plane_bytes(exec, c, PLANE_V));
        if (result == 0)
            result = keep_image(exec, ring, c, &image, err);
        log_progress_update(&progress, c + 1, NULL);
    }
    log_progress_end(&progress);
    mem_free(values);
    return result;
}

/* Planes [0, planes) of a chunk, from the drive to where `image` says. */
static int load_planes(struct exec *exec, struct ring *ring, uint32_t chunk, uint32_t planes,
                       const struct image *image, struct err *err)
{
    struct tier *tier = exec->tier;
    for (uint32_t p = 0; p < planes; p++) {
        uint32_t i = chunk * PLANE_COUNT + p;
        struct tier_location where = tier_read_at(tier, exec->memory->plane_nvme.first + i);
        uint64_t bytes = plane_bytes(exec, chunk, p);
        int result = tier_transfer(tier, ring, false, where, image->plane[p], bytes, err);
        if (result)
            return result;
        if (tier_plane_sum(exec->layout, chunk, p, image->plane[p]) != tier->plane_sums[i])
            return err_set(err, ERR_CORRUPT,
                           "%s is damaged: at offset %" PRIu64
                           " the checksum of chunk %u (%s) is wrong",
                           where.path, where.offset, chunk, layout_plane_name[p]);
    }
    return 0;
}

static int load_chunk(struct exec *exec, struct ring *ring, uint32_t chunk, struct err *err)
{
    bool on_device = exec->place->on_device[chunk];
    uint32_t planes = on_device ? PLANE_COUNT : exec->place->resident[chunk];
    if (!planes)
        return 0;
    struct image image = image_of(exec, chunk);
    int result = load_planes(exec, ring, chunk, planes, &image, err);
    if (result == 0 && on_device)
        exec_move_state(exec, LANE_H2D, chunk, image.plane[0]);
    return result;
}

int state_load(struct exec *exec, struct ring *ring, const struct checkpoint_manifest *manifest,
               struct err *err)
{
    struct tier *tier = exec->tier;
    uint32_t chunks = exec->layout->chunk_count;
    ASSERT(manifest->chunk_count == chunks);
    memcpy(tier->plane_sums, manifest->plane_sums, chunks * PLANE_COUNT * sizeof(uint64_t));
    memset(tier->chunk_slot, (int)manifest->slot, chunks);
    tier->committed_slot = (int)manifest->slot;
    exec->checkpoint->committed_step = manifest->step;
    int result = 0;
    for (uint32_t c = 0; c < chunks && result == 0; c++)
        result = load_chunk(exec, ring, c, err);
    return result;
}

int state_move(struct exec *exec, struct ring *ring, struct checkpoint_reader *reader,
               struct err *err)
{
    for (uint32_t c = 0; c < exec->layout->chunk_count; c++) {
        struct image image = image_of(exec, c);
        for (uint32_t p = 0; p < PLANE_COUNT; p++) {
            int result = checkpoint_read(reader, c, p, 1, image.plane[p], err);
            if (result == 1)
                result = err_set(err, ERR_INPUT, "%s is being written by another process",
                                 reader->run_dir);
            if (result)
                return result;
        }
        int result = keep_image(exec, ring, c, &image, err);
        if (result)
            return result;
    }
    return 0;
}

/* What the drive does not have of a chunk, with its checksums. */
static int commit_chunk(struct exec *exec, struct ring *ring, uint32_t chunk, uint64_t *written,
                        struct err *err)
{
    struct tier *tier = exec->tier;
    bool on_device = exec->place->on_device[chunk];
    uint32_t planes = on_device ? PLANE_COUNT : exec->place->resident[chunk];
    struct image image;
    if (planes)
        image = image_of(exec, chunk);
    if (on_device)
        exec_move_state(exec, LANE_D2H, chunk, image.plane[0]);
    for (uint32_t p = 0; p < planes; p++) {
        uint32_t i = chunk * PLANE_COUNT + p;
        uint64_t bytes = plane_bytes(exec, chunk, p);
        tier->plane_sums[i] = tier_plane_sum(exec->layout, chunk, p, image.plane[p]);
        struct tier_location where = tier_write_at(tier, exec->memory->plane_nvme.first + i);
        int result = tier_transfer(tier, ring, true, where, image.plane[p], bytes, err);
        if (result)
            return result;
        *written += bytes;
    }
    return 0;
}

int state_commit(struct exec *exec, struct ring *ring, uint64_t *written, struct err *err)
{
    int result = 0;
    *written = 0;
    for (uint32_t c = 0; c < exec->layout->chunk_count && result == 0; c++)
        result = commit_chunk(exec, ring, c, written, err);
    return result ? result : checkpoint_commit(exec->checkpoint, exec->tier, err);
}
