#include "tests/shared/plans.h"

#include "core/mem.h"
#include "tests/shared/check.h"

#include <string.h>

void plans_open(struct plans_example *e, const struct place_spec *change,
                const struct plan_request *request)
{
    struct place_spec spec = *change;
    struct err err;
    spec.config = &e->model.config;
    spec.layout = &e->model.layout;
    if (place_choose(&e->place, &spec, &err) != 0)
        fail_msg("%s", err.message);
    plan_memory_init(&e->memory, &e->place);
    plan_build(&e->plan, &e->place, &e->memory, request);
}

void plans_close(struct plans_example *e)
{
    plan_deinit(&e->plan);
    plan_memory_deinit(&e->memory);
    place_deinit(&e->place);
}

static void oracle_uses(struct plans_oracle *oracle)
{
    const struct plan *plan = oracle->plan;
    uint32_t cells = plan->memory->cell_count;
    uint32_t *last = mem_alloc(cells, sizeof(*last)); /* op + 1 of the cell's newest use */
    oracle->first = mem_alloc((uint64_t)cells + 1, sizeof(*oracle->first));
    /* Twice the same walk: first to count, then to fill. */
    for (int fill = 0; fill < 2; fill++) {
        memset(last, 0, cells * sizeof(*last));
        for (uint32_t o = 0; o < plan->op_count; o++)
            for (uint32_t u = 0; u < plan->ops[o].use_count; u++)
                for (uint32_t i = 0; i < plan->ops[o].uses[u].cells.count; i++) {
                    uint32_t cell = plan->ops[o].uses[u].cells.first + i;
                    bool write = plan->ops[o].uses[u].write, again = last[cell] == o + 1;
                    last[cell] = o + 1;
                    if (!fill)
                        oracle->first[cell + 1] += !again;
                    else if (again)
                        oracle->uses[oracle->first[cell] - 1].write |= write;
                    else
                        oracle->uses[oracle->first[cell]++] = (struct plans_use){o, write};
                }
        if (fill) {
            memmove(oracle->first + 1, oracle->first, cells * sizeof(*oracle->first));
            oracle->first[0] = 0;
            continue;
        }
        for (uint32_t c = 0; c < cells; c++)
            oracle->first[c + 1] += oracle->first[c];
        oracle->uses = mem_alloc(oracle->first[cells] + 1, sizeof(*oracle->uses));
    }
    mem_free(last);
}

static void oracle_close_waits(struct plans_oracle *oracle)
{
    const struct plan *plan = oracle->plan;
    memset(oracle->before, 0, (size_t)plan->op_count * oracle->words * sizeof(uint64_t));
    for (uint32_t o = 0; o < plan->op_count; o++) {
        uint64_t *mine = oracle->before + (size_t)o * oracle->words;
        for (uint32_t i = 0; i < plan->ops[o].wait_count; i++) {
            uint32_t on = plan->waits[plan->ops[o].first_wait + i];
            const uint64_t *theirs = oracle->before + (size_t)on * oracle->words;
            for (uint32_t w = 0; w <= on / 64; w++)
                mine[w] |= theirs[w];
            mine[on / 64] |= (uint64_t)1 << on % 64;
        }
    }
}

void plans_oracle_open(struct plans_oracle *oracle, const struct plan *plan)
{
    *oracle = (struct plans_oracle){.plan = plan, .words = plan->op_count / 64 + 1};
    oracle->before = mem_alloc((uint64_t)plan->op_count * oracle->words, sizeof(uint64_t));
    oracle_uses(oracle);
    oracle_close_waits(oracle);
}

void plans_oracle_close(struct plans_oracle *oracle)
{
    mem_free(oracle->first);
    mem_free(oracle->uses);
    mem_free(oracle->before);
}

bool plans_oracle_ordered(const struct plans_oracle *oracle)
{
    for (uint32_t c = 0; c < oracle->plan->memory->cell_count; c++)
        for (uint32_t i = oracle->first[c]; i < oracle->first[c + 1]; i++)
            for (uint32_t j = oracle->first[c]; j < i; j++) {
                const struct plans_use *early = &oracle->uses[j], *late = &oracle->uses[i];
                const uint64_t *before = oracle->before + (size_t)late->op * oracle->words;
                if ((early->write || late->write) &&
                    !(before[early->op / 64] >> early->op % 64 & 1))
                    return false;
            }
    return true;
}
