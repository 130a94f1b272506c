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
                    (struct exec_segment){at - chunk->first, step, tensor->decay};
            }
        }
    }
    exec->chunk_segments[layout->chunk_count] = filled;
}

int exec_open(struct exec *exec, const struct tensors *tensors, struct err *err)
{
    cut_segments(exec, tensors);
    moments_init(&exec->moments, exec->layout->moments, exec->seed);
    exec->bad_chunk = PLAN_NONE;
    int result = mem_arena_open(&exec->ram, exec->memory->tier_bytes[TIER_RAM], err);
    if (result == 0 && !exec->device_modelled)
        result = exec->device->ops->open_memory(
            exec->device, &exec->vram, exec->memory->tier_bytes[TIER_DEVICE], &exec->ram, err);
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

static void run_gradient_store(struct exec *exec, const struct plan_op *op)
{
    const struct layout_chunk *chunk = &exec->layout->chunks[op->chunk];
    struct device_store args = {
        .gradient = at(exec, op, 0),
        .stored = at(exec, op, 1),
        .count = chunk->real_count,
        .padded_count = chunk->count,
        .element_bytes = exec->place->gradient_bytes,
        .square_sums = (double *)at(exec, op, 2) + (uint64_t)op->chunk * PLAN_SQUARES_PER_CHUNK,
    };
    ASSERT(div_up(chunk->real_count, KERNELS_NORM_BLOCK) <= PLAN_SQUARES_PER_CHUNK);
    exec->device->ops->gradient_store(exec->device, &args);
}

static void run_copy(struct exec *exec, const struct plan_op *op)
{
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

struct chunk_planes {
    uint8_t *plane[PLANE_COUNT];
};

/* Where a chunk's planes are: resident ones at home, the others in the stage. */
static struct chunk_planes find_planes(const struct exec *exec, uint32_t chunk, uint8_t *stage)
{
    struct chunk_planes planes = {0};
    const struct layout_chunk *c = &exec->layout->chunks[chunk];
    uint32_t first = exec->memory->plane_ram.first + chunk * PLANE_COUNT;
    for (uint32_t p = 0; p < PLANE_COUNT; p++) {
        if (p < exec->place->resident[chunk])
            planes.plane[p] = exec_cell(exec, first + p);
        else if (stage)
            planes.plane[p] = stage + layout_plane_offset(exec->layout, c->count, p);
    }
    return planes;
}

/* Sums of parts, of the planes from `first` on. */
struct part_sums {
    uint32_t first;
    uint64_t sums[PLANE_COUNT][LAYOUT_PARTS_MAX];
};

struct update_job {
    const struct exec *exec;
    const struct layout_chunk *chunk;
    struct chunk_planes planes;
    const uint8_t *gradient;
    const struct exec_segment *segments;
    uint32_t segment_count;
    struct part_sums before, after;
    bool failed; /* any writer writes true */
};

static void sum_part(const struct update_job *job, struct part_sums *sums, uint32_t part)
{
    const struct layout *layout = job->exec->layout;
    bool last = (part + 1) * LAYOUT_PART_PARAMETERS >= job->chunk->count;
    for (uint32_t p = sums->first; p < PLANE_COUNT; p++) {
        uint64_t first = layout_part_offset(layout, p, part);
        uint64_t end = last ? layout_plane_bytes(layout, job->chunk->count, p)
                            : layout_part_offset(layout, p, part + 1);
        sums->sums[p][part] = tier_part_sum(job->planes.plane[p] + first, end - first);
    }
}

/* What optim_update takes of the parameters from `first` on, all but the moments. */
static struct optim_range range_of(const struct update_job *job, uint64_t first, uint64_t count,
                                   bool decay)
{
    return (struct optim_range){
        .hi = (uint16_t *)job->planes.plane[PLANE_HI] + first,
        .lo = (int16_t *)job->planes.plane[PLANE_LO] + first,
        .gradient = job->gradient + first * job->exec->place->gradient_bytes,
        .count = count,
        .decay = decay,
    };
}

/* A part whose moments are FP32: they are updated where they lie. */
static bool update_in_place(const struct update_job *job, uint32_t first, uint32_t end)
{
    bool finite = true;
    for (uint32_t s = first; s < end; s++) {
        const struct exec_segment *segment = &job->segments[s];
        struct optim_range range = range_of(job, segment->first, segment->count, segment->decay);
        range.m = (float *)job->planes.plane[PLANE_M] + segment->first;
        range.v = (float *)job->planes.plane[PLANE_V] + segment->first;
        finite &= optim_update(&range, &job->exec->step, job->exec->place->spec.precision);
    }
    return finite;
}

/* A part whose moments are smaller, block by block: loaded as FP32, updated, stored again. A block
 * may end one segment and begin others. */
static bool update_blocks(const struct update_job *job, uint32_t first, uint32_t end)
{
    const struct exec *exec = job->exec;
    uint64_t stored = moments_block_bytes(exec->moments.kind);
    /* Canonical: the group and the place in its vector, whatever the chunks are. */
    uint64_t origin = ((uint64_t)job->chunk->group << 40) + job->chunk->first;
    struct moments_values values;
    bool finite = true;
    uint64_t at = first < end ? job->segments[first].first / MOMENTS_BLOCK * MOMENTS_BLOCK : 0;
    for (uint32_t s = first; s < end; at += MOMENTS_BLOCK) {
        uint8_t *m = job->planes.plane[PLANE_M] + at / MOMENTS_BLOCK * stored;
        uint8_t *v = job->planes.plane[PLANE_V] + at / MOMENTS_BLOCK * stored;
        struct moments_place place = {exec->step.step, origin + at};
        moments_load(&exec->moments, &values, m, v);
        while (s < end && job->segments[s].first < at + MOMENTS_BLOCK) {
            const struct exec_segment *segment = &job->segments[s];
            uint64_t from = MAX(at, segment->first), to = segment->first + segment->count;
            struct optim_range range =
                range_of(job, from, MIN(to, at + MOMENTS_BLOCK) - from, segment->decay);
            range.m = values.m + (from - at);
            range.v = values.v + (from - at);
            finite &= optim_update(&range, &exec->step, exec->place->spec.precision);
            if (to > at + MOMENTS_BLOCK)
                break; /* it goes on in the next block */
            s++;
        }
        finite &= moments_store(&exec->moments, &values, m, v, &place);
    }
    return finite;
}

/* Everything that is done to a part, while the core's cache holds it. */
static void update_part(void *context, uint32_t part, uint32_t worker)
{
    (void)worker;
    struct update_job *job = context;
    uint64_t start = part * LAYOUT_PART_PARAMETERS;
    uint32_t first = 0;
    while (first < job->segment_count && job->segments[first].first < start)
        first++;
    uint32_t end = first;
    while (end < job->segment_count && job->segments[end].first < start + LAYOUT_PART_PARAMETERS)
        end++;
    sum_part(job, &job->before, part);
    bool finite = job->exec->moments.kind == MOMENTS_FP32 ? update_in_place(job, first, end)
                                                          : update_blocks(job, first, end);
    if (!finite)
        __atomic_store_n(&job->failed, true, __ATOMIC_RELAXED);
    sum_part(job, &job->after, part);
}

static void run_update(struct exec *exec, const struct plan_op *op)
{
    uint32_t number = op->chunk, resident = exec->place->resident[number];
    const struct layout_chunk *chunk = &exec->layout->chunks[number];
    uint32_t first = exec->chunk_segments[number], end = exec->chunk_segments[number + 1];
    uint32_t parts = (uint32_t)div_up(chunk->count, LAYOUT_PART_PARAMETERS);
    uint64_t *sums = &exec->tier->plane_sums[number * PLANE_COUNT];
    struct update_job job = {
        .exec = exec,
        .chunk = chunk,
        .planes = find_planes(exec, number, at(exec, op, 1)),
        .gradient = at(exec, op, 2),
        .segments = &exec->segments[first],
        .segment_count = end - first,
        .before.first = resident,
        .after.first = exec->commit_plan ? 0 : resident,
    };
    uint32_t cell = exec->memory->gradient_nvme.first + number;
    uint64_t bytes = exec->memory->cells[cell].bytes;
    if (bytes && tier_cell_sum(cell, job.gradient, bytes) != exec->tier->cell_sums[cell])
        tier_fail_cell(exec->tier, cell);
    pool_run(exec->cpu_pool, update_part, &job, parts);
    /* Nothing that came of damaged state is written: this op has not ended yet. */
    for (uint32_t p = job.before.first; p < PLANE_COUNT; p++)
        if (tier_join_sums(number, p, job.before.sums[p], parts) != sums[p])
            tier_fail_plane(exec->tier, number, p);
    if (job.failed)
        fatal("a weight or moment of chunk %u is no longer finite after its update: lower --lr; %s",
              number, tier_commit_note(exec->tier));
    for (uint32_t p = job.after.first; p < PLANE_COUNT; p++)
        sums[p] = tier_join_sums(number, p, job.after.sums[p], parts);
}

struct join_job {
    const uint16_t *hi;
    const int16_t *lo;
    float *out;
    uint64_t count;
};

static void join_part(void *context, uint32_t task, uint32_t worker)
{
    (void)worker;
    const struct join_job *job = context;
    uint64_t first = task * LAYOUT_PART_PARAMETERS,
             end = MIN(first + LAYOUT_PART_PARAMETERS, job->count);
    float_join_many(job->hi + first, job->lo + first, job->out + first, end - first);
}

static void run_join(struct exec *exec, const struct plan_op *op)
{
    uint64_t count = exec->layout->chunks[op->chunk].count;
    struct chunk_planes planes = find_planes(exec, op->chunk, at(exec, op, 1));
    if (exec->place->spec.precision == PRECISION_BF16) {
        memcpy(at(exec, op, 2), planes.plane[PLANE_HI], count * 2);
        return;
    }
    struct join_job job = {(const uint16_t *)planes.plane[PLANE_HI],
                           (const int16_t *)planes.plane[PLANE_LO], at(exec, op, 2), count};
    pool_run(exec->cpu_pool, join_part, &job, (uint32_t)div_up(count, LAYOUT_PART_PARAMETERS));
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
    uint32_t cell = op->uses[1].cells.first;
    exec->tier->cell_sums[cell] = tier_cell_sum(cell, at(exec, op, 0), op->bytes);
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
    case OP_HEAD_LOSS: {
        struct kernels_head_loss args = {at(exec, op, 0), at(exec, op, 1)};
        exec->device->ops->head_loss(exec->device, &args);
        return;
    }
    case OP_GRADIENT_STORE:
        run_gradient_store(exec, op);
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
