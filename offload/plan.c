#include "offload/plan.h"

#include "core/log.h"
#include "core/mem.h"

#include <stdlib.h>

const char *const plan_lane_name[LANE_COUNT] = {"compute",  "h2d",       "d2h",
                                                "ssd_read", "ssd_write", "cpu"};

const char *const plan_op_name[OP_KIND_COUNT] = {
    [OP_EMBED_FORWARD] = "embed_forward",
    [OP_POSITION_FORWARD] = "position_forward",
    [OP_BLOCK_FORWARD] = "block_forward",
    [OP_RECOMPUTE] = "recompute",
    [OP_NORM_FORWARD] = "norm_forward",
    [OP_HEAD_FORWARD] = "head_forward",
    [OP_HEAD_LOSS] = "head_loss",
    [OP_HEAD_BACKWARD] = "head_backward",
    [OP_HEAD_ONCE] = "head_once",
    [OP_NORM_BACKWARD] = "norm_backward",
    [OP_BLOCK_BACKWARD] = "block_backward",
    [OP_EMBED_BACKWARD] = "embed_backward",
    [OP_POSITION_BACKWARD] = "position_backward",
    [OP_GRADIENT_STORE] = "gradient_store",
    [OP_DEVICE_UPDATE] = "device_update",
    [OP_DEVICE_JOIN] = "device_join",
    [OP_COPY_H2D] = "copy_in",
    [OP_COPY_D2H] = "copy_out",
    [OP_READ] = "read",
    [OP_WRITE] = "write",
    [OP_COMMIT] = "commit",
    [OP_UPDATE] = "update",
    [OP_JOIN] = "join",
    [OP_VERIFY] = "verify",
    [OP_SUM] = "sum",
    [OP_CLIP] = "clip",
    [OP_CHECK] = "check",
    [OP_CHECK_UPDATES] = "check_updates",
};

const char *const plan_content_name[CONTENT_COUNT] = {"state",       "weights", "gradients",
                                                      "activations", "staging", "other"};

void plan_deinit(struct plan *plan)
{
    mem_free(plan->ops);
    mem_free(plan->waits);
    *plan = (struct plan){0};
}

/* ---- The checker ----------------------------------------------------------------------------
 * Shares no code with the builder's derivation of waits: it replays the uses of every cell and asks
 * of each conflicting pair that is next to each other in time whether the later op waits for the
 * earlier one. Since waits are transitive, adjacent pairs are enough.
 */

struct cell_use {
    uint32_t cell, op;
    bool write;
};

static int compare_uses(const void *a, const void *b)
{
    const struct cell_use *x = a, *y = b;
    if (x->cell != y->cell)
        return x->cell < y->cell ? -1 : 1;
    if (x->op != y->op)
        return x->op < y->op ? -1 : 1;
    return (int)y->write - (int)x->write; /* an op that writes a cell also counts as its reader */
}

static bool waits_on(const struct plan *plan, uint32_t op, uint32_t on)
{
    const struct plan_op *o = &plan->ops[op];
    for (uint32_t i = 0; i < o->wait_count; i++)
        if (plan->waits[o->first_wait + i] == on)
            return true;
    return false;
}

static int missing(const struct plan *plan, uint32_t cell, uint32_t later, uint32_t earlier,
                   struct err *err)
{
    return err_set(err, ERR_INPUT, "plan: op %u (%s) uses cell %u after op %u (%s) without waiting",
                   later, plan_op_name[plan->ops[later].kind], cell, earlier,
                   plan_op_name[plan->ops[earlier].kind]);
}

/* All uses of one cell, in issue order. */
static int check_cell(const struct plan *plan, const struct cell_use *uses, size_t count,
                      struct err *err)
{
    uint32_t writer = PLAN_NONE;
    size_t first_reader = 0, reader_count = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t op = uses[i].op;
        if (i > 0 && uses[i - 1].op == op)
            continue; /* the same op again: its strongest use came first */
        if (writer != PLAN_NONE && !waits_on(plan, op, writer))
            return missing(plan, uses[i].cell, op, writer, err);
        if (!uses[i].write) {
            if (!reader_count++)
                first_reader = i;
            continue;
        }
        for (size_t r = first_reader; reader_count && r < i; r++)
            if (uses[r].op != op && !waits_on(plan, op, uses[r].op))
                return missing(plan, uses[i].cell, op, uses[r].op, err);
        writer = op;
        reader_count = 0;
    }
    return 0;
}

static int check_hazards(const struct plan *plan, struct err *err)
{
    size_t count = 0, filled = 0;
    for (uint32_t o = 0; o < plan->op_count; o++)
        for (uint32_t u = 0; u < plan->ops[o].use_count; u++)
            count += plan->ops[o].uses[u].cells.count;
    struct cell_use *uses = mem_alloc(MAX(count, 1), sizeof(*uses));
    for (uint32_t o = 0; o < plan->op_count; o++)
        for (uint32_t u = 0; u < plan->ops[o].use_count; u++)
            for (uint32_t i = 0; i < plan->ops[o].uses[u].cells.count; i++)
                uses[filled++] = (struct cell_use){plan->ops[o].uses[u].cells.first + i, o,
                                                   plan->ops[o].uses[u].write};
    qsort(uses, count, sizeof(*uses), compare_uses);
    int result = 0;
    for (size_t i = 0, end; i < count && result == 0; i = end) {
        for (end = i; end < count && uses[end].cell == uses[i].cell; end++)
            ;
        result = check_cell(plan, uses + i, end - i, err);
    }
    mem_free(uses);
    return result;
}

static int compare_offsets(const void *a, const void *b)
{
    const struct plan_cell *x = *(const struct plan_cell *const *)a;
    const struct plan_cell *y = *(const struct plan_cell *const *)b;
    if (x->tier != y->tier)
        return x->tier < y->tier ? -1 : 1;
    if (x->state_file != y->state_file)
        return x->state_file < y->state_file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int check_memory(const struct plan_memory *memory, uint64_t slot_bytes, struct err *err)
{
    const struct plan_cell **sorted = mem_alloc(MAX(memory->cell_count, 1), sizeof(*sorted));
    uint32_t count = 0;
    int result = 0;
    for (uint32_t i = 0; i < memory->cell_count; i++)
        if (memory->cells[i].bytes)
            sorted[count++] = &memory->cells[i];
    qsort(sorted, count, sizeof(*sorted), compare_offsets);
    for (uint32_t i = 0; i < count && result == 0; i++) {
        const struct plan_cell *cell = sorted[i], *before = i ? sorted[i - 1] : NULL;
        uint64_t limit = cell->state_file ? slot_bytes : memory->tier_bytes[cell->tier];
        if (cell->offset % IO_ALIGN || cell->bytes % IO_ALIGN)
            result = err_set(err, ERR_INPUT, "plan: a cell of tier %u is not aligned", cell->tier);
        else if (cell->offset + cell->bytes > limit)
            result = err_set(err, ERR_INPUT, "plan: a cell of tier %u ends beyond it", cell->tier);
        else if (before && before->tier == cell->tier && before->state_file == cell->state_file &&
                 before->offset + before->bytes > cell->offset)
            result = err_set(err, ERR_INPUT, "plan: two cells of tier %u overlap", cell->tier);
    }
    mem_free(sorted);
    return result;
}

static int check_counts(const struct plan *plan, struct err *err)
{
    const struct layout *layout = plan->place->spec.layout;
    uint8_t *updates = mem_alloc(layout->chunk_count, 2);
    uint8_t *stores = updates + layout->chunk_count;
    int result = 0;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        uint32_t kind = plan->ops[o].kind, chunk = plan->ops[o].chunk;
        if (kind == OP_GRADIENT_STORE)
            stores[chunk]++;
        if (kind != OP_UPDATE && kind != OP_DEVICE_UPDATE)
            continue;
        updates[chunk]++;
        bool streamed = plan->place->streamed[chunk];
        bool there = plan->place->on_device[chunk] || streamed;
        if (there != (kind == OP_DEVICE_UPDATE) || streamed != (plan->ops[o].lane == LANE_D2H))
            result = err_set(err, ERR_INPUT, "plan: op %u updates chunk %u in the wrong place", o,
                             chunk);
    }
    bool update = plan->place->immediate ? plan->backward : plan->update;
    for (uint32_t c = 0; c < layout->chunk_count && result == 0; c++)
        if (updates[c] != update || stores[c] != plan->backward)
            result = err_set(err, ERR_INPUT,
                             "plan: chunk %u is updated %u times and its gradient stored %u times",
                             c, updates[c], stores[c]);
    mem_free(updates);
    return result;
}

/* Each micro-batch has its losses once; where backward updates, they are looked at before. */
static int check_losses(const struct plan *plan, struct err *err)
{
    uint32_t accum = plan->place->spec.accum, losses = 0, checks = 0;
    bool guarded = plan->place->immediate && plan->backward;
    for (uint32_t o = 0; o < plan->op_count; o++) {
        uint32_t kind = plan->ops[o].kind;
        if (kind == OP_HEAD_LOSS || kind == OP_HEAD_ONCE) {
            if (checks || plan->ops[o].micro != losses++)
                return err_set(err, ERR_INPUT, "plan: op %u makes losses out of order", o);
        } else if (kind == OP_CHECK) {
            checks++;
            if (losses != accum)
                return err_set(err, ERR_INPUT, "plan: op %u checks %u losses", o, losses);
        } else if (guarded && !checks && (kind == OP_UPDATE || kind == OP_DEVICE_UPDATE)) {
            return err_set(err, ERR_INPUT, "plan: op %u updates before the losses are checked", o);
        }
    }
    if (losses != (plan->forward ? accum : 0) || checks != guarded)
        return err_set(err, ERR_INPUT, "plan: %u losses are made, and checked %u times", losses,
                       checks);
    return 0;
}

static int check_budgets(const struct plan *plan, struct err *err)
{
    const struct place *place = plan->place;
    const struct plan_memory *memory = plan->memory;
    uint64_t ram = place->spec.overhead_bytes + memory->tier_bytes[TIER_RAM];
    if (ram > place->spec.ram_budget ||
        (place->separate_device && memory->tier_bytes[TIER_DEVICE] > place->spec.vram_budget))
        return err_set(err, ERR_INPUT, "plan: memory exceeds its budget");
    return 0;
}

int plan_check(const struct plan *plan, struct err *err)
{
    for (uint32_t o = 0; o < plan->op_count; o++)
        for (uint32_t i = 0; i < plan->ops[o].wait_count; i++)
            if (plan->waits[plan->ops[o].first_wait + i] >= o)
                return err_set(err, ERR_INPUT, "plan: op %u waits for a later one", o);
    int result = check_memory(plan->memory, plan->place->spec.layout->slot_bytes, err);
    if (result == 0)
        result = check_budgets(plan, err);
    if (result == 0)
        result = check_hazards(plan, err);
    if (result == 0)
        result = check_losses(plan, err);
    return result ? result : check_counts(plan, err);
}

/* ---- For people ----------------------------------------------------------------------------- */

static void dump_number(FILE *out, const char *name, uint32_t number)
{
    if (number != PLAN_NONE)
        fprintf(out, " %s=%u", name, number);
}

void plan_dump(const struct plan *plan, FILE *out)
{
    char text[LOG_BYTES_MAX];
    fprintf(out, "# op lane kind | waits for (at most 8 are listed)\n");
    for (uint32_t o = 0; o < plan->op_count; o++) {
        const struct plan_op *op = &plan->ops[o];
        if (o == plan->backward_first)
            fprintf(out, "# backward\n");
        fprintf(out, "%u %s %s", o, plan_lane_name[op->lane], plan_op_name[op->kind]);
        dump_number(out, "layer", op->layer);
        dump_number(out, "micro", op->micro);
        dump_number(out, "chunk", op->chunk);
        if (op->plane_count)
            fprintf(out, " planes=%s..%s", layout_plane_name[op->plane],
                    layout_plane_name[op->plane + op->plane_count - 1]);
        if (op->bytes)
            fprintf(out, " %s", log_bytes(text, op->bytes));
        if (op->flops)
            fprintf(out, " %.3g GFLOP", (double)op->flops / 1e9);
        fprintf(out, " |");
        for (uint32_t i = 0; i < MIN(op->wait_count, 8); i++)
            fprintf(out, " %u", plan->waits[op->first_wait + i]);
        if (op->wait_count > 8)
            fprintf(out, " and %u more", op->wait_count - 8);
        fprintf(out, "\n");
    }
}

void plan_total(const struct plan *plan, struct plan_totals *totals)
{
    *totals = (struct plan_totals){0};
    for (uint32_t o = 0; o < plan->op_count; o++) {
        const struct plan_op *op = &plan->ops[o];
        enum plan_phase phase = o >= plan->backward_first ? PHASE_BACKWARD : PHASE_FORWARD;
        if (op->flags & OP_COMMITTED)
            totals->commit_bytes += op->bytes;
        else
            totals->bytes[phase][op->lane] += op->bytes;
        totals->flops[phase] += op->flops;
    }
}
