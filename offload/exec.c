#include "offload/exec.h"

#include "core/clock.h"
#include "core/float.h"
#include "offload/checkpoint.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Cuts every chunk's real parameters into segments of one decay kind, each within a part. */
static void cut_segments(struct exec *exec, const struct tensors *tensors)
{
    const struct layout *layout = exec->layout;
    uint64_t bound = layout->chunk_count + tensors->count;
    for (uint32_t c = 0; c < layout->chunk_count; c++)
        bound += layout->chunks[c].count / LAYOUT_PART_PARAMETERS + 2 * BLOCK_TENSOR_COUNT;
    exec->segments = mem_alloc(bound, sizeof(*exec->segments));
    exec->chunk_segments = mem_alloc(layout->chunk_count + 1, sizeof(*exec->chunk_segments));
    uint32_t filled = 0;
    for (uint32_t c = 0; c < layout->chunk_count; c++) {
        const struct layout_chunk *chunk = &layout->chunks[c];
        const struct tensor_group *group = &tensors->groups[chunk->group];
        exec->chunk_segments[c] = filled;
        for (uint32_t t = group->first_tensor; t < group->first_tensor + group->tensor_count; t++) {
            const struct tensor *tensor = &tensors->list[t];
            uint64_t end = MIN(tensor->offset + tensor->count, chunk->first + chunk->real_count);
            uint64_t at = MAX(tensor->offset, chunk->first);
            for (uint64_t step; at < end; at += step) {
                uint64_t inside = (at - chunk->first) % LAYOUT_PART_PARAMETERS;
                step = MIN(LAYOUT_PART_PARAMETERS - inside, end - at);
                ASSERT(filled < bound);
                exec->segments[filled++] =
                    (struct update_segment){at - chunk->first, step, tensor->decay};
            }
        }
    }
    exec->chunk_segments[layout->chunk_count] = filled;
}

static void copy_and_wait(const struct exec *exec, const struct device_copy *args)
{
    exec->device->ops->copy(exec->device, args);
    if (exec->device->ops->chained)
        exec->device->ops->settle(exec->device, args->lane);
}

/* What updates on the device find there: flags that are not set, and maps. */
static void fill_device(const struct exec *exec)
{
    const struct plan_memory *memory = exec->memory;
    const struct moments *moments = &exec->moments;
    struct device_copy copy = {.lane = LANE_H2D};
    for (uint32_t i = 0; i < memory->update_flags.count; i++) {
        copy.to = exec_cell(exec, memory->update_flags.first + i);
        copy.from = exec_cell(exec, memory->update_flags_host.first + i); /* a new arena's zeros */
        copy.bytes = exec->layout->chunk_count * sizeof(uint32_t);
        copy_and_wait(exec, &copy);
    }
    /* Through memory that is pinned: the first stage, which is there where commits are. */
    uint32_t first_stage = memory->state_stage.first;
    for (uint32_t i = 0; i < 2 * memory->moment_maps.count; i++) {
        ASSERT(memory->state_stage.count && memory->cells[first_stage].bytes >= sizeof(moments->m));
        void *stage = exec_cell(exec, first_stage);
        const struct moments_map *map = i ? &moments->v : &moments->m;
        copy.to = (uint8_t *)exec_cell(exec, memory->moment_maps.first) + i * sizeof(*map);
        copy.from = memcpy(stage, map, sizeof(*map));
        copy.bytes = sizeof(*map);
        copy_and_wait(exec, &copy);
    }
}

int exec_open(struct exec *exec, const struct tensors *tensors, struct err *err)
{
    cut_segments(exec, tensors);
    moments_init(&exec->moments, exec->layout->moments, exec->seed);
    exec->bad_chunk = PLAN_NONE;
    int result = mem_arena_open(&exec->ram, exec->memory->tier_bytes[TIER_RAM], err);
    if (result || exec->device_modelled)
        return result;
    result = exec->device->ops->open_memory(exec->device, &exec->vram,
                                            exec->memory->tier_bytes[TIER_DEVICE], &exec->ram, err);
    if (result == 0)
        fill_device(exec);
    return result;
}

void exec_close(struct exec *exec)
{
    /* The device lets go of what it copies from before that is gone. */
    if (exec->device)
        exec->device->ops->close_memory(exec->device, &exec->vram);
    mem_arena_close(&exec->ram);
    mem_free(exec->segments);
    mem_free(exec->chunk_segments);
    exec->segments = NULL;
    exec->chunk_segments = NULL;
}

void *exec_cell(const struct exec *exec, uint32_t cell)
{
    ASSERT(cell < exec->memory->cell_count);
    const struct plan_cell *c = &exec->memory->cells[cell];
    const struct mem_arena *arena = c->tier == TIER_DEVICE ? &exec->vram : &exec->ram;
    ASSERT(c->tier != TIER_NVME && c->bytes > 0 && c->offset + c->bytes <= arena->bytes);
    return arena->base + c->offset;
}

void exec_move_state(const struct exec *exec, enum plan_lane lane, uint32_t chunk, uint8_t *image)
{
    const struct layout *layout = exec->layout;
    uint64_t count = layout->chunks[chunk].count;
    for (uint32_t p = 0; p < PLANE_COUNT && !exec->device_modelled; p++) {
        void *home = exec_cell(exec, exec->memory->plane_device.first + chunk * PLANE_COUNT + p);
        void *host = image + layout_plane_offset(layout, count, p);
        struct device_copy copy = {
            .lane = lane,
            .to = lane == LANE_H2D ? home : host,
            .from = lane == LANE_H2D ? host : home,
            .bytes = layout_plane_bytes(layout, count, p),
        };
        copy_and_wait(exec, &copy);
    }
}

/* The memory of the op's n-th use; NULL where the use has no cells. */
static void *at(const struct exec *exec, const struct plan_op *op, uint32_t use)
{
    ASSERT(use < op->use_count);
    return op->uses[use].cells.count ? exec_cell(exec, op->uses[use].cells.first) : NULL;
}

static uint64_t row_count(const struct exec *exec)
{
    return (uint64_t)exec->place->spec.batch * exec->place->spec.seq;
}

uint32_t *exec_tokens(const struct exec *exec, uint32_t micro)
{
    return exec_cell(exec, exec->memory->tokens_host.first + micro);
}

double exec_loss(const struct exec *exec)
{
    double sum = 0;
    for (uint32_t m = 0; m < exec->place->spec.accum; m++) {
        const float *losses = exec_cell(exec, exec->memory->losses_host.first + m);
        for (uint64_t r = 0; r < row_count(exec); r++)
            sum += losses[r];
    }
    return sum / (double)(row_count(exec) * exec->place->spec.accum);
}

/* ---- Compute lane: the order of uses is the builder's ---------------------------------------- */

static void run_head(struct exec *exec, const struct plan_op *op)
{
    const struct layout_tile *tile = &exec->layout->tiles[op->layer];
    const uint32_t *tokens = at(exec, op, 2);
    if (op->kind == OP_HEAD_FORWARD) {
        struct kernels_head_forward args = {
            .tile = at(exec, op, 0),
            .row_first = tile->row_first,
            .row_count = tile->row_count,
            .y = at(exec, op, 1),
            .targets = tokens + row_count(exec),
            .running = at(exec, op, 3),
            .first = op->flags & OP_FIRST,
            .scratch = at(exec, op, 4),
        };
        exec->device->ops->head_forward(exec->device, &args);
        return;
    }
    struct kernels_head_backward args = {
        .tile = at(exec, op, 0),
        .row_first = tile->row_first,
        .row_count = tile->row_count,
        .y = at(exec, op, 1),
        .targets = tokens + row_count(exec),
        .running = at(exec, op, 3),
        .loss_scale = exec->loss_scale,
        .dy = at(exec, op, 4),
        .first = op->flags & OP_FIRST,
        .gradient = at(exec, op, 5),
        .accumulate = op->micro > 0,
        .scratch = at(exec, op, 6),
    };
    exec->device->ops->head_backward(exec->device, &args);
}

/* All tiles lie a slot's parameters apart (plan_build.c), and so do their gradients. */
static void run_head_once(struct exec *exec, const struct plan_op *op)
{
    const uint32_t *tokens = at(exec, op, 2);
    struct kernels_head_once args = {
        .tiles = at(exec, op, 0),
        .tile_stride = exec->layout->tile_slot_count,
        .y = at(exec, op, 1),
        .targets = tokens + row_count(exec),
        .running = at(exec, op, 3),
        .losses = at(exec, op, 4),
        .loss_scale = exec->loss_scale,
        .dy = at(exec, op, 5),
        .gradients = at(exec, op, 6),
        .accumulate = op->micro > 0,
        .scratch = at(exec, op, 7),
    };
    exec->device->ops->head_once(exec->device, &args);
}

static void run_embedding(struct exec *exec, const struct plan_op *op)
{
    if (op->kind == OP_EMBED_FORWARD) {
        const struct layout_tile *tile = &exec->layout->tiles[op->layer];
        struct kernels_embed_forward args = {
            .tile = at(exec, op, 0),
            .row_first = tile->row_first,
            .row_count = tile->row_count,
            .tokens = at(exec, op, 1),
            .x = at(exec, op, 2),
        };
        exec->device->ops->embed_forward(exec->device, &args);
    } else if (op->kind == OP_POSITION_FORWARD) {
        struct kernels_position_forward args = {.wpe = at(exec, op, 0), .x = at(exec, op, 1)};
        exec->device->ops->position_forward(exec->device, &args);
    } else if (op->kind == OP_EMBED_BACKWARD) {
        const struct layout_tile *tile = &exec->layout->tiles[op->layer];
        struct kernels_embed_backward args = {
            .row_first = tile->row_first,
            .row_count = tile->row_count,
            .tokens = at(exec, op, 0),
            .dx = at(exec, op, 1),
            .gradient = at(exec, op, 2),
        };
        exec->device->ops->embed_backward(exec->device, &args);
    } else {
        struct kernels_position_backward args = {
            .dx = at(exec, op, 0),
            .gradient = at(exec, op, 1),
            .positions = exec->place->spec.config->positions,
            .accumulate = op->micro > 0,
        };
        exec->device->ops->position_backward(exec->device, &args);
    }
}

static void run_norm(struct exec *exec, const struct plan_op *op)
{
    if (op->kind == OP_NORM_FORWARD) {
        struct kernels_norm_forward args = {
            .weights = at(exec, op, 0),
            .x = at(exec, op, 1),
            .y = at(exec, op, 2),
            .statistics = at(exec, op, 3),
        };
        exec->device->ops->norm_forward(exec->device, &args);
        return;
    }
    struct kernels_norm_backward args = {
        .weights = at(exec, op, 0),
        .x = at(exec, op, 1),
        .statistics = at(exec, op, 2),
        .dy = at(exec, op, 3),
        .dx = at(exec, op, 3),
        .gradient = at(exec, op, 4),
        .accumulate = op->micro > 0,
        .scratch = at(exec, op, 5),
    };
    exec->device->ops->norm_backward(exec->device, &args);
}

static void run_block(struct exec *exec, const struct plan_op *op)
{
    if (op->kind == OP_BLOCK_BACKWARD) {
        struct kernels_block_backward args = {
            .weights = at(exec, op, 0),
            .x_in = at(exec, op, 1),
            .inner = at(exec, op, 2),
            .dx = at(exec, op, 3),
            .gradient = at(exec, op, 4),
            .accumulate = op->micro > 0,
            .scratch = at(exec, op, 5),
        };
        exec->device->ops->block_backward(exec->device, &args);
        return;
    }
    bool again = op->kind == OP_RECOMPUTE;
    struct kernels_block_forward args = {
        .weights = at(exec, op, 0),
        .x_in = at(exec, op, 1),
        .x_out = again ? NULL : at(exec, op, 2),
        .inner = at(exec, op, again ? 2 : 3),
        .scratch = at(exec, op, again ? 3 : 4),
    };
    exec->device->ops->block_forward(exec->device, &args);
}

/* An update of a chunk, all but where its planes and its gradient are. */
static struct update update_of(const struct exec *exec, uint32_t number)
{
    const struct layout_chunk *chunk = &exec->layout->chunks[number];
    uint32_t first = exec->chunk_segments[number];
    return (struct update){
        .moments = &exec->moments,
        .step = &exec->step,
        .precision = exec->place->spec.precision,
        .origin = update_origin(chunk),
        .count = chunk->count,
        .segments = &exec->segments[first],
        .segment_count = exec->chunk_segments[number + 1] - first,
    };
}

static struct device_store store_of(const struct exec *exec, const struct plan_op *op)
{
    const struct layout_chunk *chunk = &exec->layout->chunks[op->chunk];
    ASSERT(div_up(chunk->real_count, KERNELS_NORM_BLOCK) <= PLAN_SQUARES_PER_CHUNK);
    return (struct device_store){
        .gradient = at(exec, op, 0),
        .stored = at(exec, op, 1),
        .count = chunk->real_count,
        .padded_count = chunk->count,
        .element_bytes = exec->place->gradient_bytes,
        .square_sums = (double *)at(exec, op, 2) + (uint64_t)op->chunk * PLAN_SQUARES_PER_CHUNK,
    };
}

/* A plane of a chunk in the cells of the op's n-th use: one a plane, or one for its image, in which
 * they lie back to back. */
static uint8_t *plane_at(const struct exec *exec, const struct plan_op *op, uint32_t use,
                         uint32_t plane)
{
    const struct plan_cells *cells = &op->uses[use].cells;
    uint64_t count = exec->layout->chunks[op->chunk].count;
    if (cells->count > 1)
        return exec_cell(exec, cells->first + plane - op->plane);
    return (uint8_t *)at(exec, op, use) + layout_plane_offset(exec->layout, count, plane);
}

static struct device_update device_update_of(const struct exec *exec, const struct plan_op *op)
{
    const struct plan_memory *memory = exec->memory;
    uint32_t chunk = op->chunk;
    struct device_update args = {
        .lane = (enum plan_lane)op->lane,
        .update = update_of(exec, chunk),
        .maps = memory->moment_maps.count ? exec_cell(exec, memory->moment_maps.first) : NULL,
        .flag = (uint32_t *)at(exec, op, 2) + chunk,
    };
    for (uint32_t p = 0; p < PLANE_COUNT; p++)
        args.update.plane[p] = plane_at(exec, op, 0, p);
    args.update.gradient = at(exec, op, 1);
    return args;
}

static struct device_join join_of(const struct exec *exec, const struct plan_op *op)
{
    bool bf16 = exec->place->spec.precision == PRECISION_BF16;
    return (struct device_join){
        .lane = (enum plan_lane)op->lane,
        .hi = (const uint16_t *)plane_at(exec, op, 0, PLANE_HI),
        .lo = bf16 ? NULL : (const int16_t *)plane_at(exec, op, 0, PLANE_LO),
        .weights = at(exec, op, 1),
        .count = exec->layout->chunks[op->chunk].count,
    };
}

static void run_stores(struct exec *exec, const struct plan_op *const *ops, uint32_t count)
{
    struct device_store list[DEVICE_LIST];
    for (uint32_t i = 0; i < count; i++)
        list[i] = store_of(exec, ops[i]);
    exec->device->ops->gradient_store(exec->device, list, count);
}

static void run_device_updates(struct exec *exec, const struct plan_op *const *ops, uint32_t count)
{
    struct device_update list[DEVICE_LIST];
    for (uint32_t i = 0; i < count; i++)
        list[i] = device_update_of(exec, ops[i]);
    exec->device->ops->update(exec->device, list, count);
}

static void run_device_joins(struct exec *exec, const struct plan_op *const *ops, uint32_t count)
{
    struct device_join list[DEVICE_LIST];
    for (uint32_t i = 0; i < count; i++)
        list[i] = join_of(exec, ops[i]);
    exec->device->ops->join(exec->device, list, count);
}

/* What a device takes as a list. */
static bool is_listed(const struct plan_op *op)
{
    return op->kind == OP_GRADIENT_STORE || op->kind == OP_DEVICE_UPDATE ||
           op->kind == OP_DEVICE_JOIN;
}

static void run_list(struct exec *exec, const struct plan_op *const *ops, uint32_t count)
{
    if (ops[0]->kind == OP_GRADIENT_STORE)
        run_stores(exec, ops, count);
    else if (ops[0]->kind == OP_DEVICE_UPDATE)
        run_device_updates(exec, ops, count);
    else
        run_device_joins(exec, ops, count);
}

/* Planes lie apart where they stay, and back to back in the image of the chunk that a stage holds.
 */
static void run_copy_planes(struct exec *exec, const struct plan_op *op)
{
    uint64_t count = exec->layout->chunks[op->chunk].count;
    for (uint32_t p = op->plane; p < (uint32_t)op->plane + op->plane_count; p++) {
        struct device_copy args = {
            .lane = (enum plan_lane)op->lane,
            .to = plane_at(exec, op, 1, p),
            .from = plane_at(exec, op, 0, p),
            .bytes = layout_plane_bytes(exec->layout, count, p),
        };
        exec->device->ops->copy(exec->device, &args);
    }
}

static void run_copy(struct exec *exec, const struct plan_op *op)
{
    if (op->plane_count) {
        run_copy_planes(exec, op);
        return;
    }
    struct device_copy args = {
        .lane = (enum plan_lane)op->lane,
        .to = at(exec, op, 1),
        .from = at(exec, op, 0),
        .bytes = op->bytes,
    };
    exec->device->ops->copy(exec->device, &args);
}

/* ---- Cpu lane ---------------------------------------------------------------------------------
 */

/* Where a chunk's planes are: resident ones at home, the others in the stage. */
static void find_planes(const struct exec *exec, uint32_t chunk, uint8_t *stage,
                        uint8_t *planes[PLANE_COUNT])
{
    const struct layout_chunk *c = &exec->layout->chunks[chunk];
    uint32_t first = exec->memory->plane_ram.first + chunk * PLANE_COUNT;
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        if (p < exec->place->resident[chunk])
            planes[p] = exec_cell(exec, first + p);
        else if (stage)
            planes[p] = stage + layout_plane_offset(exec->layout, c->count, p);
    }
}

/* Sums of parts, of the planes from `first` on. */
struct part_sums {
    uint32_t first;
    uint64_t sums[PLANE_COUNT][LAYOUT_PARTS_MAX];
};

struct update_job {
    const struct layout *layout;
    struct update update;
    struct part_sums before, after;
    bool failed; /* any writer writes true */
};

static void sum_part(const struct update_job *job, struct part_sums *sums, uint32_t part)
{
    const struct layout *layout = job->layout;
    bool last = (part + 1) * LAYOUT_PART_PARAMETERS >= job->update.count;
    for (uint32_t p = sums->first; p < PLANE_COUNT; p++) {
        uint64_t first = layout_part_offset(layout, p, part);
        uint64_t end = last ? layout_plane_bytes(layout, job->update.count, p)
                            : layout_part_offset(layout, p, part + 1);
        sums->sums[p][part] = tier_part_sum(job->update.plane[p] + first, end - first);
    }
}

/* Everything that is done to a part, while the core's cache holds it. */
static void update_task(void *context, uint32_t part, uint32_t worker)
{
    (void)worker;
    struct update_job *job = context;
    sum_part(job, &job->before, part);
    if (!update_part(&job->update, part))
        __atomic_store_n(&job->failed, true, __ATOMIC_RELAXED);
    sum_part(job, &job->after, part);
}

_Noreturn static void fail_update(const struct exec *exec, uint32_t chunk)
{
    fatal("a weight or moment of chunk %u is no longer finite after its update: lower --lr; %s",
          chunk, tier_commit_note(exec->tier));
}

static void run_update(struct exec *exec, const struct plan_op *op)
{
    uint32_t number = op->chunk, resident = exec->place->resident[number];
    uint64_t *sums = &exec->tier->plane_sums[number * PLANE_COUNT];
    struct update_job job = {
        .layout = exec->layout,
        .update = update_of(exec, number),
        .before.first = resident,
        .after.first = exec->commit_plan ? 0 : resident,
    };
    uint32_t parts = update_part_count(&job.update);
    find_planes(exec, number, at(exec, op, 1), job.update.plane);
    job.update.gradient = at(exec, op, 2);
    uint32_t cell = exec->memory->gradient_nvme.first + number;
    uint64_t bytes = exec->memory->cells[cell].bytes;
    if (bytes && tier_cell_sum(cell, job.update.gradient, bytes) != exec->tier->cell_sums[cell])
        tier_fail_cell(exec->tier, cell);
    pool_run(exec->cpu_pool, update_task, &job, parts);
    /* Nothing that came of damaged state is written: this op has not ended yet. */
    for (uint32_t p = job.before.first; p < PLANE_COUNT; p++)
        if (tier_join_sums(number, p, job.before.sums[p], parts) != sums[p])
            tier_fail_plane(exec->tier, number, p);
    if (job.failed)
        fail_update(exec, number);
    for (uint32_t p = job.after.first; p < PLANE_COUNT; p++)
        sums[p] = tier_join_sums(number, p, job.after.sums[p], parts);
}

static void join_task(void *context, uint32_t part, uint32_t worker)
{
    (void)worker;
    device_cpu_join_part(context, part);
}

static void run_join(struct exec *exec, const struct plan_op *op)
{
    uint64_t count = exec->layout->chunks[op->chunk].count;
    uint8_t *planes[PLANE_COUNT] = {0};
    find_planes(exec, op->chunk, at(exec, op, 1), planes);
    if (exec->place->spec.precision == PRECISION_BF16) {
        memcpy(at(exec, op, 2), planes[PLANE_HI], count * 2);
        return;
    }
    struct device_join job = {
        .lane = LANE_CPU,
        .hi = (const uint16_t *)planes[PLANE_HI],
        .lo = (const int16_t *)planes[PLANE_LO],
        .weights = at(exec, op, 2),
        .count = count,
    };
    pool_run(exec->cpu_pool, join_task, &job, (uint32_t)div_up(count, LAYOUT_PART_PARAMETERS));
}

static void run_verify(struct exec *exec, const struct plan_op *op)
{
    uint8_t *data = at(exec, op, 0);
    if (!op->plane_count) {
        uint32_t cell = op->uses[1].cells.first;
        if (tier_cell_sum(cell, data, op->bytes) != exec->tier->cell_sums[cell])
            tier_fail_cell(exec->tier, cell);
        return;
    }
    const struct layout_chunk *chunk = &exec->layout->chunks[op->chunk];
    for (uint32_t p = op->plane; p < (uint32_t)op->plane + op->plane_count; p++) {
        uint64_t sum = tier_plane_sum(exec->layout, op->chunk, p,
                                      data + layout_plane_offset(exec->layout, chunk->count, p));
        if (sum != exec->tier->plane_sums[op->chunk * PLANE_COUNT + p])
            tier_fail_plane(exec->tier, op->chunk, p);
    }
}

static void run_sum(struct exec *exec, const struct plan_op *op)
{
    const uint8_t *data = at(exec, op, 0);
    uint32_t cell = op->uses[1].cells.first;
    if (!op->plane_count) {
        exec->tier->cell_sums[cell] = tier_cell_sum(cell, data, op->bytes);
        return;
    }
    for (uint32_t p = op->plane; p < (uint32_t)op->plane + op->plane_count; p++)
        exec->tier->plane_sums[op->chunk * PLANE_COUNT + p] =
            tier_plane_sum(exec->layout, op->chunk, p, plane_at(exec, op, 0, p));
}

static void run_clip(struct exec *exec, const struct plan_op *op)
{
    const double *squares = at(exec, op, 0);
    double sum = 0;
    exec->bad_chunk = PLAN_NONE;
    for (uint32_t c = 0; c < exec->layout->chunk_count; c++)
        for (uint32_t i = 0; i < PLAN_SQUARES_PER_CHUNK; i++) {
            double square = squares[(uint64_t)c * PLAN_SQUARES_PER_CHUNK + i];
            if (!isfinite(square) && exec->bad_chunk == PLAN_NONE)
                exec->bad_chunk = c;
            sum += square;
        }
    exec->gradient_norm = sqrt(sum);
}

void exec_commit_note(const struct exec *exec, uint64_t step, char note[64])
{
    if (step == UINT64_MAX)
        snprintf(note, 64, "no commit was made yet");
    else if (exec->tier->overwriting)
        snprintf(note, 64, "%s", tier_commit_note(exec->tier));
    else
        snprintf(note, 64, "the commit of step %" PRIu64 " is intact", step);
}

static void run_check(const struct exec *exec)
{
    if (isfinite(exec_loss(exec)))
        return;
    char commit[64];
    exec_commit_note(exec, exec->committed_step, commit);
    fatal(EXEC_LOSS_MESSAGE, exec->step_number, commit);
}

static void run_check_updates(const struct exec *exec, const struct plan_op *op)
{
    for (uint32_t i = 0; i < op->uses[0].cells.count; i++) {
        const uint32_t *flags = exec_cell(exec, op->uses[0].cells.first + i);
        for (uint32_t c = 0; c < exec->layout->chunk_count; c++)
            if (flags[c])
                fail_update(exec, c);
    }
}

static void run_commit(struct exec *exec)
{
    uint64_t start_ns = clock_ns();
    struct err err;
    if (checkpoint_commit(exec->checkpoint, exec->tier, &err) != 0)
        fatal("%s", err.message);
    exec->commit_ns = clock_ns() - start_ns;
}

void exec_op(struct exec *exec, const struct plan_op *op)
{
    switch ((enum plan_op_kind)op->kind) {
    case OP_EMBED_FORWARD:
    case OP_POSITION_FORWARD:
    case OP_EMBED_BACKWARD:
    case OP_POSITION_BACKWARD:
        run_embedding(exec, op);
        return;
    case OP_BLOCK_FORWARD:
    case OP_RECOMPUTE:
    case OP_BLOCK_BACKWARD:
        run_block(exec, op);
        return;
    case OP_NORM_FORWARD:
    case OP_NORM_BACKWARD:
        run_norm(exec, op);
        return;
    case OP_HEAD_FORWARD:
    case OP_HEAD_BACKWARD:
        run_head(exec, op);
        return;
    case OP_HEAD_ONCE:
        run_head_once(exec, op);
        return;
    case OP_HEAD_LOSS: {
        struct kernels_head_loss args = {at(exec, op, 0), at(exec, op, 1)};
        exec->device->ops->head_loss(exec->device, &args);
        return;
    }
    case OP_GRADIENT_STORE:
    case OP_DEVICE_UPDATE:
    case OP_DEVICE_JOIN:
        run_list(exec, &op, 1);
        return;
    case OP_COPY_H2D:
    case OP_COPY_D2H:
        run_copy(exec, op);
        return;
    case OP_UPDATE:
        run_update(exec, op);
        return;
    case OP_JOIN:
        run_join(exec, op);
        return;
    case OP_VERIFY:
        run_verify(exec, op);
        return;
    case OP_SUM:
        run_sum(exec, op);
        return;
    case OP_CLIP:
        run_clip(exec, op);
        return;
    case OP_CHECK:
        run_check(exec);
        return;
    case OP_CHECK_UPDATES:
        run_check_updates(exec, op);
        return;
    case OP_COMMIT:
        run_commit(exec);
        return;
    case OP_READ:
    case OP_WRITE:
    case OP_KIND_COUNT:
        break;
    }
    ASSERT(!"an op that no lane thread runs");
}

/* Of a store its sums of squares, of an update its flags: the ops of all chunks write the cell,
 * each its own part of it. */
#define USE_IN_PARTS 2u

static bool is_apart(const struct plan_op *a, const struct plan_op *b)
{
    for (uint32_t u = 0; u < a->use_count; u++)
        for (uint32_t v = 0; v < b->use_count; v++) {
            const struct plan_cells x = a->uses[u].cells, y = b->uses[v].cells;
            if (u != USE_IN_PARTS && v != USE_IN_PARTS && (a->uses[u].write || b->uses[v].write) &&
                x.first < y.first + y.count && y.first < x.first + x.count)
                return false;
        }
    return true;
}

bool exec_joins(const struct plan_op *const *ops, uint32_t count, const struct plan_op *next)
{
    if (!is_listed(next))
        return false;
    for (uint32_t i = 0; i < count; i++)
        if (ops[i]->kind != next->kind || ops[i]->lane != next->lane || !is_apart(ops[i], next))
            return false;
    return true;
}

void exec_ops(struct exec *exec, const struct plan_op *const *ops, uint32_t count)
{
    ASSERT(count >= 1 && count <= DEVICE_LIST);
    if (is_listed(ops[0]))
        run_list(exec, ops, count);
    else
        exec_op(exec, ops[0]);
}
